"""A DNS server that plays a script, over TLS as well. Every query is logged as it came.

    names.py DIR        logs to DIR/log/names.queries; the certificates are DIR/etc/web.pem and DIR/etc/bad.pem

UDP, TCP 53   the script; the first label of a name under script-test.com says what happens
TCP 853       the same over TLS (RFC 7858), with the world's certificate
TCP 8853      the same over TLS, with a certificate that nobody vouches for

web               both addresses          rotate     one of two addresses in turn, TTL 1
txt600, 1200, 4000   that much text       tconly     nothing but TC over UDP
silent            no answer               servfail, refused   that rcode
wrongid           a forgery first         liar       an answer to another question
extra             a record about another name besides
rebind            public, then private, TTL 0        mixed   public and private at once
garbage           bytes                   lame       a referral to somebody else
"""

import socket
import ssl
import struct
import sys
import threading

DIR = sys.argv[1]
ADDRESSES = ["93.184.215.56", "2606:2800:21f:cb07::56"]
A, TXT, AAAA, OPT = 1, 16, 28, 41
WEB = {A: "93.184.215.14", AAAA: "2606:2800:21f:cb07::14"}
OTHER = {A: "151.101.1.69", AAAA: "2a04:4e42::645"}
INSIDE = {A: "10.77.0.5", AAAA: "fd12:3456:789a::5"}
log = open(f"{DIR}/log/names.queries", "ab", buffering=0)
lock = threading.Lock()
turns = {}


def turn(key):
    with lock:
        turns[key] = turns.get(key, -1) + 1
        return turns[key]


def wire(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def record(kind, ttl, data, owner=b"\xc0\x0c"):
    return owner + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def address(kind, text, ttl, owner=b"\xc0\x0c"):
    family = socket.AF_INET if kind == A else socket.AF_INET6
    return record(kind, ttl, socket.inet_pton(family, text), owner)


def read(query):
    """Id, labels, question, type and the size that the asker takes."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("latin-1").lower())
        at += 1 + query[at]
    question = query[12 : at + 5]
    kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
    rest = query[at + 5 :]
    size = struct.unpack(">H", rest[3:5])[0] if rest[:3] == b"\0\0\x29" else 512
    return query[:2], labels, question, kind, size


def message(ident, question, answers=(), rcode=0, authority=(), flags=0x8580):
    counts = struct.pack(">HHHHH", flags | rcode, 1, len(answers), len(authority), 0)
    return ident + counts + question + b"".join(answers) + b"".join(authority)


def answers(query, udp):
    """The messages that go back, in order."""
    ident, labels, question, kind, size = read(query)
    what = labels[0] if labels[1:] == ["script-test", "com"] else "absent"
    web = [address(kind, WEB[kind], 300)] if kind in WEB else []
    if what == "silent":
        return []
    if what == "garbage":
        return [ident + b"\x85\x80\0\1\0\1" + b"\xc0" * 40]
    if what in ("servfail", "refused"):
        return [message(ident, question, rcode={"servfail": 2, "refused": 5}[what])]
    if what == "rotate" and kind in WEB:
        return [message(ident, question, [address(kind, (WEB, OTHER)[turn(("rotate", kind)) % 2][kind], 1)])]
    if what == "rebind" and kind in WEB:
        return [message(ident, question, [address(kind, (WEB, INSIDE)[min(turn(("rebind", kind)), 1)][kind], 0)])]
    if what == "mixed" and kind in WEB:
        return [message(ident, question, web + [address(kind, INSIDE[kind], 300)])]
    if what == "wrongid":
        forged = bytes([ident[0] ^ 1, ident[1]])
        return [message(forged, question, [address(kind, OTHER[kind], 300)]), message(ident, question, web)]
    if what == "liar":
        other = wire("bank.script-test.com") + question[-4:]
        return [message(ident, other, web)]
    if what == "extra":
        return [message(ident, question, web + [address(kind, OTHER[kind], 300, wire("bank.script-test.com"))])]
    if what == "lame":
        elsewhere = record(2, 300, wire("ns.absent-test.com"))
        return [message(ident, question, authority=[elsewhere])]
    if what == "tconly" and udp:
        return [message(ident, question, flags=0x8780)]
    if what.startswith("txt") and kind == TXT:
        # Each another, since one that is said twice is one (RFC 2181, 5).
        pieces = [bytes([200]) + b"%03d" % number + b"x" * 197 for number in range(int(what[3:]) // 215)]
        whole = message(ident, question, [record(TXT, 300, piece) for piece in pieces])
        return [whole if not udp or len(whole) <= size else message(ident, question, flags=0x8780)]
    if what in ("web", "tconly"):
        return [message(ident, question, web)]
    soa = record(6, 60, b"\0\0" + struct.pack(">IIIII", 1, 60, 60, 60, 60), wire("script-test.com"))
    return [message(ident, question, rcode=3, authority=[soa])]


def note(over, query):
    log.write(over.encode() + b" " + query.hex().encode() + b" " + repr(query).encode() + b"\n")


def serve_udp(family, host):
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((host, 53))
    while True:
        query, peer = server.recvfrom(65536)
        note("udp", query)
        for answer in answers(query, True):
            server.sendto(answer, peer)


def read_exactly(connection, length):
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def serve_stream(over, connection):
    while True:
        query = read_exactly(connection, struct.unpack(">H", read_exactly(connection, 2))[0])
        note(over, query)
        for answer in answers(query, False):
            connection.sendall(struct.pack(">H", len(answer)) + answer)


def accept(family, host, port, over, serve, context):
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, port))
    server.listen(64)

    def handle(connection):
        try:
            if context:
                connection = context.wrap_socket(connection, server_side=True)
            serve(over, connection)
        except (OSError, EOFError):
            pass
        finally:
            connection.close()

    while True:
        threading.Thread(target=handle, args=server.accept()[:1], daemon=True).start()


def context(name):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(f"{DIR}/etc/{name}.pem", f"{DIR}/etc/{name}.key")
    return made


good, bad = context("web"), context("bad")
threads = []
for host in ADDRESSES:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    threads.append(threading.Thread(target=serve_udp, args=(family, host)))
    for arguments in [
        (53, "tcp", serve_stream, None),
        (853, "dot", serve_stream, good),
        (8853, "bad", serve_stream, bad),
    ]:
        threads.append(threading.Thread(target=accept, args=(family, host, *arguments)))
for thread in threads:
    thread.start()
