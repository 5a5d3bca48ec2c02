//! The language of `datepattern`: strptime(3) in a regular expression, and what fail2ban adds.
//!
//! A pattern begins and ends at the edge of a word, unless it is anchored (`^`, `$`), opens with `{UNB}`, or has `**` at that end;
//! `{^LN-BEG}` ties it to the head of the line behind at most two bytes that are no part of a word. What is cut out of the line
//! is the first group, where the pattern has one of its own, and else everything.

use std::sync::OnceLock;

use super::dialect::{Translated, translate};
use super::expression::{Expression, Places, Strain};
use super::stamp::Field;

/// Not inside a word: what fail2ban asks of both ends of a date.
const EDGE: &str = r"(?:\b{start-half}|\b{end-half})";
/// A pattern may be this long.
const LONGEST: usize = 4 << 10;
/// What a date pattern ends in where it may be followed by a zone.
const ZONE: &str = r"(?:\s*%z)?";

/// One way a date may look.
#[derive(Debug)]
pub(crate) struct Template {
    /// For people, in fail2ban's words.
    pub name: String,
    /// What is sought: compiled when it is first tried.
    source: Source,
    compiled: OnceLock<Option<Compiled>>,
    pub kind: Kind,
    /// Tied to the head or the end of the line.
    pub anchored: bool,
    /// Tied to the head of the line.
    pub at_head: bool,
    /// Preferred over others by this.
    pub weight: f64,
    /// What is left of the line has no seam within words or next to them.
    pub clean: bool,
}

/// How its text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By its fields.
    Fields,
    /// As seconds since 1970, or (long) milliseconds or microseconds; and the group that holds them.
    Epoch { long: bool, group: usize },
    /// As TAI64N.
    Tai64n,
}

#[derive(Debug)]
struct Source {
    /// In Rust's dialect, without the edges.
    body: Translated,
    before: &'static str,
    after: &'static str,
}

#[derive(Debug)]
struct Compiled {
    expression: Expression,
    fields: Vec<(usize, Field)>,
    /// The groups that may hold what is cut out.
    cut: Vec<usize>,
}

/// A date found: the whole match, what is cut out, and the groups.
#[derive(Debug)]
pub(crate) struct Seen {
    pub whole: std::ops::Range<usize>,
    pub cut: std::ops::Range<usize>,
    pub places: Places,
}

/// What one line of a `datepattern` stands for.
pub(crate) enum Pattern {
    /// The default templates, all or those at the head of the line.
    Defaults { at_head: bool },
    /// These.
    Own(Vec<Template>),
}

/// The default shapes, in order of preference.
fn defaults() -> [String; 17] {
    let day_time = r"%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?";
    [
        format!(r"%ExY(?P<_sep>[-/.])%m(?P=_sep)%d(?:T|  ?)%H:%M:%S(?:[.,]%f)?{ZONE}"),
        format!("(?:%a )?{day_time}"),
        r"(?:%a )?%b %d %ExY %k:%M:%S(?:\.%f)?".to_owned(),
        r"%d(?P<_sep>[-/])%m(?P=_sep)(?:%ExY|%Exy) %k:%M:%S".to_owned(),
        r"%d(?P<_sep>[-/])%b(?P=_sep)%ExY[ :]?%H:%M:%S(?:\.%f)?(?: %z)?".to_owned(),
        "%m/%d/%ExY:%H:%M:%S".to_owned(),
        r"%m-%d-%ExY %k:%M:%S(?:\.%f)?".to_owned(),
        "EPOCH".to_owned(),
        "{^LN-BEG}%H:%M:%S".to_owned(),
        "^<%m/%d/%Exy@%H:%M:%S>".to_owned(),
        "%Exy%Exm%Exd  ?%H:%M:%S".to_owned(),
        "%b %d, %ExY %I:%M:%S %p".to_owned(),
        "^%b-%d-%Exy %k:%M:%S".to_owned(),
        format!(r"%ExY%Exm%Exd(?:-|T|  ?)%ExH:?%ExM:?%ExS(?:[.,]%f)?{ZONE}"),
        format!("(?:%Z )?(?:%a )?{day_time}"),
        format!("(?:%z )?(?:%a )?{day_time}"),
        "TAI64N".to_owned(),
    ]
}

/// The default templates as a detector tries them: first those tied to the head of the line. `decade` is the last one whose
/// years are taken for one.
pub(crate) fn all_defaults(decade: u8) -> Vec<Template> {
    let (mut head, mut rest) = (Vec::new(), Vec::new());
    for pattern in defaults() {
        if !pattern.starts_with('^')
            && !pattern.starts_with("{^LN-BEG}")
            && let Ok(mut template) = single(&format!("{{^LN-BEG}}{pattern}"), decade)
        {
            template.weight = 100.0;
            head.push(template);
        }
        rest.extend(single(&pattern, decade));
    }
    head.extend(rest);
    head
}

/// Reads one line of a `datepattern`.
pub(crate) fn parse(pattern: &str, decade: u8) -> Result<Pattern, String> {
    let pattern = pattern.trim();
    if pattern.len() > LONGEST {
        return Err(format!("is longer than {LONGEST} bytes"));
    }
    let upper = if pattern.contains('%') { pattern.to_owned() } else { pattern.to_uppercase() };
    match upper.as_str() {
        "{DEFAULT}" => return Ok(Pattern::Defaults { at_head: false }),
        "{^LN-BEG}" => return Ok(Pattern::Defaults { at_head: true }),
        "{NONE}" => {
            let mut none = single("{UNB}^", decade)?;
            none.name = "{NONE}".to_owned();
            return Ok(Pattern::Own(vec![none]));
        }
        _ => {}
    }
    if !upper.to_uppercase().contains("{DATE}") {
        return Ok(Pattern::Own(vec![single(pattern, decade)?]));
    }
    let mut own = Vec::new();
    for shape in defaults() {
        let bare = shape.strip_prefix("{^LN-BEG}").unwrap_or(&shape);
        // An epoch or TAI64N stands only where the pattern is nothing but that.
        let bare = if bare == "EPOCH" { "Epoch" } else { bare };
        own.push(single(&replace_date(pattern, bare), decade)?);
    }
    Ok(Pattern::Own(own))
}

/// `{DATE}`, in whatever case, becomes `shape`.
fn replace_date(pattern: &str, shape: &str) -> String {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(at) = rest.to_ascii_uppercase().find("{DATE}") {
        out.push_str(&rest[..at]);
        out.push_str(if rest[..at].ends_with('\\') { &rest[at..at + 6] } else { shape });
        rest = &rest[at + 6..];
    }
    out.push_str(rest);
    out
}

const EPOCH: &str = r"[0-9]{10,11}\b(?:\.[0-9]{3,6})?";
const LONG_EPOCH: &str = r"[0-9]{10,11}(?:[0-9]{3}(?:\.[0-9]{1,6}|[0-9]{3})?)?";

fn single(pattern: &str, decade: u8) -> Result<Template, String> {
    let key = if pattern.contains('%') { pattern.to_owned() } else { pattern.to_uppercase() };
    let (at_head, bare) = match key.strip_prefix("{^LN-BEG}").or_else(|| key.strip_prefix('^')) {
        Some(bare) => (true, bare),
        None => (false, key.as_str()),
    };
    let plain = |text: &str| Translated::plain(text.to_owned());
    let headed = |name: &str| if at_head { format!("{{^LN-BEG}}{name}") } else { name.to_owned() };
    let of = |name: String, body: Translated, before, kind| Template {
        name,
        source: Source { body, before, after: EDGE },
        compiled: OnceLock::new(),
        kind,
        anchored: at_head,
        at_head,
        weight: 1.0,
        clean: true,
    };
    let upper = key.to_uppercase();
    if upper.contains("{EPOCH}") || upper.contains("{LEPOCH}") {
        let long = upper.contains("{LEPOCH}");
        let epoch = format!("({})", if long { LONG_EPOCH } else { EPOCH });
        let mut body = String::new();
        let mut rest = pattern;
        let name = if long { "{LEPOCH}" } else { "{EPOCH}" };
        let mut group = None;
        while let Some(at) = rest.to_ascii_uppercase().find(name) {
            body.push_str(&rest[..at]);
            group.get_or_insert(captures(&body) + 1);
            body.push_str(&epoch);
            rest = &rest[at + name.len()..];
        }
        body.push_str(rest);
        // A group of its own is what is cut out, as for other patterns.
        let (body, around) = if has_group(pattern) { (body, 0) } else { (format!("({body})"), 1) };
        let mut template = bounded(&body, true, false, pattern)?;
        template.kind = Kind::Epoch { long, group: group.unwrap_or(1) + around };
        template.clean = false;
        return Ok(template);
    }
    match bare {
        "EPOCH" | "LEPOCH" => {
            let long = bare == "LEPOCH";
            let digits = if long { LONG_EPOCH } else { EPOCH };
            let before = if at_head { r"^(?:\W{0,2})?" } else { r"(?:^|^\[|\baudit\()" };
            let name = headed(if long { "LongEpoch" } else { "Epoch" });
            Ok(of(name, plain(&format!("({digits})")), before, Kind::Epoch { long, group: 1 }))
        }
        "TAI64N" => {
            let before = if at_head { r"^(?:\W{0,2})?" } else { "" };
            Ok(of(headed("TAI64N"), plain("(@[0-9a-f]{24})"), before, Kind::Tai64n))
        }
        _ => {
            let (unbound, rest) = match pattern.strip_prefix("{UNB}") {
                Some(rest) => (true, rest),
                None => (false, pattern),
            };
            let (head, rest) = match rest.strip_prefix("{^LN-BEG}") {
                Some(rest) if !unbound => (true, rest),
                _ => (false, rest),
            };
            let (expression, name) = fields(rest, decade)?;
            let name = if head { format!("{{^LN-BEG}}{name}") } else { name };
            let letters = has_letters(rest);
            let expression = if letters { format!("(?iu){expression}") } else { expression };
            let mut template = bounded(&expression, !unbound, head, &name)?;
            if unbound {
                template.clean = false;
            }
            Ok(template)
        }
    }
}

/// Whether a field stands in it whose text is letters: then case does not matter.
fn has_letters(pattern: &str) -> bool {
    let bytes = pattern.as_bytes();
    (1..bytes.len()).any(|i| {
        bytes[i - 1] == b'%' && (i < 2 || bytes[i - 2] != b'%') && matches!(bytes[i], b'a' | b'A' | b'b' | b'B' | b'p' | b'c')
    })
}

/// Puts an expression between its edges.
fn bounded(expression: &str, bound: bool, head: bool, name: &str) -> Result<Template, String> {
    let (flags, text) = without_flags(expression.trim());
    let begin = bound && !opens_anchored(&text);
    let end = bound && !ends_bounded(&text);
    let own_group = has_group(&text);
    let mut text = if own_group { text } else { grouped(&text) };
    let before = match (begin, head) {
        (false, _) => "",
        (true, true) => r"^(?:\W{0,2})?",
        (true, false) => EDGE,
    };
    let at_head = if begin { head } else { line_begin(&text) };
    let at_end = !end && line_end(&text);
    if !begin {
        let opening = text.len() - text.trim_start_matches('(').len();
        if text[opening..].starts_with("**") {
            text.replace_range(opening..opening + 2, "");
        }
    }
    if !end {
        let closing = text.trim_end_matches(')').len();
        if text[..closing].ends_with("**") && !text[..closing].ends_with("\\**") {
            text.replace_range(closing - 2..closing, "");
        }
    }
    let body = separated(&format!("{flags}{text}"))?;
    let clean = !own_group && ((begin && end) || (!begin && at_head));
    let template = Template {
        name: name.to_owned(),
        source: Source { body, before, after: if end { EDGE } else { "" } },
        compiled: OnceLock::new(),
        kind: Kind::Fields,
        anchored: at_head || at_end,
        at_head,
        weight: 1.0,
        clean,
    };
    Ok(template)
}

/// Takes every `(?flags)` out of an expression; the first is handed back.
fn without_flags(text: &str) -> (String, String) {
    let (mut flags, mut text, mut from) = (String::new(), text.to_owned(), 0);
    while let Some(at) = text[from..].find("(?").map(|at| at + from) {
        let letters = text[at + 2..].bytes().take_while(u8::is_ascii_lowercase).count();
        let end = at + 2 + letters;
        if letters > 0 && text[end..].starts_with(')') && !text[..at].ends_with('\\') {
            if flags.is_empty() {
                flags = text[at..=end].to_owned();
            }
            text.replace_range(at..=end, "");
            from = at;
        } else {
            from = at + 2;
        }
    }
    (flags, text)
}

/// `^`, `**`, also behind parentheses.
fn opens_anchored(text: &str) -> bool {
    let inner = text.trim_start_matches('(');
    inner.starts_with('^') || inner.starts_with("**") || (inner.len() < text.len() && inner.starts_with("?:^"))
}

/// `$`, `\b`, `\s`, `**`.
fn ends_bounded(text: &str) -> bool {
    let ends = |end: &str| text.strip_suffix(end).is_some_and(|before| !before.ends_with('\\'));
    let stars = text.trim_end_matches(')').strip_suffix("**").is_some_and(|before| !before.ends_with('\\'));
    ends("$") || ends("$)") || ends("\\b") || ends("\\s") || stars
}

/// `^…`, `(^…` or `(?:^…`.
fn line_begin(text: &str) -> bool {
    let inner = |text: &str| text.strip_prefix('^').is_some_and(|rest| !rest.starts_with('|'));
    text.starts_with('^') || text.strip_prefix('(').is_some_and(|rest| inner(rest.strip_prefix("?:").unwrap_or(rest)))
}

fn line_end(text: &str) -> bool {
    let before = text.strip_suffix("$)").or_else(|| text.strip_suffix('$'));
    before.is_some_and(|before| !before.ends_with(['\\', '|']))
}

/// Whether a group of its own stands in it that is only a group: then what that holds is cut out, and not all.
fn has_group(text: &str) -> bool {
    let bytes = text.as_bytes();
    let plain = |i: usize| {
        bytes[i] == b'(' && bytes.get(i + 1) != Some(&b'?') && !text[..i].ends_with('\\') && !text[..i].ends_with("(?")
    };
    (0..bytes.len()).filter(|i| text.is_char_boundary(*i)).any(plain)
}

/// How many groups open in it.
fn captures(text: &str) -> usize {
    let opens = |at: usize| {
        let inner = &text[at + 1..];
        let named =
            inner.starts_with("?P<") || (inner.starts_with("?<") && !inner.starts_with("?<=") && !inner.starts_with("?<!"));
        !text[..at].ends_with('\\') && (named || !inner.starts_with('?'))
    };
    text.match_indices('(').filter(|(at, _)| opens(*at)).count()
}

/// All of it in a group, but for the anchors.
fn grouped(text: &str) -> String {
    let (open, rest) = match text.strip_prefix('^') {
        Some(rest) => ("^", rest),
        None => ("", text),
    };
    match rest.strip_suffix('$').filter(|before| !before.ends_with('\\')) {
        Some(before) => format!("{open}({before})$"),
        None => format!("{open}({rest})"),
    }
}

/// A separator that is referred back to (`(?P<s>[-/])…(?P=s)`) as one alternative for each character it may be: that
/// takes linear time.
fn separated(text: &str) -> Result<Translated, String> {
    let translated = translate(text, false)?;
    let Some((name, class, at)) = separator(text) else { return Ok(translated) };
    let (whole, back) = (&text[at..at + name.len() + class.len() + 8], format!("(?P={name})"));
    let flags_end = if text.starts_with("(?i") { text.find(')').map_or(0, |at| at + 1) } else { 0 };
    let (flags, body) = text.split_at(flags_end);
    let mut alternatives = Vec::new();
    for (number, c) in class.chars().enumerate() {
        let literal = format!("[{}]", if matches!(c, '^' | ']' | '\\') { format!("\\{c}") } else { c.to_string() });
        let one = body.replace(whole, &literal).replace(&back, &literal);
        alternatives.push(renamed(&one, number));
    }
    let joined = translate(&format!("{flags}(?:{})", alternatives.join("|")), false)?;
    // Where other things need the backtracking engine, nothing is won.
    if joined.fancy { Ok(translated) } else { Ok(joined) }
}

/// The first group that is one of a few characters and is referred back to: name, characters, and where it stands.
fn separator(text: &str) -> Option<(&str, &str, usize)> {
    let mut from = 0;
    while let Some(at) = text[from..].find("(?P<").map(|at| at + from) {
        let rest = &text[at + 4..];
        let (name, rest) = rest.split_once('>')?;
        let class = rest.strip_prefix('[').and_then(|rest| rest.split_once("])")).map(|(class, _)| class);
        let plain = |class: &&str| {
            let hyphen = class.bytes().skip(1).take(class.len().saturating_sub(2)).any(|b| b == b'-');
            !class.is_empty() && class.is_ascii() && class.len() <= 6 && !hyphen && !class.contains(['\\', '[', '^', ']'])
        };
        if let Some(class) = class.filter(plain)
            && text.contains(&format!("(?P={name})"))
        {
            return Some((name, class, at));
        }
        from = at + 4;
    }
    None
}

/// Its groups under names of their own.
fn renamed(text: &str, number: usize) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("(?P<") {
        let Some(end) = rest[at..].find('>') else { break };
        out.push_str(&rest[..at + end]);
        out.push_str(&format!("__{number}>"));
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    out
}

/// Replaces the fields of strptime(3) by expressions, and by words for people.
fn fields(pattern: &str, decade: u8) -> Result<(String, String), String> {
    let (mut expression, mut name) = (String::new(), String::new());
    let mut rest = pattern;
    while let Some(at) = rest.find('%') {
        expression.push_str(&rest[..at]);
        name.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let key: String = if rest.starts_with("Ex") { rest.chars().take(3).collect() } else { rest.chars().take(1).collect() };
        let Some((text, word)) = field(&key, decade) else {
            let shown = crate::terms::escape(key.as_bytes(), 20);
            return Err(format!("%{shown} is no field of a date: write %% for a percent sign"));
        };
        expression.push_str(&text);
        name.push_str(word);
        rest = &rest[key.len()..];
    }
    expression.push_str(rest);
    name.push_str(rest);
    Ok((expression, name))
}

/// The expression and the word of one field.
fn field(key: &str, decade: u8) -> Option<(String, &'static str)> {
    const WEEKDAY: &str = "mon|tue|wed|thu|fri|sat|sun";
    const WEEKDAYS: &str = "monday|tuesday|wednesday|thursday|friday|saturday|sunday";
    const MONTH: &str = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec";
    const MONTHS: &str = "january|february|march|april|may|june|july|august|september|october|november|december";
    const ABBREVIATION: &str = "[A-Z](?:[A-Z]{2,4})?";
    const OFFSET: &str = r"[+-][01]\d(?::?\d{2})?";
    let text = |group: &str, body: &str| format!("(?P<{group}>{body})").replace(r"\d", "[0-9]");
    Some(match key {
        "%" => ("%".to_owned(), "%"),
        "a" => (text("a", WEEKDAY), "DAY"),
        "A" => (text("A", WEEKDAYS), "DAYNAME"),
        "b" => (text("b", MONTH), "MON"),
        "B" => (text("B", MONTHS), "MONTH"),
        "d" => (text("d", r"[1-2]\d|[0 ]?[1-9]|3[0-1]"), "Day"),
        "Exd" => (text("d", r"[1-2]\d|0[1-9]|3[0-1]"), "ExDay"),
        "f" => (text("f", r"\d{1,6}"), "Microseconds"),
        "H" => (text("H", r"[0-1]?\d|2[0-3]"), "24hour"),
        "ExH" => (text("H", r"[0-1]\d|2[0-3]"), "Ex24hour"),
        "I" => (text("I", r"1[0-2]|0[1-9]|[1-9]"), "12hour"),
        "j" => (text("j", r"36[0-6]|3[0-5]\d|[1-2]\d\d|0[1-9]\d|00[1-9]|[1-9]\d|0[1-9]|[1-9]"), "Yearday"),
        "k" => (format!(" ?{}", text("H", r"[0-2]?\d")), "%k"),
        "Exk" => (format!(" ?{}", text("H", r"[0-1]?\d|2[0-3]")), "%Exk"),
        "l" => (format!(" ?{}", text("I", r"1?\d")), "%l"),
        "Exl" => (format!(" ?{}", text("I", r"1[0-2]|\d")), "%Exl"),
        "m" => (text("m", "0?[1-9]|1[0-2]"), "Month"),
        "Exm" => (text("m", "0[1-9]|1[0-2]"), "ExMonth"),
        "M" => (text("M", r"[0-5]?\d"), "Minute"),
        "ExM" => (text("M", r"[0-5]\d"), "ExMinute"),
        "p" => (text("p", "am|pm"), "AMPM"),
        "S" => (text("S", r"[0-5]?\d|6[0-1]"), "Second"),
        "ExS" => (text("S", r"[0-5]\d|6[0-1]"), "ExSecond"),
        "U" => (text("U", r"5[0-3]|[0-4]\d|\d"), "Yearweek"),
        "W" => (text("W", r"5[0-3]|[0-4]\d|\d"), "Yearweek"),
        "w" => (text("w", "[0-6]"), "Weekday"),
        "y" => (text("y", r"\d\d"), "Year2"),
        "Exy" => (text("y", r"\d{2}"), "ExYear2"),
        "Y" => (text("Y", r"\d{4}"), "Year"),
        "ExY" => (text("Y", &format!(r"20[0-{}]\d", decade.clamp(2, 9))), "ExYear"),
        "z" => (text("z", &format!("Z|UTC|GMT|{OFFSET}")), "Zone offset"),
        "Z" => (text("Z", "Z|[A-Z]{3,5}"), "Zone name"),
        "ExZ" => (text("Z", ABBREVIATION), "ExZone name"),
        "Exz" => (text("z", &format!("(?:{ABBREVIATION})?{OFFSET}|{ABBREVIATION}")), "ExZone offset"),
        "c" => {
            let parts = [text("a", WEEKDAY), text("b", MONTH), text("d", r"3[0-1]|[1-2]\d|0[1-9]|[1-9]| [1-9]")];
            let clock = [text("H", r"2[0-3]|[0-1]\d|\d"), text("M", r"[0-5]\d|\d"), text("S", r"6[0-1]|[0-5]\d|\d")].join(":");
            (format!(r"{}\s+{clock}\s+{}", parts.join(r"\s+"), text("Y", r"\d{4}")), "%c")
        }
        "x" => {
            let parts = [text("m", "1[0-2]|0[1-9]|[1-9]"), text("d", r"3[0-1]|[1-2]\d|0[1-9]|[1-9]| [1-9]"), text("y", r"\d\d")];
            (parts.join("/"), "%x")
        }
        "X" => ([text("H", r"2[0-3]|[0-1]\d|\d"), text("M", r"[0-5]\d|\d"), text("S", r"6[0-1]|[0-5]\d|\d")].join(":"), "%X"),
        _ => return None,
    })
}

impl Template {
    /// Compiles it now, so that what is wrong can be told.
    pub fn check(&self) -> Result<(), String> {
        self.source.compile().map(|_| ())
    }

    /// Whether it needs the backtracking engine.
    pub fn backtracks(&self) -> bool {
        self.source.body.fancy && self.compiled().is_some_and(|compiled| compiled.expression.backtracks())
    }

    fn compiled(&self) -> Option<&Compiled> {
        self.compiled.get_or_init(|| self.source.compile().ok()).as_ref()
    }

    /// Searches the line up to `end`, from `start` on.
    pub fn find(&self, line: &str, start: usize, end: usize, strain: &Strain) -> Option<Seen> {
        let compiled = self.compiled()?;
        let places = compiled.expression.find_within(line, start, end, strain)?;
        let whole = places[0].clone()?;
        let cut = compiled.cut.iter().find_map(|group| places.get(*group)?.clone());
        // A first group that took no part: Python says it is at -1, and fail2ban cuts nothing.
        let cut = cut.unwrap_or(whole.start..whole.start);
        let whole = if matches!(self.kind, Kind::Epoch { group: 1, .. }) && !self.at_head { cut.clone() } else { whole };
        Some(Seen { whole, cut, places })
    }

    /// The fields of a date that was found.
    pub fn fields<'a>(&'a self, line: &'a str, seen: &'a Seen) -> impl Iterator<Item = (Field, &'a str)> {
        let fields = self.compiled().map_or(&[][..], |compiled| &compiled.fields);
        fields.iter().filter_map(|(group, field)| Some((*field, line.get(seen.places.get(*group)?.clone()?)?)))
    }
}

impl Source {
    fn compile(&self) -> Result<Compiled, String> {
        // Flags at the head of the body hold for the edges too, which no case changes.
        let expression = Expression::new(&self.body.between(self.before, self.after))?;
        let names = expression.names();
        let bare = |name: &str| Field::of(name.split("__").next().unwrap_or_default());
        let fields: Vec<_> = names.iter().enumerate().filter_map(|(i, name)| Some((i, bare(name.as_deref()?)?))).collect();
        let alternatives = names.iter().flatten().filter_map(|name| name.rsplit_once("__")?.1.parse::<usize>().ok()).max();
        let alternatives = alternatives.map_or(1, |last| last + 1);
        let each = (names.len() - 1) / alternatives;
        let cut = (0..alternatives).map(|i| 1 + i * each).collect();
        Ok(Compiled { expression, fields, cut })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pattern: &str, line: &str) -> Option<String> {
        let Pattern::Own(templates) = parse(pattern, 2).unwrap() else { panic!("{pattern}") };
        let seen = templates.iter().find_map(|t| t.find(line, 0, line.len(), &Strain::default()))?;
        Some(format!("{}|{}", &line[..seen.cut.start], &line[seen.cut.end..]))
    }

    #[test]
    fn patterns_cut_what_fail2ban_cuts() {
        let table = [
            ("%Y-%m-%d", "x 2026-01-14 y", Some("x | y")),
            ("%Y-%m-%d", "x2026-01-14", None),
            ("**%Y-%m-%d**", "x2026-01-14y", Some("x|y")),
            ("{UNB}%Y-%m-%d", "x2026-01-14y", Some("x|y")),
            ("{^LN-BEG}%Y-%m-%d", "[2026-01-14] y", Some("[|] y")),
            ("{^LN-BEG}%Y-%m-%d", "a [2026-01-14] y", None),
            (r"^\[%Y-%m-%d\]", "[2026-01-14] y", Some("| y")),
            (r"^[^\[]*\[({DATE})", "a [2026-01-14 01:02:03] y", Some("a [|] y")),
            (r"^[^\[]*(\[{DATE}\s*\])", "a [2026-01-14 01:02:03] y", Some("a | y")),
            (r"^<W>{DATE}", "<W>2026/01/14 01:02:03 y", Some("| y")),
            (r"^t=%Y-%m-%dT%H:%M:%S%z", "t=2026-01-14T01:02:03+0100 y", Some("| y")),
            ("%d/%b[^/]*/%Y:%H:%M:%S %z", "x 14/january/2026:01:02:03 +0100 y", Some("x | y")),
            (r"%ExY(?P<s>[-/.])%m(?P=s)%d", "2026-01/14 2026/01/14", Some("2026-01/14 |")),
            ("{^LN-BEG}Epoch", "1768471199.250 x", Some("| x")),
            ("EPOCH", "msg=audit(1768471199.992:107): y", Some("msg=audit(|:107): y")),
            ("EPOCH", "x 1768471199 y", None),
            ("{^LN-BEG}TAI64N", "@4000000069680f1f2a3b4c5d x", Some("| x")),
            ("{NONE}", "x", Some("|x")),
            ("ts={EPOCH}", "a ts=1768471199 b", Some("a | b")),
            (r"^\[({EPOCH})\]", "[1768471199.250] b", Some("[|] b")),
            (r"^(?P<q>x) ts=(?:{EPOCH})", "x ts=1768471199 b", Some("| b")),
            ("(?i)^%b %d %H:%M:%S", "JAN 14 01:02:03 b", Some("| b")),
            ("^%x %X", "01/ 4/26 01:02:03 b", Some("| b")),
            ("^%m/%d %H:%M:%S$", "01/14 01:02:03", Some("|")),
        ];
        for (pattern, line, rest) in table {
            assert_eq!(cut(pattern, line).as_deref(), rest, "{pattern} on {line}");
        }
    }

    #[test]
    fn names_are_fail2bans() {
        let names: Vec<String> = all_defaults(2).into_iter().map(|t| t.name).collect();
        assert_eq!(names.len(), 31);
        assert_eq!(names[1], r"{^LN-BEG}(?:DAY )?MON Day %k:Minute:Second(?:\.Microseconds)?(?: ExYear)?");
        assert!(all_defaults(2).iter().all(|t| t.check().is_ok() && !t.backtracks()));
    }

    #[test]
    fn what_is_no_pattern_is_told() {
        for wrong in ["%Q", "100%", "(%Y", "%ExQ"] {
            assert!(parse(wrong, 2).is_err(), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_makes_it_panic(pattern in r"[\[\](){}^$*?|\\YmdHEx%DATELNBUé :-]{0,30}", line in "[0-9: /-]{0,30}") {
            if let Ok(Pattern::Own(templates)) = parse(&pattern, 2) {
                for template in templates.iter().take(2) {
                    template.find(&line, 0, line.len(), &Strain::default());
                }
            }
        }
    }
}
