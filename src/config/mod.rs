//! The configuration: files in layers, read with their places, validated as written, merged, and then meant.
//!
//! ```text
//! Sources ─► Source, Table ─► Section ─► Layers (figment) ─► Config
//! the texts   as written       by key     whose word holds    as it runs
//! ```
//! A mistake is told once, with its file, line and column, and all mistakes are told in one run ([`Report`]). What a mistake
//! stops is as small as it can be: one jail, where it stands in one; everything, where it stands in what all share
//! ([`Loaded::fatal`]).
//!
//! A daemon reads [`Sources`] itself and gives them to [`understand`]: what it accepted it keeps with [`Sources::to_snapshot`], and
//! understands that again when it starts over files that no longer are sound.

use std::collections::BTreeMap;

mod build;
mod filters;
pub mod keys;
mod layers;
pub mod report;
pub mod run;
mod services;
pub mod shipped;
pub mod show;
mod source;
pub mod sources;
mod values;
mod written;

pub use report::{Note, Report};
pub use run::{Config, Jail};
pub use show::{changes, check, check_json, example, merged, merged_json};
pub use sources::{Paths, Sources};

use crate::filter::{Definition, Mistake};
use layers::{Layer, Layers};
use report::{Concern, Findings};
use source::Source;
use sources::{Role, Text};

/// What the filter room says of a filter. The configuration knows what a filter's file may hold, not what a pattern means.
pub trait Judge {
    /// What keeps it from being compiled with these parameters.
    fn compile(&self, filter: &Definition, params: &BTreeMap<String, Vec<String>>) -> Vec<Mistake>;
    /// Which of its samples do not hold.
    fn verify(&self, filter: &Definition) -> Vec<Mistake>;
    /// Reads a filter of fail2ban with the parameters a jail gives. A judge that reads no files refuses.
    ///
    /// # Errors
    /// Everything that is wrong with its files, each with its file and line in front.
    fn fail2ban(&self, _path: &str, _params: &BTreeMap<String, String>) -> Result<Fail2ban, Vec<String>> {
        Err(vec!["filters of fail2ban are not read here".to_owned()])
    }
}

/// A filter of fail2ban.
pub struct Fail2ban {
    /// What it says.
    pub definition: Definition,
    /// What a person should know of it: it is used all the same.
    pub notes: Vec<String>,
}

/// A judge without an opinion.
pub struct Lenient;

impl Judge for Lenient {
    fn compile(&self, _: &Definition, _: &BTreeMap<String, Vec<String>>) -> Vec<Mistake> {
        Vec::new()
    }
    fn verify(&self, _: &Definition) -> Vec<Mistake> {
        Vec::new()
    }
}

/// What is compiled in, as pairs of name and text.
#[derive(Clone, Copy, Debug)]
pub struct Shipped<'a> {
    /// The files of `jails/`.
    pub jails: &'a [(&'a str, &'a str)],
    /// The files of `filters/`.
    pub filters: &'a [(&'a str, &'a str)],
}

/// A configuration, or what is left of it.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration with the jails that are sound; nothing if a mistake concerns everything.
    pub config: Option<Config>,
    /// Every mistake and warning.
    pub report: Report,
    /// Whether a mistake concerns everything: go on with the last accepted configuration.
    pub fatal: bool,
}

/// Reads the files and the process's environment, and understands them.
pub fn load(paths: &Paths, shipped: Shipped<'_>, judge: &dyn Judge) -> Loaded {
    understand(&Sources::read(paths, std::env::vars_os()), shipped, judge)
}

/// Understands texts that were read before. Reads nothing but the zones and services of the system.
pub fn understand(sources: &Sources, shipped: Shipped<'_>, judge: &dyn Judge) -> Loaded {
    let mut findings = Findings::default();
    let (files, read) = read(sources, shipped, &mut findings);
    let merged = Layers::merge(&read, &files);
    let filters = merged.filters();
    let config = build::Builder { layers: &merged, files: &files, findings: &mut findings, judge, filters }.config();
    let fatal = findings.fatal;
    Loaded { config: (!fatal).then_some(config), report: findings.report(&files), fatal }
}

/// What the texts say of socket and state directory, however broken they are otherwise: where a daemon that can not use them is
/// asked, and where the last accepted configuration lies.
pub fn rescue(sources: &Sources) -> run::Daemon {
    let mut rescued = run::Daemon::default();
    for text in &sources.texts {
        let source = Source::new(text.path.clone(), text.text.clone());
        let table = match text.role {
            Role::Main | Role::DropIn => written::read(&source).0,
            Role::Environment => sources::environment_table(&source),
            _ => continue,
        };
        let Some(written::Raw::Table(daemon)) = table.get("daemon").map(|entry| &entry.node.value) else { continue };
        let path = |key: &str| match daemon.get(key).map(|entry| &entry.node.value) {
            Some(written::Raw::Text(path) | written::Raw::Word(path)) if path.starts_with('/') => Some(path.into()),
            _ => None,
        };
        rescued.socket = path("socket").unwrap_or(rescued.socket);
        rescued.state_dir = path("state_dir").unwrap_or(rescued.state_dir);
    }
    rescued
}

/// Each text with its number, and what it says.
fn read(sources: &Sources, shipped: Shipped<'_>, findings: &mut Findings) -> (Vec<Source>, Vec<Layer>) {
    let ours = |directory: &str, role: fn(String) -> Role, list: &[(&str, &str)]| {
        let text = |(name, text): &(&str, &str)| Text {
            path: format!("{directory}/{name}.toml (shipped)"),
            role: role((*name).to_owned()),
            text: (*text).to_owned(),
            fault: None,
        };
        list.iter().map(text).collect::<Vec<_>>()
    };
    let texts = ours("filters", Role::ShippedFilter, shipped.filters)
        .into_iter()
        .chain(ours("jails", Role::ShippedJail, shipped.jails))
        .chain(sources.texts.iter().cloned());
    let (mut files, mut layers) = (Vec::new(), Vec::new());
    for (file, text) in texts.enumerate() {
        let source = Source::new(text.path, text.text);
        match text.fault {
            Some(fault) if fault.harmless => findings.warning(file, fault.at, fault.what, fault.help),
            Some(fault) => findings.mistake(&Concern::All, file, fault.at, fault.what, fault.help),
            None => layers.push(layers::read(&source, file, &text.role, findings)),
        }
        files.push(source);
    }
    (files, layers)
}

/// Reads a length of time as a configuration does; the error says what to write instead.
pub fn duration(text: &str) -> Result<crate::terms::Lasting, String> {
    values::duration(text).map_err(|fault| format!("{}\n  help: {}", fault.what, fault.help))
}

#[cfg(test)]
mod tests;
