//! Messages with a length before them (RFC 1035 §4.2.2, RFC 7858 §3.3).

use std::collections::BTreeMap;

use super::{Asked, Reply, SessionError, answer};

#[derive(Debug, Default)]
pub(super) struct Stream {
    input: Vec<u8>,
    next: u16,
}

impl Stream {
    pub(super) fn ask(
        &mut self,
        message: &[u8],
        waiting: &BTreeMap<u32, Asked>,
        output: &mut Vec<u8>,
    ) -> Result<u32, SessionError> {
        let (Ok(length), Some(rest)) = (u16::try_from(message.len()), message.get(2..)) else {
            return Err(SessionError::Protocol);
        };
        // Far fewer wait than there are ids, so this ends soon.
        while waiting.contains_key(&u32::from(self.next)) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        output.extend_from_slice(&length.to_be_bytes());
        output.extend_from_slice(&id.to_be_bytes());
        output.extend_from_slice(rest);
        Ok(u32::from(id))
    }

    pub(super) fn handle_input(
        &mut self,
        bytes: &[u8],
        waiting: &mut BTreeMap<u32, Asked>,
        replies: &mut Vec<Reply>,
    ) -> Result<(), SessionError> {
        self.input.extend_from_slice(bytes);
        let mut taken = 0;
        while let Some((prefix, rest)) = self.input.get(taken..).and_then(<[u8]>::split_first_chunk::<2>)
            && let Some(message) = rest.get(..usize::from(u16::from_be_bytes(*prefix)))
        {
            taken += 2 + message.len();
            let Some(id) = message.first_chunk::<2>() else { return Err(SessionError::Protocol) };
            if let Some(asked) = waiting.remove(&u32::from(u16::from_be_bytes(*id))) {
                replies.push(answer(&asked, message.to_vec()));
            }
        }
        self.input.drain(..taken);
        Ok(())
    }
}
