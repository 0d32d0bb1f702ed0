//! Who a packet is between, for those who only want to know which flow it belongs to. Nothing is decided by it: transport
//! checksums are not looked at, since the sender's kernel may not have written them yet.

use std::net::SocketAddr;

use cofferdam_model::Protocol;

use crate::wire::ip::{IpPacket, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP};
use crate::wire::{icmp, tcp, udp};

/// What [`read`] finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketEnds<'a> {
    pub protocol: Protocol,
    /// Port 0 with ICMP.
    pub src: SocketAddr,
    pub dst: SocketAddr,
    /// Whether it opens a connection, whatever came before it.
    pub is_syn: bool,
    /// The payload of a datagram; nothing of the others.
    pub payload: &'a [u8],
}

/// The ends of a TCP segment, a UDP datagram, or an echo request or reply in the IP packet `packet`. `None` for whatever else it
/// is, and for what is no packet that the gate would carry.
#[must_use]
pub fn read(packet: &[u8]) -> Option<PacketEnds<'_>> {
    let packet = IpPacket::parse(packet).ok()?;
    let ends = |protocol, ports: [u16; 2], is_syn, payload| {
        let [src, dst] = ports;
        let (src, dst) = (SocketAddr::new(packet.src, src), SocketAddr::new(packet.dst, dst));
        PacketEnds { protocol, src, dst, is_syn, payload }
    };
    match packet.protocol {
        PROTO_TCP => {
            let [s0, s1, d0, d1, _, _, _, _, _, _, _, _, _, flags, ..] =
                *packet.payload.first_chunk::<{ tcp::HEADER_LEN }>()?;
            let ports = [[s0, s1], [d0, d1]].map(u16::from_be_bytes);
            Some(ends(Protocol::Tcp, ports, tcp::opens(flags), &[]))
        }
        PROTO_UDP => {
            let (header, payload) = packet.payload.split_first_chunk::<{ udp::HEADER_LEN }>()?;
            let [s0, s1, d0, d1, ..] = *header;
            Some(ends(Protocol::Udp, [[s0, s1], [d0, d1]].map(u16::from_be_bytes), false, payload))
        }
        PROTO_ICMP | PROTO_ICMPV6 => {
            let protocol = if packet.dst.is_ipv4() { Protocol::IcmpV4 } else { Protocol::IcmpV6 };
            icmp::is_echo(*packet.payload.first()?, packet.dst).then(|| ends(protocol, [0; 2], false, &[]))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::wire::ip::IpEnds;

    const V4: [&str; 2] = ["10.0.0.2", "192.0.2.1"];
    const V6: [&str; 2] = ["fd00::2", "2001:db8::1"];

    fn packet(ends: [&str; 2], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let [src, dst] = ends.map(|end| end.parse::<IpAddr>().unwrap());
        let mut packet = Vec::new();
        IpEnds::new(src, dst).unwrap().emit_header(&mut packet, protocol, payload.len()).unwrap();
        packet.extend_from_slice(payload);
        packet
    }

    fn tcp(flags: u8) -> [u8; 20] {
        let mut segment = [0; 20];
        segment[..4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
        (segment[12], segment[13]) = (0x50, flags);
        segment
    }

    #[test]
    fn reads_ports_and_whether_a_connection_is_opened() {
        for ends in [V4, V6] {
            for (flags, is_syn) in [(2, true), (0xc2, true), (0x12, false), (0x10, false), (4, false)] {
                let bytes = packet(ends, 6, &tcp(flags));
                let read = read(&bytes).unwrap();
                assert_eq!((read.protocol, read.is_syn), (Protocol::Tcp, is_syn), "{flags:x}");
                assert_eq!(read.src, SocketAddr::new(ends[0].parse().unwrap(), 40_000));
                assert_eq!(read.dst, SocketAddr::new(ends[1].parse().unwrap(), 443));
            }
            let bytes = packet(ends, 17, &[0, 1, 0, 53, 0, 10, 9, 9, 0xab, 0xcd]);
            let read = read(&bytes).unwrap();
            assert_eq!((read.protocol, read.dst.port(), read.payload), (Protocol::Udp, 53, &[0xab, 0xcd][..]));
        }
    }

    #[test]
    fn reads_echoes_and_no_other_icmp() {
        let kinds =
            |ends, protocol, kind| read(&packet(ends, protocol, &[kind, 0, 0, 0, 0, 1, 0, 2])).map(|e| e.protocol);
        assert_eq!([8, 0].map(|kind| kinds(V4, 1, kind)), [Some(Protocol::IcmpV4); 2]);
        assert_eq!([128, 129].map(|kind| kinds(V6, 58, kind)), [Some(Protocol::IcmpV6); 2]);
        assert_eq!((kinds(V4, 1, 3), kinds(V6, 58, 135)), (None, None));
    }

    #[test]
    fn what_is_cut_off_or_of_no_such_protocol_has_no_ends() {
        for ends in [V4, V6] {
            let whole = packet(ends, 6, &tcp(2));
            for len in 0..whole.len() {
                assert_eq!(read(&whole[..len]), None);
            }
            assert_eq!(read(&packet(ends, 47, &[0; 40])), None);
        }
    }
}
