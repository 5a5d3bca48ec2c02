//! The thread that writes: it owns the one netlink socket that changes anything, and turns the core's changes into
//! transactions. While one commits, the core gathers the next: a kernel that is busy makes batches larger, never the queue.

use std::collections::HashMap;
use std::sync::mpsc::Receiver;

use tokio::sync::mpsc::Sender;
use tracing::debug;

use super::clock;
use super::core::{Adopted, Change, Done, Establish, Event, Refusal, Target};
use super::spec::{Spec, Specs};
use crate::config::run::Tristate;
use crate::jail::Now;
use crate::nft::element::{Element, Key, Timeout};
use crate::nft::ruleset::{Content, JailPlan, Plan, Ruleset, Set, ban_set_name};
use crate::nft::socket::{Kind, Refused, Socket};
use crate::nft::transaction::{Establishment, Transaction};
use crate::nft::{self, KernelTable};
use crate::terms::{Lasting, Span};

/// Changes that go in one transaction at most: more cost the kernel more than they save (see `nft::socket::BATCH`).
const AT_ONCE: usize = 4000;

/// Above this many possible CPUs a counter per element is no longer cheap: the kernel keeps one per CPU.
const CPUS_FOR_COUNTERS: usize = 8;

/// How often the kernel frees expired elements: a second, its default, costs 5 % of a core at a million elements.
const GC_INTERVAL: Span = Span::from_secs(10);

/// What the thread is told.
#[derive(Debug)]
pub enum Work {
    /// Carry out changes.
    Commit(Vec<Change>),
    /// Make the whole table so.
    Establish(Establish),
}

/// The writing side, before and while it is a thread of its own.
pub struct Writer {
    socket: Socket,
    reader: nft::Kernel,
    ruleset: Option<Ruleset>,
}

/// The plan of a table, from specs and what the ignore sets hold.
pub fn plan(wanted: &Establish, element_counters: bool) -> Plan {
    let specs = &wanted.specs;
    let named = |spec: &Spec| {
        [Key::V4, Key::V6].iter().any(|key| wanted.held.contains_key(ban_set_name(&spec.name, *key, true).as_str()))
    };
    let jails = specs.jails.iter().enumerate().map(|(at, spec)| JailPlan {
        name: spec.name.clone(),
        ports: spec.ports.clone(),
        protocols: spec.protocols.clone(),
        hooks: spec.hooks.clone(),
        blocktype: spec.blocktype,
        ipv6_prefix: spec.policy.ipv6_prefix,
        ignore: wanted.own_ignored.get(at).cloned().unwrap_or_default(),
        nets: wanted.nets.get(at).copied().unwrap_or(false) || named(spec),
        paused: false,
    });
    Plan {
        family: specs.family,
        table: specs.table.clone(),
        ipv6: specs.ipv6,
        set_size: specs.nft.set_size,
        element_counters: counts_elements(specs.nft.element_counters) && element_counters,
        gc_interval: Some(GC_INTERVAL),
        ignore: wanted.ignored.clone(),
        jails: jails.collect(),
    }
}

/// Whether elements shall count: `auto` is yes up to eight possible CPUs.
fn counts_elements(setting: Tristate) -> bool {
    match setting {
        Tristate::Yes => true,
        Tristate::No => false,
        Tristate::Auto => possible_cpus() <= CPUS_FOR_COUNTERS,
    }
}

/// Whether IPv6 has sets and rules: `auto` is yes unless the kernel has none of it.
pub fn has_ipv6(setting: Tristate) -> bool {
    match setting {
        Tristate::Yes => true,
        Tristate::No => false,
        Tristate::Auto => std::path::Path::new("/proc/net/if_inet6").exists(),
    }
}

fn possible_cpus() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit([',', '-']).next().and_then(|n| n.parse::<usize>().ok());
    last.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |last| last + 1)
}

impl Writer {
    /// Opens nf_tables.
    pub fn open() -> Result<Writer, String> {
        let socket = Socket::open().map_err(|e| e.to_string())?;
        let reader = nft::Kernel::open().map_err(|e| e.to_string())?;
        debug!("nf_tables: {}", socket.features());
        Ok(Writer { socket, reader, ruleset: None })
    }

    /// Our table as it is now.
    pub fn table(&mut self, specs: &Specs) -> Result<Option<KernelTable>, String> {
        self.reader.table(specs.family, &specs.table).map_err(|e| e.to_string())
    }

    /// The handle of our table; 0 if there is none.
    pub fn handle(&mut self, specs: &Specs) -> Result<u64, String> {
        Ok(self.table(specs)?.map_or(0, |table| table.handle))
    }

    /// What the ban sets of our table hold now.
    pub fn adoptable(&mut self, specs: &Specs) -> Result<Vec<Adopted>, String> {
        let mut found = Vec::new();
        let Some(table) = self.table(specs)? else { return Ok(found) };
        for set in table.sets.iter().filter_map(|set| set.set.as_ref()).filter(|set| set.content == Content::Bans) {
            let elements = self.reader.elements(specs.family, &specs.table, set).map_err(|e| e.to_string())?;
            found.extend(elements.iter().map(|element| {
                let (timeout, left) = element.timeout.map_or((None, None), |t| (Some(t.timeout), Some(t.expiration)));
                Adopted { set: set.name.clone(), what: element.interval, timeout, left }
            }));
        }
        Ok(found)
    }

    /// Makes the table so; says whether anything had to be sent.
    pub fn establish(&mut self, wanted: &Establish) -> Result<bool, String> {
        let specs = &wanted.specs;
        let plan = plan(wanted, self.socket.features().element_counters);
        let ruleset = Ruleset::of(&plan).map_err(|e| e.to_string())?;
        let mut found = self.table(specs)?;
        let mut counters = HashMap::new();
        if let (Some(table), false) = (&found, wanted.exact) {
            for set in nft::transaction::renewed_sets(&ruleset, Some(table)) {
                if let Some(old) = table.set(&set.name) {
                    let elements = self.reader.elements(specs.family, &specs.table, old).map_err(|e| e.to_string())?;
                    counters.extend(elements.iter().filter_map(|e| Some(((set.name.clone(), e.interval.first()), e.counter?))));
                }
            }
        }
        let now = clock::now();
        let held = |set: &Set| -> Vec<Element> {
            let changes = wanted.held.get(set.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            let elements = changes.iter().filter_map(|change| element(now, change));
            elements.map(|e| Element { counter: counters.get(&(set.name.clone(), e.interval.first())).copied(), ..e }).collect()
        };
        let mut first = Transaction::about(&ruleset);
        if wanted.exact
            && let Some(table) = found.take()
        {
            if table.version().is_some_and(|version| version > nft::ruleset::VERSION) {
                return Err(format!("table {} {} was made by a newer banset", specs.family, specs.table));
            }
            first.delete_table();
        }
        let Establishment { first: rest_of_first, rest } =
            Transaction::establish(&ruleset, found.as_ref(), held).map_err(|newer| {
                format!(
                    "table {} {}: {newer}\n  help: use the newer program, or delete the table first",
                    specs.family, specs.table
                )
            })?;
        rest_of_first.statements().iter().for_each(|statement| first.push(statement.clone()));
        self.socket.commit(&first).map_err(|refused| refused.to_string())?;
        for (set, elements) in &rest {
            let loaded = self.socket.load(specs.family, &specs.table, set, elements.iter().cloned());
            loaded.map_err(|(_, refused)| refused.to_string())?;
        }
        self.ruleset = Some(ruleset);
        Ok(!first.is_empty())
    }

    /// Carries out changes, in order. What the kernel refuses alone is told by index; the rest is carried out.
    fn commit(&mut self, changes: &[Change]) -> Result<Vec<Refusal>, String> {
        let mut refusals = Vec::new();
        let mut base = 0;
        while base < changes.len() {
            let end = self.boundary(changes, (base + AT_ONCE).min(changes.len()), base);
            self.commit_part(&changes[base..end], base, &mut refusals)?;
            base = end;
        }
        Ok(refusals)
    }

    /// Where changes can be parted, near `wanted` and after `from`: never between those of a set of intervals, which hold only together.
    fn boundary(&self, changes: &[Change], wanted: usize, from: usize) -> usize {
        let is_net =
            |change: &Change| self.ruleset.as_ref().and_then(|ruleset| ruleset.set(&change.set)).is_some_and(|set| set.interval);
        let parts = |at: &usize| *at == changes.len() || !is_net(&changes[*at - 1]) || changes[*at].set != changes[*at - 1].set;
        let before = (from + 1..=wanted).rev().find(parts);
        before.or_else(|| (wanted.max(from + 1)..=changes.len()).find(parts)).unwrap_or(changes.len())
    }

    /// Commits a part; a part that is refused because of one element is halved until that element is found.
    fn commit_part(&mut self, changes: &[Change], base: usize, refusals: &mut Vec<Refusal>) -> Result<(), String> {
        let refused = match self.transact(changes) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        match refused.kind {
            // The table, one of its sets, or our right to change it: no single element is at fault.
            Kind::NoTable | Kind::NoEntry | Kind::NotPermitted | Kind::Unanswered => Err(refused.to_string()),
            _ if changes.len() == 1 => {
                refusals.push(Refusal { index: base, why: refused.to_string() });
                Ok(())
            }
            _ => {
                let middle = self.boundary(changes, changes.len() / 2, 0);
                if middle == changes.len() {
                    refusals.push(Refusal { index: base, why: refused.to_string() });
                    return Ok(());
                }
                let (left, right) = changes.split_at(middle);
                self.commit_part(left, base, refusals)?;
                self.commit_part(right, base + left.len(), refusals)
            }
        }
    }

    fn transact(&mut self, changes: &[Change]) -> Result<(), Refused> {
        let Some(ruleset) = &self.ruleset else { return Ok(()) };
        let now = clock::now();
        let mut transaction = Transaction::about(ruleset);
        let mut changes = changes.iter().peekable();
        while let Some(change) = changes.next() {
            // A jail without IPv6 sets has no place for the element; the ban is held and bites nobody.
            let Some(set) = ruleset.set(&change.set) else { continue };
            let elements = |change: &Change| element(now, change).into_iter().collect::<Vec<_>>();
            match change.to {
                Target::Held { .. } => transaction.add(set, elements(change)),
                // An interval that is removed and comes back with another end.
                Target::Gone
                    if set.interval && changes.peek().is_some_and(|next| next.set == change.set && next.what == change.what) =>
                {
                    let next = changes.next().unwrap_or(change);
                    transaction.add(set, elements(next));
                    if !self.socket.features().timeout_update {
                        transaction.remove(set, [change.what]);
                        transaction.add(set, elements(next));
                    }
                }
                Target::Gone => transaction.remove(set, [change.what]),
            }
        }
        self.socket.commit(&transaction)
    }

    /// Works until the core goes away.
    pub fn run(mut self, work: &Receiver<Work>, done: &Sender<Event>) {
        while let Ok(work) = work.recv() {
            let event = match work {
                Work::Commit(changes) => match self.commit(&changes) {
                    Ok(refusals) => Event::Committed(refusals),
                    Err(why) => Event::Damaged(why),
                },
                Work::Establish(wanted) => {
                    let adopted = if wanted.adopt { self.adoptable(&wanted.specs) } else { Ok(Vec::new()) };
                    Event::Established(adopted.and_then(|adopted| {
                        self.establish(&wanted)?;
                        Ok(Done { adopted, table: self.handle(&wanted.specs)? })
                    }))
                }
            };
            if done.blocking_send(event).is_err() {
                return;
            }
        }
    }
}

/// The element of a held ban, with the time it has left now; `None` if that is over.
fn element(now: Now, change: &Change) -> Option<Element> {
    let Target::Held { lasting, until } = change.to else { return None };
    let Some(until) = until else { return Some(Element::permanent(change.what)) };
    let left = until.since(now.mono);
    if left == Span(0) {
        return None;
    }
    let given = match lasting {
        Lasting::For(given) => given.max(left),
        Lasting::Permanent => left,
    };
    Some(Element { timeout: Some(Timeout { timeout: given, expiration: left }), ..Element::permanent(change.what) })
}
