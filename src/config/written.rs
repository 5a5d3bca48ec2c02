//! A file as it was written: a tree of values, each with the bytes it stands at.
//!
//! The TOML parser recovers from errors, so one run finds all of them, and what could be read beside them is still looked
//! at. Nothing here knows a single key.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::source::{Source, quoted};
use crate::terms;

/// Beyond this many bytes a file is read without error recovery: only its first syntax error is told.
const RECOVERED: usize = 1 << 20;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its bytes in the file, quotes included.
    pub span: Range<usize>,
    /// What it is.
    pub value: Raw,
}

/// A value as TOML knows it.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// `true`, `false`
    Bool(bool),
    /// A whole number; `None` beyond 64 bits.
    Integer(Option<i64>),
    /// A number with a fraction.
    Float(f64),
    /// A string.
    Text(String),
    /// A date; no key takes one.
    Date,
    /// `[…]`
    List(Vec<Node>),
    /// `{…}` or `[table]`
    Table(Table),
    /// A word from the environment, where everything is text and may mean any of the above.
    Word(String),
}

/// A table by key.
pub type Table = BTreeMap<String, Entry>;

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key's bytes.
    pub key: Range<usize>,
    /// The value.
    pub node: Node,
}

/// A syntax error, in our words.
#[derive(Clone, Debug, PartialEq)]
pub struct Syntax {
    /// Where.
    pub span: Range<usize>,
    /// What.
    pub what: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl Raw {
    /// What a person calls it.
    pub const fn noun(&self) -> &'static str {
        match self {
            Raw::Bool(_) => "true or false",
            Raw::Integer(_) => "a number",
            Raw::Float(_) => "a number with a fraction",
            Raw::Text(_) | Raw::Word(_) => "text",
            Raw::Date => "a date",
            Raw::List(_) => "a list",
            Raw::Table(_) => "a table",
        }
    }
}

/// Reads a file: what it says, and every place where it is not TOML.
pub fn read(source: &Source) -> (Table, Vec<Syntax>) {
    let text = source.text.as_str();
    let (table, errors) = if text.len() > RECOVERED {
        match DeTable::parse(text) {
            Ok(table) => (table.into_inner(), Vec::new()),
            Err(error) => (DeTable::new(), vec![error]),
        }
    } else {
        let (table, errors) = DeTable::parse_recoverable(text);
        (table.into_inner(), errors)
    };
    let mut errors: Vec<Syntax> = errors.iter().map(|error| reworded(source, error)).collect();
    // One mistake a line: what follows on the same line is mostly its echo.
    errors.sort_by_key(|error| error.span.start);
    errors.dedup_by_key(|error| source.position(error.span.start).0);
    (owned(table), errors)
}

fn owned(table: DeTable<'_>) -> Table {
    table
        .into_iter()
        .map(|(key, value)| (key.get_ref().to_string(), Entry { key: key.span(), node: node(value.span(), value.into_inner()) }))
        .collect()
}

fn node(span: Range<usize>, value: DeValue<'_>) -> Node {
    let value = match value {
        DeValue::String(text) => Raw::Text(text.into_owned()),
        DeValue::Integer(number) => Raw::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
        DeValue::Float(number) => Raw::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(yes) => Raw::Bool(yes),
        DeValue::Datetime(_) => Raw::Date,
        DeValue::Array(items) => Raw::List(items.into_iter().map(|item| node(item.span(), item.into_inner())).collect()),
        DeValue::Table(table) => Raw::Table(owned(table)),
    };
    Node { span, value }
}

/// Says a parser's error in words that tell what to write.
fn reworded(source: &Source, error: &toml::de::Error) -> Syntax {
    let text = source.text.as_str();
    let span = error.span().unwrap_or(0..0);
    let span = super::source::floor(text, span.start)..super::source::ceil(text, span.end);
    let message = error.message();
    let (cause, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let line = source.text_of(source.line(span.start));
    let meant = &text[span.clone()];
    let said = |what: String, help: &str| Syntax { span: span.clone(), what, help: Some(help.to_owned()) };
    if let Some(bare) = bare_value(text, &span).filter(|_| {
        matches!(
            cause,
            "string values must be quoted"
                | "invalid boolean"
                | "invalid float"
                | "invalid integer number"
                | "invalid fraction"
                | "invalid date-time"
                | "missing value"
        )
    }) {
        let whole = &text[bare.clone()];
        let syntax = |what: String, help: String| Syntax { span: bare.clone(), what, help: Some(help) };
        return match whole.to_ascii_lowercase().as_str() {
            "" => syntax("a key without a value".to_owned(), "write key = value; text goes in quotes".to_owned()),
            "true" | "yes" | "on" => syntax(format!("{} is no value", quoted(whole)), "write true".to_owned()),
            "false" | "no" | "off" => syntax(format!("{} is no value", quoted(whole)), "write false".to_owned()),
            _ if whole.contains("%(") => syntax(
                format!("{} is fail2ban's interpolation, and nothing here", quoted(whole)),
                "write the value itself, in quotes".to_owned(),
            ),
            _ => syntax(format!("{} needs quotes", quoted(whole)), format!("write {}", in_quotes(whole))),
        };
    }
    match cause {
        "duplicate key" => said(format!("{} is written twice", quoted(meant)), "keep one of them"),
        "invalid unquoted key" if meant == ":" => said("a key is followed by \"=\"".to_owned(), "write key = value"),
        "key with no value" => said("a key without a value".to_owned(), "write key = value; text goes in quotes"),
        "unexpected key or value" if list_like(line) => {
            said("a list needs brackets or quotes".to_owned(), &format!("write {}", as_text(line)))
        }
        "missing escaped value" => {
            said("no escape that TOML knows".to_owned(), "write patterns in apostrophes, where a backslash is itself: '\\d+'")
        }
        "unclosed table" | "unclosed array table" => {
            said("a header is not closed".to_owned(), &format!("end it with {}", expected.replace('`', "")))
        }
        "missing comma between array elements" | "unexpected `=` in array" | "unclosed array"
            if line.contains('=') || span.start >= text.len() =>
        {
            said("a list is not closed before this".to_owned(), "end it with ]")
        }
        _ if expected == "`\"`" || expected == "`'`" || expected == "`\"\"\"`" || expected == "`\'\'\'`" => {
            said("text is not closed".to_owned(), &format!("end it with {}", expected.replace('`', "")))
        }
        _ if expected.is_empty() || expected == "nothing" => Syntax { span: span.clone(), what: lower(cause), help: None },
        _ => said(lower(cause), &format!("expected here: {expected}")),
    }
}

/// The unquoted value that stands at `span` or right before it, to the end of its line or of its place in a list, without a comment: what
/// its writer took for the value.
fn bare_value(text: &str, span: &Range<usize>) -> Option<Range<usize>> {
    let line = text[..span.start].rfind('\n').map_or(0, |nl| nl + 1);
    let end = text[span.start..].find('\n').map_or(text.len(), |nl| span.start + nl);
    // Numbers are cited where they go wrong, so the value may have begun earlier.
    let before = &text[line..span.start];
    let begin = line + before.rfind(['=', '[', ',', ' ', '\t']).map_or(0, |at| at + 1);
    let inside = before.contains('[');
    let rest = &text[begin..end];
    let stop = rest.find(if inside { &[',', ']', '#'][..] } else { &['#'][..] }).unwrap_or(rest.len());
    let value = rest[..stop].trim_end();
    value.is_char_boundary(0).then_some(begin..begin + value.len())
}

/// A word as it is to be written.
fn in_quotes(word: &str) -> String {
    if word.contains('\\') {
        format!("'{}'", terms::escape(word.replace('\'', "").as_bytes(), 200).replace("\\\\", "\\"))
    } else {
        quoted(word.trim_matches('"'))
    }
}

fn lower(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// Whether the line's value looks like a list that was written without brackets: `port = 25,465`.
fn list_like(line: &str) -> bool {
    line.split_once('=')
        .is_some_and(|(_, value)| value.trim().contains([',', ' ', ':']) && !value.contains(['"', '\'', '[', '{']))
}

/// The line with its value as one text.
fn as_text(line: &str) -> String {
    let (key, value) = line.split_once('=').unwrap_or((line, ""));
    let value = value.split('#').next().unwrap_or("").trim();
    format!("{} = {}", terms::escape(key.trim().as_bytes(), 60), quoted(value))
}
