//! The INI reader: two files that may include each other, what they come to, and the patterns in them.

#![no_main]

mod seeds;

use std::collections::BTreeMap;
use std::sync::Arc;

use banset::filter::{Definition, Filter, Options, fail2ban};
use libfuzzer_sys::fuzz_target;

const SEEDS: [&str; 5] = [
    "[Definition]\n_daemon = sshd\nfailregex = ^%(__prefix_line)sbad <F-USER>\\S+</F-USER> from <HOST>$\n    ^x(?! y) <HOST>\nmode = normal\n\0\
     [DEFAULT]\n__prefix_line = \\s*(?:\\S+ )?%(_daemon)s(?:\\[\\d+\\])?:\\s+\n",
    "[Definition]\nfailregex = <mdre-<mode>>\nmdre-normal = ^bad <ADDR>$\nmdre-more = <mdre-normal>\n   ^worse <HOST>\nmode = normal\n\
     prefregex = ^<F-MLFID>\\d+</F-MLFID>: <F-CONTENT>.+</F-CONTENT>$\n\0[Init]\nmaxlines = 10\nmode = more\n",
    "[Definition]\nfailregex = ^(?P<a>x)?(?(a)y|z) <HOST>$\n  ^(a|b)(?=c)\\1 <HOST>\nignoreregex = ^.*x$\ndatepattern = {^LN-BEG}%%Y-%%m-%%d\n   EPOCH\n",
    "# a\n; b\n[A]\nx = 1 ; c\n  2\n\n  3\n[Definition]\ny: %(x)s%%\nfailregex = [^[] <IP4>|<IP6>|<SUBNET>|<DNS>|(?i)x\n\0[A]\nx = %(x)s\n",
    "sshd[mode=aggressive, logtype=\"short\"][x='a,b']",
];

fuzz_target!(init: seeds::write("ini", SEEDS.into_iter().map(|seed| seed.as_bytes().to_vec())), |data: &[u8]| {
    let text = String::from_utf8_lossy(data).into_owned();
    let (first, second) = text.split_once('\0').unwrap_or((&text, ""));
    let reading = |path: &str| {
        Ok(match path {
            "/x.conf" => Some(format!("[INCLUDES]\nbefore = y.conf\n{first}")),
            "/y.conf" => Some(second.to_owned()),
            _ => None,
        })
    };
    let params = BTreeMap::from([("mode".to_owned(), "more".to_owned())]);
    if let Ok(read) = fail2ban::read("/x.conf", &params, &reading) {
        let definition = Definition { name: "x".into(), fail2ban: Some(Arc::new(read)), ..Definition::default() };
        let _ = Filter::compile(&definition, &BTreeMap::new(), &Options::default());
    }
    let _ = fail2ban::resolve::with_options(&text);
});
