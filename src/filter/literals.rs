//! Which literal texts a pattern can not match without: read off its syntax tree.
//!
//! A [`Needs`] lists alternatives: each is a set of literals of which at least one stands in every text that the pattern
//! matches. The prefilter chooses among them. The date is cut out of a line before patterns see it, so a text
//! may hold a literal that its line does not, across the cut. A date begins and ends at the edge of a word and
//! what stands around it is not part of a word: two adjacent bytes that are both outside words may be such a seam,
//! and no literal contains two of them side by side.

use regex_syntax::hir::{Class, Hir, HirKind};

/// Sets of literals, each of them sufficient; empty if the pattern needs no particular literal.
pub(crate) type Needs = Vec<Vec<Vec<u8>>>;

/// A set may have this many literals.
const WIDEST: usize = 24;
/// A literal shorter than this says too little.
pub(crate) const SHORTEST: usize = 3;

/// The literals a match of `hir` must contain.
pub(crate) fn needs(hir: &Hir) -> Needs {
    let mut out = match walk(hir) {
        Known::Exact(set) => vec![set],
        Known::Holds(needs) => needs,
    };
    out = out.into_iter().flat_map(|set| split(&set)).collect();
    out.retain(|set| !set.is_empty() && set.iter().all(|literal| literal.len() >= SHORTEST));
    out.sort();
    out.dedup();
    out
}

/// What is known about the texts a part of the tree matches.
enum Known {
    /// Exactly these.
    Exact(Vec<Vec<u8>>),
    /// They contain one of each of these sets.
    Holds(Needs),
}

fn walk(hir: &Hir) -> Known {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Known::Exact(vec![Vec::new()]),
        HirKind::Literal(literal) => Known::Exact(vec![literal.0.to_vec()]),
        HirKind::Class(class) => match letters(class) {
            Some(letters) => Known::Exact(letters.into_iter().map(|b| vec![b]).collect()),
            None => Known::Holds(Vec::new()),
        },
        HirKind::Capture(capture) => walk(&capture.sub),
        HirKind::Repetition(repetition) => match (walk(&repetition.sub), repetition.min) {
            (Known::Exact(set), 0) if repetition.max == Some(1) && set.len() < WIDEST => {
                Known::Exact(set.into_iter().chain([Vec::new()]).collect())
            }
            (_, 0) => Known::Holds(Vec::new()),
            (Known::Exact(set), 1) if repetition.max == Some(1) => Known::Exact(set),
            (Known::Exact(set), _) => Known::Holds(vec![set]),
            (holds, _) => holds,
        },
        HirKind::Concat(parts) => concat(parts),
        HirKind::Alternation(parts) => alternation(parts),
    }
}

/// The bytes of a small class.
fn letters(class: &Class) -> Option<Vec<u8>> {
    let Class::Bytes(class) = class else { return None };
    let count: usize = class.ranges().iter().map(regex_syntax::hir::ClassBytesRange::len).sum();
    (count <= 2).then(|| class.ranges().iter().flat_map(|r| r.start()..=r.end()).collect())
}

fn concat(parts: &[Hir]) -> Known {
    let mut run: Vec<Vec<u8>> = vec![Vec::new()];
    let mut needs: Needs = Vec::new();
    let mut exact = true;
    for part in parts {
        match walk(part) {
            Known::Exact(set) if run.len() * set.len() <= WIDEST => {
                run = run.iter().flat_map(|a| set.iter().map(move |b| [&a[..], &b[..]].concat())).collect();
            }
            Known::Exact(set) => {
                exact = false;
                needs.push(std::mem::replace(&mut run, set));
            }
            Known::Holds(more) => {
                exact = false;
                needs.push(std::mem::replace(&mut run, vec![Vec::new()]));
                needs.extend(more);
            }
        }
    }
    if exact {
        return Known::Exact(run);
    }
    needs.push(run);
    Known::Holds(needs)
}

/// One of the parts matches: a set out of each of them together is needed.
fn alternation(parts: &[Hir]) -> Known {
    let known: Vec<_> = parts.iter().map(walk).collect();
    let total: usize = known.iter().map(|k| if let Known::Exact(set) = k { set.len() } else { WIDEST + 1 }).sum();
    if total <= WIDEST {
        let sets = known.into_iter().filter_map(|k| if let Known::Exact(set) = k { Some(set) } else { None });
        return Known::Exact(sets.flatten().collect());
    }
    let mut all = Vec::new();
    for part in known {
        let sets = match part {
            Known::Exact(set) => vec![set],
            Known::Holds(needs) => needs,
        };
        let best = sets.into_iter().flat_map(|set| split(&set)).max_by_key(|set| weakest(set));
        match best {
            Some(set) if weakest(&set) > 0 => all.extend(set),
            _ => return Known::Holds(Vec::new()),
        }
    }
    all.sort();
    all.dedup();
    Known::Holds(if all.len() <= WIDEST { vec![all] } else { Vec::new() })
}

fn weakest(set: &[Vec<u8>]) -> usize {
    set.iter().map(Vec::len).min().unwrap_or(0)
}

const fn in_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// The sets that hold the pieces of this set's literals between possible seams: one piece of each literal per set.
fn split(set: &[Vec<u8>]) -> Needs {
    let pieces = |literal: &[u8]| -> Vec<Vec<u8>> {
        let mut pieces = vec![Vec::new()];
        for (i, b) in literal.iter().enumerate() {
            if i > 0 && !in_word(*b) && !in_word(literal[i - 1]) {
                pieces.push(Vec::new());
            }
            if let Some(last) = pieces.last_mut() {
                last.push(*b);
            }
        }
        pieces
    };
    if let [one] = set {
        return pieces(one).into_iter().map(|piece| vec![piece]).collect();
    }
    // Which piece is the telling one is for the prefilter to say: the longest, or the same one of each, counted from either end.
    let mut variants: Needs = Vec::new();
    let all: Vec<_> = set.iter().map(|literal| pieces(literal)).collect();
    let longest = |pieces: &Vec<Vec<u8>>| pieces.iter().max_by_key(|piece| piece.len()).cloned().unwrap_or_default();
    variants.push(all.iter().map(longest).collect());
    for i in 0..all.iter().map(Vec::len).min().unwrap_or(0) {
        variants.push(all.iter().map(|pieces| pieces[i].clone()).collect());
        variants.push(all.iter().map(|pieces| pieces[pieces.len() - 1 - i].clone()).collect());
    }
    for variant in &mut variants {
        variant.sort();
        variant.dedup();
    }
    variants
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pattern: &str) -> Vec<Vec<String>> {
        let hir = regex_syntax::ParserBuilder::new().utf8(false).unicode(false).build().parse(pattern).unwrap();
        let text = |l: &Vec<u8>| String::from_utf8_lossy(l).into_owned();
        needs(&hir).iter().map(|set| set.iter().map(text).collect()).collect()
    }

    #[test]
    fn literals_are_those_no_match_can_lack() {
        let table: [(&str, &[&[&str]]); 10] = [
            ("^abc$", &[&["abc"]]),
            (r"abc\d+def", &[&["abc"], &["def"]]),
            (r"x(?:ab|cd)y", &[&["xaby", "xcdy"]]),
            (r"(?:abc\d|def)", &[&["abc", "def"]]),
            (r"(?:abc)?x", &[]),
            (r"(?:abc)+", &[&["abc"]]),
            (r"(?:abc|\d+)", &[]),
            (r"\[\]: <word> more", &[&[" more"], &["<word>"]]),
            (r".*", &[]),
            (r"x: (?:vpopmail|system) user not found (.*):[0-9]", &[&[" system user not found ", " vpopmail user not found "]]),
        ];
        for (pattern, sets) in table {
            assert_eq!(of(pattern), sets, "{pattern}");
        }
    }
}
