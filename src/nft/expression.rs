//! Rules as the kernel holds them: statements into expressions, and expressions back into statements.
//!
//! Both directions stand side by side because they must agree: what we write is read back as the same value, and what nft(8)
//! writes for the same text is too (a saved listing loaded again is still our table). Ports and protocols in braces are
//! anonymous sets, made in the same batch and compared by content.

use std::collections::HashMap;
use std::net::IpAddr;

use super::element::{Counter, Key};
use super::message::{Attributes, Batch, attr, kind, number};
use super::ruleset::{Jump, Map, PortSet, Reject, Rule, Statement, mask};
use crate::terms::{Family, Protocol};

/// The register everything goes through (`NFT_REG_1`).
const REGISTER: u32 = 1;
/// The register beside it (`NFT_REG32_01`), for the second part of `meta l4proto . th dport`.
const SECOND: u32 = 9;
/// nft's numbers for the types of sets (`enum datatypes` in nft), and of `inet_proto . inet_service`.
const INET_PROTO: u32 = 12;
pub(crate) const INET_SERVICE: u32 = 13;
pub(crate) const PROTO_AND_SERVICE: u32 = INET_PROTO << 6 | INET_SERVICE;

/// An anonymous set, as a rule's braces make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Braces {
    /// Protocol numbers.
    Protocols(Vec<u8>),
    /// Port ranges.
    Ports(Vec<(u16, u16)>),
}

/// Writes the messages that add `rule` to a chain: its anonymous sets, their elements, and the rule itself. `before` is the handle
/// of the rule it goes in front of; without, it goes last. `counted` is what its counter begins with.
pub(crate) fn write_rule(
    batch: &mut Batch,
    family: Family,
    table: &str,
    chain: &str,
    before: Option<u64>,
    rule: &Rule,
    counted: Counter,
) {
    let mut ids = Vec::new();
    let mut header = None;
    for statement in &rule.statements {
        match statement {
            Statement::L4proto(list) if list.len() > 1 => {
                let numbers = list.iter().map(|protocol| protocol.number()).collect();
                ids.push(write_braces(batch, table, &Braces::Protocols(numbers), None));
            }
            Statement::L4proto(list) => header = list.first().copied(),
            Statement::Dport(list) if list.len() > 1 => {
                ids.push(write_braces(batch, table, &Braces::Ports(list.clone()), header));
            }
            _ => {}
        }
    }
    let mut ids = ids.into_iter();
    let flags = number::F_CREATE | if before.is_none() { number::F_APPEND } else { 0 };
    batch.message(kind::NEWRULE, flags, |b| {
        b.text(attr::RULE_TABLE, table);
        b.text(attr::RULE_CHAIN, chain);
        b.nest(attr::RULE_EXPRESSIONS, |b| {
            let mut known = None;
            for statement in &rule.statements {
                write_statement(b, family, statement, counted, &mut known, &mut ids);
            }
        });
        if let Some(handle) = before {
            b.u64(attr::RULE_POSITION, handle);
        }
    });
}

/// An anonymous set with its elements; the id a lookup in the same batch names it by. User data are what nft writes, so that
/// it lists names instead of numbers: byte order, `typeof`, and for intervals that neighbours may be merged.
fn write_braces(batch: &mut Batch, table: &str, braces: &Braces, header: Option<Protocol>) -> u32 {
    let id = batch.set_id();
    let mut flags = number::SET_ANONYMOUS | number::SET_CONSTANT;
    // What nft's `struct set` is told of the key: EXPR_META with NFT_META_L4PROTO, or EXPR_PAYLOAD with header and field.
    let native = u32::to_ne_bytes;
    let mut userdata = vec![0, 4];
    let (type_number, length, points) = match braces {
        Braces::Protocols(list) => {
            userdata.extend(native(1));
            userdata.extend([3, 14, 0, 4]);
            userdata.extend(native(9));
            userdata.extend([1, 6, 0, 4]);
            userdata.extend(native(number::META_L4PROTO));
            (INET_PROTO, 1, list.iter().map(|n| (vec![*n], false)).collect::<Vec<_>>())
        }
        Braces::Ports(list) => {
            userdata.extend(native(2));
            let ranges = list.iter().any(|(first, last)| first != last);
            if ranges {
                flags |= number::SET_INTERVAL;
                userdata.extend([2, 4]);
                userdata.extend(native(1));
            }
            userdata.extend([3, 20, 0, 4]);
            userdata.extend(native(7));
            userdata.extend([1, 12, 0, 4]);
            userdata.extend(native(header_number(header)));
            userdata.extend([1, 4]);
            userdata.extend(native(2));
            (INET_SERVICE, 2, port_points(list, ranges))
        }
    };
    batch.message(kind::NEWSET, number::F_CREATE, |b| {
        b.text(attr::SET_TABLE, table);
        b.text(attr::SET_NAME, "__set%d");
        b.u32(attr::SET_FLAGS, flags);
        b.u32(attr::SET_KEY_TYPE, type_number);
        b.u32(attr::SET_KEY_LEN, length);
        b.u32(attr::SET_ID, id);
        b.nest(attr::SET_DESC, |b| b.u32(attr::SET_DESC_SIZE, points.len() as u32));
        b.bytes_of(attr::SET_USERDATA, &userdata);
    });
    batch.list(
        kind::NEWSETELEM,
        number::F_CREATE,
        &points,
        |b| {
            b.text(attr::ELEMS_TABLE, table);
            b.text(attr::ELEMS_SET, "__set%d");
            b.u32(attr::ELEMS_SET_ID, id);
        },
        |b, (key, end)| {
            b.nest(attr::LIST_ELEM, |b| {
                if *end {
                    b.u32(attr::ELEM_FLAGS, number::ELEM_INTERVAL_END);
                }
                b.nest(attr::ELEM_KEY, |b| b.bytes_of(attr::DATA_VALUE, key));
            });
        },
    );
    id
}

/// A named set of ports with its elements.
pub(crate) fn write_port_set(batch: &mut Batch, table: &str, set: &PortSet) {
    let id = batch.set_id();
    let ranges = set.interval();
    batch.message(kind::NEWSET, number::F_CREATE, |b| {
        b.text(attr::SET_TABLE, table);
        b.text(attr::SET_NAME, &set.name);
        b.u32(attr::SET_FLAGS, if ranges { number::SET_INTERVAL } else { 0 });
        b.u32(attr::SET_KEY_TYPE, INET_SERVICE);
        b.u32(attr::SET_KEY_LEN, 2);
        b.u32(attr::SET_ID, id);
        // NFTNL_UDATA_SET_KEYBYTEORDER: big endian.
        let mut userdata = vec![0, 4];
        userdata.extend(2u32.to_ne_bytes());
        b.bytes_of(attr::SET_USERDATA, &userdata);
    });
    let points = port_points(&set.ports, ranges);
    let open = ranges && set.ports.last().is_some_and(|(_, last)| *last == u16::MAX);
    let starts = points.len();
    let numbered: Vec<(usize, &(Vec<u8>, bool))> = points.iter().enumerate().collect();
    batch.list(
        kind::NEWSETELEM,
        number::F_CREATE,
        &numbered,
        |b| {
            b.text(attr::ELEMS_TABLE, table);
            b.text(attr::ELEMS_SET, &set.name);
            b.u32(attr::ELEMS_SET_ID, id);
        },
        |b, (at, (key, end))| {
            b.nest(attr::LIST_ELEM, |b| {
                if *end {
                    b.u32(attr::ELEM_FLAGS, number::ELEM_INTERVAL_END);
                }
                b.nest(attr::ELEM_KEY, |b| b.bytes_of(attr::DATA_VALUE, key));
                if open && at + 1 == starts {
                    // NFTNL_UDATA_SET_ELEM_FLAGS with nft's SET_ELEM_F_INTERVAL_OPEN: it goes on to the last port.
                    let mut open = vec![1, 4];
                    open.extend(1u32.to_ne_bytes());
                    b.bytes_of(attr::ELEM_USERDATA, &open);
                }
            });
        },
    );
}

/// A verdict map, without elements: the chains it sends packets to may be yet to come.
pub(crate) fn write_map(batch: &mut Batch, table: &str, name: &str) {
    let id = batch.set_id();
    batch.message(kind::NEWSET, number::F_CREATE, |b| {
        b.text(attr::SET_TABLE, table);
        b.text(attr::SET_NAME, name);
        b.u32(attr::SET_FLAGS, number::SET_MAP);
        b.u32(attr::SET_KEY_TYPE, PROTO_AND_SERVICE);
        b.u32(attr::SET_KEY_LEN, 8);
        b.u32(attr::SET_DATA_TYPE, number::DATA_VERDICT);
        b.u32(attr::SET_DATA_LEN, 0);
        b.u32(attr::SET_ID, id);
        // As nft writes them: the byte orders of key and data (none), and `typeof` as EXPR_CONCAT of nothing.
        let mut userdata = Vec::new();
        let native = u32::to_ne_bytes;
        userdata.extend([0, 4]);
        userdata.extend(native(0));
        userdata.extend([1, 4]);
        userdata.extend(native(0));
        userdata.extend([3, 8, 0, 4]);
        userdata.extend(native(13));
        userdata.extend([1, 0, 6, 4]);
        userdata.extend(native(0));
        b.bytes_of(attr::SET_USERDATA, &userdata);
    });
}

/// The elements of a verdict map.
pub(crate) fn write_jumps(batch: &mut Batch, table: &str, map: &Map) {
    batch.list(
        kind::NEWSETELEM,
        number::F_CREATE,
        &map.jumps,
        |b| {
            b.text(attr::ELEMS_TABLE, table);
            b.text(attr::ELEMS_SET, &map.name);
        },
        |b, jump| {
            b.nest(attr::LIST_ELEM, |b| {
                // Each part of a key fills four bytes.
                let mut key = [0; 8];
                key[0] = jump.protocol.number();
                key[4..6].copy_from_slice(&jump.port.to_be_bytes());
                b.nest(attr::ELEM_KEY, |b| b.bytes_of(attr::DATA_VALUE, &key));
                b.nest(attr::ELEM_DATA, |b| {
                    b.nest(attr::DATA_VERDICT, |b| {
                        b.u32(attr::VERDICT_CODE, number::JUMP);
                        b.text(attr::VERDICT_CHAIN, &jump.chain);
                    });
                });
            });
        },
    );
}

/// An element of a verdict map; `None` for what we never write.
pub(crate) fn read_jump(element: Attributes<'_>) -> Option<Jump> {
    let key: &[u8; 8] = element.nested(attr::ELEM_KEY)?.find(attr::DATA_VALUE)?.try_into().ok()?;
    let verdict = element.nested(attr::ELEM_DATA)?.nested(attr::DATA_VERDICT)?;
    let jumps = verdict.u32(attr::VERDICT_CODE)? == number::JUMP;
    let chain = verdict.text(attr::VERDICT_CHAIN)?.to_owned();
    jumps.then_some(Jump { protocol: protocol(key[0])?, port: u16::from_be_bytes([key[4], key[5]]), chain })
}

/// nft's number for a transport header (`enum proto_desc_id` in nft).
const fn header_number(header: Option<Protocol>) -> u32 {
    match header {
        Some(Protocol::Udp) => 6,
        Some(Protocol::Udplite) => 7,
        Some(Protocol::Tcp) => 8,
        Some(Protocol::Dccp) => 9,
        Some(Protocol::Sctp) => 10,
        None => 11,
    }
}

/// Keys and interval ends. With ranges the tree begins with an end at zero, as nft makes it, unless port zero is in a range.
fn port_points(list: &[(u16, u16)], ranges: bool) -> Vec<(Vec<u8>, bool)> {
    let mut points = Vec::new();
    if ranges && list.first().is_some_and(|(first, _)| *first != 0) {
        points.push((vec![0, 0], true));
    }
    for (first, last) in list {
        points.push((first.to_be_bytes().to_vec(), false));
        if let (true, Some(after)) = (ranges, last.checked_add(1)) {
            points.push((after.to_be_bytes().to_vec(), true));
        }
    }
    points
}

fn write_statement(
    b: &mut Batch,
    family: Family,
    statement: &Statement,
    counted: Counter,
    known: &mut Option<Key>,
    ids: &mut impl Iterator<Item = u32>,
) {
    match statement {
        Statement::L4proto(list) => {
            load_meta(b, number::META_L4PROTO);
            match list.as_slice() {
                [one] => compare(b, number::CMP_EQ, &[one.number()]),
                _ => lookup(b, "__set%d", ids.next(), false),
            }
        }
        Statement::Dport(list) => {
            load_payload(b, REGISTER, number::TRANSPORT_HEADER, 2, 2);
            match list.as_slice() {
                [(first, last)] if first == last => compare(b, number::CMP_EQ, &first.to_be_bytes()),
                [(first, last)] => {
                    compare(b, number::CMP_GTE, &first.to_be_bytes());
                    compare(b, number::CMP_LTE, &last.to_be_bytes());
                }
                _ => lookup(b, "__set%d", ids.next(), false),
            }
        }
        Statement::Address { key, destination, prefix, inverted, set } => {
            if *known != Some(*key) {
                write_dependency(b, family, *key);
                *known = Some(*key);
            }
            let (offset, length) = address_place(*key, *destination);
            load_payload(b, REGISTER, number::NETWORK_HEADER, offset, length);
            if let Some(prefix) = prefix {
                match mask(*key, *prefix) {
                    IpAddr::V4(mask) => mask_register(b, &mask.octets()),
                    IpAddr::V6(mask) => mask_register(b, &mask.octets()),
                }
            }
            lookup(b, set, None, *inverted);
        }
        Statement::Dispatch(map) => {
            load_meta(b, number::META_L4PROTO);
            load_payload(b, SECOND, number::TRANSPORT_HEADER, 2, 2);
            expression(b, "lookup", |b| {
                b.u32(attr::LOOKUP_SREG, REGISTER);
                // The verdict register.
                b.u32(attr::LOOKUP_DREG, 0);
                b.text(attr::LOOKUP_SET, map);
            });
        }
        Statement::Translated => {
            load_ct(b, number::CT_STATUS, None);
            mask_register(b, &number::STATUS_DNAT.to_ne_bytes());
            compare(b, number::CMP_NEQ, &[0; 4]);
        }
        Statement::OriginalDport(set) => {
            // IP_CT_DIR_ORIGINAL
            load_ct(b, number::CT_PROTO_DST, Some(0));
            lookup(b, set, None, false);
        }
        Statement::Jump(chain) => immediate(b, number::JUMP, Some(chain)),
        Statement::Counter => write_counter(b, attr::LIST_ELEM, Some(counted)),
        Statement::Drop => immediate(b, number::NF_DROP, None),
        Statement::Reject(reject) => expression(b, "reject", |b| match reject {
            Reject::TcpReset => {
                b.u32(attr::REJECT_TYPE, number::REJECT_TCP_RST);
                b.bytes_of(attr::REJECT_CODE, &[0]);
            }
            // ICMP_PORT_UNREACH and ICMPV6_PORT_UNREACH
            Reject::PortUnreachable(key) => {
                b.u32(attr::REJECT_TYPE, number::REJECT_ICMP);
                b.bytes_of(attr::REJECT_CODE, &[if *key == Key::V4 { 3 } else { 4 }]);
            }
        }),
        // Never wanted, only read.
        Statement::Foreign(_) => {}
    }
}

/// What `ip saddr` implies: `meta nfproto ipv4` in an inet table, `meta protocol ip` in a bridge table (which also matches frames
/// with a VLAN tag, as `ether type ip` would not).
fn write_dependency(b: &mut Batch, family: Family, key: Key) {
    match family {
        Family::Inet => {
            load_meta(b, number::META_NFPROTO);
            compare(b, number::CMP_EQ, &[nfproto(key)]);
        }
        Family::Bridge => {
            load_meta(b, number::META_PROTOCOL);
            compare(b, number::CMP_EQ, &ethertype(key));
        }
    }
}

const fn nfproto(key: Key) -> u8 {
    match key {
        Key::V4 => 2,
        Key::V6 => 10,
    }
}

const fn ethertype(key: Key) -> [u8; 2] {
    match key {
        Key::V4 => [0x08, 0x00],
        Key::V6 => [0x86, 0xdd],
    }
}

/// Offset and length of the address in its header.
const fn address_place(key: Key, destination: bool) -> (u32, u32) {
    match (key, destination) {
        (Key::V4, false) => (12, 4),
        (Key::V4, true) => (16, 4),
        (Key::V6, false) => (8, 16),
        (Key::V6, true) => (24, 16),
    }
}

fn expression(b: &mut Batch, name: &str, body: impl FnOnce(&mut Batch)) {
    b.nest(attr::LIST_ELEM, |b| {
        b.text(attr::EXPR_NAME, name);
        b.nest(attr::EXPR_DATA, body);
    });
}

/// `counter`, as the attribute `outer`: in a rule's list, a set's definition or an element.
pub(crate) fn write_counter(b: &mut Batch, outer: u16, from: Option<Counter>) {
    b.nest(outer, |b| {
        b.text(attr::EXPR_NAME, "counter");
        b.nest(attr::EXPR_DATA, |b| {
            if let Some(Counter { packets, bytes }) = from {
                b.u64(attr::COUNTER_BYTES, bytes);
                b.u64(attr::COUNTER_PACKETS, packets);
            }
        });
    });
}

/// A verdict, to the verdict register.
fn immediate(b: &mut Batch, code: u32, chain: Option<&str>) {
    expression(b, "immediate", |b| {
        b.u32(attr::IMMEDIATE_DREG, 0);
        b.nest(attr::IMMEDIATE_DATA, |b| {
            b.nest(attr::DATA_VERDICT, |b| {
                b.u32(attr::VERDICT_CODE, code);
                if let Some(chain) = chain {
                    b.text(attr::VERDICT_CHAIN, chain);
                }
            });
        });
    });
}

fn mask_register(b: &mut Batch, mask: &[u8]) {
    expression(b, "bitwise", |b| {
        b.u32(attr::BITWISE_SREG, REGISTER);
        b.u32(attr::BITWISE_DREG, REGISTER);
        b.u32(attr::BITWISE_OP, 0);
        b.u32(attr::BITWISE_LEN, mask.len() as u32);
        b.nest(attr::BITWISE_MASK, |b| b.bytes_of(attr::DATA_VALUE, mask));
        b.nest(attr::BITWISE_XOR, |b| b.bytes_of(attr::DATA_VALUE, &vec![0; mask.len()]));
    });
}

fn load_ct(b: &mut Batch, key: u32, direction: Option<u8>) {
    expression(b, "ct", |b| {
        b.u32(attr::CT_DREG, REGISTER);
        b.u32(attr::CT_KEY, key);
        if let Some(direction) = direction {
            b.bytes_of(attr::CT_DIRECTION, &[direction]);
        }
    });
}

fn load_meta(b: &mut Batch, key: u32) {
    expression(b, "meta", |b| {
        b.u32(attr::META_KEY, key);
        b.u32(attr::META_DREG, REGISTER);
    });
}

fn load_payload(b: &mut Batch, register: u32, base: u32, offset: u32, length: u32) {
    expression(b, "payload", |b| {
        b.u32(attr::PAYLOAD_DREG, register);
        b.u32(attr::PAYLOAD_BASE, base);
        b.u32(attr::PAYLOAD_OFFSET, offset);
        b.u32(attr::PAYLOAD_LEN, length);
    });
}

fn compare(b: &mut Batch, operator: u32, value: &[u8]) {
    expression(b, "cmp", |b| {
        b.u32(attr::CMP_SREG, REGISTER);
        b.u32(attr::CMP_OP, operator);
        b.nest(attr::CMP_DATA, |b| b.bytes_of(attr::DATA_VALUE, value));
    });
}

fn lookup(b: &mut Batch, set: &str, id: Option<u32>, inverted: bool) {
    expression(b, "lookup", |b| {
        b.u32(attr::LOOKUP_SREG, REGISTER);
        b.text(attr::LOOKUP_SET, set);
        if let Some(id) = id {
            b.u32(attr::LOOKUP_SET_ID, id);
        }
        if inverted {
            b.u32(attr::LOOKUP_FLAGS, number::LOOKUP_INVERTED);
        }
    });
}

/// One expression as the kernel reports it, reduced to what we ever write.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    Meta(u32),
    Payload {
        base: u32,
        offset: u32,
        length: u32,
    },
    /// `th dport` beside what the first register holds.
    SecondDport,
    /// What is loaded, and of which direction.
    Ct(u32, Option<u8>),
    Vmap(String),
    Jump(String),
    Compare(u32, Vec<u8>),
    /// The lowest and highest value of a `range` expression, which newer nft writes for a range of ports.
    Range(Vec<u8>, Vec<u8>),
    Mask(Vec<u8>),
    Lookup {
        set: String,
        inverted: bool,
    },
    Counter(Counter),
    Drop,
    Reject(u32, u8),
    Other(String),
}

/// Reads an expression; anything out of the ordinary is `Other`.
fn read_expression(list: Attributes<'_>) -> Expression {
    let name = list.text(attr::EXPR_NAME).unwrap_or("?");
    let data = list.nested(attr::EXPR_DATA).unwrap_or(Attributes(&[]));
    let value = |kind| Some(data.nested(kind)?.find(attr::DATA_VALUE)?.to_vec());
    let register = |kind| data.u32(kind) == Some(REGISTER);
    let read = || -> Option<Expression> {
        Some(match name {
            "meta" if register(attr::META_DREG) => Expression::Meta(data.u32(attr::META_KEY)?),
            "payload" if register(attr::PAYLOAD_DREG) => Expression::Payload {
                base: data.u32(attr::PAYLOAD_BASE)?,
                offset: data.u32(attr::PAYLOAD_OFFSET)?,
                length: data.u32(attr::PAYLOAD_LEN)?,
            },
            "payload"
                if data.u32(attr::PAYLOAD_DREG) == Some(SECOND)
                    && data.u32(attr::PAYLOAD_BASE) == Some(number::TRANSPORT_HEADER)
                    && (data.u32(attr::PAYLOAD_OFFSET), data.u32(attr::PAYLOAD_LEN)) == (Some(2), Some(2)) =>
            {
                Expression::SecondDport
            }
            "ct" if register(attr::CT_DREG) => Expression::Ct(
                data.u32(attr::CT_KEY)?,
                data.find(attr::CT_DIRECTION).and_then(|direction| direction.first().copied()),
            ),
            "lookup" if register(attr::LOOKUP_SREG) && data.u32(attr::LOOKUP_DREG) == Some(0) => {
                Expression::Vmap(data.text(attr::LOOKUP_SET)?.to_owned())
            }
            "cmp" if register(attr::CMP_SREG) => Expression::Compare(data.u32(attr::CMP_OP)?, value(attr::CMP_DATA)?),
            // NFTA_RANGE_SREG, _OP, _FROM_DATA, _TO_DATA
            "range" if register(1) && data.u32(2) == Some(0) => Expression::Range(value(3)?, value(4)?),
            "bitwise"
                if register(attr::BITWISE_SREG)
                    && register(attr::BITWISE_DREG)
                    && data.u32(attr::BITWISE_OP).unwrap_or(0) == 0
                    && value(attr::BITWISE_XOR)?.iter().all(|byte| *byte == 0) =>
            {
                Expression::Mask(value(attr::BITWISE_MASK)?)
            }
            "lookup" if register(attr::LOOKUP_SREG) && data.find(attr::LOOKUP_DREG).is_none() => Expression::Lookup {
                set: data.text(attr::LOOKUP_SET)?.to_owned(),
                inverted: data.u32(attr::LOOKUP_FLAGS).unwrap_or(0) & number::LOOKUP_INVERTED != 0,
            },
            "counter" => Expression::Counter(read_counter(data)?),
            "immediate" if data.u32(attr::IMMEDIATE_DREG) == Some(0) => {
                let verdict = data.nested(attr::IMMEDIATE_DATA)?.nested(attr::DATA_VERDICT)?;
                match verdict.u32(attr::VERDICT_CODE)? {
                    number::NF_DROP => Expression::Drop,
                    number::JUMP => Expression::Jump(verdict.text(attr::VERDICT_CHAIN)?.to_owned()),
                    _ => return None,
                }
            }
            "reject" => {
                let code = data.find(attr::REJECT_CODE).and_then(|code| code.first().copied()).unwrap_or(0);
                Expression::Reject(data.u32(attr::REJECT_TYPE)?, code)
            }
            _ => return None,
        })
    };
    read().unwrap_or_else(|| Expression::Other(name.to_owned()))
}

/// What the data of a `counter` expression say.
pub(crate) fn read_counter(data: Attributes<'_>) -> Option<Counter> {
    Some(Counter { packets: data.u64(attr::COUNTER_PACKETS)?, bytes: data.u64(attr::COUNTER_BYTES)? })
}

/// Reads a rule's expressions back into statements, with what its counter holds. `braces` are the anonymous sets by name.
pub(crate) fn read_rule(
    family: Family,
    expressions: Attributes<'_>,
    braces: &HashMap<String, Braces>,
) -> (Rule, Option<Counter>) {
    let list: Vec<Expression> = expressions.map(|(_, value)| read_expression(Attributes(value))).collect();
    let mut rest = list.as_slice();
    let mut statements = Vec::new();
    let mut counter = None;
    let mut known = None;
    while let Some(first) = rest.first() {
        let (statement, used) = read_statement(family, rest, braces, &mut known)
            .unwrap_or_else(|| (Some(Statement::Foreign(name_of(first).to_owned())), 1));
        if let Expression::Counter(counted) = first {
            counter = Some(*counted);
        }
        statements.extend(statement);
        rest = &rest[used..];
    }
    (Rule { statements }, counter)
}

/// The statement at the beginning of `list` and how many expressions it takes; a dependency is no statement by itself.
fn read_statement(
    family: Family,
    list: &[Expression],
    braces: &HashMap<String, Braces>,
    known: &mut Option<Key>,
) -> Option<(Option<Statement>, usize)> {
    use Expression as E;
    let said = |statement, used| Some((Some(statement), used));
    match list {
        [E::Counter(_), ..] => said(Statement::Counter, 1),
        [E::Drop, ..] => said(Statement::Drop, 1),
        [E::Jump(chain), ..] => said(Statement::Jump(chain.clone()), 1),
        [E::Meta(number::META_L4PROTO), E::SecondDport, E::Vmap(map), ..] => said(Statement::Dispatch(map.clone()), 3),
        [E::Ct(number::CT_STATUS, None), E::Mask(mask), E::Compare(number::CMP_NEQ, value), ..]
            if *mask == number::STATUS_DNAT.to_ne_bytes() && *value == [0; 4] =>
        {
            said(Statement::Translated, 3)
        }
        [E::Ct(number::CT_PROTO_DST, Some(0)), E::Lookup { set, inverted: false }, ..] => {
            said(Statement::OriginalDport(set.clone()), 2)
        }
        [E::Reject(kind, code), ..] => {
            let reject = match (*kind, *code, *known) {
                (number::REJECT_TCP_RST, _, _) => Reject::TcpReset,
                (number::REJECT_ICMP, 3, Some(Key::V4)) => Reject::PortUnreachable(Key::V4),
                (number::REJECT_ICMP, 4, Some(Key::V6)) => Reject::PortUnreachable(Key::V6),
                _ => return None,
            };
            said(Statement::Reject(reject), 1)
        }
        [E::Meta(number::META_L4PROTO), E::Compare(number::CMP_EQ, value), ..] => {
            let protocol = protocol(*value.first()?)?;
            said(Statement::L4proto(vec![protocol]), 2)
        }
        [E::Meta(number::META_L4PROTO), E::Lookup { set, inverted: false }, ..] => {
            let Braces::Protocols(numbers) = braces.get(set)? else { return None };
            let list = numbers.iter().map(|n| protocol(*n)).collect::<Option<Vec<_>>>()?;
            said(Statement::L4proto(list), 2)
        }
        [E::Meta(number::META_NFPROTO), E::Compare(number::CMP_EQ, value), ..] if family == Family::Inet => {
            *known = [Key::V4, Key::V6].into_iter().find(|key| value.as_slice() == [nfproto(*key)]);
            known.map(|_| (None, 2))
        }
        [E::Meta(number::META_PROTOCOL), E::Compare(number::CMP_EQ, value), ..] if family == Family::Bridge => {
            *known = [Key::V4, Key::V6].into_iter().find(|key| value.as_slice() == ethertype(*key));
            known.map(|_| (None, 2))
        }
        [E::Payload { base: number::TRANSPORT_HEADER, offset: 2, length: 2 }, rest @ ..] => {
            let (ports, used) = match rest {
                [E::Compare(number::CMP_EQ, value), ..] => (vec![(port(value)?, port(value)?)], 2),
                [E::Compare(number::CMP_GTE, first), E::Compare(number::CMP_LTE, last), ..] => {
                    (vec![(port(first)?, port(last)?)], 3)
                }
                [E::Range(first, last), ..] => (vec![(port(first)?, port(last)?)], 2),
                [E::Lookup { set, inverted: false }, ..] => {
                    let Braces::Ports(ports) = braces.get(set)? else { return None };
                    (ports.clone(), 2)
                }
                _ => return None,
            };
            said(Statement::Dport(ports), used)
        }
        [E::Payload { base: number::NETWORK_HEADER, offset, length }, rest @ ..] => {
            let key = (*known)?;
            let destination =
                [false, true].into_iter().find(|destination| address_place(key, *destination) == (*offset, *length))?;
            let (prefix, set, inverted, used) = match rest {
                [E::Lookup { set, inverted }, ..] => (None, set, inverted, 2),
                [E::Mask(bytes), E::Lookup { set, inverted }, ..] => (Some(prefix_of(key, bytes)?), set, inverted, 3),
                _ => return None,
            };
            said(Statement::Address { key, destination, prefix, inverted: *inverted, set: set.clone() }, used)
        }
        _ => None,
    }
}

fn name_of(expression: &Expression) -> &str {
    match expression {
        Expression::Meta(_) => "meta",
        Expression::Payload { .. } => "payload",
        Expression::SecondDport => "payload",
        Expression::Ct(..) => "ct",
        Expression::Vmap(_) => "lookup",
        Expression::Jump(_) => "immediate",
        Expression::Compare(..) => "cmp",
        Expression::Range(..) => "range",
        Expression::Mask(_) => "bitwise",
        Expression::Lookup { .. } => "lookup",
        Expression::Counter(_) => "counter",
        Expression::Drop => "immediate",
        Expression::Reject(..) => "reject",
        Expression::Other(name) => name,
    }
}

fn protocol(wanted: u8) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| protocol.number() == wanted)
}

fn port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// The length of a contiguous mask of an address's length.
fn prefix_of(key: Key, bytes: &[u8]) -> Option<u8> {
    let (ones, leading) = match key {
        Key::V4 => {
            let bits = u32::from_be_bytes(bytes.try_into().ok()?);
            (bits.count_ones(), bits.leading_ones())
        }
        Key::V6 => {
            let bits = u128::from_be_bytes(bytes.try_into().ok()?);
            (bits.count_ones(), bits.leading_ones())
        }
    };
    (ones == leading).then_some(leading as u8)
}

/// The content of an anonymous set from its type and its `(key, is an end)` elements; `None` for types we never write.
pub(crate) fn read_braces(key_type: u32, flags: u32, mut points: Vec<(Vec<u8>, bool)>) -> Option<Braces> {
    // An end sorts before a start at the same place: the range before ends there.
    points.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    match key_type {
        INET_PROTO => points.iter().map(|(key, _)| key.first().copied()).collect::<Option<Vec<_>>>().map(Braces::Protocols),
        INET_SERVICE if flags & number::SET_INTERVAL == 0 => {
            let ports = points.iter().map(|(key, _)| port(key).map(|p| (p, p))).collect::<Option<Vec<_>>>()?;
            Some(Braces::Ports(ports))
        }
        INET_SERVICE => {
            let mut ports: Vec<(u16, u16)> = Vec::new();
            let mut start = None;
            for (key, end) in &points {
                let at = port(key)?;
                if let Some(first) = start.take() {
                    ports.push((first, at.checked_sub(1)?));
                }
                if !end {
                    start = Some(at);
                }
            }
            ports.extend(start.map(|first| (first, u16::MAX)));
            Some(Braces::Ports(ports))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Messages;
    use super::*;

    /// Writes a rule and reads it back out of its own bytes.
    fn round(rule: &Rule, counted: Counter) -> (Rule, Option<Counter>) {
        let mut batch = Batch::default();
        batch.restart(Family::Inet, 1);
        write_rule(&mut batch, Family::Inet, "t", "c", None, rule, counted);
        let mut braces = HashMap::new();
        let mut set = (0, 0);
        // The kernel would give each anonymous set a name; here there is at most one of each kind.
        let mut result = None;
        for message in Messages(batch.bytes().unwrap()) {
            let attributes = message.attributes();
            match message.nftables().unwrap() {
                kind::NEWSET => {
                    set = (attributes.u32(attr::SET_KEY_TYPE).unwrap(), attributes.u32(attr::SET_FLAGS).unwrap());
                }
                kind::NEWSETELEM => {
                    let points = attributes.nested(attr::ELEMS_LIST).unwrap().map(|(_, element)| {
                        let element = Attributes(element);
                        let key = element.nested(attr::ELEM_KEY).unwrap().find(attr::DATA_VALUE).unwrap();
                        (key.to_vec(), element.u32(attr::ELEM_FLAGS).unwrap_or(0) == 1)
                    });
                    braces.insert("__set%d".to_owned(), read_braces(set.0, set.1, points.collect()).unwrap());
                }
                _ => result = Some(read_rule(Family::Inet, attributes.nested(attr::RULE_EXPRESSIONS).unwrap(), &braces)),
            }
        }
        result.unwrap()
    }

    #[test]
    fn a_rule_is_read_back_as_it_was_written() {
        let address =
            |key, destination, prefix, inverted| Statement::Address { key, destination, prefix, inverted, set: "a".to_owned() };
        let table = [
            vec![Statement::L4proto(vec![Protocol::Tcp]), Statement::Dport(vec![(25, 25)]), Statement::Drop],
            vec![Statement::L4proto(vec![Protocol::Tcp, Protocol::Sctp]), Statement::Dport(vec![(25, 40)]), Statement::Counter],
            vec![Statement::Dport(vec![(0, 7), (25, 25), (1000, 65535)]), Statement::Counter, Statement::Drop],
            vec![Statement::Dport(vec![(25, 25), (26, 30)]), Statement::Drop],
            vec![Statement::Dport(vec![(25, 25), (65535, 65535)]), Statement::Drop],
            vec![
                address(Key::V6, false, Some(64), false),
                address(Key::V6, false, None, true),
                Statement::Counter,
                Statement::Reject(Reject::PortUnreachable(Key::V6)),
            ],
            vec![address(Key::V4, true, None, false), Statement::Reject(Reject::PortUnreachable(Key::V4))],
            vec![Statement::L4proto(vec![Protocol::Tcp]), Statement::Reject(Reject::TcpReset)],
            vec![Statement::Dispatch("dispatch-input".to_owned())],
            vec![Statement::Translated, Statement::Jump("input-dnat".to_owned())],
            vec![
                Statement::Translated,
                Statement::L4proto(vec![Protocol::Tcp, Protocol::Udp]),
                Statement::OriginalDport("smtp-ports".to_owned()),
                address(Key::V4, false, None, false),
                Statement::Counter,
                Statement::Drop,
            ],
        ];
        for statements in table {
            let rule = Rule { statements };
            let counted = Counter { packets: 3, bytes: 180 };
            let has = rule.statements.contains(&Statement::Counter);
            assert_eq!(round(&rule, counted), (rule, has.then_some(counted)));
        }
    }
}
