//! Subnets that are banned, laid out without overlap: the kernel's interval sets refuse overlaps, and with them the whole batch.
//!
//! Bans of subnets lie within one another in any way and end when they like. What stands in the set are [`Piece`]s: disjoint
//! stretches of addresses, each with the latest end of the bans that cover it. So every address is let in at exactly the instant
//! at which the last ban that covers it ends, and no message is needed for that: when an inner ban ends before an outer one it
//! never had a piece of its own, and when the outer one ends first the inner one's piece is all that stays.
//!
//! A [`Cover`] knows both what is meant (the bans) and what is there (the pieces), and [`Cover::settle`] tells the few pieces that
//! have to go and come around a ban that changed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::network;
use crate::terms::{Lasting, Span, Time};

/// A piece that has ended by our clock is taken to be there still for so long: the kernel's clock and ours differ by a little.
const LINGERING: Span = Span::from_secs(5);

/// Ends this close to one another are one end, where what the kernel tells is compared with what was meant.
const ALIKE: Span = Span::from_secs(3);

/// How long something stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    /// The span given.
    pub lasting: Lasting,
    /// The monotonic instant at which it ends; `None`: never.
    pub until: Option<Time>,
}

impl Stay {
    /// Whether it ends later than `other`.
    pub fn outlasts(self, other: Stay) -> bool {
        outlasts(self.until, other.until)
    }

    fn is_over(self, now: Time) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    fn is_alike(self, other: Stay) -> bool {
        match (self.until, other.until) {
            (None, None) => true,
            (Some(a), Some(b)) => a.0.abs_diff(b.0) <= ALIKE.0,
            _ => false,
        }
    }
}

fn outlasts(a: Option<Time>, b: Option<Time>) -> bool {
    match (a, b) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(a), Some(b)) => a > b,
    }
}

/// Consecutive addresses of one kind, both ends included, that stay equally long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The first address.
    pub first: IpAddr,
    /// The last address.
    pub last: IpAddr,
    /// How long it stays.
    pub stay: Stay,
}

/// What makes the set equal to what is meant: first all of `removed` go, then all of `renewed` get another end, then all of `added`
/// come, in one transaction. No two have a first address in common but one that goes and one that comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Pieces that are there, and there as they are named here.
    pub removed: Vec<Piece>,
    /// Pieces that are there with another end.
    pub renewed: Vec<Piece>,
    /// Pieces that are not there.
    pub added: Vec<Piece>,
}

impl Difference {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.renewed.is_empty() && self.added.is_empty()
    }
}

/// The subnets that one jail bans, and the pieces that stand for them.
#[derive(Clone, Debug, Default)]
pub struct Cover {
    v4: Side,
    v6: Side,
}

/// One kind of addresses, as numbers.
#[derive(Clone, Debug, Default)]
struct Side {
    /// Bans by first address and prefix length: an outer one comes before those within it.
    nets: BTreeMap<(u128, u8), Stay>,
    /// How many of them there are of each prefix length.
    lengths: BTreeMap<u8, usize>,
    /// What stands in the set, by first address.
    pieces: BTreeMap<u128, (u128, Stay)>,
}

impl Cover {
    /// Whether no subnet is meant.
    pub fn is_empty(&self) -> bool {
        self.v4.nets.is_empty() && self.v6.nets.is_empty()
    }

    /// How many subnets are meant.
    pub fn len(&self) -> usize {
        self.v4.nets.len() + self.v6.nets.len()
    }

    /// How many of IPv4 and of IPv6 are meant.
    pub fn counts(&self) -> (usize, usize) {
        (self.v4.nets.len(), self.v6.nets.len())
    }

    /// The subnets meant that lie within `net`, itself among them.
    pub fn within(&self, net: IpNetwork) -> impl Iterator<Item = IpNetwork> + '_ {
        let kind = Kind::of(net.network());
        let first = bits(net.network());
        let last = first | !kind.mask(net.prefix()) & kind.last();
        let within = self.side(net.network()).nets.range((first, net.prefix())..=(last, u8::MAX));
        within
            .filter(move |((_, prefix), _)| *prefix >= net.prefix())
            .filter_map(move |((first, prefix), _)| network(kind.address(*first), *prefix))
    }

    /// The prefix lengths of the subnets meant, of the kind of `address`.
    pub fn lengths(&self, address: IpAddr) -> impl Iterator<Item = u8> + '_ {
        self.side(address).lengths.keys().copied()
    }

    /// From now on `net` is meant to stay so long, or not at all.
    pub fn mean(&mut self, net: IpNetwork, stay: Option<Stay>) {
        let key = (bits(net.network()), net.prefix());
        let side = self.side_mut(net.network());
        let before = match stay {
            Some(stay) => side.nets.insert(key, stay),
            None => side.nets.remove(&key),
        };
        match (before.is_some(), stay.is_some()) {
            (false, true) => *side.lengths.entry(net.prefix()).or_default() += 1,
            (true, false) => {
                if let Some(count) = side.lengths.get_mut(&net.prefix()) {
                    *count -= 1;
                }
                side.lengths.retain(|_, count| *count > 0);
            }
            _ => {}
        }
    }

    /// What has to go and come in these stretches, all of one kind, so that they are as meant; from here on they are taken to be so.
    pub fn settle(&mut self, stretches: &[(IpAddr, IpAddr)]) -> Difference {
        let mut difference = Difference::default();
        let Some((one, _)) = stretches.first() else { return difference };
        let kind = Kind::of(*one);
        let side = self.side_mut(*one);
        // What was there before the first change of it: a piece that comes and goes again is nothing to do.
        let mut before: BTreeMap<u128, Option<(u128, Stay)>> = BTreeMap::new();
        for (first, last) in stretches {
            side.settle(kind, bits(*first), bits(*last), &mut before);
        }
        for (first, was) in before {
            let piece = |(last, stay): (u128, Stay)| kind.piece(first, last, stay);
            match (was, side.pieces.get(&first).copied()) {
                (Some((from, was)), Some((to, is))) if from == to => {
                    if was.until != is.until {
                        difference.renewed.push(piece((to, is)));
                    }
                }
                (was, is) => {
                    difference.removed.extend(was.map(piece));
                    difference.added.extend(is.map(piece));
                }
            }
        }
        difference
    }

    /// A set that is filled anew holds what is meant.
    pub fn refill(&mut self) {
        for (kind, side) in [(Kind::V4, &mut self.v4), (Kind::V6, &mut self.v6)] {
            let meant = side.meant(kind, 0, kind.last());
            side.pieces = meant.into_iter().map(|(first, last, stay)| (first, (last, stay))).collect();
        }
    }

    /// Nothing is there.
    pub fn emptied(&mut self) {
        self.v4.pieces.clear();
        self.v6.pieces.clear();
    }

    /// A stretch that was found in the kernel's set. Tells whether that is no more than what is meant; if it is more, it is
    /// somebody else's will.
    pub fn found(&mut self, found: Piece) -> bool {
        let kind = Kind::of(found.first);
        let (first, last) = (bits(found.first), bits(found.last));
        let side = self.side_mut(found.first);
        let meant = side.meant(kind, first, last);
        // The same end, measured twice: ours is the one that is kept.
        let stay = match meant.as_slice() {
            [(from, to, stay)] if (*from, *to) == (first, last) && stay.is_alike(found.stay) => *stay,
            _ => found.stay,
        };
        side.gone(first, last);
        side.pieces.insert(first, (last, stay));
        let mut next = Some(first);
        for (from, to, meant) in meant {
            if next != Some(from) || (stay.outlasts(meant) && !stay.is_alike(meant)) {
                return false;
            }
            next = to.checked_add(1);
        }
        next == last.checked_add(1)
    }

    /// A stretch that is no longer in the kernel's set.
    pub fn gone(&mut self, first: IpAddr, last: IpAddr) {
        self.side_mut(first).gone(bits(first), bits(last));
    }

    /// What is there at `now`, in order of address.
    pub fn pieces(&self, now: Time) -> impl Iterator<Item = Piece> + '_ {
        let list = |kind: Kind, side: &'_ Side| -> Vec<Piece> {
            let there = side.pieces.iter().filter(|(_, (_, stay))| !stay.is_over(now));
            there.map(|(first, (last, stay))| kind.piece(*first, *last, *stay)).collect()
        };
        list(Kind::V4, &self.v4).into_iter().chain(list(Kind::V6, &self.v6))
    }

    /// What is meant between `first` and `last` and not there, though it should have been for a while yet.
    pub fn missing(&self, first: IpAddr, last: IpAddr, now: Time) -> Vec<IpNetwork> {
        let kind = Kind::of(first);
        let side = self.side(first);
        let mut missing = Vec::new();
        for (from, to, stay) in side.meant(kind, bits(first), bits(last)) {
            if stay.is_over(now + ALIKE) {
                continue;
            }
            let mut next = Some(from);
            for (there, (end, _)) in side.within(from, to) {
                if let Some(at) = next.filter(|at| *at < there) {
                    missing.extend(kind.networks(at, there - 1));
                }
                next = end.checked_add(1);
            }
            if let Some(at) = next.filter(|at| *at <= to) {
                missing.extend(kind.networks(at, to));
            }
        }
        missing
    }

    /// Forgets pieces that the kernel has let go by now.
    pub fn tidy(&mut self, now: Time) {
        for side in [&mut self.v4, &mut self.v6] {
            side.pieces.retain(|_, (_, stay)| stay.until.is_none_or(|until| until + LINGERING > now));
        }
    }

    fn side(&self, address: IpAddr) -> &Side {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    fn side_mut(&mut self, address: IpAddr) -> &mut Side {
        if address.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }
}

type Stretch = (u128, u128, Stay);

impl Side {
    /// The pieces meant between `first` and `last`, in order: of the bans around an address the one that ends last, and of those that
    /// end together the widest.
    fn meant(&self, kind: Kind, first: u128, last: u128) -> Vec<Stretch> {
        let around = (0..=kind.bits()).filter_map(|prefix| {
            let key = (first & kind.mask(prefix), prefix);
            Some((key, *self.nets.get(&key).filter(|_| key.0 < first)?))
        });
        let within = self.nets.range((first, 0)..=(last, u8::MAX)).map(|(key, stay)| (*key, *stay));
        let mut pieces: Vec<Stretch> = Vec::new();
        // Bans that the sweep is inside of, each outlasting the one around it; up to where pieces are laid.
        let mut open: Vec<(u128, Stay)> = Vec::new();
        let mut laid = Some(first);
        let lay = |pieces: &mut Vec<Stretch>, laid: &mut Option<u128>, to: u128, stay: Stay| {
            let to = to.min(last);
            if let Some(from) = laid.filter(|from| *from <= to) {
                pieces.push((from, to, stay));
                *laid = to.checked_add(1);
            }
        };
        for ((start, prefix), stay) in around.chain(within) {
            while let Some((end, ended)) = open.pop_if(|(end, _)| *end < start) {
                lay(&mut pieces, &mut laid, end, ended);
            }
            match open.last() {
                Some((_, outer)) if !stay.outlasts(*outer) => continue,
                Some((_, outer)) if start > first => lay(&mut pieces, &mut laid, start - 1, *outer),
                _ => {}
            }
            laid = laid.map(|at| at.max(start));
            open.push((start | !kind.mask(prefix) & kind.last(), stay));
        }
        while let Some((end, ended)) = open.pop() {
            lay(&mut pieces, &mut laid, end, ended);
        }
        pieces
    }

    /// The pieces that lie wholly or partly between `first` and `last`.
    fn within(&self, first: u128, last: u128) -> impl Iterator<Item = (u128, (u128, Stay))> + '_ {
        let before = self.pieces.range(..first).next_back().filter(move |(_, (end, _))| *end >= first);
        before.into_iter().chain(self.pieces.range(first..=last)).map(|(start, piece)| (*start, *piece))
    }

    fn gone(&mut self, first: u128, last: u128) {
        let gone: Vec<u128> = self.within(first, last).map(|(start, _)| start).collect();
        gone.iter().for_each(|start| _ = self.pieces.remove(start));
    }

    fn settle(&mut self, kind: Kind, mut first: u128, mut last: u128, before: &mut BTreeMap<u128, Option<(u128, Stay)>>) {
        // What sticks out has to be cut, and what touches may have been one piece before, or become one.
        if let Some((start, (end, _))) = self.pieces.range(..first).next_back()
            && *end >= first - 1
        {
            first = *start;
        }
        if let Some((_, (end, _))) = self.pieces.range(..=last.saturating_add(1)).next_back() {
            last = last.max(*end);
        }
        let meant = self.meant(kind, first, last);
        let there: Vec<(u128, (u128, Stay))> = self.pieces.range(first..=last).map(|(start, piece)| (*start, *piece)).collect();
        for (start, piece) in there {
            self.pieces.remove(&start);
            before.entry(start).or_insert(Some(piece));
        }
        for (start, end, stay) in meant {
            before.entry(start).or_insert(None);
            self.pieces.insert(start, (end, stay));
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    V4,
    V6,
}

impl Kind {
    const fn of(address: IpAddr) -> Kind {
        if address.is_ipv4() { Kind::V4 } else { Kind::V6 }
    }
    const fn bits(self) -> u8 {
        match self {
            Kind::V4 => 32,
            Kind::V6 => 128,
        }
    }
    /// The last address there is.
    const fn last(self) -> u128 {
        u128::MAX >> (128 - self.bits())
    }
    const fn mask(self, prefix: u8) -> u128 {
        match prefix {
            0 => 0,
            prefix => (u128::MAX << (self.bits() - prefix)) & self.last(),
        }
    }
    fn address(self, bits: u128) -> IpAddr {
        match self {
            Kind::V4 => Ipv4Addr::from_bits(bits as u32).into(),
            Kind::V6 => Ipv6Addr::from_bits(bits).into(),
        }
    }
    fn piece(self, first: u128, last: u128, stay: Stay) -> Piece {
        Piece { first: self.address(first), last: self.address(last), stay }
    }
    /// The fewest subnets that make up a stretch.
    fn networks(self, first: u128, last: u128) -> Vec<IpNetwork> {
        let mut networks = Vec::new();
        let mut next = Some(first);
        while let Some(from) = next.filter(|from| *from <= last) {
            // As wide as its beginning and what is left allow.
            let prefix = (0..=self.bits()).find(|prefix| {
                let mask = self.mask(*prefix);
                from & mask == from && from | (!mask & self.last()) <= last
            });
            let prefix = prefix.unwrap_or(self.bits());
            networks.extend(network(self.address(from), prefix));
            next = (from | (!self.mask(prefix) & self.last())).checked_add(1);
        }
        networks
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The fewest subnets that make up the addresses from `first` to `last`, which are of one kind.
pub fn networks(first: IpAddr, last: IpAddr) -> Vec<IpNetwork> {
    Kind::of(first).networks(bits(first), bits(last))
}

/// What is left of `net` without `hole`, which lies within it: one subnet per bit by which the hole is smaller.
pub fn around(net: IpNetwork, hole: IpNetwork) -> Vec<IpNetwork> {
    let kind = Kind::of(net.network());
    let mut left = Vec::new();
    for prefix in net.prefix() + 1..=hole.prefix() {
        let sibling = (bits(hole.network()) & kind.mask(prefix)) ^ (1 << (kind.bits() - prefix));
        left.extend(network(kind.address(sibling), prefix));
    }
    left
}

/// Whether all of `inner` lies in `outer`.
pub fn holds(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().expect("a subnet")
    }

    fn until(secs: i64) -> Stay {
        match secs {
            0 => Stay { lasting: Lasting::Permanent, until: None },
            secs => Stay { lasting: Lasting::For(Span::from_secs(secs as u64)), until: Some(Time::from_secs(secs)) },
        }
    }

    fn shown(first: IpAddr, last: IpAddr) -> String {
        match networks(first, last).as_slice() {
            [one] if first == last => one.network().to_string(),
            [one] => one.to_string(),
            _ => format!("{first}-{last}"),
        }
    }

    /// Plays `+192.0.2.0/24 60; -192.0.2.0/25`: what goes and comes at each step.
    fn play(script: &str) -> String {
        let mut cover = Cover::default();
        let mut said = Vec::new();
        for step in script.split("; ") {
            let (sign, rest) = step.split_at(1);
            let (what, secs) = rest.split_once(' ').unwrap_or((rest, "1"));
            let what = net(what);
            cover.mean(what, (sign == "+").then(|| until(secs.parse().expect("seconds"))));
            let difference = cover.settle(&[(what.network(), what.broadcast())]);
            let removed = difference.removed.iter().map(|piece| format!("-{}", shown(piece.first, piece.last)));
            let told = |sign: char| {
                move |piece: &Piece| {
                    let end = piece.stay.until.map_or("ever".to_owned(), |until| until.secs().to_string());
                    format!("{sign}{} {end}", shown(piece.first, piece.last))
                }
            };
            let (renewed, added) = (difference.renewed.iter().map(told('=')), difference.added.iter().map(told('+')));
            said.push(removed.chain(renewed).chain(added).collect::<Vec<_>>().join(" "));
        }
        said.join("; ")
    }

    #[test]
    fn overlaps_in_every_order_come_to_disjoint_pieces() {
        let table = [
            ("+192.0.2.0/24 60", "+192.0.2.0/24 60"),
            // equal, longer and shorter
            ("+192.0.2.0/24 60; +192.0.2.0/24 90", "+192.0.2.0/24 60; =192.0.2.0/24 90"),
            // inside, shorter or equally long: the outer one stands for it
            ("+192.0.2.0/24 60; +192.0.2.64/26 50; -192.0.2.64/26", "+192.0.2.0/24 60; ; "),
            ("+192.0.2.0/24 60; +192.0.2.64/26 60", "+192.0.2.0/24 60; "),
            // inside and longer: cut out of it, and joined again
            (
                "+192.0.2.0/24 60; +192.0.2.64/26 90; -192.0.2.64/26",
                "+192.0.2.0/24 60; -192.0.2.0/24 +192.0.2.0/26 60 +192.0.2.64/26 90 +192.0.2.128/25 60; \
                 -192.0.2.0/26 -192.0.2.64/26 -192.0.2.128/25 +192.0.2.0/24 60",
            ),
            (
                "+192.0.2.0/24 60; +192.0.2.0/26 0",
                "+192.0.2.0/24 60; -192.0.2.0/24 +192.0.2.0/26 ever +192.0.2.64-192.0.2.255 60",
            ),
            // around others
            (
                "+192.0.2.0/26 60; +192.0.2.128/26 50; +192.0.2.0/24 55",
                "+192.0.2.0/26 60; +192.0.2.128/26 50; -192.0.2.128/26 +192.0.2.64-192.0.2.255 55",
            ),
            // adjacent: two bans, two pieces
            ("+192.0.2.0/25 60; +192.0.2.128/25 60; -192.0.2.0/25", "+192.0.2.0/25 60; +192.0.2.128/25 60; -192.0.2.0/25"),
            // the outer one goes, what it hid comes out
            (
                "+10.0.0.0/8 60; +10.1.0.0/16 50; +10.1.2.0/24 0; -10.0.0.0/8",
                "+10.0.0.0/8 60; ; -10.0.0.0/8 +10.0.0.0-10.1.1.255 60 +10.1.2.0/24 ever +10.1.3.0-10.255.255.255 60; \
                 -10.0.0.0-10.1.1.255 -10.1.3.0-10.255.255.255 +10.1.0.0/23 50 +10.1.3.0-10.1.255.255 50",
            ),
            // both ends of all addresses
            (
                "+0.0.0.0/0 60; +255.255.255.0/24 90; -0.0.0.0/0",
                "+0.0.0.0/0 60; -0.0.0.0/0 +0.0.0.0-255.255.254.255 60 +255.255.255.0/24 90; -0.0.0.0-255.255.254.255",
            ),
            (
                "+::/0 60; +ffff::/16 90; +::/128 0; -::/0",
                "+::/0 60; -::/0 +::-fffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff 60 +ffff::/16 90; -::-fffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff +:: ever +::1-fffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff 60; -::1-fffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            ),
        ];
        for (script, expected) in table {
            assert_eq!(play(script), expected, "{script}");
        }
    }

    #[test]
    fn a_subnet_without_a_hole_is_the_rest_of_it() {
        let left: Vec<String> = around(net("192.0.2.0/24"), net("192.0.2.7/32")).iter().map(ToString::to_string).collect();
        assert_eq!(
            left.join(" "),
            "192.0.2.128/25 192.0.2.64/26 192.0.2.32/27 192.0.2.16/28 192.0.2.8/29 192.0.2.0/30 192.0.2.4/31 192.0.2.6/32"
        );
        assert_eq!(around(net("2001:db8::/32"), net("2001:db8::7/128")).len(), 96);
        assert!(around(net("192.0.2.0/24"), net("192.0.2.0/24")).is_empty());
        let text = |first: &str, last: &str| {
            let list = networks(first.parse().expect("an address"), last.parse().expect("an address"));
            list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(text("192.0.2.5", "192.0.2.9"), "192.0.2.5/32 192.0.2.6/31 192.0.2.8/31");
        assert_eq!(text("0.0.0.0", "255.255.255.255"), "0.0.0.0/0");
        assert_eq!(text("::1", "::1"), "::1/128");
    }

    #[test]
    fn what_is_found_is_ours_or_somebody_elses() {
        let mut cover = Cover::default();
        cover.mean(net("192.0.2.0/24"), Some(until(60)));
        cover.mean(net("192.0.2.0/25"), Some(until(90)));
        let piece = |text: &str, secs| Piece { first: net(text).network(), last: net(text).broadcast(), stay: until(secs) };
        // The same end, told a little otherwise: nothing has to be done about it.
        assert!(cover.found(piece("192.0.2.0/25", 91)));
        assert!(cover.found(piece("192.0.2.128/25", 59)));
        assert_eq!(cover.settle(&[(net("192.0.2.0/24").network(), net("192.0.2.0/24").broadcast())]), Difference::default());
        assert!(!cover.found(piece("192.0.2.128/25", 80)), "it lasts longer than ours");
        assert!(!cover.found(piece("198.51.100.0/24", 10)), "we know nothing of it");
        cover.gone(net("192.0.2.64/26").network(), net("192.0.2.64/26").broadcast());
        let missing = |cover: &Cover, now| {
            let list = cover.missing(net("0.0.0.0/0").network(), net("0.0.0.0/0").broadcast(), Time::from_secs(now));
            list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(missing(&cover, 10), "192.0.2.0/25");
        assert_eq!(missing(&cover, 89), "", "it was about to end");
    }

    /// The kernel's set: what it lets one do, and what it then holds.
    #[derive(Default)]
    struct Kernel(Vec<(u128, u128, Option<Time>)>);

    impl Kernel {
        fn apply(&mut self, difference: &Difference, now: Time) {
            for piece in &difference.removed {
                let (first, last) = (bits(piece.first), bits(piece.last));
                let at = self.0.iter().position(|(f, l, _)| (*f, *l) == (first, last));
                _ = self.0.remove(at.unwrap_or_else(|| panic!("{first}-{last} is not there")));
            }
            for piece in &difference.renewed {
                let key = (bits(piece.first), bits(piece.last));
                let at = self.0.iter_mut().find(|(f, l, _)| (*f, *l) == key);
                at.unwrap_or_else(|| panic!("{piece:?} is not there")).2 = piece.stay.until;
            }
            for piece in &difference.added {
                let (first, last) = (bits(piece.first), bits(piece.last));
                assert!(self.0.iter().all(|(f, l, _)| *l < first || last < *f), "EEXIST: {piece:?}");
                assert!(piece.stay.until.is_none_or(|until| until > now), "over already: {piece:?}");
                self.0.push((first, last, piece.stay.until));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
        /// Bans come, go and end; whatever the order, each address stays in the kernel for exactly as long as the last ban that
        /// covers it, the kernel is never asked for what it would refuse, and the pieces are as few as the bans allow.
        #[test]
        fn every_address_is_held_until_its_last_ban_ends(
            steps in prop::collection::vec((0u8..10, 0u32..64, 26u8..=32, 0i64..40), 1..60),
            edge in prop::sample::select(vec![0u32, 0x0a00_0000, u32::MAX - 63]),
        ) {
            let mut cover = Cover::default();
            let mut kernel = Kernel::default();
            let mut bans: BTreeMap<IpNetwork, Option<Time>> = BTreeMap::new();
            let (mut now, mut waiting) = (Time::from_secs(1), Vec::new());
            for (what, host, prefix, secs) in steps {
                let subject = network(Ipv4Addr::from_bits(edge + host).into(), prefix).expect("a subnet");
                match what {
                    0..=5 => {
                        let stay = if secs == 0 { until(0) } else { until(now.secs() + secs) };
                        cover.mean(subject, Some(stay));
                        bans.insert(subject, stay.until);
                    }
                    6 | 7 => {
                        cover.mean(subject, None);
                        bans.remove(&subject);
                    }
                    _ => {
                        now = now + Span::from_secs(secs as u64 / 4);
                        let over = |until: &Option<Time>| until.is_some_and(|until| until <= now);
                        bans.iter().filter(|(_, until)| over(until)).for_each(|(net, _)| cover.mean(*net, None));
                        bans.retain(|_, until| !over(until));
                        // The kernel forgets at once what ended; the cover only knows after a while.
                        kernel.0.retain(|(_, _, until)| !over(until));
                        cover.v4.pieces.retain(|_, (_, stay)| !over(&stay.until));
                        cover.tidy(now);
                        continue;
                    }
                }
                waiting.push((subject.network(), subject.broadcast()));
                if what == 0 {
                    // It goes with the next one.
                    continue;
                }
                let difference = cover.settle(&std::mem::take(&mut waiting));
                kernel.apply(&difference, now);
                for address in edge..=edge + 63 {
                    let held = bans.iter().filter(|(net, _)| net.contains(Ipv4Addr::from_bits(address).into())).map(|(_, until)| *until);
                    let meant = held.reduce(|a, b| if outlasts(a, b) { a } else { b });
                    let there = kernel.0.iter().find(|(f, l, _)| (*f..=*l).contains(&u128::from(address))).map(|piece| piece.2);
                    prop_assert_eq!(there, meant, "{}", Ipv4Addr::from_bits(address));
                }
                prop_assert!(kernel.0.len() <= (2 * bans.len()).max(1) - usize::from(!bans.is_empty()));
                let mut canonical = cover.clone();
                canonical.refill();
                prop_assert_eq!(canonical.v4.pieces, cover.v4.pieces.clone());
            }
        }

        /// What is left around holes and the holes together are the whole again.
        #[test]
        fn a_hole_takes_nothing_else(first in 0u32..256, bits in 0u8..=8, outer in 24u8..=32) {
            let all = Ipv4Addr::from_bits(0xc000_0200 + first).into();
            let (net, hole) = (network(all, outer).expect("a net"), network(all, outer.max(32 - bits)).expect("a net"));
            let left = around(net, hole);
            for host in 0..256u32 {
                let address = IpAddr::from(Ipv4Addr::from_bits(0xc000_0200 + host));
                let holders = left.iter().filter(|part| part.contains(address)).count();
                prop_assert_eq!(holders, usize::from(net.contains(address) && !hole.contains(address)));
            }
        }
    }
}
