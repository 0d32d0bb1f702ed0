//! Brings packets and decisions together.
//!
//! The gateway decides after it has seen a packet, and its word comes by another way than the packet does. So the packet that
//! opens a flow waits for the decision about it, and what comes after that packet, of whatever flow, waits behind it: the order
//! stays as it was.
//!
//! | A packet | Waits | Has as comments |
//! |---|---|---|
//! | opens a flow: a SYN, the first datagram or echo between two ends | for a decision, [`PATIENCE`] | what is decided until it goes |
//! | is another one of a flow | never by itself | decisions that were made before it went by, and stand on no other packet yet |
//! | is of no flow that a decision could be about | never by itself | none |
//!
//! So a decision about a flow that lasts (its first flight is denied) stands on the packet that follows it, which is what the guest was answered; and one
//! that came too late for the packet that it is about stands on the next one of the flow.
//!
//! Limits: [`MAX_HELD`] bytes and [`MAX_HELD_PACKETS`] packets that wait (the oldest goes without its decision), [`MAX_FLOWS`] flows
//! (the one that is known longest is forgotten: its next datagram opens it anew), [`MAX_PENDING`] decisions of a flow without a packet
//! (the oldest is forgotten), [`MEMORY`] for each. What is read of a packet is its ends, by the gate's parser; what that refuses belongs to no flow.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use cofferdam_gate::wire::ends;
use cofferdam_model::{Protocol, Time};

use crate::decision::{Decision, query_of};
use crate::pcapng::{self, Origin, Packet, Totals, Way};

/// How long a packet waits for a decision. A look-up or a dial takes longer where the network is slow; then the answer has it.
pub const PATIENCE: Duration = Duration::from_millis(200);
/// A link that carries more than 80 MiB in a second has packets go sooner while something waits.
pub const MAX_HELD: usize = 16 * 1024 * 1024;
/// Small ones, whose bytes are not what costs.
pub const MAX_HELD_PACKETS: usize = 16 * 1024;
/// Twice as many connections as the gateway carries at once by default; with a decision of the longest for each, some 16 MiB.
pub const MAX_FLOWS: usize = 8 * 1024;
/// A flow of HTTP requests is denied once and ends.
const MAX_PENDING: usize = 4;
/// How long a decision waits for a packet. What the guest is answered goes at once; but a peer that is denied gets no packet on the
/// link, and a later flow between the same ends is not the one that was denied.
const MEMORY: Duration = Duration::from_secs(5);

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// The packets of one link on their way to a file.
#[derive(Debug)]
pub struct Capture {
    flows: BTreeMap<Key, Flow>,
    /// Oldest first.
    known: VecDeque<Key>,
    queue: VecDeque<Held>,
    /// Of the packets in the queue, one behind the other.
    bytes: VecDeque<u8>,
    out: Vec<u8>,
    /// Packets in `out`.
    packets: u64,
}

/// Names a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    protocol: Protocol,
    guest: SocketAddr,
    remote: SocketAddr,
    query: Option<u16>,
}

#[derive(Debug, Default)]
struct Flow {
    /// Whether there was a packet of it.
    is_seen: bool,
    /// Decisions that stand on no packet.
    pending: Vec<Decision>,
}

/// A packet that waits.
#[derive(Debug)]
struct Held {
    time: Duration,
    way: Way,
    kept: usize,
    length: u32,
    key: Option<Key>,
    /// Until when it waits for a decision.
    until: Option<Time>,
    comments: Vec<String>,
}

impl Capture {
    /// A file that begins.
    #[must_use]
    pub fn new(origin: &Origin<'_>) -> Capture {
        let mut out = Vec::new();
        pcapng::begin(&mut out, origin);
        Capture {
            flows: BTreeMap::new(),
            known: VecDeque::new(),
            queue: VecDeque::new(),
            bytes: VecDeque::new(),
            out,
            packets: 0,
        }
    }

    /// A packet went by.
    pub fn handle_packet(&mut self, now: Time, packet: &Packet<'_>) {
        self.release(now);
        let read = Key::read(packet);
        let key = read.map(|(key, _)| key);
        let opens = read.is_some_and(|(key, is_syn)| self.is_opened_by(key, is_syn));
        let comments = key.map(|key| self.take_pending(&key, packet.time, opens)).unwrap_or_default();
        let until = (opens && comments.is_empty()).then(|| now + PATIENCE);
        if until.is_none() && self.queue.is_empty() {
            pcapng::packet(&mut self.out, packet, comments.iter().map(String::as_str));
            self.packets += 1;
            return;
        }
        let bytes = packet.bytes.get(..pcapng::SNAPLEN).unwrap_or(packet.bytes);
        self.bytes.extend(bytes);
        self.queue.push_back(Held {
            time: packet.time,
            way: packet.way,
            kept: bytes.len(),
            length: packet.length,
            key,
            until,
            comments,
        });
        self.release(now);
    }

    /// The gateway has decided something.
    pub fn handle_decision(&mut self, now: Time, decision: Decision) {
        let key =
            Key { protocol: decision.protocol, guest: decision.guest, remote: decision.remote, query: decision.query };
        let of_flow = |held: &&mut Held| held.key.is_some_and(|other| other.is_of(&key));
        // The packet that waits for it, or else the next one of the flow, should that have gone by already.
        let mut held = self.queue.iter_mut().filter(of_flow).filter(|held| held.until.is_some());
        let waiting = match held.next() {
            Some(held) => Some(held),
            None => self.queue.iter_mut().filter(of_flow).find(|held| held.time >= decision.made),
        };
        match waiting {
            Some(held) => {
                held.comments.push(decision.text);
                held.until = None;
            }
            None => {
                let pending = &mut self.know(key).pending;
                if pending.len() >= MAX_PENDING {
                    pending.remove(0);
                }
                pending.push(decision);
            }
        }
        self.release(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.release(now);
    }

    /// When to call [`Capture::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.queue.front().and_then(|held| held.until)
    }

    /// There are no more packets: what waits goes, and the file ends.
    pub fn finish(&mut self) {
        while let Some(held) = self.queue.pop_front() {
            self.emit(&held);
        }
    }

    /// Ends the file, after [`Capture::finish`] and once everything before was written.
    pub fn end(&mut self, totals: &Totals) {
        pcapng::end(&mut self.out, totals);
    }

    /// What is to be written: whole blocks, and how many packets there are in them.
    #[must_use]
    pub fn output(&self) -> (&[u8], u64) {
        (&self.out, self.packets)
    }

    /// That was written, or is lost.
    pub fn clear_output(&mut self) {
        self.out.clear();
        self.packets = 0;
    }

    /// Whether a packet is the first of its flow. Of a connection only a SYN is: another segment belongs to one that was forgotten.
    fn is_opened_by(&mut self, key: Key, is_syn: bool) -> bool {
        let was_seen = std::mem::replace(&mut self.know(key).is_seen, true);
        match key.protocol {
            Protocol::Tcp => is_syn,
            Protocol::Udp | Protocol::IcmpV4 | Protocol::IcmpV6 => !was_seen,
        }
    }

    /// The flow, which has a place in the table from here on.
    fn know(&mut self, key: Key) -> &mut Flow {
        if !self.flows.contains_key(&key) {
            if self.flows.len() >= MAX_FLOWS
                && let Some(oldest) = self.known.pop_front()
            {
                self.flows.remove(&oldest);
            }
            self.known.push_back(key);
        }
        self.flows.entry(key).or_default()
    }

    /// The decisions that stand on no packet, for a packet of the flow that went by at `time`.
    fn take_pending(&mut self, key: &Key, time: Duration, opens: bool) -> Vec<String> {
        let any = key.query.map(|_| Key { query: None, ..*key });
        let mut comments = Vec::new();
        for key in std::iter::once(*key).chain(any) {
            let Some(flow) = self.flows.get_mut(&key) else { continue };
            flow.pending.retain(|decision| time <= decision.made.saturating_add(MEMORY));
            let due = |decision: &mut Decision| opens || decision.made <= time;
            comments.extend(flow.pending.extract_if(.., due).map(|decision| decision.text));
        }
        comments
    }

    /// Lets go what need not or cannot wait.
    fn release(&mut self, now: Time) {
        while let Some(held) = self.queue.front() {
            let is_waiting = held.until.is_some_and(|until| now < until);
            let has_room = self.bytes.len() <= MAX_HELD && self.queue.len() <= MAX_HELD_PACKETS;
            if is_waiting && has_room {
                return;
            }
            let Some(held) = self.queue.pop_front() else { return };
            self.emit(&held);
        }
    }

    /// Writes the packet whose bytes are the first.
    fn emit(&mut self, held: &Held) {
        let bytes: Vec<u8> = self.bytes.drain(..held.kept.min(self.bytes.len())).collect();
        let packet = Packet { time: held.time, way: held.way, bytes: &bytes, length: held.length };
        pcapng::packet(&mut self.out, &packet, held.comments.iter().map(String::as_str));
        self.packets += 1;
    }
}

impl Key {
    /// The flow of a packet, and whether the packet is a SYN.
    fn read(packet: &Packet<'_>) -> Option<(Key, bool)> {
        let (header, ip) = packet.bytes.split_first_chunk::<ETHERNET>()?;
        let [.., kind0, kind1] = *header;
        if ![IPV4, IPV6].contains(&[kind0, kind1]) {
            return None;
        }
        let ends = ends::read(ip)?;
        let (guest, remote) = match packet.way {
            Way::Outbound => (ends.src, ends.dst),
            Way::Inbound => (ends.dst, ends.src),
        };
        let query = query_of(ends.protocol, remote, ends.payload);
        Some((Key { protocol: ends.protocol, guest, remote, query }, ends.is_syn))
    }

    /// Whether a decision about `other` is one about this.
    fn is_of(&self, other: &Key) -> bool {
        *self == Key { query: other.query.or(self.query), ..*other }
    }
}
