//! `banset daemon`: the start, step by step, in the order it happens. Whatever can refuse is asked before anything is changed.

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{error, info, warn};

use super::{Global, NEGATIVE, complain, load, log};
use crate::config::report::Gravity;
use crate::config::{self, Loaded, Sources};
use crate::control::server::{self, Access};
use crate::doctor;
use crate::engine::core::{Core, Level, Suspects};
use crate::engine::kernel::Writer;
use crate::engine::run::{self, Ready};
use crate::engine::spawner::Spawner;
use crate::engine::{Specs, clock, journals, lock, machine};
use crate::nft::Monitor;
use crate::nft::ruleset::jail_of;
use crate::state::{self, KernelIdentity, Restored, Store};
use crate::terms::{Family, plain};

/// Restored bans that are told one by one.
const RESTORED_ONE_BY_ONE: usize = 100;

/// So many descriptors are asked for.
const FILES: u64 = 65_536;

/// The last accepted configuration, in the state directory.
const ACCEPTED: &str = "accepted.json";

/// Runs in the foreground until SIGTERM or SIGINT.
pub fn daemon(global: &Global) -> u8 {
    match start(global).and_then(run::run) {
        Ok(()) => 0,
        Err(why) => {
            complain(&why);
            NEGATIVE
        }
    }
}

/// Starts `journalctl` for the daemon until that ends.
pub fn spawner() -> u8 {
    match crate::engine::spawner::serve() {
        Ok(()) => 0,
        Err(why) => {
            complain(&why);
            NEGATIVE
        }
    }
}

/// A descriptor for each log, and for each rotated one that is still read: as many as we may have, to a limit. Services begin with 1024.
fn many_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where it can not be raised, what does not open is said when it comes to that.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(FILES)), hard);
    }
}

fn start(global: &Global) -> Result<Ready, String> {
    run::end_with_vital_threads();
    // 1. What is wanted.
    let (specs, said) = wanted(global)?;
    let logging = log::start(&specs.daemon.log, specs.daemon.loglevel)?;
    said.iter().for_each(|(level, text)| run::log(*level, text));

    many_files();

    // 2. May we? One daemon per table; nf_tables; the socket.
    // A reload may bring a family into use that was not: both tables of that name are this daemon's.
    let lock = Family::ALL.map(|family| lock::take(family, &specs.table)).into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut writer = Writer::open()?;
    // Before anything is read: what others do from here on is heard.
    let monitor = listening(&specs, &writer);
    writer.stops(monitor.as_ref().and_then(Monitor::ears));
    let socket = global.socket.clone().unwrap_or_else(|| specs.daemon.socket.clone());
    let listener = server::listen(&socket)?;

    // 3. What is there: bans that go on, then the table made equal to what is wanted.
    let machine = machine::read().map_err(|e| format!("cannot read own addresses: {}", plain(&e)))?;
    let mut core = Core::new(specs, machine, clock::now(), seed());
    let state = remembered(&mut core);
    if core.specs().degraded.is_none() || !core.specs().jails.is_empty() {
        establish(&mut core, &mut writer, state.as_ref().map(|(_, restored)| restored))?;
    }

    // 4. Journals are read through a process of its own, which starts before there are threads and without our capabilities.
    let spawner = Spawner::default();
    if journals::possible(core.specs())
        && let Err(e) = spawner.ready()
    {
        error!("cannot start the spawner: {}\n  help: journals can not be read until it can", plain(&e));
    }

    // 5. From here on nothing refuses.
    let access = Arc::new(Mutex::new(Access::default()));
    let groups = Groups::default();
    let applied = applying(access.clone(), logging.clone(), groups.clone());
    let load = reloading(global.clone(), groups);
    let reopen = Box::new(move || {
        // The lock lives as long as the daemon does.
        let _ = &lock;
        logging.reopen();
    });
    Ok(Ready { core, writer, monitor, listener, socket, state, spawner, access, applied, load, reopen })
}

/// The specs to run, and what is to be said about them once there is a log.
///
/// A mistake inside one jail leaves that jail broken, its rules and bans standing as last accepted, and the others running. A
/// mistake that concerns everything leaves the last accepted configuration running; without one no jail runs, and the kernel
/// is left as it stands until a reload succeeds.
fn wanted(global: &Global) -> Result<(Specs, Vec<(Level, String)>), String> {
    let paths = load::paths(global);
    let (sources, loaded) = load::read(&paths);
    let mut said = Vec::new();
    let Loaded { config, report, .. } = loaded;
    let text = report.to_string();
    if !text.is_empty() {
        let level = if report.is_sound() { Level::Warn } else { Level::Error };
        said.push((level, format!("{}: {}", paths.main.display(), text.trim_end())));
    }
    let rescued = config::rescue(&sources);
    let last = || {
        let bytes = std::fs::read(rescued.state_dir.join(ACCEPTED)).ok()?;
        let kept = Sources::from_snapshot(&bytes)?;
        let config = config::understand(&kept, load::shipped(), &load::Filters).config?;
        Some(Specs { accepted: kept.to_snapshot().into(), ..load::specs(&config, None).ok()? })
    };
    let mistake = || report.notes.iter().find(|note| note.gravity == Gravity::Mistake);
    let first = || mistake().map(config::Note::headline).unwrap_or_default();
    if let Some(config) = config {
        let mut specs = load::specs(&config, None)?;
        if report.is_sound() {
            specs.accepted = sources.to_snapshot().into();
        } else if let Some(last) = last() {
            specs.keep_broken(&last);
            specs.accepted = last.accepted;
        }
        return Ok((specs, said));
    }
    match last() {
        Some(specs) => {
            let degraded = format!("{}; running on the last accepted configuration", first());
            said.push((Level::Error, format!("degraded: {degraded}")));
            Ok((Specs { degraded: Some(degraded), ..specs }, said))
        }
        None => {
            let degraded = format!("{}; no jail runs, the kernel is left as it stands", first());
            said.push((
                Level::Error,
                format!("degraded: {degraded}\n  help: mend the configuration (`banset check`), then `banset reload`"),
            ));
            Ok((Specs { degraded: Some(degraded), daemon: rescued, ..Specs::default() }, said))
        }
    }
}

/// Opens the state and gives the core what an earlier run knew. Without it the daemon goes on, and says so.
fn remembered(core: &mut Core) -> Option<(Store, Restored)> {
    if core.specs().degraded.is_some() && core.specs().jails.is_empty() {
        // What is kept belongs to jails that nobody knows now: it waits for a start with a configuration.
        core.cannot_keep("started without a usable configuration: nothing is kept until the next start".to_owned());
        return None;
    }
    match Store::open(&core.specs().daemon.state_dir) {
        Ok((store, restored, said)) => {
            said.iter().for_each(|said| error!("{said}"));
            let now = clock::now();
            core.restore(now, &restored);
            core.keep(now, state::boot_id(), &restored);
            Some((store, restored))
        }
        Err(why) => {
            error!("{why}\n  help: nothing is remembered over a restart until this is mended; bans go on in the kernel");
            core.cannot_keep(why);
            None
        }
    }
}

/// Hears what others do to the table. Without it the daemon goes on: what is damaged then is found when the next ban is sent.
fn listening(specs: &Specs, writer: &Writer) -> Option<Monitor> {
    match Monitor::open(specs.family, &specs.table, writer.port()) {
        Ok(mut monitor) => {
            Family::ALL.into_iter().filter(|family| *family != specs.family).for_each(|family| monitor.also(family));
            Some(monitor)
        }
        Err(e) => {
            error!("{e}\n  help: what others change in the table is found out only when the next ban is sent");
            None
        }
    }
}

/// Makes kernel and books one, then the table equal to what is wanted.
///
/// If the table is the one an earlier run left, in the same boot, what differs is what an admin did meanwhile. Otherwise the
/// state wins; only if nothing is remembered is everything adopted.
fn establish(core: &mut Core, writer: &mut Writer, restored: Option<&Restored>) -> Result<(), String> {
    let specs = core.specs().clone();
    let table = format!("{} {}", specs.family, specs.table);
    let handle = writer.handle(&specs)?;
    let identity = KernelIdentity { boot: state::boot_id(), table: handle };
    let last = restored.and_then(|restored| restored.kernel.as_ref());
    let now = clock::now();
    if specs.nft.owner && !writer.features().owner {
        warn!(
            "[nft] owner: this kernel can not refuse others' changes and keep the table over a restart (Linux 6.9 can); they are undone instead"
        );
    }
    core.seen_up_to(writer.generation());
    let mut wanted = core.establish();
    let mut restored_bans = Vec::new();
    match last {
        Some(last) if *last == identity => {
            let found = writer.adoptable(&specs, &wanted.held)?;
            let (added, lifted) = core.compare(now, &found);
            if added + lifted > 0 {
                info!("table {table} was changed while the daemon was away: {added} bans added, {lifted} lifted");
            }
            wanted = core.establish();
            wanted.exact = core.torn();
        }
        Some(_) => {
            info!("table {table} is not the one that was left: {} bans are put back", core.bans_held());
            core.refill();
            wanted = core.establish();
            wanted.exact = Suspects::All;
            restored_bans = core.restorable();
        }
        None => {
            let mut strangers = std::collections::BTreeMap::<String, usize>::new();
            for element in writer.adoptable(&specs, &wanted.held)? {
                if !core.adopt(now, &element) {
                    *strangers.entry(jail_of(&element.set).unwrap_or(&element.set).to_owned()).or_default() += 1;
                }
            }
            strangers.iter().for_each(|(jail, bans)| warn!("[{jail}] is no longer configured: {bans} bans lifted"));
            wanted = core.establish();
        }
    }
    let done = writer.establish(&wanted)?;
    core.settled_in(clock::now(), done.table);
    core.established_at(&done);
    if wanted.exact == Suspects::All || done.fresh {
        core.all_confirmed(clock::now(), done.generation);
    }
    tell_restored(&restored_bans);
    match (done.changed, core.bans_held()) {
        (false, held) => info!("table {table} is as it was left: {held} bans go on"),
        (true, 0) => info!("table {table} is set up"),
        (true, held) => info!("table {table} is brought up to date: {held} bans go on"),
    }
    Ok(())
}

/// Bans that were put back, one by one up to a hundred, then in sum.
fn tell_restored(bans: &[(String, String)]) {
    bans.iter().take(RESTORED_ONE_BY_ONE).for_each(|(jail, subject)| warn!("[{jail}] Restore Ban {subject}"));
    if let Some(more) = bans.len().checked_sub(RESTORED_ONE_BY_ONE).filter(|more| *more > 0) {
        warn!("{more} more bans were restored");
    }
}

/// Keeps an accepted configuration for a day when the files are broken. Whoever may not read those may not read it here.
fn keep(state_dir: &Path, accepted: &str) {
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(state_dir)?;
        let new = state_dir.join(format!("{ACCEPTED}.new"));
        let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        // One that a kill left behind has the mode it was made with.
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all(accepted.as_bytes())?;
        std::fs::rename(new, state_dir.join(ACCEPTED))
    };
    if let Err(e) = write() {
        warn!("{}: cannot keep the accepted configuration: {}", state_dir.display(), plain(&e));
    }
}

/// The groups of a configuration that was read and is not in force yet. A directory server that is away may keep their names for long,
/// and the thread that puts specs into force must not wait for it.
#[derive(Clone, Default)]
struct Groups(Arc<Mutex<Option<Named>>>);

/// The names of readers and operators, what they are, and what there is to say of it.
type Named = ([Option<String>; 2], (Access, Vec<String>));

impl Groups {
    fn names(specs: &Specs) -> [Option<String>; 2] {
        [specs.daemon.readers.clone(), specs.daemon.operators.clone()]
    }

    fn look_up(specs: &Specs) -> (Access, Vec<String>) {
        Access::named(specs.daemon.readers.as_deref(), specs.daemon.operators.as_deref())
    }

    fn prepare(&self, specs: &Specs) {
        let named = (Groups::names(specs), Groups::look_up(specs));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(named);
    }

    fn of(&self, specs: &Specs) -> (Access, Vec<String>) {
        let prepared = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let known = prepared.filter(|(names, _)| *names == Groups::names(specs));
        known.map_or_else(|| Groups::look_up(specs), |(_, found)| found)
    }
}

/// What else changes when specs come into force: who may ask, how much is logged, what is kept as accepted.
fn applying(access: Arc<Mutex<Access>>, logging: log::Handle, groups: Groups) -> Box<dyn Fn(&Specs)> {
    Box::new(move |specs| {
        let (named, missing) = groups.of(specs);
        missing.iter().for_each(|text| warn!("{text}"));
        *access.lock().unwrap_or_else(PoisonError::into_inner) = named;
        logging.level(specs.daemon.loglevel);
        warn_of_blunt_jails(specs);
        if specs.degraded.is_none() && !specs.accepted.is_empty() && specs.jails.iter().all(|spec| spec.broken.is_none()) {
            keep(&specs.daemon.state_dir, &specs.accepted);
        }
    })
}

/// Says which jails' bans can not reach the packets they are meant for. Looking around takes its time where others' tables are
/// large, so nobody waits for it.
fn warn_of_blunt_jails(specs: &Specs) {
    let aims = doctor::Aim::all(specs);
    let look = move || {
        let (facts, _) = doctor::facts::look();
        doctor::examine(&facts, &aims).iter().filter(|finding| !finding.bites).for_each(|finding| warn!("{finding}"));
    };
    if let Err(e) = std::thread::Builder::new().name("doctor".into()).spawn(look) {
        warn!("cannot look for what would keep bans from biting: {}", plain(&e));
    }
}

/// How `reload` reads the configuration: all or nothing.
fn reloading(global: Global, groups: Groups) -> crate::engine::clerk::Load {
    Box::new(move |old: &Specs| {
        let (sources, loaded) = load::read(&load::paths(&global));
        if !loaded.report.is_sound() {
            return Err(loaded.report.to_string().trim_end().to_owned());
        }
        let config = loaded.config.ok_or("the configuration can not be used")?;
        let mut specs = load::specs(&config, Some(old))?;
        let running = !old.jails.is_empty();
        if running && specs.table != old.table {
            return Err("[nft] table: a running daemon can not move to another table; restart it".to_owned());
        }
        let before = Sources::from_snapshot(old.accepted.as_bytes());
        let before = before.and_then(|sources| config::understand(&sources, load::shipped(), &load::Filters).config);
        specs.changes = before.map_or_else(|| vec!["everything".to_owned()], |before| config::changes(&before, &config));
        if running && specs.daemon.socket != old.daemon.socket {
            specs.changes.push("the socket stays where it is until a restart".to_owned());
        }
        specs.accepted = sources.to_snapshot().into();
        groups.prepare(&specs);
        let warnings = loaded.report.to_string();
        if !warnings.is_empty() {
            warn!("{}", warnings.trim_end());
        }
        Ok(specs)
    })
}

/// Where the random spread of growing bans begins.
pub(super) fn seed() -> u64 {
    let mut bytes = [0; 8];
    match std::fs::File::open("/dev/urandom").and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes)) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(e) => {
            error!("/dev/urandom: {}", plain(&e));
            clock::now().wall.0 as u64
        }
    }
}
