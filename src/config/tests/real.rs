//! With the filter room itself: what is shipped is sound, and the annotated example's own filter does what its samples say.

use super::*;

struct FilterRoom;

impl Judge for FilterRoom {
    fn compile(&self, filter: &Definition, params: &BTreeMap<String, Vec<String>>) -> Vec<Mistake> {
        crate::filter::Filter::compile(filter, params, &crate::filter::Options::default()).err().unwrap_or_default()
    }
    fn verify(&self, filter: &Definition) -> Vec<Mistake> {
        crate::filter::samples::verify(filter)
    }
}

fn real(content: &str) -> Loaded {
    let shipped = Shipped { jails: shipped::JAILS, filters: crate::filter::shipped() };
    understand(&Sources { texts: vec![text("banset.toml", content)] }, shipped, &FilterRoom)
}

#[test]
fn everything_shipped_is_sound() {
    let all: String = shipped::JAILS.iter().map(|(name, _)| format!("[jail.{name}]\nenabled = true\n")).collect();
    let loaded = real(&all);
    assert_eq!((loaded.report.mistakes, loaded.report.warnings), (0, 0), "{}", loaded.report);
    let config = loaded.config.unwrap();
    for (name, written) in crate::filter::shipped() {
        let used = config.jails.iter().filter_map(|jail| jail.filter.as_ref()).find(|used| used.name == *name);
        let used = used.unwrap_or_else(|| panic!("no shipped jail uses filter {name}"));
        assert_eq!(*used.definition, crate::filter::definition::parse(name, written).unwrap(), "two readers, two meanings");
    }
}

#[test]
fn the_annotated_example_holds_its_own_samples() {
    let loaded = real(&example::uncommented());
    assert_eq!((loaded.report.mistakes, loaded.report.warnings), (0, 0), "{}", loaded.report);
}

#[test]
fn a_pattern_that_does_not_compile_is_cited_inside() {
    let loaded = real("[jail.sshd]\nenabled = true\nfailregex_add = ['^ok <HOST>$', '^bad (<HOST>$']");
    assert_eq!(loaded.report.notes[0].headline(), "banset.toml:3:39: failregex_add: unclosed group");
}
