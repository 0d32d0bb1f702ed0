use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::{Direction, Group, Layer, PortId, PortProtocol, Protocol};

/// The number of a flow, unique within one gateway.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct FlowId(pub u64);

/// Names one decision; short, printable, and unique for one host user for all practical purposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DecisionId(pub u64);

impl fmt::Display for DecisionId {
    /// Crockford's base 32, lower case, most significant digit first, no leading zeros.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let mut started = false;
        for shift in (0..13).rev() {
            let digit = (self.0 >> (shift * 5)) & 31;
            if digit != 0 || started || shift == 0 {
                started = true;
                let index = usize::try_from(digit).unwrap_or(0);
                write!(f, "{}", char::from(*DIGITS.get(index).unwrap_or(&b'?')))?;
            }
        }
        Ok(())
    }
}

/// The rule behind a decision, as people read it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RuleText {
    /// Position in the policy's rules, counted from 0; absent for a default.
    pub index: Option<u32>,
    /// The rule in the short grammar, or `default egress deny` and the like.
    pub text: String,
    /// Whose rule or default it is, where several policies hold at once; absent where there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Layer>,
}

impl fmt::Display for RuleText {
    /// The text, with whose it is behind it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        self.layer.map_or(Ok(()), |layer| write!(f, " ({})", layer.word()))
    }
}

/// Why a packet was dropped without a decision: it was not one that the gateway carries.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    Truncated,
    BadHeader,
    BadChecksum,
    Options,
    ExtensionHeader,
    Fragment,
    ForgedSource,
    UnusableAddress,
    UnsupportedProtocol,
    UnsupportedIcmp,
    PortZero,
    /// A reply or an accepted connection that no flow was waiting for.
    Unexpected,
    QueueFull,
}

/// A bound of the gateway that was reached.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    Connections,
    PendingConnections,
    UdpMappings,
    /// TCP connections to published ports.
    InboundConnections,
    /// Peers of published UDP ports.
    InboundUdpMappings,
    Pings,
    DnsQueries,
    /// Bytes that guests have sent on connections whose first flight or next request is not whole yet.
    HeldBytes,
    Descriptors,
    /// Bytes out of the sandbox: how often a connection had to wait, and datagrams that were dropped.
    EgressBandwidth,
    /// The same for bytes into it.
    IngressBandwidth,
    /// Datagrams and connection attempts out of the sandbox that were dropped.
    EgressOps,
    /// Datagrams into it that were dropped.
    IngressOps,
    /// Bytes that were granted for the run or for a list of destinations are used up.
    Budget,
    /// Events that were lost because nobody read them fast enough.
    Events,
}

/// Who ended a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    Guest,
    Remote,
    GuestReset,
    RemoteReset,
    Idle,
    Limit,
    /// A budget of bytes is used up.
    Budget,
    Policy,
    Shutdown,
    Error,
}

/// What a flow carried: bytes of payload, and packets where somebody counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct FlowCounters {
    pub bytes_out: u64,
    pub bytes_in: u64,
    /// Datagrams from the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_out: Option<u64>,
    /// Datagrams to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_in: Option<u64>,
}

impl FlowCounters {
    /// Nothing yet, of a flow whose packets are counted.
    #[must_use]
    pub fn of_packets() -> FlowCounters {
        FlowCounters { packets_out: Some(0), packets_in: Some(0), ..FlowCounters::default() }
    }

    /// Adds what the guest has sent.
    pub fn count_out(&mut self, bytes: usize, packets: usize) {
        add(&mut self.bytes_out, bytes);
        self.packets_out.iter_mut().for_each(|count| add(count, packets));
    }

    /// Adds what the guest was sent.
    pub fn count_in(&mut self, bytes: usize, packets: usize) {
        add(&mut self.bytes_in, bytes);
        self.packets_in.iter_mut().for_each(|count| add(count, packets));
    }
}

fn add(sum: &mut u64, count: usize) {
    *sum = sum.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
}

/// The process of the guest that an event is about, as the supervisor found it. The words are the guest's own.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Process {
    /// Its number as the sandbox's pid 1 counts.
    pub pid: u32,
    /// Its name (`comm`), which it may change.
    pub comm: String,
    /// The first word of its command line, which it may change; absent when it could not be read in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv0: Option<String>,
}

impl Process {
    /// One of which the gateway knows nothing but its number, as it counts itself. Whoever reads the gateway's events puts what the
    /// sandbox knows of it in its place, or leaves it out.
    #[must_use]
    pub fn seen_from_outside(pid: u32) -> Process {
        Process { pid, comm: String::new(), argv0: None }
    }

    /// The number outside, where that is all there is. Whoever was found inside has a name, be it of one character.
    #[must_use]
    pub fn pid_outside(&self) -> Option<u32> {
        (self.comm.is_empty() && self.argv0.is_none()).then_some(self.pid)
    }
}

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventSource {
    Gateway,
    Supervisor,
}

/// One line of the event stream.
#[derive(Debug, Clone, PartialEq, serde::Serialize, schemars::JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Event {
    /// Version of this schema; 1.
    pub v: u32,
    /// Wall clock, RFC 3339 in UTC.
    pub time: String,
    /// Monotonic nanoseconds since the sandbox's network started.
    pub mono_ns: u64,
    pub source: EventSource,
    #[serde(flatten)]
    pub body: EventBody,
}

/// An address in a DNS answer for which rebinding protection held the answer back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Withheld {
    pub address: IpAddr,
    pub group: Group,
}

/// What the first bytes of a flow are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlightProtocol {
    Tls,
    Http,
    Quic,
    Other,
    /// Too little came to tell.
    Unfinished,
}

/// What a flow showed in its first bytes, or in a later request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct FirstFlight {
    pub protocol: FlightProtocol,
    pub names: Vec<String>,
    /// Why it could not be read for sure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
}

/// What an open flow has carried so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct FlowProgress {
    pub flow: FlowId,
    pub counters: FlowCounters,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(tag = "type")]
pub enum EventBody {
    #[serde(rename = "sandbox.started")]
    SandboxStarted { command: Vec<String>, policy: Vec<String>, guest: Vec<IpAddr> },
    #[serde(rename = "sandbox.stopped")]
    SandboxStopped { exit_status: i32, duration_ms: u64 },
    #[serde(rename = "dns.query")]
    DnsQuery {
        name: String,
        qtype: u16,
        /// How it was asked, by whom and where: an address of the gateway, or of a resolver that the program chose itself. Absent
        /// when the event stands for several look-ups.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        protocol: Option<Protocol>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guest: Option<SocketAddr>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<SocketAddr>,
        /// `allow` or `deny`.
        verdict: crate::Action,
        rule: RuleText,
        decision: Option<String>,
        answers: Vec<IpAddr>,
        /// Why an answer that came was not delivered; absent for every other query.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        withheld: Option<Withheld>,
        rcode: Option<u8>,
        resolver: Option<SocketAddr>,
        ms: f64,
        /// How many look-ups alike this event stands for, when they were too many to be told one by one; absent for one.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        count: u64,
        /// Who it was, where that was found; see [`Process`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<Process>,
    },
    /// Look-ups of too many names to be told apart.
    #[serde(rename = "dns.more")]
    DnsMore { verdict: crate::Action, count: u64 },
    #[serde(rename = "flow.opened")]
    FlowOpened {
        flow: FlowId,
        direction: Direction,
        protocol: Protocol,
        guest: SocketAddr,
        remote: SocketAddr,
        group: Group,
        names: Vec<String>,
        rule: RuleText,
        /// Who it was, where that was found; see [`Process`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<Process>,
    },
    #[serde(rename = "flow.denied")]
    FlowDenied {
        decision: String,
        direction: Direction,
        protocol: Protocol,
        guest: SocketAddr,
        remote: SocketAddr,
        group: Group,
        names: Vec<String>,
        rule: RuleText,
        /// Present when the flow was denied for what it showed after it was opened.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shown: Option<FirstFlight>,
        /// A name that was pinned to the remote's address, is not any more, and would let the flow pass: it has to be looked up
        /// again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        look_up_again: Option<String>,
        /// Who it was, where that was found; see [`Process`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<Process>,
    },
    /// What an allowed flow showed, and was let pass with; told where somebody asked for it, once for each different thing.
    #[serde(rename = "flow.shown")]
    FlowShown { flow: FlowId, shown: FirstFlight },
    /// What open flows have carried so far: those that have moved bytes since the last such event, most first; told once a second
    /// while there are any.
    #[serde(rename = "flow.progress")]
    FlowProgress {
        /// At most 64.
        flows: Vec<FlowProgress>,
        /// How many others have moved something.
        more: u64,
    },
    #[serde(rename = "flow.closed")]
    FlowClosed { flow: FlowId, by: CloseReason, counters: FlowCounters, duration_ms: u64 },
    #[serde(rename = "flow.failed")]
    FlowFailed {
        flow: FlowId,
        protocol: Protocol,
        guest: SocketAddr,
        remote: SocketAddr,
        error: String,
        /// Who it was, where that was found; see [`Process`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<Process>,
    },
    /// Other rules are in force from here on: how many there are, and how many flows they have ended.
    #[serde(rename = "policy.changed")]
    PolicyChanged { rules: u64, ended: u64 },
    /// A port of the host leads into the sandbox from here on.
    #[serde(rename = "port.published")]
    PortPublished { port: PortId, protocol: PortProtocol, host: SocketAddr, guest_port: u16 },
    /// It does not any more; connections that were made go on.
    #[serde(rename = "port.withdrawn")]
    PortWithdrawn { port: PortId, protocol: PortProtocol, host: SocketAddr, guest_port: u16 },
    /// A program has connected to a socket of the host.
    #[serde(rename = "socket.opened")]
    SocketOpened {
        flow: FlowId,
        /// Its path on the host.
        host: String,
        /// The path inside.
        guest: String,
        /// Who it was, where that was found; see [`Process`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<Process>,
    },
    #[serde(rename = "socket.closed")]
    SocketClosed { flow: FlowId, by: CloseReason, counters: FlowCounters, duration_ms: u64 },
    /// The host's socket could not be connected to; the program has read the end of the stream.
    #[serde(rename = "socket.failed")]
    SocketFailed { flow: FlowId, host: String, guest: String, error: String },
    #[serde(rename = "limit.reached")]
    LimitReached { limit: LimitKind, bound: u64, count: u64 },
    #[serde(rename = "gateway.dropped")]
    GatewayDropped { reason: DropReason, count: u64 },
    #[serde(rename = "gateway.notice")]
    GatewayNotice { message: String },
}

impl EventBody {
    /// Whether it tells of something that was denied.
    #[must_use]
    pub fn is_denial(&self) -> bool {
        match self {
            EventBody::FlowDenied { .. } => true,
            EventBody::DnsQuery { verdict, .. } | EventBody::DnsMore { verdict, .. } => *verdict == crate::Action::Deny,
            EventBody::SandboxStarted { .. }
            | EventBody::SandboxStopped { .. }
            | EventBody::FlowOpened { .. }
            | EventBody::FlowClosed { .. }
            | EventBody::FlowShown { .. }
            | EventBody::FlowProgress { .. }
            | EventBody::FlowFailed { .. }
            | EventBody::PolicyChanged { .. }
            | EventBody::PortPublished { .. }
            | EventBody::PortWithdrawn { .. }
            | EventBody::SocketOpened { .. }
            | EventBody::SocketClosed { .. }
            | EventBody::SocketFailed { .. }
            | EventBody::LimitReached { .. }
            | EventBody::GatewayDropped { .. }
            | EventBody::GatewayNotice { .. } => false,
        }
    }
}

fn one() -> u64 {
    1
}

/// As serde asks for it.
fn is_one(count: &u64) -> bool {
    *count == 1
}
