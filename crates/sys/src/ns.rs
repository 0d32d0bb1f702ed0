//! Namespaces: making them, writing their id maps, entering them, and forking into new ones.
//!
//! Everything here is for processes with **one thread**. Between [`fork`] and the end of a forked child only that thread
//! exists, so a lock that another thread held (the allocator's, say) would never be released. [`fork`] and
//! [`fork_into`] therefore refuse to run in a process with several threads; unshare(2) and setns(2) refuse it
//! by themselves for user namespaces.
//!
//! A forked child should end with [`crate::process`]'s immediate exit or an exec, never by returning through frames whose
//! destructors belong to the parent.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::ops::BitOr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::process::Pid;

/// A set of namespace kinds (`CLONE_NEW*`, namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespaces(libc::c_int);

impl Namespaces {
    /// None: a plain fork.
    pub const NONE: Namespaces = Namespaces(0);
    /// user_namespaces(7). Made before all others of the same call, and their owner.
    pub const USER: Namespaces = Namespaces(libc::CLONE_NEWUSER);
    /// network_namespaces(7).
    pub const NET: Namespaces = Namespaces(libc::CLONE_NEWNET);
    /// pid_namespaces(7).
    pub const PID: Namespaces = Namespaces(libc::CLONE_NEWPID);
    /// mount_namespaces(7).
    pub const MOUNT: Namespaces = Namespaces(libc::CLONE_NEWNS);
    /// ipc_namespaces(7).
    pub const IPC: Namespaces = Namespaces(libc::CLONE_NEWIPC);
    /// uts_namespaces(7).
    pub const UTS: Namespaces = Namespaces(libc::CLONE_NEWUTS);
    /// cgroup_namespaces(7).
    pub const CGROUP: Namespaces = Namespaces(libc::CLONE_NEWCGROUP);
}

impl BitOr for Namespaces {
    type Output = Namespaces;

    fn bitor(self, rhs: Namespaces) -> Namespaces {
        Namespaces(self.0 | rhs.0)
    }
}

/// One namespace kind, as `/proc/<pid>/ns` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceKind {
    User,
    Net,
    Mount,
    Pid,
}

impl NamespaceKind {
    fn file_name(self) -> &'static str {
        match self {
            NamespaceKind::User => "user",
            NamespaceKind::Net => "net",
            NamespaceKind::Mount => "mnt",
            NamespaceKind::Pid => "pid",
        }
    }

    fn flag(self) -> libc::c_int {
        match self {
            NamespaceKind::User => libc::CLONE_NEWUSER,
            NamespaceKind::Net => libc::CLONE_NEWNET,
            NamespaceKind::Mount => libc::CLONE_NEWNS,
            NamespaceKind::Pid => libc::CLONE_NEWPID,
        }
    }
}

/// Moves the calling process into new namespaces of its own. A new pid namespace is for its children.
///
/// # Errors
/// Those of unshare(2): `EPERM` where unprivileged user namespaces are switched off, `ENOSPC` at their limit, `EINVAL` for a
/// user namespace in a process with several threads.
pub fn unshare(namespaces: Namespaces) -> io::Result<()> {
    // SAFETY: unshare(2) takes flags and touches no memory of ours. CLONE_FILES, the one flag that could make descriptors
    // of other threads dangle, cannot be in a `Namespaces`.
    let rc = unsafe { libc::unshare(namespaces.0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves the calling thread into the namespace that `namespace` refers to.
///
/// # Errors
/// Those of setns(2): `EINVAL` when the descriptor is of another kind, `EPERM` without capabilities in its owner.
pub fn enter(namespace: impl AsFd, kind: NamespaceKind) -> io::Result<()> {
    // SAFETY: setns(2) touches no memory of ours. The descriptor is borrowed, so it stays open for the whole call.
    let rc = unsafe { libc::setns(namespace.as_fd().as_raw_fd(), kind.flag()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens the namespace of process `pid`, or of the caller for `None`.
///
/// # Errors
/// Those of open(2); `EACCES` when the process may not be inspected.
pub fn open(pid: Option<Pid>, kind: NamespaceKind) -> io::Result<OwnedFd> {
    Ok(File::open(proc_path(pid, &format!("ns/{}", kind.file_name())))?.into())
}

/// One line of an id map: `count` ids from `inside` on stand for those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

impl IdMap {
    /// The map of one single id.
    #[must_use]
    pub const fn single(inside: u32, outside: u32) -> IdMap {
        IdMap { inside, outside, count: 1 }
    }
}

/// Whether setgroups(2) stays possible in a user namespace. It has to be denied when the writer of the map lacks
/// `CAP_SETGID` outside (user_namespaces(7)): dropping a group may otherwise open files that deny it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setgroups {
    Allow,
    Deny,
}

/// Writes the id maps of the user namespace that process `pid` (`None`: the caller) is in. Possible once per namespace.
///
/// # Errors
/// The file that could not be written, with the system's reason: `EPERM` when the caller may not map these ids.
pub fn write_id_maps(pid: Option<Pid>, uids: &[IdMap], gids: &[IdMap], setgroups: Setgroups) -> Result<(), IdMapError> {
    if setgroups == Setgroups::Deny {
        write_proc(pid, "setgroups", "deny")?;
    }
    write_proc(pid, "uid_map", &id_map_text(uids))?;
    write_proc(pid, "gid_map", &id_map_text(gids))
}

/// Why an id map could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}", path = path.display())]
pub struct IdMapError {
    pub path: PathBuf,
    pub source: io::Error,
}

fn write_proc(pid: Option<Pid>, name: &str, text: &str) -> Result<(), IdMapError> {
    let path = proc_path(pid, name);
    // The map has to arrive in one write(2), which `fs::write` does for texts of this size.
    fs::write(&path, text).map_err(|source| IdMapError { path, source })
}

fn id_map_text(maps: &[IdMap]) -> String {
    let mut text = String::new();
    for IdMap { inside, outside, count } in maps {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{inside} {outside} {count}");
    }
    text
}

fn proc_path(pid: Option<Pid>, name: &str) -> PathBuf {
    match pid {
        Some(pid) => format!("/proc/{}/{name}", pid.as_raw_nonzero()),
        None => format!("/proc/self/{name}"),
    }
    .into()
}

/// Where a process came out of a fork.
#[derive(Debug)]
pub enum Fork {
    /// In the caller, which holds the new process.
    Parent(Child),
    /// In the new process.
    Child,
}

/// A process that a fork made.
#[derive(Debug)]
pub struct Child {
    /// Its id in the caller's pid namespace. May be reused after the process was waited for.
    pub pid: Pid,
    /// Refers to this process for as long as it is open; close-on-exec.
    pub pidfd: OwnedFd,
}

/// Whose child a new process becomes, and who is thus told of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentOf {
    /// The caller's.
    Caller,
    /// A sibling of the caller: its parent's (`CLONE_PARENT`). Its end sends the signal that the caller's own would send.
    /// Refused with `EINVAL` for pid 1 of a pid namespace.
    CallersParent,
}

/// Forks the process.
///
/// # Errors
/// As [`fork_into`].
pub fn fork() -> io::Result<Fork> {
    fork_into(Namespaces::NONE, ParentOf::Caller)
}

/// Forks the process; the child starts in new namespaces, and as pid 1 of a new pid namespace if that is among them.
///
/// The child continues where the call returns, as with fork(2). Handlers registered with pthread_atfork(3) are not run.
///
/// # Errors
/// `Other` when the process has more than one thread or that cannot be read from `/proc/self/task`, otherwise those of
/// clone3(2): `EPERM` or `ENOSPC` as for [`unshare`], `EAGAIN` at a process limit.
pub fn fork_into(namespaces: Namespaces, parent: ParentOf) -> io::Result<Fork> {
    let (placement, exit_signal) = match parent {
        ParentOf::Caller => (0, libc::SIGCHLD),
        // clone3 takes no exit signal with CLONE_PARENT: the sibling gets the caller's.
        ParentOf::CallersParent => (libc::CLONE_PARENT, 0),
    };
    clone(flag_bits(namespaces.0 | placement), exit_signal, None)
}

/// Forks the process; the child starts in the control group whose directory this is.
///
/// To move a process there by `cgroup.procs` takes a grace period of the kernel, 20 ms and more, and this takes none.
///
/// # Errors
/// As [`fork`], and those of clone3(2) for `CLONE_INTO_CGROUP`: `EINVAL` before Linux 5.7 among them.
pub fn fork_into_cgroup(cgroup: BorrowedFd<'_>) -> io::Result<Fork> {
    clone(CLONE_INTO_CGROUP, libc::SIGCHLD, Some(cgroup))
}

/// From `linux/sched.h`; it does not fit in the type that libc's flags have.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn clone(flags: u64, exit_signal: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    require_one_thread()?;
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args holds integers only; all zeroes is valid and means "nothing special" for each field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | flag_bits(libc::CLONE_PIDFD);
    args.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    args.exit_signal = flag_bits(exit_signal);
    args.cgroup = cgroup.map_or(0, |cgroup| flag_bits(cgroup.as_raw_fd()));
    // SAFETY: no CLONE_VM and no stack, so the child runs on a copy of this thread's memory and stack, as after fork(2).
    // This is the only thread (checked above), so no lock is held by a thread that the child lacks. `args` is a live
    // clone_args of the given size, whose only pointer, `pidfd`, is a live c_int that the kernel writes in the parent.
    // `cgroup` is borrowed, so it stays open for the whole call.
    let rc = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    if rc == 0 {
        return Ok(Fork::Child);
    }
    let Some(pid) = i32::try_from(rc).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: CLONE_PIDFD made the kernel store a new descriptor here, which nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Fork::Parent(Child { pid, pidfd }))
}

/// Clone flags, signals and descriptors are non-negative.
fn flag_bits(flags: libc::c_int) -> u64 {
    u64::from(flags.cast_unsigned())
}

fn require_one_thread() -> io::Result<()> {
    // A directory has two links more than it has subdirectories, and there is one of those per thread.
    match fs::metadata("/proc/self/task")?.nlink() {
        0..=3 => Ok(()),
        _ => Err(io::Error::other("a process with several threads cannot fork safely")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_to_fork_with_several_threads() {
        // The test harness itself makes this process one with several threads; one more makes sure of it.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv());
        assert_eq!(fork().unwrap_err().kind(), io::ErrorKind::Other);
        drop(stop);
        assert!(thread.join().unwrap().is_err());
    }

    #[test]
    fn writes_id_maps_one_per_line() {
        let maps = [IdMap::single(0, 1500), IdMap { inside: 1, outside: 100_000, count: 65_536 }];
        assert_eq!(id_map_text(&maps), "0 1500 1\n1 100000 65536\n");
    }

    #[test]
    fn names_the_map_that_cannot_be_written() {
        // Pid 2^22 is above every possible one (proc(5), pid_max).
        let error = write_id_maps(Pid::from_raw(1 << 22), &[], &[], Setgroups::Deny).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /proc/4194304/setgroups");
    }
}
