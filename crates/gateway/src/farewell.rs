//! What a client is told whose first flight or request was denied, in the protocol it speaks.

use cofferdam_flight::{Protocol, Shown};
use cofferdam_gate::FlightDenial;
use cofferdam_model::DecisionId;

/// A fatal `access_denied` alert in a plain record (RFC 8446 §5.1, §6.2): no key is agreed on before the ServerHello.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// The last bytes for the client; `None`: it gets RST.
pub(crate) fn words(shown: &Shown, denial: &FlightDenial) -> Option<Vec<u8>> {
    match shown.protocol()? {
        Protocol::Tls => Some(ALERT.to_vec()),
        Protocol::Http => Some(forbidden(shown, denial)),
        Protocol::Quic => None,
    }
}

/// The body is what the interface for programs has for denials (spec `names.md` §6).
fn forbidden(shown: &Shown, denial: &FlightDenial) -> Vec<u8> {
    let body = serde_json::json!({
        "code": "network_policy_denied",
        "message": message(shown, denial),
        "domain": denial.domain.as_ref().map(ToString::to_string),
        "decision": denial.decision.as_ref().map(DecisionId::to_string),
    });
    let body = format!("{body}\n");
    format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn message(shown: &Shown, denial: &FlightDenial) -> String {
    let rule = &denial.rule;
    if let Some(name) = &denial.look_up_again {
        return format!("the address was that of {name} once: look {name} up again ({rule})");
    }
    match (shown, &denial.domain) {
        (Shown::Unreadable { doubt, .. }, _) => {
            format!("the network policy does not pass this request on: {doubt} ({rule})")
        }
        (_, Some(domain)) => format!("the network policy does not allow {domain} on this connection ({rule})"),
        (_, None) => format!("the network policy needs a host name in the request ({rule})"),
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_flight::Doubt;

    use super::*;

    #[test]
    fn every_protocol_is_answered_in_its_own_words() {
        let denial = FlightDenial {
            decision: Some(DecisionId(33)),
            domain: Some("evil.example".parse().unwrap()),
            rule: "deny@evil.example".into(),
            look_up_again: None,
        };
        let text = |shown: &Shown| words(shown, &denial).map(|words| String::from_utf8_lossy(&words).into_owned());
        let http = text(&Shown::Http { names: vec!["evil.example".parse().unwrap()] }).unwrap();
        let (head, body) = http.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 403 ") && head.contains("\r\nCache-Control: no-store\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["code"], "network_policy_denied");
        assert_eq!(body["domain"], "evil.example");
        assert_eq!(body["decision"], "11");
        let doubt = Shown::Unreadable { protocol: Protocol::Http, doubt: Doubt::Host };
        assert!(text(&doubt).unwrap().contains("no Host header"));
        let tls = Shown::Tls { server_name: None, ech: false };
        assert_eq!(words(&tls, &denial).unwrap(), ALERT);
        assert_eq!(words(&Shown::Other, &denial), None);
        assert_eq!(words(&Shown::Unfinished, &denial), None);
    }
}
