//! What our rules cost a packet that nobody banned, with 1, 10 and 50 jails: plain rules, and the port looked up once.
//!
//! `make bench` prints it. Bursts of 46-byte UDP packets go from an AF_PACKET socket over a veth pair; each is received, asked through the
//! rules at the input hook and dropped at its end within the system call that sends it, so a burst's CPU time holds all of it. What is
//! told is the lower quartile of many bursts, less the same with an empty chain. The bar: under 300 ns with 50 jails on 10 groups
//! of ports, on a machine where a packet without rules costs 460 ns: on a busier one compare the ratios, 0.65.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, ExitCode};

use banset::netns::{Netns, Route};
use banset::nft::element::Element;
use banset::nft::{JailPlan, Kernel, Plan, Ruleset, Socket, Transaction};
use banset::terms::{Blocktype, Family, Hook, Ports, Protocol, Protocols, Span};

/// Packets of a burst, and bursts of a shape.
const BURST: usize = 4096;
const BURSTS: usize = 150;
/// Packets handed over in one system call.
const CALL: usize = 256;
/// Bans in each set.
const BANS: u32 = 1000;

fn main() -> ExitCode {
    banset_integration::bench("packets", measure)
}

/// The ten groups of ports.
const GROUPS: [&[u16]; 10] =
    [&[25, 465, 587], &[110, 995], &[143, 993], &[80, 443], &[22], &[53], &[20, 21], &[3306], &[5060, 5061], &[4190]];

fn plan(jails: usize, many: bool, hook: Hook) -> Plan {
    let jail = |n: usize| JailPlan {
        name: format!("jail{n}"),
        // A range too long to be listed keeps a jail's rule plain, whatever their number.
        ports: Ports::List(match many {
            true => GROUPS[n % GROUPS.len()].iter().map(|port| (*port, *port)).collect(),
            false => GROUPS[n % GROUPS.len()].iter().map(|port| (*port, *port)).chain([(50_000, 60_000)]).collect(),
        }),
        protocols: Protocols::List(vec![Protocol::Tcp, Protocol::Udp, Protocol::Udplite, Protocol::Sctp]),
        hooks: vec![(hook, -10)],
        blocktype: Blocktype::Drop,
        ipv4_prefix: 32,
        ipv6_prefix: 64,
        ignore: Vec::new(),
        dnat: false,
        nets: false,
        paused: false,
    };
    Plan {
        family: Family::Inet,
        table: "banset".to_owned(),
        ipv6: true,
        set_size: None,
        element_counters: false,
        gc_interval: Some(Span::from_secs(10)),
        ignore: vec!["127.0.0.0/8".parse().expect("a network"), "::1".parse().expect("a network")],
        only_drop: Vec::new(),
        jails: (0..jails).map(jail).collect(),
    }
}

/// Makes the table, its sets full of other people.
fn establish(socket: &mut Socket, kernel: &mut Kernel, plan: &Plan) {
    let ruleset = Ruleset::of(plan).expect("a plan that fits");
    let found = kernel.table(Family::Inet, "banset").expect("a table can be read");
    let all = Transaction::establish(&ruleset, found.as_ref(), |set| {
        let address = |n: u32| -> std::net::IpAddr {
            match set.key {
                banset::nft::Key::V4 => std::net::Ipv4Addr::from_bits(0x0b00_0000 + n * 7919).into(),
                banset::nft::Key::V6 => std::net::Ipv6Addr::from_bits((0x2a00 << 112) + (u128::from(n) << 64)).into(),
            }
        };
        (0..BANS).map(|n| Element::timed(address(n), Span::from_secs(3600))).collect()
    });
    socket.commit(&all.expect("no newer table").first).expect("the kernel agrees");
}

/// An AF_PACKET socket on the outer end of a veth pair, and packets to the inner end.
struct Gun {
    socket: OwnedFd,
    packet: Vec<u8>,
}

impl Gun {
    fn new(interface: &str, mac: [u8; 6], port: u16, v6: bool) -> io::Result<Gun> {
        // SAFETY: socket(2) takes numbers and gives a descriptor or -1.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let index = nix::net::if_::if_nametoindex(interface)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        };
        // SAFETY: a sockaddr_ll and its size.
        let bound = unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), std::mem::size_of::<libc::sockaddr_ll>() as u32)
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut packet = mac.to_vec();
        packet.extend([2, 0, 0, 0, 0, 9]);
        let udp = [0x30, 0x39, port.to_be_bytes()[0], port.to_be_bytes()[1], 0, 12, 0, 0, b'p', b'1', b'0', 0];
        if v6 {
            packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 12, 17, 64]);
            packet.extend("2001:db8::7".parse::<std::net::Ipv6Addr>().expect("an address").octets());
            packet.extend("2001:db8::1".parse::<std::net::Ipv6Addr>().expect("an address").octets());
        } else {
            let mut header = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 9, 7, 10, 9, 9, 1];
            let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            packet.extend([0x08, 0x00]);
            packet.extend(header);
        }
        packet.extend(udp);
        Ok(Gun { socket, packet })
    }

    /// Nanoseconds of CPU a packet, of one burst.
    fn burst(&self) -> f64 {
        let mut vector = libc::iovec { iov_base: self.packet.as_ptr().cast_mut().cast(), iov_len: self.packet.len() };
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut vector;
        message.msg_hdr.msg_iovlen = 1;
        let mut messages = [message; CALL];
        let start = cpu();
        for _ in 0..BURST / CALL {
            // SAFETY: as many messages as told, each with one vector over a packet that outlives the call.
            let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), CALL as u32, 0) };
            assert!(sent == CALL as i32, "sendmmsg: {}", io::Error::last_os_error());
        }
        (cpu() - start) / BURST as f64
    }
}

/// CPU time of this thread in nanoseconds.
fn cpu() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a timespec to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn quartile(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 4]
}

fn nft(script: &str) {
    use std::io::Write;
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn().expect("nft is installed");
    child.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("a script can be written");
    assert!(child.wait().expect("nft ends").success(), "{script}");
}

fn measure() {
    // The outer end is here, the inner one, with the rules, in a namespace of its own.
    let inside = Netns::new().expect("a namespace");
    let mut route = Route::open().expect("rtnetlink");
    route.veth("outer", "inner", &inside).expect("a veth pair");
    route.up("outer").expect("it can be up");
    let mac = inside.run(|| {
        let mut route = Route::open().expect("rtnetlink");
        for address in ["10.9.9.1/24", "2001:db8::1/64"] {
            route.address("inner", address.parse().expect("an address")).expect("an address can be set");
        }
        route.up("inner").expect("it can be up");
        let text = Command::new("ip").args(["-o", "link", "show", "inner"]).output().expect("ip is installed").stdout;
        let text = String::from_utf8_lossy(&text).into_owned();
        let mac = text.split("link/ether ").nth(1).expect("a hardware address").split(' ').next().expect("a word").to_owned();
        let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
        <[u8; 6]>::try_from(bytes).expect("six bytes")
    });
    // Everything ends in this drop, after our rules: nothing else of the machine is measured.
    inside.run(|| nft("table inet last { chain input { type filter hook input priority 10; policy drop; }; }"));
    std::thread::sleep(std::time::Duration::from_millis(500));
    let shapes: Vec<(String, Option<Plan>)> = vec![
        ("no rules".to_owned(), None),
        ("1 jail, plain".to_owned(), Some(plan(1, true, Hook::Input))),
        ("10 jails on 10 groups of ports, plain".to_owned(), Some(plan(10, true, Hook::Input))),
        ("50 jails on 10 groups of ports, plain".to_owned(), Some(plan(50, false, Hook::Input))),
        ("50 jails on 10 groups of ports, by port".to_owned(), Some(plan(50, true, Hook::Input))),
    ];
    let (mut socket, mut kernel) = inside.run(|| (Socket::open().expect("nf_tables"), Kernel::open().expect("nf_tables")));
    println!("what a packet of nobody banned pays, less {} (the bar: 50 jails on 10 groups under 300 ns)", shapes[0].0);
    for (what, port, v6) in
        [("IPv4 to a guarded port", 25, false), ("IPv4 to another port", 7777, false), ("IPv6 to a guarded port", 25, true)]
    {
        let gun = Gun::new("outer", mac, port, v6).expect("an AF_PACKET socket");
        let mut base = 0.0;
        let mut one = 0.0;
        println!("   {what}");
        for (name, plan) in &shapes {
            if let Some(plan) = plan {
                establish(&mut socket, &mut kernel, plan);
            }
            let before = dropped(&inside);
            for _ in 0..10 {
                gun.burst();
            }
            let cost = quartile((0..BURSTS).map(|_| gun.burst()).collect());
            let through = dropped(&inside) - before;
            assert!(through >= (BURSTS * BURST) as u64, "only {through} packets of a shape arrived");
            match plan {
                None => {
                    base = cost;
                    println!("      {name:42} {base:7.0} ns");
                }
                Some(plan) => {
                    let pays = cost - base;
                    if plan.jails.len() == 1 {
                        one = pays;
                    }
                    let (ones, bases) = (pays / one.max(1.0), pays / base);
                    println!("      {name:42} {pays:+7.0} ns   {ones:5.1}x one jail   {bases:5.2}x a packet without rules");
                }
            }
        }
        let mut nothing = Transaction::new(Family::Inet, "banset");
        nothing.delete_table();
        socket.commit(&nothing).expect("the kernel agrees");
    }
}

/// Packets that reached the inner end.
fn dropped(inside: &Netns) -> u64 {
    inside.run(|| {
        // Always that of the thread's own namespace.
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").expect("/proc");
        let line = text.lines().find(|line| line.trim_start().starts_with("inner:")).expect("its line");
        line.split_whitespace().nth(2).and_then(|n| n.parse().ok()).expect("a number of packets")
    })
}
