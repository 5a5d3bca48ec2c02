//! Look-ahead and conditions in linear time.
//!
//! What `(?!…)` and `(?=…)` ask for is a matter of the bytes that come, and `(?(name)…|…)` of the groups that took part before: both can
//! be carried along. So the automaton of the pattern, with a mark where something is asked, is multiplied with the automata of
//! what is asked: a state is a place in the pattern together with what was promised on the way there and is not yet kept. A way that
//! breaks a promise ends. Which of several ways is preferred does not change, since for a given text each way of the pattern is
//! one way of the product. The engines of `regex` run it. A reference back to a group that has one of a few texts, such as a quote, is a
//! condition for each of them.
//!
//! Left to the backtracking engine are other references back, look-behind, atomic groups, and what would become too large.

use std::collections::HashMap;

use regex_automata::hybrid::dfa::{self, DFA};
use regex_automata::nfa::thompson::backtrack::{self, BoundedBacktracker};
use regex_automata::nfa::thompson::pikevm::PikeVM;
use regex_automata::nfa::thompson::{Builder, Compiler, Config, NFA, State, Transition, WhichCaptures};
use regex_automata::util::look::Look;
use regex_automata::util::pool::Pool;
use regex_automata::util::primitives::StateID;
use regex_automata::{Anchored, Input};

use super::expression::Places;

/// An automaton may have this many states, and take this many bytes.
const MOST_STATES: usize = 20_000;
const SIZE: usize = 16 << 20;
/// What may be held at the places of a pattern: states of what is looked for, all together.
const MOST_HELD: usize = 1 << 20;
/// Memory for the quick search for groups; longer texts take the slow one.
const VISITED: usize = 512 << 10;
/// Conditions in a pattern.
const MOST_CONDITIONS: usize = 8;

/// A pattern with marks, which are groups that hold nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// Where it looks ahead stands [`ahead`], at the head of a condition's branches [`branch`].
    pub text: String,
    /// What is looked for.
    pub looks: Vec<Sought>,
    /// Which group each condition asks for.
    pub conditions: Vec<Asked>,
}

/// A look ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// It must not stand there.
    pub not: bool,
    /// What is looked for.
    pub text: String,
}

/// The group that a condition asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// By its name.
    Named(String),
    /// By its number.
    Numbered(usize),
    /// None: it is one of the texts that a group may have, so many of them from this condition on.
    Text(usize, usize),
}

/// The group of all that a pattern matches. Names in Python's patterns have no dots.
const WHOLE: &str = "_.whole";

/// The mark of a look ahead.
pub fn ahead(number: usize) -> String {
    format!("(?P<_.ahead{number}>)")
}

/// The mark of a condition's branch.
pub fn branch(number: usize, other: bool) -> String {
    format!("(?P<_.{}{number}>)", if other { "else" } else { "if" })
}

/// The mark of a text that a group has.
pub fn text(number: usize) -> String {
    format!("(?P<_.text{number}>)")
}

/// A compiled pattern that looks ahead or has conditions.
#[derive(Debug)]
pub(crate) struct Ahead {
    dfa: Option<DFA>,
    backtracker: BoundedBacktracker,
    pike: PikeVM,
    caches: Pool<Caches, Box<dyn Fn() -> Caches + Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe>>,
    pub names: Vec<Option<Box<str>>>,
}

#[derive(Debug)]
struct Caches {
    dfa: Option<dfa::Cache>,
    backtracker: backtrack::Cache,
}

impl Ahead {
    /// Compiles; nothing if that can not be done this way.
    pub fn new(marked: &Marked) -> Option<Ahead> {
        if marked.conditions.len() > MOST_CONDITIONS {
            return None;
        }
        let (nfa, names) = Product::of(marked)?;
        let config = dfa::Config::new().unicode_word_boundary(true);
        let dfa = DFA::builder().configure(config).build_from_nfa(nfa.clone()).ok();
        let config = BoundedBacktracker::config().visited_capacity(VISITED);
        let backtracker = BoundedBacktracker::builder().configure(config).build_from_nfa(nfa.clone()).ok()?;
        let pike = PikeVM::new_from_nfa(nfa).ok()?;
        let (for_dfa, for_backtracker) = (dfa.clone(), backtracker.clone());
        let create = move || Caches { dfa: for_dfa.as_ref().map(DFA::create_cache), backtracker: for_backtracker.create_cache() };
        Some(Ahead { dfa, backtracker, pike, caches: Pool::new(Box::new(create)), names })
    }

    /// Searches `text` from `start` on, which is where a character begins.
    pub fn find(&self, text: &str, start: usize) -> Option<Places> {
        let mut caches = self.caches.get();
        let input = Input::new(text).range(start..).anchored(Anchored::Yes);
        if self.matches(&input, &mut caches) == Some(false) {
            return None;
        }
        let mut slots = vec![None; self.names.len() * 2];
        if input.get_span().len() <= self.backtracker.max_haystack_len() {
            self.backtracker.try_search_slots(&mut caches.backtracker, &input, &mut slots).ok()??;
        } else {
            self.pike.search_slots(&mut self.pike.create_cache(), &input, &mut slots)?;
        }
        let place = |group: &[Option<regex_automata::util::primitives::NonMaxUsize>]| Some(group[0]?.get()..group[1]?.get());
        Some(slots.chunks(2).map(place).collect())
    }

    /// Whether it matches anywhere in `text`.
    pub fn is_match(&self, text: &str) -> bool {
        let quick = self.matches(&Input::new(text).anchored(Anchored::Yes), &mut self.caches.get());
        quick.unwrap_or_else(|| self.find(text, 0).is_some())
    }

    /// Whether it matches, if that can be told quickly.
    fn matches(&self, input: &Input<'_>, caches: &mut Caches) -> Option<bool> {
        let cache = caches.dfa.as_mut()?;
        self.dfa.as_ref()?.try_search_fwd(cache, &input.clone().earliest(true)).ok().map(|found| found.is_some())
    }
}

/// What was promised and is not yet kept: for each look ahead the states of its automaton in which it may be. Those of one that
/// must not match are one set, however often it was asked; one that must match has a set for each time.
type Held = Vec<(usize, Vec<StateID>)>;

/// Where a way stands: a state of the pattern, none when it is through; the conditions that hold; what is held.
type Key = (Option<StateID>, u8, usize);

struct Product {
    main: NFA,
    looks: Vec<(bool, NFA)>,
    /// What a group of the pattern is.
    groups: Vec<Group>,
    builder: Builder,
    known: HashMap<Key, StateID>,
    todo: Vec<(Key, StateID)>,
    held: Vec<Held>,
    held_by: HashMap<Held, usize>,
    /// How many states more may be held.
    room: usize,
    /// Where the bytes lead from what is held, once worked out.
    steps: HashMap<usize, Vec<(u8, u8, Option<usize>)>>,
}

#[derive(Clone, Copy, Debug)]
enum Group {
    /// All that a search goes through.
    Search,
    /// A group of the pattern's own, or all of it: its number, and the conditions that ask for it.
    Own(u32, u8),
    Ahead(usize),
    /// Goes on only where the condition is as it says.
    Branch(usize, bool),
    /// A text that a group has: its condition, and those of the group's other texts.
    Text(u8, u8),
}

/// The automaton of a pattern without marks.
fn automaton(text: &str, captures: WhichCaptures) -> Option<NFA> {
    let hir = regex_syntax::parse(text).ok()?;
    let config = Config::new().utf8(true).which_captures(captures).nfa_size_limit(Some(SIZE));
    Compiler::new().configure(config).build_from_hir(&hir).ok()
}

impl Product {
    /// The product, and the names of the pattern's own groups.
    fn of(marked: &Marked) -> Option<(NFA, Vec<Option<Box<str>>>)> {
        // A search begins where a character does.
        let whole = format!("(?P<{WHOLE}>{})", marked.text);
        let mut main = automaton(&whole, WhichCaptures::All)?;
        if !main.is_always_start_anchored() {
            main = automaton(&format!("(?s:.)*?{whole}"), WhichCaptures::All)?;
        }
        let mut looks = Vec::new();
        for sought in &marked.looks {
            let nfa = automaton(&sought.text, WhichCaptures::None)?;
            let tellable = |look: Look| look == Look::End || opposite(look).is_some();
            if !nfa.look_set_any().iter().all(tellable) {
                return None;
            }
            looks.push((sought.not, nfa));
        }
        let mut names: Vec<Option<Box<str>>> = Vec::new();
        let mut groups = Vec::new();
        for name in main.group_info().pattern_names(regex_automata::PatternID::ZERO) {
            let mark = |head: &str| name.and_then(|name| name.strip_prefix(head)?.parse::<usize>().ok());
            if groups.is_empty() {
                groups.push(Group::Search);
                continue;
            }
            let name = name.filter(|name| *name != WHOLE);
            let group = match (mark("_.ahead"), mark("_.if"), mark("_.else"), mark("_.text")) {
                (Some(number), ..) => Group::Ahead(number),
                (_, Some(number), ..) => Group::Branch(number, true),
                (_, _, Some(number), _) => Group::Branch(number, false),
                (.., Some(number)) => {
                    let Some(Asked::Text(first, count)) = marked.conditions.get(number) else { return None };
                    Group::Text(1 << number, (*first..first + count).fold(0, |bits, condition| bits | 1 << condition))
                }
                _ => {
                    let number = names.len();
                    names.push(name.map(Box::from));
                    let asked = |asked: &Asked| match asked {
                        Asked::Named(wanted) => name == Some(wanted.as_str()),
                        Asked::Numbered(wanted) => number == *wanted,
                        Asked::Text(..) => false,
                    };
                    let bits =
                        marked.conditions.iter().enumerate().filter(|(_, a)| asked(a)).fold(0, |bits, (i, _)| bits | 1 << i);
                    Group::Own(number as u32, bits)
                }
            };
            groups.push(group);
        }
        let mut builder = Builder::new();
        builder.set_size_limit(Some(SIZE)).ok()?;
        builder.start_pattern().ok()?;
        let start = main.start_anchored();
        let mut product = Product {
            main,
            looks,
            groups,
            builder,
            known: HashMap::new(),
            todo: Vec::new(),
            held: Vec::new(),
            held_by: HashMap::new(),
            room: MOST_HELD,
            steps: HashMap::new(),
        };
        let nothing = product.hold(Held::new());
        let first = product.state((Some(start), 0, nothing))?;
        while let Some((key, stub)) = product.todo.pop() {
            let state = product.expand(key)?;
            product.builder.patch(stub, state).ok()?;
        }
        // Groups that no way leads through have their places too.
        for number in 0..names.len() {
            product.builder.add_capture_start(first, number as u32, None).ok()?;
        }
        let builder = &mut product.builder;
        builder.finish_pattern(first).ok()?;
        let nfa = builder.build(first, first).ok()?;
        Some((nfa, names))
    }

    /// The number of what is held. Where there is no room for more of it, the pattern is given up with the next state.
    fn hold(&mut self, held: Held) -> usize {
        if let Some(known) = self.held_by.get(&held) {
            return *known;
        }
        self.room = self.room.saturating_sub(1 + held.iter().map(|(_, states)| states.len()).sum::<usize>());
        self.held.push(held.clone());
        self.held_by.insert(held, self.held.len() - 1);
        self.held.len() - 1
    }

    /// The state of the product for a way, to be expanded if it is new.
    fn state(&mut self, key: Key) -> Option<StateID> {
        if let Some(known) = self.known.get(&key) {
            return Some(*known);
        }
        if self.known.len() >= MOST_STATES || self.room == 0 {
            return None;
        }
        let stub = self.builder.add_empty().ok()?;
        self.known.insert(key, stub);
        self.todo.push((key, stub));
        Some(stub)
    }

    /// The same for what may be broken.
    fn state_if(&mut self, node: Option<StateID>, bits: u8, held: Option<usize>) -> Option<StateID> {
        match held {
            Some(held) => self.state((node, bits, held)),
            None => self.builder.add_fail().ok(),
        }
    }

    fn expand(&mut self, (node, bits, held): Key) -> Option<StateID> {
        if let Some(look) = self.undecided(held) {
            let (so, not) = (self.decided(held, look, true), self.decided(held, look, false));
            let (so, not) = (self.state_if(node, bits, so)?, self.state_if(node, bits, not)?);
            let so = self.builder.add_look(so, look).ok()?;
            let not = self.builder.add_look(not, opposite(look)?).ok()?;
            return self.builder.add_union(vec![so, not]).ok();
        }
        let Some(node) = node else { return self.through(held) };
        match self.main.state(node).clone() {
            State::ByteRange { trans } => self.bytes(&[trans], bits, held),
            State::Sparse(sparse) => self.bytes(&sparse.transitions, bits, held),
            State::Look { look, next } => {
                let next = self.state((Some(next), bits, held))?;
                self.builder.add_look(next, look).ok()
            }
            State::Union { alternates } => {
                let alternates: Option<Vec<_>> = alternates.iter().map(|next| self.state((Some(*next), bits, held))).collect();
                self.builder.add_union(alternates?).ok()
            }
            State::BinaryUnion { alt1, alt2 } => {
                let alternates = vec![self.state((Some(alt1), bits, held))?, self.state((Some(alt2), bits, held))?];
                self.builder.add_union(alternates).ok()
            }
            State::Capture { next, group_index, slot, .. } => {
                let opens = slot.as_usize() % 2 == 0;
                match self.groups[group_index.as_usize()] {
                    Group::Own(number, asked) => {
                        let next = self.state((Some(next), if opens { bits } else { bits | asked }, held))?;
                        match opens {
                            true => self.builder.add_capture_start(next, number, None).ok(),
                            false => self.builder.add_capture_end(next, number).ok(),
                        }
                    }
                    Group::Ahead(look) if opens => {
                        let held = self.promised(held, look);
                        self.state_if(Some(next), bits, held)
                    }
                    Group::Branch(condition, wanted) if opens && (bits >> condition & 1 == 1) != wanted => {
                        self.builder.add_fail().ok()
                    }
                    Group::Text(this, all) if opens => self.state((Some(next), bits & !all | this, held)),
                    Group::Text(..) | Group::Search | Group::Ahead(_) | Group::Branch(..) => self.state((Some(next), bits, held)),
                }
            }
            State::Match { .. } => self.state((None, 0, held)),
            State::Fail => self.builder.add_fail().ok(),
            State::Dense(_) => None,
        }
    }

    /// The pattern has matched, but for what is held.
    fn through(&mut self, held: usize) -> Option<StateID> {
        if self.held[held].is_empty() {
            return self.builder.add_match().ok();
        }
        let mut transitions = Vec::new();
        for (start, end, held) in self.steps(held) {
            if let Some(held) = held {
                transitions.push(Transition { start, end, next: self.state((None, 0, held))? });
            }
        }
        let further = self.builder.add_sparse(transitions).ok()?;
        // At the end of the text nothing more comes.
        let ended = self.ended(held, &[])?;
        let ended = self.builder.add_look(ended, Look::End).ok()?;
        self.builder.add_union(vec![further, ended]).ok()
    }

    /// The pattern has matched and the text is over: a match, if that keeps what is held.
    fn ended(&mut self, held: usize, edges: &[(Look, bool)]) -> Option<StateID> {
        let mut undecided = None;
        for (look, states) in &self.held[held] {
            let (not, nfa) = &self.looks[*look];
            let (open, matched) = closed(nfa, states.iter().copied(), true, edges);
            let edge = open.iter().find_map(|state| edge_of(nfa, *state));
            match (matched, edge) {
                (true, _) if *not => return self.builder.add_fail().ok(),
                (false, Some(_)) => undecided = edge,
                (false, None) if !*not => return self.builder.add_fail().ok(),
                _ => {}
            }
        }
        let Some(edge) = undecided else { return self.builder.add_match().ok() };
        let mut either = Vec::new();
        for (is, look) in [(true, edge), (false, opposite(edge)?)] {
            let then = self.ended(held, &[edges, &[(edge, is)]].concat())?;
            either.push(self.builder.add_look(then, look).ok()?);
        }
        self.builder.add_union(either).ok()
    }

    fn bytes(&mut self, transitions: &[Transition], bits: u8, held: usize) -> Option<StateID> {
        let steps = self.steps(held);
        let mut out: Vec<Transition> = Vec::new();
        for transition in transitions {
            for (start, end, held) in &steps {
                let (start, end) = ((*start).max(transition.start), (*end).min(transition.end));
                let (true, Some(held)) = (start <= end, held) else { continue };
                let next = self.state((Some(transition.next), bits, *held))?;
                match out.last_mut() {
                    Some(last) if last.next == next && last.end.checked_add(1) == Some(start) => last.end = end,
                    _ => out.push(Transition { start, end, next }),
                }
            }
        }
        self.builder.add_sparse(out).ok()
    }

    /// Where bytes lead from what is held: ranges of them, all bytes in order, and what is held then, if nothing is broken.
    fn steps(&mut self, held: usize) -> Vec<(u8, u8, Option<usize>)> {
        if let Some(known) = self.steps.get(&held) {
            return known.clone();
        }
        let mut begins = [false; 257];
        (begins[0], begins[256]) = (true, true);
        for (look, states) in &self.held[held] {
            for state in states {
                each_transition(&self.looks[*look].1, *state, |transition| {
                    begins[usize::from(transition.start)] = true;
                    begins[usize::from(transition.end) + 1] = true;
                });
            }
        }
        let mut steps = Vec::new();
        let mut start = 0;
        for end in (1..=256).filter(|end| begins[*end]) {
            let byte = start as u8;
            let mut now = Some(Held::new());
            for (look, states) in &self.held[held] {
                let (not, nfa) = &self.looks[*look];
                let mut next = Vec::new();
                for state in states {
                    each_transition(nfa, *state, |t| next.extend((t.start..=t.end).contains(&byte).then_some(t.next)));
                }
                now = now.and_then(|now| with(now, *look, *not, closed(nfa, next, false, &[])));
            }
            let now = now.map(|now| self.hold(now));
            match steps.last_mut() {
                Some((_, last, held)) if *held == now => *last = (end - 1) as u8,
                _ => steps.push((byte, (end - 1) as u8, now)),
            }
            start = end;
        }
        self.steps.insert(held, steps.clone());
        steps
    }

    /// What is held with one more promise.
    fn promised(&mut self, held: usize, look: usize) -> Option<usize> {
        let (not, nfa) = self.looks.get(look)?;
        let now = with(self.held[held].clone(), look, *not, closed(nfa, [nfa.start_anchored()], false, &[]))?;
        Some(self.hold(now))
    }

    /// An edge of a word on which something that is held depends here.
    fn undecided(&self, held: usize) -> Option<Look> {
        let mut all = self.held[held].iter().flat_map(|(look, states)| states.iter().map(|state| (&self.looks[*look].1, *state)));
        all.find_map(|(nfa, state)| edge_of(nfa, state))
    }

    /// What is held where it is known whether the edge of a word is here.
    fn decided(&mut self, held: usize, edge: Look, is: bool) -> Option<usize> {
        let mut now = Held::new();
        for (look, states) in &self.held[held] {
            let (not, nfa) = &self.looks[*look];
            now = with(now, *look, *not, closed(nfa, states.iter().copied(), false, &[(edge, is)]))?;
        }
        Some(self.hold(now))
    }
}

/// The edge of a word that a look is about, be it that it must be there or must not.
fn positive(look: Look) -> Option<Look> {
    Some(match look {
        Look::WordAscii | Look::WordAsciiNegate => Look::WordAscii,
        Look::WordUnicode | Look::WordUnicodeNegate => Look::WordUnicode,
        _ => return None,
    })
}

/// The edge of a word on which it depends how a state goes on.
fn edge_of(nfa: &NFA, state: StateID) -> Option<Look> {
    match nfa.state(state) {
        State::Look { look, .. } => positive(*look),
        _ => None,
    }
}

fn opposite(look: Look) -> Option<Look> {
    Some(match look {
        Look::WordAscii => Look::WordAsciiNegate,
        Look::WordAsciiNegate => Look::WordAscii,
        Look::WordUnicode => Look::WordUnicodeNegate,
        Look::WordUnicodeNegate => Look::WordUnicode,
        _ => return None,
    })
}

fn each_transition(nfa: &NFA, state: StateID, mut each: impl FnMut(&Transition)) {
    match nfa.state(state) {
        State::ByteRange { trans } => each(trans),
        State::Sparse(sparse) => sparse.transitions.iter().for_each(each),
        _ => {}
    }
}

/// One more promise; nothing if it is broken already.
fn with(mut held: Held, look: usize, not: bool, (states, matched): (Vec<StateID>, bool)) -> Option<Held> {
    if not {
        if matched {
            return None;
        }
        match held.iter_mut().find(|(known, _)| *known == look) {
            _ if states.is_empty() => {}
            Some((_, known)) => {
                known.extend(states);
                known.sort_unstable();
                known.dedup();
            }
            None => held.push((look, states)),
        }
    } else if !matched {
        if states.is_empty() {
            return None;
        }
        held.push((look, states));
    }
    held.sort_unstable();
    held.dedup();
    Some(held)
}

/// The states that are reached without a byte, those that need one or wait for what is not known; and whether that is a match. Known
/// is whether the end of the text is here, and of some edges of words whether they are.
fn closed(nfa: &NFA, from: impl IntoIterator<Item = StateID>, end: bool, edges: &[(Look, bool)]) -> (Vec<StateID>, bool) {
    let (mut out, mut matched) = (Vec::new(), false);
    let mut todo: Vec<StateID> = from.into_iter().collect();
    let mut seen: std::collections::HashSet<StateID> = todo.iter().copied().collect();
    while let Some(state) = todo.pop() {
        let mut go = |next: StateID| {
            if seen.insert(next) {
                todo.push(next);
            }
        };
        let known =
            |look: Look| edges.iter().find(|(edge, _)| positive(look) == Some(*edge)).map(|(edge, is)| (look == *edge) == *is);
        match nfa.state(state) {
            State::Look { look: Look::End, next } if end => go(*next),
            State::Look { look, next } if known(*look).is_some() => {
                if known(*look) == Some(true) {
                    go(*next);
                }
            }
            State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) | State::Look { .. } => out.push(state),
            State::Union { alternates } => alternates.iter().copied().for_each(go),
            State::BinaryUnion { alt1, alt2 } => [*alt1, *alt2].into_iter().for_each(go),
            State::Capture { next, .. } => go(*next),
            State::Match { .. } => matched = true,
            State::Fail => {}
        }
    }
    out.sort_unstable();
    (out, matched)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::dialect::translate;
    use super::*;

    /// A pattern as a tree, to be tried the plain way: every way in the order of preference, step by step.
    #[derive(Clone, Debug)]
    enum Node {
        One(char),
        Any,
        Class(bool, [char; 2]),
        Start,
        End,
        Edge(bool),
        Cat(Vec<Node>),
        Alt(Vec<Node>),
        Repeat { least: usize, most: usize, greedy: bool, body: Box<Node> },
        Group(usize, Box<Node>),
        Ahead(bool, Box<Node>),
        If(usize, Box<Node>, Box<Node>),
    }

    type Groups = Vec<Option<(usize, usize)>>;

    impl Node {
        fn written(&self) -> String {
            let joined = |list: &[Node], by: &str| list.iter().map(Node::written).collect::<Vec<_>>().join(by);
            match self {
                Node::One(c) => c.to_string(),
                Node::Any => ".".to_owned(),
                Node::Class(not, [a, b]) => format!("[{}{a}{b}]", if *not { "^" } else { "" }),
                Node::Start => "^".to_owned(),
                Node::End => r"\Z".to_owned(),
                Node::Edge(is) => if *is { r"\b" } else { r"\B" }.to_owned(),
                Node::Cat(list) => joined(list, ""),
                Node::Alt(list) => format!("(?:{})", joined(list, "|")),
                Node::Repeat { least, most, greedy, body } => {
                    let most = if *most > 9 { String::new() } else { most.to_string() };
                    format!("(?:{}){{{least},{most}}}{}", body.written(), if *greedy { "" } else { "?" })
                }
                Node::Group(_, body) => format!("({})", body.written()),
                Node::Ahead(not, body) => format!("(?{}{})", if *not { "!" } else { "=" }, body.written()),
                Node::If(group, yes, no) => format!("(?({group}){}|{})", yes.written(), no.written()),
            }
        }

        /// Numbers the groups in the order in which they open, and lets conditions ask for one that is there.
        fn number(&mut self, next: &mut usize) {
            match self {
                Node::Cat(list) | Node::Alt(list) => list.iter_mut().for_each(|node| node.number(next)),
                Node::Repeat { body, .. } => body.number(next),
                Node::Group(number, body) => {
                    *number = *next;
                    *next += 1;
                    body.number(next);
                }
                Node::If(group, yes, no) => {
                    *group = if *next > 1 { 1 + *group % (*next - 1) } else { 1 };
                    yes.number(next);
                    no.number(next);
                }
                _ => {}
            }
        }

        /// Tries to match at a place; `then` says whether the rest does.
        fn matches(&self, text: &[char], at: usize, groups: &Groups, then: &mut dyn FnMut(usize, &Groups) -> bool) -> bool {
            let word = |at: Option<usize>| at.and_then(|at| text.get(at)).is_some_and(|c| c.is_alphanumeric());
            let mut one = |fits: &dyn Fn(char) -> bool| text.get(at).is_some_and(|c| fits(*c)) && then(at + 1, groups);
            match self {
                Node::One(wanted) => one(&|c| c == *wanted),
                Node::Any => one(&|_| true),
                Node::Class(not, members) => one(&|c| members.contains(&c) != *not),
                Node::Start => at == 0 && then(at, groups),
                Node::End => at == text.len() && then(at, groups),
                Node::Edge(is) => (word(at.checked_sub(1)) != word(Some(at))) == *is && then(at, groups),
                Node::Cat(list) => match list.split_first() {
                    None => then(at, groups),
                    Some((first, rest)) => first
                        .matches(text, at, groups, &mut |at, groups| Node::Cat(rest.to_vec()).matches(text, at, groups, then)),
                },
                Node::Alt(list) => list.iter().any(|node| node.matches(text, at, groups, then)),
                Node::Repeat { least, most, greedy, body } => {
                    let rest = |least: usize| Node::Repeat { least, most: most - 1, greedy: *greedy, body: body.clone() };
                    let again = |then: &mut dyn FnMut(usize, &Groups) -> bool| {
                        *most > 0
                            && body.matches(text, at, groups, &mut |at, groups| {
                                rest(least.saturating_sub(1)).matches(text, at, groups, then)
                            })
                    };
                    match (*least > 0, *greedy) {
                        (true, _) => again(then),
                        (false, true) => again(then) || then(at, groups),
                        (false, false) => then(at, groups) || again(then),
                    }
                }
                Node::Group(number, body) => body.matches(text, at, groups, &mut |end, groups| {
                    let mut groups = groups.clone();
                    groups[*number] = Some((at, end));
                    then(end, &groups)
                }),
                Node::Ahead(not, body) => body.matches(text, at, groups, &mut |_, _| true) != *not && then(at, groups),
                Node::If(group, yes, no) => {
                    let which = if groups.get(*group).is_some_and(Option::is_some) { yes } else { no };
                    which.matches(text, at, groups, then)
                }
            }
        }

        fn find(&self, text: &[char], count: usize) -> Option<Groups> {
            for start in 0..=text.len() {
                let mut found = None;
                self.matches(text, start, &vec![None; count], &mut |end, groups| {
                    let mut groups = groups.clone();
                    groups[0] = Some((start, end));
                    found = Some(groups);
                    true
                });
                if found.is_some() {
                    return found;
                }
            }
            None
        }
    }

    const LETTERS: [char; 4] = ['a', 'b', ' ', 'é'];

    /// What takes exactly one character.
    fn one() -> impl Strategy<Value = Node> {
        let letter = || prop::sample::select(LETTERS.to_vec());
        prop_oneof![
            4 => letter().prop_map(Node::One),
            2 => Just(Node::Any),
            1 => (any::<bool>(), letter(), letter()).prop_map(|(not, a, b)| Node::Class(not, [a, b])),
        ]
    }

    /// Patterns without anything that is asked, for use in a look ahead. A loop's body takes at least one character.
    fn plain() -> impl Strategy<Value = Node> {
        let leaf = prop_oneof![8 => one(), 1 => Just(Node::End), 1 => any::<bool>().prop_map(Node::Edge)];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Node::Cat),
                prop::collection::vec(inner.clone(), 1..3).prop_map(Node::Alt),
                looped(inner),
            ]
        })
    }

    fn looped(inner: impl Strategy<Value = Node>) -> impl Strategy<Value = Node> {
        let bounds = prop::sample::select(vec![(0, 1), (0, 99), (1, 99), (1, 2), (0, 2)]);
        (bounds, any::<bool>(), one(), inner).prop_map(|((least, most), greedy, first, rest)| {
            let body = Box::new(Node::Cat(vec![first, rest]));
            Node::Repeat { least, most, greedy, body }
        })
    }

    fn ahead() -> impl Strategy<Value = Node> {
        (any::<bool>(), plain()).prop_map(|(not, body)| Node::Ahead(not, Box::new(body)))
    }

    fn pattern() -> impl Strategy<Value = Node> {
        let leaf = prop_oneof![6 => one(), 4 => ahead(), 1 => Just(Node::End), 1 => Just(Node::Start), 1 => any::<bool>().prop_map(Node::Edge)];
        // The tempered dot, and what is like it.
        let tempered = (ahead(), one(), any::<bool>()).prop_map(|(ahead, one, greedy)| Node::Repeat {
            least: 0,
            most: 99,
            greedy,
            body: Box::new(Node::Cat(vec![ahead, one])),
        });
        let node = prop_oneof![4 => leaf, 1 => tempered].prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                4 => prop::collection::vec(inner.clone(), 0..5).prop_map(Node::Cat),
                2 => prop::collection::vec(inner.clone(), 1..4).prop_map(Node::Alt),
                2 => inner.clone().prop_map(|body| Node::Group(0, Box::new(body))),
                1 => (any::<usize>(), inner.clone(), inner.clone()).prop_map(|(group, yes, no)| Node::If(group, Box::new(yes), Box::new(no))),
                2 => looped(inner),
            ]
        });
        (node, ahead()).prop_map(|(node, ahead)| Node::Cat(vec![node, ahead]))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 300 } else { 20_000 }))]

        #[test]
        fn it_finds_what_trying_every_way_finds(mut pattern in pattern(), texts in prop::collection::vec("[ab é]{0,7}", 24)) {
            let mut count = 1;
            pattern.number(&mut count);
            let written = pattern.written();
            let translated = translate(&written, false).map_err(|e| TestCaseError::fail(format!("{written}: {e}")))?;
            let marked = translated.marked.as_ref().ok_or_else(|| TestCaseError::fail(written.clone()))?;
            // Some have more conditions than are carried along.
            let Some(ahead) = Ahead::new(marked) else {
                prop_assert!(marked.conditions.len() > MOST_CONDITIONS, "{}", written);
                return Ok(());
            };
            for text in &texts {
                let chars: Vec<char> = text.chars().collect();
                let byte = |at: usize| chars[..at].iter().map(|c| c.len_utf8()).sum::<usize>();
                let expected = pattern.find(&chars, count).map(|groups| {
                    groups.into_iter().map(|group| group.map(|(start, end)| byte(start)..byte(end))).collect::<Vec<_>>()
                });
                prop_assert_eq!(ahead.find(text, 0), expected.clone(), "{} on {:?}", &written, text);
                prop_assert_eq!(ahead.is_match(text), expected.is_some(), "{} on {:?}", &written, text);
                // The slow search, for texts that are too long for the quick one.
                let mut slots = vec![None; ahead.names.len() * 2];
                let slow = ahead.pike.search_slots(&mut ahead.pike.create_cache(), &Input::new(text).anchored(Anchored::Yes), &mut slots);
                prop_assert_eq!(slow.is_some(), expected.is_some());
                let slow: Vec<_> = slots.chunks(2).map(|group| Some(group[0]?.get()..group[1]?.get())).collect();
                prop_assert!(expected.is_none_or(|expected| expected == slow), "{} on {:?}: {:?}", &written, text, slow);
            }
        }
    }

    #[test]
    fn what_quotes_hold_takes_linear_time() {
        let patterns = [
            r#"(?P<q>["'])(\w*)(?P=q)"#,
            r#"^a=(?P<q>"?)(\S+)(?P=q) b$"#,
            r#"^(?:(?P<q>["']?)a(?P=q))+b?$"#,
            r#"^(?:(?P<q>"?)(?P<r>['`])?)*a(?P=q)b?(?!')(?P=r)"#,
            r#"(?:(?P<q>')|(?P<r>")|a)b(?P=q)"#,
            r#"a(?P<q>[<>])?b?(?P=q)"#,
        ];
        for pattern in patterns {
            let translated = translate(pattern, false).unwrap();
            let ahead = Ahead::new(translated.marked.as_ref().unwrap()).unwrap_or_else(|| panic!("{pattern}"));
            let fancy = fancy_regex::Regex::new(&translated.exact).unwrap();
            let mut texts = vec![String::new()];
            for length in 0..6 {
                let from = texts.iter().position(|text| text.len() == length).unwrap();
                let longer: Vec<String> =
                    texts[from..].iter().flat_map(|text| r#""'ab<"#.chars().map(move |c| format!("{text}{c}"))).collect();
                texts.extend(longer);
            }
            let heads = ["", "a="];
            for text in texts.iter().flat_map(|text| heads.map(|head| format!("{head}{text}"))) {
                let found = fancy.captures(&text).unwrap();
                let found = found.map(|c| (0..c.len()).map(|i| c.get(i).map(|m| m.range())).collect::<Places>());
                assert_eq!(ahead.find(&text, 0), found, "{pattern} on {text}");
            }
        }
    }

    #[test]
    fn what_filters_ask_takes_linear_time() {
        let table = [
            (
                r"^for (?P<i>invalid )?(?P<u>(?P<c>\S+)|(?(i)(?:(?! from ).)*?|[^:]+)) from (\w)(?(c): |(?:(?:(?! from ).)*)$)",
                "for invalid a b from x",
                Some("a b"),
            ),
            (
                r"^for (?P<i>invalid )?(?P<u>(?P<c>\S+)|(?(i)(?:(?! from ).)*?|[^:]+)) from (\w)(?(c): |(?:(?:(?! from ).)*)$)",
                "for invalid a from b from x",
                Some("invalid a from b"),
            ),
            (
                r"^for (?P<i>invalid )(?P<u>(?P<c>\S+)|(?(i)(?:(?! from ).)*?|[^:]+)) from (\w)(?(c): |(?:(?:(?! from ).)*)$)",
                "for invalid a from b from x",
                None,
            ),
            (r"^for (?P<u>(?P<c>\S+)|[^:]+) from \w(?(c): |$)", "for a from x", Some("a")),
            (r"(?P<__if0>a)(?P<u>b)(?P<__ahead0>)(?!c)", "abd", Some("b")),
            (r"lost (?!DATA)(?P<u>[A-Z]+)", "lost DATA", None),
            (r"(?:\w+ (?!found\b)){0,2}(?P<u>\w+) found", "no key type found", Some("type")),
            (r"failed:(?P<u>)(?! Connection)", "failed: Connection", None),
            (r"(?P<u>a)(?! Connection)", "a Connect", Some("a")),
            (r"(?i)^(?!ROOT )(?P<u>\w+)", "root x", None),
            (r"^(?:(?!x)(?i)A)(?P<u>b)", "ab", Some("b")),
            (
                r"x(?= from \S+(?: \S+=\d+)* auth=0/(?:[1-9]|\d\d+)) (?P<u>.+)$",
                "x from a b=1 auth=0/2 c=3",
                Some("from a b=1 auth=0/2 c=3"),
            ),
            (r"x(?= from \S+(?: \S+=\d+)* auth=0/(?:[1-9]|\d\d+)) (?P<u>.+)$", "x from a b=1 auth=1/2 c=3", None),
        ];
        for (pattern, text, expected) in table {
            let translated = translate(pattern, false).unwrap();
            let ahead = Ahead::new(translated.marked.as_ref().unwrap()).unwrap_or_else(|| panic!("{pattern}"));
            let user = ahead.names.iter().position(|name| name.as_deref() == Some("u")).unwrap();
            let found = ahead.find(text, 0).map(|places| &text[places[user].clone().unwrap()]);
            assert_eq!(found, expected, "{pattern} on {text}");
        }
    }
}
