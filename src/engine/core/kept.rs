//! The core's half that faces the state: what is kept, and what an earlier run kept.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::ignores::Wishes;
use super::pause::Pauses;
use super::{Action, Adopted, Core, Effect, Level, Row, Running, Suspects, What, shown};
use crate::engine::keep::{self, Books};
use crate::engine::spec::Resolved;
use crate::jail::{Jail, Now};
use crate::nft::Interval;
use crate::state::packed::{self, Step};
use crate::state::{KeptBan, KeptIgnore, KeptOffence, KeptPause, KernelIdentity, Restored, Totals};
use crate::terms::{Span, Time};

/// The books as they are at the moment of a save.
struct Held<'a> {
    now: Now,
    jails: &'a [Running],
    ignores: &'a Wishes,
    pauses: &'a Pauses,
    applied: &'a BTreeMap<Box<str>, u64>,
    names: &'a Resolved,
    broken: &'a [(String, String)],
    keep: Span,
}

impl Held<'_> {
    fn jail(&self, name: &str) -> Option<&Jail> {
        self.jails.iter().find(|running| *running.key == *name).map(|running| &running.jail)
    }
}

impl Books for Held<'_> {
    fn ban(&self, jail: &str, subject: IpNetwork) -> Option<KeptBan> {
        Some(keep::kept(self.now, self.jail(jail)?.held(subject)?))
    }

    fn offence(&self, jail: &str, subject: IpNetwork) -> Option<KeptOffence> {
        let (bans, until) = self.jail(jail)?.offences(subject)?;
        Some(KeptOffence { bans, until: self.now.wall_of(until) })
    }

    fn totals(&self, jail: &str) -> Totals {
        self.jail(jail).map_or_else(Totals::default, |jail| Totals {
            failures: jail.failures_total,
            bans: jail.bans_total,
            last_failure: jail.last_failure,
        })
    }

    fn windows(&self) -> Vec<(Arc<str>, Vec<u8>)> {
        let packed = |running: &Running| {
            let mut packed = Vec::new();
            running.jail.counted_failures().for_each(|failure| packed::push(&mut packed, Step::Fail(failure)));
            (running.key.clone(), packed)
        };
        self.jails.iter().map(packed).filter(|(_, packed)| !packed.is_empty()).collect()
    }

    fn ignored(&self) -> Vec<KeptIgnore> {
        self.ignores.kept(self.now)
    }

    fn paused(&self) -> Vec<KeptPause> {
        self.pauses.kept(self.now)
    }

    fn applied(&self) -> Vec<(Box<str>, u64)> {
        self.applied.iter().map(|(origin, seq)| (origin.clone(), *seq)).collect()
    }

    fn keep(&self) -> Span {
        self.keep
    }

    fn absent(&self) -> Vec<Arc<str>> {
        self.broken.iter().map(|(name, _)| name.as_str().into()).collect()
    }

    fn names(&self) -> Vec<(Box<str>, Vec<IpAddr>)> {
        self.names.iter().map(|(name, addresses)| (name.as_str().into(), addresses.clone())).collect()
    }
}

/// The wall clock jumped if it moved against the monotonic one by more than this, in microseconds.
const JUMP: u64 = 2_000_000;

/// What is left of something that was kept: a clock that was set back meanwhile makes it no longer than it was meant to be.
pub(super) fn left(now: Now, since: Time, until: Time) -> Span {
    let (left, given) = (until.since(now.wall), until.since(since));
    // The clock may have been set back in between, too.
    if given == Span(0) { left } else { left.min(given) }
}

/// Restored bans are told one by one up to this many.
const TOLD_AT_MOST: usize = 100;

impl Core {
    pub(super) fn save(&mut self, now: Now) {
        if now.offset().abs_diff(self.clock) > JUMP {
            // What was kept by another clock would mean something else by this one.
            let moved = now.offset().saturating_sub(self.clock);
            self.clock = now.offset();
            let (by, where_to) = (Span(moved.unsigned_abs()), if moved < 0 { "back" } else { "forward" });
            self.log(
                Level::Warn,
                format!("the clock went {where_to} by {by}: it was set, or the machine slept\n  help: bans keep the time they have left"),
            );
            self.jumped = Some((now.wall, moved));
            self.note_everything(now);
            self.keep.ignored(now);
            self.keep.paused(now);
        }
        let Core { keep, jails, specs, ignores, pauses, applied, names, .. } = self;
        let books = Held { now, jails, ignores, pauses, applied, names, broken: &specs.broken, keep: specs.evidence.keep };
        if let Some(keeping) = keep.next(now, &books) {
            self.actions.push(Action::Save(Box::new(keeping)));
        }
    }

    pub(super) fn synced(&mut self, failed: Option<String>) {
        match &failed {
            Some(why) => {
                self.log(Level::Error, format!("{why}\n  help: a power loss would take it, a restart would not; bans go on"))
            }
            None => self.log(Level::Warn, "the state is on the disk again".to_owned()),
        }
        self.keep.unsynced = failed;
    }

    pub(super) fn saved(&mut self, now: Now, result: Result<(), String>) {
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
        self.search_on();
    }

    /// Every ban is to be told again; positions are kept in mind until they are saved.
    pub(super) fn note_everything(&mut self, now: Now) {
        for running in &self.jails {
            running.jail.bans().for_each(|(subject, _)| self.keep.ban(now, &running.key, subject));
            running.jail.offenders().for_each(|subject| self.keep.offence(now, &running.key, subject));
        }
    }

    /// What an earlier run kept: counted failures, totals, bans. Called before anything is judged.
    ///
    /// What was kept since this boot is read by the clock that it was kept by: the monotonic one has gone on evenly since then,
    /// whatever became of the other.
    pub fn restore(&mut self, now: Now, restored: &Restored) {
        self.clock = now.offset();
        let then = Now { wall: restored.clock.map_or(now.wall, |offset| Time(now.mono.0.saturating_add(offset))), ..now };
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
            if let Some(held) = keep::held(then, kept) {
                if held.is_forced() {
                    self.forced.insert((jail.clone(), *subject));
                }
                running.jail.hold(*subject, held);
            }
        }
        for (jail, subject, offence) in &restored.offences {
            let Some(running) = self.jails.iter_mut().find(|running| running.key == *jail) else { continue };
            let until = Time(then.mono.0.saturating_sub(then.wall.0.saturating_sub(offence.until.0)));
            // A ban that is not held has ended.
            let latest = running.jail.held(*subject).and_then(|held| held.until).unwrap_or(now.mono);
            running.jail.restore_offences(*subject, offence.bans, until.min(latest));
        }
        self.ignores.restore(then, &restored.ignored);
        self.pauses.restore(then, &restored.paused);
        self.applied.extend(restored.applied.iter().cloned());
        let wanted = self.specs.names();
        let names = restored.names.iter().filter(|(name, _)| wanted.contains(&**name));
        self.names.extend(names.map(|(name, addresses)| (name.to_string(), addresses.clone())));
        self.ignored_anew();
        for (jail, totals) in &restored.totals {
            let Some(running) = self.jails.iter_mut().find(|running| running.key == *jail) else { continue };
            running.jail.failures_total = totals.failures;
            running.jail.bans_total = totals.bans;
            running.jail.last_failure = totals.last_failure;
        }
        self.jails.iter_mut().for_each(|running| _ = running.jail.tidy(now));
        self.trim(now);
    }

    /// Jail and subject of every ban held, the newest first.
    pub fn restorable(&self) -> Vec<(String, String)> {
        let bans = |running: &'_ Running| -> Vec<_> {
            running.jail.bans().map(|(subject, held)| (held.since, running.spec.name.clone(), subject)).collect()
        };
        let mut all: Vec<_> = self.jails.iter().flat_map(bans).collect();
        all.sort_by_key(|(since, ..)| std::cmp::Reverse(*since));
        all.into_iter().map(|(_, jail, subject)| (jail, shown(subject))).collect()
    }

    /// From here on changes are kept; `boot` names this boot. Bans that an earlier run kept and that are over by now are let go.
    pub fn keep(&mut self, now: Now, boot: String, restored: &Restored) {
        self.boot = boot;
        self.keep.start(restored.positions.iter().map(|(path, _)| path.clone()));
        self.resume_history(now, restored);
        // What is kept of a broken jail waits until it is mended.
        let broken = |jail: &str| self.specs.broken.iter().any(|(broken, _)| broken == jail);
        for (jail, subject, _) in restored.bans.iter().filter(|(jail, ..)| !broken(jail)) {
            self.keep.ban(now, jail, *subject);
        }
        for (jail, subject, _) in restored.offences.iter().filter(|(jail, ..)| !broken(jail)) {
            self.keep.offence(now, jail, *subject);
        }
        self.keep.ignored(now);
        self.keep.paused(now);
        self.note_everything(now);
    }

    /// Nothing can be kept, because of this.
    pub fn cannot_keep(&mut self, why: String) {
        self.keep.cannot(why);
    }

    /// The bans are in the table with this handle now.
    pub fn settled_in(&mut self, now: Now, table: u64) {
        self.settled = true;
        let identity = KernelIdentity { boot: self.boot.clone(), table };
        self.keep.kernel(now, identity);
    }

    /// The table is the one an earlier run left, in the same boot: what differs is what an admin did meanwhile. An element we do
    /// not know is a ban of his, one that we know the kernel had and that is gone is an unban of his; what the kernel was not
    /// told yet is told now. One that he took out of one table only, or put into one only, he lifted or made all the same; those
    /// sets are made equal. Gives how many were added and lifted.
    pub fn compare(&mut self, now: Now, found: &[Adopted]) -> (usize, usize) {
        let (found, torn): (Vec<&Adopted>, Vec<&Adopted>) = found.iter().partition(|element| element.everywhere);
        // Of those in one table only, what is held was lifted by him; what is not was added by him.
        let added: Vec<&Adopted> = torn.iter().copied().filter(|element| !self.has_told(element)).collect();
        let sets: BTreeSet<String> = torn.into_iter().map(|element| element.set.clone()).collect();
        if !sets.is_empty() {
            self.suspect(Suspects::Sets(sets));
        }
        let present: HashSet<(&str, Interval)> = found.iter().map(|element| (element.set.as_str(), element.what)).collect();
        let (mut lifted, mut missing) = (Vec::new(), Vec::new());
        for (at, running) in self.jails.iter().enumerate() {
            for (subject, held) in running.jail.bans() {
                let set = running.spec.set(subject);
                // Subnets overlap, and stand in their set as pieces.
                let is_present =
                    running.jail.is_net(subject) && held.in_kernel || present.contains(&(&*set, running.spec.element(subject)));
                match (is_present, held.in_kernel) {
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
            let reason = Some("taken out of the set while the daemon was away".into());
            self.record_about(now, *at, *subject, Row { what: What::Unban, origin: "kernel".into(), reason, ..Row::default() });
            let text = format!(
                "[{}] Unban {}: it was taken out of the set while the daemon was away",
                self.jails[*at].spec.name,
                shown(*subject)
            );
            self.log(Level::Warn, text);
        }
        let lifted_nets = self.compare_nets(now, &found);
        let more = missing.len().saturating_sub(TOLD_AT_MOST);
        for (told, (at, subject, held)) in missing.into_iter().enumerate() {
            let text = format!("[{}] Restore Ban {}", self.jails[at].spec.name, shown(subject));
            let level = if told < TOLD_AT_MOST { Level::Warn } else { Level::Debug };
            self.want(now, at, subject, &held, Effect::Log(level, text));
        }
        if more > 0 {
            self.log(Level::Warn, format!("{more} more bans are restored"));
        }
        // From here on an element that we do not know is news.
        self.settled = true;
        let held_before = self.bans_held();
        for element in found.into_iter().chain(added) {
            self.adopt(now, element);
        }
        (self.bans_held() - held_before, lifted.len() + lifted_nets)
    }

    /// Whether an element is one that the kernel was told.
    fn has_told(&self, element: &Adopted) -> bool {
        let Some(running) = self.jails.iter().find(|running| running.spec.holds(&element.set)) else { return false };
        if running.spec.is_net_set(&element.set) {
            // Whatever a ban of ours covers is ours, however it was cut.
            return running
                .jail
                .covering(element.what.first())
                .iter()
                .any(|(net, held)| running.jail.is_net(*net) && held.in_kernel);
        }
        let subject = running.spec.subject(&element.set, element.what);
        subject.and_then(|subject| running.jail.held(subject)).is_some_and(|held| held.in_kernel)
    }
}
