//! Longer bans for repeat offenders, computed before the one netlink call.
//!
//! fail2ban's `bantime.increment` in our words: the bantime of the n-th ban is bantime times a factor that doubles each
//! time, or times the n-th multiplier; maxtime bounds it; a random spread comes on top so that a bot net does not learn
//! when it is let in again.

use crate::terms::{Lasting, Span};

/// How bans grow.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    /// A constant that multiplies every grown bantime.
    pub factor: f64,
    /// The multiplier of the second, third, … ban; the last one repeats. Empty: 2, 4, 8, … up to 2^20.
    pub multipliers: Vec<f64>,
    /// No grown ban is longer than this, before the spread.
    pub maxtime: Option<Span>,
    /// Up to this much is added at random.
    pub spread: Span,
    /// How long an offence is remembered after its ban has ended.
    pub memory: Span,
    /// Whether offences in other jails count.
    pub all_jails: bool,
}

impl Growth {
    /// The bantime of a ban after `offences` earlier ones; `random` in 0.0..1.0 places it within the spread.
    pub fn bantime(&self, base: Lasting, offences: u32, random: f64) -> Lasting {
        let Lasting::For(base) = base else { return Lasting::Permanent };
        if offences == 0 {
            return Lasting::For(base);
        }
        let times = match self.multipliers.as_slice() {
            [] => self.factor * f64::from(1u32 << offences.min(20)),
            list => self.factor * list[(offences as usize).min(list.len()) - 1],
        };
        let grown = (base.0 as f64 * times).clamp(0.0, u64::MAX as f64) as u64;
        let grown = if self.multipliers.is_empty() { grown.max(base.0) } else { grown };
        // A maxtime below bantime bounds the growth, not the ban: nobody is let in earlier for coming back.
        let bounded = self.maxtime.map_or(grown, |max| grown.min(max.0.max(base.0))).max(1_000_000);
        Lasting::For(Span(bounded.saturating_add((self.spread.0 as f64 * random.clamp(0.0, 1.0)) as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_grow_with_offences() {
        let plain = Growth {
            factor: 1.0,
            multipliers: vec![],
            maxtime: Some(Span::from_secs(5000)),
            spread: Span(0),
            memory: Span::from_secs(1),
            all_jails: false,
        };
        let listed = Growth { multipliers: vec![1.0, 5.0, 30.0], maxtime: None, ..plain.clone() };
        let table = [(&plain, [600, 1200, 2400, 4800, 5000, 5000]), (&listed, [600, 600, 3000, 18000, 18000, 18000])];
        for (growth, expected) in table {
            for (offences, secs) in expected.into_iter().enumerate() {
                let base = Lasting::For(Span::from_secs(600));
                assert_eq!(growth.bantime(base, offences as u32, 0.0), Lasting::For(Span::from_secs(secs)), "{offences}");
            }
        }
        assert_eq!(plain.bantime(Lasting::Permanent, 3, 0.0), Lasting::Permanent);
        let week = Lasting::For(Span::from_secs(604_800));
        assert_eq!(plain.bantime(week, 3, 0.0), week, "maxtime below bantime");
        let spread = Growth { spread: Span::from_secs(60), ..plain };
        assert_eq!(spread.bantime(Lasting::For(Span::from_secs(600)), 9, 0.5), Lasting::For(Span::from_secs(5030)));
    }
}
