//! The program under test: started, asked, killed, traced; its log is shown when a test fails.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use banset::control::{Request, client};

use crate::wait_until;

/// The built `banset`: `$CARGO_BIN`, or the one beside the test's own file in cargo's target directory.
///
/// # Panics
/// If there is none, naming the command that builds it.
pub fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("CARGO_BIN") {
        return named.into();
    }
    let own = std::env::current_exe().expect("a test knows its own file");
    let beside = own.ancestors().skip(1).map(|dir| dir.join("banset")).find(|file| file.is_file());
    beside.expect("the daemon is not built: run `cargo build` first, or `make test`, which does")
}

/// What a command of the client said.
#[derive(Debug)]
pub struct Answer {
    /// Its exit status; -1 if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Answer {
    /// Runs a command to its end, without standard input.
    pub fn of(command: &mut Command) -> Answer {
        let output = command.stdin(Stdio::null()).output().expect("a program of ours can be started");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Answer { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Its standard output, if it ended with exit status 0.
    ///
    /// # Panics
    /// Otherwise, with all it said.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Its standard output as JSON, if it ended with exit status 0.
    ///
    /// # Panics
    /// Otherwise, with all it said.
    #[track_caller]
    pub fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("no JSON: {e}\n{text}"))
    }
}

/// A running daemon, with its configuration, socket, state and log in the lab's directory.
/// Dropping it kills it.
pub struct Daemon {
    dir: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Writes `jails` below a `[daemon]` table into the configuration, starts the daemon in the calling thread's network namespace,
    /// and waits until it answers: then the table stands. `at` is a [`Lab`](crate::Lab), a [`Site`](crate::Site), or a directory of
    /// its own for each of several daemons. It dies with the thread that started it.
    ///
    /// # Panics
    /// If it ends, or does not answer within a minute; with its log.
    #[track_caller]
    pub fn start(at: &impl AsRef<Path>, jails: &str) -> Daemon {
        let mut daemon = Daemon::prepared(at, jails);
        daemon.start_again();
        daemon
    }

    /// As [`Daemon::start`], but does not start it yet.
    pub fn prepared(at: &impl AsRef<Path>, jails: &str) -> Daemon {
        let daemon = Daemon { dir: at.as_ref().join("banset"), child: None };
        std::fs::create_dir_all(&daemon.dir).expect("a directory for the daemon");
        daemon.configure(jails);
        daemon
    }

    /// Writes another configuration; it holds from the next start or reload.
    pub fn configure(&self, jails: &str) {
        let (socket, state) = (self.socket(), self.dir.join("state"));
        let text = format!("[daemon]\nsocket = {socket:?}\nstate_dir = {state:?}\n\n{jails}\n");
        std::fs::write(self.config(), text).expect("the configuration can be written");
    }

    /// Its main configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("banset.toml")
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("banset.sock")
    }

    /// Its process id.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().expect("the daemon runs").id() as i32)
    }

    /// The command that starts it, for tests that want to wrap or watch it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.arg("daemon").arg("-c").arg(self.config());
        self.environment(&mut command);
        command
    }

    /// Starts it (again), and waits until it answers: then the table stands.
    #[track_caller]
    pub fn start_again(&mut self) {
        let command = self.command();
        self.start_as(command);
    }

    /// Starts it by this command, made of [`Daemon::command`], and waits until it answers.
    #[track_caller]
    pub fn start_as(&mut self, mut command: Command) {
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a file for the daemon's log");
        let both = log.try_clone().expect("a descriptor can be doubled");
        command.stdin(Stdio::null()).stdout(both).stderr(log);
        banset::netns::die_with_parent(&mut command);
        self.child = Some(command.spawn().unwrap_or_else(|e| panic!("{}: {e}", binary().display())));
        // Its socket is open before the table is looked at; only the loop answers, and that comes after. A socket that a killed daemon
        // left refuses.
        wait_until("the daemon answers", || {
            let ended = self.child.as_mut().expect("just started").try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "the daemon ended: {}", ended.expect("just seen"));
            client::ask(&self.socket(), Request::Stats).is_ok()
        });
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(self.pid(), signal).expect("the daemon is there to be signalled");
    }

    /// SIGTERM, and how it ended.
    ///
    /// # Panics
    /// If it has not ended after a minute.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.ended();
    }

    /// Stops it, and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        let status = self.stop();
        assert!(status.success(), "after SIGTERM: {status}");
        self.start_again();
    }

    #[track_caller]
    fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the daemon runs");
        let mut status = None;
        wait_until("the daemon ends", || {
            status = child.try_wait().expect("a child can be asked");
            status.is_some()
        });
        status.expect("just seen")
    }

    /// Runs `banset ARGS` against this daemon.
    pub fn cli(&self, args: &[&str]) -> Answer {
        let mut command = Command::new(binary());
        command.args(args).arg("-c").arg(self.config()).arg("--socket").arg(self.socket());
        self.environment(&mut command);
        Answer::of(&mut command)
    }

    /// `banset status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.cli(&["status", "--json"]).json()
    }

    /// The jail called `name` out of `banset status --json`.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn jail(&self, name: &str) -> Value {
        let status = self.status();
        let jails = status["jails"].as_array().cloned().unwrap_or_default();
        jails.into_iter().find(|jail| jail["name"] == name).unwrap_or_else(|| panic!("no jail {name} in {status:#}"))
    }

    /// `banset banned --json`.
    #[track_caller]
    pub fn banned(&self) -> Vec<Value> {
        self.cli(&["banned", "--json"]).json().as_array().expect("an array of bans").clone()
    }

    /// The rows of `banset history ARGS --json`.
    #[track_caller]
    pub fn history(&self, args: &[&str]) -> Vec<Value> {
        // Nothing found is a negative answer, and no error.
        let answer = self.cli(&[&["history", "--json"], args].concat());
        let value: Value = serde_json::from_str(&answer.out).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
        value["history"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until the lines behind the ban of an address are read back; the ban's row, and the lines.
    #[track_caller]
    pub fn evidence(&self, address: &str) -> (Value, Vec<String>) {
        let mut row = Value::Null;
        wait_until(&format!("the lines behind {address} are read back"), || {
            let rows = self.history(&[address]);
            row = rows.into_iter().find(|row| row["what"] == "ban" && row["evidence_pending"] == false).unwrap_or_default();
            !row.is_null()
        });
        let lines = row["evidence"].as_array().expect("an array").iter();
        let lines = lines.map(|line| line["line"].as_str().expect("text").to_owned()).collect();
        (row, lines)
    }

    /// Waits until every jail reads its source.
    #[track_caller]
    pub fn wait_running(&self) {
        wait_until("every jail runs", || {
            self.status()["jails"].as_array().is_some_and(|jails| jails.iter().all(|jail| jail["state"] == "running"))
        });
    }

    /// What it logged so far, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Waits until it logged `text`.
    #[track_caller]
    pub fn wait_log(&self, text: &str) {
        wait_until(&format!("the daemon logs {text:?}"), || self.log().contains(text));
    }

    /// Waits until this jail's totals say that so many failures were counted; more must not be.
    #[track_caller]
    pub fn wait_failures(&self, jail: &str, total: u64) {
        let mut counted = 0;
        wait_until(&format!("[{jail}] {total} failures"), || {
            counted = self.jail(jail)["failures"]["total"].as_u64().unwrap_or(0);
            counted >= total
        });
        assert_eq!(counted, total, "[{jail}] failures");
    }

    /// Traces the running daemon with strace until [`Tracing::calls`] is asked.
    #[track_caller]
    pub fn trace(&self, calls: &str) -> Tracing {
        Tracing::attach(self.pid(), calls, self.dir.join("strace.txt"))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// Logs are written in UTC; nothing of the machine's own installation or of the caller's environment comes in.
    fn environment(&self, command: &mut Command) {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        command.env_clear().env("PATH", path).env("TZ", "UTC").env("RUST_BACKTRACE", "1").current_dir(&self.dir);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- the daemon's log\n{}----", self.log());
        }
    }
}

/// strace, attached to every thread of a process.
pub struct Tracing {
    child: Child,
    file: PathBuf,
}

impl Tracing {
    #[track_caller]
    fn attach(pid: Pid, calls: &str, file: PathBuf) -> Tracing {
        let said = file.with_extension("err");
        let err = File::create(&said).expect("a file for strace");
        let mut command = Command::new("strace");
        command.args(["-f", "-yy", "-e"]).arg(format!("trace={calls}")).arg("-o").arg(&file).arg("-p").arg(pid.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(err);
        banset::netns::die_with_parent(&mut command);
        let mut tracing = Tracing { child: command.spawn().expect("strace is installed"), file };
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        wait_until("strace attaches", || {
            let ended = tracing.child.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "strace cannot attach: {}", text(&said));
            text(&said).contains("attached")
        });
        tracing
    }

    /// Lets go of the process and returns what it called since, one line a call.
    pub fn calls(mut self) -> Vec<String> {
        let _ = nix::sys::signal::kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT);
        let _ = self.child.wait();
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        text.lines().filter(|line| !line.contains(" +++ ") && !line.contains(" --- ")).map(str::to_owned).collect()
    }

    /// As [`Tracing::calls`], of `execve`, `fork` and the like: only the calls that made a process, not those that made a thread.
    pub fn processes(self) -> Vec<String> {
        // The second half of a call that was interrupted ("resumed") repeats none of its flags.
        self.calls().into_iter().filter(|call| !call.contains("CLONE_THREAD") && !call.contains(" resumed>")).collect()
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
