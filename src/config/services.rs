//! Names of ports: our own few first, so that a configuration means the same on a machine without `/etc/services`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Services whose doors people bolt, by the names of the IANA registry and of Debian's `/etc/services`.
const SERVICES: &[(&str, u16)] = &[
    ("ftp-data", 20),
    ("ftp", 21),
    ("ssh", 22),
    ("telnet", 23),
    ("smtp", 25),
    ("domain", 53),
    ("http", 80),
    ("pop3", 110),
    ("sunrpc", 111),
    ("nntp", 119),
    ("ntp", 123),
    ("imap", 143),
    ("imap2", 143),
    ("imap3", 220),
    ("snmp", 161),
    ("ldap", 389),
    ("https", 443),
    ("microsoft-ds", 445),
    ("smtps", 465),
    ("ssmtp", 465),
    ("submissions", 465),
    ("urd", 465),
    ("submission", 587),
    ("ldaps", 636),
    ("ftps-data", 989),
    ("ftps", 990),
    ("telnets", 992),
    ("imaps", 993),
    ("pop3s", 995),
    ("socks", 1080),
    ("openvpn", 1194),
    ("ms-sql-s", 1433),
    ("mysql", 3306),
    ("ms-wbt-server", 3389),
    ("sieve", 4190),
    ("sip", 5060),
    ("sip-tls", 5061),
    ("xmpp-client", 5222),
    ("postgresql", 5432),
    ("http-alt", 8080),
];

/// The port of a service: ours, else that of `/etc/services` when this process first asked.
pub fn port(name: &str) -> Option<u16> {
    let ours = SERVICES.iter().find(|(known, _)| *known == name).map(|(_, port)| *port);
    ours.or_else(|| system().get(name).copied())
}

/// The names of our own services, for suggestions.
pub fn names() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().map(|(name, _)| *name).chain(["mail", "web", "all"])
}

fn system() -> &'static BTreeMap<String, u16> {
    static SYSTEM: OnceLock<BTreeMap<String, u16>> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        std::fs::read("/etc/services").map_or_else(|_| BTreeMap::new(), |bytes| read(&String::from_utf8_lossy(&bytes)))
    })
}

/// services(5): name, port/protocol, aliases; `#` begins a comment.
fn read(text: &str) -> BTreeMap<String, u16> {
    let mut out = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or("").split_ascii_whitespace();
        let (Some(name), Some(port)) = (words.next(), words.next()) else { continue };
        let Some(port) = port.split('/').next().and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0) else {
            continue;
        };
        for name in std::iter::once(name).chain(words) {
            out.entry(name.to_owned()).or_insert(port);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_come_from_our_table_then_from_the_system() {
        assert_eq!(port("smtp"), Some(25));
        assert_eq!(port("no-such-service"), None);
        let table = read("# x\nsmtp\t\t25/tcp\t\tmail\nssh 22/tcp # ssh\nbad x/tcp\nzero 0/tcp\nlonely\n");
        assert_eq!(table, BTreeMap::from([("smtp".to_owned(), 25), ("mail".to_owned(), 25), ("ssh".to_owned(), 22)]));
    }
}
