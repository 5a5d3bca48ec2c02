//! The core's half that faces others' hands: what other programs do to our table.
//!
//! A foreign transaction is one of three things. One that touches only elements of ban sets is an admin's will: what it adds is a
//! ban, what it removes an unban. One that removes every element of a set that held two or more is a flush, which nobody means as so
//! many unbans: it is put back. Whatever touches the table itself, a chain, a set, a rule or an ignore set (those follow `ignoreip`) is
//! damage: the kernel is made equal to what the core holds, and elements nobody knows go. What we could not hear is looked at
//! ([`Core::looked`]), and is damage unless the table stands as it was left.
//!
//! They are heeded in the order in which they happened, between our own commits. Which of two came last, theirs or ours, the
//! ruleset's generation says; where even that leaves doubt, ours is said again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{Adopted, Committed, Core, Done, Effect, Level, Rebuild, Row, Suspects, Target, What, shown, subnets};
use crate::engine::spec::Spec;
use crate::jail::{Held, Now, Origin};
use crate::nft::{Element, Foreign, Heard, Interval, Touch};
use crate::state::packed::Step;
use crate::terms::{Lasting, Span, Time};

/// The kernel's clock and ours are read at different moments: ends alike within this are alike.
const ALIKE: Span = Span::from_secs(2);
/// What one foreign transaction did is told one by one up to this many.
const TOLD_AT_MOST: usize = 100;
/// So long an unban of ours is remembered, for a foreign ban of the same address that happened before it and is heard after it.
const REMEMBERED: Span = Span::from_secs(10);
/// And so many of them.
const REMEMBERED_AT_MOST: usize = 50_000;

/// A set and an element's key in it.
type Key = (Arc<str>, IpAddr);

/// What there is to know about others' hands.
#[derive(Debug, Default)]
pub(super) struct Hands {
    /// Heard, and waiting for our own commit to come through.
    queue: VecDeque<Heard>,
    /// Sets that may hold other elements than we know of.
    suspects: Suspects,
    /// Those that the rebuild under way looks into.
    looked_into: Suspects,
    /// The generation at which the whole table was as wanted, bans aside.
    established: u32,
    /// The same with every ban.
    whole: u32,
    /// What happened up to this generation was seen when the bans were read at the start.
    seen: u32,
    /// Commits of ours that others came into: before and after.
    blurred: VecDeque<(u32, u32)>,
    /// Elements we took out lately: when, by which generation, from which set.
    taken_out: VecDeque<(Time, u32, Arc<str>, IpAddr)>,
    /// Something was not heard, and nothing is known that would call for more than looking what it was.
    unheard: bool,
    /// It was missed while we filled the table ourselves.
    missed: bool,
    /// The handle of our table, as far as it is known.
    table: u64,
    /// Elements said again while heeding.
    again: HashSet<Key>,
    /// Whether the kernel refuses every change of the table by others.
    pub owned: bool,
}

/// Whether generation `a` came after `b`. The kernel's count begins anew at its end.
fn after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

impl Core {
    /// Somebody else's transaction was heard.
    pub(super) fn foreign(&mut self, heard: Heard) {
        self.hands.queue.push_back(heard);
    }

    /// Whether nothing heard waits.
    pub(super) fn heeded(&self) -> bool {
        self.hands.queue.is_empty()
    }

    /// What our own commit says about the order of things.
    pub(super) fn committed_at(&mut self, now: Now, committed: &Committed, gone: impl Iterator<Item = Key>) {
        let Hands { blurred, taken_out, .. } = &mut self.hands;
        if !committed.alone {
            blurred.push_back((committed.before, committed.after));
            if blurred.len() > 64 {
                blurred.pop_front();
            }
        }
        taken_out.extend(gone.map(|(set, address)| (now.mono, committed.after, set, address)));
        let old = |entry: &(Time, u32, Arc<str>, IpAddr)| entry.0 + REMEMBERED < now.mono;
        while taken_out.len() > REMEMBERED_AT_MOST || taken_out.front().is_some_and(old) {
            taken_out.pop_front();
        }
    }

    /// The table is as it was wanted, at this generation.
    pub fn established_at(&mut self, done: &Done) {
        let looked_into = std::mem::take(&mut self.hands.looked_into);
        self.hands.established = done.generation;
        if done.fresh || looked_into == Suspects::All {
            self.hands.whole = done.generation;
        }
        (self.hands.owned, self.hands.table) = (done.owned, done.table);
        if done.missed {
            self.hands.missed = true;
            self.hands.queue.push_back(Heard::Lost);
        }
    }

    /// Every ban held is in the kernel, by this generation.
    pub fn all_confirmed(&mut self, now: Now, generation: u32) {
        for running in &mut self.jails {
            for (subject, held) in running.jail.bans_mut() {
                if !held.in_kernel {
                    self.keep.ban(now, &running.key, subject);
                }
                (held.in_kernel, held.generation) = (true, generation);
            }
        }
    }

    /// The table has to be made whole, and these sets compared.
    pub(super) fn make_whole(&mut self, now: Now, why: String, suspects: Suspects) {
        self.hands.unheard = false;
        self.hands.suspects.add(suspects);
        self.rebuild = Rebuild::Wanted { why, not_before: now.mono, failed: 0 };
    }

    /// The handle of the table that shall only be looked at, if that may do.
    pub(super) fn take_look(&mut self) -> Option<u64> {
        let unheard = std::mem::take(&mut self.hands.unheard);
        (unheard && self.hands.table != 0).then_some(self.hands.table)
    }

    /// The sets that the rebuild that begins now has to look into.
    pub(super) fn take_suspects(&mut self) -> Suspects {
        let suspects = std::mem::take(&mut self.hands.suspects);
        self.hands.looked_into = suspects.clone();
        suspects
    }

    /// These sets have to be compared, too.
    pub(super) fn suspect(&mut self, suspects: Suspects) {
        self.hands.suspects.add(suspects);
    }

    /// The sets that were found to differ between tables at the start.
    pub fn torn(&mut self) -> Suspects {
        self.take_suspects()
    }

    /// The rebuild failed: they are as suspect as before.
    pub(super) fn still_suspect(&mut self) {
        let looked_into = std::mem::take(&mut self.hands.looked_into);
        self.hands.suspects.add(looked_into);
    }

    /// What happened up to this generation was seen when the bans were read at the start.
    pub fn seen_up_to(&mut self, generation: u32) {
        self.hands.seen = generation;
    }

    /// Takes in what was heard. Nothing of ours is under way.
    pub(super) fn heed(&mut self, now: Now) {
        if self.hands.queue.is_empty() {
            return;
        }
        if self.specs.degraded.is_some() && self.specs.jails.is_empty() {
            // Without a configuration the kernel is left as it stands.
            return self.hands.queue.clear();
        }
        // What was decided here and is still on its way comes after what they did.
        let coming: HashSet<Key> = self.pending.changes.iter().map(|change| (change.set.clone(), change.what.first())).collect();
        self.hands.again.clear();
        while let Some(heard) = self.hands.queue.pop_front() {
            match heard {
                Heard::Foreign(foreign) if self.hands.seen != 0 && !after(foreign.generation, self.hands.seen) => {}
                Heard::Lost => {
                    let table = self.table_name();
                    let (level, what) = match std::mem::take(&mut self.hands.missed) {
                        true => (Level::Warn, "the ruleset was changed by others while its bans were put in"),
                        false => (Level::Error, "others changed more than could be heard"),
                    };
                    let why = format!("table {table}: {what}");
                    self.log(level, format!("{why}\n  help: the table is compared as a whole now"));
                    let damaged = self.hands.suspects != Suspects::None || matches!(self.rebuild, Rebuild::Wanted { .. });
                    let unheard = self.hands.unheard || !damaged;
                    self.make_whole(now, why, Suspects::All);
                    self.hands.unheard = unheard;
                }
                Heard::Foreign(foreign) if self.is_will(&foreign) => self.will(now, &foreign, &coming),
                Heard::Foreign(foreign) => self.damage(now, &foreign),
            }
        }
    }

    /// Whether it touched nothing but elements of ban sets.
    fn is_will(&self, foreign: &Foreign) -> bool {
        foreign.touches.iter().all(|touch| match touch {
            Touch::Structure { .. } => false,
            Touch::Added { set, .. } | Touch::Removed { set, .. } => self.jails.iter().any(|running| running.spec.holds(set)),
        })
    }

    fn damage(&mut self, now: Now, foreign: &Foreign) {
        let elements = foreign.touches.iter().any(|touch| match touch {
            Touch::Structure { what, name, .. } => matches!(*what, "table" | "set") && !is_nameless(name),
            Touch::Added { .. } | Touch::Removed { .. } => true,
        });
        let why = format!("table {} was changed by {}: {}", self.table_name(), by(foreign), done(foreign));
        let repaired = if elements { self.hands.whole } else { self.hands.established };
        if repaired != 0 && !after(foreign.generation, repaired) {
            return self.log(Level::Warn, format!("{why}; it is whole again already"));
        }
        let mut help = "it is made whole now; configure what shall be in it, and leave other rules to other tables";
        if !foreign.touches.iter().any(|touch| matches!(touch, Touch::Structure { .. })) {
            help = "the ignore sets follow the configuration: write the address into ignoreip; put back now";
        }
        self.log(Level::Error, format!("{why}\n  help: {help}"));
        self.make_whole(now, why, if elements { Suspects::All } else { Suspects::None });
    }

    /// What could not be heard left the table as it is wanted, and it is still ours: what its sets hold more or less than we know of is
    /// an admin's will, as if it had been heard. A set that lost all of two or more was flushed, and is put back. Sets of subnets and
    /// what stands in one table only are made as we hold them.
    pub(super) fn looked(&mut self, now: Now, found: &[Adopted]) {
        let coming: HashSet<Key> = self.pending.changes.iter().map(|change| (change.set.clone(), change.what.first())).collect();
        let mut present: HashMap<&str, HashMap<IpAddr, &Adopted>> = HashMap::new();
        let mut suspects: BTreeSet<String> = self.net_sets_that_differ(now, found);
        for element in found.iter().filter(|element| !self.jails.iter().any(|running| running.spec.is_net_set(&element.set))) {
            present.entry(&element.set).or_default().insert(element.what.first(), element);
            if !element.everywhere {
                suspects.insert(element.set.clone());
            }
        }
        // What is held without having a place in the kernel can not have been taken out of it.
        let meant: HashSet<Key> = self
            .establish_for(&self.specs, Suspects::None)
            .held
            .into_iter()
            .flat_map(|(set, changes)| changes.into_iter().map(move |change| (set.clone(), change.what.first())))
            .collect();
        let by = "others that could not be heard";
        let (mut told, mut added, mut lifted) = (Told::default(), 0usize, 0usize);
        for at in 0..self.jails.len() {
            let mut gone: BTreeMap<Arc<str>, Vec<IpNetwork>> = BTreeMap::new();
            let mut there: BTreeSet<Arc<str>> = BTreeSet::new();
            let running = &self.jails[at];
            for (subject, held) in running.jail.bans().filter(|(subject, _)| !running.jail.is_net(*subject)) {
                let key = (running.spec.set(subject), subject.network());
                let ends = held.left(now).is_some_and(|left| left <= ALIKE);
                let placeless = subject.is_ipv6() && !self.specs.ipv6 || !meant.contains(&key);
                if !held.in_kernel || ends || placeless || coming.contains(&key) {
                    continue;
                }
                match present.get(&*key.0).is_some_and(|set| set.contains_key(&key.1)) {
                    true => _ = there.insert(key.0),
                    false => gone.entry(key.0).or_default().push(subject),
                }
            }
            for (set, subjects) in gone {
                if subjects.len() >= 2 && !there.contains(&set) {
                    let help = "to lift bans use `banset unban`";
                    self.log(
                        Level::Error,
                        format!("set {set} was flushed by {by}: its {} bans are put back\n  help: {help}", subjects.len()),
                    );
                    suspects.insert(set.to_string());
                    continue;
                }
                for subject in subjects {
                    lifted += 1;
                    let running = &mut self.jails[at];
                    let name = running.spec.name.clone();
                    running.jail.lift(subject);
                    self.keep.ban(now, &running.key, subject);
                    let reason = Some(format!("removed by {by}").into());
                    let row = Row { what: What::Unban, origin: "kernel".into(), reason, ..Row::default() };
                    self.record_about(now, at, subject, row);
                    told.tell(self, format!("[{name}] Unban {}, removed by {by}", shown(subject)));
                }
            }
        }
        for element in found.iter().filter(|element| present.contains_key(element.set.as_str())) {
            let set: Arc<str> = element.set.as_str().into();
            let Some(at) = self.jails.iter().position(|running| running.spec.holds(&set)) else { continue };
            let Some(subject) = subject_of(&self.jails[at].spec, &set, element.what) else { continue };
            if coming.contains(&(set.clone(), element.what.first())) || coming.contains(&(set.clone(), subject.network())) {
                continue;
            }
            if subject.network() != element.what.first() {
                // Host bits: it bites nobody, its prefix takes its place.
                suspects.insert(element.set.clone());
            }
            let name = self.jails[at].spec.name.clone();
            let until = element.left.map(|left| now.mono + left);
            match self.jails[at].jail.held(subject).cloned() {
                Some(present) if ends_alike(present.until, until) => self.jails[at].jail.confirm(subject, 0),
                Some(present) => {
                    let lasting = element.timeout.map_or(Lasting::Permanent, Lasting::For);
                    let running = &mut self.jails[at];
                    running.jail.lift(subject);
                    running.jail.hold(subject, Held { until, lasting, in_kernel: true, generation: 0, ..present });
                    self.keep.ban(now, &running.key, subject);
                    let ends = until.map_or_else(|| "never".to_owned(), |until| format!("in {}", until.since(now.mono)));
                    told.tell(self, format!("[{name}] the ban of {} ends {ends}, changed by {by}", shown(subject)));
                }
                None => {
                    added += 1;
                    self.jails[at].jail.bans_total += 1;
                    self.keep.step(now, &self.jails[at].key, Step::Forget(subject.network()));
                    told.tell(self, format!("[{name}] Ban {}, added by {by}", shown(subject)));
                    self.adopt(now, element);
                }
            }
            self.make_room(now, at, subject);
        }
        if told.left_out > 0 {
            self.log(Level::Warn, format!("{} more bans were changed by {by}", told.left_out));
        }
        let table = self.table_name();
        self.log(Level::Warn, format!("table {table} was compared as a whole: {added} bans added, {lifted} lifted by others"));
        self.rebuild = Rebuild::No;
        if !suspects.is_empty() {
            self.make_whole(now, format!("table {table}: others changed more than could be heard"), Suspects::Sets(suspects));
        }
    }

    /// The sets of subnets that do not hold what is meant to be there.
    fn net_sets_that_differ(&self, now: Now, found: &[Adopted]) -> BTreeSet<String> {
        let mut sets = BTreeSet::new();
        for running in &self.jails {
            type Ends = BTreeMap<Interval, Option<Time>>;
            type End<'a> = (&'a Interval, &'a Option<Time>);
            let mut meant: BTreeMap<Arc<str>, Ends> = BTreeMap::new();
            for (set, change) in subnets::stretches(&running.jail, &running.spec, &running.spec) {
                if let Target::Held { until, .. } = change.to {
                    meant.entry(set).or_default().insert(change.what, until);
                }
            }
            for set in [&running.spec.set_net4, &running.spec.set_net6] {
                let lasts = |until: &Option<Time>| until.is_none_or(|until| until.since(now.mono) > ALIKE);
                let here = found.iter().filter(|element| *element.set == **set);
                let here: Ends = here.map(|element| (element.what, element.left.map(|left| now.mono + left))).collect();
                let alike = |(a, b): (End<'_>, End<'_>)| a.0 == b.0 && ends_alike(*a.1, *b.1);
                let meant = meant.remove(set).unwrap_or_default();
                let (meant, here): (Vec<_>, Vec<_>) = (
                    meant.iter().filter(|(_, until)| lasts(until)).collect(),
                    here.iter().filter(|(_, until)| lasts(until)).collect(),
                );
                if meant.len() != here.len() || !meant.into_iter().zip(here).all(alike) {
                    sets.insert(set.to_string());
                }
            }
        }
        sets
    }

    /// An admin's will.
    fn will(&mut self, now: Now, foreign: &Foreign, coming: &HashSet<Key>) {
        let by = by(foreign);
        let flushed = self.flushed(now, foreign, coming);
        let mut told = Told::default();
        for touch in &foreign.touches {
            let (set, elements, added) = match touch {
                Touch::Added { set, elements } => (set, elements, true),
                Touch::Removed { set, elements } => (set, elements, false),
                Touch::Structure { .. } => continue,
            };
            let Some(at) = self.jails.iter().position(|running| running.spec.holds(set)) else { continue };
            let set: Arc<str> = set.as_str().into();
            for element in elements {
                let key = (set.clone(), element.interval.first());
                if coming.contains(&key) {
                    continue;
                }
                if self.jails[at].spec.is_net_set(&set) {
                    if added || !flushed.contains_key(&*set) {
                        self.net_touched(now, at, &set, element, added, foreign.generation, &by, &mut told);
                    }
                    continue;
                }
                match added {
                    true => self.added(now, at, key, element, foreign.generation, &by, &mut told),
                    false if flushed.contains_key(&*set) => {}
                    false => self.removed(now, at, key, element.interval, foreign.generation, &by, &mut told),
                }
            }
        }
        if told.left_out > 0 {
            self.log(Level::Warn, format!("{} more bans were changed by {by}", told.left_out));
        }
        for (set, bans) in flushed {
            let why = format!("set {set} was flushed by {by}");
            self.log(Level::Error, format!("{why}: its {bans} bans are put back\n  help: to lift bans use `banset unban`"));
            self.make_whole(now, why, Suspects::Sets(BTreeSet::from([set])));
        }
    }

    /// The sets of which a transaction removed every element while they held two or more, and how many bans they held.
    fn flushed(&self, now: Now, foreign: &Foreign, coming: &HashSet<Key>) -> BTreeMap<String, usize> {
        let mut removed: BTreeMap<&str, HashSet<IpAddr>> = BTreeMap::new();
        for touch in &foreign.touches {
            if let Touch::Removed { set, elements } = touch {
                removed.entry(set).or_default().extend(elements.iter().map(|element| element.interval.first()));
            }
        }
        removed.retain(|_, keys| keys.len() >= 2);
        let mut flushed = BTreeMap::new();
        for (set, keys) in removed {
            if let Some(bans) = self.flushed_nets(now, set, &keys) {
                flushed.insert(set.to_owned(), bans);
            }
            let Some(running) = self.jails.iter().find(|running| running.spec.holds(set)) else { continue };
            if running.spec.is_net_set(set) {
                continue;
            }
            let name: Arc<str> = set.into();
            let held_then = running.jail.bans().filter(|(subject, held)| {
                *running.spec.set(*subject) == *name
                    && held.in_kernel
                    && (held.generation == 0 || !after(held.generation, foreign.generation))
                    // The kernel may have ended it already.
                    && held.left(now).is_none_or(|left| left > ALIKE)
                    && !coming.contains(&(name.clone(), subject.network()))
            });
            let (mut bans, mut all) = (0, true);
            for (subject, _) in held_then {
                bans += 1;
                all &= keys.contains(&subject.network());
            }
            if all && bans > 0 {
                flushed.insert(set.to_owned(), bans);
            }
        }
        flushed
    }

    /// Whether our own change of a ban came after a foreign transaction; `None` where that can not be known.
    fn ours_later(&self, ours: u32, theirs: u32) -> Option<bool> {
        if ours == 0 {
            return Some(false);
        }
        let between = |(before, last): &(u32, u32)| *last == ours && after(theirs, *before) && !after(theirs, *last);
        if self.hands.blurred.iter().any(between) {
            return None;
        }
        Some(after(ours, theirs))
    }

    /// A stretch of a set of subnets was added or removed.
    #[expect(clippy::too_many_arguments, reason = "one element of one transaction, spelt out")]
    fn net_touched(
        &mut self,
        now: Now,
        at: usize,
        set: &Arc<str>,
        element: &Element,
        added: bool,
        generation: u32,
        by: &str,
        told: &mut Told,
    ) {
        let name = self.jails[at].spec.name.clone();
        let jail = &self.jails[at].jail;
        let ours = jail.covering(element.interval.first()).into_iter().filter(|(net, _)| jail.is_net(*net));
        let latest = ours.map(|(_, held)| held.generation).reduce(|a, b| if after(a, b) { a } else { b });
        if latest.is_some_and(|latest| self.ours_later(latest, generation) != Some(false))
            || !after(generation, self.hands.established)
        {
            // What the set holds now is not known for sure: it is made anew.
            let why = format!("set {set} was changed by {by} at the same time as by us");
            self.log(Level::Warn, format!("{why}: it is made anew"));
            return self.make_whole(now, why, Suspects::Sets(BTreeSet::from([set.to_string()])));
        }
        if added {
            let (timeout, left) = element.timeout.map_or((None, None), |t| (Some(t.timeout), Some(t.expiration)));
            let found = super::Adopted { set: set.to_string(), what: element.interval, timeout, left, everywhere: false };
            for net in self.adopt_net(now, at, &found, Origin::Foreign) {
                self.jails[at].jail.bans_total += 1;
                told.tell(self, format!("[{name}] Ban {}, added by {by}", shown(net)));
            }
            return;
        }
        for net in self.removed_net(now, at, element.interval) {
            let reason = Some(format!("removed by {by}").into());
            self.record_about(now, at, net, Row { what: What::Unban, origin: "kernel".into(), reason, ..Row::default() });
            told.tell(self, format!("[{name}] Unban {}, removed by {by}", shown(net)));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one element of one transaction, spelt out")]
    fn removed(
        &mut self,
        now: Now,
        at: usize,
        (set, address): Key,
        interval: Interval,
        generation: u32,
        by: &str,
        told: &mut Told,
    ) {
        let running = &mut self.jails[at];
        let Some(subject) = subject_of(&running.spec, &set, interval) else { return };
        // An element with host bits stands for nothing we hold.
        let Some(held) = running.jail.held(subject).filter(|_| subject.network() == address).cloned() else { return };
        let name = running.spec.name.clone();
        match self.ours_later(held.generation, generation) {
            Some(true) => return,
            None => {
                let text = format!("[{name}] Restore Ban {}: {by} removed it while it was being banned", shown(subject));
                return self.want(now, at, subject, &held, Effect::Log(Level::Warn, text));
            }
            Some(false) => {}
        }
        let running = &mut self.jails[at];
        running.jail.lift(subject);
        self.keep.ban(now, &running.key, subject);
        let reason = Some(format!("removed by {by}").into());
        self.record_about(now, at, subject, Row { what: What::Unban, origin: "kernel".into(), reason, ..Row::default() });
        told.tell(self, format!("[{name}] Unban {}, removed by {by}", shown(subject)));
        let several = self.specs.families().count() > 1;
        if several || !after(generation, self.hands.established) || self.hands.again.contains(&(set, address)) {
            // It stands in another table too, or the table was filled after they did it, or we are about to say it again.
            self.change(now, at, subject, Target::Gone, Effect::Log(Level::Debug, format!("{} is out again", shown(subject))));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one element of one transaction, spelt out")]
    fn added(&mut self, now: Now, at: usize, (set, address): Key, element: &Element, generation: u32, by: &str, told: &mut Told) {
        let running = &mut self.jails[at];
        let Some(subject) = subject_of(&running.spec, &set, element.interval) else { return };
        let name = running.spec.name.clone();
        let taken_out =
            |entry: &(Time, u32, Arc<str>, IpAddr)| entry.2 == set && entry.3 == address && after(entry.1, generation);
        if self.hands.taken_out.iter().any(taken_out) {
            return;
        }
        let (lasting, until) = match element.timeout {
            None => (Lasting::Permanent, None),
            Some(timeout) => (Lasting::For(timeout.timeout), Some(now.mono + timeout.expiration)),
        };
        let elapsed = element.timeout.map_or(Span(0), crate::nft::Timeout::age);
        let mut held =
            Held { since: now.wall - elapsed, until, lasting, failures: 0, origin: Origin::Foreign, in_kernel: true, generation };
        // A rule that masks never meets an element with host bits: its prefix takes its place.
        let stands_for_nothing = subject.network() != address;
        let several = self.specs.families().count() > 1;
        let mut in_place = !stands_for_nothing && !several && after(generation, self.hands.established);
        let mut text = format!("[{name}] Ban {}, added by {by}", shown(subject));
        if let Some(present) = self.jails[at].jail.held(subject).cloned() {
            if !ends_alike(present.until, until) {
                match self.ours_later(present.generation, generation) {
                    Some(false) => {
                        let ends = until.map_or_else(|| "never".to_owned(), |until| format!("in {}", until.since(now.mono)));
                        text = format!("[{name}] the ban of {} ends {ends}, changed by {by}", shown(subject));
                        held = Held { since: present.since, failures: present.failures, origin: present.origin, ..held };
                    }
                    later => {
                        held = present;
                        in_place &= later.is_some();
                        text.clear();
                    }
                }
            } else {
                held = present;
                text.clear();
            }
        } else {
            self.jails[at].jail.bans_total += 1;
            self.keep.step(now, &self.jails[at].key, Step::Forget(subject.network()));
        }
        let running = &mut self.jails[at];
        running.jail.lift(subject);
        running.jail.hold(subject, held.clone());
        self.keep.ban(now, &running.key, subject);
        if let Some(why) = self.ignored_by(at, subject.network()).filter(|_| !text.is_empty() && !held.is_forced()) {
            text.push_str(&format!("; it bites nobody, ignored by {why}"));
        }
        if !text.is_empty() {
            let until = held.until.map(|until| now.wall_of(until));
            let (since, reason) = (Some(held.since), Some(format!("added by {by}").into()));
            let row = Row { what: What::Ban, since, until, origin: "kernel".into(), reason, ..Row::default() };
            self.record_about(now, at, subject, row);
            told.tell(self, text);
        }
        if !in_place {
            self.hands.again.insert((self.jails[at].spec.set(subject), subject.network()));
        }
        if stands_for_nothing {
            self.pending.changes.push(super::Change { set, what: element.interval, to: Target::Gone });
        }
        if !in_place {
            let text = format!("{} is in set {}", shown(subject), self.jails[at].spec.set(subject));
            self.want(now, at, subject, &held, Effect::Log(Level::Debug, text));
        }
        self.make_room(now, at, subject);
    }

    fn table_name(&self) -> String {
        format!("{} {}", self.specs.family.name(), self.specs.table)
    }
}

/// Whether two bans end alike.
fn ends_alike(a: Option<Time>, b: Option<Time>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.0.abs_diff(b.0) <= ALIKE.0,
        _ => false,
    }
}

/// What an element of a ban set stands for.
fn subject_of(spec: &Spec, set: &str, interval: Interval) -> Option<IpNetwork> {
    // In a set of single addresses each stands for the prefix that its jail bans by.
    spec.subject(set, interval)
}

/// Who did it.
fn by(foreign: &Foreign) -> String {
    format!("{}, thread {}, generation {}", foreign.program, foreign.thread, foreign.generation)
}

/// What it did, in brief.
fn done(foreign: &Foreign) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut first = Vec::new();
    for touch in &foreign.touches {
        let (said, n) = match touch {
            Touch::Structure { name, .. } if is_nameless(name) => continue,
            Touch::Structure { what, deleted, .. } => (format!("{what}s {}", if *deleted { "deleted" } else { "added" }), 1),
            Touch::Added { elements, .. } => ("elements added".to_owned(), elements.len()),
            Touch::Removed { elements, .. } => ("elements removed".to_owned(), elements.len()),
        };
        if let Touch::Structure { what: "table", deleted, .. } = touch {
            let said = if *deleted { "the table was deleted" } else { "the table was made or changed" };
            if !first.contains(&said) {
                first.push(said);
            }
        } else {
            *counts.entry(said).or_default() += n;
        }
    }
    let rest = counts.into_iter().map(|(said, n)| format!("{n} {said}"));
    first.into_iter().map(str::to_owned).chain(rest).collect::<Vec<_>>().join(", ")
}

/// The braces of a rule are a set of their own, which comes and goes with it.
fn is_nameless(name: &str) -> bool {
    name.starts_with("__set") || name.starts_with("__map")
}

/// What one transaction did is told one by one up to a bound.
#[derive(Default)]
struct Told {
    told: usize,
    left_out: usize,
}

impl Told {
    fn tell(&mut self, core: &mut Core, text: String) {
        if self.told < TOLD_AT_MOST {
            self.told += 1;
            core.log(Level::Warn, text);
        } else {
            self.left_out += 1;
        }
    }
}
