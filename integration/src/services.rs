//! A server with real daemons: the programs a distribution ships, on the distribution's configuration, writing their own logs.
//!
//! [`in_server`] gives a test the network of a [`Lab`], and a [`Server`] in it: a root folder with Debian's daemons (see
//! `root.rs`), shared read-only by all tests, with an overlay on top that the test may write to and that vanishes with it;
//! a process tree of its own, which ends with the test; and its `/var/log` in the place where shipped jails look for it. What
//! the daemons logged in the last run lies in `target/servers/logs/TEST`, for whoever brings the samples of filters up to date.

mod root;

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;

use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use crate::{Answer, Lab, PATIENCE, in_netns, skip, wait_for};

/// Runs the body of the test called `name` as [`in_netns`] does, with a [`Lab`] and a [`Server`]. Debian's daemons change to
/// accounts of their own, which takes root; and the first time packages are downloaded, which takes a network. Without these
/// the test is [skipped](skip).
///
/// # Panics
/// As [`in_netns`].
pub fn in_server(name: &str, body: impl FnOnce(&Lab, &Server)) {
    if !nix::unistd::geteuid().is_root() {
        return skip(name, "real daemons change to accounts of their own, and only root can: run it as root");
    }
    match root::root() {
        Err(why) => skip(name, &format!("Debian's daemons are not to be had: {why}")),
        Ok(root) => in_netns(name, || match Server::boot(root, name) {
            Err(why) => skip(name, &why),
            Ok(server) => body(&Lab::new(), &server),
        }),
    }
}

/// A running server: a root folder, and the process tree in it.
pub struct Server {
    dir: PathBuf,
    /// Where the logs are left.
    kept: PathBuf,
    /// The process tree lives as long as nobody closes this.
    _life: ChildStdin,
    init: Child,
    tree: File,
    started: Mutex<Vec<(String, Child)>>,
}

impl Server {
    fn boot(root: &Path, name: &str) -> Result<Server, String> {
        let dir = PathBuf::from("/run/server");
        let made = |what: &str, result: nix::Result<()>| result.map_err(|e| format!("cannot mount {what} for real daemons: {e}"));
        for sub in ["server", "over/upper", "over/work"] {
            std::fs::create_dir_all(Path::new("/run").join(sub)).map_err(|e| format!("/run/{sub}: {e}"))?;
        }
        let layers = format!("lowerdir={},upperdir=/run/over/upper,workdir=/run/over/work", root.display());
        let none = None::<&str>;
        made("an overlay", nix::mount::mount(Some("overlay"), &dir, Some("overlay"), MsFlags::empty(), Some(layers.as_str())))?;
        for (path, options) in [("dev", "mode=0755"), ("run", "mode=0755"), ("tmp", "mode=1777")] {
            made(path, nix::mount::mount(Some("tmpfs"), &dir.join(path), Some("tmpfs"), MsFlags::MS_NOSUID, Some(options)))?;
        }
        for node in ["null", "zero", "full", "random", "urandom", "tty"] {
            let (from, to) = (Path::new("/dev").join(node), dir.join("dev").join(node));
            File::create(&to).map_err(|e| format!("{}: {e}", to.display()))?;
            made(node, nix::mount::mount(Some(&from), &to, none, MsFlags::MS_BIND, none))?;
        }
        for folder in ["dev/pts", "dev/shm", "run/sshd", "run/lock", "run/vsftpd/empty", "run/proftpd"] {
            std::fs::create_dir_all(dir.join(folder)).map_err(|e| format!("{folder}: {e}"))?;
        }
        let pts = Some("newinstance,ptmxmode=0666");
        made("devpts", nix::mount::mount(Some("devpts"), &dir.join("dev/pts"), Some("devpts"), MsFlags::empty(), pts))?;
        std::os::unix::fs::symlink("pts/ptmx", dir.join("dev/ptmx")).map_err(|e| e.to_string())?;
        // Where the shipped jails look for logs.
        made("/var/log", nix::mount::mount(Some(&dir.join("var/log")), "/var/log", none, MsFlags::MS_BIND, none))?;

        let named = nix::sched::unshare(CloneFlags::CLONE_NEWUTS).and_then(|()| nix::unistd::sethostname("mx"));
        named.map_err(|e| format!("no host name of its own: {e}"))?;

        // The first process reads nothing for as long as we live; when it ends, the kernel ends all others of its tree.
        let first = || {
            nix::sched::unshare(CloneFlags::CLONE_NEWPID)?;
            Command::new("chroot").arg(&dir).arg("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()
        };
        let spawned: std::io::Result<Child> = std::thread::scope(|scope| scope.spawn(first).join().expect("it does not panic"));
        let mut init = spawned.map_err(|e| format!("no process tree of its own: {e}"))?;
        let tree = File::open(format!("/proc/{}/ns/pid", init.id())).map_err(|e| e.to_string())?;
        let life = init.stdin.take().expect("it was piped");
        let kept = root.with_file_name("logs").join(name);
        let server = Server { dir, kept, _life: life, init, tree, started: Mutex::default() };
        let proc = server.within(|| Answer::of(Command::new("mount").args(["-t", "proc", "proc"]).arg(server.dir.join("proc"))));
        if proc.code == 0 { Ok(server) } else { Err(format!("cannot mount proc for real daemons: {}", proc.err)) }
    }

    /// A path of the server's, as the test sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path.trim_start_matches('/'))
    }

    /// Writes a file of the server's, for example a configuration.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a folder of the server's");
        std::fs::write(path, text).expect("a file of the server's");
    }

    /// Appends to a file of the server's.
    pub fn append(&self, path: &str, text: &str) {
        let file = File::options().append(true).open(self.path(path));
        file.and_then(|mut file| file.write_all(text.as_bytes())).unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// What a file of the server's holds; nothing, if it is not there.
    pub fn read(&self, path: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path(path)).unwrap_or_default()).into_owned()
    }

    /// A command in the server's root folder, without the test's environment. It belongs to the calling thread's network.
    pub fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.dir).args(program).stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("TZ", "UTC");
        command
    }

    /// Runs a command of the server's to its end.
    pub fn run(&self, program: &[&str]) -> Answer {
        self.within(|| Answer::of(&mut self.command(program)))
    }

    /// Starts a daemon that stays in the foreground. What it prints is shown when the test fails.
    pub fn start(&self, program: &[&str]) {
        let name = Path::new(program[0]).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let out = File::options().create(true).append(true).open(self.printed(&name)).expect("a file for what a daemon prints");
        let both = out.try_clone().expect("a descriptor can be doubled");
        let mut command = self.command(program);
        command.stdout(out).stderr(both);
        let child = self.within(|| command.spawn()).unwrap_or_else(|e| panic!("{name}: {e}"));
        self.started.lock().expect("nobody panicked holding it").push((name, child));
    }

    /// Has the server's programs log to a journald that runs beside it.
    pub fn log_to_journal(&self) {
        let socket = self.path("/dev/log");
        File::create(&socket).expect("a place for the socket");
        let none = None::<&str>;
        nix::mount::mount(Some("/run/systemd/journal/dev-log"), &socket, none, MsFlags::MS_BIND, none)
            .expect("journald's socket can be shown in the server");
    }

    /// Starts Debian's rsyslogd on Debian's configuration.
    pub fn start_syslog(&self) {
        self.start(&["/usr/sbin/rsyslogd", "-n", "-i", "/run/rsyslogd.pid"]);
        self.wait("the syslog socket is there", || self.path("/dev/log").exists());
    }

    /// Waits until something listens on a TCP port over IPv4 (and so, with daemons that were told to, over IPv6).
    #[track_caller]
    pub fn wait_port(&self, port: u16) {
        self.wait(&format!("port {port} opens"), || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// Waits, and notices when a daemon ended meanwhile.
    ///
    /// # Panics
    /// If one did, and after [`PATIENCE`].
    #[track_caller]
    pub fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        wait_for(PATIENCE, what, || {
            for (name, child) in self.started.lock().expect("nobody panicked holding it").iter_mut() {
                let ended = child.try_wait().expect("a child can be asked");
                assert!(ended.is_none(), "{name} ended, {}: {}", ended.expect("just seen"), self.said(name));
            }
            is_so()
        });
    }

    /// What a daemon printed.
    fn said(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.printed(name)).unwrap_or_default()).into_owned()
    }

    fn printed(&self, name: &str) -> PathBuf {
        Path::new("/run/over").join(format!("{name}.out"))
    }

    /// Runs `body` on a thread whose children belong to the server's process tree.
    fn within<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            nix::sched::setns(self.tree.as_fd(), CloneFlags::CLONE_NEWPID).expect("cannot enter a process tree of our own");
            body()
        };
        std::thread::scope(|scope| scope.spawn(enter).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // All others of its tree end with the first process, which itself ends when they have been waited for.
        let _ = self.init.kill();
        let mut started = std::mem::take(self.started.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner));
        for (_, child) in &mut started {
            let _ = child.wait();
        }
        let _ = self.init.wait();
        let failed = std::thread::panicking();
        if failed {
            started.iter().for_each(|(name, _)| eprintln!("---- {name} printed\n{}", self.said(name)));
        }
        let _ = std::fs::remove_dir_all(&self.kept);
        let (top, mut found) = (self.path("/var/log"), vec![self.path("/var/log")]);
        while let Some(path) = found.pop() {
            let Ok(below) = path.strip_prefix(&top) else { continue };
            if let Ok(folder) = std::fs::read_dir(&path) {
                found.extend(folder.flatten().map(|entry| entry.path()));
                let _ = std::fs::create_dir_all(self.kept.join(below));
            } else {
                let _ = std::fs::copy(&path, self.kept.join(below));
                if failed {
                    eprintln!("---- /var/log/{}\n{}", below.display(), self.read(&format!("/var/log/{}", below.display())));
                }
            }
        }
    }
}
