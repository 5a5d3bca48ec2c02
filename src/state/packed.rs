//! Failures in few bytes: what a jail counted, one after the other, as it is kept and read back.
//!
//! ```text
//! tag 1  address 4 or 16  seconds 4  attempts 1  place 8      a failure: 18 bytes for IPv4, 30 for IPv6
//! tag 1  address 4 or 16                                      forget this address
//! ```
//! Numbers are little-endian. Reading stops at the first byte it does not understand: what was written after it is lost, what
//! came before counts.

use std::net::IpAddr;

use crate::jail::{Failure, Place};
use crate::terms::Time;

const V6: u8 = 1;
const FORGET: u8 = 2;

/// One thing that happened to a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A failure was counted.
    Fail(Failure),
    /// An address was forgotten.
    Forget(IpAddr),
}

/// Appends a step.
pub fn push(out: &mut Vec<u8>, step: Step) {
    let (tag, address) = match step {
        Step::Fail(failure) => (0, failure.address),
        Step::Forget(address) => (FORGET, address),
    };
    match address {
        IpAddr::V4(v4) => {
            out.push(tag);
            out.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            out.push(tag | V6);
            out.extend(v6.octets());
        }
    }
    if let Step::Fail(failure) = step {
        out.extend((failure.time.secs().clamp(0, i64::from(u32::MAX)) as u32).to_le_bytes());
        out.push(failure.attempts.min(255) as u8);
        out.extend(failure.place.0.to_le_bytes());
    }
}

/// The steps in `bytes`, in order.
pub fn steps(mut bytes: &[u8]) -> impl Iterator<Item = Step> {
    std::iter::from_fn(move || {
        let (step, rest) = read(bytes)?;
        bytes = rest;
        Some(step)
    })
}

fn read(bytes: &[u8]) -> Option<(Step, &[u8])> {
    let (&tag, bytes) = bytes.split_first()?;
    if tag & !(V6 | FORGET) != 0 {
        return None;
    }
    let (address, bytes) = match tag & V6 {
        0 => bytes.split_first_chunk::<4>().map(|(octets, rest)| (IpAddr::from(*octets), rest))?,
        _ => bytes.split_first_chunk::<16>().map(|(octets, rest)| (IpAddr::from(*octets), rest))?,
    };
    if tag & FORGET != 0 {
        return Some((Step::Forget(address), bytes));
    }
    let (seconds, bytes) = bytes.split_first_chunk::<4>()?;
    let (&attempts, bytes) = bytes.split_first()?;
    let (place, bytes) = bytes.split_first_chunk::<8>()?;
    let time = Time::from_secs(i64::from(u32::from_le_bytes(*seconds)));
    let failure = Failure { address, time, attempts: u32::from(attempts), place: Place(u64::from_le_bytes(*place)) };
    Some((Step::Fail(failure), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn steps_are_read_back(all in prop::collection::vec((any::<bool>(), any::<bool>(), any::<u128>(), any::<u32>(), any::<u8>(), any::<u64>()), 0..20)) {
            let wanted: Vec<Step> = all.into_iter().map(|(forget, six, bits, seconds, attempts, place)| {
                let address = if six { IpAddr::from(bits.to_be_bytes()) } else { IpAddr::from((bits as u32).to_be_bytes()) };
                let failure = Failure { address, time: Time::from_secs(i64::from(seconds)), attempts: u32::from(attempts), place: Place(place) };
                if forget { Step::Forget(address) } else { Step::Fail(failure) }
            }).collect();
            let mut bytes = Vec::new();
            wanted.iter().for_each(|step| push(&mut bytes, *step));
            prop_assert_eq!(steps(&bytes).collect::<Vec<_>>(), wanted);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(steps(&bytes).count() <= bytes.len());
        }
    }
}
