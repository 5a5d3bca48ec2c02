//! Layers: which files there are, what each says, and whose word holds.
//!
//! Every file is read once, with places, and each of its values is understood as it stands there ([`Section`]). Which of
//! several values holds is figment's decision: each file is a provider, in the order of precedence, and the tag that figment
//! leaves on a merged value leads back to the file and line it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use figment::value::{Dict, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::filters::{self, FilterWritten};
use super::keys::{self, Key, Kind, Place, Status, nearest};
use super::report::{Concern, Findings};
use super::source::{Source, quoted};
use super::sources::Role;
use super::values::{self, Meaning, name_fault};
use super::written::{self, Node, Raw, Table};
use crate::terms;

/// The keys of one table by their names of today.
pub type Section = BTreeMap<&'static str, Field>;

/// A key, its value as written, and what that means.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its row.
    pub key: &'static Key,
    /// Where the key stands.
    pub at: Range<usize>,
    /// The value as written.
    pub node: Node,
    /// What it means.
    pub meaning: Meaning,
    /// The keys of the table that it is.
    pub inner: Section,
}

/// A jail as one file writes it.
#[derive(Clone, Debug)]
pub struct JailWritten {
    /// The name in its header; nothing where the file's name is the name.
    pub header: Option<Range<usize>>,
    /// Its keys.
    pub section: Section,
}

/// What one file says.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// The file's number.
    pub file: usize,
    /// Whether it is compiled in.
    pub shipped: bool,
    /// `[defaults]`
    pub defaults: Section,
    /// `[jail.NAME]`
    pub jails: BTreeMap<String, JailWritten>,
    /// `[nft]`
    pub nft: Section,
    /// `[evidence]`
    pub evidence: Section,
    /// `[daemon]`
    pub daemon: Section,
    /// `[filter.NAME]`
    pub filters: BTreeMap<String, FilterWritten>,
}

/// Reads one file as written: collects its mistakes, keeps what is right.
pub struct Reader<'a> {
    pub source: &'a Source,
    pub file: usize,
    pub findings: &'a mut Findings,
    /// Lines that are not TOML: what was guessed of them is not judged.
    spoiled: BTreeSet<usize>,
}

impl Reader<'_> {
    /// A mistake of this file.
    pub fn mistake(&mut self, concern: &Concern, span: &Range<usize>, what: String, help: impl Into<Option<String>>) {
        if !self.spoiled.contains(&self.source.line(span.start)) {
            self.findings.mistake(concern, self.file, Some(span.clone()), what, help.into());
        }
    }

    /// Reads the keys of a table, each by its row.
    pub fn section(&mut self, place: Place, table: &Table, concern: &Concern) -> Section {
        let mut section = Section::new();
        for (name, entry) in table {
            let key = match keys::find(place, name) {
                Some(key) => key,
                None => match keys::renamed(place, name) {
                    Some(key) if table.contains_key(key.name) => {
                        self.mistake(
                            concern,
                            &entry.key,
                            format!("{name}: the old name of {}, which is written too", key.name),
                            format!("keep {}", key.name),
                        );
                        continue;
                    }
                    Some(key) => {
                        self.findings.warning(
                            self.file,
                            Some(entry.key.clone()),
                            format!("{name}: now called {}", key.name),
                            Some(format!("write {}", key.name)),
                        );
                        key
                    }
                    None => {
                        self.unknown(place, name, &entry.key, &entry.node, concern);
                        continue;
                    }
                },
            };
            // An ignore list that is not understood could ban those it names: it concerns every jail.
            let concern = if key.kind == Kind::Ignore && place == Place::Jail { &Concern::All } else { concern };
            if key.status == Status::Planned {
                self.mistake(
                    concern,
                    &entry.key,
                    format!("{name}: known, but this version does not carry it out yet"),
                    "leave it out".to_owned(),
                );
                continue;
            }
            let inner = match (key.kind, &entry.node.value) {
                (Kind::Table(inner), Raw::Table(table)) => self.section(inner, table, concern),
                (Kind::Table(_), other) => {
                    self.mistake(
                        concern,
                        &entry.node.span,
                        format!("{name}: takes a table, not {}", other.noun()),
                        format!("write {name} = {{ key = value }}"),
                    );
                    continue;
                }
                _ => Section::new(),
            };
            let meaning = values::mean(key, &entry.node, self.source);
            if let (Err(_), "enabled", Concern::Jail(jail)) = (&meaning, key.name, concern) {
                self.findings.enabling.insert(jail.clone());
            }
            match meaning {
                Ok(meaning) => {
                    if let Meaning::Ignore(list) = &meaning
                        && place == Place::Jail
                    {
                        for every in list.nets.iter().filter(|net| net.prefix() == 0) {
                            let what = format!("{name}: {every} is every address there is: none of them can ever be banned");
                            let help = "write the addresses that are yours".to_owned();
                            self.findings.warning(self.file, Some(entry.node.span.clone()), what, Some(help));
                        }
                    }
                    section.insert(key.name, Field { key, at: entry.key.clone(), node: entry.node.clone(), meaning, inner });
                }
                Err(wrongs)
                    if matches!(entry.node.value, Raw::Table(_))
                        && matches!(key.name, "bantime" | "ignoreip" | "port" | "logpath") =>
                {
                    let help = if key.name == "bantime" {
                        "growth is a table of its own: increment = { enabled = true }".to_owned()
                    } else {
                        format!("write {} = {}", key.name, key.example)
                    };
                    for wrong in wrongs {
                        self.mistake(concern, &wrong.span, format!("{name}: {}", wrong.what), help.clone());
                    }
                }
                Err(wrongs) => {
                    for wrong in wrongs {
                        self.mistake(concern, &wrong.span, format!("{name}: {}", wrong.what), wrong.help);
                    }
                }
            }
        }
        section
    }

    fn unknown(&mut self, place: Place, name: &str, at: &Range<usize>, node: &Node, concern: &Concern) {
        let shown = super::source::shown(name);
        if self.findings.is_crowded() {
            self.mistake(concern, at, format!("{shown}: unknown key"), None);
            return;
        }
        if let Some(help) = keys::habit(place, name) {
            self.mistake(concern, at, format!("{shown}: a key of fail2ban that has no place here"), help.to_owned());
            return;
        }
        let is_table = matches!(node.value, Raw::Table(_));
        let near = nearest(
            name,
            keys::of(place).filter(|key| is_table || !matches!(key.kind, Kind::Table(_) | Kind::Named(_))).map(|key| key.name),
        );
        let elsewhere = |other: Place| keys::find(other, name).is_some_and(|key| key.status == Status::Now);
        let help = match (place, name) {
            (Place::Top, "DEFAULT" | "default" | "Default") => "write [defaults]".to_owned(),
            (Place::Top, _) if is_table && near.is_none() && name_fault(name).is_none() => {
                format!("write [jail.{name}] for a jail of that name")
            }
            (Place::Top, _) if !is_table && elsewhere(Place::Jail) => format!("write {name} in [defaults] or in a [jail.NAME]"),
            (Place::Top, _) if !is_table && elsewhere(Place::Daemon) => format!("write {name} in [daemon]"),
            (Place::Top, _) if !is_table && elsewhere(Place::Nft) => format!("write {name} in [nft]"),
            (Place::Jail | Place::Filter, "jail" | "filter" | "defaults" | "nft" | "daemon" | "evidence") if is_table => {
                "the file's name is the name: write its keys at the top, other tables in banset.toml or banset.d".to_owned()
            }
            (Place::Filter, "Definition" | "INCLUDES" | "Init") => {
                "write the keys at the top of the file, without a header".to_owned()
            }
            (Place::Jail, _) if is_table && near.is_none() => {
                "write the keys at the top of the jail, without a header".to_owned()
            }
            _ => match near {
                Some(near) => format!("did you mean {near}?"),
                None if place == Place::Jail && elsewhere(Place::Daemon) => format!("write {name} in [daemon]"),
                None if place == Place::Jail && elsewhere(Place::Nft) => format!("write {name} in [nft]"),
                None if place != Place::Jail && elsewhere(Place::Jail) => format!("write {name} in a jail"),
                None => "leave it out".to_owned(),
            },
        };
        self.mistake(concern, at, format!("{shown}: unknown key"), help);
    }

    fn named<'t>(&mut self, what: &str, node: &'t Node) -> Vec<(&'t String, &'t Range<usize>, &'t Table)> {
        let Raw::Table(tables) = &node.value else {
            self.mistake(
                &Concern::All,
                &node.span,
                format!("{what}: takes tables by name, not {}", node.value.noun()),
                format!("write [{what}.NAME]"),
            );
            return Vec::new();
        };
        let mut out = Vec::new();
        for (name, entry) in tables {
            let shown = super::source::shown(name);
            let keyless = !matches!(entry.node.value, Raw::Table(_));
            let concern = match what {
                // A key without a jail: nothing runs less for it.
                _ if keyless => Concern::Nothing,
                "jail" => Concern::Jail(name.clone()),
                _ => Concern::Filter(name.clone()),
            };
            if !self.good_name(what, name, &entry.key, &concern) {
                continue;
            }
            match &entry.node.value {
                Raw::Table(table) => out.push((name, &entry.key, table)),
                other => {
                    let help = if keys::find(if what == "jail" { Place::Jail } else { Place::Filter }, name).is_some() {
                        format!("a {what} has a name: write [{what}.NAME] above it")
                    } else {
                        format!("write [{what}.{shown}]")
                    };
                    self.mistake(
                        &concern,
                        &entry.node.span,
                        format!("{what} {shown}: takes a table, not {}", other.noun()),
                        help,
                    );
                }
            }
        }
        out
    }

    /// Whether a jail or filter may be called that; says so if not.
    fn good_name(&mut self, what: &str, name: &str, at: &Range<usize>, concern: &Concern) -> bool {
        if let Some(fault) = name_fault(name) {
            let help = if name.len() > 200 {
                "choose a shorter name".to_owned()
            } else {
                "write a letter, then letters, digits, \"-\" and \"_\"".to_owned()
            };
            self.mistake(concern, at, format!("{what} {}: the name {fault}", quoted(name)), help);
            return false;
        }
        if what == "jail" && (name == super::run::MANUAL || name == "ignore") {
            let taken = if name == "ignore" {
                "the sets ignore-v4 and ignore-v6 hold the ignored addresses"
            } else {
                "bans without a jail stand there"
            };
            self.mistake(concern, at, format!("jail {name}: the name is taken: {taken}"), "choose another name".to_owned());
            return false;
        }
        true
    }
}

/// The lines of which nothing else is said: those that are not TOML, and the keys below a header that is not.
fn spoiled(source: &Source, errors: &[written::Syntax]) -> BTreeSet<usize> {
    let mut out = BTreeSet::new();
    for error in errors {
        let mut line = source.line(error.span.start);
        let is_header = |line: usize| source.text_of(line).trim_start().starts_with('[');
        let header = is_header(line);
        out.insert(line);
        while header && line < source.line_count() && !is_header(line + 1) && out.insert(line + 1) {
            line += 1;
        }
    }
    out
}

/// Reads a file as its role says.
pub fn read(source: &Source, file: usize, role: &Role, findings: &mut Findings) -> Layer {
    let mut layer = Layer { file, shipped: role.is_shipped(), ..Layer::default() };
    let (table, errors) = match role {
        Role::Environment => (super::sources::environment_table(source), Vec::new()),
        _ => written::read(source),
    };
    let spoiled = spoiled(source, &errors);
    for error in errors {
        let key = source.text_of(source.line(error.span.start)).split('=').next().unwrap_or("").trim();
        match keys::habit(Place::Jail, key).or_else(|| keys::habit(Place::Daemon, key)) {
            Some(help) => {
                let what = format!("{key}: a key of fail2ban that has no place here");
                findings.mistake(&Concern::All, file, Some(error.span), what, Some(help.to_owned()));
            }
            None => findings.mistake(&Concern::All, file, Some(error.span), error.what, error.help),
        }
    }
    let mut reader = Reader { source, file, findings, spoiled };
    match role {
        Role::ShippedJail(name) | Role::Jail(name) => {
            let concern = Concern::Jail(name.clone());
            if reader.good_name("jail", name, &(0..0), &concern) {
                let section = reader.jail(name, &table);
                layer.jails.insert(name.clone(), JailWritten { header: None, section });
            }
        }
        Role::ShippedFilter(name) | Role::Filter(name) => {
            let concern = Concern::Filter(name.clone());
            if reader.good_name("filter", name, &(0..0), &concern) {
                layer.filters.insert(name.clone(), filters::read(&mut reader, name, &(0..0), &table));
            }
        }
        Role::Main | Role::DropIn | Role::Environment => reader.top(&table, &mut layer, role),
    }
    layer
}

impl Reader<'_> {
    fn jail(&mut self, name: &str, table: &Table) -> Section {
        self.section(Place::Jail, table, &Concern::Jail(name.to_owned()))
    }

    fn top(&mut self, table: &Table, layer: &mut Layer, role: &Role) {
        for (name, entry) in table {
            let node = &entry.node;
            if *role == Role::Environment && !matches!(name.as_str(), "daemon" | "nft") {
                let (what, help) = super::sources::not_from_environment(name);
                self.mistake(&Concern::All, &entry.key, what, help);
                continue;
            }
            match name.as_str() {
                "defaults" | "nft" | "daemon" | "evidence" => {
                    let Raw::Table(keys) = &node.value else {
                        self.mistake(
                            &Concern::All,
                            &node.span,
                            format!("{name}: takes a table, not {}", node.value.noun()),
                            format!("write [{name}]"),
                        );
                        continue;
                    };
                    let place = match name.as_str() {
                        "defaults" => Place::Jail,
                        "nft" => Place::Nft,
                        "evidence" => Place::Evidence,
                        _ => Place::Daemon,
                    };
                    // What is kept of a line changes nothing about who is banned.
                    let concern = if place == Place::Evidence { Concern::Nothing } else { Concern::All };
                    let section = self.section(place, keys, &concern);
                    if let Some(only) = section.get("ignoreip_only") {
                        self.mistake(
                            &Concern::All,
                            &only.at,
                            "ignoreip_only: belongs in a jail, where it replaces the ignoreip of [defaults]".to_owned(),
                            "write ignoreip".to_owned(),
                        );
                    }
                    match name.as_str() {
                        "defaults" => layer.defaults = section,
                        "nft" => layer.nft = section,
                        "evidence" => layer.evidence = section,
                        _ => layer.daemon = section,
                    }
                }
                "jail" => {
                    for (name, at, table) in self.named("jail", node) {
                        let section = self.jail(name, table);
                        layer.jails.insert(name.clone(), JailWritten { header: Some(at.clone()), section });
                    }
                }
                "filter" => {
                    for (name, at, table) in self.named("filter", node) {
                        let filter = filters::read(self, name, at, table);
                        layer.filters.insert(name.clone(), filter);
                    }
                }
                _ => match keys::find(Place::Top, name) {
                    // Mail, hooks and metrics change nothing about who is banned: a mistake, but no reason to stop.
                    Some(_) => self.mistake(
                        &Concern::Nothing,
                        &entry.key,
                        format!("{name}: known, but this version does not carry it out yet"),
                        "leave it out".to_owned(),
                    ),
                    None => self.unknown(Place::Top, name, &entry.key, node, &Concern::All),
                },
            }
        }
    }
}

/// Every layer, and the values that hold.
pub struct Layers<'a> {
    layers: &'a [Layer],
    /// Shipped files.
    shipped: Figment,
    /// The user's files and the environment.
    user: Figment,
    shipped_jails: Dict,
    user_jails: Dict,
    defaults: Dict,
}

/// A value that holds, and the layer that says it.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    /// Which layer.
    pub layer: &'a Layer,
    /// Whether it stands in `[defaults]`.
    pub from_defaults: bool,
    /// The key and its value.
    pub field: &'a Field,
}

/// The values that hold for one table, by key; the keys of a table inside it as `outer.inner`.
pub type Values<'a> = BTreeMap<String, Vec<Held<'a>>>;

/// One layer, or the `[defaults]` of one, as figment sees it.
struct Provided<'a> {
    number: usize,
    layer: &'a Layer,
    source: &'a Source,
    defaults: bool,
}

impl Provider for Provided<'_> {
    fn metadata(&self) -> Metadata {
        // Where each key stands, for whoever asks figment for a value's origin in its source's own words.
        let mut lines = BTreeMap::new();
        let mut note = |table: &str, section: &Section| {
            for (path, field) in flat(section) {
                lines.insert(format!("{table}.{path}"), self.source.line(field.at.start));
            }
        };
        if self.defaults {
            note("defaults", &self.layer.defaults);
        } else {
            note("nft", &self.layer.nft);
            note("evidence", &self.layer.evidence);
            note("daemon", &self.layer.daemon);
            self.layer.jails.iter().for_each(|(name, jail)| note(&format!("jail.{name}"), &jail.section));
        }
        let path = terms::escape(self.source.path.as_bytes(), 4096);
        let shown = path.clone();
        let place = move |_: &Profile, keys: &[&str]| {
            lines.get(&keys.join(".")).map_or_else(|| shown.clone(), |line| format!("{shown}:{line}"))
        };
        let number = format!("{}{}", if self.defaults { "defaults " } else { "" }, self.number);
        Metadata::from(path, number).interpolater(place)
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let mut top = Dict::new();
        if self.defaults {
            top.insert("defaults".to_owned(), Value::from(dict(&self.layer.defaults)));
        } else {
            let jails: Dict =
                self.layer.jails.iter().map(|(name, jail)| (name.clone(), Value::from(dict(&jail.section)))).collect();
            // A filter replaces one of its name whole, so figment sees a single value.
            let filters: Dict =
                self.layer.filters.keys().map(|name| (name.clone(), Value::from(self.source.path.as_str()))).collect();
            top.insert("jail".to_owned(), Value::from(jails));
            top.insert("filter".to_owned(), Value::from(filters));
            top.insert("nft".to_owned(), Value::from(dict(&self.layer.nft)));
            top.insert("evidence".to_owned(), Value::from(dict(&self.layer.evidence)));
            top.insert("daemon".to_owned(), Value::from(dict(&self.layer.daemon)));
        }
        Ok(Map::from([(Profile::Default, top)]))
    }
}

/// A piece of what figment merged, given back to it: its tags stay.
struct Piece(Dict);

impl Provider for Piece {
    fn metadata(&self) -> Metadata {
        Metadata::named("piece")
    }
    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.0.clone())]))
    }
}

/// Keys whose values add up from `[defaults]` to the jail, where others replace.
fn adds(name: &str) -> bool {
    matches!(name, "ignoreip" | "failregex_add" | "ignoreregex_add")
}

fn dict(section: &Section) -> Dict {
    section.iter().map(|(name, field)| ((*name).to_owned(), value(field))).collect()
}

fn value(field: &Field) -> Value {
    match (&field.meaning, field.key.kind) {
        (_, Kind::Table(_)) => Value::from(dict(&field.inner)),
        (Meaning::Texts(texts), _) => Value::from(texts.iter().map(String::as_str).collect::<Vec<_>>()),
        (Meaning::Ignore(list), _) => {
            let nets = list.nets.iter().map(|net| terms::shown(*net));
            Value::from(nets.chain(list.names.iter().cloned()).collect::<Vec<String>>())
        }
        // A filter and its parameters replace whole: to figment they are one word.
        (Meaning::Filter(filter), _) => Value::from(super::show::filter(filter)),
        _ => raw(&field.node),
    }
}

fn raw(node: &Node) -> Value {
    match &node.value {
        Raw::Bool(yes) => Value::from(*yes),
        Raw::Integer(number) => Value::from(number.unwrap_or(i64::MAX)),
        Raw::Float(number) => Value::from(*number),
        Raw::Text(text) | Raw::Word(text) => Value::from(text.as_str()),
        Raw::Date => Value::from(""),
        Raw::List(items) => Value::from(items.iter().map(raw).collect::<Vec<_>>()),
        Raw::Table(table) => Value::from(table.iter().map(|(key, entry)| (key.clone(), raw(&entry.node))).collect::<Dict>()),
    }
}

/// A section's fields by path, tables opened.
fn flat(section: &Section) -> Vec<(String, &Field)> {
    let mut out = Vec::new();
    for (name, field) in section {
        match field.key.kind {
            Kind::Table(_) => out.extend(flat(&field.inner).into_iter().map(|(inner, field)| (format!("{name}.{inner}"), field))),
            _ => out.push(((*name).to_owned(), field)),
        }
    }
    out
}

fn find<'a>(section: &'a Section, path: &str) -> Option<&'a Field> {
    match path.split_once('.') {
        Some((outer, inner)) => find(&section.get(outer)?.inner, inner),
        None => section.get(path),
    }
}

fn inner(dict: &Dict, key: &str) -> Dict {
    dict.get(key).and_then(Value::as_dict).cloned().unwrap_or_default()
}

impl<'a> Layers<'a> {
    /// Merges the layers, which come in the order of precedence, the weakest first.
    pub fn merge(layers: &'a [Layer], files: &'a [Source]) -> Layers<'a> {
        let gather = |shipped: bool| {
            let mut figment = Figment::new();
            for (number, layer) in layers.iter().enumerate().filter(|(_, layer)| layer.shipped == shipped) {
                let Some(source) = files.get(layer.file) else { continue };
                for defaults in [true, false] {
                    figment = figment.merge(Provided { number, layer, source, defaults });
                }
            }
            figment
        };
        let (shipped, user) = (gather(true), gather(false));
        let merged =
            |figment: &Figment| figment.data().ok().and_then(|mut map| map.remove(&Profile::Default)).unwrap_or_default();
        let (of_shipped, of_user) = (merged(&shipped), merged(&user));
        Layers {
            layers,
            shipped,
            user,
            shipped_jails: inner(&of_shipped, "jail"),
            user_jails: inner(&of_user, "jail"),
            defaults: inner(&of_user, "defaults"),
        }
    }

    /// The names of all jails.
    pub fn jail_names(&self) -> BTreeSet<&str> {
        self.shipped_jails.keys().chain(self.user_jails.keys()).map(String::as_str).collect()
    }

    /// Whether the user wrote of a jail of that name.
    pub fn is_users(&self, jail: &str) -> bool {
        self.user_jails.contains_key(jail)
    }

    /// What holds for a jail: the user's jail over the user's `[defaults]` over the shipped jail.
    pub fn jail(&self, name: &str) -> Values<'a> {
        let mut figment = Figment::new();
        for piece in [inner(&self.shipped_jails, name), self.defaults.clone(), inner(&self.user_jails, name)] {
            let (adding, replacing): (Dict, Dict) = piece.into_iter().partition(|(key, _)| adds(key));
            figment = figment.merge(Piece(replacing)).admerge(Piece(adding));
        }
        self.held(&figment, |layer| layer.jails.get(name).map(|jail| &jail.section))
    }

    /// What holds in `[defaults]`.
    pub fn defaults(&self) -> Values<'a> {
        self.held(&Figment::from(Piece(self.defaults.clone())), |_| None)
    }

    /// What holds in `[nft]`.
    pub fn nft(&self) -> Values<'a> {
        self.held(&self.user.focus("nft"), |layer| Some(&layer.nft))
    }

    /// What holds in `[evidence]`.
    pub fn evidence(&self) -> Values<'a> {
        self.held(&self.user.focus("evidence"), |layer| Some(&layer.evidence))
    }

    /// What holds in `[daemon]`.
    pub fn daemon(&self) -> Values<'a> {
        self.held(&self.user.focus("daemon"), |layer| Some(&layer.daemon))
    }

    /// The filters, each by the layer whose word holds.
    pub fn filters(&self) -> BTreeMap<&'a str, (&'a Layer, &'a FilterWritten)> {
        let mut out = BTreeMap::new();
        for figment in [&self.shipped, &self.user] {
            let Ok(value) = figment.find_value("filter") else { continue };
            for (name, value) in value.as_dict().into_iter().flatten() {
                if let Some((layer, _)) = self.origin(value.tag())
                    && let Some((name, filter)) = layer.filters.get_key_value(name)
                {
                    out.insert(name.as_str(), (layer, filter));
                }
            }
        }
        out
    }

    /// The filter of that name that is compiled in.
    pub fn shipped_filter(&self, name: &str) -> Option<&'a FilterWritten> {
        self.layers.iter().filter(|layer| layer.shipped).find_map(|layer| layer.filters.get(name))
    }

    /// `path:line` of a key that holds, in figment's words.
    pub fn place(&self, table: &str, path: &str, tag_of: &Held<'_>) -> String {
        let keys: Vec<&str> = table.split('.').chain(path.split('.')).collect();
        let figment = if tag_of.layer.shipped { &self.shipped } else { &self.user };
        let number = self.layers.iter().position(|layer| std::ptr::eq(layer, tag_of.layer)).unwrap_or(usize::MAX);
        let wanted = format!("{}{number}", if tag_of.from_defaults { "defaults " } else { "" });
        let metadata =
            figment.metadata().find(|metadata| metadata.source.as_ref().and_then(|source| source.custom()) == Some(&wanted));
        metadata.map_or_else(String::new, |metadata| metadata.interpolate(&Profile::Default, &keys))
    }

    fn origin(&self, tag: Tag) -> Option<(&'a Layer, bool)> {
        let metadata = self.user.get_metadata(tag).or_else(|| self.shipped.get_metadata(tag))?;
        let number = metadata.source.as_ref()?.custom()?;
        let (number, defaults) = number.strip_prefix("defaults ").map_or((number, false), |number| (number, true));
        Some((self.layers.get(number.parse::<usize>().ok()?)?, defaults))
    }

    fn held(&self, figment: &Figment, section: impl Fn(&'a Layer) -> Option<&'a Section>) -> Values<'a> {
        let mut out = Values::new();
        let merged = figment.data().ok().and_then(|mut map| map.remove(&Profile::Default)).unwrap_or_default();
        self.gather(&merged, "", &section, &mut out);
        out
    }

    fn gather(&self, dict: &Dict, before: &str, section: &impl Fn(&'a Layer) -> Option<&'a Section>, out: &mut Values<'a>) {
        for (name, value) in dict {
            let path = format!("{before}{name}");
            let held = |tag: Tag| {
                let (layer, from_defaults) = self.origin(tag)?;
                let field = find(if from_defaults { &layer.defaults } else { section(layer)? }, &path)?;
                Some(Held { layer, from_defaults, field })
            };
            match value {
                Value::Array(_, items) if adds(name) => {
                    let mut all: Vec<Held<'a>> = items.iter().filter_map(|item| held(item.tag())).collect();
                    all.dedup_by(|a, b| std::ptr::eq(a.field, b.field));
                    out.insert(path, all);
                }
                _ => match held(value.tag()) {
                    Some(one) if !matches!(one.field.key.kind, Kind::Table(_)) => {
                        out.insert(path, vec![one]);
                    }
                    _ => {
                        if let Value::Dict(_, inner) = value {
                            self.gather(inner, &format!("{path}."), section, out);
                        }
                    }
                },
            }
        }
    }
}
