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
        let compiled = match same.and_then(|other| other.compiled.clone()) {
            Some(compiled) => compiled,
            None => {
                let zone = spec.logtimezone.clone().unwrap_or_else(jiff::tz::TimeZone::system);
                let options = filter::Options { logtimezone: zone, ..filter::Options::default() };
                let filter = Filter::compile(&used.definition, &used.params, &options);
                let why =
                    |mistakes: Vec<Mistake>| mistakes.first().map_or_else(String::new, |m| format!("{}: {}", m.key, m.what));
                Compiled(Arc::new(filter.map_err(|mistakes| format!("filter {}: {}", used.name, why(mistakes)))?))
            }
        };
        Arc::make_mut(spec).compiled = Some(compiled);
        known.push(spec.clone());
    }
    Ok(specs)
}
