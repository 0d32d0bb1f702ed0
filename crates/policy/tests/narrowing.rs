//! What holds for policies that hold at once: a flow, a flight, a name passes exactly when each alone lets it pass.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

mod universe;

use std::time::Duration;

use cofferdam_model::{Action, Classifier, Direction, Group, HostNetwork, Layer, PolicyConfig, Time};
use cofferdam_policy::grammar::parse_rules;
use cofferdam_policy::{
    BuiltIn, Facts, Flight, FlightVerdict, PinnedName, Pins, Policy, RuleRef, ShownName, TooManyLayers, Verdict, file,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::universe::{Flow, address, classifier, config, flow, name, shown, tcp};

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flow_passes_when_every_layer_lets_it(configs in vec(config(), 1..=3), flows in vec(flow(), 1..20)) {
        let alone = compile(&configs);
        let together = narrow(&alone);
        for flow in &flows {
            let facts = flow.facts();
            let verdict = together.check(&facts);
            let verdicts: Vec<Verdict> = alone.iter().map(|policy| policy.check(&facts)).collect();
            prop_assert_eq!(verdict.is_allow(), verdicts.iter().all(Verdict::is_allow));
            // The outermost that denies says why; when none does, the innermost.
            let deciding = verdicts.iter().position(|verdict| !verdict.is_allow()).unwrap_or(verdicts.len() - 1);
            prop_assert_eq!(verdict.reason().rule, verdicts[deciding].reason().rule);
            prop_assert_eq!(&verdict.reason().name, &verdicts[deciding].reason().name);
            prop_assert_eq!(verdict.reason().group, verdicts[deciding].reason().group);
            let text = alone[deciding].rule_text(verdicts[deciding].reason());
            prop_assert_eq!(together.rule_text(verdict.reason()).text, text.text);
            let pending = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Pending(..)));
            prop_assert_eq!(matches!(verdict, Verdict::Pending(..)), pending && verdict.is_allow());
        }
    }

    #[test]
    fn a_flight_passes_when_every_layer_lets_it(configs in vec(config(), 1..=3), flow in flow(), shown in shown()) {
        let alone = compile(&configs);
        let facts = flow.facts();
        let Verdict::Pending(_, pending) = narrow(&alone).check(&facts) else { return Ok(()) };
        let names = flow.shows(&shown);
        let flight = shown.flight(&names);
        let verdict = narrow(&alone).check_flight(&pending, &flight);
        // A layer that has allowed the flow for good has nothing left to say.
        let denied = alone.iter().find_map(|policy| match policy.check(&facts) {
            Verdict::Pending(_, pending) => match policy.check_flight(&pending, &flight) {
                FlightVerdict::Deny(denial) => Some(denial.reason().rule),
                FlightVerdict::Allow(_) => None,
            },
            Verdict::Allow(_) | Verdict::Deny(_) => None,
        });
        prop_assert_eq!(verdict.is_allow(), denied.is_none());
        if let Some(rule) = denied {
            prop_assert_eq!(verdict.reason().rule, rule);
        }
    }

    #[test]
    fn a_name_is_resolved_when_every_layer_lets_it(configs in vec(config(), 1..=3), name in name(), flow in flow()) {
        let alone = compile(&configs);
        let together = narrow(&alone);
        let verdict = together.check_name(&name, &flow.facts());
        let verdicts: Vec<_> = alone.iter().map(|policy| policy.check_name(&name, &flow.facts())).collect();
        prop_assert_eq!(verdict.is_allow(), verdicts.iter().all(cofferdam_policy::NameVerdict::is_allow));
        let deciding = verdicts.iter().position(|verdict| !verdict.is_allow()).unwrap_or(verdicts.len() - 1);
        prop_assert_eq!(verdict.reason().rule, verdicts[deciding].reason().rule);
        for (place, alone) in verdicts.iter().enumerate().filter(|_| verdict.is_allow()) {
            prop_assert_eq!(verdict.reason().leads_inside(place), alone.reason().leads_inside(0));
        }
    }

    #[test]
    fn pins_decide_for_every_layer_as_all_names_do(
        configs in vec(config(), 2..=3),
        pinned in vec((name(), any::<bool>()), 0..40),
        flows in vec(flow(), 1..30),
    ) {
        let alone = compile(&configs);
        let together = narrow(&alone);
        let peer = "8.8.8.8".parse().unwrap();
        let mut pins = Pins::new(Pins::FLOOR);
        let mut all: Vec<PinnedName> = Vec::new();
        let mut pinned = pinned.into_iter();
        for flow in flows {
            for (name, alias) in pinned.by_ref().take(3) {
                pins.insert(Time::ZERO, &name, alias, peer, Duration::from_secs(60)).unwrap();
                let name = PinnedName { name, alias };
                if !all.contains(&name) {
                    all.push(name);
                }
            }
            let flow = Flow { direction: Direction::Egress, peer, names: all.clone(), ..flow };
            let facts = flow.facts();
            let few = pins.deciding(Time::ZERO, &together, facts.protocol, peer, facts.port);
            prop_assert!(few.len() <= 6 * configs.len());
            let by_few = together.check(&Facts { names: few, ..facts });
            let by_all = together.check(&facts);
            prop_assert_eq!(by_few.is_allow(), by_all.is_allow());
            prop_assert_eq!(by_few.reason().rule, by_all.reason().rule);
        }
    }

    #[test]
    fn other_addresses_of_the_host_are_seen_by_every_layer(configs in vec(config(), 1..=3), flow in flow(), own in address()) {
        let host = HostNetwork { addresses: vec![own], ..HostNetwork::default() };
        let moved = narrow(&compile(&configs)).with_classifier(Classifier::new(host.clone()));
        let anew: Vec<Policy> = configs.iter().map(|config| Policy::compile(config, Classifier::new(host.clone()))).collect();
        let (moved, anew) = (moved.check(&flow.facts()), narrow(&anew).check(&flow.facts()));
        prop_assert_eq!(moved.is_allow(), anew.is_allow());
        prop_assert_eq!(moved.reason(), anew.reason());
    }
}

#[test]
fn a_denial_says_whose_it_is() {
    let session = rules("allow@10.0.0.0/8,deny@any:tcp:25,allow@public").1;
    let run = rules("deny@10.0.0.1,allow@10.0.0.0/8,allow@public:tcp:443").1;
    let session = Policy::compile_layer(&session, Layer::Session, Classifier::default());
    let run = Policy::compile(&run, Classifier::default());
    let both = session.narrowed_by(&run).unwrap();
    assert_eq!(both.layers().collect::<Vec<_>>(), [Layer::Session, Layer::Run]);
    let said = |peer: &str, port| {
        let verdict = both.check(&tcp(peer, port, &[]));
        (verdict.is_allow(), both.rule_text(verdict.reason()).to_string())
    };
    assert_eq!(said("10.0.0.1", 80), (false, "deny@10.0.0.1 (run)".to_owned()));
    assert_eq!(said("10.0.0.2", 80), (true, "allow@10.0.0.0/8 (run)".to_owned()));
    assert_eq!(said("11.0.0.1", 25), (false, "deny@any:tcp:25 (session)".to_owned()));
    assert_eq!(said("11.0.0.1", 80), (false, "default egress deny (run)".to_owned()));
    assert_eq!(said("192.168.0.1", 80), (false, "default egress deny (session)".to_owned()));
    assert_eq!(said("fd00::1", 80), (false, "default egress deny (session)".to_owned()));
    assert_eq!(said("2606:4700::1", 443), (true, "allow@public:tcp:443 (run)".to_owned()));
    // What holds whatever policies say belongs to none of them.
    assert_eq!(said("11.0.0.1", 853), (false, BuiltIn::EncryptedDns.text().to_owned()));
}

#[test]
fn one_layer_alone_is_nobodys_in_particular() {
    let (policy, _) = rules("allow@public");
    let verdict = policy.check(&tcp("11.0.0.1", 80, &[]));
    assert_eq!(policy.rule_text(verdict.reason()).layer, None);
    assert_eq!(policy.layers().collect::<Vec<_>>(), [Layer::Run]);
}

#[test]
fn a_wide_child_opens_neither_host_nor_metadata() {
    for [child, host, metadata] in
        [["allow@0.0.0.0/0", "172.16.0.1", "169.254.169.254"], ["allow@[::/0]", "fd42::1", "fd00:ec2::254"]]
    {
        let host: std::net::IpAddr = host.parse().unwrap();
        let classifier = Classifier::new(HostNetwork { addresses: vec![host], ..HostNetwork::default() });
        let open = PolicyConfig { default_egress: Action::Allow, ..PolicyConfig::default() };
        let parent = Policy::compile(&open, classifier.clone());
        let both = parent.narrowed_by(&Policy::compile(&rules(child).1, classifier)).unwrap();
        assert_eq!(both.check(&tcp(metadata, 80, &[])).reason().group, Group::Metadata);
        assert!(!both.check(&tcp(metadata, 80, &[])).is_allow());
        assert!(!both.check(&tcp(&host.to_string(), 80, &[])).is_allow());
    }
}

#[test]
fn each_layer_has_its_own_strictness() {
    let lax = PolicyConfig { strict: false, ..rules("allow@suffix!=example").1 };
    let strict = rules("allow@suffix!=example").1;
    let names = [PinnedName { name: "a.example".parse().unwrap(), alias: false }];
    let other = "b.example".parse().unwrap();
    let shown = [ShownName { name: &other, pinned: false }];
    for (parent, child, passes) in [(&lax, &lax, true), (&lax, &strict, false), (&strict, &lax, false)] {
        let both = narrow(&compile(&[parent.clone(), child.clone()]));
        let facts = tcp("192.0.2.7", 443, &names);
        let passed = match both.check(&facts) {
            Verdict::Pending(_, pending) => both.check_flight(&pending, &Flight::Names(&shown)).is_allow(),
            Verdict::Allow(_) => true,
            Verdict::Deny(denial) => panic!("{denial:?}"),
        };
        assert_eq!(passed, passes);
    }
}

#[test]
fn each_layer_has_its_own_rule_that_is_opaque() {
    let opaque = rules("allow@a.example:tcp:443:opaque");
    let plain = rules("allow@a.example");
    let names = [PinnedName { name: "a.example".parse().unwrap(), alias: false }];
    for (layers, passes) in [([&opaque, &opaque], true), ([&opaque, &plain], false), ([&plain, &opaque], false)] {
        let both = layers[0].0.narrowed_by(&layers[1].0).unwrap();
        let Verdict::Pending(_, pending) = both.check(&tcp("192.0.2.7", 443, &names)) else { panic!("not pending") };
        assert_eq!(both.check_flight(&pending, &Flight::Other).is_allow(), passes);
    }
}

#[test]
fn each_layer_has_its_own_deny_doh() {
    let (list, open) = (rules("allow@8.0.0.0/8"), rules("allow@dns,allow@public"));
    let doh = tcp("8.8.8.8", 443, &[]);
    let both = open.0.narrowed_by(&list.0).unwrap();
    let reason = both.check(&doh).reason().clone();
    assert_eq!(reason.rule, RuleRef::BuiltIn(BuiltIn::KnownResolver));
    assert_eq!(both.rule_text(&reason).to_string(), "deny_doh (run)");
    let list = Policy::compile(&list.1, Classifier::default()).with_doh(Action::Allow);
    assert!(open.0.narrowed_by(&list).unwrap().check(&doh).is_allow());
}

#[test]
fn a_network_with_ceilings_is_compiled_as_a_whole() {
    let mut network = file::default_network();
    let session = cofferdam_model::PolicyLayer {
        layer: Layer::Session,
        policy: rules("allow@dns,allow@11.0.0.0/8").1,
        deny_doh: None,
        rebind_protection: true,
    };
    network.ceilings = vec![session.clone()];
    let policy = Policy::of_network(&network, Classifier::default()).unwrap();
    assert!(policy.check(&tcp("11.0.0.1", 80, &[])).is_allow());
    let denied = policy.check(&tcp("12.0.0.1", 80, &[]));
    assert_eq!(policy.rule_text(denied.reason()).layer, Some(Layer::Session));
    network.ceilings = vec![session; Policy::MAX_LAYERS];
    let refused = Policy::of_network(&network, Classifier::default());
    assert_eq!(refused.unwrap_err(), TooManyLayers { wanted: Policy::MAX_LAYERS + 1 });
}

fn rules(text: &str) -> (Policy, PolicyConfig) {
    let config = PolicyConfig { rules: parse_rules(text).unwrap(), ..PolicyConfig::default() };
    (Policy::compile(&config, Classifier::default()), config)
}

fn compile(configs: &[PolicyConfig]) -> Vec<Policy> {
    configs.iter().map(|config| Policy::compile(config, classifier())).collect()
}

fn narrow(layers: &[Policy]) -> Policy {
    let (first, rest) = layers.split_first().unwrap();
    let first = first.with_classifier(first.classifier().clone());
    rest.iter().fold(first, |outer, inner| outer.narrowed_by(inner).unwrap())
}
