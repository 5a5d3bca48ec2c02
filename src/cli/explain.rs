//! `explain`: what each step says about a line, or why an address is not banned.
//!
//! The line's way is told without the daemon: the configuration is read, the jail's filter compiled, and each step says what it
//! makes of the line. What only the daemon knows (earlier failures, the kernel's sets) is asked of it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use clap::Args as Arguments;
use ipnetwork::IpNetwork;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::show::{socket, stamp};
use super::{Global, NEGATIVE, Shown, UNREACHABLE, USAGE, complain, err, load, out};
use crate::config::run::Backend;
use crate::config::{Config, Jail};
use crate::control::{Request, client};
use crate::engine::machine;
use crate::filter::trial::{Said, Step, Steps, Trial};
use crate::filter::{Filter, Mistake, Options};
use crate::jail::ignore::is_nobody;
use crate::terms::{Lasting, Time, escape, fold, head};

/// The arguments of `banset explain`.
#[derive(Debug, Arguments)]
pub struct Args {
    /// The jail
    #[arg(required_unless_present = "addr")]
    jail: Option<String>,
    /// The line, quoted
    #[arg(required_unless_present = "addr")]
    line: Option<String>,
    /// An address: is it banned, by whom, and would it be ignored
    #[arg(long, value_name = "ADDR", conflicts_with = "line")]
    addr: Option<String>,
    /// The line is a message of the journal: it bears no date
    #[arg(long)]
    journal: bool,
    /// What time it is, in seconds since 1970
    #[arg(long, value_name = "UNIX")]
    now: Option<i64>,
    #[command(flatten)]
    shown: Shown,
}

/// A pattern's literals beyond this many say no more.
const SHOWN: usize = 6;

/// `banset explain`
pub fn explain(global: &Global, args: &Args) -> u8 {
    let (_, loaded) = load::read(&load::paths(global));
    let Some(config) = &loaded.config else {
        err(&loaded.report);
        return NEGATIVE;
    };
    if let Some(text) = &args.addr {
        return match text.parse::<IpAddr>() {
            Ok(addr) => address(global, config, args, fold(addr)),
            Err(_) => {
                complain(format_args!(
                    "--addr {}: no address\n  help: write one such as 192.0.2.7 or 2001:db8::7",
                    escape(text.as_bytes(), 80)
                ));
                USAGE
            }
        };
    }
    let (Some(name), Some(line)) = (&args.jail, &args.line) else { return USAGE };
    let Some(jail) = config.jail(name).filter(|jail| jail.filter.is_some()) else {
        unknown(config, name);
        return USAGE;
    };
    match tell(config, jail, line, args) {
        Ok(told) => {
            if args.shown.json {
                out(&format!("{}\n", told.json));
            } else {
                out(&told.text);
            }
            if told.counts { 0 } else { NEGATIVE }
        }
        Err(why) => {
            complain(&why);
            NEGATIVE
        }
    }
}

/// Says what there is instead of a jail of that name.
fn unknown(config: &Config, name: &str) {
    let known: Vec<&str> = config.jails.iter().filter(|jail| jail.filter.is_some()).map(|jail| jail.name.as_str()).collect();
    let shown = escape(name.as_bytes(), 80);
    match config.broken.iter().find(|broken| broken.name == *name) {
        Some(broken) => complain(format_args!("jail {shown} is broken: {}", broken.why)),
        None if known.is_empty() => {
            complain(format_args!("there is no jail {shown}\n  help: none is enabled: write enabled = true in [jail.NAME]"));
        }
        None => complain(format_args!("there is no jail {shown}\n  help: enabled are {}", known.join(", "))),
    }
}

struct Told {
    text: String,
    json: Value,
    /// The line is a failure that counts.
    counts: bool,
}

fn tell(config: &Config, jail: &Jail, line: &str, args: &Args) -> Result<Told, String> {
    let Some(used) = &jail.filter else { return Err(format!("jail {} has no filter", jail.name)) };
    let zone = jail.logtimezone.clone().unwrap_or_else(TimeZone::system);
    let options = Options { logtimezone: zone.clone(), ..Options::default() };
    let journal = args.journal || jail.backend == Backend::Journal;
    let definition = used.on_journal.as_ref().filter(|_| journal).unwrap_or(&used.definition);
    let filter = Filter::compile(definition, &used.params, &options);
    let why = |mistakes: Vec<Mistake>| mistakes.first().map_or_else(String::new, |mistake| mistake.what.clone());
    let filter = Arc::new(filter.map_err(|mistakes| format!("filter {}: {}", used.name, why(mistakes)))?);
    let now = args.now.map_or_else(Time::now, Time::from_secs);
    let given = journal.then_some(now);
    let mut trial = Trial::new(Arc::clone(&filter));
    let steps = trial.steps(line.as_bytes(), given, now);
    let tried = trial.line(line.as_bytes(), given, now, true);
    let patterns: Vec<&str> = filter.failregex().collect();
    let mut text = String::new();
    let mut json = json!({ "jail": jail.name, "filter": used.name, "text": steps.text });
    _ = writeln!(text, "jail {}, filter {}, {} failregex", jail.name, used.name, patterns.len());

    if journal && let Some(entries) = &jail.entries {
        _ = writeln!(text, "entries:   {}: {entries}", jail.journal);
        json["entries"] = json!(entries.to_string());
    }

    // 1. The date.
    let stamp = |time: Time| {
        jiff::Timestamp::from_microsecond(time.0)
            .map_or_else(|_| "?".to_owned(), |t| t.to_zoned(zone.clone()).strftime("%FT%T%:z").to_string())
    };
    match (&steps.date, given) {
        (Some((at, time)), _) => {
            let cut = line.get(at.clone()).unwrap_or_default();
            let means = time.map_or_else(|| "which is no date that exists".to_owned(), stamp);
            _ = writeln!(text, "date:      {:?}, {means}; cut out", escape(cut.as_bytes(), 80));
            json["date"] = json!({ "text": cut, "start": at.start, "end": at.end, "time": time.map(stamp) });
        }
        (None, Some(_)) => text.push_str("date:      the journal's own\n"),
        (None, None) => text.push_str("date:      none found: the line counts as just written\n"),
    }
    // 2. What patterns see.
    _ = writeln!(text, "text:      {}", escape(steps.text.as_bytes(), 400));
    if filter.prefregex().is_some() {
        match &steps.content {
            Some(content) => _ = writeln!(text, "prefregex: matches, and hands on {}", escape(content.as_bytes(), 400)),
            None => text.push_str("prefregex: does not match, so no failregex is tried\n"),
        }
        json["content"] = json!(steps.content);
    }
    // 3. The literals, and the patterns.
    let lacking = steps.patterns.iter().filter(|step| !step.lacks.is_empty()).count();
    _ = writeln!(text, "literals:  {lacking} of {} failregex can not match, for want of a text they need", patterns.len());
    let matching: Vec<usize> = steps.patterns.iter().enumerate().filter(|(_, step)| step.matches).map(|(i, _)| i).collect();
    json["matching"] = json!(matching.iter().map(|i| json!({ "index": i + 1, "pattern": patterns.get(*i) })).collect::<Vec<_>>());
    for index in &matching {
        _ = writeln!(text, "failregex: {} matches: {}", index + 1, patterns.get(*index).unwrap_or(&""));
    }
    if matching.is_empty() {
        nearest(&steps, &patterns, &mut text, &mut json);
    }
    // 4. What it amounts to.
    let mut counts = false;
    let verdict = match &tried.said {
        Said::Failure(failure) => {
            json["id"] = json!(failure.id);
            json["user"] = json!(failure.user);
            if let Some(user) = &failure.user {
                _ = writeln!(text, "account:   {}", escape(user.as_bytes(), 200));
            }
            match failure.addr {
                None => format!("not counted: {} is no address", escape(failure.id.as_bytes(), 200)),
                Some(net) => {
                    _ = writeln!(text, "address:   {}", failure.id);
                    match ignored(config, jail, net.ip()) {
                        Some(why) => {
                            json["ignored"] = json!(why);
                            format!("ignored: {why}")
                        }
                        None => {
                            counts = true;
                            let times =
                                if failure.repeated > 1 { format!(", {} times over", failure.repeated) } else { String::new() };
                            format!("a failure of {}{times}: {}", net.ip(), policy(jail))
                        }
                    }
                }
            }
        }
        Said::Ok(addr, _) => format!("a login of {addr} that succeeded: no failure"),
        Said::Ignored(index) => {
            let pattern = filter.ignoreregex().nth(*index).unwrap_or_default().to_owned();
            json["ignoreregex"] = json!(pattern);
            format!("excused by ignoreregex {}: {pattern}", index + 1)
        }
        Said::Context => "context of a connection: no failure by itself".to_owned(),
        Said::Pending => "a failure whose address another line of the same connection must name".to_owned(),
        Said::Reported => "it reports a try that an earlier line reported".to_owned(),
        Said::Missed => "no failure".to_owned(),
    };
    _ = writeln!(text, "verdict:   {verdict}");
    json["verdict"] = json!(verdict);
    json["counts"] = json!(counts);
    Ok(Told { text, json, counts })
}

/// The pattern that came farthest, and what it wanted.
fn nearest(steps: &Steps, patterns: &[&str], text: &mut String, json: &mut Value) {
    let far = |step: &Step| step.reach.as_ref().map_or(0, |(bytes, _)| *bytes);
    let best =
        steps.patterns.iter().enumerate().max_by_key(|(i, step)| (far(step), usize::MAX - step.lacks.len(), usize::MAX - i));
    let Some((index, step)) = best else { return };
    _ = writeln!(text, "failregex: none matches; the nearest is {}: {}", index + 1, patterns.get(index).unwrap_or(&""));
    json["nearest"] = json!({ "index": index + 1, "pattern": patterns.get(index), "lacks": step.lacks });
    if let Some((bytes, _)) = step.reach.as_ref().filter(|(bytes, _)| *bytes > 0) {
        let seen = steps.content.as_deref().unwrap_or(&steps.text);
        let taken = head(seen, *bytes);
        let left = &seen[taken.len()..];
        json["nearest"]["took"] = json!(taken);
        json["nearest"]["left"] = json!(left);
        let (taken, left) = (escape(taken.as_bytes(), 300), escape(left.as_bytes(), 300));
        _ = writeln!(text, "           its beginning takes in {taken:?}\n           and stops before {left:?}");
    }
    for set in step.lacks.iter().take(SHOWN) {
        let words: Vec<String> = set.iter().take(SHOWN).map(|word| format!("{:?}", escape(word.as_bytes(), 80))).collect();
        _ = writeln!(text, "           the line lacks {}", words.join(" or "));
    }
}

fn policy(jail: &Jail) -> String {
    let time = match jail.bantime {
        Lasting::For(span) => format!("for {span}"),
        Lasting::Permanent => "until somebody lifts it".to_owned(),
    };
    format!(
        "{} within {} ban {time}{}",
        jail.maxretry,
        jail.findtime,
        if jail.observe { ", but the jail only observes" } else { "" }
    )
}

/// Why an address is never judged by this jail, as far as the configuration and the machine say.
fn ignored(config: &Config, jail: &Jail, addr: IpAddr) -> Option<String> {
    if is_nobody(addr) {
        return Some("such an address is nobody's".to_owned());
    }
    let covers = |nets: &[IpNetwork]| nets.iter().find(|net| net.contains(addr)).copied();
    for list in config.ignored(jail) {
        if let Some(net) = covers(&list.nets) {
            return Some(format!("ignoreip {net}"));
        }
    }
    let machine = machine::read().ok()?;
    if machine.gateways.contains(&addr) {
        return Some("the default gateway".to_owned());
    }
    (jail.ignoreself && machine.addresses.contains(&addr)).then(|| "ignoreself: an address of this machine".to_owned())
}

/// What the daemon has gathered about an address in one jail; nothing is said of a jail that knows nothing of it.
fn gathered(row: &Value, utc: bool, text: &mut String) {
    let until = |what: &Value, without: &str| match what["until"].is_null() {
        true => without.to_owned(),
        false => format!("until {}", stamp(&what["until"], utc)),
    };
    let field = |name: &str| row[name].as_str().unwrap_or("?").to_owned();
    let (jail, failures, offences) =
        (field("jail"), row["failures"].as_u64().unwrap_or(0), row["offences"].as_u64().unwrap_or(0));
    for held in row["banned"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let until = until(held, "permanently");
        let why = held["reason"].as_str().map(|reason| format!(", {reason}")).unwrap_or_default();
        _ = writeln!(text, "daemon: banned by {jail} as {} {until}{why}", held["addr"].as_str().unwrap_or("?"));
    }
    if failures > 0 {
        let (most, findtime, counted) = (&row["maxretry"], field("findtime"), field("counted_as"));
        _ = writeln!(text, "daemon: {jail} has counted {failures} of {most} failures within {findtime} for {counted}");
    }
    if offences > 0 {
        _ = writeln!(text, "daemon: {jail} remembers {offences} earlier bans of it");
    }
    if let Some(by) = row["ignored"].as_str() {
        _ = writeln!(text, "daemon: {jail} ignores it now: {by}");
    }
    if !row["paused"].is_null() {
        let until = until(&row["paused"], "until `banset resume`");
        _ = writeln!(text, "daemon: {jail} is paused {until}: its bans do not bite");
    }
}

/// `banset explain --addr ADDR`
fn address(global: &Global, config: &Config, args: &Args, addr: IpAddr) -> u8 {
    let mut text = String::new();
    let mut json = json!({ "addr": addr.to_string() });
    let jails: Vec<&Jail> = match &args.jail {
        Some(name) => config.jail(name).into_iter().collect(),
        None => config.jails.iter().filter(|jail| jail.filter.is_some()).collect(),
    };
    if let (Some(name), true) = (&args.jail, jails.is_empty()) {
        unknown(config, name);
        return USAGE;
    }
    let mut rows = Vec::new();
    for jail in &jails {
        let why = ignored(config, jail, addr);
        let says = match &why {
            Some(why) => format!("ignores it: {why}"),
            None => policy(jail),
        };
        _ = writeln!(text, "jail {}: {says}", jail.name);
        rows.push(json!({ "jail": jail.name, "ignored": why }));
    }
    json["jails"] = json!(rows);
    if jails.is_empty() {
        text.push_str("no jail is enabled\n");
    }
    for broken in &config.broken {
        _ = writeln!(text, "jail {}: broken: {}", broken.name, broken.why);
    }
    let mut exit = NEGATIVE;
    match client::ask(&socket(global), Request::Explain { addr: addr.to_string(), jail: args.jail.clone() }) {
        Ok(reply) => {
            let said = reply.result["jails"].as_array().cloned().unwrap_or_default();
            if let Some(why) = &reply.error {
                _ = writeln!(text, "daemon: {why}");
            }
            for row in &said {
                gathered(row, args.shown.utc, &mut text);
                if row["banned"].as_array().is_some_and(|held| !held.is_empty()) {
                    exit = 0;
                }
            }
            if exit != 0 && reply.error.is_none() {
                text.push_str("daemon: no jail holds it\n");
            }
            let holders = said.iter().filter_map(|row| row["banned"].as_array()).flatten().cloned().collect::<Vec<_>>();
            json["banned"] = json!(holders);
            json["daemon"] = json!(said);
        }
        Err(why) => {
            _ = writeln!(text, "daemon: {why}");
            json["banned"] = Value::Null;
            exit = UNREACHABLE;
        }
    }
    out(&if args.shown.json { format!("{json}\n") } else { text });
    exit
}
