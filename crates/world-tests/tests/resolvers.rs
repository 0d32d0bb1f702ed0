//! Real resolvers upstream, real clients inside, over both families: what arrives, what does not, and what is never asked.

use std::fs;
use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, Sandbox, World};

/// The authoritative server, a recursive one, the one that plays a script, an address where nothing listens, and another
/// recursive one.
const KNOT: u8 = 54;
const UNBOUND: u8 = 55;
const SCRIPT: u8 = 56;
const DEAD: u8 = 57;
const BIND: u8 = 58;

fn server(family: Family, last: u8) -> String {
    match family {
        Family::V4 => format!("93.184.215.{last}"),
        Family::V6 => format!("2606:2800:21f:cb07::{last}"),
    }
}

/// A sandbox whose gateway asks `last`, over `family`.
fn asking(family: Family, last: u8) -> Sandbox<'static> {
    World::with_resolvers().sandbox().flags(&format!("--dns-nameserver {}", server(family, last)))
}

fn dig(family: Family, last: u8, arguments: &str) -> Ran {
    let mut words = vec!["dig", "+tries=1", "+time=4"];
    words.extend(arguments.split(' '));
    asking(family, last).run(&words)
}

/// The record types of addresses, and what the world's web server has there.
const TYPES: [(&str, Family); 2] = [("A", Family::V4), ("AAAA", Family::V6)];

#[test]
fn chains_and_wildcards_arrive_whole() {
    for family in Family::BOTH {
        for (qtype, of) in TYPES {
            // The authoritative server follows a chain for five steps and leaves the rest to resolvers.
            for last in [UNBOUND, BIND] {
                dig(family, last, &format!("chain1.names-test.com {qtype}"))
                    .exits(0)
                    .says("ANSWER: 9,")
                    .says("chain8.names-test.com.")
                    .says(of.web());
            }
            for last in [KNOT, UNBOUND, BIND] {
                dig(family, last, &format!("+short any.wild.names-test.com {qtype}")).exits(0).says(of.web());
            }
        }
    }
}

#[test]
fn answers_of_every_size_arrive_over_both_transports() {
    for family in Family::BOTH {
        for last in [SCRIPT, UNBOUND, BIND] {
            for (name, records) in [("txt400", 1), ("txt1200", 5), ("txt4000", 18)] {
                for flags in ["", "+tcp ", "+bufsize=4096 "] {
                    dig(family, last, &format!("{flags}{name}.script-test.com TXT"))
                        .exits(0)
                        .says(&format!("ANSWER: {records},"));
                }
                // What does not fit is said to be cut, and the question is kept.
                let plain = dig(family, last, &format!("+noedns +ignore {name}.script-test.com TXT"));
                plain.exits(0).says(&format!("{name}.script-test.com."));
                if records > 1 {
                    plain.says(" tc ").says("ANSWER: 0,");
                }
            }
            for (qtype, of) in TYPES {
                dig(family, last, &format!("+short tconly.script-test.com {qtype}")).exits(0).says(of.web());
            }
        }
    }
}

#[test]
fn signed_zones_pass_with_do() {
    for family in Family::BOTH {
        for last in [KNOT, UNBOUND, BIND] {
            for (qtype, of) in TYPES {
                dig(family, last, &format!("+dnssec web.signed-test.com {qtype}"))
                    .exits(0)
                    .says("RRSIG")
                    .says(of.web());
                dig(family, last, &format!("web.signed-test.com {qtype}")).exits(0).never_says("RRSIG").says(of.web());
            }
            dig(family, last, "+dnssec absent.signed-test.com A").exits(0).says("NXDOMAIN").says("NSEC");
        }
    }
}

#[test]
fn service_records_arrive_without_ech_and_with_hints() {
    for family in Family::BOTH {
        for last in [KNOT, UNBOUND, BIND] {
            dig(family, last, "https.names-test.com TYPE65")
                .exits(0)
                .says("alpn=\"h2\"")
                .says(&format!("ipv4hint={}", Family::V4.web()))
                .says("ipv6hint=2606:2800:21f:cb07::14")
                .never_says("ech=");
        }
    }
}

#[test]
fn errors_stay_what_they_are_and_end_soon() {
    for family in Family::BOTH {
        for (name, status) in [
            ("servfail", "SERVFAIL"),
            ("refused", "REFUSED"),
            ("garbage", "SERVFAIL"),
            ("liar", "SERVFAIL"),
            ("lame", "NOERROR"),
        ] {
            let ran = asking(family, SCRIPT).flags("--dns-query-timeout-ms 1500").run(&[
                "dig",
                "+tries=1",
                "+time=4",
                &format!("{name}.script-test.com"),
            ]);
            ran.exits(0)
                .says(&format!("status: {status}"))
                .never_says(Family::V4.web())
                .within(Duration::from_secs(10));
        }
        dig(family, SCRIPT, "absent.script-test.com").exits(0).says("status: NXDOMAIN");
    }
}

#[test]
fn a_dead_resolver_is_passed_over() {
    for family in Family::BOTH {
        for (qtype, of) in TYPES {
            let ran = World::with_resolvers()
                .sandbox()
                .flags(&format!("--dns-nameserver {}", server(family, DEAD)))
                .flags(&format!("--dns-nameserver {}", server(family, UNBOUND)))
                .run(&["dig", "+short", "+tries=1", "+time=4", "web.names-test.com", qtype]);
            ran.exits(0).says(of.web());
        }
    }
}

#[test]
fn a_silent_name_holds_nobody_up() {
    for family in Family::BOTH {
        let script = "for n in $(seq 50); do dig +tries=1 +time=1 silent.script-test.com >/dev/null & done; \
                      timeout 1 dig +short +tries=1 web.script-test.com";
        asking(family, SCRIPT).sh(script).exits(0).says(Family::V4.web());
    }
}

#[test]
fn forgeries_and_records_about_others_are_not_believed() {
    for family in Family::BOTH {
        for (qtype, of) in TYPES {
            dig(family, SCRIPT, &format!("+short wrongid.script-test.com {qtype}"))
                .exits(0)
                .says(of.web())
                .never_says(of.other());
            dig(family, SCRIPT, &format!("extra.script-test.com {qtype}"))
                .exits(0)
                .says(of.web())
                .never_says(of.other());
        }
    }
}

#[test]
fn inside_addresses_never_arrive() {
    for family in Family::BOTH {
        for (qtype, of) in TYPES {
            for (last, name) in [
                (KNOT, "inside.names-test.com"),
                (UNBOUND, "inside.names-test.com"),
                (BIND, "inside.names-test.com"),
                (SCRIPT, "mixed.script-test.com"),
            ] {
                dig(family, last, &format!("{name} {qtype}"))
                    .exits(0)
                    .says("status: NXDOMAIN")
                    .says("EDE: 15")
                    .never_says(of.inside());
            }
            // The first answer is good and lives for no time; the second is judged for itself.
            let ask = format!("dig +tries=1 rebind.script-test.com {qtype}");
            let ran = asking(family, SCRIPT).sh(&format!("{ask}; {ask}"));
            ran.exits(0).never_says(of.inside()).says("status: NXDOMAIN");
        }
    }
}

#[test]
fn an_answer_is_asked_for_once_and_for_as_long_as_it_lives() {
    let world = World::with_resolvers();
    for family in Family::BOTH {
        let before = asked(world, "txt300.script-test.com");
        let script = "for n in 1 2 3 4 5; do dig +short +tries=1 txt300.script-test.com TXT; done";
        asking(family, SCRIPT).sh(script).exits(0);
        assert_eq!(asked(world, "txt300.script-test.com") - before, 1, "asked again");
        // Both of two addresses that take turns every second are usable, while the gateway has just one at a time.
        let script = "for n in $(seq 60); do dig +short +tries=1 rotate.script-test.com; sleep 0.05; done | sort -u";
        asking(family, SCRIPT).sh(script).exits(0).says(Family::V4.web()).says(Family::V4.other());
    }
}

/// How often the script's server was asked for a name.
fn asked(world: &World, name: &str) -> usize {
    let wire = wire_hex(name);
    world.log("names.queries").lines().filter(|line| line.contains(&wire)).count()
}

fn wire_hex(name: &str) -> String {
    let labels = name.split('.').map(|label| format!("{:02x}{}", label.len(), hex(label)));
    labels.collect()
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn no_label_of_a_denied_name_reaches_a_resolver() {
    let world = World::with_resolvers();
    for family in Family::BOTH {
        let servers = [server(Family::V4, SCRIPT), server(Family::V6, SCRIPT)];
        let label = format!("stolen{}", if family == Family::V4 { "four" } else { "six" });
        let mut script = String::from("lookup=$PWD/lookup\n");
        for name in [format!("{label}.script-test.com"), format!("{label}.web.script-test.com")] {
            for flags in ["", "+tcp", "+norecurse", "+dnssec"] {
                script.push_str(&format!("dig +tries=1 +time=1 {flags} {name} A || true\n"));
                script.push_str(&format!("dig +tries=1 +time=1 {flags} {name} TYPE65 || true\n"));
                for server in &servers {
                    script.push_str(&format!("dig +tries=1 +time=1 {flags} @{server} {name} TXT || true\n"));
                }
            }
            script.push_str(&format!("getent ahosts {name} || true\n$lookup {name} || true\n"));
            script.push_str(&format!("curl -sm2 http://{name}/ || true\npython3 -c 'import socket; socket.getaddrinfo(\"{name}\", 80)' || true\n"));
        }
        script.push_str("dig +short +tries=1 web.script-test.com\n");
        let sandbox = asking(family, SCRIPT).flags("--allow web.script-test.com");
        install_lookup(world, &sandbox);
        sandbox.sh(&script).exits(0).says(Family::V4.web());
        let log = world.log("names.queries");
        assert!(log.contains(&hex("web")), "the server logs nothing");
        assert!(!log.to_lowercase().contains(&hex(&label)), "{label} was asked for\n{log}");
    }
}

/// Puts the program that looks names up by musl's resolver into the sandbox's folder.
fn install_lookup(world: &World, sandbox: &Sandbox<'_>) {
    std::fs::copy(world.path("etc/lookup"), sandbox.folder().join("lookup")).expect("the folder is ours");
}

#[test]
fn every_client_gets_the_same_answers() {
    let world = World::with_resolvers();
    for family in Family::BOTH {
        for last in [KNOT, UNBOUND, BIND] {
            for (name, of) in [("v4.names-test.com", Family::V4), ("v6.names-test.com", Family::V6)] {
                let sandbox = asking(family, last);
                install_lookup(world, &sandbox);
                let python = format!("import socket; print(socket.getaddrinfo('{name}', 80)[0][4][0])");
                let script = format!(
                    "getent ahosts {name} | head -1\n./lookup {name}\npython3 -c \"{python}\"\n\
                     curl -s -o /dev/null -w '%{{remote_ip}}\\n' http://{name}/"
                );
                let ran = sandbox.sh(&script);
                let lines = ran.stdout().lines().filter(|line| line.contains(of.web())).count();
                assert_eq!(lines, 4, "{ran}");
            }
        }
    }
}

#[test]
fn a_resolver_of_the_programs_own_choice_gives_no_way_around() {
    for family in Family::BOTH {
        for transport in ["+notcp", "+tcp"] {
            // An address where nothing listens: the answer can only be the gateway's.
            let chosen = format!("@{}", server(family, DEAD));
            World::with_resolvers()
                .sandbox()
                .flags("--allow other.wall-test.com")
                .run(&["dig", "+tries=1", "+time=2", transport, &chosen, "web.names-test.com"])
                .never_says(Family::V4.web());
            // Allowed as egress, it gets the question and nobody else does.
            let chosen = format!("@{}", server(family, KNOT));
            World::with_resolvers()
                .sandbox()
                .run(&["dig", "+short", "+tries=1", transport, &chosen, "web.names-test.com"])
                .exits(0)
                .says(Family::V4.web());
        }
    }
}

#[test]
fn the_ways_around_the_resolver_are_refused_at_once() {
    for family in Family::BOTH {
        let server = server(family, SCRIPT);
        // The world has a resolver on port 853 there; the whole internet is open otherwise.
        let tcp = format!(
            "import socket, time\nbegan = time.monotonic()\ntry:\n    socket.create_connection(('{server}', 853), 5)\n    print('open')\n\
             except ConnectionRefusedError:\n    print('refused', time.monotonic() - began < 1)\n"
        );
        World::with_resolvers().sandbox().run(&["python3", "-c", &tcp]).exits(0).says("refused True");
        for port in [853, 5353, 5355, 137] {
            let udp = format!(
                "import socket\ns = socket.socket(socket.{}, socket.SOCK_DGRAM)\ns.connect(('{server}', {port}))\ns.settimeout(3)\n\
                 s.send(b'x')\ntry:\n    s.recv(9)\n    print('answered')\nexcept TimeoutError:\n    print('silent')\nexcept OSError as error:\n    print('told', error.errno)\n",
                if family == Family::V4 { "AF_INET" } else { "AF_INET6" }
            );
            World::with_resolvers().sandbox().run(&["python3", "-c", &udp]).exits(0).says("told");
        }
    }
}

#[test]
fn a_denial_says_its_decision_id_in_dns_and_in_the_events() {
    let sandbox = World::with_resolvers().sandbox().flags("--allow web.names-test.com --events events.jsonl");
    let folder = sandbox.folder().to_owned();
    let ran = sandbox.run(&["dig", "+tries=1", "denied.names-test.com"]);
    ran.exits(0).says("status: NXDOMAIN").says("EDE: 15 (Blocked): (blocked by policy, decision ");
    let text = ran.stdout();
    let decision =
        text.split("decision ").nth(1).and_then(|rest| rest.split(')').next()).expect("a decision id").to_owned();
    assert!(decision.len() >= 5 && decision.chars().all(|c| c.is_ascii_alphanumeric()), "{decision:?}");
    let events = fs::read_to_string(folder.join("events.jsonl")).expect("the run has left events");
    let of_the_query =
        |line: &&str| line.contains("\"type\":\"dns.query\"") && line.contains("\"name\":\"denied.names-test.com\"");
    let told: Vec<&str> = events.lines().filter(of_the_query).collect();
    assert_eq!(told.len(), 1, "{events}");
    assert!(told[0].contains(&format!("\"decision\":\"{decision}\"")), "{decision} is not in {told:?}");
}

/// A sandbox whose gateway asks these, on a machine that trusts the world's authority.
fn trusting(servers: &[String]) -> Sandbox<'static> {
    let flags: String = servers.iter().map(|server| format!("--dns-nameserver {server} ")).collect();
    let sandbox = World::with_resolvers().sandbox().flags(&flags);
    sandbox.broken("mount --bind $DIR/etc/ca.pem /etc/ssl/certs/ca-certificates.crt")
}

/// An address as it stands in a URL.
fn in_url(family: Family, last: u8) -> String {
    family.in_url(&server(family, last))
}

#[test]
fn resolvers_over_tls_and_https_are_asked_by_address_and_by_name() {
    for family in Family::BOTH {
        let address = in_url(family, UNBOUND);
        for server in [
            format!("tls://{address}"),
            format!("tls://{address}#dns.wall-test.com"),
            format!("https://{address}:8443/dns-query"),
            "tls://dns.wall-test.com".to_owned(),
            "https://dns.wall-test.com:8443/dns-query".to_owned(),
        ] {
            for (qtype, of) in TYPES {
                trusting(std::slice::from_ref(&server))
                    .run(&["dig", "+tries=1", "+time=4", "chain1.names-test.com", qtype])
                    .exits(0)
                    .says("ANSWER: 9,")
                    .says(of.web());
            }
        }
    }
}

#[test]
fn one_connection_carries_many_questions_at_a_time() {
    for family in Family::BOTH {
        let address = in_url(family, UNBOUND);
        for server in [format!("tls://{address}"), format!("https://{address}:8443/dns-query")] {
            // A port for each: dig lets the kernel choose one that another dig has (SO_REUSEADDR), and takes its answer.
            let script = "for n in $(seq 60); do dig -4 -b 0.0.0.0#$((20000 + n)) +short +tries=1 +time=4 n$n.wild.names-test.com >>found & done; wait; sort found | uniq -c";
            trusting(std::slice::from_ref(&server)).sh(script).exits(0).says(&format!("60 {}", Family::V4.web()));
            // Large answers come whole, and what has no answer is still NXDOMAIN.
            let script = "dig +tries=1 txt4000.script-test.com TXT; dig +tries=1 absent.names-test.com";
            trusting(&[server]).sh(script).exits(0).says("ANSWER: 18,").says("NXDOMAIN");
        }
    }
}

#[test]
fn nothing_is_asked_in_the_clear_of_a_resolver_over_tls() {
    let world = World::with_resolvers();
    for family in Family::BOTH {
        let before = world
            .log("names.queries")
            .lines()
            .filter(|line| line.contains(&wire_hex("txt200.script-test.com")))
            .count();
        trusting(&[format!("tls://{}", in_url(family, SCRIPT))])
            .run(&["dig", "+tries=1", "+time=4", "txt200.script-test.com", "TXT"])
            .exits(0)
            .says("status: NOERROR");
        let log = world.log("names.queries");
        let asked: Vec<&str> = log.lines().filter(|line| line.contains(&wire_hex("txt200.script-test.com"))).collect();
        assert_eq!(asked.len() - before, 1);
        assert!(asked.iter().all(|line| line.starts_with("dot ")), "{asked:?}");
    }
}

#[test]
fn a_resolver_that_cannot_prove_its_name_is_not_asked() {
    let world = World::with_resolvers();
    for family in Family::BOTH {
        let address = in_url(family, SCRIPT);
        let name = format!("impostor{}.script-test.com", if family == Family::V4 { "four" } else { "six" });
        for server in [
            // Nobody vouches for it; it is somebody else; it does not speak TLS at all.
            format!("tls://{address}:8853"),
            format!("tls://{address}#dns.other-test.com"),
            format!("tls://{address}:53"),
            format!("https://{address}:853/dns-query"),
        ] {
            trusting(std::slice::from_ref(&server))
                .run(&["dig", "+tries=1", "+time=6", &name])
                .exits(0)
                .says("status: SERVFAIL");
            // The next one is asked at once.
            trusting(&[server, self::server(family, UNBOUND)])
                .run(&["dig", "+short", "+tries=1", "+time=6", "web.names-test.com"])
                .exits(0)
                .says(Family::V4.web());
        }
        // The machine does not trust the world's authority.
        asking_without_trust(&format!("tls://{address}"), &name).exits(0).says("status: SERVFAIL");
        assert!(!world.log("names.queries").contains(&hex(&name)[..16]), "the name was told");
    }
}

fn asking_without_trust(server: &str, name: &str) -> Ran {
    let sandbox = World::with_resolvers().sandbox().flags(&format!("--dns-nameserver {server}"));
    sandbox.run(&["dig", "+tries=1", "+time=6", name])
}

#[test]
fn a_resolver_whose_name_has_no_address_is_refused_at_the_start() {
    let sandbox = World::with_resolvers().sandbox().flags("--dns-nameserver tls://absent.wall-test.com");
    sandbox.run(&["true"]).exits(125).complains("absent.wall-test.com");
}
