//! dig: over UDP and TCP, both record types, allowed and denied.

use std::time::Duration;

use std::fs;

use cofferdam_world_tests::{Family, World};

/// The script of one question to each of the resolvers that the sandbox was given.
const ASK_EACH: &str = r#"for server in $(sed -n 's/^nameserver //p' /etc/resolv.conf); do dig +time=2 +tries=1 $FLAGS @$server $ASK; done"#;

#[test]
fn dig_asks_each_resolver_over_both_transports() {
    for transport in ["+notcp", "+tcp"] {
        for (qtype, answer) in [("A", Family::V4.web()), ("AAAA", Family::V6.web())] {
            let script = format!("FLAGS='+short {transport}' ASK='web.wall-test.com {qtype}'; {ASK_EACH}");
            World::shared().sandbox().sh(&script).exits(0).says(answer);
        }
    }
}

#[test]
fn a_sandbox_has_a_resolver_of_each_family() {
    let ran = World::shared().sandbox().run(&["cat", "/etc/resolv.conf"]);
    let servers: Vec<String> =
        ran.stdout().lines().filter_map(|line| line.strip_prefix("nameserver ").map(str::to_owned)).collect();
    assert!(servers.iter().any(|server| server.contains('.')), "no IPv4 resolver\n{ran}");
    if !World::shared().is_direct() {
        assert!(servers.iter().any(|server| server.contains(':')), "no IPv6 resolver\n{ran}");
    }
}

#[test]
fn a_name_that_does_not_exist_is_nxdomain() {
    World::shared().sandbox().run(&["dig", "absent.wall-test.com"]).exits(0).says("status: NXDOMAIN");
}

#[test]
fn a_name_without_that_record_is_no_error() {
    let ran = World::shared().sandbox().run(&["dig", "v4.wall-test.com", "AAAA"]);
    ran.exits(0).says("status: NOERROR").says("ANSWER: 0");
}

#[test]
fn other_types_pass() {
    World::shared().sandbox().run(&["dig", "+short", "txt.wall-test.com", "TXT"]).exits(0).says("hello");
}

#[test]
fn denied_names_are_nxdomain_on_both_transports() {
    for transport in ["+notcp", "+tcp"] {
        World::shared()
            .sandbox()
            .flags("--allow other.wall-test.com")
            .run(&["dig", "+tries=1", transport, "web.wall-test.com"])
            .exits(0)
            .says("status: NXDOMAIN")
            .says("EDE: 15")
            .within(Duration::from_secs(5));
    }
}

#[test]
fn denied_names_are_never_asked_for_outside() {
    // A resolver of the guest's own choice does not get the question either.
    for family in Family::BOTH {
        let server = format!("@{}", if family == Family::V4 { "93.184.215.53" } else { "2606:2800:21f:cb07::53" });
        World::shared()
            .sandbox()
            .flags("--allow other.wall-test.com")
            .run(&["dig", "+tries=1", "+time=1", &server, "web.wall-test.com"])
            .never_says(Family::V4.web());
    }
}

#[test]
fn denied_without_a_network_nobody_can_be_asked() {
    World::shared()
        .sandbox()
        .flags("--no-net")
        .run(&["dig", "+tries=1", "+time=1", "@93.184.215.53", "web.wall-test.com"])
        .fails()
        .never_says(Family::V4.web());
}

#[test]
fn denied_names_without_end_are_counted_in_full_and_told_in_bounds() {
    // Each answer is waited for, so that none is lost on the way; one name again and again, and others between.
    let program = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(20)
gateway = [line.split()[1] for line in open('/etc/resolv.conf') if line.startswith('nameserver') and ':' not in line][0]
s.connect((gateway, 53))
for n in range(3000):
    for name in (b'same', b'n%d' % n):
        question = bytes([len(name)]) + name + b'\x07example\x00\x00\x01\x00\x01'
        s.send(n.to_bytes(2, 'big') + b'\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00' + question)
        assert s.recv(512)[3] & 15 == 3
"#;
    let sandbox =
        World::shared().sandbox().flags("--net-default deny --events events.json --json-summary summary.json");
    let folder = sandbox.folder().to_owned();
    sandbox.run(&["python3", "-c", program]).exits(0);
    let summary = fs::read_to_string(folder.join("summary.json")).expect("the run has left a summary");
    for exact in ["\"dns_denied\": 6000", "\"dns_queries\": 6000"] {
        assert!(summary.contains(exact), "{exact} is not in {summary}");
    }
    let events = fs::read_to_string(folder.join("events.json")).expect("the run has left events");
    let nanoseconds = |line: &str| line.split_once("\"mono_ns\":")?.1.split_once(',')?.0.parse::<usize>().ok();
    let times: Vec<usize> = events.lines().filter(|line| line.contains("\"dns.")).filter_map(nanoseconds).collect();
    let took = times.last().zip(times.first()).map_or(0, |(last, first)| last - first);
    // In each second a thousand are told one by one, 256 kinds with a count, and the rest together.
    let bound = (took / 1_000_000_000 + 2) * 1257;
    assert!(times.len() <= bound, "{} events, not {bound}", times.len());
    assert!(events.contains("\"count\":"), "nothing was told together");
}

/// The script of one request by name to a machine inside.
fn fetch_inside(family: Family) -> String {
    format!("curl {} --silent --show-error --max-time 10 http://inside.wall-test.com/", family.flag())
}

#[test]
fn a_rule_with_allow_private_reaches_a_machine_inside_by_name() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--allow inside.wall-test.com:80:allow-private");
        sandbox.sh(&fetch_inside(family)).exits(0).says("hello");
    }
}

#[test]
fn denied_is_a_machine_inside_by_name_without_allow_private() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--allow inside.wall-test.com:80");
        sandbox.sh(&fetch_inside(family)).exits(6);
    }
}

#[test]
fn denied_is_another_port_of_a_machine_inside_by_a_rule_without_allow_private() {
    for family in Family::BOTH {
        let flags = "--allow inside.wall-test.com:81:allow-private --allow *.wall-test.com:80";
        // The name resolves, and the connection is refused: 6 would be the name.
        World::shared().sandbox().flags(flags).sh(&fetch_inside(family)).exits(7).never_says("hello");
    }
}

#[test]
fn denied_is_an_address_that_was_kept_for_too_long_and_a_new_look_up_helps() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--allow brief.wall-test.com --net-conf brief.toml --events -");
        let config = "[network]\ndefault_egress = \"deny\"\n[network.dns]\npin_floor_ms = 1000\n";
        std::fs::write(sandbox.folder().join("brief.toml"), config).unwrap();
        // The address is kept until it is refused, which is as soon as its pin has gone.
        let curl = format!("curl --silent {} --max-time 5", family.flag());
        let script = format!(
            "{curl} http://brief.wall-test.com/ || exit 90
            deadline=$(($(date +%s) + 20))
            while {curl} --resolve 'brief.wall-test.com:80:{}' http://brief.wall-test.com/ >/dev/null; do
                [ $(date +%s) -lt $deadline ] || exit 91
            done
            {curl} http://brief.wall-test.com/ >/dev/null && echo 'again it is open'",
            family.in_url(family.web())
        );
        let ran = sandbox.sh(&script);
        ran.exits(0).says("again it is open").says("\"look_up_again\":\"brief.wall-test.com\"");
        assert!(ran.stderr().contains("look brief.wall-test.com up again"), "{ran}");
    }
}

#[test]
fn denied_is_a_machine_inside_by_address_when_a_name_leads_there() {
    for family in Family::BOTH {
        // By name, and then with the address as the host that the request is for, which is answered with 403.
        let by_address = format!("curl --silent --fail --max-time 10 http://{}/", family.in_url(family.inside()));
        let script = format!("{} && {by_address}", fetch_inside(family));
        let sandbox = World::shared().sandbox().flags("--allow inside.wall-test.com:80:allow-private");
        sandbox.sh(&script).exits(22).says("hello");
    }
}
