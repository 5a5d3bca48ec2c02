//! What is written for people loads, and says neither more nor less than the table of keys; the shipped jails are the ones asked for.

use super::*;
use crate::config::keys::{KEYS, Kind, Place, Status};
use crate::config::run::FilterUse;
use crate::terms::{Lasting, Ports, Protocol, Protocols, Span};

/// The example with every key and header uncommented.
pub fn uncommented() -> String {
    let live = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest.to_owned(),
        _ => line.to_owned(),
    };
    show::example().lines().map(live).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_annotated_example_loads_as_it_is() {
    let loaded = understood(&[("banset.toml", &show::example())]);
    assert_eq!((loaded.report.mistakes, loaded.report.warnings), (0, 0), "{}", loaded.report);
    assert_eq!(loaded.config, understood(&[]).config);
}

#[test]
fn the_annotated_example_loads_with_every_key_uncommented() {
    let text = uncommented();
    let loaded = understood(&[("banset.toml", &text)]);
    assert_eq!((loaded.report.mistakes, loaded.report.warnings), (0, 0), "{}{text}", loaded.report);
    let names: Vec<String> = loaded.config.unwrap().jails.into_iter().map(|jail| jail.name).collect();
    assert_eq!(names, ["example", "manual", "sshd"]);
}

#[test]
fn the_annotated_example_shows_the_built_in_values() {
    let with = understood(&[("banset.toml", &uncommented())]).config.unwrap();
    let without = understood(&[("banset.toml", "[jail.sshd]\nenabled = true")]).config.unwrap();
    assert_eq!(
        with.daemon,
        run::Daemon { readers: Some("adm".to_owned()), operators: Some("postmaster".to_owned()), ..without.daemon }
    );
    assert_eq!(with.nft, run::Nft { set_size: Some(65_536), ..without.nft });
}

#[test]
fn the_annotated_example_documents_every_key_and_only_existing_ones() {
    let text = uncommented();
    let (table, errors) = written::read(&Source::new(String::new(), text.clone()));
    assert_eq!(errors, []);
    let mut seen = std::collections::BTreeSet::new();
    walk(&table, Place::Top, &mut seen);
    for key in KEYS {
        let shown = seen.contains(&(key.place, key.name));
        match key.status {
            Status::Now => assert!(shown, "{:?} {} is not shown", key.place, key.name),
            Status::Planned => {
                assert!(!shown, "{:?} {} is shown, but planned", key.place, key.name);
                let later = |line: &&str| {
                    line.starts_with("# later: ") && line.ends_with(&format!(": {}", key.about)) && line.contains(key.name)
                };
                assert!(text.lines().any(|line| later(&line)), "{:?} {} is not named", key.place, key.name);
            }
        }
    }
}

fn walk(table: &written::Table, place: Place, seen: &mut std::collections::BTreeSet<(Place, &'static str)>) {
    for (name, entry) in table {
        let key = keys::find(place, name).unwrap_or_else(|| panic!("{place:?} {name} does not exist"));
        seen.insert((place, key.name));
        match (key.kind, &entry.node.value) {
            (Kind::Table(inner), written::Raw::Table(table)) => walk(table, inner, seen),
            (Kind::Named(inner), written::Raw::Table(tables)) => {
                for entry in tables.values() {
                    if let written::Raw::Table(table) = &entry.node.value {
                        walk(table, inner, seen);
                    }
                }
            }
            (Kind::Tables(inner), written::Raw::List(items)) => {
                for item in items {
                    if let written::Raw::Table(table) = &item.value {
                        walk(table, inner, seen);
                    }
                }
            }
            _ => {}
        }
    }
}

#[test]
fn every_old_name_works_with_a_warning() {
    for key in KEYS.iter().filter(|key| key.status == Status::Now) {
        for old in key.was {
            let header = match key.place {
                Place::Jail => "[jail.sshd]",
                Place::Nft => "[nft]",
                Place::Daemon => "[daemon]",
                other => panic!("no header for {other:?}"),
            };
            let value = if key.example.is_empty() { key.default } else { key.example };
            let loaded = |name: &str| {
                understood(&[
                    ("banset.toml", &format!("[jail.sshd]\nenabled = true\n[defaults]\n{}", "")),
                    ("banset.d/x.toml", &format!("{header}\n{name} = {value}")),
                ])
            };
            let (new, old_loaded) = (loaded(key.name), loaded(old));
            assert_eq!((old_loaded.report.mistakes, old_loaded.report.warnings), (0, 1), "{}", old_loaded.report);
            assert_eq!(new.config, old_loaded.config, "{old}");
            assert!(old_loaded.report.to_string().contains(&format!("warning: {old}: now called {}", key.name)));
        }
    }
}

#[test]
fn every_example_of_a_key_is_right() {
    for key in
        KEYS.iter().filter(|key| key.status == Status::Now && matches!(key.place, Place::Jail | Place::Nft | Place::Daemon))
    {
        for value in [key.example, key.default].into_iter().filter(|value| !value.is_empty()) {
            let source = Source::new(String::new(), format!("{} = {value}", key.name));
            let (table, errors) = written::read(&source);
            assert_eq!(errors, [], "{}", key.name);
            assert!(values::mean(key, &table[key.name].node, &source).is_ok(), "{} = {value}", key.name);
        }
    }
}

#[test]
fn the_shipped_list_is_the_directory() {
    let mut files: Vec<String> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/jails"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let listed: Vec<String> = shipped::JAILS.iter().map(|(name, _)| format!("{name}.toml")).collect();
    assert_eq!(files, listed);
}

#[test]
fn the_shipped_jails_have_the_numbers_asked_for() {
    const MAIL: &[u16] = &[25, 465, 587];
    const WEB: &[u16] = &[80, 443];
    const DOVECOT: &[u16] = &[993, 995];
    let (hour, day) = (3600, 86_400);
    type Row = (&'static str, &'static str, &'static str, &'static [u16], u32, u64, u64);
    // jail, filter, log, ports, maxretry, bantime, findtime
    let table: [Row; 9] = [
        ("qmail-smtp", "qmail-smtp", "/var/log/qmail/smtpd/current", MAIL, 5, day, hour),
        ("qmail-submission", "qmail-smtp", "/var/log/qmail/submission/current", MAIL, 5, day, hour),
        ("vpopmail", "vpopmail", "/var/log/maillog /var/log/mail.log", MAIL, 5, day, hour),
        ("qmailadmin", "qmailadmin", "/var/log/qma-auth.log", WEB, 4, day, hour),
        ("roundcube-auth", "roundcube", "/var/www/roundcube/logs/userlogins.log", WEB, 4, day, hour),
        ("dovecot-pop3", "dovecot", "/var/log/dovecot/dovecot.log", DOVECOT, 6, hour, hour),
        ("dovecot-imap", "dovecot", "/var/log/dovecot/dovecot.log", DOVECOT, 6, hour, hour),
        ("smtp-auth", "sendmail-auth", "/var/log/maillog /var/log/mail.log", &[25], 3, 600, 600),
        ("sshd", "sshd", "/var/log/auth.log /var/log/secure", &[22], 5, hour, hour),
    ];
    let all: String = table.iter().map(|row| format!("[jail.{}]\nenabled = true\n", row.0)).collect();
    let config = understood(&[("banset.toml", &all)]).config.unwrap();
    assert_eq!(config.jails.len(), table.len() + 1);
    for (name, filter, log, ports, maxretry, bantime, findtime) in table {
        let jail = config.jail(name).unwrap_or_else(|| panic!("{name}"));
        let used: &FilterUse = jail.filter.as_ref().unwrap();
        let range: Vec<(u16, u16)> = ports.iter().map(|port| (*port, *port)).collect();
        assert_eq!(
            (used.name.as_str(), jail.logpath.join(" ").as_str(), &jail.ports),
            (filter, log, &Ports::List(range)),
            "{name}"
        );
        assert_eq!(
            (jail.maxretry, jail.bantime, jail.findtime),
            (maxretry, Lasting::For(Span::from_secs(bantime)), Span::from_secs(findtime)),
            "{name}"
        );
        let tcp_only = name == "smtp-auth";
        assert_eq!(jail.protocols == Protocols::List(vec![Protocol::Tcp]), tcp_only, "{name}");
    }
}

#[test]
fn config_show_prints_every_value_with_its_origin() {
    let sources = Sources {
        texts: vec![
            text("jail.d/sshd.toml", "enabled = true\nfilter = { name = 'sshd', mode = 'aggressive' }\n"),
            text("banset.toml", "[defaults]\nignoreip = '10.0.0.1'\nfailregex_add = '^\\d+ <HOST>'\n[nft.priority]\ninput = 3\n"),
            text("banset.d/x.toml", "\n[jail.sshd]\nignoreip = ['::1']\nfailregex_add = 'b <HOST>'\nbantime = 90\n"),
            text("environment", "BANSET_DAEMON__LOGLEVEL=debug"),
        ],
    };
    let mut others: Vec<&str> = shipped::JAILS.iter().map(|(name, _)| *name).filter(|name| *name != "sshd").collect();
    others.sort_unstable();
    let shown = show::merged(&sources, SHIPPED).replace(&others.join(", "), "all other shipped jails");
    let expected = include_str!("show.txt");
    if std::env::var_os("BANSET_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/tests/show.txt"), &shown).unwrap();
        return;
    }
    assert_eq!(shown, expected);
    let json = show::merged_json(&sources, SHIPPED);
    let bantime = json.as_array().unwrap().iter().find(|one| one["table"] == "jail.sshd" && one["key"] == "bantime").unwrap();
    assert_eq!(
        *bantime,
        serde_json::json!({ "table": "jail.sshd", "key": "bantime", "value": "90", "origin": ["banset.d/x.toml:5"] })
    );
}

#[test]
fn what_config_show_prints_loads_and_means_the_same() {
    let main = "[defaults]\nbantime = '2h'\n[jail.sshd]\nenabled = true\nfailregex_add = ['''a\\d'b\" <HOST>''', \"tab\\t<HOST>\"]\nlabel = 'x\"y'\nchain_hook = 'input forward'";
    let sources = Sources { texts: vec![text("banset.toml", main)] };
    let shown = show::merged(&sources, SHIPPED);
    let again = understood(&[("banset.toml", &shown)]);
    assert!(again.report.is_sound(), "{}{shown}", again.report);
    assert_eq!(again.config, understand(&sources, SHIPPED, &Strict).config);
}

#[test]
fn check_sums_up() {
    assert_eq!(show::check(&understood(&[])), "ok, and no jail is enabled\n");
    assert_eq!(
        show::check(&understood(&[("banset.toml", "[jail]\nsshd.enabled = true\nvpopmail.enabled = true")])),
        "ok: 2 jails enabled: sshd, vpopmail\n"
    );
    let wrong = understood(&[("banset.toml", "[jail.sshd]\nports = 0")]);
    assert!(show::check(&wrong).ends_with("help: ports are 1 to 65535\n1 mistake, 1 warning\n"), "{}", show::check(&wrong));
    let json = show::check_json(&wrong);
    assert_eq!(
        (json["ok"].clone(), json["mistakes"].clone(), json["notes"][1]["line"].clone()),
        (false.into(), 1.into(), 2.into())
    );
}
