//! Looking where paths lead: what to hold for a path now, and what became of the files that it led to before.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use glob::Pattern;
use nix::errno::Errno;
use nix::sys::statfs::fstatfs;

use super::held::Held;
use super::notices::{Interest, Trail, Who, blind, errno};
use super::pattern::{Step, fits};
use super::place::Place;
use super::position::{Identity, Mark, modified};
use super::reader::{Reader, TICK, TURN, older, open};
use super::siblings::{Sibling, siblings};
use super::{Happening, Polled, SourceEvent, SourceState, Start};

impl Reader<'_> {
    pub(super) fn look_at_glob(&mut self, id: u32) {
        let Some(glob) = self.globs.get(&id) else { return };
        let (tag, steps, start, path) = (glob.tag, glob.sought.steps.clone(), glob.start, glob.sought.path.clone());
        let (mut trail, mut polled, mut found) = (Trail::new(), None, Vec::new());
        self.expand(PathBuf::from("/"), &steps, Who::Glob(id), &mut trail, &mut polled, &mut found);
        let Some(glob) = self.globs.get_mut(&id) else { return };
        let old = std::mem::replace(&mut glob.trail, trail.clone());
        glob.polled = polled;
        let missing = found.is_empty();
        let turned = missing != std::mem::replace(&mut glob.missing, missing);
        if glob.polled.is_some() {
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
        if !missing && turned {
            self.judge.source(SourceEvent { path: &path, tags: &[tag], what: Happening::Matched });
        }
        found.sort();
        for path in found {
            let place = self.place(&path, start);
            self.want(place, tag, Some(id));
        }
    }

    /// Finds what fits `steps` below `at`, watching every directory that decides it.
    pub(super) fn expand(
        &mut self,
        mut at: PathBuf,
        steps: &[Step],
        who: Who,
        trail: &mut Trail,
        polled: &mut Option<Polled>,
        found: &mut Vec<PathBuf>,
    ) {
        let mut left = steps;
        while let [Step::Name(name), rest @ ..] = left {
            at.push(name);
            left = rest;
        }
        let [Step::Fits(pattern), rest @ ..] = left else {
            // Literal to the end: the place watches the way itself, but only once it is there.
            if self.notices.walk(&at, who, trail, polled).is_ok() && !at.is_dir() {
                found.push(at);
            }
            return;
        };
        let walked = self.notices.walk(&at, who, trail, polled);
        if walked.is_err() {
            return;
        }
        self.notices.want(&at, Interest::Fits(Pattern::clone(pattern)), who, trail, polled);
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
                self.expand(path, rest, who, trail, polled, found);
            }
        }
    }

    pub(super) fn look_at_place(&mut self, id: u32) {
        let Some(place) = self.places.get(&id) else { return };
        let path = place.path.clone();
        let leads = path.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
        if place.current && leads != place.current().map(Mark::identity) {
            // What is held is read first: the better we know what it was, the surer we are what its siblings are. Whether there is
            // something to read may not have been told yet, where it is polled.
            self.stir(id);
            self.turn(id, TURN);
        }
        let Some(place) = self.places.get_mut(&id) else { return };
        let (mut trail, mut why) = (Trail::new(), None);
        let walked = self.notices.walk(&path, Who::Place(id), &mut trail, &mut why);
        let old = std::mem::replace(&mut place.trail, trail.clone());
        self.notices.release(&old, &trail, Who::Place(id));
        let fresh = std::mem::replace(&mut place.fresh, false);
        let before = place.polled;
        place.polled = why;
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
        self.tell_taken_up(id);
        self.queue(id);
        self.settle(id);
    }

    /// What is held for the place changed: where a later run begins is told before anything of it is handed out.
    fn tell_taken_up(&mut self, id: u32) {
        if let Some(place) = self.places.get_mut(&id)
            && std::mem::take(&mut place.untold)
        {
            self.judge.taken_up(&place.path, &place.tags, &place.position);
        }
    }

    /// The path leads to nothing that can be read. What it led to before is still held.
    pub(super) fn leads_nowhere(&mut self, id: u32, state: SourceState, errno: Errno, fresh: bool) {
        let Some(place) = self.places.get_mut(&id) else { return };
        place.current = false;
        let path = place.path.clone();
        if let Some(saved) = self.saved.remove(&path) {
            self.trace(id, &saved.marks, None);
            // If nothing of it is here, it may be about to come with the path: a file system that is mounted late.
            if self.places.get(&id).is_some_and(|place| place.held.is_empty()) {
                self.saved.insert(path, saved);
            } else {
                self.know(id, saved.done);
            }
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
    pub(super) fn leads_to(&mut self, id: u32, file: File, meta: &Metadata, fresh: bool) {
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
            let (before, done): (Vec<Mark>, _) = match saved {
                Some(position) => (position.marks, position.done),
                None => (place.position.last().into_iter().collect(), VecDeque::new()),
            };
            self.know(id, done);
            let Some(place) = self.places.get_mut(&id) else { return };
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
                && let Some(found) = self.trace(id, &before, Some((&mark, &held)))
                && held.go_on(&mut mark, &found).is_err()
            {
                held.begin_again(&mut mark);
            }
            if before.is_empty() && alive {
                self.hold_passed(id, &path, identity, since);
            }
            let just_now = meta.modified().is_ok_and(|at| at.elapsed().unwrap_or_default() < Duration::from_secs(1));
            if before.is_empty() && fresh && (meta.len() == 0 || just_now) {
                // What was rotated away before we came is not ours, though its times may be those of the file we follow.
                let stamped = |sibling: &Sibling| modified(&sibling.meta) >= mark.modified;
                let done = siblings(&path).iter().filter(|s| stamped(s)).filter_map(Sibling::whole).collect();
                self.know(id, done);
            }
            held.first = mark.offset == 0;
            // A copy is younger than what it was made of; and what was copied away before we came is not ours.
            held.copies_from = if fresh && before.is_empty() { held.since } else { mark.birth };
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

    /// These texts are done with.
    fn know(&mut self, id: u32, done: VecDeque<Mark>) {
        if let Some(place) = self.places.get_mut(&id) {
            done.into_iter().for_each(|mark| place.position.finish(mark));
        }
    }

    /// Nothing was at the path, and something is now: a fast writer may have made, filled and rotated away others before we
    /// looked. What was born beside the path while we waited is read first.
    fn hold_passed(&mut self, id: u32, path: &Path, leads: Identity, since: SystemTime) {
        let since = since.checked_sub(TICK).and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok());
        let since = since.map_or(i64::MAX, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
        let Some(known) = self.places.get(&id).map(Place::known) else { return };
        for sibling in siblings(path) {
            // An older one that was compressed meanwhile was born meanwhile, too, but bears the time of its text.
            let came = sibling.beginning().birth >= since && modified(&sibling.meta) >= since;
            if came && sibling.identity() != leads && !self.is_place(&sibling.path, id) && !known.has(&sibling) {
                self.hold_sibling(id, &sibling, None, None);
            }
        }
    }

    /// Where another path's reader of an earlier run stopped in this inode.
    pub(super) fn elsewhere(&self, identity: Identity, held: &Held) -> Option<Mark> {
        let file = held.file()?;
        let marks = self.saved.values().flat_map(|position| &position.marks);
        marks.copied().find(|mark| mark.identity() == identity && mark.offset > 0 && mark.is_of(file).unwrap_or(false))
    }

    /// Whether the inode is followed through another path for the same tags; then this one steps back. If that path no longer
    /// leads to it, this one takes it over instead, where it is.
    pub(super) fn shared(&mut self, id: u32, identity: Identity) -> bool {
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
    pub(super) fn trace(&mut self, id: u32, before: &[Mark], now: Option<(&Mark, &Held)>) -> Option<Mark> {
        let place = self.places.get_mut(&id)?;
        let (path, later) = (place.path.clone(), place.later.take());
        // Of a file of which nothing was read and whose birth is unknown there is the inode number alone, and that may be
        // another file's by now. Nothing is lost without it: such a file is newer than those of which something was read.
        // Whatever was rotated away after the youngest of them was written to after it was last read.
        let read = before.iter().rfind(|old| old.offset > 0).map(|old| old.modified);
        let seen = read.or_else(|| before.iter().map(|old| old.modified).min()).unwrap_or(i64::MAX);
        let seen = later.map_or(seen, |later| seen.min(later));
        let telling = |old: &&Mark| old.offset > 0 || old.birth != 0 || self.holds(id, old);
        let before: Vec<Mark> = before.iter().filter(telling).copied().collect();
        let before = &before[..];
        let held_now = now.map(|(_, held)| held);
        let file = now.and_then(|(_, held)| held.file());
        let now = now.map(|(mark, _)| mark);
        let leads = now.map(Mark::identity);
        // What the path led to a moment ago may stand among its siblings by now.
        let ours = |sibling: &Sibling| leads != Some(sibling.identity()) && !self.is_place(&sibling.path, id);
        let beside =
            leads.map_or_else(|| siblings(&path), |leads| older(&path, leads, &held_now.map(Held::head).unwrap_or_default()));
        let beside: Vec<Sibling> = beside.into_iter().filter(ours).collect();
        // What is held is looked at after the listing: what was written to it and copied away by then is known.
        let mut texts = self.places.get(&id)?.known();
        texts.add(held_now.map(Held::head));
        // For each mark, which of `beside` it is; `beside.len()` is what the path leads to now.
        let last = beside.len();
        let mut fate: Vec<Option<usize>> = vec![None; before.len()];
        for (fate, old) in fate.iter_mut().zip(before) {
            // Of what nothing was read the birth decides, else what was read.
            let is = |found: &Mark, continues: &dyn Fn() -> bool| match old.offset {
                0 => old.born_as(found),
                _ => !old.born_apart(found) && continues(),
            };
            *fate = beside.iter().position(|s| {
                s.identity() == old.identity() && (self.holds(id, old) || is(&s.beginning(), &|| s.continues(old)))
            });
            if now.is_some_and(|now| is(now, &|| file.is_some_and(|file| old.is_of(file).unwrap_or(false)))) {
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
        let same = before.iter().rposition(|old| old.offset > 0);
        let same = same.filter(|at| now.is_some_and(|now| !now.born_apart(&before[*at])));
        if let Some(same) = same
            && fate[same].is_none()
            && !fate.contains(&Some(last))
        {
            fate[same] = Some(last);
        }
        // Truncated, written anew and rotated away, or a copy that the next one overwrote: nothing was read of what it holds now.
        let mut anew = vec![false; last];
        for index in 0..before.len() {
            let old = &before[index];
            if fate[index].is_none() && old.offset > 0 && !self.holds(id, old) {
                let free = |at: &usize| !fate.contains(&Some(*at));
                let is = |at: &usize| free(at) && beside[*at].beginning().born_as(old) && !texts.has(&beside[*at]);
                if let Some(at) = (0..last).find(is) {
                    (fate[index], anew[at]) = (Some(at), true);
                }
            }
        }
        // Of the files of which nothing was read, one may be compressed or copied by now; then what is beside it may be it, and
        // only what was read tells what is older.
        let blank = |old: &Mark| old.offset == 0 && !self.holds(id, old);
        let from = before.iter().rposition(|old| !blank(old)).map_or(0, |at| at + 1);
        let all = fate[from..].iter().all(Option::is_some);
        let found = fate.iter().zip(before).filter(|(_, old)| all || !blank(old));
        // Before what was written anew, copies of texts in between may have been made that nobody read.
        let stands = |at: &usize| *at == last || !anew[*at];
        let newest = found.filter_map(|(fate, old)| fate.filter(stands).map(|at| (at, old))).max_by_key(|(at, _)| *at);
        // What was written to it since may have been copied away and truncated, and nothing was read of it by which a copy
        // could be known: but a copy is younger than it, and what is older was read before it.
        let unread = newest.map(|(_, old)| old).filter(|old| blank(old));
        let copied = |sibling: &Sibling| {
            let born = |old: &Mark| sibling.beginning().birth >= old.birth || texts.were_in(sibling);
            unread.is_some_and(|old| modified(&sibling.meta) >= old.modified && born(old))
        };
        for (at, sibling) in beside.iter().enumerate() {
            let known = fate.iter().position(|fate| *fate == Some(at) && !anew[at]).map(|index| before[index]);
            let unseen = match newest {
                Some((newest, _)) if newest == last => copied(sibling),
                Some((newest, old)) => {
                    let newer = modified(&sibling.meta) >= seen && sibling.newer(&beside[newest], old);
                    at != newest && (newer || copied(sibling))
                }
                None => modified(&sibling.meta) >= seen,
            };
            if known.is_some() || anew[at] || (unseen && !self.holders.contains_key(&sibling.identity()) && !texts.has(sibling)) {
                self.hold_sibling(id, sibling, known, None);
            }
        }
        fate.iter().position(|fate| *fate == Some(last)).map(|index| before[index])
    }

    pub(super) fn is_place(&self, path: &Path, but: u32) -> bool {
        let tags = self.places.get(&but).map(|place| &place.tags);
        self.by_path.get(path).is_some_and(|id| *id != but && self.places.get(id).map(|place| &place.tags) == tags)
    }

    /// Whether the place holds the inode of this mark open.
    pub(super) fn holds(&self, id: u32, mark: &Mark) -> bool {
        self.places.get(&id).is_some_and(|place| place.index(mark.identity()).is_some())
    }

    /// Holds a rotated file, from where `known` says or from its beginning, before what is at `index` or as the newest.
    /// Returns how many files that made held.
    pub(super) fn hold_sibling(&mut self, id: u32, sibling: &Sibling, known: Option<Mark>, index: Option<usize>) -> usize {
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
        held.sibling = known.is_none_or(|known| known.copy || known.identity() != mark.identity());
        mark.copy = held.sibling;
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
    pub(super) fn attach(&mut self, id: u32, mut held: Held, mark: Mark, path: &Path, index: Option<usize>) {
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
        place.untold = true;
        self.queue(id);
    }

    /// Lets go of a file.
    pub(super) fn detach(&mut self, id: u32, index: usize) {
        let Some(place) = self.places.get_mut(&id) else { return };
        if index + 1 == place.held.len() {
            place.current = false;
        }
        let (held, mark) = (place.held.remove(index), place.position.marks.remove(index));
        if let Some(watch) = held.watch {
            self.notices.release_data(watch, id);
        }
        place.position.finish(mark);
        if self.holders.get(&mark.identity()) == Some(&id) {
            self.holders.remove(&mark.identity());
            let waiting = self.places.iter().filter(|(_, place)| matches!(place.state, SourceState::SameAs(_)));
            self.look.extend(waiting.map(|(id, _)| Who::Place(*id)));
        }
    }
}
