//! `message repeated 5 times: [ … ]`: what syslog daemons write instead of the same message again.
//!
//! It counts only where the syslog daemon wrote it, directly behind the head `host program[pid]: `, so that a client's
//! text can not claim it.

/// A message and how often it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repeated {
    /// The line as it would be for one message.
    pub once: String,
    /// How often; at least 1.
    pub times: u32,
    /// Where something of the text is left out, and how many bytes.
    pub left_out: (usize, usize),
}

const OPENS: &str = "message repeated ";
/// Nobody's log repeats more often than this between two lines, whatever it says.
const MOST: u32 = 10_000;

/// Takes the message out of the brackets. `text` is a line without its date.
pub(crate) fn unwrap(text: &str) -> Option<Repeated> {
    let (head, said, times) = parts(text.as_bytes())?;
    let left_out = (head, said.start - head);
    Some(Repeated { once: format!("{}{}", text.get(..head)?, text.get(said)?), times, left_out })
}

/// The end of the head, what was said, and how often.
pub(crate) fn parts(text: &[u8]) -> Option<(usize, std::ops::Range<usize>, u32)> {
    let at = memchr::memmem::find(text, OPENS.as_bytes())?;
    // The head's colon is the line's first that a blank follows.
    if memchr::memmem::find(&text[..at], b": ") != Some(at.checked_sub(2)?) {
        return None;
    }
    let from = at + OPENS.len();
    let digits = text[from..].iter().take(9).take_while(|b| b.is_ascii_digit()).count();
    let times: u32 = std::str::from_utf8(&text[from..from + digits]).ok()?.parse().ok()?;
    let behind = text[from + digits..].strip_prefix(b" times: [")?;
    let mut start = text.len() - behind.len();
    start += usize::from(behind.first() == Some(&b' '));
    let end = text.trim_ascii_end().len();
    (end > start && text[end - 1] == b']').then_some((at, start..end - 1, times.clamp(1, MOST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_syslog_daemons_word_counts() {
        let table = [
            (" mx sshd[1]: message repeated 5 times: [ Failed x]", Some((" mx sshd[1]: Failed x", 5))),
            (" mx sshd: message repeated 1 times: [Failed x] ", Some((" mx sshd: Failed x", 1))),
            (" mx sshd: message repeated 999999999 times: [ x]", Some((" mx sshd: x", 10_000))),
            (" mx sshd[1]: Invalid user a: message repeated 5 times: [ Failed x]", None),
            (" mx sshd[1]: Invalid user message repeated 5 times: [ Failed x]", None),
            (" mx sshd[1]: message repeated 5 times: [ Failed x", None),
            (" mx sshd[1]: message repeated x times: [ Failed x]", None),
            ("message repeated 5 times: [ x]", None),
        ];
        for (text, expected) in table {
            let found = unwrap(text);
            assert_eq!(found.as_ref().map(|r| (r.once.as_str(), r.times)), expected, "{text}");
        }
    }
}
