//! The test kit: a network of its own for each test, a daemon in it, attackers, log writers, and what they can observe.
//!
//! A test reads
//! ```no_run
//! # use banset_integration::{in_netns, Daemon, Lab};
//! # fn main() {}
//! #[test]
//! fn an_attacker_is_kept_out() {
//!     in_netns("an_attacker_is_kept_out", || {
//!         let lab = Lab::new();
//!         let daemon = Daemon::start(&lab, "[jail.sshd]\nenabled = true");
//!         // …
//!     });
//! }
//! ```
//! and runs in parallel with all others, without root where the machine allows user namespaces. Where it does not, the test
//! prints SKIPPED; with `BANSET_REQUIRE=1` (CI) it fails instead.

mod clients;
mod daemon;
mod frame;
mod journal;
mod lab;
mod logs;
mod peer;
mod probe;
mod services;
mod site;

pub use clients::{Attempt, Client};
pub use daemon::{Answer, Daemon, Tracing, binary};
pub use frame::{Wire, udp_frame};
pub use journal::{Entries, Journald, Units, have_journal};
pub use lab::{Echo, Lab, Monitor, elements, expires, nft, nft_json, nft_try, shape, wait_banned};
pub use logs::{Log, Stamp, wrong_password};
pub use peer::{Doors, Flow, Proto, Seen, knock};
pub use probe::Probe;
pub use services::{Server, in_server};
pub use site::{Site, Wiring};

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Set in the process that runs inside the namespaces.
const INSIDE: &str = "BANSET_TEST_INSIDE";

/// Runs the body of the test called `name` (its path inside the crate: `module::name` within a module) in network and mount
/// namespaces of its own (and a user namespace, unless started by root), where it is root, `/run` is empty and loopback is
/// up. The test binary starts itself again for exactly this test. Lines it prints that begin with `| ` are a table, and shown.
///
/// # Panics
/// If the body fails, with everything it printed; if no test has that name; and, with `BANSET_REQUIRE=1`, where the
/// machine refuses namespaces.
pub fn in_netns(name: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        banset::netns::settle().expect("a fresh namespace can be set up");
        body();
        return;
    }
    let mut command = Command::new(std::env::current_exe().expect("a test knows its own file"));
    command.args(["--exact", name, "--nocapture", "--include-ignored", "--test-threads=1"]).env(INSIDE, "1").stdin(Stdio::null());
    banset::netns::isolate(&mut command);
    match command.output() {
        Err(refused) => skip(name, &format!("no namespaces here: {refused}")),
        Ok(output) => {
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "in its namespace, {name}: {}\n{out}{err}", output.status);
            assert!(out.contains("1 passed"), "no test is called {name}: in_netns runs nothing\n{out}");
            // A test that skipped itself inside says so outside, too; and a table is for people to read. The harness ends no line
            // before the first of them.
            let out = out.replace(&format!("test {name} ... "), "");
            let shown = |line: &&str| line.starts_with("SKIPPED") || line.starts_with("| ");
            say(&out.lines().chain(err.lines()).filter(shown).collect::<Vec<_>>().join("\n"));
        }
    }
}

/// Runs a benchmark in namespaces of its own, as [`in_netns`] does a test. `cargo bench` passes `--bench`; whoever else starts the program,
/// as `cargo test --benches` does, only sees that it starts.
pub fn bench(name: &str, measure: impl FnOnce()) -> ExitCode {
    if !std::env::args().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    if std::env::var_os(INSIDE).is_some() {
        banset::netns::settle().expect("a fresh namespace can be set up");
        measure();
        return ExitCode::SUCCESS;
    }
    let mut command = Command::new(std::env::current_exe().expect("a program knows its own file"));
    command.arg("--bench").env(INSIDE, "1");
    banset::netns::isolate(&mut command);
    match command.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(refused) => {
            say(&format!("SKIPPED {name}: no namespaces here: {refused}"));
            ExitCode::FAILURE
        }
    }
}

/// Says loudly that a test could not run here, and why; fails where CI demands that it runs (`BANSET_REQUIRE=1`).
pub fn skip(name: &str, why: &str) {
    say(&format!("SKIPPED {name}: {why}"));
    assert!(std::env::var_os("BANSET_REQUIRE").is_none(), "{name} must run here (BANSET_REQUIRE is set), but: {why}");
}

/// Says loudly that a part of a test could not run because this kernel has not what it is about. CI takes the kernel that it finds.
pub fn lacking(name: &str, why: &str) {
    say(&format!("SKIPPED {name}: {why}"));
}

/// Prints lines that are seen although the test passes: the harness keeps what `println!` says to itself.
fn say(lines: &str) {
    if !lines.is_empty() {
        let _ = std::io::stderr().write_all(format!("\n{lines}\n").as_bytes());
    }
}

/// Whether `program` is installed; else the test called `name` is [skipped](skip).
pub fn have(name: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(program).is_file());
    if !found {
        skip(name, &format!("{program} is not installed"));
    }
    found
}

/// How long something may take that must happen: on a machine that also compiles, everything takes its time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `is_so`, asking every 10 ms; returns how long it took.
///
/// # Panics
/// After [`PATIENCE`], naming `what`.
#[track_caller]
pub fn wait_until(what: &str, is_so: impl FnMut() -> bool) -> Duration {
    wait_for(PATIENCE, what, is_so)
}

/// As [`wait_until`], with another limit.
#[track_caller]
pub fn wait_for(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    start.elapsed()
}

/// Both texts, and the lines in which they differ, when they do.
///
/// # Panics
/// If they differ.
#[track_caller]
pub fn assert_same_text(what: &str, left: &str, right: &str) {
    if left.trim_end() == right.trim_end() {
        return;
    }
    let mut report = format!("{what}: not the same\n");
    let (mut l, mut r) = (left.trim_end().lines(), right.trim_end().lines());
    loop {
        match (l.next(), r.next()) {
            (None, None) => break,
            (a, b) if a == b => writeln!(report, "    {}", a.unwrap_or_default()).expect("a string takes any text"),
            (a, b) => {
                a.iter().for_each(|a| writeln!(report, "  - {a}").expect("a string takes any text"));
                b.iter().for_each(|b| writeln!(report, "  + {b}").expect("a string takes any text"));
            }
        }
    }
    panic!("{report}");
}
