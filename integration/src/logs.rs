//! Writers of log files, with the time stamps real servers write.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// An instant to write into a log line, in UTC (the daemon under test runs with `TZ=UTC`).
#[derive(Clone, Copy, Debug)]
pub struct Stamp(Timestamp);

impl Stamp {
    /// Now.
    pub fn now() -> Stamp {
        Stamp(Timestamp::now())
    }

    /// So many seconds before now.
    pub fn ago(seconds: i64) -> Stamp {
        Stamp(Timestamp::now() - SignedDuration::from_secs(seconds))
    }

    /// `Nov 22 04:20:35`: the BSD syslog header without a year (RFC 3164).
    pub fn syslog(self) -> String {
        self.format("%b %e %H:%M:%S")
    }

    /// `@4000000065…`: TAI64N as multilog's `t` writes it, 2^62 plus TAI seconds, which its author counts as Unix time plus 10.
    pub fn tai64n(self) -> String {
        format!("@{:016x}{:08x}", (1_u64 << 62) + self.0.as_second() as u64 + 10, self.0.subsec_nanosecond())
    }

    /// `2022-02-18 16:23:03.719762500`: what tai64nlocal makes of it.
    pub fn tai64nlocal(self) -> String {
        self.format("%Y-%m-%d %H:%M:%S.%9f")
    }

    /// `2015/05/27 15:45:58`: qmailadmin's.
    pub fn slashes(self) -> String {
        self.format("%Y/%m/%d %H:%M:%S")
    }

    /// `12-Jul-2022 08:56:39 +0200`: roundcube's.
    pub fn roundcube(self) -> String {
        self.format("%d-%b-%Y %H:%M:%S +0000")
    }

    /// `2026-11-22T03:01:40.901431+00:00`: rsyslog's default on Debian 12 (RFC 3339).
    pub fn iso(self) -> String {
        self.format("%Y-%m-%dT%H:%M:%S.%6f+00:00")
    }

    fn format(self, format: &str) -> String {
        self.0.to_zoned(TimeZone::UTC).strftime(format).to_string()
    }
}

/// What OpenSSH logs when somebody guesses a password of `user`.
pub fn wrong_password(at: Stamp, user: &str, from: &str) -> String {
    format!("{} mx sshd[506]: Failed password for {user} from {from} port 37957 ssh2", at.syslog())
}

/// A log file as a server keeps it: opened once, appended to, re-opened when told.
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Creates the file, and its directory.
    pub fn create(path: impl AsRef<Path>) -> Log {
        let path = path.as_ref().to_owned();
        std::fs::create_dir_all(path.parent().expect("a log lies in a directory")).expect("a directory for the log");
        let file = File::options().create(true).append(true).open(&path).expect("a log file");
        Log { path, file }
    }

    /// Its path, as a configuration names it.
    pub fn path(&self) -> &str {
        self.path.to_str().expect("a path of ours is text")
    }

    /// Appends one line with one write(2), as syslog daemons do.
    pub fn line(&mut self, line: &str) {
        self.file.write_all(format!("{line}\n").as_bytes()).expect("a log can be written");
    }

    /// Has somebody guess root's password at OpenSSH, so many times, now.
    pub fn fail(&mut self, from: &str, times: usize) {
        (0..times).for_each(|_| self.line(&wrong_password(Stamp::now(), "root", from)));
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).expect("a log can be written");
    }

    /// Moves the file to `PATH.1` and goes on in a new one, as logrotate's `create` does; the writer re-opens at once.
    pub fn rotate(&mut self) {
        self.rename();
        self.reopen();
    }

    /// Moves the file to `PATH.1`, what was there to `PATH.2`, and so on up to 99, so that no line is destroyed unread by it;
    /// until [`Log::reopen`] the writer goes on in the old one.
    pub fn rename(&mut self) {
        for n in (1..99).rev() {
            // Most of them are not there.
            let _ = std::fs::rename(format!("{}.{n}", self.path()), format!("{}.{}", self.path(), n + 1));
        }
        std::fs::rename(&self.path, format!("{}.1", self.path())).expect("a log can be renamed");
    }

    /// Opens the path again, creating it.
    pub fn reopen(&mut self) {
        self.file = File::options().create(true).append(true).open(&self.path).expect("a log file");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_read_as_their_servers_write_them() {
        // multilog and tai64nlocal of daemontools 0.76 were asked.
        let stamp = Stamp("2017-10-29T04:59:14.555688500Z".parse().expect("a time"));
        assert_eq!(stamp.tai64n(), "@4000000059f5602c211f2234");
        assert_eq!(stamp.tai64nlocal(), "2017-10-29 04:59:14.555688500");
        assert_eq!(stamp.syslog(), "Oct 29 04:59:14");
        assert_eq!(stamp.slashes(), "2017/10/29 04:59:14");
        assert_eq!(stamp.roundcube(), "29-Oct-2017 04:59:14 +0000");
        assert_eq!(stamp.iso(), "2017-10-29T04:59:14.555688+00:00");
        assert_eq!(Stamp("2026-01-07T11:25:45Z".parse().expect("a time")).syslog(), "Jan  7 11:25:45");
    }
}
