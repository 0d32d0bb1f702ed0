//! The command line with real sandboxes. Everything they try is denied or answered on this machine: no packet leaves it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails is meant to panic")]

mod common;

use std::time::{Duration, Instant};

use common::{Output, cofferdam, finish, run, run_in};

/// A program that connects to a private address, which the default policy denies.
const KNOCK: [&str; 4] = ["--", "bash", "-c", "echo >/dev/tcp/10.1.2.3/80"];

#[test]
fn exit_statuses_are_the_programs_own() {
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        assert_eq!(sandbox(&["--no-net"], &["sh", "-c", script]).status, status, "{script}");
    }
    let absent = sandbox(&["--no-net"], &["no-such-program"]);
    assert_eq!(absent.status, 127, "{}", absent.stderr);
    assert!(absent.stderr.contains("no-such-program"), "{}", absent.stderr);
    assert_eq!(sandbox(&["--no-net"], &["/etc/passwd"]).status, 126);
}

#[test]
fn a_program_that_takes_too_long_is_ended() {
    let started = Instant::now();
    let output = sandbox(&["--no-net", "--timeout", "300ms"], &["sleep", "60"]);
    assert_eq!(output.status, 124, "{}", output.stderr);
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(output.stderr.contains("time was up"), "{}", output.stderr);
}

#[test]
fn the_environment_holds_what_was_named() {
    let mut command = cofferdam(&["run", "--no-cwd", "--no-net", "-e", "A=b c", "--env-pass", "KEPT", "--", "env"]);
    let output = finish(command.env("KEPT", "yes").env("SECRET", "no").env("TERM", "xterm").env("LANG", "C"), b"");
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(lines, ["A=b c", "HOME=/home/user", "KEPT=yes", "LANG=C", path, "TERM=xterm"], "{}", output.stderr);
}

#[test]
fn standard_streams_pass_through() {
    let output =
        finish(&mut cofferdam(&["run", "--no-cwd", "--no-net", "--", "sh", "-c", "cat; echo err >&2"]), b"in\n");
    assert_eq!((output.status, output.stdout.as_str(), output.stderr.as_str()), (0, "in\n", "err\n"));
}

#[test]
fn a_pipe_that_closes_ends_the_program_as_it_would_outside() {
    let output = sandbox(&["--no-net"], &["bash", "-c", "yes | head -1; echo ${PIPESTATUS[0]}"]);
    assert_eq!(output.stdout, "y\n141\n", "{}", output.stderr);
}

#[test]
fn what_was_denied_is_said_with_its_remedy() {
    let output = run(&[&["run"], &KNOCK[..]].concat());
    assert_ne!(output.status, 0);
    let line = "blocked  10.1.2.3:80  ×1  default egress deny   → --net-rule allow@10.1.2.3:tcp:80\n";
    assert!(output.stderr.ends_with(line), "{}", output.stderr);
    let output = run(&[&["run", "--allow", "x.example"], &KNOCK[..]].concat());
    assert!(output.stderr.ends_with("→ --allow 10.1.2.3:80\n"), "{}", output.stderr);
    let output = run(&[&["run", "--deny", "10.0.0.0/8"], &KNOCK[..]].concat());
    assert!(output.stderr.contains("deny@10.0.0.0/8:tcp+udp"), "{}", output.stderr);
    assert!(output.stderr.ends_with(", before that rule\n"), "{}", output.stderr);
}

#[test]
fn quiet_is_quiet_and_verbose_speaks_always() {
    let output = sandbox(&["--quiet"], &["bash", "-c", "echo >/dev/tcp/10.1.2.3/80 2>/dev/null; exit 0"]);
    assert!(!output.stderr.contains("blocked"), "{}", output.stderr);
    let output = sandbox(&["-v"], &["true"]);
    assert!(output.stderr.contains("blocked  nothing\n"), "{}", output.stderr);
    assert_eq!(output.status, 0);
}

#[test]
fn a_denial_can_be_a_failure() {
    let output = sandbox(&["--fail-on-deny"], &["bash", "-c", "echo >/dev/tcp/10.1.2.3/80; exit 0"]);
    assert_eq!(output.status, 124, "{}", output.stderr);
    assert_eq!(sandbox(&["--fail-on-deny"], &["true"]).status, 0);
}

#[test]
fn events_and_summary_are_complete() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["run", "--no-cwd", "--events", "events.jsonl", "--json-summary", "summary.json"];
    let output = run_in(dir.path(), &[&args[..], &KNOCK[..]].concat());
    let events: Vec<serde_json::Value> = std::fs::read_to_string(dir.path().join("events.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        (kinds.first(), kinds.last()),
        (Some(&"sandbox.started"), Some(&"sandbox.stopped")),
        "{}",
        output.stderr
    );
    let denied = events.iter().find(|event| event["type"] == "flow.denied").expect("a denial");
    assert_eq!(denied["remote"], "10.1.2.3:80");
    assert_eq!(denied["group"], "private");
    assert_eq!(events.last().unwrap()["exit_status"], output.status);
    assert!(events[0]["policy"].as_array().unwrap().contains(&"allow@public".into()), "{}", events[0]);
    let summary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["denied"][0]["target"], "10.1.2.3");
    assert_eq!(summary["denied"][0]["port"], 80);
    assert_eq!(summary["exit_status"], output.status);
}

#[test]
fn without_a_network_there_is_only_loopback() {
    let output = sandbox(&["--no-net"], &["cat", "/proc/net/dev"]);
    let links: Vec<&str> =
        output.stdout.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    assert_eq!(links, ["lo"], "{}", output.stderr);
}

#[test]
fn the_demo_shows_what_it_promises() {
    let started = Instant::now();
    let demo = run(&["demo"]);
    assert_eq!(demo.status, 0, "{}{}", demo.stdout, demo.stderr);
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(demo.stdout.contains("What a program reached"), "{}", demo.stdout);
    let denied = "blocked  host.cofferdam.internal:9000  ×2  default egress deny   → --net-rule allow@host:tcp:9000";
    assert!(demo.stdout.contains(denied), "{}", demo.stdout);
    let demo = run(&["demo", "--json"]);
    let scenes: serde_json::Value = serde_json::from_str(&demo.stdout).unwrap();
    assert_eq!(scenes.as_array().unwrap().len(), 5);
    assert_eq!(scenes[0]["rows"][0]["result"], "yes");
    assert!(scenes[0]["rows"][0]["detail"].as_str().unwrap().contains("certificate verified"));
}

#[test]
fn the_doctor_finds_this_machine_fit() {
    let doctor = run(&["doctor", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&doctor.stdout).unwrap();
    assert_eq!((doctor.status, &found["ready"]), (0, &true.into()), "{}", doctor.stdout);
    for check in found["checks"].as_array().unwrap() {
        assert_eq!(check["state"] == "good", check.get("remedy").is_none(), "{check}");
    }
    let text = run(&["doctor"]).stdout;
    assert!(text.contains("user namespaces") && text.contains("a whole sandbox"), "{text}");
}

#[test]
fn the_doctor_and_a_run_agree_about_limits() {
    let found: serde_json::Value = serde_json::from_str(&run(&["doctor", "--json"]).stdout).unwrap();
    let checks = found["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "cgroup delegation").unwrap();
    let said = sandbox(&["--no-net", "--memory", "256M", "--cpus", "1"], &["true"]).stderr;
    assert_eq!(check["state"] == "good", !said.contains("not enforced"), "{check}: {said}");
    if check["state"] != "good" {
        assert!(said.contains(check["detail"].as_str().unwrap()), "{check}: {said}");
    }
}

#[test]
fn a_limit_holds_or_it_is_said_that_it_does_not() {
    // A hundred megabytes that are used, and a second of work: what the limits below leave no room for.
    let eats = "head -c 100M /dev/zero | tail -n 1 >/dev/null && echo ate";
    let works = "SECONDS=0; while [ $SECONDS -lt 2 ]; do :; done; times";
    let memory = sandbox(&["--no-net", "--memory", "32M"], &["bash", "-c", eats]);
    let cpus = sandbox(&["--no-net", "--cpus", "0.2"], &["bash", "-c", works]);
    if memory.stderr.contains("the memory limit is not enforced") {
        assert!(cpus.stderr.contains("the processor limit is not enforced"), "{}", cpus.stderr);
        // Without the limit there is all of it: what is said is true.
        assert_eq!(memory.stdout.trim(), "ate", "{}", memory.stderr);
        return;
    }
    assert_eq!(memory.stdout, "", "{}", memory.stderr);
    assert!(!cpus.stderr.contains("not enforced"), "{}", cpus.stderr);
    // `times` says minutes and seconds of user time first.
    let user = cpus.stdout.split_once('m').and_then(|(_, rest)| rest.split_once('s')).unwrap().0;
    assert!(user.parse::<f32>().unwrap() < 1.0, "{}", cpus.stdout);
}

#[test]
fn the_backend_may_be_named() {
    assert_eq!(sandbox(&["--no-net", "--backend", "namespace"], &["echo", "in"]).stdout, "in\n");
}

#[test]
fn the_wall_holds() {
    let proof = run(&["doctor", "--prove", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&proof.stdout).unwrap_or_else(|_| panic!("{}", proof.stderr));
    assert_eq!((proof.status, &found["holds"]), (0, &true.into()), "{}", proof.stdout);
    assert_eq!(found["heard_by_servers"], 0);
    let proofs = found["proofs"].as_array().unwrap();
    assert!(proofs.len() >= 17);
    // An attempt that fails outside as well would prove nothing.
    for proof in proofs {
        assert_eq!(proof["outside"]["result"], "yes", "{proof}");
    }
}

/// Runs a program in a sandbox without the current directory.
fn sandbox(flags: &[&str], program: &[&str]) -> Output {
    run(&[&["run", "--no-cwd"], flags, &["--"], program].concat())
}
