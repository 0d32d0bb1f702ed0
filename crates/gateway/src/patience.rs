//! Looking again before sleeping.
//!
//! A thread that sleeps in the poller has to be woken up: some 3 µs on bare metal, 40 µs and more inside a virtual machine
//! whose processors trap to be woken. In a ping-pong through the relay that is most of the time. So the loop looks
//! again for a while before it sleeps, by the rule that KVM uses for idle virtual processors (`halt_poll_ns`):
//!
//! | Last sleep | Next look |
//! |---|---|
//! | shorter than [`WORTH_IT`] | up to [`LONGEST`] |
//! | longer | none |
//!
//! Only after turns that did little: bulk transfers and bursts gain from being batched, not from being met early. An
//! idle gateway sleeps at once and costs nothing.

use std::time::Duration;

use cofferdam_model::Time;

/// How long the loop looks again: about one round trip to a program on this machine, two wake-ups included.
const LONGEST: Duration = Duration::from_micros(100);

/// A sleep of this length would have been saved by looking: [`LONGEST`] and the wake-up that ended it.
const WORTH_IT: Duration = Duration::from_micros(200);

/// Decides how long to look before sleeping.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    pays: bool,
}

impl Patience {
    /// How long to look again after a turn; `None`: sleep at once. `little`: the turn did little.
    pub(crate) fn look(&self, little: bool) -> Option<Duration> {
        (self.pays && little).then_some(LONGEST)
    }

    /// The loop slept from `start` to `end`.
    pub(crate) fn slept(&mut self, start: Time, end: Time) {
        self.pays = end.since(start) < WORTH_IT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_again_only_after_short_sleeps_and_small_turns() {
        let mut patience = Patience::default();
        assert_eq!(patience.look(true), None);
        patience.slept(Time::ZERO, Time::from_nanos(50_000));
        assert_eq!(patience.look(true), Some(LONGEST));
        assert_eq!(patience.look(false), None);
        patience.slept(Time::ZERO, Time::from_nanos(1_000_000));
        assert_eq!(patience.look(true), None);
    }
}
