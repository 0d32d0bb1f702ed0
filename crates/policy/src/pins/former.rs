//! Names whose pins are gone, kept to explain denials: nothing here allows anything.
//!
//! Bounds: [`MAX`] names in all, [`MAX_PER_ADDRESS`] at one address, each for [`LIFE`]; the one that went first makes room.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use cofferdam_model::{DomainName, Time};

/// A quarter of the pins there can be. A guest that floods this loses explanations and nothing else.
const MAX: usize = 4_096;

/// Names of one address, of which a denial tells one.
const MAX_PER_ADDRESS: usize = 16;

/// As long as the longest an answer is remembered: a client that keeps an address for longer has read no TTL at all.
const LIFE: Duration = Duration::from_secs(86_400);

#[derive(Debug, Default)]
pub(super) struct Former {
    addresses: BTreeMap<IpAddr, VecDeque<Gone>>,
    /// Every entry by its number, the oldest first.
    order: BTreeMap<u64, (Time, IpAddr)>,
    next: u64,
}

#[derive(Debug)]
struct Gone {
    number: u64,
    name: DomainName,
    forgotten: Time,
}

impl Former {
    /// `name` was pinned to `address` until now.
    pub(super) fn insert(&mut self, now: Time, name: &DomainName, address: IpAddr) {
        self.forget(name, address);
        while let Some((number, (forgotten, oldest))) = self.order.first_key_value().map(|(number, at)| (*number, *at))
            && (forgotten <= now || self.order.len() >= MAX)
        {
            self.remove(oldest, |gone| gone.number == number);
        }
        if let Some(names) = self.addresses.get(&address)
            && names.len() >= MAX_PER_ADDRESS
            && let Some(oldest) = names.front().map(|gone| gone.number)
        {
            self.remove(address, |gone| gone.number == oldest);
        }
        let (number, forgotten) = (self.next, now + LIFE);
        self.next += 1;
        self.order.insert(number, (forgotten, address));
        self.addresses.entry(address).or_default().push_back(Gone { number, name: name.clone(), forgotten });
    }

    /// `name` is pinned to `address` again.
    pub(super) fn forget(&mut self, name: &DomainName, address: IpAddr) {
        self.remove(address, |gone| gone.name == *name);
    }

    /// The names of an address, the one that went last first.
    pub(super) fn names_of(&self, now: Time, address: IpAddr) -> impl Iterator<Item = &DomainName> {
        let names = self.addresses.get(&address).into_iter().flat_map(|names| names.iter().rev());
        names.filter(move |gone| now < gone.forgotten).map(|gone| &gone.name)
    }

    fn remove(&mut self, address: IpAddr, is_meant: impl Fn(&Gone) -> bool) {
        let Some(names) = self.addresses.get_mut(&address) else { return };
        if let Some(gone) = names.iter().position(is_meant).and_then(|at| names.remove(at)) {
            self.order.remove(&gone.number);
        }
        if names.is_empty() {
            self.addresses.remove(&address);
        }
    }
}
