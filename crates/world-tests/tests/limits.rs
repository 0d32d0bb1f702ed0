//! Rates and budgets as real clients meet them: iperf3, curl, ping, and sockets.

use std::sync::{Mutex, PoisonError};

use cofferdam_world_tests::{Family, Ran, World, long};

/// A rate in bits per second and how it is asked for: a twentieth of a second's worth in a twentieth of a second, so that
/// what passes at the start is small beside the rest.
fn flags(way: &str, bits: u64) -> String {
    format!("--quiet --net-{way}-bandwidth {}/50ms", bits / 8 / 20)
}

fn rates() -> &'static [u64] {
    if long() {
        &[1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 5_000_000_000]
    } else {
        &[1_000_000, 100_000_000, 1_000_000_000]
    }
}

fn seconds() -> &'static str {
    if long() { "10" } else { "2" }
}

/// No more than the bound in any case. How much less depends on the machine in a short run: it may be busy for a while.
#[track_caller]
fn assert_rate(ran: &Ran, measured: f64, bits: u64) {
    let share = measured / (bits as f64);
    let (least, most) = if long() { (0.97, 1.03) } else { (0.6, 1.08) };
    println!("{bits} bit/s: measured {share:.4} of it");
    assert!((least..=most).contains(&share), "{share} of {bits} bit/s\n{ran}");
}

/// The number behind `field` behind `part` in iperf3's JSON.
fn number(ran: &Ran, part: &str, field: &str) -> f64 {
    let text = ran.stdout();
    let end = text.find("\"end\":\t{").and_then(|at| text.get(at..)).unwrap_or_default();
    let part = end.find(&format!("\"{part}\":")).and_then(|at| end.get(at..)).unwrap_or_default();
    let value = part.split(&format!("\"{field}\":")).nth(1).unwrap_or_default();
    let value = value.split([',', '}', '\n']).next().unwrap_or_default().trim();
    value.parse().unwrap_or_else(|_| panic!("no {field}\n{ran}"))
}

/// One at a time: the server refuses a second client.
fn iperf3(family: Family, flags: &str, arguments: &[&str]) -> Ran {
    static SERVER: Mutex<()> = Mutex::new(());
    let _alone = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = World::shared().sandbox().flags(flags);
    let command = [&["iperf3", family.flag(), "-J", "-t", seconds(), "-c", family.web()][..], arguments].concat();
    let ran = sandbox.run(&command);
    ran.exits(0).never_says("\"error\"");
    ran
}

#[test]
fn iperf3_finds_the_rate_that_was_asked_for() {
    for bits in rates() {
        for family in Family::BOTH {
            for (way, arguments) in [("egress", &[][..]), ("ingress", &["-R"][..])] {
                let ran = iperf3(family, &flags(way, *bits), arguments);
                assert_rate(&ran, number(&ran, "sum_received", "bits_per_second"), *bits);
            }
        }
    }
    // Several streams share it.
    for family in Family::BOTH {
        for (way, arguments) in [("egress", &["-P4"][..]), ("ingress", &["-P4", "-R"])] {
            let ran = iperf3(family, &flags(way, 20_000_000), arguments);
            assert_rate(&ran, number(&ran, "sum_received", "bits_per_second"), 20_000_000);
        }
    }
}

#[test]
fn datagrams_find_the_rate_that_was_asked_for() {
    // Three times the rate goes to a server that sends it back; what comes is what both directions let pass.
    for (family, number) in [(Family::V4, "2"), (Family::V6, "10")] {
        let program = format!(
            "import socket, time, select
s = socket.socket({number}, socket.SOCK_DGRAM); s.connect(('{}', 7)); s.setblocking(False)
seconds, sent, got, start = {}, 0, 0, time.monotonic()
def hear():
    global got
    try:
        while True: s.recv(2000); got += 1
    except BlockingIOError: pass
while time.monotonic() - start < seconds:
    while sent < (time.monotonic() - start) * 1500: s.send(bytes(1000)); sent += 1
    select.select([s], [], [], 0.002); hear()
took = time.monotonic() - start
while select.select([s], [], [], 0.5)[0]: hear()
print(got * 8000 / took)",
            family.web(),
            seconds()
        );
        for way in ["egress", "ingress"] {
            let ran = World::shared().sandbox().flags(&flags(way, 4_000_000)).run(&["python3", "-c", &program]);
            let measured = ran.exits(0).stdout().trim().parse().expect("the program prints a number");
            assert_rate(&ran, measured, 4_000_000);
        }
    }
}

#[test]
fn the_other_direction_is_as_fast_as_ever() {
    for family in Family::BOTH {
        let ran = iperf3(family, &flags("egress", 1_000_000), &["-R"]);
        let measured = number(&ran, "sum_received", "bits_per_second");
        assert!(measured > 50_000_000.0, "{measured}\n{ran}");
    }
}

#[test]
fn a_burst_passes_once() {
    // 200 kB at 50 kB a second would take three seconds and more; the burst takes them at once, and only the first time.
    for family in Family::BOTH {
        let program = format!(
            "import socket, time
def send(port_of):
    s = socket.create_connection(('{}', 7), 10); start = time.monotonic(); left = 200000
    s.sendall(bytes(left))
    while left: left -= len(s.recv(65536)) or exit('closed')
    return time.monotonic() - start
first = send(0); second = send(0)
print('first', first < 2, 'second', second > 2, first, second)",
            family.web()
        );
        let flags = "--quiet --net-egress-bandwidth 50000 --net-egress-bandwidth-burst 200000";
        let ran = World::shared().sandbox().flags(flags).run(&["python3", "-c", &program]);
        ran.exits(0).says("first True second True");
    }
}

#[test]
fn a_reset_arrives_as_a_reset_while_a_rate_is_used_up() {
    // The server's byte takes all there is for an hour, and the reset comes behind it.
    for family in Family::BOTH {
        let program = format!(
            "import socket
s = socket.create_connection(('{}', 7110), 5); s.recv(1); s.sendall(b'x')
try: print('end' if s.recv(1) == b'' else 'byte')
except ConnectionResetError: print('reset')",
            family.web()
        );
        let flags = "--quiet --events - --net-ingress-bandwidth 1/1h";
        let ran = World::shared().sandbox().flags(flags).run(&["python3", "-c", &program]);
        ran.exits(0).says("reset\n").says("\"by\":\"remote_reset\"");
    }
}

#[test]
fn pings_over_the_rate_are_lost_and_told() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--quiet --net-egress-ops 2/1h --events e.jsonl");
        let ran = sandbox.sh(&format!("ping {} -c5 -i0.2 -W1 {} || true", family.flag(), family.web()));
        ran.exits(0).says("5 packets transmitted, 2 received");
        let sandbox = World::shared().sandbox().flags("--quiet --net-egress-ops 2/1h --events -");
        let ran = sandbox.sh(&format!("ping {} -c5 -i0.2 -W1 {} || true", family.flag(), family.web()));
        ran.exits(0).says("\"type\":\"limit.reached\",\"limit\":\"egress_ops\",\"bound\":2,\"count\":1");
    }
}

#[test]
fn a_budget_ends_transfers_and_says_so() {
    for family in Family::BOTH {
        let url = match family {
            Family::V4 => format!("http://{}/files/big", family.web()),
            Family::V6 => format!("http://[{}]/files/big", family.web()),
        };
        let script =
            format!("curl -sS -o got '{url}' || echo first $?; wc -c <got; curl -sS '{url}' || echo second $?");
        let ran = World::shared().sandbox().flags("--net-budget 100K:ingress --events -").sh(&script);
        // Received what there was until the reset (56), and then refused (7).
        ran.exits(0).says("first 56").says("second 7").says("\"by\":\"budget\"");
        ran.says("\"limit\":\"budget\",\"bound\":102400,\"count\":1")
            .says("\"text\":\"budget of 102400 bytes ingress\"");
        ran.complains("the budget of 102400 bytes ingress is used up");
    }
}

#[test]
fn a_budget_for_a_name_leaves_others_alone() {
    let script = "curl -sS -o got http://web.wall-test.com/files/big || echo first $?
        curl -sS -o got http://93.184.215.14/ || echo by address $?
        curl -sS -o /dev/null http://151.101.1.69/files/big && echo other fine";
    let ran = World::shared().sandbox().flags("--net-budget 100K@web.wall-test.com").sh(script);
    ran.exits(0).says("first 56").says("by address 7").says("other fine");
}

#[test]
fn connections_over_the_bound_are_reset_and_told() {
    for family in Family::BOTH {
        let program = format!(
            "import socket
a = [socket.create_connection(('{0}', 7), 5) for _ in range(3)]
try: socket.create_connection(('{0}', 7), 5)
except ConnectionRefusedError: print('refused')
a.pop().close()",
            family.web()
        );
        let sandbox = World::shared().sandbox().flags("--quiet --max-connections 3 --events -");
        let ran = sandbox.run(&["python3", "-c", &program]);
        ran.exits(0).says("refused").says("\"limit\":\"connections\",\"bound\":3,\"count\":1");
    }
}

#[test]
fn without_descriptors_connections_are_reset_and_told() {
    for family in Family::BOTH {
        // 160 descriptors: a hundred are kept free, and a connection takes two.
        let program = format!(
            "import socket
open, refused = [], 0
for _ in range(40):
    try: open.append(socket.create_connection(('{}', 7), 5))
    except ConnectionRefusedError: refused += 1
print(len(open), 'open', refused, 'refused')",
            family.web()
        );
        let sandbox = World::shared().sandbox().flags("--quiet --events -").broken("ulimit -n 160");
        let ran = sandbox.run(&["python3", "-c", &program]);
        ran.exits(0).says("30 open 10 refused").says("\"limit\":\"connections\",\"bound\":30");
    }
}

#[test]
fn mappings_over_the_bound_make_room_and_are_told() {
    for (family, number) in [(Family::V4, "2"), (Family::V6, "10")] {
        let program = format!(
            "import socket
def ask(s):
    s.send(b'x'); return s.recv(9)
all = []
for _ in range(4):
    s = socket.socket({number}, socket.SOCK_DGRAM); s.settimeout(5); s.connect(('{}', 7)); ask(s); all.append(s)
print('oldest again', ask(all[0]))",
            family.web()
        );
        let sandbox = World::shared().sandbox().flags("--quiet --max-udp-connections 3 --events -");
        let ran = sandbox.run(&["python3", "-c", &program]);
        ran.exits(0).says("oldest again b'x'").says("\"limit\":\"udp_mappings\",\"bound\":3").says("\"by\":\"limit\"");
    }
}
