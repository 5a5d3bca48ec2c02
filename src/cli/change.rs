//! `ban`, `unban`, `reload`: what changes the daemon's mind.

use std::net::IpAddr;

use serde_json::Value;

use super::show::{ask, print};
use super::{Global, Shown, USAGE};
use crate::control::Request;

/// The options of `banset ban`.
#[derive(Debug)]
pub struct Ban {
    /// `--for`
    pub span: Option<String>,
    /// `--permanent`
    pub permanent: bool,
    /// `--reason`
    pub reason: Option<String>,
    /// `--force`
    pub force: bool,
}

/// The first word is a jail unless it is an address or a subnet: jail names begin with a letter and hold no `.`, `:` or `/`.
fn split(mut what: Vec<String>) -> (Option<String>, Vec<String>) {
    let is_jail = |word: &String| word.parse::<IpAddr>().is_err() && !word.contains(['.', ':', '/']);
    match what.first() {
        Some(first) if is_jail(first) => {
            let jail = what.remove(0);
            (Some(jail), what)
        }
        _ => (None, what),
    }
}

/// `banset ban [JAIL] ADDR…`
pub fn ban(global: &Global, what: Vec<String>, options: Ban, shown: Shown) -> u8 {
    let (jail, addrs) = split(what);
    if addrs.is_empty() {
        eprintln!("banset: no address given\n  help: banset ban [JAIL] ADDR…, such as `banset ban 192.0.2.7 --for 2h`");
        return USAGE;
    }
    let for_s = match options.span.as_deref().map(crate::config::duration) {
        None => None,
        Some(Ok(crate::terms::Lasting::For(span))) => Some(span.secs()),
        Some(Ok(crate::terms::Lasting::Permanent)) => {
            return ban(global, rejoin(jail, addrs), Ban { span: None, permanent: true, ..options }, shown);
        }
        Some(Err(why)) => {
            eprintln!("banset: --for: {why}");
            return USAGE;
        }
    };
    let Ban { permanent, reason, force, .. } = options;
    match ask(global, Request::Ban { jail, addrs, for_s, permanent, reason, force }) {
        Ok(reply) => print(&reply, shown, |value| {
            let banned = rows(value, "banned").map(|row| format!("{} banned by {}\n", word(row, "addr"), word(row, "jail")));
            let already = rows(value, "already")
                .map(|row| format!("{} is banned by {} for at least as long\n", word(row, "addr"), word(row, "jail")));
            banned.chain(already).collect()
        }),
        Err(code) => code,
    }
}

fn rejoin(jail: Option<String>, addrs: Vec<String>) -> Vec<String> {
    jail.into_iter().chain(addrs).collect()
}

/// `banset unban [JAIL] ADDR… | --all`
pub fn unban(global: &Global, what: Vec<String>, all: bool, forget: bool, shown: Shown) -> u8 {
    let (jail, addrs) = split(what);
    if addrs.is_empty() && !all {
        eprintln!("banset: no address given\n  help: banset unban [JAIL] ADDR…, or --all");
        return USAGE;
    }
    match ask(global, Request::Unban { jail, addrs, all, forget }) {
        Ok(reply) => print(&reply, shown, |value| {
            let lifted = rows(value, "lifted").map(|row| {
                let left = row["left_s"]
                    .as_u64()
                    .map_or_else(|| "permanent".to_owned(), |s| format!("{} were left", crate::terms::Span::from_secs(s)));
                format!("{} unbanned from {} ({left})\n", word(row, "addr"), word(row, "jail"))
            });
            let absent = rows(value, "absent").filter_map(Value::as_str).map(|addr| format!("{addr} is not banned\n"));
            let notes = rows(value, "notes").filter_map(Value::as_str).map(|note| format!("{note}\n"));
            let said: String = lifted.chain(absent).chain(notes).collect();
            if said.is_empty() { "nobody was banned\n".to_owned() } else { said }
        }),
        Err(code) => code,
    }
}

/// `banset reload`
pub fn reload(global: &Global, shown: Shown) -> u8 {
    match ask(global, Request::Reload) {
        Ok(reply) => print(&reply, shown, |value| {
            let changed: Vec<&str> = rows(value, "changed").filter_map(Value::as_str).collect();
            format!("reloaded: {}\n", changed.join("\n          "))
        }),
        Err(code) => code,
    }
}

fn rows<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_is_a_jail_unless_it_is_an_address() {
        let table = [
            ("sshd 192.0.2.7", Some("sshd"), 1),
            ("192.0.2.7 192.0.2.8", None, 2),
            ("2001:db8::1", None, 1),
            ("192.0.2.0/24", None, 1),
            ("qmail-smtp ::1", Some("qmail-smtp"), 1),
            ("192.0.2.999", None, 1),
            ("sshd", Some("sshd"), 0),
        ];
        for (words, jail, addrs) in table {
            let (found, rest) = split(words.split(' ').map(str::to_owned).collect());
            assert_eq!((found.as_deref(), rest.len()), (jail, addrs), "{words}");
        }
    }
}
