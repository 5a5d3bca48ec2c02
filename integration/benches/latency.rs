//! How long after a log line was written its address is in the kernel's set: from quiet, one ban at a time.
//!
//! `make bench` prints it. The clock starts before the write(2) of the line that reaches maxretry and stops when the kernel's own
//! event about the element is heard, so the number includes this listener's wake-up. The bar: median under 0.5 ms, 99 % under 5 ms.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use banset::netns::Commits;
use banset_integration::{Daemon, Lab, Log, Stamp};

/// How many bans are measured, and the quiet before each: long enough for the daemon to sleep.
const BANS: u32 = 500;
const QUIET: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    banset_integration::bench("latency", measure)
}

fn measure() {
    let lab = Lab::new();
    let mut log = Log::create(lab.dir().join("mail"));
    let jail = format!(
        "[jail.smtp-auth]\nenabled = true\nfilter = \"sendmail-auth\"\nlogpath = {:?}\nport = \"smtp\"\nmaxretry = 1\nbantime = \"1h\"\n",
        log.path()
    );
    let daemon = Daemon::start(&lab, &jail);
    daemon.wait_running();
    let commits = Commits::listen().expect("a netlink socket");
    let mut took: Vec<Duration> = Vec::new();
    let mut missed = 0;
    for n in 0..BANS {
        std::thread::sleep(QUIET);
        let address = format!("198.18.{}.{}", n / 250, 1 + n % 250);
        let line = format!(
            "{} lory sendmail[1558]: s07BPgwK001558: AUTH failure (LOGIN): authentication failure (-13) SASL(-13): \
             authentication failure: checkpass failed, relay=[{address}]",
            Stamp::now().syslog()
        );
        commits.forget();
        let start = Instant::now();
        log.line(&line);
        match commits.wait("smtp-auth-v4", address.parse().expect("an address"), start) {
            Some(after) => took.push(after),
            None => missed += 1,
        }
    }
    took.sort();
    assert!(missed == 0, "{missed} of {BANS} lines did not become a ban within half a minute");
    let at = |share: f64| took[((took.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    println!("log line to kernel element, {BANS} bans from quiet (the bar: median < 0.5 ms, 99 % < 5 ms)");
    println!("   median {:.3} ms   90 % {:.3} ms   99 % {:.3} ms   max {:.3} ms", at(0.5), at(0.9), at(0.99), at(1.0));
}
