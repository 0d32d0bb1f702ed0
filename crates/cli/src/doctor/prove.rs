//! `cofferdam doctor --prove`: every way out of a sandbox, tried.
//!
//! In a [closed world](crate::world) where everything answers, the same attempts are made twice: outside any sandbox, to
//! show that they work, and inside one whose policy denies everything, by a program that is root there and may make
//! raw packets. Each must work the first time and be stopped the second time, and no server may hear of it.

use std::fmt::Write as _;
use std::time::Duration;

use cofferdam_control::summary::Advice;
use serde_json::json;

use crate::client::Reached;
use crate::output::{self, Paint, Style};
use crate::world::World;

/// A name, asked of the resolver that the system names.
const LOOKUP: &str = "lookup:www.example.com";
/// The same name, asked of the world's resolver.
const DIRECT: &str = "dns:9.9.9.9:53";

/// How long to wait in the sandbox. What is silent there costs this time; an answer that comes later has been heard by
/// its server all the same, which is counted.
const PATIENCE_INSIDE: Duration = Duration::from_millis(1200);

/// A way out, and how it is shown.
const WAYS: [(&str, &str); 22] = [
    ("tcp:93.184.216.34:7", "TCP to a public address"),
    ("http:93.184.216.34:80", "HTTP to a public address"),
    ("udp:93.184.216.34:7", "UDP to a public address"),
    ("ping:93.184.216.34", "ICMP echo to a public address"),
    ("raw:93.184.216.34", "IP protocol 253 to a public address"),
    (LOOKUP, "DNS through the system's resolver"),
    (DIRECT, "DNS to a public resolver"),
    ("tcp:[2606:2800:21f:cb07::1]:7", "TCP over IPv6"),
    ("http:[2606:2800:21f:cb07::1]:80", "HTTP over IPv6"),
    ("udp:[2606:2800:21f:cb07::1]:7", "UDP over IPv6"),
    ("ping:2606:2800:21f:cb07::1", "ICMPv6 echo"),
    ("raw:2606:2800:21f:cb07::1", "IP protocol 253 over IPv6"),
    ("tcp:192.168.50.10:7", "TCP to a neighbour on the LAN"),
    ("udp:192.168.50.10:7", "UDP to a neighbour on the LAN"),
    ("ping:192.168.50.10", "ICMP echo to a neighbour on the LAN"),
    ("http:169.254.169.254:80", "HTTP to the metadata service"),
    ("udp:169.254.169.254:7", "UDP to the metadata service"),
    ("http:127.0.0.1:9000", "TCP to the machine's loopback"),
    ("udp:127.0.0.1:9000", "UDP to the machine's loopback"),
    ("tcp:[::ffff:93.184.216.34]:7", "TCP to an IPv4-mapped address"),
    ("ping:192.168.50.2", "ICMP echo to the machine's LAN address"),
    ("abstract:cofferdam-world", "an abstract Unix socket of the machine"),
];

/// One way out, both times.
#[derive(Debug, serde::Serialize)]
struct Proof {
    attempt: &'static str,
    what: &'static str,
    outside: Outcome,
    inside: Outcome,
    stopped: bool,
}

#[derive(Debug, serde::Serialize)]
struct Outcome {
    result: Reached,
    detail: String,
}

/// Tries every way out and shows what happened.
pub(super) fn prove(as_json: bool) -> u8 {
    let (proofs, visits) = match carry_out() {
        Ok(done) => done,
        Err(error) => return output::fail(&format!("the proof could not be carried out: {error}"), 1),
    };
    // A way that does not work without a sandbox proves nothing; it is shown as such.
    let holds = visits == 0 && proofs.iter().all(|proof| proof.stopped);
    let printed = if as_json {
        output::print_json(&json!({ "holds": holds, "heard_by_servers": visits, "proofs": proofs }))
    } else {
        output::print(&table(&proofs, visits, holds, Paint::stdout()))
    };
    if holds { printed } else { 1 }
}

fn carry_out() -> Result<(Vec<Proof>, u64), String> {
    let world = World::build()?;
    let ways: Vec<(&str, &str)> =
        WAYS.into_iter().filter(|(attempt, _)| world.ipv6 || !attempt.contains("2606:")).collect();
    let attempts: Vec<&str> = ways.iter().map(|(attempt, _)| *attempt).collect();
    // Outside, names are looked up with the resolver of this machine's own /etc/resolv.conf, which is not in the world:
    // that the world's resolver answers is shown by asking it directly.
    let direct: Vec<&str> = attempts.iter().copied().filter(|attempt| *attempt != LOOKUP).collect();
    let outside = world.without_sandbox(&direct)?;
    let denied = ["--net-rule", "deny@any", "--cap-add", "NET_RAW"];
    let inside = world.in_sandbox(&denied, &attempts, Advice::default(), PATIENCE_INSIDE)?;
    let outcome = |findings: &[crate::client::Finding], attempt: &str| {
        let finding = findings.iter().find(|finding| finding.attempt == attempt).cloned();
        finding.map_or(Outcome { result: Reached::Failed, detail: "nothing was reported".to_owned() }, |finding| {
            Outcome { result: finding.result, detail: finding.detail }
        })
    };
    let proofs = ways
        .into_iter()
        .map(|(attempt, what)| {
            let control = if attempt == LOOKUP { DIRECT } else { attempt };
            let (outside, inside) = (outcome(&outside.findings, control), outcome(&inside.findings, attempt));
            let reported = inside.detail != "nothing was reported";
            let stopped = inside.result != Reached::Yes && reported;
            Proof { attempt, what, outside, inside, stopped }
        })
        .collect();
    Ok((proofs, inside.visits))
}

fn table(proofs: &[Proof], visits: u64, holds: bool, paint: Paint) -> String {
    let mut text = String::new();
    let header = format!("{:42} {:18} {}", "Tried", "without a sandbox", "in a sandbox that denies everything");
    let _ = writeln!(text, "{}", paint.paint(Style::Strong, &header));
    for proof in proofs {
        let outside = if proof.outside.result == Reached::Yes {
            paint.paint(Style::Good, &format!("{:18}", "works"))
        } else {
            paint.paint(Style::Notable, &format!("{:18}", "does not work here"))
        };
        let inside = if !proof.stopped {
            paint.paint(Style::Bad, "NOT STOPPED")
        } else if proof.inside.result == Reached::Silence {
            paint.paint(Style::Good, "stopped: no answer")
        } else {
            paint.paint(Style::Good, &format!("stopped: {}", shorten(&proof.inside.detail)))
        };
        let _ = writeln!(text, "{:42} {outside} {inside}", proof.what);
    }
    let _ = writeln!(text, "\nServers outside heard from the sandbox {visits} times.");
    text.push_str(if holds { "The wall holds.\n" } else { "THE WALL DOES NOT HOLD.\n" });
    text
}

/// An error without the number behind it and without what every failed look-up says first.
fn shorten(detail: &str) -> String {
    let text = detail.split(" (os error").next().unwrap_or(detail);
    let text = text.strip_prefix("failed to lookup address information: ").unwrap_or(text);
    cofferdam_control::summary::escaped(text)
}
