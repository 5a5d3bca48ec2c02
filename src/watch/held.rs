//! One open inode: reading it from where we are, in one system call when nothing is unusual.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use flate2::read::MultiGzDecoder;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::lines::{Piece, cut};
use super::notices::{Id, errno};
use super::position::{HEAD, Mark, TAIL, extend, fingerprint, modified, read_at};
use super::{Chunk, Judge, LONGEST_LINE, Position};

/// Files that agree in so many of their first bytes are taken for copies of each other; all of them where one is shorter. Longer
/// than what programs write at the head of each log.
pub(super) const ALIKE: usize = 16 * 1024;

/// An open file that is followed.
pub(super) struct Held {
    body: Body,
    /// The inotify watch on it, if there is one.
    pub watch: Option<Id>,
    /// The last bytes before the offset: each read begins with them and compares.
    tail: Vec<u8>,
    /// Up to here the file's text was there when following began.
    pub until: u64,
    /// There may be something to read.
    pub ready: bool,
    /// When something was last read, or the name was lost: a deleted file that is quiet from then on is let go.
    pub busy: Instant,
    /// The last name of the inode is gone.
    pub deleted: bool,
    /// Nothing of this generation of the file was read yet.
    pub first: bool,
    /// Modification time of the file before this generation of it, nanoseconds since the Unix epoch.
    pub since: i64,
    /// Copies of what was written and truncated before the first read are born no earlier, nanoseconds since the Unix epoch.
    pub copies_from: i64,
    /// Found beside the path, not through it.
    pub sibling: bool,
    /// Nothing will ever be read from it again.
    pub finished: bool,
    /// Size when last looked at, to say how much a truncation destroyed.
    pub size: u64,
}

enum Body {
    Regular(File),
    /// What was read and not yet handed out is kept, for it cannot be read again.
    Fifo(File, Vec<u8>),
    Gz(Box<MultiGzDecoder<io::BufReader<File>>>, Vec<u8>),
}

/// How a turn of reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing more for now.
    End,
    /// The turn's share is used up.
    More,
    /// What was before the offset is no longer there.
    Rewritten,
    /// So many bytes from the very beginning of the file are in the buffer and were not handed out: another generation of the
    /// file may have come and gone before this one. See [`Held::hand_out_first`].
    First(usize),
    /// Nothing more, ever.
    Finished,
    /// read(2) failed.
    Failed(Errno),
}

/// To whom a held file's lines go, and with what.
pub(super) struct Outlet<'a> {
    pub path: &'a Path,
    pub tags: &'a [u32],
    pub position: &'a mut Position,
    pub index: usize,
    pub lines_cut: &'a mut u64,
    pub buffer: &'a mut [u8],
    pub judge: &'a mut dyn Judge,
    /// How many bytes this turn may still read.
    pub share: &'a mut usize,
}

impl Held {
    /// Holds a regular file or FIFO; `EINVAL` for anything else. Nothing is read yet: the mark is at the beginning.
    pub(super) fn new(file: File, meta: &Metadata) -> Result<(Held, Mark), Errno> {
        let body = if meta.is_file() {
            Body::Regular(file)
        } else if meta.file_type().is_fifo() {
            Body::Fifo(file, Vec::new())
        } else if meta.is_dir() {
            return Err(Errno::EISDIR);
        } else {
            return Err(Errno::EINVAL);
        };
        let mut held = Held::with(body);
        held.since = modified(meta);
        Ok((held, Mark::beginning(meta)))
    }

    /// Holds a compressed file, decompressed as it is read.
    pub(super) fn gz(file: File, meta: &Metadata) -> (Held, Mark) {
        let text = Box::new(MultiGzDecoder::new(io::BufReader::new(file)));
        let mut held = Held::with(Body::Gz(text, Vec::new()));
        held.until = u64::MAX;
        (held, Mark::beginning(meta))
    }

    fn with(body: Body) -> Held {
        Held {
            body,
            watch: None,
            tail: Vec::new(),
            until: 0,
            ready: true,
            busy: Instant::now(),
            deleted: false,
            first: false,
            since: 0,
            copies_from: i64::MIN,
            sibling: false,
            finished: false,
            size: 0,
        }
    }

    /// The file itself; a `.gz` has none to watch.
    pub(super) fn file(&self) -> Option<&File> {
        match &self.body {
            Body::Regular(file) | Body::Fifo(file, _) => Some(file),
            Body::Gz(..) => None,
        }
    }

    /// Whether its bytes come from a pipe.
    pub(super) fn fifo(&self) -> bool {
        matches!(self.body, Body::Fifo(..))
    }

    /// Bytes written and not yet handed out; of what can not be known, 0.
    pub(super) fn lag(&self, mark: &Mark) -> u64 {
        match &self.body {
            Body::Regular(file) => file.metadata().map_or(0, |meta| meta.len().saturating_sub(mark.offset)),
            Body::Fifo(_, carry) | Body::Gz(_, carry) => carry.len() as u64,
        }
    }

    /// Puts the offset at `from`, which stands at the start of a line or, if `inside`, within one whose rest is to be skipped,
    /// and takes the fingerprints of what is before it. A compressed file is decompressed up to there.
    pub(super) fn seek(&mut self, mark: &mut Mark, from: u64, inside: bool) -> io::Result<()> {
        match &mut self.body {
            Body::Regular(file) => {
                let mut head = [0; HEAD];
                let n = read_at(file, &mut head[..usize::try_from(from).unwrap_or(HEAD).min(HEAD)], 0)?;
                (mark.head_len, mark.head) = (n as u16, fingerprint(&head[..n]));
                let want = usize::try_from(from).unwrap_or(TAIL).min(TAIL);
                self.tail.resize(want, 0);
                // If the file is shorter by now the next read notices.
                read_at(file, &mut self.tail, from - want as u64)?;
                self.size = self.size.max(from);
            }
            Body::Fifo(..) => return Ok(()),
            Body::Gz(text, _) => {
                let mut left = from;
                let mut buffer = [0; 16 * 1024];
                (mark.offset, mark.head_len, mark.head) = (0, 0, fingerprint(&[]));
                while left > 0 {
                    let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                    let n = text.read(&mut buffer[..most])?;
                    if n == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    pass(&mut self.tail, mark, &buffer[..n]);
                    left -= n as u64;
                }
            }
        }
        mark.offset = from;
        mark.inside = inside;
        (mark.tail_len, mark.tail) = (self.tail.len() as u16, fingerprint(&self.tail));
        Ok(())
    }

    /// The first bytes of a regular file as they are now, at most [`ALIKE`]; none of others.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut head = vec![0; ALIKE];
        let n = if let Body::Regular(file) = &self.body { read_at(file, &mut head, 0).unwrap_or(0) } else { 0 };
        head.truncate(n);
        head
    }

    /// Puts the offset where an earlier reader of this file left it. Its fingerprints are kept rather than taken again: if the
    /// file was truncated since it was recognised, the next read notices.
    pub(super) fn go_on(&mut self, mark: &mut Mark, left: &Mark) -> io::Result<()> {
        let (device, inode, birth, copy) = (mark.device, mark.inode, mark.birth, mark.copy);
        self.seek(mark, left.offset, left.inside)?;
        if fingerprint(&self.tail) != left.tail {
            self.tail.iter_mut().for_each(|byte| *byte ^= 1);
        }
        *mark = Mark { device, inode, birth, copy, ..*left };
        Ok(())
    }

    /// Puts the offset at the end: what was there is not read, nor the rest of a line that was half written.
    pub(super) fn skip_to_end(&mut self, mark: &mut Mark) -> io::Result<()> {
        let Body::Regular(file) = &self.body else { return Ok(()) };
        let end = file.metadata()?.len();
        let mut last = [b'\n'];
        if end > 0 {
            let _ = file.read_at(&mut last, end - 1)?;
        }
        self.seek(mark, end, last != [b'\n'])
    }

    /// Puts the offset at the first line start at or after `from`.
    pub(super) fn seek_line(&mut self, mark: &mut Mark, from: u64) -> io::Result<()> {
        let Body::Regular(file) = &self.body else { return Ok(()) };
        let end = file.metadata()?.len();
        let from = from.min(end);
        let mut last = [b'\n'];
        if from > 0 {
            let _ = file.read_at(&mut last, from - 1)?;
        }
        // A file that now ends in the middle of a line lost the rest of it: what is written next begins a line.
        self.seek(mark, from, from < end && last != [b'\n'])
    }

    /// The file was cut short or rewritten: begins again.
    pub(super) fn begin_again(&mut self, mark: &mut Mark) {
        let Mark { device, inode, birth, modified, copy, .. } = *mark;
        let nothing = fingerprint(&[]);
        *mark = Mark { device, inode, birth, modified, copy, head: nothing, tail: nothing, ..Mark::default() };
        self.tail.clear();
        self.first = true;
        self.since = mark.modified;
        self.copies_from = i64::MIN;
        self.until = 0;
        self.size = 0;
        self.ready = true;
    }

    /// Reads and hands out until the end or until the share is used up.
    pub(super) fn read(&mut self, out: &mut Outlet<'_>) -> Turn {
        let turn = match &self.body {
            Body::Regular(_) => self.read_regular(out),
            _ => self.read_stream(out),
        };
        self.ready = matches!(turn, Turn::More | Turn::First(_) | Turn::Rewritten);
        self.finished = turn == Turn::Finished;
        turn
    }

    fn read_regular(&mut self, out: &mut Outlet<'_>) -> Turn {
        let Body::Regular(file) = &self.body else { return Turn::End };
        let meta = match file.metadata() {
            Ok(meta) => meta,
            Err(error) => return Turn::Failed(errno(&error)),
        };
        if !std::mem::replace(&mut self.deleted, meta.nlink() == 0) && self.deleted {
            self.busy = Instant::now();
        }
        loop {
            let Some(mark) = out.position.marks.get(out.index) else { return Turn::End };
            let Body::Regular(file) = &self.body else { return Turn::End };
            let known = self.tail.len();
            let from = mark.offset - known as u64;
            // Bytes from before following began are never in one chunk with later ones.
            let most = match self.until.checked_sub(mark.offset) {
                Some(left) if left > 0 => out.buffer.len().min(known.saturating_add(usize::try_from(left).unwrap_or(usize::MAX))),
                _ => out.buffer.len(),
            };
            let n = match file.read_at(&mut out.buffer[..most], from) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Turn::Failed(errno(&error)),
            };
            if n < known || out.buffer[..known] != self.tail[..] {
                return Turn::Rewritten;
            }
            if let Some(mark) = out.position.marks.get_mut(out.index) {
                mark.modified = modified(&meta);
            }
            if from + n as u64 > self.size {
                self.size = from + n as u64;
                self.busy = Instant::now();
            }
            if n == known {
                return Turn::End;
            }
            if self.first && known == 0 {
                return Turn::First(n);
            }
            let done = self.hand_out(out, known, n);
            let end = from + n as u64;
            if done == 0 && most < out.buffer.len() && end >= self.until {
                // A half line stands where following began: it belongs to what comes.
                self.until = 0;
                continue;
            }
            if end >= meta.len() && n < out.buffer.len() && (most == out.buffer.len() || end != self.until) {
                return Turn::End;
            }
            if n == out.buffer.len() && out.buffer[known..].iter().all(|byte| *byte == 0) {
                self.pass_hole(out, meta.len());
            }
            *out.share = out.share.saturating_sub(n - known);
            if *out.share == 0 {
                return Turn::More;
            }
        }
    }

    /// Only NUL comes: where that is a hole it is passed at once. Whoever may write to a log can make one of any size, and so does a
    /// writer that does not open for appending when its log is truncated.
    fn pass_hole(&mut self, out: &mut Outlet<'_>, size: u64) {
        let Body::Regular(file) = &self.body else { return };
        let Some(mark) = out.position.marks.get_mut(out.index) else { return };
        let Some(from) = i64::try_from(mark.offset).ok().filter(|_| !mark.inside) else { return };
        let data = match lseek(file, from, Whence::SeekData) {
            Ok(data) => u64::try_from(data).unwrap_or(0),
            Err(Errno::ENXIO) => size,
            Err(_) => return,
        };
        if data > mark.offset {
            // If it fails the next read shows it.
            let _ = self.seek(mark, data, false);
        }
    }

    /// Hands out what [`Turn::First`] left in the buffer, without reading it again: it may be gone by now.
    pub(super) fn hand_out_first(&mut self, out: &mut Outlet<'_>, bytes: usize) {
        // With nothing but a half line nothing is known yet.
        self.first = self.hand_out(out, 0, bytes) == 0;
        // The half line may only have been cut off where following began; then more can be read at once.
        self.ready = !self.first || std::mem::take(&mut self.until) > 0;
    }

    fn read_stream(&mut self, out: &mut Outlet<'_>) -> Turn {
        loop {
            let (n, carried) = match &mut self.body {
                Body::Regular(_) => return Turn::End,
                Body::Fifo(file, carry) => (read_after(file, carry, out.buffer), carry.len()),
                Body::Gz(text, carry) => (read_after(text, carry, out.buffer), carry.len()),
            };
            let n = match n {
                Ok(0) if self.fifo() => return Turn::End,
                Ok(0) => return Turn::Finished,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Turn::End,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Turn::Failed(errno(&error)),
            };
            self.busy = Instant::now();
            let done = self.hand_out(out, 0, carried + n);
            if let Body::Fifo(_, carry) | Body::Gz(_, carry) = &mut self.body {
                carry.clear();
                carry.extend_from_slice(&out.buffer[done..carried + n]);
            }
            *out.share = out.share.saturating_sub(n);
            if *out.share == 0 {
                return Turn::More;
            }
        }
    }

    /// Hands out the whole lines in `buffer[from..to]`, which begin at the offset. Returns how many bytes are done with.
    fn hand_out(&mut self, out: &mut Outlet<'_>, from: usize, to: usize) -> usize {
        let Outlet { path, tags, position, index, lines_cut, buffer, judge, .. } = out;
        let Some(mark) = position.marks.get(*index) else { return 0 };
        let (base, inside, until) = (mark.offset, mark.inside, self.until);
        let tail = &mut self.tail;
        let mut hand = |position: &Position, bytes: &[u8], at: usize| {
            let offset = base + at as u64;
            judge.chunk(Chunk { path, tags, bytes, offset, live: offset >= until, position });
        };
        cut(&mut buffer[from..to], inside, |piece| match piece {
            Piece::Passed(raw, inside) => {
                if let Some(mark) = position.marks.get_mut(*index) {
                    pass(tail, mark, raw);
                    mark.inside = inside;
                }
            }
            Piece::Lines(bytes, at) => hand(position, bytes, at),
            Piece::Cut(bytes, at) => {
                **lines_cut += 1;
                hand(position, bytes, at);
            }
        })
    }

    /// Hands out what stands after the last newline as a line, with a newline added: the file is complete and will be let go.
    pub(super) fn hand_out_rest(&mut self, out: &mut Outlet<'_>) {
        let Some(mark) = out.position.marks.get(out.index) else { return };
        let (offset, inside) = (mark.offset, mark.inside);
        let rest = match &mut self.body {
            Body::Regular(file) => {
                let mut rest = vec![0; LONGEST_LINE];
                let n = read_at(file, &mut rest, offset).unwrap_or(0);
                rest.truncate(n);
                rest
            }
            Body::Fifo(_, carry) | Body::Gz(_, carry) => std::mem::take(carry),
        };
        let mut line = rest.clone();
        line.push(b'\n');
        if rest.is_empty() || inside || rest.contains(&b'\n') || out.buffer.len() < line.len() {
            return;
        }
        if let Some(mark) = out.position.marks.get_mut(out.index) {
            pass(&mut self.tail, mark, &rest);
        }
        let live = offset >= self.until;
        out.judge.chunk(Chunk { path: out.path, tags: out.tags, bytes: &line, offset, live, position: out.position });
    }
}

/// `bytes`, which stand at the offset, are done with.
fn pass(tail: &mut Vec<u8>, mark: &mut Mark, bytes: &[u8]) {
    let head = HEAD.saturating_sub(mark.head_len as usize).min(bytes.len());
    if head > 0 && u64::from(mark.head_len) == mark.offset {
        mark.head = extend(mark.head, &bytes[..head]);
        mark.head_len += head as u16;
    }
    if bytes.len() >= TAIL {
        tail.clear();
        tail.extend_from_slice(&bytes[bytes.len() - TAIL..]);
    } else {
        tail.extend_from_slice(bytes);
        tail.drain(..tail.len().saturating_sub(TAIL));
    }
    mark.offset += bytes.len() as u64;
    (mark.tail_len, mark.tail) = (tail.len() as u16, fingerprint(tail));
}

/// Reads once, behind what was carried over.
fn read_after(from: &mut impl Read, carry: &[u8], buffer: &mut [u8]) -> io::Result<usize> {
    let (kept, free) = buffer.split_at_mut(carry.len().min(buffer.len()));
    kept.copy_from_slice(&carry[..kept.len()]);
    from.read(free)
}
