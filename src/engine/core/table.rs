//! The core's half that faces the kernel: what it answers, tables that have to be made whole, elements that were found.

use std::collections::HashMap;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde_json::json;

use super::{
    Action, Adopted, Cause, Change, ClientId, Core, Done, Effect, Establish, Level, NetSets, Rebuild, Refusal, Row, Target, What,
    covers, subnets,
};
use crate::control::Reply;
use crate::engine::cut::Cut;
use crate::engine::spec::{Spec, Specs, addresses};
use crate::jail::{Held, Nets, Now, Origin, cover};
use crate::terms::{Family, Hook, Lasting, Protocol, Protocols, Span};

impl Core {
    /// An element found in one of our sets: a ban that goes on. Tells whether a jail of ours has that set.
    pub fn adopt(&mut self, now: Now, found: &Adopted) -> bool {
        let Some(at) = self.jails.iter().position(|running| running.spec.holds(&found.set)) else { return false };
        if self.jails[at].spec.is_net_set(&found.set) {
            self.adopt_net(now, at, found);
            return true;
        }
        let running = &mut self.jails[at];
        let lasting = found.timeout.or(found.left).map_or(Lasting::Permanent, Lasting::For);
        let elapsed = match (lasting, found.left) {
            (Lasting::For(given), Some(left)) => Span(given.0.saturating_sub(left.0)),
            _ => Span(0),
        };
        let until = found.left.map(|left| now.mono + left);
        let held = Held { since: now.wall - elapsed, until, lasting, failures: 0, origin: Origin::Adopted, in_kernel: true };
        let subject = running.spec.policy.prefixed(found.what.first());
        let since = held.since;
        if running.jail.hold(subject, held) {
            self.keep.ban(now, &running.key, subject);
            if self.settled {
                let until = until.map(|until| now.wall_of(until));
                let reason = Some("put into the set by another program".into());
                let row = Row { what: What::Ban, since: Some(since), until, origin: "kernel".into(), reason, ..Row::default() };
                self.record_about(now, at, subject, row);
            }
        } else {
            running.jail.confirm(subject);
        }
        true
    }

    pub(super) fn committed(&mut self, now: Now, refusals: Vec<Refusal>) {
        let Some(flight) = self.flying.take() else { return };
        let refusals =
            refusals.into_iter().map(|Refusal { index, why }| (flight.sent_for.get(index).copied().unwrap_or(index), why));
        let refused: HashMap<usize, String> = refusals.collect();
        // A stretch of a set of subnets is right or wrong as a whole.
        let is_net = |set: &str| self.jails.iter().any(|running| running.spec.is_net_set(set));
        if let Some((_, why)) = refused.iter().find(|(index, _)| flight.changes.get(**index).is_some_and(|c| is_net(&c.set))) {
            let why = why.clone();
            self.flying = Some(flight);
            return self.damaged(now, why);
        }
        let mut refusals = Vec::new();
        for (index, why) in &refused {
            self.log(Level::Error, why.clone());
            // What the kernel does not hold is not banned: the books follow the kernel.
            if let Some(change) = flight.changes.get(*index)
                && matches!(change.to, Target::Held { .. })
            {
                for running in self.jails.iter_mut().filter(|j| j.spec.holds(&change.set)) {
                    let Some(subject) = running.spec.subject(&change.set, change.what) else { continue };
                    running.jail.lift(subject);
                    self.keep.ban(now, &running.key, subject);
                    let row =
                        Row { what: What::Refused, origin: "kernel".into(), reason: Some(why.as_str().into()), ..Row::default() };
                    refusals.push((running.key.clone(), subject, row));
                }
            }
        }
        for (jail, subject, row) in refusals {
            self.record(now, Row { jail: Some(jail), subject: Some(subject), ..row });
        }
        let mut banned = Vec::new();
        for (index, change) in flight.changes.iter().enumerate() {
            if let (Target::Held { .. }, false) = (change.to, refused.contains_key(&index))
                && let Some(running) = self.jails.iter_mut().find(|j| j.spec.holds(&change.set))
            {
                let Some(subject) = running.spec.subject(&change.set, change.what) else { continue };
                running.jail.confirm(subject);
                self.keep.ban(now, &running.key, subject);
                banned.extend(self.by_id.get(&running.id).map(|at| (*at, subject)));
            }
        }
        let cuts = if banned.is_empty() { Vec::new() } else { self.cuts(&banned) };
        if !cuts.is_empty() {
            self.actions.push(Action::Cut(cuts));
        }
        for (index, effect) in flight.effects {
            match (effect, refused.get(&index)) {
                (Effect::Log(level, text), None) => self.log(level, text),
                (Effect::Log(..), Some(_)) => {}
                (Effect::Tell(client), why) => self.told(now, client, why.cloned()),
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
            let ignored = [&all, &running.ignored].iter().any(|nets| covers(nets, *subject).is_some());
            if !ours || !tcp || ignored || running.jail.held(*subject).is_none() || self.pauses.holds(&spec.name) {
                return None;
            }
            let spared = match subject.prefix() == if subject.is_ipv4() { 32 } else { 128 } {
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
        self.rebuild = Rebuild::Wanted { why, not_before: now.mono, failed: 0 };
    }

    pub(super) fn established(&mut self, now: Now, result: Result<Done, String>) {
        if let Ok(done) = &result {
            self.settled_in(now, done.table);
        }
        self.nets_made(result.is_ok());
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
    pub(super) fn establish_for(&self, specs: &Arc<Specs>, exact: bool) -> Establish {
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
        let own_ignored = specs.jails.iter().map(|spec| self.own_ignored(spec)).collect();
        Establish {
            specs: specs.clone(),
            ignored: self.ignored_for(specs),
            own_ignored,
            nets,
            paused: specs.jails.iter().map(|spec| self.pauses.holds(&spec.name)).collect(),
            held,
            exact: exact || rekeyed,
            adopt: self.specs.degraded.is_some() && self.specs.jails.is_empty(),
        }
    }

    /// The content of a jail's own ignore set.
    fn own_ignored(&self, spec: &Spec) -> Vec<IpNetwork> {
        let mut all: Vec<IpNetwork> = spec.own_ignored(&self.names).into_iter().chain(self.ignores.of_only(&spec.name)).collect();
        all.sort();
        all.dedup();
        all
    }

    /// The content of the kernel's ignore sets: ignoreip of the defaults, own addresses, gateways.
    pub(super) fn ignored_for(&self, specs: &Specs) -> Vec<IpNetwork> {
        let own = self.machine.addresses.iter().chain(&self.machine.gateways).map(|address| IpNetwork::from(*address));
        let mut all: Vec<IpNetwork> = specs
            .ignore
            .iter()
            .copied()
            .chain(addresses(&self.names, &specs.ignore_names))
            .chain(self.ignores.of_all())
            .chain(own)
            .collect();
        all.sort();
        all.dedup();
        all
    }
}
