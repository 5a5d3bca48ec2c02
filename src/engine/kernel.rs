//! The thread that writes: it owns the one netlink socket that changes anything, and turns the core's changes into
//! transactions. While one commits, the core gathers the next: a kernel that is busy makes batches larger, never the queue.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use tokio::sync::mpsc::Sender;
use tracing::{debug, info};

use super::clock;
use super::core::{Adopted, Change, Committed, Done, Establish, Event, Refusal, Suspects, Target};
use super::spec::Specs;
use crate::config::run::Tristate;
use crate::jail::Now;
use crate::nft::element::{Element, Timeout};
use crate::nft::ruleset::{Content, JailPlan, Plan, Ruleset, Set};
use crate::nft::socket::{Kind, Refused, Socket};
use crate::nft::transaction::{self, Establishment, Transaction};
use crate::nft::{self, KernelTable};
use crate::terms::{Lasting, Span};

/// Changes that go in one transaction at most: more cost the kernel more than they save (see `nft::socket::BATCH`).
const AT_ONCE: usize = 4000;

/// Above this many possible CPUs a counter per element is no longer cheap: the kernel keeps one per CPU.
const CPUS_FOR_COUNTERS: usize = 8;

/// A larger set is not listed at the start, but asked for what it shall hold: a dump is quadratic, a million elements take 30 s.
const LISTED_AT_MOST: u32 = 200_000;

/// Elements end alike if they do within this span: the kernel's clock and ours are read at different moments.
const ALIKE: Span = Span::from_secs(2);

/// How often others may commit while the table is read and written, before it is written without looking.
const STALE_AT_MOST: usize = 5;

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
    /// Transactions carried out.
    transactions: u32,
}

/// The plan of a table, from specs and what the ignore sets hold.
pub fn plan(wanted: &Establish, element_counters: bool) -> Plan {
    let specs = &wanted.specs;
    let jails = specs.jails.iter().zip(&wanted.own_ignored).map(|(spec, own_ignored)| JailPlan {
        name: spec.name.clone(),
        ports: spec.ports.clone(),
        protocols: spec.protocols.clone(),
        hooks: spec.hooks.clone(),
        blocktype: spec.blocktype,
        ipv6_prefix: spec.policy.ipv6_prefix,
        ignore: own_ignored.clone(),
        nets: false,
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
        Ok(Writer { socket, reader, ruleset: None, transactions: 0 })
    }

    /// The address of its socket, by which the kernel says that a change was ours.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Writes as if the kernel could do just this much.
    pub fn pretend(&mut self, features: nft::Features) {
        self.socket.pretend(features);
    }

    /// What the kernel can do.
    pub fn features(&self) -> nft::Features {
        self.socket.features()
    }

    /// The generation of the ruleset; 0 if it can not be read.
    pub fn generation(&mut self) -> u32 {
        self.reader.generation().unwrap_or(0)
    }

    /// Our table as it is now.
    pub fn table(&mut self, specs: &Specs) -> Result<Option<KernelTable>, String> {
        self.reader.table(specs.family, &specs.table).map_err(|e| e.to_string())
    }

    /// The handle of our table; 0 if there is none.
    pub fn handle(&mut self, specs: &Specs) -> Result<u64, String> {
        Ok(self.table(specs)?.map_or(0, |table| table.handle))
    }

    /// What the ban sets of our table hold now; of a set that is too large to be listed only what is among `held`.
    pub fn adoptable(&mut self, specs: &Specs, held: &HashMap<Arc<str>, Vec<Change>>) -> Result<Vec<Adopted>, String> {
        let mut found = Vec::new();
        let Some(table) = self.table(specs)? else { return Ok(found) };
        for kernel_set in &table.sets {
            let Some(set) = kernel_set.set.as_ref().filter(|set| set.content == Content::Bans) else { continue };
            let asked = held.get(set.name.as_str()).filter(|_| !set.interval);
            let elements = match (kernel_set.count, asked) {
                (Some(count), Some(held)) if count > LISTED_AT_MOST => {
                    let keys: Vec<IpAddr> = held.iter().map(|change| change.address).collect();
                    let elements = self.reader.find(specs.family, &specs.table, set, &keys);
                    info!("set {} holds {count} elements: asked for {} by key instead of listing it", set.name, keys.len());
                    elements
                }
                _ => self.reader.elements(specs.family, &specs.table, set),
            };
            found.extend(elements.map_err(|e| e.to_string())?.iter().map(|element| {
                let (timeout, left) = element.timeout.map_or((None, None), |t| (Some(t.timeout), Some(t.expiration)));
                Adopted { set: set.name.clone(), address: element.interval.first(), timeout, left }
            }));
        }
        Ok(found)
    }

    /// Makes the table so. What others commit while it is read and written makes it look again.
    pub fn establish(&mut self, wanted: &Establish) -> Result<Done, String> {
        for _ in 0..STALE_AT_MOST {
            if let Some(done) = self.establish_at_once(wanted, true)? {
                return Ok(done);
            }
        }
        self.establish_at_once(wanted, false)?.ok_or_else(|| "the ruleset changes faster than it can be read".to_owned())
    }

    /// Makes the table so; with `alone`, only if nobody commits meanwhile: else nothing is done, and `None` returned.
    fn establish_at_once(&mut self, wanted: &Establish, alone: bool) -> Result<Option<Done>, String> {
        let specs = &wanted.specs;
        let plan = plan(wanted, self.socket.features().element_counters);
        let mut ruleset = Ruleset::of(&plan).map_err(|e| e.to_string())?;
        ruleset.owner = specs.nft.owner && self.socket.features().owner;
        let mut generation = self.generation();
        let mut found = self.table(specs)?;
        let now = clock::now();
        let mut suspects = Vec::new();
        if let Some(table) = &mut found {
            generation = table.generation;
            let renewed: HashSet<&str> =
                transaction::renewed_sets(&ruleset, Some(table)).iter().map(|set| set.name.as_str()).collect();
            for found in &mut table.sets {
                let Some(set) = ruleset.set(&found.name).filter(|set| set.content == Content::Bans) else { continue };
                if !wanted.exact.holds(&set.name) || renewed.contains(set.name.as_str()) {
                    continue;
                }
                let meant = wanted.held.get(set.name.as_str()).map_or(0, Vec::len);
                // A dump is quadratic in the size: a large set is made anew sooner than it is read.
                match found.count.is_none_or(|count| count as usize <= transaction::AT_ONCE) && meant <= transaction::AT_ONCE {
                    true => suspects.push(set.clone()),
                    false => found.set = None,
                }
            }
        }
        let mut counters = HashMap::new();
        if let (Some(table), Suspects::None) = (&found, &wanted.exact) {
            for set in transaction::renewed_sets(&ruleset, Some(table)) {
                if let Some(old) = table.set(&set.name) {
                    let elements = self.reader.elements(specs.family, &specs.table, old).map_err(|e| e.to_string())?;
                    counters.extend(elements.iter().filter_map(|e| Some(((set.name.clone(), e.interval.first()), e.counter?))));
                }
            }
        }
        let held = |set: &Set| -> Vec<Element> {
            let changes = wanted.held.get(set.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            let elements = changes.iter().filter_map(|change| element(now, change));
            let elements = elements
                .map(|e| match counters.is_empty() {
                    true => e,
                    false => Element { counter: counters.get(&(set.name.clone(), e.interval.first())).copied(), ..e },
                })
                .collect::<Vec<_>>();
            match set.size.map(|size| size as usize).filter(|size| *size < elements.len()) {
                Some(size) => {
                    transaction::split_newest(vec![(set.clone(), elements)], size).0.pop().map_or(Vec::new(), |(_, e)| e)
                }
                None => elements,
            }
        };
        let Establishment { mut first, rest } = Transaction::establish(&ruleset, found.as_ref(), held).map_err(|newer| {
            format!("table {} {}: {newer}\n  help: use the newer program, or delete the table first", specs.family, specs.table)
        })?;
        for set in &suspects {
            let present = self.reader.elements(specs.family, &specs.table, set).map_err(|e| e.to_string())?;
            first.settle(set, &present, &held(set), ALIKE);
        }
        if alone && generation != 0 && !first.is_empty() {
            first.only_at(generation);
            // The kernel's count leaves 0 out.
            generation = generation.checked_add(1).unwrap_or(1);
        }
        match self.socket.commit(&first) {
            Err(refused) if refused.kind == Kind::Stale => return Ok(None),
            other => other.map_err(|refused| refused.to_string())?,
        }
        for (set, elements) in &rest {
            let loaded = self.socket.load(specs.family, &specs.table, set, elements.iter().cloned());
            loaded.map_err(|(_, refused)| refused.to_string())?;
        }
        let fresh = first
            .statements()
            .iter()
            .any(|statement| matches!(statement, transaction::Change::AddTable { comment: Some(_), .. }));
        let done = Done {
            adopted: Vec::new(),
            table: self.handle(specs)?,
            generation,
            fresh,
            changed: !first.is_empty(),
            owned: ruleset.owner,
        };
        self.ruleset = Some(ruleset);
        Ok(Some(done))
    }

    /// Carries out changes, in order. What the kernel refuses alone is told by index; the rest is carried out.
    pub fn commit(&mut self, changes: &[Change]) -> Result<Committed, String> {
        let (before, own) = (self.generation(), self.transactions);
        let mut refusals = Vec::new();
        for (part, slice) in changes.chunks(AT_ONCE).enumerate() {
            self.commit_part(slice, part * AT_ONCE, &mut refusals)?;
        }
        let after = self.generation();
        let alone = before != 0 && after.wrapping_sub(before) == self.transactions.wrapping_sub(own);
        Ok(Committed { refusals, before, after, alone })
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
                refusals.push(Refusal { index: base, why: refused.to_string(), full: refused.kind == Kind::SetFull });
                Ok(())
            }
            _ => {
                let (left, right) = changes.split_at(changes.len() / 2);
                self.commit_part(left, base, refusals)?;
                self.commit_part(right, base + left.len(), refusals)
            }
        }
    }

    fn transact(&mut self, changes: &[Change]) -> Result<(), Refused> {
        let Some(ruleset) = &self.ruleset else { return Ok(()) };
        let now = clock::now();
        let mut transaction = Transaction::about(ruleset);
        for change in changes {
            // A jail without IPv6 sets has no place for the element; the ban is held and bites nobody.
            let Some(set) = ruleset.set(&change.set) else { continue };
            match change.to {
                Target::Held { .. } => transaction.add(set, element(now, change).into_iter().collect::<Vec<_>>()),
                Target::Gone => transaction.remove(set, [change.address.into()]),
            }
        }
        self.socket.commit(&transaction)?;
        self.transactions = self.transactions.wrapping_add(u32::from(!transaction.is_empty()));
        Ok(())
    }

    /// Works until the core goes away.
    pub fn run(mut self, work: &Receiver<Work>, done: &Sender<Event>) {
        while let Ok(work) = work.recv() {
            let event = match work {
                Work::Commit(changes) => match self.commit(&changes) {
                    Ok(committed) => Event::Committed(committed),
                    Err(why) => Event::Damaged(why),
                },
                Work::Establish(wanted) => {
                    let adopted = if wanted.adopt { self.adoptable(&wanted.specs, &wanted.held) } else { Ok(Vec::new()) };
                    Event::Established(adopted.and_then(|adopted| Ok(Done { adopted, ..self.establish(&wanted)? })))
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
    let Some(until) = until else { return Some(Element::permanent(change.address)) };
    let left = until.since(now.mono);
    if left == Span(0) {
        return None;
    }
    let given = match lasting {
        Lasting::For(given) => given.max(left),
        Lasting::Permanent => left,
    };
    Some(Element { timeout: Some(Timeout { timeout: given, expiration: left }), ..Element::permanent(change.address) })
}
