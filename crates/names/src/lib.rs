//! DNS for one sandbox, without I/O: what to answer, what to forward, what to pin.
//!
//! The gateway answers every DNS query of its guest itself, because DNS is the first way out for data and because names
//! in a policy count only with proof. [`Resolver`] takes the guest's messages and the upstreams' answers, and says what
//! should happen as [`Output`] values; sockets, clocks and randomness stay with the caller.

mod config;
mod output;
mod resolver;
mod session;

mod answer;
mod cache;
mod lookups;
mod query;
mod reply;
mod report;
mod special;
mod svcb;
mod upstreams;
mod wire;

pub use config::{Families, Reach, Rebinding, ResolverConfig, Upstream};
pub use output::{ClientId, Ends, Output, Transport, UpstreamId};
pub use resolver::Resolver;
pub use session::{Framing, Reply, Session, SessionError};
