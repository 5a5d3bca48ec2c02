//! Journals as sources: who reads which, and the thread that reads one.
//!
//! There is one reader per journal, however many jails watch it: a child `journalctl --follow`, started by the [spawner](super::spawner), whose
//! entries are matched in this process. Jails with the same `journalmatch` form a group with one scanner; each entry is judged by the
//! groups it concerns, in chunks, as the lines of a file are. Where reading stands, what the groups' filters remember and the
//! failures found go to the engine in one batch, so a save holds them together.
//!
//! The supervisor decides for jails with `backend = "auto"` between file and journal, and again every day: a file counts only if it is
//! alive. What was read from the one is not read from the other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Sender;

use super::clock;
use super::core::{Batch, Choice, Event, Found, JailId, Resume, Share, SourceReport, SourceState};
use super::reader::Reading;
use super::recall;
use super::spawner::{self, Running, Spawner};
use super::spec::{Entries, Spec, Specs};
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
/// A file is alive if it was written within this.
const ALIVE: Span = Span::from_secs(86_400);
/// The choice between file and journal is made anew after this, and where the journal was chosen, it is looked so often
/// whether a file came alive.
const AGAIN: (Duration, Duration) = (Duration::from_secs(86_400), Duration::from_secs(60));
/// The journal must be this much newer than a file that is not alive: both hear of a line at not quite the same time.
const NEWER: Span = Span::from_secs(60);
/// A question to the journal may take so long.
const PATIENCE: Duration = Duration::from_secs(20);
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

/// The engine's hold on every source: files, and journals where there are any.
pub struct Sources {
    reading: Reading,
    spawner: Spawner,
    engine: Sender<Event>,
    kept: HashMap<String, (u16, Kept)>,
    supervisor: Option<mpsc::Sender<Command>>,
}

enum Command {
    Watch(Arc<Specs>),
    Stop,
}

/// Whether a journal is, or may become, a source of these jails.
pub fn possible(specs: &Specs) -> bool {
    let mut jails = specs.jails.iter().filter(|spec| spec.compiled.is_some() && spec.journal.is_some());
    jails.any(|spec| spec.backend == "journal" || spawner::installed())
}

impl Sources {
    /// For a daemon whose files `reading` follows.
    pub fn new(reading: Reading, spawner: Spawner, engine: Sender<Event>) -> Sources {
        Sources { reading, spawner, engine, kept: HashMap::new(), supervisor: None }
    }

    /// Says where an earlier run stopped; before anything is watched.
    pub fn resume(&mut self, path: &str, resume: Resume) {
        match resume.journal {
            Some(kept) => _ = self.kept.insert(path.to_owned(), (resume.place, *kept)),
            None => self.reading.resume(path, resume),
        }
    }

    /// Has these specs' sources watched from now on, and no others.
    pub fn watch(&mut self, specs: &Arc<Specs>) {
        if self.supervisor.is_none() {
            if !possible(specs) {
                return self.reading.watch(specs, |_| Some(Time(i64::MIN)));
            }
            let (commands, told) = mpsc::channel();
            let supervisor = Supervisor {
                reading: self.reading.clone(),
                spawner: self.spawner.clone(),
                engine: self.engine.clone(),
                kept: std::mem::take(&mut self.kept),
                specs: specs.clone(),
                choices: HashMap::new(),
                read_until: HashMap::new(),
                tails: HashMap::new(),
            };
            match std::thread::Builder::new().name("journals".to_owned()).spawn(move || supervisor.run(&told)) {
                Ok(_) => self.supervisor = Some(commands),
                Err(e) => {
                    tracing::error!("cannot start the journals' supervisor: {}", plain(&e));
                    return self.reading.watch(specs, |_| Some(Time(i64::MIN)));
                }
            }
        }
        if let Some(supervisor) = &self.supervisor {
            let _ = supervisor.send(Command::Watch(specs.clone()));
        }
    }

    /// Ends the reading.
    pub fn stop(&self) {
        self.reading.stop();
        if let Some(supervisor) = &self.supervisor {
            let _ = supervisor.send(Command::Stop);
        }
    }
}

/// Where a jail's lines come from.
#[derive(Clone, Debug, PartialEq)]
struct Chosen {
    journal: bool,
    why: String,
    /// What is older was, or may have been, read from the other source.
    from: Time,
}

/// Chooses, and has files and journals read accordingly.
struct Supervisor {
    reading: Reading,
    spawner: Spawner,
    engine: Sender<Event>,
    kept: HashMap<String, (u16, Kept)>,
    specs: Arc<Specs>,
    choices: HashMap<JailId, Chosen>,
    /// How far the journal was read for jails that read files by now.
    read_until: HashMap<JailId, Time>,
    tails: HashMap<Journal, Tail>,
}

impl Supervisor {
    fn run(mut self, told: &mpsc::Receiver<Command>) {
        let mut judged = Instant::now();
        loop {
            // Where a journal stands in for a file, the file is looked for.
            let standing_in = self.specs.jails.iter().any(|spec| spec.backend == "auto" && self.on_journal(spec));
            let next = if standing_in { AGAIN.1 } else { AGAIN.0 };
            match told.recv_timeout(next) {
                Ok(Command::Watch(specs)) => {
                    self.specs = specs;
                    self.look(true);
                    judged = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {
                    let all = judged.elapsed() >= AGAIN.0;
                    self.look(all);
                    if all {
                        judged = Instant::now();
                    }
                }
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.tails.values().for_each(Tail::stop);
    }

    fn on_journal(&self, spec: &Spec) -> bool {
        spec.id.and_then(|id| self.choices.get(&id)).is_some_and(|chosen| chosen.journal)
    }

    /// Chooses anew: for every jail, or only for those whose files may have come alive.
    fn look(&mut self, all: bool) {
        let specs = self.specs.clone();
        let mut choices = HashMap::new();
        let mut open = Vec::new();
        for spec in &specs.jails {
            let (Some(id), Some(_), Some(entries)) = (spec.id, &spec.compiled, &spec.journal) else { continue };
            let last = self.choices.get(&id);
            let chosen = match spec.backend {
                "journal" => Some(Chosen { journal: true, why: "the configuration says so".to_owned(), from: Time(i64::MIN) }),
                _ => self.by_file(id, spec, entries),
            };
            match (chosen, last) {
                (Some(chosen), last) => {
                    // What is the same in substance is not told again in other words.
                    let same = last.filter(|last| last.journal == chosen.journal && !all);
                    choices.insert(id, same.cloned().unwrap_or(chosen));
                }
                (None, Some(last)) if !all => _ = choices.insert(id, last.clone()),
                (None, last) => {
                    if let Some(last) = last {
                        choices.insert(id, last.clone());
                    }
                    open.push((id, spec.clone()));
                }
            }
        }
        let news = all || choices != self.choices;
        self.choices = choices;
        if open.is_empty() {
            if news {
                self.apply();
            }
            return;
        }
        // Files need not wait for what the journal says. A journal's reader learns of all its groups at once.
        if self.tails.is_empty() {
            self.watch_files();
        }
        for (id, spec) in open {
            if let Some(entries) = &spec.journal {
                let chosen = self.by_journal(id, &spec, entries);
                self.choices.insert(id, chosen);
            }
        }
        self.apply();
    }

    /// What a jail's files alone decide: one that is alive wins.
    fn by_file(&self, id: JailId, spec: &Spec, entries: &Entries) -> Option<Chosen> {
        let (path, written) = newest(&spec.patterns)?;
        let now = clock::now().wall;
        let ago = now.since(written);
        let path = escape(path.as_os_str().as_encoded_bytes(), 4096);
        (ago < ALIVE).then(|| Chosen {
            journal: false,
            why: format!("{path} is alive, written {} ago", Span::from_secs(ago.secs())),
            from: self.read_from_journal(id, entries),
        })
    }

    /// How far an earlier choice had the journal read for this jail.
    fn read_from_journal(&self, id: JailId, entries: &Entries) -> Time {
        let kept = || {
            let (_, kept) = self.kept.get(&entries.journal.to_string())?;
            kept.groups.get(&entries.wanted.to_string()).map(|_| Time(kept.position.realtime))
        };
        if let Some(time) = self.read_until.get(&id) {
            return *time;
        }
        match self.tails.get(&entries.journal) {
            Some(tail) if self.choices.get(&id).is_some_and(|chosen| chosen.journal) => Time(tail.position().realtime),
            _ => kept().unwrap_or(Time(i64::MIN)),
        }
    }

    /// What the journal decides where no file is alive.
    fn by_journal(&self, id: JailId, spec: &Spec, entries: &Entries) -> Chosen {
        let file = newest(&spec.patterns);
        let day = |time: Time| {
            jiff::Timestamp::from_second(time.secs()).map_or_else(|_| "?".to_owned(), |t| t.strftime("%F").to_string())
        };
        let quiet = file.map(|(path, written)| (escape(path.as_os_str().as_encoded_bytes(), 4096), written));
        let is_there = present(&entries.journal);
        let newest = if is_there { self.ask(entries) } else { Ok(None) };
        let to_file = |why: String| Chosen { journal: false, why, from: self.read_from_journal(id, entries) };
        match (quiet, newest) {
            (Some((path, written)), Ok(Some(entry))) if entry > written + NEWER => {
                let why = format!("{path} was last written on {}, the journal holds newer entries", day(written));
                Chosen { journal: true, why, from: written }
            }
            (Some((path, written)), Ok(_)) => {
                to_file(format!("{path} was last written on {}, and the journal holds nothing newer", day(written)))
            }
            (Some((path, written)), Err(why)) => {
                to_file(format!("{path} was last written on {}, and the journal can not be asked: {why}", day(written)))
            }
            (None, _) if is_there => Chosen { journal: true, why: "no file of logpath exists".to_owned(), from: Time(i64::MIN) },
            (None, _) => to_file("no file of logpath exists, and no journal".to_owned()),
        }
    }

    /// When the newest of a jail's entries was written.
    fn ask(&self, entries: &Entries) -> Result<Option<Time>, String> {
        let mut arguments: Vec<String> =
            ["--quiet", "--no-pager", "--output=export", "--output-fields=_PID", "--lines=1"].map(str::to_owned).into();
        arguments.extend(entries.journal.arguments());
        arguments.extend(entries.wanted.arguments());
        let running = self.spawner.run(&arguments).map_err(|e| plain(&e))?;
        let (out, err) = running.collect(64 * 1024, PATIENCE);
        let (mut newest, mut export) = (None, Export::new(Terms::default()));
        export.feed(&out, |_, entry| newest = Some(Time(entry.realtime)));
        if newest.is_none() && !err.is_empty() {
            return Err(last_line(&err));
        }
        Ok(newest)
    }

    /// Has those files followed that are chosen, or the only source.
    fn watch_files(&self) {
        let choices = &self.choices;
        self.reading.watch(&self.specs, |spec| match (&spec.journal, spec.id.and_then(|id| choices.get(&id))) {
            (None, _) => Some(Time(i64::MIN)),
            (Some(_), Some(chosen)) if !chosen.journal => Some(chosen.from),
            (Some(_), _) => None,
        });
    }

    /// Has everything read as it was chosen.
    fn apply(&mut self) {
        let specs = self.specs.clone();
        // Who leaves a journal leaves it before its file is taken up.
        let mut wanted: BTreeMap<Journal, Vec<GroupWanted>> = BTreeMap::new();
        for spec in &specs.jails {
            let (Some(id), Some(compiled), Some(entries)) = (spec.id, &spec.compiled, &spec.journal) else { continue };
            let Some(chosen) = self.choices.get(&id).filter(|chosen| chosen.journal) else { continue };
            let groups = wanted.entry(entries.journal.clone()).or_default();
            let at = groups.iter().position(|group| group.wanted == entries.wanted).unwrap_or_else(|| {
                groups.push(GroupWanted { wanted: entries.wanted.clone(), jails: Vec::new() });
                groups.len() - 1
            });
            let filter = spec.on_journal.as_ref().unwrap_or(compiled).0.clone();
            groups[at].jails.push(JailWanted {
                id,
                name: spec.name.clone(),
                filter,
                findtime: spec.policy.findtime,
                from: chosen.from,
            });
        }
        for (journal, tail) in &self.tails {
            let groups = wanted.remove(journal).unwrap_or_default();
            let before = tail.jails();
            let position = tail.want(groups);
            let after = tail.jails();
            for id in before.into_iter().filter(|id| !after.contains(id)) {
                self.read_until.insert(id, Time(position.realtime));
            }
        }
        for (id, chosen) in &mut self.choices {
            match self.read_until.get(id) {
                Some(until) if !chosen.journal => chosen.from = chosen.from.max(*until),
                _ => {}
            }
        }
        self.read_until.retain(|id, _| self.choices.get(id).is_some_and(|chosen| !chosen.journal));
        self.watch_files();
        for (journal, groups) in wanted {
            let key = journal.to_string();
            let (place, kept) = self.kept.remove(&key).unwrap_or_else(|| (self.reading.place(), Kept::default()));
            let tail = Tail::start(journal.clone(), place, kept, groups, self.spawner.clone(), self.engine.clone());
            match tail {
                Ok(tail) => _ = self.tails.insert(journal, tail),
                Err(e) => tracing::error!("{key}: cannot start its reader: {}", plain(&e)),
            }
        }
        for (jail, chosen) in &self.choices {
            let choice = Choice { backend: if chosen.journal { "journal" } else { "file" }, why: chosen.why.clone() };
            let _ = self.engine.blocking_send(Event::Chosen(*jail, choice));
        }
    }
}

/// The file that was written last, and when.
fn newest(patterns: &[String]) -> Option<(PathBuf, Time)> {
    let paths = patterns.iter().flat_map(|pattern| {
        let found: Vec<PathBuf> = match glob::glob(pattern) {
            Ok(paths) => paths.filter_map(Result::ok).collect(),
            Err(_) => vec![PathBuf::from(pattern)],
        };
        found
    });
    let written = |path: PathBuf| {
        let meta = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
        let since = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some((path, Time(i64::try_from(since.as_micros()).ok()?)))
    };
    paths.filter_map(written).max_by_key(|(_, time)| *time)
}

/// Whether the journal has a file.
fn present(journal: &Journal) -> bool {
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
fn last_line(bytes: &[u8]) -> String {
    let line = bytes.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
    escape(line, 200)
}

/// What a group shall judge, and for whom.
struct GroupWanted {
    wanted: Match,
    jails: Vec<JailWanted>,
}

struct JailWanted {
    id: JailId,
    name: String,
    filter: Arc<Filter>,
    findtime: Span,
    from: Time,
}

/// The supervisor's hold on a journal's reader.
struct Tail {
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
    fn start(
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
    fn want(&self, groups: Vec<GroupWanted>) -> Position {
        let version = self.tell(groups);
        let mut told = self.shared.told();
        while told.done < version && !told.stop {
            told = self.shared.taken.wait(told).unwrap_or_else(PoisonError::into_inner);
        }
        told.position.clone()
    }

    fn jails(&self) -> Vec<JailId> {
        self.shared.told().jails.clone()
    }

    fn position(&self) -> Position {
        self.shared.told().position.clone()
    }

    fn stop(&self) {
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
                    let (_, err) = running.collect(4096, Duration::from_secs(2));
                    complained.extend(err);
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
