//! Clients that do things their own way: other resolvers than the C library's, other protocols than the web's, and a stub
//! in between. By name, over both families, allowed and denied; and what of it all can be seen on the network.

mod capture;
mod databases;
mod languages;
mod quic;
mod stub;

use cofferdam_world_tests::{Family, Sandbox, World};

/// A sandbox in the world with every server.
fn sandbox(flags: &str) -> Sandbox<'static> {
    World::with_everything().sandbox().flags(flags)
}

/// The world's recursive resolver, which knows every zone.
const fn unbound(family: Family) -> &'static str {
    match family {
        Family::V4 => "93.184.215.55",
        Family::V6 => "2606:2800:21f:cb07::55",
    }
}

/// The world's authoritative server.
const fn knot(family: Family) -> &'static str {
    match family {
        Family::V4 => "93.184.215.54",
        Family::V6 => "2606:2800:21f:cb07::54",
    }
}

/// A piece of shell that prints the gateway's address of a family, which is what resolv.conf names.
const fn gateway(family: Family) -> &'static str {
    match family {
        Family::V4 => r"sed -n 's/^nameserver \([0-9.]*\)$/\1/p' /etc/resolv.conf",
        Family::V6 => r"sed -n 's/^nameserver \([0-9a-f:]*:[0-9a-f:]*\)$/\1/p' /etc/resolv.conf",
    }
}
