"""Sends as fast as one process can: SYNs, datagrams, pings and garbage in turn, then looks whether the network still works.

    flood.py flood|compute SECONDS ADDRESS [WORD]

`compute` burns the same time without sending, for comparison.
"""

import os
import random
import socket
import struct
import sys
import time

WHAT, SECONDS, ADDRESS = sys.argv[1], float(sys.argv[2]), sys.argv[3]
END = time.monotonic() + SECONDS


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


def flood():
    sent = 0
    made = frames()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        while time.monotonic() < END:
            for frame in made:
                try:
                    wire.send(frame)
                    sent += 1
                except OSError:
                    pass
    print(f"{sent} frames")


def compute():
    while time.monotonic() < END:
        pass


{"flood": flood, "compute": compute}[WHAT]()
# What the flood filled may take a moment to drain; the sandbox then has to work as before.
for _ in range(10):
    try:
        with socket.create_connection((ADDRESS, 7), 3) as connection:
            connection.sendall(b"still there?")
            if connection.recv(100) == b"still there?":
                print("network fine")
                sys.exit(0)
    except OSError:
        time.sleep(1)
print("network dead")
sys.exit(1)
