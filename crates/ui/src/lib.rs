//! The page that shows what sandboxes do, served to one browser on this machine.
//!
//! ```text
//! browser ──HTTP, loopback──▶ serve ──▶ door: may it? ──▶ watch: reads the records of runs ──▶ view: as JSON
//!                                                    └──▶ change: asks the run's supervisor for a rule
//! ```
//!
//! What it shows it reads from the [store](cofferdam_control::store), as `cofferdam log --follow` does: the gateway and the supervisor
//! do not know of it. Everything that a program in a sandbox chose is text: escaped here, and put on the page as text there.
//!
//! Limits: one session; `MAX_STRANGERS` connections of those who have not shown that they may ask, and `MAX_CONNECTIONS` of those who
//! have, each for one request of `PATIENCE`; heads and bodies of `MAX_HEAD` and `MAX_BODY`; `MAX_WATCHED` runs that are followed at once.

mod change;
mod door;
mod page;
mod secret;
mod serve;
mod view;
mod watch;

pub use serve::{BindError, Config, Ui};
