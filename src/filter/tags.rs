//! The tag language: `<HOST>`, `<F-USER>…</F-USER>`, parameters and variables become one plain regular expression and a
//! table of what its groups mean.
//!
//! Every byte of the expression remembers which bytes of the written pattern it came from, so that a mistake the
//! regex parser finds is cited where a person wrote it.

use std::collections::BTreeMap;
use std::ops::Range;

use ipnetwork::IpNetwork;

use super::definition::Param;

/// What a capture group means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The offender's address.
    Addr,
    /// An address that must lie in the nets of this parameter.
    Within(String),
    /// The account; of several alternatives the one with the smallest number that took part wins.
    User(u8),
    /// A password.
    Secret,
    /// Why the server refused.
    Reason,
    /// How many tries the line names.
    Attempts,
    /// What goes on from `prefregex` to the others.
    Content,
    /// The id of the connection, for the session cache.
    Mlfid,
    /// The id of the connection, for `once`.
    Session,
    /// The line is context, not a failure.
    Nofail,
    /// The connection is over.
    Forget,
    /// The login succeeded: pending failures of the connection are forgiven.
    Gained,
    /// Any other `<F-NAME>`, in lower case.
    Other(String),
}

/// A mistake in a written pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub at: Range<usize>,
    pub what: String,
    pub help: Option<String>,
}

/// What a pattern may pull in.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub params: &'a BTreeMap<String, Param>,
    pub variables: &'a BTreeMap<String, String>,
}

/// A pattern with its tags resolved.
#[derive(Debug, Default)]
pub(crate) struct Expanded {
    /// The regular expression.
    pub text: String,
    /// The groups that mean something, by name.
    pub roles: Vec<(String, Role)>,
    /// A parameter without nets stands in it: it can never match.
    pub never: bool,
    origin: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    out: usize,
    written: Range<usize>,
    verbatim: bool,
}

/// Dotted quad; an IPv4-mapped prefix is skipped. Each number may be too large here: the address's own parser is strict.
const IP4: (&str, &str) = (r"\b{start-half}(?:::[fF]{4}:)?(?P<", r">(?:[0-9]{1,3}\.){3}[0-9]{1,3})\b{end-half}");
/// Groups and colons, ending in a group or in `::`; the parser is strict. A zone id is skipped.
const IP6: (&str, &str) = (
    r"\b{start-half}(?P<",
    r">(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}|(?:[0-9A-Fa-f]{1,4}:){1,7}:|::)(?:%[0-9A-Za-z_.-]{1,15})?\b{end-half}",
);
/// Variables may pull in variables, this deep.
const DEEPEST: usize = 25;
/// A pattern may pull in this many texts, and become this long with them.
const MOST: usize = 10_000;
const LONGEST: usize = 256 << 10;

/// Resolves the tags of `written`.
pub(crate) fn expand(written: &str, scope: Scope<'_>) -> Result<Expanded, Vec<Wrong>> {
    let mut walk = Walk { scope, out: Expanded::default(), wrong: Vec::new(), depth: 0, pulled: 0 };
    walk.text(written, None);
    if walk.wrong.is_empty() { Ok(walk.out) } else { Err(walk.wrong) }
}

impl Expanded {
    /// Puts a text of ours before and behind the bytes `at` of the expression.
    pub fn enclose(&mut self, at: Range<usize>, before: &str, behind: &str) {
        self.insert(at.end, behind);
        self.insert(at.start, before);
    }

    fn insert(&mut self, at: usize, text: &str) {
        let place = self.written(at..at);
        let next = self.origin.partition_point(|piece| piece.out < at);
        let end = self.origin.get(next).map_or(self.text.len(), |piece| piece.out);
        let mut pieces = vec![Piece { out: at, written: place, verbatim: false }];
        if next > 0 && at < end {
            // What stood in the middle of a piece goes on behind.
            let cut = &mut self.origin[next - 1];
            let mut rest = cut.written.clone();
            if cut.verbatim {
                rest.start += at - cut.out;
                cut.written.end = rest.start;
            }
            pieces.push(Piece { out: at, written: rest, verbatim: cut.verbatim });
        }
        for piece in pieces[1..].iter_mut().chain(&mut self.origin[next..]) {
            piece.out += text.len();
        }
        self.origin.splice(next..next, pieces);
        self.text.insert_str(at, text);
    }

    /// Which bytes of the written pattern the bytes `at` of the expression came from.
    pub fn written(&self, at: Range<usize>) -> Range<usize> {
        let piece = |offset: usize| {
            let i = self.origin.partition_point(|p| p.out <= offset).saturating_sub(1);
            self.origin.get(i)
        };
        let start =
            piece(at.start).map_or(0, |p| if p.verbatim { p.written.start + (at.start - p.out) } else { p.written.start });
        // A place without a width is told as the character there.
        let wide = self.text.get(at.start..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
        let last = at.end.max(at.start + wide) - 1;
        let end = piece(last).map_or(start, |p| if p.verbatim { p.written.start + (last + 1 - p.out) } else { p.written.end });
        let limit = self.origin.last().map_or(0, |p| p.written.end);
        start.min(limit)..end.max(start).min(limit)
    }
}

struct Walk<'a> {
    scope: Scope<'a>,
    out: Expanded,
    wrong: Vec<Wrong>,
    depth: usize,
    /// Texts pulled in so far.
    pulled: usize,
}

impl Walk<'_> {
    /// Copies `text`, resolving tags. `within` is the tag of the written pattern that pulled the text in, if one did.
    fn text(&mut self, text: &str, within: Option<&Range<usize>>) {
        let bytes = text.as_bytes();
        let mut open: Vec<(String, Range<usize>)> = Vec::new();
        let mut copied = 0;
        let mut i = 0;
        while i < bytes.len() {
            if bytes[i] == b'\\' {
                // The engine takes these for the edges of a word; everybody else means the characters.
                if let Some(sign @ (b'<' | b'>')) = bytes.get(i + 1) {
                    self.copy(&text[copied..i], within.cloned().unwrap_or(copied..i), within.is_none());
                    self.put(if *sign == b'<' { r"\x3C" } else { r"\x3E" }, &within.cloned().unwrap_or(i..i + 2));
                    copied = i + 2;
                }
                i += 2;
                continue;
            }
            let escaped = |before: &[u8]| before.iter().rev().take_while(|b| **b == b'\\').count() % 2 == 1;
            let opens = |mark: &[u8]| bytes[..i].strip_suffix(mark).is_some_and(|before| !escaped(before));
            let group_name = bytes[i] == b'<' && (opens(b"(?P") || opens(b"(?"));
            let Some(tag) = (bytes[i] == b'<' && !group_name).then(|| Tag::at(text, i)).flatten() else {
                i += 1;
                continue;
            };
            let at = within.cloned().unwrap_or(i..tag.end);
            self.copy(&text[copied..i], within.cloned().unwrap_or(copied..i), within.is_none());
            self.tag(&tag, &at, &mut open);
            i = tag.end;
            copied = i;
        }
        self.copy(&text[copied..], within.cloned().unwrap_or(copied..text.len()), within.is_none());
        for (name, at) in open {
            self.wrong(&at, format!("<{name}> is not closed"), Some(format!("write </{name}> where its text ends")));
        }
    }

    fn copy(&mut self, text: &str, written: Range<usize>, verbatim: bool) {
        if !text.is_empty() {
            self.out.origin.push(Piece { out: self.out.text.len(), written, verbatim });
            self.out.text.push_str(text);
        }
    }

    fn put(&mut self, text: &str, at: &Range<usize>) {
        self.copy(text, at.clone(), false);
    }

    fn wrong(&mut self, at: &Range<usize>, what: String, help: Option<String>) {
        self.wrong.push(Wrong { at: at.clone(), what, help });
    }

    /// A fresh group name for a role.
    fn group(&mut self, role: Role) -> String {
        let name = format!("g{}_", self.out.roles.len());
        self.out.roles.push((name.clone(), role));
        name
    }

    fn address(&mut self, (before, after): (&str, &str), role: Role, at: &Range<usize>) {
        let name = self.group(role);
        self.put(&format!("{before}{name}{after}"), at);
    }

    /// Either family; `brackets` allows `[2001:db8::1]` too.
    fn any_address(&mut self, role: &Role, brackets: bool, at: &Range<usize>) {
        self.put(if brackets { r"\[?(?:" } else { "(?:" }, at);
        self.address(IP4, role.clone(), at);
        self.put("|", at);
        self.address(IP6, role.clone(), at);
        self.put(if brackets { r")\]?" } else { ")" }, at);
    }

    fn tag(&mut self, tag: &Tag<'_>, at: &Range<usize>, open: &mut Vec<(String, Range<usize>)>) {
        if tag.closes {
            match open.pop() {
                Some((name, _)) if name == tag.name => self.put(")", at),
                Some((name, _)) => {
                    self.wrong(at, format!("</{}> closes <{name}>", tag.name), Some(format!("write </{name}>")));
                }
                None => self.wrong(at, format!("</{}> closes nothing", tag.name), None),
            }
            return;
        }
        match tag.name {
            "HOST" => self.any_address(&Role::Addr, true, at),
            "ADDR" => self.any_address(&Role::Addr, false, at),
            "IP4" => self.address(IP4, Role::Addr, at),
            "IP6" => self.address(IP6, Role::Addr, at),
            "DNS" | "CIDR" | "SUBNET" => {
                let help = Some("write <HOST>, or <ADDR> without brackets".to_owned());
                self.wrong(at, format!("<{}> is not known: a line must bear an address", tag.name), help);
            }
            name => match name.strip_prefix("F-") {
                Some(field) => self.field(field, tag, at, open),
                None => self.pull(name, at),
            },
        }
    }

    /// `<F-NAME>` and `<F-NAME/>`.
    fn field(&mut self, field: &str, tag: &Tag<'_>, at: &Range<usize>, open: &mut Vec<(String, Range<usize>)>) {
        let role = match field {
            "ID" => Role::Addr,
            "USER" => Role::User(0),
            "SECRET" => Role::Secret,
            "REASON" => Role::Reason,
            "ATTEMPTS" => Role::Attempts,
            "CONTENT" => Role::Content,
            "MLFID" => Role::Mlfid,
            "SESSION" => Role::Session,
            "NOFAIL" => Role::Nofail,
            "MLFFORGET" => Role::Forget,
            "MLFGAINED" => Role::Gained,
            alt if alt.starts_with("ALT_USER") => {
                Role::User(alt["ALT_USER".len()..].trim_start_matches('_').parse().unwrap_or(1).max(1))
            }
            other => Role::Other(other.to_ascii_lowercase()),
        };
        let group = self.group(role);
        if tag.empty {
            let what = if field == "PORT" || field == "ATTEMPTS" { "[0-9]+" } else { r"\S+" };
            self.put(&format!("(?P<{group}>{what})"), at);
        } else {
            self.put(&format!("(?P<{group}>"), at);
            open.push((tag.name.to_owned(), at.clone()));
        }
    }

    /// `<name>`: a parameter or a variable.
    fn pull(&mut self, name: &str, at: &Range<usize>) {
        if let Some(param) = self.scope.params.get(name) {
            match param {
                Param::Words(words) if words.is_empty() => self.put(r"\S*", at),
                Param::Words(words) => {
                    let words: Vec<_> = words.iter().map(|word| regex_syntax::escape(word)).collect();
                    self.put(&format!("(?:{})", words.join("|")), at);
                }
                Param::Nets(nets) => {
                    self.out.never |= nets.is_empty();
                    self.any_address(&Role::Within(name.to_owned()), false, at);
                }
                Param::Text(text) => self.nested(&text.clone(), name, at),
            }
        } else if let Some(text) = self.scope.variables.get(name) {
            self.nested(&text.clone(), name, at);
        } else {
            let known = self.scope.params.keys().chain(self.scope.variables.keys()).map(String::as_str);
            let near = known.chain(["HOST", "ADDR", "IP4", "IP6"]).min_by_key(|k| strsim::damerau_levenshtein(k, name));
            let help = match near {
                Some(near) if strsim::damerau_levenshtein(near, name) <= 2 => format!("did you mean <{near}>?"),
                _ => format!("write [<]{name}> if that text is meant"),
            };
            self.wrong(at, format!("<{name}> is neither a tag, nor a parameter, nor a variable"), Some(help));
        }
    }

    fn nested(&mut self, text: &str, name: &str, at: &Range<usize>) {
        if self.depth == DEEPEST {
            self.wrong(at, format!("<{name}> pulls in itself"), None);
            return;
        }
        self.pulled += 1;
        if self.pulled > MOST || self.out.text.len() > LONGEST {
            // Once is enough: each of them may be one of thousands.
            if self.wrong.is_empty() {
                self.wrong(at, format!("<{name}> pulls in more than {MOST} texts or {} KiB", LONGEST >> 10), None);
            }
            return;
        }
        self.depth += 1;
        self.text(text, Some(at));
        self.depth -= 1;
    }
}

/// `<NAME>`, `</NAME>` or `<NAME/>` as it stands in a text.
struct Tag<'a> {
    name: &'a str,
    closes: bool,
    empty: bool,
    end: usize,
}

impl<'a> Tag<'a> {
    fn at(text: &'a str, start: usize) -> Option<Tag<'a>> {
        let rest = &text[start + 1..];
        let closes = rest.starts_with('/');
        let from = start + 1 + usize::from(closes);
        let length = text[from..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))?;
        let name = &text[from..from + length];
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return None;
        }
        let after = &text[from + length..];
        let empty = !closes && after.starts_with("/>");
        let end = from + length + if empty { 2 } else { 1 };
        (empty || after.starts_with('>')).then_some(Tag { name, closes, empty, end })
    }
}

/// The nets of a parameter a pattern's group must lie in.
pub(crate) fn nets<'a>(params: &'a BTreeMap<String, Param>, name: &str) -> &'a [IpNetwork] {
    match params.get(name) {
        Some(Param::Nets(nets)) => nets,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(written: &str) -> Result<Expanded, Vec<Wrong>> {
        let params = BTreeMap::from([
            ("reasons".to_owned(), Param::Words(vec!["a.b".to_owned(), "c".to_owned()])),
            ("any".to_owned(), Param::Words(vec![])),
        ]);
        let variables = BTreeMap::from([
            ("head".to_owned(), r"^<any>: ".to_owned()),
            ("loop".to_owned(), "<loop>".to_owned()),
            ("bad".to_owned(), "(x".to_owned()),
        ]);
        expand(written, Scope { params: &params, variables: &variables })
    }

    #[test]
    fn tags_become_groups_and_texts() {
        let table = [
            (r"a\<HOST>", r"a\x3CHOST>"),
            (r"é\<\\<any>\>", r"é\x3C\\\S*\x3E"),
            (r"\(?<any>\)?(?<x>\(?P<any>)", r"\(?\S*\)?(?<x>\(?P\S*)"),
            (r"(?<x>a)(?P<y>b)", r"(?<x>a)(?P<y>b)"),
            (r"<head>x", r"^\S*: x"),
            (r"r=<reasons> ", r"r=(?:a\.b|c) "),
            (r"<F-USER>\S*</F-USER>", r"(?P<g0_>\S*)"),
            (r"<F-PORT/>", r"(?P<g0_>[0-9]+)"),
            (r"user=<[^>]*>, <>", r"user=<[^>]*>, <>"),
        ];
        for (written, text) in table {
            assert_eq!(expanded(written).unwrap().text, text, "{written}");
        }
    }

    #[test]
    fn what_variables_pull_in_is_bounded() {
        let level = |i: usize| (format!("v{i}"), format!("<v{}>", i + 1).repeat(20));
        for last in ["", "x", "<F-USER>"] {
            let variables: BTreeMap<_, _> = (0..20).map(level).chain([("v20".to_owned(), last.to_owned())]).collect();
            let wrong = expand("a<v0>", Scope { params: &BTreeMap::new(), variables: &variables }).unwrap_err();
            assert!(
                wrong.iter().any(|wrong| wrong.at == (1..5) && wrong.what.contains(" pulls in more than ")) || last == "<F-USER>"
            );
            assert!(wrong.len() <= MOST, "{last}: {}", wrong.len());
        }
    }

    #[test]
    fn mistakes_know_where_they_stand() {
        let table = [
            ("a <NOSUCH> b", 2..10, "neither"),
            ("a <haed>", 2..8, "neither"),
            ("x<F-USER>y", 1..9, "not closed"),
            ("x</F-USER>y", 1..10, "closes nothing"),
            ("<F-A>x</F-B>", 6..12, "closes <F-A>"),
            ("a <loop>", 2..8, "itself"),
            ("<DNS>", 0..5, "not known"),
        ];
        for (written, at, what) in table {
            let wrong = expanded(written).unwrap_err();
            assert_eq!(wrong[0].at, at, "{written}");
            assert!(wrong[0].what.contains(what), "{written}: {}", wrong[0].what);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_makes_it_panic(written in r"(?s)(?:[<>/\\\\(?P:é\u{1F600} \[\]]|F-|USER|HOST|head|bad|loop|.){0,30}") {
            // What is wrong is cited where characters begin and end.
            for wrong in expanded(&written).err().into_iter().flatten() {
                proptest::prop_assert!(written.get(wrong.at).is_some());
            }
        }
    }

    #[test]
    fn bytes_of_the_expression_lead_back_to_the_written_ones() {
        let e = expanded("ab<head>c(d").unwrap();
        let paren = e.text.rfind('(').unwrap();
        assert_eq!(e.written(paren..paren + 1), 9..10);
        assert_eq!(e.written(3..4), 2..8);
        let mut e = expanded("ab<head>c[é]d").unwrap();
        let (open, close) = (e.text.find('[').unwrap(), e.text.find(']').unwrap());
        e.enclose(open..close + 1, "(?u:", ")");
        assert_eq!(e.text, r"ab^\S*: c(?u:[é])d");
        let of = |text: &str| e.text.rfind(text).map(|at| e.written(at..at + text.len())).unwrap();
        assert_eq!([of("ab"), of(": "), of("c"), of("[é]"), of("d")], [0..2, 2..8, 8..9, 9..13, 13..14]);
    }
}
