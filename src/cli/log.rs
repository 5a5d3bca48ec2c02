//! The daemon's log: one line an event, worded so that tools made for fail2ban's log read it.
//!
//! `2026-11-22 02:10:57,460 WARNING [sshd] Ban 192.0.2.10`. Where standard error is the journal, the time is left out and
//! the level goes as the priority that journald reads (`<4>`, sd-daemon(3)).

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{Event, Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use crate::config::run::{Log, Loglevel};
use crate::terms::plain;

/// What can be changed while the daemon runs.
#[derive(Clone)]
pub struct Handle {
    level: reload::Handle<LevelFilter, Registry>,
    file: Option<Arc<Mutex<Reopened>>>,
}

impl Handle {
    /// Sets the level from now on.
    pub fn level(&self, level: Loglevel) {
        let _ = self.level.reload(filter(level));
    }
    /// Opens the log file again, after rotation moved it away.
    pub fn reopen(&self) {
        if let Some(file) = &self.file
            && let Err(e) = file.lock().unwrap_or_else(PoisonError::into_inner).reopen()
        {
            tracing::error!("cannot reopen the log file: {}", plain(&e));
        }
    }
}

/// Starts logging. Called once.
pub fn start(log: &Log, level: Loglevel) -> Result<Handle, String> {
    let (filter, handle) = reload::Layer::new(filter(level));
    let layer = tracing_subscriber::fmt::layer();
    let registry = tracing_subscriber::registry().with(filter);
    let file = match log {
        Log::File(path) => {
            let opened = Reopened::open(path).map_err(|e| {
                let help = "write another `log` in [daemon], or let the daemon's user write there";
                format!("cannot open the log {}: {}\n  help: {help}", path.display(), plain(&e))
            })?;
            let file = Arc::new(Mutex::new(opened));
            let writer = Shared(file.clone());
            registry
                .with(layer.event_format(Line { journal: false }).with_ansi(false).with_writer(move || writer.clone()))
                .init();
            Some(file)
        }
        Log::Journal => {
            let journal = tracing_journald::layer().map_err(|e| {
                let help = "is journald running here? `log = \"stderr\"` in [daemon] needs none";
                format!("cannot reach the journal: {}\n  help: {help}", plain(&e))
            })?;
            registry.with(journal).init();
            None
        }
        Log::Stderr => {
            registry.with(layer.event_format(Line { journal: to_journal() }).with_ansi(false).with_writer(io::stderr)).init();
            None
        }
    };
    Ok(Handle { level: handle, file })
}

fn filter(level: Loglevel) -> LevelFilter {
    match level {
        Loglevel::Error => LevelFilter::ERROR,
        Loglevel::Warning => LevelFilter::WARN,
        Loglevel::Info => LevelFilter::INFO,
        Loglevel::Debug => LevelFilter::DEBUG,
        Loglevel::Trace => LevelFilter::TRACE,
    }
}

/// Whether standard error leads to journald: `JOURNAL_STREAM` holds its device and inode (systemd.exec(5)).
fn to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = nix::sys::stat::fstat(io::stderr()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// The format of a line.
struct Line {
    journal: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (priority, name) = match *event.metadata().level() {
            Level::ERROR => (3, "ERROR"),
            Level::WARN => (4, "WARNING"),
            Level::INFO => (6, "INFO"),
            Level::DEBUG => (7, "DEBUG"),
            Level::TRACE => (7, "TRACE"),
        };
        match self.journal {
            true => write!(out, "<{priority}>")?,
            false => write!(out, "{} {name:<7} ", jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S,%3f"))?,
        }
        context.format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

/// A log file that can be opened again under the same name.
struct Reopened {
    path: PathBuf,
    file: File,
}

impl Reopened {
    fn open(path: &Path) -> io::Result<Reopened> {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        Ok(Reopened { path: path.to_owned(), file })
    }
    fn reopen(&mut self) -> io::Result<()> {
        let new = Reopened::open(&self.path)?;
        if new.file.metadata()?.ino() != self.file.metadata()?.ino() {
            *self = new;
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Reopened>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).file.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
