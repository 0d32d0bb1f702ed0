//! What open flows have moved, told once a second while they do.
//!
//! Whoever carries flows notes each one after it may have moved something ([`Movers::note`]), and knows in constant time which
//! ones have since the last time: flows that rest cost nothing, however many there are. A second after the first of them
//! everybody is asked for theirs, and those that have moved most become one event.
//!
//! Limits: [`MAX_NOTED`] flows are noted in a second by one carrier, and counted beyond; [`MAX_TOLD`] flows in one event. A flow
//! that has ended meanwhile is left out, since its end tells what it has carried.

use std::cmp::Reverse;
use std::time::Duration;

use cofferdam_model::{EventBody, FlowCounters, FlowId, FlowProgress, Time};

/// How often it is told what flows have moved.
const INTERVAL: Duration = Duration::from_secs(1);
/// Flows that one event names: more than fit a screen, and some 6 KiB of JSON.
const MAX_TOLD: usize = 64;
/// More flows than move in a second on a busy machine: 128 KiB.
const MAX_NOTED: usize = 16_384;

/// What was known of a flow when it was last told of. Lies with the flow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mark {
    turn: u32,
    bytes: u64,
}

/// The flows of one carrier that have moved something since this was last asked.
#[derive(Debug, Default)]
pub struct Movers {
    turn: u32,
    noted: Vec<FlowId>,
    beyond: u64,
}

/// What is gathered for one event.
#[derive(Debug, Default)]
pub struct Moved {
    flows: Vec<(u64, FlowProgress)>,
    more: u64,
}

impl Mark {
    /// Of a flow that another carrier goes on with: what was told of it stays told, and what was not is to be.
    #[must_use]
    pub fn handed_over(self) -> Mark {
        Mark { turn: 0, ..self }
    }
}

impl Movers {
    /// The flow has carried so much by now.
    pub fn note(&mut self, flow: FlowId, mark: &mut Mark, counters: &FlowCounters) {
        // Turns are counted from 1 in marks, so that a new one is of no turn.
        let turn = self.turn.wrapping_add(1);
        if mark.turn == turn || mark.bytes == bytes(counters) {
            return;
        }
        mark.turn = turn;
        if self.noted.len() < MAX_NOTED {
            self.noted.push(flow);
        } else {
            self.beyond = self.beyond.saturating_add(1);
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.noted.is_empty()
    }

    /// The flows that were noted, for [`Moved::add`] where they are still open; begins anew.
    #[must_use]
    pub fn take(&mut self, moved: &mut Moved) -> Vec<FlowId> {
        self.turn = self.turn.wrapping_add(1);
        moved.more = moved.more.saturating_add(std::mem::take(&mut self.beyond));
        std::mem::take(&mut self.noted)
    }
}

impl Moved {
    /// The flow has carried so much by now.
    pub fn add(&mut self, flow: FlowId, mark: &mut Mark, counters: FlowCounters) {
        let before = std::mem::replace(&mut mark.bytes, bytes(&counters));
        self.flows.push((mark.bytes.saturating_sub(before), FlowProgress { flow, counters }));
        if self.flows.len() >= 2 * MAX_TOLD {
            self.keep_most();
        }
    }

    fn keep_most(&mut self) {
        self.flows.sort_unstable_by_key(|(bytes, progress)| (Reverse(*bytes), progress.flow));
        let more = self.flows.len().saturating_sub(MAX_TOLD);
        self.flows.truncate(MAX_TOLD);
        self.more = self.more.saturating_add(u64::try_from(more).unwrap_or(u64::MAX));
    }

    /// `None`: nothing has moved that is still open.
    #[must_use]
    pub fn into_event(mut self) -> Option<EventBody> {
        self.keep_most();
        let flows: Vec<FlowProgress> = self.flows.into_iter().map(|(_, flow)| flow).collect();
        (!flows.is_empty()).then_some(EventBody::FlowProgress { flows, more: self.more })
    }
}

/// When to ask.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    due: Option<Time>,
}

impl Progress {
    /// Something has moved.
    pub(crate) fn note(&mut self, now: Time) {
        self.due.get_or_insert(now + INTERVAL);
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.due
    }

    /// Whether it is time, once.
    pub(crate) fn take_due(&mut self, now: Time) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }
}

fn bytes(counters: &FlowCounters) -> u64 {
    counters.bytes_out.saturating_add(counters.bytes_in)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A carrier with flows that others push.
    #[derive(Default)]
    struct Carrier {
        movers: Movers,
        flows: BTreeMap<FlowId, (Mark, FlowCounters)>,
    }

    impl Carrier {
        fn carry(&mut self, flow: u64, bytes_out: u64, bytes_in: u64) {
            let (mark, counters) = self.flows.entry(FlowId(flow)).or_default();
            counters.bytes_out += bytes_out;
            counters.bytes_in += bytes_in;
            self.movers.note(FlowId(flow), mark, counters);
        }

        fn told(&mut self) -> Option<(Vec<(u64, u64)>, u64)> {
            let mut moved = Moved::default();
            for flow in self.movers.take(&mut moved) {
                if let Some((mark, counters)) = self.flows.get_mut(&flow) {
                    moved.add(flow, mark, *counters);
                }
            }
            let Some(EventBody::FlowProgress { flows, more }) = moved.into_event() else { return None };
            Some((
                flows.iter().map(|told| (told.flow.0, told.counters.bytes_out + told.counters.bytes_in)).collect(),
                more,
            ))
        }
    }

    #[test]
    fn tells_what_has_moved_since_and_nothing_else() {
        let mut carrier = Carrier::default();
        assert_eq!(carrier.told(), None);
        carrier.carry(1, 0, 0);
        assert!(carrier.movers.is_empty(), "that is no movement");
        carrier.carry(1, 5, 0);
        carrier.carry(2, 0, 10);
        carrier.carry(1, 1, 1);
        assert_eq!(carrier.told(), Some((vec![(2, 10), (1, 7)], 0)));
        assert_eq!(carrier.told(), None);
        carrier.carry(1, 0, 1);
        carrier.carry(2, 0, 0);
        assert_eq!(carrier.told(), Some((vec![(1, 8)], 0)), "so far, not since then");
    }

    #[test]
    fn a_flow_that_has_ended_is_left_out() {
        let mut carrier = Carrier::default();
        carrier.carry(1, 5, 0);
        carrier.carry(2, 5, 0);
        carrier.flows.remove(&FlowId(1));
        assert_eq!(carrier.told(), Some((vec![(2, 5)], 0)));
        carrier.carry(2, 5, 0);
        carrier.flows.remove(&FlowId(2));
        assert_eq!(carrier.told(), None);
    }

    #[test]
    fn those_that_moved_most_are_told_of_and_the_others_counted() {
        let mut carrier = Carrier::default();
        carrier.carry(1000, 1_000_000, 0);
        carrier.told();
        // What it has moved earlier is no reason.
        carrier.carry(1000, 1, 0);
        for flow in 1..=300 {
            carrier.carry(flow, 0, 10 + flow % 150);
        }
        let (flows, more) = carrier.told().unwrap();
        let expected = (118..150).rev().flat_map(|size| [(size, 10 + size), (150 + size, 10 + size)]);
        assert_eq!(flows, expected.collect::<Vec<_>>());
        assert_eq!(more, 301 - 64);
    }

    #[test]
    fn what_is_noted_is_bounded_and_all_of_it_counted() {
        let mut carrier = Carrier::default();
        let all = u64::try_from(MAX_NOTED).unwrap() + 7;
        for round in [1, 2] {
            for flow in 0..all {
                carrier.carry(flow, 1, 0);
                carrier.carry(flow, 1, 0);
            }
            assert_eq!(carrier.movers.noted.len(), MAX_NOTED);
            let (flows, more) = carrier.told().unwrap();
            assert_eq!((flows.len(), more), (MAX_TOLD, all - 64), "round {round}");
        }
    }

    #[test]
    fn of_a_flow_that_changes_hands_all_that_was_not_told_is() {
        let (mut before, mut after) = (Carrier::default(), Carrier::default());
        before.carry(1, 100, 0);
        let (mark, counters) = before.flows.remove(&FlowId(1)).unwrap();
        after.flows.insert(FlowId(1), (mark.handed_over(), counters));
        after.carry(1, 0, 0);
        assert_eq!((before.told(), after.told()), (None, Some((vec![(1, 100)], 0))));
        // What was told before is not movement, by itself.
        let (mark, counters) = after.flows.remove(&FlowId(1)).unwrap();
        let mut last = Carrier::default();
        last.flows.insert(FlowId(1), (mark.handed_over(), counters));
        last.carry(1, 0, 0);
        assert!(last.movers.is_empty());
        last.carry(1, 1, 0);
        assert_eq!(last.told(), Some((vec![(1, 101)], 0)));
    }

    #[test]
    fn it_is_due_a_second_after_the_first_movement() {
        let at = |ms| Time::ZERO + Duration::from_millis(ms);
        let mut progress = Progress::default();
        assert!(!progress.take_due(at(0)) && progress.deadline().is_none());
        progress.note(at(300));
        progress.note(at(900));
        assert_eq!(progress.deadline(), Some(at(1300)));
        assert!(!progress.take_due(at(1299)));
        assert!(progress.take_due(at(1300)) && !progress.take_due(at(1300)));
        assert_eq!(progress.deadline(), None);
    }
}
