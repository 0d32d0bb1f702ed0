#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing, reason = "every test program uses a part of this")]

use cofferdam_flight::{GuestStream, Look, Shown};

/// A ClientHello message with these extensions.
pub(crate) fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0x13, 1, 0x13, 2, 1, 0]);
    let extensions: Vec<u8> =
        extensions.iter().flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &vector16(data)].concat()).collect();
    body.extend(vector16(&extensions));
    message(&body)
}

pub(crate) fn message(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[1..], body].concat()
}

pub(crate) fn vector16(data: &[u8]) -> Vec<u8> {
    [&u16::try_from(data.len()).unwrap().to_be_bytes()[..], data].concat()
}

/// The `server_name` extension.
pub(crate) fn name(name: &[u8]) -> (u16, Vec<u8>) {
    (0, vector16(&[&[0], &vector16(name)[..]].concat()))
}

/// Handshake bytes in records of these sizes, and a last one with the rest.
pub(crate) fn records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = message;
    for size in sizes.iter().copied().chain([usize::MAX]) {
        let (now, later) = rest.split_at(size.min(rest.len()));
        if now.is_empty() {
            break;
        }
        out.extend([22, 3, 1]);
        out.extend(vector16(now));
        rest = later;
    }
    out
}

/// What happened to a stream of bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) shown: Vec<Shown>,
    pub(crate) passed: Vec<u8>,
    pub(crate) held: Vec<u8>,
}

/// Runs bytes through a reader in pieces; everything that is asked is agreed to unless it is unreadable, as a gateway does.
pub(crate) fn run(pieces: &[&[u8]], ended: bool) -> Ran {
    let mut stream = GuestStream::new();
    let mut ran = Ran::default();
    let mut free = false;
    for (at, piece) in pieces.iter().enumerate() {
        ran.held.extend_from_slice(piece);
        let last = ended && at + 1 == pieces.len();
        if free {
            ran.passed.append(&mut ran.held);
            continue;
        }
        loop {
            let length = match stream.look(&ran.held, last) {
                Look::More => {
                    assert!(ran.held.len() < cofferdam_flight::LIMIT);
                    break;
                }
                Look::Ask { shown, length } => {
                    let unreadable = matches!(shown, Shown::Unreadable { .. });
                    ran.shown.push(shown);
                    if unreadable {
                        return ran;
                    }
                    length
                }
                Look::Pass(length) => {
                    assert!(length > 0);
                    length
                }
                // As if the server had taken it.
                Look::Upgraded => {
                    assert!(stream.is_upgrading());
                    free = true;
                    ran.held.len()
                }
                Look::Free => ran.held.len(),
            };
            ran.passed.extend(ran.held.drain(..length));
            if ran.held.is_empty() || free {
                break;
            }
        }
    }
    ran
}

/// Cuts bytes at every position, in two and byte by byte: what is shown may not depend on it.
pub(crate) fn every_way(bytes: &[u8]) -> Ran {
    let whole = run(&[bytes], false);
    for cut in 1..bytes.len() {
        let (one, two) = bytes.split_at(cut);
        let cut_up = run(&[one, two], false);
        assert_eq!(cut_up.shown, whole.shown, "cut at {cut}");
        if whole.held.is_empty() {
            assert_eq!(cut_up.passed, whole.passed, "cut at {cut}");
        }
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(run(&single, false).shown, whole.shown, "byte by byte");
    whole
}
