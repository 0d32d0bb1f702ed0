use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use crate::Protocol;

/// The number of a published port, unique within one sandbox and never used again.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct PortId(pub u32);

/// What a published port speaks.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    #[default]
    Tcp,
    Udp,
}

impl PortProtocol {
    /// `tcp` or `udp`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            PortProtocol::Tcp => "tcp",
            PortProtocol::Udp => "udp",
        }
    }
}

impl From<PortProtocol> for Protocol {
    fn from(protocol: PortProtocol) -> Protocol {
        match protocol {
            PortProtocol::Tcp => Protocol::Tcp,
            PortProtocol::Udp => Protocol::Udp,
        }
    }
}

/// A port of the host that leads into a sandbox.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct PublishedPort {
    /// The address of the host that it is open on; `0.0.0.0` and `::` stand for all of their family.
    pub host_bind: IpAddr,
    /// 0: one that the system picks.
    pub host_port: u16,
    /// The port that the service in the sandbox listens on.
    pub guest_port: NonZeroU16,
    pub protocol: PortProtocol,
}

impl PublishedPort {
    /// Where peers reach it.
    #[must_use]
    pub const fn host(&self) -> SocketAddr {
        SocketAddr::new(self.host_bind, self.host_port)
    }

    /// Whether both cannot be bound at once.
    #[must_use]
    pub fn overlaps(&self, other: &PublishedPort) -> bool {
        let (a, b) = (self.host_bind, other.host_bind);
        let same_address = a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()));
        self.protocol == other.protocol && self.host_port != 0 && self.host_port == other.host_port && same_address
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host(), self.guest_port, self.protocol.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(bind: &str, host_port: u16, protocol: PortProtocol) -> PublishedPort {
        let guest_port = NonZeroU16::new(80).unwrap();
        PublishedPort { host_bind: bind.parse().unwrap(), host_port, guest_port, protocol }
    }

    #[test]
    fn is_shown_as_it_is_written() {
        assert_eq!(port("127.0.0.1", 8080, PortProtocol::Tcp).to_string(), "127.0.0.1:8080:80/tcp");
        assert_eq!(port("::1", 0, PortProtocol::Udp).to_string(), "[::1]:0:80/udp");
    }

    #[test]
    fn ports_overlap_where_the_system_says_so() {
        let tcp = PortProtocol::Tcp;
        for (a, b, overlap) in [
            (port("127.0.0.1", 1, tcp), port("127.0.0.1", 1, tcp), true),
            (port("127.0.0.1", 1, tcp), port("0.0.0.0", 1, tcp), true),
            (port("::1", 1, tcp), port("::", 1, tcp), true),
            (port("127.0.0.1", 1, tcp), port("127.0.0.1", 1, PortProtocol::Udp), false),
            (port("127.0.0.1", 1, tcp), port("127.0.0.2", 1, tcp), false),
            (port("127.0.0.1", 1, tcp), port("127.0.0.1", 2, tcp), false),
            (port("127.0.0.1", 0, tcp), port("127.0.0.1", 0, tcp), false),
            (port("0.0.0.0", 1, tcp), port("::", 1, tcp), false),
            (port("127.0.0.1", 1, tcp), port("::1", 1, tcp), false),
        ] {
            assert_eq!((a.overlaps(&b), b.overlaps(&a)), (overlap, overlap), "{a} {b}");
        }
    }
}
