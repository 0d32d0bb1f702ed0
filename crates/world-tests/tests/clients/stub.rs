//! A forwarder in the sandbox, as systemd-resolved is on many machines: programs ask 127.0.0.53, and it asks the gateway
//! or somebody else, everything over one TCP connection.

use std::fs;

use cofferdam_world_tests::{Family, Ran, World};

use crate::{gateway, knot, sandbox, unbound};

/// Runs a piece of shell where 127.0.0.53 is the only resolver, which asks what `upstream` prints.
fn behind_a_stub(flags: &str, upstream: &str, script: &str) -> Ran {
    let sandbox = sandbox(flags).flags("--user 1000 --cap-add net_bind_service --allow-userns");
    fs::write(sandbox.folder().join("script"), script).expect("the folder is ours");
    let stub = format!(
        r#"T=$(mktemp -d); echo nameserver 127.0.0.53 >$T/resolv.conf
        sed "s|@FOLDER@|$T|; s|@UPSTREAM@|$({upstream})|" >$T/stub.conf
        unbound -d -c $T/stub.conf 2>$T/log & trap "kill $!" EXIT
        until ss -Hlnu 'sport = :53' | grep -q 127.0.0.53; do sleep 0.05; done
        unshare -rm sh -ec "mount --bind $T/resolv.conf /etc/resolv.conf; . ./script""#
    );
    sandbox.input(World::with_everything().program("stub.conf")).sh(&stub)
}

#[test]
fn a_stub_that_asks_over_one_connection_is_like_none() {
    for family in Family::BOTH {
        let flags = format!("--allow *.names-test.com --allow web.wall-test.com --dns-nameserver {}", unbound(family));
        // A port for each: dig lets the kernel choose one that another dig has (SO_REUSEADDR), and takes its answer.
        let script = "grep -x 'nameserver 127.0.0.53' /etc/resolv.conf
            for n in $(seq 40); do dig -b 127.0.0.1#$((20000 + n)) +short +tries=1 +time=4 n$n.wild.names-test.com >>found & done; wait; sort found | uniq -c
            for flag in -4 -6; do curl -sS $flag --cacert ca.pem https://web.wall-test.com/who; done";
        let ran = behind_a_stub(&flags, gateway(family), script);
        ran.exits(0).says(&format!("40 {}", Family::V4.web()));
        for of in Family::BOTH {
            // The stub's look-ups are the sandbox's: what they found is pinned.
            ran.says(&format!("{} HTTP/2.0 web.wall-test.com", of.web()));
        }
    }
}

#[test]
fn denied_names_are_denied_behind_a_stub() {
    for family in Family::BOTH {
        let script = "dig +tries=1 +time=4 web.wall-test.com; curl -sS http://web.wall-test.com/";
        let ran = behind_a_stub("--allow other.wall-test.com", gateway(family), script);
        ran.exits(6).says("status: NXDOMAIN").complains("Could not resolve host: web.wall-test.com");
    }
}

#[test]
fn denied_is_what_a_stub_learns_of_a_resolver_of_its_own_choice() {
    for family in Family::BOTH {
        let upstream = format!("echo {}", knot(family));
        // An answer, since the resolver is allowed; and no pin, since nobody vouches for what it says.
        let flags = format!("--allow web.names-test.com:80 --allow {}:53", family.in_url(knot(family)));
        let script = "dig +short +tries=1 web.names-test.com; curl -sS http://web.names-test.com/";
        let ran = behind_a_stub(&flags, &upstream, script);
        ran.exits(7).says(Family::V4.web()).never_says("hello");
        let ran = behind_a_stub("--allow web.names-test.com:80", &upstream, "dig +tries=1 +time=2 web.names-test.com");
        ran.never_says(Family::V4.web());
    }
}
