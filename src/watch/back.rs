//! Lines read back: what stood at an offset of a followed path, wherever that file has been rotated to since.
//!
//! An offset does not say which file it is an offset of: the path may lead to another one by now. So every candidate that has
//! a line beginning there is offered, the newest file first, and whoever asks says whether it is theirs.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::LONGEST_LINE;
use super::position::read_at;
use super::reader::open;
use super::siblings::{Sibling, siblings};

/// What stands before the line is offered with it, at most this much of it.
const BEFORE: usize = 64 * 1024;
/// Rotated files looked at, the newest first.
const ROTATED: usize = 8;
/// Compressed text read at most per file: what lies beyond is not worth the time.
const TEXT_AT_MOST: u64 = 1 << 30;

/// Says whether a line is the one that is looked for: an index into the offsets, the whole lines before it, and the line.
pub type Take<'a> = dyn FnMut(usize, &[u8], &[u8]) -> bool + 'a;

/// Offers the lines at `offsets` of what `path` leads to and led to. `take` is given an index into `offsets`, the whole lines
/// before it (at most 64 KiB) and the line without its newline; once it says yes that offset is done with.
pub fn read_back(path: &Path, offsets: &[u64], take: &mut Take<'_>) {
    let mut left: Vec<usize> = (0..offsets.len()).collect();
    left.sort_by_key(|at| offsets[*at]);
    if let Ok(file) = open(path) {
        plain(&file, offsets, &mut left, take);
    }
    if left.is_empty() {
        return;
    }
    for sibling in siblings(path).iter().rev().take(ROTATED) {
        match sibling.gz {
            true => compressed(sibling, offsets, &mut left, take),
            false => plain(&sibling.file, offsets, &mut left, take),
        }
        if left.is_empty() {
            return;
        }
    }
}

fn plain(file: &File, offsets: &[u64], left: &mut Vec<usize>, take: &mut Take<'_>) {
    let mut buffer = vec![0; BEFORE + LONGEST_LINE];
    left.retain(|at| {
        let offset = offsets[*at];
        let from = offset.saturating_sub(BEFORE as u64);
        let Ok(n) = read_at(file, &mut buffer, from) else { return true };
        !offer(*at, &buffer[..n], (offset - from) as usize, take)
    });
}

fn compressed(sibling: &Sibling, offsets: &[u64], left: &mut Vec<usize>, take: &mut Take<'_>) {
    let mut text = BufReader::with_capacity(64 * 1024, sibling.text());
    // The text from `base` on that is still of use.
    let (mut base, mut window) = (0u64, Vec::new());
    let mut ended = false;
    left.retain(|at| {
        let offset = offsets[*at];
        let wanted = offset.saturating_add(LONGEST_LINE as u64);
        if offset > TEXT_AT_MOST {
            return true;
        }
        while !ended && base + (window.len() as u64) < wanted {
            let len = window.len();
            window.resize(len + 64 * 1024, 0);
            let n = text.read(&mut window[len..]).unwrap_or(0);
            window.truncate(len + n);
            ended = n == 0;
            let spare = (offset.saturating_sub(BEFORE as u64).saturating_sub(base) as usize).min(window.len());
            if spare > 4 * LONGEST_LINE {
                window.drain(..spare);
                base += spare as u64;
            }
        }
        let Some(here) = offset.checked_sub(base).filter(|here| *here < window.len() as u64) else { return true };
        let here = here as usize;
        let from = here.saturating_sub(BEFORE);
        !offer(*at, &window[from..], here - from, take)
    });
}

/// Offers the line that begins at `at` of `bytes`, if one does.
fn offer(index: usize, bytes: &[u8], at: usize, take: &mut Take<'_>) -> bool {
    let Some((before, rest)) = bytes.split_at_checked(at) else { return false };
    if rest.is_empty() || before.last().is_some_and(|byte| *byte != b'\n') {
        return false;
    }
    let line = &rest[..memchr::memchr(b'\n', rest).unwrap_or(rest.len()).min(LONGEST_LINE)];
    // The first line of what stands before is cut, unless it is the file's first.
    let whole = match before.len() == BEFORE {
        true => memchr::memchr(b'\n', before).map_or(&before[before.len()..], |end| &before[end + 1..]),
        false => before,
    };
    take(index, whole, line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_are_found_wherever_their_file_was_rotated_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.log");
        let filler = format!("{}\n", "x".repeat(99)).repeat(3000);
        let text = |name: &str| format!("{name} one\n{name} two\n{filler}{name} three\n");
        std::fs::write(&path, text("now")).unwrap();
        std::fs::write(dir.path().join("m.log.1"), text("yesterday")).unwrap();
        let mut gz =
            flate2::write::GzEncoder::new(File::create(dir.path().join("m.log.2.gz")).unwrap(), flate2::Compression::fast());
        gz.write_all(text("before").as_bytes()).unwrap();
        gz.finish().unwrap();
        for name in ["now", "yesterday", "before"] {
            let whole = text(name);
            let offset = |of: &str| whole.find(of).unwrap() as u64;
            let offsets = [5, 0, offset(&format!("{name} two")), offset(&format!("{name} three"))];
            let mut found = vec![String::new(); offsets.len()];
            read_back(&path, &offsets, &mut |at, before, line| {
                let line = String::from_utf8_lossy(line).into_owned();
                let ours = line.starts_with(name);
                if ours {
                    assert!(
                        before.is_empty()
                            || (before.ends_with(b"\n") && whole.as_bytes().windows(before.len()).any(|w| w == before))
                    );
                    found[at] = line;
                }
                ours
            });
            assert_eq!(found, ["".to_owned(), format!("{name} one"), format!("{name} two"), format!("{name} three")]);
        }
        // Past the end, and of a path that never was.
        read_back(&path, &[1 << 40], &mut |_, _, _| panic!("nothing is there"));
        read_back(&dir.path().join("other"), &[0], &mut |_, _, _| panic!("nothing is there"));
    }
}
