//! The journal as a source, with a real journald and real journal files.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use banset_integration::{
    Daemon, Entries, Journald, Lab, Log, PATIENCE, Stamp, elements, have_journal, in_netns, wait_banned, wait_for, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A jail that reads `door`'s entries, with a filter of its own; `more` says the rest.
fn door(more: &str) -> String {
    let usual = [("maxretry", "3"), ("findtime", "\"1h\""), ("bantime", "\"1d\""), ("port", "\"ssh\"")];
    let usual: String =
        usual.iter().filter(|(key, _)| !more.contains(key)).map(|(key, value)| format!("{key} = {value}\n")).collect();
    format!(
        "[jail.door]\nenabled = true\n{usual}{more}\n\n\
         [filter.door]\nfailregex = '^\\s*\\S+ door\\[\\d+\\]: refused <F-USER>\\S*</F-USER> from <HOST>$'\njournalmatch = \"SYSLOG_IDENTIFIER=door\"\n"
    )
}

fn refuse(journald: &Journald, addr: &str, times: usize) {
    for _ in 0..times {
        journald.log("door", &format!("refused bob from {addr}"));
    }
}

/// Waits until `total` failures are counted, and that it stays at that until an entry sent only then is; gives the new total.
#[track_caller]
fn settled(daemon: &Daemon, journald: &Journald, total: u64) -> u64 {
    daemon.wait_failures("door", total);
    refuse(journald, &format!("203.0.{}.{}", total / 250, total % 250 + 1), 1);
    daemon.wait_failures("door", total + 1);
    total + 1
}

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_micros() as i64
}

/// The one source of a jail.
fn source(daemon: &Daemon, jail: &str) -> Value {
    daemon.jail(jail)["sources"][0].clone()
}

fn wait_source(daemon: &Daemon, jail: &str, state: &str) {
    wait_until(&format!("the source of {jail} is {state}"), || source(daemon, jail)["state"] == state);
}

/// The processes called `name` below another, children's children too.
fn below(pid: Pid, name: &str) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    // A thread may be the parent.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    let more = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect::<Vec<_>>().join(" ");
    let mut all: Vec<i32> = format!("{children} {more}").split_whitespace().filter_map(|n| n.parse().ok()).collect();
    all.sort_unstable();
    all.dedup();
    let mut found = Vec::new();
    for child in all {
        let comm = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        if comm.trim() == name {
            found.push(Pid::from_raw(child));
        }
        found.extend(below(Pid::from_raw(child), name));
    }
    found
}

#[test]
fn a_failure_in_the_journal_bans_and_a_forged_line_does_not() {
    const NAME: &str = "a_failure_in_the_journal_bans_and_a_forged_line_does_not";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let journald = Journald::start(true);
        refuse(&journald, "198.51.100.1", 3);
        journald.journalctl(&["--sync"]);
        let daemon = Daemon::start(&lab, &door("backend = \"journal\""));
        // What was there already counts, back to findtime.
        wait_banned("door-v4", "198.51.100.1");
        wait_source(&daemon, "door", "live");
        // A message that holds a newline and a whole line of another program is one line.
        for _ in 0..5 {
            let host = nix::unistd::gethostname().expect("a name").to_string_lossy().into_owned();
            let forged = format!("refused x from nobody\n{host} door[77]: refused bob from 198.51.100.66");
            journald.send(&[("SYSLOG_IDENTIFIER", b"door"), ("SYSLOG_PID", b"77"), ("MESSAGE", forged.as_bytes())]);
            // Nor does another program's entry count, nor one whose program's name holds a newline.
            journald.log("window", "refused bob from 198.51.100.67");
            let ident = format!("window\n{host} door");
            journald.send(&[
                ("SYSLOG_IDENTIFIER", ident.as_bytes()),
                ("SYSLOG_PID", b"77"),
                ("MESSAGE", b"refused b from 198.51.100.68"),
            ]);
        }
        // Bytes that are no text, and a message of a megabyte, harm nobody.
        journald.send(&[("SYSLOG_IDENTIFIER", b"door"), ("MESSAGE", b"\xff\xfe\x00 refused \xff\n")]);
        let long = "refused ".repeat(130_000);
        journald.send(&[("SYSLOG_IDENTIFIER", b"door"), ("SYSLOG_PID", b"77"), ("MESSAGE", long.as_bytes())]);
        refuse(&journald, "198.51.100.2", 3);
        wait_banned("door-v4", "198.51.100.2");
        assert_eq!(elements("door-v4"), ["198.51.100.1", "198.51.100.2"]);
        let jail = daemon.jail("door");
        assert_eq!((&jail["backend"], &jail["state"]), (&"journal".into(), &"running".into()), "{jail:#}");
        assert_eq!(jail["sources"][0]["path"], "journal: SYSLOG_IDENTIFIER=door", "{jail:#}");
        assert_eq!(jail["failures"]["total"], 6, "{jail:#}");
        wait_until("what was cut is told", || source(&daemon, "door")["note"] == "1 long messages cut to 64 KiB");
        // The children hold no capability, and are gone with the daemon, however it goes. Those that read back the lines behind the
        // bans end by themselves.
        let (mut spawners, mut readers) = (Vec::new(), Vec::new());
        wait_until("one reader is left", || {
            (spawners, readers) = (below(daemon.pid(), "banset"), below(daemon.pid(), "journalctl"));
            spawners.len() <= 1 && readers.len() == 1
        });
        let names: Vec<String> = spawners.iter().chain(&readers).map(|pid| format!("/proc/{pid}/status")).collect();
        for name in &names {
            let text = fs::read_to_string(name).expect("it runs");
            let caps = |set: &str| text.lines().find(|line| line.starts_with(set)).map(|line| line.ends_with("0000000000000000"));
            assert_eq!((caps("CapPrm"), caps("CapEff")), (Some(true), Some(true)), "{name}: {text}");
        }
        daemon.signal(Signal::SIGKILL);
        wait_until("the children are gone", || {
            !names.iter().any(|name| fs::read_to_string(name).is_ok_and(|text| !text.contains("State:\tZ")))
        });
    });
}

#[test]
fn reading_goes_on_exactly_where_it_stopped() {
    const NAME: &str = "reading_goes_on_exactly_where_it_stopped";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let journald = Journald::start(true);
        let mut daemon = Daemon::start(&lab, &door("backend = \"journal\""));
        wait_source(&daemon, "door", "live");
        refuse(&journald, "198.51.100.1", 2);
        daemon.wait_failures("door", 2);
        // Stopped and killed, with entries while it is away, and the journal rotated and vacuumed meanwhile.
        let mut expected = 2;
        for (round, addr) in ["198.51.100.11", "198.51.100.12", "198.51.100.13", "198.51.100.14"].iter().enumerate() {
            if round % 2 == 0 {
                daemon.stop();
            } else {
                // Saved first: what is not saved is read again, and counted with what it belongs to.
                wait_until("the state is saved", || saved(&lab) == expected && kept(&lab).contains("\"cursor\":\"s="));
                daemon.kill();
            }
            refuse(&journald, addr, 1);
            if round >= 2 {
                journald.journalctl(&["--rotate"]);
                refuse(&journald, addr, 1);
                expected += 1;
            }
            if round == 3 {
                // What vacuuming deletes is gone, the entry of the saved cursor with it: only the last one is there.
                // Taken first: journald may hear of the rotation before it hears of the entry.
                journald.journalctl(&["--sync"]);
                journald.journalctl(&["--rotate"]);
                journald.journalctl(&["--vacuum-size=1"]);
                refuse(&journald, addr, 1);
                expected -= 1;
            }
            expected += 1;
            daemon.start_again();
            wait_source(&daemon, "door", "live");
            println!("round {round}");
            expected = settled(&daemon, &journald, expected);
        }
        // A cursor that is none: sought by time, nothing twice.
        daemon.stop();
        let database = lab.dir().join("banset/state/banset.sqlite3");
        let mark = kept(&lab);
        let broken = mark.replacen("\"cursor\":\"s=", "\"cursor\":\"s=zz", 1);
        let broken = broken.replacen(";i=", ";q=", 1);
        assert_ne!(mark, broken);
        let state = rusqlite_update(&database, &broken);
        assert!(state, "the state can be changed");
        refuse(&journald, "198.51.100.15", 1);
        daemon.start_again();
        settled(&daemon, &journald, expected + 1);
    });
}

/// The kept position of the journal.
fn kept(lab: &Lab) -> String {
    let database = lab.dir().join("banset/state/banset.sqlite3");
    let Ok(connection) = rusqlite::Connection::open(database) else { return String::new() };
    connection.query_row("SELECT mark FROM position WHERE path = 'journal'", [], |row| row.get(0)).unwrap_or_default()
}

/// How many failures the state knows of, saved with that position.
fn saved(lab: &Lab) -> u64 {
    let database = lab.dir().join("banset/state/banset.sqlite3");
    let Ok(connection) = rusqlite::Connection::open(database) else { return 0 };
    connection.query_row("SELECT failures FROM jail WHERE name = 'door'", [], |row| row.get(0)).unwrap_or_default()
}

/// Makes the state as it is when the lines behind a ban were not read back yet.
fn forget_lines(lab: &Lab, subject: &str) {
    let connection = rusqlite::Connection::open(lab.dir().join("banset/state/banset.sqlite3")).expect("the state");
    let find = "SELECT seq FROM event WHERE what = 'ban' AND subject LIKE ?1 || '%'";
    let seq: i64 = connection.query_row(find, [subject], |row| row.get(0)).expect("the ban is kept");
    let place = "SELECT place FROM position WHERE path = 'journal'";
    let place: i64 = connection.query_row(place, [], |row| row.get(0)).expect("the journal's place is kept");
    let mut statement = connection.prepare("SELECT offset FROM line WHERE seq = ?1 ORDER BY n").expect("a question");
    let offsets = statement.query_map([seq], |row| row.get::<_, i64>(0)).expect("an answer");
    let places: Vec<u8> =
        offsets.flat_map(|offset| (place << 48 | offset.expect("a number") & 0xffff_ffff_ffff).to_le_bytes()).collect();
    assert_eq!(places.len(), 24);
    connection.execute("UPDATE event SET places = ?2 WHERE seq = ?1", (seq, places)).expect("it can be changed");
    connection.execute("DELETE FROM line WHERE seq = ?1", [seq]).expect("it can be changed");
}

fn rusqlite_update(database: &Path, mark: &str) -> bool {
    let connection = rusqlite::Connection::open(database).expect("the state");
    connection.execute("UPDATE position SET mark = ?1 WHERE path = 'journal'", [mark]).is_ok_and(|rows| rows == 1)
}

#[test]
fn a_reader_that_dies_is_started_again_and_rotation_loses_nothing() {
    const NAME: &str = "a_reader_that_dies_is_started_again_and_rotation_loses_nothing";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let journald = Journald::start(true);
        let daemon = Daemon::start(&lab, &door("backend = \"journal\"\nmaxretry = 1"));
        wait_source(&daemon, "door", "live");
        // 1 200 attackers, the journal rotated meanwhile again and again, the reader killed twice.
        for n in 0..1200_u32 {
            refuse(&journald, &format!("198.51.{}.{}", n / 250, n % 250 + 1), 1);
            if n % 100 == 99 {
                journald.journalctl(&["--rotate"]);
            }
            if n == 300 || n == 700 {
                // Some may just end by themselves.
                below(daemon.pid(), "journalctl").into_iter().for_each(|pid| _ = kill(pid, Signal::SIGKILL));
            }
        }
        // Each once.
        settled(&daemon, &journald, 1200);
        assert!(daemon.log().contains("unreadable, journalctl ended"), "it says so");
        // The spawner itself dies: another one takes its place.
        for pid in below(daemon.pid(), "banset") {
            let _ = kill(pid, Signal::SIGKILL);
        }
        refuse(&journald, "203.0.113.9", 1);
        wait_banned("door-v4", "203.0.113.9");
    });
}

#[test]
fn the_entries_behind_a_ban_are_read_back_from_the_journal() {
    const NAME: &str = "the_entries_behind_a_ban_are_read_back_from_the_journal";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let mut journald = Journald::start(false);
        let filter = "[filter.door]\nfailregex = '^\\s*\\S+ door\\[\\d+\\]: refused <F-USER>\\S*</F-USER>(?: with \"<F-SECRET>[^\"]*</F-SECRET>\")? from <HOST>$'\n\
                      journalmatch = \"SYSLOG_IDENTIFIER=door\"\n";
        let config = door("backend = \"journal\"");
        let config = format!("{}{filter}", config.split_once("[filter.door]").expect("a filter").0);
        let mut daemon = Daemon::start(&lab, &config);
        wait_source(&daemon, "door", "live");
        let say = |journald: &Journald, n: usize, addr: &str| {
            // What others say at the same time is no evidence, nor is what somebody else did.
            journald.log("gate", &format!("refused nobody from {addr}"));
            journald.log("door", &format!("accepted bob from {addr}"));
            journald.log("door", "refused mallory from 203.0.113.200");
            journald.log("door", &format!("refused user{n} with \"hunter{n}\" from {addr}"));
        };
        // Far apart, across rotations; then the journal moves from /run to /var, and the daemon is away meanwhile.
        say(&journald, 1, "198.51.100.1");
        journald.journalctl(&["--rotate"]);
        std::thread::sleep(Duration::from_secs(6));
        say(&journald, 2, "198.51.100.1");
        wait_until("both are counted", || daemon.jail("door")["failures"]["total"].as_u64() >= Some(4));
        daemon.stop();
        journald.journalctl(&["--rotate"]);
        fs::create_dir_all("/var/log/journal").expect("a directory");
        journald.journalctl(&["--flush"]);
        daemon.start_again();
        wait_source(&daemon, "door", "live");
        say(&journald, 3, "198.51.100.1");
        let (row, lines) = daemon.evidence("198.51.100.1");
        let host = nix::unistd::gethostname().expect("a name").to_string_lossy().into_owned();
        let want = |n: usize| format!("{host} door[77]: refused user{n} with \"***\" from 198.51.100.1");
        assert_eq!(lines, [want(1), want(2), want(3)], "{row:#}");
        let first = &row["evidence"][0];
        assert_eq!((&first["source"], &first["account"]), (&"journal".into(), &"user1".into()), "{row:#}");
        assert!(first["offset"].as_i64().is_some_and(|stamp| (now() - stamp) < 600_000_000), "{row:#}");
        assert!(first["pattern"].as_str().is_some_and(|pattern| pattern.contains("refused")), "{row:#}");
        // Ended after the ban was kept and before its lines were: the next run reads them, from a journal that was rotated meanwhile.
        for n in 0..3 {
            say(&journald, n, "198.51.100.2");
        }
        let read = daemon.evidence("198.51.100.2").1;
        daemon.stop();
        forget_lines(&lab, "198.51.100.2");
        journald.journalctl(&["--rotate"]);
        daemon.start_again();
        let (row, lines) = daemon.evidence("198.51.100.2");
        assert_eq!((&lines, lines.len()), (&read, 3), "{row:#}");
        // A crowd at once, while the journal rotates: everybody's own lines, read by few programs.
        for round in 0..3 {
            for n in 1..=200 {
                say(&journald, round, &format!("198.18.0.{n}"));
            }
            journald.journalctl(&["--rotate"]);
        }
        for n in [1, 100, 200] {
            let addr = format!("198.18.0.{n}");
            let (row, lines) = daemon.evidence(&addr);
            assert!(lines.len() == 3 && lines.iter().all(|line| line.ends_with(&format!("from {addr}"))), "{row:#}");
        }
        // What was vacuumed away is no evidence, and nobody waits for it.
        refuse(&journald, "198.51.100.3", 2);
        wait_until("both are counted", || daemon.log().matches("Found 198.51.100.3").count() >= 2);
        journald.journalctl(&["--rotate"]);
        journald.journalctl(&["--vacuum-size=1"]);
        refuse(&journald, "198.51.100.3", 1);
        let (row, lines) = daemon.evidence("198.51.100.3");
        assert!(!lines.is_empty() && lines.len() < 3, "{row:#}");
        journald.stop();
    });
}

#[test]
fn a_journal_that_comes_late_is_read() {
    const NAME: &str = "a_journal_that_comes_late_is_read";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let _ = fs::remove_dir_all("/run/log/journal");
        let daemon = Daemon::start(&lab, &door("backend = \"journal\""));
        wait_source(&daemon, "door", "waiting");
        assert_eq!(daemon.jail("door")["state"], "waiting");
        let journald = Journald::start(false);
        refuse(&journald, "198.51.100.1", 3);
        wait_banned("door-v4", "198.51.100.1");
        // It moves to /var, as at boot: entries are copied there, and none is counted twice.
        fs::create_dir_all("/var/log/journal").expect("a directory");
        journald.journalctl(&["--flush"]);
        refuse(&journald, "198.51.100.2", 3);
        wait_banned("door-v4", "198.51.100.2");
        assert_eq!(daemon.jail("door")["failures"]["total"], 6);
        assert!(Path::new("/var/log/journal").read_dir().expect("a directory").next().is_some(), "it has moved");
    });
}

#[test]
fn without_journalctl_the_daemon_starts_and_says_so() {
    const NAME: &str = "without_journalctl_the_daemon_starts_and_says_so";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let journald = Journald::start(true);
        refuse(&journald, "198.51.100.1", 3);
        let hidden = "/run/empty";
        fs::write(hidden, "").expect("a file");
        let program =
            ["/usr/bin/journalctl", "/bin/journalctl"].into_iter().find(|path| Path::new(path).is_file()).expect("installed");
        let none = None::<&str>;
        let bind = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(hidden), program, none, bind, none).expect("it can be hidden");
        let daemon = Daemon::start(&lab, &door("backend = \"journal\""));
        wait_source(&daemon, "door", "unreadable");
        wait_until("status says why", || {
            let note = source(&daemon, "door")["note"].as_str().unwrap_or_default().to_owned();
            note.contains("cannot start journalctl: permission denied; again in")
        });
        nix::mount::umount(program).expect("it can be shown again");
        wait_banned("door-v4", "198.51.100.1");
    });
}

#[test]
fn lines_that_can_not_be_read_back_are_said_once_and_the_history_knows_why() {
    const NAME: &str = "lines_that_can_not_be_read_back_are_said_once_and_the_history_knows_why";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let journald = Journald::start(true);
        let daemon = Daemon::start(&lab, &door("backend = \"journal\""));
        wait_source(&daemon, "door", "live");
        // The program that reads back can not be run any more; the one that follows runs on.
        let hidden = "/run/empty";
        fs::write(hidden, "").expect("a file");
        let program =
            ["/usr/bin/journalctl", "/bin/journalctl"].into_iter().find(|path| Path::new(path).is_file()).expect("installed");
        let none = None::<&str>;
        nix::mount::mount(Some(hidden), program, none, nix::mount::MsFlags::MS_BIND, none).expect("it can be hidden");
        for addr in ["198.51.100.1", "198.51.100.2", "198.51.100.3"] {
            refuse(&journald, addr, 3);
            wait_banned("door-v4", addr);
            let (row, lines) = daemon.evidence(addr);
            let why = "journalctl failed: cannot start journalctl: permission denied";
            assert_eq!((row["evidence_missing"].as_str(), lines.len()), (Some(why), 0), "{row:#}");
        }
        let said = |log: &str| log.matches("the lines behind a ban are not all kept").count();
        assert_eq!(said(&daemon.log()), 1, "not one by one: {}", daemon.log());
        let status = daemon.cli(&["status"]).out;
        assert!(status.contains("history: the lines of 3 bans could not all be read back"), "{status}");
        assert!(daemon.cli(&["history", "198.51.100.1"]).out.contains("not all of its lines are kept: journalctl failed"));
        nix::mount::umount(program).expect("it can be shown again");
        refuse(&journald, "198.51.100.4", 3);
        let (row, lines) = daemon.evidence("198.51.100.4");
        assert!(row["evidence_missing"].is_null() && lines.len() == 3, "{row:#}");
        // More stands around the lines than is read. A machine that takes long to write it may leave it outside: then once more.
        let much = vec![b'x'; 750_000];
        let big: [(&str, &[u8]); 3] = [("MESSAGE", &much), ("SYSLOG_IDENTIFIER", b"door"), ("PRIORITY", b"6")];
        let short = (5..20).any(|n| {
            let addr = format!("198.51.100.{n}");
            refuse(&journald, &addr, 1);
            (0..100).for_each(|_| journald.send(&big));
            refuse(&journald, &addr, 2);
            let (row, lines) = daemon.evidence(&addr);
            let why = row["evidence_missing"].as_str().unwrap_or_default();
            assert!(why.is_empty() == (lines.len() == 3), "{row:#}");
            assert!(lines.iter().all(|line| line.ends_with(&format!("from {addr}"))), "{row:#}");
            why.contains("more than 64 MiB") || why.contains("within 10 s")
        });
        assert!(short && said(&daemon.log()) == 2, "another reason is said, too: {}", daemon.log());
    });
}

#[test]
fn auto_takes_the_file_that_is_alive_and_else_the_journal() {
    const NAME: &str = "auto_takes_the_file_that_is_alive_and_else_the_journal";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let journald = Journald::start(true);
        let path = lab.dir().join("auth.log");
        let mut log = Log::create(path.clone());
        let line = |addr: &str| format!("{} mx door[77]: refused bob from {addr}", Stamp::now().iso());
        // A log that was last written in another decade, and entries that are newer.
        log.line(&line("198.51.100.9"));
        let set_age = |secs: u64| {
            let then = SystemTime::now() - Duration::from_secs(secs);
            fs::File::options().write(true).open(&path).and_then(|file| file.set_modified(then)).expect("its time can be set");
        };
        set_age(10 * 365 * 86_400);
        refuse(&journald, "198.51.100.1", 3);
        journald.journalctl(&["--sync"]);
        let config = door(&format!("logpath = {path:?}"));
        let mut daemon = Daemon::start(&lab, &config);
        wait_banned("door-v4", "198.51.100.1");
        let jail = daemon.jail("door");
        let why = |jail: &Value| jail["backend_why"].as_str().unwrap_or_default().to_owned();
        assert_eq!(jail["backend"], "journal", "{jail:#}");
        assert!(
            why(&jail).contains("was last written on 20") && why(&jail).contains("the journal holds newer entries"),
            "{jail:#}"
        );
        daemon.wait_log("[door] reads the journal: ");
        assert_eq!(jail["failures"]["total"], 3, "nothing was read from the file");
        // The file comes alive: from the next judging on it is read, and what the journal told is not counted again.
        for _ in 0..3 {
            log.line(&line("198.51.100.1"));
        }
        daemon.cli(&["reload"]).ok();
        wait_until("the file is chosen", || daemon.jail("door")["backend"] == "file");
        let jail = daemon.jail("door");
        assert!(why(&jail).contains("auth.log is alive, written"), "{jail:#}");
        wait_until("nobody reads the journal any more", || below(daemon.pid(), "journalctl").is_empty());
        for _ in 0..3 {
            log.line(&line("198.51.100.3"));
            refuse(&journald, "198.51.100.4", 1);
        }
        wait_banned("door-v4", "198.51.100.3");
        assert!(!elements("door-v4").contains(&"198.51.100.4".to_owned()), "one source, not both");
        // Quiet, and nothing newer in the journal: it stays with the file.
        set_age(3 * 86_400);
        daemon.configure(&config.replace("SYSLOG_IDENTIFIER=door", "SYSLOG_IDENTIFIER=gate"));
        daemon.restart();
        wait_until("a choice", || daemon.jail("door")["backend_why"].is_string());
        let jail = daemon.jail("door");
        assert_eq!(jail["backend"], "file", "{jail:#}");
        assert!(why(&jail).contains("and the journal holds nothing newer"), "{jail:#}");
        // No file at all: the journal.
        fs::remove_file(&path).expect("it is there");
        daemon.restart();
        wait_until("the journal is chosen", || daemon.jail("door")["backend"] == "journal");
        assert!(why(&daemon.jail("door")).contains("no file of logpath exists"));
    });
}

#[test]
fn namespaces_and_other_directories_are_journals_of_their_own() {
    const NAME: &str = "namespaces_and_other_directories_are_journals_of_their_own";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let own = Journald::start(true);
        let mail = Journald::start_namespace();
        let remote = lab.dir().join("remote");
        fs::create_dir_all(&remote).expect("a directory");
        let mut entries = Entries::new();
        for _ in 0..3 {
            let message = b"refused bob from 198.51.100.3";
            let fields: [(&str, &[u8]); 3] = [("SYSLOG_IDENTIFIER", b"door"), ("_PID", b"1"), ("MESSAGE", message)];
            entries.add(now() - 5_000_000, &fields);
        }
        entries.write(&remote.join("remote-mx.journal"));
        let config = format!(
            "{}\n[jail.mail]\nenabled = true\nfilter = \"door\"\nbackend = \"journal\"\njournal_path = \"@mail\"\nport = \"smtp\"\nmaxretry = 3\n\
             [jail.far]\nenabled = true\nfilter = \"door\"\nbackend = \"journal\"\njournal_path = {remote:?}\nport = \"smtp\"\nmaxretry = 3\n",
            door("backend = \"journal\"")
        );
        let daemon = Daemon::start(&lab, &config);
        refuse(&own, "198.51.100.1", 3);
        refuse(&mail, "198.51.100.2", 3);
        wait_banned("door-v4", "198.51.100.1");
        wait_banned("mail-v4", "198.51.100.2");
        wait_banned("far-v4", "198.51.100.3");
        for (jail, addr) in [("door", "198.51.100.1"), ("mail", "198.51.100.2"), ("far", "198.51.100.3")] {
            assert_eq!(elements(&format!("{jail}-v4")), [addr]);
        }
        // Those that read back the lines behind the bans end by themselves.
        wait_until("a reader for each", || below(daemon.pid(), "journalctl").len() == 3);
    });
}

#[test]
fn a_jail_that_joins_reads_back_and_nobody_counts_twice() {
    const NAME: &str = "a_jail_that_joins_reads_back_and_nobody_counts_twice";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let journald = Journald::start(true);
        let config = door("backend = \"journal\"");
        let mut daemon = Daemon::start(&lab, &config);
        wait_source(&daemon, "door", "live");
        refuse(&journald, "198.51.100.1", 2);
        for _ in 0..3 {
            journald.log("gate", "refused bob from 198.51.100.5");
        }
        let total = |daemon: &Daemon| daemon.jail("door")["failures"]["total"].as_u64();
        wait_until("two failures", || total(&daemon) == Some(2));
        let gate = "[jail.gate]\nenabled = true\nport = \"ssh\"\nmaxretry = 3\nfindtime = \"1h\"\nbackend = \"journal\"\n\
                    [filter.gate]\nfailregex = '^\\S+ gate\\[\\d+\\]: refused \\S* from <HOST>$'\njournalmatch = \"SYSLOG_IDENTIFIER=gate\"\n";
        daemon.configure(&format!("{config}{gate}"));
        daemon.cli(&["reload"]).ok();
        wait_banned("gate-v4", "198.51.100.5");
        // The one that read back the lines behind the ban ends by itself.
        wait_until("one reader for both", || below(daemon.pid(), "journalctl").len() == 1);
        refuse(&journald, "198.51.100.1", 1);
        wait_banned("door-v4", "198.51.100.1");
        assert_eq!(total(&daemon), Some(3));
        // Over a restart, too.
        daemon.restart();
        wait_source(&daemon, "door", "live");
        refuse(&journald, "198.51.100.6", 1);
        wait_until("one more", || total(&daemon) == Some(4));
        assert_eq!(daemon.jail("gate")["failures"]["total"], 3);
        // Nor does anything count again when the entries that a jail is for change, by reload or between two runs.
        let wider = config.replace("SYSLOG_IDENTIFIER=door\"", "SYSLOG_IDENTIFIER=door + SYSLOG_IDENTIFIER=porch\"");
        assert_ne!(wider, config);
        daemon.configure(&wider);
        daemon.cli(&["reload"]).ok();
        wait_until("the new match is read", || {
            let source = source(&daemon, "door");
            source["path"].as_str().is_some_and(|path| path.contains("porch")) && source["state"] == "live"
        });
        refuse(&journald, "198.51.100.7", 1);
        wait_until("one more", || total(&daemon) == Some(5));
        daemon.stop();
        daemon.configure(&config);
        daemon.start_again();
        wait_source(&daemon, "door", "live");
        refuse(&journald, "198.51.100.8", 1);
        settled(&daemon, &journald, 6);
    });
}

#[test]
fn half_a_million_entries_are_caught_up_with_through_kills() {
    const NAME: &str = "half_a_million_entries_are_caught_up_with_through_kills";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("room on the disk");
        let count: i64 = std::env::var("BANSET_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(500_000);
        let (mut entries, begin) = (Entries::new(), now() - count * 1000 - 60_000_000);
        for n in 0..count {
            let failed = n % 100 == 7;
            let addr = n / 100;
            let message = match failed {
                true => format!("refused u{n} from 10.{}.{}.{}", addr >> 16 & 255, addr >> 8 & 255, addr & 255),
                false => format!("accepted connection {n} on port {}", 1024 + n % 60_000),
            };
            let (pid, unit): (String, &[u8]) =
                ((1000 + n % 5000).to_string(), if failed { b"door.service" } else { b"other.service" });
            entries.add(
                begin + n * 1000,
                &[
                    ("SYSLOG_IDENTIFIER", if failed { b"door" } else { b"other" }),
                    ("_PID", pid.as_bytes()),
                    ("PRIORITY", b"6"),
                    ("_TRANSPORT", b"syslog"),
                    ("_SYSTEMD_UNIT", unit),
                    ("_SYSTEMD_CGROUP", b"/system.slice/door.service"),
                    ("_EXE", b"/usr/sbin/door"),
                    ("MESSAGE", message.as_bytes()),
                ],
            );
        }
        entries.write(&disk.path().join("remote.journal"));
        let path = disk.path();
        let config = door(&format!(
            "backend = \"journal\"\njournal_path = {path:?}\nmaxretry = 1\njournalmatch = \"_SYSTEMD_UNIT=door.service\"\nfindtime = \"1d\""
        ));
        let mut daemon = Daemon::start(&lab, &config);
        let want = count as u64 / 100;
        let mut kills = 0;
        let total = |daemon: &Daemon| daemon.jail("door")["failures"]["total"].as_u64().unwrap_or(0);
        while kills < 4 && total(&daemon) < want {
            let pause = [400, 900, 150, 1300][kills];
            std::thread::sleep(Duration::from_millis(pause));
            daemon.kill();
            kills += 1;
            daemon.start_again();
        }
        wait_for(10 * PATIENCE, "everything is caught up with", || total(&daemon) >= want);
        wait_source(&daemon, "door", "live");
        wait_until("everybody is in the kernel", || elements("door-v4").len() as u64 >= want);
        let banned = elements("door-v4").len() as u64;
        println!("{count} entries, {kills} kills: {} failures of {want}, {banned} bans", total(&daemon));
        assert_eq!((total(&daemon), banned), (want, want), "none lost, none twice");
        assert!(kills > 0, "it was over before the first kill");
    });
}

#[test]
fn the_daemons_own_log_reaches_the_journal() {
    const NAME: &str = "the_daemons_own_log_reaches_the_journal";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let journald = Journald::start(true);
        let mut log = Log::create(lab.dir().join("auth.log"));
        let config = door(&format!("backend = \"file\"\nlogpath = {:?}", lab.dir().join("auth.log")));
        let daemon = Daemon::prepared(&lab, &config);
        let text = fs::read_to_string(daemon.config()).expect("the configuration");
        fs::write(daemon.config(), text.replacen("[daemon]\n", "[daemon]\nlog = \"journal\"\n", 1)).expect("written");
        let mut daemon = daemon;
        daemon.start_again();
        wait_source(&daemon, "door", "live");
        for _ in 0..3 {
            log.line(&format!("{} mx door[77]: refused bob from 198.51.100.1", Stamp::now().iso()));
        }
        wait_banned("door-v4", "198.51.100.1");
        let said = || journald.journalctl(&["-o", "json", "SYSLOG_IDENTIFIER=banset"]);
        wait_until("the ban is in the journal", || said().contains("[door] Ban 198.51.100.1"));
        let line = said().lines().find(|line| line.contains("Ban 198.51.100.1")).expect("just seen").to_owned();
        let entry: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(entry["PRIORITY"], "4", "a warning: {entry:#}");
        // File sources alone: no process was started.
        assert!(below(daemon.pid(), "banset").is_empty() && below(daemon.pid(), "journalctl").is_empty());
    });
}

#[test]
fn regex_tries_a_filter_on_the_journal() {
    const NAME: &str = "regex_tries_a_filter_on_the_journal";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let journald = Journald::start(true);
        refuse(&journald, "198.51.100.1", 2);
        journald.log("gate", "refused bob from 198.51.100.1");
        journald.journalctl(&["--sync"]);
        let filter = lab.dir().join("door.toml");
        let text = "failregex = '^\\S+ door\\[\\d+\\]: refused \\S* from <HOST>$'\njournalmatch = \"SYSLOG_IDENTIFIER=door\"\n";
        fs::write(&filter, text).expect("a filter");
        let tried = |more: &[&str]| {
            let mut command = Command::new(banset_integration::binary());
            command.args(["regex", "--json"]).args(more).args(["journal", filter.to_str().expect("text")]);
            banset_integration::Answer::of(&mut command).json()
        };
        let found = tried(&[]);
        assert_eq!((&found["lines"], &found["matched"]), (&2.into(), &2.into()), "{found:#}");
        let found = tried(&["-m", "SYSLOG_IDENTIFIER=gate"]);
        assert_eq!((&found["lines"], &found["matched"]), (&1.into(), &0.into()), "{found:#}");
    });
}

#[test]
fn a_filter_of_fail2ban_judges_the_journal_as_its_backend_would() {
    const NAME: &str = "a_filter_of_fail2ban_judges_the_journal_as_its_backend_would";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        Journald::prepare();
        let journald = Journald::start(true);
        let filter = lab.dir().join("porch.conf");
        let text = "[Init]\nlogtype = file\n[Definition]\nfailregex = <line_<logtype>>\nline_file = ^refused \\S* from <HOST> by the file$\n\
                    line_journal = ^\\s*\\S+ porch\\[\\d+\\]: refused \\S* from <HOST>$\njournalmatch = SYSLOG_IDENTIFIER=porch\n";
        fs::write(&filter, text).expect("a filter");
        let config = format!(
            "[jail.porch]\nenabled = true\nfilter = {filter:?}\nlogpath = \"/run/none.log\"\nport = \"ssh\"\nmaxretry = 3\nbantime = \"1d\"\n"
        );
        let daemon = Daemon::start(&lab, &config);
        for _ in 0..3 {
            journald.log("porch", "refused bob from 198.51.100.1");
        }
        wait_banned("porch-v4", "198.51.100.1");
        assert_eq!(daemon.jail("porch")["backend"], "journal");
        assert!(
            daemon
                .cli(&["explain", "porch", "--journal", "mx porch[7]: refused bob from 198.51.100.9"])
                .ok()
                .contains("a failure of")
        );
    });
}

#[test]
fn matches_are_combined_and_entries_older_than_findtime_do_not_count() {
    const NAME: &str = "matches_are_combined_and_entries_older_than_findtime_do_not_count";
    in_netns(NAME, || {
        if !have_journal(NAME) {
            return;
        }
        let lab = Lab::new();
        let remote = lab.dir().join("remote");
        fs::create_dir_all(&remote).expect("a directory");
        let mut entries = Entries::new();
        let (long_ago, lately) = (now() - 2 * 3_600_000_000, now() - 60_000_000);
        let mut three = |at: i64, ident: &[u8], pid: &[u8], addr: &str, times: i64| {
            for n in 0..times {
                let message = format!("refused bob from {addr}");
                let fields: [(&str, &[u8]); 3] = [("SYSLOG_IDENTIFIER", ident), ("_PID", pid), ("MESSAGE", message.as_bytes())];
                entries.add(at + n * 1000, &fields);
            }
        };
        three(long_ago, b"door", b"1", "198.51.100.6", 3);
        three(long_ago + 1_000_000, b"door", b"1", "198.51.100.7", 2);
        three(lately, b"door", b"1", "198.51.100.1", 3);
        three(lately + 1_000_000, b"door", b"3", "198.51.100.2", 3);
        three(lately + 2_000_000, b"door", b"2", "198.51.100.3", 3);
        three(lately + 3_000_000, b"porch", b"9", "198.51.100.4", 3);
        three(lately + 4_000_000, b"gate", b"1", "198.51.100.5", 3);
        three(lately + 5_000_000, b"door", b"1", "198.51.100.7", 2);
        three(lately + 6_000_000, b"door", b"1", "198.51.100.8", 3);
        entries.write(&remote.join("remote-mx.journal"));
        // Fields go together, values of one field are alternatives, and so is what stands behind a plus.
        let config = door(&format!(
            "backend = \"journal\"\njournal_path = {remote:?}\n\
             journalmatch = \"SYSLOG_IDENTIFIER=door _PID=1 _PID=2 + SYSLOG_IDENTIFIER=porch\"\n"
        ));
        let daemon = Daemon::start(&lab, &config.replace("door\\[", "(?:door|porch|gate)\\["));
        wait_banned("door-v4", "198.51.100.8");
        assert_eq!(elements("door-v4"), ["198.51.100.1", "198.51.100.3", "198.51.100.4", "198.51.100.8"]);
        daemon.wait_failures("door", 3 + 3 + 3 + 2 + 3);
    });
}

#[test]
fn a_machine_without_journalctl_reads_files_and_starts_nothing() {
    in_netns("a_machine_without_journalctl_reads_files_and_starts_nothing", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::prepared(&lab, &door(&format!("backend = \"auto\"\nlogpath = {:?}", log.path())));
        let mut command = daemon.command();
        command.env("PATH", lab.dir());
        daemon.start_as(command);
        daemon.wait_running();
        for _ in 0..3 {
            log.line(&format!("{} mx door[77]: refused bob from 198.51.100.1", Stamp::now().iso()));
        }
        wait_banned("door-v4", "198.51.100.1");
        assert_eq!(daemon.jail("door")["backend"], "file");
        assert!(below(daemon.pid(), "banset").is_empty() && below(daemon.pid(), "journalctl").is_empty());
        // Nor is there a library of systemd's that would have to be.
        if banset_integration::have("a_machine_without_journalctl_reads_files_and_starts_nothing", "ldd") {
            let needed = banset_integration::Answer::of(Command::new("ldd").arg(banset_integration::binary())).ok();
            assert!(needed.contains("libc.so") && !needed.contains("systemd"), "{needed}");
        }
    });
}
