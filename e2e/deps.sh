#!/bin/sh
# Installs what running and testing Crimson needs and this Debian machine misses. Quick when nothing is missing.
#   e2e/deps.sh          what `make run` needs (the demo uses the test harness, whose client is compiled with protoc)
#   e2e/deps.sh test     what `make test` needs beyond that
set -eu

missing=
# need COMMAND PACKAGE: remembers the package if no such command is found.
need() {
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

for tool in crun runc; do
    need "$tool" "$tool"
done
need nft nftables
need iptables iptables
need ip iproute2
need nsenter util-linux
need docker-registry docker-registry
need protoc protobuf-compiler
[ -x /usr/lib/cni/bridge ] || [ -x /opt/cni/bin/bridge ] || missing="$missing containernetworking-plugins"
# The plain busybox package has the same program name, but links to libraries that a test image does not hold.
dpkg-query -W -f '${db:Status-Status}' busybox-static 2>/dev/null | grep -qx installed || missing="$missing busybox-static"
if [ "${1:-}" = test ]; then
    need openssl openssl
    need shellcheck shellcheck
    # The nodes (e2e/node): their image is made by mmdebstrap, which trusts the keys of the release of the nodes.
    need mmdebstrap mmdebstrap
    need mke2fs e2fsprogs
    need debugfs e2fsprogs
    need flock util-linux
    need setpriv util-linux
    need strip binutils
    need xz xz-utils
    need unshare util-linux
    # The fuzzer (fuzz/run) is C++.
    need g++ g++
    [ -e /usr/share/keyrings/debian-archive-trixie-stable.gpg ] || missing="$missing debian-archive-keyring"
fi

[ -n "$missing" ] || exit 0
echo "installing:$missing"
if [ "$(id -u)" -ne 0 ]; then
    echo "this needs root: apt-get install$missing" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# A registry is wanted as a program, not as a service on port 5000: where systemd runs, keep it from being started.
if [ -d /run/systemd/system ]; then
    case "$missing" in *docker-registry*) systemctl mask docker-registry.service >/dev/null 2>&1 ;; esac
fi
# shellcheck disable=SC2086 # a list of packages
apt-get install -y -qq --no-install-recommends $missing >/dev/null
