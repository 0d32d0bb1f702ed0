"""A guest that takes what it can get, and one that wants its share.

    flood.py flood NAME [WORD]         sends as fast as one process can: SYNs, datagrams, pings and garbage in turn
    flood.py hold NAME [WORD]          the same, and opens connections all the time that say half of their first flight
    flood.py burn NAME [WORD]          computes with two processes, and sends nothing
    flood.py work NAME SECONDS         computes and asks an echo server in turn, and says how often

All but `work` say `begun` when they begin, go on until their standard input ends, and then look whether the network still
works.
"""

import collections
import os
import random
import resource
import socket
import struct
import sys
import threading
import time

WHAT, NAME = sys.argv[1], sys.argv[2]
ADDRESS = socket.getaddrinfo(NAME, 7, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
# Accepts everything and never says a word.
SINK = 7109
# Below the gateway's own limit of 4096, so that it is the bytes that are too many.
CONNECTIONS = 3500
# Two parts of a request's start, which together are just less than what is held of one (16 KiB).
HALF_A_FLIGHT = [b"GET / HTTP/1.1\r\nX: " + b"x" * 9000, b"x" * 7000]
over = threading.Event()


def begin():
    print("begun", flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source, protocol, payload):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, socket.inet_aton(source), socket.inet_aton(ADDRESS))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def segment(source, protocol, payload, checksum_at):
    pseudo = socket.inet_aton(source) + socket.inet_aton(ADDRESS) + struct.pack("!BBH", 0, protocol, len(payload))
    value = checksum(pseudo + payload)
    return packet(source, protocol, payload[:checksum_at] + struct.pack("!H", value) + payload[checksum_at + 2:])


def own_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((ADDRESS, 9))
        return probe.getsockname()[0]


def frames():
    """A few hundred of each kind, made beforehand so that sending is all there is to do."""
    # A connection fills in the neighbour's hardware address.
    socket.create_connection((ADDRESS, 7), 5).close()
    gateway = next(line.split()[3] for line in open("/proc/net/arp") if "eth0" in line)
    own = open("/sys/class/net/eth0/address").read().strip() if os.path.exists("/sys/class/net/eth0/address") else None
    if own is None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as probe:
            probe.bind(("eth0", 0))
            own = probe.getsockname()[4].hex(":")
    ether = bytes.fromhex(gateway.replace(":", "")) + bytes.fromhex(own.replace(":", "")) + b"\x08\x00"
    source, made = own_address(), []
    for number in range(400):
        port = 1024 + number * 97 % 60_000
        syn = struct.pack("!HHIIBBHHH", port, random.randrange(1, 65536), number, 0, 0x50, 2, 64240, 0, 0)
        datagram = struct.pack("!HHHH", port, random.randrange(1, 65536), 108, 0) + os.urandom(100)
        ping = struct.pack("!BBHHH", 8, 0, 0, number, 1) + os.urandom(56)
        ping = ping[:2] + struct.pack("!H", checksum(ping)) + ping[4:]
        made.append(ether + segment(source, 6, syn, 16))
        made.append(ether + segment(source, 17, datagram, 6))
        made.append(ether + packet(source, 1, ping))
        made.append(ether + packet(source, random.randrange(256), os.urandom(60)))
        made.append(ether + os.urandom(60))
    return made


def flood(between=lambda: None):
    sent = 0
    made = frames()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        begin()
        while not over.is_set():
            for frame in made:
                try:
                    wire.send(frame)
                    sent += 1
                except OSError:
                    pass
            between()
    print(f"{sent} frames")


def hold():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held, opened = collections.deque(), 0

    def open_some():
        nonlocal opened
        # All at once: a round trip for each would leave the gateway time to breathe.
        batch = [socket.socket() for _ in range(500)]
        for connection in batch:
            connection.setblocking(False)
            connection.connect_ex((ADDRESS, SINK))
        for connection in batch:
            connection.settimeout(1)
            try:
                for part in HALF_A_FLIGHT:
                    connection.send(part)
                opened += 1
            except OSError:
                pass
            held.append(connection)
            if len(held) > min(CONNECTIONS, hard - 100):
                held.popleft().close()

    flood(open_some)
    print(f"{opened} connections")
    while held:
        held.popleft().close()


def burn():
    # The other one ends with the sandbox.
    if os.fork() == 0:
        while True:
            pass
    begin()
    while not over.is_set():
        pass


def work():
    """About as much of the one as of the other, on a machine that has nothing else to do."""
    turns, end = 0, time.monotonic() + float(sys.argv[3])
    with socket.create_connection((ADDRESS, 7), 5) as connection:
        while time.monotonic() < end:
            for _ in range(10):
                connection.sendall(b"turn")
                connection.recv(100)
            sum(range(50_000))
            turns += 1
    print(turns)
    sys.exit(0)


{"flood": flood, "hold": hold, "burn": burn, "work": work}[WHAT]()
# What the flood filled may take a moment to drain; the sandbox then has to work as before.
for _ in range(10):
    try:
        with socket.create_connection((ADDRESS, 80), 3) as connection:
            connection.sendall(f"GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n".encode())
            answer = b""
            while part := connection.recv(1000):
                answer += part
            if b"hello from the world" in answer:
                print("network fine", flush=True)
                os._exit(0)
    except OSError:
        pass
    time.sleep(1)
print("network dead", flush=True)
os._exit(1)
