//! Live globs: `*`, `?` and `[…]` within one component of a path, as in fail2ban's `logpath`.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use glob::{MatchOptions, Pattern};

/// A path as it was asked for: made absolute, cut into components.
#[derive(Clone, Debug)]
pub(super) struct Sought {
    /// As it was asked for, absolute.
    pub path: PathBuf,
    /// One entry per component; empty if no component is a pattern.
    pub steps: Vec<Step>,
}

/// One component of a glob.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Taken literally.
    Name(OsString),
    /// Whatever name fits.
    Fits(Pattern),
}

impl Sought {
    /// Reads a path or glob. A path that exists is taken literally even if it looks like a glob; so is one whose pattern
    /// cannot be parsed.
    pub(super) fn new(text: &str) -> Sought {
        let path = std::path::absolute(text).unwrap_or_else(|_| PathBuf::from(text));
        let plain = !text.contains(['*', '?', '[']) || path.symlink_metadata().is_ok();
        let steps = if plain { None } else { steps(&path) };
        Sought { steps: steps.unwrap_or_default(), path }
    }
}

fn steps(path: &Path) -> Option<Vec<Step>> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(step(name)),
            Component::ParentDir => Some(Some(Step::Name("..".into()))),
            _ => None,
        })
        .collect()
}

fn step(name: &OsStr) -> Option<Step> {
    let text = name.to_str()?;
    if text.contains(['*', '?', '[']) { Pattern::new(text).ok().map(Step::Fits) } else { Some(Step::Name(name.to_owned())) }
}

/// Whether `name` fits; a leading dot must be written out, as in a shell.
pub(super) fn fits(pattern: &Pattern, name: &OsStr) -> bool {
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::default() };
    pattern.matches_with(&name.to_string_lossy(), options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_is_told_from_a_path() {
        assert!(Sought::new("/var/log/mail.log").steps.is_empty());
        let sought = Sought::new("/var/log/*/cur?ent");
        assert!(matches!(&sought.steps[..], [Step::Name(_), Step::Name(_), Step::Fits(_), Step::Fits(_)]));
        assert!(Sought::new("/var/log/[").steps.is_empty(), "no pattern, so a name");
    }

    #[test]
    fn a_star_fits_no_hidden_file() {
        let pattern = Pattern::new("*.log").unwrap();
        assert!(fits(&pattern, OsStr::new("a.log")));
        assert!(!fits(&pattern, OsStr::new(".a.log")));
        assert!(!fits(&pattern, OsStr::new("a.log.1")));
    }
}
