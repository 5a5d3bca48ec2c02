//! The forged-line corpus: nothing that a stranger writes makes a shipped filter see the address he wrote.
//!
//! Every sample that a filter finds somebody in is forged again and again: the parts that the other side controls (account,
//! HELO, sender, recipient, URL, header, whatever stands in quotes) give way to hostile texts that all name [`FORGED`], the
//! worst of which close the field as the daemon does, write an address, and open it once more. No line of this may be a
//! failure or a login of that address. A filter that says nothing at all would hold too, so the lines in which it still
//! finds the true address are counted, and they must not become few.
//!
//! `cargo test forged -- --nocapture` prints a line for each filter; `BANSET_FORGE=all` tries every line instead of a
//! sample of them; `BANSET_FORGE=NAME` tries every line of one filter and prints those in which it finds nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use regex::Regex;

use super::definition::{Definition, Expect};
use super::{Filter, Options, Scanner, When, definition, shipped};
use crate::terms::Time;

/// Whom the forger wants banned.
const FORGED: &str = "10.9.8.7";
/// As of the samples: 2026-12-31T23:59:59Z.
const NOW: Time = Time::from_secs(1_798_761_599);
/// Lines tried of one filter unless all are wanted.
const BOUND: usize = 400;
/// Of all lines tried, in this share at least the true address is found, in percent.
const TRUE_SHARE: usize = 55;

/// What a forger writes who does not know the line, only the logs of the world.
const HOSTILE: [&str; 25] = [
    " from 10.9.8.7",
    " from 10.9.8.7 port 22 ssh2",
    " from 10.9.8.7 port 22 [preauth]",
    "rip=10.9.8.7",
    ">, rip=10.9.8.7, lip=10.9.8.7, session=<",
    "[10.9.8.7]",
    "[10.9.8.7]:25",
    "client: 10.9.8.7",
    ", client: 10.9.8.7, server: x",
    "host=10.9.8.7",
    " rhost=10.9.8.7",
    ", ip=[10.9.8.7]",
    " ip=10.9.8.7 ",
    "(10.9.8.7)",
    "'10.9.8.7'",
    "\"10.9.8.7\"",
    "<10.9.8.7>",
    "' from '10.9.8.7",
    "\" from \"10.9.8.7",
    "> from <10.9.8.7",
    "10.9.8.7",
    "10.9.8.7:22",
    "10.9.8.7.example.net",
    "x 10.9.8.7 - - ",
    r"x\n10.9.8.7 ",
];

/// Names that samples give to what the other side writes.
const NAMES: [&str; 16] = [
    "bob",
    "root",
    "x",
    "admin",
    "guest",
    "carol",
    "alice",
    "nobody",
    "a@example.net",
    "b@example.org",
    "b@example.com",
    "bob@example.org",
    "nobody@example.org",
    "a@nowhere.invalid",
    "host.example.net",
    "host.example.org",
];

/// What no stranger writes, though it looks so: filter, and a pattern of what stands before it in the line. A filter named
/// `*` is any.
const DAEMONS_OWN: [(&str, &str); 13] = [
    // Host names of the machine itself, at a line's head.
    ("*", r"^\S*$"),
    // Answers and levels of daemons that write JSON.
    ("*", r#""(?:level|time|ts|timestamp|t|lvl|severity|logger|@timestamp|msg|message|error)": ?"$"#),
    ("asterisk", r#"(?:SecurityEvent|EventTV|Severity|Service|EventVersion|LocalAddress|RemoteAddress|UsingPassword)="$"#),
    // A SIP method is a token; the reader of a digest stops at a quote.
    ("asterisk", r#"(?:Request '|ReceivedHash=")$"#),
    ("dovecot", "session=<$"),
    ("managesieve", "session=<$"),
    // The site's own address.
    ("drupal", r": (?:https?://)?$"),
    ("horde", r#"on line \d+ of "?$"#),
    ("nginx-http-auth", "server: $"),
    // What the mail proxy's own authentication server answers.
    ("nginx-http-auth", r#"client login failed: "$"#),
    ("nginx-http-auth", r#"found in "$"#),
    ("nginx-limit-req", r#"(?:zone "|server: )$"#),
    // Where PHP found the mistake; the session.
    ("roundcube", r"(?: in |\]: <)$"),
];
/// Filters that read whatever program's lines, or logs that go through syslog under a tag of the administrator's choice.
const ANY_PROGRAM: [&str; 8] =
    ["apache-badbots", "drupal", "pam-generic", "qmail-chkuser", "qmail-smtp", "vaultwarden", "wordpress", "zabbix"];
/// What a field can not hold: filter, a pattern of what stands before the field, and the text. nginx ends an account at its
/// colon, refuses a host with a blank, and a request that goes on behind its version.
const UNWRITABLE: [(&str, &str, &str); 3] = [
    ("nginx-http-auth", r#"user "[\w ]*$"#, ":"),
    ("nginx-http-auth", r#"host: "?$"#, " "),
    ("nginx-http-auth", r#"request: "[^"]*$"#, " HTTP/"),
];

#[derive(Default)]
struct Tally {
    /// Lines tried.
    lines: usize,
    /// Lines in which the true address was found.
    truth: usize,
    /// Lines in which the forger had his will.
    fooled: Vec<String>,
    /// Lines in which nobody was found.
    lost: Vec<String>,
}

/// Which lines are wanted.
#[derive(Clone, Debug, PartialEq)]
enum Wanted {
    Some,
    All,
}

#[test]
fn no_shipped_filter_sees_an_address_that_a_stranger_wrote() {
    let asked = std::env::var("BANSET_FORGE").unwrap_or_default();
    let wanted = if asked.is_empty() { Wanted::Some } else { Wanted::All };
    let named = |name: &str| asked.is_empty() || asked == "all" || asked == name;
    let filters: Vec<_> = shipped().iter().filter(|(name, _)| named(name)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut tallies = Vec::new();
        while let Some((name, text)) = filters.get(next.fetch_add(1, Ordering::Relaxed)) {
            let definition = definition::parse(name, text).unwrap_or_else(|e| panic!("{e}"));
            tallies.push((*name, forge(&definition, &wanted)));
        }
        tallies
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut tallies: Vec<(&str, Tally)> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    tallies.sort_by_key(|(name, _)| *name);
    let (mut lines, mut truth) = (0, 0);
    let mut wrong = Vec::new();
    for (name, tally) in &tallies {
        println!(
            "{name}: {} forged lines, {} still of the true address, {} fooled",
            tally.lines,
            tally.truth,
            tally.fooled.len()
        );
        if *name == asked {
            tally.lost.iter().for_each(|line| println!("  nobody: {line}"));
        }
        lines += tally.lines;
        truth += tally.truth;
        if tally.truth == 0 {
            wrong.push(format!("{name} finds nobody in any forged line"));
        }
        wrong.extend(tally.fooled.iter().take(12).map(|what| format!("{name} {what}")));
    }
    println!("{} filters: {lines} forged lines, {truth} still of the true address", tallies.len());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(truth * 100 >= lines * TRUE_SHARE, "only {truth} of {lines} forged lines are still of the true address");
}

/// Tries the forged lines of a filter's samples.
fn forge(definition: &Definition, wanted: &Wanted) -> Tally {
    let mut tally = Tally::default();
    let mut scanners: BTreeMap<String, Scanner> = BTreeMap::new();
    let known = samples(definition);
    let mut tries: Vec<(usize, String)> = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, (sample, truth)) in known.iter().enumerate() {
        if sample.line.contains(FORGED) {
            continue;
        }
        let scanner = scanners.entry(format!("{:?}", sample.params)).or_insert_with(|| {
            let filter = Filter::compile(definition, &sample.params, &Options::default()).unwrap();
            Scanner::new(vec![Arc::new(filter)])
        });
        let marked = marked(scanner, &sample.line);
        let others: Vec<String> = known.iter().map(|(other, addr)| other.line.trim().replace(addr, FORGED)).collect();
        for text in forgeries(&definition.name, sample.line.trim(), truth, &marked, &others[..], index, wanted) {
            if seen.insert((index, text.clone())) {
                tries.push((index, text));
            }
        }
    }
    let take = if *wanted == Wanted::All { tries.len() } else { tries.len().min(BOUND) };
    let fresh = scanners.iter().map(|(key, scanner)| (key.clone(), scanner.state())).collect::<BTreeMap<_, _>>();
    for n in 0..take {
        let (index, text) = &tries[n * tries.len() / take];
        let (sample, truth) = &known[*index];
        let key = format!("{:?}", sample.params);
        let scanner = scanners.get_mut(&key).unwrap();
        scanner.restore(fresh[&key].clone());
        let mut found = Vec::new();
        scanner.scan(format!("{text}\n").as_bytes(), When { now: NOW, live: false }, &mut found);
        tally.lines += 1;
        let of = |addr: &str| found.iter().find(|f| f.addr.to_string() == addr);
        tally.truth += usize::from(of(truth).is_some());
        if found.is_empty() {
            tally.lost.push(text.clone());
        }
        if let Some(fooled) = of(FORGED) {
            tally.fooled.push(format!("{:?} {}: {text}", fooled.kind, fooled.pattern));
        }
    }
    tally
}

/// The samples in which somebody is found, and who.
fn samples(definition: &Definition) -> Vec<(&definition::Sample, String)> {
    let found = |sample: &'_ definition::Sample| match sample.expect {
        Expect::Addr(addr) | Expect::Ok(addr) => Some(addr.to_string()),
        Expect::Nothing => None,
    };
    definition.samples.iter().filter_map(|sample| Some((sample, found(sample)?))).collect()
}

/// What the filter itself marks as an account, a reason or a password.
fn marked(scanner: &mut Scanner, text: &str) -> Vec<String> {
    let fresh = scanner.state();
    let mut found = Vec::new();
    scanner.scan(format!("{}\n", text.trim()).as_bytes(), When { now: NOW, live: false }, &mut found);
    scanner.restore(fresh);
    let mut marked = Vec::new();
    for f in &found {
        let line = &text.trim().as_bytes()[f.offset as usize..];
        let secrets = f.secrets.iter().map(|s| &line[s.start as usize..s.end as usize]);
        let texts = f.user.as_deref().into_iter().chain(f.reason.as_deref()).chain(secrets);
        marked.extend(texts.filter(|t| !t.is_empty()).map(|t| String::from_utf8_lossy(t).into_owned()));
    }
    marked
}

/// A sample's forged texts, in an order of their own.
fn forgeries(
    name: &str,
    text: &str,
    truth: &str,
    marked: &[String],
    others: &[String],
    index: usize,
    wanted: &Wanted,
) -> Vec<String> {
    let mut forged = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    // Other lines of the filter that bear a false address: its neighbours among the samples, or all of them.
    let count = if *wanted == Wanted::All { others.len() } else { others.len().min(3) };
    let whole: Vec<&str> = (0..count).flat_map(|n| others[(index + n) % others.len()].lines()).collect();
    for (at, line) in lines.iter().enumerate() {
        let mut push = |new: String| {
            let all: Vec<&str> = lines.iter().enumerate().map(|(i, l)| if i == at { &*new } else { *l }).collect();
            forged.push(all.join("\n"));
        };
        for slot in slots(name, line, truth, marked) {
            let (before, after) = (&line[..slot.start], &line[slot.end..]);
            let escape = escapes(before, after, line);
            let unwritable = unwritable(name, before);
            let host = line[slot.clone()].starts_with("host.");
            for payload in payloads(before, after, &line[slot.clone()], truth, &whole, wanted) {
                if host && !payload.bytes().all(is_of_a_host_name) || unwritable.iter().any(|text| payload.contains(text)) {
                    continue;
                }
                let payload = if is_logfmt(line) && before.ends_with('=') {
                    // A bare value is quoted as soon as it holds a blank or a quote.
                    format!("{payload:?}")
                } else if escape {
                    payload.replace('\\', r"\\").replace('"', "\\\"")
                } else {
                    payload
                };
                push(format!("{before}{payload}{after}"));
            }
        }
        // Another program, or the same one in other words, repeats the whole of it.
        let forgery = line.replace(truth, FORGED);
        if forgery == **line {
            continue;
        }
        // A word before the address of an access log is the site.
        let any = ANY_PROGRAM.contains(&name) || is_access_log(line);
        let message = message(&forgery);
        for head in
            ["Jan 14 21:59:59 mx other[4711]: ", "Jan 14 21:59:59 mx other: ", "<38>1 2026-01-14T21:59:59Z mx other 4711 - - "]
        {
            for said in ["", "x ", "said: ", "x said: "] {
                if any && !said.ends_with(": ") {
                    continue;
                }
                push(format!("{head}{said}{forgery}"));
                push(format!("{head}{said}{}", &forgery[message..]));
                push(format!("{head}{said}message repeated 5 times: [ {}]", &forgery[message..]));
            }
        }
        if message > 0 {
            let (head, message) = forgery.split_at(message);
            push(format!("{head}user x said: {message}"));
            push(format!("{head}x: {forgery}"));
            if !any {
                push(format!("{head}x {message}"));
            }
        }
    }
    forged
}

/// The head of a syslog line.
static HEAD: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(?:\w{3} [ \d]\d [\d:]{8} \S+|\d{4}-\d\d-\d\dT\S+ \S+|\w+) [\w./()-]+(?:\[\d+\])?: ").unwrap()
});

/// Where the message begins behind a syslog line's program; 0 in lines of other kinds.
fn message(line: &str) -> usize {
    HEAD.find(line).map_or(0, |found| found.end())
}

/// Whether the daemon escapes quotes in this field: JSON does, and access logs and logfmt do between quotes.
fn escapes(before: &str, after: &str, line: &str) -> bool {
    let json = line.contains("{\"") && line.ends_with('}');
    let quoted = !before.ends_with(' ') && before.contains('"') && after.contains('"');
    json || quoted && (is_access_log(line) || is_logfmt(line))
}

fn is_access_log(line: &str) -> bool {
    line.contains("] \"") && (line.contains(" HTTP/") || line.contains("\" \""))
}

fn is_logfmt(line: &str) -> bool {
    (line.contains(" level=") || line.contains(" lvl=")) && line.contains(" msg=")
}

/// Fields by their shape: each pattern's first group is what the other side writes.
static SHAPES: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let shapes = [
        r#""((?:[^"\\]|\\.)*)""#,
        r"(?:^|[^\w])[`']([^']*)'",
        r"<([^<>]*)>",
        r#"(?i)(?:^|[\s,;(\[<'"])(?:user|username|login|authid|sasl_username|sasl_sender|acct|account|helo|from|to|sender|recipient|rcpt|mail|ruser|set_id|arg1|ident|cmd|command|id|msg|uri|url|path|query|referer|referrer|request|agent|message-id|msgid|subject)(?:=|: ?)"?([^\s,;<>"')]*[^\s,;<>"').]|)"#,
        r"\s(/[^\s,]*)",
        r#"(https?://[^\s,"'|]*)"#,
    ];
    shapes.iter().map(|shape| Regex::new(shape).unwrap()).collect()
});
static OWN: LazyLock<Vec<(&str, Regex)>> =
    LazyLock::new(|| DAEMONS_OWN.iter().map(|(of, before)| (*of, Regex::new(before).unwrap())).collect());
static CLOSED: LazyLock<Vec<(&str, Regex, &str)>> =
    LazyLock::new(|| UNWRITABLE.iter().map(|(of, before, text)| (*of, Regex::new(before).unwrap(), *text)).collect());

/// The parts of a line that the other side writes.
fn slots(name: &str, line: &str, truth: &str, marked: &[String]) -> Vec<Range<usize>> {
    let mut slots: BTreeSet<(usize, usize)> = BTreeSet::new();
    let word = |at: usize| line.as_bytes().get(at).is_some_and(|c| c.is_ascii_alphanumeric() || b"@.-_".contains(c));
    let texts = marked.iter().map(String::as_str).chain(NAMES);
    for text in texts {
        for (at, _) in line.match_indices(text) {
            if (at == 0 || !word(at - 1)) && !word(at + text.len()) {
                slots.insert((at, at + text.len()));
            }
        }
    }
    for shape in &*SHAPES {
        for found in shape.captures_iter(line) {
            let value = found.get(1).unwrap();
            slots.insert((value.start(), value.end()));
        }
    }
    let strangers = |&(start, end): &(usize, usize)| {
        let value = &line[start..end];
        let machine = !value.is_empty() && !value.contains(|c: char| c.is_ascii_alphabetic()) && value != "-" && value.len() > 1;
        let address = value.contains(truth) || value.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
        let key = line[end..].starts_with("\":") && line.contains("{\"");
        let date = value.starts_with("20") && value.contains('T') && value.contains(':');
        !machine
            && !address
            && !key
            && !date
            && !OWN.iter().any(|(of, before)| (*of == "*" || *of == name) && before.is_match(&line[..start]))
    };
    slots.into_iter().filter(strangers).map(|(start, end)| start..end).collect()
}

/// Hostile texts for a field with this before and behind it.
fn payloads(before: &str, after: &str, value: &str, truth: &str, whole: &[&str], wanted: &Wanted) -> Vec<String> {
    let mut payloads: Vec<String> = Vec::new();
    for hostile in HOSTILE {
        payloads.push(hostile.to_owned());
        payloads.push(format!("{value}{hostile}"));
        payloads.push(format!("{hostile} {value}"));
    }
    for line in whole {
        payloads.push((*line).to_owned());
        payloads.push(format!(r"{value}\n{line}"));
        let message = &line[message(line)..];
        payloads.push(message.to_owned());
        payloads.push(format!("{value}: {message}"));
        payloads.push(format!("{value} message repeated 5 times: [ {message}]"));
        // Closes the field, and the rest is as in another line.
        let close = after.find(|c: char| c.is_ascii_alphanumeric() || c == ' ').unwrap_or(after.len());
        for start in cuts(line, if *wanted == Wanted::All { 16 } else { 5 }) {
            if line[start..].contains(FORGED) {
                payloads.push(format!("{value}{} {}", &after[..close], &line[start..]));
            }
        }
    }
    // Closes the field as the daemon does, goes on as it does with a false address, and opens the field again.
    let (before, after) = (before.replace(truth, FORGED), after.replace(truth, FORGED));
    let most = if *wanted == Wanted::All { 40 } else { 8 };
    for end in cuts(&after, most) {
        for start in cuts(&before, most) {
            let (close, open) = (&after[..end], &before[start..]);
            if close.contains(FORGED) || open.contains(FORGED) {
                payloads.push(format!("{value}{close}{open}z"));
                payloads.push(format!("{value}{close} {open}z"));
            }
        }
    }
    payloads
}

/// What the field behind this can not hold.
fn unwritable(name: &str, before: &str) -> Vec<&'static str> {
    let here = CLOSED.iter().filter(|(of, pattern, _)| *of == name && pattern.is_match(before));
    here.map(|(.., text)| *text).collect()
}

/// Names of hosts come from the resolver, which takes no others.
fn is_of_a_host_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-_".contains(&byte)
}

/// Where a text may be cut: its ends and every place behind what is neither letter nor digit, at most so many.
fn cuts(text: &str, most: usize) -> Vec<usize> {
    let bytes = text.as_bytes();
    let place =
        |at: &usize| *at == 0 || *at == text.len() || text.is_char_boundary(*at) && !bytes[*at - 1].is_ascii_alphanumeric();
    let all: Vec<usize> = (0..=text.len()).filter(place).collect();
    if all.len() <= most {
        return all;
    }
    (0..most).map(|n| all[n * (all.len() - 1) / (most - 1)]).collect()
}
