//! The dialect of INI that fail2ban's files are written in: Python's `configparser` as fail2ban sets it up.
//!
//! `key = value` or `key: value`; deeper indented lines go on with the value, blank lines inside it stay; a line that begins
//! with `#` or `;` is a comment, and so is everything behind a `;` that follows a blank. ` #` is not. Keys are
//! lower-cased. What fail2ban refuses (a key or section twice in one file, a line that is neither) is a [`Fault`] here too.

use std::collections::BTreeSet;

/// The largest text that is read, in bytes.
pub const LARGEST: usize = 1 << 20;

/// One file's sections, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ini {
    /// `[NAME]` and what follows it.
    pub sections: Vec<Section>,
}

/// One `[NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The text between the brackets, as written.
    pub name: String,
    /// Its line, from 1.
    pub line: usize,
    /// Its keys, none twice.
    pub entries: Vec<Entry>,
}

/// One `key = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// In lower case.
    pub key: String,
    /// Its lines joined by newlines, each without the blanks around it.
    pub value: String,
    /// The key's line, from 1.
    pub line: usize,
}

/// What is wrong with a file, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From 1; 0 for the file as a whole.
    pub line: usize,
    /// Lower case, no final dot.
    pub what: String,
}

impl Ini {
    /// The section of that name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }
}

impl Section {
    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
    }
}

/// Reads a file's text.
///
/// # Errors
/// Every line that is not INI, every section and key that stands twice.
pub fn parse(text: &str) -> Result<Ini, Vec<Fault>> {
    let mut faults = Vec::new();
    if text.len() > LARGEST {
        return Err(vec![Fault { line: 0, what: format!("larger than {} KiB, not read", LARGEST >> 10) }]);
    }
    let mut ini = Ini::default();
    let mut names = BTreeSet::new();
    let mut keys = BTreeSet::new();
    // Whether a key's value may still go on, and how deep the key stands.
    let (mut open, mut depth) = (false, 0);
    for (index, whole) in text.trim_start_matches('\u{feff}').split('\n').enumerate() {
        let line = index + 1;
        let (kept, comment) = uncommented(whole.trim_end_matches('\r'));
        let text = kept.trim();
        let last = ini.sections.last_mut();
        if text.is_empty() {
            match last.and_then(|section| section.entries.last_mut()) {
                Some(entry) if open && !comment => entry.value.push('\n'),
                _ => {}
            }
            continue;
        }
        let indent = kept.len() - kept.trim_start().len();
        if let (true, true, Some(entry)) = (open, indent > depth, last.and_then(|section| section.entries.last_mut())) {
            entry.value.push('\n');
            entry.value.push_str(text);
            continue;
        }
        (open, depth) = (false, indent);
        if let Some(name) = header(text) {
            keys.clear();
            if !names.insert(name.to_owned()) {
                faults.push(Fault { line, what: format!("section [{}] stands twice", shown(name)) });
            }
            ini.sections.push(Section { name: name.to_owned(), line, entries: Vec::new() });
            continue;
        }
        let Some(at) = text.find(['=', ':']) else {
            faults.push(Fault { line, what: format!("neither [section] nor key = value: {}", shown(text)) });
            continue;
        };
        let key = text[..at].trim().to_lowercase();
        let Some(section) = ini.sections.last_mut() else {
            faults.push(Fault { line, what: format!("{} stands before the first [section]", shown(&key)) });
            continue;
        };
        if key.is_empty() {
            faults.push(Fault { line, what: "a value without a key".to_owned() });
            continue;
        }
        if !keys.insert(key.clone()) {
            faults.push(Fault { line, what: format!("{} stands twice in [{}]", shown(&key), shown(&section.name)) });
        }
        section.entries.push(Entry { key, value: text[at + 1..].trim().to_owned(), line });
        open = true;
    }
    for entry in ini.sections.iter_mut().flat_map(|section| &mut section.entries) {
        entry.value.truncate(entry.value.trim_end().len());
    }
    if faults.is_empty() { Ok(ini) } else { Err(faults) }
}

/// The line without its comment, and whether it had one.
fn uncommented(line: &str) -> (&str, bool) {
    if line.trim_start().starts_with(['#', ';']) {
        return ("", true);
    }
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        if c == ';' && before.is_whitespace() {
            return (&line[..at], true);
        }
        before = c;
    }
    (line, false)
}

fn header(text: &str) -> Option<&str> {
    let rest = text.strip_prefix('[')?;
    let end = rest.rfind(']')?;
    (end > 0).then(|| &rest[..end])
}

fn shown(text: &str) -> String {
    crate::terms::escape(text.as_bytes(), 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<String> {
        let ini = parse(text).unwrap();
        let of = |s: &Section| s.entries.iter().map(|e| format!("{}.{}={}", s.name, e.key, e.value)).collect::<Vec<_>>();
        ini.sections.iter().flat_map(of).collect()
    }

    #[test]
    fn it_reads_as_pythons_configparser_does() {
        let table: [(&str, &[&str]); 9] = [
            ("[a]\nK = v\n", &["a.k=v"]),
            ("[a]\nk: v = w\n", &["a.k=v = w"]),
            ("[a]\nk = one\n  two\n\n    three\nl = x", &["a.k=one\ntwo\n\nthree", "a.l=x"]),
            ("[a]\nk =\n  one\n# no\n  two ; three\n  f#our #x\n", &["a.k=\none\ntwo\nf#our #x"]),
            ("[a]\nk = x;y ;z\r\n", &["a.k=x;y"]),
            ("  [a]\n  k = 1\n  l = 2\n", &["a.k=1", "a.l=2"]),
            ("[a]\nk = 1\n[b?c=d]\nk = 2", &["a.k=1", "b?c=d.k=2"]),
            ("\u{feff}[a]\nk=\n", &["a.k="]),
            ("[a]\nk = (\n [b]\n", &["a.k=(\n[b]"]),
        ];
        for (text, expected) in table {
            assert_eq!(values(text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_fail2ban_refuses_is_cited() {
        let faults = parse("x = 1\n[a]\nk = 1\nk = 2\nnonsense\n = v\n[a]\n").unwrap_err();
        let lines: Vec<_> = faults.iter().map(|f| format!("{}: {}", f.line, f.what)).collect();
        let expected = [
            "1: x stands before the first [section]",
            "4: k stands twice in [a]",
            "5: neither [section] nor key = value: nonsense",
            "6: a value without a key",
            "7: section [a] stands twice",
        ];
        assert_eq!(lines, expected);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]a-c=:;# \n\t%<>()é]{0,80}") {
            let _ = parse(&text);
        }
    }
}
