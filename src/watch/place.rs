//! One concrete path and the files held for it: what it leads to now, and before that what was rotated away.

use std::path::PathBuf;
use std::time::SystemTime;

use super::held::Held;
use super::notices::Trail;
use super::position::{Identity, Mark};
use super::siblings::Sibling;
use super::{Polled, Position, SourceState, SourceStatus, Start};

/// A followed path.
pub(super) struct Place {
    pub path: PathBuf,
    /// Which tags want it, and through which glob.
    pub wanted: Vec<(u32, Option<u32>)>,
    /// The tags in `wanted`, ascending, each once.
    pub tags: Vec<u32>,
    pub start: Start,
    pub trail: Trail,
    /// Files held, oldest first.
    pub held: Vec<Held>,
    /// A mark for each of `held`.
    pub position: Position,
    /// A file was taken up since the position was last told or handed out with a chunk.
    pub untold: bool,
    /// Modification time of the oldest sibling left for the next look, nanoseconds since the Unix epoch.
    pub later: Option<i64>,
    /// The last of `held` is what the path leads to.
    pub current: bool,
    pub state: SourceState,
    pub polled: Option<Polled>,
    /// It was never looked at.
    pub fresh: bool,
    /// Everything that was there when following began was handed out.
    pub caught_up: bool,
    /// It is in one of the queues.
    pub queued: bool,
    /// When we last knew what the path leads to: a file born later holds only new lines.
    pub since: SystemTime,
    pub lines_cut: u64,
    /// How many of them were told.
    pub cuts_told: u64,
    pub lost: u64,
}

impl Place {
    pub(super) fn new(path: PathBuf, start: Start) -> Place {
        Place {
            state: SourceState::Waiting(PathBuf::from("/")),
            path,
            wanted: Vec::new(),
            tags: Vec::new(),
            start,
            trail: Trail::new(),
            held: Vec::new(),
            position: Position::default(),
            untold: false,
            later: None,
            current: false,
            polled: None,
            fresh: true,
            caught_up: false,
            queued: false,
            since: SystemTime::now(),
            lines_cut: 0,
            cuts_told: 0,
            lost: 0,
        }
    }

    /// Keeps of `wanted` what `keep` says.
    pub(super) fn keep(&mut self, keep: impl FnMut(&(u32, Option<u32>)) -> bool) {
        self.wanted.retain(keep);
        self.retag();
    }

    /// Adds a tag, found through `glob` or named.
    pub(super) fn want(&mut self, tag: u32, glob: Option<u32>) {
        if !self.wanted.contains(&(tag, glob)) {
            self.wanted.push((tag, glob));
            self.retag();
        }
    }

    fn retag(&mut self) {
        self.tags = self.wanted.iter().map(|(tag, _)| *tag).collect();
        self.tags.sort_unstable();
        self.tags.dedup();
    }

    /// Nobody named it: a glob found it, so it is dropped when it is gone for good.
    pub(super) fn found(&self) -> bool {
        self.wanted.iter().all(|(_, glob)| glob.is_some())
    }

    /// What the path leads to, if it is held.
    pub(super) fn current(&self) -> Option<&Mark> {
        if self.current { self.position.marks.last() } else { None }
    }

    /// How many of `held` were rotated away.
    pub(super) fn rotated(&self) -> usize {
        self.held.len() - usize::from(self.current)
    }

    /// Where among `held` this inode is.
    pub(super) fn index(&self, identity: Identity) -> Option<usize> {
        self.position.marks.iter().position(|mark| mark.identity() == identity)
    }

    /// What tells whether a sibling is something new.
    pub(super) fn known(&self) -> Known {
        let (marks, done) = (self.position.marks.clone(), self.position.done.iter().copied().collect());
        let heads = self.held.iter().map(Held::head).filter(|head| !head.is_empty()).collect();
        Known { marks, done, heads }
    }

    /// Whether what is held at `index` holds another held file's text by now.
    pub(super) fn copied_over(&self, index: usize) -> bool {
        let Some(held) = self.held.get(index) else { return false };
        let (Some(file), head) = (held.file(), held.head()) else { return false };
        let alike = |other: &[u8]| {
            let both = head.len().min(other.len());
            both > 0 && head[..both] == other[..both]
        };
        self.held.iter().zip(&self.position.marks).enumerate().any(|(at, (other, mark))| {
            at != index && (alike(&other.head()) || (mark.offset > 0 && mark.is_of(file).unwrap_or(false)))
        }) || self.position.done.iter().any(|mark| mark.is_all_of(file).unwrap_or(false))
    }

    pub(super) fn status(&self) -> SourceStatus {
        let lag = self.held.iter().zip(&self.position.marks).map(|(held, mark)| held.lag(mark)).sum();
        let state = match (&self.state, self.caught_up) {
            (SourceState::Following | SourceState::CatchingUp, true) => SourceState::Following,
            (SourceState::Following | SourceState::CatchingUp, false) => SourceState::CatchingUp,
            (other, _) => other.clone(),
        };
        SourceStatus {
            path: self.path.clone(),
            tags: self.tags.clone(),
            state,
            polled: self.polled,
            lag_bytes: lag,
            rotated: self.rotated(),
            lines_cut: self.lines_cut,
            lost_bytes: self.lost,
        }
    }
}

/// The texts that were handed out, or are held and will be.
pub(super) struct Known {
    marks: Vec<Mark>,
    done: Vec<Mark>,
    heads: Vec<Vec<u8>>,
}

impl Known {
    /// One more text, by its beginning.
    pub(super) fn add(&mut self, head: Option<Vec<u8>>) {
        self.heads.extend(head.filter(|head| !head.is_empty()));
    }

    /// Whether one of them was read in this very file: if it holds another now, it was overwritten since.
    pub(super) fn were_in(&self, sibling: &Sibling) -> bool {
        self.done.iter().any(|mark| mark.born_as(&sibling.beginning()))
    }

    /// Whether the sibling is a copy of one of them, compressed or not.
    pub(super) fn has(&self, sibling: &Sibling) -> bool {
        self.marks.iter().any(|mark| sibling.continues(mark))
            || self.done.iter().any(|mark| sibling.is_done(mark))
            || self.heads.iter().any(|head| sibling.begins_with(head))
    }
}
