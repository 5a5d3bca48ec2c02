//! Throwaway networks: namespaces, links, addresses and routes, made over rtnetlink without any program's help.
//!
//! `banset demo` plays in one and every kernel test lives in one. A process is started again inside namespaces of its own
//! ([`isolate`]), as any user where user namespaces are allowed; there it makes further network namespaces ([`Netns`]), held
//! open by descriptors, and wires them together ([`Route`]). Whatever was made vanishes with the process: nothing here cleans up.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use neli::consts::nl::NlmF;
use neli::consts::rtnl::{Ifa, IfaF, Ifla, IflaInfo, RtAddrFamily, RtScope, RtTable, Rta, Rtm, Rtn, Rtprot};
use neli::consts::socket::NlFamily;
use neli::nl::{NlPayload, NlmsghdrBuilder};
use neli::rtnl::{IfaddrmsgBuilder, Ifinfomsg, IfinfomsgBuilder, RtattrBuilder, RtmsgBuilder};
use neli::socket::synchronous::NlSocketHandle;
use neli::types::{Buffer, RtBuffer};
use neli::utils::Groups;
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrStorage, sockopt};

/// VETH_INFO_PEER (linux/veth.h): the attribute that describes a veth link's other end.
const VETH_INFO_PEER: u16 = 1;

/// IFLA_BR_MCAST_SNOOPING (linux/if_link.h): whether a bridge learns which port wants which multicast group.
const IFLA_BR_MCAST_SNOOPING: u16 = 23;

/// IF_OPER_UP (linux/if.h): a link that passes packets.
const IF_OPER_UP: u8 = 6;

/// The number of the next veth link's far end.
static FAR_END: AtomicI32 = AtomicI32::new(1000);

/// Arranges that `command` starts in network and mount namespaces of its own (in a user namespace too, unless the caller is
/// root), as root there, with an empty `/run`, and dies with the thread that started it. Needs no privilege where user
/// namespaces are allowed; where they are not, spawning fails with the kernel's reason (ENOSPC, EPERM, EACCES).
pub fn isolate(command: &mut Command) {
    crate::sys::unshare_before_exec(command);
}

/// Arranges that `command` is killed when the thread that starts it ends.
pub fn die_with_parent(command: &mut Command) {
    crate::sys::die_with_parent(command);
}

/// This program once more, however it was called and wherever it lies.
pub fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command
}

/// Sets a sysctl of the calling thread's network namespace: `sysctl("net.ipv4.ip_forward", "1")`.
pub fn sysctl(key: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    std::fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))
}

/// Makes the calling thread's fresh network namespace usable at once: loopback up, no duplicate address detection (an IPv6
/// address would be tentative for a second), no limit on ICMP errors (a second refusal would go unanswered), sockets may
/// bind to any address that is routed to them.
pub fn settle() -> io::Result<()> {
    for (key, value) in [
        ("net.ipv6.conf.all.accept_dad", "0"),
        ("net.ipv6.conf.default.accept_dad", "0"),
        ("net.ipv6.conf.all.accept_ra", "0"),
        ("net.ipv6.conf.default.accept_ra", "0"),
        ("net.ipv6.ip_nonlocal_bind", "1"),
        ("net.ipv4.icmp_ratelimit", "0"),
        ("net.ipv6.icmp.ratelimit", "0"),
    ] {
        // A kernel without IPv6 has half of these files only.
        match sysctl(key, value) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Route::open()?.up("lo")
}

/// A network namespace, alive as long as this value, a process in it or its name.
#[derive(Debug)]
pub struct Netns {
    held: OwnedFd,
}

impl Netns {
    /// The calling thread's own.
    pub fn current() -> io::Result<Netns> {
        Ok(Netns { held: File::open("/proc/thread-self/ns/net")?.into() })
    }

    /// A new one, [settled](settle), without a name.
    pub fn new() -> io::Result<Netns> {
        let make = || -> io::Result<Netns> {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            settle()?;
            Netns::current()
        };
        std::thread::scope(|scope| scope.spawn(make).join().expect("making a namespace does not panic"))
    }

    /// A new one with a name below `/run/netns`, where `ip netns exec NAME` finds it.
    pub fn named(name: &str) -> io::Result<Netns> {
        let netns = Netns::new()?;
        std::fs::create_dir_all("/run/netns")?;
        let path = format!("/run/netns/{name}");
        File::create(&path)?;
        let own = format!("/proc/self/fd/{}", netns.held.as_raw_fd());
        nix::mount::mount(Some(own.as_str()), path.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(netns)
    }

    /// Runs `body` in this namespace: on a thread of its own, whose sockets and children belong there.
    ///
    /// # Panics
    /// As `body` does, and if the kernel refuses to enter.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            nix::sched::setns(&self.held, CloneFlags::CLONE_NEWNET).expect("cannot enter a network namespace of our own");
            body()
        };
        std::thread::scope(|scope| scope.spawn(enter).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `body` in this namespace on the calling thread, which returns to its own afterwards: a process started by `body` stays
    /// here, and may outlive it.
    ///
    /// # Panics
    /// As `body` does, and if the kernel refuses to enter or to return.
    pub fn visit<T>(&self, body: impl FnOnce() -> T) -> T {
        let own = Netns::current().expect("a thread has a network namespace");
        nix::sched::setns(&self.held, CloneFlags::CLONE_NEWNET).expect("cannot enter a network namespace of our own");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        nix::sched::setns(&own.held, CloneFlags::CLONE_NEWNET).expect("cannot return to a network namespace of our own");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// The links, addresses and routes of one network namespace, changed over a NETLINK_ROUTE socket.
pub struct Route {
    socket: NlSocketHandle,
    sequence: u32,
}

impl Route {
    /// Opens the socket in the calling thread's network namespace.
    pub fn open() -> io::Result<Route> {
        let socket = NlSocketHandle::connect(NlFamily::Route, None, Groups::empty()).map_err(io::Error::other)?;
        Ok(Route { socket, sequence: 0 })
    }

    /// A pair of veth links: `name` here, `peer` in `there`, both down. `ip link add NAME type veth peer name PEER netns THERE`
    pub fn veth(&mut self, name: &str, peer: &str, there: &Netns) -> io::Result<()> {
        let mut far = RtBuffer::<Ifla, Buffer>::new();
        far.push(built(RtattrBuilder::default().rta_type(Ifla::Ifname).rta_payload(format!("{peer}\0")).build())?);
        far.push(built(RtattrBuilder::default().rta_type(Ifla::NetNsFd).rta_payload(there.held.as_raw_fd() as u32).build())?);
        // The kernel reports a new carrier at once only where the two ends differ in number, else up to a second late
        // (linkwatch_urgent_event), and fresh namespaces count alike.
        let number = FAR_END.fetch_add(1, Ordering::Relaxed);
        let far = IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).ifi_index(number).rtattrs(far);
        let far = built(far.build())?;
        let far = built(RtattrBuilder::default().rta_type(VETH_INFO_PEER).rta_payload(far).build())?;
        self.new_link(name, "veth", Some(built(RtattrBuilder::default().rta_type(IflaInfo::Data).rta_payload(far).build())?))
    }

    /// A bridge without ports, which passes multicast to every port at once: neighbour discovery works from its first second.
    /// `ip link add NAME type bridge mcast_snooping 0`
    pub fn bridge(&mut self, name: &str) -> io::Result<()> {
        let mut data = RtBuffer::<u16, Buffer>::new();
        data.push(built(RtattrBuilder::default().rta_type(IFLA_BR_MCAST_SNOOPING).rta_payload(0_u8).build())?);
        self.new_link(name, "bridge", Some(built(RtattrBuilder::default().rta_type(IflaInfo::Data).rta_payload(data).build())?))
    }

    /// Makes `port` a port of the bridge `bridge`. `ip link set PORT master BRIDGE`
    pub fn enslave(&mut self, port: &str, bridge: &str) -> io::Result<()> {
        let mut attributes = RtBuffer::<Ifla, Buffer>::new();
        attributes.push(built(RtattrBuilder::default().rta_type(Ifla::Master).rta_payload(index(bridge)?).build())?);
        let link = IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).ifi_index(index(port)? as i32);
        self.request(Rtm::Newlink, NlmF::empty(), built(link.rtattrs(attributes).build())?, || {
            format!("set {port} master {bridge}")
        })
    }

    /// `ip link set NAME up`
    pub fn up(&mut self, name: &str) -> io::Result<()> {
        let link = IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).ifi_index(index(name)? as i32).up();
        self.request(Rtm::Newlink, NlmF::empty(), built(link.build())?, || format!("set {name} up"))
    }

    /// `ip link set NAME down`
    pub fn down(&mut self, name: &str) -> io::Result<()> {
        let link = IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).ifi_index(index(name)? as i32).down();
        self.request(Rtm::Newlink, NlmF::empty(), built(link.build())?, || format!("set {name} down"))
    }

    /// Waits until the link `name`, which was set up, has its carrier and passes packets. A second is plenty.
    pub fn running(&mut self, name: &str) -> io::Result<()> {
        let start = Instant::now();
        while self.operstate(name)? != IF_OPER_UP {
            if start.elapsed() > Duration::from_secs(5) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("link {name} does not come up")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // It is told so before its queue takes packets and a bridge above it hears (linkwatch_do_dev), but all of that is done under
        // one lock, which this request waits for.
        self.up(name)
    }

    /// The state of a link (RFC 2863) by its number. IFF_RUNNING is set for "unknown" too, which a link is until the kernel's own
    /// worker has looked at it.
    fn operstate(&mut self, name: &str) -> io::Result<u8> {
        let link = IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).ifi_index(index(name)? as i32);
        self.sequence += 1;
        let message = NlmsghdrBuilder::default()
            .nl_type(Rtm::Getlink)
            .nl_flags(NlmF::REQUEST)
            .nl_seq(self.sequence)
            .nl_payload(NlPayload::Payload(built(link.build())?));
        self.socket.send(&built(message.build())?).map_err(io::Error::other)?;
        loop {
            let (answers, _) = self.socket.recv::<Rtm, Ifinfomsg>().map_err(io::Error::other)?;
            for answer in answers {
                let answer = answer.map_err(io::Error::other)?;
                if *answer.nl_seq() == self.sequence {
                    let link = answer.get_payload().ok_or_else(|| io::Error::other(format!("no answer about link {name}")))?;
                    let state = link.rtattrs().iter().find(|attribute| *attribute.rta_type() == Ifla::Operstate);
                    return Ok(state.and_then(|state| state.rta_payload().as_ref().first().copied()).unwrap_or_default());
                }
            }
        }
    }

    /// `ip link del NAME`
    pub fn delete(&mut self, name: &str) -> io::Result<()> {
        let link = IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).ifi_index(index(name)? as i32);
        self.request(Rtm::Dellink, NlmF::empty(), built(link.build())?, || format!("delete {name}"))
    }

    /// `ip addr add ADDRESS dev NAME nodad`
    pub fn address(&mut self, name: &str, address: IpNetwork) -> io::Result<()> {
        let octets = octets(address.ip());
        let mut attributes = RtBuffer::<Ifa, Buffer>::new();
        attributes.push(built(RtattrBuilder::default().rta_type(Ifa::Local).rta_payload(octets.clone()).build())?);
        attributes.push(built(RtattrBuilder::default().rta_type(Ifa::Address).rta_payload(octets).build())?);
        let message = IfaddrmsgBuilder::default()
            .ifa_family(family(address.ip()))
            .ifa_prefixlen(address.prefix())
            .ifa_flags(if address.is_ipv6() { IfaF::NODAD } else { IfaF::empty() })
            .ifa_scope(RtScope::Universe)
            .ifa_index(index(name)?)
            .rtattrs(attributes);
        self.request(Rtm::Newaddr, NlmF::CREATE | NlmF::EXCL, built(message.build())?, || format!("add {address} to {name}"))
    }

    /// `ip route add TO via GATEWAY`
    pub fn via(&mut self, to: IpNetwork, gateway: IpAddr) -> io::Result<()> {
        let attribute = built(RtattrBuilder::default().rta_type(Rta::Gateway).rta_payload(octets(gateway)).build())?;
        self.route(to, Rtn::Unicast, RtTable::Main, RtScope::Universe, attribute)
    }

    /// `ip route add local TO dev lo`: every address of `to` is this namespace's own, as many as there are.
    pub fn own(&mut self, to: IpNetwork) -> io::Result<()> {
        let attribute = built(RtattrBuilder::default().rta_type(Rta::Oif).rta_payload(index("lo")?).build())?;
        self.route(to, Rtn::Local, RtTable::Local, RtScope::Host, attribute)
    }

    fn route(
        &mut self,
        to: IpNetwork,
        kind: Rtn,
        table: RtTable,
        scope: RtScope,
        next: neli::rtnl::Rtattr<Rta, Buffer>,
    ) -> io::Result<()> {
        let mut attributes = RtBuffer::<Rta, Buffer>::new();
        if to.prefix() > 0 {
            attributes.push(built(RtattrBuilder::default().rta_type(Rta::Dst).rta_payload(octets(to.network())).build())?);
        }
        attributes.push(next);
        let message = RtmsgBuilder::default()
            .rtm_family(family(to.ip()))
            .rtm_dst_len(to.prefix())
            .rtm_src_len(0)
            .rtm_tos(0)
            .rtm_table(table)
            .rtm_protocol(Rtprot::Static)
            .rtm_scope(scope)
            .rtm_type(kind)
            .rtattrs(attributes);
        self.request(Rtm::Newroute, NlmF::CREATE | NlmF::EXCL, built(message.build())?, || format!("add the route to {to}"))
    }

    fn new_link(&mut self, name: &str, kind: &str, data: Option<neli::rtnl::Rtattr<IflaInfo, Buffer>>) -> io::Result<()> {
        let mut info = RtBuffer::<IflaInfo, Buffer>::new();
        info.push(built(RtattrBuilder::default().rta_type(IflaInfo::Kind).rta_payload(format!("{kind}\0")).build())?);
        data.into_iter().for_each(|data| info.push(data));
        let mut attributes = RtBuffer::<Ifla, Buffer>::new();
        attributes.push(built(RtattrBuilder::default().rta_type(Ifla::Ifname).rta_payload(format!("{name}\0")).build())?);
        attributes.push(built(RtattrBuilder::default().rta_type(Ifla::Linkinfo).rta_payload(info).build())?);
        let link: Ifinfomsg =
            built(IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).rtattrs(attributes).build())?;
        self.request(Rtm::Newlink, NlmF::CREATE | NlmF::EXCL, link, || format!("add {kind} {name}"))
    }

    /// Sends one request and waits for its acknowledgement; `what` words the error.
    fn request<P>(&mut self, kind: Rtm, flags: NlmF, payload: P, what: impl Fn() -> String) -> io::Result<()>
    where
        P: neli::Size + neli::ToBytes + std::fmt::Debug,
    {
        self.sequence += 1;
        let message = NlmsghdrBuilder::default()
            .nl_type(kind)
            .nl_flags(NlmF::REQUEST | NlmF::ACK | flags)
            .nl_seq(self.sequence)
            .nl_payload(NlPayload::Payload(payload));
        self.socket.send(&built(message.build())?).map_err(io::Error::other)?;
        loop {
            let (answers, _) = self.socket.recv::<u16, Buffer>().map_err(io::Error::other)?;
            for answer in answers {
                let answer = answer.map_err(io::Error::other)?;
                if *answer.nl_seq() != self.sequence {
                    continue;
                }
                match answer.nl_payload() {
                    NlPayload::Ack(_) => return Ok(()),
                    NlPayload::Err(refused) => {
                        let errno = io::Error::from_raw_os_error(-refused.error());
                        return Err(io::Error::new(errno.kind(), format!("cannot {}: {errno}", what())));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// What the kernel tells about changes of a namespace's ruleset, by whomever they are made (NFNLGRP_NFTABLES).
#[derive(Debug)]
pub struct Commits {
    socket: OwnedFd,
}

impl Commits {
    /// Begins to listen in the calling thread's network namespace.
    pub fn listen() -> io::Result<Commits> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = nix::sys::socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        nix::sys::socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (libc::NFNLGRP_NFTABLES - 1)))?;
        Ok(Commits { socket })
    }

    /// Waits until `key` is added to `set` or removed from it, for half a minute after `since`; returns how long after `since`
    /// that was heard.
    pub fn wait(&self, set: &str, key: IpAddr, since: Instant) -> Option<Duration> {
        let (name, key) = (format!("{set}\0"), octets(key));
        self.until(since, |message| {
            let holds = |needle: &[u8]| memchr::memmem::find(message, needle).is_some();
            holds(name.as_bytes()) && holds(key.as_ref())
        })
    }

    /// Waits for the end of the transaction that was heard of: the message that names its generation.
    pub fn end(&self) {
        const NEWGEN: [u8; 2] = ((libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_NEWGEN) as u16).to_ne_bytes();
        let _ = self.until(Instant::now(), |message| message.get(4..6) == Some(&NEWGEN));
    }

    fn until(&self, since: Instant, is_it: impl Fn(&[u8]) -> bool) -> Option<Duration> {
        loop {
            let left = Duration::from_secs(30).checked_sub(since.elapsed())?;
            let timeout = PollTimeout::try_from(left).ok()?;
            nix::poll::poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout).ok()?;
            let heard = since.elapsed();
            while let Some(message) = self.next() {
                if is_it(&message) {
                    return Some(heard);
                }
            }
        }
    }

    /// Drops what came so far.
    pub fn forget(&self) {
        while self.next().is_some() {}
    }

    /// How many messages came since they were last forgotten.
    pub fn heard(&self) -> usize {
        std::iter::from_fn(|| self.next()).count()
    }

    fn next(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 65536];
        let n = nix::sys::socket::recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()).ok()?;
        bytes.truncate(n);
        Some(bytes)
    }
}

/// Opens a TCP connection from `source` to `target`, in the calling thread's network namespace. A packet filter that drops
/// shows as [`io::ErrorKind::TimedOut`] after `patience`.
pub fn connect_from(source: IpAddr, target: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(family, SockType::Stream, flags, None)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    match nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(target)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
        Err(refused) => return Err(refused.into()),
    }
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    if nix::poll::poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], timeout)? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match nix::sys::socket::getsockopt(&socket, sockopt::SocketError)? {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn index(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(|e| io::Error::new(io::ErrorKind::NotFound, format!("link {name}: {e}")))
}

fn family(address: IpAddr) -> RtAddrFamily {
    if address.is_ipv4() { RtAddrFamily::Inet } else { RtAddrFamily::Inet6 }
}

fn octets(address: IpAddr) -> Buffer {
    Buffer::from(match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    })
}

/// neli's builders fail on a field left out only, each with an error type of its own.
fn built<T, E: std::error::Error + Send + Sync + 'static>(result: Result<T, E>) -> io::Result<T> {
    result.map_err(io::Error::other)
}
