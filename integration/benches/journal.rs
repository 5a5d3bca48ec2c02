//! What reading the journal costs: CPU time of the daemon with its `journalctl`, beside `journalctl` alone, `journalctl -o json` into a
//! reader that only parses it, and fail2ban's systemd backend. Catching up, and idle.
//!
//! `make bench` prints it. CPU times are user and system time of a process and all its children, as ratios: the machine is shared.

use std::io::BufRead as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use banset_integration::{Daemon, Entries, Journald, Lab, elements, have_journal, wait_for};

/// How many entries are caught up with; 1 % of them are failures.
const ENTRIES: i64 = 200_000;

fn main() -> ExitCode {
    // The part that is measured as a process of its own: every entry parsed as JSON.
    if let Some(directory) = std::env::args().find_map(|arg| arg.strip_prefix("--json=").map(str::to_owned)) {
        json(&directory);
        return ExitCode::SUCCESS;
    }
    banset_integration::bench("journal", measure)
}

/// CPU seconds of all children of this process that have ended.
fn children() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).expect("it can be asked");
    let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    of(usage.user_time()) + of(usage.system_time())
}

/// CPU seconds of a command and its children.
fn cost(command: &mut Command) -> f64 {
    let before = children();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it can be started");
    assert!(status.success(), "{command:?}: {status}");
    children() - before
}

/// Ticks of 10 ms that a process and what it started have used so far.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let own: u64 = fields.get(11..13).map_or(0, |times| times.iter().filter_map(|t| t.parse::<u64>().ok()).sum());
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    let below = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok()).collect::<Vec<_>>().join(" ");
    own + below.split_whitespace().filter_map(|child| child.parse().ok()).map(ticks).sum::<u64>()
}

fn json(directory: &str) {
    let mut command = Command::new("journalctl");
    command.args(["-o", "json", "--no-pager", "-q"]).arg(format!("--directory={directory}")).stdout(Stdio::piped());
    let mut child = command.spawn().expect("journalctl can be started");
    let mut lines = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    let (mut line, mut failures) = (Vec::new(), 0);
    while lines.read_until(b'\n', &mut line).expect("a pipe can be read") > 0 {
        let entry: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
        failures +=
            u32::from(entry["_SYSTEMD_UNIT"] == "ssh.service" && entry["MESSAGE"].as_str().is_some_and(|m| m.contains("Failed")));
        line.clear();
    }
    assert!(failures > 0);
    let _ = child.wait();
}

const FAIL2BAN: &str = r#"
import sys
sys.path.insert(0, "/usr/lib/python3/dist-packages")
from fail2ban.server.jail import Jail
from fail2ban.server.filtersystemd import FilterSystemd
from systemd import journal
directory = sys.argv[1]
jail = Jail("sshd", backend="systemd")
f = FilterSystemd(jail, journalpath=directory)
f.setMaxRetry(10**9); f.setFindTime(10**9)
f.addJournalMatch(["_SYSTEMD_UNIT=ssh.service"])
f.addFailRegex(r"^\s*\S+ sshd\[\d+\]: Failed password for (?:invalid user )?<F-USER>\S+</F-USER> from <HOST> port \d+ ssh2$")
j = f._FilterSystemd__journal
n = failed = 0
j.seek_head()
while True:
    entry = j.get_next()
    if not entry: break
    n += 1
    line, time = f.formatJournalEntry(entry)
    failed += len(f.findFailure(line, time))
assert failed > 0, (n, failed)
"#;

fn measure() {
    if !have_journal("journal") {
        return;
    }
    let lab = Lab::new();
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("room on the disk");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_micros() as i64;
    let mut entries = Entries::new();
    for n in 0..ENTRIES {
        let (unit, ident, message): (&[u8], &[u8], String) = match n % 100 {
            7 => {
                let m = n / 100;
                (
                    b"ssh.service",
                    b"sshd",
                    format!("Failed password for u{n} from 198.51.{}.{} port 4 ssh2", m >> 8 & 255, m & 255),
                )
            }
            k if k % 4 == 0 => (b"ssh.service", b"sshd", format!("pam_unix(sshd:session): session opened for user u{n}(uid=0)")),
            _ => (b"nginx.service", b"nginx", format!("u{n} \"GET /{n} HTTP/1.1\" 200 {n}")),
        };
        let pid = (1000 + n % 5000).to_string();
        entries.add(
            now - (ENTRIES - n) * 1000 - 10_000_000,
            &[
                ("_TRANSPORT", b"syslog"),
                ("PRIORITY", b"6"),
                ("SYSLOG_FACILITY", b"4"),
                ("SYSLOG_IDENTIFIER", ident),
                ("SYSLOG_PID", pid.as_bytes()),
                ("_PID", pid.as_bytes()),
                ("_UID", b"0"),
                ("_GID", b"0"),
                ("_COMM", ident),
                ("_EXE", b"/usr/sbin/sshd"),
                ("_CMDLINE", b"sshd: unknown [priv]"),
                ("_SYSTEMD_CGROUP", b"/system.slice/ssh.service"),
                ("_SYSTEMD_UNIT", unit),
                ("_SYSTEMD_SLICE", b"system.slice"),
                ("MESSAGE", message.as_bytes()),
            ],
        );
    }
    entries.write(&disk.path().join("remote.journal"));
    let directory = disk.path().to_str().expect("a path of ours is text");
    let journalctl = |more: &[&str]| {
        let mut command = Command::new("journalctl");
        command.args(["--no-pager", "-q"]).arg(format!("--directory={directory}")).args(more);
        cost(&mut command)
    };
    let export = journalctl(&["-o", "export"]);
    let cat = journalctl(&["-o", "cat"]);
    let piped = cost(Command::new(std::env::current_exe().expect("own file")).args(["--bench", &format!("--json={directory}")]));
    // The daemon from its start to the last ban, then what it costs to start with nothing to read.
    let jail = |path: &str| {
        format!(
            "[jail.sshd]\nenabled = true\nbackend = \"journal\"\njournal_path = {path:?}\njournalmatch = \"_SYSTEMD_UNIT=ssh.service\"\nmaxretry = 1\nfindtime = \"1d\"\nbantime = \"1d\"\n"
        )
    };
    let want = (ENTRIES / 100) as usize;
    let start = Instant::now();
    let mut daemon = Daemon::start(&lab, &jail(directory));
    let found = |daemon: &Daemon| daemon.jail("sshd")["failures"]["total"].as_u64().unwrap_or(0) as usize;
    wait_for(Duration::from_secs(300), "everything is caught up with", || found(&daemon) >= want);
    wait_for(Duration::from_secs(60), "every ban is made", || elements("sshd-v4").len() >= want);
    let wall = start.elapsed();
    let all = ticks(daemon.pid().as_raw()) as f64 / 100.0;
    daemon.stop();
    let fail2ban = Path::new("/usr/lib/python3/dist-packages/fail2ban").is_dir()
        && Command::new("/usr/bin/python3")
            .args(["-c", "import systemd.journal"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success());
    println!(
        "catching up with {ENTRIES} entries of a journal, 1 % failures, in CPU seconds (microseconds an entry), ratio to banset"
    );
    let row = |name: &str, cpu: f64| {
        println!("   {name:<52} {cpu:6.2} s  ({:5.1} us)  {:5.2}", cpu * 1e6 / ENTRIES as f64, cpu / all);
    };
    row("banset with its journalctl, start and bans included", all);
    row("journalctl -o cat, output discarded", cat);
    row("journalctl -o export, output discarded", export);
    row("journalctl -o json, each line parsed", piped);
    if fail2ban {
        let before = children();
        let output = Command::new("/usr/bin/python3").args(["-c", FAIL2BAN, directory]).stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => row("fail2ban's systemd backend, one filter", children() - before),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
                println!("   SKIPPED fail2ban's systemd backend: it ended with an error: {said}");
            }
            Err(e) => println!("   SKIPPED fail2ban's systemd backend: {e}"),
        }
    } else {
        println!("   SKIPPED fail2ban's systemd backend: it or python3-systemd is not installed");
    }
    println!("   wall time of banset to the last ban: {:.1} s", wall.as_secs_f64());

    // Idle: a journal of a machine on which nothing happens, and on which others write ten entries a second.
    Journald::prepare();
    let journald = Journald::start(true);
    journald.log("other", "begin");
    daemon.configure("[jail.sshd]\nenabled = true\nbackend = \"journal\"\njournalmatch = \"SYSLOG_IDENTIFIER=sshd\"\n");
    daemon.start_again();
    wait_for(Duration::from_secs(60), "the journal is read", || daemon.jail("sshd")["sources"][0]["state"] == "live");
    std::thread::sleep(Duration::from_secs(2));
    let spent = |what: &str, each: Duration, send: bool| {
        let before = ticks(daemon.pid().as_raw());
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if send {
                journald.log("other", "nobody's business");
            }
            std::thread::sleep(each);
        }
        let cpu = (ticks(daemon.pid().as_raw()) - before) as f64 / 100.0;
        println!("   {what:<52} {:6.3} % of a core", cpu / start.elapsed().as_secs_f64() * 100.0);
    };
    println!("following, in CPU of banset with its journalctl");
    spent("nothing is written", Duration::from_secs(1), false);
    spent("ten entries a second that concern nobody", Duration::from_millis(100), true);
}
