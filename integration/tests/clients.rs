//! The control socket and the command line from outside: who gets a place, what is printed where, and what a reader that goes away
//! changes.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use banset_integration::{Answer, Daemon, Lab, Log, binary, elements, have, in_netns, nft, skip, wait_for};
use serde_json::{Value, json};

/// How long the daemon may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

fn sshd(log: &Log) -> String {
    format!("[jail.sshd]\nenabled = true\nlogpath = {:?}\nbantime = \"1h\"\n", log.path())
}

/// `banset ARGS` as another user with this group and no other.
fn as_user(daemon: &Daemon, uid: u32, group: &str, args: &[&str]) -> Answer {
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
    command.arg(binary()).args(args).arg("--socket").arg(daemon.socket()).current_dir("/");
    Answer::of(&mut command)
}

/// Whether there are other users here: in a user namespace of our own there is but one.
fn have_users(name: &str) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let all = map.split_ascii_whitespace().nth(2).and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count > 65_534);
    if !all {
        skip(name, "a user namespace with one user");
    }
    all && have(name, "setpriv")
}

/// Connections of another user that ask nothing.
fn silent(socket: &Path, uid: u32, gid: u32, how_many: usize) -> Vec<UnixStream> {
    let socket = socket.to_owned();
    let connects = move || {
        // SAFETY: system calls that take numbers and no pointer that is followed. Unlike the C library's functions they change this
        // thread alone, and it ends after this.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
        }
        (0..how_many).map(|_| UnixStream::connect(&socket).expect("anybody may connect")).collect()
    };
    std::thread::spawn(connects).join().expect("the thread ends")
}

#[test]
fn nobody_keeps_root_or_others_from_asking() {
    const NAME: &str = "nobody_keeps_root_or_others_from_asking";
    in_netns(NAME, || {
        if !have_users(NAME) {
            return;
        }
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth.log"));
        let daemon = Daemon::start(&lab, &format!("readers = \"adm\"\n\n{}", sshd(&log)));
        daemon.wait_running();
        let adm = nix::unistd::Group::from_name("adm").expect("groups can be read").expect("every Debian has it").gid.as_raw();
        let reader = |uid: u32| as_user(&daemon, uid, "adm", &["status"]);
        assert_eq!(reader(65_533).code, 0);
        // Who may ask nothing is told so at once, and holds nothing.
        let mut strangers = silent(&daemon.socket(), 65_534, 65_534, 300);
        let mut told = String::new();
        strangers[0].read_to_string(&mut told).expect("it is closed after that");
        assert!(told.contains("uid 65534 may not do this"), "{told}");
        assert!(daemon.cli(&["status"]).code == 0 && reader(65_533).code == 0);
        let refused = as_user(&daemon, 65_534, "nogroup", &["status"]);
        assert!(refused.code == 1 && refused.err.contains("may not do this") && refused.err.contains("help:"), "{refused:?}");
        // Who may read gets a share.
        let (held, refused) = loop {
            let since = Instant::now();
            let held = silent(&daemon.socket(), 65_534, adm, 100);
            let refused = reader(65_534);
            // Who is silent for a minute is let go: on a machine as slow as that it is tried again.
            if since.elapsed() < Duration::from_secs(50) {
                break (held, refused);
            }
        };
        assert!(refused.code == 3 && refused.err.contains("too many clients"), "{refused:?}");
        assert!(daemon.cli(&["status"]).code == 0 && reader(65_533).code == 0);
        drop(held);
        wait_for(PATIENCE, "places are free again", || reader(65_534).code == 0);
    });
}

/// `banset ARGS` whose standard output and error nobody reads.
fn unread(daemon: &Daemon, args: &[&str]) -> Option<i32> {
    let closed = || {
        let (read, write) = std::io::pipe().expect("a pipe");
        drop(read);
        write
    };
    let mut command = Command::new(binary());
    command.args(args).arg("-c").arg(daemon.config()).arg("--socket").arg(daemon.socket());
    command.stdin(Stdio::null()).stdout(closed()).stderr(closed()).status().expect("it can be started").code()
}

#[test]
fn a_reader_that_went_away_changes_nothing() {
    in_netns("a_reader_that_went_away_changes_nothing", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log));
        daemon.wait_running();
        daemon.cli(&["ban", "sshd", "192.0.2.7"]).ok();
        for args in
            [&["status"][..], &["banned"], &["config", "show"], &["ruleset"], &["check"], &["history"], &["stats", "--json"]]
        {
            assert_eq!(unread(&daemon, args), Some(0), "{args:?}");
        }
        assert_eq!(unread(&daemon, &["status", "nonsense"]), Some(1));
        assert_eq!(unread(&daemon, &["ban", "192.0.2.7", "--for", "soon"]), Some(2));
        daemon.stop();
        assert_eq!(unread(&daemon, &["status"]), Some(3));
        // The emergency exit is not left half open: the pause is noted, too.
        assert_eq!(unread(&daemon, &["pause", "--offline"]), Some(0));
        daemon.start_again();
        wait_for(PATIENCE, "it answers", || daemon.cli(&["status"]).code == 0);
        assert_eq!(daemon.jail("sshd")["state"], "paused");
    });
}

#[test]
fn what_is_refused_is_told_beside_the_json() {
    in_netns("what_is_refused_is_told_beside_the_json", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log));
        daemon.wait_running();
        let part = daemon.cli(&["ban", "sshd", "192.0.2.7", "127.0.0.1", "--json"]);
        let value: Value = serde_json::from_str(&part.out).expect("JSON alone on standard output");
        assert_eq!((part.code, &value["banned"]), (4, &json!([{ "addr": "192.0.2.7", "jail": "sshd" }])));
        assert!(part.err.contains("127.0.0.1: ignored by"), "{part:?}");
        let zero = daemon.cli(&["ban", "192.0.2.8", "--for", "0s"]);
        assert!(zero.code == 2 && zero.err.contains("--for: is zero"), "{zero:?}");
        daemon.cli(&["ban", "192.0.2.9", "--for", "permanent"]).ok();
        assert!(daemon.cli(&["banned", "192.0.2.9"]).ok().contains("permanently"));
        // `--all` with an address is not every ban there is.
        for more in [&["--all"][..], &["--since", "2h"], &["--net", "192.0.2.0/24"], &["--user", "bob"]] {
            let mixed = daemon.cli(&[&["unban", "192.0.2.7"], more].concat());
            assert!(mixed.code == 2 && mixed.err.contains("addresses go without"), "{mixed:?}");
        }
        assert_eq!(daemon.banned().len(), 2);
        // More addresses than a request holds: told, and nothing is done.
        let many: Vec<String> = (0..4000).map(|n| format!("2001:db8:1000:{n:x}::1")).collect();
        let many: Vec<&str> = std::iter::once("ban").chain(many.iter().map(String::as_str)).collect();
        let refused = daemon.cli(&many);
        assert!(refused.code == 2 && refused.err.contains("name fewer addresses at a time"), "{refused:?}");
        // Without a daemon: as JSON, too, and a name that is none is not paused.
        daemon.stop();
        let paused = daemon.cli(&["pause", "sshd", "--offline", "--json"]).json();
        assert_eq!((&paused["paused"], &paused["until"]), (&json!("sshd"), &Value::Null));
        assert!(paused["rules"].as_u64().is_some_and(|rules| rules > 0), "{paused}");
        let misspelt = daemon.cli(&["pause", "shsd", "--offline"]);
        assert!(
            misspelt.code == 1 && misspelt.err.contains("no jail \"shsd\"") && misspelt.err.contains("there are: manual, sshd"),
            "{misspelt:?}"
        );
        assert_eq!(daemon.cli(&["resume", "sshd", "--offline", "--json"]).json(), json!({ "resumed": "sshd" }));
        let explained = daemon.cli(&["explain", "--addr", "192.0.2.7"]);
        assert!(explained.code == 3 && explained.out.contains("jail sshd:"), "{explained:?}");
    });
}

#[test]
fn an_address_is_explained_in_the_readers_zone() {
    in_netns("an_address_is_explained_in_the_readers_zone", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth.log"));
        let daemon = Daemon::start(&lab, &sshd(&log));
        daemon.wait_running();
        daemon.cli(&["ban", "sshd", "192.0.2.7", "--for", "1h"]).ok();
        let mut command = Command::new(binary());
        command.args(["explain", "--addr", "192.0.2.7"]).arg("-c").arg(daemon.config()).arg("--socket").arg(daemon.socket());
        let said = Answer::of(command.env("TZ", "Asia/Tokyo")).ok();
        assert!(said.contains("banned by sshd as 192.0.2.7 until") && said.contains("+09:00"), "{said}");
        assert!(daemon.cli(&["explain", "--addr", "192.0.2.7", "--utc"]).ok().contains("+00:00"));
    });
}

#[test]
fn the_doctor_tells_a_daemon_that_refuses_to_answer_from_one_that_knows_no_jail() {
    const NAME: &str = "the_doctor_tells_a_daemon_that_refuses_to_answer_from_one_that_knows_no_jail";
    in_netns(NAME, || {
        if !have_users(NAME) {
            return;
        }
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth.log"));
        // A FIFO that nobody writes to must not be waited for.
        let fifo = lab.dir().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let daemon = Daemon::start(&lab, &format!("{}\n[jail.vpopmail]\nenabled = true\nlogpath = {fifo:?}\n", sshd(&log)));
        let said = daemon.cli(&["doctor"]);
        assert!(said.out.contains("daemon: it runs, 2 jails") && said.out.contains("files can be read"), "{said:?}");
        // The configuration can be read by everybody here.
        let config = std::path::PathBuf::from(format!("/run/{NAME}.toml"));
        std::fs::copy(daemon.config(), &config).expect("a copy");
        let config = config.to_str().expect("a name of ours");
        let said = as_user(&daemon, 65_534, "nogroup", &["doctor", "-c", config]);
        assert!(said.out.contains("the daemon does not answer: uid 65534 may not do this"), "{said:?}");
        assert!(!said.out.contains("does not know this jail"), "{said:?}");
    });
}

#[test]
fn odd_lines_of_another_machine_are_told_and_the_rest_is_applied() {
    in_netns("odd_lines_of_another_machine_are_told_and_the_rest_is_applied", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth.log"));
        let daemon = Daemon::start(&lab, &sshd(&log));
        daemon.wait_running();
        let ban = |seq: usize, reason: &str| json!({ "seq": seq, "what": "ban", "jail": "sshd", "addr": format!("198.51.100.{seq}"), "permanent": true, "reason": reason });
        let mut lines = String::new();
        // Ten that together are more than a request holds, one that is too long for a line, one after it.
        (1..=10).for_each(|seq| lines.push_str(&format!("{}\n", ban(seq, &"x".repeat(12_000)))));
        let inner = ban(99, "hidden").to_string();
        lines.push_str(&format!("{{\"seq\":11,\"x\":\"{}{inner}\n", "y".repeat(16 * 1024 - 15)));
        lines.push_str(&format!("{}\n", ban(12, "after")));
        let mut command = Command::new(binary());
        command.args(["apply", "-", "--origin", "mx2"]).arg("-c").arg(daemon.config()).arg("--socket").arg(daemon.socket());
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be started");
        child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("it reads");
        let done = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.code() == Some(1) && said.matches("not an event").count() == 1, "{}: {said}", done.status);
        let mut held = elements("sshd-v4");
        held.sort();
        let mut expected: Vec<String> = (1..=10).chain([12]).map(|n| format!("198.51.100.{n}")).collect();
        expected.sort();
        assert_eq!(held, expected);
        assert_eq!(daemon.cli(&["apply", "--last", "--origin", "mx2"]).ok(), "12\n");
        assert!(nft(&["list", "table", "inet", "banset"]).contains("sshd-v4"));
    });
}

#[test]
fn a_daemon_that_runs_on_says_what_is_wrong_and_keeps_what_it_accepted_to_itself() {
    in_netns("a_daemon_that_runs_on_says_what_is_wrong_and_keeps_what_it_accepted_to_itself", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth.log"));
        let mut daemon = Daemon::start(&lab, &sshd(&log));
        daemon.wait_running();
        let accepted = lab.dir().join("banset/state/accepted.json");
        wait_for(PATIENCE, "the configuration is kept", || accepted.is_file());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&accepted).expect("there").permissions());
        assert_eq!(mode & 0o777, 0o600);
        daemon.stop();
        // A warning stands before the mistake: it is not what keeps the configuration from being used.
        daemon.configure(&format!("[nft.priority]\nbridge = 0\n[defaults]\nbantme = \"1h\"\n{}", sshd(&log)));
        daemon.start_again();
        let degraded = daemon.status()["degraded"].as_str().unwrap_or_default().to_owned();
        assert!(degraded.contains("bantme: unknown key") && degraded.contains("last accepted configuration"), "{degraded}");
        daemon.configure(&sshd(&log));
        let tables = daemon.cli(&["ruleset", "--json"]).json();
        assert_eq!((&tables[0]["family"], &tables[0]["table"]), (&json!("inet"), &json!("banset")));
        assert!(tables[0]["text"].as_str().is_some_and(|text| text.starts_with("table inet banset {") && !text.contains('#')));
    });
}
