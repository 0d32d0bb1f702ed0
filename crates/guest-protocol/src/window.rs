//! The two ends of a stream's window.

use crate::WINDOW;

/// The writer's end: how many bytes the reader has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window(u32);

impl Window {
    #[must_use]
    pub fn new() -> Window {
        Window(WINDOW)
    }

    #[must_use]
    pub fn room(&self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Bytes are on their way; false when there was no room for them.
    #[must_use]
    pub fn spend(&mut self, bytes: usize) -> bool {
        let Some(left) = u32::try_from(bytes).ok().and_then(|bytes| self.0.checked_sub(bytes)) else { return false };
        self.0 = left;
        true
    }

    /// The reader has room for more; false when that is more than a window has.
    #[must_use]
    pub fn credit(&mut self, bytes: u32) -> bool {
        let Some(room) = self.0.checked_add(bytes).filter(|room| *room <= WINDOW) else { return false };
        self.0 = room;
        true
    }
}

impl Default for Window {
    fn default() -> Window {
        Window::new()
    }
}

/// The reader's end: what has been taken since the writer was last told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grant(u32);

impl Grant {
    /// Told in pieces of this size, since each takes a message.
    const WORTH_A_MESSAGE: u32 = WINDOW / 4;

    /// Bytes have been taken; what to tell the writer, if it is time to.
    #[must_use]
    pub fn take(&mut self, bytes: usize) -> Option<u32> {
        self.0 = self.0.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        (self.0 >= Grant::WORTH_A_MESSAGE).then(|| std::mem::take(&mut self.0))
    }
}
