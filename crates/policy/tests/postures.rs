//! Postures: a mode and two lists, through every door.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

use std::net::IpAddr;

use cofferdam_model::{Action, Classifier, Direction, HostNetwork, NetworkConfig, NetworkMode, Protocol};
use cofferdam_policy::file::{self, FlagItem, default_network, from_flags};
use cofferdam_policy::grammar::format_rule;
use cofferdam_policy::posture::Posture;
use cofferdam_policy::{Facts, NameVerdict, PinnedName, Policy};

const GATEWAY: [&str; 2] = ["172.16.0.1", "fd42:6d73:62::1"];
const PUBLIC: [&str; 2] = ["93.184.215.14", "2606:2800:21f:cb07::14"];
const METADATA: [&str; 3] = ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"];
const PRIVATE: [&str; 2] = ["10.0.0.5", "fd00::5"];
const LOOPBACK: [&str; 4] = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"];

#[test]
fn blocked_is_the_network_that_preset_none_makes() {
    let config = Posture::default().network().unwrap();
    assert!(!config.enabled);
    assert_eq!(config, file::parse("x.toml", "preset = \"none\"").unwrap());
    assert_eq!(config, from_flags(&[FlagItem::Mode(NetworkMode::Blocked)]).unwrap());
    for text in ["network_mode = \"blocked\"", "network_mode = \"blocked\"\nnetwork_allowlist = []"] {
        assert_eq!(config, file::parse("x.toml", text).unwrap(), "{text}");
    }
}

#[test]
fn open_allows_everything_and_guards_nothing_by_itself() {
    let config = posture(NetworkMode::Open, &[], &[]);
    assert!(config.enabled && config.policy.rules.is_empty());
    assert_eq!(config, file::parse("x.toml", "preset = \"allow-all\"").unwrap());
    assert_eq!((config.policy.default_egress, config.policy.default_ingress), (Action::Allow, Action::Allow));
    for peer in PUBLIC.iter().chain(&PRIVATE).chain(&METADATA).chain(&GATEWAY) {
        assert!(allows(&config, peer), "{peer}");
    }
}

#[test]
fn the_denylist_is_tried_first() {
    for mode in [NetworkMode::Open, NetworkMode::Allowlist] {
        let allow: &[&str] = if mode == NetworkMode::Open { &[] } else { &["0.0.0.0/0", "::/0", "metadata"] };
        let config = posture(mode, allow, &["@private", "CLOUD_METADATA_DENY", PUBLIC[0], "2606:2800:21f::/48"]);
        for closed in PUBLIC.iter().chain(&PRIVATE).chain(&METADATA).chain(&["169.254.1.1"]) {
            assert!(!allows(&config, closed), "{mode:?} {closed}");
        }
        for open in ["1.1.1.1", "::ffff:1.1.1.1", "2606:4700::1"] {
            assert!(allows(&config, open), "{mode:?} {open}");
        }
        assert!(!name_passes(&config, "metadata.google.internal") && name_passes(&config, "example.org"), "{mode:?}");
    }
}

#[test]
fn metadata_is_closed_by_either_name_of_the_list_and_by_its_group() {
    for entry in ["@metadata", "CLOUD_METADATA_DENY", "@CLOUD_METADATA_DENY", "metadata"] {
        let config = posture(NetworkMode::Open, &[], &[entry]);
        for closed in METADATA {
            assert!(!allows(&config, closed), "{entry} {closed}");
        }
        assert!(PUBLIC.iter().all(|open| allows(&config, open)), "{entry}");
    }
}

#[test]
fn an_allowlist_is_all_there_is_but_names() {
    let config = posture(
        NetworkMode::Allowlist,
        &["10.0.0.0/8", "fd00::/16", "pypi.org", "*.example.org"],
        &["10.0.0.6", "fd00::6"],
    );
    assert_eq!(
        rules(&config),
        [
            "deny@10.0.0.6",
            "deny@[fd00::6]",
            "allow@dns",
            "allow@10.0.0.0/8",
            "allow@pypi.org",
            "allow@*.example.org",
            "deny@loopback",
            "allow@[fd00::/16]",
        ]
    );
    assert_eq!((config.policy.default_egress, config.policy.default_ingress), (Action::Deny, Action::Allow));
    for open in PRIVATE {
        assert!(allows(&config, open), "{open}");
    }
    for closed in PUBLIC.iter().chain(&GATEWAY).chain(&METADATA).chain(&["10.0.0.6", "fd00::6"]) {
        assert!(!allows(&config, closed), "{closed}");
    }
    for peer in PUBLIC {
        assert!(allows_as(&config, peer, "pypi.org") && allows_as(&config, peer, "a.example.org"), "{peer}");
        assert!(!allows_as(&config, peer, "example.net"), "{peer}");
    }
    assert!(name_passes(&config, "pypi.org") && name_passes(&config, "example.net"));
}

#[test]
fn a_denylist_with_the_group_host_denies_names_as_well() {
    for mode in [NetworkMode::Open, NetworkMode::Allowlist] {
        assert!(!name_passes(&posture(mode, &[], &["host"]), "example.org"), "{mode:?}");
        // Group private is everything but this machine's own addresses.
        let config = posture(mode, &[], &["@private", "@metadata"]);
        assert!(name_passes(&config, "example.org"), "{mode:?}");
        assert_eq!(GATEWAY.map(|peer| allows(&config, peer)), [mode == NetworkMode::Open; 2], "{mode:?}");
    }
}

#[test]
fn an_empty_allowlist_opens_nothing() {
    let config = posture(NetworkMode::Allowlist, &[], &[]);
    assert!(config.enabled);
    assert_eq!(rules(&config), ["allow@dns"]);
    for closed in PUBLIC.iter().chain(&PRIVATE).chain(&METADATA).chain(&LOOPBACK).chain(&GATEWAY) {
        assert!(!allows(&config, closed), "{closed}");
    }
}

#[test]
fn every_address_in_an_allowlist_is_not_this_machine_nor_metadata_nor_loopback() {
    for lists in
        [&["0.0.0.0/0", "::/0"][..], &["::/0", "0.0.0.0/0"], &["0.0.0.0/1", "64:ff9b::/96", "::/8", "2000::/3"]]
    {
        let config = posture(NetworkMode::Allowlist, lists, &[]);
        for closed in GATEWAY.iter().chain(&METADATA).chain(&LOOPBACK).chain(&["64:ff9b::169.254.169.254"]) {
            assert!(!allows(&config, closed), "{lists:?} {closed}");
        }
        assert!(PUBLIC.iter().all(|open| allows(&config, open)), "{lists:?}");
    }
    // What is named by itself is meant.
    let config = posture(NetworkMode::Allowlist, &["0.0.0.0/0", "::/0", "127.0.0.1", "::1"], &[]);
    assert!(allows(&config, "127.0.0.1") && allows(&config, "::1") && !allows(&config, "127.0.0.2"));
}

#[test]
fn one_bad_entry_refuses_all_with_its_place() {
    for (entry, parts) in [
        ("10.0.0.5/8", &["10.0.0.0/8"][..]),
        ("fd00::5/8", &["fd00::/8"]),
        ("10.0.0.0/33", &["33"]),
        ("fd00::/129", &["129"]),
        ("10.0.0", &["10.0.0"]),
        ("fd00:::5", &["fd00:::5"]),
        ("[fd00::5", &["fd00::5"]),
        ("*.com", &["public suffix"]),
        ("*", &["everything"]),
        ("any", &["everything"]),
        ("a.*.example.org", &["a.*.example.org"]),
        ("exa mple.org", &["exa mple.org"]),
        ("https://example.org/", &["example.org"]),
        ("example.org:443", &["443"]),
        ("a.example,b.example", &["a.example,b.example"]),
        ("@pipy", &["pipy"]),
        ("privte", &["privte"]),
        ("", &["target"]),
        (" ", &["\" \""]),
    ] {
        for field in ["network_allowlist", "network_denylist"] {
            let good_and_bad = vec!["10.0.0.5".to_owned(), entry.to_owned()];
            let mut posture = Posture { mode: NetworkMode::Allowlist, ..Posture::default() };
            *(if field == "network_allowlist" { &mut posture.allowlist } else { &mut posture.denylist }) = good_and_bad;
            let errors = posture.network().expect_err(entry);
            assert_eq!(errors.0.len(), 1, "{errors}");
            assert_eq!(errors.0[0].origin, format!("{field}[1]"));
            let text = format!("network_mode = \"allowlist\"\n{field} = [\"10.0.0.5\", {entry:?}]");
            let from_file = file::parse("x.toml", &text).expect_err(entry);
            assert_eq!(from_file.0[0].origin, format!("x.toml: {field}[1]"));
            let whole = format!("{errors} {:?}", errors.0[0].help);
            assert!(parts.iter().all(|part| whole.contains(part)), "{entry}: {whole}");
            if let Some(rule) = &errors.0[0].rule {
                assert_eq!(&*rule.source, entry);
                assert!(rule.source.get(rule.span.clone()).is_some() && rule.source.get(rule.token.clone()).is_some());
            }
        }
    }
}

#[test]
fn lists_that_contradict_the_mode_are_refused() {
    for (mode, field) in
        [("blocked", "network_allowlist"), ("blocked", "network_denylist"), ("open", "network_allowlist")]
    {
        for entry in ["10.0.0.5", "fd00::5"] {
            let errors = file::parse("x.toml", &format!("network_mode = {mode:?}\n{field} = [{entry:?}]")).unwrap_err();
            assert_eq!(errors.0.len(), 1, "{errors}");
            let text = errors.to_string();
            assert!(text.contains(field) && text.contains(&format!("mode `{mode}`")), "{text}");
        }
    }
}

#[test]
fn what_is_beside_the_mode_is_refused_once() {
    for (text, parts) in [
        ("network_mode = \"open\"\npreset = \"public\"", &["x.toml: network_mode", "contradict"][..]),
        ("network_mode = \"open\"\nrules = [\"deny@any\"]", &["contradict"]),
        ("network_mode = \"blocked\"\nrules = [\"allow@any\"]", &["contradict"]),
        ("network_mode = \"open\"\ndefault_egress = \"deny\"", &["contradict"]),
        ("network_mode = \"open\"\npolicy = {}", &["contradict"]),
        ("network_allowlist = [\"10.0.0.5\"]", &["go with `network_mode`"]),
        ("network_denylist = [\"fd00::5\"]", &["go with `network_mode`"]),
        ("network_mode = \"blocked\"\ndeny_domains = [\"a.example\"]", &["x.toml: network_mode", "mode `blocked`"]),
        ("network_mode = \"blocked\"\nports = [\"8080:80\"]", &["without a network"]),
        ("network_mode = \"opne\"", &["did you mean `open`?"]),
        ("network_mode = 1", &["line 1"]),
        ("network_mode = \"open\"\nnetwork_denylist = \"private\"", &["line 2"]),
    ] {
        let errors = file::parse("x.toml", text).expect_err(text);
        assert_eq!(errors.0.len(), 1, "{errors}");
        let whole = format!("{errors} {:?}", errors.0[0].help);
        assert!(parts.iter().all(|part| whole.contains(part)), "{text}: {whole}");
    }
}

#[test]
fn every_format_makes_what_the_builder_makes() {
    let expected = posture(NetworkMode::Allowlist, &["@pypi", "10.0.0.0/8", "fd00::/8"], &["PYPI_HOSTS", "10.0.0.6"]);
    for (name, text) in [
        (
            "x.toml",
            "[network]\nnetwork_mode = \"allowlist\"\nnetwork_allowlist = [\"@pypi\", \"10.0.0.0/8\", \"[fd00::/8]\"]\n\
             network_denylist = [\"@pypi\", \"10.0.0.6\"]",
        ),
        (
            "x.json",
            r#"{"network_mode": "allowlist", "network_allowlist": ["PYPI_HOSTS", "10.0.0.0/8", "fd00::/8"],
                "network_denylist": ["PYPI_HOSTS", "10.0.0.6"]}"#,
        ),
        (
            "x.yaml",
            "network_mode: allowlist\nnetwork_allowlist: ['@pypi', 10.0.0.0/8, 'fd00::/8']\nnetwork_denylist: ['@pypi', 10.0.0.6]",
        ),
    ] {
        let config = file::parse(name, text).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config, expected, "{name}");
        assert_eq!(file::parse("x.json", &file::to_json(&config)).unwrap(), expected);
    }
    let named = "network_mode = \"open\"\nnetwork_denylist = [\"private\"]\ndeny_domains = [\"a.example\"]";
    assert_eq!(rules(&file::parse("x.toml", named).unwrap()), ["deny@a.example", "deny@private"]);
}

#[test]
fn the_flag_goes_with_rules_unless_it_is_blocked() {
    let mode = FlagItem::Mode;
    let allow = |text: &str| FlagItem::Allow(text.to_owned());
    let deny = |text: &str| FlagItem::Deny(text.to_owned());
    let config = from_flags(&[
        mode(NetworkMode::Allowlist),
        deny("10.0.0.6"),
        allow("10.0.0.0/8"),
        allow("[fd00::5]:443"),
        FlagItem::NetRule("allow@pypi.org".to_owned()),
    ])
    .unwrap();
    assert_eq!(
        rules(&config),
        [
            "deny@10.0.0.6:tcp+udp",
            "allow@10.0.0.0/8:tcp+udp",
            "allow@[fd00::5]:tcp+udp:443",
            "allow@pypi.org",
            "allow@dns"
        ]
    );
    assert_eq!(config.policy.default_egress, Action::Deny);
    let config = from_flags(&[mode(NetworkMode::Open), deny("private")]).unwrap();
    assert_eq!(
        (rules(&config), config.policy.default_egress),
        (vec!["deny@private:tcp+udp".to_owned()], Action::Allow)
    );

    for beside in [
        allow("10.0.0.5"),
        allow("[fd00::5]"),
        deny("any"),
        FlagItem::NetRule("deny@any".to_owned()),
        FlagItem::Publish("8080:80".to_owned()),
        FlagItem::Net("public".to_owned()),
        FlagItem::NoNet,
        FlagItem::DefaultEgress(Action::Allow),
        FlagItem::DefaultIngress(Action::Deny),
        mode(NetworkMode::Open),
    ] {
        let errors = from_flags(&[mode(NetworkMode::Blocked), beside.clone()]).expect_err("blocked");
        assert_eq!((errors.0.len(), errors.0[0].origin.as_str()), (1, "--network-mode"), "{beside:?}: {errors}");
    }
    for beside in [FlagItem::Net("public".to_owned()), FlagItem::NoNet, FlagItem::DefaultEgress(Action::Allow)] {
        assert!(from_flags(&[mode(NetworkMode::Allowlist), beside.clone()]).is_err(), "{beside:?}");
    }
}

#[test]
fn the_flag_stands_above_the_mode_of_a_file() {
    let conf = |text: &str| FlagItem::Conf { name: "x.toml".to_owned(), text: text.to_owned() };
    let listed = "network_mode = \"allowlist\"\nnetwork_allowlist = [\"10.0.0.5\"]\nnetwork_denylist = [\"fd00::6\"]";
    let config = from_flags(&[conf(listed), FlagItem::Mode(NetworkMode::Blocked)]).unwrap();
    assert_eq!((config.enabled, config.policy.rules.len()), (false, 0));
    let config = from_flags(&[conf(listed), FlagItem::Mode(NetworkMode::Open)]).unwrap();
    assert!(allows(&config, PUBLIC[1]) && !allows(&config, "fd00::6"));
    let config = from_flags(&[conf("network_mode = \"blocked\""), FlagItem::Mode(NetworkMode::Open)]).unwrap();
    assert!(config.enabled && allows(&config, PUBLIC[0]));
    let errors =
        from_flags(&[conf("network_mode = \"blocked\""), FlagItem::Allow("fd00.example".to_owned())]).unwrap_err();
    assert!(errors.to_string().contains("x.toml: network_mode: mode `blocked` leaves nothing"), "{errors}");
}

fn posture(mode: NetworkMode, allow: &[&str], deny: &[&str]) -> NetworkConfig {
    let owned = |list: &[&str]| list.iter().map(|entry| (*entry).to_owned()).collect();
    let posture = Posture { mode, allowlist: owned(allow), denylist: owned(deny) };
    let config = posture.network().unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(NetworkConfig { enabled: true, policy: default_network().policy, ..config.clone() }, default_network());
    config
}

fn rules(config: &NetworkConfig) -> Vec<String> {
    config.policy.rules.iter().map(format_rule).collect()
}

fn policy(config: &NetworkConfig) -> Policy {
    let addresses = GATEWAY.iter().map(|address| address.parse().unwrap()).collect();
    Policy::compile(&config.policy, Classifier::new(HostNetwork { addresses, ..HostNetwork::default() }))
}

fn egress<'a>(peer: &str, names: &'a [PinnedName]) -> Facts<'a> {
    let peer: IpAddr = peer.parse().unwrap();
    Facts { direction: Direction::Egress, protocol: Protocol::Tcp, peer, port: Some(443), names }
}

fn allows(config: &NetworkConfig, peer: &str) -> bool {
    policy(config).check(&egress(peer, &[])).is_allow()
}

/// Whether a connection to `peer` passes, or may when it shows its name, after an answer for `name`.
fn allows_as(config: &NetworkConfig, peer: &str, name: &str) -> bool {
    let pins = [PinnedName { name: name.parse().unwrap(), alias: false }];
    !matches!(policy(config).check(&egress(peer, &pins)), cofferdam_policy::Verdict::Deny(_))
}

fn name_passes(config: &NetworkConfig, name: &str) -> bool {
    let question = Facts { protocol: Protocol::Udp, port: Some(53), ..egress(GATEWAY[0], &[]) };
    !matches!(policy(config).check_name(&name.parse().unwrap(), &question), NameVerdict::Deny(_))
}
