//! The engine's pure core: events in, actions out. It reads no clock, opens nothing, and never waits.
//!
//! Whoever reads [`Event`] has read everything that can happen to the daemon; whoever reads [`Action`] everything that the
//! daemon does to the world. Effects that people see (a log line `Ban`, a reply to `banset ban`) come after the kernel said
//! yes: a change waits in `pending`, travels in a [`Flight`], and only then has its effects.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::keep::{self, Keep, Keeping};
use super::pace::Pace;
use super::spec::{Resolved, Spec, Specs, addresses};
use crate::control::{Reply, Request};
use crate::jail::{self, Failure, Held, Jail, Nets, Now, Origin, Verdict, ignore::is_nobody};
use crate::nft::Interval;
use crate::state::packed::{self, Step};
use crate::state::{KernelIdentity, Restored, Totals};
use crate::terms::{Lasting, Span, Time, escape};

/// A jail while the daemon runs: never given twice, so that a message about a jail that a reload removed finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JailId(pub u32);

/// A client of the control socket that waits for its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientId(pub u64);

/// Why specs are established anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// A client asked for it.
    Client(ClientId),
    /// A signal asked for it.
    Signal,
    /// The machine's addresses, or those of ignored names, changed, and with them the ignore sets.
    Machine,
}

/// Everything that can happen.
#[derive(Debug)]
pub enum Event {
    /// Lines of one source were judged by its filters, in order.
    Read(Batch),
    /// A source appeared, went missing, rotated.
    Source(SourceReport),
    /// The kernel's answer to [`Action::Commit`].
    Committed(Vec<Refusal>),
    /// [`Action::Commit`] met a table that is not what we left: nothing of it was carried out.
    Damaged(String),
    /// The kernel's answer to [`Action::Establish`]: what it held before, if that was asked for; or why not.
    Established(Result<Done, String>),
    /// A client asks.
    Asked(Asked),
    /// A configuration was read again: by signal, or for a client.
    Reloaded(Reloaded),
    /// The machine's addresses or gateways changed.
    Machine(Machine),
    /// The answer to [`Action::Save`].
    Saved(Result<(), String>),
    /// Host names of ignoreip resolved to other addresses than before.
    Resolved(Resolved),
    /// The instant of [`Core::next_wake`] came.
    Wake,
}

/// The machine's own addresses and gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Addresses on our interfaces.
    pub addresses: Vec<IpAddr>,
    /// Next hops of default routes.
    pub gateways: Vec<IpAddr>,
}

/// A table that is as it was wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// What its sets held before, if that was asked for.
    pub adopted: Vec<Adopted>,
    /// The table's handle.
    pub table: u64,
}

/// An element found in one of our sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The set.
    pub set: String,
    /// What it holds: one address, or in a set of intervals a stretch of them.
    pub what: Interval,
    /// Its timeout; `None`: it has none.
    pub timeout: Option<Span>,
    /// What is left of it; `None`: it is permanent.
    pub left: Option<Span>,
}

/// Failures of one source, in the order of their lines.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The file.
    pub path: Arc<str>,
    /// Where a later run goes on after this batch.
    pub resume: Option<Arc<Resume>>,
    /// What was found; a line that several jails watch stands once for each.
    pub found: Vec<Found>,
    /// How far reading has come.
    pub offset: u64,
    /// How long the file was then.
    pub size: u64,
    /// Lines read since the last batch.
    pub lines: u64,
    /// Whether the reader has reached the end once.
    pub live: bool,
    /// Whether anything was read since the last batch.
    pub changed: bool,
}

/// The whole state of one reader after a batch.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    /// The source's number in failures' places.
    pub place: u16,
    /// Where in the files.
    pub position: crate::watch::Position,
    /// What its filters remember.
    pub scanner: crate::filter::State,
}

/// One failure or success for one jail.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// For whom.
    pub jail: JailId,
    /// What.
    pub failure: Failure,
    /// A login that succeeded.
    pub ok: bool,
}

/// What became of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceReport {
    /// The jails that watch it.
    pub jails: Vec<JailId>,
    /// The path, or the pattern that found none.
    pub path: Arc<str>,
    /// What became of it.
    pub state: SourceState,
    /// For people: an error, a count.
    pub note: Option<String>,
    /// An answer to a question, not news: nothing is logged.
    pub known: bool,
}

/// The state of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// It does not exist; it will be followed as soon as it does.
    #[default]
    Waiting,
    /// It exists and can not be read.
    Unreadable,
    /// It is read up to the end first seen.
    CatchingUp,
    /// New lines are judged as they come.
    Live,
    /// Nobody watches it any more.
    Gone,
}

impl SourceState {
    /// The word in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            SourceState::Waiting => "waiting",
            SourceState::Unreadable => "unreadable",
            SourceState::CatchingUp => "catching up",
            SourceState::Live => "live",
            SourceState::Gone => "gone",
        }
    }
}

/// A request and what is needed to answer it.
#[derive(Debug)]
pub struct Asked {
    /// Who waits.
    pub client: ClientId,
    /// Their uid.
    pub uid: u32,
    /// What they ask.
    pub request: Request,
    /// The kernel's own numbers, read beforehand for requests that show them.
    pub kernel: Option<KernelView>,
}

/// What the kernel holds, for people to look at.
#[derive(Clone, Debug, Default)]
pub struct KernelView {
    /// The ruleset's generation.
    pub generation: u32,
    /// Per set: its elements; `None` where the set does not exist.
    pub counts: HashMap<String, u64>,
    /// Per jail: packets and bytes its rules dropped.
    pub dropped: HashMap<String, (u64, u64)>,
    /// Per set and element: packets and bytes; filled for `banned` where elements count.
    pub elements: HashMap<(String, IpAddr), (u64, u64)>,
}

/// A configuration read again.
#[derive(Debug)]
pub struct Reloaded {
    /// Who waits for it, if it was not a signal.
    pub client: Option<ClientId>,
    /// The specs, or the report of mistakes.
    pub specs: Result<Specs, String>,
}

/// A change of one element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The set.
    pub set: Arc<str>,
    /// The element: one address, or in a set of intervals (`JAIL-net4`) a stretch of them. From an `IpAddr` or `IpNetwork` by `into()`.
    pub what: Interval,
    /// Add or remove.
    pub to: Target,
}

/// What an element shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// In the set, with this timeout, until this monotonic instant; `None`: for ever.
    Held {
        /// The span given.
        lasting: Lasting,
        /// The monotonic instant at which it ends.
        until: Option<Time>,
    },
    /// Not in the set.
    Gone,
}

/// A change the kernel refused, though the rest was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which change of the commit, from 0.
    pub index: usize,
    /// Why, in nft's words.
    pub why: String,
}

/// Everything the daemon does.
#[derive(Debug)]
pub enum Action {
    /// Carry out these changes in as few transactions as possible.
    Commit(Vec<Change>),
    /// Make the kernel equal to these specs, with these elements in the sets that have to be filled.
    Establish(Establish),
    /// Keep this.
    Save(Box<Keeping>),
    /// Answer a client.
    Reply(ClientId, Reply),
    /// Write a log line.
    Log(Level, String),
    /// Read the configuration again.
    Reload(Option<ClientId>),
    /// Follow these sources with these filters from now on, and resolve these names.
    Watch(Arc<Specs>),
}

/// A whole table and what its sets hold.
#[derive(Debug)]
pub struct Establish {
    /// What is wanted.
    pub specs: Arc<Specs>,
    /// The content of the ignore set of all jails.
    pub ignored: Vec<IpNetwork>,
    /// Per jail, in the order of the specs: the content of its own ignore set.
    pub own_ignored: Vec<Vec<IpNetwork>>,
    /// Per jail, in the order of the specs: whether it bans subnets too, so that it has `JAIL-net4` and `JAIL-net6`. A jail for which
    /// `held` names one of these has them anyway.
    pub nets: Vec<bool>,
    /// Every element held, per set, for sets that must be filled anew.
    pub held: HashMap<Arc<str>, Vec<Change>>,
    /// Whether elements of the kernel's sets that are not in `held` have to go.
    pub exact: bool,
    /// Whether the answer shall tell what the sets held: nothing was adopted yet.
    pub adopt: bool,
}

/// The levels of the daemon's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Bans, and what may fail soon.
    Warn,
    /// What happens.
    Info,
    /// Details.
    Debug,
}

/// What people see once a change was carried out.
#[derive(Debug)]
enum Effect {
    Log(Level, String),
    /// The client is told when all its changes are through.
    Tell(ClientId),
}

/// Changes on their way to the kernel, and the effects they will have.
#[derive(Debug, Default)]
struct Flight {
    changes: Vec<Change>,
    effects: Vec<(usize, Effect)>,
}

/// A reply that waits for changes.
#[derive(Debug)]
struct Waiting {
    open: usize,
    refused: Vec<String>,
    reply: Reply,
}

/// Whole-table work that waits its turn or is under way.
#[derive(Debug, Default)]
enum Rebuild {
    /// None.
    #[default]
    No,
    /// Wanted because of this, as soon as nothing is in flight and the instant has come.
    Wanted { why: String, not_before: Time, failed: u32 },
    /// Under way.
    Running { failed: u32 },
}

/// A jail with what it was made from.
struct Running {
    id: JailId,
    spec: Arc<Spec>,
    jail: Jail,
    /// Its name, as notes of what is to be kept carry it.
    key: Arc<str>,
    ignored: Nets,
    sources: BTreeMap<Arc<str>, Source>,
}

#[derive(Clone, Debug, Default)]
struct Source {
    state: SourceState,
    note: Option<String>,
    offset: u64,
    size: u64,
    lines: u64,
}

/// The engine's state.
pub struct Core {
    specs: Arc<Specs>,
    jails: Vec<Running>,
    by_id: HashMap<JailId, usize>,
    machine: Machine,
    names: Resolved,
    pending: Flight,
    flying: Option<Flight>,
    waiting: HashMap<ClientId, Waiting>,
    reloading: Option<(Cause, Arc<Specs>)>,
    queued_reload: Option<(Cause, Specs)>,
    rebuild: Rebuild,
    rebuilt: u64,
    pace: Pace,
    keep: Keep,
    boot: String,
    next_id: u32,
    tidy_at: Time,
    random: u64,
    actions: Vec<Action>,
}

/// Between two rounds of forgetting what is too old to matter.
const TIDY: Span = Span::from_secs(60);

impl Core {
    /// A core for these specs that holds nothing; `seed` feeds the random spread of growing bans.
    pub fn new(specs: Specs, machine: Machine, now: Now, seed: u64) -> Core {
        let mut core = Core {
            specs: Arc::new(Specs::default()),
            jails: Vec::new(),
            by_id: HashMap::new(),
            machine,
            names: Resolved::new(),
            pending: Flight::default(),
            flying: None,
            waiting: HashMap::new(),
            reloading: None,
            queued_reload: None,
            rebuild: Rebuild::No,
            rebuilt: 0,
            pace: Pace::default(),
            keep: Keep::default(),
            boot: String::new(),
            next_id: 0,
            tidy_at: now.mono + TIDY,
            random: seed | 1,
            actions: Vec::new(),
        };
        let numbered = core.number(specs);
        core.switch(now, Arc::new(numbered));
        core
    }

    /// What to do now, in order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The specs in force.
    pub fn specs(&self) -> &Arc<Specs> {
        &self.specs
    }

    /// What the start wants of the kernel.
    pub fn establish(&self) -> Establish {
        self.establish_for(&self.specs, false)
    }

    /// An element found in one of our sets: a ban that goes on. Tells whether a jail of ours has that set.
    pub fn adopt(&mut self, now: Now, found: &Adopted) -> bool {
        let Some(running) = self.jails.iter_mut().find(|running| running.spec.holds(&found.set)) else { return false };
        let lasting = found.timeout.or(found.left).map_or(Lasting::Permanent, Lasting::For);
        let elapsed = match (lasting, found.left) {
            (Lasting::For(given), Some(left)) => Span(given.0.saturating_sub(left.0)),
            _ => Span(0),
        };
        let until = found.left.map(|left| now.mono + left);
        let held = Held { since: now.wall - elapsed, until, lasting, failures: 0, origin: Origin::Adopted, in_kernel: true };
        let subject = running.jail.subject(found.what.first());
        if running.jail.hold(subject, held) {
            self.keep.ban(now, &running.key, subject);
        } else {
            running.jail.confirm(subject);
        }
        true
    }

    /// Every ban held.
    pub fn bans_held(&self) -> usize {
        self.jails.iter().map(|running| running.jail.bans_held()).sum()
    }

    /// Takes in an event. Call [`Core::settle`] once the events at hand are through.
    pub fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::Read(batch) => self.read(now, &batch),
            Event::Source(report) => self.source(now, report),
            Event::Committed(refusals) => self.committed(now, refusals),
            Event::Saved(result) => self.saved(now, result),
            Event::Damaged(why) => self.damaged(now, why),
            Event::Established(result) => self.established(now, result),
            Event::Asked(asked) => self.asked(now, asked),
            Event::Reloaded(reloaded) => self.reloaded(reloaded),
            Event::Machine(machine) => {
                if machine != self.machine {
                    self.machine = machine;
                    self.ignored_otherwise(now);
                }
            }
            Event::Resolved(names) => {
                if names != self.names {
                    self.names = names;
                    self.ignored_otherwise(now);
                }
            }
            Event::Wake => {}
        }
        self.expire(now);
    }

    /// Turns what has gathered into the next commit, if the kernel is idle and the pace allows it.
    pub fn settle(&mut self, now: Now) {
        self.save(now);
        if self.flying.is_some() || matches!(self.rebuild, Rebuild::Running { .. }) || self.reloading.is_some() {
            return;
        }
        if let Rebuild::Wanted { not_before, failed, .. } = self.rebuild {
            // What waits for the table waits on: it is part of what the rebuild puts in, and is committed after it.
            if not_before <= now.mono {
                let establish = self.establish_for(&self.specs, true);
                self.rebuild = Rebuild::Running { failed };
                self.actions.push(Action::Establish(establish));
            }
            return;
        }
        if let Some((cause, specs)) = self.queued_reload.take() {
            let specs = Arc::new(self.number(specs));
            let establish = self.establish_for(&specs, false);
            self.reloading = Some((cause, specs));
            self.actions.push(Action::Establish(establish));
            return;
        }
        if self.pending.changes.is_empty() || self.pace.next(now.mono, self.largest()) > now.mono {
            return;
        }
        self.pace.commit(now.mono);
        let flight = std::mem::take(&mut self.pending);
        self.actions.push(Action::Commit(flight.changes.clone()));
        self.flying = Some(flight);
    }

    /// The monotonic instant at which something is due, if anything is.
    pub fn next_wake(&self, now: Now) -> Option<Time> {
        let idle = self.flying.is_none() && self.reloading.is_none();
        let paced = (idle && !self.pending.changes.is_empty()).then(|| self.pace.next(now.mono, self.largest()));
        let rebuild = match &self.rebuild {
            Rebuild::Wanted { not_before, .. } if idle => Some(*not_before),
            _ => None,
        };
        let ends = self.jails.iter().filter_map(|running| running.jail.next_end()).min();
        let tidy = self.jails.iter().any(|running| running.jail.failing() > 0).then_some(self.tidy_at);
        [paced, rebuild, ends, tidy, self.keep.due()].into_iter().flatten().min()
    }

    /// The daemon ends: what waits to be kept goes now.
    pub fn farewell(&mut self, now: Now) {
        self.keep.hurry(now);
    }

    /// Whether nothing waits for the kernel or to be kept.
    pub fn is_quiet(&self) -> bool {
        self.keep.is_quiet()
            && self.pending.changes.is_empty()
            && self.flying.is_none()
            && self.reloading.is_none()
            && matches!(self.rebuild, Rebuild::No)
    }

    fn largest(&self) -> usize {
        self.jails.iter().map(|running| running.jail.bans_held()).max().unwrap_or(0)
    }

    fn log(&mut self, level: Level, text: String) {
        self.actions.push(Action::Log(level, text));
    }

    /// A number in 0.0..1.0 (xorshift64*: spread, not secrecy).
    fn random(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    // ---- lines ----

    fn read(&mut self, now: Now, batch: &Batch) {
        for found in &batch.found {
            let random = self.random();
            let Some(&at) = self.by_id.get(&found.jail) else { continue };
            if found.ok {
                continue;
            }
            self.judge(now, at, &found.failure, batch.live, random);
        }
        if let Some(resume) = &batch.resume {
            self.keep.position(now, &batch.path, Some(resume.clone()));
        }
        for running in &mut self.jails {
            if let Some(source) = running.sources.get_mut(&batch.path) {
                source.offset = batch.offset;
                source.size = batch.size.max(batch.offset);
                source.lines += batch.lines;
                if batch.lines > 0 && !matches!(source.state, SourceState::Unreadable) {
                    source.state = if batch.live { SourceState::Live } else { SourceState::CatchingUp };
                }
            }
        }
    }

    fn judge(&mut self, now: Now, at: usize, failure: &Failure, live: bool, random: f64) {
        if failure.address.is_ipv6() && !self.specs.ipv6 {
            return self.log(Level::Debug, format!("[{}] {}: no IPv6 in [nft]", self.jails[at].spec.name, failure.address));
        }
        if let Some(by) = self.ignored_by(at, failure.address) {
            let text = format!("[{}] Ignore {} by {by}", self.jails[at].spec.name, failure.address);
            self.log(if live { Level::Info } else { Level::Debug }, text);
            return;
        }
        let running = &mut self.jails[at];
        let name = &running.spec.name;
        let found = format!("[{name}] Found {}", failure.address);
        let verdict = running.jail.judge(now, failure, random);
        if !matches!(verdict, Verdict::Stale | Verdict::AlreadyBanned) {
            self.keep.failure(now, &running.key, running.jail.subject(failure.address), failure);
        }
        if verdict != Verdict::Stale {
            self.actions.push(Action::Log(if live { Level::Info } else { Level::Debug }, found));
        }
        match verdict {
            Verdict::Found(_) | Verdict::AlreadyBanned | Verdict::Stale => {}
            Verdict::Over => {
                let text = format!("[{}] Ignore {}, expired bantime", self.jails[at].spec.name, failure.address);
                self.log(Level::Info, text);
            }
            Verdict::Observed(ban) => {
                let text = format!("[{}] would ban {}, but observes only", self.jails[at].spec.name, shown(ban.subject));
                self.log(Level::Warn, text);
            }
            Verdict::Ban(ban) => {
                let text = format!("[{}] Ban {}", self.jails[at].spec.name, shown(ban.subject));
                self.want(now, at, ban.subject, &ban.held, Effect::Log(Level::Warn, text));
            }
        }
    }

    /// Why an address is never banned by a line, if so.
    fn ignored_by(&self, at: usize, address: IpAddr) -> Option<String> {
        let running = &self.jails[at];
        if is_nobody(address) {
            return Some("address class".to_owned());
        }
        if running.spec.ignoreself && self.machine.addresses.contains(&address) {
            return Some("ignoreself rule".to_owned());
        }
        if self.machine.gateways.contains(&address) {
            return Some("default gateway".to_owned());
        }
        running.ignored.find(address).map(|entry| format!("ip {}", shown(entry)))
    }

    /// Puts the element of a held ban on its way.
    fn want(&mut self, now: Now, at: usize, subject: IpNetwork, held: &Held, effect: Effect) {
        let to = Target::Held { lasting: held.lasting, until: held.until };
        self.change(now, at, subject, to, effect);
    }

    fn change(&mut self, now: Now, at: usize, subject: IpNetwork, to: Target, effect: Effect) {
        let set = self.jails[at].spec.set(subject);
        self.keep.ban(now, &self.jails[at].key, subject);
        if let Effect::Tell(client) = effect
            && let Some(waiting) = self.waiting.get_mut(&client)
        {
            waiting.open += 1;
        }
        self.pending.effects.push((self.pending.changes.len(), effect));
        self.pending.changes.push(Change { set, what: subject.network().into(), to });
    }

    fn expire(&mut self, now: Now) {
        let mut ended = Vec::new();
        for running in &mut self.jails {
            for (subject, _) in running.jail.expire(now) {
                self.keep.ban(now, &running.key, subject);
                ended.push(format!("[{}] Unban {}", running.spec.name, shown(subject)));
            }
        }
        for text in ended {
            self.log(Level::Warn, text);
        }
        if self.tidy_at <= now.mono {
            self.tidy_at = now.mono + TIDY;
            self.jails.iter_mut().for_each(|running| running.jail.tidy(now));
        }
    }

    fn source(&mut self, now: Now, report: SourceReport) {
        let mut changed = false;
        for id in &report.jails {
            let Some(&at) = self.by_id.get(id) else { continue };
            let sources = &mut self.jails[at].sources;
            if report.state == SourceState::Gone {
                changed |= sources.remove(&report.path).is_some();
                self.keep.position(now, &report.path, None);
                continue;
            }
            let source = sources.entry(report.path.clone()).or_insert_with(|| {
                changed = true;
                Source::default()
            });
            let quiet = matches!((source.state, report.state), (SourceState::CatchingUp, SourceState::Live));
            changed |= (source.state != report.state && !quiet) || (report.note.is_some() && source.note != report.note);
            source.state = report.state;
            source.note.clone_from(&report.note);
        }
        if changed && !report.known {
            let mut text = format!("{}: {}", escape(report.path.as_bytes(), 4096), report.state.name());
            if let Some(note) = &report.note {
                let _ = write!(text, ", {note}");
            }
            let level = match report.state {
                SourceState::Waiting | SourceState::Unreadable => Level::Warn,
                _ => Level::Info,
            };
            self.log(level, text);
        }
    }

    // ---- the kernel ----

    fn committed(&mut self, now: Now, refusals: Vec<Refusal>) {
        let Some(flight) = self.flying.take() else { return };
        let refused: HashMap<usize, String> = refusals.into_iter().map(|refusal| (refusal.index, refusal.why)).collect();
        for (index, why) in &refused {
            self.log(Level::Error, why.clone());
            // What the kernel does not hold is not banned: the books follow the kernel.
            if let Some(change) = flight.changes.get(*index)
                && matches!(change.to, Target::Held { .. })
            {
                let (set, address) = (change.set.clone(), change.what.first());
                for running in self.jails.iter_mut().filter(|j| j.spec.holds(&set)) {
                    let subject = running.jail.subject(address);
                    running.jail.lift(subject);
                    self.keep.ban(now, &running.key, subject);
                }
            }
        }
        for (index, change) in flight.changes.iter().enumerate() {
            if let (Target::Held { .. }, false) = (change.to, refused.contains_key(&index))
                && let Some(running) = self.jails.iter_mut().find(|j| j.spec.holds(&change.set))
            {
                let subject = running.jail.subject(change.what.first());
                running.jail.confirm(subject);
                self.keep.ban(now, &running.key, subject);
            }
        }
        for (index, effect) in flight.effects {
            match (effect, refused.get(&index)) {
                (Effect::Log(level, text), None) => self.log(level, text),
                (Effect::Log(..), Some(_)) => {}
                (Effect::Tell(client), why) => self.told(now, client, why.cloned()),
            }
        }
    }

    // ---- what is kept ----

    fn save(&mut self, now: Now) {
        let Core { keep, jails, .. } = self;
        let running = |name: &str| jails.iter().find(|running| *running.key == *name);
        let tell = |jail: &str, subject| Some(keep::kept(now, running(jail)?.jail.held(subject)?));
        let totals = |jail: &str| {
            let jail = running(jail).map(|running| &running.jail);
            jail.map_or_else(Totals::default, |jail| Totals {
                failures: jail.failures_total,
                bans: jail.bans_total,
                last_failure: jail.last_failure,
            })
        };
        let all = || {
            let packed = |running: &Running| {
                let mut packed = Vec::new();
                running.jail.counted_failures().for_each(|failure| packed::push(&mut packed, Step::Fail(failure)));
                (running.key.clone(), packed)
            };
            jails.iter().map(packed).filter(|(_, packed)| !packed.is_empty()).collect()
        };
        if let Some(keeping) = keep.next(now, tell, totals, all) {
            self.actions.push(Action::Save(Box::new(keeping)));
        }
    }

    fn saved(&mut self, now: Now, result: Result<(), String>) {
        let (replies, change) = self.keep.saved(now, result);
        match change {
            None => {}
            Some(keep::Change::Failed(why)) => {
                self.log(Level::Error, format!("{why}\n  help: the state is not kept until this is mended; bans go on"));
                self.note_everything(now);
            }
            Some(keep::Change::StillFailing) => self.note_everything(now),
            Some(keep::Change::Mended) => self.log(Level::Warn, "the state is kept again".to_owned()),
        }
        self.actions.extend(replies.into_iter().map(|(client, reply)| Action::Reply(client, reply)));
    }

    /// Every ban is to be told again; positions are kept in mind until they are saved.
    fn note_everything(&mut self, now: Now) {
        for running in &self.jails {
            running.jail.bans().for_each(|(subject, _)| self.keep.ban(now, &running.key, subject));
        }
    }

    /// What an earlier run kept: counted failures, totals, bans. Called before anything is judged.
    pub fn restore(&mut self, now: Now, restored: &Restored) {
        for (jail, steps) in &restored.failures {
            let Some(running) = self.jails.iter_mut().find(|running| running.key == *jail) else { continue };
            for step in packed::steps(steps) {
                match step {
                    Step::Fail(failure) => running.jail.recount(&failure),
                    Step::Forget(address) => running.jail.forget_failures(address),
                }
            }
        }
        for (jail, subject, kept) in &restored.bans {
            let Some(running) = self.jails.iter_mut().find(|running| running.key == *jail) else { continue };
            if let Some(held) = keep::held(now, kept) {
                let subject = running.spec.subject(*subject);
                running.jail.hold(subject, held);
            }
        }
        for (jail, totals) in &restored.totals {
            let Some(running) = self.jails.iter_mut().find(|running| running.key == *jail) else { continue };
            running.jail.failures_total = totals.failures;
            running.jail.bans_total = totals.bans;
            running.jail.last_failure = totals.last_failure;
        }
        self.jails.iter_mut().for_each(|running| running.jail.tidy(now));
    }

    /// From here on changes are kept; `boot` names this boot. Bans that an earlier run kept and that are over by now are let go.
    pub fn keep(&mut self, now: Now, boot: String, restored: &Restored) {
        self.boot = boot;
        self.keep.start(restored.positions.iter().map(|(path, _)| path.clone()));
        for (jail, subject, _) in &restored.bans {
            // What a broken jail held waits until it is mended.
            if !self.specs.broken.iter().any(|(broken, _)| **broken == **jail) {
                self.keep.ban(now, jail, *subject);
            }
        }
        self.note_everything(now);
    }

    /// Nothing can be kept, because of this.
    pub fn cannot_keep(&mut self, why: String) {
        self.keep.cannot(why);
    }

    /// The bans are in the table with this handle now.
    pub fn settled_in(&mut self, now: Now, table: u64) {
        let identity = KernelIdentity { boot: self.boot.clone(), table };
        self.keep.kernel(now, identity);
    }

    /// The table is the one an earlier run left, in the same boot: what differs is what an admin did meanwhile. An element we do
    /// not know is a ban of his, one that we know the kernel had and that is gone is an unban of his; what the kernel was not
    /// told yet is told now. Gives how many were added and lifted.
    pub fn compare(&mut self, now: Now, found: &[Adopted]) -> (usize, usize) {
        let present: HashSet<(&str, Interval)> = found.iter().map(|element| (element.set.as_str(), element.what)).collect();
        let (mut lifted, mut missing) = (Vec::new(), Vec::new());
        for (at, running) in self.jails.iter().enumerate() {
            for (subject, held) in running.jail.bans() {
                let set = running.spec.set(subject);
                match (present.contains(&(&*set, subject.network().into())), held.in_kernel) {
                    (true, _) => {}
                    // It was about to end: the kernel's clock and ours differ by a little.
                    (false, true) if held.left(now).is_some_and(|left| left < Span::from_secs(3)) => {}
                    (false, true) => lifted.push((at, subject)),
                    (false, false) => missing.push((at, subject, held.clone())),
                }
            }
        }
        for (at, subject) in &lifted {
            self.jails[*at].jail.lift(*subject);
            self.keep.ban(now, &self.jails[*at].key, *subject);
            let text = format!(
                "[{}] Unban {}: it was taken out of the set while the daemon was away",
                self.jails[*at].spec.name,
                shown(*subject)
            );
            self.log(Level::Warn, text);
        }
        for (at, subject, held) in missing {
            let text = format!("[{}] Restore Ban {}", self.jails[at].spec.name, shown(subject));
            self.want(now, at, subject, &held, Effect::Log(Level::Warn, text));
        }
        let held_before = self.bans_held();
        for element in found {
            self.adopt(now, element);
        }
        (self.bans_held() - held_before, lifted.len())
    }

    /// One of a client's changes is through.
    fn told(&mut self, now: Now, client: ClientId, why: Option<String>) {
        let Some(waiting) = self.waiting.get_mut(&client) else { return };
        waiting.open = waiting.open.saturating_sub(1);
        waiting.refused.extend(why);
        if waiting.open == 0
            && let Some(waiting) = self.waiting.remove(&client)
        {
            let reply = match waiting.refused.is_empty() {
                true => waiting.reply,
                false => Reply { error: Some(waiting.refused.join("\n")), exit: 4, ..waiting.reply },
            };
            let at_once = self.keep.then_reply(now, client, reply);
            self.actions.extend(at_once.map(|(client, reply)| Action::Reply(client, reply)));
        }
    }

    fn damaged(&mut self, now: Now, why: String) {
        // What was in flight has not been carried out: it goes first again, its effects with it.
        if let Some(mut flight) = self.flying.take() {
            let late = std::mem::take(&mut self.pending);
            let base = flight.changes.len();
            flight.effects.extend(late.effects.into_iter().map(|(index, effect)| (base + index, effect)));
            flight.changes.extend(late.changes);
            self.pending = flight;
        }
        self.log(Level::Error, format!("{why}\n  help: the table is not as it was left; rebuilding it now"));
        self.rebuild = Rebuild::Wanted { why, not_before: now.mono, failed: 0 };
    }

    fn established(&mut self, now: Now, result: Result<Done, String>) {
        if let Ok(done) = &result {
            self.settled_in(now, done.table);
        }
        if let Some((cause, specs)) = self.reloading.take() {
            return self.reestablished(now, cause, specs, result);
        }
        let Rebuild::Running { failed } = self.rebuild else { return };
        match result {
            Ok(_) => {
                self.rebuild = Rebuild::No;
                self.rebuilt += 1;
                let held = self.bans_held();
                let table = format!("{} {}", self.specs.family.name(), self.specs.table);
                self.log(Level::Warn, format!("table {table} is whole again, {held} bans"));
            }
            Err(why) => {
                let wait = Span::from_secs(1 << failed.min(6));
                if failed == 0 {
                    self.log(Level::Error, format!("{why}\n  help: trying again until it succeeds"));
                }
                self.rebuild = Rebuild::Wanted { why, not_before: now.mono + wait, failed: failed + 1 };
            }
        }
    }

    fn reestablished(&mut self, now: Now, cause: Cause, specs: Arc<Specs>, result: Result<Done, String>) {
        let reply = match result {
            Ok(_) if cause == Cause::Machine => {
                self.log(Level::Info, "our addresses, or those of ignored names, changed: the ignore sets follow".to_owned());
                return;
            }
            Ok(done) => {
                let said = self.switch(now, specs);
                for found in &done.adopted {
                    self.adopt(now, found);
                }
                self.log(Level::Info, format!("configuration reloaded: {}", said.join("; ")));
                Reply::done(json!({ "changed": said }))
            }
            Err(why) if cause == Cause::Machine => {
                self.log(
                    Level::Error,
                    format!("{why}\n  help: whom we ignore changed and the kernel's ignore sets do not know; trying again"),
                );
                self.rebuild = Rebuild::Wanted { why, not_before: now.mono + Span::from_secs(1), failed: 1 };
                return;
            }
            Err(why) => {
                self.log(Level::Error, format!("reload refused: {why}"));
                Reply::refused(1, why, "the running configuration stays".to_owned())
            }
        };
        if let Cause::Client(client) = cause {
            self.actions.push(Action::Reply(client, reply));
        }
    }

    /// Everything wanted of the kernel under `specs`, with what is held now.
    fn establish_for(&self, specs: &Arc<Specs>, exact: bool) -> Establish {
        let mut held: HashMap<Arc<str>, Vec<Change>> = HashMap::new();
        for spec in &specs.jails {
            let Some(running) = self.jails.iter().find(|running| running.spec.name == spec.name) else { continue };
            let ignored: Nets = spec.ignored(&self.names).collect();
            for (subject, ban) in running.jail.bans() {
                let subject = spec.subject(subject);
                if covers(&ignored, subject).is_some() && ban.origin == Origin::Failures {
                    continue;
                }
                let set = spec.set(subject);
                let to = Target::Held { lasting: ban.lasting, until: ban.until };
                held.entry(set.clone()).or_default().push(Change { set, what: subject.network().into(), to });
            }
        }
        let own_ignored = specs.jails.iter().map(|spec| spec.own_ignored(&self.names)).collect();
        Establish {
            specs: specs.clone(),
            ignored: self.ignored_for(specs),
            own_ignored,
            nets: vec![false; specs.jails.len()],
            held,
            exact,
            adopt: self.specs.degraded.is_some() && self.specs.jails.is_empty(),
        }
    }

    /// The content of the kernel's ignore sets: ignoreip of the defaults, own addresses, gateways.
    fn ignored_for(&self, specs: &Specs) -> Vec<IpNetwork> {
        let own = self.machine.addresses.iter().chain(&self.machine.gateways).map(|address| IpNetwork::from(*address));
        let mut all: Vec<IpNetwork> =
            specs.ignore.iter().copied().chain(addresses(&self.names, &specs.ignore_names)).chain(own).collect();
        all.sort();
        all.dedup();
        all
    }

    // ---- configuration ----

    fn number(&mut self, mut specs: Specs) -> Specs {
        for spec in &mut specs.jails {
            let known = self.jails.iter().find(|running| running.spec.name == spec.name);
            let id = known.map_or(JailId(self.next_id), |running| running.id);
            if known.is_none() {
                self.next_id += 1;
            }
            Arc::make_mut(spec).id = Some(id);
        }
        specs
    }

    fn reloaded(&mut self, reloaded: Reloaded) {
        let Reloaded { client, specs } = reloaded;
        match specs {
            Err(report) => {
                let help = "nothing was changed; the running configuration stays".to_owned();
                self.log(Level::Error, format!("reload refused\n{report}\n  help: {help}"));
                if let Some(client) = client {
                    self.actions.push(Action::Reply(client, Reply::refused(1, report, help)));
                }
            }
            Ok(specs) => {
                let cause = client.map_or(Cause::Signal, Cause::Client);
                if let Some((Cause::Client(earlier), _)) = self.queued_reload.replace((cause, specs)) {
                    let reply = Reply::refused(1, "another reload came in between", "ask again".to_owned());
                    self.actions.push(Action::Reply(earlier, reply));
                }
            }
        }
    }

    /// Takes specs that the kernel agrees with into force; tells what changed.
    fn switch(&mut self, now: Now, specs: Arc<Specs>) -> Vec<String> {
        let mut old: HashMap<String, Running> =
            std::mem::take(&mut self.jails).into_iter().map(|r| (r.spec.name.clone(), r)).collect();
        let mut rekeyed = false;
        for spec in &specs.jails {
            let ignored: Nets = spec.ignored(&self.names).collect();
            let running = match old.remove(&spec.name) {
                Some(running) => {
                    let Running { id, spec: before, mut jail, sources, .. } = running;
                    rekeyed |= before.policy.ipv6_prefix != spec.policy.ipv6_prefix
                        || before.policy.ipv4_prefix != spec.policy.ipv4_prefix;
                    jail.reform(spec.policy.clone());
                    Running { id, key: spec.name.as_str().into(), spec: spec.clone(), jail, ignored, sources }
                }
                None => {
                    let id = spec.id.unwrap_or(JailId(u32::MAX));
                    let jail = Jail::new(spec.policy.clone());
                    Running { id, key: spec.name.as_str().into(), spec: spec.clone(), jail, ignored, sources: BTreeMap::new() }
                }
            };
            self.jails.push(running);
        }
        for (name, running) in old {
            let bans = running.jail.bans_held();
            if bans > 0 {
                self.log(Level::Warn, format!("[{name}] is no longer configured: {bans} bans lifted"));
                let subjects: Vec<IpNetwork> = running.jail.bans().map(|(subject, _)| subject).collect();
                subjects.into_iter().for_each(|subject| self.keep.ban(now, &running.key, subject));
            }
        }
        self.by_id = self.jails.iter().enumerate().map(|(at, running)| (running.id, at)).collect();
        self.specs = specs.clone();
        self.lift_ignored(now);
        self.drop_stranded(now);
        if rekeyed {
            self.rebuild = Rebuild::Wanted { why: "a prefix changed".to_owned(), not_before: now.mono, failed: 0 };
        }
        self.actions.push(Action::Watch(specs));
        match self.specs.changes.as_slice() {
            [] => vec!["nothing changed".to_owned()],
            changes => changes.to_vec(),
        }
    }

    /// A new ignore entry lifts the bans it covers.
    fn lift_ignored(&mut self, now: Now) {
        let mut lifted = Vec::new();
        for (at, running) in self.jails.iter().enumerate() {
            let own: Nets = match running.spec.ignoreself {
                true => self.machine.addresses.iter().map(|address| IpNetwork::from(*address)).collect(),
                false => Nets::default(),
            };
            for (subject, held) in running.jail.bans() {
                let by = covers(&running.ignored, subject).or_else(|| covers(&own, subject));
                if let (Some(entry), Origin::Failures | Origin::Adopted) = (by, &held.origin) {
                    lifted.push((at, subject, entry));
                }
            }
        }
        for (at, subject, entry) in lifted {
            self.jails[at].jail.lift(subject);
            let text = format!("[{}] Unban {}, ignored by {} now", self.jails[at].spec.name, shown(subject), shown(entry));
            self.change(now, at, subject, Target::Gone, Effect::Log(Level::Warn, text));
        }
    }

    /// Changes for sets that no longer exist would make the kernel refuse a whole transaction.
    fn drop_stranded(&mut self, now: Now) {
        let pending = std::mem::take(&mut self.pending);
        let mut kept = HashMap::new();
        for (index, change) in pending.changes.into_iter().enumerate() {
            if self.jails.iter().any(|running| running.spec.holds(&change.set)) {
                kept.insert(index, self.pending.changes.len());
                self.pending.changes.push(change);
            }
        }
        for (index, effect) in pending.effects {
            match (kept.get(&index), effect) {
                (Some(&new), effect) => self.pending.effects.push((new, effect)),
                (None, Effect::Tell(client)) => self.told(now, client, Some("its jail is no longer configured".to_owned())),
                (None, Effect::Log(..)) => {}
            }
        }
    }

    /// Own addresses or resolved names changed: who is ignored now, in the decision and in the kernel.
    fn ignored_otherwise(&mut self, now: Now) {
        for running in &mut self.jails {
            running.ignored = running.spec.ignored(&self.names).collect();
        }
        self.lift_ignored(now);
        // The ignore sets are part of the table: the same way that rebuilds it changes only them.
        if matches!(self.rebuild, Rebuild::No) && self.queued_reload.is_none() && self.reloading.is_none() {
            self.queued_reload = Some((Cause::Machine, (*self.specs).clone()));
        } else if matches!(self.rebuild, Rebuild::No) {
            self.rebuild = Rebuild::Wanted { why: "whom we ignore changed".to_owned(), not_before: now.mono, failed: 0 };
        }
    }

    // ---- people ----

    fn asked(&mut self, now: Now, asked: Asked) {
        let Asked { client, uid, request, kernel } = asked;
        let kernel = kernel.unwrap_or_default();
        let reply = match request {
            Request::Status { jail: None } => Reply::done(self.status(&kernel)),
            Request::Status { jail: Some(name) } => match self.at(&name) {
                Ok(at) => Reply::done(self.status_of(now, at, &kernel)),
                Err(reply) => reply,
            },
            Request::Stats => Reply::done(self.stats()),
            Request::Banned { addrs } if addrs.is_empty() => Reply::done(self.banned(now, &kernel)),
            Request::Banned { addrs } => self.holders(now, &addrs),
            Request::Ban { jail, addrs, for_s, permanent, reason, force } => {
                let lasting = match (permanent, for_s) {
                    (true, _) => Some(Lasting::Permanent),
                    (false, Some(secs)) => Some(Lasting::For(Span::from_secs(secs.clamp(1, 100 * 366 * 86_400)))),
                    (false, None) => None,
                };
                return self.ban(now, client, uid, jail.as_deref(), &addrs, lasting, reason, force);
            }
            Request::Unban { jail, addrs, all, forget } => return self.unban(now, client, jail.as_deref(), &addrs, all, forget),
            Request::Config => Reply::done(json!({ "accepted": &*self.specs.accepted, "degraded": self.specs.degraded })),
            Request::Reload => {
                self.actions.push(Action::Reload(Some(client)));
                return;
            }
        };
        self.actions.push(Action::Reply(client, reply));
    }

    fn at(&self, name: &str) -> Result<usize, Reply> {
        self.jails.iter().position(|running| running.spec.name == name).ok_or_else(|| {
            if let Some((_, why)) = self.specs.broken.iter().find(|(broken, _)| broken == name) {
                return Reply::refused(1, format!("jail \"{name}\" is broken"), why.clone());
            }
            let names: Vec<&str> = self.jails.iter().map(|running| running.spec.name.as_str()).collect();
            Reply::refused(1, format!("no jail \"{}\"", escape(name.as_bytes(), 200)), format!("there are: {}", names.join(", ")))
        })
    }

    #[expect(clippy::too_many_arguments, reason = "one request, spelt out")]
    fn ban(
        &mut self,
        now: Now,
        client: ClientId,
        uid: u32,
        jail: Option<&str>,
        addrs: &[String],
        lasting: Option<Lasting>,
        reason: Option<String>,
        force: bool,
    ) {
        let at = match self.at(jail.unwrap_or(crate::config::run::MANUAL)) {
            Ok(at) => at,
            Err(reply) => return self.actions.push(Action::Reply(client, reply)),
        };
        let name = self.jails[at].spec.name.clone();
        let lasting = lasting.unwrap_or(self.jails[at].spec.policy.bantime);
        let (mut banned, mut already, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        let mut wanted = Vec::new();
        for addr in addrs {
            let address = match parse_address(addr) {
                Ok(address) => address,
                Err(why) => {
                    refused.push(why);
                    continue;
                }
            };
            if address.is_ipv6() && !self.specs.ipv6 {
                refused.push(format!("{address}: there are no sets for IPv6, see `ipv6` in [nft]"));
                continue;
            }
            if let (Some(by), false) = (self.ignored_by(at, address), force) {
                refused.push(format!("{address}: ignored by {by}; --force bans it all the same"));
                continue;
            }
            let running = &mut self.jails[at];
            let subject = running.jail.subject(address);
            let until = match lasting {
                Lasting::Permanent => None,
                Lasting::For(span) => Some(now.mono + span),
            };
            let reason = reason.clone().map(|reason| escape(reason.as_bytes(), 500));
            let origin = Origin::Manual { uid, reason };
            let held = Held { since: now.wall, until, lasting, failures: 0, origin, in_kernel: false };
            if running.jail.hold(subject, held.clone()) {
                self.keep.step(now, &running.key, Step::Forget(subject.network()));
                running.jail.bans_total += 1;
                banned.push(json!({ "jail": name, "addr": shown(subject) }));
                wanted.push((subject, held));
            } else {
                already.push(json!({ "jail": name, "addr": shown(subject) }));
            }
        }
        let exit = match (refused.is_empty(), banned.is_empty() && already.is_empty()) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 4,
        };
        let result = json!({ "banned": banned, "already": already });
        let error = (!refused.is_empty()).then(|| refused.join("\n"));
        let reply = Reply { error, ..Reply::done(result).exit(exit) };
        if wanted.is_empty() {
            return self.actions.push(Action::Reply(client, reply));
        }
        self.waiting.insert(client, Waiting { open: 0, refused: Vec::new(), reply });
        for (subject, held) in wanted {
            self.log(Level::Warn, format!("[{name}] Ban {} by uid {uid}", shown(subject)));
            self.want(now, at, subject, &held, Effect::Tell(client));
        }
    }

    fn unban(&mut self, now: Now, client: ClientId, jail: Option<&str>, addrs: &[String], all: bool, forget: bool) {
        let places: Vec<usize> = match jail.map(|name| self.at(name)) {
            None => (0..self.jails.len()).collect(),
            Some(Ok(at)) => vec![at],
            Some(Err(reply)) => return self.actions.push(Action::Reply(client, reply)),
        };
        let mut wanted: Vec<(usize, IpNetwork)> = Vec::new();
        let (mut absent, mut refused, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        if all {
            for &at in &places {
                wanted.extend(self.jails[at].jail.bans().map(|(subject, _)| (at, subject)));
            }
        }
        for addr in addrs {
            let net = match parse_subject(addr) {
                Ok(net) => net,
                Err(why) => {
                    refused.push(why);
                    continue;
                }
            };
            let before = wanted.len();
            for &at in &places {
                let running = &mut self.jails[at];
                let host = net.prefix() == if net.is_ipv4() { 32 } else { 128 };
                let subject = if host && running.jail.held(net).is_none() { running.jail.subject(net.network()) } else { net };
                if forget {
                    running.jail.forget(subject);
                    self.keep.step(now, &running.key, Step::Forget(subject.network()));
                }
                if running.jail.held(subject).is_some() {
                    wanted.push((at, subject));
                    let name = &running.spec.name;
                    let rest = running.jail.covering(net.network()).into_iter().filter(|(other, _)| *other != subject);
                    notes.extend(rest.map(|(other, _)| format!("{} is still covered by {} in {name}", shown(net), shown(other))));
                }
            }
            if wanted.len() == before {
                absent.push(shown(net));
            }
        }
        wanted.sort();
        wanted.dedup();
        let lifted: Vec<Value> = wanted
            .iter()
            .map(|(at, subject)| {
                let running = &self.jails[*at];
                let left = running.jail.held(*subject).and_then(|held| held.left(now)).map(Span::secs);
                json!({ "jail": running.spec.name, "addr": shown(*subject), "left_s": left })
            })
            .collect();
        let exit = match (absent.is_empty() && refused.is_empty(), lifted.is_empty()) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 4,
        };
        let error = (!refused.is_empty()).then(|| refused.join("\n"));
        let reply = Reply { error, ..Reply::done(json!({ "lifted": lifted, "absent": absent, "notes": notes })).exit(exit) };
        if wanted.is_empty() {
            return self.actions.push(Action::Reply(client, reply));
        }
        self.waiting.insert(client, Waiting { open: 0, refused: Vec::new(), reply });
        for (at, subject) in wanted {
            self.jails[at].jail.lift(subject);
            let text = format!("[{}] Unban {}", self.jails[at].spec.name, shown(subject));
            self.log(Level::Warn, text);
            self.change(now, at, subject, Target::Gone, Effect::Tell(client));
        }
    }

    fn status(&self, kernel: &KernelView) -> Value {
        let mut jails: Vec<Value> = self.jails.iter().map(|running| self.brief(running, kernel)).collect();
        jails.extend(self.specs.broken.iter().map(|(name, why)| broken_json(name, why)));
        jails.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
        json!({ "jails": jails, "nft": [self.nft(kernel)], "degraded": self.specs.degraded, "state": self.keep.failed() })
    }

    fn nft(&self, kernel: &KernelView) -> Value {
        let degraded = match &self.rebuild {
            Rebuild::Wanted { why, .. } => Value::from(why.as_str()),
            Rebuild::Running { .. } => Value::from("rebuilding"),
            Rebuild::No => Value::Null,
        };
        json!({
            "table": self.specs.table, "family": self.specs.family.name(), "owner": false,
            "generation": kernel.generation, "restored": self.rebuilt, "degraded": degraded,
        })
    }

    fn state_of(running: &Running) -> &'static str {
        let followed = |source: &Source| matches!(source.state, SourceState::Live | SourceState::CatchingUp);
        match () {
            () if running.spec.broken.is_some() => "broken",
            () if running.spec.patterns.is_empty() => "running",
            () if !running.sources.values().any(followed) => "waiting",
            () if running.spec.policy.observe => "observing",
            () => "running",
        }
    }

    fn brief(&self, running: &Running, kernel: &KernelView) -> Value {
        let spec = &running.spec;
        let sources: Vec<Value> = running.sources.iter().map(|(path, source)| source_json(path, source)).collect();
        let count = |set: &str| kernel.counts.get(set).copied();
        let net = |suffix: &str| count(&format!("{}-{suffix}", spec.name)).unwrap_or(0);
        let (packets, bytes) = kernel.dropped.get(&spec.name).copied().unwrap_or_default();
        json!({
            "name": spec.name,
            "state": Core::state_of(running),
            "backend": spec.backend,
            "sources": sources,
            "failures": { "current": running.jail.failing(), "total": running.jail.failures_total },
            "bans": { "current": running.jail.bans_held(), "total": running.jail.bans_total },
            "kernel": { "v4": count(&spec.set_v4).unwrap_or(0), "v6": count(&spec.set_v6).unwrap_or(0), "net4": net("net4"), "net6": net("net6") },
            "dropped": { "packets": packets, "bytes": bytes },
            "last_match": running.jail.last_failure.map(rfc3339),
            "why": spec.broken,
        })
    }

    fn status_of(&self, now: Now, at: usize, kernel: &KernelView) -> Value {
        let running = &self.jails[at];
        let spec = &running.spec;
        let mut brief = self.brief(running, kernel);
        let mut bans: Vec<(Time, IpNetwork)> = running.jail.bans().map(|(subject, held)| (held.since, subject)).collect();
        bans.sort_by(|a, b| b.cmp(a));
        let listed: Vec<String> = bans.iter().take(10_000).map(|(_, subject)| shown(*subject)).collect();
        let policy = &spec.policy;
        let lasting = match policy.bantime {
            Lasting::Permanent => "permanent".to_owned(),
            Lasting::For(span) => span.to_string(),
        };
        let full = json!({
            "filter": spec.filter_name,
            "label": spec.label,
            "maxretry": policy.maxretry, "findtime": policy.findtime.to_string(), "bantime": lasting,
            "ports": spec.ports_text, "hooks": spec.hooks.iter().map(|(hook, _)| hook.name()).collect::<Vec<_>>(),
            "sets": [&*spec.set_v4, &*spec.set_v6],
            "patterns": spec.patterns,
            "evicted": running.jail.evicted(),
            "banned": listed,
            "banned_at_most": 10_000,
            "time": rfc3339(now.wall),
        });
        if let (Value::Object(brief), Value::Object(full)) = (&mut brief, full) {
            brief.extend(full);
        }
        brief
    }

    fn stats(&self) -> Value {
        let rows = self.jails.iter().map(|running| {
            json!({
                "jail": running.spec.name, "backend": running.spec.backend,
                "failures": { "current": running.jail.failing(), "total": running.jail.failures_total },
                "bans": { "current": running.jail.bans_held(), "total": running.jail.bans_total },
            })
        });
        Value::Array(rows.collect())
    }

    fn banned(&self, now: Now, kernel: &KernelView) -> Value {
        let mut rows: Vec<(Time, Value)> = Vec::new();
        for running in &self.jails {
            for (subject, held) in running.jail.bans() {
                rows.push((held.since, self.banned_row(now, running, subject, held, kernel)));
            }
        }
        rows.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
        Value::Array(rows.into_iter().map(|(_, row)| row).collect())
    }

    fn banned_row(&self, now: Now, running: &Running, subject: IpNetwork, held: &Held, kernel: &KernelView) -> Value {
        let set = running.spec.set(subject);
        let counted = kernel.elements.get(&(set.to_string(), subject.network()));
        let reason = match &held.origin {
            Origin::Manual { reason, .. } => reason.clone(),
            Origin::Failures | Origin::Adopted => None,
        };
        json!({
            "jail": running.spec.name, "addr": shown(subject),
            "since": rfc3339(held.since), "until": held.until.map(|until| rfc3339(now.wall_of(until))),
            "left_s": held.left(now).map(Span::secs), "failures": held.failures, "reason": reason,
            "packets": counted.map(|c| c.0), "bytes": counted.map(|c| c.1),
        })
    }

    fn holders(&self, now: Now, addrs: &[String]) -> Reply {
        let mut rows = Vec::new();
        let mut free = false;
        let mut refused = Vec::new();
        for addr in addrs {
            let net = match parse_subject(addr) {
                Ok(net) => net,
                Err(why) => {
                    refused.push(why);
                    continue;
                }
            };
            let mut jails = Vec::new();
            for running in &self.jails {
                for (subject, held) in running.jail.covering(net.network()) {
                    if subject.prefix() <= net.prefix() {
                        jails.push(self.banned_row(now, running, subject, held, &KernelView::default()));
                    }
                }
            }
            free |= jails.is_empty();
            rows.push(json!({ "addr": shown(net), "jails": jails }));
        }
        if !refused.is_empty() {
            return Reply::refused(2, refused.join("\n"), None);
        }
        Reply::done(Value::Array(rows)).exit(u8::from(free))
    }
}

/// A jail that has nothing but a name and a mistake, with the keys of every other.
fn broken_json(name: &str, why: &str) -> Value {
    let none = json!({ "current": 0, "total": 0 });
    json!({
        "name": name, "state": "broken", "why": why, "backend": null, "sources": [], "failures": none, "bans": none,
        "kernel": { "v4": 0, "v6": 0, "net4": 0, "net6": 0 }, "dropped": { "packets": 0, "bytes": 0 }, "last_match": null,
    })
}

fn source_json(path: &str, source: &Source) -> Value {
    json!({
        "path": escape(path.as_bytes(), 4096), "state": source.state.name(), "lag_bytes": source.size - source.offset.min(source.size),
        "lines": source.lines, "note": source.note,
    })
}

/// The ignore entry that covers all of a subject.
fn covers(nets: &Nets, subject: IpNetwork) -> Option<IpNetwork> {
    nets.find(subject.network()).filter(|entry| entry.prefix() <= subject.prefix())
}

/// As people write it: without the prefix length of a host.
pub fn shown(net: IpNetwork) -> String {
    match net.prefix() == if net.is_ipv4() { 32 } else { 128 } {
        true => net.network().to_string(),
        false => net.to_string(),
    }
}

/// RFC 3339 in UTC, whole seconds.
pub fn rfc3339(time: Time) -> String {
    jiff::Timestamp::from_second(time.secs()).map_or_else(|_| "?".to_owned(), |stamp| stamp.to_string())
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    let net = parse_subject(text)?;
    match net.prefix() == if net.is_ipv4() { 32 } else { 128 } {
        true => Ok(net.network()),
        false => Err(format!("{net}: this version bans addresses, not subnets; an IPv6 address stands for its prefix")),
    }
}

/// An address or subnet as people write it; IPv4-mapped addresses are folded, host bits of a subnet refused.
fn parse_subject(text: &str) -> Result<IpNetwork, String> {
    let named = || escape(text.as_bytes(), 100);
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(crate::terms::fold(address).into());
    }
    let net: IpNetwork =
        text.parse().map_err(|_| format!("\"{}\": not an address, such as 192.0.2.7 or 2001:db8::7", named()))?;
    match jail::network(net.ip(), net.prefix()) {
        Some(clean) if clean.network() == net.ip() => Ok(clean),
        Some(clean) => Err(format!("\"{}\": host bits are set; the subnet is {clean}", named())),
        None => Err(format!("\"{}\": not a subnet", named())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::run::{self, Config};
    use crate::jail::Place;
    use crate::terms::Family;

    const BOOT: i64 = 1_700_000_000;

    fn at(secs: i64) -> Now {
        Now { wall: Time::from_secs(BOOT + secs), mono: Time::from_secs(secs) }
    }

    fn config(jails: &[&str]) -> Config {
        let mut all: Vec<run::Jail> =
            jails.iter().map(|name| run::Jail { maxretry: 2, logpath: vec!["/log".into()], ..run::Jail::named(name) }).collect();
        all.push(run::Jail::manual(&all));
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let ignore = run::IgnoreList { nets: vec!["10.0.0.0/8".parse().expect("a net")], names: vec![] };
        Config { daemon: run::Daemon::default(), nft: run::Nft::default(), ignore, jails: all, broken: vec![] }
    }

    /// A daemon without a daemon: events go in, and what comes out is told in one line each.
    struct Bench {
        core: Core,
        ids: HashMap<String, JailId>,
        clients: u64,
    }

    impl Bench {
        fn new(jails: &[&str]) -> Bench {
            let mut core = Core::new(
                Specs::new(&config(jails)),
                Machine { addresses: vec![ip("192.0.2.1")], gateways: vec![ip("192.0.2.254")] },
                at(0),
                7,
            );
            core.take_actions();
            let mut bench = Bench { core, ids: HashMap::new(), clients: 0 };
            bench.learn();
            bench
        }
        fn learn(&mut self) {
            self.ids = self.core.specs().jails.iter().filter_map(|spec| Some((spec.name.clone(), spec.id?))).collect();
        }
        fn event(&mut self, secs: i64, event: Event) -> String {
            self.core.handle(at(secs), event);
            self.core.settle(at(secs));
            self.core.take_actions().iter().map(tell).collect::<Vec<_>>().join("; ")
        }
        fn fail(&mut self, secs: i64, jail: &str, who: &str) -> String {
            let failure = Failure { address: ip(who), time: at(secs).wall, attempts: 1, place: Place(0) };
            let found = vec![Found { jail: self.ids[jail], failure, ok: false }];
            self.event(secs, Event::Read(Batch { path: "/log".into(), found, live: true, ..Batch::default() }))
        }
        fn ask(&mut self, secs: i64, request: Request) -> String {
            self.clients += 1;
            self.event(secs, Event::Asked(Asked { client: ClientId(self.clients), uid: 0, request, kernel: None }))
        }
        fn yes(&mut self, secs: i64) -> String {
            self.event(secs, Event::Committed(vec![]))
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn tell(action: &Action) -> String {
        match action {
            Action::Commit(changes) => {
                let one = |change: &Change| {
                    let sign = if change.to == Target::Gone { '-' } else { '+' };
                    format!("{sign}{} {}", change.set, change.what)
                };
                format!("commit {}", changes.iter().map(one).collect::<Vec<_>>().join(" "))
            }
            Action::Establish(establish) => {
                let mut sets: Vec<String> = establish.held.iter().map(|(set, held)| format!(" {set}:{}", held.len())).collect();
                sets.sort();
                format!("establish{}", sets.concat())
            }
            Action::Reply(_, reply) => format!("reply {} {}{}", reply.exit, reply.result, reply.error.as_deref().unwrap_or("")),
            Action::Log(_, text) => text.lines().next().unwrap_or("").to_owned(),
            Action::Reload(_) => "reload".to_owned(),
            Action::Watch(_) => "watch".to_owned(),
            Action::Save(_) => "save".to_owned(),
        }
    }

    fn unban(addrs: &[&str]) -> Request {
        Request::Unban { jail: None, addrs: addrs.iter().map(|a| (*a).to_owned()).collect(), all: false, forget: false }
    }

    fn ban(addrs: &[&str], force: bool) -> Request {
        let addrs = addrs.iter().map(|a| (*a).to_owned()).collect();
        Request::Ban { jail: None, addrs, for_s: Some(60), permanent: false, reason: None, force }
    }

    #[test]
    fn a_ban_is_told_after_the_kernel_said_yes() {
        let mut bench = Bench::new(&["sshd"]);
        assert_eq!(bench.fail(1, "sshd", "198.51.100.7"), "[sshd] Found 198.51.100.7");
        assert_eq!(bench.fail(2, "sshd", "198.51.100.7"), "[sshd] Found 198.51.100.7; commit +sshd-v4 198.51.100.7");
        assert_eq!(bench.yes(2), "[sshd] Ban 198.51.100.7");
        assert_eq!(bench.event(602, Event::Wake), "[sshd] Unban 198.51.100.7");
    }

    #[test]
    fn what_comes_while_a_commit_is_under_way_goes_together_in_the_next() {
        let mut bench = Bench::new(&["sshd"]);
        for who in ["198.51.100.1", "198.51.100.2", "2001:db8::1"] {
            bench.fail(1, "sshd", who);
        }
        assert!(bench.fail(1, "sshd", "198.51.100.1").ends_with("commit +sshd-v4 198.51.100.1"));
        assert_eq!(bench.fail(1, "sshd", "198.51.100.2"), "[sshd] Found 198.51.100.2");
        assert_eq!(bench.fail(1, "sshd", "2001:db8::2"), "[sshd] Found 2001:db8::2");
        assert_eq!(bench.yes(1), "[sshd] Ban 198.51.100.1; commit +sshd-v4 198.51.100.2 +sshd-v6 2001:db8::");
        assert_eq!(bench.yes(1), "[sshd] Ban 198.51.100.2; [sshd] Ban 2001:db8::/64");
    }

    #[test]
    fn ignored_own_and_nobodys_addresses_are_not_banned() {
        let mut bench = Bench::new(&["sshd"]);
        let table = [
            ("10.1.2.3", "ip 10.0.0.0/8"),
            ("192.0.2.1", "ignoreself rule"),
            ("192.0.2.254", "default gateway"),
            ("127.0.0.1", "address class"),
            ("fe80::1", "address class"),
        ];
        for (who, by) in table {
            assert_eq!(bench.fail(1, "sshd", who), format!("[sshd] Ignore {who} by {by}"));
        }
        assert!(bench.ask(2, ban(&["10.1.2.3"], false)).contains("ignored by ip 10.0.0.0/8; --force bans it all the same"));
        assert!(bench.ask(2, ban(&["10.1.2.3"], true)).contains("commit +manual-v4 10.1.2.3"));
    }

    #[test]
    fn manual_bans_and_unbans_are_answered_after_the_kernel_said_yes() {
        let mut bench = Bench::new(&["sshd"]);
        let said = bench.ask(1, ban(&["198.51.100.7", "x", "198.51.100.0/24"], false));
        assert_eq!(said, "[manual] Ban 198.51.100.7 by uid 0; commit +manual-v4 198.51.100.7");
        let said = bench.yes(1);
        assert!(said.starts_with(r#"reply 4 {"already":[],"banned":[{"addr":"198.51.100.7","jail":"manual"}]}"#), "{said}");
        assert!(bench.ask(2, ban(&["198.51.100.7"], false)).contains("commit"), "a ban that ends later replaces it");
        bench.yes(2);
        assert_eq!(bench.ask(3, unban(&["198.51.100.7"])), "[manual] Unban 198.51.100.7; commit -manual-v4 198.51.100.7");
        assert!(bench.yes(3).starts_with("reply 0"));
        assert!(bench.ask(4, unban(&["198.51.100.7"])).starts_with(r#"reply 1 {"absent":["198.51.100.7"]"#));
        assert!(bench.ask(5, Request::Banned { addrs: vec!["198.51.100.7".into()] }).starts_with("reply 1"));
    }

    #[test]
    fn a_refused_element_is_not_held_and_not_called_banned() {
        let mut bench = Bench::new(&["sshd"]);
        bench.fail(1, "sshd", "198.51.100.7");
        bench.fail(1, "sshd", "198.51.100.7");
        let refusal = Refusal { index: 0, why: "add element inet banset sshd-v4 { 198.51.100.7 }: ENFILE, set is full".into() };
        assert_eq!(bench.event(1, Event::Committed(vec![refusal.clone()])), refusal.why);
        assert_eq!(bench.core.bans_held(), 0);
    }

    #[test]
    fn a_damaged_table_is_rebuilt_with_everything_held_and_nothing_in_flight_is_lost() {
        let mut bench = Bench::new(&["sshd"]);
        for who in ["198.51.100.7", "198.51.100.8"] {
            bench.fail(1, "sshd", who);
            bench.fail(1, "sshd", who);
        }
        let said = bench.event(1, Event::Damaged("add element …: ENOENT".into()));
        assert!(said.ends_with("establish sshd-v4:2"), "{said}");
        let said = bench.event(2, Event::Established(Err("EBUSY".into())));
        assert_eq!(said, "EBUSY");
        let now = at(3);
        assert_eq!(bench.core.next_wake(now), Some(Time::from_secs(3)));
        assert_eq!(bench.event(3, Event::Wake), "establish sshd-v4:2");
        let said = bench.event(3, Event::Established(Ok(Done::default())));
        assert_eq!(said, "table inet banset is whole again, 2 bans; commit +sshd-v4 198.51.100.7 +sshd-v4 198.51.100.8");
        assert_eq!(bench.yes(3), "[sshd] Ban 198.51.100.7; [sshd] Ban 198.51.100.8");
    }

    #[test]
    fn a_reload_changes_nothing_until_the_kernel_agrees() {
        let mut bench = Bench::new(&["sshd"]);
        bench.fail(1, "sshd", "198.51.100.7");
        bench.fail(1, "sshd", "198.51.100.7");
        bench.yes(1);
        assert_eq!(bench.ask(2, Request::Reload), "reload");
        let reloaded =
            |jails: &[&str]| Event::Reloaded(Reloaded { client: Some(ClientId(1)), specs: Ok(Specs::new(&config(jails))) });
        assert_eq!(bench.event(2, reloaded(&["dovecot"])), "establish");
        assert!(bench.event(2, Event::Established(Err("EPERM".into()))).contains("reply 1"));
        assert_eq!(bench.core.bans_held(), 1);
        assert_eq!(bench.event(3, reloaded(&["dovecot", "sshd"])), "establish sshd-v4:1");
        let said = bench.event(3, Event::Established(Ok(Done::default())));
        assert_eq!(said, r#"watch; configuration reloaded: nothing changed; reply 0 {"changed":["nothing changed"]}"#);
        bench.learn();
        assert_eq!(bench.fail(4, "dovecot", "198.51.100.9"), "[dovecot] Found 198.51.100.9");
        bench.event(5, reloaded(&["dovecot"]));
        let said = bench.event(5, Event::Established(Ok(Done::default())));
        assert!(said.starts_with("[sshd] is no longer configured: 1 bans lifted; watch"), "{said}");
        let refused = Event::Reloaded(Reloaded { client: Some(ClientId(9)), specs: Err("x.toml:1:1: no".into()) });
        assert!(bench.event(6, refused).starts_with("reload refused; reply 1"));
    }

    #[test]
    fn a_new_ignore_entry_lifts_the_bans_it_covers() {
        let mut bench = Bench::new(&["sshd"]);
        bench.fail(1, "sshd", "198.51.100.7");
        bench.fail(1, "sshd", "198.51.100.7");
        bench.yes(1);
        let mut changed = config(&["sshd"]);
        changed.ignore.nets.push("198.51.100.0/24".parse().expect("a net"));
        assert_eq!(bench.event(2, Event::Reloaded(Reloaded { client: None, specs: Ok(Specs::new(&changed)) })), "establish");
        let said = bench.event(2, Event::Established(Ok(Done::default())));
        assert!(said.contains("commit -sshd-v4 198.51.100.7"), "{said}");
        assert!(bench.yes(2).contains("[sshd] Unban 198.51.100.7, ignored by 198.51.100.0/24 now"));
    }

    #[test]
    fn a_host_name_in_ignoreip_is_ignored_once_it_resolves_and_in_the_kernel_too() {
        let mut named = config(&["sshd"]);
        named.ignore.names.push("office.example.org".to_owned());
        let mut bench = Bench::new(&["sshd"]);
        bench.event(1, Event::Reloaded(Reloaded { client: None, specs: Ok(Specs::new(&named)) }));
        bench.event(1, Event::Established(Ok(Done::default())));
        for _ in 0..2 {
            bench.fail(2, "sshd", "198.51.100.7");
        }
        bench.yes(2);
        assert_eq!(bench.core.specs().names().into_iter().collect::<Vec<_>>(), ["office.example.org"]);
        let resolved: Resolved = [("office.example.org".to_owned(), vec![ip("198.51.100.7")])].into();
        assert_eq!(bench.event(3, Event::Resolved(resolved.clone())), "establish");
        assert!(bench.core.establish().ignored.contains(&ip("198.51.100.7").into()));
        assert!(bench.event(3, Event::Established(Ok(Done::default()))).contains("commit -sshd-v4 198.51.100.7"));
        bench.yes(3);
        assert_eq!(bench.fail(4, "sshd", "198.51.100.7"), "[sshd] Ignore 198.51.100.7 by ip 198.51.100.7");
        assert_eq!(bench.event(5, Event::Resolved(resolved)), "", "the same answer changes nothing");
    }

    #[test]
    fn elements_found_at_the_start_are_bans_that_go_on() {
        let mut bench = Bench::new(&["sshd"]);
        let (timeout, left) = (Some(Span::from_secs(600)), Some(Span::from_secs(100)));
        let timed = Adopted { set: "sshd-v4".to_owned(), what: ip("198.51.100.7").into(), timeout, left };
        assert!(bench.core.adopt(at(0), &timed));
        assert!(
            bench
                .core
                .adopt(at(0), &Adopted { set: "sshd-v6".to_owned(), what: ip("2001:db8::").into(), timeout: None, left: None })
        );
        assert!(!bench.core.adopt(at(0), &Adopted { set: "other-v4".to_owned(), ..timed }));
        let row = bench.core.banned(at(0), &KernelView::default());
        assert_eq!((row[1]["left_s"].as_u64(), row[1]["since"].as_str()), (Some(100), Some("2023-11-14T22:05:00Z")));
        assert_eq!((row[0]["addr"].as_str(), row[0]["until"].is_null()), (Some("2001:db8::/64"), true));
        assert_eq!(bench.event(100, Event::Wake), "[sshd] Unban 198.51.100.7");
        assert_eq!(bench.core.specs().family, Family::Inet);
    }
}
