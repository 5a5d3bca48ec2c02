#!/bin/sh
# network.sh MACHINE LINK [LINK]: addresses, routes and the bridge of one of the three machines, as root, as often as one likes.
#
#   attackers ── wan [firewall] lan ── mail
#
# A link is given by its name or by its hardware address; the firewall has two, the one to the attackers first. The same network
# stands in integration/src/site.rs (Wiring::Bridged), and integration/tests/vagrant.rs runs this script in namespaces.
set -eu

link() {
    case $1 in
    *:*) ip -o link show | awk -v mac="$1" 'index(tolower($0), "link/ether " tolower(mac)) { split($2, name, /[@:]/); print name[1]; exit }' ;;
    *) echo "$1" ;;
    esac
}
# sysctl without the package that has it; what a kernel lacks is left out.
set_sysctl() {
    path=/proc/sys/$(echo "$1" | tr . /)
    if test -e "$path"; then echo "$2" >"$path"; fi
}
address() { # LINK ADDRESS
    case $2 in
    *:*) ip -6 address replace "$2" dev "$1" nodad ;;
    *) ip address replace "$2" dev "$1" ;;
    esac
}
outside_via_router() {
    for net in 198.51.100.0/24 203.0.113.0/24; do ip route replace "$net" via 192.0.2.2; done
    ip -6 route replace 2001:db8:1000::/36 via 2001:db8::2
}

machine=$1
near=$(link "$2")
far=$(link "${3:-$2}")
test -n "$near" && test -n "$far" || { echo "network.sh: no link $*" >&2; exit 1; }

# Checks look once and want the truth: addresses that hold at once, and every refusal told.
for key in all default "$near" "$far"; do set_sysctl "net.ipv6.conf.$key.accept_dad" 0; done
set_sysctl net.ipv4.icmp_ratelimit 0
set_sysctl net.ipv6.icmp.ratelimit 0
ip link set "$near" up

case $machine in
attackers) # everybody outside, and the router through which they come
    address "$near" 192.0.2.2/24
    address "$near" 2001:db8::2/64
    set_sysctl net.ipv6.ip_nonlocal_bind 1
    for net in 198.51.100.0/24 203.0.113.0/24; do ip route replace local "$net" dev lo; done
    ip -6 route replace local 2001:db8:1000::/36 dev lo
    ;;
firewall) # a transparent bridge, with an address for whoever looks after it
    ip link show br0 >/dev/null 2>&1 || ip link add br0 type bridge forward_delay 0 mcast_snooping 0
    for port in "$near" "$far"; do ip link set "$port" master br0 up; done
    set_sysctl net.ipv6.conf.br0.accept_dad 0
    ip link set br0 up
    address br0 192.0.2.3/24
    address br0 2001:db8::3/64
    outside_via_router
    # Stock kernels have br_netfilter as a module; its sysctls are there once it is.
    test -e /proc/sys/net/bridge || modprobe br_netfilter || true
    ;;
mail) # the gateway
    address "$near" 192.0.2.1/24
    address "$near" 2001:db8::1/64
    outside_via_router
    ;;
*)
    echo "network.sh: no machine is called $machine" >&2
    exit 2
    ;;
esac
