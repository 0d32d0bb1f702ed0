"""Servers on Unix sockets of the host, and clients of them in a sandbox."""

import array
import hashlib
import os
import socket
import struct
import sys
import threading

MEBIBYTE = bytes(range(256)) * 4096


def listener(path, backlog=5):
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
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(path)
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


COMMANDS = [serve, full, others, serve_descriptors, halfclose, bulk, hold, ask, crossing, wait]
{command.__name__: command for command in COMMANDS}[sys.argv[1]](*sys.argv[2:])
