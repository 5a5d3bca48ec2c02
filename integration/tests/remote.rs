//! Decide here, enforce there: a mail gateway judges its own logs, the bridge before it drops, and the link between them is cut.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use banset_integration::{
    Answer, Daemon, Doors, Log, PATIENCE, Proto, Seen, Site, Wiring, binary, in_netns, knock, wait_for, wait_until,
};
use socket2::{SockRef, TcpKeepalive};

/// Mail's jail closes the first; the bridge's the second too, so that what passes there tells who dropped.
const AT_MAIL: u16 = 25;
const AT_THE_BRIDGE: u16 = 143;

/// How long the link is cut.
const CUT: Duration = Duration::from_secs(60);
/// How long a silent link is believed in, as ServerAliveInterval and ServerAliveCountMax say to ssh.
const ALIVE: Duration = Duration::from_secs(4);

fn jails(log: &Log, ports: &str, keys: &str) -> String {
    format!(
        "[jail.sshd]\nenabled = true\nbackend = \"file\"\nlogpath = {:?}\nport = {ports}\nmaxretry = 3\nfindtime = \"10m\"\n\
         bantime = \"1h\"\n{keys}\n",
        log.path()
    )
}

/// `banset ARGS` for the daemon in `dir`.
fn banset(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).arg("--socket").arg(dir.join("banset/banset.sock")).stdin(Stdio::null());
    banset::netns::die_with_parent(&mut command);
    command
}

/// What ssh and its server do for `banset events | ssh bridge banset apply -`, without keys and ciphers: one byte asks for the last
/// number applied, another begins the stream.
struct Remote {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    broken: Arc<Mutex<Vec<String>>>,
}

impl Remote {
    const PORT: u16 = 2222;

    fn start(site: &Site, mail: PathBuf, bridge: PathBuf) -> Remote {
        let stop = Arc::new(AtomicBool::new(false));
        let broken = Arc::new(Mutex::new(Vec::new()));
        let to: SocketAddr = SocketAddr::new(Site::BRIDGE[0].parse().expect("an address"), Remote::PORT);
        let listener = site.firewall().run(|| TcpListener::bind(to)).expect("a free port");
        listener.set_nonblocking(true).expect("a listener can poll");
        let (ended, at) = (stop.clone(), bridge);
        let server = site.firewall().run(|| {
            std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => drop(std::thread::spawn({
                            let at = at.clone();
                            move || serve(stream, &at)
                        })),
                        Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    }
                }
            })
        });
        let (ended, told) = (stop.clone(), broken.clone());
        let client = site.mail().run(|| {
            std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    if let Err(why) = stream(&mail, to, &ended) {
                        told.lock().expect("nobody panics in there").push(why.to_string());
                    }
                    std::thread::sleep(Duration::from_millis(500));
                }
            })
        });
        Remote { stop, threads: vec![server, client], broken }
    }

    /// How often the way there failed.
    fn failures(&self) -> usize {
        self.broken.lock().expect("nobody panics in there").len()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A connection that notices when nobody is there any more, on either side.
fn lively(stream: &TcpStream) -> std::io::Result<()> {
    let socket = SockRef::from(stream);
    let second = Duration::from_secs(1);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(second).with_interval(second).with_retries(3))?;
    socket.set_tcp_user_timeout(Some(ALIVE))
}

/// On the bridge: what is asked for is run, on this connection.
fn serve(mut stream: TcpStream, at: &Path) {
    let mut asked = [0];
    if stream.set_nonblocking(false).and_then(|()| lively(&stream)).and_then(|()| stream.read_exact(&mut asked)).is_err() {
        return;
    }
    if asked == *b"l" {
        let last = Answer::of(&mut banset(at, &["apply", "--last", "--origin", "mx2"])).ok();
        let _ = stream.write_all(last.as_bytes());
        return;
    }
    let input = std::os::fd::OwnedFd::from(stream);
    let _ = banset(at, &["apply", "-", "--origin", "mx2"]).stdin(input).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// On the mail gateway: one stream of events, until it breaks.
fn stream(at: &Path, to: SocketAddr, ended: &AtomicBool) -> std::io::Result<()> {
    let mut ask = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    lively(&ask)?;
    ask.set_read_timeout(Some(ALIVE))?;
    ask.write_all(b"l")?;
    let mut last = String::new();
    ask.read_to_string(&mut last)?;
    let mut pipe = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    lively(&pipe)?;
    pipe.write_all(b"s")?;
    let output = std::os::fd::OwnedFd::from(pipe.try_clone()?);
    let mut events = banset(at, &["events", "--follow", "--since", last.trim()]).stdout(output).stderr(Stdio::null()).spawn()?;
    // The other side sends nothing: whatever is read is the end.
    pipe.set_read_timeout(Some(Duration::from_millis(200)))?;
    let broken = loop {
        match pipe.read(&mut [0]) {
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
                    && e.raw_os_error() == Some(libc::EAGAIN) => {}
            other => break other.map(drop),
        }
        if ended.load(Ordering::Relaxed) || events.try_wait()?.is_some() {
            break Ok(());
        }
    };
    let _ = events.kill();
    let _ = events.wait();
    broken.and(Err(std::io::ErrorKind::BrokenPipe.into()))
}

#[test]
fn what_mail_decides_the_bridge_enforces_although_the_link_is_cut_for_a_minute() {
    in_netns("what_mail_decides_the_bridge_enforces_although_the_link_is_cut_for_a_minute", || {
        let site = Site::new("remote", Wiring::Bridged);
        site.bridge_nf(false);
        let _doors = site.mail().run(|| Doors::open(&site.addresses(), &[AT_MAIL, AT_THE_BRIDGE]));
        let [mail_dir, bridge_dir] = ["mail", "bridge"].map(|name| site.dir().join(name));
        let (mut log, quiet) = (Log::create(mail_dir.join("auth.log")), Log::create(bridge_dir.join("auth.log")));
        let mail = site.mail().visit(|| Daemon::start(&mail_dir, &jails(&log, "25", "")));
        let keys = "chain_hook = \"forward\"\nfamily = \"bridge\"\nignoreip = [\"198.51.100.66\"]";
        let bridge = site.firewall().visit(|| Daemon::start(&bridge_dir, &jails(&quiet, "[25, 143]", keys)));
        mail.wait_running();
        bridge.wait_running();
        let seen = |who: &str, port, patience| {
            let from: IpAddr = who.parse().expect("an address");
            let to = SocketAddr::new(site.addresses()[usize::from(from.is_ipv6())], port);
            [Proto::Tcp, Proto::Udp].map(|proto| site.attackers().run(|| knock(proto, from, to, patience)))
        };
        let passes = |who: &str| seen(who, AT_THE_BRIDGE, PATIENCE) == [Seen::Answer; 2];
        let dropped = |who: &str| seen(who, AT_THE_BRIDGE, Duration::from_millis(600)) == [Seen::Nothing; 2];
        let [first, second, sixth, spared, lifted] =
            ["198.51.100.7", "198.51.100.8", "2001:db8:1000:6::1", "198.51.100.66", "198.51.100.9"];
        assert!([first, second, sixth, spared, lifted].into_iter().all(passes), "before, everybody passes");

        log.fail(first, 3);
        mail.wait_log(&format!("[sshd] Ban {first}"));
        let remote = Remote::start(&site, mail_dir, bridge_dir);
        log.fail(lifted, 3);
        wait_until("the bridge drops what mail decided, before the stream began and after", || dropped(first) && dropped(lifted));
        assert!(passes(second));

        site.cut();
        let before = remote.failures();
        let cut = std::time::Instant::now();
        for who in [second, sixth, spared] {
            log.fail(who, 3);
            mail.wait_log(&format!("[sshd] Ban {}", if who == sixth { "2001:db8:1000:6::/64" } else { who }));
        }
        mail.cli(&["unban", "sshd", lifted]).ok();
        wait_for(2 * CUT, "the pipe breaks", || remote.failures() > before);
        std::thread::sleep(CUT.saturating_sub(cut.elapsed()));
        let held = |address: &str| bridge.banned().iter().any(|ban| ban["addr"] == address);
        assert!(held(first) && held(lifted), "what was decided before goes on meanwhile");
        assert!(!held(second), "and what is decided meanwhile can not be known");
        site.restore();

        let took =
            wait_for(2 * PATIENCE, "what was missed is there", || held(second) && held("2001:db8:1000:6::/64") && !held(lifted));
        println!("| link cut for {CUT:?}: two bans and an unban missed at the bridge, all there {took:?} after it was restored");
        for who in [first, second, sixth] {
            assert!(dropped(who), "{who}: {:#?}", bridge.banned());
        }
        assert!(passes(lifted), "what mail lifted meanwhile is lifted there");
        assert!(passes(spared) && !held(spared), "whom the bridge ignores it goes on to ignore");
        let told = Answer::of(&mut banset(&site.dir().join("bridge"), &["events"])).ok();
        assert_eq!(told, "", "what came from elsewhere is not sent on");
    });
}
