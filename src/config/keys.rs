//! The one table of keys. Validation, suggestions, the annotated example and `config show` all come from it.
//!
//! A key that the design names and this version does not carry out is in the table too, as [`Status::Planned`]:
//! writing it is a mistake that says so, never a silent nothing. A later version flips one word of its row.

/// Where a key may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The top of a main file.
    Top,
    /// `[jail.NAME]`, `[defaults]`, and the top of a file in `jail.d`.
    Jail,
    /// `increment` of a jail or of `[defaults]`.
    Increment,
    /// `[nft]`
    Nft,
    /// `priority` of `[nft]`
    Priority,
    /// `[daemon]`
    Daemon,
    /// `[evidence]`
    Evidence,
    /// `[mail]`
    Mail,
    /// `[filter.NAME]`, and the top of a file in `filter.d`.
    Filter,
    /// `[filter.NAME.mode.MODE]`
    Mode,
    /// `once` of a filter.
    Once,
    /// `[filter.NAME.param.PARAM]`
    Param,
    /// `[[filter.NAME.sample]]`
    Sample,
}

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds.
    Number(i64, i64),
    /// A number, fractions allowed, not negative.
    Factor,
    /// Numbers, fractions allowed.
    Factors,
    /// A length of time, not zero.
    Span,
    /// A length of time, zero allowed.
    Spread,
    /// A length of time, not zero, or `permanent`.
    Lasting,
    /// Ports, ranges, services, groups.
    Ports,
    /// Protocols.
    Protocols,
    /// Hooks.
    Hooks,
    /// Table families.
    Families,
    /// A priority as nft(8) writes it.
    Priority,
    /// One of these words.
    Word(&'static [&'static str]),
    /// `auto`, `yes` or `no`.
    Tristate,
    /// Text.
    Text,
    /// A name of letters, digits, `-` and `_`.
    Name,
    /// A user group of the system.
    Group,
    /// One absolute path.
    Path,
    /// Where the log goes.
    Log,
    /// Absolute paths, wildcards allowed.
    Globs,
    /// Texts, each whole: a string is one of them.
    Texts,
    /// A journal: an absolute path, or `@` and the name of a namespace.
    Journal,
    /// Entries of a journal: texts, each an alternative.
    Matches,
    /// Words: a string is split at blanks and commas.
    Words,
    /// Addresses, subnets, host names.
    Ignore,
    /// A filter's name, with parameters.
    Filter,
    /// Prefix lengths and a count.
    Aggregate,
    /// A time zone.
    Zone,
    /// A table of the keys of that place.
    Table(Place),
    /// Tables by name, each of the keys of that place.
    Named(Place),
    /// A list of tables of the keys of that place.
    Tables(Place),
    /// Texts by name.
    Variables,
    /// A table whose keys nobody looks at, because the key is planned.
    Any,
    /// What a sample expects: an address, or `false`.
    Expect,
}

/// Whether this version carries a key out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Now,
    /// The design names it, a later version will.
    Planned,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Where it may stand.
    pub place: Place,
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Whether this version carries it out.
    pub status: Status,
    /// What holds where nobody wrote it, as TOML; empty for nothing.
    pub default: &'static str,
    /// A value as TOML, for the example and for help.
    pub example: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Names it had: they keep working, with a warning.
    pub was: &'static [&'static str],
}

use Kind::*;
use Place::{
    Daemon, Evidence, Filter as InFilter, Increment, Jail, Mail, Mode, Nft, Once, Param, Priority as Priorities, Sample, Top,
};
use Status::{Now, Planned};

#[allow(clippy::too_many_arguments)]
const fn key(
    place: Place,
    name: &'static str,
    status: Status,
    kind: Kind,
    default: &'static str,
    example: &'static str,
    about: &'static str,
) -> Key {
    Key { place, name, kind, status, default, example, about, was: &[] }
}

impl Key {
    const fn was(mut self, names: &'static [&'static str]) -> Key {
        self.was = names;
        self
    }
}

const BLOCKTYPES: &[&str] = &["drop", "reject"];
const LEVELS: &[&str] = &["error", "warning", "info", "debug", "trace"];

/// Every key, in the order the example tells them.
pub const KEYS: &[Key] = &[
    // The top of banset.toml
    key(Top, "defaults", Now, Table(Jail), "", "", "what every jail has that does not say otherwise"),
    key(Top, "jail", Now, Named(Jail), "", "", "jails by name"),
    key(Top, "nft", Now, Table(Nft), "", "", "our table in the kernel"),
    key(Top, "daemon", Now, Table(Daemon), "", "", "the daemon itself"),
    key(Top, "filter", Now, Named(InFilter), "", "", "filters by name"),
    key(Top, "evidence", Now, Table(Evidence), "", "", "what is kept of the lines behind a ban"),
    key(Top, "mail", Planned, Table(Mail), "", "", "mail about bans"),
    key(Top, "hook", Planned, Any, "", "", "programs to run at a ban, by name"),
    key(Top, "webhook", Planned, Any, "", "", "URLs to tell of a ban, by name"),
    key(Top, "metrics", Planned, Any, "", "", "numbers for a monitoring system"),
    // What to read
    key(Jail, "enabled", Now, Bool, "false", "true", "whether the jail runs"),
    key(Jail, "filter", Now, Filter, "", "\"sshd\"", "what a line means; the filter of the jail's own name if not written"),
    key(Jail, "mode", Now, Name, "", "\"aggressive\"", "the filter's mode"),
    key(Jail, "logpath", Now, Globs, "", "[\"/var/log/auth.log\"]", "files to follow; wildcards find new files as they appear")
        .was(&["logfile"]),
    key(
        Jail,
        "backend",
        Now,
        Word(&["auto", "file", "journal"]),
        "\"auto\"",
        "\"journal\"",
        "where lines come from; auto: files while one of them is written to, else the journal",
    ),
    key(Jail, "logencoding", Planned, Name, "", "\"utf-8\"", "the encoding of the log"),
    key(
        Jail,
        "journalmatch",
        Now,
        Matches,
        "",
        "\"_SYSTEMD_UNIT=ssh.service + _COMM=sshd\"",
        "journal entries to judge, instead of those the filter is for; + parts alternatives",
    ),
    key(
        Jail,
        "journal_path",
        Now,
        Journal,
        "",
        "\"/var/log/journal/remote\"",
        "a journal other than this machine's: a directory, or \"@NAME\" for a namespace of journald",
    ),
    key(Jail, "failregex_add", Now, Texts, "", "['''^bad login from <HOST>$''']", "patterns on top of the filter's failregex"),
    key(Jail, "ignoreregex_add", Now, Texts, "", "['''from monitoring''']", "patterns on top of the filter's ignoreregex"),
    key(Jail, "maxlines", Now, Number(1, 100), "", "1", "lines a pattern may span, instead of what the filter says"),
    key(Jail, "datepattern", Now, Texts, "", "\"{DEFAULT}\"", "how stamps look, instead of what the filter knows"),
    key(
        Jail,
        "logtimezone",
        Now,
        Zone,
        "",
        "\"Europe/Berlin\"",
        "the zone of stamps that name none; the machine's own if not written",
    ),
    key(
        Jail,
        "usedns",
        Now,
        Word(&["no"]),
        "\"no\"",
        "\"no\"",
        "whether host names in a line are resolved: never, a stranger chose them",
    ),
    // When to ban
    key(Jail, "maxretry", Now, Number(1, 65_535), "5", "3", "failures within findtime that ban"),
    key(Jail, "findtime", Now, Span, "\"10m\"", "\"1h\"", "how far back failures count"),
    key(Jail, "bantime", Now, Lasting, "\"10m\"", "\"1d\"", "how long a ban lasts; permanent is allowed"),
    key(
        Jail,
        "window",
        Now,
        Word(&["sliding", "fail2ban"]),
        "\"sliding\"",
        "\"sliding\"",
        "how failures are counted: sliding, or fail2ban's estimator",
    ),
    key(Jail, "maxretry_user", Planned, Number(1, 65_535), "", "20", "failures of one account from everywhere that ban"),
    key(Jail, "count", Planned, Word(&["all", "distinct"]), "", "\"distinct\"", "whether the same wrong password counts once"),
    key(Jail, "known_good", Planned, Any, "", "3", "more tries for addresses that logged in before"),
    key(
        Jail,
        "aggregate",
        Now,
        Aggregate,
        "",
        "{ v4 = 24, v6 = 48, count = 8 }",
        "ban a subnet while so many of its addresses are banned",
    ),
    key(Jail, "increment", Now, Table(Increment), "", "", "longer bans for repeat offenders"),
    // Whom never
    key(
        Jail,
        "ignoreip",
        Now,
        Ignore,
        "",
        "[\"127.0.0.0/8\", \"::1\"]",
        "addresses, subnets and host names that are never judged; a jail's adds to that of [defaults]",
    ),
    key(Jail, "ignoreip_only", Now, Ignore, "", "[\"192.0.2.1\"]", "in a jail: ignored addresses instead of those of [defaults]"),
    key(Jail, "ignoreself", Now, Bool, "true", "true", "whether the machine's own addresses are ignored"),
    key(Jail, "ignorecommand", Planned, Words, "", "[\"/usr/local/bin/known\", \"<ip>\"]", "a program that knows whom to ignore"),
    // What a ban does
    key(Jail, "port", Now, Ports, "", "[\"smtp\", 465, 587]", "ports a ban closes: numbers, ranges, services, mail, web, or all")
        .was(&["ports"]),
    key(
        Jail,
        "protocol",
        Now,
        Protocols,
        "[\"tcp\", \"udp\", \"udplite\", \"sctp\"]",
        "\"tcp\"",
        "protocols a ban closes, or all",
    )
    .was(&["protocols"]),
    key(
        Jail,
        "chain_hook",
        Now,
        Hooks,
        "\"input\"",
        "[\"input\", \"forward\"]",
        "where a ban bites: input, forward, prerouting, output, postrouting",
    )
    .was(&["hook"]),
    key(
        Jail,
        "family",
        Now,
        Families,
        "\"inet\"",
        "[\"inet\", \"bridge\"]",
        "the tables a ban stands in: inet, or bridge for frames that are only bridged (with chain_hook = \"forward\")",
    ),
    key(
        Jail,
        "priority",
        Now,
        Priority,
        "",
        "-20",
        "the priority of the jail's chains, instead of that of [nft]; of its bridge chains only if it has no others",
    )
    .was(&["chain_priority"]),
    key(
        Jail,
        "dnat",
        Now,
        Bool,
        "false",
        "true",
        "for published ports: match the port a client knows too; switches connection tracking on for everything",
    ),
    key(Jail, "blocktype", Now, Word(BLOCKTYPES), "\"drop\"", "\"reject\"", "what happens to a packet: drop or reject"),
    key(Jail, "ipv6_prefix", Now, Number(1, 128), "64", "56", "IPv6 addresses are counted and banned by this prefix"),
    key(Jail, "ipv4_prefix", Now, Number(1, 32), "32", "24", "IPv4 addresses are counted and banned by this prefix"),
    key(Jail, "observe", Now, Bool, "false", "true", "decide and log, but ban nobody"),
    key(Jail, "label", Now, Text, "", "\"webmail logins\"", "a word or sentence for people"),
    key(Jail, "mail", Planned, Any, "", "true", "whether bans are mailed"),
    key(Jail, "hooks", Planned, Words, "", "[\"abuse\"]", "programs and URLs that are told of a ban"),
    key(Increment, "enabled", Now, Bool, "false", "true", "whether bans grow"),
    key(Increment, "factor", Now, Factor, "1", "2", "multiplies the growth"),
    key(Increment, "multipliers", Now, Factors, "", "[1, 2, 4, 8]", "multipliers by number of earlier bans; the last repeats"),
    key(Increment, "maxtime", Now, Span, "", "\"1w\"", "the longest ban growth leads to"),
    key(Increment, "rndtime", Now, Spread, "\"0\"", "\"5m\"", "a random span up to this is added"),
    key(Increment, "memory", Now, Span, "\"30d\"", "\"30d\"", "how long an offence is remembered"),
    key(Increment, "overalljails", Now, Bool, "false", "true", "whether offences in every jail count"),
    key(Nft, "table", Now, Name, "\"banset\"", "\"banset\"", "the table's name"),
    key(Nft, "ipv6", Now, Tristate, "\"auto\"", "\"no\"", "sets and rules for IPv6: auto is as the machine has it")
        .was(&["allowipv6"]),
    key(Nft, "priority", Now, Table(Priorities), "", "", "the priority of each base chain; smaller is earlier"),
    key(
        Nft,
        "owner",
        Now,
        Bool,
        "false",
        "true",
        "the kernel refuses every change of our tables by others, flush ruleset included (Linux 6.9); the price: a saved ruleset that contains them fails to load, as a whole",
    ),
    key(Nft, "set_size", Now, Number(16, 16_777_216), "", "65536", "the most elements a set holds; 2000000 if not written"),
    key(
        Nft,
        "element_counters",
        Now,
        Tristate,
        "\"auto\"",
        "\"yes\"",
        "count packets per banned address: auto is where it is cheap, on up to 8 possible CPUs and not in a set made for more than 10 000 bans at once",
    ),
    key(Priorities, "prerouting", Now, Priority, "-300", "-300", "before connection tracking and DNAT"),
    key(Priorities, "input", Now, Priority, "-10", "-10", "to this machine"),
    key(Priorities, "forward", Now, Priority, "-10", "-10", "through this machine"),
    key(Priorities, "output", Now, Priority, "-10", "-10", "from this machine"),
    key(Priorities, "postrouting", Now, Priority, "-10", "-10", "after routing"),
    key(Priorities, "bridge", Now, Priority, "-200", "-200", "every chain of the bridge table; at 0 some kernels never ask it"),
    key(Daemon, "socket", Now, Path, "\"/run/banset/banset.sock\"", "\"/run/banset/banset.sock\"", "the control socket"),
    key(Daemon, "readers", Now, Group, "", "\"adm\"", "a group that may read through the socket"),
    key(Daemon, "operators", Now, Group, "", "\"postmaster\"", "a group that may also unban, ignore for a while and see history"),
    key(Daemon, "state_dir", Now, Path, "\"/var/lib/banset\"", "\"/var/lib/banset\"", "where the state lives"),
    key(Daemon, "log", Now, Log, "\"stderr\"", "\"journal\"", "where the log goes: stderr, journal, or a file")
        .was(&["logtarget"]),
    key(Daemon, "loglevel", Now, Word(LEVELS), "\"info\"", "\"debug\"", "how much is logged: error, warning, info, debug, trace"),
    key(Daemon, "protect_sessions", Planned, Bool, "false", "true", "spare addresses with a logged-in SSH session"),
    key(Evidence, "lines", Now, Number(0, 100), "5", "5", "lines kept of each ban"),
    key(Evidence, "keep", Now, Span, "\"90d\"", "\"90d\"", "how long history is kept, lines and all"),
    key(Evidence, "accounts", Now, Word(&["plain", "hash", "none"]), "\"plain\"", "\"hash\"", "how account names are kept"),
    key(Mail, "to", Planned, Words, "", "[\"postmaster@example.org\"]", "who is written to"),
    key(Mail, "from", Planned, Text, "", "\"banset@example.org\"", "the sender's address"),
    key(Mail, "from_name", Planned, Text, "", "\"banset\"", "the sender's name"),
    key(Mail, "transport", Planned, Text, "", "\"smtp://127.0.0.1\"", "how mail leaves"),
    key(Mail, "context_lines", Planned, Number(0, 100), "", "5", "log lines in a mail"),
    key(Mail, "whois", Planned, Bool, "", "true", "whether a mail says who holds the address"),
    key(Mail, "digest", Planned, Span, "", "\"1h\"", "gather bans of this span into one mail"),
    key(Mail, "start_stop", Planned, Bool, "", "true", "whether start and stop are mailed"),
    key(InFilter, "description", Now, Text, "", "\"who fails to log in, and where\"", "one sentence for people"),
    key(InFilter, "tested", Now, Texts, "", "[\"exampled 1.2\"]", "versions whose lines the samples are"),
    key(
        InFilter,
        "prefregex",
        Now,
        Text,
        "",
        "'''^\\s*\\S+ exampled\\[\\d+\\]: <F-CONTENT>.+</F-CONTENT>$'''",
        "tried first; the others see its content",
    ),
    key(
        InFilter,
        "failregex",
        Now,
        Texts,
        "",
        "['''^login of <F-USER>\\S+</F-USER> from <HOST> failed$''']",
        "a line one of these matches is a failure",
    ),
    key(InFilter, "ignoreregex", Now, Texts, "", "['''^login of probe from''']", "unless one of these matches too"),
    key(
        InFilter,
        "okregex",
        Now,
        Texts,
        "",
        "['''^login of \\S+ from <HOST> succeeded$''']",
        "a line one of these matches is a login",
    ),
    key(InFilter, "datepattern", Now, Texts, "", "", "how stamps look"),
    key(InFilter, "maxlines", Now, Number(1, 100), "1", "1", "lines a pattern may span"),
    key(InFilter, "journalmatch", Now, Matches, "", "\"_COMM=exampled\"", "journal entries this filter is for"),
    key(InFilter, "variable", Now, Variables, "", "", "texts that patterns pull in as <NAME>"),
    key(InFilter, "param", Now, Named(Param), "", "", "what a jail may set"),
    key(InFilter, "once", Now, Table(Once), "", "", "a try that is reported several times counts once"),
    key(InFilter, "mode", Now, Named(Mode), "", "", "variants a jail chooses with mode"),
    key(InFilter, "sample", Now, Tables(Sample), "", "", "a line and what must be found in it"),
    key(Once, "key", Now, Words, "", "[\"addr\", \"user\"]", "what is the same in two lines about one try"),
    key(Once, "within", Now, Span, "", "\"5s\"", "how far apart they may be"),
    key(Mode, "include", Now, Words, "", "[]", "other modes whose patterns this one has too"),
    key(
        Mode,
        "prefregex",
        Now,
        Text,
        "",
        "'''^\\s*\\S+ exampled\\[\\d+\\]: <F-CONTENT>.+</F-CONTENT>$'''",
        "instead of the common one",
    ),
    key(Mode, "failregex", Now, Texts, "", "['''^scan from <HOST>$''']", "on top of the common ones"),
    key(Mode, "ignoreregex", Now, Texts, "", "", "on top of the common ones"),
    key(Mode, "okregex", Now, Texts, "", "", "on top of the common ones"),
    key(Param, "words", Now, Words, "", "[]", "words, each taken literally; none stands for any word"),
    key(Param, "nets", Now, Ignore, "", "[]", "addresses and subnets"),
    key(Param, "text", Now, Text, "", "\"\"", "a piece of pattern"),
    key(
        Sample,
        "line",
        Now,
        Texts,
        "",
        "'2026-01-02T03:04:05Z mx exampled[7]: login of bob from 192.0.2.1 failed'",
        "a line, or several",
    ),
    key(Sample, "addr", Now, Expect, "", "\"192.0.2.1\"", "the address that fails, or false"),
    key(Sample, "ok", Now, Text, "", "\"192.0.2.1\"", "the address that logs in"),
    key(Sample, "params", Now, Any, "", "{}", "parameters under which that holds"),
    key(Sample, "time", Now, Text, "", "\"2026-01-02T03:04:05Z\"", "the instant the line bears"),
    key(Sample, "user", Now, Text, "", "\"bob\"", "the account that was tried"),
    key(Sample, "attempts", Now, Number(0, 65_535), "", "1", "how many failures it counts for"),
];

/// Habits from fail2ban that no renaming makes right: a key, where, and what to do instead.
pub const HABITS: &[(Place, &str, &str)] = &[
    (
        Jail,
        "action",
        "a ban is always an element of an nftables set; write port, protocol, chain_hook and blocktype here, mail and hooks are tables of their own",
    ),
    (Jail, "action_", "a ban is always an element of an nftables set; write port, protocol, chain_hook and blocktype"),
    (Jail, "action_mw", "a ban is always an element of an nftables set; mail is a table of its own"),
    (Jail, "action_mwl", "a ban is always an element of an nftables set; mail is a table of its own"),
    (Jail, "banaction", "a ban is always an element of an nftables set; write port, protocol, chain_hook and blocktype"),
    (Jail, "banaction_allports", "write port = \"all\" and protocol = \"all\""),
    (Jail, "failregex", "write failregex_add for patterns on top of the filter's, or a filter of your own in filter.d"),
    (Jail, "ignoreregex", "write ignoreregex_add for patterns on top of the filter's, or a filter of your own in filter.d"),
    (Jail, "prefregex", "write a filter of your own in filter.d"),
    (Jail, "chain", "write chain_hook = \"input\""),
    (Jail, "skip_if_nologs", "leave it out: a missing log is waited for"),
    (Jail, "systemd_if_nologs", "leave it out: a missing log is waited for"),
    (Jail, "ignorecache", "leave it out"),
    (Jail, "maxmatches", "leave it out: the lines behind a ban are read back from the log"),
    (Jail, "destemail", "mail is a table of its own: [mail] to"),
    (Jail, "sender", "mail is a table of its own: [mail] from"),
    (Jail, "sendername", "mail is a table of its own: [mail] from_name"),
    (Jail, "mta", "mail is a table of its own: [mail] transport"),
    (Jail, "table", "write it in [nft]: one table holds every jail's sets"),
    (Jail, "allowipv6", "write ipv6 in [nft]"),
    (Daemon, "allowipv6", "write ipv6 in [nft]"),
    (Daemon, "dbfile", "write state_dir, the directory of the state"),
    (Daemon, "dbpurgeage", "leave it out: the state is bounded"),
    (Daemon, "dbmaxmatches", "leave it out: the lines behind a ban are read back from the log"),
    (Daemon, "pidfile", "leave it out: the daemon runs in the foreground under systemd"),
    (Daemon, "syslogsocket", "write log = \"journal\", \"stderr\" or a file"),
    (InFilter, "before", "fail2ban's includes are not read here: write the patterns, with [variable] for what they share"),
    (InFilter, "after", "fail2ban's includes are not read here: write the patterns, with [variable] for what they share"),
    (InFilter, "maxretry", "write it in a jail: a filter says what a line means, a jail what follows"),
    (InFilter, "logpath", "write it in a jail: a filter says what a line means, a jail where lines come from"),
];

/// The row of a key at a place, by its name of today.
pub fn find(place: Place, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.place == place && key.name == name)
}

/// The row of a key at a place, by a name it had.
pub fn renamed(place: Place, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.place == place && key.was.contains(&name))
}

/// What to do instead of a fail2ban habit.
pub fn habit(place: Place, name: &str) -> Option<&'static str> {
    HABITS.iter().find(|(at, key, _)| *at == place && *key == name).map(|(_, _, help)| *help)
}

/// The keys of a place.
pub fn of(place: Place) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.place == place)
}

/// The word among `known` that a person most likely meant by `word`.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 100 {
        return None;
    }
    let lower = word.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase().replace('-', "_")), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count().max(lower.chars().count()) / 3).max(1))
        .min_by_key(|(distance, candidate)| (*distance, candidate.len()))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_stands_twice_and_no_old_name_is_a_new_one() {
        for (at, key) in KEYS.iter().enumerate() {
            assert!(KEYS[at + 1..].iter().all(|other| (other.place, other.name) != (key.place, key.name)), "{}", key.name);
            assert!(key.was.iter().all(|old| find(key.place, old).is_none() && habit(key.place, old).is_none()), "{}", key.name);
            assert!(habit(key.place, key.name).is_none(), "{}", key.name);
        }
    }

    #[test]
    fn descriptions_are_one_line() {
        assert!(KEYS.iter().all(|key| !key.about.is_empty() && !key.about.contains('\n') && !key.about.ends_with('.')));
    }

    #[test]
    fn the_nearest_key_is_near() {
        let near = |word| nearest(word, of(Jail).map(|key| key.name));
        assert_eq!(near("maxretri"), Some("maxretry"));
        assert_eq!(near("max_retry"), Some("maxretry"));
        assert_eq!(near("BanTime"), Some("bantime"));
        assert_eq!(near("ban-time"), Some("bantime"));
        assert_eq!(near("log_path"), Some("logpath"));
        assert_eq!(near("colour"), None);
        assert_eq!(near(""), None);
    }
}
