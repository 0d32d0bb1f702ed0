//! QUIC Initial packets of a client (RFC 9000, 9001, 9369): the ClientHello in them.
//!
//! Initials are encrypted with keys that follow from the connection id in them, so that whoever sees the first one can
//! read all of its connection. A reader follows one connection per flow, the last that was begun: a client that begins
//! another from the same port, or again after a Retry, shows a new first flight. An Initial that opens neither with the
//! keys of the connection nor with those of its own connection id is nobody's: no server can read it, and it goes nowhere.

mod assemble;
mod keys;
mod packet;

use crate::{Doubt, LIMIT, Protocol, Shown, tls};
use assemble::Assembly;
use keys::Keys;
use packet::{Kind, LongPacket, Packet};

/// The port of HTTP/3, where everything with a long header counts as QUIC.
const HTTPS: u16 = 443;
/// A client pads the datagrams of its Initials to this at least (RFC 9000 §14.1).
const MIN_INITIAL: usize = 1_200;

/// Reads the datagrams that a guest sends on one flow.
#[derive(Debug)]
pub struct QuicReader {
    port: u16,
    connection: Option<Connection>,
}

/// What a datagram is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datagram {
    /// A part of a ClientHello, or behind one, that is not whole yet: nothing may go on before there is more.
    More,
    /// With it, a ClientHello is whole. It and all before it may go on when somebody agrees.
    Ask(Shown),
    /// It belongs to a connection that was agreed to.
    Known,
}

#[derive(Debug)]
struct Connection {
    keys: Keys,
    crypto: Assembly,
    /// Bytes of the handshake stream that were shown: one ClientHello, or two after a HelloRetryRequest.
    shown: usize,
}

impl Connection {
    /// Parts of a ClientHello have come that were not shown yet.
    fn is_unfinished(&self) -> bool {
        self.shown == 0 || self.crypto.end() > self.shown
    }
}

impl QuicReader {
    /// A flow to `port` on which nothing was sent.
    #[must_use]
    pub fn new(port: u16) -> QuicReader {
        QuicReader { port, connection: None }
    }

    /// The next datagram.
    pub fn look(&mut self, datagram: &[u8]) -> Datagram {
        if self.connection.is_none() && !self.begins(datagram) {
            return Datagram::Ask(Shown::Other);
        }
        match self.read(datagram) {
            Ok(datagram) => datagram,
            Err(doubt) => Datagram::Ask(Shown::Unreadable { protocol: Protocol::Quic, doubt }),
        }
    }

    /// Whether a first datagram is QUIC. A short header looks like anything.
    fn begins(&self, datagram: &[u8]) -> bool {
        match Packet::parse(datagram) {
            Ok(Packet::Long(_)) if datagram.len() >= MIN_INITIAL => true,
            Ok(Packet::Long(_)) | Err(_) => {
                self.port == HTTPS && datagram.first().is_some_and(|first| first & 0x80 != 0)
            }
            Ok(Packet::Short) => false,
        }
    }

    fn read(&mut self, datagram: &[u8]) -> Result<Datagram, Doubt> {
        let mut rest = datagram;
        let mut first_id = None;
        let mut initials = 0;
        while let Packet::Long(packet) = Packet::parse(rest)? {
            // "Senders MUST NOT coalesce QUIC packets with different connection IDs" (RFC 9000 §12.2).
            if *first_id.get_or_insert(packet.destination) != packet.destination {
                return Err(Doubt::Malformed);
            }
            match packet.kind {
                Kind::Initial => {
                    initials += 1;
                    self.open(&packet)?;
                }
                Kind::ZeroRtt | Kind::Handshake => {}
                Kind::Retry => return Err(Doubt::Malformed),
            }
            rest = packet.rest;
        }
        let Some(connection) = &mut self.connection else { return Err(Doubt::Malformed) };
        let stream = connection.crypto.whole();
        let unread = stream.get(connection.shown..).unwrap_or_default();
        match tls::client_hello(unread)? {
            Some((hello, length)) => {
                connection.shown += length;
                Ok(Datagram::Ask(Shown::Quic { server_name: hello.server_name, ech: hello.ech }))
            }
            None if connection.shown > 0 && connection.crypto.end() == connection.shown => Ok(Datagram::Known),
            // What goes along with a hello that is not whole yet waits with it.
            None if initials == 0 && connection.shown > 0 => Ok(Datagram::Known),
            None => Ok(Datagram::More),
        }
    }

    /// Opens an Initial and takes its part of the handshake.
    fn open(&mut self, packet: &LongPacket<'_>) -> Result<(), Doubt> {
        if let Some(connection) = &mut self.connection
            && let Some(payload) = connection.keys.open(packet)
        {
            return packet::crypto_frames(&payload, |offset, data| connection.crypto.insert(offset, data));
        }
        // Whoever holds datagrams of a hello that is not whole would let them go on with the next one's.
        if self.connection.as_ref().is_some_and(Connection::is_unfinished) {
            return Err(Doubt::Malformed);
        }
        let keys = Keys::of(packet.version, packet.destination);
        let payload = keys.open(packet).ok_or(Doubt::Malformed)?;
        let mut crypto = Assembly::new(LIMIT);
        packet::crypto_frames(&payload, |offset, data| crypto.insert(offset, data))?;
        self.connection = Some(Connection { keys, crypto, shown: 0 });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
