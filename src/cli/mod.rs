//! The command line: one file per group of commands; this one holds the words and sends each to its place.

pub mod change;
pub mod check;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod load;
pub mod log;
pub mod regex;
pub mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Exit status: a negative answer or a refused change.
pub const NEGATIVE: u8 = 1;
/// Exit status: wrong usage.
pub const USAGE: u8 = 2;
/// Exit status: the daemon can not be reached.
pub const UNREACHABLE: u8 = 3;

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
    Ruleset,
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
    /// Ban addresses by hand
    Ban {
        /// The jail, if not `manual` (all ports and hooks), then the addresses
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
        /// Even an address that is ignored
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// Lift bans; says what it found and lifted
    Unban {
        /// The jail, if not every one, then the addresses
        #[arg(value_name = "[JAIL] ADDR", required_unless_present = "all")]
        what: Vec<String>,
        /// Every ban, or every ban of the jail
        #[arg(long)]
        all: bool,
        /// Forget counted failures and earlier offences too
        #[arg(long)]
        forget: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// Read the configuration again: all or nothing; bans and counters stay
    Reload {
        #[command(flatten)]
        shown: Shown,
    },
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

/// Runs the command line; the whole program but for `main`.
pub fn run() -> ExitCode {
    let Banset { global, command } = Banset::parse();
    let code = match command {
        Command::Daemon => daemon::daemon(&global),
        Command::Check { shown } => check::check(&global, shown),
        Command::Ruleset => check::ruleset(&global),
        Command::Explain(args) => explain::explain(&global, &args),
        Command::Regex(args) => regex::regex(&global, &args),
        Command::Demo(args) => return demo::run(&args),
        Command::Doctor { shown } => doctor::doctor(&global, shown),
        Command::Status { jail, shown } => show::status(&global, jail, shown),
        Command::Stats { shown } => show::stats(&global, shown),
        Command::Banned { addr, shown } => show::banned(&global, addr, shown),
        Command::Ban { what, span, permanent, reason, force, shown } => {
            change::ban(&global, what, change::Ban { span, permanent, reason, force }, shown)
        }
        Command::Unban { what, all, forget, shown } => change::unban(&global, what, all, forget, shown),
        Command::Reload { shown } => change::reload(&global, shown),
        Command::Config { command: ConfigCommand::Show { shown } } => check::config_show(&global, shown),
        Command::Config { command: ConfigCommand::Example } => check::config_example(),
    };
    ExitCode::from(code)
}
