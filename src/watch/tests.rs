//! Tables of what people and programs do to log files, against a real kernel in a directory of our own.
//!
//! Nobody sleeps: a test waits for what it was promised, with a time limit that only a failure reaches.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;

/// Reached by a failure only, however slow the machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) enum Told {
    Lines { path: PathBuf, tags: Vec<u32>, text: Vec<u8>, live: bool, position: Position },
    TakenUp { path: PathBuf, position: Position },
    Source { path: PathBuf, what: Happening },
    Status(Vec<SourceStatus>),
    Idle,
}

pub(super) struct Recorder(pub Sender<Told>);

impl Judge for Recorder {
    fn chunk(&mut self, chunk: Chunk<'_>) {
        assert_eq!(chunk.bytes.last(), Some(&b'\n'));
        assert!(chunk.bytes.len() <= 256 * 1024);
        let _ = self.0.send(Told::Lines {
            path: chunk.path.to_owned(),
            tags: chunk.tags.to_vec(),
            text: chunk.bytes.to_vec(),
            live: chunk.live,
            position: chunk.position.clone(),
        });
    }
    fn taken_up(&mut self, path: &Path, _: &[u32], position: &Position) {
        let _ = self.0.send(Told::TakenUp { path: path.to_owned(), position: position.clone() });
    }
    fn source(&mut self, event: SourceEvent<'_>) {
        let _ = self.0.send(Told::Source { path: event.path.to_owned(), what: event.what });
    }
    fn status(&mut self, sources: Vec<SourceStatus>) {
        let _ = self.0.send(Told::Status(sources));
    }
    fn idle(&mut self) {
        let _ = self.0.send(Told::Idle);
    }
}

/// A running watch and what it told.
pub(super) struct Run {
    pub handle: WatchHandle,
    pub told: Receiver<Told>,
    thread: Option<JoinHandle<()>>,
    /// Lines in the order they came, without newline, live or not.
    pub lines: Vec<(String, bool)>,
    pub happened: Vec<(PathBuf, Happening)>,
    pub positions: HashMap<PathBuf, Position>,
    pub tags: Vec<u32>,
}

pub(super) fn habits() -> Habits {
    Habits { poll: Duration::from_millis(20), quiet: Duration::from_millis(50), ..Habits::default() }
}

impl Run {
    pub(super) fn new(habits: Habits) -> Run {
        Run::judged(habits, Recorder)
    }

    /// A watch with a judge of its own, made of where what is told is sent.
    pub(super) fn judged<J: Judge>(habits: Habits, judge: impl FnOnce(Sender<Told>) -> J + Send + 'static) -> Run {
        let (watch, handle) = Watch::new(habits).unwrap();
        let (sender, told) = channel();
        let thread = std::thread::spawn(move || watch.run(&mut judge(sender)));
        Run {
            handle,
            told,
            thread: Some(thread),
            lines: Vec::new(),
            happened: Vec::new(),
            positions: HashMap::new(),
            tags: Vec::new(),
        }
    }

    pub(super) fn following(path: impl AsRef<Path>, start: Start) -> Run {
        let run = Run::new(habits());
        run.handle.watch(1, path.as_ref().to_str().unwrap(), start);
        run
    }

    pub(super) fn take(&mut self, told: Told) -> Option<Vec<SourceStatus>> {
        match told {
            Told::Lines { path, tags, text, live, position } => {
                let text = String::from_utf8_lossy(&text).into_owned();
                self.lines.extend(text.split_terminator('\n').map(|line| (line.to_owned(), live)));
                self.positions.insert(path, position);
                self.tags = tags;
                None
            }
            Told::TakenUp { path, position } => {
                self.positions.insert(path, position);
                None
            }
            Told::Source { path, what } => {
                self.happened.push((path, what));
                None
            }
            Told::Status(sources) => Some(sources),
            Told::Idle => None,
        }
    }

    /// Waits until `enough` of what was told.
    #[track_caller]
    pub(super) fn until(&mut self, what: &str, mut enough: impl FnMut(&Run) -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !enough(self) {
            match self.told.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok(told) => _ = self.take(told),
                Err(_) => panic!("waited for {what}; got {:?} and {:?}", self.lines, self.happened),
            }
        }
    }

    #[track_caller]
    pub(super) fn happens(&mut self, what: &str, fits: impl Fn(&Happening) -> bool) {
        let mut seen = 0;
        self.until(what, |run| {
            let found = run.happened[seen..].iter().any(|(_, what)| fits(what));
            seen = run.happened.len();
            found
        });
        self.happened.clear();
    }

    #[track_caller]
    pub(super) fn caught_up(&mut self) {
        self.happens("catching up", |what| *what == Happening::CaughtUp);
    }

    /// Waits for these lines, then makes sure that nothing else came, and forgets them.
    #[track_caller]
    pub(super) fn reads(&mut self, lines: &[&str]) {
        self.until(&format!("{lines:?}"), |run| run.lines.len() >= lines.len());
        self.status();
        assert_eq!(self.lines.iter().map(|(line, _)| line.as_str()).collect::<Vec<_>>(), lines);
        self.lines.clear();
    }

    /// Everything told before the watch answered a status request: it has then looked at all that was done before.
    #[track_caller]
    pub(super) fn status(&mut self) -> Vec<SourceStatus> {
        let mut told = Vec::new();
        let sources = self.status_raw(|what| told.push(what));
        told.into_iter().for_each(|told| _ = self.take(told));
        sources
    }

    /// The same, with what was told meanwhile given to `each`.
    #[track_caller]
    pub(super) fn status_raw(&mut self, mut each: impl FnMut(Told)) -> Vec<SourceStatus> {
        // The answer to the first request may be on its way while inotify is not read yet; the second comes after.
        self.handle.status();
        let mut answers = 0;
        loop {
            match self.told.recv_timeout(PATIENCE).expect("an answer") {
                Told::Status(sources) => {
                    answers += 1;
                    if answers == 2 {
                        return sources;
                    }
                    self.handle.status();
                }
                told => each(told),
            }
        }
    }

    /// Stops the watch; what it still said is left where it is.
    pub(super) fn stop_quietly(mut self) -> Run {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self
    }

    /// Stops the watch and takes what it still said.
    pub(super) fn stop(self) -> Run {
        let mut stopped = self.stop_quietly();
        while let Ok(told) = stopped.told.try_recv() {
            stopped.take(told);
        }
        stopped
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(super) fn append(path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_ref()).unwrap();
}

pub(super) fn room() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("mail.log");
    (dir, log)
}

pub(super) fn beside(log: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", log.display()))
}

#[test]
fn old_lines_are_told_from_new_ones() {
    let (_dir, log) = room();
    append(&log, "old 1\nold 2\nha");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.caught_up();
    append(&log, "lf\nnew\n");
    run.until("four lines", |run| run.lines.len() == 4);
    let expected = [("old 1", false), ("old 2", false), ("half", true), ("new", true)].map(|(l, live)| (l.to_owned(), live));
    assert_eq!(run.lines, expected);
}

#[test]
fn from_the_end_only_new_lines_are_read() {
    let (_dir, log) = room();
    append(&log, "old\nha");
    let mut run = Run::following(&log, Start::End);
    run.caught_up();
    append(&log, "lf\nnew\n");
    run.reads(&["new"]);
}

#[test]
fn a_half_line_waits_for_its_newline() {
    let (_dir, log) = room();
    append(&log, "");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.caught_up();
    for byte in b"one two\nthr" {
        append(&log, [*byte]);
    }
    run.reads(&["one two"]);
    append(&log, "ee\n");
    run.reads(&["three"]);
}

#[test]
fn a_file_that_does_not_exist_yet_is_waited_for() {
    let (dir, _) = room();
    let log = dir.path().join("a/b/mail.log");
    let mut run = Run::following(&log, Start::End);
    let waiting =
        |at: PathBuf| move |what: &Happening| matches!(what, Happening::Missing { waiting_at, .. } if *waiting_at == at);
    run.happens("missing", waiting(dir.path().to_owned()));
    fs::create_dir(dir.path().join("a")).unwrap();
    run.happens("missing below", waiting(dir.path().join("a")));
    fs::create_dir(dir.path().join("a/b")).unwrap();
    run.happens("missing below that", waiting(dir.path().join("a/b")));
    append(&log, "first\n");
    run.happens("appeared", |what| *what == Happening::Appeared);
    append(&log, "second\n");
    run.until("lines", |run| run.lines.len() == 2);
    assert_eq!(run.lines, [("first".to_owned(), true), ("second".to_owned(), true)], "what is born while we wait is live");
}

#[test]
fn an_old_file_moved_into_place_is_not_live() {
    let (dir, log) = room();
    let elsewhere = dir.path().join("elsewhere");
    append(&elsewhere, "old\n");
    let born = elsewhere.metadata().unwrap().created().unwrap();
    // The kernel's file times are a clock tick coarse; what is older than that is old.
    while born.elapsed().unwrap() < Duration::from_millis(50) {
        std::thread::yield_now();
    }
    let mut run = Run::following(&log, Start::FromBeginning);
    run.happens("missing", |what| matches!(what, Happening::Missing { .. }));
    fs::rename(&elsewhere, &log).unwrap();
    run.until("a line", |run| run.lines.len() == 1);
    append(&log, "new\n");
    run.until("a line", |run| run.lines.len() == 2);
    assert_eq!(run.lines, [("old".to_owned(), false), ("new".to_owned(), true)]);
}

#[test]
fn a_rotated_file_is_read_to_its_end_and_followed_on() {
    let (_dir, log) = room();
    append(&log, "1\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["1"]);
    append(&log, "2\n");
    fs::rename(&log, beside(&log, ".1")).unwrap();
    append(beside(&log, ".1"), "3\n");
    append(&log, "4\n");
    run.reads(&["2", "3", "4"]);
    append(beside(&log, ".1"), "late\n");
    run.reads(&["late"]);
    append(&log, "5\n");
    run.reads(&["5"]);
}

#[test]
fn two_rotations_in_a_row_lose_nothing() {
    let (dir, log) = room();
    append(&log, "1\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["1"]);
    // All within one look: the rotations are prepared in another directory and exchanged at once.
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    for turn in 0..20 {
        append(&log, format!("a{turn}\n"));
        for (from, to) in [(".2", ".3"), (".1", ".2"), ("", ".1")] {
            let _ = fs::rename(beside(&log, from), beside(&log, to));
        }
        append(&log, format!("b{turn}\n"));
        for (from, to) in [(".2", ".3"), (".1", ".2"), ("", ".1")] {
            let _ = fs::rename(beside(&log, from), beside(&log, to));
        }
        append(&log, format!("c{turn}\n"));
        run.reads(&[&format!("a{turn}"), &format!("b{turn}"), &format!("c{turn}")]);
    }
}

#[test]
fn copytruncate_loses_nothing_that_the_copy_holds() {
    let (_dir, log) = room();
    append(&log, "first line of the old file\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["first line of the old file"]);
    for turn in 0..20 {
        append(&log, format!("unread {turn}\n"));
        fs::copy(&log, beside(&log, ".1")).unwrap();
        File::create(&log).unwrap();
        append(&log, format!("after {turn}\n"));
        run.reads(&[&format!("unread {turn}"), &format!("after {turn}")]);
    }
}

#[test]
fn a_file_truncated_and_longer_than_before_is_read_from_its_beginning() {
    let (_dir, log) = room();
    append(&log, "short\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["short"]);
    for turn in 0..20 {
        let text = format!("turn {turn} is longer {}\nend {turn}\n", "x".repeat(turn * 20));
        let file = OpenOptions::new().write(true).truncate(true).open(&log);
        file.unwrap().write_all(text.as_bytes()).unwrap();
        run.reads(&text.lines().collect::<Vec<_>>());
    }
}

#[test]
fn delete_and_create_again() {
    let (_dir, log) = room();
    append(&log, "1\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["1"]);
    for turn in 0..20 {
        append(&log, format!("a{turn}\n"));
        fs::remove_file(&log).unwrap();
        append(&log, format!("b{turn}\n"));
        run.reads(&[&format!("a{turn}"), &format!("b{turn}")]);
    }
}

#[test]
fn a_deleted_file_is_let_go_when_quiet_and_its_last_line_handed_out() {
    let (_dir, log) = room();
    append(&log, "a line\nno newline");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.caught_up();
    fs::remove_file(&log).unwrap();
    run.reads_eventually(&["a line", "no newline"]);
    run.until_status("let go", |status| status[0].rotated == 0);
}

#[test]
fn a_deleted_file_is_held_a_while_however_long_nothing_was_written_to_it_before() {
    let (_dir, log) = room();
    append(&log, "1\n");
    let quiet = Duration::from_secs(1);
    let mut run = Run::new(Habits { quiet, ..habits() });
    run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
    run.reads(&["1"]);
    // It was quiet for long.
    let begin = Instant::now();
    while let Some(left) = (2 * quiet).checked_sub(begin.elapsed()) {
        let _ = run.told.recv_timeout(left);
    }
    let removed = Instant::now();
    fs::remove_file(&log).unwrap();
    run.happens("missing", |what| matches!(what, Happening::Missing { .. }));
    run.until_status("let go", |status| status[0].rotated == 0);
    assert!(removed.elapsed() >= quiet, "its writer may still hold it: let go {:?} after its name", removed.elapsed());
}

impl Run {
    #[track_caller]
    fn reads_eventually(&mut self, lines: &[&str]) {
        self.until(&format!("{lines:?}"), |run| run.lines.len() >= lines.len());
        assert_eq!(self.lines.iter().map(|(line, _)| line.as_str()).collect::<Vec<_>>(), lines);
        self.lines.clear();
    }

    #[track_caller]
    pub(super) fn until_status(&mut self, what: &str, enough: impl Fn(&[SourceStatus]) -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !enough(&self.status()) {
            assert!(Instant::now() < limit, "waited for {what}");
        }
    }
}

#[test]
fn symbolic_links_may_change_anywhere_on_the_way() {
    let (dir, _) = room();
    for version in ["v1", "v2"] {
        fs::create_dir(dir.path().join(version)).unwrap();
        append(dir.path().join(version).join("log"), format!("{version} 1\n"));
    }
    let current = dir.path().join("current");
    symlink("v1", &current).unwrap();
    let switch = |to: &str| {
        let new = dir.path().join("new");
        symlink(to, &new).unwrap();
        fs::rename(&new, &current).unwrap();
    };
    let mut run = Run::following(current.join("log"), Start::FromBeginning);
    run.reads(&["v1 1"]);
    switch("v2");
    run.reads(&["v2 1"]);
    append(dir.path().join("v1/log"), "v1 2\n");
    run.reads(&["v1 2"]);
    append(dir.path().join("v2/log"), "v2 2\n");
    run.reads(&["v2 2"]);
    switch("v1");
    append(dir.path().join("v1/log"), "v1 3\n");
    run.reads(&["v1 3"]);
}

#[test]
fn a_file_replaced_by_a_symbolic_link() {
    let (dir, log) = room();
    append(&log, "1\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["1"]);
    let target = dir.path().join("target");
    append(&target, "2\n");
    fs::remove_file(&log).unwrap();
    symlink(&target, &log).unwrap();
    run.reads(&["2"]);
    // The link's target is rotated where it lies.
    fs::rename(&target, dir.path().join("target.1")).unwrap();
    append(&target, "3\n");
    run.reads(&["3"]);
}

#[test]
fn a_directory_vanishes_and_returns() {
    let (dir, _) = room();
    let inner = dir.path().join("a");
    let log = inner.join("b/mail.log");
    let fill = |line: &str| {
        fs::create_dir_all(inner.join("b")).unwrap();
        append(&log, line);
    };
    fill("1\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["1"]);
    fs::remove_dir_all(&inner).unwrap();
    run.happens("missing", |what| matches!(what, Happening::Missing { .. }));
    fill("2\n");
    run.reads(&["2"]);
    fs::rename(&inner, dir.path().join("moved")).unwrap();
    run.happens("missing", |what| matches!(what, Happening::Missing { .. }));
    append(dir.path().join("moved/b/mail.log"), "3\n");
    run.reads(&["3"]);
    fill("4\n");
    run.reads(&["4"]);
}

#[test]
fn a_fifo_is_read_as_it_is_written() {
    let (_dir, log) = room();
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut run = Run::following(&log, Start::FromBeginning);
    run.happens("appeared", |what| *what == Happening::Appeared);
    for turn in 0..3 {
        let mut writer = OpenOptions::new().write(true).open(&log).unwrap();
        writer.write_all(format!("one {turn}\nha").as_bytes()).unwrap();
        run.reads(&[&format!("one {turn}")]);
        writer.write_all(b"lf\n").unwrap();
        run.reads(&["half"]);
    }
}

#[test]
fn what_is_no_log_is_said_to_be_none() {
    let (dir, log) = room();
    fs::create_dir(&log).unwrap();
    let mut run = Run::following(&log, Start::FromBeginning);
    run.happens("unreadable", |what| *what == Happening::Unreadable(Errno::EISDIR));
    fs::remove_dir(&log).unwrap();
    append(&log, "1\n");
    run.reads(&["1"]);
    drop(run);
    let null = Run::following("/dev/null", Start::FromBeginning);
    let null = null.stop();
    assert_eq!(null.happened.first().map(|(_, what)| what.clone()), Some(Happening::Unreadable(Errno::EINVAL)));
    drop(dir);
}

#[test]
fn globs_are_live() {
    let (dir, _) = room();
    let (a, b) = (dir.path().join("x/a.log"), dir.path().join("y/b.log"));
    let mut run = Run::following(dir.path().join("*/*.log"), Start::FromBeginning);
    run.happens("missing", |what| matches!(what, Happening::Missing { .. }));
    fs::create_dir(dir.path().join("x")).unwrap();
    append(&a, "a\n");
    append(dir.path().join("x/no.txt"), "no\n");
    run.reads(&["a"]);
    run.happens("matched", |what| *what == Happening::Matched);
    fs::create_dir(dir.path().join("y")).unwrap();
    append(&b, "b\n");
    run.reads(&["b"]);
    fs::remove_file(&a).unwrap();
    run.happens("forgotten", |what| *what == Happening::Forgotten);
    append(&a, "a again\n");
    run.reads(&["a again"]);
}

#[test]
fn a_glob_that_finds_what_was_rotated_reads_it_once() {
    let (dir, log) = room();
    append(&log, "1\n");
    let mut run = Run::following(dir.path().join("mail.log*"), Start::FromBeginning);
    run.reads(&["1"]);
    for turn in 0..6 {
        append(&log, format!("a{turn}\n"));
        let _ = fs::rename(beside(&log, ".1"), beside(&log, ".2"));
        fs::rename(&log, beside(&log, ".1")).unwrap();
        append(&log, format!("b{turn}\n"));
        run.until("two lines", |run| run.lines.len() >= 2);
        run.status();
        run.lines.sort();
        run.reads(&[&format!("a{turn}"), &format!("b{turn}")]);
    }
    fs::hard_link(&log, beside(&log, ".hard")).unwrap();
    append(&log, "once\n");
    run.reads(&["once"]);
    let status = run.status();
    assert_eq!(status.iter().filter(|status| matches!(status.state, SourceState::SameAs(_))).count(), 1);
}

#[test]
fn a_file_that_two_jails_watch_is_read_once() {
    let (dir, log) = room();
    append(&log, "");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.handle.watch(7, log.to_str().unwrap(), Start::FromBeginning);
    run.handle.watch(3, dir.path().join("*.log").to_str().unwrap(), Start::End);
    run.status();
    append(&log, "one\n");
    run.reads(&["one"]);
    assert_eq!(run.tags, [1, 3, 7]);
    run.handle.forget(1);
    run.handle.forget(3);
    run.status();
    append(&log, "two\n");
    run.reads(&["two"]);
    assert_eq!(run.tags, [7]);
    run.handle.forget(7);
    run.happens("forgotten", |what| *what == Happening::Forgotten);
    assert!(run.status().is_empty());
}

#[test]
fn a_long_line_is_cut_and_counted() {
    let (_dir, log) = room();
    append(&log, "before\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["before"]);
    append(&log, vec![b'x'; 10 * 1024 * 1024]);
    append(&log, "tail\nafter\n");
    let cut = "x".repeat(LONGEST_LINE);
    run.reads(&[&cut, "after"]);
    run.happens("a count", |what| *what == Happening::LinesCut(1));
    assert_eq!(run.status()[0].lines_cut, 1);
}

#[test]
fn nul_invalid_utf8_and_crlf_pass() {
    let (_dir, log) = room();
    append(&log, b"a\r\n\xff\xfe\n\0\0\0b\n");
    append(&log, vec![0; 300_000]);
    append(&log, "after power loss\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["a\r", "\u{fffd}\u{fffd}", "b", "after power loss"]);
}

#[test]
fn a_hole_of_any_size_is_passed_at_once() {
    let (_dir, log) = room();
    append(&log, "1\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["1"]);
    // To read so much NUL would take hours.
    OpenOptions::new().write(true).open(&log).unwrap().set_len(1 << 43).unwrap();
    append(&log, "2\n");
    run.reads(&["2"]);
    append(&log, "3\n");
    run.reads(&["3"]);
    let positions = run.stop().positions.clone();
    append(&log, "4\n");
    let mut run = Run::new(habits());
    run.handle.resume(&log, positions[&log].clone());
    run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
    run.reads(&["4"]);
}

#[test]
fn a_thousand_files_at_once() {
    // Each file takes a descriptor.
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let most =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<u64>().ok());
    if most.is_some_and(|most| most < 2000) {
        eprintln!("SKIPPED: a thousand files need more descriptors than ulimit -n allows here ({most:?})");
        return;
    }
    let (dir, _) = room();
    let path = |number: usize| dir.path().join(format!("{number:04}.log"));
    (0..1000).for_each(|number| append(path(number), "old\n"));
    let mut run = Run::following(dir.path().join("*.log"), Start::End);
    run.until("all caught up", |run| run.happened.iter().filter(|(_, what)| *what == Happening::CaughtUp).count() == 1000);
    (0..1000).for_each(|number| append(path(number), format!("{number}\n")));
    run.until("all lines", |run| run.lines.len() >= 1000);
    run.status();
    let mut numbers: Vec<usize> = run.lines.iter().map(|(line, _)| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
}

#[test]
fn without_watches_left_a_path_is_polled() {
    for watches in [0, 1, 2, 3, 4, 5, 6, 7, 8] {
        let (_dir, log) = room();
        append(&log, "1\n");
        let mut run = Run::new(Habits { watches, ..habits() });
        run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
        run.reads_eventually(&["1"]);
        append(&log, "2\n");
        run.reads_eventually(&["2"]);
        fs::rename(&log, beside(&log, ".1")).unwrap();
        append(beside(&log, ".1"), "3\n");
        run.reads_eventually(&["3"]);
        append(&log, "4\n");
        run.reads_eventually(&["4"]);
        fs::remove_file(&log).unwrap();
        append(&log, "5\n");
        run.reads_eventually(&["5"]);
        if watches == 0 {
            assert_eq!(run.status()[0].polled, Some(Polled::Refused(Errno::ENOSPC)));
        }
    }
}

#[test]
fn an_unreadable_log_is_read_once_it_may_be() {
    if nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: root reads what nobody may read");
        return;
    }
    let (_dir, log) = room();
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o000).open(&log).unwrap().write_all(b"1\n").unwrap();
    let mut run = Run::following(&log, Start::FromBeginning);
    run.happens("unreadable", |what| *what == Happening::Unreadable(Errno::EACCES));
    fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).unwrap();
    run.reads(&["1"]);
}

/// Follows, stops, does something, goes on from the saved position.
#[track_caller]
fn down(before: &str, first: &[&str], meanwhile: impl Fn(&Path), after: &[&str]) {
    let (_dir, log) = room();
    append(&log, before);
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(first);
    let positions = run.stop().positions.clone();
    meanwhile(&log);
    let mut run = Run::new(habits());
    for (path, position) in positions {
        run.handle.resume(path, position);
    }
    run.handle.watch(1, log.to_str().unwrap(), Start::End);
    run.reads(after);
    if log.exists() {
        run.caught_up();
    }
    // Whatever happened, what comes next is read.
    append(&log, "\nnext\n");
    run.until("the next line", |run| run.lines.iter().any(|(line, _)| line == "next"));
}

pub(super) fn gzip(path: &Path) {
    let mut to = flate2::write::GzEncoder::new(File::create(beside(path, ".gz")).unwrap(), flate2::Compression::fast());
    let meta = path.metadata().unwrap();
    to.write_all(&fs::read(path).unwrap()).unwrap();
    to.finish().unwrap().set_modified(meta.modified().unwrap()).unwrap();
    fs::remove_file(path).unwrap();
}

#[test]
fn nothing_happened_while_we_were_down() {
    down("1\n2\n", &["1", "2"], |_| (), &[]);
}

#[test]
fn lines_written_while_we_were_down() {
    down("1\n2\nha", &["1", "2"], |log| append(log, "lf\n3\n"), &["half", "3"]);
}

#[test]
fn renamed_while_we_were_down() {
    let meanwhile = |log: &Path| {
        append(log, "2\n");
        fs::rename(log, beside(log, ".1")).unwrap();
        append(log, "3\n");
    };
    down("1\n", &["1"], meanwhile, &["2", "3"]);
}

#[test]
fn renamed_three_times_while_we_were_down_the_older_ones_compressed() {
    let meanwhile = |log: &Path| {
        append(log, "2\n");
        for turn in 3..6 {
            for (from, to) in [(".3.gz", ".4.gz"), (".2.gz", ".3.gz"), ("", ".1")] {
                let _ = fs::rename(beside(log, from), beside(log, to));
            }
            append(log, format!("{turn}\n"));
            if turn < 5 {
                fs::rename(beside(log, ".1"), beside(log, ".2")).unwrap();
                gzip(&beside(log, ".2"));
            }
        }
    };
    down("1\n", &["1"], meanwhile, &["2", "3", "4", "5"]);
}

#[test]
fn renamed_by_date_while_we_were_down() {
    let meanwhile = |log: &Path| {
        append(log, "2\n");
        fs::rename(log, beside(log, "-20261121")).unwrap();
        append(log, "3\n");
        fs::rename(log, beside(log, "-20261122")).unwrap();
        gzip(&beside(log, "-20261121"));
        append(log, "4\n");
    };
    down("1\n", &["1"], meanwhile, &["2", "3", "4"]);
}

#[test]
fn copied_and_truncated_twice_while_we_were_down() {
    let meanwhile = |log: &Path| {
        append(log, "2\n");
        fs::copy(log, beside(log, ".1")).unwrap();
        File::create(log).unwrap();
        append(log, "3\n");
        fs::rename(beside(log, ".1"), beside(log, ".2")).unwrap();
        fs::copy(log, beside(log, ".1")).unwrap();
        File::create(log).unwrap();
        append(log, "4 which makes it longer than it was\n");
    };
    down("1\n", &["1"], meanwhile, &["2", "3", "4 which makes it longer than it was"]);
}

#[test]
fn deleted_and_created_while_we_were_down() {
    let meanwhile = |log: &Path| {
        fs::remove_file(log).unwrap();
        append(log, "2 has another beginning\n");
    };
    down("1\n", &["1"], meanwhile, &["2 has another beginning"]);
}

#[test]
fn missing_while_we_were_down() {
    let meanwhile = |log: &Path| {
        append(log, "2\n");
        fs::rename(log, beside(log, ".1")).unwrap();
    };
    down("1\n", &["1"], meanwhile, &["2"]);
}

#[test]
fn shortened_by_a_power_loss_it_is_not_read_again() {
    let meanwhile = |log: &Path| OpenOptions::new().write(true).open(log).unwrap().set_len(400).unwrap();
    let text: String = (0..100).map(|number| format!("line {number}\n")).collect();
    let lines: Vec<&str> = text.lines().collect();
    down(&text, &lines, meanwhile, &[]);
}

#[test]
fn a_file_moved_to_another_inode_goes_on() {
    let meanwhile = |log: &Path| {
        fs::copy(log, beside(log, ".new")).unwrap();
        fs::rename(beside(log, ".new"), log).unwrap();
        append(log, "2\n");
    };
    down("1\n", &["1"], meanwhile, &["2"]);
}

/// Follows until the file is taken up, stops before a line of it was handed out, makes of the position what `known` says, does
/// something, goes on.
#[track_caller]
fn killed_at_once(before: &str, known: impl Fn(&mut position::Mark), meanwhile: impl Fn(&Path), after: &[&str]) {
    let (_dir, log) = room();
    append(&log, before);
    let mut first = None;
    let run = Run::following(&log, Start::FromBeginning);
    while first.is_none() {
        match run.told.recv_timeout(PATIENCE).expect("a position") {
            Told::TakenUp { position, .. } => first = Some(position),
            Told::Lines { .. } => panic!("a line before the position"),
            _ => {}
        }
    }
    drop(run);
    let mut position = first.unwrap();
    position.marks.iter_mut().for_each(known);
    meanwhile(&log);
    let mut run = Run::new(habits());
    run.handle.resume(&log, position);
    run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
    run.reads(after);
}

fn untouched(_: &mut position::Mark) {}

#[test]
fn killed_before_the_first_chunk_and_rotated() {
    let rotated = |log: &Path| {
        append(log, "1\n2\n");
        fs::rename(log, beside(log, ".1")).unwrap();
        append(log, "3\n");
    };
    for before in ["", "0\n"] {
        let lines = ["0", "1", "2", "3"];
        let lines = if before.is_empty() { &lines[1..] } else { &lines[..] };
        killed_at_once(before, untouched, rotated, lines);
        killed_at_once(before, |mark| mark.birth = 0, rotated, lines);
    }
}

#[test]
fn killed_before_the_first_chunk_and_rotated_twice_the_older_one_compressed() {
    let meanwhile = |log: &Path| {
        append(log, "1\n");
        fs::rename(log, beside(log, ".2")).unwrap();
        append(log, "2\n");
        fs::rename(log, beside(log, ".1")).unwrap();
        gzip(&beside(log, ".2"));
        append(log, "3\n");
    };
    killed_at_once("", untouched, meanwhile, &["1", "2", "3"]);
}

#[test]
fn killed_before_the_first_chunk_copied_and_truncated() {
    let meanwhile = |log: &Path| {
        append(log, "1\n");
        fs::copy(log, beside(log, ".1")).unwrap();
        File::create(log).unwrap();
        append(log, "2\n");
    };
    killed_at_once("", untouched, meanwhile, &["1", "2"]);
    killed_at_once(
        "",
        untouched,
        |log| {
            meanwhile(log);
            fs::rename(beside(log, ".1"), beside(log, ".2")).unwrap();
            fs::rename(log, beside(log, ".1")).unwrap();
            append(log, "3\n");
        },
        &["1", "2", "3"],
    );
}

#[test]
fn what_was_rotated_before_the_file_was_born_is_not_read_though_written_to_since() {
    let (_dir, log) = room();
    append(&log, "old\n");
    fs::rename(&log, beside(&log, ".1")).unwrap();
    let old = beside(&log, ".1").metadata().unwrap();
    append(&log, "");
    while log.metadata().unwrap().created().unwrap() == old.created().unwrap() {
        fs::remove_file(&log).unwrap();
        append(&log, "");
    }
    let mut run = Run::following(&log, Start::FromBeginning);
    run.caught_up();
    let positions = run.stop().positions.clone();
    append(beside(&log, ".1"), "late\n");
    append(&log, "new\n");
    let mut run = Run::new(habits());
    for (path, position) in positions {
        run.handle.resume(path, position);
    }
    run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
    run.reads(&["new"]);
}

#[test]
fn an_inode_number_given_to_another_file_proves_nothing() {
    // The inode that was taken up is gone; its number belongs to a file rotated before, whose lines were read.
    let (_dir, log) = room();
    append(&log, "");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.caught_up();
    let position = run.stop().positions.remove(&log).unwrap();
    let mut mark = position.marks[0];
    append(&log, "1\n");
    fs::rename(&log, beside(&log, ".1")).unwrap();
    // The kernel's file times are a clock tick coarse.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(50) {
        std::thread::yield_now();
    }
    append(&log, "2\n");
    let reads = |mark: position::Mark, lines: &[&str]| {
        let mut run = Run::new(habits());
        run.handle.resume(&log, Position { marks: vec![mark], ..Position::default() });
        run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
        run.reads(lines);
    };
    reads(mark, &["1", "2"]);
    // Taken up later than what is there was last written to: by its birth, and were it not for that by its time, it is not ours.
    mark.birth += 1;
    mark.modified = i64::MAX;
    reads(mark, &["2"]);
    mark.birth = 0;
    reads(mark, &["2"]);
    mark.birth = position.marks[0].birth;
    reads(mark, &["1", "2"]);
}

#[test]
fn a_mark_of_nonsense_harms_nothing() {
    let (_dir, log) = room();
    append(&log, "1\n");
    let run = Run::new(habits());
    let wild = position::Mark { offset: u64::MAX, head_len: u16::MAX, tail_len: u16::MAX, ..Default::default() };
    let wilder = position::Mark { offset: 1, head_len: 9, tail_len: 100, ..wild };
    run.handle.resume(&log, Position { marks: vec![wild, wilder, wild], ..Position::default() });
    run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
    let mut run = run;
    run.reads(&["1"]);
}

/// How often the calling thread went to sleep so far: each time something woke it.
fn wakeups() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.unwrap().trim().parse().unwrap()
}

struct Sink {
    bytes: u64,
    /// How often the thread had slept when all was read: on the way there it may wait for a disk.
    asleep: u64,
    seen: Sender<u64>,
}

impl Judge for Sink {
    fn chunk(&mut self, chunk: Chunk<'_>) {
        self.bytes += chunk.bytes.len() as u64;
        if chunk.live {
            let _ = self.seen.send(self.bytes);
        }
    }
    fn taken_up(&mut self, _: &Path, _: &[u32], _: &Position) {}
    fn source(&mut self, event: SourceEvent<'_>) {
        if event.what == Happening::CaughtUp {
            self.asleep = wakeups();
            let _ = self.seen.send(self.bytes);
        }
    }
    fn status(&mut self, _: Vec<SourceStatus>) {}
    fn idle(&mut self) {}
}

fn watched_by_sink(patterns: &[String]) -> (WatchHandle, Receiver<u64>, JoinHandle<(Duration, u64)>) {
    let (watch, handle) = Watch::new(Habits::default()).unwrap();
    for (tag, pattern) in (1..).zip(patterns) {
        handle.watch(tag, pattern.clone(), Start::FromBeginning);
    }
    let (seen, sees) = channel();
    let thread = std::thread::spawn(move || {
        let mut sink = Sink { bytes: 0, asleep: 0, seen };
        watch.run(&mut sink);
        let used = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        (Duration::from(used), wakeups() - sink.asleep)
    });
    (handle, sees, thread)
}

/// `cargo test --release --lib watch::tests::figures -- --ignored --nocapture`
#[test]
#[ignore = "prints figures; meant for a release build"]
fn figures() {
    let (dir, log) = room();
    let line =
        format!("Nov 22 05:00:00 mx sshd[77]: Failed password for root from 198.51.100.7 port 4711 ssh2 {}\n", "x".repeat(55));
    fs::write(&log, line.repeat(1_000_000)).unwrap();
    fs::read(&log).unwrap();
    let (handle, sees, thread) = watched_by_sink(&[log.to_str().unwrap().to_owned()]);
    let bytes = sees.recv_timeout(PATIENCE).unwrap();
    let mut delays: Vec<Duration> = (0..2000)
        .map(|_| {
            let begin = Instant::now();
            append(&log, &line);
            sees.recv_timeout(PATIENCE).unwrap();
            begin.elapsed()
        })
        .collect();
    delays.sort_unstable();
    handle.stop();
    let (used, _) = thread.join().unwrap();
    println!("a million lines ({bytes} bytes) and 2000 single ones: {used:?} of CPU");
    println!("write to judge and back to the writer: median {:?}, 99 % {:?}", delays[1000], delays[1980]);

    for number in 0..1000 {
        append(dir.path().join(format!("many-{number}.txt")), "old\n");
    }
    let before = fs::read_to_string("/proc/self/statm").unwrap();
    let (handle, sees, thread) = watched_by_sink(&[dir.path().join("*.txt").to_str().unwrap().to_owned()]);
    (0..1000).for_each(|_| _ = sees.recv_timeout(PATIENCE).unwrap());
    let after = fs::read_to_string("/proc/self/statm").unwrap();
    let pages = |text: &str| text.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
    println!("1000 files: {} KiB resident more than before", (pages(&after) - pages(&before)) * 4);
    handle.stop();
    println!("1000 files: {:?} of CPU", thread.join().unwrap().0);
}

#[test]
fn nothing_wakes_an_idle_watch() {
    let (_dir, log) = room();
    append(&log, "1\n");
    let (handle, sees, thread) = watched_by_sink(&[log.to_str().unwrap().to_owned(), "/nonexistent/file".to_owned()]);
    sees.recv_timeout(PATIENCE).unwrap();
    // What is measured is that nothing happens for a while.
    let idle = Duration::from_millis(1500);
    let begin = Instant::now();
    while begin.elapsed() < idle {
        assert!(sees.recv_timeout(idle.saturating_sub(begin.elapsed())).is_err(), "nothing was written");
    }
    handle.stop();
    let (_, wakeups) = thread.join().unwrap();
    assert!(wakeups < 6, "{wakeups} wakeups of a watch that had one file to read and then nothing to do");
}
