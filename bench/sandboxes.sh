#!/bin/bash
# What sandboxes that stay cost: the time of `exec` to the first byte, and memory and start-up with many idle ones.
#
#   bench/sandboxes.sh [--long] [N]     N idle sandboxes, 20 without it, 500 with --long
#
# COFFERDAM names the program; target/release/cofferdam without it. Prints one line per figure.
set -eu
cd "$(dirname "$0")/.."
C=${COFFERDAM:-$PWD/target/release/cofferdam}
count=20
[ "${1:-}" = --long ] && { count=500; shift; }
count=${1:-$count}
export XDG_STATE_HOME
XDG_STATE_HOME=$(mktemp -d)
trap '"$C" ls --quiet | xargs -r "$C" rm --force; rm -rf "$XDG_STATE_HOME"' EXIT
cd "$XDG_STATE_HOME"

# Milliseconds until the first byte of a command's output has arrived: median, 90th percentile and least of N times.
first_byte() {
	python3 - "$@" <<'PYTHON'
import os, subprocess, sys, time
rounds, command = int(sys.argv[1]), sys.argv[2:]
times = []
for _ in range(rounds):
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    os.read(child.stdout.fileno(), 1)
    times.append((time.perf_counter() - began) * 1000)
    child.communicate()
times.sort()
print(f"{times[len(times) // 2]:.1f} ms (p90 {times[len(times) * 9 // 10]:.1f}, least {times[0]:.1f})")
PYTHON
}

"$C" create probe --no-cwd
echo "exec, the session's network:  $(first_byte 50 "$C" exec --quiet probe -- echo x)"
echo "exec, no network:             $(first_byte 50 "$C" exec --quiet --no-net probe -- echo x)"
echo "exec, a network of its own:   $(first_byte 50 "$C" exec --quiet --net public probe -- echo x)"
echo "run, no network:              $(first_byte 50 "$C" run --quiet --no-cwd --no-net -- echo x)"
"$C" rm --force probe

# Proportional set size of the keeper and everything below it, in KiB.
pss() {
	python3 - <<'PYTHON'
import os
parents, sizes, named = {}, {}, []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        stat = open(f"/proc/{pid}/stat").read()
        line = open(f"/proc/{pid}/cmdline").read()
        size = next(int(line.split()[1]) for line in open(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:"))
    except (OSError, StopIteration):
        continue
    parents[pid] = stat.rpartition(")")[2].split()[1]
    sizes[pid] = size
    if line.startswith("cofferdam keeps idle"):
        named.append(pid)
totals = []
# Its gateway has its name too, since it was forked from it.
for keeper in (pid for pid in named if parents[pid] not in named):
    family, grown = {keeper}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    totals.append(sum(sizes[pid] for pid in family))
totals.sort()
print(f"{len(totals)} sandboxes, {sum(totals) / len(totals) / 1024:.2f} MiB each (most {totals[-1] / 1024:.2f})")
PYTHON
}

# Milliseconds of one start, out of nine.
start_time() {
	local n
	for n in $(seq 9); do
		local began=$EPOCHREALTIME
		"$C" create "$1$n" --no-cwd
		echo $(((${EPOCHREALTIME/./} - ${began/./}) / 100))
	done | sort -n | sed -n 5p | sed 's/.$/.&/'
}

first=$(start_time first)
for n in $(seq 1 "$count"); do "$C" create "idle$n" --no-cwd; done
echo "idle:                         $(pss)"
echo "start of the first:           $first ms"
echo "start with $count others:        $(start_time last) ms"
echo "exec with $count others:         $(first_byte 50 "$C" exec --quiet idle1 -- echo x)"
