//! The packet filter of the gateway's namespace: what may go from where to where, and nothing else.
//!
//! Packets of the guest are checked for their source first, then sorted: a SYN, and all that is not TCP, is for the gateway
//! process (through the TUN); the rest of TCP is for the transparent sockets. Packets of the gateway process go to
//! the guest or are SYNs on their way to a listener. Everything that is dropped is counted; `nft list ruleset` in the namespace
//! shows it.

use std::net::Ipv6Addr;

use cofferdam_sys::nft::Action::{Accept, Count, Drop, SetMark, Tproxy};
use cofferdam_sys::nft::Comparison::{self, Equal, NotEqual};
use cofferdam_sys::nft::Test::{InputLink, Mark, NotToUs, OutputLink, Transport, Version};
use cofferdam_sys::nft::{Action, Base, Chain, Family, Hook, Rule, Ruleset, Table, Test};
use cofferdam_sys::transparent::IpVersion::{V4, V6};

use super::NetnsSpec;
use super::plan::{GATEWAY_INDEX, LISTENER_PORT, MARK_LOCAL, MARK_TUN, TUN_INDEX};
use crate::Link6;

const TABLE: &str = "cofferdam";

/// `mangle`: after defragmentation (-400), before routing.
const PREROUTING_PRIORITY: i32 = -150;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// The one ICMP error that the gateway's kernel sends: a packet's time to live ended here (RFC 792, RFC 4443 §3.3).
const TIME_EXCEEDED: u8 = 11;
const TIME_EXCEEDED_V6: u8 = 3;
/// RFC 4861 §4.3 and §4.4.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const NEIGHBOUR_MESSAGES: [u8; 2] = [SOLICITATION, ADVERTISEMENT];

/// The filter for `spec`.
pub(super) fn ruleset(spec: &NetnsSpec) -> Ruleset {
    let chains = vec![
        Chain { hook: Hook::Prerouting, priority: PREROUTING_PRIORITY, rules: prerouting(spec) },
        Chain { hook: Hook::Input, priority: 0, rules: input(spec) },
        Chain { hook: Hook::Forward, priority: 0, rules: forward() },
        Chain { hook: Hook::Output, priority: 0, rules: output() },
    ];
    let inet = Table { family: Family::Inet, name: TABLE, chains };
    let arp = Table {
        family: Family::Arp,
        name: TABLE,
        chains: vec![Chain { hook: Hook::ArpInput, priority: 0, rules: arp_input(spec) }],
    };
    Ruleset { tables: vec![inet, arp] }
}

fn prerouting(spec: &NetnsSpec) -> Vec<Rule> {
    let guest = InputLink(GATEWAY_INDEX);
    let tun = InputLink(TUN_INDEX);
    let to_tun = [SetMark(MARK_TUN), Accept];
    let to_socket = [Tproxy { port: LISTENER_PORT }, SetMark(MARK_LOCAL), Accept];

    let mut rules = vec![
        drop_rule("hardware address is not the guest's", vec![guest.clone(), ether_source(NotEqual, spec.guest_mac)]),
        drop_rule(
            "IPv4 source is not the guest's",
            vec![guest.clone(), Version(V4), bytes(Base::Network, 12, NotEqual, &spec.link.guest4.octets())],
        ),
        // Version 4 and a header of 5 words: anything longer has options, source routes among them.
        drop_rule("IPv4 options", vec![guest.clone(), Version(V4), bytes(Base::Network, 0, NotEqual, &[0x45])]),
    ];
    match &spec.link.v6 {
        Some(v6) => {
            rules.push(drop_rule(
                "IPv6 source is not the guest's",
                vec![guest.clone(), Version(V6), ipv6_source(NotEqual, v6.guest)],
            ));
            rules.extend(neighbours_of_guest(v6));
        }
        None => rules.push(drop_rule("IPv6 is off", vec![guest.clone(), Version(V6)])),
    }
    rules.push(drop_rule("multicast, broadcast", vec![guest.clone(), NotToUs]));
    if let Some(files) = spec.files {
        // Before anything is decided on: whatever the policy says, the guest has its files. The mark has the address taken
        // for one of this namespace, where only the listener and what it has accepted have it.
        let to_files = vec![
            guest.clone(),
            Version(V4),
            bytes(Base::Network, 16, Equal, &files.ip().octets()),
            Transport(TCP),
            bytes(Base::Transport, 2, Equal, &files.port().to_be_bytes()),
        ];
        rules.push(rule("files", to_files, &[SetMark(MARK_LOCAL), Accept]));
    }
    // The protocol of IPv4, the next header of IPv6: TCP behind extension headers is not for a socket either.
    for (version, offset) in [(V4, 9), (V6, 6)] {
        let other = bytes(Base::Network, offset, NotEqual, &[TCP]);
        rules.push(rule("not TCP: decide", vec![guest.clone(), Version(version), other], &to_tun));
    }
    // FIN 1, SYN 2, RST 4, ACK 16: of these SYN alone. ECN, PSH and URG may be there.
    let syn = Test::Bytes { base: Base::Transport, offset: 13, mask: Some(vec![0x17]), is: Equal, value: vec![0x02] };
    rules.extend([
        rule("SYN: decide", vec![guest.clone(), Transport(TCP), syn], &to_tun),
        rule("TCP of an accepted connection", vec![guest, Transport(TCP)], &to_socket),
        rule(
            "to the guest",
            vec![tun.clone(), Version(V4), bytes(Base::Network, 16, Equal, &spec.link.guest4.octets())],
            &[Accept],
        ),
    ]);
    if let Some(v6) = &spec.link.v6 {
        let to_guest = vec![tun.clone(), Version(V6), bytes(Base::Network, 24, Equal, &v6.guest.octets())];
        rules.push(rule("to the guest", to_guest, &[Accept]));
    }
    rules.push(rule("accepted SYN", vec![tun, Transport(TCP)], &to_socket));
    rules.push(drop_rule("anything else", vec![]));
    rules
}

fn input(spec: &NetnsSpec) -> Vec<Rule> {
    let mut rules = vec![rule("for a transparent socket", vec![Mark(MARK_LOCAL), Transport(TCP)], &[Accept])];
    rules.extend(spec.link.v6.iter().flat_map(neighbours_of_guest));
    rules.push(drop_rule("anything else", vec![]));
    rules
}

fn forward() -> Vec<Rule> {
    vec![
        rule("guest to TUN", vec![InputLink(GATEWAY_INDEX), OutputLink(TUN_INDEX), Mark(MARK_TUN)], &[Accept]),
        rule("TUN to guest", vec![InputLink(TUN_INDEX), OutputLink(GATEWAY_INDEX)], &[Accept]),
        drop_rule("anything else", vec![]),
    ]
}

fn output() -> Vec<Rule> {
    let to_guest = OutputLink(GATEWAY_INDEX);
    let icmp = |version, protocol, kind| {
        vec![to_guest.clone(), Version(version), Transport(protocol), bytes(Base::Transport, 0, Equal, &[kind])]
    };
    let mut rules = vec![
        rule("accepted connections", vec![to_guest.clone(), Transport(TCP)], &[Accept]),
        rule("time exceeded", icmp(V4, ICMP, TIME_EXCEEDED), &[Accept]),
        rule("time exceeded", icmp(V6, ICMP_V6, TIME_EXCEEDED_V6), &[Accept]),
    ];
    rules.extend(NEIGHBOUR_MESSAGES.map(|message| {
        let tests = [vec![to_guest.clone()], neighbour_message(message)].concat();
        rule("neighbour discovery", tests, &[Accept])
    }));
    rules.push(drop_rule("anything else", vec![]));
    rules
}

/// A guest asks for the gateway's address, as itself, or is not heard: each claim would take a place in the kernel's neighbour
/// table, which all namespaces of the machine share.
fn arp_input(spec: &NetnsSpec) -> Vec<Rule> {
    // RFC 826: sender hardware and protocol address at 8, target protocol address at 24.
    let sender = [&spec.guest_mac[..], &spec.link.guest4.octets()[..]].concat();
    vec![
        rule(
            "the guest asks for the gateway",
            vec![
                InputLink(GATEWAY_INDEX),
                bytes(Base::Network, 8, Equal, &sender),
                bytes(Base::Network, 24, Equal, &spec.link.gateway4.octets()),
            ],
            &[Accept],
        ),
        drop_rule("anything else", vec![]),
    ]
}

/// A guest asks for the gateway's address or tells of its own, or is not heard: the kernel would log an advertisement of the
/// gateway's address, as often as its rate limit allows, in the log of the whole machine.
fn neighbours_of_guest(v6: &Link6) -> Vec<Rule> {
    let about = |message, target: Ipv6Addr| {
        // RFC 4861 §4.3 and §4.4: the target is after type, code, checksum and a word of flags.
        let target = bytes(Base::Transport, 8, Equal, &target.octets());
        [vec![InputLink(GATEWAY_INDEX)], neighbour_message(message), vec![target]].concat()
    };
    let other = |message| {
        let tests = [vec![InputLink(GATEWAY_INDEX)], neighbour_message(message)].concat();
        drop_rule("neighbour discovery for others", tests)
    };
    vec![
        rule("the guest asks for the gateway", about(SOLICITATION, v6.gateway), &[Accept]),
        rule("the guest tells of itself", about(ADVERTISEMENT, v6.guest), &[Accept]),
        other(SOLICITATION),
        other(ADVERTISEMENT),
    ]
}

/// A neighbour solicitation or advertisement from the link itself: routers do not pass a hop limit of 255 on.
fn neighbour_message(kind: u8) -> Vec<Test> {
    vec![Version(V6), bytes(Base::Network, 6, Equal, &[ICMP_V6, 255]), bytes(Base::Transport, 0, Equal, &[kind])]
}

fn rule(comment: &'static str, tests: Vec<Test>, actions: &[Action]) -> Rule {
    Rule { comment, tests, actions: actions.to_vec() }
}

fn drop_rule(comment: &'static str, tests: Vec<Test>) -> Rule {
    rule(comment, tests, &[Count, Drop])
}

fn bytes(base: Base, offset: u32, is: Comparison, value: &[u8]) -> Test {
    Test::Bytes { base, offset, mask: None, is, value: value.to_vec() }
}

fn ether_source(is: Comparison, mac: [u8; 6]) -> Test {
    bytes(Base::Link, 6, is, &mac)
}

fn ipv6_source(is: Comparison, address: Ipv6Addr) -> Test {
    bytes(Base::Network, 8, is, &address.octets())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(ipv6: bool) -> Vec<Chain> {
        ruleset(&NetnsSpec::example(ipv6)).tables.into_iter().flat_map(|table| table.chains).collect()
    }

    #[test]
    fn ends_every_chain_with_a_counted_drop_of_everything() {
        for chain in chains(true).into_iter().chain(chains(false)) {
            let last = chain.rules.last().unwrap();
            assert_eq!((last.tests.len(), &last.actions[..]), (0, &[Count, Drop][..]), "{:?}", chain.hook);
        }
    }

    #[test]
    fn accepts_by_input_link_only() {
        for chain in chains(true).into_iter().filter(|c| c.hook == Hook::Prerouting) {
            for rule in chain.rules.iter().filter(|r| r.actions.contains(&Accept)) {
                assert!(matches!(rule.tests[0], InputLink(GATEWAY_INDEX | TUN_INDEX)), "{}", rule.comment);
            }
        }
    }

    #[test]
    fn files_are_for_the_guest_alone_and_only_when_it_has_some() {
        let rules = |files| {
            let spec = NetnsSpec { files, ..NetnsSpec::example(true) };
            let chains = ruleset(&spec).tables.into_iter().flat_map(|table| table.chains);
            chains.flat_map(|chain| chain.rules).filter(|rule| rule.comment == "files").collect::<Vec<_>>()
        };
        assert_eq!(rules(None), []);
        let with = rules(Some("10.0.2.100:445".parse().unwrap()));
        assert_eq!(with.len(), 1);
        assert_eq!(with[0].tests[..2], [InputLink(GATEWAY_INDEX), Version(V4)]);
        assert!(with[0].tests.contains(&bytes(Base::Network, 16, Equal, &[10, 0, 2, 100])));
        assert!(with[0].tests.contains(&bytes(Base::Transport, 2, Equal, &[1, 189])));
    }

    #[test]
    fn checks_the_source_before_it_accepts_anything_of_the_guest() {
        for ipv6 in [true, false] {
            let prerouting = chains(ipv6).into_iter().find(|c| c.hook == Hook::Prerouting).unwrap();
            let first_accept = prerouting.rules.iter().position(|r| r.actions.contains(&Accept)).unwrap();
            let checks: Vec<_> = prerouting.rules[..first_accept].iter().map(|r| r.comment).collect();
            let mut expected =
                vec!["hardware address is not the guest's", "IPv4 source is not the guest's", "IPv4 options"];
            // Without IPv6 a multicast check comes before the first accept as well.
            expected.extend(if ipv6 {
                &["IPv6 source is not the guest's"][..]
            } else {
                &["IPv6 is off", "multicast, broadcast"]
            });
            assert_eq!(checks, expected);
        }
    }
}
