//! banset watches logs, decides who misbehaves, and keeps those addresses in timed elements of its own nftables sets.
pub mod cli;
pub mod config;
pub mod control;
pub mod doctor;
pub mod engine;
pub mod filter;
pub mod jail;
pub mod netns;
pub mod nft;
pub mod state;
mod sys;
pub mod terms;
pub mod watch;
