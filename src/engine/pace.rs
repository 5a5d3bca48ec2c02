//! When the next commit may go.
//!
//! `nft list` starts its dump again whenever the ruleset's generation moves, so a large set is never listed while commits
//! keep coming. Bans matter more than listings: the first second of a burst is unpaced. After it commits are spaced by
//! twice the time a listing of the largest set takes, 6 us an element, between 2 and 250 ms.
//!
//! A listing of more than some 20 000 elements does not fit between two such commits. For those one pause in fifteen seconds is
//! made long enough: the dump that the last commit spoilt, and a whole one after it. Above 125 000 elements a listing takes so long
//! that no ban shall wait for it.

use crate::terms::{Span, Time};

/// Quiet for this long ends a burst.
const QUIET: Span = Span(1_000_000);
/// So long a burst goes unpaced.
const UNPACED: Span = Span(1_000_000);

/// The longest ordinary space between two commits.
const SPACE: Span = Span(250_000);
/// Between two pauses that are long enough for a listing.
const LISTED: Span = Span(15_000_000);
/// The longest pause.
const PAUSE: Span = Span(2_500_000);

/// The pacing of commits; all times monotonic.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    burst_began: Option<Time>,
    last: Option<Time>,
    /// When the last long pause ended.
    listed: Option<Time>,
}

impl Pace {
    /// The earliest instant for the next commit, given the elements in the largest set.
    pub fn next(&self, now: Time, largest: usize) -> Time {
        let (Some(began), Some(last)) = (self.burst_began, self.last) else { return now };
        if now.since(last) >= QUIET || now.since(began) < UNPACED {
            return now;
        }
        let mut space = Span((12 * largest as u64).clamp(2_000, SPACE.0));
        // A busy machine lists at half the speed of an idle one.
        let pause = Span(20 * largest as u64);
        if pause > SPACE && pause <= PAUSE && last.since(self.listed.unwrap_or(began)) >= LISTED {
            space = pause;
        }
        now.max(last + space)
    }

    /// Notes that a commit goes now.
    pub fn commit(&mut self, now: Time) {
        if self.last.is_none_or(|last| now.since(last) >= QUIET) {
            (self.burst_began, self.listed) = (Some(now), None);
        } else if self.last.is_some_and(|last| now.since(last) > Span(2 * SPACE.0)) {
            self.listed = Some(now);
        }
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pause_in_a_while_is_long_enough_for_a_listing() {
        let longest = |largest: usize, quiet: Span| {
            let (mut pace, mut now, mut spaces) = (Pace::default(), Time(0), Vec::new());
            pace.commit(now);
            while now < Time::from_secs(40) {
                let next = pace.next(now + Span(1000), largest);
                if next.since(now) > quiet {
                    spaces.push((now.secs(), next.since(now).0 / 1000));
                }
                now = next;
                pace.commit(now);
            }
            spaces
        };
        assert_eq!(longest(100_000, SPACE), [(15, 2000), (32, 2000)]);
        assert_eq!(longest(40_000, SPACE), [(15, 800), (31, 800)]);
        assert_eq!(longest(1_000, SPACE), []);
        assert_eq!(longest(1_000_000, SPACE), [], "no ban waits for what would take half a minute");
    }

    #[test]
    fn only_the_first_second_of_a_burst_is_unpaced() {
        let ms = |n: i64| Time(n * 1000);
        let mut pace = Pace::default();
        assert_eq!(pace.next(ms(5), 1_000_000), ms(5));
        for at in [5, 6, 500, 1004] {
            assert_eq!(pace.next(ms(at), 1_000_000), ms(at));
            pace.commit(ms(at));
        }
        assert_eq!(pace.next(ms(1005), 1_000_000), ms(1254));
        assert_eq!(pace.next(ms(1005), 1_000), ms(1016));
        assert_eq!(pace.next(ms(1005), 0), ms(1006));
        pace.commit(ms(1254));
        assert_eq!(pace.next(ms(1300), 1_000_000), ms(1504));
        // a second of quiet ends the burst
        assert_eq!(pace.next(ms(2254), 1_000_000), ms(2254));
        pace.commit(ms(2254));
        assert_eq!(pace.next(ms(2255), 1_000_000), ms(2255));
    }
}
