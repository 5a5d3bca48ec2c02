//! The test kit itself: what it reports must be so, else no other test means anything.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use banset::netns::{Netns, Route, connect_from, sysctl};
use banset_integration::{
    Daemon, Doors, Echo, Lab, Monitor, PATIENCE, Proto, Seen, Site, Wiring, elements, expires, in_netns, knock, nft, wait_until,
};

#[test]
fn attackers_reach_the_server_and_a_drop_shows() {
    in_netns("attackers_reach_the_server_and_a_drop_shows", || {
        let lab = Lab::new();
        let _tcp = Echo::tcp(&[25, 143]);
        let _udp = Echo::udp(&[514]);
        for from in ["198.51.100.7", "203.0.113.250", "2001:db8:1000:1::7", "2001:db8:1fff::1"] {
            assert!(lab.connects(from, 25), "{from}");
            assert!(lab.echoes(from, 514), "{from}");
        }
        assert!(lab.keeps_out("198.51.100.7", 26), "nobody listens");
        nft(&["add table inet t; add chain inet t c { type filter hook input priority 0; }"]);
        nft(&["add rule inet t c ip saddr 198.51.100.7 tcp dport 25 drop"]);
        assert!(lab.keeps_out("198.51.100.7", 25), "dropped");
        assert!(lab.connects("198.51.100.7", 143), "another port");
        assert!(lab.connects("198.51.100.8", 25), "another address");
    });
}

#[test]
fn an_address_that_is_no_attackers_is_a_slip() {
    in_netns("an_address_that_is_no_attackers_is_a_slip", || {
        let lab = Lab::new();
        for from in ["192.0.2.77", "2001:db8::77"] {
            let slip = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lab.connects(from, 25)));
            assert!(slip.is_err(), "{from}");
        }
    });
}

#[test]
fn a_bridge_passes_frames_between_namespaces() {
    in_netns("a_bridge_passes_frames_between_namespaces", || {
        let (left, right) = (Netns::new().expect("a namespace"), Netns::new().expect("a namespace"));
        let mut here = Route::open().expect("a netlink socket");
        here.bridge("br0").and_then(|()| here.up("br0")).expect("a bridge");
        for (port, there, address) in [("lan", &left, "10.9.0.2/24"), ("dmz", &right, "10.9.0.3/24")] {
            here.veth(port, "eth0", there).and_then(|()| here.enslave(port, "br0")).and_then(|()| here.up(port)).expect("a port");
            there.run(|| {
                let mut route = Route::open().expect("a netlink socket");
                route.address("eth0", address.parse().expect("an address")).expect("an address");
                route.up("eth0").and_then(|()| route.running("eth0")).expect("the link comes up");
            });
        }
        sysctl("net.bridge.bridge-nf-call-iptables", "0").unwrap_or_default();
        let _server = right.run(|| Echo::tcp(&[25]));
        let (from, to) = ("10.9.0.2".parse().expect("an address"), "10.9.0.3:25".parse().expect("an address"));
        let connects = || left.run(|| connect_from(from, to, Duration::from_millis(700))).is_ok();
        wait_until("the bridge forwards", connects);
        nft(&["add table bridge t; add chain bridge t c { type filter hook forward priority -200; }"]);
        nft(&["add rule bridge t c ip saddr 10.9.0.2 drop"]);
        assert!(!connects(), "the bridge's own filter sees the frame");
    });
}

#[test]
fn every_protocol_passes_every_wiring_until_it_is_dropped_or_refused() {
    in_netns("every_protocol_passes_every_wiring_until_it_is_dropped_or_refused", || {
        for (name, wiring) in [("gateway", Wiring::Gateway), ("routed", Wiring::Routed), ("bridged", Wiring::Bridged)] {
            let site = Site::new(name, wiring);
            let doors = site.mail().run(|| Doors::open(&site.addresses(), &[25]));
            let (site, doors) = (&site, &doors);
            let seen = |from: &str, port, patience| {
                let from: IpAddr = from.parse().expect("an address");
                let to = SocketAddr::new(site.addresses()[usize::from(from.is_ipv6())], port);
                let see = |proto| (proto, site.attackers().run(|| knock(proto, from, to, patience)));
                std::thread::scope(|scope| {
                    let known = Proto::ALL.into_iter().filter(|proto| !doors.lacking().contains(proto));
                    let threads: Vec<_> = known.map(|proto| scope.spawn(move || see(proto))).collect();
                    threads.into_iter().map(|thread| thread.join().expect("a knock does not panic")).collect::<Vec<_>>()
                })
            };
            let all = |seen: &[(Proto, Seen)], what| seen.iter().all(|(_, seen)| *seen == what);
            let ends = [("198.51.100.7", "ip"), ("2001:db8:1000:1::7", "ip6")];
            for (from, _) in ends {
                let open = seen(from, 25, PATIENCE);
                assert!(all(&open, Seen::Answer), "{name}, {from}: {open:?}");
                let closed = SocketAddr::new(site.addresses()[usize::from(from.contains(':'))], 26);
                let who = from.parse().expect("an address");
                let datagram = site.attackers().run(|| knock(Proto::Udp, who, closed, PATIENCE));
                assert_eq!(datagram, Seen::Refused, "{name}, {from}: nobody is behind that door");
            }
            site.mail().run(|| {
                nft(&["add table inet t; add chain inet t c { type filter hook input priority 0; }"]);
                for (from, header) in ends {
                    nft(&[&format!("add rule inet t c {header} saddr {from} drop")]);
                }
            });
            for (from, _) in ends {
                let shut = seen(from, 25, Duration::from_secs(1));
                assert!(all(&shut, Seen::Nothing), "{name}, {from}: {shut:?}");
                let visits = Proto::ALL.map(|proto| doors.visits(proto, from.parse().expect("an address"), 25));
                assert!(visits.iter().all(|visits| *visits <= 1), "{name}, {from}: {visits:?}");
            }
        }
    });
}

#[test]
fn a_link_is_cut_and_restored() {
    in_netns("a_link_is_cut_and_restored", || {
        for (name, wiring) in [("routed", Wiring::Routed), ("bridged", Wiring::Bridged)] {
            let site = Site::new(name, wiring);
            let _doors = site.mail().run(|| Doors::open(&site.addresses(), &[25]));
            let knocks = |from: &str, patience| {
                let from: IpAddr = from.parse().expect("an address");
                let to = SocketAddr::new(site.addresses()[usize::from(from.is_ipv6())], 25);
                site.attackers().run(|| knock(Proto::Tcp, from, to, patience)) == Seen::Answer
            };
            let reached = |from: &str| knocks(from, PATIENCE);
            let everybody = ["198.51.100.7", "2001:db8:1000:1::7"];
            assert!(everybody.into_iter().all(reached), "{name}: plugged in");
            site.cut();
            assert!(!everybody.into_iter().any(|from| knocks(from, Duration::from_secs(2))), "{name}: unplugged");
            site.restore();
            wait_until("the gateway is there again", || everybody.into_iter().all(reached));
        }
    });
}

#[test]
fn a_site_has_room_for_a_daemon_on_each_machine() {
    in_netns("a_site_has_room_for_a_daemon_on_each_machine", || {
        let site = Site::new("two", Wiring::Bridged);
        let [mail, firewall] = [site.mail(), site.firewall()].map(|netns| {
            let name = if std::ptr::eq(netns, site.mail()) { "mail" } else { "firewall" };
            netns.visit(|| Daemon::start(&site.dir().join(name), ""))
        });
        mail.cli(&["ban", "198.51.100.7"]).ok();
        firewall.cli(&["ban", "198.51.100.8"]).ok();
        assert_eq!(site.mail().run(|| elements("manual-v4")), ["198.51.100.7"]);
        assert_eq!(site.firewall().run(|| elements("manual-v4")), ["198.51.100.8"]);
        assert!(elements("manual-v4").is_empty(), "a visit ends where it began");
        // The gateway can reach the box that looks after it.
        let _door = site.firewall().run(|| Echo::tcp(&[22]));
        for (from, to) in site.addresses().into_iter().zip(Site::BRIDGE) {
            let to = SocketAddr::new(to.parse().expect("an address"), 22);
            assert_eq!(site.mail().run(|| knock(Proto::Tcp, from, to, PATIENCE)), Seen::Answer, "{to}");
        }
    });
}

#[test]
fn elements_and_their_ends_are_read() {
    in_netns("elements_and_their_ends_are_read", || {
        nft(&["add table inet banset; add set inet banset a-v4 { type ipv4_addr; flags timeout; }"]);
        nft(&["add set inet banset a-net4 { type ipv4_addr; flags interval,timeout; }"]);
        assert!(elements("a-v4").is_empty() && elements("none").is_empty());
        let start = Instant::now();
        nft(&["add element inet banset a-v4 { 192.0.2.9 timeout 1h expires 30m, 192.0.2.7 }"]);
        nft(&["add element inet banset a-net4 { 198.51.100.0/24 timeout 1h }"]);
        assert_eq!(elements("a-v4"), ["192.0.2.7", "192.0.2.9"]);
        assert_eq!(elements("a-net4"), ["198.51.100.0/24"]);
        let (left, given) = expires("a-v4", "192.0.2.9").expect("a ban with an end");
        assert!((1798 - start.elapsed().as_secs()..=1800).contains(&left) && given == 3600, "{left} {given}");
        assert_eq!(expires("a-v4", "192.0.2.7"), None);
    });
}

#[test]
fn the_monitor_hears_changes_and_no_expiry() {
    in_netns("the_monitor_hears_changes_and_no_expiry", || {
        let lab = Lab::new();
        nft(&["add table inet banset; add set inet banset a-v4 { type ipv4_addr; flags timeout; }"]);
        nft(&["add element inet banset a-v4 { 192.0.2.9 timeout 300ms }"]);
        let monitor = Monitor::start(&lab);
        wait_until("the element ends", || elements("a-v4").is_empty());
        // Long enough for the kernel to clear it away.
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(monitor.catch_up(), "");
        nft(&["add element inet banset a-v4 { 192.0.2.10 timeout 5m }"]);
        let heard = monitor.catch_up();
        assert!(heard.lines().count() == 1 && heard.contains("192.0.2.10"), "{heard}");
    });
}
