//! A filter's file with all that belongs to it: `NAME.d/*.conf`, `NAME.local`, `NAME.d/*.local`, what they include, and
//! the `.local` of that.
//!
//! Files are read by a closure, so that this room does no I/O. The order is fail2ban's: of each file first what `before`
//! names, then itself, then what `after` names; later words win. An older word for the same key stays known as
//! `%(known/key)s`. Loops are cut, and depth, number and size are bounded.

use std::collections::BTreeMap;

use super::ini::{self, Fault, Ini};

/// Includes may include, this deep.
const DEEPEST: usize = 16;
/// A filter is made of at most this many files.
const MOST: usize = 64;

/// Reads the text of a path; `None` if there is no such file. A path that ends in `/` asks for the names in that directory,
/// one a line.
pub type Reading<'a> = dyn Fn(&str) -> Result<Option<String>, String> + 'a;

/// A mistake in one of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cited {
    /// The file's path.
    pub file: String,
    /// From 1; 0 for the file as a whole.
    pub line: usize,
    /// Lower case, no final dot.
    pub what: String,
}

impl std::fmt::Display for Cited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = crate::terms::escape(self.file.as_bytes(), 4096);
        match self.line {
            0 => write!(f, "{file}: {}", self.what),
            line => write!(f, "{file}:{line}: {}", self.what),
        }
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// As written: nothing in it is interpolated yet.
    pub text: String,
    /// Index into [`Merged::files`].
    pub file: usize,
    /// The key's line, from 1.
    pub line: usize,
}

/// The values of a section by key.
pub type Values = BTreeMap<String, Value>;

/// All files of a filter as one.
#[derive(Clone, Debug, Default)]
pub struct Merged {
    /// The paths that were read, in the order of their precedence, the weakest first.
    pub files: Vec<String>,
    /// `[DEFAULT]`.
    pub defaults: Values,
    /// Every other section. Keys of `[NAME?condition]` stand in `NAME` as `key?condition`.
    pub sections: BTreeMap<String, Values>,
    /// What later files wrote over, by section.
    pub known: BTreeMap<String, Values>,
}

/// Reads the filter at `path` and all that belongs to it.
///
/// # Errors
/// If there is no such file, or every line of any of the files that is not as it should be.
pub fn read(path: &str, reading: &Reading<'_>) -> Result<Merged, Vec<Cited>> {
    let mut walk = Walk { reading, order: Vec::new(), mistakes: Vec::new() };
    if !walk.whole(path) && walk.mistakes.is_empty() {
        walk.cite(path, 0, "no such file".to_owned());
    }
    if !walk.mistakes.is_empty() {
        return Err(walk.mistakes);
    }
    let mut merged = Merged::default();
    for (path, ini) in walk.order {
        merged.add(path, ini);
    }
    Ok(merged)
}

struct Walk<'a> {
    reading: &'a Reading<'a>,
    order: Vec<(String, Ini)>,
    mistakes: Vec<Cited>,
}

impl Walk<'_> {
    fn cite(&mut self, file: &str, line: usize, what: String) {
        self.mistakes.push(Cited { file: file.to_owned(), line, what });
    }

    /// The filter's own files, in the order in which later words win; whether any exists.
    fn whole(&mut self, path: &str) -> bool {
        let directory = format!("{}.d/", stem(path));
        let names = match (self.reading)(&directory) {
            Ok(names) => names.unwrap_or_default(),
            Err(why) => {
                self.cite(&directory, 0, format!("cannot read: {why}"));
                return true;
            }
        };
        let mut names: Vec<&str> = names.lines().filter(|name| !name.starts_with('.') && !name.contains('/')).collect();
        names.sort_unstable();
        let beside = |ending: &str| -> Vec<String> {
            names.iter().filter(|name| name.ends_with(ending)).map(|name| format!("{directory}{name}")).collect()
        };
        let local = format!("{}.local", stem(path));
        let own = [vec![path.to_owned()], beside(".conf"), if local == path { vec![] } else { vec![local] }, beside(".local")];
        let found: Vec<bool> = own.concat().iter().map(|path| self.file(path, &mut Vec::new())).collect();
        found.contains(&true)
    }

    /// The file and the `.local` beside it.
    fn with_local(&mut self, path: &str, above: &mut Vec<String>) {
        self.file(path, above);
        let local = format!("{}.local", stem(path));
        if local != path {
            self.file(&local, above);
        }
    }

    fn file(&mut self, path: &str, above: &mut Vec<String>) -> bool {
        let text = match (self.reading)(path) {
            Ok(Some(text)) => text,
            Ok(None) => return false,
            Err(why) => {
                self.cite(path, 0, format!("cannot read: {why}"));
                return true;
            }
        };
        if above.len() >= DEEPEST || self.order.len() >= MOST {
            self.cite(path, 0, format!("includes more than {MOST} files, or deeper than {DEEPEST}"));
            return true;
        }
        let ini = match ini::parse(&text) {
            Ok(ini) => ini,
            Err(faults) => {
                for Fault { line, what } in faults {
                    self.cite(path, line, what);
                }
                return true;
            }
        };
        above.push(path.to_owned());
        let named = |key: &str| -> Vec<String> {
            let value = ini.section("INCLUDES").and_then(|section| section.value(key)).unwrap_or_default();
            let directory = path.rfind('/').map_or("", |slash| &path[..=slash]);
            let beside = |name: &str| if name.starts_with('/') { name.to_owned() } else { format!("{directory}{name}") };
            value.split('\n').filter(|name| !name.is_empty()).map(beside).collect()
        };
        let (before, after) = (named("before"), named("after"));
        let mut all = |walk: &mut Self, paths: Vec<String>| {
            for path in paths {
                if !above.contains(&path) {
                    walk.with_local(&path, above);
                }
            }
        };
        all(self, before);
        self.order.push((path.to_owned(), ini));
        all(self, after);
        above.pop();
        true
    }
}

/// A path without the ending of its name.
fn stem(path: &str) -> &str {
    match path.rfind('.') {
        Some(dot) if !path[dot..].contains('/') => &path[..dot],
        _ => path,
    }
}

impl Merged {
    fn add(&mut self, path: String, ini: Ini) {
        let file = self.files.len();
        self.files.push(path);
        for section in ini.sections {
            let (name, condition) = match section.name.split_once('?') {
                Some((name, condition)) => (name.to_owned(), format!("?{condition}")),
                None => (section.name, String::new()),
            };
            let entries = section.entries.into_iter();
            let values = entries.map(|e| (format!("{}{condition}", e.key), Value { text: e.value, file, line: e.line }));
            if name == "DEFAULT" {
                self.defaults.extend(values);
                continue;
            }
            let held = self.sections.entry(name.clone()).or_default();
            for (key, value) in values {
                if let Some(old) = held.insert(key.clone(), value) {
                    self.known.entry(name.clone()).or_default().insert(key, old);
                }
            }
        }
    }

    /// Where a value stands, as people write it.
    pub fn place(&self, value: &Value) -> (String, usize) {
        (self.files.get(value.file).cloned().unwrap_or_default(), value.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(files: &[(&str, &str)], path: &str) -> Result<Merged, Vec<Cited>> {
        let reading = |path: &str| Ok(files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned()));
        read(path, &reading)
    }

    #[test]
    fn includes_and_locals_come_in_fail2bans_order() {
        let files = [
            ("/f/x.conf", "[INCLUDES]\nbefore = common.conf\n  /g/more.conf\nafter = last.conf\n[Definition]\nk = x\nn = x"),
            ("/f/x.local", "[Definition]\nk = local"),
            ("/f/common.conf", "[INCLUDES]\nafter = common.local\n[DEFAULT]\nd = 1\n[Definition]\nk = common"),
            ("/g/more.conf", "[INCLUDES]\nbefore = more.conf\n[DEFAULT]\nd = 2"),
            ("/f/last.conf", "[INCLUDES]\nbefore = x.conf\n[Init?family=inet6]\nb = 6\n[Definition]\nk = last"),
        ];
        let merged = read_from(&files, "/f/x.conf").unwrap();
        assert_eq!(merged.files, ["/f/common.conf", "/g/more.conf", "/f/x.conf", "/f/last.conf", "/f/x.local"]);
        let value = |section: &str, key: &str| merged.sections[section][key].text.as_str();
        assert_eq!((value("Definition", "k"), value("Definition", "n")), ("local", "x"));
        assert_eq!(merged.known["Definition"]["k"].text, "last");
        assert_eq!(merged.defaults["d"].text, "2");
        assert_eq!(value("Init", "b?family=inet6"), "6");
    }

    #[test]
    fn a_filters_directory_comes_before_and_after_its_local() {
        let files = [
            ("/f/x.d/", "b.conf\nz.local\n.hidden.conf\na.conf\nREADME\n"),
            ("/f/x.conf", "[INCLUDES]\nbefore = common.conf\n[Definition]\na = x\nb = x\nc = x\nd = x\ne = x"),
            ("/f/x.d/a.conf", "[Definition]\na = a\nb = a\nc = a\nd = a"),
            ("/f/x.d/b.conf", "[INCLUDES]\nafter = more.conf\n[Definition]\nb = b\nc = b\nd = b"),
            ("/f/x.d/more.conf", "[Definition]\nf = more"),
            ("/f/x.local", "[Definition]\nc = local\nd = local"),
            ("/f/x.d/z.local", "[Definition]\nd = z"),
            ("/f/x.d/.hidden.conf", "[Definition]\ne = hidden"),
            ("/f/common.conf", "[Definition]\ng = common"),
            // Only the filter's own directory counts, not one of what it includes.
            ("/f/common.d/", "a.conf"),
            ("/f/common.d/a.conf", "[Definition]\ng = a"),
        ];
        let merged = read_from(&files, "/f/x.conf").unwrap();
        let value = |key: &str| merged.sections["Definition"][key].text.as_str();
        assert_eq!(["a", "b", "c", "d", "e", "f", "g"].map(value), ["a", "b", "local", "z", "x", "more", "common"]);
        let files = [("/f/y.d/", "a.conf"), ("/f/y.d/a.conf", "[Definition]\na = a")];
        assert_eq!(read_from(&files, "/f/y.conf").unwrap().files, ["/f/y.d/a.conf"]);
    }

    #[test]
    fn mistakes_are_cited_and_nothing_runs_forever() {
        let cite = |files: &[(&str, &str)]| read_from(files, "/a.conf").unwrap_err()[0].to_string();
        assert_eq!(cite(&[]), "/a.conf: no such file");
        let files = [("/a.conf", "[INCLUDES]\nbefore = b.conf"), ("/b.conf", "\n\nx")];
        assert_eq!(cite(&files), "/b.conf:3: neither [section] nor key = value: x");
        let wide: String = (0..9).map(|i| format!(" {i}.conf\n")).collect();
        let text = format!("[INCLUDES]\nbefore =\n{wide}");
        let reading = |_: &str| Ok(Some(text.clone()));
        assert!(read("/a.conf", &reading).unwrap_err()[0].what.starts_with("includes more"));
    }
}
