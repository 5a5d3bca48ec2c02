//! Faults, one line each: what was done, what was lost (nothing), how long a banned source got through.
//!
//! A fault that ends protection is measured with packets of a banned source, sent all the while. The figures are those of an
//! unoptimised program on whatever machine runs the tests: they are printed, and only what must be zero is judged.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use banset::nft::transaction::Change;
use banset::nft::{Kernel, Socket, Transaction};
use banset::terms::Family;
use banset_integration::{
    Daemon, Lab, Log, PATIENCE, Probe, Stamp, elements, have, in_netns, nft, nft_try, shape, wait_for, wait_until, wrong_password,
};
use nix::sys::signal::Signal;

/// A daemon that holds bans, an attacker that keeps sending, and a count of what was lost.
struct Site {
    lab: Lab,
    log: Log,
    daemon: Daemon,
    probe: Probe,
    guilty: Vec<String>,
    /// The lines of the table's listing while nobody has laid hands on it.
    sound: Vec<String>,
}

/// The lines of the table's listing; a set that was made anew stands last.
fn lines() -> Vec<String> {
    let mut lines: Vec<String> = shape().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

impl Site {
    fn new(nft: &str) -> Site {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth.log"));
        let daemon = Daemon::start(&lab, &configuration(&log, nft));
        Site::around(lab, log, daemon)
    }

    fn around(lab: Lab, mut log: Log, daemon: Daemon) -> Site {
        daemon.wait_running();
        log.fail("198.51.100.7", 1);
        wait_until("the prober is banned", || elements("sshd-v4").contains(&"198.51.100.7".to_owned()));
        let probe = Probe::start(&lab, "198.51.100.7", 22);
        let mut site = Site { lab, log, daemon, probe, guilty: vec!["198.51.100.7".to_owned()], sound: lines() };
        site.attack(20);
        site.wait_whole();
        site.probe.pass(20);
        assert_eq!(site.probe.through(), 0);
        site
    }

    /// So many more attackers cross the threshold.
    fn attack(&mut self, count: usize) {
        let mut lines = String::new();
        for _ in 0..count {
            let n = self.guilty.len();
            let who = format!("203.0.{}.{}", n / 250, n % 250);
            lines += &format!("{}\n", wrong_password(Stamp::now(), "root", &who));
            self.guilty.push(who);
        }
        self.log.bytes(lines.as_bytes());
    }

    fn lost(&self) -> usize {
        let held: std::collections::HashSet<String> = elements("sshd-v4").into_iter().collect();
        self.guilty.iter().filter(|who| !held.contains(*who)).count()
    }

    #[track_caller]
    fn wait_whole(&self) {
        wait_for(2 * PATIENCE, "every ban is in the kernel", || self.lost() == 0);
    }

    /// Does something, goes on attacking, waits until all is whole, and prints the fault's line.
    #[track_caller]
    fn fault(&mut self, what: &str, act: impl FnOnce(&mut Site)) {
        let log_before = self.daemon.log().len();
        act(self);
        self.attack(5);
        self.wait_whole();
        wait_until("the rules are whole", || lines() == self.sound);
        self.probe.pass(20);
        let gaps = self.probe.gaps();
        let absent: Duration = gaps.iter().sum();
        let said = self.daemon.log()[log_before..].to_owned();
        let said = said.lines().find(|line| line.contains("ERROR") || line.contains("WARNING") && line.contains(" by nft"));
        let said = said.map_or("", |line| line.get(32..).unwrap_or(line)).chars().take(110).collect::<String>();
        println!("| {what} | lost {} | absent {absent:.1?} | {said} |", self.lost());
        let start = Instant::now();
        loop {
            let status = self.daemon.status();
            if status["nft"][0]["degraded"].is_null() && status["state"].is_null() {
                return;
            }
            let degraded = (&status["nft"][0]["degraded"], &status["state"]);
            assert!(start.elapsed() < PATIENCE, "after {what} still degraded: {degraded:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn configuration(log: &Log, nft: &str) -> String {
    format!(
        "[nft]\n{nft}\n[jail.sshd]\nenabled = true\nlogpath = {:?}\nmaxretry = 1\nfindtime = \"1h\"\nbantime = \"1h\"\n",
        log.path()
    )
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).stdin(Stdio::null()).status().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(status.success(), "{program} {args:?}: {status}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of our own")
}

#[test]
fn what_others_do_to_the_table() {
    in_netns("what_others_do_to_the_table", || {
        let mut site = Site::new("");
        let stale = site.lab.dir().join("stale.nft");
        std::fs::write(&stale, nft(&["list", "ruleset"]).replace("203.0.0.1 ", "192.0.2.99 ")).expect("a file");
        let restart = site.lab.dir().join("restart.nft");
        std::fs::write(&restart, format!("flush ruleset\ninclude {stale:?}\n")).expect("a file");
        println!("| fault | lost | absent | said |");
        site.fault("flush ruleset", |_| _ = nft(&["flush", "ruleset"]));
        site.fault("delete table", |_| _ = nft(&["delete", "table", "inet", "banset"]));
        site.fault("flush table", |_| _ = nft(&["flush", "table", "inet", "banset"]));
        site.fault("delete chain", |_| {
            let file = Path::new("/run/chain.nft");
            std::fs::write(file, "flush chain inet banset input\ndelete chain inet banset input\n").expect("a file");
            nft(&["-f", text(file)]);
        });
        site.fault("delete rule", |_| {
            let listing = nft(&["-a", "list", "chain", "inet", "banset", "input"]);
            let rule = listing.lines().find(|line| line.contains("@sshd-v4")).expect("a rule");
            let handle = rule.rsplit(' ').next().expect("a handle");
            nft(&["delete", "rule", "inet", "banset", "input", "handle", handle]);
        });
        site.fault("delete set, after its rules", |_| {
            let file = Path::new("/run/set.nft");
            std::fs::write(file, "flush chain inet banset input\ndelete set inet banset sshd-v4\n").expect("a file");
            nft(&["-f", text(file)]);
        });
        site.fault("nft -f of a saved ruleset with a stale copy", |_| _ = nft(&["-f", text(&stale)]));
        wait_until("nobody comes back from the dead", || !elements("sshd-v4").contains(&"192.0.2.99".to_owned()));
        site.fault("flush and load, as systemctl restart nftables does", |_| {
            nft(&["flush", "ruleset"]);
            nft(&["-f", text(&restart)]);
        });
        site.fault("flush set", |_| _ = nft(&["flush", "set", "inet", "banset", "sshd-v4"]));
        site.fault("flush ruleset ten times in a row", |_| (0..10).for_each(|_| _ = nft(&["flush", "ruleset"])));
        site.fault("one element deleted: an unban", |site| {
            nft(&["delete", "element", "inet", "banset", "sshd-v4", "{ 203.0.0.3 }"]);
            site.guilty.retain(|who| who != "203.0.0.3");
            site.daemon.wait_log("[sshd] Unban 203.0.0.3, removed by nft");
        });
        site.fault("one element added: a ban", |site| {
            nft(&["add", "element", "inet", "banset", "sshd-v4", "{ 203.0.113.200 timeout 1h }"]);
            site.guilty.push("203.0.113.200".to_owned());
            site.daemon.wait_log("[sshd] Ban 203.0.113.200, added by nft");
        });
        assert_eq!(site.daemon.log().matches(" Unban ").count(), 1, "nobody else was unbanned");
    });
}

#[test]
fn more_than_the_listener_can_hear() {
    in_netns("more_than_the_listener_can_hear", || {
        let mut site = Site::new("");
        site.fault("ENOBUFS on the monitor: 300 000 foreign elements while the daemon is stopped", |site| {
            site.daemon.signal(Signal::SIGSTOP);
            let mut all = String::from("add element inet banset sshd-v4 {\n");
            (0..300_000u32).for_each(|n| all += &format!("{},\n", std::net::Ipv4Addr::from_bits(0x0b00_0000 + n)));
            let file = site.lab.dir().join("many.nft");
            std::fs::write(&file, all + "}\n").expect("a file");
            nft(&["-f", text(&file)]);
            nft(&["flush", "chain", "inet", "banset", "input"]);
            site.daemon.signal(Signal::SIGCONT);
            site.daemon.wait_log("others changed more than could be heard");
        });
        wait_until("what nobody knows is gone", || elements("sshd-v4").len() == site.guilty.len());
    });
}

/// The thread of a process that has this name.
fn thread(process: nix::unistd::Pid, name: &str) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let ids = tasks.filter_map(|task| task.ok()?.file_name().into_string().ok());
    let named =
        |id: &String| std::fs::read_to_string(format!("/proc/{process}/task/{id}/comm")).is_ok_and(|comm| comm.trim() == name);
    ids.into_iter().find(named).unwrap_or_else(|| panic!("no thread {name}"))
}

/// strace that makes one system call of a thread fail.
struct Injection(Child);

impl Injection {
    fn start(lab: &Lab, thread: &str, inject: &str) -> Injection {
        let said = lab.dir().join("inject.err");
        let err = std::fs::File::create(&said).expect("a file");
        let mut command = Command::new("strace");
        command.args(["-e", &format!("inject={inject}"), "-o", "/dev/null", "-p", thread]).stderr(err).stdout(Stdio::null());
        banset::netns::die_with_parent(&mut command);
        let child = command.stdin(Stdio::null()).spawn().expect("strace is installed");
        wait_until("strace attaches", || std::fs::read_to_string(&said).unwrap_or_default().contains("attached"));
        Injection(child)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), Signal::SIGINT);
        let _ = self.0.wait();
    }
}

#[test]
fn an_answer_of_the_kernel_that_is_lost() {
    let name = "an_answer_of_the_kernel_that_is_lost";
    if !have(name, "strace") {
        return;
    }
    in_netns(name, || {
        let mut site = Site::new("");
        let writer = thread(site.daemon.pid(), "writer");
        // Which of its receives is the answer to a commit depends on what else it reads: one after the other.
        for nth in 1..=8 {
            site.fault(&format!("ENOBUFS on the writer's receive number {nth}"), |site| {
                let _injection = Injection::start(&site.lab, &writer, &format!("recvfrom:error=ENOBUFS:when={nth}"));
                site.attack(3);
                site.wait_whole();
            });
        }
        assert!(site.daemon.log().contains("no answer from the kernel"), "none of them was the answer");
        for who in &site.guilty {
            site.daemon.wait_log(&format!("[sshd] Ban {who}\n"));
        }
        let said = site.daemon.log();
        for who in &site.guilty {
            assert_eq!(said.matches(&format!("[sshd] Ban {who}\n")).count(), 1, "{who} is told once");
        }
    });
}

#[test]
fn a_table_that_is_somebody_elses() {
    in_netns("a_table_that_is_somebody_elses", || {
        let mut other = Socket::open().expect("nf_tables");
        if !other.features().owner {
            return banset_integration::skip("a_table_that_is_somebody_elses", "this kernel has no OWNER|PERSIST (Linux 6.9)");
        }
        let mut site = Site::new("");
        site.fault("EPERM: another program owns our table for a while", |site| {
            let mut seize = Transaction::new(Family::Inet, "banset");
            seize.push(Change::DeleteTable);
            seize.push(Change::AddTable { comment: Some("mine".to_owned()), owner: true });
            other.commit(&seize).expect("the table is free to be taken");
            site.attack(10);
            wait_until("status says so", || {
                let why = site.daemon.status()["nft"][0]["degraded"].to_string();
                why.contains("EPERM")
            });
            wait_until("bans are decided all the same", || {
                site.daemon.jail("sshd")["bans"]["current"].as_u64() == Some(site.guilty.len() as u64)
            });
            drop(other);
        });
        assert!(site.daemon.log().matches("EPERM").count() <= 3, "it is said, not repeated");
    });
}

/// Without the capability the kernel refuses; with it again the same socket goes on. Capabilities belong to a thread.
#[test]
fn a_capability_that_is_dropped() {
    in_netns("a_capability_that_is_dropped", || {
        let mut socket = Socket::open().expect("nf_tables");
        let mut kernel = Kernel::open().expect("nf_tables can be read");
        let mut make = Transaction::new(Family::Inet, "banset");
        make.push(Change::AddTable { comment: Some("one".to_owned()), owner: false });
        effective(|caps| caps & !(1 << 12));
        let refused = socket.commit(&make).expect_err("CAP_NET_ADMIN is gone");
        effective(|_| u64::MAX);
        assert_eq!(refused.kind, banset::nft::Kind::NotPermitted, "{refused}");
        assert_eq!(kernel.table(Family::Inet, "banset"), Ok(None), "not half a change");
        socket.commit(&make).expect("with the capability it goes on");
        println!("| EPERM: CAP_NET_ADMIN is dropped and raised again | lost 0 | - | {refused} |");
    });
}

/// The same while the daemon runs: its writer has no CAP_NET_ADMIN for a while.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_daemon_whose_capability_is_dropped() {
    in_netns("a_daemon_whose_capability_is_dropped", || {
        let mut site = Site::new("");
        let writer: i32 = thread(site.daemon.pid(), "writer").parse().expect("a number");
        site.fault("EPERM: CAP_NET_ADMIN is dropped by the daemon's writer, and raised again", |site| {
            borrowed::effective(writer, |caps| caps & !(1 << 12));
            site.attack(10);
            wait_until("status says so", || site.daemon.status()["nft"][0]["degraded"].to_string().contains("EPERM"));
            let held = site.daemon.jail("sshd")["bans"]["current"].as_u64();
            assert_eq!(held, Some(site.guilty.len() as u64), "bans are decided all the same");
            assert_eq!(site.lost(), 10, "not half a change");
            borrowed::effective(writer, |caps| caps | 1 << 12);
        });
        let said = site.daemon.log();
        assert!(said.matches("EPERM").count() <= 3, "it is said, not repeated");
        for who in &site.guilty {
            assert_eq!(said.matches(&format!("[sshd] Ban {who}\n")).count(), 1, "{who} is told once");
        }
    });
}

/// A thread of somebody else, made to change its own capabilities: nobody can do that for it.
#[cfg(target_arch = "x86_64")]
mod borrowed {
    use std::ptr::null_mut;

    /// Changes a thread's effective capabilities, within what it may have.
    pub fn effective(thread: i32, change: impl Fn(u64) -> u64) {
        let status = std::fs::read_to_string(format!("/proc/{thread}/status")).expect("it runs");
        let caps = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("every thread has some");
            u64::from_str_radix(line.trim(), 16).expect("a mask")
        };
        let permitted = caps("CapPrm:");
        let wanted = change(caps("CapEff:")) & permitted;
        let low = |mask: u64| mask & 0xffff_ffff;
        // struct __user_cap_header_struct, then twice struct __user_cap_data_struct, of version 3: effective, permitted, inheritable.
        let words = [0x2008_0522, low(wanted) | low(permitted) << 32, (wanted >> 32) << 32, permitted >> 32];
        assert_eq!(call(thread, libc::SYS_capset, words), 0, "capset");
    }

    /// Has a thread that waits in a system call make this one: its first argument points at the first of `words`, the second at the next.
    fn call(thread: i32, number: i64, words: [u64; 4]) -> i64 {
        // SAFETY: all arguments are numbers or outlive the call; what ptrace(2) writes to it writes to `regs`, which has the type it wants.
        let ask = |request, address: u64, data: *mut libc::c_void| unsafe {
            libc::ptrace(request, thread, address as *mut libc::c_void, data)
        };
        let stopped = || {
            let mut status = 0;
            // SAFETY: the status outlives the call.
            assert_eq!(unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) }, thread);
        };
        let data = |word: u64| word as *mut libc::c_void;
        assert_eq!(ask(libc::PTRACE_SEIZE, 0, null_mut()), 0, "ptrace: {}", std::io::Error::last_os_error());
        let (before, mut regs) = loop {
            assert_eq!(ask(libc::PTRACE_INTERRUPT, 0, null_mut()), 0);
            stopped();
            // SAFETY: a struct of numbers.
            let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
            assert_eq!(ask(libc::PTRACE_GETREGS, 0, (&raw mut regs).cast()), 0);
            // It stands behind the instruction that made the call.
            if ask(libc::PTRACE_PEEKTEXT, regs.rip - 2, null_mut()) & 0xffff == 0x050f {
                break (regs, regs);
            }
            assert_eq!(ask(libc::PTRACE_CONT, 0, null_mut()), 0);
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        // Well below what it may use of its stack.
        let free = (regs.rsp - 4096) & !15;
        for (n, word) in words.into_iter().enumerate() {
            assert_eq!(ask(libc::PTRACE_POKEDATA, free + 8 * n as u64, data(word)), 0);
        }
        (regs.rax, regs.orig_rax, regs.rip) = (number as u64, u64::MAX, regs.rip - 2);
        (regs.rdi, regs.rsi) = (free, free + 8);
        assert_eq!(ask(libc::PTRACE_SETREGS, 0, (&raw mut regs).cast()), 0);
        assert_eq!(ask(libc::PTRACE_SINGLESTEP, 0, null_mut()), 0);
        stopped();
        assert_eq!(ask(libc::PTRACE_GETREGS, 0, (&raw mut regs).cast()), 0);
        let answer = regs.rax.cast_signed();
        let mut before = before;
        assert_eq!(ask(libc::PTRACE_SETREGS, 0, (&raw mut before).cast()), 0);
        assert_eq!(ask(libc::PTRACE_DETACH, 0, null_mut()), 0);
        answer
    }
}

/// The kernel refuses a transaction because of one element in it; the rest of it is carried out, and that one, too, in the end.
#[test]
fn a_transaction_that_is_refused_because_of_one_element() {
    let name = "a_transaction_that_is_refused_because_of_one_element";
    if !have(name, "strace") {
        return;
    }
    in_netns(name, || {
        let mut site = Site::new("");
        site.daemon.cli(&["ban", "sshd", "198.19.0.0/24"]).ok();
        let listener = thread(site.daemon.pid(), "listener");
        site.fault("EEXIST: a subnet that overlaps one of somebody's, banned together with others", |site| {
            // As on a machine that is slow to tell us: he comes first, and we have not heard of it.
            let _injection = Injection::start(&site.lab, &listener, "recvfrom:delay_enter=20000000");
            nft(&["add", "element", "inet", "banset", "sshd-net4", "{ 198.18.0.0/16 timeout 1h }"]);
            site.daemon.signal(Signal::SIGSTOP);
            site.attack(10);
            let daemon = &site.daemon;
            std::thread::scope(|scope| {
                let client = scope.spawn(|| daemon.cli(&["ban", "sshd", "198.18.5.0/24"]));
                std::thread::sleep(Duration::from_millis(100));
                daemon.signal(Signal::SIGCONT);
                client.join().expect("it ends").ok();
            });
            daemon.wait_log("EEXIST");
            site.wait_whole();
        });
        let said = site.daemon.log();
        assert_eq!(site.daemon.cli(&["banned", "198.18.5.1"]).code, 0);
        assert!(elements("sshd-net4").iter().any(|element| element.starts_with("198.18.")), "{:?}", elements("sshd-net4"));
        for who in &site.guilty {
            assert_eq!(said.matches(&format!("[sshd] Ban {who}\n")).count(), 1, "{who} is told once");
        }
    });
}

/// Changes the calling thread's effective capabilities, within what it may have.
fn effective(change: impl Fn(u64) -> u64) {
    let (mut header, mut data) = ([0x2008_0522u32, 0], [0u32; 6]);
    // SAFETY: capget(2) and capset(2) version 3 take a header of two words and two times three words, which both outlive the calls.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()), 0);
        let permitted = u64::from(data[1]) | u64::from(data[4]) << 32;
        let wanted = change(u64::from(data[0]) | u64::from(data[3]) << 32) & permitted;
        (data[0], data[3]) = (wanted as u32, (wanted >> 32) as u32);
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_mut_ptr()), 0);
    }
}

#[test]
fn a_set_that_is_full() {
    in_netns("a_set_that_is_full", || {
        let mut site = Site::new("set_size = 32");
        // The prober is the oldest: it is the first that goes.
        drop(std::mem::replace(&mut site.probe, Probe::start(&site.lab, "198.51.100.8", 2222)));
        site.attack(60);
        let newest: Vec<String> = site.guilty[site.guilty.len() - 32..].to_vec();
        wait_until("the newest are in", || {
            let held = elements("sshd-v4");
            held.len() == 32 && newest.iter().all(|who| held.contains(who))
        });
        let evicted = site.guilty.len() as u64 - 32;
        wait_until("the books say so, too", || {
            let bans = site.daemon.jail("sshd")["bans"].clone();
            (bans["current"].as_u64(), bans["evicted"].as_u64()) == (Some(32), Some(evicted))
        });
        assert_eq!(site.daemon.log().matches("set sshd-v4 is full").count(), 1, "said once");
        println!("| ENFILE: 81 bans for a set of 32 | the newest 32 are in, {evicted} counted as evicted | - | said once |");
        // The kernel still counts elements that have ended until it frees them: the set is full before we think so.
        site.daemon.cli(&["unban", "--all"]).ok();
        let ended: Vec<String> = (1..=32).map(|n| format!("203.1.0.{n} timeout 1s")).collect();
        nft(&["add", "element", "inet", "banset", "sshd-v4", &format!("{{ {} }}", ended.join(", "))]);
        wait_until("they are known", || site.daemon.log().contains("Ban 203.1.0.32, added by nft"));
        site.guilty.clear();
        site.attack(32);
        wait_until("the newest are in", || site.lost() == 0);
        println!("| ENFILE: the kernel finds it full before we do | lost {} | - | - |", site.lost());
        site.daemon.restart();
        assert_eq!(site.lost(), 0);
    });
}

#[test]
fn a_state_that_can_not_be_kept() {
    in_netns("a_state_that_can_not_be_kept", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth.log"));
        let daemon = Daemon::prepared(&lab, &configuration(&log, ""));
        let state = lab.dir().join("banset/state");
        std::fs::create_dir_all(&state).expect("a directory");
        run("mount", &["-t", "tmpfs", "-o", "size=16m", "tmpfs", text(&state)]);
        let mut daemon = daemon;
        daemon.start_again();
        let mut site = Site::around(lab, log, daemon);
        let filler = state.join("filler");
        site.fault("disk full", |site| {
            let mut file = std::fs::File::create(&filler).expect("a file");
            while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
            site.attack(3000);
            wait_until("status says so", || site.daemon.status()["state"].is_string());
            site.wait_whole();
            std::fs::remove_file(&filler).expect("the file");
        });
        // What could not be kept then is kept now: a kill later nobody is lost.
        site.daemon.kill();
        nft(&["flush", "ruleset"]);
        site.daemon.start_again();
        site.wait_whole();
        println!("| kill -9 and an empty kernel after it | lost {} | - | - |", site.lost());

        // An open file is not made read-only under anybody: the daemon meets it so at its start.
        site.daemon.stop();
        run("mount", &["-o", "remount,ro", text(&state)]);
        site.daemon.start_again();
        site.daemon.wait_running();
        let why = site.daemon.status()["state"].to_string();
        assert!(why.contains("banset/state"), "{why}");
        site.attack(5);
        site.wait_whole();
        println!("| state directory read-only | lost {} | - | {why} |", site.lost());
        site.daemon.stop();
        run("mount", &["-o", "remount,rw", text(&state)]);
        site.daemon.start_again();
        site.wait_whole();
        assert!(site.daemon.status()["state"].is_null());
    });
}

#[test]
fn a_log_that_can_not_be_read_for_a_while() {
    let name = "a_log_that_can_not_be_read_for_a_while";
    if !have(name, "setpriv") {
        return;
    }
    in_netns(name, || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("auth.log"));
        let path = log.path().to_owned();
        // Root reads everything by a capability; without it, somebody else's file of mode 0 is closed to it.
        let mut daemon = Daemon::prepared(&lab, &configuration(&log, ""));
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).expect("a file of ours");
        let mode = |mode: &str| run("chmod", &[mode, &path]);
        mode("000");
        log.fail("203.0.113.9", 1);
        let plain = daemon.command();
        let mut command = Command::new("setpriv");
        command.args(["--inh-caps", "-dac_override,-dac_read_search", "--bounding-set", "-dac_override,-dac_read_search"]);
        command.arg(plain.get_program()).args(plain.get_args());
        command.env_clear().envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.current_dir(plain.get_current_dir().expect("a directory"));
        daemon.start_as(command);
        let state = |daemon: &Daemon| daemon.jail("sshd")["sources"][0]["state"].as_str().unwrap_or_default().to_owned();
        wait_until("status says so", || state(&daemon) == "unreadable");
        wait_until("the log, too", || daemon.log().contains("auth.log: unreadable"));
        mode("644");
        wait_until("what was written meanwhile is read", || elements("sshd-v4").contains(&"203.0.113.9".to_owned()));
        wait_until("status says so, too", || state(&daemon) != "unreadable");
        let mut site = Site::around(lab, log, daemon);
        site.fault("log unreadable, then readable", |_| {
            // Closed under an open file nothing changes; the next file is met closed.
            mode("000");
        });
        println!("| log unreadable at the start, readable later | lost 0 | - | unreadable, in status and log |");
    });
}

/// What is left to the clock: see the core's own tests for jumps of either clock. Here the kernel's part: a ban ends by the
/// monotonic clock, whatever the wall says.
#[test]
fn an_address_is_free_when_the_kernel_says_so() {
    in_netns("an_address_is_free_when_the_kernel_says_so", || {
        let site = Site::new("");
        nft(&["add", "element", "inet", "banset", "sshd-v4", "{ 198.51.100.9 timeout 2s }"]);
        site.daemon.wait_log("[sshd] Ban 198.51.100.9, added by nft");
        wait_until("ended in the kernel and in the books", || {
            site.daemon.cli(&["banned", "198.51.100.9"]).code == 1 && !elements("sshd-v4").contains(&"198.51.100.9".to_owned())
        });
        assert!(nft_try(&["list", "table", "inet", "banset"]).is_ok());
        let unban = "[sshd] Unban 198.51.100.9\n";
        site.daemon.wait_log(unban);
        assert_eq!(site.daemon.log().matches(unban).count(), 1);
        let _: IpAddr = "198.51.100.9".parse().expect("an address");
    });
}

/// What an older kernel lacks is written otherwise, and means the same: a whole life of a table with nothing newer than Linux 5.10.
#[test]
fn an_old_kernel_is_served_the_same() {
    in_netns("an_old_kernel_is_served_the_same", || {
        use banset::engine::core::{Change as Wanted, Core, Suspects, Target};
        use banset::engine::kernel::Writer;
        use banset::engine::{Specs, clock};
        use banset::terms::{Lasting, Span};
        let log = std::path::PathBuf::from("/run/none.log");
        let nft_config = banset::config::run::Nft { owner: true, ..Default::default() };
        let config = banset::config::run::Config {
            daemon: banset::config::run::Daemon::default(),
            nft: nft_config,
            ignore: banset::config::run::IgnoreList { nets: vec![], names: vec![] },
            jails: vec![banset::config::run::Jail {
                logpath: vec![text(&log).to_owned()],
                ..banset::config::run::Jail::named("sshd")
            }],
            broken: vec![],
            evidence: banset::config::run::Evidence::default(),
        };
        let mut core = Core::new(Specs::new(&config), banset::engine::core::Machine::default(), clock::now(), 7);
        let features = [banset::nft::Features::NONE, banset::nft::Features::ALL];
        let mut listed = Vec::new();
        for features in features {
            let mut writer = Writer::open().expect("nf_tables");
            if features == banset::nft::Features::ALL && writer.features() != features {
                banset_integration::skip("an_old_kernel_is_served_the_same", &format!("this kernel is {}", writer.features()));
                continue;
            }
            writer.pretend(features);
            let done = writer.establish(&core.establish()).expect("established");
            assert_eq!(done.owned, features.owner);
            let change = |n: u8, secs: Option<i64>| Wanted {
                set: "sshd-v4".into(),
                what: std::net::IpAddr::from([203, 0, 113, n]).into(),
                to: secs.map_or(Target::Gone, |secs| Target::Held {
                    lasting: Lasting::For(Span::from_secs(secs as u64)),
                    until: Some(clock::now().mono + Span::from_secs(secs as u64)),
                }),
            };
            // A ban, a longer one of the same, an unban, an unban of nobody.
            for changes in [
                vec![change(1, Some(60)), change(2, Some(60))],
                vec![change(1, Some(3600))],
                vec![change(2, None), change(3, None)],
            ] {
                let committed = writer.commit(&changes).expect("carried out");
                assert!(committed.refusals.is_empty(), "{:?}", committed.refusals);
            }
            let (left, given) = banset_integration::expires("sshd-v4", "203.0.113.1").expect("it is banned");
            assert!(given == 3600 && left > 3000, "with {features:?}: {left} of {given}");
            // And made whole after a flush.
            let mut wanted = core.establish();
            wanted.exact = Suspects::All;
            wanted.held.insert("sshd-v4".into(), vec![change(1, Some(3600))]);
            assert!(!writer.establish(&wanted).expect("compared").fresh);
            assert_eq!(elements("sshd-v4"), ["203.0.113.1"]);
            listed.push(nft(&["-s", "-t", "list", "table", "inet", "banset"]).replace("\n\tflags owner", ""));
            println!("| a kernel {features} | ban, longer ban, unban, compared | lost 0 | - |");
            drop(writer);
            nft(&["delete", "table", "inet", "banset"]);
        }
    });
}
