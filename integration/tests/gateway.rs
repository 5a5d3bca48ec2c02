//! The main job, end to end: a mail gateway's log lines become elements of kernel sets, packets of the banned are dropped, and
//! what a person reads at the command line is so.

use std::time::{Duration, Instant};

use banset_integration::{
    Answer, Daemon, Echo, Lab, Log, Monitor, PATIENCE, Stamp, assert_same_text, binary, elements, expires, have, in_netns, nft,
    nft_try, wait_banned, wait_until, wrong_password,
};
use serde_json::Value;

/// The operator plagued by SASL guessing: sendmail's log in a place of its own, three tries.
fn smtp_auth(log: &Log, bantime: &str) -> String {
    format!(
        "[jail.smtp-auth]\nenabled = true\nfilter = \"sendmail-auth\"\nlogpath = {:?}\nport = \"smtp\"\nprotocol = \"tcp\"\n\
         maxretry = 3\nfindtime = \"10m\"\nbantime = \"{bantime}\"\n\n",
        log.path()
    )
}

fn sshd(log: &Log, more: &str) -> String {
    format!("[jail.sshd]\nenabled = true\nlogpath = {:?}\nport = 22\nmaxretry = 3\nfindtime = \"10m\"\n{more}\n\n", log.path())
}

/// `relay=[192.0.2.7]`, and `relay=[IPv6:2001:db8::7]` as sendmail writes IPv6.
fn sendmail_line(at: Stamp, from: &str) -> String {
    let relay = if from.contains(':') { format!("IPv6:{from}") } else { from.to_owned() };
    format!(
        "{} lory sendmail[1558]: s07BPgwK001558: AUTH failure (LOGIN): authentication failure (-13) SASL(-13): \
         authentication failure: checkpass failed, relay=[{relay}]",
        at.syslog()
    )
}

fn root_guessed(at: Stamp, from: &str) -> String {
    wrong_password(at, "root", from)
}

fn fail_mail(log: &mut Log, from: &str, times: usize) {
    (0..times).for_each(|_| log.line(&sendmail_line(Stamp::now(), from)));
}

/// Long enough for a line that must not count to have been judged: another line of the same file, written later, has banned.
#[track_caller]
fn judged(log: &mut Log, line: fn(Stamp, &str) -> String, set: &str, marker: &str) {
    (0..3).for_each(|_| log.line(&line(Stamp::now(), marker)));
    wait_banned(set, marker);
}

#[test]
fn failing_sendmail_lines_ban_their_address_and_no_other() {
    in_netns("failing_sendmail_lines_ban_their_address_and_no_other", || {
        let lab = Lab::new();
        let _doors = Echo::tcp(&[25, 143]);
        let mut log = Log::create(lab.dir().join("facility/mail"));
        let daemon = Daemon::start(&lab, &smtp_auth(&log, "10m"));
        daemon.wait_running();
        let (guesser, other) = ("198.51.100.7", "198.51.100.8");
        assert!(lab.connects(guesser, 25) && lab.connects(other, 25), "before, both may come in");

        fail_mail(&mut log, guesser, 2);
        fail_mail(&mut log, other, 2);
        daemon.wait_failures("smtp-auth", 4);
        assert!(elements("smtp-auth-v4").is_empty(), "two failures are not three");

        let start = Instant::now();
        fail_mail(&mut log, guesser, 1);
        wait_banned("smtp-auth-v4", guesser);
        assert_eq!(elements("smtp-auth-v4"), [guesser]);
        let (left, given) = expires("smtp-auth-v4", guesser).expect("a ban with an end");
        // From the last failure's time, which the log tells in whole seconds.
        let least = 598 - start.elapsed().as_secs();
        assert!((least..=600).contains(&left) && (least..=600).contains(&given), "left {left} of {given}");
        assert!(lab.keeps_out(guesser, 25), "the banned address is kept out");
        assert!(lab.connects(other, 25), "another is not");
        assert!(lab.connects(guesser, 143), "the jail's port only");
        daemon.wait_log(&format!("[smtp-auth] Found {guesser}"));
        daemon.wait_log(&format!("[smtp-auth] Ban {guesser}"));
        assert!(!daemon.log().contains(&format!("Ban {other}")));
    });
}

#[test]
fn a_ban_cuts_an_open_connection() {
    in_netns("a_ban_cuts_an_open_connection", || {
        use std::io::{Read, Write};
        let lab = Lab::new();
        let _door = Echo::tcp(&[25]);
        let mut log = Log::create(lab.dir().join("mail"));
        let daemon = Daemon::start(&lab, &smtp_auth(&log, "10m"));
        daemon.wait_running();
        let mut open = lab.open("198.51.100.7", 25, PATIENCE).expect("nobody is banned yet");
        open.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        open.write_all(b"x").and_then(|()| open.read_exact(&mut [0])).expect("it echoes");
        fail_mail(&mut log, "198.51.100.7", 3);
        wait_banned("smtp-auth-v4", "198.51.100.7");
        open.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket takes a timeout");
        assert!(open.write_all(b"x").and_then(|()| open.read_exact(&mut [0])).is_err(), "nothing comes back any more");
    });
}

#[test]
fn a_ban_ends_in_the_kernel_without_a_message_of_ours() {
    const NAME: &str = "a_ban_ends_in_the_kernel_without_a_message_of_ours";
    in_netns(NAME, || {
        if !have(NAME, "strace") {
            return;
        }
        let lab = Lab::new();
        let _door = Echo::tcp(&[25]);
        let mut log = Log::create(lab.dir().join("mail"));
        // Long enough for what has to be seen of it on a busy machine.
        let daemon = Daemon::start(&lab, &smtp_auth(&log, "20s"));
        daemon.wait_running();
        let monitor = Monitor::start(&lab);
        fail_mail(&mut log, "198.51.100.7", 3);
        wait_banned("smtp-auth-v4", "198.51.100.7");
        assert!(lab.keeps_out("198.51.100.7", 25));
        let heard = monitor.catch_up();
        assert!(heard.contains("198.51.100.7"), "{heard}");
        let sends = daemon.trace("sendto,sendmsg,sendmmsg");
        assert!(!daemon.log().contains("Unban"), "the machine is too slow for a ban of twenty seconds");

        wait_until("the address may come in again", || !lab.keeps_out("198.51.100.7", 25));
        assert!(elements("smtp-auth-v4").is_empty());
        daemon.wait_log("[smtp-auth] Unban 198.51.100.7");
        let ours: Vec<String> = sends.calls().into_iter().filter(|call| call.contains("NETFILTER")).collect();
        assert!(ours.is_empty(), "the daemon sent netlink messages: {ours:#?}");
        assert_eq!(monitor.catch_up(), heard, "nobody changed the ruleset");
        // A ban is one, and would have been seen.
        let sends = daemon.trace("sendto,sendmsg,sendmmsg");
        daemon.cli(&["ban", "smtp-auth", "198.51.100.8"]).ok();
        assert!(sends.calls().iter().any(|call| call.contains("NETFILTER")));
    });
}

#[test]
fn an_ignored_host_inside_a_banned_prefix_still_connects() {
    in_netns("an_ignored_host_inside_a_banned_prefix_still_connects", || {
        let lab = Lab::new();
        let _door = Echo::tcp(&[22, 25]);
        let mut log = Log::create(lab.dir().join("auth.log"));
        let ignore = "ignoreip = [\"127.0.0.0/8\", \"2001:db8:1000:1::5\", \"203.0.113.0/28\"]";
        let daemon = Daemon::start(&lab, &sshd(&log, ignore));
        daemon.wait_running();
        for host in ["2001:db8:1000:1::a", "2001:db8:1000:1::b", "2001:db8:1000:1:ffff::c"] {
            log.fail(host, 1);
        }
        wait_banned("sshd-v6", "2001:db8:1000:1::");
        assert!(lab.keeps_out("2001:db8:1000:1::a", 22), "one who failed");
        assert!(lab.keeps_out("2001:db8:1000:1:1234::1", 22), "one of the same /64 who did not");
        assert!(lab.connects("2001:db8:1000:1::5", 22), "the ignored host inside it");
        assert!(lab.connects("2001:db8:1000:2::a", 22), "the /64 beside it");
        assert!(lab.connects("2001:db8:1000:1::a", 25), "a port of no jail");
        daemon.wait_log("[sshd] Ban 2001:db8:1000:1::/64");
        let bans = daemon.banned();
        assert_eq!(bans[0]["addr"], "2001:db8:1000:1::/64", "{bans:?}");
        // By its own lines the ignored host bans neither itself nor anybody.
        log.fail("2001:db8:1000:1::5", 5);
        judged(&mut log, root_guessed, "sshd-v4", "198.51.100.200");
        assert_eq!(elements("sshd-v6"), ["2001:db8:1000:1::"]);
        assert!(lab.connects("2001:db8:1000:1::5", 22));
    });
}

#[test]
fn ignored_and_own_addresses_are_never_banned() {
    in_netns("ignored_and_own_addresses_are_never_banned", || {
        let lab = Lab::new();
        let _door = Echo::tcp(&[22]);
        let mut log = Log::create(lab.dir().join("auth.log"));
        let defaults = "[defaults]\nignoreip = [\"203.0.113.9\", \"203.0.113.64/26\"]\n\n";
        let daemon = Daemon::start(&lab, &format!("{defaults}{}", sshd(&log, "")));
        daemon.wait_running();
        let spared = [
            "203.0.113.9",
            "203.0.113.65",
            "203.0.113.127",
            Lab::SERVER4,
            Lab::SERVER6,
            "127.0.0.1",
            "::1",
            "fe80::1",
            "::ffff:203.0.113.9",
            "0.0.0.0",
            "224.0.0.1",
        ];
        spared.iter().for_each(|address| log.fail(address, 5));
        judged(&mut log, root_guessed, "sshd-v4", "198.51.100.200");
        assert_eq!(elements("sshd-v4"), ["198.51.100.200"]);
        assert!(elements("sshd-v6").is_empty());
        assert!(lab.connects("203.0.113.9", 22));
        // Just outside the subnet; and IPv4 in IPv6's clothes is IPv4.
        log.fail("203.0.113.128", 3);
        log.fail("::ffff:198.51.100.30", 3);
        wait_banned("sshd-v4", "203.0.113.128");
        wait_banned("sshd-v4", "198.51.100.30");
        // Nor by hand, unless forced; the refusal names the reason.
        let refused = daemon.cli(&["ban", "sshd", "203.0.113.65"]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(format!("{}{}", refused.out, refused.err).contains("203.0.113.64/26"), "{refused:?}");
        assert!(!elements("sshd-v4").contains(&"203.0.113.65".to_owned()));
    });
}

#[test]
fn no_process_is_started_after_start_up() {
    const NAME: &str = "no_process_is_started_after_start_up";
    in_netns(NAME, || {
        if !have(NAME, "strace") {
            return;
        }
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("mail"));
        let daemon = Daemon::start(&lab, &smtp_auth(&log, "1h"));
        daemon.wait_running();
        let trace = daemon.trace("execve,execveat,fork,vfork,clone,clone3");
        for last in 1..=20 {
            fail_mail(&mut log, &format!("198.51.100.{last}"), 3);
        }
        wait_banned("smtp-auth-v4", "198.51.100.20");
        daemon.cli(&["ban", "smtp-auth", "198.51.100.99"]).ok();
        daemon.cli(&["unban", "smtp-auth", "198.51.100.99"]).ok();
        daemon.cli(&["reload"]).ok();
        daemon.status();
        // One that ends by itself.
        daemon.cli(&["ban", "smtp-auth", "198.51.100.98", "--for", "1s"]).ok();
        daemon.wait_log("Unban 198.51.100.98");
        let started = trace.processes();
        assert!(started.is_empty(), "{started:#?}");
    });
}

#[test]
fn without_the_privilege_it_says_so_once() {
    in_netns("without_the_privilege_it_says_so_once", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("mail"));
        let daemon = Daemon::prepared(&lab, &smtp_auth(&log, "10m"));
        let ours = daemon.command();
        // Root without CAP_NET_ADMIN: gone from the bounding set, no exec brings it back.
        let mut command = std::process::Command::new("timeout");
        command.args(["60", "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]);
        command.arg(ours.get_program()).args(ours.get_args()).env("TZ", "UTC");
        let answer = Answer::of(&mut command);
        let said = format!("{}{}", answer.out, answer.err);
        assert!(answer.code != 0 && answer.code != 124, "it must end by itself, and badly: {answer:?}");
        assert_eq!(said.matches("CAP_NET_ADMIN").count(), 1, "one message that names the privilege: {said}");
        assert_eq!(said.matches("EPERM").count(), 1, "and the cause, once: {said}");
        assert!(!said.contains("panicked") && said.lines().count() <= 6, "{said}");
        assert!(nft_try(&["list", "table", "inet", "banset"]).is_err(), "nothing was changed");
    });
}

#[test]
fn a_restart_changes_nothing_in_the_kernel() {
    in_netns("a_restart_changes_nothing_in_the_kernel", || {
        let lab = Lab::new();
        let _door = Echo::tcp(&[25, 22]);
        let (mut mail, mut auth) = (Log::create(lab.dir().join("mail")), Log::create(lab.dir().join("auth.log")));
        let defaults = "[defaults]\nignoreip = [\"203.0.113.9\"]\n\n";
        let jails = format!("{defaults}{}{}", smtp_auth(&mail, "10m"), sshd(&auth, "bantime = \"1h\""));
        let mut daemon = Daemon::start(&lab, &jails);
        daemon.wait_running();
        fail_mail(&mut mail, "198.51.100.7", 3);
        auth.fail("2001:db8:1000:1::a", 3);
        wait_banned("smtp-auth-v4", "198.51.100.7");
        wait_banned("sshd-v6", "2001:db8:1000:1::");
        daemon.cli(&["ban", "smtp-auth", "198.51.100.70", "--permanent"]).ok();
        // Handles too: what was deleted and made again would have new ones.
        let listed = || nft(&["-s", "-a", "list", "ruleset"]);
        let before = listed();
        let (left_before, _) = expires("smtp-auth-v4", "198.51.100.7").expect("a ban with an end");
        std::thread::sleep(Duration::from_millis(1500));

        for round in ["the first restart", "the second restart"] {
            let table = listed();
            let status = daemon.stop();
            assert!(status.success(), "after SIGTERM: {status}");
            assert_same_text("while it is stopped", &table, &listed());
            assert!(lab.keeps_out("198.51.100.7", 25), "still kept out while it is stopped");
            daemon.start_again();
            daemon.wait_running();
            assert_same_text(round, &before, &listed());
        }
        let (left, _) = expires("smtp-auth-v4", "198.51.100.7").expect("a ban with an end");
        assert!(left < left_before && left + 300 > left_before, "the time runs on: {left} after {left_before}");
        let mut bans: Vec<(String, String)> = daemon.banned().iter().map(jail_and_address).collect();
        bans.sort();
        let kept = [("smtp-auth", "198.51.100.7"), ("smtp-auth", "198.51.100.70"), ("sshd", "2001:db8:1000:1::/64")];
        assert_eq!(bans, kept.map(|(jail, address)| (jail.to_owned(), address.to_owned())));

        daemon.kill();
        assert_same_text("after kill -9", &before, &listed());
        daemon.start_again();
        daemon.wait_running();
        assert_same_text("started after kill -9", &before, &listed());
        // And it works on: not one rule too many, not one ban missed.
        fail_mail(&mut mail, "198.51.100.8", 3);
        wait_banned("smtp-auth-v4", "198.51.100.8");
        assert_eq!(daemon.log().matches("[smtp-auth] Ban 198.51.100.7\n").count(), 1, "no ban is told twice");
    });
}

fn jail_and_address(ban: &Value) -> (String, String) {
    let text = |key: &str| ban[key].as_str().unwrap_or_else(|| panic!("{key} in {ban}")).to_owned();
    (text("jail"), text("addr"))
}

#[test]
fn sigterm_leaves_the_table_standing() {
    in_netns("sigterm_leaves_the_table_standing", || {
        let lab = Lab::new();
        let _door = Echo::tcp(&[25]);
        let mut log = Log::create(lab.dir().join("mail"));
        let mut daemon = Daemon::start(&lab, &smtp_auth(&log, "10m"));
        daemon.wait_running();
        fail_mail(&mut log, "198.51.100.7", 3);
        wait_banned("smtp-auth-v4", "198.51.100.7");
        let status = daemon.stop();
        assert!(status.success(), "{status}");
        assert_eq!(elements("smtp-auth-v4"), ["198.51.100.7"]);
        assert!(lab.keeps_out("198.51.100.7", 25));
        assert!(lab.connects("198.51.100.8", 25));
        assert_eq!(daemon.cli(&["status"]).code, 3, "nobody answers");
        assert!(!daemon.socket().exists(), "its socket is gone");
    });
}

#[test]
fn sighup_is_a_reload() {
    in_netns("sighup_is_a_reload", || {
        let lab = Lab::new();
        let mail = Log::create(lab.dir().join("mail"));
        let mut auth = Log::create(lab.dir().join("auth.log"));
        let daemon = Daemon::start(&lab, &smtp_auth(&mail, "10m"));
        daemon.wait_running();
        daemon.configure(&format!("{}{}", smtp_auth(&mail, "10m"), sshd(&auth, "")));
        daemon.signal(nix::sys::signal::Signal::SIGHUP);
        wait_until("the new jail runs", || {
            let status = daemon.status();
            status["jails"].as_array().is_some_and(|jails| jails.iter().any(|j| j["name"] == "sshd" && j["state"] == "running"))
        });
        auth.fail("198.51.100.7", 3);
        wait_banned("sshd-v4", "198.51.100.7");
    });
}

#[test]
fn a_reload_adds_a_jail_and_keeps_the_bans() {
    in_netns("a_reload_adds_a_jail_and_keeps_the_bans", || {
        let lab = Lab::new();
        let _door = Echo::tcp(&[25, 22]);
        let (mut mail, mut auth) = (Log::create(lab.dir().join("mail")), Log::create(lab.dir().join("auth.log")));
        let daemon = Daemon::start(&lab, &smtp_auth(&mail, "10m"));
        daemon.wait_running();
        fail_mail(&mut mail, "198.51.100.7", 3);
        // These two count after the reload, too.
        fail_mail(&mut mail, "198.51.100.8", 2);
        wait_banned("smtp-auth-v4", "198.51.100.7");
        daemon.configure(&format!("{}{}", smtp_auth(&mail, "10m"), sshd(&auth, "")));
        daemon.cli(&["reload"]).ok();
        daemon.wait_running();
        assert_eq!(daemon.jail("sshd")["state"], "running");
        assert_eq!(elements("smtp-auth-v4"), ["198.51.100.7"]);
        assert!(lab.keeps_out("198.51.100.7", 25));
        auth.fail("198.51.100.9", 3);
        wait_banned("sshd-v4", "198.51.100.9");
        fail_mail(&mut mail, "198.51.100.8", 1);
        wait_banned("smtp-auth-v4", "198.51.100.8");

        // A configuration with a mistake changes nothing, and says where.
        let listing = nft(&["-s", "-a", "list", "ruleset"]);
        daemon.configure(&format!("{}[jail.sshd]\nenabled = true\nfindtime = \"10 minuets\"\n", smtp_auth(&mail, "10m")));
        let refused = daemon.cli(&["reload"]);
        assert_eq!(refused.code, 1, "{refused:?}");
        let said = format!("{}{}", refused.out, refused.err);
        assert!(said.contains("banset.toml:") && said.contains("minuets"), "{said}");
        assert_same_text("after a refused reload", &listing, &nft(&["-s", "-a", "list", "ruleset"]));
        assert_eq!(daemon.jail("sshd")["state"], "running");

        // Without the jail its sets and rules go; the other's stay.
        daemon.configure(&smtp_auth(&mail, "10m"));
        daemon.cli(&["reload"]).ok();
        wait_until("the jail's sets are gone", || nft_try(&["list", "set", "inet", "banset", "sshd-v4"]).is_err());
        assert_eq!(elements("smtp-auth-v4"), ["198.51.100.7", "198.51.100.8"]);
        assert!(lab.connects("198.51.100.9", 22), "nobody guards that door any more");
    });
}

#[test]
fn lines_on_both_sides_of_a_rotation_count_once() {
    in_netns("lines_on_both_sides_of_a_rotation_count_once", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("mail"));
        let daemon = Daemon::start(&lab, &smtp_auth(&log, "10m"));
        daemon.wait_running();
        fail_mail(&mut log, "198.51.100.7", 2);
        fail_mail(&mut log, "198.51.100.8", 1);
        log.rename();
        // The writer has not re-opened yet: this goes into the old file, behind its new name.
        fail_mail(&mut log, "198.51.100.8", 1);
        log.reopen();
        fail_mail(&mut log, "198.51.100.7", 1);
        fail_mail(&mut log, "198.51.100.8", 1);
        wait_banned("smtp-auth-v4", "198.51.100.7");
        wait_banned("smtp-auth-v4", "198.51.100.8");
        judged(&mut log, sendmail_line, "smtp-auth-v4", "198.51.100.200");
        assert_eq!(elements("smtp-auth-v4"), ["198.51.100.200", "198.51.100.7", "198.51.100.8"]);
        assert_eq!(daemon.jail("smtp-auth")["failures"]["total"], 3 + 3 + 3, "every line once");
    });
}

#[test]
fn two_rotations_in_a_row_lose_nothing_and_repeat_nothing() {
    in_netns("two_rotations_in_a_row_lose_nothing_and_repeat_nothing", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("mail"));
        let daemon = Daemon::start(&lab, &smtp_auth(&log, "10m"));
        daemon.wait_running();
        for n in 1..=2 {
            // Two files with the same bytes would be two names of one to a reader that knows files by their content.
            log.line(&format!("{} mx queue run {n}", Stamp::now().syslog()));
            fail_mail(&mut log, "198.51.100.9", 1);
            log.rotate();
            log.rotate();
        }
        judged(&mut log, sendmail_line, "smtp-auth-v4", "198.51.100.200");
        assert_eq!(elements("smtp-auth-v4"), ["198.51.100.200"], "two lines stay two");
        assert_eq!(daemon.jail("smtp-auth")["failures"]["total"], 2 + 3, "every line once");
    });
}

#[test]
fn a_log_that_appears_later_is_picked_up() {
    in_netns("a_log_that_appears_later_is_picked_up", || {
        let lab = Lab::new();
        let path = lab.dir().join("not/yet/there/mail");
        let mut auth = Log::create(lab.dir().join("auth.log"));
        let waiting = format!(
            "[jail.smtp-auth]\nenabled = true\nfilter = \"sendmail-auth\"\nlogpath = {path:?}\nport = 25\nmaxretry = 3\n\n{}",
            sshd(&auth, "")
        );
        let daemon = Daemon::start(&lab, &waiting);
        wait_until("the jail waits", || daemon.jail("smtp-auth")["state"] == "waiting");
        auth.fail("198.51.100.7", 3);
        wait_banned("sshd-v4", "198.51.100.7");
        // Written the moment it appears: the first lines count like the later ones.
        let mut mail = Log::create(&path);
        fail_mail(&mut mail, "198.51.100.8", 3);
        wait_banned("smtp-auth-v4", "198.51.100.8");
        wait_until("the jail runs", || daemon.jail("smtp-auth")["state"] == "running");
    });
}

#[test]
fn lines_written_while_it_was_down_are_read_and_none_twice() {
    in_netns("lines_written_while_it_was_down_are_read_and_none_twice", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("mail"));
        // Before the very first start: read back, at most by findtime.
        let start = Instant::now();
        (0..3).for_each(|_| log.line(&sendmail_line(Stamp::ago(3000), "198.51.100.6")));
        (0..3).for_each(|_| log.line(&sendmail_line(Stamp::ago(300), "198.51.100.7")));
        let daemon = Daemon::start(&lab, &smtp_auth(&log, "10m"));
        wait_banned("smtp-auth-v4", "198.51.100.7");
        assert!(!elements("smtp-auth-v4").contains(&"198.51.100.6".to_owned()), "older than findtime");
        // The ban runs from the failures, five minutes ago, not from now.
        let (left, _) = expires("smtp-auth-v4", "198.51.100.7").expect("a ban with an end");
        assert!((298 - start.elapsed().as_secs()..=300).contains(&left), "{left}");
        drop(daemon);
    });
}

/// What the servers of a mail gateway write: the jail whose filter must match, and the line with `{}` for the address.
fn quoted(at: Stamp) -> Vec<(&'static str, String)> {
    let (tai, syslog) = (at.tai64n(), at.syslog());
    let envelope = "code=553 reason=rblreject detail=b.barracudacentral.org helo=free-112-191.mediaworksit.net \
                    mailfrom=sender@remotedomain.xy rcptto=localuser@localdomain.xy relay=no rcpthosts=yes size= authuser= \
                    authtype= encrypted= sslverified=no localip=10.0.0.4 localport=25 remoteip={} remoteport=15630 \
                    remotehost= qp= pid=20003";
    vec![
        ("qmail-smtp", format!("{tai} qlogenvelope: result=rejected {envelope}")),
        ("qmail-smtp", format!("{} helo-dns-check: blocked with: HELO doesn't match IP [{{}}]", at.tai64nlocal())),
        ("qmail-smtp", format!("{tai} GREETDELAY from {{}}: client sent data before greeting")),
        ("qmail-smtp", format!("{tai} qmail-smtpd: reject (auth not available): (null) from {{}}")),
        ("qmail-submission", format!("{tai} qlogenvelope: result=rejected {envelope}")),
        (
            "vpopmail",
            format!("{syslog} qmail vpopmail[3076]: vchkpw-submission: vpopmail user not found helpdesk@yourdomain.xy:{{}}"),
        ),
        (
            "vpopmail",
            format!(
                "{syslog} qmail vpopmail[6383]: vchkpw-submission: password fail (pass: 'dasdas') postmaster@yourdomain.xy:{{}}"
            ),
        ),
        ("qmailadmin", format!("{} user:postmaster@domain.xy ip:{{}} auth:failed [@domain.xy]", at.slashes())),
        (
            "roundcube-auth",
            format!(
                "[{}]: <3lq5onb8> Failed login for postmaster from 10.0.0.2 (X-Forwarded-For: {{}}) in session \
                 3lq5onb87b7oqnc7 (error: 1)",
                at.roundcube()
            ),
        ),
        (
            "roundcube-auth",
            format!(
                "[{}]: IMAP Error: Login failed for sisgri@iol.it from {{}}. AUTHENTICATE PLAIN: Authentication failed. in \
                 /usr/local/www/roundcube/program/lib/Roundcube/rcube_imap.php on line 184",
                at.roundcube()
            ),
        ),
        ("dovecot-imap", format!("{syslog} auth-worker(27283): Info: sql(user@yourdomain.xy:{{}}): Password mismatch")),
        ("dovecot-imap", format!("{syslog} auth-worker(27283): Info: sql(user@yourdomain.xy,{{}}): Password mismatch")),
        ("dovecot-imap", format!("{syslog} auth-worker(27283): Info: sql(adminww@yourdomain.xy:{{}}): unknown user")),
        (
            "dovecot-imap",
            format!(
                "{syslog} imap-login: Info: Disconnected (auth failed, 1 attempts in 2 secs): user=<user@yourdomain.xy>, \
                 method=PLAIN, rip={{}}, lip=5.6.7.8, session=<k2t5+c7+5AAKAAAC>"
            ),
        ),
        (
            "smtp-auth",
            format!(
                "{syslog} lory sendmail[1558]: s07BPgwK001558: AUTH failure (LOGIN): authentication failure (-13) SASL(-13): \
                 authentication failure: checkpass failed, relay=[{{}}]"
            ),
        ),
        (
            "smtp-auth",
            format!(
                "{syslog} lory sendmail[28424]: s07EriLI028424: AUTH failure (PLAIN): authentication failure (-13) SASL(-13): \
                 authentication failure: Password verification failed, relay=odessa.webform.co.uk [{{}}]"
            ),
        ),
        ("sshd", format!("{syslog} mx sshd[506]: Failed password for invalid user admin from {{}} port 37957 ssh2")),
        ("sshd", format!("{syslog} mx sshd-session[507]: Failed password for root from {{}} port 37958 ssh2")),
    ]
}

/// Lines of the same servers that are nobody's failure; `{}` is an address they mention.
fn harmless(at: Stamp) -> Vec<(&'static str, String)> {
    let (tai, syslog) = (at.tai64n(), at.syslog());
    vec![
        (
            "qmail-smtp",
            format!("{tai} CHKUSER accepted sender: from <a@example.net::> remote <mx:unknown:{{}}> rcpt <> : sender accepted"),
        ),
        (
            "qmail-smtp",
            format!(
                "{tai} CHKUSER accepted rcpt: from <a@example.net::> remote <mx:unknown:{{}}> rcpt <you@example.org> : found"
            ),
        ),
        ("qmail-smtp", format!("{tai} rcptcheck: checking/ignore address {{}}")),
        ("qmail-smtp", format!("{tai} rbl: ip={{}} result=ignore site=zen.spamhaus.org")),
        ("qmail-smtp", format!("{tai} rbl: ip={{}} result=reject site=zen.spamhaus.org")),
        ("qmail-smtp", format!("{tai} qmail-smtpd: timeout: (null) from {{}} to (null) helo mx.example.net")),
        ("qmail-smtp", format!("{tai} qlogenvelope: result=accepted code=250 reason= remoteip={{}} remoteport=15630")),
        ("vpopmail", format!("{syslog} qmail vpopmail[3077]: vchkpw-submission: (LOGIN) login success bob@example.org:{{}}")),
        ("sshd", format!("{syslog} mx sshd[508]: Accepted publickey for root from {{}} port 37959 ssh2")),
    ]
}

#[test]
fn every_jail_bans_on_the_lines_its_server_writes() {
    in_netns("every_jail_bans_on_the_lines_its_server_writes", || {
        let lab = Lab::new();
        let file = |jail: &str| {
            lab.dir().join(match jail {
                "qmail-smtp" => "qmail/smtpd/current",
                "qmail-submission" => "qmail/submission/current",
                "vpopmail" => "maillog",
                "qmailadmin" => "qma-auth.log",
                "roundcube-auth" => "roundcube/userlogins.log",
                "dovecot-imap" | "dovecot-pop3" => "dovecot/dovecot.log",
                "smtp-auth" => "facility/mail",
                "sshd" => "auth.log",
                other => panic!("no such jail: {other}"),
            })
        };
        let jails = [
            "qmail-smtp",
            "qmail-submission",
            "vpopmail",
            "qmailadmin",
            "roundcube-auth",
            "dovecot-pop3",
            "dovecot-imap",
            "sshd",
        ];
        let mut text = "[defaults]\nmaxretry = 2\nfindtime = \"1h\"\nbantime = \"1d\"\n\n".to_owned();
        for jail in jails {
            text += &format!("[jail.{jail}]\nenabled = true\nlogpath = {:?}\n", file(jail));
            if jail == "roundcube-auth" {
                text += "filter = { name = \"roundcube\", proxy = \"10.0.0.2\" }\n";
            }
        }
        text += &format!(
            "[jail.smtp-auth]\nenabled = true\nfilter = \"sendmail-auth\"\nlogpath = {:?}\nport = \"smtp\"\n",
            file("smtp-auth")
        );
        let mut write = {
            let mut logs: std::collections::BTreeMap<_, Log> =
                jails.iter().chain(&["smtp-auth"]).map(|jail| (file(jail), Log::create(file(jail)))).collect();
            move |jail: &str, line: &str| logs.get_mut(&file(jail)).expect("every jail has its log").line(line)
        };
        let daemon = Daemon::start(&lab, &text);
        daemon.wait_running();
        // Each line twice, twenty seconds apart by its stamp: what one server reports several times within a moment is one try.
        for at in [Stamp::ago(40), Stamp::ago(20)] {
            for (jail, line) in harmless(at) {
                write(jail, &line.replace("{}", "203.0.113.200"));
            }
            for (i, (jail, line)) in quoted(at).iter().enumerate() {
                write(jail, &line.replace("{}", &format!("198.51.100.{}", i + 1)));
            }
        }
        let lines = quoted(Stamp::now());
        let mut expected: Vec<(String, String)> = Vec::new();
        for (i, (jail, _)) in lines.iter().enumerate() {
            expected.push(((*jail).to_owned(), format!("198.51.100.{}", i + 1)));
            if *jail == "dovecot-imap" {
                expected.push(("dovecot-pop3".to_owned(), format!("198.51.100.{}", i + 1)));
            }
        }
        expected.sort();
        let bans = || {
            let mut bans: Vec<(String, String)> = daemon.banned().iter().map(jail_and_address).collect();
            bans.sort();
            bans
        };
        let start = Instant::now();
        let missing = || expected.iter().filter(|ban| !bans().contains(ban)).cloned().collect::<Vec<_>>();
        while !missing().is_empty() {
            assert!(start.elapsed() < PATIENCE, "not banned: {:#?}", missing());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(bans(), expected, "banned although harmless");
        expected.iter().for_each(|(jail, address)| wait_banned(&format!("{jail}-v4"), address));
    });
}

#[test]
fn a_try_that_dovecot_reports_twice_counts_once() {
    in_netns("a_try_that_dovecot_reports_twice_counts_once", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("dovecot.log"));
        let jail = format!("[jail.dovecot-imap]\nenabled = true\nlogpath = {:?}\nmaxretry = 3\nfindtime = \"1h\"\n", log.path());
        let daemon = Daemon::start(&lab, &jail);
        daemon.wait_running();
        let mut one_try = |seconds_ago: i64, address: &str| {
            let (worker, login) = (Stamp::ago(seconds_ago + 2).syslog(), Stamp::ago(seconds_ago).syslog());
            log.line(&format!("{worker} auth-worker(27283): Info: sql(user@yourdomain.xy:{address}): Password mismatch"));
            log.line(&format!(
                "{login} imap-login: Info: Disconnected (auth failed, 1 attempts in 2 secs): user=<user@yourdomain.xy>, \
                 method=PLAIN, rip={address}, lip=5.6.7.8, session=<k2t5+c7+5AAKAAAC>"
            ));
        };
        for seconds_ago in [48, 34] {
            one_try(seconds_ago, "198.51.100.7");
            one_try(seconds_ago, "198.51.100.8");
        }
        one_try(20, "198.51.100.8");
        wait_banned("dovecot-imap-v4", "198.51.100.8");
        assert_eq!(elements("dovecot-imap-v4"), ["198.51.100.8"], "two tries on four lines are not three");
        one_try(5, "198.51.100.7");
        wait_banned("dovecot-imap-v4", "198.51.100.7");
    });
}

#[test]
fn the_ruleset_it_prints_is_the_one_nft_lists() {
    in_netns("the_ruleset_it_prints_is_the_one_nft_lists", || {
        let lab = Lab::new();
        let (mail, auth) = (Log::create(lab.dir().join("mail")), Log::create(lab.dir().join("auth.log")));
        let defaults = "[defaults]\nignoreip = [\"127.0.0.0/8\", \"::1\", \"203.0.113.0/24\"]\n\n";
        let jails = format!("{defaults}{}{}", smtp_auth(&mail, "10m"), sshd(&auth, "blocktype = \"reject\""));
        let mut daemon = Daemon::prepared(&lab, &jails);
        let explained = daemon.cli(&["ruleset"]).ok();
        assert!(
            explained.contains("\n\t# [smtp-auth] banned addresses, each until its timeout ends\n\tset smtp-auth-v4 {\n"),
            "{explained}"
        );
        // Comments are for people: nft keeps none.
        let plain = |text: String| -> String {
            text.lines().filter(|line| !line.trim_start().starts_with('#')).map(|line| format!("{line}\n")).collect()
        };
        let printed = plain(explained);
        daemon.start_again();
        daemon.wait_running();
        let listed = nft(&["-s", "list", "table", "inet", "banset"]);
        assert_same_text("before it is committed, and as nft lists it", &printed, &listed);
        assert_same_text("while it runs", &plain(daemon.cli(&["ruleset"]).ok()), &listed);
        // A listing of ours that does not load would leave whoever saved it without a firewall.
        daemon.stop();
        let saved = lab.dir().join("saved.nft");
        std::fs::write(&saved, &listed).expect("a listing can be saved");
        nft(&["delete", "table", "inet", "banset"]);
        nft(&["-f", saved.to_str().expect("a path of ours is text")]);
        assert_same_text("list, load, list", &listed, &nft(&["-s", "list", "table", "inet", "banset"]));
    });
}

#[test]
fn bans_by_hand_are_set_told_and_lifted() {
    in_netns("bans_by_hand_are_set_told_and_lifted", || {
        let lab = Lab::new();
        let _doors = Echo::tcp(&[25, 143]);
        let log = Log::create(lab.dir().join("mail"));
        let daemon = Daemon::start(&lab, &smtp_auth(&log, "10m"));
        daemon.wait_running();

        let start = Instant::now();
        daemon.cli(&["ban", "smtp-auth", "198.51.100.7", "198.51.100.8", "--for", "2h", "--reason", "tested"]).ok();
        // The answer comes after the kernel's: nothing to wait for.
        assert_eq!(elements("smtp-auth-v4"), ["198.51.100.7", "198.51.100.8"]);
        let (left, _) = expires("smtp-auth-v4", "198.51.100.7").expect("a ban with an end");
        assert!((7199 - start.elapsed().as_secs()..=7200).contains(&left), "{left}");
        assert!(lab.keeps_out("198.51.100.7", 25));
        assert!(lab.connects("198.51.100.7", 143));
        let held = daemon.cli(&["banned", "198.51.100.7"]);
        assert!(held.code == 0 && held.out.contains("smtp-auth"), "{held:?}");
        assert_eq!(daemon.cli(&["banned", "198.51.100.7", "198.51.100.77"]).code, 1, "one of them is free");

        daemon.cli(&["unban", "smtp-auth", "198.51.100.7"]).ok();
        assert_eq!(elements("smtp-auth-v4"), ["198.51.100.8"]);
        assert!(lab.connects("198.51.100.7", 25));
        daemon.wait_log("[smtp-auth] Unban 198.51.100.7");

        // Without a jail: all ports, and every jail when lifted.
        daemon.cli(&["ban", "198.51.100.9"]).ok();
        assert!(lab.keeps_out("198.51.100.9", 143) && lab.keeps_out("198.51.100.9", 25));
        assert_eq!(elements("manual-v4"), ["198.51.100.9"]);
        daemon.cli(&["ban", "2001:db8:1000:1::7"]).ok();
        assert!(lab.keeps_out("2001:db8:1000:1::7", 143));
        daemon.cli(&["unban", "198.51.100.9"]).ok();
        assert!(lab.connects("198.51.100.9", 143));

        daemon.cli(&["ban", "smtp-auth", "198.51.100.10", "--permanent"]).ok();
        assert_eq!(expires("smtp-auth-v4", "198.51.100.10"), None);
        assert!(elements("smtp-auth-v4").contains(&"198.51.100.10".to_owned()));
        daemon.cli(&["unban", "--all"]).ok();
        assert!(elements("smtp-auth-v4").is_empty() && elements("manual-v4").is_empty());
        assert!(daemon.banned().is_empty());

        for wrong in [&["ban", "smtp-auth", "198.51.100.300"][..], &["ban", "no-such-jail", "198.51.100.7"], &["unban"]] {
            let answer = daemon.cli(wrong);
            assert!(matches!(answer.code, 1 | 2) && !answer.err.is_empty(), "{wrong:?}: {answer:?}");
        }
        assert_eq!(daemon.cli(&["frobnicate"]).code, 2);
    });
}

#[test]
fn json_keeps_its_shape() {
    in_netns("json_keeps_its_shape", || {
        let lab = Lab::new();
        let _door = Echo::tcp(&[25]);
        let mut log = Log::create(lab.dir().join("mail"));
        let daemon = Daemon::start(&lab, &smtp_auth(&log, "10m"));
        daemon.wait_running();
        let start = Instant::now();
        fail_mail(&mut log, "198.51.100.7", 3);
        fail_mail(&mut log, "198.51.100.8", 1);
        wait_banned("smtp-auth-v4", "198.51.100.7");
        daemon.wait_failures("smtp-auth", 4);
        daemon.cli(&["ban", "smtp-auth", "198.51.100.9", "--permanent", "--reason", "tested"]).ok();
        assert!(lab.keeps_out("198.51.100.7", 25));
        wait_until("all of the log is read", || daemon.jail("smtp-auth")["sources"][0]["lag_bytes"] == 0);

        let status = daemon.status();
        let jail = &daemon.jail("smtp-auth");
        has(jail, &["name", "state", "backend", "sources", "failures", "bans", "kernel"]);
        assert_eq!(jail["state"], "running");
        has(&jail["sources"][0], &["path", "state", "lag_bytes"]);
        assert_eq!(jail["sources"][0]["path"], log.path());
        assert_eq!((&jail["failures"]["total"], &jail["bans"]["current"]), (&4.into(), &2.into()), "{jail:#}");
        has(&jail["bans"], &["current", "total"]);
        has(&jail["failures"], &["current", "total"]);
        has(&jail["kernel"], &["v4", "v6", "net4", "net6"]);
        assert_eq!((&jail["kernel"]["v4"], &jail["kernel"]["v6"]), (&2.into(), &0.into()), "{jail:#}");
        let table = &status["nft"][0];
        has(table, &["table", "family", "owner", "generation", "restored"]);
        assert_eq!((&table["table"], &table["family"]), (&"banset".into(), &"inet".into()));

        let bans = daemon.banned();
        let of = |address: &str| bans.iter().find(|ban| ban["addr"] == address).unwrap_or_else(|| panic!("{bans:?}"));
        for ban in &bans {
            has(ban, &["jail", "addr", "since", "until", "left_s", "failures", "reason", "packets", "bytes"]);
            let since = ban["since"].as_str().expect("a time");
            assert!(since.parse::<jiff::Timestamp>().is_ok() && since.ends_with('Z'), "RFC 3339 in UTC: {since}");
        }
        let (logged, by_hand) = (of("198.51.100.7"), of("198.51.100.9"));
        assert_eq!(logged["failures"], 3);
        let left = logged["left_s"].as_f64().expect("a ban with an end");
        assert!((598.0 - start.elapsed().as_secs_f64()..=600.0).contains(&left), "{left}");
        assert!(logged["until"].as_str().is_some_and(|until| until.parse::<jiff::Timestamp>().is_ok()));
        assert!(by_hand["until"].is_null() && by_hand["left_s"].is_null(), "{by_hand:#}");
        assert_eq!(by_hand["reason"], "tested");

        let one = daemon.cli(&["status", "smtp-auth", "--json"]).json();
        assert!(one.to_string().contains("smtp-auth"), "{one:#}");
        assert_eq!(daemon.cli(&["status", "no-such-jail"]).code, 1);
        daemon.cli(&["stats", "--json"]).json();
        let stats = daemon.cli(&["stats"]).ok();
        let row = stats.lines().find(|line| line.contains("smtp-auth")).unwrap_or_else(|| panic!("{stats}"));
        assert!(row.contains('4') && row.contains('2'), "failures and bans of the jail: {stats}");
        let plain = daemon.cli(&["banned"]).ok();
        assert!(plain.contains("198.51.100.7") && !plain.contains('\x1b'), "plain text when piped: {plain}");
    });
}

/// Whether all `keys` are there, if only as null: later versions may add to them, never take away.
#[track_caller]
fn has(object: &Value, keys: &[&str]) {
    let missing: Vec<_> = keys.iter().filter(|key| object.get(key).is_none()).collect();
    assert!(missing.is_empty(), "no {missing:?} in {object:#}");
}

#[test]
fn one_table_has_one_daemon() {
    in_netns("one_table_has_one_daemon", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("mail"));
        let daemon = Daemon::start(&lab, &smtp_auth(&log, "10m"));
        daemon.wait_running();
        let mut second = std::process::Command::new("timeout");
        second.arg("60").arg(binary()).arg("daemon").arg("-c").arg(daemon.config());
        let answer = Answer::of(&mut second);
        assert!(answer.code != 0 && answer.code != 124, "the second one ends by itself: {answer:?}");
        let said = format!("{}{}", answer.out, answer.err);
        assert!(said.contains(&daemon.pid().to_string()), "and names who holds the table: {said}");
        assert!(daemon.cli(&["status"]).code == 0, "the first one goes on");
    });
}
