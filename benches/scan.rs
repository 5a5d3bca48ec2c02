//! How fast lines are judged: a million lines of mixed mail log, of which 1 % and 30 % match, by one, six and twenty filters.
//!
//! `cargo bench --bench scan` prints the CPU time of one thread (best of five), per line and per byte. The log is generated, the same
//! every time. What the file system and the window of a jail cost is not in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use banset::filter::{Filter, Found, Options, Scanner, When, definition, shipped};
use banset::terms::Time;
use nix::time::{ClockId, clock_gettime};

const LINES: u32 = 1_000_000;
const CHUNK: usize = 256 << 10;
/// 2026-01-15T12:00:00Z
const NOW: Time = Time::from_secs(1_768_478_400);

fn main() {
    // `cargo test --benches` runs this too: a small log will do there.
    let lines = if std::env::args().any(|a| a == "--bench") { LINES } else { 10_000 };
    let six = ["qmail-smtp", "vpopmail", "dovecot", "sendmail-auth", "roundcube", "qmailadmin"];
    println!("{:<28} {:>6} {:>10} {:>9} {:>9} {:>9}", "", "match", "CPU", "ns/line", "MB/s", "found");
    for percent in [1, 30] {
        let log = mail_log(lines, percent);
        for (what, filters) in [
            ("one filter (dovecot)", compiled(&["dovecot"])),
            ("six mail filters", compiled(&six)),
            ("all shipped", shipped().iter().map(|(name, _)| compiled(&[name]).remove(0)).collect()),
            ("twenty distinct filters", twenty(&six)),
        ] {
            let (time, found) = (0..5).map(|_| measure(&filters, &log)).min().unwrap_or_default();
            println!(
                "{what:<28} {percent:>4} % {:>8.3} s {:>9.1} {:>9.0} {found:>9}",
                time.as_secs_f64(),
                time.as_nanos() as f64 / f64::from(lines),
                log.len() as f64 / 1e6 / time.as_secs_f64(),
            );
        }
    }
}

fn measure(filters: &[Arc<Filter>], log: &[u8]) -> (Duration, usize) {
    let mut scanner = Scanner::new(filters.to_vec());
    let mut found: Vec<Found> = Vec::new();
    let mut count = 0;
    let start = cpu();
    let mut rest = log;
    while !rest.is_empty() {
        let end = rest[..rest.len().min(CHUNK)].iter().rposition(|b| *b == b'\n').map_or(rest.len(), |i| i + 1);
        scanner.scan(&rest[..end], When { now: NOW, live: false }, &mut found);
        count += found.len();
        found.clear();
        rest = &rest[end..];
    }
    (cpu() - start, count)
}

/// What this process has used so far; the wall clock would count our neighbours too.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Into::into)
}

fn compile(name: &str, text: &str) -> Arc<Filter> {
    let definition = definition::parse(name, text).unwrap_or_else(|e| panic!("{e}"));
    Arc::new(Filter::compile(&definition, &BTreeMap::new(), &Options::default()).unwrap_or_else(|e| panic!("{e:?}")))
}

fn compiled(names: &[&str]) -> Vec<Arc<Filter>> {
    shipped().iter().filter(|(name, _)| names.contains(name)).map(|(name, text)| compile(name, text)).collect()
}

/// The six and fourteen of somebody else's, each with five patterns of its own.
fn twenty(six: &[&str]) -> Vec<Arc<Filter>> {
    let mut filters = compiled(six);
    for i in 0..14 {
        let mut text = "failregex = [\n".to_owned();
        for j in 0..5 {
            let _ = writeln!(text, "'''^ \\S+ daemon{i}\\[\\d+\\]: refused{i}case{j} for <F-USER>\\S*</F-USER> from <HOST>$''',");
        }
        text.push(']');
        filters.push(compile(&format!("other{i}"), &text));
    }
    filters
}

/// xorshift64*: enough to mix lines, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % u64::from(below)) as u32
    }
}

/// Lines as a mail gateway's servers write them through syslog, an hour and a half of them.
fn mail_log(lines: u32, percent: u32) -> Vec<u8> {
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let mut log = String::with_capacity(lines as usize * 150);
    for i in 0..lines {
        let second = u64::from(i) * 5400 / u64::from(lines);
        let (minute, second) = (second / 60, second % 60);
        let _ = write!(log, "Jan 15 {:02}:{:02}:{:02} mx ", 10 + minute / 60, minute % 60, second);
        let pid = 1000 + dice.roll(60_000);
        let user = format!("user{}@example{}.org", dice.roll(5000), dice.roll(40));
        let (a, b) = (dice.roll(256), dice.roll(256));
        let (ip, id) = (format!("198.{}.{a}.{b}", 18 + dice.roll(2)), dice.roll(u32::MAX));
        let _ = if dice.roll(100) < percent {
            match dice.roll(6) {
                0 => write!(log, "dovecot: auth-worker({pid}): sql({user},{ip},<Ab{id:08x}>): Password mismatch"),
                1 => write!(
                    log,
                    "dovecot: imap-login: Disconnected: Connection closed (auth failed, 1 attempts in 2 secs): user=<{user}>, method=PLAIN, rip={ip}, lip=192.0.2.9, TLS, session=<Cd{id:08x}>"
                ),
                2 => write!(log, "vpopmail[{pid}]: vchkpw-submission: vpopmail user not found {user}:{ip}"),
                3 => write!(log, "vpopmail[{pid}]: vchkpw-smtp: password fail (pass: 'pw{id}') {user}:{ip}"),
                4 => write!(
                    log,
                    "sendmail[{pid}]: s07{id:08X}{pid:06}: AUTH failure (LOGIN): authentication failure (-13) SASL(-13): authentication failure: checkpass failed, relay=[{ip}]"
                ),
                _ => write!(
                    log,
                    "smtpd[{pid}]: qlogenvelope: result=rejected code=553 reason=rblreject detail=zen.spamhaus.org helo=host{id}.example.net mailfrom={user} rcptto=bob@example.org relay=no rcpthosts=yes size= authuser= authtype= encrypted= sslverified=no localip=192.0.2.4 localport=25 remoteip={ip} remoteport={pid} remotehost= qp= pid={pid}"
                ),
            }
        } else {
            match dice.roll(12) {
                0 => write!(log, "postfix/smtpd[{pid}]: connect from mail{id}.example.net[{ip}]"),
                1 => write!(
                    log,
                    "postfix/smtpd[{pid}]: disconnect from mail{id}.example.net[{ip}] ehlo=2 starttls=1 mail=1 rcpt=1 data=1 quit=1 commands=7"
                ),
                2 => write!(log, "postfix/cleanup[{pid}]: {id:08X}: message-id=<{id}.{pid}@example.net>"),
                3 => write!(log, "postfix/qmgr[{pid}]: {id:08X}: from=<{user}>, size={pid}, nrcpt=1 (queue active)"),
                4 => write!(
                    log,
                    "postfix/smtp[{pid}]: {id:08X}: to=<{user}>, relay=mx.example.net[{ip}]:25, delay=1.2, delays=0.1/0/0.5/0.6, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as {id:08X})"
                ),
                5 => write!(
                    log,
                    "dovecot: imap({user})<{pid}><Ef{id:08x}>: Disconnected: Logged out in={pid} out={id} deleted=0 expunged=0 trashed=0 hdr_count=0 hdr_bytes=0 body_count=0 body_bytes=0"
                ),
                6 => write!(log, "dovecot: lmtp({user})<{pid}><Gh{id:08x}>: msgid=<{id}@example.net>: saved mail to INBOX"),
                7 => write!(
                    log,
                    "smtpd[{pid}]: CHKUSER accepted rcpt: from <{user}::> remote <host{id}:unknown:{ip}> rcpt <bob@example.org> : found existing recipient"
                ),
                8 => write!(log, "smtpd[{pid}]: rbl: ip={ip} query={b}.{a}.18.198.zen.spamhaus.org result=ignore message="),
                9 => write!(
                    log,
                    "sendmail[{pid}]: s07{id:08X}: to=<{user}>, delay=00:00:02, xdelay=00:00:01, mailer=esmtp, pri={pid}, relay=mx.example.net. [{ip}], dsn=2.0.0, stat=Sent (ok {id})"
                ),
                10 => write!(log, "spamd[{pid}]: spamd: clean message (1.2/5.0) for {user}:1000 in 1.4 seconds, {pid} bytes."),
                _ => write!(log, "qmail: {id} delivery {pid}: success: did_1+0+0/qp_{pid}/ from <{user}>"),
            }
        };
        log.push('\n');
    }
    log.into_bytes()
}
