//! The library for asynchronous programs, in a runtime with several threads.
//!
//! A case has to run where the world's host is, and in one process, since that is what a program that embeds the library is. So
//! this program starts itself again there, once for each case, with a state directory of its own; that is why it has no harness.
//!
//! ```text
//! library [WORD] [--skip WORD]   the cases whose names hold one and not the other
//! library inside CASE            one case, where it runs
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test without harness, which clippy does not know as one"
)]

mod cases;
mod examples;

use std::env;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cofferdam_world_tests::{Family, Marked, Ran, World};

/// What surrounds a case: `$C` is the program, which is found as the environment says; what is made is removed at the end.
const PRELUDE: &str = r#"
set -eu
export XDG_STATE_HOME=$(mktemp -d) COFFERDAM_PROGRAM=$C
trap '$C ls --quiet | xargs -r $C rm --force >/dev/null 2>&1 || true; rm -rf "$XDG_STATE_HOME"' EXIT
"#;

type Test = (&'static str, fn());

const TESTS: [Test; 22] = [
    ("a_run_says_what_it_came_to_and_what_it_was_denied", || each_family("denied")),
    ("a_blocked_run_in_an_open_session_reaches_nothing", || each_family("blocked_in_open")),
    ("an_open_run_in_a_blocked_session_stays_blocked", || each_family("open_in_blocked")),
    ("a_run_that_asks_for_more_is_refused_with_a_flow", || each_family("wider")),
    ("a_changed_policy_holds_once_it_is_set", || each_family("set_policy")),
    ("ports_are_published_and_withdrawn", || each_family("ports")),
    ("streams_go_both_ways_while_a_run_goes_on", || passes("streams")),
    ("signals_reach_the_program", || passes("signals")),
    ("time_ends_a_run_with_what_it_has_started", || leaves_nothing("timeout")),
    ("a_run_ends_though_another_holds_its_output", || leaves_nothing("held_output")),
    ("a_run_that_is_dropped_is_ended", || leaves_nothing("dropped")),
    ("a_future_that_is_dropped_ends_its_run", || leaves_nothing("dropped_future")),
    ("too_much_output_ends_a_run", || leaves_nothing("too_much_output")),
    ("files_go_in_and_come_out", || passes("files")),
    ("errors_have_types", || passes("errors")),
    ("fifty_runs_at_once_each_have_their_own_end", || passes("many")),
    ("variables_are_on_no_command_line_and_no_descriptor_is_handed_on", || leaves_nothing("secrets")),
    ("a_sandbox_lives_from_creation_to_removal", || passes("life")),
    ("the_end_of_a_sandbox_is_the_end_of_its_runs", || leaves_nothing("lost")),
    ("the_examples_run", example_runs),
    ("what_is_asked_for_comes_through", || passes("spec")),
    ("a_virtual_machine_is_gone_when_it_is_dropped", guests),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [inside, case, rest @ ..] = arguments.as_slice()
        && inside == "inside"
    {
        return match cases::run(case, rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error} ({error:?})");
                ExitCode::FAILURE
            }
        };
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS {
        if !is_wanted(name, &arguments) {
            continue;
        }
        let started = Instant::now();
        let is_fine = catch_unwind(test).is_ok();
        if is_fine {
            passed += 1
        } else {
            failed += 1
        }
        println!("test {name} ... {} ({:.1?})", if is_fine { "ok" } else { "FAILED" }, started.elapsed());
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// As a harness has it: `[WORD] [--skip WORD]`.
fn is_wanted(name: &str, arguments: &[String]) -> bool {
    let (mut is_named, mut words) = (false, arguments.iter());
    let mut is_any_named = false;
    while let Some(word) = words.next() {
        if word == "--skip" {
            if words.next().is_some_and(|word| name.contains(word.as_str())) {
                return false;
            }
        } else if !word.starts_with('-') {
            is_any_named = true;
            is_named |= name.contains(word.as_str());
        }
    }
    is_named || !is_any_named
}

/// Runs a case on the world's host.
#[track_caller]
fn inside(case: &str, arguments: &[&str]) -> Ran {
    inside_of(World::shared(), "", case, arguments)
}

/// As [`inside`], after a piece of shell.
#[track_caller]
fn inside_of(world: &World, before: &str, case: &str, arguments: &[&str]) -> Ran {
    let sandbox = world.sandbox().patience(Duration::from_secs(180));
    let this = env::current_exe().unwrap();
    let script =
        format!("C='{}'\n{PRELUDE}\n{before}\n'{}' inside \"$@\"", world.cofferdam().display(), this.display());
    let mut command = vec!["bash", "-c", &script, "bash", case];
    command.extend(arguments);
    sandbox.without_a_sandbox(&command)
}

#[track_caller]
fn passes(case: &str) {
    inside(case, &[]).exits(0);
}

#[track_caller]
fn each_family(case: &str) {
    for family in Family::BOTH {
        inside(case, &[family.web(), family.other(), if family == Family::V4 { "127.0.0.1" } else { "::1" }]).exits(0);
    }
}

/// A case whose programs have a word among their arguments, by which it is seen that none of them is left.
#[track_caller]
fn leaves_nothing(case: &str) {
    let marked: Marked = World::shared().marked();
    inside(case, &[marked.word()]).exits(0);
    assert!(marked.processes().is_empty(), "{:?}", marked.processes());
}

fn guests() {
    let world = World::with_guests();
    let parts = world.guest_parts();
    let copy =
        format!("mkdir \"$XDG_STATE_HOME/cofferdam\"; cp -r '{}' \"$XDG_STATE_HOME/cofferdam/\"", parts.display());
    inside_of(world, &copy, "guest", &[]).exits(0);
}

fn example_runs() {
    let agent = inside("example", &["agent", "http://pypi.wall-test.com/simple/", "pypi.wall-test.com", "wallpkg"]);
    agent.exits(0).says("installed: true\nimported wallpkg\ndenied: 203.0.113.7 by default egress deny");
    let server = inside("example", &["server"]);
    server.exits(0).says("HTTP/1.0 200 OK\nStopped\n");
    let streaming = inside("example", &["streaming"]);
    streaming.exits(0).says("heard one\nheard two\nover\nExited(0) true\n");
}
