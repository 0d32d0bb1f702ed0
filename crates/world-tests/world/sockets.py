"""A program that meets every manner a server can have, and prints what it saw, one line each.

The same program runs with and without a sandbox, and both must print the same: what a closed port, a reset or a silence
looks like is part of what the wall must not change.

    sockets.py 4|6
"""

import errno
import socket
import struct
import sys
import time

FAMILY = {"4": socket.AF_INET, "6": socket.AF_INET6}[sys.argv[1]]
PREFIX = {"4": "93.184.215.", "6": "2606:2800:21f:cb07::"}[sys.argv[1]]
WEB, PROHIBITED, UNREACHABLE, SILENT = (PREFIX + last for last in ("14", "97", "98", "99"))
# Longer than any answer takes in here.
PATIENCE = 1.5


def connect(address, port):
    client = socket.socket(FAMILY)
    client.settimeout(PATIENCE)
    client.connect((address, port))
    return client


def read_to_end(client):
    total = b""
    while data := client.recv(65536):
        total += data
    return total


def refused():
    connect(WEB, 81)
    return "connected"


def prohibited():
    connect(PROHIBITED, 80)
    return "connected"


def unreachable():
    connect(UNREACHABLE, 80)
    return "connected"


def silent():
    connect(SILENT, 80)
    return "connected"


def resets():
    with connect(WEB, 7101) as client:
        client.send(b"x")
        return repr(client.recv(10))


def half_close_by_the_client():
    with connect(WEB, 7102) as client:
        client.sendall(b"y" * 300_000)
        client.shutdown(socket.SHUT_WR)
        return repr(read_to_end(client))


def half_close_by_the_server():
    with connect(WEB, 7105) as client:
        end = client.recv(10)
        client.sendall(b"z" * 200_000)
    # The server has closed its side already, so nothing of this connection tells when it has read all.
    deadline = time.monotonic() + PATIENCE
    while True:
        with connect(WEB, 7106) as client:
            count = read_to_end(client)
        if count != b"0" or time.monotonic() > deadline:
            return f"{end!r}, then it took {count.decode()} bytes"
        time.sleep(0.01)


def word_and_end():
    with connect(WEB, 7103) as client:
        return repr(read_to_end(client))


def never_answers():
    with connect(WEB, 7104) as client:
        client.send(b"x")
        return repr(client.recv(10))


def client_resets():
    with connect(WEB, 7) as client:
        client.sendall(b"x")
        client.recv(1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with connect(WEB, 7) as client:
        client.sendall(b"again")
        return repr(client.recv(10))


def urgent():
    with connect(WEB, 7) as client:
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"after")
        client.shutdown(socket.SHUT_WR)
        return repr(read_to_end(client)[-5:])


# Counts of bytes before, between and after two urgent ones: more than the buffers on the way hold, and next to nothing.
AROUND_URGENT = [(400_000, 300_000, 200_000), (0, 1, 0), (3, 0, 5)]


def urgent_in_line_to_the_server():
    answers = []
    for before, between, after in AROUND_URGENT:
        with connect(WEB, 7107) as client:
            # The server takes urgent bytes in line from here on.
            client.recv(5, socket.MSG_WAITALL)
            for count, letter in [(before, b"a"), (between, b"b")]:
                client.sendall(letter * count)
                client.send(b"!", socket.MSG_OOB)
            client.sendall(b"c" * after)
            client.shutdown(socket.SHUT_WR)
            answers.append(read_to_end(client).decode())
    return answers


def urgent_in_line_to_the_client():
    answers = []
    for around in AROUND_URGENT:
        with connect(WEB, 7108) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            client.sendall(b"%d %d %d" % around)
            total, places = 0, []
            # Slowly, so that what is urgent waits in every buffer on the way.
            while data := client.recv(4096):
                places += [total + at for at, byte in enumerate(data) if byte == ord("!")]
                total += len(data)
                time.sleep(0.001)
            answers.append(f"{places} of {total}")
    return answers


def datagrams(port, *requests):
    with socket.socket(FAMILY, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect((WEB, port))
        answers = []
        for request in requests:
            client.send(request)
            answers.append(client.recv(65536))
        return answers


def udp_echo():
    sizes = [0, 1, 512, 1400, 1472, 1500, 9000, 60_000]
    answers = datagrams(7, *(bytes([size % 251]) * size for size in sizes))
    return str([len(answer) for answer in answers])


def udp_burst():
    with socket.socket(FAMILY, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect((WEB, 7))
        client.send(b"BURST 40 1200")
        return str(sum(len(client.recv(2000)) for _ in range(40)))


def udp_closed():
    return repr(datagrams(9, b"x"))


def udp_unreachable():
    with socket.socket(FAMILY, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect((UNREACHABLE, 7))
        client.send(b"x")
        return repr(client.recv(10))


def time_service():
    (answer,) = datagrams(123, bytes([0x23]) + bytes(39) + b"originat")
    return f"{len(answer)} bytes, stratum {answer[1]}, for {answer[24:32]!r}"


for check in (refused, prohibited, unreachable, silent, resets, half_close_by_the_client, half_close_by_the_server, word_and_end,
              never_answers, client_resets, urgent, urgent_in_line_to_the_server, urgent_in_line_to_the_client, udp_echo, udp_burst, udp_closed, udp_unreachable, time_service):
    try:
        said = check()
    except TimeoutError as error:
        said = errno.errorcode[error.errno] if error.errno else "silence"
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error))
    print(f"{check.__name__}: {said}", flush=True)
