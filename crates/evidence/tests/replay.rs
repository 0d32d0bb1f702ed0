//! What another policy makes of a recording.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

mod recording;

use cofferdam_evidence::{Change, Replay, Trial, host_network};
use cofferdam_model::{Classifier, FlightProtocol, Group, PolicyConfig, Protocol};
use cofferdam_policy::Policy;
use cofferdam_policy::grammar::parse_rules;

use crate::recording::{Recording, flight};

/// What changes, a line each.
fn trial(rules: &str, recording: &Recording) -> Vec<String> {
    let config = PolicyConfig { rules: parse_rules(rules).unwrap(), ..PolicyConfig::default() };
    let policy = Policy::compile(&config, Classifier::new(host_network(recording.events.iter())));
    let mut replay = Replay::new(&policy);
    let mut trial = Trial::default();
    for event in &recording.events {
        if let Some(replayed) = replay.event(event) {
            trial.add(replayed);
        }
    }
    let line = |(change, asked, rule, waits, count): (Change, &_, &str, bool, u64)| {
        let word = if change == Change::Denied { "denied" } else { "allowed" };
        format!("{word} {asked} ×{count} {rule}{}", if waits { ", waits" } else { "" })
    };
    trial.changes().map(line).collect()
}

#[test]
fn what_a_narrower_policy_denies_is_told_once_with_its_count() {
    let recording = Recording::default()
        .looks_up("a.example.com", &["93.184.215.14"])
        .looks_up("b.example.com", &["93.184.215.14", "2606:4700::1"])
        .shows("93.184.215.14:443", &["a.example.com"])
        .shows("93.184.215.14:443", &["a.example.com"])
        .silent("[2606:4700::1]:443")
        .silent("10.0.0.5:22")
        .flow(Protocol::IcmpV4, "10.0.0.5:0", None);
    assert_eq!(
        trial("allow@a.example.com:tcp:443", &recording),
        [
            "denied look-up b.example.com ×1 default egress deny",
            "denied tcp b.example.com:443 ×1 default egress deny",
            "denied tcp 10.0.0.5:22 ×1 default egress deny",
            "denied icmp 10.0.0.5 ×1 default egress deny",
        ]
    );
    assert_eq!(trial("allow@any", &recording), Vec::<String>::new());
}

#[test]
fn what_a_wider_policy_allows_is_told() {
    let tls = |name: &str| Some(flight(FlightProtocol::Tls, &[name]));
    let recording = Recording::default()
        .looks_up("a.example.com", &["93.184.215.14"])
        .denied("93.184.215.14:443", &["a.example.com"], tls("fronted.example"))
        .denied("93.184.215.14:25", &["a.example.com"], None)
        .denied("[fd00::5]:22", &[], None)
        .holds_back("db.corp.example", "10.0.0.5", Group::Private);
    assert_eq!(
        trial("allow@a.example.com,allow@private,allow@db.corp.example", &recording),
        [
            "allowed look-up db.corp.example ×1 allow@db.corp.example",
            "allowed tcp a.example.com:25 ×1 allow@a.example.com, waits",
            "allowed tcp [fd00::5]:22 ×1 allow@private",
        ]
    );
}
