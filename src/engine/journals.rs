//! Journals as sources, seen from above: who reads which. The supervisor decides for jails with `backend = "auto"` between file and
//! journal, and again every day: a file counts only if it is alive. What was read from the one is not read from the other. Each
//! journal that is wanted has one [reader](super::journal), however many jails watch it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use tokio::sync::mpsc::Sender;

use super::clock;
use super::core::{Choice, Event, JailId, Resume};
use super::journal::{GroupWanted, JailWanted, Kept, Tail, last_line, present};
use super::reader::Reading;
use super::spawner::{self, Spawner};
use super::spec::{Entries, Spec, Specs};
use crate::terms::journal::Journal;
use crate::terms::{Span, Time, escape, plain};
use crate::watch::journal::{Export, Terms};

/// A file is alive if it was written within this.
const ALIVE: Span = Span::from_secs(86_400);
/// The choice between file and journal is made anew after this, and where the journal was chosen, it is looked so often
/// whether a file came alive.
const AGAIN: (Duration, Duration) = (Duration::from_secs(86_400), Duration::from_secs(60));
/// The journal must be this much newer than a file that is not alive: both hear of a line at not quite the same time.
const NEWER: Span = Span::from_secs(60);
/// A question to the journal may take so long.
const PATIENCE: Duration = Duration::from_secs(20);

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
        let told = running.collect(64 * 1024, PATIENCE);
        let (mut newest, mut export) = (None, Export::new(Terms::default()));
        export.feed(&told.out, |_, entry| newest = Some(Time(entry.realtime)));
        match newest {
            None if !told.err.is_empty() => Err(last_line(&told.err)),
            None if !told.ended => Err(format!("journalctl did not answer within {} s", PATIENCE.as_secs())),
            newest => Ok(newest),
        }
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
