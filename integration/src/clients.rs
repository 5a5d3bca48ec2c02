//! Clients of real servers: they log in, with the right password or a wrong one, and tell how it went.

use std::io::{BufRead, BufReader, Error, ErrorKind, Result, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::{Answer, Lab, Server};

/// How long a server may think about a password: PAM alone takes two seconds for a wrong one, more where several wait.
const PATIENT: Duration = crate::PATIENCE;
/// How long somebody waits who may have been banned for this very try.
const HURRIED: Duration = Duration::from_secs(5);

/// How an attempt to log in ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Attempt {
    /// The server took the password.
    In,
    /// The server answered, and refused it.
    Denied,
    /// No connection could be opened, or it was not answered any more.
    Away,
}

impl Attempt {
    fn taken(is_so: bool) -> Attempt {
        if is_so { Attempt::In } else { Attempt::Denied }
    }
}

/// Someone who logs in to the lab's server from an address of the attackers'.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    lab: &'a Lab,
    from: &'a str,
    patience: Duration,
}

impl<'a> Client<'a> {
    /// From the address `from`.
    pub fn new(lab: &'a Lab, from: &'a str) -> Client<'a> {
        Client { lab, from, patience: PATIENT }
    }

    /// As this one, who soon gives up: a server tells its log of a wrong password before it tells the client, and a ban is faster
    /// than that answer.
    pub fn hurried(self) -> Client<'a> {
        Client { patience: HURRIED, ..self }
    }

    /// Logs in by IMAP, once per password over one connection, and ends it.
    pub fn imap(&self, port: u16, user: &str, passwords: &[&str]) -> Attempt {
        self.talk(port, |talk| {
            talk.expect("* OK")?;
            let mut last = Attempt::Denied;
            for password in passwords {
                talk.say(&format!("a LOGIN {user} {password}"))?;
                last = Attempt::taken(talk.until(|line| line.starts_with("a "))?.starts_with("a OK"));
            }
            talk.leave("b LOGOUT");
            Ok(last)
        })
    }

    /// Logs in by POP3.
    pub fn pop3(&self, port: u16, user: &str, password: &str) -> Attempt {
        self.talk(port, |talk| {
            talk.expect("+OK")?;
            talk.say(&format!("USER {user}"))?;
            talk.expect("+OK")?;
            talk.say(&format!("PASS {password}"))?;
            let attempt = Attempt::taken(talk.line()?.starts_with("+OK"));
            talk.leave("QUIT");
            Ok(attempt)
        })
    }

    /// Logs in by SMTP with AUTH PLAIN; whoever is let in sends a mail, which is where servers log who it was.
    pub fn smtp(&self, port: u16, user: &str, password: &str) -> Attempt {
        self.talk(port, |talk| {
            talk.reply()?;
            talk.say("EHLO laptop")?;
            talk.reply()?;
            talk.say(&format!("AUTH PLAIN {}", base64(format!("\0{user}\0{password}").as_bytes())))?;
            let attempt = Attempt::taken(talk.reply()?.starts_with("235"));
            if attempt == Attempt::In {
                for said in
                    ["MAIL FROM:<alice@example.org>", "RCPT TO:<alice@example.org>", "DATA", "Subject: hello\r\n\r\nhello\r\n."]
                {
                    talk.say(said)?;
                    let reply = talk.reply()?;
                    if !reply.starts_with(['2', '3']) {
                        return Err(Error::other(format!("{said}: {reply}")));
                    }
                }
            }
            talk.leave("QUIT");
            Ok(attempt)
        })
    }

    /// Logs in by FTP.
    pub fn ftp(&self, port: u16, user: &str, password: &str) -> Attempt {
        self.talk(port, |talk| {
            talk.reply()?;
            talk.say(&format!("USER {user}"))?;
            talk.reply()?;
            talk.say(&format!("PASS {password}"))?;
            let attempt = Attempt::taken(talk.reply()?.starts_with("230"));
            talk.leave("QUIT");
            Ok(attempt)
        })
    }

    /// Fetches `path` by HTTP with basic authentication.
    pub fn http(&self, port: u16, path: &str, user: &str, password: &str) -> Attempt {
        self.talk(port, |talk| {
            let login = base64(format!("{user}:{password}").as_bytes());
            talk.say(&format!(
                "GET {path} HTTP/1.1\r\nHost: mx.example.org\r\nAuthorization: Basic {login}\r\nConnection: close\r\n"
            ))?;
            let status = talk.line()?;
            Ok(Attempt::taken(!status.contains(" 401 ")))
        })
    }

    /// Says `words` one after the other to a server that greets, and hears a line after each; whether it refused the last one.
    pub fn lines(&self, port: u16, words: &[&str]) -> Attempt {
        self.talk(port, |talk| {
            let mut heard = talk.line()?;
            for word in words {
                talk.say(word)?;
                heard = talk.line()?;
            }
            Ok(Attempt::taken(heard.starts_with('2')))
        })
    }

    /// Logs in with OpenSSH's own client.
    pub fn ssh(&self, server: &Server, user: &str, password: &str) -> Attempt {
        let ask = "/tmp/askpass";
        if !server.path(ask).exists() {
            server.write(ask, "#!/bin/sh\necho \"$PASSWORD\"\n");
            let run = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(server.path(ask), run).expect("a file of ours");
        }
        let to = if self.from.contains(':') { Lab::SERVER6 } else { Lab::SERVER4 };
        let patience = self.patience.as_secs().to_string();
        let mut command = server.command(&["timeout", &patience, "ssh", "-F", "none", "-b", self.from, "-l", user]);
        for option in [
            "PreferredAuthentications=password",
            "NumberOfPasswordPrompts=1",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ] {
            command.args(["-o", option]);
        }
        command.args([to, "true"]).env("SSH_ASKPASS", ask).env("SSH_ASKPASS_REQUIRE", "force").env("PASSWORD", password);
        let answer = self.lab.attackers().run(|| Answer::of(&mut command));
        match answer.code {
            0 => Attempt::In,
            255 if answer.err.contains("Permission denied") => Attempt::Denied,
            255 if ["timed out", "Connection reset", "Connection closed", "Broken pipe"]
                .iter()
                .any(|end| answer.err.contains(end)) =>
            {
                Attempt::Away
            }
            124 => Attempt::Away,
            _ => panic!("ssh from {}: {answer:?}", self.from),
        }
    }

    /// A connection, and what is said over it; an end or a silence in the midst of it is [`Attempt::Away`].
    fn talk(&self, port: u16, script: impl FnOnce(&mut Talk) -> Result<Attempt>) -> Attempt {
        let Ok(stream) = self.lab.open(self.from, port, self.patience) else { return Attempt::Away };
        let wrapped = stream.set_read_timeout(Some(self.patience)).and_then(|()| stream.try_clone());
        let mut talk = Talk { write: wrapped.expect("a socket takes a timeout"), read: BufReader::new(stream) };
        match script(&mut talk) {
            Ok(attempt) => attempt,
            Err(e) if e.kind() == ErrorKind::Other => panic!("{} at port {port}: {e}", self.from),
            Err(_) => Attempt::Away,
        }
    }
}

/// A conversation in lines.
struct Talk {
    read: BufReader<TcpStream>,
    write: TcpStream,
}

impl Talk {
    fn say(&mut self, line: &str) -> Result<()> {
        self.write.write_all(format!("{line}\r\n").as_bytes())
    }

    /// Takes leave as is polite, and waits for the server to hang up; a ban may come first.
    fn leave(&mut self, word: &str) {
        let _ = self.read.get_ref().set_read_timeout(Some(HURRIED));
        let _ = self.say(word).and_then(|()| std::io::copy(&mut self.read, &mut std::io::sink()));
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.read.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn until(&mut self, is_it: impl Fn(&str) -> bool) -> Result<String> {
        loop {
            let line = self.line()?;
            if is_it(&line) {
                return Ok(line);
            }
        }
    }

    /// The last line of a reply of SMTP or FTP: `250-first`, `250 last`.
    fn reply(&mut self) -> Result<String> {
        self.until(|line| line.as_bytes().get(3) != Some(&b'-'))
    }

    fn expect(&mut self, start: &str) -> Result<()> {
        let line = self.line()?;
        if line.starts_with(start) { Ok(()) } else { Err(Error::other(format!("{start} was expected, not {line}"))) }
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for digit in 0..4 {
            let sextet = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit <= three.len() { char::from(DIGITS[sextet]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(super::base64(plain.as_bytes()), coded);
        }
    }
}
