#!/usr/bin/env python3
"""Throughput of a virtual machine's network: through the gateway, and through QEMU's own, in turns, in a closed world of its own.

    unshare -n bench/guest.py BINARY KERNEL.deb [ROUNDS] [SECONDS] [ENGINE...]     as root

Each round boots a guest with each engine, without KVM where that does not work; a small program in it sends to a server in another
network namespace for SECONDS, and then receives from it. What counts is what the server saw between its first byte and its last.
Prints Gbit/s, and the processor seconds of the gateway per GiB; then the medians, and the median of the ratios within a round.

Both namespaces have the congestion control reno, whatever the machine has, as in the bench of forwarders: with bbr its timers send
while other processes run, and whoever that is pays for it, the gateway as well. COFFERDAM_FLAGS adds flags of `cofferdam run`, as
"--cpus 1" for the number of the guest's processors.
"""

import glob
import os
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from processes import tree

ADDRESS, PORT = "93.184.215.14", 7777
# sysctl(8) may be absent; the file is that of the namespace of whoever writes it.
RENO = "echo reno >/proc/sys/net/ipv4/tcp_congestion_control"
ME = os.path.abspath(__file__)
USER = ["setpriv", "--reuid", "1500", "--regid", "1500", "--clear-groups", "--"]
ENGINES = {"slirp": ["--engine", "slirp", "--mode", "full"], "gateway": ["--net", "all", "--no-ipv6"]}

CLIENT = r"""
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* client ADDRESS PORT up|down SECONDS */
int main(int argc, char **argv) {
	static char buffer[256 << 10];
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
	inet_pton(AF_INET, argv[1], &to.sin_addr);
	int up = argv[3][0] == 'u', s = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(s, (void *)&to, sizeof to)) { perror("connect"); return 1; }
	if (write(s, up ? "u" : "d", 1) != 1) return 1;
	for (double end = now() + atof(argv[4]); now() < end;)
		if ((up ? write(s, buffer, sizeof buffer) : read(s, buffer, sizeof buffer)) <= 0) break;
	close(s);
	return 0;
}
"""


def serve():
    """One connection after the other; a line when it begins to count, and one with bytes and seconds at its end."""
    listener = socket.create_server((ADDRESS, PORT))
    print("up", flush=True)
    buffer = memoryview(bytearray(1 << 20))
    while True:
        connection, _ = listener.accept()
        way = connection.recv(1)
        moved, begun, last = 0, time.monotonic(), 0.0
        print("begun", flush=True)
        try:
            while step := connection.recv_into(buffer) if way == b"u" else connection.send(buffer):
                moved, last = moved + step, time.monotonic()
        except OSError:
            pass
        connection.close()
        print(moved, last - begun, flush=True)


def gateway(run):
    """Who holds a TUN device of those that the run started."""
    for pid in tree(run):
        for fd in glob.glob(f"/proc/{pid}/fd/*"):
            try:
                if os.readlink(fd) == "/dev/net/tun" and not open(f"/proc/{pid}/comm").read().startswith("qemu"):
                    return pid
            except OSError:
                pass
    return None


def spent(pid):
    """Seconds on a processor."""
    return sum(int(open(thread).read().split()[0]) for thread in glob.glob(f"/proc/{pid}/task/*/schedstat")) / 1e9


def heard(said, run):
    """What the server says next; a run that failed has nothing more to be waited for."""
    ended = os.pidfd_open(run.pid)
    ready = select.select([said, ended], [], [])[0]
    os.close(ended)
    # The end of a connection may come after the end of the run.
    if said not in ready and not select.select([said], [], [], 10 if run.wait() == 0 else 0)[0]:
        sys.exit(f"the guest ended with {run.returncode} before its transfers were over")
    return said.readline().decode() or sys.exit("the server has ended")


def measure(binary, engine, seconds, client, said):
    size = os.path.getsize(client)
    transfers = "; ".join(f"./client {ADDRESS} {PORT} {way} {seconds}" for way in ("up", "down"))
    inside = f"head -c {size} >client; chmod 755 client; {transfers}"
    words = USER + [binary, "run", "--backend", "vm", "--no-cwd", "--quiet", "--no-record", *ENGINES[engine]]
    with open(client) as program:
        run = subprocess.Popen([*words, *os.environ.get("COFFERDAM_FLAGS", "").split(), "--", "sh", "-c", inside], stdin=program)
    came = {}
    for way in ("up", "down"):
        assert heard(said, run) == "begun\n"
        who = gateway(run.pid) if engine == "gateway" else None
        before = spent(who) if who else 0
        moved, took = heard(said, run).split()
        came[way] = int(moved) * 8 / float(took) / 1e9, (spent(who) - before) / (int(moved) / 2**30) if who else None
    if run.wait() != 0:
        sys.exit(f"the guest ended with {run.returncode}")
    return came


def main(binary, kernel, rounds=5, seconds=3, *engines):
    sh = lambda command: subprocess.run(command, shell=True, check=True)
    engines = engines or tuple(ENGINES)
    sh(f"ip link set lo up && {RENO}")
    inner = f"read go && {RENO} && ip link set lo up && ip addr add 10.99.0.2/30 dev v1 && ip addr add {ADDRESS}/32 dev lo && ip link set v1 up && exec {ME} serve"
    server = subprocess.Popen(["unshare", "-n", "sh", "-c", f"echo ns; {inner}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    server.stdout.readline()
    sh(f"ip link add v0 type veth peer name v1 netns {server.pid} && ip addr add 10.99.0.1/30 dev v0 && ip link set v0 up && ip route add default via 10.99.0.2")
    server.stdin.write(b"\n")
    server.stdout.readline()
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    os.environ["XDG_STATE_HOME"] = f"{folder}/state"
    os.mkdir(f"{folder}/state")
    os.chown(f"{folder}/state", 1500, 1500)
    client = f"{folder}/client"
    subprocess.run(["musl-gcc", "-O2", "-static", "-s", "-x", "c", "-", "-o", client], input=CLIENT, text=True, check=True)
    subprocess.run([*USER, binary, "vm", "setup", "--from-deb", kernel], check=True)
    try:
        table = [{engine: measure(binary, engine, seconds, client, server.stdout) for engine in engines} for _ in range(int(rounds))]
    finally:
        server.kill()
        shutil.rmtree(folder)
    for way in ("up", "down"):
        for engine in engines:
            rates = [line[engine][way][0] for line in table]
            costs = [line[engine][way][1] for line in table if line[engine][way][1] is not None]
            cost = f", gateway {statistics.median(costs):.3f} s per GiB" if costs else ""
            print(f"{way:4} {engine:8} {statistics.median(rates):6.2f} Gbit/s ({', '.join(f'{rate:.2f}' for rate in rates)}){cost}")
        if set(ENGINES) <= set(engines):
            ratios = [line["gateway"][way][0] / line["slirp"][way][0] for line in table]
            print(f"{way:4} gateway : slirp {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if sys.argv[1] == "serve":
    serve()
else:
    main(*sys.argv[1:])
