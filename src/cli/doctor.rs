//! `banset doctor`: everything that would keep a ban from biting, looked for from the outside, whether a daemon runs or not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::{Global, NEGATIVE, Shown, load, out, show};
use crate::config::run::MANUAL;
use crate::control::{Request, client};
use crate::doctor::{Aim, Finding, examine, facts};
use crate::engine::Specs;
use crate::nft::Socket;
use crate::terms::{Blocktype, escape, plain};

/// A log nobody wrote to for so long is asked about.
const QUIET: Duration = Duration::from_secs(7 * 86_400);
/// A clock before this instant (2024) was never set.
const NEVER_SET: u64 = 1_704_067_200;

/// What was looked at, and what there is to say of it.
#[derive(Default)]
struct Visit {
    sound: Vec<String>,
    findings: Vec<Finding>,
}

impl Visit {
    fn trouble(&mut self, jail: Option<&str>, bites: bool, what: String, help: &str) {
        let jails = jail.map(str::to_owned).into_iter().collect();
        self.findings.push(Finding { jails, bites, what, help: help.to_owned() });
    }
}

/// `banset doctor`: exit 0 if bans bite, 1 if something keeps them from it.
pub fn doctor(global: &Global, shown: Shown) -> u8 {
    let mut visit = Visit::default();
    kernel(&mut visit);
    clock(&mut visit);
    if let Some(specs) = configuration(global, &mut visit) {
        let (facts, unread) = facts::look();
        unread
            .into_iter()
            .for_each(|why| visit.trouble(None, true, why, "run it as root: what others' tables do was not looked at"));
        let found = examine(&facts, &Aim::all(&specs));
        if found.is_empty() {
            visit.sound.push("hooks: every jail's chains meet the packets they are meant for".to_owned());
        }
        visit.findings.extend(found);
        hooks(&specs, &mut visit);
        sources(&specs, &mut visit);
        daemon(global, &specs, &mut visit);
    }
    let blunt = visit.findings.iter().any(|finding| !finding.bites);
    match shown.json {
        true => {
            let finding = |f: &Finding| json!({ "jails": f.jails, "bites": f.bites, "what": f.what, "help": f.help });
            let findings: Vec<_> = visit.findings.iter().map(finding).collect();
            out(&format!("{}\n", json!({ "sound": visit.sound, "findings": findings })));
        }
        false => out(&text(&visit)),
    }
    if blunt { NEGATIVE } else { 0 }
}

fn text(visit: &Visit) -> String {
    let mut text = String::new();
    visit.sound.iter().for_each(|line| text.push_str(&format!("ok    {line}\n")));
    for finding in &visit.findings {
        let mark = if finding.bites { "note " } else { "ALARM" };
        text.push_str(&format!("{mark} {finding}\n"));
    }
    match visit.findings.iter().filter(|finding| !finding.bites).count() {
        0 => text.push_str("nothing keeps a ban from biting\n"),
        1 => text.push_str("one thing keeps bans from biting\n"),
        n => text.push_str(&format!("{n} things keep bans from biting\n")),
    }
    text
}

fn kernel(visit: &mut Visit) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = escape(release.trim_end().as_bytes(), 64);
    match Socket::open() {
        Ok(socket) => {
            let features = socket.features();
            visit.sound.push(format!("kernel {release}: nf_tables answers, features: {features}"));
        }
        Err(why) => {
            let help = "run as root or grant CAP_NET_ADMIN; the kernel needs nf_tables (Linux 5.10 or later)";
            visit.trouble(None, false, why.to_string().lines().next().unwrap_or_default().to_owned(), help);
        }
    }
}

/// Places where jails want chains and this kernel has none, or has chains but no reject.
fn hooks(specs: &Specs, visit: &mut Visit) {
    // That nf_tables does not answer is said already.
    let Ok(mut socket) = Socket::open() else { return };
    let mut places = BTreeMap::<_, (Vec<String>, Vec<String>)>::new();
    for spec in specs.jails.iter().filter(|spec| spec.name != MANUAL) {
        for (family, (hook, _)) in spec.families.iter().flat_map(|family| spec.hooks.iter().map(|hook| (*family, *hook))) {
            let (all, rejecting) = places.entry((family, hook)).or_default();
            all.push(spec.name.clone());
            rejecting.extend((spec.blocktype == Blocktype::Reject).then(|| spec.name.clone()));
        }
    }
    for ((family, hook), (all, rejecting)) in places {
        match socket.allows(family, hook) {
            Ok((false, _)) => visit.findings.push(Finding {
                jails: all,
                bites: false,
                what: format!("this kernel has no {family} {hook}"),
                help: format!("load the module nf_tables_{family}, or leave {hook} out of chain_hook"),
            }),
            Ok((true, false)) if !rejecting.is_empty() => visit.findings.push(Finding {
                jails: rejecting,
                bites: true,
                what: format!("this kernel can not reject at {family} {hook}: packets are dropped there"),
                help: "nothing is let through; write blocktype = \"drop\" to say so".to_owned(),
            }),
            Ok(_) => {}
            Err(why) => visit.trouble(None, true, why.to_string(), "the kernel was not asked which hooks it has"),
        }
    }
}

fn clock(visit: &mut Visit) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match crate::sys::clock_is_synchronized() {
        _ if now < NEVER_SET => {
            visit.trouble(
                None,
                false,
                "the clock was never set: every log line is from the future".to_owned(),
                "set it, and keep it set with an NTP client",
            );
        }
        Some(false) => {
            visit.trouble(
                None,
                true,
                "the clock is not synchronized".to_owned(),
                "failures are counted by the log's own times: run an NTP client",
            );
        }
        Some(true) | None => visit.sound.push("clock: set".to_owned()),
    }
}

fn configuration(global: &Global, visit: &mut Visit) -> Option<Specs> {
    let paths = load::paths(global);
    let (_, loaded) = load::read(&paths);
    let help = "`banset check` cites every mistake";
    for note in &loaded.report.notes {
        if loaded.config.is_none() || !loaded.report.is_sound() {
            visit.trouble(None, loaded.config.is_some(), note.headline(), help);
        }
    }
    let config = loaded.config?;
    for broken in &config.broken {
        visit.trouble(Some(&broken.name), false, format!("the jail is broken: {}", broken.why), help);
    }
    if loaded.report.is_sound() {
        let jails = config.jails.iter().filter(|jail| jail.name != MANUAL).count();
        visit.sound.push(format!("configuration: {}, {jails} jails enabled", paths.main.display()));
    }
    match load::specs(&config, None) {
        Ok(specs) => Some(specs),
        Err(why) => {
            visit.trouble(None, false, why, help);
            None
        }
    }
}

/// Logs that are not there, not readable, or silent.
fn sources(specs: &Specs, visit: &mut Visit) {
    let mut read = 0;
    for spec in specs.jails.iter().filter(|spec| spec.broken.is_none()) {
        // What lies in files that are not there may come from the journal instead: the daemon chooses, and `status` says what.
        let or_journal = spec.journal.is_some() && crate::engine::spawner::installed();
        for pattern in spec.patterns.iter().filter(|_| !or_journal) {
            let shown = escape(pattern.as_bytes(), 4096);
            let paths: Vec<_> = glob::glob(pattern).map(|paths| paths.flatten().collect()).unwrap_or_default();
            if paths.is_empty() {
                let help = "mend logpath, or install what writes it; the daemon picks it up as soon as it appears";
                visit.trouble(Some(&spec.name), false, format!("{shown}: no such file"), help);
            }
            for path in paths {
                let named = escape(path.as_os_str().as_encoded_bytes(), 4096);
                // A FIFO that nobody writes to is not waited for.
                let opened = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
                match opened.and_then(|file| file.metadata()) {
                    Err(e) => visit.trouble(
                        Some(&spec.name),
                        false,
                        format!("{named}: {}", plain(&e)),
                        "the daemon needs CAP_DAC_READ_SEARCH to read it",
                    ),
                    Ok(about) => {
                        read += 1;
                        let quiet = about.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
                        if let Some(quiet) = quiet.filter(|quiet| *quiet > QUIET) {
                            let days = quiet.as_secs() / 86_400;
                            let what = format!("{named}: nobody wrote to it for {days} days");
                            visit.trouble(
                                Some(&spec.name),
                                true,
                                what,
                                "does the service log elsewhere now, for instance to the journal?",
                            );
                        }
                    }
                }
            }
        }
    }
    visit.sound.push(format!("sources: {read} files can be read"));
}

/// What a running daemon says of itself.
fn daemon(global: &Global, specs: &Specs, visit: &mut Visit) {
    let status = match client::ask(&show::socket(global), Request::Status { jail: None }) {
        Ok(reply) if reply.exit == 0 => reply.result,
        Ok(reply) => {
            let help = reply.help.unwrap_or_else(|| "ask again as root".to_owned());
            let why = reply.error.unwrap_or_else(|| "it did not say why".to_owned());
            return visit.trouble(None, true, format!("the daemon does not answer: {why}"), &help);
        }
        Err(why) => {
            let why = why.lines().next().unwrap_or_default().to_owned();
            return visit.trouble(None, false, why, "start it: what is banned stays banned, but nobody new is");
        }
    };
    if let Some(why) = status["degraded"].as_str() {
        visit.trouble(
            None,
            true,
            format!("the daemon runs on an older configuration: {why}"),
            "mend the files, then `banset reload`",
        );
    }
    if let Some(why) = status["state"].as_str() {
        visit.trouble(None, true, format!("nothing is remembered over a restart: {why}"), "mend the state directory");
    }
    for table in status["nft"].as_array().into_iter().flatten() {
        if let Some(why) = table["degraded"].as_str() {
            visit.trouble(None, false, format!("the table is not whole: {why}"), "see the daemon's log");
        }
    }
    let jails = status["jails"].as_array().map(Vec::as_slice).unwrap_or_default();
    let runs = |name: &str| jails.iter().any(|jail| jail["name"] == name);
    for spec in specs.jails.iter().filter(|spec| !runs(&spec.name)) {
        visit.trouble(Some(&spec.name), false, "the running daemon does not know this jail".to_owned(), "`banset reload`");
    }
    let enabled = jails.iter().filter(|jail| jail["name"] != MANUAL).count();
    visit.sound.push(format!("daemon: it runs, {enabled} jails"));
}
