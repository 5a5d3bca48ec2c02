//! The thread that writes: it owns the one netlink socket that changes anything, and turns the core's changes into
//! transactions. While one commits, the core gathers the next: a kernel that is busy makes batches larger, never the queue.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tracing::{debug, error, info, warn};

use super::clock;
use super::core::{Adopted, Change, Committed, Done, Establish, Event, Refusal, Suspects, Target};
use super::spec::{Spec, Specs};
use crate::config::run::Tristate;
use crate::jail::Now;
use crate::nft::element::{Element, Key, Timeout};
use crate::nft::ruleset::{Content, JailPlan, Plan, Ruleset, Set, ban_set_name};
use crate::nft::socket::{Kind, Refused, Socket};
use crate::nft::transaction::{self, Establishment, Fill, Transaction};
use crate::nft::{self, Ears, Interval, KernelTable};
use crate::terms::{Blocktype, Family, Hook, Lasting, Span};

/// Changes that go in one transaction at most: more cost the kernel more than they save (see `nft::socket::BATCH`).
const AT_ONCE: usize = 4000;

/// Above this many possible CPUs a counter per element is no longer cheap: the kernel keeps one per CPU.
const CPUS_FOR_COUNTERS: usize = 8;

/// A set that is made for more bans than this at once counts per element only if that was asked for: a counter takes the kernel longer
/// than all the rest of an element, 1.7 us of about 3.3.
const COUNTED: usize = 10_000;

/// Sets of several tables are compared with each other up to this size.
const LEVELLED: usize = 100_000;

/// A larger set is not listed at the start, but asked for what it shall hold: a dump is quadratic, a million elements take 30 s.
const LISTED_AT_MOST: u32 = 200_000;

/// Nor is a larger one read after notices were lost: at this size it takes some three seconds, in which no ban is sent.
const LOOKED_AT: u32 = 400_000;

/// So long it may take to read a set before it is looked for something else: no ban is sent meanwhile, and protection may lack.
const LOOK: Duration = Duration::from_secs(3);
const REPAIR: Duration = Duration::from_millis(300);

/// Elements end alike if they do within this span: the kernel's clock and ours are read at different moments.
const ALIKE: Span = Span::from_secs(2);

/// How often others may commit while the tables are read and written, before they are written without looking.
const STALE_AT_MOST: usize = 5;

/// Of more elements than this in one establishment the kernel is not asked to tell us each: 1.3 us, as long as it takes to add one.
const UNHEARD: usize = 5_000;

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
    /// Those of the monitor that hears others.
    ears: Option<Ears>,
    /// While they were stopped others may have committed, and the core was not told yet.
    unheard: bool,
    /// One for each family that has a table.
    rulesets: Vec<Ruleset>,
    /// What the kernel can do at each hook in use: hang chains there, reject there.
    allowed: HashMap<(Family, Hook), (bool, bool)>,
    /// Transactions carried out.
    transactions: u32,
}

/// One number for our tables: the handle of the `inet` table, and that of a `bridge` table 32 bits above.
fn number(specs: &Specs, tables: &[KernelTable]) -> u64 {
    let ours = tables.iter().filter(|table| specs.families().any(|family| family == table.family));
    ours.map(|table| place(table.family, table.handle)).fold(0, |all, one| all | one)
}

const fn place(family: Family, handle: u64) -> u64 {
    match family {
        Family::Inet => handle,
        Family::Bridge => handle << 32,
    }
}

/// The generation after this one: the kernel's count leaves 0 out.
fn next(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

/// The plan of a family's table, from specs and what the ignore sets hold.
pub fn plan(wanted: &Establish, family: Family, element_counters: bool) -> Plan {
    let specs = &wanted.specs;
    let named = |spec: &Spec| {
        [Key::V4, Key::V6].iter().any(|key| wanted.held.contains_key(ban_set_name(&spec.name, *key, true).as_str()))
    };
    let jails = specs.jails.iter().enumerate().filter_map(|(at, spec)| {
        Some(JailPlan {
            name: spec.name.clone(),
            ports: spec.ports.clone(),
            protocols: spec.protocols.clone(),
            hooks: spec.hooks_in(family)?.to_vec(),
            blocktype: spec.blocktype,
            ipv4_prefix: spec.policy.ipv4_prefix,
            ipv6_prefix: spec.policy.ipv6_prefix,
            ignore: wanted.own_ignored.get(at).cloned().unwrap_or_default(),
            nets: wanted.nets.get(at).copied().unwrap_or(false) || named(spec),
            dnat: spec.dnat,
            paused: wanted.paused.get(at).copied().unwrap_or(false),
        })
    });
    Plan {
        family,
        table: specs.table.clone(),
        ipv6: specs.ipv6,
        set_size: specs.nft.set_size,
        element_counters: counts_elements(specs.nft.element_counters) && element_counters,
        gc_interval: Some(GC_INTERVAL),
        ignore: wanted.ignored.clone(),
        only_drop: Vec::new(),
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

/// Where counting was not asked for, only found cheap: a ban set that is there counts as it does, and is not made anew for that.
fn count_as_found(wanted: &Establish, ruleset: &mut Ruleset, found: Option<&KernelTable>) {
    let auto = wanted.specs.nft.element_counters == Tristate::Auto;
    for set in ruleset.sets.iter_mut().filter(|set| auto && set.counter) {
        set.counter = found.and_then(|found| found.set(&set.name)).is_none_or(|is| is.counter);
    }
}

/// And one that is not, or that is made anew because of what it holds, counts if it is made for few bans.
fn count_where_cheap(wanted: &Establish, ruleset: &mut Ruleset, found: Option<&KernelTable>) {
    let auto = wanted.specs.nft.element_counters == Tristate::Auto;
    let many = |set: &Set| wanted.held.get(set.name.as_str()).is_some_and(|held| held.len() > COUNTED);
    for set in ruleset.sets.iter_mut().filter(|set| auto && set.counter) {
        set.counter = found.and_then(|found| found.set(&set.name)).is_some() || !many(set);
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
        Ok(Writer { socket, reader, ears: None, unheard: false, rulesets: Vec::new(), allowed: HashMap::new(), transactions: 0 })
    }

    /// The address of its socket, by which the kernel says that a change was ours.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Stops these ears while it loads what would take long to be told.
    pub fn stops(&mut self, ears: Option<Ears>) {
        self.ears = ears;
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

    /// What the tables hold, if they are those with this handle and are as wanted, bans aside; `None`: they have to be made so.
    fn look(&mut self, wanted: &Establish, handle: u64) -> Result<Option<Done>, String> {
        let specs = &wanted.specs;
        let generation = self.generation();
        let tables = self.tables(specs)?;
        if number(specs, &tables) != handle || tables.len() != specs.families().count() {
            return Ok(None);
        }
        for table in &tables {
            let mut ruleset = Ruleset::of(&self.plan(wanted, table.family)?).map_err(|e| e.to_string())?;
            ruleset.owner = specs.nft.owner && self.socket.features().owner;
            count_as_found(wanted, &mut ruleset, Some(table));
            if !table.equals(&ruleset) || table.sets.iter().any(|set| set.count.is_some_and(|count| count > LOOKED_AT)) {
                return Ok(None);
            }
        }
        let Some(adopted) = self.holds(specs, None)? else { return Ok(None) };
        if self.handle(specs)? != handle {
            return Ok(None);
        }
        let owned = specs.nft.owner && self.socket.features().owner;
        Ok(Some(Done { adopted, looked: true, table: handle, generation, owned, ..Done::default() }))
    }

    /// The tables as they are now, of every family that can have one.
    fn tables(&mut self, specs: &Specs) -> Result<Vec<KernelTable>, String> {
        let mut tables = Vec::new();
        for family in Family::ALL {
            tables.extend(self.reader.table(family, &specs.table).map_err(|e| e.to_string())?);
        }
        Ok(tables)
    }

    /// One number for our tables; 0 if there is none. A table that was made anew has another.
    pub fn handle(&mut self, specs: &Specs) -> Result<u64, String> {
        Ok(number(specs, &self.tables(specs)?))
    }

    /// What the ban sets of our tables hold now: what any of them holds, for the longest it has there; of a set that is too large to be
    /// listed only what is among `held`.
    pub fn adoptable(&mut self, specs: &Specs, held: &HashMap<Arc<str>, Vec<Change>>) -> Result<Vec<Adopted>, String> {
        Ok(self.holds(specs, Some(held))?.unwrap_or_default())
    }

    /// The same; without `held` all that they hold, or `None` if that can not be had soon.
    fn holds(&mut self, specs: &Specs, held: Option<&HashMap<Arc<str>, Vec<Change>>>) -> Result<Option<Vec<Adopted>>, String> {
        let mut found: Vec<Adopted> = Vec::new();
        // Where each is among those found, and in how many tables; how many tables have each set.
        let mut known: HashMap<(String, Interval), (usize, usize)> = HashMap::new();
        let mut having: HashMap<String, usize> = HashMap::new();
        for table in self.tables(specs)? {
            for kernel_set in &table.sets {
                let Some(set) = kernel_set.set.as_ref().filter(|set| set.content == Content::Bans) else { continue };
                *having.entry(set.name.clone()).or_default() += 1;
                let asked = held.and_then(|held| held.get(set.name.as_str())).filter(|_| !set.interval);
                let elements = match (kernel_set.count, asked) {
                    _ if held.is_none() => match self.reader.elements_within(LOOK, table.family, &table.name, set) {
                        Ok(None) => return Ok(None),
                        other => other.map(Option::unwrap_or_default),
                    },
                    (Some(count), Some(held)) if count > LISTED_AT_MOST => {
                        let keys: Vec<IpAddr> = held.iter().map(|change| change.what.first()).collect();
                        info!("set {} holds {count} elements: asked for {} by key instead of listing it", set.name, keys.len());
                        self.reader.find(table.family, &table.name, set, &keys)
                    }
                    _ => self.reader.elements(table.family, &table.name, set),
                }
                .map_err(|e| e.to_string())?;
                for element in &elements {
                    let (timeout, left) = element.timeout.map_or((None, None), |t| (Some(t.timeout), Some(t.expiration)));
                    let one = Adopted { set: set.name.clone(), what: element.interval, timeout, left, everywhere: true };
                    let longest = |left: Option<Span>| left.map_or(u64::MAX, |left| left.0);
                    let (at, tables) = known.entry((one.set.clone(), one.what)).or_insert((found.len(), 0));
                    *tables += 1;
                    match found.get_mut(*at) {
                        Some(first) if longest(first.left) < longest(one.left) => *first = one,
                        Some(_) => {}
                        None => found.push(one),
                    }
                }
            }
        }
        for ((set, _), (at, tables)) in known {
            found[at].everywhere = having.get(&set).is_none_or(|having| *having == tables);
        }
        Ok(Some(found))
    }

    /// Makes the tables so. What others commit while they are read and written makes it look again.
    pub fn establish(&mut self, wanted: &Establish) -> Result<Done, String> {
        for alone in (0..STALE_AT_MOST).map(|_| true).chain([false]) {
            if let Some(done) = self.establish_at_once(wanted, alone)? {
                return Ok(Done { missed: std::mem::take(&mut self.unheard), ..done });
            }
        }
        Err("the ruleset changes faster than it can be read".to_owned())
    }

    /// Makes the tables so: those of all families change in one transaction; one that is ours and that no jail asks for any more is
    /// deleted in it. With `alone`, only if nobody commits meanwhile: else nothing is done, and `None` returned.
    ///
    /// If it is much our own ears are stopped for as long as it takes. Whether others committed meanwhile the generation says; what was
    /// missed once is not risked again until that was looked into.
    fn establish_at_once(&mut self, wanted: &Establish, alone: bool) -> Result<Option<Done>, String> {
        let specs = &wanted.specs;
        let mut generation = self.generation();
        let mut first = Transaction::new(specs.family, &specs.table);
        let (mut rest, mut rulesets, mut tables) = (Vec::new(), Vec::new(), Vec::new());
        let several = specs.families().count() > 1;
        let owned = specs.nft.owner && self.socket.features().owner;
        for family in Family::ALL {
            let found = self.reader.table(family, &specs.table).map_err(|e| e.to_string())?;
            let newer = |version| version > nft::ruleset::VERSION;
            if !specs.families().any(|used| used == family) {
                if found.and_then(|table| table.version()).is_some_and(|version| !newer(version)) {
                    first.turn_to(family);
                    first.delete_table();
                }
                continue;
            }
            let mut ruleset = Ruleset::of(&self.plan(wanted, family)?).map_err(|e| e.to_string())?;
            ruleset.owner = owned;
            tables.push((family, found.as_ref().map(|table| table.handle)));
            let (part, later) = self.part(wanted, &mut ruleset, found, several)?;
            first.append(part);
            rest.extend(later.into_iter().map(|(set, elements)| (family, set, elements)));
            rulesets.push(ruleset);
        }
        let alone = alone && generation != 0 && !first.is_empty();
        let mut stopped = false;
        if alone {
            first.only_at(generation);
            if !self.unheard && first.added() > UNHEARD {
                // What others did up to here is told before the ears are stopped.
                if !self.socket.is_still_at(generation).map_err(|e| e.to_string())? {
                    return Ok(None);
                }
                stopped = self.ears.as_ref().is_some_and(|ears| ears.stop().is_ok());
            }
            generation = next(generation);
        }
        let result = self.commit_all(&first, &rest);
        if stopped {
            if let Some(Err(e)) = self.ears.as_ref().map(Ears::open) {
                error!("{e}\n  help: what others change in the table is found out only when the next ban is sent");
            }
            // Whoever commits from here on is heard.
            let last = result.as_ref().ok().map(|(_, more)| (0..*more).fold(generation, |at, _| next(at)));
            self.unheard = last != Some(self.generation());
        }
        let new = match result {
            Err(refused) if refused.kind == Kind::Stale => return Ok(None),
            other => other.map_err(|refused| refused.to_string())?.0,
        };
        self.rulesets = rulesets;
        let made = |statement: &&transaction::Change| matches!(statement, transaction::Change::AddTable { comment: Some(_), .. });
        let fresh = first.statements().iter().filter(made).count() == self.rulesets.len();
        // Asked for now it could be somebody else's by now.
        let handles = tables.iter().map(|(family, found)| {
            let made = new.iter().find(|(of, _)| of == family).map(|(_, handle)| *handle);
            made.or(*found).map(|handle| place(*family, handle))
        });
        let table = match handles.collect::<Option<Vec<u64>>>().filter(|_| alone || first.is_empty()) {
            Some(handles) => handles.into_iter().fold(0, |all, one| all | one),
            None => self.handle(specs)?,
        };
        let changed = !first.is_empty();
        Ok(Some(Done { table, generation, fresh, changed, owned, ..Done::default() }))
    }

    /// Commits what has to go first, and then the bans that may follow; gives the tables that were made, and how many more transactions
    /// the bans took.
    fn commit_all(
        &mut self,
        first: &Transaction,
        rest: &[(Family, Set, Vec<Element>)],
    ) -> Result<(Vec<(Family, u64)>, usize), Refused> {
        self.socket.commit(first)?;
        let made: Vec<(Family, u64)> =
            Family::ALL.into_iter().filter_map(|family| Some((family, self.socket.made(family)?))).collect();
        let mut batches = 0;
        for (family, set, elements) in rest {
            let loaded = self.socket.load(*family, first.table(), set, elements.iter().copied());
            loaded.map_err(|(_, refused)| refused)?;
            batches += elements.len().div_ceil(nft::socket::BATCH);
        }
        Ok((made, batches))
    }

    /// The plan of a family's table as far as this kernel can carry it out. What it can not is said once.
    fn plan(&mut self, wanted: &Establish, family: Family) -> Result<Plan, String> {
        let mut plan = plan(wanted, family, self.socket.features().element_counters);
        let mut hooks: Vec<Hook> = plan.jails.iter().flat_map(|jail| &jail.hooks).map(|(hook, _)| *hook).collect();
        hooks.sort();
        hooks.dedup();
        let rejecting = plan.jails.iter().any(|jail| jail.blocktype == Blocktype::Reject);
        // What every kernel with nf_tables can do is not asked.
        hooks.retain(|_| family != Family::Inet || rejecting);
        for hook in hooks {
            let told = self.allowed.contains_key(&(family, hook));
            let (hangs, rejects) = match self.allowed.get(&(family, hook)) {
                Some(known) => *known,
                None => self.socket.allows(family, hook).map_err(|e| e.to_string())?,
            };
            self.allowed.insert((family, hook), (hangs, rejects));
            let those = |of: &dyn Fn(&JailPlan) -> bool| {
                let at = plan.jails.iter().filter(|jail| jail.hooks.iter().any(|(at, _)| *at == hook) && of(jail));
                at.map(|jail| jail.name.as_str()).collect::<Vec<_>>().join(", ")
            };
            let (all, rejecting) = (those(&|_| true), those(&|jail| jail.blocktype == Blocktype::Reject));
            if !hangs {
                if !told {
                    warn!(
                        "this kernel has no {family} {hook}: bans of {all} do not bite there\n  help: load the module nf_tables_{family}, or leave {hook} out of chain_hook"
                    );
                }
                plan.jails.iter_mut().for_each(|jail| jail.hooks.retain(|(at, _)| *at != hook));
            } else if !rejects {
                plan.only_drop.push(hook);
                if !told && !rejecting.is_empty() {
                    warn!("this kernel can not reject at {family} {hook}: {rejecting} drop there");
                }
            }
        }
        Ok(plan)
    }

    /// What makes one table so: what has to be sent first, and bans that may follow. With `several` tables, one is also given what others
    /// took out of it alone: a ban stands in all of them.
    fn part(
        &mut self,
        wanted: &Establish,
        ruleset: &mut Ruleset,
        mut found: Option<KernelTable>,
        several: bool,
    ) -> Result<(Transaction, Fill), String> {
        count_as_found(wanted, ruleset, found.as_ref());
        let (family, table) = (ruleset.family, ruleset.table.clone());
        let mut suspects = Vec::new();
        if let Some(kept) = &mut found {
            let renewed: HashSet<&str> =
                transaction::renewed_sets(ruleset, Some(kept)).iter().map(|set| set.name.as_str()).collect();
            for found in &mut kept.sets {
                let Some(set) = ruleset.set(&found.name).filter(|set| set.content == Content::Bans) else { continue };
                if !wanted.exact.holds(&set.name) || renewed.contains(set.name.as_str()) {
                    continue;
                }
                let meant = wanted.held.get(set.name.as_str()).map_or(0, Vec::len);
                // A dump is quadratic in the size: a large set is made anew sooner than it is read. So is one of intervals, which may be
                // cut otherwise than is meant, and one that others change so often that no dump ends.
                let small = found.count.is_none_or(|n| n as usize <= transaction::AT_ONCE) && meant <= transaction::AT_ONCE;
                let read = match !set.interval && small {
                    true => self.reader.elements_within(REPAIR, family, &table, set).map_err(|e| e.to_string())?,
                    false => None,
                };
                match read {
                    Some(elements) => suspects.push((set.name.clone(), elements)),
                    None => found.set = None,
                }
            }
        }
        count_where_cheap(wanted, ruleset, found.as_ref());
        let (ruleset, table) = (&*ruleset, table.as_str());
        let mut counters = HashMap::new();
        let mut present: HashMap<String, HashSet<Interval>> = HashMap::new();
        if let (Some(kept), Suspects::None) = (&found, &wanted.exact) {
            let renewed = nft::transaction::renewed_sets(ruleset, Some(kept));
            let is_renewed = |set: &Set| renewed.iter().any(|renewed| renewed.name == set.name);
            for set in ruleset.sets.iter().filter(|set| set.content == Content::Bans) {
                let several = several && !set.interval;
                let Some(old) = kept.set(&set.name) else { continue };
                let fits = kept.sets.iter().any(|of| of.name == set.name && of.count.is_none_or(|n| n as usize <= LEVELLED));
                if !(is_renewed(set) || several && fits) {
                    continue;
                }
                let elements = self.reader.elements(family, table, old).map_err(|e| e.to_string())?;
                if is_renewed(set) {
                    counters.extend(elements.iter().filter_map(|e| Some(((set.name.clone(), e.interval.first()), e.counter?))));
                } else {
                    present.insert(set.name.clone(), elements.iter().map(|element| element.interval).collect());
                }
            }
        }
        let now = clock::now();
        let held = |set: &Set| -> Vec<Element> {
            let changes = wanted.held.get(set.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            let elements = changes.iter().filter_map(|change| element(now, change)).map(|e| match counters.is_empty() {
                true => e,
                false => Element { counter: counters.get(&(set.name.clone(), e.interval.first())).copied(), ..e },
            });
            let elements: Vec<Element> = elements.collect();
            match set.size.map(|size| size as usize).filter(|size| *size < elements.len()) {
                Some(size) => {
                    transaction::split_newest(vec![(set.clone(), elements)], size).0.pop().map_or(Vec::new(), |(_, e)| e)
                }
                None => elements,
            }
        };
        let Establishment { mut first, rest } = Transaction::establish(ruleset, found.as_ref(), held).map_err(|newer| {
            format!("table {family} {table}: {newer}\n  help: use the newer program, or delete the table first")
        })?;
        for (set, is) in &present {
            let Some(set) = ruleset.set(set) else { continue };
            first.add(set, held(set).into_iter().filter(|element| !is.contains(&element.interval)).collect::<Vec<_>>());
        }
        for (name, present) in &suspects {
            let Some(set) = ruleset.set(name) else { continue };
            first.settle(set, present, &held(set), ALIKE);
        }
        Ok((first, rest))
    }

    /// Carries out changes, in order. What the kernel refuses alone is told by index; the rest is carried out.
    pub fn commit(&mut self, changes: &[Change]) -> Result<Committed, String> {
        let (before, own) = (self.generation(), self.transactions);
        let mut refusals = Vec::new();
        let mut base = 0;
        while base < changes.len() {
            let end = self.boundary(changes, (base + AT_ONCE).min(changes.len()), base);
            self.commit_part(&changes[base..end], base, &mut refusals)?;
            base = end;
        }
        let after = self.generation();
        let alone = before != 0 && after.wrapping_sub(before) == self.transactions.wrapping_sub(own);
        Ok(Committed { refusals, before, after, alone })
    }

    /// Where changes can be parted, near `wanted` and after `from`: never between those of a set of intervals, which hold only together.
    fn boundary(&self, changes: &[Change], wanted: usize, from: usize) -> usize {
        let is_net =
            |change: &Change| self.rulesets.iter().filter_map(|ruleset| ruleset.set(&change.set)).any(|set| set.interval);
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
                refusals.push(Refusal { index: base, why: refused.to_string(), full: refused.kind == Kind::SetFull });
                Ok(())
            }
            _ => {
                let middle = self.boundary(changes, changes.len() / 2, 0);
                if middle == changes.len() {
                    refusals.push(Refusal { index: base, why: refused.to_string(), full: false });
                    return Ok(());
                }
                let (left, right) = changes.split_at(middle);
                self.commit_part(left, base, refusals)?;
                self.commit_part(right, base + left.len(), refusals)
            }
        }
    }

    fn transact(&mut self, changes: &[Change]) -> Result<(), Refused> {
        let Some(main) = self.rulesets.first() else { return Ok(()) };
        let now = clock::now();
        let mut transaction = Transaction::about(main);
        for ruleset in &self.rulesets {
            transaction.turn_to(ruleset.family);
            let mut changes = changes.iter().peekable();
            while let Some(change) = changes.next() {
                // A jail without IPv6 sets has no place for the element; the ban is held and bites nobody. A jail that is not in this
                // table has none either.
                let Some(set) = ruleset.set(&change.set) else { continue };
                let elements = |change: &Change| element(now, change).into_iter().collect::<Vec<_>>();
                let comes_back = changes.peek().is_some_and(|next| next.set == change.set && next.what == change.what);
                match change.to {
                    Target::Held { .. } => transaction.add(set, elements(change)),
                    // An interval that is removed and comes back with another end.
                    Target::Gone if set.interval && comes_back => {
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
        }
        self.socket.commit(&transaction)?;
        self.transactions = self.transactions.wrapping_add(u32::from(!transaction.is_empty()));
        Ok(())
    }

    fn look_or_establish(&mut self, wanted: &Establish) -> Result<Done, String> {
        if let Some(handle) = wanted.look
            && let Some(done) = self.look(wanted, handle)?
        {
            return Ok(done);
        }
        let adopted = if wanted.adopt { self.adoptable(&wanted.specs, &wanted.held)? } else { Vec::new() };
        Ok(Done { adopted, ..self.establish(wanted)? })
    }

    /// Works until the core goes away.
    pub fn run(mut self, work: &Receiver<Work>, done: &Sender<Event>) {
        while let Ok(work) = work.recv() {
            let event = match work {
                Work::Commit(changes) => match self.commit(&changes) {
                    Ok(committed) => Event::Committed(committed),
                    Err(why) => Event::Damaged(why),
                },
                Work::Establish(wanted) => Event::Established(self.look_or_establish(&wanted)),
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
