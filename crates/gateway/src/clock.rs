//! The two clocks: monotonic for every deadline, wall for the time stamps that people read.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cofferdam_model::{Time, rfc3339};

/// Monotonic time since the gateway started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    pub(crate) fn now(self) -> Time {
        Time::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The wall clock as events write it. A clock before 1970 is shown as 1970.
pub(crate) fn wall() -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}
