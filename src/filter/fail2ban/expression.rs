//! A compiled expression of fail2ban's dialect: linear where it can be, with a bounded backtracking engine where it must.
//!
//! The engine of last resort counts its steps. Beyond the limit the text does not match, which is counted; so no pattern can
//! stall the daemon, whatever a line holds.

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

use super::ahead::Ahead;
use super::dialect::Translated;

/// A compiled expression may take this much memory.
const SIZE: usize = 16 << 20;
/// Steps of the backtracking engine on a text of ordinary length.
const STEPS: usize = 25_000;
/// A text longer than this gets fewer: a step may look at all that is left of it.
const ORDINARY: usize = 4 << 10;
/// Steps on such a text.
const FEW_STEPS: usize = 1_500;
/// Instructions of its program.
const PROGRAM: usize = 200_000;

/// One expression, ready to search with.
#[derive(Debug)]
pub(crate) struct Expression {
    engine: Engine,
    names: Vec<Option<Box<str>>>,
}

#[derive(Debug)]
enum Engine {
    Linear(regex::Regex),
    /// It looks ahead or has conditions.
    Ahead(Box<Ahead>),
    Stepped(Box<Stepped>),
}

#[derive(Debug)]
struct Stepped {
    /// Matches wherever the exact one does.
    loose: Option<regex::Regex>,
    exact: fancy_regex::Regex,
    /// The exact one with fewer steps, for long texts.
    brief: OnceLock<Option<fancy_regex::Regex>>,
    text: String,
}

/// Where the groups of a match are, the whole match first.
pub(crate) type Places = Vec<Option<Range<usize>>>;

/// How often the limit of steps was hit.
#[derive(Debug, Default)]
pub(crate) struct Strain(Cell<u64>);

impl Strain {
    /// How often so far.
    pub fn count(&self) -> u64 {
        self.0.get()
    }
}

impl Expression {
    /// Compiles.
    pub fn new(translated: &Translated) -> Result<Expression, String> {
        let linear = |text: &str| regex::RegexBuilder::new(text).size_limit(SIZE).build();
        if !translated.fancy {
            return match linear(&translated.exact) {
                Ok(regex) => {
                    let names = regex.capture_names().map(|name| name.map(Box::from)).collect();
                    Ok(Expression { engine: Engine::Linear(regex), names })
                }
                Err(regex::Error::CompiledTooBig(limit)) => Err(format!("compiles to more than {} MiB", limit >> 20)),
                Err(regex::Error::Syntax(long)) => Err(last_line(&long)),
                Err(error) => Err(error.to_string()),
            };
        }
        if let Some(ahead) = translated.marked.as_ref().and_then(Ahead::new) {
            let names = ahead.names.clone();
            return Ok(Expression { engine: Engine::Ahead(Box::new(ahead)), names });
        }
        let exact = stepped(&translated.exact, STEPS).map_err(|error| last_line(&error.to_string()))?;
        let names = exact.capture_names().map(|name| name.map(Box::from)).collect();
        let stepped =
            Stepped { loose: linear(&translated.loose).ok(), exact, brief: OnceLock::new(), text: translated.exact.clone() };
        Ok(Expression { engine: Engine::Stepped(Box::new(stepped)), names })
    }

    /// Whether it needs the backtracking engine.
    pub fn backtracks(&self) -> bool {
        matches!(self.engine, Engine::Stepped(_))
    }

    /// The groups by number; the first is the whole match.
    pub fn names(&self) -> &[Option<Box<str>>] {
        &self.names
    }

    /// The number of a group.
    pub fn group(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known.as_deref() == Some(name))
    }

    /// Searches `text` up to `end`, from `start` on.
    pub fn find_within(&self, text: &str, start: usize, end: usize, strain: &Strain) -> Option<Places> {
        let text = text.get(..end)?;
        if !text.is_char_boundary(start) || start > text.len() {
            return None;
        }
        match &self.engine {
            Engine::Linear(regex) => {
                // Most texts do not match, and to know that is cheaper than to know the groups.
                if !regex.is_match_at(text, start) {
                    return None;
                }
                let mut places = regex.capture_locations();
                regex.captures_read_at(&mut places, text, start)?;
                Some((0..places.len()).map(|i| places.get(i).map(|(start, end)| start..end)).collect())
            }
            Engine::Ahead(ahead) => ahead.find(text, start),
            Engine::Stepped(stepped) => stepped.find(text, start, strain),
        }
    }

    /// Searches `text`.
    pub fn find(&self, text: &str, strain: &Strain) -> Option<Places> {
        self.find_within(text, 0, text.len(), strain)
    }

    /// Whether it matches anywhere in `text`.
    pub fn is_match(&self, text: &str, strain: &Strain) -> bool {
        match &self.engine {
            Engine::Linear(regex) => regex.is_match(text),
            Engine::Ahead(ahead) => ahead.is_match(text),
            Engine::Stepped(stepped) => stepped.find(text, 0, strain).is_some(),
        }
    }
}

impl Stepped {
    fn find(&self, text: &str, start: usize, strain: &Strain) -> Option<Places> {
        if self.loose.as_ref().is_some_and(|loose| !loose.is_match_at(text, start)) {
            return None;
        }
        let regex = if text.len() - start > ORDINARY {
            self.brief.get_or_init(|| stepped(&self.text, FEW_STEPS).ok()).as_ref().unwrap_or(&self.exact)
        } else {
            &self.exact
        };
        match regex.captures_from_pos(text, start) {
            Ok(captures) => captures.map(|c| (0..c.len()).map(|i| c.get(i).map(|m| m.start()..m.end())).collect()),
            Err(_) => {
                strain.0.set(strain.0.get() + 1);
                None
            }
        }
    }
}

fn stepped(text: &str, steps: usize) -> Result<fancy_regex::Regex, fancy_regex::Error> {
    fancy_regex::RegexBuilder::new(text).backtrack_limit(steps).delegate_size_limit(SIZE).max_prog_size(PROGRAM).build()
}

/// The sentence at the end of a regex parser's drawing.
fn last_line(text: &str) -> String {
    let line = text.lines().last().unwrap_or_default().trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::dialect::translate;
    use super::*;

    fn expression(pattern: &str) -> Expression {
        Expression::new(&translate(pattern, false).unwrap()).unwrap()
    }

    #[test]
    fn python_and_we_find_the_same() {
        let table: [(&str, &str, Option<&str>); 10] = [
            ("a$", "ba\n", Some("a\n")),
            ("a$", "a\nb", None),
            (r"x(?!y)\w", "xyxz", Some("xz")),
            (r"(a|b)(?P<n>c)\1", "acbbca bcb", Some("bcb")),
            (r"(?P<c>in )?(?(c)x|y)", "in y in x", Some("y")),
            (r"^(?P<c>in )?(?(c)x|y)", "in x", Some("in x")),
            (r"\<a\>", "b<a>", Some("<a>")),
            (r"[^[]+", "[[ab[", Some("ab")),
            (r"(?<=:)\d", "1:2", Some("2")),
            ("é.", "xéü", Some("éü")),
        ];
        for (pattern, text, expected) in table {
            let places = expression(pattern).find(text, &Strain::default());
            let found = places.map(|places| &text[places[0].clone().unwrap()]);
            assert_eq!(found, expected, "{pattern} on {text:?}");
        }
    }

    #[test]
    fn steps_are_bounded_and_counted() {
        let strain = Strain::default();
        let catastrophe = expression(r"^(\w+\s?)+!(?<!!)$");
        for length in [30, 3_000, 100_000] {
            let start = std::time::Instant::now();
            let line = format!("{}!", "ab ".repeat(length));
            assert!(catastrophe.find(&line, &strain).is_none());
            assert!(start.elapsed().as_secs() < 5, "{length}: {:?}", start.elapsed());
        }
        assert_eq!(strain.count(), 3);
    }
}
