//! nf_tables: the table we want, and making the kernel hold it. Nothing here runs `nft`, and nothing else writes netlink.
//!
//! In reading order:
//! - [`ruleset`]: the table a configuration wants, as a value that prints as nft(8) lists it;
//! - [`element`]: addresses, subnets and their timeouts;
//! - [`transaction`]: statements that are committed together; [`Transaction::establish`] makes the kernel equal to a ruleset;
//! - [`socket`]: the one long-lived socket that commits, and what a refusal says;
//! - [`kernel`]: what the kernel holds, read back into the same types;
//! - [`features`]: what this kernel can do, and what is written where it can not;
//! - [`monitor`]: what others change;
//! - [`others`]: what their tables do to packets before ours see them, for advice.
//!
//! Below them `message` lays out bytes, `expression` turns rules into expressions and back, `link` moves datagrams.
//!
//! A day in its life: `Socket::open`, `Kernel::table`, `Ruleset::of(plan)`, `Transaction::establish`, `Socket::commit`; then for
//! each burst of bans `Transaction::about`, `add` with `Ruleset::ban_set`, `commit`. When the monitor hears of damage: `table`,
//! `establish`, `commit` again, then `Kernel::elements` and `Transaction::settle` for the sets that were kept.
//!
//! Invariants: **a batch that was not confirmed as a whole did not happen**; **a ban is always sent with timeout and expiration**;
//! **the ruleset is never searched for "our rule"**: it is compared as a whole and changed as a whole.

pub mod element;
mod expression;
pub mod features;
pub mod kernel;
mod link;
mod message;
pub mod monitor;
pub mod others;
pub mod ruleset;
pub mod socket;
pub mod transaction;

pub use element::{Counter, Element, Interval, Key, Timeout, merge};
pub use features::Features;
pub use kernel::{Kernel, KernelTable};
pub use monitor::{Ears, Foreign, Heard, Monitor, Touch};
pub use others::dump_runs;
pub use ruleset::{JailPlan, Map, Plan, PortSet, Reject, Ruleset, Set};
pub use socket::{Kind, Refused, Socket};
pub use transaction::{Change, Establishment, Transaction};
