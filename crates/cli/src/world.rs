//! A closed world: two network namespaces of our own, joined by one link and by nothing else.
//!
//! The process that builds it moves into a fresh user namespace, where it may do this without being root, and then
//! plays both sides. In the *machine* side Cofferdam runs as it would on a laptop: a LAN address, a default route, a
//! service on its loopback. The *world* side is everybody else: public sites, a resolver, a neighbour on the LAN, a
//! cloud's metadata service. The public addresses are from real public space, so that any classifier takes them for
//! public; there is no uplink, so no packet for them leaves this machine.
//!
//! A socket belongs to the namespace in which it was made. So the sockets of both sides are made by one thread that
//! steps over and back, and are served by threads that need not be anywhere in particular.

mod servers;
pub(crate) mod sites;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cofferdam_control::summary::{Advice, Summary};
use cofferdam_model::Event;
use cofferdam_sys::netlink::{Connection, Request, RouteKind, VethPeer};
use cofferdam_sys::ns::{self, IdMap, NamespaceKind, Namespaces, Setgroups};
use cofferdam_sys::transparent::IpVersion;
use rustix::net::{AddressFamily, SocketType, netdevice};

use crate::client::Finding;
use crate::guest_client;

/// What echo services are sent.
pub(crate) const ECHO: &[u8] = b"cofferdam echo";

/// The machine's and the world's address on the link between them.
const MACHINE4: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 2);
const WORLD4: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
const MACHINE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 2);
const WORLD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 1);
/// The loopback link of every network namespace.
const LOOPBACK: u32 = 1;
/// Our choice for the machine's link: far above what a fresh namespace has.
const LAN: u32 = 100;
/// Locally administered unicast addresses.
const MACHINE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x50, 2];
const WORLD_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x50, 1];
const ETHERNET_MTU: u32 = 1500;

/// An IP protocol for experiments (RFC 3692), which no kernel has an opinion on.
pub(crate) fn raw_protocol() -> rustix::net::Protocol {
    rustix::net::Protocol::from_raw(std::num::NonZeroU32::MIN.saturating_add(252))
}

/// A world that is up, with the calling process on its machine side.
#[derive(Debug)]
pub(crate) struct World {
    /// DER of the certificate authority of the world's sites, in hexadecimal.
    anchor: String,
    /// This program, to be shown inside sandboxes.
    program: PathBuf,
    visits: Arc<Visits>,
    /// Whether the kernel has IPv6.
    pub ipv6: bool,
}

/// How often the servers heard from somebody.
#[derive(Debug, Default)]
pub(crate) struct Visits(AtomicU64);

impl Visits {
    fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What one sandbox saw and what its gateway said.
#[derive(Debug)]
pub(crate) struct Seen {
    pub findings: Vec<Finding>,
    pub summary: Summary,
    /// Connections, datagrams and packets that arrived at any server in the meantime.
    pub visits: u64,
}

impl World {
    /// Builds the world and moves the calling process into its machine side for good.
    ///
    /// # Errors
    /// What could not be made, in words; the process must have one thread.
    pub(crate) fn build() -> Result<World, String> {
        let program = std::env::current_exe().map_err(|error| format!("cannot find this program's file: {error}"))?;
        enter_user_namespace()?;
        let said = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
        let machine = ns::open(None, NamespaceKind::Net).map_err(said("open the network namespace"))?;
        ns::unshare(Namespaces::NET).map_err(said("make a second network namespace"))?;
        let world = ns::open(None, NamespaceKind::Net).map_err(said("open the second network namespace"))?;
        let ipv6 = fs::metadata("/proc/sys/net/ipv6").is_ok();

        ns::enter(&machine, NamespaceKind::Net).map_err(said("go back to the first network namespace"))?;
        // Pings by sockets that need no privilege, which is how the gateway sends them. It is off in a new namespace.
        // Where /proc/sys cannot be written pings stay off, and the control of `doctor --prove` shows that.
        let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0");
        configure(&machine_plan(world.as_fd(), ipv6))?;

        ns::enter(&world, NamespaceKind::Net).map_err(said("enter the second network namespace"))?;
        configure(&world_plan(index_of("uplink").map_err(said("find the world's link"))?, ipv6))?;
        let visits = Arc::new(Visits::default());
        let identity = servers::Identity::new()?;
        let remote = servers::Sockets::world(ipv6)?;

        ns::enter(&machine, NamespaceKind::Net).map_err(said("go back to the first network namespace"))?;
        let local = servers::Sockets::machine()?;
        let anchor = hex::encode(identity.anchor());
        let identity = Arc::new(identity);
        remote.serve(&identity, &visits)?;
        local.serve(&identity, &visits)?;
        Ok(World { anchor, program, visits, ipv6 })
    }

    /// Carries out attempts outside any sandbox, on the machine side.
    pub(crate) fn without_sandbox(&self, attempts: &[&str]) -> Result<Seen, String> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["internal-client", "--ca", &self.anchor]).args(attempts);
        self.observe(command, Advice::default())
    }

    /// Carries out attempts in a sandbox made with `flags`.
    /// An answer that does not come within `patience` is taken for none.
    pub(crate) fn in_sandbox(
        &self,
        flags: &[&str],
        attempts: &[&str],
        advice: Advice,
        patience: Duration,
    ) -> Result<Seen, String> {
        /// Where the client is inside: no directory of the host is shown around it.
        const INSIDE: &str = "/cofferdam";
        let mut mount = self.program.clone().into_os_string();
        mount.push(format!(":{INSIDE}:ro"));
        let mut command = run(flags);
        command.arg("--mount").arg(mount).args(["--", INSIDE, "internal-client", "--ca", &self.anchor]);
        command.args(["--patience-ms", &patience.as_millis().to_string()]);
        command.args(attempts);
        self.observe(command, advice)
    }

    /// Carries out attempts in a virtual machine made with `flags`, by what is in a guest.
    pub(crate) fn in_guest(
        &self,
        flags: &[&str],
        attempts: &[&str],
        advice: Advice,
        patience: Duration,
    ) -> Result<Seen, String> {
        let mut command = run(flags);
        // Pings are for root, and root of the guest is nobody here.
        command.args(["--backend", "vm", "--user", "0", "--cpus", "1", "--memory", "256M"]);
        command.args(["--", "sh", "-c", &guest_client::script(attempts, patience)]);
        self.observe(command, advice)
    }

    /// Runs a command and sorts its output: findings of a client and events of the gateway. All but the findings of a guest
    /// are lines of JSON.
    fn observe(&self, mut command: Command, advice: Advice) -> Result<Seen, String> {
        let before = self.visits.0.load(Ordering::Relaxed);
        let output = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .map_err(|error| format!("cannot start this program again: {error}"))?;
        let mut seen = Seen { findings: Vec::new(), summary: Summary::new(advice), visits: 0 };
        for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if let Ok(finding) = serde_json::from_slice::<Finding>(line) {
                seen.findings.push(finding);
            } else if let Ok(event) = serde_json::from_slice::<Event>(line) {
                seen.summary.record(&event);
            } else if let Some(finding) = guest_client::parse(&String::from_utf8_lossy(line)) {
                seen.findings.push(finding);
            }
        }
        seen.visits = self.visits.0.load(Ordering::Relaxed).saturating_sub(before);
        if output.status.success() && !seen.findings.is_empty() {
            return Ok(seen);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{}: {}", output.status, said.trim()))
    }
}

/// A run of this program with these flags, which asks the world's resolver and says on its output what it decides.
fn run(flags: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["run", "--no-cwd", "--quiet", "--events", "-", "--timeout", "60s"]);
    if !flags.contains(&"--no-net") {
        command.args(["--dns-nameserver", &sites::RESOLVER.to_string()]);
    }
    command.args(flags);
    command
}

/// Moves the process into a user and a network namespace of its own, as the only user there.
fn enter_user_namespace() -> Result<(), String> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    ns::unshare(Namespaces::USER | Namespaces::NET)
        .map_err(|error| format!("cannot make a user namespace: {error}; `cofferdam doctor` says what to do"))?;
    ns::write_id_maps(None, &[IdMap::single(0, uid)], &[IdMap::single(0, gid)], Setgroups::Deny)
        .map_err(|error| crate::output::chain(&error))
}

fn configure(plan: &[Request<'_>]) -> Result<(), String> {
    let mut connection = Connection::open().map_err(|error| crate::output::chain(&error))?;
    connection.execute(plan).map_err(|error| crate::output::chain(&error))
}

fn machine_plan(world: std::os::fd::BorrowedFd<'_>, ipv6: bool) -> Vec<Request<'_>> {
    let table = Request::MAIN_TABLE;
    let peer = VethPeer { name: "uplink", mac: WORLD_MAC, netns: world };
    let mut plan = vec![
        Request::SetUp { index: LOOPBACK },
        Request::AddVeth { name: "lan", index: LAN, mac: MACHINE_MAC, mtu: ETHERNET_MTU, gso_ipv4: 65_536, peer },
    ];
    if ipv6 {
        plan.push(Request::NoLinkLocal { index: LAN });
    }
    plan.push(Request::SetUp { index: LAN });
    plan.push(Request::AddAddress { index: LAN, address: MACHINE4.into(), prefix: 24 });
    plan.push(Request::AddNeighbour { index: LAN, address: WORLD4.into(), mac: WORLD_MAC });
    let kind = RouteKind::Via { gateway: WORLD4.into() };
    plan.push(Request::AddDefaultRoute { version: IpVersion::V4, table, kind });
    if ipv6 {
        plan.push(Request::AddAddress { index: LAN, address: MACHINE6.into(), prefix: 64 });
        plan.push(Request::AddNeighbour { index: LAN, address: WORLD6.into(), mac: WORLD_MAC });
        let kind = RouteKind::Via { gateway: WORLD6.into() };
        plan.push(Request::AddDefaultRoute { version: IpVersion::V6, table, kind });
    }
    plan
}

fn world_plan(link: u32, ipv6: bool) -> Vec<Request<'static>> {
    let mut plan = vec![Request::SetUp { index: LOOPBACK }];
    if ipv6 {
        plan.push(Request::NoLinkLocal { index: link });
    }
    plan.push(Request::SetUp { index: link });
    let mut add = |address: IpAddr, prefix| plan.push(Request::AddAddress { index: link, address, prefix });
    add(WORLD4.into(), 24);
    for address in sites::ADDRESSES4 {
        add(address.into(), 32);
    }
    if ipv6 {
        add(WORLD6.into(), 64);
        for address in sites::ADDRESSES6 {
            add(address.into(), 128);
        }
        plan.push(Request::AddNeighbour { index: link, address: MACHINE6.into(), mac: MACHINE_MAC });
    }
    plan.push(Request::AddNeighbour { index: link, address: MACHINE4.into(), mac: MACHINE_MAC });
    plan
}

fn index_of(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(netdevice::name_to_index(&socket, name)?)
}

/// Bytes as hexadecimal digits, which pass every command line.
pub(crate) mod hex {
    use std::fmt::Write as _;

    pub(crate) fn encode(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
        let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
        let pairs = digits.chunks(2).map(|pair| match pair {
            [high, low] => u8::try_from(high * 16 + low).ok(),
            _ => None,
        });
        pairs.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_goes_both_ways() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(hex::decode(&hex::encode(&bytes)), Some(bytes));
        assert_eq!(hex::decode("0"), None);
        assert_eq!(hex::decode("0g"), None);
    }
}
