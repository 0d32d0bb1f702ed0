//! dig: over UDP and TCP, both record types, allowed and denied.

use std::time::Duration;

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
