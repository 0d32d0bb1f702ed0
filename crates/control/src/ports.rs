//! Binds published ports, before anything of a sandbox is made: a port that is taken is found out while nothing has started.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use cofferdam_gateway::PortSocket;
use cofferdam_model::{PortId, PortProtocol, PublishedPort};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Connections that wait to be accepted. The kernel bounds it by `net.core.somaxconn`, 4,096 since Linux 5.4.
const BACKLOG: i32 = 4_096;
/// What the specification promises.
const LEAST_BACKLOG: u32 = 1_024;

/// Why a port cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(
        "cannot publish {port}: {} port {} of the host is taken{holder}; choose another, or 0 for any that is free",
        port.protocol.word(), port.host_port
    )]
    Taken { port: PublishedPort, holder: String },
    #[error(
        "cannot publish {port}: ports below {lowest} are for root on this machine; choose a higher one, or lower the sysctl \
         net.ipv4.ip_unprivileged_port_start"
    )]
    Privileged { port: PublishedPort, lowest: u16 },
    #[error("cannot publish {port}: the host has no address {}", port.host_bind)]
    NotHere { port: PublishedPort },
    #[error("cannot publish {port}")]
    Socket { port: PublishedPort, source: io::Error },
}

/// Binds every port. Those that were picked by the system are in the result as they are.
///
/// # Errors
/// The first that cannot be bound; those before it are free again.
pub fn bind(ports: &[PublishedPort]) -> Result<Vec<Arc<PortSocket>>, PublishError> {
    let numbered = ports.iter().zip(0..);
    numbered.map(|(port, id)| bind_one(*port, PortId(id)).map(Arc::new)).collect()
}

/// Binds one port under a number of its own.
///
/// # Errors
/// Why it cannot be bound.
pub fn bind_one(port: PublishedPort, id: PortId) -> Result<PortSocket, PublishError> {
    let socket = |source: Errno| explain(port, source);
    let kind = match port.protocol {
        PortProtocol::Tcp => SocketType::STREAM,
        PortProtocol::Udp => SocketType::DGRAM,
    };
    let family = if port.host_bind.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family, kind, flags, None).map_err(socket)?;
    if port.host_bind.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true).map_err(socket)?;
    }
    if port.protocol == PortProtocol::Tcp {
        // Connections of an earlier run may still be closing.
        sockopt::set_socket_reuseaddr(&fd, true).map_err(socket)?;
    }
    rustix::net::bind(&fd, &port.host()).map_err(socket)?;
    if port.protocol == PortProtocol::Tcp {
        rustix::net::listen(&fd, BACKLOG).map_err(socket)?;
    }
    let bound = rustix::net::getsockname(&fd).map_err(socket)?;
    let host_port = SocketAddr::try_from(bound).map_or(port.host_port, |bound| bound.port());
    Ok(PortSocket { id, port: PublishedPort { host_port, ..port }, socket: fd })
}

/// A remark when the machine does not let as many connections wait as are promised.
#[must_use]
pub fn backlog_remark() -> Option<String> {
    let bound: u32 = fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok()?;
    (bound < LEAST_BACKLOG).then(|| {
        format!(
            "this machine lets {bound} connections to a published port wait, so that a burst of more may see some refused; the \
             sysctl net.core.somaxconn raises that"
        )
    })
}

fn explain(port: PublishedPort, errno: Errno) -> PublishError {
    match errno {
        Errno::ADDRINUSE => PublishError::Taken { port, holder: holder(&port) },
        Errno::ACCESS | Errno::PERM => PublishError::Privileged { port, lowest: lowest_port() },
        Errno::ADDRNOTAVAIL => PublishError::NotHere { port },
        errno => PublishError::Socket { port, source: errno.into() },
    }
}

fn lowest_port() -> u16 {
    const USUAL: u16 = 1_024;
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL)
}

/// Who holds a port, as far as this user can see: `, by nginx (process 42)`, or nothing.
fn holder(port: &PublishedPort) -> String {
    let mut text = String::new();
    if let Some(inode) = inode(port)
        && let Some((pid, name)) = process_with(inode)
    {
        let _infallible = write!(text, " by {name} (process {pid})");
    }
    text
}

/// The number of the socket that has the port, from the tables of proc_net(5).
fn inode(port: &PublishedPort) -> Option<u64> {
    let tables = match port.protocol {
        PortProtocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        PortProtocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    // TCP_LISTEN, and TCP_CLOSE for UDP sockets that are not connected.
    let state = if port.protocol == PortProtocol::Tcp { "0A" } else { "07" };
    let suffix = format!(":{:04X}", port.host_port);
    tables.iter().filter_map(|table| fs::read_to_string(table).ok()).find_map(|table| {
        table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, status, ..] = fields[..] else { return None };
            let inode = fields.get(9)?.parse().ok()?;
            (local.ends_with(&suffix) && status == state).then_some(inode)
        })
    })
}

fn process_with(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(fds) = fs::read_dir(process.path().join("fd")) else { continue };
        if fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
            return Some((pid, name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> PublishedPort {
        cofferdam_policy::file::parse_port(text).unwrap().remove(0)
    }

    #[test]
    fn picks_a_port_and_says_who_has_one_that_is_taken() {
        for (text, kind) in [("0:80", "/tcp"), ("[::1]:0:80", "/tcp"), ("0:80/udp", "/udp"), ("[::1]:0:80/udp", "/udp")]
        {
            let bound = bind_one(port(text), PortId(0)).unwrap();
            assert_ne!(bound.port.host_port, 0);
            let error = bind_one(bound.port, PortId(1)).unwrap_err().to_string();
            let expected = format!("(process {})", std::process::id());
            assert!(error.contains(&expected) && error.contains(kind), "{error}");
        }
    }

    #[test]
    fn says_that_an_address_is_elsewhere() {
        for text in ["192.0.2.1:0:80", "[2001:db8::1]:0:80"] {
            assert!(matches!(bind_one(port(text), PortId(0)), Err(PublishError::NotHere { .. })), "{text}");
        }
    }

    #[test]
    fn gives_back_what_it_bound_when_one_fails() {
        let free = bind_one(port("0:80"), PortId(0)).unwrap().port;
        let elsewhere = port("192.0.2.1:0:80");
        assert!(bind(&[free, elsewhere]).is_err());
        assert!(bind(&[free]).is_ok());
    }
}
