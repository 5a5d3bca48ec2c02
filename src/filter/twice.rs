//! The groups of a match in a long text, in a few nanoseconds a byte.
//!
//! Engines that keep the groups of every way they are on need a third of a microsecond for each byte. Here the text is read
//! twice instead, once its match is known. First backward from the match's end, with a lazily built automaton: for each
//! place, from which states of the pattern can that end still be reached? Then forward from the match's start: of several
//! ways the preferred one among those that reach the end is taken, so no step is ever taken back. What comes out is
//! the match that the regex engine prefers; a property test holds them against each other.
//!
//! Nothing is kept between two texts but the pattern's states: long lines that match are rare, unless somebody sends them.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use regex_automata::nfa::thompson::{Compiler, Config, NFA, State, WhichCaptures};
use regex_syntax::hir::Look;

use super::walk::{Room, holds};

/// The automaton may have this many states, and their sets so many bytes; then the regex engine must do.
const MOST_STATES: usize = 16 * 1024;
const MOST_BYTES: usize = 16 << 20;
/// No transition yet.
const UNKNOWN: u32 = u32::MAX;

/// A pattern that can be read twice.
#[derive(Debug)]
pub(crate) struct Twice {
    nodes: Vec<Node>,
    start: u32,
    end: u32,
    slots: usize,
    /// Who leads to a node by a byte, and by none.
    before: Vec<Vec<(u32, u8, u8)>>,
    free: Vec<Vec<(u32, Option<Look>)>>,
    classes: [u8; 256],
    /// Number of byte classes.
    width: usize,
    /// Whether what stands before a byte matters.
    looks: bool,
    hasher: RandomState,
}

#[derive(Debug)]
enum Node {
    Bytes(Box<[(u8, u8, u32)]>),
    Split(Box<[u32]>),
    Save(usize, u32),
    Look(Look, u32),
    Match,
    Fail,
}

/// The automaton as far as it is known: sets of nodes, and where bytes lead.
struct Sets {
    /// `words` for each state.
    bits: Vec<u64>,
    words: usize,
    next: Vec<u32>,
    index: HashTable<u32>,
}

/// What stands before a byte: nothing, a byte of a word, another.
const KINDS: usize = 3;

enum Go {
    To(u32),
    Back { slot: usize, was: usize },
}

impl Twice {
    /// The pattern, if it holds nothing that this way does not know. It is parsed as bytes, without Unicode.
    pub fn new(pattern: &str) -> Option<Twice> {
        let hir = regex_syntax::ParserBuilder::new().utf8(false).unicode(false).build().parse(pattern).ok()?;
        let config = Config::new().utf8(false).which_captures(WhichCaptures::All);
        let nfa = Compiler::new().configure(config).build_from_hir(&hir).ok()?;
        // The compiler makes no dense states; whoever came upon one would have to be told apart.
        let dense = nfa.states().iter().any(|state| matches!(state, State::Dense(_)));
        if dense || nfa.look_set_any().iter().any(|look| translated(look).is_none()) {
            return None;
        }
        Some(Twice::of(&nfa))
    }

    fn of(nfa: &NFA) -> Twice {
        let id = |id: regex_automata::util::primitives::StateID| id.as_u32();
        let mut end = 0;
        let mut slots = 2;
        let node = |(at, state): (usize, &State)| match state {
            State::ByteRange { trans } => Node::Bytes([(trans.start, trans.end, id(trans.next))].into()),
            State::Sparse(sparse) => Node::Bytes(sparse.transitions.iter().map(|t| (t.start, t.end, id(t.next))).collect()),
            State::Look { look, next } => translated(*look).map_or(Node::Fail, |look| Node::Look(look, id(*next))),
            State::Union { alternates } => Node::Split(alternates.iter().map(|alternate| id(*alternate)).collect()),
            State::BinaryUnion { alt1, alt2 } => Node::Split([id(*alt1), id(*alt2)].into()),
            State::Capture { next, slot, .. } => {
                slots = slots.max(slot.as_usize() + 1);
                Node::Save(slot.as_usize(), id(*next))
            }
            State::Dense(_) | State::Fail => Node::Fail,
            State::Match { .. } => {
                end = at as u32;
                Node::Match
            }
        };
        let nodes: Vec<Node> = nfa.states().iter().enumerate().map(node).collect();
        let mut before = vec![Vec::new(); nodes.len()];
        let mut free = vec![Vec::new(); nodes.len()];
        for (from, node) in nodes.iter().enumerate() {
            let from = from as u32;
            match node {
                Node::Bytes(list) => list.iter().for_each(|(low, high, to)| before[*to as usize].push((from, *low, *high))),
                Node::Split(list) => list.iter().for_each(|to| free[*to as usize].push((from, None))),
                Node::Save(_, to) => free[*to as usize].push((from, None)),
                Node::Look(look, to) => free[*to as usize].push((from, Some(*look))),
                Node::Match | Node::Fail => {}
            }
        }
        let classes = std::array::from_fn(|b| nfa.byte_classes().get(b as u8));
        let width = usize::from(classes.iter().copied().max().unwrap_or(0)) + 1;
        let looks = !nfa.look_set_any().is_empty();
        Twice {
            nodes,
            start: nfa.start_anchored().as_u32(),
            end,
            slots,
            before,
            free,
            classes,
            width,
            looks,
            hasher: RandomState::new(),
        }
    }

    /// Finds the groups of the match that spans `start..end` of `text`. False if that took more room than there is; `room` knows
    /// the groups otherwise.
    pub fn groups(&self, text: &[u8], (start, end): (usize, usize), room: &mut Room) -> bool {
        let mut sets = Sets { bits: Vec::new(), words: self.nodes.len().div_ceil(64), next: Vec::new(), index: HashTable::new() };
        let mut places = vec![0_u32; end - start + 1];
        self.backward(text, start, &mut sets, &mut places)
            && self.forward(text, (start, end), &sets, &places, room.fresh(self.slots))
    }

    /// Notes for each place from the end to the start from which nodes the end can be reached.
    fn backward(&self, text: &[u8], start: usize, sets: &mut Sets, places: &mut [u32]) -> bool {
        let mut reached = Reached::new(self.nodes.len());
        let end = start + places.len() - 1;
        reached.put(self.end);
        self.close(&mut reached, text, end);
        let Some(mut state) = self.state(&reached, sets) else { return false };
        places[end - start] = state;
        for at in (start..end).rev() {
            let kind = match at.checked_sub(1).map(|before| text[before]) {
                _ if !self.looks => 2,
                None => 0,
                Some(b) => 2 - usize::from(b.is_ascii_alphanumeric() || b == b'_'),
            };
            let byte = text[at];
            let edge = (state as usize * self.width + usize::from(self.classes[usize::from(byte)])) * KINDS + kind;
            let mut next = sets.next[edge];
            if next == UNKNOWN {
                reached.clear();
                for node in sets.of(state) {
                    for (from, low, high) in &self.before[node as usize] {
                        if (*low..=*high).contains(&byte) {
                            reached.put(*from);
                        }
                    }
                }
                self.close(&mut reached, text, at);
                let Some(found) = self.state(&reached, sets) else { return false };
                next = found;
                sets.next[edge] = next;
            }
            state = next;
            places[at - start] = state;
        }
        true
    }

    /// Adds the nodes that lead without a byte to those that were reached.
    fn close(&self, reached: &mut Reached, text: &[u8], at: usize) {
        let mut done = 0;
        while let Some(node) = reached.list.get(done) {
            done += 1;
            for (from, look) in &self.free[*node as usize] {
                if look.is_none_or(|look| holds(look, text, at)) {
                    reached.put(*from);
                }
            }
        }
    }

    /// The state of a set of nodes; `None` if there is no room for another.
    fn state(&self, reached: &Reached, sets: &mut Sets) -> Option<u32> {
        let hash = self.hasher.hash_one(&reached.bits);
        let words = sets.words;
        let bits = &sets.bits;
        let same = |state: &u32| bits[*state as usize * words..][..words] == reached.bits[..];
        if let Some(state) = sets.index.find(hash, same) {
            return Some(*state);
        }
        let count = sets.bits.len() / words;
        if count == MOST_STATES || (count * words * 8) + sets.next.len() * 4 > MOST_BYTES {
            return None;
        }
        let hasher = &self.hasher;
        sets.bits.extend_from_slice(&reached.bits);
        sets.next.resize((count + 1) * self.width * KINDS, UNKNOWN);
        let bits = &sets.bits;
        sets.index.insert_unique(hash, count as u32, |state| hasher.hash_one(&bits[*state as usize * words..][..words]));
        Some(count as u32)
    }

    /// Takes the preferred way among those that reach the end.
    fn forward(&self, text: &[u8], (start, end): (usize, usize), sets: &Sets, places: &[u32], slots: &mut [usize]) -> bool {
        let mut seen = vec![usize::MAX; self.nodes.len()];
        let mut stack = vec![Go::To(self.start)];
        let mut at = start;
        while let Some(go) = stack.pop() {
            let mut node = match go {
                Go::To(node) => node,
                Go::Back { slot, was } => {
                    slots[slot] = was;
                    continue;
                }
            };
            // As in the engine, a node is entered once at each place: a loop may not turn without a byte.
            while sets.has(places[at - start], node) && seen[node as usize] != at {
                seen[node as usize] = at;
                match &self.nodes[node as usize] {
                    Node::Bytes(list) => {
                        let byte = text[at];
                        let Some((_, _, to)) = list.iter().find(|(low, high, _)| (*low..=*high).contains(&byte)) else { break };
                        stack.clear();
                        node = *to;
                        at += 1;
                    }
                    Node::Split(list) => {
                        let Some((first, rest)) = list.split_first() else { break };
                        stack.extend(rest.iter().rev().map(|node| Go::To(*node)));
                        node = *first;
                    }
                    Node::Save(slot, to) => {
                        stack.push(Go::Back { slot: *slot, was: slots[*slot] });
                        slots[*slot] = at;
                        node = *to;
                    }
                    Node::Look(look, to) => {
                        if !holds(*look, text, at) {
                            break;
                        }
                        node = *to;
                    }
                    Node::Match => return at == end,
                    Node::Fail => break,
                }
            }
        }
        false
    }
}

/// The engine's name for a look as the parser's, for those that are known here.
fn translated(look: regex_automata::util::look::Look) -> Option<Look> {
    use regex_automata::util::look::Look as Engine;
    Some(match look {
        Engine::Start => Look::Start,
        Engine::End => Look::End,
        Engine::WordAscii => Look::WordAscii,
        Engine::WordStartHalfAscii => Look::WordStartHalfAscii,
        Engine::WordEndHalfAscii => Look::WordEndHalfAscii,
        _ => return None,
    })
}

impl Sets {
    fn has(&self, state: u32, node: u32) -> bool {
        self.bits[state as usize * self.words + node as usize / 64] >> (node % 64) & 1 == 1
    }

    fn of(&self, state: u32) -> impl Iterator<Item = u32> + '_ {
        let row = &self.bits[state as usize * self.words..][..self.words];
        row.iter().enumerate().flat_map(|(word, bits)| {
            let mut left = *bits;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(word as u32 * 64 + bit)
            })
        })
    }
}

/// A set of nodes while it grows.
struct Reached {
    bits: Vec<u64>,
    list: Vec<u32>,
}

impl Reached {
    fn new(nodes: usize) -> Reached {
        Reached { bits: vec![0; nodes.div_ceil(64)], list: Vec::new() }
    }

    fn put(&mut self, node: u32) {
        let (word, bit) = (node as usize / 64, 1_u64 << (node % 64));
        if self.bits[word] & bit == 0 {
            self.bits[word] |= bit;
            self.list.push(node);
        }
    }

    fn clear(&mut self) {
        self.bits.fill(0);
        self.list.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::filter::walk::tests::TRICKY;

    /// Patterns that are not anchored, that match nothing, or whose loops could turn without a byte.
    const MORE: [&str; 16] = [
        "(?:a|)*b",
        "(?:a*)*(b?)",
        "(?:(a)|(b)|)*",
        "(?:(a*)|b)*c",
        "(a|ab)(bc|c)?",
        r"\b(a+)\b{end-half}",
        r"(?:\b{start-half}(a)| (b))+",
        r"(?:|a)(?:|a)+(b)",
        "((?:a??)*?)(b)",
        "x*",
        r"(?:(\w+) )*?(\w+)$",
        r"^(?:(a+)|(b+)|[cd ])*?(d?)$",
        "(?:a{0,2}b){1,3}?(a*)",
        r"(.*?)\b(?:c|d)?(.*)$",
        "(?:()|a)*(b)?",
        r"(?s-u:(.)(.*))",
    ];

    fn both(pattern: &str) -> (Twice, regex::bytes::Regex) {
        let regex = regex::bytes::RegexBuilder::new(pattern).unicode(false).build().unwrap();
        (Twice::new(pattern).unwrap_or_else(|| panic!("{pattern}")), regex)
    }

    fn agree(twice: &Twice, regex: &regex::bytes::Regex, text: &[u8]) -> Result<(), TestCaseError> {
        let mut locations = regex.capture_locations();
        let found = regex.captures_read(&mut locations, text);
        let Some(found) = found else { return Ok(()) };
        let mut room = Room::default();
        prop_assert!(twice.groups(text, (found.start(), found.end()), &mut room), "{} on {:?}", regex, text);
        for group in 0..regex.captures_len() {
            prop_assert_eq!(room.get(group), locations.get(group), "group {} of {} on {:?}", group, regex, text.escape_ascii());
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 200 } else { 20_000 }))]

        #[test]
        fn it_agrees_with_the_regex_engine(texts in proptest::collection::vec("[abc d]{0,12}", 8)) {
            static PATTERNS: std::sync::LazyLock<Vec<(Twice, regex::bytes::Regex)>> =
                std::sync::LazyLock::new(|| TRICKY.into_iter().chain(MORE).map(both).collect());
            for (twice, regex) in PATTERNS.iter() {
                for text in &texts {
                    agree(twice, regex, text.as_bytes())?;
                }
            }
        }
    }
}
