//! `history`: what happened, and by which lines.

use jiff::tz::TimeZone;
use serde_json::Value;

use super::show::{ask, print, stamp, text};
use super::{Global, Shown, USAGE, complain};
use crate::control::Request;
use crate::terms::Lasting;

/// The arguments of `banset history`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only about addresses within this, and subnets around it
    #[arg(value_name = "ADDR|NET")]
    addr: Option<String>,
    /// Only what lines with this account led to
    #[arg(long, value_name = "ACCOUNT")]
    user: Option<String>,
    /// Only of this jail
    #[arg(long, value_name = "JAIL")]
    jail: Option<String>,
    /// Only since then: a span such as 7d, or a date such as 2026-01-31 or 2026-01-31T12:00:00
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// So many rows at most, the newest
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    shown: Shown,
}

/// `banset history`
pub fn history(global: &Global, args: Args) -> u8 {
    let Args { addr, user, jail, since, limit, shown } = args;
    let since_s = match since.as_deref().map(instant).transpose() {
        Ok(since_s) => since_s,
        Err(why) => {
            complain(format_args!("--since: {why}"));
            return USAGE;
        }
    };
    match ask(global, Request::History { net: addr, user, jail, since_s, limit }) {
        Ok(reply) => print(&reply, shown, |value| history_text(value, shown.utc)),
        Err(code) => code,
    }
}

/// A span before now, or a date and time in the local zone or with an offset; seconds of the Unix epoch.
pub fn instant(written: &str) -> Result<i64, String> {
    let now = jiff::Timestamp::now();
    if let Ok(stamp) = written.parse::<jiff::Timestamp>() {
        return Ok(stamp.as_second());
    }
    let here = |date: jiff::civil::DateTime| date.to_zoned(TimeZone::system()).map(|zoned| zoned.timestamp().as_second());
    if let Ok(Ok(second)) = written.replace(' ', "T").parse::<jiff::civil::DateTime>().map(here) {
        return Ok(second);
    }
    match crate::config::duration(written) {
        Ok(Lasting::For(span)) => Ok(now.as_second().saturating_sub_unsigned(span.secs())),
        Ok(Lasting::Permanent) => Ok(i64::MIN / 2_000_000),
        Err(why) => Err(format!("{why}; or write a date such as 2026-01-31 or 2026-01-31T12:00:00")),
    }
}

fn history_text(value: &Value, utc: bool) -> String {
    let rows = value["history"].as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        return "nothing is known of that\n".to_owned();
    }
    let mut out = String::new();
    for row in rows {
        out.push_str(&row_text(row, utc));
    }
    if value["more"] == true {
        out.push_str("older ones are left out; -n shows more\n");
    }
    out
}

fn row_text(row: &Value, utc: bool) -> String {
    let jail = row["jail"].as_str().map(|jail| format!("[{jail}] ")).unwrap_or_default();
    let mut out = format!("{}  {jail}{}", stamp(&row["time"], utc), text(row, "what"));
    if let Some(addr) = row["addr"].as_str() {
        out.push_str(&format!(" {addr}"));
    }
    if row["permanent"] == true {
        out.push_str(" permanently");
    } else if !row["until"].is_null() {
        out.push_str(&format!(" until {}", stamp(&row["until"], utc)));
    }
    out.push_str(&format!(", {}", by(row)));
    out.push('\n');
    for key in ["decision", "reason"] {
        if let Some(said) = row[key].as_str() {
            out.push_str(&format!("    {said}\n"));
        }
    }
    for line in row["evidence"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let account = line["account"].as_str().map(|account| format!(" account {account}")).unwrap_or_default();
        out.push_str(&format!("    {}:{}{account}\n      {}\n", text(line, "source"), line["offset"], text(line, "line")));
    }
    if let Some(why) = row["evidence_missing"].as_str() {
        out.push_str(&format!("    not all of its lines are kept: {why}\n"));
    }
    if row["evidence_pending"] == true {
        out.push_str("    its lines have not been read back yet\n");
    }
    out
}

/// Who or what brought it about, for people.
fn by(row: &Value) -> String {
    let program = row["by"]["program"].as_str().map(|program| format!(" with {program}")).unwrap_or_default();
    let who = row["by"]["uid"].as_u64().map(|uid| format!("by uid {uid}{program}"));
    let what = match text(row, "origin") {
        "log" => "by the log".to_owned(),
        "kernel" => "in the kernel".to_owned(),
        "ignore" => "by a new ignore entry".to_owned(),
        "config" => "by the configuration".to_owned(),
        "timer" => "by its time".to_owned(),
        "manual" => "by hand".to_owned(),
        other => format!("by {}", other.trim_start_matches('@')),
    };
    who.unwrap_or(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_ban_is_told_with_its_lines() {
        let value = json!({ "more": true, "history": [
            { "time": "2026-01-02T03:04:05Z", "what": "unban", "jail": "sshd", "addr": "192.0.2.7", "until": null, "origin": "manual",
              "by": { "uid": 1000, "program": "banset" }, "reason": "a customer", "evidence": [] },
            { "time": "2026-01-02T03:00:00Z", "what": "ban", "jail": "sshd", "addr": "192.0.2.7", "until": "2026-01-02T04:00:00Z",
              "permanent": false, "origin": "log", "decision": "3 failures", "evidence": [
                { "source": "/var/log/auth.log", "offset": 7, "account": "bob", "line": "Jan  2 03:00:00 mx sshd[1]: no" }] },
        ]});
        let told = "\
2026-01-02 03:04:05+00:00  [sshd] unban 192.0.2.7, by uid 1000 with banset
    a customer
2026-01-02 03:00:00+00:00  [sshd] ban 192.0.2.7 until 2026-01-02 04:00:00+00:00, by the log
    3 failures
    /var/log/auth.log:7 account bob
      Jan  2 03:00:00 mx sshd[1]: no
older ones are left out; -n shows more
";
        assert_eq!(history_text(&value, true), told);
    }

    #[test]
    fn since_is_a_span_or_a_date() {
        let now = jiff::Timestamp::now().as_second();
        assert!((instant("2h").expect("a span") - (now - 7200)).abs() < 5);
        assert_eq!(instant("2026-01-02T03:04:05Z"), Ok(1_767_323_045));
        assert!(instant("2026-01-02").is_ok() && instant("2026-01-02 03:04").is_ok());
        assert!(instant("yesterday").is_err());
    }
}
