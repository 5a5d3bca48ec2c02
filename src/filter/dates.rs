//! Finding the date in a line, and what instant it means.
//!
//! Seventeen templates, the ones fail2ban knows, each a small hand-written reader of the bytes at one place: a
//! date at the head of a line costs some tens of nanoseconds, where a list of regular expressions costs microseconds.
//! The date that was found is *cut out* of the line before patterns see it.
//!
//! The order of preference: what the last line of this source had; then templates at the head of the line, behind at most two
//! bytes that are not part of a word; then the leftmost date anywhere. Dates begin and end at the edge of a word.

use std::ops::Range;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::terms::Time;

/// Where a filter looks for dates.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DatePattern {
    /// All templates: at the head of a line, else anywhere.
    #[default]
    Default,
    /// All templates, at the head of a line only: `{^LN-BEG}`.
    Anchored,
    /// Never look, cut nothing; the time is that of the reading: `{NONE}`.
    None,
    /// One template, anywhere.
    Only(Template),
}

impl DatePattern {
    /// Reads a `datepattern`: `{DEFAULT}`, `{^LN-BEG}`, `{NONE}`, or the name of one template. `None` for what is not
    /// understood.
    pub fn parse(text: &str) -> Option<DatePattern> {
        Some(match text.trim() {
            "" | "{DEFAULT}" => DatePattern::Default,
            "{^LN-BEG}" => DatePattern::Anchored,
            "{NONE}" => DatePattern::None,
            name => DatePattern::Only(*Template::ALL.iter().find(|t| t.name().eq_ignore_ascii_case(name))?),
        })
    }
}

/// The shapes a date can have, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Template {
    /// `2026-01-14T21:59:59.98Z`, `2026/01/14 21:59:59`, `2026.01.14 21:59:59 +0100`
    Iso,
    /// `Jan 14 21:59:59`, `Wed Jan 14 21:59:59.011 2026`: syslog and asctime
    Asctime,
    /// `Wed Jan 14 2026 21:59:59.011`
    AsctimeYearFirst,
    /// `14/01/26 21:59:59`, `05-01-2026 8:00:00`: day first
    DayFirst,
    /// `14/Jan/2026:21:59:59 +0100`, `12-Jul-2022 08:56:39 +0200`: apache, named, roundcube
    Apache,
    /// `01/14/2026:01:57:39`
    Cpanel,
    /// `01-14-2026 16:22:44.252`
    MonthFirst,
    /// `1768471199.250` or `[1768471199]` at the head, or `audit(1768471199.992:107)`
    Epoch,
    /// `21:59:59` at the head: the last such time of day
    TimeOnly,
    /// `<01/14/26@05:03:30>` at the head
    Angled,
    /// `260114  1:46:11`
    Mysql,
    /// `Jan 14, 2026 12:00:01 AM`
    Tomcat,
    /// `Jan-14-26 02:33:06` at the head
    Assp,
    /// `20260114T215959`
    Compact,
    /// `PDT Jan 14 21:05:29`
    ZoneName,
    /// `+00:00 Jan 14 21:59:59.011 2026`
    OffsetFirst,
    /// `@4000000069680f1f2a3b4c5d`
    Tai64n,
}

impl Template {
    /// Every template, in order of preference.
    pub const ALL: [Template; 17] = [
        Template::Iso,
        Template::Asctime,
        Template::AsctimeYearFirst,
        Template::DayFirst,
        Template::Apache,
        Template::Cpanel,
        Template::MonthFirst,
        Template::Epoch,
        Template::TimeOnly,
        Template::Angled,
        Template::Mysql,
        Template::Tomcat,
        Template::Assp,
        Template::Compact,
        Template::ZoneName,
        Template::OffsetFirst,
        Template::Tai64n,
    ];

    /// The template as people know it, in fail2ban's words where it has some.
    pub const fn name(self) -> &'static str {
        match self {
            Template::Iso => "ExYear-Month-Day[T ]24hour:Minute:Second[.Microseconds][Zone offset]",
            Template::Asctime => "[DAY ]MON Day 24hour:Minute:Second[.Microseconds][ ExYear]",
            Template::AsctimeYearFirst => "[DAY ]MON Day ExYear 24hour:Minute:Second[.Microseconds]",
            Template::DayFirst => "Day/Month/ExYear 24hour:Minute:Second",
            Template::Apache => "Day/MON/ExYear[ :]24hour:Minute:Second[.Microseconds][ Zone offset]",
            Template::Cpanel => "Month/Day/ExYear:24hour:Minute:Second",
            Template::MonthFirst => "Month-Day-ExYear 24hour:Minute:Second[.Microseconds]",
            Template::Epoch => "EPOCH",
            Template::TimeOnly => "{^LN-BEG}24hour:Minute:Second",
            Template::Angled => "^<Month/Day/ExYear2@24hour:Minute:Second>",
            Template::Mysql => "ExYear2ExMonthExDay  24hour:Minute:Second",
            Template::Tomcat => "MON Day, ExYear 12hour:Minute:Second AMPM",
            Template::Assp => "^MON-Day-ExYear2 24hour:Minute:Second",
            Template::Compact => "ExYearExMonthExDay[T ]Ex24hourExMinuteExSecond[.Microseconds][Zone offset]",
            Template::ZoneName => "Zone name [DAY ]MON Day 24hour:Minute:Second[.Microseconds][ ExYear]",
            Template::OffsetFirst => "Zone offset [DAY ]MON Day 24hour:Minute:Second[.Microseconds][ ExYear]",
            Template::Tai64n => "TAI64N",
        }
    }

    /// Whether it stands only at the head of a line.
    const fn only_at_head(self) -> bool {
        matches!(self, Template::TimeOnly | Template::Angled | Template::Assp)
    }

    /// Whether a date of this shape can begin with this byte.
    const fn begins_with(self, b: u8) -> bool {
        match self {
            Template::Iso
            | Template::DayFirst
            | Template::Apache
            | Template::Cpanel
            | Template::MonthFirst
            | Template::Epoch
            | Template::TimeOnly
            | Template::Mysql
            | Template::Compact => b.is_ascii_digit(),
            Template::Asctime | Template::AsctimeYearFirst | Template::Tomcat | Template::Assp | Template::ZoneName => {
                b.is_ascii_alphabetic()
            }
            Template::OffsetFirst => b == b'+' || b == b'-' || b.is_ascii_alphabetic(),
            Template::Angled => b == b'<',
            Template::Tai64n => b == b'@',
        }
    }
}

/// A date in a line: the bytes to cut out, and the instant they mean. A date that does not exist (30 February) has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Date {
    /// Which bytes of the line.
    pub at: Range<usize>,
    /// What shape it has.
    pub template: Template,
    /// The instant, rounded down to the second unless it is an epoch with a fraction.
    pub time: Option<Time>,
}

/// What the detector remembers of the lines before: where the last date stood and what it looked like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    last: Option<Winner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Winner {
    template: Template,
    /// At the head of the line.
    head: bool,
    /// Where it stood, and the bytes beside it (0 for none).
    place: u32,
    before: u8,
    after: u8,
}

/// Finds dates in the lines of one source.
#[derive(Debug)]
pub struct Detector {
    pattern: DatePattern,
    zone: TimeZone,
    memory: Memory,
    offsets: Offsets,
    /// The bytes of the last date, which were read in which way, and their instant; year-less ones depend on the day of `now` too.
    last: (Vec<u8>, Option<Template>, i64, Option<Time>),
    /// This year in the zone and the last year taken for one, with the hour of `now` they were worked out for.
    year: (i64, i32),
    hits: [u64; 17],
}

impl Detector {
    /// A detector that has seen nothing; dates without a zone are local to `zone`.
    pub fn new(pattern: DatePattern, zone: TimeZone) -> Detector {
        let offsets = Offsets { hour: i64::MIN, offset: 0 };
        let last = (Vec::new(), None, i64::MIN, None);
        Detector { pattern, zone, memory: Memory::default(), offsets, last, year: (i64::MIN, 1970), hits: [0; 17] }
    }

    /// What to keep over a restart.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Takes up what was kept.
    pub fn restore(&mut self, memory: Memory) {
        self.memory = memory;
    }

    /// Dates found so far, by template.
    pub fn hits(&self) -> impl Iterator<Item = (Template, u64)> + '_ {
        Template::ALL.into_iter().zip(self.hits).filter(|(_, hits)| *hits > 0)
    }

    /// Finds the date of `line`.
    pub fn find(&mut self, line: &[u8], now: Time) -> Option<Date> {
        let hour = now.0.div_euclid(3_600_000_000);
        if self.year.0 != hour {
            self.year = (hour, year_at(&self.zone, now));
        }
        let (winner, at, when) = self.seek(line)?;
        self.memory.last = Some(winner);
        self.hits[winner.template as usize] += 1;
        let bytes = &line[at.clone()];
        let time = if self.last.2 == hour && self.last.1 == Some(winner.template) && self.last.0 == bytes {
            self.last.3
        } else {
            let time = self.mean(&when, now);
            self.last.0.clear();
            self.last.0.extend_from_slice(bytes);
            // Only the hour of `now` is remembered, so a date near the edge of "24 hours ahead" is worked out anew.
            let edge = when.year.is_none() && time.is_none_or(|t| (t.0 - now.0).abs() > 80_000_000_000 || when.month == 0);
            (self.last.1, self.last.2, self.last.3) = (Some(winner.template), if edge { i64::MIN } else { hour }, time);
            time
        };
        Some(Date { at, template: winner.template, time })
    }

    fn seek(&self, line: &[u8]) -> Option<(Winner, Range<usize>, When)> {
        // Years up to 2029 are dates whatever the clock says: a wrong clock must not hide every line.
        let latest = ((self.year.1 + 3) / 10 * 10 + 9).max(2029);
        let reader = Reader { line, latest };
        let found = |template, head, start: usize, end: usize, when| {
            let before = if start > 0 { line[start - 1] } else { 0 };
            let after = line.get(end).copied().unwrap_or(0);
            (Winner { template, head, place: start as u32, before, after }, start..end, when)
        };
        if self.pattern == DatePattern::None {
            return None;
        }
        if let Some(last) = self.memory.last {
            if last.head {
                if let Some((start, end, when)) = reader.at_head(last.template) {
                    return Some(found(last.template, true, start, end, when));
                }
            } else if let Some((end, when)) = reader.bounded(last.template, last.place as usize) {
                let hit = found(last.template, false, last.place as usize, end, when);
                if hit.0.before == last.before && hit.0.after == last.after {
                    return Some(hit);
                }
            }
        }
        let templates: &[Template] = match &self.pattern {
            DatePattern::Only(one) => std::slice::from_ref(one),
            _ => &Template::ALL,
        };
        for template in templates {
            if let Some((start, end, when)) = reader.at_head(*template) {
                return Some(found(*template, true, start, end, when));
            }
        }
        if self.pattern == DatePattern::Anchored {
            return None;
        }
        for start in 0..line.len() {
            if (start > 0 && in_word(line[start - 1])) || !plausible(&line[start..]) {
                continue;
            }
            for template in templates.iter().filter(|t| !t.only_at_head()) {
                if let Some((end, when)) = reader.bounded(*template, start) {
                    return Some(found(*template, false, start, end, when));
                }
            }
        }
        None
    }

    /// The instant of a date as read.
    fn mean(&mut self, when: &When, now: Time) -> Option<Time> {
        if let Some(time) = when.instant {
            return Some(time);
        }
        if when.second > 59 {
            return None;
        }
        let of_day = i64::from(when.hour) * 3600 + i64::from(when.minute) * 60 + i64::from(when.second);
        if when.month == 0 {
            // Only a time of day: today, or yesterday if that is yet to come.
            let today = (now.secs() + offset_at(&self.zone, now.secs())).div_euclid(86_400);
            let time = self.unix(today, of_day, when.zone);
            return Some(if time > now { self.unix(today - 1, of_day, when.zone) } else { time });
        }
        let year = when.year.unwrap_or(self.year.1);
        let exists = |year| when.day <= days_in(year, when.month);
        if when.year.is_some() {
            return exists(year).then(|| self.unix(days(year, when.month, when.day), of_day, when.zone));
        }
        // 29 February in a year that has none: fail2ban finds no date, and so do we.
        if !exists(year) {
            return None;
        }
        let time = self.unix(days(year, when.month, when.day), of_day, when.zone);
        if time.0 <= now.0 + 86_400_000_000 {
            return Some(time);
        }
        exists(year - 1).then(|| self.unix(days(year - 1, when.month, when.day), of_day, when.zone))
    }

    /// Local days since 1970 and seconds of the day to an instant.
    fn unix(&mut self, days: i64, of_day: i64, zone: Option<i32>) -> Time {
        let local = days * 86_400 + of_day;
        let offset = zone.map_or_else(|| self.offsets.at_local(&self.zone, local), i64::from);
        Time::from_secs(local - offset)
    }
}

/// The zone's offset, remembered for one hour of local time.
#[derive(Debug)]
struct Offsets {
    hour: i64,
    offset: i64,
}

impl Offsets {
    fn at_local(&mut self, zone: &TimeZone, local: i64) -> i64 {
        let hour = local.div_euclid(3600);
        if hour == self.hour {
            return self.offset;
        }
        let (first, last) = (offset_of_local(zone, hour * 3600), offset_of_local(zone, hour * 3600 + 3599));
        if first == last {
            (self.hour, self.offset) = (hour, first.0);
            return first.0;
        }
        offset_of_local(zone, local).0
    }
}

/// Seconds east of UTC at a local time, and whether that time exists exactly once.
fn offset_of_local(zone: &TimeZone, local: i64) -> (i64, bool) {
    let (day, of_day) = (local.div_euclid(86_400), local.rem_euclid(86_400));
    let (year, month, day) = civil(day);
    let (Ok(year), Ok(month), Ok(day)) = (i16::try_from(year), i8::try_from(month), i8::try_from(day)) else { return (0, true) };
    let datetime =
        jiff::civil::DateTime::new(year, month, day, (of_day / 3600) as i8, (of_day / 60 % 60) as i8, (of_day % 60) as i8, 0);
    let Ok(datetime) = datetime else { return (0, true) };
    let ambiguous = zone.to_ambiguous_timestamp(datetime);
    let sure = !ambiguous.is_ambiguous();
    // In a gap, the offset before it counts; in a fold, the first of the two: as mktime(3) mostly does.
    (ambiguous.compatible().map_or(0, |timestamp| local - timestamp.as_second()), sure)
}

/// Seconds east of UTC at an instant.
fn offset_at(zone: &TimeZone, unix: i64) -> i64 {
    jiff::Timestamp::from_second(unix).map_or(0, |timestamp| i64::from(zone.to_offset(timestamp).seconds()))
}

fn year_at(zone: &TimeZone, now: Time) -> i32 {
    civil((now.secs() + offset_at(zone, now.secs())).div_euclid(86_400)).0
}

/// Days since 1970-01-01 of a date of the Gregorian calendar (the years begin in March, so that leap days come last).
const fn days(year: i32, month: u32, day: u32) -> i64 {
    let year = year as i64 - (month <= 2) as i64;
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month as i64 + 9) % 12) + 2) / 5 + day as i64 - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date of a day since 1970-01-01: the inverse of [`days`].
const fn civil(days: i64) -> (i32, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    ((year + era * 400) as i32 + (month <= 2) as i32, month as u32, day as u32)
}

const fn days_in(year: i32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Whether any template can begin here: a glance at the first word and what comes behind it, since a long line without a date
/// has many words.
fn plausible(rest: &[u8]) -> bool {
    let Some(first) = rest.first() else { return false };
    let run = |limit: usize, kind: fn(&u8) -> bool| {
        let length = rest.iter().take(limit).take_while(|b| kind(b)).count();
        (length, rest.get(length).copied().unwrap_or(0))
    };
    match first {
        b'0'..=b'9' => match run(16, u8::is_ascii_digit) {
            (1 | 2, next) => matches!(next, b'-' | b'/'),
            (4, next) => matches!(next, b'-' | b'/' | b'.'),
            (6, next) => next == b' ',
            (length, _) => length >= 8,
        },
        b'A'..=b'Z' | b'a'..=b'z' => match run(6, u8::is_ascii_alphabetic) {
            (1, next) => *first == b'Z' && next == b' ',
            (length, next) => (2..=5).contains(&length) && next == b' ',
        },
        b'@' | b'+' | b'-' => rest.get(1).is_some_and(u8::is_ascii_hexdigit),
        _ => false,
    }
}

const fn in_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// A date as it is written: fields that are in range each, not yet known to exist together.
#[derive(Clone, Copy, Debug, Default)]
struct When {
    year: Option<i32>,
    /// 0: only a time of day is written.
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    /// Seconds east of UTC.
    zone: Option<i32>,
    /// The instant itself, where the date is one.
    instant: Option<Time>,
}

/// Reads templates at places of a line.
struct Reader<'a> {
    line: &'a [u8],
    /// The last year taken for one; the first is 2000.
    latest: i32,
}

impl Reader<'_> {
    /// At the head of the line, behind at most two bytes that are not part of a word.
    fn at_head(&self, template: Template) -> Option<(usize, usize, When)> {
        if matches!(template, Template::Angled | Template::Assp) {
            return self.bounded(template, 0).map(|(end, when)| (0, end, when));
        }
        for start in 0..3 {
            if let Some((end, when)) = self.bounded(template, start) {
                return Some((start, end, when));
            }
            if self.line.get(start).is_none_or(|b| in_word(*b)) {
                break;
            }
        }
        None
    }

    /// The template at exactly this place, with the edges of words on both sides.
    fn bounded(&self, template: Template, start: usize) -> Option<(usize, When)> {
        let first = *self.line.get(start)?;
        if !template.begins_with(first) || (start > 0 && in_word(self.line[start - 1])) {
            return None;
        }
        let mut at = At { line: self.line, i: start, latest: self.latest };
        let when = at.template(template, start)?;
        at.ends().then_some((at.i, when))
    }
}

/// A place that moves on while fields are read.
#[derive(Clone, Copy)]
struct At<'a> {
    line: &'a [u8],
    i: usize,
    latest: i32,
}

impl At<'_> {
    fn peek(&self) -> u8 {
        self.line.get(self.i).copied().unwrap_or(0)
    }

    /// At the edge of a word or the end of the line.
    fn ends(&self) -> bool {
        self.line.get(self.i).is_none_or(|b| !in_word(*b) || (self.i > 0 && !in_word(self.line[self.i - 1])))
    }

    fn eat(&mut self, b: u8) -> Option<()> {
        (self.line.get(self.i) == Some(&b)).then(|| self.i += 1)
    }

    /// Tries `part`; on failure nothing was read.
    fn maybe<T>(&mut self, part: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let back = self.i;
        let read = part(self);
        if read.is_none() {
            self.i = back;
        }
        read
    }

    /// Like [`At::maybe`], for a last part: what comes after must be the edge of a word.
    fn maybe_last<T>(&mut self, part: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.maybe(|at| {
            let read = part(at)?;
            at.ends().then_some(read)
        })
    }

    /// A number of one or two digits within bounds.
    fn small(&mut self, low: u32, high: u32) -> Option<u32> {
        let first = self.peek().wrapping_sub(b'0');
        if first > 9 {
            return None;
        }
        self.i += 1;
        let second = self.peek().wrapping_sub(b'0');
        let mut value = u32::from(first);
        if second <= 9 && value * 10 + u32::from(second) <= high {
            value = value * 10 + u32::from(second);
            self.i += 1;
        }
        (value >= low && value <= high).then_some(value)
    }

    /// A number of exactly two digits within bounds.
    fn two(&mut self, low: u32, high: u32) -> Option<u32> {
        let pair = self.line.get(self.i..self.i + 2)?;
        let (a, b) = (pair[0].wrapping_sub(b'0'), pair[1].wrapping_sub(b'0'));
        let value = u32::from(a) * 10 + u32::from(b);
        if a > 9 || b > 9 || value < low || value > high {
            return None;
        }
        self.i += 2;
        Some(value)
    }

    /// A number whose tens may be a blank.
    fn padded(&mut self, low: u32, high: u32) -> Option<u32> {
        if self.peek() == b' ' {
            self.i += 1;
            let digit = u32::from(self.peek().wrapping_sub(b'0'));
            self.i += 1;
            return (digit <= 9 && digit >= low && digit <= high).then_some(digit);
        }
        self.small(low, high)
    }

    fn year(&mut self) -> Option<i32> {
        let high = self.two(20, 99)? as i32;
        let year = high * 100 + self.two(0, 99)? as i32;
        (year <= self.latest).then_some(year)
    }

    fn short_year(&mut self) -> Option<i32> {
        let year = 2000 + self.two(0, 99)? as i32;
        (year <= self.latest).then_some(year)
    }

    fn month_name(&mut self) -> Option<u32> {
        const NAMES: &[u8; 36] = b"janfebmaraprmayjunjulaugsepoctnovdec";
        let name = self.line.get(self.i..self.i + 3)?;
        let month = NAMES.chunks(3).position(|known| known.eq_ignore_ascii_case(name))?;
        self.i += 3;
        Some(month as u32 + 1)
    }

    /// `Wed `, if it stands there.
    fn weekday(&mut self) {
        const NAMES: &[u8; 21] = b"montuewedthufrisatsun";
        let named = |name: &[u8]| NAMES.chunks(3).any(|known| known.eq_ignore_ascii_case(name));
        if self.line.get(self.i + 3) == Some(&b' ') && named(&self.line[self.i..self.i + 3]) {
            self.i += 4;
        }
    }

    /// `21:59:59`; `blank` allows ` 9:59:59`.
    fn clock(&mut self, when: &mut When, blank: bool) -> Option<()> {
        // The usual case at once: two digits each.
        if let Some(&[h1, h2, b':', m1, m2, b':', s1, s2]) = self.line.get(self.i..self.i + 8).and_then(|c| c.first_chunk()) {
            let digit = |b: u8| u32::from(b.wrapping_sub(b'0'));
            let digits = [h1, h2, m1, m2, s1, s2];
            if digits.iter().all(u8::is_ascii_digit) {
                (when.hour, when.minute, when.second) =
                    (digit(h1) * 10 + digit(h2), digit(m1) * 10 + digit(m2), digit(s1) * 10 + digit(s2));
                self.i += 8;
                return (when.hour < 24 && when.minute < 60 && when.second < 62).then_some(());
            }
        }
        if blank && self.peek() == b' ' {
            self.i += 1;
        }
        when.hour = self.small(0, 23)?;
        self.eat(b':')?;
        when.minute = self.small(0, 59)?;
        self.eat(b':')?;
        when.second = self.small(0, 61)?;
        Some(())
    }

    /// `.981746`, up to nine digits.
    fn fraction(&mut self) {
        self.maybe_last(|at| {
            at.eat(b'.')?;
            let digits = at.line[at.i..].iter().take(9).take_while(|b| b.is_ascii_digit()).count();
            at.i += digits;
            (digits > 0).then_some(())
        });
    }

    /// `Z`, `UTC`, `GMT`, `+0200`, `-07:00`, `+01`, in seconds east of UTC.
    fn zone(&mut self) -> Option<i32> {
        for name in [&b"UTC"[..], b"GMT", b"Z"] {
            if self.line[self.i..].starts_with(name) {
                self.i += name.len();
                return Some(0);
            }
        }
        let sign = match self.peek() {
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        self.i += 1;
        let hours = self.two(0, 19)?;
        let minutes = self.maybe(|at| {
            let _ = at.eat(b':');
            at.two(0, 99)
        });
        Some(sign * (hours * 3600 + minutes.unwrap_or(0) * 60) as i32)
    }

    /// A fraction and a zone, each if it stands there: `.98Z`, `,5 -0200`.
    fn fraction_and_zone(&mut self, when: &mut When) {
        let back = self.i;
        if matches!(self.peek(), b'.' | b',') {
            let digits = self.line[back + 1..].iter().take(9).take_while(|b| b.is_ascii_digit()).count();
            self.i += 1 + digits;
            self.zone_behind(when);
            if digits > 0 && self.ends() {
                return;
            }
            (self.i, when.zone) = (back, None);
        }
        self.zone_behind(when);
    }

    /// A zone at the end, behind blanks.
    fn zone_behind(&mut self, when: &mut When) {
        when.zone = self.maybe_last(|at| {
            while matches!(at.peek(), b' ' | b'\t') {
                at.i += 1;
            }
            at.zone()
        });
    }

    /// `[DAY ]MON Day 24hour:Minute:Second[.Microseconds][ ExYear]`.
    fn asctime(&mut self, when: &mut When) -> Option<()> {
        self.weekday();
        when.month = self.month_name()?;
        self.eat(b' ')?;
        when.day = self.padded(1, 31)?;
        self.eat(b' ')?;
        self.clock(when, true)?;
        self.fraction();
        when.year = self.maybe_last(|at| {
            at.eat(b' ')?;
            at.year()
        });
        Some(())
    }

    fn template(&mut self, template: Template, start: usize) -> Option<When> {
        let mut when = When::default();
        match template {
            Template::Iso => {
                when.year = Some(self.year()?);
                let between = self.peek();
                if !matches!(between, b'-' | b'/' | b'.') {
                    return None;
                }
                self.i += 1;
                when.month = self.small(1, 12)?;
                self.eat(between)?;
                when.day = self.small(1, 31)?;
                if self.eat(b'T').is_none() {
                    let _ = self.eat(b' ').and_then(|()| self.eat(b' '));
                }
                self.clock(&mut when, false)?;
                self.fraction_and_zone(&mut when);
            }
            Template::Asctime => self.asctime(&mut when)?,
            Template::AsctimeYearFirst => {
                self.weekday();
                when.month = self.month_name()?;
                self.eat(b' ')?;
                when.day = self.padded(1, 31)?;
                self.eat(b' ')?;
                when.year = Some(self.year()?);
                self.eat(b' ')?;
                self.clock(&mut when, true)?;
                self.fraction();
            }
            Template::DayFirst => {
                when.day = self.small(1, 31)?;
                let between = self.peek();
                if !matches!(between, b'-' | b'/') {
                    return None;
                }
                self.i += 1;
                when.month = self.small(1, 12)?;
                self.eat(between)?;
                let full = self.maybe(|at| at.year().filter(|_| at.peek() == b' '));
                when.year = Some(full.or_else(|| self.short_year())?);
                self.eat(b' ')?;
                self.clock(&mut when, true)?;
            }
            Template::Apache => {
                when.day = self.small(1, 31)?;
                let between = self.peek();
                if !matches!(between, b'-' | b'/') {
                    return None;
                }
                self.i += 1;
                when.month = self.month_name()?;
                self.eat(between)?;
                when.year = Some(self.year()?);
                if matches!(self.peek(), b' ' | b':') {
                    self.i += 1;
                }
                self.clock(&mut when, false)?;
                self.fraction();
                when.zone = self.maybe_last(|at| {
                    at.eat(b' ')?;
                    at.zone()
                });
            }
            Template::Cpanel => {
                when.month = self.small(1, 12)?;
                self.eat(b'/')?;
                when.day = self.small(1, 31)?;
                self.eat(b'/')?;
                when.year = Some(self.year()?);
                self.eat(b':')?;
                self.clock(&mut when, false)?;
            }
            Template::MonthFirst => {
                when.month = self.small(1, 12)?;
                self.eat(b'-')?;
                when.day = self.small(1, 31)?;
                self.eat(b'-')?;
                when.year = Some(self.year()?);
                self.eat(b' ')?;
                self.clock(&mut when, true)?;
                self.fraction();
            }
            Template::Epoch => when.instant = Some(self.epoch(start)?),
            Template::TimeOnly => self.clock(&mut when, false)?,
            Template::Angled => {
                self.eat(b'<')?;
                when.month = self.small(1, 12)?;
                self.eat(b'/')?;
                when.day = self.small(1, 31)?;
                self.eat(b'/')?;
                when.year = Some(self.short_year()?);
                self.eat(b'@')?;
                self.clock(&mut when, false)?;
                self.eat(b'>')?;
            }
            Template::Mysql => {
                when.year = Some(self.short_year()?);
                when.month = self.two(1, 12)?;
                when.day = self.two(1, 31)?;
                self.eat(b' ')?;
                let _ = self.eat(b' ');
                self.clock(&mut when, false)?;
            }
            Template::Tomcat => {
                when.month = self.month_name()?;
                self.eat(b' ')?;
                when.day = self.padded(1, 31)?;
                self.eat(b',')?;
                self.eat(b' ')?;
                when.year = Some(self.year()?);
                self.eat(b' ')?;
                self.clock(&mut when, false)?;
                if !(1..=12).contains(&when.hour) {
                    return None;
                }
                self.eat(b' ')?;
                let afternoon = match self.peek().to_ascii_lowercase() {
                    b'a' => 0,
                    b'p' => 12,
                    _ => return None,
                };
                self.i += 1;
                if !self.peek().eq_ignore_ascii_case(&b'm') {
                    return None;
                }
                self.i += 1;
                when.hour = when.hour % 12 + afternoon;
            }
            Template::Assp => {
                when.month = self.month_name()?;
                self.eat(b'-')?;
                when.day = self.small(1, 31)?;
                self.eat(b'-')?;
                when.year = Some(self.short_year()?);
                self.eat(b' ')?;
                self.clock(&mut when, true)?;
            }
            Template::Compact => {
                when.year = Some(self.year()?);
                when.month = self.two(1, 12)?;
                when.day = self.two(1, 31)?;
                if self.eat(b'T').is_none() && self.eat(b'-').is_none() {
                    let _ = self.eat(b' ').and_then(|()| self.eat(b' '));
                }
                when.hour = self.two(0, 23)?;
                let _ = self.eat(b':');
                when.minute = self.two(0, 59)?;
                let _ = self.eat(b':');
                when.second = self.two(0, 61)?;
                self.fraction_and_zone(&mut when);
            }
            Template::ZoneName => {
                let length = self.line[self.i..].iter().take(6).take_while(|b| b.is_ascii_alphabetic()).count();
                let hours = zone_named(&self.line[self.i..self.i + length])?;
                self.i += length;
                self.eat(b' ')?;
                self.asctime(&mut when)?;
                when.zone = Some((hours * 3600.0) as i32);
            }
            Template::OffsetFirst => {
                let zone = self.zone()?;
                self.eat(b' ')?;
                self.asctime(&mut when)?;
                when.zone = Some(zone);
            }
            Template::Tai64n => when.instant = Some(self.tai64n()?),
        }
        Some(when)
    }

    /// Ten or eleven digits and a fraction of three to six: at the head of the line, bare or in brackets, or in `audit(…:n)`.
    fn epoch(&mut self, start: usize) -> Option<Time> {
        let opened = match start {
            0 => 0,
            1 if self.line[0] == b'[' => b'[',
            _ if self.line[..start].ends_with(b"audit(") => b'(',
            _ => return None,
        };
        let digits = |at: &Self| at.line[at.i..].iter().take_while(|b| b.is_ascii_digit()).count();
        let read = |text: &[u8]| text.iter().fold(0_i64, |n, b| n * 10 + i64::from(b - b'0'));
        let whole = digits(self);
        if !(10..=11).contains(&whole) {
            return None;
        }
        let seconds = read(&self.line[self.i..self.i + whole]);
        self.i += whole;
        let micros = self.maybe(|at| {
            at.eat(b'.')?;
            let places = digits(at);
            let fraction = (3..=6).contains(&places).then(|| read(&at.line[at.i..at.i + places]))?;
            at.i += places;
            Some(fraction * 10_i64.pow(6 - places as u32))
        });
        let closed = match opened {
            b'[' => self.peek() == b']',
            b'(' => {
                let behind = &self.line[self.i..];
                let serial = behind.iter().skip(1).take_while(|b| b.is_ascii_digit()).count();
                behind.first() == Some(&b':') && serial > 0 && behind.get(1 + serial) == Some(&b')')
            }
            _ => true,
        };
        closed.then(|| Time(seconds * 1_000_000 + micros.unwrap_or(0)))
    }

    /// `@` and 24 hexadecimal digits: seconds from 2^62 on, as they stand, and nanoseconds.
    fn tai64n(&mut self) -> Option<Time> {
        let label = self.line.get(self.i + 1..self.i + 25)?;
        let mut seconds = 0_u64;
        for (i, b) in label.iter().enumerate() {
            let digit = (*b as char).to_digit(16)?;
            if i < 16 {
                seconds = seconds << 4 | u64::from(digit);
            }
        }
        self.i += 25;
        let seconds = i64::try_from(seconds.checked_sub(1 << 62)?).ok()?;
        (seconds < 1 << 40).then(|| Time::from_secs(seconds))
    }
}

/// Hours east of UTC of a zone's name. The same name is used for several zones in the world; these are the ones log lines
/// bear, and none of them knows summer time by itself.
fn zone_named(name: &[u8]) -> Option<f64> {
    const NAMES: [(&str, f64); 34] = [
        ("UTC", 0.0),
        ("GMT", 0.0),
        ("WET", 0.0),
        ("WEST", 1.0),
        ("BST", 1.0),
        ("CET", 1.0),
        ("MET", 1.0),
        ("CEST", 2.0),
        ("MEST", 2.0),
        ("EET", 2.0),
        ("SAST", 2.0),
        ("EEST", 3.0),
        ("MSK", 3.0),
        ("PKT", 5.0),
        ("SGT", 8.0),
        ("HKT", 8.0),
        ("AWST", 8.0),
        ("JST", 9.0),
        ("KST", 9.0),
        ("ACST", 9.5),
        ("AEST", 10.0),
        ("AEDT", 11.0),
        ("NZST", 12.0),
        ("NZDT", 13.0),
        ("BRT", -3.0),
        ("ADT", -3.0),
        ("EDT", -4.0),
        ("EST", -5.0),
        ("CDT", -5.0),
        ("CST", -6.0),
        ("MDT", -6.0),
        ("MST", -7.0),
        ("PDT", -7.0),
        ("PST", -8.0),
    ];
    NAMES.iter().find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name)).map(|(_, hours)| *hours)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-15T12:00:00Z
    const NOW: Time = Time::from_secs(1_768_478_400);

    fn date(line: &str) -> Option<Date> {
        Detector::new(DatePattern::Default, TimeZone::UTC).find(line.as_bytes(), NOW)
    }

    fn seconds(line: &str) -> Option<f64> {
        date(line).and_then(|d| d.time).map(|t| t.0 as f64 / 1e6)
    }

    #[test]
    fn every_template_means_what_fail2ban_takes_it_for() {
        use Template::*;
        let table = [
            ("2026-01-14T21:59:59.98Z", Iso, 1_768_427_999.0),
            ("2026/01/14 21:59:59", Iso, 1_768_427_999.0),
            ("2026.01.14  8:59:59", Iso, 1_768_381_199.0),
            ("2026-01-14T21:59:59+02:00", Iso, 1_768_420_799.0),
            ("2026-01-14T21:59:59,5 -0200", Iso, 1_768_435_199.0),
            ("Jan 14 21:59:59", Asctime, 1_768_427_999.0),
            ("Wed Jan 14 21:59:59.011 2026", Asctime, 1_768_427_999.0),
            ("Jan  5 01:02:03", Asctime, 1_767_574_923.0),
            ("jan 05  1:02:03", Asctime, 1_767_574_923.0),
            ("Wed Jan 14 2026 21:59:59.011", AsctimeYearFirst, 1_768_427_999.0),
            ("14/01/26 21:59:59", DayFirst, 1_768_427_999.0),
            ("14-01-2026 21:59:59", DayFirst, 1_768_427_999.0),
            ("05/01/2026 00:00:00", DayFirst, 1_767_571_200.0),
            ("14/Jan/2026:21:59:59 +0100", Apache, 1_768_424_399.0),
            ("14-Jan-2026 21:59:59.252", Apache, 1_768_427_999.0),
            ("01/14/2026:01:57:39", Cpanel, 1_768_355_859.0),
            ("01-14-2026 16:22:44.252", MonthFirst, 1_768_407_764.0),
            ("1768471199.250", Epoch, 1_768_471_199.25),
            ("[1768471199] x", Epoch, 1_768_471_199.0),
            ("type=X msg=audit(1768471199.992:107): y", Epoch, 1_768_471_199.992),
            ("21:59:59", TimeOnly, 1_768_427_999.0),
            ("11:59:59", TimeOnly, 1_768_478_399.0),
            ("<01/14/26@05:03:30>", Angled, 1_768_367_010.0),
            ("260114  1:46:11", Mysql, 1_768_355_171.0),
            ("Jan 14, 2026 12:00:01 AM", Tomcat, 1_768_348_801.0),
            ("Jan-14-26 02:33:06", Assp, 1_768_357_986.0),
            ("20260114T215959", Compact, 1_768_427_999.0),
            ("20260114 21:59:59", Compact, 1_768_427_999.0),
            ("PDT Jan 14 21:05:29", ZoneName, 1_768_449_929.0),
            ("+00:00 Jan 14 21:59:59.011 2026", OffsetFirst, 1_768_427_999.0),
            ("@4000000069680f1f2a3b4c5d x", Tai64n, 1_768_427_295.0),
        ];
        for (line, template, unix) in table {
            let found = date(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!((found.template, found.time.map(|t| t.0 as f64 / 1e6)), (template, Some(unix)), "{line}");
        }
    }

    #[test]
    fn a_glance_never_hides_a_date() {
        let dates = [
            "2026-01-14T21:59:59.98Z",
            "Wed Jan 14 21:59:59.011 2026",
            "Jan  5 01:02:03",
            "Wed Jan 14 2026 21:59:59",
            "5/01/2026 00:00:00",
            "14/Jan/2026:21:59:59 +0100",
            "1/4/2026:01:57:39",
            "01-14-2026 16:22:44.252",
            "260114  1:46:11",
            "Jan 14, 2026 12:00:01 AM",
            "20260114T215959",
            "20260114215959",
            "PDT Jan 14 21:05:29",
            "AEST Jan 14 21:05:29",
            "+00:00 Jan 14 21:59:59.011 2026",
            "Z Jan 14 21:59:59.011 2026",
            "@4000000069680f1f2a3b4c5d",
        ];
        for line in dates {
            let at = date(&format!("word {line} word")).unwrap_or_else(|| panic!("{line}")).at;
            assert_eq!(at, 5..5 + line.len(), "{line}");
        }
    }

    #[test]
    fn what_is_cut_is_the_date_and_no_more() {
        let table = [
            ("[12-Jul-2022 08:56:39 +0200]: x", "[]: x"),
            ("[31/Oct/2006:09:22:55 -0000] x", "[] x"),
            ("Jan 14 21:59:59 mx x", " mx x"),
            ("2022-02-18 16:23:03.719762500 helo-dns-check: x", " helo-dns-check: x"),
            ("2026-01-14 21:59:59 UTCx", " UTCx"),
            ("2026-01-14T21:59:59.98Z x", " x"),
            ("2026-01-14T21:59:59.123456+01:00 x", " x"),
            ("2026-01-14 21:59:59,123 x", " x"),
            ("2026-01-14 21:59:59. x", ". x"),
            ("<13>Jan 14 21:59:59 mx x", "<13> mx x"),
            ("1.2.3.4 - - [14/Jan/2026:21:59:59 +0100] \"GET", "1.2.3.4 - - [] \"GET"),
            ("foo Jan 14 21:05:29 mx", "foo  mx"),
            ("@4000000059f5195c211f2234 qlog", " qlog"),
            ("audit(1768471199.992:107): y", "audit(:107): y"),
        ];
        for (line, rest) in table {
            let at = date(line).unwrap_or_else(|| panic!("{line}")).at;
            assert_eq!(format!("{}{}", &line[..at.start], &line[at.end..]), rest, "{line}");
        }
    }

    #[test]
    fn what_is_no_date_is_none() {
        let none = [
            "x1768471199 y",
            "1768471199123",
            "foo 1768471199 bar",
            "1999-01-01 00:00:00",
            "2031-01-01 00:00:00",
            "x21:59:59",
            "foo 21:59:59",
            "a2026-01-14 21:59:59",
            "Janx 14 21:59:59",
            "@40000000",
            "",
        ];
        for line in none {
            assert_eq!(date(line), None, "{line}");
        }
        // A date that does not exist is cut, but says nothing.
        for line in ["Feb 30 00:00:00", "Jan 14 21:59:60", "2025-02-29 00:00:00", "Feb 29 00:00:00"] {
            assert_eq!(date(line).map(|d| d.time), Some(None), "{line}");
        }
    }

    #[test]
    fn a_year_that_is_not_written_is_this_one_or_the_last() {
        let table =
            [("Jan 16 11:59:00", 1_768_564_740.0), ("Jan 16 12:01:00", 1_737_028_860.0), ("Dec 31 23:59:59", 1_767_225_599.0)];
        for (line, unix) in table {
            assert_eq!(seconds(line), Some(unix), "{line}");
        }
    }

    #[test]
    fn a_date_in_the_text_does_not_beat_the_real_one() {
        let mut detector = Detector::new(DatePattern::Default, TimeZone::UTC);
        let at = |detector: &mut Detector, line: &str| detector.find(line.as_bytes(), NOW).unwrap().at.start;
        assert_eq!(at(&mut detector, "<13>Jan 14 21:59:59 mx user 2026-01-01 00:00:00"), 4);
        assert_eq!(at(&mut detector, "<13>Jan 14 21:59:59 mx user 2026-01-01 00:00:00"), 4);
        assert_eq!(at(&mut detector, "<4>Jan 14 21:59:59 mx user 2026-01-01 00:00:00"), 3);
        assert_eq!(at(&mut detector, "Jan 14 21:59:59 mx user 2026-01-01 00:00:00"), 0);
    }

    #[test]
    fn the_same_bytes_read_in_two_ways_are_two_dates() {
        let mut detector = Detector::new(DatePattern::Default, TimeZone::UTC);
        let mut unix = |line: &str| detector.find(line.as_bytes(), NOW).unwrap().time.unwrap().secs();
        unix("01-14-2026 16:22:44");
        // 1 May where the month came first, 5 January elsewhere in the line.
        assert_eq!([unix("05-01-2026 00:00:00"), unix("x 05-01-2026 00:00:00")], [1_777_593_600, 1_767_571_200]);
    }

    #[test]
    fn local_times_follow_their_zone() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let mut detector = Detector::new(DatePattern::Default, zone);
        let mut unix = |line: &str| detector.find(line.as_bytes(), NOW).unwrap().time.unwrap().secs();
        assert_eq!(unix("2025-07-01 12:00:00"), 1_751_364_000);
        assert_eq!(unix("2025-01-01 12:00:00"), 1_735_729_200);
        assert_eq!(unix("2025-03-30 01:59:59"), 1_743_296_399);
        assert_eq!(unix("2025-03-30 03:00:00"), 1_743_296_400);
        assert_eq!(unix("2025-10-26 02:30:00"), 1_761_438_600);
        assert_eq!(unix("2025-10-26 03:00:00"), 1_761_444_000);
    }

    proptest::proptest! {
        #[test]
        fn arithmetic_agrees_with_jiff(seconds in 946_684_800_i64..1_893_456_000) {
            let text = jiff::Timestamp::from_second(seconds).unwrap().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            proptest::prop_assert_eq!(super::tests::seconds(&text), Some(seconds as f64));
        }

        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
            Detector::new(DatePattern::Default, TimeZone::UTC).find(&line, NOW);
        }
    }
}
