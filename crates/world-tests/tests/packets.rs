//! Everything below HTTP: sockets and their ends, datagrams, ping, traceroute, throughput.

use std::fs;
use std::time::Duration;

use cofferdam_world_tests::{Family, World};

#[test]
fn every_manner_of_a_server_looks_as_it_does_without_a_sandbox() {
    let world = World::shared();
    for family in ["4", "6"] {
        let program = world.program("sockets.py");
        let sandbox = world.sandbox();
        fs::write(sandbox.folder().join("sockets.py"), program).unwrap();
        let inside = sandbox.run(&["python3", "sockets.py", family]);
        let direct = world.sandbox();
        fs::write(direct.folder().join("sockets.py"), program).unwrap();
        let outside = direct.without_a_sandbox(&["python3", "sockets.py", family]);
        outside.exits(0).says("refused: ECONNREFUSED").says("resets: ECONNRESET").says("silent: silence");
        outside.says("half_close_by_the_client: b'300000'").says("it took 200000 bytes").says("never_answers: silence");
        let urgent = "['[400000, 700001] of 900002', '[0, 2] of 3', '[3, 4] of 10']";
        outside.says(&format!("urgent_in_line_to_the_server: {urgent}"));
        outside.says(&format!("urgent_in_line_to_the_client: {urgent}"));
        outside.says("udp_closed: ECONNREFUSED").says("time_service: 48 bytes, stratum 2, for b'originat'");
        inside.exits(0);
        assert_eq!(inside.stdout(), outside.stdout(), "{inside}");
    }
}

#[test]
fn denied_datagrams_are_answered_with_prohibited() {
    // What Linux makes of "administratively prohibited" differs by family: icmp(7) and RFC 4443, 3.1.
    for (family, number, said) in [(Family::V4, "2", "EHOSTUNREACH"), (Family::V6, "10", "EACCES")] {
        let program = format!(
            "import socket, errno
s = socket.socket({number}, socket.SOCK_DGRAM); s.settimeout(3); s.connect(('{}', 7)); s.send(b'x')
try: print(s.recv(10))
except OSError as e: print(errno.errorcode.get(e.errno, e))",
            family.web()
        );
        let sandbox = World::shared().sandbox().flags("--net-default-egress deny");
        sandbox.run(&["python3", "-c", &program]).exits(0).says(said);
        let quiet = World::shared().sandbox().flags("--net-default-egress deny --deny-with drop");
        quiet.run(&["python3", "-c", &program]).exits(0).says("timed out");
    }
}

#[test]
fn denied_connections_of_a_program_are_refused() {
    for family in Family::BOTH {
        let program = format!("import socket; socket.create_connection(('{}', 7), 3)", family.web());
        let sandbox = World::shared().sandbox().flags("--net-default-egress deny");
        sandbox.run(&["python3", "-c", &program]).exits(1).complains("ConnectionRefusedError");
    }
}

#[test]
fn ping_is_answered() {
    for family in Family::BOTH {
        let ran = World::shared().sandbox().run(&["ping", family.flag(), "-c2", "-i0.2", "-W3", family.web()]);
        ran.exits(0).says(" 0% packet loss");
    }
}

#[test]
fn ping_of_a_name_is_answered() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--net public");
        sandbox.run(&["ping", family.flag(), "-c1", "-W3", "web.wall-test.com"]).exits(0).says(" 0% packet loss");
    }
}

#[test]
fn ping_of_a_silent_address_hears_nothing() {
    for family in Family::BOTH {
        let ran = World::shared().sandbox().run(&["ping", family.flag(), "-c1", "-W1", family.silent()]);
        ran.exits(1).says("100% packet loss");
    }
}

#[test]
fn denied_ping_is_told_so() {
    for (family, said) in [(Family::V4, "Packet filtered"), (Family::V6, "Administratively prohibited")] {
        let sandbox = World::shared().sandbox().flags("--net-default-egress deny");
        let ran = sandbox.run(&["ping", family.flag(), "-c1", "-W3", family.web()]);
        ran.exits(1).says(said).within(Duration::from_secs(3));
    }
}

#[test]
fn traceroute_ends_without_showing_a_path() {
    for family in Family::BOTH {
        let ran =
            World::shared().sandbox().run(&["traceroute", family.flag(), "-n", "-q1", "-w1", "-m4", family.web()]);
        ran.exits(0).never_says("192.168.77").within(Duration::from_secs(10));
    }
}

#[test]
fn denied_traceroute_is_refused_by_the_gateway() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--net-default-egress deny");
        let ran = sandbox.run(&["traceroute", family.flag(), "-n", "-q1", "-w1", "-m4", family.web()]);
        // As with any router that filters: what would have ended its life there hears that, what would have gone on hears !X.
        ran.exits(0).says("!X").never_says("\n 3 ").within(Duration::from_secs(5));
    }
}

#[test]
fn iperf3_measures_both_ways_with_many_streams() {
    for family in Family::BOTH {
        for reverse in [&["-t1", "-P4"][..], &["-t1", "-P4", "-R"]] {
            let command = [&["iperf3", family.flag(), "-J", "-c", family.web()][..], reverse].concat();
            let ran = World::shared().sandbox().run(&command);
            ran.exits(0).says("sum_received").never_says("\"error\"");
        }
    }
}

#[test]
fn denied_iperf3_is_refused() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--net-default-egress deny");
        sandbox.run(&["iperf3", family.flag(), "-c", family.web()]).exits(1).complains("Connection refused");
    }
}

#[test]
fn a_datagram_that_is_too_big_for_the_path_is_told_so_or_cut_as_its_sender_wants() {
    // The sandbox's link carries 4000 bytes, the host's 1500. The options' numbers are those of <linux/in.h> and in6.h.
    for (family, number, level, discover, mtu) in
        [(Family::V4, "2", "0", "10", "14"), (Family::V6, "10", "41", "23", "24")]
    {
        let program = format!(
            "import socket, errno
DONT, WANT, DO = 0, 1, 2
def echo(size, mode):
    s = socket.socket({number}, socket.SOCK_DGRAM); s.settimeout(3); s.connect(('{}', 7))
    s.setsockopt({level}, {discover}, mode); s.send(bytes(size))
    try: return str(len(s.recv(65535)))
    except OSError as e: return errno.errorcode.get(e.errno, str(e)) + ' ' + str(s.getsockopt({level}, {mtu}))
print('small', echo(1000, DO), 'fits', echo(1440, DO))
if {number} == 2: print('cut by the host', echo(3000, DONT))
print('refused', echo(3000, DO))
print('cut by the sender', echo(3000, WANT))",
            family.web()
        );
        let ran = World::shared().sandbox().flags("--mtu 4000").run(&["python3", "-c", &program]);
        ran.exits(0).says("small 1000 fits 1440").says("refused EMSGSIZE 1500").says("cut by the sender 3000");
        if family == Family::V4 {
            ran.says("cut by the host 3000");
        }
    }
}
