//! When the next commit may go.
//!
//! `nft list` starts its dump again whenever the ruleset's generation moves, so a large set is never listed while commits
//! keep coming. Bans matter more than listings: the first second of a burst is unpaced. After it commits are spaced by
//! twice the time a listing of the largest set takes, 6 us an element, between 2 and 250 ms.

use crate::terms::{Span, Time};

/// Quiet for this long ends a burst.
const QUIET: Span = Span(1_000_000);
/// So long a burst goes unpaced.
const UNPACED: Span = Span(1_000_000);

/// The pacing of commits; all times monotonic.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    burst_began: Option<Time>,
    last: Option<Time>,
}

impl Pace {
    /// The earliest instant for the next commit, given the elements in the largest set.
    pub fn next(&self, now: Time, largest: usize) -> Time {
        let (Some(began), Some(last)) = (self.burst_began, self.last) else { return now };
        if now.since(last) >= QUIET || now.since(began) < UNPACED {
            return now;
        }
        let space = Span((12 * largest as u64).clamp(2_000, 250_000));
        now.max(last + space)
    }

    /// Notes that a commit goes now.
    pub fn commit(&mut self, now: Time) {
        if self.last.is_none_or(|last| now.since(last) >= QUIET) {
            self.burst_began = Some(now);
        }
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
