//! A guest that sends as fast as it can hurts only itself.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_world_tests::{Family, World, long};

/// What the gateway may take, in KiB (64 MiB).
const BOUND_KIB: u64 = 64 << 10;
/// By how much a neighbour's transfers may become longer, as a factor.
const SLOWDOWN: f64 = 1.2;

#[test]
fn a_flood_leaves_the_gateway_small_and_the_neighbour_quick() {
    let world = World::shared();
    let seconds = if long() { 30 } else { 3 };
    // The processors are shared all the same: what counts is what a flood costs beyond a guest that just computes.
    let computing = time_beside(world, seconds, "compute");
    let flooding = time_beside(world, seconds, "flood");
    println!("neighbour's transfers: {computing:?} beside a computing guest, {flooding:?} beside a flooding one");
    if long() {
        assert!(
            flooding.as_secs_f64() <= computing.as_secs_f64() * SLOWDOWN,
            "{flooding:?} is too long after {computing:?}"
        );
    }
}

/// Runs a guest that does `what` for `seconds`, watches the gateway's memory, and takes the median time of a neighbour's
/// transfers meanwhile.
fn time_beside(world: &World, seconds: u64, what: &str) -> Duration {
    let marked = world.marked();
    let sandbox = world.sandbox().flags("--quiet --cap-add NET_RAW").patience(Duration::from_secs(seconds + 30));
    fs::write(sandbox.folder().join("flood.py"), world.program("flood.py")).expect("the folder is ours");
    let guest = sandbox.start(&["python3", "flood.py", what, &seconds.to_string(), Family::V4.web(), marked.word()]);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut largest = 0;
    let times = thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut times = Vec::new();
            while Instant::now() < end {
                let url = format!("http://{}/files/big", Family::V4.web());
                let ran = world.sandbox().run(&["curl", "-sS", "-o", "/dev/null", "-w", "%{time_total}", &url]);
                ran.exits(0);
                times.push(Duration::from_secs_f64(ran.stdout().parse().expect("curl prints seconds")));
            }
            times
        });
        while Instant::now() < end {
            largest = largest.max(marked.largest_resident_kib());
            thread::sleep(Duration::from_millis(50));
        }
        neighbour.join()
    });
    let output = guest.wait_with_output().expect("the guest can be waited for");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // The guest looks for the network itself when it is done flooding.
    assert!(
        output.status.success() && said.contains("network fine"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(largest > 0, "no process of ours was seen");
    assert!(largest <= BOUND_KIB, "a process of ours took {largest} KiB");
    let mut times = times.expect("the neighbour has not failed");
    times.sort();
    times.get(times.len() / 2).copied().expect("the neighbour had time for one transfer")
}
