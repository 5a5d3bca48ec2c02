//! The two clocks, read together. Only performers read them; the core is told.

use nix::time::{ClockId, clock_gettime};

use crate::jail::Now;
use crate::terms::Time;

/// Wall clock and monotonic clock, now.
pub fn now() -> Now {
    let read = |id| clock_gettime(id).map_or(Time(0), |t| Time(t.tv_sec() * 1_000_000 + t.tv_nsec() / 1_000));
    Now { wall: read(ClockId::CLOCK_REALTIME), mono: read(ClockId::CLOCK_MONOTONIC) }
}
