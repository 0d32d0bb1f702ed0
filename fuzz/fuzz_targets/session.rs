//! What a resolver sends over a connection, in pieces: the first byte chooses the framing, the second the size of the pieces.
#![no_main]

use cofferdam_names::{Framing, Reply, Session, UpstreamId};
use libfuzzer_sys::fuzz_target;

const QUESTIONS: u64 = 3;

fuzz_target!(|data: &[u8]| {
    let [choice, size, input @ ..] = data else { return };
    let framing = match choice & 1 {
        0 => Framing::Tls,
        _ => Framing::Https { authority: "dns.example".to_owned(), path: "/dns-query".to_owned() },
    };
    let mut session = Session::new(&framing);
    for number in 0..QUESTIONS {
        session.ask(UpstreamId(number), vec![0x12, 0x34, 1, 2, 3]).unwrap();
    }
    let mut replies = Vec::new();
    let mut sent = 0;
    for piece in input.chunks(usize::from(*size).max(1)) {
        if session.handle_input(piece, &mut replies).is_err() {
            break;
        }
        sent += session.take_output().len();
    }
    // Each question ends at most once, with its own id; and nobody makes us send without end.
    let mut ended = Vec::new();
    for reply in replies {
        let upstream = match reply {
            Reply::Answer { upstream, message } => {
                assert_eq!(message[..2], [0x12, 0x34]);
                upstream
            }
            Reply::Failed { upstream } => upstream,
        };
        assert!(upstream.0 < QUESTIONS && !ended.contains(&upstream));
        ended.push(upstream);
    }
    assert!(sent <= 1024 + 4 * input.len());
    assert_eq!(session.into_waiting().count() + ended.len(), usize::try_from(QUESTIONS).unwrap());
});
