//! A guest that says anything on the agent's channel, in any pieces: the host answers with events, or once and for all with a
//! violation; and any bytes as what a host says, to the agent's decoder.
//!
//! The first byte is the size of the pieces and whether a good greeting comes first. Then either raw bytes, or with bit 6 of the
//! first byte a row of frames whose lengths are put right, so that the fuzzer gets to the states of calls.

#![no_main]

use cofferdam_guest_protocol::{
    Decoder, Event, Exec, Host, Leftover, Put, Size, ToGuest, ToHost, Token, VERSION, WINDOW,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((first, input)) = input.split_first() else { return };
    let token = || Token::new([3; Token::LENGTH]);
    let mut bytes = Vec::new();
    if first & 0x80 != 0 {
        bytes.extend(ToHost::Hello { version: VERSION, token: token() }.emit());
    }
    if first & 0x40 == 0 {
        bytes.extend_from_slice(input);
    } else {
        let mut rest = input;
        while let [length, tail @ ..] = rest {
            let (body, tail) = tail.split_at(usize::from(*length).min(tail.len()));
            bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(body);
            rest = tail;
        }
    }
    let mut host = Host::new(token());
    let (mut broken, mut ended) = (None, 0);
    for piece in bytes.chunks(usize::from(first & 0x3f) + 1) {
        match (host.handle_bytes(piece), &broken) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => panic!("it goes on after a violation"),
            (Err(violation), None) => broken = Some(violation),
            (Err(violation), Some(before)) => assert_eq!(violation, *before),
        }
        while let Some(event) = host.poll_event() {
            match event {
                Event::Ready => {
                    let exec = |terminal| Exec {
                        argv: vec![b"sh".to_vec()],
                        env: Vec::new(),
                        cwd: b"/".to_vec(),
                        uid: 0,
                        gid: 0,
                        terminal,
                        leftover: Leftover::Kill,
                    };
                    let calls = [
                        host.exec(exec(None)),
                        host.exec(exec(Some(Size { rows: 1, columns: 1 }))),
                        host.get(b"/x".to_vec()),
                        host.put(Put { path: b"/x".to_vec(), mode: 0, uid: 0, gid: 0 }),
                        host.shutdown(),
                    ];
                    for call in calls.into_iter().flatten() {
                        host.write(call, &vec![0; usize::try_from(WINDOW).unwrap()]);
                    }
                }
                Event::Data { call, stream, bytes } => host.taken(call, stream, bytes.len()),
                Event::Room { call, .. } => {
                    assert!(host.room(call) <= usize::try_from(WINDOW).unwrap());
                    host.write(call, &[1]);
                }
                Event::Exited { .. } | Event::Done { .. } | Event::Failed { .. } => ended += 1,
                Event::Started { .. } | Event::Opened { .. } | Event::End { .. } | Event::Full { .. } => {}
            }
        }
        assert!(ended <= 5);
        host.sent(usize::MAX);
    }
    let (mut decoder, mut rest) = (Decoder::<ToGuest>::new(), &bytes[..]);
    while let Ok(Some(message)) = decoder.decode(&mut rest) {
        let frame = message.emit();
        assert_eq!(Decoder::new().decode(&mut &frame[..]), Ok(Some(message)));
    }
});
