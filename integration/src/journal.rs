//! A journald of a test's own, and journal files with whatever is wanted in them.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};

use crate::{have, wait_until};

/// Where systemd keeps its programs.
const LIB: &str = "/lib/systemd";

/// Whether journald is here, and what makes files for it; else the test is [skipped](crate::skip).
pub fn have_journal(name: &str) -> bool {
    let there = |program: &str| {
        let found = Path::new(LIB).join(program).is_file();
        if !found {
            crate::skip(name, &format!("{program} is not installed"));
        }
        found
    };
    have(name, "journalctl") && there("systemd-journald") && there("systemd-journal-remote")
}

/// A running systemd-journald, real but private: to be started within [`in_netns`](crate::in_netns), whose `/run` is the test's own.
pub struct Journald {
    child: Option<Child>,
    namespace: Option<&'static str>,
}

/// The machine the test is.
const MACHINE: &str = "0123456789abcdef0123456789abcdef";

impl Journald {
    /// Prepares a machine without journald: an id of its own, `/var/log` empty, journald's rules in place.
    pub fn prepare() {
        let put = |path: &str, text: &str| fs::write(path, text).unwrap_or_else(|e| panic!("{path}: {e}"));
        put("/run/machine-id", &format!("{MACHINE}\n"));
        let none = None::<&str>;
        mount(Some("/run/machine-id"), "/etc/machine-id", none, MsFlags::MS_BIND, none).expect("a machine id of our own");
        mount(Some("tmpfs"), "/var/log", Some("tmpfs"), MsFlags::empty(), none).expect("a /var/log of our own");
        fs::create_dir_all("/run/systemd/journald.conf.d").expect("a directory for journald's rules");
        let limits = "RateLimitIntervalSec=0\nRateLimitBurst=0\nSystemMaxUse=1G\nRuntimeMaxUse=1G\n";
        for name in ["journald.conf.d", "journald@.conf.d", "journald@mail.conf.d"] {
            let dir = Path::new("/run/systemd").join(name);
            fs::create_dir_all(&dir).expect("a directory for journald's rules");
            let text = format!("[Journal]\nStorage=auto\nReadKMsg=no\nAudit=\n{limits}");
            fs::write(dir.join("test.conf"), text).expect("journald's rules");
        }
    }

    /// Starts journald: with what it writes in `/run/log/journal`, or `persistent`, in `/var/log/journal`.
    pub fn start(persistent: bool) -> Journald {
        let mut journald = Journald { child: None, namespace: None };
        fs::create_dir_all("/run/log/journal").expect("a directory for the journal");
        if persistent {
            fs::create_dir_all("/var/log/journal").expect("a directory for the journal");
            fs::create_dir_all("/run/systemd/journal").expect("journald's own directory");
            fs::write("/run/systemd/journal/flushed", "").expect("the sign that /var is there");
        }
        journald.start_again();
        journald
    }

    /// A second one, for the namespace `mail`.
    pub fn start_namespace() -> Journald {
        fs::create_dir_all("/var/log/journal").expect("a directory for the journal");
        let mut journald = Journald { child: None, namespace: Some("mail") };
        journald.start_again();
        journald
    }

    /// Starts it after it was stopped.
    pub fn start_again(&mut self) {
        let mut command = Command::new(Path::new(LIB).join("systemd-journald"));
        command.args(self.namespace).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create("/run/journald.log").expect("a file for journald"));
        if self.namespace.is_some() {
            fs::create_dir_all("/run/systemd/journal.mail").expect("journald's own directory");
        }
        banset::netns::die_with_parent(&mut command);
        let _ = fs::remove_file(self.socket());
        self.child = Some(command.spawn().expect("journald can be started"));
        let socket = self.socket();
        wait_until("journald opens its socket", || UnixDatagram::unbound().and_then(|probe| probe.connect(&socket)).is_ok());
    }

    /// Ends it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = nix::unistd::Pid::from_raw(child.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = child.wait();
        }
    }

    fn socket(&self) -> PathBuf {
        match self.namespace {
            None => "/run/systemd/journal/socket".into(),
            Some(name) => format!("/run/systemd/journal.{name}/socket").into(),
        }
    }

    /// Sends an entry with these fields, as `sd_journal_send(3)` does.
    pub fn send(&self, fields: &[(&str, &[u8])]) {
        let mut datagram = Vec::new();
        for (name, value) in fields {
            datagram.extend(name.as_bytes());
            if value.contains(&b'\n') {
                datagram.push(b'\n');
                datagram.extend((value.len() as u64).to_le_bytes());
            } else {
                datagram.push(b'=');
            }
            datagram.extend(*value);
            datagram.push(b'\n');
        }
        let socket = UnixDatagram::unbound().expect("a socket");
        // What is too long for a datagram goes in a file.
        if datagram.len() > 100_000 {
            // Without a name: /dev/shm is everybody's.
            let mut file = tempfile::tempfile_in("/dev/shm").expect("a file");
            file.write_all(&datagram).expect("written");
            let fd = [std::os::fd::AsRawFd::as_raw_fd(&file)];
            let address = nix::sys::socket::UnixAddr::new(&self.socket()).expect("a path");
            let rights = [nix::sys::socket::ControlMessage::ScmRights(&fd)];
            nix::sys::socket::sendmsg(
                std::os::fd::AsRawFd::as_raw_fd(&socket),
                &[],
                &rights,
                nix::sys::socket::MsgFlags::empty(),
                Some(&address),
            )
            .expect("journald takes a file");
        } else {
            socket.send_to(&datagram, self.socket()).expect("journald takes an entry");
        }
    }

    /// Sends a message of a program.
    pub fn log(&self, program: &str, message: &str) {
        self.send(&[("SYSLOG_IDENTIFIER", program.as_bytes()), ("SYSLOG_PID", b"77"), ("MESSAGE", message.as_bytes())]);
    }

    /// What `journalctl` prints.
    pub fn journalctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("journalctl");
        command.args(self.namespace.map(|name| format!("--namespace={name}"))).arg("--no-pager").args(arguments);
        crate::Answer::of(&mut command).out
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- journald's complaints\n{}----", fs::read_to_string("/run/journald.log").unwrap_or_default());
        }
        self.stop();
    }
}

/// Services as systemd parts them: a tree of control groups of the test's own, whose root is the root for everybody in it, so that
/// journald knows the unit of who logs. The machine's own groups are neither seen nor touched. To be made before journald starts.
pub struct Units {
    /// Clears the groups away when we are gone, however that comes.
    _janitor: Child,
}

/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

impl Units {
    /// Moves the test into a tree of its own, below where it is.
    ///
    /// # Errors
    /// Why that is not possible here.
    pub fn new() -> Result<Units, String> {
        let failed = |what: &str, e: &dyn std::fmt::Display| format!("no control groups of our own: {what}: {e}");
        let read = |path: &str| fs::read_to_string(path).map_err(|e| failed(path, &e));
        let (mounts, own) = (read("/proc/self/mounts")?, read("/proc/self/cgroup")?);
        let mount_point =
            mounts.lines().filter_map(|line| line.split_once(' ')?.1.split_once(" cgroup2 ")).map(|(path, _)| path).next();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let (Some(mount_point), Some(own)) = (mount_point, own) else {
            return Err("no control groups of our own: the kernel's second version of them is not mounted".to_owned());
        };
        let name = format!("banset-test-{}", std::process::id());
        let above = Path::new(mount_point).join(own);
        fs::create_dir(above.join(&name)).map_err(|e| failed("mkdir", &e))?;
        let mut janitor = Command::new("sh");
        janitor.current_dir(&above).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let script = "cat; for turn in $(seq 300); do rmdir $1/*/*/ $1/*/ $1; [ -d $1 ] || exit; sleep 0.1; done";
        let janitor = janitor.args(["-c", script, "sh", &name]).spawn().map_err(|e| failed("sh", &e))?;
        let units = Units { _janitor: janitor };
        let pid = std::process::id().to_string();
        fs::write(above.join(&name).join("cgroup.procs"), pid).map_err(|e| failed("cgroup.procs", &e))?;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).map_err(|e| failed("unshare", &e))?;
        let none = None::<&str>;
        mount(Some("cgroup2"), GROUPS, Some("cgroup2"), MsFlags::empty(), none).map_err(|e| failed("mount", &e))?;
        Ok(units)
    }

    /// Runs `body`; what it starts belongs to a unit such as `ssh.service`.
    pub fn within<T>(&self, unit: &str, body: impl FnOnce() -> T) -> T {
        let move_to = |group: PathBuf| {
            fs::write(group.join("cgroup.procs"), std::process::id().to_string()).expect("a process can be moved");
        };
        let group = Path::new(GROUPS).join("system.slice").join(unit);
        fs::create_dir_all(&group).expect("a group of ours");
        move_to(group);
        let done = body();
        move_to(GROUPS.into());
        done
    }
}

/// Entries for a journal file, in the journal's export format.
#[derive(Default)]
pub struct Entries {
    text: Vec<u8>,
    count: u64,
}

impl Entries {
    /// None yet.
    pub fn new() -> Entries {
        Entries::default()
    }

    /// Adds an entry of that instant (microseconds since the Unix epoch), from the host `mx`.
    pub fn add(&mut self, micros: i64, fields: &[(&str, &[u8])]) {
        self.count += 1;
        let head = format!(
            "__REALTIME_TIMESTAMP={micros}\n__MONOTONIC_TIMESTAMP={}\n_BOOT_ID=b02d05046cb24f4c83320be8b09d6706\n_HOSTNAME=mx\n_MACHINE_ID={MACHINE}\n",
            self.count * 1000,
        );
        self.text.extend(head.as_bytes());
        for (name, value) in fields {
            self.text.extend(name.as_bytes());
            if value.contains(&b'\n') || std::str::from_utf8(value).is_err() {
                self.text.push(b'\n');
                self.text.extend((value.len() as u64).to_le_bytes());
            } else {
                self.text.push(b'=');
            }
            self.text.extend(*value);
            self.text.push(b'\n');
        }
        self.text.push(b'\n');
    }

    /// Writes them into a file that systemd-journal-remote makes; it may make more beside it (`NAME@….journal`).
    pub fn write(self, file: &Path) {
        let mut command = Command::new(Path::new(LIB).join("systemd-journal-remote"));
        command.arg("-o").arg(file).arg("-").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("systemd-journal-remote can be started");
        child.stdin.take().expect("a pipe").write_all(&self.text).expect("it reads everything");
        assert!(child.wait().expect("it ends").success());
    }
}
