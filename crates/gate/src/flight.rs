//! First flights: what is left to decide about a flow that was opened on the strength of a name, or past one that is denied.
//!
//! The bytes are read elsewhere (`cofferdam-flight`): by the shell for TCP, by the mappings for UDP. Here what they show is
//! brought together with the pins of the moment and put to the policy. Names that passed on a flow are remembered with
//! it, so that a connection that sends requests for an hour does not depend on how long its pin lives.

use cofferdam_flight::Shown;
use cofferdam_model::{DomainName, EventBody, FirstFlight, FlightProtocol, FlowId, Protocol, Time};
use cofferdam_policy::{Flight, FlightVerdict, Pending, Policy, Reason, ShownName};

use crate::api::{FlightAnswer, FlightDenial};
use crate::context::{About, Context, Ends, Told};

/// Names remembered with a flow: one is usual, and a proxy's connection may carry requests for a few.
const REMEMBERED: usize = 8;

/// A flow whose flights are looked at.
#[derive(Debug)]
pub(crate) struct Watch {
    /// What is left to decide; `None` under a policy that allows the flow whatever it shows.
    pending: Option<Box<Pending>>,
    flow: FlowId,
    /// What was reported of it.
    told: Vec<FirstFlight>,
    passed: Vec<DomainName>,
    /// What has to be decided again under another policy: over TCP what the flow showed last, over UDP all that it showed,
    /// because one mapping carries any number of connections and each goes on without another word.
    standing: Vec<Standing>,
}

/// What a flow showed, for the case that it has to be decided again.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// The names, and whether each was pinned.
    Names(Vec<(DomainName, bool)>),
    Unreadable,
    Other,
}

impl Watch {
    pub(crate) fn new(flow: FlowId, pending: Box<Pending>) -> Watch {
        Watch { pending: Some(pending), flow, told: Vec::new(), passed: Vec::new(), standing: Vec::new() }
    }

    /// The names that passed on this flow while they were pinned to its address.
    pub(crate) fn passed(&self) -> &[DomainName] {
        &self.passed
    }

    /// Puts what a flow shows to the policy. A denial is reported.
    pub(crate) fn check(
        &mut self,
        cx: &mut Context,
        now: Time,
        protocol: Protocol,
        ends: Ends,
        shown: &Shown,
    ) -> FlightAnswer {
        let peer = ends.remote.ip();
        let pinned = |name: &DomainName| self.passed.contains(name) || cx.pins.is_pinned(now, name, peer);
        let names: Vec<ShownName<'_>> =
            shown.names().iter().map(|name| ShownName { name, pinned: pinned(name) }).collect();
        let flight = match shown {
            Shown::Tls { .. } | Shown::Quic { .. } | Shown::Http { .. } => Flight::Names(&names),
            Shown::Unreadable { .. } | Shown::Unfinished => Flight::Unreadable,
            Shown::Other => Flight::Other,
        };
        let verdict = self.pending.as_ref().map(|pending| cx.policy.check_flight(pending, &flight));
        match verdict {
            None | Some(FlightVerdict::Allow(_)) => {
                for name in names.iter().filter(|name| name.pinned) {
                    if self.passed.len() < REMEMBERED && !self.passed.contains(name.name) {
                        self.passed.push(name.name.clone());
                    }
                }
                let standing = match flight {
                    Flight::Names(names) => Standing::Names(names.iter().map(|n| (n.name.clone(), n.pinned)).collect()),
                    Flight::Unreadable => Standing::Unreadable,
                    Flight::Other => Standing::Other,
                };
                self.remember(protocol, standing);
                self.tell(cx, shown);
                FlightAnswer::Pass
            }
            Some(FlightVerdict::Deny(denial)) => {
                let domain = shown.names().iter().find(|name| Some(*name) == denial.reason().name.as_ref());
                let domain = domain.or_else(|| names.iter().find(|name| !name.pinned).map(|name| name.name));
                let domain = domain.or_else(|| shown.names().first()).cloned();
                let about = About::of_flight(denial.reason().clone(), cx.names_for_event(now, peer), in_event(shown));
                let rule = cx.policy.rule_text(denial.reason()).to_string();
                let Told { decision, look_up_again } = cx.report_denied(now, protocol, ends, &about);
                FlightAnswer::Deny(FlightDenial { decision, domain, rule, look_up_again })
            }
        }
    }

    /// Reports what passed, where that is wanted and new.
    fn tell(&mut self, cx: &mut Context, shown: &Shown) {
        if !cx.policy.is_watching() || self.told.len() >= REMEMBERED {
            return;
        }
        let shown = in_event(shown);
        if !self.told.contains(&shown) {
            self.told.push(shown.clone());
            cx.event(EventBody::FlowShown { flow: self.flow, shown });
        }
    }

    fn remember(&mut self, protocol: Protocol, standing: Standing) {
        if protocol != Protocol::Udp {
            self.standing.clear();
        } else if self.standing.contains(&standing) {
            return;
        }
        // More than is remembered cannot be told again, like what was never readable.
        if self.standing.len() == REMEMBERED {
            self.standing.pop();
            self.standing.push(Standing::Unreadable);
        } else {
            self.standing.push(standing);
        }
    }

    /// Another policy is in force, and this is what it leaves to decide. The reason, when it denies what was shown.
    /// `moved`: the address is in another group by now, so that names which led there count no more.
    pub(crate) fn renew(&mut self, policy: &Policy, pending: Option<Box<Pending>>, moved: bool) -> Result<(), Reason> {
        if moved {
            self.passed.clear();
        }
        self.pending = pending;
        let Some(pending) = &self.pending else { return Ok(()) };
        for standing in &self.standing {
            let names: Vec<ShownName<'_>>;
            let flight = match standing {
                Standing::Names(shown) => {
                    names = shown.iter().map(|(name, pinned)| ShownName { name, pinned: *pinned && !moved }).collect();
                    Flight::Names(&names)
                }
                Standing::Unreadable => Flight::Unreadable,
                Standing::Other => Flight::Other,
            };
            if let FlightVerdict::Deny(denial) = policy.check_flight(pending, &flight) {
                return Err(denial.reason().clone());
            }
        }
        Ok(())
    }
}

/// A flow about which nothing is known: it is not one to ask about.
pub(crate) fn unknown() -> FlightAnswer {
    FlightAnswer::Deny(FlightDenial { decision: None, domain: None, rule: String::new(), look_up_again: None })
}

/// What a flow showed, as events tell it.
fn in_event(shown: &Shown) -> FirstFlight {
    use cofferdam_flight::Protocol::{Http, Quic, Tls};
    let protocol = match (shown, shown.protocol()) {
        (_, Some(Tls)) => FlightProtocol::Tls,
        (_, Some(Http)) => FlightProtocol::Http,
        (_, Some(Quic)) => FlightProtocol::Quic,
        (Shown::Unfinished, None) => FlightProtocol::Unfinished,
        (_, None) => FlightProtocol::Other,
    };
    let doubt = match shown {
        Shown::Unreadable { doubt, .. } => Some(doubt.to_string()),
        Shown::Tls { .. } | Shown::Quic { .. } | Shown::Http { .. } | Shown::Other | Shown::Unfinished => None,
    };
    FirstFlight { protocol, names: shown.names().iter().map(DomainName::to_string).collect(), doubt }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]
mod tests {
    use cofferdam_model::{Classifier, Direction, HostNetwork, PolicyConfig};
    use cofferdam_policy::grammar::parse_rules;
    use cofferdam_policy::{Facts, Verdict};

    use super::*;

    fn pending(rules: &str, protocol: Protocol) -> (Policy, Box<Pending>) {
        let config = PolicyConfig { rules: parse_rules(rules).unwrap(), ..PolicyConfig::default() };
        let policy = Policy::compile(&config, Classifier::new(HostNetwork::default()));
        let peer = "8.8.4.5".parse().unwrap();
        let facts = Facts { direction: Direction::Egress, protocol, peer, port: Some(443), names: &[] };
        let Verdict::Pending(_, pending) = policy.check(&facts) else { panic!("{rules} decides without names") };
        (policy, Box::new(pending))
    }

    fn named(name: &str) -> Standing {
        Standing::Names(vec![(name.parse().unwrap(), false)])
    }

    /// Whether a flow that showed `names` one after the other goes on once `denied` is denied.
    fn goes_on(protocol: Protocol, names: &[&str], denied: &str) -> bool {
        let (_, before) = pending("deny@other.example,allow@public", protocol);
        let mut watch = Watch::new(FlowId(1), before);
        for name in names {
            watch.remember(protocol, named(name));
        }
        let (policy, after) = pending(&format!("deny@{denied},allow@public"), protocol);
        watch.renew(&policy, Some(after), false).is_ok()
    }

    #[test]
    fn every_connection_of_a_mapping_is_decided_again() {
        assert!(!goes_on(Protocol::Udp, &["a.example", "b.example"], "a.example"));
        assert!(!goes_on(Protocol::Udp, &["a.example", "b.example"], "b.example"));
        assert!(goes_on(Protocol::Udp, &["a.example", "b.example", "a.example"], "c.example"));
        // Over TCP, what was asked before is over.
        assert!(goes_on(Protocol::Tcp, &["a.example", "b.example"], "a.example"));
        assert!(!goes_on(Protocol::Tcp, &["a.example", "b.example"], "b.example"));
    }

    #[test]
    fn more_connections_than_are_remembered_do_not_outlive_a_policy() {
        let names: Vec<String> = (0..=REMEMBERED).map(|n| format!("n{n}.example")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(goes_on(Protocol::Udp, names.split_last().unwrap().1, "c.example"));
        assert!(!goes_on(Protocol::Udp, &names, "c.example"));
    }
}
