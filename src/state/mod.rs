//! What must survive the daemon: positions, counted failures, and bans, in one SQLite file.
//!
//! Losing it loses memory, never protection: the kernel holds the bans, the logs hold the lines. So whatever is wrong with the
//! file, the daemon goes on: a corrupt one, or one of a newer version, is set aside with its date and a new one begun.
//!
//! One save is one transaction, and holds together what belongs together: how far a log was read, what was counted up to
//! there, and the bans that came of it. A kill at any moment leaves the last whole save; what was read since is read again
//! from its position and counts the same, once.
//!
//! Failures are kept packed, one row per jail and save, and written anew as one row when the rows have grown beyond what they
//! say: a row per address wrote 39 MB/s under attack where this writes 0.1.

pub mod history;
pub mod packed;

use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::terms::{Lasting, Span, Time};

/// The version of the tables; kept in SQLite's user_version.
const VERSION: i64 = 4;
/// The file's name in the state directory.
const FILE: &str = "banset.sqlite3";
/// What stands in place of a reason where a ban was found in the kernel: it is no offence, and the log may still account for it.
pub const ADOPTED: &str = "adopted";
/// Between two rounds of forgetting history that is too old; and before the first: a machine may start with a clock that is years off.
const PURGE: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(600));
/// Rows written that bring the next round forward.
const PURGE_ROWS: usize = 20_000;
/// How long a save waits for somebody else who writes, with sqlite3(1) perhaps, and a sync for those who read.
const BUSY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(200));
/// The write-ahead log is cut back to this when it has grown beyond.
const LOG_AT_MOST: u64 = 16 << 20;

const TABLES: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE position (path TEXT PRIMARY KEY, place INTEGER NOT NULL, mark TEXT NOT NULL, scanner TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE failures (seq INTEGER PRIMARY KEY, jail TEXT NOT NULL, packed BLOB NOT NULL);
    CREATE TABLE ban (
        jail TEXT NOT NULL, subject TEXT NOT NULL, since INTEGER NOT NULL, until INTEGER, lasting INTEGER,
        failures INTEGER NOT NULL, uid INTEGER, reason TEXT, in_kernel INTEGER NOT NULL,
        PRIMARY KEY (jail, subject)) WITHOUT ROWID;
    CREATE TABLE jail (name TEXT PRIMARY KEY, failures INTEGER NOT NULL, bans INTEGER NOT NULL, last_failure INTEGER) WITHOUT ROWID;
    CREATE VIEW bans AS
        SELECT jail, subject, datetime(since / 1000000, 'unixepoch') AS since_utc,
               coalesce(datetime(until / 1000000, 'unixepoch'), 'permanent') AS until_utc, failures, uid, reason
        FROM ban ORDER BY since DESC;
    CREATE VIEW positions AS SELECT path, json_extract(mark, '$.marks[#-1].offset') AS offset FROM position;
";

/// What version 2 has besides: history, offences, and what people asked for at run time. An empty jail stands for all.
const SINCE_2: &str = "
    CREATE TABLE offence (
        jail TEXT NOT NULL, subject TEXT NOT NULL, bans INTEGER NOT NULL, until INTEGER NOT NULL, PRIMARY KEY (jail, subject))
        WITHOUT ROWID;
    CREATE TABLE ignored (
        jail TEXT NOT NULL, subject TEXT NOT NULL, since INTEGER NOT NULL, until INTEGER, uid INTEGER NOT NULL, reason TEXT,
        PRIMARY KEY (jail, subject)) WITHOUT ROWID;
    CREATE TABLE applied (origin TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE paused (jail TEXT PRIMARY KEY, since INTEGER NOT NULL, until INTEGER, uid INTEGER NOT NULL) WITHOUT ROWID;
    CREATE VIEW offences AS
        SELECT jail, subject, bans, datetime(until / 1000000, 'unixepoch') AS last_until_utc FROM offence ORDER BY bans DESC;
";

/// What version 3 has besides: beneath another machine's ban, our own as JSON.
const SINCE_3: &str = "ALTER TABLE ban ADD COLUMN own TEXT;";

/// What version 4 has besides: why lines are missing, and what ignored names resolved to.
const SINCE_4: &str = "
    ALTER TABLE event ADD COLUMN missing TEXT;
    CREATE TABLE name (name TEXT PRIMARY KEY, addresses TEXT NOT NULL) WITHOUT ROWID;
";

/// The file, open.
pub struct Store {
    connection: Connection,
    path: PathBuf,
    boot: String,
    purge_at: Instant,
    rows_since: usize,
}

/// What changed since the last save.
#[derive(Clone, Debug, Default)]
pub struct Save {
    /// Failures and forgettings by jail, packed ([`packed`]), in order.
    pub failures: Vec<(Arc<str>, Vec<u8>)>,
    /// Whether `failures` are everything counted now, instead of what was added.
    pub whole: bool,
    /// Whether `bans` and `offences` are all there are now, instead of what changed.
    pub anew: bool,
    /// Of these jails `whole` and `anew` say nothing: what is kept of them stays.
    pub absent: Vec<Arc<str>>,
    /// Bans as they are now; `None`: lifted or over.
    pub bans: Vec<(Arc<str>, IpNetwork, Option<KeptBan>)>,
    /// How far logs were read; `None`: no longer followed.
    pub positions: Vec<(Arc<str>, Option<KeptPosition>)>,
    /// Totals by jail.
    pub totals: Vec<(Arc<str>, Totals)>,
    /// The boot and the table that the kernel's part of this belongs to.
    pub kernel: Option<KernelIdentity>,
    /// What happened, in order.
    pub history: Vec<history::Row>,
    /// Lines read back, by the row they belong to.
    pub lines: Vec<history::Lines>,
    /// Offences as they are now, by jail; `None`: forgotten.
    pub offences: Vec<(Arc<str>, IpNetwork, Option<KeptOffence>)>,
    /// What is ignored by request, all of it, if that changed.
    pub ignored: Option<Vec<KeptIgnore>>,
    /// What is paused, all of it, if that changed.
    pub paused: Option<Vec<KeptPause>>,
    /// How far other machines' events were applied, all of it, if that changed.
    pub applied: Option<Vec<(Box<str>, u64)>>,
    /// The addresses that ignored host names have, all of them, if that changed.
    pub names: Option<Vec<(Box<str>, Vec<IpAddr>)>>,
    /// The wall clock less the monotonic one, in microseconds, if that moved: the clock that the times of bans are kept by.
    pub clock: Option<i64>,
    /// Now, and how long history is kept.
    pub keep: Option<(Time, Span)>,
    /// Whether it must be on the disk, not only in the system's memory, when the save returns.
    pub sync: bool,
}

/// Earlier bans of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptOffence {
    /// How many.
    pub bans: u32,
    /// When the last of them ends or ended.
    pub until: Time,
}

/// An address or subnet that somebody wants ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptIgnore {
    /// In this jail only.
    pub jail: Option<Arc<str>>,
    /// Whom.
    pub subject: IpNetwork,
    /// Since when.
    pub since: Time,
    /// Until when; `None`: until somebody says otherwise.
    pub until: Option<Time>,
    /// Who said so.
    pub uid: u32,
    /// Why.
    pub reason: Option<Box<str>>,
}

/// A pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPause {
    /// Of this jail only.
    pub jail: Option<Arc<str>>,
    /// Since when.
    pub since: Time,
    /// Until when; `None`: until `resume`.
    pub until: Option<Time>,
    /// Who said so.
    pub uid: u32,
}

/// A ban, with wall times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptBan {
    /// When it began.
    pub since: Time,
    /// When it ends; `None`: permanent.
    pub until: Option<Time>,
    /// The length it was given.
    pub lasting: Lasting,
    /// Failures behind it.
    pub failures: u32,
    /// Whose it is if it was made by hand.
    pub uid: Option<u32>,
    /// Why, if somebody said so.
    pub reason: Option<String>,
    /// Whether the kernel said yes to it.
    pub in_kernel: bool,
    /// What we decided ourselves beneath another machine's longer ban.
    pub own: Option<Box<KeptBan>>,
}

/// The whole state of one reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPosition {
    /// The source's number in failures' places.
    pub place: u16,
    /// The watch room's position, as JSON.
    pub mark: String,
    /// The filter room's scanner state, as JSON.
    pub scanner: String,
}

/// Totals of a jail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Failures counted.
    pub failures: u64,
    /// Bans made.
    pub bans: u64,
    /// The last failure.
    pub last_failure: Option<Time>,
}

/// Which kernel table our elements are in: another boot or another handle is another table, whatever its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelIdentity {
    /// `/proc/sys/kernel/random/boot_id`
    pub boot: String,
    /// The table's handle.
    pub table: u64,
}

/// Everything a start finds.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// The table the bans were in, if any was saved.
    pub kernel: Option<KernelIdentity>,
    /// Positions by path.
    pub positions: Vec<(Arc<str>, KeptPosition)>,
    /// Packed failures by jail, in order.
    pub failures: Vec<(Arc<str>, Vec<u8>)>,
    /// Bans by jail.
    pub bans: Vec<(Arc<str>, IpNetwork, KeptBan)>,
    /// Totals by jail.
    pub totals: Vec<(Arc<str>, Totals)>,
    /// The number of the last thing that happened.
    pub seq: u64,
    /// Bans whose lines were not read back yet.
    pub unread: Vec<history::Unread>,
    /// Bans that were found in the kernel and have a row that says so: its number.
    pub found: Vec<(Arc<str>, IpNetwork, u64)>,
    /// Offences by jail.
    pub offences: Vec<(Arc<str>, IpNetwork, KeptOffence)>,
    /// What is ignored by request.
    pub ignored: Vec<KeptIgnore>,
    /// What is paused.
    pub paused: Vec<KeptPause>,
    /// How far other machines' events were applied.
    pub applied: Vec<(Box<str>, u64)>,
    /// The last good addresses of ignored host names.
    pub names: Vec<(Box<str>, Vec<IpAddr>)>,
    /// The wall clock less the monotonic one as it was at the last save, in microseconds, if that was in this boot.
    pub clock: Option<i64>,
    /// The key under which account names are hashed, if they are.
    pub key: [u64; 2],
}

impl Store {
    /// Opens the state in `directory`, made if it is missing. What it says besides is for the log: a file that was set aside.
    ///
    /// # Errors
    /// The directory or the file can not be made or written: the daemon goes on without, and says so.
    pub fn open(directory: &Path) -> Result<(Store, Restored, Option<String>), String> {
        let named = |e: &dyn std::fmt::Display| format!("{}: {e}", directory.display());
        std::fs::create_dir_all(directory).map_err(|e| named(&crate::terms::plain(&e)))?;
        let path = directory.join(FILE);
        let (why, aside) = match Store::open_file(&path) {
            Ok((store, restored)) => return Ok((store, restored, None)),
            Err(Failed::Unusable(why)) => {
                let stamp = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
                let aside = directory.join(format!("{FILE}.{stamp}"));
                std::fs::rename(&path, &aside).map_err(|e| named(&e))?;
                // What was committed last may stand in its log alone; without it the new file would take it up.
                let log = |of: &Path| PathBuf::from(format!("{}-wal", of.display()));
                match std::fs::rename(log(&path), log(&aside)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(named(&crate::terms::plain(&e))),
                    _ => {}
                }
                let _ = std::fs::remove_file(directory.join(format!("{FILE}-shm")));
                (why, aside)
            }
            Err(Failed::Io(why)) => return Err(format!("{}: {why}", path.display())),
        };
        match Store::open_file(&path) {
            Ok((store, restored)) => {
                let said = format!("{}: {why}; set aside as {}", path.display(), aside.display());
                Ok((store, restored, Some(said)))
            }
            Err(Failed::Unusable(why) | Failed::Io(why)) => Err(format!("{}: {why}", path.display())),
        }
    }

    fn open_file(path: &Path) -> Result<(Store, Restored), Failed> {
        // Made by us first, so that it is never readable for others, not even for a moment.
        let made = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = made.map_err(|e| Failed::Io(crate::terms::plain(&e)))?;
        let _ = file.set_permissions(std::fs::Permissions::from_mode(0o600));
        drop(file);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY.0)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A kill loses nothing that was committed; a power loss at most what came since the last checkpoint.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", 2000)?;
        connection.pragma_update(None, "journal_size_limit", LOG_AT_MOST)?;
        connection.set_prepared_statement_cache_capacity(32);
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        // What an older version has stays, the rest begins empty: version 1 kept no history.
        let missing = match version {
            0 => &[TABLES, SINCE_2, history::TABLES, SINCE_3, SINCE_4][..],
            1 => &[SINCE_2, history::TABLES, SINCE_3, SINCE_4],
            2 => &[SINCE_3, SINCE_4],
            3 => &[SINCE_4],
            VERSION => &[],
            newer => {
                return Err(Failed::Unusable(format!("made by another version of banset ({newer}, this one knows {VERSION})")));
            }
        };
        if !missing.is_empty() {
            connection.execute_batch(&format!("BEGIN;{}PRAGMA user_version = {VERSION};COMMIT;", missing.concat()))?;
        }
        let store =
            Store { connection, path: path.to_owned(), boot: boot_id(), purge_at: Instant::now() + PURGE.1, rows_since: 0 };
        let restored = store.restore()?;
        Ok((store, restored))
    }

    fn restore(&self) -> Result<Restored, rusqlite::Error> {
        let db = &self.connection;
        let meta = |name: &str| -> Result<Option<String>, rusqlite::Error> {
            db.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).optional()
        };
        let kernel = match (meta("boot")?, meta("table")?.and_then(|text| text.parse().ok())) {
            (Some(boot), Some(table)) => Some(KernelIdentity { boot, table }),
            _ => None,
        };
        let text =
            |row: &rusqlite::Row<'_>, at| -> Result<Arc<str>, rusqlite::Error> { Ok(Arc::from(row.get_ref(at)?.as_str()?)) };
        let positions = db
            .prepare("SELECT path, place, mark, scanner FROM position")?
            .query_map([], |row| {
                let kept = KeptPosition { place: row.get(1)?, mark: row.get(2)?, scanner: row.get(3)? };
                Ok((text(row, 0)?, kept))
            })?
            .collect::<Result<_, _>>()?;
        let failures = db
            .prepare("SELECT jail, packed FROM failures ORDER BY seq")?
            .query_map([], |row| Ok((text(row, 0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let bans: Vec<(Arc<str>, IpNetwork, KeptBan)> = db
            .prepare("SELECT jail, subject, since, until, lasting, failures, uid, reason, in_kernel, own FROM ban")?
            .query_map([], |row| {
                let subject: Option<IpNetwork> = row.get_ref(1)?.as_str()?.parse().ok();
                let kept = KeptBan {
                    since: Time(row.get(2)?),
                    until: row.get::<_, Option<i64>>(3)?.map(Time),
                    lasting: row
                        .get::<_, Option<i64>>(4)?
                        .map_or(Lasting::Permanent, |span| Lasting::For(Span(span.max(0) as u64))),
                    failures: row.get(5)?,
                    uid: row.get(6)?,
                    reason: row.get(7)?,
                    in_kernel: row.get(8)?,
                    own: row.get_ref(9)?.as_str_or_null()?.and_then(|own| serde_json::from_str(own).ok()),
                };
                Ok(subject.map(|subject| (row.get::<_, String>(0).map(Arc::from), subject, kept)))
            })?
            .filter_map(|row| match row {
                Ok(Some((Ok(jail), subject, kept))) => Some(Ok((jail, subject, kept))),
                Ok(Some((Err(e), ..))) | Err(e) => Some(Err(e)),
                Ok(None) => None,
            })
            .collect::<Result<_, _>>()?;
        let totals = db
            .prepare("SELECT name, failures, bans, last_failure FROM jail")?
            .query_map([], |row| {
                let totals = Totals {
                    failures: row.get::<_, i64>(1)?.max(0) as u64,
                    bans: row.get::<_, i64>(2)?.max(0) as u64,
                    last_failure: row.get::<_, Option<i64>>(3)?.map(Time),
                };
                Ok((text(row, 0)?, totals))
            })?
            .collect::<Result<_, _>>()?;
        let offences = db
            .prepare("SELECT jail, subject, bans, until FROM offence")?
            .query_map([], |row| {
                let subject: Option<IpNetwork> = row.get_ref(1)?.as_str()?.parse().ok();
                let kept = KeptOffence { bans: row.get(2)?, until: Time(row.get(3)?) };
                Ok(subject.map(|subject| (row.get::<_, String>(0).map(Arc::from), subject, kept)))
            })?
            .filter_map(|row| match row {
                Ok(Some((Ok(jail), subject, kept))) => Some(Ok((jail, subject, kept))),
                Ok(Some((Err(e), ..))) | Err(e) => Some(Err(e)),
                Ok(None) => None,
            })
            .collect::<Result<_, _>>()?;
        let all = |name: String| if name.is_empty() { None } else { Some(Arc::from(name)) };
        let ignored = db
            .prepare("SELECT jail, subject, since, until, uid, reason FROM ignored")?
            .query_map([], |row| {
                let Some(subject) = row.get_ref(1)?.as_str()?.parse().ok() else { return Ok(None) };
                Ok(Some(KeptIgnore {
                    jail: all(row.get(0)?),
                    subject,
                    since: Time(row.get(2)?),
                    until: row.get::<_, Option<i64>>(3)?.map(Time),
                    uid: row.get(4)?,
                    reason: row.get(5)?,
                }))
            })?
            .filter_map(Result::transpose)
            .collect::<Result<_, _>>()?;
        let paused = db
            .prepare("SELECT jail, since, until, uid FROM paused")?
            .query_map([], |row| {
                let until = row.get::<_, Option<i64>>(2)?.map(Time);
                Ok(KeptPause { jail: all(row.get(0)?), since: Time(row.get(1)?), until, uid: row.get(3)? })
            })?
            .collect::<Result<_, _>>()?;
        let applied = db
            .prepare("SELECT origin, seq FROM applied")?
            .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.max(0) as u64)))?
            .collect::<Result<_, _>>()?;
        let names = db
            .prepare("SELECT name, addresses FROM name")?
            .query_map([], |row| {
                let addresses = row.get_ref(1)?.as_str()?.split(' ').filter_map(|address| address.parse().ok());
                Ok((row.get(0)?, addresses.collect()))
            })?
            .collect::<Result<_, _>>()?;
        let clock = match (meta("clock_boot")?, meta("clock")?.and_then(|text| text.parse().ok())) {
            (Some(boot), Some(clock)) if !boot.is_empty() && boot == boot_id() => Some(clock),
            _ => None,
        };
        let key = match meta("key")?.and_then(|text| u128::from_str_radix(&text, 16).ok()) {
            Some(key) => [(key >> 64) as u64, key as u64],
            None => {
                let key = u128::from_ne_bytes(random());
                db.execute("INSERT OR REPLACE INTO meta VALUES ('key', ?1)", [format!("{key:032x}")])?;
                [(key >> 64) as u64, key as u64]
            }
        };
        let (seq, unread) = (history::last_seq(db)?, history::unread(db)?);
        let adopted = bans.iter().any(|(.., kept)| kept.uid.is_none() && kept.reason.as_deref() == Some(ADOPTED));
        let found = if adopted { history::found(db)? } else { Vec::new() };
        Ok(Restored {
            kernel,
            positions,
            failures,
            bans,
            totals,
            seq,
            unread,
            found,
            offences,
            ignored,
            paused,
            applied,
            names,
            clock,
            key,
        })
    }

    /// Saves in one transaction; on an error nothing of it is saved, or it is not on the disk as was asked for.
    pub fn save(&mut self, save: &Save) -> Result<(), String> {
        self.write(save).map_err(|e| format!("{}: {e}", self.path.display()))?;
        if save.sync { self.sync() } else { Ok(()) }
    }

    fn write(&mut self, save: &Save) -> Result<(), rusqlite::Error> {
        let transaction = self.connection.transaction()?;
        let absent = serde_json::to_string(&save.absent.iter().map(|jail| &**jail).collect::<Vec<_>>()).unwrap_or_default();
        let empty = |table: &str| {
            let rest = "WHERE jail NOT IN (SELECT value FROM json_each(?1))";
            transaction.execute(&format!("DELETE FROM {table} {rest}"), [&absent])
        };
        if save.whole {
            empty("failures")?;
        }
        if save.anew {
            empty("ban")?;
            empty("offence")?;
        }
        for (jail, packed) in &save.failures {
            transaction
                .prepare_cached("INSERT INTO failures (jail, packed) VALUES (?1, ?2)")?
                .execute(params![&**jail, packed])?;
        }
        for (jail, subject, kept) in &save.bans {
            let subject = subject.to_string();
            match kept {
                Some(ban) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO ban VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
                    .execute(params![
                        &**jail,
                        subject,
                        ban.since.0,
                        ban.until.map(|until| until.0),
                        match ban.lasting {
                            Lasting::For(span) => Some(span.0.min(i64::MAX as u64) as i64),
                            Lasting::Permanent => None,
                        },
                        ban.failures,
                        ban.uid,
                        ban.reason,
                        ban.in_kernel,
                        ban.own.as_ref().and_then(|own| serde_json::to_string(own).ok())
                    ])?,
                None => transaction
                    .prepare_cached("DELETE FROM ban WHERE jail = ?1 AND subject = ?2")?
                    .execute(params![&**jail, subject])?,
            };
        }
        for (path, kept) in &save.positions {
            match kept {
                Some(position) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO position VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![&**path, position.place, position.mark, position.scanner])?,
                None => transaction.prepare_cached("DELETE FROM position WHERE path = ?1")?.execute([&**path])?,
            };
        }
        for (jail, totals) in &save.totals {
            let last = totals.last_failure.map(|time| time.0);
            transaction.prepare_cached("INSERT OR REPLACE INTO jail VALUES (?1, ?2, ?3, ?4)")?.execute(params![
                &**jail,
                totals.failures as i64,
                totals.bans as i64,
                last
            ])?;
        }
        if let Some(kernel) = &save.kernel {
            let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?;
            put.execute(["boot", &kernel.boot])?;
            put.execute(["table", &kernel.table.to_string()])?;
        }
        history::write(&transaction, &save.history, &save.lines)?;
        for (jail, subject, kept) in &save.offences {
            let subject = subject.to_string();
            match kept {
                Some(offence) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO offence VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![&**jail, subject, offence.bans, offence.until.0])?,
                None => transaction
                    .prepare_cached("DELETE FROM offence WHERE jail = ?1 AND subject = ?2")?
                    .execute(params![&**jail, subject])?,
            };
        }
        if let Some(ignored) = &save.ignored {
            transaction.execute("DELETE FROM ignored", [])?;
            for entry in ignored {
                let jail = entry.jail.as_deref().unwrap_or_default();
                let (since, until) = (entry.since.0, entry.until.map(|until| until.0));
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO ignored VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                    .execute(params![jail, entry.subject.to_string(), since, until, entry.uid, entry.reason.as_deref()])?;
            }
        }
        if let Some(paused) = &save.paused {
            transaction.execute("DELETE FROM paused", [])?;
            for entry in paused {
                let jail = entry.jail.as_deref().unwrap_or_default();
                let until = entry.until.map(|until| until.0);
                transaction.prepare_cached("INSERT OR REPLACE INTO paused VALUES (?1, ?2, ?3, ?4)")?.execute(params![
                    jail,
                    entry.since.0,
                    until,
                    entry.uid
                ])?;
            }
        }
        for (origin, seq) in save.applied.iter().flatten() {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO applied VALUES (?1, ?2)")?
                .execute(params![&**origin, *seq as i64])?;
        }
        if let Some(names) = &save.names {
            transaction.execute("DELETE FROM name", [])?;
            for (name, addresses) in names {
                let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO name VALUES (?1, ?2)")?
                    .execute(params![&**name, addresses])?;
            }
        }
        if let Some(clock) = save.clock {
            let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?;
            put.execute(["clock_boot", &self.boot])?;
            put.execute(["clock", &clock.to_string()])?;
        }
        let rows = self.rows_since + save.history.len();
        let purge = rows >= PURGE_ROWS || Instant::now() >= self.purge_at;
        let purge = save.keep.filter(|_| purge);
        if let Some((now, keep)) = purge {
            history::purge(&transaction, now, keep)?;
        }
        transaction.commit()?;
        self.rows_since = if purge.is_some() { 0 } else { rows };
        if purge.is_some() {
            self.purge_at = Instant::now() + PURGE.0;
        }
        Ok(())
    }

    /// Puts what was saved on the disk: a checkpoint syncs the log and then the file. One that somebody's reading holds up does
    /// neither for sure: then the log alone is synced, which is as good for the next start.
    pub fn sync(&mut self) -> Result<(), String> {
        let named = |e: &dyn std::fmt::Display| format!("{}: {e}", self.path.display());
        self.connection.busy_timeout(BUSY.1).map_err(|e| named(&e))?;
        let held_up = self.connection.query_row("PRAGMA wal_checkpoint(FULL)", [], |row| row.get::<_, bool>(0));
        self.connection.busy_timeout(BUSY.0).map_err(|e| named(&e))?;
        if held_up.map_err(|e| named(&e))? {
            let log = PathBuf::from(format!("{}-wal", self.path.display()));
            // SQLite's locks are not on this file, so that closing it loses none.
            std::fs::File::open(log).and_then(|log| log.sync_data()).map_err(|e| named(&crate::terms::plain(&e)))?;
        }
        Ok(())
    }
}

/// Why the file could not be opened.
enum Failed {
    /// What is in it is no use: set it aside.
    Unusable(String),
    /// It can not be reached.
    Io(String),
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Failed {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Failed::Unusable("corrupt".to_owned()),
            // Tables that are not ours, or rows of another type.
            Some(rusqlite::ErrorCode::Unknown) | None => Failed::Unusable(error.to_string()),
            Some(_) => Failed::Io(error.to_string()),
        }
    }
}

/// Bytes that nobody can guess.
fn random() -> [u8; 16] {
    use std::io::Read;
    let mut bytes = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if read.is_err() {
        // No such device: the time is a poor key, and better than one that everybody has.
        bytes = u128::from(Time::now().0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_ne_bytes();
    }
    bytes
}

/// The identity of this boot.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(subject: &str) -> (Arc<str>, IpNetwork, Option<KeptBan>) {
        let kept = KeptBan {
            since: Time(5),
            until: Some(Time(10)),
            lasting: Lasting::For(Span(5)),
            failures: 3,
            uid: None,
            reason: None,
            in_kernel: true,
            own: None,
        };
        let kept = KeptBan { reason: Some("@mx2".into()), own: Some(Box::new(kept.clone())), ..kept };
        ("sshd".into(), subject.parse().expect("a net"), Some(kept))
    }

    fn open(directory: &Path) -> (Store, Restored, Option<String>) {
        Store::open(directory).expect("a directory of our own")
    }

    #[test]
    fn what_is_saved_is_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut store, restored, said) = open(dir.path());
        assert!(restored.bans.is_empty() && restored.kernel.is_none() && said.is_none());
        let position = KeptPosition { place: 3, mark: "{}".into(), scanner: "{}".into() };
        let totals = Totals { failures: 7, bans: 2, last_failure: Some(Time(9)) };
        let kernel = KernelIdentity { boot: boot_id(), table: 17 };
        let save = Save {
            failures: vec![("sshd".into(), vec![1, 2, 3])],
            bans: vec![ban("192.0.2.7"), ban("2001:db8::/64")],
            positions: vec![("/var/log/auth.log".into(), Some(position.clone()))],
            totals: vec![("sshd".into(), totals)],
            kernel: Some(kernel.clone()),
            sync: true,
            ..Save::default()
        };
        store.save(&save).expect("saved");
        let more = Save {
            failures: vec![("sshd".into(), vec![4])],
            bans: vec![("sshd".into(), "192.0.2.7".parse().expect("a net"), None)],
            ..Save::default()
        };
        store.save(&more).expect("saved");
        drop(store);
        let (mut store, restored, _) = open(dir.path());
        assert_eq!(restored.kernel, Some(kernel));
        assert_eq!(restored.failures, [("sshd".into(), vec![1, 2, 3]), ("sshd".into(), vec![4])]);
        assert_eq!(restored.positions, [("/var/log/auth.log".into(), position)]);
        assert_eq!(restored.totals, [("sshd".into(), totals)]);
        assert_eq!(restored.bans.len(), 1);
        assert_eq!(Some(restored.bans[0].2.clone()), ban("2001:db8::/64").2);
        store.save(&Save { whole: true, failures: vec![("sshd".into(), vec![9])], ..Save::default() }).expect("saved");
        drop(store);
        assert_eq!(open(dir.path()).1.failures, [("sshd".into(), vec![9])]);
        let mode = std::fs::metadata(dir.path().join(FILE)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_told_anew_takes_the_place_of_everything_but_what_absent_jails_have() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut store, ..) = open(dir.path());
        let (_, subject, kept) = ban("192.0.2.7");
        let offence = Some(KeptOffence { bans: 2, until: Time(9) });
        let (sshd, broken): (Arc<str>, Arc<str>) = ("sshd".into(), "broken".into());
        let save = Save {
            failures: vec![(sshd.clone(), vec![1]), (broken.clone(), vec![2])],
            bans: vec![ban("192.0.2.7"), ban("192.0.2.8"), (broken.clone(), subject, kept)],
            offences: vec![(sshd.clone(), subject, offence), (broken.clone(), subject, offence)],
            names: Some(vec![(
                "mx.example.org".into(),
                vec!["192.0.2.1".parse().expect("an address"), "::1".parse().expect("one")],
            )]),
            clock: Some(-7),
            ..Save::default()
        };
        store.save(&save).expect("saved");
        // A save in which 192.0.2.8 was lifted had failed: nothing tells that it is gone but that it is not told.
        let absent = vec![broken.clone()];
        let anew = Save { whole: true, anew: true, absent, bans: vec![ban("192.0.2.7")], ..Save::default() };
        store.save(&anew).expect("saved");
        drop(store);
        let (_store, restored, _) = open(dir.path());
        let mut bans: Vec<String> = restored.bans.iter().map(|(jail, subject, _)| format!("{jail} {subject}")).collect();
        bans.sort();
        assert_eq!(bans, ["broken 192.0.2.7/32", "sshd 192.0.2.7/32"]);
        assert_eq!(restored.failures, [(broken.clone(), vec![2])]);
        assert_eq!(restored.offences.iter().map(|(jail, ..)| jail.clone()).collect::<Vec<_>>(), [broken]);
        assert_eq!((restored.names, restored.clock), (save.names.unwrap_or_default(), Some(-7)));
    }

    #[test]
    fn a_sync_that_a_reader_holds_up_is_one_all_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut store, ..) = open(dir.path());
        store.save(&Save { bans: vec![ban("192.0.2.7")], ..Save::default() }).expect("saved");
        let reader = Connection::open(dir.path().join(FILE)).expect("there");
        reader.execute_batch("BEGIN; SELECT count(*) FROM ban;").expect("a transaction that stays open");
        let bans: i64 = reader.query_row("SELECT count(*) FROM ban", [], |row| row.get(0)).expect("read");
        store.save(&Save { bans: vec![ban("192.0.2.8")], sync: true, ..Save::default() }).expect("saved, and on the disk");
        let held_up = store.connection.query_row("PRAGMA wal_checkpoint(FULL)", [], |row| row.get::<_, bool>(0));
        assert_eq!((bans, held_up), (1, Ok(true)), "the checkpoint waits for the reader");
        store.sync().expect("the log alone");
    }

    #[test]
    fn a_file_of_an_older_version_keeps_what_it_has() {
        for (version, tables) in [
            (1, TABLES.to_owned()),
            (2, [TABLES, SINCE_2, history::TABLES].concat()),
            (3, [TABLES, SINCE_2, history::TABLES, SINCE_3].concat()),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let old = Connection::open(dir.path().join(FILE)).expect("a file");
            old.execute_batch(&format!(
                "BEGIN;{tables}PRAGMA user_version = {version};
                 INSERT INTO ban (jail, subject, since, until, lasting, failures, in_kernel) VALUES ('sshd', '192.0.2.7/32', 5, 10, 5, 3, 1);
                 INSERT INTO position VALUES ('/var/log/auth.log', 3, '{{}}', '{{}}');COMMIT;"
            ))
            .expect("made");
            drop(old);
            let (mut store, restored, said) = open(dir.path());
            assert_eq!((restored.bans.len(), restored.positions.len(), restored.seq, said), (1, 1, 0, None));
            let row = history::Row { seq: 1, origin: "log".into(), places: vec![7, 8], ..history::Row::default() };
            store.save(&Save { history: vec![row], bans: vec![ban("192.0.2.8")], ..Save::default() }).expect("saved");
            drop(store);
            let again = open(dir.path()).1;
            assert_eq!((again.seq, again.bans.len()), (1, 2));
            let query = history::Query { limit: 9, ..history::Query::default() };
            let (told, _) = history::Archive::open(dir.path()).expect("there").find(&query).expect("readable");
            assert_eq!((told.len(), told[0].0.missing.as_deref()), (1, None));
        }
    }

    #[test]
    fn history_is_found_by_whom_account_jail_and_time_and_purged_by_age_and_number() {
        use history::{Archive, Line, Query, Row, What};
        let dir = tempfile::tempdir().expect("a directory");
        let (mut store, ..) = open(dir.path());
        let row = |seq, secs, jail: &str, subject: &str| Row {
            seq,
            time: Time::from_secs(secs),
            jail: Some(jail.into()),
            subject: subject.parse().ok(),
            origin: "log".into(),
            places: vec![1 << 48 | 9],
            ..Row::default()
        };
        let line = |account: &str| Line {
            source: "/log".into(),
            offset: 9,
            time: Some(Time(1)),
            pattern: Some("x".into()),
            account: Some(account.into()),
            text: "a line".into(),
        };
        let rows = vec![
            row(1, 10, "sshd", "192.0.2.7"),
            row(2, 20, "dovecot", "192.0.2.8"),
            Row { what: What::Unban, uid: Some(0), ..row(3, 30, "sshd", "192.0.2.0/24") },
        ];
        let save = Save {
            history: rows.clone(),
            lines: vec![history::Lines { seq: 1, lines: vec![line("bob")], missing: Some("the rest".into()) }],
            ..Save::default()
        };
        store.save(&save).expect("saved");
        let archive = Archive::open(dir.path()).expect("there");
        let seqs = |query: Query| -> Vec<u64> {
            let (rows, _) = archive.find(&Query { limit: 10, ..query }).expect("readable");
            rows.iter().map(|(row, _)| row.seq).collect()
        };
        assert_eq!(seqs(Query::default()), [3, 2, 1]);
        assert_eq!(seqs(Query { net: "192.0.2.7".parse().ok(), ..Query::default() }), [3, 1]);
        assert_eq!(seqs(Query { jail: Some("dovecot".into()), ..Query::default() }), [2]);
        assert_eq!(seqs(Query { accounts: vec!["eve".into(), "bob".into()], ..Query::default() }), [1]);
        assert_eq!(seqs(Query { since: Some(Time::from_secs(15)), ..Query::default() }), [3, 2]);
        assert_eq!(seqs(Query { after: Some(1), ..Query::default() }), [2, 3]);
        let (told, more) = archive.find(&Query { limit: 2, ..Query::default() }).expect("readable");
        assert_eq!((told[0].0.clone(), more), (rows[2].clone(), true));
        let (told, _) = archive.find(&Query { accounts: vec!["bob".into()], limit: 9, ..Query::default() }).expect("readable");
        assert_eq!((told[0].0.missing.as_deref(), told[0].0.places.len(), told[0].1.len()), (Some("the rest"), 0, 1));
        assert_eq!(archive.banned_for_account("bob").expect("readable"), [("sshd".into(), "192.0.2.7".parse().expect("a net"))]);
        drop(store);
        let (mut store, restored, _) = open(dir.path());
        assert_eq!(
            restored.unread.iter().map(|unread| unread.seq).collect::<Vec<_>>(),
            [3, 2],
            "the lines of the first are there"
        );
        let purge = |store: &mut Store, secs| {
            let keep = Some((Time::from_secs(45), Span::from_secs(secs)));
            store.save(&Save { keep, ..Save::default() }).expect("saved");
        };
        purge(&mut store, 20);
        assert_eq!(seqs(Query::default()), [3, 2, 1], "the clock may be wrong at first");
        store.purge_at = Instant::now();
        purge(&mut store, 20);
        assert_eq!(seqs(Query::default()), [3]);
        // A clock that is years off for a moment costs no more than what was written in it.
        store.save(&Save { history: vec![row(4, -900_000, "sshd", "192.0.2.9")], ..Save::default() }).expect("saved");
        store.purge_at = Instant::now();
        purge(&mut store, 20);
        assert_eq!(seqs(Query::default()), [3]);
        let far = Row { seq: history::ROWS_AT_MOST + 4, ..row(0, 40, "sshd", "192.0.2.9") };
        store.save(&Save { history: vec![far], ..Save::default() }).expect("saved");
        drop(store);
        let (mut store, ..) = open(dir.path());
        store.purge_at = Instant::now();
        purge(&mut store, 100);
        assert_eq!(seqs(Query::default()), [history::ROWS_AT_MOST + 4], "beyond the ceiling the oldest go");
    }

    #[test]
    fn a_row_told_again_takes_the_place_of_the_first_and_numbers_never_fall() {
        use history::{Archive, Query, Row};
        let dir = tempfile::tempdir().expect("a directory");
        let (mut store, ..) = open(dir.path());
        let row = |seq, subject: &str, origin: &str| Row {
            seq,
            time: Time(7),
            jail: Some("sshd".into()),
            subject: subject.parse().ok(),
            origin: origin.into(),
            ..Row::default()
        };
        let found = |subject: &str| {
            let (jail, subject, kept) = ban(subject);
            (jail, subject, kept.map(|kept| KeptBan { reason: Some(ADOPTED.to_owned()), ..kept }))
        };
        let rows = vec![row(1, "192.0.2.7", "kernel"), row(2, "192.0.2.8", "kernel"), row(3, "192.0.2.9", "log")];
        let bans = vec![found("192.0.2.7"), found("192.0.2.8"), ban("192.0.2.9")];
        store.save(&Save { history: rows, bans, ..Save::default() }).expect("saved");
        let again = Save { history: vec![row(1, "192.0.2.7", "log")], bans: vec![ban("192.0.2.7")], ..Save::default() };
        store.save(&again).expect("saved");
        drop(store);
        let (_store, restored, _) = open(dir.path());
        assert_eq!(restored.seq, 3);
        assert_eq!(restored.found, [("sshd".into(), "192.0.2.8".parse().expect("an address"), 2)]);
        let (told, _) =
            Archive::open(dir.path()).expect("there").find(&Query { limit: 9, ..Query::default() }).expect("readable");
        assert_eq!(
            told.iter().map(|(row, _)| (row.seq, &*row.origin)).collect::<Vec<_>>(),
            [(3, "log"), (2, "kernel"), (1, "log")]
        );
    }

    #[test]
    fn a_corrupt_file_or_a_newer_one_is_set_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(FILE), vec![0x5a; 8192]).expect("written");
        let (store, _, said) = open(dir.path());
        assert!(said.is_some_and(|said| said.contains("corrupt") && said.contains("set aside")));
        store.connection.pragma_update(None, "user_version", 99).expect("set");
        drop(store);
        let (_, _, said) = open(dir.path());
        assert!(said.is_some_and(|said| said.contains("another version")));
        let aside = std::fs::read_dir(dir.path()).expect("a directory").filter_map(Result::ok);
        assert!(aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("banset.sqlite3.2")).count() >= 1);
    }

    #[test]
    fn what_is_set_aside_keeps_what_stood_in_its_log_alone() {
        let (one, two) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
        let (mut store, ..) = open(one.path());
        store.save(&Save { bans: vec![ban("192.0.2.7")], ..Save::default() }).expect("saved");
        store.connection.pragma_update(None, "user_version", 99).expect("set");
        // As a kill leaves it.
        for name in [FILE.to_owned(), format!("{FILE}-wal")] {
            std::fs::copy(one.path().join(&name), two.path().join(&name)).expect("copied");
        }
        let (_, restored, said) = open(two.path());
        assert!(restored.bans.is_empty() && said.is_some_and(|said| said.contains("another version")));
        let entries = std::fs::read_dir(two.path()).expect("a directory").filter_map(Result::ok).map(|entry| entry.path());
        let is_aside = |path: &PathBuf| path.to_string_lossy().contains("sqlite3.2") && !path.to_string_lossy().ends_with("-wal");
        let aside = Connection::open(entries.into_iter().find(is_aside).expect("set aside")).expect("readable");
        assert_eq!(aside.query_row("SELECT count(*) FROM ban", [], |row| row.get::<_, i64>(0)), Ok(1));
    }
}
