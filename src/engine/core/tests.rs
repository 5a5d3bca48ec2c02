//! The engine told as tables: events in, what comes out in a line each.

use super::*;
use crate::config::run::{self, Config};
use crate::control::Request;
use crate::jail::Place;
use crate::nft::Interval;
use crate::terms::Family;

const BOOT: i64 = 1_700_000_000;

fn at(secs: i64) -> Now {
    Now { wall: Time::from_secs(BOOT + secs), mono: Time::from_secs(secs) }
}

fn config(jails: &[&str]) -> Config {
    let mut all: Vec<run::Jail> =
        jails.iter().map(|name| run::Jail { maxretry: 2, logpath: vec!["/log".into()], ..run::Jail::named(name) }).collect();
    all.push(run::Jail::manual(&all));
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let ignore = run::IgnoreList { nets: vec!["10.0.0.0/8".parse().expect("a net")], names: vec![] };
    Config { daemon: run::Daemon::default(), nft: run::Nft::default(), ignore, jails: all, broken: vec![] }
}

/// A daemon without a daemon: events go in, and what comes out is told in one line each.
struct Bench {
    core: Core,
    ids: HashMap<String, JailId>,
    clients: u64,
}

impl Bench {
    fn new(jails: &[&str]) -> Bench {
        let mut core = Core::new(
            Specs::new(&config(jails)),
            Machine {
                addresses: vec![ip("192.0.2.1")],
                gateways: vec![ip("192.0.2.254")],
                links: vec![net("203.0.113.0/24"), net("2001:db8:1::/64")],
            },
            at(0),
            7,
        );
        core.take_actions();
        let mut bench = Bench { core, ids: HashMap::new(), clients: 0 };
        bench.learn();
        bench
    }
    fn learn(&mut self) {
        self.ids = self.core.specs().jails.iter().filter_map(|spec| Some((spec.name.clone(), spec.id?))).collect();
    }
    fn event(&mut self, secs: i64, event: Event) -> String {
        self.core.handle(at(secs), event);
        self.core.settle(at(secs));
        self.core.take_actions().iter().map(tell).collect::<Vec<_>>().join("; ")
    }
    fn fail(&mut self, secs: i64, jail: &str, who: &str) -> String {
        let failure = Failure { address: ip(who), time: at(secs).wall, attempts: 1, place: Place(0) };
        let found = vec![Found { jail: self.ids[jail], failure, ok: false }];
        self.event(secs, Event::Read(Batch { path: "/log".into(), found, live: true, ..Batch::default() }))
    }
    fn ask(&mut self, secs: i64, request: Request) -> String {
        self.clients += 1;
        self.event(secs, Event::Asked(Asked { client: ClientId(self.clients), uid: 0, request, kernel: None }))
    }
    fn yes(&mut self, secs: i64) -> String {
        self.event(secs, Event::Committed(vec![]))
    }
}

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a subnet")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn tell(action: &Action) -> String {
    match action {
        Action::Commit(changes) => {
            let one = |change: &Change| {
                let sign = if change.to == Target::Gone { '-' } else { '+' };
                format!("{sign}{} {}", change.set, change.what)
            };
            format!("commit {}", changes.iter().map(one).collect::<Vec<_>>().join(" "))
        }
        Action::Establish(establish) => {
            let mut sets: Vec<String> = establish.held.iter().map(|(set, held)| format!(" {set}:{}", held.len())).collect();
            sets.sort();
            format!("establish{}", sets.concat())
        }
        Action::Reply(_, reply) => format!("reply {} {}{}", reply.exit, reply.result, reply.error.as_deref().unwrap_or("")),
        Action::Log(_, text) => text.lines().next().unwrap_or("").to_owned(),
        Action::Reload(_) => "reload".to_owned(),
        Action::Watch(_) => "watch".to_owned(),
        Action::Save(_) => "save".to_owned(),
    }
}

fn unban(addrs: &[&str]) -> Request {
    Request::Unban { jail: None, addrs: addrs.iter().map(|a| (*a).to_owned()).collect(), all: false, forget: false }
}

fn ban(addrs: &[&str], force: bool) -> Request {
    let addrs = addrs.iter().map(|a| (*a).to_owned()).collect();
    Request::Ban { jail: None, addrs, for_s: Some(60), permanent: false, reason: None, force }
}

#[test]
fn a_ban_is_told_after_the_kernel_said_yes() {
    let mut bench = Bench::new(&["sshd"]);
    assert_eq!(bench.fail(1, "sshd", "198.51.100.7"), "[sshd] Found 198.51.100.7");
    assert_eq!(bench.fail(2, "sshd", "198.51.100.7"), "[sshd] Found 198.51.100.7; commit +sshd-v4 198.51.100.7");
    assert_eq!(bench.yes(2), "[sshd] Ban 198.51.100.7");
    assert_eq!(bench.event(602, Event::Wake), "[sshd] Unban 198.51.100.7");
}

#[test]
fn what_comes_while_a_commit_is_under_way_goes_together_in_the_next() {
    let mut bench = Bench::new(&["sshd"]);
    for who in ["198.51.100.1", "198.51.100.2", "2001:db8::1"] {
        bench.fail(1, "sshd", who);
    }
    assert!(bench.fail(1, "sshd", "198.51.100.1").ends_with("commit +sshd-v4 198.51.100.1"));
    assert_eq!(bench.fail(1, "sshd", "198.51.100.2"), "[sshd] Found 198.51.100.2");
    assert_eq!(bench.fail(1, "sshd", "2001:db8::2"), "[sshd] Found 2001:db8::2");
    assert_eq!(bench.yes(1), "[sshd] Ban 198.51.100.1; commit +sshd-v4 198.51.100.2 +sshd-v6 2001:db8::");
    assert_eq!(bench.yes(1), "[sshd] Ban 198.51.100.2; [sshd] Ban 2001:db8::/64");
}

#[test]
fn ignored_own_and_nobodys_addresses_are_not_banned() {
    let mut bench = Bench::new(&["sshd"]);
    let table = [
        ("10.1.2.3", "ip 10.0.0.0/8"),
        ("192.0.2.1", "ignoreself rule"),
        ("192.0.2.254", "default gateway"),
        ("127.0.0.1", "address class"),
        ("fe80::1", "address class"),
    ];
    for (who, by) in table {
        assert_eq!(bench.fail(1, "sshd", who), format!("[sshd] Ignore {who} by {by}"));
    }
    assert!(bench.ask(2, ban(&["10.1.2.3"], false)).contains("ignored by ip 10.0.0.0/8; --force bans it all the same"));
    assert!(bench.ask(2, ban(&["10.1.2.3"], true)).contains("commit +manual-v4 10.1.2.3"));
}

#[test]
fn manual_bans_and_unbans_are_answered_after_the_kernel_said_yes() {
    let mut bench = Bench::new(&["sshd"]);
    let said = bench.ask(1, ban(&["198.51.100.7", "x", "198.51.100.1/24"], false));
    assert_eq!(said, "[manual] Ban 198.51.100.7 by uid 0; commit +manual-v4 198.51.100.7");
    let said = bench.yes(1);
    assert!(
        said.starts_with(r#"reply 4 {"already":[],"banned":[{"addr":"198.51.100.7","jail":"manual"}],"notes":[]}"#),
        "{said}"
    );
    assert!(bench.ask(2, ban(&["198.51.100.7"], false)).contains("commit"), "a ban that ends later replaces it");
    bench.yes(2);
    assert_eq!(bench.ask(3, unban(&["198.51.100.7"])), "[manual] Unban 198.51.100.7; commit -manual-v4 198.51.100.7");
    assert!(bench.yes(3).starts_with("reply 0"));
    assert!(bench.ask(4, unban(&["198.51.100.7"])).starts_with(r#"reply 1 {"absent":["198.51.100.7"]"#));
    assert!(bench.ask(5, Request::Banned { addrs: vec!["198.51.100.7".into()] }).starts_with("reply 1"));
}

#[test]
fn a_refused_element_is_not_held_and_not_called_banned() {
    let mut bench = Bench::new(&["sshd"]);
    bench.fail(1, "sshd", "198.51.100.7");
    bench.fail(1, "sshd", "198.51.100.7");
    let refusal = Refusal { index: 0, why: "add element inet banset sshd-v4 { 198.51.100.7 }: ENFILE, set is full".into() };
    assert_eq!(bench.event(1, Event::Committed(vec![refusal.clone()])), refusal.why);
    assert_eq!(bench.core.bans_held(), 0);
}

#[test]
fn a_damaged_table_is_rebuilt_with_everything_held_and_nothing_in_flight_is_lost() {
    let mut bench = Bench::new(&["sshd"]);
    for who in ["198.51.100.7", "198.51.100.8"] {
        bench.fail(1, "sshd", who);
        bench.fail(1, "sshd", who);
    }
    let said = bench.event(1, Event::Damaged("add element …: ENOENT".into()));
    assert!(said.ends_with("establish sshd-v4:2"), "{said}");
    let said = bench.event(2, Event::Established(Err("EBUSY".into())));
    assert_eq!(said, "EBUSY");
    let now = at(3);
    assert_eq!(bench.core.next_wake(now), Some(Time::from_secs(3)));
    assert_eq!(bench.event(3, Event::Wake), "establish sshd-v4:2");
    let said = bench.event(3, Event::Established(Ok(Done::default())));
    assert_eq!(said, "table inet banset is whole again, 2 bans; commit +sshd-v4 198.51.100.7 +sshd-v4 198.51.100.8");
    assert_eq!(bench.yes(3), "[sshd] Ban 198.51.100.7; [sshd] Ban 198.51.100.8");
}

#[test]
fn a_reload_changes_nothing_until_the_kernel_agrees() {
    let mut bench = Bench::new(&["sshd"]);
    bench.fail(1, "sshd", "198.51.100.7");
    bench.fail(1, "sshd", "198.51.100.7");
    bench.yes(1);
    assert_eq!(bench.ask(2, Request::Reload), "reload");
    let reloaded =
        |jails: &[&str]| Event::Reloaded(Reloaded { client: Some(ClientId(1)), specs: Ok(Specs::new(&config(jails))) });
    assert_eq!(bench.event(2, reloaded(&["dovecot"])), "establish");
    assert!(bench.event(2, Event::Established(Err("EPERM".into()))).contains("reply 1"));
    assert_eq!(bench.core.bans_held(), 1);
    assert_eq!(bench.event(3, reloaded(&["dovecot", "sshd"])), "establish sshd-v4:1");
    let said = bench.event(3, Event::Established(Ok(Done::default())));
    assert_eq!(said, r#"watch; configuration reloaded: nothing changed; reply 0 {"changed":["nothing changed"]}"#);
    bench.learn();
    assert_eq!(bench.fail(4, "dovecot", "198.51.100.9"), "[dovecot] Found 198.51.100.9");
    bench.event(5, reloaded(&["dovecot"]));
    let said = bench.event(5, Event::Established(Ok(Done::default())));
    assert!(said.starts_with("[sshd] is no longer configured: 1 bans lifted; watch"), "{said}");
    let refused = Event::Reloaded(Reloaded { client: Some(ClientId(9)), specs: Err("x.toml:1:1: no".into()) });
    assert!(bench.event(6, refused).starts_with("reload refused; reply 1"));
}

#[test]
fn a_new_ignore_entry_lifts_the_bans_it_covers() {
    let mut bench = Bench::new(&["sshd"]);
    bench.fail(1, "sshd", "198.51.100.7");
    bench.fail(1, "sshd", "198.51.100.7");
    bench.yes(1);
    let mut changed = config(&["sshd"]);
    changed.ignore.nets.push("198.51.100.0/24".parse().expect("a net"));
    assert_eq!(bench.event(2, Event::Reloaded(Reloaded { client: None, specs: Ok(Specs::new(&changed)) })), "establish");
    let said = bench.event(2, Event::Established(Ok(Done::default())));
    assert!(said.contains("commit -sshd-v4 198.51.100.7"), "{said}");
    assert!(bench.yes(2).contains("[sshd] Unban 198.51.100.7, ignored by 198.51.100.0/24 now"));
}

#[test]
fn a_host_name_in_ignoreip_is_ignored_once_it_resolves_and_in_the_kernel_too() {
    let mut named = config(&["sshd"]);
    named.ignore.names.push("office.example.org".to_owned());
    let mut bench = Bench::new(&["sshd"]);
    bench.event(1, Event::Reloaded(Reloaded { client: None, specs: Ok(Specs::new(&named)) }));
    bench.event(1, Event::Established(Ok(Done::default())));
    for _ in 0..2 {
        bench.fail(2, "sshd", "198.51.100.7");
    }
    bench.yes(2);
    assert_eq!(bench.core.specs().names().into_iter().collect::<Vec<_>>(), ["office.example.org"]);
    let resolved: Resolved = [("office.example.org".to_owned(), vec![ip("198.51.100.7")])].into();
    assert_eq!(bench.event(3, Event::Resolved(resolved.clone())), "establish");
    assert!(bench.core.establish().ignored.contains(&ip("198.51.100.7").into()));
    assert!(bench.event(3, Event::Established(Ok(Done::default()))).contains("commit -sshd-v4 198.51.100.7"));
    bench.yes(3);
    assert_eq!(bench.fail(4, "sshd", "198.51.100.7"), "[sshd] Ignore 198.51.100.7 by ip 198.51.100.7");
    assert_eq!(bench.event(5, Event::Resolved(resolved)), "", "the same answer changes nothing");
}

#[test]
fn elements_found_at_the_start_are_bans_that_go_on() {
    let mut bench = Bench::new(&["sshd"]);
    let (timeout, left) = (Some(Span::from_secs(600)), Some(Span::from_secs(100)));
    let timed = Adopted { set: "sshd-v4".to_owned(), what: ip("198.51.100.7").into(), timeout, left };
    assert!(bench.core.adopt(at(0), &timed));
    assert!(
        bench.core.adopt(at(0), &Adopted { set: "sshd-v6".to_owned(), what: ip("2001:db8::").into(), timeout: None, left: None })
    );
    assert!(!bench.core.adopt(at(0), &Adopted { set: "other-v4".to_owned(), ..timed }));
    let row = bench.core.banned(at(0), &KernelView::default());
    assert_eq!((row[1]["left_s"].as_u64(), row[1]["since"].as_str()), (Some(100), Some("2023-11-14T22:05:00Z")));
    assert_eq!((row[0]["addr"].as_str(), row[0]["until"].is_null()), (Some("2001:db8::/64"), true));
    assert_eq!(bench.event(100, Event::Wake), "[sshd] Unban 198.51.100.7");
    assert_eq!(bench.core.specs().family, Family::Inet);
}

fn ban_for(addr: &str, secs: u64) -> Request {
    Request::Ban {
        jail: Some("sshd".into()),
        addrs: vec![addr.into()],
        for_s: Some(secs),
        permanent: false,
        reason: None,
        force: false,
    }
}

fn made() -> Event {
    Event::Established(Ok(Done::default()))
}

/// What `banned` shows, in order of address: `198.51.100.0/24 60` is left for 60 s.
fn banned(bench: &Bench, secs: i64) -> String {
    let rows = bench.core.banned(at(secs), &KernelView::default());
    let row = |row: &serde_json::Value| (row["addr"].as_str().map(str::to_owned), row["left_s"].as_u64().unwrap_or(0));
    let mut rows: Vec<_> = rows.as_array().expect("an array").iter().map(row).collect();
    rows.sort();
    rows.iter().map(|(addr, left)| format!("{} {left}", addr.as_deref().unwrap_or("?"))).collect::<Vec<_>>().join("; ")
}

#[test]
fn the_first_subnet_of_a_jail_has_its_sets_made_and_the_next_ones_only_change_them() {
    let mut bench = Bench::new(&["sshd"]);
    assert_eq!(bench.ask(1, ban_for("198.51.100.0/24", 600)), "[sshd] Ban 198.51.100.0/24 by uid 0; establish");
    assert_eq!(bench.event(1, made()), "commit +sshd-net4 198.51.100.0/24");
    assert_eq!(bench.yes(1), r#"reply 0 {"already":[],"banned":[{"addr":"198.51.100.0/24","jail":"sshd"}],"notes":[]}"#);
    // Shorter and inside: nothing is to do, and it is told all the same.
    assert_eq!(bench.ask(2, ban_for("198.51.100.64/26", 599)), "[sshd] Ban 198.51.100.64/26 by uid 0; commit ");
    assert!(bench.yes(2).starts_with("reply 0"));
    // Longer and inside.
    let said = bench.ask(3, ban_for("198.51.100.128/25", 1000));
    assert_eq!(
        said,
        "[sshd] Ban 198.51.100.128/25 by uid 0; commit -sshd-net4 198.51.100.0/24 +sshd-net4 198.51.100.0/25 +sshd-net4 198.51.100.128/25"
    );
    bench.yes(3);
    // An address is another set's.
    assert!(bench.ask(4, ban_for("198.51.100.7", 10)).ends_with("commit +sshd-v4 198.51.100.7"));
    bench.yes(4);
    assert_eq!(banned(&bench, 4), "198.51.100.0/24 597; 198.51.100.128/25 999; 198.51.100.64/26 597; 198.51.100.7 10");
    let said = bench.ask(5, Request::Banned { addrs: vec!["198.51.100.65".into(), "198.51.100.0/25".into()] });
    assert!(said.contains(r#""addr":"198.51.100.64/26""#) && said.contains(r#""addr":"198.51.100.0/24""#), "{said}");
    assert!(said.contains(r#""within":2"#), "{said}");
    assert_eq!(bench.event(14, Event::Wake), "[sshd] Unban 198.51.100.7");
    assert_eq!(bench.event(601, Event::Wake), "[sshd] Unban 198.51.100.0/24; [sshd] Unban 198.51.100.64/26", "and no message");
    assert_eq!(bench.event(1003, Event::Wake), "[sshd] Unban 198.51.100.128/25");
}

#[test]
fn subnets_that_are_more_than_was_meant_or_ignored_are_refused() {
    let mut bench = Bench::new(&["sshd"]);
    let table = [
        ("0.0.0.0/0", "most likely more than was meant"),
        ("10.1.0.0/16", "ignored by ip 10.0.0.0/8"),
        ("127.0.0.0/8", "ignored by address class"),
        ("198.51.100.7/24", "host bits are set; the subnet is 198.51.100.0/24"),
    ];
    for (what, why) in table {
        let said = bench.ask(1, ban_for(what, 60));
        assert!(said.starts_with("reply 1") && said.contains(why), "{said}");
    }
    // Wider than what is ignored: that stays let in.
    assert!(bench.ask(2, ban_for("10.0.0.0/7", 60)).contains("more than was meant"));
    let force = Request::Ban {
        jail: Some("sshd".into()),
        addrs: vec!["10.0.0.0/7".into()],
        for_s: None,
        permanent: true,
        reason: None,
        force: true,
    };
    bench.ask(2, force);
    bench.event(2, made());
    assert!(bench.yes(2).contains("10.0.0.0/8 in 10.0.0.0/7 is ignored and stays let in"));
    // Mapped addresses are IPv4.
    assert!(bench.ask(3, ban_for("::ffff:198.51.100.0/120", 60)).contains("+sshd-net4 198.51.100.0/24"));
}

#[test]
fn one_address_is_let_in_out_of_a_banned_subnet() {
    let mut bench = Bench::new(&["sshd"]);
    bench.ask(1, ban_for("198.51.100.0/29", 610));
    bench.event(1, made());
    bench.yes(1);
    let said = bench.ask(11, unban(&["198.51.100.2"]));
    let expected = "[sshd] Unban 198.51.100.2; [sshd] 198.51.100.2 is let in: the rest of 198.51.100.0/29 stays banned by sshd; \
                    commit -sshd-net4 198.51.100.0/29 +sshd-net4 198.51.100.0/31 +sshd-net4 198.51.100.4/30 +sshd-v4 198.51.100.3";
    assert_eq!(said, expected);
    let said = bench.yes(11);
    assert_eq!(
        said,
        r#"reply 0 {"absent":[],"lifted":[{"addr":"198.51.100.2","jail":"sshd","left_s":600}],"notes":["the rest of 198.51.100.0/29 stays banned by sshd"]}"#
    );
    assert_eq!(banned(&bench, 11), "198.51.100.0/31 600; 198.51.100.3 600; 198.51.100.4/30 600");
    assert!(bench.ask(12, Request::Banned { addrs: vec!["198.51.100.2".into()] }).starts_with("reply 1"), "it is free");
    // The subnet is not banned as such any more: all of it that still is goes.
    let said = bench.ask(13, unban(&["198.51.100.0/29"]));
    assert!(said.ends_with("commit -sshd-net4 198.51.100.0/31 -sshd-net4 198.51.100.4/30 -sshd-v4 198.51.100.3"), "{said}");
    bench.yes(13);
    assert_eq!(banned(&bench, 13), "");
}

#[test]
fn unbanning_a_subnet_leaves_bans_of_their_own_within_it_and_cuts_those_around_it() {
    let mut bench = Bench::new(&["sshd"]);
    for (what, secs) in [("198.51.100.0/24", 600), ("198.51.0.0/16", 300), ("198.51.100.7", 900)] {
        bench.ask(1, ban_for(what, secs));
        bench.event(1, made());
        bench.yes(1);
    }
    let said = bench.ask(2, unban(&["198.51.100.0/24"]));
    assert!(said.contains("commit -sshd-net4"), "{said}");
    let said = bench.yes(2);
    assert!(said.contains("1 bans within 198.51.100.0/24 go on in sshd"), "{said}");
    assert!(said.contains("the rest of 198.51.0.0/16 stays banned by sshd"), "{said}");
    let free = |bench: &mut Bench, who: &str| bench.ask(3, Request::Banned { addrs: vec![who.into()] }).starts_with("reply 1");
    assert!(free(&mut bench, "198.51.100.8") && !free(&mut bench, "198.51.100.7") && !free(&mut bench, "198.51.101.8"));
}

#[test]
fn ipv6_is_banned_as_written_by_prefix_or_exactly_on_our_own_links() {
    let mut bench = Bench::new(&["sshd"]);
    assert!(bench.ask(1, ban_for("2001:db8:2::7", 60)).ends_with("commit +sshd-v6 2001:db8:2::"));
    bench.yes(1);
    assert!(bench.ask(1, ban_for("2001:db8:2::/64", 90)).ends_with("commit +sshd-v6 2001:db8:2::"));
    bench.yes(1);
    bench.ask(1, ban_for("2001:db8:3::7/128", 60));
    assert_eq!(bench.event(1, made()), "commit +sshd-net6 2001:db8:3::7");
    bench.yes(1);
    assert!(bench.ask(1, ban_for("2001:db8:2::/48", 30)).ends_with("commit +sshd-net6 2001:db8:2::/48"));
    bench.yes(1);
    // A neighbour on our own link stands for nobody but itself.
    bench.fail(2, "sshd", "2001:db8:1::7");
    assert!(!bench.fail(2, "sshd", "2001:db8:1::8").contains("commit"));
    assert_eq!(bench.fail(2, "sshd", "2001:db8:1::7"), "[sshd] Found 2001:db8:1::7; commit +sshd-net6 2001:db8:1::7");
    assert_eq!(bench.yes(2), "[sshd] Ban 2001:db8:1::7");
    assert_eq!(banned(&bench, 2), "2001:db8:1::7 600; 2001:db8:2::/48 29; 2001:db8:2::/64 89; 2001:db8:3::7 59");
    assert!(bench.ask(3, unban(&["2001:db8:1::7"])).ends_with("commit -sshd-net6 2001:db8:1::7"));
}

#[test]
fn enough_banned_addresses_of_a_subnet_ban_the_subnet() {
    let mut wanted = config(&["sshd"]);
    for jail in &mut wanted.jails {
        jail.maxretry = 1;
        jail.aggregate = Some(crate::terms::Aggregate { v4: Some(24), v6: Some(48), count: 3 });
    }
    let mut bench = Bench::new(&["sshd"]);
    bench.event(0, Event::Reloaded(Reloaded { client: None, specs: Ok(Specs::new(&wanted)) }));
    bench.event(0, made());
    for (secs, who) in [(1, "198.51.100.1"), (2, "198.51.100.2"), (3, "198.51.101.3")] {
        assert!(bench.fail(secs, "sshd", who).contains("commit +sshd-v4"));
        bench.yes(secs);
    }
    // The third of them comes when the first is free again: not enough at once.
    assert_eq!(
        bench.fail(601, "sshd", "198.51.100.3"),
        "[sshd] Found 198.51.100.3; [sshd] Unban 198.51.100.1; commit +sshd-v4 198.51.100.3"
    );
    bench.yes(601);
    let said = bench.fail(601, "sshd", "198.51.100.4");
    assert_eq!(said, "[sshd] Found 198.51.100.4; [sshd] 3 addresses of 198.51.100.0/24 are banned; establish sshd-v4:4");
    assert_eq!(bench.event(601, made()), "commit +sshd-v4 198.51.100.4 +sshd-net4 198.51.100.0/24");
    assert_eq!(bench.yes(601), "[sshd] Ban 198.51.100.4; [sshd] Ban 198.51.100.0/24");
    let row = bench.core.banned(at(601), &KernelView::default());
    let row = row.as_array().and_then(|rows| rows.iter().find(|row| row["addr"] == "198.51.100.0/24")).cloned().expect("a row");
    assert_eq!((row["left_s"].as_u64(), row["reason"].as_str()), (Some(600), Some("3 of its addresses were banned")));
    // Late lines of others in it change nothing any more.
    assert_eq!(bench.fail(601, "sshd", "198.51.100.5"), "[sshd] Found 198.51.100.5");
    // IPv6 counts prefixes; what we are in ourselves is never banned as a whole.
    for who in ["2001:db8:5:1::1", "2001:db8:5:2::1", "2001:db8:5:2::2", "2001:db8:5:3::1"] {
        bench.fail(602, "sshd", who);
    }
    let said = bench.yes(602);
    assert!(said.ends_with("+sshd-v6 2001:db8:5:3:: +sshd-net6 2001:db8:5::/48"), "{said}");
    bench.yes(602);
    for who in ["203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4"] {
        bench.fail(603, "sshd", who);
    }
    assert!(!bench.yes(603).contains("203.0.113.0/24"));
}

#[test]
fn an_admins_change_of_a_set_of_subnets_is_his_will() {
    let mut bench = Bench::new(&["sshd"]);
    for (what, secs) in [("198.51.100.0/24", 600), ("198.51.100.128/25", 900), ("203.0.114.0/24", 600)] {
        bench.ask(1, ban_for(what, secs));
        bench.event(1, made());
        bench.yes(1);
    }
    let element = |what: Interval, left| Adopted {
        set: "sshd-net4".to_owned(),
        what,
        timeout: Some(Span::from_secs(left)),
        left: Some(Span::from_secs(left)),
    };
    // As it was left: nothing differs, nothing is sent.
    let same = [
        element(net("198.51.100.0/25").into(), 600),
        element(net("198.51.100.128/25").into(), 900),
        element(net("203.0.114.0/24").into(), 600),
    ];
    assert_eq!(bench.core.compare(at(1), &same), (0, 0));
    assert_eq!(bench.event(1, Event::Wake), "commit ");
    bench.yes(1);
    assert_eq!(banned(&bench, 1), "198.51.100.0/24 600; 198.51.100.128/25 900; 203.0.114.0/24 600");
    // He took out 203.0.114.0/24 and the longer half, and added a stretch that is no subnet.
    let added = Interval::new(ip("192.0.2.8"), ip("192.0.2.16")).expect("a stretch");
    assert_eq!(bench.core.compare(at(2), &[element(net("198.51.100.0/25").into(), 599), element(added, 500)]), (2, 3));
    assert_eq!(banned(&bench, 2), "192.0.2.16 500; 192.0.2.8/29 500; 198.51.100.0/25 599");
    let said = bench.event(2, Event::Wake);
    assert!(said.ends_with("commit -sshd-net4 192.0.2.8-192.0.2.16 +sshd-net4 192.0.2.8/29 +sshd-v4 192.0.2.16"), "{said}");
}

#[test]
fn bans_that_a_reload_gives_other_sets_are_put_there_at_once() {
    let mut bench = Bench::new(&["sshd"]);
    bench.ask(1, ban_for("2001:db8:2::7", 600));
    bench.yes(1);
    bench.ask(1, ban_for("2001:db8:8::/56", 600));
    bench.event(1, made());
    bench.yes(1);
    let mut wanted = config(&["sshd"]);
    wanted.jails.iter_mut().for_each(|jail| jail.ipv6_prefix = 56);
    let said = bench.event(2, Event::Reloaded(Reloaded { client: None, specs: Ok(Specs::new(&wanted)) }));
    assert_eq!(said, "establish sshd-net6:1 sshd-v6:1");
    let said = bench.event(2, made());
    assert!(said.contains("establish sshd-net6:1 sshd-v6:1"), "{said}");
    assert_eq!(banned(&bench, 2), "2001:db8:2::/64 599; 2001:db8:8::/56 599");
}

#[test]
fn what_the_kernel_refuses_of_a_subnet_has_the_table_made_anew() {
    let mut bench = Bench::new(&["sshd"]);
    bench.ask(1, ban_for("198.51.100.0/24", 600));
    bench.event(1, made());
    let refusal = Refusal { index: 0, why: "add element inet banset sshd-net4 { 198.51.100.0/24 }: EEXIST, file exists".into() };
    let said = bench.event(1, Event::Committed(vec![refusal]));
    assert!(said.ends_with("EEXIST, file exists; establish sshd-net4:1"), "{said}");
    let said = bench.event(1, made());
    assert!(said.ends_with("1 bans; commit "), "{said}");
    assert!(bench.yes(1).starts_with("reply 0"));
}
