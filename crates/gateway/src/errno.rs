//! What the system said, in the words that the gate answers a guest with.

use cofferdam_gate::{DialError, EchoError, UdpError};
use cofferdam_sys::socket::QueuedError;
use rustix::io::Errno;

pub(crate) fn dial_error(errno: Errno) -> DialError {
    match errno {
        Errno::CONNREFUSED | Errno::CONNRESET => DialError::Refused,
        Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL => DialError::NetUnreachable,
        Errno::TIMEDOUT => DialError::TimedOut,
        Errno::ACCESS | Errno::PERM => DialError::Prohibited,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => DialError::Resources,
        _ => DialError::HostUnreachable,
    }
}

/// `None` for errors that are no answer: the datagram is lost, as datagrams may be.
pub(crate) fn udp_error(errno: Errno, mtu: u32) -> Option<UdpError> {
    Some(match errno {
        Errno::AGAIN | Errno::INTR => return None,
        Errno::CONNREFUSED => UdpError::PortUnreachable,
        Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL => UdpError::NetUnreachable,
        Errno::ACCESS | Errno::PERM => UdpError::Prohibited,
        Errno::MSGSIZE => UdpError::TooBig { mtu },
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => UdpError::Resources,
        _ => UdpError::HostUnreachable,
    })
}

pub(crate) fn queued_udp_error(error: QueuedError) -> Option<UdpError> {
    udp_error(Errno::from_raw_os_error(error.errno), error.info)
}

/// `opening`: the socket itself was refused.
pub(crate) fn echo_error(errno: Errno, opening: bool) -> Option<EchoError> {
    Some(match errno {
        Errno::AGAIN | Errno::INTR => return None,
        Errno::ACCESS | Errno::PERM if opening => EchoError::NotPermitted,
        Errno::ACCESS | Errno::PERM => EchoError::Prohibited,
        Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL => EchoError::NetUnreachable,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => EchoError::Resources,
        _ => EchoError::HostUnreachable,
    })
}
