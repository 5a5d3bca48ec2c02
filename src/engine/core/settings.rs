//! The core's half that faces the configuration: specs come into force, and with them whom we ignore.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{
    Action, Cause, Core, Effect, JailId, Level, NearMisses, NetSets, Reloaded, Row, Running, Suspects, Target, What, covers,
    shown, subnets,
};
use crate::control::Reply;
use crate::engine::spec::Specs;
use crate::jail::{Jail, Nets, Now, Origin};

impl Core {
    pub(super) fn number(&mut self, mut specs: Specs) -> Specs {
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

    pub(super) fn reloaded(&mut self, reloaded: Reloaded) {
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
    pub(super) fn switch(&mut self, now: Now, specs: Arc<Specs>) -> Vec<String> {
        let mut old: HashMap<String, Running> =
            std::mem::take(&mut self.jails).into_iter().map(|r| (r.spec.name.clone(), r)).collect();
        let mut rekeyed = false;
        for spec in &specs.jails {
            let ignored = self.ignores.with(spec, &self.names);
            let running = match old.remove(&spec.name) {
                Some(running) => {
                    let Running { id, spec: before, mut jail, sources, nets, choice, near, .. } = running;
                    jail.reform(spec.policy.clone());
                    if subnets::rekeyed(&before, spec) {
                        rekeyed = true;
                        jail.cover_mut().refill();
                    }
                    let key = spec.name.as_str().into();
                    Running { id, key, spec: spec.clone(), jail, ignored, sources, nets, choice, near }
                }
                None => {
                    let id = spec.id.unwrap_or(JailId(u32::MAX));
                    let mut jail = Jail::new(spec.policy.clone());
                    jail.exactly(&self.links);
                    let (key, sources, nets) = (spec.name.as_str().into(), BTreeMap::new(), NetSets::No);
                    Running {
                        id,
                        key,
                        spec: spec.clone(),
                        jail,
                        ignored,
                        sources,
                        nets,
                        choice: None,
                        near: NearMisses::default(),
                    }
                }
            };
            self.jails.push(running);
        }
        for (name, running) in old {
            let bans = running.jail.bans_held();
            if bans > 0 {
                self.log(Level::Warn, format!("[{name}] is no longer configured: {bans} bans lifted"));
                let subjects: Vec<IpNetwork> = running.jail.bans().map(|(subject, _)| subject).collect();
                for subject in subjects {
                    self.keep.ban(now, &running.key, subject);
                    let (jail, reason) = (Some(running.key.clone()), Some("the jail is no longer configured".into()));
                    let row = Row {
                        what: What::Unban,
                        jail,
                        subject: Some(subject),
                        origin: "config".into(),
                        reason,
                        ..Row::default()
                    };
                    self.record(now, row);
                }
            }
        }
        self.by_id = self.jails.iter().enumerate().map(|(at, running)| (running.id, at)).collect();
        self.specs = specs.clone();
        self.lift_ignored(now);
        self.drop_stranded(now);
        self.trim(now);
        if rekeyed {
            self.make_whole(now, "a prefix changed".to_owned(), Suspects::All);
        }
        self.actions.push(Action::Watch(specs));
        match self.specs.changes.as_slice() {
            [] => vec!["nothing changed".to_owned()],
            changes => changes.to_vec(),
        }
    }

    /// A new ignore entry lifts the bans it covers.
    pub(super) fn lift_ignored(&mut self, now: Now) {
        let mut lifted = Vec::new();
        for (at, running) in self.jails.iter().enumerate() {
            let own: Nets = match running.spec.ignoreself {
                true => self.machine.addresses.iter().map(|address| IpNetwork::from(*address)).collect(),
                false => Nets::default(),
            };
            for (subject, held) in running.jail.bans() {
                let by = covers(&running.ignored, subject).or_else(|| covers(&own, subject));
                if let Some(entry) = by.filter(|_| !matches!(held.origin, Origin::Manual { .. } | Origin::Given { .. })) {
                    lifted.push((at, subject, entry));
                }
            }
        }
        for (at, subject, entry) in lifted {
            self.jails[at].jail.lift(subject);
            let reason = Some(format!("ignored by {} now", shown(entry)).into());
            self.record_about(now, at, subject, Row { what: What::Unban, origin: "ignore".into(), reason, ..Row::default() });
            let text = format!("[{}] Unban {}, ignored by {} now", self.jails[at].spec.name, shown(subject), shown(entry));
            self.change(now, at, subject, Target::Gone, Effect::Log(Level::Warn, text));
        }
    }

    /// Changes for sets that no longer exist would make the kernel refuse a whole transaction.
    pub(super) fn drop_stranded(&mut self, now: Now) {
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
    pub(super) fn ignored_otherwise(&mut self, now: Now) {
        self.ignored_anew();
        self.lift_ignored(now);
        // The ignore sets are part of the table: the same way that makes it ours changes only them.
        (self.restate, self.moved) = (true, true);
    }
}
