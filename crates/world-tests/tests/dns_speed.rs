//! What names cost, measured as a program sees it. The figures are printed; the bounds are those that the project holds
//! itself to with room for machines that others share, so that only a change of kind fails.
//!
//! `COFFERDAM_TEST_LONG=1` asks ten times as often; `--nocapture` shows the figures.

use std::time::Duration;

use cofferdam_world_tests::{Family, Ran, World, long};

const KNOT: &str = "93.184.215.54";
/// How much slower than held a shared machine may be.
const ROOM: f64 = 10.0;

struct Figures {
    p50: f64,
    p99: f64,
    rate: f64,
}

fn figures(ran: &Ran) -> Figures {
    ran.exits(0);
    let text = ran.stdout();
    let value = |word: &str| {
        let mut words = text.split_whitespace().skip_while(|found| *found != word);
        words.nth(1).and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {word}\n{ran}"))
    };
    Figures { p50: value("p50"), p99: value("p99"), rate: value("rate") }
}

fn count() -> u32 {
    if long() { 50_000 } else { 5_000 }
}

/// Runs the load in a sandbox against the gateway of that family.
fn inside(family: Family, name: &str, count: u32, window: u32) -> Figures {
    let world = World::with_resolvers();
    let sandbox = world.sandbox().flags(&format!("--dns-nameserver {KNOT} --quiet")).patience(Duration::from_secs(120));
    std::fs::copy(world.path("etc/dnsload"), sandbox.folder().join("dnsload")).expect("the folder is ours");
    let pattern = if family == Family::V4 { "\\." } else { ":" };
    let script = format!(
        "server=$(sed -n 's/^nameserver //p' /etc/resolv.conf | grep '{pattern}' | head -1)\n./dnsload $server {name} {count} {window}"
    );
    figures(&sandbox.sh(&script))
}

#[test]
fn a_remembered_answer_comes_within_microseconds() {
    for family in Family::BOTH {
        let one = inside(family, "web.names-test.com", count(), 1);
        println!("cached, one at a time, {family:?}: p50 {:.1} µs, p99 {:.1} µs", one.p50, one.p99);
        assert!(one.p50 <= 60.0 * ROOM);
        let many = inside(family, "web.names-test.com", count() * 4, 64);
        println!("cached, 64 at a time, {family:?}: {:.0}/s", many.rate);
        assert!(many.rate >= 20_000.0 / ROOM);
    }
}

#[test]
fn asking_costs_little_more_than_the_resolver_takes() {
    let world = World::with_resolvers();
    let load = world.path("etc/dnsload");
    let load = load.to_str().expect("a path of ours");
    // Each name is a pin that is still in use; as many as leave room in the 16,384 of a sandbox.
    let count = 5_000;
    let direct = figures(&world.on_the_host(&[load, KNOT, "direct%d.wild.names-test.com", &count.to_string(), "1"]));
    let through = inside(Family::V4, "through%d.wild.names-test.com", count, 1);
    let adds = through.p50 - direct.p50;
    println!("uncached: p50 {:.1} µs, of the resolver itself {:.1} µs, so {adds:.1} µs more", through.p50, direct.p50);
    assert!(adds <= 100.0 * ROOM);
}
