//! What QEMU says by QMP: the input in pieces, whose lengths are its first bytes.
//!
//! Whatever comes, what is kept stays within bounds, and in pieces it means the same as at once.
#![no_main]

use cofferdam_backend_vm::qmp::{Output, Qmp, QmpError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [count, rest @ ..] = data else { return };
    let (lengths, stream) = rest.split_at(rest.len().min(usize::from(*count & 0x0f)));
    let whole = heard(&[stream]);
    let mut left = stream;
    let mut pieces = Vec::new();
    for length in lengths {
        let (piece, more) = left.split_at(left.len().min(usize::from(*length)));
        pieces.push(piece);
        left = more;
    }
    pieces.push(left);
    assert_eq!(heard(&pieces), whole);
});

/// What comes out, and how it ends. Outputs are polled at the end, as nobody has to poll in between.
fn heard(pieces: &[&[u8]]) -> (Vec<Output>, Result<(), QmpError>) {
    let mut qmp = Qmp::new();
    let ended = pieces.iter().try_for_each(|piece| qmp.handle_input(piece));
    (std::iter::from_fn(|| qmp.poll_output()).collect(), ended)
}
