//! What the page is told, as JSON. Whatever a program chose is escaped as it is for a terminal, and text on the page.

use cofferdam_control::named::Registry;
use cofferdam_control::store::{About, RunKind, RunState, RunStore, StoredRun};
use cofferdam_evidence::live::{Destination, Ending, Flow, Moved, Peer, Talk, Talker};
use cofferdam_evidence::summary::{DeniedTarget, escaped};
use cofferdam_model::{Direction, Protocol};
use serde_json::{Value, json};

use crate::watch::Watched;

/// Runs that are listed, the newest: `cofferdam log` has them all.
const MAX_RUNS: usize = 100;
/// Denied targets that are listed, the most frequent.
const MAX_DENIED: usize = 200;
/// Pairs that are drawn, the most talkative.
const MAX_DRAWN: usize = 60;
/// For how long a flow that has moved something is told again, so that its rate is seen to fall.
const STILL: u64 = 5_000_000_000;
/// Closed flows that somebody who asks for the first time is told.
const MAX_CLOSED: usize = 300;

/// Which sandboxes and runs there are.
pub(crate) fn overview(store: &RunStore, registry: &Registry) -> Value {
    let ids = store.ids().unwrap_or_default();
    let newest: Vec<StoredRun> = ids.iter().rev().take(MAX_RUNS).filter_map(|id| store.open(id).ok()).collect();
    let names = registry.names().unwrap_or_default();
    let sandboxes = names
        .iter()
        .filter_map(|name| registry.open(name).ok())
        .map(|entry| json!({ "name": entry.name().as_str(), "state": entry.state().as_str() }));
    json!({
        "runs": newest.iter().map(listed).collect::<Vec<_>>(),
        "more": ids.len().saturating_sub(MAX_RUNS),
        "sandboxes": sandboxes.collect::<Vec<_>>(),
    })
}

fn listed(run: &StoredRun) -> Value {
    about(run.about(), run.state())
}

fn about(about: &About, state: RunState) -> Value {
    let command = about.command.iter().flat_map(|word| word.split_whitespace()).collect::<Vec<_>>().join(" ");
    let kind = match about.kind {
        RunKind::Run => "run",
        RunKind::Exec => "exec",
        RunKind::Session => "session",
    };
    json!({
        "id": about.id.as_str(),
        "kind": kind,
        "sandbox": about.sandbox.as_deref().map(escaped),
        "command": cut(&escaped(&command)),
        "started": escaped(&about.started),
        "state": state.as_str(),
        "exit_status": about.ended.as_ref().map(|ended| ended.exit_status),
        "duration_ms": about.ended.as_ref().map(|ended| ended.duration_ms),
        "denied": about.ended.as_ref().map(|ended| ended.totals.flows_denied.saturating_add(ended.totals.dns_denied)),
    })
}

/// One run: everything but for its flows, of which those that have changed since a revision.
pub(crate) fn run(watched: &Watched, since: u64) -> Value {
    let Watched { run, live, state, .. } = watched;
    let now = watched.now();
    // Another one than that which the page knows, as after a restart: it is told everything.
    let since = if since > live.revision() { 0 } else { since };
    let is_news = |flow: &&Flow| flow.revision > since || flow.is_moving(now, STILL);
    let recent = live.closed_flows().take(if since == 0 { MAX_CLOSED } else { usize::MAX });
    // While a record is still being read there is no use in telling all of what will have changed.
    let flows: Vec<Value> = match watched.is_behind {
        true => Vec::new(),
        false => live.open_flows().chain(recent).filter(is_news).map(|one| flow(one, now)).collect(),
    };
    let totals = live.totals();
    let denied = live.denied();
    let mut told = about(run.about(), *state);
    if let (Some(stopped), Some(told)) = (live.stopped(), told.as_object_mut()) {
        told.insert("exit_status".to_owned(), stopped.exit_status.into());
        told.insert("duration_ms".to_owned(), stopped.duration_ms.into());
    }
    json!({
        "run": told,
        "behind": watched.is_behind,
        "events": live.events(),
        "all": since == 0,
        "revision": if watched.is_behind { since } else { live.revision() },
        "oldest": live.open_flows().next().map(|flow| flow.id),
        "flows": flows,
        "open": live.open_flows().len(),
        "unlisted": live.unlisted(),
        "opened": totals.flows_opened,
        "failed": totals.flows_failed,
        "denied_flows": totals.flows_denied,
        "look_ups": totals.dns_queries,
        "denied_look_ups": totals.dns_denied,
        "moved": moved(live.moved()),
        "rate": moved(live.rate(now)),
        "second": now / 1_000_000_000,
        "history": live.history().map(|second| (second.at, second.moved.out, second.moved.into, second.opened, second.denied)).collect::<Vec<_>>(),
        "denied": denied.iter().take(MAX_DENIED).map(denial).collect::<Vec<_>>(),
        "denied_more": denied.len().saturating_sub(MAX_DENIED),
        "talks": talks(watched),
        "talks_more": live.talks().count().saturating_sub(MAX_DRAWN),
        "missing": missing(watched),
    })
}

fn flow(flow: &Flow, now: u64) -> Value {
    let (protocol, address, port, is_ingress) = match &flow.destination {
        Destination::Remote { direction, protocol, guest, remote, .. } => {
            let is_ingress = *direction == Direction::Ingress;
            // What comes in is about the port inside.
            let end = if is_ingress { guest } else { remote };
            // A ping has none.
            let port = Some(end.port()).filter(|port| *port != 0);
            let address = port.map_or_else(|| end.ip().to_canonical().to_string(), |_| end.to_string());
            (protocol_word(*protocol), address, port, is_ingress)
        }
        Destination::Socket(path) => ("socket", escaped(path), None, false),
    };
    let end = flow.end.as_ref().map(|end| match &end.how {
        Ending::Closed(by) => serde_json::to_value(by).unwrap_or_default(),
        Ending::Failed(error) => format!("failed: {}", escaped(error)).into(),
    });
    json!({
        "id": flow.id,
        "protocol": protocol,
        "address": address,
        "port": port,
        "ingress": is_ingress,
        "names": flow.names.iter().map(|name| escaped(name)).collect::<Vec<_>>(),
        "program": flow.process.as_ref().map(|process| escaped(&process.comm)),
        "pid": flow.process.as_ref().map(|process| process.pid),
        "rule": escaped(&flow.rule.to_string()),
        "opened": flow.opened_at.get(11..19).unwrap_or_default(),
        "moved": moved(flow.moved),
        "rate": moved(flow.rate(now)),
        "end": end,
    })
}

fn denial(row: &DeniedTarget) -> Value {
    json!({
        "what": row.label(),
        "count": row.count,
        "rule": escaped(&row.rule.to_string()),
        "programs": row.programs.iter().map(|program| escaped(program)).collect::<Vec<_>>(),
        "decision": row.last_decision,
        "allow_with": row.allow_with,
        "allow_rule": row.allow_rule,
        "look_up_again": row.look_up_again,
    })
}

/// The most talkative pairs, in the order of names.
fn talks(watched: &Watched) -> Vec<Value> {
    let mut all: Vec<(&Talker, &Talk)> = watched.live.talks().collect();
    all.sort_by_key(|(_, talk)| std::cmp::Reverse(talk.flows.saturating_add(talk.denied)));
    all.truncate(MAX_DRAWN);
    all.sort_by_key(|(talker, _)| *talker);
    let talk = |(talker, talk): &(&Talker, &Talk)| {
        let peer = match &talker.peer {
            Peer::Host => "this machine".to_owned(),
            Peer::Name(name) => escaped(name),
            Peer::Address(address) => address.to_string(),
            Peer::Socket(path) => escaped(path),
        };
        json!({
            "program": talker.program.as_deref().map(escaped),
            "peer": peer,
            "flows": talk.flows,
            "denied": talk.denied,
            "moved": moved(talk.moved),
        })
    };
    all.iter().map(talk).collect()
}

/// What of the run is not shown because it is not known.
fn missing(watched: &Watched) -> Vec<String> {
    let about = watched.run.about();
    let mut missing = Vec::new();
    let mut say = |count: u64, text: &str| {
        if count > 0 {
            missing.push(format!("{count} {text}"));
        }
    };
    say(watched.live.summary().events_lost(), "events came too fast to be told");
    say(about.lines_lost, "events came too fast to be written");
    say(watched.left_out, "lines are of a later version");
    if about.segments_gone > 0 {
        missing.push("the beginning: the run had more events than are kept".to_owned());
    }
    missing
}

fn moved(moved: Moved) -> (u64, u64) {
    (moved.out, moved.into)
}

fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::IcmpV4 | Protocol::IcmpV6 => "ping",
    }
}

/// The beginning of a command line: a script among its words may be long.
fn cut(text: &str) -> String {
    const MAX: usize = 500;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
