//! `pause --offline` and `resume --offline`: the emergency exit that needs no daemon, and no sound configuration either.
//!
//! The rules are taken out of the table as it stands in the kernel; sets and bans stay. The pause is noted in the state, so that
//! the next start stays paused instead of closing the doors again; only a daemon ends it by itself when `--for` is over.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Global, IN_PART, NEGATIVE, complain, daemon, load};
use crate::config;
use crate::control::Reply;
use crate::engine::core::{Core, Establish, rfc3339};
use crate::engine::kernel::Writer;
use crate::engine::{clock, lock, machine};
use crate::nft;
use crate::nft::socket::Socket;
use crate::nft::transaction::{Change, Transaction};
use crate::state::history::{Row, What};
use crate::state::{KeptPause, Restored, Save, Store};
use crate::terms::{Family, Span, Time, escape, plain};

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
        complain(format_args!("the configuration can not be read (`banset check`): taking table inet {table}"));
    }
    let lock = lock::take(Family::Inet, &table).map_err(|why| {
        let why = why.lines().next().unwrap_or_default().to_owned();
        format!("{why}\n  help: it can do this itself: leave out --offline, or stop it first")
    })?;
    Ok(Absent { config, daemon, table, _lock: lock })
}

/// `banset pause --offline`: as the daemon would answer, with how many rules are out.
pub fn pause(global: &Global, jail: Option<&str>, for_s: Option<u64>) -> Reply {
    let done = || -> Result<Reply, String> {
        let absent = absent(global)?;
        if let (Some(config), Some(jail)) = (&absent.config, jail) {
            known(config, jail)?;
        }
        let rules = take_out(&absent.table, jail)?;
        let now = Time::now();
        let until = for_s.map(|secs| now + Span::from_secs(secs));
        let result = json!({ "paused": jail, "until": until.map(rfc3339), "rules": rules });
        let jail: Option<Arc<str>> = jail.map(Into::into);
        let pause = KeptPause { jail: jail.clone(), since: now, until, uid: nix::unistd::Uid::current().as_raw() };
        let noted = note(&absent, Row { what: What::Pause, jail: jail.clone(), until, ..Row::default() }, |paused| {
            paused.retain(|other| other.jail != jail);
            paused.push(pause);
            true
        });
        Ok(match noted {
            Ok(_) => Reply::done(result),
            Err(why) => in_part(result, why, "the pause is not noted: the next start of the daemon puts the rules back"),
        })
    };
    end(done())
}

/// `banset resume --offline`: as the daemon would answer; where the rules are not back at once, `later` says when they will be.
pub fn resume(global: &Global, jail: Option<&str>) -> Reply {
    let done = || -> Result<Reply, String> {
        let absent = absent(global)?;
        let noted = note(&absent, Row { what: What::Resume, jail: jail.map(Into::into), ..Row::default() }, |paused| {
            let before = paused.len();
            paused.retain(|pause| jail.is_some_and(|jail| pause.jail.as_deref() != Some(jail)));
            paused.len() < before
        })?;
        let Some(noted) = noted else { return Ok(Reply::refused(NEGATIVE, "not paused", None)) };
        let later = "the next start of the daemon puts the rules back";
        let Some(config) = &absent.config else { return Ok(Reply::done(json!({ "resumed": jail, "later": later }))) };
        Ok(match put_back(config, &noted) {
            Ok(true) => Reply::done(json!({ "resumed": jail })),
            Ok(false) => {
                Reply::done(json!({ "resumed": jail, "later": format!("there is no table inet {}, {later}", absent.table) }))
            }
            Err(why) => in_part(json!({ "resumed": jail, "later": later }), why, later),
        })
    };
    end(done())
}

/// Refuses the name of a jail that nothing can be meant by: in a hurry names are misspelt.
fn known(config: &config::run::Config, jail: &str) -> Result<(), String> {
    let names: Vec<&str> = config.jails.iter().map(|jail| jail.name.as_str()).collect();
    let broken = config.broken.iter().any(|broken| broken.name == jail);
    match broken || names.contains(&jail) {
        true => Ok(()),
        false => Err(format!("no jail \"{}\"\n  help: there are: {}", escape(jail.as_bytes(), 200), names.join(", "))),
    }
}

fn in_part(result: Value, error: String, help: &str) -> Reply {
    Reply { error: Some(error), help: Some(help.to_owned()), ..Reply::done(result).exit(IN_PART) }
}

/// A refusal whose text may bring its own help along.
fn end(done: Result<Reply, String>) -> Reply {
    done.unwrap_or_else(|why| match why.split_once("\n  help: ") {
        Some((why, help)) => Reply::refused(NEGATIVE, why, help.to_owned()),
        None => Reply::refused(NEGATIVE, why, None),
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
    said.iter().for_each(complain);
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
    let machine = machine::read().map_err(|e| format!("cannot read own addresses: {}", plain(&e)))?;
    let now = clock::now();
    let mut core = Core::new(specs, machine, now, daemon::seed());
    core.restore(now, restored);
    let wanted: Establish = core.establish();
    writer.establish(&wanted)?;
    Ok(true)
}
