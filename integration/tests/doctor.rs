//! What `banset doctor` and the daemon's start say of machines where a ban could not bite.

use banset_integration::{Daemon, Lab, Log, have, in_netns, lacking, nft, nft_try};

fn forward(log: &Log, more: &str) -> String {
    format!(
        "[jail.postfix]\nenabled = true\nbackend = \"file\"\nlogpath = {:?}\nport = \"25,2525\"\nchain_hook = \"forward\"\n{more}",
        log.path()
    )
}

/// The parts of the doctor's report about findings, told apart by what is alarming.
fn alarms(report: &str) -> Vec<&str> {
    report.lines().filter(|line| line.starts_with("ALARM")).collect()
}

#[test]
fn a_forward_jail_on_a_machine_that_forwards_nothing_is_told() {
    in_netns("a_forward_jail_on_a_machine_that_forwards_nothing_is_told", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("mail.log"));
        let _ = banset::netns::sysctl("net.ipv4.ip_forward", "0");
        let _ = banset::netns::sysctl("net.ipv6.conf.all.forwarding", "0");
        let daemon = Daemon::start(&lab, &forward(&log, ""));
        daemon.wait_log("forwards nothing");
        let told = daemon.cli(&["doctor"]);
        assert_eq!(told.code, 1, "{told:?}");
        assert!(alarms(&told.out).iter().any(|line| line.contains("[postfix]") && line.contains("forwards nothing")), "{told:?}");
        let json = daemon.cli(&["doctor", "--json"]);
        assert!(json.out.contains("\"bites\":false"), "{json:?}");
    });
}

#[test]
fn translated_ports_and_flowtables_of_others_are_told() {
    in_netns("translated_ports_and_flowtables_of_others_are_told", || {
        if !have("translated_ports_and_flowtables_of_others_are_told", "nft") {
            return;
        }
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("mail.log"));
        banset::netns::sysctl("net.ipv4.ip_forward", "1").expect("ours");
        let jail = forward(&log, "").replace("25,2525", "2525");
        let daemon = Daemon::start(&lab, &jail);
        assert!(!daemon.cli(&["doctor"]).out.contains("published"));
        nft(&["add table ip gate; add chain ip gate pre { type nat hook prerouting priority -100; };\
               add rule ip gate pre tcp dport 2525 dnat to 10.0.0.2:25"]);
        let told = daemon.cli(&["doctor"]);
        assert!(alarms(&told.out).iter().any(|line| line.contains("2525 is published as port 25 (ip gate pre)")), "{told:?}");
        daemon.cli(&["reload"]).ok();
        daemon.wait_log("published as port 25");
        let flowtable = "add table inet gate; add flowtable inet gate fast { hook ingress priority 0; devices = { wan }; }";
        if let Err(why) = nft_try(&[flowtable]) {
            let why = format!("this kernel has no flowtables: {}", why.trim());
            return lacking("translated_ports_and_flowtables_of_others_are_told", &why);
        }
        let told = daemon.cli(&["doctor"]);
        assert!(told.out.contains("flowtable inet gate fast carries open connections past every forward chain"), "{told:?}");
    });
}

#[test]
fn a_bridge_without_br_netfilter_is_told() {
    in_netns("a_bridge_without_br_netfilter_is_told", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("mail.log"));
        let made = std::process::Command::new("ip").args(["link", "add", "br0", "type", "bridge"]).status();
        if !made.is_ok_and(|made| made.success()) {
            return banset_integration::skip("a_bridge_without_br_netfilter_is_told", "no bridges here");
        }
        for (near, far) in [("p0", "q0"), ("p1", "q1")] {
            for args in
                [vec!["link", "add", near, "type", "veth", "peer", "name", far], vec!["link", "set", near, "master", "br0"]]
            {
                assert!(std::process::Command::new("ip").args(&args).status().expect("iproute2").success(), "{args:?}");
            }
        }
        let _ = banset::netns::sysctl("net.ipv4.ip_forward", "0");
        let _ = banset::netns::sysctl("net.bridge.bridge-nf-call-iptables", "0");
        let _ = banset::netns::sysctl("net.bridge.bridge-nf-call-ip6tables", "0");
        let daemon = Daemon::start(&lab, &forward(&log, ""));
        daemon.wait_log("only passes on never reaches a forward chain");
        let told = daemon.cli(&["doctor"]);
        assert!(alarms(&told.out).iter().any(|line| line.contains("br0")), "{told:?}");
        if banset::netns::sysctl("net.bridge.bridge-nf-call-iptables", "1").is_ok() {
            let _ = banset::netns::sysctl("net.bridge.bridge-nf-call-ip6tables", "1");
            let told = daemon.cli(&["doctor"]);
            assert!(!told.out.contains("br0"), "{told:?}");
        }
    });
}

#[test]
fn a_service_on_a_port_that_its_jail_leaves_open_is_told() {
    in_netns("a_service_on_a_port_that_its_jail_leaves_open_is_told", || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth.log"));
        // A program of the service's name that listens.
        let sshd = lab.dir().join("sshd");
        std::fs::copy(env!("CARGO_BIN_EXE_peer"), &sshd).expect("a program can be copied");
        let mut command = std::process::Command::new(&sshd);
        command.args(["serve", "2222", Lab::SERVER4]).stdout(std::process::Stdio::piped());
        banset::netns::die_with_parent(&mut command);
        let mut service = command.spawn().expect("it starts");
        let mut ready = [0; 5];
        std::io::Read::read_exact(service.stdout.as_mut().expect("piped"), &mut ready).expect("it says that it listens");
        let jail =
            |port: &str| format!("[jail.sshd]\nenabled = true\nbackend = \"file\"\nlogpath = {:?}\nport = {port}\n", log.path());
        let daemon = Daemon::start(&lab, &jail("22"));
        daemon.wait_log("sshd listens on port 2222, which the jail does not close");
        let told = daemon.cli(&["doctor"]);
        assert!(told.code == 1 && alarms(&told.out).iter().any(|line| line.contains("port 2222")), "{told:?}");
        daemon.configure(&jail("[22, 2222]"));
        daemon.cli(&["reload"]).ok();
        let told = daemon.cli(&["doctor"]);
        assert!(told.code == 0 && !told.out.contains("2222"), "{told:?}");
        let _ = service.kill();
        let _ = service.wait();
    });
}
