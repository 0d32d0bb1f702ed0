//! The small client that `demo` and `doctor --prove` run inside their sandboxes, and outside them as a control.
//!
//! It tries each thing that it is told to and prints one line of JSON for each, in the same order. All are tried at
//! once, so that one that hangs costs its own time only.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::net::{AddressFamily, Protocol, SocketType, ipproto};
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};

use crate::output;
use crate::world::{ECHO, hex, raw_protocol};

/// How long an answer that is to come may take; what takes longer is silence. Everything here is on one machine and takes
/// milliseconds, but where others keep its processors busy, a server may have to wait for its turn, and dozens of attempts
/// are under way at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// After this a datagram is sent again: nobody else makes up for one that was lost.
const REPEAT: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// The trust anchor of the demo's world: DER in hexadecimal.
    #[arg(long)]
    ca: Option<String>,
    /// How long an answer may take, in milliseconds.
    #[arg(long)]
    patience_ms: Option<u64>,
    /// What to try.
    #[arg(required = true)]
    attempts: Vec<String>,
}

/// What came of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub attempt: String,
    pub result: Reached,
    /// In the system's words.
    pub detail: String,
}

/// How an attempt ended, as the program that made it sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reached {
    /// The other end answered.
    Yes,
    /// A reset: what a closed port looks like.
    Refused,
    /// An ICMP error, or the sandbox's own kernel, said that it is not allowed.
    Prohibited,
    /// There is no way to it.
    Unreachable,
    /// The name has no address here.
    Unresolved,
    /// No answer came.
    Silence,
    /// It answered, but is not who it should be.
    Untrusted,
    /// Something else; the detail says what.
    Failed,
}

/// Carries out the attempts and prints the findings.
pub(crate) fn client(args: &ClientArgs) -> u8 {
    let anchor = args.ca.as_deref().and_then(hex::decode);
    let patience = args.patience_ms.map_or(PATIENCE, Duration::from_millis);
    let threads: Vec<_> = args
        .attempts
        .iter()
        .map(|attempt| {
            let (attempt, anchor) = (attempt.clone(), anchor.clone());
            thread::spawn(move || find(attempt, anchor.as_deref(), patience))
        })
        .collect();
    for thread in threads {
        let Ok(finding) = thread.join() else { return output::fail("an attempt ended in a fault", 1) };
        let Ok(line) = serde_json::to_string(&finding) else { return output::fail("a finding cannot be printed", 1) };
        if output::print(&format!("{line}\n")) != 0 {
            return 1;
        }
    }
    0
}

fn find(attempt: String, anchor: Option<&[u8]>, patience: Duration) -> Finding {
    let (kind, target) = attempt.split_once(':').unwrap_or((&attempt, ""));
    let done = match kind {
        "http" => http(target, patience),
        "https" => https(target, anchor, patience),
        "tcp" => resolve(target).and_then(|addresses| connect(addresses, patience)).and_then(tcp_echo),
        "udp" => resolve(target).and_then(|addresses| udp_echo(addresses, patience)),
        "lookup" => lookup(target),
        "dns" => resolve(target).and_then(|addresses| dns_query(addresses, patience)),
        "ping" => address(target).and_then(|remote| ping(remote, patience)),
        "raw" => address(target).and_then(|remote| raw(remote, patience)),
        "abstract" => abstract_socket(target, patience),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "unknown attempt")),
    };
    match done {
        Ok(detail) => Finding { attempt, result: Reached::Yes, detail },
        Err(error) => Finding { attempt, result: classify(&error), detail: error.to_string() },
    }
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of errors are the standard library's, and there will be more"
)]
fn classify(error: &io::Error) -> Reached {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Reached::Refused,
        io::ErrorKind::PermissionDenied => Reached::Prohibited,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => Reached::Unreachable,
        // The kernel turns "administratively prohibited" into this (RFC 1122 §3.2.2.1, net/ipv4/icmp.c).
        io::ErrorKind::HostUnreachable => Reached::Prohibited,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Reached::Silence,
        io::ErrorKind::InvalidData => Reached::Untrusted,
        io::ErrorKind::NotFound => Reached::Unresolved,
        _ => match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::PROTO | rustix::io::Errno::NOPROTOOPT) => Reached::Prohibited,
            _ => Reached::Failed,
        },
    }
}

/// Addresses of `name:port`. A name without any is "not found", whatever the C library calls it.
fn resolve(target: &str) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> =
        target.to_socket_addrs().map_err(|error| io::Error::new(io::ErrorKind::NotFound, error.to_string()))?.collect();
    if found.is_empty() { Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")) } else { Ok(found) }
}

fn address(target: &str) -> io::Result<IpAddr> {
    target.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not an address"))
}

/// Connects to the first address that answers; the error is that of the last one.
fn connect(addresses: Vec<SocketAddr>, patience: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn tcp_echo(mut stream: TcpStream) -> io::Result<String> {
    stream.write_all(ECHO)?;
    let mut answer = vec![0; ECHO.len()];
    stream.read_exact(&mut answer)?;
    Ok("the echo came back".to_owned())
}

fn http(target: &str, patience: Duration) -> io::Result<String> {
    let mut stream = connect(resolve(target)?, patience)?;
    request(&mut stream, target)
}

fn https(target: &str, anchor: Option<&[u8]>, patience: Duration) -> io::Result<String> {
    let untrusted = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let (host, _) = target.rsplit_once(':').unwrap_or((target, ""));
    let name =
        ServerName::try_from(host.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let mut roots = rustls::RootCertStore::empty();
    if let Some(der) = anchor {
        roots.add(CertificateDer::from(der.to_vec())).map_err(untrusted)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(untrusted)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut stream = connect(resolve(target)?, patience)?;
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).map_err(untrusted)?;
    let answer = request(&mut rustls::Stream::new(&mut session, &mut stream), host)?;
    Ok(format!("{answer}, certificate verified"))
}

/// Asks for `/` and gives the status line back.
fn request(stream: &mut (impl Read + Write), host: &str) -> io::Result<String> {
    write!(stream, "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut head = [0; 64];
    let read = stream.read(&mut head)?;
    let head = String::from_utf8_lossy(head.get(..read).unwrap_or_default()).into_owned();
    match head.split_once("\r\n") {
        Some((status, _)) => Ok(status.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn udp_echo(addresses: Vec<SocketAddr>, patience: Duration) -> io::Result<String> {
    let answer = ask(addresses, ECHO, patience)?;
    if answer == ECHO { Ok("the echo came back".to_owned()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Sends a datagram to the first address, again and again, until one comes back.
fn ask(addresses: Vec<SocketAddr>, datagram: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
    let server = addresses.into_iter().next().ok_or(io::ErrorKind::NotFound)?;
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(REPEAT.min(patience)))?;
    socket.connect(server)?;
    let deadline = Instant::now() + patience;
    let mut answer = vec![0; 512];
    loop {
        socket.send(datagram)?;
        match socket.recv(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            read => {
                answer.truncate(read?);
                return Ok(answer);
            }
        }
    }
}

fn lookup(name: &str) -> io::Result<String> {
    let found: Vec<String> =
        resolve(&format!("{name}:0"))?.into_iter().map(|address| address.ip().to_string()).collect();
    Ok(found.join(" "))
}

/// Asks one server directly for the address of a name that the world knows.
fn dns_query(addresses: Vec<SocketAddr>, patience: Duration) -> io::Result<String> {
    // Id 0x1234, recursion desired, one question: www.example.com A IN (RFC 1035 §4.1).
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01";
    let answer = ask(addresses, query, patience)?;
    match (answer.get(3).map(|flags| flags & 15), answer.get(7)) {
        (Some(0), Some(1..)) => Ok("an answer with an address".to_owned()),
        (Some(5), _) => Err(io::Error::new(io::ErrorKind::PermissionDenied, "REFUSED by the gateway's resolver")),
        (Some(3), _) => Err(io::Error::new(io::ErrorKind::NotFound, "NXDOMAIN")),
        (Some(code), _) => Err(io::Error::other(format!("rcode {code}"))),
        (None, _) => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn ping(remote: IpAddr, patience: Duration) -> io::Result<String> {
    let protocol = if remote.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    let socket = raw_socket(remote, protocol, patience)?;
    // Echo request, code 0, checksum (the kernel fills in that of ICMPv6), id, sequence 1 (RFC 792, RFC 4443 §4.1).
    let (request, reply) = if remote.is_ipv4() { (8_u8, 0_u8) } else { (128, 129) };
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or(1).to_be_bytes();
    let mut packet = vec![request, 0, 0, 0, id[0], id[1], 0, 1];
    packet.extend_from_slice(ECHO);
    if remote.is_ipv4() {
        let sum = checksum(&packet).to_be_bytes();
        packet.splice(2..4, sum);
    }
    rustix::net::send(&socket, &packet, rustix::net::SendFlags::empty())?;
    await_packet(&socket, patience, |packet| {
        // IPv4 raw sockets show the header of 20 bytes as well.
        let icmp = if remote.is_ipv4() { packet.get(20..) } else { Some(packet) };
        icmp.is_some_and(|icmp| icmp.first() == Some(&reply) && icmp.get(4..6) == Some(&id))
    })?;
    Ok("the reply came".to_owned())
}

/// A packet of a protocol that is neither TCP, UDP nor ICMP.
fn raw(remote: IpAddr, patience: Duration) -> io::Result<String> {
    let socket = raw_socket(remote, raw_protocol(), patience)?;
    rustix::net::send(&socket, ECHO, rustix::net::SendFlags::empty())?;
    await_packet(&socket, patience, |packet| packet.ends_with(ECHO))?;
    Ok("the echo came back".to_owned())
}

/// A raw socket that is connected, so that ICMP errors about its packets arrive as errors.
fn raw_socket(remote: IpAddr, protocol: Protocol, patience: Duration) -> io::Result<OwnedFd> {
    let family = if remote.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::RAW, Some(protocol))?;
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(patience))?;
    rustix::net::connect(&socket, &SocketAddr::new(remote, 0))?;
    Ok(socket)
}

/// Reads until a packet is the expected one or time is up.
fn await_packet(socket: &OwnedFd, patience: Duration, mut expected: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 512];
    while Instant::now() < deadline {
        let (read, _) = rustix::net::recv(socket, &mut buffer, rustix::net::RecvFlags::empty())?;
        if expected(buffer.get(..read).unwrap_or_default()) {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn abstract_socket(name: &str, patience: Duration) -> io::Result<String> {
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let mut stream = UnixStream::connect_addr(&address)?;
    stream.set_read_timeout(Some(patience))?;
    let mut answer = vec![0; ECHO.len()];
    stream.write_all(ECHO)?;
    stream.read_exact(&mut answer)?;
    Ok("the echo came back".to_owned())
}

/// The checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let word = match pair {
            [high, low] => u16::from_be_bytes([*high, *low]),
            [high] => u16::from_be_bytes([*high, 0]),
            _ => 0,
        };
        sum += u32::from(word);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // The example of RFC 1071 §3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[]), 0xffff);
        assert_eq!(checksum(&[1]), !0x0100);
    }

    #[test]
    fn findings_are_what_the_kernel_said() {
        let errno = |errno: rustix::io::Errno| classify(&io::Error::from(errno));
        assert_eq!(errno(rustix::io::Errno::CONNREFUSED), Reached::Refused);
        assert_eq!(errno(rustix::io::Errno::HOSTUNREACH), Reached::Prohibited);
        assert_eq!(errno(rustix::io::Errno::NETUNREACH), Reached::Unreachable);
        assert_eq!(errno(rustix::io::Errno::AGAIN), Reached::Silence);
        assert_eq!(errno(rustix::io::Errno::ACCESS), Reached::Prohibited);
        assert_eq!(errno(rustix::io::Errno::NOPROTOOPT), Reached::Prohibited);
    }
}
