//! Names bound to addresses by this sandbox's own DNS answers.
//!
//! The gate inserts a pin for every address of an answer before the answer reaches the guest, and asks for the names of an
//! address when a flow to it is decided. A pin lives for its TTL, at least [`Pins::FLOOR`]; a flow that outlives its pin goes
//! on, a new one needs a live pin.
//!
//! Bounds: [`Pins::MAX_PINS`] in all, [`Pins::MAX_PER_NAME`] addresses for one name and [`Pins::MAX_PER_ADDRESS`] names on one
//! address. At a bound the pin that has been idle longest makes room. Idle means neither refreshed nor looked up for
//! [`Pins::FLOOR`]; while no pin is idle, [`Pins::insert`] refuses and the answer has to become SERVFAIL.
//!
//! The longest idle pin is found with a queue in the order of insertion: a pin at its front that was touched after it was
//! queued goes to the back again (second chance), at most [`SECOND_CHANCES`] per insertion, so that a flood of names costs a
//! bounded amount of work.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use cofferdam_model::{DomainName, Time};

use crate::PinnedName;

/// Queue entries looked at per insertion when the table is full; more than this many pins touched since they were queued
/// means that nearly all of them are in use.
const SECOND_CHANCES: usize = 64;

/// There is no room for another pin and none is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many names are bound to addresses at once")]
pub struct PinsFull;

/// Name to address bindings of one sandbox.
#[derive(Debug, Default)]
pub struct Pins {
    addresses: BTreeMap<IpAddr, Bound>,
    names: BTreeMap<DomainName, Vec<IpAddr>>,
    queue: VecDeque<Queued>,
    count: usize,
    next_serial: u64,
}

/// The names on one address; `names` and `lives` run in parallel so that `names` can be lent as a slice.
#[derive(Debug, Default)]
struct Bound {
    names: Vec<PinnedName>,
    lives: Vec<Life>,
}

#[derive(Debug, Clone, Copy)]
struct Life {
    expires: Time,
    touched: Time,
    serial: u64,
}

/// A pin's place in the queue. When `serial` is not that of the pin (any more), the pin is gone and the entry is left over.
#[derive(Debug)]
struct Queued {
    serial: u64,
    since: Time,
    address: IpAddr,
    name: PinnedName,
}

impl Pins {
    /// Pins in one sandbox (spec `names.md` §4).
    pub const MAX_PINS: usize = 16_384;
    /// Addresses pinned to one name (spec `names.md` §4).
    pub const MAX_PER_NAME: usize = 1_024;
    /// Names pinned to one address, aliases included. A verdict looks at each of them, so this bounds what one packet costs.
    pub const MAX_PER_ADDRESS: usize = 256;
    /// Shortest life of a pin, and how long an unused one is kept at least (spec `names.md` §4, `pin_floor`).
    pub const FLOOR: Duration = Duration::from_secs(60);

    /// No pins.
    #[must_use]
    pub fn new() -> Pins {
        Pins::default()
    }

    /// Binds `name` to `address` for `ttl`, or prolongs the binding.
    ///
    /// # Errors
    ///
    /// [`PinsFull`] when a bound is reached and no pin is idle; nothing is changed then.
    pub fn insert(
        &mut self,
        now: Time,
        name: &DomainName,
        alias: bool,
        address: IpAddr,
        ttl: Duration,
    ) -> Result<(), PinsFull> {
        let address = address.to_canonical();
        let expires = now + ttl.max(Pins::FLOOR);
        let pinned = PinnedName { name: name.clone(), alias };
        if let Some(life) = self.addresses.get_mut(&address).and_then(|bound| bound.life_mut(&pinned)) {
            life.expires = life.expires.max(expires);
            life.touched = now;
            return Ok(());
        }
        self.make_room(now, name, address)?;
        let bound = self.addresses.entry(address).or_default();
        bound.names.push(pinned.clone());
        let serial = self.next_serial;
        self.next_serial += 1;
        bound.lives.push(Life { expires, touched: now, serial });
        self.names.entry(name.clone()).or_default().push(address);
        self.queue.push_back(Queued { serial, since: now, address, name: pinned });
        self.count += 1;
        if self.queue.len() > 2 * Pins::MAX_PINS {
            self.drop_left_over_entries();
        }
        Ok(())
    }

    /// The names bound to `address` at `now`. Counts as a use of these pins.
    pub fn names_of(&mut self, now: Time, address: IpAddr) -> &[PinnedName] {
        let address = address.to_canonical();
        let expired: Vec<PinnedName> = match self.addresses.get(&address) {
            Some(bound) => bound.expired(now).cloned().collect(),
            None => Vec::new(),
        };
        for name in expired {
            self.remove(address, &name);
        }
        let Some(bound) = self.addresses.get_mut(&address) else { return &[] };
        for life in &mut bound.lives {
            life.touched = now;
        }
        &bound.names
    }

    /// Drops every pin whose time is over. Optional: an expired pin never shows in [`Pins::names_of`]; this gives its memory
    /// back.
    pub fn expire(&mut self, now: Time) {
        let expired: Vec<(IpAddr, PinnedName)> = self
            .addresses
            .iter()
            .flat_map(|(address, bound)| bound.expired(now).map(|name| (*address, name.clone())))
            .collect();
        for (address, name) in expired {
            self.remove(address, &name);
        }
        self.drop_left_over_entries();
    }

    /// How many pins there are, expired ones that were not dropped yet included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no pin.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn make_room(&mut self, now: Time, name: &DomainName, address: IpAddr) -> Result<(), PinsFull> {
        if self.names.get(name).is_some_and(|addresses| addresses.len() >= Pins::MAX_PER_NAME) {
            let (address, pinned) = self.idlest_of_name(now, name).ok_or(PinsFull)?;
            self.remove(address, &pinned);
        }
        if self.addresses.get(&address).is_some_and(|bound| bound.names.len() >= Pins::MAX_PER_ADDRESS) {
            let pinned = self.addresses.get(&address).and_then(|bound| bound.idlest(now)).ok_or(PinsFull)?;
            self.remove(address, &pinned);
        }
        if self.count >= Pins::MAX_PINS {
            let (address, pinned) = self.idlest(now).ok_or(PinsFull)?;
            self.remove(address, &pinned);
        }
        Ok(())
    }

    fn idlest_of_name(&self, now: Time, name: &DomainName) -> Option<(IpAddr, PinnedName)> {
        let of_address = |address: &IpAddr| {
            let bound = self.addresses.get(address)?;
            let matching = bound.names.iter().zip(&bound.lives).filter(|(pinned, _)| pinned.name == *name);
            matching.min_by_key(|(_, life)| life.touched).map(|(pinned, life)| (*address, pinned.clone(), *life))
        };
        let (address, pinned, life) =
            self.names.get(name)?.iter().filter_map(of_address).min_by_key(|(_, _, life)| life.touched)?;
        life.may_go(now).then_some((address, pinned))
    }

    /// The front of the queue after second chances; see the module documentation.
    fn idlest(&mut self, now: Time) -> Option<(IpAddr, PinnedName)> {
        let mut chances = SECOND_CHANCES;
        while chances > 0 {
            let mut queued = self.queue.pop_front()?;
            let Some(life) = life_of(&self.addresses, &queued) else { continue };
            if life.may_go(now) {
                return Some((queued.address, queued.name));
            }
            if life.touched == queued.since {
                // Nobody used it since it was queued, and it is not idle yet: what was queued later is not idle either.
                self.queue.push_front(queued);
                return None;
            }
            queued.since = life.touched;
            self.queue.push_back(queued);
            chances -= 1;
        }
        None
    }

    fn drop_left_over_entries(&mut self) {
        let addresses = &self.addresses;
        self.queue.retain(|queued| life_of(addresses, queued).is_some());
    }

    fn remove(&mut self, address: IpAddr, pinned: &PinnedName) {
        let Some(bound) = self.addresses.get_mut(&address) else { return };
        let Some(at) = bound.names.iter().position(|name| name == pinned) else { return };
        bound.names.swap_remove(at);
        bound.lives.swap_remove(at);
        if bound.names.is_empty() {
            self.addresses.remove(&address);
        }
        if let Some(addresses) = self.names.get_mut(&pinned.name) {
            if let Some(at) = addresses.iter().position(|a| *a == address) {
                addresses.swap_remove(at);
            }
            if addresses.is_empty() {
                self.names.remove(&pinned.name);
            }
        }
        self.count -= 1;
    }
}

/// The pin that a queue entry stands for; `None` when it is gone.
fn life_of<'a>(addresses: &'a BTreeMap<IpAddr, Bound>, queued: &Queued) -> Option<&'a Life> {
    let life = addresses.get(&queued.address)?.life(&queued.name)?;
    (life.serial == queued.serial).then_some(life)
}

impl Bound {
    fn life(&self, pinned: &PinnedName) -> Option<&Life> {
        let at = self.names.iter().position(|name| name == pinned)?;
        self.lives.get(at)
    }

    fn life_mut(&mut self, pinned: &PinnedName) -> Option<&mut Life> {
        let at = self.names.iter().position(|name| name == pinned)?;
        self.lives.get_mut(at)
    }

    fn expired(&self, now: Time) -> impl Iterator<Item = &PinnedName> {
        self.names.iter().zip(&self.lives).filter(move |(_, life)| life.expires <= now).map(|(name, _)| name)
    }

    fn idlest(&self, now: Time) -> Option<PinnedName> {
        let (name, life) = self.names.iter().zip(&self.lives).min_by_key(|(_, life)| life.touched)?;
        life.may_go(now).then(|| name.clone())
    }
}

impl Life {
    fn may_go(self, now: Time) -> bool {
        self.expires <= now || now.since(self.touched) >= Pins::FLOOR
    }
}
