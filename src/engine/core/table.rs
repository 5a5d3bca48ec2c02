//! The core's half that faces the kernel: what it answers, tables that have to be made whole, elements that were found.

use std::collections::HashMap;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde_json::json;

use super::{
    Action, Adopted, Cause, Change, ClientId, Committed, Core, Done, Effect, Establish, Level, NetSets, Rebuild, Refusal, Row,
    Suspects, Target, What, covers, subnets,
};
use crate::control::Reply;
use crate::engine::cut::Cut;
use crate::engine::spec::{Spec, Specs, addresses};
use crate::jail::{Held, Nets, Now, Origin, cover};
use crate::terms::{Family, Hook, Lasting, Protocol, Protocols, Span, is_host};

/// Ends that differ by less, in microseconds, are the same.
const SAME: u64 = 3_000_000;

impl Core {
    /// An element found in one of our sets: a ban that goes on. Tells whether a jail of ours has that set.
    pub fn adopt(&mut self, now: Now, found: &Adopted) -> bool {
        let Some(at) = self.jails.iter().position(|running| running.spec.holds(&found.set)) else { return false };
        if self.jails[at].spec.is_net_set(&found.set) {
            self.adopt_net(now, at, found, Origin::Adopted);
            return true;
        }
        let running = &mut self.jails[at];
        let lasting = found.timeout.or(found.left).map_or(Lasting::Permanent, Lasting::For);
        let elapsed = match (lasting, found.left) {
            (Lasting::For(given), Some(left)) => Span(given.0.saturating_sub(left.0)),
            _ => Span(0),
        };
        let until = found.left.map(|left| now.mono + left);
        let held = Held {
            since: now.wall - elapsed,
            until,
            lasting,
            failures: 0,
            origin: Origin::Adopted,
            in_kernel: true,
            generation: 0,
        };
        let subject = running.spec.policy.prefixed(found.what.first());
        let since = held.since;
        // The element of a ban that is held is no news: the kernel's clock and ours differ by a little.
        let known = running.jail.held(subject).is_some_and(|known| match (known.until, until) {
            (Some(known), Some(until)) => known.0.abs_diff(until.0) < SAME,
            (known, until) => known.is_none() && until.is_none(),
        });
        if !known && running.jail.hold(subject, held) {
            self.keep.ban(now, &running.key, subject);
            if self.settled {
                let until = until.map(|until| now.wall_of(until));
                let reason = Some("found in the set: put there by another program, or by a run that was killed".into());
                let row = Row { what: What::Ban, since: Some(since), until, origin: "kernel".into(), reason, ..Row::default() };
                self.record_found(now, at, subject, row);
            }
        } else {
            running.jail.confirm(subject, 0);
        }
        true
    }

    pub(super) fn committed(&mut self, now: Now, committed: Committed) {
        let Some(mut flight) = self.flying.take() else { return };
        // Which change an element was sent for.
        let sent_for = std::mem::take(&mut flight.sent_for);
        let mut committed = committed;
        for refusal in &mut committed.refusals {
            refusal.index = sent_for.get(refusal.index).copied().unwrap_or(refusal.index);
        }
        // A stretch of a set of subnets is right or wrong as a whole.
        let is_net = |set: &str| self.jails.iter().any(|running| running.spec.is_net_set(set));
        let torn = committed.refusals.iter().find(|refusal| flight.changes.get(refusal.index).is_some_and(|c| is_net(&c.set)));
        if let Some(why) = torn.map(|refusal| refusal.why.clone()) {
            self.flying = Some(flight);
            return self.damaged(now, why);
        }
        let changes = std::mem::take(&mut flight.changes);
        let gone = changes.iter().filter(|change| change.to == Target::Gone);
        self.committed_at(now, &committed, gone.map(|change| (change.set.clone(), change.what.first())));
        let mut refused: HashMap<usize, Refusal> =
            committed.refusals.into_iter().map(|refusal| (refusal.index, refusal)).collect();
        let (mut again, mut rows, mut banned) = (HashMap::new(), Vec::new(), Vec::new());
        for (index, change) in changes.into_iter().enumerate() {
            let Some(at) = self.jails.iter().position(|running| running.spec.holds(&change.set)) else { continue };
            let Some(subject) = self.jails[at].spec.subject(&change.set, change.what) else { continue };
            match (change.to, refused.get(&index)) {
                (Target::Held { .. }, None) => {
                    let running = &mut self.jails[at];
                    running.jail.confirm(subject, committed.after);
                    self.keep.ban(now, &running.key, subject);
                    banned.push((at, subject));
                }
                // The oldest makes room, and it goes once more.
                (Target::Held { .. }, Some(refusal)) if refusal.full && self.evict(now, at, &change.set, subject, false) => {
                    again.insert(index, self.pending.changes.len());
                    refused.remove(&index);
                    self.pending.changes.push(change);
                }
                // What the kernel does not hold is not banned: the books follow the kernel.
                (Target::Held { .. }, Some(refusal)) => {
                    let reason = Some(refusal.why.as_str().into());
                    let running = &mut self.jails[at];
                    running.jail.lift(subject);
                    self.keep.ban(now, &running.key, subject);
                    rows.push((at, subject, Row { what: What::Refused, origin: "kernel".into(), reason, ..Row::default() }));
                }
                (Target::Gone, _) => {}
            }
        }
        for (at, subject, row) in rows {
            self.record_about(now, at, subject, row);
        }
        for refusal in refused.values() {
            self.log(Level::Error, refusal.why.clone());
        }
        let cuts = if banned.is_empty() { Vec::new() } else { self.cuts(&banned) };
        if !cuts.is_empty() {
            self.actions.push(Action::Cut(cuts));
        }
        for (index, effect) in flight.effects {
            match (again.get(&index), effect, refused.get(&index)) {
                (Some(later), effect, _) => self.pending.effects.push((*later, effect)),
                (None, Effect::Log(level, text), None) => self.log(level, text),
                (None, Effect::Log(..), Some(_)) => {}
                (None, Effect::Tell(client), why) => self.told(now, client, why.map(|refusal| refusal.why.clone())),
            }
        }
    }

    /// What these bans mean for connections that are open, where their jails guard our own sockets.
    fn cuts(&self, banned: &[(usize, IpNetwork)]) -> Vec<Cut> {
        let all: Nets = self.ignored_for(&self.specs).into_iter().collect();
        let cut = |(at, subject): &(usize, IpNetwork)| {
            let running = &self.jails[*at];
            let spec = &running.spec;
            let ours = spec.hooks_in(Family::Inet)?.iter().any(|(hook, _)| *hook == Hook::Input);
            let tcp = match &spec.protocols {
                Protocols::All => true,
                Protocols::List(list) => list.contains(&Protocol::Tcp),
            };
            let forced = running.jail.held(*subject)?.is_forced();
            let ignored = !forced && [&all, &running.ignored].iter().any(|nets| covers(nets, *subject).is_some());
            if !ours || !tcp || ignored || self.pauses.holds(&spec.name) {
                return None;
            }
            let spared = match is_host(*subject) {
                true => Vec::new(),
                false => all.iter().chain(running.ignored.iter()).filter(|net| cover::holds(*subject, *net)).collect(),
            };
            Some(Cut { subject: *subject, ports: spec.ports.clone(), spared })
        };
        banned.iter().filter_map(cut).collect()
    }

    /// One of a client's changes is through.
    pub(super) fn told(&mut self, now: Now, client: ClientId, why: Option<String>) {
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

    pub(super) fn damaged(&mut self, now: Now, why: String) {
        // What was in flight has not been carried out: it goes first again, its effects with it.
        if let Some(mut flight) = self.flying.take() {
            let late = std::mem::take(&mut self.pending);
            let base = flight.changes.len();
            flight.effects.extend(late.effects.into_iter().map(|(index, effect)| (base + index, effect)));
            flight.changes.extend(late.changes);
            flight.sent_for.clear();
            self.pending = flight;
        }
        self.log(Level::Error, format!("{why}\n  help: the table is not as it was left; rebuilding it now"));
        self.make_whole(now, why, Suspects::All);
    }

    pub(super) fn established(&mut self, now: Now, result: Result<Done, String>) {
        match &result {
            Ok(done) => {
                self.settled_in(now, done.table);
                self.established_at(done);
            }
            Err(_) => self.still_suspect(),
        }
        self.nets_made(result.is_ok());
        if let Some((cause, specs)) = self.reloading.take() {
            return self.reestablished(now, cause, specs, result);
        }
        let Rebuild::Running { failed } = self.rebuild else { return };
        match result {
            Ok(done) if done.looked => self.looked(now, &done.adopted),
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

    pub(super) fn reestablished(&mut self, now: Now, cause: Cause, specs: Arc<Specs>, result: Result<Done, String>) {
        let reply = match result {
            Ok(_) if cause == Cause::Restated => {
                if std::mem::take(&mut self.moved) {
                    self.log(Level::Info, "our addresses, or those of ignored names, changed: the ignore sets follow".to_owned());
                }
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
            Err(why) if cause == Cause::Restated => {
                self.log(
                    Level::Error,
                    format!("{why}\n  help: what we ignore or pause changed and the kernel does not know; trying again"),
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
    pub(super) fn establish_for(&self, specs: &Arc<Specs>, exact: Suspects) -> Establish {
        let mut held: HashMap<Arc<str>, Vec<Change>> = HashMap::new();
        let (mut nets, mut rekeyed) = (Vec::new(), false);
        for spec in &specs.jails {
            let running = self.jails.iter().find(|running| running.spec.name == spec.name);
            nets.push(running.is_some_and(|running| running.nets != NetSets::No));
            let Some(running) = running else { continue };
            rekeyed |= subnets::rekeyed(&running.spec, spec);
            for (set, change) in subnets::stretches(&running.jail, &running.spec, spec) {
                held.entry(set).or_default().push(change);
            }
            let ignored = self.ignores.with(spec, &self.names);
            for (subject, ban) in running.jail.bans() {
                let own = matches!(ban.origin, Origin::Failures | Origin::Aggregate(_));
                if spec.policy.is_net(subject) || (own && covers(&ignored, subject).is_some()) {
                    continue;
                }
                let set = spec.set(subject);
                let to = Target::Held { lasting: ban.lasting, until: ban.until };
                held.entry(set.clone()).or_default().push(Change { set, what: spec.element(subject), to });
            }
        }
        let own_ignored = specs.jails.iter().map(|spec| self.own_ignored(specs, spec)).collect();
        Establish {
            specs: specs.clone(),
            ignored: self.ignored_for(specs),
            own_ignored,
            nets,
            paused: specs.jails.iter().map(|spec| self.pauses.holds(&spec.name)).collect(),
            held,
            exact: if rekeyed { Suspects::All } else { exact },
            adopt: self.specs.degraded.is_some() && self.specs.jails.is_empty(),
            look: None,
        }
    }

    /// The content of a jail's own ignore set.
    fn own_ignored(&self, specs: &Specs, spec: &Spec) -> Vec<IpNetwork> {
        let own: Vec<IpNetwork> = spec.own_ignored(&self.names).into_iter().chain(self.ignores.of_only(&spec.name)).collect();
        // What another jail's forced ban leaves out of the ignore sets of all is ignored by this one as before.
        let elsewhere = self.forced.iter().filter(|(jail, subject)| {
            **jail != *spec.name
                && !self.forced.iter().any(|(here, other)| **here == *spec.name && cover::holds(*other, *subject))
        });
        let for_all: Nets = match self.forced.is_empty() {
            true => Nets::default(),
            false => self.ignored_by_all(specs).into_iter().collect(),
        };
        let elsewhere = elsewhere.map(|(_, subject)| *subject).filter(|subject| covers(&for_all, *subject).is_some());
        let all = own.into_iter().chain(elsewhere).collect();
        without(all, self.forced.iter().filter(|(jail, _)| **jail == *spec.name).map(|(_, subject)| *subject))
    }

    /// The content of the kernel's ignore sets: ignoreip of the defaults, own addresses, gateways; without those that are banned by
    /// force.
    pub(super) fn ignored_for(&self, specs: &Specs) -> Vec<IpNetwork> {
        without(self.ignored_by_all(specs), self.forced.iter().map(|(_, subject)| *subject))
    }

    fn ignored_by_all(&self, specs: &Specs) -> Vec<IpNetwork> {
        let own = self.machine.addresses.iter().chain(&self.machine.gateways).map(|address| IpNetwork::from(*address));
        let ignored = specs.ignore.iter().copied().chain(addresses(&self.names, &specs.ignore_names));
        ignored.chain(self.ignores.of_all()).chain(own).collect()
    }

    /// Bans by force that are over, however they ended: the kernel is to ignore those addresses again.
    pub(super) fn ignore_again(&mut self) {
        let Core { forced, jails, .. } = self;
        let before = forced.len();
        forced.retain(|(jail, subject)| {
            let running = jails.iter().find(|running| running.key == *jail);
            running.and_then(|running| running.jail.held(*subject)).is_some_and(Held::is_forced)
        });
        self.restate |= self.forced.len() < before;
    }
}

/// Ignored subnets in order, without the holes that lie within one.
fn without(mut all: Vec<IpNetwork>, holes: impl Iterator<Item = IpNetwork>) -> Vec<IpNetwork> {
    for hole in holes {
        let (around, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|net| cover::holds(*net, hole));
        all = rest;
        all.extend(around.into_iter().flat_map(|net| cover::around(net, hole)));
    }
    all.sort();
    all.dedup();
    all
}
