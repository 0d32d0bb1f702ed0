//! Clients that do things their own way: other resolvers than the C library's, other protocols than the web's, and a stub
//! in between. By name, over both families, allowed and denied; and what of it all can be seen on the network.

mod databases;
mod quic;

use cofferdam_world_tests::{Family, Sandbox, World};

/// A sandbox in the world with every server.
fn sandbox(flags: &str) -> Sandbox<'static> {
    World::with_everything().sandbox().flags(flags)
}

/// The name that has addresses of this family alone.
const fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4.wall-test.com",
        Family::V6 => "v6.wall-test.com",
    }
}
