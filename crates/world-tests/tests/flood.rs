//! A guest that sends as fast as it can hurts only itself.
//!
//! What is looked at is the gateway's memory, whether the network works afterwards, and an *unrelated* sandbox meanwhile,
//! one that computes and asks a server in turn. The kernel's scheduler shares the processors among all who want one, and
//! what that costs is no fault of the flood: so the measure is how many turns the unrelated sandbox has beside one that
//! does nothing but keep two processors busy, as the flooding guest and its gateway do. Kinds alternate, so that what
//! else the machine does meets all of them.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use cofferdam_world_tests::{World, long};

/// What the gateway may take, in KiB (64 MiB).
const BOUND_KIB: u64 = 64 << 10;
/// By how much an unrelated sandbox may become slower, as a factor.
const SLOWDOWN: f64 = 1.2;
/// How long each kind has its turn at once: briefly and often, or what else the machine does would decide.
const SECONDS: u64 = 2;

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Keeps processors busy and no network.
    Burn,
    /// Packets of every kind, to what an address allows.
    Flood,
    /// The same under a name's rule, and connections that are held for a first flight which never ends.
    Hold,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Kind::Burn => "burn",
            Kind::Flood => "flood",
            Kind::Hold => "hold",
        }
    }

    const fn flags(self) -> &'static str {
        match self {
            Kind::Burn | Kind::Flood => "--quiet --cap-add NET_RAW",
            Kind::Hold => "--quiet --cap-add NET_RAW --allow web.wall-test.com",
        }
    }
}

#[test]
fn a_flood_leaves_the_gateway_small_and_an_unrelated_sandbox_quick() {
    let world = World::shared();
    let rounds = if long() { 15 } else { 1 };
    let mut turns = [0; 3];
    for _ in 0..rounds {
        for (total, kind) in turns.iter_mut().zip([Kind::Burn, Kind::Flood, Kind::Hold]) {
            *total += turns_beside(world, kind);
        }
    }
    let [burn, flood, hold] = turns;
    println!(
        "turns of an unrelated sandbox in {} s: {burn} beside a busy one, {flood} beside a flood, {hold} beside one that holds connections",
        SECONDS * rounds
    );
    assert!(flood.min(hold) > 0, "the unrelated sandbox stood still: {turns:?}");
    if long() {
        let slowest = f64::from(u32::try_from(flood.min(hold)).expect("thousands"));
        let fair = f64::from(u32::try_from(burn).expect("thousands"));
        assert!(slowest * SLOWDOWN >= fair, "{flood} and {hold} turns are too few after {burn}");
    }
}

/// Runs a guest of this kind, watches its gateway's memory, and counts an unrelated sandbox's turns meanwhile.
fn turns_beside(world: &World, kind: Kind) -> u64 {
    let marked = world.marked();
    let sandbox = world.sandbox().flags(kind.flags()).patience(Duration::from_secs(SECONDS + 60));
    let program = world.program("flood.py");
    fs::write(sandbox.folder().join("flood.py"), program).expect("the folder is ours");
    let mut guest = sandbox.start(&["python3", "flood.py", kind.word(), "web.wall-test.com", marked.word()]);
    let mut out = BufReader::new(guest.stdout.take().expect("the guest has a pipe for its output"));
    let mut said = String::new();
    out.read_line(&mut said).expect("the guest writes text");
    let unrelated = world.sandbox();
    fs::write(unrelated.folder().join("flood.py"), program).expect("the folder is ours");
    let (ran, largest) = std::thread::scope(|scope| {
        let unrelated =
            scope.spawn(|| unrelated.run(&["python3", "flood.py", "work", "web.wall-test.com", &SECONDS.to_string()]));
        let mut largest = 0;
        while !unrelated.is_finished() {
            largest = largest.max(marked.largest_resident_kib());
            std::thread::sleep(Duration::from_millis(50));
        }
        (unrelated.join().expect("the unrelated sandbox was run"), largest)
    });
    // The end of its input is the sign to stop; then it looks for the network itself.
    drop(guest.stdin.take());
    out.read_to_string(&mut said).expect("the guest writes text");
    let output = guest.wait_with_output().expect("the guest can be waited for");
    println!("{kind:?}: {}, {largest} KiB, {} turns", said.replace('\n', " "), ran.stdout().trim());
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.starts_with("begun") && said.contains("network fine"),
        "{said}{complaints}"
    );
    assert!(largest > 0, "no process of ours was seen");
    assert!(largest <= BOUND_KIB, "a process of ours took {largest} KiB");
    ran.exits(0);
    ran.stdout().trim().parse().expect("a number of turns")
}
