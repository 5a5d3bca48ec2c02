//! Counting failures per address within findtime.
//!
//! Two ways of counting, both a pure function of the failures and their times: [`Counting::Sliding`] asks whether
//! maxretry failures lie within findtime; [`Counting::Fail2ban`] is fail2ban's rate estimator, which bans slower
//! attackers too. Times are those of the log, not of the clock: lines may be read late, or slightly out of order.
//!
//! Memory is what decides the shape: an attack brings hundreds of thousands of addresses. An address is 40 bytes in a
//! slab found through a table of indexes, a failure a 16-byte node in an arena; nothing is allocated per address.
//! At the ceiling the address whose last failure is oldest in order of arrival goes first, and is counted.

use std::hash::BuildHasher;
use std::net::IpAddr;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::Failure;
use crate::terms::{Span, Time};

/// How failures are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counting {
    /// Maxretry failures within findtime.
    #[default]
    Sliding,
    /// fail2ban's estimator: an address is forgotten when its last failure is older than findtime; when only its
    /// first is older, the count shrinks in proportion to the rate.
    Fail2ban,
}

/// Where a failure was read: a number the reader understands, by which its line can be found again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

/// Nothing: the end of a chain of nodes or addresses.
const NONE: u32 = u32::MAX;

/// A failure within the window. Whole seconds: no log that is judged by findtime is finer where it matters.
#[derive(Clone, Copy)]
struct Node {
    second: u32,
    next: u32,
    place: [u32; 2],
}

/// An address and its chain of failures, oldest first, and its neighbours in order of the last failure's arrival.
struct Address {
    key: u128,
    first: u32,
    last: u32,
    /// Under [`Counting::Fail2ban`] the estimated count; else the sum of attempts over the chain.
    count: u32,
    older: u32,
    newer: u32,
}

/// The failures of one jail that may still matter.
pub struct Window {
    counting: Counting,
    ceiling: usize,
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
    addresses: Vec<Address>,
    free_address: Vec<u32>,
    nodes: Vec<Node>,
    free_node: u32,
    oldest: u32,
    newest: u32,
    evicted: u64,
}

/// What a failure made of its address's count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Count {
    /// So many now.
    Now(u32),
    /// Maxretry is reached; the address is forgotten, and these are the places of its failures, oldest first.
    Reached {
        /// Failures counted, at least maxretry.
        failures: u32,
        /// Where they were read.
        places: Vec<Place>,
    },
}

impl Window {
    /// An empty window that tracks at most `ceiling` addresses.
    pub fn new(counting: Counting, ceiling: usize) -> Window {
        Window {
            counting,
            ceiling: ceiling.clamp(1, (NONE - 1) as usize),
            table: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            addresses: Vec::new(),
            free_address: Vec::new(),
            nodes: Vec::new(),
            free_node: NONE,
            oldest: NONE,
            newest: NONE,
            evicted: 0,
        }
    }

    /// Addresses tracked.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no address is tracked.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Addresses dropped at the ceiling since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Every failure that is counted, address by address from the least recent, each address's in order of time.
    pub fn failures(&self) -> impl Iterator<Item = Failure> + '_ {
        let mut next = self.oldest;
        std::iter::from_fn(move || {
            let address = self.addresses.get(next as usize)?;
            let index = next;
            next = address.newer;
            Some(index)
        })
        .flat_map(|index| {
            let address = address_of(self.addresses[index as usize].key);
            // An estimate is not the number of nodes: the last stands for what the others do not, and what is more is left out, as is
            // what the first, which moves on, has passed.
            let first = self.chain(index).next().map_or(0, |node| node.second);
            let counts = move |node: &Node| node.second >= first;
            let (estimate, nodes) = match self.counting {
                Counting::Sliding => (None, 0),
                Counting::Fail2ban => {
                    (Some(self.addresses[index as usize].count as usize), self.chain(index).filter(counts).count())
                }
            };
            self.chain(index).filter(counts).enumerate().filter_map(move |(at, node)| {
                let place = Place(u64::from(node.place[0]) | u64::from(node.place[1]) << 32);
                let attempts = match estimate {
                    Some(count) if at + 1 == nodes => (count + 1).saturating_sub(nodes).max(1) as u32,
                    Some(count) if at + 1 >= count => return None,
                    _ => 1,
                };
                Some(Failure { address, time: Time::from_secs(i64::from(node.second)), attempts, place })
            })
        })
    }

    /// Counts a failure of `address` at `time`, worth `attempts`.
    pub fn fail(&mut self, address: IpAddr, time: Time, attempts: u32, place: Place, maxretry: u32, findtime: Span) -> Count {
        let key = key_of(address);
        let second = second_of(time);
        let found = self.find(key);
        let index = match found {
            Some(index) => {
                self.unlink(index);
                index
            }
            None => self.insert(key),
        };
        self.link_newest(index);
        let span = u32::try_from(findtime.secs()).unwrap_or(u32::MAX);
        match self.counting {
            Counting::Sliding => self.slide(index, second, span),
            Counting::Fail2ban => self.estimate(index, second, span),
        }
        self.push(index, second, place);
        let address = &mut self.addresses[index as usize];
        address.count = address.count.saturating_add(attempts.max(1));
        // A chain longer than maxretry adds nothing to the verdict; only several attempts in a line could make one.
        if address.count < maxretry {
            // Attempts above one per line are kept as extra nodes, so that they leave the window with their line.
            let count = address.count;
            if self.counting == Counting::Sliding {
                for _ in 1..attempts.max(1) {
                    self.push(index, second, place);
                }
            }
            return Count::Now(count);
        }
        let failures = address.count;
        let mut places = self.places(index);
        places.dedup();
        self.remove(index);
        Count::Reached { failures, places }
    }

    /// Forgets an address; tells whether it was tracked.
    pub fn forget(&mut self, address: IpAddr) -> bool {
        match self.find(key_of(address)) {
            Some(index) => {
                self.remove(index);
                true
            }
            None => false,
        }
    }

    /// The failures counted for an address at `now`, for people to look at.
    pub fn count(&self, address: IpAddr, now: Time, findtime: Span) -> u32 {
        let Some(index) = self.find(key_of(address)) else { return 0 };
        if self.counting == Counting::Fail2ban {
            return self.addresses[index as usize].count;
        }
        let since = second_of(now - findtime);
        self.chain(index).filter(|node| node.second >= since).count() as u32
    }

    /// Forgets every address whose last failure is older than findtime. Called now and then; the order of arrival
    /// makes it cost no more than what it forgets.
    pub fn forget_older(&mut self, now: Time, findtime: Span) {
        let since = second_of(now - findtime);
        while self.oldest != NONE {
            let index = self.oldest;
            if self.last_second(index) >= since {
                break;
            }
            self.remove(index);
        }
    }

    /// Drops from the front of the chain what has left the window that ends at `second`.
    fn slide(&mut self, index: u32, second: u32, findtime: u32) {
        let since = second.saturating_sub(findtime);
        loop {
            let first = self.addresses[index as usize].first;
            if first == NONE || self.nodes[first as usize].second >= since {
                break;
            }
            self.pop(index);
        }
        self.addresses[index as usize].count = self.chain(index).count() as u32;
    }

    /// fail2ban's rule: two nodes hold the first and the last time, `count` the estimated retries.
    fn estimate(&mut self, index: u32, second: u32, findtime: u32) {
        let Address { first, last, count, .. } = self.addresses[index as usize];
        if first == NONE {
            return;
        }
        let (first_second, last_second) = (self.nodes[first as usize].second, self.nodes[last as usize].second);
        let since = second.saturating_sub(findtime);
        if last_second < since {
            while self.addresses[index as usize].first != NONE {
                self.pop(index);
            }
            self.addresses[index as usize].count = 0;
        } else if second > last_second && first_second < since {
            let rate = f64::from(count) / f64::from(second - first_second);
            self.addresses[index as usize].count = (rate * f64::from(findtime)).round_ties_even() as u32;
            self.nodes[first as usize].second = since;
        }
        // Only the first time and the newest ones are needed: the middle of a long chain goes.
        while self.chain(index).count() > 16 {
            let first = self.addresses[index as usize].first;
            let second = self.nodes[first as usize].next;
            let third = self.nodes[second as usize].next;
            self.nodes[first as usize].next = third;
            self.release(second);
        }
    }

    fn find(&self, key: u128) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.table.find(hash, |&index| self.addresses[index as usize].key == key).copied()
    }

    fn insert(&mut self, key: u128) -> u32 {
        if self.table.len() >= self.ceiling {
            let oldest = self.oldest;
            self.remove(oldest);
            self.evicted += 1;
        }
        let address = Address { key, first: NONE, last: NONE, count: 0, older: NONE, newer: NONE };
        let index = match self.free_address.pop() {
            Some(index) => {
                self.addresses[index as usize] = address;
                index
            }
            None => {
                self.addresses.push(address);
                (self.addresses.len() - 1) as u32
            }
        };
        let Window { table, hasher, addresses, .. } = self;
        table.insert_unique(hasher.hash_one(key), index, |&i| hasher.hash_one(addresses[i as usize].key));
        index
    }

    fn remove(&mut self, index: u32) {
        self.unlink(index);
        while self.addresses[index as usize].first != NONE {
            self.pop(index);
        }
        let hash = self.hasher.hash_one(self.addresses[index as usize].key);
        if let Ok(entry) = self.table.find_entry(hash, |&i| i == index) {
            entry.remove();
        }
        self.free_address.push(index);
    }

    fn link_newest(&mut self, index: u32) {
        let newest = self.newest;
        let address = &mut self.addresses[index as usize];
        (address.older, address.newer) = (newest, NONE);
        match newest {
            NONE => self.oldest = index,
            _ => self.addresses[newest as usize].newer = index,
        }
        self.newest = index;
    }

    fn unlink(&mut self, index: u32) {
        let Address { older, newer, .. } = self.addresses[index as usize];
        match older {
            NONE => self.oldest = newer,
            _ => self.addresses[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => self.addresses[newer as usize].older = older,
        }
    }

    /// Puts a failure into its address's chain in order of time; nearly always that is the end.
    fn push(&mut self, index: u32, second: u32, place: Place) {
        let node = Node { second, next: NONE, place: [place.0 as u32, (place.0 >> 32) as u32] };
        let new = match self.free_node {
            NONE => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
            free => {
                self.free_node = self.nodes[free as usize].next;
                self.nodes[free as usize] = node;
                free
            }
        };
        let Address { first, last, .. } = self.addresses[index as usize];
        if first == NONE {
            let address = &mut self.addresses[index as usize];
            (address.first, address.last) = (new, new);
        } else if self.nodes[last as usize].second <= second {
            self.nodes[last as usize].next = new;
            self.addresses[index as usize].last = new;
        } else if second < self.nodes[first as usize].second {
            self.nodes[new as usize].next = first;
            self.addresses[index as usize].first = new;
        } else {
            let mut before = first;
            while self.nodes[self.nodes[before as usize].next as usize].second <= second {
                before = self.nodes[before as usize].next;
            }
            self.nodes[new as usize].next = self.nodes[before as usize].next;
            self.nodes[before as usize].next = new;
        }
    }

    fn pop(&mut self, index: u32) {
        let address = &mut self.addresses[index as usize];
        let first = address.first;
        address.first = self.nodes[first as usize].next;
        if address.first == NONE {
            address.last = NONE;
        }
        self.release(first);
    }

    fn release(&mut self, node: u32) {
        self.nodes[node as usize].next = self.free_node;
        self.free_node = node;
    }

    fn chain(&self, index: u32) -> impl Iterator<Item = Node> + '_ {
        let mut next = self.addresses[index as usize].first;
        std::iter::from_fn(move || {
            let node = *self.nodes.get(next as usize)?;
            next = node.next;
            Some(node)
        })
    }

    fn places(&self, index: u32) -> Vec<Place> {
        self.chain(index).map(|node| Place(u64::from(node.place[0]) | u64::from(node.place[1]) << 32)).collect()
    }

    fn last_second(&self, index: u32) -> u32 {
        self.nodes.get(self.addresses[index as usize].last as usize).map_or(0, |node| node.second)
    }
}

/// IPv4 addresses as IPv4-mapped IPv6: no IPv6 address reaches a window in that form, they were folded.
fn key_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address_of(key: u128) -> IpAddr {
    crate::terms::fold(IpAddr::from(key.to_be_bytes()))
}

/// Seconds since 1970, bounded to what a node holds (until 2106).
fn second_of(time: Time) -> u32 {
    time.secs().clamp(0, i64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Plays `10s A; 12s A*3; …` (time, address, attempts) and tells at which of them the count was reached.
    fn play(counting: Counting, maxretry: u32, findtime: u64, script: &str) -> String {
        let mut window = Window::new(counting, 1000);
        let mut reached = Vec::new();
        for step in script.split(';').map(str::trim).filter(|s| !s.is_empty()) {
            let (at, who) = step.split_once("s ").expect("a step reads `10s A`");
            let (who, attempts) = who.split_once('*').map_or((who, 1), |(w, n)| (w, n.parse().expect("a number")));
            let last = who.bytes().next().expect("a letter");
            let address = IpAddr::from([192, 0, 2, last]);
            let time = Time::from_secs(1_000_000 + at.parse::<i64>().expect("seconds"));
            match window.fail(address, time, attempts, Place(0), maxretry, Span::from_secs(findtime)) {
                Count::Now(_) => {}
                Count::Reached { failures, .. } => reached.push(format!("{at}s {who} {failures}")),
            }
        }
        reached.join("; ")
    }

    #[test]
    fn maxretry_failures_within_findtime_reach_it() {
        let table = [
            (3, 60, "0s A; 10s A; 20s A", "20s A 3"),
            (3, 60, "0s A; 10s A; 61s A", ""),
            (3, 60, "0s A; 10s A; 60s A", "60s A 3"),
            (3, 60, "0s A; 10s B; 20s A; 30s B; 40s B; 41s A", "40s B 3; 41s A 3"),
            (3, 60, "0s A; 50s A; 100s A; 101s A", "101s A 3"),
            (3, 60, "0s A*3", "0s A 3"),
            (3, 60, "0s A*2; 70s A; 71s A", ""),
            (3, 60, "0s A*2; 30s A", "30s A 3"),
            (1, 60, "5s A; 6s A", "5s A 1; 6s A 1"),
            (2, 60, "50s A; 10s A", "10s A 2"),
            (3, 60, "100s A; 10s A; 101s A", ""),
            (3, 60, "0s A; 1s A; 2s A; 3s A; 4s A; 5s A", "2s A 3; 5s A 3"),
        ];
        for (maxretry, findtime, script, reached) in table {
            assert_eq!(play(Counting::Sliding, maxretry, findtime, script), reached, "{script}");
        }
    }

    /// With 5 failures in 10 minutes fail2ban bans at a spacing of up to 171 s, a strict window up to 149 s or so.
    #[test]
    fn the_estimator_bans_slower_attackers_than_a_strict_window() {
        let every = |seconds: u64, counting| {
            let script = (0..60).map(|i| format!("{}s A", i * seconds)).collect::<Vec<_>>().join(";");
            !play(counting, 5, 600, &script).is_empty()
        };
        assert!(every(150, Counting::Sliding) && !every(151, Counting::Sliding));
        assert!(every(171, Counting::Fail2ban) && !every(175, Counting::Fail2ban));
    }

    #[test]
    fn what_is_counted_again_comes_to_the_same() {
        let address = IpAddr::from([192, 0, 2, 7]);
        let findtime = Span::from_secs(600);
        let scripts: [&[(i64, u32)]; 5] = [
            &[(0, 3), (10, 1)],
            &[(0, 1), (500, 1), (700, 1), (1250, 2)],
            &[(0, 7)],
            &[(0, 1); 30],
            &[(0, 1), (599, 1), (1198, 1)],
        ];
        for counting in [Counting::Sliding, Counting::Fail2ban] {
            for script in scripts {
                let fail =
                    |window: &mut Window, time: Time, attempts| window.fail(address, time, attempts, Place(7), 100, findtime);
                let (mut window, mut again) = (Window::new(counting, 10), Window::new(counting, 10));
                for (at, attempts) in script {
                    fail(&mut window, Time::from_secs(1_000_000 + at), *attempts);
                }
                for failure in window.failures().collect::<Vec<_>>() {
                    fail(&mut again, failure.time, failure.attempts);
                }
                let end = Time::from_secs(1_000_000 + script[script.len() - 1].0);
                let counts = [&window, &again].map(|window| window.count(address, end, findtime));
                assert_eq!(counts[0], counts[1], "{counting:?} {script:?}");
            }
        }
    }

    #[test]
    fn the_ceiling_evicts_the_least_recent() {
        let mut window = Window::new(Counting::Sliding, 2);
        let fail = |w: &mut Window, last: u8, at| {
            w.fail(IpAddr::from([192, 0, 2, last]), Time::from_secs(at), 1, Place(7), 3, Span::from_secs(600))
        };
        for (last, at) in [(1, 10), (2, 11), (1, 12), (3, 13)] {
            assert!(matches!(fail(&mut window, last, at), Count::Now(_)));
        }
        assert_eq!((window.len(), window.evicted()), (2, 1));
        // 1 kept its two failures, 2 was evicted.
        assert_eq!(fail(&mut window, 1, 14), Count::Reached { failures: 3, places: vec![Place(7)] });
        window.forget_older(Time::from_secs(614), Span::from_secs(600));
        assert_eq!(window.len(), 0);
    }

    #[test]
    fn an_address_at_maxretry_five_stays_under_120_bytes() {
        let per_address = size_of::<Address>() + 4 * size_of::<Node>() + (size_of::<u32>() + 1) * 8 / 7;
        assert!(per_address < 120, "{per_address}");
    }

    proptest! {
        /// Against the plain definition: sort what lies within findtime of the newest and count it.
        #[test]
        fn the_window_agrees_with_its_definition(steps in prop::collection::vec((0u8..4, 0i64..40), 1..80), maxretry in 1u32..6, findtime in 1u64..30) {
            let mut window = Window::new(Counting::Sliding, 1000);
            let mut plain: Vec<Vec<i64>> = vec![Vec::new(); 4];
            let mut base = 1000;
            for (who, step) in steps {
                base += step / 4;
                let at = base - step % 4; // now and then a line out of order
                let count = window.fail(IpAddr::from([10, 0, 0, who]), Time::from_secs(at), 1, Place(0), maxretry, Span::from_secs(findtime));
                let times = &mut plain[who as usize];
                times.retain(|t| *t >= at - findtime as i64);
                times.push(at);
                if times.len() as u32 >= maxretry {
                    prop_assert_eq!(count, Count::Reached { failures: times.len() as u32, places: vec![Place(0)] });
                    times.clear();
                } else {
                    prop_assert_eq!(count, Count::Now(times.len() as u32));
                }
            }
        }
    }
}
