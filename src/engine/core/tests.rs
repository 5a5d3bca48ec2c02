//! The engine told as tables: events in, what comes out in a line each.

use super::*;
use crate::config::run::{self, Config};
use crate::control::{Rank, Request};
use crate::jail::Place;
use crate::nft::Interval;
use crate::terms::Family;

mod hands;

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
    Config {
        daemon: run::Daemon::default(),
        nft: run::Nft::default(),
        evidence: run::Evidence::default(),
        ignore,
        jails: all,
        broken: vec![],
    }
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
        // Cuts go with every ban, and are another test's matter.
        let actions = self.core.take_actions();
        let told = actions.iter().filter(|action| !matches!(action, Action::Cut(_)));
        told.map(tell).collect::<Vec<_>>().join("; ")
    }
    fn fail(&mut self, secs: i64, jail: &str, who: &str) -> String {
        let failure = Failure { address: ip(who), time: at(secs).wall, attempts: 1, place: Place(0) };
        let found = vec![Found { jail: self.ids[jail], failure, ok: false }];
        self.event(secs, Event::Read(Batch { path: "/log".into(), found, live: true, ..Batch::default() }))
    }
    fn ask(&mut self, secs: i64, request: Request) -> String {
        self.clients += 1;
        self.event(
            secs,
            Event::Asked(Asked {
                client: ClientId(self.clients),
                uid: 0,
                rank: Rank::Root,
                program: None,
                request,
                kernel: None,
                named: None,
            }),
        )
    }
    fn yes(&mut self, secs: i64) -> String {
        self.event(secs, Event::Committed(Committed::default()))
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
        Action::Cut(_) => "cut".to_owned(),
        Action::Save(_) => "save".to_owned(),
        Action::Dig(dig) => format!("dig {} {:?}", dig.seq, dig.places.iter().map(|(_, offset)| *offset).collect::<Vec<_>>()),
        Action::Search(_) => "search".to_owned(),
    }
}

fn unban(addrs: &[&str]) -> Request {
    let addrs = addrs.iter().map(|a| (*a).to_owned()).collect();
    Request::Unban { jail: None, addrs, all: false, since_s: None, net: None, user: None, dry_run: false, forget: false }
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
    let said = bench.ask(2, ban(&["10.1.2.3"], true));
    assert_eq!(said, "[manual] Ban 10.1.2.3 by uid 0, forced: ignored by ip 10.0.0.0/8; establish manual-v4:1");
    assert_eq!(bench.event(2, made()), "commit +manual-v4 10.1.2.3");
}

#[test]
fn a_ban_by_force_is_left_out_of_the_ignore_sets_while_it_is_held() {
    let mut bench = Bench::new(&["sshd"]);
    bench.ask(1, ban(&["10.1.2.3", "192.0.2.254"], true));
    bench.event(1, made());
    bench.yes(1);
    // Whom the sets of all jails and those of each ignore.
    let ignored = |bench: &mut Bench, who: &str| {
        let wanted = bench.core.establish();
        let holds = |nets: &[IpNetwork]| nets.iter().any(|net| net.contains(ip(who)));
        let jails = wanted.specs.jails.iter().zip(&wanted.own_ignored);
        let own: Vec<&str> = jails.filter(|(_, nets)| holds(nets)).map(|(spec, _)| spec.name.as_str()).collect();
        format!("{} {}", holds(&wanted.ignored), own.join(" "))
    };
    // Everywhere but in the jail that bans him he is ignored as before.
    for (who, is) in [("10.1.2.3", "false sshd"), ("192.0.2.254", "false sshd"), ("10.1.2.2", "true "), ("10.1.2.4", "true ")] {
        assert_eq!(ignored(&mut bench, who), is, "{who}");
    }
    let told = bench.core.banned(at(1), &KernelView::default());
    assert!(told.as_array().is_some_and(|rows| rows.iter().all(|row| row["forced"] == true)), "{told}");
    // A second one of the same by another jail.
    let Request::Ban { addrs, for_s, .. } = ban(&["10.1.2.3"], true) else { unreachable!() };
    let (jail, reason) = (Some("sshd".into()), Some("!no".into()));
    bench.ask(2, Request::Ban { jail, addrs, for_s, permanent: false, reason, force: true });
    assert_eq!(ignored(&mut bench, "10.1.2.3"), "false ");
    // It is kept as what it is.
    let (_, held) = bench.core.jails[1].jail.bans().next().expect("a ban");
    for held in
        [held.clone(), Held { origin: crate::jail::Origin::Manual { uid: 7, reason: None, forced: true }, ..held.clone() }]
    {
        let kept = crate::engine::keep::held(at(2), &crate::engine::keep::kept(at(2), &held)).expect("not over");
        assert_eq!(kept.origin, held.origin);
    }
    bench.event(2, made());
    bench.yes(2);
    // One is lifted, the others end.
    assert!(bench.ask(3, unban(&["192.0.2.254"])).ends_with("establish manual-v4:1 sshd-v4:1"));
    assert_eq!(ignored(&mut bench, "192.0.2.254"), "true ");
    bench.event(3, made());
    bench.yes(3);
    assert!(bench.event(70, Event::Wake).ends_with("establish"));
    assert_eq!(ignored(&mut bench, "10.1.2.3"), "true ");
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
    let refusal = Refusal { index: 0, why: "add element inet banset sshd-v4 { 198.51.100.7 }: EINVAL".into(), full: false };
    assert_eq!(bench.event(1, Event::Committed(vec![refusal.clone()].into())), refusal.why);
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
    let timed = Adopted { set: "sshd-v4".to_owned(), what: ip("198.51.100.7").into(), timeout, left, everywhere: true };
    assert!(bench.core.adopt(at(0), &timed));
    assert!(bench.core.adopt(
        at(0),
        &Adopted { set: "sshd-v6".to_owned(), what: ip("2001:db8::").into(), timeout: None, left: None, everywhere: true }
    ));
    assert!(!bench.core.adopt(at(0), &Adopted { set: "other-v4".to_owned(), ..timed }));
    let row = bench.core.banned(at(0), &KernelView::default());
    assert_eq!((row[1]["left_s"].as_u64(), row[1]["since"].as_str()), (Some(100), Some("2023-11-14T22:05:00Z")));
    assert_eq!((row[0]["addr"].as_str(), row[0]["until"].is_null()), (Some("2001:db8::/64"), true));
    assert_eq!(bench.event(100, Event::Wake), "[sshd] Unban 198.51.100.7");
    assert_eq!(bench.core.specs().family, Family::Inet);
}

#[test]
fn open_connections_of_the_banned_are_cut_but_not_of_those_who_are_ignored() {
    let mut bench = Bench::new(&["sshd"]);
    let cuts = |bench: &mut Bench| {
        bench.core.handle(at(1), Event::Committed(Committed::default()));
        bench.core.settle(at(1));
        let actions = bench.core.take_actions();
        let cuts = actions.iter().filter_map(|action| if let Action::Cut(cuts) = action { Some(cuts.clone()) } else { None });
        cuts.flatten().collect::<Vec<_>>()
    };
    bench.ask(1, ban_for("198.51.100.7", 60));
    let one = cuts(&mut bench);
    assert_eq!((one.len(), one[0].subject, one[0].spared.len()), (1, net("198.51.100.7/32"), 0));
    bench.ask(1, ban(&["10.1.2.3"], true));
    bench.event(1, made());
    assert_eq!(cuts(&mut bench)[0].subject, net("10.1.2.3/32"), "ignored, but banned by force");
    bench.ask(1, ban_for("192.0.2.0/24", 60));
    bench.event(1, made());
    let net = cuts(&mut bench);
    let mut spared: Vec<String> = net[0].spared.iter().map(ToString::to_string).collect();
    spared.sort();
    assert_eq!(spared, ["192.0.2.1/32", "192.0.2.254/32"], "we ourselves, and our gateway");
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
        r#"reply 0 {"absent":[],"dry_run":false,"lifted":[{"addr":"198.51.100.2","jail":"sshd","left_s":600}],"notes":["the rest of 198.51.100.0/29 stays banned by sshd"]}"#
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
fn what_is_let_in_with_the_rest_is_not_said_to_go_on() {
    let mut bench = Bench::new(&["sshd"]);
    for (what, secs) in [("198.51.100.0/24", 600), ("198.51.100.7", 900), ("198.51.100.8", 900)] {
        bench.ask(1, ban_for(what, secs));
        bench.event(1, made());
        bench.yes(1);
    }
    let all = |dry_run| Request::Unban {
        jail: None,
        addrs: vec![],
        all: true,
        since_s: None,
        net: None,
        user: None,
        dry_run,
        forget: false,
    };
    let said = bench.ask(2, all(true));
    assert!(said.contains("198.51.100.7") && said.contains(r#""notes":[]"#), "{said}");
    bench.ask(2, unban(&["198.51.100.0/24", "198.51.100.7"]));
    let said = bench.yes(2);
    assert!(said.contains("1 bans within 198.51.100.0/24 go on in sshd"), "{said}");
    bench.ask(3, all(false));
    let said = bench.yes(3);
    assert!(said.contains("198.51.100.8") && said.contains(r#""notes":[]"#), "{said}");
}

/// Not a measurement: if each ban were looked for among all others, this would take minutes.
#[test]
fn many_bans_are_listed_and_lifted_in_one_go() {
    let mut bench = Bench::new(&["sshd"]);
    let addrs = |kind: fn(u32) -> String| (0..20_000).map(kind).collect::<Vec<String>>();
    for addrs in [addrs(|n| std::net::Ipv4Addr::from_bits(0x0b00_0000 + n).to_string()), addrs(|n| format!("2001:db9:{n:x}::"))] {
        bench.ask(
            1,
            Request::Ban { jail: Some("sshd".into()), addrs, for_s: Some(60), permanent: false, reason: None, force: false },
        );
        bench.yes(1);
    }
    assert_eq!(bench.core.bans_held(), 40_000);
    assert_eq!(bench.ask(2, Request::Banned { addrs: vec![] }).matches("left_s").count(), 40_000);
    let all = Request::Unban {
        jail: None,
        addrs: vec![],
        all: true,
        since_s: None,
        net: None,
        user: None,
        dry_run: false,
        forget: false,
    };
    bench.ask(3, all);
    while bench.core.bans_held() > 0 {
        bench.yes(3);
    }
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
fn ipv4_is_banned_by_a_prefix_where_one_is_written_but_exactly_where_our_own_links_are() {
    let mut wanted = config(&["sshd"]);
    wanted.jails.iter_mut().for_each(|jail| jail.ipv4_prefix = 22);
    let mut bench = Bench::new(&["sshd"]);
    bench.ask(1, ban_for("198.51.100.7", 900));
    bench.yes(1);
    bench.event(1, Event::Reloaded(Reloaded { client: None, specs: Ok(Specs::new(&wanted)) }));
    bench.event(1, made());
    bench.event(1, made());
    // What was banned before stays the ban of one address.
    assert_eq!(banned(&bench, 1), "198.51.100.7 900");
    bench.event(1, Event::Wake);
    bench.yes(1);
    bench.fail(2, "sshd", "192.0.7.1");
    let said = bench.fail(2, "sshd", "192.0.4.1");
    assert!(said.ends_with("[sshd] Found 192.0.4.1; commit +sshd-v4 192.0.4.0"), "{said}");
    assert_eq!(bench.yes(2), "[sshd] Ban 192.0.4.0/22");
    // The prefix around this one has our own 203.0.113.0/24 in it.
    bench.fail(3, "sshd", "203.0.112.9");
    assert!(!bench.fail(3, "sshd", "203.0.112.10").contains("commit"));
    assert!(bench.fail(3, "sshd", "203.0.112.9").ends_with("commit +sshd-net4 203.0.112.9"));
    bench.yes(3);
    assert!(bench.ask(4, unban(&["192.0.5.77"])).ends_with("commit -sshd-v4 192.0.4.0"));
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
        everywhere: true,
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
    let refusal = Refusal {
        index: 0,
        why: "add element inet banset sshd-net4 { 198.51.100.0/24 }: EEXIST, file exists".into(),
        full: false,
    };
    let said = bench.event(1, Event::Committed(vec![refusal].into()));
    assert!(said.ends_with("EEXIST, file exists; establish sshd-net4:1"), "{said}");
    let said = bench.event(1, made());
    assert!(said.ends_with("1 bans; commit "), "{said}");
    assert!(bench.yes(1).starts_with("reply 0"));
}

/// Keeps what it is told, as the daemon does, and says yes to every save.
fn kept(bench: &mut Bench, secs: i64, restored: &crate::state::Restored) {
    bench.core.restore(at(secs), restored);
    bench.core.keep(at(secs), "boot".to_owned(), restored);
}

/// A failure is read, and nothing done about it yet.
fn failing(bench: &mut Bench, secs: i64, jail: &str, who: &str) {
    let failure = Failure { address: ip(who), time: at(secs).wall, attempts: 1, place: Place(0) };
    let found = vec![Found { jail: bench.ids[jail], failure, ok: false }];
    let batch = Batch { path: "/log".into(), found, live: true, ..Batch::default() };
    bench.core.handle(at(secs), Event::Read(batch));
}

/// Settles and says yes to saves and commits until nothing more comes; gives the last save with rows, and what was said.
fn saved(bench: &mut Bench, secs: i64) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut said) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        bench.core.settle(at(secs));
        let actions = bench.core.take_actions();
        if actions.is_empty() {
            break;
        }
        for action in &actions {
            match action {
                Action::Save(keeping) => {
                    rows.extend(keeping.history.iter().cloned());
                    bench.core.handle(at(secs), Event::Saved(Ok(())));
                }
                Action::Commit(_) => {
                    said.push(tell(action));
                    bench.core.handle(at(secs), Event::Committed(Committed::default()));
                }
                Action::Establish(establish) => {
                    let paused = establish.paused.iter().filter(|paused| **paused).count();
                    said.push(format!("{} paused {paused} ignored {}", tell(action), establish.ignored.len()));
                    bench.core.handle(at(secs), Event::Established(Ok(Done::default())));
                }
                Action::Cut(_) => {}
                _ => said.push(tell(action)),
            }
        }
    }
    (rows, said)
}

/// Asks, and settles until the answer is there; gives what was said, in order.
fn asked(bench: &mut Bench, secs: i64, uid: u32, rank: Rank, request: Request) -> (Vec<Row>, String) {
    bench.clients += 1;
    let client = ClientId(bench.clients);
    let asked = Asked { client, uid, rank, program: Some("banset".into()), request, kernel: None, named: None };
    bench.core.handle(at(secs), Event::Asked(asked));
    let (rows, said) = saved(bench, secs);
    (rows, said.join("; "))
}

fn ignore(addr: &str, for_s: Option<u64>, jail: Option<&str>) -> Request {
    Request::Ignore { addrs: vec![addr.to_owned()], for_s, jail: jail.map(str::to_owned), reason: Some("a\u{1b}b".to_owned()) }
}

#[test]
fn what_happens_is_numbered_and_kept_with_who_asked_for_it() {
    let mut bench = Bench::new(&["sshd"]);
    kept(&mut bench, 0, &crate::state::Restored { seq: 41, ..Default::default() });
    saved(&mut bench, 1);
    failing(&mut bench, 1, "sshd", "198.51.100.7");
    failing(&mut bench, 1, "sshd", "198.51.100.7");
    let (rows, _) = saved(&mut bench, 2);
    let [ban] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((ban.seq, ban.what, ban.uid, &*ban.origin, ban.failures), (42, What::Ban, None, "log", 2));
    assert_eq!(ban.decision.as_deref(), Some("2 failures of at most 1 within 10m: banned for 10m"));
    assert_eq!(ban.until, Some(Time::from_secs(BOOT + 601)));
    let (rows, said) = asked(&mut bench, 3, 1000, Rank::Operator, unban(&["198.51.100.7"]));
    assert_eq!(
        (rows[0].seq, rows[0].what, rows[0].uid, rows[0].program.as_deref()),
        (43, What::Unban, Some(1000), Some("banset"))
    );
    assert!(said.ends_with(r#""notes":[]}"#) && said.contains("commit -sshd-v4"), "{said}");
    // A refused element is told, too.
    failing(&mut bench, 4, "sshd", "198.51.100.8");
    failing(&mut bench, 4, "sshd", "198.51.100.8");
    bench.core.settle(at(4));
    let saving = bench.core.take_actions().iter().any(|action| matches!(action, Action::Save(_)));
    assert!(!saving, "the save gathers still");
    bench.core.handle(at(4), Event::Committed(vec![Refusal { index: 0, why: "EINVAL".into(), full: false }].into()));
    let (rows, _) = saved(&mut bench, 5);
    assert_eq!(rows.iter().map(|row| row.what).collect::<Vec<_>>(), [What::Ban, What::Refused]);
}

#[test]
fn lines_that_a_kill_left_unread_are_read_back_at_the_next_start() {
    let mut bench = Bench::new(&["sshd"]);
    let mut specs = Specs::new(&config(&["sshd"]));
    let (_, text) = crate::filter::shipped().iter().find(|(name, _)| *name == "sshd").expect("a shipped filter");
    let definition = crate::filter::definition::parse("sshd", text).expect("sound");
    let filter = Arc::new(crate::filter::Filter::compile(&definition, &BTreeMap::new(), &Default::default()).expect("sound"));
    for spec in &mut specs.jails {
        Arc::make_mut(spec).compiled = Some(crate::engine::spec::Compiled(filter.clone()));
    }
    bench.event(0, Event::Reloaded(Reloaded { client: None, specs: Ok(specs) }));
    bench.event(0, Event::Established(Ok(Done::default())));
    let unread = crate::state::history::Unread {
        seq: 7,
        jail: "sshd".into(),
        subject: ip("198.51.100.7").into(),
        places: vec![3 << 48 | 10, 4 << 48 | 99],
    };
    let position = crate::state::KeptPosition { place: 3, mark: "{}".into(), scanner: "{}".into() };
    let restored =
        crate::state::Restored { seq: 9, unread: vec![unread], positions: vec![("/log".into(), position)], ..Default::default() };
    kept(&mut bench, 1, &restored);
    let (_, said) = saved(&mut bench, 2);
    assert_eq!(said, ["dig 7 [10]"], "a source that nobody knows any more is left out");
    let place = |offset: u64| Place(3 << 48 | offset);
    for (secs, offset) in [(3, 20), (3, 30)] {
        let failure = Failure { address: ip("198.51.100.9"), time: at(secs).wall, attempts: 1, place: place(offset) };
        let found = vec![Found { jail: bench.ids["sshd"], failure, ok: false }];
        bench.core.handle(at(3), Event::Read(Batch { path: "/log".into(), found, live: true, ..Batch::default() }));
    }
    let (rows, said) = saved(&mut bench, 4);
    assert!(said.iter().any(|said| said == "dig 10 [20, 30]"), "{said:?}");
    assert_eq!(rows[0].places, [place(20).0, place(30).0]);
    // While many are being read back the places wait in the state, and are asked for there when those are through.
    bench.core.digging = (10_000, 0);
    let ban = |bench: &mut Bench, secs: i64, who: &str| {
        for _ in 0..2 {
            let failure = Failure { address: ip(who), time: at(secs).wall, attempts: 1, place: place(40) };
            let found = vec![Found { jail: bench.ids["sshd"], failure, ok: false }];
            bench.core.handle(at(secs), Event::Read(Batch { path: "/log".into(), found, live: true, ..Batch::default() }));
        }
        saved(bench, secs + 1)
    };
    let (rows, said) = ban(&mut bench, 5, "198.51.100.10");
    assert!(rows[0].places == [place(40).0] && !said.iter().any(|said| said.starts_with("dig")), "{said:?}");
    bench.core.digging.0 = 1;
    bench.core.handle(at(7), Event::ReadBack(10, Vec::new(), None));
    assert!(
        !bench.core.take_actions().iter().any(|action| matches!(action, Action::Search(_))),
        "what was read back is kept first"
    );
    assert!(saved(&mut bench, 8).1.contains(&"search".to_owned()));
    let unread = crate::state::history::Unread {
        seq: 11,
        jail: "sshd".into(),
        subject: ip("198.51.100.10").into(),
        places: vec![place(40).0],
    };
    bench.core.handle(at(9), Event::Unread(vec![unread]));
    assert_eq!(saved(&mut bench, 9).1, ["dig 11 [40]"]);
}

#[test]
fn what_people_want_ignored_is_told_to_the_kernel_and_ends_by_itself() {
    let mut bench = Bench::new(&["dovecot", "sshd"]);
    kept(&mut bench, 0, &crate::state::Restored::default());
    saved(&mut bench, 1);
    for jail in ["dovecot", "sshd"] {
        failing(&mut bench, 1, jail, "198.51.100.7");
        failing(&mut bench, 1, jail, "198.51.100.7");
        saved(&mut bench, 1);
    }
    saved(&mut bench, 2);
    let (rows, said) = asked(&mut bench, 2, 0, Rank::Root, ignore("198.51.100.0/24", Some(60), Some("sshd")));
    assert!(said.contains("[sshd] ignoring 198.51.100.0/24 for 1m, by uid 0"), "{said}");
    assert!(said.contains("[sshd] Unban 198.51.100.7, ignored by 198.51.100.0/24 now") && !said.contains("[dovecot]"), "{said}");
    assert!(said.find("establish") < said.find("commit -sshd-v4") && said.contains("reply 0"), "{said}");
    assert_eq!(rows.iter().map(|row| row.what).collect::<Vec<_>>(), [What::Ignore, What::Unban]);
    assert_eq!(rows[0].reason.as_deref(), Some("a\\x1bb"));
    failing(&mut bench, 3, "sshd", "198.51.100.7");
    assert_eq!(saved(&mut bench, 3).1, ["[sshd] Ignore 198.51.100.7 by ip 198.51.100.0/24"]);
    assert!(asked(&mut bench, 4, 0, Rank::Root, ban(&["198.51.100.9"], false)).1.contains("reply 0"), "another jail's entry");
    let (_, said) = asked(&mut bench, 5, 0, Rank::Root, ignore("198.51.100.9", None, None));
    assert!(said.contains("[manual] Unban 198.51.100.9") && said.contains("ignored 4"), "bans by hand, too: {said}");
    assert!(asked(&mut bench, 6, 0, Rank::Root, ban(&["198.51.100.9"], false)).1.contains("reply 1"));
    // The first ends by itself, the second when somebody says so.
    assert!(bench.core.next_wake(at(60)).is_some_and(|wake| wake <= Time::from_secs(62)));
    bench.core.handle(at(62), Event::Wake);
    let (_, said) = saved(&mut bench, 62);
    let (rows, _) = saved(&mut bench, 63);
    assert!(said.iter().any(|said| said == "[sshd] no longer ignoring 198.51.100.0/24: its time is over"), "{said:?}");
    assert!(said.iter().any(|said| said.starts_with("establish")), "{said:?}");
    assert_eq!((rows[0].what, &*rows[0].origin, rows[0].uid), (What::Unignore, "timer", None));
    let gone = |addr: &str| Request::Unignore { addrs: vec![addr.to_owned()], jail: None };
    let (_, said) = asked(&mut bench, 63, 0, Rank::Root, gone("198.51.100.9"));
    assert!(said.contains("ignored 3") && said.contains("reply 0"), "{said}");
    let (_, said) = asked(&mut bench, 64, 0, Rank::Root, gone("10.1.1.1"));
    assert!(said.contains("reply 1") && said.contains("ignored by 10.0.0.0/8"), "{said}");
}

#[test]
fn operators_may_ignore_few_and_not_for_long() {
    let mut bench = Bench::new(&["sshd"]);
    kept(&mut bench, 0, &crate::state::Restored::default());
    let mut say = |request| asked(&mut bench, 1, 1000, Rank::Operator, request).1;
    assert!(say(ignore("198.51.100.7", None, None)).contains("may ignore for a limited time only"));
    assert!(say(ignore("198.51.100.7", Some(86_401), None)).contains("may ignore for a limited time only"));
    assert!(say(ignore("0.0.0.0/0", Some(60), None)).contains("only root may ignore a subnet as large"));
    assert!(say(ignore("198.51.100.7", Some(86_400), None)).contains("reply 0"));
    assert!(say(Request::Unignore { addrs: vec!["198.51.100.7".into()], jail: None }).contains("reply 0"));
    asked(&mut bench, 2, 0, Rank::Root, ignore("198.51.100.7", None, None));
    let said = asked(&mut bench, 3, 1000, Rank::Operator, Request::Unignore { addrs: vec!["198.51.100.7".into()], jail: None }).1;
    assert!(said.contains("only root may take that back"), "{said}");
}

#[test]
fn a_pause_takes_the_rules_out_and_ends_by_itself_or_when_asked() {
    let mut bench = Bench::new(&["dovecot", "sshd"]);
    kept(&mut bench, 0, &crate::state::Restored::default());
    saved(&mut bench, 1);
    let pause = |jail: Option<&str>, for_s| Request::Pause { jail: jail.map(str::to_owned), for_s };
    let resume = |jail: Option<&str>| Request::Resume { jail: jail.map(str::to_owned) };
    let (rows, said) = asked(&mut bench, 2, 0, Rank::Root, pause(Some("sshd"), Some(100)));
    assert!(said.contains("paused 1") && said.contains("reply 0"), "{said}");
    assert_eq!((rows[0].what, rows[0].until), (What::Pause, Some(Time::from_secs(BOOT + 102))));
    let state = |bench: &Bench, jail: &str| {
        let status = bench.core.status(&KernelView::default());
        let jails = status["jails"].as_array().expect("jails").iter();
        jails.filter(|row| row["name"] == jail).map(|row| row["state"].as_str().unwrap_or("").to_owned()).collect::<String>()
    };
    assert_eq!((state(&bench, "sshd").as_str(), state(&bench, "dovecot").as_str()), ("paused", "waiting"));
    // Judging and bans go on.
    failing(&mut bench, 3, "sshd", "198.51.100.7");
    failing(&mut bench, 3, "sshd", "198.51.100.7");
    assert!(saved(&mut bench, 3).1.contains(&"commit +sshd-v4 198.51.100.7".to_owned()));
    assert!(asked(&mut bench, 4, 0, Rank::Root, pause(None, None)).1.contains("paused 3"), "manual, too");
    assert!(asked(&mut bench, 5, 0, Rank::Root, resume(Some("dovecot"))).1.contains("reply 1"));
    bench.core.handle(at(102), Event::Wake);
    let (_, said) = saved(&mut bench, 102);
    let (rows, _) = saved(&mut bench, 103);
    assert!(rows[0].what == What::Resume && said.iter().any(|said| said.contains("paused 3")), "all are paused still: {said:?}");
    let (_, said) = asked(&mut bench, 103, 0, Rank::Root, resume(None));
    assert!(said.contains("paused 0") && said.contains("reply 0"), "{said}");
    // A kernel that refuses is told, and asked again.
    bench.core.handle(
        at(104),
        Event::Asked(Asked {
            client: ClientId(99),
            uid: 0,
            rank: Rank::Root,
            program: None,
            request: pause(None, None),
            kernel: None,
            named: None,
        }),
    );
    bench.core.settle(at(104));
    bench.core.handle(at(104), Event::Established(Err("EPERM".into())));
    let (_, said) = saved(&mut bench, 104);
    assert!(said.iter().any(|said| said.starts_with("reply 4") && said.contains("EPERM")), "{said:?}");
    let (_, said) = saved(&mut bench, 106);
    assert!(said.iter().any(|said| said.starts_with("establish") && said.contains("paused 3")), "{said:?}");
    // A start stays paused.
    let restored = crate::state::Restored {
        paused: vec![
            crate::state::KeptPause { jail: None, since: at(0).wall, until: Some(at(50).wall), uid: 0 },
            crate::state::KeptPause { jail: Some("sshd".into()), since: at(0).wall, until: Some(at(500).wall), uid: 0 },
        ],
        ..Default::default()
    };
    let mut next = Bench::new(&["dovecot", "sshd"]);
    kept(&mut next, 60, &restored);
    assert_eq!(next.core.establish().paused, [false, false, true], "dovecot, manual, sshd: the first pause is over by now");
}

#[test]
fn unban_chooses_by_time_subnet_and_account_and_only_says_so_if_asked_to() {
    let mut bench = Bench::new(&["dovecot", "sshd"]);
    kept(&mut bench, 0, &crate::state::Restored::default());
    for (secs, jail, who) in [(10, "sshd", "198.51.100.7"), (20, "dovecot", "198.51.100.8"), (30, "sshd", "203.0.113.9")] {
        failing(&mut bench, secs, jail, who);
        failing(&mut bench, secs, jail, who);
        saved(&mut bench, secs);
    }
    let chosen = |since_s: Option<i64>, net: Option<&str>, dry_run| Request::Unban {
        jail: None,
        addrs: vec![],
        all: false,
        since_s,
        net: net.map(str::to_owned),
        user: None,
        dry_run,
        forget: false,
    };
    let (rows, said) = asked(&mut bench, 40, 0, Rank::Root, chosen(Some(BOOT + 15), None, true));
    assert!(said.contains("198.51.100.8") && said.contains("203.0.113.9") && !said.contains("198.51.100.7"), "{said}");
    assert!(rows.is_empty() && !said.contains("commit") && bench.core.bans_held() == 3, "{said}");
    let (_, said) = asked(&mut bench, 41, 0, Rank::Root, chosen(Some(BOOT + 15), Some("198.51.100.0/24"), false));
    assert!(said.contains("commit -dovecot-v4 198.51.100.8") && bench.core.bans_held() == 2, "{said}");
    assert!(asked(&mut bench, 42, 0, Rank::Root, chosen(None, Some("x"), false)).1.contains("reply 1"));
    // By account: the history is asked first.
    let by_account = Request::Unban {
        jail: None,
        addrs: vec![],
        all: false,
        since_s: None,
        net: None,
        user: Some("bob".into()),
        dry_run: false,
        forget: true,
    };
    let (_, said) = asked(&mut bench, 43, 0, Rank::Root, by_account.clone());
    assert_eq!(said, "search");
    let named = Some(vec![("sshd".into(), ip("198.51.100.7").into()), ("dovecot".into(), ip("203.0.113.9").into())]);
    bench.core.handle(
        at(44),
        Event::Asked(Asked {
            client: ClientId(7),
            uid: 0,
            rank: Rank::Root,
            program: None,
            request: by_account,
            kernel: None,
            named,
        }),
    );
    let (_, said) = saved(&mut bench, 44);
    assert!(said.iter().any(|said| said == "commit -sshd-v4 198.51.100.7"), "{said:?}");
    assert_eq!(bench.core.bans_held(), 1);
}

#[test]
fn offences_grow_bans_over_restarts_and_over_all_jails() {
    let growing = |everywhere: bool| {
        let mut grown = config(&["dovecot", "sshd"]);
        for jail in &mut grown.jails {
            if jail.name == "sshd" {
                jail.increment = run::Increment {
                    enabled: true,
                    overalljails: everywhere,
                    maxtime: Some(Span::from_secs(3000)),
                    ..Default::default()
                };
            }
        }
        grown
    };
    let start = |everywhere: bool, restored: &crate::state::Restored, secs: i64| {
        let mut bench = Bench::new(&["dovecot", "sshd"]);
        bench.event(secs, Event::Reloaded(Reloaded { client: None, specs: Ok(Specs::new(&growing(everywhere))) }));
        bench.event(secs, Event::Established(Ok(Done::default())));
        kept(&mut bench, secs, restored);
        saved(&mut bench, secs);
        bench
    };
    // Bans in `jail` now; gives how long, and what is kept of its offences.
    let banned = |bench: &mut Bench, secs: i64, jail: &str| {
        bench.core.handle(at(secs), Event::Wake);
        failing(bench, secs, jail, "198.51.100.7");
        failing(bench, secs, jail, "198.51.100.7");
        let (rows, _) = saved(bench, secs);
        let row = rows.iter().find(|row| row.what == What::Ban).expect("banned");
        row.until.expect("it ends").since(row.since.expect("it began")).secs()
    };
    let mut bench = start(false, &crate::state::Restored::default(), 0);
    assert_eq!(banned(&mut bench, 10, "sshd"), 600);
    assert_eq!(banned(&mut bench, 1000, "sshd"), 1200);
    let offence = crate::state::KeptOffence { bans: 2, until: at(2200).wall };
    let restored = crate::state::Restored {
        offences: vec![
            ("sshd".into(), ip("198.51.100.7").into(), offence),
            ("dovecot".into(), ip("198.51.100.9").into(), offence),
        ],
        ..Default::default()
    };
    let mut bench = start(false, &restored, 3000);
    assert_eq!(banned(&mut bench, 3001, "sshd"), 2400);
    assert_eq!(banned(&mut bench, 9000, "sshd"), 3000, "maxtime");
    assert_eq!(banned(&mut bench, 9001, "dovecot"), 600, "a jail without growth");
    let mut bench = start(false, &restored, 2200 + 30 * 86_400 + 1);
    assert_eq!(banned(&mut bench, 2200 + 30 * 86_400 + 2, "sshd"), 600, "beyond memory");
    let mut bench = start(true, &crate::state::Restored::default(), 0);
    assert_eq!(banned(&mut bench, 10, "dovecot"), 600);
    assert_eq!(banned(&mut bench, 11, "sshd"), 1200, "offences in every jail count");
}

#[test]
fn the_element_of_a_ban_that_is_held_is_no_news() {
    let mut bench = Bench::new(&["sshd"]);
    kept(&mut bench, 0, &crate::state::Restored::default());
    failing(&mut bench, 1, "sshd", "198.51.100.7");
    failing(&mut bench, 1, "sshd", "198.51.100.7");
    saved(&mut bench, 2);
    // The kernel counted 50 ms less than we did; another element is somebody's doing, and so is a longer one.
    let left = Span(599_050_000);
    let element = |address: &str, left| Adopted {
        set: "sshd-v4".to_owned(),
        what: ip(address).into(),
        timeout: Some(Span::from_secs(600)),
        left: Some(left),
        everywhere: true,
    };
    assert_eq!(bench.core.compare(at(2), &[element("198.51.100.7", left), element("198.51.100.9", left)]), (1, 0));
    assert_eq!(bench.core.banned(at(2), &KernelView::default())[1]["failures"], 2);
    bench.core.adopt(at(2), &element("198.51.100.7", Span::from_secs(9000)));
    let (rows, _) = saved(&mut bench, 3);
    let said: Vec<String> =
        rows.iter().map(|row| format!("{} {}", row.origin, row.subject.map(shown).unwrap_or_default())).collect();
    assert_eq!(said, ["kernel 198.51.100.9", "kernel 198.51.100.7"]);
}

#[test]
fn a_ban_that_was_found_and_then_accounted_for_by_the_log_has_one_row() {
    let element = |address: &str| Adopted {
        set: "sshd-v4".to_owned(),
        what: ip(address).into(),
        timeout: Some(Span::from_secs(600)),
        left: Some(Span::from_secs(590)),
        everywhere: true,
    };
    let told = |rows: &[Row]| rows.iter().map(|row| format!("{} {} {}", row.seq, row.origin, row.failures)).collect::<Vec<_>>();
    let mut bench = Bench::new(&["sshd"]);
    kept(&mut bench, 0, &crate::state::Restored { seq: 4, ..Default::default() });
    assert_eq!(bench.core.compare(at(10), &[element("198.51.100.7"), element("198.51.100.8")]), (2, 0));
    let (rows, _) = saved(&mut bench, 11);
    assert_eq!(told(&rows), ["5 kernel 0", "6 kernel 0"]);
    failing(&mut bench, 12, "sshd", "198.51.100.8");
    failing(&mut bench, 12, "sshd", "198.51.100.8");
    let (rows, said) = saved(&mut bench, 13);
    assert_eq!(told(&rows), ["6 log 2"], "the row it has already is told again");
    assert!(rows[0].decision.is_some() && rows[0].reason.is_none() && !said.iter().any(|said| said.starts_with("commit")));
    failing(&mut bench, 14, "sshd", "198.51.100.9");
    failing(&mut bench, 14, "sshd", "198.51.100.9");
    assert_eq!(told(&saved(&mut bench, 15).0), ["7 log 2"], "numbers go on");
    // The next run knows it, too.
    let ban = crate::state::KeptBan {
        since: at(0).wall,
        until: Some(at(600).wall),
        lasting: crate::terms::Lasting::For(Span::from_secs(600)),
        failures: 0,
        uid: None,
        reason: Some(crate::state::ADOPTED.to_owned()),
        in_kernel: true,
        own: None,
    };
    let seven = ("sshd".into(), net("198.51.100.7/32"));
    let restored = crate::state::Restored {
        seq: 7,
        bans: vec![(Arc::clone(&seven.0), seven.1, ban)],
        found: vec![(seven.0, seven.1, 5)],
        ..Default::default()
    };
    let mut next = Bench::new(&["sshd"]);
    kept(&mut next, 20, &restored);
    saved(&mut next, 21);
    failing(&mut next, 22, "sshd", "198.51.100.7");
    failing(&mut next, 22, "sshd", "198.51.100.7");
    assert_eq!(told(&saved(&mut next, 23).0), ["5 log 2"]);
}

#[test]
fn that_lines_could_not_be_read_back_is_said_once_an_hour_and_shown() {
    use crate::engine::recall::Short;
    let mut bench = Bench::new(&["sshd"]);
    kept(&mut bench, 0, &crate::state::Restored::default());
    saved(&mut bench, 1);
    let mut read = |secs, seq, short| {
        bench.core.handle(at(secs), Event::ReadBack(seq, Vec::new(), short));
        let actions = bench.core.take_actions();
        let status = bench.core.status(&KernelView::default());
        (actions.iter().map(tell).collect::<Vec<_>>().join("; "), status["history"].to_string())
    };
    let failed = || Some(Short::Failed("permission denied".to_owned()));
    let (said, status) = read(2, 1, None);
    assert_eq!((said.as_str(), status.as_str()), ("", r#"{"lost_rows":0,"short":0,"why":null}"#));
    assert_eq!(read(3, 2, failed()).0, "the lines behind a ban are not all kept: journalctl failed: permission denied");
    assert_eq!(read(4, 3, Some(Short::Failed("again".to_owned()))).0, "", "not one by one");
    assert!(
        read(5, 4, Some(Short::Printed)).0.ends_with("the journal holds more than 64 MiB around them"),
        "another reason is news"
    );
    let (said, status) = read(3604, 5, failed());
    assert!(said.contains("not all kept, and before it those of 1 others: journalctl failed"), "{said}");
    assert_eq!(status, r#"{"lost_rows":0,"short":4,"why":"journalctl failed: permission denied"}"#);
}

#[test]
fn a_clock_that_jumps_between_two_runs_neither_ends_nor_prolongs_what_was_kept() {
    let ban = |subject: &str, from: i64, until: i64| {
        let kept = crate::state::KeptBan {
            since: at(from).wall,
            until: Some(at(until).wall),
            lasting: crate::terms::Lasting::For(Span::from_secs(until.abs_diff(from))),
            failures: 2,
            uid: None,
            reason: None,
            in_kernel: true,
            own: None,
        };
        ("sshd".into(), net(subject), kept)
    };
    let offence = crate::state::KeptOffence { bans: 1, until: at(600).wall };
    let restored = |clock: Option<i64>| crate::state::Restored {
        bans: vec![ban("198.51.100.7/32", 0, 600), ban("198.51.100.8/32", -300, 300)],
        offences: vec![("sshd".into(), net("198.51.100.7/32"), offence)],
        ignored: vec![crate::state::KeptIgnore {
            jail: None,
            subject: net("192.0.2.9/32"),
            since: at(0).wall,
            until: Some(at(500).wall),
            uid: 0,
            reason: None,
        }],
        paused: vec![crate::state::KeptPause { jail: None, since: at(0).wall, until: Some(at(500).wall), uid: 0 }],
        clock,
        ..Default::default()
    };
    let mut growing = config(&["sshd"]);
    growing.jails.iter_mut().for_each(|jail| jail.increment.enabled = true);
    const YEARS: i64 = 20 * 366 * 86_400;
    // Where the wall clock is now, whether this is the same boot: what is left of each.
    let table = [
        (0, true, "198.51.100.7 500; 198.51.100.8 200", 400),
        (YEARS, true, "198.51.100.7 500; 198.51.100.8 200", 400),
        (-YEARS, true, "198.51.100.7 500; 198.51.100.8 200", 400),
        (0, false, "198.51.100.7 500; 198.51.100.8 200", 400),
        (-YEARS, false, "198.51.100.7 600; 198.51.100.8 600", 500),
    ];
    for (jump, same_boot, left, others) in table {
        let mut bench = Bench::new(&["sshd"]);
        bench.core = Core::new(Specs::new(&growing), Machine::default(), at(0), 7);
        let now = Now { wall: Time::from_secs(BOOT + 100 + jump), mono: Time::from_secs(100) };
        bench.core.restore(now, &restored(same_boot.then_some(BOOT * 1_000_000)));
        assert_eq!(banned(&bench, 100), left, "{jump} {same_boot}");
        let ends = [bench.core.ignores.next_end(), bench.core.pauses.next_end()];
        assert_eq!(ends, [Some(Time::from_secs(100 + others)); 2], "{jump} {same_boot}");
        let (bans, until) = bench.core.jails[1].jail.offences(net("198.51.100.7/32")).expect("remembered");
        assert!(bans == 1 && until <= Time::from_secs(700), "an offence ends with its ban: {until:?}");
    }
}

#[test]
fn after_a_jump_of_the_clock_every_end_is_kept_anew() {
    let mut bench = Bench::new(&["sshd"]);
    kept(&mut bench, 0, &crate::state::Restored::default());
    failing(&mut bench, 1, "sshd", "198.51.100.7");
    failing(&mut bench, 1, "sshd", "198.51.100.7");
    saved(&mut bench, 2);
    saved(&mut bench, 3);
    let mut keeping = |mono: i64, wall: i64| {
        let now = Now { wall: Time::from_secs(BOOT + wall), mono: Time::from_secs(mono) };
        bench.core.handle(now, Event::Wake);
        // What changed is saved a moment later.
        bench.core.settle(now);
        let later = Now { wall: now.wall + Span::from_secs(1), mono: now.mono + Span::from_secs(1) };
        bench.core.settle(later);
        let saves = bench.core.take_actions().into_iter().find_map(|action| match action {
            Action::Save(keeping) => Some((keeping.bans[0].2.as_ref().and_then(|ban| ban.until), keeping.clock)),
            _ => None,
        });
        bench.core.handle(later, Event::Saved(Ok(())));
        saves
    };
    assert_eq!(keeping(4, 5), None, "a second is nothing");
    let jumped = keeping(10, 7210);
    assert_eq!(jumped, Some((Some(Time::from_secs(BOOT + 7200 + 601)), Some((BOOT + 7200) * 1_000_000))));
    assert_eq!(keeping(20, 7220), None);
}

#[test]
fn a_name_that_does_not_resolve_keeps_its_last_good_addresses_over_a_restart() {
    let mut named = config(&["sshd"]);
    named.ignore.names.extend(["office.example.org".to_owned(), "mx.example.org".to_owned()]);
    let start = |restored: &crate::state::Restored| {
        let mut bench = Bench::new(&["sshd"]);
        bench.core = Core::new(Specs::new(&named), Machine::default(), at(0), 7);
        bench.learn();
        kept(&mut bench, 0, restored);
        saved(&mut bench, 1);
        bench
    };
    let mut bench = start(&crate::state::Restored::default());
    let resolved: Resolved = [("office.example.org".to_owned(), vec![ip("198.51.100.7")])].into();
    bench.core.handle(at(2), Event::Resolved(resolved));
    bench.core.settle(at(3));
    let names = bench.core.take_actions().into_iter().find_map(|action| match action {
        Action::Save(keeping) => keeping.names,
        _ => None,
    });
    let names = names.expect("kept");
    assert_eq!(names, [("office.example.org".into(), vec![ip("198.51.100.7")])]);
    let gone = ("gone.example.org".into(), vec![ip("198.51.100.9")]);
    let mut next = start(&crate::state::Restored { names: names.into_iter().chain([gone]).collect(), ..Default::default() });
    assert!(next.fail(2, "sshd", "198.51.100.7").starts_with("[sshd] Ignore"), "before anything resolves");
    next.event(3, Event::Resolved(Resolved::new()));
    assert!(next.fail(4, "sshd", "198.51.100.7").starts_with("[sshd] Ignore"), "nor does it now");
    assert!(next.fail(4, "sshd", "198.51.100.9").starts_with("[sshd] Found"), "nobody asks for that name any more");
}

#[test]
fn what_the_log_does_not_show_is_not_worded() {
    let mut bench = Bench::new(&["sshd"]);
    let mut quiet = config(&["sshd"]);
    quiet.daemon.loglevel = run::Loglevel::Warning;
    bench.event(0, Event::Reloaded(Reloaded { client: None, specs: Ok(Specs::new(&quiet)) }));
    bench.event(0, made());
    assert_eq!(bench.fail(1, "sshd", "10.1.2.3"), "");
    assert_eq!(bench.fail(1, "sshd", "198.51.100.7"), "");
    assert_eq!(bench.fail(1, "sshd", "198.51.100.7"), "commit +sshd-v4 198.51.100.7");
    assert_eq!(bench.yes(1), "[sshd] Ban 198.51.100.7");
}

#[test]
fn many_bans_are_lifted_at_once_by_account_or_all() {
    let mut bench = Bench::new(&["sshd"]);
    let count = 30_000_u32;
    let name = |n: u32| IpNetwork::from(IpAddr::from((0x2001_0db9_u128 << 96 | u128::from(n) << 64).to_be_bytes()));
    let subject = |n: u32| crate::jail::network(name(n).network(), 64).expect("a subnet");
    for n in 0..count {
        let found =
            Adopted { set: "sshd-v6".to_owned(), what: subject(n).network().into(), timeout: None, left: None, everywhere: true };
        bench.core.adopt(at(0), &found);
    }
    assert_eq!(bench.core.bans_held(), count as usize);
    // What takes a walk over all bans for each of them takes minutes here.
    let request = |all| Request::Unban {
        jail: None,
        addrs: vec![],
        all,
        since_s: None,
        net: None,
        user: (!all).then(|| "admin".to_owned()),
        dry_run: !all,
        forget: false,
    };
    for all in [false, true] {
        let named = (!all).then(|| (0..count).map(|n| ("sshd".into(), subject(n))).collect());
        let asked =
            Asked { client: ClientId(1), uid: 0, rank: Rank::Root, program: None, request: request(all), kernel: None, named };
        bench.event(1, Event::Asked(asked));
    }
    assert_eq!(bench.core.bans_held(), 0);
}

#[test]
fn another_machines_events_are_applied_once_and_lift_only_their_own() {
    use crate::control::request::{Given, GivenWhat};
    let mut bench = Bench::new(&["sshd"]);
    kept(&mut bench, 0, &crate::state::Restored::default());
    saved(&mut bench, 1);
    let event = |seq, what, jail: &str, addr: &str, until: Option<i64>| Given {
        seq,
        what,
        jail: jail.to_owned(),
        addr: addr.to_owned(),
        since_s: BOOT,
        until_s: until.map(|until| BOOT + until),
        failures: 3,
        reason: Some("x\ny".to_owned()),
    };
    let apply = |origin: &str, events: Vec<Given>| Request::Apply { origin: origin.to_owned(), jail: None, events };
    use GivenWhat::{Ban, Unban};
    let first = vec![
        event(7, Ban, "sshd", "198.51.100.7", Some(600)),
        event(8, Ban, "nowhere", "198.51.100.8", None),
        event(9, Ban, "sshd", "198.51.100.9", Some(1)),
        event(10, Ban, "sshd", "10.1.2.3", Some(600)),
        event(11, Ban, "sshd", "198.51.100.0/24", Some(600)),
        event(12, Ban, "sshd", "2001:db8::/64", Some(600)),
        event(13, Ban, "sshd", "127.0.0.1", Some(600)),
        event(14, Unban, "sshd", "198.51.100.50", None),
    ];
    let (rows, said) = asked(&mut bench, 2, 0, Rank::Root, apply("mx2", first.clone()));
    assert!(
        said.contains("commit +sshd-v4 198.51.100.7 +manual-v4 198.51.100.8 +sshd-net4 198.51.100.0/24 +sshd-v6 2001:db8::"),
        "{said}"
    );
    assert!(said.contains(r#""banned":4,"last":14,"lifted":0,"over":1,"#), "{said}");
    assert!(
        said.contains("10.1.2.3: ignored by ip 10.0.0.0/8") && said.contains("127.0.0.1: ignored by address class"),
        "{said}"
    );
    assert_eq!(rows.iter().map(|row| &*row.origin).collect::<Vec<_>>(), ["@mx2"; 4]);
    assert_eq!(rows[0].reason.as_deref(), Some("x\\x0ay"));
    let (rows, said) = asked(&mut bench, 3, 0, Rank::Root, apply("mx2", first));
    assert!(said.contains(r#""already":4,"banned":0"#) && rows.is_empty(), "applied twice is applied once: {said}");
    // What would be asked for twice here is not taken from elsewhere, nor is what no kernel can hold.
    let wide = vec![
        event(1, Ban, "sshd", "0.0.0.0/1", Some(600)),
        event(2, Ban, "sshd", "127.0.0.0/8", Some(600)),
        event(3, Ban, "sshd", "198.51.100.99", Some(i64::MAX / 2)),
    ];
    let (rows, said) = asked(&mut bench, 3, 0, Rank::Root, apply("mx3", wide));
    assert!(
        said.contains("0.0.0.0/1: that is most likely more than was meant") && said.contains("127.0.0.0/8: that is"),
        "{said}"
    );
    let until = rows[0].until.expect("it ends");
    assert!(rows.len() == 1 && until < at(101 * 366 * 86_400).wall, "{rows:?}");
    // Another machine's unban, one with a longer name, and our own ban.
    for origin in ["mx", "mx22", "mx2.example"] {
        let (_, said) = asked(&mut bench, 4, 0, Rank::Root, apply(origin, vec![event(1, Unban, "sshd", "198.51.100.7", None)]));
        assert!(said.contains(r#""absent":1"#) && !said.contains("commit"), "{origin}: {said}");
    }
    asked(&mut bench, 5, 0, Rank::Root, ban(&["198.51.100.60"], false));
    let (_, said) = asked(&mut bench, 6, 0, Rank::Root, apply("mx2", vec![event(15, Unban, "manual", "198.51.100.60", None)]));
    assert!(said.contains(r#""absent":1"#), "{said}");
    let (_, said) = asked(&mut bench, 7, 0, Rank::Root, apply("mx2", vec![event(16, Unban, "sshd", "198.51.100.7", None)]));
    assert!(said.contains("commit -sshd-v4 198.51.100.7"), "{said}");
    assert!(asked(&mut bench, 8, 0, Rank::Root, apply("a\nb", vec![])).1.contains("reply 2"));
    // A longer ban of theirs over ours: while it lasts it is theirs, and when they take it back ours goes on, over a restart too.
    let longer = |seq, what| apply("mx2", vec![event(seq, what, "manual", "198.51.100.60", Some(9000))]);
    assert!(asked(&mut bench, 8, 0, Rank::Root, longer(17, Ban)).1.contains("commit +manual-v4 198.51.100.60"));
    let held =
        bench.core.jails.iter().find_map(|running| running.jail.held("198.51.100.60/32".parse().unwrap())).unwrap().clone();
    let again = crate::engine::keep::held(at(8), &crate::engine::keep::kept(at(8), &held)).unwrap();
    assert_eq!(held, Held { in_kernel: held.in_kernel, generation: held.generation, ..again });
    let (_, said) = asked(&mut bench, 8, 0, Rank::Root, Request::Events { since: None, wait_s: 0 });
    assert!(said.contains("198.51.100.60") && !said.contains("@mx2"), "{said}");
    let (_, said) = asked(&mut bench, 8, 0, Rank::Root, longer(18, Unban));
    assert!(said.contains("commit +manual-v4 198.51.100.60") && said.contains("our own ban goes on"), "{said}");
    let (_, said) = asked(&mut bench, 8, 0, Rank::Root, longer(19, Unban));
    assert!(said.contains(r#""absent":1"#), "{said}");
    // What goes out again is only what was decided here.
    let (_, said) = asked(&mut bench, 9, 0, Rank::Root, Request::Events { since: None, wait_s: 0 });
    assert!(said.contains("198.51.100.60") && !said.contains("198.51.100.8"), "{said}");
    assert!(asked(&mut bench, 9, 0, Rank::Root, Request::Events { since: Some(10_000), wait_s: 0 }).1.contains(r#""anew":true"#));
}

#[test]
fn who_follows_is_answered_at_the_next_event_or_when_the_wait_is_over() {
    let mut bench = Bench::new(&["sshd"]);
    kept(&mut bench, 0, &crate::state::Restored { seq: 5, ..Default::default() });
    saved(&mut bench, 1);
    let follow = |since| Request::Events { since: Some(since), wait_s: 20 };
    assert_eq!(asked(&mut bench, 2, 0, Rank::Root, follow(5)).1, "");
    assert_eq!(bench.core.next_wake(at(2)), Some(Time::from_secs(22)));
    bench.core.handle(at(22), Event::Wake);
    assert!(saved(&mut bench, 22).1.iter().any(|said| said.contains(r#""events":[]"#)));
    assert_eq!(asked(&mut bench, 23, 0, Rank::Root, follow(5)).1, "");
    failing(&mut bench, 24, "sshd", "198.51.100.7");
    failing(&mut bench, 24, "sshd", "198.51.100.7");
    let (rows, said) = saved(&mut bench, 24);
    assert!(rows.is_empty() && !said.contains(&"search".to_owned()), "not before it is kept: {said:?}");
    let (rows, said) = saved(&mut bench, 25);
    assert!(rows.len() == 1 && said.contains(&"search".to_owned()), "{said:?}");
}

#[test]
fn recidive_counts_the_bans_of_the_other_jails() {
    let mut bench = Bench::new(&["dovecot", "sshd"]);
    let mut fed = config(&["dovecot", "sshd"]);
    fed.jails.push(run::Jail { maxretry: 3, findtime: Span::from_secs(86_400), ..run::Jail::named(run::RECIDIVE) });
    fed.jails.sort_by(|a, b| a.name.cmp(&b.name));
    bench.event(0, Event::Reloaded(Reloaded { client: None, specs: Ok(Specs::new(&fed)) }));
    bench.event(0, Event::Established(Ok(Done::default())));
    kept(&mut bench, 0, &crate::state::Restored::default());
    saved(&mut bench, 1);
    let mut rows = Vec::new();
    for (secs, jail) in [(10, "sshd"), (20, "dovecot"), (2000, "sshd")] {
        bench.core.handle(at(secs), Event::Wake);
        failing(&mut bench, secs, jail, "198.51.100.7");
        failing(&mut bench, secs, jail, "198.51.100.7");
        saved(&mut bench, secs);
        rows = saved(&mut bench, secs + 1).0;
    }
    let said: Vec<String> = rows.iter().map(|row| format!("{:?} {}", row.jail, row.decision.as_deref().unwrap_or(""))).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[1].starts_with("Some(\"recidive\") 3 bans by other jails of at most 2 within 1d: banned for 10m"), "{said:?}");
    // A ban by hand is no offence.
    asked(&mut bench, 3000, 0, Rank::Root, ban(&["198.51.100.8"], false));
    assert!(bench.core.banned(at(3000), &KernelView::default()).as_array().is_some_and(|rows| rows.len() == 1));
}
