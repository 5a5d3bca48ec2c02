//! The one socket that writes: a transaction goes out as one batch and is confirmed or refused as a whole.
//!
//! The kernel answers a message of an aborted batch with success if that message alone was fine. So an acknowledgement proves
//! nothing by itself: a batch happened if **no** message of it was answered with an error **and** its last one was acknowledged.
//! A refusal names the statement that caused it in nft's language, down to the element.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use super::element::Element;
use super::features::{self, Features};
use super::link::Link;
use super::message::{Batch, HEADER, Message, Messages, attr, attribute_at, element_at, family_number, kind, number};
use super::ruleset::{Reject, Rule, Set, Statement};
use super::transaction::{Change, Transaction};
use crate::terms::{Family, Hook, Protocol};

/// Room for the largest transaction: hundreds of thousands of elements.
const SEND_BUFFER: usize = 64 << 20;
const RECEIVE_BUFFER: usize = 4 << 20;
/// Elements of a bulk load go out in batches of this many: fewer cost more, many more hold up other writers and cost twice.
pub const BATCH: usize = 2340;
/// Memory a batch may keep between two commits.
const KEEP: usize = 1 << 20;

/// The socket, with its buffers.
#[derive(Debug)]
pub struct Socket {
    link: Link,
    batch: Batch,
    answer: Vec<u8>,
    sequence: u32,
    features: Features,
    /// Family and handle of each table that the last transaction made.
    made: Vec<(u8, u64)>,
}

/// What kind of refusal it was, where that makes a difference to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ENOENT: the table is not there.
    NoTable,
    /// ENOENT about something in the table: a set, a chain, a rule, an element.
    NoEntry,
    /// EEXIST: an interval overlaps another, or what is there differs.
    Exists,
    /// EPERM: no CAP_NET_ADMIN, or the table is owned by another socket.
    NotPermitted,
    /// ENFILE: the set has as many elements as its size allows.
    SetFull,
    /// ERANGE: a timeout beyond what the kernel counts.
    OutOfRange,
    /// ERESTART: somebody committed since the generation the transaction was made for.
    Stale,
    /// EBUSY: something still uses what was to be deleted.
    Busy,
    /// The transaction can not be written, or not be sent in one piece; the kernel has not seen it.
    TooLarge,
    /// The kernel's answer was lost: whether the transaction happened has to be read back.
    Unanswered,
    /// Another error.
    Other(Errno),
}

/// A transaction that did not happen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What kind of refusal.
    pub kind: Kind,
    /// The error the kernel gave.
    pub errno: Errno,
    /// The statement that caused it, in nft's language.
    pub statement: String,
    /// Its position in the transaction.
    pub index: usize,
    /// The position of the element in the statement, if it was one and the kernel said which.
    pub element: Option<usize>,
    /// What the kernel said in words, if anything.
    pub said: Option<String>,
    /// How many more errors the kernel reported for the same batch.
    pub more: usize,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.statement, error_text(self.kind, self.errno))?;
        if let Some(said) = &self.said {
            write!(f, " ({said})")?;
        }
        if self.more > 0 {
            write!(f, ", and {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// nf_tables can not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CannotOpen(pub Errno);

impl fmt::Display for CannotOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot open nftables: {}", errno_text(self.0))?;
        match self.0 {
            Errno::EPERM | Errno::EACCES => f.write_str("\n  help: run as root or grant CAP_NET_ADMIN, see banset(8)"),
            Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL => {
                f.write_str("\n  help: this kernel has no nf_tables; load the module nf_tables or use another kernel")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for CannotOpen {}

/// `ENOENT, no such file or directory`
pub(crate) fn errno_text(errno: Errno) -> String {
    let mut words = errno.desc().to_owned();
    if let Some(first) = words.get_mut(..1)
        && !errno.desc().get(1..2).is_some_and(|second| second.bytes().all(|b| b.is_ascii_uppercase()))
    {
        first.make_ascii_lowercase();
    }
    format!("{errno:?}, {words}")
}

fn error_text(kind: Kind, errno: Errno) -> String {
    match kind {
        // The C library's words for these are about files and system calls.
        Kind::SetFull => "ENFILE, the set is full".to_owned(),
        Kind::Stale => "ERESTART, the ruleset changed in the meantime".to_owned(),
        Kind::TooLarge => "EMSGSIZE, too large for one message".to_owned(),
        Kind::Unanswered => format!("{}: no answer from the kernel", errno_text(errno)),
        _ => errno_text(errno),
    }
}

/// An error the kernel reported for one message.
#[derive(Debug)]
struct Answer {
    sequence: u32,
    error: i32,
    offset: Option<u32>,
    said: Option<String>,
}

/// Reads an error or acknowledgement.
fn read_answer(message: &Message<'_>) -> Option<Answer> {
    let error = i32::from_ne_bytes(*message.payload.first_chunk()?);
    let request: &[u8; HEADER] = message.payload.get(4..4 + HEADER)?.first_chunk()?;
    let length = u32::from_ne_bytes([request[0], request[1], request[2], request[3]]) as usize;
    let repeated = if error == 0 || message.flags & number::F_CAPPED != 0 { HEADER } else { length };
    let mut answer = Answer { sequence: message.sequence, error: -error, offset: None, said: None };
    if message.flags & number::F_ACK_TLVS != 0
        && let Some(rest) = message.payload.get(4 + repeated.next_multiple_of(4)..)
    {
        let attributes = super::message::Attributes(rest);
        answer.offset = attributes.find(number::ERR_OFFSET).and_then(|v| Some(u32::from_ne_bytes(v.try_into().ok()?)));
        answer.said = attributes.text(number::ERR_MESSAGE).map(|text| crate::terms::escape(text.as_bytes(), 200));
    }
    Some(answer)
}

impl Socket {
    /// Opens nf_tables and finds out what it can do. Changes nothing.
    pub fn open() -> Result<Socket, CannotOpen> {
        let link = Link::open(SEND_BUFFER, RECEIVE_BUFFER).map_err(CannotOpen)?;
        let mut socket =
            Socket { link, batch: Batch::default(), answer: Vec::new(), sequence: 1, features: Features::NONE, made: Vec::new() };
        socket.features = socket.probe().map_err(CannotOpen)?;
        Ok(socket)
    }

    /// What the kernel can do.
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Writes as if the kernel could do just this much.
    pub fn pretend(&mut self, features: Features) {
        self.features = features;
    }

    /// Our address among netlink sockets: changes that name it are our own.
    pub fn port(&self) -> u32 {
        self.link.port()
    }

    /// Whether base chains can hang at a hook in this family, and whether their rules can reject there. Tried with a batch that always
    /// fails, so nothing comes of it; where the kernel has reject, the hooks are those of `nft_reject_inet_validate` and
    /// `nft_reject_bridge_validate`, which a batch that fails does not get to.
    pub fn allows(&mut self, family: Family, hook: Hook) -> Result<(bool, bool), CannotOpen> {
        let (table, chain) = ("banset-probe", "probe");
        self.batch.restart(family, self.sequence);
        let base = self.sequence;
        self.batch.begin(None);
        let ask = number::F_CREATE | number::F_ACK;
        self.batch.message(kind::NEWTABLE, ask, |b| b.text(attr::TABLE_NAME, table));
        self.batch.message(kind::NEWCHAIN, ask, |b| {
            b.text(attr::CHAIN_TABLE, table);
            b.text(attr::CHAIN_NAME, chain);
            b.text(attr::CHAIN_TYPE, "filter");
            b.nest(attr::CHAIN_HOOK, |b| {
                b.u32(attr::HOOK_NUM, super::transaction::hook_number(hook));
                b.u32(attr::HOOK_PRIORITY, 0);
            });
        });
        let reset = [Statement::L4proto(vec![Protocol::Tcp]), Statement::Reject(Reject::TcpReset)];
        super::expression::write_rule(
            &mut self.batch,
            family,
            table,
            chain,
            None,
            &Rule { statements: reset.to_vec() },
            Default::default(),
        );
        self.batch.acknowledge_last();
        self.batch.message(kind::DELSET, number::F_ACK, |b| {
            b.text(attr::SET_TABLE, table);
            b.text(attr::SET_NAME, "missing");
        });
        self.batch.end(false);
        let answers = self.ask().map_err(CannotOpen)?;
        let accepted =
            |message: u32| answers.iter().any(|(sequence, error)| *sequence == base.wrapping_add(message) && *error == 0);
        let rejects = match family {
            Family::Inet => hook != Hook::Postrouting,
            Family::Bridge => matches!(hook, Hook::Prerouting | Hook::Input),
        };
        Ok((accepted(2), accepted(3) && rejects))
    }

    /// Makes a transaction happen, or says why none of it did.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<(), Refused> {
        if transaction.is_empty() {
            return Ok(());
        }
        self.batch.restart(transaction.family(), self.sequence);
        transaction.write(&mut self.batch, &self.features);
        let result = self.exchange(transaction);
        self.batch.shrink_to(KEEP);
        result
    }

    /// Whether nobody committed since this generation. Once it answers yes, whoever listens was told of everything up to it: the kernel
    /// holds the same lock until a transaction's last notice is out.
    pub fn is_still_at(&mut self, generation: u32) -> Result<bool, CannotOpen> {
        self.batch.restart(Family::Inet, self.sequence);
        self.batch.begin(Some(generation));
        self.batch.end(false);
        Ok(self.ask().map_err(CannotOpen)?.iter().all(|(_, error)| *error == 0))
    }

    /// The handle of the table of this family that the last transaction made, if it did.
    pub fn made(&self, family: Family) -> Option<u64> {
        let family = family_number(family);
        self.made.iter().find(|(of, _)| *of == family).map(|(_, handle)| *handle)
    }

    /// Fills `set` with any number of elements, in batches of [`BATCH`], while other writers get their turn in between. Stops at the first
    /// refusal; says how many elements are in by then.
    pub fn load(
        &mut self,
        family: Family,
        table: &str,
        set: &Set,
        elements: impl IntoIterator<Item = Element>,
    ) -> Result<usize, (usize, Refused)> {
        let mut elements = elements.into_iter();
        let mut done = 0;
        let mut list = Vec::new();
        loop {
            list.extend(elements.by_ref().take(BATCH));
            let count = list.len();
            if count == 0 {
                return Ok(done);
            }
            let mut transaction = Transaction::new(family, table);
            transaction.add(set, list);
            self.commit(&transaction).map_err(|refused| (done, refused))?;
            done += count;
            list = transaction.into_elements();
            list.clear();
        }
    }

    fn exchange(&mut self, transaction: &Transaction) -> Result<(), Refused> {
        let first = self.sequence;
        self.sequence = self.batch.next_sequence();
        let last = self.sequence.wrapping_sub(if self.features.batch_end_ack { 1 } else { 2 });
        let whole = |kind, errno, index: usize| Refused {
            kind,
            errno,
            statement: transaction.describe(index, None),
            index,
            element: None,
            said: None,
            more: 0,
        };
        // Messages are counted with the one that begins the batch; about the batch itself the first statement can not speak.
        let beyond = transaction.statements().len();
        let bytes = self.batch.bytes().map_err(|poison| whole(Kind::TooLarge, Errno::EMSGSIZE, poison.statement))?;
        self.link.drain(&mut self.answer);
        self.link.send(bytes).map_err(|errno| match errno {
            Errno::EMSGSIZE => whole(Kind::TooLarge, errno, beyond),
            Errno::EPERM => whole(Kind::NotPermitted, errno, beyond),
            other => whole(Kind::Other(other), other, beyond),
        })?;
        self.made.clear();
        let mut refused: Option<Refused> = None;
        let mut confirmed = false;
        let mut lost = None;
        loop {
            let datagram = match self.link.receive(&mut self.answer) {
                Ok(Some(datagram)) => datagram,
                Ok(None) => break,
                Err(errno) if lost.is_none() => {
                    lost = Some(errno);
                    continue;
                }
                Err(_) => break,
            };
            for message in Messages(datagram) {
                if message.nftables() == Some(kind::NEWTABLE) {
                    self.made.extend(message.attributes().u64(attr::TABLE_HANDLE).map(|handle| (message.family(), handle)));
                }
                let error = (message.kind == number::NLMSG_ERROR).then(|| read_answer(&message)).flatten();
                let Some(answer) = error else { continue };
                let index = answer.sequence.wrapping_sub(first) as usize;
                if answer.error == 0 {
                    confirmed |= answer.sequence == last;
                } else if let Some(refused) = &mut refused {
                    refused.more += 1;
                } else if self.batch.origin(index).is_some() {
                    refused = Some(explain(transaction, &self.batch, index, answer));
                }
            }
        }
        match refused {
            Some(refused) => Err(refused),
            None if confirmed && lost.is_none() => Ok(()),
            None => Err(whole(Kind::Unanswered, lost.unwrap_or(Errno::ENOMSG), beyond)),
        }
    }

    /// Sends a batch that can only fail, with every message asking for an answer: which of them alone would have been accepted.
    fn probe(&mut self) -> Result<Features, Errno> {
        // An empty batch needs the same privilege as any other, and its end is answered if ends are answered at all.
        self.batch.restart(Family::Inet, self.sequence);
        self.batch.begin(None);
        self.batch.end(true);
        let answers = self.ask()?;
        if let Some((_, error)) = answers.iter().find(|(_, error)| *error != 0) {
            return Err(Errno::from_raw(*error));
        }
        let batch_end_ack = !answers.is_empty();

        // Nothing of this is ever committed, so the names are in nobody's way.
        let table = "banset-probe";
        let key = super::element::Key::V4;
        self.batch.restart(Family::Inet, self.sequence);
        let base = self.sequence;
        self.batch.begin(None);
        let ask = number::F_CREATE | number::F_ACK;
        self.batch.message(kind::NEWTABLE, ask, |b| {
            b.text(attr::TABLE_NAME, "banset-probe-owner");
            b.u32(attr::TABLE_FLAGS, number::TABLE_OWNER | number::TABLE_PERSIST);
        });
        self.batch.message(kind::NEWTABLE, ask, |b| b.text(attr::TABLE_NAME, table));
        for (name, counts) in [("plain", false), ("counted", true)] {
            self.batch.message(kind::NEWSET, ask, |b| {
                b.text(attr::SET_TABLE, table);
                b.text(attr::SET_NAME, name);
                b.u32(attr::SET_FLAGS, number::SET_TIMEOUT);
                b.u32(attr::SET_KEY_TYPE, key.number());
                b.u32(attr::SET_KEY_LEN, key.length());
                b.u32(attr::SET_ID, if counts { 2 } else { 1 });
                if counts {
                    super::expression::write_counter(b, attr::SET_EXPR, None);
                }
            });
        }
        self.batch.list(
            kind::DESTROYSETELEM,
            number::F_ACK,
            &[std::net::IpAddr::from([192, 0, 2, 1])],
            |b| {
                b.text(attr::ELEMS_TABLE, table);
                b.text(attr::ELEMS_SET, "plain");
            },
            |b, address| b.nest(attr::LIST_ELEM, |b| super::transaction::write_key(b, *address)),
        );
        // The one that is sure to fail: a set that is not there.
        self.batch.message(kind::DELSET, number::F_ACK, |b| {
            b.text(attr::SET_TABLE, table);
            b.text(attr::SET_NAME, "missing");
        });
        self.batch.end(false);
        let answers = self.ask()?;
        // Number 0 begins the batch, then in the order above: owner 1, table 2, plain set 3, counted set 4, destroy 5.
        let accepted =
            |message: u32| answers.iter().any(|(sequence, error)| *sequence == base.wrapping_add(message) && *error == 0);
        let release = nix::sys::utsname::uname().ok().and_then(|name| features::version(name.release().to_str()?));
        Ok(Features {
            owner: accepted(1),
            element_counters: accepted(4),
            destroy: accepted(5),
            timeout_update: release.is_some_and(|version| version >= (6, 12)),
            batch_end_ack,
        })
    }

    /// Sends the batch as it is; `(sequence, errno)` of each answer.
    fn ask(&mut self) -> Result<Vec<(u32, i32)>, Errno> {
        self.sequence = self.batch.next_sequence();
        self.link.send(self.batch.bytes().map_err(|_| Errno::EMSGSIZE)?)?;
        let mut answers = Vec::new();
        while let Some(datagram) = self.link.receive(&mut self.answer)? {
            let errors = Messages(datagram).filter(|message| message.kind == number::NLMSG_ERROR);
            answers.extend(errors.filter_map(|message| read_answer(&message)).map(|answer| (answer.sequence, answer.error)));
        }
        Ok(answers)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

/// Tells which statement, and which element of it, message `index` of the batch was about.
fn explain(transaction: &Transaction, batch: &Batch, index: usize, answer: Answer) -> Refused {
    let errno = Errno::from_raw(answer.error);
    let bytes = batch.message_bytes(index).unwrap_or(&[]);
    let origin = batch.origin(index);
    let offset = answer.offset.map(|offset| offset as usize);
    // The messages that begin and end a batch speak for no statement.
    let kind_at = bytes.get(4).copied();
    let framing = bytes.get(5) == Some(&0);
    let statement = match origin {
        Some(origin) if !framing => origin.statement,
        _ => transaction.statements().len(),
    };
    let list = matches!(kind_at, Some(kind::NEWSETELEM | kind::DELSETELEM | kind::DESTROYSETELEM)) && !framing;
    let many = matches!(
        transaction.statements().get(statement),
        Some(Change::AddElements(e) | Change::DestroyElements(e)) if e.list.len() > 1
    );
    let element = if list {
        let within = offset.and_then(|offset| element_at(bytes, offset)).or((!many).then_some(0));
        within.zip(origin).map(|(within, origin)| origin.first + within)
    } else {
        None
    };
    let about_table = offset.and_then(|offset| attribute_at(bytes, offset)) == Some(attr::TABLE_NAME);
    let kind = match errno {
        // Every message names its table in attribute 1.
        Errno::ENOENT if about_table => Kind::NoTable,
        Errno::ENOENT => Kind::NoEntry,
        Errno::EEXIST => Kind::Exists,
        Errno::EPERM | Errno::EACCES => Kind::NotPermitted,
        Errno::ENFILE => Kind::SetFull,
        Errno::ERANGE => Kind::OutOfRange,
        Errno::EBUSY => Kind::Busy,
        Errno::ERESTART => Kind::Stale,
        other => Kind::Other(other),
    };
    let text = transaction.describe(statement, element);
    Refused { kind, errno, statement: text, index: statement, element, said: answer.said, more: 0 }
}
