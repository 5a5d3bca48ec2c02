//! Three machines in a row: attackers, the box before the servers, the mail gateway. The machines of `vagrant/` stand the same way.
//!
//! ```text
//! attackers ── wan [firewall] lan ── mail          addresses outside: 198.51.100.0/24, 203.0.113.0/24, 2001:db8:1000::/36,
//!   eth0             br0             eth0          behind 192.0.2.2 and 2001:db8::2
//! ```
//! Bridged, the box joins `wan` and `lan` in `br0` and has an address of its own on it (192.0.2.3, 2001:db8::3) for whoever looks
//! after it; the gateway is 192.0.2.1, 2001:db8::1. Routed, the box is 192.0.2.1 and the gateway lies behind it, at 10.25.0.25
//! and 2001:db8:25::25. As a gateway without a box before it, box and gateway are one machine.
//!
//! Several sites live side by side in one test; each has namespaces, links and a directory of its own.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use banset::netns::{Netns, Route, sysctl};
use ipnetwork::IpNetwork;

use crate::lab::{ATTACKERS, parsed};

/// How the machines of a [`Site`] hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// No box: attackers reach the mail gateway itself.
    Gateway,
    /// The box routes.
    Routed,
    /// The box is a transparent bridge.
    Bridged,
}

/// Attackers, a firewall box, and a mail gateway behind it.
pub struct Site {
    wiring: Wiring,
    attackers: Netns,
    firewall: Netns,
    mail: Option<Netns>,
    dir: PathBuf,
}

impl Site {
    /// The bridge's own addresses, and how a router is known outside.
    pub const BRIDGE: [&str; 2] = ["192.0.2.3", "2001:db8::3"];

    /// Makes the machines and their links. `name` begins the names that `ip netns` knows the namespaces by (`NAME-attackers`,
    /// `NAME-firewall`, `NAME-mail`). To be called within [`in_netns`](crate::in_netns).
    pub fn new(name: &str, wiring: Wiring) -> Site {
        let site = Site::unwired(name, wiring);
        site.wire();
        site
    }

    /// The machines, without any link yet: what a daemon finds that starts before the network does.
    pub fn unwired(name: &str, wiring: Wiring) -> Site {
        let machine = |what: &str| Netns::named(&format!("{name}-{what}")).expect("a namespace for a machine");
        let dir = PathBuf::from("/run/site").join(name);
        std::fs::create_dir_all(&dir).expect("a directory for the site");
        let mail = (wiring != Wiring::Gateway).then(|| machine("mail"));
        Site { wiring, attackers: machine("attackers"), firewall: machine("firewall"), mail, dir }
    }

    /// Makes the links and nothing else: `wan` and `lan` at the box, `eth0` at the others.
    pub fn plug(&self) {
        self.firewall.run(|| {
            let mut route = Route::open().expect("a netlink socket");
            route.veth("wan", "eth0", &self.attackers).expect("a veth pair");
            if let Some(mail) = &self.mail {
                route.veth("lan", "eth0", mail).expect("a veth pair");
            }
        });
    }

    /// Makes links, addresses and routes.
    pub fn wire(&self) {
        self.plug();
        machine(&self.attackers, &[("eth0", "192.0.2.2/24"), ("eth0", "2001:db8::2/64")], &[]);
        self.attackers.run(|| {
            let mut route = Route::open().expect("a netlink socket");
            ATTACKERS.iter().for_each(|net| route.own(parsed(net)).expect("the attackers' own addresses"));
        });
        let outside = [(ATTACKERS[0], "192.0.2.2"), (ATTACKERS[1], "192.0.2.2"), (ATTACKERS[2], "2001:db8::2")];
        let gateway = [("192.0.2.1/24"), ("2001:db8::1/64")];
        match (self.wiring, &self.mail) {
            (Wiring::Gateway, _) | (_, None) => machine(&self.firewall, &gateway.map(|address| ("wan", address)), &outside),
            (Wiring::Routed, Some(mail)) => {
                let wan = gateway.map(|address| ("wan", address));
                let lan = [("lan", "10.25.0.1/24"), ("lan", "2001:db8:25::1/64")];
                machine(&self.firewall, &[wan, lan].concat(), &outside);
                self.sysctl(&self.firewall, "net.ipv4.ip_forward", "1");
                self.sysctl(&self.firewall, "net.ipv6.conf.all.forwarding", "1");
                let back: Vec<(&str, &str)> =
                    ATTACKERS.iter().map(|net| (*net, if net.contains(':') { "2001:db8:25::1" } else { "10.25.0.1" })).collect();
                machine(mail, &[("eth0", "10.25.0.25/24"), ("eth0", "2001:db8:25::25/64")], &back);
                let ways = [("10.25.0.0/24", "192.0.2.1"), ("2001:db8:25::/64", "2001:db8::1")];
                machine(&self.attackers, &[], &ways);
            }
            (Wiring::Bridged, Some(mail)) => {
                self.firewall.run(|| {
                    let mut route = Route::open().expect("a netlink socket");
                    route.bridge("br0").and_then(|()| route.up("br0")).expect("a bridge");
                    for port in ["wan", "lan"] {
                        route.enslave(port, "br0").and_then(|()| route.up(port)).expect("a port of the bridge");
                    }
                });
                machine(&self.firewall, &[("br0", "192.0.2.3/24"), ("br0", "2001:db8::3/64")], &outside);
                machine(mail, &gateway.map(|address| ("eth0", address)), &outside);
            }
        }
        for namespace in [&self.attackers].into_iter().chain(&self.mail) {
            namespace.run(|| Route::open().expect("a netlink socket").running("eth0").expect("the link comes up"));
        }
        // A bridge forwards from the moment it hears that its ports have their carrier.
        let ports: &[&str] = match self.wiring {
            Wiring::Gateway => &["wan"],
            Wiring::Routed => &["wan", "lan"],
            Wiring::Bridged => &["wan", "lan", "br0"],
        };
        self.firewall.run(|| {
            let mut route = Route::open().expect("a netlink socket");
            ports.iter().for_each(|port| route.running(port).expect("the link comes up"));
        });
    }

    /// Whether the bridge shows what it passes to the packet filters of IP (br_netfilter), IPv4 and IPv6 alike.
    pub fn bridge_nf(&self, on: bool) {
        for key in ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"] {
            self.sysctl(&self.firewall, key, if on { "1" } else { "0" });
        }
    }

    /// Unplugs the mail gateway: both ends lose their carrier.
    pub fn cut(&self) {
        // A cable that is pulled costs no addresses; a link that is set down costs those of IPv6.
        self.sysctl(&self.firewall, "net.ipv6.conf.lan.keep_addr_on_down", "1");
        self.firewall.run(|| Route::open().expect("a netlink socket").down("lan").expect("a link can be set down"));
    }

    /// Plugs the mail gateway in again.
    pub fn restore(&self) {
        self.firewall.run(|| {
            let mut route = Route::open().expect("a netlink socket");
            route.up("lan").and_then(|()| route.running("lan")).expect("a link can be set up");
        });
    }

    /// Where the attackers are.
    pub fn attackers(&self) -> &Netns {
        &self.attackers
    }

    /// The box in between: the machine itself where there is none.
    pub fn firewall(&self) -> &Netns {
        &self.firewall
    }

    /// The mail gateway.
    pub fn mail(&self) -> &Netns {
        self.mail.as_ref().unwrap_or(&self.firewall)
    }

    /// The mail gateway's own addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        match self.wiring {
            Wiring::Routed => [parsed("10.25.0.25"), parsed("2001:db8:25::25")],
            Wiring::Gateway | Wiring::Bridged => [parsed("192.0.2.1"), parsed("2001:db8::1")],
        }
    }

    /// Where logs, configurations and states of this site live.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn sysctl(&self, machine: &Netns, key: &str, value: &str) {
        machine.run(|| sysctl(key, value)).unwrap_or_else(|e| panic!("{key}: {e}"));
    }
}

impl AsRef<Path> for Site {
    fn as_ref(&self) -> &Path {
        &self.dir
    }
}

/// Gives a machine its addresses, sets the links up that bear them, and adds routes.
fn machine(namespace: &Netns, addresses: &[(&str, &str)], routes: &[(&str, &str)]) {
    namespace.run(|| {
        let mut route = Route::open().expect("a netlink socket");
        for (link, address) in addresses {
            route.address(link, parsed(address)).and_then(|()| route.up(link)).expect("a machine's address");
        }
        for (to, gateway) in routes {
            route.via(parsed::<IpNetwork>(to), parsed(gateway)).expect("a machine's route");
        }
    });
}
