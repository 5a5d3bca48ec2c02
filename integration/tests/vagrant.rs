//! The machines of `vagrant/`, played in namespaces: the same scripts set them up, the same check looks at them.
//!
//! A virtual machine proves more (another kernel, another Debian), but only what runs on every push stays true.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use banset::netns::Netns;
use banset_integration::{Answer, Site, Wiring, binary, have, in_netns, skip, wait_until};

/// What a machine has of its own: all that the scripts write to. `/etc` shows what is below it; nothing gets out.
const OWN: &str = "set -e; mount -t tmpfs tmpfs /run; mkdir -p /run/etc/new /run/etc/work; \
     mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/new,workdir=/run/etc/work /etc; \
     for own in /var/log /var/lib /usr/local/sbin; do mount -t tmpfs tmpfs $own; done; \
     echo up; exec sleep infinity";

fn vagrant() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../vagrant").canonicalize().expect("the vagrant directory")
}

/// A machine: processes, files and network of its own, for as long as this value lives.
struct Machine {
    holder: Child,
}

impl Machine {
    /// Boots one, in a network namespace that has its links; the error is what mount(8) says.
    fn boot(netns: &Netns, said: &Path) -> Result<Machine, String> {
        let file = std::fs::File::create(said).expect("a file for the machine");
        let both = file.try_clone().expect("a descriptor can be doubled");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-c", OWN]).stdin(Stdio::null()).stdout(file).stderr(both);
        banset::netns::die_with_parent(&mut command);
        let mut machine = Machine { holder: netns.visit(|| command.spawn()).expect("unshare is installed") };
        let text = || std::fs::read_to_string(said).unwrap_or_default();
        let mut ended = false;
        wait_until("the machine is up", || {
            ended = machine.holder.try_wait().expect("a child can be asked").is_some();
            ended || text().contains("up\n")
        });
        if ended { Err(text()) } else { Ok(machine) }
    }

    /// Its first process, as the machine around it numbers it.
    fn pid(&self) -> String {
        let holder = self.holder.id();
        let children = std::fs::read_to_string(format!("/proc/{holder}/task/{holder}/children")).expect("a list of children");
        children.trim().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn what_vagrant_shows_holds_in_namespaces() {
    const NAME: &str = "what_vagrant_shows_holds_in_namespaces";
    in_netns(NAME, || {
        if !["ip", "nsenter", "unshare"].iter().all(|program| have(NAME, program)) {
            return;
        }
        let site = Site::unwired("vagrant", Wiring::Bridged);
        site.plug();
        let spaces = [("attackers", site.attackers()), ("firewall", site.firewall()), ("mail", site.mail())];
        let mut machines = Vec::new();
        for (name, netns) in spaces {
            match Machine::boot(netns, &site.dir().join(format!("{name}.txt"))) {
                Ok(machine) => machines.push(machine),
                Err(why) => return skip(NAME, &format!("machine {name}: {}", why.trim())),
            }
        }
        // How check.sh reaches them.
        let on = site.dir().join("on.sh");
        let pids: Vec<String> =
            machines.iter().zip(spaces).map(|(machine, (name, _))| format!("{name}) pid={};;", machine.pid())).collect();
        let text = format!("case $1 in\n{}\nesac\nexec nsenter -t $pid -m -n -p sh -c \"$2\"\n", pids.join("\n"));
        std::fs::write(&on, format!("#!/bin/sh\n{text}")).expect("a script can be written");
        Answer::of(Command::new("chmod").arg("755").arg(&on)).ok();
        // What out/ would hold; not below /run, of which each machine has its own.
        let kept = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let out = kept.path();
        std::os::unix::fs::symlink(binary(), out.join("banset")).expect("a link to the daemon");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_peer"), out.join("peer")).expect("a link to the peer");

        let there = vagrant().join("machine");
        let run = |machine: &str, command: &str| {
            let command = format!("export OUT={out:?}; cd {there:?}; {command}");
            let answer = Answer::of(Command::new(&on).args([machine, &command]));
            assert_eq!(answer.code, 0, "{machine}: {command}: {answer:?}");
        };
        run("attackers", "sh network.sh attackers eth0");
        run("firewall", "sh network.sh firewall wan lan");
        // By its hardware address, as Vagrant's machines are told theirs.
        run("mail", "sh network.sh mail $(ip -o link show eth0 | sed 's/.*link.ether \\([^ ]*\\).*/\\1/')");
        for machine in ["attackers", "firewall", "mail"] {
            run(machine, &format!("sh install.sh {machine}"));
        }
        let mut check = Command::new(vagrant().join("check.sh"));
        let answer = Answer::of(check.env("ON", &on).env("THERE", &there).env("OUT", out));
        println!("{}", answer.out);
        if answer.code != 0 {
            let logs = "cat /var/log/banset.out /var/log/peer.out 2>&1; nft list ruleset";
            let told = ["firewall", "mail"].map(|machine| Answer::of(Command::new(&on).args([machine, logs])).out);
            panic!("check.sh: exit {}\n{}\n{}", answer.code, answer.err, told.join("\n"));
        }
    });
}
