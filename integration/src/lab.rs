//! The network of a test: a server, which is the namespace the test runs in, and a namespace full of attackers, one veth apart.
//!
//! The server is 192.0.2.1 and 2001:db8::1. Behind 192.0.2.2 and 2001:db8::2 every address of 198.51.100.0/24,
//! 203.0.113.0/24 and 2001:db8:1000::/36 belongs to the attackers and the innocent; none of them is on-link, so IPv6
//! bans go by prefix.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use banset::netns::{Netns, Route, connect_from};
use ipnetwork::IpNetwork;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::peer::echo;
use crate::{PATIENCE, wait_until};

/// How long silence is waited for. On one machine an answer takes well under a millisecond.
const SILENCE: Duration = Duration::from_millis(500);

/// What belongs to the attackers and the innocent.
pub(crate) const ATTACKERS: [&str; 3] = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:1000::/36"];

/// A server and its attackers, and a directory for logs, configuration and state.
pub struct Lab {
    attackers: Netns,
    dir: PathBuf,
}

impl Lab {
    /// The server's IPv4 address.
    pub const SERVER4: &'static str = "192.0.2.1";
    /// The server's IPv6 address.
    pub const SERVER6: &'static str = "2001:db8::1";

    /// Wires the attackers' namespace to the calling test's. To be called within [`in_netns`](crate::in_netns).
    pub fn new() -> Lab {
        let attackers = Netns::named("attackers").expect("a namespace for the attackers");
        let mut here = Route::open().expect("a netlink socket");
        here.veth("wan", "eth0", &attackers).expect("a veth pair");
        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            here.address("wan", parsed(address)).expect("the server's address");
        }
        here.up("wan").expect("the server's link comes up");
        attackers.run(|| {
            let mut there = Route::open().expect("a netlink socket");
            for address in ["192.0.2.2/24", "2001:db8::2/64"] {
                there.address("eth0", parsed(address)).expect("the attackers' router address");
            }
            there.up("eth0").and_then(|()| there.running("eth0")).expect("the attackers' link comes up");
            for owned in ATTACKERS {
                there.own(parsed(owned)).expect("the attackers' own addresses");
            }
        });
        here.running("wan").expect("the server's link comes up");
        // Routes of their own, not a default route: a default gateway is never banned, and that is another test's matter.
        for to in ATTACKERS {
            let to: IpNetwork = parsed(to);
            let gateway = if to.is_ipv4() { "192.0.2.2" } else { "2001:db8::2" };
            here.via(to, parsed(gateway)).expect("the way to the attackers");
        }
        let dir = PathBuf::from("/run/lab");
        std::fs::create_dir_all(&dir).expect("a directory for the lab");
        Lab { attackers, dir }
    }

    /// Where logs, configuration and state of this test live: on the private `/run`, so they vanish with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The namespace in which all attackers live.
    pub fn attackers(&self) -> &Netns {
        &self.attackers
    }

    /// Whether a TCP connection from `from` to port `port` of the server opens and echoes a byte. Made to be true: on a busy
    /// machine an answer is waited for, and only a refusal is told at once. Where nothing shall come back, ask
    /// [`Lab::keeps_out`].
    ///
    /// # Panics
    /// If `from` is none of the attackers' addresses, so that a slip in a test never reads as a ban.
    pub fn connects(&self, from: &str, port: u16) -> bool {
        self.echoed(from, port, PATIENCE)
    }

    /// Whether a TCP connection from `from` to port `port` of the server is refused, or met with silence for half a second.
    ///
    /// # Panics
    /// As [`Lab::connects`].
    pub fn keeps_out(&self, from: &str, port: u16) -> bool {
        !self.echoed(from, port, SILENCE)
    }

    fn echoed(&self, from: &str, port: u16, patience: Duration) -> bool {
        let Ok(mut stream) = self.open(from, port, patience) else { return false };
        stream.set_read_timeout(Some(patience)).expect("a socket takes a timeout");
        stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0]).is_ok()
    }

    /// Whether a UDP datagram from `from` to port `port` of the server is echoed.
    pub fn echoes(&self, from: &str, port: u16) -> bool {
        let (from, server) = ends(from, port);
        self.attackers.run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(from, 0)).expect("one of the attackers' addresses");
            socket.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
            let reached = socket.connect(server).and_then(|()| socket.send(b"x"));
            reached.is_ok() && socket.recv(&mut [0; 8]).is_ok()
        })
    }

    /// Opens a TCP connection from `from` and hands it over, for tests of connections that were open before a ban.
    pub fn open(&self, from: &str, port: u16, patience: Duration) -> std::io::Result<std::net::TcpStream> {
        let (from, server) = ends(from, port);
        self.attackers.run(|| connect_from(from, server, patience))
    }
}

impl AsRef<Path> for Lab {
    fn as_ref(&self) -> &Path {
        &self.dir
    }
}

impl Default for Lab {
    fn default() -> Self {
        Lab::new()
    }
}

/// Where a packet of the attacker `from` to the server's `port` starts and ends.
fn ends(from: &str, port: u16) -> (IpAddr, SocketAddr) {
    let from: IpAddr = parsed(from);
    assert!(ATTACKERS.iter().any(|net| parsed::<IpNetwork>(net).contains(from)), "{from} is no attacker");
    (from, SocketAddr::new(parsed(if from.is_ipv4() { Lab::SERVER4 } else { Lab::SERVER6 }), port))
}

pub(crate) fn parsed<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("a well-formed address")
}

/// An echo server on the ports it was given, over IPv4 and IPv6, until dropped. It serves every connection on a thread of its
/// own: a banned client that keeps one open does not hold up the others.
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Echoes TCP streams.
    pub fn tcp(ports: &[u16]) -> Echo {
        Echo::started(ports, |port, stop| {
            let listener = TcpListener::bind(("::", port)).expect("a free port");
            listener.set_nonblocking(true).expect("a listener can poll");
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            std::thread::spawn(move || echo(stream));
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(2)),
                    }
                }
            })
        })
    }

    /// Echoes UDP datagrams.
    pub fn udp(ports: &[u16]) -> Echo {
        Echo::started(ports, |port, stop| {
            let socket = UdpSocket::bind(("::", port)).expect("a free port");
            socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket takes a timeout");
            std::thread::spawn(move || {
                let mut bytes = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((n, from)) = socket.recv_from(&mut bytes) {
                        let _ = socket.send_to(&bytes[..n], from);
                    }
                }
            })
        })
    }

    fn started(ports: &[u16], serve: impl Fn(u16, Arc<AtomicBool>) -> JoinHandle<()>) -> Echo {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = ports.iter().map(|port| serve(*port, stop.clone())).collect();
        Echo { stop, threads }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What `nft ARGS` prints.
///
/// # Panics
/// If nft refuses.
#[track_caller]
pub fn nft(args: &[&str]) -> String {
    nft_try(args).unwrap_or_else(|error| panic!("nft {}: {error}", args.join(" ")))
}

/// What `nft ARGS` prints, or its complaint.
pub fn nft_try(args: &[&str]) -> Result<String, String> {
    let output = Command::new("nft").args(args).stdin(Stdio::null()).output().expect("nft is installed");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// What `nft -j ARGS` prints, read.
#[track_caller]
pub fn nft_json(args: &[&str]) -> Value {
    let args: Vec<&str> = std::iter::once("-j").chain(args.iter().copied()).collect();
    serde_json::from_str(&nft(&args)).expect("nft prints JSON")
}

/// The keys of the elements of a set of `table inet banset`, sorted as text; empty if there is no such set.
pub fn elements(set: &str) -> Vec<String> {
    let mut keys: Vec<String> = listed(set).iter().map(key).collect();
    keys.sort();
    keys
}

/// Waits until a set of `table inet banset` holds an element with this key.
#[track_caller]
pub fn wait_banned(set: &str, key: &str) {
    wait_until(&format!("{key} is in {set}"), || elements(set).iter().any(|element| element == key));
}

/// `table inet banset` as nft lists it, without elements and what changes by itself; empty if there is none.
pub fn shape() -> String {
    nft_try(&["-s", "-t", "list", "table", "inet", "banset"]).unwrap_or_default()
}

/// How many seconds the ban of `address` in `set` has left, and for how many it was given; `None` if it is not there or has no end.
pub fn expires(set: &str, address: &str) -> Option<(u64, u64)> {
    let element = listed(set).into_iter().find(|element| key(element) == address)?;
    Some((element["elem"]["expires"].as_u64()?, element["elem"]["timeout"].as_u64()?))
}

fn listed(set: &str) -> Vec<Value> {
    let Ok(text) = nft_try(&["-j", "list", "set", "inet", "banset", set]) else { return Vec::new() };
    let listing: Value = serde_json::from_str(&text).expect("nft prints JSON");
    let objects = listing["nftables"].as_array().cloned().unwrap_or_default();
    objects.iter().filter_map(|object| object["set"]["elem"].as_array()).flatten().cloned().collect()
}

/// `"192.0.2.7"`, `{"elem": {"val": "192.0.2.7", "timeout": …}}` or `{"prefix": {"addr": …, "len": …}}` as one word.
fn key(element: &Value) -> String {
    let value = element.pointer("/elem/val").unwrap_or(element);
    match value {
        Value::String(text) => text.clone(),
        Value::Object(_) if value["prefix"].is_object() => {
            format!("{}/{}", value["prefix"]["addr"].as_str().unwrap_or_default(), value["prefix"]["len"])
        }
        other => other.to_string(),
    }
}

/// `nft monitor`: whatever anybody changes in this namespace's ruleset, from now on.
pub struct Monitor {
    child: Child,
    file: PathBuf,
    /// Where in the file that begins which is of interest.
    begin: usize,
}

fn is_generation(line: &str) -> bool {
    line.starts_with("# new generation ")
}

impl Monitor {
    /// Starts listening; when this returns, the monitor hears.
    pub fn start(lab: &Lab) -> Monitor {
        let file = lab.dir().join("monitor.txt");
        let out = std::fs::File::create(&file).expect("a file for the monitor");
        let mut command = Command::new("nft");
        command.arg("monitor").stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
        banset::netns::die_with_parent(&mut command);
        let mut monitor = Monitor { child: command.spawn().expect("nft is installed"), file, begin: 0 };
        // It has no way to say that it listens: change something until it reports it.
        wait_until("nft monitor hears", || {
            nft(&["add table inet heard"]);
            nft(&["delete table inet heard"]);
            std::thread::sleep(Duration::from_millis(20));
            !monitor.text().is_empty()
        });
        monitor.catch_up();
        monitor.begin = monitor.whole().len();
        monitor
    }

    /// What it heard so far.
    pub fn text(&self) -> String {
        self.whole()[self.begin..].to_owned()
    }

    /// Waits until it has heard whatever was changed before, and returns that: a change of the test's own comes after all of it. That
    /// change is left out.
    #[track_caller]
    pub fn catch_up(&self) -> String {
        let heard = || self.whole().matches("delete table inet last-word").count();
        let before = heard();
        nft(&["add table inet last-word"]);
        nft(&["delete table inet last-word"]);
        // Each transaction ends with its generation.
        wait_until("nft monitor has heard everything", || {
            let whole = self.whole();
            heard() > before && whole.ends_with('\n') && whole.lines().last().is_some_and(is_generation)
        });
        let text = self.text();
        let others = text.lines().filter(|line| !line.contains("table inet last-word") && !is_generation(line));
        others.map(|line| format!("{line}\n")).collect()
    }

    fn whole(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap_or_default()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
