//! How often look-ups become events of their own.
//!
//! A guest can have names denied, or answered without anybody being asked, as fast as it can send. Within a second that
//! begins with the first of them, [`TOLD_PER_NAME`] look-ups alike (name, type, verdict, rule, rcode) and [`TOLD_IN_ALL`] together
//! are told one by one. What comes after is counted and told when the second is over: alike ones as one event with a
//! count, up to [`NAMES`] kinds of them, and the rest as a number for each verdict. So no look-up is missing in the
//! counts, and a flood costs a second's worth of events and no more.

use std::collections::BTreeMap;
use std::time::Duration;

use cofferdam_model::{Action, EventBody, Time};

/// A second of [`TOLD_IN_ALL`] is some 400 KiB of JSON.
const INTERVAL: Duration = Duration::from_secs(1);
/// A client that repeats a question as fast as it gets answers is below this, unless it means to flood.
const TOLD_PER_NAME: u32 = 100;
const TOLD_IN_ALL: u32 = 1_000;
/// Kinds of look-ups that are counted apart within one second. A name is 255 bytes at most, so these are some 200 KiB.
const NAMES: usize = 256;

/// Counters of one second.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// When the second began; `None` while nothing was counted in it.
    began: Option<Time>,
    told: u32,
    kinds: BTreeMap<Kind, Counted>,
    allowed_beyond: u64,
    denied_beyond: u64,
}

/// What makes two look-ups alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    name: String,
    qtype: u16,
    denied: bool,
    rule: String,
    rcode: Option<u8>,
}

#[derive(Debug)]
struct Counted {
    told: u32,
    untold: u64,
    /// The last one that was not told.
    like: Option<EventBody>,
}

impl Reports {
    /// Takes the event of one look-up, and gives it back when it is to be told. Call [`Reports::due`] before.
    pub(crate) fn count(&mut self, now: Time, event: EventBody) -> Option<EventBody> {
        let Some((kind, verdict)) = kind_of(&event) else { return Some(event) };
        self.began.get_or_insert(now);
        let has_room = self.kinds.len() < NAMES || self.kinds.contains_key(&kind);
        if !has_room {
            if self.told < TOLD_IN_ALL {
                self.told += 1;
                return Some(event);
            }
            let beyond = match verdict {
                Action::Allow => &mut self.allowed_beyond,
                Action::Deny => &mut self.denied_beyond,
            };
            *beyond = beyond.saturating_add(1);
            return None;
        }
        let counted = self.kinds.entry(kind).or_insert(Counted { told: 0, untold: 0, like: None });
        if counted.told < TOLD_PER_NAME && self.told < TOLD_IN_ALL {
            counted.told += 1;
            self.told += 1;
            return Some(event);
        }
        counted.untold = counted.untold.saturating_add(1);
        counted.like = Some(event);
        None
    }

    /// What was counted and not told, once its second is over.
    pub(crate) fn due(&mut self, now: Time) -> Vec<EventBody> {
        match self.began {
            Some(began) if now.since(began) >= INTERVAL => self.rest(),
            Some(_) | None => Vec::new(),
        }
    }

    /// What was counted and not told.
    pub(crate) fn rest(&mut self) -> Vec<EventBody> {
        let Reports { kinds, allowed_beyond, denied_beyond, .. } = std::mem::take(self);
        let mut events: Vec<EventBody> = kinds.into_values().filter_map(Counted::event).collect();
        for (verdict, count) in [(Action::Allow, allowed_beyond), (Action::Deny, denied_beyond)] {
            if count > 0 {
                events.push(EventBody::DnsMore { verdict, count });
            }
        }
        events
    }

    /// When [`Reports::due`] has something.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let untold =
            self.allowed_beyond > 0 || self.denied_beyond > 0 || self.kinds.values().any(|kind| kind.untold > 0);
        self.began.filter(|_| untold).map(|began| began + INTERVAL)
    }
}

impl Counted {
    /// One event for all that were not told. It is about no decision and no guest's end in particular.
    fn event(self) -> Option<EventBody> {
        let mut event = self.like?;
        if let EventBody::DnsQuery { count, decision, protocol, guest, server, .. } = &mut event {
            *count = self.untold;
            *decision = None;
            (*protocol, *guest, *server) = (None, None, None);
        }
        Some(event)
    }
}

/// `None` for an event that is about no look-up.
fn kind_of(event: &EventBody) -> Option<(Kind, Action)> {
    let EventBody::DnsQuery { name, qtype, verdict, rule, rcode, .. } = event else { return None };
    let denied = *verdict == Action::Deny;
    Some((Kind { name: name.clone(), qtype: *qtype, denied, rule: rule.text.clone(), rcode: *rcode }, *verdict))
}

#[cfg(test)]
mod tests {
    use cofferdam_model::RuleText;

    use super::*;

    fn ms(milliseconds: u64) -> Time {
        Time::ZERO + Duration::from_millis(milliseconds)
    }

    fn lookup(name: &str, verdict: Action) -> EventBody {
        EventBody::DnsQuery {
            name: name.to_owned(),
            qtype: 1,
            protocol: Some(cofferdam_model::Protocol::Udp),
            guest: Some("172.16.0.2:40000".parse().unwrap()),
            server: Some("172.16.0.1:53".parse().unwrap()),
            verdict,
            rule: RuleText { text: "default egress deny".to_owned(), ..RuleText::default() },
            decision: Some("7k".to_owned()),
            answers: Vec::new(),
            withheld: None,
            rcode: Some(3),
            resolver: None,
            ms: 0.0,
            count: 1,
            process: None,
        }
    }

    /// How many look-ups an event stands for, and whether it names no decision.
    #[allow(clippy::wildcard_enum_match_arm, reason = "a test may fail by panicking")]
    fn counted(event: &EventBody) -> (u64, bool) {
        match event {
            EventBody::DnsQuery { count, decision, .. } => (*count, decision.is_none()),
            EventBody::DnsMore { count, .. } => (*count, true),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_name_is_told_a_hundred_times_a_second_and_then_with_a_count() {
        let mut reports = Reports::default();
        let told = (0..5000).filter_map(|_| reports.count(ms(1), lookup("a.example", Action::Deny))).count();
        assert_eq!(told, 100);
        // Another one is not hidden by it.
        assert!(reports.count(ms(2), lookup("b.example", Action::Deny)).is_some());
        assert!(reports.count(ms(2), lookup("a.example", Action::Allow)).is_some());
        assert_eq!(reports.deadline(), Some(ms(1001)));
        assert_eq!(reports.due(ms(1000)), []);
        let due = reports.due(ms(1001));
        assert_eq!(due.iter().map(counted).collect::<Vec<_>>(), [(4900, true)]);
        assert_eq!(reports.deadline(), None);
        assert!(reports.count(ms(1001), lookup("a.example", Action::Deny)).is_some());
    }

    #[test]
    fn a_flood_of_names_is_bounded_in_events_and_in_memory_and_counted_in_full() {
        let mut reports = Reports::default();
        let (mut events, mut looked_up) = (Vec::new(), 0);
        for n in 0..20_000 {
            for verdict in [Action::Deny, Action::Allow] {
                looked_up += 1;
                events.extend(reports.count(ms(1), lookup(&format!("n{n}.example"), verdict)));
            }
        }
        assert_eq!(events.len(), 1000);
        assert_eq!(reports.kinds.len(), NAMES);
        events.extend(reports.due(ms(1001)));
        assert!(events.len() <= 1000 + NAMES + 2);
        assert_eq!(events.iter().map(|event| counted(event).0).sum::<u64>(), looked_up);
        let more = |verdict| {
            events.iter().filter(move |event| matches!(event, EventBody::DnsMore { verdict: v, .. } if *v == verdict))
        };
        assert_eq!((more(Action::Allow).count(), more(Action::Deny).count()), (1, 1));
    }

    #[test]
    fn a_few_look_ups_are_told_as_they_come_and_nothing_is_due() {
        let mut reports = Reports::default();
        for n in 0..10 {
            assert!(reports.count(ms(n), lookup("a.example", Action::Deny)).is_some());
        }
        assert_eq!(reports.deadline(), None);
        assert_eq!(reports.rest(), []);
    }
}
