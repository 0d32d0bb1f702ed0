//! Names bound to addresses by this sandbox's own DNS answers.
//!
//! The gate inserts a pin for every address of an answer before the answer reaches the guest, and asks which names decide when
//! a flow to an address is decided. A pin lives for its TTL, at least for a floor; a flow that outlives its pin goes on, a
//! new one needs a live pin. The names of pins that are gone are kept for a while to explain denials (see `former.rs`).
//!
//! Bounds: [`Pins::MAX_PINS`] in all and [`Pins::MAX_PER_NAME`] addresses for one name. At a bound the pin that has been idle
//! longest makes room. Idle means neither refreshed nor looked up for [`Pins::IDLE`]; while no pin is idle, [`Pins::insert`]
//! refuses and the answer has to become SERVFAIL.
//!
//! A content network puts thousands of names on one address, so nothing here walks over the names of an address for each flow
//! to it. Each address keeps *memos*: for a class of services, the few names that decide as all of them do (see `weigh.rs`). A
//! name that was pinned since is added to a memo when it is asked for next; a memo is thrown away when one of its names goes.
//! Of names that weigh the same a memo holds the youngest, which as a rule goes last.
//!
//! The longest idle pin is found with a queue in the order of insertion: a pin at its front that was touched after it was
//! queued goes to the back again (second chance), at most [`SECOND_CHANCES`] per insertion, so that a flood of names costs a
//! bounded amount of work.

mod former;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use cofferdam_model::{DomainName, Protocol, Time};

use crate::pins::former::Former;
use crate::policy::Identity;
use crate::table::ports::{Service, ServiceClass};
use crate::{PinnedName, Policy};

/// Queue entries looked at per insertion when the table is full; more than this many pins touched since they were queued
/// means that nearly all of them are in use.
const SECOND_CHANCES: usize = 64;

/// Memos of one address. Domain rules rarely name more than a few sets of ports; with more of them than this, flows to an
/// address with many names may cost a walk over its names again.
const MEMOS: usize = 16;

/// There is no room for another pin and none is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many names are bound to addresses at once")]
pub struct PinsFull;

/// Name to address bindings of one sandbox.
#[derive(Debug)]
pub struct Pins {
    floor: Duration,
    pins: BTreeMap<Serial, Pin>,
    addresses: BTreeMap<IpAddr, Bound>,
    names: BTreeMap<DomainName, BTreeMap<Place, Serial>>,
    expiries: BTreeSet<(Time, Serial)>,
    queue: VecDeque<Queued>,
    next: Serial,
    former: Former,
    /// The policy that the memos are about.
    memos_of: Option<Identity>,
}

/// Pins are numbered in the order in which they were made.
type Serial = u64;

/// Where a name is pinned, and whether as an alias.
type Place = (IpAddr, bool);

#[derive(Debug)]
struct Pin {
    name: PinnedName,
    address: IpAddr,
    expires: Time,
    /// When it was made or refreshed; look-ups are noted by address.
    touched: Time,
}

/// What is known about an address: it has at least one pin.
#[derive(Debug, Default)]
struct Bound {
    pins: BTreeSet<Serial>,
    looked_up: Time,
    memos: BTreeMap<ServiceClass, Memo>,
}

/// The names at an address that decide about one class of services as all that are older than `next` do.
#[derive(Debug, Default)]
struct Memo {
    next: Serial,
    names: Vec<PinnedName>,
}

/// A pin's place in the queue. When there is no such pin (any more), the entry is left over.
#[derive(Debug)]
struct Queued {
    serial: Serial,
    since: Time,
}

impl Pins {
    /// Pins in one sandbox (spec `names.md` §4).
    pub const MAX_PINS: usize = 16_384;
    /// Addresses pinned to one name (spec `names.md` §4).
    pub const MAX_PER_NAME: usize = 1_024;
    /// Shortest life of a pin where nobody said otherwise (spec `names.md` §4, `pin_floor`).
    pub const FLOOR: Duration = Duration::from_secs(60);
    /// How long a pin is kept at least that nobody uses. Whatever the floor: a guest that was told of an address gets this
    /// much time to use it before a flood of other names can take it away.
    pub const IDLE: Duration = Duration::from_secs(60);

    /// No pins. Each will live for `floor` at least.
    #[must_use]
    pub fn new(floor: Duration) -> Pins {
        Pins {
            floor,
            pins: BTreeMap::new(),
            addresses: BTreeMap::new(),
            names: BTreeMap::new(),
            expiries: BTreeSet::new(),
            queue: VecDeque::new(),
            next: 0,
            former: Former::default(),
            memos_of: None,
        }
    }

    /// Pins that are made or prolonged from here on live for `floor` at least.
    pub fn set_floor(&mut self, floor: Duration) {
        self.floor = floor;
    }

    /// Binds `name` to `address` for `ttl`, or prolongs the binding.
    ///
    /// # Errors
    ///
    /// [`PinsFull`] when a bound is reached and no pin is idle; nothing is changed then but that expired pins are dropped.
    pub fn insert(
        &mut self,
        now: Time,
        name: &DomainName,
        alias: bool,
        address: IpAddr,
        ttl: Duration,
    ) -> Result<(), PinsFull> {
        self.expire(now);
        let address = address.to_canonical();
        let expires = now + ttl.max(self.floor);
        let places = self.names.get(name);
        if let Some(serial) = places.and_then(|places| places.get(&(address, alias))).copied() {
            self.refresh(now, serial, expires);
            return Ok(());
        }
        if places.is_some_and(|places| places.len() >= Pins::MAX_PER_NAME) {
            let idlest = self.idlest_of_name(now, name).ok_or(PinsFull)?;
            self.end(now, idlest);
        }
        if self.pins.len() >= Pins::MAX_PINS {
            let idlest = self.idlest(now).ok_or(PinsFull)?;
            self.end(now, idlest);
        }
        if !alias {
            self.former.forget(name, address);
        }
        let serial = self.next;
        self.next += 1;
        self.addresses.entry(address).or_default().pins.insert(serial);
        self.names.entry(name.clone()).or_default().insert((address, alias), serial);
        self.expiries.insert((expires, serial));
        self.queue.push_back(Queued { serial, since: now });
        let name = PinnedName { name: name.clone(), alias };
        self.pins.insert(serial, Pin { name, address, expires, touched: now });
        if self.queue.len() > 2 * Pins::MAX_PINS {
            let pins = &self.pins;
            self.queue.retain(|queued| pins.contains_key(&queued.serial));
        }
        Ok(())
    }

    /// The few names pinned to `peer` at `now` that decide about a flow to it as all of them do: the facts for
    /// [`Policy::check`]. Counts as a use of all the address's pins.
    pub fn deciding(
        &mut self,
        now: Time,
        policy: &Policy,
        protocol: Protocol,
        peer: IpAddr,
        port: Option<u16>,
    ) -> &[PinnedName] {
        self.expire(now);
        self.keep_memos_of(policy);
        let Some(bound) = self.addresses.get_mut(&peer.to_canonical()) else { return &[] };
        bound.looked_up = now;
        let service = Service { protocol, port };
        let Some(class) = policy.class(service) else { return &[] };
        let Bound { pins: serials, memos, .. } = bound;
        let memo = memo(memos, class);
        if memo.next < self.next {
            let mut scales = policy.scales(service);
            memo.names.iter().for_each(|name| scales.add(name));
            let mut unseen = serials.range(memo.next..).filter_map(|serial| self.pins.get(serial)).peekable();
            if unseen.peek().is_some() {
                unseen.for_each(|pin| scales.add(&pin.name));
                memo.names = scales.handful();
            }
            memo.next = self.next;
        }
        &memo.names
    }

    /// The names pinned to `address` at `now`, the youngest first.
    pub fn names_of(&self, now: Time, address: IpAddr) -> impl Iterator<Item = &PinnedName> {
        let bound = self.addresses.get(&address.to_canonical());
        let serials = bound.into_iter().flat_map(|bound| bound.pins.iter().rev());
        let pins = serials.filter_map(|serial| self.pins.get(serial));
        pins.filter(move |pin| now < pin.expires).map(|pin| &pin.name)
    }

    /// Whether `name` is pinned to `address` at `now`, having been asked for itself: as an alias it does not count.
    #[must_use]
    pub fn is_pinned(&self, now: Time, name: &DomainName, address: IpAddr) -> bool {
        let serial = self.names.get(name).and_then(|places| places.get(&(address.to_canonical(), false)));
        serial.and_then(|serial| self.pins.get(serial)).is_some_and(|pin| now < pin.expires)
    }

    /// Drops every pin whose time is over. Optional: insertions and [`Pins::deciding`] do it too.
    pub fn expire(&mut self, now: Time) {
        while let Some((expires, serial)) = self.expiries.first().copied()
            && expires <= now
        {
            self.expiries.pop_first();
            self.end(now, serial);
        }
    }

    /// Names that were pinned to `address`, having been asked for themselves, and are not any more: the one whose pin went last
    /// first. Not all of them, and no reason to allow anything.
    pub fn former_names_of(&self, now: Time, address: IpAddr) -> impl Iterator<Item = &DomainName> {
        self.former.names_of(now, address.to_canonical())
    }

    /// Has the names of every address for which `is_other` says so count as aliases do, until they are asked for again: no
    /// allow rule looks at them any more, deny rules still do.
    pub fn demote(&mut self, now: Time, is_other: impl Fn(IpAddr) -> bool) {
        let is_demoted = |pin: &Pin| !pin.name.alias && is_other(pin.address);
        let demoted: Vec<Serial> =
            self.pins.iter().filter(|(_, pin)| is_demoted(pin)).map(|(serial, _)| *serial).collect();
        for serial in demoted {
            let Some(pin) = self.remove(serial) else { continue };
            // In the place that has just become free.
            let _has_room = self.insert(now, &pin.name.name, true, pin.address, pin.expires.since(now));
        }
    }

    /// How many pins there are, expired ones that were not dropped yet included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pins.len()
    }

    /// Whether there is no pin.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pins.is_empty()
    }

    fn refresh(&mut self, now: Time, serial: Serial, expires: Time) {
        let Some(pin) = self.pins.get_mut(&serial) else { return };
        pin.touched = now;
        if pin.expires < expires {
            self.expiries.remove(&(pin.expires, serial));
            self.expiries.insert((expires, serial));
            pin.expires = expires;
        }
    }

    /// Another policy may weigh the names otherwise.
    fn keep_memos_of(&mut self, policy: &Policy) {
        if self.memos_of.as_ref() != Some(policy.identity()) {
            self.addresses.values_mut().for_each(|bound| bound.memos.clear());
            self.memos_of = Some(policy.identity().clone());
        }
    }

    fn touched(&self, pin: &Pin) -> Time {
        self.addresses.get(&pin.address).map_or(pin.touched, |bound| bound.looked_up.max(pin.touched))
    }

    fn idlest_of_name(&self, now: Time, name: &DomainName) -> Option<Serial> {
        let pins = self.names.get(name)?.values().filter_map(|serial| Some((*serial, self.pins.get(serial)?)));
        let (touched, serial) = pins.map(|(serial, pin)| (self.touched(pin), serial)).min()?;
        is_idle(now, touched).then_some(serial)
    }

    /// The front of the queue after second chances; see the module documentation.
    fn idlest(&mut self, now: Time) -> Option<Serial> {
        let mut chances = SECOND_CHANCES;
        while chances > 0 {
            let mut queued = self.queue.pop_front()?;
            let Some(touched) = self.pins.get(&queued.serial).map(|pin| self.touched(pin)) else { continue };
            if is_idle(now, touched) {
                return Some(queued.serial);
            }
            if touched == queued.since {
                // Nobody used it since it was queued, and it is not idle yet: what was queued later is not idle either.
                self.queue.push_front(queued);
                return None;
            }
            queued.since = touched;
            self.queue.push_back(queued);
            chances -= 1;
        }
        None
    }

    /// Drops a pin, and keeps in mind that it was there.
    fn end(&mut self, now: Time, serial: Serial) {
        if let Some(pin) = self.remove(serial)
            && !pin.name.alias
        {
            self.former.insert(now, &pin.name.name, pin.address);
        }
    }

    fn remove(&mut self, serial: Serial) -> Option<Pin> {
        let pin = self.pins.remove(&serial)?;
        self.expiries.remove(&(pin.expires, serial));
        if let Some(bound) = self.addresses.get_mut(&pin.address) {
            bound.pins.remove(&serial);
            bound.memos.retain(|_, memo| !memo.names.contains(&pin.name));
            if bound.pins.is_empty() {
                self.addresses.remove(&pin.address);
            }
        }
        if let Some(places) = self.names.get_mut(&pin.name.name) {
            places.remove(&(pin.address, pin.name.alias));
            if places.is_empty() {
                self.names.remove(&pin.name.name);
            }
        }
        Some(pin)
    }
}

fn is_idle(now: Time, touched: Time) -> bool {
    now.since(touched) >= Pins::IDLE
}

/// The memo for `class`, made where missing; at the bound another one is forgotten.
fn memo(memos: &mut BTreeMap<ServiceClass, Memo>, class: ServiceClass) -> &mut Memo {
    if memos.len() >= MEMOS && !memos.contains_key(&class) {
        memos.pop_first();
    }
    memos.entry(class).or_default()
}
