//! The machine's network, as the host says.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use cofferdam_guest_protocol::Network;
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

/// Switches the loopback on, which a machine without a network has too.
pub(crate) fn loopback() -> Result<(), Trouble> {
    let up = |mut connection: Connection| connection.execute(&[Request::SetUp { index: LOOPBACK }]);
    let done = Connection::open().and_then(up);
    done.map_err(|error| Trouble::new(format!("switch the loopback on ({error})"), copy(error.source_error())))
}

/// Sets up the link that has the hardware address, the resolver's and the hosts' files, and the name.
pub(crate) fn apply(own: &Own, network: &Network) -> Result<(), Trouble> {
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
    match &network.host_name {
        None => Ok(()),
        Some(name) => rustix::system::sethostname(name).doing(|| "set the machine's name".to_owned()),
    }
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
