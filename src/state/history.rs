//! What happened, row by row: bans, unbans, ignores, pauses, with the lines behind a ban.
//!
//! A row is written in the transaction that keeps the ban itself. The lines are read back from the log afterwards and follow
//! in a later one; until then the row keeps the places of its failures, so that a kill in between costs no evidence. Sequence
//! numbers only grow, over purges and restarts, for whoever follows the rows by number.

use std::path::Path;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};

use crate::terms::{Span, Time};

/// Rows kept at most; the oldest go first.
pub const ROWS_AT_MOST: u64 = 500_000;
/// Of the newest this many rows the lines are kept.
pub const LINED_AT_MOST: u64 = 100_000;

pub(super) const TABLES: &str = "
    CREATE TABLE event (
        seq INTEGER PRIMARY KEY, time INTEGER NOT NULL, what TEXT NOT NULL, jail TEXT, subject TEXT, since INTEGER, until INTEGER,
        failures INTEGER NOT NULL, origin TEXT NOT NULL, uid INTEGER, program TEXT, reason TEXT, decision TEXT, places BLOB);
    CREATE INDEX event_time ON event (time);
    CREATE TABLE line (
        seq INTEGER NOT NULL, n INTEGER NOT NULL, source TEXT NOT NULL, offset INTEGER NOT NULL, time INTEGER, pattern TEXT,
        account TEXT, text TEXT NOT NULL, PRIMARY KEY (seq, n)) WITHOUT ROWID;
    CREATE INDEX line_account ON line (account) WHERE account IS NOT NULL;
    CREATE VIEW history AS
        SELECT seq, datetime(time / 1000000, 'unixepoch') AS time_utc, what, jail, subject,
               CASE WHEN what = 'ban' THEN coalesce(datetime(until / 1000000, 'unixepoch'), 'permanent')
                    ELSE datetime(until / 1000000, 'unixepoch') END AS until_utc,
               failures, origin, uid, program, reason, decision
        FROM event ORDER BY seq DESC;
    CREATE VIEW evidence AS
        SELECT event.seq, event.jail, event.subject, datetime(line.time / 1000000, 'unixepoch') AS time_utc, line.account,
               line.pattern, line.source, line.offset, line.text
        FROM line JOIN event USING (seq) ORDER BY event.seq DESC, line.n;
";

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum What {
    /// An address or subnet was banned.
    #[default]
    Ban,
    /// A ban was lifted; that one ended by itself is no row: the ban's own says when.
    Unban,
    /// The kernel refused the element of a ban: it is not held any more.
    Refused,
    /// A jail that only observes would have banned.
    Observed,
    /// Ignored from now on.
    Ignore,
    /// Not ignored any more.
    Unignore,
    /// Rules were taken out.
    Pause,
    /// Rules were put back.
    Resume,
    /// The configuration was read again.
    Reload,
}

impl What {
    const ALL: [What; 9] = [
        What::Ban,
        What::Unban,
        What::Refused,
        What::Observed,
        What::Ignore,
        What::Unignore,
        What::Pause,
        What::Resume,
        What::Reload,
    ];

    /// The word in the table and in replies.
    pub const fn name(self) -> &'static str {
        match self {
            What::Ban => "ban",
            What::Unban => "unban",
            What::Refused => "refused",
            What::Observed => "observed",
            What::Ignore => "ignore",
            What::Unignore => "unignore",
            What::Pause => "pause",
            What::Resume => "resume",
            What::Reload => "reload",
        }
    }

    fn named(name: &str) -> Option<What> {
        What::ALL.into_iter().find(|what| what.name() == name)
    }
}

/// One thing that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Its number; only grows.
    pub seq: u64,
    /// When it was decided.
    pub time: Time,
    /// What happened.
    pub what: What,
    /// In which jail; `None`: in all, or in none.
    pub jail: Option<Arc<str>>,
    /// To whom.
    pub subject: Option<IpNetwork>,
    /// When a ban began, by the log.
    pub since: Option<Time>,
    /// When it ends; of a ban `None` is permanent.
    pub until: Option<Time>,
    /// Failures behind it.
    pub failures: u32,
    /// What brought it about: `log`, `manual`, `kernel`, `ignore`, `config`, `timer`, or the name of another machine.
    pub origin: Box<str>,
    /// The user who asked for it.
    pub uid: Option<u32>,
    /// The program they asked with.
    pub program: Option<Box<str>>,
    /// Why, in somebody's words.
    pub reason: Option<Box<str>>,
    /// How it was decided.
    pub decision: Option<Box<str>>,
    /// Where its failures were read, as long as their lines have not been read back.
    pub places: Vec<u64>,
    /// Why lines are missing that could not be read back.
    pub missing: Option<Box<str>>,
}

/// A line behind a ban, escaped and without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The path that was followed.
    pub source: Box<str>,
    /// Where in it, or in the file it was rotated to.
    pub offset: u64,
    /// The instant it bears.
    pub time: Option<Time>,
    /// The failregex that it matched.
    pub pattern: Option<Box<str>>,
    /// The account that was tried, as `[evidence] accounts` says.
    pub account: Option<Box<str>>,
    /// The line.
    pub text: Box<str>,
}

/// What was read back of the lines behind a ban.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// The row.
    pub seq: u64,
    /// Its lines, as far as they were found.
    pub lines: Vec<Line>,
    /// Why others could not be read.
    pub missing: Option<Box<str>>,
}

/// What the next start has to read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The row.
    pub seq: u64,
    /// The jail.
    pub jail: Arc<str>,
    /// Who was banned.
    pub subject: IpNetwork,
    /// Where the failures were read.
    pub places: Vec<u64>,
}

pub(super) fn write(transaction: &Transaction<'_>, rows: &[Row], lines: &[Lines]) -> Result<(), rusqlite::Error> {
    for row in rows {
        let places: Vec<u8> = row.places.iter().flat_map(|place| place.to_le_bytes()).collect();
        transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO event VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            )?
            .execute(params![
                row.seq as i64,
                row.time.0,
                row.what.name(),
                row.jail.as_deref(),
                row.subject.map(|subject| subject.to_string()),
                row.since.map(|time| time.0),
                row.until.map(|time| time.0),
                row.failures,
                &*row.origin,
                row.uid,
                row.program.as_deref(),
                row.reason.as_deref(),
                row.decision.as_deref(),
                (!places.is_empty()).then_some(places),
                row.missing.as_deref(),
            ])?;
    }
    for Lines { seq, lines, missing } in lines {
        for (n, line) in lines.iter().enumerate() {
            transaction.prepare_cached("INSERT OR REPLACE INTO line VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(
                params![
                    *seq as i64,
                    n as i64,
                    &*line.source,
                    line.offset as i64,
                    line.time.map(|time| time.0),
                    line.pattern.as_deref(),
                    line.account.as_deref(),
                    &*line.text
                ],
            )?;
        }
        transaction
            .prepare_cached("UPDATE event SET places = NULL, missing = ?2 WHERE seq = ?1")?
            .execute(params![*seq as i64, missing.as_deref()])?;
    }
    // A row may be told again under its number: what counts is the highest there ever was.
    if let Some(last) = rows.iter().map(|row| row.seq).max() {
        transaction
            .prepare_cached(
                "INSERT INTO meta VALUES ('seq', ?1) ON CONFLICT (name)
                 DO UPDATE SET value = max(CAST(value AS INTEGER), CAST(excluded.value AS INTEGER))",
            )?
            .execute([last.to_string()])?;
    }
    Ok(())
}

/// Removes what is older than `keep` and what is beyond the ceilings. Each row goes by its own age: one that a clock that was wrong for
/// a while dated into the past takes no other with it.
pub(super) fn purge(transaction: &Transaction<'_>, now: Time, keep: Span) -> Result<(), rusqlite::Error> {
    let newest: i64 = transaction.query_row("SELECT coalesce(max(seq), 0) FROM event", [], |row| row.get(0))?;
    let old = (now - keep).0;
    transaction.execute("DELETE FROM line WHERE seq IN (SELECT seq FROM event WHERE time < ?1)", [old])?;
    transaction.execute("DELETE FROM event WHERE time < ?1", [old])?;
    transaction.execute("DELETE FROM line WHERE seq <= ?1", [newest - LINED_AT_MOST as i64])?;
    transaction.execute("DELETE FROM event WHERE seq <= ?1", [newest - ROWS_AT_MOST as i64])?;
    Ok(())
}

pub(super) fn last_seq(db: &Connection) -> Result<u64, rusqlite::Error> {
    let noted: Option<String> = db.query_row("SELECT value FROM meta WHERE name = 'seq'", [], |row| row.get(0)).optional()?;
    let newest: i64 = db.query_row("SELECT coalesce(max(seq), 0) FROM event", [], |row| row.get(0))?;
    Ok(noted.and_then(|text| text.parse().ok()).unwrap_or(0).max(newest.max(0) as u64))
}

/// Rows whose lines were not read back yet, the newest 10 000.
pub(super) fn unread(db: &Connection) -> Result<Vec<Unread>, rusqlite::Error> {
    db.prepare("SELECT seq, jail, subject, places FROM event WHERE places IS NOT NULL ORDER BY seq DESC LIMIT 10000")?
        .query_map([], |row| {
            let (jail, subject): (Option<String>, Option<String>) = (row.get(1)?, row.get(2)?);
            let Some((jail, subject)) = jail.zip(subject.and_then(|text| text.parse().ok())) else { return Ok(None) };
            Ok(Some(Unread { seq: row.get::<_, i64>(0)? as u64, jail: jail.into(), subject, places: places(row.get_ref(3)?) }))
        })?
        .filter_map(Result::transpose)
        .collect()
}

/// The row of each ban that is held and was found in the kernel.
pub(super) fn found(db: &Connection) -> Result<Vec<(Arc<str>, IpNetwork, u64)>, rusqlite::Error> {
    db.prepare(
        "SELECT event.jail, event.subject, max(event.seq) FROM event JOIN ban ON ban.jail = event.jail AND ban.subject = event.subject
         WHERE event.what = 'ban' AND event.origin = 'kernel' AND event.time >= ban.since AND ban.uid IS NULL AND ban.reason = ?1
         GROUP BY event.jail, event.subject",
    )?
    .query_map([super::ADOPTED], |row| {
        let (jail, subject): (String, String) = (row.get(0)?, row.get(1)?);
        Ok(subject.parse().ok().zip(Some(row.get::<_, i64>(2)? as u64)).map(|(subject, seq)| (jail.into(), subject, seq)))
    })?
    .filter_map(Result::transpose)
    .collect()
}

fn places(value: rusqlite::types::ValueRef<'_>) -> Vec<u64> {
    let bytes = value.as_blob().unwrap_or_default();
    bytes.chunks_exact(8).filter_map(|chunk| Some(u64::from_le_bytes(chunk.try_into().ok()?))).collect()
}

/// Lines of one answer in bytes, whatever number of rows is asked for.
const ANSWER_AT_MOST: usize = 64 << 20;

/// Which rows are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Only about addresses within this, and subnets around it.
    pub net: Option<IpNetwork>,
    /// Only with one of these accounts among the lines, as they are kept; empty: with any or none.
    pub accounts: Vec<String>,
    /// Only of this jail.
    pub jail: Option<String>,
    /// Only since then.
    pub since: Option<Time>,
    /// Only after this number, oldest first; otherwise the newest come first.
    pub after: Option<u64>,
    /// So many at most.
    pub limit: usize,
}

/// A row with its lines.
pub type Told = (Row, Vec<Line>);

/// The history, for reading beside the one who writes.
pub struct Archive {
    connection: Connection,
}

impl Archive {
    /// Opens the state of `directory` for reading.
    pub fn open(directory: &Path) -> Result<Archive, String> {
        let path = directory.join(super::FILE);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || -> Result<Archive, rusqlite::Error> {
            let connection = Connection::open_with_flags(&path, flags)?;
            connection.busy_timeout(std::time::Duration::from_secs(2))?;
            Ok(Archive { connection })
        };
        open().map_err(|e| format!("{}: {e}", path.display()))
    }

    /// The rows that `query` wants, and whether there are more.
    pub fn find(&self, query: &Query) -> Result<(Vec<Told>, bool), String> {
        self.search(query).map_err(|e| format!("cannot read the history: {e}"))
    }

    fn search(&self, query: &Query) -> Result<(Vec<Told>, bool), rusqlite::Error> {
        let mut wanted = String::from("SELECT * FROM event WHERE seq > ?1 AND time >= ?2");
        let (after, since) = (query.after.unwrap_or(0) as i64, query.since.map_or(i64::MIN, |since| since.0));
        let mut values: Vec<Box<dyn rusqlite::ToSql>> = vec![Box::new(after), Box::new(since)];
        if let Some(jail) = &query.jail {
            values.push(Box::new(jail.clone()));
            wanted.push_str(&format!(" AND jail = ?{}", values.len()));
        }
        if !query.accounts.is_empty() {
            let first = values.len() + 1;
            values.extend(query.accounts.iter().map(|account| Box::new(account.clone()) as Box<dyn rusqlite::ToSql>));
            let marks: Vec<String> = (first..=values.len()).map(|n| format!("?{n}")).collect();
            wanted.push_str(&format!(" AND seq IN (SELECT seq FROM line WHERE account IN ({}))", marks.join(", ")));
        }
        wanted.push_str(if query.after.is_some() { " ORDER BY seq" } else { " ORDER BY seq DESC" });
        let mut statement = self.connection.prepare(&wanted)?;
        let mut rows = statement.query(rusqlite::params_from_iter(values.iter().map(|value| &**value)))?;
        let (mut told, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let row = read(row)?;
            let concerns = query.net.is_none_or(|net| row.subject.is_some_and(|subject| concerns(net, subject)));
            if !concerns {
                continue;
            }
            if told.len() >= query.limit || bytes > ANSWER_AT_MOST {
                return Ok((told, true));
            }
            let lines = self.lines(row.seq)?;
            bytes += lines.iter().map(|line| line.text.len() + line.source.len()).sum::<usize>();
            told.push((row, lines));
        }
        Ok((told, false))
    }

    fn lines(&self, seq: u64) -> Result<Vec<Line>, rusqlite::Error> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT source, offset, time, pattern, account, text FROM line WHERE seq = ?1 ORDER BY n")?;
        statement
            .query_map([seq as i64], |row| {
                Ok(Line {
                    source: row.get(0)?,
                    offset: row.get::<_, i64>(1)? as u64,
                    time: row.get::<_, Option<i64>>(2)?.map(Time),
                    pattern: row.get(3)?,
                    account: row.get(4)?,
                    text: row.get(5)?,
                })
            })?
            .collect()
    }

    /// Rows whose lines were not read back yet, the newest 10 000.
    pub fn unread(&self) -> Result<Vec<Unread>, String> {
        unread(&self.connection).map_err(|e| format!("cannot read the history: {e}"))
    }

    /// Whom bans with this account among their lines were about, by jail.
    pub fn banned_for_account(&self, account: &str) -> Result<Vec<(Arc<str>, IpNetwork)>, String> {
        let find = || -> Result<Vec<(Arc<str>, IpNetwork)>, rusqlite::Error> {
            let mut statement = self.connection.prepare_cached(
                "SELECT DISTINCT jail, subject FROM event WHERE what = 'ban' AND jail IS NOT NULL AND subject IS NOT NULL
                 AND seq IN (SELECT seq FROM line WHERE account = ?1)",
            )?;
            let rows = statement.query_map([account], |row| {
                let subject: Option<IpNetwork> = row.get_ref(1)?.as_str()?.parse().ok();
                Ok(subject.map(|subject| (row.get::<_, String>(0).map(Arc::from), subject)))
            })?;
            rows.filter_map(|row| match row {
                Ok(Some((Ok(jail), subject))) => Some(Ok((jail, subject))),
                Ok(Some((Err(e), _))) | Err(e) => Some(Err(e)),
                Ok(None) => None,
            })
            .collect()
        };
        find().map_err(|e| format!("cannot read the history: {e}"))
    }
}

fn concerns(net: IpNetwork, subject: IpNetwork) -> bool {
    net.is_ipv4() == subject.is_ipv4() && (net.contains(subject.network()) || subject.contains(net.network()))
}

fn read(row: &rusqlite::Row<'_>) -> Result<Row, rusqlite::Error> {
    let subject: Option<String> = row.get("subject")?;
    Ok(Row {
        seq: row.get::<_, i64>("seq")? as u64,
        time: Time(row.get("time")?),
        what: What::named(row.get_ref("what")?.as_str()?).unwrap_or_default(),
        jail: row.get::<_, Option<String>>("jail")?.map(Arc::from),
        subject: subject.and_then(|text| text.parse().ok()),
        since: row.get::<_, Option<i64>>("since")?.map(Time),
        until: row.get::<_, Option<i64>>("until")?.map(Time),
        failures: row.get("failures")?,
        origin: row.get("origin")?,
        uid: row.get("uid")?,
        program: row.get("program")?,
        reason: row.get("reason")?,
        decision: row.get("decision")?,
        places: places(row.get_ref("places")?),
        missing: row.get("missing")?,
    })
}
