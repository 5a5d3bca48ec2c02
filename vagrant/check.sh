#!/bin/sh
# check.sh: what the banned, the innocent and the ignored see at the mail gateway, over IPv4 and IPv6 and each protocol.
#
# Runs beside the machines and asks them through $ON MACHINE COMMAND: on-vagrant.sh for the machines of the Vagrantfile; the test
# integration/tests/vagrant.rs sets it to enter namespaces. $THERE is where these files are on the machines.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
ON=${ON:-$here/on-vagrant.sh}
THERE=${THERE:-/opt/banset-vagrant}
OUT=${OUT:-$THERE/out}

banned_v4=198.51.100.7 banned_v6=2001:db8:1000:1::7
innocent_v4=198.51.100.8 innocent_v6=2001:db8:1000:2::7
ignored_v4=198.51.100.5 ignored_v6=2001:db8:1000:1::5
mail_v4=192.0.2.1 mail_v6=2001:db8::1
wrong=0

on() { "$ON" "$@"; }

look() { # WHO FAMILY PORT EXPECTED: what he sees there
    eval "from=\$$1_$2 to=\$mail_$2"
    on attackers "$OUT/peer knock $from $to $3 $4" | tr -d '\r'
}

# WHO PORT EXPECTED WHAT: every protocol of both families shall see the expected
expect() {
    for family in v4 v6; do
        seen=$(look "$1" $family "$2" "$3")
        verdict=ok
        test -n "$seen" || verdict=WRONG
        for word in $seen; do
            case $word in *="$3") ;; *) verdict=WRONG ;; esac
        done
        test $verdict = ok || wrong=$((wrong + 1))
        printf '| %-49s %-8s %s port %-3s  %-55s %s\n' "$4" "$1" $family "$2" "$seen" $verdict
    done
}

bridge_nf() { # 0 or 1: whether the bridge shows its packets to the filters of IP
    on firewall "for key in iptables ip6tables; do echo $1 >/proc/sys/net/bridge/bridge-nf-call-\$key; done"
}

# MACHINE JAIL PORT WHAT: ban, look, wait for the end, look again
check() {
    expect banned "$3" answer "$4, before"
    on "$1" "sh $THERE/fail.sh $2 $banned_v4 $banned_v6"
    expect banned "$3" nothing "$4, banned"
    expect banned 26 answer "$4, banned, other port"
    expect innocent "$3" answer "$4, banned"
    expect ignored "$3" answer "$4, banned"
    on "$1" "PATH=\$PATH:/usr/sbin:/usr/local/sbin; n=0; while banset banned --json | grep -q until; do n=\$((n + 1)); test \$n -lt 300; sleep 0.2; done"
    expect banned "$3" answer "$4, after"
}

bridge_nf 1
check firewall packets 25 "bridge, br_netfilter"
bridge_nf 0
check firewall frames 143 "bridge family, no br_netfilter"
check mail own 993 "the gateway itself"

echo "| $wrong lines wrong"
test $wrong = 0
