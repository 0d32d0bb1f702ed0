"""Writes every frame that passes an interface into a file, as it is: capture.py INTERFACE FILE.

It takes them out of a ring that it shares with the kernel (packet(7), PACKET_RX_RING), where a reader that is late loses
nothing: the buffer of a socket is small where the machine's root has not said otherwise. tcpdump, which has one too, does
not run as the root of a user namespace. If frames are lost after all, `FRAMES LOST` stands in the file.
"""

import mmap
import select
import socket
import struct
import sys

ETH_P_ALL, SOL_PACKET, PACKET_RX_RING, PACKET_STATISTICS = 3, 263, 5, 6
# A slot holds the largest frame there is, which is one that is cut into segments later.
SLOT, SLOTS = 128 << 10, 512
# struct tpacket_hdr: status, length, captured length, offset of the frame.
HEADER = struct.Struct("@LIIH")
OF_THE_READER = 1

ring = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
ring.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("@IIII", SLOT, SLOTS, SLOT, SLOTS))
shared = mmap.mmap(ring.fileno(), SLOT * SLOTS)
ring.bind((sys.argv[1], ETH_P_ALL))
out = open(sys.argv[2], "wb", buffering=0)
out.write(b"frames:\n")
slot = 0
while True:
    status, _, length, start = HEADER.unpack_from(shared, slot * SLOT)
    if not status & OF_THE_READER:
        select.select([ring], [], [])
        continue
    at = slot * SLOT + start
    out.write(shared[at : at + length])
    struct.pack_into("@L", shared, slot * SLOT, 0)
    slot = (slot + 1) % SLOTS
    _, lost = struct.unpack("@II", ring.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    if lost:
        out.write(b"FRAMES LOST\n")
