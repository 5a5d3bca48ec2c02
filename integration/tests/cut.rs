//! Connections that are open when their client is banned: the server is told at once, and no other's connection is touched.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use banset_integration::{Daemon, Lab, Log, PATIENCE, in_netns};

/// When a read that nothing ends gives up.
const BY_ITSELF: Duration = Duration::from_secs(180);

/// Accepts one connection and reads on a thread of its own until it ends; gives how it ended and after how long.
fn blocked(port: u16) -> (std::sync::mpsc::Receiver<SocketAddr>, std::thread::JoinHandle<(std::io::Result<usize>, Duration)>) {
    let listener = TcpListener::bind(("::", port)).expect("a free port");
    let (said, heard) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(BY_ITSELF)).expect("a socket takes a timeout");
        said.send(peer).expect("the test waits for it");
        let start = Instant::now();
        (stream.read(&mut [0; 8]), start.elapsed())
    });
    (heard, thread)
}

#[test]
fn a_server_blocked_in_read_sees_the_banned_clients_connection_end() {
    const NAME: &str = "a_server_blocked_in_read_sees_the_banned_clients_connection_end";
    in_netns(NAME, || {
        let lab = Lab::new();
        let log = Log::create(lab.dir().join("auth"));
        let sshd =
            format!("[jail.sshd]\nenabled = true\nlogpath = {:?}\nport = [25, 587]\nignoreip = [\"198.51.100.9\"]\n", log.path());
        let daemon = Daemon::start(&lab, &sshd);
        daemon.wait_running();
        let doors = [(25, "198.51.100.7"), (587, "2001:db8:1000:7::7"), (26, "198.51.100.7"), (2525, "198.51.100.9")];
        let mut open = Vec::new();
        for (port, from) in doors {
            let (heard, server) = blocked(port);
            let client = lab.open(from, port, PATIENCE).expect("nobody is banned yet");
            heard.recv_timeout(PATIENCE).expect("the server has it");
            open.push((port, from, client, server));
        }
        // IPv4 clients of a server that listens on IPv6, an IPv6 one by its prefix, and a whole subnet around one that is ignored.
        daemon.cli(&["ban", "sshd", "198.51.100.0/24", "2001:db8:1000:7::1"]).ok();
        let (mut ended, mut left) = (Vec::new(), Vec::new());
        for (port, from, client, server) in open {
            if matches!(port, 25 | 587) {
                ended.push((port, from, client, server))
            } else {
                left.push((port, from, client, server))
            }
        }
        for (port, from, client, server) in ended {
            let (end, after) = server.join().expect("the server's thread");
            println!("{from} on port {port}: the server's read ended after {after:?}: {end:?}");
            if daemon.log().contains("this kernel can not close connections") {
                return banset_integration::skip(NAME, "this kernel has no INET_DIAG_DESTROY");
            }
            assert!(after < BY_ITSELF, "by itself: {end:?}");
            drop(client);
        }
        for (port, from, client, server) in left {
            assert!(!server.is_finished(), "{from} on port {port} is nobody's business");
            drop(client);
            let (end, _) = server.join().expect("the server's thread");
            assert!(matches!(end, Ok(0)), "{end:?}");
        }
    });
}
