//! The flow table: entries found by key or by flow number, and kept in lists in the order of their last use.
//!
//! Entries lie in a slab and are linked into one of `LISTS` lists; touching one moves it to the back of a list, so the
//! front of each list is its longest idle entry. Every operation takes constant time, and nothing ever walks a hash
//! map, so that equal inputs give equal outputs. All entries of a list have the same time to live: looking at its front
//! alone tells what expires next.

use std::collections::HashMap;
use std::hash::Hash;

use cofferdam_model::{FlowId, Time};

use crate::hash::Seeded;

/// Where an entry lies; valid until the entry is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(usize);

/// One entry, taken out.
#[derive(Debug)]
pub(crate) struct Removed<V> {
    pub(crate) flow: FlowId,
    pub(crate) value: V,
}

#[derive(Debug)]
struct Entry<K, V> {
    key: K,
    flow: FlowId,
    touched: Time,
    list: usize,
    previous: Option<usize>,
    next: Option<usize>,
    value: V,
}

#[derive(Debug, Clone, Copy, Default)]
struct List {
    front: Option<usize>,
    back: Option<usize>,
    len: usize,
}

#[derive(Debug)]
pub(crate) struct Table<K, V, const LISTS: usize> {
    keys: HashMap<K, usize, Seeded>,
    flows: HashMap<u64, usize, Seeded>,
    slab: Vec<Option<Entry<K, V>>>,
    free: Vec<usize>,
    lists: [List; LISTS],
}

impl<K: Hash + Eq + Copy, V, const LISTS: usize> Table<K, V, LISTS> {
    pub(crate) fn new(hasher: Seeded) -> Table<K, V, LISTS> {
        Table {
            keys: HashMap::with_hasher(hasher),
            flows: HashMap::with_hasher(hasher),
            slab: Vec::new(),
            free: Vec::new(),
            lists: [List::default(); LISTS],
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn list_len(&self, list: usize) -> usize {
        self.lists.get(list).map_or(0, |list| list.len)
    }

    pub(crate) fn find(&self, key: &K) -> Option<Slot> {
        self.keys.get(key).copied().map(Slot)
    }

    pub(crate) fn find_flow(&self, flow: FlowId) -> Option<Slot> {
        self.flows.get(&flow.0).copied().map(Slot)
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<(FlowId, &mut V)> {
        self.entry_mut(slot.0).map(|entry| (entry.flow, &mut entry.value))
    }

    /// The longest idle entry of `list`, and since when.
    pub(crate) fn front(&self, list: usize) -> Option<(Slot, Time)> {
        let at = self.lists.get(list)?.front?;
        self.slab.get(at)?.as_ref().map(|entry| (Slot(at), entry.touched))
    }

    /// Every entry of `list`, the longest idle one first.
    pub(crate) fn slots(&self, list: usize) -> Vec<Slot> {
        let entry = |at: usize| self.slab.get(at)?.as_ref();
        let front = self.lists.get(list).and_then(|list| list.front);
        std::iter::successors(front, |at| entry(*at)?.next).map(Slot).collect()
    }

    /// Adds an entry at the back of `list`. A former entry with this key is the caller's to remove first.
    pub(crate) fn insert(&mut self, now: Time, list: usize, key: K, flow: FlowId, value: V) -> Slot {
        let entry = Entry { key, flow, touched: now, list, previous: None, next: None, value };
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                self.slab.push(None);
                self.slab.len() - 1
            }
        };
        if let Some(place) = self.slab.get_mut(at) {
            *place = Some(entry);
        }
        self.keys.insert(key, at);
        self.flows.insert(flow.0, at);
        self.link(at, list);
        Slot(at)
    }

    /// Moves an entry to the back of `list`.
    pub(crate) fn touch(&mut self, now: Time, slot: Slot, list: usize) {
        let Some(entry) = self.entry_mut(slot.0) else { return };
        entry.touched = now;
        if entry.list == list && entry.next.is_none() {
            return;
        }
        self.unlink(slot.0);
        self.link(slot.0, list);
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Removed<V>> {
        self.unlink(slot.0);
        let entry = self.slab.get_mut(slot.0)?.take()?;
        self.free.push(slot.0);
        self.keys.remove(&entry.key);
        self.flows.remove(&entry.flow.0);
        Some(Removed { flow: entry.flow, value: entry.value })
    }

    fn entry_mut(&mut self, at: usize) -> Option<&mut Entry<K, V>> {
        self.slab.get_mut(at)?.as_mut()
    }

    fn link(&mut self, at: usize, list: usize) {
        debug_assert!(list < LISTS, "list {list} of {LISTS}");
        let Some(ends) = self.lists.get_mut(list) else { return };
        let previous = ends.back.replace(at);
        if previous.is_none() {
            ends.front = Some(at);
        }
        ends.len += 1;
        if let Some(entry) = self.entry_mut(at) {
            entry.list = list;
            entry.previous = previous;
            entry.next = None;
        }
        if let Some(entry) = previous.and_then(|previous| self.entry_mut(previous)) {
            entry.next = Some(at);
        }
    }

    fn unlink(&mut self, at: usize) {
        let Some(entry) = self.entry_mut(at) else { return };
        let (list, previous, next) = (entry.list, entry.previous.take(), entry.next.take());
        match previous.and_then(|previous| self.entry_mut(previous)) {
            Some(entry) => entry.next = next,
            None => {
                if let Some(ends) = self.lists.get_mut(list) {
                    ends.front = next;
                }
            }
        }
        match next.and_then(|next| self.entry_mut(next)) {
            Some(entry) => entry.previous = previous,
            None => {
                if let Some(ends) = self.lists.get_mut(list) {
                    ends.back = previous;
                }
            }
        }
        if let Some(ends) = self.lists.get_mut(list) {
            ends.len -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Insert(u64, usize),
        Touch(u64, usize),
        Remove(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = 0..12u64;
        let step = prop_oneof![
            (key.clone(), 0..2usize).prop_map(|(key, list)| Step::Insert(key, list)),
            (key.clone(), 0..2usize).prop_map(|(key, list)| Step::Touch(key, list)),
            key.prop_map(Step::Remove),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// The model is a plain list per list, in the order of last use.
        #[test]
        fn behaves_like_plain_lists(steps in steps()) {
            let mut table: Table<u64, u64, 2> = Table::new(Seeded::new([1, 2]));
            let mut model: [Vec<(u64, Time)>; 2] = [Vec::new(), Vec::new()];
            for (second, step) in (1..).zip(steps) {
                let now = at(second);
                let (Step::Insert(key, _) | Step::Touch(key, _) | Step::Remove(key)) = step;
                let known = model.iter().any(|list| list.iter().any(|(k, _)| *k == key));
                prop_assert_eq!(table.find(&key).is_some(), known);
                prop_assert_eq!(table.find_flow(FlowId(key + 100)), table.find(&key));
                let forget = |model: &mut [Vec<(u64, Time)>; 2]| model.iter_mut().for_each(|list| list.retain(|(k, _)| *k != key));
                match (step, table.find(&key)) {
                    (Step::Insert(_, list), None) => {
                        table.insert(now, list, key, FlowId(key + 100), key + 1000);
                        model[list].push((key, now));
                    }
                    (Step::Touch(_, list), Some(slot)) => {
                        table.touch(now, slot, list);
                        forget(&mut model);
                        model[list].push((key, now));
                    }
                    (Step::Remove(_), Some(slot)) => {
                        let removed = table.remove(slot).unwrap();
                        prop_assert_eq!((removed.flow, removed.value), (FlowId(key + 100), key + 1000));
                        forget(&mut model);
                    }
                    (Step::Insert(..), Some(_)) | (Step::Touch(..) | Step::Remove(_), None) => {}
                }
                for (list, expected) in model.iter().enumerate() {
                    prop_assert_eq!(table.list_len(list), expected.len());
                    let front = table.front(list).map(|(slot, touched)| (*table.get_mut(slot).unwrap().1, touched));
                    prop_assert_eq!(front, expected.first().map(|(key, touched)| (key + 1000, *touched)));
                }
                prop_assert_eq!(table.len(), model[0].len() + model[1].len());
            }
            // Emptying from the front visits every entry once, in order.
            for (list, expected) in model.iter().enumerate() {
                let mut order = Vec::new();
                while let Some((slot, touched)) = table.front(list) {
                    order.push((table.remove(slot).unwrap().value - 1000, touched));
                }
                prop_assert_eq!(&order, expected);
            }
            prop_assert_eq!(table.len(), 0);
        }
    }

    #[test]
    fn reuses_the_room_of_removed_entries() {
        let mut table: Table<u64, (), 1> = Table::new(Seeded::new([1, 2]));
        for round in 0..1000 {
            let slot = table.insert(at(round), 0, round, FlowId(round), ());
            assert!(table.remove(slot).is_some());
            assert!(table.remove(slot).is_none());
        }
        assert_eq!(table.slab.len(), 1);
    }
}
