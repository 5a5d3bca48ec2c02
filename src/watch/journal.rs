//! The journal: from what `journalctl -o export` prints to lines a filter can judge, and where we are in it.
//!
//! [`Export`] takes the bytes of the format (<https://systemd.io/JOURNAL_EXPORT_FORMATS/>) as they come and fills one [`Entry`] at a time
//! with the few fields that matter; of a field it keeps at most [`LONGEST_LINE`](super::LONGEST_LINE) bytes, whatever its length, and of all others nothing.
//! [`Entry::line`] words an entry as fail2ban does, `HOST IDENT[PID]: MESSAGE`, in one line: newlines inside a message are written as
//! `\n`, so a message forges no second line. A [`Position`] says which entry was the last one handled.

use std::collections::HashMap;
use std::io::Write as _;

use memchr::memchr;
use serde::{Deserialize, Serialize};

use super::LONGEST_LINE;
use crate::terms::Time;
use crate::terms::journal::{Match, Term};

/// A field's name is not longer (systemd's limit).
const LONGEST_NAME: usize = 64;
/// A host's or program's name is cut to this.
const LONGEST_WORD: usize = 1024;
/// A cursor is not longer; systemd's has some 140 bytes.
const LONGEST_CURSOR: usize = 512;

/// Values asked of one field, each with its number.
type Values = Vec<(Box<[u8]>, usize)>;

/// The terms of several matches, each asked once per entry.
#[derive(Debug, Default)]
pub struct Terms {
    fields: HashMap<Box<[u8]>, Values>,
    numbers: HashMap<Term, usize>,
}

impl Terms {
    /// The terms of these matches.
    pub fn of<'a>(matches: impl IntoIterator<Item = &'a Match>) -> Terms {
        let mut terms = Terms::default();
        for term in matches.into_iter().flat_map(|one| one.alternatives.iter().flatten()) {
            let next = terms.numbers.len();
            if *terms.numbers.entry(term.clone()).or_insert(next) == next {
                let values = terms.fields.entry(term.field.as_bytes().into()).or_default();
                values.push((term.value.as_bytes().into(), next));
            }
        }
        terms
    }

    /// Whether the entry is one of those that `wanted` means.
    pub fn hold(&self, wanted: &Match, entry: &Entry) -> bool {
        wanted.holds(|term| self.numbers.get(term).is_some_and(|number| entry.terms.get(*number).copied().unwrap_or(false)))
    }
}

/// What matters of one entry.
#[derive(Debug, Default)]
pub struct Entry {
    /// Where it is in the journal.
    pub cursor: Vec<u8>,
    /// When journald took it, microseconds since the Unix epoch.
    pub realtime: i64,
    source_realtime: Option<i64>,
    monotonic: Option<u64>,
    source_monotonic: Option<u64>,
    host: Vec<u8>,
    ident: Vec<u8>,
    comm: Vec<u8>,
    syslog_pid: Vec<u8>,
    pid: Vec<u8>,
    message: Vec<u8>,
    /// Which of the terms hold.
    terms: Vec<bool>,
    /// Its message was longer than [`LONGEST_LINE`].
    pub cut: bool,
}

impl Entry {
    fn clear(&mut self, terms: usize) {
        for field in [&mut self.cursor, &mut self.host, &mut self.ident, &mut self.comm] {
            field.clear();
        }
        for field in [&mut self.syslog_pid, &mut self.pid, &mut self.message] {
            field.clear();
        }
        (self.realtime, self.source_realtime, self.monotonic, self.source_monotonic) = (0, None, None, None);
        self.cut = false;
        self.terms.clear();
        self.terms.resize(terms, false);
    }

    /// When what it tells happened: what its writer's kernel said, else when journald took it.
    pub fn time(&self) -> Time {
        Time(self.source_realtime.unwrap_or(self.realtime))
    }

    /// Appends it as one line without a newline, at most [`LONGEST_LINE`] bytes: `HOST IDENT[PID]: MESSAGE`.
    pub fn line(&self, into: &mut Vec<u8>) {
        let start = into.len();
        let word = |bytes: &[u8], into: &mut Vec<u8>| fold(&bytes[..bytes.len().min(LONGEST_WORD)], into);
        if !self.host.is_empty() {
            word(&self.host, into);
            into.push(b' ');
        }
        let ident = if self.ident.is_empty() { &self.comm } else { &self.ident };
        if !ident.is_empty() {
            word(ident, into);
            let pid = if self.syslog_pid.is_empty() { &self.pid } else { &self.syslog_pid };
            if !pid.is_empty() {
                into.push(b'[');
                word(pid, into);
                into.push(b']');
            }
            into.extend_from_slice(b": ");
            if pid.is_empty() && ident == b"kernel" {
                let since_boot = self.source_monotonic.or(self.monotonic).unwrap_or(0);
                let _ = write!(into, "[{:5}.{:06}] ", since_boot / 1_000_000, since_boot % 1_000_000);
            }
        }
        fold(&self.message, into);
        into.truncate(start + LONGEST_LINE);
    }

    fn take(&mut self, name: &[u8], value: &[u8], whole: bool, terms: &Terms) {
        let number = |value: &[u8]| std::str::from_utf8(value).ok()?.parse::<u64>().ok();
        let time = |value: &[u8]| number(value).and_then(|micros| i64::try_from(micros).ok());
        match name {
            b"MESSAGE" => {
                self.message.clear();
                self.message.extend_from_slice(value);
                self.cut = !whole;
            }
            b"__CURSOR" if value.len() <= LONGEST_CURSOR => put(&mut self.cursor, value),
            b"__REALTIME_TIMESTAMP" => self.realtime = time(value).unwrap_or(0),
            b"_SOURCE_REALTIME_TIMESTAMP" => self.source_realtime = time(value),
            b"__MONOTONIC_TIMESTAMP" => self.monotonic = number(value),
            b"_SOURCE_MONOTONIC_TIMESTAMP" => self.source_monotonic = number(value),
            b"_HOSTNAME" => put(&mut self.host, value),
            b"SYSLOG_IDENTIFIER" => put(&mut self.ident, value),
            b"_COMM" => put(&mut self.comm, value),
            b"SYSLOG_PID" => put(&mut self.syslog_pid, value),
            b"_PID" => put(&mut self.pid, value),
            _ => {}
        }
        if whole && let Some(values) = terms.fields.get(name) {
            for (wanted, number) in values {
                self.terms[*number] |= **wanted == *value;
            }
        }
    }
}

fn put(field: &mut Vec<u8>, value: &[u8]) {
    field.clear();
    field.extend_from_slice(value);
}

/// Newlines become `\n`, as two letters.
fn fold(bytes: &[u8], into: &mut Vec<u8>) {
    let mut rest = bytes;
    while let Some(at) = memchr(b'\n', rest) {
        into.extend_from_slice(&rest[..at]);
        into.extend_from_slice(b"\\n");
        rest = &rest[at + 1..];
    }
    into.extend_from_slice(rest);
}

/// Where in an entry the bytes end that were taken so far.
#[derive(Debug, PartialEq, Eq)]
enum Inside {
    /// At the beginning of a field, or of an entry.
    Field,
    /// In a line whose rest is of no interest.
    Line,
    /// In so many bytes of no interest, the newline after them included.
    Bytes(u64),
}

/// Reads the export format.
#[derive(Debug)]
pub struct Export {
    terms: Terms,
    entry: Entry,
    inside: Inside,
    /// Something of the entry was seen.
    begun: bool,
    /// Bytes that do not make a field yet; never more than a field's head and [`LONGEST_LINE`] bytes of its value, after a call.
    rest: Vec<u8>,
}

impl Export {
    /// Reads entries, and of each whether these terms hold.
    pub fn new(terms: Terms) -> Export {
        Export { terms, entry: Entry::default(), inside: Inside::Field, begun: false, rest: Vec::new() }
    }

    /// Takes the next bytes; calls `each` for every entry that they end.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&Terms, &Entry)) {
        let mut rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            let done = self.steps(bytes, &mut each);
            rest.extend_from_slice(&bytes[done..]);
        } else {
            rest.extend_from_slice(bytes);
            let done = self.steps(&rest, &mut each);
            rest.drain(..done);
        }
        self.rest = rest;
    }

    /// Takes what is complete; returns how many bytes that is.
    fn steps(&mut self, bytes: &[u8], each: &mut impl FnMut(&Terms, &Entry)) -> usize {
        let mut done = 0;
        while let Some(taken) = self.step(&bytes[done..], each) {
            done += taken;
        }
        done
    }

    /// Takes one field, or a part of one; `None` if more bytes are needed.
    fn step(&mut self, bytes: &[u8], each: &mut impl FnMut(&Terms, &Entry)) -> Option<usize> {
        if bytes.is_empty() {
            return None;
        }
        match &mut self.inside {
            Inside::Field => {}
            Inside::Line => {
                let Some(end) = memchr(b'\n', bytes) else { return Some(bytes.len()) };
                self.inside = Inside::Field;
                return Some(end + 1);
            }
            Inside::Bytes(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                if *left == 0 {
                    self.inside = Inside::Field;
                }
                return Some(taken);
            }
        }
        if bytes[0] == b'\n' {
            if std::mem::take(&mut self.begun) {
                each(&self.terms, &self.entry);
            }
            return Some(1);
        }
        if !self.begun {
            self.entry.clear(self.terms.numbers.len());
            self.begun = true;
        }
        let limit = bytes.len().min(LONGEST_NAME + 1 + LONGEST_LINE);
        let Some(end) = memchr(b'\n', &bytes[..limit]) else {
            if bytes.len() < LONGEST_NAME + 1 + LONGEST_LINE {
                return None;
            }
            // A long value in one line: its beginning counts.
            if let Some(equals) = memchr(b'=', &bytes[..=LONGEST_NAME]) {
                let value = &bytes[equals + 1..equals + 1 + LONGEST_LINE];
                self.entry.take(&bytes[..equals], value, false, &self.terms);
            }
            self.inside = Inside::Line;
            return Some(limit);
        };
        let line = &bytes[..end];
        if let Some(equals) = memchr(b'=', line) {
            self.entry.take(&line[..equals], &line[equals + 1..], true, &self.terms);
            return Some(end + 1);
        }
        // A name alone: eight bytes of length, the value, a newline.
        let value = &bytes[end + 1..];
        let length = u64::from_le_bytes(*value.first_chunk::<8>()?);
        let value = &value[8..];
        let whole = usize::try_from(length).ok().filter(|length| *length <= LONGEST_LINE);
        let kept = whole.unwrap_or(LONGEST_LINE);
        if value.len() <= kept {
            return None;
        }
        self.entry.take(line, &value[..kept], whole.is_some(), &self.terms);
        if whole.is_none() {
            self.inside = Inside::Bytes((length - kept as u64).saturating_add(1));
            return Some(end + 9 + kept);
        }
        Some(end + 9 + kept + 1)
    }
}

/// The last entry that was handled. Without a cursor: none was, and entries since `realtime` are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Its cursor, as journald gave it; empty if there is none.
    pub cursor: String,
    /// When journald took it, microseconds since the Unix epoch.
    pub realtime: i64,
}

/// The parts of a cursor: `s=…;i=…;b=…;m=…;t=…;x=…`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parts<'a> {
    sequence: Option<&'a str>,
    number: Option<u64>,
    boot: Option<&'a str>,
    monotonic: Option<u64>,
    realtime: Option<u64>,
    hash: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(cursor: &'a str) -> Parts<'a> {
        let mut parts = Parts::default();
        for part in cursor.split(';') {
            let Some((name, value)) = part.split_once('=') else { continue };
            let number = || u64::from_str_radix(value, 16).ok();
            match name {
                "s" => parts.sequence = Some(value),
                "i" => parts.number = number(),
                "b" => parts.boot = Some(value),
                "m" => parts.monotonic = number(),
                "t" => parts.realtime = number(),
                "x" => parts.hash = Some(value),
                _ => {}
            }
        }
        parts
    }
}

impl Position {
    /// That of an entry; `None` if its cursor is none that journalctl would take.
    pub fn of(entry: &Entry) -> Option<Position> {
        let cursor = std::str::from_utf8(&entry.cursor).ok()?;
        let sane = !cursor.is_empty() && cursor.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b';' | b'-'));
        sane.then(|| Position { cursor: cursor.to_owned(), realtime: entry.realtime })
    }

    /// Before everything that journald took since then.
    pub fn since(time: Time) -> Position {
        Position { cursor: String::new(), realtime: time.0 }
    }

    /// Whether the entry is the one handled last. journald copies entries from `/run` to `/var` at boot: the copy has another
    /// number and is the same entry.
    pub fn is(&self, entry: &Entry) -> bool {
        let Ok(other) = std::str::from_utf8(&entry.cursor) else { return false };
        if self.cursor == other {
            return !other.is_empty();
        }
        let (own, other) = (Parts::of(&self.cursor), Parts::of(other));
        let known = own.boot.is_some() && own.monotonic.is_some() && own.realtime.is_some() && own.hash.is_some();
        known && (own.boot, own.monotonic, own.realtime, own.hash) == (other.boot, other.monotonic, other.realtime, other.hash)
    }

    /// Whether the entry comes not after the one handled last, in the order in which journalctl tells them: by number in one
    /// sequence, by the boot's clock in one boot, else by the wall clock.
    pub fn covers(&self, entry: &Entry) -> bool {
        let Ok(other) = std::str::from_utf8(&entry.cursor) else { return false };
        let (own, other) = (Parts::of(&self.cursor), Parts::of(other));
        if let (Some(own), Some(other)) = (own.number.filter(|_| own.sequence == other.sequence), other.number) {
            return other <= own;
        }
        if let (Some(own), Some(other)) = (own.monotonic.filter(|_| own.boot == other.boot), other.monotonic) {
            return other <= own;
        }
        match self.cursor.is_empty() {
            true => entry.realtime < self.realtime,
            false => entry.realtime <= self.realtime,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(bytes: &[u8], at_once: usize, wanted: &str) -> Vec<(String, bool, i64, bool)> {
        let wanted = Match::parse(&[wanted.to_owned()]).expect("a match");
        let mut export = Export::new(Terms::of([&wanted]));
        let mut found = Vec::new();
        for piece in bytes.chunks(at_once) {
            export.feed(piece, |terms, entry| {
                let mut line = Vec::new();
                entry.line(&mut line);
                let line = String::from_utf8_lossy(&line).into_owned();
                found.push((line, terms.hold(&wanted, entry), entry.time().0, entry.cut));
            });
            assert!(export.rest.len() <= LONGEST_LINE + LONGEST_NAME + 9 + at_once, "bounded");
        }
        found
    }

    fn binary(name: &str, value: &[u8]) -> Vec<u8> {
        [name.as_bytes(), b"\n", &(value.len() as u64).to_le_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn entries_are_worded_as_fail2ban_does_however_the_bytes_come() {
        let mut text =
            b"__CURSOR=a\n__REALTIME_TIMESTAMP=1700000000000000\n_HOSTNAME=mx\nSYSLOG_IDENTIFIER=sshd\nSYSLOG_PID=7\n_PID=8\n\
            _SYSTEMD_UNIT=ssh.service\nMESSAGE=Failed a=b\n_SOURCE_REALTIME_TIMESTAMP=1699999999000000\n\n"
                .to_vec();
        text.extend(b"__REALTIME_TIMESTAMP=2\n_HOSTNAME=mx\n_COMM=cron\n_PID=9\n");
        text.extend(binary("MESSAGE", b"one\ntwo \xff\n"));
        text.extend(binary("COREDUMP", &[b'\n'; 3000]));
        text.extend(
            b"\n__REALTIME_TIMESTAMP=3\n_HOSTNAME=mx\nSYSLOG_IDENTIFIER=kernel\n__MONOTONIC_TIMESTAMP=12000345\nMESSAGE=x\n\n",
        );
        text.extend(b"__REALTIME_TIMESTAMP=4\nMESSAGE=\n\n\n\n");
        let want = [
            ("mx sshd[7]: Failed a=b".to_owned(), true, 1_699_999_999_000_000, false),
            ("mx cron[9]: one\\ntwo \u{fffd}\\n".to_owned(), false, 2, false),
            ("mx kernel: [   12.000345] x".to_owned(), false, 3, false),
            (String::new(), false, 4, false),
        ];
        for at_once in [1, 2, 7, 64, 1000, 100_000] {
            assert_eq!(entries(&text, at_once, "_SYSTEMD_UNIT=ssh.service"), want, "{at_once}");
        }
    }

    #[test]
    fn long_messages_are_cut_and_the_next_entry_is_whole() {
        let long = "y".repeat(1 << 20);
        let mut text = format!("MESSAGE={long}\n_COMM=a\n\n").into_bytes();
        text.extend(b"_COMM=b\n");
        text.extend(binary("MESSAGE", format!("{long}\nz").as_bytes()));
        text.extend(b"_PID=3\n\n_COMM=c\nMESSAGE=m\n\n");
        for at_once in [1000, 65_536, 5 << 20] {
            let found = entries(&text, at_once, "_COMM=b");
            assert_eq!(found.len(), 3, "{at_once}");
            assert!(found[0].0.len() == LONGEST_LINE && found[0].0.starts_with("a: yyy") && found[0].3 && !found[0].1);
            assert!(found[1].0.len() == LONGEST_LINE && found[1].0.starts_with("b[3]: yyy") && found[1].3 && found[1].1);
            assert_eq!(found[2].0, "c: m");
        }
    }

    #[test]
    fn a_length_that_lies_takes_no_memory() {
        let mut export = Export::new(Terms::default());
        export.feed(b"MESSAGE\n\xff\xff\xff\xff\xff\xff\xff\xff", |_, _| {});
        for _ in 0..100 {
            export.feed(&[b'x'; 65_536], |_, _| panic!("no entry ends"));
        }
        assert!(export.rest.len() <= LONGEST_LINE + LONGEST_NAME + 9 + 65_536);
    }

    fn entry(cursor: &str, realtime: i64) -> Entry {
        Entry { cursor: cursor.as_bytes().to_vec(), realtime, ..Entry::default() }
    }

    #[test]
    fn the_order_of_entries_is_journalctls() {
        let at = Position { cursor: "s=a;i=1f;b=b0;m=100;t=50;x=9".to_owned(), realtime: 80 };
        let table = [
            ("s=a;i=1f;b=b0;m=100;t=50;x=9", 80, true, true),
            ("s=a;i=20;b=b0;m=90;t=40;x=1", 60, false, false),
            ("s=a;i=1e;b=b0;m=110;t=60;x=1", 90, false, true),
            // The copy in /var of what was read in /run.
            ("s=c;i=1;b=b0;m=100;t=50;x=9", 80, true, true),
            ("s=c;i=1;b=b0;m=101;t=40;x=9", 70, false, false),
            ("s=c;i=1;b=b1;m=1;t=40;x=9", 70, false, true),
            ("s=c;i=1;b=b1;m=1;t=51;x=9", 81, false, false),
            ("", 81, false, false),
        ];
        for (cursor, realtime, same, covered) in table {
            let other = entry(cursor, realtime);
            assert_eq!((at.is(&other), at.covers(&other)), (same, covered), "{cursor}");
        }
        let since = Position::since(Time(80));
        assert!(since.covers(&entry("s=a;i=1", 79)) && !since.covers(&entry("s=a;i=1", 80)) && !since.is(&entry("", 80)));
        assert_eq!(Position::of(&entry("--file=/etc/passwd /", 1)), None);
        assert!(Position::of(&entry(&at.cursor, 80)) == Some(at));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>, at_once in 1_usize..64) {
            let mut export = Export::new(Terms::default());
            for piece in bytes.chunks(at_once) {
                export.feed(piece, |_, entry| entry.line(&mut Vec::new()));
            }
        }
    }
}
