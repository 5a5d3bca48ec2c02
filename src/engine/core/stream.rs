//! The core's half for bans as a stream: events out to whoever follows, and another machine's events in.
//!
//! Only what this machine decided goes out, so that two that follow each other do not echo. What comes in is marked with its
//! origin: another machine's unban lifts what that machine banned here and nothing else, and whom we ignore stays ignored.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::people::{is_too_wide, parse_subject};
use super::{Action, ClientId, Core, Effect, Level, Row, Target, Waiting, What, covers, rfc3339, shown};
use crate::config::run::MANUAL;
use crate::control::Reply;
use crate::control::request::{Given, GivenWhat};
use crate::engine::historian::Search;
use crate::jail::{Held, NETS_AT_MOST, Now, Origin, ignore::is_nobody};
use crate::state::history::Query;
use crate::terms::{Lasting, Span, Time, escape, is_host};

/// Events of an answer.
const EVENTS_AT_MOST: usize = 1000;
/// A follower that waits is answered after this long at the latest.
const WAIT_AT_MOST: Span = Span::from_secs(50);
/// Machines whose numbers are remembered.
const ORIGINS_AT_MOST: usize = 1000;

/// The longest ban that is taken over; the kernel has none longer than a few centuries.
const LONGEST: Span = Span::from_secs(100 * 366 * 86_400);

/// A client that waits for the next event.
#[derive(Debug)]
pub(super) struct Follower {
    client: ClientId,
    after: u64,
    until: Time,
}

/// The marks of another machine's bans.
pub(super) fn mark(origin: &str) -> String {
    format!("@{origin}")
}

/// What we decided ourselves of what is held: the ban, or what goes on beneath another machine's.
fn own(held: &Held) -> Option<&Held> {
    match &held.origin {
        Origin::Given { own, .. } => own.as_deref(),
        _ => Some(held),
    }
}

impl Core {
    /// `banset events`
    pub(super) fn events(&mut self, now: Now, client: ClientId, since: Option<u64>, wait_s: u64) {
        let after = match since {
            Some(since) if since <= self.seq => since,
            // Who comes without a number, or with one that was lost with an old state, is told what is held, and goes on from there.
            other => {
                let reply = json!({ "events": self.snapshot(now), "next": self.seq, "more": false, "anew": other.is_some() });
                return self.actions.push(Action::Reply(client, Reply::done(reply)));
            }
        };
        if after < self.seq {
            return self.search(stream(client, after));
        }
        if wait_s == 0 {
            let reply = json!({ "events": [], "next": after, "more": false });
            return self.actions.push(Action::Reply(client, Reply::done(reply)));
        }
        let until = now.mono + Span::from_secs(wait_s).min(WAIT_AT_MOST);
        self.followers.push(Follower { client, after, until });
    }

    /// Followers whose event came, or whose time is over, are answered.
    pub(super) fn follow_on(&mut self, now: Now) {
        let seq = self.seq;
        let ready = |follower: &Follower| follower.after < seq || follower.until <= now.mono;
        let (ready, waiting): (Vec<Follower>, Vec<Follower>) = std::mem::take(&mut self.followers).into_iter().partition(ready);
        self.followers = waiting;
        for follower in ready {
            match follower.after < seq {
                true => self.search(stream(follower.client, follower.after)),
                false => {
                    let reply = json!({ "events": [], "next": follower.after, "more": false });
                    self.actions.push(Action::Reply(follower.client, Reply::done(reply)));
                }
            }
        }
    }

    /// When the next follower is to be answered.
    pub(super) fn next_follower(&self) -> Option<Time> {
        self.followers.iter().map(|follower| follower.until).min()
    }

    /// Every ban of our own that is held, as an event.
    fn snapshot(&self, now: Now) -> Value {
        let mut events = Vec::new();
        for running in &self.jails {
            for (subject, held) in running.jail.bans().filter_map(|(subject, held)| Some((subject, own(held)?))) {
                let (origin, reason) = match &held.origin {
                    Origin::Manual { .. } | Origin::Given { .. } => ("manual", held.origin.reason()),
                    Origin::Failures => ("log", None),
                    Origin::Adopted | Origin::Foreign => ("kernel", None),
                    Origin::Aggregate(_) => ("aggregate", held.origin.reason()),
                };
                events.push(json!({
                    "seq": self.seq, "time": rfc3339(now.wall), "what": "ban", "jail": running.spec.name, "addr": shown(subject),
                    "since": rfc3339(held.since), "until": held.until.map(|until| rfc3339(now.wall_of(until))),
                    "permanent": held.until.is_none(), "failures": held.failures, "origin": origin, "by": null, "reason": reason,
                }));
            }
        }
        Value::Array(events)
    }

    /// `banset apply`
    pub(super) fn apply(&mut self, now: Now, client: ClientId, uid: u32, origin: &str, jail: Option<&str>, given: &[Given]) {
        let named =
            !origin.is_empty() && origin.len() <= 100 && origin.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !named {
            let help = "letters, digits, dots and dashes, at most 100: the name of the machine that decided".to_owned();
            return self.actions.push(Action::Reply(
                client,
                Reply::refused(2, format!("\"{}\" names no machine", escape(origin.as_bytes(), 100)), help),
            ));
        }
        let forced = match jail.map(|name| self.at(name)).transpose() {
            Ok(forced) => forced,
            Err(reply) => return self.actions.push(Action::Reply(client, reply)),
        };
        let mark = mark(origin);
        let (mut banned, mut already, mut over, mut lifted, mut absent) = (0u64, 0u64, 0u64, 0u64, 0u64);
        let mut refused: Vec<String> = Vec::new();
        let mut changes = Vec::new();
        for event in given {
            let at = forced.or_else(|| self.at(&event.jail).ok()).or_else(|| self.at(MANUAL).ok());
            let (Some(at), net) = (at, parse_subject(&event.addr)) else { continue };
            let net = match net {
                Ok(net) => net,
                Err(why) => {
                    refused.push(why);
                    continue;
                }
            };
            let subject = if is_host(net) { self.jails[at].jail.subject(net.network()) } else { net };
            if net.is_ipv6() && !self.specs.ipv6 {
                refused.push(format!("{}: there are no sets for IPv6, see `ipv6` in [nft]", shown(net)));
                continue;
            }
            match event.what {
                GivenWhat::Ban => {
                    let by = match is_host(net) {
                        true => self.ignored_by(at, net.network()),
                        false => covers(&self.jails[at].ignored, net).map(|entry| format!("ip {}", shown(entry))),
                    };
                    if let Some(by) = by {
                        refused.push(format!("{}: ignored by {by}", shown(net)));
                        continue;
                    }
                    let jail = &self.jails[at].jail;
                    if is_too_wide(net) || !is_host(net) && is_nobody(net.network()) && is_nobody(net.broadcast()) {
                        refused.push(format!("{}: that is most likely more than was meant", shown(net)));
                        continue;
                    }
                    if jail.is_net(subject) && jail.held(subject).is_none() && jail.cover().len() >= NETS_AT_MOST {
                        let name = &self.jails[at].spec.name;
                        refused.push(format!("{}: {name} bans {NETS_AT_MOST} subnets already", shown(net)));
                        continue;
                    }
                    let until = match event.until_s.map(Time::from_secs) {
                        Some(until) if until <= now.wall => {
                            over += 1;
                            continue;
                        }
                        Some(until) => Some(now.mono + until.since(now.wall).min(LONGEST)),
                        None => None,
                    };
                    let since = Time::from_secs(event.since_s).min(now.wall);
                    let lasting =
                        until.map_or(Lasting::Permanent, |until| Lasting::For(now.wall_of(until).since(since).min(LONGEST)));
                    let reason: Option<Box<str>> = event.reason.as_ref().map(|reason| escape(reason.as_bytes(), 500).into());
                    let origin = Origin::Given { uid, machine: origin.into(), reason: reason.clone(), own: None };
                    let held = Held { since, until, lasting, failures: event.failures, origin, in_kernel: false, generation: 0 };
                    if !self.jails[at].jail.hold_given(subject, held) {
                        already += 1;
                        continue;
                    }
                    banned += 1;
                    self.jails[at].jail.bans_total += 1;
                    let row = Row {
                        what: What::Ban,
                        since: Some(since),
                        until: until.map(|until| now.wall_of(until)),
                        failures: event.failures,
                        origin: mark.as_str().into(),
                        reason,
                        ..Row::default()
                    };
                    self.record_about(now, at, subject, row);
                    self.log(
                        Level::Warn,
                        format!(
                            "[{}] Ban {} from {origin_name}",
                            self.jails[at].spec.name,
                            shown(subject),
                            origin_name = &mark[1..]
                        ),
                    );
                    changes.push((at, subject, Target::Held { lasting, until }));
                }
                GivenWhat::Unban => {
                    // Where another machine put it, whatever jail that was; what we decided ourselves stays.
                    let Some((_, own)) = self.jails[at].jail.take_back(now, subject, origin) else {
                        absent += 1;
                        continue;
                    };
                    lifted += 1;
                    self.record_about(
                        now,
                        at,
                        subject,
                        Row { what: What::Unban, origin: mark.as_str().into(), ..Row::default() },
                    );
                    let goes_on = if own.is_some() { "; our own ban goes on" } else { "" };
                    self.log(
                        Level::Warn,
                        format!("[{}] Unban {} by {origin}{goes_on}", self.jails[at].spec.name, shown(subject)),
                    );
                    let to = own.map_or(Target::Gone, |own| Target::Held { lasting: own.lasting, until: own.until });
                    changes.push((at, subject, to));
                }
            }
        }
        if let Some(last) = given.iter().map(|event| event.seq).next_back()
            && (self.applied.contains_key(origin) || self.applied.len() < ORIGINS_AT_MOST)
        {
            self.applied.insert(origin.into(), last);
            self.keep.applied(now);
        }
        let result = json!({
            "banned": banned, "already": already, "over": over, "lifted": lifted, "absent": absent, "refused": refused,
            "last": self.applied.get(origin),
        });
        let reply = Reply::done(result);
        if changes.is_empty() {
            let at_once = self.keep.then_reply(now, client, reply);
            self.actions.extend(at_once.map(|(client, reply)| Action::Reply(client, reply)));
            return;
        }
        self.waiting.insert(client, Waiting { open: 0, refused: Vec::new(), reply });
        for (at, subject, to) in changes {
            self.change(now, at, subject, to, Effect::Tell(client));
        }
    }

    /// How far each machine's events were applied.
    pub(super) fn applied(&self) -> &BTreeMap<Box<str>, u64> {
        &self.applied
    }
}

fn stream(client: ClientId, after: u64) -> Search {
    Search::Rows { client, query: Query { after: Some(after), limit: EVENTS_AT_MOST, ..Query::default() }, stream: true }
}
