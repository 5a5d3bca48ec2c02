//! The core's half that faces people: requests over the control socket, and what they are shown.

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::history::Behalf;
use super::{
    Action, Asked, ClientId, Core, Effect, KernelView, Level, Rebuild, Row, Running, Source, SourceState, Target, Waiting, What,
};
use crate::control::{Reply, Request};
use crate::jail::{self, Held, Now, Origin};
use crate::state::packed::Step;
use crate::terms::{Family, Lasting, Span, Time, escape};

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
            // The sign in front marks what came from another machine.
            let reason = reason.clone().map(|reason| escape(reason.trim_start_matches('@').as_bytes(), 500));
            let said: Option<Box<str>> = reason.as_deref().map(Into::into);
            let origin = Origin::Manual { uid, reason };
            let held = Held { since: now.wall, until, lasting, failures: 0, origin, in_kernel: false, generation: 0 };
            if running.jail.hold(subject, held.clone()) {
                self.keep.step(now, &running.key, Step::Forget(subject.network()));
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
        let mut wanted: Vec<(usize, IpNetwork)> = Vec::new();
        let (mut absent, mut refused, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        match self.selected(&places, chosen) {
            Ok(chosen) => wanted.extend(chosen),
            Err(why) => refused.push(why),
        }
        let forgets = forget && !dry_run;
        if forgets {
            wanted.iter().for_each(|(at, subject)| self.forget(now, *at, *subject));
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
                if forgets {
                    running.jail.forget(subject);
                    self.keep.step(now, &running.key, Step::Forget(subject.network()));
                    self.keep.offence(now, &running.key, subject);
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
        let reply = Reply {
            error,
            ..Reply::done(json!({ "lifted": lifted, "absent": absent, "notes": notes, "dry_run": dry_run })).exit(exit)
        };
        if wanted.is_empty() || dry_run {
            return self.actions.push(Action::Reply(client, reply));
        }
        self.waiting.insert(client, Waiting { open: 0, refused: Vec::new(), reply });
        for (at, subject) in wanted {
            self.jails[at].jail.lift(subject);
            self.record_about(now, at, subject, Row { what: What::Unban, origin: "manual".into(), ..Row::default() });
            let text = format!("[{}] Unban {}", self.jails[at].spec.name, shown(subject));
            self.log(Level::Warn, text);
            self.change(now, at, subject, Target::Gone, Effect::Tell(client));
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
        for &at in places {
            let running = &self.jails[at];
            let names = |subject: IpNetwork| {
                chosen.named.as_ref().is_none_or(|named| named.iter().any(|(jail, of)| *jail == running.key && *of == subject))
            };
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
        let address = match parse_address(addr) {
            Ok(address) => address,
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
        json!({ "jails": jails, "nft": self.nft(kernel), "degraded": self.specs.degraded, "state": self.keep.failed() })
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
            "why": spec.broken,
        })
    }

    pub(super) fn status_of(&self, now: Now, at: usize, kernel: &KernelView) -> Value {
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
        let (reason, origin, uid) = match &held.origin {
            Origin::Manual { reason, uid } => (reason.clone(), "manual", Some(*uid)),
            Origin::Failures => (None, "log", None),
            Origin::Adopted => (None, "kernel", None),
        };
        json!({
            "jail": running.spec.name, "addr": shown(subject),
            "since": rfc3339(held.since), "until": held.until.map(|until| rfc3339(now.wall_of(until))),
            "left_s": held.left(now).map(Span::secs), "failures": held.failures, "reason": reason,
            "packets": counted.map(|c| c.0), "bytes": counted.map(|c| c.1), "origin": origin, "uid": uid,
        })
    }

    pub(super) fn holders(&self, now: Now, addrs: &[String]) -> Reply {
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

pub(super) fn parse_address(text: &str) -> Result<IpAddr, String> {
    let net = parse_subject(text)?;
    match net.prefix() == if net.is_ipv4() { 32 } else { 128 } {
        true => Ok(net.network()),
        false => Err(format!("{net}: this version bans addresses, not subnets; an IPv6 address stands for its prefix")),
    }
}

/// An address or subnet as people write it; IPv4-mapped addresses are folded, host bits of a subnet refused.
pub(super) fn parse_subject(text: &str) -> Result<IpNetwork, String> {
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
