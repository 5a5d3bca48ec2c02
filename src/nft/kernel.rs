//! What the kernel holds of our table, read back into the types we write it from.
//!
//! Reading has a socket of its own: dumps of large sets take their time (150 ms for 100 000 elements, 30 s for a million), and the
//! socket that writes is not kept from writing. A dump that another commit broke into is begun again.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::element::{Counter, Element, Interval, Key, Timeout};
use super::expression::{Braces, INET_SERVICE, PROTO_AND_SERVICE, read_braces, read_counter, read_jump, read_rule};
use super::link::Link;
use super::message::{Attributes, Batch, Messages, attr, kind, number};
use super::ruleset::{Content, Jump, Map, PortSet, Rule, Ruleset, Set};
use super::socket::{CannotOpen, errno_text};
use super::transaction::{hook_number, write_key};
use crate::terms::{Family, Hook, Span};

/// A dump is begun again at most this often while commits break into it.
const ATTEMPTS: usize = 50;
/// Keys asked for in one request.
const KEYS: usize = 500;

/// A socket that reads.
#[derive(Debug)]
pub struct Kernel {
    link: Link,
    batch: Batch,
    answer: Vec<u8>,
    sequence: u32,
}

/// Reading failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// What was asked for, in nft's language.
    pub what: String,
    /// The error the kernel gave; EINTR if commits never ceased to break into a dump.
    pub errno: Errno,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, errno_text(self.errno))
    }
}

impl std::error::Error for Unreadable {}

/// Our table as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelTable {
    /// The family.
    pub family: Family,
    /// The name.
    pub name: String,
    /// The number the kernel gave it when it was made.
    pub handle: u64,
    /// `NFT_TABLE_F_*`: 0 is an ordinary table.
    pub flags: u32,
    /// Its comment.
    pub comment: Option<String>,
    /// The generation of the kernel's whole ruleset that this was read at.
    pub generation: u32,
    /// Its named sets and maps.
    pub sets: Vec<KernelSet>,
    /// Its chains.
    pub chains: Vec<KernelChain>,
}

/// A named set as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSet {
    /// The name.
    pub name: String,
    /// Its handle.
    pub handle: u64,
    /// What we would have written to make it; `None` if it is no set of addresses, or none that we make.
    pub set: Option<Set>,
    /// The same of a set of ports.
    pub ports: Option<PortSet>,
    /// The same of a verdict map.
    pub map: Option<Map>,
    /// How many elements it holds, where the kernel says so.
    pub count: Option<u32>,
}

/// A chain as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelChain {
    /// The name.
    pub name: String,
    /// Hook and priority of a base chain of type filter and policy accept; `None` for every other.
    pub base: Option<(Hook, i32)>,
    /// Whether it hangs nowhere: rules jump there.
    pub regular: bool,
    /// Its rules.
    pub rules: Vec<KernelRule>,
}

/// A rule as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRule {
    /// Its handle.
    pub handle: u64,
    /// The rule.
    pub rule: Rule,
    /// What its counter has counted.
    pub counter: Option<Counter>,
}

impl KernelTable {
    /// The version of the banset that made it; `None` if none did.
    pub fn version(&self) -> Option<u32> {
        self.comment.as_deref()?.strip_prefix("banset ")?.parse().ok()
    }

    /// Whether it belongs to a socket that is still open.
    pub fn is_owned(&self) -> bool {
        self.flags & number::TABLE_OWNER != 0
    }

    /// The set of this name, if it is one we could have made.
    pub fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)?.set.as_ref()
    }

    /// What the rules of each jail have counted: packets blocked.
    pub fn blocked(&self) -> HashMap<&str, Counter> {
        let mut jails: HashMap<&str, Counter> = HashMap::new();
        for rule in self.chains.iter().flat_map(|chain| &chain.rules) {
            if let (Some(jail), Some(counter)) = (rule.rule.jail(), rule.counter) {
                *jails.entry(jail).or_default() += counter;
            }
        }
        jails
    }

    /// Whether it is what the ruleset wants, bans aside: nothing would have to be sent.
    pub fn equals(&self, ruleset: &Ruleset) -> bool {
        super::Transaction::establish(ruleset, Some(self), |_| Vec::new()).is_ok_and(|all| all.first.is_empty())
    }
}

impl Kernel {
    /// Opens nf_tables for reading.
    pub fn open() -> Result<Kernel, CannotOpen> {
        let link = Link::open(1 << 20, 4 << 20).map_err(CannotOpen)?;
        Ok(Kernel { link, batch: Batch::default(), answer: Vec::new(), sequence: 1 })
    }

    /// The generation of the ruleset: it changes with every commit of anybody.
    pub fn generation(&mut self) -> Result<u32, Unreadable> {
        let mut generation = None;
        self.one(kind::GETGEN, Family::Inet, |_| {}, |attributes| generation = attributes.u32(attr::GEN_ID))
            .and_then(|()| generation.ok_or(Errno::ENOMSG))
            .map_err(unreadable(|| "list ruleset".to_owned()))
    }

    /// The table of this name with all that is in it except bans; `None` if there is no such table. Read as one state of the ruleset.
    pub fn table(&mut self, family: Family, name: &str) -> Result<Option<KernelTable>, Unreadable> {
        let what = || format!("list table {family} {name}");
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            let read = self.read_table(family, name, before);
            // Something that vanished while we looked is no error: it is another state by now.
            if self.generation()? == before {
                return read.map_err(unreadable(what));
            }
        }
        Err(Unreadable { what: what(), errno: Errno::EINTR })
    }

    /// Every element of a set, in ascending order.
    pub fn elements(&mut self, family: Family, table: &str, set: &Set) -> Result<Vec<Element>, Unreadable> {
        let mut attempts = 0..ATTEMPTS;
        let read = self.whole(family, table, set, || attempts.next().is_some());
        read.and_then(|elements| elements.ok_or(Errno::EINTR))
            .map_err(unreadable(|| format!("list set {family} {table} {}", set.name)))
    }

    /// The same where something else would do: `None` if others commit so often that no dump comes to its end within this time.
    pub fn elements_within(
        &mut self,
        patience: Duration,
        family: Family,
        table: &str,
        set: &Set,
    ) -> Result<Option<Vec<Element>>, Unreadable> {
        let start = Instant::now();
        self.whole(family, table, set, || start.elapsed() < patience)
            .map_err(unreadable(|| format!("list set {family} {table} {}", set.name)))
    }

    /// A dump that nobody broke into, as long as another may be tried.
    fn whole(
        &mut self,
        family: Family,
        table: &str,
        set: &Set,
        mut again: impl FnMut() -> bool,
    ) -> Result<Option<Vec<Element>>, Errno> {
        while again() {
            match self.read_elements(family, table, set) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(mut elements) => {
                    elements.sort_unstable_by_key(|element| element.interval);
                    // A hash set that was just filled is still being spread over more buckets, and a dump goes on by counting: it then
                    // shows some elements twice, and as many not at all, without any sign of it.
                    if elements.windows(2).all(|pair| pair[0].interval.first() != pair[1].interval.first()) {
                        return Ok(Some(elements));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Those of `keys` that are elements of a set without intervals, found by key: no matter how large the set is, about 3 microseconds
    /// each.
    pub fn find(&mut self, family: Family, table: &str, set: &Set, keys: &[IpAddr]) -> Result<Vec<Element>, Unreadable> {
        let mut found = Vec::new();
        let mut rest = keys;
        let mut together = KEYS;
        while !rest.is_empty() {
            let asked = &rest[..rest.len().min(together)];
            let (answered, missing) = self
                .read_keys(family, table, set, asked, &mut found)
                .map_err(unreadable(|| format!("get element {family} {table} {} {{ {} }}", set.name, asked[0])))?;
            // The kernel stops at the first that is not there: the more gaps, the fewer are asked for together.
            together = (2 * (answered + 1)).min(KEYS);
            rest = &rest[answered + usize::from(missing)..];
        }
        Ok(found)
    }

    /// How many elements a set holds, if the kernel says so (`NFTA_SET_COUNT`); `None` if it does not, or there is no such set.
    pub fn count(&mut self, family: Family, table: &str, set: &str) -> Result<Option<u32>, Unreadable> {
        let mut count = None;
        let read = self.one(
            kind::GETSET,
            family,
            |b| {
                b.text(attr::SET_TABLE, table);
                b.text(attr::SET_NAME, set);
            },
            |attributes| count = attributes.u32(attr::SET_COUNT),
        );
        match read {
            Ok(()) => Ok(count),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Unreadable { what: format!("list set {family} {table} {set}"), errno }),
        }
    }

    fn read_table(&mut self, family: Family, name: &str, generation: u32) -> Result<Option<KernelTable>, Errno> {
        let mut table = None;
        let read = self.one(
            kind::GETTABLE,
            family,
            |b| b.text(attr::TABLE_NAME, name),
            |attributes| {
                table = Some(KernelTable {
                    family,
                    name: name.to_owned(),
                    handle: attributes.u64(attr::TABLE_HANDLE).unwrap_or(0),
                    flags: attributes.u32(attr::TABLE_FLAGS).unwrap_or(0),
                    comment: attributes.find(attr::TABLE_USERDATA).and_then(|data| userdata_text(data, 0)),
                    generation,
                    sets: Vec::new(),
                    chains: Vec::new(),
                });
            },
        );
        match read {
            Err(Errno::ENOENT) => return Ok(None),
            other => other?,
        }
        let Some(mut table) = table else { return Err(Errno::ENOMSG) };
        let (mut anonymous, mut port_sets, mut maps) = (Vec::new(), Vec::new(), Vec::new());
        self.dump(
            kind::GETSET,
            family,
            |b| b.text(attr::SET_TABLE, name),
            |attributes| {
                // Kernels before 5.14 or so ignore the table asked for.
                if attributes.text(attr::SET_TABLE) != Some(name) {
                    return;
                }
                let flags = attributes.u32(attr::SET_FLAGS).unwrap_or(0);
                let set = read_set(attributes);
                let key_type = attributes.u32(attr::SET_KEY_TYPE).unwrap_or(0);
                if flags & number::SET_ANONYMOUS != 0 {
                    anonymous.push((set.name, key_type, flags));
                } else {
                    if key_type == INET_SERVICE && flags & !number::SET_INTERVAL == 0 {
                        port_sets.push((table.sets.len(), flags));
                    } else if key_type == PROTO_AND_SERVICE
                        && flags == number::SET_MAP
                        && attributes.u32(attr::SET_DATA_TYPE) == Some(number::DATA_VERDICT)
                    {
                        maps.push(table.sets.len());
                    }
                    table.sets.push(set);
                }
            },
        )?;
        for kernel_set in &mut table.sets {
            if let Some(set) = &mut kernel_set.set
                && set.interval
                && !set.timeout
            {
                let elements = self.read_elements(family, name, set)?;
                let mut intervals: Vec<Interval> = elements.iter().map(|element| element.interval).collect();
                intervals.sort_unstable();
                set.content = Content::Exactly(intervals);
            }
        }
        for (at, flags) in port_sets {
            let points = self.read_points(family, name, &table.sets[at].name)?;
            if let Some(Braces::Ports(ports)) = read_braces(INET_SERVICE, flags, points) {
                table.sets[at].ports = Some(PortSet { name: table.sets[at].name.clone(), ports });
            }
        }
        for at in maps {
            let name = table.sets[at].name.clone();
            table.sets[at].map = self.read_jumps(family, &table.name, &name)?;
        }
        let mut braces: HashMap<String, Braces> = HashMap::new();
        for (set, key_type, flags) in anonymous {
            let points = self.read_points(family, name, &set)?;
            braces.extend(read_braces(key_type, flags, points).map(|content| (set, content)));
        }
        self.dump(
            kind::GETCHAIN,
            family,
            |b| b.text(attr::CHAIN_TABLE, name),
            |attributes| {
                if attributes.text(attr::CHAIN_TABLE) == Some(name) {
                    table.chains.push(read_chain(attributes));
                }
            },
        )?;
        self.dump(
            kind::GETRULE,
            family,
            |b| b.text(attr::RULE_TABLE, name),
            |attributes| {
                if attributes.text(attr::RULE_TABLE) != Some(name) {
                    return;
                }
                let chain = attributes.text(attr::RULE_CHAIN).unwrap_or_default();
                let Some(chain) = table.chains.iter_mut().find(|known| known.name == chain) else { return };
                let expressions = attributes.nested(attr::RULE_EXPRESSIONS).unwrap_or(Attributes(&[]));
                let (rule, counter) = read_rule(family, expressions, &braces);
                chain.rules.push(KernelRule { handle: attributes.u64(attr::RULE_HANDLE).unwrap_or(0), rule, counter });
            },
        )?;
        Ok(Some(table))
    }

    fn read_elements(&mut self, family: Family, table: &str, set: &Set) -> Result<Vec<Element>, Errno> {
        let mut elements = Vec::new();
        let mut points = Vec::new();
        self.dump(
            kind::GETSETELEM,
            family,
            |b| write_set_name(b, table, &set.name),
            |attributes| {
                let list = attributes.nested(attr::ELEMS_LIST).unwrap_or(Attributes(&[]));
                for (element, end) in list.filter_map(|(_, element)| read_element(set.key, Attributes(element))) {
                    if set.interval { points.push((element, end)) } else { elements.push(element) }
                }
            },
        )?;
        if set.interval {
            elements = join_points(points);
        }
        Ok(elements)
    }

    /// The elements of a verdict map, sorted; `None` if any is one that we never write.
    fn read_jumps(&mut self, family: Family, table: &str, name: &str) -> Result<Option<Map>, Errno> {
        let mut jumps = Some(Vec::new());
        self.dump(
            kind::GETSETELEM,
            family,
            |b| write_set_name(b, table, name),
            |attributes| {
                let list = attributes.nested(attr::ELEMS_LIST).unwrap_or(Attributes(&[]));
                for (_, element) in list {
                    match (read_jump(Attributes(element)), &mut jumps) {
                        (Some(jump), Some(jumps)) => jumps.push(jump),
                        _ => jumps = None,
                    }
                }
            },
        )?;
        Ok(jumps.map(|mut jumps| {
            jumps.sort_by_key(Jump::order);
            Map { name: name.to_owned(), jumps }
        }))
    }

    /// The `(key, is an end)` of a set of ports or protocols.
    fn read_points(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<(Vec<u8>, bool)>, Errno> {
        let mut points = Vec::new();
        self.dump(
            kind::GETSETELEM,
            family,
            |b| write_set_name(b, table, set),
            |attributes| {
                let list = attributes.nested(attr::ELEMS_LIST).unwrap_or(Attributes(&[]));
                points.extend(list.filter_map(|(_, element)| {
                    let element = Attributes(element);
                    let key = element.nested(attr::ELEM_KEY)?.find(attr::DATA_VALUE)?.to_vec();
                    Some((key, is_end(element)))
                }));
            },
        )?;
        Ok(points)
    }

    /// Asks for `keys`; adds what is there to `found`. How many were answered, and whether the one after them is missing.
    fn read_keys(
        &mut self,
        family: Family,
        table: &str,
        set: &Set,
        keys: &[IpAddr],
        found: &mut Vec<Element>,
    ) -> Result<(usize, bool), Errno> {
        let mut answered = 0;
        self.batch.restart(family, self.sequence);
        self.batch.list(
            kind::GETSETELEM,
            number::F_ACK,
            keys,
            |b| write_set_name(b, table, &set.name),
            |b, key| b.nest(attr::LIST_ELEM, |b| write_key(b, *key)),
        );
        let result = self.exchange(|attributes| {
            let list = attributes.nested(attr::ELEMS_LIST).unwrap_or(Attributes(&[]));
            for (element, _) in list.filter_map(|(_, element)| read_element(set.key, Attributes(element))) {
                found.push(element);
                answered += 1;
            }
        });
        match result {
            Ok(()) => Ok((keys.len(), false)),
            Err(Errno::ENOENT) if answered < keys.len() => Ok((answered, true)),
            Err(errno) => Err(errno),
        }
    }

    /// A request about one thing.
    fn one(
        &mut self,
        kind: u8,
        family: Family,
        head: impl FnOnce(&mut Batch),
        each: impl FnMut(Attributes<'_>),
    ) -> Result<(), Errno> {
        self.batch.restart(family, self.sequence);
        self.batch.message(kind, number::F_ACK, head);
        self.exchange(each)
    }

    /// A request about everything of a kind; EINTR if a commit came in between, after which what was read so far is worthless.
    fn dump(
        &mut self,
        kind: u8,
        family: Family,
        head: impl FnOnce(&mut Batch),
        each: impl FnMut(Attributes<'_>),
    ) -> Result<(), Errno> {
        self.batch.restart(family, self.sequence);
        self.batch.message(kind, number::F_DUMP, head);
        self.exchange(each)
    }

    /// A request about everything of a kind in all tables of an `NFPROTO_*` family.
    pub(super) fn dump_of(&mut self, kind: u8, family: u8, each: impl FnMut(Attributes<'_>)) -> Result<(), Errno> {
        self.batch.restart_in(family, self.sequence);
        self.batch.message(kind, number::F_DUMP, |_| {});
        self.exchange(each)
    }

    /// Sends the request and hands every message of the answer to `each`.
    fn exchange(&mut self, mut each: impl FnMut(Attributes<'_>)) -> Result<(), Errno> {
        let sequence = self.sequence;
        self.sequence = self.batch.next_sequence();
        self.link.drain(&mut self.answer);
        self.link.send(self.batch.bytes().map_err(|_| Errno::EMSGSIZE)?)?;
        loop {
            // A dump goes on while it is received, so there is always either a datagram or an end.
            let datagram = self.link.receive(&mut self.answer)?.ok_or(Errno::ENOMSG)?;
            for message in Messages(datagram).filter(|message| message.sequence == sequence) {
                if message.flags & number::F_DUMP_INTR != 0 {
                    return Err(Errno::EINTR);
                }
                match message.kind {
                    number::NLMSG_ERROR | number::NLMSG_DONE => {
                        let error = message.payload.first_chunk().map_or(0, |error| i32::from_ne_bytes(*error));
                        return if error == 0 { Ok(()) } else { Err(Errno::from_raw(-error)) };
                    }
                    _ => each(message.attributes()),
                }
            }
        }
    }
}

fn unreadable(what: impl FnOnce() -> String) -> impl FnOnce(Errno) -> Unreadable {
    move |errno| Unreadable { what: what(), errno }
}

fn write_set_name(b: &mut Batch, table: &str, set: &str) {
    b.text(attr::ELEMS_TABLE, table);
    b.text(attr::ELEMS_SET, set);
}

fn is_end(element: Attributes<'_>) -> bool {
    element.u32(attr::ELEM_FLAGS).unwrap_or(0) & number::ELEM_INTERVAL_END != 0
}

/// An element with its key as a single address, and whether that is where an interval ends.
pub(crate) fn read_element(key: Key, element: Attributes<'_>) -> Option<(Element, bool)> {
    let address = key.read(element.nested(attr::ELEM_KEY)?.find(attr::DATA_VALUE)?)?;
    let millis = |kind| element.u64(kind).map(|millis| Span(millis.saturating_mul(1000)));
    let timeout = millis(attr::ELEM_TIMEOUT)
        .filter(|timeout| timeout.0 > 0)
        .map(|timeout| Timeout { timeout, expiration: millis(attr::ELEM_EXPIRATION).unwrap_or(timeout) });
    let expression = element
        .nested(attr::ELEM_EXPR)
        .or_else(|| element.nested(attr::ELEM_EXPRESSIONS).and_then(|list| list.nested(attr::LIST_ELEM)));
    let counter = expression
        .filter(|expression| expression.text(attr::EXPR_NAME) == Some("counter"))
        .and_then(|expression| read_counter(expression.nested(attr::EXPR_DATA)?));
    Some((Element { interval: address.into(), timeout, counter }, is_end(element)))
}

/// Interval starts and ends into intervals.
pub(crate) fn join_points(mut points: Vec<(Element, bool)>) -> Vec<Element> {
    // Where one interval ends another may start: the end comes first.
    points.sort_by(|(a, a_end), (b, b_end)| a.interval.cmp(&b.interval).then(b_end.cmp(a_end)));
    let mut elements = Vec::new();
    let mut open: Option<Element> = None;
    for (point, end) in points {
        if let Some(start) = open.take() {
            let last = Interval::before(point.interval.first()).unwrap_or(start.interval.first());
            let interval = Interval::new(start.interval.first(), last).unwrap_or(start.interval);
            elements.push(Element { interval, ..start });
        }
        if !end {
            open = Some(point);
        }
    }
    elements.extend(open.map(|start| Element { interval: Interval::from_on(start.interval.first()), ..start }));
    elements
}

/// A text in user data: type, length, value with its NUL.
pub(crate) fn userdata_text(mut data: &[u8], wanted: u8) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let (value, after) = rest.split_at_checked(usize::from(*length))?;
        if *kind == wanted {
            let value = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(value).into_owned());
        }
        data = after;
    }
    None
}

/// What a set is made of; a set that ours could not be has no `set`.
fn read_set(attributes: Attributes<'_>) -> KernelSet {
    let name = attributes.text(attr::SET_NAME).unwrap_or_default().to_owned();
    let flags = attributes.u32(attr::SET_FLAGS).unwrap_or(0);
    let ours = number::SET_INTERVAL | number::SET_TIMEOUT | number::SET_EXPR;
    let key = [Key::V4, Key::V6].into_iter().find(|key| attributes.u32(attr::SET_KEY_TYPE) == Some(key.number()));
    let counter = match (attributes.nested(attr::SET_EXPR), attributes.find(attr::SET_EXPRESSIONS)) {
        (None, None) => Some(false),
        (Some(expression), None) => (expression.text(attr::EXPR_NAME) == Some("counter")).then_some(true),
        (_, Some(_)) => None,
    };
    let set = match (key, counter) {
        (Some(key), Some(counter)) if flags & !ours == 0 && attributes.u64(attr::SET_TIMEOUT).unwrap_or(0) == 0 => Some(Set {
            name: name.clone(),
            key,
            interval: flags & number::SET_INTERVAL != 0,
            timeout: flags & number::SET_TIMEOUT != 0,
            size: attributes.nested(attr::SET_DESC).and_then(|desc| desc.u32(attr::SET_DESC_SIZE)).filter(|size| *size > 0),
            counter,
            gc_interval: attributes
                .u32(attr::SET_GC_INTERVAL)
                .filter(|millis| *millis > 0)
                .map(|millis| Span(u64::from(millis) * 1000)),
            // NFTNL_UDATA_SET_COMMENT
            comment: attributes.find(attr::SET_USERDATA).and_then(|data| userdata_text(data, 7)),
            content: Content::Bans,
        }),
        _ => None,
    };
    let handle = attributes.u64(attr::SET_HANDLE).unwrap_or(0);
    KernelSet { name, handle, set, ports: None, map: None, count: attributes.u32(attr::SET_COUNT) }
}

fn read_chain(attributes: Attributes<'_>) -> KernelChain {
    let hooked = attributes.nested(attr::CHAIN_HOOK);
    let plain =
        attributes.text(attr::CHAIN_TYPE) == Some("filter") && attributes.u32(attr::CHAIN_POLICY) == Some(number::NF_ACCEPT);
    let base = hooked.filter(|_| plain).and_then(|hooked| {
        let wanted = hooked.u32(attr::HOOK_NUM)?;
        let hook = Hook::ALL.into_iter().find(|hook| hook_number(*hook) == wanted)?;
        Some((hook, hooked.u32(attr::HOOK_PRIORITY)?.cast_signed()))
    });
    let name = attributes.text(attr::CHAIN_NAME).unwrap_or_default().to_owned();
    KernelChain { name, base, regular: hooked.is_none(), rules: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(address: &str, end: bool) -> (Element, bool) {
        (Element::permanent(address.parse::<IpAddr>().unwrap()), end)
    }

    #[test]
    fn interval_points_are_joined_in_any_order() {
        let points = vec![
            point("255.255.255.255", false),
            point("10.0.0.0", true),
            point("10.0.0.1", true),
            point("9.0.0.0", false),
            point("10.0.0.0", false),
            point("0.0.0.0", true),
        ];
        let joined: Vec<String> = join_points(points).iter().map(|element| element.interval.to_string()).collect();
        assert_eq!(joined, ["9.0.0.0/8", "10.0.0.0", "255.255.255.255"]);
        assert_eq!(join_points(vec![point("128.0.0.0", false)])[0].interval.to_string(), "128.0.0.0/1");
    }

    #[test]
    fn user_data_are_read_with_care() {
        let table: [(&[u8], Option<&str>); 5] = [
            (&[0, 4, 2, 0, 0, 0, 7, 2, b'c', 0], Some("c")),
            (&[7, 1, b'c'], Some("c")),
            (&[7, 9, b'c'], None),
            (&[7], None),
            (&[], None),
        ];
        for (data, text) in table {
            assert_eq!(userdata_text(data, 7).as_deref(), text);
        }
    }
}
