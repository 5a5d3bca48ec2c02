//! banset watches logs, decides who misbehaves, and keeps those addresses in timed elements of its own nftables sets.
pub mod filter;
pub mod netns;
mod sys;
pub mod terms;
