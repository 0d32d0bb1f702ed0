//! What is asked of a keeper.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_backend_ns::{HANDLE_COUNT, Handles};
use cofferdam_model::PublishedPort;

use super::exec::Session;
use super::protocol::{self, Link, Reply, Request};
use super::registry::{Entry, NamedError};
use super::spec::{BackendEntry, MountEntry, NamedSpec};
use super::told::Listener;

/// How long a keeper may take to answer. It does nothing that takes long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a change of policy may take: it is compiled, and every run has to be within it.
pub(crate) const FOR_A_POLICY: Duration = Duration::from_secs(60);

/// How long a change of what a guest is shown may take: more than its server and the guest have together.
const FOR_A_MOUNT: Duration = Duration::from_secs(75);

/// What they are told then.
pub(crate) const LATE: &str =
    "its gateway does not answer; set a policy anew, since this one may yet come to be in force";

/// How long a sandbox may take to be gone once all that ran in it was killed.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// A running sandbox.
#[derive(Debug)]
pub struct Inspected {
    /// The process ids of its keeper and its pid 1.
    pub keeper: u32,
    pub init: u32,
    /// Seconds since 1970.
    pub started: u64,
    /// Its addresses.
    pub guest: Vec<IpAddr>,
    pub runs: Vec<RunInfo>,
    /// Runs beyond those.
    pub more_runs: usize,
}

/// One run.
#[derive(Debug)]
pub struct RunInfo {
    /// The process that supervises it.
    pub supervisor: u32,
    pub command: String,
    pub is_main: bool,
}

/// Enters a running sandbox, for one run.
///
/// # Errors
/// When it does not run or its keeper refuses.
pub fn enter(entry: &Entry) -> Result<Session, NamedError> {
    let (keeper, reply, mut fds) = ask(entry, &Request::Enter, None)?;
    let Reply::Entered(entered) = reply else { return Err(unexpected(entry, &reply)) };
    let broken = |what: String| NamedError::Keeper { name: entry.name().clone(), what };
    // That of a virtual machine comes with a line to its monitor.
    if fds.len() != HANDLE_COUNT + 2 && fds.len() != HANDLE_COUNT + 3 {
        return Err(broken("has handed over something else than its sandbox".to_owned()));
    }
    let line = if fds.len() > HANDLE_COUNT + 2 { fds.pop() } else { None };
    let listener = fds.pop().map(Listener::new);
    let json = fds.pop().map(protocol::read_memory_file).transpose();
    let json = json.map_err(|error| broken(format!("has handed over nothing that can be read: {error}")))?;
    let spec = NamedSpec::parse(&json.unwrap_or_default())
        .map_err(|source| NamedError::Spec { name: entry.name().clone(), source })?;
    let handles = Handles::from_parts(fds, entered.identity, entered.cgroup)
        .map_err(|error| broken(format!("has handed over something else than its sandbox: {error}")))?;
    if line.is_some() != (spec.backend == BackendEntry::Vm) {
        return Err(broken("has handed over something else than its sandbox".to_owned()));
    }
    let link = entered.link.as_ref().map(Link::addresses);
    Ok(Session { spec, directory: entry.path().to_owned(), handles, link, keeper, listener, line })
}

/// Looks at a running sandbox.
///
/// # Errors
/// When it does not run or its keeper refuses.
pub fn inspect(entry: &Entry) -> Result<Inspected, NamedError> {
    let (_, reply, _) = ask(entry, &Request::Inspect, None)?;
    let Reply::Inspected(status) = reply else { return Err(unexpected(entry, &reply)) };
    let guest = status.link.as_ref().map(Link::guest).unwrap_or_default();
    let runs = status.runs.into_iter();
    let runs = runs.map(|run| RunInfo { supervisor: run.supervisor, command: run.command, is_main: run.is_main });
    let (keeper, init, started) = (status.keeper, status.init, status.started);
    Ok(Inspected { keeper, init, started, guest, runs: runs.collect(), more_runs: status.more_runs })
}

/// Gives a running sandbox another network configuration; flows that it does not allow are ended.
///
/// # Errors
/// When it does not run or its keeper or gateway refuses.
pub fn set_policy(entry: &Entry, spec: &NamedSpec) -> Result<(), NamedError> {
    let (_, reply, _) = ask(entry, &Request::Policy, Some(spec))?;
    if reply == Reply::Done { Ok(()) } else { Err(unexpected(entry, &reply)) }
}

/// The published ports of a running sandbox.
///
/// # Errors
/// When it does not run or its keeper refuses.
pub fn ports(entry: &Entry) -> Result<Vec<PublishedPort>, NamedError> {
    of_ports(entry, &Request::Ports)
}

/// Publishes ports of a running sandbox, written as `[BIND:]HOST:GUEST[/tcp|/udp]`: all of them or none. Returns them as they
/// are, with those that the system has picked.
///
/// # Errors
/// When it does not run or has no network, or a port cannot be had.
pub fn publish(entry: &Entry, ports: Vec<String>) -> Result<Vec<PublishedPort>, NamedError> {
    of_ports(entry, &Request::Publish { ports })
}

/// Withdraws ports of a running sandbox, named by the host's end: `8080`, `8080/udp`, `127.0.0.1:8080`. Their connections go
/// on.
///
/// # Errors
/// When it does not run, or one is not published.
pub fn withdraw(entry: &Entry, ports: Vec<String>) -> Result<Vec<PublishedPort>, NamedError> {
    of_ports(entry, &Request::Withdraw { ports })
}

/// Shows a running virtual machine a directory of the host, whose path has no symbolic links in it. What a person should be told.
/// Must be called while the process has one thread, since it may fork.
///
/// # Errors
/// When it does not run, is none, cannot be shown it, or the guest does not mount it; it is shown nothing then.
pub fn add_mount(entry: &Entry, mount: MountEntry) -> Result<Option<String>, NamedError> {
    let broken = |what: String| NamedError::Keeper { name: entry.name().clone(), what };
    let (_, reply, mut fds) = ask(entry, &Request::Mountable { target: mount.target.clone() }, None)?;
    let (Reply::Mountable { is_mapped }, Some(owner)) = (&reply, fds.pop()) else {
        return Err(unexpected(entry, &reply));
    };
    let taken = cofferdam_backend_ns::take_tree(&mount.source, mount.read_only, &owner, *is_mapped);
    let (tree, notice) =
        taken.map_err(|error| broken(format!("is shown nothing new: {}", super::keeper::chain(&error))))?;
    match ask_with(entry, &Request::Mount { mount }, &[tree.as_fd()])? {
        (_, Reply::Done, _) => Ok(notice),
        (_, reply, _) => Err(unexpected(entry, &reply)),
    }
}

/// Shows a running virtual machine no more what it has at a path.
///
/// # Errors
/// When it does not run, or has nothing there; and when the guest could not unmount it, which is shown it no more all the same.
pub fn remove_mount(entry: &Entry, target: PathBuf) -> Result<(), NamedError> {
    match ask(entry, &Request::Unmount { target }, None)? {
        (_, Reply::Done, _) => Ok(()),
        (_, reply, _) => Err(unexpected(entry, &reply)),
    }
}

fn of_ports(entry: &Entry, request: &Request) -> Result<Vec<PublishedPort>, NamedError> {
    match ask(entry, request, None)? {
        (_, Reply::Ports { ports }, _) => Ok(ports),
        (_, reply, _) => Err(unexpected(entry, &reply)),
    }
}

/// Stops a running sandbox: TERM to what runs in it, after `grace` the end of everything. Comes back when it is gone.
///
/// # Errors
/// When it does not run, or does not end.
pub fn stop(entry: Entry, grace: Duration) -> Result<(), NamedError> {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    match ask(&entry, &Request::Stop { grace_ms }, None) {
        Ok((keeper, Reply::Done, _)) => {
            // Its end closes the connection.
            let _late = protocol::wait_for(&keeper, grace.saturating_add(AFTER_KILL));
        }
        Ok((_, reply, _)) => return Err(unexpected(&entry, &reply)),
        // A keeper that does not answer is killed, and everything with it.
        Err(NamedError::Keeper { .. }) => kill(&entry)?,
        Err(error) => return Err(error),
    }
    match entry.lock_within(AFTER_KILL) {
        Ok(_) | Err(NamedError::Absent(_)) => Ok(()),
        Err(NamedError::Running(name) | NamedError::Busy(name)) => {
            let what = "does not end; kill it by hand".to_owned();
            Err(NamedError::Keeper { name, what })
        }
        Err(error) => Err(error),
    }
}

/// Kills the keeper: whoever listens on the control socket, which nobody else can do without the lock.
fn kill(entry: &Entry) -> Result<(), NamedError> {
    let broken = |error: io::Error| NamedError::Keeper {
        name: entry.name().clone(),
        what: format!("does not answer, and cannot be killed: {error}"),
    };
    let socket = entry.connect().map_err(broken)?;
    let keeper = cofferdam_sys::fdpass::peer_pidfd(&socket).map_err(broken)?;
    rustix::process::pidfd_send_signal(&keeper, rustix::process::Signal::KILL).map_err(|errno| broken(errno.into()))
}

/// Asks something. The connection stays open.
fn ask(
    entry: &Entry,
    request: &Request,
    spec: Option<&NamedSpec>,
) -> Result<(OwnedFd, Reply, Vec<OwnedFd>), NamedError> {
    let file = spec.map(|spec| protocol::memory_file(spec.to_json().as_bytes())).transpose();
    let file = file.map_err(|error| deaf(entry, &error))?;
    ask_with(entry, request, &file.iter().map(AsFd::as_fd).collect::<Vec<_>>())
}

fn deaf(entry: &Entry, error: &io::Error) -> NamedError {
    NamedError::Keeper { name: entry.name().clone(), what: format!("does not answer: {error}") }
}

/// As [`ask`], with descriptors.
fn ask_with(
    entry: &Entry,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<(OwnedFd, Reply, Vec<OwnedFd>), NamedError> {
    let name = entry.name();
    let socket = entry.reach()?;
    let patience = match request {
        Request::Policy => FOR_A_POLICY,
        Request::Mount { .. } | Request::Unmount { .. } => FOR_A_MOUNT,
        Request::Enter
        | Request::Inspect
        | Request::Stop { .. }
        | Request::Show
        | Request::Ports
        | Request::Publish { .. }
        | Request::Withdraw { .. }
        | Request::Mountable { .. } => PATIENCE,
    };
    match protocol::ask_with(&socket, request, fds, patience).map_err(|error| deaf(entry, &error))? {
        (Reply::Refused { why }, _) => Err(NamedError::Keeper { name: name.clone(), what: format!("refuses: {why}") }),
        (Reply::Busy, _) => Err(NamedError::Busy(name.clone())),
        (reply, fds) => Ok((socket, reply, fds)),
    }
}

fn unexpected(entry: &Entry, reply: &Reply) -> NamedError {
    NamedError::Keeper { name: entry.name().clone(), what: format!("has answered something else: {reply:?}") }
}
