//! What is to change, as a value: statements in nft's language that the kernel takes or refuses as a whole.
//!
//! [`Transaction::establish`] is the one way our table comes to be: it compares the wanted [`Ruleset`] with what the kernel
//! holds and lists the least statements that make them equal; none if they are. There is no moment in between for a packet to
//! pass: a set with other flags, or a chain at another priority, is deleted, made and filled again in the same transaction.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::element::{Counter, Element, Interval};
use super::expression::{write_counter, write_jumps, write_map, write_port_set, write_rule};
use super::features::Features;
use super::kernel::{KernelChain, KernelTable};
use super::message::{Batch, attr, kind, number};
use super::ruleset::{Chain, Content, Counted, Map, PortSet, Rule, Ruleset, Set, VERSION, port_text};
use crate::terms::{Family, Hook, Span};

/// Bans beyond this many of one establishment follow in batches of their own, newest first.
pub const AT_ONCE: usize = 100_000;

/// Statements about the tables of one name, committed together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    family: Family,
    table: String,
    statements: Vec<Change>,
    /// For each statement, the family whose table it is about.
    families: Vec<Family>,
    generation: Option<u32>,
}

/// One statement of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `add table`
    AddTable {
        /// Its comment.
        comment: Option<String>,
        /// Whether it belongs to the socket that commits this; on a table that lost its owner, taking it over.
        owner: bool,
    },
    /// `delete table`, with all that is in it.
    DeleteTable,
    /// `add set`, without elements.
    AddSet(Set),
    /// `add set` of ports, with its elements.
    AddPorts(PortSet),
    /// `add map` of this name, without elements.
    AddMap(String),
    /// `add element` of a map: the chains it sends packets to are there by now.
    FillMap(Map),
    /// `delete set`, or a map.
    DeleteSet(String),
    /// `add chain`, without rules.
    AddChain {
        /// Its name.
        name: String,
        /// Where it hangs and at which priority; `None`: nowhere, rules jump there.
        base: Option<(Hook, i32)>,
    },
    /// `delete chain`
    DeleteChain(String),
    /// `flush chain`: every rule in it.
    FlushChain(String),
    /// `add rule` at the end, or `insert rule` before another.
    AddRule {
        /// The chain.
        chain: String,
        /// The handle of the rule it goes before.
        before: Option<u64>,
        /// The rule.
        rule: Rule,
        /// What its counter begins with.
        counted: Counter,
    },
    /// `delete rule`
    DeleteRule {
        /// The chain.
        chain: String,
        /// The handle.
        handle: u64,
    },
    /// `add element`: afterwards each is there with this timeout, whether it was before or not.
    AddElements(Elements),
    /// `destroy element`: afterwards none is there, whether it was before or not. Of a set with both `flags interval` and `timeout` each
    /// has to be there just so, or the transaction is refused.
    DestroyElements(Elements),
}

/// Elements of one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elements {
    /// The set's name.
    pub set: String,
    /// Whether the set has `flags interval`.
    pub interval: bool,
    /// Whether the set has `flags timeout`; timeouts are left out otherwise.
    pub timeout: bool,
    /// Whether the set counts per element; counters are left out otherwise.
    pub counter: bool,
    /// The elements.
    pub list: Vec<Element>,
}

impl Elements {
    fn new(set: &Set, list: Vec<Element>) -> Elements {
        Elements { set: set.name.clone(), interval: set.interval, timeout: set.timeout, counter: set.counter, list }
    }
}

impl Elements {
    /// Each element once, the last of equal ones: deleting one a second time would abort the batch.
    fn once_each(&self) -> Elements {
        let mut seen = HashSet::with_capacity(self.list.len());
        let mut list: Vec<Element> = self.list.iter().rev().filter(|element| seen.insert(element.interval)).copied().collect();
        list.reverse();
        Elements { list, set: self.set.clone(), ..*self }
    }
}

/// Sets, and the elements each is to hold.
pub type Fill = Vec<(Set, Vec<Element>)>;

/// What makes the kernel equal to a ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Establishment {
    /// To be committed first and whole.
    pub first: Transaction,
    /// Older bans that would make it too long, set by set, to be loaded after it ([`super::Socket::load`]).
    pub rest: Fill,
}

/// A table in the kernel that a newer banset made; it is left standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newer {
    /// Its version.
    pub version: u32,
}

impl fmt::Display for Newer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel holds a table of version {}, this program knows {VERSION} at most", self.version)
    }
}

impl std::error::Error for Newer {}

impl Transaction {
    /// An empty transaction about this table.
    pub fn new(family: Family, table: impl Into<String>) -> Transaction {
        Transaction { family, table: table.into(), statements: Vec::new(), families: Vec::new(), generation: None }
    }

    /// An empty transaction about the table of this ruleset.
    pub fn about(ruleset: &Ruleset) -> Transaction {
        Transaction::new(ruleset.family, ruleset.table.clone())
    }

    /// The family whose table the next statements are about.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Makes the next statements about the table of this family.
    pub const fn turn_to(&mut self, family: Family) {
        self.family = family;
    }

    /// Appends the statements of another transaction, each about the table it is about there. Its name has to be the same.
    pub fn append(&mut self, other: Transaction) {
        debug_assert_eq!(self.table, other.table);
        self.statements.extend(other.statements);
        self.families.extend(other.families);
    }

    /// What a statement may be joined to: the last, if it is about the same table.
    fn last_mut(&mut self) -> Option<&mut Change> {
        if self.families.last() == Some(&self.family) { self.statements.last_mut() } else { None }
    }

    /// The name of its table.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Its statements, in the order they are carried out.
    pub fn statements(&self) -> &[Change] {
        &self.statements
    }

    /// How many elements it adds.
    pub fn added(&self) -> usize {
        let added = |change: &Change| if let Change::AddElements(elements) = change { elements.list.len() } else { 0 };
        self.statements.iter().map(added).sum()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// Has the kernel refuse it (ERESTART) if anybody committed anything since this generation.
    pub fn only_at(&mut self, generation: u32) {
        self.generation = Some(generation);
    }

    /// Appends any statement.
    pub fn push(&mut self, change: Change) {
        self.families.push(self.family);
        self.statements.push(change);
    }

    /// Has `elements` in `set`, each with its timeout from now on, whether or not it was there.
    pub fn add(&mut self, set: &Set, elements: impl Into<Vec<Element>>) {
        let list = elements.into();
        if let Some(Change::AddElements(last)) = self.last_mut()
            && last.set == set.name
        {
            return last.list.extend(list);
        }
        if !list.is_empty() {
            self.push(Change::AddElements(Elements::new(set, list)));
        }
    }

    /// Has none of these in `set`, whether or not they were there.
    pub fn remove(&mut self, set: &Set, intervals: impl IntoIterator<Item = Interval>) {
        let list: Vec<Element> = intervals.into_iter().map(Element::permanent).collect();
        if let Some(Change::DestroyElements(last)) = self.last_mut()
            && last.set == set.name
        {
            return last.list.extend(list);
        }
        if !list.is_empty() {
            self.push(Change::DestroyElements(Elements::new(set, list)));
        }
    }

    /// Makes `set`, which holds `present`, hold exactly `wanted`: what is not wanted is removed, what is missing or ends more than
    /// `tolerance` sooner or later than wanted is added anew. Neither list needs an order.
    pub fn settle(&mut self, set: &Set, present: &[Element], wanted: &[Element], tolerance: Span) {
        let ends_alike = |a: &Element, b: &Element| match (a.timeout, b.timeout) {
            (None, None) => true,
            (Some(a), Some(b)) => a.expiration.0.abs_diff(b.expiration.0) <= tolerance.0,
            _ => false,
        };
        let held: HashMap<Interval, &Element> = present.iter().map(|element| (element.interval, element)).collect();
        let meant: HashSet<Interval> = wanted.iter().map(|element| element.interval).collect();
        self.remove(set, present.iter().map(|element| element.interval).filter(|interval| !meant.contains(interval)));
        let added = wanted.iter().filter(|want| !held.get(&want.interval).is_some_and(|is| ends_alike(is, want)));
        self.add(set, added.copied().collect::<Vec<_>>());
    }

    /// `delete table`
    pub fn delete_table(&mut self) {
        self.push(Change::DeleteTable);
    }

    /// What makes the kernel equal to `ruleset`, given what it holds now. Sets that are made anew are filled with what `held` says they
    /// hold: bans with the time they have left and what they counted. Sets that stay as they are keep their elements untouched.
    ///
    /// A table of ours with another version mark, or none, is replaced; one of a newer version is an error and left alone.
    pub fn establish(
        ruleset: &Ruleset,
        found: Option<&KernelTable>,
        held: impl FnMut(&Set) -> Vec<Element>,
    ) -> Result<Establishment, Newer> {
        if let Some(version) = found.and_then(KernelTable::version).filter(|version| *version > VERSION) {
            return Err(Newer { version });
        }
        let mut transaction = Transaction::about(ruleset);
        let kept = found.filter(|found| is_kept(ruleset, found));
        let mut removed: Vec<(String, Counted)> = Vec::new();
        if let Some(found) = found {
            let renewed = renewed(ruleset, kept);
            if kept.is_none() {
                transaction.delete_table();
                for chain in &found.chains {
                    removed.extend(chain.rules.iter().map(|rule| (chain.name.clone(), (rule.rule.clone(), rule.counter))));
                }
            } else {
                transaction.take_out(ruleset, found, &renewed, &mut removed);
            }
        }
        if kept.is_none() {
            transaction.push(Change::AddTable { comment: ruleset.comment.clone(), owner: ruleset.owner });
        } else if ruleset.owner && !kept.is_some_and(KernelTable::is_owned) {
            transaction.push(Change::AddTable { comment: None, owner: true });
        }
        let rest = transaction.put_sets(ruleset, kept, held);
        transaction.put_chains(ruleset, kept, removed);
        Ok(Establishment { first: transaction, rest })
    }

    /// Takes out what is not wanted or has to be made anew: first rules, then the sets they look into, then chains.
    fn take_out(
        &mut self,
        ruleset: &Ruleset,
        found: &KernelTable,
        renewed: &HashSet<&str>,
        removed: &mut Vec<(String, Counted)>,
    ) {
        let mut dropped = Vec::new();
        for chain in &found.chains {
            let wanted = ruleset.chains.iter().find(|wanted| wanted.name == chain.name && is_kept_chain(wanted, chain));
            let steps = wanted.map(|wanted| difference(chain, &wanted.rules, renewed));
            let taken = match &steps {
                Some(steps) => steps.removed.clone(),
                None => (0..chain.rules.len()).collect(),
            };
            for index in taken {
                let rule = &chain.rules[index];
                removed.push((chain.name.clone(), (rule.rule.clone(), rule.counter)));
                if steps.is_some() {
                    self.push(Change::DeleteRule { chain: chain.name.clone(), handle: rule.handle });
                }
            }
            if steps.is_none() {
                if !chain.rules.is_empty() {
                    self.push(Change::FlushChain(chain.name.clone()));
                }
                dropped.push(chain.name.clone());
            }
        }
        for set in &found.sets {
            if !ruleset.names().any(|name| *name == set.name) || renewed.contains(set.name.as_str()) {
                self.push(Change::DeleteSet(set.name.clone()));
            }
        }
        dropped.into_iter().for_each(|name| self.push(Change::DeleteChain(name)));
    }

    /// Adds the sets that are missing, fills them, and brings ignore lists up to date.
    fn put_sets(&mut self, ruleset: &Ruleset, kept: Option<&KernelTable>, mut held: impl FnMut(&Set) -> Vec<Element>) -> Fill {
        let renewed = renewed(ruleset, kept);
        let mut fill = Vec::new();
        for set in &ruleset.sets {
            let fresh = renewed.contains(set.name.as_str());
            if fresh {
                self.push(Change::AddSet(Set { content: Content::Bans, ..set.clone() }));
            }
            match &set.content {
                Content::Exactly(wanted) => {
                    let present = match kept.and_then(|kept| kept.set(&set.name)).map(|set| &set.content) {
                        Some(Content::Exactly(present)) if !fresh => present.as_slice(),
                        _ => &[],
                    };
                    // Both are sorted.
                    let lacks = |list: &[Interval], interval: &Interval| list.binary_search(interval).is_err();
                    self.remove(set, present.iter().filter(|interval| lacks(wanted, interval)).copied());
                    let added = wanted.iter().filter(|interval| lacks(present, interval));
                    self.add(set, added.map(|interval| Element::permanent(*interval)).collect::<Vec<_>>());
                }
                Content::Bans if fresh => fill.push((set.clone(), held(set))),
                Content::Bans => {}
            }
        }
        let fresh = |name: &str| renewed.contains(name);
        ruleset.ports.iter().filter(|set| fresh(&set.name)).for_each(|set| self.push(Change::AddPorts(set.clone())));
        ruleset.maps.iter().filter(|map| fresh(&map.name)).for_each(|map| self.push(Change::AddMap(map.name.clone())));
        let (now, later) = split_newest(fill, AT_ONCE);
        now.into_iter().for_each(|(set, elements)| self.add(&set, elements));
        later
    }

    /// Adds missing chains, then what maps send there, then rules, each with what its predecessor counted.
    fn put_chains(&mut self, ruleset: &Ruleset, kept: Option<&KernelTable>, removed: Vec<(String, Counted)>) {
        let renewed = renewed(ruleset, kept);
        let mut rules = Vec::new();
        for wanted in &ruleset.chains {
            let Chain { name, base, rules: list } = wanted;
            let present =
                kept.and_then(|kept| kept.chains.iter().find(|chain| chain.name == *name && is_kept_chain(wanted, chain)));
            let added = match present {
                Some(chain) => difference(chain, list, &renewed).added,
                None => {
                    self.push(Change::AddChain { name: name.clone(), base: *base });
                    (0..list.len()).map(|index| (index, None)).collect()
                }
            };
            rules.extend(added.into_iter().map(|(index, before)| (name.as_str(), before, &list[index])));
        }
        let maps = ruleset.maps.iter().filter(|map| renewed.contains(map.name.as_str()) && !map.jumps.is_empty());
        maps.for_each(|map| self.push(Change::FillMap(map.clone())));
        let places: Vec<(&str, &Rule)> = rules.iter().map(|(chain, _, rule)| (*chain, *rule)).collect();
        let counts = inherit(removed, &places);
        for ((chain, before, rule), counted) in rules.into_iter().zip(counts) {
            self.push(Change::AddRule { chain: chain.to_owned(), before, rule: rule.clone(), counted });
        }
    }

    /// The memory of the list of elements it consists of, to be filled again.
    pub(crate) fn into_elements(mut self) -> Vec<Element> {
        match self.statements.pop() {
            Some(Change::AddElements(elements)) => elements.list,
            _ => Vec::new(),
        }
    }

    /// Writes the whole batch.
    pub(crate) fn write(&self, batch: &mut Batch, features: &Features) {
        batch.begin(self.generation);
        for (index, change) in self.statements.iter().enumerate() {
            batch.statement(index);
            batch.about(self.families[index]);
            change.write(batch, self.families[index], &self.table, features);
        }
        if !features.batch_end_ack {
            batch.acknowledge_last();
        }
        batch.end(features.batch_end_ack);
    }

    /// Statement `index` in nft's language; of an element statement only element `element` if it is known, else the first few.
    pub fn describe(&self, index: usize, element: Option<usize>) -> String {
        match self.statements.get(index) {
            Some(change) => {
                let family = self.families[index];
                Said { transaction: self, family, change, element, at_most: Some(3) }.to_string()
            }
            None => format!("commit of table {} {}", self.family, self.table),
        }
    }
}

/// The sets that `establish` will make, because they are missing or differ in a way that nf_tables can not change.
pub fn renewed_sets<'a>(ruleset: &'a Ruleset, kept: Option<&KernelTable>) -> Vec<&'a Set> {
    let kept = kept.filter(|found| is_kept(ruleset, found));
    let same = |wanted: &Set, found: &Set| {
        let plain = |set: &Set| Set { content: Content::Bans, ..set.clone() };
        plain(wanted) == plain(found)
    };
    ruleset
        .sets
        .iter()
        .filter(|wanted| !kept.and_then(|kept| kept.set(&wanted.name)).is_some_and(|found| same(wanted, found)))
        .collect()
}

/// The names of all sets and maps that `establish` will make. A set of ports or a map is small: one that differs is made anew.
fn renewed<'a>(ruleset: &'a Ruleset, kept: Option<&KernelTable>) -> HashSet<&'a str> {
    let found = |name: &str| kept.filter(|found| is_kept(ruleset, found))?.sets.iter().find(|set| set.name == name);
    let ports = ruleset.ports.iter().filter(|wanted| found(&wanted.name).and_then(|set| set.ports.as_ref()) != Some(wanted));
    let maps = ruleset.maps.iter().filter(|wanted| found(&wanted.name).and_then(|set| set.map.as_ref()) != Some(wanted));
    let sets = renewed_sets(ruleset, kept).into_iter().map(|set| set.name.as_str());
    sets.chain(ports.map(|set| set.name.as_str())).chain(maps.map(|map| map.name.as_str())).collect()
}

/// Whether the table in the kernel can be changed into the wanted one: same shape of ours, awake, and made with or without an owner
/// as wanted, which can not be changed.
fn is_kept(ruleset: &Ruleset, found: &KernelTable) -> bool {
    // A table that lost its owner keeps only the flag to outlive it.
    found.comment == ruleset.comment
        && found.flags & !number::TABLE_OWNER == table_flags(ruleset.owner) & !number::TABLE_OWNER
        && (ruleset.owner || !found.is_owned())
}

const fn table_flags(owner: bool) -> u32 {
    if owner { number::TABLE_OWNER | number::TABLE_PERSIST } else { 0 }
}

fn is_kept_chain(wanted: &Chain, found: &KernelChain) -> bool {
    found.base == wanted.base && found.regular == wanted.base.is_none()
}

/// Which rules of a chain go and which come.
struct Steps {
    /// Indices of rules in the kernel.
    removed: Vec<usize>,
    /// Indices of wanted rules, each with the handle of the kept rule it goes before.
    added: Vec<(usize, Option<u64>)>,
}

/// The longest common subsequence of what is there and what is wanted stays, with its counters. Rules that look into a set that is
/// made anew can not stay.
fn difference(chain: &KernelChain, wanted: &[Rule], renewed: &HashSet<&str>) -> Steps {
    let stays = |rule: &Rule| !renewed.iter().any(|name| rule.uses(name));
    let (n, m) = (chain.rules.len(), wanted.len());
    let same = |i: usize, j: usize| chain.rules[i].rule == wanted[j] && stays(&wanted[j]);
    // Rules mostly stay: what both lists begin with needs no table.
    let head = (0..n.min(m)).take_while(|i| same(*i, *i)).count();
    // Somebody may have filled our chain with any number of rules: then it is not worth finding out which could stay.
    if (n - head).saturating_mul(m - head) > 1 << 22 {
        return Steps { removed: (head..n).collect(), added: (head..m).map(|index| (index, None)).collect() };
    }
    let mut longest = vec![vec![0u32; m - head + 1]; n - head + 1];
    for i in (head..n).rev() {
        for j in (head..m).rev() {
            let (a, b) = (i - head, j - head);
            longest[a][b] = if same(i, j) { longest[a + 1][b + 1] + 1 } else { longest[a + 1][b].max(longest[a][b + 1]) };
        }
    }
    let mut steps = Steps { removed: Vec::new(), added: Vec::new() };
    let (mut i, mut j) = (head, head);
    let mut waiting = Vec::new();
    while i < n || j < m {
        if i < n && j < m && same(i, j) {
            let handle = Some(chain.rules[i].handle);
            steps.added.extend(waiting.drain(..).map(|index| (index, handle)));
            (i, j) = (i + 1, j + 1);
        } else if i < n && (j == m || longest[i - head + 1][j - head] >= longest[i - head][j - head + 1]) {
            steps.removed.push(i);
            i += 1;
        } else {
            waiting.push(j);
            j += 1;
        }
    }
    steps.added.extend(waiting.into_iter().map(|index| (index, None)));
    steps
}

/// What each of the rules that come begins to count with: what the rule that did its work has counted. The nearest first: the same
/// rule in the same chain, the same elsewhere, one that blocked the same set in the same way, there or elsewhere. What is left over goes to
/// the first rule about the same set, so that no jail forgets what it blocked where its ports are looked up in another way.
fn inherit(mut removed: Vec<(String, Counted)>, added: &[(&str, &Rule)]) -> Vec<Counter> {
    let mut counts: Vec<Option<Counter>> = vec![None; added.len()];
    let alike = |old: &Rule, new: &Rule| old.ban_set() == new.ban_set() && old.statements.last() == new.statements.last();
    let near = |step: usize, (was, old): (&str, &Rule), (is, new): (&str, &Rule)| {
        let (same_chain, same_rule) = (step % 2 == 1 || was == is, step >= 2 || old == new);
        same_chain && same_rule && alike(old, new)
    };
    removed.retain(|(_, (rule, counter))| counter.is_some() && rule.ban_set().is_some());
    for step in 0..4 {
        for (new, count) in added.iter().zip(&mut counts).filter(|(_, count)| count.is_none()) {
            if let Some(at) = removed.iter().position(|(was, (old, _))| near(step, (was, old), *new)) {
                *count = removed.swap_remove(at).1.1;
            }
        }
    }
    for (_, (old, counter)) in removed {
        if let Some(at) = added.iter().position(|(_, new)| new.ban_set() == old.ban_set()) {
            *counts[at].get_or_insert_default() += counter.unwrap_or_default();
        }
    }
    counts.into_iter().map(Option::unwrap_or_default).collect()
}

/// Splits what sets are to hold: the newest `limit` bans (permanent ones count as newest), and the others.
pub fn split_newest(mut fill: Fill, limit: usize) -> (Fill, Fill) {
    fill.retain(|(_, elements)| !elements.is_empty());
    let total: usize = fill.iter().map(|(_, elements)| elements.len()).sum();
    if total <= limit {
        return (fill, Vec::new());
    }
    let age = |element: &Element| element.timeout.map_or(0, |timeout| timeout.age().0);
    let mut ages: Vec<u64> = fill.iter().flat_map(|(_, elements)| elements.iter().map(age)).collect();
    let (younger, oldest, _) = ages.select_nth_unstable(limit.saturating_sub(1));
    let oldest = *oldest;
    let mut ties = limit - younger.iter().filter(|age| **age < oldest).count();
    let mut later = Vec::new();
    for (set, elements) in &mut fill {
        let old = elements
            .extract_if(.., |element| match age(element).cmp(&oldest) {
                std::cmp::Ordering::Less => false,
                std::cmp::Ordering::Greater => true,
                std::cmp::Ordering::Equal if ties > 0 => {
                    ties -= 1;
                    false
                }
                std::cmp::Ordering::Equal => true,
            })
            .collect::<Vec<_>>();
        if !old.is_empty() {
            later.push((set.clone(), old));
        }
    }
    fill.retain(|(_, elements)| !elements.is_empty());
    (fill, later)
}

impl Change {
    fn write(&self, batch: &mut Batch, family: Family, table: &str, features: &Features) {
        match self {
            // Its echo tells the handle, by which this very table is known ever after.
            Change::AddTable { comment, owner } => batch.message(kind::NEWTABLE, number::F_CREATE | number::F_ECHO, |b| {
                b.text(attr::TABLE_NAME, table);
                b.u32(attr::TABLE_FLAGS, table_flags(*owner));
                if let Some(comment) = comment {
                    // NFTNL_UDATA_TABLE_COMMENT
                    b.bytes_of(attr::TABLE_USERDATA, &userdata_text(0, comment));
                }
            }),
            Change::DeleteTable => batch.message(kind::DELTABLE, 0, |b| b.text(attr::TABLE_NAME, table)),
            Change::AddSet(set) => write_set(batch, table, set),
            Change::DeleteSet(name) => batch.message(kind::DELSET, 0, |b| {
                b.text(attr::SET_TABLE, table);
                b.text(attr::SET_NAME, name);
            }),
            Change::AddPorts(set) => write_port_set(batch, table, set),
            Change::AddMap(name) => write_map(batch, table, name),
            Change::FillMap(map) => write_jumps(batch, table, map),
            Change::AddChain { name, base } => batch.message(kind::NEWCHAIN, number::F_CREATE, |b| {
                b.text(attr::CHAIN_TABLE, table);
                b.text(attr::CHAIN_NAME, name);
                if let Some((hook, priority)) = base {
                    b.text(attr::CHAIN_TYPE, "filter");
                    b.u32(attr::CHAIN_POLICY, number::NF_ACCEPT);
                    b.nest(attr::CHAIN_HOOK, |b| {
                        b.u32(attr::HOOK_NUM, hook_number(*hook));
                        b.u32(attr::HOOK_PRIORITY, priority.cast_unsigned());
                    });
                }
            }),
            Change::DeleteChain(name) => batch.message(kind::DELCHAIN, 0, |b| {
                b.text(attr::CHAIN_TABLE, table);
                b.text(attr::CHAIN_NAME, name);
            }),
            Change::FlushChain(chain) => batch.message(kind::DELRULE, 0, |b| {
                b.text(attr::RULE_TABLE, table);
                b.text(attr::RULE_CHAIN, chain);
            }),
            Change::AddRule { chain, before, rule, counted } => {
                write_rule(batch, family, table, chain, *before, rule, *counted);
            }
            Change::DeleteRule { chain, handle } => batch.message(kind::DELRULE, 0, |b| {
                b.text(attr::RULE_TABLE, table);
                b.text(attr::RULE_CHAIN, chain);
                b.u64(attr::RULE_HANDLE, *handle);
            }),
            Change::AddElements(elements) => {
                // Before Linux 6.12 adding what is there changes nothing. Adding, deleting and adding again does, on every kernel and
                // without knowing whether it was there.
                // Of intervals whoever changes them knows what is there, and two beginnings at one address in one batch mislead the kernel.
                if features.timeout_update || elements.interval {
                    return write_elements(batch, table, kind::NEWSETELEM, elements, true);
                }
                let once = elements.once_each();
                write_elements(batch, table, kind::NEWSETELEM, &once, true);
                write_elements(batch, table, kind::DELSETELEM, &once, false);
                write_elements(batch, table, kind::NEWSETELEM, &once, true);
            }
            // Half an interval that is not there as a whole would be removed silently: better that nothing of the batch is carried out.
            Change::DestroyElements(elements) if elements.interval && elements.timeout => {
                write_elements(batch, table, kind::DELSETELEM, &elements.once_each(), false);
            }
            Change::DestroyElements(elements) if features.destroy => {
                write_elements(batch, table, kind::DESTROYSETELEM, elements, false);
            }
            // Before Linux 6.3 deleting what is not there aborts the batch: so it is there.
            Change::DestroyElements(elements) => {
                let once = elements.once_each();
                write_elements(batch, table, kind::NEWSETELEM, &once, false);
                write_elements(batch, table, kind::DELSETELEM, &once, false);
            }
        }
    }
}

/// `NF_INET_*` and `NF_BR_*`, which agree.
pub(crate) const fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

/// A piece of user data: type, length, text with its NUL (libnftnl's `udata.h`). 255 bytes at most; longer text is cut.
fn userdata_text(kind: u8, text: &str) -> Vec<u8> {
    // Comments are our own and short: nothing is cut in practice.
    let text = text.as_bytes();
    let text = &text[..text.len().min(254)];
    let mut data = vec![kind, text.len() as u8 + 1];
    data.extend_from_slice(text);
    data.push(0);
    data
}

fn write_set(batch: &mut Batch, table: &str, set: &Set) {
    let id = batch.set_id();
    let flags = if set.interval { number::SET_INTERVAL } else { 0 } | if set.timeout { number::SET_TIMEOUT } else { 0 };
    batch.message(kind::NEWSET, number::F_CREATE, |b| {
        b.text(attr::SET_TABLE, table);
        b.text(attr::SET_NAME, &set.name);
        b.u32(attr::SET_FLAGS, flags);
        b.u32(attr::SET_KEY_TYPE, set.key.number());
        b.u32(attr::SET_KEY_LEN, set.key.length());
        b.u32(attr::SET_ID, id);
        if let Some(size) = set.size {
            b.nest(attr::SET_DESC, |b| b.u32(attr::SET_DESC_SIZE, size));
        }
        if let Some(span) = set.gc_interval {
            b.u32(attr::SET_GC_INTERVAL, u32::try_from(span.millis_up()).unwrap_or(u32::MAX));
        }
        // As nft: NFTNL_UDATA_SET_KEYBYTEORDER is big endian (2), then NFTNL_UDATA_SET_COMMENT.
        let mut userdata = vec![0, 4];
        userdata.extend(2u32.to_ne_bytes());
        if let Some(comment) = &set.comment {
            userdata.extend(userdata_text(7, comment));
        }
        b.bytes_of(attr::SET_USERDATA, &userdata);
        if set.counter {
            write_counter(b, attr::SET_EXPR, None);
        }
    });
}

fn write_elements(batch: &mut Batch, table: &str, kind: u8, elements: &Elements, values: bool) {
    let adds = kind == kind::NEWSETELEM;
    batch.list(
        kind,
        if adds { number::F_CREATE } else { 0 },
        &elements.list,
        |b| {
            b.text(attr::ELEMS_TABLE, table);
            b.text(attr::ELEMS_SET, &elements.set);
        },
        |b, element| {
            let interval = element.interval;
            let end = if elements.interval { interval.after() } else { None };
            b.nest(attr::LIST_ELEM, |b| {
                let timed = values && elements.timeout;
                if timed && let Some(timeout) = element.timeout {
                    // Both, always: a timeout alone that equals the one it has refreshes nothing.
                    let (timeout, expiration) = timeout.millis();
                    b.u64(attr::ELEM_TIMEOUT, timeout);
                    b.u64(attr::ELEM_EXPIRATION, expiration);
                } else if timed {
                    // No timeout, also where the element had one.
                    b.u64(attr::ELEM_TIMEOUT, 0);
                }
                write_key(b, interval.first());
                if values && elements.counter && element.counter.is_some() {
                    write_counter(b, attr::ELEM_EXPR, element.counter);
                }
                if adds && elements.interval && end.is_none() {
                    // NFTNL_UDATA_SET_ELEM_FLAGS with nft's SET_ELEM_F_INTERVAL_OPEN: it goes on to the last address.
                    let mut open = vec![1, 4];
                    open.extend(1u32.to_ne_bytes());
                    b.bytes_of(attr::ELEM_USERDATA, &open);
                }
            });
            if let Some(end) = end {
                b.nest(attr::LIST_ELEM, |b| {
                    b.u32(attr::ELEM_FLAGS, number::ELEM_INTERVAL_END);
                    write_key(b, end);
                });
            }
        },
    );
}

/// The key of an element.
pub(crate) fn write_key(b: &mut Batch, address: std::net::IpAddr) {
    b.nest(attr::ELEM_KEY, |b| match address {
        std::net::IpAddr::V4(v4) => b.bytes_of(attr::DATA_VALUE, &v4.octets()),
        std::net::IpAddr::V6(v6) => b.bytes_of(attr::DATA_VALUE, &v6.octets()),
    });
}

/// The whole as a script for `nft -f`.
impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.statements.iter().zip(&self.families).try_for_each(|(change, family)| {
            writeln!(f, "{}", Said { transaction: self, family: *family, change, element: None, at_most: None })
        })
    }
}

/// A statement on its way to text.
struct Said<'a> {
    transaction: &'a Transaction,
    family: Family,
    change: &'a Change,
    /// Only this element.
    element: Option<usize>,
    /// Or so many.
    at_most: Option<usize>,
}

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Said { family, transaction: Transaction { table, .. }, .. } = self;
        match self.change {
            Change::AddTable { comment: None, .. } => write!(f, "add table {family} {table}"),
            Change::AddTable { comment: Some(comment), .. } => {
                write!(f, "add table {family} {table} {{ comment \"{comment}\"; }}")
            }
            Change::DeleteTable => write!(f, "delete table {family} {table}"),
            Change::AddSet(set) => {
                write!(f, "add set {family} {table} {} {{ {}; }}", set.name, set.properties().join("; "))
            }
            Change::DeleteSet(name) => write!(f, "delete set {family} {table} {name}"),
            Change::AddPorts(set) => {
                let list = set.ports.iter().map(port_text).collect::<Vec<_>>().join(", ");
                let properties = set.properties().join("; ");
                write!(f, "add set {family} {table} {} {{ {properties}; elements = {{ {list} }}; }}", set.name)
            }
            Change::AddMap(name) => write!(f, "add map {family} {table} {name} {{ {}; }}", Map::PROPERTIES),
            Change::FillMap(map) => {
                let list = map.jumps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                write!(f, "add element {family} {table} {} {{ {list} }}", map.name)
            }
            Change::AddChain { name, base } => {
                let chain = Chain { name: name.clone(), base: *base, rules: Vec::new() };
                match chain.head(*family) {
                    Some(head) => write!(f, "add chain {family} {table} {name} {{ {head} }}"),
                    None => write!(f, "add chain {family} {table} {name}"),
                }
            }
            Change::DeleteChain(name) => write!(f, "delete chain {family} {table} {name}"),
            Change::FlushChain(name) => write!(f, "flush chain {family} {table} {name}"),
            Change::AddRule { chain, before: None, rule, .. } => write!(f, "add rule {family} {table} {chain} {rule}"),
            Change::AddRule { chain, before: Some(handle), rule, .. } => {
                write!(f, "insert rule {family} {table} {chain} position {handle} {rule}")
            }
            Change::DeleteRule { chain, handle } => write!(f, "delete rule {family} {table} {chain} handle {handle}"),
            Change::AddElements(elements) => self.elements(f, "add", elements),
            Change::DestroyElements(elements) => self.elements(f, "destroy", elements),
        }
    }
}

impl Said<'_> {
    fn elements(&self, f: &mut fmt::Formatter<'_>, verb: &str, elements: &Elements) -> fmt::Result {
        let Said { family, transaction: Transaction { table, .. }, .. } = self;
        write!(f, "{verb} element {family} {table} {} {{ ", elements.set)?;
        match self.element.and_then(|index| elements.list.get(index)) {
            Some(element) => write!(f, "{element}")?,
            None => {
                let shown = self.at_most.unwrap_or(elements.list.len());
                for (n, element) in elements.list.iter().take(shown).enumerate() {
                    write!(f, "{}{element}", if n > 0 { ", " } else { "" })?;
                }
                if let Some(more) = elements.list.len().checked_sub(shown).filter(|more| *more > 0) {
                    write!(f, ", … {more} more")?;
                }
            }
        }
        f.write_str(" }")
    }
}
