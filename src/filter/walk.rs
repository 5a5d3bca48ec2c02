//! A quick walk along a pattern that is anchored at the head of the text.
//!
//! Captures are what costs when a line matches: general engines keep books on every byte and state so that they stay linear. The
//! patterns of log lines hardly ever branch: a literal, a run of bytes up to another literal, an address. So they are
//! walked by plain backtracking, which takes the runs with memchr, and gives up after a number of steps in proportion to
//! the text; then the regex engine decides. Both prefer the same match: that of the leftmost alternative, as Perl does. A
//! property test holds them against each other.

use regex_syntax::hir::{Class, Hir, HirKind, Look, Repetition};

/// A text of n bytes is given up after so many steps plus n times [`STEPS_PER_BYTE`].
const STEPS: usize = 512;
const STEPS_PER_BYTE: usize = 2;
/// A text of more bytes than this is long: it is walked only as far as runs carry, since all that a filter's patterns spend on it
/// adds up, and there are quicker ways to tell that a long text does not match, or how (`twice`).
pub(crate) const LONG: usize = 4096;
/// Steps for a long text.
const STEPS_LONG: usize = STEPS + LONG * STEPS_PER_BYTE;
/// A pattern of more instructions is left to the regex engine.
const LONGEST: usize = 4000;
/// A group that took no part.
const UNSET: usize = usize::MAX;

/// A pattern that can be walked.
#[derive(Debug)]
pub(crate) struct Walk {
    steps: Vec<Step>,
    sets: Vec<Set>,
    slots: usize,
}

#[derive(Debug)]
struct Set {
    holds: [bool; 256],
    /// The only byte that is not in it, if it is one.
    but: Option<u8>,
    /// The only byte that is in it, if it is one.
    only: Option<u8>,
}

#[derive(Debug)]
enum Step {
    Literal(Box<[u8]>),
    One(usize),
    /// Between `min` and `max` bytes of a set; what follows, if known, begins with a byte of the set `then`.
    Run {
        set: usize,
        min: usize,
        max: usize,
        greedy: bool,
        then: Option<usize>,
    },
    /// First the one, then the other.
    Split(usize, usize),
    Jump(usize),
    Save(usize),
    Look(Look),
    Done,
}

/// What a walk needs room for.
#[derive(Debug, Default)]
pub(crate) struct Room {
    slots: Vec<usize>,
    back: Vec<Back>,
}

/// Where to go on when a way ends.
#[derive(Debug)]
enum Back {
    To {
        step: usize,
        at: usize,
    },
    /// A greedy run may end anywhere from `low` to `at`.
    Shorter {
        step: usize,
        low: usize,
        at: usize,
    },
    /// A lazy run may end anywhere from `at` to `high`.
    Longer {
        step: usize,
        at: usize,
        high: usize,
    },
    Slot {
        slot: usize,
        was: usize,
    },
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Match,
    NoMatch,
    /// It took too many steps: somebody else must say.
    GaveUp,
}

impl Room {
    /// Room for so many slots, none of them set.
    pub fn fresh(&mut self, slots: usize) -> &mut [usize] {
        self.slots.clear();
        self.slots.resize(slots, UNSET);
        &mut self.slots
    }

    /// Where a group began and ended.
    pub fn get(&self, group: usize) -> Option<(usize, usize)> {
        let (start, end) = (*self.slots.get(group * 2)?, *self.slots.get(group * 2 + 1)?);
        (start != UNSET && end != UNSET).then_some((start, end))
    }
}

impl Walk {
    /// The walk of a pattern, if it is anchored and holds nothing that would need more than walking.
    pub fn new(hir: &Hir) -> Option<Walk> {
        if !hir.properties().look_set_prefix().contains(Look::Start) {
            return None;
        }
        let mut walk = Walk { steps: Vec::new(), sets: Vec::new(), slots: 0 };
        walk.add(hir)?;
        walk.steps.push(Step::Done);
        for at in 0..walk.steps.len() {
            if let Step::Run { .. } = walk.steps[at]
                && let Some(holds) = walk.first(at + 1, 0)
            {
                let next = walk.set(holds);
                if let Step::Run { then, .. } = &mut walk.steps[at] {
                    *then = Some(next);
                }
            }
        }
        Some(walk)
    }

    fn set(&mut self, holds: [bool; 256]) -> usize {
        let single = |wanted: bool| {
            let mut bytes = (0..=255_u8).filter(|b| holds[*b as usize] == wanted);
            bytes.next().filter(|_| bytes.next().is_none())
        };
        self.sets.push(Set { holds, but: single(false), only: single(true) });
        self.sets.len() - 1
    }

    fn add(&mut self, hir: &Hir) -> Option<()> {
        if self.steps.len() > LONGEST {
            return None;
        }
        match hir.kind() {
            HirKind::Empty => {}
            HirKind::Literal(literal) => self.steps.push(Step::Literal(literal.0.clone())),
            HirKind::Class(class) => {
                let set = bytes_of(class).map(|holds| self.set(holds))?;
                self.steps.push(Step::One(set));
            }
            HirKind::Look(look) => match look {
                Look::Start | Look::End | Look::WordAscii | Look::WordStartHalfAscii | Look::WordEndHalfAscii => {
                    self.steps.push(Step::Look(*look));
                }
                _ => return None,
            },
            HirKind::Capture(capture) => {
                let slot = capture.index as usize * 2;
                self.slots = self.slots.max(slot + 2);
                self.steps.push(Step::Save(slot));
                self.add(&capture.sub)?;
                self.steps.push(Step::Save(slot + 1));
            }
            HirKind::Concat(parts) => parts.iter().try_for_each(|part| self.add(part))?,
            HirKind::Alternation(parts) => {
                let mut ends = Vec::new();
                for (i, part) in parts.iter().enumerate() {
                    let split = self.steps.len();
                    let last = i + 1 == parts.len();
                    if !last {
                        self.steps.push(Step::Split(split + 1, 0));
                    }
                    self.add(part)?;
                    if !last {
                        ends.push(self.steps.len());
                        self.steps.push(Step::Jump(0));
                        self.steps[split] = Step::Split(split + 1, self.steps.len());
                    }
                }
                let end = self.steps.len();
                ends.into_iter().for_each(|jump| self.steps[jump] = Step::Jump(end));
            }
            HirKind::Repetition(repetition) => self.repeat(repetition)?,
        }
        Some(())
    }

    fn repeat(&mut self, repetition: &Repetition) -> Option<()> {
        let (min, max) = (repetition.min as usize, repetition.max.map(|m| m as usize));
        if let Some(holds) = one_byte(&repetition.sub) {
            let set = self.set(holds);
            let max = max.unwrap_or(usize::MAX);
            self.steps.push(Step::Run { set, min, max, greedy: repetition.greedy, then: None });
            return Some(());
        }
        if repetition.sub.properties().minimum_len().is_none_or(|shortest| shortest == 0) {
            return None;
        }
        for _ in 0..min {
            self.add(&repetition.sub)?;
        }
        let fork = |once: usize, past: usize| if repetition.greedy { Step::Split(once, past) } else { Step::Split(past, once) };
        let Some(max) = max else {
            let split = self.steps.len();
            self.steps.push(Step::Done);
            self.add(&repetition.sub)?;
            self.steps.push(Step::Jump(split));
            self.steps[split] = fork(split + 1, self.steps.len());
            return Some(());
        };
        let mut splits = Vec::new();
        for _ in min..max {
            splits.push(self.steps.len());
            self.steps.push(Step::Done);
            self.add(&repetition.sub)?;
        }
        let end = self.steps.len();
        splits.into_iter().for_each(|split| self.steps[split] = fork(split + 1, end));
        Some(())
    }

    /// The bytes with which a text goes on from this step; `None` if it may also end there.
    fn first(&self, step: usize, depth: usize) -> Option<[bool; 256]> {
        if depth > 40 {
            return None;
        }
        match &self.steps[step] {
            Step::Literal(bytes) => {
                let mut holds = [false; 256];
                holds[*bytes.first()? as usize] = true;
                Some(holds)
            }
            Step::One(set) => Some(self.sets[*set].holds),
            Step::Run { set, min, .. } if *min > 0 => Some(self.sets[*set].holds),
            Step::Run { set, .. } => Some(either(&self.sets[*set].holds, &self.first(step + 1, depth + 1)?)),
            Step::Split(a, b) => Some(either(&self.first(*a, depth + 1)?, &self.first(*b, depth + 1)?)),
            Step::Jump(to) => self.first(*to, depth + 1),
            Step::Look(Look::End) | Step::Done => None,
            Step::Save(_) | Step::Look(_) => self.first(step + 1, depth + 1),
        }
    }

    /// Walks along `text`; after a match `room` knows the groups.
    pub fn along(&self, text: &[u8], room: &mut Room) -> Ended {
        room.fresh(self.slots);
        room.back.clear();
        let mut left = if text.len() > LONG { STEPS_LONG } else { STEPS + text.len() * STEPS_PER_BYTE };
        let (mut step, mut at) = (0, 0);
        loop {
            if left == 0 {
                return Ended::GaveUp;
            }
            left -= 1;
            let on = match &self.steps[step] {
                Step::Literal(bytes) => text[at..].starts_with(bytes).then_some((step + 1, at + bytes.len())),
                Step::One(set) => text.get(at).filter(|b| self.sets[*set].holds[**b as usize]).map(|_| (step + 1, at + 1)),
                Step::Run { set, min, max, greedy, .. } => {
                    let high = self.run(*set, text, at, *max);
                    left = left.saturating_sub((high - at) / 16);
                    let low = at.saturating_add(*min);
                    if high < low {
                        None
                    } else if *greedy {
                        self.shorter(step, low, high, text, &mut room.back)
                    } else {
                        self.longer(step, low, high, text, &mut room.back)
                    }
                }
                Step::Split(first, second) => {
                    room.back.push(Back::To { step: *second, at });
                    Some((*first, at))
                }
                Step::Jump(to) => Some((*to, at)),
                Step::Save(slot) => {
                    room.back.push(Back::Slot { slot: *slot, was: room.slots[*slot] });
                    room.slots[*slot] = at;
                    Some((step + 1, at))
                }
                Step::Look(look) => holds(*look, text, at).then_some((step + 1, at)),
                Step::Done => return Ended::Match,
            };
            if let Some(on) = on {
                (step, at) = on;
                continue;
            }
            loop {
                let on = match room.back.pop() {
                    None => return Ended::NoMatch,
                    Some(Back::Slot { slot, was }) => {
                        room.slots[slot] = was;
                        continue;
                    }
                    Some(Back::To { step, at }) => Some((step, at)),
                    Some(Back::Shorter { step, low, at }) => self.shorter(step, low, at, text, &mut room.back),
                    Some(Back::Longer { step, at, high }) => self.longer(step, at, high, text, &mut room.back),
                };
                left = left.saturating_sub(1);
                if let Some(on) = on {
                    (step, at) = on;
                    break;
                }
            }
        }
    }

    /// The end of the longest run.
    fn run(&self, set: usize, text: &[u8], at: usize, max: usize) -> usize {
        let rest = &text[at..at.saturating_add(max).min(text.len())];
        let set = &self.sets[set];
        let length = match set.but {
            Some(but) => memchr::memchr(but, rest),
            None => rest.iter().position(|b| !set.holds[*b as usize]),
        };
        at + length.unwrap_or(rest.len())
    }

    /// Ends a greedy run as late as possible, from `low` to `high`, where what follows can begin.
    fn shorter(&self, step: usize, low: usize, high: usize, text: &[u8], back: &mut Vec<Back>) -> Option<(usize, usize)> {
        let Step::Run { then, .. } = &self.steps[step] else { return None };
        let end = match then {
            None => high,
            Some(set) => {
                let set = &self.sets[*set];
                let place = &text[low..text.len().min(high + 1)];
                low + match set.only {
                    Some(only) => memchr::memrchr(only, place)?,
                    None => place.iter().rposition(|b| set.holds[*b as usize])?,
                }
            }
        };
        if end > low {
            back.push(Back::Shorter { step, low, at: end - 1 });
        }
        Some((step + 1, end))
    }

    /// Ends a lazy run as early as possible.
    fn longer(&self, step: usize, low: usize, high: usize, text: &[u8], back: &mut Vec<Back>) -> Option<(usize, usize)> {
        let Step::Run { then, .. } = &self.steps[step] else { return None };
        let end = match then {
            None => low,
            Some(set) => {
                let set = &self.sets[*set];
                let place = &text[low..text.len().min(high + 1)];
                low + match set.only {
                    Some(only) => memchr::memchr(only, place)?,
                    None => place.iter().position(|b| set.holds[*b as usize])?,
                }
            }
        };
        if end < high {
            back.push(Back::Longer { step, at: end + 1, high });
        }
        Some((step + 1, end))
    }
}

fn either(a: &[bool; 256], b: &[bool; 256]) -> [bool; 256] {
    std::array::from_fn(|i| a[i] || b[i])
}

fn bytes_of(class: &Class) -> Option<[bool; 256]> {
    let mut holds = [false; 256];
    match class {
        Class::Bytes(class) => {
            for range in class.ranges() {
                holds[range.start() as usize..=range.end() as usize].fill(true);
            }
        }
        Class::Unicode(class) => {
            for range in class.ranges() {
                let (start, end) = (range.start() as u32, range.end() as u32);
                if end > 127 {
                    return None;
                }
                holds[start as usize..=end as usize].fill(true);
            }
        }
    }
    Some(holds)
}

/// The bytes of a pattern that matches just one.
fn one_byte(hir: &Hir) -> Option<[bool; 256]> {
    match hir.kind() {
        HirKind::Class(class) => bytes_of(class),
        HirKind::Literal(literal) if literal.0.len() == 1 => {
            let mut holds = [false; 256];
            holds[literal.0[0] as usize] = true;
            Some(holds)
        }
        _ => None,
    }
}

/// Whether a look holds at a place.
pub(crate) fn holds(look: Look, text: &[u8], at: usize) -> bool {
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let before = at > 0 && word(&text[at - 1]);
    let after = text.get(at).is_some_and(word);
    match look {
        Look::Start => at == 0,
        Look::End => at == text.len(),
        Look::WordAscii => before != after,
        Look::WordStartHalfAscii => !before,
        Look::WordEndHalfAscii => !after,
        _ => false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    type Groups = Option<Vec<Option<(usize, usize)>>>;

    fn both_ways(pattern: &str) -> (Walk, regex::bytes::Regex) {
        let hir = regex_syntax::ParserBuilder::new().utf8(false).unicode(false).build().parse(pattern).unwrap();
        let regex = regex::bytes::RegexBuilder::new(pattern).unicode(false).build().unwrap();
        (Walk::new(&hir).unwrap_or_else(|| panic!("{pattern}")), regex)
    }

    /// What the walk finds, and what the engine does; nothing if the walk gave up.
    fn found(walk: &Walk, regex: &regex::bytes::Regex, text: &[u8]) -> Option<(Groups, Groups)> {
        let mut room = Room::default();
        let walked = match walk.along(text, &mut room) {
            Ended::GaveUp => return None,
            Ended::NoMatch => None,
            Ended::Match => Some((1..regex.captures_len()).map(|g| room.get(g)).collect()),
        };
        let mut places = regex.capture_locations();
        let searched = regex.captures_read(&mut places, text);
        Some((walked, searched.map(|_| (1..regex.captures_len()).map(|g| places.get(g)).collect())))
    }

    pub const TRICKY: [&str; 22] = [
        "^(a*)(b?)$",
        "^(.*)b(.*)$",
        "^(.*?)b(.*?)$",
        "^(a|ab)(c|bcd)?(d*)$",
        "^(?:(a)|b)*c",
        "^(?:(a)b?)+(c)?",
        "^(?:a(b))*?c(.*)",
        "^(a+?)(a*)b?",
        "^(a{2,3})(a{0,2}?)(b|$)",
        r"^(.*)\b(b.*)",
        r"^(\S*) (\S*)$",
        r"^([^ab]*)(?:a|b|) ?(.*)$",
        r"^(?:a |b )?(?:c )?(\w*)\b{end-half}(.*)",
        r"^(.*) \b{start-half}(b+)\b{end-half}",
        "^(?:ab|a)(?:bc|c)?(.*)$",
        "^((?:a.|b.)*)(.*)$",
        "^(?:a|(?:b|(c)))(.?)",
        "^(a?)(a?)(a?)aab$",
        "^(.*)(?:ab)+(.*)$",
        "^(?:(a*)b|(a*)c)",
        "^(?:[ab]{2}){1,3}(c?)",
        "^.*(a|b)..$",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 200 } else { 20_000 }))]

        #[test]
        fn it_agrees_with_the_regex_engine(texts in proptest::collection::vec("[abc d]{0,12}", 8)) {
            static PATTERNS: std::sync::LazyLock<Vec<(Walk, regex::bytes::Regex)>> =
                std::sync::LazyLock::new(|| TRICKY.into_iter().map(both_ways).collect());
            for (walk, regex) in PATTERNS.iter() {
                for text in &texts {
                    if let Some((walked, searched)) = found(walk, regex, text.as_bytes()) {
                        prop_assert_eq!(walked, searched, "{} on {:?}", regex, text);
                    }
                }
            }
        }
    }

    #[test]
    fn it_gives_up_where_it_would_take_long() {
        let hir = regex_syntax::parse("^(?:[ab][ab]?)*(?:[ab][ab]?)*c").unwrap();
        let walk = Walk::new(&hir).unwrap();
        assert_eq!(walk.along(&b"ab".repeat(500), &mut Room::default()), Ended::GaveUp);
    }
}
