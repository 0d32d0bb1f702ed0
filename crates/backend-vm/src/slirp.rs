//! QEMU's own network, for hosts where there are no user namespaces and so no gateway.
//!
//! It forwards ports, and otherwise lets everything through that the user of QEMU reaches, or nothing. There is no place for
//! rules, and nobody who sees a flow: whoever wants it says so, and is told what it is without.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cofferdam_backend_ns::{LaunchError, SandboxSpec, Sockets};
use cofferdam_guest_protocol::{Network as GuestNetwork, Route};

use crate::arguments::{Network, PortForward, Reach, SLIRP_MAC};

/// What a guest's network card is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Engine {
    /// A gateway in a namespace, which decides on every flow.
    #[default]
    Gateway,
    /// QEMU's own network, and QEMU in no namespace.
    Slirp(Slirp),
}

/// What QEMU's own network is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slirp {
    /// `None`: the guest has no card.
    pub reach: Option<Reach>,
    pub forwards: Vec<PortForward>,
}

/// The network that QEMU makes for a guest: the defaults of `-netdev user`.
mod addresses {
    use super::{Ipv4Addr, Ipv6Addr};

    pub(super) const GUEST4: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 2, 15), 24);
    pub(super) const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    pub(super) const RESOLVER4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
    pub(super) const GUEST6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15), 64);
    pub(super) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
}

/// What QEMU's packets hold at most: it knows no other MTU.
const MTU: u32 = 1500;

impl Engine {
    /// The same for a guest that needs no network.
    pub(crate) fn without_card(&self) -> Engine {
        match self {
            Engine::Gateway => Engine::Gateway,
            Engine::Slirp(_) => Engine::Slirp(Slirp { reach: None, forwards: Vec::new() }),
        }
    }
}

impl Slirp {
    /// What there is to be said of it, in one line.
    pub(crate) fn notice(&self) -> String {
        let reach = match self.reach {
            None => "the guest has no network",
            Some(Reach::Forwards) => "the guest reaches nothing",
            Some(Reach::Everything) => {
                "the guest reaches all that you reach, this machine's own services and your LAN among it"
            }
        };
        format!("no gateway decides here and nothing is recorded per flow (--engine slirp): {reach}")
    }

    /// The word of the mode.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        match self.reach {
            None => "none",
            Some(Reach::Forwards) => "mounts-only",
            Some(Reach::Everything) => "full",
        }
    }

    pub(crate) fn card(&self) -> Network {
        match self.reach {
            None => Network::None,
            Some(reach) => Network::Slirp { reach, forwards: self.forwards.clone(), files: None },
        }
    }

    pub(crate) fn sockets(&self) -> Sockets {
        match self.reach {
            Some(Reach::Everything) => Sockets::Any,
            Some(Reach::Forwards) if !self.forwards.is_empty() => Sockets::Listening,
            Some(Reach::Forwards) | None => Sockets::None,
        }
    }

    pub(crate) fn resolvers(&self) -> Vec<IpAddr> {
        match self.reach {
            Some(Reach::Everything) => vec![addresses::RESOLVER4.into()],
            Some(Reach::Forwards) | None => Vec::new(),
        }
    }

    /// What the guest's interface is to have. What would be asked for by DHCP is known.
    pub(crate) fn guest_network(&self, name: &str) -> Option<GuestNetwork> {
        self.reach?;
        let (guest4, prefix4) = addresses::GUEST4;
        let (guest6, prefix6) = addresses::GUEST6;
        Some(GuestNetwork {
            mac: SLIRP_MAC,
            mtu: MTU,
            addresses: vec![(guest4.into(), prefix4), (guest6.into(), prefix6)],
            routes: vec![Route { gateway: addresses::GATEWAY4.into() }, Route { gateway: addresses::GATEWAY6.into() }],
            neighbours: Vec::new(),
            resolv_conf: None,
            hosts: None,
            host_name: Some(name.as_bytes().to_vec()),
        })
    }
}

/// Checks that an engine can give what a specification asks for.
///
/// # Errors
/// What it cannot give, by the name of the flag.
pub fn check_engine(spec: &SandboxSpec, engine: &Engine) -> Result<(), LaunchError> {
    let Engine::Slirp(slirp) = engine else { return Ok(()) };
    let refused = |what: &str| Err(LaunchError::Spec(format!("--engine slirp: {what}")));
    if rustix::process::geteuid().is_root() {
        return refused(
            "without namespaces nothing keeps a process of root from what is root's; start it as an ordinary user",
        );
    }
    if spec.network.is_some() {
        return refused("there is no gateway that could hold a policy");
    }
    if spec.place.project.is_some() || !spec.place.mounts.is_empty() {
        return refused("nothing is shared with its guests; use --no-cwd, and leave --mount out");
    }
    if spec.place.rootfs.is_some() {
        return refused("its guests start from what `cofferdam vm setup` has made; leave --rootfs out");
    }
    if slirp.reach.is_none() && !slirp.forwards.is_empty() {
        return refused("a guest without a network has no ports");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slirp(reach: Option<Reach>, forwards: &[(u16, u16)]) -> Slirp {
        let forwards = forwards.iter().map(|(host, guest)| PortForward { host: *host, guest: *guest }).collect();
        Slirp { reach, forwards }
    }

    #[test]
    fn qemu_has_no_more_sockets_than_its_guest_needs() {
        for (slirp, sockets, resolvers) in [
            (slirp(None, &[]), Sockets::None, 0),
            (slirp(Some(Reach::Forwards), &[]), Sockets::None, 0),
            (slirp(Some(Reach::Forwards), &[(8080, 80)]), Sockets::Listening, 0),
            (slirp(Some(Reach::Everything), &[]), Sockets::Any, 1),
        ] {
            assert_eq!((slirp.sockets(), slirp.resolvers().len()), (sockets, resolvers), "{slirp:?}");
            assert_eq!(slirp.guest_network("sandbox").is_some(), slirp.reach.is_some());
        }
    }

    #[test]
    fn a_probe_has_no_card() {
        let engine = Engine::Slirp(slirp(Some(Reach::Everything), &[(8080, 80)]));
        assert_eq!(engine.without_card(), Engine::Slirp(slirp(None, &[])));
        assert_eq!(Engine::Gateway.without_card(), Engine::Gateway);
    }
}
