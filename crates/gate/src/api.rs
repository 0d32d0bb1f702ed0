use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use cofferdam_model::{
    DecisionId, DenyWith, DomainName, EventBody, FlowId, HostSocket, LimitsConfig, PortId, SocketId,
};
use cofferdam_policy::Permit;

use crate::wire::virtio::Offload;

/// Everything a gate is made from.
#[derive(Debug, Clone)]
pub struct GateConfig {
    pub v4: Link4,
    /// `None`: the sandbox has no IPv6; every IPv6 packet has a forged source then.
    pub v6: Option<Link6>,
    /// MTU of the guest's interface in bytes; larger replies are fragmented. Values below 576 are taken as 576.
    pub mtu: u16,
    pub deny_with: DenyWith,
    pub limits: LimitsConfig,
    /// TCP flows of all kinds that there are descriptors for; 0 for any number.
    pub room: u32,
    /// The host's sockets that the guest may connect to; [`SocketId`] is the position.
    pub host_sockets: Vec<HostSocket>,
    /// How long a name stays bound to an address at least.
    pub pin_floor: Duration,
    /// How long the answer to a denied packet waits after the event about it, for somebody to see who sent it; zero for not at all.
    pub witness: Duration,
    /// From the system's random source: keys the hash tables and starts decision ids and fragment ids.
    pub seed: [u8; 32],
}

/// The IPv4 addresses of the guest's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link4 {
    pub guest: Ipv4Addr,
    pub gateway: Ipv4Addr,
    /// Length of the prefix on the link; its broadcast address is never a destination.
    pub prefix: u8,
}

/// The IPv6 addresses of the guest's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link6 {
    pub guest: Ipv6Addr,
    pub gateway: Ipv6Addr,
}

/// Whether a packet may be cut up on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragmentation {
    /// IPv4 without the DF bit, and what the guest sent in fragments itself.
    Allowed,
    /// IPv4 with the DF bit, and IPv6: what is too big for the path is dropped, and the guest told.
    Forbidden,
}

/// Something that the shell has to do.
#[derive(Debug)]
pub enum Output {
    /// Connect a TCP socket to `remote`, and to `fallback` when `remote` refuses; answer with `handle_dialed`.
    Dial { flow: FlowId, remote: SocketAddr, fallback: Option<SocketAddr>, permit: Permit },
    /// Close the socket of this dial, connecting or connected: nobody waits for it. No answer.
    AbandonDial { flow: FlowId },
    /// Write one packet to the TUN.
    Emit { offload: Offload, packet: Vec<u8> },
    /// Open a UDP socket and connect it to `remote`. A failure is told with `handle_udp_failed`.
    OpenUdp { flow: FlowId, remote: SocketAddr, permit: Permit },
    /// Send `payload`; with `segment` it is a batch of datagrams of that many bytes each, the last one may be shorter.
    SendUdp { flow: FlowId, payload: Vec<u8>, segment: Option<u16>, fragmentation: Fragmentation },
    /// Close the flow's UDP socket. No answer.
    CloseUdp { flow: FlowId },
    /// Open an unprivileged ICMP socket and connect it to `remote`. A failure is told with `handle_echo_failed`.
    OpenEcho { flow: FlowId, remote: IpAddr, permit: Permit },
    /// Send one echo request; the identifier is the socket's own.
    SendEcho { flow: FlowId, sequence: u16, payload: Vec<u8> },
    /// Close the flow's ICMP socket. No answer.
    CloseEcho { flow: FlowId },
    /// A datagram for port 53 that the policy allows; answer with `handle_dns_answer`, or never.
    Dns { query: DnsClient, message: Vec<u8> },
    /// Reset a relayed TCP connection, both sides; answer with `handle_closed`.
    CloseFlow { flow: FlowId },
    /// The same, because a budget is used up.
    CloseUsedUp { flow: FlowId },
    /// Tell what the TCP flows have moved since this was last asked; answer with `handle_moved`.
    AskMoved,
    /// Connect to `guest` in the gateway's namespace, from `source` if that can be had, and from the gateway's address and any
    /// port if not; answer with `handle_guest_dialed`. [`Output::AbandonDial`] ends it too; the peer's connection is to be reset then.
    DialGuest { flow: FlowId, source: SocketAddr, guest: SocketAddr, permit: Permit },
    /// Send `payload` to `peer` out of the socket of a published UDP port, from the address `local` of the host if it is known;
    /// `segment` as in [`Output::SendUdp`].
    SendPeer {
        port: PortId,
        peer: SocketAddr,
        local: Option<IpAddr>,
        payload: Vec<u8>,
        segment: Option<u16>,
        fragmentation: Fragmentation,
    },
    /// Connect to this socket of the host; answer with `handle_socket_dialed`.
    DialSocket { flow: FlowId, socket: SocketId },
    /// Close the guest's connection: it does not get as far as the host's socket. No answer.
    AbandonSocket { flow: FlowId },
    /// Something to report.
    Event(EventBody),
}

/// A published port, as far as the gate looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The port that the service in the sandbox listens on.
    pub guest_port: NonZeroU16,
}

/// Who asked a DNS question over UDP, and whom: both ends as they stood in the guest's datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsClient {
    pub guest: SocketAddr,
    /// An address of the gateway, or of the resolver that the guest chose itself.
    pub server: SocketAddr,
}

/// What an accepted connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// The guest side of this dialed flow: relay them.
    Relay(FlowId),
    /// The same, and nothing that the guest sends may go on before `handle_flight` has let it.
    Check(FlowId),
    /// DNS over TCP for the server that the connection was made to: the resolver answers.
    Dns(FlowId),
}

/// Whether what a flow shows lets it go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlightAnswer {
    Pass,
    Deny(FlightDenial),
}

/// A denial, for the client to be told in its own protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlightDenial {
    /// The id in the event; `None` when there were too many denials for an event each.
    pub decision: Option<DecisionId>,
    /// The name that was denied, when one was shown.
    pub domain: Option<DomainName>,
    /// The rule or default that decided.
    pub rule: String,
    /// The name that would pass if it had been looked up in time.
    pub look_up_again: Option<DomainName>,
}

/// Why a dial failed, in the words the guest is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// `ECONNREFUSED`, `ECONNRESET`.
    #[error("connection refused")]
    Refused,
    /// `ENETUNREACH`, `EAFNOSUPPORT`, `EADDRNOTAVAIL`.
    #[error("network unreachable")]
    NetUnreachable,
    /// `EHOSTUNREACH`, `EHOSTDOWN`, and whatever has no answer of its own.
    #[error("host unreachable")]
    HostUnreachable,
    /// `ETIMEDOUT`.
    #[error("connection timed out")]
    TimedOut,
    /// `EACCES`, `EPERM`: a firewall of the host's own.
    #[error("administratively prohibited by the host")]
    Prohibited,
    /// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`: the gateway itself has run out.
    #[error("out of descriptors or memory")]
    Resources,
}

/// Why the host's socket could not be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// `EAGAIN`: more connections wait than the server lets wait.
    #[error("the server takes no connections: its queue is full")]
    Busy,
    /// `ECONNREFUSED`.
    #[error("nobody listens on it")]
    Refused,
    /// `ENOENT`.
    #[error("it is not there")]
    Missing,
    /// What is at its path is no socket, or a symbolic link.
    #[error("it is not a socket any more")]
    NotASocket,
    /// `EPROTOTYPE`.
    #[error("it is not a stream socket any more")]
    NotAStream,
    /// `EACCES`, `EPERM`.
    #[error("permission denied")]
    Prohibited,
    #[error("it was not reached in time")]
    TimedOut,
    /// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`.
    #[error("out of descriptors or memory")]
    Resources,
    /// Whoever connects is gone.
    #[error("the process that connects to sockets of the host has ended")]
    Gone,
    /// Any other.
    #[error("error {0}")]
    Other(i32),
}

/// What a UDP socket reported instead of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UdpError {
    /// `ECONNREFUSED`.
    #[error("port unreachable")]
    PortUnreachable,
    /// `EHOSTUNREACH`, `EHOSTDOWN`, and whatever has no answer of its own.
    #[error("host unreachable")]
    HostUnreachable,
    /// `ENETUNREACH`, `EAFNOSUPPORT`, `EADDRNOTAVAIL`.
    #[error("network unreachable")]
    NetUnreachable,
    /// `EACCES`, `EPERM`.
    #[error("administratively prohibited by the host")]
    Prohibited,
    /// `EMSGSIZE`: the path carries packets of at most `mtu` bytes; 0 when that is not known.
    #[error("datagram too big for a path MTU of {mtu} bytes")]
    TooBig { mtu: u32 },
    /// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`: ends the mapping whenever it is told.
    #[error("out of descriptors or memory")]
    Resources,
}

/// What an ICMP socket reported instead of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EchoError {
    /// `EACCES`, `EPERM` when opening: `net.ipv4.ping_group_range` does not hold our group. Ends the flow.
    #[error("unprivileged ICMP sockets are not permitted")]
    NotPermitted,
    #[error("host unreachable")]
    HostUnreachable,
    #[error("network unreachable")]
    NetUnreachable,
    /// `EACCES`, `EPERM` when sending.
    #[error("administratively prohibited by the host")]
    Prohibited,
    /// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`: ends the flow whenever it is told.
    #[error("out of descriptors or memory")]
    Resources,
}
