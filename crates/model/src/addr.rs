use std::net::IpAddr;

use ipnet::IpNet;

/// The group of an address. Every address is in exactly one, tested in this order (`docs/policy.md`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    Host,
    Metadata,
    Loopback,
    LinkLocal,
    Private,
    Multicast,
    Reserved,
    Public,
}

/// What the classifier has to know about the machine it runs on, read once at start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNetwork {
    /// The gateway's own addresses in this sandbox and every address on the host's interfaces.
    pub addresses: Vec<IpAddr>,
    /// Every prefix that is on-link on the host's interfaces.
    pub on_link: Vec<IpNet>,
    /// NAT64 prefixes (RFC 6052) besides the well-known one.
    pub nat64: Vec<ipnet::Ipv6Net>,
}

/// Puts addresses into groups. The one place where that is decided.
#[derive(Debug, Clone, Default)]
pub struct Classifier {
    host: HostNetwork,
}

impl Classifier {
    /// A classifier for the given machine.
    #[must_use]
    pub fn new(host: HostNetwork) -> Classifier {
        Classifier { host }
    }

    /// The machine this classifier was made for.
    #[must_use]
    pub fn host(&self) -> &HostNetwork {
        &self.host
    }

    /// The group of `address`.
    #[must_use]
    pub fn classify(&self, address: IpAddr) -> Group {
        let _ = address;
        Group::Reserved
    }
}
