//! The core's half that faces the state: what is kept, and what an earlier run kept.

use std::collections::HashSet;

use super::{Action, Adopted, Core, Effect, Level, Running, shown};
use crate::engine::keep;
use crate::jail::Now;
use crate::nft::Interval;
use crate::state::packed::{self, Step};
use crate::state::{KernelIdentity, Restored, Totals};
use crate::terms::Span;

impl Core {
    pub(super) fn save(&mut self, now: Now) {
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
    }

    /// Every ban is to be told again; positions are kept in mind until they are saved.
    pub(super) fn note_everything(&mut self, now: Now) {
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
                running.jail.hold(*subject, held);
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
            let text = format!(
                "[{}] Unban {}: it was taken out of the set while the daemon was away",
                self.jails[*at].spec.name,
                shown(*subject)
            );
            self.log(Level::Warn, text);
        }
        let lifted_nets = self.compare_nets(now, found);
        for (at, subject, held) in missing {
            let text = format!("[{}] Restore Ban {}", self.jails[at].spec.name, shown(subject));
            self.want(now, at, subject, &held, Effect::Log(Level::Warn, text));
        }
        let held_before = self.bans_held();
        for element in found {
            self.adopt(now, element);
        }
        (self.bans_held() - held_before, lifted.len() + lifted_nets)
    }
}
