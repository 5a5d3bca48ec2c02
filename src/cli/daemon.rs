//! `banset daemon`: the start, step by step, in the order it happens. Whatever can refuse is asked before anything is changed.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{error, info, warn};

use super::{Global, NEGATIVE, load, log};
use crate::config::run::Config;
use crate::config::{self, Sources};
use crate::control::server::{self, Access};
use crate::engine::core::{Core, Level};
use crate::engine::kernel::Writer;
use crate::engine::run::{self, Ready};
use crate::engine::{Specs, clock, lock, machine};
use crate::nft::ruleset::{Content, jail_of};

/// The last accepted configuration, in the state directory.
const ACCEPTED: &str = "accepted.json";

/// Runs in the foreground until SIGTERM or SIGINT.
pub fn daemon(global: &Global) -> u8 {
    match start(global).and_then(run::run) {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("banset: {why}");
            NEGATIVE
        }
    }
}

fn start(global: &Global) -> Result<Ready, String> {
    // 1. What is wanted.
    let (config, said) = configuration(global)?;
    let logging = log::start(&config.daemon.log, config.daemon.loglevel)?;
    said.iter().for_each(|(level, text)| run::log(*level, text));
    let specs = load::specs(&config, None)?;

    // 2. May we? One daemon per table; nf_tables; the socket.
    let lock = lock::take(specs.family, &specs.table)?;
    let mut writer = Writer::open()?;
    let socket = global.socket.clone().unwrap_or_else(|| config.daemon.socket.clone());
    let listener = server::listen(&socket)?;
    let access = Arc::new(Mutex::new(access(&config)));

    // 3. What is there: bans that go on, then the table made equal to what is wanted.
    let machine = machine::read().map_err(|e| format!("cannot read own addresses: {e}"))?;
    let mut core = Core::new(specs, machine, clock::now(), seed());
    let adopted = adopt(&mut core, &mut writer)?;
    let changed = writer.establish(&core.establish())?;
    let table = format!("{} {}", core.specs().family, core.specs().table);
    match (changed, adopted) {
        (false, _) => info!("table {table} is as it was left: {adopted} bans go on"),
        (true, 0) => info!("table {table} is set up"),
        (true, _) => info!("table {table} is brought up to date: {adopted} bans go on"),
    }

    // 4. From here on nothing refuses.
    let load = reloading(global.clone(), access.clone(), logging.clone());
    let reopen = Box::new(move || {
        // The lock lives as long as the daemon does.
        let _ = &lock;
        logging.reopen();
    });
    Ok(Ready { core, writer, listener, socket, access, load, reopen })
}

/// The configuration, and what is to be said about it once there is a log. Without a usable one the last accepted is taken.
fn configuration(global: &Global) -> Result<(Config, Vec<(Level, String)>), String> {
    let paths = load::paths(global);
    let (sources, loaded) = load::read(&paths);
    let mut said = Vec::new();
    let report = loaded.report.to_string();
    let level = if loaded.report.is_sound() { Level::Warn } else { Level::Error };
    if !report.is_empty() {
        said.push((level, format!("{}\n{}", paths.main.display(), report.trim_end())));
    }
    if let Some(config) = loaded.config {
        if loaded.report.is_sound() {
            keep(&config.daemon.state_dir, &sources);
        }
        return Ok((config, said));
    }
    let state_dir = config::run::Daemon::default().state_dir;
    let kept = std::fs::read(state_dir.join(ACCEPTED)).ok().and_then(|bytes| Sources::from_snapshot(&bytes));
    match kept.and_then(|sources| config::understand(&sources, load::shipped(), &load::Filters).config) {
        Some(config) => {
            said.push((Level::Error, "degraded: running on the last accepted configuration".to_owned()));
            Ok((config, said))
        }
        None => Err(format!(
            "the configuration can not be used\n{report}  help: `banset check` tells the same; nothing was changed in the kernel"
        )),
    }
}

/// Keeps an accepted configuration for a day when the files are broken.
fn keep(state_dir: &Path, sources: &Sources) {
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(state_dir)?;
        let new = state_dir.join(format!("{ACCEPTED}.new"));
        std::fs::write(&new, sources.to_snapshot())?;
        std::fs::rename(new, state_dir.join(ACCEPTED))
    };
    if let Err(e) = write() {
        warn!("{}: cannot keep the accepted configuration: {}", state_dir.display(), crate::control::client::plain(&e));
    }
}

fn access(config: &Config) -> Access {
    let (access, missing) = Access::named(config.daemon.readers.as_deref(), config.daemon.operators.as_deref());
    missing.iter().for_each(|text| warn!("{text}"));
    access
}

/// Takes over what the kernel's sets hold; tells how many bans.
fn adopt(core: &mut Core, writer: &mut Writer) -> Result<usize, String> {
    let specs = core.specs().clone();
    let Some(table) = writer.table(&specs)? else { return Ok(0) };
    for set in &table.sets {
        let Some(ours) = set.set.as_ref().filter(|ours| ours.content == Content::Bans) else { continue };
        let elements = writer.elements(&specs, ours)?;
        let now = clock::now();
        let mut strangers = 0;
        for element in &elements {
            let (timeout, left) = element.timeout.map_or((None, None), |t| (Some(t.timeout), Some(t.expiration)));
            if !core.adopt(now, &set.name, element.interval.first(), timeout, left) {
                strangers += 1;
            }
        }
        if strangers > 0 {
            warn!("[{}] is no longer configured: {strangers} bans lifted", jail_of(&set.name).unwrap_or(&set.name));
        }
    }
    Ok(core.bans_held())
}

/// How `reload` reads the configuration: all or nothing.
fn reloading(global: Global, access: Arc<Mutex<Access>>, logging: log::Handle) -> crate::engine::clerk::Load {
    Box::new(move |old: &Specs| {
        let (sources, loaded) = load::read(&load::paths(&global));
        if !loaded.report.is_sound() {
            return Err(loaded.report.to_string().trim_end().to_owned());
        }
        let config = loaded.config.ok_or("the configuration can not be used")?;
        let specs = load::specs(&config, Some(old))?;
        if specs.table != old.table {
            return Err("[nft] table: a running daemon can not move to another table; restart it".to_owned());
        }
        *access.lock().unwrap_or_else(PoisonError::into_inner) = self::access(&config);
        logging.level(config.daemon.loglevel);
        if !loaded.report.to_string().is_empty() {
            warn!("{}", loaded.report.to_string().trim_end());
        }
        keep(&config.daemon.state_dir, &sources);
        Ok(specs)
    })
}

/// Where the random spread of growing bans begins.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    match std::fs::File::open("/dev/urandom").and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes)) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(e) => {
            error!("/dev/urandom: {e}");
            clock::now().wall.0 as u64
        }
    }
}
