//! Others' hands, told as tables.

use std::collections::BTreeSet;

use super::*;
use crate::nft::{Element, Foreign, Heard, Touch};

/// A foreign transaction in words: `+SET ADDR…`, `+SET ADDR@SECONDS`, `-SET ADDR…`, `table deleted`, `rule added`.
fn foreign(generation: u32, steps: &[&str]) -> Event {
    let touch = |step: &&str| {
        let (head, rest) = step.split_once(' ').expect("two words");
        let element = |word: &str| match word.split_once('@') {
            Some((address, secs)) => Element::timed(ip(address), Span::from_secs(secs.parse().expect("a number"))),
            None => Element::permanent(ip(word)),
        };
        let elements: Vec<Element> = rest.split(' ').filter(|word| word.contains(['.', ':'])).map(element).collect();
        match head.split_at(1) {
            ("+", set) => Touch::Added { set: set.to_owned(), elements },
            ("-", set) => Touch::Removed { set: set.to_owned(), elements },
            _ => {
                let what = ["table", "chain", "set", "rule"].into_iter().find(|what| *what == head).expect("a thing");
                Touch::Structure { what, deleted: rest == "deleted", name: "x".to_owned() }
            }
        }
    };
    let touches = steps.iter().map(touch).collect();
    Event::Foreign(Heard::Foreign(Foreign { generation, thread: 4711, program: "nft".to_owned(), touches }))
}

impl Bench {
    /// Bans an address by two failures; the kernel has it by this generation.
    fn banned(&mut self, secs: i64, who: &str, generation: u32) {
        self.fail(secs, "sshd", who);
        self.fail(secs, "sshd", who);
        self.committed(secs, generation);
    }
    fn committed(&mut self, secs: i64, after: u32) -> String {
        let committed = Committed { refusals: vec![], before: after.wrapping_sub(1), after, alone: true };
        self.event(secs, Event::Committed(committed))
    }
    fn held(&self) -> Vec<String> {
        let mut all: Vec<String> =
            self.core.jails.iter().flat_map(|running| running.jail.bans().map(|(subject, _)| shown(subject))).collect();
        all.sort();
        all
    }
    fn whole(&mut self, secs: i64, generation: u32, fresh: bool) -> String {
        self.event(secs, Event::Established(Ok(Done { generation, fresh, ..Done::default() })))
    }
}

const BY: &str = "nft, thread 4711, generation";

#[test]
fn an_element_somebody_adds_is_a_ban_and_one_he_removes_an_unban() {
    let mut bench = Bench::new(&["sshd"]);
    let said = bench.event(1, foreign(5, &["+sshd-v4 198.51.100.7@600"]));
    assert_eq!(said, format!("[sshd] Ban 198.51.100.7, added by {BY} 5"));
    assert_eq!(bench.event(1, foreign(6, &["+sshd-v4 198.51.100.8"])), format!("[sshd] Ban 198.51.100.8, added by {BY} 6"));
    let row = bench.core.banned(at(1), &KernelView::default());
    assert_eq!((row.as_array().map(Vec::len), row[0]["failures"].as_u64()), (Some(2), Some(0)));
    // Again: nothing new. With another end: another end, sooner or later.
    assert_eq!(bench.event(2, foreign(7, &["+sshd-v4 198.51.100.7@599"])), "");
    let said = bench.event(2, foreign(8, &["+sshd-v4 198.51.100.7@60"]));
    assert_eq!(said, format!("[sshd] the ban of 198.51.100.7 ends in 1m, changed by {BY} 8"));
    assert_eq!(bench.event(62, Event::Wake), "[sshd] Unban 198.51.100.7");
    let said = bench.event(63, foreign(9, &["-sshd-v4 198.51.100.8"]));
    assert_eq!(said, format!("[sshd] Unban 198.51.100.8, removed by {BY} 9"));
    assert_eq!(bench.event(63, foreign(10, &["-sshd-v4 198.51.100.99"])), "", "nobody we knew");
    assert!(bench.held().is_empty() && bench.core.is_quiet());
}

#[test]
fn an_address_within_a_prefix_is_replaced_by_the_prefix() {
    let mut bench = Bench::new(&["sshd"]);
    let said = bench.event(1, foreign(5, &["+sshd-v6 2001:db8::7@600"]));
    assert_eq!(said, format!("[sshd] Ban 2001:db8::/64, added by {BY} 5; commit -sshd-v6 2001:db8::7 +sshd-v6 2001:db8::"));
    bench.committed(1, 6);
    // Taking out the address, which bites nobody, lifts nothing; taking out the prefix does.
    assert_eq!(bench.event(2, foreign(7, &["-sshd-v6 2001:db8::7"])), "");
    assert_eq!(bench.event(2, foreign(8, &["-sshd-v6 2001:db8::"])), format!("[sshd] Unban 2001:db8::/64, removed by {BY} 8"));
}

#[test]
fn a_set_that_is_emptied_of_two_or_more_was_flushed_and_is_put_back() {
    let mut bench = Bench::new(&["sshd"]);
    bench.banned(1, "198.51.100.7", 5);
    // One alone: an unban.
    bench.event(2, foreign(6, &["-sshd-v4 198.51.100.7"]));
    assert!(bench.held().is_empty());
    for (n, who) in ["198.51.100.7", "198.51.100.8", "198.51.100.9"].into_iter().enumerate() {
        bench.banned(3, who, 7 + n as u32);
    }
    // Two of three: two unbans.
    bench.event(4, foreign(20, &["-sshd-v4 198.51.100.7 198.51.100.8"]));
    assert_eq!(bench.held(), ["198.51.100.9"]);
    bench.banned(5, "198.51.100.10", 21);
    // All: a flush, also where one was banned after it and one the kernel did not know yet.
    bench.banned(6, "198.51.100.11", 31);
    let said = bench.event(6, foreign(30, &["-sshd-v4 198.51.100.9", "-sshd-v4 198.51.100.10 198.51.100.77"]));
    assert_eq!(said, format!("set sshd-v4 was flushed by {BY} 30: its 2 bans are put back; establish sshd-v4:3"));
    assert_eq!(bench.whole(6, 32, false), "table inet banset is whole again, 3 bans");
}

#[test]
fn the_rebuild_after_a_flush_looks_into_that_set_only() {
    let mut bench = Bench::new(&["sshd"]);
    bench.banned(1, "198.51.100.7", 5);
    bench.banned(1, "198.51.100.8", 6);
    bench.core.handle(at(2), foreign(7, &["-sshd-v4 198.51.100.7 198.51.100.8"]));
    bench.core.settle(at(2));
    let suspects = |bench: &mut Bench| {
        let actions = bench.core.take_actions().into_iter();
        actions.filter_map(|action| if let Action::Establish(e) = action { Some(e.exact) } else { None }).next()
    };
    assert_eq!(suspects(&mut bench), Some(Suspects::Sets(BTreeSet::from(["sshd-v4".to_owned()]))));
    // It failed: the set is as suspect as before, and what is heard meanwhile comes to it.
    bench.core.handle(at(2), Event::Established(Err("EBUSY".into())));
    bench.core.settle(at(2));
    assert_eq!(suspects(&mut bench), None);
    bench.core.settle(at(3));
    assert_eq!(suspects(&mut bench), Some(Suspects::Sets(BTreeSet::from(["sshd-v4".to_owned()]))));
    bench.whole(3, 9, false);
    // A rule touches no element.
    bench.core.handle(at(4), foreign(10, &["rule deleted"]));
    bench.core.settle(at(4));
    assert_eq!(suspects(&mut bench), Some(Suspects::None));
}

#[test]
fn whatever_touches_more_than_elements_is_damage_and_made_whole_at_once() {
    let mut bench = Bench::new(&["sshd"]);
    bench.banned(1, "198.51.100.7", 5);
    let table: [(&[&str], &str); 6] = [
        (
            &["rule deleted", "chain deleted", "set deleted", "table deleted"],
            "the table was deleted, 1 chains deleted, 1 rules deleted, 1 sets deleted",
        ),
        (&["rule deleted"], "1 rules deleted"),
        (&["rule added", "+sshd-v4 203.0.113.1@60"], "1 elements added, 1 rules added"),
        (&["chain deleted"], "1 chains deleted"),
        (&["set added"], "1 sets added"),
        (&["+ignore-v4 203.0.113.1"], "1 elements added"),
    ];
    for (n, (steps, told)) in table.iter().enumerate() {
        let generation = 10 + 10 * n as u32;
        let said = bench.event(2, foreign(generation, steps));
        assert_eq!(said, format!("table inet banset was changed by {BY} {generation}: {told}; establish sshd-v4:1"));
        assert_eq!(bench.whole(2, generation + 1, n == 0), "table inet banset is whole again, 1 bans");
    }
    assert_eq!(bench.held(), ["198.51.100.7"], "elements that came with a structure are nobody's will");
    let said = bench.event(3, Event::Foreign(Heard::Lost));
    assert_eq!(said, "table inet banset: others changed more than could be heard; establish sshd-v4:1");
}

#[test]
fn two_flushes_in_a_row_are_two_repairs_unless_one_repaired_both() {
    let mut bench = Bench::new(&["sshd"]);
    bench.banned(1, "198.51.100.7", 5);
    assert!(bench.event(2, foreign(6, &["table deleted"])).ends_with("establish sshd-v4:1"));
    // The second comes while the first is repaired; the repair was made at 8, after it.
    assert_eq!(bench.event(2, foreign(7, &["table deleted"])), "");
    let said = bench.whole(2, 8, true);
    let again = format!("table inet banset was changed by {BY} 7: the table was deleted; it is whole again already");
    assert_eq!(said, format!("table inet banset is whole again, 1 bans; {again}"));
    // The next comes after the repair.
    assert!(bench.event(3, foreign(9, &["table deleted"])).ends_with("establish sshd-v4:1"));
    assert_eq!(bench.event(3, foreign(11, &["table deleted"])), "");
    assert!(bench.whole(3, 10, true).ends_with("establish sshd-v4:1"));
    assert!(bench.whole(3, 12, true).ends_with("whole again, 1 bans"));
}

#[test]
fn a_repair_that_fails_is_tried_at_once_when_the_table_is_touched_again() {
    let mut bench = Bench::new(&["sshd"]);
    bench.banned(1, "198.51.100.7", 5);
    bench.event(2, foreign(6, &["table deleted"]));
    bench.event(2, foreign(7, &["table deleted"]));
    let said = bench.event(2, Event::Established(Err("ENOENT".into())));
    assert!(said.starts_with("ENOENT; table inet banset was changed by") && said.ends_with("establish sshd-v4:1"), "{said}");
}

#[test]
fn what_is_heard_while_our_commit_is_under_way_waits_for_its_answer() {
    let mut bench = Bench::new(&["sshd"]);
    bench.fail(1, "sshd", "198.51.100.7");
    assert!(bench.fail(1, "sshd", "198.51.100.7").ends_with("commit +sshd-v4 198.51.100.7"));
    // They removed it after we added it, or before.
    assert_eq!(bench.event(1, foreign(6, &["-sshd-v4 198.51.100.7"])), "");
    let said = bench.committed(1, 5);
    assert_eq!(said, format!("[sshd] Ban 198.51.100.7; [sshd] Unban 198.51.100.7, removed by {BY} 6"));
    bench.fail(2, "sshd", "198.51.100.8");
    bench.fail(2, "sshd", "198.51.100.8");
    bench.event(2, foreign(7, &["-sshd-v4 198.51.100.8"]));
    assert_eq!(bench.committed(2, 8), "[sshd] Ban 198.51.100.8");
    assert_eq!(bench.held(), ["198.51.100.8"]);
}

#[test]
fn where_nobody_knows_which_came_last_ours_is_said_again() {
    let mut bench = Bench::new(&["sshd"]);
    bench.fail(1, "sshd", "198.51.100.7");
    bench.fail(1, "sshd", "198.51.100.7");
    bench.event(1, foreign(6, &["-sshd-v4 198.51.100.7"]));
    let said = bench.event(1, Event::Committed(Committed { refusals: vec![], before: 4, after: 6, alone: false }));
    assert!(said.ends_with("[sshd] Ban 198.51.100.7; commit +sshd-v4 198.51.100.7"), "{said}");
    let restored = format!("[sshd] Restore Ban 198.51.100.7: {BY} 6 removed it while it was being banned");
    assert_eq!(bench.committed(1, 7), restored);
}

#[test]
fn an_unban_of_ours_outlives_an_older_ban_of_theirs() {
    let mut bench = Bench::new(&["sshd"]);
    bench.banned(1, "198.51.100.7", 5);
    bench.ask(2, unban(&["198.51.100.7"]));
    bench.event(2, foreign(6, &["+sshd-v4 198.51.100.7@600"]));
    bench.committed(2, 7);
    assert!(bench.held().is_empty(), "theirs came first");
    let said = bench.event(3, foreign(8, &["+sshd-v4 198.51.100.7@600"]));
    assert_eq!(said, format!("[sshd] Ban 198.51.100.7, added by {BY} 8"), "theirs came last");
}

#[test]
fn a_will_that_a_repair_ran_over_is_carried_out_again() {
    let mut bench = Bench::new(&["sshd"]);
    for (n, who) in ["198.51.100.7", "198.51.100.8"].into_iter().enumerate() {
        bench.banned(1, who, 4 + n as u32);
    }
    bench.event(2, foreign(6, &["table deleted"]));
    bench.event(2, foreign(7, &["+sshd-v4 203.0.113.1@600"]));
    bench.event(2, foreign(8, &["-sshd-v4 198.51.100.7"]));
    let said = bench.whole(2, 9, true);
    assert!(said.ends_with("commit +sshd-v4 203.0.113.1 -sshd-v4 198.51.100.7"), "{said}");
    assert_eq!(bench.held(), ["198.51.100.8", "203.0.113.1"]);
}

#[test]
fn what_was_read_at_the_start_is_not_heard_again() {
    let mut bench = Bench::new(&["sshd"]);
    bench.core.seen_up_to(10);
    assert_eq!(bench.event(1, foreign(10, &["+sshd-v4 198.51.100.7@600"])), "");
    assert_eq!(bench.event(1, foreign(9, &["table deleted"])), "");
    assert!(bench.event(1, foreign(11, &["+sshd-v4 198.51.100.7@600"])).contains("added by"));
}

#[test]
fn generations_begin_anew_at_their_end() {
    let mut bench = Bench::new(&["sshd"]);
    bench.banned(1, "198.51.100.7", u32::MAX);
    assert!(bench.event(2, foreign(1, &["-sshd-v4 198.51.100.7"])).contains("Unban"));
    bench.banned(3, "198.51.100.8", 2);
    assert_eq!(bench.event(4, foreign(u32::MAX, &["-sshd-v4 198.51.100.8"])), "");
}

#[test]
fn a_hundred_changes_are_told_one_by_one_and_the_rest_in_sum() {
    let mut bench = Bench::new(&["sshd"]);
    let all = (0..250).map(|n| format!("198.51.{}.{}@600", n / 200, n % 200)).collect::<Vec<_>>().join(" ");
    let said = bench.event(1, foreign(5, &[&format!("+sshd-v4 {all}")]));
    assert_eq!(said.matches("; ").count(), 100);
    assert!(said.ends_with(&format!("150 more bans were changed by {BY} 5")), "{said}");
    assert_eq!(bench.core.bans_held(), 250);
}

#[test]
fn a_set_that_nothing_bounds_has_a_ceiling() {
    let mut bench = Bench::new(&["sshd"]);
    bench.core.ceiling = 2;
    for (secs, who) in [(1, "198.51.100.1"), (2, "198.51.100.2")] {
        bench.fail(secs, "sshd", who);
        bench.fail(secs, "sshd", who);
        bench.yes(secs);
    }
    bench.fail(3, "sshd", "198.51.100.3");
    let said = bench.fail(3, "sshd", "198.51.100.3");
    assert!(said.contains("set sshd-v4 is full with 2 elements"), "{said}");
    assert!(said.ends_with("commit -sshd-v4 198.51.100.1 +sshd-v4 198.51.100.3"), "{said}");
    assert!(bench.fail(4, "sshd", "2001:db8::1").ends_with("Found 2001:db8::1"), "another set has room of its own");
}

#[test]
fn a_full_set_keeps_the_newest() {
    let mut small = config(&["sshd"]);
    small.nft.set_size = Some(3);
    let mut bench = Bench::new(&["sshd"]);
    bench.event(0, Event::Reloaded(Reloaded { client: None, specs: Ok(Specs::new(&small)) }));
    bench.event(0, Event::Established(Ok(Done::default())));
    for n in 1..=3 {
        bench.banned(n, &format!("198.51.100.{n}"), n as u32);
    }
    bench.fail(4, "sshd", "198.51.100.4");
    let said = bench.fail(4, "sshd", "198.51.100.4");
    let full = "[sshd] Found 198.51.100.4; [sshd] set sshd-v4 is full with 3 elements: its oldest bans make room for new ones";
    assert_eq!(said, format!("{full}; commit -sshd-v4 198.51.100.1 +sshd-v4 198.51.100.4"));
    assert_eq!(bench.committed(4, 4), "[sshd] Unban 198.51.100.1, the set is full; [sshd] Ban 198.51.100.4");
    // Said once. And where the kernel finds it full although we do not (what has ended is freed late), it goes again.
    bench.event(5, foreign(5, &["-sshd-v4 198.51.100.2"]));
    bench.fail(6, "sshd", "198.51.100.5");
    assert!(bench.fail(6, "sshd", "198.51.100.5").ends_with("commit +sshd-v4 198.51.100.5"));
    let refusal = Refusal { index: 0, why: "ENFILE".into(), full: true };
    let said = bench.event(6, Event::Committed(vec![refusal].into()));
    assert_eq!(said, "commit -sshd-v4 198.51.100.3 +sshd-v4 198.51.100.5");
    assert_eq!(bench.committed(6, 7), "[sshd] Unban 198.51.100.3, the set is full; [sshd] Ban 198.51.100.5");
    assert_eq!(bench.held(), ["198.51.100.4", "198.51.100.5"]);
    let evicted = bench.core.status(&KernelView::default())["jails"][1]["bans"]["evicted"].clone();
    assert_eq!(evicted, 2);
}

#[test]
fn a_clock_that_jumps_lifts_no_ban_and_bans_nobody() {
    // Wall and monotonic clock part: by an hour forward and back (DST on a machine whose clock runs in local time, an admin, NTP),
    // by eight hours while suspended, in which neither the monotonic clock nor the kernel's timeouts run.
    for jump in [3600, -3600, 8 * 3600, -86_400, 400 * 86_400] {
        let mut bench = Bench::new(&["sshd"]);
        bench.banned(1, "198.51.100.7", 5);
        bench.fail(2, "sshd", "198.51.100.8");
        let jumped = |secs: i64| Now { wall: Time::from_secs(BOOT + secs + jump), mono: Time::from_secs(secs) };
        bench.core.handle(jumped(3), Event::Wake);
        bench.core.settle(jumped(3));
        let actions = bench.core.take_actions();
        let [Action::Log(Level::Warn, said)] = &actions[..] else { panic!("no mass unban at {jump}: {actions:?}") };
        assert!(said.starts_with(if jump < 0 { "the clock went back by 1" } else { "the clock went forward by " }), "{said}");
        assert_eq!(bench.core.status(&KernelView::default())["clock"]["by_s"], jump);
        bench.core.settle(jumped(3));
        assert!(bench.core.take_actions().is_empty(), "said once");
        assert_eq!(bench.held(), ["198.51.100.7"]);
        // One failure each of many, by the log's new time: nobody has two.
        let found: Vec<Found> = (0..200)
            .map(|n| {
                let failure =
                    Failure { address: ip(&format!("203.0.113.{n}")), time: jumped(3).wall, attempts: 1, place: Place(0) };
                Found { jail: bench.ids["sshd"], failure, ok: false }
            })
            .collect();
        bench.core.handle(jumped(3), Event::Read(Batch { path: "/log".into(), found, live: true, ..Batch::default() }));
        bench.core.settle(jumped(3));
        assert!(!bench.core.take_actions().iter().any(|action| matches!(action, Action::Commit(_))), "no mass ban at {jump}");
        // The ban ends when the kernel ends it.
        bench.core.handle(jumped(602), Event::Wake);
        assert!(bench.held().is_empty());
    }
}

#[test]
fn what_could_not_be_heard_is_an_admins_will_while_the_table_stands() {
    let mut bench = Bench::new(&["sshd"]);
    let done = |looked, adopted| Event::Established(Ok(Done { table: 77, generation: 4, looked, adopted, ..Done::default() }));
    let there = |set: &str, who: &str, left: Option<u64>| Adopted {
        set: set.to_owned(),
        what: Interval::from(ip(who)),
        timeout: left.map(|_| Span::from_secs(600)),
        left: left.map(Span::from_secs),
        everywhere: true,
    };
    bench.event(0, done(false, vec![]));
    for (n, who) in ["198.51.100.7", "198.51.100.8", "198.51.100.9"].into_iter().enumerate() {
        bench.banned(1, who, 5 + n as u32);
    }
    let lost = |bench: &mut Bench, secs| {
        bench.core.handle(at(secs), Event::Foreign(Heard::Lost));
        bench.core.settle(at(secs));
        let actions = bench.core.take_actions().into_iter();
        actions.filter_map(|action| if let Action::Establish(e) = action { Some((e.look, e.exact)) } else { None }).next()
    };
    assert_eq!(lost(&mut bench, 3), Some((Some(77), Suspects::All)), "it is looked at first");
    // One that was lifted, one that was given another end, one that is new.
    let found = vec![
        there("sshd-v4", "198.51.100.7", Some(598)),
        there("sshd-v4", "198.51.100.8", Some(60)),
        there("sshd-v4", "198.51.100.50", None),
    ];
    let by = "others that could not be heard";
    assert_eq!(
        bench.event(3, done(true, found)),
        format!(
            "[sshd] Unban 198.51.100.9, removed by {by}; [sshd] the ban of 198.51.100.8 ends in 1m, changed by {by}; \
             [sshd] Ban 198.51.100.50, added by {by}; table inet banset was compared as a whole: 1 bans added, 1 lifted by others"
        )
    );
    assert_eq!(bench.held(), ["198.51.100.50", "198.51.100.7", "198.51.100.8"]);
    assert!(bench.core.is_quiet());
    assert_eq!(bench.event(64, Event::Wake), "[sshd] Unban 198.51.100.8", "it ends when he wanted");
    // A set that lost all it had was flushed: nobody means that as so many unbans.
    lost(&mut bench, 65);
    assert_eq!(
        bench.event(65, done(true, vec![])),
        format!(
            "set sshd-v4 was flushed by {by}: its 2 bans are put back; \
             table inet banset was compared as a whole: 0 bans added, 0 lifted by others; establish sshd-v4:2"
        )
    );
    bench.whole(65, 20, false);
    assert!(bench.core.is_quiet());
    // Damage that was heard calls for more than a look, whichever came first.
    bench.core.handle(at(66), foreign(30, &["rule deleted"]));
    assert_eq!(lost(&mut bench, 66), Some((None, Suspects::All)));
    bench.whole(66, 31, true);
    bench.core.handle(at(67), Event::Foreign(Heard::Lost));
    bench.core.handle(at(67), foreign(40, &["rule deleted"]));
    assert!(bench.event(67, Event::Wake).ends_with("establish sshd-v4:2"));
}

#[test]
fn a_ban_on_its_way_is_neither_lifted_nor_adopted_by_a_look() {
    let mut bench = Bench::new(&["sshd"]);
    let done = |looked, adopted| Event::Established(Ok(Done { table: 77, generation: 4, looked, adopted, ..Done::default() }));
    bench.event(0, done(false, vec![]));
    bench.banned(1, "198.51.100.7", 5);
    bench.core.handle(at(2), Event::Foreign(Heard::Lost));
    bench.core.settle(at(2));
    // While it is looked one is banned, another unbanned: the kernel has seen neither.
    bench.fail(2, "sshd", "198.51.100.8");
    bench.fail(2, "sshd", "198.51.100.8");
    bench.ask(2, unban(&["198.51.100.7"]));
    let found = Adopted {
        set: "sshd-v4".to_owned(),
        what: Interval::from(ip("198.51.100.7")),
        timeout: Some(Span::from_secs(600)),
        left: Some(Span::from_secs(598)),
        everywhere: true,
    };
    let said = bench.event(3, done(true, vec![found]));
    assert!(said.contains("0 bans added, 0 lifted by others"), "{said}");
    assert!(said.contains("commit +sshd-v4 198.51.100.8 -sshd-v4 198.51.100.7"), "{said}");
    assert_eq!(bench.held(), ["198.51.100.8"]);
}
