//! From bytes in any pieces to messages.

use crate::message::Message;
use crate::{VERSION, message};

/// Length of a frame's length.
const HEADER: usize = 4;

/// Why a channel is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error(
        "the guest's agent sent a frame of {length} bytes, and {most} are the most: what speaks there is no agent of ours"
    )]
    TooLong { length: usize, most: usize },
    #[error("the guest's agent sent a message that cannot be read (kind {kind})")]
    Malformed { kind: u8 },
    #[error("the guest's agent did not begin with a greeting")]
    NoGreeting,
    #[error(
        "the guest's agent speaks version {theirs} of the protocol, and this program {VERSION}: run `cofferdam vm setup` again"
    )]
    Version { theirs: u16 },
    #[error("the guest's agent does not know the token of this boot")]
    Token,
    #[error("the guest's agent sent {what} for call {call}, which does not fit: {why}")]
    Unfitting { call: u32, what: &'static str, why: &'static str },
    #[error("the guest's agent does not read what it is told")]
    Deaf,
    #[error("the guest's agent gave up: {text:?}")]
    Ended { text: String },
}

/// Takes frames apart. Keeps no more than one.
#[derive(Debug)]
pub struct Decoder<M> {
    /// The frame as far as it has come, with its length.
    frame: Vec<u8>,
    kind: std::marker::PhantomData<fn() -> M>,
}

impl<M: Message> Decoder<M> {
    #[must_use]
    pub fn new() -> Decoder<M> {
        Decoder { frame: Vec::new(), kind: std::marker::PhantomData }
    }

    /// Takes from `input` what belongs to the next message, and gives it when it is complete. `None`: `input` is used up.
    ///
    /// # Errors
    /// When that is no message. What comes after it means nothing; the caller has to stop.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<M>, Violation> {
        self.fill(HEADER, input);
        let Some(header) = self.frame.first_chunk() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        if length == 0 || length > M::LONGEST {
            return Err(Violation::TooLong { length, most: M::LONGEST });
        }
        self.fill(HEADER + length, input);
        let Some(body) = self.frame.get(HEADER..).filter(|body| body.len() == length) else { return Ok(None) };
        let (kind, body) = body.split_first().map_or((0, body), |(kind, body)| (*kind, body));
        let message = M::parse(kind, body);
        self.frame.clear();
        // One long frame does not have the room taken for good.
        self.frame.shrink_to(message::USUAL);
        message.map(Some).ok_or(Violation::Malformed { kind })
    }

    fn fill(&mut self, until: usize, input: &mut &[u8]) {
        let missing = until.saturating_sub(self.frame.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.frame.extend_from_slice(taken);
        *input = rest;
    }
}

impl<M: Message> Default for Decoder<M> {
    fn default() -> Decoder<M> {
        Decoder::new()
    }
}
