//! Where the event stream is written to.
//!
//! A reader that stands still must not hold up whoever watches over the program: its time, its signals and its end. So
//! lines go into a bounded queue, and a thread of the log's own takes them out and writes them; nobody but that thread
//! ever waits for the reader.
//!
//! | State   | Event                | Next    | Effect                                                   |
//! |---------|----------------------|---------|----------------------------------------------------------|
//! | idle    | first line           | writing | the thread starts                                        |
//! | writing | line, queue full     | writing | the line is counted as lost                              |
//! | writing | write fails          | failed  | the error is kept, the queue and what follows are dropped |
//! | writing | [`EventLog::finish`] | idle    | what is queued is written while the reader reads         |
//!
//! Limits: 8192 lines and 8 MiB wait for the reader; at the end it has five seconds for each line.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cofferdam_model::Event;

/// Lines that wait for a slow reader: eight seconds of the most that the gateway reports of denials (`docs/events.md`).
pub(crate) const MAX_LINES: usize = 8192;
/// Bytes of the lines that wait: a kilobyte for each, where most have a third of that.
pub(crate) const MAX_BYTES: usize = MAX_LINES * 1024;

/// How long the end of a run waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes events as JSON lines, one write per line, so that a reader that follows along sees whole lines.
///
/// The first error ends the writing and is kept: a full disk must not end the program that is being watched. The first line
/// starts a thread, and [`finish`](EventLog::finish) ends it.
pub struct EventLog {
    /// Where to, while no thread has it.
    out: Option<Box<dyn Write + Send>>,
    writer: Option<Writer>,
    error: Option<io::Error>,
    /// Lines that were lost and of which [`take_lost`](EventLog::take_lost) has not told yet.
    lost: u64,
    patience: Duration,
}

/// The thread that writes, and what it is given.
struct Writer {
    queue: Arc<Queue>,
    thread: JoinHandle<Option<Box<dyn Write + Send>>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    /// Of `lines` and of the line that is being written.
    bytes: usize,
    /// A line was taken and is not written yet.
    writing: bool,
    /// Lines written so far.
    written: u64,
    /// No more lines will come.
    closed: bool,
    /// Nothing is written any more: everything was, or writing failed.
    ended: bool,
    error: Option<io::Error>,
}

impl std::fmt::Debug for EventLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.out.is_some() || self.writer.is_some();
        f.debug_struct("EventLog").field("open", &open).field("error", &self.error).field("lost", &self.lost).finish()
    }
}

impl EventLog {
    /// A log that keeps nothing.
    #[must_use]
    pub fn none() -> EventLog {
        EventLog { out: None, writer: None, error: None, lost: 0, patience: PATIENCE }
    }

    /// A log that goes to `out`.
    #[must_use]
    pub fn to(out: Box<dyn Write + Send>) -> EventLog {
        let mut log = EventLog::none();
        log.out = Some(out);
        log
    }

    /// Writes one of the few events of a run that have to be told: it waits even in a full queue.
    pub fn write(&mut self, event: &Event) {
        match serde_json::to_vec(event) {
            Ok(line) => self.put(&line, Full::Wait),
            Err(error) => self.error = Some(error.into()),
        }
    }

    /// Writes one event that is a line of JSON already, without its line feed; when too many wait, counts it as lost.
    pub fn write_line(&mut self, line: &[u8]) {
        self.put(line, Full::Lose);
    }

    /// Whether the reader has caught up: at most half of what may wait does.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.writer.as_ref().is_none_or(|writer| {
            let waiting = writer.queue.lock();
            waiting.lines.len() <= MAX_LINES / 2 && waiting.bytes <= MAX_BYTES / 2
        })
    }

    /// Lines that were lost since the last time this was asked.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Waits until everything is written, for as long as the reader reads. What it does not take is lost.
    pub fn finish(&mut self) {
        let Some(Writer { queue, thread }) = self.writer.take() else { return };
        let mut waiting = queue.lock();
        waiting.closed = true;
        queue.changed.notify_all();
        while !waiting.ended {
            let written = waiting.written;
            let (next, timeout) =
                queue.changed.wait_timeout(waiting, self.patience).unwrap_or_else(PoisonError::into_inner);
            waiting = next;
            if timeout.timed_out() && waiting.written == written && !waiting.ended {
                let left = waiting.lines.len() + usize::from(waiting.writing);
                self.lost = self.lost.saturating_add(u64::try_from(left).unwrap_or(u64::MAX));
                // The thread ends with the write that holds it, or with the process.
                waiting.lines.clear();
                return;
            }
        }
        self.error = waiting.error.take().or(self.error.take());
        drop(waiting);
        self.out = thread.join().ok().flatten();
    }

    /// What went wrong, once; complete after [`finish`](EventLog::finish).
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    fn put(&mut self, line: &[u8], full: Full) {
        if let Some(out) = self.out.take() {
            match Writer::start(out) {
                Ok(writer) => self.writer = Some(writer),
                Err(error) => self.error = Some(error),
            }
        }
        let Some(writer) = &self.writer else { return };
        let mut waiting = writer.queue.lock();
        if waiting.ended {
            return;
        }
        let bytes = waiting.bytes.saturating_add(line.len() + 1);
        if full == Full::Lose && (waiting.lines.len() >= MAX_LINES || bytes > MAX_BYTES) {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        waiting.bytes = bytes;
        waiting.lines.push_back([line, b"\n"].concat());
        writer.queue.changed.notify_all();
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What becomes of a line when too many wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    Lose,
    Wait,
}

impl Writer {
    fn start(out: Box<dyn Write + Send>) -> io::Result<Writer> {
        let queue = Arc::new(Queue::default());
        let taken = Arc::clone(&queue);
        let thread = thread::Builder::new().name("events".to_owned()).spawn(move || taken.write_to(out))?;
        Ok(Writer { queue, thread })
    }
}

impl Queue {
    /// No thread leaves the state half changed, so a panic of another one does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what comes until no more will, and gives `out` back when all of it went well.
    fn write_to(&self, mut out: Box<dyn Write + Send>) -> Option<Box<dyn Write + Send>> {
        let mut waiting = self.lock();
        loop {
            let Some(line) = waiting.lines.pop_front() else {
                if waiting.closed {
                    waiting.ended = true;
                    self.changed.notify_all();
                    return Some(out);
                }
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            waiting.writing = true;
            drop(waiting);
            let result = out.write_all(&line).and_then(|()| out.flush());
            waiting = self.lock();
            waiting.writing = false;
            waiting.written = waiting.written.wrapping_add(1);
            waiting.bytes = waiting.bytes.saturating_sub(line.len());
            if let Err(error) = result {
                waiting.error = Some(error);
                waiting.ended = true;
                waiting.lines.clear();
                self.changed.notify_all();
                return None;
            }
            if waiting.closed {
                self.changed.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_log_that_cannot_be_written_says_so_once() {
        let mut log = EventLog::to(Box::new(File::options().write(true).open("/dev/full").unwrap()));
        log.write_line(b"{}");
        log.write_line(b"{}");
        log.finish();
        assert_eq!(log.take_error().unwrap().raw_os_error(), Some(28));
        assert!(log.take_error().is_none());
        assert_eq!(log.take_lost(), 0);
    }

    #[test]
    fn everything_is_written_in_order_and_the_log_can_be_used_again() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = EventLog::to(Box::new(writer));
        let reading = thread::spawn(move || {
            let mut text = String::new();
            io::Read::read_to_string(&mut reader, &mut text).unwrap();
            text
        });
        let mut expected = String::new();
        for number in 0..1000 {
            log.write_line(number.to_string().as_bytes());
            expected += &format!("{number}\n");
            if number == 500 {
                log.finish();
            }
        }
        drop(log);
        assert_eq!(reading.join().unwrap(), expected);
    }

    #[test]
    fn a_reader_that_stands_still_holds_nobody_up_and_is_told_what_it_missed() {
        let (reader, writer) = io::pipe().unwrap();
        let mut log = EventLog::to(Box::new(writer));
        // More than the pipe (64 KiB) and the queue hold together.
        let line = vec![b'x'; 999];
        let total: u64 = 20_000;
        for _ in 0..total {
            log.write_line(&line);
        }
        assert!(!log.has_room());
        let lost = log.take_lost();
        let kept = total - lost;
        assert!(lost > 0 && kept >= u64::try_from(MAX_LINES).unwrap(), "{lost}");
        assert_eq!(log.take_lost(), 0);
        // What has to be told waits behind the others, whatever the queue holds.
        log.put(b"told", Full::Wait);
        let reading =
            thread::spawn(move || io::BufRead::lines(io::BufReader::new(reader)).map(Result::unwrap).collect());
        drop(log);
        let lines: Vec<String> = reading.join().unwrap();
        assert_eq!(u64::try_from(lines.len()).unwrap(), kept + 1);
        assert_eq!(lines.last().unwrap(), "told");
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_that_stands_still() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut log = EventLog::to(Box::new(writer));
        log.patience = Duration::from_millis(50);
        let line = vec![b'x'; 9_999];
        for _ in 0..100 {
            log.write_line(&line);
        }
        assert_eq!(log.take_lost(), 0);
        log.finish();
        // A pipe holds 64 KiB, less for a user with many pipes: six lines at most, and a part of the next.
        let lost = log.take_lost();
        assert!((94..=100).contains(&lost), "{lost}");
    }
}
