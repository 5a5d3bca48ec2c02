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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::dates::{DatePattern, Detector};
    use crate::filter::definition;

    /// A syslog line is, without its date, what the journal's entry is worded as: `HOST IDENT[PID]: MESSAGE`.
    #[test]
    fn shipped_filters_for_the_journal_take_its_lines() {
        let header = regex::Regex::new(r"^ \S+ [\w./()-]+(?:\[\d+\])?: ").unwrap();
        let (mut wrong, mut without, mut tried) = (Vec::new(), Vec::new(), 0);
        for (name, text) in crate::filter::shipped() {
            let definition = definition::parse(name, text).unwrap();
            if definition.journalmatch.is_empty() {
                continue;
            }
            let before = tried;
            for sample in &definition.samples {
                let (Expect::Addr(addr) | Expect::Ok(addr)) = sample.expect else { continue };
                let mut detector = Detector::new(DatePattern::Default, jiff::tz::TimeZone::UTC);
                let (mut chunk, mut times) = (String::new(), Vec::new());
                for line in sample.line.trim_end().lines() {
                    let Some(date) = detector.find(line.as_bytes(), NOW).filter(|date| date.at.start == 0) else { continue };
                    let rest = &line[date.at.end..];
                    if header.is_match(rest) {
                        times.push((chunk.len() as u32, NOW));
                        chunk += rest.trim_start();
                        chunk.push('\n');
                    }
                }
                if times.is_empty() || times.len() != sample.line.trim_end().lines().count() {
                    continue;
                }
                tried += 1;
                let filter = Filter::compile(&definition, &sample.params, &Options::default()).unwrap();
                let mut found = Vec::new();
                Scanner::new(vec![Arc::new(filter)]).scan_timed(
                    chunk.as_bytes(),
                    &times,
                    When { now: NOW, live: true },
                    &mut found,
                );
                if found.is_empty() || found.iter().any(|found| found.addr != addr || found.time != NOW) {
                    wrong.push(format!("{name}: {chunk}"));
                }
            }
            if tried == before {
                without.push(name);
            }
        }
        println!("{tried} samples as lines of the journal; none of {without:?} is a syslog line");
        assert!(wrong.is_empty(), "\n{}", wrong.join(""));
        assert!(tried > 200, "{tried}");
    }

    #[test]
    fn a_sample_that_does_not_hold_is_cited() {
        let text = |sample: &str| {
            format!("failregex = 'bad <F-USER>\\w*</F-USER> <HOST>$'\nokregex = 'good <HOST>$'\n[[sample]]\n{sample}")
        };
        let table = [
            ("line = 'bad bob 192.0.2.1'\naddr = '192.0.2.1'\nuser = 'bob'\nattempts = 1", None),
            ("line = 'Jan 14 21:59:59 bad bob 192.0.2.1'\naddr = '192.0.2.1'\ntime = '2026-01-14T21:59:59Z'", None),
            ("line = 'good 192.0.2.1'\nok = '192.0.2.1'", None),
            ("line = 'well'\naddr = false", None),
            ("line = 'bad bob 192.0.2.1'\naddr = '192.0.2.2'", Some("should be a failure of 192.0.2.2, is of 192.0.2.1")),
            ("line = 'bad bob 192.0.2.1'\naddr = false", Some("should say nothing, says Failure of 192.0.2.1")),
            ("line = 'good 192.0.2.1'\naddr = '192.0.2.1'", Some("should be a failure of 192.0.2.1, is of none")),
            ("line = 'bad bob 192.0.2.1'\nok = '192.0.2.1'", Some("should be a login of 192.0.2.1, is of none")),
            ("line = 'bad bob 192.0.2.1'\naddr = '192.0.2.1'\nuser = 'rob'", Some("account \"rob\"")),
            ("line = 'bad bob 192.0.2.1'\naddr = '192.0.2.1'\nattempts = 2", Some("should count 2, counts 1")),
            ("line = 'Jan 14 21:59:59 bad x 192.0.2.1'\naddr = '192.0.2.1'\ntime = '2026-01-14T22:00:00Z'", Some("should be at")),
            ("line = 'x'\naddr = false\nparams = { mode = 'no' }", Some("no mode \"no\"")),
        ];
        for (sample, wrong) in table {
            let mistakes = super::verify(&definition::parse("x", &text(sample)).unwrap());
            match wrong {
                None => assert_eq!(mistakes, [], "{sample}"),
                Some(wrong) => assert!(mistakes[0].what.contains(wrong), "{sample}: {}", mistakes[0].what),
            }
        }
    }
}
