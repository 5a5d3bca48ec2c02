//! Two witnesses that share no code with us: rustables, a second encoder, has to make the same ruleset; libmnl, the C library under
//! nft itself, has to read the same elements and hear the same events.

mod nft_support;

use std::net::IpAddr;

use banset::nft::ruleset::{Chain, Content, Rule, Statement};
use banset::nft::{Element, Kernel, Key, Reject, Ruleset, Set, Socket, Transaction};
use banset::terms::{Family, Hook, Protocol, Span};
use nft_support::{in_netns, listing, nft};

const TABLE: &str = "banset";

fn set(name: &str, key: Key) -> Set {
    Set {
        name: name.to_owned(),
        key,
        interval: false,
        timeout: true,
        size: None,
        counter: false,
        gc_interval: None,
        comment: None,
        content: Content::Bans,
    }
}

/// What rustables can say too: one protocol, one port, lookups that are not inverted.
fn small() -> Ruleset {
    let address =
        |key, prefix, set: &str| Statement::Address { key, destination: false, prefix, inverted: false, set: set.to_owned() };
    let tcp = || Statement::L4proto(vec![Protocol::Tcp]);
    let rule = |statements| Rule { statements };
    let input = vec![
        rule(vec![tcp(), Statement::Dport(vec![(25, 25)]), address(Key::V4, None, "a-v4"), Statement::Counter, Statement::Drop]),
        rule(vec![address(Key::V6, Some(64), "a-v6"), Statement::Counter, Statement::Drop]),
        rule(vec![tcp(), address(Key::V4, None, "a-v4"), Statement::Counter, Statement::Reject(Reject::TcpReset)]),
    ];
    Ruleset {
        family: Family::Inet,
        table: TABLE.to_owned(),
        comment: None,
        owner: false,
        sets: vec![set("a-v4", Key::V4), set("a-v6", Key::V6)],
        ports: Vec::new(),
        maps: Vec::new(),
        chains: vec![Chain { name: "input".into(), base: Some((Hook::Input, -10)), rules: input }],
    }
}

fn commit(ruleset: &Ruleset) -> Socket {
    let mut socket = Socket::open().unwrap();
    socket.commit(&Transaction::establish(ruleset, None, |_| vec![]).unwrap().first).unwrap();
    socket
}

#[test]
fn rustables_makes_the_same_ruleset() {
    in_netns("rustables_makes_the_same_ruleset", || {
        let ruleset = small();
        commit(&ruleset);
        let ours = listing();
        assert_eq!(ours, ruleset.text());
        nft(&["flush", "ruleset"]);
        by_rustables();
        assert_eq!(listing(), ours);
    });
}

fn by_rustables() {
    use rustables::expr::{
        Bitwise, Cmp, CmpOp, Counter, HighLevelPayload, IPv4HeaderField, IPv6HeaderField, Immediate, Lookup, Meta, MetaType,
        NetworkHeaderField, Reject, RejectType, TCPHeaderField, TransportHeaderField, VerdictKind,
    };
    use rustables::{Batch, Chain, ChainPolicy, ChainType, HookClass, MsgType, ProtocolFamily, Rule, Table};

    let mut batch = Batch::new();
    let table = Table::new(ProtocolFamily::Inet).with_name(TABLE).add_to_batch(&mut batch);
    let timeout = 0x10u32;
    let (v4, _) = rustables::set::SetBuilder::<std::net::Ipv4Addr>::new("a-v4", &table).unwrap().finish();
    let v4 = v4.with_id(1u32).with_flags(timeout);
    let (v6, _) = rustables::set::SetBuilder::<std::net::Ipv6Addr>::new("a-v6", &table).unwrap().finish();
    let v6 = v6.with_id(2u32).with_flags(timeout);
    // The family of a set is not taken over from its table.
    let inet = |mut set: rustables::Set| {
        set.family = ProtocolFamily::Inet;
        set
    };
    let (v4, v6) = (inet(v4), inet(v6));
    batch.add(&v4, MsgType::Add);
    batch.add(&v6, MsgType::Add);
    let chain = Chain::new(&table)
        .with_name("input")
        .with_type(ChainType::Filter)
        .with_policy(ChainPolicy::Accept)
        .with_hook(rustables::Hook::default().with_class(HookClass::In as u32).with_priority((-10i32) as u32))
        .add_to_batch(&mut batch);
    let rule = || Rule::new(&chain).unwrap();
    let tcp = |rule: Rule| rule.with_expr(Meta::new(MetaType::L4Proto)).with_expr(Cmp::new(CmpOp::Eq, [6u8]));
    let saddr = |rule: Rule| {
        rule.with_expr(Meta::new(MetaType::NfProto))
            .with_expr(Cmp::new(CmpOp::Eq, [2u8]))
            .with_expr(HighLevelPayload::Network(NetworkHeaderField::IPv4(IPv4HeaderField::Saddr)).build())
            .with_expr(Lookup::new(&v4).unwrap())
    };
    let port = |rule: Rule| {
        rule.with_expr(HighLevelPayload::Transport(TransportHeaderField::Tcp(TCPHeaderField::Dport)).build())
            .with_expr(Cmp::new(CmpOp::Eq, 25u16.to_be_bytes()))
    };
    let drop = |rule: Rule| rule.with_expr(Counter::default()).with_expr(Immediate::new_verdict(VerdictKind::Drop));
    drop(saddr(port(tcp(rule())))).add_to_batch(&mut batch);
    let mut mask = [0u8; 16];
    mask[..8].fill(0xff);
    let masked = rule()
        .with_expr(Meta::new(MetaType::NfProto))
        .with_expr(Cmp::new(CmpOp::Eq, [10u8]))
        .with_expr(HighLevelPayload::Network(NetworkHeaderField::IPv6(IPv6HeaderField::Saddr)).build())
        .with_expr(Bitwise::new(mask, [0u8; 16]).unwrap())
        .with_expr(Lookup::new(&v6).unwrap());
    drop(masked).add_to_batch(&mut batch);
    saddr(tcp(rule()))
        .with_expr(Counter::default())
        .with_expr(Reject::default().with_type(RejectType::TcpRst))
        .add_to_batch(&mut batch);
    batch.send().unwrap();
}

/// A message as libmnl takes it apart: its type and its attributes.
type Heard = (u16, Vec<(u16, Vec<u8>)>);

/// Attributes between two addresses, by libmnl's own walk.
fn attributes(bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    use mnl::mnl_sys::{mnl_attr_get_payload, mnl_attr_get_payload_len, mnl_attr_get_type, mnl_attr_next, mnl_attr_ok};
    // libmnl reads numbers where they are, so they have to be aligned.
    let mut aligned = vec![0u32; bytes.len().div_ceil(4)];
    let mut found = Vec::new();
    // SAFETY: the copy is as long as the bytes and aligned for `nlattr`; libmnl checks each attribute against what is left.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), aligned.as_mut_ptr().cast::<u8>(), bytes.len());
        let base = aligned.as_ptr().cast::<libc::nlattr>();
        let mut at = base;
        loop {
            let left = bytes.len() as isize - at.cast::<u8>().offset_from(base.cast::<u8>());
            if left < 4 || !mnl_attr_ok(at, left as i32) {
                return found;
            }
            let payload = mnl_attr_get_payload(at).cast::<u8>().cast_const();
            let length = usize::from(mnl_attr_get_payload_len(at));
            found.push((mnl_attr_get_type(at), std::slice::from_raw_parts(payload, length).to_vec()));
            at = mnl_attr_next(at);
        }
    }
}

fn attribute(list: &[(u16, Vec<u8>)], kind: u16) -> Option<&[u8]> {
    list.iter().find(|(k, _)| *k == kind).map(|(_, value)| value.as_slice())
}

fn number(list: &[(u16, Vec<u8>)], kind: u16) -> Option<u64> {
    attribute(list, kind).map(|value| value.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

/// Everything one `recv` of libmnl brings.
fn receive(socket: &mnl::Socket) -> Vec<Heard> {
    let mut buffer = vec![0u8; 64 * 1024];
    let messages = socket.recv(&mut buffer).unwrap();
    messages
        .map(|message| {
            let message = message.unwrap();
            (u16::from_ne_bytes([message[4], message[5]]), attributes(message.get(20..).unwrap_or(&[])))
        })
        .collect()
}

/// An element as libmnl sees it: key, timeout and expiration in milliseconds.
type Seen = (Vec<u8>, Option<u64>, Option<u64>);

fn elements_in(list: &[(u16, Vec<u8>)]) -> Vec<Seen> {
    attributes(attribute(list, 3).unwrap_or(&[]))
        .iter()
        .map(|(_, element)| {
            let element = attributes(element);
            let key = attributes(attribute(&element, 1).unwrap());
            (attribute(&key, 1).unwrap().to_vec(), number(&element, 4), number(&element, 5))
        })
        .collect()
}

/// Dumps a set: the request, too, is put together by libmnl.
fn dump(socket: &mnl::Socket, set: &str) -> Vec<Seen> {
    use mnl::mnl_sys::{mnl_attr_put_strz, mnl_nlmsg_put_extra_header, mnl_nlmsg_put_header};
    let mut request = vec![0u32; 256];
    // SAFETY: the buffer is aligned and far larger than a header and two names.
    let length = unsafe {
        let header = mnl_nlmsg_put_header(request.as_mut_ptr().cast());
        (*header).nlmsg_type = 10 << 8 | 13;
        (*header).nlmsg_flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        (*header).nlmsg_seq = 1;
        *mnl_nlmsg_put_extra_header(header, 4).cast::<u8>() = 1;
        for (kind, name) in [(1, TABLE), (2, set)] {
            let name = std::ffi::CString::new(name).unwrap();
            mnl_attr_put_strz(header, kind, name.as_ptr());
        }
        (*header).nlmsg_len as usize
    };
    let bytes: Vec<u8> = request.iter().flat_map(|word| word.to_ne_bytes()).take(length).collect();
    socket.send(&bytes).unwrap();
    let mut seen = Vec::new();
    loop {
        for (kind, list) in receive(socket) {
            match kind {
                3 => return seen,
                2 => panic!("libmnl: error instead of a dump"),
                _ => seen.extend(elements_in(&list)),
            }
        }
    }
}

fn key(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[test]
fn libmnl_reads_the_elements_we_wrote() {
    in_netns("libmnl_reads_the_elements_we_wrote", || {
        let ruleset = small();
        let mut socket = commit(&ruleset);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let hour = Span::from_secs(3600);
        let wanted = [
            ("a-v4", Element::timed(ip("192.0.2.7"), hour), Some((3_600_000, 3_600_000))),
            ("a-v4", Element::restored(ip("192.0.2.8"), hour, Span::from_secs(1800)), Some((3_600_000, 1_800_000))),
            ("a-v4", Element::permanent(ip("192.0.2.9")), None),
            ("a-v6", Element::restored(ip("2001:db8::"), Span(1), Span(u64::MAX)), Some((1, 1))),
            ("a-v6", Element::timed(ip("2001:db8:1::"), Span(90_061_500_000)), Some((90_061_500, 90_061_500))),
        ];
        let mut transaction = Transaction::about(&ruleset);
        for (set, element, _) in wanted.iter().filter(|(_, element, _)| element.timeout.is_none_or(|t| t.timeout.0 > 1)) {
            transaction.add(ruleset.set(set).unwrap(), [*element]);
        }
        socket.commit(&transaction).unwrap();
        let reader = mnl::Socket::open(mnl::Bus::Netfilter).unwrap();
        reader.bind(0, 0).unwrap();
        let mut seen = dump(&reader, "a-v4");
        seen.extend(dump(&reader, "a-v6"));
        assert_eq!(seen.len(), wanted.len() - 1);
        for (_, element, times) in wanted.iter().filter(|(_, element, _)| element.timeout.is_none_or(|t| t.timeout.0 > 1)) {
            let (_, timeout, expiration) = seen.iter().find(|(k, ..)| *k == key(element.interval.first())).unwrap();
            match times {
                None => assert_eq!((timeout.unwrap_or(0), expiration.unwrap_or(0)), (0, 0)),
                Some((t, e)) => {
                    assert_eq!(*timeout, Some(*t));
                    // Whole ticks of the kernel's clock, and the moment since.
                    assert!(expiration.unwrap() <= e + 10 && expiration.unwrap() + 2_000 > *e, "{expiration:?} {e}");
                }
            }
        }
    });
}

#[test]
fn libmnl_hears_what_we_say_we_did() {
    in_netns("libmnl_hears_what_we_say_we_did", || {
        let ruleset = small();
        let mut socket = commit(&ruleset);
        let ear = mnl::Socket::open(mnl::Bus::Netfilter).unwrap();
        // NFNLGRP_NFTABLES
        ear.bind(1 << (7 - 1), 0).unwrap();
        let set = ruleset.set("a-v4").unwrap();
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        let (new, destroyed, generation) = (10 << 8 | 12, 10 << 8 | 14, 10 << 8 | 15);
        let mut hear = |change: &dyn Fn(&mut Transaction)| {
            let mut transaction = Transaction::about(&ruleset);
            change(&mut transaction);
            socket.commit(&transaction).unwrap();
            let mut heard = Vec::new();
            while heard.last().is_none_or(|(kind, _): &Heard| *kind != generation) {
                heard.extend(receive(&ear));
            }
            heard
        };
        let hour = Span::from_secs(3600);
        let added = hear(&|t| t.add(set, [Element::timed(address, hour)]));
        assert_eq!(added.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [new, generation]);
        let (seen, timeout, _) = elements_in(&added[0].1).remove(0);
        assert_eq!((seen, timeout), (key(address), Some(3_600_000)));
        // NEWGEN names who committed: by the number of the thread, not of its process.
        assert_eq!(number(&added[1].1, 2), Some(nix::unistd::gettid().as_raw() as u64));
        // A refresh is a change, also with the timeout it has; without expiration there would be none.
        let refreshed = hear(&|t| t.add(set, [Element::timed(address, hour)]));
        assert_eq!(refreshed[0].0, new);
        let removed = hear(&|t| t.remove(set, [address.into()]));
        assert_eq!(removed.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [destroyed, generation]);
        assert_eq!(elements_in(&removed[0].1)[0].0, key(address));
        // Removing what is not there is no change at all: not even a generation.
        let mut kernel = Kernel::open().unwrap();
        let before = kernel.generation().unwrap();
        let mut transaction = Transaction::about(&ruleset);
        transaction.remove(set, [address.into()]);
        socket.commit(&transaction).unwrap();
        assert_eq!(kernel.generation().unwrap(), before);
    });
}
