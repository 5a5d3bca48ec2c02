//! The folder the daemons live in: Debian's own packages, downloaded and unpacked, never installed.
//!
//! It lies in cargo's target directory and is made once. apt and dpkg-deb do the work with a state of their own, so the
//! machine's packages, lists, hooks and services stay as they are; packages come from the machine's own sources, so it is
//! the versions of this release that are tested. No maintainer script runs: what a script would have done for the daemons
//! in use (accounts, configuration files, directories) is done here, with the release's own templates. Packages that
//! conflict when installed (postfix and exim, vsftpd and proftpd) lie side by side. Removing `target/servers` gets newer ones.

use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};

/// To be raised when what is done here changes: an older root is made again.
const RECIPE: u32 = 1;

/// What is unpacked, with all it depends on; a group may not conflict within itself.
const PACKAGES: [&[&str]; 2] = [
    &[
        "base-files",
        "base-passwd",
        "coreutils",
        "daemontools",
        "dash",
        "dovecot-imapd",
        "dovecot-pop3d",
        "findutils",
        "grep",
        "libpam-modules",
        "libpam-runtime",
        "login",
        "mawk",
        "nginx",
        "openssh-server",
        "postfix",
        "rsyslog",
        "sed",
        "ucspi-tcp",
        "vsftpd",
    ],
    &["exim4-daemon-light", "proftpd-core"],
];

/// What only maintainer scripts, cron jobs, administrators and full text search need. apt is told that it is there, which halves
/// the download.
const SPARED: [&str; 25] = [
    "adduser",
    "cron",
    "cron-daemon-common",
    "debconf",
    "debianutils",
    "dpkg",
    "e2fsprogs",
    "init-system-helpers",
    "iproute2",
    "libexttextcat-2.0-0",
    "lsb-base",
    "openssl",
    "passwd",
    "perl",
    "perl-base",
    "procps",
    "runit-helper",
    "sensible-utils",
    "ssl-cert",
    "sysvinit-utils",
    "systemd-standalone-sysusers",
    "tar",
    "ucf",
    "usr-is-merged",
    "usrmerge",
];

/// The accounts that maintainer scripts would have made, with their homes; user and group are numbered from 101.
const ACCOUNTS: [(&str, &str); 9] = [
    ("sshd", "/run/sshd"),
    ("postfix", "/var/spool/postfix"),
    ("dovecot", "/usr/lib/dovecot"),
    ("dovenull", "/nonexistent"),
    ("Debian-exim", "/var/spool/exim4"),
    ("proftpd", "/run/proftpd"),
    ("ftp", "/srv/ftp"),
    ("syslog", "/nonexistent"),
    ("postdrop", "/nonexistent"),
];

/// Their one human being, whose password is `correct-horse` (SHA512-crypt).
const ALICE: &str = "$6$banset$zAGF0mGwLE/lk9qPk8R7Uy8o9JPub7Gl2Sds6pM2A/G/aqK4xK.QkMkKwDG/YJM/dcc5EW28vptOjt8aov9G..";

/// PAM, as `pam-auth-update` leaves it on a machine without directory services.
const PAM: [(&str, &str); 5] = [
    ("auth", "auth [success=1 default=ignore] pam_unix.so nullok\nauth requisite pam_deny.so\nauth required pam_permit.so\n"),
    (
        "account",
        "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\naccount requisite pam_deny.so\n\
         account required pam_permit.so\n",
    ),
    ("session", "session [default=1] pam_permit.so\nsession required pam_permit.so\nsession required pam_unix.so\n"),
    ("session-noninteractive", "session required pam_permit.so\nsession required pam_unix.so\n"),
    ("password", "password [success=1 default=ignore] pam_unix.so obscure yescrypt\npassword requisite pam_deny.so\n"),
];

/// The root folder, made if there is none yet; asked again, the same answer. Tests of several processes wait for one another.
///
/// # Errors
/// In words, why there is none: no apt, no network, no package.
pub(super) fn root() -> Result<&'static Path, &'static str> {
    static ROOT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    ROOT.get_or_init(found_or_made).as_ref().map(PathBuf::as_path).map_err(String::as_str)
}

fn found_or_made() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    // target/debug/deps/services-0123456789abcdef
    let dir = own.ancestors().nth(3).ok_or("no target directory above the test's own file")?.join("servers");
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let lock = std::fs::File::create(dir.join("lock")).map_err(|e| e.to_string())?;
    let _alone = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| format!("flock: {e}"))?;
    let (root, stamp) = (dir.join("root"), dir.join("recipe"));
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let recipe = format!("recipe {RECIPE}\n{PACKAGES:?}\n{release}");
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == recipe) && root.is_dir() {
        return Ok(root);
    }
    for leftover in ["recipe", "root", "apt"] {
        let _ = std::fs::remove_file(dir.join(leftover));
        let _ = std::fs::remove_dir_all(dir.join(leftover));
    }
    let apt = Apt::new(&dir.join("apt"))?;
    apt.fetch()?;
    apt.unpack(&root)?;
    furnish(&root).map_err(|e| format!("cannot set up {}: {e}", root.display()))?;
    std::fs::remove_dir_all(dir.join("apt")).map_err(|e| e.to_string())?;
    std::fs::write(stamp, recipe).map_err(|e| e.to_string())?;
    Ok(root)
}

/// apt with lists, cache and a list of installed packages of its own.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: &Path) -> Result<Apt, String> {
        let arch = said(Command::new("dpkg").arg("--print-architecture"))?;
        // How the machine reaches its mirrors, without the hooks that would touch it.
        let machine = said(Command::new("apt-config").arg("dump"))?;
        let acquire = |line: &&str| line.starts_with("Acquire::") && !line.starts_with("Acquire::IndexTargets");
        let mut config: String = machine.lines().filter(acquire).fold(String::new(), |all, line| all + line + "\n");
        let d = dir.display();
        write!(
            config,
            "Dir::Etc::main \"/dev/null\";\nDir::Etc::parts \"/dev/null\";\nDir::State \"{d}/state\";\nDir::Cache \"{d}/cache\";\n\
             Dir::State::status \"{d}/status\";\nDir::Log \"{d}\";\nAPT::Sandbox::User \"root\";\nAPT::Install-Recommends \"false\";\n\
             Acquire::Languages \"none\";\nAcquire::Retries \"3\";\nAcquire::http::Timeout \"20\";\nAcquire::https::Timeout \"20\";\n"
        )
        .expect("a string takes any text");
        let status = SPARED.iter().fold(String::new(), |all, name| {
            all + &format!(
                "Package: {name}\nStatus: install ok installed\nVersion: 999\nArchitecture: {}\nMulti-Arch: foreign\n\
                 Maintainer: nobody\nDescription: not needed\n\n",
                arch.trim()
            )
        });
        let made = std::fs::create_dir_all(dir.join("state/lists/partial"))
            .and_then(|()| std::fs::create_dir_all(dir.join("cache/archives/partial")))
            .and_then(|()| std::fs::write(dir.join("status"), status))
            .and_then(|()| std::fs::write(dir.join("config"), config));
        made.map_err(|e| format!("{d}: {e}"))?;
        Ok(Apt { dir: dir.to_owned() })
    }

    fn fetch(&self) -> Result<(), String> {
        let get = || {
            let mut command = Command::new("apt-get");
            command.env("APT_CONFIG", self.dir.join("config")).arg("-qq");
            command
        };
        // One of several sources may be away; whether that matters, the next step tells.
        let updated = said(get().arg("update"));
        let lists = std::fs::read_dir(self.dir.join("state/lists")).map_err(|e| e.to_string())?;
        if !lists.flatten().any(|list| list.file_name().to_string_lossy().contains("_Packages")) {
            return Err(format!(
                "apt-get update brought no list of packages; is there a network? {}",
                updated.err().unwrap_or_default()
            ));
        }
        for group in PACKAGES {
            let fetched = said(get().args(["--yes", "--download-only", "install"]).args(group));
            fetched.map_err(|e| format!("{e} {}", updated.as_ref().err().map_or("", String::as_str)))?;
        }
        Ok(())
    }

    fn unpack(&self, root: &Path) -> Result<(), String> {
        for dir in ["bin", "sbin", "lib", "lib64"] {
            let merged = std::fs::create_dir_all(root.join("usr").join(dir))
                .and_then(|()| symlink(Path::new("usr").join(dir), root.join(dir)));
            merged.map_err(|e| format!("{}: {e}", root.join(dir).display()))?;
        }
        // `dpkg-deb --extract` would put folders where the links to /usr are.
        let script = "set -e; for deb in \"$1\"/cache/archives/*.deb; do dpkg-deb --fsys-tarfile \"$deb\" | tar --extract \
                      --preserve-permissions --keep-directory-symlink --directory \"$2\" --exclude='./usr/share/doc/*' \
                      --exclude='./usr/share/man/*' --exclude='./usr/share/info/*' --exclude='./usr/share/locale/*'; done";
        said(Command::new("sh").args(["-c", script, "sh"]).arg(&self.dir).arg(root)).map(drop)
    }
}

/// What the maintainer scripts would have done.
fn furnish(root: &Path) -> std::io::Result<()> {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a file lies in a folder"))?;
        std::fs::write(path, text)
    };
    let read =
        |path: &str| std::fs::read_to_string(root.join(path)).map_err(|e| std::io::Error::new(e.kind(), format!("{path}: {e}")));
    let template = |from: &str, to: &str| read(from).and_then(|text| write(to, &text));

    let (mut passwd, mut group) = (read("usr/share/base-passwd/passwd.master")?, read("usr/share/base-passwd/group.master")?);
    let mut shadow = String::from("root:*:19000:0:99999:7:::\n");
    for (number, (name, home)) in (101..).zip(ACCOUNTS) {
        writeln!(passwd, "{name}:x:{number}:{number}::{home}:/usr/sbin/nologin").expect("a string takes any text");
        writeln!(group, "{name}:x:{number}:").expect("a string takes any text");
        writeln!(shadow, "{name}:!:19000::::::").expect("a string takes any text");
    }
    passwd += "alice:x:1000:1000:Alice:/home/alice:/bin/sh\n";
    group += "alice:x:1000:\n";
    writeln!(shadow, "alice:{ALICE}:19000:0:99999:7:::").expect("a string takes any text");
    write("etc/passwd", &passwd.replace("/bin/bash", "/bin/sh"))?;
    write("etc/group", &group)?;
    write("etc/shadow", &shadow)?;
    std::fs::set_permissions(root.join("etc/shadow"), std::fs::Permissions::from_mode(0o600))?;
    write("etc/shells", "/bin/sh\n")?;
    write("etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\n")?;
    write("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n192.0.2.1 mx.example.org mx\n2001:db8::1 mx.example.org mx\n")?;
    write("etc/resolv.conf", "")?;
    write("etc/hostname", "mx\n")?;
    write("etc/mailname", "example.org\n")?;
    write("etc/aliases", "")?;
    write("etc/default/locale", "")?;
    write("etc/environment", "")?;
    for (part, text) in PAM {
        write(&format!("etc/pam.d/common-{part}"), text)?;
    }

    // The kernel's messages are the machine's, not ours to take.
    let rsyslog: String =
        read("etc/rsyslog.conf")?.lines().filter(|line| !line.contains("imklog")).map(|line| format!("{line}\n")).collect();
    write("etc/rsyslog.conf", &rsyslog)?;
    if root.join("usr/share/rsyslog/50-default.conf").exists() {
        template("usr/share/rsyslog/50-default.conf", "etc/rsyslog.d/50-default.conf")?;
    }
    write("etc/rsyslog.d/postfix.conf", "$AddUnixListenSocket /var/spool/postfix/dev/log\n")?;
    template("usr/share/openssh/sshd_config", "etc/ssh/sshd_config")?;
    template("usr/share/dovecot/dovecot.conf", "etc/dovecot/dovecot.conf")?;
    for file in std::fs::read_dir(root.join("usr/share/dovecot/conf.d"))? {
        let name = file?.file_name().to_string_lossy().into_owned();
        template(&format!("usr/share/dovecot/conf.d/{name}"), &format!("etc/dovecot/conf.d/{name}"))?;
    }
    template("usr/share/postfix/main.cf.debian", "etc/postfix/main.cf")?;
    template("usr/share/postfix/master.cf.dist", "etc/postfix/master.cf")?;
    template("usr/share/postfix/dynamicmaps.cf", "etc/postfix/dynamicmaps.cf")?;
    template("usr/share/proftpd/templates/proftpd.conf", "etc/proftpd/proftpd.conf")?;
    template("usr/share/proftpd/templates/modules.conf", "etc/proftpd/modules.conf")?;

    for (path, to) in [("var/run", "/run"), ("var/lock", "/run/lock")] {
        // Some package ships a folder there; on an installed system it lies behind the link.
        let _ = std::fs::remove_dir_all(root.join(path));
        symlink(to, root.join(path))?;
    }
    // Folders, and whose they are.
    let number = |account: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(account));
        line.and_then(|line| line.split(':').nth(2)).and_then(|number| number.parse().ok())
    };
    for (path, owner, mode) in [
        ("home/alice", "alice", 0o700),
        ("srv/ftp", "root", 0o755),
        ("var/lib/postfix", "postfix", 0o755),
        ("var/log/exim4", "Debian-exim", 0o2750),
        ("var/log/dovecot", "root", 0o755),
        ("var/spool/exim4", "Debian-exim", 0o750),
        ("var/mail", "root", 0o1777),
        ("var/spool/rsyslog", "syslog", 0o700),
        ("var/spool/postfix/dev", "root", 0o755),
    ] {
        let path = root.join(path);
        std::fs::create_dir_all(&path)?;
        std::os::unix::fs::chown(&path, number(owner), number(owner))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    for program in ["usr/sbin/postdrop", "usr/sbin/postqueue"] {
        std::os::unix::fs::chown(root.join(program), None, number("postdrop"))?;
        std::fs::set_permissions(root.join(program), std::fs::Permissions::from_mode(0o2755))?;
    }
    Ok(())
}

/// What a command prints.
///
/// # Errors
/// What it complains of.
fn said(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).env("LC_ALL", "C").output().map_err(|e| format!("{program}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().replace('\n', "; ");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program}: {}: {}", output.status, text(&output.stderr)))
    }
}
