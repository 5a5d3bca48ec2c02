//! What can happen to the daemon, and what it does to the world: the core's only ways in and out.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::control::{Rank, Reply, Request};
use crate::engine::cut::Cut;
use crate::engine::historian::{Dig, Search};
use crate::engine::keep::Keeping;
use crate::engine::recall::Short;
use crate::engine::spec::{Resolved, Specs};
use crate::filter;
use crate::jail::Failure;
use crate::nft::{Heard, Interval};
use crate::state::history::{Line, Unread};
use crate::terms::{Lasting, Span, Time};

/// A jail while the daemon runs: never given twice, so that a message about a jail that a reload removed finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JailId(pub u32);

/// A client of the control socket that waits for its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientId(pub u64);

/// Everything that can happen.
#[derive(Debug)]
pub enum Event {
    /// Lines of one source were judged by its filters, in order.
    Read(Batch),
    /// A source appeared, went missing, rotated.
    Source(SourceReport),
    /// Between file and journal, this was chosen for a jail.
    Chosen(JailId, Choice),
    /// The kernel's answer to [`Action::Commit`].
    Committed(Committed),
    /// Somebody else changed our table, or we could not hear all of it.
    Foreign(Heard),
    /// [`Action::Commit`] met a table that is not what we left: nothing of it was carried out.
    Damaged(String),
    /// The kernel's answer to [`Action::Establish`]: what it held before, if that was asked for; or why not.
    Established(Result<Done, String>),
    /// A client asks.
    Asked(Asked),
    /// A configuration was read again: by signal, or for a client.
    Reloaded(Reloaded),
    /// The machine's addresses or gateways changed.
    Machine(Machine),
    /// The answer to [`Action::Save`].
    Saved(Result<(), String>),
    /// What was saved can not be brought to the disk, because of this; `None`: it can again.
    Synced(Option<String>),
    /// The answer to [`Action::Dig`]: the lines of what happened under this number, and why some could not be looked for.
    ReadBack(u64, Vec<Line>, Option<Short>),
    /// Bans whose lines were not read back yet: the answer to [`Search::Unread`].
    Unread(Vec<Unread>),
    /// The answer to [`Action::Search`].
    Answered(ClientId, Reply),
    /// Host names of ignoreip resolved to other addresses than before.
    Resolved(Resolved),
    /// Whether somebody lists the ruleset right now: the answer to [`Core::minds_listings`].
    Listing(bool),
    /// The instant of [`Core::next_wake`] came.
    Wake,
}

/// The machine's own addresses and gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Addresses on our interfaces.
    pub addresses: Vec<IpAddr>,
    /// Next hops of default routes.
    pub gateways: Vec<IpAddr>,
    /// The networks of our interfaces, wider than an address; without loopback and link-local ones.
    pub links: Vec<IpNetwork>,
}

/// A table that is as it was wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// What its sets held before, if that was asked for; or hold, if it was only looked at.
    pub adopted: Vec<Adopted>,
    /// Whether it was as wanted, bans aside, and is the table that [`Establish::look`] asked about: nothing was sent.
    pub looked: bool,
    /// The table's handle.
    pub table: u64,
    /// A generation of the ruleset at which it was as wanted.
    pub generation: u32,
    /// Whether it had to be made anew, with all its sets.
    pub fresh: bool,
    /// Whether anything had to be sent.
    pub changed: bool,
    /// Whether the kernel refuses every change of it by others.
    pub owned: bool,
    /// Whether others may have changed it unheard meanwhile.
    pub missed: bool,
}

/// An element found in one of our sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The set.
    pub set: String,
    /// What it holds: one address, or in a set of intervals a stretch of them.
    pub what: Interval,
    /// Its timeout; `None`: it has none.
    pub timeout: Option<Span>,
    /// What is left of it; `None`: it is permanent.
    pub left: Option<Span>,
    /// Whether it stands in each of our tables that has the set.
    pub everywhere: bool,
}

/// Failures of one source, in the order of their lines.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The file.
    pub path: Arc<str>,
    /// Where a later run goes on after this batch.
    pub resume: Option<Arc<Resume>>,
    /// What was found; a line that several jails watch stands once for each.
    pub found: Vec<Found>,
    /// How far reading has come.
    pub offset: u64,
    /// How long the file was then.
    pub size: u64,
    /// Lines read since the last batch.
    pub lines: u64,
    /// Whether the reader has reached the end once.
    pub live: bool,
    /// Whether anything was read since the last batch.
    pub changed: bool,
    /// Of a journal: how many lines were read for each of its sources.
    pub shares: Vec<Share>,
    /// Lines that nearly matched, by jail.
    pub missed: Vec<(JailId, filter::NearMisses)>,
}

/// Lines of one source among those of a journal.
#[derive(Clone, Debug)]
pub struct Share {
    /// The source, as `status` names it.
    pub source: Arc<str>,
    /// How many.
    pub lines: u64,
}

/// Where a jail's lines come from, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// `file` or `journal`.
    pub backend: &'static str,
    /// Why, for people.
    pub why: String,
}

/// The whole state of one reader after a batch.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    /// The source's number in failures' places.
    pub place: u16,
    /// Where in the files.
    pub position: crate::watch::Position,
    /// What its filters remember.
    pub scanner: crate::filter::State,
    /// Of a journal: all of it; the two above are then empty.
    pub journal: Option<Box<crate::engine::journal::Kept>>,
}

/// One failure or success for one jail.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// For whom.
    pub jail: JailId,
    /// What.
    pub failure: Failure,
    /// A login that succeeded.
    pub ok: bool,
}

/// What became of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceReport {
    /// The jails that watch it.
    pub jails: Vec<JailId>,
    /// The path, or the pattern that found none.
    pub path: Arc<str>,
    /// What became of it.
    pub state: SourceState,
    /// For people: an error, a count.
    pub note: Option<String>,
    /// An answer to a question, not news: nothing is logged.
    pub known: bool,
}

/// The state of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// It does not exist; it will be followed as soon as it does.
    #[default]
    Waiting,
    /// It exists and can not be read.
    Unreadable,
    /// It is read up to the end first seen.
    CatchingUp,
    /// New lines are judged as they come.
    Live,
    /// Nobody watches it any more.
    Gone,
}

impl SourceState {
    /// The word in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            SourceState::Waiting => "waiting",
            SourceState::Unreadable => "unreadable",
            SourceState::CatchingUp => "catching up",
            SourceState::Live => "live",
            SourceState::Gone => "gone",
        }
    }
}

/// A request and what is needed to answer it.
#[derive(Debug)]
pub struct Asked {
    /// Who waits.
    pub client: ClientId,
    /// Their uid.
    pub uid: u32,
    /// What they may do.
    pub rank: Rank,
    /// The program they ask with.
    pub program: Option<Box<str>>,
    /// What they ask.
    pub request: Request,
    /// The kernel's own numbers, read beforehand for requests that show them.
    pub kernel: Option<KernelView>,
    /// Whom bans name whose lines name the request's account, looked up beforehand for requests that have one.
    pub named: Option<Vec<(Arc<str>, IpNetwork)>>,
}

/// What the kernel holds, for people to look at.
#[derive(Clone, Debug, Default)]
pub struct KernelView {
    /// The ruleset's generation.
    pub generation: u32,
    /// Per set: its elements; `None` where the set does not exist.
    pub counts: HashMap<String, u64>,
    /// Per jail: packets and bytes its rules dropped.
    pub dropped: HashMap<String, (u64, u64)>,
    /// Per set and element: packets and bytes; filled for `banned` where elements count.
    pub elements: HashMap<(String, IpAddr), (u64, u64)>,
}

/// A configuration read again.
#[derive(Debug)]
pub struct Reloaded {
    /// Who waits for it, if it was not a signal.
    pub client: Option<ClientId>,
    /// The specs, or the report of mistakes.
    pub specs: Result<Specs, String>,
}

/// A change of one element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The set.
    pub set: Arc<str>,
    /// The element: one address, or in a set of intervals (`JAIL-net4`) a stretch of them. From an `IpAddr` or `IpNetwork` by `into()`.
    pub what: Interval,
    /// Add or remove.
    pub to: Target,
}

/// What an element shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// In the set, with this timeout, until this monotonic instant; `None`: for ever.
    Held {
        /// The span given.
        lasting: Lasting,
        /// The monotonic instant at which it ends.
        until: Option<Time>,
    },
    /// Not in the set.
    Gone,
}

/// What became of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// What the kernel refused.
    pub refusals: Vec<Refusal>,
    /// The ruleset's generation before.
    pub before: u32,
    /// And after: our transactions are among those in between.
    pub after: u32,
    /// Whether none of somebody else is among them.
    pub alone: bool,
}

impl From<Vec<Refusal>> for Committed {
    fn from(refusals: Vec<Refusal>) -> Committed {
        Committed { refusals, alone: true, ..Committed::default() }
    }
}

/// Which sets may hold other elements than we know of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Suspects {
    /// None.
    #[default]
    None,
    /// These.
    Sets(BTreeSet<String>),
    /// Any.
    All,
}

impl Suspects {
    /// Whether a set is one of them.
    pub fn holds(&self, set: &str) -> bool {
        match self {
            Suspects::None => false,
            Suspects::Sets(sets) => sets.contains(set),
            Suspects::All => true,
        }
    }

    /// These too.
    pub fn add(&mut self, other: Suspects) {
        *self = match (std::mem::take(self), other) {
            (Suspects::All, _) | (_, Suspects::All) => Suspects::All,
            (Suspects::None, some) | (some, Suspects::None) => some,
            (Suspects::Sets(mut sets), Suspects::Sets(more)) => {
                sets.extend(more);
                Suspects::Sets(sets)
            }
        };
    }
}

/// A change the kernel refused, though the rest was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which change of the commit, from 0.
    pub index: usize,
    /// Why, in nft's words.
    pub why: String,
    /// Whether the set was full.
    pub full: bool,
}

/// Everything the daemon does.
#[derive(Debug)]
pub enum Action {
    /// Carry out these changes in as few transactions as possible.
    Commit(Vec<Change>),
    /// Make the kernel equal to these specs, with these elements in the sets that have to be filled.
    Establish(Establish),
    /// Keep this.
    Save(Box<Keeping>),
    /// Read the lines behind a ban back from the log.
    Dig(Box<Dig>),
    /// Look into the history.
    Search(Box<Search>),
    /// Close the connections that those who are banned now have open with us.
    Cut(Vec<Cut>),
    /// Answer a client.
    Reply(ClientId, Reply),
    /// Write a log line.
    Log(Level, String),
    /// Read the configuration again.
    Reload(Option<ClientId>),
    /// Follow these sources with these filters from now on, and resolve these names.
    Watch(Arc<Specs>),
}

/// A whole table and what its sets hold.
#[derive(Debug)]
pub struct Establish {
    /// What is wanted.
    pub specs: Arc<Specs>,
    /// The content of the ignore set of all jails.
    pub ignored: Vec<IpNetwork>,
    /// Per jail, in the order of the specs: the content of its own ignore set.
    pub own_ignored: Vec<Vec<IpNetwork>>,
    /// Per jail, in the order of the specs: whether its rules are out.
    pub paused: Vec<bool>,
    /// Per jail, in the order of the specs: whether it bans subnets too, so that it has `JAIL-net4` and `JAIL-net6`. A jail for which
    /// `held` names one of these has them anyway.
    pub nets: Vec<bool>,
    /// Every element held, per set, for sets that must be filled anew.
    pub held: HashMap<Arc<str>, Vec<Change>>,
    /// The sets whose elements have to be compared with `held`; in all others they are left as they are.
    pub exact: Suspects,
    /// Whether the answer shall tell what the sets held: nothing was adopted yet.
    pub adopt: bool,
    /// If our table still has this handle and is as wanted, bans aside, nothing is sent: the answer tells what its sets hold.
    pub look: Option<u64>,
}

/// The levels of the daemon's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Bans, and what may fail soon.
    Warn,
    /// What happens.
    Info,
    /// Details.
    Debug,
}
