//! Which entries of a journal, in fail2ban's notation: `_SYSTEMD_UNIT=ssh.service + _COMM=sshd`.
//!
//! Terms that name one field are alternatives, terms of different fields must hold together, and `+` parts whole alternatives,
//! as `sd_journal_add_match(3)` has it. Words with blanks are quoted as in a shell.

use std::fmt;

/// Alternatives in one match, and terms in one alternative.
const MOST: usize = 64;
/// Bytes of one text, and of a field's name (systemd's own limit).
const LONGEST: usize = 4096;
const LONGEST_NAME: usize = 64;

/// A field and the value it must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// The field's name, such as `_SYSTEMD_UNIT`.
    pub field: String,
    /// Its value, compared byte by byte.
    pub value: String,
}

/// A journal that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Journal {
    /// This machine's.
    #[default]
    Own,
    /// That of a namespace of journald (`LogNamespace=` in systemd.exec(5)).
    Namespace(String),
    /// The files in a directory, or one file.
    Path(String),
}

impl Journal {
    /// That which [`Display`](fmt::Display) writes so; `None` if it writes none so.
    pub fn named(name: &str) -> Option<Journal> {
        match name.strip_prefix("journal")? {
            "" => Some(Journal::Own),
            rest => match rest.split_at_checked(1)? {
                ("@", name) => Some(Journal::Namespace(name.to_owned())),
                (":", path) => Some(Journal::Path(path.to_owned())),
                _ => None,
            },
        }
    }

    /// Arguments of journalctl(1) that name it.
    pub fn arguments(&self) -> Vec<String> {
        match self {
            Journal::Own => Vec::new(),
            Journal::Namespace(name) => vec![format!("--namespace={name}")],
            Journal::Path(path) if path.ends_with(".journal") => vec![format!("--file={path}")],
            Journal::Path(path) => vec![format!("--directory={path}")],
        }
    }
}

/// For people, and as the name of its place in the state: `journal`, `journal@NAMESPACE`, `journal:/PATH`.
impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Journal::Own => f.write_str("journal"),
            Journal::Namespace(name) => write!(f, "journal@{name}"),
            Journal::Path(path) => write!(f, "journal:{path}"),
        }
    }
}

/// Which entries are meant. The default means every entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Match {
    /// Alternatives; within each, terms sorted by field. None of them is empty.
    pub alternatives: Vec<Vec<Term>>,
}

/// What is wrong with a text, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which of the texts, from 0.
    pub index: usize,
    /// What.
    pub what: String,
    /// What to write instead.
    pub help: String,
}

const HELP: &str = "write FIELD=value, for example \"_SYSTEMD_UNIT=ssh.service + _COMM=sshd\"";

impl Match {
    /// Reads texts; each is an alternative to the others.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(texts: &[String]) -> Result<Match, Fault> {
        let mut found = Match::default();
        for (index, text) in texts.iter().enumerate() {
            let fault = |what: String, help: &str| Fault { index, what, help: help.to_owned() };
            if text.len() > LONGEST {
                return Err(fault(format!("is longer than {LONGEST} bytes"), HELP));
            }
            let words = words(text).map_err(|what| fault(what.to_owned(), "close the quote"))?;
            if words.is_empty() {
                return Err(fault("is empty".to_owned(), HELP));
            }
            for alternative in words.split(|word| word == "+") {
                if alternative.is_empty() {
                    return Err(fault("nothing stands on one side of \"+\"".to_owned(), HELP));
                }
                let mut terms = Vec::new();
                for word in alternative {
                    terms.push(term(word).map_err(|(what, help)| fault(what, help))?);
                }
                terms.sort();
                terms.dedup();
                if !found.alternatives.contains(&terms) {
                    found.alternatives.push(terms);
                }
            }
            if found.alternatives.len() > MOST || found.alternatives.iter().any(|terms| terms.len() > MOST) {
                return Err(fault(format!("has more than {MOST} alternatives"), "leave some out"));
            }
        }
        Ok(found)
    }

    /// Whether an entry is meant, of which `has` tells which terms hold.
    pub fn holds(&self, mut has: impl FnMut(&Term) -> bool) -> bool {
        self.alternatives.is_empty()
            || self
                .alternatives
                .iter()
                .any(|terms| terms.chunk_by(|a, b| a.field == b.field).all(|same| same.iter().any(&mut has)))
    }

    /// The same as arguments of journalctl(1).
    pub fn arguments(&self) -> Vec<String> {
        let mut all = Vec::new();
        for terms in &self.alternatives {
            if !all.is_empty() {
                all.push("+".to_owned());
            }
            all.extend(terms.iter().map(|term| format!("{}={}", term.field, term.value)));
        }
        all
    }
}

/// As it is written; `every entry` if nothing is asked of one.
impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.alternatives.is_empty() {
            return f.write_str("every entry");
        }
        for (at, word) in self.arguments().iter().enumerate() {
            let blank = if at > 0 { " " } else { "" };
            let plain = !word.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\'));
            match plain {
                true => write!(f, "{blank}{word}")?,
                false => write!(f, "{blank}\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))?,
            }
        }
        Ok(())
    }
}

fn term(word: &str) -> Result<Term, (String, &'static str)> {
    let Some((field, value)) = word.split_once('=') else {
        return Err((format!("{:?} names no value", super::escape(word.as_bytes(), 80)), HELP));
    };
    let letters = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if field.is_empty()
        || field.len() > LONGEST_NAME
        || !field.chars().all(letters)
        || field.starts_with(|c: char| c.is_ascii_digit())
    {
        let help = "fields are written in capital letters, digits and underscores, for example _SYSTEMD_UNIT";
        return Err((format!("{:?} is no field of the journal", super::escape(field.as_bytes(), 80)), help));
    }
    if field.starts_with("__") {
        return Err((format!("{field} is an address of an entry, no field of it"), "match another field"));
    }
    if value.is_empty() {
        return Err((format!("{field} has no value"), HELP));
    }
    if value.contains('\0') {
        return Err((format!("the value of {field} holds a NUL byte"), HELP));
    }
    Ok(Term { field: field.to_owned(), value: value.to_owned() })
}

/// Words as a shell parts them: blanks part, quotes and backslashes hold together.
fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(c) = letters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(letters.next()),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                word.get_or_insert_default();
                quote = Some(c);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() { Err("has a quote that is not closed") } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Match, Fault> {
        Match::parse(&[text.to_owned()])
    }

    fn holds(text: &str, entry: &[&str]) -> bool {
        parse(text).expect(text).holds(|term| entry.contains(&format!("{}={}", term.field, term.value).as_str()))
    }

    #[test]
    fn a_journal_is_known_by_its_name() {
        let all = [Journal::Own, Journal::Namespace("mail".to_owned()), Journal::Path("/srv/j:@".to_owned())];
        for journal in all {
            assert_eq!(Journal::named(&journal.to_string()), Some(journal));
        }
        for name in ["", "/journal", "journals", "journal\u{e9}", "jail"] {
            assert_eq!(Journal::named(name), None, "{name}");
        }
    }

    #[test]
    fn fields_go_together_values_and_plus_part() {
        let ssh = ["_SYSTEMD_UNIT=ssh.service", "_COMM=sshd"];
        let table = [
            ("_SYSTEMD_UNIT=ssh.service", true),
            ("_SYSTEMD_UNIT=sshd.service", false),
            ("_SYSTEMD_UNIT=ssh.service _COMM=sshd", true),
            ("_SYSTEMD_UNIT=ssh.service _COMM=sshd-session", false),
            ("_COMM=sshd-session _SYSTEMD_UNIT=ssh.service _COMM=sshd", true),
            ("_SYSTEMD_UNIT=sshd.service + _COMM=sshd", true),
            ("_SYSTEMD_UNIT=sshd.service + _COMM=sshd-session", false),
            ("'_SYSTEMD_UNIT=ssh.service'", true),
            ("_COMM=\"sshd\"", true),
        ];
        for (text, want) in table {
            assert_eq!(holds(text, &ssh), want, "{text}");
        }
        assert!(Match::default().holds(|_| false), "every entry");
    }

    #[test]
    fn lists_are_alternatives_and_are_shown_as_written() {
        let list =
            ["_COMM=a _PID=1".to_owned(), "_COMM=b".to_owned(), "_COMM=b".to_owned(), "SYSLOG_IDENTIFIER='x y'".to_owned()];
        let found = Match::parse(&list).expect("right");
        assert_eq!(found.to_string(), "_COMM=a _PID=1 + _COMM=b + \"SYSLOG_IDENTIFIER=x y\"");
        assert_eq!(parse(&found.to_string()), Ok(found.clone()));
        assert_eq!(found.arguments(), ["_COMM=a", "_PID=1", "+", "_COMM=b", "+", "SYSLOG_IDENTIFIER=x y"]);
        assert_eq!(Match::default().to_string(), "every entry");
    }

    #[test]
    fn what_is_wrong_is_told() {
        let table = [
            ("", "is empty"),
            ("sshd", "\"sshd\" names no value"),
            ("_COMM=", "_COMM has no value"),
            ("_COMM=a\0--file=b", "the value of _COMM holds a NUL byte"),
            ("_comm=x", "\"_comm\" is no field of the journal"),
            ("1A=x", "\"1A\" is no field of the journal"),
            ("__CURSOR=x", "__CURSOR is an address of an entry, no field of it"),
            ("_COMM=a +", "nothing stands on one side of \"+\""),
            ("+ _COMM=a", "nothing stands on one side of \"+\""),
            ("_COMM='a", "has a quote that is not closed"),
        ];
        for (text, want) in table {
            assert_eq!(parse(text).expect_err(text).what, want, "{text}");
        }
        let fault = Match::parse(&["_COMM=a".to_owned(), "b".to_owned()]).expect_err("the second is wrong");
        assert_eq!(fault.index, 1);
    }
}
