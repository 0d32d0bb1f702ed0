//! Every message survives its frame, in whatever pieces the bytes come; every other input gets an answer.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops where it fails"
)]

mod common;

use cofferdam_guest_protocol::{Decoder, MAX_TO_HOST, Message, ToGuest, ToHost, Violation};
use proptest::prelude::*;

use common::{to_guest, to_host};

/// The messages in some bytes that come in pieces of these sizes.
fn decode<M: Message>(bytes: &[u8], pieces: &[usize]) -> Result<Vec<M>, Violation> {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    let (mut rest, mut sizes) = (bytes, pieces.iter().cycle());
    while !rest.is_empty() {
        let size = sizes.next().copied().unwrap_or(1).clamp(1, rest.len());
        let (mut piece, after) = rest.split_at(size);
        rest = after;
        while let Some(message) = decoder.decode(&mut piece)? {
            messages.push(message);
        }
        assert!(piece.is_empty());
    }
    Ok(messages)
}

proptest! {
    #[test]
    fn what_the_host_says_survives_its_frame(
        messages in prop::collection::vec(to_guest(), 1..8),
        pieces in prop::collection::vec(1..300usize, 1..20),
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(ToGuest::emit).collect();
        prop_assert_eq!(decode::<ToGuest>(&bytes, &pieces), Ok(messages));
    }

    #[test]
    fn what_the_agent_says_survives_its_frame(
        messages in prop::collection::vec(to_host(), 1..8),
        pieces in prop::collection::vec(1..300usize, 1..20),
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(ToHost::emit).collect();
        prop_assert_eq!(decode::<ToHost>(&bytes, &pieces), Ok(messages));
    }

    #[test]
    fn any_bytes_get_an_answer_and_the_same_one_in_any_pieces(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        pieces in prop::collection::vec(1..50usize, 1..20),
    ) {
        prop_assert_eq!(decode::<ToHost>(&bytes, &pieces), decode::<ToHost>(&bytes, &[usize::MAX]));
        prop_assert_eq!(decode::<ToGuest>(&bytes, &pieces), decode::<ToGuest>(&bytes, &[usize::MAX]));
    }

    #[test]
    fn a_message_that_is_cut_or_changed_is_another_message_or_none(
        message in to_host(), at in any::<prop::sample::Index>(), to in any::<u8>(),
    ) {
        let mut bytes = message.emit();
        let cut = bytes.get(..at.index(bytes.len())).unwrap_or_default();
        prop_assert_eq!(decode::<ToHost>(cut, &[7]), Ok(Vec::new()));
        let place = at.index(bytes.len());
        bytes[place] = to;
        if let Ok(messages) = decode::<ToHost>(&bytes, &[7]) {
            for message in messages {
                prop_assert_eq!(decode::<ToHost>(&message.emit(), &[7]), Ok(vec![message]));
            }
        }
    }
}

#[test]
fn a_frame_that_is_too_long_is_refused_before_it_has_come() {
    let length = u32::try_from(MAX_TO_HOST + 1).unwrap().to_be_bytes();
    let error = decode::<ToHost>(&length, &[4]).unwrap_err();
    assert_eq!(error, Violation::TooLong { length: MAX_TO_HOST + 1, most: MAX_TO_HOST });
}

#[test]
fn an_empty_frame_is_refused() {
    assert!(matches!(decode::<ToHost>(&[0; 4], &[4]), Err(Violation::TooLong { length: 0, .. })));
}

#[test]
fn arguments_with_a_nul_are_no_message() {
    let exec = common::exec(&["a\0b"]);
    let frame = ToGuest::Exec { call: cofferdam_guest_protocol::CallId(1), exec }.emit();
    assert_eq!(decode::<ToGuest>(&frame, &[9]), Err(Violation::Malformed { kind: 2 }));
}
