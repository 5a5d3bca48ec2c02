//! One line at a time, with all that can be said about it: for whoever tries a filter by hand.
//!
//! The same filters and the same memory as in service, but times are the log's own, however old or early, and every pattern may be
//! asked, not only the first that matches.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::dates::Detector;
use super::fail2ban::judge::{self, Judge};
use super::fail2ban::{Failure, Value};
use super::{Filter, Kind, Scanner, When};
use crate::terms::Time;

/// A filter on trial.
#[derive(Debug)]
pub struct Trial {
    filter: Arc<Filter>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Ours { scanner: Box<Scanner>, dates: Box<Detector> },
    Fail2bans(Box<Judge>),
}

/// What a line comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// No pattern matched.
    Missed,
    /// An ignoreregex excuses it: which.
    Ignored(usize),
    /// Context of a connection: no failure by itself.
    Context,
    /// A failure whose address another line of the connection must name.
    Pending,
    /// It reports a try that an earlier line reported.
    Reported,
    /// A login that succeeded: of whom, and by which account.
    Ok(std::net::IpAddr, Option<String>),
    /// A failure.
    Failure(Failure),
}

/// A line and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// What it comes to.
    pub said: Said,
    /// The instant the line bears, or that of the line before where that is lent to it.
    pub time: Option<Time>,
    /// The failregex that matched: the first, or all where all were asked.
    pub hits: Vec<usize>,
    /// It held what a pattern can not do without, and matched none.
    pub near: bool,
    /// Which bytes of the line are a password.
    pub secrets: Vec<std::ops::Range<usize>>,
    /// Earlier lines, missed by themselves, that matched together with this one.
    pub joined: Vec<String>,
}

/// What the steps of a filter make of a line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steps {
    /// Which bytes are its date, and the instant they mean.
    pub date: Option<(std::ops::Range<usize>, Option<Time>)>,
    /// What the patterns see: the line without its date.
    pub text: String,
    /// What prefregex hands on; `None` if it does not match.
    pub content: Option<String>,
    /// Each failregex in turn.
    pub patterns: Vec<Step>,
}

/// What one pattern makes of a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Literals of which a line must hold one of each set: those sets of which it holds none.
    pub lacks: Vec<Vec<String>>,
    /// It matches.
    pub matches: bool,
    /// How many bytes of the text the longest beginning of the pattern that matches takes in, and what that beginning is.
    pub reach: Option<(usize, String)>,
}

impl Trial {
    /// Begins, knowing nothing.
    pub fn new(filter: Arc<Filter>) -> Trial {
        let way = match &filter.foreign {
            Some(rules) => Way::Fail2bans(Box::new(Judge::new(Arc::clone(rules), filter.zone.clone()))),
            None => {
                let mut scanner = Scanner::new(vec![Arc::clone(&filter)]);
                scanner.take_times_as_written();
                let dates = Detector::new(filter.dates.clone(), filter.zone.clone());
                Way::Ours { scanner: Box::new(scanner), dates: Box::new(dates) }
            }
        };
        Trial { filter, way }
    }

    /// Judges a line without its newline. `given` is its instant where the journal gave it; with `all`, every failregex is
    /// asked.
    pub fn line(&mut self, line: &[u8], given: Option<Time>, now: Time, all: bool) -> Tried {
        match &mut self.way {
            Way::Fail2bans(judge) => {
                let text = String::from_utf8_lossy(line);
                let mut every = Vec::new();
                let verdict = judge.line(&text, given, now, now, all.then_some(&mut every));
                let first = match &verdict.outcome {
                    judge::Outcome::Context(pattern) | judge::Outcome::Pending(pattern) => Some(*pattern),
                    judge::Outcome::Failure(failure) => Some(failure.pattern),
                    _ => None,
                };
                let said = match verdict.outcome {
                    judge::Outcome::Missed => Said::Missed,
                    judge::Outcome::Ignored(which) => Said::Ignored(which),
                    judge::Outcome::Context(_) => Said::Context,
                    judge::Outcome::Pending(_) => Said::Pending,
                    judge::Outcome::Failure(failure) => Said::Failure(*failure),
                };
                let bytes = |at: &std::ops::Range<usize>| super::scanner::in_bytes(line, at);
                let secrets = verdict.secrets.iter().map(bytes).map(|at| at.start as usize..at.end as usize).collect();
                let hits = if all && first.is_some() { every } else { first.into_iter().collect() };
                let near = said == Said::Missed && self.filter.foreign.as_ref().is_some_and(|rules| rules.holds(&text));
                Tried {
                    said,
                    time: verdict.time.or(verdict.assumed),
                    hits,
                    near,
                    secrets,
                    joined: std::mem::take(&mut judge.joined),
                }
            }
            Way::Ours { scanner, dates } => {
                let before = scanner.counters(0);
                let mut found = Vec::new();
                let chunk = [line, b"\n"].concat();
                let when = When { now, live: true };
                match given {
                    Some(given) => scanner.scan_timed(&chunk, &[(0, given)], when, &mut found),
                    None => scanner.scan(&chunk, when, &mut found),
                }
                let after = scanner.counters(0);
                let date = if given.is_none() { dates.find(line, now) } else { None };
                let text = without(line, date.as_ref().map(|date| date.at.clone()));
                let undated = after.undated > before.undated && date.is_none_or(|date| date.time.is_none());
                let of = |found: &super::Found| given.or((!undated).then_some(found.time));
                let text_of = |bytes: &Option<Box<[u8]>>| bytes.as_ref().map(|b| String::from_utf8_lossy(b).into_owned());
                let (said, time) = match found.first() {
                    Some(login) if login.kind == Kind::Ok => (Said::Ok(login.addr, text_of(&login.user)), of(login)),
                    Some(failure) => {
                        let user = text_of(&failure.user);
                        let mut groups = self.filter.groups(&text, usize::from(failure.pattern));
                        if let Some(reason) = text_of(&failure.reason) {
                            groups.insert("reason".to_owned(), Value::Text(reason));
                        }
                        if let Some(user) = &user {
                            groups.insert("user".to_owned(), Value::Text(user.clone()));
                        }
                        let counted = Failure {
                            pattern: usize::from(failure.pattern),
                            id: failure.addr.to_string(),
                            addr: Some(IpNetwork::from(failure.addr)),
                            users: user.iter().cloned().collect(),
                            user,
                            attempts: failure.attempts,
                            repeated: 1,
                            groups,
                        };
                        (Said::Failure(counted), of(failure))
                    }
                    None if after.ignored > before.ignored => (Said::Ignored(self.filter.excuse(&text)), None),
                    None if after.repeated > before.repeated => (Said::Reported, None),
                    None if after.matched > before.matched => (Said::Context, None),
                    None => (Said::Missed, None),
                };
                let matched = after.matched > before.matched || after.ignored > before.ignored;
                let hits = match &said {
                    _ if matched && all => self.filter.matching(&text),
                    Said::Failure(failure) => vec![failure.pattern],
                    _ if matched => self.filter.matching(&text).into_iter().take(1).collect(),
                    _ => Vec::new(),
                };
                let near = after.missed > before.missed;
                let secrets = found.iter().flat_map(|found| &found.secrets).map(|r| r.start as usize..r.end as usize).collect();
                Tried { said, time, hits, near, secrets, joined: Vec::new() }
            }
        }
    }

    /// Dates found so far, by template.
    pub fn date_hits(&self) -> Vec<(String, u64)> {
        match &self.way {
            Way::Ours { dates, .. } => dates.hits().map(|(template, hits)| (template.name().to_owned(), hits)).collect(),
            Way::Fail2bans(judge) => judge.date_hits().map(|(name, hits)| (name.to_owned(), hits)).collect(),
        }
    }

    /// How often a pattern was given up for want of steps.
    pub fn strained(&self) -> u64 {
        match &self.way {
            Way::Ours { .. } => 0,
            Way::Fail2bans(judge) => judge.strained(),
        }
    }

    /// What each step of the filter makes of a line, whatever the other lines were.
    pub fn steps(&self, line: &[u8], given: Option<Time>, now: Time) -> Steps {
        match &self.way {
            Way::Fail2bans(_) => {
                self.filter.foreign.as_ref().map_or_else(Steps::default, |rules| {
                    rules.steps(&String::from_utf8_lossy(line), given, now, &self.filter.zone)
                })
            }
            Way::Ours { .. } => self.filter.steps(line, given.is_some(), now),
        }
    }
}

/// A line without the bytes of its date, and a repeated message as it would be for one.
fn without(line: &[u8], date: Option<std::ops::Range<usize>>) -> Vec<u8> {
    let text = match date {
        Some(at) => [&line[..at.start], &line[at.end..]].concat(),
        None => line.to_vec(),
    };
    match super::repeated::parts(&text) {
        Some((head, said, _)) => [&text[..head], &text[said]].concat(),
        None => text,
    }
}

impl Filter {
    /// What failregex sees of a text; `None` if prefregex does not match.
    fn content<'t>(&self, text: &'t [u8]) -> Option<&'t [u8]> {
        let Some(prefregex) = &self.prefregex else { return Some(text) };
        let hit = prefregex.find(text, &mut super::pattern::Places::default())?;
        Some(hit.content.map_or(text, |content| &text[content]))
    }

    /// Which failregex match a text.
    fn matching(&self, text: &[u8]) -> Vec<usize> {
        let Some(content) = self.content(text) else { return Vec::new() };
        let matches = |p: &super::Pattern| p.find(content, &mut super::pattern::Places::default()).is_some();
        self.failregex.iter().enumerate().filter(|(_, p)| matches(p)).map(|(index, _)| index).collect()
    }

    /// The first ignoreregex that matches.
    fn excuse(&self, text: &[u8]) -> usize {
        let content = self.content(text).unwrap_or(text);
        let excuses = |p: &super::Pattern| p.regex.is_match(content) || (self.ignores_lines && p.regex.is_match(text));
        self.ignoreregex.iter().position(excuses).unwrap_or(0)
    }

    /// The texts of the groups of a failregex by their names, and of prefregex.
    fn groups(&self, text: &[u8], pattern: usize) -> BTreeMap<String, Value> {
        let mut groups = BTreeMap::new();
        let content = self.content(text).unwrap_or(text);
        let parts = [(self.prefregex.as_ref(), text), (self.failregex.get(pattern), content)];
        for (pattern, text) in parts.into_iter().filter_map(|(pattern, text)| Some((pattern?, text))) {
            for (name, range) in pattern.named(text) {
                groups.insert(name, Value::Text(String::from_utf8_lossy(&text[range]).into_owned()));
            }
        }
        groups
    }

    /// What each step makes of a line.
    fn steps(&self, line: &[u8], dateless: bool, now: Time) -> Steps {
        let date = (!dateless).then(|| Detector::new(self.dates.clone(), self.zone.clone()).find(line, now)).flatten();
        let text = without(line, date.as_ref().map(|date| date.at.clone()));
        let content = self.content(&text).map(<[u8]>::to_vec);
        let matching = self.matching(&text);
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let holds = |literal: &Vec<u8>| memchr::memmem::find(line, literal).is_some();
        let step = |(index, pattern): (usize, &super::Pattern)| {
            let lacks = pattern.needs.iter().filter(|set| !set.iter().any(holds));
            let lacks = lacks.map(|set| set.iter().map(|literal| shown(literal)).collect()).collect();
            let matches = matching.contains(&index);
            let seen = content.as_deref().unwrap_or(&text);
            Step { lacks, matches, reach: (!matches).then(|| reach(pattern.regex.as_str(), seen)).flatten() }
        };
        let patterns = self.failregex.iter().enumerate().map(step).collect();
        Steps { date: date.map(|d| (d.at, d.time)), text: shown(&text), content: content.as_deref().map(shown), patterns }
    }
}

/// How far the longest beginning of a pattern that matches a text takes it in, and that beginning.
pub(crate) fn reach(pattern: &str, text: &[u8]) -> Option<(usize, String)> {
    let hir = regex_syntax::ParserBuilder::new().utf8(false).unicode(false).build().parse(pattern).ok()?;
    let regex_syntax::hir::HirKind::Concat(parts) = hir.kind() else { return None };
    let mut best = None;
    for count in 1..parts.len() {
        let head = regex_syntax::hir::Hir::concat(parts[..count].to_vec()).to_string();
        let regex = regex::bytes::RegexBuilder::new(&head).unicode(false).size_limit(4 << 20).build().ok()?;
        let Some(found) = regex.find(text) else { break };
        best = Some((found.end(), head));
    }
    best
}
