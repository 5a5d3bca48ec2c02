//! Filters of ours that use what only fail2ban's way with a line knows: patterns over several lines, date patterns in
//! fail2ban's notation, names and networks. They are judged that way, as a whole.
//!
//! It is the slower way, and knows neither `okregex` nor `once`: a filter that mixes the two is told so.

use std::collections::BTreeMap;

use super::dates::DatePattern;
use super::definition::{Definition, Mistake, Param};
use super::fail2ban::Resolved;
use super::fail2ban::resolve::Text;
use super::{Chosen, Options};

/// Tags that only fail2ban's way understands.
const TAGS: [&str; 5] = ["<SKIPLINES>", "<DNS>", "<CIDR>", "<SUBNET>", "<F-TUPLE_"];

/// Variables pull in variables at most this deep, and a pattern this many texts.
const DEPTH: usize = 16;
const MOST: u32 = 10_000;
/// No pattern is longer once everything is put in.
const LONGEST: usize = 64 * 1024;

/// Why a filter needs fail2ban's way; nothing if it does not.
pub(super) fn why(definition: &Definition, options: &Options, chosen: &Chosen<'_>) -> Option<&'static str> {
    let texts = definition.variables.values().map(String::as_str).chain(chosen.texts());
    let dates = options.datepattern.as_ref().unwrap_or(&definition.datepattern);
    if options.maxlines.unwrap_or(definition.maxlines) > 1 {
        return Some("maxlines");
    }
    if dates.len() > 1 || dates.iter().any(|text| DatePattern::parse(text).is_none()) {
        return Some("its datepattern");
    }
    texts.into_iter().find_map(|text| TAGS.into_iter().find(|tag| text.contains(tag)))
}

/// The filter as fail2ban's way takes it, every variable and parameter put in.
pub(super) fn resolve(
    definition: &Definition,
    values: &BTreeMap<String, Param>,
    chosen: &Chosen<'_>,
    why: &str,
) -> Result<Resolved, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut refuse = |key: &str, index: usize, what: String, help: &str| {
        mistakes.push(Mistake { key: key.to_owned(), index, at: None, what, help: Some(help.to_owned()) });
    };
    if definition.once.is_some() {
        refuse("once.key", 0, format!("does not go together with {why}"), "join lines with <F-MLFID> instead");
    }
    if !chosen.okregex.is_empty() {
        refuse("okregex", 0, format!("does not go together with {why}"), "leave one of them out");
    }
    let mut put_in = |written: &super::Written<'_>| match fill(written.text, &definition.variables, values, (0, &mut 0)) {
        Ok(text) => Text { text, place: (definition.name.clone(), 0) },
        Err(what) => {
            refuse(&written.key, written.index, what, "see the variables and parameters of this filter");
            Text::default()
        }
    };
    let resolved = Resolved {
        files: Vec::new(),
        prefregex: chosen.prefregex.as_ref().map(&mut put_in),
        failregex: chosen.failregex.iter().map(&mut put_in).collect(),
        ignoreregex: chosen.ignoreregex.iter().map(&mut put_in).collect(),
        datepattern: definition
            .datepattern
            .iter()
            .map(|text| Text { text: text.clone(), place: (definition.name.clone(), 0) })
            .collect(),
        journalmatch: definition.journalmatch.clone(),
        maxlines: definition.maxlines.max(1),
        usedns: None,
    };
    if mistakes.is_empty() { Ok(resolved) } else { Err(mistakes) }
}

/// A text with its `<name>`s put in.
fn fill(
    text: &str,
    variables: &BTreeMap<String, String>,
    values: &BTreeMap<String, Param>,
    (depth, pulled): (usize, &mut u32),
) -> Result<String, String> {
    *pulled += 1;
    if depth > DEPTH || *pulled > MOST {
        return Err("its variables pull in each other".to_owned());
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('<') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        let name = rest[1..].find('>').map(|end| &rest[1..=end]);
        let value = match name {
            Some(name) if variables.contains_key(name) => fill(&variables[name], variables, values, (depth + 1, &mut *pulled))?,
            Some(name) => match values.get(name) {
                Some(Param::Text(text)) => fill(text, variables, values, (depth + 1, &mut *pulled))?,
                Some(Param::Words(words)) if words.is_empty() => r"\S*".to_owned(),
                Some(Param::Words(words)) => {
                    let words: Vec<String> = words.iter().map(|word| regex::escape(word)).collect();
                    format!("(?:{})", words.join("|"))
                }
                Some(Param::Nets(_)) => return Err(format!("<{name}>: networks are judged in our own way only")),
                None => match field(name) {
                    Some(field) => field,
                    None => {
                        out.push('<');
                        rest = &rest[1..];
                        continue;
                    }
                },
            },
            None => {
                out.push('<');
                rest = &rest[1..];
                continue;
            }
        };
        out.push_str(&value);
        rest = &rest[name.map_or(1, |name| name.len() + 2)..];
        if out.len() > LONGEST {
            return Err("is too long once everything is put in".to_owned());
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// `<F-NAME/>` in full, unless it stands for the same in fail2ban's notation.
fn field(tag: &str) -> Option<String> {
    let name = tag.strip_prefix("F-")?.strip_suffix('/')?;
    if ["ADDR", "IP4", "IP6", "DNS", "CIDR", "SUBNET", "ID", "PORT"].contains(&name) {
        return None;
    }
    let what = if name == "ATTEMPTS" { "[0-9]+" } else { r"\S+" };
    Some(format!("<F-{name}>{what}</F-{name}>"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Filter, Found, Kind, Options, Scanner, When, definition};
    use crate::terms::Time;

    fn found(filter: &str, text: &str) -> Vec<String> {
        let definition = definition::parse("x", filter).expect("a filter");
        let filter = Filter::compile(&definition, &Default::default(), &Options::default()).expect("it compiles");
        let mut scanner = Scanner::new(vec![Arc::new(filter)]);
        let mut found: Vec<Found> = Vec::new();
        scanner.scan(text.as_bytes(), When { now: Time::from_secs(1_768_471_200), live: false }, &mut found);
        found
            .iter()
            .filter(|found| found.kind == Kind::Failure)
            .map(|found| format!("{} {}", found.addr, found.time.secs()))
            .collect()
    }

    #[test]
    fn a_date_in_fail2bans_notation_is_found_and_cut() {
        let filter = "failregex = '^\\s*login failed from <ADDR>$'\ndatepattern = '^%d\\.%m\\.%Y %H:%M:%S'\n";
        assert_eq!(found(filter, "14.01.2026 21:59:59 login failed from 192.0.2.1\n"), ["192.0.2.1 1768427999"]);
    }

    #[test]
    fn a_pattern_spans_lines_and_pulls_in_variables() {
        let filter = "failregex = '<head> start <F-USER>\\S+</F-USER><SKIPLINES><head> refused <ADDR>$'\nmaxlines = 3\n\
                      [variable]\nhead = '^\\s*x\\[<tail>\\]:'\ntail = '\\d+'\n";
        let text = "2026-01-14 21:59:58 x[1]: start bob\n2026-01-14 21:59:58 y\n2026-01-14 21:59:59 x[1]: refused 192.0.2.1\n";
        assert_eq!(found(filter, text), ["192.0.2.1 1768427999"]);
    }

    #[test]
    fn tags_mean_what_they_mean_elsewhere() {
        let filter = "failregex = '^ <word>: <F-ATTEMPTS/> times <F-USER/> <ADDR>$'\ndatepattern = '^%d\\.%m\\.%Y %H:%M:%S'\n\
                      [param]\nword = { words = [] }\n";
        let definition = definition::parse("x", filter).expect("a filter");
        let filter = Filter::compile(&definition, &Default::default(), &Options::default()).unwrap_or_else(|m| panic!("{m:?}"));
        let mut found: Vec<Found> = Vec::new();
        let lines = b"14.01.2026 21:59:59 x: 3 times bob 192.0.2.1\n14.01.2026 21:59:59 : 0 times bob 192.0.2.1\n";
        Scanner::new(vec![Arc::new(filter)]).scan(lines, When { now: Time::from_secs(1_768_471_200), live: false }, &mut found);
        let told: Vec<_> = found.iter().map(|found| (found.attempts, found.user.as_deref())).collect();
        assert_eq!(told, [(3, Some(&b"bob"[..])), (1, Some(&b"bob"[..]))]);
    }

    #[test]
    fn passwords_are_marked_in_the_line() {
        let filter = "prefregex = '^ x(?:\\[\\d+\\])?: <F-CONTENT>.+</F-CONTENT>$'\n\
            failregex = \"^bad '<F-SECRET>.*</F-SECRET>': <F-REASON>\\\\w+</F-REASON> <ADDR>$\"\n\
            datepattern = '^\\[?%d\\.%m\\.%Y %H:%M:%S\\]?'\n";
        let definition = definition::parse("x", filter).expect("a filter");
        let filter = Filter::compile(&definition, &Default::default(), &Options::default()).unwrap_or_else(|m| panic!("{m:?}"));
        let mut scanner = Scanner::new(vec![Arc::new(filter)]);
        let lines: [&[u8]; 5] = [
            b"14.01.2026 21:59:59 x[1]: bad 'hunter2': y 192.0.2.1",
            b" x[1]: bad 'hunter2': y 192.0.2.1",
            b"14.01.2026 21:59:59 x[1]: message repeated 3 times: [ bad 'hunter2': y 192.0.2.1]",
            b"14.01.2026 21:59:59 x[1]: bad 'h\xe9\xfft\xc3\xa9r2': y 192.0.2.1",
            b"14.01.2026 21:59:59 x[1]: bad '': y 192.0.2.1",
        ];
        for (line, secret) in lines.into_iter().zip([&b"hunter2"[..], b"hunter2", b"hunter2", b"h\xe9\xfft\xc3\xa9r2", b""]) {
            let mut found: Vec<Found> = Vec::new();
            let when = When { now: Time::from_secs(1_768_471_200), live: false };
            scanner.scan(&[line, b"\n"].concat(), when, &mut found);
            let marked = &found[0].secrets[0];
            assert_eq!(&line[marked.start as usize..marked.end as usize], secret, "{}", line.escape_ascii());
            assert_eq!(found[0].reason.as_deref(), Some(&b"y"[..]));
        }
    }

    #[test]
    fn what_does_not_go_together_is_told() {
        let filter = "failregex = '^a <ADDR>$'\nokregex = '^b <ADDR>$'\nmaxlines = 2\nonce = { key = ['addr'], within = '5s' }\n";
        let definition = definition::parse("x", filter).expect("a filter");
        let mistakes = Filter::compile(&definition, &Default::default(), &Options::default()).expect_err("refused");
        let told: Vec<String> = mistakes.iter().map(|m| format!("{}: {}", m.key, m.what)).collect();
        assert_eq!(told, ["once.key: does not go together with maxlines", "okregex: does not go together with maxlines"]);
    }
}
