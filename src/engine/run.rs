//! The performer: the loop around the core. It waits for what can happen, tells the core, and does what the core says.
//!
//! Threads, each with one thing that may block: `reader` (files), `journals` and one `journal` for each (`journalctl`, only where a journal
//! may be read), `writer` (nf_tables), `keeper` (the state file), `historian` (lines behind a ban, history), `clerk` (slow reading), `machine`
//! (rtnetlink), `listener` (others' changes of our tables), `names` (DNS, only if ignoreip holds host names); here, on the main thread, the
//! loop and the control socket, on one current-thread tokio runtime.

use std::collections::HashMap;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info, warn};

use super::clerk::{self, Errand, Load};
use super::core::{Action, Asked, ClientId, Core, Event, Level};
use super::cut::{self, Cut};
use super::historian;
use super::journals::Sources;
use super::keep::Keeping;
use super::keeper;
use super::kernel::{Work, Writer};
use super::names::Names;
use super::reader;
use super::spawner::Spawner;
use super::spec::Specs;
use super::{clock, listener, machine};
use crate::control::Reply;
use crate::control::server::{self, Access, Incoming};
use crate::filter::is_guarded;
use crate::nft::{self, Monitor};
use crate::state::{Restored, Store};
use crate::watch::{Habits, Watch};

/// Events that may wait; a full queue makes the reader wait, and the log file is the queue.
const EVENTS: usize = 256;
/// Events taken in before what they led to is carried out.
const AT_ONCE: usize = 64;
/// What is in flight at the end gets this long; systemd by itself is patient for 90 s.
const FAREWELL: Duration = Duration::from_secs(30);

/// A daemon that is ready to run: everything that can refuse has agreed.
pub struct Ready {
    /// The core, with what was adopted.
    pub core: Core,
    /// The writing side, the table established.
    pub writer: Writer,
    /// What others do to the table, heard since before it was established.
    pub monitor: Option<Monitor>,
    /// The control socket.
    pub listener: std::os::unix::net::UnixListener,
    /// Where it is; removed at the end.
    pub socket: std::path::PathBuf,
    /// The state file and what it held, if it can be written.
    pub state: Option<(Store, Restored)>,
    /// What starts `journalctl`; it runs if a journal may be read.
    pub spawner: Spawner,
    /// Who may ask.
    pub access: Arc<Mutex<Access>>,
    /// Called with specs that came into force.
    pub applied: Box<dyn Fn(&Specs)>,
    /// Reads the configuration anew.
    pub load: Load,
    /// Called on SIGUSR1: log files were rotated.
    pub reopen: Box<dyn Fn() + Send>,
}

/// Threads without which nobody is banned any more, or nothing is kept.
const VITAL: [&str; 6] = ["reader", "journals", "journal", "writer", "keeper", "listener"];

/// From here on a panic in a thread that nothing works without ends the daemon, for its supervisor to start it again: the kernel's
/// bans stand meanwhile, and what was not saved is read again. A daemon that lives on without its writer would ban nobody and say
/// so to nobody. A line that can not be judged costs only itself: it would end the daemon at each start again.
pub fn end_with_vital_threads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        if std::thread::current().name().is_some_and(|name| VITAL.contains(&name)) && !is_guarded() {
            std::process::abort();
        }
    }));
}

/// Runs until SIGTERM or SIGINT. The table stays as it is.
pub fn run(ready: Ready) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot start: {e}"))?;
    runtime.block_on(drive(ready))
}

/// The ends of the threads' channels that the loop holds.
struct Performer {
    work: std_mpsc::Sender<Work>,
    cuts: std_mpsc::Sender<Vec<Cut>>,
    errands: std_mpsc::Sender<Errand>,
    history: std_mpsc::Sender<historian::Errand>,
    sources: Sources,
    saves: Option<std_mpsc::Sender<Keeping>>,
    names: Names,
    applied: Box<dyn Fn(&Specs)>,
    clients: HashMap<ClientId, oneshot::Sender<Reply>>,
    next_client: u64,
}

async fn drive(ready: Ready) -> Result<(), String> {
    let Ready { mut core, writer, monitor, listener, socket, state, spawner, access, applied, load, reopen } = ready;
    let failed = |what: &'static str| move |e: std::io::Error| format!("cannot start the {what}: {e}");
    let (events, mut happened) = mpsc::channel(EVENTS);
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());

    // Signals first, so that none is lost from here on.
    let (signals, mut signalled) = mpsc::channel(8);
    let mut caught = signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1])
        .map_err(failed("signals"))?;
    let catching = caught.handle();
    thread("signals")
        .spawn(move || caught.forever().map_while(|signal| signals.blocking_send(signal).ok()).for_each(drop))
        .map_err(failed("signals"))?;

    let (work, to_do) = std_mpsc::channel();
    let done = events.clone();
    let writing = thread("writer").spawn(move || writer.run(&to_do, &done)).map_err(failed("writer"))?;
    let (errands, to_run) = std_mpsc::channel();
    let done = events.clone();
    thread("clerk").spawn(move || clerk::run(&to_run, load, &done)).map_err(failed("clerk"))?;
    let (cuts, to_cut) = std_mpsc::channel();
    thread("cutter").spawn(move || cut::run(&to_cut)).map_err(failed("cutter"))?;
    let (history, to_look_up) = std_mpsc::channel();
    let (done, state_dir, asks) = (events.clone(), core.specs().daemon.state_dir.clone(), spawner.clone());
    thread("historian").spawn(move || historian::run(state_dir, asks, &to_look_up, &done)).map_err(failed("historian"))?;
    let moved = events.clone();
    machine::follow(move |machine| moved.blocking_send(Event::Machine(machine)).is_ok()).map_err(failed("address follower"))?;

    if let Some(monitor) = monitor {
        let heard = events.clone();
        listener::listen(monitor, move |news| heard.blocking_send(Event::Foreign(news)).is_ok()).map_err(failed("listener"))?;
    }

    let (watch, handle) = Watch::new(Habits::default()).map_err(failed("file watch"))?;
    let names = Names::new(events.clone());
    let kept = events.clone();
    let (mut reader, reading) = reader::new(events.clone(), handle);
    let mut sources = Sources::new(reading, spawner, events);
    let reader = thread("reader").spawn(move || watch.run(&mut reader)).map_err(failed("reader"))?;

    let (incoming, mut asked) = mpsc::channel(64);
    let listener = UnixListener::from_std(listener).map_err(failed("control socket"))?;
    tokio::spawn(server::serve(listener, access, incoming));

    let (mut saves, mut keeping) = (None, None);
    if let Some((store, restored)) = state {
        let (sender, to_save) = std_mpsc::channel();
        let done = kept;
        keeping = Some(thread("keeper").spawn(move || keeper::run(store, &to_save, &done)).map_err(failed("keeper"))?);
        saves = Some(sender);
        for (path, kept) in &restored.positions {
            if let Some(resume) = keeper::resume(path, kept) {
                sources.resume(path, resume);
            }
        }
    }
    let mut performer =
        Performer { saves, work, cuts, errands, history, sources, names, applied, clients: HashMap::new(), next_client: 0 };
    performer.perform(&mut core);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    info!("ready: {} jails, {} bans held", core.specs().jails.len(), core.bans_held());

    loop {
        let now = clock::now();
        let due = core.next_wake(now).map(|at| Duration::from(at.since(now.mono)));
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = happened.recv() => {
                let Some(event) = event else { return Err("every thread has ended".to_owned()) };
                core.handle(clock::now(), event);
            }
            Some(incoming) = asked.recv() => performer.ask(&mut core, incoming),
            Some(signal) = signalled.recv() => match signal {
                libc::SIGHUP => {
                    info!("SIGHUP: reading the configuration again");
                    let _ = performer.errands.send(Errand::Load(None, core.specs().clone()));
                }
                libc::SIGUSR1 => reopen(),
                _ => break,
            },
            () = sleep => core.handle(clock::now(), Event::Wake),
        }
        for _ in 0..AT_ONCE {
            let Ok(event) = happened.try_recv() else { break };
            core.handle(clock::now(), event);
        }
        if core.minds_listings(clock::now()) {
            core.handle(clock::now(), Event::Listing(nft::dump_runs()));
        }
        core.settle(clock::now());
        performer.perform(&mut core);
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    catching.close();
    let _ = std::fs::remove_file(socket);
    performer.sources.stop();
    farewell(&mut core, &mut performer, &mut happened).await;
    // Both threads may wait for a place in the channel: it goes first.
    drop((performer.work, performer.saves, happened));
    let _ = reader.join();
    let _ = writing.join();
    // The state file is closed whole: nothing is left in its log for the next start to take up.
    if let Some(keeping) = keeping {
        let _ = keeping.join();
    }
    info!("stopped; table {} {} stands, its bans go on", core.specs().family, core.specs().table);
    Ok(())
}

/// Lets what was read and decided reach the kernel before the end.
async fn farewell(core: &mut Core, performer: &mut Performer, happened: &mut mpsc::Receiver<Event>) {
    let end = tokio::time::Instant::now() + FAREWELL;
    core.farewell(clock::now());
    loop {
        core.settle(clock::now());
        performer.perform(core);
        if core.is_quiet() && happened.is_empty() {
            return;
        }
        match tokio::time::timeout_at(end, happened.recv()).await {
            Ok(Some(event)) => core.handle(clock::now(), event),
            Ok(None) => return,
            Err(_) => {
                warn!(
                    "what was decided last did not all reach the kernel and the state within {} s; the logs still hold what it was about",
                    FAREWELL.as_secs()
                );
                return;
            }
        }
    }
}

impl Performer {
    fn ask(&mut self, core: &mut Core, incoming: Incoming) {
        let Incoming { uid, rank, program, request, reply } = incoming;
        let client = ClientId(self.next_client);
        self.next_client += 1;
        self.clients.retain(|_, waiting| !waiting.is_closed());
        self.clients.insert(client, reply);
        let asked = Asked { client, uid, rank, program, request, kernel: None, named: None };
        if clerk::shows_kernel(&asked.request) {
            let _ = self.errands.send(Errand::Look(Box::new(asked), core.specs().clone()));
        } else {
            core.handle(clock::now(), Event::Asked(asked));
        }
    }

    fn perform(&mut self, core: &mut Core) {
        let mut actions = core.take_actions();
        // Nothing comes before a ban: what the kernel is to do goes first, and the log is written while it does it.
        actions.sort_by_key(|action| !matches!(action, Action::Commit(_) | Action::Establish(_)));
        for action in actions {
            match action {
                Action::Commit(changes) => {
                    debug!("commit of {} changes", changes.len());
                    let _ = self.work.send(Work::Commit(changes));
                }
                Action::Establish(wanted) => {
                    let _ = self.work.send(Work::Establish(wanted));
                }
                Action::Dig(dig) => _ = self.history.send(historian::Errand::Dig(dig)),
                Action::Search(search) => _ = self.history.send(historian::Errand::Search(search)),
                Action::Save(keeping) => {
                    if let Some(saves) = &self.saves {
                        let _ = saves.send(*keeping);
                    }
                }
                Action::Cut(cuts) => {
                    let _ = self.cuts.send(cuts);
                }
                Action::Reply(client, reply) => {
                    if let Some(waiting) = self.clients.remove(&client) {
                        let _ = waiting.send(reply);
                    }
                }
                Action::Log(level, text) => log(level, &text),
                Action::Reload(client) => {
                    let _ = self.errands.send(Errand::Load(client, core.specs().clone()));
                }
                Action::Watch(specs) => {
                    self.sources.watch(&specs);
                    self.names.resolve(specs.names());
                    (self.applied)(&specs);
                }
            }
        }
    }
}

/// Writes a line of the core's.
pub fn log(level: Level, text: &str) {
    match level {
        Level::Error => error!("{text}"),
        Level::Warn => warn!("{text}"),
        Level::Info => info!("{text}"),
        Level::Debug => debug!("{text}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    #[test]
    fn a_vital_thread_that_panics_takes_the_daemon_with_it() {
        const CHILD: &str = "BANSET_TEST_PANICS_IN";
        if let Some(name) = std::env::var_os(CHILD) {
            super::end_with_vital_threads();
            let name = name.into_string().expect("a name");
            let judges = name == "reader";
            let panics = || panic!("as was asked for");
            let act = move || if judges { assert!(!crate::filter::guarded(panics)) } else { panics() };
            let thread = std::thread::Builder::new().name(name).spawn(act).expect("a thread");
            assert_eq!(thread.join().is_ok(), judges);
            return;
        }
        for (name, ends) in [("writer", Some(libc::SIGABRT)), ("historian", None), ("reader", None)] {
            let mut child = Command::new(std::env::current_exe().expect("this program"));
            child.args([
                "--exact",
                "engine::run::tests::a_vital_thread_that_panics_takes_the_daemon_with_it",
                "--test-threads=1",
            ]);
            // An abort must not leave a core file behind.
            child.current_dir("/proc").env(CHILD, name).stdout(Stdio::null()).stderr(Stdio::null());
            let status = child.status().expect("it runs");
            assert_eq!((status.signal(), status.success()), (ends, ends.is_none()), "{name}");
        }
    }
}
