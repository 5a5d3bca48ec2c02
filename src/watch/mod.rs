//! Following logs: from files that grow, rotate, vanish and return to whole lines, each handed out exactly once.
//!
//! One blocking thread runs [`Watch::run`]. It sleeps on inotify and a command eventfd without a timeout, reads what was
//! written, and calls a [`Judge`]; when the judge is slow the thread waits, for the log file is the queue. Tell files apart
//! like this:
//!
//! - `reader` is the loop: what to look at next, who is served first; `look` finds where paths lead;
//! - `place` follows one concrete path: the inode it leads to now and the rotated ones still read;
//! - `held` is one open inode and where we are in it; `lines` cuts bytes into chunks of whole lines;
//! - [`position`] says where we are so that a later run finds it again, whatever was rotated meanwhile (`siblings`);
//! - [`back`] reads single lines again, wherever they were rotated to;
//! - `notices` is the book of inotify watches: who wants to know what about which directory.
//!
//! Invariants: an offset always stands at the start of a line (or inside one whose rest is skipped), so there is no half line
//! to lose; every read also rereads the few bytes before the offset, so a file that was rewritten under us is noticed even if it
//! is longer than before; an inode is read to its end before the one that replaced it. What is rotated is told from what was read
//! by its bytes: times only say where to look, for they tie within a tick of the kernel's clock.
//!
//! A carriage return before the newline is left in the chunk: a judge that looks at a line trims it there, the others do
//! not pay for it.

pub mod back;
mod held;
pub mod journal;
mod lines;
mod look;
mod notices;
mod pattern;
mod place;
pub mod position;
mod reader;
mod siblings;

use std::path::{Path, PathBuf};

pub use nix::errno::Errno;
pub use position::Position;
pub use reader::{Watch, WatchHandle};

/// Lines longer than this many bytes are handed out cut to it; the rest up to the newline is skipped and the cut counted.
pub const LONGEST_LINE: usize = 64 * 1024;

/// Whole lines of one file.
#[derive(Debug)]
pub struct Chunk<'a> {
    /// The path that is followed, as it was asked for (or as its glob found it); not that of a rotated sibling.
    pub path: &'a Path,
    /// Who watches the path, ascending.
    pub tags: &'a [u32],
    /// One or more lines, each with its newline; at most 256 KiB. Not necessarily UTF-8; never a NUL at the start of a line.
    pub bytes: &'a [u8],
    /// Where `bytes` begins in its file (in the decompressed text, for a `.gz`).
    pub offset: u64,
    /// False for what was there already when following began, so that old lines are judged by their date alone.
    pub live: bool,
    /// Where a later run goes on if everything up to the end of this chunk is done with. See [`WatchHandle::resume`].
    pub position: &'a Position,
}

/// Where a file is read from if no earlier run left a [`Position`] for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The whole file, with `live` false up to the end first seen; the judge drops what is too old.
    FromBeginning,
    /// Only what is written from now on. A file that appears later is read from its beginning all the same.
    End,
}

/// Something about a source that is not a line. Told on change, not repeatedly.
#[derive(Debug)]
pub struct SourceEvent<'a> {
    /// The path followed, or the glob if it matches nothing.
    pub path: &'a Path,
    /// Who watches it.
    pub tags: &'a [u32],
    /// What happened.
    pub what: Happening,
}

/// What can happen to a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The path leads to a file that can be read, for the first time or again.
    Appeared,
    /// Nothing is there: `waiting_at` is the nearest directory that exists and is watched instead.
    Missing {
        /// The directory whose changes are waited for.
        waiting_at: PathBuf,
        /// Why the path leads nowhere, usually `ENOENT`.
        errno: Errno,
    },
    /// The glob matches something again; from now on its files are told of, not the glob.
    Matched,
    /// Something is there that cannot be read.
    Unreadable(Errno),
    /// The path leads to another file than before; the old one is read to its end first.
    Rotated,
    /// The file was cut short or rewritten in place.
    Truncated {
        /// Bytes known to have been written and to be nowhere any more.
        lost: u64,
    },
    /// So many more lines were longer than [`LONGEST_LINE`] and handed out cut.
    LinesCut(u64),
    /// The kernel does not tell about this path (a network file system, watches exhausted): it is looked at periodically.
    Polled(Polled),
    /// Everything that was there when following began has been handed out.
    CaughtUp,
    /// Nobody watches the path any more, or a glob's file is gone for good. Its position need not be kept.
    Forgotten,
    /// Reading failed in the middle; what is held is kept and tried again at the next change.
    ReadFailed(Errno),
}

/// Why a path is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// Other machines or programs change files of this kind of file system unseen by inotify.
    FileSystem,
    /// inotify refused: `ENOSPC` (`fs.inotify.max_user_watches`), `EMFILE` (`fs.inotify.max_user_instances`) and so on.
    Refused(Errno),
}

/// One source in a status report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// The path followed, or the glob if it matches nothing.
    pub path: PathBuf,
    /// Who watches it.
    pub tags: Vec<u32>,
    /// What state it is in.
    pub state: SourceState,
    /// Whether and why it is polled.
    pub polled: Option<Polled>,
    /// Bytes written and not yet handed out, a half line included.
    pub lag_bytes: u64,
    /// Rotated files still held.
    pub rotated: usize,
    /// Lines handed out cut since the path is followed.
    pub lines_cut: u64,
    /// Bytes known to have been destroyed unread by truncation since the path is followed.
    pub lost_bytes: u64,
}

/// The state of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Reading what was there when following began.
    CatchingUp,
    /// Reading what is written.
    Following,
    /// Another watched path leads to the same file; it is read there.
    SameAs(PathBuf),
    /// Waiting in this directory for the path to appear.
    Waiting(PathBuf),
    /// There but not readable.
    Unreadable(Errno),
}

/// Who is handed what the watch reads. All calls come from the thread in [`Watch::run`], in the order of the lines of a source.
/// A call may block: reading then waits.
pub trait Judge: Send {
    /// Whole lines of one file.
    fn chunk(&mut self, chunk: Chunk<'_>);
    /// Files were taken up for a path: where a later run goes on if nothing more is handed out until then. Told before the first
    /// of their lines, so that a judge that keeps it loses none of them, wherever they are rotated to meanwhile.
    fn taken_up(&mut self, path: &Path, tags: &[u32], position: &Position);
    /// A source changed its state.
    fn source(&mut self, event: SourceEvent<'_>);
    /// The answer to [`WatchHandle::status`].
    fn status(&mut self, sources: Vec<SourceStatus>);
    /// Nothing more to hand out at the moment, or much was handed out: time to send on what was gathered.
    fn idle(&mut self);
}

/// What a [`Watch`] can be told to do otherwise than usual. The default is right for a daemon.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// How often polled paths are looked at.
    pub poll: std::time::Duration,
    /// How long a deleted file must be quiet before it is let go.
    pub quiet: std::time::Duration,
    /// Rotated files held per path besides the current one.
    pub rotated: usize,
    /// Refuse more inotify watches than this, as a kernel at its limit does.
    pub watches: usize,
}

impl Default for Habits {
    fn default() -> Self {
        Habits {
            poll: std::time::Duration::from_millis(250),
            quiet: std::time::Duration::from_secs(60),
            rotated: 4,
            watches: usize::MAX,
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod races;
#[cfg(test)]
mod tests;
