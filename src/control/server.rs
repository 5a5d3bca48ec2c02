//! The socket's daemon side: accepts, checks who asks, bounds what they send, and hands requests to the engine.
//!
//! A client can neither stop the daemon nor fill its memory: requests are bounded in length and time, clients in number, and
//! one that does not read its reply is dropped.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::{debug, warn};

use super::request::{self, REQUEST_AT_MOST, Rank, Reply, Request};
use crate::terms::escape;

/// Clients served at once; further ones wait in the socket's backlog.
const CLIENTS_AT_MOST: usize = 64;
/// A client that is silent for longer is let go.
const IDLE_AT_MOST: Duration = Duration::from_secs(60);
/// A reply that is not taken within this time is dropped.
const WRITE_AT_MOST: Duration = Duration::from_secs(10);

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
    fn rank(&self, uid: Uid, gid: Gid) -> Rank {
        if uid.is_root() || uid == Uid::effective() {
            return Rank::Root;
        }
        let mut groups = vec![gid];
        if (self.readers.is_some() || self.operators.is_some())
            && let Ok(Some(user)) = User::from_uid(uid)
            && let Ok(name) = std::ffi::CString::new(user.name)
        {
            groups.extend(nix::unistd::getgrouplist(&name, user.gid).unwrap_or_default());
        }
        let member = |group: Option<Gid>| group.is_some_and(|group| groups.contains(&group));
        match (member(self.operators), member(self.readers)) {
            (true, _) => Rank::Operator,
            (false, true) => Rank::Reader,
            (false, false) => Rank::Stranger,
        }
    }
}

/// Makes the socket. One that a dead daemon left behind is replaced; that of a living one is an error.
pub fn listen(path: &Path) -> Result<std::os::unix::net::UnixListener, String> {
    let named = || path.display();
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        std::fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
        let _ = std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let help = "stop it first, or give this one another `socket` and `table`";
        return Err(format!("another daemon answers on {}\n  help: {help}", named()));
    }
    let _ = std::fs::remove_file(path);
    let listener =
        std::os::unix::net::UnixListener::bind(path).map_err(|e| format!("cannot make the socket {}: {e}", named()))?;
    // Anybody may connect; what they may ask is decided by who they are.
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666));
    listener.set_nonblocking(true).map_err(|e| format!("{}: {e}", named()))?;
    Ok(listener)
}

/// Serves clients until the engine goes away.
pub async fn serve(listener: UnixListener, access: Arc<Mutex<Access>>, engine: mpsc::Sender<Incoming>) {
    let places = Arc::new(Semaphore::new(CLIENTS_AT_MOST));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (access, engine) = (access.clone(), engine.clone());
                tokio::spawn(async move {
                    if let Err(e) = client(stream, &access, &engine).await {
                        debug!("control client: {e}");
                    }
                    drop(place);
                });
            }
            // Out of descriptors, or a client gone before it was accepted: neither may end the daemon nor spin.
            Err(e) => {
                warn!("control socket: {e}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn client(stream: UnixStream, access: &Mutex<Access>, engine: &mpsc::Sender<Incoming>) -> std::io::Result<()> {
    let peer = stream.peer_cred()?;
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
        let reply = match request::parse(&line) {
            _ if too_long => Reply::refused(2, "the request is too long", format!("at most {REQUEST_AT_MOST} bytes")),
            Err(refused) => refused,
            Ok(request) => {
                // A poisoned lock holds plain data all the same.
                let access = access.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
                let rank = access.rank(Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()));
                answer(
                    Incoming { uid: peer.uid(), rank, program: program(peer.pid()), request, reply: oneshot::channel().0 },
                    engine,
                )
                .await
            }
        };
        let mut bytes = serde_json::to_vec(&reply).unwrap_or_default();
        bytes.push(b'\n');
        match tokio::time::timeout(WRITE_AT_MOST, write.write_all(&bytes)).await {
            Ok(Ok(())) if !too_long => {}
            Ok(Err(e)) => return Err(e),
            _ => return Ok(()),
        }
    }
}

/// The name of the process that connected, if it still is there: what /proc/PID/comm says, at most 15 bytes.
fn program(pid: Option<i32>) -> Option<Box<str>> {
    let comm = std::fs::read(format!("/proc/{}/comm", pid?)).ok()?;
    Some(escape(comm.trim_ascii_end(), 64).into())
}

async fn answer(incoming: Incoming, engine: &mpsc::Sender<Incoming>) -> Reply {
    let Incoming { uid, rank, .. } = incoming;
    if rank < incoming.request.needs() {
        let help = match incoming.request.needs() {
            Rank::Root => "only root may do this",
            Rank::Operator => "root may, and members of the group `operators` of [daemon]",
            _ => "root may, and members of the groups `readers` and `operators` of [daemon]",
        };
        return Reply::refused(1, format!("uid {uid} may not do this"), help.to_owned());
    }
    let (reply, answered) = oneshot::channel();
    let gone = || Reply::refused(3, "the daemon is stopping", None);
    if engine.send(Incoming { reply, ..incoming }).await.is_err() {
        return gone();
    }
    answered.await.unwrap_or_else(|_| gone())
}
