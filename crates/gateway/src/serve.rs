//! The gateway process and its loop.
//!
//! One thread, one epoll. Each turn: wait; hand every event to its owner (the gate, the relay, the resolver); after each
//! input do what the gate asks until it asks for nothing more; then send what was gathered (rows of datagrams, events).
//! Sources have a budget per turn, so that none can starve the others.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cofferdam_gate::{Accepted, Gate, GateConfig, Link4, Link6, Output};
use cofferdam_model::{CloseReason, FlowId, Time};
use cofferdam_names::{Families, Rebinding, Resolver, ResolverConfig};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::clock::Clock;
use crate::config::{Channels, GatewayConfig};
use crate::dial::{Dials, Progress};
use crate::dns::Dns;
use crate::echo::Echo;
use crate::events::EventWriter;
use crate::netns::GatewayFds;
use crate::patience::Patience;
use crate::poller::{Poller, Ready, Token, Watch};
use crate::relay::{Ended, Relay, Side};
use crate::seal::{self, SealError, Sealed};
use crate::udp::Udp;

/// Packets read from the TUN in one turn.
const PACKETS: usize = 64;

/// Connections accepted from one listener in one turn.
const ACCEPTS: usize = 256;

/// A turn with no more than this, and no bulk transfer, did little: a step of a ping-pong, or of a connection being made.
const LITTLE_EVENTS: usize = 2;
const LITTLE_PACKETS: usize = 1;

/// The `virtio_net_hdr` and the largest packet.
const FRAME: usize = cofferdam_gate::wire::virtio::HEADER_LEN + 65_535 + 40;

/// Descriptors kept free for what is not a TCP flow: TUN, listeners, channels, pipes, and some sockets for DNS and UDP.
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
}

/// The gateway process: confines itself, says that it is ready, and serves until the supervisor is gone.
///
/// # Errors
/// When it could not be confined or its loop could not be made or kept running; nothing of a guest is read before it is
/// confined.
pub fn serve(config: GatewayConfig, fds: GatewayFds, channels: Channels) -> Result<(), ServeError> {
    let descriptors = raise_descriptor_limit();
    let gateway =
        Gateway::new(config, fds, channels.events, descriptors).map_err(|source| ServeError::Poller { source })?;
    gateway
        .poller
        .add(&channels.lifeline, Token::Lifeline, Watch::Read)
        .map_err(|source| ServeError::Poller { source })?;
    let sealed = seal::seal()?;
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
    relay: Relay,
    udp: Udp,
    echo: Echo,
    dns: Dns,
    events: EventWriter,
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
}

/// Sets the soft limit of descriptors to the hard one and says what it is.
fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current
}

/// The bound on TCP flows, two descriptors each, that the descriptors allow; 0 stands for unlimited.
fn connections_within(wanted: u32, descriptors: Option<u64>) -> u32 {
    let Some(descriptors) = descriptors else { return wanted };
    let room = u32::try_from(descriptors.saturating_sub(RESERVED_DESCRIPTORS) / 2).unwrap_or(u32::MAX).max(1);
    if wanted == 0 { room } else { wanted.min(room) }
}

fn gate_config(config: &GatewayConfig, descriptors: Option<u64>) -> GateConfig {
    let mut limits = config.network.limits.clone();
    limits.max_connections = connections_within(limits.max_connections, descriptors);
    GateConfig {
        v4: Link4 { guest: config.link.guest4, gateway: config.link.gateway4, prefix: config.link.prefix4 },
        v6: config.link.v6.as_ref().map(|v6| Link6 { guest: v6.guest, gateway: v6.gateway }),
        mtu: config.network.interface.mtu,
        deny_with: config.network.deny_with,
        limits,
        seed: config.seed,
    }
}

fn resolver_config(config: &GatewayConfig) -> ResolverConfig {
    let v6 = config.link.v6.as_ref().map(|v6| v6.gateway.into());
    let rebinding = if config.network.dns.rebind_protection {
        Rebinding::guarded_by(&config.network.policy, config.policy.classifier().clone())
    } else {
        Rebinding::Allow
    };
    ResolverConfig {
        upstreams: config.resolvers.clone(),
        gateway: std::iter::once(config.link.gateway4.into()).chain(v6).collect(),
        families: Families { ipv4: true, ipv6: v6.is_some() },
        query_timeout: config.network.dns.query_timeout,
        rebinding,
        seed: config.seed,
    }
}

impl Gateway {
    fn new(config: GatewayConfig, fds: GatewayFds, events: OwnedFd, descriptors: Option<u64>) -> io::Result<Gateway> {
        let poller = Poller::new()?;
        poller.add(&fds.tun, Token::Tun, Watch::Read)?;
        for (index, listener) in fds.listeners.iter().enumerate() {
            poller.add(listener, Token::Listener(index), Watch::Read)?;
        }
        let resolver = Resolver::new(resolver_config(&config), Arc::clone(&config.policy));
        Ok(Gateway {
            poller,
            clock: Clock::start(),
            spare: fds.tun.try_clone().ok(),
            tun: fds.tun,
            listeners: fds.listeners,
            gate: Gate::new(gate_config(&config, descriptors), Arc::clone(&config.policy)),
            dials: Dials::default(),
            relay: Relay::new(),
            udp: Udp::new(),
            echo: Echo::new(),
            dns: Dns::new(resolver),
            events: EventWriter::new(events),
            frame: vec![0; FRAME],
            expected: [0; 2],
            patience: Patience::default(),
            packets: 0,
            little: false,
            stop: false,
        })
    }

    /// The loop. Only a sealed process gets here.
    fn run(mut self, _sealed: &Sealed) -> Result<(), ServeError> {
        let mut ready = Vec::new();
        let mut ended = Vec::new();
        while !self.stop {
            let now = self.wait(&mut ready).map_err(|source| ServeError::Wait { source })?;
            self.packets = 0;
            self.little = ready.len() <= LITTLE_EVENTS;
            for (token, ready) in ready.drain(..) {
                self.dispatch(now, token, ready);
            }
            self.little &= self.packets <= LITTLE_PACKETS && !self.relay.take_bulk();
            self.relay.feed(&self.poller, &mut ended);
            for ended in ended.drain(..) {
                self.closed(now, ended);
            }
            self.dns.feed(&mut self.gate, now);
            self.drain(now);
            self.time_out(now);
            self.udp.flush(&mut self.gate, now);
            self.drain(now);
            self.events.flush(now);
        }
        let now = self.clock.now();
        for ended in self.relay.reset_all(CloseReason::Shutdown) {
            self.closed(now, ended);
        }
        self.gate.handle_shutdown(now);
        self.drain(now);
        self.events.flush(now);
        Ok(())
    }

    /// Waits for events and says what time it is then. Looks again for a while before it sleeps, where that pays.
    fn wait(&mut self, ready: &mut Vec<(Token, Ready)>) -> io::Result<Time> {
        let timeout = self.timeout();
        let start = self.clock.now();
        if let Some(look) = self.patience.look(self.little).filter(|look| timeout.is_none_or(|t| t > *look)) {
            loop {
                self.poller.wait(Some(std::time::Duration::ZERO), ready)?;
                let now = self.clock.now();
                if !ready.is_empty() {
                    return Ok(now);
                }
                if now.since(start) >= look {
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

    fn timeout(&self) -> Option<std::time::Duration> {
        if self.relay.is_hungry() || self.dns.is_hungry() {
            return Some(std::time::Duration::ZERO);
        }
        let next = [self.gate.poll_timeout(), self.dns.poll_timeout()].into_iter().flatten().min()?;
        Some(next.since(self.clock.now()))
    }

    fn time_out(&mut self, now: Time) {
        if self.gate.poll_timeout().is_some_and(|at| at <= now) {
            self.gate.handle_timeout(now);
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
            Token::Listener(index) => self.accept(now, index, ACCEPTS),
            Token::Remote(flow) => match self.dials.handle_ready(&self.poller, flow) {
                Some(progress) => self.dialed(now, flow, progress),
                None => self.relayed(now, flow, Side::Remote, ready),
            },
            Token::Guest(flow) => self.relayed(now, flow, Side::Guest, ready),
            Token::Udp(flow) => self.udp.handle_ready(&mut self.gate, now, flow, ready),
            Token::Echo(flow) => self.echo.handle_ready(&mut self.gate, now, flow),
            Token::Upstream(id) => self.dns.handle_upstream(now, id, ready),
            Token::DnsClient(id) => self.dns.handle_connection(&mut self.gate, now, id, ready),
        }
        self.drain(now);
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
            Output::AbandonDial { flow } => drop(self.dials.take(flow)),
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
            Output::CloseFlow { flow } => match self.relay.reset(flow, CloseReason::Policy) {
                Some(ended) => self.closed(now, ended),
                None => self.dns.close_flow(&mut self.gate, now, flow),
            },
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
                    Some((dialed, watched)) => self.relay.insert(&self.poller, flow, socket, dialed, watched),
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
            Some(Accepted::Dns(flow)) => {
                let connection = (flow, socket, canonical(remote));
                if !self.dns.handle_accepted(&self.poller, &mut self.gate, now, connection) {
                    self.gate.handle_closed(now, flow, CloseReason::Error, Default::default());
                }
            }
            None => refuse(&socket),
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
        if let Some(ended) = self.relay.handle_ready(&self.poller, flow, side, ready) {
            self.closed(now, ended);
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

    #[test]
    fn sizes_itself_to_the_descriptors_it_has() {
        assert_eq!(connections_within(4096, Some(20_000)), 4096);
        assert_eq!(connections_within(0, Some(20_000)), 9950);
        assert_eq!(connections_within(4096, Some(1024)), 462);
        assert_eq!(connections_within(4096, Some(10)), 1);
        assert_eq!(connections_within(0, None), 0);
    }
}
