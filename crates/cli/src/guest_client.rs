//! The clients of `demo --backend vm`: those that a guest has, which is busybox.
//!
//! Attempts have the same words as those of [`client`](crate::client). They become one piece of shell that tries all of them
//! at once and prints a line for each: its status and the last that it said. What that means is found out here.

use std::fmt::Write as _;
use std::time::Duration;

use crate::client::{Finding, Reached};

/// What the lines of findings begin with.
const MARK: &str = "attempt ";

/// The exit status of busybox's timeout when time was up: that of the signal that it sends.
const TIME_WAS_UP: u8 = 128 + 15;

/// A piece of shell that carries out attempts.
pub(crate) fn script(attempts: &[&str], patience: Duration) -> String {
    let patience = patience.as_secs().max(1);
    let mut script = String::new();
    for attempt in attempts {
        let client = client(attempt, patience);
        // One write for each line, which a pipe takes whole.
        let _ = writeln!(script, "(said=$({client} 2>&1 </dev/null); echo \"{MARK}{attempt} $? $(echo $said)\") &");
    }
    script.push_str("wait\n");
    script
}

/// The command of one attempt. Attempts are words of ours, and have nothing in them that means something to a shell.
fn client(attempt: &str, patience: u64) -> String {
    let (kind, target) = attempt.split_once(':').unwrap_or((attempt, ""));
    match kind {
        "http" => format!("timeout {patience} wget -qO- http://{target}/"),
        // It does not hear of a refusal, and waits; a reply has a few milliseconds to come.
        "ping" => format!("ping -c 1 -W {} {target}", patience.min(3)),
        _ => "echo unknown attempt; false".to_owned(),
    }
}

/// What a line of the script says; `None` for any other.
pub(crate) fn parse(line: &str) -> Option<Finding> {
    let (attempt, rest) = line.strip_prefix(MARK)?.split_once(' ')?;
    let (status, said) = rest.split_once(' ').unwrap_or((rest, ""));
    let status: u8 = status.parse().ok()?;
    Some(Finding { attempt: attempt.to_owned(), result: classify(status, said), detail: said.trim().to_owned() })
}

/// What busybox means.
fn classify(status: u8, said: &str) -> Reached {
    let words = [
        ("bad address", Reached::Unresolved),
        ("Connection refused", Reached::Refused),
        ("Connection reset", Reached::Refused),
        ("Network is unreachable", Reached::Unreachable),
        // "Administratively prohibited" (RFC 1122 §3.2.2.1, net/ipv4/icmp.c).
        ("No route to host", Reached::Prohibited),
        ("Permission denied", Reached::Prohibited),
        ("timed out", Reached::Silence),
        ("100% packet loss", Reached::Silence),
    ];
    match status {
        0 => Reached::Yes,
        TIME_WAS_UP => Reached::Silence,
        _ => words.iter().find(|(word, _)| said.contains(word)).map_or(Reached::Failed, |(_, reached)| *reached),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_what_busybox_said() {
        for (line, attempt, result, detail) in [
            ("attempt http:example.com:80 0 hello", "http:example.com:80", Reached::Yes, "hello"),
            (
                "attempt http:a:80 1 wget: bad address 'a:80'",
                "http:a:80",
                Reached::Unresolved,
                "wget: bad address 'a:80'",
            ),
            (
                "attempt http:192.0.2.1:80 1 wget: can't connect to remote host (192.0.2.1): Connection refused",
                "http:192.0.2.1:80",
                Reached::Refused,
                "wget: can't connect to remote host (192.0.2.1): Connection refused",
            ),
            ("attempt http:a:80 143", "http:a:80", Reached::Silence, ""),
            (
                "attempt ping:a 1 1 packets transmitted, 100% packet loss",
                "ping:a",
                Reached::Silence,
                "1 packets transmitted, 100% packet loss",
            ),
            ("attempt x 1 what else", "x", Reached::Failed, "what else"),
        ] {
            let finding = Finding { attempt: attempt.to_owned(), result, detail: detail.to_owned() };
            assert_eq!(parse(line), Some(finding), "{line}");
        }
    }

    #[test]
    fn other_lines_are_none_of_its_own() {
        for line in ["", "attempt ", "attempt x", "attempt x y z", "attempt x 256 z", "{}", "wget: attempt x 0"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn every_attempt_is_tried_at_once() {
        let script = script(&["http:example.com:80", "http:192.0.2.1:80", "ping:example.com"], Duration::from_secs(10));
        assert_eq!(script.matches(") &\n").count(), 3, "{script}");
        assert!(script.contains("timeout 10 wget -qO- http://example.com:80/"), "{script}");
        assert!(script.ends_with("wait\n"), "{script}");
    }
}
