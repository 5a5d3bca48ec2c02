//! A filter as it was written: strings, samples and parameters, before a single pattern is compiled.
//!
//! The configuration reads these from `filters/*.toml` and `/etc/banset/filter.d/*.toml` and keeps the spans; the
//! importer of fail2ban's files makes them from INI. [`super::Filter::compile`] turns one into something that judges lines.

use std::collections::BTreeMap;

use crate::terms::Span;

/// A filter's file, key by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Definition {
    /// The file's name without `.toml`.
    pub name: String,
    /// One sentence for people.
    pub description: Option<String>,
    /// Versions whose lines the samples were taken from, e.g. `dovecot 2.3.19`.
    pub tested: Vec<String>,
    /// Parameters a jail may set, by name, with their kind and default.
    pub params: BTreeMap<String, Param>,
    /// Texts that patterns pull in as `<NAME>`; they may use tags and each other.
    pub variables: BTreeMap<String, String>,
    /// The patterns for every mode.
    pub patterns: Patterns,
    /// Variants a jail chooses with `mode`; their patterns come on top of, or instead of, the common ones.
    pub modes: BTreeMap<String, Mode>,
    /// Date patterns instead of the default ones, in fail2ban's notation.
    pub datepattern: Vec<String>,
    /// Lines a pattern may span; 1 unless written.
    pub maxlines: u32,
    /// A try that the server reports several times counts once.
    pub once: Option<Once>,
    /// Journal entries this filter is for, in fail2ban's `journalmatch` notation.
    pub journalmatch: Vec<String>,
    /// The evidence.
    pub samples: Vec<Sample>,
}

/// The patterns of a filter or of one of its modes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patterns {
    /// Tried first; only its `<F-CONTENT>` goes on to the others.
    pub prefregex: Option<String>,
    /// A line that one of these matches is a failure.
    pub failregex: Vec<String>,
    /// Unless one of these matches too.
    pub ignoreregex: Vec<String>,
    /// A line that one of these matches is a login that succeeded.
    pub okregex: Vec<String>,
}

/// One mode of a filter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mode {
    /// Other modes whose patterns this one has too.
    pub include: Vec<String>,
    /// Its own patterns: the lists extend the common ones, a `prefregex` replaces the common one.
    pub patterns: Patterns,
}

/// A parameter with its kind; the default is used where a jail sets nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// Words, each matched literally, as `<NAME>` in a pattern; empty means any run of non-blank characters.
    Words(Vec<String>),
    /// Addresses and subnets: a pattern with `<NAME>` matches only where an address stands there that lies in one of
    /// them; with an empty list such a pattern never matches.
    Nets(Vec<ipnetwork::IpNetwork>),
    /// A piece of pattern, put in as it stands.
    Text(String),
}

/// `once = { key = ["addr", "user"], within = "5s" }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Once {
    /// What must be the same for two lines to report one try: `addr`, or a tag's name in lower case (`user`).
    pub key: Vec<String>,
    /// Lines farther apart than this are tries of their own.
    pub within: Span,
}

/// A line and what must be found in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// One line, or several separated by newlines where a try is reported by more than one.
    pub line: String,
    /// What the filter must say.
    pub expect: Expect,
    /// Parameters under which it must say so.
    pub params: BTreeMap<String, Vec<String>>,
    /// The instant the line bears, where the sample states it (RFC 3339).
    pub time: Option<String>,
    /// The account tried, where the sample states it.
    pub user: Option<String>,
    /// How many failures the lines count for, where the sample states it (1 unless written).
    pub attempts: Option<u32>,
}

/// What a sample expects.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    /// `addr = "192.0.2.1"`: a failure of this address.
    Addr(std::net::IpAddr),
    /// `addr = false`: no failure.
    Nothing,
    /// `ok = "192.0.2.1"`: a login success of this address, and no failure.
    Ok(std::net::IpAddr),
}

/// What is wrong with a filter, and where in its text.
#[derive(Clone, Debug, PartialEq)]
pub struct Mistake {
    /// The key, e.g. `failregex`, `mode.aggressive.failregex`, `sample`.
    pub key: String,
    /// Which entry of a list, from 0.
    pub index: usize,
    /// Which bytes of that entry's text; all of it when unknown.
    pub at: Option<std::ops::Range<usize>>,
    /// What is wrong: lower case, no final dot.
    pub what: String,
    /// What to write instead.
    pub help: Option<String>,
}
