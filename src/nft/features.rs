//! What this kernel's nf_tables can do, and what is written instead where it can not.
//!
//! Asked with a batch that always ends in an error, so that nothing of it ever comes to be and nobody is told; only what such a
//! batch can not show goes by the kernel's version, and there the older way is right on every kernel.

use std::fmt;

/// What the kernel can do. [`Features::NONE`] writes what every kernel since 5.10 understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Elements can be removed without knowing whether they are there (DESTROYSETELEM, Linux 6.3).
    pub destroy: bool,
    /// Adding an element that is there changes its timeout (Linux 6.12).
    pub timeout_update: bool,
    /// A table can be owned by a socket (Linux 5.12) and outlive it (Linux 6.9).
    pub owner: bool,
    /// Elements can count (`counter` in a set, Linux 5.7).
    pub element_counters: bool,
    /// The kernel answers to the message that ends a batch (Linux 6.10).
    pub batch_end_ack: bool,
}

impl Features {
    /// Nothing that Linux 5.10 lacks.
    pub const NONE: Features =
        Features { destroy: false, timeout_update: false, owner: false, element_counters: false, batch_end_ack: false };
    /// Everything that is made use of.
    pub const ALL: Features =
        Features { destroy: true, timeout_update: true, owner: true, element_counters: true, batch_end_ack: true };

    /// Each feature by name and the version of Linux it came with.
    pub const fn named(&self) -> [(&'static str, &'static str, bool); 5] {
        [
            ("element counters", "5.7", self.element_counters),
            ("destroy element", "6.3", self.destroy),
            ("owned tables", "6.9", self.owner),
            ("answer to the end of a batch", "6.10", self.batch_end_ack),
            ("timeout update", "6.12", self.timeout_update),
        ]
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing: Vec<String> = self
            .named()
            .iter()
            .filter(|(_, _, present)| !present)
            .map(|(name, since, _)| format!("{name} (Linux {since})"))
            .collect();
        if missing.is_empty() { f.write_str("all") } else { write!(f, "without {}", missing.join(", ")) }
    }
}

/// `(major, minor)` of a kernel release such as `6.18.0-rc1`.
pub(crate) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        let table = [
            ("6.18.0", Some((6, 18))),
            ("5.10.0-28-amd64", Some((5, 10))),
            ("6.12-rc1", Some((6, 12))),
            ("linux", None),
            ("", None),
        ];
        for (release, wanted) in table {
            assert_eq!(version(release), wanted);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(Features::ALL.to_string(), "all");
        assert_eq!(Features { destroy: false, ..Features::ALL }.to_string(), "without destroy element (Linux 6.3)");
    }
}
