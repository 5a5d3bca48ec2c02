//! The loop: wait, look where paths lead, read what was written.
//!
//! Served first is who has new lines; a file that is being caught up gets a bounded turn after them, so that one huge file
//! delays a live line by one turn at most. The loop sleeps without a timeout unless a path must be polled or a deleted file
//! waits to be let go.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::held::{ALIKE, Held, Outlet, Turn};
use super::notices::{Notice, Notices, Trail, Who};
use super::pattern::Sought;
use super::place::Place;
use super::position::{Identity, Mark, modified};
use super::siblings::{Sibling, siblings};
use super::{Habits, Happening, Judge, Polled, Position, SourceEvent, SourceState, SourceStatus, Start};

/// The buffer that everything is read into: a chunk and the bytes before it that are compared.
const BUFFER: usize = 256 * 1024;
/// Bytes a live file is read before the next one has its turn.
pub(super) const TURN: usize = 1024 * 1024;
/// Bytes a file that is being caught up is read per turn.
const CATCH_UP_TURN: usize = 256 * 1024;
/// Bytes handed out after which the judge is told to send on what it gathered.
const GATHERED: usize = 1024 * 1024;
/// By how much the times of files may lag behind the clock: the kernel stamps them with the last timer tick.
pub(super) const TICK: Duration = Duration::from_millis(20);
/// Between two full looks at a polled path or glob there are this many glances.
const GLANCES: u32 = 8;

/// A watch that is not running yet. It belongs to the thread that will run it.
pub struct Watch {
    commands: Receiver<Command>,
    bell: Arc<EventFd>,
    habits: Habits,
}

/// Tells a running [`Watch`] what to do, from any thread. Commands are carried out in order; one for a watch that has ended does
/// nothing.
#[derive(Clone)]
pub struct WatchHandle {
    commands: Sender<Command>,
    bell: Arc<EventFd>,
}

enum Command {
    Watch(u32, String, Start),
    Resume(PathBuf, Position),
    Forget(u32),
    Status,
    Stop,
}

impl WatchHandle {
    /// Follows a path or glob (`*`, `?`, `[…]`) on behalf of `tag`, whether or not it exists yet. A tag may watch many. A file
    /// that several tags watch is read once; a tag that joins later sees what is read from then on.
    pub fn watch(&self, tag: u32, pattern: impl Into<String>, start: Start) {
        self.tell(Command::Watch(tag, pattern.into(), start));
    }

    /// Says where an earlier run stopped in `path`; to be said before [`WatchHandle::watch`]. What was rotated since then is
    /// looked for beside the path and read first; if nothing of it exists any more the path is read from its beginning.
    pub fn resume(&self, path: impl Into<PathBuf>, position: Position) {
        self.tell(Command::Resume(path.into(), position));
    }

    /// Ends everything that `tag` watches.
    pub fn forget(&self, tag: u32) {
        self.tell(Command::Forget(tag));
    }

    /// Asks for [`Judge::status`] to be called.
    pub fn status(&self) {
        self.tell(Command::Status);
    }

    /// Ends [`Watch::run`] after the turn that is being read.
    pub fn stop(&self) {
        self.tell(Command::Stop);
    }

    fn tell(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            // EAGAIN: the bell has been rung four billion times and not been heard; it still rings.
            let _ = self.bell.write(1);
        }
    }
}

impl Watch {
    /// A watch and what steers it.
    pub fn new(habits: Habits) -> io::Result<(Watch, WatchHandle)> {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (sender, commands) = channel();
        Ok((Watch { commands, bell: bell.clone(), habits }, WatchHandle { commands: sender, bell }))
    }

    /// Follows until told to stop, handing lines to `judge`. It has no way to fail: what goes wrong with a source is told to the
    /// judge, and without inotify everything is polled.
    pub fn run(self, judge: &mut dyn Judge) {
        let mut reader = Reader {
            judge,
            notices: Notices::new(self.habits.watches),
            habits: self.habits,
            places: BTreeMap::new(),
            globs: BTreeMap::new(),
            by_path: HashMap::new(),
            holders: HashMap::new(),
            saved: HashMap::new(),
            next: 0,
            look: BTreeSet::new(),
            live: VecDeque::new(),
            behind: VecDeque::new(),
            leaving: BTreeSet::new(),
            polled: BTreeSet::new(),
            last_poll: Instant::now(),
            glances: 0,
            buffer: vec![0; BUFFER],
            gathered: 0,
        };
        let mut told = Vec::new();
        loop {
            reader.wait(&self.bell);
            // Commands first: what is forgotten need not be read.
            let _ = self.bell.read();
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Watch(tag, pattern, start) => reader.watch(tag, &pattern, start),
                    Command::Resume(path, position) => reader.resume(path, position),
                    Command::Forget(tag) => reader.forget(tag),
                    Command::Status => reader.status(),
                    Command::Stop => {
                        reader.judge.idle();
                        return;
                    }
                }
            }
            reader.notices.drain(&mut told);
            for notice in told.drain(..) {
                reader.hear(notice);
            }
            reader.due();
            while let Some(who) = reader.look.pop_first() {
                match who {
                    Who::Place(id) => reader.look_at_place(id),
                    Who::Glob(id) => reader.look_at_glob(id),
                }
            }
            reader.serve();
        }
    }
}

/// A glob and the directories that it watches.
pub(super) struct Glob {
    pub(super) tag: u32,
    pub(super) sought: Sought,
    pub(super) start: Start,
    pub(super) trail: Trail,
    /// Told that it matches nothing.
    pub(super) missing: bool,
    pub(super) polled: Option<Polled>,
}

pub(super) struct Reader<'a> {
    pub(super) judge: &'a mut dyn Judge,
    pub(super) habits: Habits,
    pub(super) notices: Notices,
    pub(super) places: BTreeMap<u32, Place>,
    pub(super) globs: BTreeMap<u32, Glob>,
    pub(super) by_path: HashMap<PathBuf, u32>,
    /// Who holds which inode.
    pub(super) holders: HashMap<Identity, u32>,
    /// Where an earlier run stopped, until the path is looked at.
    pub(super) saved: HashMap<PathBuf, Position>,
    pub(super) next: u32,
    /// To be looked at again.
    pub(super) look: BTreeSet<Who>,
    /// Has something to read: served first.
    pub(super) live: VecDeque<u32>,
    /// Has something to read that was there when following began.
    pub(super) behind: VecDeque<u32>,
    /// Holds a deleted file that will be let go when it is quiet.
    pub(super) leaving: BTreeSet<u32>,
    pub(super) polled: BTreeSet<Who>,
    pub(super) last_poll: Instant,
    pub(super) glances: u32,
    pub(super) buffer: Vec<u8>,
    /// Bytes handed out since the judge was last told that it is idle.
    pub(super) gathered: usize,
}

impl Reader<'_> {
    /// Sleeps until there is something to do.
    fn wait(&mut self, bell: &EventFd) {
        let timeout = if self.live.is_empty() && self.behind.is_empty() {
            let mut until = None::<Instant>;
            if !self.polled.is_empty() {
                until = Some(self.last_poll + self.habits.poll);
            }
            for place in self.leaving.iter().filter_map(|id| self.places.get(id)) {
                for held in place.held[..place.rotated()].iter().filter(|held| held.deleted) {
                    let quiet = held.busy + self.habits.quiet;
                    until = Some(until.map_or(quiet, |until| until.min(quiet)));
                }
            }
            // Rounded up, or the loop would spin through the last millisecond.
            until.map_or(PollTimeout::NONE, |until| {
                let left = until.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            })
        } else {
            PollTimeout::ZERO
        };
        let mut fds = vec![PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.notices.fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // EINTR: the loop goes round once more than needed.
        let _ = poll(&mut fds, timeout);
    }

    fn hear(&mut self, notice: Notice) {
        match notice {
            Notice::Look(who) => {
                self.look.insert(who);
            }
            Notice::Data(id, watch) => {
                if let Some(place) = self.places.get_mut(&id) {
                    place.held.iter_mut().filter(|held| held.watch == Some(watch)).for_each(|held| held.ready = true);
                    self.queue(id);
                }
            }
            Notice::Overflow => {
                self.look.extend(self.places.keys().map(|id| Who::Place(*id)));
                self.look.extend(self.globs.keys().map(|id| Who::Glob(*id)));
                for id in self.places.keys().copied().collect::<Vec<_>>() {
                    self.stir(id);
                }
            }
        }
    }

    /// Everything held for a place may have something to read.
    pub(super) fn stir(&mut self, id: u32) {
        if let Some(place) = self.places.get_mut(&id) {
            place.held.iter_mut().for_each(|held| held.ready = true);
            self.queue(id);
        }
    }

    pub(super) fn queue(&mut self, id: u32) {
        if let Some(place) = self.places.get_mut(&id)
            && !place.queued
            && place.held.iter().any(|held| held.ready)
        {
            place.queued = true;
            if place.caught_up { self.live.push_back(id) } else { self.behind.push_back(id) }
        }
    }

    /// What is due by the clock: polling, and letting go of deleted files.
    fn due(&mut self) {
        if !self.polled.is_empty() && self.last_poll.elapsed() >= self.habits.poll {
            self.last_poll = Instant::now();
            self.glances = self.glances.wrapping_add(1);
            let fully = self.glances.is_multiple_of(GLANCES);
            for who in self.polled.clone() {
                match who {
                    Who::Place(id) if !fully => self.glance(id),
                    Who::Glob(_) if !fully => {}
                    Who::Place(id) => {
                        self.stir(id);
                        self.look.insert(who);
                    }
                    Who::Glob(_) => {
                        self.look.insert(who);
                    }
                }
            }
        }
        for id in self.leaving.clone() {
            let quiet = self.habits.quiet;
            let over = |held: &Held| held.deleted && !held.ready && held.busy.elapsed() >= quiet;
            let place = self.places.get(&id);
            let Some(index) = place.and_then(|place| place.held[..place.rotated()].iter().position(over)) else { continue };
            // A last look: inotify may be blind here.
            self.read_once(id, index);
            if self.places.get(&id).is_some_and(|place| place.held.get(index).is_some_and(over)) {
                self.close(id, index);
            }
            self.settle(id);
        }
    }

    /// The cheap look at a polled path: two stats.
    fn glance(&mut self, id: u32) {
        let Some(place) = self.places.get_mut(&id) else { return };
        for (held, mark) in place.held.iter_mut().zip(&place.position.marks) {
            let meta = held.file().and_then(|file| file.metadata().ok());
            held.ready |= held.fifo() || meta.is_some_and(|meta| meta.len() != mark.offset || modified(&meta) != mark.modified);
        }
        let leads = place.path.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
        if leads != place.current().map(Mark::identity) && !matches!(place.state, SourceState::SameAs(_)) {
            self.look.insert(Who::Place(id));
        }
        self.queue(id);
    }

    // Commands.

    fn watch(&mut self, tag: u32, pattern: &str, start: Start) {
        let sought = Sought::new(pattern);
        if sought.steps.is_empty() {
            let id = self.place(&sought.path, start);
            self.want(id, tag, None);
        } else if !self.globs.values().any(|glob| glob.tag == tag && glob.sought.path == sought.path) {
            let id = self.number();
            self.globs.insert(id, Glob { tag, sought, start, trail: Trail::new(), missing: false, polled: None });
            self.look_at_glob(id);
            if let Some(glob) = self.globs.get_mut(&id) {
                // What a glob finds later is new.
                glob.start = Start::FromBeginning;
            }
        }
    }

    fn resume(&mut self, path: PathBuf, position: Position) {
        let path = std::path::absolute(&path).unwrap_or(path);
        if !position.marks.is_empty() {
            self.saved.insert(path, position);
        }
    }

    fn forget(&mut self, tag: u32) {
        let globs: Vec<u32> = self.globs.iter().filter(|(_, glob)| glob.tag == tag).map(|(id, _)| *id).collect();
        for id in globs {
            if let Some(glob) = self.globs.remove(&id) {
                self.notices.release(&glob.trail, &Trail::new(), Who::Glob(id));
                self.polled.remove(&Who::Glob(id));
            }
        }
        for id in self.places.keys().copied().collect::<Vec<_>>() {
            if let Some(place) = self.places.get_mut(&id) {
                place.keep(|(wanting, _)| *wanting != tag);
                if place.wanted.is_empty() {
                    place.tags = vec![tag];
                    self.drop_place(id);
                }
            }
        }
    }

    fn status(&mut self) {
        let mut all: Vec<SourceStatus> = self.places.values().map(Place::status).collect();
        all.extend(self.globs.values().filter(|glob| glob.missing).map(|glob| SourceStatus {
            path: glob.sought.path.clone(),
            tags: vec![glob.tag],
            state: SourceState::Waiting(glob.sought.path.clone()),
            polled: glob.polled,
            lag_bytes: 0,
            rotated: 0,
            lines_cut: 0,
            lost_bytes: 0,
        }));
        self.judge.status(all);
    }

    fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// The place for a path, made if there is none.
    pub(super) fn place(&mut self, path: &Path, start: Start) -> u32 {
        if let Some(id) = self.by_path.get(path) {
            return *id;
        }
        let id = self.number();
        self.by_path.insert(path.to_owned(), id);
        self.places.insert(id, Place::new(path.to_owned(), start));
        id
    }

    pub(super) fn want(&mut self, id: u32, tag: u32, glob: Option<u32>) {
        if let Some(place) = self.places.get_mut(&id) {
            place.want(tag, glob);
            if place.fresh || matches!(place.state, SourceState::SameAs(_)) {
                self.look_at_place(id);
            }
        }
    }

    pub(super) fn tell(&mut self, id: u32, what: Happening) {
        if let Some(place) = self.places.get(&id) {
            self.judge.source(SourceEvent { path: &place.path, tags: &place.tags, what });
        }
    }

    pub(super) fn drop_place(&mut self, id: u32) {
        self.tell(id, Happening::Forgotten);
        while self.places.get(&id).is_some_and(|place| !place.held.is_empty()) {
            self.detach(id, 0);
        }
        if let Some(place) = self.places.remove(&id) {
            self.by_path.remove(&place.path);
            self.notices.release(&place.trail, &Trail::new(), Who::Place(id));
        }
        self.polled.remove(&Who::Place(id));
        self.leaving.remove(&id);
    }

    fn serve(&mut self) {
        for _ in 0..self.live.len() {
            if let Some(id) = self.live.pop_front() {
                self.taken(id);
                self.turn(id, TURN);
            }
        }
        if let Some(id) = self.behind.pop_front() {
            self.taken(id);
            self.turn(id, CATCH_UP_TURN);
        }
        let rest = self.live.is_empty() && self.behind.is_empty();
        if self.gathered > if rest { 0 } else { GATHERED } {
            self.gathered = 0;
            self.judge.idle();
        }
    }

    /// It is no longer in a queue.
    fn taken(&mut self, id: u32) {
        if let Some(place) = self.places.get_mut(&id) {
            place.queued = false;
        }
    }

    /// One turn of a place: its files in order, oldest first, until all are read or the share is used up.
    pub(super) fn turn(&mut self, id: u32, mut share: usize) {
        let Some(place) = self.places.get_mut(&id) else { return };
        if std::mem::take(&mut place.queued) {
            // Its turn came out of order.
            self.live.retain(|queued| *queued != id);
            self.behind.retain(|queued| *queued != id);
        }
        // So often a turn goes back to an older file: one that is written to all the time would not let the younger one begin.
        let (mut index, mut back) = (0, 2);
        let mut failed = false;
        while let Some(held) = self.places.get(&id).and_then(|place| place.held.get(index)) {
            if !held.ready {
                index += 1;
                continue;
            }
            match self.read(id, index, &mut share) {
                Turn::End => index += 1,
                Turn::More => {
                    self.queue(id);
                    return;
                }
                Turn::Rewritten => {
                    index = self.rewritten(id, index);
                    // Somebody may rewrite it whenever we look: then it is the others' turn.
                    share = share.saturating_sub(TURN / 16);
                    if share == 0 {
                        self.queue(id);
                        return;
                    }
                }
                Turn::First(_)
                    if self.places.get(&id).is_some_and(|place| index < place.rotated() && place.copied_over(index)) =>
                {
                    self.detach(id, index);
                }
                // Written to what was rotated away before the first line of this one: it comes first.
                Turn::First(_) if !failed && back > 0 && self.older_grew(id, index) => (index, back) = (0, back - 1),
                Turn::First(bytes) => {
                    let gone = self.let_go_overwritten(id, index);
                    index -= gone;
                    if !self.came_before(id, index, bytes) {
                        self.hand_out_first(id, index, bytes);
                    }
                }
                // Its mark stays until something younger was read, or a restart would take it for something new.
                Turn::Finished => {
                    self.hand_out_rest(id, index);
                    index += 1;
                }
                Turn::Failed(errno) => {
                    failed = true;
                    self.tell(id, Happening::ReadFailed(errno));
                    if errno == Errno::ESTALE {
                        self.detach(id, index);
                        self.look.insert(Who::Place(id));
                    } else {
                        index += 1;
                    }
                }
            }
        }
        self.settle(id);
    }

    fn read(&mut self, id: u32, index: usize, share: &mut usize) -> Turn {
        let Some(place) = self.places.get_mut(&id) else { return Turn::End };
        let Some(held) = place.held.get_mut(index) else { return Turn::End };
        let before = *share;
        let turn = held.read(&mut Outlet {
            path: &place.path,
            tags: &place.tags,
            position: &mut place.position,
            index,
            lines_cut: &mut place.lines_cut,
            buffer: &mut self.buffer,
            judge: self.judge,
            share,
        });
        // What ended a turn early was not taken from the share, but it may have been handed out.
        self.gathered += (before - *share).max(1);
        let cut = place.lines_cut - std::mem::replace(&mut place.cuts_told, place.lines_cut);
        if cut > 0 {
            self.tell(id, Happening::LinesCut(cut));
        }
        turn
    }

    fn read_once(&mut self, id: u32, index: usize) {
        let mut share = TURN;
        if let Turn::More = self.read(id, index, &mut share) {
            self.queue(id);
        }
    }

    /// What was before the offset is gone: the file was truncated, and maybe outgrew what it was. Returns where to read on.
    fn rewritten(&mut self, id: u32, index: usize) -> usize {
        let Some(place) = self.places.get_mut(&id) else { return index };
        if index < place.rotated() && (place.held[index].sibling || place.copied_over(index)) {
            // `cp log log.1`: an old copy was overwritten by the next. What is new in it is found when the log is truncated.
            self.detach(id, index);
            return index;
        }
        let path = place.path.clone();
        let (Some(held), Some(mark)) = (place.held.get_mut(index), place.position.marks.get_mut(index)) else { return index };
        let old = *mark;
        let lost = held.size.saturating_sub(old.offset);
        // What was copied away first was truncated on purpose, though each of its texts may have the same heading.
        let copied = || older(&path, old.identity(), &[]).iter().any(|sibling| sibling.continues(&old));
        if old.head_len > 0 && !copied() && held.file().is_some_and(|file| old.head_is_of(file).unwrap_or(false)) {
            // Its beginning is still there: shortened at the end or edited, not written anew.
            if held.seek_line(mark, old.offset).is_err() {
                held.begin_again(mark);
            }
            held.ready = true;
            self.tell(id, Happening::Truncated { lost: 0 });
            return index;
        }
        held.begin_again(mark);
        let head = held.head();
        let index = index - self.let_go_overwritten(id, index);
        // copytruncate: the copy holds what was not read yet, and a second one may have been made since.
        let mut beside: Vec<Sibling> = older(&path, old.identity(), &head)
            .into_iter()
            .filter(|sibling| !self.holders.contains_key(&sibling.identity()) && !self.is_place(&sibling.path, id))
            .collect();
        self.without_later(id, index, &mut beside);
        let copy = beside
            .iter()
            .position(|sibling| !sibling.gz && sibling.continues(&old))
            .or_else(|| beside.iter().position(|s| s.gz && modified(&s.meta) >= old.modified && s.continues(&old)));
        let Some(known) = self.places.get(&id).map(Place::known) else { return index };
        let mut at = index;
        for (number, sibling) in beside.iter().enumerate() {
            let is_copy = copy == Some(number);
            let unseen = match copy {
                Some(copy) => sibling.newer(&beside[copy], &old),
                None => modified(&sibling.meta) >= old.modified,
            };
            if is_copy || (unseen && !known.has(sibling)) {
                at += self.hold_sibling(id, sibling, is_copy.then_some(old), Some(at));
            }
        }
        let lost = if copy.is_some() { 0 } else { lost };
        if let Some(place) = self.places.get_mut(&id) {
            place.lost += lost;
            if copy.is_none() {
                place.position.finish(old);
            }
        }
        self.tell(id, Happening::Truncated { lost });
        index
    }

    /// If the path leads to another file by now, what is beside it may be copies of that one: they come after what is at `index`, and
    /// are found when the path is looked at.
    fn without_later(&mut self, id: u32, index: usize, beside: &mut Vec<Sibling>) {
        let Some(place) = self.places.get_mut(&id) else { return };
        let Some(meta) = place.held.get(index).and_then(|held| held.file()?.metadata().ok()) else { return };
        if place.path.metadata().is_ok_and(|leads| (leads.dev(), leads.ino()) != (meta.dev(), meta.ino())) {
            beside.retain(|sibling| {
                let (time, later) = (modified(&sibling.meta), modified(&sibling.meta) > modified(&meta));
                if later {
                    place.later = Some(place.later.map_or(time, |before| before.min(time)));
                }
                !later
            });
        }
    }

    /// Lets go of copies that we still hold and that were overwritten by a younger one (`cp log log.1`, again) after they were last
    /// read: what is new in them is then found as in any other copy. Returns how many of them stood before `index`.
    fn let_go_overwritten(&mut self, id: u32, index: usize) -> usize {
        let (mut at, mut gone) = (0, 0);
        while let Some(place) = self.places.get(&id)
            && at + gone < index
            && at < place.rotated()
        {
            let (held, mark) = (&place.held[at], &place.position.marks[at]);
            let copy = held.sibling || place.copied_over(at);
            if copy && mark.offset > 0 && held.file().is_some_and(|file| !mark.is_of(file).unwrap_or(true)) {
                self.detach(id, at);
                gone += 1;
            } else {
                at += 1;
            }
        }
        gone
    }

    /// A file is read for the first time since it was empty, and the buffer holds its beginning. Whatever was written to it and
    /// copied away before is nowhere known but among its siblings: those are held, to be read first. A copy that begins as the
    /// buffer does is one of what we are about to read.
    fn came_before(&mut self, id: u32, index: usize, bytes: usize) -> bool {
        let Some(place) = self.places.get(&id) else { return false };
        let Some(held) = place.held.get(index) else { return false };
        let (path, since, copies_from) = (place.path.clone(), held.since, held.copies_from);
        let head = &self.buffer[..bytes.min(ALIKE)];
        let mut beside = older(&path, place.position.marks[index].identity(), head);
        let known = place.known();
        let head = head.to_vec();
        self.without_later(id, index, &mut beside);
        let mut at = index;
        for sibling in beside {
            let born = sibling.beginning().birth >= copies_from || known.were_in(&sibling);
            let fresh = modified(&sibling.meta) >= since && born;
            if fresh
                && !self.holders.contains_key(&sibling.identity())
                && !self.is_place(&sibling.path, id)
                && !sibling.begins_with(&head)
                && !known.has(&sibling)
            {
                at += self.hold_sibling(id, &sibling, None, Some(at));
            }
        }
        at > index
    }

    /// Whether more was written to an older file than was read of it; then it is to be read again.
    fn older_grew(&mut self, id: u32, index: usize) -> bool {
        let Some(place) = self.places.get_mut(&id) else { return false };
        let mut grew = false;
        for held in place.held.iter_mut().take(index) {
            if held.file().and_then(|file| file.metadata().ok()).is_some_and(|meta| meta.len() > held.size) {
                held.ready = true;
                grew = true;
            }
        }
        grew
    }

    fn hand_out_first(&mut self, id: u32, index: usize, bytes: usize) {
        self.with(id, index, |held, out| held.hand_out_first(out, bytes));
    }

    fn hand_out_rest(&mut self, id: u32, index: usize) {
        self.with(id, index, Held::hand_out_rest);
    }

    /// Lets go of a file that is complete, its last line handed out even if it has no newline.
    fn close(&mut self, id: u32, index: usize) {
        self.hand_out_rest(id, index);
        self.detach(id, index);
    }

    fn with(&mut self, id: u32, index: usize, act: impl FnOnce(&mut Held, &mut Outlet<'_>)) {
        let mut share = 0;
        if let Some(place) = self.places.get_mut(&id)
            && let Some(held) = place.held.get_mut(index)
        {
            self.gathered += 1;
            act(
                held,
                &mut Outlet {
                    path: &place.path,
                    tags: &place.tags,
                    position: &mut place.position,
                    index,
                    lines_cut: &mut place.lines_cut,
                    buffer: &mut self.buffer,
                    judge: self.judge,
                    share: &mut share,
                },
            );
        }
    }

    /// After reading or looking: what has become of the place.
    pub(super) fn settle(&mut self, id: u32) {
        let rotated = self.habits.rotated;
        while self
            .places
            .get(&id)
            .is_some_and(|place| place.rotated() > rotated && place.held.first().is_some_and(|held| !held.ready))
        {
            self.close(id, 0);
        }
        while let Some(index) = self.places.get(&id).and_then(|place| {
            let younger = |index: usize| place.position.marks[index + 1..].iter().any(|mark| mark.offset > 0);
            (0..place.held.len()).find(|index| place.held[*index].finished && younger(*index))
        }) {
            self.detach(id, index);
        }
        let Some(place) = self.places.get_mut(&id) else { return };
        let idle = place.held.iter().all(|held| !held.ready);
        if place.held[..place.rotated()].iter().any(|held| held.deleted) {
            self.leaving.insert(id);
        } else if idle {
            self.leaving.remove(&id);
        }
        if !place.caught_up && idle {
            place.caught_up = true;
            if place.current {
                self.tell(id, Happening::CaughtUp);
            }
        }
        let Some(place) = self.places.get(&id) else { return };
        if place.held.is_empty() && place.found() && !matches!(place.state, SourceState::SameAs(_)) && !place.path.exists() {
            self.drop_place(id);
        }
    }
}

/// The siblings of a path that are older than the file we follow, which may itself be among them by now, as it was or compressed:
/// `head` is how its text begins.
pub(super) fn older(path: &Path, than: Identity, head: &[u8]) -> Vec<Sibling> {
    let mut beside = siblings(path);
    let ours = |s: &Sibling| s.identity() == than || (!head.is_empty() && s.begins_with(head));
    if let Some(at) = beside.iter().position(ours) {
        beside.truncate(at);
    }
    beside
}

/// Opens for reading without waiting for a FIFO's writer and without making a terminal ours. What is neither a file nor a FIFO is
/// refused unopened: of a device that alone may do something (a watchdog begins to bite), and who may write to a log's directory may
/// put a link to one there.
pub(super) fn open(path: &Path) -> io::Result<File> {
    opened(path, OFlag::empty())
}

/// The same for what stands beside a log: a symbolic link there is nothing that was rotated.
pub(super) fn open_beside(path: &Path) -> io::Result<File> {
    opened(path, OFlag::O_NOFOLLOW)
}

fn opened(path: &Path, flags: OFlag) -> io::Result<File> {
    let open =
        |path: &Path, flags: OFlag| OpenOptions::new().read(true).custom_flags((flags | OFlag::O_CLOEXEC).bits()).open(path);
    let found = open(path, flags | OFlag::O_PATH)?;
    let kind = found.metadata()?.file_type();
    if !kind.is_file() && !kind.is_fifo() {
        let errno = if kind.is_dir() { Errno::EISDIR } else { Errno::EINVAL };
        return Err(errno.into());
    }
    let plainly = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    match open(Path::new(&format!("/proc/self/fd/{}", found.as_raw_fd())), plainly) {
        // No /proc here.
        Err(error) if error.kind() == io::ErrorKind::NotFound => open(path, flags | plainly),
        other => other,
    }
}
