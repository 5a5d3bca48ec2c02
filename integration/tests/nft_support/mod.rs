//! Kernel tests without harm: each runs in a network namespace that its own process made, and ends with it.

// Each test program uses its part of it.
#![allow(dead_code)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

pub use banset_integration::nft;

/// The kit's, for tests that need nft too.
pub fn in_netns(name: &str, body: impl FnOnce()) {
    if banset_integration::have(name, "nft") {
        banset_integration::in_netns(name, body);
    }
}

/// Runs nft; its output if it succeeded, its complaint if not.
pub fn try_nft(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child =
        Command::new("nft").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    if status.success() { Ok(String::from_utf8(stdout).unwrap()) } else { Err(String::from_utf8(stderr).unwrap()) }
}

/// Has nft carry out a script.
pub fn load(script: &str) {
    try_nft(&["-f", "-"], script).unwrap_or_else(|complaint| panic!("{complaint}\n{script}"));
}

/// The whole ruleset without counters and remaining times.
pub fn listing() -> String {
    nft(&["-s", "list", "ruleset"])
}
