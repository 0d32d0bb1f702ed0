//! The server: HTTP/1.1 on the loopback, by one thread, for one browser.
//!
//! Its address is drawn from 127.0.0.0/8 at each start. An origin is an address and a port, and a browser keeps what a page of an
//! origin has left there (a service worker, a cache, a cookie) for whoever has that origin next. What sandboxes publish is at 127.0.0.1,
//! or wherever else somebody has said: the page is never there, whatever port it is given.
//!
//! Each connection is for one request and one answer, and all of it has [`PATIENCE`]: the page asks once a second, which is not worth
//! keeping connections for, and nothing that is opened and left alone stays. Whoever has not said anything that the door lets in
//! is a stranger. Of those there are [`MAX_STRANGERS`], and the oldest makes room for the next, so that nobody keeps the page's own
//! browser away by connecting; [`GRACE`] is time enough for that one to say who it is. Beside them [`MAX_CONNECTIONS`] are answered.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cofferdam_control::named::Registry;
use cofferdam_control::store::{RunId, RunStore, StoreError};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, LocalSet};

use crate::change::{self, Allow, Ask, Failed};
use crate::door::{Asked, Door, Head, Query, Refused};
use crate::secret::{self, NoRandom, Secret};
use crate::watch::Watch;
use crate::{page, view};

/// Requests that are answered at once. A browser has six connections for one host.
pub(crate) const MAX_CONNECTIONS: usize = 32;
/// Connections that have not said anything that is let in.
pub(crate) const MAX_STRANGERS: usize = 64;
/// What each of them has before another one takes its place. A browser says its request with the connection.
const GRACE: Duration = Duration::from_millis(100);
/// For a request and its answer. Changing a policy may take as long as the run's supervisor does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(75);
/// For all of the request.
pub(crate) const HASTE: Duration = Duration::from_secs(5);
/// Bytes of a request's head: cookies of everything on this host are among them.
pub(crate) const MAX_HEAD: usize = 16 * 1024;
/// Header fields.
pub(crate) const MAX_FIELDS: usize = 64;
/// Bytes of a request's body: the id of a run and a rule.
pub(crate) const MAX_BODY: usize = 4096;

/// Changes that wait for a supervisor at once; more wait for these.
const MAX_CHANGES: usize = 2;

/// The header by which the page says its key.
const KEY: HeaderName = HeaderName::from_static("x-cofferdam-key");
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Where things are, and where to listen.
#[derive(Debug)]
pub struct Config {
    /// The state directory.
    pub state: PathBuf,
    /// `None`: one that is free.
    pub port: Option<u16>,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot serve on {address}")]
    Serve { address: SocketAddr, source: io::Error },
    #[error("the system gave no event loop")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Random(#[from] NoRandom),
}

/// A page that listens.
#[derive(Debug)]
pub struct Ui {
    address: SocketAddr,
    listener: TcpListener,
    state: State,
}

#[derive(Debug)]
struct State {
    /// The state directory.
    state: PathBuf,
    door: Door,
    watch: Watch,
    registry: Registry,
}

impl Ui {
    /// Listens on an address of the loopback that is drawn anew each time.
    ///
    /// # Errors
    /// When the port is taken at every address of this machine, or there is no loopback.
    pub fn bind(config: Config) -> Result<Ui, BindError> {
        let Config { state, port } = config;
        // Nobody else listens there, now or while this does: an address of its own does not share a port with 0.0.0.0.
        let address = SocketAddr::new(draw_address()?.into(), port.unwrap_or(0));
        let bound = TcpListener::bind(address).and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.map_err(|source| BindError::Listen { address, source })?;
        let (watch, registry) = (Watch::new(RunStore::at(&state)), Registry::at(&state));
        let state = State { state, door: Door::new(address)?, watch, registry };
        Ok(Ui { address, listener, state })
    }

    /// The link that opens the page, once.
    #[must_use]
    pub fn link(&self) -> String {
        format!("http://{}/?token={}", self.address, self.state.door.token().reveal())
    }

    /// Serves until the process ends.
    ///
    /// # Errors
    /// What the system refuses at the start.
    pub fn serve(self) -> Result<Infallible, BindError> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_io().enable_time().max_blocking_threads(MAX_CHANGES);
        let runtime = runtime.build().map_err(BindError::Runtime)?;
        let Ui { address, listener, state } = self;
        LocalSet::new().block_on(&runtime, async move {
            let serve = |source| BindError::Serve { address, source };
            listener.set_nonblocking(true).map_err(serve)?;
            let listener = tokio::net::TcpListener::from_std(listener).map_err(serve)?;
            accept(listener, Rc::new(RefCell::new(state)), Rc::new(Room::new())).await
        })
    }
}

/// One of sixteen million. What machines use themselves (127.0.0.1, 127.0.0.53, 127.0.1.1) is below 127.16.0.0.
fn draw_address() -> Result<Ipv4Addr, NoRandom> {
    let [second, third, last] = secret::random()?;
    Ok(Ipv4Addr::new(127, second.max(16), third, last.clamp(1, 254)))
}

/// Who is connected.
struct Room {
    /// Oldest first.
    strangers: RefCell<VecDeque<Stranger>>,
    answered: Semaphore,
}

struct Stranger {
    number: u64,
    since: Instant,
    connection: AbortHandle,
}

impl Room {
    fn new() -> Room {
        Room { strangers: RefCell::default(), answered: Semaphore::new(MAX_CONNECTIONS) }
    }

    /// Waits until there is room for one more stranger.
    async fn make_room(&self) {
        loop {
            let oldest = {
                let mut strangers = self.strangers.borrow_mut();
                strangers.retain(|stranger| !stranger.connection.is_finished());
                if strangers.len() < MAX_STRANGERS {
                    return;
                }
                let Some(oldest) = strangers.front() else { return };
                let due = oldest.since + GRACE;
                if due <= Instant::now() {
                    oldest.connection.abort();
                    strangers.pop_front();
                    return;
                }
                due
            };
            tokio::time::sleep_until(oldest.into()).await;
        }
    }

    /// This one is let in.
    fn know(&self, number: u64) {
        self.strangers.borrow_mut().retain(|stranger| stranger.number != number);
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    state: Rc<RefCell<State>>,
    room: Rc<Room>,
) -> Result<Infallible, BindError> {
    for number in 0.. {
        room.make_room().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Descriptors are used up, or whoever connected is gone; the next turn may do better.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let guest = Guest { number, state: Rc::clone(&state), room: Rc::clone(&room) };
        let serving = tokio::task::spawn_local(async move {
            // How a connection ended is the browser's affair.
            let _ended = tokio::time::timeout(PATIENCE, connection(stream, guest)).await;
        });
        let stranger = Stranger { number, since: Instant::now(), connection: serving.abort_handle() };
        room.strangers.borrow_mut().push_back(stranger);
    }
    std::future::pending().await
}

/// Whose connection it is.
#[derive(Clone)]
struct Guest {
    number: u64,
    state: Rc<RefCell<State>>,
    room: Rc<Room>,
}

async fn connection(stream: TcpStream, guest: Guest) {
    let service = service_fn(move |request| {
        let guest = guest.clone();
        async move { Ok::<_, Infallible>(answer(request, &guest).await) }
    });
    let mut builder = http1::Builder::new();
    builder.keep_alive(false).max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS).half_close(false);
    builder.timer(Clock).header_read_timeout(HASTE);
    // What it says went wrong was on the wire.
    let _ended = builder.serve_connection(Io(stream), service).await;
}

/// Answers one request.
async fn answer(request: Request<Incoming>, guest: &Guest) -> Response<Once> {
    let Guest { number, state, room } = guest;
    let headers = request.headers().clone();
    let method = request.method().clone();
    let target = request.uri().clone();
    if method != Method::GET && method != Method::POST {
        return refuse(Refused::Method);
    }
    let head = Head {
        is_post: method == Method::POST,
        path: target.path(),
        query: target.query().unwrap_or_default(),
        host: only(&headers, &header::HOST),
        origin: only(&headers, &header::ORIGIN),
        site: only(&headers, &SITE),
        cookie: only(&headers, &header::COOKIE),
        key: only(&headers, &KEY),
        content_type: only(&headers, &header::CONTENT_TYPE),
    };
    let asked = match state.borrow_mut().door.admit(&head) {
        Err(refused) => return refuse(refused),
        Ok(asked) => asked,
    };
    room.know(*number);
    // It is never closed; those who wait for it know the key.
    let _permit = room.answered.acquire().await;
    match asked {
        Asked::Enter => {
            let state = state.borrow();
            let mut response = html(StatusCode::OK, |nonce| page::page(nonce, Some(state.door.key().reveal())));
            if let Ok(cookie) = HeaderValue::from_str(&state.door.set_cookie()) {
                response.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            response
        }
        Asked::Page => html(StatusCode::OK, |nonce| page::page(nonce, None)),
        Asked::Overview => {
            let state = state.borrow();
            json(StatusCode::OK, &view::overview(state.watch.store(), &state.registry))
        }
        Asked::Run(query) => show(&mut state.borrow_mut(), query),
        Asked::Propose => change(request.into_body(), state, change::propose).await,
        Asked::Allow => change(request.into_body(), state, change::allow).await,
    }
}

fn show(state: &mut State, query: Query<'_>) -> Response<Once> {
    let Ok(id) = query.run.parse::<RunId>() else {
        return error(StatusCode::NOT_FOUND, "there is no such run");
    };
    match state.watch.read(&id) {
        Ok(watched) => json(StatusCode::OK, &view::run(watched, query.since)),
        Err(StoreError::Absent(_)) => error(StatusCode::NOT_FOUND, "the record of this run was removed"),
        Err(failed) => error(StatusCode::INTERNAL_SERVER_ERROR, &failed.to_string()),
    }
}

/// Hears a change out, and asks whoever can make it.
async fn change(said: Incoming, state: &RefCell<State>, ask: Ask) -> Response<Once> {
    let said = match tokio::time::timeout(HASTE, body(said)).await {
        Ok(Some(said)) => said,
        Ok(None) => return error(StatusCode::PAYLOAD_TOO_LARGE, "this is more than a change has to say"),
        Err(_) => return error(StatusCode::REQUEST_TIMEOUT, "the request did not come to an end"),
    };
    let Ok(allow) = serde_json::from_slice::<Allow>(&said) else {
        return error(StatusCode::BAD_REQUEST, "a change is an object with a run and a rule");
    };
    let state = state.borrow().state.clone();
    // It waits for the supervisor, and this thread for nobody.
    match tokio::task::spawn_blocking(move || ask(&state, &allow)).await {
        Ok(Ok(done)) => json(StatusCode::OK, &done),
        Ok(Err(Failed::Absent(text))) => error(StatusCode::NOT_FOUND, &text),
        Ok(Err(Failed::Refused(text))) => error(StatusCode::CONFLICT, &text),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the change has failed; see the terminal"),
    }
}

/// A header that is there once; several of one kind are none.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?.to_str().ok()?;
    all.next().is_none().then_some(first)
}

/// All of a request's body; `None` when it is too long, or breaks off.
async fn body(mut body: Incoming) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        match std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            None => return Some(whole),
            Some(Err(_)) => return None,
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                if whole.len() + data.len() > MAX_BODY {
                    return None;
                }
                whole.extend_from_slice(&data);
            }
        }
    }
}

fn refuse(refused: Refused) -> Response<Once> {
    let status = match refused {
        Refused::Host | Refused::Site | Refused::Token | Refused::Used | Refused::Open | Refused::Session => {
            StatusCode::FORBIDDEN
        }
        Refused::Form => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Refused::Absent => StatusCode::NOT_FOUND,
        Refused::Method => StatusCode::METHOD_NOT_ALLOWED,
    };
    html(status, |nonce| page::refusal(nonce, refused))
}

fn html(status: StatusCode, text: impl FnOnce(&str) -> String) -> Response<Once> {
    // A page without a nonce runs nothing.
    let nonce = Secret::new();
    let nonce = nonce.as_ref().map_or("", Secret::reveal);
    let mut response = respond(status, "text/html; charset=utf-8", text(nonce));
    if let Ok(policy) = HeaderValue::from_str(&page::policy(nonce)) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

fn error(status: StatusCode, text: &str) -> Response<Once> {
    json(status, &json!({ "error": text }))
}

fn json(status: StatusCode, value: &Value) -> Response<Once> {
    respond(status, "application/json", value.to_string())
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Once> {
    let mut response = Response::new(Once(Some(text.into())));
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A body that is sent at once.
#[derive(Debug)]
struct Once(Option<Bytes>);

impl Body for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let len = self.0.as_ref().map_or(0, Bytes::len);
        SizeHint::with_exact(u64::try_from(len).unwrap_or(u64::MAX))
    }
}

/// A connection, as hyper reads and writes it.
#[derive(Debug)]
struct Io(TcpStream);

impl hyper::rt::Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut block = [0; 4096];
        let len = into.remaining().min(block.len());
        let mut read = ReadBuf::new(block.get_mut(..len).unwrap_or_default());
        ready!(Pin::new(&mut self.0).poll_read(context, &mut read))?;
        into.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// The clock that hyper's own time-outs go by.
#[derive(Debug, Clone, Copy)]
struct Clock;

/// One of them.
struct Alarm(Pin<Box<tokio::time::Sleep>>);

impl hyper::rt::Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Alarm(Box::pin(tokio::time::sleep(duration))))
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Alarm(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl hyper::rt::Sleep for Alarm {}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::thread;

    use super::*;

    /// A page that is served for as long as the tests go on, and its link.
    struct Served {
        at: SocketAddr,
        path: String,
        key: String,
        cookie: String,
        _state: tempfile::TempDir,
    }

    impl Served {
        fn start() -> Served {
            let state = tempfile::tempdir().unwrap();
            let ui = Ui::bind(Config { state: state.path().to_owned(), port: None }).unwrap();
            let (link, door) = (ui.link(), &ui.state.door);
            let cookie = door.set_cookie().split(';').next().unwrap().to_owned();
            let key = door.key().reveal().to_owned();
            thread::spawn(move || ui.serve().map(|never| match never {}));
            let (host, path) = link.strip_prefix("http://").unwrap().split_once('/').unwrap();
            Served { at: host.parse().unwrap(), path: format!("/{path}"), key, cookie, _state: state }
        }

        fn change(&self, body: &str) -> String {
            let (at, key, cookie, len) = (self.at, &self.key, &self.cookie, body.len());
            let fields = format!(
                "Origin: http://{at}\r\nCookie: {cookie}\r\nX-Cofferdam-Key: {key}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n"
            );
            say(at, &format!("POST /api/allow HTTP/1.1\r\nHost: {at}\r\n{fields}\r\n{body}"))
        }
    }

    /// Says something, and hears all of the answer.
    fn say(at: SocketAddr, text: &str) -> String {
        let mut stream = std::net::TcpStream::connect(at).unwrap();
        // A server that has heard enough may have closed already.
        let _ = stream.write_all(text.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn status(answer: &str) -> &str {
        answer.get(9..12).unwrap_or_default()
    }

    #[test]
    fn the_page_is_at_an_address_of_its_own_which_nobody_else_can_have_meanwhile() {
        let (one, other) = (Served::start(), Served::start());
        for served in [&one, &other] {
            let SocketAddr::V4(at) = served.at else { panic!("{}", served.at) };
            assert!(at.ip().is_loopback() && at.ip().octets()[1] >= 16, "{at}");
            // As a port is published that is for everybody.
            for everywhere in ["0.0.0.0", "::"] {
                let everywhere = SocketAddr::new(everywhere.parse().unwrap(), at.port());
                let refused = TcpListener::bind(everywhere).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "{everywhere}");
            }
        }
        assert_ne!(one.at.ip(), other.at.ip(), "once in sixteen million times");
    }

    #[test]
    fn the_page_comes_once_with_its_cookie_and_may_do_nothing_else() {
        let served = Served::start();
        let (at, path) = (served.at, &served.path);
        let answer = say(at, &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n"));
        assert_eq!(status(&answer), "200", "{answer}");
        let (head, page) = answer.split_once("\r\n\r\n").unwrap();
        let head = head.to_ascii_lowercase();
        for field in [
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "x-frame-options: deny",
            "cross-origin-opener-policy: same-origin",
            "cross-origin-resource-policy: same-origin",
            "content-security-policy: default-src 'none'; script-src 'nonce-",
            "; httponly; samesite=strict; path=/",
        ] {
            assert!(head.contains(field), "{field}: {head}");
        }
        assert!(page.contains(&served.key) && !page.contains("http://www.w3.org/1999"), "{page}");
        assert!(!page.contains("NONCE") && !page.contains("/*SCRIPT*/") && !page.contains("<!--KEY-->"));
        let answer = say(at, &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n"));
        assert_eq!(status(&answer), "403");
        assert!(answer.contains("This link was used") && !answer.contains(&served.key));
        let again = say(at, &format!("GET / HTTP/1.1\r\nHost: {at}\r\nCookie: {}\r\n\r\n", served.cookie));
        assert_eq!(status(&again), "200");
        assert!(!again.contains(&served.key), "it is said once");
    }

    #[test]
    fn nobody_is_kept_away_by_those_who_connect_and_say_nothing() {
        let served = Served::start();
        let (at, began) = (served.at, Instant::now());
        let silent: Vec<_> = (0..2 * MAX_STRANGERS).map(|_| std::net::TcpStream::connect(at).unwrap()).collect();
        let (key, cookie) = (&served.key, &served.cookie);
        let fields = format!("Host: {at}\r\nCookie: {cookie}\r\nX-Cofferdam-Key: {key}\r\n");
        assert_eq!(status(&say(at, &format!("GET /api/overview HTTP/1.1\r\n{fields}\r\n"))), "200");
        // Its turn did not come by anybody's time running out: those who came last are there still, and others made room.
        assert!(began.elapsed() < HASTE);
        let ended = |mut stream: &std::net::TcpStream| {
            stream.set_nonblocking(true).unwrap();
            stream.read(&mut [0; 16]).map_err(|error| error.kind())
        };
        assert_eq!(ended(silent.last().unwrap()), Err(io::ErrorKind::WouldBlock));
        assert_eq!(ended(&silent[0]), Ok(0));
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let served = Served::start();
        let at = served.at;
        let fields = "X-Field: x\r\n".repeat(MAX_FIELDS + 1);
        assert_eq!(status(&say(at, &format!("GET / HTTP/1.1\r\nHost: {at}\r\n{fields}\r\n"))), "431");
        let long = "x".repeat(MAX_HEAD);
        for head in [
            format!("GET / HTTP/1.1\r\nHost: {at}\r\nX-Long: {long}"),
            format!("GET /{long}{long} HTTP/1.1\r\nHost: {at}"),
        ] {
            let answer = say(at, &format!("{head}\r\n\r\n"));
            // What was not read when the connection is closed resets it, and that may be faster than the answer.
            assert!(matches!(status(&answer), "431" | ""), "{answer}");
        }
        assert_eq!(status(&served.change(&" ".repeat(MAX_BODY + 1))), "413");
        assert_eq!(status(&served.change(&" ".repeat(MAX_BODY))), "400");
    }

    #[test]
    fn what_is_no_change_and_no_request_is_refused() {
        let served = Served::start();
        for body in ["", "{}", "[]", r#"{"run":"x"}"#, r#"{"run":"x","rule":"y","more":1}"#, &"[".repeat(4000)] {
            assert_eq!(status(&served.change(body)), "400", "{body}");
        }
        assert_eq!(status(&served.change(r#"{"run":"../x","rule":"allow@a.example"}"#)), "404");
        for (request, expected) in [
            ("PUT / HTTP/1.1\r\nHost: HOST\r\n\r\n", "405"),
            ("GET /etc/passwd HTTP/1.1\r\nHost: HOST\r\n\r\n", "404"),
            ("GET /api/overview HTTP/1.1\r\nHost: HOST\r\n\r\n", "403"),
            ("GET / HTTP/1.0\r\n\r\n", "403"),
            ("GET / HTTP/1.1\r\nHost: HOST\r\nHost: HOST\r\n\r\n", "403"),
            ("GET http://HOST/ HTTP/1.1\r\nHost: rebound.example\r\n\r\n", "403"),
            ("nonsense\r\n\r\n", "400"),
        ] {
            let answer = say(served.at, &request.replace("HOST", &served.at.to_string()));
            assert_eq!(status(&answer), expected, "{request}");
        }
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = everywhere.local_addr().unwrap().port();
        let state = tempfile::tempdir().unwrap();
        let refused = Ui::bind(Config { state: state.path().to_owned(), port: Some(port) }).unwrap_err();
        assert!(refused.to_string().contains(&port.to_string()), "{refused}");
    }
}
