//! `banset demo`: the whole way from a log line to a packet that is dropped, played in a network of its own.
//!
//! Everything is real (this very program as the daemon, log files, the kernel, TCP connections) except the attackers, who live
//! in a namespace next door. Nothing of the machine is touched: files lie on a private `/run`, and all of it vanishes with the
//! process. Each sentence that claims something is checked, and the exit status is 0 only if every check held.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use jiff::Zoned;
use nix::sys::signal::Signal;

use crate::netns::{self, Commits, Netns, Route};

/// The arguments of `banset demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Open a shell in the demo's network before it is taken down
    #[arg(long)]
    pub shell: bool,
}

/// Set in the process that runs inside the demo's namespaces.
const INSIDE: &str = "BANSET_DEMO_INSIDE";
/// On the private `/run`.
const DIR: &str = "/run/banset-demo";
const SERVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// What lies behind the attackers' router; nothing of it is on the server's own network.
const ELSEWHERE: [&str; 3] = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:1000::/36"];
/// Mistypes once and must not suffer for it.
const INNOCENT: &str = "203.0.113.9";
/// How long silence is waited for: within one machine an answer takes well under a millisecond.
const SILENCE: Duration = Duration::from_millis(700);
/// How long something may take that has to come, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);
/// The short ban, in seconds.
const SHORT: i64 = 6;

/// Plays the demo; 0 if everything it claimed was seen to be so.
pub fn run(args: &Args) -> ExitCode {
    if std::env::var_os(INSIDE).is_none() {
        return outside();
    }
    match Demo::new().and_then(|mut demo| demo.play(args).map(|()| demo.claims)) {
        Ok(claims) if claims.failed == 0 => ExitCode::SUCCESS,
        Ok(claims) => {
            println!("\n{} of {} claims did not hold; the daemon's log:\n{}", claims.failed, claims.made, daemon_log());
            ExitCode::FAILURE
        }
        Err(error) => {
            let _ = io::stdout().flush();
            eprintln!("\nbanset demo: {error}\n{}", daemon_log());
            ExitCode::FAILURE
        }
    }
}

/// Starts this program once more, inside namespaces of its own.
fn outside() -> ExitCode {
    let mut command = netns::this_program();
    command.args(std::env::args_os().skip(1)).env(INSIDE, "1");
    netns::isolate(&mut command);
    match command.status() {
        Ok(status) => ExitCode::from(status.code().map_or(1, |code| code as u8)),
        Err(refused) => {
            eprintln!("banset demo: cannot make a network of its own: {refused}");
            eprintln!("  help: run it as root, or allow user namespaces; one of these is what forbids them:");
            eprintln!("        sysctl -w user.max_user_namespaces=10000                   (set to 0 on hardened machines)");
            eprintln!("        sysctl -w kernel.unprivileged_userns_clone=1               (Debian, older kernels)");
            eprintln!("        sysctl -w kernel.apparmor_restrict_unprivileged_userns=0   (Ubuntu 24.04 and later)");
            eprintln!("        in a container: start it with --privileged");
            ExitCode::FAILURE
        }
    }
}

fn daemon_log() -> String {
    String::from_utf8_lossy(&std::fs::read(format!("{DIR}/daemon.log")).unwrap_or_default()).into_owned()
}

/// One address that tries passwords, or has its mail refused, until its jail has had enough.
struct Attack {
    jail: &'static str,
    /// The log, below the demo's directory.
    log: &'static str,
    /// As many as the jail's maxretry. Several addresses of one IPv6 prefix count together.
    from: Vec<IpAddr>,
    /// What ends up in the kernel, as `banset banned` words it.
    banned: &'static str,
    port: u16,
    line: fn(IpAddr) -> String,
}

fn attacks() -> Vec<Attack> {
    let v4 = |last, times| vec![IpAddr::V4(Ipv4Addr::new(198, 51, 100, last)); times];
    let hosts = (1..=6).map(|host| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x1000, 0x66, 0, 0, 0, host))).collect();
    vec![
        Attack {
            jail: "qmail-smtp",
            log: "qmail/smtpd/current",
            from: v4(7, 5),
            banned: "198.51.100.7",
            port: 25,
            line: rejected,
        },
        Attack { jail: "vpopmail", log: "maillog", from: v4(23, 5), banned: "198.51.100.23", port: 587, line: vpopmail },
        Attack { jail: "dovecot-imap", log: "dovecot.log", from: hosts, banned: "2001:db8:1000:66::/64", port: 993, line: imap },
        Attack { jail: "sshd", log: "auth.log", from: v4(86, 3), banned: "198.51.100.86", port: 22, line: sshd },
    ]
}

/// qmail-smtpd under multilog, which stamps in TAI64N: 2^62 plus Unix time plus 10.
fn rejected(from: IpAddr) -> String {
    let now = jiff::Timestamp::now();
    format!(
        "@{:016x}{:08x} qlogenvelope: result=rejected code=553 reason=rblreject detail=b.barracudacentral.org helo=mx.example.net \
         mailfrom=offer@example.net rcptto=you@example.org relay=no rcpthosts=yes size= authuser= authtype= encrypted= \
         sslverified=no localip=192.0.2.1 localport=25 remoteip={from} remoteport=15630 remotehost= qp= pid=20003",
        (1_u64 << 62) + now.as_second() as u64 + 10,
        now.subsec_nanosecond()
    )
}

fn vpopmail(from: IpAddr) -> String {
    format!("{} mx vpopmail[3076]: vchkpw-submission: vpopmail user not found helpdesk@example.org:{from}", syslog_stamp())
}

fn imap(from: IpAddr) -> String {
    format!(
        "{} imap-login: Info: Disconnected (auth failed, 1 attempts in 2 secs): user=<bob@example.org>, method=PLAIN, \
         rip={from}, lip=2001:db8::1, session=<k2t5+c7+5AAKAAAC>",
        syslog_stamp()
    )
}

fn sshd(from: IpAddr) -> String {
    format!("{} mx sshd[506]: Failed password for root from {from} port 37957 ssh2", syslog_stamp())
}

fn sendmail(from: IpAddr) -> String {
    format!(
        "{} mx sendmail[1558]: s07BPgwK001558: AUTH failure (LOGIN): authentication failure (-13) SASL(-13): \
         authentication failure: checkpass failed, relay=[{from}]",
        syslog_stamp()
    )
}

/// `Nov 22 04:20:35`, in the machine's own zone, as syslog daemons write it.
fn syslog_stamp() -> String {
    Zoned::now().strftime("%b %e %H:%M:%S").to_string()
}

/// The stage: two namespaces, the daemon, and what was claimed so far.
struct Demo {
    internet: Netns,
    daemon: Child,
    commits: Commits,
    claims: Claims,
}

impl Demo {
    /// Builds the network, then starts the daemon in it.
    fn new() -> io::Result<Demo> {
        let claims = Claims::default();
        println!("{}", claims.bold("banset demo: an attack on a mail gateway, in a network of its own"));
        println!("Nothing of this machine is touched, and nothing stays behind.");

        claims.step(1, "A network to play in", "A server and the rest of the world, two namespaces joined by a cable.");
        let internet = network()?;
        println!("   server      {SERVER4}, {SERVER6}");
        println!("   the world   {}", ELSEWHERE.join(", "));
        serve(&[22, 25, 587, 993])?;

        claims.step(2, "The daemon", "It follows five logs and has its own table in the kernel; nothing is banned yet.");
        for log in attacks().iter().map(|attack| attack.log).chain(["facility/mail"]) {
            let path = Path::new(DIR).join(log);
            std::fs::create_dir_all(path.parent().expect("a log lies in a directory"))?;
            File::create(path)?;
        }
        let text = configuration();
        std::fs::write(
            format!("{DIR}/banset.toml"),
            format!("[daemon]\nsocket = \"{DIR}/sock\"\nstate_dir = \"{DIR}/state\"\n\n{text}"),
        )?;
        // One jail stands for its likes; the last one differs.
        let jails: Vec<&str> = text.split_inclusive("\n\n").collect();
        for part in [jails[0], jails[1], "# vpopmail, dovecot-imap and sshd likewise\n\n", jails[jails.len() - 1]] {
            part.lines().for_each(|line| println!("{}", claims.dim(&format!("   {line}")).trim_end()));
        }
        let commits = Commits::listen()?;
        let daemon = start_daemon()?;
        Ok(Demo { internet, daemon, commits, claims })
    }

    fn play(&mut self, args: &Args) -> io::Result<()> {
        self.await_daemon()?;
        let attacks = attacks();
        let took = self.attack(&attacks)?;
        self.bans(&attacks, &took)?;
        self.two_views(&attacks)?;
        self.packets(&attacks);
        self.short_ban()?;
        if args.shell {
            let own = std::env::current_exe()?;
            println!("\n   A shell inside; leave it with `exit`. Two things to try:");
            println!("   nft list ruleset\n   {} -c {DIR}/banset.toml status", own.display());
            Command::new(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())).status()?;
        }
        self.end(&attacks[0])
    }

    /// Waits until the daemon reads all its logs.
    fn await_daemon(&mut self) -> io::Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.daemon.try_wait()? {
                return Err(io::Error::other(format!("the daemon ended at once: {status}; its log:")));
            }
            if UnixStream::connect(format!("{DIR}/sock")).is_ok() {
                let status = json(&["status", "--json"])?;
                let jails = status["jails"].as_array().map_or(&[][..], Vec::as_slice);
                if !jails.is_empty() && jails.iter().all(|jail| jail["state"] == "running") {
                    // `manual`, for bans by hand, watches nothing.
                    let watching =
                        jails.iter().filter(|jail| jail["sources"].as_array().is_some_and(|sources| !sources.is_empty()));
                    let names: Vec<&str> = watching.filter_map(|jail| jail["name"].as_str()).collect();
                    let all = attacks().iter().all(|attack| names.contains(&attack.jail)) && names.contains(&"smtp-auth");
                    self.claims.check(all, &format!("watching: {}", names.join(", ")));
                    return Ok(());
                }
            }
            if start.elapsed() > PATIENCE {
                return Err(io::Error::other("the daemon does not get ready; its log:"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Writes the attackers' lines, and measures how long each last line takes to become an element in the kernel.
    fn attack(&mut self, attacks: &[Attack]) -> io::Result<Vec<Option<Duration>>> {
        self.claims.step(3, "The attack", "The servers log what the attackers do, each in its own words and with its own clock.");
        append("maillog", &vpopmail(INNOCENT.parse().expect("an address")))?;
        let mut took = Vec::new();
        for attack in attacks {
            let (last, before) = attack.from.split_last().expect("an attack has lines");
            for from in before {
                append(attack.log, &(attack.line)(*from))?;
                std::thread::sleep(Duration::from_millis(20));
            }
            self.commits.forget();
            let line = (attack.line)(*last);
            let written = Instant::now();
            append(attack.log, &line)?;
            took.push(self.commits.wait(&set_of(attack), network_of(attack.banned), written));
            println!("   {:<19} {}", attack.log, self.claims.dim(&excerpt(&line, *last)));
            println!("   {:<19} x{} from {}", "", attack.from.len(), attack.banned);
        }
        println!("   {:<19} x1 from {INNOCENT}, who mistyped", "maillog");
        Ok(took)
    }

    fn bans(&mut self, attacks: &[Attack], took: &[Option<Duration>]) -> io::Result<()> {
        self.claims.step(4, "The bans", "The last line of each attack became an element of a kernel set; nobody ran nft.");
        for (attack, took) in attacks.iter().zip(took) {
            let said = format!("[{}] Ban {}", attack.jail, attack.banned);
            let logged = patiently(|| daemon_log().contains(&said));
            let speed = took.map_or("not seen in the kernel".to_owned(), |took| {
                format!("{:.1} ms after its last line", took.as_secs_f64() * 1e3)
            });
            self.claims.check(logged && took.is_some(), &format!("{said:<44} in the kernel {speed}"));
        }
        let innocent = banned()?.iter().all(|(_, address)| address != INNOCENT);
        self.claims.check(innocent, &format!("{INNOCENT} is not banned for one mistake"));
        Ok(())
    }

    /// The same truth from both sides: `nft list set` and `banset status`.
    fn two_views(&mut self, attacks: &[Attack]) -> io::Result<()> {
        self.claims.step(5, "What the kernel holds, and what banset says", "Two programs that know nothing of each other.");
        let set = set_of(&attacks[0]);
        let status = said(&mut client(&["status"]))?;
        match nft(&["list", "set", "inet", "banset", &set]) {
            Ok(listing) => {
                self.claims.beside((&format!("nft list set inet banset {set}"), &listing), ("banset status", &status));
                for attack in attacks {
                    let listing = nft(&["list", "set", "inet", "banset", &set_of(attack)])?;
                    let element = attack.banned.trim_end_matches("/64");
                    let both =
                        listing.contains(element) && banned()?.contains(&(attack.jail.to_owned(), attack.banned.to_owned()));
                    self.claims.check(both, &format!("{:<16} both know {}", set_of(attack), attack.banned));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                println!("   (nft is not installed here, so banset speaks alone; `apt install nftables` to compare)");
                self.claims.show("banset status", &status);
                let all =
                    attacks.iter().all(|attack| banned().is_ok_and(|b| b.contains(&(attack.jail.into(), attack.banned.into()))));
                self.claims.check(all, "banset lists every ban");
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn packets(&mut self, attacks: &[Attack]) {
        self.claims.step(6, "Does it bite?", "Real TCP connections from the attackers, and from people who did nothing.");
        for attack in attacks {
            let from = attack.from[0];
            self.connection(from, attack.port, false, "banned");
        }
        self.connection("2001:db8:1000:66:dead:beef:0:1".parse().expect("an address"), 993, false, "another address of his /64");
        self.connection(INNOCENT.parse().expect("an address"), 25, true, "innocent");
        self.connection("2001:db8:1000:67::1".parse().expect("an address"), 993, true, "his neighbour's /64");
    }

    /// Tries a connection, and claims how it ends.
    fn connection(&mut self, from: IpAddr, port: u16, opens: bool, who: &str) {
        let took = self.connects(from, port, if opens { PATIENCE } else { SILENCE });
        let seen = took.map_or("no answer".to_owned(), |took| format!("opens in {:.1} ms", took.as_secs_f64() * 1e3));
        self.claims.check(took.is_some() == opens, &format!("{:<31} to port {port:<4} {seen:<18} {who}", from.to_string()));
    }

    /// How long it took to connect to the server; `None` if nothing came back for as long as `patience`.
    fn connects(&self, from: IpAddr, port: u16, patience: Duration) -> Option<Duration> {
        let server = SocketAddr::new(if from.is_ipv4() { SERVER4 } else { SERVER6 }, port);
        let start = Instant::now();
        self.internet.run(|| netns::connect_from(from, server, patience)).ok().map(|_| start.elapsed())
    }

    fn short_ban(&mut self) -> io::Result<()> {
        let why = format!("Jail smtp-auth bans for {SHORT} s only. The kernel ends the ban; banset sends nothing.");
        self.claims.step(7, "A ban that ends by itself", &why);
        let from: IpAddr = "198.51.100.99".parse().expect("an address");
        self.connection(from, 25, true, "before");
        self.commits.forget();
        // The log's clock counts whole seconds, and the ban runs from the last line's: begin with a fresh one.
        std::thread::sleep(Duration::from_millis(u64::from(1000 - Zoned::now().millisecond() as u32 % 1000)));
        let start = Instant::now();
        for _ in 0..3 {
            append("facility/mail", &sendmail(from))?;
        }
        let seen = self.commits.wait("smtp-auth-v4", from, start);
        // The rest of the transaction that banned.
        self.commits.end();
        self.claims.check(seen.is_some(), "three failed logins in sendmail's log: [smtp-auth] Ban 198.51.100.99");
        self.connection(from, 25, false, "banned");
        let mut opened = None;
        while opened.is_none() && start.elapsed() < Duration::from_secs(SHORT as u64) + PATIENCE {
            opened = self.connects(from, 25, SILENCE);
        }
        let waited = start.elapsed().as_secs_f64();
        self.claims.check(opened.is_some() && waited >= SHORT as f64 - 1.2, &format!("after {waited:.1} s it connects again"));
        let heard = self.commits.heard();
        self.claims.check(heard == 0, &format!("messages to nf_tables in between, from anybody: {heard}"));
        Ok(())
    }

    fn end(&mut self, attack: &Attack) -> io::Result<()> {
        self.claims.step(8, "The end", "The daemon is told to stop. What it banned stays banned.");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.daemon.id() as i32), Signal::SIGTERM)?;
        let mut status = None;
        let stopped = patiently(|| {
            status = self.daemon.try_wait().ok().flatten();
            status.is_some()
        });
        self.claims.check(stopped && status.is_some_and(|status| status.success()), "the daemon stopped");
        self.connection(attack.from[0], attack.port, false, "still banned");
        if self.claims.failed == 0 {
            println!("\n{} All {} claims were checked.", self.claims.good("done."), self.claims.made);
            println!("Next: `banset ruleset` prints what would go into your kernel, README.md has a first configuration.");
        }
        Ok(())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The two namespaces: this one becomes the server's.
fn network() -> io::Result<Netns> {
    netns::settle()?;
    let internet = Netns::new()?;
    let net = |text: &str| text.parse::<IpNetwork>().expect("an address of ours");
    let mut here = Route::open()?;
    here.veth("eth0", "eth0", &internet)?;
    here.address("eth0", net("192.0.2.1/24"))?;
    here.address("eth0", net("2001:db8::1/64"))?;
    here.up("eth0")?;
    internet.run(|| -> io::Result<()> {
        let mut there = Route::open()?;
        there.address("eth0", net("192.0.2.2/24"))?;
        there.address("eth0", net("2001:db8::2/64"))?;
        there.up("eth0")?;
        there.running("eth0")?;
        ELSEWHERE.iter().try_for_each(|owned| there.own(net(owned)))
    })?;
    here.running("eth0")?;
    for to in ELSEWHERE.map(net) {
        here.via(to, if to.is_ipv4() { net("192.0.2.2") } else { net("2001:db8::2") }.ip())?;
    }
    Ok(internet)
}

/// Accepts connections on these ports for as long as the demo runs.
fn serve(ports: &[u16]) -> io::Result<()> {
    for port in ports {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port))?;
        std::thread::spawn(move || while listener.accept().is_ok() {});
    }
    Ok(())
}

/// What a person would write, with paths below the demo's directory.
fn configuration() -> String {
    format!(
        r#"[defaults]
ignoreip = ["127.0.0.0/8", "::1"]
bantime  = "1d"
findtime = "1h"

[jail.qmail-smtp]
enabled  = true
logpath  = "{DIR}/qmail/smtpd/current"
maxretry = 5

[jail.vpopmail]
enabled  = true
logpath  = "{DIR}/maillog"
maxretry = 5

[jail.dovecot-imap]
enabled  = true
logpath  = "{DIR}/dovecot.log"
maxretry = 6

[jail.sshd]
enabled  = true
logpath  = "{DIR}/auth.log"
maxretry = 3

[jail.smtp-auth]                  # sendmail
enabled  = true
filter   = "sendmail-auth"
logpath  = "{DIR}/facility/mail"
port     = "smtp"
protocol = "tcp"
maxretry = 3
bantime  = "{SHORT}s"
"#
    )
}

fn start_daemon() -> io::Result<Child> {
    let log = File::create(format!("{DIR}/daemon.log"))?;
    let mut command = netns::this_program();
    command.arg("daemon").arg("-c").arg(format!("{DIR}/banset.toml")).env_remove(INSIDE);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    netns::die_with_parent(&mut command);
    command.spawn()
}

/// `banset ARGS`, asking the demo's daemon.
fn client(args: &[&str]) -> Command {
    let mut command = netns::this_program();
    command.args(args).arg("-c").arg(format!("{DIR}/banset.toml")).arg("--socket").arg(format!("{DIR}/sock")).env_remove(INSIDE);
    command
}

/// A command's standard output; its complaint as an error.
fn said(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr))))
}

fn json(args: &[&str]) -> io::Result<serde_json::Value> {
    Ok(serde_json::from_str(&said(&mut client(args))?)?)
}

/// Jail and address of every ban, as `banset banned` tells.
fn banned() -> io::Result<Vec<(String, String)>> {
    let bans = json(&["banned", "--json"])?;
    let text = |ban: &serde_json::Value, key: &str| ban[key].as_str().unwrap_or_default().to_owned();
    Ok(bans.as_array().into_iter().flatten().map(|ban| (text(ban, "jail"), text(ban, "addr"))).collect())
}

/// What nft prints; [`io::ErrorKind::NotFound`] where it is not installed. Not on every user's PATH: it lives in /usr/sbin.
fn nft(args: &[&str]) -> io::Result<String> {
    let found = ["/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft"].into_iter().find(|path| Path::new(path).is_file());
    said(Command::new(found.unwrap_or("nft")).args(args))
}

fn append(log: &str, line: &str) -> io::Result<()> {
    File::options().append(true).open(PathBuf::from(DIR).join(log))?.write_all(format!("{line}\n").as_bytes())
}

fn set_of(attack: &Attack) -> String {
    format!("{}-v{}", attack.jail, if attack.from[0].is_ipv4() { 4 } else { 6 })
}

/// The key of a ban in its set: a prefix is kept by its first address.
fn network_of(banned: &str) -> IpAddr {
    banned.parse::<IpNetwork>().expect("an address of ours").network()
}

/// The beginning of a line, and its address where that lies further on.
fn excerpt(line: &str, address: IpAddr) -> String {
    const WIDTH: usize = 92;
    let address = address.to_string();
    match line.find(&address) {
        _ if line.len() <= WIDTH => line.to_owned(),
        Some(at) if at + address.len() > WIDTH => {
            let from = line[..at].rfind(' ').map_or(at, |blank| blank + 1);
            let tail = &line[from..at + address.len()];
            let end = if line.ends_with(tail) { "" } else { "…" };
            format!("{}… {tail}{end}", &line[..WIDTH - tail.len() - 3])
        }
        _ => format!("{}…", &line[..WIDTH - 1]),
    }
}

/// Asks until it is so, for at most [`PATIENCE`].
fn patiently(mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What was claimed and how it stood, and how to write it: colours only on a terminal.
#[derive(Clone, Copy)]
struct Claims {
    made: usize,
    failed: usize,
    colours: bool,
}

impl Default for Claims {
    fn default() -> Self {
        let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Claims { made: 0, failed: 0, colours }
    }
}

impl Claims {
    fn step(&self, number: u8, title: &str, why: &str) {
        println!("\n{} {}\n   {why}", self.bold(&format!("{number}.")), self.bold(title));
    }

    /// Prints a claim and whether it holds.
    fn check(&mut self, holds: bool, claim: &str) {
        self.made += 1;
        self.failed += usize::from(!holds);
        let mark = if holds { self.good("ok") } else { self.bad("NO") };
        println!("   {mark} {claim}");
    }

    fn show(&self, command: &str, output: &str) {
        println!("   {}", self.bold(&format!("$ {command}")));
        output.trim_end().lines().for_each(|line| println!("{}", format!("   {line}").trim_end()));
    }

    /// Two commands and what they said: side by side where the terminal is wide enough, else one under the other.
    fn beside(&self, left: (&str, &str), right: (&str, &str)) {
        let untabbed = left.1.replace('\t', "    ");
        let width = |text: &str| text.trim_end().lines().map(|line| line.chars().count()).max().unwrap_or(0);
        let (l, r) = (width(&untabbed).max(left.0.len() + 2), width(right.1).max(right.0.len() + 2));
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(120);
        if 3 + l + 3 + r > columns {
            self.show(left.0, &untabbed);
            println!();
            self.show(right.0, right.1);
            return;
        }
        let heads = (format!("$ {}", left.0), format!("$ {}", right.0));
        println!("   {}{:gap$}   {}", self.bold(&heads.0), "", self.bold(&heads.1), gap = l - heads.0.len());
        let (mut a, mut b) = (untabbed.trim_end().lines(), right.1.trim_end().lines());
        loop {
            match (a.next(), b.next()) {
                (None, None) => break,
                (a, b) => println!("   {:<l$}   {}", a.unwrap_or_default(), b.unwrap_or_default()),
            }
        }
    }

    fn bold(&self, text: &str) -> String {
        self.dressed("1", text)
    }
    fn dim(&self, text: &str) -> String {
        self.dressed("2", text)
    }
    fn good(&self, text: &str) -> String {
        self.dressed("32", text)
    }
    fn bad(&self, text: &str) -> String {
        self.dressed("1;31", text)
    }

    fn dressed(&self, code: &str, text: impl fmt::Display) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}
