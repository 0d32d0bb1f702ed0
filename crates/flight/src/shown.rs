use cofferdam_model::DomainName;

/// What the guest's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tls,
    Http,
    Quic,
}

/// What a first flight, or one request of a connection, shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A TLS ClientHello: its `server_name`. With `ech` that is the outer name of an encrypted hello (RFC 9849 §4).
    Tls { server_name: Option<DomainName>, ech: bool },
    /// The same, in QUIC.
    Quic { server_name: Option<DomainName>, ech: bool },
    /// A request: the name in `Host`, and that in its target when there is one and it is another.
    Http { names: Vec<DomainName> },
    /// It is that protocol, and what it shows is in doubt.
    Unreadable { protocol: Protocol, doubt: Doubt },
    /// Not one of these protocols.
    Other,
    /// What came so far may still become one of these protocols, and nothing more is waited for.
    Unfinished,
}

impl Shown {
    /// The names that it shows.
    #[must_use]
    pub fn names(&self) -> &[DomainName] {
        match self {
            Shown::Tls { server_name, .. } | Shown::Quic { server_name, .. } => server_name.as_slice(),
            Shown::Http { names } => names,
            Shown::Unreadable { .. } | Shown::Other | Shown::Unfinished => &[],
        }
    }

    /// The protocol, when it is one that could show a name.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        match self {
            Shown::Tls { .. } => Some(Protocol::Tls),
            Shown::Quic { .. } => Some(Protocol::Quic),
            Shown::Http { .. } => Some(Protocol::Http),
            Shown::Unreadable { protocol, .. } => Some(*protocol),
            Shown::Other | Shown::Unfinished => None,
        }
    }
}

/// Why something cannot be read for sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    #[error("it is longer than 16 KiB")]
    TooLong,
    #[error("it is malformed")]
    Malformed,
    #[error("its name is not one host name")]
    Name,
    #[error("the request has no Host header, several, or one that contradicts its target")]
    Host,
    #[error("the length of the request's body is in doubt")]
    Framing,
    #[error("it is HTTP in another version than 1.0 and 1.1")]
    Version,
}
