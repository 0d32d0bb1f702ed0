//! The host's side: what is asked and answered, and every way in which a guest may not hold to it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test stops where it fails"
)]

mod common;

use cofferdam_guest_protocol::{
    CallError, CallId, Decoder, Event, Host, MAX_CALLS, MAX_DATA, MAX_UNREAD, Put, Shortage, Status, Stream, ToGuest,
    ToHost, Token, VERSION, Violation, WINDOW,
};
use proptest::prelude::*;

use common::{TOKEN, exec, to_host};

/// A host to which the agent has said that it serves.
fn serving() -> Host {
    let mut host = Host::new(Token::new(TOKEN));
    assert_eq!(say(&mut host, &ToHost::Hello { version: VERSION, token: Token::new(TOKEN) }), Ok(vec![Event::Ready]));
    assert_eq!(heard(&mut host), [ToGuest::Hello { version: VERSION, token: Token::new(TOKEN) }]);
    host
}

fn running() -> (Host, CallId) {
    let mut host = serving();
    let call = host.exec(exec(&["sh"])).unwrap();
    assert_eq!(heard(&mut host), [ToGuest::Exec { call, exec: exec(&["sh"]) }]);
    assert_eq!(say(&mut host, &ToHost::Started { call }), Ok(vec![Event::Started { call }]));
    (host, call)
}

fn say(host: &mut Host, message: &ToHost) -> Result<Vec<Event>, Violation> {
    host.handle_bytes(&message.emit())?;
    Ok(std::iter::from_fn(|| host.poll_event()).collect())
}

fn heard(host: &mut Host) -> Vec<ToGuest> {
    let bytes = host.output().to_vec();
    host.sent(bytes.len());
    let (mut decoder, mut rest) = (Decoder::new(), &bytes[..]);
    std::iter::from_fn(|| decoder.decode(&mut rest).unwrap()).collect()
}

#[track_caller]
fn unfitting(host: &mut Host, message: &ToHost) {
    let answer = say(host, message);
    assert!(matches!(answer, Err(Violation::Unfitting { .. })), "{answer:?}");
    // It is for good.
    assert_eq!(host.handle_bytes(&[]).unwrap_err(), answer.unwrap_err());
    assert!(host.output().is_empty());
    assert_eq!(host.exec(exec(&["sh"])), Err(CallError::NotReady));
}

#[test]
fn nothing_is_asked_before_the_greeting() {
    let mut host = Host::new(Token::new(TOKEN));
    assert_eq!(host.exec(exec(&["sh"])), Err(CallError::NotReady));
    assert!(host.output().is_empty());
}

#[test]
fn a_console_is_no_greeting() {
    let mut host = Host::new(Token::new(TOKEN));
    let violation = host.handle_bytes(b"[    0.000000] Linux version 6.1.0").unwrap_err();
    assert_eq!(violation, Violation::NoGreeting);
    assert_eq!(host.handle_bytes(b"").unwrap_err(), violation);
}

#[test]
fn another_message_is_no_greeting() {
    let mut host = Host::new(Token::new(TOKEN));
    assert_eq!(say(&mut host, &ToHost::Done { call: CallId(1) }), Err(Violation::NoGreeting));
}

#[test]
fn a_wrong_token_is_refused_and_ours_is_not_told() {
    let mut host = Host::new(Token::new(TOKEN));
    let token = Token::new([8; Token::LENGTH]);
    assert_eq!(say(&mut host, &ToHost::Hello { version: VERSION, token }), Err(Violation::Token));
    assert!(host.output().is_empty());
}

#[test]
fn another_version_is_named_with_what_to_do() {
    let mut host = Host::new(Token::new(TOKEN));
    let violation = say(&mut host, &ToHost::Hello { version: 9, token: Token::new(TOKEN) }).unwrap_err();
    assert_eq!(violation, Violation::Version { theirs: 9 });
    assert!(violation.to_string().contains("cofferdam vm setup"));
}

#[test]
fn a_program_runs_and_ends() {
    let (mut host, call) = running();
    assert_eq!(host.write(call, b"in"), 2);
    host.end(call);
    host.end(call);
    assert_eq!(heard(&mut host), [ToGuest::Data { call, bytes: b"in".to_vec() }, ToGuest::End { call }]);
    let stream = Stream::Output;
    let data = ToHost::Data { call, stream, bytes: b"out".to_vec() };
    assert_eq!(say(&mut host, &data), Ok(vec![Event::Data { call, stream, bytes: b"out".to_vec() }]));
    for stream in [Stream::Output, Stream::Error] {
        assert_eq!(say(&mut host, &ToHost::End { call, stream }), Ok(vec![Event::End { call, stream }]));
    }
    let status = Status::Code(3);
    assert_eq!(say(&mut host, &ToHost::Exited { call, status }), Ok(vec![Event::Exited { call, status }]));
    // It is over: nothing more is said about it.
    host.kill(call);
    assert_eq!((host.write(call, b"x"), host.room(call)), (0, 0));
    assert!(host.output().is_empty());
}

#[test]
fn input_stops_where_the_window_ends_and_goes_on_with_credit() {
    let (mut host, call) = running();
    let window = usize::try_from(WINDOW).unwrap();
    assert_eq!(host.write(call, &vec![0; window + 1]), window);
    assert_eq!(host.write(call, b"x"), 0);
    let sizes: Vec<usize> = heard(&mut host)
        .into_iter()
        .map(|message| match message {
            ToGuest::Data { bytes, .. } => bytes.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes, vec![MAX_DATA; window / MAX_DATA]);
    assert_eq!(say(&mut host, &ToHost::Credit { call, bytes: 5 }), Ok(vec![Event::Room { call, bytes: 5 }]));
    assert_eq!(host.write(call, b"0123456789"), 5);
}

#[test]
fn a_stream_that_nobody_takes_holds_up_itself_alone() {
    let (mut host, call) = running();
    let data = |stream| ToHost::Data { call, stream, bytes: vec![0; MAX_DATA] };
    let window = usize::try_from(WINDOW).unwrap();
    for _ in 0..window / MAX_DATA {
        say(&mut host, &data(Stream::Output)).unwrap();
    }
    // The other stream has a window of its own, and what is taken of it is asked for anew.
    let mut credit = 0;
    for _ in 0..4 * window / MAX_DATA {
        say(&mut host, &data(Stream::Error)).unwrap();
        host.taken(call, Stream::Error, MAX_DATA);
        for message in heard(&mut host) {
            let ToGuest::Credit { stream: Stream::Error, bytes, .. } = message else { panic!("{message:?}") };
            credit += bytes;
        }
    }
    assert_eq!(credit, 4 * WINDOW);
    unfitting(&mut host, &data(Stream::Output));
}

#[test]
fn every_call_but_the_most_is_made() {
    let mut host = serving();
    for _ in 0..MAX_CALLS {
        host.get(b"/x".to_vec()).unwrap();
    }
    assert_eq!(host.get(b"/x".to_vec()), Err(CallError::TooMany));
}

#[test]
fn arguments_that_fit_in_no_message_are_refused_here() {
    let mut host = serving();
    assert_eq!(host.exec(exec(&[&"x".repeat(2 << 20)])), Err(CallError::TooLong));
    assert!(host.output().is_empty());
}

#[test]
fn a_program_does_not_exit_before_its_streams_have_ended() {
    let (mut host, call) = running();
    unfitting(&mut host, &ToHost::Exited { call, status: Status::Code(0) });
}

#[test]
fn a_program_does_not_exit_before_it_has_started() {
    let mut host = serving();
    let call = host.exec(exec(&["sh"])).unwrap();
    host.sent(usize::MAX);
    unfitting(&mut host, &ToHost::Exited { call, status: Status::Code(0) });
}

#[test]
fn a_program_starts_once() {
    let (mut host, call) = running();
    unfitting(&mut host, &ToHost::Started { call });
}

#[test]
fn nothing_comes_after_the_end_of_a_stream() {
    let (mut host, call) = running();
    say(&mut host, &ToHost::End { call, stream: Stream::Output }).unwrap();
    unfitting(&mut host, &ToHost::Data { call, stream: Stream::Output, bytes: vec![0] });
}

#[test]
fn a_terminal_has_one_stream() {
    let mut host = serving();
    let size = cofferdam_guest_protocol::Size { rows: 25, columns: 80 };
    let call = host.exec(cofferdam_guest_protocol::Exec { terminal: Some(size), ..exec(&["sh"]) }).unwrap();
    host.sent(usize::MAX);
    say(&mut host, &ToHost::Started { call }).unwrap();
    unfitting(&mut host, &ToHost::Data { call, stream: Stream::Error, bytes: vec![0] });
}

#[test]
fn a_call_that_was_not_made_has_no_answer() {
    let (mut host, _) = running();
    unfitting(&mut host, &ToHost::Done { call: CallId(77) });
}

#[test]
fn credit_beyond_a_window_is_refused() {
    let (mut host, call) = running();
    unfitting(&mut host, &ToHost::Credit { call, bytes: 1 });
}

#[test]
fn that_the_disk_is_full_is_said_once_of_a_program_that_runs() {
    let (mut host, call) = running();
    let shortage = Shortage::Space { bytes: 8 << 20 };
    let full = ToHost::Full { call, shortage };
    assert_eq!(say(&mut host, &full), Ok(vec![Event::Full { call, shortage }]));
    unfitting(&mut host, &full);
    let mut host = serving();
    let call = host.exec(exec(&["sh"])).unwrap();
    unfitting(&mut host, &ToHost::Full { call, shortage });
    let mut host = serving();
    let call = host.put(Put { path: b"/x".to_vec(), mode: 0o644, uid: 0, gid: 0 }).unwrap();
    say(&mut host, &ToHost::Started { call }).unwrap();
    unfitting(&mut host, &ToHost::Full { call, shortage: Shortage::Files { count: 1 } });
}

#[test]
fn who_says_something_has_read_what_it_was_told() {
    let (mut host, call) = running();
    while host.output().len() <= MAX_UNREAD {
        host.signal(call, 1);
    }
    let data = ToHost::Data { call, stream: Stream::Output, bytes: vec![0] };
    assert_eq!(say(&mut host, &data), Err(Violation::Deaf));
    assert!(host.output().is_empty());
}

#[test]
fn a_file_that_is_written_sends_nothing() {
    let mut host = serving();
    let call = host.put(Put { path: b"/x".to_vec(), mode: 0o644, uid: 0, gid: 0 }).unwrap();
    host.sent(usize::MAX);
    say(&mut host, &ToHost::Started { call }).unwrap();
    unfitting(&mut host, &ToHost::Data { call, stream: Stream::Output, bytes: vec![0] });
}

#[test]
fn a_second_greeting_is_refused() {
    let (mut host, _) = running();
    unfitting(&mut host, &ToHost::Hello { version: VERSION, token: Token::new(TOKEN) });
}

#[test]
fn the_last_words_of_an_agent_are_told() {
    let (mut host, _) = running();
    let text = "the disk is gone\u{1b}[2J".to_owned();
    let violation = say(&mut host, &ToHost::Dying { text }).unwrap_err();
    // As a guest wrote it, but nothing that a terminal acts on.
    assert_eq!(violation.to_string(), r#"the guest's agent gave up: "the disk is gone\u{1b}[2J""#);
}

proptest! {
    #[test]
    fn whatever_a_guest_says_what_it_may_send_is_bounded(messages in prop::collection::vec(to_host(), 0..40)) {
        let mut host = serving();
        let calls = [host.exec(exec(&["sh"])).unwrap(), host.get(b"/x".to_vec()).unwrap()];
        host.sent(usize::MAX);
        let mut ends = 0;
        for message in &messages {
            let Ok(events) = say(&mut host, message) else { break };
            prop_assert_eq!(events.len(), 1);
            ends += events
                .iter()
                .filter(|event| matches!(event, Event::Exited { .. } | Event::Done { .. } | Event::Failed { .. }))
                .count();
        }
        prop_assert!(ends <= calls.len());
        for call in calls {
            prop_assert!(host.room(call) <= usize::try_from(WINDOW).unwrap());
        }
    }
}
