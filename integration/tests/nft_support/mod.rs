//! Kernel tests without harm: each runs in a network namespace that its own process made, and ends with it.

// Each test program uses its part of it.
#![allow(dead_code)]

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

const INSIDE: &str = "BANSET_TEST_INSIDE";

/// Runs the body of the test called `name` in a new network and mount namespace (and user namespace, unless root): the test binary is
/// started again for just this test. Where the machine does not allow that, it says so loudly, and fails if `BANSET_NO_SKIP` is set.
pub fn in_netns(name: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    for program in ["nft"] {
        if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
            return skipped(name, &format!("{program} is not installed"));
        }
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    // SAFETY: between fork and exec only system calls are made; memory was allocated before.
    unsafe {
        let maps = (format!("0 {uid} 1\n"), format!("0 {gid} 1\n"));
        command.pre_exec(move || enter(uid.is_root(), &maps));
    }
    match command.output() {
        Err(error) => skipped(name, &format!("no namespaces here: {error}")),
        Ok(output) if output.status.success() => {
            print!("{}", String::from_utf8_lossy(&output.stdout));
        }
        Ok(output) => {
            panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        }
    }
}

fn enter(root: bool, (uid_map, gid_map): &(String, String)) -> std::io::Result<()> {
    use nix::sched::{CloneFlags, unshare};
    let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if !root {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags)?;
    if !root {
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", uid_map)?;
        std::fs::write("/proc/self/gid_map", gid_map)?;
    }
    Ok(())
}

/// Says that a test did not run.
pub fn skipped(name: &str, why: &str) {
    assert!(std::env::var_os("BANSET_NO_SKIP").is_none(), "{name}: SKIPPED: {why}");
    let _ = writeln!(std::io::stderr(), "{name}: SKIPPED: {why}");
}

/// Runs nft; its output if it succeeded, its complaint if not.
pub fn try_nft(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child =
        Command::new("nft").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    if status.success() { Ok(String::from_utf8(stdout).unwrap()) } else { Err(String::from_utf8(stderr).unwrap()) }
}

/// Runs nft, which has to succeed.
pub fn nft(arguments: &[&str]) -> String {
    try_nft(arguments, "").unwrap_or_else(|complaint| panic!("nft {arguments:?}: {complaint}"))
}

/// Has nft carry out a script.
pub fn load(script: &str) {
    try_nft(&["-f", "-"], script).unwrap_or_else(|complaint| panic!("{complaint}\n{script}"));
}

/// The whole ruleset without counters and remaining times.
pub fn listing() -> String {
    nft(&["-s", "list", "ruleset"])
}
