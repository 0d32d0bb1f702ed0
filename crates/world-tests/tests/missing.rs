//! A machine that lacks something: a paragraph with the remedy, exit status 125, and nothing half-started.

use std::time::Duration;

use cofferdam_world_tests::{Ran, World};

/// Puts a program in front of the one under test that hides the kernel's nf_tables from it.
const WITHOUT_NFT: &str = "set -- python3 \"$DIR/files/without.py\" nf_tables \"$@\"";

/// Status for a sandbox that could not be set up.
const NOT_STARTED: i32 = 125;

#[test]
fn without_a_tun_device_it_names_the_remedy() {
    let ran = refused("mount -t tmpfs none /dev/net");
    ran.complains("open /dev/net/tun").complains("sudo modprobe tun").complains("--device /dev/net/tun");
}

#[test]
fn with_something_else_in_place_of_the_tun_device_it_names_the_remedy() {
    let ran = refused("mount --bind /dev/null /dev/net/tun");
    ran.complains("/dev/net/tun").complains("sudo mknod -m 0666 /dev/net/tun c 10 200");
    // What a container engine makes of a device that the machine does not have.
    let ran = refused("mount -t tmpfs none /dev/net && mkdir /dev/net/tun");
    ran.complains("open /dev/net/tun").complains("a directory is there");
}

#[test]
fn without_nf_tables_it_names_the_remedy() {
    let ran = refused(WITHOUT_NFT);
    ran.complains("install the packet filter").complains("load the modules nf_tables").complains("(os error 93)");
}

#[test]
fn the_doctor_finds_what_is_missing_and_names_the_remedy() {
    let missing = [
        (WITHOUT_NFT, "gateway, IPv4", "sudo modprobe -a nf_tables nft_tproxy"),
        ("mount -t tmpfs none /dev/net", "TUN device", "sudo modprobe tun"),
        ("mount --bind /dev/null /dev/net/tun", "TUN device", "sudo mknod -m 0666 /dev/net/tun c 10 200"),
    ];
    for (broken, check, remedy) in missing {
        let ran = doctor(broken);
        ran.exits(1);
        let line = line_of(&ran, check);
        assert!(line.contains("\"missing\"") && line.contains(remedy), "{line}\n{ran}");
    }
}

#[test]
fn the_doctor_knows_a_loopback_that_is_down_from_a_kernel_without_splice() {
    let ran = doctor("set -- unshare --user --map-root-user --net \"$@\"");
    let (splice, loopback) = (line_of(&ran, "splice"), line_of(&ran, "loopback"));
    assert!(splice.contains("\"good\""), "{ran}");
    assert!(loopback.contains("\"limited\"") && loopback.contains("loopback is down"), "{ran}");
    assert!(loopback.contains("ip link set lo up"), "{ran}");
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

fn doctor(broken: &'static str) -> Ran {
    let world = World::shared();
    let program = world.cofferdam().to_str().expect("a path in UTF-8");
    world.sandbox().broken(broken).without_a_sandbox(&[program, "doctor", "--json"])
}

/// The doctor's finding about one thing, an object in JSON.
fn line_of(ran: &Ran, check: &str) -> String {
    let (said, name) = (ran.stdout(), format!("\"name\": \"{check}\""));
    let finding = said.split('{').find(|finding| finding.contains(&name));
    finding.unwrap_or_else(|| panic!("no {check}\n{ran}")).to_owned()
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
