//! Following what real programs write and rotate: multilog, rsyslog and logrotate from Debian, inotify at its kernel limits.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use banset_integration::{Daemon, Lab, PATIENCE, Stamp, elements, have, in_netns, lacking, skip, wait_until};

use banset::watch::{Chunk, Habits, Happening, Judge, Polled, Position, SourceEvent, SourceStatus, Start, Watch, WatchHandle};

mod follow_support;

use follow_support::Far;

struct Recorder(Sender<Told>);

enum Told {
    Lines(Vec<u64>, Position),
    Happened(Happening),
}

/// The number that each of our lines holds after its last blank.
fn numbers(bytes: &[u8]) -> Vec<u64> {
    let text = std::str::from_utf8(bytes).expect("our lines");
    text.lines().map(|line| line.rsplit(' ').next().unwrap_or_default().parse().expect("a whole line of ours")).collect()
}

impl Judge for Recorder {
    fn chunk(&mut self, chunk: Chunk<'_>) {
        let _ = self.0.send(Told::Lines(numbers(chunk.bytes), chunk.position.clone()));
    }
    fn taken_up(&mut self, _: &Path, _: &[u32], position: &Position) {
        let _ = self.0.send(Told::Lines(Vec::new(), position.clone()));
    }
    fn source(&mut self, event: SourceEvent<'_>) {
        let _ = self.0.send(Told::Happened(event.what));
    }
    fn status(&mut self, _: Vec<SourceStatus>) {}
    fn idle(&mut self) {}
}

struct Run {
    handle: WatchHandle,
    told: Receiver<Told>,
    thread: Option<JoinHandle<()>>,
}

impl Run {
    fn following(log: &Path, position: Option<&Position>) -> Run {
        let (watch, handle) = Watch::new(Habits { poll: Duration::from_millis(50), ..Habits::default() }).expect("a watch");
        let (sender, told) = channel();
        let thread = std::thread::spawn(move || watch.run(&mut Recorder(sender)));
        if let Some(position) = position {
            handle.resume(log, position.clone());
        }
        handle.watch(1, log.to_str().expect("a path of ours"), Start::FromBeginning);
        Run { handle, told, thread: Some(thread) }
    }

    /// Waits until the path is known to lead nowhere: what comes there from now on is ours.
    fn waiting(self) -> Run {
        loop {
            match self.told.recv_timeout(PATIENCE).expect("it is looked at") {
                Told::Happened(Happening::Missing { .. }) => return self,
                told => drop(told),
            }
        }
    }

    fn stop(mut self) -> Receiver<Told> {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
        let (_, empty) = channel();
        std::mem::replace(&mut self.told, empty)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for the numbers up to `last`, each exactly once.
#[track_caller]
fn all_once(run: &Run, seen: &mut Vec<u64>, last: u64) {
    let limit = Instant::now() + PATIENCE;
    while (seen.len() as u64) < last {
        match run.told.recv_timeout(limit.saturating_duration_since(Instant::now())) {
            Ok(Told::Lines(lines, _)) => seen.extend(lines),
            Ok(Told::Happened(_)) => {}
            Err(_) => panic!("{} of {last} lines; missing {:?}", seen.len(), first_missing(seen, last)),
        }
    }
    let mut sorted = seen.clone();
    sorted.sort_unstable();
    assert!(sorted.iter().copied().eq(1..=last), "a line came twice; missing {:?}", first_missing(seen, last));
}

fn first_missing(seen: &[u64], last: u64) -> Vec<u64> {
    (1..=last).filter(|number| !seen.contains(number)).take(10).collect()
}

fn multilog(dir: &Path) -> Child {
    // 4096 is the smallest size multilog takes; 200 files are more than it will fill, so that none is destroyed unread.
    let mut command = Command::new("multilog");
    command.args(["t", "s4096", "n200"]).arg(dir).stdin(Stdio::piped());
    command.spawn().expect("multilog")
}

#[test]
fn nothing_is_lost_when_multilog_rotates() {
    if !have("nothing_is_lost_when_multilog_rotates", "multilog") {
        return;
    }
    let room = tempfile::tempdir().expect("a directory");
    let dir = room.path().join("smtpd");
    let run = Run::following(&dir.join("current"), None).waiting();
    let mut writer = multilog(&dir);
    let mut input = writer.stdin.take().expect("a pipe");
    let mut seen = Vec::new();
    for number in 1..=3000_u64 {
        writeln!(input, "qmail-smtpd: pid 1 from 198.51.100.7 auth failed {number}").expect("multilog reads");
        if number % 500 == 0 {
            all_once(&run, &mut seen, number);
        }
    }
    drop(input);
    all_once(&run, &mut seen, 3000);
    writer.wait().expect("multilog ends");
    let files = fs::read_dir(&dir).expect("the log directory").count();
    assert!(files > 20, "{files} files: multilog did not rotate");
}

#[test]
fn a_file_that_came_and_was_rotated_away_before_we_looked_is_read() {
    for _ in 0..50 {
        let room = tempfile::tempdir().expect("a directory");
        let log = room.path().join("mail.log");
        let run = Run::following(&log, None).waiting();
        let write = |numbers: std::ops::RangeInclusive<u64>| {
            let lines: String =
                numbers.map(|n| format!("mx sshd[1]: Failed password for root from 198.51.100.7 {n}\n")).collect();
            fs::write(&log, lines).expect("the log");
        };
        write(1..=10);
        fs::rename(&log, room.path().join("mail.log.1")).expect("rotated");
        write(11..=20);
        all_once(&run, &mut Vec::new(), 20);
    }
}

#[test]
fn nothing_is_lost_when_multilog_rotates_while_we_are_down() {
    if !have("nothing_is_lost_when_multilog_rotates_while_we_are_down", "multilog") {
        return;
    }
    let room = tempfile::tempdir().expect("a directory");
    let dir = room.path().join("smtpd");
    let current = dir.join("current");
    let mut writer = multilog(&dir);
    let mut input = writer.stdin.take().expect("a pipe");
    let (mut seen, mut position) = (Vec::new(), None);
    let mut number = 0_u64;
    for round in 0..8 {
        let run = Run::following(&current, position.as_ref());
        for _ in 0..50 {
            number += 1;
            writeln!(input, "qmail-smtpd: pid 1 from 198.51.100.7 auth failed {number}").expect("multilog reads");
            // A first start owes nothing of what was rotated away before it, so its first line is waited for.
            while round == 0 && seen.is_empty() {
                if let Told::Lines(lines, after) = run.told.recv_timeout(PATIENCE).expect("the first line") {
                    seen.extend(lines);
                    position = Some(after);
                }
            }
        }
        for told in run.stop() {
            if let Told::Lines(lines, after) = told {
                seen.extend(lines);
                position = Some(after);
            }
        }
        for _ in 0..200 {
            number += 1;
            writeln!(input, "qmail-smtpd: pid 1 from 198.51.100.7 auth failed {number}").expect("multilog reads");
        }
    }
    drop(input);
    writer.wait().expect("multilog ends");
    let run = Run::following(&current, position.as_ref());
    all_once(&run, &mut seen, number);
}

/// Whether logrotate can do what is asked of it; else the test is skipped.
fn logrotate_runs(name: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(name, "logrotate's su directive needs root");
    }
    root && have(name, "logrotate")
}

/// A directory with a log and a logrotate configuration for it.
struct Rotated {
    room: tempfile::TempDir,
    log: PathBuf,
}

impl Rotated {
    fn new(directives: &str) -> Rotated {
        let room = tempfile::tempdir().expect("a directory");
        let log = room.path().join("mail.log");
        fs::write(&log, "").expect("an empty log");
        let configuration = format!("{} {{\n rotate 4\n size 1\n nodateext\n su root root\n{directives}\n}}\n", log.display());
        fs::write(room.path().join("conf"), configuration).expect("a configuration");
        Rotated { room, log }
    }

    fn write(&self, numbers: std::ops::RangeInclusive<u64>) {
        let mut file = OpenOptions::new().append(true).create(true).open(&self.log).expect("the log");
        for number in numbers {
            writeln!(file, "Nov 22 05:00:00 mx sshd[1]: Failed password for root from 198.51.100.7 {number}").expect("room");
        }
    }

    fn rotate(&self) {
        let status = Command::new("/usr/sbin/logrotate")
            .arg("-s")
            .arg(self.room.path().join("state"))
            .arg(self.room.path().join("conf"))
            .status()
            .expect("logrotate");
        assert!(status.success());
    }
}

#[test]
fn nothing_is_lost_when_logrotate_rotates() {
    if !logrotate_runs("nothing_is_lost_when_logrotate_rotates") {
        return;
    }
    let table = [
        " create 0640 root root",
        " create 0640 root root\n compress",
        " create 0640 root root\n compress\n delaycompress",
        " copytruncate",
        " copytruncate\n compress",
        " nocreate\n dateext\n dateformat -%Y%m%d-%s\n compress",
    ];
    for directives in table {
        let log = Rotated::new(directives);
        let run = Run::following(&log.log, None);
        let (mut seen, mut last) = (Vec::new(), 0);
        for round in 0..4 {
            log.write(last + 1..=last + 100);
            last += 100;
            // Every other time what was written is unread when logrotate comes.
            if round % 2 == 0 {
                all_once(&run, &mut seen, last);
            }
            if !directives.contains("dateext") || round == 0 {
                log.rotate();
            }
        }
        log.write(last + 1..=last + 10);
        all_once(&run, &mut seen, last + 10);
    }
}

#[test]
fn nothing_is_lost_when_logrotate_rotates_while_we_are_down() {
    if !logrotate_runs("nothing_is_lost_when_logrotate_rotates_while_we_are_down") {
        return;
    }
    let table = [
        " create 0640 root root",
        " create 0640 root root\n compress",
        " create 0640 root root\n compress\n delaycompress",
        " copytruncate",
        " copytruncate\n compress",
        " copytruncate\n compress\n delaycompress",
    ];
    for directives in table {
        for rotations in 1..=3 {
            let log = Rotated::new(directives);
            log.write(1..=100);
            let run = Run::following(&log.log, None);
            let mut seen = Vec::new();
            all_once(&run, &mut seen, 100);
            let mut position = None;
            // A second chunk, so that the position is in the middle of what will be rotated.
            log.write(101..=110);
            while seen.len() < 110 {
                if let Told::Lines(lines, after) = run.told.recv_timeout(PATIENCE).expect("ten lines") {
                    seen.extend(lines);
                    position = Some(after);
                }
            }
            drop(run);
            log.write(111..=120);
            let mut last = 120;
            for _ in 0..rotations {
                log.rotate();
                log.write(last + 1..=last + 20);
                last += 20;
            }
            let run = Run::following(&log.log, position.as_ref());
            all_once(&run, &mut seen, last);
        }
    }
}

/// rsyslogd with a configuration of its own: one socket, one log.
struct Rsyslog {
    child: Child,
    input: UnixDatagram,
}

impl Rsyslog {
    fn start(dir: &Path, log: &Path) -> Rsyslog {
        let (configuration, socket) = (dir.join("rsyslog.conf"), dir.join("dev-log"));
        let text = format!(
            "module(load=\"imuxsock\" SysSock.Use=\"off\")\n\
             input(type=\"imuxsock\" Socket={socket:?} RateLimit.Interval=\"0\")\n\
             global(workDirectory={dir:?})\n\
             *.* action(type=\"omfile\" file={log:?} template=\"RSYSLOG_FileFormat\")\n"
        );
        fs::write(&configuration, text).expect("a configuration");
        let mut command = Command::new("rsyslogd");
        command.args(["-n", "-f"]).arg(&configuration).arg("-i").arg(dir.join("rsyslog.pid")).stdin(Stdio::null());
        banset::netns::die_with_parent(&mut command);
        let child = command.spawn().expect("rsyslogd");
        let input = UnixDatagram::unbound().expect("a socket");
        wait_until("rsyslogd listens", || input.connect(&socket).is_ok() && dir.join("rsyslog.pid").exists());
        Rsyslog { child, input }
    }

    /// A datagram on a Unix socket waits for room: nothing is lost on the way to the writer.
    fn fail(&self, from: &str) {
        let text = format!("<38>{} sshd[506]: Failed password for root from {from} port 37957 ssh2", Stamp::now().syslog());
        self.input.send(text.as_bytes()).expect("rsyslogd takes it");
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_rsyslog_writes_and_logrotate_rotates_is_judged_once_over_kills() {
    let name = "what_rsyslog_writes_and_logrotate_rotates_is_judged_once_over_kills";
    if !have(name, "rsyslogd") || !have(name, "logrotate") {
        return;
    }
    in_netns(name, || {
        let lab = Lab::new();
        let dir = lab.dir().join("log");
        fs::create_dir_all(&dir).expect("a directory");
        let log = dir.join("auth.log");
        let conf = dir.join("conf");
        // As Debian's /etc/logrotate.d/rsyslog, and with the second in the name: rotations follow each other quickly here.
        let text = format!(
            "{} {{\n rotate 99\n size 1\n missingok\n notifempty\n compress\n delaycompress\n dateext\n dateformat -%Y%m%d-%s\n su root root\n \
             postrotate\n  kill -HUP $(cat {})\n endscript\n}}\n",
            log.display(),
            dir.join("rsyslog.pid").display()
        );
        fs::write(&conf, text).expect("a configuration");
        let rsyslog = Rsyslog::start(&dir, &log);
        let jail = format!("[jail.sshd]\nenabled = true\nlogpath = {log:?}\nmaxretry = 3\nfindtime = \"1h\"\nbantime = \"1h\"\n");
        let mut daemon = Daemon::start(&lab, &jail);
        let judged = |marker: &str| {
            (0..3).for_each(|_| rsyslog.fail(marker));
            wait_until("the marker is banned", || elements("sshd-v4").iter().any(|element| element == marker));
        };
        // Of a log that was never saved a kill would make a first start.
        judged("198.51.100.250");
        daemon.restart();
        let (mut written, mut rotations, mut kills, mut last) = (3_u64, 0, 0, 0);
        let guilty = |i: u64| format!("203.0.{}.{}", i / 250, i % 250 + 1);
        let innocent = |i: u64| format!("198.18.{}.{}", i / 250, i % 250 + 1);
        for round in 0..9_u64 {
            // The third failure of each comes in the next round, behind a rotation.
            for i in 0..50 {
                (0..2).for_each(|_| rsyslog.fail(&guilty(round * 50 + i)));
                rsyslog.fail(&innocent(round * 50 + i));
                if round > 0 {
                    rsyslog.fail(&guilty((round - 1) * 50 + i));
                    rsyslog.fail(&innocent((round - 1) * 50 + i));
                }
                if i == 25 && round % 3 != 0 {
                    daemon.kill();
                    kills += 1;
                }
            }
            written += if round > 0 { 250 } else { 150 };
            // Two rotations within a second would have one name.
            // time(2), which logrotate asks, may be a tick or two behind.
            let behind = || std::time::UNIX_EPOCH.elapsed().expect("after 1970") - Duration::from_millis(100);
            wait_until("the next second", || behind().as_secs() > last);
            // rsyslogd opens its new file when it has something to write, some time after the HUP.
            wait_until("there is something to rotate", || fs::metadata(&log).is_ok_and(|file| file.len() > 0));
            let status =
                Command::new("/usr/sbin/logrotate").arg("-s").arg(dir.join("status")).arg(&conf).status().expect("logrotate");
            assert!(status.success());
            last = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
            rotations += 1;
            if round % 3 == 1 {
                // Some more in the new file, while nobody reads.
                rsyslog.fail(&innocent(10_000 + round));
                written += 1;
            }
            if round % 3 != 0 {
                daemon.start_again();
            }
        }
        judged("198.51.100.251");
        written += 3;
        // Every line, each once.
        daemon.wait_failures("sshd", written);
        let mut expected: Vec<String> = (0..8 * 50).map(guilty).collect();
        expected.extend(["198.51.100.250", "198.51.100.251"].map(str::to_owned));
        expected.sort();
        assert_eq!(elements("sshd-v4"), expected);
        let files = fs::read_dir(&dir).expect("the directory").flatten();
        let names: Vec<String> = files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        assert_eq!(names.iter().filter(|name| name.starts_with("auth.log-")).count(), rotations, "{names:?}");
        println!(
            "| rsyslog, logrotate with compress, delaycompress, dateext and HUP | {written} lines, {rotations} rotations, {kills} kills | lost 0 | twice 0 |"
        );
    });
}

/// Runs again as a child in a user namespace of its own, where inotify's limits can be lowered by anybody.
#[test]
fn at_the_kernels_inotify_limits_paths_are_polled() {
    const NAME: &str = "at_the_kernels_inotify_limits_paths_are_polled";
    const INSIDE: &str = "BANSET_TEST_INSIDE";
    if let Ok(limit) = std::env::var(INSIDE) {
        let (name, value) = limit.split_once('=').expect("a limit");
        if fs::write(format!("/proc/sys/user/{name}"), value).is_err() {
            return lacking(NAME, &format!("user.{name} cannot be set here"));
        }
        return polled();
    }
    for limit in ["max_inotify_watches=2", "max_inotify_instances=0"] {
        let this = std::env::current_exe().expect("this test");
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user"])
            .arg(this)
            .args(["--exact", NAME, "--nocapture"])
            .env(INSIDE, limit)
            .output();
        match output {
            Ok(output) if output.status.success() => {
                let said = [output.stdout, output.stderr].concat();
                let said = String::from_utf8_lossy(&said).into_owned();
                said.lines().filter(|line| line.contains("polled because")).for_each(|line| println!("{line}"));
                if let Some(skipped) = said.lines().find(|line| line.contains("SKIPPED")) {
                    lacking(NAME, skipped);
                }
            }
            Ok(output) if String::from_utf8_lossy(&output.stderr).contains("unshare") => {
                lacking(NAME, &format!("no user namespaces: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
            Ok(output) => panic!("{limit}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => lacking(NAME, &format!("unshare: {error}")),
        }
    }
}

fn polled() {
    let room = tempfile::tempdir().expect("a directory");
    let log = room.path().join("mail.log");
    let write = |number: u64| {
        let mut file = OpenOptions::new().append(true).create(true).open(&log).expect("the log");
        writeln!(file, "line {number}").expect("room");
    };
    write(1);
    let run = Run::following(&log, None);
    let why = loop {
        match run.told.recv_timeout(PATIENCE).expect("told that it is polled") {
            Told::Happened(Happening::Polled(why)) => break why,
            Told::Happened(_) => {}
            Told::Lines(lines, _) => assert_eq!(lines, [1]),
        }
    };
    assert!(matches!(why, Polled::Refused(_)));
    println!("polled because of {why:?}");
    let mut seen = vec![1];
    write(2);
    all_once_after(&run, &mut seen, 2);
    fs::rename(&log, room.path().join("mail.log.1")).expect("a rename");
    write(3);
    all_once_after(&run, &mut seen, 3);
}

/// What another host does to a log that we reach over the network is not told to us. Here it is done to the directory behind a mount.
#[test]
fn on_a_file_system_that_tells_of_no_changes_a_log_is_polled_and_nothing_lost() {
    let name = "on_a_file_system_that_tells_of_no_changes_a_log_is_polled_and_nothing_lost";
    if !Path::new("/dev/fuse").exists() {
        return skip(name, "there is no /dev/fuse here");
    }
    in_netns(name, || {
        let lab = Lab::new();
        let (there, here) = (lab.dir().join("there"), lab.dir().join("here"));
        [&there, &here].into_iter().for_each(|dir| fs::create_dir_all(dir).expect("a directory"));
        let far = match Far::mount(&there, &here) {
            Ok(far) => far,
            Err(refused) => return skip(name, &format!("FUSE mounts nothing here: {refused}")),
        };
        let log = there.join("mail.log");
        let rotated = |number: u32| there.join(format!("mail.log.{number}"));
        let write = |path: &Path, numbers: std::ops::RangeInclusive<u64>| {
            let mut file = OpenOptions::new().append(true).create(true).open(path).expect("the log");
            let lines: String =
                numbers.map(|n| format!("mx sshd[1]: Failed password for root from 198.51.100.7 {n}\n")).collect();
            file.write_all(lines.as_bytes()).expect("room");
        };
        // Nothing is there yet, and nobody tells when it comes.
        let run = Run::following(&here.join("mail.log"), None);
        let (mut missing, mut polled) = (false, false);
        while !missing || !polled {
            match run.told.recv_timeout(PATIENCE).expect("it is looked at") {
                Told::Happened(Happening::Missing { .. }) => missing = true,
                Told::Happened(Happening::Polled(why)) => polled = why == Polled::FileSystem,
                Told::Happened(other) => panic!("{other:?}"),
                Told::Lines(lines, _) => assert!(lines.is_empty()),
            }
        }
        let mut seen = Vec::new();
        write(&log, 1..=10);
        all_once(&run, &mut seen, 10);
        write(&log, 11..=20);
        all_once(&run, &mut seen, 20);
        // Renamed, its writer writing on; then twice in a row.
        fs::rename(&log, rotated(1)).expect("a rename");
        write(&rotated(1), 21..=25);
        write(&log, 26..=30);
        all_once(&run, &mut seen, 30);
        write(&log, 31..=35);
        fs::rename(rotated(1), rotated(3)).expect("a rename");
        fs::rename(&log, rotated(2)).expect("a rename");
        write(&log, 36..=40);
        fs::rename(&log, rotated(1)).expect("a rename");
        write(&log, 41..=45);
        all_once(&run, &mut seen, 45);
        // Copied and truncated, and longer than before by when we look.
        write(&log, 46..=50);
        fs::rename(rotated(3), rotated(4)).expect("a rename");
        fs::rename(rotated(2), rotated(3)).expect("a rename");
        fs::rename(rotated(1), rotated(2)).expect("a rename");
        fs::copy(&log, rotated(1)).expect("a copy");
        fs::write(&log, "").expect("truncated");
        write(&log, 51..=90);
        all_once(&run, &mut seen, 90);
        // Truncated and written anew, without a copy.
        fs::write(&log, "").expect("truncated");
        write(&log, 91..=95);
        all_once(&run, &mut seen, 95);
        fs::remove_file(&log).expect("removed");
        write(&log, 96..=100);
        all_once(&run, &mut seen, 100);
        drop(run);

        // The daemon says why it polls, and bans all the same. It finds a log that comes to a glob, too.
        fs::create_dir(there.join("hosts")).expect("a directory");
        let jail = format!(
            "[jail.sshd]\nenabled = true\nlogpath = [{:?}, {:?}]\nmaxretry = 3\nfindtime = \"1h\"\nbantime = \"1h\"\n",
            here.join("auth.log"),
            here.join("hosts/*.log")
        );
        let daemon = Daemon::start(&lab, &jail);
        let fail = |path: &Path, from: &str| {
            let mut file = OpenOptions::new().append(true).create(true).open(path).expect("the log");
            for _ in 0..3 {
                writeln!(file, "{} mx sshd[506]: Failed password for root from {from} port 37957 ssh2", Stamp::now().syslog())
                    .expect("room");
            }
        };
        for (path, from) in [("auth.log", "198.51.100.21"), ("hosts/mx.log", "198.51.100.22"), ("auth.log", "198.51.100.23")] {
            fail(&there.join(path), from);
            wait_until("the address is banned", || elements("sshd-v4").iter().any(|element| element == from));
        }
        let status = daemon.jail("sshd");
        assert!(!status["sources"].to_string().contains("waiting"), "what the glob was waiting for came: {}", status["sources"]);
        for source in status["sources"].as_array().expect("sources") {
            let note = source["note"].as_str().unwrap_or_default();
            assert!(note.contains("polled: its file system tells of no changes"), "{source}");
        }
        drop(daemon);
        far.unmount();
        println!("| a file system without inotify (FUSE) | 100 lines, 5 rotations, 2 truncations | lost 0 | twice 0 |");
    });
}

fn all_once_after(run: &Run, seen: &mut Vec<u64>, last: u64) {
    while (seen.len() as u64) < last {
        if let Told::Lines(lines, _) = run.told.recv_timeout(PATIENCE).expect("a line") {
            seen.extend(lines.into_iter().filter(|number| *number != 1));
        }
    }
    assert!(seen.iter().copied().eq(1..=last), "{seen:?}");
}
