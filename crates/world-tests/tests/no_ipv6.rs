//! A host without IPv6: what needs it fails at once, and nothing waits for it.

use std::time::Duration;

use cofferdam_world_tests::{Family, World};

/// Puts a program in front of the one under test that hides the kernel's IPv6 from it.
const WITHOUT_IPV6: &str = "set -- python3 \"$DIR/files/without.py\" ipv6 \"$@\"";

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
    // The same on a kernel that has none of it: sandboxes start without, and one that insists says what is missing.
    let ran = world.sandbox().broken(WITHOUT_IPV6).run(&["curl", "-sS", "http://web.wall-test.com/"]);
    ran.exits(0).says("hello from the world").within(Duration::from_secs(3));
    let ran = world.sandbox().broken(WITHOUT_IPV6).flags("--ipv6").run(&["echo", "started"]);
    ran.exits(125).never_says("started").complains("this kernel has no IPv6").complains("load the ipv6 module");
}
