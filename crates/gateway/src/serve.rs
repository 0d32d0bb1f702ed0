//! The gateway process and its loop.
//!
//! One thread, one epoll. Each turn: wait; hand every event to its owner (the gate, the relay, the resolver); after each
//! input do what the gate asks until it asks for nothing more; then send what was gathered (rows of datagrams, events).
//! Sources have a budget per turn, so that none can starve the others.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_gate::{Accepted, DialError, Gate, GateConfig, Link4, Link6, Moved, Output, Way};
use cofferdam_model::{
    Classifier, CloseReason, EventBody, FlowId, HostNetwork, LimitKind, LimitsConfig, Nameserver, NameserverHost,
    NameserverOver, PortId, PortProtocol, SocketId, Time,
};
use cofferdam_names::{Ends, Families, Reach, Rebinding, Resolver, ResolverConfig, Upstream};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::broker;
use crate::capture::Teller;
use crate::check::{Ask, Checks, HandOver, MAX_KEPT, Outcome};
use crate::clock::Clock;
use crate::commands::{self, Command, Received};
use crate::compiler::{Compiler, CompilerError, Done, Job, Settings};
use crate::config::{Channels, DnsUpstream, DnsWay, GatewayConfig};
use crate::dial::{Dials, Progress};
use crate::dns::Dns;
use crate::echo::Echo;
use crate::events::EventWriter;
use crate::machine::{self, News};
use crate::netns::GatewayFds;
use crate::pace::{Pace, Queues};
use crate::patience::Patience;
use crate::poller::{Poller, Ready, Token, Watch};
use crate::ports::{self, PortSocket, Ports};
use crate::relay::{Ended, Relay, Side};
use crate::seal::{self, Needs, SealError, Sealed};
use crate::session::Sessions;
use crate::sockets::{self, HostSockets};
use crate::udp::Udp;

/// Packets read from the TUN in one turn.
const PACKETS: usize = 64;

/// How long a client that is denied waits for its answer, so that the supervisor can see who it is: it is told at once, and
/// looks within some 100 µs on a machine that is not busy. No person and no protocol notices a millisecond.
const WITNESS: Duration = Duration::from_millis(1);

/// Connections accepted from one listener in one turn.
const ACCEPTS: usize = 256;

/// Commands that are carried out in one turn.
const COMMANDS: usize = 16;

/// A turn with no more than this, and no bulk transfer, did little: a step of a ping-pong, or of a connection being made.
const LITTLE_EVENTS: usize = 2;
const LITTLE_PACKETS: usize = 1;

/// How soon events are told again that found no room and that somebody waits for.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(5);

/// The `virtio_net_hdr` and the largest packet.
const FRAME: usize = cofferdam_gate::wire::virtio::HEADER_LEN + 65_535 + 40;

/// Descriptors kept free for what is not a TCP flow, beside the stock of the broker: TUN, listeners, channels, pipes, and some sockets for DNS and UDP.
const RESERVED_DESCRIPTORS: u64 = 100;

/// Why the gateway could not serve, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot set up the gateway's event loop")]
    Poller { source: io::Error },
    #[error("cannot confine the gateway process")]
    Seal {
        #[from]
        source: SealError,
    },
    #[error("cannot tell the supervisor that the gateway is ready")]
    Ready { source: io::Error },
    #[error("the gateway's event loop broke")]
    Wait { source: io::Error },
    #[error("the supervisor said something about the machine's network that cannot be read")]
    Machine,
    #[error("cannot start what compiles policies")]
    Compiler { source: io::Error },
    #[error("the supervisor wants something changed that cannot be read")]
    Command,
}

impl From<CompilerError> for ServeError {
    fn from(error: CompilerError) -> ServeError {
        match error {
            CompilerError::Start { source } => ServeError::Compiler { source },
            CompilerError::Seal { source } => ServeError::Seal { source },
        }
    }
}

/// What it takes to change something while a sandbox runs.
struct Live {
    channel: OwnedFd,
    compiler: Compiler,
}

/// The gateway process: confines itself, says that it is ready, and serves until the supervisor is gone.
///
/// # Errors
/// When it could not be confined or its loop could not be made or kept running; nothing of a guest is read before it is
/// confined.
pub fn serve(config: GatewayConfig, fds: GatewayFds, channels: Channels) -> Result<(), ServeError> {
    let descriptors = cofferdam_sys::process::raise_descriptor_limit();
    let own = (EventWriter::new(channels.events, Teller::new(channels.capture)), channels.machine);
    let live = match channels.commands {
        Some(channel) => Some(Live { channel, compiler: Compiler::start()? }),
        None => None,
    };
    let gateway =
        Gateway::new(config, fds, own, (live, descriptors)).map_err(|source| ServeError::Poller { source })?;
    gateway
        .poller
        .add(&channels.lifeline, Token::Lifeline, Watch::Read)
        .map_err(|source| ServeError::Poller { source })?;
    let needs = if gateway.ports.can_publish() { Needs::Bind } else { Needs::Nothing };
    let sealed = seal::seal(needs)?;
    rustix::io::write(&channels.ready, &[1]).map_err(|errno| ServeError::Ready { source: errno.into() })?;
    drop(channels.ready);
    gateway.run(&sealed)
}

struct Gateway {
    poller: Poller,
    clock: Clock,
    tun: OwnedFd,
    listeners: Vec<OwnedFd>,
    gate: Gate,
    dials: Dials,
    checks: Checks,
    relay: Relay,
    ports: Ports,
    sockets: HostSockets,
    /// Flows that wait for a rate.
    queues: Queues,
    udp: Udp,
    echo: Echo,
    dns: Dns,
    events: EventWriter,
    machine: OwnedFd,
    live: Option<Live>,
    /// Commands that are answered once the events of this turn are sent.
    tells: Vec<u32>,
    room: Room,
    resolvers: Resolvers,
    /// The gateway's addresses, which are the machine's to a guest.
    own: Vec<IpAddr>,
    frame: Vec<u8>,
    /// Given up for a moment to accept and refuse a connection when there is no descriptor left.
    spare: Option<OwnedFd>,
    /// Handshakes that were let go on since the listeners were last asked, by listener.
    expected: [usize; 2],
    patience: Patience,
    /// Packets read from the TUN in this turn.
    packets: usize,
    /// The last turn did little.
    little: bool,
    stop: bool,
    failure: Option<ServeError>,
}

/// What the descriptors of this process have to do for.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// How many it may have; `None` for any number.
    descriptors: Option<u64>,
    /// Whether connections come in by published ports as well.
    has_ports: bool,
}

impl Room {
    /// The TCP flows, two descriptors each, that can be held in all; 0 for any number. One may always be tried.
    fn flows(self) -> u32 {
        let Some(descriptors) = self.descriptors else { return 0 };
        let reserved = RESERVED_DESCRIPTORS + if self.has_ports { broker::STOCK } else { 0 };
        u32::try_from(descriptors.saturating_sub(reserved) / 2).unwrap_or(u32::MAX).max(1)
    }

    /// The bounds within that: peers have half of it at most, so that strangers cannot take all of it from the guest.
    fn limits(self, wanted: &LimitsConfig) -> LimitsConfig {
        // 0 stands for unlimited.
        let within = |wanted: u32, room: u32| match (wanted, room) {
            (0, bound) | (bound, 0) => bound,
            (wanted, room) => wanted.min(room),
        };
        let flows = self.flows();
        LimitsConfig {
            max_connections: within(wanted.max_connections, flows),
            max_inbound_connections: within(wanted.max_inbound_connections, flows.div_ceil(2)),
            ..wanted.clone()
        }
    }
}

fn gate_config(config: &GatewayConfig, room: Room) -> GateConfig {
    GateConfig {
        v4: Link4 { guest: config.link.guest4, gateway: config.link.gateway4, prefix: config.link.prefix4 },
        v6: config.link.v6.as_ref().map(|v6| Link6 { guest: v6.guest, gateway: v6.gateway }),
        mtu: config.network.interface.mtu,
        deny_with: config.network.deny_with,
        limits: room.limits(&config.network.limits),
        room: room.flows(),
        host_sockets: config.network.host_sockets.clone(),
        pin_floor: config.network.dns.pin_floor,
        witness: WITNESS,
        seed: config.seed,
    }
}

/// Whose word about resolvers counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resolvers {
    /// The machine's, from one moment to the next.
    Machine,
    /// Those that are configured.
    Configured,
    /// The same, and there is no changing to or from connections to them.
    Fixed,
}

impl Resolvers {
    fn of(config: &GatewayConfig) -> Resolvers {
        match config.resolvers.iter().all(|resolver| resolver.way == DnsWay::Plain) {
            true if config.network.dns.nameservers.is_empty() => Resolvers::Machine,
            true => Resolvers::Configured,
            false => Resolvers::Fixed,
        }
    }

    /// Resolvers that were configured later. `None`: those that there are stay. Whoever configures has been told when these are
    /// none that can be changed to.
    fn told(&mut self, servers: &[Nameserver]) -> Option<Vec<SocketAddr>> {
        let address = |server: &Nameserver| match (&server.host, &server.over) {
            (NameserverHost::Address(address), NameserverOver::Plain) => Some(SocketAddr::new(*address, server.port)),
            (_, _) => None,
        };
        let servers: Vec<SocketAddr> = servers.iter().map(address).collect::<Option<_>>()?;
        if servers.is_empty() || *self == Resolvers::Fixed {
            return None;
        }
        *self = Resolvers::Configured;
        Some(servers)
    }
}

fn own_addresses(config: &GatewayConfig) -> Vec<IpAddr> {
    let v6 = config.link.v6.as_ref().map(|v6| v6.gateway.into());
    std::iter::once(config.link.gateway4.into()).chain(v6).collect()
}

fn resolver_config(config: &GatewayConfig) -> ResolverConfig {
    ResolverConfig {
        upstreams: config.resolvers.iter().map(upstream).collect(),
        gateway: own_addresses(config),
        families: Families { ipv4: true, ipv6: config.link.v6.is_some() },
        query_timeout: config.network.dns.query_timeout,
        rebinding: Rebinding::of_network(&config.network, config.policy.classifier()),
        witness: WITNESS,
        seed: config.seed,
    }
}

fn upstream(upstream: &DnsUpstream) -> Upstream {
    let reach = match upstream.way {
        DnsWay::Plain => Reach::Datagrams,
        DnsWay::Tls { .. } | DnsWay::Https { .. } => Reach::Session,
    };
    Upstream { server: upstream.address, reach }
}

impl Gateway {
    fn new(
        config: GatewayConfig,
        fds: GatewayFds,
        (events, machine): (EventWriter, OwnedFd),
        (live, descriptors): (Option<Live>, Option<u64>),
    ) -> io::Result<Gateway> {
        let poller = Poller::new()?;
        if let Some(Live { channel, compiler }) = &live {
            poller.add(channel, Token::Commands, Watch::Read)?;
            poller.add(compiler.bell(), Token::Compiler, Watch::Read)?;
        }
        poller.add(&machine, Token::Machine, Watch::Read)?;
        poller.add(&fds.tun, Token::Tun, Watch::Read)?;
        for (index, listener) in fds.listeners.iter().enumerate() {
            poller.add(listener, Token::Listener(index), Watch::Read)?;
        }
        let ports = Ports::new(fds.broker);
        if let Some(broker) = ports.broker() {
            poller.add(broker, Token::Broker, Watch::Read)?;
        }
        let sockets = HostSockets::new(&poller, fds.host_sockets, fds.dialer)?;
        let published: Vec<PortSocket> = fds.ports;
        let room = Room { descriptors, has_ports: ports.can_publish() };
        let resolver = Resolver::new(resolver_config(&config), Arc::clone(&config.policy));
        let mut gateway = Gateway {
            poller,
            clock: Clock::start(),
            ports,
            sockets,
            spare: fds.tun.try_clone().ok(),
            tun: fds.tun,
            listeners: fds.listeners,
            gate: Gate::new(gate_config(&config, room), Arc::clone(&config.policy)),
            dials: Dials::default(),
            checks: Checks::new(),
            relay: Relay::new(),
            queues: Queues::default(),
            udp: Udp::new(),
            echo: Echo::new(),
            dns: Dns::new(resolver, Sessions::new(&config.resolvers, &config.anchors)),
            events,
            machine,
            live,
            tells: Vec::new(),
            room,
            resolvers: Resolvers::of(&config),
            own: own_addresses(&config),
            frame: vec![0; FRAME],
            expected: [0; 2],
            patience: Patience::default(),
            packets: 0,
            little: false,
            stop: false,
            failure: None,
        };
        let now = gateway.clock.now();
        for port in published {
            gateway.publish(now, port)?;
        }
        Ok(gateway)
    }

    /// Serves a port from here on.
    fn publish(&mut self, now: Time, port: PortSocket) -> io::Result<()> {
        let told = EventBody::PortPublished {
            port: port.id,
            protocol: port.port.protocol,
            host: port.port.host(),
            guest_port: port.port.guest_port.get(),
        };
        self.ports.publish(&self.poller, port)?;
        self.events.push(now, told);
        Ok(())
    }

    /// The loop. Only a sealed process gets here.
    fn run(mut self, _sealed: &Sealed) -> Result<(), ServeError> {
        let mut ready = Vec::new();
        let mut ended = Vec::new();
        while !self.stop {
            let now = self.wait(&mut ready).map_err(|source| ServeError::Wait { source })?;
            self.packets = 0;
            self.little = ready.len() <= LITTLE_EVENTS;
            // Packets of this turn are decided by the addresses that the machine has by then.
            if let Some(at) = ready.iter().position(|(token, _)| *token == Token::Machine) {
                ready.swap(0, at);
            }
            for (token, ready) in ready.drain(..) {
                if self.stop {
                    break;
                }
                self.dispatch(now, token, ready);
            }
            self.little &= self.packets <= LITTLE_PACKETS && !self.relay.take_bulk();
            for flow in self.checks.take_hungry() {
                self.check(now, flow);
            }
            for _ in 0..self.checks.take_refused() {
                let bound = u64::try_from(MAX_KEPT).unwrap_or(u64::MAX);
                self.gate.handle_limit(now, LimitKind::HeldBytes, bound);
            }
            let mut pace = Pace::new(self.gate.limits(), &mut self.queues, now);
            self.relay.feed(&self.poller, &mut pace, &mut ended);
            self.serve_waiting(now);
            for ended in ended.drain(..) {
                self.closed(now, ended);
            }
            self.dns.feed(&mut self.gate, now);
            self.drain(now);
            if self.relay.has_moved() || self.checks.has_moved() {
                self.gate.handle_movement(now);
            }
            self.time_out(now);
            self.gate.handle_limited(now);
            self.udp.flush(&mut self.gate, now);
            self.drain(now);
            // Whoever waits until everything is told does not wait for company.
            if (self.events.is_due(now) || !self.tells.is_empty()) && self.events.flush(now) {
                for number in std::mem::take(&mut self.tells) {
                    self.answer(number, Ok(()));
                }
            }
        }
        self.events.be_patient();
        let now = self.clock.now();
        let checked = self.checks.reset_all(now, CloseReason::Shutdown);
        for ended in checked.into_iter().chain(self.relay.reset_all(CloseReason::Shutdown)) {
            self.closed(now, ended);
        }
        self.gate.handle_shutdown(now);
        self.dns.handle_shutdown();
        self.drain(now);
        self.events.flush(now);
        self.events.capture.finish();
        self.failure.map_or(Ok(()), Err)
    }

    /// Waits for events and says what time it is then. Looks again for a while before it sleeps, where that pays.
    fn wait(&mut self, ready: &mut Vec<(Token, Ready)>) -> io::Result<Time> {
        let mut timeout = self.timeout();
        let start = self.clock.now();
        let look = self.patience.look(self.little).map(|look| timeout.map_or(look, |timeout| look.min(timeout)));
        if let Some(look) = look.filter(|look| !look.is_zero()) {
            loop {
                self.poller.wait(Some(std::time::Duration::ZERO), ready)?;
                let now = self.clock.now();
                if !ready.is_empty() {
                    return Ok(now);
                }
                if now.since(start) >= look {
                    timeout = timeout.map(|timeout| timeout.saturating_sub(now.since(start)));
                    break;
                }
            }
        }
        let start = self.clock.now();
        self.poller.wait(timeout, ready)?;
        let now = self.clock.now();
        self.patience.slept(start, now);
        Ok(now)
    }

    fn timeout(&mut self) -> Option<std::time::Duration> {
        if self.relay.is_hungry() || self.checks.is_hungry() || self.dns.is_hungry() {
            return Some(std::time::Duration::ZERO);
        }
        let rates = self.queues.poll_timeout(self.gate.limits());
        // Somebody waits for events that found no room.
        let tells = self.tells.first().map(|_| self.clock.now() + AGAIN);
        let (events, streams) = (self.events.poll_timeout(), self.relay.poll_timeout());
        let timeouts = [
            self.gate.poll_timeout(),
            self.dns.poll_timeout(),
            self.checks.poll_timeout(),
            rates,
            tells,
            events,
            streams,
        ];
        let next = timeouts.into_iter().flatten().min()?;
        Some(next.since(self.clock.now()))
    }

    fn time_out(&mut self, now: Time) {
        if self.gate.poll_timeout().is_some_and(|at| at <= now) {
            self.gate.handle_timeout(now);
            self.drain(now);
        }
        while self.checks.poll_timeout().is_some_and(|at| at <= now) {
            let outcome = self.with_checks(now, None, |checks, ask, pace| checks.handle_timeout(ask, pace));
            let Some(outcome) = outcome else { break };
            self.checked(now, outcome);
            self.drain(now);
        }
        if self.dns.poll_timeout().is_some_and(|at| at <= now) {
            self.dns.handle_timeout(&mut self.gate, now);
            self.drain(now);
        }
    }

    fn dispatch(&mut self, now: Time, token: Token, ready: Ready) {
        match token {
            Token::Tun => self.read_tun(now),
            Token::Lifeline => self.stop = true,
            Token::Machine => self.learn(now),
            Token::Commands => self.obey(now),
            Token::Compiler => self.take_over(now),
            Token::Listener(index) => self.accept(now, index, ACCEPTS),
            Token::Remote(flow) => match self.dials.handle_ready(&self.poller, flow) {
                Some(progress) => self.dialed(now, flow, progress),
                None => self.relayed(now, flow, Side::Remote, ready),
            },
            Token::Guest(flow) => match self.ports.handle_ready(flow) {
                Some(result) => self.reached(now, flow, result),
                None => self.relayed(now, flow, Side::Guest, ready),
            },
            Token::Port(id) => self.come_in(now, id),
            Token::Broker => {
                for (flow, result) in self.ports.handle_broker(&self.poller) {
                    self.reached(now, flow, result);
                }
                if !self.ports.can_publish() {
                    let message = "the process that makes sockets for published ports has ended: no more connections \
                                   come in"
                        .to_owned();
                    self.events.push(now, EventBody::GatewayNotice { message });
                }
            }
            Token::HostSocket(id) => self.reach_out(now, id),
            Token::Dialer => self.connected(now),
            Token::Udp(flow) => self.udp.handle_ready(&mut self.gate, now, flow, ready),
            Token::Echo(flow) => self.echo.handle_ready(&mut self.gate, now, flow),
            Token::Upstream(id) => self.dns.handle_upstream(now, id, ready),
            Token::Session(number) => self.dns.handle_session(&self.poller, now, number, ready),
            Token::DnsClient(id) => self.dns.handle_connection(&mut self.gate, now, id, ready),
        }
        self.drain(now);
    }

    /// Takes over what the supervisor says of the machine's network.
    fn learn(&mut self, now: Time) {
        let (network, resolvers) = match machine::receive(&self.machine) {
            News::Said { network, resolvers } => (network, resolvers),
            News::Closed => {
                self.stop = true;
                return;
            }
            News::Unreadable => {
                self.failure = Some(ServeError::Machine);
                self.stop = true;
                return;
            }
        };
        if let Some(servers) = resolvers.filter(|_| self.resolvers == Resolvers::Machine) {
            self.dns.handle_resolvers(now, servers);
        }
        let Some(news) = network else { return };
        let policy = self.gate.policy();
        let known = policy.classifier().host();
        let addresses = self.own.iter().copied().chain(news.addresses).collect();
        let host = HostNetwork { addresses, on_link: news.on_link, nat64: known.nat64.clone() };
        if *known == host {
            return;
        }
        let policy = Arc::new(policy.with_classifier(Classifier::new(host)));
        self.dns.handle_reclassified(now, Arc::clone(&policy));
        self.gate.handle_reclassified(now, policy);
    }

    /// Does what the supervisor wants changed.
    fn obey(&mut self, now: Time) {
        // What has happened before is told before the answers are.
        self.events.flush(now);
        for _ in 0..COMMANDS {
            let Some(Live { channel, compiler }) = &self.live else { return };
            let (number, command) = match commands::receive(channel) {
                Received::Command(number, command) => (number, command),
                Received::Nothing => return,
                Received::Closed => {
                    self.stop = true;
                    return;
                }
                Received::Unreadable => {
                    self.failure = Some(ServeError::Command);
                    self.stop = true;
                    return;
                }
            };
            match command {
                Command::Settings { file } => {
                    let classifier = self.gate.policy().classifier().clone();
                    if !compiler.ask(Job { number, file, classifier }) {
                        commands::answer(channel, number, Err("too many changes at once; try again in a moment"));
                    }
                }
                Command::Publish { port, sockets } => {
                    let result = self.publish_command(now, &port, sockets);
                    self.answer(number, result);
                }
                Command::Withdraw { port } => {
                    let result = self.withdraw_command(now, PortId(port));
                    self.answer(number, result);
                }
                // When this turn's are sent.
                Command::Tell => self.tells.push(number),
            }
        }
    }

    fn answer(&self, number: u32, result: Result<(), String>) {
        if let Some(Live { channel, .. }) = &self.live {
            commands::answer(channel, number, result.as_ref().copied().map_err(String::as_str));
        }
    }

    fn publish_command(&mut self, now: Time, port: &[u8], mut sockets: Vec<OwnedFd>) -> Result<(), String> {
        let commands::Publication { id, port } =
            serde_json::from_slice(port).map_err(|error| format!("the port cannot be read: {error}"))?;
        let (Some(socket), true) = (sockets.pop(), sockets.is_empty()) else {
            return Err("a port has one socket".to_owned());
        };
        if !self.ports.can_publish() {
            return Err("this sandbox was not made to have ports published".to_owned());
        }
        if self.ports.find(id).is_some() {
            return Err(format!("there is a port {} already", id.0));
        }
        self.publish(now, PortSocket { id, port, socket })
            .map_err(|error| format!("the port cannot be served: {error}"))
    }

    fn withdraw_command(&mut self, now: Time, id: PortId) -> Result<(), String> {
        let port = self.ports.withdraw(id).ok_or_else(|| format!("there is no port {}", id.0))?;
        self.gate.handle_withdrawn(now, id);
        self.drain(now);
        let (protocol, host, guest_port) = (port.protocol, port.host(), port.guest_port.get());
        self.events.push(now, EventBody::PortWithdrawn { port: id, protocol, host, guest_port });
        Ok(())
    }

    /// Puts compiled settings in the place of those in force, all at once.
    fn take_over(&mut self, now: Time) {
        self.events.flush(now);
        while let Some(Done { number, result }) = self.live.as_ref().and_then(|live| live.compiler.take()) {
            let result = result.map(|settings| {
                let Settings { network, policy, rebinding } = *settings;
                let classifier = self.gate.policy().classifier();
                // The machine may have got other addresses while the policy was compiled.
                let (policy, rebinding) = if policy.classifier().host() == classifier.host() {
                    (policy, rebinding)
                } else {
                    let rebinding = Rebinding::of_network(&network, classifier);
                    (Arc::new(policy.with_classifier(classifier.clone())), rebinding)
                };
                self.gate.handle_limits(now, self.room.limits(&network.limits));
                self.gate.handle_deny_with(network.deny_with);
                self.gate.handle_pin_floor(network.dns.pin_floor);
                self.dns.handle_policy(now, Arc::clone(&policy), rebinding, network.dns.query_timeout);
                if let Some(servers) = self.resolvers.told(&network.dns.nameservers) {
                    self.dns.handle_resolvers(now, servers);
                }
                self.gate.handle_policy(now, policy);
                self.drain(now);
            });
            self.answer(number, result);
        }
    }

    fn read_tun(&mut self, now: Time) {
        for _ in 0..PACKETS {
            match rustix::io::read(&self.tun, &mut self.frame) {
                Ok(len) => {
                    self.packets += 1;
                    self.gate.handle_frame(now, self.frame.get(..len).unwrap_or_default());
                    self.drain(now);
                }
                // EAGAIN, and whatever else a TUN may say: there is nothing to read.
                Err(_) => return,
            }
        }
    }

    /// Does what the gate and the resolver ask for, until they ask for nothing more.
    fn drain(&mut self, now: Time) {
        loop {
            while let Some(output) = self.gate.poll_output() {
                self.perform(now, output);
            }
            self.dns.drain(&self.poller, &mut self.gate, &mut self.events, now);
            for index in 0..self.expected.len() {
                let expected = self.expected.get_mut(index).map(std::mem::take).unwrap_or_default();
                if expected > 0 {
                    self.accept(now, index, expected);
                }
            }
            let Some(output) = self.gate.poll_output() else { return };
            self.perform(now, output);
        }
    }

    fn perform(&mut self, now: Time, output: Output) {
        match output {
            Output::Dial { flow, remote, fallback, permit } => {
                let progress = self.dials.start(&self.poller, flow, remote, fallback, permit);
                self.dialed(now, flow, progress);
            }
            Output::AbandonDial { flow } => {
                drop(self.dials.take(flow));
                if let Some((host, _guest)) = self.ports.take(flow) {
                    ports::reset(&host);
                }
            }
            Output::DialGuest { flow, source, guest, permit } => {
                self.events.capture.dialing(flow, source);
                if let Some(result) = self.ports.dial(&self.poller, flow, source, guest, permit) {
                    self.reached(now, flow, result);
                }
            }
            Output::SendPeer { port, peer, local, payload, segment, fragmentation } => {
                self.ports.send(port, (peer, local), &payload, segment, fragmentation);
            }
            Output::Emit { offload, packet } => {
                let header = offload.emit();
                // A packet that the TUN does not take is lost like any other.
                let _ = rustix::io::writev(&self.tun, &[IoSlice::new(&header), IoSlice::new(&packet)]);
            }
            Output::OpenUdp { flow, remote, permit } => {
                if let Err(error) = self.udp.open(&self.poller, flow, remote, permit) {
                    self.gate.handle_udp_failed(now, flow, error);
                }
            }
            Output::SendUdp { flow, payload, segment, fragmentation } => {
                self.udp.send(&mut self.gate, now, (flow, fragmentation), &payload, segment);
            }
            Output::CloseUdp { flow } => self.udp.close(&mut self.gate, now, flow),
            Output::OpenEcho { flow, remote, permit } => {
                if let Err(error) = self.echo.open(&self.poller, flow, remote, permit) {
                    self.gate.handle_echo_failed(now, flow, error);
                }
            }
            Output::SendEcho { flow, sequence, payload } => {
                self.echo.send(&mut self.gate, now, flow, sequence, &payload);
            }
            Output::CloseEcho { flow } => self.echo.close(flow),
            Output::Dns { query, message } => self.dns.handle_datagram(now, query, &message),
            Output::CloseFlow { flow } => match self
                .relay
                .reset(flow, CloseReason::Policy)
                .or_else(|| self.checks.reset(now, flow, CloseReason::Policy))
            {
                Some(ended) => self.closed(now, ended),
                None => self.dns.close_flow(&mut self.gate, now, flow),
            },
            Output::CloseUsedUp { flow } => {
                let ended = self.relay.reset(flow, CloseReason::Budget);
                let ended = ended.or_else(|| self.checks.reset(now, flow, CloseReason::Budget));
                if let Some(ended) = ended {
                    self.closed(now, ended);
                }
            }
            Output::AskMoved => {
                let mut moved = Moved::default();
                self.relay.tell_moved(&mut moved);
                self.checks.tell_moved(&mut moved);
                self.gate.handle_moved(moved);
            }
            Output::DialSocket { flow, socket } => {
                if let Err(error) = self.sockets.dial(flow, socket) {
                    self.gate.handle_socket_dialed(now, flow, Err(error));
                }
            }
            Output::AbandonSocket { flow } => drop(self.sockets.take(flow)),
            Output::Event(body) => self.events.push(now, body),
        }
    }

    fn dialed(&mut self, now: Time, flow: FlowId, progress: Progress) {
        let Progress::Done(result) = progress else { return };
        if result.is_err() {
            drop(self.dials.take(flow));
        }
        self.gate.handle_dialed(now, flow, result);
        if result.is_ok() {
            // The gate now lets the held SYN go on, and the kernel usually completes the handshake before the write to the
            // TUN returns: ask the listeners right away. Which family it was does not matter for asking.
            for expected in &mut self.expected {
                *expected += 1;
            }
        }
    }

    fn accept(&mut self, now: Time, index: usize, most: usize) {
        for _ in 0..most {
            let Some(listener) = self.listeners.get(index) else { return };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::acceptfrom_with(listener, flags) {
                Ok((socket, Some(guest))) => {
                    let guest = SocketAddr::try_from(guest).ok();
                    let remote = rustix::net::getsockname(&socket).ok().and_then(|a| SocketAddr::try_from(a).ok());
                    match guest.zip(remote) {
                        Some((guest, remote)) => self.accepted(now, socket, guest, remote),
                        None => refuse(&socket),
                    }
                }
                Ok((socket, None)) => refuse(&socket),
                Err(Errno::MFILE | Errno::NFILE) => return self.accept_and_refuse(index),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    fn accepted(&mut self, now: Time, socket: OwnedFd, guest: SocketAddr, remote: SocketAddr) {
        match self.gate.handle_accepted(now, canonical(guest), canonical(remote)) {
            Some(Accepted::Relay(flow)) => {
                let inserted = match self.dials.take(flow) {
                    Some((dialed, watched)) => {
                        let mut pace = Pace::new(self.gate.limits(), &mut self.queues, now);
                        self.relay.insert(&self.poller, &mut pace, flow, (socket, dialed), watched)
                    }
                    None => Err(socket),
                };
                match inserted {
                    Ok(None) => {}
                    Ok(Some(ended)) => self.closed(now, ended),
                    Err(socket) => {
                        refuse(&socket);
                        self.gate.handle_closed(now, flow, CloseReason::Error, Default::default());
                    }
                }
            }
            Some(Accepted::Check(flow)) => {
                let inserted = match self.dials.take(flow) {
                    Some((dialed, watched)) => self.checks.insert(&self.poller, flow, socket, dialed, watched),
                    None => Err(socket),
                };
                match inserted {
                    Ok(()) => self.check(now, flow),
                    Err(socket) => {
                        refuse(&socket);
                        self.gate.handle_closed(now, flow, CloseReason::Error, Default::default());
                    }
                }
            }
            Some(Accepted::Dns(flow)) => {
                let ends = Ends { guest: canonical(guest), server: canonical(remote) };
                let connection = (flow, socket, ends);
                if !self.dns.handle_accepted(&self.poller, &mut self.gate, now, connection) {
                    self.gate.handle_closed(now, flow, CloseReason::Error, Default::default());
                }
            }
            None => refuse(&socket),
        }
    }

    /// Peers have come to a published port.
    fn come_in(&mut self, now: Time, id: PortId) {
        let Some((published, protocol, _)) = self.ports.find(id) else { return };
        if protocol == PortProtocol::Udp {
            return self.ports.receive(&mut self.gate, now, id);
        }
        for _ in 0..ACCEPTS {
            let Some((.., listener)) = self.ports.find(id) else { return };
            match rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok((socket, peer)) => {
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    match peer.and_then(|peer| self.gate.handle_peer(now, published, peer)) {
                        Some(flow) if ports::watch(&self.poller, flow, &socket).is_ok() => {
                            self.ports.hold(flow, socket)
                        }
                        Some(flow) => {
                            refuse(&socket);
                            self.gate.handle_guest_dialed(now, flow, Err(DialError::Resources));
                        }
                        None => refuse(&socket),
                    }
                    self.drain(now);
                }
                Err(Errno::MFILE | Errno::NFILE) => {
                    self.spare = None;
                    if let Some((.., listener)) = self.ports.find(id)
                        && let Ok(socket) = rustix::net::accept(listener)
                    {
                        refuse(&socket);
                    }
                    self.spare = self.tun.try_clone().ok();
                    return self.gate.handle_limit(now, LimitKind::Descriptors, 0);
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // Whatever else it is, it is about one connection: the listener stays.
                Err(_) => return,
            }
        }
    }

    /// Programs have connected to the place of a socket of the host.
    fn reach_out(&mut self, now: Time, id: SocketId) {
        for _ in 0..ACCEPTS {
            let Some(listener) = self.sockets.listener(id) else { return };
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(guest) => {
                    let who = sockets::who(&guest);
                    if let Some(flow) = self.gate.handle_socket(now, id, who) {
                        self.sockets.hold(flow, guest);
                    }
                    self.drain(now);
                }
                Err(Errno::MFILE | Errno::NFILE) => {
                    self.spare = None;
                    drop(self.sockets.listener(id).map(rustix::net::accept));
                    self.spare = self.tun.try_clone().ok();
                    return self.gate.handle_limit(now, LimitKind::Descriptors, 0);
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    /// The dialer has connected to sockets of the host, or not.
    fn connected(&mut self, now: Time) {
        let (ends, gone) = self.sockets.handle_dialer();
        for (flow, result) in ends {
            // One that the gate knows no more, and whoever is not to be relayed, is closed by being dropped.
            if self.gate.handle_socket_dialed(now, flow, result.as_ref().map(drop).map_err(|error| *error)) {
                let ends = self.sockets.take(flow).zip(result.ok());
                let mut pace = Pace::new(self.gate.limits(), &mut self.queues, now);
                if !ends.is_some_and(|ends| self.relay.insert_local(&self.poller, &mut pace, flow, ends)) {
                    self.gate.handle_closed(now, flow, CloseReason::Error, Default::default());
                }
            }
            self.drain(now);
        }
        if gone {
            let message =
                "the process that connects to sockets of the host has ended: there are no new connections to them"
                    .to_owned();
            self.events.push(now, EventBody::GatewayNotice { message });
        }
    }

    /// The way of a peer's connection to the guest has come to an end.
    fn reached(&mut self, now: Time, flow: FlowId, result: Result<(), DialError>) {
        let lets_go_on = self.gate.handle_guest_dialed(now, flow, result);
        let Some((host, guest)) = self.ports.take(flow) else { return };
        match guest.filter(|_| lets_go_on) {
            Some(guest) => {
                let handed = HandOver {
                    guest,
                    remote: host,
                    counters: Default::default(),
                    mark: Default::default(),
                    guest_ended: false,
                    remote_ended: false,
                };
                let mut pace = Pace::new(self.gate.limits(), &mut self.queues, now);
                if let Some(ended) = self.relay.adopt(&self.poller, &mut pace, flow, handed) {
                    self.closed(now, ended);
                }
            }
            None => ports::reset(&host),
        }
    }

    /// There is no descriptor left: takes one connection off the queue and resets it, so that the guest is told and the
    /// listener does not stay ready for ever.
    fn accept_and_refuse(&mut self, index: usize) {
        self.spare = None;
        if let Some(listener) = self.listeners.get(index)
            && let Ok(socket) = rustix::net::accept(listener)
        {
            refuse(&socket);
        }
        self.spare = self.tun.try_clone().ok();
    }

    fn relayed(&mut self, now: Time, flow: FlowId, side: Side, ready: Ready) {
        if self.checks.has(flow) {
            let handle = |checks: &mut Checks, ask: Ask<'_>, pace: &mut Pace<'_>| {
                checks.handle_ready(ask, pace, flow, side, ready).unwrap_or(Outcome::Waiting)
            };
            let outcome = self.with_checks(now, None, handle);
            return self.checked(now, outcome);
        }
        let mut pace = Pace::new(self.gate.limits(), &mut self.queues, now);
        if let Some(ended) = self.relay.handle_ready(&self.poller, &mut pace, flow, (side, ready)) {
            self.closed(now, ended);
        }
    }

    /// Pumps the flows whose turn it is to have something of a rate.
    fn serve_waiting(&mut self, now: Time) {
        for way in Way::ALL {
            for (flow, most) in self.queues.due(self.gate.limits(), now, way) {
                let mut pace = Pace::new(self.gate.limits(), &mut self.queues, now).serving(Some((flow, way, most)));
                if let Some(ended) = self.relay.pump(&self.poller, &mut pace, flow) {
                    self.closed(now, ended);
                    continue;
                }
                self.check_within(now, flow, Some((flow, way, most)));
            }
        }
    }

    fn check(&mut self, now: Time, flow: FlowId) {
        self.check_within(now, flow, None);
    }

    fn check_within(&mut self, now: Time, flow: FlowId, turn: Option<(FlowId, Way, u64)>) {
        if self.checks.has(flow) {
            let outcome = self.with_checks(now, turn, |checks, ask, pace| checks.pump(ask, pace, flow));
            self.checked(now, outcome);
        }
    }

    /// Lets the checks ask the gate and keep to its limits, which are taken out of it for that time: what a flow shows is
    /// decided without them.
    fn with_checks<T>(
        &mut self,
        now: Time,
        turn: Option<(FlowId, Way, u64)>,
        handle: impl FnOnce(&mut Checks, Ask<'_>, &mut Pace<'_>) -> T,
    ) -> T {
        let mut limits = std::mem::take(self.gate.limits());
        let mut pace = Pace::new(&mut limits, &mut self.queues, now).serving(turn);
        let ask = &mut |flow, shown: &_| self.gate.handle_flight(now, flow, shown);
        let result = handle(&mut self.checks, ask, &mut pace);
        *self.gate.limits() = limits;
        result
    }

    fn checked(&mut self, now: Time, outcome: Outcome) {
        match outcome {
            Outcome::Waiting => {}
            Outcome::Ended(ended) => self.closed(now, ended),
            Outcome::Free(flow, handed) => {
                let mut pace = Pace::new(self.gate.limits(), &mut self.queues, now);
                if let Some(ended) = self.relay.adopt(&self.poller, &mut pace, flow, handed) {
                    self.closed(now, ended);
                }
            }
        }
    }

    fn closed(&mut self, now: Time, ended: Ended) {
        self.gate.handle_closed(now, ended.flow, ended.by, ended.counters);
    }
}

/// Closes a socket with RST.
fn refuse(socket: &impl AsFd) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
}

/// The address without scope and flow label, which are no part of a flow's name.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Commands;

    #[test]
    fn sizes_itself_to_the_descriptors_it_has() {
        let bounds = |wanted: (u32, u32), descriptors, has_ports| {
            let (max_connections, max_inbound_connections) = wanted;
            let limits = cofferdam_policy::file::default_network().limits;
            let wanted = LimitsConfig { max_connections, max_inbound_connections, ..limits };
            let limits = Room { descriptors, has_ports }.limits(&wanted);
            (limits.max_connections, limits.max_inbound_connections)
        };
        let outward = |wanted, descriptors| bounds((wanted, 1024), descriptors, false).0;
        let flows = |descriptors, has_ports| Room { descriptors, has_ports }.flows();
        assert_eq!(outward(4096, Some(20_000)), 4096);
        assert_eq!(outward(0, Some(20_000)), 9950);
        assert_eq!(outward(4096, Some(1024)), 462);
        assert_eq!(outward(4096, Some(10)), 1);
        assert_eq!(outward(0, None), 0);
        // 9,900 connections fit into 20,000 descriptors also where ports are published, and strangers do not take all of the room.
        assert_eq!(bounds((4096, 1024), Some(20_000), true), (4096, 1024));
        assert_eq!(bounds((0, 1024), Some(20_000), true), (9902, 1024));
        assert_eq!(bounds((0, 0), Some(20_000), true), (9902, 4951));
        assert_eq!(bounds((4096, 1024), Some(1024), true), (414, 207));
        assert_eq!(bounds((4096, 10), Some(1024), true), (414, 10));
        assert_eq!(bounds((4096, 1024), Some(10), true), (1, 1));
        assert_eq!(bounds((0, 0), None, true), (0, 0));
        assert_eq!([flows(Some(20_000), false), flows(Some(1024), true), flows(None, true)], [9950, 414, 0]);
    }

    /// A gateway in a thread of its own, which is sealed for good, with sockets in place of TUN and supervisor.
    struct Served {
        tun: OwnedFd,
        events: OwnedFd,
        machine: OwnedFd,
        commands: Commands,
        lifeline: OwnedFd,
        thread: std::thread::JoinHandle<Result<(), ServeError>>,
    }

    fn serve_one() -> Served {
        let pair = || cofferdam_sys::fdpass::pair().unwrap();
        let ((tun, tun_in), (events, events_in), (machine, machine_in)) = (pair(), pair(), pair());
        let ((ready, ready_in), (lifeline_in, lifeline)) =
            (rustix::pipe::pipe().unwrap(), rustix::pipe::pipe().unwrap());
        rustix::io::ioctl_fionbio(&tun_in, true).unwrap();
        let network = cofferdam_policy::file::default_network();
        let v6 = crate::Link6 { guest: "fd00::2".parse().unwrap(), gateway: "fd00::1".parse().unwrap(), prefix: 64 };
        let (guest4, gateway4) = ([172, 16, 0, 2].into(), [172, 16, 0, 1].into());
        let link = crate::LinkAddresses { guest4, gateway4, prefix4: 30, v6: Some(v6) };
        let policy = Arc::new(cofferdam_policy::Policy::compile(&network.policy, Classifier::default()));
        let config = GatewayConfig { network, policy, link, resolvers: Vec::new(), anchors: Vec::new(), seed: [3; 32] };
        let fds = GatewayFds {
            tun: tun_in,
            listeners: Vec::new(),
            broker: None,
            ports: Vec::new(),
            host_sockets: Vec::new(),
            dialer: None,
        };
        let (commands, commands_in) = Commands::pair().unwrap();
        let channels = Channels {
            events: events_in,
            machine: machine_in,
            capture: None,
            commands: Some(commands_in),
            ready: ready_in,
            lifeline: lifeline_in,
        };
        let thread = std::thread::spawn(move || serve(config, fds, channels));
        assert_eq!(rustix::io::read(&ready, &mut [0; 1]).unwrap(), 1);
        Served { tun, events, machine, commands, lifeline, thread }
    }

    /// A datagram without payload from the guest, as it comes out of a TUN. Its checksum is left to whoever reads it.
    fn datagram(to: IpAddr) -> Vec<u8> {
        let udp = [0x10, 0, 0, 9, 0, 8, 0, 0];
        let ip = match to {
            IpAddr::V4(to) => {
                let mut ip = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 172, 16, 0, 2];
                ip.extend(to.octets());
                let sum: u32 = ip.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
                let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                ip
            }
            IpAddr::V6(to) => {
                let guest: std::net::Ipv6Addr = "fd00::2".parse().unwrap();
                [&[0x60, 0, 0, 0, 0, 8, 17, 64][..], &guest.octets(), &to.octets()].concat()
            }
        };
        // The header of virtio: the checksum is partial, from the beginning of UDP, at 6.
        let [start, _] = u16::try_from(ip.len()).unwrap().to_le_bytes();
        [&[1, 0, 0, 0, 0, 0, start, 0, 6, 0][..], &ip, &udp].concat()
    }

    fn next(socket: &OwnedFd) -> String {
        let mut buffer = vec![0; 65_536];
        let (len, _) = rustix::net::recv(socket, &mut buffer[..], rustix::net::RecvFlags::empty()).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[test]
    fn what_the_supervisor_says_of_the_machine_counts_for_the_next_packet() {
        let served = serve_one();
        // Reserved for documentation, and so denied either way.
        for (address, before, after) in [("192.0.2.9", "reserved", "host"), ("2001:db8::9", "reserved", "host")] {
            let address: IpAddr = address.parse().unwrap();
            for (addresses, group) in [(vec![], before), (vec![address], after), (vec![], before)] {
                let snapshot = cofferdam_sys::netlink::HostSnapshot { addresses, ..Default::default() };
                rustix::io::write(&served.machine, &crate::machine_message(&snapshot).unwrap()).unwrap();
                rustix::io::write(&served.tun, &datagram(address)).unwrap();
                let event = next(&served.events);
                assert!(event.contains("flow.denied") && event.contains(&format!("\"group\":\"{group}\"")), "{event}");
            }
        }
        drop(served.lifeline);
        assert!(served.thread.join().unwrap().is_ok());
    }

    #[test]
    fn a_gateway_that_cannot_read_what_it_is_told_of_the_machine_ends() {
        let served = serve_one();
        rustix::io::write(&served.machine, &[2, 0, 0, 0, 0]).unwrap();
        assert!(matches!(served.thread.join().unwrap(), Err(ServeError::Machine)));
        let served = serve_one();
        drop(served.machine);
        assert!(served.thread.join().unwrap().is_ok(), "the supervisor is gone");
    }

    fn wait_for(commands: &Commands) -> crate::CommandAnswer {
        loop {
            if let Some(answer) = commands.answer().unwrap() {
                return answer;
            }
            let mut fds = [rustix::event::PollFd::new(commands, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
        }
    }

    #[test]
    fn a_policy_that_comes_counts_from_its_answer_on() {
        let mut served = serve_one();
        let mut network = cofferdam_policy::file::default_network();
        for (rules, expected) in [
            ("deny@8.8.8.8,deny@[2001:4860:4860::8888]", ["deny@8.8.8.8", "deny@[2001:4860:4860::8888]"]),
            ("deny@any", ["deny@any", "deny@any"]),
        ] {
            network.policy.rules = cofferdam_policy::grammar::parse_rules(rules).unwrap();
            let number = served.commands.replace(&network).unwrap();
            assert_eq!(wait_for(&served.commands), crate::CommandAnswer { number, result: Ok(()) });
            assert!(next(&served.events).contains("policy.changed"));
            for (address, rule) in ["8.8.8.8", "2001:4860:4860::8888"].into_iter().zip(expected) {
                rustix::io::write(&served.tun, &datagram(address.parse().unwrap())).unwrap();
                let event = next(&served.events);
                assert!(event.contains("flow.denied") && event.contains(rule), "{event}");
            }
        }
        drop(served.lifeline);
        assert!(served.thread.join().unwrap().is_ok());
    }

    #[test]
    fn what_has_happened_is_told_before_it_says_so() {
        let mut served = serve_one();
        for address in ["192.0.2.9", "2001:db8::9"] {
            rustix::io::write(&served.tun, &datagram(address.parse().unwrap())).unwrap();
            // The packet may be read in the turn of the command, or in one before.
            let number = served.commands.tell().unwrap();
            assert_eq!(wait_for(&served.commands), crate::CommandAnswer { number, result: Ok(()) });
            let mut buffer = [0; 4096];
            let flags = rustix::net::RecvFlags::DONTWAIT;
            let (len, _) = rustix::net::recv(&served.events, &mut buffer[..], flags).unwrap();
            assert!(String::from_utf8_lossy(&buffer[..len]).contains("flow.denied"));
        }
    }

    #[test]
    fn settings_that_cannot_be_used_change_nothing() {
        let mut served = serve_one();
        let mut network = cofferdam_policy::file::default_network();
        network.enabled = false;
        let number = served.commands.replace(&network).unwrap();
        let answer = wait_for(&served.commands);
        assert_eq!(answer.number, number);
        assert!(answer.result.unwrap_err().contains("interface"));
        rustix::io::write(&served.tun, &datagram("192.0.2.9".parse().unwrap())).unwrap();
        assert!(next(&served.events).contains("default egress deny"));
    }

    #[test]
    fn a_gateway_that_cannot_read_a_command_ends() {
        let served = serve_one();
        rustix::io::write(&served.commands, b"?").unwrap();
        assert!(matches!(served.thread.join().unwrap(), Err(ServeError::Command)));
    }
}
