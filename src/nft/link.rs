//! A netlink socket of the netfilter family: datagrams out and in, nothing about their meaning.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, send, setsockopt, socket,
    sockopt,
};

use crate::sys;

/// The datagrams a dump comes in are at most 32 KiB, an error repeats at most one message; larger ones are not sent.
pub(crate) const RECEIVE: usize = 128 * 1024;

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Link {
    fd: OwnedFd,
    port: u32,
}

impl Link {
    /// A socket that hears only answers, its buffers `send` and `receive` bytes large if the kernel lets us.
    pub(crate) fn open(send: usize, receive: usize) -> Result<Link, Errno> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let port = getsockname::<NetlinkAddr>(fd.as_raw_fd())?.pid();
        // The forced sizes need CAP_NET_ADMIN in the first user namespace; without it the system's maximum has to do.
        if setsockopt(&fd, sockopt::SndBufForce, &send).is_err() {
            let _ = setsockopt(&fd, sockopt::SndBuf, &send);
        }
        if setsockopt(&fd, sockopt::RcvBufForce, &receive).is_err() {
            let _ = setsockopt(&fd, sockopt::RcvBuf, &receive);
        }
        // Errors say where in the message they are, and do not repeat all of it. Both only add to what is known.
        let _ = sys::set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        let _ = sys::set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
        Ok(Link { fd, port })
    }

    /// Hears these groups and no others, a mask: binding a bound netlink socket again only changes its groups.
    pub(crate) fn join(&self, groups: u32) -> Result<(), Errno> {
        bind(self.fd.as_raw_fd(), &NetlinkAddr::new(self.port, groups))
    }

    /// The same socket once more, for another thread.
    pub(crate) fn again(&self) -> std::io::Result<Link> {
        Ok(Link { fd: self.fd.try_clone()?, port: self.port })
    }

    /// Our address among netlink sockets, by which notifications name who caused them.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Sends one datagram, which the kernel works through before this returns.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        loop {
            match send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(_) => return Err(Errno::EMSGSIZE),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The next datagram, if one is there: answers are queued before `send` returns, so nobody needs to wait for them.
    pub(crate) fn receive<'a>(&self, buffer: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>, Errno> {
        buffer.resize(RECEIVE, 0);
        loop {
            match recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(errno),
                Ok(length) if length > buffer.len() => return Err(Errno::EMSGSIZE),
                Ok(length) => return Ok(Some(&buffer[..length])),
            }
        }
    }

    /// Throws away what is queued, for instance answers to a request that was given up.
    pub(crate) fn drain(&self, buffer: &mut Vec<u8>) {
        while !matches!(self.receive(buffer), Ok(None)) {}
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
