//! `ban`, `unban`, `ignore`, `unignore`, `pause`, `resume`, `reload`: what changes the daemon's mind.

use std::net::IpAddr;

use serde_json::Value;

use super::show::{ask, print};
use super::{Global, Shown, USAGE, complain};
use crate::control::Request;
use crate::terms::{Lasting, Span};

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
        complain("no address given\n  help: banset ban [JAIL] ADDR…, such as `banset ban 192.0.2.7 --for 2h`");
        return USAGE;
    }
    let Ban { span, permanent, reason, force } = options;
    let for_s = match span_s(span.as_deref()) {
        Ok(for_s) => for_s,
        Err(code) => return code,
    };
    // `--for permanent` says it, too.
    let permanent = permanent || (span.is_some() && for_s.is_none());
    match ask(global, Request::Ban { jail, addrs, for_s, permanent, reason, force }) {
        Ok(reply) => print(&reply, shown, |value| {
            let banned = rows(value, "banned").map(|row| format!("{} banned by {}\n", word(row, "addr"), word(row, "jail")));
            let already = rows(value, "already")
                .map(|row| format!("{} is banned by {} for at least as long\n", word(row, "addr"), word(row, "jail")));
            let notes = rows(value, "notes").filter_map(Value::as_str).map(|note| format!("{note}\n"));
            banned.chain(already).chain(notes).collect()
        }),
        Err(code) => code,
    }
}

/// The options of `banset unban`.
#[derive(Debug)]
pub struct Unban {
    /// `--all`
    pub all: bool,
    /// `--since`
    pub since: Option<String>,
    /// `--net`
    pub net: Option<String>,
    /// `--user`
    pub user: Option<String>,
    /// `--dry-run`
    pub dry_run: bool,
    /// `--forget`
    pub forget: bool,
}

/// `banset unban [JAIL] ADDR… | --all | --since T | --net N | --user U`
pub fn unban(global: &Global, what: Vec<String>, options: Unban, shown: Shown) -> u8 {
    let (jail, addrs) = split(what);
    let Unban { all, since, net, user, dry_run, forget } = options;
    let chosen = all || since.is_some() || net.is_some() || user.is_some();
    if addrs.is_empty() && !chosen {
        complain("no address given\n  help: banset unban [JAIL] ADDR…, or --all, --since, --net, --user");
        return USAGE;
    }
    // Who writes both means less than all of both: every jail, or the one address.
    if !addrs.is_empty() && chosen {
        complain(
            "addresses go without --all, --since, --net and --user\n  help: without a jail an address is unbanned from every one",
        );
        return USAGE;
    }
    let since_s = match since.as_deref().map(super::history::instant).transpose() {
        Ok(since_s) => since_s,
        Err(why) => {
            complain(format_args!("--since: {why}"));
            return USAGE;
        }
    };
    match ask(global, Request::Unban { jail, addrs, all, since_s, net, user, dry_run, forget }) {
        Ok(reply) => print(&reply, shown, |value| {
            let done = if value["dry_run"] == true { "would be unbanned" } else { "unbanned" };
            let lifted = rows(value, "lifted").map(|row| {
                let left = row["left_s"]
                    .as_u64()
                    .map_or_else(|| "permanent".to_owned(), |s| format!("{} were left", Span::from_secs(s)));
                format!("{} {done} from {} ({left})\n", word(row, "addr"), word(row, "jail"))
            });
            let absent = rows(value, "absent").filter_map(Value::as_str).map(|addr| format!("{addr} is not banned\n"));
            let notes = rows(value, "notes").filter_map(Value::as_str).map(|note| format!("{note}\n"));
            let said: String = lifted.chain(absent).chain(notes).collect();
            if said.is_empty() { "nobody was banned\n".to_owned() } else { said }
        }),
        Err(code) => code,
    }
}

/// What `--for` says, in seconds; `None` is for ever.
fn span_s(written: Option<&str>) -> Result<Option<u64>, u8> {
    match written.map(crate::config::duration) {
        None | Some(Ok(Lasting::Permanent)) => Ok(None),
        Some(Ok(Lasting::For(Span(0)))) => {
            complain("--for: is zero\n  help: write how long, for example \"10m\"");
            Err(USAGE)
        }
        Some(Ok(Lasting::For(span))) => Ok(Some(span.secs().max(1))),
        Some(Err(why)) => {
            complain(format_args!("--for: {why}"));
            Err(USAGE)
        }
    }
}

/// `banset ignore ADDR…`
pub fn ignore(
    global: &Global,
    addrs: Vec<String>,
    span: Option<String>,
    jail: Option<String>,
    reason: Option<String>,
    shown: Shown,
) -> u8 {
    let for_s = match span_s(span.as_deref()) {
        Ok(for_s) => for_s,
        Err(code) => return code,
    };
    match ask(global, Request::Ignore { addrs, for_s, jail, reason }) {
        Ok(reply) => print(&reply, shown, |value| {
            let ignored = rows(value, "ignored").map(|row| {
                let jail = row["jail"].as_str().map(|jail| format!(" by {jail}")).unwrap_or_default();
                let until = match row["until"].is_null() {
                    true => " until somebody takes it back".to_owned(),
                    false => format!(" until {}", super::show::stamp(&row["until"], shown.utc)),
                };
                format!("{} is ignored{jail}{until}\n", word(row, "addr"))
            });
            let lifted = rows(value, "lifted").map(|row| format!("{} unbanned from {}\n", word(row, "addr"), word(row, "jail")));
            ignored.chain(lifted).collect()
        }),
        Err(code) => code,
    }
}

/// `banset ignore --list`
pub fn ignored(global: &Global, shown: Shown) -> u8 {
    match ask(global, Request::Ignored) {
        Ok(reply) => print(&reply, shown, |value| {
            let listed = value.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(|row| {
                let jail = row["jail"].as_str().unwrap_or("all jails");
                let until = match row["until"].is_null() {
                    true => "until somebody takes it back".to_owned(),
                    false => format!("until {}", super::show::stamp(&row["until"], shown.utc)),
                };
                let reason = row["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
                format!("{} by {jail} {until}, by uid {}{reason}\n", word(row, "addr"), row["uid"])
            });
            let listed: String = listed.collect();
            if listed.is_empty() {
                "nothing is ignored by request; ignoreip is in `banset config show`\n".to_owned()
            } else {
                listed
            }
        }),
        Err(code) => code,
    }
}

/// `banset unignore ADDR…`
pub fn unignore(global: &Global, addrs: Vec<String>, jail: Option<String>, shown: Shown) -> u8 {
    match ask(global, Request::Unignore { addrs, jail }) {
        Ok(reply) => print(&reply, shown, |value| {
            let removed = rows(value, "removed").map(|row| {
                let jail = row["jail"].as_str().map(|jail| format!(" by {jail}")).unwrap_or_default();
                format!("{} is no longer ignored{jail}\n", word(row, "addr"))
            });
            let absent = rows(value, "absent").filter_map(Value::as_str).map(|said| format!("{said}\n"));
            removed.chain(absent).collect()
        }),
        Err(code) => code,
    }
}

/// `banset pause [JAIL]`
pub fn pause(global: &Global, jail: Option<String>, span: Option<String>, offline: bool, shown: Shown) -> u8 {
    let for_s = match span_s(span.as_deref()) {
        Ok(for_s) => for_s,
        Err(code) => return code,
    };
    let reply = match offline {
        true => Ok(super::offline::pause(global, jail.as_deref(), for_s)),
        false => ask(global, Request::Pause { jail, for_s }),
    };
    match reply {
        Ok(reply) => print(&reply, shown, |value| {
            let what = value["paused"].as_str().unwrap_or("every jail").to_owned();
            let until = match value["until"].is_null() {
                true => "until `banset resume`".to_owned(),
                false => format!("until {}", super::show::stamp(&value["until"], shown.utc)),
            };
            match value["rules"].as_u64() {
                // Nobody judges anything: there is no daemon.
                Some(rules) => {
                    format!("{what} is paused {until}, over starts of the daemon too: {rules} rules are out, bans stay\n")
                }
                None => format!("{what} is paused {until}: its rules are out, bans and judging go on\n"),
            }
        }),
        Err(code) => code,
    }
}

/// `banset resume [JAIL]`
pub fn resume(global: &Global, jail: Option<String>, offline: bool, shown: Shown) -> u8 {
    let reply = match offline {
        true => Ok(super::offline::resume(global, jail.as_deref())),
        false => ask(global, Request::Resume { jail }),
    };
    match reply {
        Ok(reply) => print(&reply, shown, |value| {
            let what = value["resumed"].as_str().unwrap_or("every jail").to_owned();
            match value["later"].as_str() {
                Some(later) => format!("{what} is resumed: {later}\n"),
                None => format!("{what} is resumed: its rules are back\n"),
            }
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
