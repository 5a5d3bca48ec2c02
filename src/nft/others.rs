//! What others' tables do to packets before ours see them: translated ports and flowtables. Read only, for advice; nothing of it
//! is ever edited or depended on. And whether others are reading, which our commits would disturb.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use nix::errno::Errno;

use super::kernel::{Kernel, Unreadable};
use super::message::{Attributes, attr, kind, number};
use crate::terms::escape;

/// `NFT_NAT_DNAT`.
const NAT_DNAT: u32 = 1;
/// NFPROTO_* of the families whose rules can translate or offload, with their names.
const FAMILIES: [(u8, &str); 3] = [(2, "ip"), (10, "ip6"), (1, "inet")];

/// A rule that sends packets elsewhere (DNAT).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Family, table and chain of the rule.
    pub by: String,
    /// The ports it is for, if it names them.
    pub outside: Option<(u16, u16)>,
    /// The port it sends them to, if it names one.
    pub inside: Option<u16>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Rules that translate destinations, in the order of their chains.
    pub translations: Vec<Translation>,
    /// Flowtables, as nft(8) names them.
    pub flowtables: Vec<String>,
}

/// So much of the kernel's list of netlink sockets is looked at: some ten thousand of them.
const SOCKETS: u64 = 1 << 20;

/// Whether a dump runs on any netfilter socket of this network namespace at this moment, ours and conntrack's among them: the kernel
/// asks for CAP_NET_ADMIN before it starts one. Where `/proc` does not say, none is seen.
pub fn dump_runs() -> bool {
    let mut text = String::new();
    let read = File::open("/proc/thread-self/net/netlink").and_then(|file| file.take(SOCKETS).read_to_string(&mut text));
    read.is_ok() && any_dump(&text)
}

/// `netlink_native_seq_show` (net/netlink/af_netlink.c): the second column is the protocol, 12 is NETLINK_NETFILTER; the seventh says
/// whether a dump runs.
fn any_dump(sockets: &str) -> bool {
    sockets.lines().any(|line| {
        let mut columns = line.split_ascii_whitespace();
        columns.nth(1) == Some("12") && columns.nth(4).is_some_and(|dump| dump != "0")
    })
}

impl Kernel {
    /// What the tables of others do to packets. A ruleset that never stands still is told as far as it was read.
    pub fn others(&mut self) -> Result<Others, Unreadable> {
        let mut found = Others::default();
        for (family, name) in FAMILIES {
            let mut translations = Vec::new();
            let read = self.dump_of(kind::GETRULE, family, |rule| translations.extend(translation(name, rule)));
            told(read, name)?;
            found.translations.extend(translations);
            let mut flowtables = Vec::new();
            let read = self.dump_of(kind::GETFLOWTABLE, family, |flowtable| {
                let part = |kind| escape(flowtable.text(kind).unwrap_or("?").as_bytes(), 256);
                flowtables.push(format!("{name} {} {}", part(attr::FLOWTABLE_TABLE), part(attr::FLOWTABLE_NAME)));
            });
            told(read, name)?;
            found.flowtables.extend(flowtables);
        }
        Ok(found)
    }
}

/// A kernel without flowtables, or without a family, holds none.
fn told(read: Result<(), Errno>, family: &str) -> Result<(), Unreadable> {
    match read {
        Ok(()) | Err(Errno::EINTR | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Unreadable { what: format!("list ruleset {family}"), errno }),
    }
}

/// What a rule translates, if it does: the native expressions, and those that iptables-nft leaves to xtables.
fn translation(family: &str, rule: Attributes<'_>) -> Option<Translation> {
    let mut outside = None;
    let (mut dport, mut registers) = (None, BTreeMap::new());
    let (mut translates, mut inside) = (false, None);
    for (_, expression) in rule.nested(attr::RULE_EXPRESSIONS)? {
        let expression = Attributes(expression);
        let Some(data) = expression.nested(attr::EXPR_DATA) else { continue };
        match expression.text(attr::EXPR_NAME)? {
            "payload" => {
                let is_dport = data.u32(attr::PAYLOAD_BASE) == Some(number::TRANSPORT_HEADER)
                    && (data.u32(attr::PAYLOAD_OFFSET), data.u32(attr::PAYLOAD_LEN)) == (Some(2), Some(2));
                if let Some(register) = data.u32(attr::PAYLOAD_DREG).filter(|_| is_dport) {
                    dport = Some(register);
                }
            }
            "cmp" if dport.is_some() && data.u32(attr::CMP_SREG) == dport => {
                let port = data.nested(attr::CMP_DATA).and_then(|value| port(value.find(attr::DATA_VALUE)?));
                match (data.u32(attr::CMP_OP), port) {
                    (Some(number::CMP_EQ), Some(port)) => outside = Some((port, port)),
                    (Some(number::CMP_GTE), Some(port)) => outside = Some((port, outside.map_or(port, |(_, last)| last))),
                    (Some(number::CMP_LTE), Some(port)) => outside = Some((outside.map_or(port, |(first, _)| first), port)),
                    _ => {}
                }
            }
            "range" if dport.is_some() && data.u32(attr::RANGE_SREG) == dport => {
                let end = |kind| data.nested(kind).and_then(|value| port(value.find(attr::DATA_VALUE)?));
                outside = end(attr::RANGE_FROM).zip(end(attr::RANGE_TO)).or(outside);
            }
            "immediate" => {
                let value = data.nested(attr::IMMEDIATE_DATA).and_then(|value| port(value.find(attr::DATA_VALUE)?));
                registers.extend(data.u32(attr::IMMEDIATE_DREG).zip(value));
            }
            "nat" if data.u32(attr::NAT_TYPE) == Some(NAT_DNAT) => {
                translates = true;
                inside = data.u32(attr::NAT_REG_PROTO_MIN).and_then(|register| registers.get(&register).copied());
            }
            // struct xt_tcp and xt_udp begin alike: first and last source port, first and last destination port, host order.
            "match" if matches!(data.text(attr::XT_NAME), Some("tcp" | "udp")) => {
                let info = data.find(attr::XT_INFO)?.get(4..8)?;
                let ports = (u16::from_ne_bytes([info[0], info[1]]), u16::from_ne_bytes([info[2], info[3]]));
                outside = (ports != (0, u16::MAX)).then_some(ports);
            }
            // struct nf_nat_range2: flags, two addresses of 16 bytes, then the first and last port, network order.
            "target" if data.text(attr::XT_NAME) == Some("DNAT") => {
                translates = true;
                inside = data.find(attr::XT_INFO).and_then(|info| port(info.get(36..38)?)).filter(|port| *port != 0);
            }
            _ => {}
        }
    }
    let part = |kind| escape(rule.text(kind).unwrap_or("?").as_bytes(), 256);
    let by = || format!("{family} {} {}", part(attr::RULE_TABLE), part(attr::RULE_CHAIN));
    translates.then(|| Translation { by: by(), outside, inside })
}

fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*value.first_chunk()?)).filter(|_| value.len() == 2 || value.len() == 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_dump_is_seen() {
        let head = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n";
        let table = [
            ("", false),
            ("000000008f333f51 0   0          00000000 0        0        1     2        0        4       \n", false),
            ("000000008f333f51 12  7657       00000000 0        0        0     2        0        4       \n", false),
            ("000000008f333f51 12  4294963223 00000008 8704     0        1     2        0        4       \n", true),
        ];
        for (line, runs) in table {
            assert_eq!(any_dump(&format!("{head}{line}")), runs, "{line}");
        }
    }
}
