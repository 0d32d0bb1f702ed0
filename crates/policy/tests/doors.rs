//! Flags, files and the wire form: every door gives the same policy and refuses the same mistakes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

use std::time::Duration;

use cofferdam_model::{Action, DenyWith, Direction, DnsConfig, LimitsConfig, NetworkConfig, RateLimits};
use cofferdam_policy::Policy;
use cofferdam_policy::file::{self, FlagItem, RateFlag, default_network, from_flags};
use cofferdam_policy::grammar::format_rule;

#[test]
fn nothing_said_is_the_public_internet() {
    let config = from_flags(&[]).unwrap();
    assert_eq!(config, default_network());
    assert_eq!(rules(&config), ["allow@dns", "allow@public"]);
    assert_eq!((config.policy.default_egress, config.policy.default_ingress), (Action::Deny, Action::Allow));
    assert_eq!(file::parse("x.toml", "").unwrap(), config);
    assert_eq!(file::parse("x.json", "{}").unwrap(), config);
    assert_eq!(file::parse("x.yaml", "").unwrap(), config);
}

#[test]
fn flags_put_rules_before_what_stands_behind_them() {
    let rule = |text: &str| FlagItem::NetRule(text.to_owned());
    let allow = |text: &str| FlagItem::Allow(text.to_owned());
    let deny = |text: &str| FlagItem::Deny(text.to_owned());
    let net = |text: &str| FlagItem::Net(text.to_owned());
    let cases: [(&[FlagItem], &[&str]); 11] = [
        (&[rule("deny@any:tcp:25")], &["deny@any:tcp:25", "allow@dns", "allow@public"]),
        (&[deny("8.8.8.8")], &["deny@8.8.8.8:tcp+udp", "allow@dns", "allow@public"]),
        (&[allow("x.org")], &["allow@x.org:tcp+udp"]),
        (
            &[allow("x.org"), rule("deny@y.org"), allow("z.org:1")],
            &["allow@x.org:tcp+udp", "deny@y.org", "allow@z.org:tcp+udp:1"],
        ),
        (&[allow("10.0.0.5"), net("public")], &["allow@10.0.0.5:tcp+udp", "allow@dns", "allow@public"]),
        (&[net("host,public"), rule("deny@1.1.1.1")], &["deny@1.1.1.1", "allow@dns", "allow@host", "allow@public"]),
        (&[net("public"), net("private,public")], &["allow@dns", "allow@public", "allow@private"]),
        (&[net("non-local")], &["allow@dns", "allow@public", "allow@private"]),
        (&[FlagItem::DefaultEgress(Action::Deny), rule("allow@8.8.8.8")], &["allow@8.8.8.8"]),
        (&[FlagItem::DefaultIngress(Action::Deny)], &["allow@dns", "allow@public"]),
        (&[net("all")], &[]),
    ];
    for (items, expected) in cases {
        let config = from_flags(items).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(rules(&config), expected, "{items:?}");
        assert!(config.enabled);
        let all = items.contains(&net("all"));
        assert_eq!(config.policy.default_egress, if all { Action::Allow } else { Action::Deny }, "{items:?}");
    }
}

#[test]
fn another_policy_leaves_limits_resolvers_and_the_link_as_they_were() {
    let conf = |text: &str| FlagItem::Conf { name: "x.toml".into(), text: text.into() };
    let allow = FlagItem::Allow("x.org".into());
    let before = from_flags(&[
        FlagItem::Net("all".into()),
        FlagItem::DenyWith(DenyWith::Drop),
        FlagItem::NoRebindProtection,
        FlagItem::Strict(false),
        FlagItem::Nameserver("192.0.2.1".into()),
        FlagItem::QueryTimeoutMs(700),
        FlagItem::MaxConnections(7),
        FlagItem::MaxUdpConnections(8),
        FlagItem::MaxInboundConnections(9),
        FlagItem::Rate { limit: RateFlag::EgressBandwidth, size: 1000, refill_time: Duration::from_secs(1) },
        FlagItem::Rate { limit: RateFlag::IngressOps, size: 10, refill_time: Duration::from_secs(1) },
        FlagItem::Budget { bytes: 100, direction: Direction::Any, targets: None },
        FlagItem::Mtu(9000),
        FlagItem::NoIpv6,
        conf("[network]\nconnect_timeout_ms = 900\n[network.dns]\npin_floor_ms = 90000\n"),
    ])
    .unwrap();
    let after = file::replacing(&before, std::slice::from_ref(&allow)).unwrap();
    // The policy, and what goes with it, is that of the flags alone.
    let fresh = from_flags(std::slice::from_ref(&allow)).unwrap();
    assert_eq!((&after.policy, after.deny_with), (&fresh.policy, fresh.deny_with));
    assert!(after.dns.rebind_protection);
    // All else is as it was.
    let expected = DnsConfig { rebind_protection: true, ..before.dns.clone() };
    assert_eq!((&after.limits, &after.interface, &after.dns), (&before.limits, &before.interface, &expected));
    // What is named takes the place of its like, and of nothing else.
    let limited = |items: &[FlagItem]| {
        let items = [items, std::slice::from_ref(&allow)].concat();
        file::replacing(&before, &items).unwrap()
    };
    let limits = limited(&[FlagItem::MaxConnections(4096)]).limits;
    assert_eq!(limits, LimitsConfig { max_connections: 4096, ..before.limits.clone() });
    let rate = FlagItem::Rate { limit: RateFlag::EgressBandwidth, size: 5, refill_time: Duration::from_secs(1) };
    let rates = limited(&[rate]).limits.rates;
    assert_eq!((rates.egress.bandwidth.unwrap().size, rates.ingress), (5, before.limits.rates.ingress.clone()));
    let budget = FlagItem::Budget { bytes: 5, direction: Direction::Egress, targets: None };
    assert_eq!(limited(&[budget]).limits.budgets.len(), 1);
    assert_eq!(limited(&[FlagItem::Nameserver("192.0.2.2".into())]).dns.nameservers.len(), 1);
    let file = limited(&[conf("[network]\nbudgets = []\nmax_udp_connections = 1\n[network.rate_limiter]\n")]).limits;
    assert_eq!((file.budgets, file.max_udp_connections, file.max_connections), (Vec::new(), 1, 7));
    assert_eq!(file.rates, RateLimits::default());
}

#[test]
fn no_network_is_no_interface() {
    for items in
        [vec![FlagItem::NoNet], vec![FlagItem::Net("none".into())], vec![FlagItem::NoNet, FlagItem::Net("none".into())]]
    {
        let config = from_flags(&items).unwrap();
        assert!(!config.enabled);
        assert_eq!(config.policy.default_egress, Action::Deny);
        assert_eq!(config.policy.default_ingress, Action::Deny);
    }
    let contradictions =
        [vec![FlagItem::NoNet, FlagItem::Allow("x.org".into())], vec![FlagItem::NoNet, FlagItem::Net("public".into())]];
    for items in contradictions {
        assert!(from_flags(&items).is_err(), "{items:?}");
    }
}

#[test]
fn mounts_only_is_an_interface_that_nothing_passes() {
    for word in ["mounts-only", "mounts_only"] {
        let config = from_flags(&[FlagItem::Net(word.into())]).unwrap();
        assert!(config.enabled);
        assert_eq!((config.policy.default_egress, config.policy.default_ingress), (Action::Deny, Action::Deny));
        assert_eq!(config.policy.rules, []);
    }
}

#[test]
fn profiles_that_do_not_go_together_are_refused() {
    let cases = [
        ("none,public", "stands alone"),
        ("public,all", "stands alone"),
        ("all,none", "stands alone"),
        ("pubilc", "did you mean `public`?"),
        ("", "no profile is named"),
        ("mounts-only,public", "stands alone"),
    ];
    for (text, part) in cases {
        let errors = from_flags(&[FlagItem::Net(text.into())]).unwrap_err().to_string();
        assert!(errors.contains(part), "{text}: {errors}");
    }
}

#[test]
fn a_file_in_any_format_is_the_same_network() {
    let toml = r#"
        [network]
        preset = "public-only"
        default_egress = "deny"
        rules = ["allow@api.github.com:tcp:443", "deny@any:tcp:25"]
        deny_domains = ["metadata.google.internal"]
        deny_domain_suffixes = [".tracking.example", "ads.example"]
        deny_with = "icmp"
        strict = false
        max_connections = 7
        [network.dns]
        nameservers = ["1.1.1.1:53", "[2606:4700::1111]:5353", "9.9.9.9"]
        query_timeout_ms = 250
        pin_floor_ms = 1000
        rebind_protection = false
        [network.interface]
        mtu = 9000
        ipv4_pool = "10.9.0.0/16"
    "#;
    let json = r#"{"network": {"preset": "public-only", "default_egress": "deny",
        "rules": [{"action": "allow", "destination": {"domain": "api.github.com"}, "protocols": ["tcp"], "ports": [{"start": 443, "end": 443}]},
                  {"action": "deny", "direction": "egress", "destination": "any", "protocols": ["tcp"], "ports": [25]}],
        "deny_domains": ["metadata.google.internal"], "deny_domain_suffixes": [".tracking.example", "*.ads.example"],
        "deny_with": "icmp", "strict": false, "max_connections": 7,
        "dns": {"nameservers": ["1.1.1.1:53", "[2606:4700::1111]:5353", "9.9.9.9"], "query_timeout_ms": 250, "pin_floor_ms": 1000, "rebind_protection": false},
        "interface": {"mtu": 9000, "ipv4_pool": "10.9.0.0/16"}}}"#;
    let yaml = "
network:
  preset: public-only
  default_egress: deny
  rules:
    - allow@api.github.com:tcp:443
    - action: deny
      destination: any
      protocols: [tcp]
      ports: ['25']
  deny_domains: [metadata.google.internal]
  deny_domain_suffixes: ['.tracking.example', 'suffix!=ads.example']
  deny_with: icmp
  strict: false
  max_connections: 7
  dns:
    nameservers: ['1.1.1.1:53', '[2606:4700::1111]:5353', 9.9.9.9]
    query_timeout_ms: 250
    pin_floor_ms: 1000
    rebind_protection: false
  interface: {mtu: 9000, ipv4_pool: 10.9.0.0/16}
";
    let config = file::parse("cofferdam.toml", toml).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(
        rules(&config),
        [
            "deny@metadata.google.internal",
            "deny@.tracking.example",
            "deny@*.ads.example",
            "allow@api.github.com:tcp:443",
            "deny@any:tcp:25",
            "allow@dns",
            "allow@public"
        ]
    );
    assert_eq!(config.deny_with, DenyWith::Icmp);
    assert_eq!(config.dns.nameservers.len(), 3);
    assert_eq!(config.interface.mtu, 9000);
    assert_eq!(file::parse("x.json", json).unwrap_or_else(|errors| panic!("{errors}")), config);
    assert_eq!(file::parse("x.yaml", yaml).unwrap_or_else(|errors| panic!("{errors}")), config);
    let inner = json.strip_prefix(r#"{"network": "#).unwrap().strip_suffix('}').unwrap();
    assert_eq!(file::parse("x.json", inner).unwrap(), config);
}

#[test]
fn a_policy_object_with_a_default_missing_denies_egress_and_allows_ingress() {
    let config = file::parse("x.json", r#"{"enabled": true, "policy": {"rules": []}}"#).unwrap();
    assert_eq!((config.policy.default_egress, config.policy.default_ingress), (Action::Deny, Action::Allow));
    assert_eq!(rules(&config), [] as [&str; 0]);
    let config = file::parse("x.toml", "[network]\nrules = [\"allow@x.org\"]").unwrap();
    assert_eq!(config.policy.default_egress, Action::Deny);
    assert_eq!(rules(&config), ["allow@x.org"]);
    let config = file::parse("x.json", r#"{"enabled": false}"#).unwrap();
    assert!(!config.enabled);
}

#[test]
fn destinations_of_the_wire_form_are_those_of_the_grammar() {
    let cases = [
        (r#""any""#, Ok("allow@any")),
        (r#""*.example.org""#, Ok("allow@*.example.org")),
        (r#""[fd00::/8]""#, Ok("allow@[fd00::/8]")),
        (r#""dns""#, Ok("allow@dns")),
        (r#"{"cidr": "10.0.0.0/8"}"#, Ok("allow@10.0.0.0/8")),
        (r#"{"cidr": "fd00::/8"}"#, Ok("allow@[fd00::/8]")),
        (r#"{"cidr": "::ffff:10.0.0.1"}"#, Ok("allow@10.0.0.1")),
        (r#"{"domain": "Example.ORG."}"#, Ok("allow@example.org")),
        (r#"{"domain_suffix": "example.org"}"#, Ok("allow@*.example.org")),
        (r#"{"domain_suffix": ".example.org"}"#, Ok("allow@.example.org")),
        (r#"{"group": "meta"}"#, Ok("allow@metadata")),
        (r#"{"cidr": "10.0.0.5/8"}"#, Err("10.0.0.0/8")),
        (r#"{"cidr": "example.org"}"#, Err("not an address")),
        (r#"{"domain": "*.example.org"}"#, Err("wildcard")),
        (r#"{"domain_suffix": "com"}"#, Err("public suffix")),
        (r#"{"group": "pivate"}"#, Err("`private`")),
        (r#"{"gruop": "private"}"#, Err("`group`")),
        (r#"{}"#, Err("empty destination")),
        (r#"{"group": "private", "cidr": "10.0.0.0/8"}"#, Err("do not combine")),
        (r#""""#, Err("empty target")),
        (r#""localhost""#, Err("`host`")),
    ];
    for (destination, expected) in cases {
        let text = format!(r#"{{"policy": {{"rules": [{{"action": "allow", "destination": {destination}}}]}}}}"#);
        match (file::parse("x.json", &text), expected) {
            (Ok(config), Ok(rule)) => assert_eq!(rules(&config), [rule], "{destination}"),
            (Err(errors), Err(part)) => assert!(errors.to_string().contains(part), "{destination}: {errors}"),
            (got, _) => panic!("{destination}: {got:?}"),
        }
    }
}

#[test]
fn mistakes_are_refused_with_their_place() {
    let cases = [
        ("x.toml", "[network]\npreset = \"public\"\nruels = []", &["line 3", "`ruels`", "did you mean `rules`?"][..]),
        ("x.toml", "[netwrok]\npreset = \"public\"", &["`netwrok`", "did you mean `network`?"]),
        ("x.toml", "[network]\nrules = [{acton = \"deny\", destination = \"any\"}]", &["acton", "`action`"]),
        ("x.toml", "[network]\nrules = [\"deny@any:tpc\"]", &["rules[0]", "characters 10-12", "`tcp`"]),
        ("x.toml", "[network]\nrules = [\"\"]", &["rules[0]", "empty rule"]),
        ("x.toml", "[network]\ndefault_egress = \"dney\"", &["line 2", "did you mean `deny`?"]),
        ("x.toml", "[network", &["line 1"]),
        ("x.json", "{\"policy\": {\"rules\": [{\"acton\": \"deny\"}]}}", &["`acton`", "line 1 column", "`action`"]),
        ("x.json", "{\"policy\": {\"rules\": [{\"action\": \"deny\"}]}}", &["missing field `destination`"]),
        ("x.json", "{\"policy\": {}, \"rules\": []}", &["policy", "contradict"]),
        ("x.json", "", &["line 1"]),
        ("x.yaml", "network:\n  ruels: []", &["`ruels`", "line 2", "did you mean `rules`?"]),
        ("x.ini", "", &["`.toml`"]),
        ("x.json", "{\"tls\": {}, \"secrets\": [1]}", &["`tls`", "`secrets`", "not supported"]),
        ("x.json", "{\"interface\": {\"mac\": \"02:00:00:00:00:01\"}}", &["interface.mac", "not supported"]),
        ("x.toml", "[network.dns]\nnameservers = [\"http://1.1.1.1\"]", &["dns.nameservers[0]", "expected `IP`"]),
        ("x.toml", "[network.dns]\nquery_timeout_ms = 0", &["dns.query_timeout_ms"]),
        ("x.toml", "[network.dns]\npin_floor_ms = 999", &["dns.pin_floor_ms", "999 ms", "1000 to 86400000"]),
        ("x.toml", "[network.dns]\npin_floor_ms = 86400001", &["dns.pin_floor_ms", "1000 to 86400000"]),
        ("x.toml", "[network.interface]\nmtu = 100", &["interface.mtu", "1280"]),
        ("x.toml", "[network.interface]\nipv4_pool = \"10.0.0.1/8\"", &["10.0.0.0/8"]),
        ("x.toml", "[network]\npreset = \"publik\"", &["preset", "`public`"]),
        (
            "x.toml",
            "[network]\npreset = \"none\"\nrules = [\"allow@a.example\"]",
            &["x.toml: preset", "leaves nothing"],
        ),
    ];
    for (name, text, parts) in cases {
        let errors = file::parse(name, text).expect_err(text).to_string();
        for part in parts {
            assert!(errors.contains(part), "{text}: {errors}");
        }
    }
}

#[test]
fn a_suffix_among_names_is_sent_to_where_suffixes_stand() {
    let refused = |field: &str, text: &str| {
        file::parse("x.toml", &format!("[network]\n{field} = [{text:?}]")).expect_err(text).0.remove(0)
    };
    for (text, suffix) in [
        ("*.example.org", "\"example.org\""),
        ("**.example.org", "\"example.org\""),
        (".example.org", "\".example.org\""),
        ("suffix=example.org", "\"example.org\""),
        ("*", ""),
    ] {
        let error = refused("deny_domains", text);
        assert_eq!(error.origin, "x.toml: deny_domains[0]");
        let help = error.help.unwrap();
        assert!(help.contains("`deny_domain_suffixes`") && help.ends_with(suffix), "{text}: {help}");
        assert!(!help.contains('*') && error.rule.is_none(), "{text}: {help}");
        if !suffix.is_empty() {
            let moved = format!("[network]\ndeny_domain_suffixes = [{suffix}]");
            assert!(file::parse("x.toml", &moved).is_ok(), "{moved}");
        }
    }
}

#[test]
fn a_mark_points_into_what_was_written() {
    for (field, text, marked) in [
        ("deny_domains", "exa mple.org", "exa mple.org"),
        ("deny_domains", "@pypy", "@pypy"),
        ("deny_domain_suffixes", ".exa mple.org", "exa mple.org"),
        ("deny_domain_suffixes", "*.co.uk", "co.uk"),
        ("deny_domain_suffixes", "co.uk", "co.uk"),
    ] {
        let error = file::parse("x.toml", &format!("[network]\n{field} = [{text:?}]")).expect_err(text).0.remove(0);
        let rule = error.rule.unwrap();
        assert_eq!((&*rule.source, &rule.source[rule.span.clone()]), (text, marked), "{field}");
        assert_eq!(rule.token_text(), text);
    }
}

#[test]
fn fields_that_are_not_supported_are_not_expected() {
    for (name, text) in [
        ("x.toml", "[network]\nbanana = 1"),
        ("x.json", "{\"banana\": 1}"),
        ("x.yaml", "banana: 1"),
        ("x.toml", "[network.interface]\nbanana = 1"),
        ("x.json", "{\"interface\": {\"banana\": 1}}"),
        ("x.yaml", "interface:\n  banana: 1"),
    ] {
        let errors = file::parse(name, text).expect_err(text).to_string();
        assert!(errors.contains("`banana`") && errors.contains("line "), "{errors}");
        assert!(
            errors.contains(if text.contains("interface") { "ipv4_pool" } else { "connect_timeout_ms" }),
            "{errors}"
        );
        for field in ["tls", "secrets", "mac"] {
            assert!(!errors.contains(field), "{field}: {errors}");
        }
    }
    // A rule has ports.
    let rule = r#"{"rules": [{"action": "deny", "banana": 1}]}"#;
    assert!(file::parse("x.json", rule).unwrap_err().to_string().contains("`ports`"));
}

#[test]
fn published_ports_come_through_every_door() {
    let shown = |config: NetworkConfig| -> Vec<String> { config.ports.iter().map(ToString::to_string).collect() };
    let expected = ["127.0.0.1:8080:80/tcp", "[::1]:0:53/udp"];
    let flags = ["8080:80", "[::1]:0:53/udp"].map(|text| FlagItem::Publish(text.to_owned()));
    assert_eq!(shown(from_flags(&flags).unwrap()), expected);
    for (name, text) in [
        (
            "x.toml",
            "[network]\nports = [\"8080:80\", { host_port = 0, guest_port = 53, protocol = \"udp\", host_bind = \"::1\" }]",
        ),
        ("x.json", r#"{"ports": [{"host_port": 8080, "guest_port": 80}, "[::1]:0:53/udp"]}"#),
        ("x.yaml", "ports:\n- host_port: 8080\n  guest_port: 80\n  protocol: tcp\n- '[::1]:0:53/udp'"),
    ] {
        assert_eq!(shown(file::parse(name, text).unwrap()), expected, "{name}");
    }
    let file = FlagItem::Conf { name: "x.toml".into(), text: "[network]\nports = [\"8080:80\"]".into() };
    let both = from_flags(&[FlagItem::Publish("8081:80".into()), file]).unwrap();
    assert_eq!(shown(both), ["127.0.0.1:8080:80/tcp", "127.0.0.1:8081:80/tcp"], "a file's and the flags' add up");
    assert_eq!(from_flags(&[FlagItem::MaxInboundConnections(7)]).unwrap().limits.max_inbound_connections, 7);
    let bound = file::parse("x.json", r#"{"max_inbound_connections": 8}"#).unwrap().limits.max_inbound_connections;
    assert_eq!(bound, 8);
}

#[test]
fn ports_that_cannot_be_published_are_refused() {
    let publish = |text: &str| FlagItem::Publish(text.to_owned());
    for (items, said) in [
        (
            vec![publish("8080:80"), publish("0.0.0.0:8080:81")],
            "0.0.0.0:8080:81/tcp takes the same port of the host as 127.0.0.1:8080:80/tcp",
        ),
        (vec![publish("8000-8002:1-3"), publish("8002:9")], "127.0.0.1:8002:9/tcp takes the same port"),
        (vec![publish("8080:80"), FlagItem::NoNet], "without a network"),
        (vec![publish("8080:80"), FlagItem::Net("none".into())], "without a network"),
        (vec![publish("1000-1512:1000-1512")], "513 ports are more than one sandbox can publish; the bound is 512"),
        (vec![publish("8080:0"), publish("8080:x")], "port 0 in the sandbox"),
        (vec![publish("8080:0"), publish("8080:x")], "\"x\" is not a port"),
    ] {
        let errors = from_flags(&items).expect_err(said).to_string();
        assert!(errors.contains(said), "{errors}");
    }
    for (text, said) in [
        (r#"{"ports": [{"host_port": 65536, "guest_port": 80}]}"#, "ports[0]: port 65536 is out of bounds"),
        (r#"{"ports": [{"host_port": 1, "guest_port": 0}]}"#, "ports[0]: port 0 in the sandbox"),
        (r#"{"ports": [{"host_port": 1, "guest_port": 1, "host_bind": "lan"}]}"#, "\"lan\" is not an address"),
        (r#"{"ports": [{"host_port": 1, "guest_port": 1, "protocol": "sctp"}]}"#, "unknown variant `sctp`"),
        (r#"{"ports": [{"host_port": 1, "guest_prt": 1}]}"#, "unknown field `guest_prt`"),
        (r#"{"ports": [8080]}"#, "a port as text"),
    ] {
        let errors = file::parse("x.json", text).expect_err(text);
        let all: String = errors.0.iter().map(|e| format!("{e} {:?}", e.help)).collect();
        assert!(all.contains(said), "{all}");
    }
}

#[test]
fn a_published_port_that_no_peer_can_reach_is_found() {
    let unreachable = |flags: &[&str], default: Option<Action>| -> Vec<String> {
        let mut items: Vec<FlagItem> = ["8080:80", "5353:53/udp"].map(|text| FlagItem::Publish(text.into())).into();
        items.extend(flags.iter().map(|rule| FlagItem::NetRule((*rule).to_owned())));
        items.extend(default.map(FlagItem::DefaultIngress));
        let found = Policy::unreachable_ports(&from_flags(&items).unwrap());
        found.iter().map(ToString::to_string).collect()
    };
    let (tcp, udp) = ("127.0.0.1:8080:80/tcp", "127.0.0.1:5353:53/udp");
    assert_eq!(unreachable(&[], None), [""; 0]);
    assert_eq!(unreachable(&[], Some(Action::Deny)), [tcp, udp]);
    assert_eq!(unreachable(&["allow:ingress@loopback:tcp:80"], Some(Action::Deny)), [udp]);
    assert_eq!(unreachable(&["allow:any@10.0.0.0/8"], Some(Action::Deny)), [""; 0]);
    assert_eq!(unreachable(&["allow:egress@any"], Some(Action::Deny)), [tcp, udp]);
    assert_eq!(unreachable(&["allow:ingress@any:tcp:81"], Some(Action::Deny)), [tcp, udp]);
    assert_eq!(unreachable(&["deny:ingress@any:udp"], None), [udp]);
    assert_eq!(unreachable(&["allow:ingress@private,deny:ingress@any:udp"], None), [""; 0]);
}

#[test]
fn strict_and_opaque_come_through_every_door() {
    let strict = |items: &[FlagItem]| from_flags(items).unwrap().policy.strict;
    let file = |text: &str| FlagItem::Conf { name: "x.toml".into(), text: text.into() };
    assert!(strict(&[]));
    assert!(!strict(&[FlagItem::Strict(false)]));
    assert!(!strict(&[file("[network]\nstrict = false")]));
    assert!(strict(&[FlagItem::Strict(true), file("[network]\nstrict = false")]));
    assert!(
        file::parse("x.json", r#"{"policy": {"rules": []}, "strict": false}"#)
            .is_ok_and(|config| !config.policy.strict)
    );

    let text = "allow@x.example:tcp:443:opaque";
    let object = r#"{"rules": [{"action": "allow", "destination": {"domain": "x.example"}, "protocols": ["tcp"], "ports": [443], "opaque": true}]}"#;
    let built = Policy::builder().egress(|e| e.tcp().port(443).opaque().allow_domain("x.example")).build().unwrap();
    assert_eq!(rules(&from_flags(&[FlagItem::NetRule(text.into())]).unwrap())[0], text);
    assert_eq!(rules(&file::parse("x.json", object).unwrap()), [text]);
    assert_eq!(format_rule(&built.rules[0]), text);
    let short = from_flags(&[FlagItem::Allow("x.example:443:opaque".into())]).unwrap();
    assert_eq!(rules(&short), ["allow@x.example:tcp+udp:443:opaque"]);
    for wrong in ["deny@x.example:opaque", "allow@public:opaque", "allow:any@x.example:opaque", "allow@[::1]:opaque"] {
        let error = from_flags(&[FlagItem::NetRule(wrong.into())]).unwrap_err().to_string();
        assert!(error.contains("`opaque` belongs to a rule that lets a name out"), "{wrong}: {error}");
    }
    assert!(Policy::builder().egress(|e| e.opaque().allow_public()).build().is_err());
}

#[test]
fn allow_private_comes_through_every_door() {
    let text = "allow@x.example:tcp:443:allow-private";
    let object = r#"{"rules": [{"action": "allow", "destination": {"domain": "x.example"}, "protocols": ["tcp"], "ports": [443], "allow_private": true}]}"#;
    let built = Policy::builder().egress(|e| e.tcp().port(443).private_addresses().allow_domain("x.example"));
    assert_eq!(rules(&from_flags(&[FlagItem::NetRule(text.into())]).unwrap())[0], text);
    assert_eq!(rules(&file::parse("x.json", object).unwrap()), [text]);
    assert_eq!(format_rule(&built.build().unwrap().rules[0]), text);
    for both in ["*.x.example:opaque:allow-private", "*.x.example:allow-private:opaque"] {
        let short = from_flags(&[FlagItem::Allow(both.into())]).unwrap();
        assert_eq!(rules(&short), ["allow@*.x.example:tcp+udp:opaque:allow-private"]);
    }
    for wrong in ["deny@x.example", "allow@public", "allow:any@x.example", "allow:ingress@x.example", "allow@[::1]"] {
        let error = from_flags(&[FlagItem::NetRule(format!("{wrong}:allow-private"))]).unwrap_err().to_string();
        assert!(error.contains("`allow_private` belongs to a rule that lets a name out"), "{wrong}: {error}");
    }
    assert!(from_flags(&[FlagItem::Allow("x.example:allow-private:allow-private".into())]).is_err());
    assert!(Policy::builder().egress(|e| e.private_addresses().allow_public()).build().is_err());
}

#[test]
fn ports_of_the_wire_form_are_exact() {
    let cases = [
        ("[443]", Ok("allow@any:tcp:443")),
        ("[\"80-90\", {\"start\": 91, \"end\": 91}]", Ok("allow@any:tcp:80-91")),
        ("[0]", Err("1 to 65535")),
        ("[65536]", Err("65536")),
        ("[-1]", Err("-1")),
        ("[\"443-80\"]", Err("443-80")),
        ("[\"https\"]", Err("https")),
        ("[\"80-\"]", Err("80-")),
        ("[\" 80\"]", Err(" 80")),
        ("[\"+80\"]", Err("+80")),
        ("[\"80,deny@any\"]", Err("not a port")),
        ("[{\"start\": 9, \"end\": 8}]", Err("backwards")),
        ("[{\"start\": 9}]", Err("`end`")),
        ("[{\"start\": 9, \"end\": 9, \"step\": 1}]", Err("`step`")),
        ("[[1]]", Err("a port")),
        ("443", Err("sequence")),
    ];
    for (ports, expected) in cases {
        let rule = format!(r#"{{"action": "allow", "destination": "any", "protocols": ["tcp"], "ports": {ports}}}"#);
        match (file::parse("x.json", &format!(r#"{{"policy": {{"rules": [{rule}]}}}}"#)), expected) {
            (Ok(config), Ok(rule)) => assert_eq!(rules(&config), [rule], "{ports}"),
            (Err(errors), Err(part)) => assert!(errors.to_string().contains(part), "{ports}: {errors}"),
            (got, _) => panic!("{ports}: {got:?}"),
        }
    }
    for rule in [
        r#"{"action": "allow", "destination": "any", "protocols": ["icmp"], "ports": [1]}"#,
        r#"{"action": "allow", "direction": "ingress", "destination": "any", "protocols": ["icmpv4"]}"#,
        r#"{"action": "allow", "destination": "any", "protocols": ["sctp"]}"#,
        r#"{"action": "allow", "direction": "ingress", "destination": "dns"}"#,
        r#"{"action": "allow", "destination": "dns", "ports": [5353]}"#,
    ] {
        assert!(file::parse("x.json", &format!(r#"{{"policy": {{"rules": [{rule}]}}}}"#)).is_err(), "{rule}");
    }
}

#[test]
fn flags_come_before_and_above_a_file() {
    let conf = |text: &str| FlagItem::Conf { name: "net.toml".into(), text: text.into() };
    let file = conf(
        "[network]\npreset = \"private\"\nrules = [\"deny@1.1.1.1\"]\nmax_connections = 5\n[network.dns]\nnameservers = [\"9.9.9.9\"]",
    );
    let config = from_flags(&[file.clone(), FlagItem::Allow("8.8.8.8".into())]).unwrap();
    assert_eq!(rules(&config), ["allow@8.8.8.8:tcp+udp", "deny@1.1.1.1", "allow@dns", "allow@private"]);
    assert_eq!(config.limits.max_connections, 5);
    let items = [
        FlagItem::MaxConnections(9),
        FlagItem::Net("public".into()),
        FlagItem::Nameserver("1.1.1.1".into()),
        FlagItem::DefaultIngress(Action::Deny),
        FlagItem::NoRebindProtection,
        file.clone(),
    ];
    let config = from_flags(&items).unwrap();
    assert_eq!(rules(&config), ["deny@1.1.1.1", "allow@dns", "allow@public"]);
    assert_eq!(config.limits.max_connections, 9);
    assert_eq!(config.dns.nameservers, ["1.1.1.1:53".parse::<std::net::SocketAddr>().unwrap().into()]);
    assert_eq!(config.policy.default_ingress, Action::Deny);
    assert!(!config.dns.rebind_protection && from_flags(&[]).unwrap().dns.rebind_protection);
    assert!(from_flags(&[file.clone(), file]).is_err());
    let off = conf("[network]\nenabled = false");
    assert!(!from_flags(std::slice::from_ref(&off)).unwrap().enabled);
    assert!(from_flags(&[off, FlagItem::Net("public".into())]).unwrap().enabled);
    let none = conf("[network]\npreset = \"none\"\nrules = [\"allow@x.org\"]");
    assert!(from_flags(std::slice::from_ref(&none)).is_err());
    assert!(from_flags(&[none, FlagItem::Net("public".into())]).is_ok());
}

#[test]
fn every_wrong_flag_is_reported() {
    let items = [
        FlagItem::NetRule("alow@any".into()),
        FlagItem::Allow("10.0.0.1/8".into()),
        FlagItem::Allow(String::new()),
        FlagItem::Mtu(1),
        FlagItem::Nameserver("0.0.0.0".into()),
        FlagItem::Ipv6Pool("fd00::/65".into()),
        FlagItem::QueryTimeoutMs(0),
    ];
    let errors = from_flags(&items).unwrap_err();
    assert_eq!(errors.0.len(), items.len(), "{errors}");
    assert!(errors.0[0].rule.is_some() && errors.to_string().contains("--net-rule: rule \"alow@any\", characters 1-4"));
}

#[test]
fn the_schema_describes_both_forms() {
    let schema = file::schema();
    assert!(schema.contains("\"deny_domain_suffixes\"") && schema.contains("\"additionalProperties\": false"));
    assert!(
        schema.contains("\"domain_suffix\"")
            && schema.contains("\"network_mode\"")
            && schema.contains("\"allowlist\"")
            && schema.contains("\"rate_limiter\"")
    );
}

fn rules(config: &NetworkConfig) -> Vec<String> {
    config.policy.rules.iter().map(format_rule).collect()
}

#[test]
fn what_is_written_is_read_back_as_it_was() {
    let texts = [
        "",
        r#"enabled = false"#,
        r#"preset = "none""#,
        r#"
        preset = "public,host"
        default_ingress = "deny"
        deny_with = "drop"
        strict = false
        rules = ["allow@x.org:tcp:443:opaque", "deny@[2001:db8::/32]", "allow@y.org:any:any:allow-private", "deny:any@*.z.org"]
        ports = ["8080:80", "[::1]:5353:53/udp", { host_port = 0, guest_port = 22, host_bind = "0.0.0.0" }]
        max_inbound_connections = 9
        max_connections = 0
        max_udp_connections = 7
        connect_timeout_ms = 1500
        budgets = [{ bytes = 5000 }, { bytes = 18446744073709551615, direction = "egress", destinations = ["x.org", ".y.org", "10.0.0.0/8", "[2001:db8::1]", "[2001:db8::/32]", "private", "host", "metadata", "any"] }]
        [rate_limiter.egress]
        bandwidth = { size = 18446744073709551615, refill_time_ms = 100, one_time_burst = 50 }
        ops = { size = 7, refill_time_ms = 86400000 }
        [rate_limiter.ingress]
        bandwidth = { size = 1, refill_time_ms = 1 }
        [dns]
        nameservers = ["192.0.2.1", "[2001:db8::1]:54", "tls://192.0.2.2#dns.x.org", "https://dns.x.org:444/q", "tls://ns.x.org"]
        query_timeout_ms = 10
        pin_floor_ms = 2500
        rebind_protection = false
        deny_doh = false
        [interface]
        mtu = 9000
        ipv4_pool = "10.9.0.0/16"
        ipv6_pool = "fd00:1::/48"
        ipv6 = true
        ipv4_address = "10.9.0.2"
        ipv6_address = "fd00:1::2"
        "#,
        r#"
        rules = ["allow@x.org"]
        [[ceilings]]
        layer = "floor"
        deny_doh = true
        strict = false
        rebind_protection = false
        policy = { default_egress = "allow", rules = ["deny@metadata"] }
        [[ceilings]]
        layer = "session"
        policy = { rules = ["allow@*.x.org", "allow@private"] }
        "#,
    ];
    for text in texts {
        let config = file::parse("x.toml", text).unwrap_or_else(|errors| panic!("{errors}"));
        let written = file::to_json(&config);
        assert_eq!(file::parse("x.json", &written).unwrap_or_else(|errors| panic!("{written}: {errors}")), config);
        assert!(!written.contains('\n'));
    }
}

#[test]
fn ceilings_are_validated_like_the_policy_itself() {
    for (text, expected) in [
        (r#"ceilings = [{ layer = "session", policy = { rules = ["allow@nope"] } }]"#, "ceilings[0].policy.rules[0]"),
        (r#"ceilings = [{ layer = "attic", policy = {} }]"#, "attic"),
        (r#"ceilings = [{ layer = "session", policy = {}, color = 1 }]"#, "color"),
    ] {
        let errors = file::parse("x.toml", text).unwrap_err().to_string();
        assert!(errors.contains(expected), "{errors}");
    }
    let many = format!("ceilings = [{}]", r#"{ layer = "session", policy = {} },"#.repeat(Policy::MAX_LAYERS));
    assert!(file::parse("x.toml", &many).unwrap_err().to_string().contains("too many policies"));
}

#[test]
fn rates_and_budgets_are_the_same_behind_every_door() {
    use cofferdam_model::{BucketConfig, BudgetConfig, Destination, Direction};
    use cofferdam_policy::file::RateFlag;
    use std::time::Duration;

    let toml = r#"
        [network.rate_limiter.egress]
        bandwidth = {size = 1000, refill_time_ms = 100, one_time_burst = 50}
        [network.rate_limiter.ingress]
        ops = {size = 7, refill_time_ms = 1000}
        [[network.budgets]]
        bytes = 5000
        [[network.budgets]]
        bytes = 6000
        direction = "egress"
        destinations = ["example.org", {cidr = "10.0.0.0/8"}]
    "#;
    let config = file::parse("x.toml", toml).unwrap_or_else(|errors| panic!("{errors}"));
    let bucket =
        |size, ms, one_time_burst| Some(BucketConfig { size, refill_time: Duration::from_millis(ms), one_time_burst });
    assert_eq!(config.limits.rates.egress.bandwidth, bucket(1000, 100, 50));
    assert_eq!(config.limits.rates.ingress.ops, bucket(7, 1000, 0));
    assert_eq!((config.limits.rates.egress.ops, config.limits.rates.ingress.bandwidth), (None, None));
    let destinations =
        vec![Destination::Domain("example.org".parse().unwrap()), Destination::Cidr("10.0.0.0/8".parse().unwrap())];
    let budgets = [
        BudgetConfig { bytes: 5000, direction: Direction::Any, destinations: Vec::new() },
        BudgetConfig { bytes: 6000, direction: Direction::Egress, destinations },
    ];
    assert_eq!(config.limits.budgets, budgets);
    let rate = |limit, size, ms| FlagItem::Rate { limit, size, refill_time: Duration::from_millis(ms) };
    let targets = Some("example.org, 10.0.0.0/8".to_owned());
    let flags = [
        // A burst may stand before what it is on top of.
        FlagItem::RateBurst { limit: RateFlag::EgressBandwidth, burst: 50 },
        rate(RateFlag::EgressBandwidth, 1000, 100),
        rate(RateFlag::IngressOps, 7, 1000),
        FlagItem::Budget { bytes: 5000, direction: Direction::Any, targets: None },
        FlagItem::Budget { bytes: 6000, direction: Direction::Egress, targets },
    ];
    assert_eq!(file::from_flags(&flags).unwrap_or_else(|errors| panic!("{errors}")).limits, config.limits);
    let list = FlagItem::Budget { bytes: 1, direction: Direction::Any, targets: Some("@pypi".to_owned()) };
    assert!(file::from_flags(&[list]).unwrap().limits.budgets[0].destinations.len() > 1);

    for (text, said) in [
        (
            "rate_limiter: {egress: {bandwidth: {size: 0, refill_time_ms: 1}}}",
            "egress.bandwidth: a rate limit with a size of 0",
        ),
        ("rate_limiter: {ingress: {ops: {size: 1, refill_time_ms: 0}}}", "ingress.ops: a refill time of 0 ms"),
        ("rate_limiter: {egress: {bandwith: {size: 1, refill_time_ms: 1}}}", "did you mean `bandwidth`?"),
        ("budgets: [{bytes: 0}]", "budgets[0]: a budget of 0 bytes"),
        ("budgets: [{bytes: 1, destinations: [dns]}]", "no destination that a budget can be for"),
        ("budgets: [{bytes: 1, destinations: ['*.com']}]", "budgets[0].destinations[0]"),
    ] {
        let errors = file::parse("x.yaml", &format!("network: {{{text}}}")).unwrap_err();
        let shown = errors.0.iter().map(|error| format!("{error} {:?}", error.help)).collect::<String>();
        assert!(shown.contains(said), "{text}: {shown}");
    }
    let burst = FlagItem::RateBurst { limit: RateFlag::EgressOps, burst: 1 };
    assert!(file::from_flags(&[burst]).unwrap_err().to_string().contains("--net-egress-ops"));
}

#[test]
fn host_sockets_come_through_every_door_and_back() {
    let toml = r#"
        [network]
        host_sockets = ["/run/a.sock:/run/b.sock", { host = "/with:/colon", guest = "/tmp/c.sock" }]
    "#;
    let config = file::parse("x.toml", toml).unwrap_or_else(|errors| panic!("{errors}"));
    let shown: Vec<_> = config.host_sockets.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["/run/a.sock:/run/b.sock", "/with:/colon:/tmp/c.sock"]);
    assert_eq!(file::parse("x.json", &file::to_json(&config)).unwrap(), config);
    let conf = FlagItem::Conf { name: "x.toml".into(), text: toml.into() };
    let both = from_flags(&[FlagItem::HostSocket("/run/d:/run/d".into()), conf]).unwrap();
    assert_eq!(both.host_sockets.len(), 3, "those of the flags and of the file add up");
}

#[test]
fn host_sockets_that_cannot_be_are_refused() {
    let socket = |text: &str| FlagItem::HostSocket(text.to_owned());
    let many: Vec<FlagItem> = (0..65).map(|n| socket(&format!("/a:/run/{n}"))).collect();
    assert!(from_flags(&many[..64]).is_ok());
    for (items, reason) in [
        (vec![socket("a:/b")], "--host-socket: the path \"a\" on the host is not absolute"),
        (vec![socket("/a:/b"), socket("/c:/b")], "takes the same place in the sandbox as /a:/b"),
        (vec![socket("/a:/b"), socket("/c:/b/c")], "takes the same place"),
        (vec![socket("/a:/b/c"), socket("/c:/b")], "takes the same place"),
        (vec![socket("/a:/b"), FlagItem::NoNet], "leads through the gateway"),
        (vec![socket("/a:/b"), FlagItem::Net("none".into())], "leads through the gateway"),
        (many, "65 host sockets are more than one sandbox can have"),
    ] {
        let errors = from_flags(&items).unwrap_err().to_string();
        assert!(errors.contains(reason), "{errors}");
    }
    assert!(from_flags(&[socket("/a:/b"), socket("/c:/bc")]).is_ok(), "/bc is not beneath /b");
    for (text, reason) in [
        (r#"{"network": {"host_sockets": ["/a"]}}"#, "host_sockets[0]: \"/a\" is not a host socket"),
        (r#"{"network": {"host_sockets": [{"host": "/a", "guest": "b"}]}}"#, "in the sandbox is not absolute"),
        (r#"{"network": {"host_sockets": [{"host": "/a", "gest": "/b"}]}}"#, "gest"),
        (r#"{"network": {"host_sockets": [{"host": "/a", "guest": "/b:/c"}]}}"#, "`:/` in it"),
        (r#"{"network": {"host_sockets": [7]}}"#, "a host socket as text"),
    ] {
        let errors = file::parse("x.json", text).unwrap_err().to_string();
        assert!(errors.contains(reason), "{text}: {errors}");
    }
}
