//! The date path: a date pattern (up to the first newline; none for the default ones) and lines.

#![no_main]

mod seeds;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use banset::filter::dates::{DatePattern, Detector};
use banset::filter::trial::Trial;
use banset::filter::{Definition, Filter, Options, definition, fail2ban, shipped};
use banset::terms::Time;
use jiff::tz::TimeZone;
use libfuzzer_sys::fuzz_target;

const ANY: &str = "[Definition]\nfailregex = <HOST>\n";
/// Compiled date patterns kept: most runs try one again.
const KEPT: usize = 256;
const PATTERNS: [&str; 12] = [
    "",
    "{DATE}",
    "{^LN-BEG}",
    "{^LN-BEG}EPOCH",
    "LEPOCH",
    "TAI64N",
    r"^\[%d/%b/%Y:%H:%M:%S %z\]",
    r"^%%Y-%%m-%%d[T ]%%H:%%M:%%S(?:\.%%f)?(?:%%z)?",
    "%b %d, %ExY %I:%M:%S %p",
    r"(?:%a )?%b %d %k:%M:%S(?: %Exy)? %Z",
    r"**%m/%d/%Exy@%H:%M:%S",
    "{UNB}%Y%m%d%H%M%S %Exz",
];

fn filter(pattern: &str) -> Option<Arc<Filter>> {
    let read = fail2ban::read("/x.conf", &BTreeMap::new(), &|path| Ok((path == "/x.conf").then(|| ANY.to_owned())));
    let definition = Definition { name: "x".into(), fail2ban: Some(Arc::new(read.ok()?)), ..Definition::default() };
    let datepattern = (!pattern.is_empty()).then(|| vec![pattern.to_owned()]);
    let options = Options { datepattern, ..Options::default() };
    Filter::compile(&definition, &BTreeMap::new(), &options).ok().map(Arc::new)
}

/// The heads of the shipped samples, behind each pattern in turn.
fn samples() -> impl Iterator<Item = Vec<u8>> {
    let ours = shipped().iter().flat_map(|(name, text)| definition::parse(name, text).expect("a shipped filter").samples);
    let mut lines: Vec<String> = ours.map(|sample| sample.line.chars().take(60).collect()).collect();
    lines.extend(
        "1768471199.250 x\n[1768471199] x\naudit(1768471199.992:107)\n@4000000069680f1f2a3b4c5d x\n260114  1:46:11\n21:59:59 x\n\
        PDT Jan 14 21:05:29\n01/14/2026:01:57:39\nJan-14-26 02:33:06\n<01/14/26@05:03:30>\n20260114T215959\n+00:00 Jan 14 21:59:59.011 2026"
            .lines()
            .map(str::to_owned),
    );
    let lines: Vec<String> = lines.chunks(3).map(|some| some.join("\n")).collect();
    lines.into_iter().enumerate().map(|(i, lines)| format!("{}\n{lines}", PATTERNS[i % PATTERNS.len()]).into_bytes())
}

thread_local! {
    static FILTERS: RefCell<HashMap<String, Option<Arc<Filter>>>> = RefCell::default();
}

fuzz_target!(init: seeds::write("date", samples()), |data: &[u8]| {
    let now = Time::from_secs(1_768_478_400);
    let mut lines = data.split(|b| *b == b'\n');
    let pattern = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let mut detector = Detector::new(DatePattern::Default, TimeZone::UTC);
    let filter = FILTERS.with_borrow_mut(|kept| {
        if kept.len() > KEPT {
            kept.clear();
        }
        kept.entry(pattern).or_insert_with_key(|pattern| filter(pattern)).clone()
    });
    let mut trial = filter.map(Trial::new);
    for line in lines {
        if let Some(date) = detector.find(line, now) {
            assert!(date.at.end <= line.len());
        }
        if let Some(trial) = &mut trial {
            trial.line(line, None, now, true);
        }
    }
});
