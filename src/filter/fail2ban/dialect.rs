//! fail2ban's regular expressions, which are Python's, as Rust reads them.
//!
//! [`tags`] puts in what `<HOST>` and its kin stand for; [`translate`] turns the dialect. Most of what differs does not
//! compile; three things compile and mean something else: `\<` is a plain character in Python and the edge of a word
//! here, `(?(name)a|b)` asks for a group there and looks ahead here, and `$` also stands before a last newline there.
//!
//! What a regular expression of Rust has not (look-around, references back, conditions) is left out of a second expression that matches
//! wherever the first does, and more: [`Translated::loose`]. That one is tried first, so that the costly one sees few lines. Of
//! that, what looks ahead or asks for a group is marked for [`super::ahead`]; the rest is for a backtracking engine.

use std::fmt::Write as _;

use super::ahead::{self, Asked, Marked, Sought};

/// A pattern in Rust's dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The same pattern.
    pub exact: String,
    /// A pattern of linear time that matches wherever `exact` does.
    pub loose: String,
    /// Whether `exact` is none of Rust's.
    pub fancy: bool,
    /// The pattern with what it looks for ahead taken out of it, if nothing else keeps it from linear time.
    pub marked: Option<Marked>,
}

impl Translated {
    /// An expression that is Rust's as it stands.
    pub fn plain(text: String) -> Translated {
        Translated { loose: text.clone(), exact: text, fancy: false, marked: None }
    }

    /// The same between two texts of Rust's dialect.
    pub fn between(&self, before: &str, after: &str) -> Translated {
        let around = |text: &str| format!("{before}{text}{after}");
        let marked = self.marked.clone().map(|marked| Marked { text: around(&marked.text), ..marked });
        Translated { exact: around(&self.exact), loose: around(&self.loose), fancy: self.fancy, marked }
    }
}

/// Dotted quad behind an optional prefix of IPv4-mapped addresses.
const IP4: &str = r"(?:::f{4,6}:)?(?P<ip4>(?:\d{1,3}\.){3}\d{1,3})";
/// One to seven groups with their colons, or colons alone, then a group, or the second colon of a last `::`.
const IP6: &str = r"(?P<ip6>(?:[0-9a-fA-F]{1,4}::?|::?){1,7}(?:[0-9a-fA-F]{1,4}|:))";
const DNS: &str = r"(?P<dns>[\w\-.^_]*\w)";
const CIDR: &str = r"(?P<cidr>\d+)";

/// Puts in the texts of the tags. `names` is whether a host's name may stand for its address.
pub fn tags(written: &str, names: bool) -> String {
    let mut out = String::with_capacity(written.len() + 200);
    let mut open: Vec<String> = Vec::new();
    let (mut skips, mut rest) = (0, written);
    while let Some(at) = rest.find('<') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let Some(length) = tag(rest) else {
            out.push('<');
            rest = &rest[1..];
            continue;
        };
        let (whole, name) = (&rest[..length], &rest[1..length - 1]);
        rest = &rest[length..];
        match name {
            "HOST" if names => _ = write!(out, r"(?:\[?(?:{IP4}|{IP6})\]?|{DNS})"),
            "HOST" | "ADDR" | "F-ADDR/" => _ = write!(out, r"\[?(?:{IP4}|{IP6})\]?"),
            "IP4" | "F-IP4/" => out.push_str(IP4),
            "IP6" | "F-IP6/" => out.push_str(IP6),
            "DNS" | "F-DNS/" => out.push_str(DNS),
            "CIDR" | "F-CIDR/" => out.push_str(CIDR),
            "SUBNET" | "F-SUBNET/" => _ = write!(out, r"\[?(?:{IP4}|{IP6})(?:/{CIDR})?\]?"),
            "F-ID/" => out.push_str(r"(?P<fid>\S+)"),
            "F-PORT/" => out.push_str(r"(?P<fport>\w+)"),
            "SKIPLINES" => {
                _ = write!(out, r"\n(?P<skiplines{skips}>(?:(?:.*\n)*?))");
                skips += 1;
            }
            _ => match field(name) {
                Some((true, field)) if open.iter().any(|known| known == field) => out.push(')'),
                Some((false, field)) => {
                    open.push(field.to_owned());
                    _ = write!(out, "(?P<{}>", group(field));
                }
                _ => out.push_str(whole),
            },
        }
    }
    out.push_str(rest);
    out
}

/// The length of the tag at the head of `text`: `<NAME>`, `</NAME>` or `<NAME/>`.
fn tag(text: &str) -> Option<usize> {
    let inner = text[1..].strip_prefix('/').unwrap_or(&text[1..]);
    let name = inner.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).filter(|length| *length > 0)?;
    let after = &inner[name..];
    let close = if after.starts_with("/>") { 2 } else { 1 };
    let length = text.len() - inner.len() + name + close;
    (close == 2 || after.starts_with('>')).then_some(length)
}

/// `F-NAME` or `/F-NAME`: whether it closes, and the name.
fn field(name: &str) -> Option<(bool, &str)> {
    let closes = name.starts_with('/');
    let field = name.strip_prefix('/').unwrap_or(name).strip_prefix("F-")?;
    let fits = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_' || c == '-';
    (!field.is_empty() && field.chars().all(fits)).then_some((closes, field))
}

/// The group a field's name stands for.
pub fn group(field: &str) -> String {
    match field.to_lowercase().as_str() {
        "id" => "fid".to_owned(),
        "port" => "fport".to_owned(),
        other => other.to_owned(),
    }
}

/// Translates a pattern; `lines` is Python's `MULTILINE`.
///
/// # Errors
/// What Python refuses and this room can tell: a group's name twice, an escape without a meaning, a class or group that is
/// not closed, a range upside down.
pub fn translate(pattern: &str, lines: bool) -> Result<Translated, String> {
    let local = local_flags(pattern);
    let mut walk = Walk {
        text: local.chars().collect(),
        at: 0,
        out: Translated { exact: String::new(), loose: String::new(), fancy: false, marked: Some(Marked::default()) },
        open: Vec::new(),
        flags: String::new(),
        hidden: 0,
        lines,
        verbose: false,
        names: Vec::new(),
        few: Vec::new(),
    };
    walk.all()?;
    if !walk.out.fancy {
        walk.out.marked = None;
    }
    Ok(walk.out)
}

/// fail2ban makes flags at the head of a group the group's own: `((?i)x)` and `(?:(?i)x)` become `(?i:x)`.
fn local_flags(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let (mut rest, mut escaped) = (pattern, false);
    while let Some(c) = rest.chars().next() {
        let flags = (c == '(' && !escaped).then(|| {
            let inner = &rest[1..];
            let inner = inner.strip_prefix("?:").unwrap_or(inner).strip_prefix("(?")?;
            let end = inner.find(')')?;
            let flags = &inner[..end];
            let all = !flags.is_empty() && flags.bytes().all(|b| b.is_ascii_lowercase());
            all.then(|| (flags, &inner[end + 1..]))
        });
        escaped = c == '\\' && !escaped;
        match flags.flatten() {
            Some((flags, after)) => {
                _ = write!(out, "(?{flags}:");
                rest = after;
            }
            None => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

/// What a parenthesis opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Plain,
    /// Look-around: only in the exact expression.
    Look,
    /// A condition, its number, and whether its other branch was seen.
    Condition(usize, bool),
}

struct Walk {
    text: Vec<char>,
    at: usize,
    out: Translated,
    /// What is open, and the flags to go back to behind it.
    open: Vec<(Open, String)>,
    /// Flags that hold here.
    flags: String,
    /// How many look-arounds are open.
    hidden: u32,
    lines: bool,
    verbose: bool,
    names: Vec<String>,
    /// Groups that have one of a few texts: the name, the first one's condition, and the texts.
    few: Vec<(String, usize, Vec<String>)>,
}

impl Walk {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    fn looking_at(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(i, c)| self.peek(i) == Some(c))
    }

    /// To both expressions.
    fn put(&mut self, text: &str) {
        self.put_each(text, text);
    }

    fn put_each(&mut self, exact: &str, loose: &str) {
        self.put_three(exact, loose, exact);
    }

    fn put_three(&mut self, exact: &str, loose: &str, marked: &str) {
        self.out.exact.push_str(exact);
        if self.hidden == 0 {
            self.out.loose.push_str(loose);
        }
        if let Some(out) = &mut self.out.marked {
            match out.looks.last_mut() {
                Some(look) if self.hidden > 0 => look.text.push_str(marked),
                _ => out.text.push_str(marked),
            }
        }
    }

    fn open(&mut self, open: Open) {
        self.open.push((open, self.flags.clone()));
    }

    /// What stands here takes more than looking ahead.
    fn not_linear(&mut self) {
        self.out.fancy = true;
        self.out.marked = None;
    }

    fn literal(&mut self, c: char) {
        if matches!(c, '\\' | '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$') {
            self.put(&format!("\\{c}"));
        } else {
            self.put(c.encode_utf8(&mut [0; 4]));
        }
    }

    fn all(&mut self) -> Result<(), String> {
        while let Some(c) = self.peek(0) {
            match c {
                '\\' => self.escape()?,
                '[' => self.class()?,
                '(' => self.group()?,
                ')' => {
                    self.at += 1;
                    self.close()?;
                }
                '|' => {
                    self.at += 1;
                    match self.open.last_mut() {
                        Some((Open::Condition(number, other @ false), _)) => {
                            *other = true;
                            let mark = ahead::branch(*number, true);
                            self.put_three("|", "|", &format!("|{mark}"));
                        }
                        Some((Open::Condition(..), _)) => {
                            self.not_linear();
                            self.put("|");
                        }
                        _ => self.put("|"),
                    }
                }
                '^' => {
                    self.at += 1;
                    self.put(if self.lines { "(?m:^)" } else { "^" });
                }
                '$' => {
                    self.at += 1;
                    self.put(if self.lines { "(?m:$)" } else { r"(?:\n?\z)" });
                }
                '{' => self.counts(),
                '*' | '+' | '?' => {
                    self.at += 1;
                    self.put(c.encode_utf8(&mut [0; 4]));
                    self.greed();
                }
                '#' if self.verbose => {
                    while self.peek(0).is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                c if self.verbose && c.is_ascii_whitespace() => self.at += 1,
                '.' => {
                    self.at += 1;
                    self.put(".");
                }
                c => {
                    self.at += 1;
                    self.literal(c);
                }
            }
        }
        if self.open.is_empty() { Ok(()) } else { Err("a parenthesis is not closed".to_owned()) }
    }

    fn close(&mut self) -> Result<(), String> {
        let Some((open, flags)) = self.open.pop() else { return Err("a parenthesis closes nothing".to_owned()) };
        self.flags = flags;
        match open {
            Open::Plain => self.put(")"),
            Open::Look => {
                self.out.exact.push(')');
                self.hidden -= 1;
                if self.hidden == 0 {
                    self.out.loose.push_str("(?:)");
                }
            }
            Open::Condition(_, true) => self.put(")"),
            Open::Condition(number, false) => self.put_three(")", "|)", &format!("|{})", ahead::branch(number, true))),
        }
        Ok(())
    }

    /// `?` or `+` behind a repetition.
    fn greed(&mut self) {
        match self.peek(0) {
            Some('?') => {
                self.at += 1;
                self.put("?");
            }
            Some('+') => {
                self.at += 1;
                self.not_linear();
                self.put_each("+", "");
            }
            _ => {}
        }
    }

    /// `{2}`, `{2,}`, `{2,3}`, `{,3}`; anything else is a brace.
    fn counts(&mut self) {
        let number = |from: usize| self.text[from..].iter().take_while(|c| c.is_ascii_digit()).collect::<String>();
        let low = number(self.at + 1);
        let mut end = self.at + 1 + low.len();
        let comma = self.text.get(end) == Some(&',');
        let high = if comma { number(end + 1) } else { String::new() };
        end += if comma { 1 + high.len() } else { 0 };
        if self.text.get(end) != Some(&'}') || (low.is_empty() && !comma) {
            self.at += 1;
            self.literal('{');
            return;
        }
        self.at = end + 1;
        let low = if low.is_empty() { "0" } else { &low };
        self.put(&if comma { format!("{{{low},{high}}}") } else { format!("{{{low}}}") });
        self.greed();
    }

    fn name(&mut self, close: char) -> Result<String, String> {
        let start = self.at;
        while let Some(c) = self.peek(0) {
            if c == close {
                let name: String = self.text[start..self.at].iter().collect();
                self.at += 1;
                let first = name.chars().next();
                let fits = |c: char| c.is_alphanumeric() || c == '_';
                let good = first.is_some_and(|c| !c.is_ascii_digit()) && name.chars().all(fits);
                return if good { Ok(name) } else { Err(format!("{name:?} is no group's name")) };
            }
            self.at += 1;
        }
        Err("a group's name is not closed".to_owned())
    }

    fn group(&mut self) -> Result<(), String> {
        self.at += 1;
        if self.peek(0) != Some('?') {
            self.captures();
            self.open(Open::Plain);
            self.put("(");
            return Ok(());
        }
        for (look, what) in [("?=", "(?="), ("?!", "(?!"), ("?<=", "(?<="), ("?<!", "(?<!")] {
            if self.looking_at(look) {
                self.at += look.len();
                self.out.exact.push_str(what);
                self.out.fancy = true;
                self.looks(look);
                self.hidden += 1;
                self.open(Open::Look);
                return Ok(());
            }
        }
        if self.looking_at("?#") {
            while let Some(c) = self.peek(0) {
                self.at += 1;
                if c == ')' {
                    return Ok(());
                }
            }
            return Err("a comment is not closed".to_owned());
        }
        if self.looking_at("?>") {
            self.at += 2;
            self.not_linear();
            self.open(Open::Plain);
            self.put_each("(?>", "(?:");
            return Ok(());
        }
        if self.looking_at("?P=") {
            self.at += 3;
            let name = self.name(')')?;
            if !self.names.contains(&name) {
                return Err(format!("(?P={name}) refers to no group"));
            }
            match self.few.iter().find(|(known, ..)| *known == name) {
                Some((_, first, texts)) if self.hidden == 0 => {
                    let texts = texts.iter().enumerate().map(|(i, text)| format!("{}{text}", ahead::branch(first + i, false)));
                    let marked = format!("(?:{})", texts.collect::<Vec<_>>().join("|"));
                    self.out.fancy = true;
                    self.put_three(&format!("(?P={name})"), "(?s:.*)", &marked);
                }
                _ => {
                    self.not_linear();
                    self.put_each(&format!("(?P={name})"), "(?s:.*)");
                }
            }
            return Ok(());
        }
        if self.looking_at("?P<") || self.looking_at("?<") {
            self.at += if self.looking_at("?P<") { 3 } else { 2 };
            let name = self.name('>')?;
            if self.names.contains(&name) {
                return Err(format!("the group {name} stands twice"));
            }
            self.captures();
            match self.few_texts(&name) {
                Some((texts, length)) => self.group_of(&name, texts, length),
                None => {
                    self.open(Open::Plain);
                    self.put(&format!("(?P<{name}>"));
                }
            }
            self.names.push(name);
            return Ok(());
        }
        if self.looking_at("?(") {
            self.at += 2;
            let start = self.at;
            let numbered = self.text[start..].iter().take_while(|c| c.is_ascii_digit()).count();
            let (condition, asked) = if numbered > 0 && self.peek(numbered) == Some(')') {
                let number: String = self.text[start..start + numbered].iter().collect();
                self.at += numbered + 1;
                let asked = number.parse().map(Asked::Numbered).map_err(|_| format!("(?({number})…) asks for no group"))?;
                (number, asked)
            } else {
                let name = self.name(')')?;
                if !self.names.contains(&name) {
                    return Err(format!("(?({name})…) asks for no group"));
                }
                (format!("<{name}>"), Asked::Named(name))
            };
            self.out.fancy = true;
            let number = match &mut self.out.marked {
                Some(marked) if self.hidden == 0 => {
                    marked.conditions.push(asked);
                    marked.conditions.len() - 1
                }
                _ => {
                    self.out.marked = None;
                    0
                }
            };
            self.open(Open::Condition(number, false));
            self.put_three(&format!("(?({condition})"), "(?:", &format!("(?:{}", ahead::branch(number, false)));
            return Ok(());
        }
        // `(?flags)` or `(?flags:`, with `(?:` among them.
        self.at += 1;
        let start = self.at;
        while self.peek(0).is_some_and(|c| c.is_ascii_alphabetic() || c == '-') {
            self.at += 1;
        }
        let flags: String = self.text[start..self.at].iter().collect();
        let end = self.peek(0);
        self.at += 1;
        let (on, off) = flags.split_once('-').unwrap_or((&flags, ""));
        if let Some(unknown) = on.chars().chain(off.chars()).find(|c| !"aiLmsux".contains(*c)) {
            return Err(format!("(?{unknown}…) is not known"));
        }
        if on.contains('x') {
            self.verbose = true;
        }
        if on.contains('m') {
            self.lines = true;
        }
        let kept = |flags: &str| flags.chars().filter(|c| "is".contains(*c)).collect::<String>();
        let (on, off) = (kept(on), kept(off));
        let kept = if off.is_empty() { on } else { format!("{on}-{off}") };
        match end {
            Some(')') if kept.is_empty() => {}
            Some(')') => {
                self.put(&format!("(?{kept})"));
                self.flags.push_str(&format!("(?{kept})"));
            }
            Some(':') => {
                self.open(Open::Plain);
                self.put(&format!("(?{kept}:"));
                if !kept.is_empty() {
                    self.flags.push_str(&format!("(?{kept})"));
                }
            }
            _ => return Err("(? begins nothing that is known".to_owned()),
        }
        Ok(())
    }

    /// The texts that the group which begins here may have, in the order in which they are tried, and its length: a sign or one of a few,
    /// which may be missing. Only where it is referred back to; letters may stand for others.
    fn few_texts(&self, name: &str) -> Option<(Vec<String>, usize)> {
        let back: Vec<char> = format!("(?P={name})").chars().collect();
        if self.hidden > 0 || !self.text[self.at..].windows(back.len()).any(|text| text == back) {
            return None;
        }
        let rest = &self.text[self.at..];
        let sign = |c: &char| c.is_ascii_punctuation();
        let (signs, mut length) = match rest.first()? {
            '[' => {
                let signs = rest[1..].split(|c| *c == ']').next()?;
                let plain = |c: &char| sign(c) && !matches!(c, '\\' | '[' | '^' | '-');
                (1..=4).contains(&signs.len()).then_some(())?;
                (signs.iter().all(plain).then_some(signs)?, signs.len() + 2)
            }
            c if sign(c) && !matches!(c, '\\' | '.' | '+' | '*' | '?' | '(' | ')' | '|' | '^' | '$' | '{' | '}' | '#') => {
                (&rest[..1], 1)
            }
            _ => return None,
        };
        let mut texts: Vec<String> = signs.iter().map(|c| regex::escape(&c.to_string())).collect();
        texts.sort();
        texts.dedup();
        if rest.get(length) == Some(&'?') {
            texts.push(String::new());
            length += 1;
        }
        (rest.get(length) == Some(&')')).then_some((texts, length + 1))
    }

    /// A group that has one of these texts.
    fn group_of(&mut self, name: &str, texts: Vec<String>, length: usize) {
        self.at += length;
        let plain = format!("(?P<{name}>{})", texts.join("|"));
        let mut marked = plain.clone();
        if let Some(out) = &mut self.out.marked {
            let first = out.conditions.len();
            out.conditions.extend(texts.iter().map(|_| Asked::Text(first, texts.len())));
            let texts_marked = texts.iter().enumerate().map(|(i, text)| format!("{}{text}", ahead::text(first + i)));
            marked = format!("(?P<{name}>{})", texts_marked.collect::<Vec<_>>().join("|"));
            self.few.push((name.to_owned(), first, texts));
        }
        self.put_three(&plain, &plain, &marked);
    }

    /// A group begins that keeps what it matches. Where something is only looked for it keeps that too, which marks can not.
    fn captures(&mut self) {
        if self.hidden > 0 {
            self.out.marked = None;
        }
    }

    /// A look ahead or behind begins.
    fn looks(&mut self, kind: &str) {
        match &mut self.out.marked {
            Some(marked) if self.hidden == 0 && matches!(kind, "?=" | "?!") => {
                marked.text.push_str(&ahead::ahead(marked.looks.len()));
                marked.looks.push(Sought { not: kind == "?!", text: self.flags.clone() });
            }
            marked => *marked = None,
        }
    }

    /// A backslash and what follows, outside a class.
    fn escape(&mut self) -> Result<(), String> {
        let next = self.peek(1).ok_or("a backslash at the end")?;
        match next {
            'A' | 'b' | 'B' | 'd' | 'D' | 's' | 'S' | 'w' | 'W' => {
                self.at += 2;
                self.put(&format!("\\{next}"));
            }
            'Z' | 'z' => {
                self.at += 2;
                self.put(r"\z");
            }
            '1'..='9' if !self.is_octal() => {
                let digits = if self.peek(2).is_some_and(|c| c.is_ascii_digit()) { 2 } else { 1 };
                let number: String = self.text[self.at + 1..=self.at + digits].iter().collect();
                self.at += 1 + digits;
                self.not_linear();
                // In a group of its own, so that digits that follow do not belong to it.
                self.put_each(&format!("(?:\\{number})"), "(?s:.*)");
            }
            _ => {
                let c = self.character()?;
                self.literal(c);
            }
        }
        Ok(())
    }

    /// Three octal digits behind the backslash.
    fn is_octal(&self) -> bool {
        (1..=3).all(|i| self.peek(i).is_some_and(|c| c.is_digit(8))) && self.peek(1).is_some_and(|c| c <= '3')
    }

    /// The character that an escape stands for.
    fn character(&mut self) -> Result<char, String> {
        let next = self.peek(1).ok_or("a backslash at the end")?;
        self.at += 2;
        let hex = |walk: &mut Self, digits: usize| {
            let text: String = walk.text[walk.at..].iter().take(digits).collect();
            walk.at += digits;
            let code = (text.len() == digits).then(|| u32::from_str_radix(&text, 16).ok()).flatten();
            code.and_then(char::from_u32).ok_or_else(|| format!("\\{next}{text} is no character"))
        };
        Ok(match next {
            'a' => '\x07',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            'x' => hex(self, 2)?,
            'u' => hex(self, 4)?,
            'U' => hex(self, 8)?,
            '0'..='7' => {
                let digits: String = std::iter::once(next)
                    .chain(self.text[self.at..].iter().copied().take_while(|c| c.is_digit(8)).take(2))
                    .collect();
                self.at += digits.len() - 1;
                u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32).unwrap_or('\0')
            }
            c if c.is_ascii_alphanumeric() => return Err(format!("\\{c} has no meaning")),
            c => c,
        })
    }

    /// A class: what Rust would take for a nested class or a set operation is a plain character in Python.
    fn class(&mut self) -> Result<(), String> {
        self.at += 1;
        let mut out = String::from("[");
        if self.peek(0) == Some('^') {
            self.at += 1;
            out.push('^');
        }
        let start = self.at;
        loop {
            let c = self.peek(0).ok_or("a class is not closed")?;
            if c == ']' && self.at > start {
                self.at += 1;
                break;
            }
            let Some(low) = self.member(&mut out)? else { continue };
            let ranged = self.peek(0) == Some('-') && self.peek(1).is_some_and(|c| c != ']');
            if !ranged {
                member(&mut out, low);
                continue;
            }
            self.at += 1;
            let mut set = String::new();
            match self.member(&mut set)? {
                Some(high) if high < low => return Err(format!("the range {low}-{high} is upside down")),
                Some(high) => {
                    member(&mut out, low);
                    out.push('-');
                    member(&mut out, high);
                }
                // `[a-\d]`: Python refuses it; a hyphen is what was meant.
                None => {
                    member(&mut out, low);
                    member(&mut out, '-');
                    out.push_str(&set);
                }
            }
        }
        out.push(']');
        self.put(&out);
        Ok(())
    }

    /// The next member of a class; a set such as `\d` goes to `out` as it is.
    fn member(&mut self, out: &mut String) -> Result<Option<char>, String> {
        let c = self.peek(0).ok_or("a class is not closed")?;
        if c != '\\' {
            self.at += 1;
            return Ok(Some(c));
        }
        match self.peek(1) {
            Some(set @ ('d' | 'D' | 's' | 'S' | 'w' | 'W')) => {
                self.at += 2;
                out.push('\\');
                out.push(set);
                Ok(None)
            }
            Some('b') => {
                self.at += 2;
                Ok(Some('\x08'))
            }
            _ => self.character().map(Some),
        }
    }
}

fn member(out: &mut String, c: char) {
    match c {
        '\\' | '[' | ']' | '^' | '-' | '&' | '~' => _ = write!(out, "\\{c}"),
        c if c.is_ascii_control() || c == ' ' || c == '#' => _ = write!(out, "\\x{{{:x}}}", u32::from(c)),
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(pattern: &str) -> String {
        translate(pattern, false).unwrap().exact
    }

    #[test]
    fn what_python_means_is_what_rust_reads() {
        let table = [
            (r"a\<b\>\/", r"a<b>/"),
            (r"[^[]*", r"[^\[]*"),
            (r"[]x[y&&~]", r"[\]x\[y\&\&\~]"),
            (r"[a-z\-\]_ -]", r"[a-z\-\]_\x{20}\-]"),
            (r"x{,3}y{2}{{}z}", r"x{0,3}y{2}\{\{\}z\}"),
            (r"{}a{x}", r"\{\}a\{x\}"),
            (r"a$", r"a(?:\n?\z)"),
            (r"a\Z", r"a\z"),
            (r"\x41\u00e9\101\0", "A\u{e9}A\0"),
            (r"(?iu)a(?u)b", r"(?i)ab"),
            (r"((?i)x)(?:(?i)y)", r"(?i:x)(?i:y)"),
            (r"a(?#no)b", "ab"),
            (r"(?x)a b # c (", "ab"),
            (r"(?P<n>a)?(?(n)b|c)", r"(?P<n>a)?(?(<n>)b|c)"),
            (r"[\d\w.\b]", "[\\d\\w.\\x{8}]"),
        ];
        for (python, rust) in table {
            assert_eq!(exact(python), rust, "{python}");
        }
        assert_eq!(translate("^a$", true).unwrap().exact, "(?m:^)a(?m:$)");
    }

    #[test]
    fn the_loose_pattern_leaves_out_what_linear_time_can_not_do() {
        let table = [
            (r"a(?!b(c))d", r"a(?:)d"),
            (r"(?P<q>x)(?P=q)", r"(?P<q>x)(?s:.*)"),
            (r"(a)(?(1)b)", r"(a)(?:b|)"),
            (r"(a)?(?(1)b|c)", r"(a)?(?:b|c)"),
            (r"(?>a)b++", r"(?:a)b+"),
        ];
        for (python, loose) in table {
            let translated = translate(python, false).unwrap();
            assert_eq!((translated.loose.as_str(), translated.fancy), (loose, true), "{python}");
        }
        assert!(!translate(r"a(?:b)[^c]$", false).unwrap().fancy);
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for wrong in ["(a", "a)", "[a", r"\", r"\q", "(?P<a>x)(?P<a>y)", "[z-a]", "(?P=a)", "(?(a)b)", "(?<1>a)", "(?y)"] {
            assert!(translate(wrong, false).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tags_become_groups() {
        assert_eq!(tags("<F-USER>a</F-USER></F-X><x><F-ID/>", true), r"(?P<user>a)</F-X><x>(?P<fid>\S+)");
        assert_eq!(tags("a<SKIPLINES>b<SKIPLINES>", true).matches("skiplines").count(), 2);
        assert!(tags("<HOST>", true).contains("dns") && !tags("<HOST>", false).contains("dns"));
        assert_eq!(tags("(?P<n>a)<", true), "(?P<n>a)<");
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_makes_it_panic(pattern in r"[\[\](){}?<>=!|\\*+^$a-c0-9,:P#é-]{0,40}") {
            if let Ok(translated) = translate(&tags(&pattern, true), false) {
                // Where the loose expression is one, it matches wherever the exact one does.
                let loose = regex::Regex::new(&translated.loose);
                let exact = fancy_regex::RegexBuilder::new(&translated.exact).backtrack_limit(10_000).build();
                if let (Ok(loose), Ok(exact)) = (loose, exact) {
                    for text in ["", "a", "ab", "abc0", "<a>", "cab1", "a-b"] {
                        if exact.is_match(text).unwrap_or(false) {
                            proptest::prop_assert!(loose.is_match(text), "{:?} on {text:?}", translated);
                        }
                    }
                }
            }
        }
    }
}
