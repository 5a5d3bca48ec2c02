//! The configuration as it runs: every value already right.
//!
//! What a person typed is the work of `written`; here a duration is a [`Span`], a port a number, a filter its
//! [`Definition`]. Rooms that act on a configuration see these types and no others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::filter::Definition;
use crate::terms::journal::{Journal, Match};
use crate::terms::{Aggregate, Blocktype, Family, Hook, Lasting, Ports, Protocol, Protocols, Span};

/// Everything the daemon runs on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[daemon]`
    pub daemon: Daemon,
    /// `[nft]`
    pub nft: Nft,
    /// `[evidence]`
    pub evidence: Evidence,
    /// `ignoreip` of `[defaults]`: for every jail that does not set `ignoreip_only`.
    pub ignore: IgnoreList,
    /// Jails that are enabled and sound, sorted by name; [`MANUAL`] is always among them.
    pub jails: Vec<Jail>,
    /// Jails that are enabled and not sound, sorted by name.
    pub broken: Vec<Broken>,
}

/// The name of the jail that takes bans without a jail: it has no filter and no source.
pub const MANUAL: &str = "manual";

/// The name of the jail that is fed by the bans of the others: unless it is given a filter, it has none and no source.
pub const RECIDIVE: &str = "recidive";

/// The daemon's own affairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Daemon {
    /// The control socket.
    pub socket: PathBuf,
    /// The group that may read through the socket.
    pub readers: Option<String>,
    /// The group that may also unban, ignore for a while and see history.
    pub operators: Option<String>,
    /// Where the state lives.
    pub state_dir: PathBuf,
    /// Where the log goes.
    pub log: Log,
    /// How much is logged.
    pub loglevel: Loglevel,
}

/// What is kept of the lines behind a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Lines kept of each ban; 0 to 100.
    pub lines: usize,
    /// How long history is kept, lines and all.
    pub keep: Span,
    /// How account names are kept.
    pub accounts: Accounts,
}

/// How account names are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accounts {
    /// As they stand in the line.
    Plain,
    /// As a keyed hash, by which a name can be looked up; cut out of the line.
    Hash,
    /// Not at all; cut out of the line.
    None,
}

/// Where the daemon's log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Log {
    /// Standard error; under systemd that is the journal.
    Stderr,
    /// The journal's own socket, with fields.
    Journal,
    /// A file, appended to.
    File(PathBuf),
}

/// How much is logged: each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loglevel {
    /// What failed.
    Error,
    /// What may fail soon, and every ban.
    Warning,
    /// What happens.
    Info,
    /// Every failure found while catching up, every netlink batch.
    Debug,
    /// Every line looked at.
    Trace,
}

impl Loglevel {
    /// Every level, the quietest first.
    pub const ALL: [Loglevel; 5] = [Loglevel::Error, Loglevel::Warning, Loglevel::Info, Loglevel::Debug, Loglevel::Trace];

    /// The word a configuration uses.
    pub const fn name(self) -> &'static str {
        match self {
            Loglevel::Error => "error",
            Loglevel::Warning => "warning",
            Loglevel::Info => "info",
            Loglevel::Debug => "debug",
            Loglevel::Trace => "trace",
        }
    }
}

/// What `[nft]` says of our table.
#[derive(Clone, Debug, PartialEq)]
pub struct Nft {
    /// The table's name.
    pub table: String,
    /// Whether IPv6 has sets and rules.
    pub ipv6: Tristate,
    /// The priority of each base chain in the `inet` table; a jail's own [`Jail::priority`] wins.
    pub priority: Priorities,
    /// The priority of the `bridge` table's base chains.
    pub bridge_priority: i32,
    /// Whether the kernel refuses every foreign change of the table.
    pub owner: bool,
    /// The most elements a set holds; the kernel's own bound if not set.
    pub set_size: Option<u32>,
    /// Whether each element counts packets.
    pub element_counters: Tristate,
}

/// Yes, no, or as the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tristate {
    /// Decided at start from what the machine has.
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

/// A priority for each hook, as nft(8) counts them: smaller is earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priorities {
    /// Before connection tracking and DNAT unless written otherwise.
    pub prerouting: i32,
    /// Just before other filters unless written otherwise.
    pub input: i32,
    /// As `input`.
    pub forward: i32,
    /// As `input`.
    pub output: i32,
    /// As `input`.
    pub postrouting: i32,
}

impl Default for Priorities {
    fn default() -> Self {
        Priorities { prerouting: -300, input: -10, forward: -10, output: -10, postrouting: -10 }
    }
}

impl Priorities {
    /// The priority of the base chain at `hook`.
    pub const fn of(&self, hook: Hook) -> i32 {
        match hook {
            Hook::Prerouting => self.prerouting,
            Hook::Input => self.input,
            Hook::Forward => self.forward,
            Hook::Output => self.output,
            Hook::Postrouting => self.postrouting,
        }
    }
    /// Sets the priority of the base chain at `hook`.
    pub const fn set(&mut self, hook: Hook, priority: i32) {
        match hook {
            Hook::Prerouting => self.prerouting = priority,
            Hook::Input => self.input = priority,
            Hook::Forward => self.forward = priority,
            Hook::Output => self.output = priority,
            Hook::Postrouting => self.postrouting = priority,
        }
    }
}

/// Addresses that are never judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnoreList {
    /// Addresses (a full prefix) and subnets, host bits clear, in the order written.
    pub nets: Vec<IpNetwork>,
    /// Host names, to be resolved in the background.
    pub names: Vec<String>,
}

impl IgnoreList {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.nets.is_empty() && self.names.is_empty()
    }
}

/// Policy: which lines count, how many of them ban, for how long, and where a packet of a banned address ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Jail {
    /// Its name, and the beginning of its sets' names.
    pub name: String,
    /// What a line means; `None` for [`MANUAL`] and [`RECIDIVE`].
    pub filter: Option<FilterUse>,
    /// Where lines come from.
    pub backend: Backend,
    /// Files, as globs in the shell's notation, absolute.
    pub logpath: Vec<String>,
    /// The journal it reads, if it reads one.
    pub journal: Journal,
    /// The entries of it that it judges: its own `journalmatch`, else its filter's. `None` if it reads no journal.
    pub entries: Option<Match>,
    /// The ports a ban closes.
    pub ports: Ports,
    /// The protocols a ban closes.
    pub protocols: Protocols,
    /// The base chains a ban bites in, in the order a packet meets them, at least one.
    pub hooks: Vec<Hook>,
    /// The tables a ban stands in, at least one.
    pub families: Vec<Family>,
    /// The priority of its base chains, instead of that of [`Nft::priority`]; see [`Config::bridge_priority`].
    pub priority: Option<i32>,
    /// Whether a connection whose destination was translated is matched by the port its client knows, too.
    pub dnat: bool,
    /// What happens to a packet of a banned address.
    pub blocktype: Blocktype,
    /// Failures within `findtime` that ban; at least 1.
    pub maxretry: u32,
    /// How far back failures count; never zero.
    pub findtime: Span,
    /// How long a ban lasts; never zero.
    pub bantime: Lasting,
    /// How failures are counted.
    pub window: Window,
    /// Its own `ignoreip`, on top of [`Config::ignore`] unless `ignore_only`.
    pub ignore: IgnoreList,
    /// `ignoreip_only`: [`Config::ignore`] does not hold for this jail.
    pub ignore_only: bool,
    /// Whether the machine's own addresses are ignored.
    pub ignoreself: bool,
    /// IPv4 addresses are counted and banned by this prefix; 1 to 32.
    pub ipv4_prefix: u8,
    /// IPv6 addresses are counted and banned by this prefix; 1 to 128.
    pub ipv6_prefix: u8,
    /// Bans a subnet when many of its addresses are banned.
    pub aggregate: Option<Aggregate>,
    /// The zone of stamps that name none; the machine's own if not set.
    pub logtimezone: Option<jiff::tz::TimeZone>,
    /// Decides and logs, but bans nobody.
    pub observe: bool,
    /// A word or sentence for people.
    pub label: Option<String>,
    /// Longer bans for repeat offenders.
    pub increment: Increment,
}

/// A filter as a jail uses it.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterUse {
    /// The filter's name.
    pub name: String,
    /// What the jail sets of its parameters; the jail's `mode` is the parameter `mode`.
    pub params: BTreeMap<String, Vec<String>>,
    /// The filter with the jail's `failregex_add` and `ignoreregex_add` at the end of its lists, and the jail's `datepattern`
    /// and `maxlines` instead of its own where set: what is to be compiled.
    pub definition: Arc<Definition>,
    /// The same for lines of the journal, where the jail may read it and they are judged by other patterns.
    pub on_journal: Option<Arc<Definition>>,
}

/// Where lines come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Files as long as one of them is alive, else the journal.
    Auto,
    /// Files.
    File,
    /// The journal.
    Journal,
}

/// How failures are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// `maxretry` failures within `findtime` ban.
    Sliding,
    /// fail2ban's estimator: an old window's count is scaled to its rate.
    Fail2ban,
}

/// Growth of bantime for repeat offenders.
#[derive(Clone, Debug, PartialEq)]
pub struct Increment {
    /// Whether bans grow.
    pub enabled: bool,
    /// Multiplies the growth.
    pub factor: f64,
    /// Multipliers by number of earlier bans, the last one repeats; powers of two if empty.
    pub multipliers: Vec<f64>,
    /// The longest ban growth leads to.
    pub maxtime: Option<Span>,
    /// A random span up to this is added.
    pub rndtime: Span,
    /// How long an offence is remembered.
    pub memory: Span,
    /// Whether offences in every jail count.
    pub overalljails: bool,
}

/// A jail that is enabled and does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its name.
    pub name: String,
    /// Its first mistake, in one line with its place.
    pub why: String,
}

impl Config {
    /// The jail of that name.
    pub fn jail(&self, name: &str) -> Option<&Jail> {
        self.jails.binary_search_by(|jail| jail.name.as_str().cmp(name)).ok().map(|at| &self.jails[at])
    }

    /// The priority of a jail's chains in the `bridge` table. Its own counts there only if it has no other chains: what is right for
    /// `inet` is near 0, where some kernels never ask a bridge's chain.
    pub fn bridge_priority(&self, jail: &Jail) -> i32 {
        jail.priority.filter(|_| jail.families == [Family::Bridge]).unwrap_or(self.nft.bridge_priority)
    }

    /// The ignore lists that hold for a jail: those of `[defaults]`, unless it has `ignoreip_only`, then its own.
    pub fn ignored<'a>(&'a self, jail: &'a Jail) -> impl Iterator<Item = &'a IgnoreList> {
        (!jail.ignore_only).then_some(&self.ignore).into_iter().chain(std::iter::once(&jail.ignore))
    }
}

impl Default for Daemon {
    fn default() -> Self {
        Daemon {
            socket: PathBuf::from("/run/banset/banset.sock"),
            readers: None,
            operators: None,
            state_dir: PathBuf::from("/var/lib/banset"),
            log: Log::Stderr,
            loglevel: Loglevel::Info,
        }
    }
}

impl Default for Evidence {
    fn default() -> Self {
        Evidence { lines: 5, keep: Span::from_secs(90 * 86_400), accounts: Accounts::Plain }
    }
}

impl Default for Nft {
    fn default() -> Self {
        Nft {
            table: "banset".to_owned(),
            ipv6: Tristate::Auto,
            priority: Priorities::default(),
            bridge_priority: -200,
            owner: false,
            set_size: None,
            element_counters: Tristate::Auto,
        }
    }
}

impl Default for Increment {
    fn default() -> Self {
        Increment {
            enabled: false,
            factor: 1.0,
            multipliers: Vec::new(),
            maxtime: None,
            rndtime: Span(0),
            memory: Span::from_secs(30 * 86_400),
            overalljails: false,
        }
    }
}

impl Jail {
    /// A jail of that name with the built-in value of every key, no filter and no source. Its ports are all.
    pub fn named(name: &str) -> Jail {
        Jail {
            name: name.to_owned(),
            filter: None,
            backend: Backend::Auto,
            logpath: Vec::new(),
            journal: Journal::Own,
            entries: None,
            ports: Ports::All,
            protocols: Protocols::List(vec![Protocol::Tcp, Protocol::Udp, Protocol::Udplite, Protocol::Sctp]),
            hooks: vec![Hook::Input],
            families: vec![Family::Inet],
            priority: None,
            dnat: false,
            blocktype: Blocktype::Drop,
            maxretry: 5,
            findtime: Span::from_secs(600),
            bantime: Lasting::For(Span::from_secs(600)),
            window: Window::Sliding,
            ignore: IgnoreList::default(),
            ignore_only: false,
            ignoreself: true,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            aggregate: None,
            logtimezone: None,
            observe: false,
            label: None,
            increment: Increment::default(),
        }
    }

    /// The jail that takes bans without a jail: all ports and protocols, at every hook that one of `jails` uses, and `input`.
    pub fn manual(jails: &[Jail]) -> Jail {
        let used = |hook: &Hook| *hook == Hook::Input || jails.iter().any(|jail| jail.hooks.contains(hook));
        let mut families = vec![Family::Inet];
        if jails.iter().any(|jail| jail.families.contains(&Family::Bridge)) {
            families.push(Family::Bridge);
        }
        Jail {
            hooks: Hook::ALL.into_iter().filter(used).collect(),
            families,
            protocols: Protocols::All,
            label: Some("bans without a jail".to_owned()),
            ..Jail::named(MANUAL)
        }
    }
}
