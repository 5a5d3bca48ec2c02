//! The thread that writes the state file: one transaction per save, on the disk every few seconds.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::core::{Event, Resume};
use super::keep::Keeping;
use crate::state::{KeptPosition, Save, Store};
use crate::terms::escape;

/// A power loss takes at most this much of what was saved.
const SYNC: Duration = Duration::from_secs(5);

/// Saves until the engine goes away.
pub fn run(mut store: Store, saves: &Receiver<Keeping>, done: &Sender<Event>) {
    let mut unsynced: Option<Instant> = None;
    let mut told = false;
    loop {
        let next = match unsynced {
            None => saves.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(since) => saves.recv_timeout(SYNC.saturating_sub(since.elapsed())),
        };
        match next {
            Ok(keeping) => {
                let sync = keeping.sync;
                let result = store.save(&save(keeping));
                unsynced = if sync && result.is_ok() { None } else { unsynced.or_else(|| Some(Instant::now())) };
                if done.blocking_send(Event::Saved(result)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if !flush(&mut store, &mut told, done) {
                    return;
                }
                // What failed is tried again although nothing more may come.
                unsynced = told.then(Instant::now);
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if unsynced.is_some_and(|since| since.elapsed() >= SYNC) {
            if !flush(&mut store, &mut told, done) {
                return;
            }
            unsynced = told.then(Instant::now);
        }
    }
}

/// Brings to the disk what was saved; tells when that begins to fail and when it works again. `false`: the engine went away.
fn flush(store: &mut Store, told: &mut bool, done: &Sender<Event>) -> bool {
    let failed = store.sync().err().map(|e| format!("the state is saved, but not on the disk yet: {e}"));
    if std::mem::replace(told, failed.is_some()) == failed.is_some() {
        return true;
    }
    done.blocking_send(Event::Synced(failed)).is_ok()
}

fn save(keeping: Keeping) -> Save {
    let text = |resume: &Arc<Resume>| KeptPosition {
        place: resume.place,
        mark: match &resume.journal {
            Some(journal) => serde_json::to_string(journal).unwrap_or_default(),
            None => serde_json::to_string(&resume.position).unwrap_or_default(),
        },
        scanner: serde_json::to_string(&resume.scanner).unwrap_or_default(),
    };
    Save {
        failures: keeping.failures,
        whole: keeping.whole,
        anew: keeping.anew,
        absent: keeping.absent,
        bans: keeping.bans,
        positions: keeping.positions.into_iter().map(|(path, resume)| (path, resume.as_ref().map(text))).collect(),
        totals: keeping.totals,
        kernel: keeping.kernel,
        history: keeping.history.to_vec(),
        lines: keeping.lines.to_vec(),
        offences: keeping.offences,
        ignored: keeping.ignored,
        paused: keeping.paused,
        applied: keeping.applied,
        names: keeping.names,
        clock: keeping.clock,
        keep: keeping.keep,
        sync: keeping.sync,
    }
}

/// A kept position as the reader takes it up; `None` if it is of another version's making: the log is read back then, which is said.
/// Files have absolute paths, journals names.
pub fn resume(path: &str, kept: &KeptPosition) -> Option<Resume> {
    let unread = |what: &str, e: &serde_json::Error| {
        tracing::warn!("{}: {what} can not be read: {e}", escape(path.as_bytes(), 4096));
    };
    let lost =
        |e: serde_json::Error| unread("the position that an earlier run kept, so it is read back as at a first start,", &e);
    if !path.starts_with('/') {
        let journal = serde_json::from_str(&kept.mark).map_err(lost).ok()?;
        return Some(Resume { place: kept.place, journal: Some(Box::new(journal)), ..Resume::default() });
    }
    let position = serde_json::from_str(&kept.mark).map_err(lost).ok()?;
    let scanner = serde_json::from_str(&kept.scanner);
    let scanner = scanner.map_err(|e| unread("what its filters remembered in an earlier run", &e)).unwrap_or_default();
    Some(Resume { place: kept.place, position, scanner, journal: None })
}
