//! Host names in ignoreip, resolved in the background and again every few minutes. The last good answer holds while a name
//! does not resolve: an innocent is not banned because a name server is down.

use std::collections::BTreeSet;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tracing::warn;

use super::core::Event;
use super::spec::Resolved;
use crate::terms::{escape, fold};

/// Between two rounds.
const AGAIN: Duration = Duration::from_secs(300);
/// Between two rounds while a name has no answer yet.
const SOON: Duration = Duration::from_secs(15);
/// Addresses taken of one name at most: a stranger may hold the zone.
const ADDRESSES_AT_MOST: usize = 64;

/// The engine's hold on the thread; there is none while no name is to be resolved.
pub struct Names {
    events: Sender<Event>,
    thread: Option<mpsc::Sender<BTreeSet<String>>>,
}

impl Names {
    /// Nothing to resolve yet; answers will go to `events`.
    pub fn new(events: Sender<Event>) -> Names {
        Names { events, thread: None }
    }

    /// Has these names resolved from now on, and no others.
    pub fn resolve(&mut self, names: BTreeSet<String>) {
        if self.thread.is_none() && !names.is_empty() {
            let (sender, receiver) = mpsc::channel();
            let events = self.events.clone();
            match std::thread::Builder::new().name("names".into()).spawn(move || follow(&receiver, &events)) {
                Ok(_) => self.thread = Some(sender),
                Err(e) => warn!("host names in ignoreip are not resolved: {e}"),
            }
        }
        if let Some(thread) = &self.thread {
            let _ = thread.send(names);
        }
    }
}

fn follow(wanted: &mpsc::Receiver<BTreeSet<String>>, events: &Sender<Event>) {
    let mut resolved = Resolved::new();
    let mut names = BTreeSet::new();
    let mut wait = None;
    loop {
        let next = match wait {
            None => wanted.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(wait) => wanted.recv_timeout(wait),
        };
        match next {
            Ok(new) => names = new,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        resolved.retain(|name, _| names.contains(name));
        let mut missing = false;
        for name in &names {
            match lookup(name) {
                Ok(addresses) => {
                    resolved.insert(name.clone(), addresses);
                }
                Err(why) if !resolved.contains_key(name) => {
                    if wait.is_none() {
                        warn!("ignoreip: {}: {why}; trying again", escape(name.as_bytes(), 255));
                    }
                    missing = true;
                }
                Err(_) => {}
            }
        }
        if events.blocking_send(Event::Resolved(resolved.clone())).is_err() {
            return;
        }
        wait = match (names.is_empty(), missing) {
            (true, _) => None,
            (false, true) => Some(SOON),
            (false, false) => Some(AGAIN),
        };
    }
}

fn lookup(name: &str) -> Result<Vec<IpAddr>, String> {
    let answers = (name, 0).to_socket_addrs().map_err(|e| e.to_string())?;
    let found: BTreeSet<IpAddr> = answers.map(|answer| fold(answer.ip())).take(ADDRESSES_AT_MOST).collect();
    if found.is_empty() { Err("no address".to_owned()) } else { Ok(found.into_iter().collect()) }
}
