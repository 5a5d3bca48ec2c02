//! The control socket: what may be asked, by whom, and how it is answered.

pub mod client;
pub mod request;
pub mod server;

pub use request::{Rank, Reply, Request};
