"""Clients that say unusual things on a connection; run in a sandbox: `flights.py FAMILY CASE [ADDRESS]`.

FAMILY is 4 or 6. Names are those of the world: web and git share an address, and only web is allowed.
"""

import http.client
import socket
import sys
import time

family = socket.AF_INET if sys.argv[1] == "4" else socket.AF_INET6
WEB, GIT = "web.wall-test.com", "git.wall-test.com"


def address(port, name=WEB):
    return socket.getaddrinfo(name, port, family, socket.SOCK_STREAM)[0][4]


def connect(port):
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(20)
    connection.connect(address(port))
    return connection


def rest(connection):
    """Everything that comes, and how it ended."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        return data.decode("latin-1"), "reset"
    return data.decode("latin-1"), "end"


def say(port, *pieces):
    connection = connect(port)
    for piece in pieces:
        connection.sendall(piece)
        time.sleep(0.05)
    print(*rest(connection))


def keep_alive():
    """http.client on one connection: the third request names another host."""
    connection = http.client.HTTPConnection(address(80)[0], 80, timeout=20)
    for host in (WEB, WEB, GIT):
        connection.request("GET", "/who", headers={"Host": host})
        answer = connection.getresponse()
        print(answer.status, answer.read().decode().strip(), answer.headers.get("Cache-Control"))


def pipelined():
    request = "GET /who HTTP/1.1\r\nHost: %s\r\n\r\n"
    say(80, (request % WEB + request % GIT).encode())


def smuggled():
    inner = b"GET /who HTTP/1.1\r\nHost: git.wall-test.com\r\n\r\n"
    head = b"POST /who HTTP/1.1\r\nHost: web.wall-test.com\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    say(80, head % (5 + len(inner)) + inner)


def two_hosts():
    say(80, b"GET /who HTTP/1.1\r\nHost: web.wall-test.com\r\nHost: git.wall-test.com\r\n\r\n")


def cut_up():
    say(80, *(bytes([byte]) for byte in b"GET /who HTTP/1.0\r\nHost: web.wall-test.com\r\n\r\n"))


def upload():
    """A chunked body that looks like a request."""
    body = b"GET /who HTTP/1.1\r\nHost: git.wall-test.com\r\n\r\n"
    head = b"PUT /upload/flight HTTP/1.1\r\nHost: web.wall-test.com\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    say(80, head, b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")


def unfinished():
    began = time.monotonic()
    say(80, b"GET / HT")
    print("after", round(time.monotonic() - began))


def other():
    say(80, b"EHLO x\r\n")


def server_first():
    print(*rest(connect(7103)))


def echo():
    connection = connect(7)
    connection.sendall(b"what is this?\r\n")
    print(connection.recv(100))


def datagrams():
    for port in (7, 443):
        datagram = socket.socket(family, socket.SOCK_DGRAM)
        datagram.settimeout(5)
        datagram.connect(address(port))
        datagram.send(b"hello")
        try:
            print(port, datagram.recv(100))
        except OSError as error:
            print(port, type(error).__name__, error.errno)


def requests():
    from pip._vendor import requests

    session = requests.Session()
    for host in (WEB, GIT):
        url = "http://%s/who" % (WEB if family == socket.AF_INET else WEB)
        answer = session.get(url, headers={"Host": host}, timeout=20)
        print(answer.status_code, answer.json()["code"] if answer.status_code == 403 else answer.text.strip())


globals()[sys.argv[2]]()
