//! What the gateway tells the capture of one decision: whose flow it is about, and one line for people.
//!
//! A message, numbers in network byte order:
//!
//! | Bytes | What |
//! |---|---|
//! | 1 | the protocol; 128 more when there is an id of a query |
//! | 8 | when it was made, in nanoseconds since 1970 |
//! | 7 or 19, twice | the guest's end, the remote's: 4 or 6, the address, the port |
//! | 0 or 2 | the id of the DNS query |
//! | the rest | the line, in UTF-8 |
//!
//! Or 255, and in eight bytes how many messages found no room.
//!
//! Names and reasons come from guests and remotes: what a terminal would act on is escaped, and the line is cut.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cofferdam_model::{Action, EventBody, Protocol, RuleText};

/// Room for the longest message: two of the longest names, and what is said about them.
pub const MAX_MESSAGE: usize = 1024;
const MAX_TEXT: usize = MAX_MESSAGE - 64;

/// Names in a line; what an address has more is left out.
const MAX_NAMES: usize = 4;

const DNS_PORT: u16 = 53;
const WITH_QUERY: u8 = 0x80;
const LOST: u8 = 0xff;

/// A decision about a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub protocol: Protocol,
    pub guest: SocketAddr,
    pub remote: SocketAddr,
    /// Over UDP to port 53 each query is a flow of its own; `None`: it is about any.
    pub query: Option<u16>,
    /// Since 1970.
    pub made: Duration,
    pub text: String,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Decision(Decision),
    /// So many of them were lost before this one.
    Lost(u64),
}

/// Who looked up a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookUp {
    pub protocol: Protocol,
    pub guest: SocketAddr,
    pub server: SocketAddr,
    /// The id of the query.
    pub id: u16,
}

impl Message {
    /// The message as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        match self {
            Message::Decision(decision) => decision.emit(),
            Message::Lost(count) => [&[LOST][..], &count.to_be_bytes()].concat(),
        }
    }

    /// Reads a message.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Message> {
        match message.split_first() {
            Some((&LOST, count)) => Some(Message::Lost(u64::from_be_bytes(count.try_into().ok()?))),
            Some(_) | None => Decision::parse(message).map(Message::Decision),
        }
    }
}

impl Decision {
    /// What an event says about a flow. `None` for one that is about none.
    #[must_use]
    pub fn of_event(body: &EventBody, made: Duration) -> Option<Decision> {
        let (protocol, guest, remote) = match body {
            EventBody::FlowOpened { protocol, guest, remote, .. }
            | EventBody::FlowDenied { protocol, guest, remote, .. }
            | EventBody::FlowFailed { protocol, guest, remote, .. } => (*protocol, *guest, *remote),
            EventBody::SandboxStarted { .. }
            | EventBody::SandboxStopped { .. }
            | EventBody::DnsQuery { .. }
            | EventBody::DnsMore { .. }
            | EventBody::FlowClosed { .. }
            | EventBody::FlowShown { .. }
            | EventBody::FlowProgress { .. }
            | EventBody::PolicyChanged { .. }
            | EventBody::PortPublished { .. }
            | EventBody::PortWithdrawn { .. }
            | EventBody::SocketOpened { .. }
            | EventBody::SocketClosed { .. }
            | EventBody::SocketFailed { .. }
            | EventBody::LimitReached { .. }
            | EventBody::GatewayDropped { .. }
            | EventBody::GatewayNotice { .. } => return None,
        };
        let text = text(body)?;
        Some(Decision { protocol, guest, remote, query: None, made, text })
    }

    /// What an event says about the look-up of `client`.
    #[must_use]
    pub fn of_look_up(body: &EventBody, client: &LookUp, made: Duration) -> Option<Decision> {
        let LookUp { protocol, guest, server, id } = *client;
        let query = (protocol == Protocol::Udp && server.port() == DNS_PORT).then_some(id);
        Some(Decision { protocol, guest, remote: server, query, made, text: text(body)? })
    }

    fn emit(&self) -> Vec<u8> {
        let nanoseconds = u64::try_from(self.made.as_nanos()).unwrap_or(u64::MAX);
        let with_query = if self.query.is_some() { WITH_QUERY } else { 0 };
        let mut message = vec![number(self.protocol) | with_query];
        message.extend(nanoseconds.to_be_bytes());
        for end in [self.guest, self.remote] {
            match end.ip() {
                IpAddr::V4(address) => {
                    message.push(4);
                    message.extend(address.octets());
                }
                IpAddr::V6(address) => {
                    message.push(6);
                    message.extend(address.octets());
                }
            }
            message.extend(end.port().to_be_bytes());
        }
        message.extend(self.query.map(u16::to_be_bytes).into_iter().flatten());
        let end = (0..=MAX_TEXT.min(self.text.len())).rev().find(|at| self.text.is_char_boundary(*at));
        message.extend(self.text.get(..end.unwrap_or(0)).unwrap_or_default().as_bytes());
        message
    }

    fn parse(message: &[u8]) -> Option<Decision> {
        let mut rest = Rest(message);
        let [first] = rest.take()?;
        let protocol = protocol_of(first & !WITH_QUERY)?;
        let made = Duration::from_nanos(u64::from_be_bytes(rest.take()?));
        let (guest, remote) = (rest.end()?, rest.end()?);
        let query = if first & WITH_QUERY == 0 { None } else { Some(u16::from_be_bytes(rest.take()?)) };
        let text = std::str::from_utf8(rest.0).ok()?.to_owned();
        Some(Decision { protocol, guest, remote, query, made, text })
    }
}

/// The query that a datagram carries or answers, if it is DNS.
pub(crate) fn query_of(protocol: Protocol, remote: SocketAddr, payload: &[u8]) -> Option<u16> {
    match (protocol, remote.port()) {
        (Protocol::Udp, DNS_PORT) => payload.first_chunk().map(|id| u16::from_be_bytes(*id)),
        (Protocol::Tcp | Protocol::Udp | Protocol::IcmpV4 | Protocol::IcmpV6, _) => None,
    }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::IcmpV4 => 2,
        Protocol::IcmpV6 => 3,
    }
}

fn protocol_of(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::IcmpV4, Protocol::IcmpV6].get(usize::from(number)).copied()
}

/// The line about a decision.
fn text(body: &EventBody) -> Option<String> {
    let text = match body {
        EventBody::FlowOpened { flow, names, rule, .. } => {
            format!("allowed{} by {}, flow {}", to(names), by(rule), flow.0)
        }
        EventBody::FlowDenied { decision, names, rule, shown, look_up_again, .. } => {
            let mut text = format!("denied {decision}{} by {}", to(names), by(rule));
            if let Some(shown) = shown {
                let named: Vec<&str> = shown.names.iter().take(MAX_NAMES).map(String::as_str).collect();
                match &shown.doubt {
                    Some(doubt) => _ = write!(text, ", unreadable: {doubt}"),
                    None if named.is_empty() => text.push_str(", showed no name"),
                    None => _ = write!(text, ", showed {}", named.join(" ")),
                }
            }
            if let Some(name) = look_up_again {
                let _ = write!(text, ", look up {name} again");
            }
            text
        }
        EventBody::FlowFailed { flow, error, .. } => format!("failed: {error}, flow {}", flow.0),
        EventBody::DnsQuery { name, verdict, rule, decision, withheld, .. } => {
            let verdict = match verdict {
                Action::Allow => "allowed",
                Action::Deny => "denied",
            };
            let decision = decision.as_ref().map(|decision| format!(" {decision}")).unwrap_or_default();
            let withheld = withheld.map(|withheld| format!(", answer held back: {}", withheld.address));
            format!("{verdict}{decision} look-up of {name} by {}{}", by(rule), withheld.unwrap_or_default())
        }
        EventBody::SandboxStarted { .. }
        | EventBody::SandboxStopped { .. }
        | EventBody::DnsMore { .. }
        | EventBody::FlowClosed { .. }
        | EventBody::FlowShown { .. }
        | EventBody::FlowProgress { .. }
        | EventBody::PolicyChanged { .. }
        | EventBody::PortPublished { .. }
        | EventBody::PortWithdrawn { .. }
        | EventBody::SocketOpened { .. }
        | EventBody::SocketClosed { .. }
        | EventBody::SocketFailed { .. }
        | EventBody::LimitReached { .. }
        | EventBody::GatewayDropped { .. }
        | EventBody::GatewayNotice { .. } => return None,
    };
    Some(escaped(&text))
}

fn to(names: &[String]) -> String {
    let more = if names.len() > MAX_NAMES { " …" } else { "" };
    let names: Vec<&str> = names.iter().take(MAX_NAMES).map(String::as_str).collect();
    if names.is_empty() { String::new() } else { format!(" {}{more}", names.join(" ")) }
}

fn by(rule: &RuleText) -> String {
    match rule.index {
        Some(_) => format!("rule {rule}"),
        None => rule.to_string(),
    }
}

/// The text with everything made visible that a terminal would act on, or that hides and reorders what is around it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let hides =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || hides {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const LEN: usize>(&mut self) -> Option<[u8; LEN]> {
        let (bytes, rest) = self.0.split_first_chunk::<LEN>()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn end(&mut self) -> Option<SocketAddr> {
        let address: IpAddr = match self.take()? {
            [4] => self.take::<4>()?.into(),
            [6] => self.take::<16>()?.into(),
            _ => return None,
        };
        Some(SocketAddr::new(address, u16::from_be_bytes(self.take()?)))
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_model::{Direction, FirstFlight, FlightProtocol, FlowId, Group, Withheld};

    use super::*;

    fn rule(index: Option<u32>, text: &str) -> RuleText {
        RuleText { index, text: text.to_owned(), layer: None }
    }

    fn opened(names: &[&str]) -> EventBody {
        EventBody::FlowOpened {
            flow: FlowId(7),
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            guest: "10.0.0.2:40000".parse().unwrap(),
            remote: "192.0.2.1:443".parse().unwrap(),
            group: Group::Public,
            names: names.iter().map(ToString::to_string).collect(),
            rule: rule(Some(0), "allow@example.org:tcp:443"),
            process: None,
        }
    }

    fn denied(shown: Option<FirstFlight>, names: &[&str]) -> EventBody {
        EventBody::FlowDenied {
            decision: "d0rgj2fja".to_owned(),
            direction: Direction::Egress,
            protocol: Protocol::Udp,
            guest: "[fd00::2]:40000".parse().unwrap(),
            remote: "[2001:db8::1]:443".parse().unwrap(),
            group: Group::Public,
            names: names.iter().map(ToString::to_string).collect(),
            rule: rule(None, "default egress deny"),
            shown,
            look_up_again: None,
            process: None,
        }
    }

    fn looked_up(verdict: Action, withheld: Option<Withheld>) -> EventBody {
        EventBody::DnsQuery {
            name: "evil.example".to_owned(),
            qtype: 1,
            protocol: None,
            guest: None,
            server: None,
            verdict,
            rule: rule(None, "default egress deny"),
            decision: Some("7k".to_owned()),
            answers: Vec::new(),
            withheld,
            rcode: Some(3),
            resolver: None,
            ms: 0.0,
            count: 1,
            process: None,
        }
    }

    fn line(body: &EventBody) -> String {
        text(body).unwrap()
    }

    #[test]
    fn says_in_a_line_what_was_decided_and_why() {
        assert_eq!(line(&opened(&["example.org"])), "allowed example.org by rule allow@example.org:tcp:443, flow 7");
        assert_eq!(line(&denied(None, &[])), "denied d0rgj2fja by default egress deny");
        let shown = |names: &[&str], doubt: Option<&str>| FirstFlight {
            protocol: FlightProtocol::Tls,
            names: names.iter().map(ToString::to_string).collect(),
            doubt: doubt.map(str::to_owned),
        };
        let flight = |shown| line(&denied(Some(shown), &["a.example"]));
        assert_eq!(
            flight(shown(&["b.example"], None)),
            "denied d0rgj2fja a.example by default egress deny, showed b.example"
        );
        assert!(flight(shown(&[], None)).ends_with(", showed no name"));
        assert!(flight(shown(&[], Some("cut off"))).ends_with(", unreadable: cut off"));
        assert_eq!(line(&looked_up(Action::Deny, None)), "denied 7k look-up of evil.example by default egress deny");
        let withheld = Withheld { address: "10.0.0.1".parse().unwrap(), group: Group::Private };
        assert!(line(&looked_up(Action::Deny, Some(withheld))).ends_with(", answer held back: 10.0.0.1"));
        assert_eq!(text(&EventBody::GatewayNotice { message: String::new() }), None);
    }

    #[test]
    fn what_a_terminal_would_act_on_is_escaped() {
        let said = line(&denied(None, &["a\u{1b}[2Jb\r\n\u{202e}.example"]));
        assert_eq!(said, "denied d0rgj2fja a\\u{1b}[2Jb\\r\\n\\u{202e}.example by default egress deny");
    }

    #[test]
    fn many_and_long_names_are_left_out() {
        let many = ["a"; 9];
        assert!(line(&opened(&many)).starts_with("allowed a a a a … by"));
        let long = "ü".repeat(MAX_MESSAGE);
        let decision = Decision::of_event(&opened(&[&long]), Duration::ZERO).unwrap();
        let message = decision.emit();
        assert!(message.len() <= MAX_MESSAGE, "{}", message.len());
        assert!(decision.text.starts_with(&Decision::parse(&message).unwrap().text));
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let made = Duration::new(1_700_000_000, 5);
        let client = LookUp {
            protocol: Protocol::Udp,
            guest: "10.0.0.2:5353".parse().unwrap(),
            server: "10.0.0.1:53".parse().unwrap(),
            id: 0xabcd,
        };
        let over_tcp = LookUp { protocol: Protocol::Tcp, ..client };
        for decision in [
            Decision::of_event(&opened(&["example.org"]), made),
            Decision::of_event(&denied(None, &[]), made),
            Decision::of_look_up(&looked_up(Action::Allow, None), &client, made),
            Decision::of_look_up(&looked_up(Action::Allow, None), &over_tcp, made),
        ] {
            let decision = decision.unwrap();
            let message = decision.emit();
            assert_eq!(Decision::parse(&message), Some(decision.clone()));
            for len in 0..message.len() - decision.text.len() {
                assert_eq!(Decision::parse(&message[..len]), None, "{len} bytes");
            }
            assert_eq!(Message::parse(&message), Some(Message::Decision(decision)));
        }
        let lost = Message::Lost(u64::MAX);
        assert_eq!(Message::parse(&lost.emit()), Some(lost));
    }
}
