//! Where the event stream is written to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cofferdam_model::Event;

/// Writes events as JSON lines, one write per line, so that a reader that follows along sees whole lines.
///
/// The first error ends the writing and is kept: a full disk must not end the program that is being watched.
pub struct EventLog {
    out: Option<Box<dyn Write>>,
    error: Option<io::Error>,
    line: Vec<u8>,
}

impl std::fmt::Debug for EventLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLog").field("open", &self.out.is_some()).field("error", &self.error).finish()
    }
}

impl EventLog {
    /// A log that keeps nothing.
    #[must_use]
    pub fn none() -> EventLog {
        EventLog { out: None, error: None, line: Vec::new() }
    }

    /// A log that goes to `out`.
    #[must_use]
    pub fn to(out: Box<dyn Write>) -> EventLog {
        EventLog { out: Some(out), ..EventLog::none() }
    }

    /// Writes one event.
    pub fn write(&mut self, event: &Event) {
        if self.out.is_none() {
            return;
        }
        match serde_json::to_vec(event) {
            Ok(line) => self.write_line(&line),
            Err(error) => self.error = Some(error.into()),
        }
    }

    /// Writes one event that is a line of JSON already, without its line feed.
    pub fn write_line(&mut self, line: &[u8]) {
        let Some(out) = &mut self.out else { return };
        self.line.clear();
        self.line.extend_from_slice(line);
        self.line.push(b'\n');
        if let Err(error) = out.write_all(&self.line).and_then(|()| out.flush()) {
            self.error = Some(error);
            self.out = None;
        }
    }

    /// What went wrong, once.
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }
}

/// Creates a file for what a run leaves behind, before the run starts, readable by its owner alone.
///
/// A program that was given the directory may have put a symbolic link there in an earlier run, to have us write over
/// what it cannot reach itself; so the last part of the path is not followed. `/dev` and `/proc` are the machine's own:
/// `/dev/stderr` is a link, and what it leads to may hold something already.
///
/// # Errors
/// When the file cannot be made, or is a symbolic link.
pub fn create_report(path: &Path) -> io::Result<File> {
    let follow = path.starts_with("/dev") || path.starts_with("/proc");
    let flags = if follow { 0 } else { O_NOFOLLOW };
    OpenOptions::new().write(true).create(true).truncate(!follow).mode(0o600).custom_flags(flags).open(path)
}

/// As rustix names it for the machine we are built for; its number differs between architectures.
const O_NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_report_is_private_and_never_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        create_report(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(create_report(&link).is_err());
        assert!(create_report(Path::new("/dev/null")).is_ok());
    }

    #[test]
    fn a_log_that_cannot_be_written_says_so_once() {
        let mut log = EventLog::to(Box::new(File::options().write(true).open("/dev/full").unwrap()));
        log.write_line(b"{}");
        log.write_line(b"{}");
        assert_eq!(log.take_error().unwrap().raw_os_error(), Some(28));
        assert!(log.take_error().is_none());
    }
}
