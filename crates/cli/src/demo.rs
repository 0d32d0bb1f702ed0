//! `cofferdam demo`: a newcomer's first thirty seconds, offline.
//!
//! Builds a [closed world](crate::world), runs the same small client in five sandboxes there, and prints what each of
//! them reached and which rule said no to the rest. It also knows what should come out: a difference is a fault of this
//! machine or of ours, is marked, and makes the exit status 1.
//!
//! With `--backend vm` the sandboxes are five virtual machines, one after the other, and the clients those
//! [of busybox](crate::guest_client), which know neither the world's certificates nor datagrams: HTTP takes the place of HTTPS,
//! and a ping that of the echo.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Instant;

use cofferdam_control::summary::{Advice, Detail};
use serde_json::json;

use crate::args::{BackendWord, DemoArgs};
use crate::client::{Finding, PATIENCE, Reached};
use crate::output::{self, Paint, Style};
use crate::refusal::EXIT_FAILED;
use crate::world::{Seen, World};

/// Something that the client tries.
struct Attempt {
    what: &'static str,
    shown: &'static str,
    ipv6: bool,
    /// In which kind of sandbox; `None`: in both.
    backend: Option<BackendWord>,
    /// Whether it should succeed, sandbox by sandbox.
    expected: [bool; SANDBOXES.len()],
}

/// A sandbox and what it stands for.
struct Scene {
    title: &'static str,
    flags: &'static [&'static str],
    meaning: &'static str,
    /// See [`Advice::allow_changes_default`].
    allow_changes_default: bool,
}

const SANDBOXES: [Scene; 5] = [
    Scene {
        title: "default",
        flags: &[],
        meaning: "the public internet, and nothing of this machine or its networks",
        allow_changes_default: true,
    },
    Scene {
        title: "allow-list",
        flags: &["--allow", "example.com"],
        meaning: "what is named, and nothing else",
        allow_changes_default: false,
    },
    Scene {
        title: "deny rule",
        flags: &["--deny", "telemetry.example.net"],
        meaning: "the default without one name",
        allow_changes_default: true,
    },
    Scene { title: "no network", flags: &["--no-net"], meaning: "not even an interface", allow_changes_default: true },
    Scene {
        title: "host",
        flags: &["--net", "public,host"],
        meaning: "the default and this machine's own services",
        allow_changes_default: false,
    },
];

const ATTEMPTS: [Attempt; 10] = [
    Attempt {
        what: "https:example.com:443",
        shown: "https://example.com",
        ipv6: false,
        backend: Some(BackendWord::Namespace),
        expected: [true, true, true, false, true],
    },
    Attempt {
        what: "http:example.com:80",
        shown: "http://example.com",
        ipv6: false,
        backend: Some(BackendWord::Vm),
        expected: [true, true, true, false, true],
    },
    Attempt {
        what: "https:telemetry.example.net:443",
        shown: "https://telemetry.example.net",
        ipv6: false,
        backend: Some(BackendWord::Namespace),
        expected: [true, false, false, false, true],
    },
    Attempt {
        what: "http:telemetry.example.net:80",
        shown: "http://telemetry.example.net",
        ipv6: false,
        backend: Some(BackendWord::Vm),
        expected: [true, false, false, false, true],
    },
    Attempt {
        what: "udp:example.com:7",
        shown: "UDP echo at example.com",
        ipv6: false,
        backend: Some(BackendWord::Namespace),
        expected: [true, true, true, false, true],
    },
    Attempt {
        what: "ping:example.com",
        shown: "ping example.com",
        ipv6: false,
        backend: Some(BackendWord::Vm),
        // A name that is allowed is allowed for TCP and UDP.
        expected: [true, false, true, false, true],
    },
    Attempt {
        what: "http:ipv6.example.org:80",
        shown: "http://ipv6.example.org",
        ipv6: true,
        backend: None,
        expected: [true, false, true, false, true],
    },
    Attempt {
        what: "http:192.168.50.10:80",
        shown: "a neighbour on your LAN",
        ipv6: false,
        backend: None,
        expected: [false, false, false, false, false],
    },
    Attempt {
        what: "http:169.254.169.254:80",
        shown: "a cloud's metadata service",
        ipv6: false,
        backend: None,
        expected: [false, false, false, false, false],
    },
    Attempt {
        what: "http:host.cofferdam.internal:9000",
        shown: "port 9000 of your machine",
        ipv6: false,
        backend: None,
        expected: [false, false, false, false, true],
    },
];

/// Runs the demo.
pub(crate) fn demo(args: &DemoArgs) -> u8 {
    let started = Instant::now();
    // Before anything is made: what a guest starts from may not be there.
    if args.backend == BackendWord::Vm
        && let Err(refusal) = crate::vm::options()
    {
        return refusal.with_status(EXIT_FAILED).tell(false);
    }
    let world = match World::build() {
        Ok(world) => world,
        Err(error) => return output::fail(&format!("the demo's world cannot be made: {error}"), 1),
    };
    let here = |attempt: &&Attempt| {
        (world.ipv6 || !attempt.ipv6) && attempt.backend.is_none_or(|backend| backend == args.backend)
    };
    let attempts: Vec<&Attempt> = ATTEMPTS.iter().filter(here).collect();
    let words: Vec<&str> = attempts.iter().map(|attempt| attempt.what).collect();
    let mut seen = Vec::new();
    for (number, scene) in (1..).zip(&SANDBOXES) {
        let advice = Advice { allow_changes_default: scene.allow_changes_default };
        let result = match args.backend {
            BackendWord::Namespace => world.in_sandbox(scene.flags, &words, advice, PATIENCE),
            BackendWord::Vm => {
                // Five guests take longer than anybody waits without a word.
                if std::io::stderr().is_terminal() {
                    output::say(&format!("guest {number} of {}: {}…", SANDBOXES.len(), scene.title));
                }
                world.in_guest(scene.flags, &words, advice, PATIENCE)
            }
        };
        match result {
            Ok(result) => seen.push(result),
            Err(error) => return output::fail(&format!("the sandbox \"{}\" did not run: {error}", scene.title), 1),
        }
    }
    let surprises = surprises(&attempts, &seen);
    let printed = if args.json {
        output::print_json(&as_json(&attempts, &seen))
    } else {
        let mut text = table(args.backend, &attempts, &seen, Paint::stdout());
        if !world.ipv6 {
            text.push_str("\nThis kernel has no IPv6, so that attempt was left out.\n");
        }
        let _ = writeln!(
            text,
            "\nNothing left this machine: all of it was a closed world, made and gone in {:.1} s.",
            started.elapsed().as_secs_f32()
        );
        text.push_str(match args.backend {
            BackendWord::Namespace => {
                "Next:  cofferdam run -- curl -sS https://example.com     and     cofferdam doctor --prove\n"
            }
            BackendWord::Vm => "Next:  cofferdam run --backend vm --tty -- sh     and     cofferdam doctor --prove\n",
        });
        output::print(&text)
    };
    for surprise in &surprises {
        output::fail(surprise, 1);
    }
    if surprises.is_empty() { printed } else { 1 }
}

/// Every result that is not what it should be.
fn surprises(attempts: &[&Attempt], seen: &[Seen]) -> Vec<String> {
    let mut surprises = Vec::new();
    for (column, (scene, seen)) in SANDBOXES.iter().zip(seen).enumerate() {
        for attempt in attempts {
            let expected = attempt.expected.get(column).copied().unwrap_or(false);
            let finding = find(seen, attempt);
            let reached = finding.is_some_and(|finding| finding.result == Reached::Yes);
            if reached != expected {
                let detail = finding.map_or("nothing was reported", |finding| finding.detail.as_str());
                let should = if expected { "should have been reached" } else { "should have been out of reach" };
                surprises.push(format!("{} {should} in the sandbox \"{}\": {detail}", attempt.shown, scene.title));
            }
        }
    }
    surprises
}

fn find<'a>(seen: &'a Seen, attempt: &Attempt) -> Option<&'a Finding> {
    seen.findings.iter().find(|finding| finding.attempt == attempt.what)
}

/// The table: a row for each attempt, a column for each sandbox; below it, why.
fn table(backend: BackendWord, attempts: &[&Attempt], seen: &[Seen], paint: Paint) -> String {
    const FIRST: usize = 30;
    const CELL: usize = 13;
    let mut text = String::new();
    let mut header = format!("{:FIRST$}", "What a program reached");
    for (number, scene) in (1..).zip(&SANDBOXES) {
        let _ = write!(header, "{:CELL$}", format!("{number} {}", scene.title));
    }
    let _ = writeln!(text, "{}", paint.paint(Style::Strong, header.trim_end()));
    for attempt in attempts {
        let mut line = format!("{:FIRST$}", attempt.shown);
        for seen in seen {
            let result = find(seen, attempt).map_or(Reached::Failed, |finding| finding.result);
            let (word, style) = cell(result);
            line.push_str(&paint.paint(style, &format!("{word:CELL$}")));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for (number, (scene, seen)) in (1..).zip(SANDBOXES.iter().zip(seen)) {
        let flags: String = scene.flags.iter().map(|flag| format!("{flag} ")).collect();
        let backend = match backend {
            BackendWord::Namespace => "",
            BackendWord::Vm => "--backend vm ",
        };
        let command = format!("{number}  cofferdam run {backend}{flags}-- program");
        let _ =
            writeln!(text, "\n{}  {}", paint.paint(Style::Strong, &command), paint.paint(Style::Faint, scene.meaning));
        for line in seen.summary.render(Detail::Denials).lines() {
            let _ = writeln!(text, "   {line}");
        }
    }
    text
}

fn cell(result: Reached) -> (&'static str, Style) {
    match result {
        Reached::Yes => ("reached", Style::Good),
        Reached::Refused => ("refused", Style::Bad),
        Reached::Prohibited => ("prohibited", Style::Bad),
        Reached::Unreachable => ("no network", Style::Bad),
        Reached::Unresolved => ("no such name", Style::Bad),
        Reached::Silence => ("silence", Style::Notable),
        Reached::Untrusted => ("untrusted", Style::Notable),
        Reached::Failed => ("failed", Style::Notable),
    }
}

fn as_json(attempts: &[&Attempt], seen: &[Seen]) -> serde_json::Value {
    let scenes = SANDBOXES.iter().zip(seen).map(|(scene, seen)| {
        let rows: Vec<_> = attempts
            .iter()
            .filter_map(|attempt| find(seen, attempt))
            .map(|finding| json!({ "attempt": finding.attempt, "result": finding.result, "detail": finding.detail }))
            .collect();
        json!({ "sandbox": scene.title, "flags": scene.flags, "rows": rows, "denied": seen.summary.denied() })
    });
    scenes.collect()
}
