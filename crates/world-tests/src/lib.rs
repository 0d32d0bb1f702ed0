//! End-to-end tests: real clients in a sandbox, real servers in a closed world.
//!
//! A [`World`] is two network namespaces without any uplink (`world/up.sh` says what is in them): the *host*, where
//! Cofferdam runs, and the *world*, where nginx, dnsmasq, sshd, git and some servers with bad manners run, and further
//! ones, resolvers and a database among them, where a test asks for those. A test asks for a [`Sandbox`] there, runs an
//! unmodified program in it, and looks at what the program says.
//!
//! Everything works without root: then the world's namespaces belong to a user namespace, and Cofferdam runs in one of
//! its own, where it is an ordinary user without capabilities. As root the world is root's and Cofferdam runs as root.
//! Run both; they differ in whom Cofferdam has to become, and in who owns the files.
//!
//! | Environment | Means |
//! |---|---|
//! | `COFFERDAM_BIN` | the program under test; `target/release/cofferdam` without it |
//! | `COFFERDAM_TEST_KERNEL` | the Debian package with the kernel of virtual machines; fetched without it |
//! | `COFFERDAM_TEST_KERNEL_9P` | as before, of one that can mount by 9p; what needs that is skipped without it |
//! | `COFFERDAM_TEST_ROOT` | the image of a Debian root that `tests/debian-root` makes; what needs that is skipped without it |
//! | `COFFERDAM_TEST_LONG=1` | gigabytes in place of megabytes, 200 kills in place of 20, 500 idle sandboxes in place of 20, 30 s of flood in place of 2 s, a million recorded events |
//! | `COFFERDAM_TEST_DIRECT=1` | no sandbox: the clients run on the host itself, to show that a failure is the world's |
//! | `COFFERDAM_TEST_KEEP=1` | the world's folder stays, with the servers' logs |

use std::io::Write as _;

mod marked;
mod ran;
mod sandbox;
mod served;
mod world;

pub use marked::{Marked, Process};
pub use ran::Ran;
pub use sandbox::Sandbox;
pub use served::Served;
pub use world::{Family, World, long};

/// Says that a test tries nothing here, so that `./test` counts it. Not by `println!`, which is kept from who passes.
pub fn skip(why: &str) {
    let _nobody_hears = writeln!(std::io::stderr(), "\nSKIP: {why}");
}
