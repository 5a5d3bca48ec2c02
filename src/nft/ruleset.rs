//! The table a configuration wants, as a value.
//!
//! [`Plan`] says which jails there are and where they bite; [`Ruleset::of`] turns it into sets, base chains and rules;
//! [`Ruleset::text`] prints them as nft(8) lists them. Nothing here touches the kernel: [`super::Transaction::establish`]
//! compares a ruleset with what the kernel holds and makes the two equal.
//!
//! A rule is a list of typed [`Statement`]s, each the equal of a piece of nft text. What this program does not write itself
//! is read back as [`Statement::Foreign`] and so never compares equal to anything wanted.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::element::{Counter, Interval, Key, merge};
use crate::terms::{Blocktype, Family, Hook, Ports, Protocol, Protocols, Span, is_nft_keyword, priority_text};

/// The version of the shape of our tables, kept in the table's comment as `banset 1`.
pub const VERSION: u32 = 1;

/// Up to this many jails at a hook each has its rule there, which a person can read from top to bottom. Each costs a packet 50 to
/// 70 ns that is for one of its ports: above, the port is looked up once, and only the jails that guard it are asked.
pub const PLAIN: usize = 10;

/// A jail with more ports than this (ranges counted port by port) keeps its plain rule where ports are looked up.
const LISTED: usize = 64;

/// What the engine wants of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The family of the table.
    pub family: Family,
    /// Its name.
    pub table: String,
    /// Whether there are sets and rules for IPv6.
    pub ipv6: bool,
    /// The most elements a ban set may hold; `None` leaves it to the kernel's memory.
    pub set_size: Option<u32>,
    /// Whether each element counts its packets.
    pub element_counters: bool,
    /// How often the kernel frees expired elements; `None` leaves it at its default of one second, which costs 5 % of a core at
    /// a million elements where ten seconds cost half a percent.
    pub gc_interval: Option<Span>,
    /// What no jail blocks.
    pub ignore: Vec<IpNetwork>,
    /// Hooks at which the kernel can only drop in this family ([`super::Socket::allows`]).
    pub only_drop: Vec<Hook>,
    /// The jails.
    pub jails: Vec<JailPlan>,
}

/// What the engine wants of one jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailPlan {
    /// Its name, which its sets begin with.
    pub name: String,
    /// The ports it guards.
    pub ports: Ports,
    /// The protocols it guards.
    pub protocols: Protocols,
    /// Where its rules hang, and the priority of the chain there.
    pub hooks: Vec<(Hook, i32)>,
    /// What happens to packets of a banned address.
    pub blocktype: Blocktype,
    /// The prefix by which IPv4 addresses are banned, 1 to 32.
    pub ipv4_prefix: u8,
    /// The prefix by which IPv6 addresses are banned, 1 to 128.
    pub ipv6_prefix: u8,
    /// What this jail does not block, besides [`Plan::ignore`].
    pub ignore: Vec<IpNetwork>,
    /// Whether a connection whose destination was translated (DNAT) is matched by the port its client knows, too. Such a rule switches
    /// connection tracking on for the whole network namespace.
    pub dnat: bool,
    /// Whether it bans subnets too, in `JAIL-net4` and `JAIL-net6`.
    pub nets: bool,
    /// Whether its rules are out while its sets stay.
    pub paused: bool,
}

/// Why a plan can not become a table that nft(8) could list and load again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The table's name is not a name in nft's language.
    Table(String),
    /// A jail's name is not a name in nft's language, or longer than 200 bytes.
    Jail(String),
    /// Two jails, or a jail and an ignore list, would own the same set.
    Set(String),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Table(name) => write!(f, "table name {name:?} is not a name that nft can load again"),
            Unfit::Jail(name) => write!(f, "jail name {name:?} can not begin the name of a set"),
            Unfit::Set(name) => write!(f, "two owners of set {name}: rename one of the jails"),
        }
    }
}

impl std::error::Error for Unfit {}

/// A table: what we want, or what the kernel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// The family.
    pub family: Family,
    /// The name.
    pub table: String,
    /// The comment, which holds the version mark.
    pub comment: Option<String>,
    /// Whether it belongs to the socket that commits it and outlives that (Linux 6.9, [`super::Features::owner`]): nobody else can
    /// change it then. Not part of the text: nft 1.0.6 knows only half of it.
    pub owner: bool,
    /// The sets of addresses, in the order they are listed.
    pub sets: Vec<Set>,
    /// The sets of ports, listed after them.
    pub ports: Vec<PortSet>,
    /// The maps, listed after those.
    pub maps: Vec<Map>,
    /// The chains, in the order they are listed.
    pub chains: Vec<Chain>,
}

/// A named set of ports: `type inet_service`. Named, because what `ct original proto-dst` is compared with in braces lists as a text
/// that does not load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSet {
    /// The name.
    pub name: String,
    /// Inclusive ranges: sorted, disjoint, at least one. `flags interval` if any is longer than one port.
    pub ports: Vec<(u16, u16)>,
}

/// A verdict map from protocol and port to the chain that is asked then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// The name.
    pub name: String,
    /// `tcp . 25 : jump CHAIN` in the order of [`Jump::order`], none twice.
    pub jumps: Vec<Jump>,
}

/// An element of a [`Map`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Jump {
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// The chain.
    pub chain: String,
}

/// A named set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The name.
    pub name: String,
    /// What its elements are.
    pub key: Key,
    /// `flags interval`: elements are stretches of addresses.
    pub interval: bool,
    /// `flags timeout`: elements may end by themselves.
    pub timeout: bool,
    /// `size`
    pub size: Option<u32>,
    /// `counter`: each element counts.
    pub counter: bool,
    /// `gc-interval`
    pub gc_interval: Option<Span>,
    /// `comment`
    pub comment: Option<String>,
    /// Who decides about the elements.
    pub content: Content,
}

/// Who decides about the elements of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The engine and the clock: bans come and go.
    Bans,
    /// The ruleset: exactly these, sorted and disjoint.
    Exactly(Vec<Interval>),
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The name.
    pub name: String,
    /// Where it hangs and at which priority: a base chain of type filter with policy accept. `None`: rules jump there.
    pub base: Option<(Hook, i32)>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Rule {
    /// What it tests and does, in order.
    pub statements: Vec<Statement>,
}

/// A piece of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Statement {
    /// `meta l4proto { tcp, udp }`: sorted by number, none twice, at least one.
    L4proto(Vec<Protocol>),
    /// `th dport { 25, 465 }`: sorted, disjoint, at least one; after a single protocol `tcp dport`.
    Dport(Vec<(u16, u16)>),
    /// `ip saddr @sshd-v4`
    Address {
        /// Which header.
        key: Key,
        /// `daddr` instead of `saddr`.
        destination: bool,
        /// The bits of the address that count, fewer than all: `ip6 saddr & ffff:ffff:ffff:ffff:: == @sshd-v6`.
        prefix: Option<u8>,
        /// `!=`: the address is not in the set.
        inverted: bool,
        /// The name of the set.
        set: String,
    },
    /// `meta l4proto . th dport vmap @dispatch-input`
    Dispatch(String),
    /// `ct status dnat`: the destination of the connection was translated.
    Translated,
    /// `ct original proto-dst @smtp-ports`: the port its client knows.
    OriginalDport(String),
    /// `jump input-dnat`
    Jump(String),
    /// `counter`; what it has counted is state, not part of the rule.
    Counter,
    /// `drop`
    Drop,
    /// `reject with …`
    Reject(Reject),
    /// Something only others write, by the name of the kernel's expression.
    Foreign(String),
}

/// What a rejected packet's sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// `tcp reset`
    TcpReset,
    /// `icmp port-unreachable` in a rule about IPv4, `icmpv6 port-unreachable` in one about IPv6. Not `icmpx`, although one word would
    /// do for both: nft 1.0.6 lists it as a bare `reject`, and reads that back as another rule.
    PortUnreachable(Key),
}

impl Ruleset {
    /// The table this plan asks for.
    pub fn of(plan: &Plan) -> Result<Ruleset, Unfit> {
        if !is_name(&plan.table) || is_nft_keyword(&plan.table) || plan.table.len() > 200 {
            return Err(Unfit::Table(plan.table.clone()));
        }
        let mut sets = Vec::new();
        let keys: &[Key] = if plan.ipv6 { &[Key::V4, Key::V6] } else { &[Key::V4] };
        for key in keys {
            sets.push(ignore_set(format!("ignore-{}", suffix(*key)), *key, &plan.ignore));
        }
        let mut bases: Vec<Base<'_>> = Vec::new();
        let mut ports = Vec::new();
        for jail in &plan.jails {
            if !is_name(&jail.name) || jail.name.contains('.') || jail.name.len() > 200 {
                return Err(Unfit::Jail(jail.name.clone()));
            }
            sets.extend(keys.iter().flat_map(|key| jail_sets(plan, jail, *key)));
            for (hook, priority) in &jail.hooks {
                base_at(&mut bases, *hook, *priority).jails.push(jail);
            }
            if let Ports::List(list) = &jail.ports
                && jail.hooks.iter().any(|(hook, priority)| translates(plan, jail, *hook, *priority))
            {
                ports.push(PortSet { name: port_set_name(&jail.name), ports: list.clone() });
            }
        }
        let mut maps = Vec::new();
        let mut chains = Vec::new();
        for base in &bases {
            let (added, map) = base.chains(plan, keys);
            chains.extend(added);
            maps.extend(map);
        }
        let mut seen = HashSet::new();
        let names = sets.iter().map(|set: &Set| &set.name).chain(ports.iter().map(|set| &set.name));
        if let Some(twice) = names.chain(maps.iter().map(|map| &map.name)).find(|name| !seen.insert(name.as_str())) {
            return Err(Unfit::Set(twice.clone()));
        }
        let comment = Some(format!("banset {VERSION}"));
        Ok(Ruleset { family: plan.family, table: plan.table.clone(), comment, owner: false, sets, ports, maps, chains })
    }

    /// The names of its sets and maps.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        let sets = self.sets.iter().map(|set| &set.name);
        sets.chain(self.ports.iter().map(|set| &set.name)).chain(self.maps.iter().map(|map| &map.name))
    }

    /// The set of this name.
    pub fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// The set in which `jail` bans `what`: `JAIL-v4` or `JAIL-v6` for exactly as many bits as the jail bans by (IPv4's first),
    /// otherwise `JAIL-net4` or `JAIL-net6`. `None` if the table has no such set.
    pub fn ban_set(&self, jail: &str, prefixes: (u8, u8), what: IpNetwork) -> Option<&Set> {
        let whole = if what.is_ipv4() { prefixes.0 } else { prefixes.1 };
        self.set(&ban_set_name(jail, Interval::from(what).key(), what.prefix() != whole))
    }

    /// The version in the comment: of our own making, `Some`.
    pub fn version(&self) -> Option<u32> {
        self.comment.as_deref()?.strip_prefix("banset ")?.parse().ok()
    }

    /// What `nft -s list table` prints once this is committed and nobody is banned.
    pub fn text(&self) -> String {
        self.to_string()
    }

    /// The same with a comment above each part, for people; nft loads it, too.
    pub fn explained(&self) -> String {
        Explained(self).to_string()
    }
}

/// `sshd-v4`, `sshd-net6`.
pub fn ban_set_name(jail: &str, key: Key, net: bool) -> String {
    let digit = match key {
        Key::V4 => '4',
        Key::V6 => '6',
    };
    format!("{jail}-{}{digit}", if net { "net" } else { "v" })
}

/// The jail a ban set belongs to, by its name; `None` for other sets.
pub fn jail_of(set: &str) -> Option<&str> {
    let jail = ["-v4", "-v6", "-net4", "-net6"].iter().find_map(|end| set.strip_suffix(end))?;
    (jail != "ignore").then_some(jail)
}

const fn suffix(key: Key) -> &'static str {
    match key {
        Key::V4 => "v4",
        Key::V6 => "v6",
    }
}

fn ignore_set(name: String, key: Key, networks: &[IpNetwork]) -> Set {
    let intervals = networks.iter().map(|network| Interval::from(*network)).filter(|interval| interval.key() == key);
    let content = Content::Exactly(merge(intervals));
    Set { name, key, interval: true, timeout: false, size: None, counter: false, gc_interval: None, comment: None, content }
}

/// The sets of a jail for one kind of address, as they are listed.
fn jail_sets(plan: &Plan, jail: &JailPlan, key: Key) -> Vec<Set> {
    let comment = masked(jail, key).map(|prefix| format!("each entry stands for its /{prefix}"));
    let bans = Set {
        name: ban_set_name(&jail.name, key, false),
        key,
        interval: false,
        timeout: true,
        size: plan.set_size,
        counter: plan.element_counters,
        gc_interval: plan.gc_interval,
        comment,
        content: Content::Bans,
    };
    let mut sets = Vec::new();
    if jail.nets {
        let name = ban_set_name(&jail.name, key, true);
        sets.push(Set { name, interval: true, comment: None, ..bans.clone() });
    }
    sets.insert(0, bans);
    if has_own_ignore(jail, key) {
        sets.push(ignore_set(format!("{}-ignore-{}", jail.name, suffix(key)), key, &jail.ignore));
    }
    sets
}

fn has_own_ignore(jail: &JailPlan, key: Key) -> bool {
    jail.ignore.iter().any(|network| Interval::from(*network).key() == key)
}

/// The bits by which addresses are looked up, where that is fewer than all.
fn masked(jail: &JailPlan, key: Key) -> Option<u8> {
    let (prefix, all) = match key {
        Key::V4 => (jail.ipv4_prefix, 32),
        Key::V6 => (jail.ipv6_prefix, 128),
    };
    (prefix < all).then_some(prefix)
}

/// Whether a jail has a rule for translated connections at a hook: the plain rule sees the client's port where translation is yet to
/// come (before -100), where there is no connection yet, and on the way out there is no port of ours to compare.
fn translates(plan: &Plan, jail: &JailPlan, hook: Hook, priority: i32) -> bool {
    let after = match hook {
        Hook::Input | Hook::Forward => true,
        Hook::Prerouting => priority > DSTNAT,
        Hook::Output | Hook::Postrouting => false,
    };
    jail.dnat && after && plan.family == Family::Inet && matches!(jail.ports, Ports::List(_))
}

/// The priority at which destinations are translated (`NF_IP_PRI_NAT_DST`).
const DSTNAT: i32 = -100;

fn port_set_name(jail: &str) -> String {
    format!("{jail}-ports")
}

/// A base chain to be, and the jails that hang there.
struct Base<'a> {
    name: String,
    hook: Hook,
    priority: i32,
    jails: Vec<&'a JailPlan>,
}

/// The base chain at this hook and priority, made if missing. The first of a hook bears its name, others add the priority, as `input-m300`.
fn base_at<'a, 'b>(bases: &'b mut Vec<Base<'a>>, hook: Hook, priority: i32) -> &'b mut Base<'a> {
    let at = bases.iter().position(|base| base.hook == hook && base.priority == priority).unwrap_or_else(|| {
        let name = if bases.iter().any(|base| base.hook == hook) {
            format!("{hook}-{}{}", if priority < 0 { 'm' } else { 'p' }, priority.unsigned_abs())
        } else {
            hook.name().to_owned()
        };
        bases.push(Base { name, hook, priority, jails: Vec::new() });
        bases.len() - 1
    });
    &mut bases[at]
}

/// How a rule comes to the packets of its jail's ports.
enum Reach<'a> {
    /// It tests protocol and port itself.
    Ports,
    /// It tests the port that the client of a translated connection knows; `bool`: and whether it was translated at all.
    Translated(bool),
    /// The packet came through a map, so that it is of one of these protocols, all of which the jail guards at this port.
    Mapped(&'a [Protocol]),
}

impl Base<'_> {
    /// The chain itself, those it sends packets to, and the map by which it does.
    fn chains(&self, plan: &Plan, keys: &[Key]) -> (Vec<Chain>, Option<Map>) {
        let Base { name, hook, priority, jails } = self;
        let mut chain = Chain { name: name.clone(), base: Some((*hook, *priority)), rules: Vec::new() };
        let rules = |jail: &JailPlan, reach: &Reach<'_>| -> Vec<Rule> {
            keys.iter().flat_map(|key| jail_rules(plan, jail, *hook, *key, reach)).collect()
        };
        let listed: Vec<Option<Vec<(u16, Protocol)>>> = jails.iter().map(|jail| listed_ports(jail)).collect();
        let active = |at: &usize| !jails[*at].paused;
        let translated = |at: &usize| translates(plan, jails[*at], *hook, *priority);
        // A pause changes nothing about the others: paused jails are counted.
        if listed.iter().flatten().count() <= PLAIN {
            for at in (0..jails.len()).filter(active) {
                chain.rules.extend(rules(jails[at], &Reach::Ports));
                if translated(&at) {
                    chain.rules.extend(rules(jails[at], &Reach::Translated(true)));
                }
            }
            return (vec![chain], None);
        }
        // Of each protocol and port, the jails that guard it; then a chain for each such group of jails.
        let mut asked: BTreeMap<(u16, u8), (Protocol, Vec<usize>)> = BTreeMap::new();
        for at in (0..jails.len()).filter(active) {
            for (port, protocol) in listed[at].iter().flatten() {
                asked.entry((*port, protocol.number())).or_insert((*protocol, Vec::new())).1.push(at);
            }
        }
        let mut groups: Vec<(String, Vec<usize>, Vec<Protocol>)> = Vec::new();
        let mut jumps = Vec::new();
        for ((port, _), (protocol, guards)) in asked {
            let at = groups.iter().position(|(_, other, _)| *other == guards).unwrap_or_else(|| {
                // Named by its lowest port: the other protocols of that port may be another group's.
                let mut own = format!("{name}-{port}");
                if groups.iter().any(|(other, ..)| *other == own) {
                    own = format!("{own}-{}", protocol.name());
                }
                groups.push((own, guards, Vec::new()));
                groups.len() - 1
            });
            let (own, _, protocols) = &mut groups[at];
            if !protocols.contains(&protocol) {
                protocols.push(protocol);
            }
            jumps.push(Jump { protocol, port, chain: own.clone() });
        }
        for at in (0..jails.len()).filter(|at| active(at) && listed[*at].is_none()) {
            chain.rules.extend(rules(jails[at], &Reach::Ports));
        }
        jumps.sort_by_key(Jump::order);
        let map = Map { name: format!("dispatch-{name}"), jumps };
        chain.rules.push(Rule { statements: vec![Statement::Dispatch(map.name.clone())] });
        let mut chains = Vec::new();
        for (own, guards, protocols) in groups {
            let rules = guards.iter().flat_map(|at| rules(jails[*at], &Reach::Mapped(&protocols))).collect();
            chains.push(Chain { name: own, base: None, rules });
        }
        let translated: Vec<Rule> = (0..jails.len())
            .filter(|at| active(at) && translated(at))
            .flat_map(|at| rules(jails[at], &Reach::Translated(false)))
            .collect();
        if !translated.is_empty() {
            let own = format!("{name}-dnat");
            chain.rules.push(Rule { statements: vec![Statement::Translated, Statement::Jump(own.clone())] });
            chains.push(Chain { name: own, base: None, rules: translated });
        }
        chains.insert(0, chain);
        (chains, Some(map))
    }
}

/// Each protocol and port that a jail guards, where these are few enough to be listed one by one.
fn listed_ports(jail: &JailPlan) -> Option<Vec<(u16, Protocol)>> {
    let Ports::List(ranges) = &jail.ports else { return None };
    let ports: usize = ranges.iter().map(|(first, last)| usize::from(last - first) + 1).sum();
    let protocols = guarded(jail)?;
    (ports <= LISTED).then(|| {
        let ports = ranges.iter().flat_map(|(first, last)| *first..=*last);
        ports.flat_map(|port| protocols.iter().map(move |protocol| (port, *protocol))).collect()
    })
}

/// The protocols a jail guards, by number; `None`: whatever comes. Ports without protocols mean every protocol that has ports: at
/// the same place an ICMP message has its checksum.
fn guarded(jail: &JailPlan) -> Option<Vec<Protocol>> {
    let mut list = match (&jail.protocols, &jail.ports) {
        (Protocols::List(list), _) => list.clone(),
        (Protocols::All, Ports::List(_)) => Protocol::ALL.to_vec(),
        (Protocols::All, Ports::All) => return None,
    };
    list.sort_by_key(|protocol| protocol.number());
    list.dedup();
    Some(list)
}

/// The rules of a jail at one hook for one kind of address.
fn jail_rules(plan: &Plan, jail: &JailPlan, hook: Hook, key: Key, reach: &Reach<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut sets = vec![(ban_set_name(&jail.name, key, false), masked(jail, key))];
    if jail.nets {
        sets.push((ban_set_name(&jail.name, key, true), None));
    }
    // The kernel has no reject after routing (nft_reject_inet_validate).
    let rejects = jail.blocktype == Blocktype::Reject && hook != Hook::Postrouting && !plan.only_drop.contains(&hook);
    let protocols = match reach {
        Reach::Mapped(protocols) => Some(protocols.to_vec()),
        _ => guarded(jail),
    };
    for (set, prefix) in sets {
        let verdicts = verdicts(protocols.clone(), rejects, key);
        for (protocols, verdict) in verdicts {
            let mut statements = Vec::new();
            if matches!(reach, Reach::Translated(true)) {
                statements.push(Statement::Translated);
            }
            match (reach, protocols) {
                // The map has said it, but nft knows a reset only behind this.
                (Reach::Mapped(_), Some(protocols)) if verdict == Statement::Reject(Reject::TcpReset) => {
                    statements.push(Statement::L4proto(protocols));
                }
                (Reach::Mapped(_), _) | (_, None) => {}
                (_, Some(protocols)) => statements.push(Statement::L4proto(protocols)),
            }
            match (reach, &jail.ports) {
                (Reach::Ports, Ports::List(ports)) => statements.push(Statement::Dport(ports.clone())),
                (Reach::Translated(_), _) => statements.push(Statement::OriginalDport(port_set_name(&jail.name))),
                _ => {}
            }
            let destination = hook.matches_destination();
            let address = |set: String, prefix, inverted| Statement::Address { key, destination, prefix, inverted, set };
            statements.push(address(set.clone(), prefix, false));
            statements.push(address(format!("ignore-{}", suffix(key)), None, true));
            if has_own_ignore(jail, key) {
                statements.push(address(format!("{}-ignore-{}", jail.name, suffix(key)), None, true));
            }
            statements.push(Statement::Counter);
            statements.push(verdict);
            rules.push(Rule { statements });
        }
    }
    rules
}

/// What is done to which protocols (`None`: all of them), in the order of the rules.
fn verdicts(protocols: Option<Vec<Protocol>>, rejects: bool, key: Key) -> Vec<(Option<Vec<Protocol>>, Statement)> {
    if !rejects {
        return vec![(protocols, Statement::Drop)];
    }
    let reset = (Some(vec![Protocol::Tcp]), Statement::Reject(Reject::TcpReset));
    let unreachable = |others| (others, Statement::Reject(Reject::PortUnreachable(key)));
    match protocols {
        None => vec![reset, unreachable(None)],
        Some(list) if list == [Protocol::Tcp] => vec![reset],
        Some(list) if !list.contains(&Protocol::Tcp) => vec![unreachable(Some(list))],
        Some(mut list) => {
            list.retain(|protocol| *protocol != Protocol::Tcp);
            vec![reset, unreachable(Some(list))]
        }
    }
}

impl Rule {
    /// The jail whose bans it enforces: that of the first set it looks an address up in.
    pub fn jail(&self) -> Option<&str> {
        self.ban_set().and_then(jail_of)
    }

    /// The set whose elements it blocks.
    pub fn ban_set(&self) -> Option<&str> {
        self.statements.iter().find_map(|statement| match statement {
            Statement::Address { set, inverted: false, .. } => Some(set.as_str()),
            _ => None,
        })
    }

    /// Whether it looks anything up in the set or map of this name.
    pub fn uses(&self, name: &str) -> bool {
        self.statements.iter().any(|statement| match statement {
            Statement::Address { set, .. } | Statement::OriginalDport(set) | Statement::Dispatch(set) => set == name,
            _ => false,
        })
    }
}

/// A rule together with what its counter has counted, if it has one.
pub(crate) type Counted = (Rule, Option<Counter>);

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

/// A ruleset with comments.
struct Explained<'a>(&'a Ruleset);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, true)
    }
}

impl Ruleset {
    fn write(&self, f: &mut fmt::Formatter<'_>, explained: bool) -> fmt::Result {
        let said = |f: &mut fmt::Formatter<'_>, indent: &str, text: String| match explained {
            true => writeln!(f, "{indent}# {text}"),
            false => Ok(()),
        };
        writeln!(f, "table {} {} {{", self.family, self.table)?;
        if let Some(comment) = &self.comment {
            writeln!(f, "\tcomment \"{comment}\"")?;
        }
        let mut blank = "";
        for set in &self.sets {
            f.write_str(blank)?;
            said(f, "\t", set_explained(&set.name))?;
            write!(f, "{set}")?;
            blank = "\n";
        }
        for set in &self.ports {
            f.write_str(blank)?;
            said(f, "\t", "the ports as clients of translated connections know them".to_owned())?;
            write!(f, "{set}")?;
            blank = "\n";
        }
        for map in &self.maps {
            f.write_str(blank)?;
            said(f, "\t", "who guards a port: looked up once a packet, however many jails there are".to_owned())?;
            write!(f, "{map}")?;
            blank = "\n";
        }
        for chain in &self.chains {
            f.write_str(blank)?;
            said(f, "\t", self.chain_explained(chain))?;
            writeln!(f, "\tchain {} {{", chain.name)?;
            if let Some(head) = chain.head(self.family) {
                writeln!(f, "\t\t{head}")?;
            }
            let mut about = String::new();
            for rule in &chain.rules {
                let now = rule_explained(rule);
                if now != about {
                    said(f, "\t\t", now.clone())?;
                    about = now;
                }
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
            blank = "\n";
        }
        writeln!(f, "}}")
    }

    fn chain_explained(&self, chain: &Chain) -> String {
        let Some((hook, _)) = chain.base else {
            let leads = |jump: &&Jump| jump.chain == chain.name;
            let mut ports: Vec<u16> = self.maps.iter().flat_map(|map| &map.jumps).filter(leads).map(|jump| jump.port).collect();
            ports.sort_unstable();
            ports.dedup();
            let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            return match ports.as_str() {
                "" => "connections whose destination was translated".to_owned(),
                ports => format!("ports {ports}, for the protocols that lead here"),
            };
        };
        let what = match self.family {
            Family::Inet => "packets",
            Family::Bridge => "frames",
        };
        match hook {
            Hook::Prerouting => format!("{what} as they come in, before it is known where they go"),
            Hook::Input => format!("{what} for this machine"),
            Hook::Forward => format!("{what} that are passed on to others"),
            Hook::Output => format!("{what} from this machine: the destination counts"),
            Hook::Postrouting => format!("{what} as they leave: the destination counts"),
        }
    }
}

fn set_explained(name: &str) -> String {
    let Some(jail) = jail_of(name) else { return "no jail blocks these: ignoreip, own addresses, gateways".to_owned() };
    if let Some(jail) = jail.strip_suffix("-ignore") {
        return format!("[{jail}] does not block these");
    }
    let what = if name.ends_with("-net4") || name.ends_with("-net6") { "subnets" } else { "addresses" };
    format!("[{jail}] banned {what}, each until its timeout ends")
}

fn rule_explained(rule: &Rule) -> String {
    match (rule.jail(), rule.statements.as_slice()) {
        (Some(jail), _) => format!("[{jail}]"),
        (None, [Statement::Dispatch(_), ..]) => "on to the jails that guard the port".to_owned(),
        (None, _) => "published ports".to_owned(),
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tset {} {{", self.name)?;
        for line in self.properties() {
            writeln!(f, "\t\t{line}")?;
        }
        if let Content::Exactly(intervals) = &self.content
            && !intervals.is_empty()
        {
            f.write_str("\t\telements = { ")?;
            // nft puts two IPv4 elements on a line, of IPv6 one.
            let per_line = if self.key == Key::V4 { 2 } else { 1 };
            for (n, interval) in intervals.iter().enumerate() {
                match n {
                    0 => {}
                    n if n % per_line == 0 => f.write_str(",\n\t\t\t     ")?,
                    _ => f.write_str(", ")?,
                }
                interval.fmt(f)?;
            }
            f.write_str(" }\n")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Set {
    /// What stands between its braces, line by line, elements apart.
    pub(crate) fn properties(&self) -> Vec<String> {
        let mut lines = vec![format!("type {}", self.key.name())];
        lines.extend(self.size.map(|size| format!("size {size}")));
        match (self.interval, self.timeout) {
            (true, true) => lines.push("flags interval,timeout".to_owned()),
            (true, false) => lines.push("flags interval".to_owned()),
            (false, true) => lines.push("flags timeout".to_owned()),
            (false, false) => {}
        }
        if self.counter {
            lines.push("counter".to_owned());
        }
        lines.extend(self.gc_interval.map(|span| format!("gc-interval {span}")));
        lines.extend(self.comment.as_ref().map(|comment| format!("comment \"{comment}\"")));
        lines
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tset {} {{", self.name)?;
        for line in self.properties() {
            writeln!(f, "\t\t{line}")?;
        }
        f.write_str("\t\telements = { ")?;
        for (n, ports) in self.ports.iter().enumerate() {
            match n {
                0 => {}
                n if n % 5 == 0 => f.write_str(",\n\t\t\t     ")?,
                _ => f.write_str(", ")?,
            }
            f.write_str(&port_text(ports))?;
        }
        f.write_str(" }\n\t}\n")
    }
}

impl PortSet {
    /// Whether it has ranges.
    pub(crate) fn interval(&self) -> bool {
        self.ports.iter().any(|(first, last)| first != last)
    }

    /// What stands between its braces, elements apart.
    pub(crate) fn properties(&self) -> Vec<&'static str> {
        let mut lines = vec!["type inet_service"];
        if self.interval() {
            lines.push("flags interval");
        }
        lines
    }
}

impl Map {
    /// What stands between its braces, elements apart.
    pub(crate) const PROPERTIES: &'static str = "type inet_proto . inet_service : verdict";
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tmap {} {{\n\t\t{}", self.name, Map::PROPERTIES)?;
        for (n, jump) in self.jumps.iter().enumerate() {
            write!(f, "{}{jump}", if n == 0 { "\t\telements = { " } else { ",\n\t\t\t     " })?;
        }
        if !self.jumps.is_empty() {
            f.write_str(" }\n")?;
        }
        f.write_str("\t}\n")
    }
}

impl Jump {
    /// The order in which nft lists them: by the port's bytes read the way this machine reads numbers, then by the protocol's number.
    pub(crate) fn order(&self) -> (u16, u8) {
        (u16::from_ne_bytes(self.port.to_be_bytes()), self.protocol.number())
    }
}

/// As nft lists it: `tcp . 25 : jump input-25`.
impl fmt::Display for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {} : jump {}", self.protocol.name(), self.port, self.chain)
    }
}

impl Chain {
    /// `type filter hook input priority filter - 10; policy accept;`
    pub(crate) fn head(&self, family: Family) -> Option<String> {
        let (hook, priority) = self.base?;
        Some(format!("type filter hook {hook} priority {}; policy accept;", priority_text(family, hook, priority)))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut header = "th";
        let mut text = String::new();
        for (n, statement) in self.statements.iter().enumerate() {
            let dport_follows = matches!(self.statements.get(n + 1), Some(Statement::Dport(_)));
            match statement {
                // A single protocol is only said by the header its port is in.
                Statement::L4proto(list) if list.len() == 1 && dport_follows => {
                    header = list[0].name();
                    continue;
                }
                Statement::Dport(ports) => write!(text, "{header} dport {}", listed(ports.iter().map(port_text)))?,
                other => write!(text, "{other}")?,
            }
            text.push(' ');
        }
        f.write_str(text.trim_end())
    }
}

/// As nft lists it where it stands alone.
impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Statement::L4proto(list) => write!(f, "meta l4proto {}", listed(list.iter().map(|p| p.name().to_owned()))),
            Statement::Dport(ports) => write!(f, "th dport {}", listed(ports.iter().map(port_text))),
            Statement::Address { key, destination, prefix, inverted, set } => {
                write!(f, "{} {}", key.header(), if *destination { "daddr" } else { "saddr" })?;
                if let Some(prefix) = prefix {
                    write!(f, " & {} ==", mask(*key, *prefix))?;
                }
                write!(f, "{} @{set}", if *inverted { " !=" } else { "" })
            }
            Statement::Dispatch(map) => write!(f, "meta l4proto . th dport vmap @{map}"),
            Statement::Translated => f.write_str("ct status dnat"),
            Statement::OriginalDport(set) => write!(f, "ct original proto-dst @{set}"),
            Statement::Jump(chain) => write!(f, "jump {chain}"),
            Statement::Counter => f.write_str("counter"),
            Statement::Drop => f.write_str("drop"),
            Statement::Reject(Reject::TcpReset) => f.write_str("reject with tcp reset"),
            Statement::Reject(Reject::PortUnreachable(Key::V4)) => f.write_str("reject with icmp port-unreachable"),
            Statement::Reject(Reject::PortUnreachable(Key::V6)) => f.write_str("reject with icmpv6 port-unreachable"),
            Statement::Foreign(name) => write!(f, "({name})"),
        }
    }
}

/// The mask of a prefix as an address.
pub(crate) fn mask(key: Key, prefix: u8) -> IpAddr {
    match key {
        Key::V4 => Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)).into(),
        Key::V6 => Ipv6Addr::from_bits(u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0)).into(),
    }
}

pub(crate) fn port_text((first, last): &(u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// `25` for one, `{ 25, 465 }` for more.
fn listed(items: impl ExactSizeIterator<Item = String>) -> String {
    let one = items.len() == 1;
    let list = items.collect::<Vec<_>>().join(", ");
    if one { list } else { format!("{{ {list} }}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn jail(name: &str) -> JailPlan {
        JailPlan {
            name: name.to_owned(),
            ports: Ports::List(vec![(25, 25), (465, 465), (587, 587)]),
            protocols: Protocols::List(vec![Protocol::Tcp, Protocol::Udp, Protocol::Udplite, Protocol::Sctp]),
            hooks: vec![(Hook::Input, -10)],
            blocktype: Blocktype::Drop,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            ignore: Vec::new(),
            dnat: false,
            nets: false,
            paused: false,
        }
    }

    fn plan(jails: Vec<JailPlan>) -> Plan {
        Plan {
            family: Family::Inet,
            table: "banset".to_owned(),
            ipv6: true,
            set_size: None,
            element_counters: false,
            gc_interval: None,
            ignore: Vec::new(),
            only_drop: Vec::new(),
            jails,
        }
    }

    /// The rules of one jail, changed by `change`, joined by ` | `.
    fn rules(change: impl FnOnce(&mut JailPlan)) -> String {
        let mut one = jail("sshd");
        change(&mut one);
        let mut plan = plan(vec![one]);
        plan.ipv6 = false;
        let ruleset = Ruleset::of(&plan).unwrap();
        ruleset.chains.iter().flat_map(|chain| &chain.rules).map(Rule::to_string).collect::<Vec<_>>().join(" | ")
    }

    #[test]
    fn rules_read_as_nft_lists_them() {
        let tcp = Protocols::List(vec![Protocol::Tcp]);
        let ssh = Ports::List(vec![(22, 22)]);
        let end = "ip saddr @sshd-v4 ip saddr != @ignore-v4 counter";
        assert_eq!(rules(|_| {}), format!("meta l4proto {{ tcp, udp, sctp, udplite }} th dport {{ 25, 465, 587 }} {end} drop"));
        assert_eq!(rules(|j| (j.protocols, j.ports) = (tcp.clone(), ssh.clone())), format!("tcp dport 22 {end} drop"));
        assert_eq!(rules(|j| (j.protocols, j.ports) = (tcp.clone(), Ports::All)), format!("meta l4proto tcp {end} drop"));
        assert_eq!(rules(|j| (j.protocols, j.ports) = (Protocols::All, Ports::All)), format!("{end} drop"));
        assert_eq!(
            rules(|j| (j.protocols, j.ports) = (Protocols::All, Ports::List(vec![(1, 1024)]))),
            format!("meta l4proto {{ tcp, udp, dccp, sctp, udplite }} th dport 1-1024 {end} drop")
        );
        assert_eq!(
            rules(|j| (j.protocols, j.ports, j.blocktype) = (Protocols::All, Ports::All, Blocktype::Reject)),
            format!("meta l4proto tcp {end} reject with tcp reset | {end} reject with icmp port-unreachable")
        );
        assert_eq!(
            rules(|j| (j.ports, j.blocktype) = (ssh.clone(), Blocktype::Reject)),
            format!(
                "tcp dport 22 {end} reject with tcp reset | \
                 meta l4proto {{ udp, sctp, udplite }} th dport 22 {end} reject with icmp port-unreachable"
            )
        );
        assert_eq!(
            rules(|j| (j.protocols, j.ports, j.hooks) = (Protocols::All, Ports::All, vec![(Hook::Output, 0)])),
            "ip daddr @sshd-v4 ip daddr != @ignore-v4 counter drop"
        );
        assert_eq!(rules(|j| j.paused = true), "");
        assert_eq!(
            rules(|j| (j.protocols, j.ports, j.ipv4_prefix) = (Protocols::All, Ports::All, 24)),
            "ip saddr & 255.255.255.0 == @sshd-v4 ip saddr != @ignore-v4 counter drop"
        );
        assert_eq!(
            rules(|j| {
                (j.protocols, j.ports, j.nets) = (tcp.clone(), ssh.clone(), true);
                j.ignore = vec!["192.0.2.0/24".parse().unwrap()];
            }),
            "tcp dport 22 ip saddr @sshd-v4 ip saddr != @ignore-v4 ip saddr != @sshd-ignore-v4 counter drop | \
             tcp dport 22 ip saddr @sshd-net4 ip saddr != @ignore-v4 ip saddr != @sshd-ignore-v4 counter drop"
        );
    }

    #[test]
    fn names_that_nft_could_not_load_are_refused() {
        for table in ["", "1abc", "ip", "drop", "a b", "ü", "a;b"] {
            let mut plan = plan(vec![]);
            plan.table = table.to_owned();
            assert_eq!(Ruleset::of(&plan), Err(Unfit::Table(table.to_owned())));
        }
        for name in ["", "4x", "a b", "a.b", &"x".repeat(201)] {
            assert_eq!(Ruleset::of(&plan(vec![jail(name)])), Err(Unfit::Jail(name.to_owned())));
        }
        assert_eq!(Ruleset::of(&plan(vec![jail("ignore")])), Err(Unfit::Set("ignore-v4".to_owned())));
        let mut own = jail("x");
        own.ignore = vec!["192.0.2.1".parse().unwrap()];
        assert_eq!(Ruleset::of(&plan(vec![own, jail("x-ignore")])), Err(Unfit::Set("x-ignore-v4".to_owned())));
    }

    #[test]
    fn bans_go_where_they_belong() {
        let mut one = jail("sshd");
        one.nets = true;
        let ruleset = Ruleset::of(&plan(vec![one, jail("web")])).unwrap();
        let table = [
            ("sshd", "192.0.2.7", Some("sshd-v4")),
            ("sshd", "192.0.2.0/24", Some("sshd-net4")),
            ("sshd", "2001:db8::/64", Some("sshd-v6")),
            ("sshd", "2001:db8::1", Some("sshd-net6")),
            ("sshd", "2001:db8::/48", Some("sshd-net6")),
            ("web", "192.0.2.0/24", None),
            ("none", "192.0.2.7", None),
        ];
        for (jail, what, set) in table {
            let found = ruleset.ban_set(jail, (32, 64), what.parse().unwrap());
            assert_eq!(found.map(|set| set.name.as_str()), set, "{jail} {what}");
        }
        assert_eq!((jail_of("sshd-v4"), jail_of("a-b-net6"), jail_of("ignore-v4")), (Some("sshd"), Some("a-b"), None));
    }
}
