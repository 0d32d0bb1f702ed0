//! Watches what a gate does and holds it to what must be true whatever the guest and the network do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use cofferdam_gate::Output;
use cofferdam_model::{EventBody, FlowId};

use super::packet::Seen;

/// The sockets a shell would hold, by flow.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    /// Dials that wait for an answer.
    pub(crate) dialing: BTreeMap<FlowId, SocketAddr>,
    /// Dials that were answered with success and whose connection was not accepted yet.
    pub(crate) dialed: BTreeSet<FlowId>,
    /// Accepted connections, relayed or DNS.
    pub(crate) live: BTreeSet<FlowId>,
    /// Dials to the guest that wait for an answer.
    pub(crate) guest_dialing: BTreeSet<FlowId>,
    pub(crate) udp: BTreeMap<FlowId, SocketAddr>,
    pub(crate) echo: BTreeMap<FlowId, IpAddr>,
    /// Flows that were reported as opened and not yet as closed.
    pub(crate) reported: BTreeSet<FlowId>,
    used: BTreeSet<FlowId>,
}

impl Observer {
    pub(crate) fn see_all(&mut self, outputs: &[Output]) {
        outputs.iter().for_each(|output| self.see(output));
        assert!(self.dialing.len() + self.dialed.len() <= 1024, "pending connections");
    }

    fn see(&mut self, output: &Output) {
        match output {
            Output::Dial { flow, remote, fallback, permit } => {
                self.use_flow(*flow);
                let alias = super::BOTH.iter().any(|family| family.gateway() == permit.peer());
                assert_eq!(fallback.is_some(), alias);
                assert_eq!(remote.ip().is_loopback(), alias, "only the host alias leads to the host's loopback");
                assert!(alias || remote.ip() == permit.peer());
                assert_eq!(permit.port(), Some(remote.port()));
                self.dialing.insert(*flow, *remote);
            }
            Output::AbandonDial { flow } => {
                let known =
                    self.dialing.remove(flow).is_some() || self.dialed.remove(flow) || self.guest_dialing.remove(flow);
                assert!(known, "abandoned {flow:?}, which waits for nothing");
            }
            Output::Emit { offload, packet } => {
                let seen = Seen::read_unsummed(*offload, packet);
                if super::BOTH.iter().any(|family| family.guest() == seen.dst) {
                    // Reading checks every length and sum.
                    Seen::read(*offload, packet);
                } else {
                    // What does not go to the guest is one of its own SYNs, going back to the kernel. Its sum, when it
                    // is declared partial, is what the guest made it.
                    assert!(super::BOTH.iter().any(|family| family.guest() == seen.src));
                    assert_eq!((seen.protocol, seen.body[13] & 0b1_0111), (6, 2), "not a SYN: {seen:?}");
                }
            }
            Output::OpenUdp { flow, remote, permit } => {
                self.use_flow(*flow);
                let alias = super::BOTH.iter().any(|family| family.gateway() == permit.peer());
                assert_eq!(remote.ip().is_loopback(), alias);
                self.udp.insert(*flow, *remote);
            }
            Output::SendUdp { flow, payload, segment, .. } => {
                assert!(self.udp.contains_key(flow), "sends on a closed flow");
                assert!(segment.is_none_or(|size| size > 0 && usize::from(size) < payload.len()));
            }
            Output::CloseUdp { flow } => assert!(self.udp.remove(flow).is_some()),
            Output::OpenEcho { flow, remote, .. } => {
                self.use_flow(*flow);
                assert!(!remote.is_loopback());
                self.echo.insert(*flow, *remote);
                assert!(self.echo.len() <= 256);
            }
            Output::SendEcho { flow, .. } => assert!(self.echo.contains_key(flow), "sends on a closed flow"),
            Output::CloseEcho { flow } => assert!(self.echo.remove(flow).is_some()),
            Output::Dns { query, .. } => {
                assert_eq!(query.server.port(), 53);
                assert!(super::BOTH.iter().any(|family| family.guest() == query.guest.ip()));
            }
            Output::CloseFlow { flow } | Output::CloseUsedUp { flow } => assert!(self.live.contains(flow)),
            Output::DialGuest { flow, source, guest, permit } => {
                self.use_flow(*flow);
                assert!(super::BOTH.iter().any(|family| family.guest() == guest.ip()));
                assert_eq!(permit.port(), Some(guest.port()));
                let own = super::BOTH.iter().any(|family| family.gateway() == source.ip());
                assert!(own || source.ip() == permit.peer());
                assert!(!source.ip().is_loopback() && source.is_ipv4() == guest.is_ipv4());
                assert!(super::BOTH.iter().all(|family| family.guest() != source.ip()));
                self.guest_dialing.insert(*flow);
            }
            Output::SendPeer { payload, segment, .. } => {
                assert!(segment.is_none_or(|size| size > 0 && usize::from(size) < payload.len()));
            }
            Output::AskMoved => {}
            Output::DialSocket { .. } | Output::AbandonSocket { .. } => {
                panic!("no packet leads to a socket of the host")
            }
            Output::Event(event) => self.see_event(event),
        }
    }

    fn see_event(&mut self, event: &EventBody) {
        match event {
            EventBody::FlowOpened { flow, .. } => assert!(self.reported.insert(*flow), "opened twice"),
            EventBody::FlowClosed { flow, .. } => assert!(self.reported.remove(flow), "closed before it was opened"),
            EventBody::FlowFailed { flow, .. } => {
                self.reported.remove(flow);
            }
            EventBody::LimitReached { count, .. } | EventBody::GatewayDropped { count, .. } => assert!(*count > 0),
            _ => {}
        }
    }

    fn use_flow(&mut self, flow: FlowId) {
        assert!(self.used.insert(flow), "{flow:?} is used twice");
    }
}
