#!/bin/bash
# A peer of the forwarder bench: Cofferdam, which makes its own sandbox. Sourced by the bench's lib/peer.sh.
# COFFERDAM names the binary; without it, the release build of this checkout. COFFERDAM_FLAGS adds flags.
COFFERDAM=${COFFERDAM:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/target/release/cofferdam}

peer_check() { [ -x "$COFFERDAM" ]; }

# The program in the sandbox: a `sleep` below SPAWNED that is no longer our binary.
program_inside() {
	local todo="$SPAWNED" pid children
	while [ -n "$todo" ]; do
		pid=${todo%% *} todo=${todo#"$pid"} todo=${todo# }
		if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = sleep ]; then echo "$pid"; return 0; fi
		children=$(cat "/proc/$pid/task"/*/children 2>/dev/null)
		todo="$todo${todo:+ }${children% }"
	done
	return 1
}

peer_up() {
	local pid port publish=
	for port in ${PUBLISH:-}; do publish="$publish -p 0.0.0.0:$port"; done
	mark_start
	# The bench's server has a documentation address, which no profile calls public, and its names have private ones; it holds
	# 9,900 connections, and the other peers have no bound.
	spawn "$COFFERDAM" run --quiet --no-cwd --no-ipv6 --net all --no-dns-rebind-protection --max-connections 0 --max-inbound-connections 0 \
		${PEER_MTU:+--mtu $PEER_MTU} $publish ${COFFERDAM_FLAGS:-} -- sleep 100000
	wait_for program_inside
	pid=$(program_inside) || return 1
	sandbox_is "$pid"
}

# The program's user there has no capability, and the bench measures a forwarder, not what the program may call: its
# helpers enter the network namespace as themselves.
peer_enter() { exec nsenter -t "$SANDBOX_PID" -n -- setpriv --reuid "$BENCH_UID" --regid "$BENCH_UID" --clear-groups -- "$@"; }

# The gateway answers on its own address.
peer_dns() { echo "$(nsenter -t "$SANDBOX_PID" -n -- ip -4 route show default | sed -n 's/.* via \([^ ]*\).*/\1/p') 53"; }
