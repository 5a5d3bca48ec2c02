//! fail2ban's filter files, read as they are and judged as fail2ban judges.
//!
//! ```text
//! x.conf, x.local, includes ─► Merged ─► Resolved ─► Rules ─► Judge
//!   ini, files                  resolve    dialect,   detector,
//!                                          template   judge
//! ```
//! Reading files is the caller's: [`files::read`] is handed a closure. What fail2ban refuses is a [`Cited`] mistake. What
//! looks ahead is carried along in linear time ([`ahead`]); a pattern that linear time can not match runs on a backtracking engine whose
//! steps are counted ([`expression`]).

use std::collections::BTreeMap;

mod ahead;
mod detector;
mod dialect;
mod expression;
pub mod files;
pub mod ini;
pub(crate) mod judge;
pub mod resolve;
pub(crate) mod rules;
mod stamp;
mod template;

pub use files::{Cited, Reading};
pub use judge::Failure;
pub use resolve::Resolved;
pub use rules::Value;

/// Reads the filter at `path` with the parameters a jail gives.
///
/// # Errors
/// Everything that is wrong with its files, each with file and line.
pub fn read(path: &str, params: &BTreeMap<String, String>, reading: &Reading<'_>) -> Result<Resolved, Vec<Cited>> {
    resolve::resolve(&files::read(path, reading)?, params)
}

/// Seconds east of UTC of a zone as fail2ban writes it: `UTC`, `CET`, `+0200`, `UTC-07:00`; a name knows no summer time.
pub fn offset(zone: &str) -> Option<i32> {
    stamp::zone_offset(zone)
}

#[cfg(test)]
mod tests;
