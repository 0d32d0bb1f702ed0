//! Published ports: real servers in a sandbox, real clients on the host and beyond.

use std::fs;
use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, Sandbox, Served, World, long};

/// Starts the server of `ports.py`.
#[track_caller]
fn serve(sandbox: &Sandbox<'_>) -> Served {
    Served::start(sandbox, &["python3", "-c", World::shared().program("ports.py"), "serve"])
}

fn any(family: Family) -> &'static str {
    match family {
        Family::V4 => "0.0.0.0",
        Family::V6 => "[::]",
    }
}

/// Where `ports.py` is, outside of a sandbox.
fn program() -> String {
    World::shared().path("files/ports.py").display().to_string()
}

/// A client of `ports.py` on the host.
#[track_caller]
fn client(words: &[&str]) -> Ran {
    World::shared().on_the_host(&[&["python3", &program()], words].concat())
}

/// A client of `ports.py` in the world.
#[track_caller]
fn client_beyond(words: &[&str]) -> Ran {
    World::shared().from_outside(&[&["python3", &program()], words].concat())
}

/// "seen as ADDRESS PORT is ADDRESS PORT".
#[track_caller]
fn seen_as(ran: &Ran) -> (String, String) {
    ran.exits(0);
    let said = ran.stdout();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!((words.len(), words.first()), (7, Some(&"seen")), "{ran}");
    (words.get(2..4).unwrap_or_default().join(" "), words.get(5..7).unwrap_or_default().join(" "))
}

#[test]
fn half_closes_bulk_and_a_thousand_connections_at_once() {
    let served = serve(&World::shared().sandbox().flags("-p 21007:7 -p [::1]:21007:7"));
    // More than every buffer on the way holds: four of the machine's sockets, 32 MiB each at most on most.
    let size = if long() { 1 << 30 } else { 256 << 20 }.to_string();
    for family in Family::BOTH {
        let address = family.loopback();
        client(&["halfclose", address, "21007"]).exits(0).says("whole");
        client(&["bulk", address, "21007", &size])
            .exits(0)
            .says(&format!("back-pressure {size} exact"))
            .never_says("no back");
        client(&["hold", address, "21007", "1000"]).exits(0).says("1000 good");
    }
    drop(served);
}

#[test]
fn the_last_of_a_long_piece_comes_though_nobody_closes() {
    let sandbox = World::shared().sandbox().flags("-p 21017:7 -p [::1]:21017:7");
    let served = Served::start(&sandbox, &["python3", "-c", World::shared().program("ports.py"), "serve-pieces"]);
    for family in Family::BOTH {
        client(&["pieces", family.loopback(), "21017"]).exits(0).says("3 pieces each way");
    }
    drop(served);
}

#[test]
fn a_client_on_loopback_is_the_gateway_and_any_other_is_itself() {
    let flags = "-p 0.0.0.0:21008:8 -p [::]:21008:8 -p 0.0.0.0:21008:8/udp -p [::]:21008:8/udp";
    let served = serve(&World::shared().sandbox().flags(flags));
    for family in Family::BOTH {
        for who in ["who", "whoudp"] {
            let (seen, _) = seen_as(&client(&[who, family.loopback(), "21008"]));
            let gateway = if family == Family::V4 { "172." } else { "fd42:6d73:62:" };
            assert!(seen.starts_with(gateway), "{family:?} {who}: {seen}");
            let (seen, is) = seen_as(&client_beyond(&[who, family.host(), "21008"]));
            assert_eq!(seen, is, "{family:?} {who}");
            assert!(is.starts_with(family.beyond()), "{is}");
        }
        // The host itself, by an address that is not its loopback.
        let (seen, is) = seen_as(&client(&["who", family.host(), "21008", family.host()]));
        assert_eq!(seen, is);
    }
    drop(served);
}

#[test]
fn udp_answers_go_to_whoever_asked() {
    let flags = "-p 21007:7/udp -p [::1]:21007:7/udp";
    let served = serve(&World::shared().sandbox().flags(flags));
    for family in Family::BOTH {
        client(&["udp", family.loopback(), "21007", "10"]).exits(0).says("40 good");
    }
    drop(served);
}

#[test]
fn denied_peers_are_reset_or_hear_nothing() {
    for family in Family::BOTH {
        let bind = any(family);
        let flags =
            format!("--net-rule deny:ingress@private -p {bind}:21108:8 -p {bind}:21108:8/udp --events events --quiet");
        let sandbox = World::shared().sandbox().flags(&flags);
        let served = serve(&sandbox);
        client_beyond(&["reset", family.host(), "21108"]).exits(0).says("ECONNRESET");
        client_beyond(&["silence", family.host(), "21108"]).exits(0).says("silence");
        seen_as(&client(&["who", family.loopback(), "21108"]));
        let events_at = sandbox.folder().join("events");
        let said = served.end();
        let events = fs::read_to_string(events_at).expect("events were written");
        let denied: Vec<&str> = events.lines().filter(|line| line.contains("flow.denied")).collect();
        assert!(denied.len() >= 2, "{said}\n{events}");
        assert!(
            denied.iter().all(|line| line.contains("\"ingress\"") && line.contains("deny:ingress@private")),
            "{events}"
        );
    }
}

#[test]
fn a_service_that_is_not_there_resets_its_clients() {
    let served = serve(&World::shared().sandbox().flags("-p 21009:9 -p [::1]:21009:9"));
    for family in Family::BOTH {
        client(&["reset", family.loopback(), "21009"]).exits(0).says("ECONNRESET");
    }
    drop(served);
}

#[test]
fn a_port_is_open_where_it_was_published_and_nowhere_else() {
    let served = serve(&World::shared().sandbox().flags("-p 21208:8 -p [::1]:21208:8 -p 0.0.0.0:21209:8"));
    for family in Family::BOTH {
        seen_as(&client(&["who", family.loopback(), "21208"]));
        client_beyond(&["reset", family.host(), "21208"]).exits(0).says("ECONNREFUSED");
        for port in ["8", "7"] {
            client_beyond(&["reset", family.host(), port]).exits(0).never_says("seen").never_says("got");
        }
    }
    seen_as(&client_beyond(&["who", Family::V4.host(), "21209"]));
    client_beyond(&["reset", Family::V6.host(), "21209"]).exits(0).says("ECONNREFUSED");
    drop(served);
}

#[test]
fn a_port_that_is_taken_starts_nothing_and_says_who_has_it() {
    let world = World::shared();
    let first = serve(&world.sandbox().flags("-p 21308:8 -p [::1]:21308:8 -p 21308:8/udp"));
    for (flags, named) in [
        ("-p 21308:80", "127.0.0.1:21308:80/tcp: tcp port 21308 of the host is taken"),
        ("-p 0.0.0.0:21308:80", "0.0.0.0:21308:80/tcp: tcp port 21308 of the host is taken"),
        ("-p [::1]:21308:80", "[::1]:21308:80/tcp: tcp port 21308 of the host is taken"),
        ("-p 21308:80/udp", "127.0.0.1:21308:80/udp: udp port 21308 of the host is taken"),
    ] {
        let ran = world.sandbox().flags(flags).run(&["sh", "-c", "echo started"]);
        ran.exits(125).complains(named).never_says("started");
    }
    drop(first);
    // It is free again at once.
    drop(serve(&world.sandbox().flags("-p 21308:8")));
    // A process of the same user is named.
    let listen = "import socket, sys; s = socket.create_server(('127.0.0.1', 21309)); sys.stdin.read()";
    let script = format!(
        "python3 -c \"{listen}\" < /dev/zero & pid=$!; until ss -Htln sport = :21309 | grep -q 21309; do sleep 0.05; done; \
                          {} run -p 21309:80 -- true; echo status $?; kill $pid",
        world.cofferdam().display()
    );
    let ran = world.on_the_host(&["sh", "-c", &script]);
    ran.says("status 125").complains("is taken by python3 (process ");
}

#[test]
fn a_port_of_the_systems_choice_is_told() {
    for family in Family::BOTH {
        let bind = if family == Family::V4 { "" } else { "[::1]:" };
        let sandbox = World::shared().sandbox().flags(&format!("-p {bind}0:8 --events events"));
        let served = serve(&sandbox);
        let events = fs::read_to_string(sandbox.folder().join("events")).expect("events are written");
        let line = events.lines().find(|line| line.contains("port.published")).expect("the port is told");
        let (_, rest) = line.split_once("\"host\":\"").expect("the host's end is in it");
        let host = rest.split('"').next().expect("it ends").to_owned();
        let (_, port) = host.rsplit_once(':').expect("an address and a port");
        seen_as(&client(&["who", family.loopback(), port]));
        let said = served.end();
        assert!(said.contains(&format!("{host} on this machine is tcp port 8 of the sandbox")), "{said}");
    }
}

#[test]
fn ranges_lead_port_by_port() {
    let served = serve(&World::shared().sandbox().flags("-p 21407-21408:7-8 -p [::1]:21407-21408:7-8"));
    for family in Family::BOTH {
        client(&["halfclose", family.loopback(), "21407"]).exits(0).says("whole");
        seen_as(&client(&["who", family.loopback(), "21408"]));
    }
    drop(served);
}

#[test]
fn beyond_the_bound_connections_are_reset_and_those_before_go_on() {
    let flags = "-p 21507:7 -p [::1]:21507:7 --max-inbound-connections 10";
    let served = serve(&World::shared().sandbox().flags(flags));
    for family in Family::BOTH {
        client(&["hold", family.loopback(), "21507", "10"]).exits(0).says("10 good");
        client(&["hold", family.loopback(), "21507", "11"]).fails().complains("ConnectionResetError");
        client(&["halfclose", family.loopback(), "21507"]).exits(0).says("whole");
    }
    drop(served);
}

#[test]
fn ports_with_mistakes_and_ports_without_a_network_start_nothing() {
    let world = World::shared();
    for (flags, said) in [
        ("-p 80", "names one port"),
        ("-p 8080:80/sctp", "unknown protocol"),
        ("-p 8080:80 -p 8080:81", "takes the same port of the host"),
        ("-p 8080:80 --no-net", "without a network"),
        ("-p 8080:80 --net none", "without a network"),
        ("-p 192.0.2.1:8080:80", "the host has no address 192.0.2.1"),
    ] {
        world.sandbox().flags(flags).run(&["echo", "started"]).exits(125).complains(said).never_says("started");
    }
    let ran = world.sandbox().flags("-p 21608:8 --net-default-ingress deny").run(&["true"]);
    ran.exits(0).complains("127.0.0.1:21608:8/tcp is published, but the rules for ingress let nobody reach it");
}

#[test]
fn connections_end_with_the_sandbox_and_the_port_is_closed() {
    let served = serve(&World::shared().sandbox().flags("-p 21708:8"));
    seen_as(&client(&["who", "127.0.0.1", "21708"]));
    drop(served);
    client(&["reset", "127.0.0.1", "21708"]).exits(0).says("ECONNREFUSED").within(Duration::from_secs(10));
}
