//! From files to specs: the configuration read, its filters compiled, its mistakes told.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Global;
use crate::config::{self, Loaded, Paths, Shipped, Sources};
use crate::engine::Specs;
use crate::engine::spec::Compiled;
use crate::filter::{self, Definition, Filter, Mistake};

/// The files this command line is about.
pub fn paths(global: &Global) -> Paths {
    match &global.config {
        Some(main) => Paths { main: main.clone(), named: true },
        None => Paths::default(),
    }
}

/// What is compiled in.
pub fn shipped() -> Shipped<'static> {
    Shipped { jails: config::shipped::JAILS, filters: filter::shipped() }
}

/// Asks the filter room about filters.
pub struct Filters;

impl config::Judge for Filters {
    fn compile(&self, definition: &Definition, params: &BTreeMap<String, Vec<String>>) -> Vec<Mistake> {
        Filter::compile(definition, params, &filter::Options::default()).err().unwrap_or_default()
    }
    fn verify(&self, definition: &Definition) -> Vec<Mistake> {
        filter::samples::verify(definition)
    }
    fn fail2ban(&self, path: &str, params: &BTreeMap<String, String>) -> Result<config::Fail2ban, Vec<String>> {
        let cited = |list: Vec<filter::fail2ban::Cited>| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let definition = super::regex::imported(path, params).map_err(cited)?;
        let compiled = Filter::compile(&definition, &BTreeMap::new(), &filter::Options::default());
        let placed = |key: &str, index: usize| {
            let place = definition.fail2ban.as_ref().and_then(|resolved| super::regex::place(resolved, key, index));
            place.map_or_else(|| path.to_owned(), |(file, line)| format!("{file}:{line}"))
        };
        match compiled {
            Ok(filter) => {
                let hard: Vec<String> = filter.backtracking().iter().map(|(key, index)| format!("{key} {}", index + 1)).collect();
                let note = format!("{path}: beyond linear time, and run under a limit of steps: {}", hard.join(", "));
                let notes = if hard.is_empty() { Vec::new() } else { vec![note] };
                Ok(config::Fail2ban { definition, notes })
            }
            Err(mistakes) => {
                let cite = |m: &Mistake| format!("{}: {} {}: {}", placed(&m.key, m.index), m.key, m.index + 1, m.what);
                Err(mistakes.iter().map(cite).collect())
            }
        }
    }
}

/// Reads the files.
pub fn read(paths: &Paths) -> (Sources, Loaded) {
    let sources = Sources::read(paths, std::env::vars_os());
    let loaded = config::understand(&sources, shipped(), &Filters);
    (sources, loaded)
}

/// The specs of a configuration, each filter compiled; one that `old` has compiled already is shared.
pub fn specs(config: &config::Config, old: Option<&Specs>) -> Result<Specs, String> {
    let mut specs = Specs::new(config);
    specs.ipv6 = crate::engine::kernel::has_ipv6(config.nft.ipv6);
    let mut known: Vec<Arc<crate::engine::Spec>> = old.map(|old| old.jails.clone()).unwrap_or_default();
    for spec in &mut specs.jails {
        let Some(used) = &spec.filter else { continue };
        let same = known.iter().find(|other| other.filter.as_ref() == Some(used) && other.logtimezone == spec.logtimezone);
        let compile = |definition: &Definition| {
            let zone = spec.logtimezone.clone().unwrap_or_else(jiff::tz::TimeZone::system);
            let options = filter::Options { logtimezone: zone, ..filter::Options::default() };
            let filter = Filter::compile(definition, &used.params, &options);
            let why = |mistakes: Vec<Mistake>| mistakes.first().map_or_else(String::new, |m| format!("{}: {}", m.key, m.what));
            filter.map(|filter| Compiled(Arc::new(filter))).map_err(|mistakes| format!("filter {}: {}", used.name, why(mistakes)))
        };
        let compiled = match same.and_then(|other| other.compiled.clone()) {
            Some(compiled) => compiled,
            None => compile(&used.definition)?,
        };
        let on_journal = match (same.and_then(|other| other.on_journal.clone()), &used.on_journal) {
            (None, Some(definition)) => Some(compile(definition)?),
            (known, _) => known,
        };
        let spec = Arc::make_mut(spec);
        (spec.compiled, spec.on_journal) = (Some(compiled), on_journal);
        known.push(Arc::new(spec.clone()));
    }
    Ok(specs)
}
