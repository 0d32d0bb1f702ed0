//! A token bucket: how much may pass, and when more may.
//!
//! A bucket holds `size` tokens at first. It gets back `size` tokens in each `refill_time`, evenly, and never holds more than
//! that. `one_time_burst` tokens come on top, are used before the others, and do not come back.
//!
//! What is larger than what is there may be taken all the same as long as there is something: the rest is a *debt*, and
//! nothing passes until it is paid off. So over any time `t` no more passes than
//! `size + one_time_burst + t × size / refill_time` and one frame.
//!
//! The level is kept in tokens times the nanoseconds of `refill_time`: each nanosecond adds `size`, each token costs
//! `refill_time`, and nothing is ever rounded. `u64` tokens and a day of nanoseconds take 111 bits of 127.

use std::time::Duration;

use cofferdam_model::{BucketConfig, Time};

/// One bucket. Time that runs backwards adds nothing.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    size: u64,
    /// Nanoseconds in which `size` tokens come back; not zero.
    refill: u64,
    one_time_burst: u64,
    /// Tokens times `refill`; below zero is a debt.
    level: i128,
    at: Time,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(config: &BucketConfig, now: Time) -> TokenBucket {
        let refill = u64::try_from(config.refill_time.as_nanos()).unwrap_or(u64::MAX).max(1);
        let size = config.size.max(1);
        let level = scaled(size, refill);
        TokenBucket { size, refill, one_time_burst: config.one_time_burst, level, at: now }
    }

    /// Other settings for what goes on: a debt stays, in tokens, and there is no more in the bucket than was, nor than fits.
    /// The burst is had once: what was left of it is given up, and a new one is granted only where it is a new one.
    pub fn replace(&mut self, config: &BucketConfig, now: Time, burst_changed: bool) {
        self.refresh(now);
        let mut next = TokenBucket::new(config, now);
        let tokens = self.level.div_euclid(i128::from(self.refill));
        next.level = tokens.saturating_mul(i128::from(next.refill)).min(next.level);
        if !burst_changed {
            next.one_time_burst = self.one_time_burst.min(config.one_time_burst);
        }
        *self = next;
    }

    /// The tokens that the bucket holds when it is full.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Tokens that come back in `time`, rounded down.
    #[must_use]
    pub fn refilled_in(&self, time: Duration) -> u64 {
        let gained = time.as_nanos().saturating_mul(u128::from(self.size)) / u128::from(self.refill);
        u64::try_from(gained).unwrap_or(u64::MAX)
    }

    /// Whole tokens that may be taken now without a debt.
    pub fn available(&mut self, now: Time) -> u64 {
        self.refresh(now);
        let level = u64::try_from(self.level.max(0) / i128::from(self.refill)).unwrap_or(u64::MAX);
        level.saturating_add(self.one_time_burst)
    }

    /// Whether anything may be taken now: then even a frame that is larger than the bucket may.
    pub fn is_open(&mut self, now: Time) -> bool {
        self.refresh(now);
        self.one_time_burst > 0 || self.level > 0
    }

    /// Takes `count` tokens, into debt where they are not there.
    pub fn take(&mut self, now: Time, count: u64) {
        self.refresh(now);
        let from_burst = count.min(self.one_time_burst);
        self.one_time_burst -= from_burst;
        self.level = self.level.saturating_sub(scaled(count - from_burst, self.refill));
    }

    /// When `count` tokens will be there, or as many as the bucket holds if those are fewer. A time that has passed when they
    /// are.
    #[must_use]
    pub fn ready_at(&self, count: u64) -> Time {
        let wanted = count.saturating_sub(self.one_time_burst).min(self.size);
        let missing = scaled(wanted, self.refill).saturating_sub(self.level);
        let Ok(missing) = u128::try_from(missing) else { return self.at };
        let nanos = missing.div_ceil(u128::from(self.size));
        self.at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn refresh(&mut self, now: Time) {
        let nanos = i128::try_from(now.since(self.at).as_nanos()).unwrap_or(i128::MAX);
        self.at = self.at.max(now);
        let full = scaled(self.size, self.refill);
        self.level = self.level.saturating_add(nanos.saturating_mul(i128::from(self.size))).min(full);
    }
}

fn scaled(tokens: u64, refill: u64) -> i128 {
    i128::from(tokens).saturating_mul(i128::from(refill))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(size: u64, refill: Duration, one_time_burst: u64) -> TokenBucket {
        TokenBucket::new(&BucketConfig { size, refill_time: refill, one_time_burst }, Time::ZERO)
    }

    fn at(nanos: u64) -> Time {
        Time::from_nanos(nanos)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_full_bucket_gives_its_size_and_the_burst_once() {
        let mut bucket = bucket(100, SECOND, 50);
        assert_eq!(bucket.available(at(0)), 150);
        bucket.take(at(0), 150);
        assert_eq!((bucket.available(at(0)), bucket.is_open(at(0))), (0, false));
        assert_eq!(bucket.available(at(10_000_000)), 1);
        assert_eq!(bucket.available(at(10_000_000_000)), 100, "the burst does not come back");
    }

    #[test]
    fn a_frame_larger_than_the_bucket_passes_and_is_paid_off() {
        let mut bucket = bucket(100, SECOND, 0);
        assert!(bucket.is_open(at(0)));
        bucket.take(at(0), 350);
        assert_eq!(bucket.ready_at(1), at(2_510_000_000));
        assert!(!bucket.is_open(at(2_500_000_000)));
        assert!(bucket.is_open(at(2_500_000_001)));
        assert_eq!(bucket.available(at(2_510_000_000)), 1);
    }

    #[test]
    fn more_than_the_bucket_holds_is_not_waited_for() {
        let mut bucket = bucket(100, SECOND, 0);
        bucket.take(at(0), 100);
        assert_eq!(bucket.ready_at(1_000), at(1_000_000_000));
    }

    #[test]
    fn time_that_runs_backwards_adds_nothing() {
        let mut bucket = bucket(100, SECOND, 0);
        bucket.take(at(5_000_000_000), 100);
        assert_eq!(bucket.available(at(4_000_000_000)), 0);
        assert_eq!(bucket.available(at(5_500_000_000)), 50);
    }

    #[test]
    fn the_largest_numbers_are_no_trouble() {
        let mut bucket = bucket(u64::MAX, Duration::MAX, u64::MAX);
        for now in [0, 1, u64::MAX] {
            bucket.take(at(now), u64::MAX);
            let _ = (bucket.available(at(now)), bucket.ready_at(u64::MAX), bucket.refilled_in(Duration::MAX));
        }
    }

    #[test]
    fn a_replacement_keeps_the_debt_and_gives_nothing_away() {
        let mut bucket = bucket(100, SECOND, 0);
        bucket.take(at(0), 300);
        let config = BucketConfig { size: 1_000, refill_time: Duration::from_millis(100), one_time_burst: 0 };
        bucket.replace(&config, at(0), false);
        assert_eq!(bucket.ready_at(1), at(20_100_000), "200 tokens at ten thousand a second, and one");
        let smaller = BucketConfig { size: 10, refill_time: SECOND, one_time_burst: 5 };
        bucket.replace(&smaller, at(1_000_000_000), true);
        assert_eq!(bucket.available(at(1_000_000_000)), 15);
    }

    /// 1 Mbit/s to 100 Gbit/s, in bytes.
    fn rates() -> impl Strategy<Value = (u64, u64)> {
        (125_000u64..12_500_000_000, 1u64..3_000).prop_map(|(rate, ms)| ((rate * ms / 1000).max(1), ms))
    }

    proptest! {
        /// Whoever takes whenever the bucket is open gets the bound of every window and no more, and over the whole time
        /// no less than the rate.
        #[test]
        fn keeps_the_rate_over_every_window(
            (size, ms) in rates(),
            burst in 0u64..1_000_000,
            steps in prop::collection::vec((0u64..3_000_000, 1u64..70_000), 1..200),
        ) {
            let refill = Duration::from_millis(ms);
            let mut bucket = bucket(size, refill, burst);
            let (mut now, mut taken) = (0, vec![]);
            for (nanos, frame) in steps {
                now += nanos;
                // Greedy: waits no longer than it must.
                now = now.max(bucket.ready_at(1).as_nanos());
                while bucket.is_open(at(now)) && taken.len() < 20_000 {
                    bucket.take(at(now), frame);
                    taken.push((now, frame));
                }
            }
            let gained = |nanos: u64| u128::from(nanos) * u128::from(size) / refill.as_nanos();
            for first in (0..taken.len()).step_by((taken.len() / 16).max(1)) {
                let mut sum = 0u128;
                for (when, frame) in &taken[first..] {
                    let bound = u128::from(size) + u128::from(burst) + gained(when - taken[first].0) + 70_000;
                    sum += u128::from(*frame);
                    prop_assert!(sum <= bound, "{sum} > {bound}");
                }
            }
        }

        /// Taking all there is, at any times no further apart than a refill, gives the rate exactly: no drift.
        #[test]
        fn nothing_is_lost_between(
            (size, ms) in rates(),
            steps in prop::collection::vec(1u64..1_000_000, 1..1_000),
        ) {
            let refill = Duration::from_millis(ms);
            let mut bucket = bucket(size, refill, 0);
            let (mut now, mut total) = (0, 0u128);
            for nanos in steps {
                let available = bucket.available(at(now));
                bucket.take(at(now), available);
                total += u128::from(available);
                now += nanos;
            }
            total += u128::from(bucket.available(at(now)));
            prop_assert_eq!(total, u128::from(size) + u128::from(now) * u128::from(size) / refill.as_nanos());
        }

        /// At the time that it says there is what was asked for, and a nanosecond before there was not.
        #[test]
        fn is_ready_when_it_says((size, ms) in rates(), debt in 0u64..1_000_000_000, wanted in 1u64..1_000_000) {
            let mut bucket = bucket(size, Duration::from_millis(ms), 0);
            bucket.take(at(0), size.saturating_add(debt));
            let ready = bucket.ready_at(wanted);
            let mut early = bucket.clone();
            prop_assert!(bucket.available(ready) >= wanted.min(size));
            prop_assert!(early.available(at(ready.as_nanos() - 1)) < wanted.min(size));
        }
    }
}
