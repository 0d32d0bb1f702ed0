//! What changes while a sandbox runs: the host's addresses, and whether there is a gateway.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command};

use cofferdam_world_tests::{Family, Process, Sandbox, World};

/// Holds a connection to an address until it is reset, tries to make others, and waits until it can again.
const PROGRAM: &str = "
import socket, sys, time
address = sys.argv[1]
def attempt():
    try:
        socket.create_connection((address, 7), 20).close()
        return 'made'
    except OSError as error:
        return type(error).__name__
held = socket.create_connection((address, 7), 20)
print('ready', flush=True)
try:
    print('held:', held.recv(1), flush=True)
except OSError as error:
    print('held:', type(error).__name__, flush=True)
print('others:', *sorted({attempt() for _ in range(20)}), flush=True)
sys.stdin.readline()
end = time.monotonic() + 20
while attempt() != 'made':
    assert time.monotonic() < end, 'never again'
print('again', flush=True)
";

/// One change after the other: each has to do with how the host reaches the world.
#[test]
fn denied_is_what_the_host_has_from_when_it_has_it() {
    let [v4, v6] = Family::BOTH;
    let changes = [
        (v4.other(), "host", ["ip addr add 151.101.1.69/32 dev lan0", "ip addr del 151.101.1.69/32 dev lan0"]),
        (v6.other(), "host", ["ip addr add 2a04:4e42::645/128 dev lan0", "ip addr del 2a04:4e42::645/128 dev lan0"]),
        (v4.web(), "private", ["ip addr add 93.184.215.2/26 dev lan0", "ip addr del 93.184.215.2/26 dev lan0"]),
        (
            v6.web(),
            "private",
            ["ip addr add 2606:2800:21f:cb07::2/123 dev lan0", "ip addr del 2606:2800:21f:cb07::2/123 dev lan0"],
        ),
    ];
    for (address, group, [add, remove]) in changes {
        is_denied_while_the_host_has(address, group, [add, remove]);
    }
}

/// A server is reached, denied while the host has what `add` gives it, and reached again.
#[track_caller]
fn is_denied_while_the_host_has(address: &str, group: &str, [add, remove]: [&'static str; 2]) {
    let world = World::shared();
    let sandbox = world.sandbox().flags("--quiet --events events.json");
    let (mut child, mut out) = start(&sandbox, &["python3", "-c", PROGRAM, address]);
    let mut said = line(&mut out);
    if said == "ready" {
        world.change_the_host(add);
        said = format!("{} {}", line(&mut out), line(&mut out));
        world.change_the_host(remove);
        writeln!(child.stdin.as_mut().unwrap(), "removed").unwrap();
        said = format!("{said} {}", line(&mut out));
    }
    let mut complaints = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{said} {complaints}");
    assert_eq!(said, "held: ConnectionResetError others: ConnectionRefusedError again", "{address}");
    let events = fs::read_to_string(sandbox.folder().join("events.json")).unwrap();
    let count = |parts: &[&str]| events.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count();
    // The one that was held, and twenty others; more while the address was on its way out.
    assert!(count(&["\"flow.denied\"", &format!("\"group\":\"{group}\"")]) >= 21, "{events}");
    assert_eq!(count(&["\"flow.closed\"", "\"by\":\"policy\""]), 1, "{events}");
}

#[test]
fn the_death_of_the_gateway_is_told_at_once() {
    let world = World::shared();
    let marked = world.marked();
    let sandbox = world.sandbox();
    let script =
        format!("echo ready; read -r word; curl -sm5 http://{}/; exit 0; # {}", Family::V4.web(), marked.word());
    let (mut child, mut out) = start(&sandbox, &["sh", "-c", &script]);
    assert_eq!(line(&mut out), "ready");
    let gateway =
        marked.processes().into_iter().find(|process| is_gateway(process, &child)).expect("there is a gateway");
    let killed = Command::new("kill").args(["-KILL", &gateway.pid.to_string()]).status();
    assert!(killed.unwrap().success());
    let mut told = String::new();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    err.read_line(&mut told).unwrap();
    assert_eq!(
        told,
        "cofferdam: the gateway has ended (signal 9); the sandbox has no network from here on, and the program goes on \
         without\n"
    );
    // The program is still there, without a network; it says itself that all went well.
    writeln!(child.stdin.as_mut().unwrap(), "go on").unwrap();
    err.read_to_string(&mut told).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(125), "{told}");
    assert!(told.contains("the gateway ended before the program did (signal 9)"), "{told}");
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "the program had a network");
}

/// Children of the supervisor, which is the only child of `timeout` of ours, are the gateway and the sandbox's init.
fn is_gateway(process: &Process, child: &Child) -> bool {
    let name = fs::read_to_string(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
    process.is_ours && process.parent != child.id() && !name.starts_with("cofferdam-init")
}

fn start(sandbox: &Sandbox<'_>, command: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut child = sandbox.start(command);
    let out = BufReader::new(child.stdout.take().expect("the child has a pipe for its output"));
    (child, out)
}

/// The next line that the program says, without its end.
fn line(out: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    out.read_line(&mut line).expect("the program speaks UTF-8");
    line.trim_end().to_owned()
}

#[test]
fn a_plain_run_is_changed_while_it_goes_on() {
    for family in Family::BOTH {
        let ran = World::shared().script(&format!(
            r#"
            D=$XDG_STATE_HOME
            mkfifo $D/input
            $C run --no-cwd --quiet --allow other.wall-test.com -- sh -c \
                'while read line; do curl -s -m5 -o /dev/null http://{name}/ && echo reached || echo denied; done' < $D/input > $D/out &
            run=$!
            exec 9> $D/input
            echo >&9
            until_ grep -q denied $D/out
            $C policy show last
            $C policy set last --allow {name}
            $C policy show --json last | grep -c {name}
            echo >&9
            until_ grep -q reached $D/out
            $C policy set last --allow other.wall-test.com
            echo >&9
            until_ eval '[ $(grep -c denied $D/out) = 2 ]'
            # Its folder is closed to others, and so is the socket.
            stat -c '%a %F' $D/cofferdam/runs/2*/control
            stat -c '%a' $D/cofferdam/runs/2*
            $C log last --json | grep -c policy.changed
            $C run --no-cwd --host-socket $(echo $D/cofferdam/runs/2*/control):/run/c -- true 2>&1 | grep -c 'cannot be shared'
            exec 9>&-
            wait $run
            ls $D/cofferdam/runs/2*/control 2>/dev/null || echo gone
            $C policy set last --allow {name} || echo failed $?
            "#,
            name = family.name(),
        ));
        ran.exits(0).says("allow@other.wall-test.com:tcp+udp\ndefault egress deny\n");
        ran.says("1\n600 socket\n700\n2\n1\ngone\n").says("failed 1\n");
    }
}

#[test]
fn a_run_in_a_session_stands_for_it_unless_it_has_a_network_of_its_own() {
    for family in Family::BOTH {
        let ran = World::shared().script(&format!(
            r#"
            D=$XDG_STATE_HOME
            mkfifo $D/input
            begin() {{
                rm -f $D/out
                $C exec --quiet "$@" -- sh -c \
                    'while read line; do curl -s -m5 -o /dev/null http://{name}/ && echo reached || echo denied; done' < $D/input > $D/out &
                run=$!
                exec 9> $D/input
                echo >&9
                until_ grep -qs denied $D/out
            }}
            end() {{ exec 9>&-; wait $run; }}
            $C create --no-cwd --allow other.wall-test.com stays
            begin stays
            $C policy show last | head -1
            $C policy set last --allow {name}
            echo >&9
            until_ grep -q reached $D/out
            end
            $C policy show stays | head -1
            grep -c {name} $D/cofferdam/sandboxes/stays/sandbox.json
            begin --allow other.wall-test.com stays
            $C policy set last --allow {name} || echo failed $?
            end
            $C stop stays
            $C policy show stays || echo failed $?
            "#,
            name = family.name(),
        ));
        ran.exits(0).says("allow@other.wall-test.com:tcp+udp\n");
        ran.says(&format!("allow@{}:tcp+udp\n1\nfailed 1\nfailed 1\n", family.name()));
        ran.complains("has a network of its own in the sandbox stays").complains("has ended");
    }
}
