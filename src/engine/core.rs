//! The engine's pure core: events in, actions out. It reads no clock, opens nothing, and never waits.
//!
//! Whoever reads [`Event`] has read everything that can happen to the daemon; whoever reads [`Action`] everything that the
//! daemon does to the world. Effects that people see (a log line `Ban`, a reply to `banset ban`) come after the kernel said
//! yes: a change waits in `pending`, travels in a [`Flight`], and only then has its effects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::historian::Search;
use super::keep::Keep;
use super::pace::Pace;
use super::spec::{Resolved, Spec, Specs};
use crate::config::run::Loglevel;
use crate::control::Reply;
use crate::jail::{Ban, Failure, Held, Jail, Nets, Now, Verdict, ignore::is_nobody};
use crate::state::history::{Row, What};
use crate::terms::{Span, Time, escape, shown};

pub mod events;
mod foreign;
mod history;
mod ignores;
mod kept;
mod pause;
mod people;
mod room;
mod settings;
mod stream;
mod subnets;
mod table;
#[cfg(test)]
mod tests;

pub use events::*;
pub use people::rfc3339;

/// Why specs are established anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// A client asked for it.
    Client(ClientId),
    /// A signal asked for it.
    Signal,
    /// The machine's addresses, or those of ignored names, changed, and with them the ignore sets; or what people want ignored or
    /// paused did.
    Restated,
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
    /// For each element sent the change it was sent for: a subnet may take several, or none.
    sent_for: Vec<usize>,
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
    nets: NetSets,
    /// Between file and journal.
    choice: Option<Choice>,
    near: NearMisses,
}

/// Lines that held what a filter looks for and matched nothing, in this run.
#[derive(Clone, Debug, Default)]
struct NearMisses {
    count: u64,
    /// When the last was read.
    at: Option<Time>,
    /// The last few, as they may be shown.
    lines: Vec<String>,
}

/// Whether a jail has its sets of subnets, which come to be with the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum NetSets {
    #[default]
    No,
    /// The kernel is asked to make them.
    Asked,
    Yes,
}

impl Running {
    /// `file` or `journal`: what was chosen, or what the configuration alone decides.
    fn backend(&self) -> &'static str {
        match &self.choice {
            Some(choice) if self.spec.journal.is_some() => choice.backend,
            _ if self.spec.backend == "journal" => "journal",
            _ => "file",
        }
    }
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
    /// Our own links, where addresses are banned one by one.
    links: Arc<Nets>,
    names: Resolved,
    pending: Flight,
    flying: Option<Flight>,
    waiting: HashMap<ClientId, Waiting>,
    reloading: Option<(Cause, Arc<Specs>)>,
    queued_reload: Option<(Cause, Specs)>,
    rebuild: Rebuild,
    rebuilt: u64,
    hands: foreign::Hands,
    rooms: HashMap<Arc<str>, room::Room>,
    /// Bans of a set at most where nothing else is configured.
    ceiling: usize,
    pace: Pace,
    keep: Keep,
    boot: String,
    /// The table was made ours: an element found in it that we do not know is somebody's doing since.
    settled: bool,
    /// The wall clock less the monotonic one, as everything was noted for the state last.
    clock: i64,
    /// When it was last seen to have jumped, and by how many microseconds.
    jumped: Option<(Time, i64)>,
    /// The number of the last thing that happened.
    seq: u64,
    /// Rows of bans that were found in a set, for which the log may yet account.
    found: HashMap<(Arc<str>, IpNetwork), u64>,
    /// Bans whose lines could not all be read back.
    short: history::Shorts,
    /// Bans whose lines are being read back, and how many others wait for that.
    digging: (usize, u64),
    /// The key of hashed accounts.
    key: [u64; 2],
    /// Which path a failure's place means.
    places: HashMap<u16, Arc<str>>,
    /// On whose behalf things happen at the moment; `None`: on our own.
    behalf: Option<history::Behalf>,
    /// Who waits for the next event.
    followers: Vec<stream::Follower>,
    /// How far each other machine's events were applied.
    applied: BTreeMap<Box<str>, u64>,
    /// Whom people want ignored.
    ignores: ignores::Wishes,
    /// Bans that bite although they are ignored.
    forced: BTreeSet<(Arc<str>, IpNetwork)>,
    /// What is paused.
    pauses: pause::Pauses,
    /// The table is wanted otherwise than the kernel was told last, though no configuration changed.
    restate: bool,
    /// Because of our addresses or those of ignored names.
    moved: bool,
    /// Clients that wait for it, before and while it is on its way.
    restating: Vec<ClientId>,
    restated_for: Vec<ClientId>,
    /// What is on its way to the kernel brings that with it.
    absorbed: bool,
    /// Questions that wait until what happened before them is kept: the number of the save.
    searches: Vec<(u64, Search)>,
    next_id: u32,
    tidy_at: Time,
    random: u64,
    actions: Vec<Action>,
}

/// Near misses of a jail that are shown, and bytes of each.
const NEAR_MISSES: usize = 5;
const LINE_SHOWN: usize = 300;
/// Between two rounds of forgetting what is too old to matter.
const TIDY: Span = Span::from_secs(60);

impl Core {
    /// A core for these specs that holds nothing; `seed` feeds the random spread of growing bans.
    pub fn new(specs: Specs, machine: Machine, now: Now, seed: u64) -> Core {
        let mut core = Core {
            specs: Arc::new(Specs::default()),
            jails: Vec::new(),
            by_id: HashMap::new(),
            links: subnets::exact_links(&machine),
            machine,
            names: Resolved::new(),
            pending: Flight::default(),
            flying: None,
            waiting: HashMap::new(),
            reloading: None,
            queued_reload: None,
            rebuild: Rebuild::No,
            rebuilt: 0,
            hands: foreign::Hands::default(),
            rooms: HashMap::new(),
            ceiling: room::CEILING,
            pace: Pace::default(),
            keep: Keep::default(),
            boot: String::new(),
            settled: false,
            clock: now.offset(),
            jumped: None,
            seq: 0,
            found: HashMap::new(),
            short: history::Shorts::default(),
            digging: (0, 0),
            key: [0; 2],
            places: HashMap::new(),
            behalf: None,
            followers: Vec::new(),
            applied: BTreeMap::new(),
            ignores: ignores::Wishes::default(),
            forced: BTreeSet::new(),
            pauses: pause::Pauses::default(),
            restate: false,
            moved: false,
            restating: Vec::new(),
            restated_for: Vec::new(),
            absorbed: false,
            searches: Vec::new(),
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
    pub fn establish(&mut self) -> Establish {
        self.ask_for_nets();
        self.establish_for(&self.specs, Suspects::None)
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
            Event::Committed(committed) => self.committed(now, committed),
            Event::Foreign(heard) => self.foreign(heard),
            Event::Chosen(jail, choice) => self.chosen(jail, choice),
            Event::Saved(result) => self.saved(now, result),
            Event::Synced(failed) => self.synced(failed),
            Event::Damaged(why) => self.damaged(now, why),
            Event::Established(result) => {
                let why = result.as_ref().err().cloned();
                self.established(now, result);
                self.told_of_table(now, why);
            }
            Event::Asked(asked) => self.asked(now, asked),
            Event::Reloaded(reloaded) => self.reloaded(reloaded),
            Event::Machine(machine) => {
                if machine != self.machine {
                    self.machine = machine;
                    self.know_links();
                    self.ignored_otherwise(now);
                }
            }
            Event::ReadBack(seq, lines, short) => self.read_back(now, seq, lines, short),
            Event::Unread(unread) => self.dig_unread(now, &unread),
            Event::Answered(client, reply) => self.actions.push(Action::Reply(client, reply)),
            Event::Resolved(mut names) => {
                // Who has no answer now has the last one that was good, perhaps of an earlier run.
                let wanted = self.specs.names();
                for (name, addresses) in &self.names {
                    if wanted.contains(name) && !names.contains_key(name) {
                        names.insert(name.clone(), addresses.clone());
                    }
                }
                if names != self.names {
                    self.names = names;
                    self.keep.names(now);
                    self.ignored_otherwise(now);
                }
            }
            Event::Listing(running) => self.pace.listing(now.mono, running, self.largest()),
            Event::Wake => {}
        }
        self.expire(now);
    }

    /// Whether [`Event::Listing`] is wanted before [`Core::settle`]: a commit would go now, and would spoil a listing.
    pub fn minds_listings(&self, now: Now) -> bool {
        let largest = self.largest();
        self.flying.is_none()
            && !self.pending.changes.is_empty()
            && self.pace.minds(now.mono, largest)
            && self.pace.next(now.mono, largest) <= now.mono
    }

    /// Turns what has gathered into the next commit, if the kernel is idle and the pace allows it.
    pub fn settle(&mut self, now: Now) {
        self.save(now);
        if self.flying.is_some() || matches!(self.rebuild, Rebuild::Running { .. }) || self.reloading.is_some() {
            return;
        }
        self.heed(now);
        self.ignore_again();
        if let Rebuild::Wanted { not_before, failed, .. } = self.rebuild {
            // What waits for the table waits on: it is part of what the rebuild puts in, and is committed after it.
            if not_before <= now.mono {
                self.ask_for_nets();
                let look = self.take_look();
                let suspects = self.take_suspects();
                let establish = Establish { look, ..self.establish_for(&self.specs, suspects) };
                self.restated();
                self.rebuild = Rebuild::Running { failed };
                self.actions.push(Action::Establish(establish));
            }
            return;
        }
        if let Some((cause, specs)) = self.queued_reload.take() {
            let specs = Arc::new(self.number(specs));
            self.ask_for_nets();
            let establish = self.establish_for(&specs, Suspects::None);
            self.restated();
            self.reloading = Some((cause, specs));
            self.actions.push(Action::Establish(establish));
            return;
        }
        if self.ask_for_nets() || self.restate {
            let specs = self.specs.clone();
            let establish = self.establish_for(&specs, Suspects::None);
            self.restated();
            self.reloading = Some((Cause::Restated, specs));
            self.actions.push(Action::Establish(establish));
            return;
        }
        if self.pending.changes.is_empty() || self.pace.next(now.mono, self.largest()) > now.mono {
            return;
        }
        self.pace.commit(now.mono);
        let mut flight = std::mem::take(&mut self.pending);
        let elements = self.elements_of(now, &mut flight);
        self.actions.push(Action::Commit(elements));
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
        let wishes = [self.ignores.next_end(), self.pauses.next_end(), self.next_follower()].into_iter().flatten().min();
        [paced, rebuild, ends, tidy, wishes, self.keep.due()].into_iter().flatten().min()
    }

    /// The daemon ends: what waits to be kept goes now.
    pub fn farewell(&mut self, now: Now) {
        self.keep.hurry(now);
    }

    /// Whether nothing waits for the kernel or to be kept.
    pub fn is_quiet(&self) -> bool {
        self.keep.is_quiet()
            && self.heeded()
            && self.pending.changes.is_empty()
            && self.flying.is_none()
            && self.reloading.is_none()
            && !self.restate
            && matches!(self.rebuild, Rebuild::No)
    }

    fn largest(&self) -> usize {
        self.jails.iter().map(|running| running.jail.bans_held()).max().unwrap_or(0)
    }

    /// Whether anybody sees lines of this level.
    fn tells(&self, level: Level) -> bool {
        let most = match self.specs.daemon.loglevel {
            Loglevel::Error => Level::Error,
            Loglevel::Warning => Level::Warn,
            Loglevel::Info => Level::Info,
            Loglevel::Debug | Loglevel::Trace => Level::Debug,
        };
        level <= most
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
        if let Some(resume) = &batch.resume {
            // Numbers come round: whoever has one now had it last.
            if self.places.get(&resume.place).is_none_or(|path| **path != *batch.path) {
                self.places.insert(resume.place, batch.path.clone());
            }
        }
        for found in &batch.found {
            let random = self.random();
            let Some(&at) = self.by_id.get(&found.jail) else { continue };
            if found.ok {
                continue;
            }
            self.judge(now, at, &found.failure, batch.live, random);
        }
        for (jail, missed) in &batch.missed {
            if let Some(running) = self.by_id.get(jail).and_then(|at| self.jails.get_mut(*at)) {
                running.near.count += missed.count;
                running.near.at = Some(now.wall);
                running.near.lines.extend(missed.last.iter().map(|line| escape(line, LINE_SHOWN)));
                let over = running.near.lines.len().saturating_sub(NEAR_MISSES);
                running.near.lines.drain(..over);
            }
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
            for share in &batch.shares {
                if let Some(source) = running.sources.get_mut(&share.source) {
                    source.lines += share.lines;
                }
            }
        }
    }

    fn judge(&mut self, now: Now, at: usize, failure: &Failure, live: bool, random: f64) {
        // A line of the log for each failure costs more than judging it: none is made that nobody wants to see.
        let level = if live { Level::Info } else { Level::Debug };
        let tells = self.tells(level);
        if failure.address.is_ipv6() && !self.specs.ipv6 {
            if self.tells(Level::Debug) {
                self.log(Level::Debug, format!("[{}] {}: no IPv6 in [nft]", self.jails[at].spec.name, failure.address));
            }
            return;
        }
        if let Some(by) = self.ignored_by(at, failure.address) {
            if tells {
                self.log(level, format!("[{}] Ignore {} by {by}", self.jails[at].spec.name, failure.address));
            }
            return;
        }
        let elsewhere = self.offences_elsewhere(now, at, failure.address);
        let running = &mut self.jails[at];
        let verdict = running.jail.judge(now, failure, random, elsewhere);
        if !matches!(verdict, Verdict::Stale | Verdict::AlreadyBanned) {
            self.keep.failure(now, &running.key, running.jail.subject(failure.address), failure);
        }
        if tells && verdict != Verdict::Stale {
            self.actions.push(Action::Log(level, format!("[{}] Found {}", running.spec.name, failure.address)));
        }
        match verdict {
            Verdict::Found(_) | Verdict::AlreadyBanned | Verdict::Stale => {}
            Verdict::Over => {
                let text = format!("[{}] Ignore {}, expired bantime", self.jails[at].spec.name, failure.address);
                self.log(Level::Info, text);
            }
            Verdict::Claimed(ban) => {
                let known = self.found.remove(&(self.jails[at].key.clone(), ban.subject));
                self.decided(now, at, &ban, What::Ban, known);
                self.feed(now, at, &ban, live);
                self.keep.ban(now, &self.jails[at].key, ban.subject);
                if self.jails[at].jail.offences(ban.subject).is_some() {
                    self.keep.offence(now, &self.jails[at].key, ban.subject);
                }
            }
            Verdict::Observed(ban) => {
                let text = format!("[{}] would ban {}, but observes only", self.jails[at].spec.name, shown(ban.subject));
                self.log(Level::Warn, text);
                self.decided(now, at, &ban, What::Observed, None);
            }
            Verdict::Ban(ban) => {
                let text = format!("[{}] Ban {}", self.jails[at].spec.name, shown(ban.subject));
                self.decided(now, at, &ban, What::Ban, None);
                if self.jails[at].jail.offences(ban.subject).is_some() {
                    self.keep.offence(now, &self.jails[at].key, ban.subject);
                }
                // First: what goes makes room within the same transaction for what comes.
                self.make_room(now, at, ban.subject);
                self.want(now, at, ban.subject, &ban.held, Effect::Log(Level::Warn, text));
                self.feed(now, at, &ban, live);
                self.aggregate(now, at, ban.subject);
            }
        }
    }

    /// A ban of one jail is a failure for the one that counts bans.
    fn feed(&mut self, now: Now, at: usize, ban: &Ban, live: bool) {
        let Some(fed) = self.jails.iter().position(|running| running.spec.is_fed()).filter(|fed| *fed != at) else { return };
        let place = ban.places.last().copied().unwrap_or_default();
        let failure = Failure { address: ban.subject.network(), time: ban.held.since, attempts: 1, place };
        let random = self.random();
        self.judge(now, fed, &failure, live, random);
    }

    /// Offences of an address in other jails, where they count for this one.
    fn offences_elsewhere(&self, now: Now, at: usize, address: IpAddr) -> u32 {
        if !self.jails[at].spec.policy.growth.as_ref().is_some_and(|growth| growth.all_jails) {
            return 0;
        }
        let others = self.jails.iter().enumerate().filter(|(other, _)| *other != at);
        others.map(|(_, other)| other.jail.offended(now, address)).sum()
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
        let spec = &self.jails[at].spec;
        let (set, what) = (spec.set(subject), spec.element(subject));
        self.keep.ban(now, &self.jails[at].key, subject);
        if let Effect::Tell(client) = effect
            && let Some(waiting) = self.waiting.get_mut(&client)
        {
            waiting.open += 1;
        }
        self.pending.effects.push((self.pending.changes.len(), effect));
        self.pending.changes.push(Change { set, what, to });
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
        self.end_ignores(now);
        self.end_pauses(now);
        self.follow_on(now);
        if self.tidy_at <= now.mono {
            self.tidy_at = now.mono + TIDY;
            for running in &mut self.jails {
                running.jail.tidy(now).into_iter().for_each(|subject| self.keep.offence(now, &running.key, subject));
            }
            self.tidy_found();
        }
    }

    fn chosen(&mut self, jail: JailId, choice: Choice) {
        let Some(running) = self.by_id.get(&jail).and_then(|at| self.jails.get_mut(*at)) else { return };
        let news = running.choice.as_ref().is_none_or(|last| last.backend != choice.backend);
        let text = format!("[{}] reads the {}: {}", running.spec.name, choice.backend, choice.why);
        running.choice = Some(choice);
        if news && running.spec.backend == "auto" {
            self.log(Level::Info, text);
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
}

/// The ignore entry that covers all of a subject.
fn covers(nets: &Nets, subject: IpNetwork) -> Option<IpNetwork> {
    nets.find(subject.network()).filter(|entry| entry.prefix() <= subject.prefix())
}
