//! Connections that were open when their client was banned: the local ends of those to a jail's ports are closed.
//!
//! The rules keep a banned client's packets out from the kernel's yes on, but the server behind would go on waiting for them, and
//! the client would keep its slot until the server's own time-out. So, after the ban and off its way, the kernel is asked over
//! sock_diag(7) for the TCP sockets of the banned address on the jail's ports, and to destroy them as `ss -K` does: the server reads an
//! end. Kernels without `CONFIG_INET_DIAG_DESTROY` are asked once.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::Receiver;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use tracing::{debug, info, warn};

use crate::jail::network;
use crate::terms::{Ports, fold};

/// A ban, as far as open connections are concerned.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// Who is banned.
    pub subject: IpNetwork,
    /// The jail's ports.
    pub ports: Ports,
    /// Who of them is ignored all the same.
    pub spared: Vec<IpNetwork>,
}

impl Cut {
    fn hits(&self, peer: IpAddr, port: u16) -> bool {
        let guarded = match &self.ports {
            Ports::All => true,
            Ports::List(list) => list.iter().any(|(first, last)| (*first..=*last).contains(&port)),
        };
        guarded && self.subject.contains(peer) && !self.spared.iter().any(|net| net.contains(peer))
    }
}

/// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// The states of linux/tcp_states.h that keep a server busy: all but listening, and those that only wait for time to pass.
const STATES: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// `struct nlmsghdr`, `struct inet_diag_sockid`, and where that stands in a `struct inet_diag_msg`.
const HEADER: usize = 16;
const ID: usize = 48;
const ID_AT: usize = 4;

/// A socket as the kernel names it.
struct Open {
    family: u8,
    id: [u8; ID],
    port: u16,
    peer: IpAddr,
}

/// Cuts until the engine goes away. What has gathered is done with one look at the sockets there are.
pub fn run(cuts: &Receiver<Vec<Cut>>) {
    let mut able = true;
    while let Ok(mut all) = cuts.recv() {
        all.extend(cuts.try_iter().flatten());
        if !able {
            continue;
        }
        match cut(&all) {
            Ok(0) => {}
            Ok(closed) => debug!("{closed} open connections of banned addresses were closed"),
            Err(Errno::EOPNOTSUPP) => {
                info!("this kernel can not close connections that were open before a ban: they end with the server's time-out");
                able = false;
            }
            Err(errno) => warn!("cannot close the open connections of banned addresses: {errno}"),
        }
    }
}

/// Many cuts, to be asked by peer: one look-up per prefix length among them, however many they are.
struct Cuts<'a> {
    by_net: HashMap<IpNetwork, Vec<&'a Cut>>,
    prefixes: [BTreeSet<u8>; 2],
}

impl<'a> Cuts<'a> {
    fn of(cuts: &'a [Cut]) -> Cuts<'a> {
        let mut all = Cuts { by_net: HashMap::new(), prefixes: [BTreeSet::new(), BTreeSet::new()] };
        for cut in cuts {
            all.prefixes[usize::from(cut.subject.is_ipv6())].insert(cut.subject.prefix());
            all.by_net.entry(cut.subject).or_default().push(cut);
        }
        all
    }

    fn hit(&self, peer: IpAddr, port: u16) -> bool {
        let nets = self.prefixes[usize::from(peer.is_ipv6())].iter().filter_map(|prefix| network(peer, *prefix));
        nets.filter_map(|net| self.by_net.get(&net)).flatten().any(|cut| cut.hits(peer, port))
    }
}

/// Closes what is open; says how many that were.
fn cut(cuts: &[Cut]) -> Result<usize, Errno> {
    let cuts = Cuts::of(cuts);
    let link = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let mut closed = 0;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        for open in sockets(&link, family)? {
            if cuts.hit(open.peer, open.port) {
                match destroy(&link, &open) {
                    Ok(()) => closed += 1,
                    // It ended by itself meanwhile.
                    Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
    }
    Ok(closed)
}

/// A `struct inet_diag_req_v2` about TCP behind its header.
fn request(kind: u16, flags: i32, family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + 8 + ID);
    message.extend(((HEADER + 8 + ID) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend([0; 8]); // sequence and port
    message.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    message.extend(states.to_ne_bytes());
    message.extend(id);
    message
}

/// The TCP sockets of a family that have a peer.
fn sockets(link: &OwnedFd, family: u8) -> Result<Vec<Open>, Errno> {
    ask(link, &request(SOCK_DIAG_BY_FAMILY, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, family, STATES, &[0; ID]))?;
    let mut found = Vec::new();
    answers(link, |body| found.extend(open(body)))?;
    Ok(found)
}

fn destroy(link: &OwnedFd, open: &Open) -> Result<(), Errno> {
    ask(link, &request(SOCK_DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK, open.family, u32::MAX, &open.id))?;
    answers(link, |_| {})
}

fn ask(link: &OwnedFd, message: &[u8]) -> Result<(), Errno> {
    send(link.as_raw_fd(), message, MsgFlags::empty()).map(drop)
}

/// Hands over every message of an answer up to its end.
fn answers(link: &OwnedFd, mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match recv(link.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let mut rest = &buffer[..length];
        while let Some(head) = rest.first_chunk::<HEADER>() {
            let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let kind = i32::from(u16::from_ne_bytes([head[4], head[5]]));
            let Some(body) = rest.get(HEADER..length) else { return Err(Errno::EBADMSG) };
            match kind {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return if code == 0 { Ok(()) } else { Err(Errno::from_raw(-code)) };
                }
                _ => each(body),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Reads a `struct inet_diag_msg`.
fn open(body: &[u8]) -> Option<Open> {
    let family = *body.first()?;
    let id: [u8; ID] = body.get(ID_AT..ID_AT + ID)?.try_into().ok()?;
    let port = u16::from_be_bytes([id[0], id[1]]);
    let peer = match i32::from(family) {
        libc::AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(&id[20..24]).ok()?).into(),
        _ => fold(Ipv6Addr::from(<[u8; 16]>::try_from(&id[20..36]).ok()?).into()),
    };
    Some(Open { family, id, port, peer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_for_the_jails_ports_and_spares_whom_it_ignores() {
        let net = |text: &str| text.parse::<IpNetwork>().expect("a subnet");
        let cut = Cut {
            subject: net("198.51.100.0/24"),
            ports: Ports::List(vec![(25, 25), (587, 588)]),
            spared: vec![net("198.51.100.9/32")],
        };
        let table = [
            ("198.51.100.7", 25, true),
            ("198.51.100.7", 588, true),
            ("198.51.100.7", 22, false),
            ("198.51.100.9", 25, false),
            ("198.51.101.7", 25, false),
            ("2001:db8::7", 25, false),
        ];
        for (peer, port, hit) in table {
            assert_eq!(cut.hits(peer.parse().expect("an address"), port), hit, "{peer} {port}");
            // Among others, of other widths.
            let other = |subject: &str| Cut { subject: net(subject), ports: Ports::All, spared: Vec::new() };
            let many = [cut.clone(), other("192.0.2.7/32"), other("2001:db8:5::/64"), other("192.0.0.0/22")];
            assert_eq!(Cuts::of(&many).hit(peer.parse().expect("an address"), port), hit, "{peer} {port}");
            assert!(Cuts::of(&many).hit("192.0.3.9".parse().expect("an address"), 1));
        }
    }
}
