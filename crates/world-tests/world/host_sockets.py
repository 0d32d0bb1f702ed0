"""Servers on Unix sockets of the host, and clients of them in a sandbox."""

import array
import fcntl
import hashlib
import os
import select
import socket
import struct
import sys
import termios
import threading

MEBIBYTE = bytes(range(256)) * 4096


def over_tcp(path):
    """The family and the address, where a path is one: `tcp:ADDRESS:PORT`."""
    _, _, rest = path.partition("tcp:")
    host, _, port = rest.rpartition(":")
    return socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port))


def listener(path, backlog=5):
    if path.startswith("tcp:"):
        family, address = over_tcp(path)
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(backlog)
        return sock
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    os.chmod(path, 0o600)
    sock.listen(backlog)
    return sock


def connected(path):
    family, address = over_tcp(path) if path.startswith("tcp:") else (socket.AF_UNIX, path)
    sock = socket.socket(family)
    sock.settimeout(30)
    sock.connect(address)
    return sock


def rest(sock):
    data = b""
    while piece := sock.recv(1 << 16):
        data += piece
    return data


def peer(sock):
    return struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


def say(*words):
    print(*words, flush=True)


def echo(sock):
    """Sends back what comes, the end included. What begins with a `!` is ended from here."""
    first = sock.recv(1 << 16)
    if first.startswith(b"!"):
        sock.sendall(b"first")
        sock.shutdown(socket.SHUT_WR)
        say("after the end:", rest(sock).decode())
    else:
        while first:
            sock.sendall(first)
            first = sock.recv(1 << 16)
    sock.close()


def serve(path):
    sock = listener(path)
    say("up")
    while True:
        threading.Thread(target=echo, args=(sock.accept()[0],), daemon=True).start()


def full(path):
    """A server that takes no connection."""
    sock = listener(path, 0)
    connected(path)
    say("up")
    sys.stdin.read()
    sock.close()


def others(datagram, left):
    """A datagram socket, and the file of a stream socket that nobody has any more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(datagram)
    listener(left).close()
    say("up")
    sock.recv(1)


def descriptors(sock, word):
    """Sends a descriptor and receives whatever comes. Says how many came, and whether the one that was sent is held."""
    read, write = os.pipe()
    try:
        sock.sendmsg([word], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write]))])
    except PermissionError:
        # Inside, since Linux 6.16.
        sock.sendall(word)
    os.close(write)
    sock.sendall(b" and more")
    sock.shutdown(socket.SHUT_WR)
    data, came = b"", 0
    while True:
        piece, ancillary, _, _ = sock.recvmsg(100, 1024)
        came += len(ancillary)
        data += piece
        if not piece:
            break
    # The end of the pipe is there as soon as nobody holds the other end any more.
    held = os.read(read, 1)
    say(data.decode(), came, "came,", "held" if held else "closed")


def serve_descriptors(path):
    sock = listener(path)
    say("up")
    conn, _ = sock.accept()
    pid, uid, gid = peer(conn)
    say("peer is me" if uid == os.getuid() else f"peer is {uid}")
    descriptors(conn, b"from the host")


def halfclose(path):
    sock = connected(path)
    sock.sendall(b"all")
    sock.shutdown(socket.SHUT_WR)
    assert rest(sock) == b"all"
    sock = connected(path)
    sock.sendall(b"!")
    assert rest(sock) == b"first"
    sock.sendall(b"later")
    sock.close()
    say("whole")


def bulk(path, mebibytes):
    """Sends and receives at once, and compares."""
    count = int(mebibytes)
    sock = connected(path)
    sent, got = hashlib.sha256(), hashlib.sha256()

    def send():
        for number in range(count):
            block = number.to_bytes(4, "big") + MEBIBYTE[4:]
            sent.update(block)
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    total = 0
    while piece := sock.recv(1 << 20):
        got.update(piece)
        total += len(piece)
    thread.join()
    say(total, "exact" if sent.digest() == got.digest() else "broken")


def hold(path, count):
    """Many connections at once: how many answer, and how many are ended."""
    socks = [connected(path) for _ in range(int(count))]
    good = ended = 0
    for number, sock in enumerate(socks):
        try:
            sock.sendall(b"%d" % number)
            answer = sock.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        good += answer == b"%d" % number
        ended += answer == b""
    say(good, "good,", ended, "ended")


def ask(path):
    """What is answered. Whether the end is read, or is in the way of writing, is a question of who is first."""
    try:
        sock = connected(path)
        sock.sendall(b"hello")
        say(sock.recv(100).decode() or "end")
    except (BrokenPipeError, ConnectionResetError):
        say("end")
    except OSError as error:
        say(type(error).__name__)


def crossing(path):
    descriptors(connected(path), b"from inside")


def wait(path):
    """Holds a connection, and says so."""
    sock = connected(path)
    sock.sendall(b"!")
    sock.recv(100)
    say("holding")
    sys.stdin.read()


def to_the_end(sock):
    """How many bytes come, and how they end."""
    total = 0
    try:
        while piece := sock.recv(10_000):
            total += len(piece)
    except ConnectionResetError:
        return total, "reset"
    return total, "end"


def abrupt(path, count):
    """Reads ten bytes, answers with many, and closes with something unread."""
    sock = listener(path)
    say("up")
    while True:
        conn = sock.accept()[0]
        conn.recv(10)
        conn.sendall(bytes(int(count)))
        if conn.family != socket.AF_UNIX:
            # What the kernel still has when it resets is lost, without anybody between.
            while struct.unpack("i", fcntl.ioctl(conn, termios.TIOCOUTQ, bytes(4)))[0]:
                pass
        conn.close()


def upload(path):
    """Talks until that fails, and only then reads."""
    sock = connected(path)
    try:
        while True:
            sock.sendall(bytes(50_000))
    except (BrokenPipeError, ConnectionResetError):
        say("came", *to_the_end(sock))


def listen(path):
    """Says more than is read, and listens."""
    sock = connected(path)
    sock.sendall(bytes(20))
    say("came", *to_the_end(sock))


def late(path):
    """A server that greets, and hears only what is there once it has been told."""
    sock = listener(path)
    say("up")
    conn = sock.accept()[0]
    conn.sendall(b"hello")
    sys.stdin.read()
    say("came", *to_the_end(conn))


def deaf(path, count):
    """Says much without reading, and closes."""
    sock = connected(path)
    select.select([sock], [], [])
    sock.sendall(bytes(int(count)))
    sock.close()
    say("closed")


COMMANDS = [serve, abrupt, upload, listen, late, deaf, full, others, serve_descriptors, halfclose, bulk, hold, ask, crossing, wait]
{command.__name__: command for command in COMMANDS}[sys.argv[1]](*sys.argv[2:])
