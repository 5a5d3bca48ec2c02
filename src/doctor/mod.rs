//! What would keep a ban from biting: the machine's facts held against what the jails mean to do.
//!
//! [`facts`] looks, [`examine`] judges. The judging half opens nothing: a machine can be written down as a value, and is, in the
//! tests. A finding names the jails, says what is so and what to do; one that does not [`bite`](Finding::bites) means that bans of
//! those jails do not reach the packets at all, and is told in the daemon's log at every start and reload, too.

pub mod facts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::config::run::MANUAL;
use crate::engine::{Spec, Specs};
use crate::terms::{Family, Hook, Ports};

/// What the doctor looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Bridges with at least one port, and the ports of each.
    pub bridges: Vec<Bridge>,
    /// Whether frames that are only bridged are shown to `inet` chains (br_netfilter, `bridge-nf-call-iptables`); `None`: the
    /// module is not loaded.
    pub bridged_v4: Option<bool>,
    /// The same for IPv6.
    pub bridged_v6: Option<bool>,
    /// Whether IPv4 or IPv6 is routed through this machine.
    pub forwards: bool,
    /// Ports that rules of others translate.
    pub published: Vec<Published>,
    /// Flowtables of others, as nft(8) names them.
    pub flowtables: Vec<String>,
    /// Sockets that listen on other than loopback addresses.
    pub listening: Vec<Listening>,
}

/// A bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// How many links it joins.
    pub ports: usize,
    /// Whether it shows its frames to `inet` chains although the system's default does not (`nf_call_iptables`).
    pub shows: bool,
}

/// A port that is translated to another address or port (DNAT).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The rule's table and chain, as nft(8) names them.
    pub by: String,
    /// The ports a client knows; `None`: the rule names none.
    pub outside: Option<(u16, u16)>,
    /// The port it becomes; `None`: it stays.
    pub inside: Option<u16>,
}

/// A socket that waits for connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listening {
    /// The TCP port.
    pub port: u16,
    /// The program, if that may be known.
    pub program: Option<String>,
}

/// Something an admin should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The jails it is about; none: all of them.
    pub jails: Vec<String>,
    /// Whether bans do bite all the same, at least in part.
    pub bites: bool,
    /// What is so.
    pub what: String,
    /// What to do.
    pub help: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.jails.is_empty() {
            write!(f, "[{}] ", self.jails.join("] ["))?;
        }
        write!(f, "{}\n  help: {}", self.what, self.help)
    }
}

/// What a jail means to do, as far as packets are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aim {
    /// Its name.
    pub jail: String,
    /// Its filter's name, by which its service is known.
    pub filter: Option<String>,
    /// The ports it closes.
    pub ports: Ports,
    /// Where.
    pub hooks: Vec<Hook>,
    /// In which tables.
    pub families: Vec<Family>,
    /// Whether it also closes the ports that clients know.
    pub dnat: bool,
}

impl Aim {
    /// Those of the jails that run.
    pub fn all(specs: &Specs) -> Vec<Aim> {
        let aim = |spec: &Arc<Spec>| Aim {
            jail: spec.name.clone(),
            filter: spec.filter_name.clone(),
            ports: spec.ports.clone(),
            hooks: spec.hooks.iter().map(|(hook, _)| *hook).collect(),
            families: spec.families.clone(),
            dnat: spec.dnat,
        };
        // The jail for bans by hand stands wherever any other does: it has nothing of its own to say.
        specs.jails.iter().filter(|spec| spec.name != MANUAL).map(aim).collect()
    }

    fn closes(&self, port: u16) -> bool {
        match &self.ports {
            Ports::All => true,
            Ports::List(ranges) => ranges.iter().any(|(first, last)| (*first..=*last).contains(&port)),
        }
    }

    /// Whether it closes ports to packets that pass through, in `inet`.
    fn routes(&self) -> bool {
        self.families.contains(&Family::Inet) && self.hooks.contains(&Hook::Forward)
    }

    /// Whether it meets a packet before anybody translates it.
    fn is_early(&self) -> bool {
        self.families.contains(&Family::Inet) && self.hooks.contains(&Hook::Prerouting)
    }
}

/// Services whose program is known by the beginning of their filter's name.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("sshd", &["sshd"]),
    ("dropbear", &["dropbear"]),
    ("dovecot", &["dovecot", "imap-login", "pop3-login"]),
    ("postfix", &["master"]),
    ("exim", &["exim4", "exim"]),
    ("sendmail", &["sendmail", "sendmail-mta"]),
    ("courier", &["couriertcpd"]),
    ("cyrus", &["cyrmaster", "cyrus-master"]),
    ("vsftpd", &["vsftpd"]),
    ("proftpd", &["proftpd"]),
    ("pure-ftpd", &["pure-ftpd"]),
    ("apache", &["apache2", "httpd"]),
    ("nginx", &["nginx"]),
    ("named", &["named"]),
    ("mysqld", &["mysqld", "mariadbd"]),
    ("mongodb", &["mongod"]),
    ("asterisk", &["asterisk"]),
    ("slapd", &["slapd"]),
    ("squid", &["squid"]),
    ("haproxy", &["haproxy"]),
    ("openvpn", &["openvpn"]),
];

/// Rules that are named where several publish a port.
const NAMED: usize = 3;

/// Holds the facts against the aims. Jails with the same trouble share a finding.
pub fn examine(facts: &Facts, aims: &[Aim]) -> Vec<Finding> {
    let mut findings = Vec::new();
    bridged(facts, aims, &mut findings);
    forwarded(facts, aims, &mut findings);
    translated(facts, aims, &mut findings);
    offloaded(facts, aims, &mut findings);
    elsewhere(facts, aims, &mut findings);
    findings
}

fn names<'a>(aims: impl IntoIterator<Item = &'a Aim>) -> Vec<String> {
    aims.into_iter().map(|aim| aim.jail.clone()).collect()
}

/// Frames that are only bridged reach `inet` chains with br_netfilter alone.
fn bridged(facts: &Facts, aims: &[Aim], findings: &mut Vec<Finding>) {
    let joining: Vec<&Bridge> = facts.bridges.iter().filter(|bridge| bridge.ports > 1).collect();
    let without_bridge: Vec<&Aim> = aims.iter().filter(|aim| !aim.families.contains(&Family::Bridge)).collect();
    for (version, shown) in [("IPv4", facts.bridged_v4), ("IPv6", facts.bridged_v6)] {
        let blind: Vec<&str> =
            joining.iter().filter(|b| shown != Some(true) && !(b.shows && version == "IPv4")).map(|b| b.name.as_str()).collect();
        let concerned: Vec<&Aim> = without_bridge.iter().filter(|aim| aim.routes()).copied().collect();
        if blind.is_empty() || concerned.is_empty() {
            continue;
        }
        let why = match shown {
            None => "br_netfilter is not loaded",
            Some(_) if version == "IPv4" => "net.bridge.bridge-nf-call-iptables is 0",
            Some(_) => "net.bridge.bridge-nf-call-ip6tables is 0",
        };
        findings.push(Finding {
            jails: names(concerned),
            bites: facts.forwards,
            what: format!(
                "{version} that bridge {} only passes on never reaches a forward chain of family inet: {why}",
                blind.join(", ")
            ),
            help: "write family = \"bridge\" in the jail, or load br_netfilter and set that sysctl to 1".to_owned(),
        });
    }
    let lonely: Vec<&Aim> = aims.iter().filter(|aim| aim.families == [Family::Bridge]).collect();
    if facts.bridges.is_empty() && !lonely.is_empty() {
        findings.push(Finding {
            jails: names(lonely),
            bites: false,
            what: "family is bridge, and there is no bridge on this machine".to_owned(),
            help: "set up the bridge, or write family = \"inet\"".to_owned(),
        });
    }
}

/// A forward chain on a machine that forwards nothing.
fn forwarded(facts: &Facts, aims: &[Aim], findings: &mut Vec<Finding>) {
    let only_forward = |aim: &&Aim| aim.families == [Family::Inet] && aim.hooks.iter().all(|hook| *hook == Hook::Forward);
    let concerned: Vec<&Aim> = aims.iter().filter(only_forward).collect();
    let bridges = facts.bridges.iter().any(|bridge| bridge.ports > 1);
    if !facts.forwards && !bridges && !concerned.is_empty() {
        findings.push(Finding {
            jails: names(concerned),
            bites: false,
            what: "chain_hook is forward, and this machine forwards nothing: net.ipv4.ip_forward is 0 and there is no bridge"
                .to_owned(),
            help: "write chain_hook = \"input\" where the services run on this machine".to_owned(),
        });
    }
}

/// Published ports: what a chain after DNAT sees is not what the client asked for.
fn translated(facts: &Facts, aims: &[Aim], findings: &mut Vec<Finding>) {
    // A port that is published for IPv4 and IPv6, by two rules, is one port. On the node of a cluster there are tens of thousands of rules.
    let mut published = BTreeMap::<_, BTreeSet<&str>>::new();
    for one in &facts.published {
        if let Some(outside) = one.outside {
            published.entry((outside, one.inside)).or_default().insert(&one.by);
        }
    }
    for (((first, last), inside), rules) in published {
        let more = rules.len().saturating_sub(NAMED);
        let by: Vec<&str> = rules.into_iter().take(NAMED).collect();
        let by = if more == 0 { by.join(", ") } else { format!("{} and {more} more", by.join(", ")) };
        let outside = if first == last { first.to_string() } else { format!("{first}-{last}") };
        let knows = |aim: &&Aim| aim.ports != Ports::All && (aim.closes(first) || aim.closes(last)) && !aim.is_early();
        let missed: Vec<&Aim> = aims
            .iter()
            .filter(knows)
            .filter(|aim| aim.routes() && !aim.dnat && inside.is_some_and(|inside| !aim.closes(inside)))
            .collect();
        if let (false, Some(inside)) = (missed.is_empty(), inside) {
            findings.push(Finding {
                jails: names(missed),
                bites: false,
                what: format!("port {outside} is published as port {inside} ({by}), and a forward chain sees only {inside}"),
                help: format!("write dnat = true in the jail, or add {inside} to its port"),
            });
        }
        let early_or_forward = |aim: &&Aim| !aim.hooks.contains(&Hook::Forward) && !aim.is_early();
        let passed_by: Vec<&Aim> = aims
            .iter()
            .filter(|aim| aim.closes(first) && aim.filter.is_some() && aim.hooks.contains(&Hook::Input))
            .filter(early_or_forward)
            .collect();
        if !passed_by.is_empty() {
            findings.push(Finding {
                jails: names(passed_by),
                bites: false,
                what: format!("port {outside} is published to another host or container ({by}): its packets never reach input"),
                help: "write chain_hook = [\"input\", \"forward\"] and dnat = true in the jail".to_owned(),
            });
        }
    }
}

/// A flowtable takes packets of open connections past every forward chain.
fn offloaded(facts: &Facts, aims: &[Aim], findings: &mut Vec<Finding>) {
    let concerned: Vec<&Aim> = aims.iter().filter(|aim| aim.routes() && !aim.is_early()).collect();
    if !facts.flowtables.is_empty() && !concerned.is_empty() {
        findings.push(Finding {
            jails: names(concerned),
            bites: true,
            what: format!(
                "flowtable {} carries open connections past every forward chain: a ban ends no open connection",
                facts.flowtables.join(", ")
            ),
            help: "new connections are cut; to cut open ones too, leave the jail's ports out of the flowtable".to_owned(),
        });
    }
}

/// The service listens where the jail closes nothing.
fn elsewhere(facts: &Facts, aims: &[Aim], findings: &mut Vec<Finding>) {
    for aim in aims.iter().filter(|aim| aim.hooks.contains(&Hook::Input) && aim.ports != Ports::All) {
        let Some(filter) = &aim.filter else { continue };
        let Some((_, programs)) = PROGRAMS.iter().find(|(name, _)| filter.starts_with(name)) else { continue };
        let open = |listening: &&Listening| listening.program.as_deref().is_some_and(|program| programs.contains(&program));
        let ports: Vec<u16> = facts.listening.iter().filter(open).map(|listening| listening.port).collect();
        let missing: Vec<String> = ports.iter().filter(|port| !aim.closes(**port)).map(u16::to_string).collect();
        if !missing.is_empty() {
            findings.push(Finding {
                jails: vec![aim.jail.clone()],
                // Some of its ports closed is what a jail for a part of a service wants; none closed can not be meant.
                bites: ports.iter().any(|port| aim.closes(*port)),
                what: format!("{} listens on port {}, which the jail does not close", programs[0], missing.join(", ")),
                help: format!("add {} to its port, unless it is meant to stay open", missing.join(", ")),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aim(hooks: &[Hook], families: &[Family], ports: &[u16]) -> Aim {
        let ranges = ports.iter().map(|port| (*port, *port)).collect();
        Aim {
            jail: "smtp".into(),
            filter: Some("postfix".into()),
            ports: Ports::List(ranges),
            hooks: hooks.to_vec(),
            families: families.to_vec(),
            dnat: false,
        }
    }

    fn told(facts: &Facts, aim: &Aim) -> Vec<(bool, String)> {
        examine(facts, std::slice::from_ref(aim)).into_iter().map(|finding| (finding.bites, finding.what)).collect()
    }

    fn bridge(shows: bool) -> Vec<Bridge> {
        vec![Bridge { name: "br0".into(), ports: 2, shows }]
    }

    #[test]
    fn a_bridge_without_br_netfilter_is_not_seen_by_inet() {
        let forward = aim(&[Hook::Forward], &[Family::Inet], &[25]);
        let blind = Facts { bridges: bridge(false), ..Facts::default() };
        let told_blind = told(&blind, &forward);
        assert_eq!(told_blind.len(), 2, "{told_blind:?}");
        assert!(told_blind[0].1.contains("br0") && told_blind[0].1.contains("br_netfilter is not loaded"), "{told_blind:?}");
        assert!(!told_blind[0].0);
        let off = Facts { bridged_v4: Some(true), bridged_v6: Some(false), ..blind.clone() };
        let told_off = told(&off, &forward);
        assert!(told_off.len() == 1 && told_off[0].1.contains("ip6tables is 0"), "{told_off:?}");
        let on = Facts { bridged_v4: Some(true), bridged_v6: Some(true), ..blind.clone() };
        assert_eq!(told(&on, &forward), []);
        assert_eq!(told(&blind, &aim(&[Hook::Forward], &[Family::Inet, Family::Bridge], &[25])), []);
        assert_eq!(told(&blind, &aim(&[Hook::Input], &[Family::Inet], &[25])), []);
    }

    #[test]
    fn a_forward_jail_where_nothing_is_forwarded_and_a_bridge_jail_without_a_bridge() {
        let nothing = Facts::default();
        assert!(told(&nothing, &aim(&[Hook::Forward], &[Family::Inet], &[25]))[0].1.contains("forwards nothing"));
        assert!(told(&nothing, &aim(&[Hook::Forward], &[Family::Bridge], &[25]))[0].1.contains("no bridge"));
        assert_eq!(told(&Facts { forwards: true, ..nothing }, &aim(&[Hook::Forward], &[Family::Inet], &[25])), []);
    }

    #[test]
    fn published_ports_are_told_to_jails_that_see_the_translated_one() {
        let published = Published { by: "ip nat prerouting".into(), outside: Some((2525, 2525)), inside: Some(25) };
        let facts = Facts { forwards: true, published: vec![published], ..Facts::default() };
        let forward = aim(&[Hook::Forward], &[Family::Inet], &[2525]);
        assert!(told(&facts, &forward)[0].1.contains("published as port 25"));
        let twice = Facts {
            published: ["ip nat prerouting", "ip6 nat prerouting", "ip nat prerouting"]
                .map(|by| Published { by: by.into(), ..facts.published[0].clone() })
                .to_vec(),
            ..facts.clone()
        };
        let told_twice = told(&twice, &forward);
        assert!(told_twice.len() == 1 && told_twice[0].1.contains("(ip nat prerouting, ip6 nat prerouting)"), "{told_twice:?}");
        // As on the node of a cluster.
        let rules = (0..50_000).map(|n| Published { by: format!("ip nat KUBE-SEP-{n:05}"), ..facts.published[0].clone() });
        let told_of_many = told(&Facts { published: rules.collect(), ..facts.clone() }, &forward);
        assert!(told_of_many.len() == 1 && told_of_many[0].1.contains("SEP-00002 and 49997 more)"), "{told_of_many:?}");
        assert_eq!(told(&facts, &Aim { dnat: true, ..forward.clone() }), []);
        assert_eq!(told(&facts, &aim(&[Hook::Forward], &[Family::Inet], &[25])), []);
        assert_eq!(told(&facts, &aim(&[Hook::Prerouting], &[Family::Inet], &[2525])), []);
        assert!(told(&facts, &aim(&[Hook::Input], &[Family::Inet], &[2525]))[0].1.contains("never reach input"));
    }

    #[test]
    fn a_flowtable_is_told_and_a_service_on_another_port() {
        let facts = Facts { forwards: true, flowtables: vec!["inet fw fast".into()], ..Facts::default() };
        let found = told(&facts, &aim(&[Hook::Forward], &[Family::Inet], &[25]));
        assert!(found[0].0 && found[0].1.contains("inet fw fast"), "{found:?}");
        let listening = vec![
            Listening { port: 25, program: Some("master".into()) },
            Listening { port: 2525, program: Some("master".into()) },
        ];
        let facts = Facts { listening, ..Facts::default() };
        let found = told(&facts, &aim(&[Hook::Input], &[Family::Inet], &[25]));
        assert!(found.len() == 1 && found[0].0 && found[0].1.contains("master listens on port 2525"), "{found:?}");
        assert!(!told(&facts, &aim(&[Hook::Input], &[Family::Inet], &[587]))[0].0, "none of its ports is closed");
    }
}
