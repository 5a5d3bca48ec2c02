//! What others change in our table, as whole transactions.
//!
//! The kernel tells everyone in the group NFNLGRP_NFTABLES of every change, and closes each transaction with a NEWGEN that names
//! the program. Our own commits are kept off by a filter in the kernel, so that banning wakes nobody up. Nothing is told when an
//! element runs out, and a whole table that is flushed is told without its elements.
//!
//! What a foreign transaction means (an admin's ban, a flush, damage) is not judged here.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::element::{Element, Key};
use super::kernel::{join_points, read_element};
use super::link::Link;
use super::message::{Attributes, Message, Messages, attr, family_number, kind};
use super::socket::CannotOpen;
use crate::sys;
use crate::terms::{Family, escape};

/// NFNLGRP_NFTABLES as a mask for bind(2).
const GROUP: u32 = 1 << (7 - 1);
/// Room for some 200 000 events, about as many elements as a foreign script may add at once before we have to read it all anew.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Elements of one foreign transaction that are kept in mind; of more it is only known that they were too many.
const ELEMENTS: usize = 500_000;

/// Listens for changes of one table.
#[derive(Debug)]
pub struct Monitor {
    link: Link,
    families: Vec<u8>,
    table: String,
    answer: Vec<u8>,
    waiting: std::collections::VecDeque<Heard>,
    touches: Vec<Touch>,
    points: Vec<(Element, bool)>,
    /// Elements of the transaction that is being heard.
    heard: usize,
    torn: Torn,
}

/// Whether what is read may be part of a transaction that was not heard whole.
///
/// ENOBUFS comes before what was queued up to then, the end of which may lack its rest; and once the queue is empty the kernel goes on with
/// whatever it is at, the beginning of which may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Torn {
    No,
    /// Notices were dropped; what is queued is from before.
    Ending,
    /// The next transaction is the first after the gap.
    Beginning,
}

/// The ears of a [`Monitor`], to be stopped while we load so much that telling it would take the kernel as long as the load itself:
/// it writes a notice for each element as soon as anybody listens, and the filter that keeps ours off looks at it only then.
///
/// What happens while they are stopped is not heard: whoever stops them has to find out that nothing did.
#[derive(Debug)]
pub struct Ears(Link);

impl Ears {
    /// Nothing is heard from here on. What was heard before waits to be read.
    pub fn stop(&self) -> Result<(), CannotOpen> {
        self.0.join(0).map_err(CannotOpen)
    }

    /// What happens from here on is heard.
    pub fn open(&self) -> Result<(), CannotOpen> {
        self.0.join(GROUP).map_err(CannotOpen)
    }
}

/// What there was to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Somebody changed our table.
    Foreign(Foreign),
    /// More happened than we could hear: what the kernel holds has to be read anew.
    Lost,
}

/// A transaction of somebody else that touched our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The generation of the ruleset it led to.
    pub generation: u32,
    /// The thread that committed it. It is the kernel's number of a *thread*: that of the process only for its first thread.
    pub thread: u32,
    /// The name of that thread, usually of the program, escaped.
    pub program: String,
    /// What it did, in order.
    pub touches: Vec<Touch>,
}

/// One step of a foreign transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Elements that were added or given another timeout.
    Added {
        /// The set.
        set: String,
        /// The elements.
        elements: Vec<Element>,
    },
    /// Elements that were removed.
    Removed {
        /// The set.
        set: String,
        /// The elements.
        elements: Vec<Element>,
    },
    /// The table itself, a chain, a set or a rule was made, changed or deleted.
    Structure {
        /// `table`, `chain`, `set` or `rule`.
        what: &'static str,
        /// Whether it was deleted.
        deleted: bool,
        /// Its name; of a rule, that of its chain.
        name: String,
    },
}

impl Monitor {
    /// Listens for changes of this table that do not come from the socket with address `ours` ([`super::Socket::port`]).
    pub fn open(family: Family, table: &str, ours: u32) -> Result<Monitor, CannotOpen> {
        let link = Link::open(1 << 16, RECEIVE_BUFFER).map_err(CannotOpen)?;
        // Returns 0 bytes of a datagram whose nlmsg_pid (byte 12) is ours, all of any other. Loads are big-endian, the field is not.
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let mut program = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 12),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, u32::from_be_bytes(ours.to_ne_bytes())),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ];
        sys::attach_filter(link.as_fd(), &mut program).map_err(CannotOpen)?;
        link.join(GROUP).map_err(CannotOpen)?;
        Ok(Monitor {
            link,
            families: vec![family_number(family)],
            table: table.to_owned(),
            answer: Vec::new(),
            waiting: std::collections::VecDeque::new(),
            touches: Vec::new(),
            points: Vec::new(),
            heard: 0,
            torn: Torn::No,
        })
    }

    /// Listens for changes of the table of the same name in another family, too.
    pub fn also(&mut self, family: Family) {
        self.families.push(family_number(family));
    }

    /// Its ears, for whoever writes.
    pub fn ears(&self) -> Option<Ears> {
        self.link.again().ok().map(Ears)
    }

    /// Waits until there is something to hear.
    pub fn wait(&self) -> Result<(), Errno> {
        loop {
            match nix::poll::poll(&mut [PollFd::new(self.link.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                other => return other.map(drop),
            }
        }
    }

    /// The next foreign transaction, if one is complete; never waits. Call it until it returns `None`, then wait until the socket is
    /// readable.
    pub fn hear(&mut self) -> Result<Option<Heard>, Errno> {
        loop {
            if let Some(heard) = self.waiting.pop_front() {
                return Ok(Some(heard));
            }
            let mut answer = std::mem::take(&mut self.answer);
            let datagram = self.link.receive(&mut answer);
            let done = match datagram {
                Ok(None) => {
                    if self.torn == Torn::Ending {
                        self.forget();
                        self.torn = Torn::Beginning;
                    }
                    Some(Ok(None))
                }
                Ok(Some(datagram)) => {
                    Messages(datagram).for_each(|message| self.take(&message));
                    None
                }
                // ENOBUFS: datagrams were dropped. What we have of a transaction may lack its middle.
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) => {
                    self.torn = Torn::Ending;
                    Some(Ok(Some(Heard::Lost)))
                }
                Err(errno) => Some(Err(errno)),
            };
            self.answer = answer;
            if let Some(done) = done {
                return done;
            }
        }
    }

    /// Forgets what was heard of a transaction so far.
    fn forget(&mut self) {
        self.touches.clear();
        self.points.clear();
        self.heard = 0;
    }

    fn take(&mut self, message: &Message<'_>) {
        let Some(message_kind) = message.nftables() else { return };
        let attributes = message.attributes();
        if message_kind == kind::NEWGEN {
            self.finish_elements();
            let touches = std::mem::take(&mut self.touches);
            let whole = self.torn == Torn::No;
            if self.torn == Torn::Beginning {
                self.torn = Torn::No;
            }
            if std::mem::take(&mut self.heard) > ELEMENTS || !whole && !touches.is_empty() {
                if self.waiting.back() != Some(&Heard::Lost) {
                    self.waiting.push_back(Heard::Lost);
                }
            } else if !touches.is_empty() {
                self.waiting.push_back(Heard::Foreign(Foreign {
                    generation: attributes.u32(attr::GEN_ID).unwrap_or(0),
                    thread: attributes.u32(attr::GEN_PROC_PID).unwrap_or(0),
                    program: escape(attributes.text(attr::GEN_PROC_NAME).unwrap_or("?").as_bytes(), 64),
                    touches,
                }));
            }
            return;
        }
        // Every message names its table in attribute 1.
        if !self.families.contains(&message.family()) || attributes.text(attr::TABLE_NAME) != Some(&self.table) {
            return;
        }
        if matches!(message_kind, kind::NEWSETELEM | kind::DELSETELEM | kind::DESTROYSETELEM) {
            return self.take_elements(message_kind == kind::NEWSETELEM, attributes);
        }
        let (what, name, deleted) = match message_kind {
            kind::NEWTABLE => ("table", attr::TABLE_NAME, false),
            kind::DELTABLE => ("table", attr::TABLE_NAME, true),
            kind::NEWCHAIN => ("chain", attr::CHAIN_NAME, false),
            kind::DELCHAIN => ("chain", attr::CHAIN_NAME, true),
            kind::NEWRULE => ("rule", attr::RULE_CHAIN, false),
            kind::DELRULE => ("rule", attr::RULE_CHAIN, true),
            kind::NEWSET => ("set", attr::SET_NAME, false),
            kind::DELSET => ("set", attr::SET_NAME, true),
            _ => return,
        };
        self.finish_elements();
        let name = escape(attributes.text(name).unwrap_or("?").as_bytes(), 256);
        self.touches.push(Touch::Structure { what, deleted, name });
    }

    /// Elements of one set that are told one after the other become one step.
    fn take_elements(&mut self, added: bool, attributes: Attributes<'_>) {
        let name = attributes.text(attr::ELEMS_SET).unwrap_or("?");
        let goes_on = match self.touches.last() {
            Some(Touch::Added { set, .. }) => added && set == name,
            Some(Touch::Removed { set, .. }) => !added && set == name,
            _ => false,
        };
        if !goes_on {
            self.finish_elements();
            let (set, elements) = (name.to_owned(), Vec::new());
            self.touches.push(if added { Touch::Added { set, elements } } else { Touch::Removed { set, elements } });
        }
        let list = attributes.nested(attr::ELEMS_LIST).unwrap_or(Attributes(&[]));
        self.heard += list.count();
        if self.heard > ELEMENTS {
            self.touches.clear();
            self.points.clear();
            return;
        }
        self.points.extend(list.filter_map(|(_, element)| {
            let element = Attributes(element);
            // Ours are addresses of four or sixteen bytes; which kind, the length says.
            let length = element.nested(attr::ELEM_KEY)?.find(attr::DATA_VALUE)?.len();
            let key = [Key::V4, Key::V6].into_iter().find(|key| key.length() as usize == length)?;
            read_element(key, element)
        }));
    }

    /// Hands the elements gathered so far to the step they belong to; where interval ends are among them, as intervals.
    fn finish_elements(&mut self) {
        let points = std::mem::take(&mut self.points);
        if let Some(Touch::Added { elements, .. } | Touch::Removed { elements, .. }) = self.touches.last_mut() {
            if points.iter().any(|(_, end)| *end) {
                elements.extend(join_points(points));
            } else {
                elements.extend(points.into_iter().map(|(element, _)| element));
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}
