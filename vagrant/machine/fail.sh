#!/bin/sh
# fail.sh JAIL ADDRESS...: three failed logins of each address into the jail's log, and waits until they are banned.
set -eu
PATH=$PATH:/usr/sbin:/usr/local/sbin
jail=$1
shift
for address in "$@"; do
    for _ in 1 2 3; do
        echo "$(date '+%b %e %H:%M:%S') mx sshd[506]: Failed password for root from $address port 37957 ssh2"
    done >>"/var/log/banset-$jail.log"
done
tries=0
until banset banned "$@" >/dev/null 2>&1; do
    tries=$((tries + 1))
    test $tries -lt 600 || { echo "fail.sh: no ban of $* in jail $jail" >&2; exit 1; }
    sleep 0.1
done
