//! Requests to a collector: HTTP/1.1 over TCP, or over TLS 1.3 with the machine's trust anchors; one connection, used again.
//!
//! No more of the protocol than a POST with a body of known length needs: what the answer has beyond its status, its length and a
//! short body ends the connection.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_gateway::{ReadAnchorsError, trust_anchors};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// How long a request may take, from the look-up of its name to the end of its answer. A collector beside the machine takes milliseconds.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
/// The most of an answer that is read. A collector answers with some hundred bytes.
const LONGEST_ANSWER: usize = 64 * 1024;
const MAX_HEADERS: usize = 64;

/// Where a collector listens: `http://HOST:PORT[/PATH]`, or `https`.
#[derive(Debug, Clone)]
pub struct Endpoint {
    text: String,
    host: String,
    port: u16,
    /// Without a slash at its end.
    path: String,
    /// Where it is `https`.
    tls: Option<Arc<ClientConfig>>,
}

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("{0:?} is no endpoint; expected http://HOST:PORT or https://HOST:PORT, as in http://localhost:4318")]
    Form(String),
    #[error("an endpoint with a password in it would be there for everybody to read; leave it out")]
    Password,
    #[error("its certificate cannot be checked")]
    Anchors(#[from] ReadAnchorsError),
    #[error("TLS cannot be used")]
    Tls(#[source] rustls::Error),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        let form = || EndpointError::Form(text.to_owned());
        let (is_tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) | None => return Err(form()),
        };
        let (authority, path) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
        if authority.contains('@') {
            return Err(EndpointError::Password);
        }
        // Nothing that would end the line of a request, or mean something else there.
        let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '\\');
        if !path.chars().all(is_plain) {
            return Err(form());
        }
        let usual = if is_tls { 443 } else { 80 };
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) => {
                address.parse::<Ipv6Addr>().map_err(|_| form())?;
                (address, port)
            }
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(is_name) {
            return Err(form());
        }
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => usual,
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                port.parse().ok().filter(|port| *port > 0).ok_or_else(form)?
            }
            None | Some(_) => return Err(form()),
        };
        let tls = if is_tls { Some(tls()?) } else { None };
        let path = if path.is_empty() { String::new() } else { format!("/{}", path.trim_end_matches('/')) };
        Ok(Endpoint { text: text.to_owned(), host: host.to_owned(), port, path, tls })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Endpoint {
    /// The host with its port, as a request names it.
    fn authority(&self) -> String {
        let Endpoint { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

fn tls() -> Result<Arc<ClientConfig>, EndpointError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trust_anchors()?.into_iter().map(CertificateDer::from));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(EndpointError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// What a collector has answered.
#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    body: Vec<u8>,
}

impl Reply {
    /// The collector says that the same may be taken a moment later (OTLP specification, retryable response codes).
    pub(super) fn may_be_repeated(&self) -> bool {
        matches!(self.status, 429 | 502 | 503 | 504)
    }

    /// The body of an answer that says yes.
    pub(super) fn taken(self) -> Result<Vec<u8>, String> {
        match self.status {
            200..300 => Ok(self.body),
            status => Err(format!("it answers with status {status}")),
        }
    }
}

/// One connection to a collector, while it lasts.
pub(super) struct Client {
    endpoint: Endpoint,
    agent: String,
    connection: Option<Connection>,
    resolve: Resolve,
    look_up: Option<LookUp>,
}

/// Asks the system for a host's addresses, for as long as that takes.
type Resolve = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;
/// A look-up that goes on, in a thread of its own: nothing breaks it off.
type LookUp = Receiver<io::Result<Vec<SocketAddr>>>;

enum Connection {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Client {
    pub(super) fn new(endpoint: Endpoint, version: &str) -> Client {
        let resolve: Resolve = |host, port| Ok((host, port).to_socket_addrs()?.collect());
        Client { endpoint, agent: format!("cofferdam/{version}"), connection: None, resolve, look_up: None }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends a body of JSON. An error says why there is no answer by then.
    pub(super) fn post(&mut self, path: &str, body: &[u8], until: Instant) -> Result<Reply, String> {
        if let Some(mut connection) = self.connection.take() {
            // It may have been closed since: then nothing of the request was looked at, and it is sent once more.
            if let Ok(reply) = self.exchange(&mut connection, path, body, until) {
                return Ok(self.keep(connection, reply));
            }
        }
        let mut connection = self.connect(until).map_err(|error| words(&error))?;
        match self.exchange(&mut connection, path, body, until) {
            Ok(reply) => Ok(self.keep(connection, reply)),
            Err(error) => Err(words(&error)),
        }
    }

    fn keep(&mut self, connection: Connection, (reply, goes_on): (Reply, GoesOn)) -> Reply {
        if goes_on == GoesOn::Yes {
            self.connection = Some(connection);
        }
        reply
    }

    /// Where the collector is. One look-up at a time: the next request waits for what the one before has asked.
    fn addresses(&mut self, until: Instant) -> io::Result<Vec<SocketAddr>> {
        let Endpoint { host, port, .. } = &self.endpoint;
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, *port)]);
        }
        let look_up = match self.look_up.take() {
            Some(look_up) => look_up,
            None => {
                let (resolve, host, port) = (self.resolve, host.clone(), *port);
                let (answer, look_up) = channel();
                // Whoever asked may have gone.
                thread::Builder::new().name("look-up".to_owned()).spawn(move || answer.send(resolve(&host, port)))?;
                look_up
            }
        };
        match look_up.recv_timeout(left(until)?) {
            Ok(found) => found,
            Err(RecvTimeoutError::Timeout) => {
                self.look_up = Some(look_up);
                Err(io::Error::other("the look-up of its name takes too long"))
            }
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the look-up of its name has failed")),
        }
    }

    fn connect(&mut self, until: Instant) -> io::Result<Connection> {
        let mut last = io::ErrorKind::NotFound.into();
        for address in self.addresses(until)? {
            match TcpStream::connect_timeout(&address, left(until)?) {
                Err(error) => last = error,
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    let Some(config) = &self.endpoint.tls else { return Ok(Connection::Plain(stream)) };
                    let name = ServerName::try_from(self.endpoint.host.clone()).map_err(io::Error::other)?;
                    let tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                    return Ok(Connection::Tls(Box::new(StreamOwned::new(tls, stream))));
                }
            }
        }
        Err(last)
    }

    fn exchange(
        &self,
        connection: &mut Connection,
        path: &str,
        body: &[u8],
        until: Instant,
    ) -> io::Result<(Reply, GoesOn)> {
        let mut request = format!(
            "POST {}{path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.endpoint.path,
            self.endpoint.authority(),
            self.agent,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        // A piece at a time, since the limit is for all of them together.
        for piece in request.chunks(16 * 1024) {
            connection.limit(until)?;
            connection.write_all(piece)?;
        }
        connection.flush()?;
        let mut answer = Vec::new();
        let mut buffer = vec![0; 8 * 1024];
        loop {
            if let Some(whole) = parse(&answer)? {
                return Ok(whole);
            }
            if answer.len() >= LONGEST_ANSWER {
                return Err(io::Error::other("its answer is too long"));
            }
            connection.limit(until)?;
            match connection.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => answer.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            }
        }
    }
}

/// Whether a connection may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GoesOn {
    Yes,
    No,
}

/// An answer, once it is there: with a body whose length it says, or else without.
fn parse(answer: &[u8]) -> io::Result<Option<(Reply, GoesOn)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(answer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(io::Error::other(format!("its answer is not HTTP: {error}"))),
    };
    let status = response.code.unwrap_or(0);
    let value = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok().map(str::trim)
    };
    let closes = value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let length = value("content-length").and_then(|length| length.parse::<usize>().ok());
    let length = length.filter(|length| *length <= LONGEST_ANSWER - head.min(LONGEST_ANSWER));
    let (body, goes_on) = match length {
        Some(length) => match answer.get(head..head.saturating_add(length)) {
            Some(body) => (body.to_vec(), if closes { GoesOn::No } else { GoesOn::Yes }),
            None => return Ok(None),
        },
        None => (Vec::new(), GoesOn::No),
    };
    Ok(Some((Reply { status, body }, goes_on)))
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Why there is no answer, in words that do not depend on which call has noticed.
fn words(error: &io::Error) -> String {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
        format!("it did not answer within {} s", LIMIT.as_secs())
    } else if kind == io::ErrorKind::ConnectionRefused {
        "connection refused".to_owned()
    } else if kind == io::ErrorKind::UnexpectedEof {
        "it closes the connection without an answer".to_owned()
    } else {
        error.to_string()
    }
}

impl Connection {
    fn limit(&self, until: Instant) -> io::Result<()> {
        let stream = match self {
            Connection::Plain(stream) => stream,
            Connection::Tls(tls) => tls.get_ref(),
        };
        let left = Some(left(until)?);
        stream.set_read_timeout(left)?;
        stream.set_write_timeout(left)
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Plain(stream) => stream.read(buffer),
            Connection::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Connection::Plain(stream) => stream.write(bytes),
            Connection::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Connection::Plain(stream) => stream.flush(),
            Connection::Tls(tls) => tls.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + LIMIT
    }

    #[test]
    fn an_endpoint_is_a_host_with_a_port() {
        for (text, authority, path) in [
            ("http://localhost:4318", "localhost:4318", ""),
            ("http://127.0.0.1", "127.0.0.1:80", ""),
            ("http://[::1]:4318/", "[::1]:4318", ""),
            ("http://collector.example/otlp/", "collector.example:80", "/otlp"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.authority().as_str(), endpoint.path.as_str()), (authority, path), "{text}");
            assert_eq!(endpoint.to_string(), text);
        }
        for text in [
            "",
            "localhost:4318",
            "ftp://x",
            "http://",
            "http://:4318",
            "http://x:0",
            "http://x:99999",
            "http://x:+1",
            "http://[::1",
            "http://[1.2.3.4]:1",
            "http://::1:4318",
            "http://x/a b",
            "http://x/a\r\nB: c",
            "http://x/?a",
            "http://x y/",
        ] {
            assert!(matches!(text.parse::<Endpoint>(), Err(EndpointError::Form(_))), "{text:?}");
        }
        assert!(matches!("https://me:secret@x/".parse::<Endpoint>(), Err(EndpointError::Password)));
    }

    #[test]
    fn an_answer_is_whole_or_not_there() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        for kept in 0..answer.len() {
            assert!(parse(&answer[..kept]).unwrap().is_none(), "{kept}");
        }
        let (reply, goes_on) = parse(answer).unwrap().unwrap();
        assert_eq!((reply.status, reply.body.as_slice(), goes_on), (200, &b"{}"[..], GoesOn::Yes));
        let (reply, goes_on) = parse(b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap().unwrap();
        assert!(reply.may_be_repeated() && goes_on == GoesOn::No);
        assert_eq!(reply.taken().unwrap_err(), "it answers with status 503");
        let (_, goes_on) =
            parse(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").unwrap().unwrap();
        assert_eq!(goes_on, GoesOn::No);
        let long = b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n";
        assert_eq!(parse(long).unwrap().unwrap().1, GoesOn::No);
        assert!(parse(b"SSH-2.0-x\r\n").is_err());
    }

    #[test]
    fn a_look_up_that_does_not_end_is_not_waited_for_and_not_made_twice() {
        static LOOK_UPS: AtomicUsize = AtomicUsize::new(0);
        let mut client = Client::new("http://collector.example:4318".parse().unwrap(), "1");
        client.resolve = |_, _| {
            LOOK_UPS.fetch_add(1, Ordering::SeqCst);
            loop {
                thread::park();
            }
        };
        for _ in 0..2 {
            let why = client.post("/v1/logs", b"{}", Instant::now() + Duration::from_millis(50)).unwrap_err();
            assert_eq!(why, "the look-up of its name takes too long");
        }
        assert_eq!(LOOK_UPS.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn over_tls_the_certificate_is_checked() {
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "::1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let server = Arc::new(server);
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            for trusted in [true, false] {
                let listener = TcpListener::bind(loopback).unwrap();
                let address = listener.local_addr().unwrap();
                let server = Arc::clone(&server);
                let serving = thread::spawn(move || {
                    let stream = listener.accept().unwrap().0;
                    let mut tls = StreamOwned::new(rustls::ServerConnection::new(server).unwrap(), stream);
                    let mut buffer = [0; 4096];
                    let mut request = Vec::new();
                    while !request.ends_with(b"{}") {
                        match tls.read(&mut buffer) {
                            Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
                            _ => return,
                        }
                    }
                    tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                });
                let mut roots = RootCertStore::empty();
                if trusted {
                    roots.add(certified.cert.der().clone()).unwrap();
                }
                let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                let plain: Endpoint = format!("http://{address}").parse().unwrap();
                let mut client = Client::new(Endpoint { tls: Some(Arc::new(config)), ..plain }, "1");
                let answer = client.post("/v1/logs", b"{}", soon());
                match trusted {
                    true => assert_eq!(answer.unwrap().status, 200),
                    false => assert!(answer.unwrap_err().contains("certificate")),
                }
                drop(client);
                serving.join().unwrap();
            }
        }
    }

    #[test]
    fn a_connection_is_used_again_and_replaced_when_it_was_closed() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(loopback).unwrap();
            let endpoint = format!("http://{}/base", listener.local_addr().unwrap());
            let serving = thread::spawn(move || {
                // Two on the first connection, one on the second.
                let mut seen = Vec::new();
                for requests in [2, 1] {
                    let mut stream = listener.accept().unwrap().0;
                    for _ in 0..requests {
                        let mut request = Vec::new();
                        while !request.ends_with(b"{}") {
                            let mut byte = [0];
                            stream.read_exact(&mut byte).unwrap();
                            request.push(byte[0]);
                        }
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                        seen.push(String::from_utf8(request).unwrap());
                    }
                }
                seen
            });
            let mut client = Client::new(endpoint.parse().unwrap(), "1");
            for _ in 0..3 {
                assert_eq!(client.post("/v1/logs", b"{}", soon()).unwrap().status, 200);
            }
            let seen = serving.join().unwrap();
            assert_eq!(seen.len(), 3);
            assert!(seen[0].starts_with("POST /base/v1/logs HTTP/1.1\r\nHost: "), "{}", seen[0]);
            assert!(client.post("/v1/logs", b"{}", soon()).is_err(), "nobody listens any more");
        }
    }
}
