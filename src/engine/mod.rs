//! The engine: the one loop. Events in, actions out ([`core`], pure), and a thin performer around it.

pub mod core;
pub mod lock;
pub mod machine;
pub mod pace;
pub mod spec;

pub use self::core::{Core, Event};
pub use spec::{Spec, Specs};
