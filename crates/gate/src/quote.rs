use crate::wire::ip::IpPacket;

/// The longest IP header we carry and eight bytes, which hold a UDP or an ICMP header.
const QUOTE_LEN: usize = 48;

/// The beginning of a packet of the guest, to be quoted in an ICMP error about it: the IP header and eight bytes are
/// what every receiver needs to find the socket (RFC 792, RFC 1122 §3.2.2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quote {
    bytes: [u8; QUOTE_LEN],
    len: usize,
}

impl Quote {
    pub(crate) fn of(packet: &IpPacket<'_>) -> Quote {
        let len = packet.bytes.len().min(packet.header_len() + 8).min(QUOTE_LEN);
        let mut quote = Quote { bytes: [0; QUOTE_LEN], len };
        if let (Some(to), Some(from)) = (quote.bytes.get_mut(..len), packet.bytes.get(..len)) {
            to.copy_from_slice(from);
        }
        quote
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
