//! Comparing two policies finds what asking them does.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

mod universe;

use cofferdam_model::{
    Action, Classifier, Direction, DomainName, HostNetwork, Layer, PolicyConfig, PolicyLayer, Protocol,
};
use cofferdam_policy::compare::{self, Difference, NarrowError, Narrowing, Question};
use cofferdam_policy::grammar::parse_rules;
use cofferdam_policy::{Facts, PinnedName, Policy, file};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::universe::{Flow, classifier, config, flow, named_config};

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_subset_has_no_flow_that_the_other_denies(configs in pair(), flows in vec(possible(), 1..40)) {
        let [child, parent] = configs.each_ref().map(|config| Policy::of_layer(&layer(Layer::Run, config), classifier()));
        let excess = excess(&configs);
        // What is found is there: asked, both say so.
        if let Some(difference) = &excess {
            prop_assert!(difference.first.allows && !difference.second.allows);
            prop_assert_eq!(ask(&child, &difference.example), true, "{}", difference.example);
            prop_assert_eq!(ask(&parent, &difference.example), false, "{}", difference.example);
        }
        // What is there is found.
        for flow in &flows {
            let facts = flow.facts();
            if child.check(&facts).is_allow() && !parent.check(&facts).is_allow() {
                prop_assert!(excess.is_some(), "{:?}", facts);
            }
        }
    }

    #[test]
    fn sets_of_names_are_looked_at_as_if_they_all_were(
        configs in [named_config(), named_config()],
        flow in possible(),
        port in select(vec![80_u16, 443]),
        peer in select(vec!["8.8.8.8", "10.0.0.1", "2606:4700::1"]),
    ) {
        let [child, parent] = configs.each_ref().map(|config| Policy::of_layer(&layer(Layer::Run, config), classifier()));
        let excess = excess(&configs);
        let peer: std::net::IpAddr = peer.parse().unwrap();
        let protocol = match flow.protocol {
            Protocol::IcmpV4 | Protocol::IcmpV6 if peer.is_ipv4() => Protocol::IcmpV4,
            Protocol::IcmpV4 | Protocol::IcmpV6 => Protocol::IcmpV6,
            Protocol::Tcp | Protocol::Udp => flow.protocol,
        };
        for names in sets() {
            let flow = Flow { protocol, port, peer, names, ..flow.clone() };
            let facts = flow.facts();
            if child.check(&facts).is_allow() && !parent.check(&facts).is_allow() {
                prop_assert!(excess.is_some(), "{:?}", facts);
            }
        }
        for name in few_names() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let question = Question::Name { name: name.clone(), protocol };
                if ask(&child, &question) && !ask(&parent, &question) {
                    prop_assert!(excess.is_some(), "{}", question);
                }
            }
        }
    }

    #[test]
    fn a_policy_is_a_subset_of_itself_and_does_not_differ(config in config()) {
        let (one, other) = (layer(Layer::Run, &config), layer(Layer::Session, &config));
        prop_assert_eq!(compare::is_subset(&one, &other, &classifier()), Ok(true));
        prop_assert_eq!(compare::diff(&one, &other, &classifier()), Ok(compare::Differences::default()));
    }

    #[test]
    fn whatever_changes_is_in_the_difference(configs in pair(), flows in vec(possible(), 1..40)) {
        let [old, new] = configs.each_ref().map(|config| Policy::of_layer(&layer(Layer::Run, config), classifier()));
        let [one, other] = configs.each_ref().map(|config| layer(Layer::Run, config));
        let diff = compare::diff(&one, &other, &classifier()).unwrap();
        for Difference { example, first, second } in &diff.told {
            prop_assert_eq!((ask(&old, example), ask(&new, example)), (first.allows, second.allows), "{}", example);
            prop_assert!(first.allows != second.allows);
        }
        for flow in &flows {
            let facts = flow.facts();
            let [was, is] = [&old, &new].map(|policy| policy.check(&facts).is_allow());
            let told = diff.told.iter().any(|difference| difference.first.allows == was);
            prop_assert!(was == is || told, "{:?}", facts);
        }
    }
}

#[test]
fn the_counterexample_is_told_in_words() {
    let cases = [
        ("allow@10.0.0.0/8:udp:53", "allow@public", "udp 10.0.0.1:53 is allowed by the run but not by the session"),
        ("allow@[fd00::/8]:udp:53", "allow@public", "udp [fd00::1]:53 is allowed by the run but not by the session"),
        ("allow@8.8.8.8:icmpv4", "deny@any", "icmpv4 8.8.8.8 is allowed by the run but not by the session"),
        ("allow@a.example", "allow@b.example", "tcp 1.0.0.0:80 as a.example is allowed by the run"),
        ("allow@any", "allow@0.0.0.0/0,allow@[::/0],allow@host", "tcp 100.100.100.200:80"),
        ("allow@any", "allow@0.0.0.0/0,allow@[::/0],allow@metadata", "172.16.0.1"),
        ("allow@[64:ff9b::/96]", "deny@private,allow@any", "tcp [64:ff9b::a00:"),
        ("allow:ingress@10.0.0.7", "allow@any,deny:ingress@any", "tcp from 10.0.0.7 to port 80"),
    ];
    for (child, parent, words) in cases {
        let difference = excess(&[rules(child), rules(parent)]).unwrap();
        let told = difference.as_excess("run", "session");
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn subsets_are_known_as_such() {
    let cases = [
        ("allow@10.0.0.0/8", "allow@private"),
        ("allow@10.0.0.0/9,allow@10.128.0.0/9", "allow@10.0.0.0/8"),
        ("allow@10.0.0.0/8", "allow@10.0.0.0/9,allow@10.128.0.0/9"),
        ("allow@[fd00::/9],allow@[fd80::/9]", "allow@[fd00::/8]"),
        ("allow@[fd00::/8]", "allow@[fd00::/9],allow@[fd80::/9]"),
        ("allow@10.0.0.0/8:tcp:1-100", "allow@10.0.0.0/8:tcp:1-50,allow@10.0.0.0/8:tcp:51-100"),
        ("allow@www.a.example", "allow@*.a.example"),
        ("allow@.a.example", "allow@*.a.example"),
        ("allow@a.example,allow@.a.example", "allow@*.a.example"),
        ("allow@*.a.example", "allow@a.example,allow@.a.example"),
        ("allow@public", "allow@loopback,allow@public,allow@private"),
        ("allow@10.0.0.5", "deny@10.0.0.4,allow@10.0.0.0/8"),
        // Ports at which nothing passes.
        ("allow@public:tcp:853", "deny@any"),
    ];
    for (child, parent) in cases {
        assert_eq!(excess(&[rules(child), rules(parent)]), None, "{child} in {parent}");
    }
    let not = [
        ("allow@*.a.example", "allow@.a.example"),
        ("allow@*.a.example", "deny@x.a.example,allow@*.a.example"),
        ("allow@10.0.0.0/8", "deny@10.0.0.4,allow@10.0.0.0/8"),
        ("allow@[fd00::/8]", "deny@[fd00::4],allow@[fd00::/8]"),
        ("allow@private", "allow@10.0.0.0/8,allow@172.16.0.0/12,allow@192.168.0.0/16,allow@[fc00::/7]"),
        // A literal address opens the host; a network around it does not.
        ("allow@172.16.0.1", "allow@172.16.0.0/12"),
        ("allow@169.254.169.254", "allow@169.254.0.0/16"),
        ("allow@[fd00:ec2::254]", "allow@[fd00::/8]"),
        // Denying a name closes nothing that is open by address.
        ("allow@public", "deny@a.example,allow@public"),
    ];
    for (child, parent) in not {
        assert!(excess(&[rules(child), rules(parent)]).is_some(), "{child} in {parent}");
    }
}

#[test]
fn checking_refuses_and_clipping_lists() {
    let mut network = file::default_network();
    network.policy = rules("allow@10.0.0.0/8:udp:53,allow@private,allow@public");
    let session = PolicyLayer { layer: Layer::Session, ..layer(Layer::Session, &rules("allow@public")) };
    network.ceilings = vec![session];
    match compare::narrow(&network, Narrowing::Check, &classifier()) {
        Err(NarrowError::Wider { words, .. }) => {
            assert!(words.contains("is allowed by the run but not by the session"), "{words}");
        }
        other => panic!("{other:?}"),
    }
    let clipped = compare::narrow(&network, Narrowing::Clip, &classifier()).unwrap();
    assert!(clipped.iter().any(|words| words.starts_with("udp 10.0.0.1:53 is allowed by the run")), "{clipped:?}");
    assert!(clipped.len() < 12, "{clipped:?}");
    network.policy = rules("allow@8.0.0.0/8");
    for mode in [Narrowing::Check, Narrowing::Clip] {
        assert_eq!(compare::narrow(&network, mode, &classifier()), Ok(Vec::new()));
    }
    network.ceilings.clear();
    assert_eq!(compare::narrow(&network, Narrowing::Check, &classifier()), Ok(Vec::new()));
}

#[test]
fn the_list_of_differences_is_bounded() {
    let text: Vec<String> = (0..200).map(|n| format!("allow@10.0.{n}.1")).collect();
    let clipped = compare::clipped(
        &layer(Layer::Run, &rules(&text.join(","))),
        &layer(Layer::Session, &rules("allow@public")),
        &classifier(),
    )
    .unwrap();
    assert_eq!((clipped.told.len(), clipped.more), (compare::TOLD, true));
}

#[test]
fn policies_that_are_too_large_are_refused_in_good_time() {
    let many = |seed: u32| -> String {
        let rule = |n: u32| format!("allow@n{}.example:tcp:{},deny@m{}.example:udp:{}", n * seed, n + 1, n, n + 1);
        (0..3_000).map(rule).collect::<Vec<_>>().join(",")
    };
    let [one, other] = [many(2), many(3)].map(|text| layer(Layer::Run, &rules(&text)));
    assert_eq!(compare::is_subset(&one, &one, &classifier()), Err(compare::TooLarge));
    // Where a difference comes early it is found all the same.
    assert_ne!(compare::is_subset(&one, &other, &classifier()), Ok(true));
}

#[test]
fn a_change_is_told_with_both_rules() {
    let (old, new) =
        (layer(Layer::Run, &rules("allow@public")), layer(Layer::Run, &rules("deny@any:tcp:25,allow@public")));
    let diff = compare::diff(&old, &new, &Classifier::default()).unwrap();
    let words: Vec<String> = diff.told.iter().map(ToString::to_string).collect();
    assert_eq!(words, ["tcp 1.0.0.0:25 was allowed by `allow@public`, is denied by `deny@any:tcp:25`"]);
    let back: Vec<String> =
        compare::diff(&new, &old, &Classifier::default()).unwrap().told.iter().map(ToString::to_string).collect();
    assert_eq!(back, ["tcp 1.0.0.0:25 was denied by `deny@any:tcp:25`, is allowed by `allow@public`"]);
}

fn excess(configs: &[PolicyConfig; 2]) -> Option<Difference> {
    compare::excess(&layer(Layer::Run, &configs[0]), &layer(Layer::Session, &configs[1]), &classifier()).unwrap()
}

fn layer(layer: Layer, config: &PolicyConfig) -> PolicyLayer {
    PolicyLayer { layer, policy: config.clone(), deny_doh: None, rebind_protection: true }
}

fn rules(text: &str) -> PolicyConfig {
    let rules = parse_rules(text).unwrap();
    PolicyConfig { default_ingress: Action::Deny, rules, ..PolicyConfig::default() }
}

fn ask(policy: &Policy, question: &Question) -> bool {
    match question {
        Question::Flow { direction, protocol, peer, port, names } => {
            let facts = Facts { direction: *direction, protocol: *protocol, peer: *peer, port: *port, names };
            policy.check(&facts).is_allow()
        }
        Question::Name { name, protocol } => {
            let peer = classifier().host().addresses[0];
            let facts = Facts { direction: Direction::Egress, protocol: *protocol, peer, port: Some(53), names: &[] };
            policy.check_name(name, &facts).is_allow()
        }
    }
}

/// Two policies, often of much the same rules: else hardly any is a subset of the other.
fn pair() -> impl Strategy<Value = [PolicyConfig; 2]> {
    let unlike = [config(), config()];
    let alike = (config(), any::<prop::sample::Index>(), any::<bool>()).prop_map(|(whole, at, turned)| {
        let mut part = whole.clone();
        if !part.rules.is_empty() {
            part.rules.remove(at.index(whole.rules.len()));
        }
        if turned { [part, whole] } else { [whole, part] }
    });
    prop_oneof![1 => unlike, 2 => alike]
}

/// A flow that there can be: no ICMP to an address of the other family, none that comes in.
fn possible() -> impl Strategy<Value = Flow> {
    flow().prop_filter("no such flow", |flow| match flow.protocol {
        Protocol::Tcp | Protocol::Udp => true,
        Protocol::IcmpV4 => flow.peer.to_canonical().is_ipv4() && flow.direction == Direction::Egress,
        Protocol::IcmpV6 => flow.peer.to_canonical().is_ipv6() && flow.direction == Direction::Egress,
    })
}

fn few_names() -> Vec<DomainName> {
    ["a.com", "b.a.com", "dns.google", "x.dns.google", "lan"].map(|name| name.parse().unwrap()).to_vec()
}

/// Every set of up to three of the few names with or without an alias.
fn sets() -> Vec<Vec<PinnedName>> {
    let names = few_names();
    let pin = |name: &DomainName, alias| PinnedName { name: name.clone(), alias };
    let mut sets: Vec<Vec<PinnedName>> = Vec::new();
    for bits in 0..1_usize << names.len() {
        let chosen = names.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1);
        let set: Vec<PinnedName> = chosen.map(|(_, name)| pin(name, false)).collect();
        for alias in names.iter().map(Some).chain([None]) {
            sets.push(set.iter().cloned().chain(alias.map(|name| pin(name, true))).collect());
        }
    }
    sets
}

#[test]
fn addresses_of_the_host_count() {
    let host = HostNetwork { addresses: vec!["10.0.0.9".parse().unwrap()], ..HostNetwork::default() };
    let (child, parent) =
        (layer(Layer::Run, &rules("allow@10.0.0.9")), layer(Layer::Session, &rules("allow@10.0.0.0/8")));
    assert_eq!(compare::is_subset(&child, &parent, &Classifier::default()), Ok(true));
    assert_eq!(compare::is_subset(&child, &parent, &Classifier::new(host)), Ok(false));
}
