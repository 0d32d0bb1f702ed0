//! An explanation says what the verdict says, and why.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

mod universe;

use cofferdam_model::{Action, Classifier, Direction, Layer, NetworkConfig, PolicyConfig, PolicyLayer, Protocol};
use cofferdam_policy::grammar::parse_rules;
use cofferdam_policy::{
    BuiltIn, Explanation, Facts, Mismatch, PinnedName, Policy, RuleRef, StepOutcome, Verdict, file,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::universe::{classifier, config, flow, name, named_config, tcp};

/// Layers, as they stand in a configuration: each with or without rebinding protection and `deny_doh`.
fn network() -> impl Strategy<Value = NetworkConfig> {
    let layer = (prop_oneof![config(), named_config()], any::<bool>(), any::<Option<bool>>());
    vec(layer, 1..=3).prop_map(|layers| {
        let kinds = [Layer::Floor, Layer::Session];
        let mut network = file::default_network();
        let (inner, ceilings) = layers.split_last().unwrap();
        for ((policy, rebind_protection, deny_doh), layer) in ceilings.iter().cloned().zip(kinds) {
            network.ceilings.push(PolicyLayer { layer, policy, deny_doh, rebind_protection });
        }
        network.policy = inner.0.clone();
        network.dns.rebind_protection = inner.1;
        network.dns.deny_doh = inner.2;
        network
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_explanation_comes_to_the_verdict(network in network(), flows in vec(flow(), 1..20)) {
        let policy = Policy::of_network(&network, classifier()).unwrap();
        for flow in &flows {
            let facts = flow.facts();
            let explanation = policy.explain(&facts);
            let verdict = policy.check(&facts);
            prop_assert_eq!(&explanation.reason, verdict.reason());
            prop_assert_eq!(explanation.action == Action::Allow, verdict.is_allow());
            prop_assert_eq!(explanation.waits, matches!(verdict, Verdict::Pending(..)));
            consistent(&policy, &explanation)?;
        }
    }

    #[test]
    fn an_explained_look_up_comes_to_the_verdict(network in network(), name in name(), flow in flow()) {
        let policy = Policy::of_network(&network, classifier()).unwrap();
        let transport = flow.facts();
        let explanation = policy.explain_name(&name, &transport);
        let verdict = policy.check_name(&name, &transport);
        prop_assert_eq!(&explanation.reason, verdict.reason());
        prop_assert_eq!(explanation.action == Action::Allow, verdict.is_allow());
        consistent(&policy, &explanation)?;
    }
}

/// What the walk came to is what the verdict says: the last step has its rule, name and text, and as many layers have been asked as
/// it takes.
fn consistent(policy: &Policy, explanation: &Explanation) -> Result<(), TestCaseError> {
    let Explanation { action, waits, reason, steps } = explanation;
    let last = steps.last().unwrap();
    prop_assert_eq!(last.rule, reason.rule);
    if !matches!(last.rule, RuleRef::BuiltIn(_)) {
        prop_assert_eq!(&last.name, &reason.name);
    }
    prop_assert_eq!(&last.text, &policy.rule_text(reason).text);
    let settles = |outcome| matches!(outcome, StepOutcome::Decides(_) | StepOutcome::Waits);
    let settled: Vec<StepOutcome> = steps.iter().map(|step| step.outcome).filter(|outcome| settles(*outcome)).collect();
    prop_assert!(settles(last.outcome), "{:?}", steps);
    match action {
        Action::Deny => prop_assert_eq!(last.outcome, StepOutcome::Decides(Action::Deny)),
        Action::Allow => {
            prop_assert_eq!(settled.len(), policy.layers().len());
            prop_assert_eq!(settled.contains(&StepOutcome::Waits), *waits);
        }
    }
    // Every rule before the one that decides was looked at, once and in order.
    for layer in policy.layers() {
        let places: Vec<u32> = steps
            .iter()
            .filter(|step| step.layer == layer)
            .filter_map(|step| match step.rule {
                RuleRef::Rule(at) => Some(at),
                RuleRef::Default(_) | RuleRef::BuiltIn(_) => None,
            })
            .collect();
        prop_assert!(places.iter().enumerate().all(|(at, place)| u32::try_from(at).unwrap() == *place), "{:?}", places);
    }
    Ok(())
}

fn compile(rules: &str) -> Policy {
    let config = PolicyConfig { rules: parse_rules(rules).unwrap(), ..PolicyConfig::default() };
    Policy::compile(&config, classifier())
}

fn pin(name: &str, alias: bool) -> PinnedName {
    PinnedName { name: name.parse().unwrap(), alias }
}

fn outcomes(explanation: &Explanation) -> Vec<StepOutcome> {
    explanation.steps.iter().map(|step| step.outcome).collect()
}

#[test]
fn every_rule_says_what_did_not_fit() {
    let policy = compile(
        "allow:ingress@8.8.4.5,allow@8.8.4.5:udp,allow@8.8.4.5:tcp:80,allow@10.0.0.0/8,allow@private,allow@a.com,allow@b.com,deny@any",
    );
    let names = [pin("a.com", true), pin("c.com", false)];
    let explanation = policy.explain(&tcp("8.8.4.5", 443, &names));
    let missed = [
        Mismatch::Direction,
        Mismatch::Protocol,
        Mismatch::Port,
        Mismatch::Address,
        Mismatch::Group,
        Mismatch::Alias,
        Mismatch::Name,
    ];
    let expected: Vec<StepOutcome> =
        missed.map(StepOutcome::Misses).into_iter().chain([StepOutcome::Decides(Action::Deny)]).collect();
    assert_eq!(outcomes(&explanation), expected);
    assert_eq!(explanation.steps[5].text, "allow@a.com");
    // The same over IPv6, where nothing was looked up.
    let policy = compile("allow@[2606:4700::1]:udp,allow@[fd00::/8],allow@private,allow@a.com");
    let explanation = policy.explain(&tcp("2606:4700::1", 443, &[]));
    let missed = [Mismatch::Protocol, Mismatch::Address, Mismatch::Group, Mismatch::NeverNamed];
    let expected: Vec<StepOutcome> =
        missed.map(StepOutcome::Misses).into_iter().chain([StepOutcome::Decides(Action::Deny)]).collect();
    assert_eq!(outcomes(&explanation), expected);
    assert_eq!(explanation.steps[4].text, "default egress deny");
}

#[test]
fn a_network_does_not_open_what_is_guarded_and_says_so() {
    for (rules, peer) in [("allow@172.16.0.0/12", "172.16.0.1"), ("allow@[fd00:ec2::/32]", "fd00:ec2::254")] {
        let explanation = compile(rules).explain(&tcp(peer, 80, &[]));
        assert_eq!(explanation.steps[0].outcome, StepOutcome::Misses(Mismatch::Guarded), "{rules}");
    }
}

#[test]
fn what_a_name_allows_waits_for_its_first_flight() {
    let names = [pin("www.a.com", false)];
    for peer in ["8.8.4.5", "2606:4700::1"] {
        let explanation = compile("deny@bad.example,allow@*.a.com").explain(&tcp(peer, 443, &names));
        assert_eq!(outcomes(&explanation), [StepOutcome::Watches, StepOutcome::Waits]);
        assert_eq!(explanation.steps[1].name, Some("www.a.com".parse().unwrap()));
        assert!(explanation.waits && explanation.action == Action::Allow);
    }
    // A ping shows nothing, and one of several denied names waits for what is shown.
    let ping = Facts { protocol: Protocol::IcmpV4, port: None, ..tcp("8.8.4.5", 1, &names) };
    assert_eq!(outcomes(&compile("allow@*.a.com").explain(&ping)), [StepOutcome::Decides(Action::Allow)]);
    let two = [pin("www.a.com", false), pin("bad.example", false)];
    let explanation = compile("deny@bad.example,allow@public").explain(&tcp("8.8.4.5", 443, &two));
    assert_eq!(outcomes(&explanation), [StepOutcome::Watches, StepOutcome::Waits]);
    let explanation = compile("deny@bad.example").explain(&tcp("8.8.4.5", 443, &two));
    assert_eq!(explanation.steps[0].outcome, StepOutcome::Misses(Mismatch::OtherNames));
}

#[test]
fn a_name_that_may_not_lead_inside_does_not() {
    let mut network = file::default_network();
    network.policy.rules = parse_rules("allow@db.example,allow@db.example:any:allow-private").unwrap();
    let policy = Policy::of_network(&network, Classifier::default()).unwrap();
    let names = [pin("db.example", false)];
    for peer in ["10.0.0.5", "fd00::5"] {
        let explanation = policy.explain(&tcp(peer, 5432, &names));
        assert_eq!(outcomes(&explanation), [StepOutcome::Misses(Mismatch::Inside), StepOutcome::Waits]);
    }
}

#[test]
fn what_holds_beside_the_rules_is_told() {
    let explanation = compile("allow@any").explain(&tcp("8.8.4.5", 853, &[]));
    assert_eq!(explanation.steps.len(), 1);
    assert_eq!(explanation.steps[0].rule, RuleRef::BuiltIn(BuiltIn::EncryptedDns));
    // An allow-list keeps DNS over HTTPS to known resolvers shut: `allow@8.8.8.0/24` is not meant for that.
    for (rules, peer) in [("allow@8.8.8.0/24", "8.8.8.8"), ("allow@[2001:4860::/32]", "2001:4860:4860::8888")] {
        let explanation = compile(rules).explain(&tcp(peer, 443, &[]));
        assert_eq!(outcomes(&explanation), [StepOutcome::Overruled, StepOutcome::Decides(Action::Deny)]);
        assert_eq!(explanation.steps[1].rule, RuleRef::BuiltIn(BuiltIn::KnownResolver));
    }
}

#[test]
fn a_look_up_is_for_names_and_for_its_own_way() {
    let policy = compile("allow@10.0.0.0/8,allow@public,allow:ingress@any,allow@dns,deny@any");
    let query = Facts { direction: Direction::Egress, ..tcp("172.16.0.1", 53, &[]) };
    let explanation = policy.explain_name(&"a.com".parse().unwrap(), &query);
    let lookup = StepOutcome::Misses(Mismatch::Lookup);
    let direction = StepOutcome::Misses(Mismatch::Direction);
    assert_eq!(outcomes(&explanation), [lookup, lookup, direction, StepOutcome::Decides(Action::Allow)]);
    let explanation = compile("allow@b.com").explain_name(&"a.com".parse().unwrap(), &query);
    assert_eq!(outcomes(&explanation), [StepOutcome::Misses(Mismatch::Name), StepOutcome::Decides(Action::Deny)]);
}
