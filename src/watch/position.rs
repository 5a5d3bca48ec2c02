//! Where a reader is, in a form that survives a restart.
//!
//! An inode number alone proves nothing (ext4 gives the number of a deleted file to the next one) and neither does a length
//! (a file may be truncated and outgrow its former self). So a [`Mark`] also carries the birth of the file, which tells files
//! apart of which nothing was read yet, and fingerprints of its first bytes and of the last bytes before the offset, which tell
//! what was done to it since.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

/// How many of a file's first bytes are fingerprinted.
pub(super) const HEAD: usize = 256;
/// So many texts that are done with are remembered.
const DONE: usize = 8;
/// How many of the bytes before the offset are fingerprinted.
pub(super) const TAIL: usize = 128;

/// Where the reading of one path is: a mark in each file still held for it, oldest first. The last one is what the path led to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// One mark per file, oldest first.
    pub marks: Vec<Mark>,
    /// Marks of texts that are done with and may still stand beside the path, the last one let go last: what bears them is not
    /// taken for something new. At most eight.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub done: VecDeque<Mark>,
}

impl Position {
    /// The newest file of which anything is known: if nothing is held, the one of those let go that was last written to.
    pub(super) fn last(&self) -> Option<Mark> {
        self.marks.last().or_else(|| self.done.iter().max_by_key(|mark| mark.modified)).copied()
    }

    /// A text is done with: it is not read again, wherever it turns up.
    pub(super) fn finish(&mut self, mark: Mark) {
        if mark.offset > 0 {
            self.done.push_back(mark);
        }
        while self.done.len() > DONE {
            self.done.pop_front();
        }
    }
}

/// Where we are in one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The file system's device number.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// When the file was made, nanoseconds since the Unix epoch (`stx_btime` of statx(2)); 0 where the file system does not say.
    #[serde(default)]
    pub birth: i64,
    /// Bytes that are done with.
    pub offset: u64,
    /// The offset stands inside a line that was handed out cut; its rest is to be skipped.
    pub inside: bool,
    /// Modification time of the file when last read, nanoseconds since the Unix epoch.
    pub modified: i64,
    /// How many bytes `head` covers, at most 256 and never more than `offset`.
    pub head_len: u16,
    /// Fingerprint of the first `head_len` bytes.
    pub head: u64,
    /// How many bytes before the offset `tail` covers, at most 128.
    pub tail_len: u16,
    /// Fingerprint of the `tail_len` bytes before the offset.
    pub tail: u64,
    /// It was found beside the path and may be a copy, which the next rotation overwrites.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy: bool,
}

/// Device and inode number.
pub(super) type Identity = (u64, u64);

impl Mark {
    /// Device and inode number.
    pub(super) fn identity(&self) -> Identity {
        (self.device, self.inode)
    }

    /// A mark at the beginning of a file.
    pub(super) fn beginning(meta: &std::fs::Metadata) -> Mark {
        Mark {
            device: meta.dev(),
            inode: meta.ino(),
            birth: birth(meta),
            modified: modified(meta),
            head: fingerprint(&[]),
            tail: fingerprint(&[]),
            ..Mark::default()
        }
    }

    /// Whether both mark the same file beyond doubt: a number is given again, but not with the same birth, except to a file that
    /// was made, removed and followed by the other within one tick of the kernel's clock.
    pub(super) fn born_as(&self, other: &Mark) -> bool {
        self.identity() == other.identity() && self.birth != 0 && self.birth == other.birth
    }

    /// Whether they mark different files beyond doubt.
    pub(super) fn born_apart(&self, other: &Mark) -> bool {
        self.identity() != other.identity() || (self.birth != 0 && other.birth != 0 && self.birth != other.birth)
    }

    /// Whether the file holds, before the offset, what this mark saw there.
    pub(super) fn is_of(&self, file: &File) -> io::Result<bool> {
        Ok(file.metadata()?.len() >= self.offset && self.head_is_of(file)? && self.tail_is_of(file)?)
    }

    /// Whether the file holds what this mark saw and nothing else.
    pub(super) fn is_all_of(&self, file: &File) -> io::Result<bool> {
        Ok(self.offset > 0 && file.metadata()?.len() == self.offset && self.is_of(file)?)
    }

    /// Whether `file` begins with the bytes that this mark saw.
    pub(super) fn head_is_of(&self, file: &File) -> io::Result<bool> {
        let mut bytes = [0; HEAD];
        let head = bytes.get_mut(..self.head_len as usize).ok_or(io::ErrorKind::InvalidData)?;
        let n = read_at(file, head, 0)?;
        Ok(n == head.len() && fingerprint(head) == self.head)
    }

    /// Whether the bytes before the offset in `file` are those that this mark saw.
    pub(super) fn tail_is_of(&self, file: &File) -> io::Result<bool> {
        let mut bytes = [0; TAIL];
        let tail = bytes.get_mut(..self.tail_len as usize).ok_or(io::ErrorKind::InvalidData)?;
        let from = self.offset.checked_sub(tail.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
        let n = read_at(file, tail, from)?;
        Ok(n == tail.len() && fingerprint(tail) == self.tail)
    }
}

/// Modification time in nanoseconds since the Unix epoch.
pub(super) fn modified(meta: &std::fs::Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}

/// When the file was made, in nanoseconds since the Unix epoch; 0 if nobody knows.
fn birth(meta: &std::fs::Metadata) -> i64 {
    let since = meta.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or(0)
}

/// FNV-1a, 64 bits: stable between versions, quick on a few hundred bytes. It tells files apart, it guards no secret.
pub(super) fn fingerprint(bytes: &[u8]) -> u64 {
    extend(0xcbf2_9ce4_8422_2325, bytes)
}

/// The fingerprint of what `so_far` covers followed by `bytes`.
pub(super) fn extend(so_far: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(so_far, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Reads at `from` until `into` is full or the file ends; returns how many bytes were read.
pub(super) fn read_at(file: &File, into: &mut [u8], from: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], from.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_grows_with_its_bytes() {
        assert_eq!(extend(fingerprint(b"ab"), b"cd"), fingerprint(b"abcd"));
        assert_ne!(fingerprint(b"ab"), fingerprint(b"ba"));
    }

    #[test]
    fn a_position_survives_json() {
        let position = Position {
            marks: vec![Mark { inode: u64::MAX, birth: -1, offset: 7, head: u64::MAX, ..Mark::default() }],
            ..Position::default()
        };
        let text = serde_json::to_string(&position).unwrap();
        assert_eq!(serde_json::from_str::<Position>(&text).unwrap(), position);
        let before_births = text.replace(r#""birth":-1,"#, "");
        assert_eq!(serde_json::from_str::<Position>(&before_births).unwrap().marks[0].birth, 0);
    }

    #[test]
    fn an_equal_birth_proves_and_another_one_disproves() {
        let mark = |inode, birth| Mark { inode, birth, ..Mark::default() };
        let table = [
            (mark(1, 5), mark(1, 5), true, false),
            (mark(1, 5), mark(1, 6), false, true),
            (mark(1, 5), mark(2, 5), false, true),
            (mark(1, 0), mark(1, 0), false, false),
            (mark(1, 5), mark(1, 0), false, false),
        ];
        for (a, b, same, apart) in table {
            assert_eq!((a.born_as(&b), a.born_apart(&b)), (same, apart), "{a:?} {b:?}");
        }
    }
}
