//! The engine's only way to start a program: a process of its own, without capabilities, that starts `journalctl` when it is told.
//!
//! The daemon starts it (this binary again, `banset spawner`) before its threads and only where a journal may be read; with file
//! sources alone no process is ever started. The two talk over a socket pair that keeps datagrams apart: a request names a number
//! and the program's arguments and brings along what becomes its standard output and error. When the daemon ends, however it
//! does, the spawner reads the end of the socket and ends too, and its children die with it.

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

use crate::sys;
use crate::terms::plain;

/// The program it starts, and no other.
const PROGRAM: &str = "journalctl";
/// A request, and an answer, fits in this.
const LONGEST: usize = 64 * 1024;
/// What is taken of its complaints.
const COMPLAINT: usize = 4096;
/// What a pipe holds, where the kernel lets it: fewer switches to and fro while much is read.
const PIPE: libc::c_int = 1 << 20;

/// The daemon's end. Clones share the process.
#[derive(Clone, Default)]
pub struct Spawner {
    inner: Arc<Mutex<Option<Inner>>>,
}

struct Inner {
    socket: OwnedFd,
    process: Child,
    next: u64,
}

/// What a program had to say.
pub struct Collected {
    /// What it printed, where it was not handed over.
    pub out: Vec<u8>,
    /// What it complained.
    pub err: Vec<u8>,
    /// Whether it ended; else it was given up.
    pub ended: bool,
}

/// A program that runs. Dropping this ends it.
pub struct Running {
    /// What it prints.
    pub out: OwnedFd,
    /// What it complains.
    pub err: OwnedFd,
    number: u64,
    spawner: Spawner,
}

impl Spawner {
    /// Starts the process unless it runs.
    ///
    /// # Errors
    /// Why it can not be started.
    pub fn ready(&self) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.is_none() {
            *inner = Some(Inner::start()?);
        }
        Ok(())
    }

    /// Whether it was started; where no journal may be read it never is.
    pub fn is_ready(&self) -> bool {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Starts `journalctl` with these arguments.
    ///
    /// # Errors
    /// Why it does not run.
    pub fn run(&self, arguments: &[String]) -> io::Result<Running> {
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC);
        let ((out, its_out), (err, its_err)) = (pipe()?, pipe()?);
        let _ = fcntl(&out, FcntlArg::F_SETPIPE_SZ(PIPE));
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.as_mut().is_some_and(|inner| !matches!(inner.process.try_wait(), Ok(None))) {
            *inner = None;
        }
        let one = match &mut *inner {
            Some(one) => one,
            none => none.insert(Inner::start()?),
        };
        let number = one.next;
        one.next += 1;
        let request = [&["start".to_owned(), number.to_string()], arguments].concat().join("\0");
        if request.len() > LONGEST {
            return Err(io::Error::other(format!("its arguments are {} bytes long, more than {LONGEST}", request.len())));
        }
        let pipes = [its_out.as_raw_fd(), its_err.as_raw_fd()];
        let answer = one.send(request.as_bytes(), &pipes).and_then(|()| {
            let mut answer = vec![0; LONGEST];
            let (length, _) = sys::receive(one.socket.as_fd(), &mut answer)?;
            Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        });
        match answer {
            Ok(answer) if answer == "started" => Ok(Running { out, err, number, spawner: self.clone() }),
            Ok(answer) if !answer.is_empty() => Err(io::Error::other(answer)),
            gone => {
                *inner = None;
                Err(io::Error::other(format!(
                    "the spawner is gone{}",
                    gone.err().map_or_else(String::new, |e| format!(": {}", plain(&e)))
                )))
            }
        }
    }

    fn stop(&self, number: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = &mut *inner {
            let _ = one.send(format!("stop\0{number}").as_bytes(), &[]);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.spawner.stop(self.number);
    }
}

impl Inner {
    fn start() -> io::Result<Inner> {
        let (ours, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let start = |program: &std::path::Path| {
            let mut command = Command::new(program);
            command.arg0("banset").arg("spawner").env_clear().current_dir("/").process_group(0);
            if let Some(path) = std::env::var_os("PATH") {
                command.env("PATH", path);
            }
            command.stdin(its.try_clone()?).stdout(Stdio::null()).spawn()
        };
        // What runs now, even if an upgrade has put another file in its place.
        let process = start(std::path::Path::new("/proc/self/exe")).or_else(|_| start(&std::env::current_exe()?))?;
        Ok(Inner { socket: ours, process, next: 0 })
    }

    fn send(&self, bytes: &[u8], descriptors: &[std::os::fd::RawFd]) -> io::Result<()> {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(self.socket.as_raw_fd(), &[io::IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }
}

impl Running {
    /// Everything it prints and complains until it ends, at most `most` bytes of each and for at most so long.
    pub fn collect(&self, most: usize, patience: Duration) -> Collected {
        let mut all = [Vec::new(), Vec::new()];
        let ended = self.drain(patience, |at, bytes| {
            let room = most.saturating_sub(all[at].len());
            all[at].extend_from_slice(&bytes[..bytes.len().min(room)]);
            true
        });
        let [out, err] = all;
        Collected { out, err, ended }
    }

    /// Hands over what it prints until it ends, for at most so long, or until `each` has enough and says `false`; gives what it
    /// complained, and whether it ended.
    pub fn pour(&self, patience: Duration, mut each: impl FnMut(&[u8]) -> bool) -> Collected {
        let mut err = Vec::new();
        let ended = self.drain(patience, |at, bytes| {
            if at == 0 {
                return each(bytes);
            }
            err.extend_from_slice(&bytes[..bytes.len().min(COMPLAINT.saturating_sub(err.len()))]);
            true
        });
        Collected { out: Vec::new(), err, ended }
    }

    /// Takes what it prints (0) and complains (1); tells whether it ended.
    fn drain(&self, patience: Duration, mut each: impl FnMut(usize, &[u8]) -> bool) -> bool {
        let end = Instant::now() + patience;
        let mut open = [true, true];
        let mut buffer = vec![0; 64 * 1024];
        while open[0] || open[1] {
            let fds = [self.out.as_fd(), self.err.as_fd()];
            let which: Vec<usize> = (0..2).filter(|at| open[*at]).collect();
            let mut polled: Vec<PollFd<'_>> = which.iter().map(|at| PollFd::new(fds[*at], PollFlags::POLLIN)).collect();
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut polled, timeout) {
                Ok(1..) if !left.is_zero() => {}
                Err(Errno::EINTR) => continue,
                _ => return false,
            }
            let ready: Vec<usize> = which.iter().zip(&polled).filter(|(_, p)| p.any() == Some(true)).map(|(at, _)| *at).collect();
            for at in ready {
                match nix::unistd::read(fds[at], &mut buffer) {
                    Ok(0) | Err(_) => open[at] = false,
                    Ok(n) if each(at, &buffer[..n]) => {}
                    Ok(_) => return false,
                }
            }
        }
        true
    }
}

/// `banset spawner`: serves on standard input until that ends.
///
/// # Errors
/// Why it can not.
pub fn serve() -> Result<(), String> {
    sys::renounce().map_err(|e| format!("spawner: cannot give up capabilities: {e}"))?;
    let input = io::stdin();
    let failed = |e: io::Error| format!("spawner: {}", plain(&e));
    // A child that ends wakes us, so that none stays behind as a zombie.
    let (mut ended, ends) = UnixStream::pair().map_err(failed)?;
    ended.set_nonblocking(true).map_err(failed)?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, ends).map_err(failed)?;
    let mut children: HashMap<u64, Child> = HashMap::new();
    let mut message = vec![0; LONGEST];
    loop {
        let mut polled = [PollFd::new(input.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::NONE).is_err() {
            continue;
        }
        let asked = polled[0].any() == Some(true);
        let _ = ended.read(&mut [0; 64]);
        children.retain(|_, child| matches!(child.try_wait(), Ok(None)));
        if !asked {
            continue;
        }
        let Ok((length, pipes)) = sys::receive(input.as_fd(), &mut message) else { return Ok(()) };
        if length == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&message[..length]).into_owned();
        let mut words = text.split('\0');
        let (verb, number) = (words.next(), words.next().and_then(|number| number.parse().ok()));
        match (verb, number) {
            (Some("start"), Some(number)) => {
                let answer = match start(words, pipes) {
                    Ok(child) => {
                        children.insert(number, child);
                        "started".to_owned()
                    }
                    Err(e) if e.kind() == io::ErrorKind::NotFound => format!("{PROGRAM} is not installed"),
                    Err(e) => format!("cannot start {PROGRAM}: {}", plain(&e)),
                };
                if nix::sys::socket::send(input.as_raw_fd(), answer.as_bytes(), MsgFlags::MSG_NOSIGNAL).is_err() {
                    return Ok(());
                }
            }
            (Some("stop"), Some(number)) => {
                if let Some(mut child) = children.remove(&number) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
            _ => {}
        }
    }
}

fn start<'a>(arguments: impl Iterator<Item = &'a str>, pipes: Vec<OwnedFd>) -> io::Result<Child> {
    let Ok([out, err]) = <[OwnedFd; 2]>::try_from(pipes) else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(Stdio::null()).stdout(out).stderr(err).env_clear().env("LC_ALL", "C.UTF-8");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    sys::die_with_parent(&mut command);
    command.spawn()
}

/// Whether the program is installed, so that a machine without journald pays nothing.
pub fn installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path).any(|directory| directory.join(PROGRAM).is_file())
}
