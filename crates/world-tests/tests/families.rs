//! Everything once on a machine with both address families, on one with IPv4 alone, and on one with IPv6 alone.
//!
//! A family that the machine has works. One that it has not is never a black hole: a name has no addresses of it, or a
//! connection to one fails at once, so that a client that tries both is not held up.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use cofferdam_world_tests::{Family, Sandbox, Served, World};

/// How long a client may take that meets a dead family: the start of a sandbox, and nobody's time-out.
const AT_ONCE: Duration = Duration::from_secs(4);

/// Each case is a test on each of the machines.
macro_rules! on_each_machine {
    ($($case:ident)*) => {
        tests_on!(both_families, Machine { world: World::start(), has: &Family::BOTH }, $($case)*);
        tests_on!(ipv4_alone, Machine { world: World::with_only(Family::V4), has: &[Family::V4] }, $($case)*);
        tests_on!(ipv6_alone, Machine { world: World::with_only(Family::V6), has: &[Family::V6] }, $($case)*);
    };
}

macro_rules! tests_on {
    ($which:ident, $machine:expr, $($case:ident)*) => {
        mod $which {
            use super::{Family, Machine, OnceLock, World};

            static MACHINE: OnceLock<Machine> = OnceLock::new();

            $(
                #[test]
                fn $case() {
                    super::$case(MACHINE.get_or_init(|| $machine));
                }
            )*
        }
    };
}

on_each_machine! {
    an_allowed_address_is_reached
    an_allowed_name_is_reached_by_every_client
    a_denied_address_and_a_denied_name_are_refused_at_once
    every_resolver_of_the_sandbox_answers
    a_resolver_of_either_family_is_asked_and_a_dead_one_passed_over
    datagrams_come_back
    a_family_that_is_asked_for_and_not_there_is_unreachable_at_once
    pings_come_back
    services_of_the_host_are_reached_by_a_rule
    published_ports_lead_in
    runs_of_a_session_have_less_than_it_and_a_new_policy_counts
    limits_hold
    what_was_denied_is_told
    the_doctor_says_which_families_there_are
    a_session_installs_then_tests_offline_then_installs_again
}

/// A world, and the families that its host has.
struct Machine {
    world: World,
    has: &'static [Family],
}

impl Machine {
    fn sandbox(&self, flags: &str) -> Sandbox<'_> {
        self.world.sandbox().flags(flags)
    }

    /// Each family, and whether the host has it.
    fn families(&self) -> impl Iterator<Item = (Family, bool)> {
        Family::BOTH.into_iter().map(|family| (family, self.has.contains(&family)))
    }
}

fn an_allowed_address_is_reached(machine: &Machine) {
    for (family, works) in machine.families() {
        let address = family.in_url(family.web());
        let url = format!("http://{address}/");
        let ran = machine.sandbox(&format!("--allow {address}:80")).run(&["curl", "-sSv", "-m10", &url]);
        if works {
            ran.exits(0).says("hello from the world");
        } else {
            ran.exits(7).complains("Network is unreachable").within(AT_ONCE);
        }
    }
}

fn an_allowed_name_is_reached_by_every_client(machine: &Machine) {
    let fetch = "fetch('http://web.wall-test.com/').then(async answer => console.log(await answer.text()))";
    let open = "import urllib.request as r; print(r.urlopen('http://web.wall-test.com/', timeout=20).read().decode())";
    let clients: [&[&str]; 4] = [
        &["curl", "-sS", "http://web.wall-test.com/"],
        &["wget", "-qO-", "-T20", "-t1", "http://web.wall-test.com/"],
        &["node", "-e", fetch],
        &["python3", "-c", open],
    ];
    for client in clients {
        let ran = machine.sandbox("--allow web.wall-test.com:80").run(client);
        ran.exits(0).says("hello from the world").within(AT_ONCE);
    }
    // A name with one family alone has addresses that work, or is a failure at once.
    for (family, works) in machine.families() {
        let url = format!("http://{}/", family.name());
        let ran = machine.sandbox(&format!("--allow {}", family.name())).run(&["curl", "-sS", "-m10", &url]);
        if works {
            ran.exits(0).says("hello from the world");
        } else {
            ran.fails().within(AT_ONCE);
        }
    }
}

fn a_denied_address_and_a_denied_name_are_refused_at_once(machine: &Machine) {
    for family in Family::BOTH {
        let flags = "--allow other.wall-test.com";
        let by_address = format!("http://{}/", family.in_url(family.web()));
        machine.sandbox(flags).run(&["curl", "-sS", "-m10", &by_address]).exits(7).within(AT_ONCE);
        let by_name = format!("http://{}/", family.name());
        machine.sandbox(flags).run(&["curl", "-sS", "-m10", &by_name]).exits(6).within(AT_ONCE);
    }
}

fn every_resolver_of_the_sandbox_answers(machine: &Machine) {
    for (family, works) in machine.families() {
        let kind = if family == Family::V4 { "A" } else { "AAAA" };
        for transport in ["+notcp", "+tcp"] {
            let script = format!(
                "for server in $(sed -n 's/^nameserver //p' /etc/resolv.conf); do
                    dig +tries=1 +time=4 {transport} @$server web.wall-test.com {kind} | grep -E 'status|ANSWER:|^web'
                done"
            );
            let ran = machine.sandbox("--allow web.wall-test.com").sh(&script);
            let servers = if machine.has.contains(&Family::V6) { 2 } else { 1 };
            ran.exits(0).within(AT_ONCE);
            assert_eq!(ran.stdout().matches("status: NOERROR").count(), servers, "{ran}");
            // IPv4 is there in every sandbox, and so are its addresses; they are unreachable at once.
            let addresses = if works || family == Family::V4 { servers } else { 0 };
            assert_eq!(ran.stdout().matches(family.web()).count(), addresses, "{ran}");
        }
    }
}

fn a_resolver_of_either_family_is_asked_and_a_dead_one_passed_over(machine: &Machine) {
    let [v4, v6] = ["93.184.215.53", "2606:2800:21f:cb07::53"];
    for (first, second) in [(v4, v6), (v6, v4)] {
        let flags = format!("--dns-nameserver {first} --dns-nameserver {second}");
        let ran = machine.sandbox(&flags).run(&["dig", "+tries=1", "+time=4", "txt.wall-test.com", "TXT"]);
        ran.exits(0).says("hello").within(AT_ONCE);
    }
}

/// Sends a datagram to an echo server, and says what came of it.
fn datagram(family: Family) -> String {
    format!(
        "import errno, socket
try:
    s = socket.socket(socket.{}, socket.SOCK_DGRAM); s.settimeout(10); s.connect(('{}', 7)); s.send(b'word')
    print(s.recv(10))
except OSError as e: print(errno.errorcode.get(e.errno, e))",
        if family == Family::V4 { "AF_INET" } else { "AF_INET6" },
        family.web()
    )
}

fn datagrams_come_back(machine: &Machine) {
    for (family, works) in machine.families() {
        let program = datagram(family);
        let ran = machine.sandbox("").run(&["python3", "-c", &program]);
        ran.exits(0).says(if works { "b'word'" } else { "ENETUNREACH" }).within(AT_ONCE);
        let ran = machine.sandbox("--net-default-egress deny").run(&["python3", "-c", &program]);
        ran.exits(0).never_says("word").never_says("timed out").within(AT_ONCE);
    }
}

/// `--ipv6` gives a sandbox what its machine has not.
fn a_family_that_is_asked_for_and_not_there_is_unreachable_at_once(machine: &Machine) {
    let works = machine.has.contains(&Family::V6);
    let sandbox = || machine.sandbox("--ipv6");
    let ran = sandbox().run(&["dig", "+short", "web.wall-test.com", "AAAA"]);
    ran.exits(0).says(Family::V6.web());
    let ran = sandbox().run(&["curl", "-sS", "http://web.wall-test.com/"]);
    ran.exits(0).says("hello from the world").within(AT_ONCE);
    let url = format!("http://{}/", Family::V6.in_url(Family::V6.web()));
    let ran = sandbox().run(&["curl", "-sS", "-m10", &url]);
    ran.exits(if works { 0 } else { 7 }).within(AT_ONCE);
    let ran = sandbox().run(&["python3", "-c", &datagram(Family::V6)]);
    // What Linux makes of a route that rejects (RFC 4443, 3.1, code 6).
    ran.exits(0).says(if works { "b'word'" } else { "EACCES" }).within(AT_ONCE);
}

fn pings_come_back(machine: &Machine) {
    for (family, works) in machine.families() {
        let ran = machine.sandbox("").run(&["ping", family.flag(), "-c1", "-W10", family.web()]);
        if works {
            ran.exits(0).says(" 0% packet loss");
        } else {
            ran.fails().within(AT_ONCE);
        }
    }
}

/// By the name of the host and by its addresses inside, over both protocols, whichever families it has outside.
fn services_of_the_host_are_reached_by_a_rule(machine: &Machine) {
    let families = if machine.has.contains(&Family::V6) { "4 6" } else { "4" };
    let sandbox = machine.sandbox("");
    fs::write(sandbox.folder().join("ports.py"), machine.world.program("ports.py")).expect("the folder is ours");
    let ran = machine.world.script_in(
        sandbox,
        &format!(
            r#"
        serve python3 ports.py serve 25007 25008
        until_ sh -c 'ss -Hltun sport = :25008 | grep -c . | grep -qx 4'
        cat >clients <<'END'
exec 3<>/dev/tcp/host.cofferdam.internal/25008; cat <&3; echo
for version in {families}; do
    address=$(getent ahostsv$version host.cofferdam.internal | {{ read -r first rest; echo $first; }})
    python3 ports.py halfclose $address 25007
    python3 ports.py udp $address 25007 3
    python3 ports.py who $address 25008
done
END
        $C run --quiet --net public,host -- bash -eu ./clients
        $C run --quiet -- bash -eu ./clients 2>&1 | grep -o refused
        "#
        ),
    );
    ran.exits(0).says("127.0.0.1 ").says("refused\n").never_says("broken");
    for text in ["whole\n", "12 good\n", "seen as 127.0.0.1 "] {
        assert_eq!(ran.stdout().matches(text).count(), families.split(' ').count(), "{text}\n{ran}");
    }
}

fn published_ports_lead_in(machine: &Machine) {
    let world = &machine.world;
    let program = world.path("files/ports.py").display().to_string();
    let mut flags = String::new();
    for bind in ["127.0.0.1", "[::1]"] {
        flags.push_str(&format!("-p {bind}:26007:7 -p {bind}:26007:7/udp "));
    }
    for bind in ["0.0.0.0", "[::]"] {
        flags.push_str(&format!("-p {bind}:26008:8 -p {bind}:26008:8/udp "));
    }
    let served = Served::start(&machine.sandbox(&flags), &["python3", "-c", world.program("ports.py"), "serve"]);
    for (family, works) in machine.families() {
        let loopback = family.loopback();
        let client = |words: &[&str]| world.on_the_host(&[&["python3", &program], words].concat());
        client(&["halfclose", loopback, "26007"]).exits(0).says("whole");
        client(&["udp", loopback, "26007", "3"]).exits(0).says("12 good");
        for who in ["who", "whoudp"] {
            client(&[who, loopback, "26008"]).exits(0).never_says("seen as 127.0.0.1").never_says("seen as ::1");
            if works {
                let ran = world.from_outside(&["python3", &program, who, family.host(), "26008"]);
                ran.exits(0).says(&format!("seen as {}", family.beyond()));
            }
        }
    }
    drop(served);
}

fn runs_of_a_session_have_less_than_it_and_a_new_policy_counts(machine: &Machine) {
    for (family, works) in machine.families() {
        let (web, other) = (family.in_url(family.web()), family.in_url(family.other()));
        let ran = machine.world.script(&format!(
            r#"
            only="--net-default-egress deny --net-rule"
            try='for url in {web} {other}; do curl -s -m10 -o /dev/null http://$url/ && echo "$0 $url"; done; true'
            $C create s --no-cwd $only 'allow@{web},allow@{other}'
            $C exec --quiet s -- sh -c "$try" session
            $C exec --quiet $only 'allow@{web}' s -- sh -c "$try" narrow
            $C exec --quiet --net all s -- sh -c "$try" wide
            $C policy set s $only 'allow@{other}'
            $C exec --quiet s -- sh -c "$try" after
            $C exec --quiet $only 'allow@{web}' s -- sh -c "$try" narrow-after
            "#
        ));
        ran.exits(0).within(AT_ONCE * 3);
        let reached =
            format!("session {web}\nsession {other}\nnarrow {web}\nwide {web}\nwide {other}\nafter {other}\n");
        assert_eq!(ran.stdout(), if works { reached } else { String::new() }, "{ran}");
    }
}

fn limits_hold(machine: &Machine) {
    for (family, works) in machine.families() {
        if !works {
            continue;
        }
        let program = format!(
            "import socket
held = [socket.create_connection(('{0}', 7), 10) for _ in range(3)]
try: socket.create_connection(('{0}', 7), 10)
except ConnectionRefusedError: print('refused')",
            family.web()
        );
        let ran = machine.sandbox("--quiet --max-connections 3").run(&["python3", "-c", &program]);
        ran.exits(0).says("refused");
        let url = format!("http://{}/files/big", family.in_url(family.web()));
        let ran = machine.sandbox("--net-budget 100K:ingress").run(&["curl", "-sS", "-o", "got", &url]);
        ran.exits(56).complains("the budget of 102400 bytes ingress is used up");
    }
}

fn what_was_denied_is_told(machine: &Machine) {
    for (family, works) in machine.families() {
        let address = family.in_url(family.web());
        let sandbox = machine.sandbox("--allow other.wall-test.com --json-summary summary.json");
        let summary = sandbox.folder().join("summary.json");
        let ran = sandbox.run(&["curl", "-sS", "-m10", &format!("http://{address}/")]);
        let summary = fs::read_to_string(summary).expect("the run has left a summary");
        // Over IPv6 that a sandbox has not, nothing was asked for.
        if works || family == Family::V4 {
            ran.exits(7).complains("blocked").complains("→ --allow ").complains(&format!("{address}:80"));
            assert!(summary.contains(family.web()), "{summary}");
        } else {
            ran.exits(7).complains("Couldn't connect");
            assert!(!summary.contains(family.web()), "{summary}");
        }
    }
}

fn the_doctor_says_which_families_there_are(machine: &Machine) {
    let program = machine.world.cofferdam().to_str().expect("a path in UTF-8");
    let ran = machine.world.on_the_host(&[program, "doctor", "--json"]);
    ran.exits(0);
    let said = ran.stdout();
    let state = |check: &str| said.split('{').find(|finding| finding.contains(check)).unwrap_or_default().to_owned();
    let route = if machine.has.contains(&Family::V6) { "\"good\"" } else { "\"limited\"" };
    assert!(state("\"IPv6 route\"").contains(route), "{ran}");
    for check in ["\"a whole sandbox\"", "\"gateway, IPv4\"", "\"gateway, IPv6\"", "\"resolvers\""] {
        assert!(state(check).contains("\"good\""), "{check}\n{ran}");
    }
}

/// `@pypi` is what lets pip through; between the two installations there is no network, and the tests pass without.
fn a_session_installs_then_tests_offline_then_installs_again(machine: &Machine) {
    let ran = machine.world.script(
        r#"
        cat >test_wall.py <<'END'
import unittest, wallpkg
class Greets(unittest.TestCase):
    def test_greeting(self): self.assertEqual(wallpkg.GREETING, "hello from a wheel")
END
        pip="python3 -m pip install -q --disable-pip-version-check --no-cache-dir --retries 0 --timeout 5 --cert ca.pem --target site"
        $C create s --allow @pypi -e PYTHONPATH=site -e PYTHONDONTWRITEBYTECODE=1
        $C exec --quiet s -- $pip wallpkg
        $C exec --quiet --network-mode blocked s -- sh -c "$pip walltools 2>&1 | grep -o 'No matching distribution' || true; python3 -m unittest -q test_wall 2>&1"
        $C exec --quiet s -- sh -c "$pip walltools && python3 -c 'import wallpkg, walltools; print(\"both\")'"
        $C exec --quiet s -- curl -sS http://web.wall-test.com/ 2>/dev/null || echo "nothing else $?"
        $C policy set s --allow pypi.org
        $C exec --quiet s -- sh -c "$pip --upgrade --force-reinstall walltools 2>&1 | grep -o files.pythonhosted.org | head -n 1"
        "#,
    );
    ran.exits(0)
        .says("No matching distribution\n")
        .says("\nOK\n")
        .says("both\nnothing else 6\nfiles.pythonhosted.org\n");
}
