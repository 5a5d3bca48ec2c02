//! Where a daemon's rules stand: the tables and hooks its jails name, and what becomes of them.

use banset_integration::{Daemon, Lab, assert_same_text, in_netns, nft, nft_json, nft_try, wait_until};
use serde_json::Value;

/// Jails whose logs never come: their bans are made by hand.
fn jail(name: &str, keys: &str) -> String {
    format!("[jail.{name}]\nenabled = true\nfilter = \"sshd\"\nlogpath = \"/run/no-such-log\"\n{keys}\n\n")
}

fn holds(family: &str, set: &str, element: &str) -> bool {
    nft_try(&["get", "element", family, "banset", set, &format!("{{ {element} }}")]).is_ok()
}

fn tables(daemon: &Daemon) -> Vec<String> {
    let status = daemon.cli(&["status", "--json"]).json();
    let table = |nft: &Value| format!("{} {}", nft["family"].as_str().unwrap_or("?"), nft["table"].as_str().unwrap_or("?"));
    status["nft"].as_array().expect("a list of tables").iter().map(table).collect()
}

fn reload(daemon: &Daemon, jails: &str) {
    daemon.configure(jails);
    daemon.cli(&["reload"]).ok();
}

#[test]
fn a_ban_stands_in_every_table_of_its_jail() {
    in_netns("a_ban_stands_in_every_table_of_its_jail", || {
        let lab = Lab::new();
        let inside = jail("sshd", "port = \"ssh\"");
        let both = jail("smtp", "port = [\"smtp\", 465]\nchain_hook = [\"forward\"]\nfamily = [\"inet\", \"bridge\"]");
        let only = jail(
            "imap",
            "port = \"imap\"\nchain_hook = \"forward\"\nfamily = \"bridge\"\nblocktype = \"reject\"\npriority = -190",
        );
        let all = format!("{inside}{both}{only}");
        let mut daemon = Daemon::start(&lab, &all);
        assert_eq!(tables(&daemon), ["inet banset", "bridge banset"]);
        // The kernel has no reject in a bridge's forward: said once, and dropped there.
        daemon.wait_log("this kernel can not reject at bridge forward: imap drop there");
        let bridge = nft(&["-s", "list", "table", "bridge", "banset"]);
        assert!(
            bridge.contains("hook forward priority filter;") && bridge.contains("hook forward priority filter + 10;"),
            "{bridge}"
        );
        assert!(bridge.contains("tcp dport 143") || bridge.contains("th dport 143 ip saddr @imap-v4"), "{bridge}");
        assert!(!bridge.contains("sshd-v4") && !bridge.contains("reject"), "{bridge}");
        assert!(!nft(&["-s", "list", "table", "inet", "banset"]).contains("imap-v4"));

        daemon.cli(&["ban", "smtp", "198.51.100.7", "--for", "1h"]).ok();
        daemon.cli(&["ban", "imap", "198.51.100.8", "--for", "1h"]).ok();
        daemon.cli(&["ban", "198.51.100.9", "--for", "1h"]).ok();
        for (family, set, element, there) in [
            ("inet", "smtp-v4", "198.51.100.7", true),
            ("bridge", "smtp-v4", "198.51.100.7", true),
            ("inet", "imap-v4", "198.51.100.8", false),
            ("bridge", "imap-v4", "198.51.100.8", true),
            ("inet", "manual-v4", "198.51.100.9", true),
            ("bridge", "manual-v4", "198.51.100.9", true),
        ] {
            assert_eq!(holds(family, set, element), there, "{element} in {family} {set}");
        }
        assert_eq!(daemon.jail("smtp")["kernel"]["v4"], 1);

        // A restart changes nothing in either.
        let listed = || nft(&["-s", "-a", "list", "ruleset"]);
        let before = listed();
        daemon.restart();
        tables(&daemon);
        assert_same_text("after a restart", &before, &listed());
        daemon.kill();
        daemon.start_again();
        tables(&daemon);
        assert_same_text("after kill -9", &before, &listed());
        reload(&daemon, &all);
        assert_same_text("after a reload", &before, &listed());

        // A table that is gone is noticed at the next ban, and both are whole again.
        nft(&["delete", "table", "bridge", "banset"]);
        daemon.cli(&["ban", "smtp", "198.51.100.17", "--for", "1h"]).ok();
        wait_until("both tables are whole again", || {
            let everywhere = |element: &str| ["inet", "bridge"].iter().all(|family| holds(family, "smtp-v4", element));
            everywhere("198.51.100.7") && everywhere("198.51.100.17") && holds("bridge", "imap-v4", "198.51.100.8")
        });

        // A jail that leaves a family is removed there; a table that no jail asks for is deleted.
        reload(&daemon, &format!("{inside}{}{only}", both.replace("[\"inet\", \"bridge\"]", "\"inet\"")));
        assert!(!nft(&["list", "table", "bridge", "banset"]).contains("smtp-v4"));
        assert!(holds("inet", "smtp-v4", "198.51.100.7"));
        reload(&daemon, &format!("{inside}{}", both.replace("[\"inet\", \"bridge\"]", "\"inet\"")));
        assert_eq!(tables(&daemon), ["inet banset"]);
        assert!(nft_try(&["list", "table", "bridge", "banset"]).is_err());
        // And it comes back with the bans that are held.
        reload(&daemon, &all);
        assert!(holds("bridge", "smtp-v4", "198.51.100.7") && holds("bridge", "manual-v4", "198.51.100.9"));
        daemon.cli(&["unban", "smtp", "198.51.100.7"]).ok();
        assert!(!holds("bridge", "smtp-v4", "198.51.100.7") && !holds("inet", "smtp-v4", "198.51.100.7"));
    });
}

#[test]
fn what_is_taken_out_of_one_table_while_the_daemon_is_away_is_lifted_in_both() {
    in_netns("what_is_taken_out_of_one_table_while_the_daemon_is_away_is_lifted_in_both", || {
        let lab = Lab::new();
        let mut daemon =
            Daemon::start(&lab, &jail("smtp", "port = 25\nchain_hook = \"forward\"\nfamily = [\"inet\", \"bridge\"]"));
        tables(&daemon);
        let banned = ["198.51.100.7", "198.51.100.8", "198.51.100.9", "2001:db8:1::/64", "203.0.113.0/28", "203.0.113.64/28"];
        daemon.cli(&[&["ban", "smtp", "--for", "1h"], &banned[..]].concat()).ok();
        daemon.stop();
        for (family, set, element) in [
            ("bridge", "smtp-v4", "198.51.100.7"),
            ("inet", "smtp-v4", "198.51.100.8"),
            ("bridge", "smtp-v6", "2001:db8:1::"),
            ("inet", "smtp-net4", "203.0.113.0/28"),
        ] {
            nft(&["delete", "element", family, "banset", set, &format!("{{ {element} }}")]);
        }
        nft(&["add", "element", "bridge", "banset", "smtp-v4", "{ 198.51.100.77 timeout 1h }"]);
        nft(&["add", "element", "inet", "banset", "smtp-net4", "{ 203.0.113.128/28 timeout 1h }"]);
        daemon.start_again();
        tables(&daemon);
        let rows = daemon.cli(&["banned", "--json"]).json();
        let mut held: Vec<&str> = rows.as_array().expect("rows").iter().filter_map(|row| row["addr"].as_str()).collect();
        held.sort_unstable();
        assert_eq!(held, ["198.51.100.77", "198.51.100.9", "203.0.113.128/28", "203.0.113.64/28"]);
        for (set, element, there) in [
            ("smtp-v4", "198.51.100.7", false),
            ("smtp-v4", "198.51.100.8", false),
            ("smtp-v4", "198.51.100.9", true),
            ("smtp-v4", "198.51.100.77", true),
            ("smtp-v6", "2001:db8:1::", false),
            ("smtp-net4", "203.0.113.0/28", false),
            ("smtp-net4", "203.0.113.64/28", true),
            ("smtp-net4", "203.0.113.128/28", true),
        ] {
            wait_until(&format!("{element} in {set}: {there}"), || {
                ["inet", "bridge"].iter().all(|family| holds(family, set, element) == there)
            });
        }
    });
}

#[test]
fn many_jails_and_published_ports_survive_restart_and_save() {
    in_netns("many_jails_and_published_ports_survive_restart_and_save", || {
        let lab = Lab::new();
        let port =
            ["ssh", "smtp", "[\"smtp\", 465, 587]", "mail", "web", "993", "[80, 8080]", "domain", "ftp", "imap", "pop3", "all"];
        let jails: String = port
            .iter()
            .enumerate()
            .map(|(n, port)| {
                let port = if port.starts_with('[') { (*port).to_owned() } else { format!("{port:?}") };
                jail(&format!("jail{n}"), &format!("port = {port}\nchain_hook = [\"input\", \"forward\"]\ndnat = {}", n == 1))
            })
            .collect();
        let mut daemon = Daemon::start(&lab, &jails);
        // Whoever is answered knows that the table stands.
        assert_eq!(tables(&daemon), ["inet banset"]);
        let listed = nft(&["-s", "list", "table", "inet", "banset"]);
        assert!(listed.contains("meta l4proto . th dport vmap @dispatch-forward"), "{listed}");
        assert!(
            listed.contains("ct status dnat jump forward-dnat") && listed.contains("ct original proto-dst @jail1-ports"),
            "{listed}"
        );
        let before = nft(&["-s", "-a", "list", "ruleset"]);
        daemon.restart();
        tables(&daemon);
        assert_same_text("after a restart", &before, &nft(&["-s", "-a", "list", "ruleset"]));
        daemon.stop();
        // What `banset ruleset` prints loads as it is, comments and all, and is what the daemon wants.
        nft(&["delete", "table", "inet", "banset"]);
        let explained = lab.dir().join("explained.nft");
        std::fs::write(&explained, daemon.cli(&["ruleset"]).ok()).expect("a ruleset can be saved");
        nft(&["-f", explained.to_str().expect("a path of ours is text")]);
        let lines = |text: &str| text.lines().filter(|line| !line.contains("gc-interval")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines(&nft(&["-s", "list", "table", "inet", "banset"])), lines(&listed));
        daemon.start_again();
        daemon.cli(&["ban", "jail1", "198.51.100.7"]).ok();
        assert!(holds("inet", "jail1-v4", "198.51.100.7"));
    });
}

#[test]
fn each_hook_has_its_priority_and_a_jail_may_have_another() {
    in_netns("each_hook_has_its_priority_and_a_jail_may_have_another", || {
        let lab = Lab::new();
        let priorities =
            "[nft.priority]\nprerouting = -310\ninput = -7\nforward = 3\noutput = 9\npostrouting = 11\nbridge = -190\n\n";
        let everywhere = "chain_hook = [\"input\", \"forward\", \"prerouting\", \"output\", \"postrouting\"]\nport = \"smtp\"";
        let jails = [
            jail("smtp", everywhere),
            jail("imap", "chain_hook = \"forward\"\nfamily = \"bridge\"\nport = \"imap\""),
            jail("pop", "priority = -20\nport = \"pop3\""),
        ]
        .concat();
        let daemon = Daemon::start(&lab, &format!("{priorities}{jails}"));
        let chains = || {
            let listing = nft_json(&["list", "chains"]);
            let mut chains: Vec<(String, String, i64)> = Vec::new();
            for chain in listing["nftables"].as_array().expect("a listing").iter().filter_map(|object| object.get("chain")) {
                if let (Some(hook), Some(priority)) = (chain["hook"].as_str(), chain["prio"].as_i64()) {
                    chains.push((chain["family"].as_str().unwrap_or("?").to_owned(), hook.to_owned(), priority));
                }
            }
            chains.sort();
            chains
        };
        let expected = |input: i64| {
            // `manual` stands at every hook of every table.
            let bridge = ["forward", "input", "output", "postrouting", "prerouting"].map(|hook| ("bridge", hook, -190));
            let inet = [
                ("inet", "forward", 3),
                ("inet", "input", -20),
                ("inet", "input", input),
                ("inet", "output", 9),
                ("inet", "postrouting", 11),
                ("inet", "prerouting", -310),
            ];
            let words = |(family, hook, priority): (&str, &str, i64)| (family.to_owned(), hook.to_owned(), priority);
            let mut expected: Vec<(String, String, i64)> = bridge.into_iter().chain(inet).map(words).collect();
            expected.sort();
            expected
        };
        assert_eq!(chains(), expected(-7));
        // A base chain can not be moved: it is made anew, with what is banned in it all the while.
        daemon.cli(&["ban", "smtp", "198.51.100.7"]).ok();
        reload(&daemon, &format!("{}{jails}", priorities.replace("input = -7", "input = 5")));
        assert_eq!(chains(), expected(5));
        assert!(holds("inet", "smtp-v4", "198.51.100.7"));
    });
}
