//! A fail2ban filter, compiled: its expressions, what their groups mean, and what a line must hold for them to matter.

use std::ops::Range;

use jiff::tz::TimeZone;

use super::detector::{Dates, Detector};
use super::dialect;
use super::expression::{Expression, Places, Strain};
use super::resolve::Resolved;
use crate::filter::literals::{self, Needs};
use crate::filter::trial::{Step, Steps};
use crate::filter::{Mistake, repeated};
use crate::terms::Time;

/// A pattern may be this long, tags put in.
const LONGEST: usize = 64 << 10;
/// A filter has at most this many patterns of a kind.
const MOST: usize = 1_000;

/// A filter that was read from fail2ban's files, ready to judge lines.
#[derive(Debug)]
pub(crate) struct Rules {
    pub prefregex: Option<Rule>,
    pub failregex: Vec<Rule>,
    pub ignoreregex: Vec<Rule>,
    pub dates: Dates,
    /// Lines a pattern may span.
    pub maxlines: usize,
    /// Its patterns name connections.
    pub sessions: bool,
    /// It is one of ours: its tags are too.
    own: bool,
}

/// One pattern.
#[derive(Debug)]
pub(crate) struct Rule {
    /// As it was written, tags and all.
    pub written: Box<str>,
    pub expression: Expression,
    /// The expression without what linear time can not do.
    loose: Box<str>,
    /// Groups that fill another one where that is empty.
    alternatives: Vec<(usize, Box<str>)>,
    /// Groups whose texts are one name together.
    tuples: Vec<(usize, Box<str>)>,
    /// What a line must hold for it to match.
    pub needs: Needs,
    /// The groups of a password, and of what is handed on.
    secret: Option<usize>,
    content: Option<usize>,
}

/// What a group holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// The parts of a name made of several groups.
    Parts(Vec<Option<String>>),
}

impl Value {
    /// The text, where it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            Value::Parts(_) => None,
        }
    }
}

/// The groups of a match by name; none for one that took no part.
pub(crate) type Groups = std::collections::BTreeMap<Box<str>, Option<Value>>;

/// What the jail says besides the filter.
pub(crate) struct Wanted<'a> {
    /// Whether a host's name may stand for its address.
    pub names: bool,
    /// On top of the filter's failregex.
    pub failregex: Vec<(&'a str, &'static str)>,
    /// On top of the filter's ignoreregex.
    pub ignoreregex: Vec<(&'a str, &'static str)>,
    /// Instead of the filter's.
    pub datepattern: Option<&'a [String]>,
    /// Instead of the filter's.
    pub maxlines: Option<u32>,
}

impl Rules {
    /// Compiles a filter, or tells everything that keeps it from being compiled.
    pub fn new(resolved: &Resolved, wanted: &Wanted<'_>) -> Result<Rules, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let names = wanted.names && resolved.usedns.as_deref() != Some("no");
        let maxlines = wanted.maxlines.unwrap_or(resolved.maxlines).clamp(1, 1000);
        let mut rule = |text: &str, key: &str, index: usize, lines: bool| match Rule::new(text, names, lines) {
            Ok(rule) => Some(rule),
            Err(what) => {
                mistakes.push(mistake(key, index, what));
                None
            }
        };
        let prefregex = resolved.prefregex.as_ref().and_then(|text| rule(&text.text, "prefregex", 0, false));
        let mut all = |own: &[super::resolve::Text], more: &[(&str, &'static str)], key: &'static str, lines: bool| {
            let own = own.iter().enumerate().map(|(i, text)| (text.text.as_str(), key, i));
            let more = more.iter().enumerate().map(|(i, (text, key))| (*text, *key, i));
            own.chain(more).take(MOST).filter_map(|(text, key, i)| Some((rule(text, key, i, lines)?, key, i))).collect::<Vec<_>>()
        };
        let failregex = all(&resolved.failregex, &wanted.failregex, "failregex", maxlines > 1);
        let ignoreregex = all(&resolved.ignoreregex, &wanted.ignoreregex, "ignoreregex", false);
        let known = |rule: &Rule| ["fid", "ip4", "ip6", "dns", "mlfid"].iter().any(|id| rule.expression.group(id).is_some());
        for (rule, key, index) in &failregex {
            if !known(rule) && !prefregex.as_ref().is_some_and(known) {
                let lost = rule.written.starts_with('<') && rule.written.ends_with('>') && !rule.written.contains(' ');
                let what = if lost { format!("{} names nothing", rule.written) } else { "names no address".to_owned() };
                let help =
                    if lost { "is the mode one of the filter's?" } else { "put <HOST> where the offender's address stands" };
                mistakes.push(Mistake { help: Some(help.to_owned()), ..mistake(key, *index, what) });
            }
        }
        for (key, own, more) in [
            ("failregex", resolved.failregex.len(), wanted.failregex.len()),
            ("ignoreregex", resolved.ignoreregex.len(), wanted.ignoreregex.len()),
        ] {
            if own + more > MOST {
                mistakes.push(mistake(key, MOST, format!("has more than {MOST} patterns")));
            }
        }
        if resolved.failregex.is_empty() && wanted.failregex.is_empty() {
            mistakes.push(mistake("failregex", 0, "is empty".to_owned()));
        }
        let own: Vec<String> = resolved.datepattern.iter().map(|text| text.text.clone()).collect();
        let dates = Dates::new(wanted.datepattern.unwrap_or(&own));
        let dates = dates.map_err(|wrong| mistakes.extend(wrong.into_iter().map(|(i, what)| mistake("datepattern", i, what))));
        let bare = |list: Vec<(Rule, &str, usize)>| list.into_iter().map(|(rule, ..)| rule).collect::<Vec<_>>();
        let (failregex, ignoreregex) = (bare(failregex), bare(ignoreregex));
        match dates {
            Ok(dates) if mistakes.is_empty() => {
                let sessions = prefregex.iter().chain(&failregex).any(|rule| rule.expression.group("mlfid").is_some());
                Ok(Rules {
                    prefregex,
                    failregex,
                    ignoreregex,
                    dates,
                    maxlines: maxlines as usize,
                    sessions,
                    own: resolved.files.is_empty(),
                })
            }
            _ => Err(mistakes),
        }
    }

    /// How many tries a failure with these groups names.
    pub fn attempts(&self, groups: &std::collections::BTreeMap<String, Value>) -> u32 {
        let named = groups.get("attempts").filter(|_| self.own).and_then(Value::text);
        named.filter(|text| text.len() <= 9).and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
    }

    /// What a line must hold for this failregex to matter; nothing in particular if every line must be looked at.
    pub fn needs(&self, index: usize) -> Needs {
        if self.maxlines > 1 || !self.dates.clean() {
            return Needs::new();
        }
        let before = self.prefregex.as_ref().map_or(&[][..], |rule| &rule.needs);
        self.failregex[index].needs.iter().chain(before).cloned().collect()
    }

    /// Whether a line holds what a failregex can not do without. Patterns that need nothing in particular say nothing.
    pub fn holds(&self, line: &str) -> bool {
        let has = |literal: &Vec<u8>| memchr::memmem::find(line.as_bytes(), literal).is_some();
        let met = |rule: &Rule| !rule.needs.is_empty() && rule.needs.iter().all(|set| set.iter().any(has));
        self.failregex.iter().any(met)
    }

    /// What each step makes of a line.
    pub fn steps(&self, line: &str, given: Option<Time>, now: Time, zone: &TimeZone) -> Steps {
        let strain = Strain::default();
        let found = match given {
            Some(_) => None,
            None => Detector::new(self.dates.clone(), zone.clone()).find(line, now, &strain),
        };
        let cut = found.as_ref().filter(|found| !found.at.is_empty());
        let text = cut.map_or_else(|| line.to_owned(), |found| format!("{}{}", &line[..found.at.start], &line[found.at.end..]));
        let text = match repeated::unwrap(&text) {
            Some(said) => said.once,
            None => text,
        };
        let whole = format!("{text}\n");
        let content = match &self.prefregex {
            None => Some(whole.clone()),
            Some(prefregex) => prefregex.expression.find(&whole, &strain).map(|places| {
                let groups = prefregex.groups(&whole, &places);
                match groups.get("content") {
                    Some(Some(Value::Text(content))) if !content.is_empty() => format!("{content}\n"),
                    _ => whole.clone(),
                }
            }),
        };
        let holds = |literal: &Vec<u8>| memchr::memmem::find(line.as_bytes(), literal).is_some();
        let step = |rule: &Rule| {
            let lacks = rule.needs.iter().filter(|set| !set.iter().any(holds));
            let shown = |literal: &Vec<u8>| String::from_utf8_lossy(literal).into_owned();
            let matches = content.as_ref().is_some_and(|content| rule.expression.is_match(content, &strain));
            let seen = content.as_deref().unwrap_or(&whole);
            Step {
                lacks: lacks.map(|set| set.iter().map(shown).collect()).collect(),
                matches,
                reach: (!matches).then(|| crate::filter::trial::reach(&rule.loose, seen.as_bytes())).flatten(),
            }
        };
        let patterns = self.failregex.iter().map(step).collect();
        let content = content.map(|content| content.trim_end_matches('\n').to_owned());
        Steps { date: cut.map(|found| (found.at.clone(), found.time)), text, content, patterns }
    }

    /// Which patterns need the backtracking engine, each with its key and number.
    pub fn backtracking(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let of = |key: &'static str, rules: &[Rule]| -> Vec<(&'static str, usize)> {
            let hard = rules.iter().enumerate().filter(|(_, rule)| rule.expression.backtracks());
            hard.map(|(index, _)| (key, index)).collect()
        };
        let mut all = of("failregex", &self.failregex);
        all.extend(of("ignoreregex", &self.ignoreregex));
        if self.prefregex.as_ref().is_some_and(|rule| rule.expression.backtracks()) {
            all.insert(0, ("prefregex", 0));
        }
        if self.dates.backtracks() {
            all.push(("datepattern", 0));
        }
        all.into_iter()
    }
}

fn mistake(key: &str, index: usize, what: String) -> Mistake {
    Mistake { key: key.to_owned(), index, at: None, what, help: None }
}

impl Rule {
    fn new(written: &str, names: bool, lines: bool) -> Result<Rule, String> {
        if written.trim().is_empty() {
            return Err("is empty".to_owned());
        }
        let text = dialect::tags(written, names);
        if text.len() > LONGEST {
            return Err(format!("is longer than {} KiB", LONGEST >> 10));
        }
        let translated = dialect::translate(&text, lines)?;
        let expression = Expression::new(&translated)?;
        let mut needs = regex_syntax::parse(&translated.loose).map_or_else(|_| Needs::new(), |hir| literals::needs(&hir));
        // The newline at the end is ours, and a text beyond ASCII may have been read with replacements.
        needs.retain(|set| set.iter().all(|literal| literal.is_ascii() && !literal.contains(&b'\n')));
        let (mut alternatives, mut tuples) = (Vec::new(), Vec::new());
        for (group, name) in expression.names().iter().enumerate() {
            let Some(name) = name else { continue };
            let (list, target) = match (name.strip_prefix("alt_"), name.strip_prefix("tuple_")) {
                (Some(target), _) => (&mut alternatives, target),
                (_, Some(target)) => (&mut tuples, target),
                _ => continue,
            };
            let target = match target.rsplit_once('_') {
                Some((head, number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => head,
                _ => target,
            };
            list.push((name.clone(), group, Box::from(dialect::group(target))));
        }
        let sorted = |mut list: Vec<(Box<str>, usize, Box<str>)>| {
            list.sort();
            list.into_iter().map(|(_, group, target)| (group, target)).collect::<Vec<_>>()
        };
        let (alternatives, tuples) = (sorted(alternatives), sorted(tuples));
        let (secret, content) = (expression.group("secret"), expression.group("content"));
        let loose = translated.loose.into();
        Ok(Rule { written: written.into(), expression, loose, alternatives, tuples, needs, secret, content })
    }

    /// Where the password of a match is.
    pub fn secret(&self, places: &Places) -> Option<Range<usize>> {
        places.get(self.secret?)?.clone()
    }

    /// Where what is handed on begins.
    pub fn content(&self, places: &Places) -> usize {
        self.content.and_then(|group| places.get(group)?.as_ref()).map_or(0, |at| at.start)
    }

    /// The named groups of a match, alternatives filled in and tuples built.
    pub fn groups(&self, text: &str, places: &Places) -> Groups {
        let held = |group: usize| Some(text.get(places.get(group)?.clone()?)?.to_owned());
        let named = self.expression.names().iter().enumerate();
        let mut groups: Groups = named.filter_map(|(group, name)| Some((name.clone()?, held(group).map(Value::Text)))).collect();
        let filled = |value: &Option<Value>| value.as_ref().is_some_and(|v| !matches!(v, Value::Text(t) if t.is_empty()));
        for (group, target) in &self.alternatives {
            let value = held(*group).filter(|text| !text.is_empty()).map(Value::Text);
            if value.is_some() && !groups.get(target).is_some_and(filled) {
                groups.insert(target.clone(), value);
            }
        }
        for (group, target) in &self.tuples {
            let part = held(*group);
            let parts = match groups.get(target).cloned().flatten() {
                Some(Value::Parts(mut parts)) => {
                    parts.push(part);
                    parts
                }
                Some(Value::Text(text)) => vec![Some(text), part],
                None => vec![None, part],
            };
            groups.insert(target.clone(), Some(Value::Parts(parts)));
        }
        groups
    }
}
