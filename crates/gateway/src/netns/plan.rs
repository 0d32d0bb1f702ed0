//! What is to be done, as data: the sysctls, links, addresses, routes and rules of both ends.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use cofferdam_sys::netlink::{Request, RouteKind, VethPeer};
use cofferdam_sys::nft::Ruleset;
use cofferdam_sys::transparent::IpVersion;
use cofferdam_sys::tun;

use super::{GuestEnd, NetnsSpec, filter};

/// The guest's interface, in the sandbox's namespace.
pub(super) const GUEST_LINK: &str = "eth0";
/// The gateway's end of it.
const GATEWAY_LINK: &str = "sbx0";
const TUN_LINK: &str = "tun0";

/// Interface indices in the gateway's namespace, chosen here so that rules can be written before the links exist. Far from
/// the small numbers that a kernel may give to fallback tunnel devices (`tunl0`, `sit0`) in every new namespace.
pub(super) const GATEWAY_INDEX: u32 = 100;
pub(super) const TUN_INDEX: u32 = 101;
/// The loopback interface is the first in every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK_INDEX: u32 = 1;

/// Firewall mark of packets that a transparent socket shall have.
pub(super) const MARK_LOCAL: u32 = 1;
/// Firewall mark of packets that the gateway process shall read.
pub(super) const MARK_TUN: u32 = 2;
/// Firewall mark of what the server of the guest's files sends.
pub(super) const MARK_FILES: u32 = 3;

/// Where the transparent listeners are. Nobody ever names this port: SYNs are decided on before they can reach it, and
/// what they name is the port that the guest wanted. Outside the range for outgoing connections (32768 to 60999).
pub(super) const LISTENER_PORT: u16 = 10_999;

/// Accepted connections that may wait for the gateway process; the bound of `somaxconn` below. The default bound for
/// relayed connections (`max_connections`).
const BACKLOG: u16 = 4_096;

/// Connections to the guest's file server that may wait for it. Each mount makes one; but a listener whose handshakes fill its backlog
/// has the kernel write to the host's log, so there is room for more than `tcp_max_syn_backlog` lets begin, below. What a guest
/// sends to those that are not accepted takes 128 KiB of the kernel's memory each, the default of `tcp_rmem`.
pub(super) const FILES_BACKLOG: u16 = 1_280;

/// BBR, which a host may have as its default, halves the throughput of links without loss (`docs/performance.md`).
pub(crate) const CONGESTION_CONTROL: &str = "reno";

/// TCP over IPv4 crosses the link to the guest in pieces of up to 256 KiB (BIG TCP), four times what an IP header can name:
/// a quarter of the packets, and with them a third of the processor time of an upload (`docs/performance.md`). Larger ones
/// gain little more. Not for IPv6, where such a packet carries a hop-by-hop header, which the filter takes for not TCP.
const GSO_IPV4: u32 = 256 * 1024;

/// Routing tables for the marks. Any number would do that is not 253 to 255.
const TABLE_LOCAL_MARK: u8 = 100;
const TABLE_TUN_MARK: u8 = 101;
const TABLE_FILES_MARK: u8 = 102;

/// What the guest is told that its segments to the server of its files may have, whatever the link's MTU: these packets end in this
/// namespace. It is what fits into the largest MTU that Linux takes from a route, 65,520, beside the headers of IPv4 and TCP. Linux's
/// client hands its data over page by page, and each piece that is no less than a segment becomes a packet of its own, which costs an
/// emulated processor some 70 us.
const FILES_SEGMENT: u32 = 65_520 - 40;

/// One thing to do for the gateway's namespace.
#[derive(Debug)]
pub(super) enum Step<'a> {
    Sysctl(Sysctl),
    CreateTun {
        name: &'static str,
        index: u32,
    },
    CreateTap {
        name: &'static str,
        index: u32,
    },
    Filter(Ruleset),
    Network(Vec<Request<'a>>),
    /// Switches `eth0` on, as [`guest_link`] says.
    GuestLink,
    AwaitGuestLink,
    Listen {
        version: IpVersion,
        port: u16,
        backlog: i32,
    },
}

/// A file below `/proc/sys/net` and what is written into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sysctl {
    pub(super) path: &'static str,
    pub(super) value: &'static str,
    pub(super) missing: Missing,
}

/// What it means when a file is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Error,
    /// The kernel lacks what the setting would switch off or bound.
    Fine,
}

const fn set(path: &'static str, value: &'static str) -> Sysctl {
    Sysctl { path, value, missing: Missing::Error }
}

const fn set_if_there(path: &'static str, value: &'static str) -> Sysctl {
    Sysctl { path, value, missing: Missing::Fine }
}

/// Written before any link exists: `default` is what links start with. New namespaces inherit many of these from the host
/// (`net.core.devconf_inherit_init_net`), so that nothing here may be left to its usual default.
const GATEWAY_SYSCTLS: &[Sysctl] = &[
    // From the guest's link to the TUN and back. What else is forwarded, the filter says: nothing.
    set("ipv4/ip_forward", "1"),
    // The guest's packets come back in through the TUN, so no interface can be held to a source. The filter does that.
    set("ipv4/conf/all/rp_filter", "0"),
    set("ipv4/conf/default/rp_filter", "0"),
    // What the gateway process sends to the guest may come from the gateway's own address, such as DNS answers. It also
    // saves a look-up of the source for each packet.
    set("ipv4/conf/all/accept_local", "1"),
    // With it, a guest could talk to what listens on 127.0.0.1.
    set("ipv4/conf/all/route_localnet", "0"),
    set("ipv4/conf/default/route_localnet", "0"),
    // The gateway answers ARP and neighbour discovery for its own address and no other.
    set("ipv4/conf/all/proxy_arp", "0"),
    set("ipv4/conf/default/proxy_arp", "0"),
    set("ipv4/conf/all/arp_ignore", "1"),
    // No advice to the guest, and none taken from it.
    set("ipv4/conf/all/send_redirects", "0"),
    set("ipv4/conf/default/send_redirects", "0"),
    set("ipv4/conf/all/accept_redirects", "0"),
    set("ipv4/conf/default/accept_redirects", "0"),
    set("ipv4/conf/all/accept_source_route", "0"),
    set("ipv4/conf/default/accept_source_route", "0"),
    // A guest shall not write into the host's kernel log.
    set("ipv4/conf/all/log_martians", "0"),
    set("ipv4/conf/default/log_martians", "0"),
    set("ipv4/tcp_congestion_control", CONGESTION_CONTROL),
    // The link to the guest loses nothing, so a pause is no reason to start slowly, nor is another connection's past.
    set("ipv4/tcp_slow_start_after_idle", "0"),
    set("ipv4/tcp_no_metrics_save", "1"),
    // A connection comes from a SYN that was allowed and put back. A cookie would let a bare ACK make one.
    set("ipv4/tcp_syncookies", "0"),
    // The same for data in a SYN, which would arrive before the decision.
    set("ipv4/tcp_fastopen", "0"),
    // The link is memory with a round trip of some 50 us: 2 MiB carry 40 Gbit/s several times over. The machine's own
    // maximum, 32 MiB and more on servers, would only be a place for what a remote does not read: back-pressure would
    // come too late, and the memory is taken from the machine's `tcp_mem`.
    set("ipv4/tcp_rmem", "4096 131072 2097152"),
    set("ipv4/tcp_wmem", "4096 65536 2097152"),
    // A client of a published port may come again with the port that it had: its former connection inside must not be in the way.
    set_if_there("ipv4/tcp_tw_reuse", "1"),
    set("core/somaxconn", "4096"),
    // Handshakes of a listener at a time: without cookies three quarters of this many, 1,050, and the next SYNs are dropped with no
    // word of it. That is more than the gate puts back (`MAX_PENDING`), and less than `FILES_BACKLOG`.
    set("ipv4/tcp_max_syn_backlog", "1400"),
    // Fragments come over a link in memory, one right after the other. What is incomplete after this many seconds is an
    // attempt to fill the reassembly memory, which is per namespace (4 MiB).
    set("ipv4/ipfrag_time", "3"),
    set_if_there("netfilter/nf_conntrack_frag6_timeout", "3"),
];

/// As [`GATEWAY_SYSCTLS`], with IPv6.
const GATEWAY_SYSCTLS_V6: &[Sysctl] = &[
    set("ipv6/conf/all/disable_ipv6", "0"),
    set("ipv6/conf/all/forwarding", "1"),
    set("ipv6/conf/all/proxy_ndp", "0"),
    set("ipv6/conf/default/proxy_ndp", "0"),
    set("ipv6/conf/default/accept_ra", "0"),
    set("ipv6/conf/default/autoconf", "0"),
    set("ipv6/conf/default/accept_redirects", "0"),
    set("ipv6/conf/default/accept_source_route", "0"),
    // 1 is "none": no link-local addresses, so no search for duplicates of them and no listener reports.
    set("ipv6/conf/default/addr_gen_mode", "1"),
    set("ipv6/conf/default/accept_dad", "0"),
];

/// As [`GATEWAY_SYSCTLS`], without IPv6.
const GATEWAY_SYSCTLS_NO_V6: &[Sysctl] =
    &[set_if_there("ipv6/conf/all/forwarding", "0"), set_if_there("ipv6/conf/all/disable_ipv6", "1")];

/// In the sandbox's namespace, where `eth0` exists and is down, with IPv6: it is configured by us alone.
const GUEST_LINK_SYSCTLS_V6: &[Sysctl] = &[
    set("ipv6/conf/all/disable_ipv6", "0"),
    set("ipv6/conf/eth0/accept_ra", "0"),
    set("ipv6/conf/eth0/autoconf", "0"),
];

/// As [`GUEST_LINK_SYSCTLS_V6`], without IPv6: with no address there is "network unreachable" at once. `lo` keeps ::1.
const GUEST_LINK_SYSCTLS_NO_V6: &[Sysctl] = &[set_if_there("ipv6/conf/eth0/disable_ipv6", "1")];

/// In the sandbox's namespace, before it has an address.
const GUEST_SYSCTLS: &[Sysctl] = &[
    // For the same reason as on the other end of the link.
    set("ipv4/tcp_congestion_control", CONGESTION_CONTROL),
    // A server may have the port that it usually has: all of them are the sandbox's own.
    set("ipv4/ip_unprivileged_port_start", "0"),
];

/// The plan of the gateway's namespace.
pub(super) fn gateway<'a>(spec: &NetnsSpec, guest: GuestEnd<'a>) -> Vec<Step<'a>> {
    let versions = versions(spec);
    let by_version = if spec.link.v6.is_some() { GATEWAY_SYSCTLS_V6 } else { GATEWAY_SYSCTLS_NO_V6 };
    let mut steps: Vec<_> = GATEWAY_SYSCTLS.iter().chain(by_version).copied().map(Step::Sysctl).collect();
    steps.push(Step::Filter(filter::ruleset(spec)));
    steps.push(Step::CreateTun { name: TUN_LINK, index: TUN_INDEX });
    match guest {
        GuestEnd::Netns(netns) => {
            steps.push(Step::Network(vec![veth(spec, netns)]));
            // The end that is switched on last is ready at once; for the other one can wait here. The other way round, the
            // gateway might lose its first answer to the guest, and a lost SYN-ACK costs a second.
            steps.push(Step::GuestLink);
            steps.push(Step::Network(gateway_network(spec, versions)));
            steps.push(Step::AwaitGuestLink);
        }
        GuestEnd::Tap(_) => {
            // Its other end is a descriptor, on which there is nothing to switch on.
            steps.push(Step::CreateTap { name: GATEWAY_LINK, index: GATEWAY_INDEX });
            steps.push(Step::Network(vec![
                Request::SetMac { index: GATEWAY_INDEX, mac: spec.gateway_mac },
                Request::SetMtu { index: GATEWAY_INDEX, mtu: spec.mtu.into() },
            ]));
            steps.push(Step::Network(gateway_network(spec, versions)));
        }
    }
    let listen = |version: &IpVersion| Step::Listen { version: *version, port: LISTENER_PORT, backlog: BACKLOG.into() };
    steps.extend(versions.iter().map(listen));
    steps
}

fn veth<'a>(spec: &NetnsSpec, netns: BorrowedFd<'a>) -> Request<'a> {
    Request::AddVeth {
        name: GATEWAY_LINK,
        index: GATEWAY_INDEX,
        mac: spec.gateway_mac,
        mtu: spec.mtu.into(),
        gso_ipv4: GSO_IPV4,
        peer: VethPeer { name: GUEST_LINK, mac: spec.guest_mac, netns },
    }
}

fn gateway_network(spec: &NetnsSpec, versions: &[IpVersion]) -> Vec<Request<'static>> {
    let mut requests = vec![
        Request::SetMtu { index: TUN_INDEX, mtu: tun::MAX_MTU },
        Request::SetUp { index: GATEWAY_INDEX },
        Request::SetUp { index: TUN_INDEX },
    ];
    for end in ends(spec) {
        requests.push(Request::AddAddress { index: GATEWAY_INDEX, address: end.gateway, prefix: end.prefix });
        requests.push(Request::AddNeighbour { index: GATEWAY_INDEX, address: end.guest, mac: spec.guest_mac });
    }
    for &version in versions {
        // The marks come before the table of local addresses (by default the very first): what the guest sends to the
        // gateway's address is decided on like everything else.
        let rule = |priority, mark, table| Request::AddRule { version, priority, mark, table };
        requests.extend([
            rule(1, Some(MARK_LOCAL), TABLE_LOCAL_MARK),
            rule(2, Some(MARK_TUN), TABLE_TUN_MARK),
            rule(3, None, Request::LOCAL_TABLE),
            Request::RemoveRule { version, priority: 0, table: Request::LOCAL_TABLE },
            Request::AddDefaultRoute { version, table: TABLE_LOCAL_MARK, kind: RouteKind::Local { index: TUN_INDEX } },
            Request::AddDefaultRoute { version, table: TABLE_TUN_MARK, kind: RouteKind::Device { index: TUN_INDEX } },
        ]);
    }
    if spec.files.is_some() {
        // By the marks of its sockets, since its address may be the gateway's as well.
        let version = IpVersion::V4;
        let kind = RouteKind::Offering { index: GATEWAY_INDEX, segment: FILES_SEGMENT };
        requests.extend([
            Request::AddRule { version, priority: 4, mark: Some(MARK_FILES), table: TABLE_FILES_MARK },
            Request::AddDefaultRoute { version, table: TABLE_FILES_MARK, kind },
        ]);
    }
    requests
}

/// What the builder does in the sandbox's namespace, where `eth0` has interface index `index`: just enough to switch it on.
/// It sends nothing, as it has no address.
pub(super) fn guest_link(spec: &NetnsSpec, index: u32) -> (&'static [Sysctl], Vec<Request<'static>>) {
    match spec.link.v6 {
        Some(_) => (GUEST_LINK_SYSCTLS_V6, vec![Request::NoLinkLocal { index }, Request::SetUp { index }]),
        None => (GUEST_LINK_SYSCTLS_NO_V6, vec![Request::SetUp { index }]),
    }
}

/// What the sandbox does in its namespace, where `eth0` has interface index `index` and is up.
pub(super) fn guest(spec: &NetnsSpec, index: u32) -> (&'static [Sysctl], Vec<Request<'static>>) {
    let mut requests = vec![Request::SetUp { index: LOOPBACK_INDEX }];
    for end in ends(spec) {
        requests.extend([
            Request::AddAddress { index, address: end.guest, prefix: end.prefix },
            Request::AddNeighbour { index, address: end.gateway, mac: spec.gateway_mac },
            Request::AddDefaultRoute {
                version: end.version,
                table: Request::MAIN_TABLE,
                kind: RouteKind::Via { gateway: end.gateway },
            },
        ]);
    }
    (GUEST_SYSCTLS, requests)
}

/// The addresses of one IP version.
struct Ends {
    version: IpVersion,
    guest: IpAddr,
    gateway: IpAddr,
    prefix: u8,
}

fn ends(spec: &NetnsSpec) -> impl Iterator<Item = Ends> {
    let link = &spec.link;
    let v4 =
        Ends { version: IpVersion::V4, guest: link.guest4.into(), gateway: link.gateway4.into(), prefix: link.prefix4 };
    let v6 = link.v6.as_ref().map(|v6| Ends {
        version: IpVersion::V6,
        guest: v6.guest.into(),
        gateway: v6.gateway.into(),
        prefix: v6.prefix,
    });
    [Some(v4), v6].into_iter().flatten()
}

fn versions(spec: &NetnsSpec) -> &'static [IpVersion] {
    if spec.link.v6.is_some() { &[IpVersion::V4, IpVersion::V6] } else { &[IpVersion::V4] }
}

/// The lowest and the highest id that an id map (`/proc/self/gid_map`: inside, outside, count per line) knows inside.
pub(super) fn mapped_range(map: &str) -> Option<(u32, u32)> {
    // `ping_group_range` is a range of `gid_t` whose upper end the kernel takes as an `int`.
    const HIGHEST: u32 = i32::MAX.cast_unsigned();
    let extents = map.lines().filter_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (inside, _outside, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some((inside, inside.saturating_add(count.checked_sub(1)?).min(HIGHEST)))
    });
    extents.reduce(|(first, last), (a, b)| (first.min(a), last.max(b)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// The plan in words, one line per change.
    fn words(ipv6: bool) -> Vec<String> {
        let stdin = std::io::stdin();
        words_of(&NetnsSpec::example(ipv6), GuestEnd::Netns(stdin.as_fd()))
    }

    fn words_of(spec: &NetnsSpec, guest: GuestEnd<'_>) -> Vec<String> {
        let lines = gateway(spec, guest).into_iter().flat_map(|step| match step {
            Step::Sysctl(sysctl) => vec![format!("set {} to {}", sysctl.path, sysctl.value)],
            Step::CreateTun { name, index } => vec![format!("make {name} with index {index}")],
            Step::CreateTap { name, index } => vec![format!("make the TAP {name} with index {index}")],
            Step::Filter(_) => vec!["install the filter".to_owned()],
            Step::Network(requests) => requests.iter().map(ToString::to_string).collect(),
            Step::GuestLink => vec!["switch eth0 on".to_owned()],
            Step::AwaitGuestLink => vec!["wait for eth0".to_owned()],
            Step::Listen { version, port, .. } => vec![format!("listen on {version} port {port}")],
        });
        lines.collect()
    }

    fn position(plan: &[String], line: &str) -> usize {
        plan.iter().position(|l| l == line).unwrap_or_else(|| panic!("{line:?} is not in {plan:#?}"))
    }

    #[test]
    fn filters_before_any_link_is_up() {
        for ipv6 in [true, false] {
            let plan = words(ipv6);
            let filter = position(&plan, "install the filter");
            assert!(filter < position(&plan, "bring up link 100"));
            assert!(filter < position(&plan, "bring up link 101"));
            assert!(filter < position(&plan, "switch eth0 on"));
            let settings = plan.iter().rposition(|l| l.starts_with("set ipv")).unwrap();
            assert!(settings < position(&plan, "make tun0 with index 101"), "links inherit what is set before");
        }
    }

    #[test]
    fn a_tap_is_in_the_place_of_a_veth_pair_and_everything_else_is_the_same() {
        for ipv6 in [true, false] {
            let stdin = std::io::stdin();
            let tap = words_of(&NetnsSpec::example(ipv6), GuestEnd::Tap(stdin.as_fd()));
            assert!(position(&tap, "install the filter") < position(&tap, "make the TAP sbx0 with index 100"));
            assert!(
                position(&tap, "set the hardware address of link 100") < position(&tap, "bring up link 100"),
                "the neighbour of the guest never changes"
            );
            let own = [
                "make the TAP sbx0 with index 100",
                "set the hardware address of link 100",
                "set the MTU of link 100 to 1500",
            ];
            let veth = ["add the veth pair sbx0 and eth0", "switch eth0 on", "wait for eth0"];
            let rest = |lines: Vec<String>, without: &[&str]| -> Vec<String> {
                lines.into_iter().filter(|line| !without.contains(&line.as_str())).collect()
            };
            assert_eq!(rest(tap, &own), rest(words(ipv6), &veth));
        }
    }

    #[test]
    fn asks_the_marks_before_the_local_addresses() {
        let plan = words(true);
        for version in ["IPv4", "IPv6"] {
            let local = position(&plan, &format!("add {version} rule 3 to table 255"));
            assert!(position(&plan, &format!("add {version} rule 1 for mark 1 to table 100")) < local);
            assert!(position(&plan, &format!("add {version} rule 2 for mark 2 to table 101")) < local);
            // Never without a table of local addresses.
            assert!(local < position(&plan, &format!("remove {version} rule 0 to table 255")));
        }
    }

    #[test]
    fn large_segments_are_offered_by_the_server_of_files_alone_and_where_there_is_one() {
        let stdin = std::io::stdin();
        for ipv6 in [true, false] {
            let without = NetnsSpec::example(ipv6);
            let with = NetnsSpec { files: Some("10.0.2.100:445".parse().unwrap()), ..without.clone() };
            let tap = |spec| words_of(spec, GuestEnd::Tap(stdin.as_fd()));
            let (without, with) = (tap(&without), tap(&with));
            let more: Vec<_> = with.iter().filter(|line| !without.contains(line)).collect();
            let expected = [
                "add IPv4 rule 4 for mark 3 to table 102",
                "add the IPv4 default route to link 100 with segments of 65480 bytes in table 102",
            ];
            assert_eq!(more, expected);
            assert_eq!(with.len(), without.len() + expected.len());
            assert!(position(&with, "bring up link 100") < position(&with, expected[1]));
        }
    }

    #[test]
    fn has_no_default_route_but_by_mark() {
        let plan = words(true);
        let routes: Vec<_> = plan.iter().filter(|l| l.contains("default route")).collect();
        assert_eq!(routes.len(), 4);
        assert!(routes.iter().all(|l| l.ends_with("in table 100") || l.ends_with("in table 101")), "{routes:#?}");
    }

    #[test]
    fn leaves_ipv6_alone_when_it_is_off() {
        let plan = words(false);
        let ipv6: Vec<_> = plan.iter().filter(|l| l.to_lowercase().contains("ipv6") || l.contains("::")).collect();
        assert_eq!(ipv6, ["set ipv6/conf/all/forwarding to 0", "set ipv6/conf/all/disable_ipv6 to 1"]);
    }

    #[test]
    fn gives_the_guest_addresses_and_one_way_out() {
        let spec = NetnsSpec::example(true);
        let (_, requests) = guest(&spec, 2);
        let lines: Vec<_> = requests.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "bring up link 1",
                "add address 172.16.0.2/30 to link 2",
                "add neighbour 172.16.0.1 on link 2",
                "add the IPv4 default route via 172.16.0.1 in table 254",
                "add address fd00::2/64 to link 2",
                "add neighbour fd00::1 on link 2",
                "add the IPv6 default route via fd00::1 in table 254",
            ]
        );
    }

    #[test]
    fn sets_no_value_twice() {
        for ipv6 in [true, false] {
            let mut paths: Vec<_> = words(ipv6)
                .iter()
                .filter_map(|l| l.strip_prefix("set ip").and_then(|l| l.split(' ').next()).map(str::to_owned))
                .collect();
            let count = paths.len();
            paths.sort();
            paths.dedup();
            assert_eq!(paths.len(), count);
        }
    }

    #[test]
    fn finds_the_ends_of_an_id_map() {
        assert_eq!(mapped_range("         0       1500          1\n"), Some((0, 0)));
        assert_eq!(mapped_range("0 1500 1\n1 100000 65536\n"), Some((0, 65_536)));
        assert_eq!(mapped_range("0 0 4294967295\n"), Some((0, i32::MAX.cast_unsigned())));
        assert_eq!(mapped_range(""), None);
        assert_eq!(mapped_range("0 0 0\n"), None);
        assert_eq!(mapped_range("nonsense\n"), None);
    }
}
