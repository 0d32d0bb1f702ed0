//! What recorded events say about policies.
//!
//! A recording is the event stream of a run. [`learn()`] makes of it the smallest readable policy that lets the same run pass;
//! [`Replay`] says what another policy makes of what was recorded; [`mod@file`] writes what was learned, and adds it to a file that
//! is there. [`mod@summary`] and [`mod@live`] say what a run did: at its end, and while it goes on. No I/O, no clock: events come in, and text goes out.

pub mod file;
pub mod live;
pub mod summary;

mod learn;
mod observe;
mod replay;

pub use learn::{Because, Learned, Missed, Remark, learn};
pub use observe::{Learn, Learner};
pub use replay::{Asked, Change, Host, HostNetworks, Replay, Replayed, Trial, host_network};
