//! Traffic: doors that answer over TCP, UDP, UDP-Lite and SCTP, and somebody who knocks at them and tells what he saw.
//!
//! What a packet filter does shows nowhere but here: a listing says what should happen, an answer says what did. Few kernels have SCTP
//! sockets, so SCTP is a raw INIT chunk with its checksum, answered by a raw INIT ACK; to a packet filter that is all there is.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use banset::netns::connect_from;
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

/// What is knocked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proto {
    /// A connection that is opened and echoes a byte.
    Tcp,
    /// A datagram that is echoed.
    Udp,
    /// The same over UDP-Lite, where the kernel has such sockets.
    Udplite,
    /// An INIT chunk that is answered.
    Sctp,
}

impl Proto {
    /// All of them.
    pub const ALL: [Proto; 4] = [Proto::Tcp, Proto::Udp, Proto::Udplite, Proto::Sctp];

    /// As nft(8) and banset write it.
    pub const fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Udplite => "udplite",
            Proto::Sctp => "sctp",
        }
    }

    /// Its number in an IP header.
    const fn number(self) -> i32 {
        match self {
            Proto::Tcp => libc::IPPROTO_TCP,
            Proto::Udp => libc::IPPROTO_UDP,
            Proto::Udplite => libc::IPPROTO_UDPLITE,
            Proto::Sctp => libc::IPPROTO_SCTP,
        }
    }
}

impl std::str::FromStr for Proto {
    type Err = String;

    fn from_str(name: &str) -> Result<Proto, String> {
        Proto::ALL.into_iter().find(|proto| proto.name() == name).ok_or_else(|| format!("no protocol of ours: {name:?}"))
    }
}

/// What somebody who knocked saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The door answered.
    Answer,
    /// Nothing came back.
    Nothing,
    /// A TCP reset, or an ICMP message that the port is unreachable: ECONNREFUSED.
    Refused,
    /// The packet did not even leave: EPERM, which a drop behind the local sender shows as.
    Denied,
    /// This kernel has no such sockets: EPROTONOSUPPORT.
    NoSocket,
    /// Another error.
    Failed(Errno),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seen::Answer => f.pad("answer"),
            Seen::Nothing => f.pad("nothing"),
            Seen::Refused => f.pad("refused"),
            Seen::Denied => f.pad("denied"),
            Seen::NoSocket => f.pad("no socket"),
            Seen::Failed(errno) => f.pad(&format!("{errno:?}")),
        }
    }
}

impl From<io::Error> for Seen {
    fn from(error: io::Error) -> Seen {
        match (error.kind(), error.raw_os_error().map(Errno::from_raw)) {
            (io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock, _) => Seen::Nothing,
            (_, Some(Errno::ECONNREFUSED)) => Seen::Refused,
            (_, Some(Errno::EPERM)) => Seen::Denied,
            (_, Some(Errno::EPROTONOSUPPORT)) => Seen::NoSocket,
            (_, Some(errno)) => Seen::Failed(errno),
            (_, None) => Seen::Failed(Errno::EPROTO),
        }
    }
}

/// Knocks once from `from`, an address of the calling thread's network namespace, at `to`, and waits for an answer for at most `patience`.
pub fn knock(proto: Proto, from: IpAddr, to: SocketAddr, patience: Duration) -> Seen {
    let tried = match proto {
        Proto::Tcp => Flow::tcp(from, to, patience).and_then(|mut flow| flow.turn(patience)),
        Proto::Udp | Proto::Udplite => Flow::datagrams(proto, from, to).and_then(|mut flow| flow.turn(patience)),
        Proto::Sctp => init(from, to, patience),
    };
    tried.map_or_else(Seen::from, |()| Seen::Answer)
}

/// An open connection, or a flow of datagrams between two fixed ports, over which a byte goes and comes back.
pub struct Flow(Wire);

enum Wire {
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

impl Flow {
    /// Opens one; `patience` is for a TCP handshake.
    ///
    /// # Panics
    /// For SCTP, of which there are no sockets.
    pub fn open(proto: Proto, from: IpAddr, to: SocketAddr, patience: Duration) -> io::Result<Flow> {
        match proto {
            Proto::Tcp => Flow::tcp(from, to, patience),
            Proto::Udp | Proto::Udplite => Flow::datagrams(proto, from, to),
            Proto::Sctp => panic!("there are no SCTP sockets"),
        }
    }

    fn tcp(from: IpAddr, to: SocketAddr, patience: Duration) -> io::Result<Flow> {
        let stream = connect_from(from, to, patience)?;
        stream.set_nodelay(true)?;
        Ok(Flow(Wire::Stream(stream)))
    }

    fn datagrams(proto: Proto, from: IpAddr, to: SocketAddr) -> io::Result<Flow> {
        let socket = datagram_socket(proto, SocketAddr::new(from, 0))?;
        socket.connect(to)?;
        Ok(Flow(Wire::Datagrams(socket)))
    }

    /// Sends a byte and waits until one comes back.
    pub fn turn(&mut self, patience: Duration) -> io::Result<()> {
        match &mut self.0 {
            Wire::Stream(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])
            }
            Wire::Datagrams(socket) => {
                socket.set_read_timeout(Some(patience))?;
                socket.send(b"x")?;
                socket.recv(&mut [0; 8]).map(drop)
            }
        }
    }
}

fn datagram_socket(proto: Proto, at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::from(proto.number())))?;
    socket.bind(&at.into())?;
    // To the standard library a UDP-Lite socket is a socket of datagrams like another.
    Ok(socket.into())
}

/// The port of the next INIT, so that each is an association of its own to whoever tracks connections.
static NEXT: AtomicU32 = AtomicU32::new(0);

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

fn init(from: IpAddr, to: SocketAddr, patience: Duration) -> io::Result<()> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let port = 40_000 + (number % 20_000) as u16;
    let tag = 0x1000_0000 + number;
    let socket = raw_sctp(from)?;
    // A raw socket hears of ICMP errors once it is connected. A port here would be taken for a protocol's number.
    socket.connect(&SocketAddr::new(to.ip(), 0).into())?;
    socket.send(&packet(INIT, port, to.port(), 0, tag))?;
    let start = std::time::Instant::now();
    loop {
        let left = patience.checked_sub(start.elapsed()).filter(|left| !left.is_zero()).ok_or(io::ErrorKind::TimedOut)?;
        socket.set_read_timeout(Some(left))?;
        let mut heard = [0; 512];
        let n = (&socket).read(&mut heard)?;
        if let Some(chunk) = Chunk::read(&heard[..n], to.is_ipv4())
            && (chunk.kind, chunk.from, chunk.to, chunk.verification) == (INIT_ACK, to.port(), port, tag)
        {
            return Ok(());
        }
    }
}

fn raw_sctp(at: IpAddr) -> io::Result<Socket> {
    let at = SocketAddr::new(at, 0);
    let socket = Socket::new(Domain::for_address(at), Type::RAW, Some(Protocol::from(Proto::Sctp.number())))?;
    socket.bind(&at.into())?;
    Ok(socket)
}

/// The first chunk of an SCTP packet (RFC 9260, sections 3.1 and 3.3.2).
struct Chunk {
    from: u16,
    to: u16,
    verification: u32,
    kind: u8,
    tag: u32,
}

impl Chunk {
    /// A raw IPv4 socket hands out the IP header too, a raw IPv6 socket does not.
    fn read(bytes: &[u8], ipv4: bool) -> Option<Chunk> {
        let skip = if ipv4 { usize::from(bytes.first()? & 15) * 4 } else { 0 };
        let sctp = bytes.get(skip..)?;
        let word = |at: usize| Some(u32::from_be_bytes(sctp.get(at..at + 4)?.try_into().ok()?));
        let ports = word(0)?;
        Some(Chunk { from: (ports >> 16) as u16, to: ports as u16, verification: word(4)?, kind: *sctp.get(12)?, tag: word(16)? })
    }
}

/// An INIT or INIT ACK: common header, one chunk of 20 bytes, and the checksum that connection tracking looks at.
fn packet(kind: u8, from: u16, to: u16, verification: u32, tag: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend(verification.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend([kind, 0, 0, 20]);
    bytes.extend(tag.to_be_bytes());
    bytes.extend(65_535_u32.to_be_bytes());
    bytes.extend([0, 1, 0, 1]);
    bytes.extend(1_u32.to_be_bytes());
    let sum = crc32c(&bytes).to_le_bytes();
    bytes[8..12].copy_from_slice(&sum);
    bytes
}

/// CRC-32C (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    })
}

/// Who came through which door how often: protocol, address, port.
type Visits = Arc<Mutex<HashMap<(Proto, IpAddr, u16), usize>>>;

/// Doors that answer, until dropped, and remember who came.
pub struct Doors {
    stop: Arc<AtomicBool>,
    visits: Visits,
    lacking: Vec<Proto>,
    threads: Vec<JoinHandle<()>>,
}

impl Doors {
    /// Opens `ports` over every protocol at each of `addresses`, which are the calling thread's network namespace's own.
    ///
    /// # Panics
    /// If a port is taken.
    pub fn open(addresses: &[IpAddr], ports: &[u16]) -> Doors {
        let mut doors = Doors { stop: Arc::default(), visits: Arc::default(), lacking: Vec::new(), threads: Vec::new() };
        for address in addresses {
            for port in ports {
                let at = SocketAddr::new(*address, *port);
                doors.streams(TcpListener::bind(at).unwrap_or_else(|e| panic!("no door at tcp {at}: {e}")));
                for proto in [Proto::Udp, Proto::Udplite] {
                    match datagram_socket(proto, at) {
                        Ok(socket) => doors.datagrams(proto, *port, socket),
                        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => doors.lacking.push(proto),
                        Err(e) => panic!("no door at {} {at}: {e}", proto.name()),
                    }
                }
            }
            let raw = raw_sctp(*address).unwrap_or_else(|e| panic!("no raw SCTP at {address}: {e}"));
            doors.associations(*address, ports.to_vec(), raw);
        }
        doors.lacking.dedup();
        doors
    }

    /// How often `from` came to `port` and was answered.
    pub fn visits(&self, proto: Proto, from: IpAddr, port: u16) -> usize {
        self.visits.lock().expect("nobody panics in there").get(&(proto, from, port)).copied().unwrap_or_default()
    }

    /// The protocols this kernel has no sockets of.
    pub fn lacking(&self) -> &[Proto] {
        &self.lacking
    }

    /// Serves on a thread that `serve` keeps until it is told to stop.
    fn thread(&mut self, serve: impl FnOnce(&AtomicBool, &dyn Fn(Proto, IpAddr, u16)) + Send + 'static) {
        let (stop, visits) = (self.stop.clone(), self.visits.clone());
        self.threads.push(std::thread::spawn(move || {
            serve(&stop, &|proto, from, port| {
                *visits.lock().expect("nobody panics in there").entry((proto, from, port)).or_default() += 1;
            });
        }));
    }

    fn streams(&mut self, listener: TcpListener) {
        listener.set_nonblocking(true).expect("a listener can poll");
        let port = listener.local_addr().expect("a bound socket").port();
        self.thread(move |stop, came| {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, from)) => {
                        came(Proto::Tcp, from.ip(), port);
                        std::thread::spawn(move || echo(stream));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(3)),
                }
            }
        });
    }

    fn datagrams(&mut self, proto: Proto, port: u16, socket: UdpSocket) {
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket takes a timeout");
        self.thread(move |stop, came| {
            let mut bytes = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((n, from)) = socket.recv_from(&mut bytes) {
                    came(proto, from.ip(), port);
                    let _ = socket.send_to(&bytes[..n], from);
                }
            }
        });
    }

    fn associations(&mut self, at: IpAddr, ports: Vec<u16>, socket: Socket) {
        // To the standard library any socket that has recvfrom and sendto is one of datagrams.
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket takes a timeout");
        self.thread(move |stop, came| {
            let mut bytes = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                let Ok((n, from)) = socket.recv_from(&mut bytes) else { continue };
                let Some(chunk) = Chunk::read(&bytes[..n], at.is_ipv4()) else { continue };
                if chunk.kind == INIT && ports.contains(&chunk.to) {
                    came(Proto::Sctp, from.ip(), chunk.to);
                    let ack = packet(INIT_ACK, chunk.to, chunk.from, chunk.tag, 0x2000_0000 | chunk.tag);
                    let _ = socket.send_to(&ack, SocketAddr::new(from.ip(), 0));
                }
            }
        });
    }
}

/// Sends back whatever comes, until the other end is done.
pub(crate) fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 512];
    while let Ok(n @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // RFC 3720, appendix B.4: 32 bytes of zeroes, and the classic nine digits.
        assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
