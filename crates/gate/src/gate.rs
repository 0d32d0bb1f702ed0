use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::{CloseReason, DomainName, FlowCounters, FlowId, Time};
use cofferdam_policy::{PinsFull, Policy};

use crate::api::{Accepted, DialError, DnsClient, EchoError, GateConfig, Output, UdpError};
use crate::wire::virtio::Offload;

/// The gate of one sandbox.
#[derive(Debug)]
pub struct Gate {
    policy: Arc<Policy>,
    outputs: VecDeque<Output>,
}

impl Gate {
    /// A gate with empty tables.
    #[must_use]
    pub fn new(config: GateConfig, policy: Arc<Policy>) -> Gate {
        let _ = config;
        Gate { policy, outputs: VecDeque::new() }
    }

    /// One frame as read from the TUN: the ten bytes of `virtio_net_hdr`, then the packet.
    pub fn handle_frame(&mut self, now: Time, frame: &[u8]) {
        let _ = (now, frame);
    }

    /// One packet that the guest sent.
    pub fn handle_packet(&mut self, now: Time, offload: Offload, packet: &[u8]) {
        let _ = (now, offload, packet);
    }

    /// The dial of `flow` has ended.
    pub fn handle_dialed(&mut self, now: Time, flow: FlowId, result: Result<(), DialError>) {
        let _ = (now, flow, result);
    }

    /// A connection was accepted: `guest` is its peer, `remote` the address it was made to. `None`: reset it.
    pub fn handle_accepted(&mut self, now: Time, guest: SocketAddr, remote: SocketAddr) -> Option<Accepted> {
        let _ = (now, guest, remote);
        None
    }

    /// An accepted TCP flow has ended, relayed or DNS.
    pub fn handle_closed(&mut self, now: Time, flow: FlowId, by: CloseReason, counters: FlowCounters) {
        let _ = (now, flow, by, counters);
    }

    /// The flow's UDP socket received `payload`; with `segment`, a batch of datagrams of that size.
    pub fn handle_udp_reply(&mut self, now: Time, flow: FlowId, payload: &[u8], segment: Option<u16>) {
        let _ = (now, flow, payload, segment);
    }

    /// The flow's UDP socket reported an error, or could not be opened.
    pub fn handle_udp_error(&mut self, now: Time, flow: FlowId, error: UdpError) {
        let _ = (now, flow, error);
    }

    /// The flow's ICMP socket received an echo reply.
    pub fn handle_echo_reply(&mut self, now: Time, flow: FlowId, sequence: u16, payload: &[u8]) {
        let _ = (now, flow, sequence, payload);
    }

    /// The flow's ICMP socket reported an error, or could not be opened.
    pub fn handle_echo_error(&mut self, now: Time, flow: FlowId, error: EchoError) {
        let _ = (now, flow, error);
    }

    /// The resolver's answer to a UDP query of the guest.
    pub fn handle_dns_answer(&mut self, now: Time, query: DnsClient, message: &[u8]) {
        let _ = (now, query, message);
    }

    /// The sandbox's DNS has told the guest that `name` has `address`.
    ///
    /// # Errors
    /// When the table of pins is full; the answer must not be delivered then.
    pub fn handle_pin(
        &mut self,
        now: Time,
        name: &DomainName,
        alias: bool,
        address: IpAddr,
        ttl: Duration,
    ) -> Result<(), PinsFull> {
        let _ = (now, name, alias, address, ttl);
        Ok(())
    }

    /// A deadline has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        let _ = now;
    }

    /// The gateway ends: reports what is still counted and the UDP and ICMP flows that are still open.
    pub fn handle_shutdown(&mut self, now: Time) {
        let _ = now;
    }

    /// What to do next; drain to `None` after each `handle_*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Gate::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// The policy that is in force.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }
}
