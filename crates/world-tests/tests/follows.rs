//! The machine's resolvers change while a sandbox runs.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Write};

use cofferdam_world_tests::{Family, World};

/// Looks a name up until it has the address that is wanted, for up to ten seconds, or once, and says what it has.
const PROGRAM: &str = "
import subprocess, sys, time
for line in sys.stdin:
    name, wanted = line.split()
    end = time.monotonic() + 10
    while True:
        said = subprocess.run(['dig', '+short', '+tries=1', '+time=2', name], capture_output=True, text=True).stdout.strip()
        if wanted in (said, '-') or time.monotonic() > end:
            break
    print(said, flush=True)
";

/// One resolver knows names that the other does not.
#[test]
fn other_resolvers_are_asked_without_a_new_start() {
    let world = World::with_resolvers();
    let resolv_conf = world.path("etc/resolv.conf");
    let sandbox = world.sandbox();
    let mut child = sandbox.start(&["python3", "-c", PROGRAM]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut ask = |name: &str, wanted: &str| {
        writeln!(child.stdin.as_mut().unwrap(), "{name} {wanted}").unwrap();
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        line.trim().to_owned()
    };
    assert_eq!(ask("v4.wall-test.com", Family::V4.web()), Family::V4.web());
    for family in Family::BOTH {
        let knot = if family == Family::V4 { "93.184.215.54" } else { "2606:2800:21f:cb07::54" };
        fs::write(&resolv_conf, format!("nameserver {knot}\n")).unwrap();
        assert_eq!(ask("v4.names-test.com", Family::V4.web()), Family::V4.web());
        // What the former one said is forgotten; this one knows nothing of it.
        assert_eq!(ask("v4.wall-test.com", "-"), "");
        let dnsmasq = if family == Family::V4 { "2606:2800:21f:cb07::53" } else { "93.184.215.53" };
        fs::write(&resolv_conf, format!("nameserver {dnsmasq}\n")).unwrap();
        assert_eq!(ask("v4.wall-test.com", Family::V4.web()), Family::V4.web());
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
