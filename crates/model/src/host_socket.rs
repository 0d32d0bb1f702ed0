use std::fmt;

/// The position of a host socket among those of its sandbox.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct SocketId(pub u32);

/// A Unix stream socket of the host that programs in a sandbox connect to at a path of their own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostSocket {
    /// The absolute path of the host's.
    pub host: String,
    /// The absolute path inside.
    pub guest: String,
}

impl fmt::Display for HostSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest)
    }
}
