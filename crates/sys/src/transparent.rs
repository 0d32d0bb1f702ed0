//! Sockets with addresses that are not theirs (`IP_TRANSPARENT`, ip(7)), as TPROXY needs.

use std::fmt;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::sockopt::{
    set_ipv6_v6only, set_socket_oobinline, set_socket_reuseaddr, set_tcp_congestion, set_tcp_nodelay,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

/// Which IP a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpVersion {
    V4,
    V6,
}

impl fmt::Display for IpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IpVersion::V4 => "IPv4",
            IpVersion::V6 => "IPv6",
        })
    }
}

/// A non-blocking, close-on-exec TCP listener on any address of the calling thread's network namespace. Connections
/// inherit `TCP_NODELAY` and the congestion control `congestion`.
///
/// # Errors
/// The name of the refused call and the system's reason: `EPERM` for `IP_TRANSPARENT` without `CAP_NET_ADMIN` there,
/// `EADDRINUSE` for a taken port, `ENOENT` for an unknown `congestion`, `EAFNOSUPPORT` for an IP that the kernel lacks.
pub fn transparent_listener(
    version: IpVersion,
    port: u16,
    backlog: i32,
    congestion: &str,
) -> Result<OwnedFd, (&'static str, io::Error)> {
    let address: SocketAddr = match version {
        IpVersion::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        IpVersion::V6 => (Ipv6Addr::UNSPECIFIED, port).into(),
    };
    transparent_listener_at(address, backlog, congestion)
}

/// As [`transparent_listener`], on one address, which need not be the namespace's.
///
/// # Errors
/// As for [`transparent_listener`].
pub fn transparent_listener_at(
    address: SocketAddr,
    backlog: i32,
    congestion: &str,
) -> Result<OwnedFd, (&'static str, io::Error)> {
    let version = if address.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
    let socket = transparent_socket(version, congestion)?;
    rustix::net::bind(&socket, &address).map_err(|e| ("bind", e.into()))?;
    rustix::net::listen(&socket, backlog).map_err(|e| ("listen", e.into()))?;
    Ok(socket)
}

/// A non-blocking, close-on-exec TCP socket of the calling thread's network namespace that may be bound to any address. It, and
/// whatever it accepts, has `TCP_NODELAY`, urgent data inline and the congestion control `congestion`.
///
/// # Errors
/// As for [`transparent_listener`].
pub fn transparent_socket(version: IpVersion, congestion: &str) -> Result<OwnedFd, (&'static str, io::Error)> {
    let family = match version {
        IpVersion::V4 => AddressFamily::INET,
        IpVersion::V6 => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))
        .map_err(|e| ("socket", e.into()))?;
    match version {
        IpVersion::V4 => {
            set_option(&socket, libc::SOL_IP, libc::IP_TRANSPARENT, 1).map_err(|e| ("IP_TRANSPARENT", e))?;
        }
        IpVersion::V6 => {
            set_option(&socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1).map_err(|e| ("IPV6_TRANSPARENT", e))?;
            set_ipv6_v6only(&socket, true).map_err(|e| ("IPV6_V6ONLY", e.into()))?;
        }
    }
    // Two may have the same address and port as long as they connect to different ones.
    set_socket_reuseaddr(&socket, true).map_err(|e| ("SO_REUSEADDR", e.into()))?;
    set_socket_oobinline(&socket, true).map_err(|e| ("SO_OOBINLINE", e.into()))?;
    set_tcp_nodelay(&socket, true).map_err(|e| ("TCP_NODELAY", e.into()))?;
    set_tcp_congestion(&socket, congestion).map_err(|e| ("TCP_CONGESTION", e.into()))?;
    Ok(socket)
}

/// Gives what a socket sends, and what it accepts, a firewall mark, by which rules may choose a route (`SO_MARK`, socket(7)).
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over the socket's network namespace.
pub fn set_mark(socket: impl AsFd, mark: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())
}

/// Sets an option whose value is an `int`.
pub(crate) fn set_option(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(mem::size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the value is a live c_int of the given size, which the kernel only reads; the descriptor is borrowed.
    let rc = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
