//! Any bytes in any layer: the loader comes back with a report, bounded and free of control characters.
//!
//! The first byte says which layer, the rest is the text.
#![no_main]

mod seeds;

use std::sync::OnceLock;

use banset::config::sources::{Role, Text};
use banset::config::{Lenient, Shipped, Sources, example, report, shipped, show, understand};
use banset::filter;
use libfuzzer_sys::fuzz_target;

/// A few jails to build on: all of them would be read anew on every run.
fn jails() -> &'static [(&'static str, &'static str)] {
    static JAILS: OnceLock<Vec<(&str, &str)>> = OnceLock::new();
    let few = || shipped::JAILS.iter().copied().filter(|(name, _)| ["sshd", "dovecot", "qmail-smtp"].contains(name)).collect();
    JAILS.get_or_init(few)
}

/// The annotated example, whole and by sections, every shipped jail and the shorter filters, each in its layer.
fn samples() -> impl Iterator<Item = Vec<u8>> {
    let main = example();
    let sections = main.split("\n[").map(|section| format!("4[{section}")).collect::<Vec<_>>();
    let jails = shipped::JAILS.iter().map(|(_, text)| format!("1{text}"));
    let filters = filter::shipped().iter().filter(|(_, text)| text.len() < 4000).map(|(_, text)| format!("0{text}"));
    let seeds = sections.into_iter().chain(jails).chain(filters).chain([format!("4{main}")]).collect::<Vec<_>>();
    seeds.into_iter().map(String::into_bytes)
}

fuzz_target!(init: seeds::write("config", samples()), |data: &[u8]| {
    let Some((layer, text)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(text).into_owned();
    let role = match layer.wrapping_sub(b'0') % 5 {
        0 => Role::Filter("x".to_owned()),
        1 => Role::Jail("x".to_owned()),
        2 => Role::DropIn,
        3 => Role::Environment,
        _ => Role::Main,
    };
    let sources = Sources { texts: vec![Text { path: "x".to_owned(), role, text, fault: None }] };
    let shipped = Shipped { jails: jails(), filters: &[] };
    let loaded = understand(&sources, shipped, &Lenient);
    assert_eq!(loaded.fatal, loaded.config.is_none());
    assert!(loaded.report.notes.len() <= report::KEPT);
    assert!(!loaded.report.to_string().contains('\x1b'));
    let _ = show::merged(&sources, shipped);
});
