//! The core's half for whom people want ignored at run time: kept in the state, in the kernel's ignore sets, told to the history.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::kept::left;
use super::people::parse_subject;
use super::{Action, ClientId, Core, Effect, Level, Row, Target, Waiting, What, covers, rfc3339, shown};
use crate::control::{Rank, Reply};
use crate::engine::spec::{Resolved, Spec};
use crate::jail::{Nets, Now};
use crate::state::KeptIgnore;
use crate::terms::{Span, Time, escape};

/// Entries at most: each is an element of an ignore set, and looked at for every failure.
const ENTRIES_AT_MOST: usize = 10_000;
/// The longest that an operator may have somebody ignored.
const OPERATOR_AT_MOST: Span = Span::from_secs(86_400);
/// The largest subnets that an operator may have ignored, by prefix length: more would be a pause, and that is root's.
const OPERATOR_PREFIX: (u8, u8) = (16, 32);

/// The jail (`None`: all) and whom.
type Key = (Option<Arc<str>>, IpNetwork);

/// Somebody's wish.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    since: Time,
    /// Monotonic; `None`: until somebody says otherwise.
    until: Option<Time>,
    uid: u32,
    reason: Option<Box<str>>,
}

/// Whom people want ignored, on top of ignoreip.
#[derive(Clone, Debug, Default)]
pub(super) struct Wishes {
    entries: BTreeMap<Key, Wish>,
    /// When the next of them ends: asked at every event.
    next_end: Option<Time>,
}

impl Wishes {
    /// What holds for a jail: what holds for all, and its own.
    pub fn of<'a>(&'a self, jail: &'a str) -> impl Iterator<Item = IpNetwork> + 'a {
        self.entries.keys().filter(move |(of, _)| of.as_deref().is_none_or(|of| of == jail)).map(|(_, subject)| *subject)
    }

    /// What holds for all jails.
    pub fn of_all(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.entries.keys().filter(|(of, _)| of.is_none()).map(|(_, subject)| *subject)
    }

    /// What holds for one jail only.
    pub fn of_only<'a>(&'a self, jail: &'a str) -> impl Iterator<Item = IpNetwork> + 'a {
        self.entries.keys().filter(move |(of, _)| of.as_deref() == Some(jail)).map(|(_, subject)| *subject)
    }

    /// Everything a jail ignores: by configuration, host names as they resolve now, and by request.
    pub fn with(&self, spec: &Spec, names: &Resolved) -> Nets {
        spec.ignored(names).chain(self.of(&spec.name)).collect()
    }

    /// When the next of them ends.
    pub fn next_end(&self) -> Option<Time> {
        self.next_end
    }

    fn insert(&mut self, key: Key, wish: Wish) {
        self.entries.insert(key, wish);
        self.look();
    }

    fn remove(&mut self, key: &Key) {
        self.entries.remove(key);
        self.look();
    }

    fn look(&mut self) {
        self.next_end = self.entries.values().filter_map(|wish| wish.until).min();
    }

    /// As they are kept.
    pub fn kept(&self, now: Now) -> Vec<KeptIgnore> {
        let kept = |((jail, subject), wish): (&Key, &Wish)| KeptIgnore {
            jail: jail.clone(),
            subject: *subject,
            since: wish.since,
            until: wish.until.map(|until| now.wall_of(until)),
            uid: wish.uid,
            reason: wish.reason.clone(),
        };
        self.entries.iter().map(kept).collect()
    }

    /// As an earlier run kept them; what is over by now is left out.
    pub fn restore(&mut self, now: Now, kept: &[KeptIgnore]) {
        for entry in kept.iter().filter(|entry| entry.until.is_none_or(|until| until > now.wall)) {
            let until = entry.until.map(|until| now.mono + left(now, entry.since, until));
            let wish = Wish { since: entry.since, until, uid: entry.uid, reason: entry.reason.clone() };
            self.insert((entry.jail.clone(), entry.subject), wish);
        }
    }
}

impl Core {
    /// `banset ignore`
    #[expect(clippy::too_many_arguments, reason = "one request, spelt out")]
    pub(super) fn ignore(
        &mut self,
        now: Now,
        client: ClientId,
        rank: Rank,
        uid: u32,
        addrs: &[String],
        for_s: Option<u64>,
        jail: Option<&str>,
        reason: Option<&str>,
    ) {
        let jail: Option<Arc<str>> = match jail.map(|name| self.at(name)) {
            None => None,
            Some(Ok(at)) => Some(self.jails[at].key.clone()),
            Some(Err(reply)) => return self.actions.push(Action::Reply(client, reply)),
        };
        let span = for_s.map(|secs| Span::from_secs(secs.clamp(1, 100 * 366 * 86_400)));
        if rank < Rank::Root && span.is_none_or(|span| span > OPERATOR_AT_MOST) {
            let help = format!("write --for with at most {OPERATOR_AT_MOST}; only root may ignore for longer");
            return self
                .actions
                .push(Action::Reply(client, Reply::refused(1, format!("uid {uid} may ignore for a limited time only"), help)));
        }
        let (mut subjects, mut refused) = (Vec::new(), Vec::new());
        for addr in addrs {
            match parse_subject(addr) {
                Ok(net)
                    if rank < Rank::Root && net.prefix() < if net.is_ipv4() { OPERATOR_PREFIX.0 } else { OPERATOR_PREFIX.1 } =>
                {
                    refused.push(format!("{net}: only root may ignore a subnet as large as this"));
                }
                Ok(net) => subjects.push(net),
                Err(why) => refused.push(why),
            }
        }
        if self.ignores.entries.len() + subjects.len() > ENTRIES_AT_MOST {
            refused.push(format!("there would be more than {ENTRIES_AT_MOST} entries: write them into ignoreip"));
            subjects.clear();
        }
        let reason: Option<Box<str>> = reason.map(|reason| escape(reason.as_bytes(), 500).into());
        let until = span.map(|span| now.mono + span);
        let until_wall = until.map(|until| now.wall_of(until));
        let mut entries = Vec::new();
        for subject in &subjects {
            let wish = Wish { since: now.wall, until, uid, reason: reason.clone() };
            self.ignores.insert((jail.clone(), *subject), wish);
            let row = Row {
                what: What::Ignore,
                jail: jail.clone(),
                subject: Some(*subject),
                until: until_wall,
                origin: "manual".into(),
                reason: reason.clone(),
                ..Row::default()
            };
            self.record(now, row);
            let (of, how_long) =
                (jail.as_deref().unwrap_or("all jails"), span.map_or(String::new(), |span| format!(" for {span}")));
            self.log(Level::Warn, format!("[{of}] ignoring {}{how_long}, by uid {uid}", shown(*subject)));
            entries.push(json!({ "addr": shown(*subject), "jail": jail.as_deref(), "until": until_wall.map(rfc3339) }));
        }
        let exit = match (refused.is_empty(), entries.is_empty()) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 4,
        };
        let error = (!refused.is_empty()).then(|| refused.join("\n"));
        if entries.is_empty() {
            return self.actions.push(Action::Reply(client, Reply { error, ..Reply::done(Value::Null).exit(exit) }));
        }
        self.keep.ignored(now);
        self.ignored_anew();
        // Bans that it covers are lifted, those by hand too: whoever asks for it knows of them.
        let wanted: Nets = subjects.into_iter().collect();
        let mut lifted = Vec::new();
        for (at, running) in self.jails.iter().enumerate() {
            if jail.as_ref().is_some_and(|jail| *jail != running.key) {
                continue;
            }
            let covered = running.jail.bans().filter_map(|(subject, _)| Some((at, subject, covers(&wanted, subject)?)));
            lifted.extend(covered);
        }
        let told: Vec<Value> =
            lifted.iter().map(|(at, subject, _)| json!({ "jail": self.jails[*at].spec.name, "addr": shown(*subject) })).collect();
        let reply = Reply { error, ..Reply::done(json!({ "ignored": entries, "lifted": told })).exit(exit) };
        self.waiting.insert(client, Waiting { open: 0, refused: Vec::new(), reply });
        for (at, subject, entry) in lifted {
            self.jails[at].jail.lift(subject);
            let why = format!("ignored by {} now", shown(entry));
            self.log(Level::Warn, format!("[{}] Unban {}, {why}", self.jails[at].spec.name, shown(subject)));
            self.record_about(
                now,
                at,
                subject,
                Row { what: What::Unban, origin: "ignore".into(), reason: Some(why.into()), ..Row::default() },
            );
            self.change(now, at, subject, Target::Gone, Effect::Tell(client));
        }
        self.restate_for(client);
    }

    /// `banset unignore`
    pub(super) fn unignore(&mut self, now: Now, client: ClientId, rank: Rank, uid: u32, addrs: &[String], jail: Option<&str>) {
        let (mut removed, mut absent, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for addr in addrs {
            let subject = match parse_subject(addr) {
                Ok(subject) => subject,
                Err(why) => {
                    refused.push(why);
                    continue;
                }
            };
            // Without a jail: wherever it stands.
            let wanted = |(of, net): &Key| *net == subject && jail.is_none_or(|jail| of.as_deref() == Some(jail));
            let keys: Vec<Key> = self.ignores.entries.keys().filter(|key| wanted(key)).cloned().collect();
            if keys.is_empty() {
                let by = self.jails.iter().filter(|running| jail.is_none_or(|jail| *running.key == *jail));
                let by = by.filter_map(|running| covers(&running.ignored, subject)).next();
                absent.push(match by {
                    Some(entry) => format!("{}: ignored by {}, not by an entry of its own", shown(subject), shown(entry)),
                    None => format!("{}: not ignored", shown(subject)),
                });
            }
            for key in keys {
                if rank < Rank::Root && self.ignores.entries.get(&key).is_some_and(|wish| wish.until.is_none()) {
                    refused.push(format!("{}: ignored without an end; only root may take that back", shown(subject)));
                    continue;
                }
                self.ignores.remove(&key);
                let (jail, what) = (key.0.clone(), What::Unignore);
                self.record(now, Row { what, jail, subject: Some(subject), origin: "manual".into(), ..Row::default() });
                let of = key.0.as_deref().unwrap_or("all jails");
                self.log(Level::Warn, format!("[{of}] no longer ignoring {}, by uid {uid}", shown(subject)));
                removed.push(json!({ "addr": shown(subject), "jail": key.0.as_deref() }));
            }
        }
        let exit = match (absent.is_empty() && refused.is_empty(), removed.is_empty()) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 4,
        };
        let error = (!refused.is_empty()).then(|| refused.join("\n"));
        let nothing = removed.is_empty();
        let reply = Reply { error, ..Reply::done(json!({ "removed": removed, "absent": absent })).exit(exit) };
        if nothing {
            return self.actions.push(Action::Reply(client, reply));
        }
        self.keep.ignored(now);
        self.ignored_anew();
        self.waiting.insert(client, Waiting { open: 0, refused: Vec::new(), reply });
        self.restate_for(client);
    }

    /// `banset ignore --list`
    pub(super) fn ignored_list(&self, now: Now) -> Value {
        let rows = self.ignores.entries.iter().map(|((jail, subject), wish)| {
            let until = wish.until.map(|until| rfc3339(now.wall_of(until)));
            json!({
                "addr": shown(*subject), "jail": jail.as_deref(), "since": rfc3339(wish.since), "until": until,
                "left_s": wish.until.map(|until| until.since(now.mono).secs()), "uid": wish.uid, "reason": wish.reason,
            })
        });
        Value::Array(rows.collect())
    }

    /// Wishes whose time is over end.
    pub(super) fn end_ignores(&mut self, now: Now) {
        if self.ignores.next_end().is_none_or(|end| end > now.mono) {
            return;
        }
        let over = |wish: &Wish| wish.until.is_some_and(|until| until <= now.mono);
        let ended: Vec<Key> = self.ignores.entries.iter().filter(|(_, wish)| over(wish)).map(|(key, _)| key.clone()).collect();
        for key in ended {
            self.ignores.remove(&key);
            let (jail, subject) = key;
            self.log(
                Level::Warn,
                format!("[{}] no longer ignoring {}: its time is over", jail.as_deref().unwrap_or("all jails"), shown(subject)),
            );
            self.record(
                now,
                Row { what: What::Unignore, jail, subject: Some(subject), origin: "timer".into(), ..Row::default() },
            );
        }
        self.keep.ignored(now);
        self.ignored_anew();
        self.restate = true;
    }

    /// Whom each jail ignores is another list now.
    pub(super) fn ignored_anew(&mut self) {
        let Core { jails, names, ignores, .. } = self;
        jails.iter_mut().for_each(|running| running.ignored = ignores.with(&running.spec, names));
    }
}
