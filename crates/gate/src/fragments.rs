//! Joining what the guest sent in fragments.
//!
//! The kernel reassembles a guest's fragments in the gateway namespace, with its own bounds on memory and time and its
//! own refusal of overlaps (RFC 5722), because the packet filter needs whole packets. But on the way to the TUN it cuts
//! them up again. What arrives here is therefore a *train*: the pieces of one packet, complete, in order, back to back
//! and without overlaps. So this is no reassembly: nothing is sorted, no hole is kept open, and one train per family is
//! under way at a time. Whole packets may pass in between.
//!
//! | State    | Event                                        | Next     | Effect                         |
//! |----------|----------------------------------------------|----------|--------------------------------|
//! | –        | first piece, more follow                     | UnderWay | keep                           |
//! | –        | first piece, nothing follows (RFC 6946)      | –        | the packet                     |
//! | UnderWay | same packet, expected offset, more follow    | UnderWay | keep                           |
//! | UnderWay | same packet, expected offset, the last       | –        | the packet                     |
//! | UnderWay | first piece                                  | *as –*   | drop the train; then as from – |
//! | UnderWay | any other piece                              | –        | drop the train and the piece   |
//! | –        | any other piece                              | –        | drop the piece                 |
//! | UnderWay | [`TIMEOUT`] after the first piece            | –        | drop the train                 |
//!
//! A dropped train counts once, and so does a dropped piece, both as [`DropReason::Fragment`]. Nothing in a payload is
//! looked at before it is whole, so that it does not matter where a packet was cut.
//!
//! Limits: one packet of each family, 65,535 bytes of it (the length fields of RFC 791 and RFC 8200).
//!
//! Not here: TCP, whose segments no system of today fragments, and every other protocol that the gate would refuse
//! anyway; pieces on which something is left to be done, which the kernel does not make.

use std::net::IpAddr;
use std::time::Duration;

use cofferdam_model::{DropReason, Time};

use crate::context::Context;
use crate::wire::ip::{PROTO_ICMP, PROTO_ICMPV6, PROTO_UDP, Piece};
use crate::wire::virtio::Offload;
use crate::wire::{ipv4, ipv6};

/// The kernel writes a train in one go. What is not complete after so long lost its rest to a full queue.
const TIMEOUT: Duration = Duration::from_secs(1);
/// What the length fields hold: of the whole packet in IPv4, of the payload in IPv6.
const MAX_LENGTH: usize = 65_535;

/// The trains that are under way.
#[derive(Debug, Default)]
pub(crate) struct Fragments {
    v4: Option<Train>,
    v6: Option<Train>,
}

/// The beginning of a packet.
#[derive(Debug)]
struct Train {
    key: Key,
    /// When the first piece came.
    since: Time,
    /// Length of the payload so far; at least one byte.
    length: usize,
    /// The header of the first piece and the payload so far.
    packet: Vec<u8>,
}

/// What the pieces of one packet have in common (RFC 791 §3.2; RFC 8200 §4.5 does without the protocol).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ident: u32,
}

impl Fragments {
    /// Takes a piece from an address of the guest's. Returns the packet that it completes.
    pub(crate) fn join(&mut self, cx: &mut Context, now: Time, offload: Offload, piece: &Piece<'_>) -> Option<Vec<u8>> {
        let slot = match piece.dst {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        };
        let good = offload == Offload::NONE && is_joinable(piece);
        let train = match slot.take() {
            Some(train) if good && train.expects(now, piece) => Some(train),
            unfinished => {
                if unfinished.is_some() {
                    cx.drop(now, DropReason::Fragment);
                }
                (good && piece.offset == 0).then(|| Train::new(now, piece))
            }
        };
        let Some(mut train) = train else {
            cx.drop(now, DropReason::Fragment);
            return None;
        };
        train.push(piece);
        if piece.more {
            *slot = Some(train);
            return None;
        }
        let whole = train.finish();
        debug_assert!(whole.is_some(), "the length was checked with every piece");
        whole
    }

    pub(crate) fn handle_timeout(&mut self, cx: &mut Context, now: Time) {
        for slot in [&mut self.v4, &mut self.v6] {
            if slot.take_if(|train| train.deadline() <= now).is_some() {
                cx.drop(now, DropReason::Fragment);
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        [&self.v4, &self.v6].into_iter().flatten().map(Train::deadline).min()
    }
}

impl Train {
    fn new(now: Time, first: &Piece<'_>) -> Train {
        // All at once: growing by doubling would pass the limit, growing by the piece would copy tiny ones for ever.
        let mut packet = Vec::with_capacity(first.header.len() + MAX_LENGTH);
        packet.extend_from_slice(first.header);
        Train { key: key(first), since: now, length: 0, packet }
    }

    fn expects(&self, now: Time, piece: &Piece<'_>) -> bool {
        self.key == key(piece) && self.length == piece.offset && now < self.deadline()
    }

    fn push(&mut self, piece: &Piece<'_>) {
        self.packet.extend_from_slice(piece.payload);
        self.length += piece.payload.len();
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        match self.key.dst {
            IpAddr::V4(_) => ipv4::make_whole(&mut self.packet)?,
            IpAddr::V6(_) => ipv6::make_whole(&mut self.packet, self.key.protocol)?,
        }
        Some(self.packet)
    }

    fn deadline(&self) -> Time {
        self.since + TIMEOUT
    }
}

/// Whether `piece` can be part of a packet that the gate carries.
fn is_joinable(piece: &Piece<'_>) -> bool {
    let (echo, header_len) = match piece.dst {
        IpAddr::V4(_) => (PROTO_ICMP, piece.header.len()),
        // The length field does not count the header.
        IpAddr::V6(_) => (PROTO_ICMPV6, 0),
    };
    let carried = piece.protocol == PROTO_UDP || piece.protocol == echo;
    // Offsets count in eights; an empty piece would make no way.
    let shaped = !piece.payload.is_empty() && (!piece.more || piece.payload.len().is_multiple_of(8));
    carried && shaped && header_len + piece.offset + piece.payload.len() <= MAX_LENGTH
}

fn key(piece: &Piece<'_>) -> Key {
    Key { src: piece.src, dst: piece.dst, protocol: piece.protocol, ident: piece.ident }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn piece<'a>(address: IpAddr, offset: usize, header: &'a [u8], payload: &'a [u8]) -> Piece<'a> {
        Piece { src: address, dst: address, protocol: PROTO_UDP, ident: 1, offset, more: true, header, payload }
    }

    #[test]
    fn a_train_never_takes_more_memory_than_it_began_with() {
        let address = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let header = [0; ipv6::HEADER_LEN];
        let mut train = Train::new(Time::ZERO, &piece(address, 0, &header, &[]));
        let room = train.packet.capacity();
        assert!(room <= MAX_LENGTH + header.len());
        let payload = [7; 8];
        let mut offset = 0;
        while is_joinable(&piece(address, offset, &header, &payload)) {
            assert!(train.expects(Time::ZERO, &piece(address, offset, &header, &payload)));
            train.push(&piece(address, offset, &header, &payload));
            offset += payload.len();
        }
        assert_eq!((offset, train.packet.capacity()), (65_528, room));
    }
}
