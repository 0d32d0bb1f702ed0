//! `cofferdam policy explain`: a policy in words.

use std::fmt::Write as _;

use cofferdam_control::summary::{Advice, escaped};
use cofferdam_model::{Action, Classifier, Destination, Direction, Group, NetworkConfig, PolicyLayer, Protocol, Rule};
use cofferdam_policy::Policy;
use cofferdam_policy::grammar::{format_destination, format_rule};
use serde_json::{Value, json};

use super::{EXIT_BAD, effective, read_file, warning_json};
use crate::args::PolicyExplainArgs;
use crate::explain::{self, Asked};
use crate::output;

pub(super) fn explain(args: &PolicyExplainArgs) -> u8 {
    let (name, network) = match read_file(&args.file, EXIT_BAD) {
        Ok((name, network)) => (name, effective(network)),
        Err(status) => return status,
    };
    if args.targets.is_empty() {
        return if args.json {
            output::print_json(&whole_json(&name, &network))
        } else {
            output::print(&whole(&name, &network))
        };
    }
    let policy = match Policy::of_network(&network, Classifier::default()) {
        Ok(policy) => policy,
        Err(error) => return output::fail(&error.to_string(), EXIT_BAD),
    };
    let mut pages = Vec::new();
    let mut values = Vec::new();
    for text in &args.targets {
        let target = match explain::target("TARGET", text) {
            Ok(target) => target,
            Err(refusal) => return refusal.with_status(EXIT_BAD).tell(args.json),
        };
        let answer = policy.ask(&target);
        let asked = Asked { policy: &policy, target: &target, answer: &answer, advice: Advice::default() };
        match args.json {
            true => values.push(asked.to_json()),
            false => pages.push(asked.page()),
        }
    }
    if args.json { output::print_json(&values.into()) } else { output::print(&pages.join("\n")) }
}

/// The whole policy: every rule, then the defaults, then what else holds.
fn whole(name: &str, network: &NetworkConfig) -> String {
    let mut text = String::new();
    let layers = network.layers();
    for layer in &layers {
        let whose = if layers.len() > 1 { format!(", policy of the {}", layer.layer.word()) } else { String::new() };
        let rules = layer.policy.rules.len();
        let _ = writeln!(
            text,
            "{}{whose}: {rules} {}, tried in order; the first that matches decides",
            escaped(name),
            if rules == 1 { "rule" } else { "rules" }
        );
        let texts: Vec<String> = layer.policy.rules.iter().map(format_rule).collect();
        let width = texts.iter().map(|text| text.chars().count()).max().unwrap_or(0).min(48);
        for (at, (rule, written)) in layer.policy.rules.iter().zip(&texts).enumerate() {
            let _ = writeln!(text, "  {at:>4}  {:width$}  {}", escaped(written), sentence(rule));
        }
        for line in defaults(layer) {
            let _ = writeln!(text, "        {line}");
        }
    }
    if !network.enabled {
        text.push_str("There is no network interface at all.\n");
    }
    for warning in Policy::warnings(&network.policy) {
        let _ = writeln!(text, "warning: {}", escaped(&warning.to_string()));
    }
    text
}

fn whole_json(name: &str, network: &NetworkConfig) -> Value {
    let layer = |layer: &PolicyLayer| {
        let rules: Vec<Value> = layer
            .policy
            .rules
            .iter()
            .map(|rule| json!({ "rule": format_rule(rule), "words": sentence(rule) }))
            .collect();
        json!({
            "layer": layer.layer,
            "rules": rules,
            "default_egress": layer.policy.default_egress,
            "default_ingress": layer.policy.default_ingress,
            "strict": layer.policy.strict,
            "words": defaults(layer),
        })
    };
    let layers: Vec<Value> = network.layers().iter().map(layer).collect();
    let warnings: Vec<Value> = Policy::warnings(&network.policy).iter().map(warning_json).collect();
    json!({ "file": name, "enabled": network.enabled, "layers": layers, "warnings": warnings })
}

/// A rule in words.
fn sentence(rule: &Rule) -> String {
    let mut text = match rule.action {
        Action::Allow => "allows ",
        Action::Deny => "denies ",
    }
    .to_owned();
    let protocols: Vec<&str> = rule.protocols.iter().map(explain::carrier).collect();
    let mut what = if protocols.is_empty() { "anything".to_owned() } else { protocols.join(" and ") };
    if what == "ping and ping" {
        "ping".clone_into(&mut what);
    }
    text.push_str(&what);
    let place = place(rule);
    match rule.direction {
        Direction::Egress => text.push_str(&format!(" to {place}")),
        Direction::Ingress => text.push_str(&format!(" from {place}")),
        Direction::Any => text.push_str(&format!(" to and from {place}")),
    }
    let ports: Vec<String> =
        rule.ports
            .iter()
            .map(|range| {
                if range.start == range.end {
                    range.start.to_string()
                } else {
                    format!("{}-{}", range.start, range.end)
                }
            })
            .collect();
    match ports.as_slice() {
        [] => {}
        [port] if !port.contains('-') => text.push_str(&format!(", port {port}")),
        ports => text.push_str(&format!(", ports {}", ports.join(", "))),
    }
    if rule.opaque {
        text.push_str("; it need not show the name");
    }
    if rule.allow_private {
        text.push_str("; the name may lead to addresses that are not public");
    }
    text
}

fn place(rule: &Rule) -> String {
    match &rule.destination {
        Destination::Any if rule.action == Action::Allow => {
            "anywhere, this machine and cloud metadata included".to_owned()
        }
        Destination::Any => "anywhere".to_owned(),
        Destination::Group(Group::Host) if is_dns(rule) => "the gateway's resolver, for any name".to_owned(),
        Destination::Group(group) => group_words(*group).to_owned(),
        Destination::Cidr(net) if net.prefix_len() == net.max_prefix_len() => net.addr().to_string(),
        Destination::Cidr(net) => format!("the network {net}"),
        Destination::Domain(name) => name.to_string(),
        Destination::Suffix { name, apex: true } => format!("{name} and every name below it"),
        Destination::Suffix { name, apex: false } => format!("every name below {name}"),
    }
}

fn is_dns(rule: &Rule) -> bool {
    let text = format_rule(rule);
    text.ends_with("@dns") && format_destination(&rule.destination) == "host"
}

fn group_words(group: Group) -> &'static str {
    match group {
        Group::Host => "this machine",
        Group::Metadata => "cloud metadata",
        Group::Loopback => "loopback",
        Group::LinkLocal => "link-local addresses",
        Group::Private => "private networks",
        Group::Multicast => "multicast",
        Group::Reserved => "reserved addresses",
        Group::Public => "the public internet",
    }
}

/// What holds where no rule matches, and beside the rules.
fn defaults(layer: &PolicyLayer) -> Vec<String> {
    let PolicyLayer { policy, deny_doh, rebind_protection, .. } = layer;
    let named = |rule: &Rule| matches!(rule.destination, Destination::Domain(_) | Destination::Suffix { .. });
    let mut lines = vec![
        match policy.default_egress {
            Action::Allow => "everything else that leaves the sandbox is allowed".to_owned(),
            Action::Deny => "everything else that leaves the sandbox is denied".to_owned(),
        },
        match policy.default_ingress {
            Action::Allow => "whoever else connects to a published port is let in".to_owned(),
            Action::Deny => "whoever else connects to a published port is refused".to_owned(),
        },
    ];
    if policy.rules.iter().any(|rule| named(rule) && rule.action == Action::Allow) {
        lines.push(match policy.strict {
            true => "what only a name allows has to show that name in its first bytes".to_owned(),
            false => "what only a name allows need not show that name: any name on a shared address can be reached"
                .to_owned(),
        });
    }
    let asks = Policy::of_layer(layer, Classifier::default());
    let unknown = "no-such-name.invalid".parse();
    let query = cofferdam_policy::Facts {
        direction: Direction::Egress,
        protocol: Protocol::Udp,
        peer: std::net::Ipv4Addr::UNSPECIFIED.into(),
        port: Some(53),
        names: &[],
    };
    if let Ok(name) = unknown {
        lines.push(match asks.check_name(&name, &query).is_allow() {
            true => "names that no rule is about are looked up".to_owned(),
            false => "names that no rule is about are not looked up: no resolver hears of them".to_owned(),
        });
    }
    if *rebind_protection {
        lines.push(
            "answers that lead to addresses which are not public are held back, unless a rule says so".to_owned(),
        );
    }
    match deny_doh {
        Some(true) => lines.push("known resolvers over HTTPS are refused".to_owned()),
        Some(false) => lines.push("known resolvers over HTTPS are as any other site".to_owned()),
        None => {}
    }
    lines
}
