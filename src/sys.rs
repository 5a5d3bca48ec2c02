//! The one file with unsafe code: system calls that no safe crate wraps.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

/// Starts `command` in network and mount namespaces of its own, with an empty `/run`; it dies with the thread that starts it.
/// Who is not root, or root without CAP_SYS_ADMIN, gets a user namespace around them and is root there. Root proper goes
/// without: some options (SO_RCVBUFFORCE) ask for privileges in the machine's own user namespace, and a daemon under test
/// shall have there what it has in service.
///
/// The work is done between fork and exec because unshare(2) refuses CLONE_NEWUSER to a process with several threads
/// (EINVAL), which every test binary is. A refusal comes back from `spawn` as the error of the step that failed.
#[allow(unsafe_code)]
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
#[allow(unsafe_code)]
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: one prctl(2), which is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
}

/// Writes `text` into a file below /proc with one write(2), as the maps of a user namespace demand.
fn write_proc(path: &str, text: &str) -> io::Result<()> {
    let file = nix::fcntl::open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(&file, text.as_bytes())?;
    Ok(())
}
