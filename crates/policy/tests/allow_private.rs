//! Which rules that allow a name open an address that is not public.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

use std::net::IpAddr;
use std::time::Duration;

use cofferdam_model::{Classifier, Direction, Protocol, Time};
use cofferdam_policy::{Facts, Flight, FlightVerdict, PinnedName, Pins, Policy, ShownName, Verdict, file};

const NAME: &str = "registry.example.com";

/// An address inside, and one that is public.
const PEERS: [[&str; 2]; 2] = [["10.0.0.5", "93.184.215.14"], ["fd00::5", "2606:2800:21f:cb07::14"]];

#[test]
fn a_rule_that_does_not_say_so_opens_no_address_that_another_let_in() {
    for [inside, public] in PEERS {
        let policy = policy(&["allow@registry.example.com:tcp:443:allow-private", "allow@*.example.com:tcp:80"], "");
        for (peer, port, allowed) in [(inside, 443, true), (inside, 80, false), (public, 443, true), (public, 80, true)]
        {
            assert_eq!(check(&policy, peer, port).is_allow(), allowed, "{peer} {port}");
        }
        assert_eq!(check(&policy, inside, 80).reason().rule, policy_default());
    }
}

#[test]
fn the_order_of_rules_is_kept_among_those_that_count() {
    for [inside, _] in PEERS {
        let wider_first = policy(&["allow@*.example.com", "allow@registry.example.com:tcp:443:allow-private"], "");
        assert!(check(&wider_first, inside, 443).is_allow());
        assert!(!check(&wider_first, inside, 80).is_allow());
        let denied = policy(&["deny@registry.example.com:tcp:443", "allow@registry.example.com:allow-private"], "");
        assert!(!check(&denied, inside, 443).is_allow());
        assert!(check(&denied, inside, 80).is_allow());
    }
}

#[test]
fn an_address_that_a_rule_of_its_own_lets_in_is_open_to_every_rule_for_the_name() {
    for [inside, _] in PEERS {
        let target = if inside.contains(':') { format!("[{inside}]") } else { inside.to_owned() };
        // Protocols do not matter to answers, and a deny rule with ports does not count for them.
        let explicit = format!("allow@{target}:udp");
        let with_explicit = policy(&["allow@registry.example.com:tcp:80", "deny@any:tcp:1-100", &explicit], "");
        assert!(check(&with_explicit, inside, 80).is_allow());
        let closed = format!("deny@{target}");
        let with_closed = policy(&["allow@registry.example.com:tcp:80", &closed, &explicit], "");
        assert!(!check(&with_closed, inside, 80).is_allow());
    }
}

#[test]
fn without_the_protection_every_rule_for_the_name_counts() {
    for [inside, _] in PEERS {
        let policy = policy(&["allow@registry.example.com:tcp:80"], "rebind_protection = false");
        assert!(check(&policy, inside, 80).is_allow());
    }
}

#[test]
fn a_rule_for_the_address_needs_no_name() {
    for [inside, _] in PEERS {
        let policy = policy(&["allow@registry.example.com:tcp:443:allow-private", "allow@private:tcp:80"], "");
        assert!(check(&policy, inside, 80).is_allow());
    }
}

#[test]
fn what_is_shown_on_an_open_connection_is_held_to_the_same() {
    for [inside, public] in PEERS {
        let rules = ["allow@registry.example.com:tcp:443:allow-private", "allow@other.example.com:tcp:443"];
        let policy = policy(&rules, "");
        let other = "other.example.com".parse().unwrap();
        for (peer, passes) in [(inside, false), (public, true)] {
            let Verdict::Pending(_, pending) = check(&policy, peer, 443) else { panic!("{peer}") };
            let flight = [ShownName { name: &other, pinned: true }];
            let verdict = policy.check_flight(&pending, &Flight::Names(&flight));
            assert_eq!(matches!(verdict, FlightVerdict::Allow(_)), passes, "{peer}");
        }
    }
}

#[test]
fn the_few_names_that_decide_hold_the_one_that_leads_inside() {
    for [inside, _] in PEERS {
        let inside: IpAddr = inside.parse().unwrap();
        let policy =
            policy(&["allow@*.wide.example.com:tcp:443", "allow@registry.example.com:tcp:443:allow-private"], "");
        let mut pins = Pins::new(Pins::FLOOR);
        let names = ["registry.example.com".to_owned()].into_iter();
        for name in names.chain((0..20).map(|number| format!("n{number}.wide.example.com"))) {
            pins.insert(Time::ZERO, &name.parse().unwrap(), false, inside, Duration::ZERO).unwrap();
        }
        let names = pins.deciding(Time::ZERO, &policy, Protocol::Tcp, inside, Some(443));
        let verdict = policy.check(&facts(inside, 443, names));
        assert!(verdict.is_allow());
        assert_eq!(verdict.reason().name, Some(NAME.parse().unwrap()));
    }
}

fn policy(rules: &[&str], dns: &str) -> Policy {
    let text = format!("[network]\nrules = {rules:?}\ndefault_egress = \"deny\"\n[network.dns]\n{dns}");
    let mut network = file::parse("x.toml", &text).unwrap();
    // The preset's rules for public addresses would allow without a name.
    network.policy.rules.truncate(rules.len());
    Policy::of_network(&network, Classifier::default()).unwrap()
}

fn check(policy: &Policy, peer: &str, port: u16) -> Verdict {
    let names = [PinnedName { name: NAME.parse().unwrap(), alias: false }];
    policy.check(&facts(peer.parse().unwrap(), port, &names))
}

fn facts(peer: IpAddr, port: u16, names: &[PinnedName]) -> Facts<'_> {
    Facts { direction: Direction::Egress, protocol: Protocol::Tcp, peer, port: Some(port), names }
}

fn policy_default() -> cofferdam_policy::RuleRef {
    cofferdam_policy::RuleRef::Default(Direction::Egress)
}
