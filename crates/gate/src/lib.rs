//! The sans-IO heart of the gateway: packets in, actions out.
//!
//! The shell reads packets of one guest from a TUN device and passes them to [`Gate::handle_packet`]; what should
//! happen comes out of [`Gate::poll_output`]. The gate opens no socket and reads no clock: dials, sockets and answers
//! are pairs of an [`Output`] and a later `handle_*` call, time is an argument.

mod api;
mod bucket;
mod context;
mod echo;
mod flight;
mod fragments;
mod gate;
mod hash;
mod held;
mod host_sockets;
mod ingress;
mod key;
mod limits;
mod progress;
mod quote;
mod reply;
mod report;
mod table;
mod tcp;
mod udp;
pub mod wire;

pub use api::{
    Accepted, DialError, DnsClient, EchoError, FlightAnswer, FlightDenial, Fragmentation, GateConfig, Link4, Link6,
    Output, Published, SocketError, UdpError,
};
pub use bucket::TokenBucket;
pub use gate::Gate;
pub use limits::{Grant, Limits, MAX_BUDGETS, Way};
pub use progress::{Mark, Moved, Movers};
pub use wire::virtio::{Offload, PartialChecksum};

pub use cofferdam_policy::PinsFull;
