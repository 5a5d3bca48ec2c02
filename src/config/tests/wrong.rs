//! A table of wrong configurations with the full report of each: `wrong.txt`.
//!
//! `=== case`, then `--- file` before each text, then `>>>` before the report that is expected. `BANSET_BLESS=1 cargo test` writes the
//! reports anew, to be read as text.

use super::*;

/// A case: its name, its files, the report that is expected.
struct Case<'a> {
    name: &'a str,
    files: Vec<(&'a str, String)>,
    expected: String,
}

fn cases(table: &str) -> Vec<Case<'_>> {
    let mut out: Vec<Case<'_>> = Vec::new();
    let mut expecting = false;
    for line in table.split_inclusive('\n') {
        let trimmed = line.trim_end_matches('\n');
        if let Some(name) = trimmed.strip_prefix("=== ") {
            out.push(Case { name, files: Vec::new(), expected: String::new() });
            expecting = false;
            continue;
        }
        let case = out.last_mut().expect("a case begins with ===");
        if let Some(path) = trimmed.strip_prefix("--- ") {
            case.files.push((path, String::new()));
        } else if trimmed == ">>>" {
            expecting = true;
        } else if expecting {
            case.expected.push_str(line);
        } else {
            case.files.last_mut().expect("a file begins with ---").1.push_str(line);
        }
    }
    out
}

fn report(case: &Case<'_>) -> String {
    let files: Vec<(&str, &str)> = case.files.iter().map(|(path, text)| (*path, text.as_str())).collect();
    let loaded = understood(&files);
    let mut out = loaded.report.to_string();
    let fate = match &loaded.config {
        None => "nothing runs\n".to_owned(),
        Some(config) => config.broken.iter().map(|broken| format!("broken: {}: {}\n", broken.name, broken.why)).collect(),
    };
    out.push_str(&fate);
    out
}

#[test]
fn every_wrong_configuration_is_told_as_the_table_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/tests/wrong.txt");
    let table = std::fs::read_to_string(path).unwrap();
    let cases = cases(&table);
    assert!(cases.len() > 100, "{} cases", cases.len());
    if std::env::var_os("BANSET_BLESS").is_some() {
        let mut blessed = String::new();
        for case in &cases {
            blessed.push_str(&format!("=== {}\n", case.name));
            case.files.iter().for_each(|(path, text)| blessed.push_str(&format!("--- {path}\n{text}")));
            blessed.push_str(&format!(">>>\n{}", report(case)));
        }
        std::fs::write(path, blessed).unwrap();
        return;
    }
    let wrong: Vec<String> = cases
        .iter()
        .filter(|case| report(case) != case.expected)
        .map(|case| format!("=== {}\n{}--- expected\n{}", case.name, report(case), case.expected))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_two_cases_have_a_name() {
    let table = include_str!("wrong.txt");
    let mut names: Vec<&str> = cases(table).iter().map(|case| case.name).collect();
    names.sort_unstable();
    let many = names.len();
    names.dedup();
    assert_eq!(names.len(), many);
}
