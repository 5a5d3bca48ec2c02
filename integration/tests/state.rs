//! Nothing is lost and nothing counted twice over restarts, kills, other people's hands and a broken state file.

use std::time::{Duration, Instant};

use banset_integration::{Daemon, Lab, Log, Stamp, elements, expires, in_netns, nft, wait_until};
use nix::sys::signal::Signal;

fn sshd(log: &Log) -> String {
    format!("[jail.sshd]\nenabled = true\nlogpath = {:?}\nmaxretry = 3\nfindtime = \"1h\"\nbantime = \"1h\"\n", log.path())
}

fn line(from: &str) -> String {
    format!("{} mx sshd[506]: Failed password for root from {from} port 37957 ssh2", Stamp::now().syslog())
}

fn fail(log: &mut Log, from: &str, times: usize) {
    (0..times).for_each(|_| log.line(&line(from)));
}

#[track_caller]
fn wait_banned(address: &str) {
    wait_until(&format!("{address} is in sshd-v4"), || elements("sshd-v4").iter().any(|element| element == address));
}

/// The daemon has judged what was written before: a marker written after it is banned.
fn judged(log: &mut Log, marker: &str) {
    fail(log, marker, 3);
    wait_banned(marker);
}

#[test]
fn an_address_unbanned_before_a_restart_stays_free_and_counts_go_on() {
    in_netns("an_address_unbanned_before_a_restart_stays_free_and_counts_go_on", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log));
        daemon.wait_running();
        fail(&mut log, "198.51.100.7", 3);
        fail(&mut log, "198.51.100.8", 2);
        wait_banned("198.51.100.7");
        judged(&mut log, "198.51.100.200");
        daemon.cli(&["unban", "198.51.100.7"]).ok();
        daemon.restart();
        daemon.wait_running();
        judged(&mut log, "198.51.100.201");
        assert_eq!(elements("sshd-v4"), ["198.51.100.200", "198.51.100.201"], "the log was not judged again");
        assert_eq!(daemon.jail("sshd")["failures"]["total"], 3 + 2 + 3 + 3, "totals go on");
        fail(&mut log, "198.51.100.8", 1);
        wait_banned("198.51.100.8");
    });
}

#[test]
fn what_an_admin_did_to_the_sets_while_the_daemon_was_away_is_his_will() {
    in_netns("what_an_admin_did_to_the_sets_while_the_daemon_was_away_is_his_will", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log));
        daemon.wait_running();
        fail(&mut log, "198.51.100.7", 3);
        judged(&mut log, "198.51.100.200");
        daemon.stop();
        nft(&["delete", "element", "inet", "banset", "sshd-v4", "{ 198.51.100.7 }"]);
        nft(&["add", "element", "inet", "banset", "sshd-v4", "{ 198.51.100.50 timeout 30m }"]);
        daemon.start_again();
        daemon.wait_log("1 bans added, 1 lifted");
        assert_eq!(elements("sshd-v4"), ["198.51.100.200", "198.51.100.50"]);
        assert_eq!(daemon.cli(&["banned", "198.51.100.50"]).code, 0);
        assert_eq!(daemon.cli(&["banned", "198.51.100.7"]).code, 1);
    });
}

#[test]
fn bans_are_put_back_into_a_table_that_vanished_while_the_daemon_was_away() {
    in_netns("bans_are_put_back_into_a_table_that_vanished_while_the_daemon_was_away", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log));
        daemon.wait_running();
        fail(&mut log, "198.51.100.7", 3);
        judged(&mut log, "198.51.100.200");
        daemon.cli(&["ban", "203.0.113.77", "--permanent"]).ok();
        daemon.kill();
        nft(&["flush", "ruleset"]);
        daemon.start_again();
        assert_eq!(elements("sshd-v4"), ["198.51.100.200", "198.51.100.7"]);
        assert_eq!(elements("manual-v4"), ["203.0.113.77"]);
        let (left, given) = expires("sshd-v4", "198.51.100.7").expect("it ends");
        assert!(left < given && given == 3600 && left > 3500, "{left} of {given}");
        // A saved ruleset loaded over the empty kernel is a table of another handle: the state wins over what it holds.
        daemon.cli(&["unban", "198.51.100.7"]).ok();
        daemon.stop();
        let stale = nft(&["list", "ruleset"]).replace("198.51.100.200", "198.51.100.7");
        nft(&["flush", "ruleset"]);
        let file = lab.dir().join("stale.nft");
        std::fs::write(&file, stale).expect("a file");
        nft(&["-f", file.to_str().expect("a path of our own")]);
        daemon.start_again();
        assert_eq!(elements("sshd-v4"), ["198.51.100.200"], "no lifted ban comes back from the dead");
    });
}

/// Addresses fail three times or twice, the log rotates, the daemon is killed at any moment.
#[test]
fn kills_at_random_lose_no_line_and_count_none_twice() {
    in_netns("kills_at_random_lose_no_line_and_count_none_twice", || {
        let kills: usize = std::env::var("BANSET_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log));
        daemon.wait_running();
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let (mut guilty, mut innocent) = (Vec::new(), Vec::new());
        for kill in 0..kills {
            // A hundred guilty and a hundred innocent a round, their lines mixed.
            let name = |kind: usize, i: usize| format!("198.{}.{}.{}", 18 + kind, kill, i + 1);
            let mut lines: Vec<String> = Vec::new();
            for i in 0..100 {
                lines.extend(std::iter::repeat_n(name(0, i), 3));
                lines.extend(std::iter::repeat_n(name(1, i), 2));
                guilty.push(name(0, i));
                innocent.push(name(1, i));
            }
            for i in (1..lines.len()).rev() {
                lines.swap(i, random(i as u64 + 1) as usize);
            }
            let at = random(lines.len() as u64) as usize;
            for (i, from) in lines.iter().enumerate() {
                log.line(&line(from));
                if i == at {
                    std::thread::sleep(Duration::from_millis(random(400)));
                    daemon.signal(Signal::SIGKILL);
                    daemon.kill();
                    if random(2) == 0 {
                        log.rotate();
                    }
                }
            }
            daemon.start_again();
        }
        judged(&mut log, "198.51.100.200");
        let mut free: Vec<String> = Vec::new();
        let patience = Instant::now() + Duration::from_secs(20);
        while Instant::now() < patience {
            let held = elements("sshd-v4");
            free = guilty.iter().filter(|address| held.binary_search(address).is_err()).cloned().collect();
            if free.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(free.is_empty(), "lines lost of {} addresses: {free:?}", free.len());
        let held = elements("sshd-v4");
        let wrong: Vec<&String> = innocent.iter().filter(|address| held.binary_search(address).is_ok()).collect();
        assert!(wrong.is_empty(), "banned for two failures: {wrong:?}");
        assert_eq!(held.len(), guilty.len() + 1);
    });
}

#[test]
fn a_broken_state_file_is_set_aside_and_a_missing_place_for_it_stops_nothing() {
    in_netns("a_broken_state_file_is_set_aside_and_a_missing_place_for_it_stops_nothing", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log));
        daemon.wait_running();
        fail(&mut log, "198.51.100.7", 3);
        wait_banned("198.51.100.7");
        daemon.stop();
        let state = lab.dir().join("banset/state");
        std::fs::write(state.join("banset.sqlite3"), vec![0x5a; 20_000]).expect("a file of our own");
        daemon.start_again();
        daemon.wait_log("set aside as");
        assert_eq!(elements("sshd-v4"), ["198.51.100.7"], "the kernel still knows");
        daemon.stop();

        std::fs::remove_dir_all(&state).expect("a directory of our own");
        std::fs::write(&state, "in the way").expect("a file of our own");
        daemon.start_again();
        daemon.wait_running();
        assert!(daemon.status()["state"].as_str().is_some_and(|why| why.contains("state")), "{}", daemon.status());
        fail(&mut log, "198.51.100.8", 3);
        wait_banned("198.51.100.8");
        assert_eq!(daemon.cli(&["unban", "198.51.100.8"]).code, 0, "what is asked for is done although it is not kept");
    });
}
