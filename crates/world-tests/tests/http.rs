//! curl and wget: both versions of HTTP, both families, allowed and denied.

use std::time::Duration;

use cofferdam_world_tests::{Family, World, long};

const GREETING: &str = "hello from the world";
/// A denial is answered at once; what is left is the start of a sandbox on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

#[test]
fn curl_speaks_http_1_to_an_address_by_default() {
    for family in Family::BOTH {
        let url = format!("http://{}/", family.in_url(family.web()));
        World::shared().sandbox().run(&["curl", "-sS", "--http1.1", &url]).exits(0).says(GREETING);
    }
}

#[test]
fn curl_speaks_http_1_and_2_to_an_allowed_name() {
    for family in Family::BOTH {
        for (version, spoken) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")] {
            World::shared()
                .sandbox()
                .flags("--allow web.wall-test.com")
                .run(&["curl", "-sS", "--cacert", "ca.pem", version, family.flag(), "https://web.wall-test.com/who"])
                .exits(0)
                .says(spoken)
                .says("web.wall-test.com");
        }
    }
}

#[test]
fn curl_sees_the_server_that_it_named() {
    // Certificate, name and address agree: nothing in between ends the TLS connection.
    World::shared()
        .sandbox()
        .run(&["curl", "-sS", "https://web.wall-test.com/"])
        .exits(60)
        .complains("unable to get local issuer certificate");
}

#[test]
fn denied_curl_by_name_cannot_resolve_it() {
    for family in Family::BOTH {
        World::shared()
            .sandbox()
            .flags("--allow other.wall-test.com")
            .run(&["curl", "-sS", family.flag(), "http://web.wall-test.com/"])
            .exits(6)
            .complains("Could not resolve host: web.wall-test.com")
            .within(AT_ONCE);
    }
}

#[test]
fn denied_curl_by_address_is_refused() {
    for family in Family::BOTH {
        let url = format!("http://{}/", family.in_url(family.web()));
        World::shared()
            .sandbox()
            .flags("--allow other.wall-test.com")
            .run(&["curl", "-sSv", &url])
            .exits(7)
            .complains("Connection refused")
            .within(AT_ONCE);
    }
}

#[test]
fn denied_curl_is_told_by_icmp_when_asked_to() {
    // What Linux makes of "administratively prohibited" differs by family: icmp(7) and RFC 4443, 3.1.
    for (family, said) in [(Family::V4, "No route to host"), (Family::V6, "Permission denied")] {
        let url = format!("http://{}/", family.in_url(family.web()));
        World::shared()
            .sandbox()
            .flags("--net-default-egress deny --deny-with icmp")
            .run(&["curl", "-sSv", &url])
            .exits(7)
            .complains(said)
            .within(AT_ONCE);
    }
}

#[test]
fn denied_curl_hears_nothing_when_asked_to() {
    for family in Family::BOTH {
        let url = format!("http://{}/", family.in_url(family.web()));
        World::shared()
            .sandbox()
            .flags("--net-default-egress deny --deny-with drop")
            .run(&["curl", "-sS", "--connect-timeout", "2", &url])
            // curl's number for "timed out"; its words differ from version to version.
            .exits(28);
    }
}

#[test]
fn denied_without_a_network_is_unreachable() {
    for family in Family::BOTH {
        let url = format!("http://{}/", family.in_url(family.web()));
        World::shared()
            .sandbox()
            .flags("--no-net")
            .run(&["curl", "-sSv", &url])
            .exits(7)
            .complains("Network is unreachable")
            .within(AT_ONCE);
    }
    World::shared().sandbox().flags("--no-net").run(&["curl", "-sS", "http://web.wall-test.com/"]).exits(6);
}

#[test]
fn denied_by_default_are_private_addresses_metadata_and_the_lan() {
    for address in ["10.77.0.5", "169.254.169.254", "192.168.77.50", "[fd12:3456:789a::5]"] {
        let url = format!("http://{address}/");
        World::shared().sandbox().run(&["curl", "-sSv", &url]).exits(7).complains("Connection refused").within(AT_ONCE);
    }
}

#[test]
fn curl_reaches_a_private_address_that_a_rule_allows() {
    for family in Family::BOTH {
        let url = format!("http://{}/", family.in_url(family.inside()));
        let allow = format!("--allow {}:80", family.in_url(family.inside()));
        World::shared().sandbox().flags(&allow).run(&["curl", "-sS", &url]).exits(0).says(GREETING);
    }
}

#[test]
fn denied_is_one_name_and_not_its_neighbour() {
    let sandbox = World::shared().sandbox().flags("--net public --deny other.wall-test.com");
    sandbox
        .sh("curl -sS http://web.wall-test.com/; curl -sS http://other.wall-test.com/ || echo refused $?")
        .exits(0)
        .says(GREETING)
        .says("refused 6");
}

#[test]
fn a_download_arrives_whole() {
    let world = World::shared();
    for family in Family::BOTH {
        let script =
            format!("curl -sS --cacert ca.pem {} https://web.wall-test.com/files/big | sha256sum", family.flag());
        world.sandbox().patience(transfer_limit()).sh(&script).exits(0).says(&world.big_file_digest());
    }
}

#[test]
fn an_upload_arrives_whole() {
    let world = World::shared();
    for (number, family) in Family::BOTH.into_iter().enumerate() {
        // Its name is new in this run, so what is read back is what was sent.
        let target = format!("http://{}/upload/{}-{number}", family.in_url(family.web()), std::process::id());
        let script = format!(
            "T=$(mktemp -d); curl -sS http://web.wall-test.com/files/big -o $T/big; sha256sum <$T/big
             curl -sS -f -T $T/big {target}; curl -sS {target} | sha256sum"
        );
        let ran = world.sandbox().patience(transfer_limit()).sh(&script);
        ran.exits(0);
        assert_eq!(ran.stdout().matches(&world.big_file_digest()).count(), 2, "{ran}");
    }
}

#[test]
fn two_hundred_connections_at_once_all_get_an_answer() {
    for family in Family::BOTH {
        let url = format!("http://{}/who?[1-200]", family.in_url(family.web()));
        let ran = World::shared().sandbox().run(&[
            "curl",
            "-sS",
            "--no-keepalive",
            "-H",
            "Connection: close",
            "--parallel",
            "--parallel-immediate",
            "--parallel-max",
            "200",
            &url,
        ]);
        ran.exits(0);
        assert_eq!(ran.stdout().matches("HTTP/1.1").count(), 200, "{ran}");
    }
}

#[test]
fn wget_fetches_from_an_allowed_name() {
    for family in Family::BOTH {
        World::shared()
            .sandbox()
            .flags("--allow web.wall-test.com")
            .run(&["wget", "-q", "-O-", "--ca-certificate=ca.pem", family.flag(), "https://web.wall-test.com/"])
            .exits(0)
            .says(GREETING);
    }
}

#[test]
fn denied_wget_fails_as_on_any_network() {
    for family in Family::BOTH {
        let sandbox = World::shared().sandbox().flags("--allow other.wall-test.com");
        sandbox
            .run(&["wget", "-t1", "-O-", family.flag(), "http://web.wall-test.com/"])
            .exits(4)
            .complains("unable to resolve host address");
        let url = format!("http://{}/", family.in_url(family.web()));
        World::shared()
            .sandbox()
            .flags("--allow other.wall-test.com")
            .run(&["wget", "-t1", "-O-", &url])
            .exits(4)
            .complains("Connection refused");
    }
}

/// For the big file, on a machine that does other things too.
fn transfer_limit() -> Duration {
    Duration::from_secs(if long() { 300 } else { 60 })
}
