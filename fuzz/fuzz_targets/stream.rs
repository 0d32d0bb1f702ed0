//! What a guest sends on a TCP connection, in pieces: each begins with its length. The first byte says whether it ends.
#![no_main]

use cofferdam_flight::{GuestStream, LIMIT, Look, Shown};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [ended, rest @ ..] = data else { return };
    let mut pieces = Vec::new();
    let mut rest = rest;
    while let [length, more @ ..] = rest {
        let (piece, later) = more.split_at(usize::from(*length).min(more.len()));
        pieces.push(piece);
        rest = later;
    }
    let cut_up = run(&pieces, ended & 1 == 1);
    let whole = run(&[&pieces.concat()], ended & 1 == 1);
    // How the bytes were cut changes nothing in what is shown.
    assert_eq!(cut_up, whole);
});

fn run(pieces: &[&[u8]], ended: bool) -> Vec<Shown> {
    let mut stream = GuestStream::new();
    let (mut held, mut shown) = (Vec::new(), Vec::new());
    for (at, piece) in pieces.iter().enumerate() {
        held.extend_from_slice(piece);
        let last = ended && at + 1 == pieces.len();
        loop {
            let length = match stream.look(&held, last) {
                Look::More => {
                    assert!(held.len() < LIMIT);
                    break;
                }
                Look::Free | Look::Upgraded => return shown,
                Look::Pass(length) => {
                    assert!(length > 0);
                    length
                }
                Look::Ask { shown: what, length } => {
                    assert!(what.names().len() <= 2);
                    let stop = matches!(what, Shown::Unreadable { .. } | Shown::Other);
                    shown.push(what);
                    if stop {
                        return shown;
                    }
                    length
                }
            };
            held.drain(..length);
            if held.is_empty() {
                break;
            }
        }
    }
    shown
}
