//! What the requests of a connection show, and where each ends.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

mod common;

use cofferdam_flight::{Doubt, GuestStream, LIMIT, Look, Protocol, Shown};
use common::{every_way, hello, name, records, run};
use proptest::prelude::*;

fn http(names: &[&str]) -> Shown {
    Shown::Http { names: names.iter().map(|name| name.parse().unwrap()).collect() }
}

fn unreadable(doubt: Doubt) -> Shown {
    Shown::Unreadable { protocol: Protocol::Http, doubt }
}

#[test]
fn shows_the_host_of_every_request() {
    let text = "GET / HTTP/1.1\r\nHost: A.example:8080\r\n\r\n\
        POST /x?u=http://no.example/ HTTP/1.1\r\nhost:b.example.\r\nContent-Length: 5\r\n\r\nGET /\
        \r\n\r\nPOST / HTTP/1.1\r\nHOST: c.example\r\ntransfer-encoding: Chunked\r\n\r\n\
        5;ext=\"1\"\r\nGET /\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nTrailer: 1\r\n\r\n\
        OPTIONS * HTTP/1.0\r\nHost: d.example\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n\
        GET http://E.example:80/p HTTP/1.1\r\nHost: e.example\r\n\r\n";
    let ran = every_way(text.as_bytes());
    assert_eq!(ran.shown, ["a.example", "b.example", "c.example", "d.example", "e.example"].map(|name| http(&[name])));
    assert_eq!(ran.passed, text.as_bytes());
}

#[test]
fn a_body_of_any_length_passes_without_being_held() {
    let mut stream = GuestStream::new();
    let head = b"PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 18446744073709551615\r\n\r\n";
    assert_eq!(stream.look(head, false), Look::Ask { shown: http(&["a.example"]), length: head.len() });
    assert_eq!(stream.look(&[b'x'; 100_000], false), Look::Pass(100_000));
    assert_eq!(stream.look(b"", false), Look::More);
    let mut stream = GuestStream::new();
    let head = b"PUT / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(matches!(stream.look(head, false), Look::Ask { .. }));
    let chunk = [b"fffffffffffffff\r\n", &[b'x'; 70_000][..]].concat();
    assert_eq!(stream.look(&chunk, false), Look::Pass(chunk.len()));
}

#[test]
fn a_target_with_another_name_shows_both() {
    let both = "GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n";
    assert_eq!(every_way(both.as_bytes()).shown, [http(&["a.example", "b.example"])]);
}

#[test]
fn addresses_and_nothing_are_no_names() {
    for text in [
        "GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET http://192.0.2.1/ HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
    ] {
        assert_eq!(every_way(text.as_bytes()).shown, [http(&[])], "{text}");
    }
}

#[test]
fn what_servers_read_in_two_ways_is_refused() {
    let host = "Host: a.example\r\n";
    let cases = [
        ("GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n".to_owned(), Doubt::Host),
        ("GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n".to_owned(), Doubt::Host),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), Doubt::Host),
        ("GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n".to_owned(), Doubt::Name),
        ("GET / HTTP/1.1\r\nHost: a.example/b\r\n\r\n".to_owned(), Doubt::Name),
        ("GET / HTTP/1.1\r\nHost: u@a.example\r\n\r\n".to_owned(), Doubt::Name),
        ("GET / HTTP/1.1\r\nHost: a.example:80x\r\n\r\n".to_owned(), Doubt::Name),
        ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n".to_owned(), Doubt::Name),
        ("GET http://u:p@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(), Doubt::Name),
        (format!("GET http://192.0.2.1/ HTTP/1.1\r\n{host}\r\n"), Doubt::Host),
        (format!("CONNECT 192.0.2.1:443 HTTP/1.1\r\n{host}\r\n"), Doubt::Host),
        ("GET http://a.example/ HTTP/1.1\r\nHost:\r\n\r\n".to_owned(), Doubt::Host),
        (format!("GET x HTTP/1.1\r\n{host}\r\n"), Doubt::Malformed),
        (format!("GET / HTTP/1.1\r\nHost : b.example\r\n{host}\r\n"), Doubt::Malformed),
        (format!("GET / HTTP/1.1\r\n Host: b.example\r\n{host}\r\n"), Doubt::Malformed),
        (format!("GET / HTTP/1.1\r\n{host} folded\r\n\r\n"), Doubt::Malformed),
        (format!("GET / HTTP/1.1\r\n{host}X: a\nHost: b.example\r\n\r\n"), Doubt::Malformed),
        (format!("GET / HTTP/1.1\r\n{host}X: a\rb\r\n\r\n"), Doubt::Malformed),
        (format!("GET / HTTP/1.1\r\n{host}X: a\0b\r\n\r\n"), Doubt::Malformed),
        (format!("GET / HTTP/1.1\n{host}\r\n"), Doubt::Malformed),
        (format!("GET  / HTTP/1.1\r\n{host}\r\n"), Doubt::Malformed),
        (format!("GET /  HTTP/1.1\r\n{host}\r\n"), Doubt::Version),
        (format!(" GET / HTTP/1.1\r\n{host}\r\n"), Doubt::Malformed),
        (format!("GET\t/\tHTTP/1.1\r\n{host}\r\n"), Doubt::Version),
        (format!("get / http/1.1\r\n{host}\r\n"), Doubt::Version),
        (format!("GET / HTTP/1.2\r\n{host}\r\n"), Doubt::Version),
        ("GET / HTTP/2.0\r\nHost: a.example\r\n\r\n".to_owned(), Doubt::Version),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), Doubt::Version),
        ("GET /\r\n".to_owned(), Doubt::Version),
        (format!("POST / HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 1\r\n\r\n"), Doubt::Framing),
        (format!("POST / HTTP/1.1\r\n{host}Content-Length: 1, 1\r\n\r\n"), Doubt::Framing),
        (format!("POST / HTTP/1.1\r\n{host}Content-Length: +1\r\n\r\n"), Doubt::Framing),
        (format!("POST / HTTP/1.1\r\n{host}Content-Length: 0x1\r\n\r\n"), Doubt::Framing),
        (format!("POST / HTTP/1.1\r\n{host}Content-Length:\r\n\r\n"), Doubt::Framing),
        (format!("POST / HTTP/1.1\r\n{host}Content-Length: 18446744073709551616\r\n\r\n"), Doubt::Framing),
        (format!("POST / HTTP/1.1\r\n{host}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), Doubt::Framing),
        (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n"), Doubt::Framing),
        (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: identity\r\n\r\n"), Doubt::Framing),
        (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n"), Doubt::Framing),
        (
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Doubt::Framing,
        ),
        (format!("POST / HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n"), Doubt::Framing),
    ];
    for (text, doubt) in cases {
        assert_eq!(every_way(text.as_bytes()).shown, [unreadable(doubt)], "{text:?}");
        // The same behind a good request.
        let later = format!("GET / HTTP/1.1\r\n{host}\r\n{text}");
        let shown = every_way(later.as_bytes()).shown;
        assert_eq!(shown.len(), 2, "{text:?}");
        assert!(matches!(shown[1], Shown::Unreadable { .. }), "{text:?}");
    }
}

#[test]
fn chunks_that_do_not_add_up_are_refused() {
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "x\r\n",
        "\r\n",
        "1 \r\na\r\n",
        "-1\r\na\r\n",
        "0x1\r\na\r\n",
        "1\na\r\n",
        "1\r\nab\r\n",
        "1\r\na\rx",
        "1\r\na\n",
        "1000000000000000\r\n",
        "1;a\rb\r\n",
        "1;a\0\r\n",
        "0\r\nX: 1\n\r\n",
    ] {
        let shown = every_way(format!("{head}{body}").as_bytes()).shown;
        assert_eq!(shown, [http(&["a.example"]), unreadable(Doubt::Framing)], "{body:?}");
    }
    for body in [format!("1;{}", "x".repeat(5_000)), format!("0\r\n{}", "X: 1234567890\r\n".repeat(2_000))] {
        let shown = run(&[head.as_bytes(), body.as_bytes()], false).shown;
        assert_eq!(shown[1..], [unreadable(Doubt::TooLong)]);
    }
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let long = format!("GET / HTTP/1.1\r\nHost: a.example\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    assert_eq!(run(&[&long.as_bytes()[..LIMIT]], false).shown, [unreadable(Doubt::TooLong)]);
    assert_eq!(run(&[long.as_bytes()], false).shown, [unreadable(Doubt::TooLong)]);
    let many = format!("GET / HTTP/1.1\r\nHost: a.example\r\n{}\r\n", "X: 1\r\n".repeat(200));
    assert_eq!(run(&[many.as_bytes()], false).shown, [unreadable(Doubt::TooLong)]);
    assert_eq!(run(&[&[b'x'; LIMIT]], false).shown, [unreadable(Doubt::TooLong)]);
}

#[test]
fn connect_shows_its_target_and_what_follows_is_a_first_flight() {
    let connect = b"CONNECT b.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let then = records(&hello(&[name(b"c.example")]), &[]);
    let ran = every_way(&[&connect[..], &then].concat());
    let tls = Shown::Tls { server_name: Some("c.example".parse().unwrap()), ech: false };
    assert_eq!(ran.shown, [http(&["a.example", "b.example"]), tls]);
    let ran = every_way(&[&connect[..], b"SSH-2.0-x\r\n"].concat());
    assert_eq!(ran.shown[1..], [Shown::Other]);
}

#[test]
fn an_upgrade_hides_no_request() {
    let upgrade = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let frames = [0x81, 0x85, 1, 3, 1, 4, 5, 6, 7, 8, 9];
    let ran = every_way(&[upgrade.as_bytes(), &frames].concat());
    assert_eq!((ran.shown, ran.held.len()), (vec![http(&["a.example"])], 0));
    let ran = every_way(format!("{upgrade}GET / HTTP/1.1\r\nHost: b.example\r\n\r\n").as_bytes());
    assert_eq!(ran.shown, [http(&["a.example"]), http(&["b.example"])]);
    let ran = every_way(format!("{upgrade}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").as_bytes());
    assert_eq!(ran.shown, [http(&["a.example"]), unreadable(Doubt::Version)]);
    let then = records(&hello(&[name(b"c.example")]), &[]);
    let ran = every_way(&[upgrade.as_bytes(), &then].concat());
    assert_eq!(ran.shown[1].names(), ["c.example".parse().unwrap()]);
}

/// Found by fuzzing: whole it was taken for another protocol, in pieces for a request.
#[test]
fn what_looks_like_a_request_is_one_whatever_follows_in_its_line() {
    let ran = every_way(b"GET / HTTP/1.1\rjunk\x00GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert_eq!(ran.shown, [unreadable(Doubt::Malformed)]);
}

#[test]
fn other_protocols_are_told_at_once_or_at_the_end_of_their_first_line() {
    for bytes in [
        &b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"[..],
        b"EHLO x.example\r\n",
        b"USER a\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"\x80\x01",
        b"a1 LOGIN u p\r\n",
        b"0035git-upload-pack /project.git\0host=a.example\0",
        b"\x12\x01\x00\x2f",
        b"GETX\r\n",
    ] {
        let shown = every_way(bytes).shown;
        assert_eq!(shown, if bytes == b"\x80\x01" { vec![] } else { vec![Shown::Other] }, "{bytes:?}");
    }
    // Nothing more comes: it cannot become a request.
    for bytes in [&b"hello"[..], b"\x80\x01", b"\x16", b"\r\n"] {
        assert_eq!(run(&[bytes], true).shown, [Shown::Other], "{bytes:?}");
    }
    assert_eq!(run(&[b"GET /"], true).shown, [unreadable(Doubt::Malformed)]);
    assert_eq!(GuestStream::new().look(b"", true), Look::Free);
    assert_eq!(GuestStream::new().look(b"", false), Look::More);
    assert_eq!(GuestStream::new().unfinished(b"hel"), Shown::Unfinished);
    assert_eq!(GuestStream::new().unfinished(b"GET / HTTP/1.1\r\nHo"), unreadable(Doubt::Malformed));
    // No other protocol in the middle of a connection of requests.
    let then = records(&hello(&[name(b"c.example")]), &[]);
    let ran = every_way(&[b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", &then[..]].concat());
    assert_eq!(ran.shown, [http(&["a.example"]), unreadable(Doubt::Malformed)]);
}

fn request() -> impl Strategy<Value = (String, String)> {
    let name = "[a-z]{1,5}\\.example";
    let body = prop_oneof![
        Just(String::new()),
        "[a-zA-Z \r\n/:.1]{0,40}".prop_map(|body| format!("Content-Length: {}\r\n\r\n{body}", body.len())),
        prop::collection::vec("[a-zA-Z \r\n/:.1]{1,40}", 0..4).prop_map(|chunks| {
            let chunks: String = chunks.iter().map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len())).collect();
            format!("Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
        }),
    ];
    (name, body).prop_map(|(name, body)| {
        let body = if body.is_empty() { "\r\n".to_owned() } else { body };
        (format!("POST / HTTP/1.1\r\nHost: {name}\r\n{body}"), name)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever bodies hold, exactly the hosts of the heads are shown, in any cutting.
    #[test]
    fn requests_in_a_row_show_their_hosts(requests in prop::collection::vec(request(), 1..5), cuts in prop::collection::vec(1..60_usize, 0..30)) {
        let text: String = requests.iter().map(|(text, _)| text.as_str()).collect();
        let mut pieces = Vec::new();
        let mut rest = text.as_bytes();
        for cut in cuts {
            let (piece, later) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = later;
        }
        pieces.push(rest);
        let ran = run(&pieces, false);
        let expected: Vec<Shown> = requests.iter().map(|(_, name)| http(&[name])).collect();
        prop_assert_eq!(ran.shown, expected);
        prop_assert_eq!(ran.passed, text.as_bytes());
    }

    #[test]
    fn any_bytes_are_survived(pieces in prop::collection::vec(prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"GET /HTP1.\r\n: Host\x16\x03".to_vec())], 0..60), 0..20), ended in any::<bool>()) {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let ran = run(&pieces, ended);
        // Nothing is lost or invented.
        let sent = pieces.concat();
        prop_assert!(sent.starts_with(&ran.passed));
    }

    /// A second host cannot be smuggled in by damage to a request.
    #[test]
    fn a_damaged_request_shows_one_host_or_doubt(at in 0..60_usize, byte in any::<u8>()) {
        let mut text = b"GET / HTTP/1.1\r\nHost: a.example\r\nX: y\r\n\r\n".to_vec();
        let at = at % text.len();
        text[at] = byte;
        let ran = run(&[&text], false);
        if let Some(Shown::Http { names }) = ran.shown.first() {
            prop_assert!(names.len() <= 1);
        }
    }
}

#[test]
fn a_request_line_with_odd_bytes_is_no_other_protocol() {
    for line in [&b"POST /\x01 HTTP/1.1"[..], b"GET\xa0/\xa0HTTP/1.1", b"POST\x1c/\x1cHTTP/1.1"] {
        let bytes = [line, b"\r\nHost: evil.example\r\n\r\n"].concat();
        let shown = every_way(&bytes).shown;
        assert!(matches!(shown[..], [Shown::Unreadable { protocol: Protocol::Http, .. }]), "{line:?}: {shown:?}");
    }
}

#[test]
fn a_connect_with_a_body_is_refused() {
    for field in ["Content-Length: 40", "Transfer-Encoding: chunked"] {
        let bytes = format!("CONNECT good.example:443 HTTP/1.1\r\nHost: good.example\r\n{field}\r\n\r\n");
        assert_eq!(run(&[bytes.as_bytes()], false).shown, [unreadable(Doubt::Framing)], "{field}");
    }
}
