//! The machine as it is: bridges, sysctls, listening sockets, what others' tables translate. Looks, changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::{fs, io};

use neli::consts::nl::{NlmF, Nlmsg};
use neli::consts::rtnl::{Ifla, IflaInfo, RtAddrFamily, Rtm};
use neli::consts::socket::NlFamily;
use neli::nl::{NlPayload, NlmsghdrBuilder};
use neli::rtnl::{Ifinfomsg, IfinfomsgBuilder};
use neli::socket::synchronous::NlSocketHandle;
use neli::utils::Groups;

use super::{Bridge, Facts, Listening, Published};
use crate::nft;
use crate::terms::{escape, plain};

/// Sockets looked at, at most.
const SOCKETS: usize = 10_000;

/// Looks. What can not be read counts as not there; the second half says what that was.
pub fn look() -> (Facts, Vec<String>) {
    let mut unread = Vec::new();
    let others = nft::Kernel::open().map_err(|e| e.to_string()).and_then(|mut kernel| kernel.others().map_err(|e| e.to_string()));
    let others = others.unwrap_or_else(|why| {
        unread.push(why);
        nft::others::Others::default()
    });
    let published = others.translations.into_iter().map(|t| Published { by: t.by, outside: t.outside, inside: t.inside });
    let flag = |path: &str| number(Path::new(path)).map(|number| number != 0);
    let facts = Facts {
        bridges: bridges().unwrap_or_else(|e| {
            unread.push(format!("cannot list bridges: {}", plain(&e)));
            Vec::new()
        }),
        bridged_v4: flag("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        bridged_v6: flag("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
        forwards: ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"]
            .into_iter()
            .any(|p| flag(p) == Some(true)),
        published: published.collect(),
        flowtables: others.flowtables,
        listening: listening(),
    };
    (facts, unread)
}

fn number(path: &Path) -> Option<i64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// IFLA_BR_NF_CALL_IPTABLES (linux/if_link.h): a bridge shows IPv4 to `inet` chains whatever the system's default.
const BRIDGE_SHOWS: u16 = 36;

/// Every bridge with how many links it joins, asked over rtnetlink: /sys/class/net may be that of another network namespace.
fn bridges() -> io::Result<Vec<Bridge>> {
    let socket = NlSocketHandle::connect(NlFamily::Route, None, Groups::empty()).map_err(io::Error::other)?;
    let message = IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).build().map_err(io::Error::other)?;
    let request = NlmsghdrBuilder::default()
        .nl_type(Rtm::Getlink)
        .nl_flags(NlmF::REQUEST | NlmF::DUMP)
        .nl_payload(NlPayload::Payload(message))
        .build()
        .map_err(io::Error::other)?;
    socket.send(&request).map_err(io::Error::other)?;
    let (mut found, mut masters) = (BTreeMap::new(), Vec::new());
    let mut done = false;
    while !done {
        let (answers, _) = socket.recv::<u16, Ifinfomsg>().map_err(io::Error::other)?;
        for answer in answers {
            let answer = answer.map_err(io::Error::other)?;
            done |= *answer.nl_type() == u16::from(Nlmsg::Done) || *answer.nl_type() == u16::from(Nlmsg::Error);
            let Some(link) = answer.get_payload() else { continue };
            let value = |wanted: Ifla| {
                let attribute = link.rtattrs().iter().find(|attribute| *attribute.rta_type() == wanted)?;
                Some::<&[u8]>(attribute.rta_payload().as_ref())
            };
            masters.extend(value(Ifla::Master).and_then(|master| Some(i32::from_ne_bytes(*master.first_chunk()?))));
            let Some(info) = value(Ifla::Linkinfo) else { continue };
            if inside(info, u16::from(IflaInfo::Kind)).is_some_and(|kind| kind.strip_suffix(&[0]).unwrap_or(kind) == b"bridge") {
                let name = value(Ifla::Ifname).unwrap_or_default();
                let shows = inside(info, u16::from(IflaInfo::Data)).and_then(|data| inside(data, BRIDGE_SHOWS)) == Some(&[1]);
                let name = escape(name.strip_suffix(&[0]).unwrap_or(name), 16);
                found.insert(*link.ifi_index(), Bridge { name, ports: 0, shows });
            }
        }
    }
    for master in masters {
        found.entry(master).and_modify(|bridge| bridge.ports += 1);
    }
    Ok(found.into_values().collect())
}

/// The value of an attribute nested in another.
fn inside(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let head: &[u8; 4] = bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) & 0x3fff == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// TCP ports that somebody listens on, loopback aside, with the program where /proc shows it.
fn listening() -> Vec<Listening> {
    let mut sockets = HashMap::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(path).unwrap_or_default();
        sockets.extend(text.lines().skip(1).take(SOCKETS).filter_map(listens));
    }
    let mut found = BTreeSet::new();
    for (pid, program) in programs() {
        for descriptor in names(&pid.join("fd")) {
            let Ok(target) = fs::read_link(pid.join("fd").join(descriptor)) else { continue };
            let inode = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
            if let Some(port) = inode.and_then(|inode| sockets.get(&inode)) {
                found.insert(Listening { port: *port, program: Some(program.clone()) });
            }
        }
    }
    for port in sockets.into_values() {
        if !found.iter().any(|listening| listening.port == port) {
            found.insert(Listening { port, program: None });
        }
    }
    found.into_iter().collect()
}

/// Inode and port of a line of /proc/net/tcp (proc_net(5)) whose socket listens (state 0A) on more than loopback.
fn listens(line: &str) -> Option<(u64, u16)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    let loopback = match address.len() {
        8 => address.ends_with("7F"),
        _ => address == "00000000000000000000000001000000",
    };
    (state == "0A" && !loopback).then(|| u16::from_str_radix(port, 16).ok().map(|port| (inode, port)))?
}

fn programs() -> impl Iterator<Item = (std::path::PathBuf, String)> {
    let numbered = |name: &String| name.bytes().all(|b| b.is_ascii_digit());
    names(Path::new("/proc")).into_iter().filter(numbered).filter_map(|pid| {
        let dir = Path::new("/proc").join(pid);
        let program = fs::read_to_string(dir.join("comm")).ok()?;
        Some((dir, escape(program.trim_end().as_bytes(), 64)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_read_from_proc() {
        let line = |address: &str, state: &str| {
            format!(
                "   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 1234 1 0 100 0 0 10 0"
            )
        };
        assert_eq!(listens(&line("00000000:0016", "0A")), Some((1234, 22)));
        assert_eq!(listens(&line("00000000:0016", "01")), None);
        assert_eq!(listens(&line("0100007F:0016", "0A")), None);
        assert_eq!(listens(&line("00000000000000000000000000000000:09DD", "0A")), Some((1234, 2525)));
        assert_eq!(listens(&line("00000000000000000000000001000000:0016", "0A")), None);
        assert_eq!(listens("nonsense"), None);
    }

    #[test]
    fn our_own_socket_is_found_with_its_program() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a port is free");
        let port = listener.local_addr().expect("it has one").port();
        let found = listening();
        assert!(found.iter().any(|listening| listening.port == port && listening.program.is_some()), "{port} in {found:?}");
    }
}
