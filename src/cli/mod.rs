//! The command line: one file per group of commands; this one holds the words and sends each to its place.

pub mod change;
pub mod check;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod history;
pub mod load;
pub mod log;
pub mod offline;
pub mod regex;
pub mod show;
pub mod stream;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::control::Reply;

/// Exit status: a negative answer or a refused change.
pub const NEGATIVE: u8 = 1;
/// Exit status: wrong usage.
pub const USAGE: u8 = 2;
/// Exit status: the daemon can not be reached.
pub const UNREACHABLE: u8 = 3;
/// Exit status: done in part.
pub const IN_PART: u8 = 4;

/// Watches logs and keeps offenders in timed elements of its own nftables sets.
#[derive(Debug, Parser)]
#[command(name = "banset", version, about, max_term_width = 100, disable_help_subcommand = true)]
pub struct Banset {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options before or after any command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The main configuration file; jail.d, filter.d and banset.d beside it belong to it
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's control socket
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// How an answer is shown.
#[derive(Clone, Copy, Debug, Args)]
pub struct Shown {
    /// Print JSON with stable keys
    #[arg(long)]
    json: bool,
    /// Times in UTC instead of the local zone
    #[arg(long)]
    utc: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground
    Daemon,
    /// Check configuration, filters and samples
    Check {
        #[command(flatten)]
        shown: Shown,
    },
    /// Look at the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print the ruleset it would commit, in nft language
    Ruleset {
        #[command(flatten)]
        shown: Shown,
    },
    /// Show all jails in brief, or one in full
    Status {
        /// The jail to show in full
        jail: Option<String>,
        #[command(flatten)]
        shown: Shown,
    },
    /// Show failures and bans per jail, as fail2ban does
    Stats {
        #[command(flatten)]
        shown: Shown,
    },
    /// List the bans, or tell which jails hold ADDR (exit 1: one is free)
    Banned {
        /// Addresses to look for
        addr: Vec<String>,
        #[command(flatten)]
        shown: Shown,
    },
    /// Tell what happened: bans, unbans, ignores, pauses; when, by whom, by which lines
    History(Box<history::Args>),
    /// Ban addresses or subnets by hand
    Ban {
        /// The jail, if not `manual` (all ports and hooks), then addresses, or subnets such as 192.0.2.0/24. An IPv6 address stands for
        /// its prefix; with /128 it is meant by itself
        #[arg(required = true, value_name = "[JAIL] ADDR")]
        what: Vec<String>,
        /// For this long, such as 2h, instead of the jail's bantime
        #[arg(long = "for", value_name = "TIME", conflicts_with = "permanent")]
        span: Option<String>,
        /// Until somebody lifts it
        #[arg(long)]
        permanent: bool,
        /// Why, for whoever asks later
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Even an address that is ignored: while it is banned, the kernel does not ignore it either
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// Lift bans; says what it found and lifted
    Unban {
        /// The jail, if not every one, then the addresses
        #[arg(value_name = "[JAIL] ADDR")]
        what: Vec<String>,
        /// Every ban, or every ban of the jail
        #[arg(long)]
        all: bool,
        /// Bans made since then: a span such as 2h, or a date such as 2026-01-31T12:00:00
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Bans of addresses and subnets within this subnet
        #[arg(long, value_name = "NET")]
        net: Option<String>,
        /// Bans whose lines name this account
        #[arg(long, value_name = "ACCOUNT")]
        user: Option<String>,
        /// Only say what would be lifted
        #[arg(long)]
        dry_run: bool,
        /// Forget counted failures and earlier offences too
        #[arg(long)]
        forget: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// Ignore addresses or subnets from now on; lifts the bans that covers
    Ignore {
        /// The addresses or subnets
        #[arg(value_name = "ADDR", required_unless_present = "list")]
        addrs: Vec<String>,
        /// For this long, such as 2h, instead of until somebody takes it back
        #[arg(long = "for", value_name = "TIME")]
        span: Option<String>,
        /// Only in this jail
        #[arg(long, value_name = "JAIL")]
        jail: Option<String>,
        /// Why, for whoever asks later
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// List what is ignored by request
        #[arg(long, conflicts_with_all = ["addrs", "span", "jail", "reason"])]
        list: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// Take back what was ignored by request
    Unignore {
        /// The addresses or subnets
        #[arg(value_name = "ADDR", required = true)]
        addrs: Vec<String>,
        /// Only in this jail
        #[arg(long, value_name = "JAIL")]
        jail: Option<String>,
        #[command(flatten)]
        shown: Shown,
    },
    /// Take the rules out of the kernel; bans and judging go on
    Pause {
        /// Only those of this jail
        jail: Option<String>,
        /// For this long, such as 30m, instead of until `resume`
        #[arg(long = "for", value_name = "TIME")]
        span: Option<String>,
        /// Without a daemon; the next start stays paused
        #[arg(long)]
        offline: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// Put the rules back
    Resume {
        /// Only those of this jail
        jail: Option<String>,
        /// Without a daemon
        #[arg(long)]
        offline: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// Read the configuration again: all or nothing; bans and counters stay
    Reload {
        #[command(flatten)]
        shown: Shown,
    },
    /// Print bans and unbans as JSON lines, for another machine to apply
    Events(stream::Events),
    /// Do what another machine's events say
    Apply(stream::Apply),
    /// Try a filter on a log file or a quoted line
    Regex(Box<regex::Args>),
    /// Say what each step makes of a line, or why an address is not banned
    Explain(Box<explain::Args>),
    /// Say what would keep a ban from biting: kernel, hooks, bridges, published ports, sources, clock (exit 1: something does)
    Doctor {
        #[command(flatten)]
        shown: Shown,
    },
    /// Play the whole way in a throwaway network namespace
    Demo(demo::Args),
    /// Start journalctl for the daemon, which starts this itself
    #[command(hide = true)]
    Spawner,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the merged configuration, each value with its origin
    Show {
        #[command(flatten)]
        shown: Shown,
    },
    /// Print a fully annotated configuration file
    Example,
}

/// Writes to standard output; a reader that went away (`| head`) is no error, and no reason to leave something half done.
pub fn out(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Writes to standard error, in the same manner.
pub fn err(text: impl std::fmt::Display) {
    let _ = write!(std::io::stderr().lock(), "{text}");
}

/// Says on standard error what is wrong.
pub fn complain(why: impl std::fmt::Display) {
    err(format_args!("banset: {why}\n"));
}

/// Says what was refused and what to do.
pub fn complain_of(reply: &Reply) {
    if let Some(error) = &reply.error {
        complain(error);
    }
    if let Some(help) = &reply.help {
        err(format_args!("  help: {help}\n"));
    }
}

/// Runs the command line; the whole program but for `main`.
pub fn run() -> ExitCode {
    let Banset { global, command } = Banset::parse();
    let code = match command {
        Command::Daemon => daemon::daemon(&global),
        Command::Check { shown } => check::check(&global, shown),
        Command::Ruleset { shown } => check::ruleset(&global, shown),
        Command::Explain(args) => explain::explain(&global, &args),
        Command::Regex(args) => regex::regex(&global, &args),
        Command::Demo(args) => return demo::run(&args),
        Command::Spawner => daemon::spawner(),
        Command::Doctor { shown } => doctor::doctor(&global, shown),
        Command::Status { jail, shown } => show::status(&global, jail, shown),
        Command::Stats { shown } => show::stats(&global, shown),
        Command::Banned { addr, shown } => show::banned(&global, addr, shown),
        Command::Events(args) => stream::events(&global, &args),
        Command::Apply(args) => stream::apply(&global, &args),
        Command::History(args) => history::history(&global, *args),
        Command::Ban { what, span, permanent, reason, force, shown } => {
            change::ban(&global, what, change::Ban { span, permanent, reason, force }, shown)
        }
        Command::Unban { what, all, since, net, user, dry_run, forget, shown } => {
            change::unban(&global, what, change::Unban { all, since, net, user, dry_run, forget }, shown)
        }
        Command::Ignore { list: true, shown, .. } => change::ignored(&global, shown),
        Command::Ignore { addrs, span, jail, reason, list: false, shown } => {
            change::ignore(&global, addrs, span, jail, reason, shown)
        }
        Command::Unignore { addrs, jail, shown } => change::unignore(&global, addrs, jail, shown),
        Command::Pause { jail, span, offline, shown } => change::pause(&global, jail, span, offline, shown),
        Command::Resume { jail, offline, shown } => change::resume(&global, jail, offline, shown),
        Command::Reload { shown } => change::reload(&global, shown),
        Command::Config { command: ConfigCommand::Show { shown } } => check::config_show(&global, shown),
        Command::Config { command: ConfigCommand::Example } => check::config_example(),
    };
    ExitCode::from(code)
}
