use std::ffi::OsString;
use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::process::{Child, ChildStdout, Command};

use crate::Error;
use crate::program::Program;

/// What a main command writes, from the oldest that is kept to the end of its sandbox. Dropping it ends the reading and nothing
/// else.
#[derive(Debug)]
pub struct Logs {
    stdout: Option<ChildStdout>,
    /// It ends when this is dropped.
    _reader: Child,
}

impl Logs {
    pub(crate) fn of(program: &Program, words: &[OsString]) -> Result<Logs, Error> {
        let mut command = Command::new(program.path());
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut reader = command.spawn().map_err(|error| program.not_executed(error))?;
        Ok(Logs { stdout: reader.stdout.take(), _reader: reader })
    }
}

impl AsyncRead for Logs {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stdout {
            Some(stdout) => Pin::new(stdout).poll_read(cx, buffer),
            None => Poll::Ready(Ok(())),
        }
    }
}
