//! The thread that reads one journal: a child `journalctl --follow`, started by the [spawner](super::spawner), whose entries are matched in
//! this process.
//!
//! Jails with the same `journalmatch` form a group with one scanner; each entry is judged by the groups it concerns, in chunks, as the
//! lines of a file are. Where reading stands, what the groups' filters remember and the failures found go to the engine in one
//! batch, so a save holds them together. Which jails read it [another](super::journals) decides.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Sender;

use super::clock;
use super::core::{Batch, Event, Found, JailId, Resume, Share, SourceReport, SourceState};
use super::spawner::{Running, Spawner};
use super::{reader, recall};
use crate::filter::{self, Filter, Scanner, When};
use crate::jail::{Failure, Place};
use crate::terms::journal::{Journal, Match};
use crate::terms::{Span, Time, escape, plain};
use crate::watch::journal::{Entry, Export, Position, Terms};

/// Lines gathered over all groups before they are judged though more is at hand.
const CHUNK: usize = 256 * 1024;
/// Read from the pipe at once.
const READ: usize = 256 * 1024;
/// Silence after which everything that was there is taken as read.
const SILENCE: Duration = Duration::from_millis(200);
/// While catching up, so long is waited for the pipe to fill before it is read again.
const FILL: Duration = Duration::from_millis(2);
/// After entries that concern nobody the position is told this often at most.
const IDLE_SAVE: Duration = Duration::from_secs(60);
/// The same while catching up, so that a kill costs little.
const SAVE: Duration = Duration::from_secs(2);
/// Pauses after a child that ended: doubled from one to the other.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often it is looked whether a journal is there: at first, and after a while.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How often it is looked whether journald has moved from `/run` to `/var`.
const ROOTS: Duration = Duration::from_secs(30);
/// Fields a line is made of.
pub(super) const FIELDS: &str =
    "MESSAGE,_HOSTNAME,SYSLOG_IDENTIFIER,_COMM,SYSLOG_PID,_PID,_SOURCE_REALTIME_TIMESTAMP,_SOURCE_MONOTONIC_TIMESTAMP";
/// Where journald keeps this machine's journals.
const ROOT: [&str; 2] = ["/var/log/journal", "/run/log/journal"];

/// Where a journal's reader stands, and what its groups remember: all that a later run needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The last entry handled.
    pub position: Position,
    /// By match: what its filters remember.
    pub groups: BTreeMap<String, KeptGroup>,
}

/// What one group needs besides the journal's position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeptGroup {
    /// What its filters remember.
    pub scanner: filter::State,
    /// The jails it was for.
    #[serde(default)]
    pub jails: Vec<String>,
    /// It had come farther than the journal's reader, which was set back for a group that joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<Position>,
}

/// What a group shall judge, and for whom.
pub(super) struct GroupWanted {
    pub wanted: Match,
    pub jails: Vec<JailWanted>,
}

pub(super) struct JailWanted {
    pub id: JailId,
    pub name: String,
    pub filter: Arc<Filter>,
    pub findtime: Span,
    pub from: Time,
}

/// The supervisor's hold on a journal's reader.
pub(super) struct Tail {
    shared: Arc<Shared>,
}

struct Shared {
    told: Mutex<Told>,
    /// Told when `done` has come up with `version`.
    taken: Condvar,
    wake: EventFd,
}

#[derive(Default)]
struct Told {
    version: u64,
    /// What is wanted since this version, until the reader takes it.
    groups: Option<Vec<GroupWanted>>,
    jails: Vec<JailId>,
    done: u64,
    stop: bool,
    position: Position,
}

impl Shared {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tail {
    pub fn start(
        journal: Journal,
        place: u16,
        kept: Kept,
        groups: Vec<GroupWanted>,
        spawner: Spawner,
        engine: Sender<Event>,
    ) -> io::Result<Tail> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let told = Told { position: kept.position.clone(), ..Told::default() };
        let shared = Arc::new(Shared { told: Mutex::new(told), taken: Condvar::new(), wake });
        let reader = Reader {
            key: journal.to_string().into(),
            journal,
            place,
            shared: shared.clone(),
            spawner,
            engine,
            groups: Vec::new(),
            position: kept.position,
            asleep: kept.groups,
            lost: false,
            moved: false,
            saved: Instant::now(),
            state: None,
            caught_up: false,
            first: false,
            started: Time(0),
        };
        let tail = Tail { shared };
        tail.tell(groups);
        std::thread::Builder::new().name("journal".to_owned()).spawn(move || reader.run())?;
        Ok(tail)
    }

    fn tell(&self, groups: Vec<GroupWanted>) -> u64 {
        let mut told = self.shared.told();
        told.version += 1;
        told.jails = groups.iter().flat_map(|group| group.jails.iter().map(|jail| jail.id)).collect();
        told.groups = Some(groups);
        let version = told.version;
        drop(told);
        let _ = self.shared.wake.write(1);
        version
    }

    /// Has these groups judged from now on; returns when that is so, with how far reading has come.
    pub fn want(&self, groups: Vec<GroupWanted>) -> Position {
        let version = self.tell(groups);
        let mut told = self.shared.told();
        while told.done < version && !told.stop {
            told = self.shared.taken.wait(told).unwrap_or_else(PoisonError::into_inner);
        }
        told.position.clone()
    }

    pub fn jails(&self) -> Vec<JailId> {
        self.shared.told().jails.clone()
    }

    pub fn position(&self) -> Position {
        self.shared.told().position.clone()
    }

    pub fn stop(&self) {
        self.shared.told().stop = true;
        let _ = self.shared.wake.write(1);
        self.shared.taken.notify_all();
    }
}

/// Jails that want the same entries, and their filters.
struct Group {
    wanted: Match,
    /// As `status` calls it.
    name: Arc<str>,
    scanner: Scanner,
    /// For each filter of the scanner: its jails, how far back they look, and from when on.
    jails: Vec<Vec<(JailId, Span, Time)>>,
    filters: Vec<Arc<Filter>>,
    names: Vec<String>,
    chunk: Vec<u8>,
    times: Vec<(u32, Time)>,
    /// When journald took each line's entry, microseconds since the Unix epoch.
    stamps: Vec<i64>,
    /// Entries up to this one were judged before.
    ahead: Option<Position>,
    /// An earlier run, or an earlier reload, had it: what came since counts by its own time, however old.
    resumed: bool,
    /// Messages cut for their length, and how many of them were told.
    cut: (u64, u64),
}

impl Group {
    fn ids(&self) -> Vec<JailId> {
        let mut ids: Vec<JailId> = self.jails.iter().flatten().map(|(id, ..)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn findtime(&self) -> Span {
        self.jails.iter().flatten().map(|(_, findtime, _)| *findtime).max().unwrap_or_default()
    }
}

/// Why a child is no longer followed.
enum Ended {
    /// The daemon ends, or nobody listens.
    Stop,
    /// Another child is wanted: it asks for more, or from elsewhere.
    Again,
    /// It ended by itself, and complained this.
    Died(String),
}

/// Reads one journal.
struct Reader {
    journal: Journal,
    key: Arc<str>,
    place: u16,
    shared: Arc<Shared>,
    spawner: Spawner,
    engine: Sender<Event>,
    groups: Vec<Group>,
    position: Position,
    /// What an earlier run kept of groups that were not wanted again yet.
    asleep: BTreeMap<String, KeptGroup>,
    /// The cursor is of no use: entries are sought by time.
    lost: bool,
    /// The position is another than the one told last.
    moved: bool,
    saved: Instant,
    state: Option<(SourceState, Option<String>)>,
    caught_up: bool,
    /// The next entry is the first that the child tells.
    first: bool,
    /// When the child was started.
    started: Time,
}

impl Reader {
    fn run(self) {
        let shared = self.shared.clone();
        self.read();
        // Nobody waits for a reader that is gone.
        shared.told().stop = true;
        shared.taken.notify_all();
    }

    fn read(mut self) {
        let mut pause = PAUSES.0;
        let looking = Instant::now();
        loop {
            if self.refresh().is_none() {
                return;
            }
            if self.groups.is_empty() {
                // Nobody wants it at the moment.
                self.wait(None);
                continue;
            }
            if !present(&self.journal) {
                self.report(SourceState::Waiting, Some("no journal is there yet".to_owned()));
                self.wait(Some(if looking.elapsed() < 120 * LOOK.0 { LOOK.0 } else { LOOK.1 }));
                continue;
            }
            let ran = Instant::now();
            let ended = match self.child() {
                Ok(running) => self.follow(&running),
                Err(e) => Ended::Died(plain(&e)),
            };
            match ended {
                Ended::Stop => return,
                Ended::Again => pause = PAUSES.0,
                Ended::Died(why) => {
                    if ran.elapsed() > PAUSES.1 {
                        pause = PAUSES.0;
                    }
                    if why.contains("cursor") && !self.lost {
                        tracing::warn!("{}: {why}; entries are sought by their time", self.key);
                        self.lost = true;
                        continue;
                    }
                    self.report(SourceState::Unreadable, Some(format!("{why}; again in {}", Span::from_secs(pause.as_secs()))));
                    self.wait(Some(pause));
                    pause = PAUSES.1.min(pause * 2);
                }
            }
        }
    }

    /// Waits for news of the supervisor, at most so long.
    fn wait(&self, most: Option<Duration>) {
        let timeout = most.map_or(PollTimeout::NONE, |most| PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX));
        let _ = poll(&mut [PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN)], timeout);
    }

    /// Takes in what the supervisor wants; whether a child that runs must be started anew for it. `None`: the end.
    fn refresh(&mut self) -> Option<bool> {
        let _ = self.shared.wake.read();
        let (groups, version) = {
            let mut told = self.shared.told();
            if told.stop {
                return None;
            }
            (told.groups.take(), told.version)
        };
        let mut again = false;
        if let Some(wanted) = groups {
            self.flush()?;
            again = self.regroup(wanted);
            self.tell_position()?;
        }
        let mut told = self.shared.told();
        told.done = version;
        told.position = self.position.clone();
        self.shared.taken.notify_all();
        Some(again)
    }

    fn regroup(&mut self, wanted: Vec<GroupWanted>) -> bool {
        let now = clock::now().wall;
        let asked: Vec<Match> = self.groups.iter().map(|group| group.wanted.clone()).collect();
        let mut old: Vec<Group> = std::mem::take(&mut self.groups);
        // What a jail was told under another match it is not told again under a new one.
        let asleep = self.asleep.values().flat_map(|group| group.jails.iter());
        let known_jails: HashSet<String> = old.iter().flat_map(|group| group.names.iter()).chain(asleep).cloned().collect();
        let here = Time(self.position.realtime);
        let mut joined = false;
        for group in wanted {
            let names: Vec<String> = group.jails.iter().map(|jail| jail.name.clone()).collect();
            let anew =
                !old.iter().any(|known| known.wanted == group.wanted) && !self.asleep.contains_key(&group.wanted.to_string());
            let (mut filters, mut jails) = (Vec::<Arc<Filter>>::new(), Vec::<Vec<(JailId, Span, Time)>>::new());
            for jail in group.jails {
                let at = filters.iter().position(|known| Arc::ptr_eq(known, &jail.filter)).unwrap_or_else(|| {
                    filters.push(jail.filter.clone());
                    jails.push(Vec::new());
                    filters.len() - 1
                });
                let from = if anew && known_jails.contains(&jail.name) { jail.from.max(here) } else { jail.from };
                jails[at].push((jail.id, jail.findtime, from));
            }
            let known = old.iter().position(|known| known.wanted == group.wanted).map(|at| old.swap_remove(at));
            let group = match known {
                Some(known) => {
                    let same = known.filters.len() == filters.len()
                        && known.filters.iter().zip(&filters).all(|(a, b)| Arc::ptr_eq(a, b));
                    let scanner = if same {
                        known.scanner
                    } else {
                        let mut scanner = Scanner::new(filters.clone());
                        scanner.restore(known.scanner.state());
                        scanner
                    };
                    Group { scanner, filters, jails, names, ..known }
                }
                None => {
                    let name = format!("{}: {}", self.journal, group.wanted);
                    let mut scanner = Scanner::new(filters.clone());
                    let earlier = self.asleep.remove(&group.wanted.to_string());
                    let moved = names.iter().all(|name| known_jails.contains(name));
                    joined |= earlier.is_none() && !moved;
                    let resumed = earlier.is_some() || moved;
                    let earlier = earlier.unwrap_or_default();
                    scanner.restore(earlier.scanner);
                    Group {
                        wanted: group.wanted,
                        name: name.into(),
                        scanner,
                        jails,
                        filters,
                        names,
                        chunk: Vec::new(),
                        times: Vec::new(),
                        stamps: Vec::new(),
                        ahead: earlier.ahead,
                        resumed,
                        cut: (0, 0),
                    }
                }
            };
            self.groups.push(group);
        }
        // What nobody wants any more is forgotten, here and in the state.
        self.asleep.clear();
        for gone in old {
            self.send(Event::Source(SourceReport {
                jails: gone.ids(),
                path: gone.name.clone(),
                state: SourceState::Gone,
                note: None,
                known: false,
            }));
        }
        if joined {
            self.set_back(now);
        }
        self.moved = true;
        self.state = None;
        joined || !asked.iter().eq(self.groups.iter().map(|group| &group.wanted))
    }

    /// Groups joined that nothing is known of: reading goes back for them as far as failures count. The others pass over what
    /// they have judged.
    fn set_back(&mut self, now: Time) {
        let new = |group: &&Group| !group.resumed && group.ahead.is_none();
        let back = self.groups.iter().filter(new).map(Group::findtime).max().unwrap_or_default();
        let since = now - back;
        if self.position == Position::default() || self.position.realtime > since.0 {
            let here = std::mem::replace(&mut self.position, Position::since(since));
            for group in &mut self.groups {
                if group.resumed && group.ahead.is_none() {
                    group.ahead = Some(here.clone());
                }
            }
        }
    }

    fn fields(&self) -> String {
        let mut fields = FIELDS.to_owned();
        let mut own: Vec<&str> = self
            .groups
            .iter()
            .flat_map(|group| group.wanted.alternatives.iter().flatten())
            .map(|term| term.field.as_str())
            .collect();
        own.sort_unstable();
        own.dedup();
        for field in own.into_iter().filter(|own| !FIELDS.split(',').any(|field| field == *own)) {
            fields.push(',');
            fields.push_str(field);
        }
        fields
    }

    /// Starts `journalctl` where reading stands.
    fn child(&mut self) -> io::Result<Running> {
        let mut arguments: Vec<String> =
            ["--follow", "--no-tail", "--quiet", "--no-pager", "--output=export"].map(str::to_owned).into();
        arguments.push(format!("--output-fields={}", self.fields()));
        arguments.extend(self.journal.arguments());
        if self.position.cursor.is_empty() || self.lost {
            // Whole seconds, and one to spare: what was judged already is told apart by where it is.
            arguments.push(format!("--since=@{}", (self.position.realtime / 1_000_000 - 1).max(0)));
            for group in &mut self.groups {
                group.ahead.get_or_insert_with(|| self.position.clone());
            }
        } else {
            arguments.push(format!("--cursor={}", self.position.cursor));
        }
        self.started = clock::now().wall;
        (self.caught_up, self.first) = (false, true);
        self.spawner.run(&arguments)
    }

    /// Judges what a child tells until it ends, or another one is wanted.
    fn follow(&mut self, running: &Running) -> Ended {
        let mut export = Export::new(Terms::of(self.groups.iter().map(|group| &group.wanted)));
        let mut buffer = vec![0; READ];
        let (mut complained, mut complains): (Vec<u8>, bool) = (Vec::new(), true);
        let roots = || ROOT.map(|root| Path::new(root).is_dir());
        let rooted = roots();
        let mut silent = Instant::now();
        self.report(SourceState::CatchingUp, None);
        loop {
            let pending = self.groups.iter().any(|group| !group.chunk.is_empty());
            let timeout = match () {
                () if !self.caught_up => SILENCE,
                () if pending || self.moved => Duration::ZERO,
                () if self.journal == Journal::Own && rooted != [true, true] => ROOTS,
                () => Duration::MAX,
            };
            let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::NONE);
            let fds = [running.out.as_fd(), self.shared.wake.as_fd(), running.err.as_fd()];
            let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let asked = if complains { 3 } else { 2 };
            if poll(&mut polled[..asked], timeout).is_err() {
                continue;
            }
            let ready = polled.map(|one| one.any() == Some(true));
            // Somebody must take what it complains, or it would wait for room. The last of it tells why it ended.
            if complains && ready[2] {
                let read = nix::unistd::read(&running.err, &mut buffer).unwrap_or(0);
                complains = read > 0;
                complained.extend_from_slice(&buffer[read.saturating_sub(1024)..read]);
                complained.drain(..complained.len().saturating_sub(4096));
            }
            if ready[1] {
                match self.refresh() {
                    None => return Ended::Stop,
                    Some(true) => return Ended::Again,
                    Some(false) => {}
                }
                self.report(if self.caught_up { SourceState::Live } else { SourceState::CatchingUp }, None);
            }
            if ready[0] {
                let read = match nix::unistd::read(&running.out, &mut buffer) {
                    Ok(0) => None,
                    Ok(read) => Some(read),
                    Err(nix::errno::Errno::EINTR) => continue,
                    Err(_) => None,
                };
                let Some(read) = read else {
                    if self.flush().is_none() {
                        return Ended::Stop;
                    }
                    complained.extend(running.collect(4096, Duration::from_secs(2)).err);
                    let why = if complained.is_empty() { "nothing said".to_owned() } else { last_line(&complained) };
                    return Ended::Died(format!("journalctl ended: {why}"));
                };
                export.feed(&buffer[..read], |terms, entry| self.take(terms, entry));
                silent = Instant::now();
                let due = self.gathered() >= CHUNK || self.saved.elapsed() >= SAVE;
                if due && self.flush().is_none() {
                    return Ended::Stop;
                }
                if !self.caught_up && read < READ / 2 {
                    // One look at a full pipe costs less than many at a few lines.
                    std::thread::sleep(FILL);
                }
                continue;
            }
            let silence = if self.first { 10 * SILENCE } else { SILENCE };
            if !self.caught_up && silent.elapsed() >= silence {
                self.catch_up();
            }
            if self.flush().is_none() {
                return Ended::Stop;
            }
            if self.caught_up && rooted != [true, true] && roots() != rooted {
                return Ended::Again;
            }
        }
    }

    fn gathered(&self) -> usize {
        self.groups.iter().map(|group| group.chunk.len()).sum()
    }

    /// Everything that was there is read: from here on every entry is new.
    fn catch_up(&mut self) {
        if self.flush().is_none() {
            return;
        }
        self.caught_up = true;
        for group in &mut self.groups {
            group.resumed = true;
        }
        self.moved = true;
        self.report(SourceState::Live, None);
    }

    fn take(&mut self, terms: &Terms, entry: &Entry) {
        // The entry at the cursor itself comes first, if it is still there.
        if std::mem::take(&mut self.first) && self.position.is(entry) {
            return;
        }
        if !self.caught_up && entry.realtime >= self.started.0 {
            self.catch_up();
            // It is newer than anything that was judged, whatever the clock did in between.
            for group in &mut self.groups {
                group.ahead = None;
            }
        }
        for group in &mut self.groups {
            if !terms.hold(&group.wanted, entry) {
                continue;
            }
            if let Some(ahead) = &group.ahead {
                if ahead.covers(entry) {
                    continue;
                }
                group.ahead = None;
            }
            group.times.push((group.chunk.len() as u32, entry.time()));
            group.stamps.push(entry.realtime);
            entry.line(&mut group.chunk);
            group.chunk.push(b'\n');
            group.cut.0 += u64::from(entry.cut);
        }
        if let Some(position) = Position::of(entry) {
            self.position = position;
            (self.moved, self.lost) = (true, false);
        }
    }

    /// Judges what was gathered and tells the engine. `None`: nobody listens.
    fn flush(&mut self) -> Option<()> {
        if self.gathered() == 0 {
            // Entries that concern nobody are passed over now and then, not one by one.
            let every = if self.caught_up { IDLE_SAVE } else { SAVE };
            if self.moved && self.saved.elapsed() >= every {
                return self.tell_position();
            }
            self.moved = false;
            return Some(());
        }
        let When { now, live } = When { now: clock::now().wall, live: self.caught_up };
        let mut batch = Batch { path: self.key.clone(), live, changed: true, ..Batch::default() };
        let mut found = Vec::new();
        let mut cut = Vec::new();
        for group in &mut self.groups {
            if group.chunk.is_empty() {
                continue;
            }
            group.scanner.scan_timed(&group.chunk, &group.times, When { now, live }, &mut found);
            batch.shares.push(Share { source: group.name.clone(), lines: group.times.len() as u64 });
            for found in found.drain(..) {
                let line = group.times.partition_point(|(offset, _)| *offset <= found.offset).saturating_sub(1);
                let stamp = group.stamps.get(line).copied().unwrap_or_default();
                let place = Place(u64::from(self.place) << recall::BITS | recall::address(stamp));
                let failure = Failure { address: found.addr, time: found.time, attempts: found.attempts, place };
                let ok = found.kind == filter::Kind::Ok;
                for (jail, findtime, from) in &group.jails[found.filter] {
                    let counts = live || group.resumed || found.time + *findtime >= now;
                    if counts && found.time > *from {
                        batch.found.push(Found { jail: *jail, failure, ok });
                    }
                }
            }
            batch.missed.extend(reader::missed(&mut group.scanner, &group.jails));
            group.chunk.clear();
            group.times.clear();
            group.stamps.clear();
            if group.cut.0 > group.cut.1 {
                group.cut.1 = group.cut.0;
                cut.push((group.ids(), group.name.clone(), format!("{} long messages cut to 64 KiB", group.cut.0)));
            }
        }
        batch.resume = Some(self.resume());
        self.sent();
        self.send(Event::Read(batch))?;
        for (jails, path, note) in cut {
            let state = if live { SourceState::Live } else { SourceState::CatchingUp };
            self.send(Event::Source(SourceReport { jails, path, state, note: Some(note), known: true }))?;
        }
        Some(())
    }

    /// Tells the engine where reading stands, with nothing found.
    fn tell_position(&mut self) -> Option<()> {
        let resume = Some(self.resume());
        self.sent();
        let path = self.key.clone();
        self.send(Event::Read(Batch { path, resume, live: self.caught_up, changed: true, ..Batch::default() }))
    }

    fn sent(&mut self) {
        (self.moved, self.saved) = (false, Instant::now());
        self.shared.told().position = self.position.clone();
    }

    fn resume(&self) -> Arc<Resume> {
        let group = |group: &Group| {
            (
                group.wanted.to_string(),
                KeptGroup { scanner: group.scanner.state(), jails: group.names.clone(), ahead: group.ahead.clone() },
            )
        };
        let kept = Kept { position: self.position.clone(), groups: self.groups.iter().map(group).collect() };
        Arc::new(Resume { place: self.place, journal: Some(Box::new(kept)), ..Resume::default() })
    }

    fn send(&self, event: Event) -> Option<()> {
        self.engine.blocking_send(event).ok()
    }

    /// Tells a change of state, for every group.
    fn report(&mut self, state: SourceState, note: Option<String>) {
        if self.state.as_ref().is_some_and(|(last, why)| *last == state && *why == note) {
            return;
        }
        for group in &self.groups {
            let report = SourceReport { jails: group.ids(), path: group.name.clone(), state, note: note.clone(), known: false };
            self.send(Event::Source(report));
        }
        self.state = Some((state, note));
    }
}

/// Whether the journal has a file.
pub(super) fn present(journal: &Journal) -> bool {
    let journals = |directory: &Path| {
        std::fs::read_dir(directory).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| entry.path().extension().is_some_and(|end| end == "journal")))
        })
    };
    let below = |root: &str, which: &dyn Fn(&str) -> bool| {
        std::fs::read_dir(root).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| which(&entry.file_name().to_string_lossy()) && journals(&entry.path())))
        })
    };
    match journal {
        Journal::Own => ROOT.iter().any(|root| below(root, &|name| !name.contains('.'))),
        Journal::Namespace(space) => {
            ROOT.iter().any(|root| below(root, &|name| name.split_once('.').is_some_and(|(_, own)| own == space)))
        }
        Journal::Path(path) => {
            let place = Path::new(path);
            place.is_file() || journals(place) || below(path, &|_| true)
        }
    }
}

/// The last line somebody complained.
pub(super) fn last_line(bytes: &[u8]) -> String {
    let line = bytes.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
    escape(line, 200)
}
