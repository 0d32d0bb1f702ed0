//! From the specification to the running program.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_sys::fdpass;
use cofferdam_sys::mount::{self, Attributes};
use cofferdam_sys::ns::{self, Child, Fork, NamespaceKind, Setgroups};
use cofferdam_sys::process::{self, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::machine::Machine;
use super::{Processes, Running, wait, watch};
use crate::builder::Builder;
use crate::gateway::{Gateway, GatewayError};
use crate::identity::Identity;
use crate::init::Init;
use crate::limits::{self, Cgroup};
use crate::plan::{self, Host, Source, Wanted};
use crate::wire::{self, Fault, Message, Received, Step as _};
use crate::{GatewayEnd, LaunchError, NetworkSpec, Role, SandboxSpec, check, filter, program, remedy};

/// How long a start may take. It takes milliseconds; a machine that swaps may take seconds.
const START_TIME: Duration = Duration::from_secs(30);

/// Makes a sandbox and starts its program. Must be called while the process has one thread, since it forks.
///
/// # Errors
/// What could not be set up; the program has not run then, and nothing is left of the sandbox.
pub fn launch(spec: SandboxSpec) -> Result<Running, LaunchError> {
    let spec = check::checked(spec)?;
    let host = Host::survey(spec.place.rootfs.as_deref()).map_err(|fault| failed(Role::Supervisor, fault))?;
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
    let steps = plan::plan(&spec, &host, &wanted);
    let trees = if takes_trees { wanted.len() } else { 0 };
    let mut start = Start::new(&spec, identity)?;
    start.fork_builder(|supervisor| Init { spec: &spec, supervisor, steps: &steps, trees, filters: &filters })?;
    let mounts = if takes_trees { wanted.as_slice() } else { &[] };
    match start.conduct(mounts) {
        Ok((controller, signals)) => Ok(start.running(controller, signals)),
        Err(LaunchError::Exec { command, source, .. }) => {
            let missing = source.kind() == io::ErrorKind::NotFound;
            let hint = if missing { hint(&spec, &host, &command) } else { String::new() };
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
}

impl<'a> Start<'a> {
    fn new(spec: &'a SandboxSpec, identity: Identity) -> Result<Self, LaunchError> {
        let own = |fault| failed(Role::Supervisor, fault);
        process::fill_standard_descriptors().step(|| "open /dev/null".to_owned()).map_err(own)?;
        if let Identity::Unused(id) = identity {
            open_standard_pipes(id);
        }
        let (cgroup, mut notices) = match Cgroup::make(&spec.limits) {
            Ok(cgroup) => (cgroup, Vec::new()),
            Err(reason) => (None, limits::notices(&spec.limits, &reason)),
        };
        if identity == Identity::Root && spec.limits.pids.is_some() && cgroup.is_none() {
            notices.push("the limit of processes is not enforced: the kernel does not count those of root".to_owned());
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
            notices,
            deadline: Instant::now() + START_TIME,
        })
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

    /// Leads the others through the start. Returns the program's terminal, if it has its own, and where signals arrive.
    fn conduct(&mut self, mounts: &[Wanted]) -> Result<(Option<OwnedFd>, SignalFd), LaunchError> {
        let (mut gateway_ready, mut placed) = (false, false);
        while !(gateway_ready && placed) {
            match self.next()? {
                (Role::Builder, Message::Unshared, _) => self.map(mounts)?,
                (Role::Builder, Message::Born { pid }, mut fds) => self.adopt(pid, fds.pop())?,
                (Role::Builder, Message::Built, fds) => {
                    self.start_gateway(fds)?;
                    gateway_ready = true;
                }
                (Role::Init, Message::Placed, _) => placed = true,
                (role, message, _) => return Err(unexpected(role, &message)),
            }
        }
        let stays = self.spec.network.as_ref().is_some_and(NetworkSpec::needs_broker);
        if let Some(builder) = self.processes.builder.take_if(|_| !stays) {
            wait(&builder);
        }
        self.follow_machine()?;
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

    /// The next message of the builder or the init.
    fn next(&mut self) -> Result<(Role, Message, Vec<OwnedFd>), LaunchError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
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
                    Ok(Received::Message(message, fds)) => return Ok((role, message, fds)),
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
        let (uid, gid) = self.identity.maps();
        ns::write_id_maps(Some(pid), &[uid], &[gid], Setgroups::Deny).map_err(|error| {
            let fault = Fault::new(format!("write {}", error.path.display()), &error.source);
            own(fault.with_remedy(remedy::user_namespace(&error.source)))
        })?;
        if let Some(cgroup) = &self.processes.cgroup
            && let Err(error) = cgroup.add(pid.as_raw_nonzero().get())
        {
            self.notices.extend(limits::notices(&self.spec.limits, &error.to_string()));
            self.processes.cgroup = None;
        }
        let trees = take_trees(mounts, pid, &mut self.notices).map_err(own)?;
        wire::send(&self.builder, &Message::Mapped, &[]).step(|| "reach the builder".to_owned()).map_err(own)?;
        for trees in trees.chunks(fdpass::MAX_FDS) {
            let trees: Vec<BorrowedFd<'_>> = trees.iter().map(AsFd::as_fd).collect();
            wire::send(&self.init, &Message::Trees, &trees).step(|| "reach the init".to_owned()).map_err(own)?;
        }
        Ok(())
    }

    fn adopt(&mut self, pid: i32, pidfd: Option<OwnedFd>) -> Result<(), LaunchError> {
        let (Some(pid), Some(pidfd)) = (Pid::from_raw(pid), pidfd) else {
            return Err(unexpected(Role::Builder, &Message::Born { pid }));
        };
        self.processes.init = Some(Child { pid, pidfd });
        Ok(())
    }

    fn start_gateway(&mut self, fds: Vec<OwnedFd>) -> Result<(), LaunchError> {
        let Some(network) = &self.spec.network else { return Ok(()) };
        match Gateway::start(network, fds, &self.lifeline, self.identity, self.deadline) {
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

    fn running(self, controller: Option<OwnedFd>, signals: SignalFd) -> Running {
        Running {
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
        let attributes = Attributes { read_only: mount.read_only, ..Attributes::default() };
        let take = || mount::take_real_tree(&mount.source).step(|| format!("take {}", mount.source.display()));
        let mut tree = take()?;
        if let Err(error) = mount::restrict_and_map_tree(tree.as_fd(), attributes, owner.as_fd()) {
            tree = take()?;
            mount::restrict_tree(tree.as_fd(), attributes)
                .step(|| format!("restrict the mount of {}", mount.source.display()))?;
            notices.push(format!(
                "{} is shown with its owners as they are, so root's files there are a stranger's inside: its file system cannot map ids ({error})",
                mount.source.display()
            ));
        }
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
