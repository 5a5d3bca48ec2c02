//! The socket's other end: one request, one reply.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::request::{Envelope, Reply, Request, VERSION};
use crate::terms::plain;

/// No reply is longer: a million bans in JSON are below it.
const REPLY_AT_MOST: u64 = 1 << 30;

/// Asks the daemon behind `socket`. The error says what to do.
pub fn ask(socket: &Path, request: Request) -> Result<Reply, String> {
    let named = socket.display();
    let stream = UnixStream::connect(socket).map_err(|e| {
        let help = match e.kind() {
            std::io::ErrorKind::NotFound => "is the daemon running? `banset daemon` starts it; --socket names another socket",
            std::io::ErrorKind::PermissionDenied => "run as root, or join the group `readers` of [daemon]",
            _ => "is the daemon running?",
        };
        format!("cannot reach the daemon at {named}: {}\n  help: {help}", plain(&e))
    })?;
    let lost = |e: std::io::Error| format!("lost the daemon at {named}: {}", plain(&e));
    stream.set_read_timeout(Some(Duration::from_secs(120))).map_err(lost)?;
    stream.set_write_timeout(Some(Duration::from_secs(10))).map_err(lost)?;
    let mut line = serde_json::to_vec(&Envelope { v: VERSION, request }).map_err(|e| e.to_string())?;
    line.push(b'\n');
    (&stream).write_all(&line).map_err(lost)?;
    let mut reply = Vec::new();
    BufReader::new(stream.take(REPLY_AT_MOST)).read_until(b'\n', &mut reply).map_err(lost)?;
    serde_json::from_slice(&reply).map_err(|e| format!("the daemon at {named} answered what this client can not read: {e}"))
}
