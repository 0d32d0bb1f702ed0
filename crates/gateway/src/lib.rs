//! The shell around the gate: the gateway process, its namespace, its loop and its sockets.
//!
//! [`build_netns`] and [`configure_guest_link`] make the two ends of a sandbox's link; they run in short-lived,
//! single-threaded processes that are root in namespaces of their own. [`serve()`] is the gateway process: it holds the TUN and
//! the listeners, gives up everything else, and moves what the gate tells it to move. It decides nothing itself.

mod anchors;
mod broker;
mod capture;
mod check;
mod clock;
mod commands;
mod compiler;
mod config;
mod dial;
mod dialer;
mod dns;
mod echo;
mod errno;
mod events;
mod farewell;
mod hash;
mod machine;
mod netns;
mod pace;
mod path;
mod patience;
mod poller;
mod ports;
mod relay;
mod seal;
mod serve;
mod session;
mod sockets;
mod udp;

pub use anchors::{ReadAnchorsError, trust_anchors};
pub use broker::{BrokerError, serve_broker};
pub use capture::{CaptureEnd, CaptureError, CaptureFds, serve_capture};
pub use commands::{CommandAnswer, Commands};
pub use config::{Channels, DnsUpstream, DnsWay, GatewayConfig, Link6, LinkAddresses};
pub use dialer::{DialerError, DoorError, SocketDoor, serve_dialer};
pub use machine::{TooMany, machine_message, resolvers_message};
pub use netns::{
    BuildError, GatewayFds, GuestEnd, NetnsSpec, build_netns, configure_guest_link, listen_for_files, open_packets,
};
pub use ports::PortSocket;
pub use serve::{ServeError, serve};
