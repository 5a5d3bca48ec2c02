//! The thread that looks back: it reads the lines behind a ban from the log, and answers who asks for the history.
//!
//! A ban carries the places of its failures, not their lines: no strings live in the window. So the lines are read again here,
//! from the file the path leads to or the one it was rotated to, or from the journal, and the jail's own filter is asked again
//! whether the line there is a failure of the banned address; what it does not recognise is not evidence. Nothing waits for
//! it: the ban is in the kernel by then.

use std::collections::{BTreeMap, VecDeque};
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;

use super::core::{Asked, ClientId, Event, rfc3339};
use super::recall::{self, Short, Timed, recall};
use super::spawner::Spawner;
use super::spec::Entries;
use crate::config::run::{Accounts, Evidence};
use crate::control::Reply;
use crate::filter::{Filter, Kind, Scanner, State, When};
use crate::state::history::{Archive, Line, Query, Row, Told, What};
use crate::terms::journal::{Journal, Match};
use crate::terms::{Time, escape, shown};
use crate::watch::back::read_back;

/// What is kept of a line.
const LINE_AT_MOST: usize = 1000;
/// Bans whose lines are looked for together: each look at a journal starts a program, each at a compressed file unpacks it.
const TOGETHER: usize = 64;
/// Scanners kept at hand, one per filter.
const SCANNERS: usize = 64;

/// Where the lines behind a ban are to be looked for.
#[derive(Clone, Debug)]
pub struct Dig {
    /// The number of what happened.
    pub seq: u64,
    /// Who was banned.
    pub subject: IpNetwork,
    /// What the jail reads lines of files with.
    pub filter: Arc<Filter>,
    /// What it reads lines of a journal with.
    pub on_journal: Arc<Filter>,
    /// Which entries of a journal are its.
    pub wanted: Option<Match>,
    /// Source and offset of each, oldest first; of an entry its [`recall::address`].
    pub places: Vec<(Arc<str>, u64)>,
    /// What is to be kept of them.
    pub evidence: Evidence,
    /// The key of hashed accounts.
    pub key: [u64; 2],
}

/// A question to the history.
#[derive(Debug)]
pub enum Search {
    /// Show the rows.
    Rows {
        /// Who waits.
        client: ClientId,
        /// Which.
        query: Query,
        /// As a stream of events: a row of this machine's making each, lines left out.
        stream: bool,
    },
    /// Find whom bans name whose lines name one of these accounts, then let the request go on to the core.
    Named(Box<Asked>, Vec<String>),
    /// Find bans whose lines were not read back yet.
    Unread,
}

/// What the thread is told.
#[derive(Debug)]
pub enum Errand {
    /// Read lines back.
    Dig(Box<Dig>),
    /// Answer.
    Search(Box<Search>),
}

impl Dig {
    /// The places whose lines are to be kept.
    fn kept(&self) -> &[(Arc<str>, u64)] {
        &self.places[self.places.len().saturating_sub(self.evidence.lines)..]
    }

    /// Whether some of its lines are entries of a journal.
    fn is_of_journal(&self) -> bool {
        self.kept().iter().any(|(source, _)| matches!(Origin::of(source), Origin::Journal(_)))
    }
}

/// Where a source's lines can be read again.
enum Origin {
    /// A file that is followed by this path.
    File,
    /// A journal.
    Journal(Journal),
    /// Something else: its lines can not be read back.
    Other,
}

impl Origin {
    fn of(source: &str) -> Origin {
        match Journal::named(source) {
            _ if source.starts_with('/') => Origin::File,
            Some(journal) => Origin::Journal(journal),
            None => Origin::Other,
        }
    }
}

/// Runs errands until the engine goes away. Questions come before lines: somebody waits for them.
pub fn run(state_dir: PathBuf, spawner: Spawner, errands: &Receiver<Errand>, done: &Sender<Event>) {
    let mut digs: VecDeque<Box<Dig>> = VecDeque::new();
    let mut digger = Digger { spawner, scanners: Vec::new() };
    loop {
        let errand = match digs.is_empty() {
            true => errands.recv().map_err(|_| TryRecvError::Disconnected),
            false => errands.try_recv(),
        };
        match errand {
            Ok(Errand::Dig(dig)) => digs.push_back(dig),
            Ok(Errand::Search(search)) => {
                if done.blocking_send(answer(&state_dir, *search)).is_err() {
                    return;
                }
            }
            Err(TryRecvError::Empty) => {
                let batch = next(&mut digs);
                let found = digger.lines(&batch);
                for (dig, (lines, short)) in batch.iter().zip(found) {
                    if done.blocking_send(Event::ReadBack(dig.seq, lines, short)).is_err() {
                        return;
                    }
                }
            }
            Err(TryRecvError::Disconnected) => return,
        }
    }
}

/// The ban that waits longest, and others that are looked for in the same entries.
fn next(digs: &mut VecDeque<Box<Dig>>) -> Vec<Dig> {
    let Some(first) = digs.pop_front() else { return Vec::new() };
    let mut batch = vec![*first];
    let of_journal = batch[0].is_of_journal();
    let mut passed = VecDeque::new();
    while batch.len() < TOGETHER
        && passed.len() < 16 * TOGETHER
        && let Some(dig) = digs.pop_front()
    {
        match dig.is_of_journal() == of_journal && (!of_journal || dig.wanted == batch[0].wanted) {
            true => batch.push(*dig),
            false => passed.push_back(dig),
        }
    }
    while let Some(dig) = passed.pop_back() {
        digs.push_front(dig);
    }
    batch
}

/// A scanner of one filter, and its state when it has seen nothing.
struct Scanning {
    filter: Arc<Filter>,
    scanner: Scanner,
    blank: State,
}

/// A line that was read back.
struct Read<'a> {
    source: &'a Arc<str>,
    offset: u64,
    before: Timed<'a>,
    text: &'a [u8],
    /// Its instant, where it bears none itself.
    time: Option<Time>,
}

/// By the stamp of an entry: of which bans it may be the evidence, and which line of theirs.
type Stamps = BTreeMap<i64, Vec<(usize, usize)>>;

/// Reads back.
struct Digger {
    spawner: Spawner,
    scanners: Vec<Scanning>,
}

impl Digger {
    /// The lines behind each of these bans, which want the same entries of journals; and why some could not be looked for.
    fn lines(&mut self, batch: &[Dig]) -> Vec<(Vec<Line>, Option<Short>)> {
        let mut found: Vec<Vec<Option<Line>>> = batch.iter().map(|dig| vec![None; dig.kept().len()]).collect();
        let mut short: Vec<Option<Short>> = vec![None; batch.len()];
        let mut journals: BTreeMap<&Arc<str>, Stamps> = BTreeMap::new();
        let now = Time::now();
        let mut files: BTreeMap<&Arc<str>, Vec<(usize, usize)>> = BTreeMap::new();
        for (which, dig) in batch.iter().enumerate() {
            for (index, (source, offset)) in dig.kept().iter().enumerate() {
                match Origin::of(source) {
                    Origin::File => files.entry(source).or_default().push((which, index)),
                    Origin::Journal(_) => {
                        let stamps = journals.entry(source).or_default();
                        stamps.entry(recall::stamp(*offset, now)).or_default().push((which, index));
                    }
                    Origin::Other => {}
                }
            }
        }
        for (source, wanted) in files {
            let offsets: Vec<u64> = wanted.iter().map(|(which, index)| batch[*which].kept()[*index].1).collect();
            read_back(Path::new(&**source), &offsets, &mut |at, before, text| {
                let (which, index) = wanted[at];
                let before = Timed { text: before, times: &[] };
                let scanning = self.scanning(&batch[which].filter);
                let line = recognised(&batch[which], scanning, &Read { source, offset: offsets[at], before, text, time: None });
                let ours = line.is_some();
                if ours {
                    found[which][index] = line;
                }
                ours
            });
        }
        for (source, stamps) in journals {
            let all = stamps.first_key_value().map_or(0, |(first, _)| *first);
            let mut look = |found: &mut Vec<Vec<Option<Line>>>| {
                let (Origin::Journal(journal), Some(wanted)) = (Origin::of(source), &batch[0].wanted) else {
                    return Err((all, Short::Unread));
                };
                // Where no journal may be read no process was started for it, and none is started for what is past.
                if !self.spawner.is_ready() {
                    return Err((all, Short::Unread));
                }
                let entries = Entries { journal, wanted: wanted.clone() };
                let times: Vec<i64> = stamps.keys().copied().collect();
                recall(&self.spawner.clone(), &entries, &times, &mut |stamp, before, text, time| {
                    let mut last = None;
                    for (which, index) in stamps.get(&stamp).into_iter().flatten() {
                        // Several failures of one ban may bear the same stamp: each has an entry of its own.
                        if found[*which][*index].is_some() || last == Some(*which) {
                            continue;
                        }
                        let dig = &batch[*which];
                        let scanning = self.scanning(&dig.on_journal);
                        let line =
                            recognised(dig, scanning, &Read { source, offset: stamp as u64, before, text, time: Some(time) });
                        if line.is_some() {
                            found[*which][*index] = line;
                            last = Some(*which);
                        }
                    }
                })
            };
            if let Err((from, why)) = look(&mut found) {
                for (which, index) in stamps.range(from..).flat_map(|(_, of)| of) {
                    if found[*which][*index].is_none() {
                        short[*which] = Some(why.clone());
                    }
                }
            }
        }
        let lines = found.into_iter().map(|lines| lines.into_iter().flatten().collect());
        lines.zip(short).collect()
    }

    fn scanning(&mut self, filter: &Arc<Filter>) -> &mut Scanning {
        let known = self.scanners.iter().position(|known| Arc::ptr_eq(&known.filter, filter));
        let at = known.unwrap_or_else(|| {
            let mut scanner = Scanner::new(vec![filter.clone()]);
            scanner.take_times_as_written();
            let blank = scanner.state();
            if self.scanners.len() >= SCANNERS {
                self.scanners.clear();
            }
            self.scanners.push(Scanning { filter: filter.clone(), scanner, blank });
            self.scanners.len() - 1
        });
        &mut self.scanners[at]
    }
}

/// The line as evidence, if the filter still says that it is a failure of the banned address.
fn recognised(dig: &Dig, scanning: &mut Scanning, read: &Read<'_>) -> Option<Line> {
    let Read { source, offset, before, text, time } = *read;
    let mut judge = |before: Timed<'_>| {
        let Scanning { scanner, blank, .. } = &mut *scanning;
        scanner.restore(blank.clone());
        let mut found = Vec::new();
        let chunk = [before.text, text, b"\n"].concat();
        let when = When { now: Time::now(), live: false };
        match time {
            None => scanner.scan(&chunk, when, &mut found),
            Some(time) => {
                let times = [before.times, &[(before.text.len() as u32, time)]].concat();
                scanner.scan_timed(&chunk, &times, when, &mut found);
            }
        }
        let ours = |found: &crate::filter::Found| {
            found.kind == Kind::Failure && found.offset as usize == before.text.len() && dig.subject.contains(found.addr)
        };
        found.into_iter().find(ours)
    };
    // By itself first, then after what stood before it: some lines are a failure only together with others.
    let said = judge(Timed { text: &[], times: &[] }).or_else(|| judge(before))?;
    let pattern =
        scanning.filter.failregex().nth(usize::from(said.pattern)).map(|pattern| escape(pattern.as_bytes(), 500).into());
    let secrets = said.secrets.iter().map(|range| range.start as usize..range.end as usize);
    let mut text = cut(text, secrets.collect());
    let account = match (&said.user, dig.evidence.accounts) {
        (None, _) => None,
        (Some(user), Accounts::Plain) => Some(escape(user, 256)),
        (Some(user), accounts) => {
            text = without(&text, user);
            (accounts == Accounts::Hash).then(|| hashed(dig.key, user))
        }
    };
    Some(Line {
        source: escape(source.as_bytes(), 4096).into(),
        offset,
        time: Some(said.time),
        pattern,
        account: account.map(Into::into),
        text: escape(&text, LINE_AT_MOST).into(),
    })
}

/// What stands in a line where something was cut out of it.
const CUT: &[u8] = b"***";

/// The text without these ranges.
fn cut(text: &[u8], mut ranges: Vec<std::ops::Range<usize>>) -> Vec<u8> {
    ranges.sort_by_key(|range| range.start);
    let (mut out, mut from) = (Vec::with_capacity(text.len()), 0);
    for range in ranges {
        let (start, end) = (range.start.clamp(from, text.len()), range.end.clamp(from, text.len()));
        if start < end {
            out.extend_from_slice(&text[from..start]);
            out.extend_from_slice(CUT);
            from = end;
        }
    }
    out.extend_from_slice(&text[from..]);
    out
}

/// The text without a word: where it stands alone, and if it never does, everywhere.
fn without(text: &[u8], word: &[u8]) -> Vec<u8> {
    if word.is_empty() {
        return text.to_vec();
    }
    let all: Vec<usize> = memchr::memmem::find_iter(text, word).collect();
    let inside = |at: Option<usize>| at.and_then(|at| text.get(at)).is_some_and(u8::is_ascii_alphanumeric);
    let alone: Vec<usize> =
        all.iter().copied().filter(|at| !inside(at.checked_sub(1)) && !inside(at.checked_add(word.len()))).collect();
    let places = if alone.is_empty() { all } else { alone };
    cut(text, places.into_iter().map(|at| at..at + word.len()).collect())
}

/// An account under the key: the same name gives the same text on this machine, and no other gives it back.
pub fn hashed(key: [u64; 2], account: &[u8]) -> String {
    #[expect(deprecated, reason = "the only keyed hash in std whose keys can be given")]
    let mut hasher = std::hash::SipHasher::new_with_keys(key[0], key[1]);
    hasher.write(account);
    format!("#{:016x}", hasher.finish())
}

fn answer(state_dir: &Path, search: Search) -> Event {
    match search {
        Search::Rows { client, query, stream } => {
            let found = Archive::open(state_dir).and_then(|archive| archive.find(&query));
            let reply = match found {
                Ok((told, more)) if stream => Reply::done(streamed(&query, &told, more)),
                Ok((told, more)) => {
                    let rows: Vec<Value> = told.iter().map(row_json).collect();
                    let empty = rows.is_empty();
                    Reply::done(json!({ "history": rows, "more": more })).exit(u8::from(empty))
                }
                Err(why) => {
                    Reply::refused(1, why, "the daemon goes on; `banset status` says what is wrong with the state".to_owned())
                }
            };
            Event::Answered(client, reply)
        }
        Search::Unread => {
            let unread = Archive::open(state_dir).and_then(|archive| archive.unread());
            Event::Unread(unread.inspect_err(|e| tracing::warn!("{e}")).unwrap_or_default())
        }
        Search::Named(mut asked, accounts) => {
            let find = |archive: Archive| -> Result<Vec<(Arc<str>, IpNetwork)>, String> {
                let mut all = Vec::new();
                for account in &accounts {
                    all.extend(archive.banned_for_account(account)?);
                }
                Ok(all)
            };
            match Archive::open(state_dir).and_then(find) {
                Ok(named) => {
                    asked.named = Some(named);
                    Event::Asked(*asked)
                }
                Err(why) => Event::Answered(asked.client, Reply::refused(1, why, None)),
            }
        }
    }
}

/// A row for people and programs. Everything a stranger wrote in it is escaped.
fn row_json((row, lines): &Told) -> Value {
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| {
            json!({
                "time": line.time.map(rfc3339), "source": line.source, "offset": line.offset, "pattern": line.pattern,
                "account": line.account, "line": line.text,
            })
        })
        .collect();
    let mut all = event_json(row);
    all["decision"] = json!(row.decision);
    all["evidence"] = json!(lines);
    all["evidence_pending"] = json!(!row.places.is_empty());
    all["evidence_missing"] = json!(row.missing);
    all
}

fn event_json(row: &Row) -> Value {
    json!({
        "seq": row.seq, "time": rfc3339(row.time), "what": row.what.name(), "jail": row.jail.as_deref(), "addr": row.subject.map(shown),
        "since": row.since.map(rfc3339), "until": row.until.map(rfc3339),
        "permanent": row.what == What::Ban && row.until.is_none(), "failures": row.failures, "origin": row.origin,
        "by": row.uid.map(|uid| json!({ "uid": uid, "program": row.program })), "reason": row.reason,
    })
}

/// Rows as a stream: only what this machine decided itself, so that two that listen to each other do not echo.
fn streamed(query: &Query, told: &[Told], more: bool) -> Value {
    let next = told.last().map_or(query.after.unwrap_or(0), |(row, _)| row.seq);
    let own = told.iter().map(|(row, _)| row).filter(|row| matches!(row.what, What::Ban | What::Unban));
    let events: Vec<Value> = own.filter(|row| !row.origin.starts_with('@')).map(event_json).collect();
    json!({ "events": events, "next": next, "more": more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{Options, shipped};
    use std::collections::BTreeMap;

    fn filter(name: &str) -> Arc<Filter> {
        let (_, text) = shipped().iter().find(|(known, _)| *known == name).expect("a shipped filter");
        let definition = crate::filter::definition::parse(name, text).expect("sound");
        Arc::new(Filter::compile(&definition, &BTreeMap::new(), &Options::default()).expect("sound"))
    }

    fn dig(filter: Arc<Filter>, path: &Path, offsets: &[u64], accounts: Accounts) -> Dig {
        let source: Arc<str> = path.to_str().expect("ours").into();
        Dig {
            seq: 1,
            subject: "192.0.2.1".parse().expect("an address"),
            on_journal: filter.clone(),
            filter,
            wanted: None,
            places: offsets.iter().map(|offset| (source.clone(), *offset)).collect(),
            evidence: Evidence { lines: 5, accounts, ..Evidence::default() },
            key: [1, 2],
        }
    }

    #[test]
    fn passwords_are_cut_and_accounts_kept_as_asked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("maillog");
        let bad = "Jul 10 12:05:53 mx vpopmail[3076]: vchkpw-smtp: password fail (pass: 'hunter2 bob') bob@example.org:192.0.2.1";
        let other = bad.replace("192.0.2.1", "192.0.2.2");
        std::fs::write(&path, format!("{other}\n{bad}\n{bad}\n")).expect("written");
        let offsets = [0, other.len() as u64 + 1, (other.len() + bad.len()) as u64 + 2];
        let vpopmail = filter("vpopmail");
        let read = |accounts| {
            let mut digger = Digger { spawner: Spawner::default(), scanners: Vec::new() };
            digger.lines(&[dig(vpopmail.clone(), &path, &offsets, accounts)]).remove(0).0
        };
        let plain = read(Accounts::Plain);
        assert_eq!(plain.len(), 2, "a line about somebody else is no evidence: {plain:?}");
        assert!(plain[0].text.contains("(pass: '***') bob@example.org:192.0.2.1"), "{plain:?}");
        assert_eq!(plain[0].account.as_deref(), Some("bob@example.org"));
        assert!(plain[0].pattern.as_deref().is_some_and(|pattern| pattern.contains("password fail")), "{plain:?}");
        let hash = read(Accounts::Hash);
        assert!(hash[0].text.ends_with("(pass: '***') ***:192.0.2.1"), "{hash:?}");
        assert_eq!(hash[0].account.as_deref(), Some(&*hashed([1, 2], b"bob@example.org")));
        let none = read(Accounts::None);
        assert_eq!((none[0].account.as_deref(), none[0].text == hash[0].text), (None, true));
    }

    #[test]
    fn bans_whose_lines_are_looked_for_together_get_their_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("maillog");
        let line = |n: usize| {
            format!(
                "Jul 10 12:05:53 mx vpopmail[3076]: vchkpw-smtp: vpopmail user not found u{n}@example.org:192.0.2.{}\n",
                n % 3 + 1
            )
        };
        let text: String = (0..30).map(line).collect();
        let offset = |n: usize| (0..n).map(|n| line(n).len() as u64).sum::<u64>();
        // Rotated and compressed meanwhile, all but the last.
        let mut gz = flate2::write::GzEncoder::new(
            std::fs::File::create(dir.path().join("maillog.1.gz")).expect("a file"),
            flate2::Compression::fast(),
        );
        std::io::Write::write_all(&mut gz, text.as_bytes()).expect("written");
        gz.finish().expect("written");
        std::fs::write(&path, line(0)).expect("written");
        let vpopmail = filter("vpopmail");
        let digs: Vec<Dig> = (0..3)
            .map(|who| Dig {
                subject: format!("192.0.2.{}", who + 1).parse().expect("an address"),
                ..dig(vpopmail.clone(), &path, &[offset(who), offset(who + 3), offset(who + 27)], Accounts::Plain)
            })
            .collect();
        let mut digger = Digger { spawner: Spawner::default(), scanners: Vec::new() };
        for (who, (lines, short)) in digger.lines(&digs).into_iter().enumerate() {
            let accounts: Vec<&str> = lines.iter().filter_map(|line| line.account.as_deref()).collect();
            let wanted = [who, who + 3, who + 27].map(|n| format!("u{n}@example.org"));
            assert_eq!((accounts, short), (wanted.iter().map(String::as_str).collect(), None));
        }
        // Those of a journal are another batch's, and where none is read that is said.
        let journal: Arc<str> = "journal".into();
        let other = Dig { places: vec![(journal, 7)], ..digs[0].clone() };
        let mut waiting: VecDeque<Box<Dig>> = [&digs[0], &other, &digs[1], &digs[2]].map(|dig| Box::new(dig.clone())).into();
        assert_eq!(next(&mut waiting).len(), 3);
        let batch = next(&mut waiting);
        assert_eq!((digger.lines(&batch), waiting.len()), (vec![(Vec::new(), Some(Short::Unread))], 0));
    }

    #[test]
    fn a_word_is_cut_where_it_stands_alone() {
        let table = [
            ("user=bob from bobby", "bob", "user=*** from bobby"),
            ("userbob", "bob", "user***"),
            ("nobody", "x", "nobody"),
            ("", "x", ""),
            ("a a", "a", "*** ***"),
        ];
        for (text, word, expected) in table {
            assert_eq!(String::from_utf8_lossy(&without(text.as_bytes(), word.as_bytes())), expected);
        }
    }
}
