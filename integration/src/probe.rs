//! Packets of a banned source, all the while: how long nobody kept it out.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Lab;

/// Between two packets, sleeping time aside.
const EVERY: Duration = Duration::from_micros(100);
/// Packets that arrive closer together than this passed through one gap.
const TOGETHER: Duration = Duration::from_millis(20);

/// Sends UDP datagrams from a banned address to a port of the server until dropped, and notes which arrive.
pub struct Probe {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    arrived: Arc<Mutex<Vec<Instant>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Begins to send.
    pub fn start(lab: &Lab, from: &str, port: u16) -> Probe {
        let from: std::net::IpAddr = from.parse().expect("an address");
        let server: std::net::IpAddr = if from.is_ipv4() { Lab::SERVER4 } else { Lab::SERVER6 }.parse().expect("an address");
        let receiver = UdpSocket::bind(SocketAddr::new(server, port)).expect("a free port");
        receiver.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket takes a timeout");
        let sender = lab.attackers().run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(from, 0)).expect("one of the attackers' addresses");
            socket.connect(SocketAddr::new(server, port)).expect("a way to the server");
            socket
        });
        let (stop, sent, arrived) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
        let threads = vec![
            std::thread::spawn({
                let (stop, sent) = (stop.clone(), sent.clone());
                move || {
                    while !stop.load(Ordering::Relaxed) {
                        sent.fetch_add(u64::from(sender.send(b"x").is_ok()), Ordering::Relaxed);
                        std::thread::sleep(EVERY);
                    }
                }
            }),
            std::thread::spawn({
                let (stop, arrived) = (stop.clone(), arrived.clone());
                move || {
                    while !stop.load(Ordering::Relaxed) {
                        if receiver.recv(&mut [0; 8]).is_ok() {
                            arrived.lock().expect("nobody panics with it").push(Instant::now());
                        }
                    }
                }
            }),
        ];
        Probe { stop, sent, arrived, threads }
    }

    /// How many were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many have arrived so far.
    pub fn through(&self) -> usize {
        self.arrived.lock().expect("nobody panics with it").len()
    }

    /// Waits until another `n` were sent, and what can arrive of them has arrived.
    pub fn pass(&self, n: u64) {
        let wanted = self.sent() + n;
        crate::wait_until("packets are sent", || self.sent() >= wanted);
        std::thread::sleep(Duration::from_millis(30));
    }

    /// For how long packets got through, gap by gap; and forgets them.
    pub fn gaps(&self) -> Vec<Duration> {
        let arrived = std::mem::take(&mut *self.arrived.lock().expect("nobody panics with it"));
        let mut gaps: Vec<(Instant, Instant)> = Vec::new();
        for at in arrived {
            match gaps.last_mut() {
                Some((_, last)) if at - *last < TOGETHER => *last = at,
                _ => gaps.push((at, at)),
            }
        }
        gaps.into_iter().map(|(first, last)| last - first + EVERY).collect()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}
