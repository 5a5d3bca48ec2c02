//! Entries of a journal read again: what stood at the instants that failures carry, wherever the journal was rotated to since.
//!
//! An entry has no offset. Its address is the low 48 bits of the microsecond at which journald took it: journald keeps that
//! stamp when it rotates, and when it copies entries from `/run` to `/var`. Several entries may bear one stamp, so every one
//! that does is offered, and whoever asks says whether it is theirs. Instants near each other are read by one `journalctl`,
//! which finds the jail's entries through the journal's own index; how much it may print and how long it may take is bounded, and
//! whoever asks is told which entries could not be looked for because of that.

use std::time::{Duration, Instant};

use super::journal::{FIELDS, last_line};
use super::spawner::Spawner;
use super::spec::Entries;
use crate::terms::{Time, plain};
use crate::watch::journal::{Entry, Export, Terms};

/// Bits of an entry's address; they come round after 8.9 years.
pub const BITS: u32 = 48;
const MASK: i64 = (1 << BITS) - 1;
/// What the jail's entries told within this before an entry is offered with it. Windows that overlap are one.
const LEAD: i64 = 5_000_000;
/// At most this much of it, in bytes.
const BEFORE: usize = 64 * 1024;
/// What the `journalctl`s of one call may print together, and how long they may take together.
const PRINTED: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(10);
/// A clock that was set back has entries of a later time than now.
const SET_BACK: i64 = 86_400_000_000;

/// Why entries were not looked for to the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Short {
    /// What stands around them is more than may be read.
    Printed,
    /// It took longer than it may.
    Slow,
    /// `journalctl` could not be run, or failed.
    Failed(String),
    /// No journal is read any more.
    Unread,
}

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Short::Printed => write!(f, "the journal holds more than {} MiB around them", PRINTED >> 20),
            Short::Slow => write!(f, "the journal was not read within {} s", PATIENCE.as_secs()),
            Short::Failed(why) => write!(f, "journalctl failed: {why}"),
            Short::Unread => f.write_str("no journal is read any more"),
        }
    }
}

/// Lines and the instant of each.
#[derive(Clone, Copy)]
pub struct Timed<'a> {
    /// Whole lines.
    pub text: &'a [u8],
    /// Where each begins, and when it was.
    pub times: &'a [(u32, Time)],
}

/// Takes an entry that is looked for: its stamp, what stands before it, its line without a newline, and its instant.
pub type Take<'a> = dyn FnMut(i64, Timed<'_>, &[u8], Time) + 'a;

/// The address of an entry that journald took at this microsecond since the Unix epoch.
pub fn address(stamp: i64) -> u64 {
    (stamp & MASK) as u64
}

/// The latest microsecond with this address that is not after `now`.
pub fn stamp(address: u64, now: Time) -> i64 {
    let stamp = now.0 & !MASK | address as i64 & MASK;
    if stamp > now.0.saturating_add(SET_BACK) { stamp - (MASK + 1) } else { stamp }
}

/// Offers the entries that journald took at these microseconds, oldest first, as far as they are still there. What was not read to
/// the end is told: from which of the stamps on, and why.
pub fn recall(spawner: &Spawner, entries: &Entries, stamps: &[i64], take: &mut Take<'_>) -> Result<(), (i64, Short)> {
    recall_within(spawner, entries, stamps, (PRINTED, PATIENCE), take)
}

fn recall_within(
    spawner: &Spawner,
    entries: &Entries,
    stamps: &[i64],
    (printed, patience): (usize, Duration),
    take: &mut Take<'_>,
) -> Result<(), (i64, Short)> {
    let end = Instant::now() + patience;
    let mut room = printed;
    let mut stamps = stamps.to_vec();
    stamps.sort_unstable();
    stamps.dedup();
    for window in stamps.chunk_by(|a, b| b - a <= LEAD) {
        let (Some(first), Some(last)) = (window.first(), window.last()) else { continue };
        let mut arguments: Vec<String> = ["--quiet", "--no-pager", "--output=export"].map(str::to_owned).into();
        arguments.push(format!("--output-fields={FIELDS}"));
        arguments.push(format!("--since=@{}", seconds((first - LEAD).max(0))));
        arguments.push(format!("--until=@{}", seconds(*last)));
        arguments.extend(entries.journal.arguments());
        arguments.extend(entries.wanted.arguments());
        let running = spawner.run(&arguments).map_err(|e| (*first, Short::Failed(plain(&e))))?;
        let (mut export, mut memory, mut told) = (Export::new(Terms::default()), Memory::default(), false);
        let poured = running.pour(end.saturating_duration_since(Instant::now()), |bytes| {
            told = true;
            export.feed(bytes, |_, entry| memory.entry(entry, window, take));
            room = room.saturating_sub(bytes.len());
            room > 0
        });
        if !poured.ended {
            return Err((*first, if room == 0 { Short::Printed } else { Short::Slow }));
        }
        // It complains of single damaged files, too, and goes on with the others.
        if !told && !poured.err.is_empty() {
            return Err((*first, Short::Failed(last_line(&poured.err))));
        }
    }
    Ok(())
}

/// As systemd.time(7) takes it: whole seconds and six digits.
fn seconds(micros: i64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

/// The last lines that were told.
#[derive(Default)]
struct Memory {
    text: Vec<u8>,
    times: Vec<(u32, Time)>,
}

impl Memory {
    fn entry(&mut self, entry: &Entry, window: &[i64], take: &mut Take<'_>) {
        if self.text.len() > 4 * BEFORE {
            self.shorten();
        }
        let start = self.text.len();
        entry.line(&mut self.text);
        if window.binary_search(&entry.realtime).is_ok() {
            let from = self.recent(start);
            let text_from = self.times.get(from).map_or(start, |(offset, _)| *offset as usize);
            let times: Vec<(u32, Time)> =
                self.times[from..].iter().map(|(offset, time)| (offset - text_from as u32, *time)).collect();
            take(entry.realtime, Timed { text: &self.text[text_from..start], times: &times }, &self.text[start..], entry.time());
        }
        self.text.push(b'\n');
        self.times.push((start as u32, entry.time()));
    }

    /// The first of the lines that lie within [`BEFORE`] of `end`.
    fn recent(&self, end: usize) -> usize {
        self.times.partition_point(|(offset, _)| end - *offset as usize > BEFORE)
    }

    fn shorten(&mut self) {
        let from = self.recent(self.text.len());
        let gone = self.times.get(from).map_or(self.text.len(), |(offset, _)| *offset as usize);
        self.text.drain(..gone);
        self.times.drain(..from);
        self.times.iter_mut().for_each(|(offset, _)| *offset -= gone as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gives_its_stamp_back_for_nearly_nine_years() {
        let now = Time(1_795_000_000_123_456);
        let years = 86_400_000_000 * 365;
        for ago in [-3_600_000_000, 0, 1, 1_000_000, years, 8 * years] {
            let then = now.0 - ago;
            assert!(address(then) < 1 << BITS);
            assert_eq!(stamp(address(then), now), then, "{ago}");
        }
        assert_ne!(stamp(address(now.0 - 9 * years), now), now.0 - 9 * years);
        assert_eq!(seconds(1_795_000_000_000_042), "1795000000.000042");
    }

    #[test]
    fn an_entry_comes_with_what_was_told_before_it_and_no_more() {
        let mut memory = Memory::default();
        let mut export = Export::new(Terms::default());
        let filler = "x".repeat(1000);
        let mut offered = Vec::new();
        for n in 0..1000_i64 {
            let text = format!("__REALTIME_TIMESTAMP={n}\n_HOSTNAME=mx\n_COMM=a\nMESSAGE={n} {filler}\n\n");
            export.feed(text.as_bytes(), |_, entry| {
                memory.entry(entry, &[0, 3, 999], &mut |stamp, before, line, time| {
                    assert_eq!((stamp, time), (n, Time(n)));
                    assert!(line.starts_with(format!("mx a: {n} x").as_bytes()) && line.ends_with(b"x"));
                    assert!(before.text.is_empty() || before.text.ends_with(b"x\n"));
                    for (offset, time) in before.times {
                        assert!(before.text[*offset as usize..].starts_with(format!("mx a: {} x", time.0).as_bytes()));
                    }
                    offered.push((stamp, before.times.len()));
                });
            });
            assert!(memory.text.len() < 5 * BEFORE + 1100, "bounded");
        }
        assert_eq!((offered[0], offered[1]), ((0, 0), (3, 3)));
        assert!(offered[2].0 == 999 && (60..=66).contains(&offered[2].1), "{offered:?}");
    }
}
