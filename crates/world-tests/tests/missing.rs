//! A machine that lacks something: a paragraph with the remedy, exit status 125, and nothing half-started.

use std::time::Duration;

use cofferdam_world_tests::{Ran, World};

/// Status for a sandbox that could not be set up.
const NOT_STARTED: i32 = 125;

#[test]
fn without_a_tun_device_it_says_so() {
    let ran = refused("mount --bind /dev/null /dev/net/tun");
    ran.complains("/dev/net/tun");
}

#[test]
fn with_a_closed_tun_device_it_names_the_remedy() {
    // As root a closed device is open; then there is nothing to say.
    if World::shared().has_root() {
        return;
    }
    let ran = refused("touch $DIR/run/tun && chmod 0 $DIR/run/tun && mount --bind $DIR/run/tun /dev/net/tun");
    ran.complains("/dev/net/tun").complains("chmod");
}

#[test]
fn without_user_namespaces_it_says_so() {
    // The limit is the one of a user namespace made for this: the machine keeps its own.
    let ran = refused(
        "exec unshare --user --map-root-user sh -c 'echo 0 >/proc/sys/user/max_user_namespaces && exec \"$@\"' sh \"$@\"",
    );
    ran.complains("user namespace");
}

#[test]
fn a_program_that_does_not_exist_is_127_and_one_that_cannot_run_126() {
    World::shared().sandbox().run(&["/usr/bin/no-such-program"]).exits(127);
    World::shared().sandbox().run(&["/etc/hostname"]).exits(126);
}

#[test]
fn a_rule_with_a_mistake_starts_nothing() {
    let ran = World::shared().sandbox().flags("--net-rule alow@example.org").run(&["echo", "started"]);
    ran.exits(NOT_STARTED).complains("alow").complains("allow").never_says("started");
}

#[track_caller]
fn refused(broken: &'static str) -> Ran {
    let world = World::shared();
    let marked = world.marked();
    let script = format!("echo started {}", marked.word());
    let ran = world.sandbox().broken(broken).run(&["sh", "-c", &script]);
    ran.exits(NOT_STARTED).never_says("started").within(Duration::from_secs(5));
    let said = ran.stderr();
    assert!(!said.trim().is_empty() && !said.trim().contains("\n\n"), "expected one paragraph\n{ran}");
    assert!(marked.processes().is_empty(), "left behind: {:?}", marked.processes());
    ran
}
