use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::{
    CloseReason, DecisionId, Direction, DomainName, DropReason, EventBody, FirstFlight, FlowCounters, FlowId, Group,
    LimitKind, Protocol, RuleText, Time,
};
use cofferdam_policy::{Facts, Pending, Permit, PinnedName, Pins, Policy, Reason, Verdict};

use crate::api::{GateConfig, Output};
use crate::flight::Watch;
use crate::hash::Seeded;
use crate::held::Held;
use crate::limits::{BudgetSet, Limits, News};
use crate::progress::{Mark, Movers, Progress};
use crate::reply::Replies;
use crate::report::Reports;
use crate::wire::icmp::IcmpError;
use crate::wire::virtio::Offload;

/// The port that the gateway answers itself, whatever the address.
pub(crate) const DNS_PORT: u16 = 53;
/// Names of one address that an event lists: a flood of names pinned to one address must not make long events.
const NAMES_IN_EVENT: usize = 16;
/// Names of one address that are looked at for these. More than the aliases of one answer, which are all younger than the name
/// that was asked for.
const NAMES_FOR_EVENT: usize = 64;

/// What every protocol needs: the configuration, the policy with its pins, and the way out.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: GateConfig,
    pub(crate) policy: Arc<Policy>,
    pub(crate) pins: Pins,
    pub(crate) outputs: VecDeque<Output>,
    /// Answers that wait.
    pub(crate) connected: Connected,
    pub(crate) reports: Reports,
    pub(crate) limits: Limits,
    pub(crate) held: Held,
    /// The flows of the gate's own that have moved something.
    pub(crate) movers: Movers,
    pub(crate) progress: Progress,
    replies: Replies,
    next_flow: u64,
}

/// Connections that there were when the input came.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Connected {
    /// The guest's, with those to sockets of the host.
    pub(crate) outward: usize,
    /// Those of peers.
    pub(crate) inbound: usize,
}

/// A verdict with what events tell about it.
#[derive(Debug)]
pub(crate) enum Decision {
    /// With what is left to decide when the flow shows something.
    Allow(Permit, About, Option<Box<Pending>>),
    Deny(About),
}

/// Why a flow was allowed or denied.
#[derive(Debug)]
pub(crate) struct About {
    direction: Direction,
    reason: Reason,
    names: Box<[DomainName]>,
    shown: Option<FirstFlight>,
    /// What denied it in place of a rule: a budget that is used up.
    in_the_way: Option<String>,
}

/// What an event tells about a denial.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) decision: Option<DecisionId>,
    pub(crate) look_up_again: Option<DomainName>,
}

/// What a flow stands on that was allowed.
#[derive(Debug, Default)]
pub(crate) struct Standing<'a> {
    /// The name that it was admitted by.
    pub(crate) name: Option<&'a DomainName>,
    pub(crate) watch: Option<&'a mut Watch>,
}

impl About {
    /// The name that decided.
    pub(crate) fn name(&self) -> Option<&DomainName> {
        self.reason.name.as_ref()
    }
}

impl Context {
    pub(crate) fn new(config: GateConfig, policy: Arc<Policy>, hasher: Seeded, numbers: [u64; 2]) -> Context {
        let [decisions, fragments] = numbers;
        Context {
            replies: Replies::new(usize::from(config.mtu), fragments),
            pins: Pins::new(config.pin_floor),
            limits: Limits::new(&config.limits, Time::ZERO),
            connected: Connected::default(),
            config,
            policy,
            outputs: VecDeque::new(),
            held: Held::default(),
            movers: Movers::default(),
            progress: Progress::default(),
            // 45 bits: nine characters of the printed form at most, and room to count.
            reports: Reports::new(hasher, decisions >> 19),
            next_flow: 0,
        }
    }

    pub(crate) fn new_flow(&mut self) -> FlowId {
        self.next_flow += 1;
        FlowId(self.next_flow)
    }

    /// A flow that the gate itself carries has carried so much.
    pub(crate) fn note(&mut self, now: Time, flow: FlowId, mark: &mut Mark, counters: &FlowCounters) {
        self.movers.note(flow, mark, counters);
        if !self.movers.is_empty() {
            self.progress.note(now);
        }
    }

    /// Asks the policy about a flow of the guest to `peer`.
    pub(crate) fn decide(&mut self, now: Time, protocol: Protocol, peer: IpAddr, port: Option<u16>) -> Decision {
        let names = self.pins.deciding(now, &self.policy, protocol, peer, port);
        let verdict = self.policy.check(&Facts { direction: Direction::Egress, protocol, peer, port, names });
        let names = self.names_for_event(now, peer);
        let about = |reason: &Reason| About {
            direction: Direction::Egress,
            reason: reason.clone(),
            names,
            shown: None,
            in_the_way: None,
        };
        match verdict {
            Verdict::Allow(permit) => {
                let about = about(permit.reason());
                Decision::Allow(permit, about, None)
            }
            Verdict::Pending(permit, pending) => {
                let about = about(permit.reason());
                Decision::Allow(permit, about, Some(Box::new(pending)))
            }
            Verdict::Deny(denial) => Decision::Deny(about(denial.reason())),
        }
    }

    /// Asks the policy about a flow of `peer` to a port of the guest.
    pub(crate) fn decide_peer(&mut self, now: Time, protocol: Protocol, peer: IpAddr, port: u16) -> Decision {
        let names: Vec<PinnedName> = match self.policy.names_peers() {
            true => self.pins.names_of(now, peer).take(NAMES_FOR_EVENT).cloned().collect(),
            false => Vec::new(),
        };
        let facts = Facts { direction: Direction::Ingress, protocol, peer, port: Some(port), names: &names };
        let verdict = self.policy.check(&facts);
        let reason = verdict.reason().clone();
        let names = self.names_for_event(now, peer);
        let about = About { direction: Direction::Ingress, reason, names, shown: None, in_the_way: None };
        match verdict {
            // Nothing is read of what comes in: an ingress flow is never pending.
            Verdict::Allow(permit) | Verdict::Pending(permit, _) => Decision::Allow(permit, about, None),
            Verdict::Deny(_) => Decision::Deny(about),
        }
    }

    /// The budgets of a flow that was allowed: those for the name that admitted it, or for any name of its address where
    /// none did.
    pub(crate) fn budgets_of(&self, remote: IpAddr, about: &About) -> BudgetSet {
        if !self.limits.has_budgets() {
            return BudgetSet::default();
        }
        let names = about.reason.name.as_ref().map_or(&*about.names, std::slice::from_ref);
        self.limits.budgets_for(&self.policy, remote, names)
    }

    /// The budgets of a live flow to `remote`, found anew.
    pub(crate) fn budgets_now(&self, now: Time, remote: IpAddr) -> BudgetSet {
        self.limits.budgets_for(&self.policy, remote, &self.names_for_event(now, remote))
    }

    /// The budgets of a flow that the policy allows. `None`: one of them has nothing left, and `about` tells so from here on.
    pub(crate) fn afford(&self, remote: IpAddr, about: &mut About) -> Option<BudgetSet> {
        let budgets = self.budgets_of(remote, about);
        about.in_the_way = self.limits.in_the_way(budgets);
        about.in_the_way.is_none().then_some(budgets)
    }

    /// The budgets of a flow of a peer that the policy allows: those of the whole run. `None`: as for [`Context::afford`].
    pub(crate) fn afford_peer(&self, about: &mut About) -> Option<BudgetSet> {
        let budgets = self.limits.whole_run();
        about.in_the_way = self.limits.in_the_way(budgets);
        about.in_the_way.is_none().then_some(budgets)
    }

    /// Reports the limits that were reached. `true`: a budget is used up, and its flows are to end.
    pub(crate) fn tell_limits(&mut self, now: Time) -> bool {
        let News { rates, budgets } = self.limits.take_news();
        for (limit, bound, count) in rates {
            if let Some(event) = self.reports.count_limits(now, limit, bound, count) {
                self.event(event);
            }
        }
        for (bound, text) in &budgets {
            self.event(EventBody::LimitReached { limit: LimitKind::Budget, bound: *bound, count: 1 });
            let message = format!("the {text} is used up: its flows were ended, and new ones are denied");
            self.event(EventBody::GatewayNotice { message });
        }
        !budgets.is_empty()
    }

    /// Puts `policy` in the place of the one in force, which it returns: the same rules with another classifier. Names that led
    /// to addresses which are in another group by that have to be asked for again.
    pub(crate) fn reclassify(&mut self, now: Time, policy: Arc<Policy>) -> Arc<Policy> {
        let before = std::mem::replace(&mut self.policy, policy);
        self.pins.demote(now, |address| moved(&before, &self.policy, address));
        before
    }

    /// Puts `policy`, which has other rules, in the place of the one in force, and returns that. Names that led to addresses
    /// which are not public have to be asked for again: that they were told of was decided by the former rules.
    pub(crate) fn replace_policy(&mut self, now: Time, policy: Arc<Policy>) -> Arc<Policy> {
        let classifier = policy.classifier().clone();
        self.pins.demote(now, |address| classifier.classify(address) != Group::Public);
        std::mem::replace(&mut self.policy, policy)
    }

    /// Asks the policy about a flow that the one `before` it has allowed; when it is not allowed any more, reports that.
    ///
    /// A flow keeps the name that it was admitted by, unless its address has moved to another group. One that would have to
    /// show something from here on, and is not looked at, is not allowed: what it has shown is not known.
    pub(crate) fn still_allows(
        &mut self,
        now: Time,
        before: &Policy,
        (protocol, ends): (Protocol, Ends),
        standing: Standing<'_>,
    ) -> bool {
        let Standing { name, watch } = standing;
        let peer = ends.remote.ip();
        let port = match protocol {
            Protocol::Tcp | Protocol::Udp => Some(ends.remote.port()),
            Protocol::IcmpV4 | Protocol::IcmpV6 => None,
        };
        let moved = moved(before, &self.policy, peer);
        let mut names = self.pins.deciding(now, &self.policy, protocol, peer, port).to_vec();
        if !moved {
            let passed = watch.as_ref().map(|watch| watch.passed()).unwrap_or_default();
            let own = name.into_iter().chain(passed).map(|name| PinnedName { name: name.clone(), alias: false });
            names.extend(own);
        }
        let facts = Facts { direction: Direction::Egress, protocol, peer, port, names: &names };
        let reason = match (self.policy.check(&facts), watch) {
            (Verdict::Allow(_), None) => return true,
            (Verdict::Allow(_), Some(watch)) => watch.renew(&self.policy, None, moved).err(),
            (Verdict::Pending(_, pending), Some(watch)) => {
                watch.renew(&self.policy, Some(Box::new(pending)), moved).err()
            }
            (Verdict::Pending(permit, _), None) => Some(permit.reason().clone()),
            (Verdict::Deny(denial), _) => Some(denial.reason().clone()),
        };
        let Some(reason) = reason else { return true };
        let names = self.names_for_event(now, peer);
        let about = About { direction: Direction::Egress, reason, names, shown: None, in_the_way: None };
        self.report_denied(now, protocol, ends, &about);
        false
    }

    /// The youngest names of an address, since these are what the guest probably has in mind. Those that were asked for come
    /// before aliases, which no allow rule looks at.
    pub(crate) fn names_for_event(&self, now: Time, address: IpAddr) -> Box<[DomainName]> {
        let mut names: Vec<_> = self.pins.names_of(now, address).take(NAMES_FOR_EVENT).collect();
        names.sort_by_key(|pinned| pinned.alias);
        names.into_iter().take(NAMES_IN_EVENT).map(|pinned| pinned.name.clone()).collect()
    }

    /// The host's loopback of `address`'s family when `address` is one of the gateway's own: the host alias.
    pub(crate) fn host_alias(&self, address: IpAddr) -> Option<IpAddr> {
        if !self.is_gateway(address) {
            return None;
        }
        Some(match address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        })
    }

    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateway(address) == Some(address)
    }

    /// Whether `remote` is the gateway's own resolver.
    pub(crate) fn is_resolver(&self, remote: SocketAddr) -> bool {
        remote.port() == DNS_PORT && self.is_gateway(remote.ip())
    }

    /// The gateway's address of `peer`'s family.
    pub(crate) fn gateway(&self, peer: IpAddr) -> Option<IpAddr> {
        match peer {
            IpAddr::V4(_) => Some(IpAddr::V4(self.config.v4.gateway)),
            IpAddr::V6(_) => self.config.v6.map(|link| IpAddr::V6(link.gateway)),
        }
    }

    pub(crate) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(crate) fn emit(&mut self, offload: Offload, packet: Vec<u8>) {
        self.output(Output::Emit { offload, packet });
    }

    /// An ICMP error of the gateway to `guest` about the packet whose first bytes are `quote`.
    pub(crate) fn emit_error(&mut self, guest: IpAddr, error: IcmpError, quote: &[u8]) {
        if let Some(gateway) = self.gateway(guest) {
            self.emit_error_from(gateway, guest, error, quote);
        }
    }

    /// An ICMP error that looks as if `from` had sent it.
    pub(crate) fn emit_error_from(&mut self, from: IpAddr, guest: IpAddr, error: IcmpError, quote: &[u8]) {
        if let Some(packet) = Replies::error(from, guest, error, quote) {
            self.emit(Offload::NONE, packet);
        }
    }

    /// A UDP payload for the guest, in as many packets as it takes. `segment`: a batch of datagrams of that size.
    pub(crate) fn emit_udp(
        &mut self,
        now: Time,
        src: SocketAddr,
        dst: SocketAddr,
        payload: &[u8],
        segment: Option<u16>,
    ) {
        if self.replies.udp(&mut self.outputs, src, dst, payload, segment).is_none() {
            self.drop(now, DropReason::BadHeader);
        }
    }

    /// An echo reply for the guest, in as many packets as it takes.
    pub(crate) fn emit_echo_reply(
        &mut self,
        now: Time,
        ends: (IpAddr, IpAddr),
        ident: u16,
        sequence: u16,
        payload: &[u8],
    ) {
        if self.replies.echo(&mut self.outputs, ends, ident, sequence, payload).is_none() {
            self.drop(now, DropReason::BadHeader);
        }
    }

    /// Counts a packet that goes nowhere.
    pub(crate) fn drop(&mut self, now: Time, reason: DropReason) {
        if let Some(event) = self.reports.count_drop(now, reason) {
            self.event(event);
        }
    }

    /// Makes sure that there is room for one more connection besides these, or says which limit is in the way: their own, or that of
    /// all connections together.
    pub(crate) fn find_room(&self, held: usize, bound: u32, limit: LimitKind) -> Result<(), (LimitKind, u64)> {
        let Connected { outward, inbound } = self.connected;
        let bounds = [(held, bound, limit), (outward + inbound, self.config.room, LimitKind::Descriptors)];
        let is_full = |held: usize, bound: u32| bound != 0 && u32::try_from(held).map_or(true, |held| held >= bound);
        match bounds.into_iter().find(|(held, bound, _)| is_full(*held, *bound)) {
            Some((_, bound, limit)) => Err((limit, u64::from(bound))),
            None => Ok(()),
        }
    }

    /// Counts that a limit was reached.
    pub(crate) fn limit(&mut self, now: Time, limit: LimitKind, bound: u64) {
        if let Some(event) = self.reports.count_limit(now, limit, bound) {
            self.event(event);
        }
    }

    /// The shell could not open or use a socket. The gate does not know the bound: it says 0.
    pub(crate) fn out_of_descriptors(&mut self, now: Time) {
        self.limit(now, LimitKind::Descriptors, 0);
    }

    pub(crate) fn event(&mut self, event: EventBody) {
        self.output(Output::Event(event));
    }

    /// What was told in an event about it; nothing when there were too many.
    pub(crate) fn report_denied(&mut self, now: Time, protocol: Protocol, ends: Ends, about: &About) -> Told {
        let Some(decision) = self.reports.count_denial(now, protocol, ends.remote) else {
            self.limit(now, LimitKind::Events, Reports::denial_bound());
            return Told::default();
        };
        let (direction, Ends { guest, remote }) = (about.direction, ends);
        let (group, names, rule) = self.told(about);
        let shown = about.shown.clone();
        let look_up_again = self.look_up_again(now, protocol, remote, about);
        self.event(EventBody::FlowDenied {
            decision: decision.to_string(),
            direction,
            protocol,
            guest,
            remote,
            group,
            names,
            rule,
            shown,
            look_up_again: look_up_again.as_ref().map(DomainName::to_string),
            process: None,
        });
        Told { decision: Some(decision), look_up_again }
    }

    /// Answers what was denied, not before somebody could look who it was where `told` has become an event.
    pub(crate) fn answer_denied(&mut self, now: Time, told: &Told, answer: impl FnOnce(&mut Context)) {
        let before = self.outputs.len();
        answer(self);
        if told.decision.is_some() {
            self.held.keep(now, self.config.witness, &mut self.outputs, before);
        }
    }

    /// The name that a client which kept an address for too long has to look up again: it was pinned to the address before, and
    /// with it the policy would let the flow pass. For a flow that showed names, one of those.
    fn look_up_again(
        &mut self,
        now: Time,
        protocol: Protocol,
        remote: SocketAddr,
        about: &About,
    ) -> Option<DomainName> {
        let peer = remote.ip();
        let former: Vec<DomainName> = self.pins.former_names_of(now, peer).cloned().collect();
        if former.is_empty() {
            return None;
        }
        let port = match protocol {
            Protocol::Tcp | Protocol::Udp => Some(remote.port()),
            Protocol::IcmpV4 | Protocol::IcmpV6 => None,
        };
        let shown = about.shown.as_ref();
        let beside = match shown {
            // Other names at the address do not help a flow that says which one it wants.
            Some(_) => Vec::new(),
            None => self.pins.deciding(now, &self.policy, protocol, peer, port).to_vec(),
        };
        let was_shown = |name: &DomainName| {
            let text = name.to_string();
            shown.is_none_or(|shown| shown.names.contains(&text))
        };
        let would_pass = |name: &DomainName| {
            let again = PinnedName { name: name.clone(), alias: false };
            let names: Vec<PinnedName> = beside.iter().cloned().chain([again]).collect();
            let facts = Facts { direction: Direction::Egress, protocol, peer, port, names: &names };
            self.policy.check(&facts).is_allow()
        };
        former.into_iter().find(|name| was_shown(name) && would_pass(name))
    }

    pub(crate) fn report_opened(&mut self, flow: FlowId, protocol: Protocol, ends: Ends, about: &About) {
        let (direction, Ends { guest, remote }) = (about.direction, ends);
        let (group, names, rule) = self.told(about);
        let process = None;
        self.event(EventBody::FlowOpened { flow, direction, protocol, guest, remote, group, names, rule, process });
    }

    /// What events tell about a decision: the group of the remote's address, its names and the rule.
    fn told(&self, about: &About) -> (Group, Vec<String>, RuleText) {
        let names = about.names.iter().map(DomainName::to_string).collect();
        let rule = match &about.in_the_way {
            Some(text) => RuleText { index: None, text: text.clone(), layer: None },
            None => self.policy.rule_text(&about.reason),
        };
        (about.reason.group, names, rule)
    }

    pub(crate) fn report_closed(&mut self, flow: FlowId, by: CloseReason, counters: FlowCounters, lived: Duration) {
        let duration_ms = u64::try_from(lived.as_millis()).unwrap_or(u64::MAX);
        self.event(EventBody::FlowClosed { flow, by, counters, duration_ms });
    }

    pub(crate) fn report_failed(
        &mut self,
        flow: FlowId,
        protocol: Protocol,
        ends: Ends,
        error: &dyn std::error::Error,
    ) {
        let (guest, remote) = (ends.guest, ends.remote);
        let error = error.to_string();
        self.event(EventBody::FlowFailed { flow, protocol, guest, remote, error, process: None });
    }

    /// Answers what has just been reported as failed, not before somebody could look who it was.
    pub(crate) fn answer_failed(&mut self, now: Time, answer: impl FnOnce(&mut Context)) {
        let before = self.outputs.len();
        answer(self);
        self.held.keep(now, self.config.witness, &mut self.outputs, before);
    }
}

impl About {
    pub(crate) fn of_flight(reason: Reason, names: Box<[DomainName]>, shown: FirstFlight) -> About {
        About { direction: Direction::Egress, reason, names, shown: Some(shown), in_the_way: None }
    }
}

/// Both ends of a flow as the guest sees them. ICMP has port 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// Whether an address is in another group than `before`.
pub(crate) fn moved(before: &Policy, after: &Policy, address: IpAddr) -> bool {
    before.classifier().classify(address) != after.classifier().classify(address)
}
