//! Connections to resolvers that are asked over TLS or HTTPS: the socket and TLS around [`cofferdam_names::Session`].
//!
//! One connection per resolver, opened with the first question and kept while it is used. The certificate has to be for the
//! configured name and vouched for by one of the machine's trust anchors; TLS is 1.3. Whatever goes wrong is a failure of
//! that resolver for the questions that wait; there is no way to it but this one.
//!
//! | State      | Event                                  | Next       | Effect                                   |
//! |------------|----------------------------------------|------------|------------------------------------------|
//! | –          | question                               | Opening    | connect; the question waits in the session |
//! | Opening    | handshake done                         | Open       | what waits is sent                       |
//! | Open       | answer                                 | Open       | to the resolver                          |
//! | Open       | closed or broken after an answer       | Opening    | what waits is asked once more, anew      |
//! | Opening    | refused, closed, bad certificate       | –          | what waits has failed                    |
//! | any        | nothing for [`PATIENCE`] while asked   | –          | what waits has failed                    |
//! | Open       | [`IDLE`] without a question            | –          | close                                    |
//!
//! The second chance is for servers that close a connection while a question is on its way (RFC 7766 §6.2.4); a connection
//! that never answered gets none.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::Time;
use cofferdam_names::{Framing, Reply, Session, UpstreamId};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::config::{DnsUpstream, DnsWay};
use crate::poller::{Poller, Ready, Token, Watch};

/// How long a connection may be silent while it is asked: as long as a question lives by default.
const PATIENCE: Duration = Duration::from_secs(5);
/// As for the guest's own connections; a new one costs two round trips.
const IDLE: Duration = Duration::from_secs(30);
/// Reads in one turn. Past it, a megabyte of answers at once, this is no resolver.
const READS: usize = 64;
const READ: usize = 16 * 1024;

/// The connections, by the place of their resolver in the configuration.
pub(crate) struct Sessions {
    remotes: Vec<Option<Remote>>,
    next_number: u64,
    buffer: Vec<u8>,
}

/// A resolver that is asked this way.
struct Remote {
    address: SocketAddr,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    framing: Framing,
    connection: Option<Connection>,
}

struct Connection {
    number: u64,
    socket: OwnedFd,
    tls: ClientConnection,
    session: Session,
    is_connected: bool,
    has_answered: bool,
    used: Time,
    /// By when something has to come, while questions were asked since something came last.
    due: Option<Time>,
}

/// The connection is of no more use.
#[derive(Debug)]
struct Ended;

impl Sessions {
    /// The resolvers among `upstreams` that are asked over connections, trusting `anchors` (certificates in DER).
    pub(crate) fn new(upstreams: &[DnsUpstream], anchors: &[Vec<u8>]) -> Sessions {
        let is_needed = upstreams.iter().any(|upstream| upstream.way != DnsWay::Plain);
        let roots = if is_needed { roots(anchors) } else { Arc::new(RootCertStore::empty()) };
        let remotes: Vec<_> = upstreams.iter().map(|upstream| Remote::new(upstream, &roots)).collect();
        Sessions { remotes, next_number: 0, buffer: if is_needed { vec![0; READ] } else { Vec::new() } }
    }

    /// Asks the resolver at `place`.
    pub(crate) fn ask(
        &mut self,
        poller: &Poller,
        now: Time,
        place: usize,
        (upstream, message): (UpstreamId, Vec<u8>),
        replies: &mut Vec<Reply>,
    ) {
        let Some(Some(remote)) = self.remotes.get_mut(place) else {
            return replies.push(Reply::Failed { upstream });
        };
        // A connection whose server let every stream lie would be full for ever.
        if remote
            .connection
            .as_ref()
            .is_some_and(|connection| connection.session.is_full() && connection.session.is_idle())
        {
            remote.connection = None;
        }
        if remote.connection.is_none() {
            self.next_number += 1;
            remote.connection = remote.open(poller, now, self.next_number).ok();
        }
        let Some(connection) = &mut remote.connection else { return replies.push(Reply::Failed { upstream }) };
        if connection.ask(now, upstream, message).is_err() {
            return replies.push(Reply::Failed { upstream });
        }
        self.advance(poller, now, place, replies);
    }

    /// Nobody waits for this any more.
    pub(crate) fn forget(&mut self, upstream: UpstreamId) {
        for connection in self.remotes.iter_mut().flatten().filter_map(|remote| remote.connection.as_mut()) {
            connection.session.forget(upstream);
        }
    }

    /// The socket of a connection can be read or written.
    pub(crate) fn handle_ready(
        &mut self,
        poller: &Poller,
        now: Time,
        number: u64,
        ready: Ready,
        replies: &mut Vec<Reply>,
    ) {
        let has_number = |remote: &Option<Remote>| {
            let connection = remote.as_ref().and_then(|remote| remote.connection.as_ref());
            connection.is_some_and(|connection| connection.number == number)
        };
        let Some(place) = self.remotes.iter().position(has_number) else { return };
        if let Some(connection) = self.connection(place) {
            connection.is_connected |= ready.write;
        }
        self.advance(poller, now, place, replies);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let connections = self.remotes.iter().flatten().filter_map(|remote| remote.connection.as_ref());
        connections.map(Connection::deadline).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Time, replies: &mut Vec<Reply>) {
        for remote in self.remotes.iter_mut().flatten() {
            if let Some(connection) = remote.connection.take_if(|connection| connection.deadline() <= now) {
                connection.close(replies);
            }
        }
    }

    fn connection(&mut self, place: usize) -> Option<&mut Connection> {
        self.remotes.get_mut(place)?.as_mut()?.connection.as_mut()
    }

    /// Moves bytes both ways as far as they go, and asks anew what a connection left behind.
    fn advance(&mut self, poller: &Poller, now: Time, place: usize, replies: &mut Vec<Reply>) {
        let Some(Some(remote)) = self.remotes.get_mut(place) else { return };
        let Some(connection) = &mut remote.connection else { return };
        if connection.advance(now, &mut self.buffer, replies).is_ok() {
            return;
        }
        let Some(connection) = remote.connection.take() else { return };
        if !connection.has_answered || connection.session.is_idle() {
            return connection.close(replies);
        }
        self.next_number += 1;
        let Ok(mut anew) = remote.open(poller, now, self.next_number) else { return connection.close(replies) };
        for (upstream, message) in connection.session.into_waiting() {
            if anew.ask(now, upstream, message).is_err() {
                replies.push(Reply::Failed { upstream });
            }
        }
        remote.connection = Some(anew);
    }
}

impl Remote {
    /// `None` for a resolver that is asked in the clear, and for one whose name no certificate could be for.
    fn new(upstream: &DnsUpstream, roots: &Arc<RootCertStore>) -> Option<Remote> {
        let (name, framing) = match &upstream.way {
            DnsWay::Plain => return None,
            DnsWay::Tls { name } => (name, Framing::Tls),
            DnsWay::Https { name, authority, path } => {
                (name, Framing::Https { authority: authority.clone(), path: path.clone() })
            }
        };
        let name = ServerName::try_from(name.clone()).ok()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).ok()?;
        let mut tls = builder.with_root_certificates(Arc::clone(roots)).with_no_client_auth();
        tls.resumption = rustls::client::Resumption::in_memory_sessions(2);
        if matches!(framing, Framing::Https { .. }) {
            tls.alpn_protocols = vec![ALPN_HTTP.to_vec()];
        }
        Some(Remote { address: upstream.address, name, tls: Arc::new(tls), framing, connection: None })
    }

    fn open(&self, poller: &Poller, now: Time, number: u64) -> Result<Connection, Ended> {
        let family = if self.address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(|_| Ended)?;
        let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        match rustix::net::connect(&socket, &self.address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(_) => return Err(Ended),
        }
        poller.add(&socket, Token::Session(number), Watch::BothEdges).map_err(|_| Ended)?;
        let mut tls = ClientConnection::new(Arc::clone(&self.tls), self.name.clone()).map_err(|_| Ended)?;
        // What waits is bounded by the session.
        tls.set_buffer_limit(None);
        let session = Session::new(&self.framing);
        Ok(Connection { number, socket, tls, session, is_connected: false, has_answered: false, used: now, due: None })
    }
}

impl Connection {
    fn ask(&mut self, now: Time, upstream: UpstreamId, message: Vec<u8>) -> Result<(), Ended> {
        self.used = now;
        self.due.get_or_insert(now + PATIENCE);
        self.session.ask(upstream, message).map_err(|_| Ended)
    }

    fn deadline(&self) -> Time {
        self.due.unwrap_or(self.used + IDLE)
    }

    fn advance(&mut self, now: Time, buffer: &mut [u8], replies: &mut Vec<Reply>) -> Result<(), Ended> {
        if !self.is_connected {
            return Ok(());
        }
        for _ in 0..READS {
            self.send()?;
            match self.tls.read_tls(&mut Socket(&self.socket)) {
                Ok(0) => return Err(Ended),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Ended),
            }
            if self.tls.process_new_packets().is_err() {
                // The alert that says what was wrong; whether it arrives changes nothing.
                let _ = self.tls.write_tls(&mut Socket(&self.socket));
                return Err(Ended);
            }
            if self.tls.alpn_protocol().is_none() && !self.tls.is_handshaking() && self.session.needs_alpn() {
                return Err(Ended);
            }
            self.receive(now, buffer, replies)?;
        }
        Err(Ended)
    }

    fn send(&mut self) -> Result<(), Ended> {
        let output = self.session.take_output();
        self.tls.writer().write_all(&output).map_err(|_| Ended)?;
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(&self.socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Ended),
            }
        }
        Ok(())
    }

    /// Takes what TLS has opened.
    fn receive(&mut self, now: Time, buffer: &mut [u8], replies: &mut Vec<Reply>) -> Result<(), Ended> {
        loop {
            let read = match self.tls.reader().read(buffer) {
                // The other side has said that it is done.
                Ok(0) => return Err(Ended),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Ended),
            };
            let before = replies.len();
            let outcome = self.session.handle_input(buffer.get(..read).unwrap_or_default(), replies);
            self.has_answered |= replies.len() > before;
            // Answers that nobody waits for any more are a sign of life, too.
            self.due = (!self.session.is_idle()).then_some(now + PATIENCE);
            outcome.map_err(|_| Ended)?;
        }
    }

    /// What waits has failed.
    fn close(mut self, replies: &mut Vec<Reply>) {
        self.tls.send_close_notify();
        let _ = self.tls.write_tls(&mut Socket(&self.socket));
        replies.extend(self.session.into_waiting().map(|(upstream, _)| Reply::Failed { upstream }));
    }
}

/// The protocol that servers have to choose (RFC 9113 §3.2).
const ALPN_HTTP: &[u8] = b"h2";

fn roots(anchors: &[Vec<u8>]) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // Some bundles hold certificates of a kind that nobody can use; they vouch for nothing.
    roots.add_parsable_certificates(anchors.iter().map(|der| CertificateDer::from(der.as_slice())));
    Arc::new(roots)
}

/// A socket as the standard library's traits have it: never blocks, never signals.
struct Socket<'a>(&'a OwnedFd);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (read, _) = rustix::net::recv(self.0, buffer, RecvFlags::DONTWAIT)?;
        Ok(read)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
