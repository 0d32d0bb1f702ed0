"""One thing after another that a program does with a network, and what comes of each: the same in every kind of sandbox.

The first line of standard input is a certificate authority, in JSON. Each further one is a list of cases, a name and an expression
of the functions below; for each there is a line of output, `NAME: WHAT CAME OF IT`, and `done` behind the last. Port 8080 is served
meanwhile. With an argument it is that expression alone, and nothing is served.
"""

import errno
import json
import socket
import ssl
import struct
import sys
import threading
import time

# Longer than anything takes that is answered, in a machine without KVM on a busy host.
PATIENCE = 20
V4, V6 = socket.AF_INET, socket.AF_INET6
TYPES = {"A": 1, "AAAA": 28, "TXT": 16}
RCODES = {0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED"}


def family_of(address):
    return V6 if ":" in address else V4


def connect(address, port):
    connection = socket.socket(family_of(address), socket.SOCK_STREAM)
    connection.settimeout(PATIENCE)
    connection.connect((address, port))
    return connection


def tcp(address, port):
    with connect(address, port) as connection:
        connection.sendall(b"hello")
        return connection.recv(100).decode() or "the end"


def udp(address, port):
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(PATIENCE)
        datagrams.connect((address, port))
        datagrams.send(b"hello")
        return datagrams.recv(100).decode()


def ping(address):
    family = family_of(address)
    protocol, request = (socket.IPPROTO_ICMP, 8) if family == V4 else (socket.IPPROTO_ICMPV6, 128)
    try:
        pings = socket.socket(family, socket.SOCK_DGRAM, protocol)
    except PermissionError:
        pings = socket.socket(family, socket.SOCK_RAW, protocol)
    with pings:
        # Errors come to a socket that is not connected only when it asks for them.
        pings.settimeout(PATIENCE)
        pings.connect((address, 0))
        echo = struct.pack("!BBHHH", request, 0, 0, 7, 7) + b"hello"
        pings.send(echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:])
        while True:
            said = pings.recv(1000)
            if said.endswith(b"hello") and (said[0] if said[0] < 0x40 or family == V6 else said[20]) in (0, 129):
                return "hello"


def checksum(data):
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def resolver(family):
    servers = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")]
    return next(server for server in servers if family_of(server) == family)


def dns(name, kind, over, server):
    """The rcode, and the addresses or texts."""
    server = resolver(server) if server in (V4, V6) else server
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", TYPES[kind], 1)
    if over == "udp":
        with socket.socket(family_of(server), socket.SOCK_DGRAM) as datagrams:
            datagrams.settimeout(PATIENCE)
            datagrams.connect((server, 53))
            datagrams.send(query)
            answer = datagrams.recv(65535)
    else:
        with connect(server, 53) as connection:
            connection.sendall(struct.pack("!H", len(query)) + query)
            stream = connection.makefile("rb")
            answer = stream.read(struct.unpack("!H", stream.read(2))[0])
    _, flags, _, count, _, _ = struct.unpack_from("!6H", answer)
    at, found = len(query), []
    for _ in range(count):
        while answer[at] and answer[at] < 192:
            at += 1 + answer[at]
        at += 2 if answer[at] else 1
        length = struct.unpack_from("!H", answer, at + 8)[0]
        data = answer[at + 10:at + 10 + length]
        found.append({4: lambda: socket.inet_ntop(V4, data), 16: lambda: socket.inet_ntop(V6, data)}.get(length, lambda: repr(data))())
        at += 10 + length
    return " ".join([RCODES.get(flags & 15, str(flags & 15)), *sorted(found)])


def lookup(name, family):
    return socket.getaddrinfo(name, 0, family, socket.SOCK_STREAM)[0][4][0]


def at(name, family, port):
    """A name as programs reach it: by looking it up."""
    return tcp(lookup(name, family), port)


def http(address, name, port=80):
    with connect(address, port) as connection:
        connection.sendall(f"GET /who HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = connection.makefile("rb").read().decode().partition("\r\n\r\n")
        status = head.split()[1]
        if status == "403":
            refusal = json.loads(body)
            print("decision", refusal["decision"])
            return f"403 {refusal['code']} {refusal['domain']}"
        return f"{status} {body.split()[-1]}"


def tls(address, name):
    context = ssl.create_default_context(cadata=AUTHORITY)
    with connect(address, 443) as connection, context.wrap_socket(connection, server_hostname=name) as wrapped:
        return "verified" if wrapped.getpeercert() else "no certificate"


def hold(addresses, port, bound):
    """Holds as many connections as there may be, to one address after the other, and says what comes of a further one to each.

    What has been closed counts until both ends know, so what is refused before the bound is tried again.
    """
    held, end = [], time.monotonic() + PATIENCE
    try:
        while len(held) < bound and time.monotonic() < end:
            try:
                held.append(connect(addresses[len(held) % len(addresses)], port))
            except ConnectionRefusedError:
                time.sleep(0.02)
        further = []
        for address in addresses:
            try:
                held.append(connect(address, port))
                further.append("one more")
            except OSError as error:
                further.append(errno.errorcode.get(error.errno, str(error)))
        return f"{len(held)}, then {' '.join(further)}"
    finally:
        for connection in held:
            connection.close()


def silent(attempt, *to):
    """An attempt that nobody is to answer, for as long as one that is answered takes many times over."""
    global PATIENCE
    patience, PATIENCE = PATIENCE, 2
    try:
        return attempt(*to)
    finally:
        PATIENCE = patience


def answer(connection, peer):
    with connection:
        connection.sendall(connection.recv(100).upper())


def serve(family):
    listener = socket.create_server(("", 8080), family=family)
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    if family == V6:
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    datagrams.bind(("", 8080))

    def streams():
        while True:
            threading.Thread(target=answer, args=listener.accept(), daemon=True).start()

    def packets():
        while True:
            said, peer = datagrams.recvfrom(100)
            datagrams.sendto(said.upper(), peer)

    for server in (streams, packets):
        threading.Thread(target=server, daemon=True).start()


def came_of(expression):
    try:
        return eval(expression)
    except ssl.SSLError as error:
        return error.reason
    except TimeoutError:
        return "silence"
    except socket.gaierror as error:
        return str(error)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


if len(sys.argv) > 1:
    print(came_of(sys.argv[1]))
    sys.exit()
for family in (V4, V6):
    serve(family)
AUTHORITY = json.loads(sys.stdin.readline())
print("up", flush=True)
for line in sys.stdin:
    for name, does in json.loads(line):
        print(f"{name}: {came_of(does)}", flush=True)
    print("done", flush=True)
