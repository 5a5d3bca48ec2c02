//! `events` and `apply`: bans as a stream of JSON lines, out of this machine and into another that enforces them.
//!
//! ```text
//! banset events --follow --since "$(ssh firewall banset apply --last --origin mx2)" | ssh firewall banset apply - --origin mx2
//! ```

use std::io::{BufRead, Read, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::regex::skip_line;
use super::show::{ask, socket};
use super::{Global, NEGATIVE, UNREACHABLE, USAGE, complain, complain_of, out};
use crate::control::request::{Given, GivenWhat, REQUEST_AT_MOST};
use crate::control::{Request, client};
use crate::terms::escape;

/// How long a follower's question may wait for an event.
const WAIT_S: u64 = 50;
/// Between two tries to reach a daemon that went away, and how long `apply` goes on trying.
const AGAIN: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(300);
/// Events of one request, at most.
const AT_ONCE: usize = 50;
/// The longest line taken in: a request that is half full takes one more.
const LINE_AT_MOST: u64 = 16 * 1024;

/// The arguments of `banset events`.
#[derive(Debug, clap::Args)]
pub struct Events {
    /// Go on with every event as it happens
    #[arg(short, long)]
    follow: bool,
    /// Only events after this number; without it, what is banned now comes first
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
}

/// The arguments of `banset apply`.
#[derive(Debug, clap::Args)]
pub struct Apply {
    /// Where events come from: `-` is standard input
    #[arg(value_name = "-", required_unless_present = "last")]
    from: Option<String>,
    /// The machine that decided; its unbans lift what it banned, and nothing else
    #[arg(long, value_name = "NAME", default_value = "remote")]
    origin: String,
    /// Into this jail, instead of the one that decided there (`manual` where there is none of that name)
    #[arg(long, value_name = "JAIL")]
    jail: Option<String>,
    /// Print the number of the last event of this origin that was applied, for `events --since`
    #[arg(long, conflicts_with_all = ["from", "jail"])]
    last: bool,
}

/// `banset events`
pub fn events(global: &Global, args: &Events) -> u8 {
    let mut since = args.since;
    let mut told = false;
    loop {
        let wait_s = if args.follow { WAIT_S } else { 0 };
        let reply = match client::ask(&socket(global), Request::Events { since, wait_s }) {
            Ok(reply) => reply,
            // The daemon is being restarted, perhaps: what happens meanwhile is told by number afterwards.
            Err(why) if args.follow && since.is_some() => {
                if !std::mem::replace(&mut told, true) {
                    complain(format_args!("{why}\n  help: trying again until it is back"));
                }
                std::thread::sleep(AGAIN);
                continue;
            }
            Err(why) => {
                complain(&why);
                return UNREACHABLE;
            }
        };
        if reply.exit != 0 {
            if args.follow && reply.exit == UNREACHABLE {
                if !std::mem::replace(&mut told, true) {
                    complain_of(&reply);
                }
                std::thread::sleep(AGAIN);
                continue;
            }
            complain_of(&reply);
            return reply.exit;
        }
        told = false;
        if reply.result["anew"] == true {
            complain(format_args!("event {} is not known here: beginning with what is banned now", since.unwrap_or(0)));
        }
        let mut out = String::new();
        for event in reply.result["events"].as_array().map(Vec::as_slice).unwrap_or_default() {
            out.push_str(&event.to_string());
            out.push('\n');
        }
        let mut stdout = std::io::stdout().lock();
        // A reader that went away is no error: it goes on from the number of the last event that it has.
        if stdout.write_all(out.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            return 0;
        }
        since = reply.result["next"].as_u64().or(since);
        if !args.follow && reply.result["more"] != true {
            return 0;
        }
    }
}

/// `banset apply -`
pub fn apply(global: &Global, args: &Apply) -> u8 {
    if args.last {
        return match ask(global, Request::Applied) {
            Ok(reply) if reply.exit == 0 => {
                out(&format!("{}\n", reply.result[&args.origin].as_u64().unwrap_or(0)));
                0
            }
            Ok(reply) => {
                complain_of(&reply);
                reply.exit
            }
            Err(code) => code,
        };
    }
    if args.from.as_deref() != Some("-") {
        complain("events come from standard input\n  help: banset apply - --origin NAME");
        return USAGE;
    }
    let (sender, lines) = mpsc::sync_channel::<Vec<u8>>(AT_ONCE);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            match (&mut input).take(LINE_AT_MOST).read_until(b'\n', &mut line) {
                Ok(n) if n > 0 => {}
                _ => return,
            }
            // Its rest is no line of its own.
            if line.len() as u64 == LINE_AT_MOST && !line.ends_with(b"\n") && skip_line(&mut input).is_err() {
                return;
            }
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut exit = 0;
    while let Ok(first) = lines.recv() {
        let (mut given, mut bytes, mut next) = (Vec::new(), 0, Some(first));
        while let Some(line) = next {
            match event(&line) {
                Ok(Some(event)) => given.push(event),
                Ok(None) => {}
                Err(why) => {
                    complain(&why);
                    exit = NEGATIVE;
                }
            }
            bytes += line.len();
            let full = given.len() >= AT_ONCE || bytes > REQUEST_AT_MOST / 2;
            next = if full { None } else { lines.try_recv().ok() };
        }
        if given.is_empty() {
            continue;
        }
        let since = Instant::now();
        let reply = loop {
            let request = Request::Apply { origin: args.origin.clone(), jail: args.jail.clone(), events: given.clone() };
            match client::ask(&socket(global), request) {
                Ok(reply) if reply.exit != UNREACHABLE => break reply,
                // Applied twice is applied once: what was under way when the daemon went is sent again.
                _ if since.elapsed() < PATIENCE => std::thread::sleep(AGAIN),
                Ok(_) => return UNREACHABLE,
                Err(why) => {
                    complain(&why);
                    return UNREACHABLE;
                }
            }
        };
        if let Some(error) = &reply.error {
            exit = reply.exit;
            if reply.result.is_null() {
                complain_of(&reply);
                return exit;
            }
            complain(error);
        }
        for refused in reply.result["refused"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            complain(format_args!("not applied: {refused}"));
        }
    }
    exit
}

/// One line as an event; `None` if it is one that changes nothing.
fn event(line: &[u8]) -> Result<Option<Given>, String> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let bad = |why: String| format!("{why}: {}", escape(line.trim_ascii(), 200));
    let value: Value = serde_json::from_slice(line).map_err(|e| bad(format!("not an event ({e})")))?;
    let what = match value["what"].as_str() {
        Some("ban") => GivenWhat::Ban,
        Some("unban") => GivenWhat::Unban,
        Some(_) => return Ok(None),
        None => return Err(bad("not an event".to_owned())),
    };
    let second = |key: &str| match &value[key] {
        Value::Null => Ok(None),
        Value::String(text) => {
            text.parse::<jiff::Timestamp>().map(|stamp| Some(stamp.as_second())).map_err(|_| bad(format!("{key} is no instant")))
        }
        _ => Err(bad(format!("{key} is no instant"))),
    };
    let until_s = second("until")?;
    // A ban without an end has to say so: a line that lost its `until` must not ban for ever.
    if what == GivenWhat::Ban && until_s.is_none() && value["permanent"] != json!(true) {
        return Err(bad("a ban without an end that does not say permanent".to_owned()));
    }
    Ok(Some(Given {
        seq: value["seq"].as_u64().unwrap_or(0),
        what,
        jail: value["jail"].as_str().unwrap_or_default().to_owned(),
        addr: value["addr"].as_str().ok_or_else(|| bad("no addr".to_owned()))?.to_owned(),
        since_s: second("since")?.unwrap_or_else(|| jiff::Timestamp::now().as_second()),
        until_s,
        failures: value["failures"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        reason: value["reason"].as_str().map(str::to_owned),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_event_or_refused() {
        let good = br#"{"seq":7,"what":"ban","jail":"sshd","addr":"192.0.2.7","since":"2026-01-01T00:00:00Z","until":"2026-01-02T00:00:00Z","failures":3}"#;
        let event_ = event(good).expect("good").expect("an event");
        assert_eq!((event_.seq, event_.what, event_.until_s), (7, GivenWhat::Ban, Some(1_767_312_000)));
        assert_eq!(event(b"\n"), Ok(None));
        assert_eq!(event(br#"{"what":"pause","seq":8}"#), Ok(None));
        for bad in [
            &b"x"[..],
            b"{}",
            b"\xff\x00",
            br#"{"what":"ban","addr":"192.0.2.7"}"#,
            br#"{"what":"ban","addr":"192.0.2.7","until":"soon"}"#,
            br#"{"what":"unban"}"#,
        ] {
            assert!(event(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
