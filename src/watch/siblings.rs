//! Where a file goes when it is rotated: the names that logrotate, savelog, newsyslog and multilog give, oldest first.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::held::Held;
use super::position::{HEAD, Identity, Mark, TAIL, fingerprint, modified};
use super::reader::open_beside;

/// So many siblings of one path are looked at, the newest: each takes a descriptor, and anybody who may write to the directory may
/// make any number of them.
const MOST: usize = 256;

/// A file beside a followed path that its name says was rotated away from it.
#[derive(Debug)]
pub(super) struct Sibling {
    /// Its full path when it was listed.
    pub path: PathBuf,
    /// Opened when it was listed: the path may be another file's by now.
    pub file: File,
    /// What fstat(2) said.
    pub meta: Metadata,
    /// Its text is compressed.
    pub gz: bool,
    age: Age,
}

/// What a rotated name says about when.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Age {
    /// `.1`, `.2`: the larger the older.
    Number(u64),
    /// A date or a TAI64N label: the larger the newer.
    Label(String),
    /// multilog's `previous`: between `current` and the newest label.
    Newest,
}

impl Age {
    fn order(&self, other: &Age) -> Ordering {
        let scheme = |age: &Age| u8::from(matches!(age, Age::Number(_)));
        scheme(self).cmp(&scheme(other)).then_with(|| match (self, other) {
            (Age::Number(a), Age::Number(b)) => b.cmp(a),
            (Age::Label(a), Age::Label(b)) => a.cmp(b),
            (Age::Newest, Age::Label(_)) => Ordering::Greater,
            (Age::Label(_), Age::Newest) => Ordering::Less,
            _ => Ordering::Equal,
        })
    }
}

impl Sibling {
    /// Device and inode number.
    pub(super) fn identity(&self) -> Identity {
        (self.meta.dev(), self.meta.ino())
    }

    /// A mark at its beginning.
    pub(super) fn beginning(&self) -> Mark {
        Mark::beginning(&self.meta)
    }

    /// Oldest first. Names of one scheme are ordered by what they say, for modification times tie within a clock tick; across
    /// schemes only the modification time can tell.
    fn order(&self, other: &Sibling) -> Ordering {
        self.age.order(&other.age)
    }

    /// Whether this one was rotated later than `known`, of which `mark` was the last state seen.
    pub(super) fn newer(&self, known: &Sibling, mark: &Mark) -> bool {
        let same_scheme = matches!(self.age, Age::Number(_)) == matches!(known.age, Age::Number(_));
        // A writer that holds the older file may write to it after the younger one was left.
        let later =
            modified(&self.meta) >= mark.modified || (same_scheme && mark.birth != 0 && self.beginning().birth > mark.birth);
        later && (!same_scheme || self.order(known) == Ordering::Greater)
    }

    /// Whether this file's text is that of which `mark` saw the beginning, with at least as much in it. A mark at the very
    /// beginning saw nothing and fits nothing.
    pub(super) fn continues(&self, mark: &Mark) -> bool {
        mark.offset > 0 && if self.gz { gz_continues(&self.file, mark) } else { mark.is_of(&self.file) }.unwrap_or(false)
    }
}

impl Sibling {
    /// Whether its text is the one that was done with at this mark. Of a few bytes the fingerprints say little (every file of
    /// its kind may begin with them): then nothing may follow them.
    pub(super) fn is_done(&self, mark: &Mark) -> bool {
        let long = mark.offset >= (HEAD + TAIL) as u64 || mark.born_as(&self.beginning());
        self.continues(mark) && (long || self.meta.len() == mark.offset || self.ends_at(mark.offset))
    }

    fn ends_at(&self, offset: u64) -> bool {
        let mut text = self.text().take(offset + 1);
        self.gz && io::copy(&mut text, &mut io::sink()).is_ok_and(|length| length == offset)
    }

    /// A mark at its end, as if it had been read; `None` of a compressed one.
    pub(super) fn whole(&self) -> Option<Mark> {
        let mut mark = self.beginning();
        let (mut held, _) = Held::new(self.file.try_clone().ok()?, &self.meta).ok().filter(|_| !self.gz)?;
        held.seek(&mut mark, self.meta.len(), false).ok()?;
        Some(mark)
    }

    /// Its text, decompressed, from the beginning.
    pub(super) fn text(&self) -> impl Read {
        text_of(&self.file)
    }

    /// Whether its text begins with these bytes, or these bytes with its text: it may be a copy that is being made.
    pub(super) fn begins_with(&self, bytes: &[u8]) -> bool {
        let mut head = Vec::with_capacity(bytes.len());
        let from = FromStart(&self.file, 0);
        let most = bytes.len() as u64;
        let read = if self.gz {
            MultiGzDecoder::new(io::BufReader::new(from)).take(most).read_to_end(&mut head)
        } else {
            from.take(most).read_to_end(&mut head)
        };
        read.is_ok() && !head.is_empty() && bytes.starts_with(&head)
    }
}

/// A file read from its beginning whatever its file offset, which all who hold it share.
struct FromStart<'a>(&'a File, u64);

impl Read for FromStart<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read_at(into, self.1)?;
        self.1 += n as u64;
        Ok(n)
    }
}

fn text_of(file: &File) -> MultiGzDecoder<io::BufReader<FromStart<'_>>> {
    MultiGzDecoder::new(io::BufReader::new(FromStart(file, 0)))
}

fn gz_continues(file: &File, mark: &Mark) -> io::Result<bool> {
    let mut text = text_of(file);
    let mut head = [0; HEAD];
    let head = head.get_mut(..mark.head_len as usize).ok_or(io::ErrorKind::InvalidData)?;
    text.read_exact(head)?;
    if fingerprint(head) != mark.head {
        return Ok(false);
    }
    // Head and tail may overlap in a short file, so the last bytes are gathered while the text goes by.
    let mut last: Vec<u8> = head.to_vec();
    let mut left = mark.offset.saturating_sub(head.len() as u64);
    let mut buffer = [0; 16 * 1024];
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = text.read(&mut buffer[..most])?;
        if n == 0 {
            return Ok(false);
        }
        left -= n as u64;
        last.extend_from_slice(&buffer[..n]);
        last.drain(..last.len().saturating_sub(TAIL.max(HEAD)));
    }
    let tail = last.len().checked_sub(mark.tail_len as usize).and_then(|from| last.get(from..));
    Ok(tail.is_some_and(|tail| fingerprint(tail) == mark.tail))
}

/// What was rotated away from `path`, oldest first, in its directory; if `path` is a symbolic link, also beside its target.
///
/// A rotation may be under way while we look: the directory is listed again until nothing moved meanwhile.
pub(super) fn siblings(path: &Path) -> Vec<Sibling> {
    let mut paths = vec![path.to_owned()];
    if let Ok(target) = path.canonicalize()
        && target.parent() != path.parent().and_then(|dir| dir.canonicalize().ok()).as_deref()
    {
        paths.push(target);
    }
    let mut listed = names(&paths);
    for _ in 0..20 {
        let mut found: Vec<Sibling> = listed.iter().filter_map(opened).collect();
        let now = names(&paths);
        if now == listed {
            found.sort_by(Sibling::order);
            return found;
        }
        listed = now;
    }
    let mut found: Vec<Sibling> = listed.iter().filter_map(opened).collect();
    found.sort_by(Sibling::order);
    found
}

/// A rotated file's path, inode number, age and whether it is compressed.
type Listed = (PathBuf, u64, Age, bool);

fn names(paths: &[PathBuf]) -> Vec<Listed> {
    let mut listed = Vec::new();
    for path in paths {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { continue };
        for entry in dir.read_dir().into_iter().flatten().flatten() {
            if let Some((age, gz)) = age(name, &entry.file_name()) {
                listed.push((entry.path(), entry.ino(), age, gz));
            }
        }
    }
    listed.sort_by(|a, b| a.0.cmp(&b.0));
    // While `mail.log.1` is still there its `mail.log.1.gz` is being written.
    let plain: HashSet<PathBuf> = listed.iter().filter(|(_, _, _, gz)| !gz).map(|(path, ..)| path.clone()).collect();
    listed.retain(|(path, _, _, gz)| !gz || !plain.contains(&path.with_extension("")));
    if listed.len() > MOST {
        listed.sort_by(|a, b| a.2.order(&b.2));
        listed.drain(..listed.len() - MOST);
    }
    listed
}

fn opened((path, inode, age, gz): &Listed) -> Option<Sibling> {
    let file = open_beside(path).ok()?;
    let meta = file.metadata().ok()?;
    // An empty one may be a copy that is about to be made; nothing is lost with it in any case.
    (meta.is_file() && meta.ino() == *inode && meta.len() > 0).then(|| Sibling {
        path: path.clone(),
        file,
        meta,
        gz: *gz,
        age: age.clone(),
    })
}

/// When `candidate` was rotated away from `name`, if its name says so, and whether it is compressed.
fn age(name: &OsStr, candidate: &OsStr) -> Option<(Age, bool)> {
    // Names are bytes; what a rotation adds to one is ASCII.
    let (name, candidate) = (name.as_bytes(), candidate.as_bytes());
    if name == b"current" {
        if candidate == b"previous" {
            return Some((Age::Newest, false));
        }
        let label = candidate.strip_prefix(b"@")?;
        let label = label.strip_suffix(b".s").or_else(|| label.strip_suffix(b".u"))?;
        let tai = label.len() == 24 && label.iter().all(u8::is_ascii_hexdigit);
        return tai.then(|| (Age::Label(String::from_utf8_lossy(label).into_owned()), false));
    }
    let (plain, gz) = candidate.strip_suffix(b".gz").map_or((candidate, false), |plain| (plain, true));
    // `mail.log.1` and `mail.log-20261122`; with logrotate's `extension`, `mail.1.log` and `mail-20261122.log`.
    let suffix = plain.strip_prefix(name).or_else(|| {
        let dot = memchr::memrchr(b'.', name)?;
        plain.strip_prefix(&name[..dot])?.strip_suffix(&name[dot..])
    })?;
    let (separator, label) = suffix.split_first()?;
    let label = std::str::from_utf8(label).ok().filter(|_| b".-_".contains(separator))?;
    if let Ok(number) = label.parse::<u64>()
        && label.len() < 6
        && label.bytes().all(|b| b.is_ascii_digit())
    {
        return Some((Age::Number(number), gz));
    }
    let digits = label.bytes().filter(u8::is_ascii_digit).count();
    let dated = digits >= 6 && label.bytes().all(|b| b.is_ascii_digit() || b"-_.:T".contains(&b));
    dated.then(|| (Age::Label(label.to_owned()), gz))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_was_rotated() {
        let table = [
            ("mail.log", "mail.log.1", Some((Age::Number(1), false))),
            ("mail.log", "mail.log.12.gz", Some((Age::Number(12), true))),
            ("mail.log", "mail.log-20261122", Some((Age::Label("20261122".into()), false))),
            ("mail.log", "mail.log-20261122.gz", Some((Age::Label("20261122".into()), true))),
            ("mail.log", "mail.log-20261122-1795000000", Some((Age::Label("20261122-1795000000".into()), false))),
            ("mail.log", "mail-20261122.log", Some((Age::Label("20261122".into()), false))),
            ("mail.log", "mail.1.log.gz", Some((Age::Number(1), true))),
            ("mail.log", "mail.log", None),
            ("mail.log", "mail.log.", None),
            ("mail.log", "mail.log.+1", None),
            ("mail", "mail.1", Some((Age::Number(1), false))),
            ("mail.log", "mail.log.err", None),
            ("mail.log", "mail.log.1.save", None),
            ("mail.log", "mail.log-backup", None),
            ("mail.log", "mail.logs.1", None),
            ("current", "@400000006740a5e71b3f2d4c.s", Some((Age::Label("400000006740a5e71b3f2d4c".into()), false))),
            ("current", "previous", Some((Age::Newest, false))),
            ("current", "@4000.s", None),
            ("current", "lock", None),
        ];
        for (name, candidate, expected) in table {
            assert_eq!(age(OsStr::new(name), OsStr::new(candidate)), expected, "{candidate} beside {name}");
        }
    }

    #[test]
    fn a_name_that_is_no_text_is_rotated_as_any_other() {
        let (name, candidate) = (OsStr::from_bytes(b"m\xff.log"), OsStr::from_bytes(b"m\xff.log.1.gz"));
        assert_eq!(age(name, candidate), Some((Age::Number(1), true)));
        assert_eq!(age(name, OsStr::from_bytes(b"m\xfe.log.1")), None);
        assert_eq!(age(name, OsStr::from_bytes(b"m\xff.log.1\xff")), None);
    }

    #[test]
    fn of_any_number_of_siblings_the_newest_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        for number in 1..=MOST + 50 {
            std::fs::write(dir.path().join(format!("m.{number}")), "x").unwrap();
        }
        let found = siblings(&dir.path().join("m"));
        let ages: Vec<_> = found.into_iter().map(|s| s.age).collect();
        assert_eq!(ages, (1..=MOST as u64).rev().map(Age::Number).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_file_is_not_opened_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("elsewhere"), "secret\n").unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("m.1")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("m.2")).unwrap();
        nix::unistd::mkfifo(&at("m.3"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        std::fs::create_dir(at("m.4")).unwrap();
        let _listening = std::os::unix::net::UnixListener::bind(at("m.5")).unwrap();
        assert!(siblings(&at("m")).is_empty());
        let refused = |path: &Path| super::super::reader::open(path).unwrap_err().raw_os_error();
        assert_eq!(
            refused(&at("m.2")),
            Some(nix::errno::Errno::EINVAL as i32),
            "a device is not opened, not even through a link"
        );
        assert_eq!(refused(&at("m.4")), Some(nix::errno::Errno::EISDIR as i32));
        assert_eq!(refused(&at("m.5")), Some(nix::errno::Errno::EINVAL as i32));
        assert!(super::super::reader::open(&at("m.1")).is_ok(), "the log itself may be a link");
        assert!(super::super::reader::open(&at("m.3")).is_ok(), "a FIFO is not waited for");
    }

    #[test]
    fn siblings_come_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["m", "m.1", "m.10.gz", "m.2", "m-20261101", "m-20261030.gz", "m.old"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let names: Vec<_> = siblings(&dir.path().join("m")).into_iter().map(|s| s.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["m-20261030.gz", "m-20261101", "m.10.gz", "m.2", "m.1"]);
    }
}
