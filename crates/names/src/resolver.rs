//! The resolver of one sandbox: decides on each query and deals with its answer.
//!
//! # Theory of operation
//!
//! A message of the guest goes through the steps of `names.md` §2, and the first that applies ends it:
//!
//! 1. unreadable, or a kind of query that no stub needs → FORMERR, NOTIMP, REFUSED or silence;
//! 2. the policy denies the name → NXDOMAIN with *Blocked*; nobody has been asked, so no label of it has left the machine;
//! 3. a name of our own → answered;
//! 4. a family that does not work here → an empty answer;
//! 5. an answer that is remembered ([`cache`](crate::cache)) → checked like a new one, and answered;
//! 6. anything else → looked up ([`lookups`](crate::lookups)) at the configured resolvers, or, when the guest addressed
//!    its query to some other resolver, at exactly that one.
//!
//! The answer is stripped to what belongs to the question, checked for addresses that the guest must not be led to
//! ([`answer`]), pinned (not when the guest chose who answers), and then written anew for every query that
//! waited for it. Pins come out before the answer that made them, so the guest cannot use an address earlier than the
//! gate knows its name.
//!
//! Message ids come from ChaCha20 under a seed that the caller draws from the system. With the random port of each
//! query's own socket, a forger has 32 bits to guess per query. A counter or a weaker generator would let a guest that
//! sees its own zone's queries predict the ids of others.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng as _, SeedableRng as _};
use cofferdam_model::{Action, DecisionId, Direction, EventBody, LimitKind, Protocol, RuleText, Time, Withheld};
use cofferdam_policy::{Facts, NameVerdict, Policy, Reason, Verdict};

use crate::answer::{self, Answer, Arrival, Bindings, Guard, Objection, Question};
use crate::cache::Cache;
use crate::lookups::{Effects, Finished, Key, Lookups, MAX_WAITERS, Route, Waiter};
use crate::output::{Ends, Outbox};
use crate::query::{self, Query, Received};
use crate::reply::{self, ExtendedError, Head, Rcode, Reply};
use crate::report::Reports;
use crate::special;
use crate::wire::{flags, kind};
use crate::{ClientId, Output, Rebinding, ResolverConfig, Transport, Upstream, UpstreamId};

/// How often a reached limit is reported.
const LIMIT_REPORT_EVERY: Duration = Duration::from_secs(1);
/// Random bits in a decision id: ten characters, and no two alike for one user for all practical purposes.
const DECISION_BITS: u32 = 50;

/// Answers the DNS queries of one sandbox.
#[derive(Debug)]
pub struct Resolver {
    config: ResolverConfig,
    policy: Arc<Policy>,
    cache: Cache,
    lookups: Lookups,
    random: ChaCha20Rng,
    outputs: Outbox,
    overflow: Overflow,
    reports: Reports,
    /// Answers that wait, in the order of their times.
    held: VecDeque<(Time, Output)>,
}

/// Answers that may wait: as many as there are denials told one by one in a second. Beyond that they go at once.
const MAX_HELD: usize = 1_000;

/// How a look-up became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    ByItself,
    /// With others, later.
    Counted,
}

/// Queries that gave way, until somebody was told.
#[derive(Debug, Default)]
struct Overflow {
    count: u64,
    reported: Option<Time>,
}

/// How a query ended, for its event.
#[derive(Debug)]
struct Ending {
    verdict: Action,
    rule: RuleText,
    decision: Option<DecisionId>,
    answers: Vec<IpAddr>,
    withheld: Option<Withheld>,
    rcode: u16,
    resolver: Option<SocketAddr>,
}

impl Resolver {
    /// A resolver that has nothing under way.
    #[must_use]
    pub fn new(config: ResolverConfig, policy: Arc<Policy>) -> Resolver {
        Resolver {
            cache: Cache::default(),
            lookups: Lookups::new(&config.upstreams, config.query_timeout),
            random: ChaCha20Rng::from_seed(config.seed),
            config,
            policy,
            outputs: Outbox::default(),
            overflow: Overflow::default(),
            reports: Reports::default(),
            held: VecDeque::new(),
        }
    }

    /// The guest sent a message between `ends`. Where it went to is not the gateway, the policy has already allowed the
    /// guest to send there.
    pub fn handle_query(&mut self, now: Time, client: ClientId, transport: Transport, ends: Ends, message: &[u8]) {
        self.outputs.begin_group();
        match query::receive((transport, ends), message) {
            Received::Nothing => self.outputs.push(Output::Ignore { client }),
            Received::Refused(message) => self.outputs.push(Output::Answer { client, message }),
            Received::Query(query) => self.decide(now, client, transport, ends.server, query),
        }
    }

    /// Something arrived on the socket of `upstream`.
    pub fn handle_answer(&mut self, now: Time, upstream: UpstreamId, message: &[u8]) {
        let Some(asked) = self.lookups.asked(upstream) else { return };
        self.outputs.begin_group();
        let transport = asked.transport;
        let arrival = answer::read(message, asked.id, asked.question);
        let random = &mut self.random;
        let mut draw_id = || draw_id(random);
        let mut effects = Effects { now, draw_id: &mut draw_id, outputs: &mut self.outputs };
        match (arrival, transport) {
            (Arrival::Answer(answer), _) => {
                // What a former resolver says is for those who wait for it, and for nobody else.
                let is_current = self.lookups.is_current(upstream);
                let finished = self.lookups.answered(&mut effects, upstream);
                if let Some(finished) = finished {
                    if let Some(key) = finished.key.to_cache_key().filter(|_| is_current) {
                        let life = answer.life(&finished.key.question);
                        self.cache.insert(now, key, message, life);
                    }
                    self.deliver(now, finished, answer);
                }
            }
            (Arrival::Truncated, Transport::Udp) => self.lookups.truncated(&mut effects, upstream),
            // There is no larger transport to ask over.
            (Arrival::Truncated, Transport::Tcp) | (Arrival::Broken, _) => {
                let finished = self.lookups.broken(&mut effects, upstream);
                self.give_up(now, finished);
            }
            (Arrival::Foreign, _) => {
                let finished = self.lookups.foreign(&mut effects, upstream);
                self.give_up(now, finished);
            }
        }
    }

    /// The socket of `upstream` could not be made, broke, or was closed by the other side. The caller has dropped it.
    pub fn handle_failure(&mut self, now: Time, upstream: UpstreamId) {
        self.outputs.begin_group();
        let finished = self.step(now, |lookups, effects| lookups.failed(effects, upstream));
        self.give_up(now, finished);
    }

    /// The pin that was taken from `poll_output` last could not be made. Its answer must not reach the guest, which could
    /// not use it and would not know why: it gets SERVFAIL, and may ask again when there is room.
    pub fn handle_pin_refused(&mut self) {
        self.outputs.revise_group(|output| match output {
            Output::Answer { message, .. } => *message = reply::to_servfail(message),
            Output::Answered { event: EventBody::DnsQuery { answers, rcode, .. }, .. } => {
                answers.clear();
                *rcode = u8::try_from(Rcode::ServFail.code()).ok();
            }
            Output::Event(_)
            | Output::Answered { .. }
            | Output::Query { .. }
            | Output::Ask { .. }
            | Output::Abandon { .. }
            | Output::Pin { .. }
            | Output::Ignore { .. } => {}
        });
    }

    /// The machine's addresses have changed: `policy` has the rules of the one in force and another classifier. Answers
    /// that are under way are judged by it. A resolver of the guest's choice whose address is in another group by that is
    /// asked no more; whether it may be is decided when the guest asks again.
    pub fn handle_reclassified(&mut self, now: Time, policy: Arc<Policy>) {
        self.outputs.begin_group();
        self.config.rebinding = self.config.rebinding.with_classifier(policy.classifier());
        let before = std::mem::replace(&mut self.policy, policy);
        let after = Arc::clone(&self.policy);
        let moved = |server: SocketAddr, _| {
            before.classifier().classify(server.ip()) != after.classifier().classify(server.ip())
        };
        while let Some(finished) = self.step(now, |lookups, effects| lookups.withdrawn(effects, moved)) {
            self.give_up(now, Some(finished));
        }
    }

    /// Other rules are in force from here on, and `rebinding` goes with them. Whoever waits for an answer is judged by them: a
    /// name that is denied now is answered so, and a resolver of the guest's choice that is denied now is asked no more.
    pub fn handle_policy(&mut self, now: Time, policy: Arc<Policy>, rebinding: Rebinding) {
        self.outputs.begin_group();
        self.config.rebinding = rebinding;
        self.policy = policy;
        let after = Arc::clone(&self.policy);
        let is_denied = |server: SocketAddr, transport| !after.check(&facts(server, transport)).is_allow();
        while let Some(finished) = self.step(now, |lookups, effects| lookups.withdrawn(effects, is_denied)) {
            self.give_up(now, Some(finished));
        }
        let after = Arc::clone(&self.policy);
        let gateway = self.config.gateway.clone();
        let mut reasons = Vec::new();
        let denied = self.step(now, |lookups, effects| {
            lookups.revise(effects, |waiter| {
                match check(&after, &gateway, &waiter.query, waiter.transport, waiter.server) {
                    Ok(reason) => waiter.reason = reason,
                    Err(reason) => {
                        reasons.push(reason);
                        return false;
                    }
                }
                true
            })
        });
        for (waiter, reason) in denied.into_iter().zip(&reasons) {
            self.deny(now, waiter.client, waiter.transport, &waiter.query, reason);
        }
    }

    /// How long one query may take, for those that come from here on.
    pub fn handle_query_timeout(&mut self, budget: Duration) {
        self.config.query_timeout = budget;
        self.lookups.set_budget(budget);
    }

    /// Other resolvers are configured from here on. What the former ones said is forgotten: on another network the same
    /// names may lead elsewhere. Not for resolvers with sessions, whose places the caller counts.
    pub fn handle_upstreams(&mut self, now: Time, upstreams: Vec<Upstream>) {
        if self.config.upstreams == upstreams {
            return;
        }
        self.outputs.begin_group();
        self.cache.clear();
        self.step(now, |lookups, effects| lookups.replace(effects, &upstreams));
        self.config.upstreams = upstreams;
    }

    /// Time has passed; needed when [`Resolver::poll_timeout`] is reached.
    pub fn handle_timeout(&mut self, now: Time) {
        self.outputs.begin_group();
        while self.held.front().is_some_and(|(until, _)| *until <= now) {
            self.outputs.extend(self.held.pop_front().map(|(_, answer)| answer));
        }
        while let Some(finished) = self.step(now, |lookups, effects| lookups.expired(effects)) {
            self.give_up(now, Some(finished));
        }
        self.report_overflow(now);
        self.report_counted(now);
    }

    /// The gateway ends: tells of what is counted and not told yet.
    pub fn handle_shutdown(&mut self) {
        self.outputs.begin_group();
        self.outputs.extend(std::mem::take(&mut self.held).into_iter().map(|(_, answer)| answer));
        let rest = self.reports.rest();
        self.outputs.extend(rest.into_iter().map(Output::Event));
    }

    /// When to call [`Resolver::handle_timeout`]; `None` while nothing is under way.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let report = self.overflow.reported.filter(|_| self.overflow.count > 0);
        let report = report.map(|reported| reported + LIMIT_REPORT_EVERY);
        let held = self.held.front().map(|(until, _)| *until);
        self.lookups.poll_timeout().into_iter().chain(report).chain(self.reports.deadline()).chain(held).min()
    }

    /// What to do next; drain to `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop()
    }

    fn step<T>(&mut self, now: Time, step: impl FnOnce(&mut Lookups, &mut Effects<'_>) -> T) -> T {
        let random = &mut self.random;
        let mut draw_id = || draw_id(random);
        let mut effects = Effects { now, draw_id: &mut draw_id, outputs: &mut self.outputs };
        step(&mut self.lookups, &mut effects)
    }

    fn decide(&mut self, now: Time, client: ClientId, transport: Transport, server: SocketAddr, query: Query) {
        let reason = match check(&self.policy, &self.config.gateway, &query, transport, server) {
            Ok(reason) => reason,
            Err(reason) => return self.deny(now, client, transport, &query, &reason),
        };
        let waiter = Waiter { client, transport, server, query, reason, since: now };
        if let Some(domain) = &waiter.query.domain
            && let Some(special) = special::look_up(domain, &self.config.gateway)
        {
            let (reply, answers) = special.reply(&waiter.query);
            return self.answer_ourselves(now, &waiter, &reply, answers);
        }
        if self.has_nothing_for(waiter.query.qtype) {
            let reply = Reply::new(&waiter.query, Head::of(Rcode::NoError)).with_denial_soa();
            return self.answer_ourselves(now, &waiter, &reply, Vec::new());
        }
        let key = self.key(&waiter, server);
        let hit = key.to_cache_key().and_then(|key| self.cache.look_up(now, &key));
        if let Some(hit) = hit
            && let Some(mut answer) = answer::read_again(&hit.message, &key.question)
        {
            answer.grow_older(hit.age, hit.left);
            let finished = Finished { key, waiters: vec![waiter], server: None };
            return self.deliver(now, finished, answer);
        }
        let finished = self.step(now, |lookups, effects| lookups.ask(effects, key, waiter));
        self.give_up(now, finished);
        let pushed_out = self.step(now, |lookups, effects| lookups.overflow(effects));
        if pushed_out.is_some() {
            self.overflow.count += 1;
            self.give_up(now, pushed_out);
            self.report_overflow(now);
        }
    }

    fn deny(&mut self, now: Time, client: ClientId, transport: Transport, query: &Query, reason: &Reason) {
        let decision = self.draw_decision();
        let message = denial(query, decision).emit(Reply::limit(query, transport));
        let ending = Ending {
            verdict: Action::Deny,
            rule: self.policy.rule_text(reason),
            decision: Some(decision),
            answers: Vec::new(),
            withheld: None,
            rcode: Rcode::NxDomain.code(),
            resolver: None,
        };
        let told = self.report(now, (client, query), Duration::ZERO, ending);
        self.answer_denied(now, client, message, told);
    }

    /// A client closes its socket when it has its answer, and with it goes what says whose it was: an answer that denies is held for a
    /// moment after its event. One that has no event of its own goes at once, so that a flood finds nothing slower.
    fn answer_denied(&mut self, now: Time, client: ClientId, message: Vec<u8>, told: Told) {
        let answer = Output::Answer { client, message };
        let is_held = told == Told::ByItself && !self.config.witness.is_zero() && self.held.len() < MAX_HELD;
        match is_held {
            true => self.held.push_back((now + self.config.witness, answer)),
            false => self.outputs.push(answer),
        }
    }

    fn answer_ourselves(&mut self, now: Time, waiter: &Waiter, reply: &Reply<'_>, answers: Vec<IpAddr>) {
        let message = reply.emit(Reply::limit(&waiter.query, waiter.transport));
        self.outputs.push(Output::Answer { client: waiter.client, message });
        let ending = Ending {
            verdict: Action::Allow,
            rule: self.policy.rule_text(&waiter.reason),
            decision: None,
            answers,
            withheld: None,
            rcode: reply.rcode(),
            resolver: None,
        };
        self.report(now, (waiter.client, &waiter.query), now.since(waiter.since), ending);
    }

    /// Whether the answer to `qtype` is empty whatever the name (`names.md` §2 step 5): addresses of a family that does
    /// not work here would only make clients wait.
    fn has_nothing_for(&self, qtype: u16) -> bool {
        match qtype {
            kind::A => !self.config.families.ipv4,
            kind::AAAA => !self.config.families.ipv6,
            _ => false,
        }
    }

    fn key(&self, waiter: &Waiter, server: SocketAddr) -> Key {
        let query = &waiter.query;
        let is_ours = self.config.gateway.contains(&server.ip());
        let route = if is_ours { Route::Configured } else { Route::Chosen(server) };
        let mut kept = query.flags & (flags::RECURSION_DESIRED | flags::AUTHENTIC_DATA | flags::CHECKING_DISABLED);
        if is_ours {
            // Without RD a query shows what somebody else on this host has looked up lately.
            kept |= flags::RECURSION_DESIRED;
        }
        Key {
            route,
            transport: waiter.transport,
            question: Question { name: query.name.to_lowercase().as_bytes().to_vec(), qtype: query.qtype },
            flags: kept,
            dnssec_ok: query.edns.is_some_and(|edns| edns.dnssec_ok),
        }
    }

    /// Pins what an answer binds and hands it to everybody who waits for it.
    fn deliver(&mut self, now: Time, finished: Finished, mut answer: Answer<'_>) {
        let waiters: Vec<&Reason> = finished.waiters.iter().map(|waiter| &waiter.reason).collect();
        let guard = Guard { rebinding: &self.config.rebinding, waiters: &waiters };
        let cleared = answer.clear(&finished.key.question, self.config.families, guard);
        let bindings = match cleared {
            Ok(bindings) => bindings,
            Err(Objection::Chain) => return self.fail(now, &finished, &ExtendedError::other("unusable CNAME chain")),
            Err(Objection::Rebinding { address, group }) => {
                let text = format!("rebinding protection: {address} is in group {}", group.word());
                return self.block(
                    now,
                    &finished,
                    &RuleText { text, ..RuleText::default() },
                    Withheld { address, group },
                );
            }
        };
        if finished.key.route == Route::Configured {
            self.pin(&finished, &bindings);
        }
        // AD says nothing to a client that did not ask for it (RFC 6840 §5.8); all who share a lookup asked alike.
        let asked_for_ad = finished.key.dnssec_ok || finished.key.flags & flags::AUTHENTIC_DATA != 0;
        if !asked_for_ad {
            answer.head.flags &= !flags::AUTHENTIC_DATA;
        }
        for waiter in &finished.waiters {
            let mut reply = Reply::new(&waiter.query, answer.head);
            reply.answer = Cow::Borrowed(&answer.answer);
            reply.authority = Cow::Borrowed(&answer.authority);
            reply.additional = Cow::Borrowed(&answer.additional);
            reply.errors = Cow::Borrowed(&answer.errors);
            let message = reply.emit(Reply::limit(&waiter.query, waiter.transport));
            self.outputs.push(Output::Answer { client: waiter.client, message });
        }
        for waiter in &finished.waiters {
            let ending = Ending {
                verdict: Action::Allow,
                rule: self.policy.rule_text(&waiter.reason),
                decision: None,
                answers: bindings.addresses.iter().map(|(address, _)| *address).collect(),
                withheld: None,
                rcode: answer.head.rcode,
                resolver: finished.server,
            };
            self.report(now, (waiter.client, &waiter.query), now.since(waiter.since), ending);
        }
    }

    fn pin(&mut self, finished: &Finished, bindings: &Bindings) {
        let qname = finished.waiters.first().and_then(|waiter| waiter.query.domain.as_ref());
        let names = qname.map(|name| (name, false)).into_iter();
        let names = names.chain(bindings.aliases.iter().map(|name| (name, true)));
        for (name, alias) in names {
            for &(address, ttl) in &bindings.addresses {
                self.outputs.push(Output::Pin { name: name.clone(), alias, address, ttl });
            }
        }
    }

    /// Answers as if the name did not exist, because of what the answer says.
    fn block(&mut self, now: Time, finished: &Finished, rule: &RuleText, withheld: Withheld) {
        for waiter in &finished.waiters {
            let decision = self.draw_decision();
            let message = denial(&waiter.query, decision).emit(Reply::limit(&waiter.query, waiter.transport));
            let ending = Ending {
                verdict: Action::Deny,
                rule: rule.clone(),
                decision: Some(decision),
                answers: Vec::new(),
                withheld: Some(withheld),
                rcode: Rcode::NxDomain.code(),
                resolver: finished.server,
            };
            let told = self.report(now, (waiter.client, &waiter.query), now.since(waiter.since), ending);
            self.answer_denied(now, waiter.client, message, told);
        }
    }

    fn give_up(&mut self, now: Time, finished: Option<Finished>) {
        if let Some(finished) = finished {
            self.fail(now, &finished, &ExtendedError::unreachable());
        }
    }

    fn fail(&mut self, now: Time, finished: &Finished, error: &ExtendedError) {
        for waiter in &finished.waiters {
            let reply = Reply::new(&waiter.query, Head::of(Rcode::ServFail)).with_error(error.clone());
            let message = reply.emit(Reply::limit(&waiter.query, waiter.transport));
            self.outputs.push(Output::Answer { client: waiter.client, message });
            let ending = Ending {
                verdict: Action::Allow,
                rule: self.policy.rule_text(&waiter.reason),
                decision: None,
                answers: Vec::new(),
                withheld: None,
                rcode: Rcode::ServFail.code(),
                resolver: finished.server,
            };
            self.report(now, (waiter.client, &waiter.query), now.since(waiter.since), ending);
        }
    }

    fn report(&mut self, now: Time, (client, query): (ClientId, &Query), took: Duration, ending: Ending) -> Told {
        let Ending { verdict, rule, decision, answers, withheld, rcode, resolver } = ending;
        // What costs a query of ours has a bound in that; anything else comes as fast as the guest can send.
        let is_free = verdict == Action::Deny || resolver.is_none();
        let event = EventBody::DnsQuery {
            name: query.domain.as_ref().map_or_else(|| ".".to_owned(), ToString::to_string),
            qtype: query.qtype,
            protocol: Some(protocol(query.transport)),
            guest: Some(query.ends.guest),
            server: Some(query.ends.server),
            verdict,
            rule,
            decision: decision.map(|decision| decision.to_string()),
            answers,
            withheld,
            rcode: u8::try_from(rcode).ok(),
            resolver,
            ms: took.as_secs_f64() * 1000.0,
            count: 1,
            process: None,
        };
        self.report_counted(now);
        let told = if is_free { self.reports.count(now, event) } else { Some(event) };
        let is_told = told.is_some();
        self.outputs.extend(told.map(|event| Output::Answered { client, event }));
        if is_told { Told::ByItself } else { Told::Counted }
    }

    /// Tells of look-ups that were counted, when it is time to.
    fn report_counted(&mut self, now: Time) {
        let due = self.reports.due(now);
        self.outputs.extend(due.into_iter().map(Output::Event));
    }

    fn report_overflow(&mut self, now: Time) {
        let is_due = self.overflow.reported.is_none_or(|reported| now.since(reported) >= LIMIT_REPORT_EVERY);
        if self.overflow.count == 0 || !is_due {
            return;
        }
        let bound = u64::try_from(MAX_WAITERS).unwrap_or(u64::MAX);
        let count = std::mem::take(&mut self.overflow.count);
        self.overflow.reported = Some(now);
        self.outputs.push(Output::Event(EventBody::LimitReached { limit: LimitKind::DnsQueries, bound, count }));
    }

    fn draw_decision(&mut self) -> DecisionId {
        DecisionId(self.random.next_u64() >> (u64::BITS - DECISION_BITS))
    }
}

fn protocol(transport: Transport) -> Protocol {
    match transport {
        Transport::Udp => Protocol::Udp,
        Transport::Tcp => Protocol::Tcp,
    }
}

/// A query as the policy sees it.
fn facts(server: SocketAddr, transport: Transport) -> Facts<'static> {
    let protocol = protocol(transport);
    Facts { direction: Direction::Egress, protocol, peer: server.ip(), port: Some(server.port()), names: &[] }
}

/// The rule that allows the query, or the one that denies it. Wherever it was sent, it is the gateway that answers, so
/// rules that allow DNS are asked about the gateway; what was sent elsewhere has passed the rules for that address as
/// well before it came here.
fn check(
    policy: &Policy,
    gateway: &[IpAddr],
    query: &Query,
    transport: Transport,
    server: SocketAddr,
) -> Result<Reason, Reason> {
    let mut gateways = gateway.iter().copied();
    let peer = gateways.find(|gateway| gateway.is_ipv4() == server.is_ipv4()).unwrap_or(server.ip());
    let facts = facts(SocketAddr::new(peer, server.port()), transport);
    match &query.domain {
        Some(domain) => match policy.check_name(domain, &facts) {
            NameVerdict::Allow(reason) => Ok(reason),
            NameVerdict::Deny(reason) => Err(reason),
        },
        // The root has no name that a rule could match; what is left is whether the query itself may be sent.
        None => match policy.check(&facts) {
            Verdict::Allow(permit) | Verdict::Pending(permit, _) => Ok(permit.reason().clone()),
            Verdict::Deny(denial) => Err(denial.reason().clone()),
        },
    }
}

/// NXDOMAIN that says why to those who can hear it (`names.md` §2 step 3).
fn denial(query: &Query, decision: DecisionId) -> Reply<'_> {
    let reply = Reply::new(query, Head::authoritative(Rcode::NxDomain));
    reply.with_denial_soa().with_error(ExtendedError::blocked(decision))
}

fn draw_id(random: &mut ChaCha20Rng) -> u16 {
    let [high, low, ..] = random.next_u32().to_be_bytes();
    u16::from_be_bytes([high, low])
}
