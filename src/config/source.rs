//! A file's text and the places in it: from bytes to line and column, and from a string's content back to its bytes.
//!
//! Lines and columns count from 1, columns in characters. What is shown of a line keeps its tabs, so that a caret below
//! it lines up wherever the reader's tab stops are; control characters and bytes that reorder text are escaped.

use std::ops::Range;

use crate::terms;

/// The most characters of one line that a citation shows.
const SHOWN: usize = 200;

/// A file as it was read.
#[derive(Clone, Debug)]
pub struct Source {
    /// What people call it: a path, or `environment`.
    pub path: String,
    /// All of it.
    pub text: String,
    /// Where each line begins.
    lines: Vec<usize>,
}

/// A line as a person sees it, with carets under the part that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The line.
    pub line: String,
    /// Blanks, tabs and carets.
    pub carets: String,
}

impl Source {
    /// Takes a text apart into its lines.
    pub fn new(path: String, text: String) -> Source {
        let lines = std::iter::once(0).chain(memchr::memchr_iter(b'\n', text.as_bytes()).map(|at| at + 1)).collect();
        Source { path, text, lines }
    }

    /// The line of a byte, from 1.
    pub fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|begin| *begin <= at).max(1)
    }

    /// How many lines there are.
    pub const fn line_count(&self) -> usize {
        self.lines.len()
    }

    /// The text of a line, without its end.
    pub fn text_of(&self, line: usize) -> &str {
        let Some(begin) = line.checked_sub(1).and_then(|line| self.lines.get(line)) else { return "" };
        let end = self.lines.get(line).map_or(self.text.len(), |next| next - 1);
        self.text[*begin..end].trim_end_matches('\r')
    }

    /// The line and column of a byte, both from 1. A place past the end is the end; one inside a character is its begin.
    pub fn position(&self, at: usize) -> (usize, usize) {
        let at = floor(&self.text, at);
        let line = self.line(at);
        (line, self.text[self.lines[line - 1]..at].chars().count() + 1)
    }

    /// The line that `span` begins in, with carets under as much of the span as stands in it, and at least one.
    pub fn excerpt(&self, span: &Range<usize>) -> Excerpt {
        let at = floor(&self.text, span.start);
        let line = self.line(at);
        let begin = self.lines[line - 1];
        let text = self.text_of(line);
        let mut out = Excerpt { line: String::new(), carets: String::new() };
        // A line too long to show is cut on both sides of what is meant.
        let before = &self.text[begin..at];
        let far = before.char_indices().rev().nth(SHOWN * 3 / 4).is_some();
        let from = if far { before.char_indices().rev().nth(SHOWN / 2).map_or(0, |(at, _)| at) } else { 0 };
        if far {
            out.line.push('…');
            out.carets.push(' ');
        }
        for (seen, (offset, c)) in text.get(from..).unwrap_or("").char_indices().enumerate() {
            if seen == SHOWN {
                out.line.push('…');
                break;
            }
            let place = begin + from + offset;
            let (shown, width) = show(c);
            out.line.push_str(&shown);
            if place < at {
                if c == '\t' { out.carets.push('\t') } else { out.carets.extend(std::iter::repeat_n(' ', width)) }
            } else if place < span.end {
                out.carets.extend(std::iter::repeat_n('^', width));
            }
        }
        if !out.carets.contains('^') {
            out.carets.push('^');
        }
        out
    }

    /// Which bytes of the file hold the bytes `at` of the content of the string that stands at `span`. If the string cannot be
    /// followed (it was put together from several places), all of it.
    pub fn inside(&self, span: &Range<usize>, at: &Range<usize>) -> Range<usize> {
        self.follow(span, at).unwrap_or_else(|| span.clone())
    }

    fn follow(&self, span: &Range<usize>, at: &Range<usize>) -> Option<Range<usize>> {
        let raw = self.text.get(span.clone())?;
        let quote = raw.chars().next().filter(|c| matches!(c, '"' | '\''));
        let Some(quote) = quote else {
            // A bare word, as in the environment.
            return Some(span.start + at.start..(span.start + at.end).min(span.end));
        };
        let triple = raw.len() >= 6 && raw.as_bytes()[1] == quote as u8 && raw.as_bytes()[2] == quote as u8;
        let fence = if triple { 3 } else { 1 };
        let inner = raw.get(fence..raw.len().checked_sub(fence)?)?;
        let mut from = fence;
        if triple {
            // TOML: a newline right after the opening delimiter is not part of the string.
            from += if inner.starts_with("\r\n") { 2 } else { usize::from(inner.starts_with('\n')) };
        }
        let end = raw.len() - fence;
        if quote == '\'' {
            let (start, stop) = (from + at.start, from + at.end);
            return (stop <= end).then(|| span.start + start..span.start + stop);
        }
        let mut decoded = 0;
        let mut raw_at = from;
        let mut start = None;
        while raw_at < end {
            if start.is_some() && decoded >= at.end.max(at.start + 1) {
                break;
            }
            let rest = &raw[raw_at..end];
            let (taken, yields) = escape_length(rest);
            // What yields nothing, a line's end behind a backslash, belongs to no character.
            if start.is_none() && decoded >= at.start && yields > 0 {
                start = Some(raw_at);
            }
            raw_at += taken;
            decoded += yields;
        }
        let start = start.unwrap_or(raw_at);
        Some(span.start + start..span.start + raw_at.max(start))
    }
}

/// How many bytes the first character of a basic string's raw text takes, and how many its meaning has.
fn escape_length(rest: &str) -> (usize, usize) {
    let mut chars = rest.chars();
    match (chars.next(), chars.next()) {
        (Some('\\'), Some(kind @ ('u' | 'U' | 'x'))) => {
            let digits = match kind {
                'u' => 4,
                'U' => 8,
                _ => 2,
            };
            let code = rest.get(2..2 + digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
            let yields = code.and_then(char::from_u32).map_or(1, char::len_utf8);
            ((2 + digits).min(rest.len()), yields)
        }
        // A line ending in a backslash: it and the blanks that follow are nothing.
        (Some('\\'), Some(c)) if c.is_whitespace() => (1 + rest[1..].len() - rest[1..].trim_start().len(), 0),
        (Some('\\'), Some(c)) => (1 + c.len_utf8(), 1),
        (Some(c), _) => (c.len_utf8(), c.len_utf8()),
        (None, _) => (1, 0),
    }
}

/// A character as it is shown, and how many columns of a terminal that takes.
fn show(c: char) -> (String, usize) {
    if matches!(c, '\t' | '\\') {
        return (c.to_string(), 1);
    }
    let mut buffer = [0; 4];
    let shown = terms::escape(c.encode_utf8(&mut buffer).as_bytes(), 4);
    let width = if shown.starts_with('\\') { shown.len() } else { width(c) };
    (shown, width)
}

/// The columns a character takes on a terminal: 0 for marks that join the one before, 2 for the wide ones (Unicode
/// Standard Annex 11, the blocks that are wide throughout), else 1.
const fn width(c: char) -> usize {
    match c as u32 {
        0x0300..=0x036f
        | 0x0483..=0x0489
        | 0x0591..=0x05bd
        | 0x1ab0..=0x1aff
        | 0x1dc0..=0x1dff
        | 0x200b..=0x200d
        | 0x20d0..=0x20ff
        | 0xfe00..=0xfe0f
        | 0xfe20..=0xfe2f => 0,
        0x1100..=0x115f
        | 0x2e80..=0x303e
        | 0x3041..=0x33ff
        | 0x3400..=0x4dbf
        | 0x4e00..=0x9fff
        | 0xa000..=0xa4cf
        | 0xa960..=0xa97f
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f680..=0x1f6ff
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// The last boundary of a character at or before a byte.
pub fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The first boundary of a character at or after a byte.
pub fn ceil(text: &str, at: usize) -> usize {
    (at..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}

/// A stranger's word as a message names it.
pub fn shown(word: &str) -> String {
    terms::escape(word.as_bytes(), floor(word, 60))
}

/// A stranger's word as a message quotes it.
pub fn quoted(word: &str) -> String {
    format!("\"{}\"", shown(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cited(text: &str, span: Range<usize>) -> (usize, usize, String) {
        let source = Source::new("x".to_owned(), text.to_owned());
        let (line, column) = source.position(span.start);
        let excerpt = source.excerpt(&span);
        (line, column, format!("{}\n{}", excerpt.line, excerpt.carets))
    }

    #[test]
    fn columns_count_characters_and_carets_keep_tabs() {
        assert_eq!(cited("a = 1\n\tb = \"xy\"\n", 11..15), (2, 6, "\tb = \"xy\"\n\t    ^^^^".to_owned()));
        assert_eq!(cited("é = 1", 5..6), (1, 5, "é = 1\n    ^".to_owned()));
        assert_eq!(cited("x = [\"日本\", 1]", 14..15), (1, 11, "x = [\"日本\", 1]\n            ^".to_owned()));
        assert_eq!(cited("x = \u{1b}[31m", 8..9), (1, 9, "x = \\x1b[31m\n           ^".to_owned()));
    }

    #[test]
    fn a_place_at_or_past_the_end_still_has_a_caret() {
        assert_eq!(cited("ab", 2..2), (1, 3, "ab\n  ^".to_owned()));
        assert_eq!(cited("ab\n", 3..3), (2, 1, "\n^".to_owned()));
        assert_eq!(cited("", 9..12), (1, 1, "\n^".to_owned()));
        assert_eq!(cited("ab\r\ncd", 0..6), (1, 1, "ab\n^^".to_owned()));
    }

    #[test]
    fn a_long_line_is_cut_around_what_is_meant() {
        let text = format!("{}wrong{}", "x".repeat(5000), "y".repeat(5000));
        let (line, column, shown) = cited(&text, 5000..5005);
        assert_eq!((line, column), (1, 5001));
        assert!(shown.len() < 450, "{}", shown.len());
        let (above, below) = shown.split_once('\n').unwrap();
        assert_eq!(above.chars().skip(below.find('^').unwrap()).take(5).collect::<String>(), "wrong");
    }

    #[test]
    fn a_place_in_a_string_is_found_through_its_escapes() {
        let find = |text: &str, at: Range<usize>| {
            let source = Source::new("x".to_owned(), text.to_owned());
            let span = source.inside(&(0..text.len()), &at);
            text[span].to_owned()
        };
        assert_eq!(find("'abc'", 1..2), "b");
        assert_eq!(find("'''\nabc'''", 1..2), "b");
        assert_eq!(find("\"abc\"", 1..3), "bc");
        assert_eq!(find(r#""a\\dXc""#, 3..4), "X");
        assert_eq!(find(r#""\u00e9X""#, 2..3), "X");
        assert_eq!(find("\"\"\"\na\\\n   X\"\"\"", 1..2), "X");
        assert_eq!(find(r#""a\"X""#, 2..3), "X");
        assert_eq!(find("bare", 1..3), "ar");
    }
}
