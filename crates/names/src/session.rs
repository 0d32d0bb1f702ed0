//! Questions to one upstream over one connection: what goes into the connection and what comes out, without the
//! connection.
//!
//! A [`Session`] is the inside of a TLS connection, as plain bytes: over TLS itself (RFC 7858) messages with a length before
//! them, over HTTPS (RFC 8484) requests of HTTP/2. Both carry many questions at a time and answers in any order. Ids of
//! messages are the session's own on the wire, so that two questions that drew the same id can share a connection; what
//! is handed back has the id that was handed in.
//!
//! | Event                                   | Effect                                                              |
//! |-----------------------------------------|---------------------------------------------------------------------|
//! | [`ask`](Session::ask)                   | the question waits; bytes to send                                   |
//! | answer to a question that waits         | handed out, under the question's number                             |
//! | answer to one that was given up         | ignored                                                             |
//! | HTTP status other than 200, reset stream| that question has failed                                            |
//! | anything that the protocol forbids      | [`SessionError`]: the connection is of no more use                  |
//! | [`forget`](Session::forget)             | the question waits no more                                          |
//!
//! Limits: [`MAX_WAITING`] questions, and 64 KiB of an answer each, as long as answers may be. The caller closes sessions
//! that hang: nothing here knows the time.

mod http;
mod stream;

use std::collections::BTreeMap;

use crate::UpstreamId;

/// Questions under way in one session: more than one sandbox has waiters.
const MAX_WAITING: usize = 1024;

/// What the bytes of a connection mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Framing {
    /// DNS over TLS.
    Tls,
    /// DNS over HTTPS: HTTP/2, to `authority` (host, and port unless it is 443) and `path`.
    Https { authority: String, path: String },
}

/// The other side does not follow the protocol, or asks us to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("the resolver does not follow the protocol")]
    Protocol,
    #[error("the resolver ends the connection")]
    GoingAway,
    #[error("there are too many questions under way in one connection")]
    Full,
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Answer { upstream: UpstreamId, message: Vec<u8> },
    Failed { upstream: UpstreamId },
}

/// One connection's questions and answers.
#[derive(Debug)]
pub struct Session {
    wire: Wire,
    output: Vec<u8>,
    /// By their number on the wire.
    waiting: BTreeMap<u32, Asked>,
}

#[derive(Debug)]
enum Wire {
    Stream(stream::Stream),
    Http(http::Http),
}

/// A question under way.
#[derive(Debug)]
struct Asked {
    upstream: UpstreamId,
    message: Vec<u8>,
}

impl Session {
    /// A session at the beginning of its connection.
    #[must_use]
    pub fn new(framing: &Framing) -> Session {
        let mut output = Vec::new();
        let wire = match framing {
            Framing::Tls => Wire::Stream(stream::Stream::default()),
            Framing::Https { authority, path } => Wire::Http(http::Http::new(authority, path, &mut output)),
        };
        Session { wire, output, waiting: BTreeMap::new() }
    }

    /// Asks `message`.
    ///
    /// # Errors
    /// When the connection takes no more; the question may be asked over another one.
    pub fn ask(&mut self, upstream: UpstreamId, message: Vec<u8>) -> Result<(), SessionError> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(SessionError::Full);
        }
        let number = match &mut self.wire {
            Wire::Stream(stream) => stream.ask(&message, &self.waiting, &mut self.output)?,
            Wire::Http(http) => http.ask(&message, &mut self.output)?,
        };
        self.waiting.insert(number, Asked { upstream, message });
        Ok(())
    }

    /// The question is answered or given up elsewhere.
    pub fn forget(&mut self, upstream: UpstreamId) {
        self.waiting.retain(|_, asked| asked.upstream != upstream);
    }

    /// Bytes have come. What became of questions is appended to `replies`.
    ///
    /// # Errors
    /// When the connection is of no more use. Questions that wait are still to be taken by [`Session::into_waiting`].
    pub fn handle_input(&mut self, bytes: &[u8], replies: &mut Vec<Reply>) -> Result<(), SessionError> {
        match &mut self.wire {
            Wire::Stream(stream) => stream.handle_input(bytes, &mut self.waiting, replies),
            Wire::Http(http) => http.handle_input(bytes, &mut self.waiting, &mut self.output, replies),
        }
    }

    /// What is to be sent.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Whether questions wait.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a further question would be refused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let takes_more = match &self.wire {
            Wire::Stream(_) => true,
            Wire::Http(http) => http.takes_more(),
        };
        self.waiting.len() >= MAX_WAITING || !takes_more
    }

    /// Whether the other side has to have agreed to the protocol in the handshake.
    #[must_use]
    pub fn needs_alpn(&self) -> bool {
        matches!(self.wire, Wire::Http(_))
    }

    /// The questions that wait, with what was asked, to be asked elsewhere.
    pub fn into_waiting(self) -> impl Iterator<Item = (UpstreamId, Vec<u8>)> {
        self.waiting.into_values().map(|asked| (asked.upstream, asked.message))
    }
}

/// The answer with the id of the question.
fn answer(asked: &Asked, mut message: Vec<u8>) -> Reply {
    if let (Some(id), Some(original)) = (message.get_mut(..2), asked.message.get(..2)) {
        id.copy_from_slice(original);
    }
    Reply::Answer { upstream: asked.upstream, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const ONE: UpstreamId = UpstreamId(1);
    pub(super) const TWO: UpstreamId = UpstreamId(2);

    fn stream() -> Session {
        Session::new(&Framing::Tls)
    }

    fn feed(session: &mut Session, bytes: &[u8]) -> Vec<Reply> {
        let mut replies = Vec::new();
        session.handle_input(bytes, &mut replies).unwrap();
        replies
    }

    #[test]
    fn questions_with_the_same_id_share_a_stream() {
        let mut session = stream();
        session.ask(ONE, b"\x07\x07one".to_vec()).unwrap();
        session.ask(TWO, b"\x07\x07two".to_vec()).unwrap();
        let sent = session.take_output();
        assert_eq!((&sent[..2], &sent[4..9]), (&b"\0\x05"[..], &b"one\0\x05"[..]));
        let (first, second) = (&sent[2..4], &sent[9..11]);
        assert_ne!(first, second);
        // Out of order, and split at every place.
        let answers = [b"\0\x05", second, b"TWO", b"\0\x05", first, b"ONE"].concat();
        for cut in 0..answers.len() {
            let mut session = stream();
            session.ask(ONE, b"\x07\x07one".to_vec()).unwrap();
            session.ask(TWO, b"\x07\x07two".to_vec()).unwrap();
            let mut replies = feed(&mut session, &answers[..cut]);
            replies.extend(feed(&mut session, &answers[cut..]));
            let expected = [(TWO, b"\x07\x07TWO"), (ONE, b"\x07\x07ONE")];
            let expected = expected.map(|(upstream, message)| Reply::Answer { upstream, message: message.to_vec() });
            assert_eq!(replies, expected, "{cut}");
            assert!(session.is_idle());
        }
    }

    #[test]
    fn what_was_forgotten_or_never_asked_is_ignored() {
        let mut session = stream();
        session.ask(ONE, b"\0\0one".to_vec()).unwrap();
        let sent = session.take_output();
        session.forget(ONE);
        assert_eq!(feed(&mut session, &sent), []);
        assert_eq!(feed(&mut session, b"\0\x05\xff\xffwho"), []);
    }

    #[test]
    fn a_message_too_short_for_an_id_ends_the_session() {
        let mut replies = Vec::new();
        assert_eq!(stream().handle_input(b"\0\x01x", &mut replies), Err(SessionError::Protocol));
    }

    #[test]
    fn questions_are_bounded_and_can_be_asked_elsewhere() {
        for framing in [Framing::Tls, Framing::Https { authority: "dns.example".into(), path: "/dns-query".into() }] {
            let mut session = Session::new(&framing);
            for number in 0..MAX_WAITING {
                let _ = session.ask(UpstreamId(u64::try_from(number).unwrap()), b"\0\0question".to_vec());
            }
            assert!(session.ask(UpstreamId(9999), b"\0\0question".to_vec()).is_err());
            assert!(session.into_waiting().all(|(_, message)| message == b"\0\0question"));
        }
    }
}
