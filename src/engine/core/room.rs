//! Full sets: the newest bans win. `set_size`, or else a ceiling, bounds a set, and its oldest ban makes room for a new one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{Core, Effect, Level, Row, Target, What, shown};
use crate::jail::{Held, Now};
use crate::terms::Lasting;

/// Bans that a set holds at most where `set_size` names no other number: each takes some 150 bytes here and more in the kernel, and
/// whoever has a wide IPv6 prefix has more addresses than anybody has memory.
pub(super) const CEILING: usize = 2_000_000;

/// What is known of the room in one set.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// The oldest bans, oldest first, each with its age's measure when it was found.
    oldest: VecDeque<(i64, IpNetwork)>,
    /// Bans that had to go.
    pub evicted: u64,
    /// Whether it was said that the set is full.
    said: bool,
}

/// When a ban began, on the monotonic clock; those without end count as newest.
fn began(held: &Held) -> i64 {
    match (held.lasting, held.until) {
        (Lasting::For(span), Some(until)) => until.0.saturating_sub_unsigned(span.0),
        _ => i64::MAX,
    }
}

/// A ban made room for a newer one.
fn full() -> Row {
    Row { what: What::Unban, origin: "kernel".into(), reason: Some("the set is full".into()), ..Row::default() }
}

impl Core {
    /// How many bans a set holds at most.
    fn set_size(&self) -> usize {
        self.specs.nft.set_size.map_or(self.ceiling, |size| size as usize)
    }

    /// A ban was just put on its way: if its set has no room for it, the oldest goes.
    pub(super) fn make_room(&mut self, now: Now, at: usize, new: IpNetwork) {
        let size = self.set_size();
        let running = &self.jails[at];
        if running.jail.bans_held() <= size {
            return;
        }
        let set = running.spec.set(new);
        match running.jail.bans_beside(new).checked_sub(size) {
            Some(0) => {}
            Some(_) => _ = self.evict(now, at, &set, new, true),
            None => {
                let free = size - running.jail.bans_beside(new);
                if let Some(room) = self.rooms.get_mut(&set) {
                    room.said &= free < size / 10;
                }
            }
        }
    }

    /// Takes the oldest ban out of a set, other than `new`; whether there was one. Without `limit` even if the set could hold more.
    pub(super) fn evict(&mut self, now: Now, at: usize, set: &Arc<str>, new: IpNetwork, limit: bool) -> bool {
        let running = &self.jails[at];
        let room = self.rooms.entry(set.clone()).or_default();
        let is_held = |(since, subject): &(i64, IpNetwork)| {
            *subject != new && running.jail.held(*subject).is_some_and(|held| began(held) == *since && held.in_kernel)
        };
        while room.oldest.front().is_some_and(|entry| !is_held(entry)) {
            room.oldest.pop_front();
        }
        if room.oldest.is_empty() {
            let bans = running.jail.bans().filter(|(subject, held)| held.in_kernel && running.spec.set(*subject) == *set);
            let mut all: Vec<(i64, IpNetwork)> =
                bans.map(|(subject, held)| (began(held), subject)).filter(|(_, subject)| *subject != new).collect();
            // Finding them takes a walk over all bans: enough of them for a while.
            let some = (all.len() / 100).max(64).min(all.len());
            if some < all.len() {
                all.select_nth_unstable(some);
                all.truncate(some);
            }
            all.sort_unstable();
            room.oldest = all.into();
        }
        let Some((_, subject)) = room.oldest.pop_front() else { return false };
        room.evicted += 1;
        let said = std::mem::replace(&mut room.said, true);
        let name = running.spec.name.clone();
        if !said {
            let size = if limit { format!(" with {} elements", self.set_size()) } else { String::new() };
            self.log(
                Level::Error,
                format!("[{name}] set {set} is full{size}: its oldest bans make room for new ones\n  help: a larger set_size in [nft] holds more"),
            );
        }
        let running = &mut self.jails[at];
        running.jail.lift(subject);
        self.keep.ban(now, &running.key, subject);
        self.record_about(now, at, subject, full());
        let text = format!("[{name}] Unban {}, the set is full", shown(subject));
        self.change(now, at, subject, Target::Gone, Effect::Log(Level::Info, text));
        true
    }

    /// Sets that shall hold fewer than they do let go of their oldest.
    pub(super) fn trim(&mut self, now: Now) {
        let size = self.set_size();
        let mut ended = Vec::new();
        for (at, running) in self.jails.iter().enumerate() {
            if running.jail.bans_held() <= size {
                continue;
            }
            let mut sets: HashMap<Arc<str>, Vec<(i64, IpNetwork)>> = HashMap::new();
            for (subject, held) in running.jail.bans() {
                sets.entry(running.spec.set(subject)).or_default().push((began(held), subject));
            }
            for mut all in sets.into_values() {
                if let Some(over) = all.len().checked_sub(size).filter(|over| *over > 0) {
                    all.select_nth_unstable(over - 1);
                    ended.extend(all.into_iter().take(over).map(|(_, subject)| (at, subject)));
                }
            }
        }
        if ended.is_empty() {
            return;
        }
        let text = format!(
            "a set holds {size} elements (set_size in [nft]), which leaves no room for {} bans: the oldest were lifted",
            ended.len()
        );
        self.log(Level::Error, text);
        for (at, subject) in ended {
            self.jails[at].jail.lift(subject);
            self.keep.ban(now, &self.jails[at].key, subject);
            self.record_about(now, at, subject, full());
        }
    }

    /// Bans that had to make room, of one jail.
    pub(super) fn evicted_bans(&self, spec: &super::Spec) -> u64 {
        self.rooms.iter().filter(|(set, _)| spec.holds(set)).map(|(_, room)| room.evicted).sum()
    }
}
