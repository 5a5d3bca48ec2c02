//! The core's half that remembers: what happened is noted as it happens, and asked for later.

use std::collections::HashMap;
use std::mem::Discriminant;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::people::parse_subject;
use super::{Action, Asked, ClientId, Core, Level, Row, What};
use crate::control::Reply;
use crate::engine::historian::{Dig, Search, hashed};
use crate::engine::recall::Short;
use crate::jail::{Ban, Now, Origin};
use crate::state::Restored;
use crate::state::history::{Line, Lines, Query, Unread};
use crate::terms::{Lasting, Span, Time, escape};

/// Rows of an answer, unless more are asked for, and at most.
const ROWS: usize = 1000;
const ROWS_AT_MOST: usize = 100_000;

/// That lines could not be read back for one reason is said again after this long.
const SAID: Span = Span::from_secs(3600);

/// Bans whose lines could not all be read back.
#[derive(Debug, Default)]
pub(super) struct Shorts {
    /// So many since the start.
    bans: u64,
    /// Why, of the last.
    why: Option<Short>,
    /// When each reason was said last, and of how many bans it held since.
    said: HashMap<Discriminant<Short>, (Time, u64)>,
}

/// Bans whose lines are read back at a time: a burst brings more than are read meanwhile.
const DIGGING_AT_MOST: usize = 10_000;

/// On whose behalf something happens.
#[derive(Clone, Debug)]
pub(super) struct Behalf {
    pub uid: u32,
    pub program: Option<Box<str>>,
}

impl Core {
    /// Notes what happened, on behalf of whoever asks at the moment; gives its number. It is kept together with the bans.
    pub(super) fn record(&mut self, now: Now, row: Row) -> u64 {
        self.seq += 1;
        let behalf = self.behalf.as_ref();
        let (uid, program) = (behalf.map(|by| by.uid), behalf.and_then(|by| by.program.clone()));
        let row = Row { seq: self.seq, time: now.wall, uid: row.uid.or(uid), program: row.program.clone().or(program), ..row };
        self.keep.row(now, row);
        self.seq
    }

    /// Notes a ban that was found in its set. The log may yet account for it: then its row says so, and there is no second one.
    pub(super) fn record_found(&mut self, now: Now, at: usize, subject: IpNetwork, row: Row) {
        let seq = self.record_about(now, at, subject, row);
        if self.jails[at].jail.held(subject).is_some_and(|held| held.origin == Origin::Adopted) {
            self.found.insert((self.jails[at].key.clone(), subject), seq);
        }
    }

    /// Forgets the rows of bans that were found in a set and are no longer what they were.
    pub(super) fn tidy_found(&mut self) {
        let Core { found, jails, .. } = self;
        found.retain(|(jail, subject), _| {
            let running = jails.iter().find(|running| running.key == *jail);
            running.and_then(|running| running.jail.held(*subject)).is_some_and(|held| held.origin == Origin::Adopted)
        });
    }

    /// Notes something about a subject in a jail.
    pub(super) fn record_about(&mut self, now: Now, at: usize, subject: IpNetwork, row: Row) -> u64 {
        let jail = Some(self.jails[at].key.clone());
        self.record(now, Row { jail, subject: Some(subject), ..row })
    }

    /// A jail decided on a ban: notes it, and has its lines read back. `known` is the number of the row that it has already.
    pub(super) fn decided(&mut self, now: Now, at: usize, ban: &Ban, what: What, known: Option<u64>) {
        let policy = &self.jails[at].spec.policy;
        let lasting = match ban.held.lasting {
            Lasting::Permanent => "until somebody lifts it".to_owned(),
            Lasting::For(span) => format!("for {span}"),
        };
        let grown = if ban.held.lasting == policy.bantime { "" } else { ", grown from earlier bans" };
        let spec = &self.jails[at].spec;
        let counted = if spec.is_fed() { "bans by other jails" } else { "failures" };
        let decision = format!(
            "{} {counted} of at most {} within {}: {} {lasting}{grown}",
            ban.held.failures,
            policy.maxretry.saturating_sub(1),
            policy.findtime,
            if what == What::Observed { "would be banned" } else { "banned" },
        );
        let keeps = self.keep.is_on() && self.specs.evidence.lines > 0 && spec.compiled.is_some();
        let lines = self.specs.evidence.lines;
        let places = match keeps {
            true => ban.places[ban.places.len().saturating_sub(lines)..].iter().map(|place| place.0).collect(),
            false => Vec::new(),
        };
        let row = Row {
            what,
            since: Some(ban.held.since),
            until: ban.held.until.map(|until| now.wall_of(until)),
            failures: ban.held.failures,
            origin: "log".into(),
            decision: Some(decision.into()),
            places,
            ..Row::default()
        };
        let places = row.places.clone();
        let seq = match known {
            Some(seq) => {
                let jail = Some(self.jails[at].key.clone());
                self.keep.row(now, Row { seq, time: now.wall, jail, subject: Some(ban.subject), ..row });
                seq
            }
            None => self.record_about(now, at, ban.subject, row),
        };
        self.dig(now, at, seq, ban.subject, &places);
    }

    /// Has the lines at these places read back: at once, or when fewer wait for that. Until then their row keeps the places.
    fn dig(&mut self, now: Now, at: usize, seq: u64, subject: IpNetwork, places: &[u64]) {
        let spec = &self.jails[at].spec;
        let Some(compiled) = &spec.compiled else { return };
        if places.is_empty() {
            return;
        }
        if self.digging.0 >= DIGGING_AT_MOST {
            self.digging.1 += 1;
            return;
        }
        let source = |place: &u64| Some((self.places.get(&((place >> 48) as u16))?.clone(), place & 0xffff_ffff_ffff));
        let places: Vec<(Arc<str>, u64)> = places.iter().filter_map(source).collect();
        if places.is_empty() {
            let missing = Some("the log they were in is not known any more".into());
            return self.keep.lines(now, Lines { seq, missing, ..Lines::default() });
        }
        let dig = Dig {
            seq,
            subject,
            filter: compiled.0.clone(),
            on_journal: spec.on_journal.as_ref().unwrap_or(compiled).0.clone(),
            wanted: spec.journal.as_ref().map(|entries| entries.wanted.clone()),
            places,
            evidence: self.specs.evidence,
            key: self.key,
        };
        self.digging.0 += 1;
        self.actions.push(Action::Dig(Box::new(dig)));
    }

    /// Has the lines of these bans read back.
    pub(super) fn dig_unread(&mut self, now: Now, unread: &[Unread]) {
        for unread in unread {
            if let Some(at) = self.jails.iter().position(|running| running.key == unread.jail) {
                self.dig(now, at, unread.seq, unread.subject, &unread.places);
            }
        }
    }

    /// The lines of a ban were read back, or not all.
    pub(super) fn read_back(&mut self, now: Now, seq: u64, lines: Vec<Line>, short: Option<Short>) {
        let missing = short.as_ref().map(|why| why.to_string().into());
        self.keep.lines(now, Lines { seq, lines, missing });
        self.digging.0 = self.digging.0.saturating_sub(1);
        if self.digging.0 == 0 && std::mem::take(&mut self.digging.1) > 0 {
            self.search(Search::Unread);
        }
        let Some(why) = short else { return };
        self.short.bans += 1;
        let kind = std::mem::discriminant(&why);
        match self.short.said.get_mut(&kind) {
            Some((said, since)) if *said + SAID > now.mono => *since += 1,
            before => {
                let since = before.map_or(0, |(_, since)| *since);
                let more = if since > 0 { format!(", and before it those of {since} others") } else { String::new() };
                self.short.said.insert(kind, (now.mono, 0));
                let text = format!(
                    "the lines behind a ban are not all kept{more}: {why}\n  help: the ban stands; `banset history` says of which; told once an hour"
                );
                self.log(Level::Warn, text);
            }
        }
        self.short.why = Some(why);
    }

    /// What the history lacks, for people.
    pub(super) fn lacking(&self) -> Value {
        json!({
            "short": self.short.bans, "why": self.short.why.as_ref().map(ToString::to_string), "lost_rows": self.keep.lost_rows,
        })
    }

    /// Takes up the numbers where an earlier run stopped, and the lines that it did not come to read back.
    pub(super) fn resume_history(&mut self, now: Now, restored: &Restored) {
        self.seq = restored.seq;
        self.key = restored.key;
        self.found = restored.found.iter().map(|(jail, subject, seq)| ((jail.clone(), *subject), *seq)).collect();
        self.places.extend(restored.positions.iter().map(|(path, kept)| (kept.place, path.clone())));
        self.dig_unread(now, &restored.unread);
    }

    /// How an account stands in the lines that are kept: as it is, or hashed.
    fn accounts(&self, user: &str) -> Vec<String> {
        vec![escape(user.as_bytes(), 256), hashed(self.key, user.as_bytes())]
    }

    /// `banset history`
    pub(super) fn history(
        &mut self,
        client: ClientId,
        net: Option<&str>,
        user: Option<&str>,
        jail: Option<String>,
        since_s: Option<i64>,
        limit: Option<usize>,
    ) {
        let net = match net.map(parse_subject) {
            None => None,
            Some(Ok(net)) => Some(net),
            Some(Err(why)) => return self.actions.push(Action::Reply(client, Reply::refused(2, why, None))),
        };
        let query = Query {
            net,
            accounts: user.map_or_else(Vec::new, |user| self.accounts(user)),
            jail,
            since: since_s.map(Time::from_secs),
            after: None,
            limit: limit.unwrap_or(ROWS).clamp(1, ROWS_AT_MOST),
        };
        self.search(Search::Rows { client, query, stream: false });
    }

    /// Whom bans name whose lines name this account is looked up before the request goes on.
    pub(super) fn look_up(&mut self, asked: Asked, user: &str) {
        let accounts = self.accounts(user);
        self.search(Search::Named(Box::new(asked), accounts));
    }

    /// A question is asked once everything that happened before it is kept.
    pub(super) fn search(&mut self, search: Search) {
        if !self.keep.is_on() {
            let client = match &search {
                Search::Rows { client, .. } => *client,
                Search::Named(asked, _) => asked.client,
                Search::Unread => return,
            };
            let why = format!("there is no history: {}", self.keep.failed().unwrap_or("nothing is kept"));
            return self.actions.push(Action::Reply(client, Reply::refused(1, why, None)));
        }
        // Who follows the stream waits for the next save, as everything does; people do not.
        let hurry = !matches!(search, Search::Rows { stream: true, .. } | Search::Unread);
        match self.keep.soon(hurry) {
            None => self.actions.push(Action::Search(Box::new(search))),
            Some(save) => self.searches.push((save, search)),
        }
    }

    /// A save is through: questions that waited for it are asked. After one that failed they are asked all the same.
    pub(super) fn search_on(&mut self) {
        let through = self.keep.through();
        let (ready, waiting) = std::mem::take(&mut self.searches).into_iter().partition(|(save, _)| *save <= through);
        self.searches = waiting;
        let ready: Vec<(u64, Search)> = ready;
        self.actions.extend(ready.into_iter().map(|(_, search)| Action::Search(Box::new(search))));
    }
}
