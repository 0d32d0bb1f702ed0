//! Events and runs as people read them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam_control::store::{About, RunKind, RunState, StoredRun};
use cofferdam_control::summary::escaped;
use cofferdam_model::{Action, Event, EventBody, FirstFlight, Group, PortProtocol, Protocol};

use crate::output::{Paint, Style};

/// What `log RUN` begins with: which run this is.
pub(super) fn header(run: &StoredRun) -> String {
    format!("{}  {}  {}", run.about().id, ended(run), described(run.about()))
}

/// How a run ended, in a few words.
pub(crate) fn ended(run: &StoredRun) -> String {
    let state = run.state();
    match (&run.about().ended, state) {
        (Some(ended), RunState::Ended) => {
            format!("exit {} after {}", ended.exit_status, took(Duration::from_millis(ended.duration_ms)))
        }
        (_, state) => state.as_str().to_owned(),
    }
}

/// What was run, and in which sandbox.
pub(crate) fn described(about: &About) -> String {
    let command = command(about);
    match (&about.sandbox, about.kind) {
        (Some(name), RunKind::Session) if command.is_empty() => format!("sandbox {}", escaped(name)),
        (Some(name), RunKind::Session) => format!("sandbox {}: {command}", escaped(name)),
        (Some(name), RunKind::Exec | RunKind::Run) => format!("in {}: {command}", escaped(name)),
        (None, RunKind::Session | RunKind::Exec | RunKind::Run) => command,
    }
}

/// Characters of a command line that are shown: one line of a wide terminal, with what stands before it. `--json` has all of it.
const LONGEST_COMMAND: usize = 100;

/// The program and its arguments in a line, whatever white space a script among them has.
pub(super) fn command(about: &About) -> String {
    let line = about.command.iter().flat_map(|word| word.split_whitespace()).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST_COMMAND) {
        Some((end, _)) => format!("{}…", escaped(line.get(..end).unwrap_or_default())),
        None => escaped(&line),
    }
}

/// A time of an event without what a person does not read.
pub(crate) fn utc(time: &str) -> String {
    let time = time.get(..23).unwrap_or(time);
    escaped(&time.replacen('T', " ", 1))
}

/// A stretch of time in two units at most.
pub(super) fn took(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{}.{} s", seconds, time.subsec_millis() / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// How long ago a time of the form that runs have was: between its second and now.
pub(super) fn since(started: &str) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    now.checked_sub(Duration::from_secs(crate::units::seconds_of(started)?))
}

/// One decision, or something that a person should know; `None` for what belongs to another line.
pub(super) fn line(event: &Event, paint: Paint) -> Option<String> {
    let (style, word, what) = told(&event.body)?;
    Some(format!("{}  {}  {}", utc(&event.time), paint.paint(style, &format!("{word:8}")), escaped(&what)))
}

/// What a flow showed, with where it went where that is known: for who looks for a name.
pub(super) fn shown_line(
    time: &str,
    went: Option<(Protocol, SocketAddr)>,
    shown: &FirstFlight,
    paint: Paint,
) -> String {
    let went = went.map_or_else(String::new, |(protocol, remote)| format!("{} {remote}  ", protocol_word(protocol)));
    let FirstFlight { protocol, names, doubt } = shown;
    let doubt = doubt.as_ref().map_or_else(String::new, |doubt| format!(" ({doubt})"));
    let what = format!("{went}as {} over {}{doubt}", names.join(" "), word(protocol));
    format!("{}  {}  {}", utc(time), paint.paint(Style::Faint, "shown   "), escaped(&what))
}

fn told(body: &EventBody) -> Option<(Style, &'static str, String)> {
    Some(match body {
        EventBody::FlowOpened { protocol, remote, group, names, rule, direction: _, .. } => {
            (Style::Good, "opened", format!("{}  {rule}", flow(*protocol, *remote, *group, names.first())))
        }
        EventBody::FlowDenied { decision, protocol, remote, group, names, rule, shown, .. } => {
            let name = shown.as_ref().and_then(|shown| shown.names.first()).or(names.first());
            (Style::Bad, "denied", format!("{}  {rule}  why {decision}", flow(*protocol, *remote, *group, name)))
        }
        EventBody::FlowFailed { protocol, remote, error, .. } => {
            (Style::Notable, "failed", format!("{} {}  {error}", protocol_word(*protocol), remote))
        }
        EventBody::DnsQuery { name, qtype, verdict, rule, decision, answers, rcode, count, .. } => {
            let times = if *count > 1 { format!(" ×{count}") } else { String::new() };
            let look_up = format!("look-up {name} {}{times}", qtype_word(*qtype));
            match verdict {
                Action::Deny => {
                    let why = decision.as_ref().map(|id| format!("  why {id}")).unwrap_or_default();
                    (Style::Bad, "denied", format!("{look_up}  {rule}{why}"))
                }
                Action::Allow => {
                    let answers: Vec<String> = answers.iter().map(IpAddr::to_string).collect();
                    let said = match (answers.is_empty(), rcode) {
                        (false, _) => answers.join(" "),
                        (true, Some(0) | None) => "no address".to_owned(),
                        (true, Some(code)) => rcode_word(*code),
                    };
                    (Style::Good, "allowed", format!("{look_up}  {said}"))
                }
            }
        }
        EventBody::DnsMore { verdict, count } => {
            let (style, word) = match verdict {
                Action::Allow => (Style::Good, "allowed"),
                Action::Deny => (Style::Bad, "denied"),
            };
            (style, word, format!("{count} look-ups more, of too many names to tell"))
        }
        EventBody::SocketOpened { host, guest, .. } => (Style::Good, "opened", format!("socket {host}  at {guest}")),
        EventBody::SocketFailed { host, error, .. } => (Style::Notable, "failed", format!("socket {host}  {error}")),
        EventBody::PolicyChanged { rules, ended, .. } => {
            (Style::Notable, "policy", format!("{rules} rules are in force from here on; {ended} flows were ended"))
        }
        EventBody::PortPublished { protocol, host, guest_port, .. } => {
            (Style::Faint, "port", format!("{host}/{} leads to port {guest_port}", port_word(*protocol)))
        }
        EventBody::PortWithdrawn { protocol, host, .. } => {
            (Style::Faint, "port", format!("{host}/{} is withdrawn", port_word(*protocol)))
        }
        EventBody::LimitReached { limit, bound, count } => {
            (Style::Notable, "limit", format!("{} ×{count}, at {bound}", word(limit)))
        }
        EventBody::GatewayDropped { reason, count } => {
            (Style::Faint, "dropped", format!("{count} packets: {}", word(reason)))
        }
        EventBody::GatewayNotice { message } => (Style::Notable, "notice", message.clone()),
        EventBody::SandboxStarted { .. }
        | EventBody::SandboxStopped { .. }
        | EventBody::FlowClosed { .. }
        | EventBody::FlowShown { .. }
        | EventBody::FlowProgress { .. }
        | EventBody::SocketClosed { .. } => return None,
    })
}

/// Protocol and destination, by its name where one led to it.
fn flow(protocol: Protocol, remote: SocketAddr, group: Group, name: Option<&String>) -> String {
    let protocol = protocol_word(protocol);
    let at = match remote.port() {
        0 => remote.ip().to_canonical().to_string(),
        _ => remote.to_string(),
    };
    match name {
        Some(name) => format!("{protocol} {name} {at}"),
        None if group == Group::Public => format!("{protocol} {at}"),
        None => format!("{protocol} {at} ({})", word(&group)),
    }
}

pub(crate) fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::IcmpV4 | Protocol::IcmpV6 => "ping",
    }
}

fn port_word(protocol: PortProtocol) -> &'static str {
    protocol.word()
}

/// The types that people meet, by their name (RFC 1035, 3596, 9460).
pub(crate) fn qtype_word(qtype: u16) -> String {
    match qtype {
        1 => "A".to_owned(),
        5 => "CNAME".to_owned(),
        12 => "PTR".to_owned(),
        15 => "MX".to_owned(),
        16 => "TXT".to_owned(),
        28 => "AAAA".to_owned(),
        33 => "SRV".to_owned(),
        65 => "HTTPS".to_owned(),
        other => format!("TYPE{other}"),
    }
}

/// The codes that people meet (RFC 1035).
fn rcode_word(rcode: u8) -> String {
    match rcode {
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        5 => "REFUSED".to_owned(),
        other => format!("RCODE{other}"),
    }
}

/// The word that serde writes for a fieldless variant.
pub(crate) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('_', " "),
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_two_units() {
        for (millis, text) in
            [(7, "7 ms"), (1_260, "1.2 s"), (61_000, "1 min 1 s"), (3_661_000, "1 h 1 min"), (90_000_000, "1 d 1 h")]
        {
            assert_eq!(took(Duration::from_millis(millis)), text);
        }
        assert_eq!(utc("2026-11-21T04:59:51.717489Z"), "2026-11-21 04:59:51.717");
        assert_eq!(utc("then\u{1b}"), "then\\u{1b}");
    }

    #[test]
    fn a_command_line_is_a_line() {
        let shown = |words: &[&str]| {
            let json = serde_json::json!({
                "v": 1, "id": "20261126T080000Z-k3f9xa", "kind": "run", "command": words,
                "started": "2026-11-26T08:00:00.000000Z", "network": [], "advice": { "allow_changes_default": false },
            });
            command(&serde_json::from_value(json).unwrap())
        };
        assert_eq!(shown(&["sh", "-c", "a\n  b"]), "sh -c a b");
        assert_eq!(shown(&["ä".repeat(100).as_str()]), "ä".repeat(100));
        assert_eq!(shown(&["ä".repeat(100).as_str(), "b"]), format!("{}…", "ä".repeat(100)));
    }

    #[test]
    fn what_a_program_chose_does_not_reach_the_terminal() {
        let text = r#"{"v":1,"time":"2026-11-21T04:59:51.717489Z","mono_ns":1,"source":"gateway","type":"dns.query","name":"\u001b[2Jx\u202e.example","qtype":28,"verdict":"deny","rule":{"index":null,"text":"default egress deny"},"decision":"7k","answers":[],"rcode":3,"resolver":null,"ms":0.0}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        let line = line(&event, Paint::never()).unwrap();
        assert_eq!(
            line,
            "2026-11-21 04:59:51.717  denied    look-up \\u{1b}[2Jx\\u{202e}.example AAAA  default egress deny  why 7k"
        );
    }
}
