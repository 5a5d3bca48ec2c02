//! A configuration as text for people: every value with its origin, the example, and what a reload changes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use super::keys::{self, Key, Kind, Place, Status};
use super::layers::{Held, Layers, Values};
use super::run::{Config, FilterUse, IgnoreList, Jail, Log};
use super::values::{FilterName, Meaning};
use super::written::{Node, Raw};
use super::{Loaded, Shipped, Sources};
use crate::terms::{self, Lasting, Ports, Protocols, shown};

/// The column at which origins begin, where a value leaves room.
const ORIGINS: usize = 60;

/// What `banset check` prints: the report, and one line that sums it up.
pub fn check(loaded: &Loaded) -> String {
    let mut out = loaded.report.to_string();
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let (mistakes, warnings) = (loaded.report.mistakes, loaded.report.warnings);
    if mistakes > 0 {
        let _ = write!(out, "{}", count(mistakes, "mistake"));
        if warnings > 0 {
            let _ = write!(out, ", {}", count(warnings, "warning"));
        }
        out.push('\n');
        return out;
    }
    let jails: Vec<&str> = loaded
        .config
        .iter()
        .flat_map(|config| &config.jails)
        .filter(|jail| jail.filter.is_some())
        .map(|jail| jail.name.as_str())
        .collect();
    let _ = match jails.as_slice() {
        [] => write!(out, "ok, and no jail is enabled"),
        names => write!(out, "ok: {} enabled: {}", count(names.len(), "jail"), names.join(", ")),
    };
    if warnings > 0 {
        let _ = write!(out, "; {}", count(warnings, "warning"));
    }
    out.push('\n');
    out
}

/// What `banset check --json` prints.
pub fn check_json(loaded: &Loaded) -> Json {
    let mut out = loaded.report.json();
    let names =
        |jails: &[Jail]| jails.iter().filter(|jail| jail.filter.is_some()).map(|jail| jail.name.clone()).collect::<Vec<_>>();
    out["ok"] = json!(loaded.report.is_sound());
    out["jails"] = json!(loaded.config.as_ref().map(|config| names(&config.jails)).unwrap_or_default());
    out
}

/// One value that holds, with where it was written.
struct Shown {
    table: String,
    key: String,
    value: String,
    origins: Vec<String>,
}

/// What `banset config show` prints: the merged configuration as TOML, each value with its origin as a comment.
pub fn merged(sources: &Sources, shipped: Shipped<'_>) -> String {
    let mut out = String::new();
    let mut table = None;
    let (shown, silent) = gather(sources, shipped);
    for one in shown {
        if table.as_ref() != Some(&one.table) {
            let _ = writeln!(out, "{}[{}]", if table.is_some() { "\n" } else { "" }, one.table);
            table = Some(one.table);
        }
        let line = format!("{} = {}", one.key, one.value);
        let gap = ORIGINS.saturating_sub(line.chars().count()).max(2);
        let _ = writeln!(out, "{line}{:gap$}# {}", "", one.origins.join(", "));
    }
    if !silent.is_empty() {
        let _ = writeln!(out, "\n# not enabled: {}", silent.join(", "));
    }
    out
}

/// What `banset config show --json` prints: `[{"table","key","value","origin":[…]}]`, values as TOML.
pub fn merged_json(sources: &Sources, shipped: Shipped<'_>) -> Json {
    let (shown, _) = gather(sources, shipped);
    let one = |shown: Shown| json!({ "table": shown.table, "key": shown.key, "value": shown.value, "origin": shown.origins });
    shown.into_iter().map(one).collect()
}

/// Every value of the daemon, the table, the defaults, and the jails that are enabled or that the user wrote of; and the names of the
/// other jails.
fn gather(sources: &Sources, shipped: Shipped<'_>) -> (Vec<Shown>, Vec<String>) {
    let mut findings = super::Findings::default();
    let (files, read) = super::read(sources, shipped, &mut findings);
    let layers = Layers::merge(&read, &files);
    let mut out = Vec::new();
    table(&mut out, &layers, "daemon", Place::Daemon, &layers.daemon(), true);
    table(&mut out, &layers, "nft", Place::Nft, &layers.nft(), true);
    table(&mut out, &layers, "evidence", Place::Evidence, &layers.evidence(), true);
    table(&mut out, &layers, "defaults", Place::Jail, &layers.defaults(), false);
    let filters: BTreeMap<&str, String> = layers
        .filters()
        .into_iter()
        .map(|(name, (layer, _))| {
            (name, files.get(layer.file).map_or_else(String::new, |file| terms::escape(file.path.as_bytes(), 4096)))
        })
        .collect();
    let mut silent = Vec::new();
    for name in layers.jail_names() {
        let values = layers.jail(name);
        let enabled =
            values.get("enabled").and_then(|held| held.last()).is_some_and(|held| held.field.meaning == Meaning::Bool(true));
        if !enabled && !layers.is_users(name) {
            silent.push(name.to_owned());
            continue;
        }
        let begin = out.len();
        table(&mut out, &layers, &format!("jail.{name}"), Place::Jail, &values, true);
        let used = match values.get("filter").and_then(|held| held.last()).map(|held| &held.field.meaning) {
            Some(Meaning::Filter(filter)) => filter.name.as_str(),
            _ => name,
        };
        let from = filters.get(used).map_or_else(|| "which does not exist".to_owned(), |path| format!("which is {path}"));
        match out[begin..].iter_mut().find(|shown| shown.key == "filter") {
            Some(shown) => shown.origins.push(from),
            None => out.insert(
                begin,
                Shown {
                    table: format!("jail.{name}"),
                    key: "filter".to_owned(),
                    value: literal(name),
                    origins: vec!["the jail's name".to_owned(), from],
                },
            ),
        }
    }
    (out, silent)
}

/// The values of one table in the order of the key table; with built-in ones where nobody wrote any.
fn table(out: &mut Vec<Shown>, layers: &Layers<'_>, name: &str, place: Place, values: &Values<'_>, builtin: bool) {
    for (path, key) in rows(place, "") {
        let shown = match values.get(&path) {
            Some(held) if !held.is_empty() => {
                let origin = |held: &Held<'_>| layers.place(if held.from_defaults { "defaults" } else { name }, &path, held);
                Shown {
                    table: name.to_owned(),
                    key: path.clone(),
                    value: together(held),
                    origins: held.iter().map(origin).collect(),
                }
            }
            _ if builtin && !key.default.is_empty() => {
                Shown { table: name.to_owned(), key: path, value: key.default.to_owned(), origins: vec!["built-in".to_owned()] }
            }
            _ => continue,
        };
        out.push(shown);
    }
}

/// The keys of a place that this version carries out, tables opened.
fn rows(place: Place, before: &str) -> Vec<(String, &'static Key)> {
    let mut out = Vec::new();
    for key in keys::of(place).filter(|key| key.status == Status::Now) {
        match key.kind {
            Kind::Table(inner) => out.extend(rows(inner, &format!("{before}{}.", key.name))),
            _ => out.push((format!("{before}{}", key.name), key)),
        }
    }
    out
}

/// One value, or one list of all that adds up.
fn together(held: &[Held<'_>]) -> String {
    match held {
        [one] => toml(&one.field.node),
        several => {
            let items: Vec<String> =
                several.iter().flat_map(|held| super::filters::entries(&held.field.node).iter().map(toml)).collect();
            format!("[{}]", items.join(", "))
        }
    }
}

/// A value as TOML.
fn toml(node: &Node) -> String {
    match &node.value {
        Raw::Bool(yes) => yes.to_string(),
        Raw::Integer(number) => number.map_or_else(|| "\"too large\"".to_owned(), |number| number.to_string()),
        Raw::Float(number) => format!("{number:?}"),
        Raw::Text(text) | Raw::Word(text) => literal(text),
        Raw::Date => "\"a date\"".to_owned(),
        Raw::List(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Raw::Table(table) => {
            let items: Vec<String> = table.iter().map(|(key, entry)| format!("{} = {}", bare(key), toml(&entry.node))).collect();
            format!("{{ {} }}", items.join(", "))
        }
    }
}

/// A key, in quotes where TOML wants them.
fn bare(key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if plain { key.to_owned() } else { literal(key) }
}

/// A string as TOML: in apostrophes where that spares backslashes, else in quotes with everything that could fool a terminal escaped.
fn literal(text: &str) -> String {
    if text.contains(['\\', '"'])
        && !text.contains('\'')
        && terms::escape(text.as_bytes(), usize::MAX) == text.replace('\\', "\\\\")
    {
        return format!("'{text}'");
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        let mut buffer = [0; 4];
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if terms::escape(c.encode_utf8(&mut buffer).as_bytes(), 4).starts_with('\\') => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A filter with its parameters, as fail2ban writes it.
pub fn filter(filter: &FilterName) -> String {
    let params: Vec<String> = filter.params.iter().map(|(key, (values, _))| format!("{key}={}", values.join(" "))).collect();
    if params.is_empty() { filter.name.clone() } else { format!("{}[{}]", filter.name, params.join(", ")) }
}

/// What differs between two configurations, a line each: what a reload says.
pub fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut out = Vec::new();
    compare(&mut out, "", &shared(old), &shared(new));
    let names: std::collections::BTreeSet<&str> = old.jails.iter().chain(&new.jails).map(|jail| jail.name.as_str()).collect();
    for name in names {
        match (old.jail(name), new.jail(name)) {
            (None, _) => out.push(format!("jail {name}: added")),
            (_, None) => out.push(format!("jail {name}: removed")),
            (Some(old), Some(new)) => compare(&mut out, &format!("jail {name}: "), &described(old), &described(new)),
        }
    }
    out
}

fn compare(out: &mut Vec<String>, before: &str, old: &[(&'static str, String)], new: &[(&'static str, String)]) {
    for ((key, old), (_, new)) in old.iter().zip(new) {
        if old != new {
            let or_nothing = |text: &str| {
                if text.is_empty() {
                    "nothing".to_owned()
                } else {
                    terms::escape(text.as_bytes(), super::source::floor(text, 120))
                }
            };
            out.push(format!("{before}{key}: {} -> {}", or_nothing(old), or_nothing(new)));
        }
    }
}

/// What all jails share.
fn shared(config: &Config) -> Vec<(&'static str, String)> {
    let (daemon, nft, evidence) = (&config.daemon, &config.nft, &config.evidence);
    let log = match &daemon.log {
        Log::Stderr => "stderr".to_owned(),
        Log::Journal => "journal".to_owned(),
        Log::File(path) => path.display().to_string(),
    };
    vec![
        ("socket", daemon.socket.display().to_string()),
        ("readers", daemon.readers.clone().unwrap_or_default()),
        ("operators", daemon.operators.clone().unwrap_or_default()),
        ("state_dir", daemon.state_dir.display().to_string()),
        ("log", log),
        ("loglevel", daemon.loglevel.name().to_owned()),
        ("table", nft.table.clone()),
        ("ipv6", format!("{:?}", nft.ipv6).to_lowercase()),
        ("priority", format!("{:?}, bridge {}", nft.priority, nft.bridge_priority)),
        ("owner", nft.owner.to_string()),
        ("set_size", nft.set_size.map(|size| size.to_string()).unwrap_or_default()),
        ("element_counters", format!("{:?}", nft.element_counters).to_lowercase()),
        ("evidence", format!("{} lines, {}, {:?}", evidence.lines, evidence.keep, evidence.accounts).to_lowercase()),
        ("ignoreip", ignored(&config.ignore)),
    ]
}

fn ignored(list: &IgnoreList) -> String {
    list.nets.iter().map(|net| shown(*net)).chain(list.names.iter().cloned()).collect::<Vec<_>>().join(" ")
}

/// A jail, key by key.
fn described(jail: &Jail) -> Vec<(&'static str, String)> {
    let filter = |used: &FilterUse| {
        let params: Vec<String> = used.params.iter().map(|(key, values)| format!("{key}={}", values.join(" "))).collect();
        if params.is_empty() { used.name.clone() } else { format!("{}[{}]", used.name, params.join(", ")) }
    };
    let ports = match &jail.ports {
        Ports::All => "all".to_owned(),
        Ports::List(list) => {
            list.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect::<Vec<_>>().join(" ")
        }
    };
    let protocols = match &jail.protocols {
        Protocols::All => "all".to_owned(),
        Protocols::List(list) => list.iter().map(|protocol| protocol.name()).collect::<Vec<_>>().join(" "),
    };
    let bantime = match jail.bantime {
        Lasting::For(span) => span.to_string(),
        Lasting::Permanent => "permanent".to_owned(),
    };
    // Patterns are long: that they differ is said, not how.
    let patterns = jail.filter.as_ref().map_or_else(String::new, |used| {
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&format!("{:?}", used.definition), &mut hasher);
        format!("{:08x}", std::hash::Hasher::finish(&hasher) as u32)
    });
    vec![
        ("filter", jail.filter.as_ref().map(filter).unwrap_or_default()),
        ("patterns", patterns),
        ("backend", format!("{:?}", jail.backend).to_lowercase()),
        ("logpath", jail.logpath.join(" ")),
        ("journalmatch", jail.entries.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("journal", jail.journal.to_string()),
        ("port", ports),
        ("protocol", protocols),
        ("chain_hook", jail.hooks.iter().map(|hook| hook.name()).collect::<Vec<_>>().join(" ")),
        ("family", jail.families.iter().map(|family| family.name()).collect::<Vec<_>>().join(" ")),
        ("priority", jail.priority.map(|priority| priority.to_string()).unwrap_or_default()),
        ("dnat", jail.dnat.to_string()),
        ("blocktype", format!("{:?}", jail.blocktype).to_lowercase()),
        ("maxretry", jail.maxretry.to_string()),
        ("findtime", jail.findtime.to_string()),
        ("bantime", bantime),
        ("window", format!("{:?}", jail.window).to_lowercase()),
        ("ignoreip", ignored(&jail.ignore)),
        ("ignoreip_only", jail.ignore_only.to_string()),
        ("ignoreself", jail.ignoreself.to_string()),
        ("ipv4_prefix", jail.ipv4_prefix.to_string()),
        ("ipv6_prefix", jail.ipv6_prefix.to_string()),
        ("aggregate", jail.aggregate.map(|aggregate| aggregate.to_string()).unwrap_or_default()),
        ("logtimezone", jail.logtimezone.as_ref().map(|zone| format!("{zone:?}")).unwrap_or_default()),
        ("observe", jail.observe.to_string()),
        ("label", jail.label.clone().unwrap_or_default()),
        ("increment", format!("{:?}", jail.increment)),
    ]
}

/// `banset.toml` with every key and what it is for, each commented out with an example of a value. It loads as it is, and with every
/// key uncommented.
pub fn example() -> String {
    let mut out = String::from(
        "\
# banset.toml: every key, and what it is for. A key that is commented out has the value that its comment names, or none.
#
# Layers, later ones win: the jails and filters that are compiled in; /etc/banset/filter.d/*.toml and
# /etc/banset/jail.d/*.toml (keys at the top, the file's name is the name); this file; /etc/banset/banset.d/*.toml;
# the environment, as BANSET_DAEMON__KEY and BANSET_NFT__KEY. For a key of a jail: what you write of the jail, then your
# [defaults], then the shipped jail.
#
# Every list takes a single value, too, or one text with blanks or commas. Lengths of time are written as 90s, 10m, 1h30m, 1d, 2w,
# 1mo, 1y or seconds.
#
# `banset check` tells every mistake, `banset config show` every value with its origin.
",
    );
    let table = |out: &mut String, header: &str, place: Place, about: &str| {
        let _ = writeln!(out, "\n# {about}\n{header}");
        annotate(out, place);
    };
    table(&mut out, "[daemon]", Place::Daemon, "The daemon itself.");
    table(&mut out, "[nft]", Place::Nft, "Our table in the kernel.");
    table(
        &mut out,
        "#[nft.priority]",
        Place::Priority,
        "Where each base chain stands among others at its hook: smaller is earlier.",
    );
    table(&mut out, "[evidence]", Place::Evidence, "What is kept of the lines behind a ban.");
    table(&mut out, "[defaults]", Place::Jail, "What every jail has that does not say otherwise. A jail has the same keys.");
    out.push_str("\n# A jail that is compiled in needs no more than this; those there are: `banset config show`.\n");
    out.push_str("#[jail.sshd]\n#enabled = true\n");
    out.push_str("\n# A jail of your own.\n#[jail.example]\n#enabled = true\n#filter = \"example\"\n#logpath = \"/var/log/exampled.log\"\n#port = 4242\n");
    out.push_str("#ignoreip_only = \"192.0.2.1\"\n");
    table(
        &mut out,
        "#[filter.example]",
        Place::Filter,
        "A filter of your own. In filter.d/example.toml the same keys stand at the top.",
    );
    table(&mut out, "#[filter.example.mode.aggressive]", Place::Mode, "A variant that a jail chooses with mode.");
    out.push_str("\n# What a jail may set, one kind each: filter = { name = \"example\", proxy = \"10.0.0.2\" }; a pattern pulls it in as <proxy>.\n");
    for key in keys::of(Place::Param) {
        let _ = writeln!(out, "#[filter.example.param.{}]\n# {}\n#{} = {}", key.name, key.about, key.name, key.example);
    }
    let _ = writeln!(out, "\n# The evidence: what the filter must say of a line. `banset check` tries every sample.");
    for (expectation, other) in [("addr", "ok"), ("ok", "addr")] {
        let _ = writeln!(out, "#[[filter.example.sample]]");
        for key in keys::of(Place::Sample).filter(|key| key.name != other) {
            // The second sample says only what the first could not.
            if expectation == "addr" || matches!(key.name, "line" | "ok") {
                let example = if expectation == "ok" && key.name == "line" {
                    "'2026-01-02T03:04:06Z mx exampled[7]: login of bob from 192.0.2.1 succeeded'"
                } else {
                    key.example
                };
                let _ = writeln!(out, "# {}\n#{} = {example}", key.about, key.name);
            }
        }
    }
    out.push_str("\n# Not there yet; until then each of these is a mistake.\n");
    for key in keys::KEYS.iter().filter(|key| key.status == Status::Planned && key.place != Place::Top) {
        let _ = writeln!(out, "# later: {}{}: {}", section(key.place), key.name, key.about);
    }
    for key in keys::of(Place::Top).filter(|key| key.status == Status::Planned) {
        let _ = writeln!(out, "# later: [{}]: {}", key.name, key.about);
    }
    out
}

/// How a key's table is called before the key.
const fn section(place: Place) -> &'static str {
    match place {
        Place::Increment => "increment.",
        Place::Nft => "[nft] ",
        Place::Priority => "[nft] priority.",
        Place::Daemon => "[daemon] ",
        Place::Evidence => "[evidence] ",
        Place::Mail => "[mail] ",
        _ => "",
    }
}

fn annotate(out: &mut String, place: Place) {
    for key in keys::of(place).filter(|key| key.status == Status::Now) {
        match (key.kind, key.name) {
            // Tables of their own, after this one.
            (Kind::Table(Place::Priority) | Kind::Named(_) | Kind::Tables(_), _) => continue,
            // Only in a jail, where it is shown.
            (_, "ignoreip_only") => {
                let _ = writeln!(out, "# {}", key.about);
                let _ = writeln!(out, "# ignoreip_only = {}", key.example);
                continue;
            }
            _ => {}
        }
        let value = match (key.kind, key.default, key.example) {
            (Kind::Table(inner), ..) => {
                let items: Vec<String> = keys::of(inner).map(|key| format!("{} = {}", key.name, key.example)).collect();
                format!("{{ {} }}", items.join(", "))
            }
            (Kind::Variables, ..) => "{ door = '(?:front|back)' }".to_owned(),
            (_, "", "") => "[]".to_owned(),
            (_, "", example) => example.to_owned(),
            (_, default, _) => default.to_owned(),
        };
        let unset = if key.default.is_empty() && matches!(place, Place::Daemon | Place::Nft | Place::Jail) {
            " (no value unless written; this is an example)"
        } else {
            ""
        };
        let _ = writeln!(out, "# {}{unset}\n#{} = {value}", key.about, key.name);
    }
}
