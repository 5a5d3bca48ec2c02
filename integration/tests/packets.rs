//! Packets, not listings: for every hook a ban may bite at, over IPv4 and IPv6 and four protocols, what a banned, an innocent and an
//! ignored source see, on the jail's port and beside it, while the ban lasts and after.
//!
//! [`a_ban_bites_where_the_packets_are`] prints the whole table, a line for each row and column. Each row has machines and a daemon
//! of its own; what the daemon is told comes out of a log. `BANSET_ROWS=bridge` runs the rows whose name contains that word.

use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use banset::netns::{Netns, sysctl};
use banset_integration::{
    Daemon, Doors, Flow, Log, PATIENCE, Proto, Seen, Site, Wire, Wiring, in_netns, knock, lacking, nft, udp_frame, wait_until,
};
use serde_json::Value;

/// The jail's port, and one beside it.
const LISTED: u16 = 25;
const UNLISTED: u16 = 143;
/// How the ports of a gateway behind address translation are known outside.
const PUBLISHED: u16 = 2525;
const PUBLISHED_UNLISTED: u16 = 2643;

/// How long silence is waited for. An answer that is late does not pass for silence: the doors remember who came.
const SILENCE: Duration = Duration::from_millis(600);
/// Who knocks, for IPv4 and IPv6. The ignored one is in the set like the banned, and inside his /64.
const BANNED: [&str; 2] = ["198.51.100.7", "2001:db8:1000:1::7"];
const INNOCENT: [&str; 2] = ["198.51.100.8", "2001:db8:1000:2::7"];
const IGNORED: [&str; 2] = ["198.51.100.5", "2001:db8:1000:1::5"];

/// A hook, and all that is special about it.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    wiring: Wiring,
    /// The jail's keys that say where the ban bites.
    keys: &'static str,
    reject: bool,
    /// Whether the bridge shows its frames to IP's filters.
    bridge_nf: bool,
    /// Whether the ports are known by other numbers outside.
    published: bool,
    /// Whether the daemon runs before the bridge is there.
    early: bool,
    /// Whether the address matched is the destination: our own machine knocks at theirs.
    outward: bool,
    /// Whether a rejection may go unanswered.
    best_effort: bool,
    /// Whether the hook does not see these packets at all, as the guide says: nobody is kept out.
    blind: bool,
    /// How many more jails there are, each with a port of its own, which all ban the same.
    others: u16,
}

impl Row {
    const fn new(name: &'static str, wiring: Wiring, keys: &'static str) -> Row {
        let (reject, bridge_nf, published, early, outward, best_effort, blind) = (false, true, false, false, false, false, false);
        Row { name, wiring, keys, reject, bridge_nf, published, early, outward, best_effort, blind, others: 0 }
    }

    const fn rejecting(self) -> Row {
        Row { reject: true, ..self }
    }

    const fn best_effort(self) -> Row {
        Row { reject: true, best_effort: true, ..self }
    }

    const fn outward(self) -> Row {
        Row { outward: true, ..self }
    }

    const fn without_br_netfilter(self) -> Row {
        Row { bridge_nf: false, ..self }
    }

    const fn published(self) -> Row {
        Row { published: true, ..self }
    }

    const fn blind(self) -> Row {
        Row { blind: true, ..self }
    }

    const fn among(self, others: u16) -> Row {
        Row { others, ..self }
    }

    const fn before_the_bridge(self) -> Row {
        Row { early: true, ..self }
    }

    /// What the banned may see at the jail's port.
    fn allows(&self, seen: Seen) -> bool {
        if self.blind {
            return seen == Seen::Answer;
        }
        match (self.outward, self.reject) {
            // A local sender is told at once, by his own kernel.
            (true, true) => matches!(seen, Seen::Refused | Seen::Denied),
            (true, false) => matches!(seen, Seen::Nothing | Seen::Denied),
            (false, true) => seen == Seen::Refused || self.best_effort && seen == Seen::Nothing,
            (false, false) => seen == Seen::Nothing,
        }
    }

    /// How long the banned wait at the jail's port: for silence no longer than it takes, for an answer as long as it may.
    fn patience(&self) -> Duration {
        if self.reject && !self.best_effort || self.blind { PATIENCE } else { SILENCE }
    }

    /// The ports as whoever knocks knows them.
    fn ports(&self) -> (u16, u16) {
        if self.published { (PUBLISHED, PUBLISHED_UNLISTED) } else { (LISTED, UNLISTED) }
    }

    /// The family of a table it stands in.
    fn family(&self) -> &'static str {
        if self.keys.contains("family = \"bridge\"") { "bridge" } else { "inet" }
    }

    fn label(&self) -> String {
        format!("{}, {}", self.name, if self.reject { "reject" } else { "drop" })
    }
}

const GATEWAY: Wiring = Wiring::Gateway;
const ROUTED: Wiring = Wiring::Routed;
const BRIDGED: Wiring = Wiring::Bridged;
const INPUT: Row = Row::new("input", GATEWAY, "chain_hook = \"input\"");
const PREROUTING: Row = Row::new("prerouting", GATEWAY, "chain_hook = \"prerouting\"");
const FORWARD: Row = Row::new("forward routed", ROUTED, "chain_hook = \"forward\"");
const BOTH_HOOKS: Row = Row::new("input and forward, routed", ROUTED, "chain_hook = [\"input\", \"forward\"]");
const DNAT: Row = Row::new("forward DNAT", ROUTED, "chain_hook = \"forward\"\ndnat = true").published();
const DNAT_BEFORE: Row = Row::new("prerouting DNAT", ROUTED, "chain_hook = \"prerouting\"").published();
const DNAT_BLIND: Row = Row::new("forward DNAT, dnat not written", ROUTED, "chain_hook = \"forward\"").published().blind();
const MANY: Row = Row::new("forward, one of 13 jails", ROUTED, "chain_hook = \"forward\"").among(12);
const BR_NETFILTER: Row = Row::new("forward br_netfilter", BRIDGED, "chain_hook = \"forward\"");
const BRIDGE_BLIND: Row =
    Row::new("forward, no br_netfilter", BRIDGED, "chain_hook = \"forward\"").without_br_netfilter().blind();
const BRIDGE: Row = Row::new("bridge family", BRIDGED, "chain_hook = \"forward\"\nfamily = \"bridge\"").without_br_netfilter();
const BRIDGE_MANY: Row = Row::new("bridge, one of 13 jails", BRIDGED, "chain_hook = \"forward\"\nfamily = \"bridge\"").among(12);
const BOTH_FAMILIES: Row = Row::new("inet and bridge", BRIDGED, "chain_hook = \"forward\"\nfamily = [\"inet\", \"bridge\"]");
const EARLY: Row = Row::new("bridge, daemon first", BRIDGED, "chain_hook = \"forward\"\nfamily = \"bridge\"").before_the_bridge();
const OUTPUT: Row = Row::new("output", GATEWAY, "chain_hook = \"output\"").outward();
const POSTROUTING: Row = Row::new("postrouting", GATEWAY, "chain_hook = \"postrouting\"").outward();

const ROWS: &[Row] = &[
    INPUT,
    INPUT.rejecting(),
    PREROUTING,
    PREROUTING.rejecting(),
    FORWARD,
    FORWARD.rejecting(),
    BOTH_HOOKS,
    DNAT,
    DNAT.rejecting(),
    DNAT_BEFORE,
    DNAT_BLIND,
    MANY,
    MANY.rejecting(),
    BR_NETFILTER,
    BR_NETFILTER.rejecting(),
    BRIDGE_BLIND,
    BRIDGE,
    BRIDGE.best_effort(),
    BRIDGE_MANY,
    BOTH_FAMILIES,
    EARLY,
    OUTPUT,
    OUTPUT.rejecting(),
    POSTROUTING,
];

/// A row's machines while its daemon runs, as the columns see them.
struct Stage<'a> {
    row: &'a Row,
    site: &'a Site,
    doors: &'a Doors,
}

impl Stage<'_> {
    /// Where knocks start: with whom the ban is about, or where we knock at his doors.
    fn hall(&self) -> &Netns {
        if self.row.outward { self.site.firewall() } else { self.site.attackers() }
    }

    /// Somebody knocks at `port`, or we knock there at his.
    fn knock(&self, proto: Proto, who: &str, port: u16, patience: Duration) -> Seen {
        let who: IpAddr = who.parse().expect("an address");
        let own = own(self.row, self.site)[usize::from(who.is_ipv6())];
        let (from, to) = if self.row.outward { (own, who) } else { (who, own) };
        self.hall().run(|| knock(proto, from, SocketAddr::new(to, port), patience))
    }

    /// How often the banned came through the listed door.
    fn visits(&self, proto: Proto, who: &str) -> usize {
        let who: IpAddr = who.parse().expect("an address");
        // Knocking outward it is us who come, whoever's door it is: silence has to be believed there.
        if self.row.outward { 1 } else { self.doors.visits(proto, who, LISTED) }
    }
}

/// Our own addresses, as they are known outside: those of the router where it publishes our ports.
fn own(row: &Row, site: &Site) -> [IpAddr; 2] {
    if row.published {
        return ["192.0.2.1", "2001:db8::1"].map(|address| address.parse().expect("an address"));
    }
    site.addresses()
}

/// What was seen in one column of a row.
struct Cell {
    proto: Proto,
    family: usize,
    before: Seen,
    banned: Seen,
    unlisted: Seen,
    innocent: Seen,
    ignored: Seen,
    after: Seen,
    visits: usize,
}

impl Cell {
    fn wrong(&self, row: &Row) -> Option<&'static str> {
        let answers = |seen| seen == Seen::Answer;
        [
            (answers(self.before), "no answer before the ban"),
            (row.allows(self.banned), "the banned source on the jail's port"),
            (answers(self.unlisted), "the banned source on another port"),
            (answers(self.innocent), "the innocent"),
            (answers(self.ignored), "the ignored"),
            (self.visits == if row.blind { 2 } else { 1 }, "packets of the banned source arrived"),
            (answers(self.after), "no answer after the ban"),
        ]
        .into_iter()
        .find_map(|(right, what)| (!right).then_some(what))
    }

    fn line(&self, row: &Row) -> String {
        format!(
            "{:<36} IPv{} {:<8} before {:<7} banned {:<8} other port {:<7} innocent {:<7} ignored {:<7} after {:<7} {}",
            row.label(),
            if self.family == 0 { 4 } else { 6 },
            self.proto.name(),
            self.before,
            self.banned,
            self.unlisted,
            self.innocent,
            self.ignored,
            self.after,
            self.wrong(row).map_or_else(|| "ok".to_owned(), |what| format!("WRONG: {what}")),
        )
    }
}

/// The port 2525 of the router's outer addresses is the gateway's port 25, as a container engine publishes it.
fn publish() {
    nft(&["add table inet published; add chain inet published pre { type nat hook prerouting priority dstnat; }"]);
    for (outside, inside) in [(PUBLISHED, LISTED), (PUBLISHED_UNLISTED, UNLISTED)] {
        let protocols = "meta l4proto { tcp, udp, udplite, sctp } th dport";
        nft(&[&format!("add rule inet published pre ip daddr 192.0.2.1 {protocols} {outside} dnat ip to 10.25.0.25:{inside}")]);
        nft(&[&format!(
            "add rule inet published pre ip6 daddr 2001:db8::1 {protocols} {outside} dnat ip6 to [2001:db8:25::25]:{inside}"
        )]);
    }
}

/// A jail that reads `log` and closes the listed port, where `keys` say.
fn jail(log: &Log, port: u16, keys: &str, bantime: u64) -> String {
    format!(
        "[defaults]\nignoreip = {IGNORED:?}\n\n[jail.sshd]\nenabled = true\nlogpath = {:?}\nport = {port}\nmaxretry = 3\n\
         findtime = \"10m\"\nbantime = \"{bantime}s\"\n{keys}\n",
        log.path()
    )
}

/// Three failures of each.
fn fail(log: &mut Log, who: &[&str]) {
    who.iter().for_each(|address| log.fail(address, 3));
}

fn wait_banned(daemon: &Daemon, who: &[&str]) {
    who.iter().for_each(|address| daemon.wait_log(&format!("[sshd] Ban {}", shown(address))));
}

/// An address as bans name it: by its /64.
fn shown(address: &str) -> String {
    match address.rsplit_once("::") {
        Some((prefix, _)) => format!("{prefix}::/64"),
        None => address.to_owned(),
    }
}

/// What `banset doctor` says would keep the jail's bans from biting.
fn alarms(daemon: &Daemon) -> Vec<String> {
    let report: Value = serde_json::from_str(&daemon.cli(&["doctor", "--json"]).out).expect("the doctor speaks JSON");
    let findings = report["findings"].as_array().expect("a list of findings");
    let ours = |finding: &&Value| finding["jails"].as_array().is_some_and(|jails| jails.contains(&"sshd".into()));
    let blunt = findings.iter().filter(ours).filter(|finding| finding["bites"] == false);
    blunt.map(|finding| finding["what"].as_str().unwrap_or_default().to_owned()).collect()
}

/// What a row showed.
struct Played {
    cells: Vec<Cell>,
    alarms: Vec<String>,
    /// The packets that `banset status` says the jail's rules have dropped.
    dropped: u64,
}

/// Plays one row. `None`: the machine was so slow that the ban may have ended before all had knocked.
fn play(row: &Row, name: &str, bantime: u64) -> Option<Played> {
    let site = if row.early { Site::unwired(name, row.wiring) } else { Site::new(name, row.wiring) };
    site.firewall().run(|| {
        let mut log = Log::create(site.dir().join("auth.log"));
        let (listed, unlisted) = row.ports();
        let keys = format!("{}\nblocktype = \"{}\"", row.keys, if row.reject { "reject" } else { "drop" });
        let mut jails = jail(&log, listed, &keys, bantime);
        for other in 0..row.others {
            let more = format!("\n[jail.other-{other}]\nenabled = true\nfilter = \"sshd\"\nlogpath = {:?}", log.path());
            jails.push_str(&format!("{more}\nport = {}\nmaxretry = 3\nbantime = \"1h\"\n{keys}\n", 1000 + other));
        }
        let daemon = Daemon::start(&site, &jails);
        daemon.wait_running();
        if row.early {
            site.wire();
        }
        if row.wiring == Wiring::Bridged {
            site.bridge_nf(row.bridge_nf);
        }
        if row.published {
            publish();
        }
        let everybody = [BANNED, INNOCENT, IGNORED].concat();
        let doors = if row.outward {
            let theirs: Vec<IpAddr> = everybody.iter().map(|who| who.parse().expect("an address")).collect();
            site.attackers().run(|| Doors::open(&theirs, &[LISTED, UNLISTED]))
        } else {
            site.mail().run(|| Doors::open(&site.addresses(), &[LISTED, UNLISTED]))
        };
        let stage = Stage { row, site: &site, doors: &doors };
        let mut columns: Vec<(Proto, usize)> = Proto::ALL.into_iter().flat_map(|proto| [(proto, 0), (proto, 1)]).collect();
        columns.retain(|(proto, _)| !doors.lacking().contains(proto));
        let mut before = each(&columns, |(proto, family)| stage.knock(proto, BANNED[family], listed, PATIENCE));
        // A kernel that does not track UDP-Lite does not translate its ports either: nobody can publish such a service with it.
        let published = row.published;
        let untranslated = |(proto, _), seen| published && proto == Proto::Udplite && seen == Seen::Refused;
        (columns, before) = columns.into_iter().zip(before).filter(|(column, seen)| !untranslated(*column, *seen)).unzip();
        let alarms = alarms(&daemon);

        let start = Instant::now();
        fail(&mut log, &BANNED);
        // The ignored of IPv6 lies in the banned /64. That of IPv4 never gets into the set by its lines; by an admin's hand it does.
        nft(&["add", "element", row.family(), "banset", "sshd-v4", &format!("{{ {} timeout 10m }}", IGNORED[0])]);
        daemon.wait_log(&format!("[sshd] Ban {}, added by", IGNORED[0]));
        wait_banned(&daemon, &BANNED);
        let during = each(&columns, |(proto, family)| {
            let banned = stage.knock(proto, BANNED[family], listed, row.patience());
            // By then the ban may be over; what is told in whole seconds is up to one older.
            let in_time = start.elapsed() + Duration::from_secs(1) < Duration::from_secs(bantime);
            let unlisted = stage.knock(proto, BANNED[family], unlisted, PATIENCE);
            let innocent = stage.knock(proto, INNOCENT[family], listed, PATIENCE);
            let ignored = stage.knock(proto, IGNORED[family], listed, PATIENCE);
            (banned, in_time, unlisted, innocent, ignored)
        });
        let dropped = daemon.jail("sshd")["dropped"]["packets"].as_u64().unwrap_or_default();
        let visits: Vec<usize> = columns.iter().map(|(proto, family)| stage.visits(*proto, BANNED[*family])).collect();
        if during.iter().any(|(_, in_time, ..)| !in_time) {
            return None;
        }

        let start = Instant::now();
        let after = each(&columns, |(proto, family)| {
            loop {
                let seen = stage.knock(proto, BANNED[family], listed, SILENCE);
                if seen == Seen::Answer || start.elapsed() > Duration::from_secs(bantime) + PATIENCE {
                    return seen;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let cells = columns.iter().zip(before).zip(during).zip(after).zip(visits);
        let cell = |((((&(proto, family), before), (banned, _, unlisted, innocent, ignored)), after), visits)| Cell {
            proto,
            family,
            before,
            banned,
            unlisted,
            innocent,
            ignored,
            after,
            visits,
        };
        Some(Played { cells: cells.map(cell).collect(), alarms, dropped })
    })
}

/// Does `work` for each of `items` at the same time; the results in their order.
fn each<I: Copy + Sync, T: Send>(items: &[I], work: impl Fn(I) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| work(*item))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

#[test]
fn a_ban_bites_where_the_packets_are() {
    in_netns("a_ban_bites_where_the_packets_are", || {
        let chosen = std::env::var("BANSET_ROWS").unwrap_or_default();
        let rows: Vec<(usize, &Row)> = ROWS.iter().enumerate().filter(|(_, row)| row.label().contains(&chosen)).collect();
        let waiting = Mutex::new(rows.iter().rev().copied().collect::<Vec<_>>());
        let next = || waiting.lock().expect("nobody panics in there").pop();
        let played = Mutex::new(Vec::new());
        // Most of a row is waiting for the kernel's clock.
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    while let Some((number, row)) = next() {
                        let tries = [(6, 'a'), (120, 'b')];
                        let cells =
                            tries.into_iter().find_map(|(bantime, again)| play(row, &format!("row{number}{again}"), bantime));
                        played.lock().expect("nobody panics in there").push((number, row, cells));
                    }
                });
            }
        });
        let mut played = played.into_inner().expect("nobody panics in there");
        played.sort_by_key(|(number, ..)| *number);
        let mut wrong = 0;
        let mut table = String::new();
        for (_, row, seen) in &played {
            let Played { cells, alarms, dropped } =
                seen.as_ref().unwrap_or_else(|| panic!("{}: a ban of two minutes ended before all had knocked", row.label()));
            for cell in cells {
                table.push_str(&format!("| {}\n", cell.line(row)));
                wrong += usize::from(cell.wrong(row).is_some());
            }
            // What the doctor and the counters say is what the packets show.
            let said = if alarms.is_empty() { "nothing" } else { &alarms.join("; ") };
            let right = (alarms.is_empty(), *dropped < cells.len() as u64) == (!row.blind, row.blind);
            let verdict = if right { "ok" } else { "WRONG" };
            table.push_str(&format!("| {:<36} dropped {dropped:<3} doctor: {said} {verdict}\n", row.label()));
            wrong += usize::from(!right);
            if !cells.iter().any(|cell| cell.proto == Proto::Udplite) {
                let name = format!("{}, udplite", row.label());
                lacking(&name, "this kernel has no such sockets, or does not translate their ports");
            }
        }
        println!("{table}| {} rows, {wrong} lines wrong", played.len());
        assert_eq!(wrong, 0, "lines of the table above");
        assert!(!played.is_empty(), "no row is called {chosen:?}");
    });
}

/// A flow that was open before its source was banned.
struct Open {
    proto: Proto,
    who: &'static str,
    flow: Flow,
}

impl Open {
    fn all(row: &Row, site: &Site) -> Vec<Open> {
        let mut open = Vec::new();
        for proto in [Proto::Tcp, Proto::Udp] {
            for who in BANNED.into_iter().chain(INNOCENT) {
                let from: IpAddr = who.parse().expect("an address");
                let to = SocketAddr::new(own(row, site)[usize::from(from.is_ipv6())], row.ports().0);
                let flow = site.attackers().run(|| Flow::open(proto, from, to, PATIENCE)).expect("nobody is banned yet");
                open.push(Open { proto, who, flow });
            }
        }
        open
    }

    fn banned(&self) -> bool {
        BANNED.contains(&self.who)
    }

    fn turn(&mut self, patience: Duration) -> Seen {
        self.flow.turn(patience).map_or_else(Seen::from, |()| Seen::Answer)
    }
}

/// Connections and flows of datagrams that are open when their source is banned: not a byte more passes, whoever else has accepted
/// what is established; those of others go on; and when the ban is over, TCP mends itself. `None`: the machine was so slow that the
/// ban may have ended before all had been looked at.
fn cut(row: &Row, name: &str, tracked: bool, bantime: u64) -> Option<Vec<String>> {
    let site = Site::new(name, row.wiring);
    site.firewall().run(|| {
        if row.wiring == Wiring::Bridged {
            site.bridge_nf(row.bridge_nf);
        }
        if tracked {
            // As most rulesets begin; before ours, and after it.
            nft(&["add table inet others"]);
            for hook in ["input", "forward"] {
                for (chain, priority) in [("early", -300), ("late", 10)] {
                    nft(&[&format!("add chain inet others {hook}-{chain} {{ type filter hook {hook} priority {priority}; }}")]);
                    nft(&[&format!("add rule inet others {hook}-{chain} ct state established,related accept")]);
                }
            }
        }
        if row.published {
            publish();
        }
        let _doors = site.mail().run(|| Doors::open(&site.addresses(), &[LISTED]));
        let mut log = Log::create(site.dir().join("auth.log"));
        let keys = format!("{}\nblocktype = \"{}\"", row.keys, if row.reject { "reject" } else { "drop" });
        let daemon = Daemon::start(&site, &jail(&log, row.ports().0, &keys, bantime));
        daemon.wait_running();
        let mut open = Open::all(row, &site);
        let mut told = Vec::new();
        for one in &mut open {
            for _ in 0..2 {
                let seen = one.turn(PATIENCE);
                assert_eq!(seen, Seen::Answer, "{}, {}: open, {} {}", row.label(), tracked, one.proto.name(), one.who);
            }
        }
        let start = Instant::now();
        fail(&mut log, &BANNED);
        wait_banned(&daemon, &BANNED);
        let during: Vec<Seen> = std::thread::scope(|scope| {
            let turns: Vec<_> = open
                .iter_mut()
                .map(|one| {
                    let patience = if one.banned() { row.patience() } else { PATIENCE };
                    scope.spawn(move || one.turn(patience))
                })
                .collect();
            turns.into_iter().map(|turn| turn.join().expect("a turn does not panic")).collect()
        });
        if start.elapsed() + Duration::from_secs(1) >= Duration::from_secs(bantime) {
            return None;
        }
        for (one, during) in open.iter_mut().zip(during) {
            // A reset ends a connection for good. It may come of a drop, too, where the other end is this machine's own socket: whoever
            // destroys that (SOCK_DESTROY) tells the client so.
            let reset = Seen::Failed(nix::errno::Errno::ECONNRESET);
            let destroyed = row.wiring == GATEWAY && one.proto == Proto::Tcp && during == reset;
            let right = match (one.banned(), row.reject, one.proto) {
                (false, ..) => during == Seen::Answer,
                (true, false, _) if destroyed => true,
                (true, false, _) => during == Seen::Nothing,
                (true, true, Proto::Tcp) => during == reset,
                (true, true, _) => during == Seen::Refused,
            };
            let family = if one.who.contains(':') { 6 } else { 4 };
            let after = match one.banned() && !row.reject && !destroyed {
                // Whoever destroys sockets may be slower than the drop.
                true if row.wiring == GATEWAY && one.proto == Proto::Tcp => match mended(one, bantime) {
                    seen if seen == reset => "-".to_owned(),
                    seen => seen.to_string(),
                },
                true => mended(one, bantime).to_string(),
                false => "-".to_owned(),
            };
            told.push(format!(
                "| {:<31} {:<9} IPv{family} {} of the {:<8} after the ban {:<10} in the end {:<7} {}",
                row.label(),
                if tracked { "conntrack" } else { "" },
                one.proto.name(),
                if one.banned() { "banned" } else { "innocent" },
                during,
                after,
                if right && matches!(after.as_str(), "answer" | "-") { "ok" } else { "WRONG" },
            ));
        }
        Some(told)
    })
}

/// Waits for the end of the ban, or of the connection: TCP sends again what got lost, at ever longer intervals; datagrams are sent anew.
fn mended(one: &mut Open, bantime: u64) -> Seen {
    let start = Instant::now();
    loop {
        let seen = one.turn(SILENCE);
        if seen != Seen::Nothing || start.elapsed() > Duration::from_secs(2 * bantime) + PATIENCE {
            return seen;
        }
    }
}

#[test]
fn a_ban_cuts_what_is_open_at_every_hook() {
    in_netns("a_ban_cuts_what_is_open_at_every_hook", || {
        let plays: Vec<(usize, Row, bool)> =
            CUT.iter().enumerate().map(|(number, (row, tracked))| (number, *row, *tracked)).collect();
        let told = each(&plays, |(number, row, tracked)| {
            let tries = [(15, 'a'), (120, 'b')];
            let told = tries.into_iter().find_map(|(bantime, again)| cut(&row, &format!("cut{number}{again}"), tracked, bantime));
            told.unwrap_or_else(|| panic!("{}: a ban of two minutes ended before all had been looked at", row.label()))
        });
        let told: Vec<String> = told.into_iter().flatten().collect();
        println!("{}", told.join("\n"));
        let wrong = told.iter().filter(|line| line.ends_with("WRONG")).count();
        assert_eq!(wrong, 0, "lines of the table above");
    });
}

/// The hooks at which open flows are cut, and whether somebody else tracks connections and accepts what is established.
const CUT: &[(Row, bool)] = &[
    (INPUT, false),
    (INPUT, true),
    (INPUT.rejecting(), true),
    (FORWARD, false),
    (FORWARD, true),
    (FORWARD.rejecting(), false),
    (DNAT, false),
    (BR_NETFILTER, true),
    (BRIDGE, false),
];

/// Frames with a VLAN tag cross the bridge like others, and the ban's rule looks behind the tag.
fn tagged(name: &str, keys: &str, prepare: impl Fn(&Site) + Send + Sync) {
    let site = Site::new(name, Wiring::Bridged);
    site.firewall().run(|| {
        prepare(&site);
        let mut log = Log::create(site.dir().join("auth.log"));
        let daemon = Daemon::start(&site, &jail(&log, LISTED, keys, 600));
        daemon.wait_running();
        let here = site.attackers().run(|| Wire::tap("eth0")).expect("a tap on the attackers' link");
        let there = site.mail().run(|| Wire::tap("eth0")).expect("a tap on the gateway's link");
        let macs = (here.mac(), there.mac());
        let send = |vlan: Option<u16>, who: &str, port: u16, marker: &str| {
            let from: IpAddr = who.parse().expect("an address");
            let to = site.addresses()[usize::from(from.is_ipv6())];
            here.send(&udp_frame(macs, vlan, (from, to), port, marker.as_bytes())).expect("a frame can be sent");
        };
        let round = |markers: [&'static str; 3]| {
            for (family, vlan) in [(0, Some(100)), (1, Some(100)), (0, None), (1, None)] {
                let tag = |what: &str| format!("<{what} {} {family}>", if vlan.is_some() { "tagged" } else { "plain" });
                send(vlan, BANNED[family], LISTED, &tag(markers[0]));
                send(vlan, BANNED[family], UNLISTED, &tag(markers[1]));
                send(vlan, INNOCENT[family], LISTED, &tag(markers[2]));
            }
        };
        let all = |what: &str| ["tagged 0", "tagged 1", "plain 0", "plain 1"].map(|which| format!("<{what} {which}>"));
        let heard = |markers: Vec<String>, awaited: Vec<String>| {
            let [markers, awaited] = [&markers, &awaited].map(|list| list.iter().map(String::as_str).collect::<Vec<_>>());
            there.heard(&markers, &awaited, PATIENCE).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        round(["free", "beside", "innocent"]);
        let expected = [all("free"), all("beside"), all("innocent")].concat();
        let mut arrived = heard(expected.clone(), expected.clone());
        let sorted = |mut list: Vec<String>| {
            list.sort();
            list
        };
        assert_eq!(sorted(arrived), sorted(expected), "before the ban everything crosses");

        fail(&mut log, &BANNED);
        wait_banned(&daemon, &BANNED);
        round(["banned", "beside again", "innocent again"]);
        let allowed = [all("beside again"), all("innocent again")].concat();
        arrived = heard([all("banned").to_vec(), allowed.clone()].concat(), allowed.clone());
        println!("| {name}: of {} frames in the ban's time these crossed: {}", 12, arrived.join(" "));
        assert_eq!(sorted(arrived), sorted(allowed), "and these only");
    });
}

#[test]
fn a_vlan_tag_hides_nobody_from_br_netfilter_that_looks() {
    in_netns("a_vlan_tag_hides_nobody_from_br_netfilter_that_looks", || {
        tagged("tagged-inet", "chain_hook = \"forward\"", |site| {
            site.bridge_nf(true);
            sysctl("net.bridge.bridge-nf-filter-vlan-tagged", "1").expect("br_netfilter has this sysctl");
        });
    });
}

#[test]
fn a_vlan_tag_hides_nobody_from_the_bridge_family() {
    in_netns("a_vlan_tag_hides_nobody_from_the_bridge_family", || {
        tagged("tagged-bridge", "chain_hook = \"forward\"\nfamily = \"bridge\"", |site| site.bridge_nf(false));
    });
}

/// Ports by number, range, name and group, protocols by name, and all of either.
#[test]
fn a_jail_closes_its_ports_and_protocols_and_no_others() {
    const PORTS: [u16; 6] = [25, 100, 105, 143, 443, 993];
    const ALL: &[Proto] = &Proto::ALL;
    let table: &[(&str, &[u16], &[Proto])] = &[
        ("port = [\"smtp\", \"100-104\"]\nprotocol = \"tcp\"", &[25, 100], &[Proto::Tcp]),
        ("port = \"mail\"\nprotocol = [\"udp\", \"sctp\"]", &[25, 143, 993], &[Proto::Udp, Proto::Sctp]),
        ("port = \"web, 105\"\nprotocol = \"tcp, udplite\"", &[105, 443], &[Proto::Tcp, Proto::Udplite]),
        ("port = [25, 143]", &[25, 143], ALL),
        ("port = \"all\"\nprotocol = \"udp\"", &PORTS, &[Proto::Udp]),
        ("port = \"all\"\nprotocol = \"all\"", &PORTS, ALL),
    ];
    in_netns("a_jail_closes_its_ports_and_protocols_and_no_others", || {
        let numbers: Vec<usize> = (0..table.len()).collect();
        each(&numbers, |number| {
            let (keys, ports, protocols) = table[number];
            let site = Site::new(&format!("ports{number}"), GATEWAY);
            site.firewall().run(|| {
                let log = Log::create(site.dir().join("auth.log"));
                let jail = format!("[jail.sshd]\nenabled = true\nbackend = \"file\"\nlogpath = {:?}\n{keys}\n", log.path());
                let daemon = Daemon::start(&site, &jail);
                daemon.cli(&["ban", "sshd", BANNED[0], BANNED[1], "--for", "1h"]).ok();
                let doors = Doors::open(&site.addresses(), &PORTS);
                let stage = Stage { row: &INPUT, site: &site, doors: &doors };
                let known = ALL.iter().copied().filter(|proto| !doors.lacking().contains(proto));
                let knocks: Vec<(Proto, u16, usize)> =
                    known.flat_map(|proto| PORTS.map(|port| [(proto, port, 0), (proto, port, 1)]).concat()).collect();
                each(&knocks, |(proto, port, family)| {
                    let closed = ports.contains(&port) && protocols.contains(&proto);
                    let (patience, wanted) = if closed { (SILENCE, Seen::Nothing) } else { (PATIENCE, Seen::Answer) };
                    let seen = stage.knock(proto, BANNED[family], port, patience);
                    assert_eq!(seen, wanted, "{keys:?}: {} {port} of {}", proto.name(), BANNED[family]);
                });
                println!("| {:<60} closes {ports:?} over {protocols:?} and nothing else: ok", keys.replace('\n', ", "));
            });
        });
    });
}

/// Few kernels have sockets of DCCP: what a rule for it does shows in its counter. So it does for a protocol without ports.
#[test]
fn packets_of_dccp_and_of_any_protocol_are_dropped_where_a_jail_says_so() {
    in_netns("packets_of_dccp_and_of_any_protocol_are_dropped_where_a_jail_says_so", || {
        const DCCP: i32 = 33;
        // For experiments (RFC 3692).
        const UNKNOWN: i32 = 253;
        for (number, (keys, dropped)) in
            [("port = 25\nprotocol = [\"tcp\", \"dccp\"]", 1), ("port = \"all\"\nprotocol = \"all\"", 3)].into_iter().enumerate()
        {
            let site = Site::new(&format!("raw{number}"), GATEWAY);
            site.firewall().run(|| {
                let log = Log::create(site.dir().join("auth.log"));
                let jail = format!("[jail.sshd]\nenabled = true\nbackend = \"file\"\nlogpath = {:?}\n{keys}\n", log.path());
                let daemon = Daemon::start(&site, &jail);
                daemon.cli(&["ban", "sshd", BANNED[0], BANNED[1], "--for", "1h"]).ok();
                for family in [0, 1] {
                    let (from, to): (IpAddr, IpAddr) = (BANNED[family].parse().expect("an address"), site.addresses()[family]);
                    for (protocol, port) in [(DCCP, 25_u16), (DCCP, 26), (UNKNOWN, 25)] {
                        site.attackers().run(|| {
                            let domain = socket2::Domain::for_address(SocketAddr::new(from, 0));
                            let socket =
                                socket2::Socket::new(domain, socket2::Type::RAW, Some(protocol.into())).expect("a raw socket");
                            socket.bind(&SocketAddr::new(from, 0).into()).expect("an address of his");
                            let head = [40_000_u16.to_be_bytes(), port.to_be_bytes()].concat();
                            let packet = [head, vec![0; 12]].concat();
                            socket.send_to(&packet, &SocketAddr::new(to, 0).into()).expect("it can be sent");
                        });
                    }
                }
                let counted = || daemon.jail("sshd")["dropped"]["packets"].as_u64().unwrap_or_default();
                wait_until(&format!("{keys:?}: {} packets are dropped", 2 * dropped), || counted() >= 2 * dropped);
                assert_eq!(counted(), 2 * dropped, "{keys:?}");
            });
        }
    });
}

/// Plays with what is banned as a whole: somebody who knocks over TCP and UDP while the daemon is told this and that.
fn at_the_door(
    row: &Row,
    name: &str,
    keys: &str,
    play: impl Fn(&Daemon, &mut Log, &dyn Fn(&str, u16, bool, &str)) + Send + Sync,
) {
    let site = Site::new(name, row.wiring);
    site.firewall().run(|| {
        if row.wiring == Wiring::Bridged {
            site.bridge_nf(row.bridge_nf);
        }
        let mut log = Log::create(site.dir().join("auth.log"));
        let daemon = Daemon::start(&site, &jail(&log, LISTED, &format!("{}\n{keys}", row.keys), 600));
        daemon.wait_running();
        let doors = site.mail().run(|| Doors::open(&site.addresses(), &[LISTED, UNLISTED]));
        let stage = Stage { row, site: &site, doors: &doors };
        let look = |who: &str, port: u16, let_in: bool, when: &str| {
            let (patience, wanted) = if let_in { (PATIENCE, Seen::Answer) } else { (SILENCE, Seen::Nothing) };
            let seen = each(&[Proto::Tcp, Proto::Udp], |proto| stage.knock(proto, who, port, patience));
            assert_eq!(seen, vec![wanted; 2], "{}, {who}: {when}", row.label());
        };
        play(&daemon, &mut log, &look);
    });
}

#[test]
fn a_banned_subnet_keeps_all_of_it_out_but_the_ignored() {
    in_netns("a_banned_subnet_keeps_all_of_it_out_but_the_ignored", || {
        for (n, row) in [FORWARD, BRIDGE, BOTH_FAMILIES].iter().enumerate() {
            at_the_door(row, &format!("nets{n}"), "", |daemon, _, look| {
                // The ignored lie in the first two.
                let nets = ["198.51.100.0/28", "2001:db8:1000:1::/64", "2001:db8:1000:8::/61"];
                let within = ["198.51.100.7", "198.51.100.15", "2001:db8:1000:1::9", "2001:db8:1000:f::1"];
                let beside = ["198.51.100.16", "2001:db8:1000:2::9", "2001:db8:1000:10::1"];
                daemon.cli(&["ban", "sshd", nets[0], nets[1], nets[2], "--for", "1h"]).ok();
                within.iter().for_each(|who| look(who, LISTED, false, "in a banned subnet"));
                IGNORED.iter().chain(&beside).for_each(|who| look(who, LISTED, true, "ignored, or beside the subnet"));

                // Two pieces in each set, so that a flush is no unban of one.
                daemon.cli(&["ban", "sshd", "203.0.113.0/28", "2001:db8:1000:20::/61", "--for", "1h"]).ok();
                for set in ["sshd-net4", "sshd-net6"] {
                    nft(&["flush", "set", row.family(), "banset", set]);
                    daemon.wait_log(&format!("set {set} was flushed by"));
                }
                let put_back = |set: &str, what: &str| {
                    wait_until("flushed subnets are put back", || {
                        nft(&["list", "set", row.family(), "banset", set]).contains(what)
                    });
                };
                put_back("sshd-net4", nets[0]);
                put_back("sshd-net6", nets[2]);
                within.iter().for_each(|who| look(who, LISTED, false, "after a flush"));
                IGNORED.iter().for_each(|who| look(who, LISTED, true, "ignored, after a flush"));

                daemon.cli(&["unban", "sshd", nets[0], nets[2]]).ok();
                look(within[0], LISTED, true, "its subnet lifted");
                look(within[3], LISTED, true, "its subnet lifted");
                look(within[2], LISTED, false, "another subnet lifted");
            });
        }
    });
}

#[test]
fn prefixes_are_counted_and_banned_as_one() {
    in_netns("prefixes_are_counted_and_banned_as_one", || {
        for (n, row) in [INPUT, FORWARD, BRIDGE].iter().enumerate() {
            at_the_door(row, &format!("prefix{n}"), "ipv4_prefix = 28\nipv6_prefix = 56", |daemon, log, look| {
                look("198.51.100.9", LISTED, true, "before");
                // Three of one prefix, once each.
                for who in ["198.51.100.1", "198.51.100.2", "198.51.100.3"] {
                    log.fail(who, 1);
                }
                for who in ["2001:db8:1000:1::1", "2001:db8:1000:2::1", "2001:db8:1000:3::1"] {
                    log.fail(who, 1);
                }
                daemon.wait_log("[sshd] Ban 198.51.100.0/28");
                daemon.wait_log("[sshd] Ban 2001:db8:1000::/56");
                for who in ["198.51.100.9", "198.51.100.15", "2001:db8:1000:ff::1"] {
                    look(who, LISTED, false, "in a banned prefix");
                }
                for who in IGNORED.iter().chain(&["198.51.100.16", "2001:db8:1000:100::1"]) {
                    look(who, LISTED, true, "ignored, or of another prefix");
                }
                let listed = nft(&["-s", "list", "set", row.family(), "banset", "sshd-v4"]);
                assert!(listed.contains("each entry stands for its /28") && listed.contains("198.51.100.0"), "{listed}");
                assert!(daemon.cli(&["banned"]).ok().contains("198.51.100.0/28"));
                daemon.cli(&["unban", "198.51.100.9"]).ok();
                look("198.51.100.9", LISTED, true, "its prefix lifted");
            });
        }
    });
}

#[test]
fn a_ban_by_force_bites_the_ignored_while_it_is_held() {
    in_netns("a_ban_by_force_bites_the_ignored_while_it_is_held", || {
        let rows: Vec<(usize, Row)> = [INPUT, FORWARD, BRIDGE, BOTH_FAMILIES].into_iter().enumerate().collect();
        each(&rows, |(n, row)| {
            // Whom the jail itself ignores, too.
            let keys = "ignoreip = [\"203.0.113.0/24\", \"2001:db8:1000:1::/96\"]";
            at_the_door(&row, &format!("force{n}"), keys, |daemon, _, look| {
                let forced = [IGNORED[0], IGNORED[1], "203.0.113.9"];
                let neighbours = ["203.0.113.8", "2001:db8:1000:1::6"];
                let everybody = || forced.iter().chain(&neighbours);
                for who in forced {
                    let told = daemon.cli(&["ban", "sshd", who]);
                    assert!(told.err.contains("--force bans it all the same"), "{told:?}");
                    daemon.cli(&["ban", "sshd", who, "--force", "--for", "1h"]).ok();
                    look(who, LISTED, false, "banned by force");
                }
                neighbours.iter().for_each(|who| look(who, LISTED, true, "ignored beside somebody banned by force"));
                assert!(daemon.cli(&["banned"]).ok().contains("forced, although ignored"));
                // In another jail's banned subnet he is ignored as before.
                daemon.cli(&["ban", "203.0.113.0/28", "198.51.100.0/28", "--for", "1h"]).ok();
                look(forced[0], UNLISTED, true, "in another jail's banned subnet");
                look("198.51.100.6", UNLISTED, false, "in another jail's banned subnet");
                daemon.cli(&["unban", "sshd", forced[0], forced[1]]).ok();
                look(forced[0], LISTED, true, "lifted");
                look(forced[1], LISTED, true, "lifted");
                look(forced[2], LISTED, false, "still banned by force");
                daemon.cli(&["unban", "manual", "203.0.113.0/28", "198.51.100.0/28"]).ok();
                daemon.cli(&["ban", "sshd", forced[0], "--force", "--for", "15s"]).ok();
                look(forced[0], LISTED, false, "for a while");
                wait_until("the ban by force ends", || daemon.cli(&["banned", forced[0], "--json"]).code == 1);
                look(forced[0], LISTED, true, "over");
                daemon.cli(&["unban", forced[2]]).ok();
                everybody().for_each(|who| look(who, LISTED, true, "at the end"));
            });
        });
    });
}
