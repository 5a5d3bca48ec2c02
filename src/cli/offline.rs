//! `pause --offline` and `resume --offline`: the emergency exit that needs no daemon, and no sound configuration either.
//!
//! The rules are taken out of the table as it stands in the kernel; sets and bans stay. The pause is noted in the state, so that
//! the next start stays paused instead of closing the doors again; only a daemon ends it by itself when `--for` is over.

use std::sync::Arc;

use super::{Global, NEGATIVE, daemon, load};
use crate::config;
use crate::engine::core::{Core, Establish};
use crate::engine::kernel::Writer;
use crate::engine::{clock, lock, machine};
use crate::nft;
use crate::nft::socket::Socket;
use crate::nft::transaction::{Change, Transaction};
use crate::state::history::{Row, What};
use crate::state::{KeptPause, Restored, Save, Store};
use crate::terms::{Family, Span, Time};

/// Exit status: done in part.
const IN_PART: u8 = 4;

/// What is known of the daemon that does not run.
struct Absent {
    config: Option<config::run::Config>,
    daemon: config::run::Daemon,
    table: String,
    _lock: lock::Lock,
}

fn absent(global: &Global) -> Result<Absent, String> {
    let (sources, loaded) = load::read(&load::paths(global));
    let daemon = config::rescue(&sources);
    let config = loaded.config;
    let table = config.as_ref().map_or_else(|| config::run::Nft::default().table, |config| config.nft.table.clone());
    if config.is_none() {
        eprintln!("banset: the configuration can not be read (`banset check`): taking table inet {table}");
    }
    let lock = lock::take(Family::Inet, &table).map_err(|why| {
        let why = why.lines().next().unwrap_or_default().to_owned();
        format!("{why}\n  help: it can do this itself: leave out --offline, or stop it first")
    })?;
    Ok(Absent { config, daemon, table, _lock: lock })
}

/// `banset pause --offline`
pub fn pause(global: &Global, jail: Option<&str>, for_s: Option<u64>) -> u8 {
    let done = || -> Result<u8, String> {
        let absent = absent(global)?;
        let rules = take_out(&absent.table, jail)?;
        let of = jail.unwrap_or("every jail");
        println!("{of} is paused: {rules} rules taken out of table inet {}; sets and bans stay", absent.table);
        let now = Time::now();
        let until = for_s.map(|secs| now + Span::from_secs(secs));
        let jail: Option<Arc<str>> = jail.map(Into::into);
        let pause = KeptPause { jail: jail.clone(), since: now, until, uid: nix::unistd::Uid::current().as_raw() };
        let noted = note(&absent, Row { what: What::Pause, jail: jail.clone(), until, ..Row::default() }, |paused| {
            paused.retain(|other| other.jail != jail);
            paused.push(pause);
            true
        });
        match noted {
            Ok(_) => println!("the next start of the daemon stays paused; `banset resume` puts the rules back"),
            Err(why) => {
                eprintln!("banset: {why}\n  help: the pause is not noted: the next start of the daemon puts the rules back");
                return Ok(IN_PART);
            }
        }
        Ok(0)
    };
    end(done())
}

/// `banset resume --offline`
pub fn resume(global: &Global, jail: Option<&str>) -> u8 {
    let done = || -> Result<u8, String> {
        let absent = absent(global)?;
        let noted = note(&absent, Row { what: What::Resume, jail: jail.map(Into::into), ..Row::default() }, |paused| {
            let before = paused.len();
            paused.retain(|pause| jail.is_some_and(|jail| pause.jail.as_deref() != Some(jail)));
            paused.len() < before
        })?;
        let Some(noted) = noted else {
            eprintln!("banset: not paused");
            return Ok(NEGATIVE);
        };
        let later = "the next start of the daemon puts the rules back";
        let Some(config) = &absent.config else {
            println!("resumed; {later}");
            return Ok(0);
        };
        match put_back(config, &noted) {
            Ok(true) => println!("resumed: the rules are back in table inet {}", absent.table),
            Ok(false) => println!("resumed; there is no table inet {}: {later}", absent.table),
            Err(why) => {
                eprintln!("banset: {why}\n  help: {later}");
                return Ok(IN_PART);
            }
        }
        Ok(0)
    };
    end(done())
}

fn end(done: Result<u8, String>) -> u8 {
    done.unwrap_or_else(|why| {
        eprintln!("banset: {why}");
        NEGATIVE
    })
}

/// Takes a jail's rules, or all, out of the tables, a transaction each; gives how many.
fn take_out(table: &str, jail: Option<&str>) -> Result<usize, String> {
    let mut kernel = nft::Kernel::open().map_err(|e| e.to_string())?;
    let (mut transactions, mut rules) = (Vec::new(), 0);
    for family in [Family::Inet, Family::Bridge] {
        let Some(found) = kernel.table(family, table).map_err(|e| e.to_string())? else { continue };
        let mut transaction = Transaction::new(family, table);
        for chain in &found.chains {
            match jail {
                None if !chain.rules.is_empty() => {
                    rules += chain.rules.len();
                    transaction.push(Change::FlushChain(chain.name.clone()));
                }
                None => {}
                Some(jail) => {
                    for rule in chain.rules.iter().filter(|rule| rule.rule.jail() == Some(jail)) {
                        rules += 1;
                        transaction.push(Change::DeleteRule { chain: chain.name.clone(), handle: rule.handle });
                    }
                }
            }
        }
        transactions.push(transaction);
    }
    if transactions.iter().any(|transaction| !transaction.is_empty()) {
        let mut socket = Socket::open().map_err(|e| e.to_string())?;
        for transaction in transactions.iter().filter(|transaction| !transaction.is_empty()) {
            socket.commit(transaction).map_err(|refused| refused.to_string())?;
        }
    }
    Ok(rules)
}

/// Notes other pauses in the state, and in its history; gives what the state holds then, or `None` if they are no others.
fn note(absent: &Absent, row: Row, change: impl FnOnce(&mut Vec<KeptPause>) -> bool) -> Result<Option<Restored>, String> {
    let (mut store, mut restored, said) = Store::open(&absent.daemon.state_dir)?;
    said.iter().for_each(|said| eprintln!("banset: {said}"));
    if !change(&mut restored.paused) {
        return Ok(None);
    }
    let row = Row {
        seq: restored.seq + 1,
        time: Time::now(),
        origin: "manual".into(),
        uid: Some(nix::unistd::Uid::current().as_raw()),
        program: Some("banset".into()),
        reason: Some("without a daemon".into()),
        ..row
    };
    store.save(&Save { history: vec![row], paused: Some(restored.paused.clone()), sync: true, ..Save::default() })?;
    Ok(Some(restored))
}

/// Makes the table what the configuration and the state want, as a start of the daemon would; tells whether there is one.
fn put_back(config: &config::run::Config, restored: &Restored) -> Result<bool, String> {
    let specs = load::specs(config, None)?;
    let mut writer = Writer::open()?;
    if writer.handle(&specs)? == 0 {
        return Ok(false);
    }
    let machine = machine::read().map_err(|e| format!("cannot read own addresses: {e}"))?;
    let now = clock::now();
    let mut core = Core::new(specs, machine, now, daemon::seed());
    core.restore(now, restored);
    let wanted: Establish = core.establish();
    writer.establish(&wanted)?;
    Ok(true)
}
