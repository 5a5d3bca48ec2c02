//! The configuration: files in layers, read with their places, validated as written, merged, and then meant.
pub mod run;

pub use run::{Config, Jail};
