//! The line path: any bytes, through every shipped filter and a few in fail2ban's notation, in service and while catching up.

#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use banset::filter::{Definition, Filter, Options, Scanner, When, definition, fail2ban, shipped};
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

fn filters() -> &'static Vec<Arc<Filter>> {
    static FILTERS: OnceLock<Vec<Arc<Filter>>> = OnceLock::new();
    FILTERS.get_or_init(|| {
        let ours = shipped().iter().map(|(name, text)| definition::parse(name, text).expect("a shipped filter"));
        let imported = [OWN, LINES].into_iter().map(|text| {
            let read = fail2ban::read("/x.conf", &BTreeMap::new(), &|path| Ok((path == "/x.conf").then(|| text.to_owned())));
            Definition { name: "x".into(), fail2ban: Some(Arc::new(read.expect("a filter"))), ..Definition::default() }
        });
        let compile = |d: Definition| Arc::new(Filter::compile(&d, &BTreeMap::new(), &Options::default()).expect("it compiles"));
        ours.chain(imported).map(compile).collect()
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((first, chunk)) = data.split_first() else { return };
    let mut scanner = Scanner::new(filters().clone());
    let mut found = Vec::new();
    let when = When { now: Time::from_secs(1_768_478_400), live: first & 1 == 1 };
    scanner.scan(chunk, when, &mut found);
    let state = scanner.state();
    scanner.restore(state);
    scanner.scan(chunk, when, &mut found);
    for found in found {
        assert!((found.offset + found.len) as usize <= chunk.len());
        assert!(found.time <= when.now);
    }
});
