#!/bin/sh
# Installs what running and testing Crimson needs and this Debian machine misses. Quick when nothing is missing.
#   e2e/deps.sh          what `make run` needs (the demo uses the test harness, whose client is compiled with protoc)
#   e2e/deps.sh test     what `make test` needs beyond that
#   e2e/deps.sh deb      what `make deb` needs, and only that
set -eu

missing=
# need COMMAND PACKAGE: remembers the package if no such command is found.
need() {
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

if [ "${1:-}" = deb ]; then
    need dpkg-shlibdeps dpkg-dev
    need xz xz-utils
else
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
fi
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
# A registry is wanted as a program, not as a service on port 5000: where systemd runs, keep it from being started.
if [ -d /run/systemd/system ]; then
    case "$missing" in *docker-registry*) systemctl mask docker-registry.service >/dev/null 2>&1 ;; esac
fi
# apt_get ARGUMENT…: waits for another apt on a machine that has just come up.
apt_get() {
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 "$@"
}

# An update that has not reached everything still succeeds, and one that has failed may have left lists that will do: whether
# the packages can be installed tells. A mirror may be out of reach, or in the middle of a change, for a moment.
attempt=1
# shellcheck disable=SC2086 # a list of packages
until apt_get update || :; apt_get install -y --no-install-recommends $missing >/dev/null; do
    [ "$attempt" -lt 4 ] || { echo "could not install:$missing" >&2; exit 1; }
    echo "could not install all of it; once more" >&2
    sleep $((attempt * 10))
    attempt=$((attempt + 1))
done
