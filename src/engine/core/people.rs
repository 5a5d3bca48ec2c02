//! The core's half that faces people: requests over the control socket, and what they are shown.

use std::collections::HashSet;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::history::Behalf;
use super::subnets::Freed;
use super::{
    Action, Asked, ClientId, Core, Effect, KernelView, Level, Rebuild, Row, Running, Source, SourceState, Target, Waiting, What,
    covers,
};
use crate::control::{Rank, Reply, Request};
use crate::jail::{self, Held, NETS_AT_MOST, Now, Origin, cover, ignore::is_nobody};
use crate::state::packed::Step;
use crate::terms::{Family, Lasting, Span, Time, escape, is_host, shown};

/// What is banned within a subnet is told of so many of a request at most: finding it takes a walk over all bans.
const NOTED_AT_MOST: usize = 100;

/// The widest subnets, by prefix length, that are banned without being asked twice.
const WIDEST: (u8, u8) = (8, 16);

/// Whether a subnet is so wide that it is most likely more than was meant.
pub(super) fn is_too_wide(net: IpNetwork) -> bool {
    net.prefix() < if net.is_ipv4() { WIDEST.0 } else { WIDEST.1 }
}

impl Core {
    pub(super) fn asked(&mut self, now: Now, asked: Asked) {
        self.behalf = Some(Behalf { uid: asked.uid, program: asked.program.clone() });
        self.answer(now, asked);
        self.behalf = None;
    }

    fn answer(&mut self, now: Now, asked: Asked) {
        if let (Request::Unban { user: Some(user), .. }, None) = (&asked.request, &asked.named) {
            let user = user.clone();
            return self.look_up(asked, &user);
        }
        let Asked { client, uid, rank, request, kernel, named, .. } = asked;
        let kernel = kernel.unwrap_or_default();
        let reply = match request {
            Request::Status { jail: None } => Reply::done(self.status(&kernel)),
            Request::Status { jail: Some(name) } => match self.at(&name) {
                Ok(at) => Reply::done(self.status_of(now, at, &kernel, rank)),
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
            Request::Unban { jail, addrs, all, since_s, net, user: _, dry_run, forget } => {
                let chosen = Chosen { all, since: since_s.map(Time::from_secs), net, named };
                return self.unban(now, client, jail.as_deref(), &addrs, &chosen, dry_run, forget);
            }
            Request::Ignore { addrs, for_s, jail, reason } => {
                return self.ignore(now, client, rank, uid, &addrs, for_s, jail.as_deref(), reason.as_deref());
            }
            Request::Ignored => Reply::done(self.ignored_list(now)),
            Request::Unignore { addrs, jail } => return self.unignore(now, client, rank, uid, &addrs, jail.as_deref()),
            Request::Pause { jail, for_s } => return self.pause(now, client, uid, jail.as_deref(), for_s),
            Request::Resume { jail } => return self.resume(now, client, uid, jail.as_deref()),
            Request::Explain { addr, jail } => self.explain(now, &addr, jail.as_deref()),
            Request::History { net, user, jail, since_s, limit } => {
                return self.history(client, net.as_deref(), user.as_deref(), jail, since_s, limit);
            }
            Request::Events { since, wait_s } => return self.events(now, client, since, wait_s),
            Request::Apply { origin, jail, events } => return self.apply(now, client, uid, &origin, jail.as_deref(), &events),
            Request::Applied => Reply::done(json!(self.applied())),
            Request::Config => Reply::done(json!({ "accepted": &*self.specs.accepted, "degraded": self.specs.degraded })),
            Request::Reload => {
                self.actions.push(Action::Reload(Some(client)));
                return;
            }
        };
        self.actions.push(Action::Reply(client, reply));
    }

    pub(super) fn at(&self, name: &str) -> Result<usize, Reply> {
        self.jails.iter().position(|running| running.spec.name == name).ok_or_else(|| {
            if let Some((_, why)) = self.specs.broken.iter().find(|(broken, _)| broken == name) {
                return Reply::refused(1, format!("jail \"{name}\" is broken"), why.clone());
            }
            let names: Vec<&str> = self.jails.iter().map(|running| running.spec.name.as_str()).collect();
            Reply::refused(1, format!("no jail \"{}\"", escape(name.as_bytes(), 200)), format!("there are: {}", names.join(", ")))
        })
    }

    #[expect(clippy::too_many_arguments, reason = "one request, spelt out")]
    pub(super) fn ban(
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
        let mut notes = Vec::new();
        for addr in addrs {
            let (subject, overruled) = match self.bannable(at, addr, force) {
                Ok(bannable) => bannable,
                Err(why) => {
                    refused.push(why);
                    continue;
                }
            };
            let running = &mut self.jails[at];
            let until = match lasting {
                Lasting::Permanent => None,
                Lasting::For(span) => Some(now.mono + span),
            };
            // A sign in front marks what came from another machine, or was forced.
            let reason = reason.clone().map(|reason| escape(reason.trim_start_matches(['@', '!']).as_bytes(), 500));
            let said: Option<Box<str>> = reason.as_deref().map(Into::into);
            let forced = overruled.is_some();
            let origin = Origin::Manual { uid, reason, forced };
            let mut held = Held { since: now.wall, until, lasting, failures: 0, origin, in_kernel: false, generation: 0 };
            let present = running.jail.held(subject).filter(|present| forced && !present.is_forced()).cloned();
            if let Some(present) = present {
                // One that bit nobody is replaced, and lasts at least as long as it would have.
                if present.ends_after(&held) {
                    held = Held { origin: held.origin, ..present };
                }
                running.jail.lift(subject);
            }
            let until = held.until;
            if running.jail.hold(subject, held.clone()) {
                if running.jail.subject(subject.network()) == subject {
                    self.keep.step(now, &running.key, Step::Forget(subject.network()));
                }
                running.jail.bans_total += 1;
                let until = until.map(|until| now.wall_of(until));
                let row = Row {
                    what: What::Ban,
                    since: Some(now.wall),
                    until,
                    origin: "manual".into(),
                    reason: said,
                    ..Row::default()
                };
                self.record_about(now, at, subject, row);
                banned.push(json!({ "jail": name, "addr": shown(subject) }));
                if let Some(by) = &overruled {
                    notes.push(format!(
                        "{}: ignored by {by}, and kept out all the same while it is banned by {name}",
                        shown(subject)
                    ));
                    self.forced.insert((self.jails[at].key.clone(), subject));
                }
                wanted.push((subject, held, overruled));
                let spared = self.jails[at].ignored.iter().filter(|entry| cover::holds(subject, *entry) && *entry != subject);
                notes.extend(
                    spared.take(5).map(|entry| format!("{} in {} is ignored and stays let in", shown(entry), shown(subject))),
                );
            } else {
                if running.jail.hold_beneath(subject, &held) {
                    self.keep.ban(now, &running.key, subject);
                }
                already.push(json!({ "jail": name, "addr": shown(subject) }));
            }
        }
        let exit = match (refused.is_empty(), banned.is_empty() && already.is_empty()) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 4,
        };
        let result = json!({ "banned": banned, "already": already, "notes": notes });
        let error = (!refused.is_empty()).then(|| refused.join("\n"));
        let reply = Reply { error, ..Reply::done(result).exit(exit) };
        if wanted.is_empty() {
            return self.actions.push(Action::Reply(client, reply));
        }
        self.waiting.insert(client, Waiting { open: 0, refused: Vec::new(), reply });
        if wanted.iter().any(|(.., overruled)| overruled.is_some()) {
            self.restate_for(client);
        }
        for (subject, held, overruled) in wanted {
            let forced = overruled.map_or(String::new(), |by| format!(", forced: ignored by {by}"));
            self.log(Level::Warn, format!("[{name}] Ban {} by uid {uid}{forced}", shown(subject)));
            self.make_room(now, at, subject);
            self.want(now, at, subject, &held, Effect::Tell(client));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one request, spelt out")]
    pub(super) fn unban(
        &mut self,
        now: Now,
        client: ClientId,
        jail: Option<&str>,
        addrs: &[String],
        chosen: &Chosen,
        dry_run: bool,
        forget: bool,
    ) {
        let places: Vec<usize> = match jail.map(|name| self.at(name)) {
            None => (0..self.jails.len()).collect(),
            Some(Ok(at)) => vec![at],
            Some(Err(reply)) => return self.actions.push(Action::Reply(client, reply)),
        };
        let mut freed: Vec<(usize, IpNetwork, Freed)> = Vec::new();
        let (mut absent, mut refused) = (Vec::new(), Vec::new());
        let forgets = forget && !dry_run;
        match self.selected(&places, chosen) {
            Ok(chosen) => {
                for (at, subject) in chosen {
                    if forgets {
                        self.forget(now, at, subject);
                    }
                    let lifted = self.jails[at].jail.held(subject).map(|held| (subject, held.clone())).into_iter().collect();
                    freed.push((at, subject, Freed { lifted, ..Freed::default() }));
                }
            }
            Err(why) => refused.push(why),
        }
        for addr in addrs {
            let (net, exact) = match parse_named(addr) {
                Ok(named) => named,
                Err(why) => {
                    refused.push(why);
                    continue;
                }
            };
            let mut found = false;
            for &at in &places {
                let running = &mut self.jails[at];
                // An address stands for its prefix, and may be banned by itself, too.
                let subject = if exact { net } else { running.jail.subject(net.network()) };
                if forgets {
                    running.jail.forget(subject);
                    self.keep.step(now, &running.key, Step::Forget(subject.network()));
                    self.keep.offence(now, &running.key, subject);
                }
                let mut holes = vec![net, subject];
                holes.retain(|hole| *hole == subject || self.jails[at].jail.held(*hole).is_some());
                holes.dedup();
                for hole in holes {
                    let free = self.freeing(at, hole, exact);
                    found |= !free.lifted.is_empty() || !free.cut.is_empty();
                    freed.push((at, hole, free));
                }
            }
            if !found {
                absent.push(shown(net));
            }
        }
        self.unbanned(now, client, freed, &absent, &refused, dry_run);
    }

    /// Tells the kernel and the client of what is lifted in the books.
    fn unbanned(
        &mut self,
        now: Now,
        client: ClientId,
        mut freed: Vec<(usize, IpNetwork, Freed)>,
        absent: &[String],
        refused: &[String],
        dry_run: bool,
    ) {
        freed.retain(|(_, _, free)| !free.lifted.is_empty() || !free.cut.is_empty());
        // The widest first: what is lifted whole needs no cut.
        freed.sort_by_key(|(at, hole, _)| (*at, hole.prefix(), *hole));
        let (mut lifted, mut notes, mut said) = (Vec::new(), Vec::new(), Vec::new());
        let going: HashSet<(usize, IpNetwork)> =
            freed.iter().flat_map(|(at, _, free)| free.lifted.iter().map(|(subject, _)| (*at, *subject))).collect();
        let few = freed.len() <= NOTED_AT_MOST;
        let row = |jail: &str, net: IpNetwork, held: &Held| json!({ "jail": jail, "addr": shown(net), "left_s": held.left(now).map(Span::secs) });
        for (at, hole, free) in &freed {
            let name = &self.jails[*at].spec.name;
            for (subject, held) in &free.lifted {
                lifted.push(row(name, *subject, held));
                said.push((Level::Warn, format!("[{name}] Unban {}", shown(*subject))));
            }
            for (net, held) in &free.cut {
                if !free.lifted.iter().any(|(subject, _)| subject == hole) {
                    lifted.push(row(name, *hole, held));
                    said.push((Level::Warn, format!("[{name}] Unban {}", shown(*hole))));
                }
                let note = format!("the rest of {} stays banned by {name}", shown(*net));
                said.push((Level::Info, format!("[{name}] {} is let in: {note}", shown(*hole))));
                notes.push(note);
            }
            if few
                && free.named
                && free.lifted.iter().any(|(subject, _)| subject == hole)
                && let within = self.jails[*at].jail.within(*hole)
                && let within @ 1.. = within.iter().filter(|net| !going.contains(&(*at, **net))).count()
            {
                notes.push(format!("{within} bans within {} go on in {name}", shown(*hole)));
            }
        }
        lifted.dedup();
        said.dedup();
        let exit = match (absent.is_empty() && refused.is_empty(), lifted.is_empty()) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 4,
        };
        let error = (!refused.is_empty()).then(|| refused.join("\n"));
        let result = json!({ "lifted": lifted, "absent": absent, "notes": notes, "dry_run": dry_run });
        let reply = Reply { error, ..Reply::done(result).exit(exit) };
        if freed.is_empty() || dry_run {
            return self.actions.push(Action::Reply(client, reply));
        }
        self.waiting.insert(client, Waiting { open: 0, refused: Vec::new(), reply });
        said.into_iter().for_each(|(level, text)| self.log(level, text));
        for (at, hole, free) in freed {
            let unban = || Row { what: What::Unban, origin: "manual".into(), ..Row::default() };
            for (subject, _) in free.lifted {
                if self.jails[at].jail.lift(subject).is_some() {
                    self.record_about(now, at, subject, unban());
                    self.change(now, at, subject, Target::Gone, Effect::Tell(client));
                }
            }
            if free.cut.is_empty() {
                continue;
            }
            let (cut, left) = self.jails[at].jail.cut(hole);
            if !cut.is_empty() {
                self.record_about(now, at, hole, unban());
            }
            for (subject, _) in cut {
                self.change(now, at, subject, Target::Gone, Effect::Tell(client));
            }
            for subject in left {
                let Some(held) = self.jails[at].jail.held(subject).cloned() else { continue };
                self.want(now, at, subject, &held, Effect::Tell(client));
            }
        }
    }

    /// What a ban of `text` would be a ban of, and by what that is ignored if `force` overrules it; or why there can be none.
    fn bannable(&self, at: usize, text: &str, force: bool) -> Result<(IpNetwork, Option<String>), String> {
        let (net, exact) = parse_named(text)?;
        let running = &self.jails[at];
        let subject = if exact { net } else { running.jail.subject(net.network()) };
        let name = shown(net);
        if net.is_ipv6() && !self.specs.ipv6 {
            return Err(format!("{name}: there are no sets for IPv6, see `ipv6` in [nft]"));
        }
        if running.jail.is_net(subject) && running.jail.held(subject).is_none() && running.jail.cover().len() >= NETS_AT_MOST {
            return Err(format!(
                "{name}: {} bans {NETS_AT_MOST} subnets already, more would slow the firewall",
                running.spec.name
            ));
        }
        let by = match is_host(net) {
            true => self.ignored_by(at, net.network()),
            false if is_nobody(net.network()) && is_nobody(net.broadcast()) && net.prefix() >= 4 => {
                Some("address class".to_owned())
            }
            false => covers(&running.ignored, net).map(|entry| format!("ip {}", shown(entry))),
        };
        match by {
            // Only what was named is meant, not the prefix around it.
            Some(by) if force => Ok((net, Some(by))),
            _ if force => Ok((subject, None)),
            Some(by) => Err(format!("{name}: ignored by {by}; --force bans it all the same")),
            None if is_too_wide(net) => {
                Err(format!("{name}: that is most likely more than was meant; --force bans it all the same"))
            }
            None => Ok((subject, None)),
        }
    }

    /// The bans that are chosen otherwise than by address.
    fn selected(&self, places: &[usize], chosen: &Chosen) -> Result<Vec<(usize, IpNetwork)>, String> {
        if !chosen.all && chosen.since.is_none() && chosen.net.is_none() && chosen.named.is_none() {
            return Ok(Vec::new());
        }
        let net = chosen.net.as_deref().map(parse_subject).transpose()?;
        let within = |net: IpNetwork, subject: IpNetwork| {
            net.is_ipv4() == subject.is_ipv4() && net.prefix() <= subject.prefix() && net.contains(subject.network())
        };
        let mut found = Vec::new();
        let named: Option<HashSet<(&str, IpNetwork)>> =
            chosen.named.as_ref().map(|named| named.iter().map(|(jail, subject)| (&**jail, *subject)).collect());
        for &at in places {
            let running = &self.jails[at];
            let names = |subject: IpNetwork| named.as_ref().is_none_or(|named| named.contains(&(&*running.key, subject)));
            let bans = running.jail.bans().filter(|(subject, held)| {
                chosen.since.is_none_or(|since| held.since >= since)
                    && net.is_none_or(|net| within(net, *subject))
                    && names(*subject)
            });
            found.extend(bans.map(|(subject, _)| (at, subject)));
        }
        Ok(found)
    }

    /// Forgets counted failures and offences of a subject.
    fn forget(&mut self, now: Now, at: usize, subject: IpNetwork) {
        let running = &mut self.jails[at];
        running.jail.forget(subject);
        self.keep.step(now, &running.key, Step::Forget(subject.network()));
        self.keep.offence(now, &running.key, subject);
    }

    /// What is known of an address, jail by jail.
    fn explain(&self, now: Now, addr: &str, jail: Option<&str>) -> Reply {
        let address = match parse_subject(addr) {
            Ok(net) if is_host(net) => net.network(),
            Ok(net) => return Reply::refused(2, format!("{net}: a subnet; one address can be explained"), None),
            Err(why) => return Reply::refused(2, why, None),
        };
        let places: Vec<usize> = match jail.map(|name| self.at(name)) {
            None => (0..self.jails.len()).collect(),
            Some(Ok(at)) => vec![at],
            Some(Err(reply)) => return reply,
        };
        let mut rows = Vec::new();
        let mut held_by_one = false;
        for at in places {
            let running = &self.jails[at];
            let jail = &running.jail;
            let subject = jail.subject(address);
            let held = jail.covering(address);
            held_by_one |= !held.is_empty();
            let held: Vec<Value> = held
                .into_iter()
                .map(|(subject, held)| self.banned_row(now, running, subject, held, &KernelView::default()))
                .collect();
            rows.push(json!({
                "jail": running.spec.name, "counted_as": shown(subject), "failures": jail.counted(now, address),
                "maxretry": running.spec.policy.maxretry, "findtime": running.spec.policy.findtime.to_string(),
                "offences": jail.offended(now, address), "ignored": self.ignored_by(at, address), "banned": held,
                "paused": self.pauses.told(now, &running.spec.name), "observe": running.spec.policy.observe,
            }));
        }
        Reply::done(json!({ "addr": address.to_string(), "jails": rows })).exit(u8::from(!held_by_one))
    }

    pub(super) fn status(&self, kernel: &KernelView) -> Value {
        let mut jails: Vec<Value> = self.jails.iter().map(|running| self.brief(running, kernel)).collect();
        jails.extend(self.specs.broken.iter().map(|(name, why)| broken_json(name, why)));
        jails.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
        json!({
            "jails": jails, "nft": self.nft(kernel), "degraded": self.specs.degraded, "state": self.keep.failed(),
            "history": self.lacking(),
            "clock": self.jumped.map(|(at, moved)| json!({ "jumped": rfc3339(at), "by_s": moved / 1_000_000 })),
        })
    }

    pub(super) fn nft(&self, kernel: &KernelView) -> Value {
        let degraded = match &self.rebuild {
            Rebuild::Wanted { why, .. } => Value::from(why.as_str()),
            Rebuild::Running { .. } => Value::from("rebuilding"),
            Rebuild::No => Value::Null,
        };
        let table = |family: Family| {
            json!({
                "table": self.specs.table, "family": family.name(), "owner": self.hands.owned,
                "generation": kernel.generation, "restored": self.rebuilt, "degraded": degraded,
            })
        };
        self.specs.families().map(table).collect()
    }

    pub(super) fn state_of(&self, running: &Running) -> &'static str {
        let followed = |source: &Source| matches!(source.state, SourceState::Live | SourceState::CatchingUp);
        match () {
            () if running.spec.broken.is_some() => "broken",
            () if self.pauses.holds(&running.spec.name) => "paused",
            () if running.spec.patterns.is_empty() && running.spec.journal.is_none() => "running",
            () if !running.sources.values().any(followed) => "waiting",
            () if running.spec.policy.observe => "observing",
            () => "running",
        }
    }

    pub(super) fn brief(&self, running: &Running, kernel: &KernelView) -> Value {
        let spec = &running.spec;
        let sources: Vec<Value> = running.sources.iter().map(|(path, source)| source_json(path, source)).collect();
        let count = |set: &str| kernel.counts.get(set).copied();
        let net = |suffix: &str| count(&format!("{}-{suffix}", spec.name)).unwrap_or(0);
        let (packets, bytes) = kernel.dropped.get(&spec.name).copied().unwrap_or_default();
        json!({
            "name": spec.name,
            "state": self.state_of(running),
            "backend": running.backend(),
            "backend_why": running.choice.as_ref().map(|choice| &choice.why),
            "sources": sources,
            "failures": { "current": running.jail.failing(), "total": running.jail.failures_total },
            "bans": { "current": running.jail.bans_held(), "total": running.jail.bans_total, "evicted": self.evicted_bans(spec) },
            "kernel": { "v4": count(&spec.set_v4).unwrap_or(0), "v6": count(&spec.set_v6).unwrap_or(0), "net4": net("net4"), "net6": net("net6") },
            "dropped": { "packets": packets, "bytes": bytes },
            "last_match": running.jail.last_failure.map(rfc3339),
            "near_misses": { "total": running.near.count, "last": running.near.at.map(rfc3339) },
            "why": spec.broken,
        })
    }

    /// The whole of a jail; the lines that nearly matched only for who may read what lines say.
    pub(super) fn status_of(&self, now: Now, at: usize, kernel: &KernelView, rank: Rank) -> Value {
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
            "families": spec.families.iter().map(|family| family.name()).collect::<Vec<_>>(),
            "sets": [&*spec.set_v4, &*spec.set_v6],
            "patterns": spec.patterns,
            "paused": self.pauses.told(now, &spec.name),
            "near_miss_lines": (rank >= Rank::Operator).then_some(&running.near.lines),
            "evicted": running.jail.evicted(),
            "offences_evicted": running.jail.offences_evicted(),
            "banned": listed,
            "banned_at_most": 10_000,
            "time": rfc3339(now.wall),
        });
        if let (Value::Object(brief), Value::Object(full)) = (&mut brief, full) {
            brief.extend(full);
        }
        brief
    }

    pub(super) fn stats(&self) -> Value {
        let rows = self.jails.iter().map(|running| {
            json!({
                "jail": running.spec.name, "backend": running.backend(),
                "failures": { "current": running.jail.failing(), "total": running.jail.failures_total },
                "bans": { "current": running.jail.bans_held(), "total": running.jail.bans_total },
            })
        });
        Value::Array(rows.collect())
    }

    pub(super) fn banned(&self, now: Now, kernel: &KernelView) -> Value {
        let mut rows: Vec<(Time, Value)> = Vec::new();
        for running in &self.jails {
            for (subject, held) in running.jail.bans() {
                rows.push((held.since, self.banned_row(now, running, subject, held, kernel)));
            }
        }
        rows.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
        Value::Array(rows.into_iter().map(|(_, row)| row).collect())
    }

    pub(super) fn banned_row(&self, now: Now, running: &Running, subject: IpNetwork, held: &Held, kernel: &KernelView) -> Value {
        let set = running.spec.set(subject);
        let counted = kernel.elements.get(&(set.to_string(), subject.network()));
        let reason = held.origin.reason();
        let (origin, uid) = match &held.origin {
            Origin::Manual { uid, .. } | Origin::Given { uid, .. } => ("manual", Some(*uid)),
            Origin::Failures => ("log", None),
            Origin::Adopted | Origin::Foreign => ("kernel", None),
            Origin::Aggregate(_) => ("aggregate", None),
        };
        json!({
            "jail": running.spec.name, "addr": shown(subject),
            "since": rfc3339(held.since), "until": held.until.map(|until| rfc3339(now.wall_of(until))),
            "left_s": held.left(now).map(Span::secs), "failures": held.failures, "reason": reason,
            "packets": counted.map(|c| c.0), "bytes": counted.map(|c| c.1), "origin": origin, "uid": uid,
            "forced": held.is_forced(),
        })
    }

    pub(super) fn holders(&self, now: Now, addrs: &[String]) -> Reply {
        let mut rows = Vec::new();
        let (mut free, mut subnets) = (false, 0);
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
            subnets += usize::from(!is_host(net));
            let count = |running: &Running| running.jail.within(net).iter().filter(|n| **n != net).count();
            let within: Option<usize> = match is_host(net) {
                true => Some(0),
                false => (subnets <= NOTED_AT_MOST).then(|| self.jails.iter().map(count).sum()),
            };
            rows.push(json!({ "addr": shown(net), "jails": jails, "within": within }));
        }
        if !refused.is_empty() {
            return Reply::refused(2, refused.join("\n"), None);
        }
        Reply::done(Value::Array(rows)).exit(u8::from(free))
    }
}

/// Which bans are to be lifted, other than by address: those for which everything given holds.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// Every one.
    pub all: bool,
    /// Made since then.
    pub since: Option<Time>,
    /// Within this subnet.
    pub net: Option<String>,
    /// Of these.
    pub named: Option<Vec<(Arc<str>, IpNetwork)>>,
}

/// A jail that has nothing but a name and a mistake, with the keys of every other.
pub(super) fn broken_json(name: &str, why: &str) -> Value {
    let none = json!({ "current": 0, "total": 0 });
    json!({
        "name": name, "state": "broken", "why": why, "backend": null, "sources": [], "failures": none, "bans": none,
        "kernel": { "v4": 0, "v6": 0, "net4": 0, "net6": 0 }, "dropped": { "packets": 0, "bytes": 0 }, "last_match": null,
        "near_misses": { "total": 0, "last": null },
    })
}

pub(super) fn source_json(path: &str, source: &Source) -> Value {
    // How far behind reading is, only files tell.
    let lag = path.starts_with('/').then(|| source.size - source.offset.min(source.size));
    json!({
        "path": escape(path.as_bytes(), 4096), "state": source.state.name(), "lag_bytes": lag,
        "lines": source.lines, "note": source.note,
    })
}

/// RFC 3339 in UTC, whole seconds.
pub fn rfc3339(time: Time) -> String {
    jiff::Timestamp::from_second(time.secs()).map_or_else(|_| "?".to_owned(), |stamp| stamp.to_string())
}

/// As [`parse_subject`], and whether it was written with a prefix length: `2001:db8::7/128` is meant as written, `2001:db8::7` stands
/// for the prefix around it.
pub(super) fn parse_named(text: &str) -> Result<(IpNetwork, bool), String> {
    parse_subject(text).map(|net| (net, text.contains('/')))
}

/// An address or subnet as people write it; IPv4-mapped addresses are folded, host bits of a subnet refused.
pub(super) fn parse_subject(text: &str) -> Result<IpNetwork, String> {
    let named = || escape(text.as_bytes(), 100);
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(crate::terms::fold(address).into());
    }
    let net: IpNetwork =
        text.parse().map_err(|_| format!("\"{}\": not an address, such as 192.0.2.7 or 2001:db8::7", named()))?;
    let net = match net {
        IpNetwork::V6(v6) if v6.prefix() >= 96 => match v6.ip().to_ipv4_mapped() {
            Some(v4) => jail::network(v4.into(), v6.prefix() - 96).filter(|clean| clean.network() == v4).unwrap_or(net),
            None => net,
        },
        _ => net,
    };
    match jail::network(net.ip(), net.prefix()) {
        Some(clean) if clean.network() == net.ip() => Ok(clean),
        Some(clean) => Err(format!("\"{}\": host bits are set; the subnet is {clean}", named())),
        None => Err(format!("\"{}\": not a subnet", named())),
    }
}
