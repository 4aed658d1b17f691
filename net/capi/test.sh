#!/usr/bin/env bash
# Tests the C library and the Python package as their users get them: builds and installs both into a temporary folder,
# and runs their examples and tests against a node on a free loopback port.
#
#   net/capi/test.sh                    # needs cargo, cc, c++, make, pkg-config and Python 3.10 or newer
#
# PYRALOG_BIN     the node's program; without it, target/release/pyralog, which is built when it is not there
# PYTHON          which Python, python3 without it
# CARGO_TARGET_DIR is honoured. When valgrind is there, the C programs run once more under it.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-$PWD/target}
python=${PYTHON:-python3}
bin=${PYRALOG_BIN:-$target/release/pyralog}
folder=$(mktemp -d "${TMPDIR:-/tmp}/pyralog-capi.XXXXXX")
node=

clean_up() {
    if [ -n "$node" ]; then
        kill "$node" 2>/dev/null || true
        wait "$node" 2>/dev/null || true
    fi
    rm -rf "$folder"
}
trap clean_up EXIT

say() {
    printf '\n--- %s (%d s)\n' "$1" "$SECONDS"
}

start_node() {
    local end=$((SECONDS + 30))
    "$bin" --listen 127.0.0.1:0 --data-dir "$folder/data" --shards 1 >"$folder/node.log" 2>"$folder/node.err" &
    node=$!
    # The node says when it is ready, and on which port.
    until address=$(sed -n 's/^ready on \([^,]*\),.*/\1/p' "$folder/node.log") && [ -n "$address" ]; do
        if ! kill -0 "$node" 2>/dev/null || [ "$SECONDS" -ge "$end" ]; then
            echo "the node is not ready:" >&2
            cat "$folder/node.log" "$folder/node.err" >&2
            exit 1
        fi
        sleep 0.1
    done
}

say 'the header is what the sources make of it'
make -s -C net/capi check-header

say 'the library is built and installed'
if [ ! -x "$bin" ]; then
    cargo build --release --bin pyralog
fi
make -s -C net/capi install PREFIX="$folder/prefix"
export PKG_CONFIG_PATH=$folder/prefix/lib/pkgconfig
[ "$(pkg-config --modversion pyralog)" = "$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)" ]
exported=$(nm -D --defined-only "$folder/prefix/lib/libpyralog.so" | awk '{ print $3 }' | grep -v '^pyralog_' || true)
[ -z "$exported" ] || { echo "the library exports what is not its own: $exported" >&2; exit 1; }

say 'the C programs are built; the example as C11, as C++17, and with the static library'
warnings='-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror'
example=net/capi/examples/produce_consume.c
# pkg-config gives words.
# shellcheck disable=SC2046,SC2086
{
    cc -std=c11 $warnings -g "$example" $(pkg-config --cflags --libs pyralog) -o "$folder/c11"
    c++ -std=c++17 $warnings -x c++ "$example" -x none $(pkg-config --cflags --libs pyralog) -o "$folder/cxx17"
    cc -std=c11 $warnings -g net/capi/tests/lifetimes.c $(pkg-config --cflags --libs pyralog) -o "$folder/lifetimes"
    # The first program of the tutorial.
    sed -n '/^#include <pyralog.h>/,/^```/p' docs/clients.md | grep -v '^```' >"$folder/tutorial.c"
    cc -std=c11 $warnings "$folder/tutorial.c" $(pkg-config --cflags --libs pyralog) -o "$folder/tutorial"
    cc -std=c11 $warnings "$example" $(pkg-config --cflags pyralog) "$folder/prefix/lib/libpyralog.a" \
        $(pkg-config --static --libs-only-l pyralog | sed 's/-lpyralog//') -o "$folder/static"
}

say 'the C programs run against a node'
start_node
export LD_LIBRARY_PATH=$folder/prefix/lib
for program in c11 cxx17 static lifetimes; do
    timeout 60 "$folder/$program" "$address"
done
# And the same in Rust.
cargo run -q --release -p pyralog-net --example produce_consume -- "$address"
if command -v valgrind >/dev/null; then
    for program in c11 lifetimes; do
        timeout 120 valgrind -q --leak-check=full --errors-for-leak-kinds=definite --error-exitcode=9 \
            "$folder/$program" "$address"
    done
else
    echo 'valgrind is not there: not run under it'
fi
unset LD_LIBRARY_PATH

say 'the wheel is built and installed'
"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip wheel -q --disable-pip-version-check -w "$folder/wheels" net/python
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check --no-index --find-links "$folder/wheels" pyralog

say 'the Python example and the unit tests run against the node'
timeout 60 "$folder/venv/bin/python" -X dev net/python/examples/produce_consume.py "$address"
sed -n '/^import pyralog/,/^```/p' docs/clients.md | grep -v '^```' | sed "s/127.0.0.1:9092/$address/" >"$folder/tutorial.py"
timeout 60 "$folder/venv/bin/python" -X dev "$folder/tutorial.py" | tail -1
PYRALOG_ADDRESS=$address PYRALOG_BIN=$(realpath "$bin") PYTHONDONTWRITEBYTECODE=1 \
    timeout 300 "$folder/venv/bin/python" -X dev -m unittest discover -s net/python/tests

say 'all of it passed'
