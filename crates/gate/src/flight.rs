//! First flights: what is left to decide about a flow that was opened on the strength of a name, or past one that is denied.
//!
//! The bytes are read elsewhere (`cofferdam-flight`): by the shell for TCP, by the mappings for UDP. Here what they show is
//! brought together with the pins of the moment and put to the policy. Names that passed on a flow are remembered with
//! it, so that a connection that sends requests for an hour does not depend on how long its pin lives.

use cofferdam_flight::Shown;
use cofferdam_model::{DomainName, FirstFlight, FlightProtocol, Protocol, Time};
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
    passed: Vec<DomainName>,
    last: Option<Last>,
}

/// What a flow showed last, for the case that it has to be decided again.
#[derive(Debug, PartialEq, Eq)]
enum Last {
    /// The names, and whether each was pinned.
    Names(Vec<(DomainName, bool)>),
    Unreadable,
    Other,
}

impl Watch {
    pub(crate) fn new(pending: Box<Pending>) -> Watch {
        Watch { pending: Some(pending), passed: Vec::new(), last: None }
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
                self.last = Some(match flight {
                    Flight::Names(names) => Last::Names(names.iter().map(|n| (n.name.clone(), n.pinned)).collect()),
                    Flight::Unreadable => Last::Unreadable,
                    Flight::Other => Last::Other,
                });
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

    /// Another policy is in force, and this is what it leaves to decide. The reason, when it denies what was shown last.
    /// `moved`: the address is in another group by now, so that names which led there count no more.
    pub(crate) fn renew(&mut self, policy: &Policy, pending: Option<Box<Pending>>, moved: bool) -> Result<(), Reason> {
        if moved {
            self.passed.clear();
        }
        self.pending = pending;
        let (Some(pending), Some(last)) = (&self.pending, &self.last) else { return Ok(()) };
        let names: Vec<ShownName<'_>>;
        let flight = match last {
            Last::Names(shown) => {
                names = shown.iter().map(|(name, pinned)| ShownName { name, pinned: *pinned && !moved }).collect();
                Flight::Names(&names)
            }
            Last::Unreadable => Flight::Unreadable,
            Last::Other => Flight::Other,
        };
        match policy.check_flight(pending, &flight) {
            FlightVerdict::Allow(_) => Ok(()),
            FlightVerdict::Deny(denial) => Err(denial.reason().clone()),
        }
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
