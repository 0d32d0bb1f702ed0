#!/usr/bin/env python3
"""What it costs a gateway that somebody looks: its processor time over a loaded run, in a closed world of its own.

    unshare -n bench/live.py BINARY FLOWS KIND SECONDS [top]     as root

FLOWS connections are opened to a server in another network namespace. KIND is what they do then: `trickle`, a byte there and
back on each of them every second; `ping`, as many round trips as go on one of them while the others rest; `idle`. With `top`,
`cofferdam top` runs beside it, on a terminal. Prints the processor time of the gateway, the supervisor and top.
"""

import asyncio
import fcntl
import glob
import os
import pty
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time

from processes import tree

ADDRESS, PORT = "93.184.215.14", 7777
ME = os.path.abspath(__file__)


async def serve():
    async def echo(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)

    server = await asyncio.start_server(echo, ADDRESS, PORT, backlog=4096)
    print("up", flush=True)
    await server.serve_forever()


async def load(flows, kind, seconds):
    connections = [await asyncio.open_connection(ADDRESS, PORT) for _ in range(flows)]
    print("open", flush=True)
    sys.stdin.readline()
    begun, trips = time.monotonic(), 0
    while time.monotonic() < begun + seconds:
        turn = connections if kind == "trickle" else connections[: kind == "ping"]
        for _, writer in turn:
            writer.write(b"x")
        for reader, _ in turn:
            await reader.read(1)
        trips += len(turn)
        if kind != "ping":
            await asyncio.sleep(1)
    print(trips, "round trips", flush=True)
    sys.stdin.readline()


def gateway(run):
    """The process in the host's network that has most descriptors: the ends of the connections."""
    ours = os.readlink("/proc/self/ns/net")
    others = [pid for pid in tree(run) if pid != run and os.readlink(f"/proc/{pid}/ns/net") == ours]
    return max(others, key=lambda pid: len(os.listdir(f"/proc/{pid}/fd")))


def spent(pid):
    """Milliseconds on a processor."""
    threads = glob.glob(f"/proc/{pid}/task/*/schedstat")
    return sum(int(open(thread).read().split()[0]) for thread in threads) / 1e6


def look(binary):
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(binary, [binary, "top"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))

    def drain():
        try:
            while os.read(terminal, 65536):
                pass
        except OSError:
            pass

    threading.Thread(target=drain, daemon=True).start()
    time.sleep(1)
    return pid


def measure(binary, flows, kind, seconds, with_top):
    sh = lambda command: subprocess.run(command, shell=True, check=True)
    sh("ip link set lo up")
    inner = f"read go && ip link set lo up && ip addr add 10.99.0.2/30 dev v1 && ip addr add {ADDRESS}/32 dev lo && ip link set v1 up && exec {ME} serve"
    server = subprocess.Popen(["unshare", "-n", "sh", "-c", f"echo ns; {inner}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    server.stdout.readline()
    sh(f"ip link add v0 type veth peer name v1 netns {server.pid} && ip addr add 10.99.0.1/30 dev v0 && ip link set v0 up && ip route add default via 10.99.0.2")
    server.stdin.write(b"\n")
    server.stdin.flush()
    server.stdout.readline()
    state = os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()
    words = [binary, "run", "--no-cwd", "--quiet", "--max-connections", "0", "--mount", f"{ME}:/tmp/live.py:ro"]
    words += ["--mount", f"{os.path.dirname(ME)}/processes.py:/tmp/processes.py:ro", "--"]
    words += ["python3", "/tmp/live.py", "load", flows, kind, seconds]
    run = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    run.stdout.readline()
    watched = {"gateway": gateway(run.pid), "supervisor": run.pid}
    if with_top:
        watched["top"] = look(binary)
    before = {name: spent(pid) for name, pid in watched.items()}
    run.stdin.write(b"\n")
    run.stdin.flush()
    done = run.stdout.readline().decode().strip()
    times = ", ".join(f"{name} {spent(pid) - before[name]:.1f} ms" for name, pid in watched.items())
    print(f"{flows} flows, {kind}, {seconds} s, {done}: {times}")
    if with_top:
        os.kill(watched["top"], 15)
    run.stdin.close()
    run.wait()
    server.kill()
    shutil.rmtree(state)


resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
if sys.argv[1] == "serve":
    asyncio.run(serve())
elif sys.argv[1] == "load":
    asyncio.run(load(int(sys.argv[2]), sys.argv[3], float(sys.argv[4])))
else:
    measure(*sys.argv[1:5], sys.argv[5:] == ["top"])
