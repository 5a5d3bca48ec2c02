//! The annotated sample logs of Debian's fail2ban package, through `banset regex` on the package's own filter files.
//!
//! They are run from where the package put them; nothing of it is copied. A group is what goes to one instance of a filter: the
//! lines of its log with one set of options, in order. The clock and the zone are those the annotations were made for.
//!
//! `FAIL2BAN_ROOT=DIR` names another version's package, unpacked below DIR (`apt-get download`, `dpkg-deb -x`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use banset::filter::{Definition, Filter, Options, fail2ban};
use banset_integration::{Answer, Daemon, Lab, Log, Stamp, binary, elements, in_netns, skip, wait_until};
use serde_json::Value;

/// 2005-08-14T10:00:00Z
const NOW: i64 = 1_124_013_600;
const ZONE: &str = "CET-01CEST-02,M3.5.0,M10.5.0";

/// Where the package put its filters and its tests; `None` if it is not installed.
fn package() -> Option<(PathBuf, PathBuf)> {
    if let Some(root) = std::env::var_os("FAIL2BAN_ROOT") {
        let root = PathBuf::from(root);
        let tests = root.join("usr/lib/python3/dist-packages/fail2ban/tests");
        assert!(tests.is_dir(), "FAIL2BAN_ROOT: no {}", tests.display());
        return Some((root.join("etc/fail2ban/filter.d"), tests));
    }
    let listed = Command::new("dpkg").args(["-L", "fail2ban"]).output().ok()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let logs = listed.lines().find(|path| path.ends_with("/tests/files/logs"))?;
    let tests = Path::new(logs).ancestors().nth(2).map(Path::to_owned).filter(|path| path.is_dir())?;
    Some((PathBuf::from("/etc/fail2ban/filter.d"), tests))
}

/// The lines one instance of a filter is fed, with what is expected of each.
#[derive(Default)]
struct Group {
    options: BTreeMap<String, String>,
    journal: bool,
    lines: Vec<(String, Option<Value>)>,
}

/// What the cases came to.
#[derive(Default)]
struct Sum {
    matching: usize,
    silent: usize,
    journal: usize,
    wrong: Vec<String>,
}

#[test]
fn every_annotated_sample_of_the_package_holds() {
    let name = "every_annotated_sample_of_the_package_holds";
    let Some((stock, tests)) = package() else { return skip(name, "Debian's fail2ban is not installed") };
    let scratch = tempfile::tempdir().expect("a directory");
    let mut sum = Sum::default();
    let mut filters = 0;
    let own = beside_the_sources(&stock, &tests.join("config/filter.d"), scratch.path());
    for directory in [stock.as_path(), own.as_path()] {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        for file in files {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let of_interest = file.extension().is_some_and(|end| end == "conf")
                && !stem.ends_with("common")
                && (directory == stock || stem.starts_with("zzz-"));
            let log = tests.join("files/logs").join(&stem);
            if !of_interest || !log.is_file() {
                continue;
            }
            filters += 1;
            for (number, group) in groups(&stem, &log).into_iter().enumerate() {
                judge(&file, &group, &scratch.path().join(format!("{stem}-{number}")), &mut sum);
            }
        }
    }
    println!(
        "fail2ban's samples: {filters} filters, {} lines that must match and {} that must not, {} of them of the journal; {} wrong",
        sum.matching,
        sum.silent,
        sum.journal,
        sum.wrong.len()
    );
    assert!(sum.wrong.is_empty(), "\n{}", sum.wrong.join("\n"));
    assert!(sum.matching > 1000, "only {} cases: is the package complete?", sum.matching);
}

/// The package's own test filters include fail2ban's by a path that is right in its source tree only: that tree, of links. How far
/// up it goes is not the same in every version.
fn beside_the_sources(stock: &Path, filters: &Path, scratch: &Path) -> PathBuf {
    let deep = scratch.join("1/2/3/4/5/6/filter.d");
    std::fs::create_dir_all(&deep).expect("a scratch directory");
    let link = |from: &Path, to: PathBuf| std::os::unix::fs::symlink(from, to).expect("a link");
    for above in deep.ancestors().skip(1).take_while(|above| above.starts_with(scratch)) {
        std::fs::create_dir_all(above.join("config")).expect("a scratch directory");
        link(stock, above.join("config/filter.d"));
    }
    for entry in std::fs::read_dir(filters).into_iter().flatten().flatten() {
        link(&entry.path(), deep.join(entry.file_name()));
    }
    deep
}

/// What can not be matched in linear time are references back to what a group matched, and nothing else of the package's patterns.
#[test]
fn few_patterns_of_the_package_run_under_a_limit_of_steps() {
    let name = "few_patterns_of_the_package_run_under_a_limit_of_steps";
    let Some((stock, _)) = package() else { return skip(name, "Debian's fail2ban is not installed") };
    let reading = |path: &str| Ok(std::fs::read_to_string(path).ok());
    let (mut all, mut asking, mut stepped, mut seen) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for entry in std::fs::read_dir(&stock).expect("its filters").flatten() {
        let path = entry.path().display().to_string();
        if !path.ends_with(".conf") || path.ends_with("common.conf") {
            continue;
        }
        let modes = ["", "normal", "aggressive", "ddos", "extra", "auth", "rbl", "more", "errors", "smtp"];
        for (mode, logtype) in modes.iter().flat_map(|mode| ["", "short", "journal", "rfc5424"].map(|logtype| (*mode, logtype))) {
            let params = [("mode", mode), ("logtype", logtype)].into_iter().filter(|(_, value)| !value.is_empty());
            let params = params.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            let Ok(resolved) = fail2ban::read(&path, &params, &reading) else { continue };
            if !seen.insert(format!("{resolved:?}")) {
                continue;
            }
            let definition =
                Definition { name: path.clone(), fail2ban: Some(Arc::new(resolved.clone())), ..Definition::default() };
            // A mode that the filter has not.
            let Ok(filter) = Filter::compile(&definition, &BTreeMap::new(), &Options::default()) else { continue };
            let texts = |key: &str| match key {
                "failregex" => resolved.failregex.iter().map(|text| text.text.clone()).collect(),
                "ignoreregex" => resolved.ignoreregex.iter().map(|text| text.text.clone()).collect(),
                "datepattern" => resolved.datepattern.iter().map(|text| text.text.clone()).collect(),
                _ => resolved.prefregex.iter().map(|text| text.text.clone()).collect::<Vec<_>>(),
            };
            all.extend(["prefregex", "failregex", "ignoreregex", "datepattern"].into_iter().flat_map(texts));
            stepped.extend(filter.backtracking().into_iter().map(|(key, index)| texts(key)[index].clone()));
        }
    }
    let asks = |text: &&String| ["(?=", "(?!", "(?<", "(?(", "(?P="].iter().any(|what| text.contains(what));
    asking.extend(all.iter().filter(asks));
    println!(
        "{} patterns, {} that look around or refer back, {} of them under a limit of steps",
        all.len(),
        asking.len(),
        stepped.len()
    );
    let refers = |text: &&String| text.contains("(?P=");
    assert!(stepped.iter().all(|text| refers(&text)), "{:#?}", stepped.iter().filter(|text| !refers(text)).collect::<Vec<_>>());
    assert!(all.len() > 300 && asking.len() > 2 * stepped.len());
}

/// Reads an annotated log, and those it adds.
fn groups(filter: &str, log: &Path) -> Vec<Group> {
    let mut logs = vec![log.to_owned()];
    let mut names: Vec<String> = Vec::new();
    let mut groups: Vec<Group> = Vec::new();
    let mut current: Vec<usize> = Vec::new();
    let mut common = serde_json::Map::new();
    let mut at = 0;
    while let Some(log) = logs.get(at).cloned() {
        at += 1;
        let bytes = std::fs::read(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut lines = text.split('\n');
        let mut passed_over = false;
        while let Some(line) = lines.next() {
            let note = annotation(line);
            let expected = match &note {
                Some(("failJSON", value)) => value.clone(),
                Some(("fileOptions", Value::Object(options))) => {
                    common = options.clone();
                    continue;
                }
                Some(("addFILE", Value::String(more))) => {
                    logs.push(log.with_file_name(more));
                    continue;
                }
                Some(("filterOptions", value)) => {
                    let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                    current.clear();
                    passed_over = false;
                    for own in list {
                        let mut options = common.clone();
                        options.extend(own.as_object().cloned().unwrap_or_default());
                        if let Some(condition) = options.get("test.condition").and_then(Value::as_str) {
                            passed_over = !condition.contains(&format!("'{filter}'"));
                        }
                        if !passed_over {
                            current.push(instance(&options, &mut names, &mut groups));
                        }
                    }
                    continue;
                }
                _ if passed_over || line.starts_with('#') || line.trim().is_empty() => continue,
                _ => Value::Null,
            };
            let line = if note.is_some() { lines.next().unwrap_or_default() } else { line };
            if passed_over {
                continue;
            }
            if current.is_empty() {
                current.push(instance(&serde_json::Map::new(), &mut names, &mut groups));
            }
            for index in &current {
                let group = &mut groups[*index];
                if !holds(expected["constraint"].as_str(), filter, &group.options) {
                    continue;
                }
                let prefix = group.options.get("test.prefix-line").cloned().unwrap_or_default();
                let line = format!("{prefix}{}", line.trim_end_matches('\r'));
                group.lines.push((line, (!expected.is_null()).then(|| expected.clone())));
            }
        }
    }
    groups
}

/// `# failJSON: {…}`: the word and what it says.
fn annotation(line: &str) -> Option<(&'static str, Value)> {
    let rest = line.strip_prefix('#')?.trim_start_matches('#');
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let words = ["failJSON", "fileOptions", "filterOptions", "addFILE"];
    let (word, rest) = words.iter().find_map(|word| Some((*word, rest.strip_prefix(word)?.strip_prefix(':')?)))?;
    Some((word, serde_json::from_str(rest.trim()).unwrap_or_else(|e| panic!("{line}: {e}"))))
}

/// The group of a set of options.
fn instance(options: &serde_json::Map<String, Value>, names: &mut Vec<String>, groups: &mut Vec<Group>) -> usize {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let options: BTreeMap<String, String> = options.iter().map(|(key, value)| (key.clone(), text(value))).collect();
    let own = options.iter().filter(|(key, _)| !key.starts_with("test."));
    let name = own.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    let index = names.iter().position(|known| *known == name).unwrap_or_else(|| {
        let journal = options.get("logtype").is_some_and(|logtype| logtype == "journal");
        groups.push(Group { options: options.clone(), journal, lines: Vec::new() });
        names.push(name);
        groups.len() - 1
    });
    groups[index].options = options;
    index
}

/// The two kinds of conditions that annotations make.
fn holds(constraint: Option<&str>, filter: &str, options: &BTreeMap<String, String>) -> bool {
    let Some(constraint) = constraint else { return true };
    let wanted = constraint.split('\'').nth_back(1).unwrap_or_default();
    let is =
        if constraint.starts_with("name") { filter == wanted } else { options.get("mode").is_some_and(|mode| mode == wanted) };
    is != constraint.contains("!=")
}

/// Runs a group and compares.
fn judge(filter: &Path, group: &Group, log: &Path, sum: &mut Sum) {
    let text: String = group.lines.iter().map(|(line, _)| format!("{line}\n")).collect();
    std::fs::write(log, text).expect("a scratch file");
    let mut command = Command::new(binary());
    command.args(["regex", "--json", "--now", &NOW.to_string(), "--timezone", ZONE]).env("TZ", "UTC");
    for (key, value) in group.options.iter().filter(|(key, _)| !key.starts_with("test.")) {
        command.arg("--opt").arg(format!("{key}={value}"));
    }
    if group.journal {
        command.arg("--journal");
    }
    let answer = Answer::of(command.arg(log).arg(filter));
    let name = format!("{} {:?}", filter.display(), group.options);
    let Ok(result) = serde_json::from_str::<Value>(&answer.out) else {
        sum.wrong.push(format!("{name}: {}{}", answer.out, answer.err));
        return;
    };
    let mut found: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    for failure in result["failures"].as_array().into_iter().flatten() {
        found.entry(failure["line"].as_u64().unwrap_or(0)).or_default().push(failure);
    }
    for (index, (line, expected)) in group.lines.iter().enumerate() {
        let here = found.get(&(index as u64 + 1)).map_or(&[][..], Vec::as_slice);
        let must = expected.as_ref().is_some_and(|expected| expected["match"] == true);
        if expected.is_some() {
            *(if must { &mut sum.matching } else { &mut sum.silent }) += 1;
            sum.journal += usize::from(group.journal);
        }
        let wrong = match (must, here) {
            (false, []) => continue,
            (false, _) => vec!["must not match".to_owned()],
            (true, [one]) => differs(one, expected.as_ref().unwrap_or(&Value::Null)),
            (true, list) => vec![format!("must match once, matches {} times", list.len())],
        };
        if !wrong.is_empty() {
            sum.wrong.push(format!("{name}: {}\n  {line}\n  {here:?}", wrong.join("; ")));
        }
    }
}

/// What of a failure is not as it was annotated.
fn differs(failure: &Value, expected: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for (key, value) in expected.as_object().into_iter().flatten() {
        let is = match key.as_str() {
            "match" | "desc" | "constraint" => continue,
            "host" => {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let (is, wanted) = (text(&failure["id"]), text(value));
                let address = |text: &str| text.parse::<std::net::IpAddr>().ok();
                if is != wanted && (address(&is).is_none() || address(&is) != address(&wanted)) {
                    wrong.push(format!("host should be {wanted}, is {is}"));
                }
                continue;
            }
            "attempts" => failure["attempts"].clone(),
            "users" => {
                let set = |value: &Value| -> BTreeSet<String> {
                    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
                };
                if set(&failure["users"]) != set(value) {
                    wrong.push(format!("users should be {value}, are {}", failure["users"]));
                }
                continue;
            }
            "time" => {
                let seconds = |text: &str| {
                    // Some are written `2005-1-9T…`.
                    let parts: Vec<f64> = text.split(['-', 'T', ':']).map(|part| part.parse().expect("a number")).collect();
                    let [year, month, day, hour, minute, second] = parts[..] else { panic!("{text}") };
                    let local = jiff::civil::datetime(
                        year as i16,
                        month as i8,
                        day as i8,
                        hour as i8,
                        minute as i8,
                        second as i8,
                        (second.fract() * 1e9).round() as i32,
                    );
                    let zone = jiff::tz::TimeZone::posix(ZONE).expect("a zone");
                    local.to_zoned(zone).expect("an instant").timestamp().as_microsecond() as f64 / 1e6
                };
                let wanted = value.as_str().map(seconds);
                if failure["unix"].as_f64() != wanted {
                    wrong.push(format!("should be at {value} ({wanted:?}), is at {}", failure["unix"]));
                }
                continue;
            }
            group => failure["groups"][group].clone(),
        };
        if is != *value {
            wrong.push(format!("{key} should be {value}, is {is}"));
        }
    }
    wrong
}

/// A filter in fail2ban's notation, written for these tests.
const OWN: &str = r"
[INCLUDES]
before = own-common.conf

[Definition]
_daemon = door
failregex = ^%(__head)s(?P<how>bad|worse) (?:key|knock) of <F-USER>\S+</F-USER> from <HOST>(?<! again)$
    <more-<mode>>
more-normal =
more-loud = ^%(__head)snoise from <HOST>$
mode = normal
";

const OWN_COMMON: &str = r"
[DEFAULT]
__head = \s*\S+ <_daemon>\[\d+\]:\s
";

fn own_filter(directory: &Path) -> String {
    std::fs::write(directory.join("own.conf"), OWN).expect("a file");
    std::fs::write(directory.join("own-common.conf"), OWN_COMMON).expect("a file");
    directory.join("own.conf").display().to_string()
}

fn regex(args: &[&str]) -> Answer {
    Answer::of(Command::new(binary()).arg("regex").args(args).env("TZ", "UTC"))
}

#[test]
fn a_jail_bans_by_a_filter_of_fail2ban() {
    in_netns("a_jail_bans_by_a_filter_of_fail2ban", || {
        let lab = Lab::new();
        let mut log = Log::create(lab.dir().join("door.log"));
        let (filter, path) = (own_filter(lab.dir()), log.path().to_owned());
        let head = format!("[jail.door]\nenabled = true\nport = \"25\"\nmaxretry = 2\nlogpath = {path:?}\n");
        let jail = |mode: &str| format!("{head}filter = \"{filter}[mode={mode}]\"\n");
        let daemon = Daemon::start(&lab, &jail("loud"));
        daemon.wait_running();
        for from in ["198.51.100.7", "198.51.100.8"] {
            log.line(&format!("{} mx door[7]: worse knock of bob from {from}", Stamp::now().syslog()));
        }
        log.line(&format!("{} mx door[7]: worse knock of bob from 198.51.100.8 again", Stamp::now().syslog()));
        log.line(&format!("{} mx door[8]: noise from 198.51.100.7", Stamp::now().syslog()));
        wait_until("the second failure bans", || elements("door-v4") == ["198.51.100.7"]);
        // A mode that the filter has not is told with the filter's own line.
        daemon.configure(&jail("lowd"));
        let refused = daemon.cli(&["reload"]);
        assert!(refused.err.contains("own.conf:7: failregex 2: <more-lowd> names nothing"), "{}{}", refused.out, refused.err);
        assert_eq!(elements("door-v4"), ["198.51.100.7"]);
    });
}

#[test]
fn the_tester_speaks_as_its_users_expect() {
    let scratch = tempfile::tempdir().expect("a directory");
    let filter = own_filter(scratch.path());
    let log = scratch.path().join("door.log");
    let lines = "Jan 15 11:59:30 mx door[7]: bad key of bob from 192.0.2.7\n# a comment\n\n\
        Jan 15 11:59:31 mx door[7]: message repeated 3 times: [ worse knock of eve from 192.0.2.8]\n\
        Jan 15 11:59:32 mx door[7]: noise from 192.0.2.9\nJan 15 11:59:33 mx door[7]: fine\n";
    std::fs::write(&log, lines).expect("a log");
    let log = log.display().to_string();
    let now = "1768478400";

    let result = regex(&["--json", "--now", now, "--timezone", "Europe/Berlin", &log, &filter]).json();
    let count = |key: &str| result[key].as_u64();
    assert_eq!([count("lines"), count("matched"), count("ignored"), count("missed")], [Some(4), Some(2), Some(0), Some(2)]);
    let failures = result["failures"].as_array().expect("failures");
    let first = &failures[0];
    assert_eq!((&first["line"], &first["addr"], &first["user"]), (&1.into(), &"192.0.2.7".into(), &"bob".into()));
    assert_eq!((&first["time"], &first["groups"]["how"]), (&"2026-01-15T10:59:30Z".into(), &"bad".into()));
    assert_eq!((&failures[1]["line"], &failures[1]["attempts"], &failures[1]["repeated"]), (&4.into(), &3.into(), &3.into()));
    assert_eq!(result["failregex"][0]["hits"], 2);
    assert_eq!(result["dates"][0]["hits"], 4);

    let loud = format!("{filter}[mode=loud]");
    assert_eq!(regex(&["--json", "--now", now, &log, &loud]).json()["matched"], 3);
    assert_eq!(regex(&["--json", "--now", now, "--opt", "mode=loud", &log, &filter]).json()["matched"], 3);
    let journal = regex(&["--json", "--now", now, "--journal", "mx door[7]: bad key of bob from 192.0.2.7", &filter]).json();
    assert_eq!(journal["failures"][0]["unix"], 1_768_478_400);

    let text = regex(&["-v", "--now", now, "--print-all-matched", &log, &filter]).ok();
    let expected = [
        "Failregex: 2 total",
        "|-  #) [# of hits] regular expression",
        "|      192.0.2.7  Thu Jan 15 11:59:30 2026",
        "Lines: 4 lines, 0 ignored, 2 matched, 2 missed",
        "|- Matched line(s):",
        "|- Missed line(s):",
        "Beyond linear time, under a limit of steps: failregex 1.",
    ];
    for line in expected {
        assert!(text.lines().any(|l| l.starts_with(line)), "{line}\n{text}");
    }
    for wrong in
        [&["/no/such.log", filter.as_str()], &[log.as_str(), "/no/such.conf"], &[log.as_str(), "shsd"], &["a/b", "x <HOST>"]]
    {
        assert_eq!(regex(wrong).code, 2, "{wrong:?}");
    }
    assert_eq!(regex(&["fine", "no address"]).code, 1);
    assert_eq!(regex(&["--json", "from 192.0.2.7", "^from <HOST>$"]).json()["matched"], 1);
}
