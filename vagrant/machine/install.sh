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
        test ! -e /run/banset.pid || kill "$(cat /run/banset.pid)" 2>/dev/null || true
        background banset sh -c 'echo $$ >/run/banset.pid; exec /usr/local/sbin/banset daemon'
    else
        echo "install.sh: neither a .deb nor banset in $out: see README.md" >&2
        exit 1
    fi
    ;;
esac

if test "$machine" = mail; then
    test ! -e /run/peer.pid || kill "$(cat /run/peer.pid)" 2>/dev/null || true
    background peer sh -c "echo \$\$ >/run/peer.pid; exec '$out/peer' serve 25,26,143,993 192.0.2.1 2001:db8::1"
fi
