//! A real client and a real server of HTTP/3: the name in the first packet has to be allowed.

use cofferdam_world_tests::{Family, Ran};

use crate::sandbox;

/// Asks `host`, a name or an address, for a page over QUIC, and prints what came and how often ICMP said no. The client shows
/// the name that it was given, and `localhost` for an address. ICMP does not interest it: what is denied it asks for until
/// its `patience`, in seconds, is over, and ends as if all were well.
fn get(flags: &str, family: Family, host: &str, patience: u8) -> Ran {
    let unreachable = match family {
        Family::V4 => "awk '/^Icmp: [0-9]/ { print $5 }' /proc/net/snmp",
        Family::V6 => "awk '/^Icmp6InDestUnreachs/ { print $2 }' /proc/net/snmp6",
    };
    sandbox(flags).sh(&format!(
        "mkdir page; getent ahosts {} >/dev/null || true; before=$({unreachable})
        gtlsclient -q --exit-on-all-streams-close --handshake-timeout={patience}s --download=page {host} 443 https://{}/index.html || true
        cat page/* || true
        echo told $(($({unreachable}) - before))",
        family.name(),
        if host == family.web() { family.in_url(host) } else { host.to_owned() }
    ))
}

#[test]
fn http_3_arrives_from_an_allowed_name() {
    for family in Family::BOTH {
        let ran = get(&format!("--allow {}:443", family.name()), family, family.name(), 10);
        ran.exits(0).says("hello from the world").says("told 0\n");
    }
}

#[test]
fn denied_is_http_3_for_another_name_on_an_allowed_address() {
    for family in Family::BOTH {
        // The second rule has its name resolve to the same address, and opens another port.
        let also = family.name().replace('v', "also");
        let flags = format!("--allow {}:443 --allow {also}:80", family.name());
        let ran = get(&flags, family, &also, 1);
        ran.exits(0).never_says("hello").never_says("told 0\n");
        // Nor without a name.
        get(&flags, family, family.web(), 1).exits(0).never_says("hello").never_says("told 0\n");
        // It is the name that makes the difference.
        get(&format!("--allow {also}:443"), family, &also, 10).exits(0).says("hello from the world");
    }
}

#[test]
fn denied_is_http_3_to_a_name_that_no_rule_allows_and_to_an_address() {
    for family in Family::BOTH {
        let ran = get("--allow other.wall-test.com", family, family.name(), 1);
        ran.exits(0).says("told 0\n").complains("getaddrinfo: Name or service not known");
        let ran = get("--allow other.wall-test.com", family, family.web(), 1);
        ran.exits(0).never_says("told 0\n").never_says("hello");
    }
}
