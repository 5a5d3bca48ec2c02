//! What people ask for: the history and its lines, pauses, ignores and unbans at run time, and who may do what.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use banset_integration::{
    Answer, Daemon, Echo, Lab, Log, Stamp, binary, elements, have, in_netns, nft, wait_banned, wait_until, wrong_password,
};
use serde_json::Value;

fn sshd(log: &Log, more: &str) -> String {
    format!(
        "[jail.sshd]\nenabled = true\nlogpath = {:?}\nmaxretry = 3\nfindtime = \"1h\"\nbantime = \"1h\"\n{more}\n",
        log.path()
    )
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
        let offset = || daemon.history(&[]).len();
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
        let (row, lines) = daemon.evidence("198.51.100.7");
        assert_eq!(lines.len(), 3, "{row:#}");
        assert!(lines.iter().all(|line| line.contains("(pass: '***')") && !line.contains("hunter2")), "{lines:?}");
        let accounts: Vec<&str> =
            row["evidence"].as_array().expect("lines").iter().filter_map(|l| l["account"].as_str()).collect();
        assert_eq!(accounts, ["bob@example.org", "bob@example.org", "bobby@example.org"]);
        assert_eq!((row["jail"].as_str(), row["origin"].as_str(), row["by"].is_null()), (Some("vpopmail"), Some("log"), true));
        assert!(row["decision"].as_str().is_some_and(|said| said.starts_with("3 failures")), "{row:#}");
        // By account, by subnet, by jail, by time.
        assert_eq!(daemon.history(&["--user", "bobby@example.org"]).len(), 1);
        assert_eq!(daemon.history(&["--user", "eve@example.org"]).len(), 0);
        assert_eq!(daemon.history(&["198.51.100.0/24"]).len(), 1);
        assert_eq!(daemon.history(&["203.0.113.0/24"]).len(), 0);
        assert_eq!(daemon.history(&["--jail", "vpopmail", "--since", "1h"]).len(), 1);
        assert_eq!(daemon.history(&["--jail", "manual"]).len(), 0);
        // A kill at any moment costs nothing of it; an unban is told with its uid and program.
        daemon.cli(&["unban", "198.51.100.7"]).ok();
        daemon.kill();
        daemon.start_again();
        daemon.wait_running();
        let rows = daemon.history(&["198.51.100.7"]);
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

#[test]
fn a_ban_whose_daemon_was_killed_at_once_keeps_its_lines() {
    in_netns("a_ban_whose_daemon_was_killed_at_once_keeps_its_lines", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log, ""));
        daemon.wait_running();
        for last in 1..=5 {
            let who = format!("198.51.100.{last}");
            log.fail(&who, 2);
            // Two are kept, and what comes after them is not yet when the element is there.
            std::thread::sleep(std::time::Duration::from_millis(120 * last));
            log.fail(&who, 1);
            wait_banned("sshd-v4", &who);
            daemon.kill();
            daemon.start_again();
            daemon.wait_running();
        }
        for last in 1..=5 {
            let who = format!("198.51.100.{last}");
            let mut rows = Vec::new();
            wait_until(&format!("the lines behind {who} are there"), || {
                rows = daemon.history(&[&who]);
                rows.iter().any(|row| row["origin"] == "log" && row["evidence"].as_array().map(Vec::len) == Some(3))
            });
            assert_eq!(rows.iter().filter(|row| row["origin"] == "log").count(), 1, "once: {rows:#?}");
        }
    });
}

#[test]
fn a_pause_lets_packets_in_goes_on_banning_and_survives_a_restart() {
    in_netns("a_pause_lets_packets_in_goes_on_banning_and_survives_a_restart", || {
        let lab = Lab::new();
        let _doors = Echo::tcp(&[22]);
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log, "port = 22"));
        daemon.wait_running();
        log.fail("198.51.100.7", 3);
        wait_banned("sshd-v4", "198.51.100.7");
        assert!(lab.keeps_out("198.51.100.7", 22));
        // One transaction, and answered when it is through.
        daemon.cli(&["pause"]).ok();
        assert!(lab.connects("198.51.100.7", 22), "paused: the banned come in");
        assert_eq!(daemon.jail("sshd")["state"], "paused");
        assert_eq!(elements("sshd-v4"), ["198.51.100.7"], "bans stay");
        log.fail("198.51.100.8", 3);
        wait_banned("sshd-v4", "198.51.100.8");
        assert!(lab.connects("198.51.100.8", 22), "judging and bans go on, and bite nobody");
        daemon.kill();
        daemon.start_again();
        wait_until("it answers", || daemon.cli(&["status"]).code == 0);
        assert_eq!(daemon.jail("sshd")["state"], "paused", "kept over a kill");
        assert!(lab.connects("198.51.100.7", 22));
        daemon.cli(&["resume"]).ok();
        assert!(lab.keeps_out("198.51.100.7", 22) && lab.keeps_out("198.51.100.8", 22));
        assert_eq!(daemon.cli(&["resume"]).code, 1, "nothing is paused");
        // It ends by itself.
        daemon.cli(&["pause", "sshd", "--for", "8s"]).ok();
        assert!(lab.connects("198.51.100.7", 22));
        wait_until("the pause ends", || lab.keeps_out("198.51.100.7", 22));
        daemon.wait_log("the pause is over");
        let rows = || -> Vec<(String, String)> {
            daemon
                .history(&[])
                .iter()
                .map(|row| (row["what"].as_str().unwrap_or("").to_owned(), row["origin"].as_str().unwrap_or("").to_owned()))
                .filter(|(what, _)| what == "pause" || what == "resume")
                .collect()
        };
        wait_until("the history has it, too", || rows().len() >= 4);
        let said = rows();
        let pair = |what: &str, origin: &str| (what.to_owned(), origin.to_owned());
        assert_eq!(said, [pair("resume", "timer"), pair("pause", "manual"), pair("resume", "manual"), pair("pause", "manual")]);
    });
}

#[test]
fn a_pause_needs_no_daemon_and_no_sound_configuration() {
    in_netns("a_pause_needs_no_daemon_and_no_sound_configuration", || {
        let lab = Lab::new();
        let _doors = Echo::tcp(&[22]);
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log, "port = 22"));
        daemon.wait_running();
        log.fail("198.51.100.7", 3);
        wait_banned("sshd-v4", "198.51.100.7");
        let refused = daemon.cli(&["pause", "--offline"]);
        assert!(refused.code == 1 && refused.err.contains("leave out --offline"), "{refused:?}");
        assert!(lab.keeps_out("198.51.100.7", 22));
        daemon.kill();
        daemon.cli(&["pause", "--offline"]).ok();
        assert!(lab.connects("198.51.100.7", 22));
        assert_eq!(elements("sshd-v4"), ["198.51.100.7"], "bans stay");
        daemon.start_again();
        wait_until("it answers", || daemon.cli(&["status"]).code == 0);
        assert_eq!(daemon.jail("sshd")["state"], "paused", "the next start stays paused");
        assert!(lab.connects("198.51.100.7", 22));
        daemon.cli(&["resume"]).ok();
        assert!(lab.keeps_out("198.51.100.7", 22));
        // With a broken configuration, and back again without a daemon.
        daemon.stop();
        daemon.configure("[jail.sshd\nenabled = maybe");
        let said = daemon.cli(&["pause", "--offline", "--for", "1h"]);
        assert!(said.code == 0 && said.err.contains("the configuration can not be read"), "{said:?}");
        assert!(lab.connects("198.51.100.7", 22));
        daemon.configure(&sshd(&log, "port = 22"));
        daemon.cli(&["resume", "--offline"]).ok();
        assert!(lab.keeps_out("198.51.100.7", 22), "the rules are back");
        assert_eq!(daemon.cli(&["resume", "--offline"]).code, 1);
        daemon.start_again();
        daemon.wait_running();
        daemon.wait_log("is as it was left: 1 bans go on");
        assert_eq!(daemon.history(&[]).iter().filter(|row| row["reason"] == "without a daemon").count(), 3);
    });
}

#[test]
fn who_is_ignored_at_run_time_passes_in_the_kernel_and_over_restarts() {
    in_netns("who_is_ignored_at_run_time_passes_in_the_kernel_and_over_restarts", || {
        let lab = Lab::new();
        let _doors = Echo::tcp(&[22]);
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log, "port = 22"));
        daemon.wait_running();
        log.fail("198.51.100.7", 3);
        log.fail("2001:db8:1000:1::7", 3);
        wait_banned("sshd-v4", "198.51.100.7");
        wait_banned("sshd-v6", "2001:db8:1000:1::");
        let said = daemon.cli(&["ignore", "198.51.100.7", "--for", "1h", "--reason", "a customer\u{1b}[31m"]).ok();
        assert!(said.contains("198.51.100.7 is ignored until") && said.contains("198.51.100.7 unbanned from sshd"), "{said}");
        assert!(elements("sshd-v4").is_empty() && lab.connects("198.51.100.7", 22));
        // One host inside a banned /64: the ban stands, he passes.
        daemon.cli(&["ignore", "2001:db8:1000:1::5"]).ok();
        assert!(lab.connects("2001:db8:1000:1::5", 22) && lab.keeps_out("2001:db8:1000:1::7", 22));
        daemon.kill();
        daemon.start_again();
        daemon.wait_running();
        assert!(elements("ignore-v4").iter().any(|element| element == "198.51.100.7"), "{:?}", elements("ignore-v4"));
        log.fail("198.51.100.7", 5);
        log.fail("198.51.100.200", 3);
        wait_banned("sshd-v4", "198.51.100.200");
        assert_eq!(elements("sshd-v4"), ["198.51.100.200"], "not judged");
        let listed = daemon.cli(&["ignore", "--list"]).ok();
        assert!(listed.contains("198.51.100.7 by all jails until") && listed.contains("a customer\\x1b[31m"), "{listed}");
        assert_eq!(daemon.cli(&["ignore", "--list", "--json"]).json().as_array().map(Vec::len), Some(2));
        daemon.cli(&["unignore", "198.51.100.7", "2001:db8:1000:1::5"]).ok();
        assert_eq!(daemon.cli(&["unignore", "198.51.100.7"]).code, 1);
        assert!(lab.keeps_out("2001:db8:1000:1::5", 22));
        log.fail("198.51.100.7", 3);
        wait_banned("sshd-v4", "198.51.100.7");
        // A short one ends by itself, in the kernel too.
        daemon.cli(&["ignore", "2001:db8:1000:1::5", "--for", "1s", "--jail", "sshd"]).ok();
        wait_until("it ends", || lab.keeps_out("2001:db8:1000:1::5", 22));
        daemon.wait_log("no longer ignoring 2001:db8:1000:1::5: its time is over");
    });
}

/// `banset ARGS` as another user, who is in the group `operator` or in none.
fn as_user(daemon: &Daemon, uid: u32, groups: &str, args: &[&str]) -> Answer {
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={groups}"), "--clear-groups".to_owned()]);
    command.arg(binary()).args(args).arg("--socket").arg(daemon.socket()).current_dir("/");
    Answer::of(&mut command)
}

#[test]
fn operators_unban_ignore_for_a_while_and_see_history_and_no_more() {
    const NAME: &str = "operators_unban_ignore_for_a_while_and_see_history_and_no_more";
    in_netns(NAME, || {
        if !have(NAME, "setpriv") {
            return;
        }
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let jail = format!("operators = \"operator\"\nreaders = \"adm\"\n\n{}", sshd(&log, ""));
        let daemon = Daemon::start(&lab, &jail);
        daemon.wait_running();
        for who in ["198.51.100.7", "198.51.100.8", "198.51.100.9"] {
            log.fail(who, 3);
            wait_banned("sshd-v4", who);
        }
        let operator = |args: &[&str]| as_user(&daemon, 65534, "operator", args);
        let reader = |args: &[&str]| as_user(&daemon, 65534, "adm", args);
        let stranger = |args: &[&str]| as_user(&daemon, 65534, "nogroup", args);
        // What each may, and may not.
        for args in [&["status"][..], &["banned"], &["ignore", "--list"], &["explain", "--addr", "198.51.100.7"]] {
            assert!(reader(args).code <= 1 && !reader(args).err.contains("may not do this"), "{args:?}: {:?}", reader(args));
        }
        for args in [&["history"][..], &["unban", "198.51.100.7"], &["ignore", "198.51.100.7", "--for", "1h"], &["pause"]] {
            let refused = reader(args);
            assert!(refused.code == 1 && refused.err.contains("uid 65534 may not do this"), "{args:?}: {refused:?}");
        }
        assert!(stranger(&["status"]).err.contains("may not do this"));
        for args in [&["pause"][..], &["resume"], &["ban", "198.51.100.50"], &["reload"]] {
            let refused = operator(args);
            assert!(refused.code == 1 && refused.err.contains("only root"), "{args:?}: {refused:?}");
        }
        assert!(operator(&["ignore", "198.51.100.8"]).err.contains("for a limited time only"));
        assert!(operator(&["ignore", "198.51.100.8", "--for", "2d"]).err.contains("for a limited time only"));
        let dry = operator(&["unban", "--all", "--dry-run"]).ok();
        assert_eq!(dry.matches("would be unbanned").count(), 3, "{dry}");
        assert_eq!(elements("sshd-v4").len(), 3);
        operator(&["unban", "198.51.100.7"]).ok();
        operator(&["ignore", "198.51.100.8", "--for", "2h"]).ok();
        assert_eq!(elements("sshd-v4"), ["198.51.100.9"]);
        let rows: Value = operator(&["history", "--json"]).json();
        let by: Vec<(&str, u64)> = rows["history"]
            .as_array()
            .expect("rows")
            .iter()
            .filter_map(|row| Some((row["what"].as_str()?, row["by"]["uid"].as_u64()?)))
            .collect();
        assert_eq!(by, [("unban", 65534), ("ignore", 65534), ("unban", 65534)]);
    });
}

#[test]
fn bans_are_chosen_by_account_subnet_and_time() {
    in_netns("bans_are_chosen_by_account_subnet_and_time", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let daemon = Daemon::start(&lab, &format!("{}\n[evidence]\naccounts = \"hash\"\nlines = 2\n", sshd(&log, "")));
        daemon.wait_running();
        for (user, who) in [("bob", "198.51.100.7"), ("eve", "198.51.100.8"), ("bob", "203.0.113.9")] {
            (0..3).for_each(|_| log.line(&wrong_password(Stamp::now(), user, who)));
            wait_banned("sshd-v4", who);
        }
        for who in ["198.51.100.7", "198.51.100.8", "203.0.113.9"] {
            let (row, lines) = daemon.evidence(who);
            assert_eq!(lines.len(), 2, "{row:#}");
            assert!(lines.iter().all(|line| line.contains("password for *** from")), "{lines:?}");
        }
        assert_eq!(daemon.history(&["--user", "bob"]).len(), 2);
        let dry = daemon.cli(&["unban", "--user", "bob", "--net", "198.51.100.0/24", "--dry-run"]).ok();
        assert_eq!(dry.lines().count(), 1, "{dry}");
        daemon.cli(&["unban", "--user", "bob"]).ok();
        assert_eq!(elements("sshd-v4"), ["198.51.100.8"]);
        assert!(daemon.cli(&["unban", "--user", "nobody-of-that-name"]).ok().contains("nobody was banned"));
        assert!(daemon.cli(&["unban", "--since", "yesterday"]).code == 2);
        daemon.cli(&["unban", "--since", "1h", "--net", "198.51.100.0/24"]).ok();
        assert!(elements("sshd-v4").is_empty());
    });
}

#[test]
fn bans_grow_over_a_kill() {
    in_netns("bans_grow_over_a_kill", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log, "increment = { enabled = true, maxtime = \"3h\" }"));
        daemon.wait_running();
        for (offence, hours) in [1, 2, 3].into_iter().enumerate() {
            log.fail("198.51.100.7", 3);
            wait_banned("sshd-v4", "198.51.100.7");
            let (_, given) = banset_integration::expires("sshd-v4", "198.51.100.7").expect("it ends");
            assert_eq!(given, hours * 3600, "offence {offence}");
            let said = daemon.cli(&["explain", "sshd", "--addr", "198.51.100.7"]).out;
            assert!(said.contains(&format!("sshd remembers {} earlier bans of it", offence + 1)), "{said}");
            daemon.cli(&["unban", "198.51.100.7"]).ok();
            daemon.kill();
            daemon.start_again();
            daemon.wait_running();
        }
        daemon.cli(&["unban", "198.51.100.7", "--forget"]);
        daemon.restart();
        daemon.wait_running();
        log.fail("198.51.100.7", 3);
        wait_banned("sshd-v4", "198.51.100.7");
        let (_, given) = banset_integration::expires("sshd-v4", "198.51.100.7").expect("it ends");
        assert_eq!(given, 3600, "forgotten");
    });
}

/// A second daemon with a table of its own: the machine that enforces.
struct Enforcer {
    dir: PathBuf,
    child: Child,
}

impl Enforcer {
    fn start(lab: &Lab, jails: &str) -> Enforcer {
        let dir = lab.dir().join("enforcer");
        std::fs::create_dir_all(&dir).expect("a directory");
        let (socket, state) = (dir.join("sock"), dir.join("state"));
        let text = format!("[daemon]\nsocket = {socket:?}\nstate_dir = {state:?}\n[nft]\ntable = \"enforce\"\n{jails}");
        std::fs::write(dir.join("banset.toml"), text).expect("a file");
        let child = Enforcer::spawn(&dir);
        let enforcer = Enforcer { dir, child };
        enforcer.wait();
        enforcer
    }

    fn spawn(dir: &Path) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).expect("a file");
        let mut command = Command::new(binary());
        command.arg("daemon").arg("-c").arg(dir.join("banset.toml")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        banset::netns::die_with_parent(&mut command);
        command.env("TZ", "UTC").spawn().expect("it starts")
    }

    fn wait(&self) {
        wait_until("the enforcer answers", || Answer::of(&mut self.command(&["status"])).code == 0);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).arg("-c").arg(self.dir.join("banset.toml"));
        command
    }

    fn holds(&self, set: &str, address: &str) -> bool {
        nft(&["list", "set", "inet", "enforce", set]).contains(address)
    }
}

impl Drop for Enforcer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- the enforcer's log\n{}----", std::fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
    }
}

/// `banset events --follow | banset apply -`, as a pipe between two machines.
struct Pipe(Child, Child);

impl Pipe {
    fn open(lab: &Lab, daemon: &Daemon, enforcer: &Enforcer) -> Pipe {
        let last = Answer::of(&mut enforcer.command(&["apply", "--last", "--origin", "mx2"])).ok();
        let mut events = Command::new(binary());
        events.args(["events", "--follow", "--since", last.trim()]).arg("--socket").arg(daemon.socket());
        let mut events = events.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let out = events.stdout.take().expect("piped");
        let err = std::fs::File::options().create(true).append(true).open(lab.dir().join("apply.err")).expect("a file");
        let apply = enforcer.command(&["apply", "-", "--origin", "mx2"]).stdin(out).stderr(err).spawn().expect("it starts");
        Pipe(events, apply)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for child in [&mut self.0, &mut self.1] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn lines_that_nearly_match_are_counted_and_shown_to_who_may_read_lines() {
    in_netns("lines_that_nearly_match_are_counted_and_shown_to_who_may_read_lines", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let daemon = Daemon::start(&lab, &sshd(&log, ""));
        daemon.wait_running();
        let none = serde_json::json!({ "total": 0, "last": null });
        assert_eq!(daemon.jail("sshd")["near_misses"], none);
        for n in 1..=7 {
            log.line(&format!("{} mx sshd[7]: Failed password for \u{1b}[31mroot, number {n}", Stamp::now().syslog()));
        }
        wait_until("they are counted", || daemon.jail("sshd")["near_misses"]["total"] == 7);
        let full = daemon.cli(&["status", "sshd", "--json"]).json();
        let lines: Vec<&str> =
            full["near_miss_lines"].as_array().expect("lines").iter().filter_map(|line| line.as_str()).collect();
        assert!((1..=5).contains(&lines.len()) && lines[lines.len() - 1].contains("\\x1b[31mroot, number 7"), "{lines:?}");
        let text = daemon.cli(&["status", "sshd"]).out;
        assert!(text.contains("Near misses:\t7, the last ") && text.contains("number 7"), "{text}");
        // They outlive a reload.
        daemon.cli(&["reload"]).ok();
        assert_eq!(daemon.jail("sshd")["near_misses"]["total"], 7);
    });
}

#[test]
fn what_is_decided_here_is_enforced_there_over_a_broken_pipe_and_without_echo() {
    in_netns("what_is_decided_here_is_enforced_there_over_a_broken_pipe_and_without_echo", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log, ""));
        daemon.wait_running();
        log.fail("198.51.100.7", 3);
        wait_banned("sshd-v4", "198.51.100.7");
        let mut enforcer = Enforcer::start(&lab, "[defaults]\nignoreip = [\"198.51.100.66\"]\n");
        let pipe = Pipe::open(&lab, &daemon, &enforcer);
        wait_until("the old ban is there", || enforcer.holds("manual-v4", "198.51.100.7"));
        for who in ["198.51.100.66", "198.51.100.8", "2001:db8:7::1"] {
            log.fail(who, 3);
        }
        wait_until("the new ones are there", || {
            enforcer.holds("manual-v4", "198.51.100.8") && enforcer.holds("manual-v6", "2001:db8:7::")
        });
        assert!(!enforcer.holds("manual-v4", "198.51.100.66"), "whom it ignores stays ignored");
        wait_until("it says why", || {
            let said = std::fs::read_to_string(lab.dir().join("apply.err")).expect("a file");
            said.contains("not applied: 198.51.100.66: ignored by ip 198.51.100.66")
        });
        daemon.cli(&["unban", "198.51.100.8"]).ok();
        wait_until("its unban follows", || !enforcer.holds("manual-v4", "198.51.100.8"));
        // What the enforcer decides itself another's unban does not lift.
        Answer::of(&mut enforcer.command(&["ban", "198.51.100.9"])).ok();
        for longer in [&["ban", "198.51.100.9"][..], &["ban", "--for", "300d", "198.51.100.9"]] {
            daemon.cli(longer).ok();
            daemon.cli(&["unban", "198.51.100.9"]).ok();
        }
        // The pipe breaks, and both daemons go; what happens meanwhile is there afterwards, once.
        drop(pipe);
        log.fail("198.51.100.10", 3);
        wait_banned("sshd-v4", "198.51.100.10");
        daemon.cli(&["unban", "198.51.100.7"]).ok();
        enforcer.child.kill().expect("killed");
        let _ = enforcer.child.wait();
        enforcer.child = Enforcer::spawn(&enforcer.dir);
        enforcer.wait();
        let _pipe = Pipe::open(&lab, &daemon, &enforcer);
        wait_until("what was missed is there", || {
            enforcer.holds("manual-v4", "198.51.100.10") && !enforcer.holds("manual-v4", "198.51.100.7")
        });
        assert!(enforcer.holds("manual-v4", "198.51.100.9"), "its own ban stands");
        daemon.restart();
        daemon.wait_running();
        log.fail("198.51.100.11", 3);
        wait_until("the stream survives a restart of who decides", || enforcer.holds("manual-v4", "198.51.100.11"));
        // No echo: the enforcer's own stream tells only its own decision.
        let echoed = Answer::of(&mut enforcer.command(&["events", "--since", "0"])).ok();
        assert!(echoed.lines().count() == 1 && echoed.contains("198.51.100.9"), "{echoed}");
        let snapshot = Answer::of(&mut enforcer.command(&["events"])).ok();
        assert!(snapshot.lines().count() == 1 && snapshot.contains("198.51.100.9"), "{snapshot}");
        // Its history names who decided.
        let rows = Answer::of(&mut enforcer.command(&["history", "198.51.100.10", "--json"])).json();
        assert_eq!(rows["history"][0]["origin"], "@mx2", "{rows:#}");
    });
}
