//! Several streams of a process at once, without a task for each.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::process::{ChildStdin, ChildStdout};

/// Bytes that are read at once: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// The longest report of a run: a thousand denied targets take half a megabyte.
const LONGEST_REPORT: usize = 8 << 20;

/// Why a stream was not read to its end.
#[derive(Debug)]
pub(crate) enum StreamError {
    TooLarge,
    Io(io::Error),
}

/// Bytes that are written to a process, for as long as it reads.
#[derive(Debug)]
pub(crate) struct Feed {
    stream: Option<ChildStdin>,
    bytes: Vec<u8>,
    written: usize,
}

impl Feed {
    pub(crate) fn new(stream: Option<ChildStdin>, bytes: Vec<u8>) -> Feed {
        Feed { stream, bytes, written: 0 }
    }

    /// Writes everything.
    pub(crate) async fn finish(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(stream) = &mut self.stream {
            let rest = self.bytes.get(self.written..).unwrap_or_default();
            if rest.is_empty() {
                self.stream = None;
                break;
            }
            match ready!(Pin::new(stream).poll_write(cx, rest)) {
                Ok(written) if written > 0 => self.written += written,
                // A process that does not read all of its input has not failed by that.
                Ok(_) | Err(_) => self.stream = None,
            }
        }
        Poll::Ready(())
    }
}

/// What is read from a process, up to a bound.
#[derive(Debug)]
pub(crate) struct Keep<R> {
    stream: Option<R>,
    bytes: Vec<u8>,
    limit: usize,
}

impl<R: AsyncRead + Unpin> Keep<R> {
    /// `None` has ended.
    pub(crate) fn new(stream: Option<R>, limit: usize) -> Keep<R> {
        Keep { stream, bytes: Vec::new(), limit }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn poll(&mut self, cx: &mut Context<'_>, chunk: &mut [u8]) -> Poll<Result<(), StreamError>> {
        while let Some(stream) = &mut self.stream {
            let mut read = ReadBuf::new(chunk);
            ready!(Pin::new(stream).poll_read(cx, &mut read)).map_err(StreamError::Io)?;
            let read = read.filled();
            if read.is_empty() {
                self.stream = None;
                break;
            }
            if read.len() > self.limit.saturating_sub(self.bytes.len()) {
                return Poll::Ready(Err(StreamError::TooLarge));
            }
            self.bytes.extend_from_slice(read);
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads both streams and the report to their ends, while the process is fed. Dropping it loses what was read.
pub(crate) async fn exchange<A, B>(
    mut feed: Feed,
    out: &mut Keep<A>,
    err: &mut Keep<B>,
    mut report: Option<&mut Report>,
) -> Result<(), StreamError>
where
    A: AsyncRead + Unpin,
    B: AsyncRead + Unpin,
{
    let mut chunk = vec![0; CHUNK];
    poll_fn(|cx| {
        // Its end is not waited for: when the outputs have ended, nobody reads any more.
        let _fed = feed.poll(cx);
        let all = [
            out.poll(cx, &mut chunk)?,
            err.poll(cx, &mut chunk)?,
            report.as_mut().map_or(Poll::Ready(Ok(())), |report| report.0.poll(cx, &mut chunk))?,
        ];
        if all.iter().all(Poll::is_ready) { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// The report of a run. What was read of it stays, whatever happens to who waits for more.
#[derive(Debug)]
pub(crate) struct Report(Keep<ChildStdout>);

impl Report {
    pub(crate) fn new(stream: ChildStdout) -> Report {
        Report(Keep::new(Some(stream), LONGEST_REPORT))
    }

    /// Waits for the first line, or the end.
    pub(crate) async fn first_line(&mut self) -> io::Result<()> {
        let Keep { stream, bytes, limit } = &mut self.0;
        while let Some(reader) = stream {
            if bytes.contains(&b'\n') || bytes.len() > *limit {
                break;
            }
            if reader.read_buf(bytes).await? == 0 {
                *stream = None;
            }
        }
        Ok(())
    }

    /// Waits for the end.
    pub(crate) async fn end(&mut self) -> Result<(), StreamError> {
        let mut chunk = vec![0; CHUNK];
        poll_fn(|cx| self.0.poll(cx, &mut chunk)).await
    }

    /// The lines there are.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.0.bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
    }
}
