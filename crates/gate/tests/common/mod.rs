//! A gate on its own, with packets made and read by code that shares nothing with the gate's.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod observer;
pub(crate) mod packet;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_gate::{Gate, GateConfig, Link4, Link6, Offload, Output};
use cofferdam_model::{
    Action, Classifier, DenyWith, Destination, EventBody, FlowId, Group, HostNetwork, LimitsConfig, PolicyConfig,
    PortRange, RateLimits, Rule, Time,
};
use cofferdam_policy::Policy;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    pub(crate) fn guest(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(172, 16, 0, 2).into(),
            Family::V6 => Ipv6Addr::new(0xfd42, 0x6d73, 0x62, 0, 0, 0, 0, 2).into(),
        }
    }

    pub(crate) fn gateway(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(172, 16, 0, 1).into(),
            Family::V6 => Ipv6Addr::new(0xfd42, 0x6d73, 0x62, 0, 0, 0, 0, 1).into(),
        }
    }

    /// In group public, which the tests' policy allows. Nothing is ever sent anywhere.
    pub(crate) fn public(self) -> IpAddr {
        self.nth_public(1)
    }

    pub(crate) fn nth_public(self, n: u16) -> IpAddr {
        let [high, low] = n.to_be_bytes();
        match self {
            Family::V4 => Ipv4Addr::new(93, 184, high, low).into(),
            Family::V6 => Ipv6Addr::new(0x2606, 0x2800, 0, 0, 0, 0, 0, n).into(),
        }
    }

    /// In group private, which it denies.
    pub(crate) fn private(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(10, 77, 0, 5).into(),
            Family::V6 => Ipv6Addr::new(0xfd12, 0x3456, 0, 0, 0, 0, 0, 5).into(),
        }
    }

    pub(crate) fn loopback(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    pub(crate) fn header_len(self) -> usize {
        match self {
            Family::V4 => 20,
            Family::V6 => 40,
        }
    }
}

pub(crate) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(crate) fn allow(destination: Destination) -> Rule {
    Rule::egress(Action::Allow, destination)
}

pub(crate) fn allow_host_port(port: u16) -> Rule {
    Rule { ports: vec![PortRange { start: port, end: port }], ..allow(Destination::Group(Group::Host)) }
}

/// The default preset: public addresses, and DNS of the gateway.
pub(crate) fn public_only() -> PolicyConfig {
    let rules = vec![allow_host_port(53), allow(Destination::Group(Group::Public))];
    PolicyConfig { rules, ..PolicyConfig::default() }
}

pub(crate) fn gate_config() -> GateConfig {
    let (IpAddr::V4(guest4), IpAddr::V4(gateway4)) = (Family::V4.guest(), Family::V4.gateway()) else { unreachable!() };
    let (IpAddr::V6(guest6), IpAddr::V6(gateway6)) = (Family::V6.guest(), Family::V6.gateway()) else { unreachable!() };
    GateConfig {
        v4: Link4 { guest: guest4, gateway: gateway4, prefix: 30 },
        v6: Some(Link6 { guest: guest6, gateway: gateway6 }),
        mtu: 1500,
        deny_with: DenyWith::Reset,
        limits: LimitsConfig {
            max_connections: 4096,
            max_udp_connections: 1024,
            max_inbound_connections: 1024,
            connect_timeout: Duration::from_secs(75),
            rates: RateLimits::default(),
            budgets: Vec::new(),
        },
        room: 0,
        host_sockets: Vec::new(),
        pin_floor: Duration::from_secs(60),
        witness: Duration::ZERO,
        seed: [7; 32],
    }
}

pub(crate) fn compile(policy: &PolicyConfig) -> Arc<Policy> {
    let addresses = vec![Family::V4.gateway(), Family::V6.gateway()];
    Arc::new(Policy::compile(policy, Classifier::new(HostNetwork { addresses, ..HostNetwork::default() })))
}

/// A gate and a clock.
pub(crate) struct World {
    pub(crate) gate: Gate,
    pub(crate) now: Time,
}

impl World {
    pub(crate) fn new() -> World {
        World::with(public_only(), |_| {})
    }

    pub(crate) fn with(policy: PolicyConfig, change: impl FnOnce(&mut GateConfig)) -> World {
        let mut config = gate_config();
        change(&mut config);
        World { gate: Gate::new(config, compile(&policy)), now: Time::from_nanos(5_000_000_000) }
    }

    pub(crate) fn drain(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.gate.poll_output()).collect()
    }

    /// The guest sends a packet.
    pub(crate) fn send(&mut self, packet: &[u8]) -> Vec<Output> {
        self.send_with(Offload::NONE, packet)
    }

    pub(crate) fn send_with(&mut self, offload: Offload, packet: &[u8]) -> Vec<Output> {
        self.gate.handle_packet(self.now, offload, packet);
        self.drain()
    }

    /// Time passes, with every deadline met exactly. That what has moved is asked for once a second is left out.
    pub(crate) fn pass(&mut self, time: Duration) -> Vec<Output> {
        let mut outputs = self.pass_and_ask(time);
        outputs.retain(|output| !matches!(output, Output::AskMoved));
        outputs
    }

    /// The same with everything.
    pub(crate) fn pass_and_ask(&mut self, time: Duration) -> Vec<Output> {
        let end = self.now + time;
        let mut outputs = Vec::new();
        while let Some(deadline) = self.gate.poll_timeout().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.gate.handle_timeout(self.now);
            outputs.extend(self.drain());
            assert!(self.gate.poll_timeout().is_none_or(|next| next > deadline), "the gate wants to be woken forever");
        }
        self.now = end;
        outputs
    }

    pub(crate) fn dialed(&mut self, flow: FlowId, result: Result<(), cofferdam_gate::DialError>) -> Vec<Output> {
        self.gate.handle_dialed(self.now, flow, result);
        self.drain()
    }

    /// The count of a drop that was reported in `outputs`.
    pub(crate) fn drops(outputs: &[Output]) -> Vec<cofferdam_model::DropReason> {
        let reason = |event: &EventBody| match event {
            EventBody::GatewayDropped { reason, .. } => Some(*reason),
            _ => None,
        };
        events(outputs).into_iter().filter_map(reason).collect()
    }
}

pub(crate) fn events(outputs: &[Output]) -> Vec<&EventBody> {
    fn event(output: &Output) -> Option<&EventBody> {
        if let Output::Event(event) = output { Some(event) } else { None }
    }
    outputs.iter().filter_map(event).collect()
}

/// The packets for the guest, checked and taken apart.
pub(crate) fn emitted(outputs: &[Output]) -> Vec<packet::Seen> {
    let packet = |output: &Output| match output {
        Output::Emit { offload, packet } => Some(packet::Seen::read(*offload, packet)),
        _ => None,
    };
    outputs.iter().filter_map(packet).collect()
}

/// The outputs that are neither packets nor events.
pub(crate) fn actions(outputs: &[Output]) -> Vec<&Output> {
    outputs.iter().filter(|output| !matches!(output, Output::Emit { .. } | Output::Event(_))).collect()
}

pub(crate) fn names(outputs: &[Output]) -> Vec<&'static str> {
    let name = |output: &Output| match output {
        Output::Dial { .. } => "dial",
        Output::AbandonDial { .. } => "abandon",
        Output::Emit { .. } => "emit",
        Output::OpenUdp { .. } => "open udp",
        Output::SendUdp { .. } => "send udp",
        Output::CloseUdp { .. } => "close udp",
        Output::OpenEcho { .. } => "open echo",
        Output::SendEcho { .. } => "send echo",
        Output::CloseEcho { .. } => "close echo",
        Output::Dns { .. } => "dns",
        Output::CloseFlow { .. } => "close flow",
        Output::DialGuest { .. } => "dial guest",
        Output::SendPeer { .. } => "send peer",
        Output::CloseUsedUp { .. } => "close used up",
        Output::AskMoved => "ask moved",
        Output::DialSocket { .. } => "dial socket",
        Output::AbandonSocket { .. } => "abandon socket",
        Output::Event(event) => match event {
            EventBody::FlowOpened { .. } => "opened",
            EventBody::FlowShown { .. } => "shown",
            EventBody::FlowDenied { .. } => "denied",
            EventBody::FlowProgress { .. } => "progress",
            EventBody::FlowClosed { .. } => "closed",
            EventBody::FlowFailed { .. } => "failed",
            EventBody::LimitReached { .. } => "limit",
            EventBody::GatewayDropped { .. } => "dropped",
            EventBody::GatewayNotice { .. } => "notice",
            _ => "other event",
        },
    };
    outputs.iter().map(name).collect()
}

/// The flow that was asked for first.
pub(crate) fn flow(outputs: &[Output]) -> FlowId {
    let flow = outputs.iter().find_map(|output| match output {
        Output::Dial { flow, .. } | Output::OpenUdp { flow, .. } | Output::OpenEcho { flow, .. } => Some(*flow),
        _ => None,
    });
    flow.unwrap_or_else(|| panic!("nothing was opened: {outputs:?}"))
}
