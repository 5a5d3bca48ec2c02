//! The INI reader: two files that may include each other, what they come to, and the patterns in them.

#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use banset::filter::{Definition, Filter, Options, fail2ban};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
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
