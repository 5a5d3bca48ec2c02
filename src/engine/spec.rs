//! What the engine needs of a configuration: each jail's policy, its sets, and what it watches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::core::JailId;
use crate::config::run::{self, Config};
use crate::filter::Filter;
use crate::jail::{Counting, Growth, Policy};
use crate::nft::Interval;
use crate::terms::journal::{Journal, Match};
use crate::terms::{Blocktype, Family, Hook, Ports, Protocols, fold};

/// Host names and the addresses they had when they last resolved.
pub type Resolved = BTreeMap<String, Vec<IpAddr>>;

/// The addresses of some names, as far as they are known.
pub fn addresses(resolved: &Resolved, names: &[String]) -> impl Iterator<Item = IpNetwork> {
    names.iter().filter_map(|name| resolved.get(name)).flatten().map(|address| IpNetwork::from(fold(*address)))
}

/// A configuration as the engine runs it.
#[derive(Clone, Debug)]
pub struct Specs {
    /// The family of the table that is always there: bans without a jail stand in it. For all tables see [`Specs::families`].
    pub family: Family,
    /// The table's name.
    pub table: String,
    /// The jails, sorted by name.
    pub jails: Vec<Arc<Spec>>,
    /// Jails that can not run, and why.
    pub broken: Vec<(String, String)>,
    /// ignoreip of the defaults.
    pub ignore: Vec<IpNetwork>,
    /// Host names among it.
    pub ignore_names: Arc<[String]>,
    /// Whether there are sets and rules for IPv6.
    pub ipv6: bool,
    /// What else `[nft]` says.
    pub nft: run::Nft,
    /// What `[daemon]` says.
    pub daemon: run::Daemon,
    /// What is kept of the lines behind a ban.
    pub evidence: run::Evidence,
    /// The accepted files, as `config::Sources` keeps them.
    pub accepted: Arc<str>,
    /// What differs from the specs before, a line each.
    pub changes: Vec<String>,
    /// Why these are not what the files say now, if so: the daemon goes on with the last accepted configuration, or with none.
    pub degraded: Option<String>,
}

impl Default for Specs {
    fn default() -> Specs {
        let nft = run::Nft::default();
        Specs {
            family: Family::Inet,
            table: nft.table.clone(),
            jails: Vec::new(),
            broken: Vec::new(),
            ignore: Vec::new(),
            ignore_names: Arc::default(),
            ipv6: true,
            nft,
            daemon: run::Daemon::default(),
            evidence: run::Evidence::default(),
            accepted: "".into(),
            changes: Vec::new(),
            degraded: None,
        }
    }
}

/// A compiled filter; two are the same if they are one.
#[derive(Clone, Debug)]
pub struct Compiled(pub Arc<Filter>);

impl PartialEq for Compiled {
    fn eq(&self, other: &Compiled) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Entries of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// Which journal.
    pub journal: Journal,
    /// Which of its entries.
    pub wanted: Match,
}

/// One jail.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Given when the engine takes it in.
    pub id: Option<JailId>,
    /// Its name.
    pub name: String,
    /// What it does with failures.
    pub policy: Policy,
    /// ignoreip that hold for it: the defaults', if they do.
    pub default_ignore: Arc<[IpNetwork]>,
    /// Its own ignoreip.
    pub own_ignore: Arc<[IpNetwork]>,
    /// Host names whose addresses it ignores: the defaults', if they hold for it, and its own.
    pub ignore_names: Arc<[String]>,
    /// Those of its own, which the kernel's ignore set of all jails does not hold.
    pub own_names: Arc<[String]>,
    /// Whether own addresses are ignored.
    pub ignoreself: bool,
    /// The set of IPv4 addresses, or of the prefixes they are banned by.
    pub set_v4: Arc<str>,
    /// The set of IPv6 prefixes.
    pub set_v6: Arc<str>,
    /// The set of IPv4 subnets of other lengths, which exists once there is one.
    pub set_net4: Arc<str>,
    /// The set of IPv6 subnets and exact addresses, which exists once there is one.
    pub set_net6: Arc<str>,
    /// Ports of its rules.
    pub ports: Ports,
    /// The same for people.
    pub ports_text: String,
    /// Protocols of its rules.
    pub protocols: Protocols,
    /// Where its rules stand, and at which priority, in the `inet` table.
    pub hooks: Vec<(Hook, i32)>,
    /// The same in the `bridge` table.
    pub bridge_hooks: Vec<(Hook, i32)>,
    /// The tables it stands in.
    pub families: Vec<Family>,
    /// Whether the port that the client of a translated connection knows counts too.
    pub dnat: bool,
    /// What its rules do.
    pub blocktype: Blocktype,
    /// `auto`, `file` or `journal`.
    pub backend: &'static str,
    /// Paths and globs it watches.
    pub patterns: Vec<String>,
    /// The entries it may be about, where it may read a journal.
    pub journal: Option<Entries>,
    /// The filter's name.
    pub filter_name: Option<String>,
    /// The filter as written, with the jail's parameters.
    pub filter: Option<run::FilterUse>,
    /// The same, ready to judge.
    pub compiled: Option<Compiled>,
    /// Ready to judge lines of a journal, where those are judged by other patterns: those of fail2ban's files are.
    pub on_journal: Option<Compiled>,
    /// The zone of stamps that name none.
    pub logtimezone: Option<jiff::tz::TimeZone>,
    /// For people.
    pub label: Option<String>,
    /// Why it judges nothing, if so: its configuration is broken, its bans and rules stand as last accepted.
    pub broken: Option<String>,
}

impl Spec {
    /// The set a subject's element stands in.
    pub fn set(&self, subject: IpNetwork) -> Arc<str> {
        let set = match (subject.is_ipv4(), self.policy.is_net(subject)) {
            (true, false) => &self.set_v4,
            (false, false) => &self.set_v6,
            (true, true) => &self.set_net4,
            (false, true) => &self.set_net6,
        };
        set.clone()
    }

    /// The element of a subject in its set.
    pub fn element(&self, subject: IpNetwork) -> Interval {
        if self.policy.is_net(subject) { subject.into() } else { subject.network().into() }
    }

    /// The subject that an element of one of its sets stands for; `None` where that is no subnet.
    pub fn subject(&self, set: &str, element: Interval) -> Option<IpNetwork> {
        if self.is_net_set(set) { element.network() } else { Some(self.policy.prefixed(element.first())) }
    }

    /// Whether a set holds subnets.
    pub fn is_net_set(&self, set: &str) -> bool {
        *self.set_net4 == *set || *self.set_net6 == *set
    }

    /// Whether a set is one of this jail's.
    pub fn holds(&self, set: &str) -> bool {
        *self.set_v4 == *set || *self.set_v6 == *set || self.is_net_set(set)
    }

    /// Where its rules stand in the table of a family; `None`: it is not in that table.
    pub fn hooks_in(&self, family: Family) -> Option<&[(Hook, i32)]> {
        self.families.contains(&family).then_some(match family {
            Family::Inet => &self.hooks,
            Family::Bridge => &self.bridge_hooks,
        })
    }

    /// Whether it counts the bans of other jails instead of lines.
    pub fn is_fed(&self) -> bool {
        self.name == run::RECIDIVE && self.filter.is_none()
    }

    /// Everything it ignores by configuration, host names as they resolve now.
    pub fn ignored(&self, names: &Resolved) -> impl Iterator<Item = IpNetwork> {
        self.default_ignore.iter().chain(self.own_ignore.iter()).copied().chain(addresses(names, &self.ignore_names))
    }

    /// What the kernel ignores for this jail alone.
    pub fn own_ignored(&self, names: &Resolved) -> Vec<IpNetwork> {
        self.own_ignore.iter().copied().chain(addresses(names, &self.own_names)).collect()
    }
}

impl Specs {
    /// The families that have a table: that of [`Specs::family`], and those that a jail asks for.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        let used = |family: &Family| *family == self.family || self.jails.iter().any(|spec| spec.families.contains(family));
        Family::ALL.into_iter().filter(used)
    }

    /// Every host name that has to be resolved.
    pub fn names(&self) -> BTreeSet<String> {
        let jails = self.jails.iter().flat_map(|spec| spec.ignore_names.iter());
        self.ignore_names.iter().chain(jails).cloned().collect()
    }

    /// Keeps the bans and rules of jails that are broken now standing as `last`, an earlier configuration, had them.
    pub fn keep_broken(&mut self, last: &Specs) {
        for (name, why) in std::mem::take(&mut self.broken) {
            match last.jails.iter().find(|spec| spec.name == name) {
                Some(spec) => {
                    let standing = Spec {
                        broken: Some(why),
                        patterns: Vec::new(),
                        journal: None,
                        filter: None,
                        compiled: None,
                        on_journal: None,
                        ..(**spec).clone()
                    };
                    self.jails.push(Arc::new(standing));
                }
                None => self.broken.push((name, why)),
            }
        }
        self.jails.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// From a configuration that is already right.
    pub fn new(config: &Config) -> Specs {
        let default_ignore: Arc<[IpNetwork]> = config.ignore.nets.iter().copied().collect();
        let jails = config.jails.iter().map(|jail| Arc::new(spec(config, jail, &default_ignore))).collect();
        let broken = config.broken.iter().map(|broken| (broken.name.clone(), broken.why.clone())).collect();
        let table = config.nft.table.clone();
        Specs {
            family: Family::Inet,
            table,
            jails,
            broken,
            ignore: config.ignore.nets.clone(),
            ignore_names: config.ignore.names.iter().cloned().collect(),
            ipv6: config.nft.ipv6 != run::Tristate::No,
            nft: config.nft.clone(),
            daemon: config.daemon.clone(),
            evidence: config.evidence,
            accepted: "".into(),
            changes: Vec::new(),
            degraded: None,
        }
    }
}

fn spec(config: &Config, jail: &run::Jail, default_ignore: &Arc<[IpNetwork]>) -> Spec {
    let increment = &jail.increment;
    let growth = increment.enabled.then(|| Growth {
        factor: increment.factor,
        multipliers: increment.multipliers.clone(),
        maxtime: increment.maxtime,
        spread: increment.rndtime,
        memory: increment.memory,
        all_jails: increment.overalljails,
    });
    // Where offences in every jail count, every jail remembers its own.
    let everywhere = config.jails.iter().map(|jail| &jail.increment).filter(|other| other.enabled && other.overalljails);
    let everywhere = everywhere.map(|other| other.memory).max();
    let own = increment.enabled.then_some(increment.memory);
    let remember = own.max(everywhere).unwrap_or_default();
    let counting = match jail.window {
        run::Window::Sliding => Counting::Sliding,
        run::Window::Fail2ban => Counting::Fail2ban,
    };
    Spec {
        id: None,
        name: jail.name.clone(),
        policy: Policy {
            maxretry: jail.maxretry,
            findtime: jail.findtime,
            bantime: jail.bantime,
            counting,
            ipv4_prefix: jail.ipv4_prefix,
            ipv6_prefix: jail.ipv6_prefix,
            aggregate: jail.aggregate,
            growth,
            remember,
            observe: jail.observe,
        },
        default_ignore: if jail.ignore_only { Arc::default() } else { default_ignore.clone() },
        own_ignore: jail.ignore.nets.iter().copied().collect(),
        ignore_names: config.ignored(jail).flat_map(|list| list.names.iter().cloned()).collect(),
        own_names: jail.ignore.names.iter().cloned().collect(),
        ignoreself: jail.ignoreself,
        set_v4: format!("{}-v4", jail.name).into(),
        set_v6: format!("{}-v6", jail.name).into(),
        set_net4: format!("{}-net4", jail.name).into(),
        set_net6: format!("{}-net6", jail.name).into(),
        ports: jail.ports.clone(),
        ports_text: ports_text(&jail.ports),
        protocols: jail.protocols.clone(),
        hooks: jail.hooks.iter().map(|hook| (*hook, jail.priority.unwrap_or(config.nft.priority.of(*hook)))).collect(),
        bridge_hooks: jail.hooks.iter().map(|hook| (*hook, config.bridge_priority(jail))).collect(),
        families: jail.families.clone(),
        dnat: jail.dnat,
        blocktype: jail.blocktype,
        backend: match jail.backend {
            run::Backend::Auto => "auto",
            run::Backend::File => "file",
            run::Backend::Journal => "journal",
        },
        patterns: if jail.backend == run::Backend::Journal { Vec::new() } else { jail.logpath.clone() },
        journal: jail.entries.clone().map(|wanted| Entries { journal: jail.journal.clone(), wanted }),
        filter_name: jail.filter.as_ref().map(|filter| filter.name.clone()),
        filter: jail.filter.clone(),
        compiled: None,
        on_journal: None,
        logtimezone: jail.logtimezone.clone(),
        label: jail.label.clone(),
        broken: None,
    }
}

fn ports_text(ports: &Ports) -> String {
    match ports {
        Ports::All => "all".to_owned(),
        Ports::List(list) => {
            let one = |(first, last): &(u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
            list.iter().map(one).collect::<Vec<_>>().join(",")
        }
    }
}
