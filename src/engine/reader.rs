//! The thread that reads: the watch room hands it chunks of whole lines, the filter room judges them, and what was found goes
//! to the engine in batches, each with how far reading has come.
//!
//! There is one scanner per file, with the filters of every jail that watches it: a line is looked at once. The channel to
//! the engine is bounded; when it is full this thread waits, for the log file is the queue.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::Sender;

use super::clock;
use super::core::{Batch, Event, Found, JailId, Resume, SourceReport, SourceState};
use super::spec::{Spec, Specs};
use crate::filter::{self, Filter, Scanner, When};
use crate::jail::{Failure, Place};
use crate::terms::{Span, Time};
use crate::watch::{self, Chunk, Happening, Judge, Polled, Position, SourceEvent, SourceStatus, Start, WatchHandle};

/// Failures gathered before a batch is sent even though more is at hand.
const BATCH_AT_MOST: usize = 4096;

/// Whom the lines of a source concern. A tag of the watch room stands for one jail and one of its patterns.
#[derive(Debug, Default)]
struct Routes {
    /// Counts up with every change.
    version: u64,
    by_tag: HashMap<u32, Route>,
    next_tag: u32,
    /// What is known of files of which this run has read nothing yet.
    unread: HashMap<PathBuf, Unread>,
    /// The next source's number.
    next_place: u16,
}

/// A file's number, and what its filters remember of an earlier run, if one stopped in it.
#[derive(Debug)]
struct Unread {
    place: u16,
    scanner: Option<filter::State>,
}

impl Routes {
    /// A file of which nothing was read yet.
    fn unread(&mut self, path: &Path) -> &mut Unread {
        let next = &mut self.next_place;
        self.unread.entry(path.to_owned()).or_insert_with(|| {
            let place = *next;
            *next = next.wrapping_add(1);
            Unread { place, scanner: None }
        })
    }

    /// The same, for good.
    fn take(&mut self, path: &Path) -> Unread {
        let Unread { place, scanner } = self.unread(path);
        let taken = Unread { place: *place, scanner: scanner.take() };
        self.unread.remove(path);
        taken
    }
}

#[derive(Clone, Debug)]
struct Route {
    jail: JailId,
    pattern: String,
    filter: Arc<Filter>,
    findtime: Span,
    /// What is not later was read from elsewhere.
    from: Time,
}

/// The engine's hold on the reader: tells it what to watch.
#[derive(Clone)]
pub struct Reading {
    routes: Arc<Mutex<Routes>>,
    watch: WatchHandle,
}

impl Reading {
    /// Has the files of these specs watched from now on, and no others; `from` tells of a jail whether it reads files, and what
    /// is not later than which instant was read from elsewhere. Sources watched before go on where they are.
    pub fn watch(&self, specs: &Specs, from: impl Fn(&Spec) -> Option<Time>) {
        let mut wanted: Vec<Route> = Vec::new();
        for spec in &specs.jails {
            let (Some(jail), Some(compiled), Some(from)) = (spec.id, &spec.compiled, from(spec)) else { continue };
            wanted.extend(spec.patterns.iter().map(|pattern| Route {
                jail,
                pattern: pattern.clone(),
                filter: compiled.0.clone(),
                findtime: spec.policy.findtime,
                from,
            }));
        }
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.version += 1;
        let mut old: HashMap<(JailId, String), u32> =
            routes.by_tag.iter().map(|(tag, r)| ((r.jail, r.pattern.clone()), *tag)).collect();
        let mut added = Vec::new();
        for route in wanted {
            match old.remove(&(route.jail, route.pattern.clone())) {
                Some(tag) => {
                    routes.by_tag.insert(tag, route);
                }
                None => {
                    let tag = routes.next_tag;
                    routes.next_tag += 1;
                    added.push((tag, route.pattern.clone()));
                    routes.by_tag.insert(tag, route);
                }
            }
        }
        for tag in old.values() {
            routes.by_tag.remove(tag);
        }
        drop(routes);
        for tag in old.into_values() {
            self.watch.forget(tag);
        }
        for (tag, pattern) in added {
            self.watch.watch(tag, pattern, Start::FromBeginning);
        }
        // A jail that joins a file which others watch already hears no event about it.
        self.watch.status();
    }

    /// Says where an earlier run stopped; before anything is watched.
    pub fn resume(&self, path: &str, resume: Resume) {
        self.watch.resume(path, resume.position.clone());
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.next_place = routes.next_place.max(resume.place.wrapping_add(1));
        routes.unread.insert(PathBuf::from(path), Unread { place: resume.place, scanner: Some(resume.scanner) });
    }

    /// A number for a source that is no file.
    pub fn place(&self) -> u16 {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let place = routes.next_place;
        routes.next_place = place.wrapping_add(1);
        place
    }

    /// Ends the reader's thread.
    pub fn stop(&self) {
        self.watch.stop();
    }
}

/// The judge of the watch room: scans, gathers, sends.
pub struct Reader {
    routes: Arc<Mutex<Routes>>,
    files: HashMap<PathBuf, Watched>,
    told: HashMap<PathBuf, Told>,
    found: Vec<filter::Found>,
    engine: Sender<Event>,
}

/// What was last told of a source.
#[derive(Default)]
struct Told {
    state: SourceState,
    note: Option<String>,
    polled: Option<Polled>,
}

impl Told {
    /// For people: what there is to say about its state, and that it is polled.
    fn whole(&self) -> Option<String> {
        let polled = self.polled.map(polled);
        match (&self.note, polled) {
            (Some(note), Some(polled)) => Some(format!("{note}, {polled}")),
            (note, polled) => note.clone().or(polled),
        }
    }
}

/// One file and what judges it.
struct Watched {
    name: Arc<str>,
    place: u16,
    version: u64,
    tags: Vec<u32>,
    scanner: Scanner,
    /// The scanner's.
    filters: Vec<Arc<Filter>>,
    /// For each filter of the scanner: the jails that use it, how far back they look, and from when on.
    jails: Vec<Vec<(JailId, Span, Time)>>,
    batch: Batch,
    /// Where a later run goes on.
    position: Position,
    /// An earlier run stopped in it: what came since counts by its own time, however old.
    resumed: bool,
    /// Lines of the scanner that batches have told.
    lines: u64,
}

/// A reader and the engine's hold on it.
pub fn new(engine: Sender<Event>, watch: WatchHandle) -> (Reader, Reading) {
    let routes = Arc::new(Mutex::new(Routes::default()));
    let reader = Reader { routes: routes.clone(), files: HashMap::new(), told: HashMap::new(), found: Vec::new(), engine };
    (reader, Reading { routes, watch })
}

impl Reader {
    fn send(&self, event: Event) {
        // An engine that is gone ends the daemon; there is nobody left to tell.
        let _ = self.engine.blocking_send(event);
    }

    fn report(&self, path: &Path, tags: &[u32], state: SourceState, note: Option<String>, known: bool) {
        let jails = {
            let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
            tags.iter().filter_map(|tag| routes.by_tag.get(tag)).map(|route| route.jail).collect()
        };
        self.send(Event::Source(SourceReport { jails, path: path.to_string_lossy().into(), state, note, known }));
    }

    /// The file's state, made or brought up to date with the routes.
    fn watched(&mut self, path: &Path, tags: &[u32]) -> Option<&mut Watched> {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.files.get(path);
        if known.is_none_or(|known| known.version != routes.version || known.tags != tags) {
            let (mut filters, mut jails) = (Vec::<Arc<Filter>>::new(), Vec::<Vec<(JailId, Span, Time)>>::new());
            for route in tags.iter().filter_map(|tag| routes.by_tag.get(tag)) {
                let at = filters.iter().position(|known| Arc::ptr_eq(known, &route.filter)).unwrap_or_else(|| {
                    filters.push(route.filter.clone());
                    jails.push(Vec::new());
                    filters.len() - 1
                });
                if !jails[at].iter().any(|(jail, ..)| *jail == route.jail) {
                    jails[at].push((route.jail, route.findtime, route.from));
                }
            }
            let version = routes.version;
            drop(routes);
            match self.files.get_mut(path) {
                Some(known) => {
                    let same = known.filters.len() == filters.len()
                        && known.filters.iter().zip(&filters).all(|(a, b)| Arc::ptr_eq(a, b));
                    if !same {
                        let mut scanner = Scanner::new(filters.clone());
                        scanner.restore(known.scanner.state());
                        (known.scanner, known.lines, known.filters) = (scanner, 0, filters);
                    }
                    (known.version, known.tags, known.jails) = (version, tags.to_vec(), jails);
                }
                None => {
                    let name: Arc<str> = path.to_string_lossy().into();
                    let earlier = self.routes.lock().unwrap_or_else(PoisonError::into_inner).take(path);
                    let batch = Batch { path: name.clone(), ..Batch::default() };
                    let mut scanner = Scanner::new(filters.clone());
                    let resumed = earlier.scanner.is_some();
                    scanner.restore(earlier.scanner.unwrap_or_default());
                    let place = earlier.place;
                    self.files.insert(
                        path.to_owned(),
                        Watched {
                            name,
                            place,
                            version,
                            tags: tags.to_vec(),
                            scanner,
                            filters,
                            jails,
                            batch,
                            position: Position::default(),
                            resumed,
                            lines: 0,
                        },
                    );
                }
            }
        }
        self.files.get_mut(path)
    }
}

impl Judge for Reader {
    fn chunk(&mut self, chunk: Chunk<'_>) {
        let mut found = std::mem::take(&mut self.found);
        let now = clock::now().wall;
        let Some(watched) = self.watched(chunk.path, chunk.tags) else { return };
        watched.scanner.scan(chunk.bytes, When { now, live: chunk.live }, &mut found);
        let batch = &mut watched.batch;
        batch.offset = chunk.offset + chunk.bytes.len() as u64;
        batch.size = batch.offset.max(batch.size);
        batch.live = chunk.live;
        batch.changed = true;
        watched.position.clone_from(chunk.position);
        for found in found.drain(..) {
            let place = Place(u64::from(watched.place) << 48 | (chunk.offset + u64::from(found.offset)) & 0xffff_ffff_ffff);
            let failure = Failure { address: found.addr, time: found.time, attempts: found.attempts, place };
            let ok = found.kind == filter::Kind::Ok;
            for (jail, findtime, from) in &watched.jails[found.filter] {
                // What was there before us and is older than findtime can not count any more.
                let counts = chunk.live || watched.resumed || found.time + *findtime >= now;
                if counts && found.time > *from {
                    batch.found.push(Found { jail: *jail, failure, ok });
                }
            }
        }
        let full = batch.found.len() >= BATCH_AT_MOST;
        let full = full.then(|| watched.take());
        self.found = found;
        if let Some(batch) = full {
            self.send(Event::Read(batch));
        }
    }

    fn taken_up(&mut self, path: &Path, _: &[u32], position: &Position) {
        let batch = match self.files.get_mut(path) {
            Some(watched) => {
                watched.position.clone_from(position);
                watched.take()
            }
            // Its scanner is made when there is something to scan.
            None => {
                let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
                let unread = routes.unread(path);
                let (place, scanner) = (unread.place, unread.scanner.clone().unwrap_or_default());
                let resume = Some(Arc::new(Resume { place, position: position.clone(), scanner, journal: None }));
                Batch { path: path.to_string_lossy().into(), resume, changed: true, ..Batch::default() }
            }
        };
        self.send(Event::Read(batch));
    }

    fn source(&mut self, event: SourceEvent<'_>) {
        if let Happening::LinesCut(_) | Happening::Rotated | Happening::Truncated { .. } = event.what {
            tracing::debug!("{}: {:?}", event.path.display(), event.what);
            if !matches!(event.what, Happening::Truncated { lost } if lost > 0) {
                return;
            }
        }
        let (state, note) = match &event.what {
            Happening::Appeared => (SourceState::CatchingUp, None),
            Happening::Missing { waiting_at: dir, .. } => (SourceState::Waiting, Some(waiting_at(dir))),
            Happening::Unreadable(errno) | Happening::ReadFailed(errno) => {
                (SourceState::Unreadable, Some(errno.desc().to_lowercase()))
            }
            Happening::Polled(why) => {
                let told = self.told.entry(event.path.to_owned()).or_default();
                told.polled = Some(*why);
                (told.state, told.note.clone())
            }
            Happening::Truncated { lost } => (SourceState::Live, Some(format!("truncated, {lost} bytes lost unread"))),
            Happening::CaughtUp => (SourceState::Live, None),
            Happening::Forgotten | Happening::Matched => (SourceState::Gone, None),
            Happening::LinesCut(_) | Happening::Rotated => return,
        };
        let told = self.told.entry(event.path.to_owned()).or_default();
        (told.state, told.note) = (state, note);
        let note = told.whole();
        // The batch goes first: the state follows what was read.
        self.idle();
        // That a glob is no longer waited for is said by what it found.
        self.report(event.path, event.tags, state, note, event.what == Happening::Matched);
        if state == SourceState::Gone {
            self.files.remove(event.path);
            self.told.remove(event.path);
            self.routes.lock().unwrap_or_else(PoisonError::into_inner).unread.remove(event.path);
        }
    }

    fn status(&mut self, sources: Vec<SourceStatus>) {
        self.idle();
        for source in sources {
            let (state, note) = match source.state {
                watch::SourceState::CatchingUp => (SourceState::CatchingUp, None),
                watch::SourceState::Following => (SourceState::Live, None),
                watch::SourceState::SameAs(other) => (SourceState::Live, Some(format!("the same file as {}", other.display()))),
                watch::SourceState::Waiting(dir) => (SourceState::Waiting, Some(waiting_at(&dir))),
                watch::SourceState::Unreadable(errno) => (SourceState::Unreadable, Some(errno.desc().to_lowercase())),
            };
            let told = Told { state, note, polled: source.polled };
            self.report(&source.path, &source.tags, state, told.whole(), true);
            self.told.insert(source.path, told);
        }
    }

    fn idle(&mut self) {
        let batches: Vec<Batch> = self.files.values_mut().filter(|w| w.batch.changed).map(Watched::take).collect();
        for batch in batches {
            self.send(Event::Read(batch));
        }
    }
}

fn waiting_at(directory: &Path) -> String {
    format!("watching {} for it", directory.display())
}

fn polled(why: Polled) -> String {
    match why {
        Polled::FileSystem => "polled: its file system tells of no changes".to_owned(),
        Polled::Refused(errno) => format!("polled: inotify says {errno:?}"),
    }
}

/// What a scanner's filters nearly matched since they were last asked, for each jail that uses them.
pub(super) fn missed<'a>(
    scanner: &'a mut Scanner,
    jails: &'a [Vec<(JailId, Span, Time)>],
) -> impl Iterator<Item = (JailId, filter::NearMisses)> + 'a {
    jails.iter().enumerate().flat_map(|(filter, jails)| {
        let missed = scanner.near_misses(filter);
        let jails = if missed.count > 0 { &jails[..] } else { &[] };
        jails.iter().map(move |(jail, ..)| (*jail, missed.clone()))
    })
}

impl Watched {
    fn take(&mut self) -> Batch {
        let fresh = Batch {
            path: self.name.clone(),
            offset: self.batch.offset,
            size: self.batch.size,
            live: self.batch.live,
            ..Batch::default()
        };
        let mut batch = std::mem::replace(&mut self.batch, fresh);
        let resume = Resume { place: self.place, position: self.position.clone(), scanner: self.scanner.state(), journal: None };
        batch.resume = Some(Arc::new(resume));
        batch.missed.extend(missed(&mut self.scanner, &self.jails));
        batch.lines = self.scanner.lines() - self.lines;
        self.lines = self.scanner.lines();
        batch
    }
}
