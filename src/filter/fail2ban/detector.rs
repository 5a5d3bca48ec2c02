//! Which date of a line is the line's, as fail2ban chooses among several.
//!
//! The template that found the last date is tried first: where it is tied to the head or end of the line, anywhere that allows;
//! else where the last date stood, if the characters beside that place look the same. Otherwise all are tried in order, and the
//! first one wins that is anchored or stands no farther right than it used to. A date that stands farther right may be
//! part of a client's text: it is kept while others are tried, and the leftmost kept one wins. What wins often moves up.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::expression::Strain;
use super::stamp;
use super::template::{self, Kind, Pattern, Seen, Template};
use crate::terms::Time;

/// A template that was not used for this long makes room for another, in microseconds.
const UNUSED: i64 = 300_000_000;
const FAR: usize = 0x7fff_ffff;
/// Years up to 2029 are dates whatever the clock says: a wrong clock must not hide every line.
const DECADE: u8 = 2;

/// The templates of a filter.
#[derive(Clone, Debug)]
pub(crate) struct Dates {
    templates: Vec<Arc<Template>>,
    patterns: Vec<String>,
    decade: u8,
}

impl Dates {
    /// Reads the lines of a `datepattern`; none stand for the default templates. The errors come with the number of the line.
    pub fn new(patterns: &[String]) -> Result<Dates, Vec<(usize, String)>> {
        Dates::of(patterns, DECADE)
    }

    fn of(patterns: &[String], decade: u8) -> Result<Dates, Vec<(usize, String)>> {
        let mut templates: Vec<Arc<Template>> = Vec::new();
        let mut mistakes = Vec::new();
        let mut add = |more: &mut dyn Iterator<Item = Arc<Template>>| {
            for template in more {
                if !templates.iter().any(|known| known.name == template.name) {
                    templates.push(template);
                }
            }
        };
        for (index, pattern) in patterns.iter().enumerate() {
            match template::parse(pattern, decade) {
                Ok(Pattern::Defaults { at_head }) => {
                    add(&mut defaults(decade).into_iter().filter(|template| !at_head || template.at_head));
                }
                Ok(Pattern::Own(own)) => match own.iter().find_map(|template| template.check().err()) {
                    Some(what) => mistakes.push((index, what)),
                    None => add(&mut own.into_iter().map(Arc::new)),
                },
                Err(what) => mistakes.push((index, what)),
            }
        }
        if patterns.is_empty() {
            add(&mut defaults(decade).into_iter());
        }
        if mistakes.is_empty() { Ok(Dates { templates, patterns: patterns.to_vec(), decade }) } else { Err(mistakes) }
    }

    /// Whether what is left of a line where its date is cut out holds no literal across the cut.
    pub fn clean(&self) -> bool {
        self.templates.iter().all(|template| template.clean)
    }

    /// Whether a template needs the backtracking engine.
    pub fn backtracks(&self) -> bool {
        self.templates.iter().any(|template| template.backtracks())
    }
}

/// The default templates, compiled once.
fn defaults(decade: u8) -> Vec<Arc<Template>> {
    static SHARED: OnceLock<Vec<Arc<Template>>> = OnceLock::new();
    let all = || template::all_defaults(decade).into_iter().map(Arc::new).collect::<Vec<_>>();
    if decade == DECADE { SHARED.get_or_init(all).clone() } else { all() }
}

/// A date in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The bytes to cut out.
    pub at: Range<usize>,
    /// The instant, in microseconds since 1970; none where it means none.
    pub time: Option<Time>,
}

/// What a detector remembers over a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The name of the template that won last.
    last: Option<String>,
    place: Option<(usize, usize)>,
    beside: [String; 4],
}

#[derive(Debug)]
struct Ranked {
    template: Arc<Template>,
    hits: u64,
    /// Every match, also those that did not win.
    matches: u64,
    used: i64,
    distance: usize,
}

impl Ranked {
    fn weight(&self) -> f64 {
        self.hits as f64 * self.template.weight / self.distance.max(1) as f64
    }
}

/// Finds dates in the lines of one source.
#[derive(Debug)]
pub(crate) struct Detector {
    dates: Dates,
    zone: TimeZone,
    ranked: Vec<Ranked>,
    last: Option<usize>,
    /// Where the last date began and ended, and the characters outside and inside at both ends.
    start: usize,
    end: usize,
    beside: [String; 4],
    first_unused: usize,
    known: Option<(String, i64, Option<Time>)>,
}

/// A date that may be the line's: which template, and where.
struct Candidate {
    seen: Seen,
    index: usize,
}

impl Detector {
    pub fn new(dates: Dates, zone: TimeZone) -> Detector {
        let rank =
            |template: &Arc<Template>| Ranked { template: Arc::clone(template), hits: 0, matches: 0, used: 0, distance: FAR };
        let ranked = dates.templates.iter().map(rank).collect();
        let (last, start, end) = (None, 1, FAR);
        Detector { dates, zone, ranked, last, start, end, beside: Default::default(), first_unused: 0, known: None }
    }

    /// The templates by their rank, with the dates each found.
    pub fn hits(&self) -> impl Iterator<Item = (&str, u64)> {
        self.ranked.iter().map(|ranked| (ranked.template.name.as_str(), ranked.hits))
    }

    pub fn memory(&self) -> Memory {
        let last = self.last.and_then(|i| Some(self.ranked.get(i)?.template.name.clone()));
        Memory { place: last.is_some().then_some((self.start, self.end)), last, beside: self.beside.clone() }
    }

    pub fn restore(&mut self, memory: Memory) {
        let (Some(name), Some((start, end))) = (memory.last, memory.place) else { return };
        let Some(index) = self.ranked.iter().position(|ranked| ranked.template.name == name) else { return };
        (self.start, self.end, self.beside) = (start, end, memory.beside);
        self.ranked[index].hits = 1;
        self.ranked[index].matches = 1;
        self.ranked[index].distance = start;
        let ranked = self.ranked.remove(index);
        self.ranked.insert(0, ranked);
        (self.last, self.first_unused) = (Some(0), 1);
    }

    /// Finds the date of `line`.
    pub fn find(&mut self, line: &str, now: Time, strain: &Strain) -> Option<Found> {
        self.grow(now);
        let Candidate { seen, index } = self.choose(line, strain)?;
        let (start, end) = (seen.whole.start, seen.whole.end);
        let ranked = &mut self.ranked[index];
        ranked.hits += 1;
        ranked.used = now.0;
        ranked.distance = start;
        let template = Arc::clone(&ranked.template);
        if self.first_unused == index {
            self.first_unused += 1;
        }
        (self.start, self.end) = (start, end);
        for (kept, here) in self.beside.iter_mut().zip([before(line, start), at(line, start), before(line, end), at(line, end)]) {
            if kept != here {
                here.clone_into(kept);
            }
        }
        let index = if index > 0 && self.last != Some(index) { self.reorder(index) } else { index };
        self.last = Some(index);
        Some(Found { time: self.instant(&template, line, &seen, now), at: seen.cut })
    }

    fn choose(&mut self, line: &str, strain: &Strain) -> Option<Candidate> {
        let mut kept: Option<Candidate> = None;
        let mut tried = None;
        if let Some(index) = self.last {
            let single = self.ranked.len() == 1;
            let ranked = self.ranked.get_mut(index)?;
            let anchored = ranked.template.anchored;
            let [outside, first, last, behind] = &self.beside;
            let alike = |here: &str, there: &str| here == there;
            let symbol = |here: &str, there: &str| here == there && !here.chars().all(char::is_alphanumeric);
            let (start, end) = (self.start, self.end);
            let same = (alike(before(line, start), outside) || symbol(at(line, start), first))
                && (alike(at(line, end), behind) || symbol(before(line, end), last));
            let within = !anchored && same && start <= line.len() && line.is_char_boundary(start);
            let seen = if within {
                let end = if line.is_char_boundary(end.min(line.len())) { end.min(line.len()) } else { line.len() };
                ranked.template.find(line, start, end, strain)
            } else {
                tried = Some(index);
                ranked.template.find(line, 0, line.len(), strain)
            };
            if let Some(seen) = seen {
                ranked.matches += 1;
                let there = seen.whole.start == start && seen.whole.end == end;
                let found = Candidate { seen, index };
                if single || anchored || there {
                    return Some(found);
                }
                kept = Some(found);
            }
        }
        let count = self.ranked.len();
        for index in (0..count).filter(|index| tried != Some(*index)) {
            let unused_next = self.ranked.get(index + 1).is_none_or(|next| next.matches == 0);
            let ranked = &mut self.ranked[index];
            let Some(seen) = ranked.template.find(line, 0, line.len(), strain) else { continue };
            ranked.matches += 1;
            let distance = seen.whole.start;
            let wins = index + 1 >= count
                || ranked.template.anchored
                || (distance == 0 && ranked.hits > 0 && unused_next)
                || !(distance > ranked.distance || distance > self.start);
            let found = Candidate { seen, index };
            if wins {
                return Some(found);
            }
            if kept.as_ref().is_none_or(|kept| distance < kept.seen.whole.start) {
                kept = Some(found);
            }
        }
        kept
    }

    /// Moves a template up, if it earned it; where it stands then.
    fn reorder(&mut self, from: usize) -> usize {
        let moved = &self.ranked[from];
        let (weight, unused) = (moved.weight(), moved.used - UNUSED);
        let may = |to: usize| weight > self.ranked[to].weight() || unused > self.ranked[to].used;
        let mut to = if self.first_unused < from { self.first_unused } else { from / 2 };
        if !may(to) {
            if to == from - 1 {
                return from;
            }
            to = from - 1;
            if !may(to) {
                return from;
            }
        }
        let moved = self.ranked.remove(from);
        self.ranked.insert(to, moved);
        while self.ranked.get(self.first_unused).is_some_and(|ranked| ranked.hits > 0) {
            self.first_unused += 1;
        }
        to
    }

    fn instant(&mut self, template: &Template, line: &str, seen: &Seen, now: Time) -> Option<Time> {
        let text = line.get(seen.cut.clone())?;
        match template.kind {
            Kind::Epoch { long, group } => epoch(line.get(seen.places.get(group)?.clone()?)?, long),
            // Sixteen hexadecimal digits of seconds, of which the first says "since 1970".
            Kind::Tai64n => i64::from_str_radix(text.get(2..17)?, 16).ok().filter(|s| *s < 1 << 40).map(Time::from_secs),
            Kind::Fields => {
                // Lines of one second follow each other; the day of `now` matters to dates without a year.
                let minute = now.0.div_euclid(60_000_000);
                if let Some((known, then, time)) = &self.known
                    && known == text
                    && *then == minute
                {
                    return *time;
                }
                let time = stamp::mean(template.fields(line, seen), &self.zone, now);
                let mut kept = self.known.take().map_or_else(String::new, |(kept, ..)| kept);
                text.clone_into(&mut kept);
                self.known = Some((kept, minute, time));
                time
            }
        }
    }

    /// Takes in years of the next decade when it comes near.
    fn grow(&mut self, now: Time) {
        let Ok(today) = jiff::Timestamp::from_microsecond(now.0) else { return };
        let year = today.to_zoned(TimeZone::UTC).year().saturating_add(3);
        let decade = if (2000..2100).contains(&year) { ((year - 2000) / 10) as u8 } else { DECADE };
        if decade > self.dates.decade
            && let Ok(dates) = Dates::of(&self.dates.patterns, decade)
        {
            *self = Detector::new(dates, self.zone.clone());
        }
    }
}

fn epoch(text: &str, long: bool) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let number: i64 = whole.parse().ok()?;
    let unit = match whole.len() {
        16.. if long && fraction.is_empty() => 1,
        13.. if long => 1_000,
        _ => 1_000_000,
    };
    let mut micros = number.checked_mul(unit)?;
    let mut unit = unit / 10;
    for digit in fraction.bytes() {
        micros = micros.checked_add(i64::from(digit.wrapping_sub(b'0')) * unit)?;
        unit /= 10;
    }
    Some(Time(micros))
}

/// The character before a place; nothing if there is none.
fn before(line: &str, place: usize) -> &str {
    let Some(head) = line.get(..place) else { return "" };
    let start = head.char_indices().next_back().map_or(0, |(at, _)| at);
    &head[start..]
}

/// The character at a place; nothing if there is none.
fn at(line: &str, place: usize) -> &str {
    let Some(rest) = line.get(place..) else { return "" };
    &rest[..rest.chars().next().map_or(0, char::len_utf8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-15T12:00:00Z
    const NOW: Time = Time::from_secs(1_768_478_400);

    fn detector(patterns: &[&str]) -> Detector {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        Detector::new(Dates::new(&patterns).unwrap(), TimeZone::UTC)
    }

    fn seconds(line: &str) -> Option<f64> {
        let found = detector(&[]).find(line, NOW, &Strain::default())?;
        found.time.map(|time| time.0 as f64 / 1e6)
    }

    #[test]
    fn every_default_template_means_what_fail2ban_takes_it_for() {
        let table = [
            ("2026-01-14T21:59:59.98Z", 1_768_427_999.0),
            ("2026/01/14 21:59:59", 1_768_427_999.0),
            ("2026-01-14T21:59:59+02:00", 1_768_420_799.0),
            ("Jan 14 21:59:59", 1_768_427_999.0),
            ("Wed Jan 14 21:59:59.011 2026", 1_768_427_999.0),
            ("Wed Jan 14 2026 21:59:59.011", 1_768_427_999.0),
            ("14/01/26 21:59:59", 1_768_427_999.0),
            ("05/01/2026 00:00:00", 1_767_571_200.0),
            ("14/Jan/2026:21:59:59 +0100", 1_768_424_399.0),
            ("01/14/2026:01:57:39", 1_768_355_859.0),
            ("01-14-2026 16:22:44.252", 1_768_407_764.0),
            ("1768471199.250", 1_768_471_199.25),
            ("type=X msg=audit(1768471199.992:107): y", 1_768_471_199.992),
            ("21:59:59", 1_768_427_999.0),
            ("11:59:59", 1_768_478_399.0),
            ("<01/14/26@05:03:30>", 1_768_367_010.0),
            ("260114  1:46:11", 1_768_355_171.0),
            ("Jan 14, 2026 12:00:01 AM", 1_768_348_801.0),
            ("Jan-14-26 02:33:06", 1_768_357_986.0),
            ("20260114T215959", 1_768_427_999.0),
            ("20260114-21:59:59", 1_768_427_999.0),
            ("PDT Jan 14 21:05:29", 1_768_449_929.0),
            ("+00:00 Jan 14 21:59:59.011 2026", 1_768_427_999.0),
            ("@4000000069680f1f2a3b4c5d x", 1_768_427_295.0),
        ];
        for (line, unix) in table {
            assert_eq!(seconds(line), Some(unix), "{line}");
        }
        for line in ["x 1768471199 y", "1999-01-01 00:00:00", "2031-01-01 00:00:00", "x21:59:59", "foo 21:59:59", ""] {
            assert_eq!(seconds(line), None, "{line}");
        }
    }

    #[test]
    fn long_epochs_are_read_by_their_length() {
        let micros = |text: &str| epoch(text, true).map(|t| t.0);
        assert_eq!(micros("1768471199"), Some(1_768_471_199_000_000));
        assert_eq!(micros("1768471199123"), Some(1_768_471_199_123_000));
        assert_eq!(micros("1768471199123456"), Some(1_768_471_199_123_456));
        assert_eq!(micros("1768471199123.456"), Some(1_768_471_199_123_456));
    }

    #[test]
    fn a_date_in_the_text_does_not_beat_the_real_one() {
        let mut detector = detector(&[]);
        let mut start = |line: &str| detector.find(line, NOW, &Strain::default()).unwrap().at.start;
        assert_eq!(start("<13>Jan 14 21:59:59 mx user 2026-01-01 00:00:00"), 4);
        assert_eq!(start("<13>Jan 14 21:59:59 mx user 2026-01-01 00:00:00"), 4);
        assert_eq!(start("<4>Jan 14 21:59:59 mx user 2026-01-01 00:00:00"), 3);
    }

    #[test]
    fn years_of_the_next_decade_count_when_it_is_near() {
        let mut detector = detector(&[]);
        let line = "2031-01-01 00:00:00";
        assert!(detector.find(line, NOW, &Strain::default()).is_none());
        assert!(detector.find(line, Time::from_secs(1_893_456_000), &Strain::default()).is_some());
    }

    #[test]
    fn what_is_kept_over_a_restart_goes_on() {
        let mut first = detector(&[]);
        first.find("<13>Jan 14 21:59:59 mx", NOW, &Strain::default());
        let kept: Memory = serde_json::from_str(&serde_json::to_string(&first.memory()).unwrap()).unwrap();
        let mut second = detector(&[]);
        second.restore(kept);
        assert_eq!(second.find("<13>Jan 14 22:00:09 mx", NOW, &Strain::default()).unwrap().at, 4..19);
        assert_eq!(second.memory(), first.memory());
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(lines in proptest::collection::vec("[0-9a-zJé:<>@ ./-]{0,40}", 1..5)) {
            let mut detector = detector(&[]);
            for line in lines {
                detector.find(&line, NOW, &Strain::default());
            }
        }
    }
}
