//! The engine: the one loop. Events in, actions out ([`core`], pure), and a thin performer around it ([`run`]).

pub mod clerk;
pub mod clock;
pub mod core;
pub mod cut;
pub mod historian;
pub mod journal;
pub mod journals;
pub mod keep;
pub mod keeper;
pub mod kernel;
pub mod listener;
pub mod lock;
pub mod machine;
pub mod names;
pub mod pace;
pub mod reader;
pub mod recall;
pub mod run;
pub mod spawner;
pub mod spec;

pub use self::core::{Core, Event};
pub use spec::{Spec, Specs};
