//! Published ports: the host's sockets, and the connections of peers on their way to the guest.
//!
//! A connection that was accepted waits here until the gate has decided, a socket towards the guest is there and connected.
//! Then both go to the relay. Whatever goes wrong before resets it, so that the peer sees `ECONNRESET`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use cofferdam_gate::{DialError, Fragmentation, Gate, Published};
use cofferdam_model::{FlowId, PortId, PortProtocol, PublishedPort, Time};
use cofferdam_policy::Permit;
use cofferdam_sys::datagram::{self, Datagram, Inbox};
use cofferdam_sys::socket;
use rustix::io::Errno;
use rustix::net::sockopt;

use crate::broker::{Delivered, Stock};
use crate::errno::dial_error;
use crate::hash::FlowHash;
use crate::path::Path;
use crate::poller::{Poller, Token, Watch};
use crate::udp::errno_of;

/// Receive calls per UDP port and turn.
const TURNS: usize = 4;

/// A published port with its socket: listening, or bound for datagrams, and non-blocking.
#[derive(Debug)]
pub struct PortSocket {
    pub id: PortId,
    /// As it is, with the port that was picked.
    pub port: PublishedPort,
    pub socket: OwnedFd,
}

/// The published ports of one gateway.
pub(crate) struct Ports {
    ports: BTreeMap<PortId, Port>,
    /// `None`: no port was to be published, ever.
    stock: Option<Stock>,
    /// Accepted connections.
    peers: HashMap<FlowId, Peer, FlowHash>,
    /// Those that wait for a socket towards the guest.
    waiting: VecDeque<FlowId>,
    /// Made when the first datagram comes: it takes two megabytes of address space.
    inbox: Option<Inbox>,
}

struct Port {
    port: PublishedPort,
    socket: OwnedFd,
    path: Path,
    /// Cleared when the kernel refuses to segment.
    segmentation: bool,
}

struct Peer {
    host: OwnedFd,
    to: Option<To>,
    guest: Option<OwnedFd>,
}

/// Where a connection goes.
struct To {
    source: SocketAddr,
    guest: SocketAddr,
}

/// How far the way to the guest has come.
pub(crate) type Reached = Option<Result<(), DialError>>;

impl Ports {
    pub(crate) fn new(broker: Option<OwnedFd>) -> Ports {
        Ports {
            ports: BTreeMap::new(),
            stock: broker.map(Stock::new),
            peers: HashMap::default(),
            waiting: VecDeque::new(),
            inbox: None,
        }
    }

    /// The channel to the broker.
    pub(crate) fn broker(&self) -> Option<impl AsFd + '_> {
        self.stock.as_ref().map(Stock::channel)
    }

    /// Whether ports can be published at all.
    pub(crate) fn can_publish(&self) -> bool {
        self.stock.is_some()
    }

    /// Serves a port from here on.
    pub(crate) fn publish(&mut self, poller: &Poller, port: PortSocket) -> std::io::Result<()> {
        let PortSocket { id, port, socket } = port;
        let ipv6 = port.host_bind.is_ipv6();
        match port.protocol {
            // The first connection should not have to wait for it.
            PortProtocol::Tcp => self.stock.iter_mut().for_each(|stock| {
                if let Some(spare) = stock.take(ipv6) {
                    stock.put_back(ipv6, spare);
                }
            }),
            // It only helps: without it each datagram comes alone.
            PortProtocol::Udp => {
                let _ = socket::enable_udp_gro(&socket);
                if port.host_bind.is_unspecified() {
                    // So that answers come from the address that was asked.
                    datagram::tell_destination(&socket, ipv6)?;
                }
            }
        }
        poller.add(&socket, Token::Port(id), Watch::Read)?;
        self.ports.insert(id, Port { port, socket, path: Path::new(ipv6), segmentation: true });
        Ok(())
    }

    /// Serves a port no more, and says which it was.
    pub(crate) fn withdraw(&mut self, id: PortId) -> Option<PublishedPort> {
        self.ports.remove(&id).map(|port| port.port)
    }

    /// The port, and its socket.
    pub(crate) fn find(&self, id: PortId) -> Option<(Published, PortProtocol, &OwnedFd)> {
        let Port { port, socket, .. } = self.ports.get(&id)?;
        Some((Published { guest_port: port.guest_port }, port.protocol, socket))
    }

    /// Keeps the socket of a connection that the gate lets in.
    pub(crate) fn hold(&mut self, flow: FlowId, host: OwnedFd) {
        self.peers.insert(flow, Peer { host, to: None, guest: None });
    }

    /// Goes on to the guest. The permit is used up.
    pub(crate) fn dial(
        &mut self,
        poller: &Poller,
        flow: FlowId,
        source: SocketAddr,
        guest: SocketAddr,
        _permit: Permit,
    ) -> Reached {
        let Some(peer) = self.peers.get_mut(&flow) else { return Some(Err(DialError::Resources)) };
        peer.to = Some(To { source, guest });
        self.attempt(poller, flow)
    }

    fn attempt(&mut self, poller: &Poller, flow: FlowId) -> Reached {
        let Some((peer, to)) = self.peers.get_mut(&flow).and_then(|peer| peer.to.take().map(|to| (peer, to))) else {
            return Some(Err(DialError::Resources));
        };
        let Some(stock) = &mut self.stock else { return Some(Err(DialError::Resources)) };
        let Some(socket) = stock.take(to.guest.is_ipv6()) else {
            peer.to = Some(to);
            self.waiting.push_back(flow);
            return None;
        };
        let dialed = match connect(poller, flow, socket, Some(to.source), to.guest) {
            // Taken: by another connection of the same peer to this service, or one of the guest's. The gateway stands for it then.
            Err(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL) => match stock.take(to.guest.is_ipv6()) {
                Some(another) => connect(poller, flow, another, None, to.guest),
                None => Err(Errno::NOBUFS),
            },
            dialed => dialed,
        };
        match dialed {
            Ok((socket, connected)) => {
                peer.guest = Some(socket);
                connected.then_some(Ok(()))
            }
            Err(errno) => Some(Err(dial_error(errno))),
        }
    }

    /// The broker has sent something. The flows that have reached an end by that.
    pub(crate) fn handle_broker(&mut self, poller: &Poller) -> Vec<(FlowId, Result<(), DialError>)> {
        let delivered = self.stock.as_mut().map_or(Delivered::Gone, Stock::receive);
        let mut ends = Vec::new();
        match delivered {
            Delivered::Sockets => {
                // Those that find none wait on, behind the others.
                for flow in std::mem::take(&mut self.waiting) {
                    ends.extend(self.attempt(poller, flow).map(|result| (flow, result)));
                }
            }
            Delivered::NotYet => {}
            Delivered::Nothing => ends.extend(self.waiting.drain(..).map(|flow| (flow, Err(DialError::Resources)))),
            Delivered::Gone => {
                self.stock = None;
                ends.extend(self.waiting.drain(..).map(|flow| (flow, Err(DialError::Resources))));
            }
        }
        ends
    }

    /// The socket towards the guest has news. `None`: this flow is not (or no longer) connecting.
    pub(crate) fn handle_ready(&mut self, flow: FlowId) -> Reached {
        let guest = self.peers.get(&flow)?.guest.as_ref()?;
        Some(match sockopt::socket_error(guest) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(errno)) | Err(errno) => Err(dial_error(errno)),
        })
    }

    /// Gives away both sockets of a flow: the host's, and the guest's if it has come to that.
    pub(crate) fn take(&mut self, flow: FlowId) -> Option<(OwnedFd, Option<OwnedFd>)> {
        self.waiting.retain(|waiting| *waiting != flow);
        self.peers.remove(&flow).map(|peer| (peer.host, peer.guest))
    }

    /// A UDP port has datagrams.
    pub(crate) fn receive(&mut self, gate: &mut Gate, now: Time, id: PortId) {
        let Some(Port { port, socket, .. }) = self.ports.get(&id) else { return };
        let published = (id, Published { guest_port: port.guest_port });
        let inbox = self.inbox.get_or_insert_with(Inbox::new);
        for _ in 0..TURNS {
            // An error is about a datagram that went out, and is taken by asking.
            let Ok(count) = inbox.recv(socket) else { return };
            for Datagram { from, to, payload, segment } in inbox.iter() {
                gate.handle_peer_datagram(now, published, (from, to), payload, segment);
            }
            if count < datagram::BATCH {
                return;
            }
        }
    }

    /// Sends to a peer out of a UDP port. What cannot be sent is lost, as datagrams may be.
    pub(crate) fn send(
        &mut self,
        id: PortId,
        (peer, local): (SocketAddr, Option<IpAddr>),
        payload: &[u8],
        segment: Option<u16>,
        fragmentation: Fragmentation,
    ) {
        let Some(Port { socket, path, segmentation, .. }) = self.ports.get_mut(&id) else { return };
        let size = segment.map_or(payload.len(), usize::from);
        path.prepare(&*socket, size, fragmentation);
        let segment = segment.filter(|_| *segmentation);
        if segment.is_some() {
            match datagram::send_to(&*socket, peer, local, payload, segment).map_err(errno_of) {
                Ok(()) | Err(Errno::AGAIN) => return,
                Err(Errno::INVAL | Errno::IO | Errno::OPNOTSUPP) => *segmentation = false,
                Err(_) => {}
            }
        }
        let datagrams = if size == 0 { vec![payload] } else { payload.chunks(size).collect() };
        for one in datagrams {
            // The first error may belong to an earlier datagram, of another peer even.
            let again = |_| datagram::send_to(&*socket, peer, local, one, None);
            let _lost = datagram::send_to(&*socket, peer, local, one, None).or_else(again);
        }
    }
}

/// Connects a socket of the stock; `true` when it is connected already.
fn connect(
    poller: &Poller,
    flow: FlowId,
    socket: OwnedFd,
    source: Option<SocketAddr>,
    guest: SocketAddr,
) -> Result<(OwnedFd, bool), Errno> {
    if let Some(source) = source {
        rustix::net::bind(&socket, &source)?;
    }
    let connected = match rustix::net::connect(&socket, &guest) {
        Ok(()) => true,
        // As for dials: the handshake is usually over by the time that connect returns.
        Err(Errno::INPROGRESS) => match rustix::net::connect(&socket, &guest) {
            Ok(()) | Err(Errno::ISCONN) => true,
            Err(Errno::ALREADY | Errno::INPROGRESS) => false,
            Err(errno) => return Err(errno),
        },
        Err(errno) => return Err(errno),
    };
    poller.add(&socket, Token::Guest(flow), Watch::BothEdges).map_err(errno_of)?;
    Ok((socket, connected))
}

/// Sees to it that a flow is announced whose socket of the host is `host`.
pub(crate) fn watch(poller: &Poller, flow: FlowId, host: &OwnedFd) -> std::io::Result<()> {
    // None of these can fail on a TCP socket.
    let _ = sockopt::set_socket_oobinline(host, true);
    let _ = sockopt::set_tcp_nodelay(host, true);
    let _ = sockopt::set_socket_keepalive(host, true);
    poller.add(host, Token::Remote(flow), Watch::BothEdges)
}

/// Closes a connection with RST.
pub(crate) fn reset(socket: &OwnedFd) {
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}
