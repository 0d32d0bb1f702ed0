//! Which events of a run are shown.

use std::net::{IpAddr, SocketAddr};

use cofferdam_control::store::Needles;
use cofferdam_model::{Event, EventBody, FirstFlight};

use crate::args::LogArgs;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    denied: bool,
    name: Option<Pattern>,
    /// As events have it, which is in the order of time.
    since: Option<String>,
}

/// What people write for names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Name(String),
    /// Everything below it.
    Suffix(String),
    Address(IpAddr),
}

impl Filter {
    pub(super) fn new(args: &LogArgs) -> Filter {
        Filter {
            denied: args.denied,
            name: args.name.as_deref().map(Pattern::parse),
            since: args.since.as_ref().map(|since| since.as_str().to_owned()),
        }
    }

    /// What lines have to hold at least.
    pub(super) fn needles(args: &LogArgs) -> Needles {
        if args.denied { Needles::denials() } else { Needles::all() }
    }

    /// Whether everything is shown, as it is.
    pub(super) fn is_open(&self) -> bool {
        !self.denied && self.name.is_none() && self.since.is_none()
    }

    /// Whether somebody looks for a name or an address.
    pub(super) fn is_about_a_name(&self) -> bool {
        self.name.is_some()
    }

    pub(super) fn takes(&self, event: &Event) -> bool {
        (!self.denied || event.body.is_denial())
            && self.since.as_ref().is_none_or(|since| event.time.as_str() >= since.as_str())
            && self.name.as_ref().is_none_or(|name| name.is_in(&event.body))
    }
}

impl Pattern {
    fn parse(text: &str) -> Pattern {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Pattern::Address(address);
        }
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match text.strip_prefix("*.") {
            Some(suffix) => Pattern::Suffix(format!(".{suffix}")),
            None => Pattern::Name(text),
        }
    }

    fn is_in(&self, body: &EventBody) -> bool {
        match body {
            EventBody::DnsQuery { name, answers, .. } => self.is(name) || answers.iter().any(|at| self.is_at(*at)),
            EventBody::FlowOpened { names, remote, .. } => self.is_any(names) || self.is_remote(*remote),
            EventBody::FlowDenied { names, remote, shown, look_up_again, .. } => {
                let shown = shown.as_ref().is_some_and(|FirstFlight { names, .. }| self.is_any(names));
                let again = look_up_again.as_ref().is_some_and(|name| self.is(name));
                shown || again || self.is_any(names) || self.is_remote(*remote)
            }
            EventBody::FlowFailed { remote, .. } => self.is_remote(*remote),
            EventBody::FlowShown { shown: FirstFlight { names, .. }, .. } => self.is_any(names),
            EventBody::SandboxStarted { .. }
            | EventBody::SandboxStopped { .. }
            | EventBody::DnsMore { .. }
            | EventBody::FlowClosed { .. }
            | EventBody::FlowProgress { .. }
            | EventBody::PolicyChanged { .. }
            | EventBody::PortPublished { .. }
            | EventBody::PortWithdrawn { .. }
            | EventBody::SocketOpened { .. }
            | EventBody::SocketClosed { .. }
            | EventBody::SocketFailed { .. }
            | EventBody::LimitReached { .. }
            | EventBody::GatewayDropped { .. }
            | EventBody::GatewayNotice { .. } => false,
        }
    }

    fn is_any(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.is(name))
    }

    fn is(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        match self {
            Pattern::Name(wanted) => name.eq_ignore_ascii_case(wanted),
            Pattern::Suffix(suffix) => {
                let end = name.len().checked_sub(suffix.len()).filter(|place| *place > 0);
                end.and_then(|place| name.get(place..)).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
            }
            Pattern::Address(_) => false,
        }
    }

    fn is_remote(&self, remote: SocketAddr) -> bool {
        self.is_at(remote.ip())
    }

    fn is_at(&self, address: IpAddr) -> bool {
        *self == Pattern::Address(address.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_model::{FlightProtocol, FlowId};

    use super::*;

    #[test]
    fn what_a_flow_showed_is_about_its_names() {
        let names = vec!["a.example.org".to_owned()];
        let shown = FirstFlight { protocol: FlightProtocol::Tls, names, doubt: None };
        let body = EventBody::FlowShown { flow: FlowId(1), shown };
        for (pattern, is_in) in
            [("a.example.org", true), ("*.example.org", true), ("example.org", false), ("::1", false)]
        {
            assert_eq!(Pattern::parse(pattern).is_in(&body), is_in, "{pattern}");
        }
    }

    #[test]
    fn a_pattern_is_a_name_what_is_below_one_or_an_address() {
        for (pattern, yes, no) in [
            (
                "example.org",
                &["example.org", "EXAMPLE.org", "example.org."][..],
                &["a.example.org", "xexample.org"][..],
            ),
            (
                "*.Example.org",
                &["a.example.org", "a.b.EXAMPLE.org."],
                &["example.org", "xexample.org", ".example.org", ""],
            ),
            ("10.0.0.5", &[], &["10.0.0.5.example"]),
        ] {
            let parsed = Pattern::parse(pattern);
            assert!(yes.iter().all(|name| parsed.is(name)), "{pattern}");
            assert!(!no.iter().any(|name| parsed.is(name)), "{pattern}");
        }
        for (pattern, address) in [("10.0.0.5", "10.0.0.5"), ("[fd00::5]", "fd00::5"), ("fd00::5", "fd00::5")] {
            assert!(Pattern::parse(pattern).is_at(address.parse().unwrap()), "{pattern}");
            assert!(!Pattern::parse(pattern).is_at("10.0.0.6".parse().unwrap()), "{pattern}");
        }
    }
}
