//! What is learned from a recording, and that it holds.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

mod recording;

use cofferdam_evidence::{Learn, Learned, Remark, file, learn};
use cofferdam_model::{FlightProtocol, Group, Protocol};
use cofferdam_policy::grammar::format_rule;
use cofferdam_policy::{Policy, file as config};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::recording::{HOST, Recording, flight};

const WEB: [&str; 2] = ["93.184.215.14", "2606:2800:21f:cb07::14"];
const OTHER: [&str; 2] = ["151.101.1.69", "2a04:4e42::645"];

fn learned(recording: Recording) -> Learned {
    learn(recording.events.into_iter(), Learn::default())
}

fn rules(recording: Recording) -> Vec<String> {
    let learned = learned(recording);
    assert_eq!(learned.missed, []);
    assert_eq!(learned.rules.len(), learned.because.len());
    learned.rules.iter().map(format_rule).collect()
}

fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

#[test]
fn a_flow_becomes_its_name_with_its_port() {
    for web in WEB {
        let recording = Recording::default()
            .looks_up("www.example.com", &[web])
            .shows(&at(web, 443), &["www.example.com"])
            .shows(&at(web, 443), &["www.example.com"])
            .shows(&at(web, 80), &["www.example.com"])
            .flow(Protocol::Udp, &at(web, 443), Some(flight(FlightProtocol::Quic, &["www.example.com"])))
            .other(&at(web, 22));
        assert_eq!(rules(recording), ["allow@www.example.com:tcp:22+80+443", "allow@www.example.com:udp:443"]);
    }
}

#[test]
fn protocols_with_the_same_ports_share_a_rule() {
    let recording = Recording::default()
        .looks_up("a.example.com", &[WEB[0]])
        .shows(&at(WEB[0], 443), &["a.example.com"])
        .flow(Protocol::Udp, &at(WEB[0], 443), Some(flight(FlightProtocol::Quic, &["a.example.com"])));
    assert_eq!(rules(recording), ["allow@a.example.com:tcp+udp:443"]);
}

#[test]
fn of_names_on_one_address_those_are_learned_that_were_shown() {
    for web in WEB {
        let recording = Recording::default()
            .looks_up("seen.example.com", &[web])
            .looks_up("idle.example.net", &[web])
            .shows(&at(web, 443), &["seen.example.com"])
            .silent(&at(web, 443));
        let learned = learned(recording);
        let rules: Vec<String> = learned.rules.iter().map(format_rule).collect();
        assert_eq!(rules, ["allow@seen.example.com:tcp:443"]);
        assert_eq!(learned.because[0].flows, 2);
        assert_eq!(learned.remarks, [Remark::LookedUp { names: vec!["idle.example.net".parse().unwrap()] }]);
    }
}

#[test]
fn what_shows_nothing_goes_to_the_youngest_name() {
    let recording = Recording::default()
        .looks_up("old.example.com", &WEB)
        .looks_up("young.example.net", &WEB)
        .silent(&at(WEB[0], 25))
        .other(&at(WEB[1], 22));
    assert_eq!(rules(recording), ["allow@young.example.net:tcp:22+25"]);
}

#[test]
fn without_a_name_the_address_is_learned() {
    let recording = Recording::default()
        .silent(&at(WEB[0], 443))
        .other(&at(WEB[1], 22))
        .looks_up("www.example.com", &[OTHER[0]])
        // TLS without a name, a name that never led there, a hello that cannot be read.
        .shows(&at(OTHER[0], 443), &[])
        .shows(&at(OTHER[0], 8443), &["elsewhere.example"])
        .flow(Protocol::IcmpV4, &at(WEB[0], 0), None)
        .flow(Protocol::IcmpV6, &at(WEB[1], 0), None);
    assert_eq!(
        rules(recording),
        [
            "allow@www.example.com:tcp:8443",
            "allow@93.184.215.14:icmpv4",
            "allow@93.184.215.14:tcp:443",
            "allow@151.101.1.69:tcp:443+8443",
            "allow@[2606:2800:21f:cb07::14]:icmpv6",
            "allow@[2606:2800:21f:cb07::14]:tcp:22",
        ]
    );
}

#[test]
fn three_siblings_become_a_suffix_and_two_do_not() {
    let visit = |recording: Recording, name: &str, port: u16| {
        recording.looks_up(name, &[WEB[0]]).shows(&at(WEB[0], port), &[name])
    };
    let mut recording = Recording::default();
    for name in ["a.cdn.example.com", "b.cdn.example.com", "c.cdn.example.com", "one.example.net", "two.example.net"] {
        recording = visit(recording, name, 443);
    }
    recording = visit(recording, "c.cdn.example.com", 80);
    for name in ["example.org", "www.example.org", "static.example.org"] {
        recording = visit(recording, name, 443);
    }
    assert_eq!(
        rules(recording),
        [
            "allow@c.cdn.example.com:tcp:80",
            "allow@.cdn.example.com:tcp:443",
            "allow@*.example.org:tcp:443",
            "allow@one.example.net:tcp:443",
            "allow@two.example.net:tcp:443",
        ]
    );
}

#[test]
fn a_suffix_is_never_above_what_somebody_registered() {
    let mut recording = Recording::default();
    for name in
        ["a.github.io", "b.github.io", "c.github.io", "a.co.uk", "b.co.uk", "c.co.uk", "x.com", "y.com", "z.com"]
    {
        recording = recording.looks_up(name, &[WEB[0]]).shows(&at(WEB[0], 443), &[name]);
    }
    assert_eq!(rules(recording).len(), 9);
}

#[test]
fn known_resolvers_are_named_one_by_one() {
    let mut recording = Recording::default();
    for name in ["dns9.quad9.net", "dns10.quad9.net", "dns11.quad9.net"] {
        recording = recording.looks_up(name, &["9.9.9.9"]).shows("9.9.9.9:443", &[name]);
    }
    assert_eq!(rules(recording).len(), 3);
}

#[test]
fn what_shows_no_name_where_one_is_due_is_opaque() {
    let recording = Recording::default().looks_up("ssh.example.com", &[WEB[0]]).other(&at(WEB[0], 443));
    assert_eq!(rules(recording), ["allow@ssh.example.com:tcp:443:opaque"]);
}

#[test]
fn names_that_lead_inside_say_so_one_by_one() {
    let mut recording = Recording::default();
    for (name, address) in
        [("a.corp.example", "10.0.0.5"), ("b.corp.example", "10.0.0.6"), ("c.corp.example", "fd00::5")]
    {
        recording = recording.looks_up(name, &[address]).other(&at(address, 5432));
    }
    recording = recording.silent("10.0.0.7:5432");
    assert_eq!(
        rules(recording),
        [
            "allow@a.corp.example:tcp:5432:allow-private",
            "allow@b.corp.example:tcp:5432:allow-private",
            "allow@c.corp.example:tcp:5432:allow-private",
            "allow@10.0.0.7:tcp:5432",
        ]
    );
}

#[test]
fn the_host_is_learned_as_the_host() {
    let [v4, v6] = HOST;
    let recording = Recording::default()
        .looks_up("host.cofferdam.internal", &HOST)
        .silent(&at(v4, 8080))
        .silent(&at(v6, 8080))
        .flow(Protocol::IcmpV4, &at(v4, 0), None);
    let learned = learned(recording);
    assert_eq!(learned.rules.iter().map(format_rule).collect::<Vec<_>>(), ["allow@host:icmp", "allow@host:tcp:8080"]);
    assert_eq!(learned.missed, []);
}

#[test]
fn a_resolver_of_the_programs_own_is_learned_with_the_names_it_was_asked_for() {
    let recording =
        Recording::default().looks_up("www.example.com", &[WEB[0]]).shows(&at(WEB[0], 443), &["www.example.com"]);
    let options = Learn { resolvers: vec!["192.168.1.1:53".parse().unwrap()], ..Learn::default() };
    let learned = learn(recording.events.into_iter(), options);
    assert_eq!(
        learned.rules.iter().map(format_rule).collect::<Vec<_>>(),
        ["allow@www.example.com:udp:53", "allow@93.184.215.14:tcp:443", "allow@93.184.215.53:tcp+udp:53"]
    );
}

#[test]
fn a_resolver_of_the_programs_own_is_known_by_whom_it_asked() {
    for (resolver, rule) in
        [("93.184.215.53:53", "93.184.215.53"), ("[2606:2800:21f:cb07::53]:53", "[2606:2800:21f:cb07::53]")]
    {
        // The machine's own resolver; or nobody knows beforehand who the gateway asks.
        for known in [vec![resolver.parse().unwrap()], Vec::new()] {
            let options = || Learn { resolvers: known.clone(), ..Learn::default() };
            let itself = Recording::default().asks(resolver, resolver, "www.example.com", &[WEB[0]]);
            let learned = learn(itself.events.into_iter(), options());
            let rules: Vec<String> = learned.rules.iter().map(format_rule).collect();
            assert_eq!(rules, ["allow@www.example.com:udp:53".to_owned(), format!("allow@{rule}:tcp+udp:53")]);
            // By way of the gateway, whoever that has asked.
            let asked = Recording::default().asks("172.16.0.1:53", resolver, "www.example.com", &[WEB[0]]);
            let learned = learn(asked.shows(&at(WEB[0], 443), &["www.example.com"]).events.into_iter(), options());
            let rules: Vec<String> = learned.rules.iter().map(format_rule).collect();
            assert_eq!(rules, ["allow@www.example.com:tcp:443"]);
        }
    }
}

#[test]
fn a_name_that_reads_as_something_else_in_a_rule_is_not_learned() {
    for name in ["169.254.169.254", "10.0.0.5", "192.168.1.1", "a.1", "xn--0.attacker.example"] {
        // Its program has a server of its own say where that is, and goes there without a word.
        let recording = || Recording::default().looks_up(name, &WEB);
        for recording in [recording().silent(&at(WEB[0], 80)), recording().shows(&at(WEB[1], 443), &[name])] {
            let learned = learned(recording);
            let network = learned.network(None);
            assert!(learned.rules.iter().all(|rule| !format_rule(rule).contains(name)), "{name}: {:?}", learned.rules);
            let text = file::write(&learned, &[], &[], &[]);
            assert_eq!(config::parse("learned.toml", &text).unwrap().policy.rules, network.policy.rules);
        }
        // Or asks a resolver of its own choice for it.
        let options = Learn { resolvers: vec!["192.168.1.1:53".parse().unwrap()], ..Learn::default() };
        let learned = learn(Recording::default().looks_up(name, &[]).events.into_iter(), options);
        let rules: Vec<String> = learned.rules.iter().map(format_rule).collect();
        assert_eq!(rules, ["allow@93.184.215.53:tcp+udp:53"], "{name}");
    }
}

#[test]
fn what_the_file_denies_is_not_opened_by_its_address() {
    let text = "[network]\nrules = [\"deny@evil.com\"]\ndefault_egress = \"deny\"\n";
    let base = config::parse("x.toml", text).unwrap();
    let recording = Recording::default()
        .looks_up("evil.com", &["93.184.215.14"])
        .shows("93.184.215.14:443", &["evil.com"])
        .looks_up("good.example", &["93.184.215.15"])
        .shows("93.184.215.15:443", &["good.example"]);
    let options = Learn { base: Some(base.clone()), ..Learn::default() };
    let learned = learn(recording.events.into_iter(), options);
    let rules: Vec<String> = learned.rules.iter().map(format_rule).collect();
    assert!(rules.iter().all(|rule| !rule.contains("93.184")) && rules.len() <= 2, "{rules:?}");
    assert!(rules.contains(&"allow@good.example:tcp:443".to_owned()), "{rules:?}");
    assert_eq!(learned.missed.len(), 1);
}

#[test]
fn what_was_not_allowed_is_told_and_not_learned() {
    let recording = Recording::default()
        .denied("10.0.0.5:5432", &[], None)
        .denied("169.254.169.254:80", &[], None)
        .holds_back("db.corp.example", "10.0.0.5", Group::Private);
    let learned = learned(recording);
    assert_eq!(learned.rules, []);
    let told: Vec<String> = learned.remarks.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "not resolved in this run, since it leads to group private: db.corp.example ×1; --net private lets it happen",
            "denied in this run and not learned: 10.0.0.5:5432 ×1 (group private); --net private lets it happen",
            "denied in this run and not learned: 169.254.169.254:80 ×1 (group metadata)",
        ]
    );
}

#[test]
fn beside_a_file_only_what_it_does_not_allow_is_learned() {
    let text = "# ours\n[network]\nrules = [\n    # the site\n    \"allow@www.example.com:tcp:443\"  # [yes], this one\n]\n\n[network.dns]\nquery_timeout_ms = 2000\n";
    let base = config::parse("x.toml", text).unwrap();
    let recording = Recording::default()
        .looks_up("www.example.com", &WEB)
        .shows(&at(WEB[0], 443), &["www.example.com"])
        .shows(&at(WEB[1], 80), &["www.example.com"])
        .silent(&at(OTHER[0], 22));
    let options = Learn { base: Some(base.clone()), ..Learn::default() };
    let learned = learn(recording.events.into_iter(), options);
    assert_eq!(learned.missed, []);
    let merged = file::merge("x.toml", text, &base, &learned).unwrap();
    assert_eq!(
        merged,
        "# ours\n[network]\nrules = [\n    # the site\n    \"allow@www.example.com:tcp:443\",  # [yes], this one\n    \
         \"allow@www.example.com:tcp:80\", # ×1\n    \"allow@151.101.1.69:tcp:22\",    # ×1, by its address\n]\n\n[network.dns]\nquery_timeout_ms = 2000\n"
    );
    assert_eq!(config::parse("x.toml", &merged).unwrap().policy, learned.network(Some(&base)).policy);
}

#[test]
fn a_file_is_added_to_wherever_its_rules_are() {
    let learned = learned(Recording::default().silent(&at(WEB[0], 22)));
    for (text, count) in [
        ("[network]\n", 3),
        ("[network] # x\npreset = \"private\"\n", 3),
        ("[network]\nrules = []\n", 1),
        ("[network]\nrules = [\"deny@any:tcp:25\"]\n", 2),
        ("[network]\nrules = [\"deny@any:tcp:25\", # no mail\n]\n", 2),
        ("network = { rules = [\"deny@any:tcp:25\"] }\n", 2),
        ("rules = [\n\"deny@any:tcp:25\",\n  ]\n", 2),
        ("[network.policy]\nrules = [\"deny@any:tcp:25\"]\n", 2),
        ("default_egress = \"deny\"\n", 1),
    ] {
        let base = config::parse("x.toml", text).unwrap();
        let merged = file::merge("x.toml", text, &base, &learned).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(config::parse("x.toml", &merged).unwrap().policy.rules.len(), count, "{merged}");
    }
    for (name, text) in [("x.json", "{}"), ("x.toml", "network_mode = \"allowlist\"\n"), ("x.toml", "[network.dns]\n")]
    {
        let base = config::parse(name, text).unwrap();
        let error = file::merge(name, text, &base, &learned).unwrap_err();
        assert!(!error.to_string().is_empty(), "{text}");
    }
}

/// Anything a program may do with few names and addresses.
#[derive(Debug, Clone)]
enum Act {
    LooksUp(&'static str, &'static str),
    Goes(&'static str, u16, Option<(FlightProtocol, Vec<&'static str>)>),
}

fn act() -> impl Strategy<Value = Act> {
    let names = || {
        select(vec![
            "a.example.com",
            "b.example.com",
            "c.example.com",
            "example.com",
            "x.y.example.com",
            "d.example.net",
            "x.github.io",
            "dns.google",
            "lan",
        ])
    };
    let addresses =
        || select(vec!["93.184.215.14", "2606:4700::1", "8.8.8.8", "10.0.0.5", "fd00::5", "172.16.0.1", "192.168.1.9"]);
    let protocol =
        select(vec![FlightProtocol::Tls, FlightProtocol::Http, FlightProtocol::Other, FlightProtocol::Unfinished]);
    let port = select(vec![22, 80, 443, 8443]);
    let shown = proptest::option::of((protocol, vec(names(), 0..3)));
    prop_oneof![
        (names(), addresses()).prop_map(|(name, address)| Act::LooksUp(name, address)),
        (addresses(), port, shown).prop_map(|(address, port, shown)| Act::Goes(address, port, shown)),
    ]
}

fn played(acts: &[Act]) -> Recording {
    acts.iter().fold(Recording::default(), |recording, act| match act {
        Act::LooksUp(name, address) => recording.looks_up(name, &[address]),
        Act::Goes(address, port, shown) => {
            let shown = shown.as_ref().map(|(protocol, names)| flight(*protocol, names));
            recording.flow(Protocol::Tcp, &at(address, *port), shown)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_happened_passes_under_what_was_learned(acts in vec(act(), 0..40)) {
        let learned = learned(played(&acts));
        prop_assert_eq!(&learned.missed, &[]);
        // The same recording says the same, and the file is read back as it was meant.
        prop_assert_eq!(&self::learned(played(&acts)), &learned);
        let text = file::write(&learned, &["a \u{1b}[2J head".to_owned()], &[], &["93.184.215.53:53".to_owned()]);
        let network = config::parse("x.toml", &text).map_err(|errors| TestCaseError::fail(errors.to_string()))?;
        prop_assert_eq!(&network.policy, &learned.network(None).policy);
        // Nothing is learned twice; but for known resolvers by other names, which every rule opens that one opens.
        if acts.iter().any(|act| matches!(act, Act::Goes("8.8.8.8", ..))) {
            return Ok(());
        }
        let again = learn(played(&acts).events.into_iter(), Learn { base: Some(network.clone()), ..Learn::default() });
        prop_assert_eq!(again.rules.iter().map(format_rule).collect::<Vec<_>>(), Vec::<String>::new());
        prop_assert_eq!(Policy::warnings(&network.policy), []);
    }
}
