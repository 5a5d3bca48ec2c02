//! Elements of sets: an address or a stretch of addresses, how long it stays, and what it has counted.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::terms::{Lasting, Span};

/// The longest timeout the kernel takes, in milliseconds (`nf_msecs_to_jiffies64`): 584 years.
const LONGEST: u64 = u64::MAX / 1_000_000 - 1;

/// What a set's key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// `ipv4_addr`
    V4,
    /// `ipv6_addr`
    V6,
}

impl Key {
    /// The key that can hold this address.
    pub const fn of(address: IpAddr) -> Key {
        match address {
            IpAddr::V4(_) => Key::V4,
            IpAddr::V6(_) => Key::V6,
        }
    }
    /// The word nft(8) uses for the type.
    pub const fn name(self) -> &'static str {
        match self {
            Key::V4 => "ipv4_addr",
            Key::V6 => "ipv6_addr",
        }
    }
    /// The word nft(8) uses for the header that holds it.
    pub const fn header(self) -> &'static str {
        match self {
            Key::V4 => "ip",
            Key::V6 => "ip6",
        }
    }
    /// nft's own number for the type, kept by the kernel for it (`enum datatypes` in nft).
    pub(crate) const fn number(self) -> u32 {
        match self {
            Key::V4 => 7,
            Key::V6 => 8,
        }
    }
    /// Bytes of a key.
    pub(crate) const fn length(self) -> u32 {
        match self {
            Key::V4 => 4,
            Key::V6 => 16,
        }
    }
    /// Reads a key from a message.
    pub(crate) fn read(self, bytes: &[u8]) -> Option<IpAddr> {
        Some(match self {
            Key::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
            Key::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        })
    }
    /// Every address of this kind.
    pub const fn whole(self) -> Interval {
        match self {
            Key::V4 => Interval { first: IpAddr::V4(Ipv4Addr::UNSPECIFIED), last: IpAddr::V4(Ipv4Addr::BROADCAST) },
            Key::V6 => Interval { first: IpAddr::V6(Ipv6Addr::UNSPECIFIED), last: IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)) },
        }
    }
}

/// Consecutive addresses of one kind, both ends included; a single address has both alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    first: IpAddr,
    last: IpAddr,
}

impl Interval {
    /// From `first` to `last`; `None` if they are of two kinds or in the wrong order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Interval> {
        (Key::of(first) == Key::of(last) && first <= last).then_some(Interval { first, last })
    }
    /// Its first address: in a hash set, the key.
    pub const fn first(self) -> IpAddr {
        self.first
    }
    /// Its last address.
    pub const fn last(self) -> IpAddr {
        self.last
    }
    /// The key a set needs to hold it.
    pub const fn key(self) -> Key {
        Key::of(self.first)
    }
    /// Whether it is one address.
    pub fn is_host(self) -> bool {
        self.first == self.last
    }
    /// Whether `address` is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        Key::of(address) == self.key() && (self.first..=self.last).contains(&address)
    }
    /// Whether all of `other` is in it.
    pub fn covers(self, other: Interval) -> bool {
        self.contains(other.first) && self.contains(other.last)
    }
    /// As a subnet, where it is one.
    pub fn network(self) -> Option<IpNetwork> {
        let bits = bits(self.first) ^ bits(self.last);
        let width = self.key().length() * 8;
        let host = u128::BITS - bits.leading_zeros();
        let mask = 1u128.checked_shl(host).map_or(u128::MAX, |n| n - 1);
        if bits != mask || bits_and(self.first, mask) != 0 {
            return None;
        }
        IpNetwork::new(self.first, (width - host) as u8).ok()
    }
    /// The address after its last; `None` at the end of all addresses.
    pub(crate) fn after(self) -> Option<IpAddr> {
        match self.last {
            IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|n| Ipv4Addr::from_bits(n).into()),
            IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|n| Ipv6Addr::from_bits(n).into()),
        }
    }
    /// Everything from `first` to the last address there is.
    pub(crate) const fn from_on(first: IpAddr) -> Interval {
        Interval { first, last: Key::of(first).whole().last }
    }
    /// The address before this one, for turning an exclusive end into an inclusive one.
    pub(crate) fn before(address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(v4) => v4.to_bits().checked_sub(1).map(|n| Ipv4Addr::from_bits(n).into()),
            IpAddr::V6(v6) => v6.to_bits().checked_sub(1).map(|n| Ipv6Addr::from_bits(n).into()),
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn bits_and(address: IpAddr, mask: u128) -> u128 {
    bits(address) & mask
}

impl From<IpAddr> for Interval {
    fn from(address: IpAddr) -> Self {
        Interval { first: address, last: address }
    }
}

/// Host bits are dropped.
impl From<IpNetwork> for Interval {
    fn from(network: IpNetwork) -> Self {
        Interval { first: network.network(), last: network.broadcast() }
    }
}

/// As nft lists it: `192.0.2.7`, `192.0.2.0/24`, `192.0.2.7-192.0.2.9`.
impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_address(f, self.first)?;
        if self.is_host() {
            return Ok(());
        }
        match self.network() {
            Some(network) => write!(f, "/{}", network.prefix()),
            None => {
                f.write_str("-")?;
                write_address(f, self.last)
            }
        }
    }
}

/// As inet_ntop(3) and so nft writes it: what was once an IPv4-compatible address ends in dots, other than in Rust.
fn write_address(f: &mut fmt::Formatter<'_>, address: IpAddr) -> fmt::Result {
    match address {
        IpAddr::V6(v6) if v6.to_bits() >> 32 == 0 && v6.to_bits() > 0xffff => {
            write!(f, "::{}", Ipv4Addr::from_bits(v6.to_bits() as u32))
        }
        other => write!(f, "{other}"),
    }
}

impl fmt::Debug for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Sorts, and joins what overlaps or touches: an interval set of the kernel refuses overlaps, and with them the whole batch.
pub fn merge(intervals: impl IntoIterator<Item = Interval>) -> Vec<Interval> {
    let mut sorted: Vec<Interval> = intervals.into_iter().collect();
    sorted.sort_unstable();
    let mut merged: Vec<Interval> = Vec::with_capacity(sorted.len());
    for next in sorted {
        match merged.last_mut() {
            Some(last) if last.key() == next.key() && last.after().is_none_or(|after| next.first <= after) => {
                last.last = last.last.max(next.last);
            }
            _ => merged.push(next),
        }
    }
    merged
}

/// What a rule or an element has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl std::ops::AddAssign for Counter {
    fn add_assign(&mut self, other: Counter) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// How long an element stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    /// The span given, in nft(8) `timeout`.
    pub timeout: Span,
    /// The span left, in nft(8) `expires`; never sent as more than `timeout`.
    pub expiration: Span,
}

impl Timeout {
    /// Timeout and expiration in the milliseconds the kernel takes: neither nothing, nor more than it accepts (ERANGE), nor
    /// an expiration above the timeout (ERANGE too).
    pub(crate) fn millis(self) -> (u64, u64) {
        let timeout = self.timeout.millis_up().clamp(1, LONGEST);
        (timeout, self.expiration.millis_up().clamp(1, timeout))
    }
    /// How long ago it was given.
    pub fn age(self) -> Span {
        Span(self.timeout.0.saturating_sub(self.expiration.0))
    }
}

/// An element of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// What it holds; in a set without `flags interval` only the first address counts.
    pub interval: Interval,
    /// How long it stays; `None` is permanent.
    pub timeout: Option<Timeout>,
    /// What it has counted; when writing, the value to begin with. Leave it out where the set has no counter.
    pub counter: Option<Counter>,
}

impl Element {
    /// An element that stays until somebody removes it.
    pub fn permanent(what: impl Into<Interval>) -> Element {
        Element { interval: what.into(), timeout: None, counter: None }
    }
    /// An element that stays for `timeout` from now on.
    pub fn timed(what: impl Into<Interval>, timeout: Span) -> Element {
        Element { timeout: Some(Timeout { timeout, expiration: timeout }), ..Element::permanent(what) }
    }
    /// An element given for `timeout`, of which `expiration` is left.
    pub fn restored(what: impl Into<Interval>, timeout: Span, expiration: Span) -> Element {
        Element { timeout: Some(Timeout { timeout, expiration }), ..Element::permanent(what) }
    }
    /// An element that begins now and lasts so long.
    pub fn lasting(what: impl Into<Interval>, lasting: Lasting) -> Element {
        match lasting {
            Lasting::For(span) => Element::timed(what, span),
            Lasting::Permanent => Element::permanent(what),
        }
    }
}

/// As nft takes it after `add element … {`.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.interval.fmt(f)?;
        if let Some(Timeout { timeout, expiration }) = self.timeout {
            write!(f, " timeout {timeout}")?;
            if expiration != timeout {
                write!(f, " expires {expiration}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(list: &[&str]) -> Vec<Interval> {
        list.iter().map(|n| n.parse::<IpNetwork>().unwrap().into()).collect()
    }

    #[test]
    fn intervals_are_written_as_nft_lists_them() {
        let table = [
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("::/0", "::/0"),
            ("2001:db8::1/128", "2001:db8::1"),
            ("fe80::1/10", "fe80::/10"),
            ("::ffff:0:0/96", "::ffff:0.0.0.0/96"),
            ("::c000:200/120", "::192.0.2.0/120"),
            ("::1:0/112", "::0.1.0.0/112"),
            ("::fffe/128", "::fffe"),
        ];
        for (written, listed) in table {
            assert_eq!(networks(&[written])[0].to_string(), listed);
        }
        let odd = Interval::new("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()).unwrap();
        assert_eq!(odd.to_string(), "10.0.0.1-10.0.0.2");
        assert_eq!(Interval::new("10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap()), None);
        assert_eq!(Interval::new("::".parse().unwrap(), "10.0.0.1".parse().unwrap()), None);
    }

    #[test]
    fn overlapping_and_touching_intervals_are_joined() {
        let table: &[(&[&str], &str)] = &[
            (&["10.0.0.0/25", "10.0.0.128/25"], "[10.0.0.0/24]"),
            (&["10.0.0.0/8", "10.1.0.0/16", "10.0.0.1/32"], "[10.0.0.0/8]"),
            (&["10.0.0.1/32", "10.0.0.3/32"], "[10.0.0.1, 10.0.0.3]"),
            (&["10.0.0.2/32", "10.0.0.1/32"], "[10.0.0.1-10.0.0.2]"),
            (&["255.255.255.255/32", "::1/128", "::/128"], "[255.255.255.255, ::/127]"),
            (&["0.0.0.0/0", "1.2.3.4/32", "::/0", "::1/128"], "[0.0.0.0/0, ::/0]"),
            (&[], "[]"),
        ];
        for (written, merged) in table {
            assert_eq!(format!("{:?}", merge(networks(written))), *merged);
        }
    }

    #[test]
    fn what_is_left_is_never_more_than_what_was_given() {
        let table = [(0, 0, (1, 1)), (10, 20, (10, 10)), (10, 5, (10, 5)), (u64::MAX, u64::MAX, (u64::MAX / 1000 + 1, 0))];
        for (timeout, expiration, (t, e)) in table {
            let millis = |n: u64| Span(n.saturating_mul(1000));
            let sent = Timeout { timeout: millis(timeout), expiration: millis(expiration) }.millis();
            if e == 0 {
                assert_eq!(sent, (LONGEST.min(t), LONGEST.min(t)));
            } else {
                assert_eq!(sent, (t, e));
            }
        }
    }
}
