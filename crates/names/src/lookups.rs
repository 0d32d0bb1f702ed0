//! Asking resolvers: order, racing, repetition, time-out.
//!
//! A *lookup* is one question under way. It has a list of *candidates* (the configured resolvers, or the one that the
//! guest chose), and *attempts*: queries that were sent and may still be answered. The first answer wins, whatever its
//! rcode.
//!
//! | Event                                   | Effect                                                                |
//! |-----------------------------------------|-----------------------------------------------------------------------|
//! | new question                            | lookup; attempt at the first candidate                                |
//! | same question again while under way     | one more waiter                                                       |
//! | 300 ms of silence                       | attempt at the next candidate; the earlier ones go on                 |
//! | silence from all, 1 s, then 2 s         | over UDP: the round is repeated (datagrams get lost; sessions do not) |
//! | socket failed, or answer unreadable     | that candidate is out; the next one at once                           |
//! | UDP answer truncated                    | attempt at the same candidate over TCP                                |
//! | answer with a wrong id or question      | ignored; the eighth on one socket: attempt over TCP, where forging is  |
//! |                                         | not a matter of guessing                                              |
//! | other resolvers are configured          | attempt at the first of them; the earlier attempts go on              |
//! | all candidates out                      | failed                                                                |
//! | `query_timeout` after the start         | failed                                                                |
//!
//! Limits: [`MAX_WAITERS`] waiters; past that the one that has waited longest is answered with SERVFAIL, so that silent
//! names cannot shut out the others. At most [`MAX_ATTEMPTS`] attempts per lookup are under way at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use cofferdam_model::Time;

use crate::answer::Question;
use crate::cache::CacheKey;
use crate::output::Outbox;
use crate::query::Query;
use crate::reply::OUR_SIZE;
use crate::upstreams::{Index, Upstreams};
use crate::wire::{Name, Reader, Writer, flags};
use crate::{ClientId, Output, Reach, Transport, Upstream, UpstreamId};

/// Queries of one sandbox that wait for an answer at a time.
pub(crate) const MAX_WAITERS: usize = 1024;
/// Sockets of one lookup at a time.
const MAX_ATTEMPTS: usize = 4;
/// Candidates of one lookup past which resolvers that are new to it are left out: who changes them that often is asked by
/// the next question.
const MAX_CANDIDATES: usize = 16;
/// After how much silence the next resolver is asked as well (`names.md` §2 step 6).
const RACE_AFTER: Duration = Duration::from_millis(300);
/// When a round that nobody answered is repeated: long enough for a resolver that has to go and ask, and twice within
/// the usual budget of 5 s.
const REPEAT_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// Wrong answers on one socket until it is given up. Nobody but a forger sends even one.
const MAX_FOREIGN: u8 = 8;

/// Who answers a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Route {
    /// The configured resolvers.
    Configured,
    /// A resolver that the guest chose, and nobody else.
    Chosen(SocketAddr),
}

/// Everything that makes two queries the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) route: Route,
    pub(crate) transport: Transport,
    pub(crate) question: Question,
    /// RD, AD and CD as they are sent.
    pub(crate) flags: u16,
    pub(crate) dnssec_ok: bool,
}

impl Key {
    /// The question as it is remembered; `None` for those whose answers are not, because the guest chose who answers.
    pub(crate) fn to_cache_key(&self) -> Option<CacheKey> {
        match self.route {
            Route::Configured => {
                let question = self.question.clone();
                Some(CacheKey { question, flags: self.flags, dnssec_ok: self.dnssec_ok })
            }
            Route::Chosen(_) => None,
        }
    }
}

/// A query of the guest that waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) client: ClientId,
    pub(crate) transport: Transport,
    /// Where the guest sent it.
    pub(crate) server: SocketAddr,
    pub(crate) query: Query,
    /// Why the name was allowed.
    pub(crate) reason: cofferdam_policy::Reason,
    pub(crate) since: Time,
}

/// A lookup that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) key: Key,
    pub(crate) waiters: Vec<Waiter>,
    /// Who answered.
    pub(crate) server: Option<SocketAddr>,
}

/// What a sent query has to be answered with.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) id: u16,
    pub(crate) transport: Transport,
    pub(crate) question: &'a Question,
}

/// The questions under way.
#[derive(Debug)]
pub(crate) struct Lookups {
    upstreams: Upstreams,
    budget: Duration,
    lookups: BTreeMap<LookupId, Lookup>,
    by_key: BTreeMap<Key, LookupId>,
    attempts: BTreeMap<UpstreamId, Attempt>,
    /// One entry per lookup: when it next has to be looked at.
    timers: BTreeSet<(Time, LookupId)>,
    waiters: usize,
    next_lookup: u64,
    next_attempt: u64,
}

/// Numbers lookups by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct LookupId(u64);

#[derive(Debug)]
struct Lookup {
    key: Key,
    waiters: VecDeque<Waiter>,
    candidates: Vec<Candidate>,
    /// The candidate whose turn is next in this round.
    turn: usize,
    rounds: usize,
    /// When the next attempt is due.
    next: Option<Time>,
    deadline: Time,
    attempts: Vec<UpstreamId>,
}

#[derive(Debug)]
struct Candidate {
    server: SocketAddr,
    reach: Reach,
    /// `None` for a resolver that the guest chose.
    index: Option<Index>,
    is_out: bool,
}

#[derive(Debug)]
struct Attempt {
    lookup: LookupId,
    /// Index among the lookup's candidates.
    candidate: usize,
    server: SocketAddr,
    index: Option<Index>,
    transport: Transport,
    id: u16,
    sent: Time,
    foreign: u8,
}

impl Lookup {
    fn wake(&self) -> Time {
        self.next.map_or(self.deadline, |next| next.min(self.deadline))
    }
}

/// Draws the ids of messages and records what is to be sent: what a step of the lookups needs from outside.
pub(crate) struct Effects<'a> {
    pub(crate) now: Time,
    pub(crate) draw_id: &'a mut dyn FnMut() -> u16,
    pub(crate) outputs: &'a mut Outbox,
}

impl Lookups {
    pub(crate) fn new(servers: &[Upstream], budget: Duration) -> Lookups {
        Lookups {
            upstreams: Upstreams::new(servers),
            budget,
            lookups: BTreeMap::new(),
            by_key: BTreeMap::new(),
            attempts: BTreeMap::new(),
            timers: BTreeSet::new(),
            waiters: 0,
            next_lookup: 0,
            next_attempt: 0,
        }
    }

    /// Looks `key` up for `waiter`. Gives the lookup back when there is nobody to ask.
    pub(crate) fn ask(&mut self, effects: &mut Effects<'_>, key: Key, waiter: Waiter) -> Option<Finished> {
        self.waiters += 1;
        if let Some(lookup) = self.by_key.get(&key).and_then(|id| self.lookups.get_mut(id)) {
            lookup.waiters.push_back(waiter);
            return None;
        }
        let id = LookupId(self.next_lookup);
        self.next_lookup += 1;
        let lookup = Lookup {
            candidates: self.candidates(effects.now, key.route),
            key: key.clone(),
            waiters: VecDeque::from([waiter]),
            turn: 0,
            rounds: 0,
            next: None,
            deadline: effects.now + self.budget,
            attempts: Vec::new(),
        };
        self.timers.insert((lookup.wake(), id));
        self.lookups.insert(id, lookup);
        self.by_key.insert(key, id);
        self.advance(effects, id);
        self.finish_if_hopeless(effects, id)
    }

    fn candidates(&self, now: Time, route: Route) -> Vec<Candidate> {
        match route {
            Route::Chosen(server) => {
                vec![Candidate { server, reach: Reach::Datagrams, index: None, is_out: false }]
            }
            Route::Configured => {
                let candidate = |(index, Upstream { server, reach })| Candidate {
                    server,
                    reach,
                    index: Some(index),
                    is_out: false,
                };
                self.upstreams.in_order(now).into_iter().map(candidate).collect()
            }
        }
    }

    /// Other resolvers are configured from here on. What is under way is asked of them as well; an answer that the former
    /// ones still give counts.
    pub(crate) fn replace(&mut self, effects: &mut Effects<'_>, upstreams: &[Upstream]) {
        self.upstreams = Upstreams::new(upstreams);
        for attempt in self.attempts.values_mut() {
            attempt.index = None;
        }
        let ids: Vec<LookupId> = self.lookups.keys().copied().collect();
        for id in ids {
            let candidates = self.candidates(effects.now, Route::Configured);
            let Some(lookup) = self.lookups.get_mut(&id).filter(|lookup| lookup.key.route == Route::Configured) else {
                continue;
            };
            for (place, candidate) in lookup.candidates.iter_mut().enumerate() {
                candidate.index = None;
                // Those whose turn has not come do not get one.
                candidate.is_out |= place >= lookup.turn || candidate.reach == Reach::Session;
            }
            lookup.turn = lookup.candidates.len();
            let is_new = lookup.candidates.len() < MAX_CANDIDATES;
            lookup.candidates.extend(candidates.into_iter().filter(|_| is_new));
            if is_new {
                self.advance(effects, id);
            }
        }
    }

    /// How long a lookup may take that begins from here on.
    pub(crate) fn set_budget(&mut self, budget: Duration) {
        self.budget = budget;
    }

    /// Takes the waiter that has waited longest when there are more than [`MAX_WAITERS`].
    pub(crate) fn overflow(&mut self, effects: &mut Effects<'_>) -> Option<Finished> {
        if self.waiters <= MAX_WAITERS {
            return None;
        }
        let (&id, oldest) = self.lookups.iter_mut().next()?;
        if oldest.waiters.len() <= 1 {
            return self.finish(effects, id, None);
        }
        let waiter = oldest.waiters.pop_front()?;
        self.waiters -= 1;
        Some(Finished { key: oldest.key.clone(), waiters: vec![waiter], server: None })
    }

    /// What the query `upstream` asked, while it may still be answered.
    pub(crate) fn asked(&self, upstream: UpstreamId) -> Option<Asked<'_>> {
        let attempt = self.attempts.get(&upstream)?;
        let lookup = self.lookups.get(&attempt.lookup)?;
        Some(Asked { id: attempt.id, transport: attempt.transport, question: &lookup.key.question })
    }

    /// Whether `upstream` was asked of a resolver that is configured now.
    pub(crate) fn is_current(&self, upstream: UpstreamId) -> bool {
        self.attempts.get(&upstream).is_some_and(|attempt| attempt.index.is_some())
    }

    /// The query `upstream` was answered: its lookup is over.
    pub(crate) fn answered(&mut self, effects: &mut Effects<'_>, upstream: UpstreamId) -> Option<Finished> {
        let attempt = self.attempts.get(&upstream)?;
        let (id, server) = (attempt.lookup, attempt.server);
        if let Some(index) = attempt.index {
            self.upstreams.heard(effects.now, index);
        }
        self.note_silence(effects.now, id);
        self.finish(effects, id, Some(server))
    }

    /// The answer to `upstream` was truncated: the same question over TCP.
    pub(crate) fn truncated(&mut self, effects: &mut Effects<'_>, upstream: UpstreamId) {
        let Some(attempt) = self.attempts.remove(&upstream) else { return };
        effects.outputs.push(Output::Abandon { upstream });
        if let Some(index) = attempt.index {
            self.upstreams.heard(effects.now, index);
        }
        self.detach(attempt.lookup, upstream);
        self.send(effects, attempt.lookup, attempt.candidate, Transport::Tcp);
    }

    /// Something that is no answer arrived on the socket of `upstream`.
    pub(crate) fn foreign(&mut self, effects: &mut Effects<'_>, upstream: UpstreamId) -> Option<Finished> {
        let attempt = self.attempts.get_mut(&upstream)?;
        attempt.foreign += 1;
        match attempt.transport {
            Transport::Udp if attempt.foreign < MAX_FOREIGN => None,
            Transport::Udp => {
                let attempt = self.attempts.remove(&upstream)?;
                effects.outputs.push(Output::Abandon { upstream });
                self.detach(attempt.lookup, upstream);
                self.send(effects, attempt.lookup, attempt.candidate, Transport::Tcp);
                None
            }
            Transport::Tcp => self.broken(effects, upstream),
        }
    }

    /// The resolver answered `upstream` with something that cannot be read.
    pub(crate) fn broken(&mut self, effects: &mut Effects<'_>, upstream: UpstreamId) -> Option<Finished> {
        let attempt = self.attempts.remove(&upstream)?;
        effects.outputs.push(Output::Abandon { upstream });
        self.drop_candidate(effects, upstream, &attempt)
    }

    /// The socket of `upstream` failed and is gone.
    pub(crate) fn failed(&mut self, effects: &mut Effects<'_>, upstream: UpstreamId) -> Option<Finished> {
        let attempt = self.attempts.remove(&upstream)?;
        if let Some(index) = attempt.index {
            self.upstreams.failed(effects.now, index);
        }
        self.drop_candidate(effects, upstream, &attempt)
    }

    fn drop_candidate(
        &mut self,
        effects: &mut Effects<'_>,
        upstream: UpstreamId,
        attempt: &Attempt,
    ) -> Option<Finished> {
        self.detach(attempt.lookup, upstream);
        let lookup = self.lookups.get_mut(&attempt.lookup)?;
        if let Some(candidate) = lookup.candidates.get_mut(attempt.candidate) {
            candidate.is_out = true;
        }
        // Not while another answer may be on its way from somebody who was asked after this one.
        let is_last = lookup.attempts.is_empty() || attempt.candidate + 1 == lookup.turn;
        if is_last && lookup.turn < lookup.candidates.len() {
            self.advance(effects, attempt.lookup);
        }
        self.finish_if_hopeless(effects, attempt.lookup)
    }

    /// The next lookup whose time is up, after those whose turn it was have been moved on. Call until `None`.
    pub(crate) fn expired(&mut self, effects: &mut Effects<'_>) -> Option<Finished> {
        while let Some(&(due, id)) = self.timers.first() {
            if due > effects.now {
                return None;
            }
            let over = self.lookups.get(&id).is_none_or(|lookup| lookup.deadline <= effects.now);
            if over {
                self.note_silence(effects.now, id);
                // Without a lookup the timer would be a left-over; it goes either way.
                self.timers.remove(&(due, id));
                if let Some(finished) = self.finish(effects, id, None) {
                    return Some(finished);
                }
                continue;
            }
            self.advance(effects, id);
            if let Some(finished) = self.finish_if_hopeless(effects, id) {
                return Some(finished);
            }
        }
        None
    }

    /// The next lookup at a resolver of the guest's choice that is `moved`. Call until `None`.
    pub(crate) fn withdrawn(
        &mut self,
        effects: &mut Effects<'_>,
        moved: impl Fn(SocketAddr, Transport) -> bool,
    ) -> Option<Finished> {
        let chosen = |lookup: &Lookup| match lookup.key.route {
            Route::Configured => false,
            Route::Chosen(server) => moved(server, lookup.key.transport),
        };
        let id = *self.lookups.iter().find(|(_, lookup)| chosen(lookup))?.0;
        self.finish(effects, id, None)
    }

    /// Lets `judge` look at everybody who waits, and takes those out about whom it says no. Nobody is asked any more on behalf
    /// of these alone.
    pub(crate) fn revise(
        &mut self,
        effects: &mut Effects<'_>,
        mut judge: impl FnMut(&mut Waiter) -> bool,
    ) -> Vec<Waiter> {
        let mut out = Vec::new();
        let mut idle = Vec::new();
        for (id, lookup) in &mut self.lookups {
            for mut waiter in std::mem::take(&mut lookup.waiters) {
                if judge(&mut waiter) {
                    lookup.waiters.push_back(waiter);
                } else {
                    self.waiters -= 1;
                    out.push(waiter);
                }
            }
            if lookup.waiters.is_empty() {
                idle.push(*id);
            }
        }
        for id in idle {
            self.finish(effects, id, None);
        }
        out
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Asks the next candidate, or starts the next round, and says when the turn after that comes.
    fn advance(&mut self, effects: &mut Effects<'_>, id: LookupId) {
        let Some(lookup) = self.lookups.get_mut(&id) else { return };
        if lookup.turn >= lookup.candidates.len() {
            lookup.turn = 0;
            lookup.rounds += 1;
        }
        let waiting = lookup.candidates.iter().enumerate().skip(lookup.turn);
        let next = waiting.filter(|(_, candidate)| !candidate.is_out).map(|(place, _)| place).next();
        lookup.turn = next.map_or(lookup.candidates.len(), |place| place + 1);
        let more = lookup.candidates.iter().skip(lookup.turn).any(|candidate| !candidate.is_out);
        let pause = match (more, lookup.key.transport) {
            (true, _) => Some(RACE_AFTER),
            (false, Transport::Udp) => REPEAT_AFTER.get(lookup.rounds).copied(),
            // TCP repeats by itself.
            (false, Transport::Tcp) => None,
        };
        let transport = lookup.key.transport;
        let next_turn = pause.map(|pause| effects.now + pause);
        self.schedule(id, next_turn);
        if let Some(place) = next {
            self.send(effects, id, place, transport);
        }
    }

    fn schedule(&mut self, id: LookupId, next: Option<Time>) {
        let Some(lookup) = self.lookups.get_mut(&id) else { return };
        self.timers.remove(&(lookup.wake(), id));
        lookup.next = next;
        self.timers.insert((lookup.wake(), id));
    }

    fn send(&mut self, effects: &mut Effects<'_>, id: LookupId, place: usize, transport: Transport) {
        let Some(lookup) = self.lookups.get_mut(&id) else { return };
        let Some(candidate) = lookup.candidates.get(place) else { return };
        let session = candidate.index.filter(|_| candidate.reach == Reach::Session);
        let attempts = &self.attempts;
        let is_under_way = |id| attempts.get(id).is_some_and(|attempt: &Attempt| attempt.candidate == place);
        // A session loses nothing: a round that is repeated is not for it.
        if session.is_some() && lookup.attempts.iter().any(is_under_way) {
            return;
        }
        // Neither does it truncate, nor can anybody forge into it: like TCP.
        let transport = if session.is_some() { Transport::Tcp } else { transport };
        let upstream = UpstreamId(self.next_attempt);
        self.next_attempt += 1;
        if lookup.attempts.len() >= MAX_ATTEMPTS {
            let oldest = lookup.attempts.remove(0);
            self.attempts.remove(&oldest);
            effects.outputs.push(Output::Abandon { upstream: oldest });
        }
        let attempt = Attempt {
            lookup: id,
            candidate: place,
            server: candidate.server,
            index: candidate.index,
            transport,
            id: (effects.draw_id)(),
            sent: effects.now,
            foreign: 0,
        };
        let message = write_query(attempt.id, &lookup.key);
        effects.outputs.push(match session {
            Some(index) => Output::Ask { upstream, resolver: index.0, message },
            None => Output::Query { upstream, server: attempt.server, transport, message },
        });
        lookup.attempts.push(upstream);
        self.attempts.insert(upstream, attempt);
    }

    fn detach(&mut self, id: LookupId, upstream: UpstreamId) {
        if let Some(lookup) = self.lookups.get_mut(&id) {
            lookup.attempts.retain(|attempt| *attempt != upstream);
        }
    }

    /// Remembers who did not answer this lookup although there was time.
    fn note_silence(&mut self, now: Time, id: LookupId) {
        let Some(lookup) = self.lookups.get(&id) else { return };
        let patience = RACE_AFTER.min(self.budget);
        for attempt in lookup.attempts.iter().filter_map(|attempt| self.attempts.get(attempt)) {
            if let Some(index) = attempt.index.filter(|_| now.since(attempt.sent) >= patience) {
                self.upstreams.silent(now, index, attempt.sent);
            }
        }
    }

    fn finish_if_hopeless(&mut self, effects: &mut Effects<'_>, id: LookupId) -> Option<Finished> {
        let lookup = self.lookups.get(&id)?;
        let nobody_left = lookup.next.is_none() || lookup.candidates.iter().all(|candidate| candidate.is_out);
        let hopeless = lookup.attempts.is_empty() && nobody_left;
        if hopeless { self.finish(effects, id, None) } else { None }
    }

    fn finish(&mut self, effects: &mut Effects<'_>, id: LookupId, server: Option<SocketAddr>) -> Option<Finished> {
        let lookup = self.lookups.remove(&id)?;
        self.timers.remove(&(lookup.wake(), id));
        self.by_key.remove(&lookup.key);
        for upstream in lookup.attempts {
            self.attempts.remove(&upstream);
            effects.outputs.push(Output::Abandon { upstream });
        }
        self.waiters -= lookup.waiters.len();
        Some(Finished { key: lookup.key, waiters: lookup.waiters.into(), server })
    }
}

/// The message that asks for `key`. Nothing of the guest's but the question and three flags is in it.
fn write_query(id: u16, key: &Key) -> Vec<u8> {
    let mut writer = Writer::new(id, key.flags);
    let name = Reader::new(&key.question.name).plain_name().unwrap_or_else(|_| Name::root());
    writer.question(&name, key.question.qtype);
    writer.opt(OUR_SIZE, 0, if key.dnssec_ok { flags::DNSSEC_OK } else { 0 }, &[], 0);
    writer.finish()
}
