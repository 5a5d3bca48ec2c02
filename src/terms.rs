//! The words of nft(8) and of fail2ban as types: what every room may speak without knowing another room.
//!
//! Values here are already right: a [`Ports`] holds no empty list, a [`Span`] no negative number. Reading them from
//! text is the configuration's work (`crate::config`), writing them into messages that of `crate::nft`.

pub mod journal;

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// An instant in microseconds since the Unix epoch. Log lines, bans and the clock all speak this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time(pub i64);

/// A length of time in microseconds, never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span(pub u64);

impl Time {
    /// The system's wall clock, now. Only edges call this; deciding rooms are told the time.
    pub fn now() -> Time {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Time(since.map_or(0, |d| d.as_micros() as i64))
    }
    /// From whole seconds since the Unix epoch.
    pub const fn from_secs(secs: i64) -> Time {
        Time(secs.saturating_mul(1_000_000))
    }
    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn secs(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }
    /// The span from `earlier` to `self`; zero if `earlier` is later.
    pub const fn since(self, earlier: Time) -> Span {
        let d = self.0.saturating_sub(earlier.0);
        Span(if d < 0 { 0 } else { d as u64 })
    }
}

impl Span {
    /// From whole seconds.
    pub const fn from_secs(secs: u64) -> Span {
        Span(secs.saturating_mul(1_000_000))
    }
    /// Whole seconds, rounded down.
    pub const fn secs(self) -> u64 {
        self.0 / 1_000_000
    }
    /// Milliseconds, rounded up: what nf_tables counts in; a span that is not zero never becomes zero.
    pub const fn millis_up(self) -> u64 {
        self.0.div_ceil(1_000)
    }
}

impl std::ops::Add<Span> for Time {
    type Output = Time;
    fn add(self, span: Span) -> Time {
        Time(self.0.saturating_add_unsigned(span.0))
    }
}

impl std::ops::Sub<Span> for Time {
    type Output = Time;
    fn sub(self, span: Span) -> Time {
        Time(self.0.saturating_sub_unsigned(span.0))
    }
}

impl From<Span> for std::time::Duration {
    fn from(span: Span) -> Self {
        std::time::Duration::from_micros(span.0)
    }
}

/// As nft writes spans: `1d2h3m4s`, milliseconds last (`500ms`), `0s` for nothing.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, millis) = (self.0 / 1_000_000, self.0 / 1_000 % 1_000);
        let parts = [(secs / 86_400, "d"), (secs / 3_600 % 24, "h"), (secs / 60 % 60, "m"), (secs % 60, "s"), (millis, "ms")];
        if parts.iter().all(|(n, _)| *n == 0) {
            return f.write_str("0s");
        }
        parts.iter().filter(|(n, _)| *n > 0).try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    }
}

/// When the bans of many addresses become one of their subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregate {
    /// The prefix of an IPv4 subnet, 8 to 31; `None`: none is ever banned so.
    pub v4: Option<u8>,
    /// The prefix of an IPv6 subnet, 16 to 127; `None`: none is ever banned so.
    pub v6: Option<u8>,
    /// How many of its addresses (IPv6: of the prefixes that stand for them) have to be banned at once; at least 2.
    pub count: u32,
}

/// As a configuration writes it.
impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ ")?;
        for (name, prefix) in [("v4", self.v4), ("v6", self.v6)] {
            if let Some(prefix) = prefix {
                write!(f, "{name} = {prefix}, ")?;
            }
        }
        write!(f, "count = {} }}", self.count)
    }
}

/// How long a ban lasts, or how long an entry stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lasting {
    /// For this long.
    For(Span),
    /// Until somebody lifts it.
    Permanent,
}

impl Lasting {
    /// What can be left of it, if so much seems to be.
    pub fn at_most(self, left: Span) -> Span {
        match self {
            Lasting::For(given) => left.min(given),
            Lasting::Permanent => left,
        }
    }
}

/// A family of tables, as in nft(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `inet`: IPv4 and IPv6.
    Inet,
    /// `bridge`: frames that a bridge passes on.
    Bridge,
}

/// Where a base chain hangs, as in nft(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this machine.
    Input,
    /// Through this machine.
    Forward,
    /// From this machine.
    Output,
    /// After routing.
    Postrouting,
}

impl Hook {
    /// Every hook, in the order a packet meets them.
    pub const ALL: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

    /// The word nft(8) uses.
    pub const fn name(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
    /// Whether the banned address is a packet's destination here, not its source.
    pub const fn matches_destination(self) -> bool {
        matches!(self, Hook::Output | Hook::Postrouting)
    }
}

impl Family {
    /// Every family, the one that is always there first.
    pub const ALL: [Family; 2] = [Family::Inet, Family::Bridge];

    /// The word nft(8) uses.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Words of nft(8) that can not name a table: `nft list ruleset` would print such a table, and nothing would load it. Those of nft 1.0.6
/// and of later versions; a test asks the nft that is there.
pub fn is_nft_keyword(word: &str) -> bool {
    const KEYWORDS: &str = "accept add ah all and arp auth auto-merge bridge cgroup cgroupv2 chain chains comment comp constant continue \
        counter counters cpu create ct daddr day dccp define delete describe destroy device devices dnat drop dst dup \
        dynamic dynset ecn element elements eq error esp ether exists expires export exthdr fib flags flow flowtable \
        flowtables flush frag fwd gc-interval ge geneve get goto gre gretap gt handle hash hbh hook hour ibridgename \
        ibriport ibrname ibrpvid ibrvproto icmp icmpv6 icmpx igmp iif iifgroup iifname iiftype import in include index \
        inet insert interval ip ip6 ipsec ipv4_addr jhash jump last le limit limits list log lt map maps mark masquerade \
        memory meta metainfo meter meters mh missing monitor ne neq netdev nftrace not notrack numgen obridgename \
        obriport obrname offload oif oifgroup oifname oiftype or osf performance pkttype policy position prandom \
        priority queue quota quotas random redefine redirect reject rename replace reset return rt rt0 rt2 rt4 rtclassid \
        rule rules ruleset saddr sctp secmark secmarks secpath set sets size skgid skuid snat socket srh symhash \
        synproxy synproxys table tables tcp th time timeout tproxy type typeof udp udplite undefine update vlan vmap \
        vxlan warn xor xt year";
    KEYWORDS.split_ascii_whitespace().any(|keyword| keyword == word)
}

/// The names of priorities in a family's tables (nft(8), "Standard priority names"): each with its number, and the only hook at which nft
/// takes it, where there is but one.
pub const fn priority_names(family: Family) -> &'static [(&'static str, i32, Option<Hook>)] {
    match family {
        Family::Inet => &[
            ("raw", -300, None),
            ("mangle", -150, None),
            ("dstnat", -100, Some(Hook::Prerouting)),
            ("filter", 0, None),
            ("security", 50, None),
            ("srcnat", 100, Some(Hook::Postrouting)),
        ],
        Family::Bridge => &[
            ("dstnat", -300, Some(Hook::Prerouting)),
            ("filter", -200, None),
            ("out", 100, Some(Hook::Output)),
            ("srcnat", 300, Some(Hook::Postrouting)),
        ],
    }
}

/// A priority as nft lists it: by the nearest name within ten, else as a number.
pub fn priority_text(family: Family, hook: Hook, priority: i32) -> String {
    let near = priority_names(family)
        .iter()
        .filter(|(_, _, only)| only.is_none_or(|only| only == hook))
        .find(|(_, value, _)| priority.abs_diff(*value) <= 10);
    match near {
        None => priority.to_string(),
        Some((name, value, _)) if *value == priority => (*name).to_owned(),
        Some((name, value, _)) if priority > *value => format!("{name} + {}", priority - value),
        Some((name, value, _)) => format!("{name} - {}", value - priority),
    }
}

/// A transport protocol a jail's rule can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// 6
    Tcp,
    /// 17
    Udp,
    /// 136
    Udplite,
    /// 132
    Sctp,
    /// 33
    Dccp,
}

impl Protocol {
    /// Every protocol a jail can name.
    pub const ALL: [Protocol; 5] = [Protocol::Tcp, Protocol::Udp, Protocol::Udplite, Protocol::Sctp, Protocol::Dccp];

    /// The word nft(8) uses.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Udplite => "udplite",
            Protocol::Sctp => "sctp",
            Protocol::Dccp => "dccp",
        }
    }
    /// Its number in the IP header (IANA protocol numbers).
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Udplite => 136,
            Protocol::Sctp => 132,
            Protocol::Dccp => 33,
        }
    }
}

/// The protocols of a jail.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Protocols {
    /// Whatever the packet carries; with it go all ports.
    All,
    /// These, in ascending order of [`Protocol`], none twice, at least one.
    List(Vec<Protocol>),
}

/// The ports of a jail: sorted, disjoint, not adjacent, at least one range; or all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ports {
    /// Every port, and packets without ports.
    All,
    /// Inclusive ranges `(first, last)`; a single port has both alike.
    List(Vec<(u16, u16)>),
}

/// What happens to a packet of a banned address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blocktype {
    /// Nothing comes back.
    Drop,
    /// tcp reset for tcp, icmpx port-unreachable otherwise.
    Reject,
}

/// Whether a subnet is a single address.
pub fn is_host(net: IpNetwork) -> bool {
    net.prefix() == if net.is_ipv4() { 32 } else { 128 }
}

/// As people write it: an address without a prefix length, a subnet with it.
pub fn shown(net: IpNetwork) -> String {
    if is_host(net) { net.ip().to_string() } else { net.to_string() }
}

/// Folds an IPv4-mapped IPv6 address (`::ffff:192.0.2.7`) into the IPv4 address that it is.
pub fn fold(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// An I/O error in the system's words, without Rust's `(os error N)`.
pub fn plain(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// The beginning of a text, at most so many bytes of it, whole characters.
pub fn head(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Escapes what a stranger may have written before it reaches a log, a mail or a terminal: control characters,
/// bytes that are not UTF-8, and the backslash itself become `\xNN` or `\\`. Bounded to `limit` bytes of input, with `…`
/// where it was cut.
pub fn escape(bytes: &[u8], limit: usize) -> String {
    let (shown, cut) = if bytes.len() > limit { (&bytes[..limit], true) } else { (bytes, false) };
    let mut out = String::with_capacity(shown.len() + 4);
    for chunk in shown.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() || is_bidi(c) => {
                    let mut buffer = [0; 4];
                    for byte in c.encode_utf8(&mut buffer).bytes() {
                        out.push_str(&format!("\\x{byte:02x}"));
                    }
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    if cut {
        out.push('…');
    }
    out
}

/// Characters that reorder the text around them on a terminal (Unicode Bidi controls).
const fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_nft_writes_them() {
        let table =
            [(0, "0s"), (500_000, "500ms"), (1_000_000, "1s"), (86_400_000_000, "1d"), (93_784_000_000, "1d2h3m4s"), (1, "0s")];
        for (micros, text) in table {
            assert_eq!(Span(micros).to_string(), text);
        }
    }

    #[test]
    fn strangers_bytes_are_escaped() {
        assert_eq!(escape(b"a\nb\x1b[31m\\\xff\xc3\xa9", 100), "a\\x0ab\\x1b[31m\\\\\\xff\u{e9}");
        assert_eq!(escape(b"abcdef", 3), "abc…");
        assert_eq!(escape("x\u{202e}y".as_bytes(), 100), "x\\xe2\\x80\\xaey");
    }

    #[test]
    fn priorities_read_as_nft_lists_them() {
        let table = [
            (Family::Inet, Hook::Input, -10, "filter - 10"),
            (Family::Inet, Hook::Input, 0, "filter"),
            (Family::Inet, Hook::Input, 10, "filter + 10"),
            (Family::Inet, Hook::Input, 11, "11"),
            (Family::Inet, Hook::Prerouting, -300, "raw"),
            (Family::Inet, Hook::Output, -310, "raw - 10"),
            (Family::Inet, Hook::Input, -100, "-100"),
            (Family::Inet, Hook::Prerouting, -110, "dstnat - 10"),
            (Family::Inet, Hook::Postrouting, 100, "srcnat"),
            (Family::Inet, Hook::Input, 100, "100"),
            (Family::Bridge, Hook::Forward, -200, "filter"),
            (Family::Bridge, Hook::Forward, 0, "0"),
            (Family::Bridge, Hook::Output, 100, "out"),
        ];
        for (family, hook, priority, text) in table {
            assert_eq!(priority_text(family, hook, priority), text);
        }
    }
}
