//! What goes into the event stream, and how often.
//!
//! A guest can cause drops, limits and denials as fast as it can send. Drops and limits are counted and told at most
//! once a second per kind; a denial is an event of its own until one destination, or all together, have had enough of
//! them in a second, and is counted as a lost event from there on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use cofferdam_model::{DecisionId, DropReason, EventBody, FlowId, LimitKind, Protocol, Time};

use crate::hash::Seeded;
use crate::key::Key;
use crate::table::Table;

/// How often one kind of drop or limit is told at most.
const INTERVAL: Duration = Duration::from_secs(1);
/// Denials per second told one by one for one protocol, address and port: a client that retries as fast as it can
/// is below this.
const DENIALS_PER_DESTINATION: u32 = 100;
/// Denials per second told one by one in all; about half a megabyte of JSON.
const DENIALS_IN_ALL: u32 = 1_000;
/// Destinations whose denials are counted apart; the one denied longest ago makes room.
const DESTINATIONS: usize = 256;

/// Counters behind the events.
#[derive(Debug)]
pub(crate) struct Reports {
    drops: BTreeMap<DropReason, Meter>,
    limits: BTreeMap<LimitKind, (u64, Meter)>,
    destinations: Table<Key, Window, 1>,
    denials: Window,
    next_decision: u64,
    next_destination: u64,
}

impl Reports {
    /// `first_decision` is random, so that decision ids of different sandboxes differ.
    pub(crate) fn new(hasher: Seeded, first_decision: u64) -> Reports {
        Reports {
            drops: BTreeMap::new(),
            limits: BTreeMap::new(),
            destinations: Table::new(hasher),
            denials: Window::default(),
            next_decision: first_decision,
            next_destination: 0,
        }
    }

    /// A packet was dropped.
    pub(crate) fn count_drop(&mut self, now: Time, reason: DropReason) -> Option<EventBody> {
        let count = self.drops.entry(reason).or_default().count(now)?;
        Some(EventBody::GatewayDropped { reason, count })
    }

    /// A limit was reached; `bound` is its value.
    pub(crate) fn count_limit(&mut self, now: Time, limit: LimitKind, bound: u64) -> Option<EventBody> {
        self.count_limits(now, limit, bound, 1)
    }

    /// A limit was reached so many times.
    pub(crate) fn count_limits(&mut self, now: Time, limit: LimitKind, bound: u64, times: u64) -> Option<EventBody> {
        let (known, meter) = self.limits.entry(limit).or_default();
        *known = bound;
        let count = meter.count_more(now, times)?;
        Some(EventBody::LimitReached { limit, bound, count })
    }

    /// A flow was denied. The id of the decision, unless there were too many of them.
    pub(crate) fn count_denial(&mut self, now: Time, protocol: Protocol, remote: SocketAddr) -> Option<DecisionId> {
        let key = Key::new(remote.ip(), [remote.port(), protocol_number(protocol), 0]);
        let slot = match self.destinations.find(&key) {
            Some(slot) => {
                self.destinations.touch(now, slot, 0);
                slot
            }
            None => self.add_destination(now, key),
        };
        let (_, window) = self.destinations.get_mut(slot)?;
        let tell = window.admits(now, DENIALS_PER_DESTINATION) && self.denials.admits(now, DENIALS_IN_ALL);
        tell.then(|| {
            let decision = DecisionId(self.next_decision);
            self.next_decision = self.next_decision.wrapping_add(1);
            decision
        })
    }

    /// The value of [`LimitKind::Events`] in its events.
    pub(crate) fn denial_bound() -> u64 {
        u64::from(DENIALS_PER_DESTINATION)
    }

    /// What was counted and not told yet, and may be told at `now`.
    pub(crate) fn due(&mut self, now: Time) -> Vec<EventBody> {
        self.collect(|meter| meter.due(now))
    }

    /// Everything that was counted and not told yet.
    pub(crate) fn rest(&mut self) -> Vec<EventBody> {
        self.collect(Meter::rest)
    }

    /// When [`Reports::due`] has something.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let drops = self.drops.values();
        let limits = self.limits.values().map(|(_, meter)| meter);
        drops.chain(limits).filter_map(Meter::deadline).min()
    }

    fn collect(&mut self, take: impl Fn(&mut Meter) -> Option<u64>) -> Vec<EventBody> {
        let drops = self.drops.iter_mut().filter_map(|(reason, meter)| {
            let count = take(meter)?;
            Some(EventBody::GatewayDropped { reason: *reason, count })
        });
        let limits = self.limits.iter_mut().filter_map(|(limit, (bound, meter))| {
            let count = take(meter)?;
            Some(EventBody::LimitReached { limit: *limit, bound: *bound, count })
        });
        drops.chain(limits).collect()
    }

    fn add_destination(&mut self, now: Time, key: Key) -> crate::table::Slot {
        if self.destinations.len() >= DESTINATIONS
            && let Some((oldest, _)) = self.destinations.front(0)
        {
            self.destinations.remove(oldest);
        }
        // The table wants a number of each entry; nobody asks for these.
        self.next_destination = self.next_destination.wrapping_add(1);
        self.destinations.insert(now, 0, key, FlowId(self.next_destination), Window::default())
    }
}

fn protocol_number(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::IcmpV4 => 2,
        Protocol::IcmpV6 => 3,
    }
}

/// Counts one kind of thing and says when to tell.
#[derive(Debug, Default)]
struct Meter {
    untold: u64,
    quiet_until: Time,
}

impl Meter {
    fn count(&mut self, now: Time) -> Option<u64> {
        self.count_more(now, 1)
    }

    fn count_more(&mut self, now: Time, times: u64) -> Option<u64> {
        self.untold = self.untold.saturating_add(times);
        self.due(now)
    }

    fn due(&mut self, now: Time) -> Option<u64> {
        if now < self.quiet_until {
            return None;
        }
        let count = self.rest()?;
        self.quiet_until = now + INTERVAL;
        Some(count)
    }

    fn rest(&mut self) -> Option<u64> {
        let count = std::mem::take(&mut self.untold);
        (count > 0).then_some(count)
    }

    fn deadline(&self) -> Option<Time> {
        (self.untold > 0).then_some(self.quiet_until)
    }
}

/// How many there were in the second that began with the first of them.
#[derive(Debug, Default)]
struct Window {
    began: Time,
    count: u32,
}

impl Window {
    fn admits(&mut self, now: Time, bound: u32) -> bool {
        if now.since(self.began) >= INTERVAL {
            *self = Window { began: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Time {
        Time::ZERO + Duration::from_millis(milliseconds)
    }

    fn reports() -> Reports {
        Reports::new(Seeded::new([1, 2]), 40)
    }

    fn remote(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn tells_the_first_drop_at_once_and_the_others_once_a_second() {
        let mut reports = reports();
        let told = |count| Some(EventBody::GatewayDropped { reason: DropReason::Options, count });
        assert_eq!(reports.count_drop(ms(0), DropReason::Options), told(1));
        assert_eq!(reports.deadline(), None);
        assert_eq!(reports.count_drop(ms(10), DropReason::Options), None);
        assert_eq!(reports.count_drop(ms(20), DropReason::Options), None);
        assert_eq!(reports.deadline(), Some(ms(1000)));
        assert_eq!(reports.due(ms(999)), []);
        assert_eq!(reports.due(ms(1000)), [told(2).unwrap()]);
        assert_eq!(reports.count_drop(ms(2100), DropReason::Options), told(1));
    }

    #[test]
    fn kinds_do_not_share_their_second() {
        let mut reports = reports();
        assert!(reports.count_drop(ms(0), DropReason::Options).is_some());
        assert!(reports.count_drop(ms(0), DropReason::Fragment).is_some());
        assert!(reports.count_limit(ms(0), LimitKind::Pings, 256).is_some());
        assert!(reports.count_limit(ms(0), LimitKind::Connections, 10).is_some());
        assert!(reports.count_limit(ms(1), LimitKind::Connections, 10).is_none());
        assert_eq!(reports.rest(), [EventBody::LimitReached { limit: LimitKind::Connections, bound: 10, count: 1 }]);
    }

    #[test]
    fn denials_of_one_destination_do_not_hide_those_of_another() {
        let mut reports = reports();
        let flood = |reports: &mut Reports| {
            (0..500).filter(|_| reports.count_denial(ms(1), Protocol::Tcp, remote(80)).is_some()).count()
        };
        assert_eq!(flood(&mut reports), 100);
        assert!(reports.count_denial(ms(2), Protocol::Udp, remote(80)).is_some());
        assert!(reports.count_denial(ms(2), Protocol::Tcp, remote(81)).is_some());
        assert!(reports.count_denial(ms(1002), Protocol::Tcp, remote(80)).is_some());
    }

    #[test]
    fn a_scan_is_bounded_in_events_and_in_memory() {
        let mut reports = reports();
        let told =
            (1..=20_000).filter(|port| reports.count_denial(ms(1), Protocol::Tcp, remote(*port)).is_some()).count();
        assert_eq!(told, 1_000);
        assert_eq!(reports.destinations.len(), DESTINATIONS);
    }

    #[test]
    fn decisions_are_numbered_from_the_seed() {
        let mut reports = reports();
        assert_eq!(reports.count_denial(ms(1), Protocol::Tcp, remote(1)), Some(DecisionId(40)));
        assert_eq!(reports.count_denial(ms(1), Protocol::Tcp, remote(1)), Some(DecisionId(41)));
    }
}
