//! The thread that looks back: it reads the lines behind a ban from the log, and answers who asks for the history.
//!
//! A ban carries the places of its failures, not their lines: no strings live in the window. So the lines are read again here,
//! from the file the path leads to or the one it was rotated to, and the jail's own filter is asked again whether the line
//! there is a failure of the banned address; what it does not recognise is not evidence. Nothing waits for it: the ban is in
//! the kernel by then.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;

use super::core::{Asked, ClientId, Event, rfc3339, shown};
use crate::config::run::{Accounts, Evidence};
use crate::control::Reply;
use crate::filter::{Filter, Kind, Scanner, State, When};
use crate::state::history::{Archive, Line, Query, Row, Told, What};
use crate::terms::{Time, escape};
use crate::watch::back::read_back;

/// Bans that wait for their lines; the lines of more are read back at the next start.
const WAITING_AT_MOST: usize = 10_000;
/// What is kept of a line.
const LINE_AT_MOST: usize = 1000;
/// Scanners kept at hand, one per filter.
const SCANNERS: usize = 64;

/// Where the lines behind a ban are to be looked for.
#[derive(Clone, Debug)]
pub struct Dig {
    /// The number of what happened.
    pub seq: u64,
    /// Who was banned.
    pub subject: IpNetwork,
    /// What the jail reads lines with.
    pub filter: Arc<Filter>,
    /// Source and offset of each, oldest first.
    pub places: Vec<(Arc<str>, u64)>,
    /// What is to be kept of them.
    pub evidence: Evidence,
    /// The key of hashed accounts.
    pub key: [u64; 2],
}

/// A question to the history.
#[derive(Debug)]
pub enum Search {
    /// Show the rows.
    Rows {
        /// Who waits.
        client: ClientId,
        /// Which.
        query: Query,
        /// As a stream of events: a row of this machine's making each, lines left out.
        stream: bool,
    },
    /// Find whom bans name whose lines name one of these accounts, then let the request go on to the core.
    Named(Box<Asked>, Vec<String>),
}

/// What the thread is told.
#[derive(Debug)]
pub enum Errand {
    /// Read lines back.
    Dig(Box<Dig>),
    /// Answer.
    Search(Box<Search>),
}

/// Where a source's lines can be read again.
enum Origin<'a> {
    /// A file that is followed by its path.
    File(&'a Path),
    /// Something that is no file: its lines can not be read back by offset.
    Other,
}

impl Origin<'_> {
    fn of(source: &str) -> Origin<'_> {
        if source.starts_with('/') { Origin::File(Path::new(source)) } else { Origin::Other }
    }
}

/// Runs errands until the engine goes away. Questions come before lines: somebody waits for them.
pub fn run(state_dir: PathBuf, errands: &Receiver<Errand>, done: &Sender<Event>) {
    let mut digs: VecDeque<Box<Dig>> = VecDeque::new();
    let mut scanners = Vec::new();
    loop {
        let errand = match digs.is_empty() {
            true => errands.recv().map_err(|_| TryRecvError::Disconnected),
            false => errands.try_recv(),
        };
        let event = match errand {
            Ok(Errand::Dig(dig)) => {
                if digs.len() < WAITING_AT_MOST {
                    digs.push_back(dig);
                }
                continue;
            }
            Ok(Errand::Search(search)) => answer(&state_dir, *search),
            Err(TryRecvError::Empty) => {
                let Some(dig) = digs.pop_front() else { continue };
                Event::ReadBack(dig.seq, lines(&dig, &mut scanners))
            }
            Err(TryRecvError::Disconnected) => return,
        };
        if done.blocking_send(event).is_err() {
            return;
        }
    }
}

/// A scanner of one filter, and its state when it has seen nothing.
struct Scanning {
    filter: Arc<Filter>,
    scanner: Scanner,
    blank: State,
}

/// The lines behind a ban.
fn lines(dig: &Dig, scanners: &mut Vec<Scanning>) -> Vec<Line> {
    let at = scanners.iter().position(|known| Arc::ptr_eq(&known.filter, &dig.filter)).unwrap_or_else(|| {
        let mut scanner = Scanner::new(vec![dig.filter.clone()]);
        scanner.take_times_as_written();
        let blank = scanner.state();
        if scanners.len() >= SCANNERS {
            scanners.clear();
        }
        scanners.push(Scanning { filter: dig.filter.clone(), scanner, blank });
        scanners.len() - 1
    });
    let Some(scanning) = scanners.get_mut(at) else { return Vec::new() };
    let wanted = &dig.places[dig.places.len().saturating_sub(dig.evidence.lines)..];
    let mut found: Vec<Option<Line>> = vec![None; wanted.len()];
    let mut sources: Vec<&Arc<str>> = wanted.iter().map(|(source, _)| source).collect();
    sources.sort();
    sources.dedup();
    for source in sources {
        let Origin::File(path) = Origin::of(source) else { continue };
        let (indexes, offsets): (Vec<usize>, Vec<u64>) =
            wanted.iter().enumerate().filter(|(_, (of, _))| of == source).map(|(index, (_, offset))| (index, *offset)).unzip();
        read_back(path, &offsets, &mut |which, before, text| {
            let line = recognised(dig, scanning, source, offsets[which], before, text);
            let ours = line.is_some();
            if ours {
                found[indexes[which]] = line;
            }
            ours
        });
    }
    found.into_iter().flatten().collect()
}

/// The line as evidence, if the filter still says that it is a failure of the banned address.
fn recognised(dig: &Dig, scanning: &mut Scanning, source: &str, offset: u64, before: &[u8], text: &[u8]) -> Option<Line> {
    let mut judge = |before: &[u8]| {
        let Scanning { scanner, blank, .. } = &mut *scanning;
        scanner.restore(blank.clone());
        let mut found = Vec::new();
        let chunk = [before, text, b"\n"].concat();
        scanner.scan(&chunk, When { now: Time::now(), live: false }, &mut found);
        let ours = |found: &crate::filter::Found| {
            found.kind == Kind::Failure && found.offset as usize == before.len() && dig.subject.contains(found.addr)
        };
        found.into_iter().find(ours)
    };
    // By itself first, then after what stood before it: some lines are a failure only together with others.
    let said = judge(&[]).or_else(|| judge(before))?;
    let pattern = dig.filter.failregex().nth(usize::from(said.pattern)).map(|pattern| escape(pattern.as_bytes(), 500).into());
    let secrets = said.secrets.iter().map(|range| range.start as usize..range.end as usize);
    let mut text = cut(text, secrets.collect());
    let account = match (&said.user, dig.evidence.accounts) {
        (None, _) => None,
        (Some(user), Accounts::Plain) => Some(escape(user, 256)),
        (Some(user), accounts) => {
            text = without(&text, user);
            (accounts == Accounts::Hash).then(|| hashed(dig.key, user))
        }
    };
    Some(Line {
        source: escape(source.as_bytes(), 4096).into(),
        offset,
        time: Some(said.time),
        pattern,
        account: account.map(Into::into),
        text: escape(&text, LINE_AT_MOST).into(),
    })
}

/// What stands in a line where something was cut out of it.
const CUT: &[u8] = b"***";

/// The text without these ranges.
fn cut(text: &[u8], mut ranges: Vec<std::ops::Range<usize>>) -> Vec<u8> {
    ranges.sort_by_key(|range| range.start);
    let (mut out, mut from) = (Vec::with_capacity(text.len()), 0);
    for range in ranges {
        let (start, end) = (range.start.clamp(from, text.len()), range.end.clamp(from, text.len()));
        if start < end {
            out.extend_from_slice(&text[from..start]);
            out.extend_from_slice(CUT);
            from = end;
        }
    }
    out.extend_from_slice(&text[from..]);
    out
}

/// The text without a word: where it stands alone, and if it never does, everywhere.
fn without(text: &[u8], word: &[u8]) -> Vec<u8> {
    if word.is_empty() {
        return text.to_vec();
    }
    let all: Vec<usize> = memchr::memmem::find_iter(text, word).collect();
    let inside = |at: Option<usize>| at.and_then(|at| text.get(at)).is_some_and(u8::is_ascii_alphanumeric);
    let alone: Vec<usize> =
        all.iter().copied().filter(|at| !inside(at.checked_sub(1)) && !inside(at.checked_add(word.len()))).collect();
    let places = if alone.is_empty() { all } else { alone };
    cut(text, places.into_iter().map(|at| at..at + word.len()).collect())
}

/// An account under the key: the same name gives the same text on this machine, and no other gives it back.
pub fn hashed(key: [u64; 2], account: &[u8]) -> String {
    #[expect(deprecated, reason = "the only keyed hash in std whose keys can be given")]
    let mut hasher = std::hash::SipHasher::new_with_keys(key[0], key[1]);
    hasher.write(account);
    format!("#{:016x}", hasher.finish())
}

fn answer(state_dir: &Path, search: Search) -> Event {
    match search {
        Search::Rows { client, query, stream } => {
            let found = Archive::open(state_dir).and_then(|archive| archive.find(&query));
            let reply = match found {
                Ok((told, more)) if stream => Reply::done(streamed(&query, &told, more)),
                Ok((told, more)) => {
                    let rows: Vec<Value> = told.iter().map(row_json).collect();
                    let empty = rows.is_empty();
                    Reply::done(json!({ "history": rows, "more": more })).exit(u8::from(empty))
                }
                Err(why) => {
                    Reply::refused(1, why, "the daemon goes on; `banset status` says what is wrong with the state".to_owned())
                }
            };
            Event::Answered(client, reply)
        }
        Search::Named(mut asked, accounts) => {
            let find = |archive: Archive| -> Result<Vec<(Arc<str>, IpNetwork)>, String> {
                let mut all = Vec::new();
                for account in &accounts {
                    all.extend(archive.banned_for_account(account)?);
                }
                Ok(all)
            };
            match Archive::open(state_dir).and_then(find) {
                Ok(named) => {
                    asked.named = Some(named);
                    Event::Asked(*asked)
                }
                Err(why) => Event::Answered(asked.client, Reply::refused(1, why, None)),
            }
        }
    }
}

/// A row for people and programs. Everything a stranger wrote in it is escaped.
fn row_json((row, lines): &Told) -> Value {
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| {
            json!({
                "time": line.time.map(rfc3339), "source": line.source, "offset": line.offset, "pattern": line.pattern,
                "account": line.account, "line": line.text,
            })
        })
        .collect();
    let mut all = event_json(row);
    all["decision"] = json!(row.decision);
    all["evidence"] = json!(lines);
    all["evidence_pending"] = json!(!row.places.is_empty());
    all
}

fn event_json(row: &Row) -> Value {
    json!({
        "seq": row.seq, "time": rfc3339(row.time), "what": row.what.name(), "jail": row.jail.as_deref(), "addr": row.subject.map(shown),
        "since": row.since.map(rfc3339), "until": row.until.map(rfc3339),
        "permanent": row.what == What::Ban && row.until.is_none(), "failures": row.failures, "origin": row.origin,
        "by": row.uid.map(|uid| json!({ "uid": uid, "program": row.program })), "reason": row.reason,
    })
}

/// Rows as a stream: only what this machine decided itself, so that two that listen to each other do not echo.
fn streamed(query: &Query, told: &[Told], more: bool) -> Value {
    let next = told.last().map_or(query.after.unwrap_or(0), |(row, _)| row.seq);
    let own = told.iter().map(|(row, _)| row).filter(|row| matches!(row.what, What::Ban | What::Unban));
    let events: Vec<Value> = own.filter(|row| !row.origin.starts_with('@')).map(event_json).collect();
    json!({ "events": events, "next": next, "more": more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{Options, shipped};
    use std::collections::BTreeMap;

    fn filter(name: &str) -> Arc<Filter> {
        let (_, text) = shipped().iter().find(|(known, _)| *known == name).expect("a shipped filter");
        let definition = crate::filter::definition::parse(name, text).expect("sound");
        Arc::new(Filter::compile(&definition, &BTreeMap::new(), &Options::default()).expect("sound"))
    }

    fn dig(filter: Arc<Filter>, path: &Path, offsets: &[u64], accounts: Accounts) -> Dig {
        let source: Arc<str> = path.to_str().expect("ours").into();
        Dig {
            seq: 1,
            subject: "192.0.2.1".parse().expect("an address"),
            filter,
            places: offsets.iter().map(|offset| (source.clone(), *offset)).collect(),
            evidence: Evidence { lines: 5, accounts, ..Evidence::default() },
            key: [1, 2],
        }
    }

    #[test]
    fn passwords_are_cut_and_accounts_kept_as_asked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("maillog");
        let bad = "Jul 10 12:05:53 mx vpopmail[3076]: vchkpw-smtp: password fail (pass: 'hunter2 bob') bob@example.org:192.0.2.1";
        let other = bad.replace("192.0.2.1", "192.0.2.2");
        std::fs::write(&path, format!("{other}\n{bad}\n{bad}\n")).expect("written");
        let offsets = [0, other.len() as u64 + 1, (other.len() + bad.len()) as u64 + 2];
        let vpopmail = filter("vpopmail");
        let read = |accounts| lines(&dig(vpopmail.clone(), &path, &offsets, accounts), &mut Vec::new());
        let plain = read(Accounts::Plain);
        assert_eq!(plain.len(), 2, "a line about somebody else is no evidence: {plain:?}");
        assert!(plain[0].text.contains("(pass: '***') bob@example.org:192.0.2.1"), "{plain:?}");
        assert_eq!(plain[0].account.as_deref(), Some("bob@example.org"));
        assert!(plain[0].pattern.as_deref().is_some_and(|pattern| pattern.contains("password fail")), "{plain:?}");
        let hash = read(Accounts::Hash);
        assert!(hash[0].text.ends_with("(pass: '***') ***:192.0.2.1"), "{hash:?}");
        assert_eq!(hash[0].account.as_deref(), Some(&*hashed([1, 2], b"bob@example.org")));
        let none = read(Accounts::None);
        assert_eq!((none[0].account.as_deref(), none[0].text == hash[0].text), (None, true));
    }

    #[test]
    fn a_word_is_cut_where_it_stands_alone() {
        let table = [
            ("user=bob from bobby", "bob", "user=*** from bobby"),
            ("userbob", "bob", "user***"),
            ("nobody", "x", "nobody"),
            ("", "x", ""),
            ("a a", "a", "*** ***"),
        ];
        for (text, word, expected) in table {
            assert_eq!(String::from_utf8_lossy(&without(text.as_bytes(), word.as_bytes())), expected);
        }
    }
}
