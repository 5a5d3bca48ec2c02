//! The control socket: what may be asked, by whom, and how it is answered.
pub mod request;
pub use request::{Rank, Reply, Request};
