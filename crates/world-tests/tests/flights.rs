//! What a connection shows counts: names that share an address are told apart, by real clients' first bytes.
//!
//! web and git are one machine. Where only web is allowed, git's name may not be reached over web's address.

use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, World};

const ALLOWED: &str = "--allow web.wall-test.com";

/// Looks web up, so that its address is pinned, and then asks there for another name.
fn curl(flags: &str, family: Family, more: &str) -> Ran {
    World::shared().sandbox().flags(flags).sh(&format!(
        "curl -sS {0} --cacert ca.pem -o /dev/null http://web.wall-test.com/
        to() {{ curl -sS {0} --cacert ca.pem --connect-to ::web.wall-test.com: \"$@\"; }}
        {more}",
        family.flag()
    ))
}

fn python(flags: &str, family: Family, case: &str) -> Ran {
    let number = if family == Family::V4 { "4" } else { "6" };
    let world = World::shared();
    world.sandbox().flags(flags).input(world.program("flights.py")).run(&["python3", "-", number, case])
}

#[test]
fn denied_is_another_host_in_a_request_and_the_answer_says_why() {
    for family in Family::BOTH {
        let ran = curl(&format!("{ALLOWED} --quiet --events -"), family, "to -i http://git.wall-test.com/who");
        ran.exits(0).says("HTTP/1.1 403 Forbidden").says("Cache-Control: no-store").never_says("HTTP/1.1 git");
        ran.says("\"code\":\"network_policy_denied\"").says("\"domain\":\"git.wall-test.com\"");
        let out = ran.stdout();
        let body = out.lines().find(|line| line.contains("network_policy_denied")).unwrap_or_default();
        let (_, rest) = body.split_once("\"decision\":\"").unwrap_or_default();
        let (decision, _) = rest.split_once('"').unwrap_or_default();
        assert!(!decision.is_empty(), "{ran}");
        let event = format!("\"type\":\"flow.denied\",\"decision\":\"{decision}\"");
        ran.says(&event).says("\"shown\":{\"protocol\":\"http\",\"names\":[\"git.wall-test.com\"]}");
    }
}

#[test]
fn denied_is_another_name_in_a_handshake_and_the_alert_says_so() {
    for family in Family::BOTH {
        for version in ["--http1.1", "--http2", "--tls-max 1.2"] {
            let script =
                format!("to {version} https://web.wall-test.com/who; to {version} https://git.wall-test.com/who");
            let ran = curl(ALLOWED, family, &script);
            ran.exits(35).says("web.wall-test.com").never_says("git.wall-test.com");
            assert!(ran.stderr().to_lowercase().contains("access denied"), "{ran}");
        }
    }
}

#[test]
fn openssl_passes_with_the_name_and_is_denied_without() {
    for family in Family::BOTH {
        let s_client = |name: &str| {
            let script = format!(
                "openssl s_client {} -connect web.wall-test.com:443 {name} -CAfile ca.pem -verify_return_error </dev/null",
                family.flag()
            );
            World::shared().sandbox().flags(ALLOWED).sh(&format!("{script} 2>&1"))
        };
        s_client("-servername web.wall-test.com").exits(0).says("Verification: OK");
        s_client("-servername WEB.wall-test.com -tls1_2").exits(0).says("Verification: OK");
        for name in ["-noservername", "-servername git.wall-test.com", "-noservername -tls1_2"] {
            let ran = s_client(name);
            assert!(ran.stdout().contains("access denied") && !ran.stdout().contains("BEGIN CERTIFICATE"), "{ran}");
        }
    }
}

#[test]
fn every_request_of_a_connection_is_looked_at() {
    for family in Family::BOTH {
        let ran = python(ALLOWED, family, "keep_alive");
        let lines: Vec<String> = ran.exits(0).stdout().lines().map(str::to_owned).collect();
        assert!(lines.len() == 3 && lines[..2].iter().all(|line| line.starts_with("200 ")), "{ran}");
        assert!(lines[2].starts_with("403 ") && lines[2].ends_with("no-store"), "{ran}");
        python(ALLOWED, family, "pipelined").exits(0).never_says("HTTP/1.1 git.wall-test.com");
        let ran = python(ALLOWED, family, "requests");
        ran.exits(0).says("200").says("403 network_policy_denied");
    }
}

#[test]
fn denied_are_requests_that_two_servers_would_read_in_two_ways() {
    for family in Family::BOTH {
        for case in ["smuggled", "two_hosts"] {
            let ran = python(ALLOWED, family, case);
            ran.exits(0).says("HTTP/1.1 403 Forbidden").never_says(" 200 ").never_says("400 Bad Request");
        }
    }
}

#[test]
fn requests_in_pieces_and_bodies_that_look_like_requests_pass() {
    for family in Family::BOTH {
        python(ALLOWED, family, "cut_up").exits(0).says("200 OK").says("web.wall-test.com");
        let ran = python(ALLOWED, family, "upload");
        assert!(ran.stdout().contains(" 201 ") || ran.stdout().contains(" 204 "), "{ran}");
    }
}

#[test]
fn denied_is_what_does_not_come_in_time() {
    for family in Family::BOTH {
        let ran = python(ALLOWED, family, "unfinished");
        ran.exits(0).says("after 5").never_says(" 200 ").within(Duration::from_secs(15));
    }
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    for family in Family::BOTH {
        python(ALLOWED, family, "server_first").exits(0).says("bye end").within(Duration::from_secs(4));
        python(ALLOWED, family, "echo").exits(0).says("what is this?");
    }
}

#[test]
fn ssh_by_name_needs_no_name_on_the_wire() {
    for family in Family::BOTH {
        let script = format!(
            "T=$(mktemp -d); install -m600 key $T/key
            ssh {} -i $T/key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=$T/known guest@web.wall-test.com echo over ssh",
            family.flag()
        );
        World::shared().sandbox().flags("--allow web.wall-test.com:22").sh(&script).exits(0).says("over ssh");
    }
}

#[test]
fn denied_is_another_protocol_where_the_web_is_unless_the_rule_is_opaque() {
    for family in Family::BOTH {
        python(ALLOWED, family, "other").exits(0).says("reset").never_says("400");
        python("--allow web.wall-test.com:80:opaque", family, "other").exits(0).says("400 Bad Request");
    }
}

#[test]
fn datagrams_by_name_pass_and_on_the_port_of_quic_they_have_to_show_it() {
    for family in Family::BOTH {
        let ran = python(ALLOWED, family, "datagrams");
        ran.exits(0).says("7 b'hello'");
        // "Administratively prohibited" is EHOSTUNREACH in IPv4 and EACCES in IPv6.
        ran.says(if family == Family::V4 { "443 OSError 113" } else { "443 PermissionError 13" });
    }
}

#[test]
fn denied_by_name_is_denied_at_an_address_that_was_never_looked_up() {
    for family in Family::BOTH {
        let address = family.in_url(family.web());
        for (name, status) in [("git", 35), ("web", 0)] {
            let url = format!("https://{name}.wall-test.com/who");
            let to = format!("::{address}:");
            let ran = World::shared().sandbox().flags("--net public --deny git.wall-test.com").run(&[
                "curl",
                "-sS",
                "--cacert",
                "ca.pem",
                "--connect-to",
                &to,
                &url,
            ]);
            ran.exits(status);
        }
        let to = format!("::{address}:");
        let ran = World::shared().sandbox().flags("--net public --deny *.git.wall-test.com").run(&[
            "curl",
            "-sS",
            "-i",
            "--connect-to",
            &to,
            "http://x.git.wall-test.com/who",
        ]);
        ran.exits(0).says("403 Forbidden").says("deny@*.git.wall-test.com");
    }
}

#[test]
fn without_strict_the_pin_is_enough() {
    for family in Family::BOTH {
        let ran = curl(&format!("{ALLOWED} --net-strict=false"), family, "to https://git.wall-test.com/who");
        ran.exits(0).says("git.wall-test.com");
    }
}

#[test]
fn a_large_transfer_over_a_looked_at_connection_arrives_whole() {
    for family in Family::BOTH {
        for scheme in ["http", "https"] {
            let script = format!(
                "curl -sS {} --cacert ca.pem {scheme}://web.wall-test.com/files/big | sha256sum",
                family.flag()
            );
            let ran = World::shared().sandbox().flags(ALLOWED).patience(Duration::from_secs(300)).sh(&script);
            ran.exits(0).says(&World::shared().big_file_digest());
        }
    }
}
