//! The event stream of real runs: every kind of event is there and follows the schema, every denial has one, and it says who it was.

use std::fs;

use cofferdam_world_tests::{Family, Ran, Sandbox, World};

const PROGRAM: &str = "/tmp/p";

/// A sandbox whose program finds `events.py` at [`PROGRAM`] and whose events are in its folder.
fn sandbox(flags: &str) -> (Sandbox<'static>, String) {
    let world = World::shared();
    let sandbox = world.sandbox();
    let events = sandbox.folder().join("events.jsonl").display().to_string();
    let program = world.path("files/events.py");
    let flags = format!("--events {events} --quiet --mount {}:{PROGRAM}:ro {flags}", program.display());
    (sandbox.flags(&flags), events)
}

/// The lines of a file of events that have all these texts.
#[track_caller]
fn events(file: &str, texts: &[&str]) -> Vec<String> {
    let content = fs::read_to_string(file).expect("the run has written its events");
    content.lines().filter(|line| texts.iter().all(|text| line.contains(text))).map(str::to_owned).collect()
}

/// What is behind a text, up to the next quotation mark.
#[track_caller]
fn after<'a>(text: &'a str, before: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("there is no {before} in {text}"));
    rest.split(['"', ')', ' ', '\n']).next().unwrap_or_default()
}

/// That there is one event with these texts, and that it is about this decision.
#[track_caller]
fn is_told_once(file: &str, texts: &[&str], decision: Option<&str>) {
    let told = events(file, texts);
    let [one] = told.as_slice() else { panic!("{texts:?}: {told:#?} of {:#?}", events(file, &[])) };
    let id = after(one, "\"decision\":\"");
    assert!(id.len() >= 5, "{told:?}");
    assert!(decision.is_none_or(|decision| decision == id), "the client saw {decision:?}: {told:?}");
}

#[test]
fn every_kind_of_event_follows_the_schema() {
    let ran = World::shared().script(
        r#"
        D=$XDG_STATE_HOME P=$WORLD/files/events.py
        $C schema event > $D/schema
        # One socket of the host with a server, and one whose server ends.
        for socket in s none; do
            python3 $WORLD/files/host_sockets.py serve $D/$socket > $D/said.$socket 2>&1 &
            servers="$servers $!"
            until_ grep -qs up $D/said.$socket
        done
        mkfifo $D/input
        $C run --events $D/run.jsonl --json-summary $D/summary --no-cwd --quiet --mount $P:/tmp/p:ro --cap-add NET_RAW \
            -p 127.0.0.1:0:7 --host-socket $D/s:/run/s --host-socket $D/none:/run/none \
            --net-rule deny@suffix=denied.example -- python3 /tmp/p provoke < $D/input > $D/out &
        run=$!
        exec 9> $D/input
        until_ grep -qs begun $D/out
        kill ${servers##* }
        until_ eval '! kill -0 ${servers##* } 2>/dev/null'
        echo >&9
        until_ grep -q done $D/out
        # Mappings stay open for longer than it takes to tell what they have moved.
        until_ grep -q flow.progress $D/run.jsonl
        # Without the process that connects to sockets of the host there is a remark.
        pkill -KILL -P $run -f cofferdam-dial
        until_ grep -q gateway.notice $D/run.jsonl
        exec 9>&-
        wait $run
        # What flows show is told to who learns from it.
        $C learn --events $D/learn.jsonl --no-cwd --quiet -- curl -s -o /dev/null -H 'Host: web.example' http://93.184.215.14/ > $D/learned
        # A sandbox that stays has what changes while it runs.
        $C create --no-cwd --net public stays
        $C policy set stays --net host
        $C ports add stays 127.0.0.1:21907:7
        $C ports rm stays 127.0.0.1:21907
        kept() { find $D -type f -name 'events*.jsonl' -o -type f -name events; }
        until_ eval 'grep -q port.withdrawn $(kept)'
        /usr/bin/python3 $P validate $D/schema $D/run.jsonl $D/learn.jsonl $(kept)
        tr -d ' \n' < $D/summary | grep -o '"programs":\["python3"\]' | sort -u
        for family in '172\.' '\[fd'; do
            for kind in opened denied; do
                for protocol in tcp udp; do
                    grep "\"flow.$kind\".*\"protocol\":\"$protocol\",\"guest\":\"$family" $D/run.jsonl | grep -v '"shown"' |
                        grep -q '"process":{"pid":[0-9]*,"comm":"python3","argv0":"python3"}' && echo "$kind $protocol $family"
                done
            done
            for kind in closed failed; do grep -q "\"flow.$kind\"" $D/run.jsonl && echo $kind; done
        done
        grep '"flow.closed"' $D/run.jsonl | grep -o '"packets_out":1,"packets_in":1' | sort -u
        "#,
    );
    let expected = [
        "dns.more",
        "dns.query",
        "flow.closed",
        "flow.denied",
        "flow.failed",
        "flow.opened",
        "flow.progress",
        "flow.shown",
        "gateway.dropped",
        "gateway.notice",
        "limit.reached",
        "policy.changed",
        "port.published",
        "port.withdrawn",
        "sandbox.started",
        "sandbox.stopped",
        "socket.closed",
        "socket.failed",
        "socket.opened",
    ];
    ran.exits(0).never_says("never seen").says(&format!("{}\n", expected.join("\n")));
    ran.says("\"programs\":[\"python3\"]\n").says("\"packets_out\":1,\"packets_in\":1\n");
    for family in ["172\\.", "\\[fd"] {
        for what in ["opened tcp", "opened udp", "denied tcp", "denied udp"] {
            ran.says(&format!("{what} {family}\n"));
        }
    }
}

#[test]
fn a_denied_look_up_and_its_event_have_one_number() {
    for (family, kind) in [(Family::V4, "A"), (Family::V6, "AAAA")] {
        for transport in ["+notcp", "+tcp"] {
            let (sandbox, file) = sandbox("--allow other.wall-test.com");
            let server = format!("$(awk '/^nameserver/ {{ print $2 }}' /etc/resolv.conf | grep -F {})", dot(family));
            let ran = sandbox.sh(&format!("dig +tries=1 {transport} @{server} {kind} {}", family.name()));
            ran.exits(0).says("EDE: 15 (Blocked)");
            let said = ran.stdout();
            let texts = ["\"dns.query\"", "\"verdict\":\"deny\"", "\"guest\":\""];
            is_told_once(&file, &texts, Some(after(&said, "decision ")));
        }
    }
}

#[test]
fn a_denied_flow_and_its_event_have_one_number_where_the_client_sees_one() {
    for family in Family::BOTH {
        let (name, also) = (family.name(), family.name().replace('v', "also"));
        let private = if family == Family::V4 { "10.77.0.5" } else { "fd12:3456:789a::5" };
        let protocol = match family {
            Family::V4 => "\"icmpv4\"",
            Family::V6 => "\"icmpv6\"",
        };
        let flags = format!("--allow {name}:80+443 --allow {also}:8");
        let (sandbox, file) = sandbox(&flags);
        let option = if family == Family::V4 { "-4" } else { "-6" };
        let unreachable = match family {
            Family::V4 => "awk '/^Icmp: [0-9]/ { print $5 }' /proc/net/snmp",
            Family::V6 => "awk '/^Icmp6InDestUnreachs/ { print $2 }' /proc/net/snmp6",
        };
        let ran = sandbox.sh(&format!(
            r#"
            curl -s {option} --connect-to ::{name}: http://{also}/; echo
            curl -s {option} --connect-to ::{name}: https://{also}/ || echo tls $?
            curl -s http://{}:81/ || echo tcp $?
            ping -c1 -W1 {private} >/dev/null || echo ping $?
            python3 -c 'if True:
                import socket
                s = socket.socket(socket.{}, socket.SOCK_DGRAM)
                s.connect(("{private}", 82)); s.send(b"x")
                try: s.recv(1)
                except OSError as e: print("udp", e.errno)'
            curl -s {option} http://host.cofferdam.internal:83/ || echo alias $?
            before=$({unreachable})
            gtlsclient -q --exit-on-all-streams-close --handshake-timeout=1s {also} 443 https://{also}/ || true
            echo quic $(($({unreachable}) - before))
            "#,
            family.in_url(private),
            if family == Family::V4 { "AF_INET" } else { "AF_INET6" },
        ));
        ran.exits(0).says("\"code\":\"network_policy_denied\"").says("tls 35\n").says("tcp 7\n").says("ping 1\n");
        ran.says("alias 7\n").says("udp ");
        let said = ran.stdout();
        let denied = |texts: &[&'static str]| [&["\"flow.denied\""], texts].concat();
        is_told_once(&file, &denied(&["\"shown\":{\"protocol\":\"http\""]), Some(after(&said, "\"decision\":\"")));
        is_told_once(&file, &denied(&["\"shown\":{\"protocol\":\"tls\""]), None);
        is_told_once(&file, &denied(&[":81\""]), None);
        is_told_once(&file, &denied(&[protocol]), None);
        is_told_once(&file, &denied(&[":82\"", "\"protocol\":\"udp\""]), None);
        is_told_once(&file, &denied(&[":83\"", "\"group\":\"host\""]), None);
        // Each datagram of a client that does not give up is one.
        let quic =
            events(&file, &denied(&["\"protocol\":\"udp\"", ":443\"", "\"shown\":{\"protocol\":\"quic\""])).len();
        assert!(quic > 0 && said.contains(&format!("quic {quic}\n")), "{quic} events: {ran}");
        assert_eq!(events(&file, &denied(&[])).len(), 6 + quic, "{ran}");
    }
}

#[test]
fn a_peer_that_is_denied_at_a_published_port_is_one_event() {
    let ran = World::shared().script(
        r#"
        D=$XDG_STATE_HOME
        mkfifo $D/input
        $C run --events $D/events.jsonl --no-cwd --quiet -p 127.0.0.1:21901:7 -p [::1]:21901:7 --net-rule deny:ingress@any \
            -- sh -c 'echo up; cat' < $D/input > $D/out &
        run=$!
        exec 9> $D/input
        until_ grep -q up $D/out
        for address in 127.0.0.1 ::1; do
            python3 -c 'import socket, sys
try: print("read", socket.create_connection((sys.argv[1], 21901), 5).recv(1))
except ConnectionResetError: print("reset")' $address
        done
        denials() { grep -c '"flow.denied".*"direction":"ingress"' $D/events.jsonl; }
        until_ eval '[ $(denials) -ge 2 ]'
        exec 9>&-
        wait $run
        grep -c '"flow.denied"' $D/events.jsonl
        "#,
    );
    ran.exits(0).says("reset\nreset\n2\n");
}

/// Once is enough: on a machine that is busy a client may be gone before it was seen.
#[track_caller]
fn finds_once(script: &str, words: &[&str]) {
    for _ in 0..20 {
        let (sandbox, file) = sandbox("");
        let ran = sandbox.sh(script);
        ran.exits(0);
        if !events(&file, words).is_empty() {
            return;
        }
    }
    panic!("{words:?} is in no event");
}

#[test]
fn who_pings_and_who_is_refused_is_told() {
    for family in Family::BOTH {
        let (flag, web, inside) = (family.flag(), family.web(), family.inside());
        let ping = r#","comm":"ping","argv0":"ping"}"#;
        let script = format!(
            "ping {flag} -c 3 -i 0.2 -W 5 {web} >/dev/null; ping {flag} -c 3 -i 0.2 -W 1 {inside} >/dev/null || true"
        );
        finds_once(&script, &["\"flow.opened\"", "\"protocol\":\"icmp", ping]);
        finds_once(&script, &["\"flow.denied\"", "\"protocol\":\"icmp", ping]);
        // Nobody listens there.
        let script = format!("curl -s http://{}:4/ || true", family.in_url(web));
        finds_once(&script, &["\"flow.failed\"", "\"comm\":\"curl\""]);
    }
}

#[test]
fn who_connects_to_a_socket_of_the_host_is_told() {
    let ran = World::shared().script(
        r#"
        D=$XDG_STATE_HOME
        python3 $WORLD/files/host_sockets.py serve $D/s > $D/said 2>&1 &
        servers="$servers $!"
        until_ grep -qs up $D/said
        # It stays for a moment: who is gone before it was seen is nobody.
        connect='import socket, time
s = socket.socket(socket.AF_UNIX); s.connect("/run/s"); time.sleep(0.5)'
        $C run --events $D/run.jsonl --no-cwd --quiet --host-socket $D/s:/run/s -- sh -c 'python3 -c "$1"; true' sh "$connect"
        # On a machine that is busy the first word of its command line may be missing.
        grep -o '"socket.opened".*' $D/run.jsonl | sed 's/.*"guest"/"guest"/; s/,"argv0":"python3"//'
        # In a sandbox that stays it is the number that the sandbox counts by, in a run with a network of its own that of the run.
        $C create --no-cwd --host-socket $D/s:/run/s s >/dev/null
        $C exec --quiet s -- python3 -c "$connect"
        $C stop s
        $C log --json s | grep -o '"socket.opened".*' | sed 's/.*"guest"/"guest"/; s/"pid":[0-9]*/"pid":N/; s/,"argv0":"python3"//'
        "#,
    );
    let who = |pid: &str| format!("\"guest\":\"/run/s\",\"process\":{{\"pid\":{pid},\"comm\":\"python3\"}}}}\n");
    assert_eq!(ran.exits(0).stdout(), format!("{}{}", who("3"), who("N")), "{ran}");
}

#[test]
fn a_thousand_idle_processes_hide_nobody() {
    for family in Family::BOTH {
        let idle = "import os, signal, sys
for _ in range(1100):
    if os.fork() == 0:
        signal.pause()
        os._exit(0)
os.system('curl -s -m 5 ' + sys.argv[1])
os.killpg(0, signal.SIGTERM)";
        let script = format!("setsid -w python3 -c \"{idle}\" http://{}/ || true", family.in_url(family.inside()));
        finds_once(&script, &["\"flow.denied\"", "\"comm\":\"curl\""]);
    }
}

#[test]
fn a_program_that_hides_is_denied_and_told_all_the_same() {
    for (family, word) in [(Family::V4, "4"), (Family::V6, "6")] {
        let (sandbox, file) = sandbox("");
        let ran = sandbox.run(&["python3", PROGRAM, "hide", word]);
        ran.exits(0).says("denied in time True");
        let denied = events(&file, &["\"flow.denied\"", "\"protocol\":\"tcp\""]);
        assert_eq!(denied.len(), 50, "{family:?}");
        // Where it was found, its name is a text of one line.
        for line in denied.iter().filter(|line| line.contains("\"process\"")) {
            assert!(line.contains(r#""comm":"\u001b[2J\nblocked""#), "{line}");
        }
    }
}

#[test]
fn a_run_in_a_session_says_who_it_was() {
    let ran: Ran = World::shared().script(
        r#"
        D=$XDG_STATE_HOME
        $C create --no-cwd s >/dev/null
        # On a machine that is busy the client may be gone before it was seen.
        finds() { grep -q '"flow.denied".*"process":{"pid":[0-9]*,"comm":"curl","argv0":"curl"}' $D/events.jsonl; }
        for network in "" "--net public"; do
            n=0
            until $C exec --quiet $network --events $D/events.jsonl s -- curl -s http://10.77.0.5/ || finds; do
                n=$((n + 1))
                [ $n -lt 50 ] || { cat $D/events.jsonl; exit 1; }
            done
            echo found $network
        done
        "#,
    );
    ran.exits(0).says("found\nfound --net public\n");
}

/// What an address of this family has in it.
fn dot(family: Family) -> &'static str {
    match family {
        Family::V4 => ".",
        Family::V6 => ":",
    }
}
