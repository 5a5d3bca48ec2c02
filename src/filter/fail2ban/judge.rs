//! One line at a time, as fail2ban's filter takes it.
//!
//! The date is cut out; prefregex hands on what it marks; the first failregex that matches counts, unless an ignoreregex matches
//! what it saw. Lines of one connection are joined: a failure waits for the address that another line bears, context
//! lends what it names, a login forgives. With `maxlines` the last lines are one text. What is remembered is bounded.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::detector::{Detector, Found, Memory};
use super::expression::{Places, Strain};
use super::rules::{Groups, Rule, Rules, Value};
use crate::filter::repeated;
use crate::terms::{Time, fold};

/// Connections remembered.
const MOST: usize = 4096;
/// A connection is over this long after its first line, in microseconds.
const ENDS: i64 = 300_000_000;
/// The last date is lent to a line without one for this long.
const NEAR: i64 = 60_000_000;
/// Accounts remembered of one connection.
const ACCOUNTS: usize = 64;
/// A group's text, and a connection's name, are remembered up to this many bytes.
const TEXT: usize = 512;
/// The accounts of one connection take at most this many bytes together.
const ACCOUNTS_BYTES: usize = 4096;
/// Earlier lines are kept for a pattern over several up to this many bytes; the last one is kept in any case.
const LINES_BYTES: usize = 256 << 10;

/// What a line comes to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// Nothing matched.
    Missed,
    /// An ignoreregex matched: which.
    Ignored(usize),
    /// Context of a connection, by this failregex.
    Context(usize),
    /// A failure that waits for its address, by this failregex.
    Pending(usize),
    /// A failure.
    Failure(Box<Failure>),
}

/// A failure as fail2ban would count it.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Which failregex.
    pub pattern: usize,
    /// What is counted: an address as text, or any other name.
    pub id: String,
    /// The address or subnet, where there is one.
    pub addr: Option<IpNetwork>,
    /// The account of this connection that was named last.
    pub user: Option<String>,
    /// Every account of this connection.
    pub users: Vec<String>,
    /// Lines gathered that tell of it.
    pub attempts: u32,
    /// How many times over, where the log says that a message was repeated.
    pub repeated: u32,
    /// The groups that took part.
    pub groups: BTreeMap<String, Value>,
}

/// A line judged.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub outcome: Outcome,
    /// The instant the line bears.
    pub time: Option<Time>,
    /// The instant to take where it bears none: a date pattern matched without a text.
    pub assumed: Option<Time>,
    /// Which bytes of the line are a password.
    pub secrets: Vec<Range<usize>>,
}

/// What is remembered over a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    dates: Memory,
    last: Option<(i64, String)>,
    lines: Vec<Line>,
    connections: Vec<(String, Connection)>,
}

/// A line in three parts: before its date, the date, after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Line(String, String, String);

impl Line {
    fn is(&self, text: &str) -> bool {
        text.strip_prefix(self.0.as_str()) == Some(self.2.as_str())
    }
}

/// What is known of a connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Connection {
    since: i64,
    groups: BTreeMap<Box<str>, Option<Kept>>,
    users: Vec<String>,
    matches: u32,
    context: u32,
    pending: bool,
}

/// A group's value as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Kept {
    Text(String),
    Parts(Vec<Option<String>>),
}

/// A filter of fail2ban at work on one source.
#[derive(Debug)]
pub(crate) struct Judge {
    rules: Arc<Rules>,
    detector: Detector,
    last: Option<(Time, String)>,
    lines: Vec<Line>,
    connections: HashMap<String, Connection>,
    text: String,
    strain: Strain,
    /// Connections forgotten for want of room.
    pub evicted: u64,
    /// Earlier lines that the last match took with it, whole.
    pub joined: Vec<String>,
    /// Which bytes of the last text that was judged are a password.
    secrets: Vec<Range<usize>>,
}

/// A match and the lines it is about.
struct Hit {
    places: Places,
    matched: Vec<Line>,
    unmatched: Vec<Line>,
    count: u32,
}

impl Judge {
    pub fn new(rules: Arc<Rules>, zone: TimeZone) -> Judge {
        let detector = Detector::new(rules.dates.clone(), zone);
        Judge {
            rules,
            detector,
            last: None,
            lines: Vec::new(),
            connections: HashMap::new(),
            text: String::new(),
            strain: Strain::default(),
            evicted: 0,
            joined: Vec::new(),
            secrets: Vec::new(),
        }
    }

    pub fn state(&self) -> State {
        let mut connections: Vec<_> = self.connections.iter().map(|(id, c)| (id.clone(), c.clone())).collect();
        connections.sort_by(|a, b| a.0.cmp(&b.0));
        State {
            dates: self.detector.memory(),
            last: self.last.as_ref().map(|(time, text)| (time.0, text.clone())),
            lines: self.lines.clone(),
            connections,
        }
    }

    pub fn restore(&mut self, state: State) {
        self.detector.restore(state.dates);
        self.last = state.last.map(|(time, text)| (Time(time), text));
        self.lines = state.lines;
        self.connections = state.connections.into_iter().collect();
    }

    /// Dates found so far, by template.
    pub fn date_hits(&self) -> impl Iterator<Item = (&str, u64)> {
        self.detector.hits()
    }

    /// How often a pattern was given up for want of steps.
    pub fn strained(&self) -> u64 {
        self.strain.count()
    }

    /// Judges a line. `given` is its instant where the line itself bears none (the journal). `clock` ages connections. Into
    /// `every` goes each failregex that matches, not only the first.
    pub fn line(&mut self, line: &str, given: Option<Time>, now: Time, clock: Time, every: Option<&mut Vec<usize>>) -> Verdict {
        let (parts, time, assumed) = match given {
            Some(time) => {
                self.last = Some((time, String::new()));
                (Line(String::new(), String::new(), line.to_owned()), Some(time), None)
            }
            None => self.dated(line, now),
        };
        let buffer = if self.rules.maxlines > 1 { self.with_earlier(parts) } else { vec![parts] };
        let mut text = std::mem::take(&mut self.text);
        join(&buffer, &mut text);
        let mut every = every;
        let mut outcome = self.judged(&buffer, &text, clock, every.as_deref_mut());
        // Where the text goes on with another part of the line: from here on, so many bytes farther back.
        let mut left_out = (usize::MAX, 0);
        if outcome == Outcome::Missed
            && self.rules.maxlines == 1
            && let Some(said) = repeated::unwrap(text.trim_end_matches('\n'))
        {
            let once = format!("{}\n", said.once);
            left_out = said.left_out;
            let buffer = vec![Line(String::new(), buffer[0].1.clone(), said.once)];
            outcome = self.judged(&buffer, &once, clock, every);
            if let Outcome::Failure(failure) = &mut outcome {
                failure.repeated = said.times;
                failure.attempts = failure.attempts.saturating_mul(said.times);
            }
        }
        self.text = text;
        self.joined.clear();
        if buffer.len() > 1 && outcome != Outcome::Missed {
            let gone = buffer[..buffer.len() - 1].iter().filter(|line| !self.lines.contains(line));
            self.joined.extend(gone.map(|Line(before, date, after)| format!("{before}{date}{after}")));
        }
        let secrets = self.secrets.drain(..).map(|at| shifted(at, left_out));
        let secrets = secrets.filter_map(|at| in_last(at, &buffer, line)).collect();
        Verdict { outcome, time, assumed, secrets }
    }

    /// The lines that a pattern may span, the new one last.
    fn with_earlier(&mut self, line: Line) -> Vec<Line> {
        self.lines.push(line);
        let mut room = LINES_BYTES;
        let fits = |line: &&Line| {
            room = room.saturating_sub(line.0.len() + line.1.len() + line.2.len());
            room > 0
        };
        let kept = self.lines.iter().rev().take(self.rules.maxlines).take_while(fits).count().max(1);
        self.lines.drain(..self.lines.len() - kept);
        self.lines.clone()
    }

    /// Finds the date and cuts it out.
    fn dated(&mut self, line: &str, now: Time) -> (Line, Option<Time>, Option<Time>) {
        let recent = self.last.as_ref().filter(|(last, _)| last.0 > now.0 - NEAR);
        let whole = |date: &str| Line(String::new(), date.to_owned(), line.to_owned());
        let cut = |found: &Found| {
            let (at, end) = (found.at.start, found.at.end);
            Line(line[..at].to_owned(), line[at..end].to_owned(), line[end..].to_owned())
        };
        match self.detector.find(line, now, &self.strain) {
            Some(found) if found.at.is_empty() => match recent {
                Some((last, date)) => (whole(date), None, Some(*last)),
                None => (cut(&found), None, Some(now)),
            },
            Some(found) => match (found.time, recent) {
                (Some(time), _) => {
                    let parts = cut(&found);
                    match &mut self.last {
                        Some((last, date)) => {
                            *last = time;
                            date.clone_from(&parts.1);
                        }
                        None => self.last = Some((time, parts.1.clone())),
                    }
                    (parts, Some(time), None)
                }
                (None, Some((last, date))) => (whole(date), None, Some(*last)),
                (None, None) => (cut(&found), None, None),
            },
            None => match recent {
                Some((last, date)) => (whole(date), None, Some(*last)),
                None => (whole(""), None, None),
            },
        }
    }

    fn judged(&mut self, buffer: &[Line], whole: &str, clock: Time, every: Option<&mut Vec<usize>>) -> Outcome {
        let rules = Arc::clone(&self.rules);
        let several = rules.maxlines > 1;
        self.secrets.clear();
        // A short list of ignoreregex is tried on the whole line too.
        if !rules.ignoreregex.is_empty()
            && rules.ignoreregex.len() + 2 < rules.failregex.len()
            && let Some(index) = rules.ignoreregex.iter().position(|rule| rule.expression.is_match(whole, &self.strain))
        {
            return Outcome::Ignored(index);
        }
        let mut before = Groups::new();
        let (mut content, mut handed_on) = (None, 0);
        if let Some(prefregex) = &rules.prefregex {
            let Some(places) = prefregex.expression.find(whole, &self.strain) else { return Outcome::Missed };
            before = prefregex.groups(whole, &places);
            self.secrets.extend(prefregex.secret(&places));
            handed_on = prefregex.content(&places);
            if let Some(Some(Value::Text(text))) = before.remove("content")
                && !text.is_empty()
            {
                if several {
                    self.lines = vec![Line(String::new(), String::new(), text.clone())];
                }
                content = Some(text + "\n");
            }
        }
        let text = content.as_deref().unwrap_or(whole);
        let mut first = None;
        let mut every = every;
        for (index, rule) in rules.failregex.iter().enumerate() {
            if first.is_some() {
                if rule.expression.is_match(text, &self.strain) {
                    every.iter_mut().for_each(|every| every.push(index));
                }
                continue;
            }
            let Some(places) = rule.expression.find(text, &self.strain) else { continue };
            every.iter_mut().for_each(|every| every.push(index));
            first = Some((index, places));
            if every.is_none() {
                break;
            }
        }
        let Some((index, places)) = first else { return Outcome::Missed };
        let rule = &rules.failregex[index];
        let hit = hit(rule, places, text, buffer, rules.maxlines);
        if !rules.ignoreregex.is_empty() {
            let mut joined = String::new();
            let seen = if several {
                join(&hit.matched, &mut joined);
                &joined
            } else {
                text
            };
            if let Some(ignored) = rules.ignoreregex.iter().position(|rule| rule.expression.is_match(seen, &self.strain)) {
                self.lines = hit.unmatched;
                return Outcome::Ignored(ignored);
            }
        }
        self.lines = hit.unmatched;
        let behind = if content.is_some() { handed_on } else { 0 };
        self.secrets.extend(rule.secret(&hit.places).map(|at| at.start + behind..at.end + behind));
        let mut groups = before;
        // A group that took no part takes nothing from what prefregex found.
        groups.extend(rule.groups(text, &hit.places).into_iter().filter(|(_, value)| value.is_some()));
        self.failure(index, groups, hit.count, clock)
    }

    /// A failregex matched: what it amounts to with what is known of its connection.
    fn failure(&mut self, pattern: usize, groups: Groups, count: u32, clock: Time) -> Outcome {
        let mut id = groups.get("mlfid").and_then(Option::as_ref).map(shown);
        if let Some(id) = &mut id {
            id.truncate(crate::terms::head(id, TEXT).len());
        }
        let mut joined;
        let mut keep = false;
        if let Some(id) = &id {
            (joined, keep) = self.joined(id, groups, count, clock);
            if text_of(&joined, "nofail").is_some() {
                if keep {
                    self.remember(id, joined, clock);
                }
                return Outcome::Context(pattern);
            }
        } else {
            let groups = groups.into_iter().map(|(name, value)| (name, value.map(Kept::from))).collect();
            joined = Connection { groups, matches: count, ..Connection::default() };
            if text_of(&joined, "nofail").is_some() {
                return Outcome::Context(pattern);
            }
        }
        let named = |name: &str| joined.groups.get(name).and_then(Option::as_ref).map(Kept::shown);
        let fid = named("fid");
        let prefix = named("cidr").and_then(|cidr| cidr.parse::<u8>().ok());
        let (ip, host) = match named("ip4").or_else(|| named("ip6")) {
            Some(ip) => (Some(ip), true),
            None => (named("dns").or_else(|| fid.clone()), false),
        };
        let Some(ip) = ip else {
            let Some(id) = id else { return Outcome::Missed };
            joined.pending = true;
            if keep {
                self.remember(&id, joined, clock);
            }
            return Outcome::Pending(pattern);
        };
        let addr = subnet(&ip, if host { prefix } else { None });
        let id_text = match (&fid, addr) {
            (Some(fid), _) if *fid != ip => subnet(fid, None).map_or_else(|| fid.clone(), written),
            (_, Some(net)) => written(net),
            _ => ip.clone(),
        };
        let failure = Failure {
            pattern,
            id: id_text,
            addr,
            user: named("user").filter(|user| !user.is_empty()),
            users: joined.users.clone(),
            attempts: joined.matches.max(1),
            repeated: 1,
            groups: joined.groups.iter().filter_map(|(n, v)| Some((n.to_string(), v.clone()?.into()))).collect(),
        };
        if let (Some(id), true) = (&id, keep) {
            self.remember(id, joined, clock);
        }
        Outcome::Failure(Box::new(failure))
    }

    /// Joins a line to its connection. The second value says whether to remember it.
    fn joined(&mut self, id: &str, groups: Groups, count: u32, clock: Time) -> (Connection, bool) {
        let mut here: BTreeMap<Box<str>, Option<Kept>> =
            groups.into_iter().map(|(name, value)| (name, value.map(Kept::from))).collect();
        let filled = |value: Option<&Option<Kept>>| value.and_then(Option::as_ref).is_some_and(|kept| !kept.is_empty());
        let mut gained = filled(here.get("mlfgained"));
        let mut nofail = gained || filled(here.get("nofail"));
        if gained && !filled(here.get("nofail")) {
            let gained = here.get("mlfgained").cloned().flatten();
            here.insert("nofail".into(), gained);
        }
        let forget = filled(here.remove("mlfforget").as_ref());
        let user = here.get("user").and_then(Option::as_ref).filter(|kept| !kept.is_empty()).map(Kept::shown);
        let known = self.connections.remove(id).filter(|known| (clock.0 - known.since).abs() <= ENDS);
        let mut fresh = false;
        let mut all = match known {
            Some(mut known) => {
                add(&mut known.users, user);
                let popped = |known: &mut Connection, name: &str| filled(known.groups.remove(name).as_ref());
                let waited = popped(&mut known, "nofail") | popped(&mut known, "mlfgained");
                if gained {
                    known.pending = false;
                }
                if !waited && !known.pending {
                    // What was gathered has been told.
                    known.matches = 0;
                }
                known.groups.extend(here.into_iter().filter(|(_, value)| value.is_some()));
                known
            }
            None => {
                fresh = true;
                let mut new = Connection { since: clock.0, groups: here, ..Connection::default() };
                if !forget {
                    add(&mut new.users, user);
                }
                new
            }
        };
        let several = all.users.len() > 1 && !(fresh && forget);
        if std::mem::take(&mut all.pending) || several {
            all.groups.remove("nofail");
            all.groups.remove("mlfgained");
            (nofail, gained) = (false, false);
        }
        if !nofail {
            let gathered = std::mem::take(&mut all.context).saturating_add(if gained { 0 } else { count });
            all.matches = all.matches.saturating_add(gathered);
        } else if !forget {
            all.context = all.context.saturating_add(count);
        }
        (all, !forget)
    }

    fn remember(&mut self, id: &str, mut connection: Connection, clock: Time) {
        for value in connection.groups.values_mut().flatten() {
            value.cut();
        }
        if self.connections.len() >= MOST {
            let before = self.connections.len();
            self.connections.retain(|_, known| (clock.0 - known.since).abs() <= ENDS);
            if self.connections.len() > MOST / 4 * 3 {
                let mut ages: Vec<i64> = self.connections.values().map(|known| known.since).collect();
                ages.sort_unstable();
                let edge = ages[ages.len() / 4];
                let mut left = ages.len() / 4;
                self.connections.retain(|_, known| {
                    let goes = left > 0 && known.since <= edge;
                    left -= usize::from(goes);
                    !goes
                });
            }
            self.evicted += (before - self.connections.len()) as u64;
        }
        self.connections.insert(id.to_owned(), connection);
    }
}

/// Bytes of a text as those of one that has `more` bytes more from `from` on.
fn shifted(at: Range<usize>, (from, more): (usize, usize)) -> Range<usize> {
    let place = |offset: usize| if offset >= from { offset + more } else { offset };
    let end = if at.end > at.start { place(at.end - 1) + 1 } else { place(at.end) };
    place(at.start)..end
}

/// Bytes of the text of these lines as those of the last line, as it was before its date was cut out; nothing for those of others.
fn in_last(at: Range<usize>, buffer: &[Line], line: &str) -> Option<Range<usize>> {
    let (Line(before, date, after), earlier) = buffer.split_last()?;
    let begins: usize = earlier.iter().map(|line| line.0.len() + line.2.len() + 1).sum();
    let at = at.start.checked_sub(begins)?..at.end - begins;
    // A line may be lent the date of another.
    let cut = if before.len() + date.len() + after.len() == line.len() { date.len() } else { 0 };
    let at = shifted(at, (before.len(), cut));
    (at.end <= line.len()).then_some(at)
}

fn add(users: &mut Vec<String>, user: Option<String>) {
    let Some(mut user) = user else { return };
    user.truncate(crate::terms::head(&user, TEXT).len());
    let held: usize = users.iter().map(String::len).sum();
    if users.len() < ACCOUNTS && held + user.len() <= ACCOUNTS_BYTES && !users.contains(&user) {
        users.push(user);
    }
}

fn text_of(connection: &Connection, name: &str) -> Option<String> {
    connection.groups.get(name).and_then(Option::as_ref).filter(|kept| !kept.is_empty()).map(Kept::shown)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::Parts(parts) => parts.iter().map(|part| part.as_deref().unwrap_or_default()).collect::<Vec<_>>().join(" "),
    }
}

impl Kept {
    fn shown(&self) -> String {
        shown(&self.clone().into())
    }
    fn is_empty(&self) -> bool {
        matches!(self, Kept::Text(text) if text.is_empty())
    }
    fn cut(&mut self) {
        let cut = |text: &mut String| text.truncate(crate::terms::head(text, TEXT).len());
        match self {
            Kept::Text(text) => cut(text),
            Kept::Parts(parts) => parts.iter_mut().flatten().for_each(cut),
        }
    }
}

impl From<Value> for Kept {
    fn from(value: Value) -> Kept {
        match value {
            Value::Text(text) => Kept::Text(text),
            Value::Parts(parts) => Kept::Parts(parts),
        }
    }
}

impl From<Kept> for Value {
    fn from(kept: Kept) -> Value {
        match kept {
            Kept::Text(text) => Value::Text(text),
            Kept::Parts(parts) => Value::Parts(parts),
        }
    }
}

/// An address, or a subnet where a prefix length goes with it. IPv4-mapped ones are folded.
fn subnet(text: &str, prefix: Option<u8>) -> Option<IpNetwork> {
    let ip = fold(text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok()?);
    let full = if ip.is_ipv4() { 32 } else { 128 };
    let net = IpNetwork::new(ip, prefix.unwrap_or(full).min(full)).ok()?;
    IpNetwork::new(net.network(), net.prefix()).ok()
}

/// A host without its prefix length, a subnet with it.
fn written(net: IpNetwork) -> String {
    let full = if net.is_ipv4() { 32 } else { 128 };
    if net.prefix() == full { net.ip().to_string() } else { net.to_string() }
}

/// Lines as one text, dates cut out, each with its newline.
fn join(lines: &[Line], text: &mut String) {
    text.clear();
    for line in lines {
        text.push_str(&line.0);
        text.push_str(&line.2);
        text.push('\n');
    }
}

/// Which lines of the buffer a match is about, and which are left.
fn hit(rule: &Rule, places: Places, text: &str, buffer: &[Line], maxlines: usize) -> Hit {
    if buffer.len() <= 1 || maxlines <= 1 {
        return Hit { places, matched: if maxlines > 1 { buffer.to_vec() } else { Vec::new() }, unmatched: Vec::new(), count: 1 };
    }
    let whole = places[0].clone().unwrap_or(0..0);
    let bytes = text.as_bytes();
    let first = bytes[..(whole.start + 1).min(bytes.len())].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let from = whole.end.saturating_sub(1).min(bytes.len());
    let last = bytes[from..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| from + at + 1);
    let lines = |end: usize| bytes[..end].iter().filter(|b| **b == b'\n').count().min(buffer.len());
    let (first, last) = (lines(first), lines(last).max(lines(first)));
    let mut matched = buffer[first..last].to_vec();
    let mut unmatched = buffer[..first].to_vec();
    let mut skipped = String::new();
    for number in 0.. {
        let Some(group) = rule.expression.group(&format!("skiplines{number}")) else { break };
        skipped.push_str(places[group].clone().and_then(|range| text.get(range)).unwrap_or_default());
    }
    let mut from = 0;
    for line in skipped.lines() {
        if let Some(at) = matched.iter().skip(from).position(|matched| matched.is(line)) {
            from += at;
            unmatched.push(matched.remove(from));
        }
    }
    unmatched.extend_from_slice(&buffer[last..]);
    let count = matched.len().max(1) as u32;
    Hit { places, matched, unmatched, count }
}
