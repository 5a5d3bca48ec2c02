//! What may be asked over the control socket: newline-delimited JSON, one request one reply.
//!
//! ```text
//! → {"v":1,"cmd":"unban","jail":"sshd","addrs":["192.0.2.7"]}
//! ← {"v":1,"exit":0,"result":{"lifted":[{"jail":"sshd","addr":"192.0.2.7"}],"absent":[]}}
//! ← {"v":1,"exit":1,"error":"no jail \"shd\"","help":"there are: sshd, vpopmail"}
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::terms::escape;

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// The longest request accepted, in bytes.
pub const REQUEST_AT_MOST: usize = 64 * 1024;

/// A request with the version of its protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`].
    pub v: u32,
    /// What is asked.
    #[serde(flatten)]
    pub request: Request,
}

/// Everything that may be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// All jails in brief, or one in full.
    Status {
        /// The jail to show in full.
        #[serde(default)]
        jail: Option<String>,
    },
    /// fail2ban's table.
    Stats,
    /// The bans held, or which jails hold these addresses.
    Banned {
        /// Addresses; empty: list all.
        #[serde(default)]
        addrs: Vec<String>,
    },
    /// Ban addresses by hand.
    Ban {
        /// The jail; without one: `manual`.
        #[serde(default)]
        jail: Option<String>,
        /// Whom.
        addrs: Vec<String>,
        /// For how many seconds; without it the jail's bantime.
        #[serde(default)]
        for_s: Option<u64>,
        /// Until somebody lifts it.
        #[serde(default)]
        permanent: bool,
        /// Why.
        #[serde(default)]
        reason: Option<String>,
        /// Even if ignored.
        #[serde(default)]
        force: bool,
    },
    /// Lift bans.
    Unban {
        /// Only in this jail.
        #[serde(default)]
        jail: Option<String>,
        /// Whose.
        #[serde(default)]
        addrs: Vec<String>,
        /// All of them.
        #[serde(default)]
        all: bool,
        /// Those made since this instant, in seconds of the Unix epoch.
        #[serde(default)]
        since_s: Option<i64>,
        /// Those of addresses and subnets within this one.
        #[serde(default)]
        net: Option<String>,
        /// Those whose lines name this account.
        #[serde(default)]
        user: Option<String>,
        /// Only say what would be lifted.
        #[serde(default)]
        dry_run: bool,
        /// Forget failures and offences too.
        #[serde(default)]
        forget: bool,
    },
    /// Ignore addresses or subnets from now on.
    Ignore {
        /// Whom.
        addrs: Vec<String>,
        /// For how many seconds; without it until somebody takes it back.
        #[serde(default)]
        for_s: Option<u64>,
        /// Only in this jail.
        #[serde(default)]
        jail: Option<String>,
        /// Why.
        #[serde(default)]
        reason: Option<String>,
    },
    /// What is ignored by request.
    Ignored,
    /// Take back what was ignored by request.
    Unignore {
        /// Whom.
        addrs: Vec<String>,
        /// Only in this jail.
        #[serde(default)]
        jail: Option<String>,
    },
    /// Take the rules out; bans and judging go on.
    Pause {
        /// Only those of this jail.
        #[serde(default)]
        jail: Option<String>,
        /// For how many seconds; without it until `resume`.
        #[serde(default)]
        for_s: Option<u64>,
    },
    /// Put the rules back.
    Resume {
        /// Only those of this jail.
        #[serde(default)]
        jail: Option<String>,
    },
    /// What is known of an address: failures counted, ignore entries, offences, bans.
    Explain {
        /// Whose.
        addr: String,
        /// Only in this jail.
        #[serde(default)]
        jail: Option<String>,
    },
    /// What happened.
    History {
        /// Only about addresses within this address or subnet, and subnets around it.
        #[serde(default)]
        net: Option<String>,
        /// Only with this account among the lines.
        #[serde(default)]
        user: Option<String>,
        /// Only of this jail.
        #[serde(default)]
        jail: Option<String>,
        /// Only since this instant, in seconds of the Unix epoch.
        #[serde(default)]
        since_s: Option<i64>,
        /// So many rows at most.
        #[serde(default)]
        limit: Option<usize>,
    },
    /// What was banned and unbanned here after a number, for another machine.
    Events {
        /// The number; without one, what is banned now.
        #[serde(default)]
        since: Option<u64>,
        /// If there is nothing yet, the answer may wait for so many seconds.
        #[serde(default)]
        wait_s: u64,
    },
    /// Do what another machine decided.
    Apply {
        /// Its name.
        origin: String,
        /// Into this jail, whatever it was there.
        #[serde(default)]
        jail: Option<String>,
        /// Its events, in order.
        events: Vec<Given>,
    },
    /// How far each machine's events were applied.
    Applied,
    /// The accepted configuration.
    Config,
    /// Read the configuration again.
    Reload,
}

/// An event of another machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Given {
    /// Its number there.
    pub seq: u64,
    /// What happened.
    pub what: GivenWhat,
    /// In which jail.
    pub jail: String,
    /// To whom.
    pub addr: String,
    /// Since when, in seconds of the Unix epoch.
    pub since_s: i64,
    /// Until when; `None`: permanent.
    #[serde(default)]
    pub until_s: Option<i64>,
    /// Failures behind it.
    #[serde(default)]
    pub failures: u32,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
}

/// What an event of another machine asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GivenWhat {
    /// A ban.
    Ban,
    /// Its end before its time.
    Unban,
}

/// What a client must be to ask something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// In none of the groups.
    Stranger,
    /// In the group `readers`.
    Reader,
    /// In the group `operators`.
    Operator,
    /// Root, or the user the daemon runs as.
    Root,
}

impl Request {
    /// The lowest rank that may ask this.
    pub fn needs(&self) -> Rank {
        match self {
            Request::Status { .. } | Request::Stats | Request::Banned { .. } | Request::Ignored | Request::Explain { .. } => {
                Rank::Reader
            }
            // How long and how much an operator may have ignored is decided where that is known.
            Request::Unban { .. }
            | Request::History { .. }
            | Request::Events { .. }
            | Request::Ignore { .. }
            | Request::Unignore { .. } => Rank::Operator,
            Request::Ban { .. }
            | Request::Config
            | Request::Reload
            | Request::Pause { .. }
            | Request::Resume { .. }
            | Request::Apply { .. }
            | Request::Applied => Rank::Root,
        }
    }

    /// Whether the answer grows with what is held or kept.
    pub fn is_answered_at_length(&self) -> bool {
        matches!(
            self,
            Request::Banned { .. } | Request::Unban { .. } | Request::History { .. } | Request::Events { since: None, .. }
        )
    }
}

/// An answer. `exit` is what the command line exits with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// [`VERSION`].
    pub v: u32,
    /// 0 done, 1 a negative answer or a refused change, 2 wrong usage, 4 done in part.
    pub exit: u8,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub result: Value,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Reply {
    /// A positive answer.
    pub fn done(result: Value) -> Reply {
        Reply { v: VERSION, exit: 0, result, error: None, help: None }
    }
    /// A refusal.
    pub fn refused(exit: u8, error: impl Into<String>, help: impl Into<Option<String>>) -> Reply {
        Reply { v: VERSION, exit, result: Value::Null, error: Some(error.into()), help: help.into() }
    }
    /// The same answer with another exit status.
    pub fn exit(self, exit: u8) -> Reply {
        Reply { exit, ..self }
    }
}

/// The answer to a request of more than [`REQUEST_AT_MOST`] bytes.
pub fn too_long() -> Reply {
    let help = format!("at most {REQUEST_AT_MOST} bytes: name fewer addresses at a time");
    Reply::refused(2, "the request is too long", help)
}

/// Reads one line of a client. A key that is not known is refused, not passed over: it may be the one that narrows what shall be done.
pub fn parse(line: &[u8]) -> Result<Request, Reply> {
    let unreadable = |e: serde_json::Error| {
        let help = "a request is one line such as {\"v\":1,\"cmd\":\"status\"}".to_owned();
        Reply::refused(2, format!("cannot read the request: {}", escape(e.to_string().as_bytes(), 300)), help)
    };
    let mut value: Value = serde_json::from_slice(line).map_err(unreadable)?;
    // The version first: what another one asks need not make sense in this one.
    match value.as_object_mut().and_then(|keys| keys.remove("v")).unwrap_or_default() {
        v if v == VERSION => serde_json::from_value(value).map_err(unreadable),
        Value::Number(other) => {
            let help = format!("this daemon speaks version {VERSION}; use the client that came with it");
            Err(Reply::refused(2, format!("protocol version {other}"), help))
        }
        _ => Err(unreadable(serde::de::Error::missing_field("v"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let table = [
            (r#"{"v":1,"cmd":"status"}"#, Request::Status { jail: None }),
            (r#"{"v":1,"cmd":"banned","addrs":["192.0.2.7"]}"#, Request::Banned { addrs: vec!["192.0.2.7".into()] }),
            (r#"{"v":1,"cmd":"reload"}"#, Request::Reload),
        ];
        for (line, request) in table {
            assert_eq!(parse(line.as_bytes()), Ok(request.clone()));
            let again = serde_json::to_vec(&Envelope { v: VERSION, request: request.clone() }).expect("serialisable");
            assert_eq!(parse(&again), Ok(request));
        }
    }

    #[test]
    fn who_may_ask_what() {
        use Rank::{Operator, Reader, Root};
        let addrs = r#""addrs":["192.0.2.7"]"#;
        let table = [
            ("status", "", Reader),
            ("stats", "", Reader),
            ("banned", "", Reader),
            ("ignored", "", Reader),
            ("explain", r#""addr":"192.0.2.7""#, Reader),
            ("unban", addrs, Operator),
            ("ignore", addrs, Operator),
            ("unignore", addrs, Operator),
            ("history", "", Operator),
            ("events", "", Operator),
            ("ban", addrs, Root),
            ("pause", "", Root),
            ("resume", "", Root),
            ("apply", r#""origin":"mx2","events":[]"#, Root),
            ("applied", "", Root),
            ("config", "", Root),
            ("reload", "", Root),
        ];
        for (cmd, more, rank) in table {
            let comma = if more.is_empty() { "" } else { "," };
            let request = parse(format!(r#"{{"v":1,"cmd":"{cmd}"{comma}{more}}}"#).as_bytes()).expect(cmd);
            assert_eq!(request.needs(), rank, "{cmd}");
        }
    }

    #[test]
    fn a_key_that_is_not_known_is_never_passed_over() {
        // With "jail" misspelt this would lift every ban there is.
        for line in [
            r#"{"v":1,"cmd":"unban","all":true,"jial":"sshd"}"#,
            r#"{"v":1,"cmd":"status","jails":"sshd"}"#,
            r#"{"v":1,"cmd":"pause","for":1}"#,
        ] {
            let refused = parse(line.as_bytes()).expect_err(line);
            assert!(refused.exit == 2 && refused.error.is_some_and(|error| error.contains("unknown field")), "{line}");
        }
    }

    #[test]
    fn another_version_is_told_before_what_it_asks() {
        let refused = parse(br#"{"v":2,"cmd":"dance","how":"well"}"#).expect_err("another version");
        assert_eq!(refused.error.as_deref(), Some("protocol version 2"));
        let refused = parse(br#"{"v":1,"cmd":"\u001b[31m"}"#).expect_err("no such request");
        assert!(refused.error.is_some_and(|error| !error.contains('\u{1b}') && error.contains("\\x1b")));
    }

    #[test]
    fn bad_requests_are_refused_with_a_reason() {
        for line in ["", "{", "{}", r#"{"v":1,"cmd":"x"}"#, r#"{"v":2,"cmd":"status"}"#, "\u{0}\u{0}", r#"{"v":1,"cmd":"ban"}"#] {
            assert_eq!(parse(line.as_bytes()).map_err(|r| r.exit), Err(2), "{line}");
        }
    }
}
