//! A filter as it was written: strings, samples and parameters, before a single pattern is compiled.
//!
//! The configuration reads these from `filters/*.toml` and `/etc/banset/filter.d/*.toml` and keeps the spans; the
//! importer of fail2ban's files makes them from INI. [`super::Filter::compile`] turns one into something that judges lines.
//!
//! # The file
//! ```toml
//! description = "one sentence"          # optional
//! tested = ["dovecot 2.3.19"]           # optional
//! prefregex = '...'                     # optional
//! failregex = ['...']                   # these three: a string or a list of strings
//! ignoreregex = []
//! okregex = []
//! datepattern = []                      # a string or a list
//! maxlines = 1
//! journalmatch = []                     # a string or a list
//! once = { key = ["addr", "user", "session"], within = "2m" }
//!
//! [param]                               # what a jail may set, each with its default
//! reasons = { words = [] }              # words, each taken literally; none: any run of non-blank characters
//! proxy = { nets = [] }                 # addresses and subnets; none: patterns that use it never match
//! tail = { text = '(?: \[preauth\])?' } # a piece of pattern
//!
//! [variable]                            # texts that patterns pull in as <NAME>; they may use tags and each other
//! head = '^\s*(?:\S+ )?mydaemon\[\d+\]: '
//!
//! [mode.aggressive]                     # chosen by the jail with mode = "aggressive"
//! include = ["other-mode"]              # optional; then prefregex, failregex, ignoreregex, okregex as above:
//! failregex = ['...']                   # lists extend the common ones, a prefregex replaces the common one
//!
//! [[sample]]
//! line = 'one line'                     # or several, separated by newlines
//! addr = "192.0.2.1"                    # a failure of this address; or `addr = false`: none;
//! # ok = "192.0.2.1"                    # or instead: a login that succeeded, and no failure
//! # user = "bob"; attempts = 2; time = "2026-01-14T21:59:59Z"; params = { mode = "aggressive", proxy = ["10.0.0.2"] }
//! ```
//! Unknown keys are mistakes. Names of parameters, variables and modes are `[a-z][a-z0-9_-]*`.

use std::collections::BTreeMap;

use crate::terms::Span;

/// A filter's file, key by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Definition {
    /// The file's name without `.toml`.
    pub name: String,
    /// One sentence for people.
    pub description: Option<String>,
    /// Versions whose lines the samples were taken from, e.g. `dovecot 2.3.19`.
    pub tested: Vec<String>,
    /// Parameters a jail may set, by name, with their kind and default.
    pub params: BTreeMap<String, Param>,
    /// Texts that patterns pull in as `<NAME>`; they may use tags and each other.
    pub variables: BTreeMap<String, String>,
    /// The patterns for every mode.
    pub patterns: Patterns,
    /// Variants a jail chooses with `mode`; their patterns come on top of, or instead of, the common ones.
    pub modes: BTreeMap<String, Mode>,
    /// Date patterns instead of the default ones, in fail2ban's notation.
    pub datepattern: Vec<String>,
    /// Lines a pattern may span; 1 unless written.
    pub maxlines: u32,
    /// A try that the server reports several times counts once.
    pub once: Option<Once>,
    /// Journal entries this filter is for, in fail2ban's `journalmatch` notation.
    pub journalmatch: Vec<String>,
    /// The evidence.
    pub samples: Vec<Sample>,
    /// What was read from fail2ban's files, where the filter is one of its. Then the patterns above are the jail's own, on top
    /// of these; `datepattern` and `maxlines` (unless 0) are instead of these.
    pub fail2ban: Option<std::sync::Arc<super::fail2ban::Resolved>>,
}

/// The patterns of a filter or of one of its modes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patterns {
    /// Tried first; only its `<F-CONTENT>` goes on to the others.
    pub prefregex: Option<String>,
    /// A line that one of these matches is a failure.
    pub failregex: Vec<String>,
    /// Unless one of these matches too.
    pub ignoreregex: Vec<String>,
    /// A line that one of these matches is a login that succeeded.
    pub okregex: Vec<String>,
}

/// One mode of a filter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mode {
    /// Other modes whose patterns this one has too.
    pub include: Vec<String>,
    /// Its own patterns: the lists extend the common ones, a `prefregex` replaces the common one.
    pub patterns: Patterns,
}

/// A parameter with its kind; the default is used where a jail sets nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// Words, each matched literally, as `<NAME>` in a pattern; empty means any run of non-blank characters.
    Words(Vec<String>),
    /// Addresses and subnets: a pattern with `<NAME>` matches only where an address stands there that lies in one of
    /// them; with an empty list such a pattern never matches.
    Nets(Vec<ipnetwork::IpNetwork>),
    /// A piece of pattern, put in as it stands.
    Text(String),
}

/// `once = { key = ["addr", "user"], within = "5s" }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Once {
    /// What must be the same for two lines to report one try: `addr`, or a tag's name in lower case (`user`).
    pub key: Vec<String>,
    /// Lines farther apart than this are tries of their own.
    pub within: Span,
}

/// A line and what must be found in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// One line, or several separated by newlines where a try is reported by more than one.
    pub line: String,
    /// What the filter must say.
    pub expect: Expect,
    /// Parameters under which it must say so.
    pub params: BTreeMap<String, Vec<String>>,
    /// The instant the line bears, where the sample states it (RFC 3339).
    pub time: Option<String>,
    /// The account tried, where the sample states it.
    pub user: Option<String>,
    /// How many failures the lines count for, where the sample states it (1 unless written).
    pub attempts: Option<u32>,
}

/// What a sample expects.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    /// `addr = "192.0.2.1"`: a failure of this address.
    Addr(std::net::IpAddr),
    /// `addr = false`: no failure.
    Nothing,
    /// `ok = "192.0.2.1"`: a login success of this address, and no failure.
    Ok(std::net::IpAddr),
}

/// What is wrong with a filter, and where in its text.
#[derive(Clone, Debug, PartialEq)]
pub struct Mistake {
    /// The key, e.g. `failregex`, `mode.aggressive.failregex`, `sample`.
    pub key: String,
    /// Which entry of a list, from 0.
    pub index: usize,
    /// Which bytes of that entry's text; all of it when unknown.
    pub at: Option<std::ops::Range<usize>>,
    /// What is wrong: lower case, no final dot.
    pub what: String,
    /// What to write instead.
    pub help: Option<String>,
}

/// Reads a filter's file; `name` is the file's name without `.toml`. Good enough for what is shipped and for tests: it
/// stops at the first mistake, where the configuration's own reader cites them all.
///
/// # Errors
/// The first thing that is not as the grammar at the head of this file wants it, with its place in the text.
pub fn parse(name: &str, text: &str) -> Result<Definition, String> {
    let file: written::File = toml::from_str(text).map_err(|e| format!("{name}: {e}"))?;
    file.mean(name).map_err(|what| format!("{name}: {what}"))
}

/// A span such as `5s`, `2m`, `1h`, `500ms` or a bare number of seconds.
fn span(text: &str) -> Option<Span> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let micros = match text[digits..].trim() {
        "" | "s" => 1_000_000,
        "ms" => 1_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    Some(Span(number.checked_mul(micros)?))
}

/// The file as serde sees it.
mod written {
    use super::{BTreeMap, Definition, Expect, Mode, Once, Param, Patterns, Sample};
    use serde::Deserialize;

    #[derive(Deserialize, Default)]
    #[serde(untagged)]
    pub enum Texts {
        One(String),
        Many(Vec<String>),
        #[default]
        #[serde(skip)]
        None,
    }

    impl Texts {
        fn list(self) -> Vec<String> {
            match self {
                Texts::One(one) => vec![one],
                Texts::Many(many) => many,
                Texts::None => Vec::new(),
            }
        }
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct File {
        description: Option<String>,
        #[serde(default)]
        tested: Texts,
        prefregex: Option<String>,
        #[serde(default)]
        failregex: Texts,
        #[serde(default)]
        ignoreregex: Texts,
        #[serde(default)]
        okregex: Texts,
        #[serde(default)]
        datepattern: Texts,
        #[serde(default)]
        journalmatch: Texts,
        maxlines: Option<u32>,
        once: Option<OnceTable>,
        #[serde(default)]
        param: BTreeMap<String, ParamTable>,
        #[serde(default)]
        variable: BTreeMap<String, String>,
        #[serde(default)]
        mode: BTreeMap<String, ModeTable>,
        #[serde(default)]
        sample: Vec<SampleTable>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OnceTable {
        key: Texts,
        within: String,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase", deny_unknown_fields)]
    enum ParamTable {
        Words(Texts),
        Nets(Texts),
        Text(String),
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct ModeTable {
        #[serde(default)]
        include: Texts,
        prefregex: Option<String>,
        #[serde(default)]
        failregex: Texts,
        #[serde(default)]
        ignoreregex: Texts,
        #[serde(default)]
        okregex: Texts,
    }

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Addr {
        Is(std::net::IpAddr),
        None(bool),
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct SampleTable {
        line: String,
        addr: Option<Addr>,
        ok: Option<std::net::IpAddr>,
        user: Option<String>,
        attempts: Option<u32>,
        time: Option<String>,
        #[serde(default)]
        params: BTreeMap<String, Texts>,
    }

    impl File {
        pub fn mean(self, name: &str) -> Result<Definition, String> {
            let once = self.once.map(|once| -> Result<Once, String> {
                let within = super::span(&once.within).ok_or(format!("once.within: not a span: {:?}", once.within))?;
                Ok(Once { key: once.key.list(), within })
            });
            let params = self.param.into_iter().map(|(name, table)| Ok((name.clone(), table.mean(&name)?)));
            let modes = self.mode.into_iter().map(|(name, mode)| (name, mode.mean()));
            let samples = self.sample.into_iter().enumerate();
            Ok(Definition {
                name: name.to_owned(),
                description: self.description,
                tested: self.tested.list(),
                params: params.collect::<Result<_, String>>()?,
                variables: self.variable,
                patterns: Patterns {
                    prefregex: self.prefregex,
                    failregex: self.failregex.list(),
                    ignoreregex: self.ignoreregex.list(),
                    okregex: self.okregex.list(),
                },
                modes: modes.collect(),
                datepattern: self.datepattern.list(),
                maxlines: self.maxlines.unwrap_or(1),
                once: once.transpose()?,
                journalmatch: self.journalmatch.list(),
                samples: samples.map(|(i, s)| s.mean(i)).collect::<Result<_, String>>()?,
                fail2ban: None,
            })
        }
    }

    impl ParamTable {
        fn mean(self, name: &str) -> Result<Param, String> {
            Ok(match self {
                ParamTable::Words(words) => Param::Words(words.list()),
                ParamTable::Text(text) => Param::Text(text),
                ParamTable::Nets(nets) => {
                    let parse = |net: &String| net.parse().map_err(|e| format!("param.{name}: {net:?}: {e}"));
                    Param::Nets(nets.list().iter().map(parse).collect::<Result<_, String>>()?)
                }
            })
        }
    }

    impl ModeTable {
        fn mean(self) -> Mode {
            let patterns = Patterns {
                prefregex: self.prefregex,
                failregex: self.failregex.list(),
                ignoreregex: self.ignoreregex.list(),
                okregex: self.okregex.list(),
            };
            Mode { include: self.include.list(), patterns }
        }
    }

    impl SampleTable {
        fn mean(self, index: usize) -> Result<Sample, String> {
            let expect = match (self.addr, self.ok) {
                (Some(Addr::Is(addr)), None) => Expect::Addr(addr),
                (Some(Addr::None(false)), None) => Expect::Nothing,
                (None, Some(addr)) => Expect::Ok(addr),
                (Some(Addr::None(true)), _) => return Err(format!("sample {index}: addr is an address or false")),
                (None, None) => return Err(format!("sample {index}: needs `addr` or `ok`")),
                (Some(_), Some(_)) => return Err(format!("sample {index}: has both `addr` and `ok`")),
            };
            Ok(Sample {
                line: self.line,
                expect,
                params: self.params.into_iter().map(|(k, v)| (k, v.list())).collect(),
                time: self.time,
                user: self.user,
                attempts: self.attempts,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_its_grammar_says() {
        let text = r#"
            failregex = "bad <HOST>"
            once = { key = ["addr"], within = "90s" }
            [param]
            reasons = { words = ["a", "b"] }
            proxy = { nets = "10.0.0.0/8" }
            tail = { text = "x?" }
            [variable]
            head = "^x"
            [mode.aggressive]
            include = "more"
            failregex = ["worse <HOST>"]
            [mode.more]
            prefregex = "<F-CONTENT>.*</F-CONTENT>"
            [[sample]]
            line = "bad 192.0.2.1"
            addr = "192.0.2.1"
            params = { mode = "more", reasons = ["c"] }
        "#;
        let definition = parse("x", text).unwrap();
        assert_eq!(definition.patterns.failregex, ["bad <HOST>"]);
        assert_eq!(definition.once, Some(Once { key: vec!["addr".to_owned()], within: Span::from_secs(90) }));
        assert_eq!(definition.params["reasons"], Param::Words(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(definition.params["proxy"], Param::Nets(vec!["10.0.0.0/8".parse().unwrap()]));
        assert_eq!(definition.params["tail"], Param::Text("x?".to_owned()));
        assert_eq!(definition.modes["aggressive"].include, ["more"]);
        assert_eq!(definition.samples[0].expect, Expect::Addr("192.0.2.1".parse().unwrap()));
        assert_eq!(definition.samples[0].params["mode"], ["more"]);
        assert_eq!(definition.maxlines, 1);
    }

    #[test]
    fn what_the_grammar_does_not_know_is_refused() {
        let table = [
            ("failregx = 'x'", "failregx"),
            ("once = { key = 'addr', within = '5 minutes' }", "not a span"),
            ("[param]\nx = { numbers = [] }", "numbers"),
            ("[param]\nx = { nets = ['10.0.0.0/33'] }", "param.x"),
            ("[[sample]]\nline = 'x'", "needs `addr` or `ok`"),
            ("[[sample]]\nline = 'x'\naddr = true", "address or false"),
            ("[[sample]]\nline = 'x'\naddr = false\nok = '192.0.2.1'", "both"),
        ];
        for (text, what) in table {
            let mistake = parse("x", text).unwrap_err();
            assert!(mistake.contains(what), "{text}: {mistake}");
        }
    }
}
