//! A filter as one file writes it, with the place of every pattern and sample.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use super::keys::Place;
use super::layers::{Field, Reader, Section};
use super::report::Concern;
use super::source::quoted;
use super::values::{self, Meaning};
use super::written::{Node, Raw, Table};
use crate::filter::Definition;
use crate::filter::definition::{Expect, Mode, Once, Param, Patterns, Sample};
use crate::terms;

/// A filter and where its parts stand.
#[derive(Clone, Debug)]
pub struct FilterWritten {
    /// What it says.
    pub definition: Definition,
    /// Where its name stands.
    pub at: Range<usize>,
    /// Where each entry of each key stands: `failregex`, `mode.aggressive.failregex`, `sample`.
    places: BTreeMap<(String, usize), Range<usize>>,
}

impl FilterWritten {
    /// Where an entry of a key stands, or else the key, or else the filter.
    pub fn place(&self, key: &str, index: usize) -> Range<usize> {
        let found = |key: &str| self.places.get(&(key.to_owned(), index)).or_else(|| self.places.get(&(key.to_owned(), 0)));
        found(key).or_else(|| found(key.rsplit('.').next().unwrap_or(key))).unwrap_or(&self.at).clone()
    }
}

/// Reads a filter's table.
pub fn read(reader: &mut Reader<'_>, name: &str, at: &Range<usize>, table: &Table) -> FilterWritten {
    let concern = Concern::Filter(name.to_owned());
    let section = reader.section(Place::Filter, table, &concern);
    let mut filter = FilterWritten { definition: Definition::default(), at: at.clone(), places: BTreeMap::new() };
    let definition = &mut filter.definition;
    definition.name = name.to_owned();
    definition.description = text(&section, "description");
    definition.tested = texts(&section, "tested");
    definition.patterns = patterns(&section);
    definition.datepattern = texts(&section, "datepattern");
    definition.journalmatch = texts(&section, "journalmatch");
    definition.maxlines = number(&section, "maxlines").unwrap_or(1);
    note(&mut filter.places, "", &section);
    if let Some(field) = section.get("variable") {
        filter.definition.variables = variables(reader, field, &mut filter.places, &concern);
    }
    if let Some(field) = section.get("once") {
        filter.definition.once = once(reader, field, &concern);
        filter.places.insert(("once".to_owned(), 0), field.node.span.clone());
        note(&mut filter.places, "once.", &field.inner);
    }
    for (name, at, table) in named(reader, section.get("param"), "param", &concern) {
        filter.places.insert((format!("param.{name}"), 0), at.clone());
        if let Some(param) = param(reader, name, at, table, &concern) {
            filter.definition.params.insert(name.clone(), param);
        }
    }
    for (name, at, table) in named(reader, section.get("mode"), "mode", &concern) {
        let section = reader.section(Place::Mode, table, &concern);
        filter.places.insert((format!("mode.{name}"), 0), at.clone());
        note(&mut filter.places, &format!("mode.{name}."), &section);
        filter.definition.modes.insert(name.clone(), Mode { include: texts(&section, "include"), patterns: patterns(&section) });
    }
    if let Some(field) = section.get("sample") {
        samples(reader, field, &mut filter, &concern);
    }
    // Where there is something else instead, that was said.
    let other = table.keys().any(|key| super::keys::find(Place::Filter, key).is_none());
    if !table.contains_key("failregex") && !table.contains_key("mode") && !other {
        reader.mistake(
            &concern,
            at,
            "no failregex: this filter can never find a failure".to_owned(),
            "write failregex = ['''…<HOST>…''']".to_owned(),
        );
    }
    filter
}

fn text(section: &Section, key: &str) -> Option<String> {
    match &section.get(key)?.meaning {
        Meaning::Text(text) => Some(text.clone()),
        _ => None,
    }
}

fn texts(section: &Section, key: &str) -> Vec<String> {
    match section.get(key).map(|field| &field.meaning) {
        Some(Meaning::Texts(texts)) => texts.clone(),
        _ => Vec::new(),
    }
}

fn number(section: &Section, key: &str) -> Option<u32> {
    match section.get(key)?.meaning {
        Meaning::Number(number) => u32::try_from(number).ok(),
        _ => None,
    }
}

fn patterns(section: &Section) -> Patterns {
    Patterns {
        prefregex: text(section, "prefregex"),
        failregex: texts(section, "failregex"),
        ignoreregex: texts(section, "ignoreregex"),
        okregex: texts(section, "okregex"),
    }
}

/// Keeps where each entry of each key stands.
fn note(places: &mut BTreeMap<(String, usize), Range<usize>>, before: &str, section: &Section) {
    for (name, field) in section {
        for (index, node) in entries(&field.node).iter().enumerate() {
            places.insert((format!("{before}{name}"), index), node.span.clone());
        }
    }
}

/// The entries of a list, or the one value.
pub fn entries(node: &Node) -> &[Node] {
    match &node.value {
        Raw::List(items) => items,
        _ => std::slice::from_ref(node),
    }
}

fn variables(
    reader: &mut Reader<'_>,
    field: &Field,
    places: &mut BTreeMap<(String, usize), Range<usize>>,
    concern: &Concern,
) -> BTreeMap<String, String> {
    let Raw::Table(table) = &field.node.value else {
        reader.mistake(
            concern,
            &field.node.span,
            format!("variable: takes texts by name, not {}", field.node.value.noun()),
            "write variable = { NAME = '''…''' }".to_owned(),
        );
        return BTreeMap::new();
    };
    let mut out = BTreeMap::new();
    for (name, entry) in table {
        match &entry.node.value {
            Raw::Text(text) => {
                places.insert((format!("variable.{name}"), 0), entry.node.span.clone());
                out.insert(name.clone(), text.clone());
            }
            other => reader.mistake(
                concern,
                &entry.node.span,
                format!("{}: a variable is text, not {}", shown(name), other.noun()),
                "write it in quotes".to_owned(),
            ),
        }
    }
    out
}

fn once(reader: &mut Reader<'_>, field: &Field, concern: &Concern) -> Option<Once> {
    let key = texts(&field.inner, "key");
    let within = match field.inner.get("within").map(|field| &field.meaning) {
        Some(Meaning::Span(span)) => Some(*span),
        _ => None,
    };
    let written = |key: &str| matches!(&field.node.value, Raw::Table(table) if table.contains_key(key));
    if !written("key") || !written("within") {
        reader.mistake(
            concern,
            &field.node.span,
            "once: needs key and within".to_owned(),
            "write once = { key = [\"addr\", \"user\"], within = \"5s\" }".to_owned(),
        );
    }
    Some(Once { key, within: within? })
}

/// Tables by name inside a filter.
fn named<'t>(
    reader: &mut Reader<'_>,
    field: Option<&'t Field>,
    what: &str,
    concern: &Concern,
) -> Vec<(&'t String, &'t Range<usize>, &'t Table)> {
    let Some(field) = field else { return Vec::new() };
    let Raw::Table(tables) = &field.node.value else {
        let help =
            if what == "mode" { "a filter's modes are tables: [mode.NAME]".to_owned() } else { format!("write [{what}.NAME]") };
        reader.mistake(concern, &field.node.span, format!("{what}: takes tables by name, not {}", field.node.value.noun()), help);
        return Vec::new();
    };
    let mut out = Vec::new();
    for (name, entry) in tables {
        match &entry.node.value {
            Raw::Table(table) => out.push((name, &entry.key, table)),
            other => {
                let help = if what == "param" {
                    format!("write {} = {{ words = [] }}, {{ nets = [] }} or {{ text = \"\" }}", shown(name))
                } else {
                    format!("write [{what}.NAME]")
                };
                reader.mistake(
                    concern,
                    &entry.node.span,
                    format!("{what}.{}: takes a table, not {}", shown(name), other.noun()),
                    help,
                );
            }
        }
    }
    out
}

fn shown(name: &str) -> String {
    super::source::shown(name)
}

fn param(reader: &mut Reader<'_>, name: &str, at: &Range<usize>, table: &Table, concern: &Concern) -> Option<Param> {
    let section = reader.section(Place::Param, table, concern);
    let known = ["words", "nets", "text"].iter().filter(|kind| table.contains_key(**kind)).count();
    if known != 1 {
        let help = format!("write {} = {{ words = [] }}, {{ nets = [] }} or {{ text = \"\" }}", shown(name));
        reader.mistake(concern, at, format!("param.{}: needs exactly one of words, nets and text", shown(name)), help);
        return None;
    }
    let (_, field) = section.into_iter().next()?;
    match field.meaning {
        Meaning::Texts(words) => Some(Param::Words(words)),
        Meaning::Text(text) => Some(Param::Text(text)),
        Meaning::Ignore(list) if list.names.is_empty() => Some(Param::Nets(list.nets)),
        Meaning::Ignore(list) => {
            let what = format!("param.{}: {} is no address", shown(name), quoted(&list.names[0]));
            reader.mistake(concern, &field.node.span, what, "write addresses and subnets".to_owned());
            None
        }
        _ => None,
    }
}

fn samples(reader: &mut Reader<'_>, field: &Field, filter: &mut FilterWritten, concern: &Concern) {
    let items = match &field.node.value {
        Raw::List(items) => items,
        other => {
            reader.mistake(
                concern,
                &field.node.span,
                format!("sample: takes tables, not {}", other.noun()),
                "write [[sample]] above each".to_owned(),
            );
            return;
        }
    };
    for node in items {
        let Raw::Table(table) = &node.value else {
            reader.mistake(
                concern,
                &node.span,
                format!("sample: takes tables, not {}", node.value.noun()),
                "write [[sample]] above each".to_owned(),
            );
            continue;
        };
        let section = reader.section(Place::Sample, table, concern);
        let index = filter.definition.samples.len();
        if let Some(sample) = sample(reader, node, table, &section, concern) {
            let line = section.get("line").map_or(node.span.clone(), |field| field.node.span.clone());
            filter.places.insert(("sample".to_owned(), index), line);
            filter.definition.samples.push(sample);
        }
    }
}

fn sample(reader: &mut Reader<'_>, node: &Node, table: &Table, section: &Section, concern: &Concern) -> Option<Sample> {
    const HELP: &str = "write addr = \"192.0.2.1\" for a failure, addr = false for none, ok = \"192.0.2.1\" for a login";
    if !table.contains_key("line") {
        reader.mistake(concern, &node.span, "sample: no line".to_owned(), "write line = '…'".to_owned());
    }
    let address = |reader: &mut Reader<'_>, field: &Field, text: &str| match text.parse::<IpAddr>() {
        Ok(address) => Some(terms::fold(address)),
        Err(_) => {
            reader.mistake(
                concern,
                &field.node.span,
                format!("{}: {} is no address", field.key.name, quoted(text)),
                HELP.to_owned(),
            );
            None
        }
    };
    let expect = match (table.contains_key("addr"), table.contains_key("ok")) {
        (true, false) => {
            let field = section.get("addr")?;
            match &field.node.value {
                Raw::Text(text) => Expect::Addr(address(reader, field, text)?),
                _ => Expect::Nothing,
            }
        }
        (false, true) => {
            let field = section.get("ok")?;
            let Meaning::Text(text) = &field.meaning else { return None };
            Expect::Ok(address(reader, field, text)?)
        }
        (both, _) => {
            let what = if both { "sample: both addr and ok" } else { "sample: neither addr nor ok" };
            reader.mistake(concern, &node.span, what.to_owned(), HELP.to_owned());
            return None;
        }
    };
    let time = text(section, "time");
    if let (Some(stamp), Some(field)) = (&time, section.get("time"))
        && stamp.parse::<jiff::Timestamp>().is_err()
    {
        reader.mistake(
            concern,
            &field.node.span,
            format!("time: {} is no instant", quoted(stamp)),
            "write it as RFC 3339, for example \"2026-01-02T03:04:05Z\"".to_owned(),
        );
    }
    let mut params = BTreeMap::new();
    if let Some(field) = section.get("params") {
        let Raw::Table(table) = &field.node.value else {
            reader.mistake(
                concern,
                &field.node.span,
                format!("params: takes a table, not {}", field.node.value.noun()),
                "write params = { NAME = \"value\" }".to_owned(),
            );
            return None;
        };
        for (name, entry) in table {
            let mut words = Vec::new();
            for item in entries(&entry.node) {
                match &item.value {
                    Raw::Text(text) => words.push(text.clone()),
                    other => reader.mistake(
                        concern,
                        &item.span,
                        format!("{}: a filter's parameter is text, not {}", shown(name), other.noun()),
                        "write it in quotes".to_owned(),
                    ),
                }
            }
            params.insert(name.clone(), words);
        }
    }
    let line = texts(section, "line");
    (!line.is_empty()).then(|| Sample {
        line: line.join("\n"),
        expect,
        params,
        time,
        user: text(section, "user"),
        attempts: number(section, "attempts"),
    })
}

/// Reads what a jail sets of a filter's parameter by its kind, or says what is wrong.
pub fn parameter(param: &Param, given: &[String]) -> Result<Vec<String>, (String, String)> {
    let split = || {
        given
            .iter()
            .flat_map(|text| text.split(|c: char| c == ',' || c.is_ascii_whitespace()))
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
    };
    match param {
        Param::Text(_) => Ok(given.to_vec()),
        Param::Words(_) => Ok(split().collect()),
        Param::Nets(_) => split().map(|word| values::network(&word).map(terms::shown)).collect(),
    }
}
