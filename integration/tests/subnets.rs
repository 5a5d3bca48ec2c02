//! Banned subnets, which overlap as they like: what the kernel's interval sets hold, what packets meet, and what people are told.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use banset::jail::{Cover, Piece, Stay};
use banset::nft::element::{Key, Timeout};
use banset::nft::ruleset::Content;
use banset::nft::{Element, Features, Interval, Kernel, Set, Socket, Transaction};
use banset::terms::{Family, Lasting, Span, Time};
use banset_integration::{Daemon, Echo, Lab, Log, elements, in_netns, nft, wait_until};
use ipnetwork::IpNetwork;
use serde_json::Value;

/// Numbers that are the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

fn network(address: u32, prefix: u8) -> IpNetwork {
    let net = IpNetwork::new(IpAddr::from(Ipv4Addr::from(address)), prefix).expect("a prefix length");
    IpNetwork::new(net.network(), prefix).expect("the same")
}

/// Bans of nested subnets come, go and end in the kernel, 64 addresses at both ends and in the middle of all; what the kernel holds of
/// each is read back all the while.
fn play(features: Option<Features>, seed: u64, steps: usize) {
    nft(&["add table inet play"]);
    nft(&["add set inet play nets { type ipv4_addr; flags interval, timeout; }"]);
    let set = Set {
        name: "nets".to_owned(),
        key: Key::V4,
        interval: true,
        timeout: true,
        size: None,
        counter: false,
        gc_interval: None,
        comment: None,
        content: Content::Bans,
    };
    let mut socket = Socket::open().expect("a netlink socket");
    if let Some(features) = features {
        socket.pretend(features);
    }
    let mut kernel = Kernel::open().expect("a netlink socket");
    let mut dice = Dice(seed);
    let mut cover = Cover::default();
    let mut bans: BTreeMap<IpNetwork, Option<Time>> = BTreeMap::new();
    let began = Instant::now();
    let now = || Time(1 + i64::try_from(began.elapsed().as_micros()).expect("no long test"));
    let edges = [0, 0xc000_0200, u32::MAX - 63];
    let (mut sent, mut looked, mut slowest) = (0, 0, Span(0));
    for step in 0..steps {
        let at = now();
        let over: Vec<IpNetwork> = bans.iter().filter(|(_, end)| end.is_some_and(|end| end <= at)).map(|(net, _)| *net).collect();
        for net in over {
            cover.mean(net, None);
            bans.remove(&net);
        }
        cover.tidy(at);
        let subject = network(edges[dice.below(3) as usize] + dice.below(64) as u32, 26 + dice.below(7) as u8);
        match dice.below(10) {
            0..=6 => {
                let until = match dice.below(8) {
                    0 => None,
                    1 | 2 => Some(at + Span::from_secs(100 + dice.below(50))),
                    _ => Some(at + Span(100_000 + dice.below(1_500_000))),
                };
                let lasting = until.map_or(Lasting::Permanent, |until| Lasting::For(until.since(at)));
                cover.mean(subject, Some(Stay { lasting, until }));
                bans.insert(subject, until);
            }
            7 | 8 => {
                cover.mean(subject, None);
                bans.remove(&subject);
            }
            _ => {
                std::thread::sleep(Duration::from_millis(dice.below(60)));
                continue;
            }
        }
        // As the engine's core and its writer do it.
        let difference = cover.settle(&[(subject.network(), subject.broadcast())]);
        let mut transaction = Transaction::new(Family::Inet, "play");
        let at = now();
        let interval = |piece: &Piece| Interval::new(piece.first, piece.last).expect("in order");
        let element = |piece: &Piece| {
            let left = |until: Time| until.since(at).max(Span(1000));
            let timeout = piece.stay.until.map(|until| Timeout { timeout: left(until), expiration: left(until) });
            Element { timeout, ..Element::permanent(interval(piece)) }
        };
        for piece in &difference.removed {
            if piece.stay.until.is_some_and(|until| until <= at + Span::from_secs(60)) {
                transaction.add(&set, [Element::timed(interval(piece), Span::from_secs(60))]);
            }
            transaction.remove(&set, [interval(piece)]);
        }
        for piece in &difference.renewed {
            transaction.add(&set, [element(piece)]);
            if !socket.features().timeout_update {
                transaction.remove(&set, [interval(piece)]);
                transaction.add(&set, [element(piece)]);
            }
        }
        transaction.add(&set, difference.added.iter().map(element).collect::<Vec<_>>());
        sent += difference.removed.len() + difference.renewed.len() + difference.added.len();
        if let Err(refused) = socket.commit(&transaction) {
            panic!("step {step}, {subject}: {refused}\n{difference:?}\n{}", nft(&["list", "set", "inet", "play", "nets"]));
        }
        // A timeout begins when the kernel takes it, which is that much later than it was reckoned.
        slowest = slowest.max(now().since(at));
        if step % 4 != 0 {
            continue;
        }
        looked += 1;
        let (before, held, after) = (now(), kernel.elements(Family::Inet, "play", &set).expect("the set"), now());
        for address in edges.iter().flat_map(|edge| *edge..=*edge + 63).map(|bits| IpAddr::from(Ipv4Addr::from(bits))) {
            let ends = bans.iter().filter(|(net, _)| net.contains(address)).map(|(_, end)| *end);
            let meant = ends.reduce(|a, b| if a.is_none() || (b.is_some() && a > b) { a } else { b });
            let there = held.iter().find(|element| element.interval.contains(address));
            // A kernel tick and a busy machine stand between the two clocks.
            let slack = Span(150_000 + slowest.0);
            match (meant, there.map(|element| element.timeout)) {
                (None, None) | (Some(None), Some(None)) => {}
                (Some(Some(end)), None) => assert!(end <= after + slack, "{address} is free before {end:?}, at {after:?}"),
                (Some(Some(end)), Some(Some(left))) => {
                    let is = before + left.expiration;
                    assert!(
                        end.0.abs_diff(is.0) < slack.0 + (after.0 - before.0) as u64,
                        "{address} until {is:?}, meant {end:?}"
                    );
                }
                // What ended by our clock may be there for a tick.
                (None, Some(Some(left))) => assert!(left.expiration <= slack, "{address} is still there for {left:?}"),
                other => panic!("step {step}, {address}: {other:?}\n{bans:?}\n{}", nft(&["list", "set", "inet", "play", "nets"])),
            }
        }
    }
    println!(
        "{steps} steps, {sent} elements sent, looked {looked} times: {} bans, as {} pieces",
        bans.len(),
        cover.pieces(now()).count()
    );
    nft(&["delete table inet play"]);
}

#[test]
fn whatever_overlaps_the_kernel_holds_each_address_until_its_last_ban_ends() {
    in_netns("whatever_overlaps_the_kernel_holds_each_address_until_its_last_ban_ends", || {
        for seed in 1..=3 {
            play(None, seed, 700);
        }
    });
}

#[test]
fn older_kernels_ways_hold_the_same() {
    in_netns("older_kernels_ways_hold_the_same", || play(Some(Features::NONE), 7, 700));
}

fn sshd(log: &Log, more: &str) -> String {
    format!(
        "[jail.sshd]\nenabled = true\nlogpath = {:?}\nport = 22\nmaxretry = 1\nfindtime = \"10m\"\nbantime = \"10m\"\nignoreip = [\"198.51.100.9\"]\n{more}\n",
        log.path()
    )
}

/// `addr left` of every ban, in order of address, the time left within what the machine may have taken.
fn banned(daemon: &Daemon) -> Vec<(String, Option<u64>)> {
    let mut rows: Vec<(String, Option<u64>)> = daemon
        .banned()
        .iter()
        .map(|row| (row["addr"].as_str().expect("an address").to_owned(), row["left_s"].as_u64()))
        .collect();
    rows.sort();
    rows
}

#[test]
fn a_banned_subnet_is_kept_out_but_for_those_who_are_let_in() {
    in_netns("a_banned_subnet_is_kept_out_but_for_those_who_are_let_in", || {
        let lab = Lab::new();
        let _door = Echo::tcp(&[22, 80]);
        let log = Log::create(lab.dir().join("auth"));
        let mut daemon = Daemon::start(&lab, &sshd(&log, ""));
        daemon.wait_running();
        daemon.cli(&["ban", "sshd", "198.51.100.0/24", "--for", "2h"]).ok();
        assert!(lab.keeps_out("198.51.100.7", 22) && lab.keeps_out("198.51.100.8", 22), "kept out at once");
        assert!(lab.connects("198.51.100.7", 80) && lab.connects("203.0.113.7", 22), "nothing else is");
        assert!(lab.connects("198.51.100.9", 22), "an ignored host in it passes");
        daemon.cli(&["ban", "sshd", "2001:db8:1000::/40", "--permanent"]).ok();
        daemon.cli(&["ban", "sshd", "2001:db8:1100:1::7/128"]).ok();
        assert!(lab.keeps_out("2001:db8:1012:5::1", 22) && lab.connects("2001:db8:1100:1::8", 22));
        assert!(lab.keeps_out("2001:db8:1100:1::7", 22), "an exact address");
        let kernel = daemon.jail("sshd")["kernel"].clone();
        assert_eq!((kernel["net4"].as_u64(), kernel["net6"].as_u64()), (Some(1), Some(2)), "{kernel}");
        let counted = daemon.banned().into_iter().find(|row| row["addr"] == "198.51.100.0/24").expect("it is told");
        println!("{counted}");
        assert!(counted["packets"].is_null() || counted["packets"].as_u64() > Some(0), "{counted}");

        // Out of it, and of nothing else.
        let said = daemon.cli(&["unban", "198.51.100.7"]).ok();
        assert!(
            said.contains("198.51.100.7 unbanned from sshd") && said.contains("the rest of 198.51.100.0/24 stays banned"),
            "{said}"
        );
        assert!(lab.connects("198.51.100.7", 22) && lab.keeps_out("198.51.100.6", 22) && lab.keeps_out("198.51.100.200", 22));
        assert_eq!(daemon.cli(&["banned", "198.51.100.7"]).code, 1);
        assert_eq!(elements("sshd-net4").len() + elements("sshd-v4").len(), 8);

        // Neither a flush nor a restart brings it back, or loses the others.
        nft(&["flush", "ruleset"]);
        daemon.cli(&["ban", "sshd", "203.0.113.7"]).ok();
        assert!(lab.connects("198.51.100.7", 22) && lab.keeps_out("198.51.100.6", 22) && lab.keeps_out("198.51.100.200", 22));
        assert!(lab.keeps_out("2001:db8:1012:5::1", 22) && lab.keeps_out("203.0.113.7", 22));
        assert!(lab.connects("198.51.100.9", 22));
        let before = (banned(&daemon).len(), elements("sshd-net4"), elements("sshd-net6"));
        daemon.restart();
        daemon.wait_running();
        assert_eq!((banned(&daemon).len(), elements("sshd-net4"), elements("sshd-net6")), before);
        assert!(
            lab.connects("198.51.100.7", 22) && lab.keeps_out("198.51.100.200", 22) && lab.keeps_out("2001:db8:1012:5::1", 22)
        );

        // All that is left of it.
        daemon.cli(&["unban", "198.51.100.0/24"]).ok();
        assert!(lab.connects("198.51.100.6", 22) && lab.connects("198.51.100.200", 22) && lab.keeps_out("203.0.113.7", 22));
        assert!(elements("sshd-net4").is_empty());
    });
}

#[test]
fn overlapping_bans_by_hand_are_each_told_and_each_address_is_held_to_its_last_end() {
    in_netns("overlapping_bans_by_hand_are_each_told_and_each_address_is_held_to_its_last_end", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth"));
        let daemon = Daemon::start(&lab, &sshd(&log, ""));
        daemon.wait_running();
        let mut dice = Dice(11);
        let mut model: BTreeMap<IpNetwork, Option<u64>> = BTreeMap::new();
        let began = Instant::now();
        for step in 0..60 {
            let net = network(0xcb00_7100 + dice.below(16) as u32, 28 + dice.below(5) as u8);
            let text = if net.prefix() == 32 { net.ip().to_string() } else { net.to_string() };
            if dice.below(4) == 0 {
                let answer = daemon.cli(&["unban", "sshd", &text]);
                let covered = |other: &IpNetwork| other.prefix() < net.prefix() && other.contains(net.ip());
                let within = |other: &IpNetwork| other.prefix() >= net.prefix() && net.contains(other.ip());
                let found =
                    model.contains_key(&net) || model.keys().any(covered) || (net.prefix() < 32 && model.keys().any(within));
                // A host is told without its length, and is looked for as itself only.
                let lifted: Vec<IpNetwork> = match model.contains_key(&net) {
                    true => vec![net],
                    false if net.prefix() == 32 => vec![],
                    false => model.keys().copied().filter(within).collect(),
                };
                assert_eq!(answer.code, i32::from(!found), "{text}: {answer:?}\n{model:?}");
                lifted.iter().for_each(|net| _ = model.remove(net));
                let around: Vec<IpNetwork> = model.keys().copied().filter(covered).collect();
                for outer in around {
                    let end = model.remove(&outer).expect("just seen");
                    for part in banset::jail::cover::around(outer, net) {
                        let longer = model.get(&part).is_none_or(|is| is.is_some() && (end.is_none() || end > *is));
                        if longer {
                            model.insert(part, end);
                        }
                    }
                }
            } else {
                let secs = match dice.below(6) {
                    0 => None,
                    _ => Some(1000 + 1000 * dice.below(9)),
                };
                let span = secs.map(|secs| format!("{secs}s"));
                match &span {
                    Some(span) => daemon.cli(&["ban", "sshd", &text, "--for", span]).ok(),
                    None => daemon.cli(&["ban", "sshd", &text, "--permanent"]).ok(),
                };
                let end = secs.map(|secs| secs + began.elapsed().as_secs());
                let is = model.entry(net).or_insert(end);
                if is.is_some() && (end.is_none() || end > *is) {
                    *is = end;
                }
            }
            let passed = began.elapsed().as_secs();
            let alike = |a: Option<u64>, b: Option<u64>| match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => a.abs_diff(b) <= 30,
                _ => false,
            };
            let told: BTreeMap<IpNetwork, Option<u64>> =
                banned(&daemon).into_iter().map(|(addr, left)| (addr.parse().expect("an address"), left)).collect();
            assert_eq!(told.keys().collect::<Vec<_>>(), model.keys().collect::<Vec<_>>(), "step {step}");
            for (net, left) in &told {
                assert!(alike(left.map(|left| left + passed), model[net]), "step {step}, {net}: {left:?} of {:?}", model[net]);
            }
            let held = held();
            for bits in 0xcb00_7100u32..0xcb00_7110 {
                let address = IpAddr::from(Ipv4Addr::from(bits));
                let ends = model.iter().filter(|(net, _)| net.contains(address)).map(|(_, end)| *end);
                let meant = ends.reduce(|a, b| if a.is_none() || (b.is_some() && a > b) { a } else { b });
                let there = held
                    .iter()
                    .filter(|(first, last, _)| (*first..=*last).contains(&bits))
                    .map(|(_, _, left)| left.map(|left| left + passed));
                let there = there.reduce(|a, b| if a.is_none() || (b.is_some() && a > b) { a } else { b });
                assert!(
                    there.is_some() == meant.is_some() && alike(there.flatten(), meant.flatten()),
                    "step {step}, {address}: {there:?}, {meant:?}"
                );
            }
        }
        println!("{} bans at the end, {} elements", model.len(), held().len());
    });
}

/// First and last address and the seconds left of everything in `sshd-v4` and `sshd-net4`, as nft lists it.
fn held() -> Vec<(u32, u32, Option<u64>)> {
    let bits = |value: &Value| u32::from(value.as_str().expect("text").parse::<Ipv4Addr>().expect("an address"));
    let mut all = Vec::new();
    for set in ["sshd-v4", "sshd-net4"] {
        let Ok(text) = banset_integration::nft_try(&["-j", "list", "set", "inet", "banset", set]) else { continue };
        let listing: Value = serde_json::from_str(&text).expect("nft prints JSON");
        let objects = listing["nftables"].as_array().cloned().unwrap_or_default();
        for element in objects.iter().filter_map(|object| object["set"]["elem"].as_array()).flatten() {
            let value = element.pointer("/elem/val").unwrap_or(element);
            let (first, last) = match (value.get("prefix"), value.get("range")) {
                (Some(prefix), _) => {
                    let len = prefix["len"].as_u64().expect("a number") as u32;
                    (bits(&prefix["addr"]), bits(&prefix["addr"]) | u32::MAX.checked_shr(len).unwrap_or(0))
                }
                (_, Some(range)) => (bits(&range[0]), bits(&range[1])),
                _ => (bits(value), bits(value)),
            };
            all.push((first, last, element.pointer("/elem/expires").and_then(Value::as_u64)));
        }
    }
    all
}

#[test]
fn what_an_admin_did_to_a_set_of_subnets_while_the_daemon_was_away_is_his_will() {
    in_netns("what_an_admin_did_to_a_set_of_subnets_while_the_daemon_was_away_is_his_will", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth"));
        let mut daemon = Daemon::start(&lab, &sshd(&log, ""));
        daemon.wait_running();
        for (net, span) in [("198.51.100.0/24", "2h"), ("198.51.100.0/26", "5h"), ("203.0.113.0/25", "3h")] {
            daemon.cli(&["ban", "sshd", net, "--for", span]).ok();
        }
        daemon.stop();
        nft(&["delete element inet banset sshd-net4 { 203.0.113.0/25 }"]);
        nft(&["delete element inet banset sshd-net4 { 198.51.100.0/26 }"]);
        nft(&["add element inet banset sshd-net4 { 192.0.2.64/26 timeout 1h, 192.0.2.129-192.0.2.131 }"]);
        daemon.start_again();
        daemon.wait_running();
        let told: Vec<String> = banned(&daemon).into_iter().map(|(addr, _)| addr).collect();
        assert_eq!(told, ["192.0.2.129", "192.0.2.130/31", "192.0.2.64/26", "198.51.100.128/25", "198.51.100.64/26"]);
        wait_until("the stretch becomes subnets", || {
            elements("sshd-v4") == ["192.0.2.129"]
                && elements("sshd-net4") == ["192.0.2.130/31", "192.0.2.64/26", "198.51.100.128/25", "198.51.100.64/26"]
        });
        daemon.restart();
        daemon.wait_running();
        let again: Vec<String> = banned(&daemon).into_iter().map(|(addr, _)| addr).collect();
        assert_eq!(again, told);
        // A table that vanished is put back with them.
        daemon.stop();
        nft(&["flush", "ruleset"]);
        daemon.start_again();
        daemon.wait_running();
        assert_eq!(elements("sshd-net4"), ["192.0.2.130/31", "192.0.2.64/26", "198.51.100.128/25", "198.51.100.64/26"]);
        // Nothing remembered: everything is adopted.
        daemon.stop();
        std::fs::remove_dir_all(lab.dir().join("banset/state")).expect("the state");
        daemon.start_again();
        daemon.wait_running();
        let adopted: Vec<String> = banned(&daemon).into_iter().map(|(addr, _)| addr).collect();
        assert_eq!(adopted, told);
    });
}

#[test]
fn lines_about_many_addresses_of_a_subnet_ban_the_subnet() {
    in_netns("lines_about_many_addresses_of_a_subnet_ban_the_subnet", || {
        let lab = Lab::new();
        let _door = Echo::tcp(&[22]);
        let mut log = Log::create(lab.dir().join("auth"));
        let daemon = Daemon::start(&lab, &sshd(&log, "aggregate = { v4 = 24, v6 = 48, count = 4 }"));
        daemon.wait_running();
        for from in ["198.51.100.1", "198.51.100.2", "198.51.100.3", "203.0.113.1"] {
            log.fail(from, 1);
        }
        wait_until("four are banned", || elements("sshd-v4").len() == 4);
        assert!(lab.connects("198.51.100.77", 22));
        log.fail("198.51.100.4", 1);
        wait_until("the subnet is", || elements("sshd-net4") == ["198.51.100.0/24"]);
        daemon.wait_log("[sshd] Ban 198.51.100.0/24");
        assert!(lab.keeps_out("198.51.100.77", 22) && lab.connects("203.0.113.77", 22));
        assert!(lab.connects("198.51.100.9", 22), "an ignored host in it passes");
        for part in 1..=4 {
            log.fail(&format!("2001:db8:1001:{part}::1"), 1);
        }
        wait_until("the IPv6 subnet is", || elements("sshd-net6") == ["2001:db8:1001::/48"]);
        // Our own link is ours: neighbours are banned one by one.
        for part in 1..=6 {
            log.fail(&format!("2001:db8::1:{part}"), 1);
            log.fail(&format!("192.0.2.{}", 10 + part), 1);
        }
        wait_until("each neighbour is banned", || elements("sshd-v4").len() == 11);
        wait_until("by itself", || elements("sshd-net6").iter().filter(|e| e.starts_with("2001:db8::1:")).count() == 6);
        assert_eq!(elements("sshd-net4"), ["198.51.100.0/24"]);
        let row = daemon.banned().into_iter().find(|row| row["addr"] == "198.51.100.0/24").expect("it is told");
        assert_eq!(row["reason"], "4 of its addresses were banned");
        assert_eq!(daemon.cli(&["ruleset"]).code, 0);
    });
}

#[test]
fn others_hands_on_a_set_of_subnets_are_heeded_and_a_flush_is_put_back() {
    in_netns("others_hands_on_a_set_of_subnets_are_heeded_and_a_flush_is_put_back", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth"));
        let daemon = Daemon::start(&lab, &sshd(&log, ""));
        daemon.wait_running();
        for (net, span) in [("198.51.100.0/24", "2h"), ("198.51.100.0/26", "5h"), ("203.0.113.0/25", "3h")] {
            daemon.cli(&["ban", "sshd", net, "--for", span]).ok();
        }
        nft(&["delete element inet banset sshd-net4 { 198.51.100.0/26 }"]);
        daemon.wait_log("Unban 198.51.100.0/26, removed by nft");
        nft(&["add element inet banset sshd-net4 { 192.0.2.129-192.0.2.131 }"]);
        daemon.wait_log("Ban 192.0.2.130/31, added by nft");
        let told = ["192.0.2.129", "192.0.2.130/31", "198.51.100.128/25", "198.51.100.64/26", "203.0.113.0/25"];
        let is_told = || banned(&daemon).iter().map(|(addr, _)| addr.as_str()).eq(told);
        assert!(is_told(), "{:?}", banned(&daemon));
        let held = || elements("sshd-v4") == told[..1] && elements("sshd-net4") == told[1..];
        wait_until("the stretch becomes subnets", held);
        for flush in ["flush set inet banset sshd-net4", "flush ruleset"] {
            nft(&[flush]);
            wait_until("it is put back", held);
            assert!(is_told(), "{flush}: {:?}", banned(&daemon));
        }
    });
}
