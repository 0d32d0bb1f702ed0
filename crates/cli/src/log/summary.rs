//! `cofferdam log --summary`: what a run was denied and what it has reached, as Markdown for the page of a CI job.
//!
//! Limits: [`ROWS`] rows in a table; [`MAX_GROUPS`] targets that are kept apart, and [`OPEN_FLOWS`] flows that wait for their
//! end, beyond which bytes are added up without a target.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use cofferdam_control::store::StoredRun;
use cofferdam_control::summary::{MAX_GROUPS, Summary, escaped};
use cofferdam_model::{Direction, EventBody, FlowCounters, FlowId, Protocol};

use super::page;
use crate::output;
use crate::refusal::Refusal;

/// Rows of a table: more are not read, and a job's page takes a megabyte.
const ROWS: usize = 100;

/// Flows that are open at once: as many as a gateway has by default, several times over.
const OPEN_FLOWS: usize = 65_536;

pub(super) fn summary(run: &StoredRun) -> Result<u8, Refusal> {
    let mut denied = Summary::new(run.about().advice);
    let mut reached = Reached::default();
    let mut events = run.events().map_err(|error| Refusal::from(&error))?;
    for event in &mut events {
        let event = event.map_err(|error| Refusal::from(&error))?;
        denied.record(&event);
        reached.record(&event.body);
    }
    let mut text = format!("### Network of {}\n\n", code(&page::described(run.about())));
    let _ =
        writeln!(text, "Run `{}`, {} UTC: {}.\n", run.about().id, page::utc(&run.about().started), page::ended(run));
    denials(&mut text, &denied);
    reached.render(&mut text);
    if events.left_out() > 0 || run.about().segments_gone > 0 || run.about().lines_lost > 0 {
        text.push_str("\nEvents of this run are missing: the numbers are too low.\n");
    }
    Ok(output::print(&text))
}

fn denials(text: &mut String, summary: &Summary) {
    let rows = summary.denied();
    if !summary.denied_anything() {
        text.push_str("Nothing was denied.\n");
        return;
    }
    text.push_str("| Denied | Times | By | Allowed by |\n|---|--:|---|---|\n");
    for row in rows.iter().take(ROWS) {
        let remedy = match &row.allow_with {
            Some(flag) => code(flag),
            None if row.look_up_again => "another look-up".to_owned(),
            None => String::new(),
        };
        let _ =
            writeln!(text, "| {} | {} | {} | {remedy} |", code(&row.label()), row.count, code(&row.rule.to_string()));
    }
    more(text, rows.len());
}

fn more(text: &mut String, rows: usize) {
    if rows > ROWS {
        let _ = writeln!(text, "\nAnd {} more.", rows - ROWS);
    }
}

/// What was reached, by name where one led there.
#[derive(Debug, Default)]
struct Reached {
    targets: BTreeMap<String, Target>,
    /// Of open flows.
    open: BTreeMap<FlowId, String>,
    /// What found no room.
    beyond: Target,
}

#[derive(Debug, Default, Clone, Copy)]
struct Target {
    flows: u64,
    bytes_out: u64,
    bytes_in: u64,
}

impl Target {
    fn add(&mut self, FlowCounters { bytes_out, bytes_in, .. }: FlowCounters) {
        self.bytes_out = self.bytes_out.saturating_add(bytes_out);
        self.bytes_in = self.bytes_in.saturating_add(bytes_in);
    }
}

impl Reached {
    fn record(&mut self, body: &EventBody) {
        match body {
            EventBody::FlowOpened { flow, direction, protocol, guest, remote, names, .. } => {
                let address = match remote.ip().to_canonical() {
                    IpAddr::V4(v4) => v4.to_string(),
                    IpAddr::V6(v6) => format!("[{v6}]"),
                };
                let name = names.first().cloned().unwrap_or(address);
                let target = match (protocol, direction) {
                    (Protocol::IcmpV4 | Protocol::IcmpV6, _) => format!("{name} (ping)"),
                    // Whoever came in came to a port of the sandbox.
                    (Protocol::Tcp, Direction::Ingress) => format!("{name} → port {}", guest.port()),
                    (Protocol::Udp, Direction::Ingress) => format!("{name} → port {}/udp", guest.port()),
                    (Protocol::Tcp, Direction::Egress | Direction::Any) => format!("{name}:{}", remote.port()),
                    (Protocol::Udp, Direction::Egress | Direction::Any) => format!("{name}:{}/udp", remote.port()),
                };
                self.open(*flow, target);
            }
            EventBody::SocketOpened { flow, host, .. } => self.open(*flow, format!("socket {host}")),
            EventBody::FlowClosed { flow, counters, .. } | EventBody::SocketClosed { flow, counters, .. } => {
                let target = self.open.remove(flow).and_then(|target| self.targets.get_mut(&target));
                target.unwrap_or(&mut self.beyond).add(*counters);
            }
            EventBody::SandboxStarted { .. }
            | EventBody::SandboxStopped { .. }
            | EventBody::DnsQuery { .. }
            | EventBody::DnsMore { .. }
            | EventBody::FlowDenied { .. }
            | EventBody::FlowFailed { .. }
            | EventBody::FlowShown { .. }
            | EventBody::FlowProgress { .. }
            | EventBody::PolicyChanged { .. }
            | EventBody::PortPublished { .. }
            | EventBody::PortWithdrawn { .. }
            | EventBody::SocketFailed { .. }
            | EventBody::LimitReached { .. }
            | EventBody::GatewayDropped { .. }
            | EventBody::GatewayNotice { .. } => {}
        }
    }

    fn open(&mut self, flow: FlowId, target: String) {
        if self.targets.len() >= MAX_GROUPS && !self.targets.contains_key(&target) {
            self.beyond.flows += 1;
            return;
        }
        self.targets.entry(target.clone()).or_default().flows += 1;
        if self.open.len() < OPEN_FLOWS {
            self.open.insert(flow, target);
        }
    }

    fn render(&self, text: &mut String) {
        if self.targets.is_empty() {
            text.push_str("\nNothing was reached.\n");
            return;
        }
        text.push_str("\n| Reached | Flows | Out | In |\n|---|--:|--:|--:|\n");
        let mut rows: Vec<(&String, &Target)> = self.targets.iter().collect();
        // The map is sorted by name and the sort is stable.
        rows.sort_by_key(|(_, target)| std::cmp::Reverse(target.flows));
        for (name, Target { flows, bytes_out, bytes_in }) in rows.iter().take(ROWS) {
            let _ = writeln!(text, "| {} | {flows} | {} | {} |", code(name), size(*bytes_out), size(*bytes_in));
        }
        more(text, rows.len());
        let Target { flows, bytes_out, bytes_in } = self.beyond;
        if flows > 0 || bytes_out > 0 || bytes_in > 0 {
            let _ = writeln!(text, "\n{flows} flows to others, {} out, {} in.", size(bytes_out), size(bytes_in));
        }
    }
}

/// Text that somebody else chose, as Markdown shows it and nothing more: in a code span, which a back tick would end, and a bar
/// the cell around it.
fn code(text: &str) -> String {
    format!("`{}`", escaped(text).replace('`', "'").replace('|', "\\|"))
}

fn size(bytes: u64) -> String {
    let scaled = |shift: u32, unit: &str| {
        let tenths = (bytes >> (shift - 10)).saturating_mul(10) / 1024;
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    };
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => scaled(10, "KiB"),
        1_048_576..1_073_741_824 => scaled(20, "MiB"),
        _ => scaled(30, "GiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_break_out_of_their_cell() {
        assert_eq!(code("a|b`c\n<img>\u{1b}"), "`a\\|b'c\\n<img>\\u{1b}`");
    }

    #[test]
    fn sizes_are_told_in_powers_of_1024() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (u64::MAX, "17179869183.9 GiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_flood_of_targets_is_added_up() {
        let mut reached = Reached::default();
        let opened = |flow: u64, name: String| EventBody::FlowOpened {
            flow: FlowId(flow),
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            guest: "172.16.0.2:1".parse().unwrap(),
            remote: "[2606:4700::1]:443".parse().unwrap(),
            group: cofferdam_model::Group::Public,
            names: if name.is_empty() { vec![] } else { vec![name] },
            process: None,
            rule: cofferdam_model::RuleText::default(),
        };
        let closed = |flow: u64| EventBody::FlowClosed {
            flow: FlowId(flow),
            by: cofferdam_model::CloseReason::Guest,
            counters: FlowCounters { bytes_out: 1, bytes_in: 1024, ..FlowCounters::default() },
            duration_ms: 1,
        };
        reached.record(&opened(0, String::new()));
        reached.record(&closed(0));
        for flow in 1..2000 {
            reached.record(&opened(flow, format!("n{flow}.example")));
            reached.record(&closed(flow));
        }
        assert_eq!((reached.targets.len(), reached.open.len()), (MAX_GROUPS, 0));
        let mut text = String::new();
        reached.render(&mut text);
        assert!(text.contains("| `[2606:4700::1]:443` | 1 | 1 B | 1.0 KiB |\n"), "{text}");
        assert!(text.contains("\nAnd 924 more.\n\n976 flows to others, 976 B out, 976.0 KiB in.\n"), "{text}");
    }
}
