//! `cofferdam why`: who decided something, and what would change it.

use std::fmt::Write as _;

use clap::ArgMatches;
use cofferdam_control::store::{About, Needles, RunStore, StoredRun};
use cofferdam_control::summary::{Advice, DeniedTarget, Summary, escaped};
use cofferdam_model::{Event, EventBody, FlightProtocol, Layer, RuleText};
use cofferdam_policy::Policy;
use serde_json::{Value, json};

use crate::args::WhyArgs;
use crate::log::{described, protocol_word, qtype_word, utc, word};
use crate::output;
use crate::refusal::{EXIT_FAILED, Refusal};
use crate::{explain, run, state};

/// What is asked about.
enum Asked {
    /// The id of a decision.
    Decision(String),
    /// Something that a program may want to reach.
    Target,
}

impl Asked {
    /// Ids are letters and digits; a target has a dot or colon somewhere.
    fn parse(text: &str) -> Asked {
        let is_id = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if is_id { Asked::Decision(text.to_ascii_lowercase()) } else { Asked::Target }
    }
}

pub(crate) fn why(args: WhyArgs, matches: &ArgMatches) -> u8 {
    let json = args.json;
    let answered = match Asked::parse(&args.what) {
        Asked::Decision(id) => decision(&id, json),
        Asked::Target => target(args, matches),
    };
    answered.unwrap_or_else(|refusal| refusal.with_status(EXIT_FAILED).tell(json))
}

/// What a policy says to a target: that of a run which was recorded, or of the flags.
fn target(args: WhyArgs, matches: &ArgMatches) -> Result<u8, Refusal> {
    let (policy, advice) = match &args.run {
        Some(run) => {
            let run = state::run_store()?.find(run).map_err(|error| Refusal::from(&error))?;
            let about = run.about();
            let policy = about.policy().map_err(|error| {
                let text = format!("the policy of the run {} cannot be understood any more: {error}", about.id);
                Refusal::setup(text)
            })?;
            (policy, about.advice)
        }
        None => {
            let items = run::flag_items(&args.network, &run::no_limits(), matches)?;
            let network = run::network_config(&items, &args.network)?;
            let classifier = explain::this_machine();
            let policy = Policy::of_network(&network, classifier).map_err(|error| Refusal::setup(error.to_string()))?;
            (policy, Advice { allow_changes_default: args.network.leaves_default() })
        }
    };
    let target = explain::target("TARGET", &args.what)?;
    let answer = policy.ask(&target);
    let asked = explain::Asked { policy: &policy, target: &target, answer: &answer, advice };
    Ok(if args.json { output::print_json(&asked.to_json()) } else { output::print(&asked.page()) })
}

fn decision(id: &str, as_json: bool) -> Result<u8, Refusal> {
    let store = state::run_store()?;
    let Some(found) = find(&store, id)? else {
        let runs = store.ids().map_err(|error| Refusal::from(&error))?.len();
        let text = format!(
            "no decision {id} is recorded, in {runs} runs; it was made in a run that is not recorded, or whose record has gone since"
        );
        return Err(Refusal::setup(text));
    };
    Ok(if as_json { output::print_json(&found.to_json()) } else { output::print(&found.page()) })
}

/// A decision with what is known of it.
struct Found {
    about: About,
    event: Event,
    /// The event as it was stored, which may say more.
    line: Value,
    /// What the summary says of it.
    denied: Option<DeniedTarget>,
}

/// Looks for a decision in every run, the newest first.
fn find(store: &RunStore, id: &str) -> Result<Option<Found>, Refusal> {
    let needles = Needles::decision(id);
    // A run that cannot be read hides no other.
    for run in store.runs().map_err(|error| Refusal::from(&error))?.runs {
        if let Some(found) = find_in(&run, &needles, id) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn find_in(run: &StoredRun, needles: &Needles, id: &str) -> Option<Found> {
    let mut lines = run.lines(needles).ok()?;
    while let Ok(Some(line)) = lines.next_line() {
        let Ok(event) = serde_json::from_slice::<Event>(line) else { continue };
        if decided(&event.body).is_none_or(|(decision, _)| decision != id) {
            continue;
        }
        let mut summary = Summary::new(run.about().advice);
        summary.record(&event);
        let line = serde_json::from_slice(line).unwrap_or_default();
        return Some(Found { about: run.about().clone(), event, line, denied: summary.denied().into_iter().next() });
    }
    None
}

/// The id of a decision, and the rule that made it.
fn decided(body: &EventBody) -> Option<(&str, &RuleText)> {
    match body {
        EventBody::FlowDenied { decision, rule, .. } => Some((decision, rule)),
        EventBody::DnsQuery { decision, rule, .. } => decision.as_deref().map(|decision| (decision, rule)),
        EventBody::SandboxStarted { .. }
        | EventBody::SandboxStopped { .. }
        | EventBody::DnsMore { .. }
        | EventBody::FlowOpened { .. }
        | EventBody::FlowClosed { .. }
        | EventBody::FlowShown { .. }
        | EventBody::FlowProgress { .. }
        | EventBody::FlowFailed { .. }
        | EventBody::PolicyChanged { .. }
        | EventBody::PortPublished { .. }
        | EventBody::PortWithdrawn { .. }
        | EventBody::SocketOpened { .. }
        | EventBody::SocketClosed { .. }
        | EventBody::SocketFailed { .. }
        | EventBody::LimitReached { .. }
        | EventBody::GatewayDropped { .. }
        | EventBody::GatewayNotice { .. } => None,
    }
}

impl Found {
    fn to_json(&self) -> Value {
        let About { id, kind, sandbox, command, started, .. } = &self.about;
        json!({
            "run": { "id": id, "kind": kind, "sandbox": sandbox, "command": command, "started": started },
            "event": self.line,
            "allow_with": self.denied.as_ref().and_then(|denied| denied.allow_with.as_ref()),
            "look_up_again": self.denied.as_ref().is_some_and(|denied| denied.look_up_again),
        })
    }

    fn page(&self) -> String {
        let mut page = Page::default();
        self.what(&mut page);
        if let Some(process) = self.line.get("process") {
            page.add("process", &process_text(process));
        }
        page.add("when", &format!("{} UTC", utc(&self.event.time)));
        page.add("run", &format!("{}  {}", self.about.id, described(&self.about)));
        if let Some((_, rule)) = decided(&self.event.body) {
            page.add("because", &because(rule));
        }
        page.add("remedy", &self.remedy());
        page.0
    }

    fn what(&self, page: &mut Page) {
        match &self.event.body {
            EventBody::FlowDenied { decision, direction, protocol, guest, remote, group, names, shown, .. } => {
                page.add("decision", &format!("{decision}: denied"));
                let (from, to) = match direction {
                    cofferdam_model::Direction::Ingress => (remote, guest),
                    cofferdam_model::Direction::Egress | cofferdam_model::Direction::Any => (guest, remote),
                };
                page.add("flow", &format!("{} to {to}, from {from}", protocol_word(*protocol)));
                page.add("group", &word(group));
                let known = if names.is_empty() { "none led to this address".to_owned() } else { names.join(" ") };
                page.add("names", &known);
                if let Some(shown) = shown {
                    page.add("shown", &shown_text(shown.protocol, &shown.names, shown.doubt.as_deref()));
                }
            }
            EventBody::DnsQuery { decision, name, qtype, withheld, .. } => {
                page.add("decision", &format!("{}: denied", decision.as_deref().unwrap_or_default()));
                page.add("look-up", &format!("{name} {}", qtype_word(*qtype)));
                if let Some(withheld) = withheld {
                    let text = format!(
                        "an answer with {}, which is in group {}, was held back",
                        withheld.address,
                        word(&withheld.group)
                    );
                    page.add("answer", &text);
                }
            }
            EventBody::SandboxStarted { .. }
            | EventBody::SandboxStopped { .. }
            | EventBody::DnsMore { .. }
            | EventBody::FlowOpened { .. }
            | EventBody::FlowClosed { .. }
            | EventBody::FlowShown { .. }
            | EventBody::FlowProgress { .. }
            | EventBody::FlowFailed { .. }
            | EventBody::PolicyChanged { .. }
            | EventBody::PortPublished { .. }
            | EventBody::PortWithdrawn { .. }
            | EventBody::SocketOpened { .. }
            | EventBody::SocketClosed { .. }
            | EventBody::SocketFailed { .. }
            | EventBody::LimitReached { .. }
            | EventBody::GatewayDropped { .. }
            | EventBody::GatewayNotice { .. } => {}
        }
    }

    fn remedy(&self) -> String {
        let Some(denied) = &self.denied else { return String::new() };
        match &denied.allow_with {
            Some(flag) => flag.clone(),
            None if denied.look_up_again => {
                format!("none is needed: look {} up again, its answer was too old", denied.target)
            }
            None => match denied.rule.layer {
                Some(Layer::Session) => {
                    "no flag of the run; `cofferdam policy set` changes the session's policy".to_owned()
                }
                Some(Layer::Floor) => "no flag: the operator of this machine has denied it".to_owned(),
                Some(Layer::Run) | None => "no flag allows it".to_owned(),
            },
        }
    }
}

/// A rule with its place.
fn because(rule: &RuleText) -> String {
    let whose = match rule.layer {
        Some(Layer::Floor) => " of the machine's operator",
        Some(Layer::Session) => " of the session",
        Some(Layer::Run) => " of the run",
        None => "",
    };
    match rule.index {
        Some(index) => format!("{}  (rule {index}{whose}, counted from 0)", rule.text),
        None if rule.text.starts_with("default ") => format!("{}  (no rule{whose} matched)", rule.text),
        None => format!(
            "{}{}",
            rule.text,
            if whose.is_empty() { String::new() } else { format!("  ({})", whose.trim_start()) }
        ),
    }
}

fn shown_text(protocol: FlightProtocol, names: &[String], doubt: Option<&str>) -> String {
    let mut text = match protocol {
        FlightProtocol::Tls => "TLS".to_owned(),
        FlightProtocol::Http => "HTTP".to_owned(),
        FlightProtocol::Quic => "QUIC".to_owned(),
        FlightProtocol::Other => "none of TLS, HTTP and QUIC".to_owned(),
        FlightProtocol::Unfinished => "too little to tell what it is".to_owned(),
    };
    match names {
        [] => text.push_str(", without a name"),
        names => {
            let _ = write!(text, " for {}", names.join(" "));
        }
    }
    doubt.iter().for_each(|doubt| {
        let _ = write!(text, " ({doubt})");
    });
    text
}

/// Who it was, as far as the event says.
fn process_text(process: &Value) -> String {
    let text = |field: &str| process.get(field).and_then(Value::as_str);
    let number = process.get("pid").and_then(Value::as_u64).map(|pid| format!("{pid} ")).unwrap_or_default();
    format!("{number}{}", text("argv0").or(text("comm")).unwrap_or_default())
}

/// Lines with a label.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    fn add(&mut self, label: &str, text: &str) {
        if !text.is_empty() {
            let _ = writeln!(self.0, "{label:10}{}", escaped(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_neither_dot_nor_colon() {
        for (text, is_id) in [("d0rgj2fja", true), ("D0RGJ2FJA", true), ("7", true), ("", false)] {
            assert_eq!(matches!(Asked::parse(text), Asked::Decision(_)), is_id, "{text}");
        }
        for target in ["example.org", "10.0.0.5:443", "[fd00::5]", "::1", "a.example/udp", "*.example.org"] {
            assert!(matches!(Asked::parse(target), Asked::Target), "{target}");
        }
    }

    #[test]
    fn a_rule_is_told_with_its_place_and_whose_it_is() {
        let rule = |index, text: &str, layer| because(&RuleText { index, text: text.to_owned(), layer });
        assert_eq!(rule(Some(2), "deny@any:tcp:25", None), "deny@any:tcp:25  (rule 2, counted from 0)");
        let session = rule(None, "default egress deny", Some(Layer::Session));
        assert_eq!(session, "default egress deny  (no rule of the session matched)");
        assert_eq!(rule(None, "built-in: encrypted DNS", None), "built-in: encrypted DNS");
    }
}
