//! The engine told as tables: events in, what comes out in a line each.

use super::*;
use crate::config::run::{self, Config};
use crate::control::Request;
use crate::jail::Place;
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
            Machine { addresses: vec![ip("192.0.2.1")], gateways: vec![ip("192.0.2.254")] },
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
    let said = bench.ask(1, ban(&["198.51.100.7", "x", "198.51.100.0/24"], false));
    assert_eq!(said, "[manual] Ban 198.51.100.7 by uid 0; commit +manual-v4 198.51.100.7");
    let said = bench.yes(1);
    assert!(said.starts_with(r#"reply 4 {"already":[],"banned":[{"addr":"198.51.100.7","jail":"manual"}]}"#), "{said}");
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
