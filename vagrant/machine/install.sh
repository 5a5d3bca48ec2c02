#!/bin/sh
# install.sh MACHINE: the package out of out/, the machine's configuration, and what runs there.
#
# If out/ holds a .deb, that is installed, with the unit in it. Else the binary out/banset is, and runs without a unit.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here/out}
machine=$1

# Not a daemon that dies with this shell.
background() { # NAME COMMAND...
    name=$1
    shift
    setsid "$@" </dev/null >"/var/log/$name.out" 2>&1 &
}

# Ends what an earlier run of this script left, whose number is in FILE.
stop() { # FILE
    test -e "$1" && kill "$(cat "$1")" 2>/dev/null || return 0
    while kill -0 "$(cat "$1")" 2>/dev/null; do sleep 0.1; done
}

wait_until() { # COMMAND...: for a minute at most
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        test $tries -lt 600 || { echo "install.sh: in vain: $*" >&2; exit 1; }
        sleep 0.1
    done
}

case $machine in
attackers) ;;
firewall | mail)
    mkdir -p /etc/banset
    cp "$here/$machine.toml" /etc/banset/banset.toml
    for log in packets frames own; do : >>"/var/log/banset-$log.log"; done
    set -- "$out"/*.deb
    if test -e "$1"; then
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" </dev/null
        systemctl restart banset
    elif test -x "$out/banset"; then
        mkdir -p /usr/local/sbin /var/lib/banset /run/banset
        cp -f "$out/banset" /usr/local/sbin/banset.new
        mv -f /usr/local/sbin/banset.new /usr/local/sbin/banset
        stop /run/banset.pid
        background banset sh -c 'echo $$ >/run/banset.pid; exec /usr/local/sbin/banset daemon'
        wait_until /usr/local/sbin/banset status
    else
        echo "install.sh: neither a .deb nor banset in $out: see README.md" >&2
        exit 1
    fi
    ;;
esac

if test "$machine" = mail; then
    stop /run/peer.pid
    background peer sh -c "echo \$\$ >/run/peer.pid; exec '$out/peer' serve 25,26,143,993 192.0.2.1 2001:db8::1"
    wait_until grep -q ready /var/log/peer.out
fi
