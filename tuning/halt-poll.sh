#!/usr/bin/env bash
# Lets the CPUs of a virtual machine look for work for a while before they halt.
#
# A CPU that halts in a virtual machine leaves it; to wake it costs the way through the hypervisor, 30 to 100 µs of every
# acknowledgement that waits for the network or the disk. With polling it finds its next work by itself. What it costs: a CPU
# that has just had work is busy for so much longer, as its host sees it; one without any work does not poll.
# On bare metal there is nothing to do here: see the C-states of the processor.
#
#   halt-poll.sh                 says how it is and what is wanted; exit 1 when they differ
#   halt-poll.sh --apply [NS]    sets it, 200000 ns (the kernel's own default) unless given; needs root
#   halt-poll.sh --revert        sets back what --apply found
#
# PYRALOG_ROOT: where /sys and /run are to be found, for tests.
set -euo pipefail

root=${PYRALOG_ROOT:-}
governor=$root/sys/devices/system/cpu/cpuidle/current_governor
setting=$root/sys/module/haltpoll/parameters/guest_halt_poll_ns
kept=$root/run/pyralog-tuning/guest_halt_poll_ns
default_ns=200000

usage() {
    sed -n 's/^#   //p' "$0" >&2
    exit 2
}

if [[ $# -gt 2 || ($# -eq 2 && $1 != --apply) ]]; then usage; fi
mode=${1:---check}
wanted=${2:-$default_ns}
if ! [[ $mode =~ ^--(check|apply|revert)$ ]]; then usage; fi
if ! [[ $wanted =~ ^(0|[1-9][0-9]{0,8})$ ]]; then
    echo "$wanted: give nanoseconds, below 1000000000" >&2
    exit 2
fi

if [[ ! -r $setting || $(cat "$governor" 2>/dev/null || true) != haltpoll ]]; then
    echo "not used here: no virtual machine whose CPUs can poll (no governor haltpoll in $governor)"
    exit 0
fi
now=$(<"$setting")

put() {
    if ! printf '%s\n' "$1" 2>/dev/null >"$setting"; then
        echo "can't write $setting; run this as root" >&2
        exit 1
    fi
}

case $mode in
--check)
    if ((now >= wanted)); then
        echo "ok: CPUs poll for $now ns before they halt"
    else
        echo "change: CPUs poll for $now ns before they halt, wanted $wanted; run: $0 --apply"
        exit 1
    fi
    ;;
--apply)
    if ((now == wanted)); then
        echo "ok: it is $now ns already"
        exit 0
    fi
    # What was there before the first change is what to go back to.
    if [[ ! -e $kept ]]; then
        if ! { mkdir -p "$(dirname "$kept")" && printf '%s\n' "$now" >"$kept"; } 2>/dev/null; then
            echo "can't write $kept; run this as root" >&2
            exit 1
        fi
    fi
    put "$wanted"
    echo "changed: $now ns -> $wanted ns; undo: $0 --revert"
    ;;
--revert)
    if [[ ! -e $kept ]]; then
        echo "ok: nothing was changed by this script"
        exit 0
    fi
    before=$(<"$kept")
    put "$before"
    rm "$kept"
    echo "changed back: $now ns -> $before ns"
    ;;
esac
