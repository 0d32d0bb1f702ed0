//! What `--pcap` writes: the packets of a sandbox's link as pcapng, with what was decided about each flow as comments.
//!
//! [`Decision`] is what the gateway tells, [`Capture`] brings packets and decisions together, [`pcapng`] is the format. The shell
//! around it reads packets off a socket, decisions off another one, and writes what comes out to a file.

mod capture;
mod decision;
pub mod pcapng;

pub use capture::{Capture, MAX_FLOWS, MAX_HELD, MAX_HELD_PACKETS, PATIENCE};
pub use decision::{Decision, LookUp, MAX_MESSAGE, Message};
pub use pcapng::{Origin, Packet, Totals, Way};
