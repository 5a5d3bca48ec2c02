//! When the next commit may go.
//!
//! `nft list` starts its dump again whenever the ruleset's generation moves, so a large set is never listed while commits
//! keep coming. Bans matter more than listings: the first second of a burst is unpaced. After it commits are spaced by
//! twice the time a listing of the largest set takes, 6 us an element, between 2 and 250 ms.
//!
//! A listing of some 20 000 elements does not fit between two such commits, on a busy machine not of 5 000. Whether one is under way
//! can be seen (`nft::dump_runs`): then the commit waits until the dump has ended and its reader has asked for the generation once
//! more, but no longer than the dump should take, and not again soon. Nobody's ban waits where nobody lists. Above 250 000 elements a
//! listing takes so long that no ban shall wait for it.

use crate::terms::{Span, Time};

/// Quiet for this long ends a burst.
const QUIET: Span = Span(1_000_000);
/// So long a burst goes unpaced.
const UNPACED: Span = Span(1_000_000);

/// The longest ordinary space between two commits.
const SPACE: Span = Span(250_000);
/// Of fewer elements a listing fits between two commits.
const LARGE: usize = 5_000;
/// For more elements no commit waits.
const TOO_LARGE: usize = 250_000;
/// The least and the most that a commit waits for a listing. Each time it was not enough the next takes twice as long, up to four
/// times: what waits in vain waits for nothing.
const PATIENCE: (Span, Span) = (Span(500_000), Span(2_500_000));
/// So often in a row is the patience doubled.
const DOUBLED: u32 = 2;
/// Between the end of one wait for a listing and the next.
const LISTED: Span = Span(15_000_000);
/// How often it is looked whether the listing has ended.
const LOOK: Span = Span(10_000);
/// After the end of a dump its reader has at least so long to see that nothing moved.
const GRACE: Span = Span(100_000);
/// The dump that we first see was probably spoilt by our last commit: so long its reader has to throw away what it has and to begin again.
const AGAIN: Span = Span(2_000_000);

/// The pacing of commits; all times monotonic.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    burst_began: Option<Time>,
    last: Option<Time>,
    /// A listing that the next commit waits for.
    hold: Option<Hold>,
    /// When a commit last went after such a wait.
    listed: Option<Time>,
    /// So many such waits in a row were too short, as far as it matters.
    lost: u32,
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    /// When a dump was last seen under way.
    seen: Time,
    /// A dump was seen to begin while we wait, at this time.
    whole: Option<Time>,
    /// None runs at the moment.
    ended: bool,
    /// When to look again.
    look: Time,
    /// The commit goes now, whatever is under way.
    limit: Time,
}

impl Pace {
    /// The earliest instant for the next commit, given the elements in the largest set.
    pub fn next(&self, now: Time, largest: usize) -> Time {
        let (Some(began), Some(last)) = (self.burst_began, self.last) else { return now };
        if let Some(hold) = self.hold {
            return now.max(hold.look);
        }
        if now.since(last) >= QUIET || now.since(began) < UNPACED {
            return now;
        }
        now.max(last + Span((12 * largest as u64).clamp(2_000, SPACE.0)))
    }

    /// Whether [`Pace::listing`] is to be told before a commit goes now.
    pub fn minds(&self, now: Time, largest: usize) -> bool {
        if self.hold.is_some() {
            return true;
        }
        let (Some(began), Some(last)) = (self.burst_began, self.last) else { return false };
        let paced = now.since(last) < QUIET && now.since(began) >= UNPACED;
        paced && (LARGE..=TOO_LARGE).contains(&largest) && self.listed.is_none_or(|listed| now.since(listed) >= LISTED)
    }

    /// Whether somebody lists the ruleset now, at which a commit would go.
    pub fn listing(&mut self, now: Time, running: bool, largest: usize) {
        match &mut self.hold {
            None if running => {
                // A dump takes about 10 us an element where the machine is idle, and the last commit spoilt the one we see.
                let patience = Span((20 * largest as u64).clamp(PATIENCE.0.0, PATIENCE.1.0) << self.lost);
                self.hold = Some(Hold { seen: now, whole: None, ended: false, look: now + LOOK, limit: now + patience });
            }
            None => {}
            Some(hold) => {
                if running {
                    if hold.ended {
                        hold.whole.get_or_insert(now);
                    }
                    hold.seen = now;
                }
                hold.ended = !running;
                // What reads slowly is slow to ask for the generation, too.
                let grace = hold.whole.map_or(AGAIN, |began| Span(GRACE.0.max(hold.seen.since(began).0 / 2)));
                let end = hold.limit.min(hold.seen + grace);
                hold.look = end.min(now + LOOK);
            }
        }
    }

    /// Notes that a commit goes now.
    pub fn commit(&mut self, now: Time) {
        let hold = self.hold.take();
        if let Some(hold) = hold {
            let lost = match (now >= hold.limit, hold.whole) {
                (true, _) => (self.lost + 1).min(DOUBLED),
                (false, Some(_)) => 0,
                (false, None) => self.lost,
            };
            (self.listed, self.lost) = (Some(now), lost);
        } else if self.last.is_none_or(|last| now.since(last) >= QUIET) {
            (self.burst_began, self.listed, self.lost) = (Some(now), None, 0);
        }
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays an attack of 40 s during which listings run from and to these milliseconds; tells when a wait for one began and how long it
    /// was, in milliseconds.
    fn waits(largest: usize, listings: &[(i64, i64)]) -> Vec<(i64, u64)> {
        let (mut pace, mut now, mut waits) = (Pace::default(), Time(0), Vec::new());
        let mut due = None;
        while now < Time::from_secs(40) {
            if pace.next(now, largest) <= now {
                due.get_or_insert(now);
                if pace.minds(now, largest) {
                    let ms = now.0 / 1000;
                    pace.listing(now, listings.iter().any(|(from, to)| (*from..*to).contains(&ms)), largest);
                }
            }
            if pace.next(now, largest) <= now {
                if let Some(due) = due.take().filter(|due| *due < now) {
                    waits.push((due.0 / 1000, now.since(due).0 / 1000));
                }
                pace.commit(now);
            }
            now = now + Span(1000);
        }
        waits
    }

    #[test]
    fn a_commit_waits_for_a_listing_that_is_under_way() {
        assert_eq!(waits(100_000, &[]), [], "and for nothing else");
        assert_eq!(waits(100_000, &[(200, 900)]), [], "in the first second for none");
        // The first is one that our last commit spoilt. To the end of the second, and half as long again.
        assert_eq!(waits(100_000, &[(3_000, 3_300), (3_500, 4_500)]), [(3_249, 1_745)]);
        assert_eq!(waits(100_000, &[(3_000, 4_000)]), [(3_249, 2_000)], "and no longer than that if there is no second");
        assert_eq!(waits(10_000, &[(3_000, 3_300)]).iter().map(|(_, waited)| *waited / 100).collect::<Vec<_>>(), [5]);
        assert_eq!(waits(1_000_000, &[(3_000, 30_000)]), [], "no ban waits for what would take half a minute");
        assert_eq!(waits(1_000, &[(3_000, 3_100)]), [], "a small one fits in between");
    }

    #[test]
    fn a_listing_that_does_not_end_is_waited_for_a_bounded_time_and_seldom() {
        let waits = waits(100_000, &[(3_000, 40_000)]);
        assert_eq!(waits.iter().map(|(_, waited)| *waited).collect::<Vec<_>>(), [2_000, 4_000]);
        assert!(waits.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 15_000), "{waits:?}");
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
