//! The blocks of pcapng (draft-ietf-opsawg-pcapng): one section, one interface, enhanced packets, statistics.
//!
//! Numbers are little endian, times nanoseconds since 1970. A block is a type, its length, a body, options, and its length once
//! more, each on a border of four bytes. Nothing here fails: what a field cannot hold is cut off before it is written.

use std::time::Duration;

/// The most of a packet that is kept: what Wireshark takes (`WTAP_MAX_PACKET_SIZE_STANDARD`), and more than any packet of ours.
pub const SNAPLEN: usize = 262_144;

/// The most of a comment that is kept, in bytes. Ours have a few hundred; an option cannot hold more than 65,535.
pub const MAX_COMMENT: usize = 4096;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

const END: u16 = 0;
const COMMENT: u16 = 1;
const HARDWARE: u16 = 2;
const OS: u16 = 3;
const APPLICATION: u16 = 4;
const NAME: u16 = 2;
const DESCRIPTION: u16 = 3;
const RESOLUTION: u16 = 9;
const FLAGS: u16 = 2;
const STARTED: u16 = 2;
const ENDED: u16 = 3;
const RECEIVED: u16 = 4;
const DROPPED: u16 = 5;
const DROPPED_BY_OS: u16 = 7;
const DELIVERED: u16 = 8;

const LINK_ETHERNET: u16 = 1;
/// A power of ten: nanoseconds.
const NANOSECONDS: u8 = 9;

/// Which way a packet goes, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the guest.
    Inbound,
    /// From the guest.
    Outbound,
}

/// A frame of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Since 1970.
    pub time: Duration,
    pub way: Way,
    /// With its Ethernet header.
    pub bytes: &'a [u8],
    /// How long it was, should `bytes` be less than all of it.
    pub length: u32,
}

/// What the file says at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub started: Duration,
    pub ended: Duration,
    /// Packets that went by.
    pub seen: u64,
    /// Those that are not in the file.
    pub missing: u64,
    /// Those among them that the kernel had no room for.
    pub dropped_by_kernel: u64,
}

/// Where the packets were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Such as `x86_64`.
    pub hardware: &'a str,
    pub os: &'a str,
    /// Name and version of the program.
    pub application: &'a str,
    pub interface: &'a str,
    pub description: &'a str,
}

/// Begins a file.
pub fn begin(out: &mut Vec<u8>, origin: &Origin<'_>) {
    block(out, SECTION_HEADER, |out| {
        out.extend(BYTE_ORDER.to_le_bytes());
        // Version 1.0.
        out.extend(1_u16.to_le_bytes());
        out.extend(0_u16.to_le_bytes());
        // How long the section is: as long as the file.
        out.extend((-1_i64).to_le_bytes());
        option(out, HARDWARE, origin.hardware.as_bytes());
        option(out, OS, origin.os.as_bytes());
        option(out, APPLICATION, origin.application.as_bytes());
        option(out, END, &[]);
    });
    block(out, INTERFACE, |out| {
        out.extend(LINK_ETHERNET.to_le_bytes());
        out.extend(0_u16.to_le_bytes());
        out.extend(u32::try_from(SNAPLEN).unwrap_or(u32::MAX).to_le_bytes());
        option(out, NAME, origin.interface.as_bytes());
        option(out, DESCRIPTION, origin.description.as_bytes());
        option(out, RESOLUTION, &[NANOSECONDS]);
        option(out, END, &[]);
    });
}

/// Adds a packet, with comments.
pub fn packet<'a>(out: &mut Vec<u8>, packet: &Packet<'_>, comments: impl IntoIterator<Item = &'a str>) {
    let kept = packet.bytes.get(..SNAPLEN).unwrap_or(packet.bytes);
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    block(out, ENHANCED_PACKET, |out| {
        out.extend(0_u32.to_le_bytes());
        out.extend(timestamp(packet.time));
        out.extend(length(kept).to_le_bytes());
        out.extend(packet.length.max(length(packet.bytes)).to_le_bytes());
        out.extend_from_slice(kept);
        pad(out, kept.len());
        let flags: u32 = match packet.way {
            Way::Inbound => 1,
            Way::Outbound => 2,
        };
        option(out, FLAGS, &flags.to_le_bytes());
        for comment in comments {
            option(out, COMMENT, cut(comment).as_bytes());
        }
        option(out, END, &[]);
    });
}

/// Ends a file.
pub fn end(out: &mut Vec<u8>, totals: &Totals) {
    block(out, STATISTICS, |out| {
        out.extend(0_u32.to_le_bytes());
        out.extend(timestamp(totals.ended));
        option(out, STARTED, &timestamp(totals.started));
        option(out, ENDED, &timestamp(totals.ended));
        option(out, RECEIVED, &totals.seen.to_le_bytes());
        option(out, DROPPED, &totals.missing.to_le_bytes());
        option(out, DROPPED_BY_OS, &totals.dropped_by_kernel.to_le_bytes());
        option(out, DELIVERED, &totals.seen.saturating_sub(totals.missing).to_le_bytes());
        option(out, END, &[]);
    });
}

/// How many of the first `within` bytes of a row of blocks are whole blocks, and how many packets are in these.
#[must_use]
pub fn whole_blocks(blocks: &[u8], within: usize) -> (usize, u64) {
    let (mut whole, mut packets) = (0, 0);
    let mut rest = blocks.get(..within).unwrap_or(blocks);
    while let Some(([k0, k1, k2, k3, l0, l1, l2, l3], _)) = rest.split_first_chunk().map(|(head, rest)| (*head, rest)) {
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let Some(after) = rest.get(length..).filter(|_| length > 0) else { break };
        packets += u64::from(u32::from_le_bytes([k0, k1, k2, k3]) == ENHANCED_PACKET);
        whole += length;
        rest = after;
    }
    (whole, packets)
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let length = u32::try_from(out.len() - start + 4).unwrap_or(u32::MAX).to_le_bytes();
    out.extend(length);
    if let Some(field) = out.get_mut(start + 4..start + 8) {
        field.copy_from_slice(&length);
    }
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    out.extend(code.to_le_bytes());
    out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

fn pad(out: &mut Vec<u8>, len: usize) {
    out.extend(std::iter::repeat_n(0, len.next_multiple_of(4) - len));
}

/// The upper half first, whatever the byte order.
fn timestamp(since_1970: Duration) -> [u8; 8] {
    let nanoseconds = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
    let [a, b, c, d, e, f, g, h] = nanoseconds.to_le_bytes();
    [e, f, g, h, a, b, c, d]
}

fn cut(comment: &str) -> &str {
    let end = (0..=MAX_COMMENT.min(comment.len())).rev().find(|at| comment.is_char_boundary(*at));
    end.and_then(|end| comment.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin<'static> {
        Origin { hardware: "h", os: "Linux", application: "cofferdam 1", interface: "eth0", description: "d" }
    }

    #[test]
    fn begins_as_the_format_says() {
        let mut out = Vec::new();
        begin(&mut out, &origin());
        let word = |at: usize| u32::from_le_bytes(out[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(8)), (SECTION_HEADER, BYTE_ORDER));
        let section = usize::try_from(word(4)).unwrap();
        assert_eq!(word(section - 4), word(4), "its length stands at both ends");
        // Option 2 of one byte, padded to four.
        assert_eq!(out[24..32], [2, 0, 1, 0, b'h', 0, 0, 0]);
        assert_eq!((word(section), word(section + 8), word(section + 12)), (INTERFACE, 1, 262_144));
        assert_eq!(usize::try_from(word(section + 4)).unwrap(), out.len() - section);
    }

    #[test]
    fn a_packet_has_its_time_its_way_and_its_comments() {
        let mut out = Vec::new();
        let time = Duration::new(1_700_000_000, 123_456_789);
        let one = Packet { time, way: Way::Outbound, bytes: &[7; 61], length: 61 };
        packet(&mut out, &one, ["allowed", "ü"]);
        let word = |at: usize| u32::from_le_bytes(out[at..at + 4].try_into().unwrap());
        let nanoseconds = u64::from(word(12)) << 32 | u64::from(word(16));
        assert_eq!(u128::from(nanoseconds), time.as_nanos());
        assert_eq!((word(20), word(24)), (61, 61));
        assert_eq!((&out[28..89], &out[89..92]), (&[7; 61][..], &[0; 3][..]));
        assert_eq!(out[92..100], [2, 0, 4, 0, 2, 0, 0, 0]);
        assert_eq!(out[100..112], *b"\x01\0\x07\0allowed\0");
        assert_eq!(out[112..120], [1, 0, 2, 0, 0xc3, 0xbc, 0, 0]);
        assert_eq!(out[120..124], [0; 4]);
        assert_eq!(usize::try_from(word(124)).unwrap(), out.len());
    }

    #[test]
    fn whole_blocks_are_told_from_what_was_cut_off() {
        let mut out = Vec::new();
        begin(&mut out, &origin());
        let begun = out.len();
        let one = Packet { time: Duration::ZERO, way: Way::Inbound, bytes: &[1; 30], length: 30 };
        packet(&mut out, &one, []);
        let first = out.len();
        packet(&mut out, &one, ["comment"]);
        for within in 0..first {
            assert!(whole_blocks(&out, within).0 <= begun);
        }
        assert_eq!(whole_blocks(&out, begun), (begun, 0));
        assert_eq!(whole_blocks(&out, out.len() - 1), (first, 1));
        assert_eq!(whole_blocks(&out, usize::MAX), (out.len(), 2));
        assert_eq!(whole_blocks(&[0; 40], 40), (0, 0));
    }

    #[test]
    fn what_a_field_cannot_hold_is_cut_off_between_characters() {
        let mut out = Vec::new();
        let large = vec![1; SNAPLEN + 5];
        let length = u32::try_from(large.len()).unwrap();
        let one = Packet { time: Duration::MAX, way: Way::Inbound, bytes: &large, length };
        let comment = format!("a{}", "ü".repeat(MAX_COMMENT));
        packet(&mut out, &one, [comment.as_str()]);
        let word = |at: usize| u32::from_le_bytes(out[at..at + 4].try_into().unwrap());
        assert_eq!((word(20), word(24)), (262_144, length));
        let option = 28 + SNAPLEN + 8;
        assert_eq!(out[option..option + 4], [1, 0, 0xff, 0x0f]);
        assert!(std::str::from_utf8(&out[option + 4..option + 4 + 0xfff]).is_ok());
    }
}
