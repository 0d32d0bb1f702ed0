//! A host without IPv6: what needs it fails at once, and nothing waits for it.

use std::time::Duration;

use cofferdam_world_tests::{Family, World};

#[test]
fn a_host_without_ipv6_has_sandboxes_without_it() {
    let world = World::start();
    world.change_the_host("ip -6 route del default && ip -6 address flush dev lan0");
    let url = format!("http://{}/", Family::V6.in_url(Family::V6.web()));
    let ran = world.sandbox().run(&["curl", "-sSv", "--connect-timeout", "5", &url]);
    ran.exits(7).complains("Network is unreachable").within(Duration::from_secs(3));
    let ran = world.sandbox().run(&["dig", "web.wall-test.com", "AAAA"]);
    ran.exits(0).says("status: NOERROR").says("ANSWER: 0").within(Duration::from_secs(3));
    let ran = world.sandbox().run(&["curl", "-sS", "http://web.wall-test.com/"]);
    ran.exits(0).says("hello from the world").within(Duration::from_secs(3));
}
