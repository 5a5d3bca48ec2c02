//! Whatever the bytes, the loader comes back, bounded, with a report.

use proptest::prelude::*;

use super::*;

/// Everything the loader reads, in one file.
fn rich() -> String {
    let example = show::example();
    let live = example.lines().map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line));
    live.collect::<Vec<_>>().join("\n")
}

/// Runs all that a configuration can run into, and checks what holds for every report.
fn survives(path: &str, content: &str) {
    let loaded = understood(&[("jail.d/vpopmail.toml", "enabled = true"), (path, content)]);
    assert_eq!(loaded.fatal, loaded.config.is_none());
    assert!(loaded.report.notes.len() <= report::KEPT);
    assert!(loaded.report.mistakes + loaded.report.warnings >= loaded.report.notes.len());
    assert!(!loaded.fatal || loaded.report.mistakes > 0);
    for note in &loaded.report.notes {
        let shown = note.to_string();
        assert!(!shown.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')), "{shown:?}");
        assert!(shown.len() < 4000, "{}", shown.len());
        let (line, column) = note.position.unwrap_or((1, 1));
        assert!(line >= 1 && column >= 1);
        if let Some(excerpt) = &note.excerpt {
            assert!(excerpt.carets.contains('^'));
        }
    }
    let sources = Sources { texts: vec![text(path, content)] };
    let _ = show::merged(&sources, SHIPPED);
    let _ = loaded.report.json().to_string();
}

#[derive(Clone, Debug)]
enum Change {
    Remove(usize, usize),
    Insert(usize, String),
    Copy(usize, usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let token = prop_oneof![
        Just("\"".to_owned()),
        Just("'".to_owned()),
        Just("'''".to_owned()),
        Just("\"\"\"".to_owned()),
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just("{".to_owned()),
        Just("}".to_owned()),
        Just("=".to_owned()),
        Just(".".to_owned()),
        Just(",".to_owned()),
        Just("\n".to_owned()),
        Just("\\".to_owned()),
        Just("\\u00e9".to_owned()),
        Just("-1".to_owned()),
        Just("99999999999999999999".to_owned()),
        Just("1e400".to_owned()),
        Just("nan".to_owned()),
        Just("\u{202e}".to_owned()),
        Just("\0".to_owned()),
        Just("[jail.x]\n".to_owned()),
        Just("0/0".to_owned()),
        Just("::".to_owned()),
        Just("日".to_owned()),
        Just("\r".to_owned()),
        "\\PC{0,8}",
    ];
    prop_oneof![
        (any::<usize>(), 0..40_usize).prop_map(|(at, many)| Change::Remove(at, many)),
        (any::<usize>(), token).prop_map(|(at, text)| Change::Insert(at, text)),
        (any::<usize>(), any::<usize>(), 0..200_usize).prop_map(|(from, to, many)| Change::Copy(from, to, many)),
    ]
}

fn apply(text: &str, changes: &[Change]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for change in changes {
        let len = chars.len() + 1;
        match change {
            Change::Remove(at, many) => {
                let at = at % len;
                chars.drain(at..(at + many).min(chars.len()));
            }
            Change::Insert(at, text) => {
                let at = at % len;
                chars.splice(at..at, text.chars());
            }
            Change::Copy(from, to, many) => {
                let from = from % len;
                let piece: Vec<char> = chars[from..(from + many).min(chars.len())].to_vec();
                let to = to % len;
                chars.splice(to..to, piece);
            }
        }
    }
    chars.into_iter().collect()
}

/// A few in everyday runs; as many as `PROPTEST_CASES` says where somebody has the time.
fn cases() -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases: 128, ..default } }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_mutated_configuration_never_panics(changes in proptest::collection::vec(change(), 1..12)) {
        survives("banset.toml", &apply(&rich(), &changes));
    }

    #[test]
    fn any_text_in_any_layer_never_panics(content in "(\\PC|[\n\t\r='\"\\[\\]{}]){0,200}", path in prop_oneof![Just("banset.toml"), Just("jail.d/x.toml"), Just("filter.d/x.toml"), Just("environment")]) {
        survives(path, &content);
    }

    #[test]
    fn any_value_of_any_key_never_panics(key in 0..keys::KEYS.len(), value in prop_oneof!["\"\\PC{0,30}\"", "'\\PC{0,30}'", "[0-9a-z:./,%-]{0,20}", "\\['[0-9a-zA-Z:./, -]{0,30}', [0-9]{1,3}\\]", "\\{ name = '[a-z\\[\\]=,]{0,12}' \\}"]) {
        let key = &keys::KEYS[key];
        for header in ["[jail.sshd]\nenabled = true", "[defaults]", "[nft]", "[nft.priority]", "[daemon]", "[filter.sshd]", "[[filter.sshd.sample]]", "[filter.sshd.param.x]"] {
            survives("banset.toml", &format!("{header}\n{} = {value}\n", key.name));
        }
    }

    #[test]
    fn a_place_in_any_string_is_inside_it(content in "\\PC{0,40}", at in 0..60_usize, len in 0..10_usize) {
        let written = format!("x = {}", serde_json::to_string(&content).unwrap());
        let source = Source::new(String::new(), written.clone());
        let span = source.inside(&(4..written.len()), &(at..at + len));
        prop_assert!(span.start >= 4 && span.end <= written.len().max(span.start) && span.start <= span.end);
        let _ = source.excerpt(&span);
        let _ = source.position(span.start);
    }
}

fn timed(what: &str, content: &str, seconds: u64) -> Loaded {
    let begun = std::time::Instant::now();
    let loaded = understood(&[("banset.toml", content)]);
    assert!(begun.elapsed().as_secs() < seconds, "{what} took {:?}", begun.elapsed());
    assert!(loaded.report.to_string().len() < 1 << 20, "{what}: {}", loaded.report.to_string().len());
    loaded
}

#[test]
fn a_million_mistakes_are_counted_and_some_are_told() {
    let unknown: String = (0..50_000).map(|n| format!("k{n} = 1\n")).collect();
    let loaded = timed("unknown keys", &format!("[jail.sshd]\n{unknown}"), 30);
    assert_eq!((loaded.report.mistakes, loaded.report.notes.len()), (50_000, report::KEPT));
    assert!(loaded.report.to_string().ends_with("and 49000 more\n"));
    assert_eq!(loaded.report.notes[0].position, Some((2, 1)));
    let syntax = "= 1\n".repeat(50_000);
    assert!(timed("syntax", &syntax, 30).fatal);
    let words = format!("[defaults]\nignoreip = \"{}\"", "10.0.0.300 ".repeat(100_000));
    assert!(timed("words", &words, 30).fatal);
    let list = format!("[jail.sshd]\nport = [{}]", "70000,".repeat(100_000));
    timed("list", &list, 30);
    let escapes = format!("[jail.sshd]\nport = \"{}\"", "\\u0078 ".repeat(100_000));
    timed("escapes", &escapes, 30);
}

#[test]
fn a_deep_file_is_refused_not_followed() {
    let loaded = timed("arrays", &format!("a = {}", "[".repeat(1_000_000)), 30);
    assert!(loaded.fatal);
    let loaded = timed("tables", &format!("a = {}", "{a=".repeat(100_000)), 30);
    assert!(loaded.fatal);
    let loaded = timed("dots", &format!("a{} = 1", ".a".repeat(100_000)), 30);
    assert!(loaded.fatal);
}

#[test]
fn a_file_too_large_is_one_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("banset.toml");
    std::fs::write(&main, "x = 1\n".repeat(2_000_000)).unwrap();
    let loaded = understand(&Sources::read(&Paths { main: main.clone(), named: true }, []), SHIPPED, &Strict);
    assert_eq!(
        loaded.report.to_string(),
        format!("{}: larger than 8 MiB, not read\n  help: split it into files of banset.d\n", main.display())
    );
}

#[test]
fn strange_files_are_told_and_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("banset.toml");
    let told = || {
        understand(&Sources::read(&Paths { main: main.clone(), named: true }, []), SHIPPED, &Strict)
            .report
            .to_string()
            .replace(main.to_str().unwrap(), "FILE")
    };
    std::fs::write(&main, b"[daemon]\nsocket = \"/a\xff\"\n").unwrap();
    assert_eq!(told(), "FILE:2:13: not UTF-8\n  socket = \"/a\u{fffd}\"\n              ^\n  help: save the file as UTF-8\n");
    std::fs::write(&main, b"\xef\xbb\xbf[daemon]\r\nsocket = \"/a\"\r\n").unwrap();
    assert_eq!(told(), "");
    std::fs::remove_file(&main).unwrap();
    std::fs::create_dir(&main).unwrap();
    assert_eq!(told(), "FILE: cannot read: not a regular file\n");
}

#[test]
fn a_thousand_jails_are_read_in_no_time() {
    let jails: String =
        (0..1000).map(|n| format!("[jail.j{n}]\nenabled = true\nfilter = 'sshd'\nlogpath = '/x'\nport = {}\n", n + 1)).collect();
    let loaded = timed("jails", &jails, 20);
    assert_eq!(loaded.config.map(|config| config.jails.len()), Some(1001), "{}", loaded.report);
}
