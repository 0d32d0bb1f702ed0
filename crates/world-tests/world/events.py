"""A program of which there is every kind of event, and a reader that holds events to their schema.

    events.py provoke              in a sandbox: does it all over both families, says `begun` and `done`, and ends with its input
    events.py hide 4|6             in a sandbox: does what would hide who it is, and is denied all the same
    events.py validate SCHEMA FILE...   says which types there were, one a line, and fails when a line does not follow the schema
"""

import copy
import ctypes
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time

V4 = {"family": socket.AF_INET, "web": "93.184.215.14", "private": "10.77.0.5", "name": "v4.wall-test.com", "type": 1}
V6 = {"family": socket.AF_INET6, "web": "2606:2800:21f:cb07::14", "private": "fd12:3456:789a::5", "name": "v6.wall-test.com", "type": 28}


def question(name, kind, number=1):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", number, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def resolver():
    with open("/etc/resolv.conf") as lines:
        return next(line.split()[1] for line in lines if line.startswith("nameserver") and "." in line)


def tries(family, kind, address, port):
    with socket.socket(family, kind) as client:
        client.settimeout(5)
        try:
            client.connect((address, port))
            if kind == socket.SOCK_DGRAM:
                client.send(b"x")
                client.recv(10)
        except OSError as error:
            return error.errno


def visits(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        # Where nobody listens it may be closed before a word is said.
        try:
            client.send(b"x")
            client.shutdown(socket.SHUT_WR)
            while client.recv(1000):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass


def provoke():
    for world in (V4, V6):
        family, web = world["family"], world["web"]
        # On a machine that is busy not all are found. They stay open for a while, which those that are denied cannot.
        opened = []
        for _ in range(10):
            client = socket.create_connection((world["name"], 80), 5)
            opened.append(client)
            client.sendall(b"GET / HTTP/1.0\r\nHost: %s\r\n\r\n" % world["name"].encode())
            while client.recv(1000):
                pass
            echo = socket.socket(family, socket.SOCK_DGRAM)
            opened.append(echo)
            echo.settimeout(5)
            echo.connect((web, 7))
            echo.send(b"echo")
            assert echo.recv(10) == b"echo"
        tries(family, socket.SOCK_STREAM, web, 81)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM) * 20:
            tries(family, kind, world["private"], 80)
        for client in opened:
            client.close()
        subprocess.run(["ping", "-c1", "-W1", world["private"]], stdout=subprocess.DEVNULL)
        # More than are told one by one.
        with socket.socket(family, socket.SOCK_DGRAM) as flood:
            for _ in range(150):
                flood.sendto(b"x", (world["private"], 9))
        with socket.socket(family, socket.SOCK_RAW, 132) as raw:
            raw.sendto(bytes(12), (web, 0))
    # Look-ups of more names than are told apart.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        asker.connect((resolver(), 53))
        asker.settimeout(5)
        for number in range(3000):
            asker.send(question(f"n{number}.denied.example", 1, number))
            if number % 16 == 15:
                for _ in range(16):
                    asker.recv(1000)
    visits("/run/s")
    # Its server has ended by then.
    sys.stdin.readline()
    visits("/run/none")


def hide(world):
    prctl = ctypes.CDLL(None).prctl
    prctl(15, b"\x1b[2J\nblocked", 0, 0, 0)  # PR_SET_NAME
    prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Many descriptors before the socket, and processes that come and go.
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(min(soft, 3000) - 100)]
    over = threading.Event()

    def fork():
        while not over.is_set():
            os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)

    forker = threading.Thread(target=fork)
    forker.start()
    began = time.monotonic()
    for _ in range(50):
        tries(world["family"], socket.SOCK_STREAM, world["private"], 80)
    took = time.monotonic() - began
    over.set()
    forker.join()
    print(f"denied in time {took < 20}", len(held) > 500)


def bodies(validator, schema):
    """What there is of each type in the schema."""
    return {variant["properties"]["type"]["const"] for variant in schema["oneOf"]}


def validate(schema, files):
    import jsonschema

    with open(schema) as text:
        schema = json.load(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    seen = {}
    for file in files:
        with open(file) as lines:
            for line in lines:
                event = json.loads(line)
                kind = event["type"]
                count = seen.get(kind, 0)
                seen[kind] = count + 1
                # All of a kind look alike; a flood of them would take its time.
                if count > 200:
                    continue
                validator.validate(event)
                if count == 0:
                    strict(validator, event)
    for kind in sorted(seen):
        print(kind)
    for kind in sorted(bodies(validator, schema) - set(seen)):
        print("never seen:", kind)


def strict(validator, event):
    """A field more, a field less and another type have to be noticed, or the schema says nothing."""
    wrong = [{**event, "nonsense": 1}, {**event, "type": "nonsense"}, {**event, "v": "1"}]
    for key, value in event.items():
        if isinstance(value, dict):
            broken = copy.deepcopy(event)
            broken[key]["nonsense"] = 1
            wrong.append(broken)
    for missing in ("time", "type", "source"):
        wrong.append({key: value for key, value in event.items() if key != missing})
    for broken in wrong:
        assert not validator.is_valid(broken), broken


if sys.argv[1] == "provoke":
    print("begun", flush=True)
    provoke()
    print("done", flush=True)
    sys.stdin.read()
elif sys.argv[1] == "hide":
    hide(V4 if sys.argv[2] == "4" else V6)
elif sys.argv[1] == "validate":
    validate(sys.argv[2], sys.argv[3:])
