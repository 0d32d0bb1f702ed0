//! One reader of the event stream, with a bounded queue and a thread of its own.
//!
//! A reader that stands still must not hold up whoever watches over the program: its time, its signals and its end. So
//! lines go into a bounded queue, and a thread of the sink's own takes them out and writes them; nobody but that thread
//! ever waits for the reader.
//!
//! | State   | Event             | Next    | Effect                                                    |
//! |---------|-------------------|---------|-----------------------------------------------------------|
//! | idle    | first line        | writing | the thread starts                                         |
//! | writing | line, queue full  | writing | the line is counted as lost                               |
//! | writing | write fails       | failed  | the error is kept, the queue and what follows are dropped |
//! | writing | [`Sink::finish`]  | idle    | what is queued is written while the reader reads          |
//!
//! A line that comes alone is written at once. Those that come while one is written, and for [`Pace::gather`] after, are written
//! together, [`Pace::piece`] bytes of whole lines at a time: waking the thread for each of ten thousand lines a second would cost
//! more than all the rest.
//!
//! Limits: 8192 lines and 8 MiB wait for the reader; at the end it has [`Pace::patience`] for each piece.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Lines that wait for a slow reader: eight seconds of the most that the gateway reports of denials (`docs/events.md`).
pub(crate) const MAX_LINES: usize = 8192;
/// Bytes of the lines that wait: a kilobyte for each, where most have a third of that.
const MAX_BYTES: usize = MAX_LINES * 1024;

/// How a sink writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// What is written with one call, but for a line that is longer.
    pub(crate) piece: usize,
    /// How long lines are gathered behind others.
    pub(crate) gather: Duration,
    /// How long the end of a run waits for a reader that takes no piece.
    pub(crate) patience: Duration,
}

/// For files, pipes and sockets: some fifty lines, so that a reader of a few kilobytes a second still shows that it reads; gathered for
/// a time that who follows along does not see.
const STREAM: Pace = Pace { piece: 16 * 1024, gather: Duration::from_millis(10), patience: Duration::from_secs(5) };

/// Writes lines, whole ones with every call, so that a reader that follows along sees whole lines.
///
/// The first error ends the writing and is kept: a full disk must not end the program that is being watched. The first line
/// starts a thread, and [`finish`](Sink::finish) ends it.
pub(super) struct Sink {
    /// Where to, while no thread has it.
    out: Option<Box<dyn Write + Send>>,
    writer: Option<Writer>,
    error: Option<io::Error>,
    /// Lines that were lost, and how many of them somebody was told of.
    lost: u64,
    told: u64,
    pace: Pace,
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
    /// Whole lines.
    text: Vec<u8>,
    lines: usize,
    /// Lines and bytes that were taken and are not written yet.
    taken_lines: usize,
    taken_bytes: usize,
    /// Pieces written so far.
    written: u64,
    /// The thread waits for a line, not for the time to write several.
    idle: bool,
    /// No more lines will come.
    closed: bool,
    /// Nothing is written any more: everything was, or writing failed.
    ended: bool,
    error: Option<io::Error>,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.out.is_some() || self.writer.is_some();
        f.debug_struct("Sink").field("open", &open).field("error", &self.error).field("lost", &self.lost).finish()
    }
}

impl Sink {
    pub(super) fn to(out: Box<dyn Write + Send>) -> Sink {
        Sink::at_pace(out, STREAM)
    }

    pub(super) fn at_pace(out: Box<dyn Write + Send>, pace: Pace) -> Sink {
        Sink { out: Some(out), writer: None, error: None, lost: 0, told: 0, pace }
    }

    /// Takes one line, without its line feed.
    pub(super) fn put(&mut self, line: &[u8], full: Full) {
        if let Some(out) = self.out.take() {
            match Writer::start(out, self.pace) {
                Ok(writer) => self.writer = Some(writer),
                Err(error) => self.error = Some(error),
            }
        }
        let Some(writer) = &self.writer else { return };
        let mut waiting = writer.queue.lock();
        if waiting.ended {
            return;
        }
        let bytes = waiting.bytes().saturating_add(line.len() + 1);
        if full == Full::Lose && (waiting.lines() >= MAX_LINES || bytes > MAX_BYTES) {
            drop(waiting);
            self.lost = self.lost.saturating_add(1);
            return;
        }
        let before = waiting.text.len();
        waiting.text.extend_from_slice(line);
        waiting.text.push(b'\n');
        waiting.lines += 1;
        if waiting.idle || (before < self.pace.piece && waiting.text.len() >= self.pace.piece) {
            waiting.idle = false;
            writer.queue.changed.notify_all();
        }
    }

    /// Whether the reader has caught up: at most half of what may wait does.
    pub(super) fn has_room(&self) -> bool {
        self.writer.as_ref().is_none_or(|writer| {
            let waiting = writer.queue.lock();
            waiting.lines() <= MAX_LINES / 2 && waiting.bytes() <= MAX_BYTES / 2
        })
    }

    /// Lines that were lost, of which nobody was told.
    pub(super) fn untold(&self) -> u64 {
        self.lost.saturating_sub(self.told)
    }

    /// The same, and somebody is told.
    pub(super) fn take_untold(&mut self) -> u64 {
        let untold = self.untold();
        self.told = self.lost;
        untold
    }

    /// Lines that were lost; complete after [`finish`](Sink::finish).
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Waits until everything is written, for as long as the reader reads. What it does not take is lost.
    pub(super) fn finish(&mut self) {
        let Some(Writer { queue, thread }) = self.writer.take() else { return };
        let mut waiting = queue.lock();
        waiting.closed = true;
        queue.changed.notify_all();
        while !waiting.ended {
            let written = waiting.written;
            let (next, timeout) =
                queue.changed.wait_timeout(waiting, self.pace.patience).unwrap_or_else(PoisonError::into_inner);
            waiting = next;
            if timeout.timed_out() && waiting.written == written && !waiting.ended {
                self.lost = self.lost.saturating_add(u64::try_from(waiting.lines()).unwrap_or(u64::MAX));
                // The thread ends with the write that holds it, or with the process.
                waiting.ended = true;
                waiting.drop_text();
                return;
            }
        }
        self.error = waiting.error.take().or(self.error.take());
        drop(waiting);
        self.out = thread.join().ok().flatten();
    }

    /// What went wrong, once; complete after [`finish`](Sink::finish).
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What becomes of a line when too many wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Lose,
    Wait,
}

impl Writer {
    fn start(out: Box<dyn Write + Send>, pace: Pace) -> io::Result<Writer> {
        let queue = Arc::new(Queue::default());
        let taken = Arc::clone(&queue);
        let thread = thread::Builder::new().name("events".to_owned()).spawn(move || taken.write_to(out, pace))?;
        Ok(Writer { queue, thread })
    }
}

impl Waiting {
    fn lines(&self) -> usize {
        self.lines.saturating_add(self.taken_lines)
    }

    fn bytes(&self) -> usize {
        self.text.len().saturating_add(self.taken_bytes)
    }

    fn drop_text(&mut self) {
        self.text = Vec::new();
        self.lines = 0;
    }
}

impl Queue {
    /// No thread leaves the state half changed, so a panic of another one does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what comes until no more will, and gives `out` back when all of it went well.
    fn write_to(&self, mut out: Box<dyn Write + Send>, pace: Pace) -> Option<Box<dyn Write + Send>> {
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            for piece in (Pieces { rest: &batch, most: pace.piece }) {
                let result = out.write_all(piece).and_then(|()| out.flush());
                if !self.wrote(piece, result) {
                    return None;
                }
            }
            // A burst has made it large.
            if batch.capacity() > MAX_BYTES / 8 {
                batch = Vec::new();
            }
            let waiting = self.lock();
            let is_early = |waiting: &mut Waiting| !waiting.closed && waiting.text.len() < pace.piece;
            drop(self.changed.wait_timeout_while(waiting, pace.gather, is_early));
        }
        Some(out)
    }

    /// Waits for lines, and swaps them for an empty batch. `false`: there are none, and no more will come.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        batch.clear();
        let mut waiting = self.lock();
        while waiting.lines == 0 {
            if waiting.closed {
                waiting.ended = true;
                self.changed.notify_all();
                return false;
            }
            waiting.idle = true;
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.idle = false;
        std::mem::swap(&mut waiting.text, batch);
        waiting.taken_lines = std::mem::take(&mut waiting.lines);
        waiting.taken_bytes = batch.len();
        true
    }

    /// Counts a piece. `false`: nothing is written any more, since it could not be or nobody waits for it.
    fn wrote(&self, piece: &[u8], result: io::Result<()>) -> bool {
        let mut waiting = self.lock();
        let lines = piece.iter().filter(|byte| **byte == b'\n').count();
        waiting.taken_lines = waiting.taken_lines.saturating_sub(lines);
        waiting.taken_bytes = waiting.taken_bytes.saturating_sub(piece.len());
        waiting.written = waiting.written.wrapping_add(1);
        if let Err(error) = result {
            waiting.error = Some(error);
            waiting.ended = true;
            waiting.drop_text();
        }
        if waiting.closed {
            self.changed.notify_all();
        }
        !waiting.ended
    }
}

/// Whole lines, as many as are a piece.
struct Pieces<'a> {
    rest: &'a [u8],
    most: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let Pieces { rest, most } = self;
        if rest.is_empty() {
            return None;
        }
        let fits = rest.get(..*most).unwrap_or(rest);
        let end = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n');
        // A longer line goes alone.
        let end = end(fits).or_else(|| rest.iter().position(|byte| *byte == b'\n'));
        let (piece, rest) = rest.split_at_checked(end.map_or(rest.len(), |end| end + 1)).unwrap_or((rest, &[]));
        self.rest = rest;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_sink_that_cannot_be_written_says_so_once() {
        let mut sink = Sink::to(Box::new(File::options().write(true).open("/dev/full").unwrap()));
        sink.put(b"{}", Full::Lose);
        sink.put(b"{}", Full::Lose);
        sink.finish();
        assert_eq!(sink.take_error().unwrap().raw_os_error(), Some(28));
        assert!(sink.take_error().is_none());
        assert_eq!(sink.take_untold(), 0);
    }

    #[test]
    fn everything_is_written_in_order_and_the_sink_can_be_used_again() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = Sink::to(Box::new(writer));
        let reading = thread::spawn(move || {
            let mut text = String::new();
            io::Read::read_to_string(&mut reader, &mut text).unwrap();
            text
        });
        let mut expected = String::new();
        for number in 0..1000 {
            sink.put(number.to_string().as_bytes(), Full::Lose);
            expected += &format!("{number}\n");
            if number == 500 {
                sink.finish();
            }
        }
        drop(sink);
        assert_eq!(reading.join().unwrap(), expected);
    }

    #[test]
    fn lines_that_wait_together_are_written_together_and_whole() {
        /// What it was given, call by call.
        struct Calls(std::sync::mpsc::Sender<Vec<u8>>);
        impl Write for Calls {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.send(bytes.to_vec()).unwrap();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (sender, calls) = std::sync::mpsc::channel();
        let mut sink = Sink::to(Box::new(Calls(sender)));
        let long = vec![b'l'; STREAM.piece + 1];
        for number in 0..5000 {
            sink.put(format!("{number:0100}").as_bytes(), Full::Lose);
        }
        sink.put(&long, Full::Lose);
        drop(sink);
        let calls: Vec<Vec<u8>> = calls.iter().collect();
        assert!(calls.len() < 100, "{} calls", calls.len());
        assert!(calls.iter().all(|call| call.ends_with(b"\n") && call.len() <= STREAM.piece + 2));
        assert_eq!(calls.iter().map(Vec::len).sum::<usize>(), 5000 * 101 + long.len() + 1);
        assert_eq!(calls.last().unwrap().len(), long.len() + 1);
    }

    #[test]
    fn a_reader_that_stands_still_holds_nobody_up_and_is_told_what_it_missed() {
        let (reader, writer) = io::pipe().unwrap();
        let mut sink = Sink::to(Box::new(writer));
        // More than the pipe (64 KiB) and the queue hold together.
        let line = vec![b'x'; 999];
        let total: u64 = 20_000;
        for _ in 0..total {
            sink.put(&line, Full::Lose);
        }
        assert!(!sink.has_room());
        let lost = sink.take_untold();
        let kept = total - lost;
        assert!(lost > 0 && kept >= u64::try_from(MAX_LINES).unwrap(), "{lost}");
        assert_eq!(sink.take_untold(), 0);
        // What has to be told waits behind the others, whatever the queue holds.
        sink.put(b"told", Full::Wait);
        let reading =
            thread::spawn(move || io::BufRead::lines(io::BufReader::new(reader)).map(Result::unwrap).collect());
        drop(sink);
        let lines: Vec<String> = reading.join().unwrap();
        assert_eq!(u64::try_from(lines.len()).unwrap(), kept + 1);
        assert_eq!(lines.last().unwrap(), "told");
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_that_stands_still() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut sink = Sink::to(Box::new(writer));
        sink.pace.patience = Duration::from_millis(50);
        let line = vec![b'x'; 9_999];
        for _ in 0..100 {
            sink.put(&line, Full::Lose);
        }
        assert_eq!(sink.take_untold(), 0);
        sink.finish();
        // A pipe holds 64 KiB, less for a user with many pipes: six lines at most, and a part of the next.
        let lost = sink.take_untold();
        assert!((94..=100).contains(&lost), "{lost}");
    }
}
