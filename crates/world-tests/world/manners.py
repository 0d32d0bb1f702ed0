"""Servers with a manner of their own, on every address of the world.

TCP   7     echo
TCP   7101  reads one byte, then resets
TCP   7102  reads to the end, and only then answers with the count: the client must be able to half-close
TCP   7103  says a word and closes at once
TCP   7104  accepts and never answers
TCP   7105  closes its sending side, then reads to the end and stores the count, which port 7106 tells
TCP   7107  takes urgent data in line, reads slowly to the end, and answers with where the urgent bytes were
TCP   7108  is told three counts, and sends as many bytes before, between and after two urgent ones
TCP   7109  accepts, says nothing, and costs next to nothing: for thousands of connections
TCP   7110  says a byte, reads one, then resets
UDP   7     echo; `BURST n size` gets n datagrams of that size
UDP   123   a time server: any request of 48 bytes gets a reply of 48 bytes
"""

import collections
import resource
import socket
import struct
import threading
import time

V4 = ["93.184.215.14", "151.101.1.69", "10.77.0.5", "169.254.169.254", "192.168.77.50"]
V6 = ["2606:2800:21f:cb07::14", "2a04:4e42::645", "fd12:3456:789a::5"]
counted = {"bytes": 0}
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
# More than a gateway has connections, where the machine allows that.
SINK_KEEPS = min(5000, hard - 500)
# Seconds between 1900, where network time starts, and 1970 (RFC 5905, figure 4).
NTP_EPOCH = 2_208_988_800


def read_to_end(connection):
    total = 0
    while data := connection.recv(65536):
        total += len(data)
    return total


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


def reset(connection):
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def byte_and_reset(connection):
    connection.sendall(b"!")
    reset(connection)


def count_then_answer(connection):
    connection.sendall(b"%d" % read_to_end(connection))


def word_and_close(connection):
    connection.sendall(b"bye")


def never_answer(connection):
    time.sleep(600)


def close_first(connection):
    counted["bytes"] = 0
    connection.shutdown(socket.SHUT_WR)
    counted["bytes"] = read_to_end(connection)


def find_urgent(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    connection.sendall(b"ready")
    total, places = 0, []
    # Slowly, so that what is urgent waits in every buffer on the way.
    while data := connection.recv(4096):
        places += [total + at for at, byte in enumerate(data) if byte == ord("!")]
        total += len(data)
        time.sleep(0.001)
    connection.sendall(f"{places} of {total}".encode())


def send_urgent(connection):
    before, between, after = (int(word) for word in connection.recv(100).split())
    for count, letter in [(before, b"a"), (between, b"b")]:
        connection.sendall(letter * count)
        connection.send(b"!", socket.MSG_OOB)
    connection.sendall(b"c" * after)
    connection.shutdown(socket.SHUT_WR)
    read_to_end(connection)


def tell_count(connection):
    connection.sendall(b"%d" % counted["bytes"])


def listener(port):
    server = socket.socket(socket.AF_INET6)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", port))
    server.listen(1024)
    return server


def sink(port):
    server, kept = listener(port), collections.deque()

    def loop():
        while True:
            kept.append(server.accept()[0])
            if len(kept) > SINK_KEEPS:
                kept.popleft().close()

    threading.Thread(target=loop, daemon=True).start()


def tcp(port, manner):
    server = listener(port)

    def serve(connection):
        with connection:
            try:
                manner(connection)
            except OSError:
                pass

    def loop():
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()


def udp(family, address, port, answers):
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((address, port))

    def loop():
        while True:
            try:
                data, client = server.recvfrom(65536)
                for answer in answers(data):
                    server.sendto(answer, client)
            except OSError:
                pass

    threading.Thread(target=loop, daemon=True).start()


def udp_echo(data):
    if data.startswith(b"BURST"):
        count, size = (int(word) for word in data.split()[1:3])
        return [b"x" * size] * min(count, 256)
    return [data]


def network_time(data):
    if len(data) != 48:
        return []
    stamp = struct.pack("!II", int(time.time()) + NTP_EPOCH, 0)
    # Server mode, version 4, stratum 2; the client's transmit time comes back as the originate time (RFC 5905, 7.3).
    return [struct.pack("!BBbb", 0x24, 2, 6, -20) + bytes(12) + stamp + data[40:48] + stamp + stamp]


for number, kind in [(7, echo), (7101, reset), (7102, count_then_answer), (7103, word_and_close), (7104, never_answer),
                     (7105, close_first), (7106, tell_count), (7107, find_urgent), (7108, send_urgent),
                     (7110, byte_and_reset)]:
    tcp(number, kind)
sink(7109)
for family, addresses in [(socket.AF_INET, V4), (socket.AF_INET6, V6)]:
    for address in addresses:
        udp(family, address, 7, udp_echo)
        udp(family, address, 123, network_time)
threading.Event().wait()
