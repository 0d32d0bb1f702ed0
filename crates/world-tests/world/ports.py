"""A server to run in a sandbox whose ports are published, and its clients.

    ports.py serve                 echo on 7, "your address and port" on 8 (both protocols, both families); says "up", and ends
                                   with its input
    ports.py serve ECHO WHO        the same on these ports, without an end
    ports.py serve-pieces          takes pieces on 7 (both families), answers each, and sends one as long; says "up", and ends likewise
    ports.py CLIENT ADDR PORT...   see below; says what it found, and fails loudly
"""
import asyncio, errno, hashlib, os, resource, select, socket, sys, threading

# A thousand connections are more than most shells let a program have.
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
PATTERN = hashlib.sha256(b"a").digest() * 2048  # 64 KiB


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listening(kind, address, port):
    s = socket.socket(family(address), kind)
    if kind == socket.SOCK_STREAM:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in address:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, port))
    return s


def serve(echo_port=7, who_port=8):
    async def echo(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
            await writer.drain()
        except OSError:
            pass
        writer.close()

    async def who(reader, writer):
        writer.write(("%s %d" % writer.get_extra_info("peername")[:2]).encode())
        writer.close()

    async def forever():
        for address in ("0.0.0.0", "::"):
            for port, handler in ((echo_port, echo), (who_port, who)):
                await asyncio.start_server(handler, sock=listening(socket.SOCK_STREAM, address, port), backlog=2048)
            for port in (echo_port, who_port):
                threading.Thread(target=datagrams, args=(address, port), daemon=True).start()
        print("up", flush=True)
        if len(sys.argv) > 2:
            await asyncio.Event().wait()
        # The end of our input is the end of the test.
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        os._exit(0)

    def datagrams(address, port):
        s = listening(socket.SOCK_DGRAM, address, port)
        while True:
            data, peer = s.recvfrom(65536)
            s.sendto(data if port == echo_port else ("%s %d" % peer[:2]).encode(), peer)

    asyncio.run(forever())


PIECE = (40 << 20) + 12345  # long enough to be a stream, and no round number
PIECES = 3


def take(s):
    """Exactly one piece, and no byte more is there before it is answered."""
    left, buffer = PIECE, bytearray(1 << 20)
    while left and (n := s.recv_into(buffer, min(left, len(buffer)))):
        left -= n
    return not left


def serve_pieces():
    def one(s):
        for _ in range(PIECES):
            if take(s):
                s.sendall(b"k")
                s.sendall(bytes(PIECE))
                s.recv(1)

    def accept(listener):
        while True:
            threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    for address in ("0.0.0.0", "::"):
        listener = listening(socket.SOCK_STREAM, address, 7)
        listener.listen()
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
    print("up", flush=True)
    sys.stdin.read()


def client_pieces(address, port):
    """Neither side closes, and neither goes on before it has the whole of a piece."""
    s = connect(address, port)
    for _ in range(PIECES):
        s.sendall(bytes(PIECE))
        assert s.recv(1) == b"k"
        assert take(s)
        s.sendall(b"k")
    print(PIECES, "pieces each way")


def connect(address, port, source=None, timeout=20):
    s = socket.socket(family(address), socket.SOCK_STREAM)
    s.settimeout(timeout)
    if source:
        s.bind((source, 0))
    s.connect((address, port))
    return s


def read_all(s):
    data = b""
    while part := s.recv(65536):
        data += part
    return data


def client_who(address, port, source=None):
    s = connect(address, port, source)
    print("seen as", read_all(s).decode(), "is", s.getsockname()[0], s.getsockname()[1])


def client_reset(address, port):
    """The connection is made by the host's kernel, and then reset."""
    try:
        s = connect(address, port)
        s.sendall(b"x")
        print("got", read_all(s))
    except OSError as error:
        print(errno.errorcode[error.errno])


def client_halfclose(address, port):
    """What was sent before the end comes back after it."""
    s = connect(address, port)
    s.sendall(PATTERN)
    s.shutdown(socket.SHUT_WR)
    print("whole" if read_all(s) == PATTERN else "broken")


def client_hold(address, port, count):
    """So many connections at once, each of which works while all are there."""
    sockets = [connect(address, port) for _ in range(int(count))]
    for number, s in enumerate(sockets):
        s.sendall(b"%08d" % number)
    good = sum(s.recv(8, socket.MSG_WAITALL) == b"%08d" % number for number, s in enumerate(sockets))
    print(good, "good")


def client_burst(address, port, count):
    """So many connections that begin in one moment, and a word on each."""
    asyncio.run(burst(address, port, int(count)))


async def burst(address, port, count):
    async def one(number):
        try:
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(b"%08d" % number)
            word = await reader.readexactly(8)
            held.append(writer)
            return "good" if word == b"%08d" % number else "broken"
        except (OSError, asyncio.IncompleteReadError):
            return "lost"

    # All are there at once: none is closed before the last has had its word.
    held = []
    ends = await asyncio.wait_for(asyncio.gather(*map(one, range(count))), 60)
    print(*(f"{ends.count(end)} {end}" for end in ("good", "broken", "lost")))
    for writer in held:
        writer.close()


def client_bulk(address, port, size):
    """Writes without reading until nothing more is taken, then reads as well; what comes back is what was sent."""
    size = int(size)
    s = connect(address, port)
    s.setblocking(False)
    sent = received = 0
    out, back = hashlib.sha256(), hashlib.sha256()
    stuck = None
    while received < size:
        wants = [s] if sent < size else []
        readable, writable, _ = select.select([s] if stuck is not None else [], wants, [], 1 if stuck is None else 20)
        if writable:
            part = PATTERN[: size - sent]
            n = s.send(part)
            out.update(part[:n])
            sent += n
        elif stuck is None:
            stuck = sent
        elif not readable:
            sys.exit("nothing moves")
        if readable:
            part = s.recv(65536)
            if not part:
                break
            back.update(part)
            received += len(part)
        if stuck is None and sent == size:
            stuck = sent
    print("back-pressure" if stuck < size else "no back-pressure", received, "exact" if out.digest() == back.digest() else "broken")


def client_udp(address, port, count):
    """Each of so many clients gets its own answers, of all sizes."""
    good = 0
    sockets = [socket.socket(family(address), socket.SOCK_DGRAM) for _ in range(int(count))]
    for size in (0, 1, 1200, 8000):
        for number, s in enumerate(sockets):
            s.settimeout(5)
            s.connect((address, port))
            s.send(bytes([number % 256]) * size)
        for number, s in enumerate(sockets):
            good += s.recv(65536) == bytes([number % 256]) * size
    print(good, "good")


def client_whoudp(address, port):
    s = socket.socket(family(address), socket.SOCK_DGRAM)
    s.settimeout(5)
    s.connect((address, port))
    s.send(b"?")
    print("seen as", s.recv(100).decode(), "is", s.getsockname()[0], s.getsockname()[1])


def client_silence(address, port):
    s = socket.socket(family(address), socket.SOCK_DGRAM)
    s.settimeout(1)
    s.connect((address, port))
    s.send(b"?")
    try:
        print("got", s.recv(100))
    except socket.timeout:
        print("silence")


if sys.argv[1] == "serve":
    serve(*map(int, sys.argv[2:]))
elif sys.argv[1] == "serve-pieces":
    serve_pieces()
else:
    address, port, *more = sys.argv[2:]
    globals()["client_" + sys.argv[1]](address, int(port), *more)
