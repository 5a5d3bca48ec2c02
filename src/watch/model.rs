//! The follower against a model: a log is written, rotated in every way we know, and the watch killed and started again from a
//! position that it handed out earlier. In the end every line that still exists was handed out exactly once, and no line twice.
//!
//! `BANSET_MODEL_RUNS` says how many random histories are played (200), `BANSET_MODEL_SEED` with which to begin.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::tests::{PATIENCE, Run, Told, append, habits};
use super::{Position, SourceState, Start};

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// How rotated files are named.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scheme {
    /// `log.1`, `log.2`; compressed from this number on.
    Numbers(usize),
    /// `log-20261101`; all compressed but this many.
    Dates(usize),
    /// `current` and `@400000006740a5e71b3f2d4c.s`.
    Multilog,
}

/// The directory as the model sees it.
struct World {
    dice: Dice,
    dir: PathBuf,
    log: String,
    scheme: Scheme,
    /// How many rotated files are kept.
    keep: usize,
    /// The lines in each file by name.
    files: BTreeMap<String, Vec<u64>>,
    /// Names of rotated files, newest first.
    rotated: Vec<String>,
    /// The newest of them is a copy.
    copied: bool,
    number: u64,
    story: Vec<String>,
}

impl World {
    fn new(seed: u64, dir: &Path) -> World {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let scheme = match dice.roll(5) {
            0 => Scheme::Numbers(1),
            1 => Scheme::Numbers(2),
            2 => Scheme::Numbers(100),
            3 => Scheme::Dates(dice.roll(3) as usize),
            _ => Scheme::Multilog,
        };
        let log = if scheme == Scheme::Multilog { "current" } else { "mail.log" }.to_owned();
        let keep = 1 + dice.roll(4) as usize;
        let story = vec![format!("{scheme:?} keep {keep}")];
        let (files, rotated) = (BTreeMap::from([(log.clone(), Vec::new())]), Vec::new());
        let world = World { dice, dir: dir.to_owned(), log, scheme, keep, files, rotated, copied: false, number: 0, story };
        append(world.path(&world.log), "");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write(&mut self, name: &str, most: u64) {
        let mut text = String::new();
        let count = 1 + self.dice.roll(most);
        for _ in 0..count {
            self.number += 1;
            let long = if self.dice.one_in(30) { 3000 } else { 60 };
            let padding = "x".repeat(self.dice.roll(long) as usize);
            // Real lines differ in their last bytes, too: it is by those that a file written anew is noticed.
            text.push_str(&format!("{} {padding} {}\n", self.number, self.number));
            self.files.get_mut(name).unwrap().push(self.number);
        }
        self.story.push(format!("write {name} {}..={}", self.number + 1 - count, self.number));
        if self.dice.one_in(4) {
            let (a, b) = text.split_at(text.len() / 2);
            append(self.path(name), a);
            append(self.path(name), b);
        } else {
            append(self.path(name), text);
        }
    }

    /// Makes room for a rotated file and returns its name.
    fn shift(&mut self) -> String {
        let name = match self.scheme {
            Scheme::Numbers(_) => {
                for index in (0..self.rotated.len()).rev() {
                    let from = self.rotated[index].clone();
                    let gz = if from.ends_with(".gz") { ".gz" } else { "" };
                    let to = format!("{}.{}{gz}", self.log, index + 2);
                    fs::rename(self.path(&from), self.path(&to)).unwrap();
                    let lines = self.files.remove(&from).unwrap();
                    self.files.insert(to.clone(), lines);
                    self.rotated[index] = to;
                }
                format!("{}.1", self.log)
            }
            Scheme::Dates(_) => format!("{}-{}", self.log, 20_260_000 + self.number),
            Scheme::Multilog => format!("@{:024x}.s", self.number),
        };
        if self.files.contains_key(&name) {
            // Two rotations in the same instant: real writers would wait or refuse.
            self.write(&self.log.clone(), 1);
            return self.shift();
        }
        name
    }

    fn rotate(&mut self, how: &str) {
        let (log, to) = (self.log.clone(), self.shift());
        self.story.push(format!("{how} to {to}"));
        self.copied = how == "copytruncate";
        let lines = self.files.remove(&log).unwrap();
        self.rotated.insert(0, to.clone());
        self.files.insert(to.clone(), lines.clone());
        self.files.insert(log.clone(), Vec::new());
        if how == "copytruncate" {
            fs::copy(self.path(&log), self.path(&to)).unwrap();
            File::create(self.path(&log)).unwrap();
        } else if self.scheme == Scheme::Multilog {
            fs::rename(self.path(&log), self.path("previous")).unwrap();
            fs::hard_link(self.path("previous"), self.path(&to)).unwrap();
            fs::remove_file(self.path("previous")).unwrap();
            append(self.path(&log), "");
        } else {
            fs::rename(self.path(&log), self.path(&to)).unwrap();
            if self.dice.one_in(3) {
                self.write(&to, 3);
            }
            append(self.path(&log), "");
            if self.dice.one_in(6) {
                self.write(&to, 3);
            }
        }
        self.compress();
        while self.rotated.len() > self.keep {
            let name = self.rotated.pop().unwrap();
            fs::remove_file(self.path(&name)).unwrap();
            self.files.remove(&name);
        }
    }

    fn compress(&mut self) {
        let from = match self.scheme {
            Scheme::Numbers(from) => from - 1,
            Scheme::Dates(from) => from,
            Scheme::Multilog => return,
        };
        for index in from..self.rotated.len() {
            let name = self.rotated[index].clone();
            if !name.ends_with(".gz") {
                let packed = format!("{name}.gz");
                let modified = self.path(&name).metadata().unwrap().modified().unwrap();
                let mut to =
                    flate2::write::GzEncoder::new(File::create(self.path(&packed)).unwrap(), flate2::Compression::fast());
                to.write_all(&fs::read(self.path(&name)).unwrap()).unwrap();
                to.finish().unwrap().set_modified(modified).unwrap();
                fs::remove_file(self.path(&name)).unwrap();
                let lines = self.files.remove(&name).unwrap();
                self.files.insert(packed.clone(), lines);
                self.rotated[index] = packed;
            }
        }
    }

    fn act(&mut self) {
        let log = self.log.clone();
        match self.dice.roll(20) {
            0..=1 => self.rotate("rename"),
            2 => {
                self.rotate("rename");
                self.write(&log, 5);
                self.rotate("rename");
            }
            3..=4 if self.scheme != Scheme::Multilog => self.rotate("copytruncate"),
            5 if self.scheme != Scheme::Multilog => {
                self.rotate("copytruncate");
                self.write(&log, 5);
                self.rotate("copytruncate");
            }
            8 if self.copied && self.rotated.first().is_some_and(|name| !name.ends_with(".gz")) => {
                // The last copy is overwritten.
                let to = self.rotated[0].clone();
                self.story.push(format!("copy over {to} and truncate"));
                fs::copy(self.path(&log), self.path(&to)).unwrap();
                File::create(self.path(&log)).unwrap();
                let lines = std::mem::take(self.files.get_mut(&log).unwrap());
                self.files.insert(to, lines);
            }
            6 => {
                self.story.push("truncate and grow".into());
                OpenOptions::new().write(true).truncate(true).open(self.path(&log)).unwrap();
                self.files.get_mut(&log).unwrap().clear();
                self.write(&log, 40);
            }
            7 => {
                self.story.push("delete".into());
                // A copy that is older than the log is told from late writing to an older file only if it was seen before it was
                // overwritten.
                self.copied = false;
                fs::remove_file(self.path(&log)).unwrap();
                self.files.insert(log.clone(), Vec::new());
                append(self.path(&log), "");
            }
            _ => {}
        }
        self.write(&log, 20);
    }

    /// What stands in the directory, for whoever reads the story of a failure.
    fn listing(&self) -> Vec<String> {
        let entry = |name: &String, lines: &Vec<u64>| {
            let meta = self.path(name).metadata().unwrap();
            let mark = super::position::Mark::beginning(&meta);
            let lines = (lines.first(), lines.last());
            format!("{name}: inode {} born {} modified {} size {} {lines:?}", mark.inode, mark.birth, mark.modified, meta.len())
        };
        self.files.iter().map(|(name, lines)| entry(name, lines)).collect()
    }

    fn existing(&self) -> HashSet<u64> {
        self.files.values().flatten().copied().collect()
    }
}

/// What the daemon's state would hold: the lines that are done with, and the position that goes with them.
#[derive(Default)]
struct Kept {
    lines: HashMap<u64, u32>,
    position: Option<Position>,
}

impl Kept {
    fn keep(&mut self, chunks: &[(Vec<u64>, Position)]) {
        for (lines, position) in chunks {
            lines.iter().for_each(|line| *self.lines.entry(*line).or_default() += 1);
            // It goes through JSON, as it would.
            let text = serde_json::to_string(position).unwrap();
            self.position = Some(serde_json::from_str(&text).unwrap());
        }
    }
}

fn numbers(text: &[u8]) -> Vec<u64> {
    let text = std::str::from_utf8(text).unwrap();
    text.lines().map(|line| line.split(' ').next().unwrap().parse().expect("a whole line of ours")).collect()
}

/// Takes what was told until every existing line was handed out.
fn sync(seed: u64, world: &World, run: &mut Run, kept: &Kept, chunks: &mut Vec<(Vec<u64>, Position)>) {
    let mut missing = world.existing();
    missing.retain(|line| !kept.lines.contains_key(line));
    let seen = |chunks: &[(Vec<u64>, Position)], missing: &mut HashSet<u64>| {
        chunks.iter().flat_map(|(lines, _)| lines).for_each(|line| _ = missing.remove(line));
    };
    seen(chunks, &mut missing);
    let limit = Instant::now() + PATIENCE;
    while !missing.is_empty() {
        match run.told.recv_timeout(limit.saturating_duration_since(Instant::now())) {
            Ok(told) => {
                take(told, chunks);
                seen(&chunks[chunks.len().saturating_sub(1)..], &mut missing);
            }
            Err(_) => {
                let mut missing: Vec<_> = missing.into_iter().collect();
                missing.sort_unstable();
                panic!("seed {seed}: lost {missing:?}\n{:#?}\n{:#?}", world.story, told(chunks));
            }
        }
    }
}

/// A position told when a file is taken up is kept as one told with lines is.
fn take(told: Told, chunks: &mut Vec<(Vec<u64>, Position)>) {
    match told {
        Told::Lines { text, position, .. } => chunks.push((numbers(&text), position)),
        Told::TakenUp { position, .. } => chunks.push((Vec::new(), position)),
        _ => {}
    }
}

fn collect(run: &Run, chunks: &mut Vec<(Vec<u64>, Position)>) {
    while let Ok(told) = run.told.try_recv() {
        take(told, chunks);
    }
}

/// The chunks in a few words each.
fn told(chunks: &[(Vec<u64>, Position)]) -> Vec<String> {
    let mark =
        |mark: &super::position::Mark| format!("{}+{} born {} modified {}", mark.inode, mark.offset, mark.birth, mark.modified);
    let chunk = |(lines, position): &(Vec<u64>, Position)| {
        let marks: Vec<_> = position.marks.iter().map(mark).collect();
        format!("  told {:?} {marks:?}", (lines.first(), lines.last()))
    };
    chunks.iter().map(chunk).collect()
}

fn once(seed: u64, world: &World, kept: &Kept, chunks: &[(Vec<u64>, Position)]) {
    let mut count = kept.lines.clone();
    chunks.iter().flat_map(|(lines, _)| lines).for_each(|line| *count.entry(*line).or_default() += 1);
    let mut twice: Vec<_> = count.into_iter().filter(|(_, count)| *count > 1).collect();
    twice.sort_unstable();
    assert!(twice.is_empty(), "seed {seed}: handed out more than once: {twice:?}\n{:#?}\n{:#?}", world.story, told(chunks));
}

fn start(world: &World, kept: &Kept) -> Run {
    let run = Run::new(habits());
    let log = world.path(&world.log);
    if let Some(position) = &kept.position {
        run.handle.resume(&log, position.clone());
    }
    run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
    run
}

fn play(seed: u64, totals: &mut [u64; 3]) {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(seed, dir.path());
    let mut kept = Kept::default();
    let log = world.log.clone();
    if world.dice.one_in(2) {
        world.write(&log, 20);
    }
    let mut run = start(&world, &kept);
    let mut chunks = Vec::new();
    // A first start that saved nothing owes nothing of what is rotated away before the second: but the first position is told
    // before the first line, and may be all that a kill leaves.
    while chunks.is_empty() {
        take(run.told.recv_timeout(PATIENCE).expect("a position"), &mut chunks);
    }
    kept.keep(&chunks.drain(..1).collect::<Vec<_>>());
    assert!(kept.lines.is_empty(), "told before the first line");
    for _ in 0..12 {
        for _ in 0..=world.dice.roll(3) {
            world.act();
        }
        match world.dice.roll(5) {
            0 => {
                // kill -9: what was handed out after the last save did not happen.
                if world.dice.one_in(2) {
                    sync(seed, &world, &mut run, &kept, &mut chunks);
                }
                let stopped = std::mem::replace(&mut run, Run::new(habits())).stop_quietly();
                collect(&stopped, &mut chunks);
                let saved = world.dice.roll(chunks.len() as u64 + 1) as usize;
                kept.keep(&chunks[..saved]);
                world.story.extend(told(&chunks[..saved]));
                world.story.push("killed".into());
                chunks.clear();
                totals[1] += 1;
                for _ in 0..world.dice.roll(4) {
                    world.act();
                }
                world.story.push(format!("started with {:#?}", world.listing()));
                run = start(&world, &kept);
            }
            1 => {}
            _ => {
                sync(seed, &world, &mut run, &kept, &mut chunks);
                world.story.push("synced".into());
            }
        }
        once(seed, &world, &kept, &chunks);
    }
    sync(seed, &world, &mut run, &kept, &mut chunks);
    let limit = Instant::now() + PATIENCE;
    loop {
        let status = run.status_raw(|told| take(told, &mut chunks));
        if status.iter().all(|status| status.state == SourceState::Following && status.lag_bytes == 0) {
            break;
        }
        assert!(Instant::now() < limit, "seed {seed}: {status:?}");
    }
    once(seed, &world, &kept, &chunks);
    totals[0] += world.number;
    totals[2] += 1;
}

#[test]
fn whatever_is_done_to_a_log_each_line_that_exists_is_handed_out_once() {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let first = number("BANSET_MODEL_SEED", 1);
    let mut totals = [0; 3];
    for seed in first..first + number("BANSET_MODEL_RUNS", 200) {
        play(seed, &mut totals);
    }
    println!("{} histories, {} lines, {} kills: none lost, none twice", totals[2], totals[0], totals[1]);
}
