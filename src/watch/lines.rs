//! Cutting bytes into chunks of whole lines: pure, in place, without looking at each line.
//!
//! The common chunk costs one search for the last newline, one for a NUL (which a log never holds, unless power was lost), and
//! one per 64 KiB to be sure that no line is longer.

use memchr::{memchr, memrchr};

use super::LONGEST_LINE;

/// What [`cut`] says about the bytes it was given, in order. Every byte is passed before the line that it ends is handed out, so
/// that the position a line is handed out with is the one after it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// These bytes, as they stand in the file, are done with; true if they end inside a cut line.
    Passed(&'a [u8], bool),
    /// Whole lines, each with its newline, and where they begin.
    Lines(&'a [u8], usize),
    /// The first [`LONGEST_LINE`] bytes of a longer line, with a newline where the rest was, and where it begins.
    Cut(&'a [u8], usize),
}

/// Walks over `bytes`, which begin at the start of a line (or inside a cut line if `inside`), and gives each piece to `each`.
/// Returns how many bytes are done with; what is left is a half line.
pub(super) fn cut(bytes: &mut [u8], inside: bool, mut each: impl FnMut(Piece<'_>)) -> usize {
    let mut start = 0;
    if inside {
        let newline = memchr(b'\n', bytes);
        start = newline.map_or(bytes.len(), |at| at + 1);
        each(Piece::Passed(&bytes[..start], newline.is_none()));
    }
    let nul = memchr(0, &bytes[start..]).is_some();
    // `start`: everything before is done with. From there to `line`, the start of a line, no line is too long.
    let mut line = start;
    loop {
        // Blocks of NUL are what a file system leaves after a power loss, or a writer that did not open for appending after a
        // truncation: no line, but the line after them is one.
        let block = if nul { nul_line(&bytes[line..]).map(|at| line + at) } else { None };
        let limit = block.unwrap_or(bytes.len());
        let mut long = false;
        while limit - line > LONGEST_LINE && !long {
            match memrchr(b'\n', &bytes[line..=line + LONGEST_LINE]) {
                Some(at) => line += at + 1,
                None => long = true,
            }
        }
        if long {
            lines(bytes, start, line, &mut each);
            let stop = line + LONGEST_LINE;
            let newline = memchr(b'\n', &bytes[stop..]);
            start = newline.map_or(bytes.len(), |at| stop + at + 1);
            each(Piece::Passed(&bytes[line..start], newline.is_none()));
            // The newline is written over a byte of the line and taken back, so that nothing is copied.
            let kept = std::mem::replace(&mut bytes[stop], b'\n');
            each(Piece::Cut(&bytes[line..=stop], line));
            bytes[stop] = kept;
        } else if let Some(block) = block {
            lines(bytes, start, block, &mut each);
            start = bytes[block..].iter().position(|byte| *byte != 0).map_or(bytes.len(), |run| block + run);
            each(Piece::Passed(&bytes[block..start], false));
        } else {
            let end = memrchr(b'\n', &bytes[line..]).map_or(line, |at| line + at + 1);
            lines(bytes, start, end, &mut each);
            return end;
        }
        line = start;
    }
}

fn lines(bytes: &[u8], from: usize, to: usize, each: &mut impl FnMut(Piece<'_>)) {
    if from < to {
        each(Piece::Passed(&bytes[from..to], false));
        each(Piece::Lines(&bytes[from..to], from));
    }
}

/// The first line start whose byte is NUL.
fn nul_line(bytes: &[u8]) -> Option<usize> {
    memchr::memchr_iter(0, bytes).find(|at| *at == 0 || bytes[at - 1] == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The obvious way: one line after the other.
    fn plainly(bytes: &[u8], inside: &mut bool) -> (Vec<Vec<u8>>, usize) {
        let (mut out, mut done) = (Vec::new(), 0);
        loop {
            let rest = &bytes[done..];
            if *inside {
                match rest.iter().position(|b| *b == b'\n') {
                    Some(at) => done += at + 1,
                    None => return (out, bytes.len()),
                }
                *inside = false;
                continue;
            }
            let nuls = rest.iter().take_while(|b| **b == 0).count();
            if nuls > 0 {
                done += nuls;
                continue;
            }
            match rest.iter().position(|b| *b == b'\n') {
                Some(at) if at <= LONGEST_LINE => {
                    out.push(rest[..=at].to_vec());
                    done += at + 1;
                }
                None if rest.len() <= LONGEST_LINE => return (out, done),
                _ => {
                    out.push([&rest[..LONGEST_LINE], b"\n"].concat());
                    done += LONGEST_LINE;
                    *inside = true;
                }
            }
        }
    }

    fn check(text: &[u8], was_inside: bool) {
        let mut expected_inside = was_inside;
        let (expected, expected_done) = plainly(text, &mut expected_inside);
        let (mut bytes, mut inside) = (text.to_vec(), was_inside);
        let (mut lines, mut passed) = (Vec::new(), 0);
        let done = cut(&mut bytes, was_inside, |piece| match piece {
            Piece::Passed(raw, now_inside) => {
                assert_eq!(raw, &text[passed..passed + raw.len()], "every byte is passed once, as it stands in the file");
                passed += raw.len();
                inside = now_inside;
            }
            Piece::Lines(piece, at) | Piece::Cut(piece, at) => {
                assert!(at < passed && piece.last() == Some(&b'\n'));
                lines.extend(piece.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec));
            }
        });
        assert_eq!((done, passed, inside), (expected_done, expected_done, expected_inside), "{} bytes", text.len());
        assert!(lines == expected, "{} lines, not {}", lines.len(), expected.len());
        assert_eq!(bytes, text, "the bytes themselves are left as they were");
    }

    #[test]
    fn lines_are_cut_as_the_obvious_way_cuts_them() {
        let long = vec![b'x'; LONGEST_LINE];
        let nuls = vec![0; LONGEST_LINE + 7];
        let table: [Vec<&[u8]>; 18] = [
            vec![b""],
            vec![b"half"],
            vec![b"a\n"],
            vec![b"a\n\nb\nhalf"],
            vec![b"\0\0a\n\0b\nc\0d\n\0"],
            vec![&long],
            vec![&long, b"\n"],
            vec![&long, b"y\n"],
            vec![&long, b"y"],
            vec![&long, &long, b"\nnext\n"],
            vec![b"a\n", &long, b"y\nb\n", &long, b"z\nc\nhalf"],
            vec![b"a\n", &nuls, b"b\n", &nuls],
            vec![b"half", &nuls, b"b\n"],
            vec![&nuls, &long, b"y\n", &nuls, b"c"],
            vec![b"a\n", &long, b"\n", &nuls, b"b\n"],
            vec![b"a\r\nb\r\n"],
            vec![b"\xff\xfe\n\xc3\n"],
            vec![&long[1..], b"\n\0", &long[1..], b"\n"],
        ];
        for parts in table {
            let text = parts.concat();
            check(&text, false);
            check(&text, true);
        }
    }

    #[test]
    fn any_bytes_are_cut_as_the_obvious_way_cuts_them() {
        let mut seed = 7_u64;
        let mut dice = |sides: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % sides
        };
        for _ in 0..400 {
            let mut text = Vec::new();
            for _ in 0..dice(12) {
                let (byte, most) = [(b'x', 90_000), (0, 90_000), (b'\n', 3), (b'y', 70), (0, 3)][dice(5) as usize];
                let length = if dice(3) == 0 { dice(most) } else { dice(9) };
                text.extend(std::iter::repeat_n(byte, length as usize));
                if dice(2) == 0 {
                    text.push(b'\n');
                }
            }
            check(&text, dice(4) == 0);
        }
    }
}
