//! From merged files to a filter's final texts: `%(name)s`, then `<name>`, until nothing is left to put in.
//!
//! `%(name)s` is Python's interpolation, with fail2ban's `%(section/name)s` and `%(known/name)s`; it happens when a value is
//! asked for. `<name>` comes after it, over the whole filter, and may nest: `<mdre-<mode>>`. Parameters that a jail gives in
//! brackets win over `[Init]`, which wins over `[Definition]`, which has `[DEFAULT]` behind it. What names nothing stays
//! as it is: `<HOST>` belongs to the patterns. Depth, number and size of what is put in are bounded.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::files::{Cited, Merged, Value};

/// `%(a)s` may stand in the value of `%(b)s`, this deep.
const DEEPEST: usize = 10;
/// One tag is put into one text at most this often.
const MOST: u32 = 25;
/// No text grows beyond this many bytes.
const LARGEST: usize = 256 << 10;
/// A filter is made of at most this many pieces put in.
const PIECES: u32 = 20_000;

/// A final text and where it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The text.
    pub text: String,
    /// The file that holds it, and the line of its key.
    pub place: (String, usize),
}

/// A fail2ban filter with everything put in: what is to be compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The files it was read from, the weakest first.
    pub files: Vec<String>,
    /// Tried first; its `<F-CONTENT>` is what the others see.
    pub prefregex: Option<Text>,
    /// A line that one of these matches is a failure.
    pub failregex: Vec<Text>,
    /// Unless one of these matches too.
    pub ignoreregex: Vec<Text>,
    /// Where dates stand, one pattern each; the default ones if empty.
    pub datepattern: Vec<Text>,
    /// Journal entries it is for, one alternative each.
    pub journalmatch: Vec<String>,
    /// Lines a pattern may span.
    pub maxlines: u32,
    /// What `usedns` says, if anything.
    pub usedns: Option<String>,
}

/// Puts everything in, with the parameters a jail gives.
///
/// # Errors
/// Every value that pulls in what does not exist, or itself, and a file without `[Definition]`.
pub fn resolve(merged: &Merged, params: &BTreeMap<String, String>) -> Result<Resolved, Vec<Cited>> {
    let scope = Scope { merged, params, pieces: Cell::new(0) };
    let mut mistakes = Vec::new();
    if !merged.sections.contains_key("Definition") {
        let file = merged.files.last().cloned().unwrap_or_default();
        return Err(vec![Cited { file, line: 0, what: "no [Definition]: this is no filter of fail2ban".to_owned() }]);
    }
    let mut tags: BTreeMap<String, Text> = BTreeMap::new();
    let mut held = |section: &str, key: &str, name: String, mistakes: &mut Vec<Cited>| match scope.value(section, key) {
        Ok(Some(text)) => {
            tags.insert(name, text);
        }
        Ok(None) => {}
        Err(cited) => mistakes.push(cited),
    };
    for key in ["usedns", "prefregex", "ignoreregex", "failregex", "maxlines", "datepattern", "journalmatch"] {
        if !params.contains_key(key) {
            held("Definition", key, key.to_owned(), &mut mistakes);
        }
    }
    let init: Vec<String> = merged.sections.get("Init").map(|init| init.keys().cloned().collect()).unwrap_or_default();
    for key in init {
        held("Init", &key, format!("known/{key}"), &mut mistakes);
        if !params.contains_key(&key) {
            held("Init", &key, key.clone(), &mut mistakes);
        }
    }
    for (key, text) in params {
        tags.insert(key.clone(), Text { text: text.clone(), place: (String::new(), 0) });
    }
    let mut filled = |key: &str| -> Option<Text> {
        let text = tags.get(key)?;
        match scope.fill(key, text, &tags) {
            Ok(filled) => Some(Text { text: filled, place: text.place.clone() }),
            Err(what) => {
                let (file, line) = text.place.clone();
                mistakes.push(Cited { file, line, what: format!("{key}: {what}") });
                None
            }
        }
    };
    let lines = |text: Option<Text>| -> Vec<Text> {
        let Some(Text { text, place }) = text else { return Vec::new() };
        let of = |line: &str| Text { text: line.to_owned(), place: place.clone() };
        text.split('\n').filter(|line| !line.trim().is_empty()).map(of).collect()
    };
    let maxlines = filled("maxlines");
    let resolved = Resolved {
        files: merged.files.clone(),
        prefregex: filled("prefregex").filter(|text| !text.text.trim().is_empty()),
        failregex: lines(filled("failregex")),
        ignoreregex: lines(filled("ignoreregex")),
        datepattern: lines(filled("datepattern")),
        journalmatch: lines(filled("journalmatch")).into_iter().map(|line| line.text).collect(),
        usedns: filled("usedns").map(|text| text.text.trim().to_lowercase()).filter(|text| !text.is_empty()),
        maxlines: 1,
    };
    let maxlines = match maxlines.map(|text| (text.text.trim().parse::<u32>(), text)) {
        None => 1,
        Some((Ok(number @ 1..=1000), _)) => number,
        Some((_, Text { text, place: (file, line) })) => {
            let what = format!("maxlines: {} is no number from 1 to 1000", crate::terms::escape(text.as_bytes(), 40));
            mistakes.push(Cited { file, line, what });
            1
        }
    };
    if mistakes.is_empty() { Ok(Resolved { maxlines, ..resolved }) } else { Err(mistakes) }
}

struct Scope<'a> {
    merged: &'a Merged,
    params: &'a BTreeMap<String, String>,
    /// How many pieces were put in so far.
    pieces: Cell<u32>,
}

impl Scope<'_> {
    /// A section's value as written, with `[DEFAULT]` behind it. `known` is what was written over in `[Definition]`.
    fn raw(&self, section: &str, key: &str) -> Option<&Value> {
        let found = self.merged.sections.get(section).and_then(|values| values.get(key));
        found.or_else(|| self.merged.defaults.get(key))
    }

    /// The interpolated value of a key; parameters hold in `[Definition]`.
    fn value(&self, section: &str, key: &str) -> Result<Option<Text>, Cited> {
        if section == "Definition" && self.params.contains_key(key) {
            let text = self.params[key].clone();
            return Ok(Some(Text { text, place: (String::new(), 0) }));
        }
        let Some(value) = self.raw(section, key) else { return Ok(None) };
        let place = self.merged.place(value);
        let mut out = String::new();
        match self.interpolate(section, &value.text, 1, &mut out) {
            Ok(()) => Ok(Some(Text { text: out, place })),
            Err(what) => Err(Cited { file: place.0, line: place.1, what: format!("{key}: {what}") }),
        }
    }

    /// `%%` and `%(name)s`.
    fn interpolate(&self, section: &str, text: &str, depth: usize, out: &mut String) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(format!("%(…)s goes deeper than {DEEPEST}: it pulls in itself"));
        }
        self.piece()?;
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            if out.len() > LARGEST {
                return Err(format!("grows beyond {} KiB", LARGEST >> 10));
            }
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                out.push('%');
                rest = after;
                continue;
            }
            let name = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
            let Some((name, after)) = name.and_then(|(name, after)| Some((name, after.strip_prefix('s')?))) else {
                let near: String = rest.chars().take(12).collect();
                let shown = crate::terms::escape(near.as_bytes(), 40);
                return Err(format!("a single % before {shown:?}: write %% for a percent sign"));
            };
            rest = after;
            if let Some(value) = self.named(section, name) {
                self.interpolate(section, &value, depth + 1, out)?;
            } else {
                return Err(format!("%({})s names nothing", crate::terms::escape(name.as_bytes(), 80)));
            }
        }
        out.push_str(rest);
        Ok(())
    }

    fn piece(&self) -> Result<(), String> {
        self.pieces.set(self.pieces.get() + 1);
        if self.pieces.get() > PIECES { Err(format!("more than {PIECES} pieces to put in")) } else { Ok(()) }
    }

    /// What `%(name)s` stands for in a section, as written.
    fn named(&self, section: &str, name: &str) -> Option<String> {
        let lower = name.to_lowercase();
        if section == "Definition"
            && let Some(text) = self.params.get(&lower)
        {
            return Some(text.clone());
        }
        if lower == "__name__" {
            return Some(section.to_owned());
        }
        if let Some(value) = self.raw(section, &lower) {
            return Some(value.text.clone());
        }
        let (of, key) = name.split_once('/')?;
        let key = key.to_lowercase();
        let found = match of.to_lowercase().as_str() {
            "default" => None,
            "known" => self.merged.known.get(section).and_then(|values| values.get(&key)),
            _ => self.merged.sections.get(of)?.get(&key),
        };
        found.or_else(|| self.merged.defaults.get(&key)).map(|value| value.text.clone())
    }

    /// What `<name>` stands for beyond the filter's own options.
    fn option(&self, name: &str) -> Result<Option<String>, String> {
        let told = |found: Result<Option<Text>, Cited>| found.map(|t| t.map(|t| t.text)).map_err(|c| c.what);
        if let Some((section, key)) = name.split_once('/') {
            let key = key.to_lowercase();
            let found = match section.to_lowercase().as_str() {
                "known" => match self.merged.known.get("Definition").and_then(|values| values.get(&key)) {
                    Some(value) => {
                        let mut out = String::new();
                        self.interpolate("Definition", &value.text, 1, &mut out)?;
                        Some(out)
                    }
                    None => told(self.value("Definition", &key))?,
                },
                "default" => told(self.value("DEFAULT", &key))?,
                _ if self.merged.sections.contains_key(section) => told(self.value(section, &key))?,
                _ => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        told(self.value("Definition", &name.to_lowercase()))
    }

    /// Puts in every `<name>` that names something, until none is left.
    fn fill(&self, key: &str, text: &Text, tags: &BTreeMap<String, Text>) -> Result<String, String> {
        let mut value = text.text.clone();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        let mut changed = true;
        while changed {
            changed = false;
            let mut from = 0;
            while let Some((start, end)) = tag(&value, from) {
                self.piece()?;
                let name = value[start + 1..end - 1].to_owned();
                let count = counts.entry(name.clone()).or_default();
                let shown = || crate::terms::escape(name.as_bytes(), 80);
                if name == key || *count >= MOST {
                    return Err(format!("<{}> pulls in itself", shown()));
                }
                let found = match tags.get(&name) {
                    Some(text) => Some(text.text.clone()),
                    None => self.option(&name).map_err(|what| format!("<{}>: {what}", shown()))?,
                };
                let Some(found) = found else {
                    from = end;
                    continue;
                };
                *count += 1;
                changed = true;
                let pieces = value.matches(&value[start..end]).count();
                if value.len() + pieces.saturating_mul(found.len()) > LARGEST {
                    return Err(format!("grows beyond {} KiB", LARGEST >> 10));
                }
                value = value.replace(&format!("<{name}>"), &found);
                from = start;
            }
        }
        Ok(value)
    }
}

/// The next `<name>` at or after `from`: no blank and no `<` in the name.
fn tag(text: &str, from: usize) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let mut start = None;
    for (at, b) in bytes.iter().enumerate().skip(from) {
        match (b, start) {
            (b'<', _) => start = Some(at),
            (b'>', Some(open)) if at > open + 1 => return Some((open, at + 1)),
            (b' ' | b'>', _) => start = None,
            _ => {}
        }
    }
    None
}

/// A filter's name as a jail writes it: `name[option=value, other="a,b"][third='c']`.
///
/// # Errors
/// What is wrong with the brackets.
pub fn with_options(text: &str) -> Result<(String, BTreeMap<String, String>), String> {
    let text = text.trim();
    let Some(open) = text.find('[') else { return Ok((text.to_owned(), BTreeMap::new())) };
    let name = text[..open].trim().to_owned();
    let mut options = BTreeMap::new();
    let mut rest = text[open..].strip_prefix('[').unwrap_or_default();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if let Some(after) = rest.strip_prefix(']') {
            rest = after.trim_start();
            match rest.strip_prefix('[') {
                Some(after) => rest = after,
                None if rest.is_empty() => return Ok((name, options)),
                None => return Err(format!("{:?} behind the brackets", crate::terms::escape(rest.as_bytes(), 40))),
            }
            continue;
        }
        let (key, after) = rest.split_once('=').ok_or("the brackets are not closed, or hold no option=value")?;
        let key = key.trim();
        if key.is_empty() || !key.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '?')) {
            return Err(format!("{:?} is no option's name", crate::terms::escape(key.as_bytes(), 40)));
        }
        let (value, after) = match after.chars().next() {
            Some(quote @ ('"' | '\'')) => after[1..].split_once(quote).ok_or("a quote is not closed")?,
            _ => {
                let end = after.find([',', ']']).ok_or("the brackets are not closed")?;
                after.split_at(end)
            }
        };
        options.insert(key.to_lowercase(), value.trim().to_owned());
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::super::files;
    use super::*;

    fn resolved(text: &str, params: &[(&str, &str)]) -> Result<Resolved, Vec<Cited>> {
        let reading = |path: &str| {
            Ok(match path {
                "/x.conf" => Some(text.to_owned()),
                "/common.conf" => Some(
                    "[DEFAULT]\nlogtype = file\n_daemon = \\S*\npre = <lt_<logtype>/pre>\n[lt_file]\npre = F<_daemon>\n\
                    [lt_short]\npre = S%(lt_file/pre)s\n[Definition]\nfailregex = old\n"
                        .to_owned(),
                ),
                _ => None,
            })
        };
        let merged = files::read("/x.conf", &reading).unwrap();
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        resolve(&merged, &params.iter().map(own).collect())
    }

    fn failregex(text: &str, params: &[(&str, &str)]) -> Vec<String> {
        resolved(text, params).unwrap().failregex.into_iter().map(|t| t.text).collect()
    }

    #[test]
    fn everything_is_put_in() {
        let head = "[INCLUDES]\nbefore = common.conf\n";
        let of = |text: &str, params: &[(&str, &str)]| failregex(&format!("{head}{text}"), params);
        assert_eq!(of("[Definition]\n_daemon = d\nfailregex = %(pre)sx <HOST>\n", &[]), ["Fdx <HOST>"]);
        assert_eq!(of("[Definition]\nfailregex = <pre>\n", &[("logtype", "short")]), ["SF\\S*"]);
        assert_eq!(of("[Definition]\nfailregex = %(known/failregex)s\n  new\n", &[]), ["old", "new"]);
        let modes = "[Definition]\nm-a = one\n  two\nm-b = %(m-a)s\n  3%%\nmode = a\nfailregex = 0\n  <m-<mode>>\n";
        assert_eq!(of(modes, &[]), ["0", "one", "two"]);
        assert_eq!(of(modes, &[("mode", "b")]), ["0", "one", "two", "3%"]);
        assert_eq!(of("[Definition]\nfailregex = <x>\n[Init]\nx = init\n", &[]), ["init"]);
        assert_eq!(of("[Definition]\nfailregex = <x>\n[Init]\nx = init\n", &[("x", "jail")]), ["jail"]);
        let all = resolved("[Definition]\nfailregex = a\nmaxlines = 1\ndatepattern = %%Y\n  {DATE}\n[Init]\nmaxlines = 5\n", &[]);
        let all = all.unwrap();
        assert_eq!((all.maxlines, all.datepattern[0].text.as_str(), all.datepattern.len()), (5, "%Y", 2));
    }

    #[test]
    fn what_can_not_be_put_in_is_cited() {
        let cite = |text: &str| resolved(text, &[]).unwrap_err()[0].to_string();
        assert_eq!(cite("[Definition]\n\nfailregex = %(nothing)s\n"), "/x.conf:3: failregex: %(nothing)s names nothing");
        assert_eq!(cite("[Definition]\nfailregex = <a>\na = <b>\nb = <a>\n"), "/x.conf:2: failregex: <a> pulls in itself");
        assert!(cite("[Definition]\nfailregex = %(a)s\na = %(a)s\n").contains("pulls in itself"));
        assert!(cite("[Definition]\nfailregex = 5%\n").contains("write %%"));
        assert_eq!(cite("[Init]\nx = 1\n"), "/x.conf: no [Definition]: this is no filter of fail2ban");
    }

    #[test]
    fn brackets_give_options() {
        let (name, options) = with_options("sshd[mode=aggressive, x=\"a,b\"][y='c]']").unwrap();
        assert_eq!((name.as_str(), options["mode"].as_str(), options["x"].as_str()), ("sshd", "aggressive", "a,b"));
        assert_eq!(options["y"], "c]");
        for wrong in ["a[b", "a[b=c", "a[b=\"c]", "a[b=c]d", "a[=c]"] {
            assert!(with_options(wrong).is_err(), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_it_panic(value in "[%()s<>ab/ \n]{0,60}", other in "[%()s<>ab/ \n]{0,60}") {
            let text = format!("[DEFAULT]\nb = {}\n[Definition]\na = {}\nfailregex = <a>%(b)s\n",
                other.replace('\n', "\n  "), value.replace('\n', "\n  "));
            let reading = |path: &str| Ok((path == "/x.conf").then(|| text.clone()));
            if let Ok(merged) = files::read("/x.conf", &reading) {
                let _ = resolve(&merged, &BTreeMap::new());
            }
        }
    }
}
