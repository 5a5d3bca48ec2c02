//! The thread that listens: what others change in our table, as events for the core. It sleeps until somebody else commits, and our
//! own commits never wake it.

use std::io;

use tracing::error;

use crate::nft::{Heard, Monitor};

/// Tells `heard` of every foreign transaction, on a thread of its own, for as long as it says it wants more.
pub fn listen(mut monitor: Monitor, mut heard: impl FnMut(Heard) -> bool + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("listener".into()).spawn(move || {
        loop {
            match monitor.hear() {
                Ok(Some(news)) => {
                    if !heard(news) {
                        return;
                    }
                }
                Ok(None) => {
                    if let Err(errno) = monitor.wait() {
                        return error!("changes of the table by others are no longer heard: {errno}");
                    }
                }
                Err(errno) => return error!("changes of the table by others are no longer heard: {errno}"),
            }
        }
    })?;
    Ok(())
}
