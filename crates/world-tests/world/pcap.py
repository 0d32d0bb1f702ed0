"""Reads what --pcap wrote with tshark, and compares it with the events of the same run.

  pcap.py comments FILE EVENTS    every decision stands on a packet of its flow, and no other does
  pcap.py payload FILE GOT        what a server sent in the first connection that got much is what its client wrote
  pcap.py whole FILE              it can be read to its end, and says what is missing
"""
import collections
import json
import re
import subprocess
import sys


def tshark(*words):
    ran = subprocess.run(["tshark", "-n", *words], capture_output=True, text=True)
    # As root it warns; that the file is cut short would stand there, too.
    said = [line for line in ran.stderr.splitlines() if "Running as user" not in line]
    assert ran.returncode == 0 and not said, (ran.returncode, said)
    return ran.stdout


def packets(path, *more):
    names = ["frame.time_epoch", "frame.packet_flags_direction", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst",
             "tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport", "frame.comment", "_ws.malformed", "_ws.expert.severity", *more]
    fields = [word for name in names for word in ("-e", name)]
    for line in tshark("-r", path, "-T", "fields", "-E", "separator=\x1f", "-E", "occurrence=a", "-E", "aggregator=\x1e", *fields).split("\n")[:-1]:
        yield dict(zip(names, line.split("\x1f")))


def ends(packet):
    """As events have them: the packet's ends, whichever is the guest's; of an ICMP error those of the error itself."""
    def end(which):
        address = (packet[f"ip.{which}"] or packet[f"ipv6.{which}"]).split("\x1e")[0]
        port = (packet[f"tcp.{which}port"] or packet[f"udp.{which}port"] or "0").split("\x1e")[0]
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return {end("src"), end("dst")}


def comments(path, events):
    events = [json.loads(line) for line in open(events)]
    told, late = {}, set()
    for event in events:
        if event["type"] == "flow.denied":
            told["denied " + event["decision"]] = {event["guest"], event["remote"]}
            # It was made when the flow was open: it stands on the next packet, where one follows.
            if "shown" in event:
                late.add("denied " + event["decision"])
        elif event["type"] == "dns.query" and event["decision"]:
            told["denied " + event["decision"]] = None
        elif event["type"] in ("flow.opened", "flow.failed"):
            told[f"flow {event['flow']}"] = {event["guest"], event["remote"]}
    guests = {end for ends in told.values() if ends for end in ends}
    seen, before, ways = collections.Counter(), 0.0, collections.Counter()
    for packet in packets(path):
        assert not packet["_ws.malformed"], packet
        # Notes, and warnings about resets; 0x00800000 is an error.
        assert all(int(level) < 0x00800000 for level in filter(None, packet["_ws.expert.severity"].split("\x1e"))), packet
        # They stand as they came by; two processors may look at the clock in another order.
        assert before <= float(packet["frame.time_epoch"]) + 0.001, packet
        before = float(packet["frame.time_epoch"])
        ways[packet["frame.packet_flags_direction"]] += 1
        for comment in filter(None, packet["frame.comment"].split("\x1e")):
            name = (re.match(r"denied \w+", comment) or re.search(r"flow \d+$", comment) or [""])[0]
            if not name:
                assert comment.startswith("allowed look-up of "), comment
                assert "53" in (packet["udp.dstport"] or packet["tcp.dstport"]), packet
                continue
            assert name in told, (comment, told)
            assert told[name] is None or told[name] == ends(packet), (comment, told[name], packet)
            seen[name] += 1
            print(comment)
    assert told.keys() - late <= seen.keys() and max(seen.values()) == 1, (seen, told)
    assert set(ways) == {"1", "2"} or set(ways) == {"0x00000001", "0x00000002"}, ways
    print("alike", len(told))


def payload(path, got):
    got = open(got, "rb").read()
    most, stream = max((int(packet["frame.len"]), packet["tcp.stream"]) for packet in packets(path, "frame.len", "tcp.stream") if packet["tcp.stream"])
    lines = tshark("-r", path, "-q", "-z", f"follow,tcp,raw,{stream}").splitlines()
    answer = bytes.fromhex("".join(line.strip() for line in lines if line.startswith("\t")))
    head, body = answer.split(b"\r\n\r\n", 1)
    assert body == got, (len(body), len(got))
    print("whole", len(body), "largest", most)


def whole(path):
    count = sum(1 for _ in packets(path))
    data = open(path, "rb").read()
    statistics, at = None, 0
    while at < len(data):
        kind, length = (int.from_bytes(data[at + n:at + n + 4], "little") for n in (0, 4))
        assert data[at + length - 4:at + length] == data[at + 4:at + 8], at
        assert statistics is None, "nothing follows the statistics"
        if kind == 5:
            statistics, option = {}, at + 20
            while option < at + length - 4:
                code, size = (int.from_bytes(data[option + n:option + n + 2], "little") for n in (0, 2))
                statistics[code] = int.from_bytes(data[option + 4:option + 4 + size], "little")
                option += 4 + (size + 3) // 4 * 4
        at += length
    if statistics is None:
        return print("no end", count)
    assert statistics[8] == count and statistics[4] == count + statistics[5], (statistics, count)
    print("end", "missing" if statistics[5] else "complete")


globals()[sys.argv[1]](*sys.argv[2:])
