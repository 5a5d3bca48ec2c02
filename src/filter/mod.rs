//! Filters: what turns a line into a failure.
pub mod definition;
pub use definition::{Definition, Mistake};
