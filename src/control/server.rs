//! The socket's daemon side: accepts, checks who asks, bounds what they send, and hands requests to the engine.
//!
//! A client can neither stop the daemon nor fill its memory, nor keep others out: requests are bounded in length and time, clients in
//! number, those of one user too, and one that does not read its reply is dropped. Who may ask nothing gets no place at all, and root's
//! places are root's alone. All this happens on the engine's own thread: nothing here may wait for anything but a client.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, oneshot};
use tracing::{debug, warn};

use super::request::{self, REQUEST_AT_MOST, Rank, Reply, Request};
use crate::sys;
use crate::terms::{escape, plain};

/// Clients of root served at once, and as many of all others; root's further ones wait.
const CLIENTS_AT_MOST: usize = 64;
/// Of those others, clients of one user.
const OF_ONE_USER: usize = 16;
/// Replies without a bound that are under way to others than root at once: of many bans each is some ten megabytes.
const LONG_REPLIES: usize = 4;
/// A client that is silent for longer is let go.
const IDLE_AT_MOST: Duration = Duration::from_secs(60);
/// A reply that is not taken within this time is dropped.
const WRITE_AT_MOST: Duration = Duration::from_secs(10);

/// What to do where there can be no socket.
const ELSEWHERE: &str = "write another `socket` in [daemon], or name one with --socket";

/// A request on its way to the engine.
#[derive(Debug)]
pub struct Incoming {
    /// The client's user.
    pub uid: u32,
    /// What they may do.
    pub rank: Rank,
    /// The program they ask with.
    pub program: Option<Box<str>>,
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Reply>,
}

/// Who may ask: the groups of `[daemon]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// May read.
    pub readers: Option<Gid>,
    /// May also unban.
    pub operators: Option<Gid>,
}

impl Access {
    /// Looks the groups up by name. A group that does not exist is told and left out.
    pub fn named(readers: Option<&str>, operators: Option<&str>) -> (Access, Vec<String>) {
        let mut missing = Vec::new();
        let mut find = |name: Option<&str>| match name.map(|name| (name, Group::from_name(name))) {
            Some((_, Ok(Some(group)))) => Some(group.gid),
            Some((name, _)) => {
                missing.push(format!("no group \"{name}\" on this machine: nobody gets in by it"));
                None
            }
            None => None,
        };
        let access = Access { readers: find(readers), operators: find(operators) };
        (access, missing)
    }

    /// What a peer may do.
    fn rank(&self, peer: &Peer) -> Rank {
        if peer.uid.is_root() || peer.uid == Uid::effective() {
            return Rank::Root;
        }
        let member = |group: Option<Gid>| group.is_some_and(|group| peer.groups.contains(&group));
        match (member(self.operators), member(self.readers)) {
            (true, _) => Rank::Operator,
            (false, true) => Rank::Reader,
            (false, false) => Rank::Stranger,
        }
    }
}

/// Who connected, as the kernel knows it: nothing is looked up, for that could take as long as a directory server that is away.
struct Peer {
    uid: Uid,
    /// Its group and its further ones.
    groups: Vec<Gid>,
    pid: Option<i32>,
}

impl Peer {
    fn of(stream: &UnixStream) -> std::io::Result<Peer> {
        let known = stream.peer_cred()?;
        let mut groups = sys::peer_groups(stream.as_fd()).unwrap_or_default();
        groups.push(Gid::from_raw(known.gid()));
        Ok(Peer { uid: Uid::from_raw(known.uid()), groups, pid: known.pid() })
    }
}

/// The places of all but root, by user.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<HashMap<Uid, usize>>>);

impl Places {
    fn taken(&self) -> MutexGuard<'_, HashMap<Uid, usize>> {
        // A poisoned lock holds plain data all the same.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, uid: Uid) -> Option<Place> {
        let mut taken = self.taken();
        let own = taken.get(&uid).copied().unwrap_or(0);
        if own >= OF_ONE_USER || taken.values().sum::<usize>() >= CLIENTS_AT_MOST {
            return None;
        }
        taken.insert(uid, own + 1);
        Some(Place::One(self.clone(), uid))
    }
}

/// A client's place, free again when it is dropped.
enum Place {
    Root { _place: OwnedSemaphorePermit },
    One(Places, Uid),
}

impl Drop for Place {
    fn drop(&mut self) {
        let Place::One(places, uid) = self else { return };
        let mut taken = places.taken();
        match taken.get_mut(uid) {
            Some(own @ 2..) => *own -= 1,
            _ => _ = taken.remove(uid),
        }
    }
}

/// Makes the socket. One that a dead daemon left behind is replaced; that of a living one is an error, and so is anything else there.
pub fn listen(path: &Path) -> Result<std::os::unix::net::UnixListener, String> {
    let named = path.display();
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        std::fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {}\n  help: {ELSEWHERE}", dir.display(), plain(&e)))?;
        let _ = std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let help = "stop it first, or give this one another `socket` and `table`";
        return Err(format!("another daemon answers on {named}\n  help: {help}"));
    }
    if std::fs::symlink_metadata(path).is_ok_and(|there| !there.file_type().is_socket()) {
        return Err(format!("{named} is there, and no socket\n  help: move it away; or {ELSEWHERE}"));
    }
    let _ = std::fs::remove_file(path);
    let failed = |e: std::io::Error| format!("cannot make the socket {named}: {}\n  help: {ELSEWHERE}", plain(&e));
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
    // Anybody may connect; what they may ask is decided by who they are.
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666));
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// What every client is served with.
#[derive(Clone)]
struct Desk {
    access: Arc<Mutex<Access>>,
    engine: mpsc::Sender<Incoming>,
    long: Arc<Semaphore>,
}

/// Serves clients until the engine goes away.
pub async fn serve(listener: UnixListener, access: Arc<Mutex<Access>>, engine: mpsc::Sender<Incoming>) {
    let desk = Desk { access, engine, long: Arc::new(Semaphore::new(LONG_REPLIES)) };
    let (of_root, of_others) = (Arc::new(Semaphore::new(CLIENTS_AT_MOST)), Places::default());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors, or a client gone before it was accepted: neither may end the daemon nor spin.
            Err(e) => {
                warn!("control socket: {}", plain(&e));
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Ok(peer) = Peer::of(&stream) else { continue };
        let place = match desk.rank(&peer) {
            Rank::Root => match of_root.clone().acquire_owned().await {
                Ok(place) => Some(Place::Root { _place: place }),
                Err(_) => return,
            },
            Rank::Stranger => {
                turn_away(stream, &forbidden(peer.uid, Rank::Reader));
                continue;
            }
            Rank::Reader | Rank::Operator => of_others.take(peer.uid),
        };
        let Some(place) = place else {
            let help = format!("at most {OF_ONE_USER} of one user and {CLIENTS_AT_MOST} in all: end some, then ask again");
            turn_away(stream, &Reply::refused(3, "too many clients ask already", help));
            continue;
        };
        let desk = desk.clone();
        tokio::spawn(async move {
            if let Err(e) = client(stream, &peer, &desk).await {
                debug!("control client: {}", plain(&e));
            }
            drop(place);
        });
    }
}

impl Desk {
    fn rank(&self, peer: &Peer) -> Rank {
        // A poisoned lock holds plain data all the same.
        self.access.lock().unwrap_or_else(PoisonError::into_inner).rank(peer)
    }

    async fn answer(&self, peer: &Peer, request: Request) -> (Reply, Option<SemaphorePermit<'_>>) {
        let rank = self.rank(peer);
        if rank < request.needs() {
            return (forbidden(peer.uid, request.needs()), None);
        }
        let is_bounded = rank == Rank::Root || !request.is_answered_at_length();
        let permit = if is_bounded { None } else { self.long.acquire().await.ok() };
        let (reply, answered) = oneshot::channel();
        let gone = || Reply::refused(3, "the daemon is stopping", None);
        let incoming = Incoming { uid: peer.uid.as_raw(), rank, program: program(peer.pid), request, reply };
        if self.engine.send(incoming).await.is_err() {
            return (gone(), None);
        }
        (answered.await.unwrap_or_else(|_| gone()), permit)
    }
}

/// Answers without having been asked. A short line always fits into a new socket.
fn turn_away(stream: UnixStream, reply: &Reply) {
    let _ = stream.into_std().and_then(|mut stream| stream.write_all(&line_of(reply)));
}

fn line_of(reply: &Reply) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(reply).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

async fn client(stream: UnixStream, peer: &Peer, desk: &Desk) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut read).take(REQUEST_AT_MOST as u64 + 1);
        match tokio::time::timeout(IDLE_AT_MOST, bounded.read_until(b'\n', &mut line)).await {
            Ok(Ok(n)) if n > 0 => {}
            Ok(Err(e)) => return Err(e),
            _ => return Ok(()),
        }
        let too_long = line.len() > REQUEST_AT_MOST;
        // The permit is held until the answer is taken.
        let (reply, permit) = match request::parse(&line) {
            _ if too_long => (request::too_long(), None),
            Err(refused) => (refused, None),
            Ok(request) => tokio::select! {
                answered = desk.answer(peer, request) => answered,
                () = left(read.get_ref()) => return Ok(()),
            },
        };
        // What it was made of goes before anybody waits for a client that takes its time.
        let bytes = line_of(&reply);
        drop(reply);
        match tokio::time::timeout(WRITE_AT_MOST, write.write_all(&bytes)).await {
            Ok(Ok(())) if !too_long => {}
            Ok(Err(e)) => return Err(e),
            _ => return Ok(()),
        }
        drop(permit);
    }
}

/// Ends when the client has gone; never for one that only has no more to say.
async fn left(read: &OwnedReadHalf) {
    if read.ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed())
        && read.ready(Interest::WRITABLE).await.is_ok_and(|ready| ready.is_write_closed())
    {
        return;
    }
    std::future::pending().await
}

/// The name of the process that connected, if it still is there: what /proc/PID/comm says, at most 15 bytes.
fn program(pid: Option<i32>) -> Option<Box<str>> {
    let comm = std::fs::read(format!("/proc/{}/comm", pid?)).ok()?;
    Some(escape(comm.trim_ascii_end(), 64).into())
}

fn forbidden(uid: Uid, needs: Rank) -> Reply {
    let help = match needs {
        Rank::Root => "only root may do this",
        Rank::Operator => "root may, and members of the group `operators` of [daemon]",
        _ => "root may, and members of the groups `readers` and `operators` of [daemon]",
    };
    Reply::refused(1, format!("uid {uid} may not do this"), help.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, Write as _};
    use std::os::unix::net::UnixStream as Client;

    use super::*;

    /// Serves a new socket on a thread of its own, with an engine that does this with each request, for as long as `ask` takes.
    fn served(engine: impl FnMut(Incoming) + Send + 'static, ask: impl FnOnce(&Path)) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run/sock");
        let listener = listen(&path).expect("a socket");
        let (end, ended) = oneshot::channel::<()>();
        let serving = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let mut engine = engine;
                let (sender, mut asked) = mpsc::channel(8);
                let access = Arc::new(Mutex::new(Access::default()));
                let listener = UnixListener::from_std(listener).expect("a socket");
                tokio::spawn(serve(listener, access, sender));
                tokio::spawn(async move {
                    while let Some(incoming) = asked.recv().await {
                        engine(incoming);
                    }
                });
                let _ = ended.await;
            });
        });
        ask(&path);
        drop(end);
        serving.join().expect("it ends");
    }

    fn asks(path: &Path, request: &[u8]) -> Client {
        let mut client = Client::connect(path).expect("it listens");
        client.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
        client.write_all(request).expect("it is taken");
        client
    }

    fn answered(client: &Client) -> Reply {
        let mut line = String::new();
        std::io::BufReader::new(client).read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    fn done(incoming: Incoming) {
        let _ = incoming.reply.send(Reply::done(serde_json::json!(incoming.request.needs() as u8)));
    }

    #[test]
    fn several_questions_of_one_client_are_answered_in_turn() {
        served(done, |path| {
            // The second is there before the first is answered, and nothing more comes after it.
            let client = asks(path, b"{\"v\":1,\"cmd\":\"stats\"}\n{\"v\":1,\"cmd\":\"reload\"}\nnonsense\n");
            client.shutdown(std::net::Shutdown::Write).expect("half a socket");
            let mut lines = std::io::BufReader::new(&client).lines().map(|line| line.expect("a line"));
            let exits: Vec<Reply> = lines.by_ref().map(|line| serde_json::from_str(&line).expect("a reply")).collect();
            let exits: Vec<(u8, Option<u64>)> = exits.iter().map(|reply| (reply.exit, reply.result.as_u64())).collect();
            assert_eq!(exits, [(0, Some(Rank::Reader as u64)), (0, Some(Rank::Root as u64)), (2, None)]);
        });
    }

    #[test]
    fn a_client_that_went_away_waiting_leaves_its_place() {
        let mut kept = Vec::new();
        let never = move |incoming: Incoming| match incoming.request {
            Request::Stats => done(incoming),
            _ => kept.push(incoming.reply),
        };
        served(never, |path| {
            for _ in 0..2 {
                let waiting: Vec<Client> = (0..CLIENTS_AT_MOST).map(|_| asks(path, b"{\"v\":1,\"cmd\":\"status\"}\n")).collect();
                drop(waiting);
            }
            assert_eq!(answered(&asks(path, b"{\"v\":1,\"cmd\":\"stats\"}\n")).exit, 0);
        });
    }

    #[test]
    fn a_request_without_an_end_is_refused() {
        served(done, |path| {
            let client = Client::connect(path).expect("it listens");
            client.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
            let mut writing = client.try_clone().expect("a descriptor");
            // It stops being read somewhere: whether all of it was taken does not matter.
            let writer = std::thread::spawn(move || _ = writing.write_all(&vec![b'x'; 4 << 20]));
            let refused = answered(&client);
            assert!(refused.exit == 2 && refused.error.is_some_and(|error| error.contains("too long")));
            drop(client);
            writer.join().expect("it ends");
        });
    }

    #[test]
    fn one_user_gets_a_share_of_the_places() {
        let (places, one) = (Places::default(), Uid::from_raw(1000));
        let mut held: Vec<Place> = (0..OF_ONE_USER).map(|_| places.take(one).expect("a place")).collect();
        assert!(places.take(one).is_none());
        let users = (1001..).map_while(|uid| places.take(Uid::from_raw(uid)));
        held.extend(users.take(1000).collect::<Vec<_>>());
        assert_eq!(held.len(), CLIENTS_AT_MOST);
        held.remove(0);
        assert!(places.take(one).is_some(), "and free again at once");
        drop(held);
        assert!(places.taken().is_empty());
    }

    #[test]
    fn only_a_socket_is_ever_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sock");
        drop(listen(&path).expect("a socket"));
        let again = listen(&path).expect("a dead one is replaced");
        assert!(listen(&path).is_err_and(|why| why.contains("another daemon answers")));
        drop(again);
        std::fs::remove_file(&path).expect("it is there");
        std::fs::write(&path, "a log").expect("a file");
        let why = listen(&path).expect_err("a file");
        assert!(why.contains("no socket") && why.contains("help:"), "{why}");
        assert_eq!(std::fs::read(&path).expect("still there"), b"a log");
    }
}
