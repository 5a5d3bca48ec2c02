//! `status`, `stats`, `banned`: the daemon's answers as tables for people, or as they are with `--json`.

use std::io::IsTerminal;
use std::path::PathBuf;

use jiff::tz::TimeZone;
use serde_json::Value;

use super::{Global, Shown, UNREACHABLE, complain, complain_of, out};
use crate::control::{Reply, Request, client};
use crate::terms::Span;

/// Asks the daemon; a daemon that is not there is told on standard error.
pub fn ask(global: &Global, request: Request) -> Result<Reply, u8> {
    client::ask(&socket(global), request).map_err(|why| {
        complain(&why);
        UNREACHABLE
    })
}

/// The socket: as given, else that of the configuration as far as it can be read, else the default.
pub fn socket(global: &Global) -> PathBuf {
    let configured =
        || crate::config::rescue(&crate::config::Sources::read(&super::load::paths(global), std::env::vars_os())).socket;
    global.socket.clone().unwrap_or_else(configured)
}

/// Prints an answer: `--json` as it is, else through `text`; what was refused of it on standard error. Returns the exit status.
pub fn print(reply: &Reply, shown: Shown, text: impl FnOnce(&Value) -> String) -> u8 {
    match (shown.json, reply.result.is_null()) {
        (true, false) => out(&format!("{}\n", reply.result)),
        // There is no object to say it beside.
        (true, true) => {
            out(&format!("{}\n", serde_json::json!({ "error": reply.error, "help": reply.help })));
            return reply.exit;
        }
        (false, false) => out(&text(&reply.result)),
        (false, true) => {}
    }
    complain_of(reply);
    reply.exit
}

/// `banset status [JAIL]`
pub fn status(global: &Global, jail: Option<String>, shown: Shown) -> u8 {
    let full = jail.is_some();
    match ask(global, Request::Status { jail }) {
        Ok(reply) => print(&reply, shown, |value| if full { jail_text(value, shown.utc) } else { status_text(value, shown.utc) }),
        Err(code) => code,
    }
}

/// `banset stats`
pub fn stats(global: &Global, shown: Shown) -> u8 {
    let boxes = std::io::stdout().is_terminal() && speaks_utf8();
    match ask(global, Request::Stats) {
        Ok(reply) => print(&reply, shown, |value| stats_text(value, boxes)),
        Err(code) => code,
    }
}

/// `banset banned [ADDR…]`
pub fn banned(global: &Global, addrs: Vec<String>, shown: Shown) -> u8 {
    let asked = !addrs.is_empty();
    match ask(global, Request::Banned { addrs }) {
        Ok(reply) => {
            print(&reply, shown, |value| if asked { holders_text(value, shown.utc) } else { banned_text(value, shown.utc) })
        }
        Err(code) => code,
    }
}

fn speaks_utf8() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    set.is_some_and(|value| value.to_ascii_uppercase().replace('-', "").contains("UTF8"))
}

/// Rows under a heading, columns as wide as needed; numbers to the right.
fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let numeric: Vec<bool> = (0..heading.len())
        .map(|column| !rows.is_empty() && rows.iter().all(|row| row.get(column).is_none_or(|cell| is_number(cell))))
        .collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).zip(&numeric).map(|((cell, width), numeric)| {
            let pad = " ".repeat(width - cell.chars().count().min(*width));
            if *numeric { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
        });
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut out = line(heading.to_vec());
    rows.iter().for_each(|row| out.push_str(&line(row.iter().map(String::as_str).collect())));
    out
}

fn is_number(cell: &str) -> bool {
    cell == "-" || (!cell.is_empty() && cell.bytes().all(|b| b.is_ascii_digit() || b == b'/' || b == b' '))
}

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("-")
}

fn number(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string())
}

/// An RFC 3339 instant of the daemon in the reader's zone, with offset.
pub(super) fn stamp(value: &Value, utc: bool) -> String {
    let Some(text) = value.as_str() else { return "-".to_owned() };
    let Ok(stamp) = text.parse::<jiff::Timestamp>() else { return text.to_owned() };
    let zone = if utc { TimeZone::UTC } else { TimeZone::system() };
    stamp.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
}

fn left(value: &Value) -> String {
    value.as_u64().map_or_else(|| "permanent".to_owned(), |secs| Span::from_secs(secs).to_string())
}

fn status_text(value: &Value, utc: bool) -> String {
    let jails = value["jails"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<Vec<String>> = jails
        .iter()
        .map(|jail| {
            let kernel: u64 = ["v4", "v6", "net4", "net6"].iter().filter_map(|set| jail["kernel"][set].as_u64()).sum();
            let sources = jail["sources"].as_array().map(Vec::as_slice).unwrap_or_default();
            // Of a journal nobody knows it.
            let lag = sources.iter().filter_map(|source| source["lag_bytes"].as_u64()).reduce(|sum, lag| sum + lag);
            let source = match sources {
                [] => "-".to_owned(),
                [one] => text(one, "path").to_owned(),
                [first, rest @ ..] => format!("{} +{}", text(first, "path"), rest.len()),
            };
            vec![
                text(jail, "name").to_owned(),
                text(jail, "state").to_owned(),
                source,
                lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string()),
                stamp(&jail["last_match"], utc),
                number(&jail["failures"]["current"]),
                number(&jail["bans"]["current"]),
                kernel.to_string(),
                number(&jail["dropped"]["packets"]),
            ]
        })
        .collect();
    let mut out = table(&["JAIL", "STATE", "SOURCE", "LAG", "LAST MATCH", "FAILED", "BANNED", "KERNEL", "DROPPED"], &rows);
    for jail in jails.iter().filter(|jail| jail["state"] == "broken") {
        out.push_str(&format!("\n{}: broken\n  {}\n", text(jail, "name"), text(jail, "why")));
    }
    let paused = jails.iter().filter(|jail| jail["state"] == "paused").count();
    if paused > 0 {
        out.push_str(&format!("\npaused: {paused} jails have no rules in the kernel; `banset resume` puts them back\n"));
    }
    if let Some(why) = value["degraded"].as_str() {
        out.push_str(&format!("\ndegraded: {why}\n"));
    }
    if let Some(why) = value["state"].as_str() {
        out.push_str(&format!("\nnothing is remembered over a restart: {why}\n"));
    }
    if let (Some(by), at) = (value["clock"]["by_s"].as_i64(), stamp(&value["clock"]["jumped"], utc)) {
        let (by, where_to) = (Span::from_secs(by.unsigned_abs()), if by < 0 { "back" } else { "forward" });
        out.push_str(&format!("\nthe clock went {where_to} by {by} at {at}\n"));
    }
    let lacking = &value["history"];
    if lacking["short"].as_u64().is_some_and(|bans| bans > 0) {
        out.push_str(&format!(
            "\nhistory: the lines of {} bans could not all be read back, of the last because {}\n",
            number(&lacking["short"]),
            text(lacking, "why")
        ));
    }
    if lacking["lost_rows"].as_u64().is_some_and(|rows| rows > 0) {
        out.push_str(&format!("\nhistory: {} entries were lost while nothing could be saved\n", number(&lacking["lost_rows"])));
    }
    for nft in value["nft"].as_array().map(Vec::as_slice).unwrap_or_default() {
        out.push_str(&format!(
            "\ntable {} {}, generation {}",
            text(nft, "family"),
            text(nft, "table"),
            number(&nft["generation"])
        ));
        if nft["restored"].as_u64().unwrap_or(0) > 0 {
            out.push_str(&format!(", put back {} times", number(&nft["restored"])));
        }
        if let Some(why) = nft["degraded"].as_str() {
            out.push_str(&format!("\ndegraded: {why}"));
        }
        out.push('\n');
    }
    out
}

fn jail_text(jail: &Value, utc: bool) -> String {
    let list = |key: &str| {
        let items = jail[key].as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
    };
    let mut out = format!("Status for the jail: {}\n", text(jail, "name"));
    if let Some(label) = jail["label"].as_str() {
        out.push_str(&format!("|- Label:\t{label}\n"));
    }
    let judged = |jail: &Value| {
        format!("maxretry {}, findtime {}, bantime {}", number(&jail["maxretry"]), text(jail, "findtime"), text(jail, "bantime"))
    };
    let paused = &jail["paused"];
    let until = match (paused.is_null(), paused["until"].is_null()) {
        (true, _) => String::new(),
        (false, true) => format!(", by uid {}, until `banset resume`", number(&paused["uid"])),
        (false, false) => format!(", by uid {}, until {}", number(&paused["uid"]), stamp(&paused["until"], utc)),
    };
    out.push_str(&format!("|- State:\t{}{until}\n|- Policy:\t{}\n|- Filter\n", text(jail, "state"), judged(jail)));
    out.push_str(&format!("|  |- Name:\t{}\n", text(jail, "filter")));
    out.push_str(&format!(
        "|  |- Currently failed:\t{}\n|  |- Total failed:\t{}\n",
        number(&jail["failures"]["current"]),
        number(&jail["failures"]["total"])
    ));
    out.push_str(&format!("|  |- Last match:\t{}\n", stamp(&jail["last_match"], utc)));
    let near = &jail["near_misses"];
    if near["total"].as_u64().is_some_and(|total| total > 0) {
        out.push_str(&format!("|  |- Near misses:\t{}, the last {}\n", number(&near["total"]), stamp(&near["last"], utc)));
        for line in jail["near_miss_lines"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            out.push_str(&format!("|  |    {line}\n"));
        }
    }
    for source in jail["sources"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let note = source["note"].as_str().map(|note| format!(" ({note})")).unwrap_or_default();
        let lag =
            source["lag_bytes"].as_u64().filter(|lag| *lag > 0).map(|lag| format!(", {lag} bytes behind")).unwrap_or_default();
        out.push_str(&format!("|  |- Source:\t{}: {}{note}{lag}\n", text(source, "path"), text(source, "state")));
    }
    if let Some(why) = jail["backend_why"].as_str() {
        out.push_str(&format!("|  |- Backend:\t{}, {}\n", text(jail, "backend"), why));
    }
    if jail["backend"] == "journal" {
        let sources = jail["sources"].as_array().map(Vec::as_slice).unwrap_or_default();
        let matches = sources.iter().map(|source| text(source, "path")).collect::<Vec<_>>().join(" ");
        out.push_str(&format!("|  `- Journal matches:\t{}\n`- Actions\n", matches.trim_start_matches("journal: ")));
    } else {
        out.push_str(&format!("|  `- File list:\t{}\n`- Actions\n", list("patterns")));
    }
    out.push_str(&format!("   |- Ports:\t{} on {}\n", text(jail, "ports"), list("hooks")));
    let kernel = ["v4", "v6", "net4", "net6"].map(|set| format!("{set} {}", number(&jail["kernel"][set]))).join(", ");
    out.push_str(&format!("   |- Sets:\t{}\n   |- In the kernel:\t{kernel}\n", list("sets")));
    out.push_str(&format!(
        "   |- Dropped:\t{} packets, {} bytes\n",
        number(&jail["dropped"]["packets"]),
        number(&jail["dropped"]["bytes"])
    ));
    out.push_str(&format!(
        "   |- Currently banned:\t{}\n   |- Total banned:\t{}\n",
        number(&jail["bans"]["current"]),
        number(&jail["bans"]["total"])
    ));
    out.push_str(&format!("   `- Banned IP list:\t{}\n", list("banned")));
    out
}

fn stats_text(value: &Value, boxes: bool) -> String {
    let rows: Vec<[String; 6]> = value
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .map(|row| {
            let (failures, bans) = (&row["failures"], &row["bans"]);
            let name = [text(row, "jail").to_owned(), text(row, "backend").to_owned()];
            let [jail, backend] = name;
            [
                jail,
                backend,
                number(&failures["current"]),
                number(&failures["total"]),
                number(&bans["current"]),
                number(&bans["total"]),
            ]
        })
        .collect();
    let least = [8, 8, 3, 3, 3, 3];
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).chain([least[i]]).max().unwrap_or(0);
    let w: Vec<usize> = (0..6).map(width).collect();
    let (thick, thin, line, cross, half) = if boxes { ('║', '│', '═', '╬', '╟') } else { ('|', '|', '=', 'x', '|') };
    let (foot, dash, mid) = if boxes { ('╩', '─', '╫') } else { ('x', '-', '+') };
    let pad = |text: &str, width: usize| format!("{text:<width$}");
    let filter = w[2] + w[3] + 5;
    let actions = w[4] + w[5] + 5;
    let mut out = String::new();
    let blank = |n: usize| " ".repeat(n + 2);
    out.push_str(&format!(
        "{}{thick}{}{thick} {}{thick} {}\n",
        blank(w[0]),
        blank(w[1]),
        pad("Filter", filter - 1),
        pad("Actions", actions - 2)
    ));
    let dashes = |n: usize| dash.to_string().repeat(n);
    out.push_str(&format!(
        " {} {thick} {} {half}{}{mid}{}\n",
        pad("Jail", w[0]),
        pad("Backend", w[1]),
        dashes(filter),
        dashes(actions)
    ));
    let four = |c: [&str; 4]| {
        format!(
            "{thick} {:>a$} {thin} {:>b$} {thick} {:>c_$} {thin} {:>d$}",
            c[0],
            c[1],
            c[2],
            c[3],
            a = w[2],
            b = w[3],
            c_ = w[4],
            d = w[5]
        )
    };
    out.push_str(&format!("{}{thick}{}{}\n", blank(w[0]), blank(w[1]), four(["cur", "tot", "cur", "tot"])));
    let rule = |cross: char| {
        let part = |n: usize| line.to_string().repeat(n);
        format!("{}{cross}{}{cross}{}{cross}{}\n", part(w[0] + 2), part(w[1] + 2), part(filter), part(actions))
    };
    out.push_str(&rule(cross));
    for row in &rows {
        let name = format!(" {} {thick} {} ", pad(&row[0], w[0]), pad(&row[1], w[1]));
        out.push_str(&format!("{name}{}\n", four([&row[2], &row[3], &row[4], &row[5]])));
    }
    out.push_str(&rule(foot));
    out
}

fn banned_text(value: &Value, utc: bool) -> String {
    let rows: Vec<Vec<String>> = value
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .map(|row| {
            vec![
                text(row, "jail").to_owned(),
                text(row, "addr").to_owned(),
                stamp(&row["since"], utc),
                stamp(&row["until"], utc),
                left(&row["left_s"]),
                number(&row["failures"]),
                number(&row["packets"]),
                match (row["forced"] == true, row["reason"].as_str().unwrap_or("")) {
                    (true, "") => "forced, although ignored".to_owned(),
                    (true, reason) => format!("forced, although ignored: {reason}"),
                    (false, reason) => reason.to_owned(),
                },
            ]
        })
        .collect();
    if rows.is_empty() {
        return "nobody is banned\n".to_owned();
    }
    table(&["JAIL", "ADDR", "SINCE", "UNTIL", "LEFT", "FAILURES", "PACKETS", "REASON"], &rows)
}

/// Why somebody is banned, as far as the ban itself says.
fn why(row: &Value) -> String {
    let reason = row["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
    match row["origin"].as_str() {
        Some("manual") if row["forced"] == true => format!(", by uid {}, forced although ignored{reason}", number(&row["uid"])),
        Some("manual") => format!(", by uid {}{reason}", number(&row["uid"])),
        Some("kernel") => format!(", found in the set{reason}"),
        Some("log") => format!(", for {} failures{reason}; `banset history` shows them", number(&row["failures"])),
        _ => reason,
    }
}

fn holders_text(value: &Value, utc: bool) -> String {
    let mut out = String::new();
    for asked in value.as_array().map(Vec::as_slice).unwrap_or_default() {
        let jails = asked["jails"].as_array().map(Vec::as_slice).unwrap_or_default();
        if jails.is_empty() {
            let within = match asked["within"].as_u64() {
                Some(bans @ 1..) => format!(" as a whole; bans within it: {bans}"),
                _ => String::new(),
            };
            out.push_str(&format!("{}: not banned{within}\n", text(asked, "addr")));
        }
        for row in jails {
            let as_what = if row["addr"] == asked["addr"] { String::new() } else { format!(" as {}", text(row, "addr")) };
            let until = match row["until"].is_null() {
                true => "permanently".to_owned(),
                false => format!("until {}, {} left", stamp(&row["until"], utc), left(&row["left_s"])),
            };
            out.push_str(&format!("{}: banned by {}{as_what} {until}{}\n", text(asked, "addr"), text(row, "jail"), why(row)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stats_look_as_fail2bans_users_know_them() {
        let row = |jail: &str, a: [u64; 4]| json!({"jail": jail, "backend": "file", "failures": {"current": a[0], "total": a[1]}, "bans": {"current": a[2], "total": a[3]}});
        let value = json!([row("dovecot", [1, 3, 0, 1]), row("sshd", [1, 4, 1, 1])]);
        let expected = [
            "          ║          ║ Filter    ║ Actions  ",
            " Jail     ║ Backend  ╟───────────╫───────────",
            "          ║          ║ cur │ tot ║ cur │ tot",
            "══════════╬══════════╬═══════════╬═══════════",
            " dovecot  ║ file     ║   1 │   3 ║   0 │   1",
            " sshd     ║ file     ║   1 │   4 ║   1 │   1",
            "══════════╩══════════╩═══════════╩═══════════",
            "",
        ]
        .join("\n");
        assert_eq!(stats_text(&value, true), expected);
        assert!(stats_text(&value, false).is_ascii());
    }

    #[test]
    fn bans_are_listed_with_what_is_left() {
        let value = json!([{"jail": "sshd", "addr": "192.0.2.7", "since": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:10:00Z", "left_s": 90, "failures": 5}]);
        let listed = banned_text(&value, true);
        assert!(listed.contains("sshd  192.0.2.7  2026-01-01 00:00:00+00:00  2026-01-01 00:10:00+00:00  1m30s"), "{listed}");
        let held = json!([{"addr": "192.0.2.7", "jails": []}, {"addr": "2001:db8::1", "jails": [{"jail": "sshd", "addr": "2001:db8::/64", "until": null, "left_s": null}]}]);
        assert_eq!(
            holders_text(&held, true),
            "192.0.2.7: not banned\n2001:db8::1: banned by sshd as 2001:db8::/64 permanently\n"
        );
    }
}
