//! Several streams of a process at once, without a task for each.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::process::{ChildStdin, ChildStdout};

/// Bytes that are read at once: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// So many of these are in a pipe at most: `fs.pipe-max-size` is 1 MiB, and a reader may have begun in the middle of one.
const FULL_PIPE: usize = 17;

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

impl<R: AsyncRead + AsFd + Unpin> Keep<R> {
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
            self.add(read)?;
        }
        Poll::Ready(Ok(()))
    }

    fn add(&mut self, read: &[u8]) -> Result<(), StreamError> {
        if read.len() > self.limit.saturating_sub(self.bytes.len()) {
            return Err(StreamError::TooLarge);
        }
        self.bytes.extend_from_slice(read);
        Ok(())
    }

    /// Takes what is there, and no more than what whoever has ended can have left.
    fn take_rest(&mut self, chunk: &mut [u8]) -> Result<(), StreamError> {
        let Some(stream) = self.stream.take() else { return Ok(()) };
        for _ in 0..FULL_PIPE {
            // The descriptor does not block, as everything that tokio reads.
            match rustix::io::read(&stream, &mut *chunk) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(len) => self.add(chunk.get(..len).unwrap_or_default())?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(StreamError::Io(errno.into())),
            }
        }
        Ok(())
    }
}

/// Reads both streams and the report to their ends, while the process is fed; at the end of the report, only what is there of the
/// streams by then: whoever wrote them has ended, and another run of the sandbox may hold their other ends for as long as it
/// likes. Dropping it loses what was read.
pub(crate) async fn exchange<A, B>(
    mut feed: Feed,
    out: &mut Keep<A>,
    err: &mut Keep<B>,
    mut report: Option<&mut Report>,
) -> Result<(), StreamError>
where
    A: AsyncRead + AsFd + Unpin,
    B: AsyncRead + AsFd + Unpin,
{
    let mut chunk = vec![0; CHUNK];
    poll_fn(|cx| {
        // Its end is not waited for: when the outputs have ended, nobody reads any more.
        let _fed = feed.poll(cx);
        let read = [out.poll(cx, &mut chunk)?, err.poll(cx, &mut chunk)?];
        let have_ended = read.iter().all(Poll::is_ready);
        match report.as_mut().map(|report| report.0.poll(cx, &mut chunk)) {
            None if have_ended => Poll::Ready(Ok(())),
            None | Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(ended)) => {
                ended?;
                out.take_rest(&mut chunk)?;
                Poll::Ready(err.take_rest(&mut chunk))
            }
        }
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

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Write};
    use std::os::fd::OwnedFd;

    use super::*;

    fn pipe() -> (ChildStdout, PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        (ChildStdout::from_std(OwnedFd::from(reader).into()).unwrap(), writer)
    }

    #[tokio::test]
    async fn streams_that_somebody_else_holds_open_end_with_the_report() {
        let ((out, mut out_in), (err, err_in), (report, report_in)) = (pipe(), pipe(), pipe());
        // As much as a pipe holds, and nobody has read of it.
        let written = vec![b'x'; 60_000];
        out_in.write_all(&written).unwrap();
        drop(report_in);
        let (mut out, mut err) = (Keep::new(Some(out), 1 << 20), Keep::new(Some(err), 10));
        let mut report = Report::new(report);
        exchange(Feed::new(None, Vec::new()), &mut out, &mut err, Some(&mut report)).await.unwrap();
        assert_eq!((out.into_bytes(), err.into_bytes()), (written, Vec::new()));
        drop((out_in, err_in));
    }

    #[tokio::test]
    async fn what_is_left_at_the_end_is_bounded_as_well() {
        let ((out, mut out_in), (report, report_in)) = (pipe(), pipe());
        let (mut out, mut err) = (Keep::new(Some(out), 9), Keep::new(None::<ChildStdout>, 9));
        out_in.write_all(&[0; 10]).unwrap();
        drop(report_in);
        let mut report = Report::new(report);
        let read = exchange(Feed::new(None, Vec::new()), &mut out, &mut err, Some(&mut report)).await;
        assert!(matches!(read, Err(StreamError::TooLarge)), "{read:?}");
    }
}
