//! What happens between two looks of the watch, in a sequence that a test decides: the watch is held in its judge, or is not told and
//! does not poll, while files are rotated.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::tests::{PATIENCE, Recorder, Run, Told, append, beside, gzip, habits, room};
use super::{Chunk, Habits, Happening, Judge, Position, SourceEvent, SourceState, SourceStatus, Start};

/// Stops at the first chunk that holds `at`, until it is let go on.
struct Gate {
    recorder: Recorder,
    at: &'static [u8],
    reached: SyncSender<()>,
    go_on: Receiver<()>,
}

impl Judge for Gate {
    fn chunk(&mut self, chunk: Chunk<'_>) {
        let here = chunk.bytes.windows(self.at.len()).any(|window| window == self.at);
        self.recorder.chunk(chunk);
        if here {
            let _ = self.reached.send(());
            let _ = self.go_on.recv();
        }
    }
    fn taken_up(&mut self, path: &Path, tags: &[u32], position: &Position) {
        self.recorder.taken_up(path, tags, position);
    }
    fn source(&mut self, event: SourceEvent<'_>) {
        self.recorder.source(event);
    }
    fn status(&mut self, sources: Vec<SourceStatus>) {
        self.recorder.status(sources);
    }
    fn idle(&mut self) {
        self.recorder.idle();
    }
}

/// Follows `log`; while the watch hands out `at` the rest of what it would see is done.
fn held_at(log: &Path, at: &'static str, meanwhile: impl FnOnce()) -> Run {
    let (reached, reaches) = sync_channel(0);
    let (go, go_on) = sync_channel(0);
    let run = Run::judged(habits(), move |sender| Gate { recorder: Recorder(sender), at: at.as_bytes(), reached, go_on });
    run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
    reaches.recv_timeout(PATIENCE).expect("the line is handed out");
    meanwhile();
    let _ = go.send(());
    run
}

/// Goes on where `run` stopped.
fn again(run: Run) -> Run {
    let positions = run.stop().positions.clone();
    let run = Run::new(habits());
    for (path, position) in positions {
        // It goes through JSON, as it would.
        let text = serde_json::to_string(&position).unwrap();
        run.handle.resume(&path, serde_json::from_str(&text).unwrap());
        run.handle.watch(1, path.to_str().unwrap(), Start::FromBeginning);
    }
    run
}

/// The directories may be watched, the log may not, and nobody looks by himself.
fn blind(log: &Path) -> Run {
    let run = Run::new(Habits { watches: log.ancestors().count() - 1, poll: Duration::from_secs(3600), ..habits() });
    run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
    run
}

/// Waits until files are stamped with another time than before: the kernel's clock for them is a tick coarse.
fn a_tick_later(log: &Path) {
    let probe = beside(log, ".probe");
    let stamp = || {
        append(&probe, "x");
        probe.metadata().unwrap().modified().unwrap()
    };
    let before = stamp();
    while stamp() == before {
        std::thread::yield_now();
    }
    fs::remove_file(&probe).unwrap();
}

fn rewrite(path: &Path, text: &str) {
    let file = OpenOptions::new().write(true).truncate(true).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

/// `.1` becomes `.2` and so on, then the log is copied and truncated.
fn copy_and_truncate(log: &Path) {
    shift(log);
    fs::copy(log, beside(log, ".1")).unwrap();
    File::create(log).unwrap();
}

fn shift(log: &Path) {
    for gz in ["", ".gz"] {
        for number in (1..9).rev() {
            let _ = fs::rename(beside(log, &format!(".{number}{gz}")), beside(log, &format!(".{}{gz}", number + 1)));
        }
    }
}

/// The log is `.1` and the next one is there with its first lines, and there was nothing in between to look at.
fn rotate_at_once(log: &Path, next: &str) {
    let other = beside(log, ".1");
    append(&other, next);
    renameat2(AT_FDCWD, log, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).unwrap();
}

#[test]
fn what_was_written_anew_unseen_and_renamed_is_read_before_the_next_file() {
    for second in ["2 is longer than it was", "2"] {
        let (_dir, log) = room();
        append(&log, "1 is there\n");
        let mut run = blind(&log);
        run.reads(&["1 is there"]);
        rewrite(&log, &format!("{second}\n"));
        rotate_at_once(&log, "3\n");
        run.until("the next file's line", |run| run.lines.iter().any(|(line, _)| line == "3"));
        run.reads(&[second, "3"]);
        append(&log, "4\n");
        again(run).reads(&["4"]);
    }
}

#[test]
fn what_was_written_anew_unseen_after_it_was_renamed_is_read_by_the_next_run() {
    let (_dir, log) = room();
    append(&log, "1\n");
    let mut run = blind(&log);
    run.reads(&["1"]);
    rotate_at_once(&log, "2\n");
    run.until("the next file's line", |run| run.lines.iter().any(|(line, _)| line == "2"));
    run.lines.clear();
    let run = run.stop();
    rewrite(&beside(&log, ".1"), "late and longer than it was\n");
    append(&log, "3\n");
    again(run).reads(&["late and longer than it was", "3"]);
}

#[test]
fn a_copy_overwritten_while_we_were_down_is_not_read_twice() {
    for truncated in [false, true] {
        let (_dir, log) = room();
        append(&log, "a1\n");
        let mut run = held_at(&log, "a1\n", || {
            append(&log, "a2\n");
            copy_and_truncate(&log);
            append(&log, "b1 and more\n");
        });
        run.reads(&["a1", "a2", "b1 and more"]);
        let run = run.stop();
        append(&log, "b2\n");
        fs::copy(&log, beside(&log, ".1")).unwrap();
        if truncated {
            File::create(&log).unwrap();
            append(&log, "c\n");
            again(run).reads(&["b2", "c"]);
        } else {
            again(run).reads(&["b2"]);
        }
    }
}

#[test]
fn a_rotated_file_that_we_hold_is_overwritten_by_copies_and_compressed() {
    for compressed in [false, true] {
        let (_dir, log) = room();
        append(&log, "2\n");
        let mut run = held_at(&log, "2\n", || {
            fs::rename(&log, beside(&log, ".1")).unwrap();
            append(&log, "3 is a line of the second\n");
        });
        run.reads(&["2", "3 is a line of the second"]);
        let mut run = {
            let positions = run.stop().positions.clone();
            let (reached, reaches) = sync_channel(0);
            let (go, go_on) = sync_channel(0);
            let run = Run::judged(habits(), move |sender| Gate { recorder: Recorder(sender), at: b"late", reached, go_on });
            append(beside(&log, ".1"), "late\n");
            run.handle.resume(&log, positions[&log].clone());
            run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
            reaches.recv_timeout(PATIENCE).expect("the late line");
            for text in ["4\n", "5\n"] {
                fs::copy(&log, beside(&log, ".1")).unwrap();
                File::create(&log).unwrap();
                append(&log, text);
            }
            copy_and_truncate(&log);
            append(&log, "6\n");
            if compressed {
                gzip(&beside(&log, ".2"));
            }
            let _ = go.send(());
            run
        };
        run.until("the last line", |run| run.lines.iter().any(|(line, _)| line == "6"));
        run.until("the copies", |run| run.lines.len() >= 4);
        run.status();
        run.lines.sort();
        run.reads(&["4", "5", "6", "late"]);
    }
}

#[test]
fn a_copy_older_than_the_log_is_overwritten() {
    for down in [false, true] {
        let (_dir, log) = room();
        append(&log, "1 is a line of the first file\n");
        let mut run = held_at(&log, "1 is", || {
            copy_and_truncate(&log);
            append(&log, "2\n");
        });
        run.reads(&["1 is a line of the first file", "2"]);
        a_tick_later(&log);
        fs::remove_file(&log).unwrap();
        append(&log, "3 is a line of the next file\n");
        run.reads(&["3 is a line of the next file"]);
        let over = |lines: [&str; 2]| {
            append(&log, lines[0]);
            fs::copy(&log, beside(&log, ".1")).unwrap();
            File::create(&log).unwrap();
            append(&log, lines[1]);
        };
        if down {
            run = run.stop();
            over(["4\n", "5\n"]);
            run = again(run);
        } else {
            over(["4\n", "5\n"]);
        }
        run.reads(&["4", "5"]);
        let run = run.stop();
        over(["6\n", "7\n"]);
        again(run).reads(&["6", "7"]);
    }
}

#[test]
fn copies_of_the_next_file_are_read_after_the_rest_of_the_deleted_one_and_known_to_the_next_run() {
    let (_dir, log) = room();
    append(&log, "1 is a line of the first file\n");
    let mut run = held_at(&log, "1 is", || {
        copy_and_truncate(&log);
        append(&log, "2\n");
        fs::remove_file(&log).unwrap();
        a_tick_later(&log);
        append(&log, "3 is longer than what was read of the first file\n");
        copy_and_truncate(&log);
        append(&log, "4\n");
        copy_and_truncate(&log);
        append(&log, "5\n");
        (1..=3).for_each(|number| gzip(&beside(&log, &format!(".{number}"))));
    });
    run.until("the last line", |run| run.lines.iter().any(|(line, _)| line == "5"));
    run.reads(&["1 is a line of the first file", "2", "3 is longer than what was read of the first file", "4", "5"]);
    let run = run.stop();
    shift(&log);
    fs::rename(&log, beside(&log, ".1")).unwrap();
    gzip(&beside(&log, ".1"));
    append(&log, "6\n");
    again(run).reads(&["6"]);
}

#[test]
fn one_huge_file_does_not_starve_a_live_one() {
    let (dir, log) = room();
    let huge = dir.path().join("huge.log");
    append(&huge, format!("{}\n", "h".repeat(1023)).repeat(16 * 1024));
    append(&log, "");
    let (reached, reaches) = sync_channel(0);
    let (go, go_on) = sync_channel::<()>(0);
    let mut run = Run::judged(habits(), move |sender| Gate { recorder: Recorder(sender), at: b"hhhh", reached, go_on });
    run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
    run.caught_up();
    run.handle.watch(2, huge.to_str().unwrap(), Start::FromBeginning);
    reaches.recv_timeout(PATIENCE).expect("the huge file is begun");
    append(&log, "live\n");
    // From here on it is held no more.
    drop((reaches, go));
    run.until("the rest", |run| run.lines.len() > 16 * 1024);
    let at = run.lines.iter().position(|(line, _)| line == "live").unwrap();
    assert!(at <= 4 * 256, "after {at} KiB: what is left of the turn that was under way, and no more, comes before it");
}

#[test]
fn what_was_rotated_away_after_everything_was_let_go_is_read() {
    let (_dir, log) = room();
    append(&log, "1\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["1"]);
    // The path leads nowhere when it is looked at, and what it led to is gone; what came meanwhile stands beside it.
    a_tick_later(&log);
    append(beside(&log, ".new"), "2\n");
    let born = beside(&log, ".new").metadata().unwrap().created().unwrap();
    while born.elapsed().unwrap() < Duration::from_millis(100) {
        std::thread::yield_now();
    }
    fs::remove_file(&log).unwrap();
    run.until_status("let go", |status| status[0].rotated == 0 && matches!(status[0].state, SourceState::Waiting(_)));
    fs::rename(beside(&log, ".new"), beside(&log, ".1")).unwrap();
    append(&log, "3\n");
    run.reads(&["2", "3"]);
}

#[test]
fn a_directory_that_comes_later_than_we_do_is_no_first_start() {
    let (dir, _) = room();
    let (mount, away) = (dir.path().join("mount"), dir.path().join("away"));
    fs::create_dir(&mount).unwrap();
    let log = mount.join("mail.log");
    append(&log, "1\n");
    let mut run = Run::following(&log, Start::FromBeginning);
    run.reads(&["1"]);
    let run = run.stop();
    append(&log, "2\n");
    fs::rename(&log, beside(&log, ".1")).unwrap();
    append(&log, "3\n");
    fs::rename(&mount, &away).unwrap();
    let mut run = again(run);
    run.happens("missing", |what| matches!(what, Happening::Missing { .. }));
    fs::rename(&away, &mount).unwrap();
    run.reads(&["2", "3"]);
}

#[test]
fn what_is_compressed_while_a_path_is_waited_for_is_not_new() {
    let (_dir, log) = room();
    let old = beside(&log, ".1");
    append(&old, "old\n");
    File::options().append(true).open(&old).unwrap().set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    let mut run = Run::following(&log, Start::FromBeginning);
    run.happens("missing", |what| matches!(what, Happening::Missing { .. }));
    gzip(&old);
    append(&log, "new\n");
    run.reads(&["new"]);
}

#[test]
fn what_was_copied_away_before_we_came_is_not_ours_though_its_times_are_those_of_the_log() {
    let (_dir, log) = room();
    append(&log, "old\n");
    copy_and_truncate(&log);
    let time = beside(&log, ".1").metadata().unwrap().modified().unwrap();
    File::options().append(true).open(&log).unwrap().set_modified(time).unwrap();
    let run = Run::following(&log, Start::FromBeginning);
    // Killed when the file was taken up, before anything of it was read.
    let position = loop {
        match run.told.recv_timeout(PATIENCE).expect("a position") {
            Told::TakenUp { position, .. } => break position,
            told => drop(told),
        }
    };
    drop(run);
    append(&log, "new\n");
    let mut run = Run::new(habits());
    run.handle.resume(&log, position);
    run.handle.watch(1, log.to_str().unwrap(), Start::FromBeginning);
    run.reads(&["new"]);
}

#[test]
fn a_log_with_a_heading_that_was_copied_and_truncated_is_read_from_its_beginning() {
    let (_dir, log) = room();
    let heading = format!("# {}\n", "Fields: date time client ".repeat(20));
    append(&log, format!("{heading}1 is long, and more than what comes after it\n"));
    let mut run = held_at(&log, "1 is long", || {
        append(&log, "2\n");
        copy_and_truncate(&log);
        append(&log, format!("{heading}3\n"));
    });
    run.until("the last line", |run| run.lines.iter().any(|(line, _)| line == "3"));
    run.lines.retain(|(line, _)| !line.starts_with('#'));
    run.reads(&["1 is long, and more than what comes after it", "2", "3"]);
}

#[test]
fn a_heading_that_every_file_begins_with_says_nothing_about_a_file() {
    let (_dir, log) = room();
    let heading = format!("# {}\n", "Fields: date time client ".repeat(20));
    append(&log, &heading);
    let mut run = Run::following(&log, Start::FromBeginning);
    run.until("the heading", |run| !run.lines.is_empty());
    run.lines.clear();
    let run = run.stop();
    for number in 1..4 {
        append(&log, format!("{number}\n"));
        shift(&log);
        fs::rename(&log, beside(&log, ".1")).unwrap();
        append(&log, &heading);
    }
    append(&log, "4\n");
    let mut run = again(run);
    run.until("the last line", |run| run.lines.iter().any(|(line, _)| line == "4"));
    run.lines.retain(|(line, _)| !line.starts_with('#'));
    run.reads(&["1", "2", "3", "4"]);
}
