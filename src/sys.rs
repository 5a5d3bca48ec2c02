//! The one file with unsafe code: system calls that no safe crate wraps.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::Mode;
use nix::unistd::Gid;

/// `setsockopt` with an integer, for options that nix does not know.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the pointer is to a live integer, the length is its size, and the descriptor is open as long as it is borrowed.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t)
    };
    Errno::result(result).map(drop)
}

/// asm-generic/socket.h; the libc crate does not know it.
const SO_PEERGROUPS: libc::c_int = 59;

/// The supplementary groups of the process at the other end of a Unix socket, as they were when it connected (`SO_PEERGROUPS`, Linux 4.13).
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> Result<Vec<Gid>, Errno> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let room = groups.len() * size_of::<libc::gid_t>();
        let mut length = libc::socklen_t::try_from(room).map_err(|_| Errno::ERANGE)?;
        // SAFETY: the kernel writes at most `length` bytes into the buffer and how many there are into `length`; both live through the call.
        let result = unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut length)
        };
        let count = length as usize / size_of::<libc::gid_t>();
        match Errno::result(result) {
            Ok(_) => return Ok(groups.into_iter().take(count).map(Gid::from_raw).collect()),
            // More than there was room for: it says how many.
            Err(Errno::ERANGE) if count > groups.len() => groups.resize(count, 0),
            Err(e) => return Err(e),
        }
    }
}

/// Attaches a classic BPF program to a socket (`SO_ATTACH_FILTER`): it returns how many bytes of a datagram to keep, 0 for none.
pub(crate) fn attach_filter(fd: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> Result<(), Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies `len` instructions from the slice, which outlives the call, and checks the program itself.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

/// Starts `command` in network and mount namespaces of its own, with an empty `/run`; it dies with the thread that starts it.
/// Who is not root, or root without CAP_SYS_ADMIN, gets a user namespace around them and is root there. Root proper goes
/// without: some options (SO_RCVBUFFORCE) ask for privileges in the machine's own user namespace, and a daemon under test
/// shall have there what it has in service.
///
/// The work is done between fork and exec because unshare(2) refuses CLONE_NEWUSER to a process with several threads
/// (EINVAL), which every test binary is. A refusal comes back from `spawn` as the error of the step that failed.
pub fn unshare_before_exec(command: &mut Command) {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let (uid_map, gid_map) = (format!("0 {uid} 1\n"), format!("0 {gid} 1\n"));
    let step = move || -> io::Result<()> {
        let private = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
        if !uid.is_root() || nix::sched::unshare(private).is_err() {
            nix::sched::unshare(private | CloneFlags::CLONE_NEWUSER)?;
            write_proc("/proc/self/setgroups", "deny")?;
            write_proc("/proc/self/uid_map", &uid_map)?;
            write_proc("/proc/self/gid_map", &gid_map)?;
        }
        let none = None::<&str>;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        nix::mount::mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))?;
        Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes plain system calls through
    // nix, whose short paths live on the stack, and formats nothing: its strings were made above.
    unsafe { command.pre_exec(step) };
}

/// Makes the started process die (SIGKILL) with the thread that starts it, so that an interrupted demo or test leaves no
/// daemon behind.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: one prctl(2), which is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
}

/// Gives up every capability, for this process and whatever it starts: with `no_new_privs` set, not even root's next exec brings
/// one back (capabilities(7), "Capabilities and execution of programs by root").
pub(crate) fn renounce() -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    /// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h: two records of effective, permitted and inheritable.
    const VERSION: u32 = 0x2008_0522;
    nix::sys::prctl::set_no_new_privs()?;
    let (header, none) = (Header { version: VERSION, pid: 0 }, [[0_u32; 3]; 2]);
    // SAFETY: capset(2) reads the header and, for this version, two records of three u32 each; both live through the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Receives a datagram of at most `into.len()` bytes with the descriptors sent along (`SCM_RIGHTS`), which are closed on exec.
pub(crate) fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut room = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let mut parts = [io::IoSliceMut::new(into)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows their numbers.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, descriptors))
}

/// Writes `text` into a file below /proc with one write(2), as the maps of a user namespace demand.
fn write_proc(path: &str, text: &str) -> io::Result<()> {
    let file = nix::fcntl::open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(&file, text.as_bytes())?;
    Ok(())
}

/// Whether the kernel takes the system's clock for synchronized (adjtimex(2)); `None` if it does not say.
pub fn clock_is_synchronized() -> Option<bool> {
    // SAFETY: `timex` is plain numbers, for which zeroes are a value; modes 0 only reads, into memory that outlives the call.
    let state = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut timex)
    };
    (state >= 0).then_some(state != libc::TIME_ERROR)
}
