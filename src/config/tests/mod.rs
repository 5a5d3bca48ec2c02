//! The loader from outside: texts in, configuration and report out.

use super::*;
use crate::filter::definition::Expect;

/// Filters by the names that the shipped jails use, as small as can be.
const FILTERS: &[(&str, &str)] = &[
    ("dovecot", "failregex = '^<HOST>$'"),
    ("qmail-smtp", "failregex = '^<HOST>$'\nparam.reasons.words = []"),
    ("qmailadmin", "failregex = '^<HOST>$'"),
    ("roundcube", "failregex = '^<HOST>$'\nparam.proxy.nets = []"),
    ("sendmail-auth", "failregex = '^<HOST>$'"),
    ("sshd", "failregex = '^<HOST>$'\n[mode.aggressive]\nfailregex = 'x <HOST>$'"),
    ("vpopmail", "failregex = '^<HOST>$'\n[[sample]]\nline = '192.0.2.1'\naddr = '192.0.2.1'"),
];

const SHIPPED: Shipped<'_> = Shipped { jails: shipped::JAILS, filters: FILTERS };

/// A text in its layer, as its path says.
fn text(path: &str, text: &str) -> Text {
    let stem = path.rsplit('/').next().unwrap_or("").trim_end_matches(".toml").to_owned();
    let role = match path.split('/').next() {
        Some("filter.d") => Role::Filter(stem),
        Some("jail.d") => Role::Jail(stem),
        Some("banset.d") => Role::DropIn,
        Some("environment") => Role::Environment,
        _ => Role::Main,
    };
    Text { path: path.to_owned(), role, text: text.to_owned(), fault: None }
}

/// Enough of a filter room to be cited: a pattern that does not parse, one without an address, a sample that one pattern misses.
struct Strict;

impl Judge for Strict {
    fn compile(&self, filter: &Definition, _: &BTreeMap<String, Vec<String>>) -> Vec<Mistake> {
        let mistake = |index, at, what: &str, help: &str| Mistake {
            key: "failregex".to_owned(),
            index,
            at,
            what: what.to_owned(),
            help: Some(help.to_owned()),
        };
        let mut out = Vec::new();
        for (index, pattern) in filter.patterns.failregex.iter().enumerate() {
            if !pattern.contains("<HOST>") {
                out.push(mistake(
                    index,
                    None,
                    "no address: the pattern has none of the tags that find one",
                    "put <HOST> where the address stands",
                ));
            } else if let Err(error) = regex_syntax::parse(&pattern.replace("<HOST>", "(?::x)")) {
                let regex_syntax::Error::Parse(error) = error else { continue };
                let at = error.span().start.offset..error.span().end.offset;
                out.push(mistake(index, Some(at), &error.kind().to_string(), "see banset-filter(5)"));
            }
        }
        out
    }

    fn fail2ban(&self, path: &str, params: &BTreeMap<String, String>) -> Result<Fail2ban, Vec<String>> {
        if params.get("mode").is_some_and(|mode| mode == "nonsense") {
            return Err(vec![format!("{path}:17: failregex 2: <mdre-nonsense> names nothing")]);
        }
        let resolved = crate::filter::fail2ban::Resolved::default();
        let definition = Definition { fail2ban: Some(std::sync::Arc::new(resolved)), ..Definition::default() };
        Ok(Fail2ban { definition, notes: vec![format!("{path}: beyond linear time: failregex 1")] })
    }

    fn verify(&self, filter: &Definition) -> Vec<Mistake> {
        let misses = |line: &str| {
            filter
                .patterns
                .failregex
                .iter()
                .all(|pattern| regex::Regex::new(&pattern.replace("<HOST>", ".*")).is_ok_and(|regex| !regex.is_match(line)))
        };
        let samples = filter
            .samples
            .iter()
            .enumerate()
            .filter(|(_, sample)| misses(&sample.line) && matches!(sample.expect, Expect::Addr(_)))
            .filter(|_| filter.patterns.prefregex.is_none());
        samples
            .map(|(index, _)| Mistake {
                key: "sample".to_owned(),
                index,
                at: None,
                what: "no failregex matches".to_owned(),
                help: None,
            })
            .collect()
    }
}

fn understood(texts: &[(&str, &str)]) -> Loaded {
    let sources = Sources { texts: texts.iter().map(|(path, content)| text(path, content)).collect() };
    understand(&sources, SHIPPED, &Strict)
}

mod example;
mod precedence;
mod real;
mod robust;
mod wrong;
