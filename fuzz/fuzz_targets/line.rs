//! The line path: any bytes, through every shipped filter and a few in fail2ban's notation, in service and while catching up.
//!
//! The first byte says which of the two; what a scanner remembers is set back before each run.

#![no_main]

mod seeds;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use banset::filter::{Definition, Filter, Options, Scanner, State, When, definition, fail2ban, shipped};
use banset::terms::Time;
use libfuzzer_sys::fuzz_target;

const OWN: &str = r"
[Definition]
prefregex = ^\s*\S* ?d\[<F-MLFID>\d+</F-MLFID>\]: <F-CONTENT>.+</F-CONTENT>$
failregex = ^bad <F-USER>\S+|.*?</F-USER>(?! from )$
    ^<F-NOFAIL>peer</F-NOFAIL> <HOST>$
    ^(\w+) is \1 of <HOST>$
    ^<F-MLFGAINED>in</F-MLFGAINED> <HOST> as <F-USER>\S+</F-USER>$
ignoreregex = worse
";
const LINES: &str = r"
[Definition]
failregex = ^ \[(?P<c>\d+)\] failed<SKIPLINES> \[(?P=c)\] end <HOST>$
maxlines = 5
datepattern = ^(?:%%Y-)?%%m-%%d[ T]%%H:%%M:%%S(?:\.%%f)?
";
const FOREIGN: [&str; 4] = [
    "Jan 14 21:59:59 mx d[7]: bad bob of the x\nJan 14 21:59:59 mx d[7]: peer 192.0.2.1\n",
    "Jan 14 21:59:59 mx d[7]: x is x of 192.0.2.1\nJan 14 21:59:59 mx d[8]: worse is worse of 192.0.2.1\n",
    "Jan 14 21:59:59 d[7]: peer 2001:db8::1\nJan 14 21:59:59 d[7]: in 2001:db8::1 as rob\n",
    "2026-01-14 21:59:59 [7] failed\n01-14T21:59:59.5 other\n01-14 21:59:59 [7] end 192.0.2.1\n",
];

fn filters() -> Vec<Arc<Filter>> {
    let ours = shipped().iter().map(|(name, text)| definition::parse(name, text).expect("a shipped filter"));
    let imported = [("own", OWN), ("lines", LINES)].into_iter().map(|(name, text)| {
        let read = fail2ban::read("/x.conf", &BTreeMap::new(), &|path| Ok((path == "/x.conf").then(|| text.to_owned())));
        Definition { name: name.into(), fail2ban: Some(Arc::new(read.expect("a filter"))), ..Definition::default() }
    });
    // Each filter in its widest mode.
    let compile = |d: Definition| {
        let params = match ["aggressive", "ddos", "extra"].into_iter().find(|mode| d.modes.contains_key(*mode)) {
            Some(mode) => BTreeMap::from([("mode".to_owned(), vec![mode.to_owned()])]),
            None => BTreeMap::new(),
        };
        Arc::new(Filter::compile(&d, &params, &Options::default()).expect("it compiles"))
    };
    ours.chain(imported).map(compile).collect()
}

/// Both kinds of reading of every sample, and of each with the one before it.
fn samples() -> impl Iterator<Item = Vec<u8>> {
    let ours = shipped().iter().flat_map(|(name, text)| definition::parse(name, text).expect("a shipped filter").samples);
    let lines: Vec<String> = ours.map(|sample| sample.line + "\n").chain(FOREIGN.map(str::to_owned)).collect();
    let pairs: Vec<String> = lines.windows(2).step_by(3).map(|pair| pair.concat()).collect();
    lines.into_iter().chain(pairs).enumerate().map(|(i, line)| [&[b'0' + (i & 1) as u8][..], line.as_bytes()].concat())
}

thread_local! {
    static SCANNER: RefCell<(Scanner, State)> = {
        let scanner = Scanner::new(filters());
        let fresh = scanner.state();
        RefCell::new((scanner, fresh))
    };
}

fuzz_target!(init: seeds::write("line", samples()), |data: &[u8]| {
    let Some((first, chunk)) = data.split_first() else { return };
    SCANNER.with_borrow_mut(|(scanner, fresh)| {
        scanner.restore(fresh.clone());
        let mut found = Vec::new();
        let when = When { now: Time::from_secs(1_768_478_400), live: first & 1 == 1 };
        scanner.scan(chunk, when, &mut found);
        let state = scanner.state();
        scanner.restore(state.clone());
        assert_eq!(scanner.state(), state);
        scanner.scan(chunk, when, &mut found);
        for found in found {
            assert!((found.offset + found.len) as usize <= chunk.len());
            assert!(found.time <= when.now);
            assert!(found.secrets.iter().all(|secret| secret.start <= secret.end && secret.end <= found.len));
        }
    });
});
