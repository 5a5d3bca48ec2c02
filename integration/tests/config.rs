//! Configurations that are broken while a daemon runs, or when it starts: what is mended is mended by a reload, what was
//! protected stays protected.

use banset_integration::{Daemon, Lab, Log, assert_same_text, elements, in_netns, nft, wait_banned, wait_until};

fn jails(mail: &Log, auth: &Log, sshd: &str) -> String {
    format!(
        "[jail.smtp-auth]\nenabled = true\nlogpath = {:?}\nmaxretry = 3\n\n[jail.sshd]\nenabled = true\nlogpath = {:?}\n{sshd}\n",
        mail.path(),
        auth.path()
    )
}

#[test]
fn a_jail_broken_at_a_restart_keeps_its_bans_and_rules_and_the_others_run() {
    in_netns("a_jail_broken_at_a_restart_keeps_its_bans_and_rules_and_the_others_run", || {
        let lab = Lab::new();
        let (mail, mut auth) = (Log::create(lab.dir().join("mail")), Log::create(lab.dir().join("auth.log")));
        let mut daemon = Daemon::start(&lab, &jails(&mail, &auth, "maxretry = 3"));
        daemon.wait_running();
        auth.fail("198.51.100.7", 3);
        wait_banned("sshd-v4", "198.51.100.7");
        let before = nft(&["-s", "-a", "list", "ruleset"]);

        daemon.configure(&jails(&mail, &auth, "maxretry = \"three\""));
        daemon.restart();
        assert_same_text("the ruleset with a broken jail", &before, &nft(&["-s", "-a", "list", "ruleset"]));
        let jail = daemon.jail("sshd");
        assert_eq!((jail["state"].as_str(), jail["bans"]["current"].as_u64()), (Some("broken"), Some(1)), "{jail}");
        assert!(jail["why"].as_str().is_some_and(|why| why.contains("banset.toml:") && why.contains("maxretry")), "{jail}");
        wait_until("the other jail runs", || daemon.jail("smtp-auth")["state"] == "running");
        assert!(daemon.log().contains("maxretry"), "{}", daemon.log());
        assert_eq!(daemon.cli(&["unban", "198.51.100.7"]).code, 0, "a ban of a broken jail can be lifted");

        daemon.configure(&jails(&mail, &auth, "maxretry = 3"));
        daemon.cli(&["reload"]).ok();
        daemon.wait_running();
        auth.fail("198.51.100.8", 3);
        wait_banned("sshd-v4", "198.51.100.8");
    });
}

#[test]
fn a_start_on_a_file_that_does_not_parse_goes_on_with_what_was_accepted() {
    in_netns("a_start_on_a_file_that_does_not_parse_goes_on_with_what_was_accepted", || {
        let lab = Lab::new();
        let (mail, mut auth) = (Log::create(lab.dir().join("mail")), Log::create(lab.dir().join("auth.log")));
        let mut daemon = Daemon::start(&lab, &jails(&mail, &auth, "maxretry = 3"));
        daemon.wait_running();
        daemon.configure("[defaults\nmaxretry = 3\n");
        daemon.restart();
        let status = daemon.status();
        assert!(status["degraded"].as_str().is_some_and(|why| why.contains("last accepted")), "{status}");
        auth.fail("198.51.100.7", 3);
        wait_banned("sshd-v4", "198.51.100.7");
        let refused = daemon.cli(&["reload"]);
        assert_eq!(refused.code, 1, "{refused:?}");
        daemon.configure(&jails(&mail, &auth, "maxretry = 4"));
        let told = daemon.cli(&["reload"]).ok();
        assert!(told.contains("maxretry"), "{told}");
        assert!(daemon.status()["degraded"].is_null());
        assert_eq!(elements("sshd-v4"), ["198.51.100.7"]);
    });
}

#[test]
fn a_start_on_nothing_but_mistakes_leaves_the_kernel_as_it_stands_until_a_reload_succeeds() {
    in_netns("a_start_on_nothing_but_mistakes_leaves_the_kernel_as_it_stands_until_a_reload_succeeds", || {
        let lab = Lab::new();
        let (mail, mut auth) = (Log::create(lab.dir().join("mail")), Log::create(lab.dir().join("auth.log")));
        let mut daemon = Daemon::start(&lab, &jails(&mail, &auth, "maxretry = 3"));
        daemon.wait_running();
        auth.fail("198.51.100.7", 3);
        wait_banned("sshd-v4", "198.51.100.7");
        daemon.stop();
        std::fs::remove_file(lab.dir().join("banset/state/accepted.json")).expect("the accepted configuration was kept");
        let before = nft(&["-s", "-a", "list", "ruleset"]);

        daemon.configure("[defaults]\nignoreip = [\"10.0.0.300\"]\n");
        daemon.start_again();
        assert_same_text("the ruleset under a daemon without jails", &before, &nft(&["-s", "-a", "list", "ruleset"]));
        let status = daemon.status();
        assert!(status["degraded"].as_str().is_some_and(|why| why.contains("ignoreip")), "{status}");

        daemon.configure(&jails(&mail, &auth, "maxretry = 3"));
        daemon.cli(&["reload"]).ok();
        assert_eq!(daemon.cli(&["banned", "198.51.100.7"]).code, 0, "what the kernel held is held again");
        assert_same_text("the ruleset after the reload", &before, &nft(&["-s", "-a", "list", "ruleset"]));
    });
}

#[test]
fn config_show_tells_what_the_daemon_does_not_know_yet() {
    in_netns("config_show_tells_what_the_daemon_does_not_know_yet", || {
        let lab = Lab::new();
        let (mail, auth) = (Log::create(lab.dir().join("mail")), Log::create(lab.dir().join("auth.log")));
        let daemon = Daemon::start(&lab, &jails(&mail, &auth, "maxretry = 3"));
        daemon.wait_running();
        let shown = daemon.cli(&["config", "show"]).ok();
        assert!(shown.contains("the running daemon goes by this"), "{shown}");
        assert!(shown.lines().any(|line| line.contains("maxretry") && line.contains("banset.toml:")), "{shown}");
        daemon.configure(&jails(&mail, &auth, "maxretry = 7"));
        let shown = daemon.cli(&["config", "show"]).ok();
        assert!(shown.contains("does not know yet") && shown.contains("maxretry"), "{shown}");
        assert_eq!(daemon.cli(&["config", "example"]).code, 0);
    });
}
