//! The sockets around the resolver: the guest's queries over UDP (from the gate) and TCP (accepted connections to port
//! 53), and the queries to the upstreams, one fresh socket each.
//!
//! Limits: [`CLIENTS`] queries without an answer (the oldest is forgotten, its client asks again), [`CONNECTIONS`] TCP
//! connections (the one that was quiet longest goes), [`WINDOW`] queries under way and [`BACKLOG`] bytes of answers per
//! TCP connection (past it we stop reading from it, and since none is answered while we read, this bounds a turn as
//! well), [`IDLE`] without a query or an answer ends a TCP connection (RFC 7766 §6.2.3).

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_gate::{DnsClient, Gate, Way};
use cofferdam_model::{CloseReason, FlowCounters, FlowId, Protocol, Time};
use cofferdam_names::{ClientId, Ends, Output, Rebinding, Reply, Resolver, Transport, Upstream, UpstreamId};
use cofferdam_pcap::LookUp;
use cofferdam_policy::Policy;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::events::EventWriter;
use crate::hash::FlowHash;
use crate::poller::{Poller, Ready, Token, Watch};
use crate::session::Sessions;

const CLIENTS: usize = 4096;
/// With their buffers full these hold some 16 MiB.
const CONNECTIONS: usize = 64;
const WINDOW: usize = 64;
const BACKLOG: usize = 128 * 1024;
const IDLE: Duration = Duration::from_secs(30);

/// The largest DNS message (RFC 1035 §4.2.2).
const MESSAGE: usize = 65_535;

pub(crate) struct Dns {
    resolver: Resolver,
    /// Who waits for an answer, oldest first.
    clients: BTreeMap<u64, Client>,
    /// Those that were answered since nothing was left to do, whose look-ups are reported next.
    answered: Vec<(ClientId, LookUp)>,
    next_client: u64,
    upstreams: HashMap<u64, Asked, FlowHash>,
    sessions: Sessions,
    connections: HashMap<u64, Connection, FlowHash>,
    next_connection: u64,
    /// TCP connections that may have queries left to read.
    hungry: Vec<u64>,
    buffer: Vec<u8>,
}

/// A query of the guest: how it came, and its id.
enum Client {
    Udp(DnsClient, u16),
    Tcp(u64, u16),
}

struct Asked {
    socket: OwnedFd,
    /// TCP: what is still to be sent, and what has come so far, both with the length prefix. `None` for UDP.
    stream: Option<(Vec<u8>, Vec<u8>)>,
}

struct Connection {
    socket: OwnedFd,
    flow: FlowId,
    ends: Ends,
    input: Vec<u8>,
    /// Bytes at the front of `input` that are done with.
    taken: usize,
    output: Vec<u8>,
    readable: bool,
    hungry: bool,
    ended: bool,
    waiting: usize,
    active: Time,
    counters: FlowCounters,
}

impl Dns {
    pub(crate) fn new(resolver: Resolver, sessions: Sessions) -> Dns {
        Dns {
            resolver,
            clients: BTreeMap::new(),
            answered: Vec::new(),
            next_client: 0,
            upstreams: HashMap::default(),
            sessions,
            connections: HashMap::default(),
            next_connection: 0,
            hungry: Vec::new(),
            buffer: vec![0; MESSAGE],
        }
    }

    /// The guest sent a datagram to port 53.
    pub(crate) fn handle_datagram(&mut self, now: Time, query: DnsClient, message: &[u8]) {
        let id = self.client(Client::Udp(query, id_of(message)));
        let DnsClient { guest, server } = query;
        self.resolver.handle_query(now, id, Transport::Udp, Ends { guest, server }, message);
    }

    /// The guest connected to port 53. `false`: the connection could not be taken.
    pub(crate) fn handle_accepted(
        &mut self,
        poller: &Poller,
        gate: &mut Gate,
        now: Time,
        (flow, socket, ends): (FlowId, OwnedFd, Ends),
    ) -> bool {
        if self.connections.len() >= CONNECTIONS {
            let quietest = self.connections.iter().min_by_key(|(id, c)| (c.active, **id)).map(|(id, _)| *id);
            if let Some(id) = quietest {
                self.close(gate, now, id, CloseReason::Limit);
            }
        }
        let id = self.next_connection;
        self.next_connection += 1;
        if poller.add(&socket, Token::DnsClient(id), Watch::BothEdges).is_err() {
            return false;
        }
        let connection = Connection {
            socket,
            flow,
            ends,
            input: Vec::new(),
            taken: 0,
            output: Vec::new(),
            readable: false,
            hungry: false,
            ended: false,
            waiting: 0,
            active: now,
            counters: FlowCounters::default(),
        };
        self.connections.insert(id, connection);
        true
    }

    /// A guest's TCP connection can be read or written.
    pub(crate) fn handle_connection(&mut self, gate: &mut Gate, now: Time, id: u64, ready: Ready) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.readable |= ready.read;
            self.serve(gate, now, id);
        }
    }

    /// The machine's addresses have changed.
    pub(crate) fn handle_reclassified(&mut self, now: Time, policy: Arc<Policy>) {
        self.resolver.handle_reclassified(now, policy);
    }

    /// Other rules are in force, and what goes with them.
    pub(crate) fn handle_policy(&mut self, now: Time, policy: Arc<Policy>, rebinding: Rebinding, budget: Duration) {
        self.resolver.handle_query_timeout(budget);
        self.resolver.handle_policy(now, policy, rebinding);
    }

    /// The gateway ends: tells of what is counted and not told yet.
    pub(crate) fn handle_shutdown(&mut self) {
        self.resolver.handle_shutdown();
    }

    /// The machine has other resolvers, and they are the ones to ask.
    pub(crate) fn handle_resolvers(&mut self, now: Time, servers: Vec<SocketAddr>) {
        self.resolver.handle_upstreams(now, servers.into_iter().map(Upstream::from).collect());
    }

    /// Whether connections are waiting for another turn.
    pub(crate) fn is_hungry(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// Gives every connection that may have more another turn.
    pub(crate) fn feed(&mut self, gate: &mut Gate, now: Time) {
        for id in std::mem::take(&mut self.hungry) {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.hungry = false;
                self.serve(gate, now, id);
            }
        }
    }

    /// An upstream answered, or its socket can be written.
    pub(crate) fn handle_upstream(&mut self, now: Time, id: u64, ready: Ready) {
        let Some(upstream) = self.upstreams.get_mut(&id) else { return };
        let outcome = match &mut upstream.stream {
            None => receive(&upstream.socket, &mut self.buffer),
            Some((out, got)) => exchange(&upstream.socket, ready, out, got, &mut self.buffer),
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(message)) => self.resolver.handle_answer(now, UpstreamId(id), &message),
            Err(_) => {
                self.upstreams.remove(&id);
                self.resolver.handle_failure(now, UpstreamId(id));
            }
        }
    }

    /// A connection to an upstream can be read or written.
    pub(crate) fn handle_session(&mut self, poller: &Poller, now: Time, number: u64, ready: Ready) {
        let mut replies = Vec::new();
        self.sessions.handle_ready(poller, now, number, ready, &mut replies);
        self.hand_over(now, replies);
    }

    fn hand_over(&mut self, now: Time, replies: Vec<Reply>) {
        for reply in replies {
            match reply {
                Reply::Answer { upstream, message } => self.resolver.handle_answer(now, upstream, &message),
                Reply::Failed { upstream } => self.resolver.handle_failure(now, upstream),
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let idle = self.connections.values().map(|c| c.active + IDLE).min();
        [self.resolver.poll_timeout(), self.sessions.poll_timeout(), idle].into_iter().flatten().min()
    }

    pub(crate) fn handle_timeout(&mut self, gate: &mut Gate, now: Time) {
        if self.resolver.poll_timeout().is_some_and(|at| at <= now) {
            self.resolver.handle_timeout(now);
        }
        let mut replies = Vec::new();
        self.sessions.handle_timeout(now, &mut replies);
        self.hand_over(now, replies);
        let idle = self.connections.iter().filter(|(_, c)| c.active + IDLE <= now).map(|(id, _)| *id);
        for id in idle.collect::<Vec<_>>() {
            self.close(gate, now, id, CloseReason::Idle);
        }
    }

    /// Does what the resolver asks for.
    pub(crate) fn drain(&mut self, poller: &Poller, gate: &mut Gate, events: &mut EventWriter, now: Time) {
        while let Some(output) = self.resolver.poll_output() {
            match output {
                Output::Query { upstream, server, transport, message } => {
                    match open(poller, upstream, server, transport, &message) {
                        Ok(socket) => _ = self.upstreams.insert(upstream.0, socket),
                        Err(_) => self.resolver.handle_failure(now, upstream),
                    }
                }
                Output::Ask { upstream, resolver, message } => {
                    let mut replies = Vec::new();
                    self.sessions.ask(poller, now, resolver, (upstream, message), &mut replies);
                    self.hand_over(now, replies);
                }
                Output::Abandon { upstream } => {
                    if self.upstreams.remove(&upstream.0).is_none() {
                        self.sessions.forget(upstream);
                    }
                }
                Output::Pin { name, alias, address, ttl } => {
                    if gate.handle_pin(now, &name, alias, address, ttl).is_err() {
                        self.resolver.handle_pin_refused();
                    }
                }
                Output::Answer { client, message } => self.answer(gate, now, client, &message),
                Output::Ignore { client } => {
                    if let Some(Client::Tcp(id, _)) = self.clients.remove(&client.0)
                        && let Some(connection) = self.connections.get_mut(&id)
                    {
                        connection.waiting = connection.waiting.saturating_sub(1);
                        self.starve(id);
                    }
                }
                Output::Event(body) => events.push(now, body),
                Output::Answered { client, event } => {
                    let look_up = self.look_up(client);
                    events.push_about(now, event, look_up.as_ref());
                }
            }
        }
        self.answered.clear();
    }

    /// What a client asked that waits for its answer, or has had it a moment ago.
    fn look_up(&self, client: ClientId) -> Option<LookUp> {
        let of_client = |(answered, look_up): &(ClientId, LookUp)| (*answered == client).then_some(*look_up);
        match self.clients.get(&client.0) {
            Some(Client::Udp(DnsClient { guest, server }, id)) => {
                Some(LookUp { protocol: Protocol::Udp, guest: *guest, server: *server, id: *id })
            }
            Some(Client::Tcp(connection, id)) => {
                let Ends { guest, server } = self.connections.get(connection)?.ends;
                Some(LookUp { protocol: Protocol::Tcp, guest, server, id: *id })
            }
            None => self.answered.iter().rev().find_map(of_client),
        }
    }

    fn client(&mut self, client: Client) -> ClientId {
        if self.clients.len() >= CLIENTS {
            self.clients.pop_first();
        }
        let id = self.next_client;
        self.next_client += 1;
        self.clients.insert(id, client);
        ClientId(id)
    }

    fn answer(&mut self, gate: &mut Gate, now: Time, client: ClientId, message: &[u8]) {
        self.answered.extend(self.look_up(client).map(|look_up| (client, look_up)));
        match self.clients.remove(&client.0) {
            None => {}
            Some(Client::Udp(query, _)) => gate.handle_dns_answer(now, query, message),
            Some(Client::Tcp(id, _)) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                let Ok(len) = u16::try_from(message.len()) else { return };
                connection.waiting = connection.waiting.saturating_sub(1);
                connection.active = now;
                if !gate.limits().admit_dns(Way::Ingress, message.len()) {
                    return self.close(gate, now, id, CloseReason::Budget);
                }
                connection.output.extend_from_slice(&len.to_be_bytes());
                connection.output.extend_from_slice(message);
                match connection.write() {
                    // Reading on right here would let a guest that never stops asking hold the loop for ever.
                    Ok(()) => self.starve(id),
                    Err(by) => self.close(gate, now, id, by),
                }
            }
        }
    }

    /// Has the connection served in the next turn.
    fn starve(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.hungry
        {
            connection.hungry = true;
            self.hungry.push(id);
        }
    }

    /// Reads queries as long as answers can be taken, writes answers, closes what is done.
    fn serve(&mut self, gate: &mut Gate, now: Time, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Err(by) = connection.write() {
            return self.close(gate, now, id, by);
        }
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            if let Some(message) = connection.next_query() {
                connection.waiting += 1;
                connection.active = now;
                let ends = connection.ends;
                if !gate.limits().admit_dns(Way::Egress, message.len()) {
                    return self.close(gate, now, id, CloseReason::Budget);
                }
                let client = self.client(Client::Tcp(id, id_of(&message)));
                self.resolver.handle_query(now, client, Transport::Tcp, ends, &message);
                continue;
            }
            match connection.read(&mut self.buffer) {
                Ok(true) => {}
                Ok(false) => break,
                Err(by) => return self.close(gate, now, id, by),
            }
        }
        let Some(connection) = self.connections.get(&id) else { return };
        if connection.ended && connection.waiting == 0 && connection.output.is_empty() {
            self.close(gate, now, id, CloseReason::Guest);
        }
    }

    fn close(&mut self, gate: &mut Gate, now: Time, id: u64, by: CloseReason) {
        if let Some(connection) = self.connections.remove(&id) {
            gate.handle_closed(now, connection.flow, by, connection.counters);
        }
    }

    /// Ends the connection of a flow that may no longer be.
    pub(crate) fn close_flow(&mut self, gate: &mut Gate, now: Time, flow: FlowId) {
        if let Some(id) = self.connections.iter().find(|(_, c)| c.flow == flow).map(|(id, _)| *id) {
            self.close(gate, now, id, CloseReason::Policy);
        }
    }
}

/// The id of a DNS message.
fn id_of(message: &[u8]) -> u16 {
    message.first_chunk().map_or(0, |id| u16::from_be_bytes(*id))
}

impl Connection {
    /// Whether more queries may be read.
    fn takes(&self) -> bool {
        self.waiting < WINDOW && self.output.len() < BACKLOG
    }

    /// Takes the next whole query off the input.
    fn next_query(&mut self) -> Option<Vec<u8>> {
        if !self.takes() {
            return None;
        }
        let (prefix, rest) = self.input.get(self.taken..)?.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_be_bytes(*prefix));
        let message = rest.get(..len)?.to_vec();
        self.taken += 2 + len;
        Some(message)
    }

    /// Reads once. `false`: nothing more for the time being.
    fn read(&mut self, buffer: &mut [u8]) -> Result<bool, CloseReason> {
        if !self.readable || !self.takes() || self.ended {
            return Ok(false);
        }
        match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => {
                self.ended = true;
                Ok(false)
            }
            Ok((n, _)) => {
                self.counters.bytes_out += n as u64;
                self.input.drain(..self.taken);
                self.taken = 0;
                self.input.extend_from_slice(buffer.get(..n).unwrap_or_default());
                Ok(true)
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(false)
            }
            Err(Errno::INTR) => Ok(true),
            Err(_) => Err(CloseReason::GuestReset),
        }
    }

    fn write(&mut self) -> Result<(), CloseReason> {
        while !self.output.is_empty() {
            match rustix::net::send(&self.socket, &self.output, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => {
                    self.counters.bytes_in += n as u64;
                    self.output.drain(..n);
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Err(CloseReason::GuestReset),
            }
        }
        Ok(())
    }
}

/// Makes the socket for one query, connected so that only this server can answer and on a port that the kernel picks at
/// random. A TCP query is sent once the connection stands.
fn open(
    poller: &Poller,
    id: UpstreamId,
    server: SocketAddr,
    transport: Transport,
    message: &[u8],
) -> Result<Asked, Errno> {
    let family = if server.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = match transport {
        Transport::Udp => SocketType::DGRAM,
        Transport::Tcp => SocketType::STREAM,
    };
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    match rustix::net::connect(&socket, &server) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno),
    }
    let (watch, stream) = match transport {
        Transport::Udp => {
            rustix::net::send(&socket, message, SendFlags::NOSIGNAL)?;
            (Watch::Read, None)
        }
        Transport::Tcp => {
            let len = u16::try_from(message.len()).map_err(|_| Errno::MSGSIZE)?;
            let out = [&len.to_be_bytes(), message].concat();
            (Watch::BothEdges, Some((out, Vec::new())))
        }
    };
    poller.add(&socket, Token::Upstream(id.0), watch).map_err(crate::udp::errno_of)?;
    Ok(Asked { socket, stream })
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<Vec<u8>>, Errno> {
    match rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
        Ok((n, _)) => Ok(Some(buffer.get(..n).unwrap_or_default().to_vec())),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// One query over TCP: sends what is left of it, then reads until the whole answer is there.
fn exchange(
    socket: &OwnedFd,
    ready: Ready,
    out: &mut Vec<u8>,
    got: &mut Vec<u8>,
    buffer: &mut [u8],
) -> Result<Option<Vec<u8>>, Errno> {
    while ready.write && !out.is_empty() {
        match rustix::net::send(socket, out, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(n) => _ = out.drain(..n),
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    loop {
        if let Some((prefix, rest)) = got.split_first_chunk::<2>()
            && let Some(message) = rest.get(..usize::from(u16::from_be_bytes(*prefix)))
        {
            return Ok(Some(message.to_vec()));
        }
        match rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(Errno::CONNRESET),
            Ok((n, _)) => got.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{IpAddr, TcpListener, TcpStream};

    use cofferdam_gate::{GateConfig, Link4};
    use cofferdam_model::{BudgetConfig, Classifier, Direction, HostNetwork, LimitsConfig};
    use cofferdam_names::{Families, Rebinding, ResolverConfig};
    use rustix::event::{PollFd, PollFlags};

    use super::*;

    /// The resolver with its sockets, and everything around it.
    struct World {
        poller: Poller,
        gate: Gate,
        dns: Dns,
        events: EventWriter,
        _reader: OwnedFd,
    }

    impl World {
        fn new() -> World {
            World::asking(Vec::new(), &[])
        }

        /// With these resolvers to ask and these budgets of the whole run, in bytes.
        fn asking(upstreams: Vec<Upstream>, budgets: &[u64]) -> World {
            let network = cofferdam_policy::file::default_network();
            let gateway: IpAddr = [172, 16, 0, 1].into();
            let host = HostNetwork { addresses: vec![gateway], ..HostNetwork::default() };
            let policy = Arc::new(Policy::compile(&network.policy, Classifier::new(host)));
            let resolver = ResolverConfig {
                upstreams,
                gateway: vec![gateway],
                families: Families { ipv4: true, ipv6: true },
                query_timeout: Duration::from_secs(5),
                rebinding: Rebinding::Allow,
                witness: Duration::ZERO,
                seed: [1; 32],
            };
            let gate = GateConfig {
                v4: Link4 { guest: [172, 16, 0, 2].into(), gateway: [172, 16, 0, 1].into(), prefix: 30 },
                v6: None,
                mtu: 1500,
                deny_with: network.deny_with,
                limits: LimitsConfig {
                    budgets: budgets
                        .iter()
                        .map(|bytes| BudgetConfig {
                            bytes: *bytes,
                            direction: Direction::Any,
                            destinations: Vec::new(),
                        })
                        .collect(),
                    ..network.limits
                },
                room: 0,
                host_sockets: Vec::new(),
                pin_floor: network.dns.pin_floor,
                witness: Duration::ZERO,
                seed: [1; 32],
            };
            let (events, reader) = cofferdam_sys::fdpass::pair().unwrap();
            World {
                poller: Poller::new().unwrap(),
                gate: Gate::new(gate, Arc::clone(&policy)),
                dns: Dns::new(Resolver::new(resolver, policy), Sessions::new(&[], &[])),
                events: EventWriter::new(events, crate::capture::Teller::default()),
                _reader: reader,
            }
        }

        /// A guest's connection to the gateway's resolver: its end. Connections are numbered from 0.
        fn connect(&mut self, now: Time) -> TcpStream {
            self.connect_over("127.0.0.1:0", now)
        }

        fn connect_over(&mut self, address: &str, now: Time) -> TcpStream {
            let listener = TcpListener::bind(address).unwrap();
            let guest = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (ours, _) = listener.accept().unwrap();
            ours.set_nonblocking(true).unwrap();
            guest.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let flow = FlowId(self.dns.next_connection);
            let ends = Ends { guest: "172.16.0.2:40000".parse().unwrap(), server: "172.16.0.1:53".parse().unwrap() };
            assert!(self.dns.handle_accepted(&self.poller, &mut self.gate, now, (flow, ours.into(), ends)));
            guest
        }

        /// The guest sends queries, and they are served for one turn.
        fn ask(&mut self, now: Time, guest: &mut TcpStream, id: u64, count: u16) {
            self.send(now, guest, id, &queries(count));
        }

        fn send(&mut self, now: Time, guest: &mut TcpStream, id: u64, bytes: &[u8]) {
            guest.write_all(bytes).unwrap();
            let mut fds = [PollFd::new(&self.dns.connections[&id].socket, PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut fds, None).unwrap(), 1);
            self.dns.handle_connection(&mut self.gate, now, id, READABLE);
        }

        fn drain(&mut self, now: Time) {
            self.dns.drain(&self.poller, &mut self.gate, &mut self.events, now);
        }
    }

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    const READABLE: Ready =
        Ready { read: true, write: false, room: false, hang_up: false, error: false, urgent: false };

    /// Queries for a name of the gateway's own, as they stand in a stream.
    fn queries(count: u16) -> Vec<u8> {
        (0..count).flat_map(|id| query(id, "localhost")).collect()
    }

    /// A query for the address of a name of one label.
    fn query(id: u16, name: &str) -> Vec<u8> {
        let name = [&[u8::try_from(name.len()).unwrap()], name.as_bytes(), b"\0\0\x01\0\x01"].concat();
        let message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &name].concat();
        [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat()
    }

    /// The next message that the guest receives.
    fn message(guest: &mut TcpStream) -> Vec<u8> {
        let mut length = [0; 2];
        guest.read_exact(&mut length).unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        guest.read_exact(&mut message).unwrap();
        message
    }

    fn is_open(guest: &mut TcpStream) -> bool {
        guest.set_nonblocking(true).unwrap();
        let read = guest.read(&mut [0; 1]);
        guest.set_nonblocking(false).unwrap();
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    const BOTH: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

    #[test]
    fn a_connection_ends_when_nothing_was_asked_or_answered_for_30_seconds() {
        for address in BOTH {
            let mut world = World::new();
            let mut guest = world.connect_over(address, at(0));
            world.ask(at(10), &mut guest, 0, 1);
            world.drain(at(10));
            message(&mut guest);
            // Half a query is none.
            world.send(at(20), &mut guest, 0, &queries(1)[..7]);
            assert_eq!(world.dns.poll_timeout(), Some(at(40)));
            world.dns.handle_timeout(&mut world.gate, at(39));
            assert!(is_open(&mut guest));
            world.dns.handle_timeout(&mut world.gate, at(40));
            assert!(!is_open(&mut guest));
            assert_eq!(world.dns.poll_timeout(), None);
        }
    }

    #[test]
    fn a_query_may_come_in_any_pieces() {
        for address in BOTH {
            let stream = queries(2);
            let first = query(0, "localhost").len();
            for cut in 1..stream.len() {
                let mut world = World::new();
                let mut guest = world.connect_over(address, at(0));
                world.send(at(0), &mut guest, 0, &stream[..cut]);
                assert_eq!(world.dns.clients.len(), usize::from(cut >= first), "cut at {cut}");
                world.send(at(0), &mut guest, 0, &stream[cut..]);
                world.drain(at(0));
                for id in 0..2_u16 {
                    assert_eq!(message(&mut guest)[..2], id.to_be_bytes(), "cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn an_answer_waits_for_no_other() {
        for address in BOTH {
            let server = TcpListener::bind(address).unwrap();
            let mut world = World::asking(vec![server.local_addr().unwrap().into()], &[]);
            let mut guest = world.connect_over(address, at(0));
            world.send(at(0), &mut guest, 0, &[query(1, "slow"), query(2, "localhost")].concat());
            world.drain(at(0));
            assert_eq!(message(&mut guest)[..2], [0, 2], "the second one overtakes the first");
            let asked = *world.dns.upstreams.keys().next().unwrap();
            world.dns.handle_upstream(at(0), asked, Ready { write: true, ..READABLE });
            let (mut server, _) = server.accept().unwrap();
            let mut answer = message(&mut server);
            // No such name, in its own words.
            answer[2..4].copy_from_slice(&[0x81, 0x83]);
            server.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
            server.write_all(&answer).unwrap();
            // It may be read in two pieces.
            while let Some(Asked { socket, .. }) = world.dns.upstreams.get(&asked) {
                assert_eq!(rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], None).unwrap(), 1);
                world.dns.handle_upstream(at(1), asked, READABLE);
                world.drain(at(1));
            }
            assert_eq!(message(&mut guest)[..2], [0, 1]);
        }
    }

    #[test]
    fn what_is_asked_and_answered_counts_against_the_budgets() {
        for address in BOTH {
            let one = query(0, "localhost").len() as u64 - 2;
            let mut world = World::asking(Vec::new(), &[3 * one]);
            let mut guest = world.connect_over(address, at(0));
            world.ask(at(0), &mut guest, 0, 1);
            world.drain(at(0));
            // The answer is longer than the question; what is left is less than both once more.
            message(&mut guest);
            world.ask(at(0), &mut guest, 0, 1);
            world.drain(at(0));
            assert!(!is_open(&mut guest));
            assert!(world.gate.limits().has_news(), "and it is told");
        }
    }

    #[test]
    fn the_quietest_of_64_connections_makes_room() {
        let mut world = World::new();
        let mut guests: Vec<TcpStream> = (0..64).map(|second| world.connect(at(second))).collect();
        // The oldest one has just asked something.
        world.ask(at(64), &mut guests[0], 0, 1);
        world.drain(at(64));
        assert_eq!(world.dns.connections.len(), 64);
        guests.push(world.connect(at(65)));
        assert_eq!(world.dns.connections.len(), 64);
        guests[0].read_exact(&mut [0; 12]).unwrap();
        assert_eq!(guests[1].read(&mut [0; 1]).unwrap(), 0, "closed");
        for guest in &mut guests[2..] {
            guest.set_nonblocking(true).unwrap();
            assert_eq!(guest.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock, "open");
        }
    }

    #[test]
    fn a_connection_has_64_queries_taken_in_a_turn_and_the_rest_in_the_next() {
        let mut world = World::new();
        let mut guest = world.connect(at(0));
        world.ask(at(0), &mut guest, 0, 150);
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(world.dns.clients.len());
            // Answering makes room, and is not followed by reading on at once.
            world.drain(at(0));
            assert_eq!(world.dns.clients.len(), 0);
            assert!(world.dns.is_hungry());
            world.dns.feed(&mut world.gate, at(0));
        }
        assert_eq!(taken, [64, 64, 22]);
        assert!(!world.dns.is_hungry());
        for id in 0..150_u16 {
            assert_eq!(message(&mut guest)[..2], id.to_be_bytes());
        }
    }

    #[test]
    fn no_more_than_64_queries_of_a_connection_wait_for_answers() {
        let mut world = World::new();
        let mut guest = world.connect(at(0));
        world.ask(at(0), &mut guest, 0, 150);
        for _ in 0..3 {
            world.dns.handle_connection(&mut world.gate, at(0), 0, READABLE);
            assert_eq!(world.dns.clients.len(), 64);
        }
    }
}
