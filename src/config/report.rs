//! What is wrong with a configuration: every mistake of every file, in the order a person reads them.
//!
//! A report is bounded: beyond [`KEPT`] notes it only counts, so a file of a million mistakes costs no more than one of
//! a thousand.

use std::fmt;
use std::ops::Range;

use serde_json::{Value, json};

use super::source::{Excerpt, Source};
use crate::terms;

/// The most notes a report holds.
pub const KEPT: usize = 1000;

/// How grave a note is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// It cannot be carried out: `check` and `reload` refuse.
    Mistake,
    /// It is carried out, and probably not what was meant.
    Warning,
}

/// One thing to say, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How grave.
    pub gravity: Gravity,
    /// The file, or `environment`; bytes of strangers escaped.
    pub path: String,
    /// Line and column from 1; none where the whole file is meant.
    pub position: Option<(usize, usize)>,
    /// What is wrong: lower case, no final dot.
    pub message: String,
    /// The line and its carets.
    pub excerpt: Option<Excerpt>,
    /// What to write instead.
    pub help: Option<String>,
}

/// Every note about a configuration, by file and position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The first [`KEPT`] of them.
    pub notes: Vec<Note>,
    /// How many mistakes there are, those not kept included.
    pub mistakes: usize,
    /// How many warnings there are, those not kept included.
    pub warnings: usize,
}

impl Report {
    /// Whether nothing keeps the configuration from being used as it is.
    pub fn is_sound(&self) -> bool {
        self.mistakes == 0
    }

    /// For programs: `{"mistakes":N,"warnings":N,"notes":[{"kind","path","line","column","message","text","help"}]}`.
    pub fn json(&self) -> Value {
        let notes: Vec<Value> = self.notes.iter().map(Note::json).collect();
        json!({ "mistakes": self.mistakes, "warnings": self.warnings, "notes": notes })
    }
}

impl Note {
    /// Without the cited line: `path:line:column: message`.
    pub fn headline(&self) -> String {
        let warning = if self.gravity == Gravity::Warning { "warning: " } else { "" };
        match self.position {
            Some((line, column)) => format!("{}:{line}:{column}: {warning}{}", self.path, self.message),
            None => format!("{}: {warning}{}", self.path, self.message),
        }
    }

    fn json(&self) -> Value {
        json!({
            "kind": if self.gravity == Gravity::Warning { "warning" } else { "mistake" },
            "path": self.path,
            "line": self.position.map(|(line, _)| line),
            "column": self.position.map(|(_, column)| column),
            "message": self.message,
            "text": self.excerpt.as_ref().map(|excerpt| excerpt.line.as_str()),
            "help": self.help,
        })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline())?;
        if let Some(excerpt) = &self.excerpt {
            writeln!(f, "  {}\n  {}", excerpt.line, excerpt.carets)?;
        }
        match &self.help {
            Some(help) => writeln!(f, "  help: {help}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.notes.iter().try_for_each(|note| note.fmt(f))?;
        let more = (self.mistakes + self.warnings).saturating_sub(self.notes.len());
        if more > 0 {
            writeln!(f, "and {more} more")?;
        }
        Ok(())
    }
}

/// What a mistake keeps from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Concern {
    /// Everything: the configuration cannot be used at all.
    All,
    /// One jail.
    Jail(String),
    /// One filter, and with it the jails that use it.
    Filter(String),
    /// Nothing that runs.
    Nothing,
}

/// What was found so far, not yet in order.
#[derive(Debug, Default)]
pub(super) struct Findings {
    found: Vec<Finding>,
    /// What was told, by file, place and words: a value that several jails share is wrong once.
    told: std::collections::BTreeSet<(usize, usize, String)>,
    mistakes: usize,
    warnings: usize,
    /// Whether a mistake concerns everything.
    pub fatal: bool,
    /// Jails with mistakes, each with its first.
    pub jails: std::collections::BTreeMap<String, Why>,
    /// Jails whose `enabled` is a mistake: they were meant to be enabled.
    pub enabling: std::collections::BTreeSet<String>,
    /// Filters with mistakes, each with its first.
    pub filters: std::collections::BTreeMap<String, Why>,
}

/// The place and words of a jail's or filter's first mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Why {
    /// The file's number.
    pub file: usize,
    /// The byte it begins at.
    pub at: usize,
    /// What is wrong.
    pub what: String,
}

#[derive(Debug)]
struct Finding {
    file: usize,
    span: Option<Range<usize>>,
    gravity: Gravity,
    what: String,
    help: Option<String>,
}

/// Findings are sorted and cut to [`KEPT`] whenever this many have gathered.
const GATHERED: usize = 8 * KEPT;

impl Findings {
    /// Adds a mistake at a place of the file with that number; without a place it is about the whole file.
    pub fn mistake(&mut self, concern: &Concern, file: usize, span: Option<Range<usize>>, what: String, help: Option<String>) {
        let why = || Why { file, at: span.as_ref().map_or(0, |span| span.start), what: what.clone() };
        let first = |map: &mut std::collections::BTreeMap<String, Why>, name: &String| match map.get_mut(name) {
            Some(known) if (known.file, known.at) <= (file, span.as_ref().map_or(0, |span| span.start)) => {}
            Some(known) => *known = why(),
            None => {
                map.insert(name.clone(), why());
            }
        };
        match concern {
            Concern::All => self.fatal = true,
            Concern::Jail(name) => first(&mut self.jails, name),
            Concern::Filter(name) => first(&mut self.filters, name),
            Concern::Nothing => {}
        }
        if self.told.len() < GATHERED && !self.told.insert((file, span.as_ref().map_or(0, |span| span.start), what.clone())) {
            return;
        }
        self.mistakes += 1;
        self.keep(Finding { file, span, gravity: Gravity::Mistake, what, help });
    }

    /// Whether there are so many mistakes that a suggestion for each is not worth its time.
    pub const fn is_crowded(&self) -> bool {
        self.mistakes > KEPT
    }

    /// Adds a warning.
    pub fn warning(&mut self, file: usize, span: Option<Range<usize>>, what: String, help: Option<String>) {
        self.warnings += 1;
        self.keep(Finding { file, span, gravity: Gravity::Warning, what, help });
    }

    fn keep(&mut self, finding: Finding) {
        self.found.push(finding);
        if self.found.len() >= GATHERED {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let place = |f: &Finding| (f.file, f.span.as_ref().map_or(0, |span| span.start));
        self.found.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| a.what.cmp(&b.what)));
        self.found.truncate(KEPT);
    }

    /// The report of what was found, citing from the files.
    pub fn report(mut self, files: &[Source]) -> Report {
        self.cut();
        let notes = self.found.into_iter().map(|finding| {
            let source = files.get(finding.file);
            let place = source.zip(finding.span.as_ref());
            Note {
                gravity: finding.gravity,
                path: source.map_or_else(String::new, |source| terms::escape(source.path.as_bytes(), 4096)),
                position: place.map(|(source, span)| source.position(span.start)),
                excerpt: place.map(|(source, span)| source.excerpt(span)),
                message: finding.what,
                help: finding.help,
            }
        });
        Report { notes: notes.collect(), mistakes: self.mistakes, warnings: self.warnings }
    }
}
