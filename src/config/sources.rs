//! The texts a configuration is read from: files in their layers and the environment.
//!
//! They are read first and understood later, so that the same texts can be understood again: the last accepted
//! configuration is kept as [`Sources::to_snapshot`], and a daemon that starts over a broken file runs on that.

use std::ffi::OsString;
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::source::{Source, quoted};
use super::written::{Entry, Node, Raw, Table};
use crate::terms::plain;

/// The largest file that is read, in bytes.
pub const LARGEST: u64 = 8 << 20;

/// Where a configuration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The main file; `filter.d`, `jail.d` and `banset.d` stand beside it.
    pub main: PathBuf,
    /// Whether somebody named the main file, so that its absence is a mistake.
    pub named: bool,
}

impl Default for Paths {
    fn default() -> Self {
        Paths { main: PathBuf::from("/etc/banset/banset.toml"), named: false }
    }
}

/// What a file is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A jail that is compiled in.
    ShippedJail(String),
    /// A filter that is compiled in.
    ShippedFilter(String),
    /// A file of `filter.d`.
    Filter(String),
    /// A file of `jail.d`.
    Jail(String),
    /// The main file.
    Main,
    /// A file of `banset.d`.
    DropIn,
    /// The environment.
    Environment,
}

impl Role {
    /// Whether it is compiled in.
    pub const fn is_shipped(&self) -> bool {
        matches!(self, Role::ShippedJail(_) | Role::ShippedFilter(_))
    }
}

/// One text and what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// What people call it.
    pub path: String,
    /// What it is for.
    pub role: Role,
    /// All of it; what is not UTF-8 replaced.
    pub text: String,
    /// Why it could not be read as text.
    pub fault: Option<Fault>,
}

/// Why a file could not be read as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Where; nothing if it could not be read at all.
    pub at: Option<Range<usize>>,
    /// Why.
    pub what: String,
    /// What to do.
    pub help: Option<String>,
    /// Whether it is only worth a warning.
    pub harmless: bool,
}

/// The user's texts, in the order of precedence, the weakest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// All of them.
    pub texts: Vec<Text>,
}

impl Sources {
    /// Reads the files and the part of the environment that is a configuration's.
    pub fn read(paths: &Paths, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Sources {
        let beside = paths.main.parent().unwrap_or(Path::new("."));
        let mut texts = Vec::new();
        directory(&beside.join("filter.d"), Role::Filter, &mut texts);
        directory(&beside.join("jail.d"), Role::Jail, &mut texts);
        match file(&paths.main, Role::Main) {
            Some(text) => texts.push(text),
            None if paths.named => texts.push(fault(
                &paths.main,
                Role::Main,
                "no such file".to_owned(),
                Some("name the main file after -c".to_owned()),
            )),
            None => {}
        }
        directory(&beside.join("banset.d"), |_| Role::DropIn, &mut texts);
        texts.extend(from_environment(environment));
        Sources { texts }
    }

    /// These texts to keep: what [`Sources::from_snapshot`] reads.
    pub fn to_snapshot(&self) -> String {
        serde_json::to_string(&Kept { version: 1, texts: self.texts.clone() }).unwrap_or_default()
    }

    /// The texts that were kept, or `None` if that is not what the bytes are.
    pub fn from_snapshot(bytes: &[u8]) -> Option<Sources> {
        let kept: Kept = serde_json::from_slice(bytes).ok()?;
        (kept.version == 1).then_some(Sources { texts: kept.texts })
    }
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    texts: Vec<Text>,
}

/// The `*.toml` files of a directory by name. One that is missing is an empty one.
fn directory(path: &Path, role: impl Fn(String) -> Role, texts: &mut Vec<Text>) {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => {
            texts.push(fault(path, Role::DropIn, format!("cannot list the directory: {}", plain(&error)), None));
            return;
        }
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') {
            continue;
        }
        if let Some(stem) = name.strip_suffix(".toml") {
            texts.extend(file(&path, role(stem.to_owned())));
        } else if name.ends_with(".conf") || name.ends_with(".local") {
            let mut text =
                fault(&path, Role::DropIn, "not read: a configuration is TOML in files that end in .toml".to_owned(), None);
            if let Some(fault) = &mut text.fault {
                fault.harmless = true;
            }
            texts.push(text);
        }
    }
}

fn file(path: &Path, role: Role) -> Option<Text> {
    let read = || -> std::io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        // A FIFO that nobody writes to is not waited for.
        let file = std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        file.take(LARGEST + 1).read_to_end(&mut bytes)?;
        Ok((bytes.len() as u64 <= LARGEST).then_some(bytes))
    };
    match read() {
        Ok(Some(bytes)) => Some(text(path, role, bytes)),
        Ok(None) => Some(fault(
            path,
            role,
            format!("larger than {} MiB, not read", LARGEST >> 20),
            Some("split it into files of banset.d".to_owned()),
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => Some(fault(path, role, format!("cannot read: {}", plain(&error)), None)),
    }
}

fn text(path: &Path, role: Role, bytes: Vec<u8>) -> Text {
    let path = path.to_string_lossy().into_owned();
    match String::from_utf8(bytes) {
        Ok(text) => Text { path, role, text, fault: None },
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let fault = Fault {
                at: Some(at..at + 1),
                what: "not UTF-8".to_owned(),
                help: Some("save the file as UTF-8".to_owned()),
                harmless: false,
            };
            Text { path, role, text, fault: Some(fault) }
        }
    }
}

fn fault(path: &Path, role: Role, what: String, help: Option<String>) -> Text {
    let fault = Fault { at: None, what, help, harmless: false };
    Text { path: path.to_string_lossy().into_owned(), role, text: String::new(), fault: Some(fault) }
}

/// The variables that speak of a configuration, one to a line, as a file of their own.
fn from_environment(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Option<Text> {
    let mut lines: Vec<String> = environment
        .into_iter()
        .filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let ours = name.strip_prefix("BANSET_").is_some_and(|rest| rest.contains("__"));
            ours.then(|| format!("{name}={}", value.to_string_lossy().replace(['\n', '\r'], " ")))
        })
        .collect();
    lines.sort();
    let text = lines.join("\n");
    (!text.is_empty()).then(|| Text { path: "environment".to_owned(), role: Role::Environment, text, fault: None })
}

/// The environment as the tables it stands for: `BANSET_NFT__PRIORITY__INPUT=-5` is `input` of `priority` of `[nft]`.
pub fn environment_table(source: &Source) -> Table {
    let mut top = Table::new();
    let mut at = 0;
    for line in source.text.split('\n') {
        let begin = at;
        at += line.len() + 1;
        let Some((name, value)) = line.split_once('=') else { continue };
        let Some(rest) = name.strip_prefix("BANSET_") else { continue };
        let span = begin + name.len() + 1..begin + line.len();
        let parts: Vec<&str> = rest.split("__").collect();
        let node = Node { span, value: Raw::Word(value.to_owned()) };
        put(&mut top, &parts, begin + "BANSET_".len(), node);
    }
    top
}

fn put(table: &mut Table, parts: &[&str], at: usize, node: Node) {
    let [first, rest @ ..] = parts else { return };
    let key = at..at + first.len();
    let name = first.to_lowercase();
    if rest.is_empty() {
        table.insert(name, Entry { key, node });
        return;
    }
    let empty = Node { span: key.clone(), value: Raw::Table(Table::new()) };
    let entry = table.entry(name).or_insert(Entry { key, node: empty });
    if let Raw::Table(inner) = &mut entry.node.value {
        put(inner, rest, at + first.len() + 2, node);
    }
}

/// What is said of a variable of a table the environment does not speak for.
pub fn not_from_environment(name: &str) -> (String, String) {
    (
        format!("{}: not a table the environment speaks for", quoted(name)),
        "only BANSET_DAEMON__KEY and BANSET_NFT__KEY are read: write it in a file".to_owned(),
    )
}
