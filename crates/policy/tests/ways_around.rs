//! The ways around the gateway's resolver (`names.md` §1): closed whatever the rules say, and known resolvers by `deny_doh`.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::net::IpAddr;

use cofferdam_model::{Action, Classifier, Direction, HostNetwork, PolicyConfig, Protocol};
use cofferdam_policy::grammar::parse_rules;
use cofferdam_policy::{BuiltIn, Facts, Policy, RuleRef, file};

/// A resolver of each family that the list knows, and two addresses that it does not.
const KNOWN: [&str; 4] = ["8.8.8.8", "1.1.1.1", "2001:4860:4860::8888", "2620:fe::fe"];
const OTHERS: [&str; 2] = ["93.184.216.34", "2606:2800::1"];

fn policy(default_egress: Action, rules: &str) -> Policy {
    let rules = parse_rules(rules).unwrap();
    let host = HostNetwork { addresses: vec!["172.16.7.1".parse().unwrap()], ..HostNetwork::default() };
    Policy::compile(&PolicyConfig { default_egress, rules, ..PolicyConfig::default() }, Classifier::new(host))
}

fn rule(policy: &Policy, protocol: Protocol, peer: &str, port: u16) -> Result<RuleRef, RuleRef> {
    let peer: IpAddr = peer.parse().unwrap();
    let facts = Facts { direction: Direction::Egress, protocol, peer, port: Some(port), names: &[] };
    let verdict = policy.check(&facts);
    if verdict.is_allow() { Ok(verdict.reason().rule) } else { Err(verdict.reason().rule) }
}

fn resolves(policy: &Policy, name: &str) -> bool {
    let peer = "172.16.7.1".parse().unwrap();
    let facts = Facts { direction: Direction::Egress, protocol: Protocol::Udp, peer, port: Some(53), names: &[] };
    policy.check_name(&name.parse().unwrap(), &facts).is_allow()
}

const ENCRYPTED: Result<RuleRef, RuleRef> = Err(RuleRef::BuiltIn(BuiltIn::EncryptedDns));
const LOCAL: Result<RuleRef, RuleRef> = Err(RuleRef::BuiltIn(BuiltIn::LocalDiscovery));
const BY_DENY_DOH: Result<RuleRef, RuleRef> = Err(RuleRef::BuiltIn(BuiltIn::KnownResolver));

#[test]
fn dns_over_tls_and_quic_are_refused_whatever_the_rules_say() {
    for policy in [policy(Action::Allow, "allow@any"), policy(Action::Deny, "allow@8.8.8.8,allow@public")] {
        for peer in KNOWN.into_iter().chain(OTHERS) {
            assert_eq!(rule(&policy, Protocol::Tcp, peer, 853), ENCRYPTED);
            assert_eq!(rule(&policy, Protocol::Udp, peer, 853), ENCRYPTED);
        }
    }
}

#[test]
fn http_3_is_refused_at_known_resolvers_alone() {
    let policy = policy(Action::Allow, "allow@8.8.8.8");
    assert!(KNOWN.iter().all(|peer| rule(&policy, Protocol::Udp, peer, 443) == ENCRYPTED));
    assert_eq!(rule(&policy, Protocol::Udp, "::ffff:8.8.8.8", 443), ENCRYPTED);
    assert!(OTHERS.iter().all(|peer| rule(&policy, Protocol::Udp, peer, 443).is_ok()));
}

#[test]
fn discovery_is_refused_over_udp() {
    let policy = policy(Action::Allow, "allow@any");
    for peer in ["10.0.0.5", "224.0.0.251", "fd12::5", "ff02::fb"].into_iter().chain(OTHERS) {
        for port in [137, 5353, 5355] {
            assert_eq!(rule(&policy, Protocol::Udp, peer, port), LOCAL);
            assert!(rule(&policy, Protocol::Tcp, peer, port).is_ok());
        }
    }
}

#[test]
fn nothing_of_this_concerns_ingress() {
    let policy = policy(Action::Deny, "allow@any");
    let peer = "8.8.8.8".parse().unwrap();
    for (protocol, port) in [(Protocol::Tcp, 853), (Protocol::Udp, 443), (Protocol::Udp, 5353)] {
        let facts = Facts { direction: Direction::Ingress, protocol, peer, port: Some(port), names: &[] };
        assert!(policy.check(&facts).is_allow());
    }
}

#[test]
fn under_an_allow_list_wider_rules_do_not_open_known_resolvers() {
    let policy = policy(Action::Deny, "allow@public:tcp:443,allow@*.google.com,allow@suffix!=cloudflare-dns.com");
    for peer in KNOWN {
        assert_eq!(rule(&policy, Protocol::Tcp, peer, 443), BY_DENY_DOH);
    }
    assert!(OTHERS.iter().all(|peer| rule(&policy, Protocol::Tcp, peer, 443).is_ok()));
    assert!(!resolves(&policy, "dns.google.com") && !resolves(&policy, "mozilla.cloudflare-dns.com"));
    assert!(resolves(&policy, "www.google.com"));
}

#[test]
fn a_rule_for_exactly_a_known_resolver_says_that_it_is_meant() {
    let policy = policy(Action::Deny, "allow@dns.google,allow@8.8.8.8:tcp:443,allow@[2001:4860:4860::8888]");
    assert!(resolves(&policy, "dns.google"));
    assert!(rule(&policy, Protocol::Tcp, "8.8.8.8", 443).is_ok());
    assert!(rule(&policy, Protocol::Tcp, "2001:4860:4860::8888", 443).is_ok());
}

#[test]
fn where_every_name_resolves_known_resolvers_are_like_others() {
    for policy in [
        policy(Action::Allow, "deny@10.0.0.0/8"),
        policy(Action::Deny, "allow@dns,allow@public"),
        policy(Action::Deny, "allow@host,allow@public"),
        policy(Action::Deny, "allow@any:udp,allow@public"),
    ] {
        assert!(rule(&policy, Protocol::Tcp, "8.8.8.8", 443).is_ok() && resolves(&policy, "dns.google"));
    }
}

#[test]
fn deny_doh_can_be_said_either_way() {
    let open = policy(Action::Deny, "allow@public").with_doh(Action::Allow);
    assert!(rule(&open, Protocol::Tcp, "8.8.8.8", 443).is_ok());
    let shut = policy(Action::Allow, "").with_doh(Action::Deny);
    assert_eq!(rule(&shut, Protocol::Tcp, "8.8.8.8", 443), BY_DENY_DOH);
    assert!(!resolves(&shut, "dns.google") && resolves(&shut, "example.org"));
    for (text, deny_doh) in [("true", Some(true)), ("false", Some(false))] {
        let config = file::parse("x.toml", &format!("[network.dns]\ndeny_doh = {text}")).unwrap();
        assert_eq!(config.dns.deny_doh, deny_doh);
    }
    assert_eq!(file::from_flags(&[]).unwrap().dns.deny_doh, None);
}

#[test]
fn a_refusal_says_what_it_is() {
    let policy = policy(Action::Allow, "");
    let facts = |port| Facts {
        direction: Direction::Egress,
        protocol: Protocol::Udp,
        peer: "8.8.8.8".parse().unwrap(),
        port: Some(port),
        names: &[],
    };
    let text = |port| policy.rule_text(policy.check(&facts(port)).reason());
    assert_eq!((text(853).text.as_str(), text(853).index), ("built-in: encrypted DNS", None));
    assert!(BuiltIn::is_final(&text(853).text) && BuiltIn::is_final(&text(5353).text));
    assert!(!BuiltIn::is_final(BuiltIn::KnownResolver.text()));
}

#[test]
fn an_exact_name_opens_no_resolver_but_its_own() {
    for rules in ["allow@x.example", "allow@x.example,allow@public"] {
        let rules = cofferdam_policy::grammar::parse_rules(rules).unwrap();
        let config = cofferdam_model::PolicyConfig { rules, ..Default::default() };
        let policy = cofferdam_policy::Policy::compile(&config, cofferdam_model::Classifier::default());
        let names = [cofferdam_policy::PinnedName { name: "x.example".parse().unwrap(), alias: false }];
        let facts = cofferdam_policy::Facts {
            direction: cofferdam_model::Direction::Egress,
            protocol: cofferdam_model::Protocol::Tcp,
            peer: "8.8.8.8".parse().unwrap(),
            port: Some(443),
            names: &names,
        };
        assert!(!policy.check(&facts).is_allow());
    }
}
