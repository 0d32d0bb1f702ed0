//! What a policy says to a target, rule by rule, for people and for programs.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cofferdam_control::Host;
use cofferdam_control::summary::{Advice, Summary, escaped};
use cofferdam_model::{
    Action, Classifier, Direction, Event, EventBody, EventSource, HostNetwork, Layer, Protocol, RuleText,
};
use cofferdam_policy::trial::{Answer, Target, TargetHost};
use cofferdam_policy::{Explanation, Policy, RuleRef, Step, StepOutcome};
use serde_json::{Value, json};

use crate::log::protocol_word;
use crate::output;
use crate::refusal::Refusal;

/// Rules in a row that do not match and are shown; of more, the first and last few.
const SHOWN: usize = 12;

/// What addresses are on this machine; its sandboxes' own gateways are not known here.
pub(crate) fn this_machine() -> Classifier {
    let host = Host::discover().unwrap_or_default();
    Classifier::new(HostNetwork { addresses: host.addresses, on_link: host.on_link, nat64: Vec::new() })
}

/// A target as it was written, with the mistake in it shown at its place.
pub(crate) fn target(origin: &str, text: &str) -> Result<Target, Refusal> {
    text.parse::<Target>().map_err(|error| {
        output::to_stderr(&output::pointed(origin, text, &error.span, &error.message, error.help.as_deref()));
        Refusal::setup(format!("{text:?} is no target"))
    })
}

/// A target, the policy that was asked about it, and its answer.
pub(crate) struct Asked<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) target: &'a Target,
    pub(crate) answer: &'a Answer,
    pub(crate) advice: Advice,
}

impl Asked<'_> {
    pub(crate) fn page(&self) -> String {
        let Answer { look_up, protocol, peer, is_stand_in, port, flow } = self.answer;
        let mut page = String::new();
        let mut add = |label: &str, text: &str| {
            let _ = writeln!(page, "{label:10}{}", escaped(text));
        };
        add("target", &self.target.to_string());
        let word = if self.answer.action() == Action::Allow { "allowed" } else { "denied" };
        let waits = match (&flow.reason.name, flow.waits && word == "allowed") {
            (Some(name), true) => {
                // On these ports a protocol without names has to be meant by the rule.
                let web =
                    matches!(port, Some(80 | 443)) && !self.policy.rule_text(&flow.reason).text.contains(":opaque");
                let nameless = if web { "" } else { ", or is of a protocol without names" };
                format!(", as long as it shows {name} in its first bytes{nameless}")
            }
            (None, true) => ", unless it shows a name in its first bytes that a rule denies".to_owned(),
            (_, false) => String::new(),
        };
        add("verdict", &format!("{word}{waits}"));
        if let Some(remedy) = self.remedy() {
            add("remedy", &remedy);
        }
        if let Some(look_up) = look_up {
            add("look-up", &said(look_up, self.policy));
            page.push_str(&self.steps(look_up));
        }
        let carrier = protocol_word(*protocol);
        let goes = match (port, self.target.direction) {
            (Some(port), Direction::Ingress) => format!("{carrier} from {peer} to port {port} of the sandbox"),
            (Some(port), Direction::Egress | Direction::Any) => {
                format!("{carrier} to {}", SocketAddr::new(*peer, *port))
            }
            (None, _) => format!("{carrier} to {peer}"),
        };
        let stand_in = if *is_stand_in { ", in the place of any public address" } else { "" };
        let mut add = |label: &str, text: &str| {
            let _ = writeln!(page, "{label:10}{}", escaped(text));
        };
        add("flow", &format!("{goes}{stand_in}, in group {}", flow.reason.group.word()));
        add("", &said(flow, self.policy));
        page.push_str(&self.steps(flow));
        page
    }

    fn steps(&self, explanation: &Explanation) -> String {
        let several = self.policy.layers().len() > 1;
        let mut text = String::new();
        let misses = |step: &&Step| matches!(step.outcome, StepOutcome::Misses(_));
        let steps = &explanation.steps;
        let width = steps.iter().map(|step| step.text.chars().count()).max().unwrap_or(0).min(48);
        let mut at = 0;
        while let Some(step) = steps.get(at) {
            let run = steps.iter().skip(at).take_while(misses).count();
            if run > SHOWN {
                let hidden = run - SHOWN;
                for step in steps.iter().skip(at).take(SHOWN / 2) {
                    text.push_str(&step_line(step, width, several));
                }
                let _ = writeln!(text, "            … {hidden} more that do not match");
                for step in steps.iter().skip(at + SHOWN / 2 + hidden).take(SHOWN / 2) {
                    text.push_str(&step_line(step, width, several));
                }
                at += run;
            } else {
                text.push_str(&step_line(step, width, several));
                at += 1;
            }
        }
        text
    }

    /// The flag that lets it happen, as the summary of a run would have it.
    fn remedy(&self) -> Option<String> {
        if self.answer.action() == Action::Allow {
            return None;
        }
        let Answer { look_up, protocol, peer, port, flow, .. } = self.answer;
        let name = match &self.target.host {
            TargetHost::Name { name, .. } => Some(name.to_string()),
            TargetHost::Address(_) => None,
        };
        let denied_look_up = look_up.as_ref().filter(|look_up| look_up.action == Action::Deny);
        let body = match (denied_look_up, flow.action, &name) {
            (Some(look_up), Action::Allow, Some(name)) => EventBody::DnsQuery {
                name: name.clone(),
                qtype: if peer.is_ipv4() { 1 } else { 28 },
                protocol: None,
                guest: None,
                server: None,
                verdict: Action::Deny,
                rule: self.policy.rule_text(&look_up.reason),
                decision: None,
                answers: Vec::new(),
                withheld: None,
                rcode: None,
                resolver: None,
                ms: 0.0,
                count: 1,
                process: None,
            },
            _ => EventBody::FlowDenied {
                decision: String::new(),
                direction: self.target.direction,
                protocol: *protocol,
                // The port is that of the service, whichever end has it.
                guest: SocketAddr::new(guest(*peer).ip(), port.unwrap_or(0)),
                remote: SocketAddr::new(*peer, port.unwrap_or(0)),
                group: flow.reason.group,
                names: name.into_iter().collect(),
                rule: self.policy.rule_text(&flow.reason),
                shown: None,
                look_up_again: None,
                process: None,
            },
        };
        let mut summary = Summary::new(self.advice);
        summary.record(&Event { v: 1, time: String::new(), mono_ns: 0, source: EventSource::Supervisor, body });
        summary.denied().into_iter().next().and_then(|denied| denied.allow_with)
    }

    pub(crate) fn to_json(&self) -> Value {
        let Answer { look_up, protocol, peer, is_stand_in, port, flow } = self.answer;
        let explained = |explanation: &Explanation| {
            let steps: Vec<Value> = explanation.steps.iter().map(step_json).collect();
            json!({
                "verdict": explanation.action,
                "waits": explanation.waits,
                "rule": self.policy.rule_text(&explanation.reason),
                "name": explanation.reason.name.as_ref().map(ToString::to_string),
                "steps": steps,
            })
        };
        let mut said = explained(flow);
        if let Some(object) = said.as_object_mut() {
            object.insert("direction".to_owned(), json!(self.target.direction));
            object.insert("protocol".to_owned(), json!(protocol));
            object.insert("peer".to_owned(), json!(peer));
            object.insert("any_public_peer".to_owned(), json!(is_stand_in));
            object.insert("port".to_owned(), json!(port));
            object.insert("group".to_owned(), json!(flow.reason.group));
        }
        json!({
            "target": self.target.to_string(),
            "verdict": self.answer.action(),
            "look_up": look_up.as_ref().map(explained),
            "flow": said,
            "allow_with": self.remedy(),
        })
    }
}

/// An address that a sandbox may have, of the family of `peer`.
fn guest(peer: IpAddr) -> SocketAddr {
    match peer {
        IpAddr::V4(_) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

fn said(explanation: &Explanation, policy: &Policy) -> String {
    let RuleText { text, layer, .. } = policy.rule_text(&explanation.reason);
    let word = match (explanation.action, explanation.waits) {
        (Action::Allow, false) => "allowed",
        (Action::Allow, true) => "let through to its first bytes",
        (Action::Deny, _) => "denied",
    };
    let whose = layer.map(|layer| format!(" ({})", layer.word())).unwrap_or_default();
    format!("{word} by `{text}`{whose}")
}

fn step_line(step: &Step, width: usize, several: bool) -> String {
    let place = match step.rule {
        RuleRef::Rule(at) => format!("rule {at}"),
        RuleRef::Default(_) => "default".to_owned(),
        RuleRef::BuiltIn(_) => "built-in".to_owned(),
    };
    let whose = |layer: Layer| format!("{} ", layer.word());
    let whose = if several { whose(step.layer) } else { String::new() };
    format!("  {:10}{:width$}  {}\n", format!("{whose}{place}"), escaped(&step.text), outcome(step))
}

fn outcome(step: &Step) -> String {
    let by = step.name.as_ref().map(|name| format!(", by {name}")).unwrap_or_default();
    match step.outcome {
        StepOutcome::Decides(Action::Allow) => format!("allows it{by}"),
        StepOutcome::Decides(Action::Deny) => format!("denies it{by}"),
        StepOutcome::Waits => format!("allows it{by}, and waits for what it shows"),
        StepOutcome::Watches => "denies it if it shows such a name".to_owned(),
        StepOutcome::Overruled => format!("would allow it{by}, and is overruled"),
        StepOutcome::Misses(mismatch) => mismatch.to_string(),
    }
}

fn step_json(step: &Step) -> Value {
    let (outcome, why) = match step.outcome {
        StepOutcome::Decides(Action::Allow) => ("allows", None),
        StepOutcome::Decides(Action::Deny) => ("denies", None),
        StepOutcome::Waits => ("waits", None),
        StepOutcome::Watches => ("watches", None),
        StepOutcome::Overruled => ("overruled", None),
        StepOutcome::Misses(mismatch) => ("misses", Some(mismatch.to_string())),
    };
    let index = match step.rule {
        RuleRef::Rule(at) => Some(at),
        RuleRef::Default(_) | RuleRef::BuiltIn(_) => None,
    };
    json!({
        "layer": step.layer,
        "index": index,
        "rule": step.text,
        "outcome": outcome,
        "why": why,
        "name": step.name.as_ref().map(ToString::to_string),
    })
}

/// A protocol as people call it.
pub(crate) fn carrier(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::IcmpV4 | Protocol::IcmpV6 => "ping",
    }
}
