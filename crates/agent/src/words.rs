//! What went wrong, in words.

use std::fmt::Display;
use std::io;

/// What could not be done, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub(crate) struct Trouble {
    pub(crate) what: String,
    pub(crate) source: io::Error,
}

impl Trouble {
    pub(crate) fn new(what: impl Display, source: impl Into<io::Error>) -> Trouble {
        Trouble { what: what.to_string(), source: source.into() }
    }
}

/// Says what was being done.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Trouble>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Trouble> {
        self.map_err(|source| Trouble::new(what(), source))
    }
}
