//! Whether there is room for what programs write over the root.
//!
//! A program that is told `No space left on device` may keep that to itself, and the host would know nothing of it. So it is looked
//! at when a program ends, and once a second while one runs: what was full for less than that is missed.

use std::time::{Duration, Instant};

use cofferdam_guest_protocol::Shortage;
use rustix::time::Timespec;

/// Between two looks.
pub(crate) const PAUSE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What programs write to, where a root is covered.
#[derive(Debug)]
pub(crate) struct Disk {
    next: Instant,
}

impl Disk {
    pub(crate) fn new() -> Disk {
        Disk { next: Instant::now() }
    }

    /// What there is nothing left of, if it is time to look or a program has just ended.
    pub(crate) fn shortage(&mut self, has_ended: bool) -> Option<Shortage> {
        let now = Instant::now();
        if now < self.next && !has_ended {
            return None;
        }
        self.next = now + Duration::try_from(PAUSE).unwrap_or_default();
        // An overlay tells what it has of what is written to.
        let status = rustix::fs::statvfs("/").ok()?;
        let (blocks, files) = (status.f_blocks, status.f_files);
        if blocks > 0 && status.f_bavail == 0 {
            return Some(Shortage::Space { bytes: blocks.saturating_mul(status.f_frsize) });
        }
        (files > 0 && status.f_ffree == 0).then_some(Shortage::Files { count: files })
    }
}
