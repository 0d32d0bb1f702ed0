//! Who may read from the sockets of TCP flows, and when: the sandbox's limits as the relay meets them.
//!
//! A lane asks before it reads. When the rate has nothing for it, its flow joins the end of a queue, one per direction, and is
//! pumped again when there is something and all before it have had theirs. Whoever comes while others wait joins the queue too,
//! so that no flow gets ahead of another. In the meantime nothing of it is read: its sender's window closes, and nothing is lost.
//!
//! Where nothing is limited nobody asks.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;

use cofferdam_gate::{Grant, Limits, Way};
use cofferdam_model::{FlowId, Time};
use rustix::io::Errno;
use rustix::net::RecvFlags;

/// Flows that wait, by direction.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    egress: Queue,
    ingress: Queue,
}

#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<FlowId>,
    /// The same flows, each once.
    members: BTreeSet<FlowId>,
}

/// What a lane has to know to keep to the limits.
pub(crate) struct Pace<'a> {
    limits: &'a mut Limits,
    queues: &'a mut Queues,
    now: Time,
    /// The flow whose turn it is, which way, and what it may read at most.
    turn: Option<(FlowId, Way, u64)>,
}

/// What a lane finds in front of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It may read as many bytes.
    Read(usize),
    /// It has to wait, and was put into the queue.
    Wait,
    /// There is nothing to read.
    Nothing,
    /// The source is in error, of which nobody else will hear: whoever asks a socket takes its error away.
    Broken,
    /// The flow has to end: a budget is used up.
    End,
}

impl Queues {
    /// When the next flow of a queue may be served.
    pub(crate) fn poll_timeout(&self, limits: &Limits) -> Option<Time> {
        let waiting = Way::ALL.into_iter().filter(|way| !self.of(*way).order.is_empty());
        waiting.map(|way| limits.ready_at(way)).min()
    }

    /// The flows whose turn it is, with what each may read at most.
    pub(crate) fn due(&mut self, limits: &mut Limits, now: Time, way: Way) -> Vec<(FlowId, u64)> {
        let queue = self.of_mut(way);
        let waiting = queue.order.len();
        if waiting == 0 || limits.ready_at(way) > now {
            return Vec::new();
        }
        let available = limits.available(now, way);
        // As many as get a quantum each. With few, what is there is shared, since a wake-up may come late.
        let quantum = limits.quantum(way).max(1);
        let served = usize::try_from((available / quantum).max(1)).unwrap_or(usize::MAX).min(waiting);
        let share = (available / served as u64).max(quantum);
        let due: Vec<_> = queue.order.drain(..served).collect();
        for flow in &due {
            queue.members.remove(flow);
        }
        if queue.order.is_empty() {
            limits.stop_waiting(way);
        }
        due.into_iter().map(|flow| (flow, share)).collect()
    }

    fn of(&self, way: Way) -> &Queue {
        match way {
            Way::Egress => &self.egress,
            Way::Ingress => &self.ingress,
        }
    }

    fn of_mut(&mut self, way: Way) -> &mut Queue {
        match way {
            Way::Egress => &mut self.egress,
            Way::Ingress => &mut self.ingress,
        }
    }
}

impl<'a> Pace<'a> {
    pub(crate) fn new(limits: &'a mut Limits, queues: &'a mut Queues, now: Time) -> Pace<'a> {
        Pace { limits, queues, now, turn: None }
    }

    /// For a flow from the queue, whose turn it is.
    pub(crate) fn serving(self, turn: Option<(FlowId, Way, u64)>) -> Pace<'a> {
        Pace { turn, ..self }
    }

    pub(crate) fn now(&self) -> Time {
        self.now
    }

    pub(crate) fn is_unlimited(&self) -> bool {
        self.limits.is_unlimited()
    }

    /// What the lane of `flow` may read from `source`.
    pub(crate) fn leave(&mut self, flow: FlowId, way: Way, source: &OwnedFd) -> Leave {
        let turn = self.turn.filter(|(whose, which, _)| (*whose, *which) == (flow, way)).map(|(.., left)| left);
        let grant = match (turn, self.limits.grant(self.now, flow, way)) {
            (None, Grant::Bytes(_)) if !self.queues.of(way).order.is_empty() => Grant::Wait,
            (Some(0), Grant::Bytes(_)) => Grant::Wait,
            (Some(left), Grant::Bytes(bytes)) => Grant::Bytes(bytes.min(left)),
            (_, grant) => grant,
        };
        match grant {
            Grant::Unlimited => Leave::Read(usize::MAX),
            Grant::Bytes(bytes) => Leave::Read(usize::try_from(bytes).unwrap_or(usize::MAX)),
            Grant::Wait | Grant::UsedUp => match peek(source) {
                // The end is nothing that anybody has to wait for, nor an error.
                Peeked::Over => Leave::Read(1),
                Peeked::Broken => Leave::Broken,
                Peeked::Nothing => Leave::Nothing,
                Peeked::Something if grant == Grant::UsedUp => {
                    self.limits.exceed(flow, way);
                    Leave::End
                }
                Peeked::Something => {
                    let queue = self.queues.of_mut(way);
                    if queue.members.insert(flow) {
                        queue.order.push_back(flow);
                        self.limits.wait(self.now, way);
                    }
                    Leave::Wait
                }
            },
        }
    }

    /// The lane has read.
    pub(crate) fn spend(&mut self, flow: FlowId, way: Way, bytes: usize) {
        if self.limits.is_unlimited() {
            return;
        }
        let bytes = bytes as u64;
        self.limits.spend(self.now, flow, way, bytes);
        if let Some((whose, which, left)) = &mut self.turn
            && (*whose, *which) == (flow, way)
        {
            *left = left.saturating_sub(bytes);
        }
    }
}

enum Peeked {
    Something,
    Nothing,
    Over,
    Broken,
}

fn peek(source: &OwnedFd) -> Peeked {
    loop {
        match rustix::net::recv(source, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Peeked::Over,
            Ok(_) => return Peeked::Something,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Peeked::Nothing,
            Err(_) => return Peeked::Broken,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use cofferdam_model::BucketConfig;

    use super::*;

    /// So many bytes in so much time, both ways.
    pub(crate) fn rates(size: u64, refill_time: Duration) -> Limits {
        let mut limits = cofferdam_policy::file::default_network().limits;
        let rate = BucketConfig { size, refill_time, one_time_burst: 0 };
        limits.rates.egress.bandwidth = Some(rate);
        limits.rates.ingress.bandwidth = Some(rate);
        Limits::new(&limits, Time::ZERO)
    }
}
