//! What compiled policies decide.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

use std::net::IpAddr;

use cofferdam_model::{Action, Classifier, Direction, DomainName, Group, HostNetwork, PolicyConfig, Protocol};
use cofferdam_policy::grammar::parse_rules;
use cofferdam_policy::preset::Preset;
use cofferdam_policy::{Facts, Flight, NameVerdict, PinnedName, Policy, RuleRef, ShownName, Verdict};

const GATEWAY: &str = "172.16.0.1";

#[test]
fn the_first_match_decides_for_address_port_and_protocol() {
    let policy = by_hand(
        "deny@10.77.0.66, allow@10.77.0.0/24:tcp:5000+8000-8081, deny@10.77.0.0/16, allow@10.0.0.0/8:tcp:7, \
         allow@93.184.215.14:udp:7",
    );
    let cases = [
        ("tcp", "10.77.0.5", 5000, Some(1)),
        ("tcp", "10.77.0.5", 8000, Some(1)),
        ("tcp", "10.77.0.5", 8081, Some(1)),
        ("tcp", "10.77.0.5", 8082, Some(2)),
        ("tcp", "10.77.0.5", 7999, Some(2)),
        ("tcp", "10.77.0.66", 5000, Some(0)),
        ("tcp", "10.77.0.5", 7, Some(2)),
        ("tcp", "10.77.1.5", 5000, Some(2)),
        ("tcp", "10.78.0.5", 7, Some(3)),
        ("tcp", "10.78.0.5", 22, None),
        ("tcp", "11.0.0.5", 7, None),
        ("udp", "10.77.0.5", 5000, Some(2)),
        ("udp", "93.184.215.14", 7, Some(4)),
        ("tcp", "93.184.215.14", 7, None),
        ("tcp", "::ffff:10.77.0.5", 5000, Some(1)),
    ];
    for (protocol, peer, port, rule) in cases {
        let expected = rule.map_or(RuleRef::Default(Direction::Egress), RuleRef::Rule);
        let verdict = policy.check(&egress(protocol, peer, port, &[]));
        assert_eq!(verdict.reason().rule, expected, "{protocol} {peer}:{port}");
        assert_eq!(verdict.is_allow(), matches!(rule, Some(1 | 3 | 4)), "{protocol} {peer}:{port}");
    }
}

#[test]
fn an_allowed_network_opens_neither_host_nor_metadata() {
    let wide = by_hand("allow@172.16.0.0/12,allow@169.254.0.0/16,allow@0.0.0.0/0,allow@[::/0]");
    for closed in [GATEWAY, "169.254.169.254", "168.63.129.16", "fd00:ec2::254", "64:ff9b::169.254.169.254"] {
        assert!(!allows(&wide, closed), "{closed}");
    }
    for open in ["172.16.0.2", "169.254.1.1", "93.184.216.34", "fd00::1"] {
        assert!(allows(&wide, open), "{open}");
    }
    for (rules, peer) in [
        ("allow@host", GATEWAY),
        ("allow@172.16.0.1", GATEWAY),
        ("allow@172.16.0.1/32", GATEWAY),
        ("allow@any", GATEWAY),
        ("allow@metadata", "169.254.169.254"),
        ("allow@169.254.169.254", "169.254.169.254"),
        ("allow@[fd00:ec2::254]", "fd00:ec2::254"),
        ("allow@any", "169.254.169.254"),
    ] {
        assert!(allows(&by_hand(rules), peer), "{rules} {peer}");
    }
    let open = PolicyConfig { default_egress: Action::Allow, ..PolicyConfig::default() };
    assert!(allows(&Policy::compile(&open, classifier()), "169.254.169.254"));
}

#[test]
fn another_classifier_moves_addresses_under_the_same_rules() {
    let policy = by_hand("deny@host, deny@private, allow@public, allow@other.example");
    let peers = ["93.184.216.34", "2606:2800::1", "151.101.1.69", "2a04:4e42::645"];
    let host = HostNetwork {
        addresses: vec!["93.184.216.34".parse().unwrap(), "2606:2800::1".parse().unwrap()],
        on_link: vec!["151.101.1.0/24".parse().unwrap(), "2a04:4e42::/64".parse().unwrap()],
        nat64: vec![],
    };
    let moved = policy.with_classifier(Classifier::new(host));
    for peer in peers {
        assert!(allows(&policy, peer), "{peer}");
        assert!(!allows(&moved, peer), "{peer}");
        assert!(allows(&moved.with_classifier(classifier()), peer), "{peer}");
    }
    assert_eq!(moved.rules(), policy.rules());
    assert_eq!(moved.uses_names(), policy.uses_names());
}

#[test]
fn a_denied_network_closes_host_and_metadata_as_well() {
    let policy = by_hand("deny@172.16.0.0/12,deny@169.254.0.0/16,allow@any");
    for closed in [GATEWAY, "172.20.0.1", "169.254.169.254", "::ffff:172.16.0.1"] {
        assert!(!allows(&policy, closed), "{closed}");
    }
    // The wider allow comes first but passes over metadata, so the narrower deny is what decides.
    let policy = by_hand("allow@169.254.0.0/16,deny@169.254.169.254,allow@metadata");
    assert_eq!(policy.check(&egress("tcp", "169.254.169.254", 80, &[])).reason().rule, RuleRef::Rule(1));
}

#[test]
fn groups_are_disjoint() {
    let policy = by_hand("allow@private");
    assert!(allows(&policy, "10.0.0.1") && allows(&policy, "192.168.1.1") && allows(&policy, "fd00::1"));
    for closed in ["127.0.0.1", "169.254.1.1", "169.254.169.254", "224.0.0.1", GATEWAY, "8.8.8.8", "192.0.2.1"] {
        assert!(!allows(&policy, closed), "{closed}");
    }
}

#[test]
fn the_default_preset_reaches_the_public_internet_and_dns_only() {
    let policy = Policy::compile(&Preset::standard().policy(), classifier());
    assert!(allows(&policy, "8.8.8.8") && allows(&policy, "2606:4700::1111"));
    for closed in ["10.0.0.1", "169.254.169.254", "100.64.0.1", "192.0.2.1", "fd00::1", "2001:db8::1", "5f00::1"] {
        assert!(!allows(&policy, closed), "{closed}");
    }
    assert!(policy.check(&egress("udp", GATEWAY, 53, &[])).is_allow());
    assert!(policy.check(&egress("tcp", GATEWAY, 53, &[])).is_allow());
    assert!(!policy.check(&egress("tcp", GATEWAY, 22, &[])).is_allow());
    assert!(policy.check(&icmp("8.8.8.8")).is_allow());
    assert!(!policy.check(&icmp(GATEWAY)).is_allow());
}

#[test]
fn a_rule_with_ports_never_matches_icmp() {
    let policy = by_hand("deny@8.8.8.8:any:443,allow@8.8.8.8");
    assert_eq!(policy.check(&icmp("8.8.8.8")).reason().rule, RuleRef::Rule(1));
    assert_eq!(policy.check(&egress("tcp", "8.8.8.8", 443, &[])).reason().rule, RuleRef::Rule(0));
    assert!(!by_hand("allow@any:tcp+icmp:443").check(&icmp("8.8.8.8")).is_allow());
    assert!(by_hand("allow@any:icmp").check(&icmp("8.8.8.8")).is_allow());
    assert!(!by_hand("allow@any:icmpv6").check(&icmp("8.8.8.8")).is_allow());
}

#[test]
fn directions_are_kept_apart() {
    let config = PolicyConfig {
        default_ingress: Action::Deny,
        rules: parse_rules("allow:ingress@10.0.0.0/8:tcp:8080,allow@8.8.8.8,deny:any@9.9.9.9,allow@9.9.9.9").unwrap(),
        ..PolicyConfig::default()
    };
    let policy = Policy::compile(&config, classifier());
    let check = |direction, peer: &str, port| {
        let facts = Facts { direction, ..egress("tcp", peer, port, &[]) };
        policy.check(&facts).is_allow()
    };
    assert!(check(Direction::Ingress, "10.1.2.3", 8080));
    assert!(!check(Direction::Ingress, "10.1.2.3", 8081));
    assert!(!check(Direction::Egress, "10.1.2.3", 8080));
    assert!(check(Direction::Egress, "8.8.8.8", 8080));
    assert!(!check(Direction::Ingress, "8.8.8.8", 8080));
    assert!(!check(Direction::Egress, "9.9.9.9", 1) && !check(Direction::Ingress, "9.9.9.9", 1));
}

#[test]
fn an_allowed_name_counts_only_when_it_was_asked_for() {
    let policy = by_hand("allow@api.example.org:tcp:443,allow@*.cdn.example:tcp,allow@.below.example");
    let reached = |name: &str, alias: bool, port| {
        let names = [pin(name, alias), pin("unrelated.example", false)];
        policy.check(&egress("tcp", "93.184.215.14", port, &names)).is_allow()
    };
    assert!(reached("api.example.org", false, 443));
    assert!(!reached("api.example.org", false, 80));
    assert!(!reached("api.example.org", true, 443));
    assert!(!reached("x.api.example.org", false, 443));
    assert!(!reached("example.org", false, 443));
    assert!(reached("cdn.example", false, 1) && reached("a.b.cdn.example", false, 1));
    assert!(!reached("xcdn.example", false, 1) && !reached("cdn.example.evil.example", false, 1));
    assert!(reached("a.below.example", false, 1) && !reached("below.example", false, 1));
    assert!(!policy.check(&egress("tcp", "93.184.215.14", 443, &[])).is_allow());
}

#[test]
fn a_denied_name_closes_an_address_when_every_name_on_it_is_denied() {
    let policy = by_hand("deny@*.evil.example,deny@bad.example,allow@public");
    let check = |names: &[PinnedName]| policy.check(&egress("tcp", "45.33.32.156", 443, names));
    assert_eq!(check(&[pin("www.evil.example", false)]).reason().rule, RuleRef::Rule(0));
    let verdict = check(&[pin("bad.example", false), pin("evil.example", false)]);
    assert_eq!(verdict.reason().rule, RuleRef::Rule(1));
    assert_eq!(verdict.reason().name, Some("bad.example".parse().unwrap()));
    assert!(check(&[pin("evil.example", false), pin("good.example", false)]).is_allow());
    assert!(check(&[]).is_allow());
    assert!(check(&[pin("good.example", false)]).is_allow());
    // A name that hides a denied one behind an alias.
    assert_eq!(check(&[pin("good.example", false), pin("bad.example", true)]).reason().rule, RuleRef::Rule(1));
    let shared = [pin("good.example", false), pin("other.example", false), pin("bad.example", true)];
    assert!(check(&shared).is_allow());
}

#[test]
fn a_verdict_names_rule_group_and_name() {
    let policy = by_hand("allow@private:tcp,allow@*.example.org");
    let names = [pin("www.example.org", false)];
    let verdict = policy.check(&egress("udp", "93.184.215.14", 443, &names));
    assert_eq!(verdict.reason().rule, RuleRef::Rule(1));
    assert_eq!(verdict.reason().group, Group::Public);
    assert_eq!(verdict.reason().name, Some("www.example.org".parse().unwrap()));
    assert_eq!(policy.rule_text(verdict.reason()).text, "allow@*.example.org");
    assert_eq!(policy.rule_text(verdict.reason()).index, Some(1));
    assert_eq!(policy.rule_text(verdict.reason()).layer, None);
    let elsewhere = egress("tcp", "192.0.2.1", 443, &[]);
    let text = |facts: &Facts<'_>| policy.rule_text(policy.check(facts).reason()).text;
    assert_eq!(text(&elsewhere), "default egress deny");
    assert_eq!(text(&Facts { direction: Direction::Ingress, ..elsewhere }), "default ingress allow");
    assert!(policy.check(&egress("tcp", "10.0.0.1", 443, &names)).reason().name.is_none());
}

#[test]
fn a_name_may_be_asked_for_when_a_rule_for_it_or_for_dns_says_so() {
    let asks = |rules: &str, name: &str| {
        let policy = by_hand(rules);
        policy.check_name(&name.parse().unwrap(), &egress("udp", GATEWAY, 53, &[]))
    };
    let allowed = |rules: &str, name: &str| matches!(asks(rules, name), NameVerdict::Allow(_));
    assert!(allowed("allow@x.example.org:tcp:443", "x.example.org"));
    assert!(!allowed("allow@x.example.org:tcp:443", "example.org"));
    assert!(allowed("allow@*.example.org", "a.example.org") && allowed("allow@*.example.org", "example.org"));
    assert!(!allowed("allow@.example.org", "example.org"));
    assert!(!allowed("allow@public,allow@0.0.0.0/0,allow@172.16.0.1", "example.org"));
    assert!(allowed("allow@dns", "example.org") && allowed("allow@any", "example.org"));
    assert!(allowed("allow@host", "example.org") && allowed("allow@any:udp", "example.org"));
    assert!(!allowed("allow@any:tcp", "example.org") && !allowed("allow@host:udp:5353", "example.org"));
    assert!(!allowed("deny@bad.example:tcp:443,allow@dns", "bad.example"));
    assert!(allowed("allow@dns,deny@bad.example", "bad.example"));
    assert!(!allowed("deny@dns,allow@x.example", "x.example"));
    assert!(!allowed("", "example.org"));
    let NameVerdict::Deny(reason) = asks("deny@*.bad.example,allow@dns", "x.bad.example") else { panic!() };
    assert_eq!((reason.rule, reason.name), (RuleRef::Rule(0), Some("x.bad.example".parse().unwrap())));
    assert!(!by_hand("allow@dns").uses_names() && by_hand("deny@x.example").uses_names());
}

const ADDRESS: &str = "45.33.32.156";

/// What a flow to [`ADDRESS`] with these pins is answered when it shows this: `None`, nothing is left to decide.
fn shows(policy: &Policy, protocol: &str, port: u16, pins: &[&str], shown: &str) -> Option<bool> {
    let pins: Vec<PinnedName> = pins.iter().map(|name| pin(name, false)).collect();
    let pending = match policy.check(&egress(protocol, ADDRESS, port, &pins)) {
        Verdict::Pending(_, pending) => pending,
        Verdict::Allow(_) => return None,
        Verdict::Deny(denial) => panic!("denied at once by {:?}", denial.reason()),
    };
    let name: Option<DomainName> = shown.contains('.').then(|| shown.parse().unwrap());
    let pinned = pins.iter().any(|pin| Some(&pin.name) == name.as_ref());
    let names: Vec<ShownName<'_>> = name.iter().map(|name| ShownName { name, pinned }).collect();
    let flight = match shown {
        "other" => Flight::Other,
        "doubt" => Flight::Unreadable,
        _ => Flight::Names(&names),
    };
    Some(policy.check_flight(&pending, &flight).is_allow())
}

#[test]
fn what_only_a_name_allowed_has_to_show_that_name() {
    let policy = by_hand("allow@a.example,allow@*.cdn.example:tcp:443,allow@o.example:tcp:443:opaque");
    let pins = ["a.example", "x.cdn.example", "c.example"];
    for protocol in ["tcp", "udp"] {
        for (port, shown, expected) in [
            (443, "a.example", true),
            (8443, "a.example", true),
            (443, "x.cdn.example", protocol == "tcp"),
            (8443, "x.cdn.example", false),
            // Allowed, and not pinned to this address.
            (443, "y.cdn.example", false),
            // Pinned to this address, and not allowed.
            (443, "c.example", false),
            (443, "evil.example", false),
            (443, "none", false),
            (443, "doubt", false),
            (443, "other", false),
            (80, "other", false),
            (22, "other", true),
            (22, "none", false),
        ] {
            assert_eq!(shows(&policy, protocol, port, &pins, shown), Some(expected), "{protocol} {port} {shown}");
        }
    }
    assert_eq!(shows(&policy, "tcp", 443, &["o.example"], "other"), Some(true));
    assert_eq!(shows(&policy, "tcp", 443, &["o.example"], "none"), Some(false));
    assert_eq!(shows(&policy, "tcp", 443, &["o.example"], "evil.example"), Some(false));
}

#[test]
fn a_denied_name_is_denied_whatever_the_address() {
    let policy = by_hand("deny@*.evil.example,allow@public,deny@late.example");
    for pins in [&[][..], &["good.example"], &["good.example", "x.evil.example"]] {
        for (shown, expected) in [
            ("good.example", true),
            ("x.evil.example", false),
            ("evil.example", false),
            ("none", true),
            ("other", true),
            ("doubt", false),
            ("late.example", true),
        ] {
            assert_eq!(shows(&policy, "tcp", 443, pins, shown), Some(expected), "{pins:?} {shown}");
            assert_eq!(shows(&policy, "udp", 443, pins, shown), Some(expected), "{pins:?} {shown}");
        }
    }
    let verdict = policy.check(&egress("tcp", ADDRESS, 443, &[pin("x.evil.example", false)]));
    assert!(!verdict.is_allow());
    assert!(matches!(policy.check(&icmp(ADDRESS)), Verdict::Allow(_)));
}

#[test]
fn nothing_is_held_when_nothing_could_change() {
    for rules in [
        "allow@public",
        "allow@public,deny@evil.example",
        "deny@evil.example:tcp:25,allow@public",
        "allow@a.example,allow@public",
    ] {
        assert_eq!(shows(&by_hand(rules), "tcp", 443, &["a.example"], "none"), None, "{rules}");
    }
    // A rule by address stands behind the name: only a denied name between them makes a difference.
    let policy = by_hand("allow@a.example,deny@evil.example,allow@public");
    for (shown, expected) in
        [("a.example", true), ("other.example", true), ("evil.example", false), ("none", true), ("doubt", false)]
    {
        assert_eq!(shows(&policy, "tcp", 443, &["a.example"], shown), Some(expected), "{shown}");
    }
}

#[test]
fn a_policy_that_is_not_strict_takes_the_pin_and_still_denies_names() {
    let rules = parse_rules("deny@evil.example,allow@a.example").unwrap();
    let policy = Policy::compile(&PolicyConfig { rules, strict: false, ..PolicyConfig::default() }, classifier());
    for (shown, expected) in [
        ("a.example", true),
        ("b.example", true),
        ("none", true),
        ("other", true),
        ("evil.example", false),
        ("doubt", false),
    ] {
        assert_eq!(shows(&policy, "tcp", 443, &["a.example"], shown), Some(expected), "{shown}");
    }
    let rules = parse_rules("allow@a.example").unwrap();
    let policy = Policy::compile(&PolicyConfig { rules, strict: false, ..PolicyConfig::default() }, classifier());
    assert_eq!(shows(&policy, "tcp", 443, &["a.example"], "none"), None);
    assert!(!policy.check(&egress("tcp", ADDRESS, 443, &[])).is_allow());
}

#[test]
fn every_name_of_a_request_has_to_pass() {
    let policy = by_hand("allow@a.example,allow@b.example");
    let pins = [pin("a.example", false), pin("b.example", false), pin("c.example", true)];
    let Verdict::Pending(_, pending) = policy.check(&egress("tcp", ADDRESS, 80, &pins)) else { panic!() };
    let [a, b, c] = ["a.example", "b.example", "c.example"].map(|name| name.parse::<DomainName>().unwrap());
    let check = |names: &[(&DomainName, bool)]| {
        let names: Vec<ShownName<'_>> =
            names.iter().map(|(name, pinned)| ShownName { name, pinned: *pinned }).collect();
        policy.check_flight(&pending, &Flight::Names(&names))
    };
    assert!(check(&[(&a, true), (&b, true)]).is_allow());
    assert!(!check(&[(&a, true), (&b, false)]).is_allow());
    assert!(!check(&[(&c, false), (&a, true)]).is_allow());
    let verdict = check(&[(&b, true)]);
    assert_eq!((verdict.reason().rule, verdict.reason().name.as_ref()), (RuleRef::Rule(1), Some(&b)));
}

fn classifier() -> Classifier {
    let addresses = vec![GATEWAY.parse().unwrap(), "fd42:6d73:62::1".parse().unwrap()];
    Classifier::new(HostNetwork { addresses, ..HostNetwork::default() })
}

fn by_hand(rules: &str) -> Policy {
    Policy::compile(&PolicyConfig { rules: parse_rules(rules).unwrap(), ..PolicyConfig::default() }, classifier())
}

fn allows(policy: &Policy, peer: &str) -> bool {
    policy.check(&egress("tcp", peer, 443, &[])).is_allow()
}

fn egress<'a>(protocol: &str, peer: &str, port: u16, names: &'a [PinnedName]) -> Facts<'a> {
    let protocol = if protocol == "tcp" { Protocol::Tcp } else { Protocol::Udp };
    Facts { direction: Direction::Egress, protocol, peer: peer.parse().unwrap(), port: Some(port), names }
}

fn icmp(peer: &str) -> Facts<'static> {
    let peer: IpAddr = peer.parse().unwrap();
    let protocol = if peer.is_ipv4() { Protocol::IcmpV4 } else { Protocol::IcmpV6 };
    Facts { direction: Direction::Egress, protocol, peer, port: None, names: &[] }
}

fn pin(name: &str, alias: bool) -> PinnedName {
    PinnedName { name: name.parse().unwrap(), alias }
}
