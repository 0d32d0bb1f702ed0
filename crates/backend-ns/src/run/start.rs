//! From the specification to the running program.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_sys::fdpass;
use cofferdam_sys::ns::{self, Child, Fork, NamespaceKind, Setgroups};
use cofferdam_sys::process::{self, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::machine::Machine;
use super::{Processes, Running, wait, wait_for, watch};
use crate::builder::Builder;
use crate::capture::Capture;
use crate::enter::Enter;
use crate::gateway::{self, Gateway, GatewayError};
use crate::handles::{Attachment, Handles};
use crate::identity::Identity;
use crate::init::{Init, Inside, OwnProgram, Task};
use crate::inspect::Inspector;
use crate::limits::{self, Cgroup};
use crate::monitor::Monitor;
use crate::plan::{self, Host, Source, Wanted};
use crate::tree;
use crate::wire::{self, Fault, Message, Received, Step as _};
use crate::{
    GatewayEnd, LaunchError, NetworkSpec, Role, SandboxSpec, Sockets, View, bare, check, filter, program, remedy,
};

/// How long a start may take. It takes milliseconds; a machine that swaps may take seconds.
const START_TIME: Duration = Duration::from_secs(30);

/// How long a virtual machine may take to start, as the last word: its monitor has a limit below this, and knows more to say.
const BOOT_TIME: Duration = Duration::from_secs(180);

/// Between two reports of a machine that is starting.
const BOOTING: Duration = Duration::from_secs(1);

/// Makes a sandbox and starts its program. Must be called while the process has one thread, since it forks.
///
/// # Errors
/// What could not be set up; the program has not run then, and nothing is left of the sandbox.
pub fn launch(spec: SandboxSpec) -> Result<Running, LaunchError> {
    launch_fresh(spec, Task::Program, None)
}

/// Makes a sandbox for a virtual machine: in the place of the program runs `monitor`, which starts it, and the link ends in a
/// TAP device. `booting` is told how long it has been starting, about once a second. Otherwise as [`launch`].
///
/// # Errors
/// As [`launch`].
pub fn launch_monitored(
    spec: SandboxSpec,
    monitor: &dyn Monitor,
    booting: &mut dyn FnMut(Duration),
) -> Result<Running, LaunchError> {
    launch_fresh(spec, Task::Monitor, Some((monitor, booting)))
}

/// As [`launch_monitored`], for runs inside: it has [`Running::handles`], and the monitor hears of them by
/// [`Order::Caller`](super::Order).
///
/// # Errors
/// As [`launch`].
pub fn launch_staying(
    spec: SandboxSpec,
    monitor: &dyn Monitor,
    booting: &mut dyn FnMut(Duration),
) -> Result<Running, LaunchError> {
    launch_fresh(spec, Task::StayMonitor, Some((monitor, booting)))
}

/// A run in a virtual machine that stays: `monitor` has the program executed there, over `line`, the other end of what that
/// machine's monitor was given. It is a run like others otherwise, in the sandbox that QEMU is in.
///
/// # Errors
/// As [`launch`].
pub fn launch_calling(
    spec: SandboxSpec,
    handles: Handles,
    monitor: &dyn Monitor,
    line: OwnedFd,
) -> Result<Running, LaunchError> {
    let spec = SandboxSpec { network: None, ..check::checked(spec, Task::Monitor)? };
    let inner = Inner { task: Task::Monitor, own: None, monitor: Some((monitor, line)), steps: plan::plan_call() };
    launch_inner(&spec, &handles, Attachment::Session, inner)
}

/// Makes a sandbox without a program, for runs inside: it has [`Running::handles`], and lasts until it is ended. Its command
/// is not looked at. Otherwise as [`launch`].
///
/// # Errors
/// As [`launch`].
pub fn launch_empty(spec: SandboxSpec) -> Result<Running, LaunchError> {
    launch_fresh(spec, Task::Stay, None)
}

/// Runs a program, or a function of ours in its place, in a sandbox that is there: with its files and its user, in a pid
/// namespace of its own. Of the
/// specification the place counts for what the program may write to, and has been made already. Otherwise as [`launch`].
///
/// # Errors
/// As [`launch`].
pub fn launch_inside(
    spec: SandboxSpec,
    handles: Handles,
    attachment: Attachment,
    own: Option<OwnProgram>,
) -> Result<Running, LaunchError> {
    let spec = check::checked(spec, Task::Program)?;
    let spec = match attachment {
        Attachment::Session => SandboxSpec { network: None, ..spec },
        // Who connects to them is the sandbox's own gateway.
        Attachment::Own => {
            let network = spec.network.map(|network| NetworkSpec { sockets: Vec::new(), ..network });
            SandboxSpec { network, ..spec }
        }
    };
    let hidden = match attachment {
        Attachment::Session => &[],
        Attachment::Own => spec.sockets.as_slice(),
    };
    let inner = Inner { task: Task::Program, own, monitor: None, steps: plan::plan_run(hidden) };
    launch_inner(&spec, &handles, attachment, inner)
}

/// What runs in a sandbox that is there.
struct Inner<'a> {
    task: Task,
    own: Option<OwnProgram>,
    monitor: Option<(&'a dyn Monitor, OwnedFd)>,
    steps: Vec<plan::Step>,
}

fn launch_inner(
    spec: &SandboxSpec,
    handles: &Handles,
    attachment: Attachment,
    inner: Inner<'_>,
) -> Result<Running, LaunchError> {
    let filters = filter::program_filters(spec.allow_userns)
        .map_err(|error| failed(Role::Supervisor, crate::builder::fault(&error)))?;
    let Inner { task, own, monitor, steps } = inner;
    let (monitor, line) = monitor.unzip();
    let mut start = Start::inside(spec, handles)?;
    start.fork_enter(handles, attachment, |supervisor, mount| Init {
        spec,
        supervisor,
        steps: &steps,
        trees: 0,
        filters: &filters,
        task,
        own,
        monitor,
        inside: Some(Inside { mount, attachment, line }),
    })?;
    // It has nothing to boot, and says so at once.
    let mut silent = |_elapsed: Duration| {};
    let conducted = start.conduct(&[], task.is_monitored().then_some(&mut silent));
    conclude(conducted, start, spec, || Host::survey(spec.place.rootfs.as_deref(), spec.place.view).ok())
}

/// A monitor, and who is told how long its machine has been starting.
type Monitored<'a> = (&'a dyn Monitor, Booting<'a>);
type Booting<'a> = &'a mut dyn FnMut(Duration);

fn launch_fresh(spec: SandboxSpec, task: Task, monitored: Option<Monitored<'_>>) -> Result<Running, LaunchError> {
    let (monitor, booting) = monitored.unzip();
    let mut spec = check::checked(spec, task)?;
    spec.place = check::straight(spec.place)?;
    if let View::Host(sockets) = spec.place.view {
        return launch_bare(&spec, sockets, monitor, booting);
    }
    if spec.sockets.len() != spec.network.as_ref().map_or(0, |network| network.sockets.len()) {
        return Err(LaunchError::Spec("every host socket has one place inside, and goes through a gateway".to_owned()));
    }
    let host =
        Host::survey(spec.place.rootfs.as_deref(), spec.place.view).map_err(|fault| failed(Role::Supervisor, fault))?;
    let filters = filter::program_filters(spec.allow_userns)
        .map_err(|error| failed(Role::Supervisor, crate::builder::fault(&error)))?;
    let identity = Identity::choose();
    let mounts = plan::wanted(&spec);
    // With privilege at hand the trees are taken here: the user the sandbox runs as may see none of them.
    let takes_trees = matches!(identity, Identity::Unused(_));
    let wanted: Vec<Wanted> = (0..)
        .zip(&mounts)
        .map(|(index, mount)| Wanted {
            mount: mount.clone(),
            source: if takes_trees { Source::Passed(index) } else { Source::Real(mount.source.clone()) },
        })
        .collect();
    if let (Identity::Unused(_), Some(rootfs)) = (identity, &spec.place.rootfs)
        && let Some(closed) = rootfs.ancestors().find(|directory| !plan::is_for_all(directory))
    {
        return Err(LaunchError::Spec(format!(
            "the sandbox of root runs as an unprivileged user, to whom {} is closed, and with it the root file system {}; \
             put it elsewhere, or open the directory with chmod o+rx",
            closed.display(),
            rootfs.display()
        )));
    }
    let mut steps = plan::plan(&spec, &host, &wanted);
    if task == Task::Stay {
        plan::leave_out_processes(&mut steps);
    }
    let trees = if takes_trees { wanted.len() } else { 0 };
    let mut start = Start::new(&spec, identity)?;
    start.fork_builder(|supervisor| Init {
        spec: &spec,
        supervisor,
        steps: &steps,
        trees,
        filters: &filters,
        task,
        own: None,
        monitor,
        inside: None,
    })?;
    let mounts = if takes_trees { wanted.as_slice() } else { &[] };
    let conducted = start.conduct(mounts, booting);
    conclude(conducted, start, &spec, || Some(host))
}

/// A virtual machine without namespaces around it.
fn launch_bare(
    spec: &SandboxSpec,
    sockets: Sockets,
    monitor: Option<&dyn Monitor>,
    booting: Option<Booting<'_>>,
) -> Result<Running, LaunchError> {
    let identity = Identity::caller();
    if identity == Identity::Root {
        let text =
            "without namespaces nothing keeps a process of root from what is root's: start it as an ordinary user";
        return Err(LaunchError::Spec(text.to_owned()));
    }
    let filters =
        filter::bare_filters(sockets).map_err(|error| failed(Role::Supervisor, crate::builder::fault(&error)))?;
    let mut start = Start::new(spec, identity)?;
    start.fork_bare(|supervisor| Init {
        spec,
        supervisor,
        steps: &[],
        trees: 0,
        filters: &filters,
        task: Task::Monitor,
        own: None,
        monitor,
        inside: None,
    })?;
    let conducted = start.conduct_bare(booting);
    conclude(conducted, start, spec, || None)
}

fn conclude(
    conducted: Result<(Option<OwnedFd>, SignalFd), LaunchError>,
    start: Start<'_>,
    spec: &SandboxSpec,
    host: impl FnOnce() -> Option<Host>,
) -> Result<Running, LaunchError> {
    match conducted {
        Ok((controller, signals)) => Ok(start.running(controller, signals)),
        Err(LaunchError::Exec { command, source, .. }) => {
            // What QEMU does not see says nothing about what is in a guest.
            let is_here = spec.place.view == View::System && source.kind() == io::ErrorKind::NotFound;
            let host = if is_here { host() } else { None };
            let hint = host.map(|host| hint(spec, &host, &command)).unwrap_or_default();
            Err(LaunchError::Exec { command, hint, source })
        }
        Err(error) => Err(error),
    }
}

fn failed(role: Role, fault: Fault) -> LaunchError {
    let source = fault.error();
    LaunchError::Step { role, step: fault.step, remedy: fault.remedy, source }
}

/// A sandbox that is being started.
struct Start<'a> {
    spec: &'a SandboxSpec,
    identity: Identity,
    processes: Processes,
    lifeline: OwnedFd,
    builder: OwnedFd,
    init: OwnedFd,
    /// The other ends, until they are handed over.
    handed: Option<(OwnedFd, OwnedFd)>,
    notices: Vec<String>,
    deadline: Instant,
    /// Whether this is a run in a sandbox that is there, and the cgroup of that.
    is_inside: bool,
    joins: Option<&'a Path>,
    /// The namespaces of a sandbox that stays.
    doors: Vec<OwnedFd>,
    inspector: Option<Inspector>,
}

impl<'a> Start<'a> {
    fn new(spec: &'a SandboxSpec, identity: Identity) -> Result<Self, LaunchError> {
        let (cgroup, mut notices) = match Cgroup::make(&spec.limits) {
            Ok(cgroup) => (cgroup, Vec::new()),
            Err(reason) => (None, limits::notices(spec, &reason)),
        };
        if identity == Identity::Root && spec.limits.pids.is_some() && cgroup.is_none() {
            notices.push("the limit of processes is not enforced: the kernel does not count those of root".to_owned());
        }
        let start = Self::with(spec, identity, cgroup, None)?;
        Ok(Self { notices, ..start })
    }

    /// A run in a sandbox that is there.
    fn inside(spec: &'a SandboxSpec, handles: &'a Handles) -> Result<Self, LaunchError> {
        let start = Self::with(spec, handles.identity, None, handles.cgroup())?;
        Ok(Self { is_inside: true, ..start })
    }

    fn with(
        spec: &'a SandboxSpec,
        identity: Identity,
        cgroup: Option<Cgroup>,
        joins: Option<&'a Path>,
    ) -> Result<Self, LaunchError> {
        let own = |fault| failed(Role::Supervisor, fault);
        process::fill_standard_descriptors().step(|| "open /dev/null".to_owned()).map_err(own)?;
        if let Identity::Unused(id) = identity {
            open_standard_pipes(id);
        }
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        let (lifeline, writer) = pipe.step(|| "make a pipe".to_owned()).map_err(own)?;
        let (builder, builder_end) = fdpass::pair().step(|| "make a socket pair".to_owned()).map_err(own)?;
        let (init, init_end) = fdpass::pair().step(|| "make a socket pair".to_owned()).map_err(own)?;
        Ok(Self {
            spec,
            identity,
            processes: Processes::new(writer, cgroup),
            lifeline,
            builder,
            init,
            handed: Some((builder_end, init_end)),
            notices: Vec::new(),
            deadline: Instant::now() + START_TIME,
            is_inside: false,
            joins,
            doors: Vec::new(),
            inspector: None,
        })
    }

    fn fork_enter<'b>(
        &mut self,
        handles: &Handles,
        attachment: Attachment,
        init: impl FnOnce(OwnedFd, OwnedFd) -> Init<'b>,
    ) -> Result<(), LaunchError> {
        let own = |fault| failed(Role::Supervisor, fault);
        let Some((supervisor, init_end)) = self.handed.take() else { return Ok(()) };
        match ns::fork().step(|| "fork the builder".to_owned()).map_err(own)? {
            Fork::Parent(child) => self.processes.builder = Some(child),
            Fork::Child => process::run_and_exit(|| {
                let (Ok(lifeline), Ok(mount)) = (self.lifeline.try_clone(), handles.mount.try_clone()) else {
                    return 1;
                };
                Enter { supervisor, lifeline, handles, attachment, init: init(init_end, mount) }.run()
            }),
        }
        Ok(())
    }

    fn fork_builder<'b>(&mut self, init: impl FnOnce(OwnedFd) -> Init<'b>) -> Result<(), LaunchError> {
        let own = |fault| failed(Role::Supervisor, fault);
        let Some((supervisor, init_end)) = self.handed.take() else { return Ok(()) };
        match ns::fork().step(|| "fork the builder".to_owned()).map_err(own)? {
            Fork::Parent(child) => self.processes.builder = Some(child),
            Fork::Child => process::run_and_exit(|| {
                let Ok(lifeline) = self.lifeline.try_clone() else { return 1 };
                Builder { supervisor, lifeline, identity: self.identity, init: init(init_end) }.run()
            }),
        }
        Ok(())
    }

    /// Starts the init alone, which nobody makes namespaces for.
    fn fork_bare<'b>(&mut self, init: impl FnOnce(OwnedFd) -> Init<'b>) -> Result<(), LaunchError> {
        let own = |fault| failed(Role::Supervisor, fault);
        let Some((_, init_end)) = self.handed.take() else { return Ok(()) };
        let child = match ns::fork().step(|| "fork the sandbox's first process".to_owned()).map_err(own)? {
            Fork::Parent(child) => child,
            Fork::Child => process::run_and_exit(|| match self.lifeline.try_clone() {
                Ok(lifeline) => bare::run(&init(init_end), &lifeline),
                Err(_) => 1,
            }),
        };
        let pid = child.pid;
        self.processes.init = Some(child);
        self.limit(pid);
        Ok(())
    }

    fn conduct_bare(&mut self, booting: Option<Booting<'_>>) -> Result<(Option<OwnedFd>, SignalFd), LaunchError> {
        match self.next()? {
            (Role::Init, Message::Placed, _) => self.go(booting),
            (role, message, _) => Err(unexpected(role, &message)),
        }
    }

    /// Leads the others through the start. Returns the program's terminal, if it has its own, and where signals arrive.
    fn conduct(
        &mut self,
        mounts: &[Wanted],
        booting: Option<Booting<'_>>,
    ) -> Result<(Option<OwnedFd>, SignalFd), LaunchError> {
        let (mut gateway_ready, mut placed) = (false, false);
        let (mut built, mut listeners) = (None, Vec::new());
        // The init of a run may be in place before its maker has told of it; and what is not known cannot be ended.
        while !(gateway_ready && placed && self.processes.init.is_some()) {
            match self.next()? {
                (Role::Builder, Message::Unshared, _) => self.map(mounts)?,
                (Role::Builder, Message::Born { pid }, fds) => self.adopt(pid, fds)?,
                (Role::Builder, Message::Built, fds) => built = Some(fds),
                (Role::Init, Message::Sockets, fds) => listeners.extend(fds),
                (Role::Init, Message::Eyes, fds) => self.inspector = Inspector::new(fds),
                (Role::Init, Message::Placed, _) => placed = true,
                (role, message, _) => return Err(unexpected(role, &message)),
            }
            let wanted = self.spec.network.as_ref().map_or(0, |network| network.sockets.len());
            if listeners.len() >= wanted
                && let Some(fds) = built.take()
            {
                self.start_gateway(fds, std::mem::take(&mut listeners))?;
                gateway_ready = true;
            }
        }
        let stays = self.spec.network.as_ref().is_some_and(NetworkSpec::needs_broker);
        if let Some(builder) = self.processes.builder.take_if(|_| !stays) {
            wait(&builder);
        }
        self.follow_machine()?;
        self.go(booting)
    }

    /// Everything is in place: has the program started.
    fn go(&mut self, booting: Option<Booting<'_>>) -> Result<(Option<OwnedFd>, SignalFd), LaunchError> {
        if let Some(booting) = booting {
            self.boot(booting)?;
        }
        let signals = watch::receive_signals().step(|| "receive signals".to_owned());
        let signals = signals.map_err(|fault| failed(Role::Supervisor, fault))?;
        let go = wire::send(&self.init, &Message::Go, &[]);
        go.step(|| "start the program".to_owned()).map_err(|fault| failed(Role::Supervisor, fault))?;
        match self.next()? {
            (_, Message::Started, mut fds) => Ok((fds.pop(), signals)),
            (_, Message::NotExecuted { errno }, _) => Err(LaunchError::Exec {
                command: self.spec.command.first().cloned().unwrap_or_default(),
                hint: String::new(),
                source: io::Error::from_raw_os_error(errno),
            }),
            (role, message, _) => Err(unexpected(role, &message)),
        }
    }

    /// Has the monitor start its virtual machine. A signal that comes meanwhile ends this process.
    fn boot(&mut self, booting: Booting<'_>) -> Result<(), LaunchError> {
        let go = wire::send(&self.init, &Message::Go, &[]);
        go.step(|| "start the monitor".to_owned()).map_err(|fault| failed(Role::Supervisor, fault))?;
        let begun = Instant::now();
        self.deadline = begun + BOOT_TIME;
        loop {
            match self.next_before(Instant::now() + BOOTING)? {
                None => booting(begun.elapsed()),
                Some((Role::Init, Message::Booted, _)) => break,
                Some((role, message, _)) => return Err(unexpected(role, &message)),
            }
        }
        self.deadline = Instant::now() + START_TIME;
        Ok(())
    }

    /// The next message of the builder or the init.
    fn next(&mut self) -> Result<(Role, Message, Vec<OwnedFd>), LaunchError> {
        loop {
            if let Some(next) = self.next_before(self.deadline)? {
                return Ok(next);
            }
        }
    }

    /// The next message of the builder or the init, if it comes before `until`.
    fn next_before(&mut self, until: Instant) -> Result<Option<(Role, Message, Vec<OwnedFd>)>, LaunchError> {
        loop {
            let until = until.min(self.deadline);
            let left = until.saturating_duration_since(Instant::now());
            // The builder first: an init that ends because the builder did has nothing to say about it. The builder's
            // end is no news once it has been waited for.
            let mut sources = Vec::new();
            sources.extend(self.processes.builder.is_some().then(|| (Role::Builder, self.builder.as_fd())));
            sources.push((Role::Init, self.init.as_fd()));
            let ready = ready(&sources, left).map_err(|fault| failed(Role::Supervisor, fault))?;
            for role in ready {
                let socket = if role == Role::Init { &self.init } else { &self.builder };
                match wire::receive_ready(socket) {
                    Ok(Received::Message(Message::Failed(fault), _)) => return Err(failed(role, fault)),
                    Ok(Received::Message(Message::Lost { why }, _)) => return Err(LaunchError::Guest(why)),
                    Ok(Received::Message(message, fds)) => return Ok(Some((role, message, fds))),
                    Ok(Received::Closed | Received::Orphaned | Received::Late) if role == Role::Builder => {
                        // Its orderly end, when it was all that was left of it to do.
                        match self.processes.builder.take().as_ref().and_then(wait) {
                            Some(GatewayEnd::Exited(0)) => {}
                            end => return Err(self.cause().unwrap_or_else(|| died(Role::Builder, end))),
                        }
                    }
                    Ok(Received::Closed | Received::Orphaned | Received::Late) => {
                        return Err(died(role, self.processes.init.take().as_ref().and_then(wait)));
                    }
                    Err(error) => {
                        return Err(failed(Role::Supervisor, Fault::new(format!("understand {role}"), &error)));
                    }
                }
            }
            if left.is_zero() && until < self.deadline {
                return Ok(None);
            }
            if left.is_zero() {
                let late = io::Error::from_raw_os_error(rustix::io::Errno::TIMEDOUT.raw_os_error());
                return Err(failed(Role::Supervisor, Fault::new("start the sandbox in time", &late)));
            }
        }
    }

    /// What the init says about a builder that has ended: maybe it could not reach the init any more.
    fn cause(&self) -> Option<LaunchError> {
        let ready = ready(&[(Role::Init, self.init.as_fd())], Duration::ZERO).ok()?;
        match wire::receive_ready(ready.first().map(|_| &self.init)?) {
            Ok(Received::Message(Message::Failed(fault), _)) => Some(failed(Role::Init, fault)),
            _ => None,
        }
    }

    /// The builder has unshared: gives it its ids, its cgroup, and the init its trees.
    fn map(&mut self, mounts: &[Wanted]) -> Result<(), LaunchError> {
        let own = |fault| failed(Role::Supervisor, fault);
        let Some(builder) = self.processes.builder.as_ref() else { return Ok(()) };
        let pid = builder.pid;
        if self.is_inside {
            if let Some(cgroup) = self.joins {
                // A limit of the sandbox's that a run could get around would be none.
                limits::join(cgroup, pid.as_raw_nonzero().get())
                    .step(|| format!("put the run under the sandbox's limits in {}", cgroup.display()))
                    .map_err(own)?;
            }
            return wire::send(&self.builder, &Message::Mapped, &[])
                .step(|| "reach the builder".to_owned())
                .map_err(own);
        }
        let (uid, gid) = self.identity.maps();
        ns::write_id_maps(Some(pid), &[uid], &[gid], Setgroups::Deny).map_err(|error| {
            let fault = Fault::new(format!("write {}", error.path.display()), &error.source);
            own(fault.with_remedy(remedy::user_namespace(&error.source)))
        })?;
        self.limit(pid);
        let trees = take_trees(mounts, pid, &mut self.notices).map_err(own)?;
        wire::send(&self.builder, &Message::Mapped, &[]).step(|| "reach the builder".to_owned()).map_err(own)?;
        for trees in trees.chunks(fdpass::MAX_FDS) {
            let trees: Vec<BorrowedFd<'_>> = trees.iter().map(AsFd::as_fd).collect();
            wire::send(&self.init, &Message::Trees, &trees).step(|| "reach the init".to_owned()).map_err(own)?;
        }
        Ok(())
    }

    /// Puts a process, and what it will start, under the limits.
    fn limit(&mut self, pid: Pid) {
        if let Some(cgroup) = &self.processes.cgroup
            && let Err(error) = cgroup.add(pid.as_raw_nonzero().get())
        {
            self.notices.extend(limits::notices(self.spec, &error.to_string()));
            self.processes.cgroup = None;
        }
    }

    fn adopt(&mut self, pid: i32, mut fds: Vec<OwnedFd>) -> Result<(), LaunchError> {
        if fds.is_empty() {
            return Err(unexpected(Role::Builder, &Message::Born { pid }));
        }
        let pidfd = fds.remove(0);
        let pid = match Pid::from_raw(pid) {
            Some(pid) => pid,
            None => process::pid_of(&pidfd)
                .step(|| "find the run's pid 1".to_owned())
                .map_err(|fault| failed(Role::Supervisor, fault))?,
        };
        self.processes.init = Some(Child { pid, pidfd });
        if !self.is_inside {
            self.doors = fds;
        } else if let Some(stepper) = fds.pop() {
            // It has nothing left to do.
            wait_for(stepper.as_fd());
        }
        Ok(())
    }

    fn start_gateway(&mut self, mut fds: Vec<OwnedFd>, listeners: Vec<OwnedFd>) -> Result<(), LaunchError> {
        let Some(network) = &self.spec.network else { return Ok(()) };
        let own = |fault| failed(Role::Supervisor, fault);
        let sockets = if network.sockets.is_empty() {
            None
        } else {
            let (dialer, channel) = gateway::start_dialer(&network.sockets, &self.lifeline).map_err(own)?;
            self.processes.dialer = Some(dialer);
            Some((listeners, channel))
        };
        let capture = match network.capture.as_ref().and_then(|file| Some((file, fds.pop()?))) {
            Some((file, packets)) => {
                let (capture, channel) = Capture::start(packets, file, &self.lifeline, self.identity, self.deadline)
                    .map_err(|fault| failed(Role::Capture, fault))?;
                self.processes.capture = Some(capture);
                Some(channel)
            }
            None => None,
        };
        match Gateway::start(network, (fds, sockets), capture, &self.lifeline, (self.identity, self.deadline)) {
            Ok(gateway) => {
                self.processes.gateway = Some(gateway);
                Ok(())
            }
            Err(GatewayError::Fault(fault)) => Err(failed(Role::Supervisor, fault)),
            Err(GatewayError::Died(words)) if words.is_empty() => Err(died(Role::Gateway, None)),
            Err(GatewayError::Died(how)) => Err(LaunchError::Died { role: Role::Gateway, how }),
        }
    }

    /// Tells the gateway which addresses are the machine's by now, before the program can send anything.
    fn follow_machine(&mut self) -> Result<(), LaunchError> {
        let Some(channel) = self.processes.gateway.as_mut().and_then(|gateway| gateway.machine.take()) else {
            return Ok(());
        };
        let resolvers = self.spec.network.as_ref().and_then(|network| network.resolvers.clone());
        match Machine::follow(channel, resolvers) {
            Ok(machine) => self.processes.machine = Some(machine),
            Err(error) => {
                let source = io::Error::other(error);
                let fault = Fault::new("tell the gateway of this machine's addresses", &source);
                return Err(failed(Role::Supervisor, fault));
            }
        }
        Ok(())
    }

    fn handles(&mut self) -> Option<Handles> {
        let doors = std::mem::take(&mut self.doors);
        let cgroup = self.processes.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned());
        Handles::new(doors, self.identity, cgroup).ok()
    }

    fn running(mut self, controller: Option<OwnedFd>, signals: SignalFd) -> Running {
        Running {
            handles: self.handles(),
            inspector: self.inspector,
            processes: self.processes,
            init: self.init,
            controller,
            limits: self.spec.limits.clone(),
            started: Instant::now(),
            signals,
            notices: self.notices,
        }
    }
}

/// Waits until one of the sources has something to say.
fn ready(sources: &[(Role, BorrowedFd<'_>)], timeout: Duration) -> Result<Vec<Role>, Fault> {
    let mut fds: Vec<_> = sources.iter().map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    wire::poll(&mut fds, Some(timeout)).step(|| "wait for the start".to_owned())?;
    Ok(sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|((role, _), _)| *role).collect())
}

fn died(role: Role, end: Option<GatewayEnd>) -> LaunchError {
    let how = match end {
        Some(GatewayEnd::Exited(status)) => format!("exit status {status}"),
        Some(GatewayEnd::Signaled(signal)) => format!("signal {signal}"),
        None => "for a reason unknown".to_owned(),
    };
    LaunchError::Died { role, how }
}

fn unexpected(role: Role, message: &Message) -> LaunchError {
    let how = format!("it said {message:?} out of turn");
    LaunchError::Died { role, how }
}

/// Makes the user of the sandbox the owner of those of the standard streams that are anonymous pipes. Programs open
/// `/dev/stderr` and the like by name, which is a question of ownership, although they hold the stream already. Files and
/// terminals stay as they are: their owner is seen by others and outlives the run.
fn open_standard_pipes(id: u32) {
    // From `linux/magic.h`; pipes with a name are on other file systems.
    const PIPEFS_MAGIC: i64 = 0x5049_5045;
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        if rustix::fs::fstatfs(stream).is_ok_and(|status| status.f_type == PIPEFS_MAGIC) {
            let (uid, gid) = (rustix::fs::Uid::from_raw(id), rustix::fs::Gid::from_raw(id));
            // The stream itself works all the same.
            let _only_by_descriptor = rustix::fs::fchown(stream, Some(uid), Some(gid));
        }
    }
}

/// Takes the trees of the user's mounts with the supervisor's privilege, seen through the builder's id map: what root
/// owns is the sandbox's inside, and what the sandbox writes is root's on disk.
fn take_trees(mounts: &[Wanted], builder: Pid, notices: &mut Vec<String>) -> Result<Vec<OwnedFd>, Fault> {
    if mounts.is_empty() {
        return Ok(Vec::new());
    }
    let owner = ns::open(Some(builder), NamespaceKind::User).step(|| "open the builder's user namespace".to_owned())?;
    let mut trees = Vec::new();
    for Wanted { mount, .. } in mounts {
        let (tree, notice) = tree::take_mapped(&mount.source, mount.read_only, &owner)?;
        notices.extend(notice);
        trees.push(tree);
    }
    Ok(trees)
}

/// Where a program is that the sandbox has not found, and what makes it appear there.
fn hint(spec: &SandboxSpec, host: &Host, command: &OsString) -> String {
    let named = Path::new(command);
    let candidates: Vec<PathBuf> = if named.components().count() > 1 || named.is_absolute() {
        vec![spec.workdir.join(named)]
    } else {
        program::search_path(&spec.env).into_iter().map(|directory| directory.join(named)).collect()
    };
    let Some(path) = candidates.into_iter().find(|path| path.is_file()) else { return String::new() };
    let real = path.canonicalize().unwrap_or_else(|_| path.clone());
    if host.shows(spec, &real) && host.shows(spec, &path) {
        return String::new();
    }
    let directory = if host.shows(spec, &path) { real.parent() } else { path.parent() }.unwrap_or(Path::new("/"));
    let directory = directory.display();
    format!(
        ": it is {} on the host, which the sandbox does not see; add --mount {directory}:{directory}:ro",
        path.display()
    )
}
