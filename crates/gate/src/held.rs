//! Answers to packets of denied flows, and of flows that failed, that wait for a moment.
//!
//! A client that is refused closes its socket at once, and with it goes what says whose it was. So the answer to a denial or failure that
//! has become an event is held for [`GateConfig::witness`](crate::GateConfig::witness), in which whoever reads the event can look. A denial beyond those
//! that are told one by one is answered at once, so that a flood finds nothing that is slower than before.
//!
//! Limits: [`MAX_HELD`] answers; beyond that they go at once.

use std::collections::VecDeque;
use std::time::Duration;

use cofferdam_model::Time;

use crate::api::Output;

/// As many as there are denials told one by one in a second.
const MAX_HELD: usize = 1_000;

/// In the order of coming, which is that of their times.
#[derive(Debug, Default)]
pub(crate) struct Held(VecDeque<(Time, Output)>);

impl Held {
    /// Keeps these back, but for those there is no room for, which are left where they are.
    pub(crate) fn keep(&mut self, now: Time, wait: Duration, outputs: &mut VecDeque<Output>, from: usize) {
        let room = MAX_HELD.saturating_sub(self.0.len());
        if wait.is_zero() || outputs.len().saturating_sub(from) > room {
            return;
        }
        let until = now + wait;
        self.0.extend(outputs.split_off(from.min(outputs.len())).into_iter().map(|output| (until, output)));
    }

    /// What has waited long enough at `now`, or all of it without a time.
    pub(crate) fn release(&mut self, now: Option<Time>, outputs: &mut VecDeque<Output>) {
        while let Some((until, _)) = self.0.front() {
            if now.is_some_and(|now| *until > now) {
                return;
            }
            outputs.extend(self.0.pop_front().map(|(_, output)| output));
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.0.front().map(|(until, _)| *until)
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_model::FlowId;

    use super::*;

    const WAIT: Duration = Duration::from_millis(1);

    fn outputs(count: u64) -> VecDeque<Output> {
        (0..count).map(|n| Output::CloseUdp { flow: FlowId(n) }).collect()
    }

    #[test]
    fn what_is_kept_comes_back_in_order_and_in_time() {
        let (mut held, mut all) = (Held::default(), outputs(5));
        held.keep(Time::ZERO, WAIT, &mut all, 2);
        assert_eq!((all.len(), held.deadline()), (2, Some(Time::ZERO + WAIT)));
        held.release(Some(Time::ZERO), &mut all);
        assert_eq!(all.len(), 2);
        held.release(Some(Time::ZERO + WAIT), &mut all);
        assert_eq!((format!("{all:?}"), held.deadline()), (format!("{:?}", outputs(5)), None));
    }

    #[test]
    fn nothing_waits_without_a_time_and_beyond_the_bound() {
        let (mut held, mut all) = (Held::default(), outputs(3));
        held.keep(Time::ZERO, Duration::ZERO, &mut all, 0);
        assert_eq!(all.len(), 3);
        let mut many = outputs(MAX_HELD as u64);
        held.keep(Time::ZERO, WAIT, &mut many, 0);
        assert!(many.is_empty());
        held.keep(Time::ZERO, WAIT, &mut all, 0);
        assert_eq!(all.len(), 3);
        held.release(None, &mut many);
        assert_eq!(many.len(), MAX_HELD);
    }
}
