//! What the worst lines cost: samples of every shipped filter, each piece of them blown up with what a hostile client might send.
//!
//! Processor time of the thread is what counts, so that a busy machine does not matter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Definition, Filter, Options, Scanner, When, definition, shipped};
use crate::terms::Time;

/// 2026-01-15T12:00:00Z
const NOW: Time = Time::from_secs(1_768_478_400);

/// What fills a field, over and over.
const FILLERS: [&str; 26] = [
    "x",
    " ",
    "1",
    ".",
    ":",
    "\"",
    "'",
    "\\",
    "((",
    ") [",
    "]: ",
    "=<",
    ">, ",
    "a b ",
    " from ",
    "1.2.3.4 ",
    ":1:2::",
    ":1.2.3.4:",
    "[1.2.3.4]:25 ",
    " from 1.2.3.4 port 22",
    "x, rip=1.2.3.4",
    "2026-01-01 00:00:0",
    "Jan 14 21:59:59 ",
    "é",
    "%20",
    "user=x@y, ",
];

/// A small generator of repeatable noise.
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn of(&mut self, pieces: &[&str], length: usize) -> String {
        let mut out = String::new();
        while out.len() < length {
            out.push_str(pieces[self.below(pieces.len())]);
        }
        out
    }
}

/// The widest mode of a filter.
fn widest(definition: &Definition) -> BTreeMap<String, Vec<String>> {
    let mode = ["aggressive", "extra", "ddos", "more"].into_iter().find(|mode| definition.modes.contains_key(*mode));
    mode.map(|mode| ("mode".to_owned(), vec![mode.to_owned()])).into_iter().collect()
}

/// Where the pieces of a line stand: runs of letters, digits and what joins them.
fn pieces(line: &str) -> Vec<std::ops::Range<usize>> {
    let joined = |c: char| c.is_ascii_alphanumeric() || "_-.@:+".contains(c);
    let mut pieces = Vec::new();
    let mut start = None;
    for (at, c) in line.char_indices().chain([(line.len(), ' ')]) {
        match (start, joined(c)) {
            (None, true) => start = Some(at),
            (Some(from), false) => {
                pieces.push(from..at);
                start = None;
            }
            _ => {}
        }
    }
    pieces
}

/// A hostile text.
enum Filling<'a> {
    Again(String),
    Noise(Vec<&'a str>),
}

impl Filling<'_> {
    fn text(&self, length: usize, seed: usize) -> String {
        match self {
            Filling::Again(piece) => piece.repeat(length.div_ceil(piece.len().max(1))),
            Filling::Noise(pieces) => Noise(seed as u64).of(pieces, length),
        }
    }
}

/// The hostile texts for a piece of a line.
fn fillings<'a>(line: &'a str, piece: &std::ops::Range<usize>) -> Vec<(&'a str, Filling<'a>)> {
    let mut out: Vec<_> = FILLERS.iter().map(|filler| (*filler, Filling::Again((*filler).to_owned()))).collect();
    let short = |text: &str| text.char_indices().next_back().map_or(String::new(), |(at, _)| text[..at].to_owned());
    out.push(("the line", Filling::Again(line.to_owned())));
    out.push(("the line, ended", Filling::Again(format!("{line}\" "))));
    out.push(("the rest", Filling::Again(format!("x{}", &line[piece.end..]))));
    out.push(("the rest but for its end", Filling::Again(format!("x{}", short(&line[piece.end..])))));
    out.push(("the head", Filling::Again(format!("{}x ", &line[..piece.start]))));
    let own = pieces(line).into_iter().map(|piece| &line[piece]);
    let signs = [" ", ": ", ", ", "(", ")", "[", "]", "\"", "=", "<", ">"];
    out.push(("its pieces", Filling::Noise(own.chain(signs).collect())));
    let hexadecimal = vec!["0", "1", "a", "f", "12", "c0de", ":", ":", ":", "::", "."];
    out.push(("hexadecimal", Filling::Noise(hexadecimal)));
    out.push(("addresses", Filling::Noise(vec!["1:", "2001:", "db8:", ":", "f", " from ", " ", "]", "[", "x "])));
    out.push(("digits", Filling::Noise(vec!["1", "22", "333", ".", ".", " ", ":"])));
    out.push(("signs", Filling::Noise(vec!["(", ")", "[", "]", "<", ">", "\"", "'", " ", ":", "=", ",", "\\", "x"])));
    out
}

/// The lines that a sample becomes: what they are, and how to make them.
fn lines(line: &str, length: usize, mut each: impl FnMut(&dyn Fn() -> (String, String))) {
    for piece in pieces(line).into_iter().chain(std::iter::once(line.len()..line.len())) {
        for (i, (what, filling)) in fillings(line, &piece).into_iter().enumerate() {
            let filling = || filling.text(length, i + piece.start);
            let at = |how: &str| format!("{what:?} {how} {} of {line}", piece.start);
            let (head, tail) = (&line[..piece.start], &line[piece.end..]);
            each(&|| (at("at"), format!("{head}{}{tail}\n", filling())));
            each(&|| (at("behind"), format!("{head}{}{}{tail}~\n", &line[piece.clone()], filling())));
        }
    }
}

/// Processor time of this thread.
fn spent() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[test]
fn no_line_takes_long() {
    // Time is linear in the length, so unoptimized builds may try a tenth of it. One case in `every` is tried, all if asked for.
    let (length, every) = if cfg!(debug_assertions) { (10_000, 401) } else { (100_000, 199) };
    let every = match std::env::var("BANSET_COST").ok().and_then(|asked| asked.parse().ok()) {
        Some(asked) => asked,
        None => every,
    };
    let only = std::env::var("BANSET_COST_OF").ok();
    let mut worst: BTreeMap<&str, (Duration, String)> = BTreeMap::new();
    let (mut case, mut tried) = (0_usize, 0);
    for (name, text) in shipped() {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let definition = definition::parse(name, text).unwrap();
        let filter = Filter::compile(&definition, &widest(&definition), &Options::default()).unwrap();
        let mut scanner = Scanner::new(vec![Arc::new(filter)]);
        let mut found = Vec::new();
        let slowest = worst.entry(name).or_default();
        for sample in definition.samples.iter().flat_map(|sample| sample.line.lines()) {
            lines(sample, length, |line| {
                case += 1;
                if case % every != 0 {
                    return;
                }
                tried += 1;
                let (what, line) = line();
                let mut took = Duration::MAX;
                // A second try tells a slow line from an unlucky moment.
                for _ in 0..2 {
                    let start = spent();
                    scanner.scan(line.as_bytes(), When { now: NOW, live: true }, &mut found);
                    took = took.min(spent().saturating_sub(start));
                    if took <= slowest.0 {
                        break;
                    }
                }
                if took > slowest.0 {
                    *slowest = (took, what);
                }
                found.clear();
            });
        }
    }
    let mut worst: Vec<_> = worst.into_iter().collect();
    worst.sort_by_key(|(_, (took, _))| std::cmp::Reverse(*took));
    println!("{tried} lines of {length} bytes; processor time of the slowest:");
    for (name, (took, what)) in worst.iter().take(if every == 1 { 70 } else { 10 }) {
        println!("{:8.2} ms  {name}: {what}", took.as_secs_f64() * 1e3);
    }
    // About 3 ms where nothing else runs; a busy machine's caches and clock cost up to three times that.
    let bound = Duration::from_millis(if cfg!(debug_assertions) { 30 } else { 10 });
    assert!(worst[0].1.0 < bound, "{:?}", worst[0]);
}

#[test]
fn long_lines_mean_what_the_regex_engine_alone_says() {
    let (length, every) = if cfg!(debug_assertions) { (5_000, 1_201) } else { (9_000, 97) };
    let (mut case, mut tried, mut told) = (0_usize, 0, 0);
    for (name, text) in shipped() {
        let definition = definition::parse(name, text).unwrap();
        let filter = || Filter::compile(&definition, &widest(&definition), &Options::default()).unwrap();
        let (mut quick, mut plain) =
            (Scanner::new(vec![Arc::new(filter())]), Scanner::new(vec![Arc::new(filter().without_walks())]));
        let fresh = quick.state();
        for sample in definition.samples.iter().flat_map(|sample| sample.line.lines()) {
            lines(sample, length, |line| {
                case += 1;
                if case % every != 0 {
                    return;
                }
                tried += 1;
                let (what, line) = line();
                let found = [&mut quick, &mut plain].map(|scanner| {
                    let mut found = Vec::new();
                    scanner.restore(fresh.clone());
                    scanner.scan(line.as_bytes(), When { now: NOW, live: true }, &mut found);
                    found
                });
                told += usize::from(!found[0].is_empty());
                assert_eq!(found[0], found[1], "{name}: {what}");
            });
        }
    }
    println!("{tried} lines of {length} bytes, {told} of which say something");
    assert!(told * 50 > tried, "too few of these lines match anything: {told} of {tried}");
}
