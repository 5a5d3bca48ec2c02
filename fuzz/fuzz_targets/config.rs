//! Any bytes in any layer: the loader comes back with a report, bounded and free of control characters.
#![no_main]

use banset::config::sources::{Role, Text};
use banset::config::{Lenient, Shipped, Sources, report, shipped, show, understand};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, String)| {
    let (layer, text) = input;
    let role = match layer % 5 {
        0 => Role::Filter("x".to_owned()),
        1 => Role::Jail("x".to_owned()),
        2 => Role::DropIn,
        3 => Role::Environment,
        _ => Role::Main,
    };
    let sources = Sources { texts: vec![Text { path: "x".to_owned(), role, text, fault: None }] };
    let shipped = Shipped { jails: shipped::JAILS, filters: &[] };
    let loaded = understand(&sources, shipped, &Lenient);
    assert_eq!(loaded.fatal, loaded.config.is_none());
    assert!(loaded.report.notes.len() <= report::KEPT);
    assert!(!loaded.report.to_string().contains('\x1b'));
    let _ = show::merged(&sources, shipped);
});
