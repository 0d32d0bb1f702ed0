//! The machine's network, as the host says.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::thread;
use std::time::Duration;

use cofferdam_guest_protocol::{Mount, MountKind, Network};
use cofferdam_initramfs::Group;
use cofferdam_sys::netlink::{Connection, Request, RouteKind};
use cofferdam_sys::transparent::IpVersion;

use crate::boot::Own;
use crate::words::{Doing, Trouble};

/// The index of `lo`: the first of every machine.
const LOOPBACK: u32 = 1;
/// A driver makes its link within milliseconds; together a second.
const LOOKS: usize = 1000;
const PAUSE: Duration = Duration::from_millis(1);

/// The most that Linux takes as the MTU of a route.
const FILES_MTU: u32 = 65_520;

/// The way to the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    index: u32,
    /// Through whom what is not on the link is reached over IPv4.
    gateway: Option<IpAddr>,
}

/// Switches the loopback on, which a machine without a network has too.
pub(crate) fn loopback() -> Result<(), Trouble> {
    let up = |mut connection: Connection| connection.execute(&[Request::SetUp { index: LOOPBACK }]);
    let done = Connection::open().and_then(up);
    done.map_err(|error| Trouble::new(format!("switch the loopback on ({error})"), copy(error.source_error())))
}

/// Sets up the link that has the hardware address, the resolver's and the hosts' files, and the name.
pub(crate) fn apply(own: &Own, network: &Network) -> Result<Link, Trouble> {
    own.load(Group::Net)?;
    let (name, index) = find_link(network.mac)?;
    // Nothing but the host says what the network is: no router, and no address of the kernel's own.
    let _no_ipv6 = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
    // As in any sandbox: ping needs no capability.
    let _missing = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    let mut requests = vec![Request::SetMtu { index, mtu: network.mtu }];
    if network.addresses.iter().any(|(address, _)| address.is_ipv6()) {
        requests.push(Request::NoLinkLocal { index });
    } else {
        let _no_ipv6 = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    }
    requests.push(Request::SetUp { index });
    let addresses = network.addresses.iter();
    requests.extend(addresses.map(|(address, prefix)| Request::AddAddress {
        index,
        address: *address,
        prefix: *prefix,
    }));
    let neighbours = network.neighbours.iter();
    requests.extend(neighbours.map(|at| Request::AddNeighbour { index, address: at.address, mac: at.mac }));
    requests.extend(network.routes.iter().map(|route| Request::AddDefaultRoute {
        version: if route.gateway.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 },
        table: Request::MAIN_TABLE,
        kind: RouteKind::Via { gateway: route.gateway },
    }));
    let set_up = |connection: &mut Connection| {
        connection.execute(&requests)?;
        let v6 = network.addresses.iter().map(|(address, _)| *address).filter(IpAddr::is_ipv6);
        v6.into_iter().try_for_each(|address| connection.await_local(address))
    };
    let done = Connection::open().and_then(|mut connection| set_up(&mut connection));
    done.map_err(|error| Trouble::new(format!("set up the network ({error})"), copy(error.source_error())))?;
    let files = [("/etc/resolv.conf", &network.resolv_conf), ("/etc/hosts", &network.hosts)];
    for (path, content) in files {
        if let Some(content) = content {
            replace(Path::new(path), content)?;
        }
    }
    if let Some(name) = &network.host_name {
        rustix::system::sethostname(name).doing(|| "set the machine's name".to_owned())?;
    }
    let gateway = network.routes.iter().map(|route| route.gateway).find(IpAddr::is_ipv4);
    Ok(Link { index, gateway })
}

/// Lets packets to the server of a mount be larger than the link's MTU, for the link ends there. Whether it takes them it says itself,
/// by the size of segments that it offers. Where the route cannot be had, files are as they are and slower.
///
/// Linux's cifs hands TCP its data page by page. What is less than a segment waits for more; what is not becomes a packet of its own,
/// and with the segments of an MTU of 1,500 that is a packet for each page.
pub(crate) fn widen(link: &Link, mount: &Mount) {
    if let Some(route) = wide_route(link, mount) {
        let _slower = Connection::open().and_then(|mut connection| connection.execute(&[route]));
    }
}

fn wide_route(link: &Link, mount: &Mount) -> Option<Request<'static>> {
    let MountKind::Cifs = mount.kind else { return None };
    let (server, _share) = str::from_utf8(&mount.source).ok()?.strip_prefix("//")?.split_once('/')?;
    let address = IpAddr::from(server.parse::<Ipv4Addr>().ok()?);
    // Nobody answers on the link for an address that is not the gateway's.
    let gateway = Some(link.gateway?).filter(|gateway| *gateway != address);
    Some(Request::SetHostRoute { address, index: link.index, gateway, mtu: FILES_MTU })
}

fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

fn find_link(mac: [u8; 6]) -> Result<(String, u32), Trouble> {
    let wanted = mac.map(|byte| format!("{byte:02x}")).join(":");
    for _ in 0..LOOKS {
        let links = fs::read_dir("/sys/class/net").doing(|| "list the network's links".to_owned())?;
        for link in links.flatten() {
            let read = |what: &str| fs::read_to_string(link.path().join(what)).unwrap_or_default();
            if read("address").trim_end() == wanted
                && let (Ok(index), Ok(name)) = (read("ifindex").trim_end().parse(), link.file_name().into_string())
            {
                return Ok((name, index));
            }
        }
        thread::sleep(PAUSE);
    }
    Err(Trouble::new(format!("find a network link with the hardware address {wanted}"), io::ErrorKind::NotFound))
}

/// Puts a file in place of whatever is there: often a link to where some service would write.
fn replace(path: &Path, content: &[u8]) -> Result<(), Trouble> {
    let doing = || format!("write {}", path.display());
    fs::create_dir_all(path.parent().unwrap_or(path)).doing(doing)?;
    let beside = path.with_extension("cofferdam");
    fs::write(&beside, content).doing(doing)?;
    fs::rename(&beside, path).doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_server_of_a_cifs_mount_has_a_route_of_its_own() {
        let link = Link { index: 2, gateway: Some([172, 16, 0, 1].into()) };
        let words = |link: &Link, kind, source: &str| {
            let (target, options) = (b"/m".to_vec(), Vec::new());
            let mount = Mount { kind, source: source.into(), target, options, read_only: false };
            wide_route(link, &mount).map(|route| route.to_string())
        };
        let via = "set the route to 10.0.2.100 with an MTU of 65520 on link 2 via 172.16.0.1";
        assert_eq!(words(&link, MountKind::Cifs, "//10.0.2.100/share0").as_deref(), Some(via));
        let itself = "set the route to 172.16.0.1 with an MTU of 65520 on link 2";
        assert_eq!(words(&link, MountKind::Cifs, "//172.16.0.1/share0").as_deref(), Some(itself));
        for source in
            ["", "//", "//10.0.2.100", "10.0.2.100/share0", "//files/share0", "//fd00::64/share0", "//[::1]/a"]
        {
            assert_eq!(words(&link, MountKind::Cifs, source), None, "{source:?}");
        }
        for kind in MountKind::ALL.into_iter().filter(|kind| *kind != MountKind::Cifs) {
            assert_eq!(words(&link, kind, "//10.0.2.100/share0"), None);
        }
        let alone = Link { index: 2, gateway: None };
        assert_eq!(words(&alone, MountKind::Cifs, "//10.0.2.100/share0"), None);
    }
}
