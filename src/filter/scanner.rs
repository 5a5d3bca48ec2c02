//! Lines in, failures out: the filters of one source and what they remember of its lines.
//!
//! A chunk of whole lines is searched for the literals of all filters at once; only lines that hold one are looked at, only
//! against the patterns it belongs to. Lines are judged in order. What is remembered (where dates stand, how far the
//! source's clock is off, connections, tries) is [`State`] and belongs to the position in the source.

use std::cell::Cell;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Filter;
use super::dates::{Date, Detector, Memory};
use super::fail2ban::{Value, judge as foreign};
use super::pattern::{Hit, Pattern, Places};
use super::prefilter::{Prefilter, Slots};
use super::repeated;
use super::session::{Piece, Sessions, Tries};
use crate::terms::{Time, escape};

/// A live line whose date is farther off than this counts as now; a date older than this is not lent to a line without one.
const NEAR: i64 = 60_000_000;
/// How many lines back a line without a date looks for one while catching up.
const LOOK_BACK: usize = 64;

/// What the clock says while a chunk is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When {
    /// The wall clock.
    pub now: Time,
    /// The lines were just written; otherwise the source is being caught up with, and the log's own times count.
    pub live: bool,
}

/// The instants of lines that bear none themselves: where each line begins in its chunk, ascending, and when it was written.
pub type Times<'a> = &'a [(u32, Time)];

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Somebody failed to log in, or misbehaved.
    Failure,
    /// Somebody logged in.
    Ok,
}

/// A line that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which of the scanner's filters.
    pub filter: usize,
    /// Where the line begins in the chunk.
    pub offset: u32,
    /// Its length without the newline.
    pub len: u32,
    /// What it says.
    pub kind: Kind,
    /// Of whom; never an IPv4-mapped address.
    pub addr: IpAddr,
    /// When; never later than `now`.
    pub time: Time,
    /// How many tries it tells that no earlier line told; 1 for a login.
    pub attempts: u32,
    /// Which failregex (or okregex) of the filter, from 0.
    pub pattern: u16,
    /// The account, as bytes from the line.
    pub user: Option<Box<[u8]>>,
    /// What the pattern marked as the reason.
    pub reason: Option<Box<[u8]>>,
    /// Bytes of the line that are a password: cut them out wherever the line is shown or kept.
    pub secrets: Vec<Range<u32>>,
}

/// What a filter did with the lines of its source so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Lines that held one of its literals.
    pub candidates: u64,
    /// Lines that matched a failregex, repeated reports and context included.
    pub matched: u64,
    /// Of these, lines that told no new try.
    pub repeated: u64,
    /// Lines that an ignoreregex excused.
    pub ignored: u64,
    /// Lines that matched an okregex.
    pub ok: u64,
    /// Near misses: lines that held a failregex's literal and matched nothing.
    pub missed: u64,
    /// Lines that matched and bore no date.
    pub undated: u64,
    /// Connections and tries forgotten for want of room.
    pub evicted: u64,
    /// Times that a pattern beyond linear time was given up for want of steps: the line counts as not matched.
    pub strained: u64,
}

/// Near misses since they were last asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NearMisses {
    /// How many.
    pub count: u64,
    /// The last few lines, oldest first, each up to its bound.
    pub last: Vec<Box<[u8]>>,
}

/// So many near misses are kept, with so many bytes of each.
const KEPT: usize = 3;
const KEPT_BYTES: usize = 300;

/// The last near misses of a filter, written over one after the other: nothing is allocated for each.
#[derive(Debug, Default)]
struct Near {
    count: u64,
    lines: [Vec<u8>; KEPT],
}

impl Near {
    fn note(&mut self, line: &[u8]) {
        let kept = &mut self.lines[self.count as usize % KEPT];
        kept.clear();
        kept.extend_from_slice(&line[..line.len().min(KEPT_BYTES)]);
        self.count += 1;
    }

    fn take(&mut self) -> NearMisses {
        let (count, kept) = (std::mem::take(&mut self.count), KEPT as u64);
        let last = (count.saturating_sub(kept)..count).map(|n| self.lines[(n % kept) as usize].as_slice().into());
        NearMisses { count, last: last.collect() }
    }
}

/// What a scanner remembers: a saved position is worth nothing without it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    clock_offset: Option<i64>,
    last_date: Option<i64>,
    dates: Vec<Memory>,
    filters: Vec<Remembered>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Remembered {
    name: Box<str>,
    sessions: Sessions,
    tries: Tries,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    foreign: Option<foreign::State>,
}

/// The filters of one source, judging its lines.
#[derive(Debug)]
pub struct Scanner {
    prefilter: Prefilter,
    judges: Vec<Judge>,
    /// Which judge a slot belongs to.
    judge_of: Vec<u32>,
    dates: Vec<Dated>,
    clock: Clock,
    lines: u64,
    slots: Slots,
    scratch: Vec<u8>,
}

/// One filter at work.
#[derive(Debug)]
struct Judge {
    filter: Arc<Filter>,
    /// Its slots: first those of failregex, from `okregex` on those of okregex.
    first: usize,
    okregex: usize,
    end: usize,
    dates: usize,
    /// One for prefregex, then one for each slot.
    places: Vec<Places>,
    sessions: Sessions,
    tries: Tries,
    counters: Counters,
    near: Near,
    key: Vec<u8>,
    /// A filter of fail2ban judges in its own way.
    foreign: Option<Box<foreign::Judge>>,
}

/// A date detector, shared by the filters that want the same dates, and the current line without its date.
#[derive(Debug)]
struct Dated {
    detector: Detector,
    /// The offset of the line the rest is about.
    line: usize,
    date: Option<Date>,
    /// The line without its date, where it does not stand at the head.
    rest: Vec<u8>,
    /// The message was repeated: where it stands in the text, how many bytes before it are left out, and how often.
    again: Option<(usize, usize, u32)>,
}

/// The source's clock.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    /// How far the log's dates are ahead of ours, in microseconds, if more than a minute.
    offset: Option<i64>,
    /// The last line's instant.
    last: Option<Time>,
    /// The log's own times count as they are written.
    as_written: bool,
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread judges a line: a panic there costs that line and nothing else.
pub(crate) fn is_guarded() -> bool {
    GUARDED.get()
}

/// Does this, and says whether it came to its end. Whoever writes the lines would else have found what ends the daemon, at every start
/// again.
pub(crate) fn guarded(act: impl FnOnce()) -> bool {
    GUARDED.set(true);
    // What the judges remember stays readable whatever they were at.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
    GUARDED.set(false);
    result.is_ok()
}

impl Scanner {
    /// A scanner for the lines of one source.
    pub fn new(filters: Vec<Arc<Filter>>) -> Scanner {
        let mut needs = Vec::new();
        let mut judge_of = Vec::new();
        let mut dates: Vec<Dated> = Vec::new();
        let mut kinds = Vec::new();
        let mut judges = Vec::new();
        for (index, filter) in filters.into_iter().enumerate() {
            let first = needs.len();
            needs.extend(filter.failregex.iter().map(|pattern| filter.needs(pattern)));
            if let Some(rules) = &filter.foreign {
                needs.extend((0..rules.failregex.len()).map(|pattern| Some(rules.needs(pattern))));
            }
            let okregex = needs.len();
            needs.extend(filter.okregex.iter().map(|pattern| filter.needs(pattern)));
            judge_of.resize(needs.len(), index as u32);
            let kind = (filter.dates.clone(), filter.zone.clone());
            let shared = kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
                kinds.push(kind);
                let detector = Detector::new(filter.dates.clone(), filter.zone.clone());
                dates.push(Dated { detector, line: usize::MAX, date: None, rest: Vec::new(), again: None });
                dates.len() - 1
            });
            judges.push(Judge::new(filter, first, okregex, needs.len(), shared));
        }
        let prefilter = Prefilter::new(&needs);
        let slots = Slots::none(needs.len());
        Scanner { prefilter, judges, judge_of, dates, clock: Clock::default(), lines: 0, slots, scratch: Vec::new() }
    }

    /// Judges a chunk of whole lines, each ending in a newline (the last one's may be missing). What is found is appended.
    pub fn scan(&mut self, chunk: &[u8], when: When, found: &mut Vec<Found>) {
        self.judge(chunk, None, when, found);
    }

    /// The same with lines of the journal: no date is looked for, each line's instant stands in `times`.
    pub fn scan_timed(&mut self, chunk: &[u8], times: Times<'_>, when: When, found: &mut Vec<Found>) {
        self.judge(chunk, Some(times), when, found);
    }

    fn judge(&mut self, chunk: &[u8], times: Option<Times<'_>>, when: When, found: &mut Vec<Found>) {
        let newlines = memchr::memchr_iter(b'\n', chunk).count() as u64;
        self.lines += newlines + u64::from(chunk.last().is_some_and(|b| *b != b'\n'));
        for dated in &mut self.dates {
            dated.line = usize::MAX;
        }
        let mut slots = std::mem::take(&mut self.slots);
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut candidates = self.prefilter.candidates(chunk);
        while let Some((start, end)) = candidates.next(&mut slots) {
            let line = &chunk[start..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let given = times.map(|times| written(times, start, when.now));
            let judged = guarded(|| {
                let mut slot = 0;
                while let Some(next) = slots.next(slot) {
                    let index = self.judge_of[next] as usize;
                    let judge = &mut self.judges[index];
                    slot = judge.end;
                    let place = Place { chunk, line, start, given, filter: index };
                    if judge.foreign.is_some() {
                        // It cuts dates out in its own way.
                        judge.foreign_line(&place, when, &mut self.clock, found);
                        continue;
                    }
                    let dated = &mut self.dates[judge.dates];
                    if dated.line != start {
                        dated.cut(line, start, given, when.now);
                    }
                    judge.line(&place, &slots, when, dated, &mut self.clock, &mut scratch, found);
                }
            });
            if !judged {
                // What follows its head may be a password: what marks one is what failed.
                let (bytes, head) = (line.len(), escape(line, 48));
                tracing::error!(
                    "a line of {bytes} bytes could not be judged and is passed over, a fault of banset's own: {head}"
                );
            }
        }
        self.slots = slots;
        self.scratch = scratch;
    }

    /// Takes the log's times as they are written, instead of none that is later than now: for whoever tries a filter.
    pub(crate) fn take_times_as_written(&mut self) {
        self.clock.as_written = true;
    }

    /// The filters, in the order of [`Found::filter`].
    pub fn filters(&self) -> impl Iterator<Item = &Arc<Filter>> {
        self.judges.iter().map(|judge| &judge.filter)
    }

    /// Lines seen so far.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// What a filter did so far.
    pub fn counters(&self, filter: usize) -> Counters {
        let judge = &self.judges[filter];
        let (evicted, strained) = judge.foreign.as_ref().map_or((0, 0), |foreign| (foreign.evicted, foreign.strained()));
        Counters { evicted: judge.sessions.evicted + judge.tries.evicted + evicted, strained, ..judge.counters }
    }

    /// The near misses of a filter since this was last asked.
    pub fn near_misses(&mut self, filter: usize) -> NearMisses {
        self.judges[filter].near.take()
    }

    /// What to save with the position up to which lines were scanned.
    pub fn state(&self) -> State {
        let remembered = |j: &Judge| Remembered {
            name: j.filter.name.clone(),
            sessions: j.sessions.clone(),
            tries: j.tries.clone(),
            foreign: j.foreign.as_ref().map(|foreign| foreign.state()),
        };
        State {
            clock_offset: self.clock.offset,
            last_date: self.clock.last.map(|t| t.0),
            dates: self.dates.iter().map(|d| d.detector.memory()).collect(),
            filters: self.judges.iter().map(remembered).collect(),
        }
    }

    /// Takes up what was saved. Filters are known by their names; what concerns none of these is dropped.
    pub fn restore(&mut self, state: State) {
        self.clock = Clock { offset: state.clock_offset, last: state.last_date.map(Time), as_written: self.clock.as_written };
        for (dated, memory) in self.dates.iter_mut().zip(state.dates) {
            dated.detector.restore(memory);
        }
        for remembered in state.filters {
            let mut named = self.judges.iter_mut().filter(|j| j.filter.name == remembered.name);
            if let Some(judge) = named.next() {
                (judge.sessions, judge.tries) = (remembered.sessions, remembered.tries);
                if let (Some(foreign), Some(state)) = (&mut judge.foreign, remembered.foreign) {
                    foreign.restore(state);
                }
            }
        }
    }
}

#[cfg(test)]
impl Scanner {
    /// Tries every pattern on every line, as if there were no literals.
    pub(crate) fn try_everything(&mut self) {
        self.prefilter = Prefilter::new(&vec![Some(Vec::new()); self.judge_of.len()]);
    }

    /// How far the source's dates are ahead of our clock, in microseconds, where that is more than a minute.
    fn clock_offset(&self) -> Option<i64> {
        self.clock.offset
    }

    pub(crate) fn prefilter(&self) -> &Prefilter {
        &self.prefilter
    }
}

/// When the line that begins there was written.
fn written(times: Times<'_>, start: usize, now: Time) -> Time {
    let at = times.partition_point(|(begin, _)| *begin as usize <= start);
    at.checked_sub(1).map_or(now, |at| times[at].1)
}

/// Bytes of a line that was read with replacements, as those of the line itself.
pub(super) fn in_bytes(line: &[u8], at: &Range<usize>) -> Range<u32> {
    let place = |wanted: usize| {
        let (mut read, mut here) = (0, 0);
        for chunk in line.utf8_chunks() {
            let valid = chunk.valid().len();
            if wanted <= read + valid {
                return here + wanted - read;
            }
            here += valid + chunk.invalid().len();
            read += valid + if chunk.invalid().is_empty() { 0 } else { char::REPLACEMENT_CHARACTER.len_utf8() };
            if wanted < read {
                return here - chunk.invalid().len();
            }
        }
        line.len()
    };
    place(at.start) as u32..place(at.end) as u32
}

/// A line and where it stands.
struct Place<'a> {
    chunk: &'a [u8],
    line: &'a [u8],
    start: usize,
    /// Its instant, where it bears none itself.
    given: Option<Time>,
    filter: usize,
}

impl Dated {
    fn cut(&mut self, line: &[u8], start: usize, given: Option<Time>, now: Time) {
        self.line = start;
        self.again = None;
        self.date = if given.is_none() { self.detector.find(line, now) } else { None };
        if let Some(date) = &self.date
            && date.at.start > 0
        {
            self.rest.clear();
            self.rest.extend_from_slice(&line[..date.at.start]);
            self.rest.extend_from_slice(&line[date.at.end..]);
        }
        let text = self.text(line);
        if let Some((head, said, times)) = repeated::parts(text) {
            let rest = [&text[..head], &text[said.clone()]].concat();
            self.rest = rest;
            self.again = Some((head, said.start - head, times));
        }
    }

    /// How often the line says it was written.
    fn times(&self) -> u32 {
        self.again.map_or(1, |(.., times)| times)
    }

    /// What patterns see of the line.
    fn text<'a>(&'a self, line: &'a [u8]) -> &'a [u8] {
        match &self.date {
            _ if self.again.is_some() => &self.rest,
            None => line,
            Some(date) if date.at.start == 0 => &line[date.at.end..],
            Some(_) => &self.rest,
        }
    }

    /// Bytes of the text as bytes of the line.
    fn in_line(&self, text: &Range<usize>) -> Range<u32> {
        let outside = |offset: usize| match self.again {
            Some((at, left_out, _)) if offset >= at => offset + left_out,
            _ => offset,
        };
        let shift = |offset: usize| match (&self.date, outside(offset)) {
            (Some(date), offset) if offset >= date.at.start => offset + date.at.len(),
            (_, offset) => offset,
        };
        let end = if text.end > text.start { shift(text.end - 1) + 1 } else { shift(text.end) };
        shift(text.start) as u32..end as u32
    }
}

impl Filter {
    /// What a line must hold for this failregex or okregex of ours to matter; `None` if it can not.
    fn needs(&self, pattern: &Pattern) -> Option<super::literals::Needs> {
        let before = self.prefregex.as_ref();
        if pattern.never() || before.is_some_and(Pattern::never) {
            return None;
        }
        Some(pattern.needs.iter().chain(before.map_or(&[][..], |p| &p.needs)).cloned().collect())
    }
}

impl Judge {
    fn new(filter: Arc<Filter>, first: usize, okregex: usize, end: usize, dates: usize) -> Judge {
        let foreign = filter.foreign.as_ref().map(|rules| foreign::Judge::new(Arc::clone(rules), filter.zone.clone()));
        let places = (0..=end - first).map(|_| Places::default()).collect();
        Judge {
            filter,
            first,
            okregex,
            end,
            dates,
            places,
            sessions: Sessions::default(),
            tries: Tries::default(),
            counters: Counters::default(),
            near: Near::default(),
            key: Vec::new(),
            foreign: foreign.map(Box::new),
        }
    }

    /// A line for a filter of fail2ban.
    fn foreign_line(&mut self, place: &Place<'_>, when: When, clock: &mut Clock, found: &mut Vec<Found>) {
        let Some(judge) = &mut self.foreign else { return };
        self.counters.candidates += 1;
        let line = String::from_utf8_lossy(place.line);
        // A connection is as old as its lines say while old ones are read, else as the clock says.
        let age = if when.live { when.now } else { place.given.or(clock.last).unwrap_or(when.now) };
        let verdict = judge.line(&line, place.given, when.now, age, None);
        let mut time = || match (place.given, verdict.time) {
            (Some(given), _) => clock.given(given, when),
            (None, Some(date)) => clock.dated(date, when),
            (None, None) => clock.undated(None, when),
        };
        match verdict.outcome {
            foreign::Outcome::Failure(failure) => {
                self.counters.matched += 1;
                self.counters.undated += u64::from(verdict.time.is_none());
                let time = time();
                // A name without an address can not be banned.
                let Some(net) = failure.addr else { return };
                let named = self.filter.foreign.as_ref().map_or(1, |rules| rules.attempts(&failure.groups));
                found.push(Found {
                    filter: place.filter,
                    offset: place.start as u32,
                    len: place.line.len() as u32,
                    kind: Kind::Failure,
                    addr: net.ip(),
                    time,
                    attempts: failure.repeated.saturating_mul(named),
                    pattern: failure.pattern as u16,
                    user: failure.user.map(|user| user.into_bytes().into()),
                    reason: failure.groups.get("reason").and_then(Value::text).map(|reason| reason.as_bytes().into()),
                    secrets: verdict.secrets.into_iter().map(|at| in_bytes(place.line, &at)).collect(),
                });
            }
            foreign::Outcome::Context(_) | foreign::Outcome::Pending(_) => {
                self.counters.matched += 1;
                time();
            }
            foreign::Outcome::Ignored(_) => self.counters.ignored += 1,
            foreign::Outcome::Missed => {
                if self.filter.foreign.as_ref().is_some_and(|rules| rules.holds(&line)) {
                    self.counters.missed += 1;
                    self.near.note(place.line);
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the scanner's parts, borrowed one by one")]
    fn line(
        &mut self,
        place: &Place<'_>,
        slots: &Slots,
        when: When,
        dated: &mut Dated,
        clock: &mut Clock,
        scratch: &mut Vec<u8>,
        found: &mut Vec<Found>,
    ) {
        self.counters.candidates += 1;
        #[cfg(test)]
        assert!(!place.line.ends_with(tests::UNJUDGEABLE), "as was asked for");
        let text = dated.text(place.line);
        let filter = Arc::clone(&self.filter);
        let mut before = None;
        if let Some(prefregex) = &filter.prefregex {
            before = prefregex.find(text, &mut self.places[0]);
            if before.is_none() {
                return self.miss(slots, place.line);
            }
        }
        let content = before.as_ref().and_then(|hit| hit.content.clone()).unwrap_or(0..text.len());
        let subject = &text[content.clone()];
        let (first, places) = (self.first, &mut self.places[1..]);
        let mut tried = |from: usize, to: usize, patterns: &[Pattern]| {
            let mut slot = slots.next(from).filter(|slot| *slot < to);
            while let Some(at) = slot {
                if let Some(hit) = patterns[at - from].find(subject, &mut places[at - first]) {
                    return Some((at - from, hit));
                }
                slot = slots.next(at + 1).filter(|slot| *slot < to);
            }
            None
        };
        if let Some((pattern, hit)) = tried(self.first, self.okregex, &filter.failregex) {
            let excuses = |p: &Pattern| p.regex.is_match(subject) || (filter.ignores_lines && p.regex.is_match(text));
            if filter.ignoreregex.iter().any(excuses) {
                self.counters.ignored += 1;
                return;
            }
            self.counters.matched += 1;
            let hit = whole(hit, before, content.start);
            let time = self.time(place, when, dated, clock);
            self.failure(place, dated, &hit, pattern as u16, time, scratch, found);
        } else if let Some((pattern, hit)) = tried(self.okregex, self.end, &filter.okregex) {
            self.counters.ok += 1;
            let hit = whole(hit, before, content.start);
            let time = self.time(place, when, dated, clock);
            if let Some(addr) = hit.addr {
                let user = hit.user.clone().map(|r| dated.text(place.line)[r].into());
                found.push(place.found(dated, &hit, Kind::Ok, addr, time, 1, pattern as u16, user));
            }
        } else {
            self.miss(slots, place.line);
        }
    }

    /// A failregex matched: the connection's memory and the tries already told decide what it counts.
    #[expect(clippy::too_many_arguments, reason = "the scanner's parts, borrowed one by one")]
    fn failure(
        &mut self,
        place: &Place<'_>,
        dated: &Dated,
        hit: &Hit,
        pattern: u16,
        time: Time,
        scratch: &mut Vec<u8>,
        found: &mut Vec<Found>,
    ) {
        let text = dated.text(place.line);
        let (mut addr, mut user) = (hit.addr, hit.user.clone().map(|r| Box::<[u8]>::from(&text[r])));
        let mut attempts = hit.attempts.unwrap_or(1).max(1).saturating_mul(dated.times());
        if let (true, Some(id)) = (self.filter.sessions, &hit.mlfid) {
            let piece = Piece { addr, user: user.as_deref(), nofail: hit.nofail, forget: hit.forget, gained: hit.gained };
            let Some(merged) = self.sessions.merge(&text[id.clone()], &piece, time) else { return };
            addr = Some(merged.addr);
            user = merged.user;
            // A filter with `once` counts tries; else, as in fail2ban, the lines that were joined.
            if self.filter.once.is_none() {
                attempts = attempts.max(merged.attempts);
            }
        } else if hit.nofail || hit.gained {
            return;
        }
        let Some(addr) = addr else { return };
        if let Some(once) = &self.filter.once {
            let mut session = None;
            self.key.clear();
            scratch.clear();
            for part in &once.key {
                match part.as_str() {
                    "addr" => match addr {
                        IpAddr::V4(v4) => self.key.extend_from_slice(&v4.octets()),
                        IpAddr::V6(v6) => self.key.extend_from_slice(&v6.octets()),
                    },
                    "session" => session = hit.session.clone().or(hit.mlfid.clone()),
                    "reason" => self.key.extend_from_slice(hit.reason.clone().map_or(&[][..], |r| &text[r])),
                    _ => self.key.extend_from_slice(user.as_deref().unwrap_or_default()),
                }
                self.key.push(b'\n');
            }
            let session = session.filter(|range| !range.is_empty()).map(|range| {
                match addr {
                    IpAddr::V4(v4) => scratch.extend_from_slice(&v4.octets()),
                    IpAddr::V6(v6) => scratch.extend_from_slice(&v6.octets()),
                }
                scratch.extend_from_slice(&text[range]);
                scratch.truncate(256);
                &scratch[..]
            });
            self.key.truncate(256);
            attempts = self.tries.count(session, &self.key, pattern, attempts, once.within, time);
            if attempts == 0 {
                self.counters.repeated += 1;
                return;
            }
        }
        found.push(place.found(dated, hit, Kind::Failure, addr, time, attempts, pattern, user));
    }

    /// The instant of the current line.
    fn time(&mut self, place: &Place<'_>, when: When, dated: &mut Dated, clock: &mut Clock) -> Time {
        if let Some(given) = place.given {
            return clock.given(given, when);
        }
        let date = dated.date.as_ref().and_then(|d| d.time);
        if date.is_none() {
            self.counters.undated += 1;
            if !when.live {
                // The detector remembers where the date of the line before stands, as it should.
                let before = place.chunk[..place.start].rsplit(|b| *b == b'\n').skip(1).take(LOOK_BACK);
                let near = before.filter_map(|line| dated.detector.find(line, when.now)?.time).next();
                return clock.undated(near, when);
            }
        }
        match date {
            Some(date) => clock.dated(date, when),
            None => clock.undated(None, when),
        }
    }

    fn miss(&mut self, slots: &Slots, line: &[u8]) {
        if slots.next(self.first).is_some_and(|slot| slot < self.okregex) {
            self.counters.missed += 1;
            self.near.note(line);
        }
    }
}

impl Place<'_> {
    #[expect(clippy::too_many_arguments, reason = "a record's fields")]
    fn found(
        &self,
        dated: &Dated,
        hit: &Hit,
        kind: Kind,
        addr: IpAddr,
        time: Time,
        attempts: u32,
        pattern: u16,
        user: Option<Box<[u8]>>,
    ) -> Found {
        let text = dated.text(self.line);
        Found {
            filter: self.filter,
            offset: self.start as u32,
            len: self.line.len() as u32,
            kind,
            addr,
            time,
            attempts,
            pattern,
            user,
            reason: hit.reason.clone().map(|r| text[r].into()),
            secrets: hit.secrets.iter().map(|range| dated.in_line(range)).collect(),
        }
    }
}

/// A hit on the content, as one on the whole text, with what `prefregex` found in addition.
fn whole(mut hit: Hit, before: Option<Hit>, shift: usize) -> Hit {
    let Some(before) = before else { return hit };
    let moved = |range: Range<usize>| range.start + shift..range.end + shift;
    hit.addr = hit.addr.or(before.addr);
    hit.user = hit.user.map(moved).or(before.user);
    hit.reason = hit.reason.map(moved).or(before.reason);
    hit.mlfid = hit.mlfid.map(moved).or(before.mlfid);
    hit.session = hit.session.map(moved).or(before.session);
    hit.secrets = hit.secrets.into_iter().map(moved).chain(before.secrets).collect();
    hit.attempts = hit.attempts.or(before.attempts);
    hit.nofail |= before.nofail;
    hit.forget |= before.forget;
    hit.gained |= before.gained;
    hit
}

impl Clock {
    /// The instant of a line of the journal.
    fn given(&mut self, time: Time, when: When) -> Time {
        let time = if self.as_written { time } else { time.min(when.now) };
        self.last = Some(time);
        time
    }

    fn dated(&mut self, date: Time, when: When) -> Time {
        if self.as_written {
            self.last = Some(date);
            return date;
        }
        let time = if when.live {
            let ahead = date.0 - when.now.0;
            if ahead.abs() > NEAR {
                self.offset = Some(ahead);
                when.now
            } else {
                self.offset = None;
                date
            }
        } else {
            Time(date.0 - self.offset.unwrap_or(0))
        };
        let time = time.min(when.now);
        self.last = Some(time);
        time
    }

    fn undated(&mut self, near: Option<Time>, when: When) -> Time {
        if when.live {
            return self.last.filter(|last| (when.now.0 - last.0).abs() < NEAR).unwrap_or(when.now).min(when.now);
        }
        match near {
            Some(date) => self.dated(date, when),
            None => self.last.unwrap_or(when.now).min(when.now),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::filter::{Options, definition, shipped};

    /// 2026-01-15T12:00:00Z
    const NOW: Time = Time::from_secs(1_768_478_400);

    #[test]
    fn lines_of_the_journal_have_their_instants_beside_them() {
        let filters = [
            "failregex = '^\\S+ x\\[\\d+\\]: (?:2020-01-01 00:00:00 )?bad <ADDR>$'",
            "failregex = '^\\S+ x: worse <ADDR>$'\ndatepattern = '^%d\\.%m\\.%Y %H:%M:%S'",
        ];
        let mut scanner = Scanner::new(filters.iter().map(|text| filter(text)).collect());
        let lines = [
            "mx x[1]: bad 192.0.2.1",
            "mx y: fine",
            "mx x[1]: 2020-01-01 00:00:00 bad 192.0.2.2",
            "mx x: worse 192.0.2.3",
            "mx x[1]: message repeated 3 times: [ bad 192.0.2.4]",
        ];
        let (mut chunk, mut times) = (String::new(), Vec::new());
        for (ago, line) in (0_i64..).zip(lines) {
            times.push((chunk.len() as u32, Time::from_secs(NOW.secs() - 10_000 + 100 * ago)));
            chunk += &format!("{line}\n");
        }
        for live in [false, true] {
            let mut found = Vec::new();
            scanner.scan_timed(chunk.as_bytes(), &times, When { now: NOW, live }, &mut found);
            let told: Vec<String> =
                found.iter().map(|f| format!("{} {} {}", f.addr, NOW.secs() - f.time.secs(), f.attempts)).collect();
            assert_eq!(told, ["192.0.2.1 10000 1", "192.0.2.2 9800 1", "192.0.2.3 9700 1", "192.0.2.4 9600 3"]);
        }
        let mut found = Vec::new();
        scanner.scan_timed(
            b"mx x[1]: bad 192.0.2.1",
            &[(0, Time::from_secs(NOW.secs() + 99))],
            When { now: NOW, live: true },
            &mut found,
        );
        assert_eq!(found[0].time, NOW, "never later than now");
    }

    fn filter(text: &str) -> Arc<Filter> {
        let definition = definition::parse("x", text).unwrap();
        Arc::new(Filter::compile(&definition, &BTreeMap::new(), &Options::default()).unwrap())
    }

    fn of(text: &str) -> Scanner {
        Scanner::new(vec![filter(text)])
    }

    fn all_shipped() -> Vec<Arc<Filter>> {
        let compile = |(name, text): &(&str, &str)| {
            let definition = definition::parse(name, text).unwrap();
            Arc::new(Filter::compile(&definition, &BTreeMap::new(), &Options::default()).unwrap())
        };
        shipped().iter().map(compile).collect()
    }

    fn scan(scanner: &mut Scanner, text: &str, live: bool) -> Vec<Found> {
        let mut found = Vec::new();
        scanner.scan(text.as_bytes(), When { now: NOW, live }, &mut found);
        found
    }

    /// What each line gives, as seconds before `NOW`.
    fn ages(scanner: &mut Scanner, text: &str, live: bool) -> Vec<i64> {
        scan(scanner, text, live).iter().map(|f| NOW.secs() - f.time.secs()).collect()
    }

    #[test]
    fn the_clock_decides_as_fail2ban_does() {
        let failed = "failregex = 'bad <HOST>'";
        let table: [(bool, &str, &[i64]); 10] = [
            // live: near dates count, far ones mean now, none is in the future
            (true, "Jan 15 11:59:30 bad 1.2.3.4\n", &[30]),
            (true, "Jan 15 11:58:30 bad 1.2.3.4\n", &[0]),
            (true, "Jan 15 12:00:30 bad 1.2.3.4\n", &[0]),
            (true, "Jan 15 14:00:00 bad 1.2.3.4\n", &[0]),
            (true, "Jan 15 11:59:30 bad 1.2.3.4\nbad 1.2.3.4\n", &[30, 30]),
            (true, "bad 1.2.3.4\n", &[0]),
            // catching up: the log's own time, or that of the line before
            (false, "Jan 15 11:00:00 bad 1.2.3.4\n", &[3600]),
            (false, "Jan 15 11:00:00 x\nJan 15 11:30:00 y\nbad 1.2.3.4\n", &[1800]),
            (false, "bad 1.2.3.4\n", &[0]),
            (false, "Jan 16 11:00:00 bad 1.2.3.4\n", &[0]),
        ];
        for (live, lines, expected) in table {
            assert_eq!(ages(&mut of(failed), lines, live), expected, "{live} {lines}");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_remembered_with_the_position() {
        let mut scanner = of("failregex = 'bad <HOST>'");
        assert_eq!(ages(&mut scanner, "Jan 15 13:00:00 bad 1.2.3.4\n", true), [0]);
        assert_eq!(scanner.clock_offset(), Some(3_600_000_000));
        let saved = serde_json::to_string(&scanner.state()).unwrap();
        let mut again = of("failregex = 'bad <HOST>'");
        again.restore(serde_json::from_str(&saved).unwrap());
        assert_eq!(again.state(), scanner.state());
        // Read again after a restart, the hour ahead is still known.
        assert_eq!(ages(&mut again, "Jan 15 12:50:00 bad 1.2.3.4\n", false), [600]);
        assert_eq!(ages(&mut again, "Jan 15 12:00:00 bad 1.2.3.4\n", true), [0]);
        assert_eq!(again.clock_offset(), None);
    }

    #[test]
    fn passwords_are_marked_in_the_line() {
        let mut scanner = of("failregex = \"^: bad '<F-SECRET>.*</F-SECRET>' of <F-USER>\\\\S*</F-USER> <HOST>$\"");
        for line in ["Jan 15 12:00:00: bad 'hunter2' of bob 1.2.3.4", ": bad 'hunter2' of bob 1.2.3.4"] {
            let found = scan(&mut scanner, &format!("x\n{line}\n"), true);
            let secret = &found[0].secrets[0];
            assert_eq!(&line[secret.start as usize..secret.end as usize], "hunter2");
            assert_eq!((found[0].offset, found[0].len as usize), (2, line.len()));
            assert_eq!(found[0].user.as_deref(), Some(&b"bob"[..]));
        }
        let mut scanner = of("failregex = '^\\[\\] (?:<F-SECRET>s\\w+</F-SECRET>) <HOST>$'");
        let line = "[15/Jan/2026:12:00:00 +0000] s3cret 1.2.3.4\r\n";
        let secret = &scan(&mut scanner, line, true)[0].secrets[0];
        assert_eq!(&line[secret.start as usize..secret.end as usize], "s3cret");
    }

    #[test]
    fn prefregex_hands_on_content_and_lends_what_it_found() {
        let mut scanner = of(r#"
            prefregex = '^ d\[<F-MLFID>\d+</F-MLFID>\]: <F-CONTENT>.+</F-CONTENT>$'
            failregex = ['^bad <F-USER>\S+</F-USER>$', '^<F-NOFAIL>peer</F-NOFAIL> <HOST>$', '^worse <HOST>$']
            ignoreregex = ['worse 1.2.3.5']
        "#);
        let lines = "Jan 15 12:00:00 d[7]: peer 1.2.3.4\nJan 15 12:00:01 d[7]: bad bob\nJan 15 12:00:02 d[8]: bad rob\n\
            Jan 15 12:00:03 d[9]: worse 1.2.3.5\nJan 15 12:00:03 d: worse 1.2.3.4\n";
        let found = scan(&mut scanner, lines, true);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].addr.to_string().as_str(), found[0].user.as_deref()), ("1.2.3.4", Some(&b"bob"[..])));
        let counters = scanner.counters(0);
        assert_eq!((counters.matched, counters.ignored, counters.missed), (3, 1, 1));
        assert_eq!(scanner.lines(), 5);
    }

    pub(super) const UNJUDGEABLE: &[u8] = b"of 192.0.2.66";

    #[test]
    fn a_line_that_makes_judging_panic_costs_itself_alone() {
        let mut scanner = of("failregex = 'bad \\S+ of <HOST>'");
        let lines = ["192.0.2.1", "192.0.2.66", "192.0.2.2"].map(|from| format!("Jan 15 12:00:00 bad luck of {from}\n"));
        let found = scan(&mut scanner, &lines.concat(), true);
        assert_eq!(found.iter().map(|found| found.addr.to_string()).collect::<Vec<_>>(), ["192.0.2.1", "192.0.2.2"]);
        assert!(!is_guarded());
    }

    #[test]
    fn the_last_near_misses_are_kept_until_somebody_asks() {
        let mut scanner = of("failregex = '^ bad <HOST>$'");
        assert_eq!(scanner.near_misses(0), NearMisses::default());
        let line = |n: usize| format!("Jan 15 12:00:00 bad luck {n} {}\n", "x".repeat(n * 99));
        scan(&mut scanner, &(0..5).map(line).collect::<String>(), true);
        let told = scanner.near_misses(0);
        let last: Vec<&str> = told.last.iter().map(|line| std::str::from_utf8(line).unwrap()).collect();
        assert_eq!((told.count, last.len()), (5, 3));
        assert!(last.iter().zip(2..).all(|(kept, n)| line(n).starts_with(kept) && kept.len() <= KEPT_BYTES), "{last:?}");
        assert_eq!(scanner.near_misses(0).count, 0);
        scan(&mut scanner, "Jan 15 12:00:00 bad 1.2.3.4\nJan 15 12:00:00 good luck\nno bad end\n", true);
        assert_eq!(scanner.near_misses(0), NearMisses { count: 1, last: vec![(*b"no bad end").into()] });
    }

    #[test]
    fn the_next_pattern_may_match_where_an_address_is_none() {
        let mut scanner = of("failregex = ['bad <HOST>', 'bad \\S+ of <HOST>']");
        let found = scan(&mut scanner, "bad 999.1.1.1 of 1.2.3.4\n", true);
        assert_eq!((found.len(), found[0].pattern), (1, 1));
    }

    #[test]
    fn a_try_that_spans_a_restart_counts_once() {
        let dovecot = all_shipped().into_iter().find(|filter| filter.name() == "dovecot").unwrap();
        let first = "Jan 15 11:59:29 auth-worker(27283): Info: sql(bob:1.2.3.4): Password mismatch\n";
        let second = "Jan 15 11:59:31 imap-login: Info: Disconnected (auth failed, 1 attempts in 2 secs): user=<bob>, \
            method=PLAIN, rip=1.2.3.4, lip=5.6.7.8, session=<k2t5>\n";
        let mut scanner = Scanner::new(vec![Arc::clone(&dovecot)]);
        assert_eq!(scan(&mut scanner, first, true).len(), 1);
        let saved = serde_json::to_vec(&scanner.state()).unwrap();
        let mut scanner = Scanner::new(vec![dovecot]);
        scanner.restore(serde_json::from_slice(&saved).unwrap());
        assert_eq!(scan(&mut scanner, second, false).len(), 0);
        assert_eq!(scanner.counters(0).repeated, 1);
    }
}
