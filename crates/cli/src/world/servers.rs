//! The servers of the closed world: as small as they can be and still real sockets, real DNS and real TLS.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};
use rustls::pki_types::PrivateKeyDer;

use super::{Visits, raw_protocol, sites};

/// How long a server waits for a client that says nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// The keys of the world's sites and of the authority that vouches for them, made afresh for every world.
pub(super) struct Identity {
    anchor: Vec<u8>,
    config: Arc<rustls::ServerConfig>,
}

impl Identity {
    pub(super) fn new() -> Result<Identity, String> {
        let bad = |error: rcgen::Error| format!("cannot make a certificate: {error}");
        let authority_key = KeyPair::generate().map_err(bad)?;
        let mut authority = CertificateParams::new(Vec::<String>::new()).map_err(bad)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let anchor = authority.self_signed(&authority_key).map_err(bad)?;
        let issuer = Issuer::from_params(&authority, &authority_key);
        let key = KeyPair::generate().map_err(bad)?;
        let site = CertificateParams::new(sites::TLS_NAMES.map(str::to_owned)).map_err(bad)?;
        let site = site.signed_by(&key, &issuer).map_err(bad)?;
        let unusable = |error: rustls::Error| format!("cannot use a certificate: {error}");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(vec![site.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .map_err(unusable)?;
        Ok(Identity { anchor: anchor.der().to_vec(), config: Arc::new(config) })
    }

    /// DER of the authority's certificate.
    pub(super) fn anchor(&self) -> &[u8] {
        &self.anchor
    }
}

/// The sockets of one side, made in that side's namespace.
#[derive(Default)]
pub(super) struct Sockets {
    http: Vec<TcpListener>,
    https: Vec<TcpListener>,
    tcp_echo: Vec<TcpListener>,
    udp_echo: Vec<UdpSocket>,
    dns: Vec<UdpSocket>,
    raw_echo: Vec<(AddressFamily, OwnedFd)>,
    unix_echo: Vec<UnixListener>,
}

impl Sockets {
    /// Everybody else's.
    pub(super) fn world(ipv6: bool) -> Result<Sockets, String> {
        let mut sockets = Sockets::default();
        for address in sites::ADDRESSES4 {
            sockets.http.push(listen(address.into(), 80)?);
        }
        let public: Vec<IpAddr> = sites::ADDRESSES4.map(IpAddr::V4).into_iter().collect();
        let mut echoing: Vec<IpAddr> = public.clone();
        if ipv6 {
            for address in sites::ADDRESSES6 {
                sockets.http.push(listen(address.into(), 80)?);
                sockets.https.push(listen(address.into(), 443)?);
                echoing.push(address.into());
            }
        }
        for address in public {
            sockets.https.push(listen(address, 443)?);
        }
        for address in echoing {
            sockets.tcp_echo.push(listen(address, sites::ECHO_PORT)?);
            sockets.udp_echo.push(bind(address, sites::ECHO_PORT)?);
        }
        sockets.dns.push(bind(sites::RESOLVER.into(), 53)?);
        sockets.raw_echo.push((AddressFamily::INET, raw(sites::EXAMPLE4.into())?));
        if ipv6 {
            sockets.raw_echo.push((AddressFamily::INET6, raw(sites::EXAMPLE6.into())?));
        }
        Ok(sockets)
    }

    /// The machine's own: on loopback, where other machines cannot reach it.
    pub(super) fn machine() -> Result<Sockets, String> {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(sites::ABSTRACT)
            .and_then(|address| UnixListener::bind_addr(&address))
            .map_err(|error| format!("cannot make the abstract socket: {error}"))?;
        Ok(Sockets {
            http: vec![listen(Ipv4Addr::LOCALHOST.into(), sites::LOCAL_PORT)?],
            udp_echo: vec![bind(Ipv4Addr::LOCALHOST.into(), sites::LOCAL_PORT)?],
            unix_echo: vec![address],
            ..Sockets::default()
        })
    }

    /// Serves all of them, each in a thread that lives as long as the process.
    pub(super) fn serve(self, identity: &Arc<Identity>, visits: &Arc<Visits>) -> Result<(), String> {
        for listener in self.http {
            accept(listener, visits, |mut stream| respond(&mut stream))?;
        }
        for listener in self.https {
            let config = identity.config.clone();
            accept(listener, visits, move |mut stream| {
                let mut session = rustls::ServerConnection::new(config.clone()).map_err(io::Error::other)?;
                respond(&mut rustls::Stream::new(&mut session, &mut stream))
            })?;
        }
        for listener in self.tcp_echo {
            accept(listener, visits, |mut stream| echo(&mut stream))?;
        }
        for socket in self.udp_echo {
            let visits = visits.clone();
            start(move || answer(&socket, &visits, |datagram| Some(datagram.to_vec())))?;
        }
        for socket in self.dns {
            let visits = visits.clone();
            start(move || answer(&socket, &visits, dns_answer))?;
        }
        for (family, socket) in self.raw_echo {
            let visits = visits.clone();
            start(move || raw_echo(family, &socket, &visits))?;
        }
        for listener in self.unix_echo {
            let visits = visits.clone();
            start(move || {
                for mut stream in listener.incoming().flatten() {
                    visits.count();
                    // What a client does is its own affair.
                    let _ = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| echo(&mut stream));
                }
            })?;
        }
        Ok(())
    }
}

fn listen(address: IpAddr, port: u16) -> Result<TcpListener, String> {
    TcpListener::bind((address, port))
        .map_err(|error| format!("cannot listen on {}: {error}", SocketAddr::new(address, port)))
}

fn bind(address: IpAddr, port: u16) -> Result<UdpSocket, String> {
    UdpSocket::bind((address, port)).map_err(|error| format!("cannot bind {}: {error}", SocketAddr::new(address, port)))
}

/// A raw socket that speaks for one address: bound, or its answers would carry whatever address the route suggests.
fn raw(address: IpAddr) -> Result<OwnedFd, String> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let bound = rustix::net::socket(family, SocketType::RAW, Some(raw_protocol())).and_then(|socket| {
        rustix::net::bind(&socket, &SocketAddr::new(address, 0))?;
        Ok(socket)
    });
    bound.map_err(|error| format!("cannot make a raw socket: {error}"))
}

fn start(work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    thread::Builder::new().spawn(work).map(drop).map_err(|error| format!("cannot start a server: {error}"))
}

/// Serves each connection in a thread of its own: one that hangs holds up nobody.
fn accept(
    listener: TcpListener,
    visits: &Arc<Visits>,
    serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> Result<(), String> {
    let visits = visits.clone();
    start(move || {
        for stream in listener.incoming().flatten() {
            visits.count();
            let serve = serve.clone();
            // What a client does is its own affair, and a machine without room for a thread drops the connection.
            let _ = start(move || {
                let _ = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| serve(stream));
            });
        }
    })
}

/// Answers one HTTP request, whatever it says.
fn respond(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut head = [0; 1024];
    if stream.read(&mut head)? > 0 {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nhello\n")?;
        stream.flush()?;
        // The client closes first, so that nothing it has not read yet is cut off.
        let _ = stream.read(&mut head);
    }
    Ok(())
}

fn echo(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut buffer = [0; 512];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..read).unwrap_or_default())?;
    }
}

fn answer(socket: &UdpSocket, visits: &Visits, reply: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = [0; 2048];
    loop {
        // An error is that of an earlier reply, and not of the socket.
        let Ok((read, client)) = socket.recv_from(&mut buffer) else { continue };
        visits.count();
        if let Some(reply) = reply(buffer.get(..read).unwrap_or_default()) {
            let _ = socket.send_to(&reply, client);
        }
    }
}

fn raw_echo(family: AddressFamily, socket: &OwnedFd, visits: &Visits) {
    let mut buffer = [0; 2048];
    loop {
        let Ok((read, _, client)) = rustix::net::recvfrom(socket, &mut buffer, RecvFlags::empty()) else { continue };
        visits.count();
        // IPv4 raw sockets show the header of 20 bytes as well.
        let header = if family == AddressFamily::INET { 20 } else { 0 };
        if let (Some(client), Some(payload)) = (client, buffer.get(header..read)) {
            let _ = rustix::net::sendto(socket, payload, SendFlags::empty(), &client);
        }
    }
}

/// The answer to a DNS query for A or AAAA (RFC 1035 §4.1); `None` for what is not a query.
fn dns_answer(query: &[u8]) -> Option<Vec<u8>> {
    const A: u16 = 1;
    const AAAA: u16 = 28;
    /// The length of the header, and so where the question starts.
    const HEADER: usize = 12;
    let id = query.get(..2)?;
    let mut at = HEADER;
    let mut name = String::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => {
                let label = query.get(at..at + length)?;
                name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
                name.push('.');
                at += length;
            }
            _ => return None,
        }
    }
    let qtype = u16::from_be_bytes(query.get(at..at + 2)?.try_into().ok()?);
    let question = query.get(HEADER..at + 4)?;
    let known = sites::addresses_of(name.trim_end_matches('.'));
    let rcode = if known.is_some() { 0 } else { 3 };
    let wanted = known
        .into_iter()
        .flatten()
        .filter(|address| matches!((address, qtype), (IpAddr::V4(_), A) | (IpAddr::V6(_), AAAA)));
    let records: Vec<Vec<u8>> = wanted
        .map(|address| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        })
        .collect();
    let mut message = id.to_vec();
    // A response to a query with recursion desired and available; counts of questions, answers, authorities, additions.
    message.extend([0x81, 0x80 | rcode, 0, 1, 0, u8::try_from(records.len()).ok()?, 0, 0, 0, 0]);
    message.extend(question);
    for record in records {
        // The name is that of the question (a pointer to byte 12); class IN; 60 seconds.
        message.extend([0xc0, 12]);
        message.extend(qtype.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 60, 0, u8::try_from(record.len()).ok()?]);
        message.extend(record);
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_what_it_knows() {
        let answer = dns_answer(&query("Example.COM", 1)).unwrap();
        assert_eq!(&answer[..8], [7, 9, 0x81, 0x80, 0, 1, 0, 1]);
        assert_eq!(&answer[answer.len() - 4..], sites::EXAMPLE4.octets());
        let answer = dns_answer(&query("example.com", 28)).unwrap();
        assert_eq!(&answer[answer.len() - 16..], sites::EXAMPLE6.octets());
    }

    #[test]
    fn keeps_no_data_and_no_name_apart() {
        assert_eq!(dns_answer(&query("www.example.com", 28)).unwrap()[3..8], [0x80, 0, 1, 0, 0]);
        assert_eq!(dns_answer(&query("nobody.example", 1)).unwrap()[3..8], [0x83, 0, 1, 0, 0]);
    }

    #[test]
    fn ignores_what_is_no_query() {
        let whole = query("example.com", 1);
        for length in 0..whole.len() {
            assert_eq!(dns_answer(&whole[..length]), None, "{length}");
        }
    }

    fn query(name: &str, qtype: u8) -> Vec<u8> {
        let mut message = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.extend([0, 0, qtype, 0, 1]);
        message
    }
}
