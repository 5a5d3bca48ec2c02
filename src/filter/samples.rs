//! A filter's own evidence, tried: every sample line must give what it says it gives.

use std::sync::Arc;

use super::definition::{Definition, Expect, Mistake, Sample};
use super::{Filter, Found, Kind, Options, Scanner, When};
use crate::terms::Time;

/// Tries every sample of a definition; lines of one sample go through one scanner, as while catching up, with dates in UTC.
///
/// A sample that expects an address expects every failure to be of it. `now` is the end of the last year a date without
/// a zone can have, so that no sample lies in the future; dates without a year are of that year or the one before.
pub fn verify(definition: &Definition) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (index, sample) in definition.samples.iter().enumerate() {
        let wrong = |what: String, help: Option<String>| Mistake { key: "sample".to_owned(), index, at: None, what, help };
        match Filter::compile(definition, &sample.params, &Options::default()) {
            Ok(filter) => {
                if let Some(what) = tried(filter, sample) {
                    mistakes.push(wrong(what, Some(crate::terms::escape(sample.line.as_bytes(), 400))));
                }
            }
            // Mistakes of the patterns themselves are cited once, not once for each sample.
            Err(why) if index == 0 || !sample.params.is_empty() => mistakes.extend(why),
            Err(_) => {}
        }
    }
    mistakes
}

/// 2026-12-31T23:59:59Z
const NOW: Time = Time::from_secs(1_798_761_599);

/// What a sample gives that it should not, or does not give.
fn tried(filter: Filter, sample: &Sample) -> Option<String> {
    let mut scanner = Scanner::new(vec![Arc::new(filter)]);
    let mut found = Vec::new();
    let mut text = sample.line.trim_end_matches('\n').to_owned();
    text.push('\n');
    scanner.scan(text.as_bytes(), When { now: NOW, live: false }, &mut found);
    let failures: Vec<&Found> = found.iter().filter(|f| f.kind == Kind::Failure).collect();
    let list = |found: &[&Found]| match found {
        [] => "none".to_owned(),
        some => some.iter().map(|f| f.addr.to_string()).collect::<Vec<_>>().join(", "),
    };
    match sample.expect {
        Expect::Nothing if found.is_empty() => return None,
        Expect::Nothing => {
            let all: Vec<&Found> = found.iter().collect();
            return Some(format!("should say nothing, says {:?} of {}", found[0].kind, list(&all)));
        }
        Expect::Addr(addr) => {
            if failures.is_empty() || failures.iter().any(|f| f.addr != addr) {
                return Some(format!("should be a failure of {addr}, is of {}", list(&failures)));
            }
        }
        Expect::Ok(addr) => {
            let oks: Vec<&Found> = found.iter().filter(|f| f.kind == Kind::Ok).collect();
            if !failures.is_empty() || oks.is_empty() || oks.iter().any(|f| f.addr != addr) {
                return Some(format!("should be a login of {addr}, is of {}; failures of {}", list(&oks), list(&failures)));
            }
        }
    }
    let first = &found[0];
    let attempts: u32 = failures.iter().map(|f| f.attempts).sum();
    if !failures.is_empty() && attempts != sample.attempts.unwrap_or(1) {
        return Some(format!("should count {}, counts {attempts}", sample.attempts.unwrap_or(1)));
    }
    if let Some(user) = &sample.user
        && first.user.as_deref() != Some(user.as_bytes())
    {
        let shown = first.user.as_deref().map(|u| crate::terms::escape(u, 200));
        return Some(format!("should be of account {user:?}, is of {shown:?}"));
    }
    if let Some(time) = &sample.time {
        match time.parse::<jiff::Timestamp>() {
            Ok(time) if time.as_microsecond() == first.time.0 => {}
            Ok(time) => {
                let is = jiff::Timestamp::from_microsecond(first.time.0).map_or_else(|e| e.to_string(), |t| t.to_string());
                return Some(format!("should be at {time}, is at {is}"));
            }
            Err(e) => return Some(format!("time: {e}")),
        }
    }
    None
}
