//! Runs: one program in a sandbox.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use cofferdam_model::NetworkMode;
use serde::Serialize;
use tokio::process::{ChildStdin, ChildStdout, Command};

use crate::Error;
use crate::error::io_error;
use crate::network::{Network, wire, without_ports};
use crate::report::{Finished, Output};
use crate::running::Running;
use crate::sandbox::Sandbox;
use crate::streams::{Feed, Keep, Report, StreamError, exchange};

/// What [`Run::output`] keeps of each stream unless it is told otherwise.
const USUAL_LIMIT: usize = 16 << 20;

/// What happens when a run asks for more network than its sandbox has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It does not start: [`Error::Wider`].
    Check,
    /// It gets what both allow, and a notice says what it did not get.
    #[default]
    Clip,
}

/// One run before it starts. Made by [`Sandbox::run`].
///
/// It has the sandbox's network unless one is named here; whatever is named, it never has more than its sandbox.
#[derive(Debug)]
#[must_use = "a run does nothing until `output`, `status` or `spawn`"]
pub struct Run {
    sandbox: Sandbox,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    workdir: Option<String>,
    timeout: Option<Duration>,
    network: Network,
    mode: Mode,
    input: Option<Vec<u8>>,
    limit: usize,
    stdio: [Option<Stdio>; 3],
}

/// As `exec --spec` reads it.
#[derive(Serialize)]
struct RunSpec<'a> {
    command: &'a [String],
    env: &'a BTreeMap<String, String>,
    workdir: Option<&'a str>,
    timeout_ms: Option<u64>,
    network: Option<serde_json::Value>,
    mode: Mode,
}

impl Run {
    pub(crate) fn new(sandbox: Sandbox, program: String) -> Run {
        Run {
            sandbox,
            command: vec![program],
            env: BTreeMap::new(),
            workdir: None,
            timeout: None,
            network: Network::default(),
            mode: Mode::default(),
            input: None,
            limit: USUAL_LIMIT,
            stdio: [None, None, None],
        }
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Run {
        self.command.push(argument.into());
        self
    }

    /// More arguments. No shell looks at them.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<String>>) -> Run {
        self.command.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// A variable, over those of the sandbox. It is on nobody's command line.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Run {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Where the program starts, inside; relative to where those of the sandbox do.
    pub fn workdir(mut self, directory: impl Into<String>) -> Run {
        self.workdir = Some(directory.into());
        self
    }

    /// Ends the run after this time, with everything that it has started: [`Error::TimedOut`]. It is asked first, and has two seconds
    /// to clean up. Less than a millisecond is one.
    pub fn timeout(mut self, timeout: Duration) -> Run {
        self.timeout = Some(timeout);
        self
    }

    /// A network of its own, within the sandbox's.
    pub fn network(mut self, fill: impl FnOnce(Network) -> Network) -> Run {
        self.network = fill(self.network);
        self
    }

    /// A network of its own in a word, within the sandbox's.
    pub fn network_mode(self, mode: NetworkMode) -> Run {
        self.network(|network| network.mode(mode))
    }

    /// With mode `Allowlist`; see [`Network::allowlist`].
    pub fn network_allowlist(self, entries: impl IntoIterator<Item = impl Into<String>>) -> Run {
        self.network(|network| network.allowlist(entries))
    }

    /// With modes `Open` and `Allowlist`; see [`Network::denylist`].
    pub fn network_denylist(self, entries: impl IntoIterator<Item = impl Into<String>>) -> Run {
        self.network(|network| network.denylist(entries))
    }

    /// What happens when it asks for more than its sandbox has.
    pub fn mode(mut self, mode: Mode) -> Run {
        self.mode = mode;
        self
    }

    /// What [`Run::output`] and [`Run::status`] write to standard input; nothing without this. A run that is spawned has a pipe
    /// for it. Takes the place of [`Run::stdin`], and the other way round.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Run {
        self.stdio[0] = None;
        self.input = Some(bytes.into());
        self
    }

    /// How many bytes [`Run::output`] keeps of each stream, in place of 16 MiB. A run that writes more is ended:
    /// [`Error::OutputTooLarge`].
    pub fn output_limit(mut self, bytes: usize) -> Run {
        self.limit = bytes;
        self
    }

    /// Standard input from somewhere else; see [`Run::spawn`] for what is usual.
    pub fn stdin(mut self, stdio: impl Into<Stdio>) -> Run {
        self.input = None;
        self.stdio[0] = Some(stdio.into());
        self
    }

    /// Standard output to somewhere else. A terminal acts on what it is sent, and this is a hostile program's.
    pub fn stdout(mut self, stdio: impl Into<Stdio>) -> Run {
        self.stdio[1] = Some(stdio.into());
        self
    }

    /// Standard error to somewhere else, as [`Run::stdout`].
    pub fn stderr(mut self, stdio: impl Into<Stdio>) -> Run {
        self.stdio[2] = Some(stdio.into());
        self
    }

    /// Runs the program to its end, and keeps what it writes. Dropping the future ends the run.
    ///
    /// # Errors
    /// When it cannot be started, its time is up, or it writes more than is kept. A program that fails is none of these: see
    /// [`Output::status`].
    pub async fn output(mut self) -> Result<Output, Error> {
        let (input, limit) = (self.input.take(), self.limit);
        let usual = [if input.is_some() { Stdio::piped } else { Stdio::null }, Stdio::piped, Stdio::piped];
        let mut running = self.start(usual).await?;
        let feed = Feed::new(running.stdin.take(), input.unwrap_or_default());
        let mut out = Keep::new(running.stdout.take(), limit);
        let mut err = Keep::new(running.stderr.take(), limit);
        if let Err(error) = exchange(feed, &mut out, &mut err, Some(&mut running.report)).await {
            running.discard().await?;
            return Err(match error {
                StreamError::TooLarge => Error::OutputTooLarge { limit },
                StreamError::Io(source) => Error::Io { doing: "read what the run writes", source },
            });
        }
        let (out, err) = (out.into_bytes(), err.into_bytes());
        match running.wait().await {
            Ok(finished) => Ok(finished.with_streams(out, err)),
            Err(Error::TimedOut { after, mut output }) => {
                (output.stdout, output.stderr) = (out, err);
                Err(Error::TimedOut { after, output })
            }
            Err(error) => Err(error),
        }
    }

    /// Runs the program to its end. What it writes goes nowhere, unless [`Run::stdout`] and [`Run::stderr`] say where to.
    /// Dropping the future ends the run.
    ///
    /// # Errors
    /// As [`Run::output`].
    pub async fn status(mut self) -> Result<Finished, Error> {
        let input = self.input.take();
        let usual = [if input.is_some() { Stdio::piped } else { Stdio::null }, Stdio::null, Stdio::null];
        let mut running = self.start(usual).await?;
        let feed = Feed::new(running.stdin.take(), input.unwrap_or_default());
        // Pipes that were asked for and that nobody reads end at once.
        drop((running.stdout.take(), running.stderr.take()));
        let mut none = [Keep::new(None::<ChildStdout>, 0), Keep::new(None, 0)];
        let [out, err] = &mut none;
        // An error of its report is told by `wait`.
        let _read = exchange(feed, out, err, Some(&mut running.report)).await;
        running.wait().await
    }

    /// Starts the program, and comes back when it runs. Each stream is a pipe, unless something else was said for it.
    ///
    /// # Errors
    /// When it cannot be started: all that is wrong with the sandbox, the network and the command.
    pub async fn spawn(self) -> Result<Running, Error> {
        if self.input.is_some() {
            return Err(Error::Unsayable {
                what: "the input of a run that is spawned, which has a pipe for it,".to_owned(),
            });
        }
        self.start([Stdio::piped, Stdio::piped, Stdio::piped]).await
    }

    async fn start(mut self, usual: [fn() -> Stdio; 3]) -> Result<Running, Error> {
        let spec = self.spec()?;
        let Run { sandbox, timeout, stdio: [stdin, stdout, stderr], .. } = self;
        let pipe = || io::pipe().map_err(io_error("make a pipe"));
        let ((spec_in, spec_out), (report_in, report_out)) = (pipe()?, pipe()?);
        let (spec_in, report_out) = (OwnedFd::from(spec_in), OwnedFd::from(report_out));
        let mut program = std::process::Command::new(sandbox.program().path());
        program.args(["exec", "--quiet", "--spec"]).arg(format!("/proc/self/fd/{}", spec_in.as_raw_fd()));
        program.args(["--report-fd", &report_out.as_raw_fd().to_string(), "--", sandbox.name()]);
        cofferdam_sys::process::inherit(&mut program, vec![spec_in, report_out]);
        let mut program = Command::from(program);
        let [usual_in, usual_out, usual_err] = usual;
        program.stdin(stdin.unwrap_or_else(usual_in)).stdout(stdout.unwrap_or_else(usual_out));
        program.stderr(stderr.unwrap_or_else(usual_err)).kill_on_drop(true);
        let child = program.spawn().map_err(|error| sandbox.program().not_executed(error))?;
        // Our copies of its ends: only without them does either stream end.
        drop(program);
        let report = ChildStdout::from_std(OwnedFd::from(report_in).into());
        let report = report.map_err(io_error("read the report of a run"))?;
        let spec_out = ChildStdin::from_std(OwnedFd::from(spec_out).into()).map_err(io_error("describe a run"))?;
        Running::begin(child, Feed::new(Some(spec_out), spec), Report::new(report), timeout).await
    }

    /// What is asked for, as `exec --spec` reads it.
    fn spec(&mut self) -> Result<Vec<u8>, Error> {
        let network = std::mem::take(&mut self.network);
        let network = match network.is_empty() {
            true => None,
            false => Some(wire(&without_ports(network.resolve(None)?)?)),
        };
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        let spec = RunSpec {
            command: &self.command,
            env: &self.env,
            workdir: self.workdir.as_deref(),
            timeout_ms: self.timeout.map(milliseconds),
            network,
            mode: self.mode,
        };
        serde_json::to_vec(&spec).map_err(|_| Error::Unsayable { what: "the run".to_owned() })
    }
}
