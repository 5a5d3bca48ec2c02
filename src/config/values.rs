//! What a value means: durations, ports, addresses and the rest, as fail2ban and nft(8) write them.
//!
//! Each reader takes a value as it was written and gives what it means or every mistake in it, each with its place and
//! with what to write instead.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use ipnetwork::IpNetwork;

use super::keys::{Key, Kind, Place, nearest};
use super::run::{IgnoreList, Tristate};
use super::services;
use super::source::{Source, quoted};
use super::written::{Node, Raw, Table};
use crate::terms::journal::Match;
use crate::terms::{Aggregate, Family, Hook, Lasting, Ports, Protocol, Protocols, Span, is_nft_keyword, priority_names};

/// The most mistakes told of one value.
const TOLD: usize = 100;

/// The longest span: the kernel counts a timeout in nanoseconds of 64 bits.
const LONGEST: Span = Span::from_secs(500 * 31_557_600);

/// The longest path of a Unix socket: `sun_path` of 108 bytes with the NUL at its end (unix(7)).
const SOCKET_AT_MOST: usize = 107;

/// What a value means.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Number(i64),
    /// A number.
    Factor(f64),
    /// Numbers.
    Factors(Vec<f64>),
    /// A length of time.
    Span(Span),
    /// A length of time, or for good.
    Lasting(Lasting),
    /// Ports.
    Ports(Ports),
    /// Protocols.
    Protocols(Protocols),
    /// Hooks, in the order a packet meets them.
    Hooks(Vec<Hook>),
    /// Families.
    Families(Vec<Family>),
    /// A priority.
    Priority(Priority),
    /// Yes, no, or as the machine is.
    Tristate(Tristate),
    /// A word, a path, a text.
    Text(String),
    /// Several of them.
    Texts(Vec<String>),
    /// Whom to ignore.
    Ignore(IgnoreList),
    /// A filter and its parameters.
    Filter(FilterName),
    /// When a subnet is banned, if it ever is.
    Aggregate(Option<Aggregate>),
    /// A time zone.
    Zone(jiff::tz::TimeZone),
    /// A table or something else that another room of this one reads.
    Other,
}

/// A filter's name and parameters as a jail writes them.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterName {
    /// Its name.
    pub name: String,
    /// Where the name stands.
    pub at: Range<usize>,
    /// Its parameters, each with its place.
    pub params: BTreeMap<String, (Vec<String>, Range<usize>)>,
}

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Wrong {
    /// Where.
    pub span: Range<usize>,
    /// What.
    pub what: String,
    /// What to write instead.
    pub help: Option<String>,
}

/// A word of a value and where it stands, worked out only when it is wrong.
struct Piece<'a> {
    text: &'a str,
    node: &'a Node,
    at: Option<Range<usize>>,
}

impl Piece<'_> {
    fn span(&self, source: &Source) -> Range<usize> {
        self.at.as_ref().map_or_else(|| self.node.span.clone(), |at| source.inside(&self.node.span, at))
    }
    fn wrong(&self, source: &Source, what: impl Into<String>, help: impl Into<String>) -> Wrong {
        Wrong { span: self.span(source), what: what.into(), help: Some(help.into()) }
    }
}

fn wrong<T>(node: &Node, what: impl Into<String>, help: impl Into<String>) -> Result<T, Vec<Wrong>> {
    Err(vec![Wrong {
        span: node.span.clone(),
        what: what.into(),
        help: Some(help.into()).filter(|help: &String| !help.is_empty()),
    }])
}

/// What the value of `key` means.
pub fn mean(key: &Key, node: &Node, source: &Source) -> Result<Meaning, Vec<Wrong>> {
    let example = || if key.example.is_empty() { String::new() } else { format!("write {} = {}", key.name, key.example) };
    let not = |taken: &str| wrong(node, format!("takes {taken}, not {}", node.value.noun()), example());
    match key.kind {
        Kind::Bool => match &node.value {
            Raw::Bool(yes) => Ok(Meaning::Bool(*yes)),
            Raw::Word(word) if matches!(word.as_str(), "true" | "yes" | "1") => Ok(Meaning::Bool(true)),
            Raw::Word(word) if matches!(word.as_str(), "false" | "no" | "0") => Ok(Meaning::Bool(false)),
            Raw::Text(word) if matches!(word.to_lowercase().as_str(), "true" | "yes" | "on" | "1") => {
                wrong(node, "takes true or false, not text", format!("write {} = true, without quotes", key.name))
            }
            Raw::Text(word) if matches!(word.to_lowercase().as_str(), "false" | "no" | "off" | "0") => {
                wrong(node, "takes true or false, not text", format!("write {} = false, without quotes", key.name))
            }
            _ => wrong(
                node,
                format!("takes true or false, not {}", node.value.noun()),
                format!("write {} = true or {} = false", key.name, key.name),
            ),
        },
        Kind::Number(low, high) => {
            let number = match &node.value {
                Raw::Integer(number) => *number,
                Raw::Word(word) => match word.parse() {
                    Ok(number) => Some(number),
                    Err(_) => return not("a whole number"),
                },
                Raw::Text(word) if word.parse::<i64>().is_ok() => {
                    return wrong(
                        node,
                        "takes a whole number, not text",
                        format!("write {} = {}, without quotes", key.name, word.trim()),
                    );
                }
                _ => return not("a whole number"),
            };
            match number.filter(|number| (low..=high).contains(number)) {
                Some(number) => Ok(Meaning::Number(number)),
                None => wrong(
                    node,
                    format!("{} is out of range", number.map_or("the number".to_owned(), |n| n.to_string())),
                    format!("write a number from {low} to {high}"),
                ),
            }
        }
        Kind::Factor => factor(node).map(Meaning::Factor).map_or_else(|| not("a number, not negative"), Ok),
        Kind::Factors => match &node.value {
            Raw::List(items) if !items.is_empty() => {
                let found: Option<Vec<f64>> = items.iter().map(factor).collect();
                found.map(Meaning::Factors).map_or_else(|| not("numbers, not negative"), Ok)
            }
            Raw::Text(_) | Raw::Word(_) => {
                let pieces = pieces(node).unwrap_or_default();
                let found: Option<Vec<f64>> =
                    pieces.iter().map(|p| p.text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0)).collect();
                found.filter(|found| !found.is_empty()).map(Meaning::Factors).map_or_else(|| not("numbers, not negative"), Ok)
            }
            _ => factor(node).map(|n| Meaning::Factors(vec![n])).map_or_else(|| not("numbers, not negative"), Ok),
        },
        Kind::Span | Kind::Spread => match lasting(node, source)? {
            Lasting::For(Span(0)) if key.kind == Kind::Span => wrong(node, "is zero", example()),
            Lasting::For(span) => Ok(Meaning::Span(span)),
            Lasting::Permanent => wrong(node, "can not be permanent", example()),
        },
        Kind::Lasting => match lasting(node, source)? {
            Lasting::For(Span(0)) => wrong(
                node,
                "is zero: this jail can never ban",
                "write how long a ban lasts, for example \"10m\", or \"permanent\"",
            ),
            lasting => Ok(Meaning::Lasting(lasting)),
        },
        Kind::Ports => ports(node, source).map(Meaning::Ports),
        Kind::Protocols => protocols(node, source).map(Meaning::Protocols),
        Kind::Hooks => hooks(node, source).map(Meaning::Hooks),
        Kind::Families => families(node, source).map(Meaning::Families),
        Kind::Priority => priority(node, (key.place == Place::Priority).then(|| table_of(key))).map(Meaning::Priority),
        Kind::Tristate => match &node.value {
            Raw::Bool(true) => Ok(Meaning::Tristate(Tristate::Yes)),
            Raw::Bool(false) => Ok(Meaning::Tristate(Tristate::No)),
            Raw::Text(word) | Raw::Word(word) => match word.as_str() {
                "auto" => Ok(Meaning::Tristate(Tristate::Auto)),
                "yes" | "true" => Ok(Meaning::Tristate(Tristate::Yes)),
                "no" | "false" => Ok(Meaning::Tristate(Tristate::No)),
                _ => wrong(node, format!("unknown word {}", quoted(word)), "write \"auto\", \"yes\" or \"no\""),
            },
            _ => wrong(node, format!("takes auto, yes or no, not {}", node.value.noun()), "write \"auto\", \"yes\" or \"no\""),
        },
        Kind::Word(words) => match &node.value {
            Raw::Text(word) | Raw::Word(word) if words.contains(&word.as_str()) => Ok(Meaning::Text(word.clone())),
            Raw::Text(word) | Raw::Word(word) => {
                if let Some((what, help)) = known_word(key.name, word) {
                    return wrong(node, what, help);
                }
                wrong(node, format!("unknown word {}", quoted(word)), one_of(words))
            }
            _ => wrong(node, format!("takes a word, not {}", node.value.noun()), one_of(words)),
        },
        Kind::Text => match &node.value {
            Raw::Text(text) | Raw::Word(text) => Ok(Meaning::Text(text.clone())),
            _ => not("text"),
        },
        Kind::Name => match &node.value {
            Raw::Text(text) | Raw::Word(text) => match name_fault(text) {
                None if key.name == "table" && is_nft_keyword(text) => wrong(
                    node,
                    format!("{} is a word of nft, which could list such a table and not load it", quoted(text)),
                    "choose another name",
                ),
                None => Ok(Meaning::Text(text.clone())),
                Some(fault) => {
                    wrong(node, format!("{} {fault}", quoted(text)), "write a letter, then letters, digits, \"-\" and \"_\"")
                }
            },
            _ => not("a name"),
        },
        Kind::Group => match &node.value {
            Raw::Text(text) | Raw::Word(text)
                if !text.is_empty()
                    && text.len() <= 32
                    && !text.contains([':', ',', '/', ' '])
                    && !text.contains(char::is_control) =>
            {
                Ok(Meaning::Text(text.clone()))
            }
            Raw::Text(text) | Raw::Word(text) => {
                wrong(node, format!("{} is no group's name", quoted(text)), "write the name of one group, as in /etc/group")
            }
            _ => not("the name of a group"),
        },
        Kind::Path => match &node.value {
            Raw::Text(text) | Raw::Word(text) if key.name == "socket" && text.len() > SOCKET_AT_MOST => wrong(
                node,
                format!("the path is longer than {SOCKET_AT_MOST} bytes, and no socket can have it"),
                "write a shorter one, for example \"/run/banset/banset.sock\"",
            ),
            Raw::Text(text) | Raw::Word(text) => match path_fault(text) {
                None => Ok(Meaning::Text(text.clone())),
                Some((what, help)) => wrong(node, what, help),
            },
            _ => not("a path"),
        },
        Kind::Log => match &node.value {
            Raw::Text(text) | Raw::Word(text) if matches!(text.as_str(), "stderr" | "journal") => Ok(Meaning::Text(text.clone())),
            Raw::Text(text) | Raw::Word(text) if text.starts_with('/') && path_fault(text).is_none() => {
                Ok(Meaning::Text(text.clone()))
            }
            Raw::Text(text) | Raw::Word(text) => {
                wrong(node, format!("unknown place {}", quoted(text)), "write \"stderr\", \"journal\" or an absolute path")
            }
            _ => not("text"),
        },
        Kind::Globs => globs(node, source).map(Meaning::Texts),
        Kind::Texts => match &node.value {
            Raw::Text(text) | Raw::Word(text) => Ok(Meaning::Texts(vec![text.clone()])),
            Raw::List(items) => collect(items.iter().map(|item| match &item.value {
                Raw::Text(text) => Ok(text.clone()),
                other => wrong(item, format!("takes text, not {}", other.noun()), example()),
            }))
            .map(Meaning::Texts),
            _ => not("text or a list of texts"),
        },
        Kind::Matches => matches(node),
        Kind::Journal => match &node.value {
            Raw::Text(text) | Raw::Word(text) => match text.strip_prefix('@') {
                Some(name) if name_fault(name).is_none() => Ok(Meaning::Text(text.clone())),
                Some(_) => {
                    wrong(node, format!("{} names no namespace", quoted(text)), "write \"@NAME\", as in LogNamespace=NAME")
                }
                None => match path_fault(text) {
                    None => Ok(Meaning::Text(text.clone())),
                    Some((what, help)) => wrong(node, what, help),
                },
            },
            _ => not("a path"),
        },
        Kind::Words => match pieces(node) {
            Some(pieces) => Ok(Meaning::Texts(pieces.iter().map(|piece| piece.text.to_owned()).collect())),
            None => not("words"),
        },
        Kind::Ignore => ignore(node, source).map(Meaning::Ignore),
        Kind::Filter => filter(node, source).map(Meaning::Filter),
        Kind::Aggregate => aggregate(node).map(Meaning::Aggregate),
        Kind::Zone => zone(node).map(Meaning::Zone),
        Kind::Expect => match &node.value {
            Raw::Bool(false) | Raw::Text(_) => Ok(Meaning::Other),
            _ => wrong(
                node,
                format!("takes an address or false, not {}", node.value.noun()),
                "write addr = \"192.0.2.1\" or addr = false",
            ),
        },
        Kind::Table(_) | Kind::Named(_) | Kind::Tables(_) | Kind::Variables | Kind::Any => Ok(Meaning::Other),
    }
}

/// Words of fail2ban that deserve more than a list of ours.
fn known_word(key: &str, word: &str) -> Option<(String, String)> {
    let (what, help) = match (key, word) {
        ("backend", "systemd" | "journald") => (format!("{} is fail2ban's word", quoted(word)), "write \"journal\""),
        ("backend", "pyinotify" | "polling" | "gamin") => (
            format!("{} is fail2ban's word", quoted(word)),
            "write \"auto\": files are followed by inotify, and polled where that fails",
        ),
        ("usedns", "yes" | "warn" | "raw") => (
            format!("{}: names in a log line are never resolved here", quoted(word)),
            "write \"no\": a name in a log line is a stranger's choice",
        ),
        ("blocktype", "DROP" | "REJECT" | "Drop" | "Reject") => {
            (format!("unknown word {}", quoted(word)), "write it in lower case")
        }
        ("loglevel", "CRITICAL" | "critical" | "ERROR") => (format!("unknown word {}", quoted(word)), "write \"error\""),
        ("loglevel", "warn" | "WARNING" | "WARN" | "NOTICE" | "notice") => {
            (format!("unknown word {}", quoted(word)), "write \"warning\"")
        }
        ("loglevel", "INFO") => (format!("unknown word {}", quoted(word)), "write \"info\""),
        ("loglevel", "DEBUG") => (format!("unknown word {}", quoted(word)), "write \"debug\""),
        _ => return None,
    };
    Some((what, help.to_owned()))
}

fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => format!("write \"{only}\""),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(|word| format!("\"{word}\"")).collect();
            format!("write {} or \"{last}\"", first.join(", "))
        }
    }
}

fn factor(node: &Node) -> Option<f64> {
    let number = match &node.value {
        Raw::Integer(number) => (*number)? as f64,
        Raw::Float(number) => *number,
        Raw::Word(word) => word.parse().ok()?,
        _ => return None,
    };
    (number.is_finite() && number >= 0.0).then_some(number)
}

/// The words of a value: a scalar, a string with blanks or commas, or a list of either. `None` if it is a table, a number with a
/// fraction, or holds one.
fn pieces(node: &Node) -> Option<Vec<Piece<'_>>> {
    let mut out = Vec::new();
    match &node.value {
        Raw::List(items) => {
            for item in items {
                split(item, &mut out)?;
            }
        }
        _ => split(node, &mut out)?,
    }
    Some(out)
}

fn split<'a>(node: &'a Node, out: &mut Vec<Piece<'a>>) -> Option<()> {
    match &node.value {
        Raw::Text(text) | Raw::Word(text) => {
            let mut at = 0;
            for word in text.split(|c: char| c == ',' || c.is_ascii_whitespace()) {
                if !word.is_empty() {
                    out.push(Piece { text: word, node, at: Some(at..at + word.len()) });
                }
                at += word.len() + 1;
            }
            Some(())
        }
        _ => None,
    }
}

/// Goes on after a mistake, so that all of a value's are told.
fn collect<T>(found: impl Iterator<Item = Result<T, Vec<Wrong>>>) -> Result<Vec<T>, Vec<Wrong>> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for one in found {
        match one {
            Ok(one) => good.push(one),
            Err(wrongs) => bad.extend(wrongs),
        }
        if bad.len() >= TOLD {
            break;
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
}

/// Units as fail2ban writes them, with their microseconds; its month is 30.4375 days and its year 365.25.
const UNITS: &[(&[&str], u64)] = &[
    (&["ms"], 1_000),
    (&["s", "ss", "se", "sec", "secs", "second", "seconds"], 1_000_000),
    (&["m", "mm", "mi", "min", "mins", "minute", "minutes"], 60_000_000),
    (&["h", "hh", "ho", "hou", "hour", "hours"], 3_600_000_000),
    (&["d", "dd", "da", "day", "days"], 86_400_000_000),
    (&["w", "ww", "we", "wee", "week", "weeks"], 604_800_000_000),
    (&["mo", "mon", "month", "months"], 2_629_800_000_000),
    (&["y", "yy", "ye", "yea", "year", "years"], 31_557_600_000_000),
];

const SPAN_HELP: &str = "write a number and one of s, m, h, d, w, for example \"10m\"";

/// A length of time: a number of seconds, text as fail2ban writes it, or -1.
fn lasting(node: &Node, source: &Source) -> Result<Lasting, Vec<Wrong>> {
    let bounded = |micros: f64| {
        if micros > LONGEST.0 as f64 {
            wrong(node, "is longer than 500 years", "write \"permanent\" for a ban without end")
        } else {
            Ok(Lasting::For(Span(micros as u64)))
        }
    };
    match &node.value {
        Raw::Integer(Some(-1)) => Ok(Lasting::Permanent),
        Raw::Integer(Some(secs)) if *secs < 0 => wrong(node, "is negative", SPAN_HELP),
        Raw::Integer(Some(secs)) => bounded(*secs as f64 * 1e6),
        Raw::Integer(None) => wrong(node, "is longer than 500 years", "write \"permanent\" for a ban without end"),
        Raw::Float(secs) if secs.is_finite() && *secs >= 0.0 => bounded(secs * 1e6),
        Raw::Float(_) => wrong(node, "is no length of time", SPAN_HELP),
        Raw::Text(text) | Raw::Word(text) => match duration(text) {
            Ok(lasting) => Ok(lasting),
            // The whole value is cited, unless only a part of a longer one is wrong.
            Err(fault) if text.split_whitespace().count() <= 2 => wrong(node, fault.what, fault.help),
            Err(fault) => {
                Err(vec![Wrong { span: source.inside(&node.span, &fault.at), what: fault.what, help: Some(fault.help) }])
            }
        },
        other => wrong(node, format!("takes a length of time, not {}", other.noun()), SPAN_HELP),
    }
}

/// What is wrong with a duration's text.
#[derive(Debug, PartialEq)]
pub struct Fault {
    at: Range<usize>,
    /// What.
    pub what: String,
    /// What to write instead.
    pub help: String,
}

/// Reads a length of time as fail2ban writes it: `10m`, `1h30m`, `1d 12h`, `2w`, `1mo`, `90`, `permanent`, `-1`.
pub fn duration(text: &str) -> Result<Lasting, Fault> {
    let fault = |at: Range<usize>, what: String| Err(Fault { at, what, help: SPAN_HELP.to_owned() });
    let whole = text.trim();
    if whole.eq_ignore_ascii_case("permanent") || whole == "-1" {
        return Ok(Lasting::Permanent);
    }
    if whole.is_empty() {
        return fault(0..text.len(), "is empty".to_owned());
    }
    if whole.starts_with('-') {
        return fault(0..text.len(), "is negative".to_owned());
    }
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut micros = 0.0_f64;
    let mut bare = false;
    let skip = |mut at: usize| {
        while at < bytes.len() && (bytes[at].is_ascii_whitespace()) {
            at += 1;
        }
        at
    };
    at = skip(at);
    while at < bytes.len() {
        let begin = at;
        while at < bytes.len() && (bytes[at].is_ascii_digit() || bytes[at] == b'.') {
            at += 1;
        }
        let digits = &text[begin..at];
        if digits.is_empty() {
            let end =
                text[begin..].find(|c: char| c.is_ascii_whitespace() || c.is_ascii_digit()).map_or(text.len(), |n| begin + n);
            return fault(begin..end.max(begin), format!("no number before {}", quoted(&text[begin..end])));
        }
        let Ok(number) = digits.parse::<f64>() else {
            return fault(begin..at, format!("{} is no number", quoted(digits)));
        };
        if bare {
            return fault(begin..at, format!("no unit before {}", quoted(digits)));
        }
        at = skip(at);
        let unit_at = at;
        while at < bytes.len() && !bytes[at].is_ascii_whitespace() && !bytes[at].is_ascii_digit() {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
        let word = &text[unit_at..at];
        let unit = match UNITS.iter().find(|(names, _)| names.contains(&word.to_ascii_lowercase().as_str())) {
            Some((_, unit)) if word != "M" => *unit,
            // Seconds, as long as nothing follows.
            _ if word.is_empty() => {
                bare = true;
                1_000_000
            }
            _ => return fault(unit_at..at, format!("unknown unit {}", quoted(word))),
        };
        micros += number * unit as f64;
        at = skip(at);
    }
    if micros > LONGEST.0 as f64 {
        return Err(Fault {
            at: 0..text.len(),
            what: "is longer than 500 years".to_owned(),
            help: "write \"permanent\" for a ban without end".to_owned(),
        });
    }
    Ok(Lasting::For(Span(micros.round() as u64)))
}

const PORT_HELP: &str = "write numbers, ranges as \"6000-6010\", service names, \"mail\", \"web\" or \"all\"";

/// Ports, ranges, service names and groups.
fn ports(node: &Node, source: &Source) -> Result<Ports, Vec<Wrong>> {
    let whole = std::slice::from_ref(node);
    let items = if let Raw::List(items) = &node.value { items.as_slice() } else { whole };
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    let mut all = false;
    let mut bad = Vec::new();
    for item in items {
        match &item.value {
            Raw::Integer(number) => match number.filter(|n| (1..=65_535).contains(n)) {
                Some(number) => ranges.push((number as u16, number as u16)),
                None => bad.push(Wrong {
                    span: item.span.clone(),
                    what: format!("{} is no port", number.map_or("the number".to_owned(), |n| n.to_string())),
                    help: Some("ports are 1 to 65535".to_owned()),
                }),
            },
            Raw::Text(_) | Raw::Word(_) => {
                let mut words = Vec::new();
                split(item, &mut words);
                for word in words {
                    match port(&word, source) {
                        Ok(Ports::All) => all = true,
                        Ok(Ports::List(list)) => ranges.extend(list),
                        Err(wrong) => bad.push(wrong),
                    }
                    if bad.len() >= TOLD {
                        break;
                    }
                }
            }
            other => bad.push(Wrong {
                span: item.span.clone(),
                what: format!("takes ports, not {}", other.noun()),
                help: Some(PORT_HELP.to_owned()),
            }),
        }
        if bad.len() >= TOLD {
            break;
        }
    }
    if !bad.is_empty() {
        return Err(bad);
    }
    if all {
        return Ok(Ports::All);
    }
    if ranges.is_empty() {
        return wrong(node, "no port: this jail can never ban", PORT_HELP);
    }
    Ok(Ports::List(merged(ranges)))
}

/// Sorted, disjoint, not adjacent.
fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut out: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

fn port(word: &Piece<'_>, source: &Source) -> Result<Ports, Wrong> {
    let text = word.text;
    let single = |number: u16| Ok(Ports::List(vec![(number, number)]));
    match text {
        "all" | "0:65535" | "0-65535" | "1:65535" | "1-65535" => return Ok(Ports::All),
        "mail" => return Ok(Ports::List([25, 110, 143, 465, 587, 993, 995, 4190].map(|port| (port, port)).to_vec())),
        "web" => return Ok(Ports::List(vec![(80, 80), (443, 443)])),
        _ => {}
    }
    let numeric = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if numeric(text) {
        return match text.parse::<u16>() {
            Ok(number) if number > 0 => single(number),
            _ => Err(word.wrong(source, format!("{} is no port", quoted(text)), "ports are 1 to 65535")),
        };
    }
    if let Some((first, last)) =
        text.split_once([':', '-']).filter(|(first, last)| numeric(first) && (numeric(last) || last.is_empty()))
    {
        let bound = |text: &str| {
            text.parse::<u16>().map_err(|_| word.wrong(source, format!("{} is no port", quoted(text)), "ports are 1 to 65535"))
        };
        if last.is_empty() {
            return Err(word.wrong(
                source,
                format!("the range {} has no end", quoted(text)),
                format!("write \"{first}-65535\" or the last port of the range"),
            ));
        }
        let (from, to) = (bound(first)?, bound(last)?);
        if to == 0 {
            return Err(word.wrong(source, format!("{} is no port", quoted(last)), "ports are 1 to 65535"));
        }
        if from > to {
            return Err(word.wrong(
                source,
                format!("the range {} ends before it begins", quoted(text)),
                format!("write \"{last}-{first}\""),
            ));
        }
        return Ok(Ports::List(vec![(from.max(1), to)]));
    }
    match services::port(text) {
        Some(number) => single(number),
        None => {
            let help =
                nearest(text, services::names()).map_or_else(|| PORT_HELP.to_owned(), |name| format!("did you mean \"{name}\"?"));
            Err(word.wrong(source, format!("unknown service {}", quoted(text)), help))
        }
    }
}

fn protocols(node: &Node, source: &Source) -> Result<Protocols, Vec<Wrong>> {
    const HELP: &str = "write some of \"tcp\", \"udp\", \"udplite\", \"sctp\", \"dccp\", or \"all\"";
    let Some(pieces) = pieces(node) else { return wrong(node, format!("takes protocols, not {}", noun_inside(node)), HELP) };
    if pieces.is_empty() {
        return wrong(node, "no protocol: this jail can never ban", HELP);
    }
    let mut list = collect(pieces.iter().map(|piece| {
        if piece.text == "all" {
            return Ok(None);
        }
        match Protocol::ALL.iter().find(|protocol| protocol.name() == piece.text) {
            Some(protocol) => Ok(Some(*protocol)),
            None => {
                let lower = piece.text.to_ascii_lowercase();
                let help = match nearest(&lower, Protocol::ALL.iter().map(|protocol| protocol.name())).filter(|_| lower != "icmp")
                {
                    Some(name) => format!("did you mean \"{name}\"?"),
                    None => HELP.to_owned(),
                };
                Err(vec![piece.wrong(source, format!("unknown protocol {}", quoted(piece.text)), help)])
            }
        }
    }))?;
    if list.contains(&None) {
        return Ok(Protocols::All);
    }
    list.sort();
    list.dedup();
    Ok(Protocols::List(list.into_iter().flatten().collect()))
}

/// For a list, the noun of its first item that is not text.
fn noun_inside(node: &Node) -> &'static str {
    match &node.value {
        Raw::List(items) => {
            items.iter().find(|item| !matches!(item.value, Raw::Text(_))).map_or("a list", |item| item.value.noun())
        }
        other => other.noun(),
    }
}

fn hooks(node: &Node, source: &Source) -> Result<Vec<Hook>, Vec<Wrong>> {
    const HELP: &str = "write some of \"input\", \"forward\", \"prerouting\", \"output\", \"postrouting\"";
    let Some(pieces) = pieces(node) else { return wrong(node, format!("takes hooks, not {}", noun_inside(node)), HELP) };
    if pieces.is_empty() {
        return wrong(node, "no hook: this jail can never ban", HELP);
    }
    let mut list = collect(pieces.iter().map(|piece| {
        Hook::ALL.iter().find(|hook| hook.name() == piece.text).copied().ok_or_else(|| {
            let help = nearest(piece.text, Hook::ALL.iter().map(|hook| hook.name()))
                .map_or_else(|| HELP.to_owned(), |name| format!("did you mean \"{name}\"?"));
            vec![piece.wrong(source, format!("unknown hook {}", quoted(piece.text)), help)]
        })
    }))?;
    list.sort();
    list.dedup();
    Ok(list)
}

fn families(node: &Node, source: &Source) -> Result<Vec<Family>, Vec<Wrong>> {
    const HELP: &str = "write \"inet\", \"bridge\" or both";
    let Some(pieces) = pieces(node).filter(|pieces| !pieces.is_empty()) else {
        return wrong(node, format!("takes families, not {}", noun_inside(node)), HELP);
    };
    let mut list = collect(pieces.iter().map(|piece| {
        [Family::Inet, Family::Bridge]
            .into_iter()
            .find(|family| family.name() == piece.text)
            .ok_or_else(|| vec![piece.wrong(source, format!("unknown family {}", quoted(piece.text)), HELP)])
    }))?;
    list.sort();
    list.dedup();
    Ok(list)
}

/// What a priority means in the tables of each family: nft(8) has names for some, with other numbers in the bridge family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    inet: Option<i32>,
    bridge: Option<i32>,
}

impl Priority {
    /// The number in tables of that family; `None` where it has no such name.
    pub const fn of(self, family: Family) -> Option<i32> {
        match family {
            Family::Inet => self.inet,
            Family::Bridge => self.bridge,
        }
    }
}

/// The family of the table that a key of `[nft.priority]` is about.
fn table_of(key: &Key) -> Family {
    if key.name == "bridge" { Family::Bridge } else { Family::Inet }
}

/// What to write as a priority in tables of that family.
pub fn priority_help(family: Family) -> String {
    let names: Vec<&str> = priority_names(family).iter().map(|(name, ..)| *name).collect();
    format!("write a number, or one of {} with an offset, for example \"filter - 10\"", names.join(", "))
}

/// A number, or one of nft(8)'s names with an offset: `-10`, `"filter - 10"`, `"raw"`; it has to mean something in tables of `family`, or
/// of any if that is not known here.
fn priority(node: &Node, family: Option<Family>) -> Result<Priority, Vec<Wrong>> {
    let help = priority_help(family.unwrap_or(Family::Inet));
    // The name, if there is one, and how far from it.
    let (name, offset) = match &node.value {
        Raw::Integer(number) => (None, *number),
        Raw::Text(text) | Raw::Word(text) => {
            let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
            let (name, offset) = text.split_at(text.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(text.len()));
            let digits = offset.trim_start_matches(['+', '-']);
            let number = match (name, offset) {
                ("", _) if offset.len() - digits.len() <= 1 => offset.parse().ok(),
                ("", _) => None,
                (_, "") => Some(0),
                _ if offset.len() - digits.len() == 1 => offset.parse().ok(),
                _ => None,
            };
            let known = |family: &Family| priority_names(*family).iter().any(|(known, ..)| *known == name);
            if number.is_none() || !(name.is_empty() || family.as_ref().map_or_else(|| Family::ALL.iter().any(known), known)) {
                return wrong(node, format!("unknown priority {}", quoted(&text)), help);
            }
            (Some(name.to_owned()).filter(|name| !name.is_empty()), number)
        }
        other => return wrong(node, format!("takes a priority, not {}", other.noun()), help),
    };
    // The range the kernel leaves to others: nft(8) takes any, but near the ends sit its own hooks.
    let Some(offset) = offset.and_then(|number| i32::try_from(number).ok()).filter(|number| number.abs() <= 1_000_000) else {
        return wrong(node, "is out of range", "write a number from -1000000 to 1000000");
    };
    let of = |family: Family| match &name {
        None => Some(offset),
        Some(name) => priority_names(family).iter().find(|(known, ..)| known == name).map(|(_, base, _)| base + offset),
    };
    Ok(Priority { inet: of(Family::Inet), bridge: of(Family::Bridge) })
}

/// Why a path is none.
fn path_fault(text: &str) -> Option<(String, String)> {
    if text.contains("%(") {
        return Some((
            format!("{} is fail2ban's interpolation, and nothing here", quoted(text)),
            "write the path itself".to_owned(),
        ));
    }
    if text.is_empty() {
        return Some(("is empty".to_owned(), "write an absolute path".to_owned()));
    }
    if !text.starts_with('/') {
        return Some((format!("{} is not an absolute path", quoted(text)), "write a path that begins with \"/\"".to_owned()));
    }
    if text.len() > 4095 {
        return Some(("the path is longer than 4095 bytes".to_owned(), "no system opens such a path".to_owned()));
    }
    text.contains('\0').then(|| ("the path holds a NUL byte".to_owned(), "no system opens such a path".to_owned()))
}

fn globs(node: &Node, source: &Source) -> Result<Vec<String>, Vec<Wrong>> {
    const HELP: &str = "write an absolute path, for example \"/var/log/auth.log\"";
    let mut paths = Vec::new();
    match &node.value {
        // In a list each item is one path, blanks and all.
        Raw::List(items) => {
            for item in items {
                match &item.value {
                    Raw::Text(text) => paths.push(Piece { text, node: item, at: None }),
                    other => return wrong(item, format!("takes paths, not {}", other.noun()), HELP),
                }
            }
        }
        Raw::Text(text) if text.contains("%(") => paths.push(Piece { text, node, at: None }),
        Raw::Text(_) | Raw::Word(_) => {
            split(node, &mut paths);
        }
        other => return wrong(node, format!("takes paths, not {}", other.noun()), HELP),
    }
    if paths.is_empty() {
        return wrong(node, "no source: this jail can never ban", HELP);
    }
    collect(paths.iter().map(|piece| {
        if matches!(piece.text, "tail" | "head") {
            return Err(vec![piece.wrong(
                source,
                format!("{} is fail2ban's option, and no path", quoted(piece.text)),
                "leave it out: reading goes on where it stopped, the first time it looks back by findtime",
            )]);
        }
        if matches!(piece.text, "SYSLOG" | "systemd" | "journal") {
            return Err(vec![piece.wrong(
                source,
                format!("{} is fail2ban's word, and no path", quoted(piece.text)),
                "write backend = \"journal\" and leave logpath out",
            )]);
        }
        match path_fault(piece.text) {
            None => Ok(piece.text.to_owned()),
            Some((what, help)) => Err(vec![piece.wrong(source, what, help)]),
        }
    }))
}

/// Entries of a journal. Lines of one text are alternatives, as in fail2ban.
fn matches(node: &Node) -> Result<Meaning, Vec<Wrong>> {
    const HELP: &str = "write \"_SYSTEMD_UNIT=ssh.service + _COMM=sshd\", or a list of such texts";
    let parsed = |node: &Node, text: &str| {
        let lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
        let lines = if lines.is_empty() { vec![String::new()] } else { lines };
        match Match::parse(&lines) {
            Ok(_) => Ok(lines),
            Err(fault) => wrong(node, fault.what, fault.help),
        }
    };
    match &node.value {
        Raw::Text(text) | Raw::Word(text) => parsed(node, text).map(Meaning::Texts),
        Raw::List(items) => {
            let all = collect(items.iter().map(|item| match &item.value {
                Raw::Text(text) => parsed(item, text),
                other => wrong(item, format!("takes text, not {}", other.noun()), HELP),
            }))?;
            Ok(Meaning::Texts(all.concat()))
        }
        other => wrong(node, format!("takes text or a list of texts, not {}", other.noun()), HELP),
    }
}

const IGNORE_HELP: &str = "write an address, a subnet such as \"10.0.0.0/8\", or a host name";

fn ignore(node: &Node, source: &Source) -> Result<IgnoreList, Vec<Wrong>> {
    let Some(pieces) = pieces(node) else {
        return wrong(node, format!("takes addresses, not {}", noun_inside(node)), IGNORE_HELP);
    };
    let mut list = IgnoreList::default();
    for entry in
        collect(pieces.iter().map(|piece| one_ignored(piece.text).map_err(|(what, help)| vec![piece.wrong(source, what, help)])))?
    {
        match entry {
            Ignored::Net(net) => list.nets.push(net),
            Ignored::Name(name) => list.names.push(name),
        }
    }
    Ok(list)
}

/// One entry of an ignore list.
#[derive(Debug, PartialEq)]
pub enum Ignored {
    /// An address or subnet.
    Net(IpNetwork),
    /// A host name.
    Name(String),
}

/// Reads an address, subnet or host name, strictly; or says what is wrong and what to write.
pub fn one_ignored(text: &str) -> Result<Ignored, (String, String)> {
    for planned in ["mx:", "spf:", "file:"] {
        if text.starts_with(planned) {
            return Err((format!("{}: known, but this version does not carry it out yet", quoted(text)), IGNORE_HELP.to_owned()));
        }
    }
    if text.contains(':') || text.contains('/') || text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return network(text).map(Ignored::Net);
    }
    let bare = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = bare.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if bare.len() <= 253 && !numeric && bare.split('.').all(label) {
        return Ok(Ignored::Name(bare.to_ascii_lowercase()));
    }
    if let Some((first, last)) = text.split_once('-')
        && first.parse::<IpAddr>().is_ok()
        && last.parse::<IpAddr>().is_ok()
    {
        return Err((
            format!("{} is a range", quoted(text)),
            "write the subnets that make it up, such as \"10.0.0.0/24\"".to_owned(),
        ));
    }
    Err((format!("{} is neither an address nor a host name", quoted(text)), IGNORE_HELP.to_owned()))
}

/// Reads an address or subnet, strictly: no missing or superfluous digits, no host bits. An IPv4-mapped one is IPv4.
pub fn network(text: &str) -> Result<IpNetwork, (String, String)> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let Ok(ip) = address.parse::<IpAddr>() else {
        if address.contains('%') {
            return Err((
                format!("{} names an interface", quoted(text)),
                "link-local addresses are never judged: leave it out".to_owned(),
            ));
        }
        let zeros = address.split('.').any(|part| part.len() > 1 && part.starts_with('0')) && !address.contains(':');
        let help = if zeros { "write each number without leading zeros".to_owned() } else { IGNORE_HELP.to_owned() };
        return Err((format!("{} is no address", quoted(address)), help));
    };
    let bits: u8 = if ip.is_ipv4() { 32 } else { 128 };
    let length = match prefix {
        None => bits,
        Some(digits)
            if !digits.is_empty()
                && digits.len() <= 3
                && digits.bytes().all(|b| b.is_ascii_digit())
                && (digits == "0" || !digits.starts_with('0')) =>
        {
            match digits.parse::<u8>().ok().filter(|length| *length <= bits) {
                Some(length) => length,
                None => {
                    return Err((format!("/{digits} is longer than the address"), format!("write a prefix from 0 to {bits}")));
                }
            }
        }
        Some(mask) => {
            let length = mask.parse().ok().filter(|_| ip.is_ipv4()).and_then(|mask| ipnetwork::ip_mask_to_prefix(mask).ok());
            let help =
                length.map_or_else(|| format!("write a prefix from 0 to {bits}"), |length| format!("write {address}/{length}"));
            return Err((format!("{} is no prefix length", quoted(mask)), help));
        }
    };
    let (ip, length) = match (crate::terms::fold(ip), ip) {
        (IpAddr::V4(v4), IpAddr::V6(_)) if length >= 96 => (IpAddr::V4(v4), length - 96),
        _ => (ip, length),
    };
    let Ok(net) = IpNetwork::new(ip, length) else {
        return Err((format!("{} is no subnet", quoted(text)), IGNORE_HELP.to_owned()));
    };
    if net.network() != net.ip() {
        let help = format!("write {}/{length} for the subnet or {ip} for the address", net.network());
        return Err((format!("{} has host bits set", quoted(text)), help));
    }
    Ok(net)
}

const FILTER_HELP: &str = "write a name, or { name = \"postfix\", mode = \"aggressive\" }";

/// `sshd`, `postfix[mode=aggressive]`, `{ name = "postfix", mode = "aggressive" }`.
fn filter(node: &Node, source: &Source) -> Result<FilterName, Vec<Wrong>> {
    match &node.value {
        Raw::Text(text) | Raw::Word(text) => {
            let (name, rest) = text.split_at(text.find('[').unwrap_or(text.len()));
            let name = name.trim();
            let at = source.inside(&node.span, &(0..name.len().max(1)));
            let at = if rest.is_empty() { node.span.clone() } else { at };
            filter_name(name, &at)?;
            let params = bracketed(rest)
                .map_err(|what| vec![Wrong { span: node.span.clone(), what, help: Some(FILTER_HELP.to_owned()) }])?;
            let params = params.into_iter().map(|(key, value)| (key, (vec![value], node.span.clone()))).collect();
            Ok(FilterName { name: name.to_owned(), at, params })
        }
        Raw::Table(table) => filter_table(node, table),
        other => wrong(node, format!("takes a filter's name, not {}", other.noun()), FILTER_HELP),
    }
}

/// Whether a filter's name is the path of one of fail2ban's files.
pub fn names_fail2ban(name: &str) -> bool {
    name.starts_with('/') && (name.ends_with(".conf") || name.ends_with(".local")) && name.len() <= 4096
}

fn filter_name(name: &str, at: &Range<usize>) -> Result<(), Vec<Wrong>> {
    let told = |what: String, help: &str| Err(vec![Wrong { span: at.clone(), what, help: Some(help.to_owned()) }]);
    if names_fail2ban(name) {
        return Ok(());
    }
    if name.starts_with('/') || name.ends_with(".conf") || name.ends_with(".local") {
        return told(
            format!("{} is no path of a filter of fail2ban", quoted(name)),
            "write the whole path, for example \"/etc/fail2ban/filter.d/sshd.conf\"",
        );
    }
    if let Some(bare) = name.strip_suffix(".toml") {
        return told(format!("{} is a file's name", quoted(name)), &format!("write \"{}\"", bare.escape_default()));
    }
    match name_fault(name) {
        Some(fault) => told(format!("{} {fault}", quoted(name)), FILTER_HELP),
        None => Ok(()),
    }
}

const AGGREGATE_HELP: &str = "write { v4 = 24, count = 8 }, or false";

/// `{ v4 = 24, v6 = 48, count = 8 }`, or `false`.
fn aggregate(node: &Node) -> Result<Option<Aggregate>, Vec<Wrong>> {
    let table = match &node.value {
        Raw::Bool(false) => return Ok(None),
        Raw::Table(table) => table,
        other => return wrong(node, format!("takes a table, not {}", other.noun()), AGGREGATE_HELP),
    };
    let mut bad = Vec::new();
    let mut number = |name: &str, least: i64, most: i64| {
        let entry = table.get(name)?;
        match &entry.node.value {
            Raw::Integer(Some(number)) if (least..=most).contains(number) => Some(*number),
            other => {
                let what = match other {
                    Raw::Integer(_) => format!("{name} is out of range"),
                    other => format!("{name} is a number, not {}", other.noun()),
                };
                bad.push(Wrong {
                    span: entry.node.span.clone(),
                    what,
                    help: Some(format!("write a number from {least} to {most}")),
                });
                None
            }
        }
    };
    let prefix = |number: i64| u8::try_from(number).ok();
    let found = Aggregate {
        v4: number("v4", 8, 31).and_then(prefix),
        v6: number("v6", 16, 127).and_then(prefix),
        count: number("count", 2, 1_000_000).and_then(|count| u32::try_from(count).ok()).unwrap_or(2),
    };
    for (key, entry) in table.iter().filter(|(key, _)| !matches!(key.as_str(), "v4" | "v6" | "count")) {
        let what = format!("{} is none of v4, v6 and count", quoted(key));
        bad.push(Wrong { span: entry.key.clone(), what, help: Some(AGGREGATE_HELP.to_owned()) });
    }
    let mut lacks =
        |what: &str| bad.push(Wrong { span: node.span.clone(), what: what.to_owned(), help: Some(AGGREGATE_HELP.to_owned()) });
    if !table.contains_key("v4") && !table.contains_key("v6") {
        lacks("neither v4 nor v6 says how wide a subnet is");
    }
    if !table.contains_key("count") {
        lacks("count does not say how many addresses are needed");
    }
    if bad.is_empty() { Ok(Some(found)) } else { Err(bad) }
}

fn filter_table(node: &Node, table: &Table) -> Result<FilterName, Vec<Wrong>> {
    let mut found = FilterName { name: String::new(), at: node.span.clone(), params: BTreeMap::new() };
    let mut bad = Vec::new();
    for (key, entry) in table {
        if key == "name" {
            match &entry.node.value {
                Raw::Text(name) => {
                    if let Err(wrongs) = filter_name(name, &entry.node.span) {
                        bad.extend(wrongs);
                    }
                    found.name.clone_from(name);
                    found.at = entry.node.span.clone();
                }
                other => bad.push(Wrong {
                    span: entry.node.span.clone(),
                    what: format!("a filter's name is text, not {}", other.noun()),
                    help: Some(FILTER_HELP.to_owned()),
                }),
            }
            continue;
        }
        let whole = std::slice::from_ref(&entry.node);
        let items = if let Raw::List(items) = &entry.node.value { items.as_slice() } else { whole };
        let mut values = Vec::new();
        for item in items {
            match &item.value {
                Raw::Text(text) => values.push(text.clone()),
                Raw::Integer(Some(number)) => values.push(number.to_string()),
                Raw::Bool(yes) => values.push(yes.to_string()),
                other => bad.push(Wrong {
                    span: item.span.clone(),
                    what: format!("a filter's parameter is text, not {}", other.noun()),
                    help: Some(FILTER_HELP.to_owned()),
                }),
            }
        }
        found.params.insert(key.clone(), (values, entry.node.span.clone()));
    }
    if !table.contains_key("name") {
        bad.push(Wrong {
            span: node.span.clone(),
            what: "the filter has no name".to_owned(),
            help: Some(FILTER_HELP.to_owned()),
        });
    }
    if bad.is_empty() { Ok(found) } else { Err(bad) }
}

/// fail2ban's parameters in brackets: `[a=b, c="d,e"][f=g]`.
fn bracketed(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut out = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        rest = rest.strip_prefix('[').ok_or_else(|| format!("{} is not a parameter in brackets", quoted(rest)))?;
        loop {
            rest = rest.trim_start_matches([' ', ',', '\n', '\t', '\r']);
            if let Some(after) = rest.strip_prefix(']') {
                rest = after.trim_start();
                break;
            }
            let (key, after) = rest.split_once('=').ok_or_else(|| "the brackets of the parameters are not closed".to_owned())?;
            let after = after.trim_start();
            let (value, after) = match after.chars().next() {
                Some(quote @ ('"' | '\'')) => {
                    after[1..].split_once(quote).ok_or_else(|| "a quote of the parameters is not closed".to_owned())?
                }
                _ => {
                    let end = after.find([',', ']']).ok_or_else(|| "the brackets of the parameters are not closed".to_owned())?;
                    (after[..end].trim_end(), &after[end..])
                }
            };
            out.push((key.trim().to_owned(), value.to_owned()));
            rest = after;
        }
    }
    Ok(out)
}

/// An IANA name, or an offset as fail2ban writes it: `UTC`, `UTC+0200`, `+02:00`.
fn zone(node: &Node) -> Result<jiff::tz::TimeZone, Vec<Wrong>> {
    const HELP: &str = "write a name such as \"Europe/Berlin\", or an offset such as \"UTC+0200\"";
    let (Raw::Text(text) | Raw::Word(text)) = &node.value else {
        return wrong(node, format!("takes a time zone, not {}", node.value.noun()), HELP);
    };
    let offset = text.strip_prefix("UTC").or_else(|| text.strip_prefix("GMT")).unwrap_or(text);
    if offset.is_empty() && !text.is_empty() || text == "Z" {
        return Ok(jiff::tz::TimeZone::UTC);
    }
    if let Some(secs) = zone_offset(offset) {
        return jiff::tz::Offset::from_seconds(secs)
            .map(jiff::tz::TimeZone::fixed)
            .or_else(|_| wrong(node, format!("unknown time zone {}", quoted(text)), HELP));
    }
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-' | b'+')) && text.len() <= 64 {
        if let Ok(zone) = jiff::tz::TimeZone::get(text) {
            return Ok(zone);
        }
        let names: Vec<String> = jiff::tz::db().available().map(|name| name.as_str().to_owned()).collect();
        if let Some(near) = nearest(text, names.iter().map(String::as_str)) {
            return wrong(node, format!("unknown time zone {}", quoted(text)), format!("did you mean \"{near}\"?"));
        }
    }
    wrong(node, format!("unknown time zone {}", quoted(text)), HELP)
}

/// `+0200`, `-03:30`, `+2` in seconds.
fn zone_offset(text: &str) -> Option<i32> {
    let sign = match text.chars().next()? {
        '+' => 1,
        '-' => -1,
        _ => return None,
    };
    let digits: String = text[1..].chars().filter(|c| *c != ':').collect();
    if digits.is_empty() || digits.len() > 4 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: i32 = digits.parse().ok()?;
    let (hours, minutes) = if digits.len() <= 2 { (number, 0) } else { (number / 100, number % 100) };
    (hours <= 18 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Why a name of a jail, filter, mode or table is none, as the end of a sentence that begins with it.
pub fn name_fault(name: &str) -> Option<&'static str> {
    match name.bytes().next() {
        None => Some("is empty"),
        Some(first) if !first.is_ascii_alphabetic() => Some("does not begin with a letter"),
        _ if name.len() > 200 => Some("is longer than 200 bytes"),
        _ if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) => {
            Some("has characters that nft can not print in the name of a set")
        }
        _ => None,
    }
}
