//! Whom no log line bans: ignoreip, own addresses, and addresses that belong to nobody.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// A set of addresses and subnets, asked by address: one look-up per prefix length in use, however many entries.
#[derive(Clone, Debug, Default)]
pub struct Nets {
    v4: BTreeMap<u8, HashSet<u32>>,
    v6: BTreeMap<u8, HashSet<u128>>,
}

impl Nets {
    /// The entry that holds `address`, the longest prefix first.
    pub fn find(&self, address: IpAddr) -> Option<IpNetwork> {
        let net = |prefix| IpNetwork::new(address, prefix).ok().map(|net| IpNetwork::new(net.network(), prefix).unwrap_or(net));
        match address {
            IpAddr::V4(v4) => {
                let bits = v4.to_bits();
                self.v4.iter().rev().find(|(len, set)| set.contains(&(bits & mask4(**len)))).and_then(|(len, _)| net(*len))
            }
            IpAddr::V6(v6) => {
                let bits = v6.to_bits();
                self.v6.iter().rev().find(|(len, set)| set.contains(&(bits & mask6(**len)))).and_then(|(len, _)| net(*len))
            }
        }
    }

    /// The entry that lies wholly or partly within `net`, if any, or that `net` lies within.
    pub fn overlaps(&self, net: IpNetwork) -> Option<IpNetwork> {
        self.find(net.network()).or_else(|| self.iter().find(|entry| net.contains(entry.network())))
    }

    /// Every entry, in order.
    pub fn iter(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        let v4 = self.v4.iter().flat_map(|(len, set)| set.iter().map(|bits| (IpAddr::V4((*bits).into()), *len)));
        let v6 = self.v6.iter().flat_map(|(len, set)| set.iter().map(|bits| (IpAddr::V6((*bits).into()), *len)));
        v4.chain(v6).filter_map(|(address, len)| IpNetwork::new(address, len).ok())
    }
}

impl Extend<IpNetwork> for Nets {
    fn extend<I: IntoIterator<Item = IpNetwork>>(&mut self, nets: I) {
        for net in nets {
            match net {
                IpNetwork::V4(net) => self.v4.entry(net.prefix()).or_default().insert(net.network().to_bits()),
                IpNetwork::V6(net) => self.v6.entry(net.prefix()).or_default().insert(net.network().to_bits()),
            };
        }
    }
}

impl FromIterator<IpNetwork> for Nets {
    fn from_iter<I: IntoIterator<Item = IpNetwork>>(nets: I) -> Nets {
        let mut all = Nets::default();
        all.extend(nets);
        all
    }
}

const fn mask4(len: u8) -> u32 {
    match len {
        0 => 0,
        len => u32::MAX << (32 - len),
    }
}

const fn mask6(len: u8) -> u128 {
    match len {
        0 => 0,
        len => u128::MAX << (128 - len),
    }
}

/// Addresses that no remote attacker can have: loopback, unspecified, multicast, link-local, broadcast.
pub fn is_nobody(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.octets()[0] == 0 || v4.is_multicast() || v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_entry_that_holds_an_address_is_found() {
        let nets: Nets = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32", "2001:db8::/32", "0.0.0.0/32"]
            .iter()
            .filter_map(|n| n.parse().ok())
            .collect();
        let table = [
            ("10.1.2.3", Some("10.1.0.0/16")),
            ("10.2.2.3", Some("10.0.0.0/8")),
            ("192.0.2.7", Some("192.0.2.7/32")),
            ("192.0.2.8", None),
            ("2001:db8:5::1", Some("2001:db8::/32")),
            ("2001:db9::1", None),
        ];
        for (address, entry) in table {
            let found = nets.find(address.parse().expect("an address")).map(|n| n.to_string());
            assert_eq!(found.as_deref(), entry, "{address}");
        }
        assert_eq!(nets.iter().count(), 5);
        assert!(nets.overlaps("10.0.0.0/7".parse().expect("a net")).is_some());
        assert!(nets.overlaps("11.0.0.0/8".parse().expect("a net")).is_none());
    }

    #[test]
    fn nobody_is_never_banned() {
        for address in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "169.254.1.1", "::1", "::", "fe80::1", "ff02::1", "255.255.255.255"]
        {
            assert!(is_nobody(address.parse().expect("an address")), "{address}");
        }
        for address in ["192.0.2.1", "2001:db8::1", "fd00::1"] {
            assert!(!is_nobody(address.parse().expect("an address")), "{address}");
        }
    }
}
