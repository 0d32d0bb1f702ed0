//! The words of Cofferdam, as data.
//!
//! Everything the other crates talk about is named here once: points in time, addresses and their groups, names, ports,
//! rules, configuration and events. No behaviour beyond parsing, printing and validating a word; no I/O, no clock.

mod addr;
mod config;
mod event;
mod groups;
mod host_socket;
mod line;
mod name;
mod port;
mod rfc3339;
mod rule;
mod time;

pub use addr::{Classifier, Group, HostNetwork, SLOT4, SLOT6, share_a_slot};
pub use config::{
    BucketConfig, BudgetConfig, DenyWith, DnsConfig, InterfaceConfig, LimitsConfig, Nameserver, NameserverHost,
    NameserverOver, NetworkConfig, NetworkMode, PolicyLayer, RateLimiter, RateLimits,
};
pub use event::{
    CloseReason, DecisionId, DropReason, Event, EventBody, EventSource, FirstFlight, FlightProtocol, FlowCounters,
    FlowId, FlowProgress, LimitKind, Process, RuleText, Withheld,
};
pub use host_socket::{HostSocket, SocketId};
pub use name::{DomainName, NameError};
pub use port::{PortId, PortProtocol, PublishedPort};
pub use rfc3339::{rfc3339, since_1970};
pub use rule::{Action, Destination, Direction, Layer, PolicyConfig, PortRange, Protocol, ProtocolSet, Rule};
pub use time::Time;
