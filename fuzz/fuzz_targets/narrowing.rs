//! Two texts of rules, one line each, as the policies of a session and of a run in it: both together allow what each of
//! them allows, and the comparison finds what the run allows beyond the session, and nothing else.

#![no_main]

use std::net::IpAddr;

use cofferdam_model::{
    Action, Classifier, Destination, Direction, DomainName, HostNetwork, Layer, PolicyConfig, PolicyLayer, Protocol, Rule,
};
use cofferdam_policy::compare::{self, Question};
use cofferdam_policy::grammar::parse_rules;
use cofferdam_policy::{Facts, PinnedName, Policy};
use libfuzzer_sys::fuzz_target;

/// More cost time and find nothing else.
const MOST_RULES: usize = 24;
const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 16, 0, 1));

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let mut layer = |layer| {
        let rules = parse_rules(lines.next()?).ok().filter(|rules| rules.len() <= MOST_RULES)?;
        let policy = PolicyConfig { default_ingress: Action::Deny, rules, ..PolicyConfig::default() };
        Some(PolicyLayer { layer, policy, deny_doh: None, rebind_protection: true })
    };
    let (Some(session), Some(run)) = (layer(Layer::Session), layer(Layer::Run)) else { return };
    let classifier = Classifier::new(HostNetwork { addresses: vec![GATEWAY], ..HostNetwork::default() });
    let [outer, inner] = [&session, &run].map(|layer| Policy::of_layer(layer, classifier.clone()));
    let both = outer.narrowed_by(&inner).expect("two layers");
    let excess = compare::excess(&run, &session, &classifier);
    if let Ok(Some(difference)) = &excess {
        assert!(allows(&inner, &difference.example), "{}", difference.example);
        assert!(!allows(&outer, &difference.example), "{}", difference.example);
    }
    for question in questions(session.policy.rules.iter().chain(&run.policy.rules)) {
        let (by_outer, by_inner) = (allows(&outer, &question), allows(&inner, &question));
        assert_eq!(allows(&both, &question), by_outer && by_inner, "{question}");
        assert!(!by_inner || by_outer || !matches!(excess, Ok(None)), "{question}");
    }
});

fn allows(policy: &Policy, question: &Question) -> bool {
    match question {
        Question::Flow { direction, protocol, peer, port, names } => {
            let facts = Facts { direction: *direction, protocol: *protocol, peer: *peer, port: *port, names };
            policy.check(&facts).is_allow()
        }
        Question::Name { name, protocol } => {
            let facts =
                Facts { direction: Direction::Egress, protocol: *protocol, peer: GATEWAY, port: Some(53), names: &[] };
            policy.check_name(name, &facts).is_allow()
        }
    }
}

/// What these rules are about, and some of what they are not.
fn questions<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<Question> {
    let mut peers: Vec<IpAddr> = ["8.8.4.5", "10.0.0.1", "2606:4700::9", "169.254.169.254", "172.16.0.1"]
        .map(|address| address.parse().expect("an address"))
        .to_vec();
    let mut ports = vec![53, 443];
    let mut names: Vec<DomainName> = vec!["other.example".parse().expect("a name")];
    for rule in rules {
        match &rule.destination {
            Destination::Cidr(net) => peers.push(net.addr()),
            Destination::Domain(name) | Destination::Suffix { name, .. } => names.push(name.clone()),
            Destination::Any | Destination::Group(_) => {}
        }
        ports.extend(rule.ports.iter().flat_map(|range| [range.start, range.end]));
    }
    let mut questions = Vec::new();
    for name in names.iter().take(8) {
        let over = |protocol| Question::Name { name: name.clone(), protocol };
        questions.extend([Protocol::Tcp, Protocol::Udp].map(over));
    }
    for peer in peers.into_iter().take(10) {
        let icmp = if peer.is_ipv4() { Protocol::IcmpV4 } else { Protocol::IcmpV6 };
        for name in [None].into_iter().chain(names.iter().take(4).map(Some)) {
            let pinned: Vec<_> = name.map(|name| PinnedName { name: name.clone(), alias: false }).into_iter().collect();
            let flow = |direction, protocol, port| Question::Flow { direction, protocol, peer, port, names: pinned.clone() };
            for direction in [Direction::Egress, Direction::Ingress] {
                questions.push(flow(direction, icmp, None));
                for port in ports.iter().take(6) {
                    questions.push(flow(direction, Protocol::Tcp, Some(*port)));
                    questions.push(flow(direction, Protocol::Udp, Some(*port)));
                }
            }
        }
    }
    questions
}
