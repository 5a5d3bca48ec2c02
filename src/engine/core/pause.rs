//! The core's half for pauses: the rules are out of the kernel, bans and judging go on. And the way to a table that is wanted
//! otherwise than before.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::kept::left;
use super::{Action, ClientId, Core, Level, Row, Waiting, What, rfc3339};
use crate::control::Reply;
use crate::jail::Now;
use crate::state::KeptPause;
use crate::terms::{Span, Time};

/// A pause of one jail, or of all.
#[derive(Clone, Debug)]
pub(super) struct Pause {
    since: Time,
    /// Monotonic; `None`: until `resume`.
    until: Option<Time>,
    uid: u32,
}

/// What is paused, by jail; `None`: every jail.
#[derive(Clone, Debug, Default)]
pub(super) struct Pauses(BTreeMap<Option<Arc<str>>, Pause>);

impl Pauses {
    /// Whether a jail's rules are out.
    pub fn holds(&self, jail: &str) -> bool {
        self.of(jail).is_some()
    }

    fn of(&self, jail: &str) -> Option<&Pause> {
        self.0.iter().find(|(of, _)| of.as_deref().is_none_or(|of| of == jail)).map(|(_, pause)| pause)
    }

    /// When the next of them ends.
    pub fn next_end(&self) -> Option<Time> {
        self.0.values().filter_map(|pause| pause.until).min()
    }

    /// As they are kept.
    pub fn kept(&self, now: Now) -> Vec<KeptPause> {
        let kept = |(jail, pause): (&Option<Arc<str>>, &Pause)| KeptPause {
            jail: jail.clone(),
            since: pause.since,
            until: pause.until.map(|until| now.wall_of(until)),
            uid: pause.uid,
        };
        self.0.iter().map(kept).collect()
    }

    /// As an earlier run, or somebody without one, kept them; what is over by now is left out.
    pub fn restore(&mut self, now: Now, kept: &[KeptPause]) {
        for entry in kept.iter().filter(|entry| entry.until.is_none_or(|until| until > now.wall)) {
            let until = entry.until.map(|until| now.mono + left(now, entry.since, until));
            self.0.insert(entry.jail.clone(), Pause { since: entry.since, until, uid: entry.uid });
        }
    }

    /// For people: when a jail's pause began and ends.
    pub fn told(&self, now: Now, jail: &str) -> Value {
        let told = |pause: &Pause| {
            let until = pause.until.map(|until| rfc3339(now.wall_of(until)));
            json!({ "since": rfc3339(pause.since), "until": until, "uid": pause.uid })
        };
        self.of(jail).map_or(Value::Null, told)
    }
}

impl Core {
    /// `banset pause`
    pub(super) fn pause(&mut self, now: Now, client: ClientId, uid: u32, jail: Option<&str>, for_s: Option<u64>) {
        let jail: Option<Arc<str>> = match jail.map(|name| self.at(name)) {
            None => None,
            Some(Ok(at)) => Some(self.jails[at].key.clone()),
            Some(Err(reply)) => return self.actions.push(Action::Reply(client, reply)),
        };
        let span = for_s.map(|secs| Span::from_secs(secs.clamp(1, 10 * 366 * 86_400)));
        let until = span.map(|span| now.mono + span);
        self.pauses.0.insert(jail.clone(), Pause { since: now.wall, until, uid });
        let until = until.map(|until| now.wall_of(until));
        self.record(now, Row { what: What::Pause, jail: jail.clone(), until, origin: "manual".into(), ..Row::default() });
        let how_long = span.map_or_else(|| "until `banset resume`".to_owned(), |span| format!("for {span}"));
        let of = jail.as_deref().unwrap_or("all jails");
        self.log(
            Level::Warn,
            format!("[{of}] paused {how_long} by uid {uid}: its rules are taken out, nobody is kept out by them"),
        );
        self.keep.paused(now);
        let reply = Reply::done(json!({ "paused": jail.as_deref(), "until": until.map(rfc3339) }));
        self.waiting.insert(client, Waiting { open: 0, refused: Vec::new(), reply });
        self.restate_for(client);
    }

    /// `banset resume`
    pub(super) fn resume(&mut self, now: Now, client: ClientId, uid: u32, jail: Option<&str>) {
        let before = self.pauses.0.len();
        match jail {
            // Everything, the pauses of single jails with it.
            None => self.pauses.0.clear(),
            Some(jail) => self.pauses.0.retain(|of, _| of.as_deref() != Some(jail)),
        }
        if self.pauses.0.len() == before {
            let all = self.pauses.0.contains_key(&None);
            let help =
                all.then(|| "all jails are paused together: `banset resume` without a jail puts every rule back".to_owned());
            return self.actions.push(Action::Reply(client, Reply::refused(1, "not paused", help)));
        }
        self.record(now, Row { what: What::Resume, jail: jail.map(Into::into), origin: "manual".into(), ..Row::default() });
        self.log(Level::Warn, format!("[{}] resumed by uid {uid}: its rules are put back", jail.unwrap_or("all jails")));
        self.keep.paused(now);
        let reply = Reply::done(json!({ "resumed": jail, "bans": self.bans_held() }));
        self.waiting.insert(client, Waiting { open: 0, refused: Vec::new(), reply });
        self.restate_for(client);
    }

    /// Pauses whose time is over end.
    pub(super) fn end_pauses(&mut self, now: Now) {
        if self.pauses.next_end().is_none_or(|end| end > now.mono) {
            return;
        }
        let over = |pause: &Pause| pause.until.is_some_and(|until| until <= now.mono);
        let ended: Vec<Option<Arc<str>>> =
            self.pauses.0.iter().filter(|(_, pause)| over(pause)).map(|(jail, _)| jail.clone()).collect();
        for jail in ended {
            self.pauses.0.remove(&jail);
            self.log(
                Level::Warn,
                format!("[{}] the pause is over: its rules are put back", jail.as_deref().unwrap_or("all jails")),
            );
            self.record(now, Row { what: What::Resume, jail, origin: "timer".into(), ..Row::default() });
        }
        self.keep.paused(now);
        self.restate = true;
    }

    /// The table is wanted otherwise than before, and a client waits for it.
    pub(super) fn restate_for(&mut self, client: ClientId) {
        self.restate = true;
        if let Some(waiting) = self.waiting.get_mut(&client) {
            waiting.open += 1;
        }
        self.restating.push(client);
    }

    /// The table is on its way as it is wanted now: whoever waits for it waits for this one.
    pub(super) fn restated(&mut self) {
        self.absorbed |= self.restate;
        self.restate = false;
        self.restated_for.append(&mut self.restating);
    }

    /// The kernel answered about the table.
    pub(super) fn told_of_table(&mut self, now: Now, why: Option<String>) {
        // What a refused reload would have brought with it is still wanted.
        self.restate |= why.is_some() && self.absorbed;
        self.absorbed = false;
        for client in std::mem::take(&mut self.restated_for) {
            self.told(now, client, why.clone());
        }
    }
}
