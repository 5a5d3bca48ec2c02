//! Frames as they are on the wire, for what no socket sends: VLAN tags.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

/// A tap on one link (packet(7)): frames go out as they are given, and whatever comes in is heard.
pub struct Wire {
    socket: OwnedFd,
    mac: [u8; 6],
}

impl Wire {
    /// Taps the link `name` of the calling thread's network namespace.
    pub fn tap(name: &str) -> io::Result<Wire> {
        let link = nix::ifaddrs::getifaddrs()?
            .filter(|link| link.interface_name == name)
            .find_map(|link| link.address?.as_link_addr().copied())
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("link {name}")))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = nix::sys::socket::socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        nix::sys::socket::bind(socket.as_raw_fd(), &link)?;
        Ok(Wire { socket, mac: link.addr().unwrap_or_default() })
    }

    /// The link's own hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        nix::sys::socket::send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    }

    /// The markers, out of `markers`, of frames that come in, each once, until all of `awaited` have, or `patience` is over. Frames may
    /// overtake each other: what is sent last need not come last.
    pub fn heard<'a>(&self, markers: &[&'a str], awaited: &[&str], patience: Duration) -> Vec<&'a str> {
        let start = Instant::now();
        let mut heard: Vec<&str> = Vec::new();
        let mut bytes = [0; 2048];
        while start.elapsed() < patience && !awaited.iter().all(|marker| heard.contains(marker)) {
            let Ok(n) = nix::sys::socket::recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            let holds = |marker: &&&str| bytes[..n].windows(marker.len()).any(|window| window == marker.as_bytes());
            // Our own side's ICMP answer quotes what it answers.
            heard.extend(markers.iter().find(holds).copied().filter(|marker| !heard.contains(marker)));
        }
        heard
    }
}

/// A UDP datagram to `port` in an Ethernet frame, with an 802.1Q tag if `vlan` names one; its checksum is left out where that is
/// allowed, and right where it is not (IPv6, RFC 8200 section 8.1).
pub fn udp_frame(macs: ([u8; 6], [u8; 6]), vlan: Option<u16>, ends: (IpAddr, IpAddr), port: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut udp = [4000, port, length, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    let (kind, packet) = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 1, 0, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
            header.extend(from.octets().into_iter().chain(to.octets()));
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            (0x0800_u16, [header, udp].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ends: Vec<u8> = from.octets().into_iter().chain(to.octets()).collect();
            let pseudo = [0, 0, 0, libc::IPPROTO_UDP as u8];
            let sum = checksum(&[&ends, &u32::from(length).to_be_bytes()[..], &pseudo, &udp].concat()).to_be_bytes();
            udp[6..8].copy_from_slice(&sum);
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([libc::IPPROTO_UDP as u8, 64]);
            (0x86dd, [header, ends, udp].concat())
        }
        ends => panic!("two families in one packet: {ends:?}"),
    };
    let (from, to) = macs;
    let mut frame = [to, from].concat();
    if let Some(vlan) = vlan {
        frame.extend([0x81, 0x00]);
        frame.extend(vlan.to_be_bytes());
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame.resize(frame.len().max(64), 0);
    frame
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum();
    let folded = (sum >> 16) + (sum & 0xffff);
    !(folded + (folded >> 16)) as u16
}
