//! The core's half that bans subnets: how bans that overlap become elements that do not, how many addresses become their subnet,
//! and what an admin's change of a set of subnets means.
//!
//! A change of a subnet travels as the ban that changed. Only when it goes to the kernel is it worked out which elements have to
//! go and come, from the bans as they are then and what the set holds then ([`crate::jail::Cover`]); so nothing has to be worked out
//! anew when the kernel refuses or the table is rebuilt.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{Adopted, Change, Core, Effect, Flight, Level, Machine, NetSets, Row, Target, What, shown};
use crate::engine::spec::Spec;
use crate::jail::cover::{self, Cover, Piece, Stay};
use crate::jail::{Difference, Held, Jail, NETS_AT_MOST, Nets, Now, Origin};
use crate::nft::{Interval, Key};
use crate::terms::{Lasting, Span, Time};

/// A piece that ends within so long may have ended by the time the kernel gets to it.
const DOUBTFUL: Span = Span::from_secs(60);

/// What lets an address or a subnet in.
#[derive(Debug, Default)]
pub(super) struct Freed {
    /// Bans that are lifted whole.
    pub lifted: Vec<(IpNetwork, Held)>,
    /// Wider bans that it is cut out of.
    pub cut: Vec<(IpNetwork, Held)>,
    /// Whether it was named, not chosen with others by what they have in common.
    pub named: bool,
}

/// Our own links.
pub(super) fn exact_links(machine: &Machine) -> Arc<Nets> {
    Arc::new(machine.links.iter().copied().collect())
}

/// Whether bans of one spec stand in other sets under the next.
pub(super) fn rekeyed(before: &Spec, spec: &Spec) -> bool {
    before.policy.ipv6_prefix != spec.policy.ipv6_prefix || before.policy.ipv4_prefix != spec.policy.ipv4_prefix
}

/// What the sets of subnets of a jail hold: what they held last, or what is meant where its bans stand in other sets now.
pub(super) fn stretches(jail: &Jail, before: &Spec, spec: &Spec) -> Vec<(Arc<str>, Change)> {
    let anew = rekeyed(before, spec).then(|| {
        let mut cover = Cover::default();
        for (subject, held) in jail.bans().filter(|(subject, _)| spec.policy.is_net(*subject)) {
            cover.mean(subject, Some(held.stay()));
        }
        cover.refill();
        cover
    });
    let change = |piece: Piece| {
        let set = net_set(spec, &piece);
        Some((set.clone(), Change { set, what: Interval::new(piece.first, piece.last)?, to: target(piece.stay) }))
    };
    anew.as_ref().unwrap_or_else(|| jail.cover()).pieces(Time::default()).filter_map(change).collect()
}

/// A difference as changes of elements, in order.
///
/// A piece that may have ended by the kernel's clock is never just removed: of an expired interval the kernel (6.18) finds the end and
/// not the beginning, and its garbage collector then takes the end of another interval, which from there on reaches up to the next
/// one. Adding it anew first, in the same transaction, makes sure that it is there whole. A piece that gets another end is
/// removed and added; where the kernel can do it in one, the writer does.
pub fn in_elements(now: Now, set: &Arc<str>, difference: &Difference) -> Vec<Change> {
    let change = |piece: &Piece, to| Some(Change { set: set.clone(), what: Interval::new(piece.first, piece.last)?, to });
    let revived = Stay { lasting: Lasting::For(DOUBTFUL), until: Some(now.mono + DOUBTFUL) };
    let mut all = Vec::new();
    for piece in &difference.removed {
        if piece.stay.until.is_some_and(|until| until <= now.mono + DOUBTFUL) {
            all.extend(change(piece, target(revived)));
        }
        all.extend(change(piece, Target::Gone));
    }
    for piece in &difference.renewed {
        all.extend([change(piece, Target::Gone), change(piece, target(piece.stay))].into_iter().flatten());
    }
    all.extend(difference.added.iter().filter_map(|piece| change(piece, target(piece.stay))));
    all
}

fn net_set(spec: &Spec, piece: &Piece) -> Arc<str> {
    if piece.first.is_ipv4() { spec.set_net4.clone() } else { spec.set_net6.clone() }
}

fn target(stay: Stay) -> Target {
    Target::Held { lasting: stay.lasting, until: stay.until }
}

impl Core {
    /// Asks for the sets of jails that have a subnet to ban and no set for it; tells whether there are any.
    pub(super) fn ask_for_nets(&mut self) -> bool {
        let mut asked = false;
        for running in self.jails.iter_mut().filter(|r| r.nets == NetSets::No && !r.jail.cover().is_empty()) {
            running.nets = NetSets::Asked;
            asked = true;
        }
        asked
    }

    /// The kernel made the sets that were asked for, or did not.
    pub(super) fn nets_made(&mut self, made: bool) {
        for running in self.jails.iter_mut().filter(|running| running.nets == NetSets::Asked) {
            running.nets = if made { NetSets::Yes } else { NetSets::No };
        }
    }

    /// Our links changed.
    pub(super) fn know_links(&mut self) {
        self.links = exact_links(&self.machine);
        for running in &mut self.jails {
            running.jail.exactly(&self.links);
        }
    }

    /// The elements that a flight's changes come to.
    pub(super) fn elements_of(&mut self, now: Now, flight: &mut Flight) -> Vec<Change> {
        let mut elements = Vec::with_capacity(flight.changes.len());
        flight.sent_for.clear();
        let mut settled: Vec<&str> = Vec::new();
        for (index, change) in flight.changes.iter().enumerate() {
            match self.jails.iter_mut().find(|running| running.spec.is_net_set(&change.set)) {
                None => elements.push(change.clone()),
                // All changes of one set go with the first of them.
                Some(_) if settled.contains(&&*change.set) => {}
                Some(running) => {
                    settled.push(&change.set);
                    let changes = flight.changes.iter().filter(|other| other.set == change.set);
                    let stretches: Vec<_> = changes.map(|change| (change.what.first(), change.what.last())).collect();
                    let difference = running.jail.cover_mut().settle(&stretches);
                    elements.extend(in_elements(now, &change.set, &difference));
                }
            }
            flight.sent_for.resize(elements.len(), index);
        }
        elements
    }

    /// An address was banned: perhaps its subnet is to be.
    pub(super) fn aggregate(&mut self, now: Now, at: usize, subject: IpNetwork) {
        // Only who is banned now counts.
        self.expire(now);
        let Some(ban) = self.jails[at].jail.aggregated(subject) else { return };
        let (net, name) = (ban.subject, self.jails[at].spec.name.clone());
        let Origin::Aggregate(addresses) = ban.held.origin else { return };
        let many = format!("[{name}] {addresses} addresses of {} are banned", shown(net));
        if self.is_ours(net) {
            return self.log(Level::Debug, format!("{many}; it is not, because we are in it ourselves"));
        }
        if self.jails[at].jail.cover().len() >= NETS_AT_MOST {
            return self.log(Level::Debug, format!("{many}; it is not, because {NETS_AT_MOST} subnets are"));
        }
        let running = &mut self.jails[at];
        if running.jail.hold(net, ban.held.clone()) {
            running.jail.bans_total += 1;
            self.log(Level::Info, many);
            let until = ban.held.until.map(|until| now.wall_of(until));
            let reason = ban.held.origin.reason().map(Into::into);
            let since = Some(ban.held.since);
            self.record_about(
                now,
                at,
                net,
                Row { what: What::Ban, since, until, origin: "aggregate".into(), reason, ..Row::default() },
            );
            self.want(now, at, net, &ban.held, Effect::Log(Level::Warn, format!("[{name}] Ban {}", shown(net))));
        }
    }

    /// Whether one of our own addresses, links or gateways lies in `net`.
    fn is_ours(&self, net: IpNetwork) -> bool {
        self.machine.addresses.iter().chain(&self.machine.gateways).any(|address| net.contains(*address))
            || self.machine.links.iter().any(|link| cover::holds(net, *link) || cover::holds(*link, net))
    }

    /// What has to be lifted and cut so that nobody of `hole` is banned in a jail: its own ban, or if there is none and `inner`, those
    /// within it; and those around it.
    pub(super) fn freeing(&self, at: usize, hole: IpNetwork, inner: bool) -> Freed {
        let jail = &self.jails[at].jail;
        let lifted = match jail.held(hole) {
            Some(_) => vec![hole],
            None if inner => jail.within(hole),
            None => Vec::new(),
        };
        let lifted = lifted.into_iter().filter_map(|net| Some((net, jail.held(net)?.clone()))).collect();
        let around = jail.covering(hole.network()).into_iter().filter(|(net, _)| net.prefix() < hole.prefix());
        Freed { lifted, cut: around.map(|(net, held)| (net, held.clone())).collect(), named: true }
    }

    /// What a set of subnets holds that an admin put there is a ban of his, as the subnets it is made of.
    pub(super) fn adopt_net(&mut self, now: Now, at: usize, found: &Adopted, origin: Origin) -> Vec<IpNetwork> {
        let lasting = found.timeout.or(found.left).map_or(Lasting::Permanent, Lasting::For);
        let until = found.left.map(|left| now.mono + left);
        let elapsed = match (lasting, found.left) {
            (Lasting::For(given), Some(left)) => Span(given.0.saturating_sub(left.0)),
            _ => Span(0),
        };
        let piece = Piece { first: found.what.first(), last: found.what.last(), stay: Stay { lasting, until } };
        let running = &mut self.jails[at];
        let known = running.jail.cover_mut().found(piece);
        // Where it ends sooner than was meant, or is more than one element is to be, it is put right with the next commit.
        self.pending.changes.push(Change { set: net_set(&running.spec, &piece), what: found.what, to: target(piece.stay) });
        let mut new = Vec::new();
        if known {
            return new;
        }
        let held = Held { since: now.wall - elapsed, until, lasting, failures: 0, origin, in_kernel: true, generation: 0 };
        for subject in cover::networks(piece.first, piece.last) {
            let running = &mut self.jails[at];
            if !running.jail.hold(subject, held.clone()) {
                continue;
            }
            self.keep.ban(now, &running.key, subject);
            new.push(subject);
            if self.settled {
                let (since, until) = (Some(held.since), until.map(|until| now.wall_of(until)));
                let reason = Some("put into the set by another program".into());
                let row = Row { what: What::Ban, since, until, origin: "kernel".into(), reason, ..Row::default() };
                self.record_found(now, at, subject, row);
            }
            let running = &self.jails[at];
            if !running.jail.is_net(subject) {
                // A single address, or what stands for one, belongs into the other set.
                let (set, what) = (running.spec.set(subject), running.spec.element(subject));
                self.pending.changes.push(Change { set, what, to: target(held.stay()) });
            }
        }
        new
    }

    /// The subnets' part of [`Core::compare`]: what was there and is gone was lifted by an admin. Tells how many bans that was; what he
    /// added is adopted later.
    pub(super) fn compare_nets(&mut self, now: Now, found: &[&Adopted]) -> usize {
        let mut lifted = 0;
        for at in 0..self.jails.len() {
            let running = &mut self.jails[at];
            running.jail.cover_mut().emptied();
            for element in found.iter().filter(|element| running.spec.is_net_set(&element.set)) {
                let stay = Stay { lasting: Lasting::Permanent, until: element.left.map(|left| now.mono + left) };
                running.jail.cover_mut().found(Piece { first: element.what.first(), last: element.what.last(), stay });
            }
            let nets: Vec<(IpNetwork, bool)> = running
                .jail
                .bans()
                .filter(|(net, _)| running.jail.is_net(*net))
                .map(|(net, held)| (net, held.in_kernel))
                .collect();
            let mut expected = running.jail.cover().clone();
            nets.iter().filter(|(_, in_kernel)| !in_kernel).for_each(|(net, _)| expected.mean(*net, None));
            let all = [Key::V4, Key::V6].map(Key::whole);
            let missing: Vec<IpNetwork> =
                all.iter().flat_map(|all| expected.missing(all.first(), all.last(), now.mono)).collect();
            for hole in missing {
                let within: Vec<IpNetwork> =
                    nets.iter().filter(|(net, is)| *is && cover::holds(hole, *net)).map(|(net, _)| *net).collect();
                for net in within {
                    lifted += usize::from(self.jails[at].jail.lift(net).is_some());
                    self.keep.ban(now, &self.jails[at].key, net);
                }
                let (cut, left) = self.jails[at].jail.cut(hole);
                for net in cut.iter().map(|(net, _)| *net).chain(left) {
                    self.keep.ban(now, &self.jails[at].key, net);
                    self.jails[at].jail.confirm(net, 0);
                }
                let reason = Some("taken out of the set while the daemon was away".into());
                self.record_about(now, at, hole, Row { what: What::Unban, origin: "kernel".into(), reason, ..Row::default() });
                let text = format!(
                    "[{}] Unban {}: it was taken out of the set while the daemon was away",
                    self.jails[at].spec.name,
                    shown(hole)
                );
                self.log(Level::Warn, text);
                lifted += usize::from(!cut.is_empty());
            }
            let running = &self.jails[at];
            for (set, all) in [&running.spec.set_net4, &running.spec.set_net6].into_iter().zip(all) {
                if !running.jail.cover().is_empty() {
                    let to = Target::Held { lasting: Lasting::Permanent, until: None };
                    self.pending.changes.push(Change { set: set.clone(), what: all, to });
                }
            }
        }
        lifted
    }

    /// Whether every piece of a set of subnets is among `removed`, by first address: how many bans that flushed, if so.
    pub(super) fn flushed_nets(&self, now: Now, set: &str, removed: &HashSet<IpAddr>) -> Option<usize> {
        let running = self.jails.iter().find(|running| running.spec.is_net_set(set))?;
        // The kernel may have ended it already.
        let pieces = running.jail.cover().pieces(now.mono + Span::from_secs(2));
        let mut all = pieces.filter(|piece| *net_set(&running.spec, piece) == *set).peekable();
        all.peek()?;
        let bans = running.jail.bans().filter(|(net, _)| *running.spec.set(*net) == *set).count();
        all.all(|piece| removed.contains(&piece.first)).then_some(bans)
    }

    /// Somebody took a stretch out of a set of subnets: it is cut out of the bans that covered it. Tells what was let in, for people.
    pub(super) fn removed_net(&mut self, now: Now, at: usize, stretch: Interval) -> Vec<IpNetwork> {
        let running = &mut self.jails[at];
        running.jail.cover_mut().gone(stretch.first(), stretch.last());
        let set = if stretch.first().is_ipv4() { running.spec.set_net4.clone() } else { running.spec.set_net6.clone() };
        let mut let_in = Vec::new();
        for hole in cover::networks(stretch.first(), stretch.last()) {
            let jail = &mut self.jails[at].jail;
            let mut touched: Vec<IpNetwork> = jail.within(hole).into_iter().filter(|net| jail.is_net(*net)).collect();
            touched.retain(|net| jail.lift(*net).is_some());
            let (cut, left) = jail.cut(hole);
            if touched.is_empty() && cut.is_empty() {
                continue;
            }
            let_in.push(hole);
            for net in touched.into_iter().chain(cut.into_iter().map(|(net, _)| net)) {
                self.keep.ban(now, &self.jails[at].key, net);
            }
            for net in left {
                let Some(held) = self.jails[at].jail.held(net).cloned() else { continue };
                self.want(now, at, net, &held, Effect::Log(Level::Debug, format!("{} stays banned", shown(net))));
            }
        }
        // What is left may be laid out otherwise now.
        self.pending.changes.push(Change { set, what: stretch, to: Target::Gone });
        let_in
    }

    /// Every set is about to be filled with what is held.
    pub fn refill(&mut self) {
        self.jails.iter_mut().for_each(|running| running.jail.cover_mut().refill());
    }
}
