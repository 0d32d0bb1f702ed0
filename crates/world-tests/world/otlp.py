"""A collector for OTLP over HTTP in JSON, which takes nothing that the protocol does not have.

  otlp.py MANNER ADDRESS PORT OUT [CERTIFICATE KEY]

MANNER is `good`, `busy` (the first request for logs gets 503), `picky` (every request gets 400), `silent` (no answer at all) or
`rejects` (each request is taken but for one record). Says `up` when it listens. Every request that is right is written to OUT as one
line, `{"path": …, "body": …}`; what is wrong as `{"wrong": …}`.

Names and types are those of opentelemetry-proto 1.5 (logs.proto, metrics.proto, common.proto) in the JSON mapping of OTLP: fields in camel
case, 64-bit integers as decimal strings, enums as numbers.
"""
import http.server
import json
import re
import socket
import ssl
import sys
import threading

MANNER, ADDRESS, PORT, OUT, *TLS = sys.argv[1:]
lock = threading.Lock()
asked = {"logs": 0}


class Wrong(Exception):
    pass


def check(condition, *what):
    if not condition:
        raise Wrong(" ".join(map(str, what)))


def message(value, where, **fields):
    """An object with these fields and no others; one with an underscore behind its name has to be there."""
    check(isinstance(value, dict), where, "is no object:", value)
    known = {name.rstrip("_"): kind for name, kind in fields.items()}
    for name in value:
        check(name in known, where, "has no field", name)
    for name, kind in fields.items():
        if name.endswith("_"):
            check(name[:-1] in value, where, "lacks", name[:-1])
        if name.rstrip("_") in value:
            kind(value[name.rstrip("_")], f"{where}.{name.rstrip('_')}")


def several(kind):
    def look(value, where):
        check(isinstance(value, list), where, "is no list")
        for number, one in enumerate(value):
            kind(one, f"{where}[{number}]")
    return look


def text(value, where):
    check(isinstance(value, str), where, "is no text:", value)


def truth(value, where):
    check(isinstance(value, bool), where, "is no bool:", value)


def double(value, where):
    check(isinstance(value, (int, float)) and not isinstance(value, bool), where, "is no number:", value)


def enum(low, high):
    return lambda value, where: check(type(value) is int and low <= value <= high, where, "is no such number:", value)


def fixed64(value, where):
    check(isinstance(value, str) and re.fullmatch("0|[1-9][0-9]*", value) and int(value) < 2**64, where, "is no fixed64:", value)


def int64(value, where):
    check(isinstance(value, str) and re.fullmatch("0|-?[1-9][0-9]*", value) and -2**63 <= int(value) < 2**63, where, "is no int64:", value)


def any_value(value, where):
    message(value, where, stringValue=text, boolValue=truth, intValue=int64, doubleValue=double,
            arrayValue=lambda value, where: message(value, where, values_=several(any_value)))
    check(len(value) == 1, where, "is not one value:", value)


def key_value(value, where):
    message(value, where, key_=text, value_=any_value)


def unique(value, where):
    several(key_value)(value, where)
    keys = [pair["key"] for pair in value]
    check(len(keys) == len(set(keys)), where, "has a key twice")


def resource(value, where):
    message(value, where, attributes_=unique)
    check(any(pair == {"key": "service.name", "value": {"stringValue": "cofferdam"}} for pair in value["attributes"]), where, "is nobody")


def scope(value, where):
    message(value, where, name_=text, version_=text)


def log_record(value, where):
    message(value, where, timeUnixNano_=fixed64, observedTimeUnixNano_=fixed64, severityNumber_=enum(1, 24), severityText_=text,
            body_=any_value, attributes_=unique, eventName_=text)


def point(value, where):
    message(value, where, attributes_=unique, startTimeUnixNano_=fixed64, timeUnixNano_=fixed64, asInt_=int64)
    check(int(value["startTimeUnixNano"]) <= int(value["timeUnixNano"]), where, "ends before it begins")


def metric(value, where):
    message(value, where, name_=text, unit_=text, description_=text, sum_=lambda value, where: message(
        value, where, aggregationTemporality_=enum(1, 2), isMonotonic_=truth, dataPoints_=several(point)))


def logs(value):
    message(value, "logs", resourceLogs_=several(lambda value, where: message(value, where, resource_=resource, scopeLogs_=several(
        lambda value, where: message(value, where, scope_=scope, logRecords_=several(log_record))))))


def metrics(value):
    message(value, "metrics", resourceMetrics_=several(lambda value, where: message(value, where, resource_=resource, scopeMetrics_=several(
        lambda value, where: message(value, where, scope_=scope, metrics_=several(metric))))))


class Collector(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if MANNER == "silent":
            threading.Event().wait()
        if MANNER == "picky":
            return self.answer(400, b"{}")
        if self.path == "/base/v1/logs":
            asked["logs"] += 1
            if MANNER == "busy" and asked["logs"] == 1:
                return self.answer(503, b"{}")
        try:
            check(self.headers["Content-Type"] == "application/json", "content type", self.headers["Content-Type"])
            value = json.loads(body)
            look = {"/base/v1/logs": logs, "/base/v1/metrics": metrics}.get(self.path)
            check(look, "no such path", self.path)
            look(value)
            line = {"path": self.path, "body": value}
        except (Wrong, ValueError) as error:
            line = {"wrong": str(error)}
        with lock, open(OUT, "a") as out:
            out.write(json.dumps(line) + "\n")
        partial = b'{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"one too many"}}'
        self.answer(200, partial if MANNER == "rejects" and "logs" in self.path else b"{}")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET


server = Server((ADDRESS, int(PORT)), Collector)
if TLS:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*TLS)
    server.socket = context.wrap_socket(server.socket, server_side=True)
print("up", server.server_address[1], flush=True)
server.serve_forever()
