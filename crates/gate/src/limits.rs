//! How fast all flows of a sandbox together may be, and how much they may carry: token buckets and budgets.
//!
//! # Theory of operation
//!
//! A *rate* is a [`TokenBucket`] of one [`Way`], for bytes of payload or for operations (datagrams, ICMP messages, attempts to
//! connect). A *budget* is a number of bytes for the flows that it is about; a flow knows its budgets as a set of bits.
//!
//! | Who | Asks | And when there is nothing |
//! |---|---|---|
//! | the gate, for datagrams and ICMP messages | [`Limits::admit`] | drops them |
//! | the gate, for a SYN | [`Limits::admit_connection`] | drops it: the client's kernel sends it again |
//! | the shell, before it reads from a TCP socket | [`Limits::grant`] | stops reading, and looks again at [`Limits::ready_at`] |
//!
//! While a reader waits, datagrams get half of what comes back at most, so that neither starves the other. A reader is
//! not woken for less than a [`Limits::quantum`], which keeps the number of wake-ups and the size of segments in bounds.
//!
//! A budget is *used up* once something finds no room in it; then its flows end and it admits no more. What exactly fits passes.
//!
//! Left out on purpose: what the gateway says itself (DNS, echo replies of its own, refusals). Look-ups have bounds of
//! their own, and a download must not keep the next name from being found; a budget of the whole run counts them.
//!
//! Limits: [`MAX_BUDGETS`] budgets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use cofferdam_model::{
    BucketConfig, BudgetConfig, Direction, DomainName, FlowId, LimitKind, LimitsConfig, RateLimiter, Time,
};
use cofferdam_policy::{Policy, is_among};

use crate::bucket::TokenBucket;

/// Budgets of one sandbox: one bit each.
pub const MAX_BUDGETS: usize = 64;
/// A reader waits for this much time's worth of bytes: a thousand wake-ups a second at most.
const QUANTUM: Duration = Duration::from_millis(1);
/// And for a full segment at least, where the bucket holds two.
const SEGMENT: u64 = 1_448;

/// Which way bytes go, whoever has opened the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Out of the sandbox.
    Egress,
    /// Into the sandbox.
    Ingress,
}

/// What may be read from a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// As much as there is.
    Unlimited,
    /// As many bytes as this; not zero.
    Bytes(u64),
    /// Nothing before the rate allows it.
    Wait,
    /// Nothing any more: a budget has no room.
    UsedUp,
}

/// The budgets that a flow counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BudgetSet(u64);

/// The limits of a sandbox.
#[derive(Debug, Default)]
pub struct Limits {
    egress: Rates,
    ingress: Rates,
    budgets: Vec<Budget>,
    /// Of the TCP flows that the shell relays, where there are any.
    flows: BTreeMap<FlowId, BudgetSet>,
    /// Neither rates nor budgets.
    unlimited: bool,
    /// Something happened that has not been told.
    news: bool,
}

/// What is to be told.
#[derive(Debug)]
pub(crate) struct News {
    /// Rates that were in the way: the size of the bucket, and how often.
    pub(crate) rates: Vec<(LimitKind, u64, u64)>,
    /// Budgets that were used up: their bytes, and what they are in words.
    pub(crate) budgets: Vec<(u64, String)>,
}

#[derive(Debug, Default)]
struct Rates {
    config: RateLimiter,
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
    /// Since when a reader waits for bytes, and what datagrams have taken since.
    waiting: Option<(Time, u64)>,
    /// How often bytes and operations were not to be had.
    refused: [u64; 2],
}

#[derive(Debug)]
struct Budget {
    config: BudgetConfig,
    spent: u64,
    used_up: bool,
    told: bool,
}

impl Way {
    /// Both.
    pub const ALL: [Way; 2] = [Way::Egress, Way::Ingress];
}

impl Limits {
    /// The limits of `config`, full buckets and untouched budgets.
    #[must_use]
    pub fn new(config: &LimitsConfig, now: Time) -> Limits {
        let mut limits = Limits::default();
        limits.replace(now, config);
        limits
    }

    /// No limits.
    #[must_use]
    pub fn none() -> Limits {
        Limits { unlimited: true, ..Limits::default() }
    }

    /// Puts other limits in the place of these. Debts stay, and what a budget has spent stays with it where the new ones have
    /// one for the same destinations and direction. The budgets of live flows have to be found anew.
    pub fn replace(&mut self, now: Time, config: &LimitsConfig) {
        self.egress.replace(now, &config.rates.egress);
        self.ingress.replace(now, &config.rates.ingress);
        let mut former = std::mem::take(&mut self.budgets);
        for config in config.budgets.iter().take(MAX_BUDGETS) {
            let is_same = |budget: &Budget| {
                budget.config.destinations == config.destinations && budget.config.direction == config.direction
            };
            let known = former.iter().position(is_same).map(|at| former.swap_remove(at));
            let (spent, was) = known.map_or((0, false), |known| (known.spent, known.used_up));
            let used_up = was && spent >= config.bytes;
            self.budgets.push(Budget { config: config.clone(), spent, used_up, told: used_up });
        }
        self.flows.clear();
        self.unlimited = self.egress.is_unlimited() && self.ingress.is_unlimited() && self.budgets.is_empty();
    }

    /// Whether nothing is limited: then nobody needs to ask.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.unlimited
    }

    /// What may be read from the socket of `flow` whose bytes go `way`. Whoever gets [`Grant::Wait`] says so with
    /// [`Limits::wait`].
    pub fn grant(&mut self, now: Time, flow: FlowId, way: Way) -> Grant {
        let left = self.left(self.of(flow), way);
        if left == Some(0) {
            return Grant::UsedUp;
        }
        let rates = self.rates(way);
        let quantum = rates.quantum();
        let Some(bucket) = &mut rates.bandwidth else { return left.map_or(Grant::Unlimited, Grant::Bytes) };
        match bucket.available(now) {
            available if available >= quantum => Grant::Bytes(available.min(left.unwrap_or(u64::MAX))),
            _ => Grant::Wait,
        }
    }

    /// Bytes that may be read now, whatever the flow.
    pub fn available(&mut self, now: Time, way: Way) -> u64 {
        self.rates(way).bandwidth.as_mut().map_or(u64::MAX, |bucket| bucket.available(now))
    }

    /// `bytes` were read from the socket of `flow`.
    pub fn spend(&mut self, now: Time, flow: FlowId, way: Way, bytes: u64) {
        let budgets = self.of(flow);
        self.charge(budgets, way, bytes);
        let rates = self.rates(way);
        if let Some(bucket) = &mut rates.bandwidth {
            bucket.take(now, bytes);
        }
        // Readers have had something: the share of datagrams begins anew, so that none is saved up.
        if rates.waiting.is_some() {
            rates.waiting = Some((now, 0));
        }
    }

    /// A reader has to wait.
    pub fn wait(&mut self, now: Time, way: Way) {
        self.news = true;
        let rates = self.rates(way);
        rates.refuse(0, 1);
        rates.waiting.get_or_insert((now, 0));
    }

    /// No reader waits any more.
    pub fn stop_waiting(&mut self, way: Way) {
        self.rates(way).waiting = None;
    }

    /// A reader found no room in the budgets of `flow`, and there was something to read.
    pub fn exceed(&mut self, flow: FlowId, way: Way) {
        let budgets = self.of(flow);
        self.use_up(budgets, way, 1);
    }

    /// When [`Limits::grant`] will have something for a reader that waits.
    #[must_use]
    pub fn ready_at(&self, way: Way) -> Time {
        let rates = match way {
            Way::Egress => &self.egress,
            Way::Ingress => &self.ingress,
        };
        rates.bandwidth.as_ref().map_or(Time::ZERO, |bucket| bucket.ready_at(rates.quantum()))
    }

    /// The bytes that a reader waits for, and gets at a time when others wait too.
    #[must_use]
    pub fn quantum(&self, way: Way) -> u64 {
        match way {
            Way::Egress => self.egress.quantum(),
            Way::Ingress => self.ingress.quantum(),
        }
    }

    /// How many of `count` datagrams of `size` bytes may pass; all but the last may be smaller. A datagram that is larger than
    /// what is there passes, and is paid off.
    pub(crate) fn admit(&mut self, now: Time, budgets: BudgetSet, way: Way, count: usize, size: usize) -> usize {
        if self.unlimited {
            return count;
        }
        let (count, size) = (count as u64, size as u64);
        let left = self.left(budgets, way);
        let rates = self.rates(way);
        let by_ops = rates.ops.as_mut().map_or(count, |ops| ops.available(now).min(count));
        if by_ops < count {
            rates.refuse(1, count - by_ops);
        }
        let by_bytes = rates.datagrams_within(now, by_ops, size);
        if by_bytes < by_ops {
            rates.refuse(0, by_ops - by_bytes);
        }
        self.news |= by_bytes < count;
        let by_budget = left.and_then(|left| left.checked_div(size)).map_or(by_bytes, |most| most.min(by_bytes));
        let bytes = by_budget.saturating_mul(size);
        self.rates(way).take(now, by_budget, bytes);
        self.charge(budgets, way, bytes);
        if by_budget < by_bytes {
            self.use_up(budgets, way, size);
        }
        usize::try_from(by_budget).unwrap_or(usize::MAX)
    }

    /// Whether a connection may be attempted now.
    pub(crate) fn admit_connection(&mut self, now: Time, way: Way) -> bool {
        let Some(ops) = &mut self.rates(way).ops else { return true };
        let is_open = ops.available(now) > 0;
        if is_open {
            ops.take(now, 1);
        } else {
            self.rates(way).refuse(1, 1);
            self.news = true;
        }
        is_open
    }

    /// Counts a message of the gateway's DNS against the budgets of the whole run. `false`: there is no room for it.
    pub fn admit_dns(&mut self, way: Way, bytes: usize) -> bool {
        if self.budgets.is_empty() {
            return true;
        }
        let whole = self.set(|budget| budget.config.destinations.is_empty());
        let bytes = bytes as u64;
        let has_room = self.left(whole, way).is_none_or(|left| left >= bytes);
        if has_room {
            self.charge(whole, way, bytes);
        } else {
            self.use_up(whole, way, bytes);
        }
        has_room
    }

    /// The budgets of a flow to `address`, by these names.
    pub(crate) fn budgets_for(&self, policy: &Policy, address: IpAddr, names: &[DomainName]) -> BudgetSet {
        self.set(|budget| is_among(&budget.config.destinations, policy.classifier(), address, names))
    }

    /// Those of the whole run.
    pub(crate) fn whole_run(&self) -> BudgetSet {
        self.set(|budget| budget.config.destinations.is_empty())
    }

    /// The first of these budgets that is used up, or has nothing left, in words.
    pub(crate) fn in_the_way(&self, budgets: BudgetSet) -> Option<String> {
        let spent = |budget: &&Budget| budget.used_up || budget.spent >= budget.config.bytes;
        self.members(budgets).find(spent).map(Budget::text)
    }

    /// The shell relays this flow from here on.
    pub(crate) fn open(&mut self, flow: FlowId, budgets: BudgetSet) {
        if budgets != BudgetSet::default() {
            self.flows.insert(flow, budgets);
        }
    }

    pub(crate) fn close(&mut self, flow: FlowId) {
        self.flows.remove(&flow);
    }

    pub(crate) fn has_budgets(&self) -> bool {
        !self.budgets.is_empty()
    }

    /// Whether there is something to tell.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.news
    }

    /// What happened since this was last asked.
    pub(crate) fn take_news(&mut self) -> News {
        self.news = false;
        let kinds =
            [[LimitKind::EgressBandwidth, LimitKind::EgressOps], [LimitKind::IngressBandwidth, LimitKind::IngressOps]];
        let mut rates = Vec::new();
        for (way, [bandwidth, ops]) in [&mut self.egress, &mut self.ingress].into_iter().zip(kinds) {
            let [bytes, operations] = std::mem::take(&mut way.refused);
            let size = |bucket: &Option<TokenBucket>| bucket.as_ref().map_or(0, TokenBucket::size);
            let counted = [(bandwidth, size(&way.bandwidth), bytes), (ops, size(&way.ops), operations)];
            rates.extend(counted.into_iter().filter(|(.., count)| *count > 0));
        }
        let untold = self.budgets.iter_mut().filter(|budget| budget.used_up && !budget.told);
        let budgets = untold.map(|budget| {
            budget.told = true;
            (budget.config.bytes, budget.text())
        });
        News { rates, budgets: budgets.collect() }
    }

    /// Whether one of these is used up.
    pub(crate) fn is_used_up(&self, budgets: BudgetSet) -> bool {
        self.members(budgets).any(|budget| budget.used_up)
    }

    /// The flows of TCP that have a budget that is used up.
    pub(crate) fn flows_used_up(&self) -> Vec<FlowId> {
        self.flows.iter().filter(|(_, budgets)| self.is_used_up(**budgets)).map(|(flow, _)| *flow).collect()
    }

    fn rates(&mut self, way: Way) -> &mut Rates {
        match way {
            Way::Egress => &mut self.egress,
            Way::Ingress => &mut self.ingress,
        }
    }

    fn of(&self, flow: FlowId) -> BudgetSet {
        if self.budgets.is_empty() { BudgetSet::default() } else { self.flows.get(&flow).copied().unwrap_or_default() }
    }

    fn set(&self, mut wanted: impl FnMut(&Budget) -> bool) -> BudgetSet {
        let bits = self.budgets.iter().enumerate().filter(|(_, budget)| wanted(budget)).map(|(at, _)| 1 << at);
        BudgetSet(bits.fold(0, |set, bit: u64| set | bit))
    }

    fn members(&self, BudgetSet(set): BudgetSet) -> impl Iterator<Item = &Budget> {
        self.budgets.iter().enumerate().filter(move |(at, _)| set >> at & 1 == 1).map(|(_, budget)| budget)
    }

    /// What the budgets that count this way have left, the least of them.
    fn left(&self, budgets: BudgetSet, way: Way) -> Option<u64> {
        if budgets == BudgetSet::default() {
            return None;
        }
        self.members(budgets).filter(|budget| budget.counts(way)).map(Budget::left).min()
    }

    fn charge(&mut self, BudgetSet(set): BudgetSet, way: Way, bytes: u64) {
        if set == 0 {
            return;
        }
        for (at, budget) in self.budgets.iter_mut().enumerate() {
            if set >> at & 1 == 1 && budget.counts(way) {
                budget.spent = budget.spent.saturating_add(bytes);
            }
        }
    }

    /// Those that have no room for `bytes` are used up.
    fn use_up(&mut self, BudgetSet(set): BudgetSet, way: Way, bytes: u64) {
        for (at, budget) in self.budgets.iter_mut().enumerate() {
            if set >> at & 1 == 1 && budget.counts(way) && budget.left() < bytes {
                budget.used_up = true;
                self.news = true;
            }
        }
    }
}

impl Rates {
    fn replace(&mut self, now: Time, config: &RateLimiter) {
        let former = std::mem::replace(&mut self.config, config.clone());
        renew(&mut self.bandwidth, now, former.bandwidth, config.bandwidth);
        renew(&mut self.ops, now, former.ops, config.ops);
    }

    fn is_unlimited(&self) -> bool {
        self.bandwidth.is_none() && self.ops.is_none()
    }

    fn quantum(&self) -> u64 {
        let Some(bucket) = &self.bandwidth else { return 0 };
        bucket.refilled_in(QUANTUM).max(SEGMENT).min(bucket.size() / 2).max(1)
    }

    /// How many of `count` datagrams of `size` bytes the bytes allow.
    fn datagrams_within(&mut self, now: Time, count: u64, size: u64) -> u64 {
        let Some(bucket) = &mut self.bandwidth else { return count };
        if !bucket.is_open(now) {
            return 0;
        }
        let mut available = bucket.available(now).max(1);
        if let Some((since, taken)) = self.waiting {
            // Half of what has come back since a reader has begun to wait is theirs.
            let share = bucket.refilled_in(now.since(since)) / 2;
            available = available.min(share.saturating_sub(taken));
        }
        if size == 0 { count } else { available.div_ceil(size).min(count) }
    }

    fn take(&mut self, now: Time, count: u64, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(now, bytes);
        }
        if let Some(ops) = &mut self.ops {
            ops.take(now, count);
        }
        if let Some((_, taken)) = &mut self.waiting {
            *taken = taken.saturating_add(bytes);
        }
    }

    fn refuse(&mut self, which: usize, count: u64) {
        if let Some(refused) = self.refused.get_mut(which) {
            *refused = refused.saturating_add(count);
        }
    }
}

fn renew(bucket: &mut Option<TokenBucket>, now: Time, former: Option<BucketConfig>, config: Option<BucketConfig>) {
    match (bucket.as_mut(), config) {
        // What is as it was goes on without a hitch.
        (Some(_), Some(config)) if Some(config) == former => {}
        (Some(known), Some(config)) => {
            let burst_changed = former.is_none_or(|former| former.one_time_burst != config.one_time_burst);
            known.replace(&config, now, burst_changed);
        }
        (None, Some(config)) => *bucket = Some(TokenBucket::new(&config, now)),
        (_, None) => *bucket = None,
    }
}

impl Budget {
    fn counts(&self, way: Way) -> bool {
        match (self.config.direction, way) {
            (Direction::Any, _) | (Direction::Egress, Way::Egress) | (Direction::Ingress, Way::Ingress) => true,
            (Direction::Egress, Way::Ingress) | (Direction::Ingress, Way::Egress) => false,
        }
    }

    fn left(&self) -> u64 {
        if self.used_up { 0 } else { self.config.bytes.saturating_sub(self.spent) }
    }

    /// As it stands in events.
    fn text(&self) -> String {
        use cofferdam_policy::grammar::format_destination;
        const SHOWN: usize = 4;
        let BudgetConfig { bytes, direction, destinations } = &self.config;
        let way = match direction {
            Direction::Any => "",
            Direction::Egress => " egress",
            Direction::Ingress => " ingress",
        };
        let mut text = format!("budget of {bytes} bytes{way}");
        for (at, destination) in destinations.iter().take(SHOWN).enumerate() {
            text.push_str(if at == 0 { " for " } else { ", " });
            text.push_str(&format_destination(destination));
        }
        if destinations.len() > SHOWN {
            text.push_str(", …");
        }
        text
    }
}
