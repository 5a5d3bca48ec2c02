//! `check`, `config show`, `config example`, `ruleset`: what can be said about a configuration without running it.

use serde_json::{Value, json};

use super::{Global, NEGATIVE, Shown, complain, err, load, out, show};
use crate::config::{self, Sources};
use crate::control::{Request, client};
use crate::engine::core::{Core, Machine};
use crate::engine::{clock, kernel, machine};
use crate::nft::ruleset::Ruleset;

/// `banset check`
pub fn check(global: &Global, shown: Shown) -> u8 {
    let (_, loaded) = load::read(&load::paths(global));
    match shown.json {
        true => out(&format!("{}\n", config::check_json(&loaded))),
        false => out(&config::check(&loaded)),
    }
    if loaded.report.is_sound() { 0 } else { NEGATIVE }
}

/// `banset config show`: what the files say, and whether a running daemon goes by something else.
pub fn config_show(global: &Global, shown: Shown) -> u8 {
    let (sources, loaded) = load::read(&load::paths(global));
    if shown.json {
        out(&format!("{}\n", config::merged_json(&sources, load::shipped())));
    } else {
        out(&config::merged(&sources, load::shipped()));
        if let Some(config) = &loaded.config {
            out(&running(global, config));
        }
    }
    if loaded.report.is_sound() {
        return 0;
    }
    err(&loaded.report);
    NEGATIVE
}

/// What a running daemon has accepted otherwise, as comments; nothing if none runs or it agrees.
fn running(global: &Global, files: &config::Config) -> String {
    let Ok(reply) = client::ask(&show::socket(global), Request::Config) else { return String::new() };
    let accepted = reply.result["accepted"].as_str().and_then(|text| Sources::from_snapshot(text.as_bytes()));
    let accepted = accepted.and_then(|sources| config::understand(&sources, load::shipped(), &load::Filters).config);
    let Some(accepted) = accepted else { return String::new() };
    let changes = config::changes(&accepted, files);
    if changes.is_empty() {
        return "\n# the running daemon goes by this\n".to_owned();
    }
    let lines: Vec<String> = changes.iter().map(|change| format!("#   {change}")).collect();
    format!("\n# the running daemon does not know yet, `banset reload` tells it:\n{}\n", lines.join("\n"))
}

/// `banset config example`
pub fn config_example() -> u8 {
    out(&config::example());
    0
}

/// `banset ruleset`
pub fn ruleset(global: &Global, shown: Shown) -> u8 {
    match rulesets(global) {
        Ok(rulesets) if shown.json => {
            let table = |ruleset: &Ruleset| json!({ "family": ruleset.family.name(), "table": ruleset.table, "text": ruleset.to_string() });
            out(&format!("{}\n", rulesets.iter().map(table).collect::<Value>()));
            0
        }
        Ok(rulesets) => {
            out(&rulesets.iter().map(Ruleset::explained).collect::<String>());
            0
        }
        Err(why) => {
            complain(why.trim_end());
            NEGATIVE
        }
    }
}

/// The table of each family in use.
fn rulesets(global: &Global) -> Result<Vec<Ruleset>, String> {
    let (_, loaded) = load::read(&load::paths(global));
    let Some(config) = loaded.config else { return Err(loaded.report.to_string()) };
    let machine = machine::read().unwrap_or_else(|_| Machine::default());
    let mut core = Core::new(load::specs(&config, None)?, machine, clock::now(), 0);
    let wanted = core.establish();
    let tables =
        wanted.specs.families().map(|family| Ruleset::of(&kernel::plan(&wanted, family, true)).map_err(|e| e.to_string()));
    tables.collect()
}
