//! What a run gives back: exit status, streams, signals, and the summary of what was denied.

use std::time::Duration;

use cofferdam_world_tests::{Family, World};

#[test]
fn streams_and_exit_status_pass_through() {
    let ran = World::shared().sandbox().input("typed\n").sh("cat; echo aside >&2; exit 7");
    ran.exits(7).says("typed").complains("aside");
    assert_eq!(ran.stdout(), "typed\n", "nothing of ours on stdout\n{ran}");
}

#[test]
fn a_signal_is_told_as_shells_do() {
    World::shared().sandbox().sh("kill -KILL $$").exits(128 + 9);
    World::shared().sandbox().sh("kill -TERM $$").exits(128 + 15);
}

#[test]
fn a_timeout_ends_the_program_with_124() {
    let ran = World::shared().sandbox().flags("--timeout 1s").run(&["sleep", "60"]);
    ran.exits(124).within(Duration::from_secs(10));
}

#[test]
fn what_was_denied_is_summed_up_with_the_flag_that_allows_it() {
    let url = format!("http://{}/", Family::V4.web());
    let script = format!("for i in 1 2 3; do curl -s {url} || true; done; curl -s http://web.wall-test.com/ || true");
    let ran = World::shared().sandbox().flags("--allow other.wall-test.com").sh(&script);
    ran.exits(0)
        .complains("blocked")
        .complains("--allow 93.184.215.14")
        .complains("×3")
        .complains("--allow web.wall-test.com");
    let quiet = World::shared().sandbox().flags("--quiet --allow other.wall-test.com").sh(&script);
    assert_eq!(quiet.exits(0).stderr(), "", "{quiet}");
}

#[test]
fn a_denial_can_make_the_run_fail() {
    let script = format!("curl -s http://{}/ || true", Family::V4.web());
    let flags = "--fail-on-deny --allow other.wall-test.com";
    World::shared().sandbox().flags(flags).sh(&script).exits(124);
    World::shared().sandbox().flags(flags).sh("true").exits(0);
}

#[test]
fn events_are_json_lines() {
    let script = format!("curl -s http://{}/ || true", Family::V4.web());
    let ran = World::shared().sandbox().flags("--events events.json --allow other.wall-test.com").sh(&script);
    ran.exits(0);
    let ran = World::shared().sandbox().flags("--quiet --events - --allow other.wall-test.com").sh(&script);
    for kind in ["sandbox.started", "flow.denied", "sandbox.stopped"] {
        ran.says(&format!("\"type\":\"{kind}\""));
    }
    assert!(ran.stdout().lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{ran}");
}

#[test]
fn the_hosts_services_are_reached_by_a_rule_alone() {
    let world = World::shared();
    let script = "python3 -m http.server --bind 127.0.0.1 8123 >/dev/null 2>&1 & sleep 1
        $COFFERDAM run --quiet -- curl -s http://host.cofferdam.internal:8123/ && echo reached || echo refused $?
        $COFFERDAM run --quiet --net public,host -- curl -s -o /dev/null http://host.cofferdam.internal:8123/ && echo allowed
        kill %1";
    let script = format!("COFFERDAM={}; {script}", world.cofferdam().display());
    let ran = world.on_the_host(&["bash", "-c", &script]);
    ran.exits(0).says("refused 7").says("allowed").never_says("reached");
}
