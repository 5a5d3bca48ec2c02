//! One daemon per table: an abstract socket `@banset/FAMILY/TABLE` is the lock, and names who holds it.
//!
//! Abstract sockets belong to the network namespace, as tables do, and vanish with their process: no stale lock file, no lock
//! that reaches into another namespace.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::terms::Family;

/// The lock, held as long as this lives.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] UnixListener);

/// Takes the lock of a table, or says who has it.
pub fn take(family: Family, table: &str) -> Result<Lock, String> {
    let name = format!("banset/{family}/{table}");
    let address = SocketAddr::from_abstract_name(name.as_bytes()).map_err(|e| format!("@{name}: {e}"))?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Lock(listener)),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
            let holder = UnixStream::connect_addr(&address).ok().and_then(|stream| getsockopt(&stream, PeerCredentials).ok());
            let holder = holder.map_or_else(|| "another process".to_owned(), |peer| format!("process {}", peer.pid()));
            let help = "stop it first, or give this one another `table` in [nft]";
            Err(format!("table {family} {table} belongs to a daemon that runs already: {holder}\n  help: {help}"))
        }
        Err(e) => Err(format!("cannot take the lock @{name}: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_learns_who_holds_the_table() {
        let table = format!("test{}", std::process::id());
        let held = take(Family::Inet, &table).expect("free");
        let refused = take(Family::Inet, &table).expect_err("held");
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(held);
        take(Family::Inet, &table).expect("free again");
    }
}
