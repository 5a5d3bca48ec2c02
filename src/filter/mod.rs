//! Filters: what turns a line into a failure.
//!
//! A [`Definition`] is a filter as somebody wrote it; [`Filter::compile`] makes it something that judges, or cites
//! everything that is wrong with it. A [`Scanner`] holds the filters of one source and what they remember of its
//! lines: it takes whole chunks, finds the few lines that a filter could match by the literals its patterns can not
//! do without, cuts the date out of those, tries the patterns, and says what was found. It does no I/O and reads no clock.
//!
//! | file | what |
//! |---|---|
//! | `definition` | a filter's file |
//! | `tags` | `<HOST>`, `<F-USER>`, parameters and variables become one regular expression |
//! | `pattern` | a compiled pattern and what its groups mean |
//! | `walk` | the quick way along an anchored pattern |
//! | `twice` | the groups of a match in a long text |
//! | `literals` | what a line must hold for a pattern to match |
//! | `prefilter` | the literals of a source's filters, searched together |
//! | `dates` | finding the date, cutting it out, what instant it means |
//! | `session` | connections, and tries that several lines report |
//! | `scanner` | lines in, failures out |
//! | `samples` | a filter's own evidence, tried |
//! | `shipped` | the filters compiled into the binary |
//! | `borrowed` | filters of ours that need fail2ban's way with a line |
//! | `fail2ban` | its filter files, its dialect, its dates, its way with a line |
//! | `repeated` | `message repeated 5 times: [ … ]` |
//! | `trial` | one line at a time, with all that can be said about it |

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::tz::TimeZone;

mod borrowed;
#[cfg(test)]
mod cost;
pub mod dates;
pub mod definition;
pub mod fail2ban;
#[cfg(test)]
mod forged;
mod literals;
mod pattern;
mod prefilter;
mod repeated;
pub mod samples;
mod scanner;
mod session;
mod shipped;
mod tags;
pub mod trial;
mod twice;
mod walk;

pub use dates::{DatePattern, Template};
pub use definition::{Definition, Mistake};
#[cfg(test)]
pub(crate) use scanner::guarded;
pub(crate) use scanner::is_guarded;
pub use scanner::{Counters, Found, Kind, NearMisses, Scanner, State, Times, When};
pub use shipped::shipped;

use definition::{Once, Param, Patterns};
use pattern::Pattern;
use tags::{Role, Scope};

/// What a jail says about its filter besides parameters.
#[derive(Clone, Debug)]
pub struct Options {
    /// The zone of dates that name none. The caller knows the machine's; this room does not look.
    pub logtimezone: TimeZone,
    /// Date patterns instead of the filter's own.
    pub datepattern: Option<Vec<String>>,
    /// Whether host names count. They never do: a name is not an address, and asking for one is slow and forgeable.
    pub usedns: UseDns,
    /// Patterns on top of the filter's failregex.
    pub failregex_add: Vec<String>,
    /// Patterns on top of the filter's ignoreregex.
    pub ignoreregex_add: Vec<String>,
    /// Instead of the filter's own.
    pub maxlines: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            logtimezone: TimeZone::UTC,
            datepattern: None,
            usedns: UseDns::No,
            failregex_add: Vec::new(),
            ignoreregex_add: Vec::new(),
            maxlines: None,
        }
    }
}

/// What happens where a line names a host instead of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UseDns {
    /// It does not match.
    #[default]
    No,
    /// It counts as it is written, as a name without an address: for whoever tries a filter of fail2ban.
    Raw,
}

/// A filter that judges lines.
#[derive(Debug)]
pub struct Filter {
    name: Box<str>,
    prefregex: Option<Pattern>,
    failregex: Vec<Pattern>,
    ignoreregex: Vec<Pattern>,
    okregex: Vec<Pattern>,
    once: Option<Once>,
    dates: DatePattern,
    zone: TimeZone,
    /// fail2ban tries a short list of ignoreregex on the whole line too.
    ignores_lines: bool,
    /// The filter's patterns name connections, so lines have a memory.
    sessions: bool,
    /// It was read from fail2ban's files, and these judge.
    foreign: Option<Arc<fail2ban::rules::Rules>>,
}

impl Filter {
    /// Compiles a definition with a jail's parameters, among them `mode`.
    ///
    /// # Errors
    /// Every mistake in it. Keys are those of the filter's file (`failregex`, `mode.aggressive.failregex`,
    /// `param.proxy`), or of the jail (`failregex_add`, `ignoreregex_add`, `datepattern`, `mode`).
    pub fn compile(
        definition: &Definition,
        params: &BTreeMap<String, Vec<String>>,
        options: &Options,
    ) -> Result<Filter, Vec<Mistake>> {
        if let Some(resolved) = &definition.fail2ban {
            return Filter::foreign(definition, resolved, options);
        }
        let mut mistakes = Vec::new();
        let values = parameters(definition, params, &mut mistakes);
        let scope = Scope { params: &values, variables: &definition.variables };
        let chosen = chosen_patterns(definition, params.get("mode"), options, &mut mistakes);
        if let Some(why) = borrowed::why(definition, options, &chosen) {
            if !mistakes.is_empty() {
                return Err(mistakes);
            }
            let resolved = borrowed::resolve(definition, &values, &chosen, why)?;
            // The jail's own additions are among the chosen patterns already.
            let bare = Definition { patterns: Patterns::default(), ..definition.clone() };
            let options = Options { failregex_add: Vec::new(), ignoreregex_add: Vec::new(), ..options.clone() };
            return Filter::foreign(&bare, &resolved, &options);
        }
        let mut compile = |written: &Written<'_>| match Pattern::compile(written.text, &written.key, written.index, scope) {
            Ok(pattern) => Some((pattern, written.key.clone(), written.index)),
            Err(more) => {
                mistakes.extend(more);
                None
            }
        };
        let prefregex = chosen.prefregex.as_ref().and_then(&mut compile);
        let failregex: Vec<_> = chosen.failregex.iter().filter_map(&mut compile).collect();
        let ignoreregex: Vec<_> = chosen.ignoreregex.iter().filter_map(&mut compile).collect();
        let okregex: Vec<_> = chosen.okregex.iter().filter_map(&mut compile).collect();

        let mut mistake = |key: &str, index, what: &str, help: &str| {
            let help = (!help.is_empty()).then(|| help.to_owned());
            mistakes.push(Mistake { key: key.to_owned(), index, at: None, what: what.to_owned(), help });
        };
        let before = prefregex.as_ref().map(|(pattern, ..)| pattern);
        if let Some((pattern, key, index)) = &prefregex
            && !pattern.has(&Role::Content)
        {
            let help = "mark what failregex sees, e.g. `: <F-CONTENT>.+</F-CONTENT>$`";
            mistake(key, *index, "has no <F-CONTENT>", help);
        }
        let either = |pattern: &Pattern, role: &Role| pattern.has(role) || before.is_some_and(|p| p.has(role));
        for (pattern, key, index) in &failregex {
            if !either(pattern, &Role::Addr) && !either(pattern, &Role::Mlfid) {
                mistake(key, *index, "names no address", "put <HOST> where the offender's address stands");
            }
        }
        for (pattern, key, index) in &okregex {
            if !either(pattern, &Role::Addr) {
                mistake(key, *index, "names no address", "put <HOST> where the address that logged in stands");
            }
        }
        if chosen.failregex.is_empty() {
            mistake("failregex", 0, "is empty", "write at least one pattern with <HOST> in it");
        }
        if let Some(once) = &definition.once {
            for (index, key) in once.key.iter().enumerate() {
                if !matches!(key.as_str(), "addr" | "user" | "session" | "reason") {
                    mistake("once.key", index, "is not known", "use addr, user, session or reason");
                }
            }
        }
        let written = options.datepattern.as_ref().unwrap_or(&definition.datepattern);
        let dates = written.first().and_then(|text| DatePattern::parse(text)).unwrap_or(DatePattern::Default);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let bare =
            |list: Vec<(Pattern, String, usize)>| -> Vec<Pattern> { list.into_iter().map(|(pattern, ..)| pattern).collect() };
        let prefregex = prefregex.map(|(pattern, ..)| pattern);
        let (failregex, ignoreregex, okregex) = (bare(failregex), bare(ignoreregex), bare(okregex));
        let sessions = prefregex.iter().chain(&failregex).any(|p| p.has(&Role::Mlfid));
        Ok(Filter {
            name: definition.name.as_str().into(),
            ignores_lines: ignoreregex.len() + 2 < failregex.len(),
            prefregex,
            failregex,
            ignoreregex,
            okregex,
            once: definition.once.clone(),
            dates,
            zone: options.logtimezone.clone(),
            sessions,
            foreign: None,
        })
    }

    /// Compiles what was read from fail2ban's files, with what a jail adds.
    fn foreign(definition: &Definition, resolved: &fail2ban::Resolved, options: &Options) -> Result<Filter, Vec<Mistake>> {
        let jails = |own: &'_ [String], key| own.iter().map(|text| (text.clone(), key)).collect::<Vec<_>>();
        let mut fails = jails(&definition.patterns.failregex, "failregex_add");
        fails.extend(jails(&options.failregex_add, "failregex_add"));
        let mut ignores = jails(&definition.patterns.ignoreregex, "ignoreregex_add");
        ignores.extend(jails(&options.ignoreregex_add, "ignoreregex_add"));
        let own = (!definition.datepattern.is_empty()).then_some(&definition.datepattern);
        let wanted = fail2ban::rules::Wanted {
            names: options.usedns == UseDns::Raw,
            failregex: fails.iter().map(|(text, key)| (text.as_str(), *key)).collect(),
            ignoreregex: ignores.iter().map(|(text, key)| (text.as_str(), *key)).collect(),
            datepattern: options.datepattern.as_ref().or(own).map(Vec::as_slice),
            maxlines: options.maxlines.or((definition.maxlines > 0).then_some(definition.maxlines)),
        };
        let rules = fail2ban::rules::Rules::new(resolved, &wanted)?;
        Ok(Filter {
            name: definition.name.as_str().into(),
            prefregex: None,
            failregex: Vec::new(),
            ignoreregex: Vec::new(),
            okregex: Vec::new(),
            once: None,
            dates: DatePattern::None,
            zone: options.logtimezone.clone(),
            ignores_lines: false,
            sessions: rules.sessions,
            foreign: Some(Arc::new(rules)),
        })
    }

    /// Which patterns need more than linear time, each with its key and its number from 0: they run under a limit of steps.
    pub fn backtracking(&self) -> Vec<(&'static str, usize)> {
        self.foreign.iter().flat_map(|rules| rules.backtracking()).collect()
    }

    /// The filter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The failregex as written, in the order of [`Found::pattern`].
    pub fn failregex(&self) -> impl Iterator<Item = &str> {
        let foreign = self.foreign.iter().flat_map(|rules| &rules.failregex).map(|rule| &*rule.written);
        self.failregex.iter().map(|p| &*p.written).chain(foreign)
    }

    /// The ignoreregex as written.
    pub fn ignoreregex(&self) -> impl Iterator<Item = &str> {
        let foreign = self.foreign.iter().flat_map(|rules| &rules.ignoreregex).map(|rule| &*rule.written);
        self.ignoreregex.iter().map(|p| &*p.written).chain(foreign)
    }

    /// The prefregex as written.
    pub fn prefregex(&self) -> Option<&str> {
        let foreign = self.foreign.as_ref().and_then(|rules| rules.prefregex.as_ref()).map(|rule| &*rule.written);
        self.prefregex.as_ref().map(|p| &*p.written).or(foreign)
    }

    /// The okregex as written, in the order of [`Found::pattern`].
    pub fn okregex(&self) -> impl Iterator<Item = &str> {
        self.okregex.iter().map(|p| &*p.written)
    }
}

#[cfg(test)]
impl Filter {
    /// The filter with nothing but the regex engine.
    fn without_walks(mut self) -> Filter {
        let plain = |patterns: Vec<Pattern>| patterns.into_iter().map(Pattern::without_walk).collect();
        self.prefregex = self.prefregex.map(Pattern::without_walk);
        self.failregex = plain(self.failregex);
        self.okregex = plain(self.okregex);
        self
    }
}

/// A pattern as written, and where.
struct Written<'a> {
    text: &'a str,
    key: String,
    index: usize,
}

#[derive(Default)]
struct Chosen<'a> {
    prefregex: Option<Written<'a>>,
    failregex: Vec<Written<'a>>,
    ignoreregex: Vec<Written<'a>>,
    okregex: Vec<Written<'a>>,
}

impl Chosen<'_> {
    /// Every pattern's text.
    fn texts(&self) -> impl Iterator<Item = &str> {
        let lists = self.failregex.iter().chain(&self.ignoreregex).chain(&self.okregex);
        self.prefregex.iter().chain(lists).map(|written| written.text)
    }
}

impl<'a> Chosen<'a> {
    fn add(&mut self, patterns: &'a Patterns, prefix: &str) {
        let written = |key: &str, texts: &'a [String]| -> Vec<Written<'a>> {
            let entry = |(index, text): (usize, &'a String)| Written { text, key: format!("{prefix}{key}"), index };
            texts.iter().enumerate().map(entry).collect()
        };
        if let Some(text) = &patterns.prefregex {
            self.prefregex = Some(Written { text, key: format!("{prefix}prefregex"), index: 0 });
        }
        self.failregex.extend(written("failregex", &patterns.failregex));
        self.ignoreregex.extend(written("ignoreregex", &patterns.ignoreregex));
        self.okregex.extend(written("okregex", &patterns.okregex));
    }
}

/// The common patterns, those of the mode and of the modes it includes, and the jail's own.
fn chosen_patterns<'a>(
    definition: &'a Definition,
    mode: Option<&Vec<String>>,
    options: &'a Options,
    mistakes: &mut Vec<Mistake>,
) -> Chosen<'a> {
    let mut chosen = Chosen::default();
    chosen.add(&definition.patterns, "");
    let mut seen: Vec<&str> = Vec::new();
    let wanted = mode.and_then(|m| m.first()).map_or("normal", String::as_str);
    // The key that names a mode, and the mode.
    let mut todo: Vec<(String, String)> = Vec::new();
    if wanted != "normal" || definition.modes.contains_key("normal") {
        todo.push(("mode".to_owned(), wanted.to_owned()));
    }
    while let Some((key, name)) = todo.pop() {
        let Some((name, mode)) = definition.modes.get_key_value(&name) else {
            let known: Vec<_> = definition.modes.keys().map(String::as_str).collect();
            let help = if known.is_empty() { "this filter has no modes".to_owned() } else { format!("use {}", known.join(", ")) };
            mistakes.push(Mistake { key, index: 0, at: None, what: format!("no mode {name:?}"), help: Some(help) });
            continue;
        };
        if seen.contains(&name.as_str()) {
            continue;
        }
        seen.push(name);
        todo.extend(mode.include.iter().rev().map(|inner| (format!("mode.{name}.include"), inner.clone())));
    }
    // What is included comes before what includes it, so that the chosen mode's own prefregex wins.
    for name in seen.into_iter().rev() {
        chosen.add(&definition.modes[name].patterns, &format!("mode.{name}."));
    }
    let own = |key: &str, texts: &'a [String]| -> Vec<Written<'a>> {
        texts.iter().enumerate().map(|(index, text)| Written { text, key: key.to_owned(), index }).collect()
    };
    chosen.failregex.extend(own("failregex_add", &options.failregex_add));
    chosen.ignoreregex.extend(own("ignoreregex_add", &options.ignoreregex_add));
    chosen
}

/// The filter's parameters with the jail's values in place of the defaults.
fn parameters(
    definition: &Definition,
    given: &BTreeMap<String, Vec<String>>,
    mistakes: &mut Vec<Mistake>,
) -> BTreeMap<String, Param> {
    let mut values = definition.params.clone();
    for (name, texts) in given.iter().filter(|(name, _)| *name != "mode") {
        let Some(value) = values.get_mut(name) else {
            let known: Vec<_> = definition.params.keys().map(String::as_str).collect();
            let help = if known.is_empty() { "this filter has none".to_owned() } else { format!("it has {}", known.join(", ")) };
            let what = "is no parameter of this filter".to_owned();
            mistakes.push(Mistake { key: format!("param.{name}"), index: 0, at: None, what, help: Some(help) });
            continue;
        };
        match value {
            Param::Words(words) => words.clone_from(texts),
            Param::Text(text) => *text = texts.join("|"),
            Param::Nets(nets) => {
                nets.clear();
                for (index, text) in texts.iter().enumerate() {
                    match text.parse() {
                        Ok(net) => nets.push(net),
                        Err(_) => mistakes.push(Mistake {
                            key: format!("param.{name}"),
                            index,
                            at: None,
                            what: format!("{text:?} is neither an address nor a subnet"),
                            help: Some("write for example 192.0.2.1 or 192.0.2.0/24".to_owned()),
                        }),
                    }
                }
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str, options: &Options) -> Vec<String> {
        let definition = definition::parse("x", text).unwrap();
        let cite = |m: Mistake| format!("{}[{}] {:?}: {}", m.key, m.index, m.at, m.what);
        Filter::compile(&definition, &BTreeMap::new(), options).unwrap_err().into_iter().map(cite).collect()
    }

    #[test]
    fn all_mistakes_are_cited_at_once_where_they_stand() {
        let text = r#"
            failregex = ["no address", 'a <HOST> (b', 'x(?!y) <HOST>', '<head><HOST>', '<hed> <HOST>']
            okregex = ["fine"]
            variable = { head = "(" }
        "#;
        let options = Options { failregex_add: vec!["<HOST>[".to_owned()], ..Options::default() };
        let expected = [
            "failregex[1] Some(9..10): unclosed group",
            "failregex[2] Some(1..4): look-around, including look-ahead and look-behind, is not supported",
            "failregex[3] Some(0..6): unclosed group",
            "failregex[4] Some(0..5): <hed> is neither a tag, nor a parameter, nor a variable",
            "failregex_add[0] Some(6..7): unclosed character class",
            "failregex[0] None: names no address",
            "okregex[0] None: names no address",
        ];
        assert_eq!(mistakes(text, &options), expected);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(if cfg!(debug_assertions) { 60 } else { 5_000 }))]

        #[test]
        fn no_pattern_makes_it_panic(
            texts in proptest::collection::vec(r"(?:[<>/\\\\(?P:=!|*+{}$é\u{1F600} \[\]^%-]|F-|HOST|ADDR|CONTENT|USER|\\[1-9]|\(\?\(|.){0,24}", 4),
            line in "[aé<: ]{0,9}(?:1\\.2\\.3\\.4)?.{0,9}",
        ) {
            let [failregex, prefregex, other, variable] = &texts[..] else { unreachable!("four") };
            let alone = |(text, maxlines): (&String, u32)| Definition {
                patterns: Patterns { failregex: vec![format!("{text}<HOST>")], ..Patterns::default() },
                maxlines,
                ..Definition::default()
            };
            let own = |maxlines: u32| Definition {
                name: "x".to_owned(),
                patterns: Patterns {
                    prefregex: Some(format!("{prefregex}<F-CONTENT>.*</F-CONTENT>")),
                    failregex: vec![failregex.clone(), format!("{failregex}<HOST>"), format!("<v>{other}<HOST>")],
                    ignoreregex: vec![other.clone()],
                    okregex: if maxlines > 1 { Vec::new() } else { vec![format!("{other} <HOST>")] },
                },
                variables: BTreeMap::from([("v".to_owned(), variable.clone())]),
                maxlines,
                ..Definition::default()
            };
            let mut definitions = vec![own(1), own(2)];
            definitions.extend(texts.iter().flat_map(|text| [(text, 1), (text, 2)]).map(alone));
            let ini = |text: &String| text.replace(['\n', '\r', '%'], "");
            let file = format!(
                "[Definition]\nprefregex = {}<F-CONTENT>.*</F-CONTENT>\nfailregex = x{}<HOST>\n  <v>{}<HOST>\nignoreregex = x{}\n[Init]\nv = {}\n",
                ini(prefregex), ini(failregex), ini(other), ini(other), ini(variable)
            );
            let read = fail2ban::read("/x.conf", &BTreeMap::new(), &|path| Ok((path == "/x.conf").then(|| file.clone())));
            definitions.extend(read.map(|read| Definition { fail2ban: Some(Arc::new(read)), ..Definition::default() }));
            for definition in definitions {
                let Ok(filter) = Filter::compile(&definition, &BTreeMap::new(), &Options::default()) else { continue };
                let when = When { now: crate::terms::Time::from_secs(1_768_478_400), live: true };
                let mut found = Vec::new();
                Scanner::new(vec![Arc::new(filter)]).scan(format!("{line}\n{line}\n").as_bytes(), when, &mut found);
                proptest::prop_assert!(found.iter().all(|found| found.secrets.iter().all(|secret| secret.end <= found.len)));
            }
        }
    }

    #[test]
    fn modes_add_patterns_and_may_include_each_other() {
        let text = r#"
            failregex = "a <HOST>"
            [mode.more]
            failregex = "b <HOST>"
            [mode.aggressive]
            include = "more"
            failregex = "c <HOST>"
        "#;
        let definition = definition::parse("x", text).unwrap();
        let patterns = |mode: &str| {
            let params = BTreeMap::from([("mode".to_owned(), vec![mode.to_owned()])]);
            let filter = Filter::compile(&definition, &params, &Options::default())?;
            Ok::<_, Vec<Mistake>>(filter.failregex().map(|p| p[..1].to_owned()).collect::<String>())
        };
        assert_eq!(patterns("normal").unwrap(), "a");
        assert_eq!(patterns("more").unwrap(), "ab");
        assert_eq!(patterns("aggressive").unwrap(), "abc");
        assert_eq!(patterns("mad").unwrap_err()[0].help.as_deref(), Some("use aggressive, more"));
    }
}
