//! The two ends of a sandbox's link, made in its two network namespaces.
//!
//! [`build_netns`] makes the gateway's side: the veth pair, the TUN device, the packet filter and the transparent
//! listeners. [`configure_guest_link`] makes the sandbox's side: addresses and routes of `eth0`. Each is a *plan*, a list of
//! [`Step`]s computed from the [`NetnsSpec`] alone, and a dull loop that carries it out. How packets go through the result is
//! told in `docs/design/0001-the-wall.md`, §1.
//!
//! The order of the gateway's plan matters: the filter, which drops by default, is in force before the first link is up.
//! Nothing is undone after an error; the namespace goes with the process that was to own it.
//!
//! Both run in short-lived processes with one thread, with `CAP_NET_ADMIN` over the namespace they work on and `/proc`
//! mounted with a writable `sys/net`. No program is started.

mod filter;
mod plan;

use std::fs;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{BorrowedFd, OwnedFd};

use cofferdam_sys::netlink::{Connection, NetlinkError, Request};
use cofferdam_sys::ns::{self, NamespaceKind};
use cofferdam_sys::transparent::{IpVersion, set_mark, transparent_listener, transparent_listener_at};
use cofferdam_sys::tun::TunError;
use cofferdam_sys::{nft, packet, tun};

use self::plan::{Missing, Step, Sysctl};
use crate::{LinkAddresses, PortSocket};

pub(crate) use self::plan::CONGESTION_CONTROL;

/// What the builder makes and the gateway process holds.
#[derive(Debug)]
pub struct GatewayFds {
    /// The TUN device: non-blocking, one queue, a `virtio_net_hdr` of 10 bytes in little endian before each packet.
    pub tun: OwnedFd,
    /// The transparent listeners: IPv4, then IPv6 when it is on. Non-blocking. They keep the namespace alive.
    pub listeners: Vec<OwnedFd>,
    /// The channel to the broker, where ports are published or may be; non-blocking.
    pub broker: Option<OwnedFd>,
    /// The published ports, which the supervisor has bound.
    pub ports: Vec<PortSocket>,
    /// The listeners inside for sockets of the host, in the order of the configuration; non-blocking.
    pub host_sockets: Vec<OwnedFd>,
    /// The channel to the dialer, where there are such sockets; non-blocking.
    pub dialer: Option<OwnedFd>,
}

/// What the network namespaces of one sandbox look like.
#[derive(Debug, Clone)]
pub struct NetnsSpec {
    pub link: LinkAddresses,
    /// MTU of the guest's interface, 1280..=65520.
    pub mtu: u16,
    pub guest_mac: [u8; 6],
    pub gateway_mac: [u8; 6],
    /// Where the guest finds the server of its files, if it has one: [`LinkAddresses::files`].
    pub files: Option<SocketAddrV4>,
}

/// The guest's end of the link.
#[derive(Debug, Clone, Copy)]
pub enum GuestEnd<'a> {
    /// `eth0`, an end of a veth pair, in this network namespace.
    Netns(BorrowedFd<'a>),
    /// The network card of a virtual machine. The descriptor is fresh from [`tun::open`], opened after the gateway's namespace
    /// was entered; whoever has it is the guest.
    Tap(BorrowedFd<'a>),
}

/// Why one end of the link could not be made. The text and that of its sources say what was done to what;
/// [`BuildError::remedy`] says what to do about it, where that is known.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("cannot write {value:?} to {path}")]
    Sysctl { path: String, value: String, source: io::Error },
    #[error("cannot make the TUN device {name}")]
    Tun { name: &'static str, source: TunError },
    #[error("cannot make the TAP device {name}")]
    Tap { name: &'static str, source: TunError },
    #[error("cannot install the packet filter")]
    Filter { source: NetlinkError },
    #[error("cannot set up links, addresses and routes")]
    Network { source: NetlinkError },
    #[error("cannot enter the sandbox's network namespace")]
    Enter { source: io::Error },
    #[error("cannot find the interface {name}")]
    Interface { name: &'static str, source: io::Error },
    #[error("cannot capture the packets of the link ({call})")]
    Packets { call: &'static str, source: io::Error },
    #[error("cannot open the transparent {version} listener ({call})")]
    Listen { version: IpVersion, call: &'static str, source: io::Error },
    #[error("cannot listen for the guest's file server at {address} ({call})")]
    Files { address: SocketAddrV4, call: &'static str, source: io::Error },
}

impl BuildError {
    /// What the person at the machine can do, in one sentence; `None` when the error is not one of a missing feature.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        let code = self.system_error().raw_os_error()?;
        match (self, code) {
            (BuildError::Sysctl { path, .. }, libc::ENOENT) if path.contains("/ipv6/") => {
                Some("this kernel has no IPv6: switch it off for the sandbox, or load the ipv6 module")
            }
            (BuildError::Sysctl { .. }, libc::EROFS | libc::EACCES) => {
                Some("/proc/sys is not writable here: in a container, run it with /proc/sys unmasked")
            }
            (BuildError::Tun { .. } | BuildError::Tap { .. }, libc::ENOENT | libc::ENODEV) => {
                Some("load the TUN driver (modprobe tun) and see that /dev/net/tun is there")
            }
            (BuildError::Tun { .. } | BuildError::Tap { .. }, libc::EACCES) => {
                Some("give /dev/net/tun its usual mode (chmod 0666 /dev/net/tun)")
            }
            (BuildError::Tun { .. } | BuildError::Tap { .. }, libc::ENOTTY) => Some(
                "something else is at /dev/net/tun: run `sudo rm -r /dev/net/tun && sudo mknod -m 0666 /dev/net/tun c 10 200`, \
                 or give the container the device (docker: --device /dev/net/tun)",
            ),
            (
                BuildError::Filter { .. },
                libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT,
            ) => Some(
                "this kernel lacks part of nf_tables: load the modules nf_tables, nft_tproxy, nf_tproxy_ipv4 and \
                     nf_tproxy_ipv6",
            ),
            (BuildError::Network { .. }, libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => Some(
                "this kernel lacks veth links, policy routing or IPv6: load the modules veth and ipv6, or switch IPv6 \
                 off for the sandbox",
            ),
            (BuildError::Packets { .. }, libc::EAFNOSUPPORT) => {
                Some("this kernel has no packet sockets: load the module af_packet, or do without --pcap")
            }
            (BuildError::Listen { .. }, libc::EAFNOSUPPORT) => {
                Some("this kernel has no IPv6: switch it off for the sandbox, or load the ipv6 module")
            }
            (_, libc::EPERM) => Some(
                "unprivileged user namespaces get no network privileges here: allow them (sysctl \
                 kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with userns)",
            ),
            _ => None,
        }
    }

    fn system_error(&self) -> &io::Error {
        match self {
            BuildError::Sysctl { source, .. }
            | BuildError::Enter { source }
            | BuildError::Interface { source, .. }
            | BuildError::Packets { source, .. }
            | BuildError::Files { source, .. }
            | BuildError::Listen { source, .. } => source,
            BuildError::Tun { source, .. } | BuildError::Tap { source, .. } => &source.source,
            BuildError::Filter { source } | BuildError::Network { source } => source.source_error(),
        }
    }
}

/// Makes the gateway's network namespace, in which the calling thread must be. `tun` is fresh from [`tun::open`], opened
/// **after** that namespace was entered. For a guest in a namespace, its `eth0` appears there, up and without addresses; the
/// caller needs `CAP_SYS_ADMIN` over both namespaces then: it visits the sandbox's to switch `eth0` on.
///
/// # Errors
/// [`BuildError`]: the first step that failed. What was made until then is left for the namespace to take along.
pub fn build_netns(spec: &NetnsSpec, tun: OwnedFd, guest: GuestEnd<'_>) -> Result<GatewayFds, BuildError> {
    let mut fds = GatewayFds {
        tun,
        listeners: Vec::new(),
        broker: None,
        ports: Vec::new(),
        host_sockets: Vec::new(),
        dialer: None,
    };
    let mut guest_link = None;
    for step in plan::gateway(spec, guest) {
        match step {
            Step::Sysctl(sysctl) => write_sysctl(&sysctl)?,
            Step::CreateTun { name, index } => {
                tun::create(&fds.tun, name, index).map_err(|source| BuildError::Tun { name, source })?;
            }
            Step::CreateTap { name, index } => {
                if let GuestEnd::Tap(tap) = guest {
                    tun::create_tap(tap, name, index).map_err(|source| BuildError::Tap { name, source })?;
                }
            }
            Step::Filter(ruleset) => nft::install(&ruleset).map_err(|source| BuildError::Filter { source })?,
            Step::Network(requests) => execute(&mut connect()?, &requests)?,
            Step::GuestLink => {
                if let GuestEnd::Netns(netns) = guest {
                    guest_link = Some(in_netns(netns, || switch_guest_link_on(spec))?);
                }
            }
            Step::AwaitGuestLink => {
                if let Some((connection, index)) = &mut guest_link {
                    connection.await_up(*index).map_err(|source| BuildError::Network { source })?;
                }
            }
            Step::Listen { version, port, backlog } => {
                let listener = transparent_listener(version, port, backlog, CONGESTION_CONTROL)
                    .map_err(|(call, source)| BuildError::Listen { version, call, source })?;
                fds.listeners.push(listener);
            }
        }
    }
    Ok(fds)
}

/// A socket that takes every packet of the gateway's end of the link, which is in the calling thread's network namespace, but for
/// those of the guest's file server, which are nothing that goes over a network. Comes
/// between [`build_netns`] and [`configure_guest_link`], without whose addresses the guest can send nothing.
///
/// # Errors
/// [`BuildError::Packets`].
pub fn open_packets(spec: &NetnsSpec) -> Result<OwnedFd, BuildError> {
    packet::open(plan::GATEWAY_INDEX, spec.files).map_err(|(call, source)| BuildError::Packets { call, source })
}

/// The listener of the guest's file server, in the calling thread's network namespace. The filter of [`build_netns`] lets the guest
/// in to it and nobody else; the namespace has no such address, so nothing there answers for it otherwise. Non-blocking.
///
/// # Errors
/// [`BuildError::Files`].
pub fn listen_for_files(address: SocketAddrV4) -> Result<OwnedFd, BuildError> {
    let failed = |call, source| BuildError::Files { address, call, source };
    let listener = transparent_listener_at(address.into(), plan::FILES_BACKLOG.into(), CONGESTION_CONTROL)
        .map_err(|(call, source)| failed(call, source))?;
    // Connections have it from their listener: what is closed is gone at once, and a guest that does not read leaves nothing in the
    // kernel's memory.
    rustix::net::sockopt::set_socket_linger(&listener, Some(std::time::Duration::ZERO))
        .map_err(|errno| failed("setsockopt(SO_LINGER)", errno.into()))?;
    // Its answers go by a route of their own.
    set_mark(&listener, plan::MARK_FILES).map_err(|source| failed("setsockopt(SO_MARK)", source))?;
    Ok(listener)
}

/// Configures `lo` and `eth0` in the sandbox's network namespace, in which the calling thread must be. Comes after
/// [`build_netns`], which made `eth0` and switched it on.
///
/// # Errors
/// [`BuildError`]: the first step that failed.
pub fn configure_guest_link(spec: &NetnsSpec) -> Result<(), BuildError> {
    let (sysctls, requests) = plan::guest(spec, guest_link_index()?);
    sysctls.iter().try_for_each(write_sysctl)?;
    allow_ping();
    let mut connection = connect()?;
    execute(&mut connection, &requests)?;
    let v6 = spec.link.v6.iter().try_for_each(|v6| connection.await_local(v6.guest.into()));
    v6.map_err(|source| BuildError::Network { source })
}

/// In the sandbox's network namespace. Returns a connection to there and the index of `eth0`.
fn switch_guest_link_on(spec: &NetnsSpec) -> Result<(Connection, u32), BuildError> {
    let index = guest_link_index()?;
    let (sysctls, requests) = plan::guest_link(spec, index);
    sysctls.iter().try_for_each(write_sysctl)?;
    let mut connection = connect()?;
    execute(&mut connection, &requests)?;
    Ok((connection, index))
}

/// Does `work` in another network namespace and comes back.
fn in_netns<T>(netns: BorrowedFd<'_>, work: impl FnOnce() -> Result<T, BuildError>) -> Result<T, BuildError> {
    let enter = |source| BuildError::Enter { source };
    let own = ns::open(None, NamespaceKind::Net).map_err(enter)?;
    ns::enter(netns, NamespaceKind::Net).map_err(enter)?;
    let result = work();
    ns::enter(own, NamespaceKind::Net).map_err(enter)?;
    result
}

fn guest_link_index() -> Result<u32, BuildError> {
    let find = || -> io::Result<u32> {
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
        Ok(rustix::net::netdevice::name_to_index(&socket, plan::GUEST_LINK)?)
    };
    find().map_err(|source| BuildError::Interface { name: plan::GUEST_LINK, source })
}

fn connect() -> Result<Connection, BuildError> {
    Connection::open().map_err(|source| BuildError::Network { source })
}

fn execute(connection: &mut Connection, requests: &[Request<'_>]) -> Result<(), BuildError> {
    connection.execute(requests).map_err(|source| BuildError::Network { source })
}

fn write_sysctl(sysctl: &Sysctl) -> Result<(), BuildError> {
    let path = format!("/proc/sys/net/{}", sysctl.path);
    match fs::write(&path, sysctl.value) {
        Err(source) if source.kind() == io::ErrorKind::NotFound && sysctl.missing == Missing::Fine => Ok(()),
        Err(source) => Err(BuildError::Sysctl { path, value: sysctl.value.to_owned(), source }),
        Ok(()) => Ok(()),
    }
}

/// Lets every group of the sandbox open ICMP echo sockets, so that `ping` needs no capability there. The range has to
/// consist of groups that the user namespace knows, at both ends (`ipv4_ping_group_range`). Where it cannot be set, `ping`
/// needs `CAP_NET_RAW` inside, which is no reason to fail.
fn allow_ping() {
    let Ok(map) = fs::read_to_string("/proc/self/gid_map") else { return };
    if let Some((first, last)) = plan::mapped_range(&map) {
        let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", format!("{first} {last}"));
    }
}

#[cfg(test)]
impl NetnsSpec {
    /// A link for tests.
    fn example(ipv6: bool) -> NetnsSpec {
        let v6 = crate::Link6 { guest: "fd00::2".parse().unwrap(), gateway: "fd00::1".parse().unwrap(), prefix: 64 };
        NetnsSpec {
            link: LinkAddresses {
                guest4: [172, 16, 0, 2].into(),
                gateway4: [172, 16, 0, 1].into(),
                prefix4: 30,
                v6: ipv6.then_some(v6),
            },
            mtu: 1500,
            guest_mac: [2, 0, 0, 0, 0, 2],
            gateway_mac: [2, 0, 0, 0, 0, 1],
            files: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_remedy_for_what_is_missing() {
        let system = io::Error::from_raw_os_error;
        let tun = |code| BuildError::Tun { name: "tun0", source: TunError { call: "open", source: system(code) } };
        assert!(tun(libc::EACCES).remedy().unwrap().contains("chmod 0666 /dev/net/tun"));
        assert!(tun(libc::ENOENT).remedy().unwrap().contains("modprobe tun"));
        assert!(tun(libc::ENOTTY).remedy().unwrap().contains("mknod -m 0666 /dev/net/tun c 10 200"));
        assert_eq!(tun(libc::EIO).remedy(), None);
        let refused = |code| NetlinkError::Refused { request: "add".to_owned(), reason: None, source: system(code) };
        let filter = BuildError::Filter { source: refused(libc::ENOENT) };
        assert!(filter.remedy().unwrap().contains("nft_tproxy"));
        let filter = BuildError::Filter { source: NetlinkError::Open { source: system(libc::EPROTONOSUPPORT) } };
        assert!(filter.remedy().unwrap().contains("nf_tables"));
        let network = BuildError::Network { source: refused(libc::EOPNOTSUPP) };
        assert!(network.remedy().unwrap().contains("veth"));
        let denied = BuildError::Network { source: refused(libc::EPERM) };
        assert!(denied.remedy().unwrap().contains("user namespaces"));
        let path = "/proc/sys/net/ipv6/conf/all/forwarding".to_owned();
        let sysctl = BuildError::Sysctl { path, value: "1".to_owned(), source: system(libc::ENOENT) };
        assert!(sysctl.remedy().unwrap().contains("no IPv6"));
    }
}
