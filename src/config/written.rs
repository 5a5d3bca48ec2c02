//! A file as it was written: a tree of values, each with the bytes it stands at.
//!
//! The TOML parser recovers from errors, so one run finds all of them, and what could be read beside them is still looked
//! at. Nothing here knows a single key.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::source::{Source, quoted};

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
    let span = text.floor_char_boundary(span.start)..text.ceil_char_boundary(span.end);
    let message = error.message();
    let (cause, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let line = line_of(text, span.start);
    let meant = &text[span.clone()];
    let (what, help) = match cause {
        "string values must be quoted" if meant.starts_with("%(") || line.contains("%(") => (
            format!("{} is fail2ban's interpolation, and nothing here", quoted(meant)),
            Some("write the value itself, in quotes".to_owned()),
        ),
        "string values must be quoted" => {
            let whole = rest_of_value(text, &span);
            (format!("{} needs quotes", quoted(whole)), Some(format!("write \"{}\"", whole.escape_default())))
        }
        "invalid boolean" => {
            (format!("{} is no value", quoted(meant)), Some("write true, false, a number, or text in quotes".to_owned()))
        }
        "duplicate key" => {
            let key = meant.to_owned();
            (format!("{} is written twice", quoted(&key)), Some("keep one of them".to_owned()))
        }
        "key with no value" if line.contains(':') && !line.contains('=') => (
            "a key is followed by \"=\", not \":\"".to_owned(),
            Some(format!("write {}", line.trim().replacen(':', " =", 1).escape_debug())),
        ),
        "key with no value" => ("a key without a value".to_owned(), Some("write key = value; text goes in quotes".to_owned())),
        "unexpected key or value" if span.start < text.len() && list_like(text, &span) => {
            ("a list needs brackets or quotes".to_owned(), Some(format!("write {}", as_list(text, &span))))
        }
        _ if expected.is_empty() || expected == "nothing" => (cause.to_owned(), None),
        _ => (cause.to_owned(), Some(format!("expected here: {expected}"))),
    };
    Syntax { span, what: lower(&what), help }
}

fn lower(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// The line around a byte.
fn line_of(text: &str, at: usize) -> &str {
    let begin = text[..at].rfind('\n').map_or(0, |nl| nl + 1);
    let end = text[at..].find('\n').map_or(text.len(), |nl| at + nl);
    &text[begin..end]
}

/// An unquoted value to the end of its line, without a comment: what its writer took for the value.
fn rest_of_value<'a>(text: &'a str, span: &Range<usize>) -> &'a str {
    let line_end = text[span.start..].find('\n').map_or(text.len(), |nl| span.start + nl);
    let rest = &text[span.start..line_end];
    // Inside a list the value ends at the comma or bracket.
    let line = line_of(text, span.start);
    let inside = line[..line.len().min(span.start - (line.as_ptr() as usize - text.as_ptr() as usize))].contains('[');
    let end = rest.find(if inside { &[',', ']', '#'][..] } else { &['#'][..] }).unwrap_or(rest.len());
    rest[..end].trim_end()
}

/// Whether the line's value looks like a list that was written without brackets: `port = 25,465`.
fn list_like(text: &str, span: &Range<usize>) -> bool {
    let line = line_of(text, span.start);
    line.split_once('=').is_some_and(|(_, value)| value.contains([',', ' ', ':']) && !value.contains(['"', '\'', '[', '{']))
}

fn as_list(text: &str, span: &Range<usize>) -> String {
    let line = line_of(text, span.start);
    let (key, value) = line.split_once('=').unwrap_or((line, ""));
    let value = value.split('#').next().unwrap_or("").trim();
    format!("{} = \"{}\"", key.trim().escape_default(), value.escape_default())
}
