#!/bin/sh
# on-vagrant.sh MACHINE COMMAND: runs it there as root.
cd "$(dirname "$0")" || exit 1
exec vagrant ssh "$1" --no-tty -c "sudo sh -c '$2'" </dev/null
