//! One run in a sandbox that is there, supervised by the process that asked for it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cofferdam_backend_ns::{Attachment, Handles, Order, OwnProgram, Running, launch_inside};
use cofferdam_gateway::{CommandAnswer, Commands, LinkAddresses};
use cofferdam_model::NetworkConfig;
use cofferdam_sys::process;
use rustix::process::Signal;

use super::keeper::{chain, say};
use super::narrow::{self, Mode, enforced, narrowed};
use super::protocol::{self, FromRun, ToRun};
use super::spec::NamedSpec;
use super::told::Listener;
use crate::sandbox::{Companion, EXIT_SETUP, classifier};
use crate::{EventLog, Finished, RunError, Sandbox, Terminal};

/// The most of a command line that `inspect` shows.
const SHOWN: usize = 200;

/// A running sandbox that was entered: what it takes to run one thing in it.
#[derive(Debug)]
pub struct Session {
    pub(super) spec: NamedSpec,
    pub(super) directory: PathBuf,
    pub(super) handles: Handles,
    pub(super) link: Option<LinkAddresses>,
    /// Open for as long as the run lasts.
    pub(super) keeper: OwnedFd,
    /// What the session's gateway denies.
    pub(super) listener: Option<Listener>,
    /// The way to the monitor of a virtual machine, where it is one.
    pub(super) line: Option<OwnedFd>,
}

/// Everything a caller decides about one run.
#[derive(Debug)]
pub struct ExecOptions {
    pub command: Vec<OsString>,
    /// What runs in place of a program, with the command as its arguments.
    pub own: Option<OwnProgram>,
    /// The program's whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where the program starts; `None` is where the session's do.
    pub workdir: Option<PathBuf>,
    pub terminal: Terminal,
    pub timeout: Option<Duration>,
    /// A network of its own, within the session's; `None` joins the session's.
    pub network: Option<NetworkConfig>,
    pub mode: Mode,
    /// See [`RunOptions`](crate::RunOptions).
    pub allow_changes_default: bool,
    pub fail_on_deny: bool,
    /// Where the packets of the run's own network go, with the name of the file.
    pub capture: Option<(PathBuf, File)>,
}

impl ExecOptions {
    /// A program with nothing but the session's network: no environment.
    #[must_use]
    pub fn new(command: Vec<OsString>) -> ExecOptions {
        ExecOptions {
            command,
            own: None,
            env: Vec::new(),
            workdir: None,
            terminal: Terminal::Inherit,
            timeout: None,
            network: None,
            mode: Mode::default(),
            allow_changes_default: false,
            fail_on_deny: false,
            capture: None,
        }
    }
}

impl Session {
    /// What the sandbox was made from.
    #[must_use]
    pub fn spec(&self) -> &NamedSpec {
        &self.spec
    }

    /// Runs a program to its end. Call it while the process has one thread: it forks. `started` is called once the program
    /// was executed.
    ///
    /// # Errors
    /// As [`Sandbox::run`], and when the run asks for more than the session has.
    pub fn exec(
        self,
        options: ExecOptions,
        log: &mut EventLog,
        tell: &mut dyn FnMut(&str),
        started: &mut dyn FnMut(),
    ) -> Result<Finished, RunError> {
        let Session { spec, directory, handles, link, keeper, listener, line } = self;
        if line.is_some() {
            check_for_guest(&options)?;
        }
        let own = options.own;
        let unusable = |error: super::SpecError| RunError::Spec(chain(&error));
        let shown: Vec<_> = options.command.iter().map(|word| word.to_string_lossy()).collect();
        let shown: String = shown.join(" ").chars().take(SHOWN).collect();
        let mut run = spec.run_options(options.command, options.env).map_err(unusable)?;
        let mut mounts = spec.kept_in(&directory);
        mounts.append(&mut run.mounts);
        run.mounts = mounts;
        run.workdir = options.workdir.or(run.workdir);
        run.terminal = options.terminal;
        run.limits.timeout = options.timeout;
        run.allow_changes_default = options.allow_changes_default;
        run.fail_on_deny = options.fail_on_deny;
        let asked = options.network.clone();
        let shared = std::mem::take(&mut run.network.host_sockets);
        let (sandbox, attachment) = match options.network {
            None => (Sandbox::plan_at(run, &crate::Host::default(), [0; 32], None)?, Attachment::Session),
            Some(network) => {
                let narrowed = narrowed(&run.network, network, options.mode)?;
                for clipped in &narrowed.clipped {
                    tell(&format!("the run gets less than it asked for: {clipped}"));
                }
                run.network = narrowed.network;
                let link = link.filter(|_| run.network.enabled);
                let (run, host, seed) = Sandbox::look_around(run)?;
                if let Some(link) = &link {
                    for wider in narrow::wider(&run.network, options.mode, &classifier(&host, link))? {
                        tell(&format!("the run gets less than it asked for: {wider}"));
                    }
                }
                (Sandbox::plan_at(run, &host, seed, link)?.live(), Attachment::Own)
            }
        };
        if options.capture.is_some() && attachment == Attachment::Session {
            return Err(RunError::CapturesSession);
        }
        let sandbox = sandbox.capturing(options.capture)?.in_session(&shared);
        // A run that has a network of its own hears from a gateway of its own, or has nothing that could be denied.
        let listener = listener.filter(|_| attachment == Attachment::Session);
        let keeper = Some(keeper);
        let mut run = Run { keeper, listener, heard: Vec::new(), command: shown, asked, waiting: None, started };
        let mut finished = sandbox.run_by(
            |spec, _| match line {
                None => launch_inside(spec, handles, attachment, own),
                Some(line) => cofferdam_backend_vm::launch_calling(spec, handles, line),
            },
            log,
            tell,
            &mut run,
        )?;
        if attachment == Attachment::Session && finished.summary.denied_anything() {
            let whose = "what was denied was denied in the session's network, to this run or to others that share it";
            finished.notices.push(whose.to_owned());
        }
        Ok(finished)
    }
}

/// What a run in a virtual machine cannot have.
fn check_for_guest(options: &ExecOptions) -> Result<(), RunError> {
    if options.network.is_some() {
        let text = "a run in a virtual machine has the network of the machine: its programs share one network card, and which of them a \
                    packet came from only the guest could say; leave the options of the network out, narrow the whole machine with \
                    `cofferdam policy set`, or give the program a sandbox of its own";
        return Err(RunError::Spec(text.to_owned()));
    }
    if options.own.is_some() {
        return Err(RunError::Spec("a function of this program cannot run in a virtual machine".to_owned()));
    }
    Ok(())
}

/// The keeper's end of a run.
struct Run<'a> {
    /// `None` when it is gone.
    keeper: Option<OwnedFd>,
    listener: Option<Listener>,
    /// What was heard and not asked for yet.
    heard: Vec<Vec<u8>>,
    command: String,
    /// The network of its own that was asked for.
    asked: Option<NetworkConfig>,
    /// The command to its gateway that carries the session's newest policy.
    waiting: Option<u32>,
    /// Who wants to know that it runs.
    started: &'a mut dyn FnMut(),
}

impl Run<'_> {
    /// The session has another policy: the run's has to be within it, or the run ends.
    fn narrow(&mut self, spec: Option<OwnedFd>, commands: Option<&mut Commands>) -> Vec<Order> {
        // It has the session's own network, or none.
        let Some(asked) = self.asked.as_ref().filter(|asked| asked.enabled) else {
            return self.say(&FromRun::Narrowed);
        };
        // A gateway that cannot be told has the former policy.
        let Some(commands) = commands else { return vec![Order::End] };
        let told = || -> Option<u32> {
            let json = protocol::read_memory_file(spec?).ok()?;
            let session = NamedSpec::parse(&json).ok()?.network().ok()?;
            let narrowed = narrowed(&session, asked.clone(), Mode::Clip).ok()?;
            commands.replace(&enforced(narrowed.network)).ok()
        };
        match told() {
            Some(number) => {
                self.waiting = Some(number);
                Vec::new()
            }
            None => vec![Order::End],
        }
    }

    /// Tells the keeper something. A run that its keeper cannot hear must not outlive what it has to say.
    fn say(&self, what: &FromRun) -> Vec<Order> {
        let said = self.keeper.as_ref().is_none_or(|keeper| protocol::send(keeper, what, &[]).is_ok());
        if said { Vec::new() } else { vec![Order::End] }
    }
}

impl Companion for Run<'_> {
    fn started(&mut self, _running: &Running) -> Result<(), RunError> {
        (self.started)();
        if let Some(keeper) = &self.keeper {
            // One that is gone takes the sandbox along, which is noticed as such.
            let _gone = protocol::send(keeper, &FromRun::Started { command: self.command.clone() }, &[]);
        }
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        let listener = self.listener.iter().map(AsFd::as_fd);
        listener.chain(self.keeper.iter().map(AsFd::as_fd)).collect()
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn handle(&mut self, ready: &[bool], commands: Option<&mut Commands>) -> Vec<Order> {
        // In the order of `sources`.
        let mut ready = ready.iter().copied();
        let mut is_ready = |is_there: bool| is_there && ready.next() == Some(true);
        let (has_heard, is_asked) = (is_ready(self.listener.is_some()), is_ready(self.keeper.is_some()));
        if has_heard {
            let heard = &mut self.heard;
            self.listener.take_if(|listener| !listener.take(heard));
        }
        let Some(keeper) = self.keeper.as_ref().filter(|_| is_asked) else { return Vec::new() };
        match protocol::receive::<ToRun>(keeper) {
            // A stopped program would not see it.
            Ok(Some((ToRun::Terminate, _))) => vec![Order::Signal(Signal::TERM), Order::Signal(Signal::CONT)],
            Ok(Some((ToRun::Policy, mut fds))) => self.narrow(fds.pop(), commands),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Vec::new(),
            Ok(None) | Err(_) => {
                self.keeper = None;
                Vec::new()
            }
        }
    }

    fn heard(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.heard)
    }

    fn ended(&mut self) -> (Vec<Vec<u8>>, u64) {
        let Some(listener) = self.listener.take() else { return (Vec::new(), 0) };
        let said = self.keeper.as_ref().is_some_and(|keeper| protocol::send(keeper, &FromRun::Ended, &[]).is_ok());
        if said {
            return listener.rest();
        }
        let mut lines = Vec::new();
        listener.take(&mut lines);
        (lines, 0)
    }

    fn answered(&mut self, answer: CommandAnswer) -> Vec<Order> {
        if self.waiting != Some(answer.number) {
            return Vec::new();
        }
        self.waiting = None;
        match answer.result {
            Ok(()) => self.say(&FromRun::Narrowed),
            // What its gateway does not take, it does not hold.
            Err(_) => vec![Order::End],
        }
    }

    fn gateway_died(&mut self) {
        // Nothing is reached any more, which is within every policy.
        if self.waiting.take().is_some() {
            let _told = self.say(&FromRun::Narrowed);
        }
    }

    fn signal(&mut self) -> Vec<Order> {
        Vec::new()
    }
}

/// What the process that supervises a main command is given.
pub(super) struct Main<'a> {
    pub(super) handles: Handles,
    pub(super) link: Option<LinkAddresses>,
    pub(super) spec: &'a NamedSpec,
    pub(super) directory: PathBuf,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) keeper: OwnedFd,
    /// Where the command's output goes.
    pub(super) output: OwnedFd,
    /// See [`Session`].
    pub(super) line: Option<OwnedFd>,
}

/// That process, from its fork to its end, with the command's exit status.
pub(super) fn main_command(main: Main<'_>) -> u8 {
    let Main { handles, link, spec, directory, env, keeper, output, line } = main;
    let prepare = |output: OwnedFd| -> io::Result<OwnedFd> {
        process::die_with_parent()?;
        rustix::stdio::dup2_stdout(&output)?;
        rustix::stdio::dup2_stderr(&output)?;
        drop(output);
        let told = keeper.try_clone()?;
        let mut kept: Vec<BorrowedFd<'_>> = handles.fds().into();
        kept.extend([keeper.as_fd(), told.as_fd()]);
        kept.extend(line.iter().map(AsFd::as_fd));
        process::close_all_except(&kept)?;
        Ok(told)
    };
    let Ok(told) = prepare(output) else { return EXIT_SETUP };
    let command = spec.command.iter().map(OsString::from).collect();
    let options = ExecOptions { env, ..ExecOptions::new(command) };
    let session = Session { spec: spec.clone(), directory, handles, link, keeper, listener: None, line };
    match session.exec(options, &mut EventLog::none(), &mut |text| say(text), &mut || {}) {
        Ok(finished) => finished.exit_status,
        Err(error) => {
            let failed = FromRun::Failed { why: chain(&error), status: error.exit_status() };
            let _gone = protocol::send(&told, &failed, &[]);
            error.exit_status()
        }
    }
}
