//! What has to be kept and is not yet: the core notes it here as it happens, and it goes out in one save at a time.
//!
//! A save holds what one transaction must hold together: positions, the failures counted up to them, and the bans that came of
//! those. It goes at most every 250 ms while there is something to keep. The first position in a log goes at once: without one
//! a later start would not know that what is rotated until then was ours to read. What somebody asked for by hand goes at once
//! too, and is on the disk before the reply. After a save that failed the next one tells everything anew, in place of what the
//! file holds: a ban that was lifted meanwhile must not come back from there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::core::{ClientId, Resume};
use crate::control::Reply;
use crate::jail::{Failure, Held, Now, Origin};
use crate::state::history::{self, Lines, Row};
use crate::state::packed::{self, Step};
use crate::state::{ADOPTED, KeptBan, KeptIgnore, KeptOffence, KeptPause, KernelIdentity, Totals};
use crate::terms::{Span, Time};

/// Changes gather for this long before they are saved.
const GATHER: Span = Span(250_000);
/// The wall clock is taken to go as the monotonic one does while it is no farther off than this, in microseconds.
const EVEN: u64 = 100_000;
/// After a save that failed.
const RETRY: Span = Span::from_secs(5);
/// Packed failures appended before everything is written anew, if that is also several times what was written anew last.
const REWRITE: usize = 256 * 1024;

/// Things that happened while nothing can be saved are kept in mind up to this many; then the oldest are lost, and counted.
const ROWS_IN_MIND: usize = 20_000;
/// While saving works one event may bring as many as the history ever holds: `unban --all`.
const ROWS_AT_ONCE: usize = history::ROWS_AT_MOST as usize;
/// Rows whose lines were read back and could not be saved yet; the lines of more are read back at the next start.
const LINES_IN_MIND: usize = 20_000;
/// History is purged in passing when something is saved; while nothing happens there is nothing to purge.
type Purge = (Time, Span);

/// Where the core has what the notes are about.
pub trait Books {
    /// A ban as it is now.
    fn ban(&self, jail: &str, subject: IpNetwork) -> Option<KeptBan>;
    /// Earlier bans of a subject as they are now.
    fn offence(&self, jail: &str, subject: IpNetwork) -> Option<KeptOffence>;
    /// The totals of a jail.
    fn totals(&self, jail: &str) -> Totals;
    /// Every window's steps.
    fn windows(&self) -> Vec<(Arc<str>, Vec<u8>)>;
    /// What is ignored by request.
    fn ignored(&self) -> Vec<KeptIgnore>;
    /// What is paused.
    fn paused(&self) -> Vec<KeptPause>;
    /// How far other machines' events were applied.
    fn applied(&self) -> Vec<(Box<str>, u64)>;
    /// How long history is kept.
    fn keep(&self) -> Span;
    /// Jails that are not in the books although they are configured: what was kept of them stays.
    fn absent(&self) -> Vec<Arc<str>>;
    /// The addresses that ignored names have.
    fn names(&self) -> Vec<(Box<str>, Vec<IpAddr>)>;
}

/// One save, as the core sees it: positions are still values, the keeper's thread makes them text.
#[derive(Debug, Default)]
pub struct Keeping {
    /// Packed steps by jail.
    pub failures: Vec<(Arc<str>, Vec<u8>)>,
    /// Whether they are all there is.
    pub whole: bool,
    /// Whether the bans and offences are all there are.
    pub anew: bool,
    /// Of these jails the above says nothing.
    pub absent: Vec<Arc<str>>,
    /// Bans as they are now; `None`: no more.
    pub bans: Vec<(Arc<str>, IpNetwork, Option<KeptBan>)>,
    /// How far sources were read; `None`: no longer followed.
    pub positions: Vec<(Arc<str>, Option<Arc<Resume>>)>,
    /// Totals by jail.
    pub totals: Vec<(Arc<str>, Totals)>,
    /// The table the bans are in.
    pub kernel: Option<KernelIdentity>,
    /// What happened, in order.
    pub history: Arc<[Row]>,
    /// Lines read back, by row.
    pub lines: Arc<[Lines]>,
    /// Offences as they are now; `None`: forgotten.
    pub offences: Vec<(Arc<str>, IpNetwork, Option<KeptOffence>)>,
    /// What is ignored by request, if that changed.
    pub ignored: Option<Vec<KeptIgnore>>,
    /// What is paused, if that changed.
    pub paused: Option<Vec<KeptPause>>,
    /// How far other machines' events were applied, if that changed.
    pub applied: Option<Vec<(Box<str>, u64)>>,
    /// The addresses of ignored names, if they changed.
    pub names: Option<Vec<(Box<str>, Vec<IpAddr>)>>,
    /// The wall clock less the monotonic one, in microseconds, if that moved: by it the times here are meant.
    pub clock: Option<i64>,
    /// Now, and how long history is kept.
    pub keep: Option<Purge>,
    /// Must be on the disk before the answer.
    pub sync: bool,
}

/// How far sources were read; `None`: no longer followed.
type Positions = HashMap<Arc<str>, Option<Arc<Resume>>>;

/// The core's notes.
#[derive(Debug, Default)]
pub struct Keep {
    /// Whether anything is kept at all.
    on: bool,
    failures: BTreeMap<Arc<str>, Vec<u8>>,
    bans: BTreeSet<(Arc<str>, IpNetwork)>,
    positions: Positions,
    /// Those of the save under way: if it fails they go with the next.
    sent: Positions,
    /// Paths with a position kept or on its way.
    placed: HashSet<Arc<str>>,
    totals: BTreeSet<Arc<str>>,
    kernel: Option<KernelIdentity>,
    /// That of the save under way.
    sent_kernel: Option<KernelIdentity>,
    rows: Vec<Row>,
    lines: Vec<Lines>,
    /// Those of the save under way: if it fails they go with the next.
    sent_rows: Arc<[Row]>,
    sent_lines: Arc<[Lines]>,
    /// Rows that were lost because nothing could be saved.
    pub lost_rows: u64,
    offences: BTreeSet<(Arc<str>, IpNetwork)>,
    ignored: bool,
    paused: bool,
    applied: bool,
    names: bool,
    /// The wall clock less the monotonic one, as it was told last.
    clock: Option<i64>,
    /// How many saves were begun, and how many came through.
    begun: u64,
    through: u64,
    /// Since when something waits.
    dirty: Option<Time>,
    not_before: Time,
    urgent: bool,
    at_once: bool,
    whole: bool,
    anew: bool,
    appended: usize,
    rewritten: usize,
    under_way: bool,
    waiting: Vec<(ClientId, Reply)>,
    carried: Vec<(ClientId, Reply)>,
    /// Why nothing is kept, if so.
    failed: Option<String>,
    /// Why what was saved is not on the disk, if so.
    pub unsynced: Option<String>,
}

impl Keep {
    /// Begins to keep; there are positions for these paths already.
    pub fn start(&mut self, placed: impl IntoIterator<Item = Arc<str>>) {
        self.on = true;
        self.placed.extend(placed);
    }

    /// Nothing can be kept, because of this.
    pub fn cannot(&mut self, why: String) {
        self.failed = Some(why);
    }

    /// Why nothing is kept at the moment, if so.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref().or(self.unsynced.as_deref())
    }

    fn touch(&mut self, now: Now) {
        if self.on {
            self.dirty.get_or_insert(now.mono);
        }
    }

    /// A jail's window changed.
    pub fn step(&mut self, now: Now, jail: &Arc<str>, step: Step) {
        if self.on {
            packed::push(self.failures.entry(jail.clone()).or_default(), step);
            self.totals.insert(jail.clone());
            self.touch(now);
        }
    }

    /// A failure was counted.
    pub fn failure(&mut self, now: Now, jail: &Arc<str>, subject: IpNetwork, failure: &Failure) {
        let counted = Failure { address: subject.network(), time: failure.time.min(now.wall), ..*failure };
        self.step(now, jail, Step::Fail(counted));
    }

    /// A ban began, changed, or ended.
    pub fn ban(&mut self, now: Now, jail: &Arc<str>, subject: IpNetwork) {
        if self.on {
            self.bans.insert((jail.clone(), subject));
            self.totals.insert(jail.clone());
            self.touch(now);
        }
    }

    /// Something happened.
    pub fn row(&mut self, now: Now, row: Row) {
        if self.on {
            let most = if self.failed.is_some() { ROWS_IN_MIND } else { ROWS_AT_ONCE };
            if self.rows.len() >= most {
                let lost = self.rows.len() - most / 2;
                self.rows.drain(..lost);
                self.lost_rows += lost as u64;
            }
            self.rows.push(row);
            self.touch(now);
        }
    }

    /// The lines of a row were read back.
    pub fn lines(&mut self, now: Now, lines: Lines) {
        if self.on && self.lines.len() < LINES_IN_MIND {
            self.lines.push(lines);
            self.touch(now);
        }
    }

    /// The earlier bans of a subject changed.
    pub fn offence(&mut self, now: Now, jail: &Arc<str>, subject: IpNetwork) {
        if self.on {
            self.offences.insert((jail.clone(), subject));
            self.touch(now);
        }
    }

    /// What is ignored by request changed.
    pub fn ignored(&mut self, now: Now) {
        self.ignored = true;
        self.touch(now);
    }

    /// What is paused changed.
    pub fn paused(&mut self, now: Now) {
        self.paused = true;
        self.touch(now);
    }

    /// Another machine's events were applied.
    pub fn applied(&mut self, now: Now) {
        self.applied = true;
        self.touch(now);
    }

    /// Ignored names have other addresses.
    pub fn names(&mut self, now: Now) {
        self.names = true;
        self.touch(now);
    }

    /// Whether anything is kept at all.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// The save after which everything noted up to now is kept; `None`: it is already, or nothing can be kept. If
    /// somebody is in a hurry, what waits goes at once.
    pub fn soon(&mut self, hurry: bool) -> Option<u64> {
        if !self.on || self.failed.is_some() {
            return None;
        }
        if self.dirty.is_some() {
            self.at_once |= hurry;
            return Some(self.begun + 1);
        }
        self.under_way.then_some(self.begun)
    }

    /// How many saves are through, or have failed.
    pub fn through(&self) -> u64 {
        self.through
    }

    /// Reading has come so far.
    pub fn position(&mut self, now: Now, path: &Arc<str>, resume: Option<Arc<Resume>>) {
        if self.on {
            match resume {
                Some(_) => self.at_once |= self.placed.insert(path.clone()),
                None => _ = self.placed.remove(path),
            }
            self.positions.insert(path.clone(), resume);
            self.touch(now);
        }
    }

    /// The bans are in this table now.
    pub fn kernel(&mut self, now: Now, identity: KernelIdentity) {
        if self.on {
            self.kernel = Some(identity);
            self.touch(now);
        }
    }

    /// Answers a client once everything up to now is on the disk; at once if nothing is kept.
    pub fn then_reply(&mut self, now: Now, client: ClientId, reply: Reply) -> Option<(ClientId, Reply)> {
        if !self.on || self.failed.is_some() {
            return Some((client, reply));
        }
        self.waiting.push((client, reply));
        self.urgent = true;
        self.dirty.get_or_insert(now.mono);
        None
    }

    /// Has what waits saved now: the daemon ends.
    pub fn hurry(&mut self, now: Now) {
        if self.on {
            self.urgent = true;
            self.dirty.get_or_insert(now.mono);
        }
    }

    /// Whether nothing waits and nothing is under way.
    pub fn is_quiet(&self) -> bool {
        !self.under_way && (self.dirty.is_none() || !self.on || self.failed.is_some())
    }

    /// When the next save is due, if one is.
    pub fn due(&self) -> Option<Time> {
        let dirty = self.dirty.filter(|_| self.on && !self.under_way)?;
        Some(if self.urgent || self.at_once { dirty } else { dirty + GATHER }.max(self.not_before))
    }

    /// The next save, if one is due.
    pub fn next(&mut self, now: Now, books: &impl Books) -> Option<Keeping> {
        if self.due()? > now.mono {
            return None;
        }
        let mut failures: Vec<(Arc<str>, Vec<u8>)> = std::mem::take(&mut self.failures).into_iter().collect();
        self.appended += failures.iter().map(|(_, packed)| packed.len()).sum::<usize>();
        let whole = self.whole || (self.appended > REWRITE && self.appended > 4 * self.rewritten);
        if whole {
            failures = books.windows();
            self.rewritten = failures.iter().map(|(_, packed)| packed.len()).sum();
            self.appended = 0;
        }
        let anew = std::mem::take(&mut self.anew);
        let clock = Some(now.offset()).filter(|offset| self.clock.is_none_or(|last| last.abs_diff(*offset) > EVEN));
        self.clock = clock.or(self.clock);
        self.sent_kernel = self.kernel.take();
        let bans = std::mem::take(&mut self.bans).into_iter().map(|(jail, subject)| {
            let kept = books.ban(&jail, subject);
            (jail, subject, kept)
        });
        let offences = std::mem::take(&mut self.offences).into_iter().map(|(jail, subject)| {
            let kept = books.offence(&jail, subject);
            (jail, subject, kept)
        });
        self.sent = std::mem::take(&mut self.positions);
        self.sent_rows = std::mem::take(&mut self.rows).into();
        self.sent_lines = std::mem::take(&mut self.lines).into();
        let keeping = Keeping {
            failures,
            whole,
            anew,
            absent: if whole || anew { books.absent() } else { Vec::new() },
            bans: bans.collect(),
            positions: self.sent.iter().map(|(path, resume)| (path.clone(), resume.clone())).collect(),
            totals: std::mem::take(&mut self.totals).into_iter().map(|jail| (jail.clone(), books.totals(&jail))).collect(),
            kernel: self.sent_kernel.clone(),
            history: self.sent_rows.clone(),
            lines: self.sent_lines.clone(),
            offences: offences.collect(),
            ignored: std::mem::take(&mut self.ignored).then(|| books.ignored()),
            paused: std::mem::take(&mut self.paused).then(|| books.paused()),
            applied: std::mem::take(&mut self.applied).then(|| books.applied()),
            names: std::mem::take(&mut self.names).then(|| books.names()),
            clock,
            keep: Some((now.wall, books.keep())),
            sync: self.urgent,
        };
        self.carried = std::mem::take(&mut self.waiting);
        (self.dirty, self.urgent, self.at_once, self.whole, self.under_way) = (None, false, false, false, true);
        self.begun += 1;
        Some(keeping)
    }

    /// The answer to a save: who is to be replied to now, and whether the caller has to note everything anew.
    pub fn saved(&mut self, now: Now, result: Result<(), String>) -> (Vec<(ClientId, Reply)>, Option<Change>) {
        self.under_way = false;
        self.through = self.begun;
        let (rows, lines) = (std::mem::take(&mut self.sent_rows), std::mem::take(&mut self.sent_lines));
        let (sent, sent_kernel) = (std::mem::take(&mut self.sent), self.sent_kernel.take());
        if result.is_err() {
            // The failures counted up to them are told anew: without them those would be read and counted again.
            sent.into_iter().for_each(|(path, resume)| _ = self.positions.entry(path).or_insert(resume));
            self.rows.splice(..0, rows.iter().cloned());
            self.lines.splice(..0, lines.iter().cloned());
            self.kernel = self.kernel.take().or(sent_kernel);
            (self.ignored, self.paused, self.applied, self.names) = (true, true, true, true);
        }
        let change = match (result, self.failed.take()) {
            (Ok(()), None) => None,
            (Ok(()), Some(_)) => Some(Change::Mended),
            (Err(why), before) => {
                self.failed = Some(why.clone());
                (self.whole, self.anew, self.clock) = (true, true, None);
                self.not_before = now.mono + RETRY;
                self.dirty.get_or_insert(now.mono);
                Some(if before.is_none() { Change::Failed(why) } else { Change::StillFailing })
            }
        };
        (std::mem::take(&mut self.carried), change)
    }
}

/// What a save's answer changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Saving does not work any more.
    Failed(String),
    /// Nor this time.
    StillFailing,
    /// It works again.
    Mended,
}

/// The sign in front of the reason of a ban that bites although it is ignored.
const FORCED: char = '!';

/// The sign in front of the reason of a ban that another machine decided.
const GIVEN: char = '@';

/// A held ban as it is kept.
pub fn kept(now: Now, held: &Held) -> KeptBan {
    let uid = match &held.origin {
        Origin::Manual { uid, .. } | Origin::Given { uid, .. } => Some(*uid),
        Origin::Failures | Origin::Adopted | Origin::Foreign | Origin::Aggregate(_) => None,
    };
    KeptBan {
        since: held.since,
        until: held.until.map(|until| now.wall_of(until)),
        lasting: held.lasting,
        failures: held.failures,
        uid,
        reason: match (&held.origin, held.is_forced()) {
            (Origin::Adopted, _) => Some(ADOPTED.into()),
            (Origin::Foreign, _) => Some(FOREIGN.into()),
            (origin, true) => Some(format!("{FORCED}{}", origin.reason().unwrap_or_default())),
            (origin, false) => origin.reason(),
        },
        in_kernel: held.in_kernel,
        own: match &held.origin {
            Origin::Given { own: Some(own), .. } => Some(Box::new(kept(now, own))),
            _ => None,
        },
    }
}

/// What the state says instead of a reason of a ban that another program put into its set while the daemon ran.
const FOREIGN: &str = "foreign";

/// A kept ban as it is held; `None` if it is over by now.
pub fn held(now: Now, kept: &KeptBan) -> Option<Held> {
    let until = match kept.until {
        Some(until) if until <= now.wall => return None,
        // A clock that was set back meanwhile makes no ban longer than it was meant to be.
        Some(until) => Some(now.mono + kept.lasting.at_most(until.since(now.wall))),
        None => None,
    };
    let origin = match (kept.uid, kept.reason.as_deref()) {
        (Some(uid), Some(reason)) if reason.starts_with(GIVEN) => {
            let (machine, reason) =
                reason[1..].split_once(": ").map_or((&reason[1..], None), |(machine, reason)| (machine, Some(reason)));
            let own = kept.own.as_ref().and_then(|own| self::held(now, own)).map(Box::new);
            Origin::Given { uid, machine: machine.into(), reason: reason.map(Into::into), own }
        }
        (Some(uid), reason) => {
            let forced = reason.and_then(|reason| reason.strip_prefix(FORCED));
            let reason = forced.map_or(reason, |reason| Some(reason).filter(|reason| !reason.is_empty()));
            Origin::Manual { uid, reason: reason.map(str::to_owned), forced: forced.is_some() }
        }
        (None, None) => Origin::Failures,
        (None, Some(ADOPTED)) => Origin::Adopted,
        (None, Some(FOREIGN)) => Origin::Foreign,
        (None, Some(reason)) => Origin::Aggregate(reason.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)),
    };
    Some(Held {
        since: kept.since,
        until,
        lasting: kept.lasting,
        failures: kept.failures,
        origin,
        in_kernel: kept.in_kernel,
        generation: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::Place;

    #[test]
    fn whose_a_ban_is_outlives_a_restart() {
        let by_hand = Origin::Manual { uid: 7, reason: Some("adopted".into()), forced: false };
        for origin in [Origin::Failures, Origin::Adopted, Origin::Foreign, Origin::Aggregate(9), by_hand] {
            let ban = Held {
                since: Time(0),
                until: None,
                lasting: crate::terms::Lasting::Permanent,
                failures: 0,
                origin: origin.clone(),
                in_kernel: true,
                generation: 0,
            };
            assert_eq!(held(at(0), &kept(at(0), &ban)).map(|held| held.origin), Some(origin));
        }
    }

    fn at(secs: i64) -> Now {
        Now { wall: Time::from_secs(1000 + secs), mono: Time::from_secs(secs) }
    }

    struct Nothing;

    impl Books for Nothing {
        fn ban(&self, _: &str, _: IpNetwork) -> Option<KeptBan> {
            None
        }
        fn offence(&self, _: &str, _: IpNetwork) -> Option<KeptOffence> {
            None
        }
        fn totals(&self, _: &str) -> Totals {
            Totals::default()
        }
        fn windows(&self) -> Vec<(Arc<str>, Vec<u8>)> {
            vec![("sshd".into(), vec![1])]
        }
        fn ignored(&self) -> Vec<KeptIgnore> {
            Vec::new()
        }
        fn paused(&self) -> Vec<KeptPause> {
            Vec::new()
        }
        fn applied(&self) -> Vec<(Box<str>, u64)> {
            Vec::new()
        }
        fn keep(&self) -> Span {
            Span::from_secs(1)
        }
        fn absent(&self) -> Vec<Arc<str>> {
            vec!["broken".into()]
        }
        fn names(&self) -> Vec<(Box<str>, Vec<IpAddr>)> {
            Vec::new()
        }
    }

    fn next(keep: &mut Keep, now: Now) -> Option<Keeping> {
        keep.next(now, &Nothing)
    }

    #[test]
    fn what_happened_goes_again_after_a_save_that_failed_and_is_bounded() {
        let mut keep = Keep::default();
        keep.start([]);
        let row = |seq| Row { seq, ..Row::default() };
        keep.row(at(0), row(1));
        assert_eq!(keep.soon(true), Some(1));
        assert_eq!(next(&mut keep, at(0)).map(|save| save.history.len()), Some(1));
        assert_eq!(keep.soon(true), Some(1), "under way");
        keep.row(at(0), row(2));
        assert_eq!(keep.soon(true), Some(2));
        keep.saved(at(0), Err("disk full".into()));
        let save = next(&mut keep, at(6)).expect("tried again");
        assert_eq!(save.history.iter().map(|row| row.seq).collect::<Vec<_>>(), [1, 2]);
        keep.saved(at(6), Ok(()));
        assert_eq!((keep.soon(true), keep.through()), (None, 2));
        // One event may bring many; only while nothing can be saved are they few.
        (0..30_000).for_each(|seq| keep.row(at(7), row(seq)));
        assert_eq!((next(&mut keep, at(8)).map(|save| save.history.len()), keep.lost_rows), (Some(30_000), 0));
        keep.saved(at(8), Err("disk full".into()));
        (30_000..35_000).for_each(|seq| keep.row(at(9), row(seq)));
        assert_eq!((keep.rows.len(), keep.lost_rows, keep.rows.last().map(|row| row.seq)), (15_000, 20_000, Some(34_999)));
    }

    #[test]
    fn changes_gather_and_go_in_one_save_at_a_time() {
        let mut keep = Keep::default();
        let jail: Arc<str> = "sshd".into();
        let failure = Failure { address: [192, 0, 2, 7].into(), time: at(0).wall, attempts: 1, place: Place(0) };
        let subject = IpNetwork::from(failure.address);
        keep.failure(at(0), &jail, subject, &failure);
        assert!(keep.due().is_none(), "nothing is kept before it starts");
        keep.start([]);
        keep.failure(at(0), &jail, subject, &failure);
        assert_eq!(keep.due(), Some(Time(250_000)));
        assert!(next(&mut keep, at(0)).is_none());
        let save = next(&mut keep, at(1)).expect("due");
        assert_eq!((save.failures.len(), save.whole, save.sync), (1, false, false));
        keep.ban(at(1), &jail, subject);
        assert!(next(&mut keep, at(2)).is_none(), "one is under way");
        keep.saved(at(2), Ok(()));
        assert_eq!(next(&mut keep, at(2)).map(|save| save.bans.len()), Some(1));
    }

    #[test]
    fn what_is_asked_for_by_hand_goes_at_once_and_is_answered_after() {
        let mut keep = Keep::default();
        assert!(keep.then_reply(at(0), ClientId(1), Reply::done(1.into())).is_some(), "nothing is kept");
        keep.start([]);
        assert!(keep.then_reply(at(0), ClientId(1), Reply::done(1.into())).is_none());
        let save = next(&mut keep, at(0)).expect("due at once");
        assert!(save.sync);
        assert_eq!(keep.saved(at(0), Ok(())).0.len(), 1);
    }

    #[test]
    fn the_first_position_in_a_log_goes_at_once() {
        let mut keep = Keep::default();
        let (old, new): (Arc<str>, Arc<str>) = ("/old".into(), "/new".into());
        let resume = || Some(Arc::new(Resume::default()));
        keep.start([old.clone()]);
        keep.position(at(0), &old, resume());
        assert_eq!(keep.due(), Some(Time(250_000)), "an earlier run kept one");
        keep.position(at(0), &new, resume());
        let save = next(&mut keep, at(0)).expect("due at once");
        assert_eq!((save.positions.len(), save.sync), (2, false));
        keep.saved(at(0), Ok(()));
        keep.position(at(1), &new, resume());
        assert!(next(&mut keep, at(1)).is_none());
        keep.position(at(1), &new, None);
        keep.position(at(1), &new, resume());
        assert!(next(&mut keep, at(1)).is_some(), "it was forgotten meanwhile");
    }

    #[test]
    fn a_position_whose_save_failed_goes_with_the_next() {
        let mut keep = Keep::default();
        let (a, b): (Arc<str>, Arc<str>) = ("/a".into(), "/b".into());
        let resume = |place| Some(Arc::new(Resume { place, ..Resume::default() }));
        keep.start([]);
        keep.position(at(0), &a, resume(1));
        keep.position(at(0), &b, resume(2));
        next(&mut keep, at(0)).expect("due");
        keep.position(at(0), &b, resume(3));
        keep.saved(at(0), Err("disk full".into()));
        let save = next(&mut keep, at(6)).expect("tried again");
        let mut places: Vec<u16> = save.positions.iter().filter_map(|(_, resume)| Some(resume.as_ref()?.place)).collect();
        places.sort_unstable();
        assert_eq!((places, save.whole), (vec![1, 3], true));
    }

    #[test]
    fn after_a_failure_everything_is_told_anew() {
        let mut keep = Keep::default();
        keep.start([]);
        keep.ban(at(0), &"sshd".into(), "192.0.2.7".parse().expect("a net"));
        let identity = KernelIdentity { boot: "boot".into(), table: 7 };
        keep.kernel(at(0), identity.clone());
        let save = next(&mut keep, at(1)).expect("due");
        assert!(!save.anew && save.absent.is_empty() && save.kernel.is_some());
        assert_eq!(keep.saved(at(1), Err("disk full".into())).1, Some(Change::Failed("disk full".into())));
        assert!(next(&mut keep, at(5)).is_none() && keep.is_quiet());
        let save = next(&mut keep, at(6)).expect("tried again");
        assert!(save.whole && save.anew && save.kernel == Some(identity));
        assert_eq!(save.absent, ["broken".into()]);
        assert_eq!(keep.saved(at(6), Err("disk full".into())).1, Some(Change::StillFailing));
        next(&mut keep, at(11)).expect("tried again");
        assert_eq!(keep.saved(at(11), Ok(())).1, Some(Change::Mended));
    }
}
