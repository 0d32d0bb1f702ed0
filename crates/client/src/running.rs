//! A run that goes on.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rustix::process::Pid;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};

use crate::Error;
use crate::error::io_error;
use crate::report::{End, Finished, Line, Status};
use crate::streams::{Feed, Report, StreamError};

/// The exit status of `cofferdam` for what could not be set up (`docs/guide.md`).
const EXIT_SETUP: u8 = 125;

/// A signal that reaches the program of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Hangup,
    /// A second one within five seconds ends the run at once, as at a terminal.
    Interrupt,
    Quit,
    Terminate,
    User1,
    User2,
}

/// A run that goes on.
///
/// Dropping it ends the run, with everything that it has started; [`Running::wait`] lets it end by itself.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pub(crate) report: Report,
    /// A pipe to the program; take or drop it to end the program's input.
    pub stdin: Option<ChildStdin>,
    /// A pipe from the program. A pipe holds 64 KiB: a program that writes more waits until it is read.
    pub stdout: Option<ChildStdout>,
    /// As `stdout`.
    pub stderr: Option<ChildStderr>,
    timeout: Option<Duration>,
}

impl Running {
    /// Says what is to run, and waits until it does.
    pub(crate) async fn begin(
        mut child: Child,
        spec: Feed,
        report: Report,
        timeout: Option<Duration>,
    ) -> Result<Running, Error> {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut running = Running { child, report, stdin, stdout, stderr, timeout };
        spec.finish().await;
        running.report.first_line().await.map_err(io_error("read the report of a run"))?;
        let first = running.report.lines().next().map(serde_json::from_slice::<Line>);
        if matches!(first, Some(Ok(Line::Started))) {
            return Ok(running);
        }
        match running.wait().await? {
            // Its supervisor was killed, from outside or with the machine's last memory.
            Finished { status: Status::Lost, .. } => {
                let message = "the run was ended from outside before the program ran".to_owned();
                Err(Error::Setup { message, exit_status: EXIT_SETUP })
            }
            _ => Err(unexpected("it has not said that the program runs")),
        }
    }

    /// Waits for the end of the run. Ends the program's input first, as far as nobody has taken it. May be called again, and
    /// dropping the future loses nothing; it does not read the program's output, which has to be read or dropped.
    ///
    /// # Errors
    /// [`Error::TimedOut`], and what kept the run from going on. A program that fails is no error.
    pub async fn wait(&mut self) -> Result<Finished, Error> {
        drop(self.stdin.take());
        match self.report.end().await {
            Ok(()) => {}
            Err(StreamError::TooLarge) => return Err(unexpected("its report does not end")),
            Err(StreamError::Io(source)) => return Err(Error::Io { doing: "read the report of a run", source }),
        }
        let status = self.child.wait().await.map_err(io_error("wait for a run"))?;
        match self.report.lines().last().map(serde_json::from_slice::<Line>) {
            Some(Ok(Line::Failed(refusal))) => Err(refusal.into()),
            Some(Ok(Line::Ended(line))) => match line.end() {
                End::InTime(finished) => Ok(finished),
                End::TimedOut(finished) => {
                    let output = Box::new(finished.with_streams(Vec::new(), Vec::new()));
                    Err(Error::TimedOut { after: self.timeout.unwrap_or_default(), output })
                }
            },
            // Its supervisor was killed before it could say more, or while it did.
            Some(Ok(Line::Started) | Err(_)) | None if status.signal().is_some() => Ok(Finished::lost()),
            Some(Ok(Line::Started)) | None => Err(unexpected(&format!("it ended with {status} and without a report"))),
            Some(Err(error)) => Err(unexpected(&error.to_string())),
        }
    }

    /// Sends a signal to the program, or to its whole process group where a terminal would do so (`Interrupt`, `Quit`, `Hangup`).
    /// One that has ended misses nothing.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        // It was not waited for while we have its id, so the number is nobody else's.
        let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) else { return Ok(()) };
        let signal = match signal {
            Signal::Hangup => rustix::process::Signal::HUP,
            Signal::Interrupt => rustix::process::Signal::INT,
            Signal::Quit => rustix::process::Signal::QUIT,
            Signal::Terminate => rustix::process::Signal::TERM,
            Signal::User1 => rustix::process::Signal::USR1,
            Signal::User2 => rustix::process::Signal::USR2,
        };
        rustix::process::kill_process(pid, signal).map_err(|errno| io_error("send a signal to a run")(errno.into()))
    }

    /// Ends the run at once, and waits until its supervisor is gone. Its report does not matter any more.
    pub(crate) async fn discard(mut self) -> Result<(), Error> {
        self.kill()?;
        self.child.wait().await.map(drop).map_err(io_error("wait for a run"))
    }

    /// Asks the program to end.
    ///
    /// # Errors
    /// As [`Running::signal`].
    pub fn terminate(&self) -> Result<(), Error> {
        self.signal(Signal::Terminate)
    }

    /// Ends the run at once, with everything that it has started. [`Running::wait`] says `Lost` then.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<(), Error> {
        match self.child.id() {
            Some(_) => self.child.start_kill().map_err(io_error("end a run")),
            None => Ok(()),
        }
    }
}

fn unexpected(message: &str) -> Error {
    Error::Protocol { verb: "exec".to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use tokio::process::Command;

    use super::*;

    const STARTED: &str = r#"echo '{"report": "started", "v": 1}'"#;

    /// A supervisor that is a piece of shell, and reports on its standard output.
    async fn begin(script: &str) -> Result<Running, Error> {
        let mut command = Command::new("sh");
        let mut child = command
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let report = Report::new(child.stdout.take().unwrap());
        Running::begin(child, Feed::new(None, Vec::new()), report, None).await
    }

    #[tokio::test]
    async fn a_supervisor_that_is_killed_before_the_program_runs_has_started_nothing() {
        for script in ["kill -9 $$", r#"printf '{"report": "sta'; kill -9 $$"#] {
            let error = begin(script).await.unwrap_err();
            assert!(matches!(error, Error::Setup { exit_status: EXIT_SETUP, .. }), "{script}: {error:?}");
        }
    }

    #[tokio::test]
    async fn a_run_whose_supervisor_is_killed_is_lost() {
        for last in ["", r#"printf '{"report": "ended", "ended": {"exi';"#] {
            let mut running = begin(&format!("{STARTED}; {last} kill -9 $$")).await.unwrap();
            assert_eq!(running.wait().await.unwrap(), Finished::lost(), "{last}");
        }
    }

    #[tokio::test]
    async fn a_supervisor_that_ends_without_a_word_is_another_program() {
        for script in ["exit 3".to_owned(), format!("{STARTED}; exit 3"), format!("{STARTED}; echo '{{'; exit 3")] {
            let told = match begin(&script).await {
                Ok(mut running) => running.wait().await.unwrap_err(),
                Err(error) => error,
            };
            assert!(matches!(&told, Error::Protocol { verb, .. } if verb == "exec"), "{script}: {told:?}");
        }
    }
}
