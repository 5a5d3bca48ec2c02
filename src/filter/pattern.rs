//! One compiled pattern: a linear-time regular expression on bytes, what its groups mean, and the literals without
//! which it can not match.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::OnceLock;

use ipnetwork::IpNetwork;
use regex::bytes::{CaptureLocations, Regex, RegexBuilder};
use regex_syntax::ast;

use super::definition::Mistake;
use super::literals::{self, Needs};
use super::tags::{self, Role, Scope};
use super::twice::Twice;
use super::walk::{Ended, LONG, Room, Walk};
use crate::terms::fold;

/// A pattern may compile to this many bytes.
const SIZE_LIMIT: usize = 4 << 20;
/// Memory for the states of one pattern's automaton, taken only as lines ask for it. When it runs out the engine starts over, and
/// soon gives up for one a hundred times slower: long hostile lines reach a limit of 2 MiB.
const DFA_LIMIT: usize = 32 << 20;

/// A pattern ready to be tried.
#[derive(Debug)]
pub(crate) struct Pattern {
    pub regex: Regex,
    /// As it was written.
    pub written: Box<str>,
    /// What a line must hold for it to match.
    pub needs: Needs,
    walk: Option<Walk>,
    /// Made when a long text asks for it.
    twice: OnceLock<Option<Box<Twice>>>,
    roles: Vec<(usize, Role)>,
    nets: Vec<(usize, Vec<IpNetwork>)>,
    never: bool,
}

/// What a pattern found. Ranges are offsets into the text it was tried on.
#[derive(Debug, Default, Clone)]
pub(crate) struct Hit {
    pub addr: Option<IpAddr>,
    pub user: Option<Range<usize>>,
    pub reason: Option<Range<usize>>,
    pub content: Option<Range<usize>>,
    pub mlfid: Option<Range<usize>>,
    pub session: Option<Range<usize>>,
    pub secrets: Vec<Range<usize>>,
    pub attempts: Option<u32>,
    pub nofail: bool,
    pub forget: bool,
    pub gained: bool,
}

/// Where a pattern's groups are written; one for each pattern, since their number differs.
#[derive(Debug, Default)]
pub(crate) struct Places {
    locations: Option<CaptureLocations>,
    room: Room,
}

/// The groups of a match.
enum Groups<'a> {
    Walked(&'a Room),
    Searched(&'a CaptureLocations),
}

impl Groups<'_> {
    fn get(&self, group: usize) -> Option<(usize, usize)> {
        match self {
            Groups::Walked(room) => room.get(group),
            Groups::Searched(locations) => locations.get(group),
        }
    }
}

impl Pattern {
    /// Compiles `written`, the `index`th entry of `key`.
    pub fn compile(written: &str, key: &str, index: usize, scope: Scope<'_>) -> Result<Pattern, Vec<Mistake>> {
        let mistake =
            |at: Option<Range<usize>>, what: String, help: Option<String>| Mistake { key: key.to_owned(), index, at, what, help };
        let mut expanded = tags::expand(written, scope)
            .map_err(|wrongs| wrongs.into_iter().map(|w| mistake(Some(w.at), w.what, w.help)).collect::<Vec<_>>())?;
        let one = |at, what, help| Err(vec![mistake(at, what, help)]);
        for class in wide_classes(&expanded.text).into_iter().rev() {
            expanded.enclose(class, "(?u:", ")");
        }
        let parser = regex_syntax::ParserBuilder::new().utf8(false).unicode(false).build().parse(&expanded.text);
        let hir = match parser {
            Ok(hir) => hir,
            Err(regex_syntax::Error::Parse(e)) => {
                let at = whole(written, expanded.written(e.span().start.offset..e.span().end.offset));
                return one(Some(at), e.kind().to_string(), help_for(&e.kind().to_string()));
            }
            Err(regex_syntax::Error::Translate(e)) => {
                let at = whole(written, expanded.written(e.span().start.offset..e.span().end.offset));
                return one(Some(at), e.kind().to_string(), help_for(&e.kind().to_string()));
            }
            Err(e) => return one(None, e.to_string(), None),
        };
        let regex =
            match RegexBuilder::new(&expanded.text).unicode(false).size_limit(SIZE_LIMIT).dfa_size_limit(DFA_LIMIT).build() {
                Ok(regex) => regex,
                Err(regex::Error::CompiledTooBig(limit)) => {
                    let what = format!("compiles to more than {} MiB", limit >> 20);
                    return one(None, what, Some("lower the counts of repetitions such as x{1000}".to_owned()));
                }
                Err(e) => return one(None, e.to_string(), None),
            };
        let place = |name: &str| regex.capture_names().position(|n| n == Some(name));
        let roles: Vec<_> = expanded.roles.iter().filter_map(|(name, role)| Some((place(name)?, role.clone()))).collect();
        let nets = roles.iter().filter_map(|(group, role)| match role {
            Role::Within(param) => Some((*group, tags::nets(scope.params, param).to_vec())),
            _ => None,
        });
        let nets = nets.collect();
        Ok(Pattern {
            needs: literals::needs(&hir),
            walk: Walk::new(&hir),
            twice: OnceLock::new(),
            regex,
            written: written.into(),
            roles,
            nets,
            never: expanded.never,
        })
    }

    /// The pattern without its quick ways.
    #[cfg(test)]
    pub fn without_walk(mut self) -> Pattern {
        self.walk = None;
        self.twice = OnceLock::from(None);
        self
    }

    /// Whether a group of this role is in the pattern.
    pub fn has(&self, wanted: &Role) -> bool {
        self.roles.iter().any(|(_, role)| role == wanted)
    }

    /// Whether it can never match, since it needs an address out of an empty list.
    pub fn never(&self) -> bool {
        self.never
    }

    /// Tries the pattern. A text in an address's place that is no address, or one outside the nets it must lie in, is no match.
    pub fn find(&self, text: &[u8], places: &mut Places) -> Option<Hit> {
        if self.never {
            return None;
        }
        let walked = self.walk.as_ref().map_or(Ended::GaveUp, |walk| walk.along(text, &mut places.room));
        let groups = match walked {
            Ended::NoMatch => return None,
            Ended::Match => Groups::Walked(&places.room),
            Ended::GaveUp if text.len() > LONG && self.in_long(text, &mut places.room)? => Groups::Walked(&places.room),
            Ended::GaveUp => {
                let locations = places.locations.get_or_insert_with(|| self.regex.capture_locations());
                self.regex.captures_read(locations, text)?;
                Groups::Searched(locations)
            }
        };
        let mut hit = Hit::default();
        let mut user: Option<(u8, Range<usize>)> = None;
        for (group, role) in &self.roles {
            let Some((start, end)) = groups.get(*group) else { continue };
            let range = start..end;
            match role {
                Role::Addr if hit.addr.is_none() => hit.addr = Some(address(&text[range])?),
                Role::Within(_) => {
                    let addr = address(&text[range])?;
                    let nets = self.nets.iter().find(|(g, _)| g == group)?;
                    if !nets.1.iter().any(|net| net.contains(addr)) {
                        return None;
                    }
                }
                Role::User(rank) => {
                    let better = user.as_ref().is_none_or(|(r, u)| start < end && (u.is_empty() || rank < r));
                    if better {
                        user = Some((*rank, range));
                    }
                }
                Role::Secret => hit.secrets.push(range),
                Role::Reason => hit.reason = Some(range),
                Role::Content => hit.content = Some(range),
                Role::Mlfid => hit.mlfid = Some(range),
                Role::Session => hit.session = Some(range),
                Role::Attempts => hit.attempts = number(&text[range]),
                Role::Nofail => hit.nofail = true,
                Role::Forget => hit.forget = true,
                Role::Gained => hit.gained = true,
                Role::Addr | Role::Other(_) => {}
            }
        }
        hit.user = user.map(|(_, range)| range);
        Some(hit)
    }

    /// Finds the groups in a long text; `None` if it does not match, false if somebody else must say how.
    fn in_long(&self, text: &[u8], room: &mut Room) -> Option<bool> {
        let found = self.regex.find(text)?;
        let twice = self.twice.get_or_init(|| Twice::new(self.regex.as_str()).map(Box::new));
        Some(twice.as_ref().is_some_and(|twice| twice.groups(text, (found.start(), found.end()), room)))
    }
}

impl Pattern {
    /// The groups that took part in a match, by what they mean.
    pub fn named(&self, text: &[u8]) -> Vec<(String, Range<usize>)> {
        let mut places = self.regex.capture_locations();
        if self.regex.captures_read(&mut places, text).is_none() {
            return Vec::new();
        }
        let named = |(group, role): &(usize, Role)| {
            let name = match role {
                Role::Reason => "reason",
                Role::Mlfid => "mlfid",
                Role::Session => "session",
                Role::Attempts => "attempts",
                Role::User(_) => "user",
                Role::Nofail => "nofail",
                Role::Forget => "mlfforget",
                Role::Gained => "mlfgained",
                Role::Other(name) => name,
                Role::Addr | Role::Within(_) | Role::Content | Role::Secret => return None,
            };
            places.get(*group).map(|(start, end)| (name.to_owned(), start..end))
        };
        self.roles.iter().filter_map(named).collect()
    }
}

/// The characters that these bytes belong to. Where nothing stands a mistake is cited by the byte behind it, which may begin a character.
fn whole(text: &str, at: Range<usize>) -> Range<usize> {
    let boundary = |place: &usize| text.is_char_boundary(*place);
    let start = (0..=at.start.min(text.len())).rev().find(boundary).unwrap_or(0);
    start..(at.end..text.len()).find(boundary).unwrap_or(text.len())
}

/// Where the classes stand that name characters beyond ASCII. Patterns match bytes, and a class is one byte of the line, unless it is
/// told that its members are characters.
fn wide_classes(text: &str) -> Vec<Range<usize>> {
    struct Wide(Vec<Range<usize>>, bool);
    impl ast::Visitor for Wide {
        type Output = Vec<Range<usize>>;
        type Err = std::convert::Infallible;

        fn finish(self) -> Result<Self::Output, Self::Err> {
            Ok(self.0)
        }

        fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), Self::Err> {
            let wide = |literal: &ast::Literal| literal.byte().is_none() && !literal.c.is_ascii();
            self.1 |= match item {
                ast::ClassSetItem::Literal(literal) => wide(literal),
                ast::ClassSetItem::Range(range) => wide(&range.start) || wide(&range.end),
                _ => false,
            };
            Ok(())
        }

        fn visit_post(&mut self, part: &ast::Ast) -> Result<(), Self::Err> {
            if let ast::Ast::ClassBracketed(class) = part
                && std::mem::take(&mut self.1)
            {
                self.0.push(class.span.start.offset..class.span.end.offset);
            }
            Ok(())
        }
    }
    if text.is_ascii() && !text.contains('\\') {
        return Vec::new();
    }
    let parsed = ast::parse::Parser::new().parse(text);
    parsed.map_or_else(|_| Vec::new(), |parsed| ast::visit(&parsed, Wide(Vec::new(), false)).unwrap_or_default())
}

/// What to write instead of something only fail2ban's regex engine knows.
fn help_for(what: &str) -> Option<String> {
    let help = if what.contains("look-around") || what.contains("backreference") {
        "patterns take linear time: say what must stand there instead of what must not"
    } else if what.contains("repetition") {
        r"write \{ where a brace is meant"
    } else if what.contains("Unicode") {
        r"patterns match bytes: write (?u:\pL) for a character of a kind"
    } else {
        return None;
    };
    Some(help.to_owned())
}

/// A decimal number of at most nine digits.
fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok().filter(|t| t.len() <= 9)?.parse().ok()
}

/// Reads an address strictly; IPv4-mapped ones are folded.
pub(crate) fn address(text: &[u8]) -> Option<IpAddr> {
    if !text.contains(&b':') {
        return quad(text).map(IpAddr::V4);
    }
    let text = std::str::from_utf8(text).ok()?;
    Some(fold(IpAddr::V6(text.parse::<Ipv6Addr>().ok()?)))
}

/// Four decimal numbers up to 255 without leading zeros.
fn quad(text: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let mut parts = text.split(|b| *b == b'.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 3 || (part.len() > 1 && part[0] == b'0') {
            return None;
        }
        let mut value = 0_u16;
        for digit in part {
            value = value * 10 + u16::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
        }
        *octet = u8::try_from(value).ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::filter::definition::Param;

    fn found(written: &str, line: &str) -> Option<IpAddr> {
        let params = BTreeMap::from([("proxy".to_owned(), Param::Nets(vec!["10.0.0.0/30".parse().unwrap()]))]);
        let scope = Scope { params: &params, variables: &BTreeMap::new() };
        let pattern = Pattern::compile(written, "failregex", 0, scope).unwrap();
        pattern.find(line.as_bytes(), &mut Places::default())?.addr
    }

    #[test]
    fn characters_beyond_ascii_are_those_of_the_line() {
        let table = [
            ("^é <HOST>$", "é 192.0.2.7", true),
            ("^é+ <HOST>$", "éé 192.0.2.7", true),
            ("^[aé]+ <HOST>$", "éaé 192.0.2.7", true),
            ("^[aé]+ <HOST>$", "éaü 192.0.2.7", false),
            ("^[à-ü]{2} <HOST>$", "éü 192.0.2.7", true),
            ("^[^é] <HOST>$", "ü 192.0.2.7", true),
            ("^[^é]+ <HOST>$", "xéx 192.0.2.7", false),
            ("^(?i)[É]x <HOST>$", "éX 192.0.2.7", true),
            (r"^[\u00e9] <HOST>$", "é 192.0.2.7", true),
            (r"^[^\xe9] <HOST>$", "x 192.0.2.7", true),
            (r"^(?u:\pL)+ <HOST>$", "éx 192.0.2.7", true),
            (r"^\S+ mot de passe erroné: <F-USER>[^é:]+</F-USER>: <HOST>$", "ü: mot de passe erroné: bob: 192.0.2.7", true),
        ];
        for (written, line, matches) in table {
            assert_eq!(found(written, line).is_some(), matches, "{written} on {line}");
        }
    }

    #[test]
    fn mistakes_are_cited_by_whole_characters() {
        let scope = Scope { params: &BTreeMap::new(), variables: &BTreeMap::new() };
        for (written, at) in [("/{¡", 2..4), ("é{é", 3..5), ("[é", 0..1), (r"\pé", 2..4)] {
            let mistakes = Pattern::compile(written, "failregex", 0, scope).unwrap_err();
            let cited = mistakes[0].at.clone().unwrap();
            assert!(written.get(cited.clone()).is_some() && cited.contains(&at.start), "{written}: {cited:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_makes_it_panic(written in r"(?s)(?:[<>/\\\\(?P:|*+{}é\u{1F600} \[\]^-]|F-|USER|HOST|proxy|\\[xup]|.){0,30}", line in ".{0,20}") {
            let params = BTreeMap::from([("proxy".to_owned(), Param::Nets(vec!["10.0.0.0/30".parse().unwrap()]))]);
            let variables = BTreeMap::from([("x".to_owned(), "[é".to_owned())]);
            let scope = Scope { params: &params, variables: &variables };
            match Pattern::compile(&written, "failregex", 0, scope) {
                Ok(pattern) => _ = pattern.find(line.as_bytes(), &mut Places::default()),
                Err(mistakes) => {
                    for at in mistakes.into_iter().filter_map(|mistake| mistake.at) {
                        proptest::prop_assert!(written.get(at.clone()).is_some(), "{:?}", at);
                    }
                }
            }
        }
    }

    #[test]
    fn addresses_are_read_strictly_and_folded() {
        let table = [
            ("from <HOST>", "from 192.0.2.7", "192.0.2.7"),
            ("from <HOST>", "from [192.0.2.7]:25", "192.0.2.7"),
            ("from <HOST>", "from ::ffff:192.0.2.7", "192.0.2.7"),
            ("from <HOST>", "from ::ffff:c000:207", "192.0.2.7"),
            ("from <HOST>", "from 2001:db8::1: gone", "2001:db8::1"),
            ("from <HOST>", "from [2001:DB8::1]", "2001:db8::1"),
            ("from <HOST>", "from fe80::1%eth0 port", "fe80::1"),
            ("from <HOST>", "from ::1", "::1"),
            ("from <HOST>", "from 2001:db8::", "2001:db8::"),
            ("from <HOST>", "from 1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),
            (r"\[<IP4>\]", "[192.0.2.7]", "192.0.2.7"),
            (r"\S*:<ADDR>$", "u:192.0.2.7", "192.0.2.7"),
            ("<F-ID>.*</F-ID>$", "192.0.2.7", "192.0.2.7"),
            ("<proxy> for <ADDR>", "10.0.0.2 for 192.0.2.7", "192.0.2.7"),
        ];
        for (written, line, addr) in table {
            assert_eq!(found(written, line), Some(addr.parse().unwrap()), "{written} on {line}");
        }
        let nothing = [
            ("from <HOST>", "from 999.1.1.1"),
            ("from <HOST>", "from 010.1.1.1"),
            ("from <HOST>", "from 1.2.3.1999"),
            ("from <HOST>", "from 1.2.3"),
            ("from <HOST>$", "from 1:2:3:4:5:6:7:8:9"),
            ("from <HOST>", "from 2001:::1"),
            ("from <HOST>", "from mail.example.org"),
            ("<F-ID>.*</F-ID>$", "a.b.c.d"),
            ("<F-ID>.*</F-ID>$", "1.2.3.+4"),
            ("<IP6>", "192.0.2.7"),
            ("<IP4>", "2001:db8::1"),
            ("<proxy> for <ADDR>", "10.0.0.9 for 192.0.2.7"),
        ];
        for (written, line) in nothing {
            assert_eq!(found(written, line), None, "{written} on {line}");
        }
    }
}
