//! Traffic for machines that have no test of ours running: the doors and the knocks of [`banset_integration::Doors`] as a program.
//!
//! ```text
//! peer serve PORT[,PORT…] ADDRESS…      opens the doors at these addresses of this machine, says "ready", until it is killed
//! peer knock FROM TO PORT EXPECTED      knocks once with each protocol and says what it saw, as "tcp=answer udp=nothing …"
//! ```
//! Where `nothing` is expected, it is waited for half a second; anything else may take a busy machine a minute. A protocol of which the
//! kernel has no sockets is left out.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use banset_integration::{Doors, PATIENCE, Proto, Seen, knock};

const SILENCE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["serve", ports, ref addresses @ ..] if !addresses.is_empty() => serve(ports, addresses),
        ["knock", from, to, port, expected] => knock_all(from, to, port, if expected == "nothing" { SILENCE } else { PATIENCE }),
        _ => Err("peer serve PORT[,PORT…] ADDRESS…\n       peer knock FROM TO PORT EXPECTED".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("usage: {why}");
            ExitCode::from(2)
        }
    }
}

fn serve(ports: &str, addresses: &[&str]) -> Result<(), String> {
    let ports: Vec<u16> = ports.split(',').map(read).collect::<Result<_, _>>()?;
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| read(address)).collect::<Result<_, _>>()?;
    let doors = Doors::open(&addresses, &ports);
    println!("ready");
    loop {
        std::thread::park();
        // Woken by nobody; the doors stay open as long as this value lives.
        let _ = doors.lacking();
    }
}

fn knock_all(from: &str, to: &str, port: &str, patience: Duration) -> Result<(), String> {
    let (from, to): (IpAddr, IpAddr) = (read(from)?, read(to)?);
    let to = SocketAddr::new(to, read(port)?);
    let seen = Proto::ALL.map(|proto| std::thread::spawn(move || (proto, knock(proto, from, to, patience))));
    let seen = seen.map(|thread| thread.join().expect("a knock does not panic"));
    let words = seen.iter().filter(|(_, seen)| *seen != Seen::NoSocket);
    println!("{}", words.map(|(proto, seen)| format!("{}={seen}", proto.name())).collect::<Vec<_>>().join(" "));
    Ok(())
}

fn read<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} is not what stands here"))
}
