//! As much of HTTP/2 (RFC 9113) as a client of DNS over HTTPS (RFC 8484) needs.
//!
//! One request is a HEADERS frame and a DATA frame on a stream of its own; one answer is HEADERS and DATA. Of the answer's
//! header fields only the status counts, and it comes first (RFC 9113 §8.3): with the dynamic table of HPACK turned off by
//! our settings, nothing behind it has to be read. A status that is written in none of the ways of writing 200 is a
//! failure, whatever it is. The content's type is not looked at: what is no answer to the question will not be taken for one.
//!
//! Not here: server push (refused), priorities, trailers' contents, padding beyond skipping it, CONTINUATION of an answer's
//! header block past its first fragment other than skipping it.
//!
//! Limits: an answer is at most 64 KiB; a frame at most the 16 KiB that we never raised. Our receive windows are
//! opened again as data comes; towards the server a question is sent when its window has room, else the session is full.

use std::collections::BTreeMap;

use super::{Asked, MAX_WAITING, Reply, SessionError, answer};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Both sides' largest frame until they say otherwise, and we do not (RFC 9113 §4.2).
const MAX_FRAME: usize = 16_384;
/// Both sides' windows at the beginning (§6.9.2).
const WINDOW: i64 = 65_535;
/// The largest DNS message.
const MAX_ANSWER: usize = 65_535;
/// Streams have odd 31-bit numbers, used once.
const LAST_STREAM: u32 = 0x7fff_fffd;

/// Frame types (§6).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
mod flag {
    pub(super) const ACK: u8 = 1;
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
    pub(super) const PRIORITY: u8 = 0x20;
}

/// Settings (§6.5.2).
mod setting {
    pub(super) const HEADER_TABLE_SIZE: u16 = 1;
    pub(super) const ENABLE_PUSH: u16 = 2;
    pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
}

#[derive(Debug)]
pub(super) struct Http {
    /// The header fields of every request, up to its length.
    fields: Vec<u8>,
    input: Vec<u8>,
    next_stream: u32,
    /// What the server still takes on the connection, and at the beginning on each stream.
    window: i64,
    stream_window: i64,
    concurrent: usize,
    answers: BTreeMap<u32, Partial>,
    /// The stream whose header block goes on in the next frame.
    continues: Option<u32>,
}

/// An answer that is coming.
#[derive(Debug, Default)]
struct Partial {
    body: Vec<u8>,
    is_ok: bool,
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl Http {
    pub(super) fn new(authority: &str, path: &str, output: &mut Vec<u8>) -> Http {
        output.extend_from_slice(PREFACE);
        let mut settings = Vec::new();
        for name in [setting::HEADER_TABLE_SIZE, setting::ENABLE_PUSH] {
            settings.extend_from_slice(&name.to_be_bytes());
            settings.extend_from_slice(&0_u32.to_be_bytes());
        }
        push_frame(output, kind::SETTINGS, 0, 0, &settings);
        Http {
            fields: fields(authority, path),
            input: Vec::new(),
            next_stream: 1,
            window: WINDOW,
            stream_window: WINDOW,
            concurrent: MAX_WAITING,
            answers: BTreeMap::new(),
            continues: None,
        }
    }

    pub(super) fn ask(&mut self, message: &[u8], output: &mut Vec<u8>) -> Result<u32, SessionError> {
        let length = i64::try_from(message.len()).unwrap_or(i64::MAX);
        let Some(rest) = message.get(2..).filter(|_| message.len() <= MAX_FRAME) else {
            return Err(SessionError::Protocol);
        };
        if self.next_stream > LAST_STREAM {
            return Err(SessionError::GoingAway);
        }
        if self.window < length || self.stream_window < length || !self.takes_more() {
            return Err(SessionError::Full);
        }
        let stream = self.next_stream;
        self.next_stream += 2;
        self.window -= length;
        self.answers.insert(stream, Partial::default());
        let mut block = self.fields.clone();
        // content-length: field 28 of the static table.
        push_field(&mut block, 28, &message.len().to_string());
        push_frame(output, kind::HEADERS, flag::END_HEADERS, stream, &block);
        // "a DNS ID of 0 in every DNS request" lets caches share answers (RFC 8484 §4.1).
        push_frame(output, kind::DATA, flag::END_STREAM, stream, &[&[0, 0], rest].concat());
        Ok(stream)
    }

    /// Whether the server takes another stream.
    pub(super) fn takes_more(&self) -> bool {
        self.answers.len() < self.concurrent && self.next_stream <= LAST_STREAM
    }

    pub(super) fn handle_input(
        &mut self,
        bytes: &[u8],
        waiting: &mut BTreeMap<u32, Asked>,
        output: &mut Vec<u8>,
        replies: &mut Vec<Reply>,
    ) -> Result<(), SessionError> {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut rest = input.as_slice();
        while let Some((frame, behind)) = next_frame(rest)? {
            rest = behind;
            self.handle_frame(&frame, waiting, output, replies)?;
        }
        self.input = rest.to_vec();
        Ok(())
    }

    fn handle_frame(
        &mut self,
        frame: &Frame<'_>,
        waiting: &mut BTreeMap<u32, Asked>,
        output: &mut Vec<u8>,
        replies: &mut Vec<Reply>,
    ) -> Result<(), SessionError> {
        if self.continues.is_some_and(|stream| frame.kind != kind::CONTINUATION || frame.stream != stream) {
            return Err(SessionError::Protocol);
        }
        match frame.kind {
            kind::HEADERS => self.handle_headers(frame, waiting, replies)?,
            kind::CONTINUATION if self.continues.is_some() && frame.flags & flag::END_HEADERS != 0 => {
                self.continues = None;
            }
            kind::CONTINUATION if self.continues.is_some() => {}
            kind::DATA => {
                // Padding counts as well; both windows are opened again at once.
                if !frame.payload.is_empty() {
                    let length = u32::try_from(frame.payload.len()).unwrap_or(0).to_be_bytes();
                    push_frame(output, kind::WINDOW_UPDATE, 0, 0, &length);
                    push_frame(output, kind::WINDOW_UPDATE, 0, frame.stream, &length);
                }
                let data = without_padding(frame)?;
                if let Some(partial) = self.answers.get_mut(&frame.stream) {
                    partial.body.extend_from_slice(data);
                    if partial.body.len() > MAX_ANSWER {
                        return Err(SessionError::Protocol);
                    }
                }
                if frame.flags & flag::END_STREAM != 0 {
                    self.finish(frame.stream, waiting, replies);
                }
            }
            kind::RST_STREAM => {
                self.answers.remove(&frame.stream);
                fail(frame.stream, waiting, replies);
            }
            kind::SETTINGS if frame.flags & flag::ACK == 0 => self.handle_settings(frame, output)?,
            kind::PING if frame.payload.len() != 8 => return Err(SessionError::Protocol),
            kind::PING if frame.flags & flag::ACK == 0 => push_frame(output, kind::PING, flag::ACK, 0, frame.payload),
            // What the server has not begun can be asked elsewhere; what it has begun, too.
            kind::GOAWAY => return Err(SessionError::GoingAway),
            kind::WINDOW_UPDATE if frame.stream == 0 => {
                let increment = frame.payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
                let increment = i64::from(increment.ok_or(SessionError::Protocol)? & 0x7fff_ffff);
                self.window = self.window.saturating_add(increment);
            }
            kind::PUSH_PROMISE | kind::CONTINUATION => return Err(SessionError::Protocol),
            // PRIORITY, acknowledgements, windows of streams that have sent all they had, and kinds that are not known,
            // which "MUST be ignored" (§4.1).
            _ => {}
        }
        Ok(())
    }

    fn handle_headers(
        &mut self,
        frame: &Frame<'_>,
        waiting: &mut BTreeMap<u32, Asked>,
        replies: &mut Vec<Reply>,
    ) -> Result<(), SessionError> {
        let mut block = without_padding(frame)?;
        if frame.flags & flag::PRIORITY != 0 {
            block = block.get(5..).ok_or(SessionError::Protocol)?;
        }
        if frame.flags & flag::END_HEADERS == 0 {
            self.continues = Some(frame.stream);
        }
        // The first block is the answer's; one behind its data holds trailers, and an interim one (status 1xx) is followed
        // by another.
        if let Some(partial) = self.answers.get_mut(&frame.stream) {
            partial.is_ok |= says_ok(block);
        }
        if frame.flags & flag::END_STREAM != 0 {
            self.finish(frame.stream, waiting, replies);
        }
        Ok(())
    }

    fn handle_settings(&mut self, frame: &Frame<'_>, output: &mut Vec<u8>) -> Result<(), SessionError> {
        let (settings, rest) = frame.payload.as_chunks::<6>();
        if !rest.is_empty() || frame.stream != 0 {
            return Err(SessionError::Protocol);
        }
        for [high, low, a, b, c, d] in settings {
            let value = u32::from_be_bytes([*a, *b, *c, *d]);
            match u16::from_be_bytes([*high, *low]) {
                // Streams that are open have sent what they had, so only new ones are concerned.
                setting::INITIAL_WINDOW_SIZE => self.stream_window = i64::from(value),
                setting::MAX_CONCURRENT_STREAMS => {
                    self.concurrent = usize::try_from(value).unwrap_or(usize::MAX).min(MAX_WAITING);
                }
                // A table for what we send is of no use: every request is written in full.
                _ => {}
            }
        }
        push_frame(output, kind::SETTINGS, flag::ACK, 0, &[]);
        Ok(())
    }

    fn finish(&mut self, stream: u32, waiting: &mut BTreeMap<u32, Asked>, replies: &mut Vec<Reply>) {
        let Some(partial) = self.answers.remove(&stream) else { return };
        if !partial.is_ok || partial.body.len() < 2 {
            return fail(stream, waiting, replies);
        }
        if let Some(asked) = waiting.remove(&stream) {
            replies.push(answer(&asked, partial.body));
        }
    }
}

fn fail(stream: u32, waiting: &mut BTreeMap<u32, Asked>, replies: &mut Vec<Reply>) {
    if let Some(asked) = waiting.remove(&stream) {
        replies.push(Reply::Failed { upstream: asked.upstream });
    }
}

fn next_frame(input: &[u8]) -> Result<Option<(Frame<'_>, &[u8])>, SessionError> {
    let Some((head, rest)) = input.split_first_chunk::<9>() else { return Ok(None) };
    let [a, b, c, kind, flags, stream @ ..] = *head;
    let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(SessionError::Protocol);
    }
    let Some((payload, behind)) = rest.split_at_checked(length) else { return Ok(None) };
    let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
    Ok(Some((Frame { kind, flags, stream, payload }, behind)))
}

fn without_padding<'a>(frame: &Frame<'a>) -> Result<&'a [u8], SessionError> {
    if frame.flags & flag::PADDED == 0 {
        return Ok(frame.payload);
    }
    let (padding, rest) = frame.payload.split_first().ok_or(SessionError::Protocol)?;
    let length = rest.len().checked_sub(usize::from(*padding)).ok_or(SessionError::Protocol)?;
    rest.get(..length).ok_or(SessionError::Protocol)
}

/// Whether a header block begins with the status 200, in one of the ways of RFC 7541: the static table's entry 8, or that
/// entry's name with the value as text or in Huffman code. Updates of the table's size may stand before it (§4.2).
fn says_ok(mut block: &[u8]) -> bool {
    while let Some((first, rest)) = block.split_first() {
        if first & 0xe0 != 0x20 {
            break;
        }
        // A size of 31 and more goes on in further bytes; we allow no table at all, so it is 0.
        if first & 0x1f != 0 {
            return false;
        }
        block = rest;
    }
    let Some((first, rest)) = block.split_first() else { return false };
    match first {
        0x88 => true,
        // With indexing, without, and never: the name of entry 8 (also of 9 to 14, which encoders do not use for it).
        0x48 | 0x08 | 0x18 => rest.starts_with(b"\x03200") || rest.starts_with(&[0x82, 0x10, 0x01]),
        _ => false,
    }
}

/// The fields that all requests have in common; numbers are of HPACK's static table (RFC 7541, appendix A).
fn fields(authority: &str, path: &str) -> Vec<u8> {
    // :method POST and :scheme https as they stand in the table.
    let mut block = vec![0x80 | 3, 0x80 | 7];
    push_field(&mut block, 1, authority);
    push_field(&mut block, 4, path);
    // accept, content-type
    push_field(&mut block, 19, "application/dns-message");
    push_field(&mut block, 31, "application/dns-message");
    block
}

/// A literal field without indexing, with a name of the static table and a value as plain text (§6.2.2).
fn push_field(block: &mut Vec<u8>, name: u8, value: &str) {
    push_integer(block, 0, 0x0f, usize::from(name));
    push_integer(block, 0, 0x7f, value.len());
    block.extend_from_slice(value.as_bytes());
}

/// An integer with a prefix whose bits are `mask` (§5.1).
fn push_integer(block: &mut Vec<u8>, pattern: u8, mask: u8, value: usize) {
    if let Some(small) = u8::try_from(value).ok().filter(|small| *small < mask) {
        return block.push(pattern | small);
    }
    block.push(pattern | mask);
    let mut rest = value - usize::from(mask);
    while rest >= 0x80 {
        block.push(0x80 | u8::try_from(rest & 0x7f).unwrap_or(0));
        rest >>= 7;
    }
    block.push(u8::try_from(rest).unwrap_or(0));
}

fn push_frame(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    // Everything that we send fits a frame.
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    output.extend_from_slice(&length);
    output.extend_from_slice(&[kind, flags]);
    output.extend_from_slice(&stream.to_be_bytes());
    output.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::UpstreamId;
    use crate::session::tests::{ONE, TWO};
    use crate::session::{Framing, Session};

    fn session() -> Session {
        let mut session =
            Session::new(&Framing::Https { authority: "dns.example:8443".into(), path: "/dns-query".into() });
        session.take_output();
        session
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        push_frame(&mut frame, kind, flags, stream, payload);
        frame
    }

    fn ok(stream: u32, body: &[u8]) -> Vec<u8> {
        [frame(kind::HEADERS, flag::END_HEADERS, stream, &[0x88]), frame(kind::DATA, flag::END_STREAM, stream, body)]
            .concat()
    }

    fn asked() -> Session {
        let mut session = session();
        session.ask(ONE, b"\x12\x34one".to_vec()).unwrap();
        session.ask(TWO, b"\x12\x34two".to_vec()).unwrap();
        session
    }

    fn feed(session: &mut Session, bytes: &[u8]) -> Result<Vec<Reply>, SessionError> {
        let mut replies = Vec::new();
        session.handle_input(bytes, &mut replies).map(|()| replies)
    }

    #[test]
    fn opens_with_preface_and_settings_and_asks_with_id_0() {
        let mut session = Session::new(&Framing::Https { authority: "dns.example".into(), path: "/q".into() });
        let opening = session.take_output();
        let settings = frame(kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        assert_eq!(opening, [PREFACE, &settings].concat());
        session.ask(ONE, b"\x12\x34one".to_vec()).unwrap();
        let block = b"\x83\x87\x01\x0bdns.example\x04\x02/q\x0f\x04\x17application/dns-message\
            \x0f\x10\x17application/dns-message\x0f\x0d\x015";
        let expected = [frame(kind::HEADERS, 4, 1, block), frame(kind::DATA, 1, 1, b"\0\0one")].concat();
        assert_eq!(session.take_output(), expected);
    }

    #[test]
    fn answers_come_in_any_order_and_in_any_pieces() {
        let answers = [
            frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
            ok(3, b"\0\0TWO"),
            frame(kind::PING, 0, 0, b"pingpong"),
            frame(kind::HEADERS, 0, 1, &[0x20, 0x48, 0x82, 0x10]),
            frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[0x01]),
            frame(kind::DATA, flag::END_STREAM, 1, b"\0\0ONE"),
        ];
        // The status of the second answer is cut by a CONTINUATION: not a way of writing 200 that we take.
        let expected =
            [Reply::Answer { upstream: TWO, message: b"\x12\x34TWO".to_vec() }, Reply::Failed { upstream: ONE }];
        let bytes = answers.concat();
        for cut in 0..bytes.len() {
            let mut session = asked();
            session.take_output();
            let mut replies = feed(&mut session, &bytes[..cut]).unwrap();
            replies.extend(feed(&mut session, &bytes[cut..]).unwrap());
            assert_eq!(replies, expected, "{cut}");
            let output = session.take_output();
            let acknowledged = frame(kind::SETTINGS, flag::ACK, 0, &[]);
            let pong = frame(kind::PING, flag::ACK, 0, b"pingpong");
            for wanted in [acknowledged, pong] {
                assert!(output.windows(wanted.len()).any(|window| window == wanted));
            }
        }
    }

    #[test]
    fn every_way_of_writing_200_is_understood_and_no_other_status() {
        for good in [&[0x88][..], &[0x20, 0x88], b"\x48\x03200", b"\x08\x03200", b"\x18\x82\x10\x01", b"\x88\x5f\x01x"]
        {
            assert!(says_ok(good), "{good:?}");
        }
        for bad in [&[][..], &[0x8d], &[0x89], b"\x48\x03404", b"\x48\x0220", b"\x3f\xe1\x1f\x88", b"\x5f\x01x\x88"] {
            assert!(!says_ok(bad), "{bad:?}");
        }
    }

    #[test]
    fn failures_concern_their_own_question() {
        for failure in [
            frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 7]),
            frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &[0x8d]),
            [frame(kind::HEADERS, flag::END_HEADERS, 1, &[0x8e]), frame(kind::DATA, flag::END_STREAM, 1, b"\0\0no")]
                .concat(),
            frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &[0x88]),
        ] {
            let mut session = asked();
            assert_eq!(feed(&mut session, &failure), Ok(vec![Reply::Failed { upstream: ONE }]));
            let answer = Reply::Answer { upstream: TWO, message: b"\x12\x34TWO".to_vec() };
            assert_eq!(feed(&mut session, &ok(3, b"\0\0TWO")), Ok(vec![answer]));
        }
    }

    #[test]
    fn padding_and_priority_are_skipped_and_windows_opened_again() {
        let flags = flag::END_HEADERS | flag::PADDED | flag::PRIORITY;
        let headers = frame(kind::HEADERS, flags, 1, &[2, 0, 0, 0, 0, 9, 0x88, 0, 0]);
        let data = frame(kind::DATA, flag::END_STREAM | flag::PADDED, 1, b"\x03\0\0ONE\0\0\0");
        let mut session = asked();
        session.take_output();
        let replies = feed(&mut session, &[headers, data].concat()).unwrap();
        assert_eq!(replies, [Reply::Answer { upstream: ONE, message: b"\x12\x34ONE".to_vec() }]);
        let update = [0, 0, 0, 9];
        let updates = [frame(kind::WINDOW_UPDATE, 0, 0, &update), frame(kind::WINDOW_UPDATE, 0, 1, &update)].concat();
        assert_eq!(session.take_output(), updates);
    }

    #[test]
    fn a_server_that_takes_no_more_is_full_until_it_says_otherwise() {
        let mut session = session();
        feed(&mut session, &frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1])).unwrap();
        session.ask(ONE, b"\0\0one".to_vec()).unwrap();
        assert_eq!(session.ask(TWO, b"\0\0two".to_vec()), Err(SessionError::Full));
        feed(&mut session, &ok(1, b"\0\0ONE")).unwrap();
        session.ask(TWO, b"\0\0two".to_vec()).unwrap();
        let mut session = self::session();
        let mut asked = 0;
        while session.ask(UpstreamId(asked), vec![0; 1000]).is_ok() {
            asked += 1;
        }
        assert_eq!(asked, 65);
        feed(&mut session, &frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 4, 0])).unwrap();
        assert_eq!(session.ask(TWO, vec![0; 1000]), Ok(()));
    }

    #[test]
    fn what_the_protocol_forbids_ends_the_session() {
        for wrong in [
            frame(kind::PUSH_PROMISE, 0, 1, &[0; 8]),
            frame(kind::CONTINUATION, 0, 1, &[]),
            frame(kind::SETTINGS, 0, 0, &[0; 5]),
            frame(kind::PING, 0, 0, &[0; 7]),
            frame(kind::DATA, flag::PADDED, 1, &[9, 0]),
            [frame(kind::HEADERS, 0, 1, &[0x88]), frame(kind::DATA, 0, 1, &[])].concat(),
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        ] {
            assert_eq!(feed(&mut asked(), &wrong), Err(SessionError::Protocol), "{wrong:?}");
        }
        assert_eq!(feed(&mut asked(), &frame(kind::GOAWAY, 0, 0, &[0; 8])), Err(SessionError::GoingAway));
        let mut session = asked();
        let flood = frame(kind::DATA, 0, 1, &[0; MAX_FRAME]);
        assert!((0..5).any(|_| feed(&mut session, &flood).is_err()), "an answer without end");
    }

    proptest! {
        /// Whatever a server sends: no panic, no answer to what was not asked, and bounded memory.
        #[test]
        fn a_hostile_server_is_survived(
            frames in prop::collection::vec((0..12_u8, any::<u8>(), 0..8_u32, prop::collection::vec(any::<u8>(), 0..40)), 0..40),
        ) {
            let mut session = asked();
            let mut replies = Vec::new();
            for (kind, flags, stream, payload) in frames {
                if session.handle_input(&frame(kind, flags, stream, &payload), &mut replies).is_err() {
                    break;
                }
            }
            prop_assert!(replies.len() <= 2);
        }
    }
}
