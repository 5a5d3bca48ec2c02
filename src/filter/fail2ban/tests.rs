//! The line path, on filters written for these tests.

use std::sync::Arc;

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::judge::{Judge, Outcome};
use super::*;
use crate::filter::{Definition, Filter, Found, Options, Scanner, UseDns, When};
use crate::terms::Time;

/// 2026-01-15T12:00:00Z
const NOW: Time = Time::from_secs(1_768_478_400);

fn filter(text: &str) -> Arc<Filter> {
    let reading = |path: &str| Ok((path == "/x.conf").then(|| text.to_owned()));
    let resolved = read("/x.conf", &BTreeMap::new(), &reading).unwrap_or_else(|cited| panic!("{}", cited[0]));
    let definition = Definition { name: "x".to_owned(), fail2ban: Some(Arc::new(resolved)), ..Definition::default() };
    let options = Options { usedns: UseDns::Raw, ..Options::default() };
    Arc::new(Filter::compile(&definition, &BTreeMap::new(), &options).unwrap_or_else(|m| panic!("{m:?}")))
}

/// What each line gives: `-` nothing, `i` ignored, `c` context, `p` pending, else `ID USERS ATTEMPTS[xREPEATED]`.
fn judged(text: &str, lines: &[&str]) -> Vec<String> {
    let filter = filter(text);
    let rules = filter.foreign.as_ref().unwrap();
    let mut judge = Judge::new(Arc::clone(rules), TimeZone::UTC);
    let mut shown = |line: &&str| match judge.line(line, None, NOW, NOW, None).outcome {
        Outcome::Missed => "-".to_owned(),
        Outcome::Ignored(_) => "i".to_owned(),
        Outcome::Context(_) => "c".to_owned(),
        Outcome::Pending(_) => "p".to_owned(),
        Outcome::Failure(failure) => {
            let times = if failure.repeated > 1 { format!("x{}", failure.repeated) } else { String::new() };
            format!("{} {} {}{times}", failure.id, failure.users.join("+"), failure.attempts)
        }
    };
    lines.iter().map(&mut shown).collect()
}

const SESSIONS: &str = r"
[Definition]
prefregex = ^ d\[<F-MLFID>\d+</F-MLFID>\]: <F-CONTENT>.+</F-CONTENT>$
failregex = ^bad <F-USER>\S+</F-USER>$
    ^<F-NOFAIL>peer</F-NOFAIL> <HOST>$
    ^worse <HOST>(?: by <F-USER>\S+</F-USER>)?$
    ^<F-NOFAIL><F-MLFFORGET>bye</F-MLFFORGET></F-NOFAIL> <HOST>$
    ^<F-MLFGAINED>in</F-MLFGAINED> <HOST> as <F-USER>\S+</F-USER>$
ignoreregex = worse 1\.2\.3\.5
";

#[test]
fn lines_of_one_connection_are_joined() {
    let table: [(&[&str], &[&str]); 7] = [
        (&[" d[1]: peer 1.2.3.4", " d[1]: bad u", " d[1]: bad u"], &["c", "1.2.3.4 u 2", "1.2.3.4 u 1"]),
        (&[" d[1]: bad u", " d[1]: peer 1.2.3.4"], &["p", "1.2.3.4 u 2"]),
        (&[" d[1]: bad u", " d[1]: in 1.2.3.4 as u"], &["p", "c"]),
        (&[" d[1]: bad u", " d[1]: in 1.2.3.4 as v"], &["p", "1.2.3.4 u+v 1"]),
        (&[" d[1]: peer 1.2.3.4", " d[1]: bye 1.2.3.4", " d[1]: bad u"], &["c", "c", "p"]),
        (&[" d[1]: worse 1.2.3.4", " d[2]: worse 1.2.3.5", " d: worse 1.2.3.4"], &["1.2.3.4  1", "i", "-"]),
        (&[" d[1]: worse 1.2.3.4 by u", " d[2]: worse 1.2.3.4 by v"], &["1.2.3.4 u 1", "1.2.3.4 v 1"]),
    ];
    for (lines, expected) in table {
        assert_eq!(judged(SESSIONS, lines), expected, "{lines:?}");
    }
}

#[test]
fn ids_are_what_the_groups_say() {
    let table = [
        ("^id <F-ID>\\S+</F-ID> of <ADDR>$", "id bob of 1.2.3.4", "bob  1"),
        ("^id <F-ID/>$", "id bob", "bob  1"),
        ("^<SUBNET>$", "192.0.2.77/24", "192.0.2.0/24  1"),
        ("^from <HOST>$", "from mail.example.org", "mail.example.org  1"),
        ("^from <HOST>$", "from ::ffff:192.0.2.7", "192.0.2.7  1"),
        ("^from <HOST>$", "from [2001:DB8::1]", "2001:db8::1  1"),
        ("^from <HOST>$", "from 010.1.1.1", "010.1.1.1  1"),
        ("^from <ADDR>$", "from ::", "::  1"),
        ("^from <ADDR>$", "from ::2:3:4:5:6:7:8", "0:2:3:4:5:6:7:8  1"),
        (r"^<F-TUPLE_ID>\w+</F-TUPLE_ID>/<F-TUPLE_ID_1>\w+</F-TUPLE_ID_1> <F-ID>\w+</F-ID>$", "a/b c", "c a b  1"),
        (r"^<F-USER>\S*</F-USER> or <F-ALT_USER>\w+</F-ALT_USER>: <HOST>$", " or bob: 1.2.3.4", "1.2.3.4  1"),
        ("^<IP4> and é$", "1.2.3.4 and é", "1.2.3.4  1"),
    ];
    for (pattern, line, expected) in table {
        assert_eq!(judged(&format!("[Definition]\nfailregex = {pattern}\n"), &[line]), [expected], "{pattern} on {line}");
    }
}

#[test]
fn what_prefregex_names_stays_unless_named_again() {
    let text = "[Definition]\nprefregex = ^ d\\((?:<ADDR>|-)\\): <F-CONTENT>.+</F-CONTENT>$\n\
        failregex = ^bad(?: key of <F-USER>\\w+</F-USER> at <ADDR>)?$\n";
    let lines = [" d(1.2.3.4): bad", " d(-): bad key of u at 1.2.3.5", " d(1.2.3.4): bad key of u at 2001:db8::1"];
    assert_eq!(judged(text, &lines), ["1.2.3.4  1", "1.2.3.5  1", "1.2.3.4  1"]);
}

#[test]
fn several_lines_may_be_one_text() {
    let text = r"
[Definition]
failregex = ^ \[(?P<__c>\d+)\] failed<SKIPLINES> \[(?P=__c)\] end <HOST>$
maxlines = 4
";
    let lines = [" [1] failed", " [2] failed", " [2] end 1.2.3.4", " [1] end 1.2.3.5", " [1] end 1.2.3.5"];
    assert_eq!(judged(text, &lines), ["-", "-", "1.2.3.4  2", "1.2.3.5  2", "-"]);
    let late = [" [1] failed", "a", "b", "c", " [1] end 1.2.3.5"];
    assert_eq!(judged(text, &late), ["-", "-", "-", "-", "-"]);
}

#[test]
fn a_repeated_message_counts_as_often_as_it_says() {
    let text = "[Definition]\nfailregex = ^ mx d\\[\\d+\\]: bad <HOST>$\n";
    let lines = [" mx d[1]: message repeated 3 times: [ bad 1.2.3.4]", " mx d[1]: u: message repeated 3 times: [ bad 1.2.3.4]"];
    assert_eq!(judged(text, &lines), ["1.2.3.4  3x3", "-"]);
}

#[test]
fn a_text_may_be_cut_out_of_any_place() {
    let text = "[Definition]\nfailregex = ^<HOST> - \\[\\] bad$\n";
    assert_eq!(judged(text, &["1.2.3.4 - [14/Jan/2026:21:59:59 +0100] bad"]), ["1.2.3.4  1"]);
}

fn scan(scanner: &mut Scanner, chunk: &[u8], live: bool) -> Vec<Found> {
    let mut found = Vec::new();
    scanner.scan(chunk, When { now: NOW, live }, &mut found);
    found
}

#[test]
fn in_service_it_gives_what_a_jail_counts() {
    let mut scanner = Scanner::new(vec![filter(SESSIONS)]);
    let lines = "Jan 15 11:59:30 d[1]: peer 1.2.3.4\nJan 15 11:59:31 d[1]: bad u\nJan 15 11:00:00 d[2]: worse 1.2.3.9\n\
        Jan 15 11:59:40 d[3]: worse host.example\n";
    let found = scan(&mut scanner, lines.as_bytes(), true);
    let shown: Vec<_> = found.iter().map(|f| (f.addr.to_string(), NOW.secs() - f.time.secs(), f.attempts)).collect();
    // A date that is far off counts as now, and a name is nobody to ban.
    assert_eq!(shown, [("1.2.3.4".to_owned(), 29, 1), ("1.2.3.9".to_owned(), 0, 1)]);
    assert_eq!(found[0].user.as_deref(), Some(&b"u"[..]));
    let saved = serde_json::to_string(&scanner.state()).unwrap();
    let mut again = Scanner::new(vec![filter(SESSIONS)]);
    again.restore(serde_json::from_str(&saved).unwrap());
    assert_eq!(again.state(), scanner.state());
    assert_eq!(scan(&mut again, b"Jan 15 11:59:50 d[1]: bad u\n", true)[0].addr.to_string(), "1.2.3.4");
}

#[test]
fn no_line_takes_long() {
    let filters = [
        filter(SESSIONS),
        filter("[Definition]\nfailregex = ^(?!x)(?:\\w+\\s?)+ from <HOST>(?! y)\n  (\\w+) is \\1 of <HOST>$\n"),
    ];
    for filler in ["x", "ab ", " d[1]: bad ", "1.2.3.4 ", "Jan 15 11:59:30 ", ":1:2::", "é"] {
        let line = format!("Jan 15 11:59:30 d[1]: {} from 1.2.3.4 y\n", filler.repeat(100_000 / filler.len()));
        for filter in &filters {
            let mut scanner = Scanner::new(vec![Arc::clone(filter)]);
            let start = std::time::Instant::now();
            scan(&mut scanner, line.as_bytes(), true);
            // Unoptimized builds are some twenty times slower than what is shipped.
            assert!(start.elapsed().as_millis() < 5_000, "{filler:?}: {:?}", start.elapsed());
        }
    }
}

/// Lines near those that the filters of these tests want.
fn lines() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "Jan 15 11:59:30",
        " d[1]: ",
        " d[2]: ",
        "bad ",
        "peer ",
        "worse ",
        "in ",
        " as ",
        "1.2.3.4",
        "1.2.3.5",
        "u",
        "[14/Jan/2026:21:59:59 +0100]",
        " - ",
        "\u{e9}",
        "message repeated 2 times: [ ",
        "]",
        "\n",
    ]);
    let piece = prop_oneof![9 => pieces.prop_map(|p| p.as_bytes().to_vec()), 1 => prop::collection::vec(any::<u8>(), 1..4)];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 200 } else { 20_000 }))]

    #[test]
    fn the_prefilter_hides_nothing(mut chunk in lines()) {
        thread_local! {
            static FILTERS: [Arc<Filter>; 2] = [
                filter(SESSIONS),
                filter("[Definition]\nfailregex = ^<HOST> - \\[\\] bad\n  (?<!x)worse <HOST>(?! as)\ndatepattern = {^LN-BEG}\n"),
            ];
        }
        chunk.push(b'\n');
        let filters = FILTERS.with(|filters| filters.to_vec());
        for live in [false, true] {
            let (mut filtered, mut plain) = (Scanner::new(filters.clone()), Scanner::new(filters.clone()));
            plain.try_everything();
            let (a, b) = (scan(&mut filtered, &chunk, live), scan(&mut plain, &chunk, live));
            let seen = |found: Vec<Found>| found.into_iter().map(|f| (f.filter, f.offset, f.addr, f.attempts)).collect::<Vec<_>>();
            prop_assert_eq!(seen(a), seen(b));
        }
    }
}

#[test]
fn earlier_lines_of_a_match_are_told() {
    let filter = filter("[Definition]\nfailregex = ^ \\[(?P<c>\\d)\\] bad<SKIPLINES> \\[(?P=c)\\] end <HOST>$\nmaxlines = 5\n");
    let mut trial = crate::filter::trial::Trial::new(filter);
    let mut joined = |line: &str| trial.line(line.as_bytes(), None, NOW, false).joined;
    assert_eq!(joined("Jan 15 11:59:59 [1] bad"), [""; 0]);
    assert_eq!(joined("Jan 15 11:59:59 [2] bad"), [""; 0]);
    assert_eq!(joined("Jan 15 11:59:59 [1] end 1.2.3.4"), ["Jan 15 11:59:59 [1] bad"]);
    assert_eq!(joined("Jan 15 11:59:59 [2] end 1.2.3.4"), ["Jan 15 11:59:59 [2] bad"]);
}
