//! `check`, `config show`, `config example`, `ruleset`: what can be said about a configuration without running it.

use std::io::Write;

use super::{Global, NEGATIVE, Shown, load};
use crate::engine::core::{Core, Machine};
use crate::engine::{clock, kernel, machine};
use crate::nft::ruleset::Ruleset;

/// `banset check`
pub fn check(global: &Global, shown: Shown) -> u8 {
    let (_, loaded) = load::read(&load::paths(global));
    let report = &loaded.report;
    if shown.json {
        out(&format!("{}\n", report.json()));
    } else {
        out(&report.to_string());
        let jails = loaded.config.as_ref().map_or(0, |config| config.jails.iter().filter(|jail| jail.filter.is_some()).count());
        match (report.mistakes, report.warnings) {
            (0, 0) => out(&format!("{jails} jails enabled, nothing wrong\n")),
            (mistakes, warnings) => out(&format!("{mistakes} mistakes, {warnings} warnings\n")),
        }
    }
    if report.is_sound() { 0 } else { NEGATIVE }
}

/// `banset ruleset`
pub fn ruleset(global: &Global) -> u8 {
    match ruleset_text(global) {
        Ok(text) => {
            out(&text);
            0
        }
        Err(why) => {
            eprint!("banset: {}\n", why.trim_end());
            NEGATIVE
        }
    }
}

fn ruleset_text(global: &Global) -> Result<String, String> {
    let (_, loaded) = load::read(&load::paths(global));
    let Some(config) = loaded.config else { return Err(loaded.report.to_string()) };
    let machine = machine::read().unwrap_or_else(|_| Machine::default());
    let core = Core::new(load::specs(&config, None)?, machine, clock::now(), 0);
    let wanted = core.establish();
    let plan = kernel::plan(&wanted, true);
    Ok(Ruleset::of(&plan).map_err(|e| e.to_string())?.text())
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
pub fn out(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
