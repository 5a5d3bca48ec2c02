//! What people ask for: the history and its lines, pauses, ignores and unbans at run time, and who may do what.

use std::path::Path;
use std::process::Command;

use banset_integration::{Daemon, Lab, Log, Stamp, elements, in_netns, wait_until};
use serde_json::Value;

fn sshd(log: &Log, more: &str) -> String {
    format!(
        "[jail.sshd]\nenabled = true\nlogpath = {:?}\nmaxretry = 3\nfindtime = \"1h\"\nbantime = \"1h\"\n{more}\n",
        log.path()
    )
}

fn line(user: &str, from: &str) -> String {
    format!("{} mx sshd[506]: Failed password for {user} from {from} port 37957 ssh2", Stamp::now().syslog())
}

fn fail(log: &mut Log, from: &str, times: usize) {
    (0..times).for_each(|_| log.line(&line("root", from)));
}

#[track_caller]
fn wait_banned(set: &str, address: &str) {
    wait_until(&format!("{address} is in {set}"), || elements(set).iter().any(|element| element == address));
}

/// The rows of `banset history ARGS --json`.
#[track_caller]
fn history(daemon: &Daemon, args: &[&str]) -> Vec<Value> {
    let answer = daemon.cli(&[&["history", "--json"], args].concat());
    let value: Value = serde_json::from_str(&answer.out).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
    value["history"].as_array().cloned().unwrap_or_default()
}

/// Waits until the ban of an address has its lines.
#[track_caller]
fn evidence(daemon: &Daemon, address: &str) -> (Value, Vec<String>) {
    let mut row = Value::Null;
    wait_until(&format!("the lines behind {address} are read back"), || {
        let rows = history(daemon, &[address]);
        let ban = rows.into_iter().find(|row| row["what"] == "ban" && row["evidence_pending"] == false);
        row = ban.unwrap_or_default();
        !row.is_null()
    });
    let lines = row["evidence"].as_array().expect("an array").iter();
    let lines = lines.map(|line| line["line"].as_str().expect("text").to_owned()).collect();
    (row, lines)
}

fn gzip(file: &Path) {
    let status = Command::new("gzip").arg(file).status().expect("gzip is installed");
    assert!(status.success());
}

#[test]
fn the_lines_behind_a_ban_are_read_back_wherever_they_were_rotated_to() {
    in_netns("the_lines_behind_a_ban_are_read_back_wherever_they_were_rotated_to", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("maillog"));
        let jail = format!(
            "[jail.vpopmail]\nenabled = true\nlogpath = {:?}\nmaxretry = 3\nfindtime = \"1h\"\nbantime = \"1h\"\n",
            log.path()
        );
        let mut daemon = Daemon::start(&lab, &jail);
        daemon.wait_running();
        let bad = |user: &str, from: &str| {
            format!(
                "{} mx vpopmail[3076]: vchkpw-smtp: password fail (pass: 'hunter2\u{1b}[31m') {user}:{from}",
                Stamp::now().syslog()
            )
        };
        let offset = || history(&daemon, &[]).len();
        assert_eq!(offset(), 0);
        // One failure in each of three files, with others between.
        log.line(&bad("eve@example.org", "198.51.100.9"));
        log.line(&bad("bob@example.org", "198.51.100.7"));
        wait_until("the first line is judged", || daemon.jail("vpopmail")["failures"]["total"] == 2);
        log.rotate();
        log.line(&bad("bob@example.org", "198.51.100.7"));
        wait_until("the second line is judged", || daemon.jail("vpopmail")["failures"]["total"] == 3);
        log.rotate();
        gzip(&Path::new(log.path()).with_extension("2"));
        // What the daemon held open it lets go of; what it knows it knows from its state.
        daemon.restart();
        daemon.wait_running();
        log.line("something else, so that no two failures stand at the same offset");
        log.line(&bad("bobby@example.org", "198.51.100.7"));
        wait_banned("vpopmail-v4", "198.51.100.7");
        let (row, lines) = evidence(&daemon, "198.51.100.7");
        assert_eq!(lines.len(), 3, "{row:#}");
        assert!(lines.iter().all(|line| line.contains("(pass: '***')") && !line.contains("hunter2")), "{lines:?}");
        let accounts: Vec<&str> =
            row["evidence"].as_array().expect("lines").iter().filter_map(|l| l["account"].as_str()).collect();
        assert_eq!(accounts, ["bob@example.org", "bob@example.org", "bobby@example.org"]);
        assert_eq!((row["jail"].as_str(), row["origin"].as_str(), row["by"].is_null()), (Some("vpopmail"), Some("log"), true));
        assert!(row["decision"].as_str().is_some_and(|said| said.starts_with("3 failures")), "{row:#}");
        // By account, by subnet, by jail, by time.
        assert_eq!(history(&daemon, &["--user", "bobby@example.org"]).len(), 1);
        assert_eq!(history(&daemon, &["--user", "eve@example.org"]).len(), 0);
        assert_eq!(history(&daemon, &["198.51.100.0/24"]).len(), 1);
        assert_eq!(history(&daemon, &["203.0.113.0/24"]).len(), 0);
        assert_eq!(history(&daemon, &["--jail", "vpopmail", "--since", "1h"]).len(), 1);
        assert_eq!(history(&daemon, &["--jail", "manual"]).len(), 0);
        // A kill at any moment costs nothing of it; an unban is told with its uid and program.
        daemon.cli(&["unban", "198.51.100.7"]).ok();
        daemon.kill();
        daemon.start_again();
        daemon.wait_running();
        let rows = history(&daemon, &["198.51.100.7"]);
        let said: Vec<&str> = rows.iter().filter_map(|row| row["what"].as_str()).collect();
        assert_eq!(said, ["unban", "ban"], "newest first");
        assert_eq!((rows[0]["by"]["uid"].as_u64(), rows[0]["by"]["program"].as_str()), (Some(0), Some("banset")));
        assert_eq!(rows[1]["evidence"].as_array().map(Vec::len), Some(3));
        let text = daemon.cli(&["history", "198.51.100.7", "--utc"]).ok();
        assert!(text.contains("[vpopmail] unban 198.51.100.7, by uid 0 with banset"), "{text}");
        assert!(text.contains("account bobby@example.org") && text.contains("+00:00") && !text.contains('\u{1b}'), "{text}");
        // With a tool every admin has, and only for root.
        let file = lab.dir().join("banset/state/banset.sqlite3");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("there").permissions());
        assert_eq!(mode & 0o777, 0o600);
    });
}
