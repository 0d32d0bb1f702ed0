//! Messages as bytes: pure, bounded by the message, and without a way to fail but one.

pub(crate) mod bytes;
pub(crate) mod header;
pub(crate) mod request;

pub use header::{HEADER, Header};
pub use request::{Malformed, Request};
