//! The literals of a source's filters, chosen and searched together.
//!
//! Most lines of a log concern no filter. The patterns' required literals ([`super::literals`]) say which lines can: the
//! whole chunk is searched for all of them at once (SIMD), lines are looked at only around hits, and a line is tried only
//! against the patterns whose literals it holds. The choice is a small hitting set: every pattern's needs are met by one
//! of its sets, and literals that serve several patterns are preferred, since the searcher pays by the literal. It is
//! a filter and never the judge; a test proves it equal to trying every pattern on every line.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind, Span, packed};

use super::literals::{Needs, SHORTEST};

/// One packed search takes this many literals; beyond, it degrades, and a second pass is cheaper.
const PER_PASS: usize = 48;
/// A pass searches for at most this much of a literal.
const WINDOW: usize = 24;

/// Which of the slots (patterns of all filters, numbered through) a line may match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slots(Vec<u64>);

impl Slots {
    pub fn none(slots: usize) -> Slots {
        Slots(vec![0; slots.div_ceil(64)])
    }
    pub fn clear(&mut self) {
        self.0.fill(0);
    }
    pub fn insert(&mut self, slot: usize) {
        self.0[slot / 64] |= 1 << (slot % 64);
    }
    pub fn add(&mut self, other: &Slots) {
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
    /// The first slot at or after `from`.
    pub fn next(&self, from: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = self.0.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.0.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }
}

/// The search for all literals of a source.
#[derive(Debug)]
pub(crate) struct Prefilter {
    /// Slots to be tried on every line, since they need no literal.
    always: Slots,
    passes: Vec<Pass>,
    /// Tells which literals a line holds, however they overlap; its pattern ids index `meant`.
    all: Option<AhoCorasick>,
    meant: Vec<Slots>,
    /// A pass may find a literal this many bytes behind its start: by its window, or by another one that it holds.
    longest: usize,
}

#[derive(Debug)]
enum Pass {
    Packed(packed::Searcher),
    Plain(AhoCorasick),
}

impl Pass {
    fn find(&self, chunk: &[u8], from: usize) -> Option<usize> {
        let span = Span { start: from, end: chunk.len() };
        match self {
            Pass::Packed(searcher) => searcher.find_in(chunk, span).map(|m| m.start()),
            Pass::Plain(searcher) => searcher.find(aho_corasick::Input::new(chunk).span(span)).map(|m| m.start()),
        }
    }
}

impl Prefilter {
    /// Chooses the literals for these patterns' needs, one entry per slot; `None` for a slot that can never match.
    pub fn new(needs: &[Option<Needs>]) -> Prefilter {
        let mut always = Slots::none(needs.len());
        let mut chosen: Vec<Option<&Vec<Vec<u8>>>> = vec![None; needs.len()];
        // Two rounds: in the second every pattern knows what the others took.
        for round in 0..2 {
            for slot in 0..needs.len() {
                let Some(sets) = &needs[slot] else { continue };
                chosen[slot] = None;
                let mut taken: Vec<&[u8]> = chosen.iter().flatten().flat_map(|set| set.iter()).map(Vec::as_slice).collect();
                taken.sort_unstable();
                let cost = |set: &&Vec<Vec<u8>>| -> u64 {
                    let new = set.iter().filter(|literal| taken.binary_search(&literal.as_slice()).is_err());
                    new.map(|literal| 40 + frequency(literal)).sum()
                };
                chosen[slot] = sets.iter().min_by_key(cost);
                if chosen[slot].is_none() && round == 0 {
                    always.insert(slot);
                }
            }
        }
        let mut literals: Vec<&[u8]> = chosen.iter().flatten().flat_map(|set| set.iter()).map(Vec::as_slice).collect();
        literals.sort_unstable();
        literals.dedup();
        let mut meant = vec![Slots::none(needs.len()); literals.len()];
        for (slot, set) in chosen.iter().enumerate() {
            for literal in set.iter().flat_map(|set| set.iter()) {
                if let Ok(id) = literals.binary_search(&literal.as_slice()) {
                    meant[id].insert(slot);
                }
            }
        }
        let longest = literals.iter().map(|literal| literal.len()).max().unwrap_or(0);
        let mut searched: Vec<&[u8]> = literals.iter().map(|literal| window(literal)).collect();
        searched.sort_unstable();
        searched.dedup();
        let whole = searched.clone();
        // A literal that holds another one is found by it.
        searched.retain(|long| !whole.iter().any(|short| short != long && memchr::memmem::find(long, short).is_some()));
        let all = (!literals.is_empty())
            .then(|| AhoCorasick::builder().kind(Some(AhoCorasickKind::DFA)).build(&literals).ok())
            .flatten();
        if all.is_none() {
            // Nothing to search for, or more than can be built: every line is tried.
            for slot in (0..needs.len()).filter(|slot| needs[*slot].is_some()) {
                always.insert(slot);
            }
        }
        let passes = searched.chunks(PER_PASS).filter_map(pass).collect();
        Prefilter { always, passes, all, meant, longest }
    }

    /// Whether every line must be looked at.
    pub fn sees_every_line(&self) -> bool {
        !self.always.is_empty()
    }

    /// Walks over the candidate lines of a chunk of whole lines, in order.
    pub fn candidates<'a>(&'a self, chunk: &'a [u8]) -> Candidates<'a> {
        let next = vec![0; if self.sees_every_line() { 0 } else { self.passes.len() }];
        Candidates { prefilter: self, chunk, at: 0, next, fresh: true }
    }

    /// Which slots the line may match; `from` is where the first hit of a pass in it was.
    fn slots(&self, line: &[u8], from: usize, slots: &mut Slots) {
        slots.clear();
        slots.add(&self.always);
        if let Some(all) = &self.all {
            let start = from.saturating_sub(self.longest);
            for found in all.find_overlapping_iter(aho_corasick::Input::new(line).range(start..)) {
                slots.add(&self.meant[found.pattern().as_usize()]);
            }
        }
    }
}

/// The candidate lines of a chunk.
pub(crate) struct Candidates<'a> {
    prefilter: &'a Prefilter,
    chunk: &'a [u8],
    at: usize,
    /// Where each pass has its next hit; the end of the chunk if nowhere.
    next: Vec<usize>,
    fresh: bool,
}

impl Candidates<'_> {
    /// The next candidate line (its bytes in the chunk, without the newline); `slots` becomes what it may match.
    pub fn next(&mut self, slots: &mut Slots) -> Option<(usize, usize)> {
        let length = self.chunk.len();
        loop {
            if self.at >= length {
                return None;
            }
            let mut hit = self.at;
            if !self.prefilter.sees_every_line() {
                hit = length;
                for (pass, next) in self.prefilter.passes.iter().zip(&mut self.next) {
                    if *next < self.at || self.fresh {
                        *next = pass.find(self.chunk, self.at).unwrap_or(length);
                    }
                    hit = hit.min(*next);
                }
                self.fresh = false;
                if hit == length {
                    return None;
                }
            }
            let start = memchr::memrchr(b'\n', &self.chunk[self.at..hit]).map_or(self.at, |i| self.at + i + 1);
            let end = memchr::memchr(b'\n', &self.chunk[hit..]).map_or(length, |i| hit + i);
            self.at = end + 1;
            let from = if self.prefilter.sees_every_line() { 0 } else { hit - start };
            self.prefilter.slots(&self.chunk[start..end], from, slots);
            if !slots.is_empty() {
                return Some((start, end));
            }
        }
    }
}

fn pass(literals: &[&[u8]]) -> Option<Pass> {
    let mut builder = packed::Config::new().match_kind(packed::MatchKind::LeftmostFirst).builder();
    match builder.extend(literals).build() {
        Some(searcher) => Some(Pass::Packed(searcher)),
        None => {
            let plain =
                AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).kind(Some(AhoCorasickKind::DFA)).build(literals);
            plain.or_else(|_| AhoCorasick::new(literals)).ok().map(Pass::Plain)
        }
    }
}

/// The part of a literal that a pass looks for: the packed searcher compares the first bytes of each, so it should begin with
/// bytes that are rare together.
fn window(literal: &[u8]) -> &[u8] {
    let keep = literal.len().min(12);
    let rare = |from: &usize| literal[*from..literal.len().min(*from + 4)].iter().map(|b| u64::from(bits(*b))).sum::<u64>();
    let skip = (0..=literal.len() - keep).max_by_key(|from| (rare(from), std::cmp::Reverse(*from))).unwrap_or(0);
    &literal[skip..literal.len().min(skip + WINDOW)]
}

/// How often a literal is likely to stand in the logs of a mail gateway: 0 for hardly ever, thousands for in every other line.
/// Words are no random bytes, so only some dozen letters say enough.
fn frequency(literal: &[u8]) -> u64 {
    if EVERYDAY.iter().any(|phrase| memchr::memmem::find(phrase.as_bytes(), literal).is_some()) {
        return 5000;
    }
    let bits: u64 = literal.iter().map(|b| u64::from(bits(*b))).sum();
    900_u64.saturating_sub(bits) + if literal.len() == SHORTEST { 1000 } else { 0 }
}

/// What servers write into lines of every kind: no way to tell the few from the many.
const EVERYDAY: [&str; 29] = [
    "Disconnected: Logged out in=",
    "Disconnected: Connection closed ",
    " found existing recipient",
    " reason=",
    " not found ",
    "postfix/smtpd[",
    " dovecot: imap-login: Info: Login: ",
    " pop3-login: ",
    " managesieve-login: ",
    " auth-worker(",
    " sshd-session[",
    " sshd[",
    " sendmail[",
    " sm-mta[",
    " disconnect from unknown[",
    " from ",
    " for user ",
    ": user=<",
    ", method=PLAIN, rip=",
    ", lip=",
    ", session=<",
    " port ssh2 [preauth]",
    ", relay=",
    ", client=",
    " vpopmail[",
    " vchkpw-smtp: ",
    " qmail-smtpd: ",
    " qlogenvelope: result=",
    " remoteip= remoteport= remotehost= localip= localport= helo= mailfrom= rcptto= pid= ",
];

/// About how many tenths of a bit a byte says in a log line.
const fn bits(b: u8) -> u8 {
    match b {
        b' ' => 28,
        b'e' | b't' | b'a' | b'o' | b'i' | b'n' | b's' | b'r' => 40,
        b'0'..=b'9' | b'.' | b':' => 42,
        b'l' | b'd' | b'c' | b'u' | b'm' | b'p' | b'-' => 47,
        b'f' | b'g' | b'h' | b'w' | b'y' | b'b' | b'v' | b'=' | b'/' | b',' | b'[' | b']' => 55,
        b'<' | b'>' | b'(' | b')' | b'A'..=b'Z' | b'_' | b'k' => 62,
        _ => 75,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::filter::{Filter, Options, Scanner, When, definition, shipped};
    use crate::terms::Time;

    /// The lines of all samples, the raw material for mutation.
    fn sample_lines() -> Vec<Vec<u8>> {
        let lines = |(name, text): &(&str, &str)| {
            let samples = definition::parse(name, text).unwrap().samples;
            samples.into_iter().flat_map(|s| s.line.lines().map(|l| l.as_bytes().to_vec()).collect::<Vec<_>>())
        };
        shipped().iter().flat_map(lines).filter(|l| !l.is_empty()).collect()
    }

    fn filters(mode: &str, plain: bool) -> Vec<Arc<Filter>> {
        let compile = |(name, text): &(&str, &str)| {
            let definition = definition::parse(name, text).unwrap();
            let mode = if definition.modes.contains_key(mode) { mode } else { "normal" };
            let mut params = BTreeMap::from([("mode".to_owned(), vec![mode.to_owned()])]);
            if *name == "roundcube" {
                params.insert("proxy".to_owned(), vec!["10.0.0.0/8".to_owned()]);
            }
            let filter = Filter::compile(&definition, &params, &Options::default()).unwrap();
            Arc::new(if plain { filter.without_walks() } else { filter })
        };
        shipped().iter().map(compile).collect()
    }

    /// Sample lines cut, joined and changed at random places.
    fn mutated() -> impl Strategy<Value = Vec<u8>> {
        let lines = sample_lines();
        let pick = || proptest::sample::select(lines.clone());
        let place = || 0.0..1.0_f64;
        let cut = (pick(), pick(), place(), place()).prop_map(|(a, b, x, y)| {
            let at = |line: &[u8], x: f64| (line.len() as f64 * x) as usize;
            [&a[..at(&a, x)], &b[at(&b, y)..]].concat()
        });
        let edit = (pick(), place(), proptest::collection::vec(any::<u8>(), 0..4)).prop_map(|(mut line, x, bytes)| {
            let at = (line.len() as f64 * x) as usize;
            let end = (at + bytes.len()).min(line.len());
            line.splice(at..end, bytes);
            line
        });
        prop_oneof![pick(), cut, edit, proptest::collection::vec(any::<u8>(), 0..80)]
            .prop_map(|line| line.into_iter().filter(|b| *b != b'\n').collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 40 } else { 20_000 }))]

        #[test]
        fn neither_it_nor_a_walk_changes_what_is_found(lines in proptest::collection::vec(mutated(), 1..20)) {
            thread_local! {
                static FILTERS: [Vec<Arc<Filter>>; 2] = [filters("aggressive", false), filters("aggressive", true)];
            }
            let chunk: Vec<u8> = lines.iter().flat_map(|line| line.iter().copied().chain([b'\n'])).collect();
            let when = When { now: Time::from_secs(1_768_478_400), live: true };
            let [quick, slow] = FILTERS.with(Clone::clone);
            let (mut filtered, mut plain) = (Scanner::new(quick), Scanner::new(slow));
            plain.try_everything();
            let (mut a, mut b) = (Vec::new(), Vec::new());
            filtered.scan(&chunk, when, &mut a);
            plain.scan(&chunk, when, &mut b);
            prop_assert_eq!(a, b);
        }
    }

    fn set(literals: &[&str]) -> Vec<Vec<u8>> {
        literals.iter().map(|l| l.as_bytes().to_vec()).collect()
    }

    fn walk(prefilter: &Prefilter, slots: usize, chunk: &str) -> Vec<String> {
        let mut candidates = prefilter.candidates(chunk.as_bytes());
        let mut hit = Slots::none(slots);
        let mut out = Vec::new();
        while let Some((start, end)) = candidates.next(&mut hit) {
            let mut all = Vec::new();
            let mut from = 0;
            while let Some(slot) = hit.next(from) {
                all.push(slot.to_string());
                from = slot + 1;
            }
            out.push(format!("{}: {}", &chunk[start..end], all.join(" ")));
        }
        out
    }

    #[test]
    fn lines_come_with_the_patterns_whose_literals_they_hold() {
        let needs =
            [Some(vec![set(&["alpha"])]), Some(vec![set(&["beta"]), set(&["gamma"])]), None, Some(vec![set(&["alphabeta"])])];
        let prefilter = Prefilter::new(&needs);
        assert!(!prefilter.sees_every_line());
        let lines = "x\nan alphabetagamma\n\nalpha\nbet\n";
        assert_eq!(walk(&prefilter, 4, lines), ["an alphabetagamma: 0 1 3", "alpha: 0"]);
        assert_eq!(walk(&prefilter, 4, "alpha"), ["alpha: 0"]);
        assert_eq!(walk(&prefilter, 4, ""), Vec::<String>::new());
    }

    #[test]
    fn a_pattern_without_literals_is_tried_on_every_line() {
        let prefilter = Prefilter::new(&[Some(vec![]), Some(vec![set(&["alpha"])])]);
        assert!(prefilter.sees_every_line());
        assert_eq!(walk(&prefilter, 2, "x\nalpha\n"), ["x: 0", "alpha: 0 1"]);
    }

    #[test]
    fn many_literals_take_several_passes() {
        let needs: Vec<_> = (0..200).map(|i| Some(vec![set(&[&format!("word{i:03}x")])])).collect();
        let prefilter = Prefilter::new(&needs);
        assert_eq!(prefilter.passes.len(), 5);
        let lines: String = (0..200).map(|i| format!("a line with word{i:03}x\nand one without\n")).collect();
        assert_eq!(walk(&prefilter, 200, &lines).len(), 200);
    }

    #[test]
    fn every_shipped_filter_needs_one_pass_and_always_a_literal() {
        for filter in filters("normal", false) {
            let name = filter.name().to_owned();
            let scanner = Scanner::new(vec![filter]);
            let prefilter = scanner.prefilter();
            assert!(!prefilter.sees_every_line(), "{name}");
            assert_eq!(prefilter.passes.len(), 1, "{name}");
        }
    }
}
