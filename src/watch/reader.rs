//! The loop: wait, look where paths lead, read what was written.
//!
//! Served first is who has new lines; a file that is being caught up gets a bounded turn after them, so that one huge file
//! delays a live line by one turn at most. The loop sleeps without a timeout unless a path must be polled or a deleted file
//! waits to be let go.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use glob::Pattern;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::statfs::{
    AFS_SUPER_MAGIC, CODA_SUPER_MAGIC, FUSE_SUPER_MAGIC, FsType, NCP_SUPER_MAGIC, NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, fstatfs,
};

use super::held::{Held, Outlet, Turn};
use super::notices::{Interest, Notice, Notices, Trail, Who, errno};
use super::pattern::{Sought, Step, fits};
use super::place::Place;
use super::position::{HEAD, Identity, Mark, modified};
use super::siblings::{Sibling, siblings};
use super::{Habits, Happening, Judge, Polled, Position, SourceEvent, SourceState, SourceStatus, Start};

/// The buffer that everything is read into: a chunk and the bytes before it that are compared.
const BUFFER: usize = 256 * 1024;
/// Bytes a live file is read before the next one has its turn.
const TURN: usize = 1024 * 1024;
/// Bytes a file that is being caught up is read per turn.
const CATCH_UP_TURN: usize = 256 * 1024;
/// Bytes handed out after which the judge is told to send on what it gathered.
const GATHERED: usize = 1024 * 1024;
/// By how much the times of files may lag behind the clock: the kernel stamps them with the last timer tick.
const TICK: Duration = Duration::from_millis(20);
/// So many files that were let go are remembered.
const DONE: usize = 8;
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
struct Glob {
    tag: u32,
    sought: Sought,
    start: Start,
    trail: Trail,
    /// Told that it matches nothing.
    missing: bool,
    polled: bool,
}

struct Reader<'a> {
    judge: &'a mut dyn Judge,
    habits: Habits,
    notices: Notices,
    places: BTreeMap<u32, Place>,
    globs: BTreeMap<u32, Glob>,
    by_path: HashMap<PathBuf, u32>,
    /// Who holds which inode.
    holders: HashMap<Identity, u32>,
    /// Where an earlier run stopped, until the path is looked at.
    saved: HashMap<PathBuf, Position>,
    next: u32,
    /// To be looked at again.
    look: BTreeSet<Who>,
    /// Has something to read: served first.
    live: VecDeque<u32>,
    /// Has something to read that was there when following began.
    behind: VecDeque<u32>,
    /// Holds a deleted file that will be let go when it is quiet.
    leaving: BTreeSet<u32>,
    polled: BTreeSet<Who>,
    last_poll: Instant,
    glances: u32,
    buffer: Vec<u8>,
    /// Bytes handed out since the judge was last told that it is idle.
    gathered: usize,
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
                for held in place.held.iter().filter(|held| held.deleted) {
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
    fn stir(&mut self, id: u32) {
        if let Some(place) = self.places.get_mut(&id) {
            place.held.iter_mut().for_each(|held| held.ready = true);
            self.queue(id);
        }
    }

    fn queue(&mut self, id: u32) {
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
            self.globs.insert(id, Glob { tag, sought, start, trail: Trail::new(), missing: false, polled: false });
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
            polled: None,
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
    fn place(&mut self, path: &Path, start: Start) -> u32 {
        if let Some(id) = self.by_path.get(path) {
            return *id;
        }
        let id = self.number();
        self.by_path.insert(path.to_owned(), id);
        self.places.insert(id, Place::new(path.to_owned(), start));
        id
    }

    fn want(&mut self, id: u32, tag: u32, glob: Option<u32>) {
        if let Some(place) = self.places.get_mut(&id) {
            place.want(tag, glob);
            if place.fresh || matches!(place.state, SourceState::SameAs(_)) {
                self.look_at_place(id);
            }
        }
    }

    fn tell(&mut self, id: u32, what: Happening) {
        if let Some(place) = self.places.get(&id) {
            self.judge.source(SourceEvent { path: &place.path, tags: &place.tags, what });
        }
    }

    fn drop_place(&mut self, id: u32) {
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

    // Looking where paths lead.

    fn look_at_glob(&mut self, id: u32) {
        let Some(glob) = self.globs.get(&id) else { return };
        let (tag, steps, start, path) = (glob.tag, glob.sought.steps.clone(), glob.start, glob.sought.path.clone());
        let (mut trail, mut refused, mut found) = (Trail::new(), None, Vec::new());
        self.expand(PathBuf::from("/"), &steps, Who::Glob(id), &mut trail, &mut refused, &mut found);
        let Some(glob) = self.globs.get_mut(&id) else { return };
        let old = std::mem::replace(&mut glob.trail, trail.clone());
        glob.polled = refused.is_some();
        let missing = found.is_empty();
        let turned = missing != std::mem::replace(&mut glob.missing, missing);
        if glob.polled {
            self.polled.insert(Who::Glob(id))
        } else {
            self.polled.remove(&Who::Glob(id))
        };
        self.notices.release(&old, &trail, Who::Glob(id));
        if missing && turned {
            let waiting_at = path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).to_owned();
            let what = Happening::Missing { waiting_at, errno: Errno::ENOENT };
            self.judge.source(SourceEvent { path: &path, tags: &[tag], what });
        }
        found.sort();
        for path in found {
            let place = self.place(&path, start);
            self.want(place, tag, Some(id));
        }
    }

    /// Finds what fits `steps` below `at`, watching every directory that decides it.
    fn expand(
        &mut self,
        mut at: PathBuf,
        steps: &[Step],
        who: Who,
        trail: &mut Trail,
        refused: &mut Option<Errno>,
        found: &mut Vec<PathBuf>,
    ) {
        let mut left = steps;
        while let [Step::Name(name), rest @ ..] = left {
            at.push(name);
            left = rest;
        }
        let [Step::Fits(pattern), rest @ ..] = left else {
            // Literal to the end: the place watches the way itself, but only once it is there.
            if self.notices.walk(&at, who, trail, refused).is_ok() && !at.is_dir() {
                found.push(at);
            }
            return;
        };
        let walked = self.notices.walk(&at, who, trail, refused);
        if walked.is_err() {
            return;
        }
        if let Err(errno) = self.notices.want(&at, Interest::Fits(Pattern::clone(pattern)), who, trail) {
            refused.get_or_insert(errno);
        }
        for entry in at.read_dir().into_iter().flatten().flatten() {
            if !fits(pattern, &entry.file_name()) {
                continue;
            }
            let path = entry.path();
            if rest.is_empty() {
                if !path.is_dir() {
                    found.push(path);
                }
            } else if path.is_dir() {
                self.expand(path, rest, who, trail, refused, found);
            }
        }
    }

    fn look_at_place(&mut self, id: u32) {
        let Some(place) = self.places.get(&id) else { return };
        let path = place.path.clone();
        let leads = path.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
        if place.current && leads != place.current().map(Mark::identity) {
            // What is held is read first: the better we know what it was, the surer we are what its siblings are.
            self.turn(id, TURN);
        }
        let Some(place) = self.places.get_mut(&id) else { return };
        let (mut trail, mut refused) = (Trail::new(), None);
        let walked = self.notices.walk(&path, Who::Place(id), &mut trail, &mut refused);
        let old = std::mem::replace(&mut place.trail, trail.clone());
        self.notices.release(&old, &trail, Who::Place(id));
        let fresh = std::mem::replace(&mut place.fresh, false);
        let before = place.polled;
        place.polled = refused.map(Polled::Refused);
        match walked {
            Ok(()) => match path.metadata() {
                Ok(meta) if place.current().is_some_and(|mark| mark.identity() == (meta.dev(), meta.ino())) => {
                    place.since = SystemTime::now();
                }
                Ok(meta) if meta.is_dir() => self.leads_nowhere(id, SourceState::Unreadable(Errno::EISDIR), Errno::EISDIR, fresh),
                _ => match open(&path).and_then(|file| file.metadata().map(|meta| (file, meta))) {
                    Ok((file, meta)) => self.leads_to(id, file, &meta, fresh),
                    Err(error) => {
                        let errno = errno(&error);
                        if matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) {
                            place.polled.get_or_insert(Polled::Refused(errno));
                        }
                        if errno == Errno::ENOENT {
                            // Gone since the walk; that was told, and the next look will say where to wait.
                            let dir = path.parent().unwrap_or(Path::new("/")).to_owned();
                            self.leads_nowhere(id, SourceState::Waiting(dir), errno, fresh);
                        } else {
                            self.leads_nowhere(id, SourceState::Unreadable(errno), errno, fresh);
                        }
                    }
                },
            },
            Err((at, errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP))) => {
                self.leads_nowhere(id, SourceState::Waiting(at), errno, fresh);
            }
            Err((_, errno)) => self.leads_nowhere(id, SourceState::Unreadable(errno), errno, fresh),
        }
        let Some(place) = self.places.get_mut(&id) else { return };
        let unwatched = place.held.iter().any(|held| held.watch.is_none() && held.file().is_some());
        if place.polled.is_none() && (unwatched || before == Some(Polled::FileSystem)) {
            place.polled = before;
        }
        let polled = place.polled;
        if polled.is_some() {
            self.polled.insert(Who::Place(id))
        } else {
            self.polled.remove(&Who::Place(id))
        };
        if let Some(why) = polled
            && before.is_none()
        {
            self.tell(id, Happening::Polled(why));
        }
        self.queue(id);
        self.settle(id);
    }

    /// The path leads to nothing that can be read. What it led to before is still held.
    fn leads_nowhere(&mut self, id: u32, state: SourceState, errno: Errno, fresh: bool) {
        let Some(place) = self.places.get_mut(&id) else { return };
        place.current = false;
        let path = place.path.clone();
        if let Some(saved) = self.saved.remove(&path) {
            self.trace(id, &saved.marks, None);
        }
        let Some(place) = self.places.get_mut(&id) else { return };
        place.held.iter_mut().for_each(|held| held.ready = true);
        if !place.held.is_empty() {
            self.leaving.insert(id);
        } else if place.found() {
            return;
        }
        if fresh {
            // What appears later is read from its beginning, and there is nothing to catch up on.
            place.start = Start::FromBeginning;
        }
        if std::mem::replace(&mut place.state, state.clone()) == state && !fresh {
            return;
        }
        place.since = SystemTime::now();
        match state {
            SourceState::Waiting(waiting_at) => self.tell(id, Happening::Missing { waiting_at, errno }),
            _ => self.tell(id, Happening::Unreadable(errno)),
        }
    }

    /// The path leads to a file that it did not lead to before.
    fn leads_to(&mut self, id: u32, file: File, meta: &Metadata, fresh: bool) {
        let identity = (meta.dev(), meta.ino());
        let (mut held, mut mark) = match Held::new(file, meta) {
            Ok(new) => new,
            Err(errno) => return self.leads_nowhere(id, SourceState::Unreadable(errno), errno, fresh),
        };
        if self.shared(id, identity) {
            return;
        }
        let Some(place) = self.places.get_mut(&id) else { return };
        let was = (place.current, std::mem::replace(&mut place.state, SourceState::Following));
        if let Some(index) = place.index(identity) {
            // It led there before, and we still hold it.
            let (old, mark) = (place.held.remove(index), place.position.marks.remove(index));
            place.held.push(old);
            place.position.marks.push(mark);
            place.current = true;
            place.held.iter_mut().for_each(|held| held.ready = true);
        } else {
            let path = place.path.clone();
            let saved = self.saved.remove(&path);
            let born = meta.created().ok();
            let Some(place) = self.places.get_mut(&id) else { return };
            let before: Vec<Mark> = match saved {
                Some(position) => position.marks,
                None => place.position.marks.last().copied().into_iter().collect(),
            };
            let new = before.is_empty() || !place.held.is_empty();
            // Lines in a file that was born while we watched are new; in one that was moved here they may be of any age.
            let since = place.since;
            let alive = !fresh && born.is_some_and(|born| born + TICK >= since);
            if !alive {
                held.until = meta.len();
            }
            if before.is_empty() && fresh && place.start == Start::End {
                if let Err(error) = held.skip_to_end(&mut mark) {
                    self.tell(id, Happening::ReadFailed(errno(&error)));
                }
                held.until = 0;
            } else if let Some(position) = self.elsewhere(identity, &held).filter(|_| new && before.is_empty()) {
                // Another path's reader stopped in this file before it was renamed.
                if held.go_on(&mut mark, &position).is_err() {
                    held.begin_again(&mut mark);
                }
            } else if !before.is_empty()
                && let Some(found) = self.trace(id, &before, Some((identity, &held)))
                && held.go_on(&mut mark, &found).is_err()
            {
                held.begin_again(&mut mark);
            }
            held.first = mark.offset == 0 && (!fresh || !before.is_empty());
            self.attach(id, held, mark, &path, None);
            if let Some(place) = self.places.get_mut(&id) {
                place.current = true;
            }
        }
        if let Some(place) = self.places.get_mut(&id) {
            place.since = SystemTime::now();
        }
        self.tell(id, if was.0 { Happening::Rotated } else { Happening::Appeared });
    }

    /// Where another path's reader of an earlier run stopped in this inode.
    fn elsewhere(&self, identity: Identity, held: &Held) -> Option<Mark> {
        let file = held.file()?;
        let marks = self.saved.values().flat_map(|position| &position.marks);
        marks.copied().find(|mark| mark.identity() == identity && mark.offset > 0 && mark.is_of(file).unwrap_or(false))
    }

    /// Whether the inode is followed through another path for the same tags; then this one steps back. If that path no longer
    /// leads to it, this one takes it over instead, where it is.
    fn shared(&mut self, id: u32, identity: Identity) -> bool {
        let Some(other) = self.holders.get(&identity).copied().filter(|other| *other != id) else { return false };
        let (Some(theirs), Some(ours)) = (self.places.get(&other), self.places.get(&id)) else { return false };
        if !ours.tags.iter().all(|tag| theirs.tags.contains(tag)) {
            return false;
        }
        let still = theirs.path.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == identity);
        if still {
            let there = SourceState::SameAs(theirs.path.clone());
            let Some(ours) = self.places.get_mut(&id) else { return true };
            ours.current = false;
            ours.state = there;
            return true;
        }
        if theirs.tags != ours.tags {
            return false;
        }
        let Some(theirs) = self.places.get_mut(&other) else { return false };
        let Some(index) = theirs.index(identity) else { return false };
        if index + 1 == theirs.held.len() {
            theirs.current = false;
        }
        let (mut held, mark) = (theirs.held.remove(index), theirs.position.marks.remove(index));
        if let Some(watch) = held.watch.take() {
            self.notices.release_data(watch, other);
        }
        self.holders.remove(&identity);
        self.look.insert(Who::Place(other));
        let Some(ours) = self.places.get_mut(&id) else { return true };
        let was = std::mem::replace(&mut ours.current, true);
        ours.state = SourceState::Following;
        let path = ours.path.clone();
        held.ready = true;
        self.attach(id, held, mark, &path, None);
        self.tell(id, if was { Happening::Rotated } else { Happening::Appeared });
        true
    }

    /// Finds what became of the files that `before` marks, holds what is to be read of them and of files that came and went
    /// after them, oldest first. Returns where we were in what the path leads to now, if it is one of them.
    fn trace(&mut self, id: u32, before: &[Mark], now: Option<(Identity, &Held)>) -> Option<Mark> {
        let place = self.places.get(&id)?;
        let path = place.path.clone();
        // Of a file of which nothing was read the inode number alone is known, and that may be another file's by now. Nothing
        // is lost without it: such a file is newer than those of which something was read.
        // Whatever was rotated away after the youngest of them was written to after it was last read.
        let read = before.iter().rfind(|old| old.offset > 0).map(|old| old.modified);
        let seen = read.or_else(|| before.iter().map(|old| old.modified).min()).unwrap_or(i64::MAX);
        let before: Vec<Mark> = before.iter().filter(|old| old.offset > 0 || self.holds(id, old)).copied().collect();
        let before = &before[..];
        let held_now = now.map(|(_, held)| held);
        let file = now.and_then(|(_, held)| held.file());
        let now = now.map(|(identity, _)| identity);
        // What the path led to a moment ago may stand among its siblings by now.
        let ours = |sibling: &Sibling| now != Some(sibling.identity()) && !self.is_place(&sibling.path, id);
        let beside = now.map_or_else(|| siblings(&path), |now| older(&path, now));
        let beside: Vec<Sibling> = beside.into_iter().filter(ours).collect();
        // What is held is looked at after the listing: what was written to it and copied away by then is known.
        let mut texts = self.places.get(&id)?.known();
        texts.add(held_now.map(Held::head));
        // For each mark, which of `beside` it is; `beside.len()` is what the path leads to now.
        let last = beside.len();
        let mut fate: Vec<Option<usize>> = vec![None; before.len()];
        for (fate, old) in fate.iter_mut().zip(before) {
            *fate = beside.iter().position(|s| s.identity() == old.identity() && (self.holds(id, old) || s.continues(old)));
            if now == Some(old.identity()) && file.is_some_and(|file| old.is_of(file).unwrap_or(false)) {
                *fate = Some(last);
            }
        }
        for index in 0..before.len() {
            let old = &before[index];
            if fate[index].is_none() && old.offset > 0 && !self.holds(id, old) {
                let free = |at: &usize| !fate.contains(&Some(*at));
                let plain = (0..last).filter(free).find(|at| !beside[*at].gz && beside[*at].continues(old));
                let found = plain.or_else(|| {
                    let packed =
                        (0..last).filter(free).filter(|at| beside[*at].gz && modified(&beside[*at].meta) >= old.modified);
                    packed.into_iter().find(|at| beside[*at].continues(old))
                });
                let copied = || free(&last) && file.is_some_and(|file| old.is_of(file).unwrap_or(false));
                fate[index] = found.or_else(|| copied().then_some(last));
            }
        }
        // The same inode with another text, and no copy of the old: power was lost, somebody edited it, or it is being truncated
        // right now. The first read notices and decides.
        let same = before.iter().rposition(|old| old.offset > 0).filter(|at| now == Some(before[*at].identity()));
        if let Some(same) = same
            && fate[same].is_none()
            && !fate.contains(&Some(last))
        {
            fate[same] = Some(last);
        }
        let newest = fate.iter().zip(before).filter_map(|(fate, old)| fate.map(|at| (at, old))).max_by_key(|(at, _)| *at);
        for (at, sibling) in beside.iter().enumerate() {
            let known = fate.iter().position(|fate| *fate == Some(at)).map(|index| before[index]);
            let unseen = match newest {
                Some((newest, _)) if newest == last => false,
                Some((newest, old)) => at != newest && modified(&sibling.meta) >= seen && sibling.newer(&beside[newest], old),
                None => modified(&sibling.meta) >= seen,
            };
            if known.is_some() || (unseen && !self.holders.contains_key(&sibling.identity()) && !texts.has(sibling)) {
                self.hold_sibling(id, sibling, known, None);
            }
        }
        fate.iter().position(|fate| *fate == Some(last)).map(|index| before[index])
    }

    fn is_place(&self, path: &Path, but: u32) -> bool {
        let tags = self.places.get(&but).map(|place| &place.tags);
        self.by_path.get(path).is_some_and(|id| *id != but && self.places.get(id).map(|place| &place.tags) == tags)
    }

    /// Whether the place holds the inode of this mark open.
    fn holds(&self, id: u32, mark: &Mark) -> bool {
        self.places.get(&id).is_some_and(|place| place.index(mark.identity()).is_some())
    }

    /// Holds a rotated file, from where `known` says or from its beginning, before what is at `index` or as the newest.
    /// Returns how many files that made held.
    fn hold_sibling(&mut self, id: u32, sibling: &Sibling, known: Option<Mark>, index: Option<usize>) -> usize {
        if self.holders.contains_key(&sibling.identity()) {
            return 0;
        }
        // Opened again through the descriptor, for the decoder reads with the file offset.
        let again = format!("/proc/self/fd/{}", sibling.file.as_raw_fd());
        let file = if sibling.gz { open(Path::new(&again)).or_else(|_| open(&sibling.path)) } else { sibling.file.try_clone() };
        let Ok(file) = file else { return 0 };
        let Ok(meta) = file.metadata() else { return 0 };
        if (meta.dev(), meta.ino()) != sibling.identity() {
            return 0;
        }
        let new = if sibling.gz { Ok(Held::gz(file, &meta)) } else { Held::new(file, &meta) };
        let Ok((mut held, mut mark)) = new else { return 0 };
        held.sibling = true;
        if !sibling.gz {
            held.until = meta.len();
        }
        if let Some(known) = known
            && held.go_on(&mut mark, &known).is_err()
        {
            return 0;
        }
        self.attach(id, held, mark, &sibling.path, index);
        1
    }

    /// Follows one more file on behalf of a place: as the newest, or before what is at `index`.
    fn attach(&mut self, id: u32, mut held: Held, mark: Mark, path: &Path, index: Option<usize>) {
        let Some(place) = self.places.get_mut(&id) else { return };
        if let Some(file) = held.file() {
            if fstatfs(file).is_ok_and(|fs| blind(fs.filesystem_type())) {
                place.polled = Some(Polled::FileSystem);
            }
            match self.notices.want_data(file, path, id) {
                Ok(watch) => held.watch = Some(watch),
                Err(errno) => {
                    place.polled.get_or_insert(Polled::Refused(errno));
                }
            }
            if place.polled.is_some() {
                self.polled.insert(Who::Place(id));
            }
        }
        held.ready = true;
        self.holders.entry(mark.identity()).or_insert(id);
        let index = index.unwrap_or(place.held.len());
        place.held.insert(index, held);
        place.position.marks.insert(index, mark);
        self.queue(id);
    }

    /// Lets go of a file.
    fn detach(&mut self, id: u32, index: usize) {
        let Some(place) = self.places.get_mut(&id) else { return };
        if index + 1 == place.held.len() {
            place.current = false;
        }
        let (held, mark) = (place.held.remove(index), place.position.marks.remove(index));
        if let Some(watch) = held.watch {
            self.notices.release_data(watch, id);
        }
        place.done.push_back(mark);
        if place.done.len() > DONE {
            place.done.pop_front();
        }
        if self.holders.get(&mark.identity()) == Some(&id) {
            self.holders.remove(&mark.identity());
            let waiting = self.places.iter().filter(|(_, place)| matches!(place.state, SourceState::SameAs(_)));
            self.look.extend(waiting.map(|(id, _)| Who::Place(*id)));
        }
    }

    // Reading.

    fn serve(&mut self) {
        for _ in 0..self.live.len() {
            if let Some(id) = self.live.pop_front() {
                self.turn(id, TURN);
            }
        }
        if let Some(id) = self.behind.pop_front() {
            self.turn(id, CATCH_UP_TURN);
        }
        let rest = self.live.is_empty() && self.behind.is_empty();
        if self.gathered > if rest { 0 } else { GATHERED } {
            self.gathered = 0;
            self.judge.idle();
        }
    }

    /// One turn of a place: its files in order, oldest first, until all are read or the share is used up.
    fn turn(&mut self, id: u32, mut share: usize) {
        let Some(place) = self.places.get_mut(&id) else { return };
        if std::mem::take(&mut place.queued) {
            // It may be called without having been taken from a queue.
            self.live.retain(|queued| *queued != id);
            self.behind.retain(|queued| *queued != id);
        }
        let mut index = 0;
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
                }
                Turn::First(_)
                    if self.places.get(&id).is_some_and(|place| index < place.rotated() && place.copied_over(index)) =>
                {
                    self.detach(id, index);
                }
                Turn::First(bytes) => {
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
        let (Some(held), Some(mark)) = (place.held.get_mut(index), place.position.marks.get_mut(index)) else { return index };
        let old = *mark;
        let lost = held.size.saturating_sub(old.offset);
        if old.head_len > 0 && held.file().is_some_and(|file| old.head_is_of(file).unwrap_or(false)) {
            // Its beginning is still there: shortened at the end or edited, not written anew.
            if held.seek_line(mark, old.offset).is_err() {
                held.begin_again(mark);
            }
            held.ready = true;
            self.tell(id, Happening::Truncated { lost: 0 });
            return index;
        }
        held.begin_again(mark);
        // copytruncate: the copy holds what was not read yet, and a second one may have been made since.
        let path = place.path.clone();
        let beside: Vec<Sibling> = older(&path, old.identity())
            .into_iter()
            .filter(|sibling| !self.holders.contains_key(&sibling.identity()) && !self.is_place(&sibling.path, id))
            .collect();
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
        }
        self.tell(id, Happening::Truncated { lost });
        index
    }

    /// A file is read for the first time since it was empty, and the buffer holds its beginning. Whatever was written to it and
    /// copied away before is nowhere known but among its siblings: those are held, to be read first. A copy that begins as the
    /// buffer does is one of what we are about to read.
    fn came_before(&mut self, id: u32, index: usize, bytes: usize) -> bool {
        let Some(place) = self.places.get(&id) else { return false };
        let Some(held) = place.held.get(index) else { return false };
        let (path, since) = (place.path.clone(), held.since);
        let beside = older(&path, place.position.marks[index].identity());
        let known = place.known();
        let mut at = index;
        for sibling in beside {
            let fresh = modified(&sibling.meta) >= since;
            if fresh
                && !self.holders.contains_key(&sibling.identity())
                && !self.is_place(&sibling.path, id)
                && !sibling.begins_with(&self.buffer[..bytes.min(HEAD)])
                && !known.has(&sibling)
            {
                at += self.hold_sibling(id, &sibling, None, Some(at));
            }
        }
        at > index
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
    fn settle(&mut self, id: u32) {
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

/// The siblings of a path that are older than the file we follow, which may itself be among them by now.
fn older(path: &Path, than: Identity) -> Vec<Sibling> {
    let mut beside = siblings(path);
    if let Some(at) = beside.iter().position(|sibling| sibling.identity() == than) {
        beside.truncate(at);
    }
    beside
}

/// Opens for reading without waiting for a FIFO's writer and without making a terminal ours.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

/// File systems that others change without inotify knowing.
fn blind(kind: FsType) -> bool {
    // CIFS, SMB2, 9P and Ceph have no name in libc; linux/magic.h and fs/smb have them.
    let unnamed = [0xff53_4d42_u32, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400].map(|magic| FsType(magic as _));
    let named = [NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, FUSE_SUPER_MAGIC, AFS_SUPER_MAGIC, CODA_SUPER_MAGIC, NCP_SUPER_MAGIC];
    named.contains(&kind) || unnamed.contains(&kind)
}
