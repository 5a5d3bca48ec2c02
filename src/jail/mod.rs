//! Jails: policy over failures. A failure goes in, a [`Verdict`] comes out; nothing here touches a kernel, a file or a clock.
//!
//! A [`Jail`] holds what it has counted ([`window`]) and what is banned ([`Held`]); subnets among it also as [`cover`] lays them out
//! for the kernel. The ends of bans lie on the monotonic
//! clock, as the kernel's own timeouts do: a wall clock that jumps neither lifts bans nor prolongs them. Failures bear the
//! log's wall time; [`Now`] carries both clocks.

pub mod cover;
pub mod growth;
pub mod ignore;
pub mod window;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::terms::{Aggregate, Lasting, Span, Time, is_host};
pub use cover::{Cover, Difference, Piece, Stay};
pub use growth::Growth;
pub use ignore::Nets;
pub use window::{Count, Counting, Place, Window};

/// Addresses a jail tracks at most; beyond it the least recent are dropped and counted.
pub const TRACKED_AT_MOST: usize = 1_000_000;

/// Subnets a jail bans at most: a set of intervals slows with every one, and is read whole by `nft list`.
pub const NETS_AT_MOST: usize = 8192;

/// Offenders remembered at most per jail; beyond it those whose last ban ended longest ago are dropped and counted.
const OFFENDERS_AT_MOST: usize = 1_000_000;

/// The two clocks, read once per event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Wall clock: what log lines and people speak.
    pub wall: Time,
    /// Monotonic clock (microseconds since boot): what timeouts run on.
    pub mono: Time,
}

impl Now {
    /// The wall clock less the monotonic one, in microseconds.
    pub fn offset(self) -> i64 {
        self.wall.0.saturating_sub(self.mono.0)
    }

    /// The wall time of an instant on the monotonic clock.
    pub fn wall_of(self, mono: Time) -> Time {
        Time(self.wall.0.saturating_add(mono.0.saturating_sub(self.mono.0)))
    }
}

/// A failure as a jail is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Who failed; IPv4-mapped addresses are IPv4 already.
    pub address: IpAddr,
    /// When, by the log.
    pub time: Time,
    /// How many tries the line stands for.
    pub attempts: u32,
    /// Where the line was read.
    pub place: Place,
}

/// What a jail does with failures.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Failures within findtime that ban; at least 1.
    pub maxretry: u32,
    /// The window.
    pub findtime: Span,
    /// The length of a ban.
    pub bantime: Lasting,
    /// How failures are counted.
    pub counting: Counting,
    /// IPv4 addresses are counted and banned by this prefix (32: each on its own).
    pub ipv4_prefix: u8,
    /// IPv6 addresses are counted and banned by this prefix.
    pub ipv6_prefix: u8,
    /// Bans a subnet when many of its addresses are banned.
    pub aggregate: Option<Aggregate>,
    /// Longer bans for repeat offenders.
    pub growth: Option<Growth>,
    /// How long a ban is remembered after its end, for this jail's growth or another's; zero: not at all.
    pub remember: Span,
    /// Decide and log, but ban nobody.
    pub observe: bool,
}

impl Policy {
    /// The prefix that stands for `address`.
    pub fn prefixed(&self, address: IpAddr) -> IpNetwork {
        let prefix = if address.is_ipv4() { self.ipv4_prefix } else { self.ipv6_prefix };
        network(address, prefix).unwrap_or_else(|| address.into())
    }

    /// Whether the ban of `subject` stands in an interval set: it is not the prefix that addresses are banned by.
    pub fn is_net(&self, subject: IpNetwork) -> bool {
        subject.prefix() != if subject.is_ipv4() { self.ipv4_prefix } else { self.ipv6_prefix }
    }
}

/// How a ban came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Failures in a log.
    Failures,
    /// Somebody asked for it over the control socket.
    Manual {
        /// Who: uid of the client.
        uid: u32,
        /// Why, in their words.
        reason: Option<String>,
        /// Whether it bites although it is ignored: the kernel's ignore sets leave it out while it is held.
        forced: bool,
    },
    /// Another machine decided it, and told us.
    Given {
        /// On whose behalf it was told: uid of the client.
        uid: u32,
        /// The machine's name.
        machine: Box<str>,
        /// Why, in its words.
        reason: Option<Box<str>>,
        /// What we decided ourselves and it outlasts: that goes on if the other machine takes its own back.
        own: Option<Box<Held>>,
    },
    /// It was in the kernel's set when the daemon started: put there by somebody, or by a run that was killed before it could say so.
    Adopted,
    /// Another program put it into the set while the daemon ran.
    Foreign,
    /// So many addresses of the subnet were banned at once.
    Aggregate(u32),
}

impl Origin {
    /// Why, in words, if there is more to say than that it failed.
    pub fn reason(&self) -> Option<String> {
        match self {
            Origin::Manual { reason, .. } => reason.clone(),
            Origin::Given { machine, reason: None, .. } => Some(format!("@{machine}")),
            Origin::Given { machine, reason: Some(reason), .. } => Some(format!("@{machine}: {reason}")),
            Origin::Aggregate(addresses) => Some(format!("{addresses} of its addresses were banned")),
            Origin::Failures | Origin::Adopted | Origin::Foreign => None,
        }
    }
}

/// A ban that is held: decided, and in the kernel or on its way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Wall time at which it began: of the last failure, or of the command.
    pub since: Time,
    /// Monotonic instant at which it ends; `None` is permanent.
    pub until: Option<Time>,
    /// The length it was given; what the kernel calls timeout.
    pub lasting: Lasting,
    /// Failures that led to it, and tries seen since.
    pub failures: u32,
    /// How it came about.
    pub origin: Origin,
    /// Whether the kernel said yes to it.
    pub in_kernel: bool,
    /// The generation of the kernel's ruleset by which it was there; 0: not known, or before anybody listened.
    pub generation: u32,
}

impl Held {
    /// How long it stays.
    pub fn stay(&self) -> Stay {
        Stay { lasting: self.lasting, until: self.until }
    }

    /// Whether it ends later than another.
    pub fn ends_after(&self, other: &Held) -> bool {
        match (self.until, other.until) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(this), Some(other)) => this > other,
        }
    }

    /// Whether it bites although it is ignored.
    pub fn is_forced(&self) -> bool {
        matches!(self.origin, Origin::Manual { forced: true, .. })
    }

    /// What is left of it; `None` is permanent, zero is over.
    pub fn left(&self, now: Now) -> Option<Span> {
        self.until.map(|until| until.since(now.mono))
    }
}

/// What a jail decided about a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Counted: so many now.
    Found(u32),
    /// Banned: put it into the kernel.
    Ban(Ban),
    /// A ban that was found in the kernel is accounted for by the log: nothing has to be done but to say so.
    Claimed(Ban),
    /// Would be banned, but the jail only observes.
    Observed(Ban),
    /// Banned before; another try of a banned address (or of a line read late).
    AlreadyBanned,
    /// The ban would be over already.
    Over,
    /// Older than findtime: it can not matter any more.
    Stale,
}

/// A ban as decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// The address, or the prefix it is banned by.
    pub subject: IpNetwork,
    /// The ban itself.
    pub held: Held,
    /// Where its failures were read.
    pub places: Vec<Place>,
}

/// Earlier bans of one subject.
#[derive(Clone, Copy, Debug)]
struct Offender {
    bans: u32,
    /// Monotonic instant at which the last of them ends or ended; permanent ones never lead to another.
    until: Time,
}

/// One jail: what it counted and what it holds.
pub struct Jail {
    policy: Policy,
    window: Window,
    held: HashMap<IpNetwork, Held>,
    /// How many of them are of IPv4.
    held_v4: usize,
    ends: BTreeSet<(Time, IpNetwork)>,
    /// Those of the bans held that an interval set stands for.
    cover: Cover,
    /// Networks whose addresses are counted and banned one by one, with what shares a prefix with them: our own links.
    exact: Arc<Nets>,
    /// By subnet: how many bans held count for it.
    crowds: HashMap<IpNetwork, u32>,
    offenders: HashMap<IpNetwork, Offender>,
    offenders_at_most: usize,
    /// Those whose offences had to make room, until that is told.
    forgotten: Vec<IpNetwork>,
    offences_evicted: u64,
    /// Failures counted since the start.
    pub failures_total: u64,
    /// Bans decided since the start.
    pub bans_total: u64,
    /// Wall time of the last failure.
    pub last_failure: Option<Time>,
}

impl Jail {
    /// A jail that has counted nothing and holds nobody.
    pub fn new(policy: Policy) -> Jail {
        let window = Window::new(policy.counting, TRACKED_AT_MOST);
        Jail {
            policy,
            window,
            held: HashMap::new(),
            held_v4: 0,
            ends: BTreeSet::new(),
            cover: Cover::default(),
            exact: Arc::default(),
            crowds: HashMap::new(),
            offenders: HashMap::new(),
            offenders_at_most: OFFENDERS_AT_MOST,
            forgotten: Vec::new(),
            offences_evicted: 0,
            failures_total: 0,
            bans_total: 0,
            last_failure: None,
        }
    }

    /// What it does with failures.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Takes a new policy; bans and counts stay, unless the way of counting or the prefix changed: then counts begin anew. A ban stays
    /// one of the prefix it was given for; which set it stands in may change.
    pub fn reform(&mut self, policy: Policy) {
        let prefix = |p: &Policy| (p.ipv4_prefix, p.ipv6_prefix);
        let rekeyed = prefix(&self.policy) != prefix(&policy);
        if self.policy.counting != policy.counting || rekeyed {
            self.window = Window::new(policy.counting, TRACKED_AT_MOST);
        }
        let crowded = self.policy.aggregate != policy.aggregate;
        self.policy = policy;
        if rekeyed {
            for (subject, held) in &self.held {
                self.cover.mean(*subject, self.policy.is_net(*subject).then(|| held.stay()));
            }
        }
        if !crowded {
            return;
        }
        self.crowds.clear();
        let aggregate = self.policy.aggregate;
        for net in self.held.keys().filter_map(|subject| crowd_of(aggregate?, *subject)) {
            *self.crowds.entry(net).or_default() += 1;
        }
    }

    /// Addresses whose prefix has something in common with these networks are counted and banned one by one from now on.
    pub fn exactly(&mut self, links: &Arc<Nets>) {
        self.exact = links.clone();
    }

    /// The address or prefix that stands for `address` here.
    pub fn subject(&self, address: IpAddr) -> IpNetwork {
        let prefixed = self.policy.prefixed(address);
        let is_one = is_host(prefixed);
        match !is_one && self.exact.overlaps(prefixed).is_some() {
            true => address.into(),
            false => prefixed,
        }
    }

    /// Whether an interval set stands for the ban of `subject`.
    pub fn is_net(&self, subject: IpNetwork) -> bool {
        self.policy.is_net(subject)
    }

    /// The subnets it bans, as they are laid out for the kernel.
    pub fn cover(&self) -> &Cover {
        &self.cover
    }

    /// The same, to be told what the kernel holds.
    pub fn cover_mut(&mut self) -> &mut Cover {
        &mut self.cover
    }

    /// Judges a failure. `random` in 0.0..1.0 and `elsewhere`, offences in other jails that count here, are used by growth alone.
    pub fn judge(&mut self, now: Now, failure: &Failure, random: f64, elsewhere: u32) -> Verdict {
        // A line from the future counts as now: it must neither outlive its window nor ban for longer.
        let time = failure.time.min(now.wall);
        if time + self.policy.findtime < now.wall && self.would_be_over(now, time) {
            return Verdict::Stale;
        }
        self.failures_total += 1;
        self.last_failure = Some(self.last_failure.map_or(time, |last| last.max(time)));
        let subject = self.subject(failure.address);
        if let Some(held) = self.held.get_mut(&subject) {
            held.failures = held.failures.saturating_add(failure.attempts.max(1));
            if held.origin != Origin::Adopted {
                return Verdict::AlreadyBanned;
            }
            return self.claim(subject, failure, time);
        }
        if !self.cover.is_empty() {
            let until = match self.grown(now, subject, random, elsewhere) {
                Lasting::Permanent => None,
                Lasting::For(span) => Some(now.mono + (time + span).since(now.wall)),
            };
            if let Some(around) = self.covered_longer(subject, until) {
                if let Some(held) = self.held.get_mut(&around) {
                    held.failures = held.failures.saturating_add(failure.attempts.max(1));
                }
                return Verdict::AlreadyBanned;
            }
        }
        let Policy { maxretry, findtime, .. } = self.policy;
        let (failures, places) =
            match self.window.fail(subject.network(), time, failure.attempts, failure.place, maxretry, findtime) {
                Count::Now(n) => return Verdict::Found(n),
                Count::Reached { failures, places } => (failures, places),
            };
        let lasting = self.grown(now, subject, random, elsewhere);
        let held = match lasting {
            Lasting::Permanent => {
                Held { since: time, until: None, lasting, failures, origin: Origin::Failures, in_kernel: false, generation: 0 }
            }
            Lasting::For(span) => {
                let left = (time + span).since(now.wall);
                if left == Span(0) {
                    return Verdict::Over;
                }
                Held {
                    since: time,
                    until: Some(now.mono + left),
                    lasting,
                    failures,
                    origin: Origin::Failures,
                    in_kernel: false,
                    generation: 0,
                }
            }
        };
        let ban = Ban { subject, held, places };
        if self.policy.observe {
            return Verdict::Observed(ban);
        }
        self.hold(ban.subject, ban.held.clone());
        self.bans_total += 1;
        Verdict::Ban(ban)
    }

    /// A ban was found in the kernel, and here is a failure of its address: when the log accounts for the ban it is one of ours, made
    /// by a run that was killed before it could say so.
    fn claim(&mut self, subject: IpNetwork, failure: &Failure, time: Time) -> Verdict {
        let Policy { maxretry, findtime, .. } = self.policy;
        let (failures, places) =
            match self.window.fail(subject.network(), time, failure.attempts, failure.place, maxretry, findtime) {
                Count::Now(n) => return Verdict::Found(n),
                Count::Reached { failures, places } => (failures, places),
            };
        let Some(held) = self.held.get_mut(&subject) else { return Verdict::Found(failures) };
        (held.origin, held.failures) = (Origin::Failures, failures);
        let held = held.clone();
        self.remember(&held, subject);
        self.bans_total += 1;
        Verdict::Claimed(Ban { subject, held, places })
    }

    /// Holds a ban that was decided elsewhere (by hand, or found in the kernel). One that ends later than the present one
    /// of the same subject replaces it; tells whether it did.
    pub fn hold(&mut self, subject: IpNetwork, held: Held) -> bool {
        if self.held.get(&subject).is_some_and(|present| !held.ends_after(present)) {
            return false;
        }
        self.remember(&held, subject);
        // What was counted before may be what led to a ban that is found in the kernel.
        let forget = held.origin != Origin::Adopted;
        self.insert(subject, held);
        if forget && self.subject(subject.network()) == subject {
            self.window.forget(subject.network());
        }
        true
    }

    /// Another machine's ban, over what is held. What we decided ourselves stays beneath a ban that outlasts it. Returns whether
    /// anything changed for the kernel.
    pub fn hold_given(&mut self, subject: IpNetwork, mut held: Held) -> bool {
        if let (Some(present), Origin::Given { own, .. }) = (self.held.get(&subject), &mut held.origin) {
            *own = match &present.origin {
                Origin::Given { own, .. } => own.clone(),
                _ => Some(Box::new(present.clone())),
            };
        }
        self.hold(subject, held)
    }

    /// What we decide ourselves while another machine's longer ban is held goes beneath that. Returns whether it was put there.
    pub fn hold_beneath(&mut self, subject: IpNetwork, held: &Held) -> bool {
        let Some(Held { origin: Origin::Given { own, .. }, .. }) = self.held.get_mut(&subject) else { return false };
        if own.as_ref().is_some_and(|own| !held.ends_after(own)) {
            return false;
        }
        *own = Some(Box::new(held.clone()));
        true
    }

    /// Another machine takes its ban back: what was held is returned, and what of our own goes on instead.
    pub fn take_back(&mut self, now: Now, subject: IpNetwork, from: &str) -> Option<(Held, Option<Held>)> {
        let of = |held: &Held| matches!(&held.origin, Origin::Given { machine, .. } if **machine == *from);
        self.held.get(&subject).filter(|held| of(held))?;
        let mut held = self.lift(subject)?;
        let Origin::Given { own, .. } = &mut held.origin else { return Some((held, None)) };
        let own = own.take().map(|own| Held { in_kernel: false, generation: 0, ..*own });
        let own = own.filter(|own| own.left(now) != Some(Span(0)));
        if let Some(own) = &own {
            self.insert(subject, own.clone());
        }
        Some((held, own))
    }

    /// Lifts a ban; what was held is returned.
    pub fn lift(&mut self, subject: IpNetwork) -> Option<Held> {
        let held = self.take(subject)?;
        if let Some(until) = held.until {
            self.ends.remove(&(until, subject));
        }
        self.let_go(subject);
        Some(held)
    }

    /// Cuts `hole` out of the bans that lie around it: each is lifted and goes on as bans of what is left of it. Tells what was cut,
    /// and what came of it.
    pub fn cut(&mut self, hole: IpNetwork) -> (Vec<(IpNetwork, Held)>, Vec<IpNetwork>) {
        let around: Vec<IpNetwork> =
            self.covering(hole.network()).into_iter().map(|(net, _)| net).filter(|net| net.prefix() < hole.prefix()).collect();
        let (mut cut, mut left) = (Vec::new(), Vec::new());
        for net in around {
            let Some(held) = self.lift(net) else { continue };
            for part in cover::around(net, hole) {
                let shorter = self.held.get(&part).is_some_and(|present| !held.stay().outlasts(present.stay()));
                if !shorter {
                    self.insert(part, Held { in_kernel: false, ..held.clone() });
                    left.push(part);
                }
            }
            cut.push((net, held));
        }
        left.sort();
        left.dedup();
        (cut, left)
    }

    /// The bans that lie within `net`, itself among them.
    pub fn within(&self, net: IpNetwork) -> Vec<IpNetwork> {
        let standing = if net.is_ipv4() { self.policy.ipv4_prefix } else { self.policy.ipv6_prefix };
        let mut within: Vec<IpNetwork> = match net.prefix() >= standing {
            // Only what an interval set stands for is narrower than what addresses are banned by.
            true => self.cover.within(net).chain(self.held.contains_key(&net).then_some(net)).collect(),
            false => self.held.keys().filter(|subject| cover::holds(net, **subject)).copied().collect(),
        };
        within.sort();
        within.dedup();
        within
    }

    /// The subnet that is to be banned because of the ban of `subject`: enough of its addresses are banned, and it is not. The ban ends
    /// when that of `subject` does.
    pub fn aggregated(&self, subject: IpNetwork) -> Option<Ban> {
        let aggregate = self.policy.aggregate?;
        let net = crowd_of(aggregate, subject)?;
        let crowd = *self.crowds.get(&net)?;
        let last = self.held.get(&subject)?;
        if crowd < aggregate.count || self.held.contains_key(&net) || self.covered_longer(net, last.until).is_some() {
            return None;
        }
        let held = Held { failures: 0, origin: Origin::Aggregate(crowd), in_kernel: false, ..last.clone() };
        Some(Ban { subject: net, held, places: Vec::new() })
    }

    /// The ban of a subnet around `subject` that ends no sooner than `until`.
    fn covered_longer(&self, subject: IpNetwork, until: Option<Time>) -> Option<IpNetwork> {
        if self.cover.is_empty() {
            return None;
        }
        let new = Stay { lasting: Lasting::Permanent, until };
        // Asked for every failure: only the lengths that there are, the longest first.
        let address = subject.network();
        let own = self.policy.prefixed(address).prefix();
        let lengths = self.cover.lengths(address).chain([own]).filter(|prefix| *prefix < subject.prefix());
        let around = lengths.filter_map(|prefix| self.held.get_key_value(&network(address, prefix)?));
        let longer = around.filter(|(_, held)| !new.outlasts(held.stay())).map(|(net, _)| *net);
        longer.max_by_key(|net| net.prefix())
    }

    /// The kernel said yes to the ban of a subject, by this generation of its ruleset.
    pub fn confirm(&mut self, subject: IpNetwork, generation: u32) {
        if let Some(held) = self.held.get_mut(&subject) {
            held.in_kernel = true;
            held.generation = generation;
        }
    }

    /// Counts a failure that was counted before: what a start reads back. Whatever it led to has been carried out.
    pub fn recount(&mut self, failure: &Failure) {
        let Policy { maxretry, findtime, .. } = self.policy;
        self.window.fail(failure.address, failure.time, failure.attempts, failure.place, maxretry, findtime);
    }

    /// Forgets the failures counted for an address.
    pub fn forget_failures(&mut self, address: IpAddr) {
        self.window.forget(address);
    }

    /// Everything counted, in an order in which counting it again comes to the same.
    pub fn counted_failures(&self) -> impl Iterator<Item = Failure> + '_ {
        self.window.failures()
    }

    /// Forgets counted failures and earlier offences of a subject.
    pub fn forget(&mut self, subject: IpNetwork) {
        self.window.forget(subject.network());
        self.offenders.remove(&subject);
    }

    /// Earlier bans of a subject that are remembered: how many, and the monotonic instant at which the last ends or ended.
    pub fn offences(&self, subject: IpNetwork) -> Option<(u32, Time)> {
        self.offenders.get(&subject).map(|offender| (offender.bans, offender.until))
    }

    /// Everybody whose earlier bans are remembered.
    pub fn offenders(&self) -> impl Iterator<Item = IpNetwork> {
        self.offenders.keys().copied()
    }

    /// How many earlier bans of an address are remembered now.
    pub fn offended(&self, now: Now, address: IpAddr) -> u32 {
        self.remembered(now, self.subject(address), self.policy.remember)
    }

    /// Earlier bans of a subject as an earlier run kept them.
    pub fn restore_offences(&mut self, subject: IpNetwork, bans: u32, until: Time) {
        if self.policy.remember > Span(0) && self.offenders.len() < self.offenders_at_most {
            self.offenders.insert(subject, Offender { bans, until });
        }
    }

    /// The ban of a subject, if it is held.
    pub fn held(&self, subject: IpNetwork) -> Option<&Held> {
        self.held.get(&subject)
    }

    /// The bans that cover an address: its own, its prefix's, and every subnet around it.
    pub fn covering(&self, address: IpAddr) -> Vec<(IpNetwork, &Held)> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let nets = (0..=longest).rev().filter_map(|prefix| network(address, prefix));
        nets.filter_map(|net| self.held.get_key_value(&net)).map(|(net, held)| (*net, held)).collect()
    }

    /// Every ban held, in no order.
    pub fn bans(&self) -> impl Iterator<Item = (IpNetwork, &Held)> {
        self.held.iter().map(|(subject, held)| (*subject, held))
    }

    /// The same, to note what became of them; their ends must stay.
    pub fn bans_mut(&mut self) -> impl Iterator<Item = (IpNetwork, &mut Held)> {
        self.held.iter_mut().map(|(subject, held)| (*subject, held))
    }

    /// How many bans are held.
    pub fn bans_held(&self) -> usize {
        self.held.len()
    }

    /// How many bans are held that stand in the same set as that of `subject`.
    pub fn bans_beside(&self, subject: IpNetwork) -> usize {
        let (all, nets) = match subject.is_ipv4() {
            true => (self.held_v4, self.cover.counts().0),
            false => (self.held.len() - self.held_v4, self.cover.counts().1),
        };
        if self.is_net(subject) { nets } else { all - nets }
    }

    /// Addresses with counted failures.
    pub fn failing(&self) -> usize {
        self.window.len()
    }

    /// Addresses whose counts were dropped at the ceiling.
    pub fn evicted(&self) -> u64 {
        self.window.evicted()
    }

    /// Subjects whose offences were forgotten at the ceiling.
    pub fn offences_evicted(&self) -> u64 {
        self.offences_evicted
    }

    /// Failures counted for an address.
    pub fn counted(&self, now: Now, address: IpAddr) -> u32 {
        self.window.count(self.subject(address).network(), now.wall, self.policy.findtime)
    }

    /// Monotonic instant at which the next ban ends.
    pub fn next_end(&self) -> Option<Time> {
        self.ends.first().map(|(until, _)| *until)
    }

    /// Lets go of the bans that have ended by now, and of failures and offences too old to matter.
    pub fn expire(&mut self, now: Now) -> Vec<(IpNetwork, Held)> {
        let mut ended = Vec::new();
        while let Some((until, subject)) = self.ends.first().copied() {
            if until > now.mono {
                break;
            }
            self.ends.pop_first();
            if let Some(held) = self.take(subject) {
                self.let_go(subject);
                ended.push((subject, held));
            }
        }
        if ended.iter().any(|(subject, _)| self.is_net(*subject)) {
            self.cover.tidy(now.mono);
        }
        ended
    }

    /// Drops failures and offences too old to matter; called now and then. Tells whose offences were dropped.
    pub fn tidy(&mut self, now: Now) -> Vec<IpNetwork> {
        self.window.forget_older(now.wall, self.policy.findtime);
        self.cover.tidy(now.mono);
        let memory = self.policy.remember;
        let old = self.offenders.extract_if(|_, offender| offender.until + memory <= now.mono).map(|(subject, _)| subject);
        std::mem::take(&mut self.forgotten).into_iter().chain(old).collect()
    }

    fn insert(&mut self, subject: IpNetwork, held: Held) {
        let until = held.until;
        if self.is_net(subject) {
            self.cover.mean(subject, Some(held.stay()));
        }
        match self.held.insert(subject, held) {
            Some(Held { until: Some(old), .. }) => _ = self.ends.remove(&(old, subject)),
            Some(_) => {}
            None => {
                self.held_v4 += usize::from(subject.is_ipv4());
                if let Some(net) = self.policy.aggregate.and_then(|aggregate| crowd_of(aggregate, subject)) {
                    *self.crowds.entry(net).or_default() += 1;
                }
            }
        }
        if let Some(until) = until {
            self.ends.insert((until, subject));
        }
    }

    fn take(&mut self, subject: IpNetwork) -> Option<Held> {
        let held = self.held.remove(&subject)?;
        self.held_v4 -= usize::from(subject.is_ipv4());
        Some(held)
    }

    /// What else knows of a ban that is held no more.
    fn let_go(&mut self, subject: IpNetwork) {
        if self.is_net(subject) {
            self.cover.mean(subject, None);
        }
        if let Some(net) = self.policy.aggregate.and_then(|aggregate| crowd_of(aggregate, subject))
            && let Some(crowd) = self.crowds.get_mut(&net)
        {
            *crowd -= 1;
            if *crowd == 0 {
                self.crowds.remove(&net);
            }
        }
    }

    fn remember(&mut self, held: &Held, subject: IpNetwork) {
        let (Some(until), true) = (held.until, self.policy.remember > Span(0)) else { return };
        if held.origin == Origin::Failures {
            if self.offenders.len() >= self.offenders_at_most && !self.offenders.contains_key(&subject) {
                self.forget_oldest_offenders();
            }
            let offender = self.offenders.entry(subject).or_insert(Offender { bans: 0, until });
            offender.bans = offender.bans.saturating_add(1);
            offender.until = until;
        }
    }

    /// Forgets some of those whose last ban ended longest ago: finding them takes a walk over all.
    fn forget_oldest_offenders(&mut self) {
        let mut all: Vec<(Time, IpNetwork)> = self.offenders.iter().map(|(subject, last)| (last.until, *subject)).collect();
        let some = (all.len() / 100).max(1).min(all.len());
        if some < all.len() {
            all.select_nth_unstable(some);
            all.truncate(some);
        }
        self.offences_evicted += all.len() as u64;
        for (_, subject) in all {
            self.offenders.remove(&subject);
            self.forgotten.push(subject);
        }
    }

    fn grown(&self, now: Now, subject: IpNetwork, random: f64, elsewhere: u32) -> Lasting {
        let Some(growth) = &self.policy.growth else { return self.policy.bantime };
        let offences = self.remembered(now, subject, growth.memory).saturating_add(elsewhere);
        growth.bantime(self.policy.bantime, offences, random)
    }

    fn remembered(&self, now: Now, subject: IpNetwork, memory: Span) -> u32 {
        self.offenders.get(&subject).filter(|offender| offender.until + memory > now.mono).map_or(0, |offender| offender.bans)
    }

    fn would_be_over(&self, now: Now, time: Time) -> bool {
        match self.policy.bantime {
            Lasting::Permanent => false,
            Lasting::For(span) => time + span.max(self.policy.findtime) <= now.wall,
        }
    }
}

/// The network of `prefix` bits around an address.
pub fn network(address: IpAddr, prefix: u8) -> Option<IpNetwork> {
    let net = IpNetwork::new(address, prefix).ok()?;
    IpNetwork::new(net.network(), prefix).ok()
}

/// The subnet that `subject` counts for, if it is narrower.
fn crowd_of(aggregate: Aggregate, subject: IpNetwork) -> Option<IpNetwork> {
    let prefix = if subject.is_ipv4() { aggregate.v4 } else { aggregate.v6 }?;
    (subject.prefix() > prefix).then(|| network(subject.network(), prefix)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            maxretry: 3,
            findtime: Span::from_secs(60),
            bantime: Lasting::For(Span::from_secs(600)),
            counting: Counting::Sliding,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            aggregate: None,
            growth: None,
            remember: Span(0),
            observe: false,
        }
    }

    const BOOT: i64 = 1_000_000;

    fn at(secs: i64) -> Now {
        Now { wall: Time::from_secs(BOOT + secs), mono: Time::from_secs(secs) }
    }

    /// Plays `0s fail A; 10s fail A` and tells what was banned and until when, `20s ban A until 620s`.
    fn check(script: &str, expected: &str) {
        let mut jail = Jail::new(policy());
        let mut said = Vec::new();
        for step in script.split(';').map(str::trim) {
            let (when, rest) = step.split_once(' ').expect("`10s fail A`");
            let secs: i64 = when.trim_end_matches('s').parse().expect("seconds");
            for (subject, _) in jail.expire(at(secs)) {
                said.push(format!("{when} over {}", name(subject)));
            }
            let Some((verb, who)) = rest.split_once(' ') else { continue };
            let (who, log) =
                who.split_once(" at ").map_or((who, secs), |(w, t)| (w, t.trim_end_matches('s').parse().expect("seconds")));
            assert_eq!(verb, "fail");
            let failure = Failure { address: address(who), time: at(log).wall, attempts: 1, place: Place(0) };
            match jail.judge(at(secs), &failure, 0.0, 0) {
                Verdict::Ban(ban) => {
                    let until = ban.held.until.map_or("ever".into(), |t| format!("{}s", t.secs()));
                    said.push(format!("{when} ban {} until {until}", name(ban.subject)));
                }
                Verdict::Found(_) => {}
                other => said.push(format!("{when} {other:?} {who}")),
            }
        }
        assert_eq!(said.join("; "), expected, "{script}");
    }

    fn address(who: &str) -> IpAddr {
        match who.as_bytes() {
            [letter] => IpAddr::from([192, 0, 2, *letter]),
            _ => who.parse().expect("an address"),
        }
    }

    fn name(subject: IpNetwork) -> String {
        match subject {
            IpNetwork::V4(net) => (net.network().octets()[3] as char).to_string(),
            IpNetwork::V6(net) => net.to_string(),
        }
    }

    #[test]
    fn a_jail_reads_as_its_specification() {
        check("0s fail A; 10s fail A; 20s fail A", "20s ban A until 620s");
        check("0s fail A; 10s fail B; 20s fail A; 30s fail B", "");
        check("0s fail A; 10s fail A; 61s fail A", "");
        // the ban runs from the last failure's log time
        check("100s fail A at 40s; 100s fail A at 50s; 100s fail A at 60s", "100s ban A until 660s");
        check("900s fail A at 1s; 900s fail A at 2s; 900s fail A at 3s", "900s Stale A; 900s Stale A; 900s Stale A");
        // a line from the future counts as now
        check("0s fail A at 99s; 1s fail A at 99s; 2s fail A at 99s", "2s ban A until 602s");
        // further tries of a banned address count for it and change nothing
        check("0s fail A; 1s fail A; 2s fail A; 3s fail A; 603s tick", "2s ban A until 602s; 3s AlreadyBanned A; 603s over A");
        check(
            "0s fail A; 1s fail A; 2s fail A; 602s fail A; 603s fail A; 604s fail A",
            "2s ban A until 602s; 602s over A; 604s ban A until 1204s",
        );
        // IPv6 counts by prefix
        check("0s fail 2001:db8::1; 1s fail 2001:db8::2; 2s fail 2001:db8::ffff:3", "2s ban 2001:db8::/64 until 602s");
        check("0s fail 2001:db8::1; 1s fail 2001:db8:0:1::2; 2s fail 2001:db8::3", "");
    }

    #[test]
    fn a_longer_ban_replaces_a_shorter_one_and_never_the_other_way() {
        let mut jail = Jail::new(policy());
        let subject = jail.subject(address("A"));
        let held = |until: Option<i64>| Held {
            since: at(0).wall,
            until: until.map(Time::from_secs),
            lasting: Lasting::Permanent,
            failures: 0,
            origin: Origin::Adopted,
            in_kernel: true,
            generation: 0,
        };
        assert!(jail.hold(subject, held(Some(100))));
        assert!(!jail.hold(subject, held(Some(50))));
        assert!(jail.hold(subject, held(Some(200))));
        assert_eq!(jail.next_end(), Some(Time::from_secs(200)));
        assert!(jail.hold(subject, held(None)));
        assert!(!jail.hold(subject, held(Some(300))));
        assert_eq!((jail.next_end(), jail.expire(at(1_000_000)).len()), (None, 0));
        assert!(jail.lift(subject).is_some() && jail.lift(subject).is_none());
    }

    #[test]
    fn every_ban_that_covers_an_address_is_found() {
        let mut jail = Jail::new(policy());
        let held = Held {
            since: at(0).wall,
            until: None,
            lasting: Lasting::Permanent,
            failures: 0,
            origin: Origin::Adopted,
            in_kernel: true,
            generation: 0,
        };
        for net in ["192.0.2.0/24", "192.0.2.65/32", "198.51.100.0/24"] {
            jail.hold(net.parse().expect("a net"), held.clone());
        }
        let covering: Vec<String> = jail.covering(address("A")).iter().map(|(net, _)| net.to_string()).collect();
        assert_eq!(covering, ["192.0.2.65/32", "192.0.2.0/24"]);
    }

    #[test]
    fn a_ban_found_in_the_kernel_is_ours_once_the_log_accounts_for_it() {
        let mut jail = Jail::new(policy());
        let failure = |secs| Failure {
            address: address("A"),
            time: at(secs).wall,
            attempts: 1,
            place: Place(u64::try_from(secs).unwrap_or(0)),
        };
        jail.recount(&failure(1));
        let until = Some(Time::from_secs(600));
        let held = Held {
            since: at(3).wall,
            until,
            lasting: Lasting::Permanent,
            failures: 0,
            origin: Origin::Adopted,
            in_kernel: true,
            generation: 0,
        };
        jail.hold(jail.subject(address("A")), held);
        assert_eq!(jail.judge(at(10), &failure(2), 0.0, 0), Verdict::Found(2));
        let Verdict::Claimed(ban) = jail.judge(at(10), &failure(3), 0.0, 0) else { panic!("not accounted for") };
        assert_eq!((ban.places, ban.held.origin, ban.held.until), (vec![Place(1), Place(2), Place(3)], Origin::Failures, until));
        assert_eq!(jail.judge(at(10), &failure(4), 0.0, 0), Verdict::AlreadyBanned);
    }

    #[test]
    fn what_stands_in_each_set_and_within_a_subnet_is_known_without_a_walk() {
        let links: Nets = ["203.0.113.0/24".parse().expect("a subnet")].into_iter().collect();
        let mut jail = Jail::new(policy());
        jail.exactly(&Arc::new(links));
        let check = |jail: &Jail| {
            for (subject, _) in jail.bans() {
                let beside =
                    |other: &IpNetwork| other.is_ipv4() == subject.is_ipv4() && jail.is_net(*other) == jail.is_net(subject);
                assert_eq!(jail.bans_beside(subject), jail.bans().filter(|(other, _)| beside(other)).count(), "{subject}");
                let mut within: Vec<_> = jail.bans().map(|(net, _)| net).filter(|net| cover::holds(subject, *net)).collect();
                within.sort();
                assert_eq!(jail.within(subject), within, "{subject}");
            }
        };
        let nets = [
            "198.51.100.7/32",
            "198.51.100.0/24",
            "198.51.100.128/25",
            "203.0.113.7/32",
            "2001:db8::/64",
            "2001:db8::7/128",
            "2001:db8::/48",
            "2001:db8:0:1::/64",
            "2001:db8::8/125",
        ];
        let nets = nets.map(|net| net.parse::<IpNetwork>().expect("a subnet"));
        let held = |until: i64| Held {
            since: at(0).wall,
            until: Some(at(until).mono),
            lasting: Lasting::For(Span::from_secs(100)),
            failures: 0,
            origin: Origin::Adopted,
            in_kernel: true,
            generation: 0,
        };
        for (n, net) in nets.iter().enumerate() {
            jail.hold(*net, held(100 + n as i64));
            jail.hold(*net, held(200 + n as i64));
            check(&jail);
        }
        jail.reform(Policy { ipv4_prefix: 25, ipv6_prefix: 48, ..policy() });
        check(&jail);
        jail.cut("198.51.100.9/32".parse().expect("an address"));
        check(&jail);
        jail.lift(nets[4]);
        jail.expire(at(203));
        check(&jail);
        jail.expire(at(1000));
        assert_eq!((jail.bans_held(), jail.bans_beside(nets[0]), jail.bans_beside(nets[5])), (0, 0, 0));
    }

    #[test]
    fn at_their_ceiling_the_oldest_offences_are_forgotten_and_counted() {
        let mut jail = Jail::new(Policy { maxretry: 1, remember: Span::from_secs(86_400), ..policy() });
        jail.offenders_at_most = 3;
        let subject = |last: u8| IpNetwork::from(IpAddr::from([192, 0, 2, last]));
        for last in 1..=5 {
            let at = at(i64::from(last));
            let failure = Failure { address: subject(last).network(), time: at.wall, attempts: 1, place: Place(0) };
            assert!(matches!(jail.judge(at, &failure, 0.0, 0), Verdict::Ban(_)));
        }
        let known: Vec<u8> = (1..=5).filter(|last| jail.offences(subject(*last)).is_some()).collect();
        assert_eq!((known, jail.offences_evicted()), (vec![3, 4, 5], 2));
        assert_eq!(jail.tidy(at(6)), [subject(1), subject(2)], "and the state is told");
        assert!(jail.tidy(at(6)).is_empty());
    }

    #[test]
    fn an_observing_jail_bans_nobody() {
        let mut jail = Jail::new(Policy { observe: true, maxretry: 1, ..policy() });
        let failure = Failure { address: address("A"), time: at(0).wall, attempts: 1, place: Place(0) };
        assert!(matches!(jail.judge(at(0), &failure, 0.0, 0), Verdict::Observed(_)));
        assert_eq!((jail.bans_held(), jail.bans_total), (0, 0));
    }

    #[test]
    fn offences_make_the_next_ban_longer() {
        let growth = Growth {
            factor: 1.0,
            multipliers: vec![],
            maxtime: None,
            spread: Span(0),
            memory: Span::from_secs(10_000),
            all_jails: false,
        };
        let mut jail = Jail::new(Policy { maxretry: 1, remember: growth.memory, growth: Some(growth), ..policy() });
        let mut lengths = Vec::new();
        for secs in [0, 700, 2000, 50_000] {
            jail.expire(at(secs));
            let failure = Failure { address: address("A"), time: at(secs).wall, attempts: 1, place: Place(0) };
            if let Verdict::Ban(ban) = jail.judge(at(secs), &failure, 0.0, 0) {
                lengths.push(ban.held.left(at(secs)).map(Span::secs));
            }
        }
        assert_eq!(lengths, [Some(600), Some(1200), Some(2400), Some(600)]);
    }
}
