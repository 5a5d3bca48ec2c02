//! What a filter remembers from line to line: connections, and tries that a server reports more than once.
//!
//! [`Sessions`] joins the lines of one connection as fail2ban does: a line without an address waits for a later one of the
//! same connection that has it, context lines lend theirs, a login forgives. [`Tries`] makes a try that is reported on
//! several lines count once. Both are bounded; what was silent longest goes first.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::terms::{Span, Time};

/// Connections and tries remembered per filter and source.
const MOST: usize = 4096;
/// A connection that said nothing for this long is over.
const SESSION_ENDS: Span = Span::from_secs(300);
/// More of a name than this distinguishes nothing.
const NAME_BYTES: usize = 128;

type Name = Box<[u8]>;

fn name(bytes: &[u8]) -> Name {
    bytes[..bytes.len().min(NAME_BYTES)].into()
}

/// Drops what is older than `ends`, then, if that was little, the older quarter.
fn thin_out<K: Clone + Eq + std::hash::Hash, V>(
    map: &mut HashMap<K, V>,
    now: Time,
    ends: Span,
    seen: impl Fn(&V) -> Time,
) -> u64 {
    map.retain(|_, value| now.since(seen(value)) <= ends);
    if map.len() <= MOST / 4 * 3 {
        return 0;
    }
    let mut times: Vec<Time> = map.values().map(&seen).collect();
    let (_, edge, _) = times.select_nth_unstable(MOST / 4);
    let edge = *edge;
    let before = map.len();
    // Many may share the edge's second: no more than a quarter goes.
    let mut left = MOST / 4;
    map.retain(|_, value| {
        let drop = left > 0 && seen(value) <= edge;
        left -= usize::from(drop);
        !drop
    });
    (before - map.len()) as u64
}

/// The connections a filter's lines belong to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sessions {
    #[serde(with = "pairs")]
    known: HashMap<Name, Session>,
    /// Connections forgotten for want of room.
    pub evicted: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Session {
    seen: i64,
    addr: Option<IpAddr>,
    user: Option<Name>,
    /// Up to two different accounts: a second one un-forgives.
    users: Vec<Name>,
    /// Failures gathered and not yet told.
    matches: u32,
    /// Context lines gathered and not yet told.
    context: u32,
    nofail: bool,
    pending: bool,
}

/// A line of a connection, as its pattern sees it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Piece<'a> {
    pub addr: Option<IpAddr>,
    pub user: Option<&'a [u8]>,
    pub nofail: bool,
    pub forget: bool,
    pub gained: bool,
}

/// What a connection amounts to with its latest line: a failure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Merged {
    pub addr: IpAddr,
    pub user: Option<Name>,
    pub attempts: u32,
}

impl Sessions {
    /// Joins a line to its connection; a failure comes out when there is one and its address is known.
    pub fn merge(&mut self, id: &[u8], piece: &Piece<'_>, time: Time) -> Option<Merged> {
        let id = name(id);
        if self.known.len() >= MOST {
            self.evicted += thin_out(&mut self.known, time, SESSION_ENDS, |s| Time(s.seen));
        }
        let old = self.known.remove(&id).filter(|s| time.since(Time(s.seen)) <= SESSION_ENDS);
        let known = old.is_some();
        let mut session = old.unwrap_or_default();
        session.seen = time.0.max(session.seen);
        let mut nofail = piece.nofail || piece.gained;
        let mut gained = piece.gained;
        if let Some(user) = piece.user.filter(|u| !u.is_empty()) {
            if session.users.len() < 2 && session.users.iter().all(|u| **u != *name(user)) {
                session.users.push(name(user));
            }
            session.user = Some(name(user));
        }
        if gained {
            session.pending = false;
        }
        if known && !session.nofail && !session.pending {
            // What was gathered has been told.
            session.matches = 0;
        }
        session.addr = piece.addr.or(session.addr);
        if std::mem::take(&mut session.pending) || session.users.len() > 1 {
            (nofail, gained) = (false, false);
        }
        if !nofail {
            let gathered = std::mem::take(&mut session.context).saturating_add(u32::from(!gained));
            session.matches = session.matches.saturating_add(gathered);
        } else if !piece.forget {
            session.context = session.context.saturating_add(1);
        }
        session.nofail = nofail;
        let failure = !nofail;
        let merged = match session.addr {
            Some(addr) if failure => Some(Merged { addr, user: session.user.clone(), attempts: session.matches.max(1) }),
            _ => {
                session.pending = failure;
                None
            }
        };
        if !piece.forget {
            self.known.insert(id, session);
        }
        merged
    }
}

/// Tries that are reported on several lines.
///
/// Each pattern is a reporter, and each reporter tells at least the tries it saw: two lines of the same pattern are two
/// tries, lines of different patterns may be the same one. So a key's tries are the largest of its reporters' sums, and a line
/// counts by how much it raises that.
///
/// Where both lines name a connection (`session` in the key) it decides with the address; else the rest of the
/// key does. So a line with an id joins an entry without one, and two connections keep apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tries {
    #[serde(with = "pairs")]
    entries: HashMap<u64, Entry>,
    #[serde(with = "pairs")]
    by_session: HashMap<Name, u64>,
    #[serde(with = "pairs")]
    by_rest: HashMap<Name, u64>,
    next: u64,
    /// Entries and keys forgotten for want of room.
    pub evicted: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Entry {
    seen: i64,
    session: Option<Name>,
    /// A line without a connection's id belongs to it, so any may join.
    open: bool,
    counted: u32,
    reports: Vec<(u16, u32)>,
}

impl Tries {
    /// How many new tries a line tells: `attempts` as it names them, or 1. `rest` is the key without the session.
    pub fn count(&mut self, session: Option<&[u8]>, rest: &[u8], pattern: u16, attempts: u32, within: Span, time: Time) -> u32 {
        if self.entries.len() >= MOST {
            self.evicted += thin_out(&mut self.entries, time, within, |e| Time(e.seen));
            let entries = &self.entries;
            self.by_session.retain(|_, id| entries.contains_key(id));
            self.by_rest.retain(|_, id| entries.contains_key(id));
        }
        if self.by_rest.len() >= 2 * MOST {
            // One connection may name any number of accounts: of each entry's keys one stays.
            let before = self.by_rest.len();
            let mut entries = HashSet::new();
            self.by_rest.retain(|_, id| entries.insert(*id));
            self.evicted += (before - self.by_rest.len()) as u64;
        }
        let fresh = |entry: &Entry| (entry.seen - time.0).unsigned_abs() <= within.0;
        let same_session = session.and_then(|s| self.by_session.get(s)).copied();
        let same_session = same_session.filter(|id| self.entries.get(id).is_some_and(fresh));
        let joins = |entry: &Entry| fresh(entry) && (entry.open || session.is_none());
        let same_rest = || self.by_rest.get(rest).copied().filter(|id| self.entries.get(id).is_some_and(joins));
        let id = same_session.or_else(same_rest).unwrap_or_else(|| {
            self.next += 1;
            self.next
        });
        let entry = self.entries.entry(id).or_default();
        entry.seen = time.0;
        match session {
            Some(session) => {
                if entry.session.as_deref() != Some(session) {
                    if let Some(old) = entry.session.replace(session.into())
                        && self.by_session.get(&old) == Some(&id)
                    {
                        self.by_session.remove(&old);
                    }
                    self.by_session.insert(session.into(), id);
                }
            }
            None => entry.open = true,
        }
        match self.by_rest.get_mut(rest) {
            Some(known) => *known = id,
            None => {
                self.by_rest.insert(rest.into(), id);
            }
        }
        let sum = match entry.reports.iter_mut().find(|(p, _)| *p == pattern) {
            Some((_, sum)) => {
                *sum = sum.saturating_add(attempts);
                *sum
            }
            None => {
                entry.reports.push((pattern, attempts));
                attempts
            }
        };
        let new = sum.saturating_sub(entry.counted);
        entry.counted += new;
        new
    }
}

/// A map as a list of pairs: its keys are bytes, which not every format takes for keys.
mod pairs {
    use super::HashMap;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(map: &HashMap<K, V>, out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(from: D) -> Result<HashMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Eq + std::hash::Hash,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines `TIME SESSION REST PATTERN ATTEMPTS`, `-` for no session; what each counts.
    fn tries(lines: &[&str]) -> Vec<u32> {
        let mut tries = Tries::default();
        let mut count = |line: &&str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let session = (words[1] != "-").then(|| words[1].as_bytes());
            let number = |i: usize| words[i].parse::<u32>().unwrap();
            let time = Time::from_secs(number(0).into());
            tries.count(session, words[2].as_bytes(), number(3) as u16, number(4), Span::from_secs(60), time)
        };
        lines.iter().map(&mut count).collect()
    }

    #[test]
    fn a_try_that_is_reported_twice_counts_once() {
        let table: [(&[&str], &[u32]); 8] = [
            // one try, two reporters
            (&["0 - a 0 1", "2 - a 1 1"], &[1, 0]),
            // three lines of one reporter, then a sum of the other
            (&["0 - a 0 1", "4 - a 0 1", "8 - a 0 1", "9 - a 1 3"], &[1, 1, 1, 0]),
            // the sum tells of more than was seen
            (&["0 - a 0 1", "9 - a 1 3"], &[1, 2]),
            // two connections at once, each reported twice
            (&["0 s a 0 1", "1 t a 0 1", "2 s a 1 1", "3 t a 1 1"], &[1, 1, 0, 0]),
            // the workers' lines know no connection
            (&["0 - a 0 1", "1 s a 1 1", "2 - a 0 1", "3 t a 1 1"], &[1, 0, 1, 0]),
            // one connection, three accounts, and their sum under the last one's name
            (&["0 s a 0 1", "1 s b 0 1", "2 s c 0 1", "3 s c 1 3"], &[1, 1, 1, 0]),
            // too late
            (&["0 - a 0 1", "61 - a 1 1"], &[1, 1]),
            // somebody else
            (&["0 - a 0 1", "1 - b 1 1"], &[1, 1]),
        ];
        for (lines, counts) in table {
            assert_eq!(tries(lines), counts, "{lines:?}");
        }
    }

    #[test]
    fn tries_are_bounded() {
        let mut tries = Tries::default();
        for i in 0..100_000_u32 {
            let key = i.to_le_bytes();
            tries.count(Some(&key), &key, 0, 1, Span::from_secs(60), Time(i64::from(i)));
        }
        assert!(tries.entries.len() <= MOST && tries.by_rest.len() <= MOST && tries.by_session.len() <= MOST);
        assert!(tries.evicted > 90_000);
    }

    #[test]
    fn the_accounts_that_one_connection_names_are_bounded() {
        let mut tries = Tries::default();
        let mut count = |session: &[u8], rest: u32, pattern: u16| {
            tries.count(Some(session), &rest.to_le_bytes(), pattern, 1, Span::from_secs(60), Time(i64::from(rest)))
        };
        let told: u32 = (0..100_000).map(|i| count(b"s", i, 0)).sum();
        // Every one is a try of its own, and the connection is still known.
        assert_eq!((told, count(b"s", 100_000, 1)), (100_000, 0));
        assert!(tries.by_rest.len() <= 2 * MOST, "{}", tries.by_rest.len());
        assert_eq!((tries.entries.len(), tries.by_session.len()), (1, 1));
    }

    fn addr() -> Option<IpAddr> {
        Some("192.0.2.1".parse().unwrap())
    }

    #[test]
    fn lines_of_one_connection_are_joined() {
        let mut sessions = Sessions::default();
        let mut at = 0;
        let mut merge = |id: &str, piece: Piece<'_>| {
            at += 1;
            sessions.merge(id.as_bytes(), &piece, Time::from_secs(at)).map(|m| m.attempts)
        };
        // a failure waits for its address
        assert_eq!(merge("a", Piece { user: Some(b"u"), ..Piece::default() }), None);
        assert_eq!(merge("a", Piece { addr: addr(), nofail: true, ..Piece::default() }), Some(2));
        // context lends its address
        assert_eq!(merge("b", Piece { addr: addr(), nofail: true, ..Piece::default() }), None);
        assert_eq!(merge("b", Piece::default()), Some(2));
        assert_eq!(merge("b", Piece::default()), Some(1));
        // a login forgives what was pending
        assert_eq!(merge("c", Piece { user: Some(b"u"), ..Piece::default() }), None);
        assert_eq!(merge("c", Piece { addr: addr(), gained: true, forget: true, ..Piece::default() }), None);
        // but not with a second account
        assert_eq!(merge("d", Piece { user: Some(b"u"), ..Piece::default() }), None);
        assert!(merge("d", Piece { addr: addr(), user: Some(b"v"), gained: true, ..Piece::default() }).is_some());
    }

    #[test]
    fn a_connection_that_is_silent_is_over() {
        let mut sessions = Sessions::default();
        let context = Piece { addr: addr(), nofail: true, ..Piece::default() };
        assert_eq!(sessions.merge(b"a", &context, Time::from_secs(0)), None);
        assert_eq!(sessions.merge(b"a", &Piece::default(), Time::from_secs(301)), None);
        for i in 0..10_000_u32 {
            sessions.merge(&i.to_le_bytes(), &context, Time::from_secs(400));
        }
        assert!(sessions.known.len() <= MOST);
    }
}
