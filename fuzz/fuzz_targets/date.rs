//! The date path: a date pattern (up to the first newline; none for the default ones) and lines.

#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use banset::filter::dates::{DatePattern, Detector};
use banset::filter::trial::Trial;
use banset::filter::{Definition, Filter, Options, fail2ban};
use banset::terms::Time;
use jiff::tz::TimeZone;
use libfuzzer_sys::fuzz_target;

const ANY: &str = "[Definition]\nfailregex = <HOST>\n";

fuzz_target!(|data: &[u8]| {
    let now = Time::from_secs(1_768_478_400);
    let mut lines = data.split(|b| *b == b'\n');
    let pattern = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let mut detector = Detector::new(DatePattern::Default, TimeZone::UTC);
    let read = fail2ban::read("/x.conf", &BTreeMap::new(), &|path| Ok((path == "/x.conf").then(|| ANY.to_owned())));
    let Ok(read) = read else { return };
    let definition = Definition { name: "x".into(), fail2ban: Some(Arc::new(read)), ..Definition::default() };
    let datepattern = (!pattern.is_empty()).then(|| vec![pattern]);
    let options = Options { datepattern, ..Options::default() };
    let filter = Filter::compile(&definition, &BTreeMap::new(), &options).ok();
    let mut trial = filter.map(|filter| Trial::new(Arc::new(filter)));
    for line in lines {
        if let Some(date) = detector.find(line, now) {
            assert!(date.at.end <= line.len());
        }
        if let Some(trial) = &mut trial {
            trial.line(line, None, now, true);
        }
    }
});
