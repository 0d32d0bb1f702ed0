//! Any bytes as messages of a client that has not logged on: every parser of messages, and the connection up to the password.
//!
//! The input is a row of messages, two bytes of length before each. The first bit of the length says that it is given a good header first, with the command in its first byte.

#![no_main]

use std::sync::LazyLock;

use cofferdam_smb::wire::{HEADER, Header, Request};
use cofferdam_smb::{Connection, Owner, Password, Server};
use libfuzzer_sys::fuzz_target;

static SERVER: LazyLock<Server> =
    LazyLock::new(|| Server::new(Password::new("secret").unwrap(), Owner::new(0, 0)).unwrap());

fuzz_target!(|input: &[u8]| {
    let mut connection = Connection::new(&SERVER);
    let mut rest = input;
    let mut number = 0_u64;
    while let [low, high, tail @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, high & 0x7f])).min(tail.len());
        let (body, tail) = tail.split_at(length);
        rest = tail;
        let message = match body {
            [command, body @ ..] if high & 0x80 != 0 => with_header(*command % 20, number, body),
            body => body.to_vec(),
        };
        number += 1;
        if let Some(header) = Header::parse(&message) {
            if let Ok(request) = Request::parse(header.command, &message) {
                let _ = request.payload();
            }
        }
        let mut out = Vec::new();
        let ended = connection.handle_message(&message, &mut out);
        // What goes out is whole messages.
        let mut sent = out.as_slice();
        while let Some((length, after)) = sent.split_first_chunk() {
            sent = after.get(u32::from_be_bytes(*length) as usize..).expect("a whole message");
        }
        assert!(sent.is_empty());
        if ended.is_err() {
            return;
        }
    }
});

fn with_header(command: u8, number: u64, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0xfe, b'S', b'M', b'B', 64, 0, 1, 0, 0, 0, 0, 0, command, 0, 8, 0];
    message.resize(HEADER, 0);
    message[24..32].copy_from_slice(&number.to_le_bytes());
    message.extend_from_slice(body);
    message
}
