//! The socket's other end: one request, one reply.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::request::{Envelope, REQUEST_AT_MOST, Reply, Request, VERSION, too_long};
use crate::terms::plain;

/// No reply is longer: a million bans in JSON are below it.
const REPLY_AT_MOST: u64 = 1 << 30;

/// How long an answer may take.
const ANSWER_AT_MOST: Duration = Duration::from_secs(120);

/// Asks the daemon behind `socket`. The error says what to do.
pub fn ask(socket: &Path, request: Request) -> Result<Reply, String> {
    let named = socket.display();
    let mut line = serde_json::to_vec(&Envelope { v: VERSION, request }).map_err(|e| e.to_string())?;
    line.push(b'\n');
    if line.len() > REQUEST_AT_MOST {
        return Ok(too_long());
    }
    let stream = UnixStream::connect(socket).map_err(|e| {
        let help = match e.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                "is the daemon running? `banset daemon` starts it; --socket names another socket"
            }
            ErrorKind::PermissionDenied => "run as root, or join the group `readers` of [daemon]",
            _ => "--socket names another socket",
        };
        format!("cannot reach the daemon at {named}: {}\n  help: {help}", plain(&e))
    })?;
    let lost = |e: std::io::Error| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            let help = "it may have been carried out all the same: look at its log, and at `banset status`";
            format!("the daemon at {named} did not answer within {} s\n  help: {help}", ANSWER_AT_MOST.as_secs())
        }
        _ => format!("lost the daemon at {named}: {}\n  help: is it being stopped? ask again", plain(&e)),
    };
    stream.set_read_timeout(Some(ANSWER_AT_MOST)).map_err(lost)?;
    stream.set_write_timeout(Some(Duration::from_secs(10))).map_err(lost)?;
    // One that turns us away has answered and gone before we asked: its answer counts, whatever became of the question.
    let sent = (&stream).write_all(&line);
    let mut reply = Vec::new();
    let read = BufReader::new(stream.take(REPLY_AT_MOST)).read_until(b'\n', &mut reply);
    if reply.is_empty() {
        sent.and(read.map(drop)).map_err(lost)?;
        return Err(lost(std::io::Error::other("it went away without an answer")));
    }
    serde_json::from_slice(&reply).map_err(|e| {
        let help = "use the client that came with it";
        format!("the daemon at {named} answered what this client can not read: {e}\n  help: {help}")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What a client makes of a daemon that does this with the connection.
    fn asked(does: impl FnOnce(UnixStream) + Send + 'static) -> Result<Reply, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let daemon = std::thread::spawn(move || does(listener.accept().expect("a client").0));
        let addrs = vec!["192.0.2.7".to_owned(); 4000];
        let reply = ask(&socket, Request::Banned { addrs });
        daemon.join().expect("the daemon ends");
        reply
    }

    #[test]
    fn an_answer_of_a_daemon_that_read_nothing_counts() {
        let refused = Reply::refused(1, "no", None);
        let mut line = serde_json::to_vec(&refused).expect("JSON");
        line.push(b'\n');
        assert_eq!(asked(move |mut stream| stream.write_all(&line).expect("it fits")), Ok(refused));
    }

    #[test]
    fn a_daemon_that_goes_away_is_told() {
        let why = asked(drop).expect_err("no answer");
        assert!(why.contains("lost the daemon at") && why.contains("help:"), "{why}");
        let why = asked(|mut stream| stream.write_all(b"nonsense\n").expect("it fits")).expect_err("no answer");
        assert!(why.contains("can not read"), "{why}");
    }

    #[test]
    fn a_request_that_is_too_long_is_not_sent() {
        let addrs = vec!["2001:db8:1234:5678::1".to_owned(); 10_000];
        let reply = ask(
            Path::new("/nonexistent"),
            Request::Unban { jail: None, addrs, all: false, since_s: None, net: None, user: None, dry_run: false, forget: false },
        );
        let reply = reply.expect("refused");
        assert!(reply.exit == 2 && reply.help.is_some_and(|help| help.contains("fewer")));
    }
}
