//! The machine's own addresses and default gateways, followed live over rtnetlink.
//!
//! One thread sleeps on the kernel's notices of addresses and routes (rtnetlink(7)); each notice, or a loss of notices, is
//! answered by reading everything anew: there is no state to get wrong. Notices come in bursts, so what has gathered by the
//! time it is read costs one round.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use neli::consts::nl::{NlmF, Nlmsg};
use neli::consts::rtnl::{RtAddrFamily, RtScope, RtTable, Rta, Rtm, Rtn, Rtprot};
use neli::consts::socket::{Msg, NlFamily};
use neli::nl::{NlPayload, NlmsghdrBuilder};
use neli::rtnl::{Rtmsg, RtmsgBuilder};
use neli::socket::NlSocket;
use neli::socket::synchronous::NlSocketHandle;
use neli::utils::Groups;

use super::core::Machine;
use crate::jail::{ignore::is_nobody, network};
use crate::terms::fold;

/// RTNLGRP_* (linux/rtnetlink.h): IPv4 and IPv6 addresses, IPv4 and IPv6 routes.
const GROUPS: [u32; 4] = [5, 9, 7, 11];

/// What the kernel says now.
pub fn read() -> io::Result<Machine> {
    let addresses: BTreeSet<IpAddr> =
        nix::ifaddrs::getifaddrs()?.filter_map(|interface| ip_of(interface.address.as_ref()?)).collect();
    let links: BTreeSet<IpNetwork> = nix::ifaddrs::getifaddrs()?
        .filter_map(|one| link_of(ip_of(one.address.as_ref()?)?, ip_of(one.netmask.as_ref()?)?))
        .collect();
    Ok(Machine {
        addresses: addresses.into_iter().collect(),
        gateways: gateways().unwrap_or_default(),
        links: links.into_iter().collect(),
    })
}

/// The network around an address of ours: neighbours, unless it is one address, loopback or link-local.
fn link_of(address: IpAddr, mask: IpAddr) -> Option<IpNetwork> {
    let prefix = match (address, mask) {
        (IpAddr::V4(_), IpAddr::V4(mask)) => mask.to_bits().leading_ones(),
        (IpAddr::V6(_), IpAddr::V6(mask)) => mask.to_bits().leading_ones(),
        _ => return None,
    };
    let whole = if address.is_ipv4() { 32 } else { 128 };
    (prefix > 0 && prefix < whole && !is_nobody(address)).then(|| network(address, prefix as u8)).flatten()
}

fn ip_of(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| fold(IpAddr::V6(v6.ip()))))
}

/// Next hops of default routes in any table.
fn gateways() -> io::Result<Vec<IpAddr>> {
    let mut found = BTreeSet::new();
    let socket = NlSocketHandle::connect(NlFamily::Route, None, Groups::empty()).map_err(io::Error::other)?;
    for family in [RtAddrFamily::Inet, RtAddrFamily::Inet6] {
        let message = RtmsgBuilder::default()
            .rtm_family(family)
            .rtm_dst_len(0)
            .rtm_src_len(0)
            .rtm_tos(0)
            .rtm_table(RtTable::Unspec)
            .rtm_protocol(Rtprot::Unspec)
            .rtm_scope(RtScope::Universe)
            .rtm_type(Rtn::Unspec)
            .build()
            .map_err(io::Error::other)?;
        let request = NlmsghdrBuilder::default()
            .nl_type(Rtm::Getroute)
            .nl_flags(NlmF::REQUEST | NlmF::DUMP)
            .nl_payload(NlPayload::Payload(message))
            .build()
            .map_err(io::Error::other)?;
        socket.send(&request).map_err(io::Error::other)?;
        let mut done = false;
        while !done {
            let (answers, _) = socket.recv::<u16, Rtmsg>().map_err(io::Error::other)?;
            for answer in answers {
                let answer = answer.map_err(io::Error::other)?;
                done |= *answer.nl_type() == u16::from(Nlmsg::Done) || *answer.nl_type() == u16::from(Nlmsg::Error);
                let Some(route) = answer.get_payload().filter(|route| *route.rtm_dst_len() == 0) else { continue };
                for attribute in route.rtattrs().iter().filter(|attribute| *attribute.rta_type() == Rta::Gateway) {
                    let bytes: &[u8] = attribute.rta_payload().as_ref();
                    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
                    found.extend(v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok());
                }
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Whether a datagram of notices (linux/netlink.h: length and type lead each) tells of more than routes to particular places.
fn concerns_us(mut datagram: &[u8]) -> bool {
    const HEADER: usize = 16;
    let routes = [u16::from(Rtm::Newroute), u16::from(Rtm::Delroute)];
    while let (Some(length), Some(kind)) = (datagram.first_chunk::<4>(), datagram.get(4..6)) {
        let length = u32::from_ne_bytes(*length) as usize;
        // In a route's message the second byte is the length of the prefix it leads to.
        let to_a_place =
            routes.contains(&u16::from_ne_bytes([kind[0], kind[1]])) && datagram.get(HEADER + 1).is_some_and(|bits| *bits > 0);
        if !to_a_place || length < HEADER {
            return true;
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    !datagram.is_empty()
}

/// Follows changes on a thread of its own for as long as `changed` says it wants more.
pub fn follow(mut changed: impl FnMut(Machine) -> bool + Send + 'static) -> io::Result<()> {
    let socket = NlSocket::connect(NlFamily::Route, None, Groups::empty())?;
    for group in GROUPS {
        socket.add_mcast_membership(Groups::new_groups(&[group]))?;
    }
    std::thread::Builder::new().name("machine".into()).spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            // What the notice says does not matter, nor whether some were lost (ENOBUFS).
            match socket.recv(&mut buffer, Msg::empty()) {
                // A router's table changes all the time, its default routes and our addresses do not.
                Ok((bytes, _)) if !concerns_us(&buffer[..bytes]) => continue,
                Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EINTR)) => {
                    tracing::error!("own addresses are no longer followed: {e}");
                    return;
                }
                Ok(_) | Err(_) => {}
            }
            match read() {
                Ok(machine) => {
                    if !changed(machine) {
                        return;
                    }
                }
                Err(e) => tracing::warn!("cannot read own addresses: {e}"),
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_to_a_place_concerns_nobody() {
        let notice = |kind: u16, bits: u8| {
            let mut bytes = 28u32.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend([2, bits]);
            bytes.extend([0; 10]);
            bytes
        };
        let (route, gone, address) = (u16::from(Rtm::Newroute), u16::from(Rtm::Delroute), u16::from(Rtm::Newaddr));
        let table = [
            (vec![(route, 24)], false),
            (vec![(route, 24), (gone, 128)], false),
            (vec![(route, 24), (gone, 0)], true),
            (vec![(address, 24)], true),
        ];
        for (notices, concerns) in table {
            let datagram: Vec<u8> = notices.iter().flat_map(|(kind, bits)| notice(*kind, *bits)).collect();
            assert_eq!(concerns_us(&datagram), concerns, "{notices:?}");
        }
        assert!(concerns_us(&[1, 2, 3]) && concerns_us(&[0; 16]), "what can not be read may be anything");
    }

    #[test]
    fn the_loopback_address_is_our_own() {
        let machine = read().expect("rtnetlink answers anybody");
        assert!(machine.addresses.contains(&IpAddr::from([127, 0, 0, 1])), "{machine:?}");
        assert!(machine.links.iter().all(|link| !is_nobody(link.network())), "{machine:?}");
        println!("{machine:?}");
    }
}
