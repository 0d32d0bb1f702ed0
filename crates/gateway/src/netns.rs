//! (written by its owner)
use std::os::fd::OwnedFd;

use crate::LinkAddresses;

/// What the builder makes and the gateway process holds.
#[derive(Debug)]
pub struct GatewayFds {
    pub tun: OwnedFd,
    pub listeners: Vec<OwnedFd>,
}

/// What the gateway's network namespace looks like.
#[derive(Debug, Clone)]
pub struct NetnsSpec {
    pub link: LinkAddresses,
    /// MTU of the guest's interface, 1280..=65520.
    pub mtu: u16,
    pub guest_mac: [u8; 6],
    pub gateway_mac: [u8; 6],
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {}

pub fn build_netns(_spec: &NetnsSpec, _tun: OwnedFd, _sandbox_netns: std::os::fd::BorrowedFd<'_>) -> Result<GatewayFds, BuildError> {
    todo!()
}

pub fn configure_guest_link(_spec: &NetnsSpec) -> Result<(), BuildError> {
    todo!()
}
