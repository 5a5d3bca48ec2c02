//! `regex`: tries a filter on a log file, a quoted line or the journal, as fail2ban-regex does.
//!
//! Lines go through the same filters as in service, but every line is looked at and the log's own times count. What is printed is
//! what a user of fail2ban-regex expects; `--json` prints one object with stable keys.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use clap::Args as Arguments;
use jiff::tz::TimeZone;
use serde_json::{Value as Json, json};

use super::{Global, NEGATIVE, USAGE, complain, load, out};
use crate::filter::fail2ban::{self, Failure, Resolved, Value, resolve};
use crate::filter::trial::{Said, Trial};
use crate::filter::{self, Definition, Filter, Options, UseDns, definition};
use crate::terms::journal::{Journal, Match};
use crate::terms::{self, Time, escape, head, plain};
use crate::watch::journal::{Export, Terms};

/// Lines of each kind that are printed unasked.
const SHOWN: usize = 20;
/// A line is read up to this many bytes.
const LONGEST: u64 = 1 << 20;
/// A filter's file is read up to this many bytes.
const LARGEST: u64 = 8 << 20;

/// The arguments of `banset regex`.
#[derive(Debug, Arguments)]
pub struct Args {
    /// A log file, `-`, one quoted line, or `journal` (`journal:/DIRECTORY`, `journal@NAMESPACE`)
    log: String,
    /// A shipped filter, a TOML or fail2ban .conf file (fail2ban's [mode=…] too), or a quoted failregex
    filter: String,
    /// A quoted ignoreregex on top of the filter's
    ignoreregex: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// What time it is, in seconds since 1970
    #[arg(long, value_name = "UNIX")]
    now: Option<f64>,
    /// The zone of dates that name none: an IANA name, UTC+0200, or a POSIX TZ string
    #[arg(long, value_name = "ZONE", allow_hyphen_values = true)]
    timezone: Option<String>,
    /// Lines are messages of the journal: they bear no date
    #[arg(long)]
    journal: bool,
    /// Entries of the journal to try, instead of those the filter is for
    #[arg(short = 'm', long, value_name = "MATCH")]
    journalmatch: Vec<String>,
    /// A parameter of the filter, such as mode=aggressive
    #[arg(long = "opt", value_name = "KEY=VALUE")]
    opts: Vec<String>,
    /// Date patterns instead of the filter's
    #[arg(short, long, value_name = "PATTERN", allow_hyphen_values = true)]
    datepattern: Vec<String>,
    /// Lines a pattern may span
    #[arg(short = 'L', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    maxlines: Option<u32>,
    /// Ask every pattern, not only the first that matches, and list addresses and times
    #[arg(short, long)]
    verbose: bool,
    /// Print every line that matched
    #[arg(long)]
    print_all_matched: bool,
    /// Print every line that matched nothing
    #[arg(long)]
    print_all_missed: bool,
    /// Print every line that was ignored
    #[arg(long)]
    print_all_ignored: bool,
    /// Print no line that matched nothing
    #[arg(long, conflicts_with = "print_all_missed")]
    print_no_missed: bool,
    /// Print no line that was ignored
    #[arg(long, conflicts_with = "print_all_ignored")]
    print_no_ignored: bool,
    /// Print lines that held what a pattern needs, and matched none
    #[arg(long)]
    near_misses: bool,
}

/// Why the command ends, and with which status.
pub(super) struct Refused(pub u8, pub String);

impl Refused {
    fn usage(what: impl Into<String>) -> Refused {
        Refused(USAGE, what.into())
    }
}

/// `banset regex`
pub fn regex(global: &Global, args: &Args) -> u8 {
    match run(global, args) {
        Ok(text) => {
            out(&text);
            0
        }
        Err(Refused(code, why)) => {
            complain(why.trim_end());
            code
        }
    }
}

fn run(global: &Global, args: &Args) -> Result<String, Refused> {
    let zone = match &args.timezone {
        Some(text) => zone(text)?,
        None => TimeZone::system(),
    };
    let now = match args.now {
        Some(unix) if unix.abs() < 2e11 => Time((unix * 1e6) as i64),
        Some(_) => return Err(Refused::usage("--now: takes seconds since 1970")),
        None => Time::now(),
    };
    let journal = args.journal || named(&args.log).is_some_and(|_| !Path::new(&args.log).is_file());
    let mut params = BTreeMap::new();
    for opt in &args.opts {
        let Some((key, value)) = opt.split_once('=') else {
            return Err(Refused::usage(format!("--opt {}: takes KEY=VALUE", shown(opt))));
        };
        params.insert(key.trim().to_lowercase(), value.trim().to_owned());
    }
    let chosen = choose(global, &args.filter, params, journal)?;
    let foreign = chosen.definition.fail2ban.is_some();
    let dateless = (journal && !foreign).then(|| vec!["{NONE}".to_owned()]);
    let options = Options {
        logtimezone: zone.clone(),
        datepattern: dateless.or((!args.datepattern.is_empty()).then(|| args.datepattern.clone())),
        usedns: UseDns::Raw,
        ignoreregex_add: args.ignoreregex.iter().cloned().collect(),
        maxlines: args.maxlines,
        ..Options::default()
    };
    let compiled = Filter::compile(&chosen.definition, &chosen.params, &options);
    let filter = Arc::new(compiled.map_err(|mistakes| Refused(NEGATIVE, chosen.cite(&mistakes)))?);
    let mut tally = Tally::new(&filter, args);
    let mut trial = Trial::new(Arc::clone(&filter));
    let wanted = if args.journalmatch.is_empty() { &chosen.definition.journalmatch } else { &args.journalmatch };
    let wanted =
        Match::parse(wanted).map_err(|fault| Refused::usage(format!("journalmatch: {}\n  help: {}", fault.what, fault.help)))?;
    let source = Source::of(&args.log, &wanted)?;
    let started = std::time::Instant::now();
    source.each(|number, line, given| {
        let given = given.or(journal.then_some(now));
        tally.line(number, line, &mut trial, given, now);
    })?;
    tally.took = started.elapsed();
    tally.dates = trial.date_hits();
    tally.strained = trial.strained();
    Ok(if args.json { format!("{}\n", tally.json()) } else { tally.text(&chosen, &source, &filter, &zone) })
}

/// A filter and where it comes from.
pub(super) struct Chosen {
    pub definition: Definition,
    pub params: BTreeMap<String, Vec<String>>,
    /// The line that tells a person which filter it is.
    used: String,
}

impl Chosen {
    /// Mistakes of a filter, each with what is known of its place.
    fn cite(&self, mistakes: &[filter::Mistake]) -> String {
        let mut text = String::new();
        for mistake in mistakes {
            let place = self.definition.fail2ban.as_ref().and_then(|resolved| place(resolved, &mistake.key, mistake.index));
            let place = place.map_or_else(|| format!("filter {}", self.definition.name), |(file, line)| format!("{file}:{line}"));
            _ = writeln!(text, "{place}: {}[{}]: {}", mistake.key, mistake.index, mistake.what);
            if let Some(help) = &mistake.help {
                _ = writeln!(text, "  help: {help}");
            }
        }
        text
    }
}

/// Where a pattern of a fail2ban filter stands.
pub(super) fn place(resolved: &Resolved, key: &str, index: usize) -> Option<(String, usize)> {
    let list = match key {
        "prefregex" => return resolved.prefregex.as_ref().map(|text| text.place.clone()),
        "failregex" => &resolved.failregex,
        "ignoreregex" => &resolved.ignoreregex,
        "datepattern" => &resolved.datepattern,
        _ => return None,
    };
    list.get(index).map(|text| text.place.clone()).filter(|(file, _)| !file.is_empty())
}

/// Reads a file for the filter room; `None` if there is none.
pub(super) fn reading(path: &str) -> Result<Option<String>, String> {
    if path.ends_with('/') {
        return match std::fs::read_dir(path) {
            Ok(entries) => {
                Ok(Some(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect::<Vec<_>>().join("\n")))
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(plain(&error)),
        };
    }
    // A directory, or a pipe that nobody writes to, is no filter.
    let file = match std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(plain(&error)),
    };
    if !file.metadata().is_ok_and(|data| data.is_file()) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).map_err(|error| plain(&error))?;
    String::from_utf8(bytes).map(Some).map_err(|_| "not UTF-8".to_owned())
}

/// What the second argument names.
pub(super) fn choose(global: &Global, text: &str, params: BTreeMap<String, String>, journal: bool) -> Result<Chosen, Refused> {
    let words = |text: &str| -> bool {
        let name = &text[..text.find('[').unwrap_or(text.len())];
        !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '/' | '_' | '-' | '.' | '+' | '@' | '~'))
    };
    if !words(text) || (text.contains('[') && resolve::with_options(text).is_err()) {
        let rooted = ["/", "./", "../", "~/"].iter().any(|head| text.starts_with(head));
        if (rooted && !text.contains('<')) || (text.contains('/') && !text.contains(['<', ' ', '(', '^'])) {
            return Err(Refused::usage(format!("{}: no such file", shown(text))));
        }
        let failregex = vec![resolve::Text { text: text.to_owned(), place: Default::default() }];
        let resolved = Resolved { failregex, maxlines: 1, ..Resolved::default() };
        let definition = Definition { name: "failregex".to_owned(), fail2ban: Some(Arc::new(resolved)), ..Definition::default() };
        let used = format!("Use   failregex line : {}", brief(text));
        return Ok(Chosen { definition, params: BTreeMap::new(), used });
    }
    let (name, mut all) = resolve::with_options(text).map_err(|why| Refused::usage(format!("{}: {why}", shown(text))))?;
    all.extend(params);
    let file = Path::new(&name);
    let is_path = name.contains('/') || [".conf", ".local", ".toml"].iter().any(|end| name.ends_with(end));
    if is_path && !file.is_file() {
        return Err(Refused::usage(format!("{}: no such file", shown(&name))));
    }
    if is_path && !name.ends_with(".toml") {
        if journal {
            all.entry("logtype".to_owned()).or_insert_with(|| "journal".to_owned());
        }
        let used = format!("Use      filter file : {name}");
        let definition = imported(&name, &all).map_err(|cited| {
            let lines: Vec<String> = cited.iter().map(ToString::to_string).collect();
            Refused(NEGATIVE, lines.join("\n"))
        })?;
        return Ok(Chosen { definition, params: BTreeMap::new(), used });
    }
    let params = all.into_iter().map(|(key, value)| (key, vec![value])).collect();
    let of = |name: &str, path: &Path, used: String| {
        let text = std::fs::read_to_string(path).map_err(|e| Refused::usage(format!("{}: {}", path.display(), plain(&e))))?;
        let definition = definition::parse(name, &text).map_err(|why| Refused(NEGATIVE, why))?;
        Ok::<_, Refused>((definition, used))
    };
    if is_path {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let (definition, used) = of(&stem, file, format!("Use      filter file : {name}"))?;
        return Ok(Chosen { definition, params, used });
    }
    let main = load::paths(global).main;
    let own: PathBuf = main.parent().unwrap_or(Path::new(".")).join("filter.d").join(format!("{name}.toml"));
    if own.is_file() {
        let (definition, used) = of(&name, &own, format!("Use      filter file : {}", own.display()))?;
        return Ok(Chosen { definition, params, used });
    }
    let shipped = filter::shipped();
    if let Some((_, text)) = shipped.iter().find(|(known, _)| *known == name) {
        let definition = definition::parse(&name, text).map_err(|why| Refused(NEGATIVE, why))?;
        return Ok(Chosen { definition, params, used: format!("Use           filter : {name} (shipped)") });
    }
    let near = shipped.iter().min_by_key(|(known, _)| strsim::damerau_levenshtein(known, &name));
    let near = near.filter(|(known, _)| strsim::damerau_levenshtein(known, &name) <= 2);
    let help = match near {
        Some((known, _)) => format!("did you mean {known}?"),
        None => "name a shipped filter, a file, or quote a failregex with <HOST> in it".to_owned(),
    };
    Err(Refused::usage(format!("there is no filter {}\n  help: {help}", shown(&name))))
}

/// A filter of fail2ban, read with these parameters.
pub(super) fn imported(path: &str, params: &BTreeMap<String, String>) -> Result<Definition, Vec<fail2ban::Cited>> {
    let resolved = fail2ban::read(path, params, &reading)?;
    let stem = Path::new(path).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Definition {
        name: stem,
        journalmatch: resolved.journalmatch.clone(),
        fail2ban: Some(Arc::new(resolved)),
        ..Definition::default()
    })
}

/// An IANA name, fail2ban's `UTC+0200`, or a POSIX TZ string such as `CET-1CEST,M3.5.0,M10.5.0/3`.
fn zone(text: &str) -> Result<TimeZone, Refused> {
    let fixed = |text: &str| {
        let sign = text.find(['+', '-']).filter(|at| *at == 0 || matches!(&text[..*at], "UTC" | "GMT"))?;
        let digits = text[sign + 1..].bytes().filter(u8::is_ascii_digit).count();
        let offset = filter::fail2ban::offset(text).filter(|_| digits == 4 || digits == 2)?;
        jiff::tz::Offset::from_seconds(offset).ok().map(TimeZone::fixed)
    };
    let name = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-' | b'+'));
    let iana = || (name && text.len() <= 64).then(|| TimeZone::get(text).ok()).flatten();
    let posix = || TimeZone::posix(text.trim_start_matches(':')).ok();
    let known = fixed(text).or_else(iana).or_else(posix);
    let abbreviated = || {
        let offset = filter::fail2ban::offset(text)?;
        jiff::tz::Offset::from_seconds(offset).ok().map(TimeZone::fixed)
    };
    known.or_else(abbreviated).ok_or_else(|| {
        let help = "write a name such as Europe/Berlin, an offset such as UTC+0200, or a POSIX TZ string";
        Refused::usage(format!("--timezone {}: unknown\n  help: {help}", shown(text)))
    })
}

/// Where lines come from.
enum Source {
    File(PathBuf),
    Input,
    Journal(Journal, Match),
    Lines(Vec<String>),
}

impl Source {
    fn of(log: &str, wanted: &Match) -> Result<Source, Refused> {
        let path = Path::new(log);
        let rooted = ["/", "./", "../", "~/"].iter().any(|head| log.starts_with(head));
        match log {
            "-" => Ok(Source::Input),
            _ if path.is_file() => Ok(Source::File(path.to_owned())),
            _ if let Some(journal) = named(log) => Ok(Source::Journal(journal, wanted.clone())),
            _ if path.is_dir() => Err(Refused::usage(format!("{}: is a directory", shown(log)))),
            // A pipe, as `<(…)` gives one.
            _ if path.exists() => Ok(Source::File(path.to_owned())),
            _ if log.contains('/') && (rooted || !log.contains([' ', '\t'])) => {
                Err(Refused::usage(format!("{}: no such file", shown(log))))
            }
            line => Ok(Source::Lines(line.split('\n').map(str::to_owned).collect())),
        }
    }

    fn used(&self) -> String {
        match self {
            Source::File(path) => format!("Use         log file : {}\nUse         encoding : UTF-8", path.display()),
            Source::Input => "Use         log file : standard input\nUse         encoding : UTF-8".to_owned(),
            Source::Journal(which, wanted) => format!("Use {:>16} : {wanted}", which.to_string()),
            Source::Lines(lines) if lines.len() == 1 => format!("Use      single line : {}", brief(&lines[0])),
            Source::Lines(lines) => format!("Use      multi line : {} line(s)", lines.len()),
        }
    }

    /// Hands on each line with its number and, from the journal, its time. Comments and empty lines are passed over.
    fn each(&self, mut line: impl FnMut(u64, &[u8], Option<Time>)) -> Result<(), Refused> {
        let mut told = |number: u64, bytes: &[u8]| {
            let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
            let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
            if !bytes.is_empty() && bytes[0] != b'#' {
                line(number, bytes, None);
            }
        };
        let mut all = |reader: &mut dyn BufRead| -> std::io::Result<()> {
            let (mut number, mut bytes) = (0, Vec::new());
            loop {
                bytes.clear();
                if reader.take(LONGEST).read_until(b'\n', &mut bytes)? == 0 {
                    return Ok(());
                }
                if bytes.last() != Some(&b'\n') && bytes.len() as u64 == LONGEST {
                    skip_line(reader)?;
                }
                number += 1;
                told(number, &bytes);
            }
        };
        let result = match self {
            Source::File(path) => std::fs::File::open(path).and_then(|file| {
                if path.extension().is_some_and(|end| end == "gz") {
                    let plain = flate2::read::MultiGzDecoder::new(file);
                    all(&mut std::io::BufReader::with_capacity(1 << 16, plain))
                } else {
                    all(&mut std::io::BufReader::with_capacity(1 << 16, file))
                }
            }),
            Source::Input => all(&mut std::io::stdin().lock()),
            Source::Lines(lines) => {
                lines.iter().enumerate().for_each(|(i, text)| told(i as u64 + 1, text.as_bytes()));
                Ok(())
            }
            Source::Journal(which, wanted) => return journal(which, wanted, &mut line),
        };
        let of = match self {
            Source::File(path) => path.display().to_string(),
            _ => "standard input".to_owned(),
        };
        result.map_err(|error| Refused(NEGATIVE, format!("cannot read {of}: {}", plain(&error))))
    }
}

/// The journal that an argument names.
fn named(log: &str) -> Option<Journal> {
    match (log.strip_prefix("journal:"), log.strip_prefix("journal@")) {
        _ if log == "journal" => Some(Journal::Own),
        (Some(path), _) if path.starts_with('/') => Some(Journal::Path(path.to_owned())),
        (_, Some(name)) if !name.is_empty() && !name.contains(' ') => Some(Journal::Namespace(name.to_owned())),
        _ => None,
    }
}

/// Passes over the rest of a line.
pub(super) fn skip_line(reader: &mut dyn BufRead) -> std::io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        match memchr::memchr(b'\n', buffer) {
            Some(at) => {
                reader.consume(at + 1);
                return Ok(());
            }
            None => {
                let length = buffer.len();
                reader.consume(length);
            }
        }
    }
}

/// Takes a line: its number, its bytes, and its time where the journal gave one.
type Taking<'a> = dyn FnMut(u64, &[u8], Option<Time>) + 'a;

/// The entries of a journal that `wanted` means, each as fail2ban words it: `HOST IDENT[PID]: MESSAGE`.
fn journal(which: &Journal, wanted: &Match, line: &mut Taking<'_>) -> Result<(), Refused> {
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=export"]).args(which.arguments()).args(wanted.arguments());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| Refused(NEGATIVE, format!("cannot start journalctl: {}", plain(&error))))?;
    let Some(mut output) = child.stdout.take() else { return Ok(()) };
    let (mut number, mut text) = (0, Vec::new());
    let mut export = Export::new(Terms::default());
    let mut bytes = vec![0; 1 << 16];
    while let Ok(read @ 1..) = output.read(&mut bytes) {
        export.feed(&bytes[..read], |_, entry| {
            number += 1;
            text.clear();
            entry.line(&mut text);
            line(number, &text, Some(entry.time()));
        });
    }
    match child.wait() {
        Ok(status) if status.success() || number > 0 => Ok(()),
        Ok(status) => Err(Refused(NEGATIVE, format!("journalctl ended with {status}"))),
        Err(error) => Err(Refused(NEGATIVE, format!("journalctl: {error}"))),
    }
}

/// What came of all lines.
struct Tally<'a> {
    args: &'a Args,
    filter: &'a Filter,
    lines: u64,
    matched: Lines,
    ignored: Lines,
    missed: Lines,
    near: Lines,
    ok: u64,
    failregex: Vec<u64>,
    ignoreregex: Vec<u64>,
    dates: Vec<(String, u64)>,
    /// The failures: the number of the line, the instant, and what is counted.
    failures: Vec<(u64, Option<Time>, Failure)>,
    strained: u64,
    took: std::time::Duration,
}

/// How many lines of a kind, and some of them.
#[derive(Default)]
struct Lines {
    count: u64,
    kept: Vec<String>,
}

impl Lines {
    fn add(&mut self, line: &str, all: bool) {
        self.count += 1;
        if all || self.kept.len() < SHOWN {
            self.kept.push(line.to_owned());
        }
    }

    /// A line is of another kind after all.
    fn take(&mut self, line: &str) {
        self.count = self.count.saturating_sub(1);
        if let Some(at) = self.kept.iter().position(|kept| kept == line) {
            self.kept.remove(at);
        }
    }
}

impl<'a> Tally<'a> {
    fn new(filter: &'a Filter, args: &'a Args) -> Tally<'a> {
        Tally {
            args,
            filter,
            lines: 0,
            matched: Lines::default(),
            ignored: Lines::default(),
            missed: Lines::default(),
            near: Lines::default(),
            ok: 0,
            failregex: vec![0; filter.failregex().count()],
            ignoreregex: vec![0; filter.ignoreregex().count()],
            dates: Vec::new(),
            failures: Vec::new(),
            strained: 0,
            took: std::time::Duration::ZERO,
        }
    }

    fn line(&mut self, number: u64, line: &[u8], trial: &mut Trial, given: Option<Time>, now: Time) {
        self.lines += 1;
        let tried = trial.line(line, given, now, self.args.verbose);
        for hit in &tried.hits {
            if let Some(count) = self.failregex.get_mut(*hit) {
                *count += 1;
            }
        }
        let mut masked = line.to_vec();
        for secret in tried.secrets.iter().rev().filter(|range| range.end <= masked.len()).cloned().collect::<Vec<_>>() {
            masked.splice(secret, *b"***");
        }
        let text = escape(&masked, masked.len());
        if tried.near {
            self.near.add(&text, self.args.near_misses);
        }
        let args = self.args;
        for line in tried.joined.iter().map(|line| escape(line.as_bytes(), line.len())) {
            self.missed.take(&line);
            self.matched.add(&line, args.print_all_matched);
        }
        match tried.said {
            Said::Failure(failure) => {
                self.matched.add(&text, args.print_all_matched);
                self.failures.push((number, tried.time, failure));
            }
            Said::Pending | Said::Reported => self.matched.add(&text, args.print_all_matched),
            Said::Ok(..) => {
                self.ok += 1;
                self.ignored.add(&text, args.print_all_ignored);
            }
            Said::Context => self.ignored.add(&text, args.print_all_ignored),
            Said::Ignored(which) => {
                if let Some(count) = self.ignoreregex.get_mut(which) {
                    *count += 1;
                }
                self.ignored.add(&text, args.print_all_ignored);
            }
            Said::Missed => self.missed.add(&text, args.print_all_missed),
        }
    }

    fn json(&self) -> Json {
        let patterns = |written: &mut dyn Iterator<Item = &str>, hits: &[u64]| -> Vec<Json> {
            written.zip(hits).map(|(pattern, hits)| json!({ "pattern": pattern, "hits": hits })).collect()
        };
        let failure = |(line, time, failure): &(u64, Option<Time>, Failure)| {
            let stamp = time.and_then(|time| jiff::Timestamp::from_microsecond(time.0).ok());
            let groups: BTreeMap<&str, Json> = failure.groups.iter().map(|(name, value)| (name.as_str(), group(value))).collect();
            json!({
                "line": line,
                "addr": failure.addr.map(terms::shown),
                "id": failure.id,
                "time": stamp.map(|stamp| stamp.to_string()),
                "unix": time.map(unix),
                "user": failure.user,
                "users": failure.users,
                "attempts": failure.attempts,
                "repeated": failure.repeated,
                "groups": groups,
            })
        };
        let dates = self.dates.iter().filter(|(_, hits)| *hits > 0);
        let mut all = json!({
            "lines": self.lines,
            "matched": self.matched.count,
            "ignored": self.ignored.count,
            "missed": self.missed.count,
            "ok": self.ok,
            "near_misses": self.near.count,
            "gave_up": self.strained,
            "failregex": patterns(&mut self.filter.failregex(), &self.failregex),
            "ignoreregex": patterns(&mut self.filter.ignoreregex(), &self.ignoreregex),
            "dates": dates.map(|(format, hits)| json!({ "format": format, "hits": hits })).collect::<Vec<_>>(),
            "failures": self.failures.iter().map(failure).collect::<Vec<_>>(),
        });
        let lists = [
            (self.args.print_all_matched, "matched_lines", &self.matched),
            (self.args.print_all_ignored, "ignored_lines", &self.ignored),
            (self.args.print_all_missed, "missed_lines", &self.missed),
            (self.args.near_misses, "near_miss_lines", &self.near),
        ];
        for (asked, key, lines) in lists {
            if asked {
                all[key] = json!(lines.kept);
            }
        }
        all
    }

    fn text(&self, chosen: &Chosen, source: &Source, filter: &Filter, zone: &TimeZone) -> String {
        let mut text = format!("\nRunning tests\n=============\n\n{}\n", chosen.used);
        for pattern in &self.args.datepattern {
            _ = writeln!(text, "Use      datepattern : {}", brief(pattern));
        }
        _ = writeln!(text, "{}\n\n\nResults\n=======\n", source.used());
        if let Some(prefregex) = filter.prefregex() {
            _ = writeln!(text, "Prefregex:\n|  {}\n`-\n", shown(prefregex));
        }
        let total: u64 = self.failregex.iter().sum();
        _ = writeln!(text, "Failregex: {total} total");
        self.patterns(&mut text, &mut filter.failregex(), &self.failregex, zone);
        _ = writeln!(text, "\nIgnoreregex: {} total", self.ignoreregex.iter().sum::<u64>());
        self.patterns(&mut text, &mut filter.ignoreregex(), &self.ignoreregex, zone);
        _ = writeln!(text, "\nDate template hits:");
        let dates: Vec<_> = self.dates.iter().filter(|(_, hits)| *hits > 0 || self.args.verbose).collect();
        if !dates.is_empty() {
            _ = writeln!(text, "|- [# of hits] date format");
            for (format, hits) in dates {
                _ = writeln!(text, "|  [{hits}] {format}");
            }
            _ = writeln!(text, "`-");
        }
        let (ignored, matched, missed) = (self.ignored.count, self.matched.count, self.missed.count);
        _ = writeln!(text, "\nLines: {} lines, {ignored} ignored, {matched} matched, {missed} missed", self.lines);
        _ = writeln!(text, "[processed in {:.2} sec]\n", self.took.as_secs_f64());
        if self.ok > 0 {
            _ = writeln!(text, "{} of the ignored lines are logins that succeeded.", self.ok);
        }
        let names = self.failures.iter().filter(|(.., failure)| failure.addr.is_none()).count();
        if names > 0 {
            _ = writeln!(text, "{names} failures name no address: the service does not count them.");
        }
        let hard = filter.backtracking();
        if !hard.is_empty() {
            let list: Vec<String> = hard.iter().map(|(key, index)| format!("{key} {}", index + 1)).collect();
            _ = writeln!(text, "Beyond linear time, under a limit of steps: {}.", list.join(", "));
        }
        if self.strained > 0 {
            _ = writeln!(text, "A pattern was given up {} times for want of steps: that counts as no match.", self.strained);
        }
        let args = self.args;
        if args.print_all_matched {
            list(&mut text, "Matched", &self.matched, true, "");
        }
        if !args.print_no_ignored {
            list(&mut text, "Ignored", &self.ignored, args.print_all_ignored, "--print-all-ignored");
        }
        if !args.print_no_missed {
            list(&mut text, "Missed", &self.missed, args.print_all_missed, "--print-all-missed");
        }
        if args.near_misses {
            list(&mut text, "Near miss", &self.near, true, "");
        }
        text
    }

    fn patterns(&self, text: &mut String, written: &mut dyn Iterator<Item = &str>, hits: &[u64], zone: &TimeZone) {
        let fails = std::ptr::eq(hits, self.failregex.as_slice());
        let verbose = self.args.verbose;
        if hits.is_empty() || (!verbose && hits.iter().all(|hits| *hits == 0)) {
            return;
        }
        _ = writeln!(text, "|-  #) [# of hits] regular expression");
        for (index, (pattern, hits)) in written.zip(hits).enumerate() {
            if *hits == 0 && !verbose {
                continue;
            }
            _ = writeln!(text, "|  {:2}) [{hits}] {}", index + 1, shown(pattern));
            let found = self.failures.iter().filter(|(.., failure)| fails && verbose && failure.pattern == index);
            for (_, time, failure) in found {
                let time = time.and_then(|time| jiff::Timestamp::from_microsecond(time.0).ok());
                let time = time.map_or_else(
                    || "no date".to_owned(),
                    |time| time.to_zoned(zone.clone()).strftime("%a %b %d %H:%M:%S %Y").to_string(),
                );
                _ = writeln!(text, "|      {}  {time}", shown(&failure.id));
            }
        }
        _ = writeln!(text, "`-");
    }
}

fn list(text: &mut String, what: &str, lines: &Lines, all: bool, option: &str) {
    if lines.count == 0 {
        return;
    }
    if lines.count >= SHOWN as u64 && !all {
        _ = writeln!(text, "{what} line(s): too many to print.  Use {option} to print all {} lines", lines.count);
        return;
    }
    _ = writeln!(text, "|- {what} line(s):");
    for line in &lines.kept {
        _ = writeln!(text, "|  {line}");
    }
    _ = writeln!(text, "`-");
}

fn group(value: &Value) -> Json {
    match value {
        Value::Text(text) => json!(text),
        Value::Parts(parts) => json!(parts),
    }
}

/// Seconds since 1970, with a fraction only where there is one.
fn unix(time: Time) -> Json {
    if time.0 % 1_000_000 == 0 { json!(time.secs()) } else { json!(time.0 as f64 / 1e6) }
}

fn shown(text: &str) -> String {
    escape(text.as_bytes(), 4096).replace("\\\\", "\\")
}

fn brief(text: &str) -> String {
    escape(text.as_bytes(), head(text, 120).len()).replace("\\\\", "\\")
}
