//! Real daemons, real clients: whoever fails to log in three times is kept out by what the daemon's own log says, judged by our
//! shipped jail and filter; others are not.
//!
//! Every daemon runs as its distribution ships it, on its own configuration and through the distribution's own rsyslog where it
//! uses syslog; what a test changes stands in the test. Of the shipped jails only `maxretry` is set.

use std::time::Duration;

use banset_integration::{
    Attempt, Client, Daemon, Journald, Lab, Server, Units, elements, have_journal, in_server, skip, wait_until,
};

/// The password of Alice, the only account there is.
const RIGHT: &str = "correct-horse";

/// Shipped jails by name, with three tries each.
fn jails(names: &[&str]) -> String {
    names.iter().map(|name| format!("[jail.{name}]\nenabled = true\nmaxretry = 3\n\n")).collect()
}

/// The daemon under test, past what the logs held before.
fn judge(lab: &Lab, jails: &str) -> Daemon {
    let daemon = Daemon::start(lab, jails);
    daemon.wait_running();
    daemon
}

/// Who guesses, and who may come in whatever the first one does: another address, and another /64.
const IPV4: (&str, &str) = ("198.51.100.7", "198.51.100.8");
const IPV6: (&str, &str) = ("2001:db8:1000:7::1", "2001:db8:1000:8::1");

/// Three wrong passwords from the first address of `who` ban it in the sets of `jail`, the first two do not; each try is
/// counted once, however many lines tell of it. Then it gets no answer any more, while another is answered and let in.
fn guessing_ends(lab: &Lab, daemon: &Daemon, jail: &str, who: (&str, &str), login: impl Fn(Client, &str) -> Attempt) {
    let (guesser, other) = (Client::new(lab, who.0), Client::new(lab, who.1));
    let from = who.0;
    let set = format!("{jail}-{}", if from.contains(':') { "v6" } else { "v4" });
    let key = from.strip_suffix("::1").map_or(from.to_owned(), |net| format!("{net}::"));
    let found = || daemon.log().matches(&format!("[{jail}] Found {from}")).count();
    assert_eq!(login(guesser, "wrong-1"), Attempt::Denied);
    assert_eq!(login(guesser, "wrong-2"), Attempt::Denied);
    wait_until("two failures are found", || found() >= 2);
    others_are_found(daemon, jail, who.1, || login(other, "wrong"));
    assert_eq!((found(), elements(&set)), (2, vec![]), "two tries are not three");
    assert_ne!(login(guesser.hurried(), "wrong-3"), Attempt::In);
    wait_until(&format!("{key} is in {set}"), || elements(&set) == [key.clone()]);
    assert_eq!(found(), 3);
    assert_eq!(login(guesser.hurried(), RIGHT), Attempt::Away, "whoever guessed is kept out");
    assert_eq!(login(other, "wrong"), Attempt::Denied, "another is answered");
    assert_eq!(login(other, RIGHT), Attempt::In, "and let in");
    assert_eq!(elements(&set), [key]);
}

/// Another fails to log in and is found: by then all lines about who tried before have been judged.
fn others_are_found(daemon: &Daemon, jail: &str, who: &str, fails: impl Fn() -> Attempt) {
    let found = || daemon.log().matches(&format!("[{jail}] Found {who}")).count();
    let before = found();
    assert_eq!(fails(), Attempt::Denied);
    wait_until("another's failure is found", || found() > before);
}

/// dovecot without TLS, on the ports that usually have it, and without its own way to slow down guessers.
fn dovecot(server: &Server, more: &str) {
    server.write("/etc/dovecot/conf.d/10-ssl.conf", "ssl = no\n");
    server.write(
        "/etc/dovecot/local.conf",
        &format!(
            "protocols = imap pop3\ndisable_plaintext_auth = no\nmail_location = maildir:/tmp/%u\nauth_failure_delay = 0\n\
             service anvil {{\n unix_listener anvil-auth-penalty {{\n mode = 0\n }}\n}}\n\
             service imap-login {{\n inet_listener imap {{\n port = 0\n }}\n inet_listener imaps {{\n port = 993\n ssl = no\n }}\n}}\n\
             service pop3-login {{\n inet_listener pop3 {{\n port = 0\n }}\n inet_listener pop3s {{\n port = 995\n ssl = no\n }}\n}}\n\
             {more}"
        ),
    );
    server.start(&["/usr/sbin/dovecot", "-F"]);
    server.wait_port(993);
    server.wait_port(995);
}

#[test]
fn dovecot_imap_a_try_told_by_worker_pam_and_login_counts_once() {
    in_server("dovecot_imap_a_try_told_by_worker_pam_and_login_counts_once", |lab, server| {
        server.start_syslog();
        dovecot(server, "log_path = /var/log/dovecot/dovecot.log\nauth_verbose = yes\n");
        let daemon = judge(lab, &jails(&["dovecot-imap"]));
        let login = |client: Client, password: &str| client.imap(993, "alice", &[password]);
        guessing_ends(lab, &daemon, "dovecot-imap", IPV4, login);
        guessing_ends(lab, &daemon, "dovecot-imap", IPV6, login);
        // Several tries over one connection: the login line comes at its end and names how many they were.
        let patient = "203.0.113.7";
        assert_eq!(Client::new(lab, patient).imap(993, "alice", &["wrong", "wronger"]), Attempt::Denied);
        let found = || daemon.log().matches(&format!("[dovecot-imap] Found {patient}")).count();
        wait_until("both are found", || found() >= 2);
        others_are_found(&daemon, "dovecot-imap", "203.0.113.8", || login(Client::new(lab, "203.0.113.8"), "wrong"));
        assert_eq!(found(), 2);
        let log = server.read("/var/log/dovecot/dovecot.log");
        for teller in ["auth-worker(", "pam_authenticate() failed", "imap-login: Info: Disconnected", ", 2 attempts in"] {
            assert!(log.contains(teller), "dovecot told of none by {teller:?}");
        }
    });
}

#[test]
fn dovecot_pop3_through_syslog() {
    in_server("dovecot_pop3_through_syslog", |lab, server| {
        server.start_syslog();
        server.write("/etc/dovecot/users", &format!("alice:{{PLAIN}}{RIGHT}:1000:1000::/home/alice::\n"));
        // In place of PAM, which includes 10-auth.conf.
        let auth = server.read("/etc/dovecot/conf.d/10-auth.conf").replace("!include auth-system", "#!include auth-system");
        server.write("/etc/dovecot/conf.d/10-auth.conf", &auth);
        dovecot(
            server,
            "auth_verbose = yes\npassdb {\n driver = passwd-file\n args = /etc/dovecot/users\n}\n\
             userdb {\n driver = passwd-file\n args = /etc/dovecot/users\n}\n",
        );
        // The shipped jail reads dovecot's own file; Debian's dovecot writes to syslog until it is told otherwise.
        let daemon = judge(lab, &format!("{}logpath = \"/var/log/mail.log\"\n", jails(&["dovecot-pop3"])));
        let login = |client: Client, password: &str| client.pop3(995, "alice", password);
        guessing_ends(lab, &daemon, "dovecot-pop3", IPV6, login);
        guessing_ends(lab, &daemon, "dovecot-pop3", IPV4, login);
    });
}

/// Debian's sshd on Debian's configuration.
fn sshd(server: &Server) {
    server.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/ssh_host_ed25519_key"]).ok();
    server.start(&["/usr/sbin/sshd", "-D"]);
    server.wait_port(22);
}

/// Guesses over IPv4, and over IPv6 for an account that is none.
fn guessing_at_sshd_ends(lab: &Lab, server: &Server, daemon: &Daemon) {
    guessing_ends(lab, daemon, "sshd", IPV4, |client, password| client.ssh(server, "alice", password));
    guessing_ends(lab, daemon, "sshd", IPV6, |client, password| {
        let user = if password == RIGHT { "alice" } else { "nobody-at-all" };
        client.ssh(server, user, password)
    });
}

#[test]
fn sshd_through_syslog() {
    in_server("sshd_through_syslog", |lab, server| {
        server.start_syslog();
        sshd(server);
        let daemon = judge(lab, &jails(&["sshd"]));
        guessing_at_sshd_ends(lab, server, &daemon);
    });
}

/// A machine whose only log is the journal, with units, as systemd runs one; `None` where that can not be had.
fn journal(name: &str, server: &Server) -> Option<(Units, Journald)> {
    if !have_journal(name) {
        return None;
    }
    let units = Units::new().map_err(|why| skip(name, &why)).ok()?;
    Journald::prepare();
    let journald = Journald::start(true);
    server.log_to_journal();
    Some((units, journald))
}

#[test]
fn sshd_through_the_journal() {
    const NAME: &str = "sshd_through_the_journal";
    in_server(NAME, |lab, server| {
        let Some((units, journald)) = journal(NAME, server) else { return };
        units.within("ssh.service", || sshd(server));
        let daemon = judge(lab, &format!("{}backend = \"journal\"\n", jails(&["sshd"])));
        guessing_at_sshd_ends(lab, server, &daemon);
        let failed = journald.journalctl(&["-o", "cat", "_SYSTEMD_UNIT=ssh.service"]);
        assert!(failed.contains("Failed password for alice from 198.51.100.7"), "the unit is known: {failed}");
        let lines = daemon.evidence(IPV4.0).1;
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines.iter().all(|line| line.starts_with("mx sshd[") && line.contains(IPV4.0)), "{lines:#?}");
    });
}

#[test]
fn sshd_through_the_journal_because_its_file_is_dead() {
    const NAME: &str = "sshd_through_the_journal_because_its_file_is_dead";
    in_server(NAME, |lab, server| {
        let Some((units, journald)) = journal(NAME, server) else { return };
        // What a machine's rsyslogd left when it was last upgraded.
        let old = "Jun 10 03:14:15 mx sshd[99]: Failed password for root from 198.51.100.7 port 40022 ssh2\n";
        std::fs::write("/var/log/auth.log", old.repeat(3)).expect("a file of the test's own");
        let then = std::time::SystemTime::now() - Duration::from_secs(400 * 86_400);
        let file = std::fs::File::options().write(true).open("/var/log/auth.log").expect("just written");
        file.set_modified(then).expect("its time can be set");
        units.within("ssh.service", || sshd(server));
        // Something is in the journal: whoever logs in.
        assert_eq!(Client::new(lab, IPV4.1).ssh(server, "alice", RIGHT), Attempt::In);
        wait_until("journald has it", || journald.journalctl(&["-o", "cat", "_SYSTEMD_UNIT=ssh.service"]).contains("Accepted"));
        let daemon = judge(lab, &jails(&["sshd"]));
        wait_until("a source is chosen", || daemon.jail("sshd")["backend"].is_string());
        let jail = daemon.jail("sshd");
        assert_eq!(jail["backend"], "journal", "{jail:#}");
        let why = jail["backend_why"].as_str().unwrap_or_default();
        assert!(why.starts_with("/var/log/auth.log was last written on 20") && why.contains("journal holds newer"), "{jail:#}");
        guessing_ends(lab, &daemon, "sshd", IPV4, |client, password| client.ssh(server, "alice", password));
    });
}

#[test]
fn dovecot_through_the_journal() {
    const NAME: &str = "dovecot_through_the_journal";
    in_server(NAME, |lab, server| {
        let Some((units, _journald)) = journal(NAME, server) else { return };
        units.within("dovecot.service", || dovecot(server, "auth_verbose = yes\n"));
        let daemon = judge(lab, &format!("{}backend = \"journal\"\n", jails(&["dovecot-imap"])));
        let login = |client: Client, password: &str| client.imap(993, "alice", &[password]);
        guessing_ends(lab, &daemon, "dovecot-imap", IPV4, login);
        guessing_ends(lab, &daemon, "dovecot-imap", IPV6, login);
        let lines = daemon.evidence(IPV4.0).1;
        assert_eq!(lines.len(), 3, "{lines:#?}");
    });
}

#[test]
fn postfix_submission_with_dovecot_as_its_sasl_server() {
    in_server("postfix_submission_with_dovecot_as_its_sasl_server", |lab, server| {
        server.start_syslog();
        postfix(server);
        // Makes the folder of its sockets, where dovecot's will lie.
        server.run(&["/usr/sbin/postfix", "check"]).ok();
        dovecot(
            server,
            "auth_verbose = yes\nservice auth {\n unix_listener /var/spool/postfix/private/auth {\n mode = 0666\n }\n}\n",
        );
        server.start(&["/usr/sbin/postfix", "start-fg"]);
        server.wait_port(587);
        // Both daemons tell of a try in the same file; the jail of each counts it for itself.
        let daemon = judge(lab, &format!("{}logpath = \"/var/log/mail.log\"\n", jails(&["postfix-sasl", "dovecot-imap"])));
        let login = |client: Client, password: &str| client.smtp(587, "alice", password);
        guessing_ends(lab, &daemon, "postfix-sasl", IPV4, login);
        guessing_ends(lab, &daemon, "postfix-sasl", IPV6, login);
    });
}

/// Debian's postfix with submission, for example.org.
fn postfix(server: &Server) {
    server.append(
        "/etc/postfix/main.cf",
        "myhostname = mx.example.org\nmydestination = example.org\nmynetworks = 127.0.0.0/8\ninet_protocols = all\n\
         smtpd_peername_lookup = no\nlocal_recipient_maps =\nalias_maps =\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = private/auth\n",
    );
    server.append(
        "/etc/postfix/master.cf",
        "submission inet n - y - - smtpd\n  -o syslog_name=postfix/submission\n  -o smtpd_sasl_auth_enable=yes\n",
    );
}

#[test]
fn exim_with_a_log_of_its_own() {
    in_server("exim_with_a_log_of_its_own", |lab, server| {
        // Debian writes its configuration when exim is installed; of that, this is what concerns the log.
        server.write(
            "/etc/exim4/exim4.conf",
            &format!(
                "log_file_path = /var/log/exim4/%slog\n\
                 log_selector = +smtp_protocol_error +smtp_syntax_error +tls_certificate_verified +tls_peerdn\n\
                 daemon_smtp_ports = 587\nlocal_interfaces = <; 0.0.0.0 ; ::0\nprimary_hostname = mx.example.org\nhost_lookup =\n\
                 keep_environment =\ntls_advertise_hosts =\nacl_smtp_rcpt = rcpt\n\
                 begin acl\nrcpt:\n  accept authenticated = *\n  deny message = relay not permitted\n\
                 begin routers\nnowhere:\n  driver = redirect\n  data = :blackhole:\n\
                 begin authenticators\nplain_server:\n  driver = plaintext\n  public_name = PLAIN\n  server_prompts = :\n\
                 \u{20} server_condition = ${{if and{{{{eq{{$auth2}}{{alice}}}}{{eq{{$auth3}}{{{RIGHT}}}}}}}}}\n  server_set_id = $auth2\n"
            ),
        );
        server.start(&["/usr/sbin/exim4", "-bdf", "-q30m"]);
        server.wait_port(587);
        let daemon = judge(lab, &jails(&["exim"]));
        let login = |client: Client, password: &str| client.smtp(587, "alice", password);
        guessing_ends(lab, &daemon, "exim", IPV4, login);
        guessing_ends(lab, &daemon, "exim", IPV6, login);
    });
}

#[test]
fn proftpd_with_a_log_of_its_own() {
    in_server("proftpd_with_a_log_of_its_own", |lab, server| {
        server.start_syslog();
        server.write("/etc/proftpd/conf.d/lab.conf", "UseReverseDNS off\n");
        server.start(&["/usr/sbin/proftpd", "-n", "-q"]);
        server.wait_port(21);
        let daemon = judge(lab, &jails(&["proftpd"]));
        let login = |client: Client, password: &str| client.ftp(21, "alice", password);
        guessing_ends(lab, &daemon, "proftpd", IPV4, login);
        guessing_ends(lab, &daemon, "proftpd", IPV6, login);
    });
}

#[test]
fn vsftpd_with_a_log_of_its_own_and_pam_in_syslog() {
    in_server("vsftpd_with_a_log_of_its_own_and_pam_in_syslog", |lab, server| {
        server.start_syslog();
        server.start(&["/usr/sbin/vsftpd", "/etc/vsftpd.conf", "-obackground=NO"]);
        server.wait_port(21);
        let daemon = judge(lab, &jails(&["vsftpd"]));
        let login = |client: Client, password: &str| client.ftp(21, "alice", password);
        guessing_ends(lab, &daemon, "vsftpd", IPV4, login);
        guessing_ends(lab, &daemon, "vsftpd", IPV6, login);
        // It was told twice, and not by the file that the jail reads.
        assert!(server.read("/var/log/auth.log").contains("pam_unix(vsftpd:auth): authentication failure"));
    });
}

#[test]
fn nginx_basic_authentication() {
    in_server("nginx_basic_authentication", |lab, server| {
        server.write("/etc/nginx/htpasswd", &format!("alice:{{PLAIN}}{RIGHT}\n"));
        server.write("/var/www/private/index.html", "hello\n");
        server.write(
            "/etc/nginx/conf.d/lab.conf",
            "server {\n listen 80;\n listen [::]:80;\n root /var/www;\n\
             location /private/ {\n auth_basic \"private\";\n auth_basic_user_file /etc/nginx/htpasswd;\n }\n}\n",
        );
        server.start(&["/usr/sbin/nginx", "-g", "daemon off;"]);
        server.wait_port(80);
        let daemon = judge(lab, &jails(&["nginx-http-auth"]));
        let login = |client: Client, password: &str| client.http(80, "/private/", "alice", password);
        guessing_ends(lab, &daemon, "nginx-http-auth", IPV4, login);
        guessing_ends(lab, &daemon, "nginx-http-auth", IPV6, |client, password| {
            client.http(80, "/private/", if password == RIGHT { "alice" } else { "bob" }, password)
        });
    });
}

#[test]
fn a_qmail_gateway_under_tcpserver_and_multilog() {
    in_server("a_qmail_gateway_under_tcpserver_and_multilog", |lab, server| {
        // Debian has no qmail: tcpserver and multilog are real, what a patched qmail-smtpd says to client and log is written out.
        let envelope = "detail=b.barracudacentral.org helo=laptop mailfrom=x@example.net rcptto=alice@example.org relay=no \
                        rcpthosts=yes size= authuser= authtype= encrypted= sslverified=no localip=192.0.2.1 localport=25 \
                        remoteip=$TCPREMOTEIP remoteport=$TCPREMOTEPORT remotehost= qp= pid=$$";
        server.write(
            "/tmp/smtpd",
            &format!(
                "echo 220 mx ESMTP\nread hello\necho 250 mx\nread sender\ncase $sender in\n\
                 *wrong*) echo \"qlogenvelope: result=rejected code=553 reason=rblreject {envelope}\" >&2; echo 553 listed ;;\n\
                 *) echo \"qlogenvelope: result=accepted code=250 reason=queued {envelope}\" >&2; echo 250 ok ;;\nesac\n"
            ),
        );
        std::fs::create_dir_all(server.path("/var/log/qmail/smtpd")).expect("a folder for multilog");
        server.start(&[
            "/bin/sh",
            "-c",
            "tcpserver -v -R -H -l mx -c 200 -b 200 0 25 sh /tmp/smtpd 2>&1 | exec multilog t s4096 n200 /var/log/qmail/smtpd",
        ]);
        server.wait_port(25);
        // What is read out of a file that was just rotated away is told at this level only.
        let daemon = judge(lab, &format!("loglevel = \"debug\"\n\n{}", jails(&["qmail-smtp"])));
        let send = |client: Client, word: &str| client.lines(25, &["HELO laptop", &format!("MAIL FROM:<{word}@example.net>")]);
        guessing_ends(lab, &daemon, "qmail-smtp", IPV4, send);

        // A crowd, while the log rotates every few connections: whoever was rejected three times is banned, who was only twice is not.
        let address = |net: &str, host: usize| format!("{net}.{host}");
        for last in [false, false, true] {
            std::thread::scope(|scope| {
                for host in 20..50 {
                    scope.spawn(move || {
                        let from = address("198.51.100", host);
                        let client = Client::new(lab, &from);
                        assert_ne!(send(if last { client.hurried() } else { client }, "wrong"), Attempt::In);
                    });
                    scope.spawn(move || {
                        let (word, outcome) = if last { ("alice", Attempt::In) } else { ("wrong", Attempt::Denied) };
                        assert_eq!(send(Client::new(lab, &address("203.0.113", host)), word), outcome);
                    });
                }
            });
        }
        let mut banned: Vec<String> = (20..50).map(|host| address("198.51.100", host)).chain([IPV4.0.to_owned()]).collect();
        banned.sort();
        wait_until("the crowd is banned", || elements("qmail-smtp-v4").len() >= banned.len());
        assert_eq!(elements("qmail-smtp-v4"), banned);
        let folder = std::fs::read_dir(server.path("/var/log/qmail/smtpd")).expect("multilog's folder");
        let files: Vec<String> = folder.flatten().map(|file| std::fs::read_to_string(file.path()).unwrap_or_default()).collect();
        assert!(files.len() > 15, "{} files: multilog did not rotate", files.len());
        let rejected = files.iter().map(|file| file.matches("result=rejected").count()).sum();
        wait_until("every rejection is found", || daemon.log().matches("[qmail-smtp] Found").count() >= rejected);
        assert_eq!(daemon.log().matches("[qmail-smtp] Found").count(), rejected, "and none twice");
    });
}
