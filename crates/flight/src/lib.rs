//! What the first bytes of a flow show: the name a TLS or QUIC client wants to reach, and that of every HTTP/1 request.
//!
//! A rule that allows a name allows what is asked for under that name. [`GuestStream`] reads what a guest sends on a TCP
//! connection, [`QuicReader`] its datagrams; both say how much may not go on before somebody has agreed to what was
//! [`Shown`]. Nothing here knows rules or time. Every reader is bounded by [`LIMIT`], and doubt is an answer of its own.

mod shown;
mod stream;

mod chunked;
mod classify;
mod http;
mod quic;
mod reader;
mod tls;

pub use quic::{Datagram, QuicReader};
pub use shown::{Doubt, Protocol, Shown};
pub use stream::{GuestStream, Look};

/// Bytes that are held at most before they have to show something: the largest ClientHello and the largest head of a request.
pub const LIMIT: usize = 16 * 1024;
