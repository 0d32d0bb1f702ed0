//! Answers that are remembered for as long as they say.
//!
//! The cache keeps upstreams' messages as they came. Whoever takes one out reads, checks and pins it like a new one, so
//! that a remembered answer is never less checked than a fresh one. Only whole answers of the configured resolvers come
//! in; what they say about how long they live is in [`Answer::life`](crate::answer::Answer::life).
//!
//! Limits: [`MAX_ENTRIES`] answers and [`MAX_BYTES`]. At either, the answer that nobody asked for longest goes, so that a
//! flood of names costs the flooder its own memory and no more. An expired answer goes when it is asked for, or so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::Time;

use crate::answer::Question;

/// Answers of one sandbox. A browser or a package manager asks for some hundred names in a run.
const MAX_ENTRIES: usize = 4096;
/// Bytes of one sandbox, names and bookkeeping included: a fraction of what the gateway may have resident.
const MAX_BYTES: usize = 2 * 1024 * 1024;
/// What an answer costs beside its message and its name, roughly: two nodes' worth of ordered maps.
const OVERHEAD: usize = 160;

/// Everything that makes two questions have the same answer. The transport is not part of it: what is kept is whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CacheKey {
    pub(crate) question: Question,
    /// RD, AD and CD as they are sent.
    pub(crate) flags: u16,
    pub(crate) dnssec_ok: bool,
}

/// A remembered answer.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    /// As the upstream sent it.
    pub(crate) message: Arc<[u8]>,
    pub(crate) age: Duration,
    pub(crate) left: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: BTreeMap<Arc<CacheKey>, Entry>,
    /// By when they were last asked for.
    by_use: BTreeMap<Use, Arc<CacheKey>>,
    bytes: usize,
    next_use: Use,
}

/// Counts questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Use(u64);

#[derive(Debug)]
struct Entry {
    message: Arc<[u8]>,
    since: Time,
    until: Time,
    used: Use,
}

impl Cache {
    /// The answer to `key`, if it is remembered and still lives.
    pub(crate) fn look_up(&mut self, now: Time, key: &CacheKey) -> Option<Hit> {
        let entry = self.entries.get_mut(key)?;
        if entry.until <= now {
            self.remove(key);
            return None;
        }
        let shared = self.by_use.remove(&entry.used)?;
        entry.used = self.next_use;
        self.by_use.insert(entry.used, shared);
        self.next_use.0 += 1;
        Some(Hit { message: Arc::clone(&entry.message), age: now.since(entry.since), left: entry.until.since(now) })
    }

    /// Remembers `message` for `life`, in place of what was remembered for the same question.
    pub(crate) fn insert(&mut self, now: Time, key: CacheKey, message: &[u8], life: Duration) {
        self.remove(&key);
        let cost = cost(&key, message);
        if life.is_zero() || cost > MAX_BYTES {
            return;
        }
        while self.entries.len() >= MAX_ENTRIES || self.bytes + cost > MAX_BYTES {
            let Some((_, oldest)) = self.by_use.first_key_value() else { break };
            let oldest = Arc::clone(oldest);
            self.remove(&oldest);
        }
        let key = Arc::new(key);
        let used = self.next_use;
        self.next_use.0 += 1;
        self.bytes += cost;
        self.by_use.insert(used, Arc::clone(&key));
        self.entries.insert(key, Entry { message: message.into(), since: now, until: now + life, used });
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.by_use.clear();
        self.bytes = 0;
    }

    fn remove(&mut self, key: &CacheKey) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.by_use.remove(&entry.used);
        self.bytes -= cost(key, &entry.message);
    }
}

fn cost(key: &CacheKey, message: &[u8]) -> usize {
    message.len() + key.question.name.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u32) -> CacheKey {
        let name = number.to_be_bytes().to_vec();
        CacheKey { question: Question { name, qtype: 1 }, flags: 0x0100, dnssec_ok: false }
    }

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn remembers_until_the_end_of_its_life_and_no_longer() {
        let mut cache = Cache::default();
        cache.insert(at(10), key(1), b"answer", MINUTE);
        let hit = cache.look_up(at(69), &key(1)).unwrap();
        assert_eq!((&*hit.message, hit.age.as_secs(), hit.left.as_secs()), (&b"answer"[..], 59, 1));
        assert!(cache.look_up(at(70), &key(1)).is_none());
        assert_eq!((cache.entries.len(), cache.by_use.len(), cache.bytes), (0, 0, 0));
    }

    #[test]
    fn what_lives_for_no_time_is_not_kept_and_replaces_what_was() {
        let mut cache = Cache::default();
        cache.insert(at(0), key(1), b"first", MINUTE);
        cache.insert(at(0), key(1), b"second", Duration::ZERO);
        assert!(cache.look_up(at(0), &key(1)).is_none());
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let mut cache = Cache::default();
        cache.insert(at(0), key(1), b"answer", MINUTE);
        let CacheKey { question, flags, dnssec_ok } = key(1);
        let others = [
            CacheKey { flags: 0x0110, ..key(1) },
            CacheKey { dnssec_ok: true, ..key(1) },
            CacheKey { question: Question { qtype: 28, ..question }, flags, dnssec_ok },
        ];
        for other in others {
            assert!(cache.look_up(at(0), &other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn at_the_bound_of_entries_the_one_not_asked_for_longest_goes() {
        let mut cache = Cache::default();
        for number in 0..u32::try_from(MAX_ENTRIES).unwrap() {
            cache.insert(at(0), key(number), b"answer", MINUTE);
        }
        assert!(cache.look_up(at(1), &key(0)).is_some());
        cache.insert(at(1), key(u32::MAX), b"answer", MINUTE);
        assert!(cache.look_up(at(1), &key(0)).is_some());
        assert!(cache.look_up(at(1), &key(1)).is_none());
        assert_eq!(cache.entries.len(), MAX_ENTRIES);
    }

    #[test]
    fn large_answers_are_bounded_by_their_bytes() {
        let mut cache = Cache::default();
        let large = vec![0; 65_535];
        for number in 0..1000 {
            cache.insert(at(0), key(number), &large, MINUTE);
            assert!(cache.bytes <= MAX_BYTES);
        }
        assert!(cache.look_up(at(0), &key(999)).is_some());
        assert!(cache.look_up(at(0), &key(0)).is_none());
    }

    proptest! {
        /// The books stay right whatever happens, and a hit is always the last message that was put in.
        #[test]
        fn the_books_balance(steps in prop::collection::vec((0..8_u32, 0..3000_usize, 0..90_u64, any::<bool>()), 1..200)) {
            let mut cache = Cache::default();
            let mut model: BTreeMap<u32, (usize, u64)> = BTreeMap::new();
            let mut now = 0;
            for (number, length, life, insert) in steps {
                now += 7;
                if insert {
                    cache.insert(at(now), key(number), &vec![7; length], Duration::from_secs(life));
                    model.insert(number, (length, now + life));
                } else {
                    let expected = model.get(&number).filter(|(_, until)| *until > now).map(|(length, _)| *length);
                    prop_assert_eq!(cache.look_up(at(now), &key(number)).map(|hit| hit.message.len()), expected);
                }
                prop_assert_eq!(cache.entries.len(), cache.by_use.len());
                let bytes: usize = cache.entries.iter().map(|(key, entry)| cost(key, &entry.message)).sum();
                prop_assert_eq!(bytes, cache.bytes);
            }
        }
    }
}
