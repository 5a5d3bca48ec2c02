//! Whose word holds: one test for each rule.

use super::*;
use crate::config::run::{IgnoreList, Loglevel, Priorities};
use crate::terms::{Hook, Lasting, Ports, Protocols, Span};

fn config(texts: &[(&str, &str)]) -> Config {
    let loaded = understood(texts);
    assert!(loaded.report.is_sound(), "{}", loaded.report);
    loaded.config.unwrap()
}

fn jail(texts: &[(&str, &str)], name: &str) -> Jail {
    config(texts).jail(name).unwrap_or_else(|| panic!("no jail {name}")).clone()
}

const ON: (&str, &str) = ("jail.d/sshd.toml", "enabled = true");
const HOUR: Lasting = Lasting::For(Span::from_secs(3600));

fn nets(list: &IgnoreList) -> Vec<String> {
    list.nets.iter().map(|net| crate::terms::shown(*net)).chain(list.names.iter().cloned()).collect()
}

#[test]
fn no_jail_is_enabled_by_default() {
    let jails = config(&[]).jails;
    assert_eq!(jails.iter().map(|jail| jail.name.as_str()).collect::<Vec<_>>(), ["manual"]);
}

#[test]
fn built_in_values_are_those_of_the_design() {
    let texts = [("jail.d/mine.toml", "enabled = true\nfilter = 'sshd'\nlogpath = '/x'\nport = 22")];
    let mine = jail(&texts, "mine");
    let ten_minutes = Span::from_secs(600);
    assert_eq!((mine.bantime, mine.findtime, mine.maxretry), (Lasting::For(ten_minutes), ten_minutes, 5));
    assert_eq!((mine.ignoreself, mine.ipv6_prefix, mine.hooks.as_slice()), (true, 64, &[Hook::Input][..]));
    let Protocols::List(protocols) = &mine.protocols else { panic!() };
    assert_eq!(protocols.iter().map(|protocol| protocol.name()).collect::<Vec<_>>(), ["tcp", "udp", "udplite", "sctp"]);
}

#[test]
fn the_users_jail_beats_his_defaults() {
    let main = "[defaults]\nbantime = '2h'\n[jail.sshd]\nenabled = true\nbantime = '1h'";
    assert_eq!(jail(&[("banset.toml", main)], "sshd").bantime, HOUR);
}

#[test]
fn the_users_jail_beats_his_defaults_even_from_a_weaker_file() {
    let texts = [("jail.d/sshd.toml", "enabled = true\nbantime = '1h'"), ("banset.toml", "[defaults]\nbantime = '2h'")];
    assert_eq!(jail(&texts, "sshd").bantime, HOUR);
}

#[test]
fn the_users_defaults_beat_a_shipped_jail() {
    assert_eq!(jail(&[ON], "sshd").bantime, HOUR);
    let texts = [ON, ("banset.toml", "[defaults]\nbantime = '2h'")];
    assert_eq!(jail(&texts, "sshd").bantime, Lasting::For(Span::from_secs(7200)));
}

#[test]
fn a_shipped_jail_beats_what_is_built_in() {
    assert_eq!(jail(&[ON], "sshd").findtime, Span::from_secs(3600));
}

#[test]
fn the_main_file_beats_jail_d_and_drop_ins_beat_the_main_file() {
    let weak = ("jail.d/sshd.toml", "enabled = true\nmaxretry = 2\nport = 1\nlabel = 'a'");
    let main = ("banset.toml", "[jail.sshd]\nmaxretry = 3\nport = 2");
    let first = ("banset.d/10.toml", "[jail.sshd]\nmaxretry = 4");
    let second = ("banset.d/20.toml", "[jail.sshd]\nmaxretry = 5");
    let sshd = jail(&[weak, main, first, second], "sshd");
    assert_eq!((sshd.maxretry, sshd.ports, sshd.label.as_deref()), (5, Ports::List(vec![(2, 2)]), Some("a")));
}

#[test]
fn the_environment_beats_every_file() {
    let texts = [
        ("banset.toml", "[daemon]\nloglevel = 'info'\n[nft]\ntable = 'mine'"),
        ("environment", "BANSET_DAEMON__LOGLEVEL=debug\nBANSET_NFT__PRIORITY__FORWARD=-7"),
    ];
    let config = config(&texts);
    assert_eq!((config.daemon.loglevel, config.nft.table.as_str()), (Loglevel::Debug, "mine"));
    assert_eq!(config.nft.priority, Priorities { forward: -7, ..Priorities::default() });
}

#[test]
fn the_environment_speaks_for_daemon_and_nft_only() {
    let loaded = understood(&[("environment", "BANSET_JAIL__SSHD__MAXRETRY=3")]);
    assert_eq!((loaded.report.mistakes, loaded.fatal), (1, true));
}

#[test]
fn tables_merge_key_by_key() {
    let texts = [
        ("banset.toml", "[nft.priority]\ninput = 1\nforward = 2"),
        ("banset.d/x.toml", "[nft]\npriority = { forward = 3 }\nipv6 = 'no'"),
    ];
    assert_eq!(config(&texts).nft.priority, Priorities { input: 1, forward: 3, ..Priorities::default() });
}

#[test]
fn a_list_replaces_a_list() {
    let texts = [ON, ("banset.toml", "[jail.sshd]\nlogpath = ['/a', '/b']"), ("banset.d/x.toml", "[jail.sshd]\nlogpath = '/c'")];
    assert_eq!(jail(&texts, "sshd").logpath, ["/c"]);
}

#[test]
fn ignoreip_of_a_jail_adds_to_that_of_the_defaults() {
    let config = config(&[(
        "banset.toml",
        "[defaults]\nignoreip = '10.0.0.1 a.example'\n[jail.sshd]\nenabled = true\nignoreip = ['192.0.2.0/24']",
    )]);
    let sshd = config.jail("sshd").unwrap();
    assert_eq!(
        (nets(&config.ignore), nets(&sshd.ignore), sshd.ignore_only),
        (vec!["10.0.0.1".to_owned(), "a.example".to_owned()], vec!["192.0.2.0/24".to_owned()], false)
    );
    assert_eq!(config.ignored(sshd).flat_map(nets).collect::<Vec<_>>(), ["10.0.0.1", "a.example", "192.0.2.0/24"]);
}

#[test]
fn ignoreip_only_replaces_that_of_the_defaults() {
    let config =
        config(&[("banset.toml", "[defaults]\nignoreip = '10.0.0.1'\n[jail.sshd]\nenabled = true\nignoreip_only = '192.0.2.1'")]);
    let sshd = config.jail("sshd").unwrap();
    assert_eq!(config.ignored(sshd).flat_map(nets).collect::<Vec<_>>(), ["192.0.2.1"]);
}

#[test]
fn failregex_add_extends_the_filter_from_the_defaults_and_from_the_jail() {
    let main = "[defaults]\nfailregex_add = 'd <HOST>'\n[jail.sshd]\nenabled = true\nfailregex_add = ['j <HOST>']\nignoreregex_add = 'i'";
    let sshd = jail(&[("banset.toml", main)], "sshd");
    let patterns = &sshd.filter.as_ref().unwrap().definition.patterns;
    assert_eq!(patterns.failregex, ["^<HOST>$", "d <HOST>", "j <HOST>"]);
    assert_eq!(patterns.ignoreregex, ["i"]);
}

#[test]
fn the_jails_datepattern_and_maxlines_stand_instead_of_the_filters() {
    let texts = [ON, ("banset.toml", "[jail.sshd]\ndatepattern = '%Y'\nmaxlines = 4")];
    let sshd = jail(&texts, "sshd");
    let definition = &sshd.filter.as_ref().unwrap().definition;
    assert_eq!((definition.datepattern.as_slice(), definition.maxlines), (&["%Y".to_owned()][..], 4));
}

#[test]
fn a_filter_replaces_one_of_its_name_whole() {
    let texts = [
        ON,
        ("filter.d/sshd.toml", "description = 'a'\nfailregex = 'mine <HOST>'"),
        ("banset.toml", "[filter.sshd]\nfailregex = 'newer <HOST>'"),
    ];
    let sshd = jail(&texts, "sshd");
    let definition = &sshd.filter.as_ref().unwrap().definition;
    assert_eq!(
        (definition.description.as_deref(), definition.patterns.failregex.as_slice()),
        (None, &["newer <HOST>".to_owned()][..])
    );
    assert!(definition.modes.is_empty());
}

#[test]
fn a_filters_parameters_replace_whole() {
    let texts = [
        ("jail.d/roundcube-auth.toml", "enabled = true\nfilter = { name = 'roundcube', proxy = '10.0.0.2' }"),
        ("banset.toml", "[jail.roundcube-auth]\nfilter = { name = 'sshd', mode = 'aggressive' }"),
    ];
    let used = jail(&texts, "roundcube-auth").filter.unwrap();
    assert_eq!((used.name.as_str(), used.params), ("sshd", BTreeMap::from([("mode".to_owned(), vec!["aggressive".to_owned()])])));
}

#[test]
fn a_filters_name_has_three_spellings() {
    for filter in ["{ name = 'sshd', mode = 'aggressive' }", "'sshd[mode=aggressive]'", "\"sshd[mode='aggressive']\""] {
        let used = jail(&[("jail.d/sshd.toml", &format!("enabled = true\nfilter = {filter}"))], "sshd").filter.unwrap();
        assert_eq!((used.name.as_str(), used.params["mode"].as_slice()), ("sshd", &["aggressive".to_owned()][..]), "{filter}");
    }
    let used = jail(&[("jail.d/sshd.toml", "enabled = true\nmode = 'aggressive'")], "sshd").filter.unwrap();
    assert_eq!(used.params["mode"], ["aggressive"]);
}

#[test]
fn a_jail_without_filter_uses_the_one_of_its_name() {
    let texts =
        [("filter.d/mine.toml", "failregex = '<HOST>'"), ("jail.d/mine.toml", "enabled = true\nlogpath = '/x'\nport = 'all'")];
    assert_eq!(jail(&texts, "mine").filter.unwrap().name, "mine");
}

#[test]
fn a_parameter_is_read_by_its_kind() {
    let texts = [(
        "banset.toml",
        "[jail.roundcube-auth]\nenabled = true\nfilter = { name = 'roundcube', proxy = '10.0.0.2, 2001:db8::/32' }",
    )];
    assert_eq!(jail(&texts, "roundcube-auth").filter.unwrap().params["proxy"], ["10.0.0.2", "2001:db8::/32"]);
}

#[test]
fn a_mode_for_all_goes_to_the_filters_that_have_it() {
    let config =
        config(&[("banset.toml", "[defaults]\nmode = 'aggressive'\n[jail]\nsshd.enabled = true\nvpopmail.enabled = true")]);
    let params = |name: &str| config.jail(name).unwrap().filter.as_ref().unwrap().params.len();
    assert_eq!((params("sshd"), params("vpopmail")), (1, 0));
}

#[test]
fn every_list_takes_a_scalar_or_words_or_a_list() {
    for port in ["25", "'25'", "['25']", "[25]", "'smtp'", "' smtp , '"] {
        assert_eq!(
            jail(&[ON, ("banset.toml", &format!("[jail.sshd]\nport = {port}"))], "sshd").ports,
            Ports::List(vec![(25, 25)]),
            "{port}"
        );
    }
    for hooks in ["['input', 'forward']", "'forward input'", "'input,forward'", "['forward,input', 'input']"] {
        assert_eq!(
            jail(&[ON, ("banset.toml", &format!("[jail.sshd]\nchain_hook = {hooks}"))], "sshd").hooks,
            [Hook::Input, Hook::Forward],
            "{hooks}"
        );
    }
    for paths in ["'/a /b'", "['/a', '/b']", "'/a,/b'"] {
        assert_eq!(
            jail(&[ON, ("banset.toml", &format!("[jail.sshd]\nlogpath = {paths}"))], "sshd").logpath,
            ["/a", "/b"],
            "{paths}"
        );
    }
    assert_eq!(jail(&[ON, ("banset.toml", "[jail.sshd]\nlogpath = ['/a b']")], "sshd").logpath, ["/a b"]);
}

#[test]
fn ports_are_sorted_and_joined() {
    let ports = |text: &str| jail(&[ON, ("banset.toml", &format!("[jail.sshd]\nport = {text}"))], "sshd").ports;
    assert_eq!(ports("'mail'"), Ports::List([25, 110, 143, 465, 587, 993, 995, 4190].map(|port| (port, port)).to_vec()));
    assert_eq!(ports("'web'"), Ports::List(vec![(80, 80), (443, 443)]));
    assert_eq!(ports("[30, '10-20', '21:29', 25, 5]"), Ports::List(vec![(5, 5), (10, 30)]));
    assert_eq!(ports("'0:65535'"), Ports::All);
    assert_eq!(ports("['all', 25]"), Ports::All);
    assert_eq!(ports("'65534:65535 65535'"), Ports::List(vec![(65534, 65535)]));
}

#[test]
fn durations_are_read_as_fail2ban_reads_them() {
    let table = [
        ("'10m'", 600),
        ("'1h30m'", 5400),
        ("'1d12h'", 129_600),
        ("'1d 12h'", 129_600),
        ("'2w'", 1_209_600),
        ("'1mo'", 2_629_800),
        ("'1y'", 31_557_600),
        ("90", 90),
        ("'90'", 90),
        ("'10 minutes'", 600),
        ("'1y 6mo'", 47_336_400),
        ("'1.5h'", 5400),
        ("1.5", 1),
        ("'1h 30'", 3630),
        ("'2 Hours'", 7200),
    ];
    for (text, secs) in table {
        let found = jail(&[ON, ("banset.toml", &format!("[jail.sshd]\nbantime = {text}"))], "sshd").bantime;
        let Lasting::For(span) = found else { panic!("{text}: {found:?}") };
        assert_eq!(span.secs(), secs, "{text}");
    }
    for text in ["-1", "'-1'", "'permanent'"] {
        assert_eq!(
            jail(&[ON, ("banset.toml", &format!("[jail.sshd]\nbantime = {text}"))], "sshd").bantime,
            Lasting::Permanent,
            "{text}"
        );
    }
}

#[test]
fn priorities_are_read_as_nft_writes_them() {
    for (text, number) in [("-10", -10), ("'filter - 10'", -10), ("'raw'", -300), ("'mangle+5'", -145), ("'7'", 7)] {
        assert_eq!(
            jail(&[ON, ("banset.toml", &format!("[jail.sshd]\npriority = {text}"))], "sshd").priority,
            Some(number),
            "{text}"
        );
    }
}

#[test]
fn a_name_of_a_priority_means_the_number_of_its_family() {
    for (text, number) in
        [("filter", -200), ("filter - 10", -210), ("dstnat", -300), ("out+5", 105), ("srcnat", 300), ("-150", -150)]
    {
        let of_nft = config(&[("banset.toml", &format!("[nft.priority]\nbridge = \"{text}\""))]).nft;
        assert_eq!((of_nft.bridge_priority, of_nft.priority), (number, Priorities::default()), "{text}");
        let of_jail = format!("[jail.sshd]\nfamily = 'bridge'\nchain_hook = 'forward'\npriority = \"{text}\"");
        assert_eq!(jail(&[ON, ("banset.toml", &of_jail)], "sshd").priority, Some(number), "{text}");
    }
    // A jail with chains of both families has its own priority in inet.
    let both = "[jail.sshd]\nfamily = ['inet', 'bridge']\nchain_hook = 'forward'\npriority = 'filter - 5'";
    assert_eq!(jail(&[ON, ("banset.toml", both)], "sshd").priority, Some(-5));
    let input = config(&[("environment", "BANSET_NFT__PRIORITY__INPUT=filter + 1\nBANSET_NFT__PRIORITY__BRIDGE=filter")]).nft;
    assert_eq!((input.priority.input, input.bridge_priority), (1, -200));
}

#[test]
fn mapped_addresses_are_ipv4() {
    let config =
        config(&[("banset.toml", "[defaults]\nignoreip = ['::ffff:192.0.2.1', '::ffff:10.0.0.0/104', '::fffe:0:0/95']")]);
    assert_eq!(
        nets(&config.ignore),
        ["192.0.2.1", "10.0.0.0/8", "::fffe:0:0/95"].map(str::to_owned).iter().map(String::as_str).collect::<Vec<_>>()
    );
}

#[test]
fn manual_hangs_wherever_a_jail_does() {
    let config = config(&[ON, ("banset.toml", "[jail.vpopmail]\nenabled = true\nchain_hook = 'forward'")]);
    let manual = config.jail("manual").unwrap();
    assert_eq!(
        (manual.hooks.as_slice(), &manual.protocols, &manual.ports),
        (&[Hook::Input, Hook::Forward][..], &Protocols::All, &Ports::All)
    );
    assert!(manual.filter.is_none());
}

#[test]
fn a_mistake_in_one_jail_breaks_that_jail_only() {
    let loaded = understood(&[ON, ("banset.toml", "[jail.vpopmail]\nenabled = true\nmaxretry = 0")]);
    let config = loaded.config.unwrap();
    assert!(!loaded.fatal && !loaded.report.is_sound());
    assert!(config.jail("sshd").is_some() && config.jail("vpopmail").is_none());
    assert_eq!(config.broken.iter().map(|broken| broken.name.as_str()).collect::<Vec<_>>(), ["vpopmail"]);
}

#[test]
fn a_jail_that_is_not_enabled_is_not_broken() {
    let loaded = understood(&[ON, ("banset.toml", "[jail.vpopmail]\nmaxretry = 0")]);
    assert_eq!((loaded.report.mistakes, loaded.fatal), (1, false));
    assert_eq!(loaded.config.unwrap().broken, []);
}

#[test]
fn a_mistake_that_concerns_all_leaves_no_configuration() {
    for text in [
        "[defaults]\nmaxretry = 0",
        "[nft]\nipv6 = 3",
        "[daemon]\nsocket = ''",
        "[jail.vpopmail]\nignoreip = 'x!'",
        "[jail.vpopmail",
        "[jails.x]\nport = 1",
    ] {
        let loaded = understood(&[ON, ("banset.toml", text)]);
        assert!(loaded.fatal && loaded.config.is_none(), "{text}");
    }
}

#[test]
fn a_broken_filter_breaks_the_jails_that_use_it() {
    let loaded =
        understood(&[ON, ("filter.d/sshd.toml", "failregex = '(<HOST>'"), ("banset.toml", "jail.vpopmail.enabled = true")]);
    let config = loaded.config.unwrap();
    assert_eq!(config.broken.iter().map(|broken| broken.name.as_str()).collect::<Vec<_>>(), ["sshd"]);
    assert!(config.jail("vpopmail").is_some());
}

#[test]
fn files_are_found_beside_the_main_file() {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("mine.toml", "[daemon]\nloglevel = 'debug'"),
        ("jail.d/sshd.toml", "enabled = true"),
        ("jail.d/ignored.txt", "x"),
        ("jail.d/.hidden.toml", "x"),
        ("jail.d/old.conf", "[sshd]"),
        ("filter.d/sshd.toml", "failregex = 'file <HOST>'"),
        ("banset.d/b.toml", "[jail.sshd]\nmaxretry = 9"),
        ("banset.d/a.toml", "[jail.sshd]\nmaxretry = 8"),
    ] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let paths = Paths { main: dir.path().join("mine.toml"), named: true };
    let environment =
        [("BANSET_NFT__TABLE", "other"), ("HOME", "/root"), ("BANSET_LOG", "x")].map(|(name, value)| (name.into(), value.into()));
    let loaded = understand(&Sources::read(&paths, environment), SHIPPED, &Strict);
    assert_eq!((loaded.report.mistakes, loaded.report.warnings), (0, 1), "{}", loaded.report);
    assert!(loaded.report.to_string().contains("old.conf: warning: not read"), "{}", loaded.report);
    let config = loaded.config.unwrap();
    let sshd = config.jail("sshd").unwrap();
    assert_eq!((config.daemon.loglevel, config.nft.table.as_str(), sshd.maxretry), (Loglevel::Debug, "other", 9));
    assert_eq!(sshd.filter.as_ref().unwrap().definition.patterns.failregex, ["file <HOST>"]);
}

#[test]
fn a_main_file_that_somebody_names_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("x.toml");
    let load = |named| understand(&Sources::read(&Paths { main: main.clone(), named }, []), SHIPPED, &Strict);
    assert!(load(false).report.is_sound());
    let loaded = load(true);
    assert_eq!(loaded.report.to_string(), format!("{}: no such file\n  help: name the main file after -c\n", main.display()));
    assert!(loaded.fatal);
}

#[test]
fn what_was_accepted_is_kept_and_means_the_same_again() {
    let sources = Sources { texts: vec![text("jail.d/sshd.toml", "enabled = true"), text("environment", "BANSET_NFT__TABLE=x")] };
    let again = Sources::from_snapshot(sources.to_snapshot().as_bytes()).unwrap();
    assert_eq!(again, sources);
    assert_eq!(understand(&again, SHIPPED, &Strict).config, understand(&sources, SHIPPED, &Strict).config);
    assert_eq!(Sources::from_snapshot(b"{\"version\":2,\"texts\":[]}"), None);
    assert_eq!(Sources::from_snapshot(b"\xff"), None);
}

#[test]
fn a_reload_says_what_changed() {
    let old = config(&[ON, ("banset.toml", "[jail.vpopmail]\nenabled = true")]);
    let new = config(&[
        ON,
        (
            "banset.toml",
            "[defaults]\nignoreip = '10.0.0.1'\n[jail.sshd]\nbantime = '2d'\nfailregex_add = '<HOST>'\n[jail.qmailadmin]\nenabled = true",
        ),
    ]);
    let lines = show::changes(&old, &new);
    let lines: Vec<&str> = lines.iter().map(|line| if line.contains("patterns") { "patterns" } else { line }).collect();
    assert_eq!(
        lines,
        [
            "ignoreip: nothing -> 10.0.0.1",
            "jail qmailadmin: added",
            "patterns",
            "jail sshd: bantime: 1h -> 2d",
            "jail vpopmail: removed"
        ]
    );
    assert!(show::changes(&new, &new).is_empty());
}
