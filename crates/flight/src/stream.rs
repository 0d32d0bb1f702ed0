//! What a guest sends on one TCP connection.
//!
//! | State   | Bytes                                  | Answer             | Next    |
//! |---------|----------------------------------------|--------------------|---------|
//! | First   | not enough to tell                     | more               | First   |
//! | First   | a ClientHello                          | ask about it       | Hello   |
//! | Hello   | a second ClientHello                   | ask about it       | Hello   |
//! | Hello   | change of keys, alert, early data      | pass them          | Hello   |
//! | Hello   | any other record                       | free               | Free    |
//! | First   | a request's head                       | ask about its head | Body    |
//! | First   | something else                         | ask about it, all  | Free    |
//! | Body    | of the request                         | pass them          | Body    |
//! | Body    | its end                                | –                  | Request, or First after CONNECT and Upgrade |
//! | Request | blank lines                            | pass them          | Request |
//! | Request | a request's head                       | ask about its head | Body    |
//! | Free    | anything                               | free               | Free    |
//!
//! After an Upgrade what is neither TLS nor HTTP is free without a question when the server has taken it: the request named
//! the server, and which protocol the two agreed on is theirs. HTTP/1 goes on being read whatever the server answered, so
//! that an Upgrade that was not taken hides no request.

use crate::chunked::Chunked;
use crate::classify::{Class, classify};
use crate::http::{self, After, Body, Head};
use crate::tls::{self, Behind, Looked, Next};
use crate::{Doubt, LIMIT, Protocol, Shown};

/// Reads what a guest sends. The caller keeps the bytes, and consumes what the answers say before it asks again.
#[derive(Debug)]
pub struct GuestStream {
    state: State,
}

/// What to do with the bytes that were not passed on yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Nothing may go on before there is more. Does not occur with [`LIMIT`] bytes or more.
    More,
    /// The first `length` bytes show this: they may go on when somebody agrees to it, and otherwise nothing may.
    Ask { shown: Shown, length: usize },
    /// The first so many bytes, at least one, may go on.
    Pass(usize),
    /// Everything may go on from here, unread, if the server has taken the Upgrade that was last asked for: it has answered
    /// with 101. If it has not answered yet, nothing may go on; if it has answered otherwise, this is in doubt.
    Upgraded,
    /// Everything may go on from here, unread.
    Free,
}

#[derive(Debug)]
enum State {
    First { upgraded: bool },
    Hello(Behind),
    Request,
    Length { left: u64, after: After },
    Chunked { at: Chunked, after: After },
    Free,
}

impl Default for GuestStream {
    fn default() -> GuestStream {
        GuestStream::new()
    }
}

impl GuestStream {
    /// A connection on which nothing was said.
    #[must_use]
    pub fn new() -> GuestStream {
        GuestStream { state: State::First { upgraded: false } }
    }

    /// Looks at everything that was not passed on yet. `ended`: the guest will send no more.
    pub fn look(&mut self, held: &[u8], ended: bool) -> Look {
        loop {
            match self.state {
                State::Free => return Look::Free,
                State::First { upgraded } => return self.look_first(held, ended, upgraded),
                State::Hello(behind) => return self.look_behind(behind, held, ended),
                State::Request => return self.look_request(held, ended),
                State::Length { left: 0, after } | State::Chunked { at: Chunked::Done, after } => {
                    self.state = match after {
                        After::Request => State::Request,
                        After::Connect => State::First { upgraded: false },
                        After::Upgrade => State::First { upgraded: true },
                    };
                }
                State::Length { left, after } => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(held.len());
                    if here == 0 {
                        return Look::More;
                    }
                    self.state = State::Length { left: left - u64::try_from(here).unwrap_or(left), after };
                    return Look::Pass(here);
                }
                State::Chunked { at, after } => {
                    // Line by line and chunk by chunk, as far as it goes.
                    let (mut passed, mut at) = (0, at);
                    while let Some(rest) = held.get(passed..).filter(|_| at != Chunked::Done) {
                        match at.advance(rest) {
                            Ok((0, _)) => break,
                            Ok((length, next)) => {
                                passed += length;
                                at = next;
                            }
                            // What was good goes on first: the next look comes to the same doubt.
                            Err(_) if passed > 0 => break,
                            Err(doubt) => return doubtful(Protocol::Http, doubt, held),
                        }
                    }
                    self.state = State::Chunked { at, after };
                    return if passed == 0 { Look::More } else { Look::Pass(passed) };
                }
            }
        }
    }

    fn look_first(&mut self, held: &[u8], ended: bool, upgraded: bool) -> Look {
        let class = match held {
            // A frame of WebSocket, which might be taken for a hello of SSL 2.0.
            [first, ..] if upgraded && first & 0x80 != 0 => Class::Other,
            _ => classify(held, ended),
        };
        let shown = match class {
            Class::More if held.is_empty() => return Look::More,
            Class::Other if held.is_empty() => {
                self.state = State::Free;
                return Look::Free;
            }
            Class::More => None,
            Class::Http => return self.look_head(held, ended),
            Class::Tls => return self.look_hello(held, ended),
            Class::Other if upgraded => return Look::Upgraded,
            Class::Other => Some(Shown::Other),
        };
        match shown {
            Some(shown) => {
                self.state = State::Free;
                Look::Ask { shown, length: held.len() }
            }
            None if held.len() >= LIMIT => doubtful(Protocol::Http, Doubt::TooLong, held),
            None if ended => doubtful(Protocol::Http, Doubt::Malformed, held),
            None => Look::More,
        }
    }

    fn look_hello(&mut self, held: &[u8], ended: bool) -> Look {
        match tls::look(held) {
            Some(Looked { shown, length, behind }) => {
                self.state = behind.map_or(State::Free, State::Hello);
                Look::Ask { shown, length }
            }
            None if held.len() >= LIMIT => doubtful(Protocol::Tls, Doubt::TooLong, held),
            None if ended => doubtful(Protocol::Tls, Doubt::Malformed, held),
            None => Look::More,
        }
    }

    fn look_behind(&mut self, behind: Behind, held: &[u8], ended: bool) -> Look {
        if behind.left > 0 && !held.is_empty() {
            let here = behind.left.min(held.len());
            self.state = State::Hello(Behind { left: behind.left - here, ..behind });
            return Look::Pass(here);
        }
        match behind.next(held) {
            // The rest of a record, or nothing at all: no second hello will come of it.
            Next::More if ended => Look::Free,
            Next::More => Look::More,
            Next::Pass(behind) => {
                self.state = State::Hello(behind);
                self.look_behind(behind, held, ended)
            }
            Next::Hello => self.look_hello(held, ended),
            Next::Free => {
                self.state = State::Free;
                Look::Free
            }
            Next::Broken => doubtful(Protocol::Tls, Doubt::Malformed, held),
        }
    }

    fn look_request(&mut self, held: &[u8], ended: bool) -> Look {
        match http::blank_lines(held) {
            0 if ended && held.is_empty() => Look::Free,
            0 => self.look_head(held, ended),
            blank => Look::Pass(blank),
        }
    }

    fn look_head(&mut self, held: &[u8], ended: bool) -> Look {
        match http::head(held) {
            Ok(Some(Head { length, names, body, after })) => {
                self.state = match body {
                    Body::Length(left) => State::Length { left, after },
                    Body::Chunked => State::Chunked { at: Chunked::Size, after },
                };
                Look::Ask { shown: Shown::Http { names }, length }
            }
            Ok(None) if ended && !held.is_empty() => doubtful(Protocol::Http, Doubt::Malformed, held),
            Ok(None) if held.len() >= LIMIT => doubtful(Protocol::Http, Doubt::TooLong, held),
            Ok(None) => Look::More,
            Err(doubt) => doubtful(Protocol::Http, doubt, held),
        }
    }

    /// Whether the request that was last asked about wants another protocol after it.
    #[must_use]
    pub fn is_upgrading(&self) -> bool {
        match self.state {
            State::Length { after, .. } | State::Chunked { after, .. } => after == After::Upgrade,
            State::First { upgraded } => upgraded,
            State::Hello(_) | State::Request | State::Free => false,
        }
    }

    /// What is held when nobody waits for more of it.
    #[must_use]
    pub fn unfinished(&self, held: &[u8]) -> Shown {
        let protocol = match (&self.state, classify(held, false)) {
            (State::Hello(_), _) => Protocol::Tls,
            (State::First { .. } | State::Free, Class::Tls) => Protocol::Tls,
            (State::First { .. } | State::Free, Class::More | Class::Other) => return Shown::Unfinished,
            (State::First { .. } | State::Free, Class::Http) => Protocol::Http,
            (State::Request | State::Length { .. } | State::Chunked { .. }, _) => Protocol::Http,
        };
        Shown::Unreadable { protocol, doubt: Doubt::Malformed }
    }
}

fn doubtful(protocol: Protocol, doubt: Doubt, held: &[u8]) -> Look {
    Look::Ask { shown: Shown::Unreadable { protocol, doubt }, length: held.len() }
}
