//! The last steps before the program: what it may do is taken away, then it is executed.
//!
//! | Step | Why not later |
//! |---|---|
//! | session, terminal, working directory, limits | they are the program's |
//! | capabilities | Landlock and filters need none once `no_new_privs` is set |
//! | `no_new_privs` | Landlock and seccomp require it |
//! | Landlock | the filter may forbid what it needs |
//! | seccomp | – |
//! | descriptors closed on exec, exec | – |

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use cofferdam_sys::confine::{self, Filter, PathAccess};
use cofferdam_sys::mount::{self, EmptyRoot};
use cofferdam_sys::process;
use cofferdam_sys::tty::{self, Pty};
use rustix::fs::{CWD, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Resource, Rlimit};

use crate::init::{KEPT_IGNORED, OwnProgram};
use crate::monitor::{DeviceServer, Monitor, Post, ServerPlace, ShareNews};
use crate::wire::{self, Fault, Message, Step as _};
use crate::{SandboxSpec, View, bare, filter, place, plan};

/// Where programs are looked for without a `PATH`, as execvp(3) of most systems has it.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Runs in the fork of the init and becomes the program. Comes back only when that failed, which it has told then.
pub(crate) fn run(
    spec: &SandboxSpec,
    filters: &[Filter],
    pty: Option<Pty>,
    own: Option<OwnProgram>,
    init: &OwnedFd,
) -> u8 {
    let message = match confine(spec, filters, pty) {
        Err(fault) => Message::Failed(fault),
        Ok(()) => {
            if let Some(own) = own {
                // Closes the way to the init as well, as executing a program would: it runs.
                return if process::close_all_except(&[]).is_ok() { own(&spec.command) } else { 1 };
            }
            let error = execute(spec);
            // Strings with a NUL byte have no number of their own.
            let invalid = rustix::io::Errno::INVAL.raw_os_error();
            Message::NotExecuted { errno: error.raw_os_error().unwrap_or(invalid) }
        }
    };
    let _gone = wire::send(init.as_fd(), &message, &[]);
    1
}

/// Runs in the fork of the init and becomes the monitor of a virtual machine. Tells its own end.
pub(crate) fn run_monitor(
    spec: &SandboxSpec,
    filters: &[Filter],
    pty: Option<Pty>,
    monitor: &dyn Monitor,
    post: Post,
) -> u8 {
    match confine(spec, filters, pty) {
        Err(fault) => {
            post.failed(fault);
            1
        }
        Ok(()) => {
            let kept: Vec<BorrowedFd<'_>> = post.fds().map(AsFd::as_fd).collect();
            if process::close_all_except(&kept).is_err() { 1 } else { monitor.run(post) }
        }
    }
}

/// Runs in the fork of the init and serves the files of a virtual machine. It tells its own end as long as it is not serving.
pub(crate) fn run_files(monitor: &dyn Monitor, listener: OwnedFd, news: OwnedFd, post: Post) -> u8 {
    match set_apart().and_then(|()| take_all()) {
        Err(fault) => {
            post.failed(fault);
            1
        }
        Ok(root) => {
            let kept: Vec<BorrowedFd<'_>> = post.fds().chain([&listener, &news]).map(AsFd::as_fd).collect();
            if process::close_all_except(&kept).is_err() {
                return 1;
            }
            monitor.serve_files(ServerPlace { listener, shares: ShareNews::new(news), root }, post)
        }
    }
}

/// Runs in the fork of the init and becomes a program that is a device of a virtual machine, which accepts the monitor's connection
/// on `listener` and says on `errors` what it has to say. Comes back only when that failed, which it has told then.
pub(crate) fn run_device(server: &DeviceServer, listener: &OwnedFd, errors: &OwnedFd, init: &OwnedFd) -> u8 {
    let confined = set_apart()
        .and_then(|()| {
            rustix::stdio::dup2_stderr(errors).step(|| "give the server of files its standard error".to_owned())
        })
        .and_then(|()| confine_device(server))
        .and_then(|()| {
            let inherited = rustix::io::fcntl_setfd(listener, FdFlags::empty());
            inherited.step(|| "give the server of files its listener".to_owned())
        })
        .and_then(|()| {
            for filter in filter::device_filters().map_err(|error| crate::builder::fault(&error))? {
                confine::install_seccomp(&filter).map_err(|error| crate::builder::fault(&error))?;
            }
            Ok(())
        });
    let fault = match confined {
        Err(fault) => fault,
        Ok(()) => {
            let listener = OsString::from(format!("--fd={}", listener.as_raw_fd()));
            let name = server.program.clone().into_os_string();
            let arguments: Vec<_> =
                std::iter::once(name).chain(server.arguments.iter().cloned()).chain([listener]).collect();
            let error = process::exec(server.program.as_os_str(), &arguments, &[("PATH", DEFAULT_PATH)]);
            Fault::new(format!("execute {}", server.program.display()), &error)
        }
    };
    let _gone = wire::send(init.as_fd(), &Message::Failed(fault), &[]);
    1
}

fn confine_device(server: &DeviceServer) -> Result<(), Fault> {
    // A core dump would have the guest's memory in it.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).step(|| "limit the server of files".to_owned())?;
    // It holds a descriptor for each file that the guest has looked up.
    // As every program's, its limit is below that of whoever passes descriptors on.
    let _most = process::raise_descriptor_limit();
    process::lower_raised_descriptor_limit().step(|| "limit the server of files".to_owned())?;
    confine::keep_capabilities(&server.capabilities).step(|| "drop capabilities".to_owned())?;
    confine::no_new_privileges().step(|| "renounce new privileges".to_owned())?;
    let step = || "restrict paths with Landlock".to_owned();
    let library = plan::libraries().filter_map(|path| open_trusted(&path).ok());
    let own = ["/proc", "/dev/null", "/dev/urandom"].map(Path::new).into_iter().chain([server.program.as_path()]);
    let own = own.filter_map(|path| open_trusted(path).ok());
    let read = library.chain(own).map(|opened| (opened, PathAccess::Read));
    let directory = mounted(&server.directory).ok_or(Errno::NOENT).step(step)?;
    let access = if is_read_only(&directory) { PathAccess::Read } else { PathAccess::Write };
    let rules: Vec<_> = read.chain([(directory, access)]).collect();
    confine::landlock_opened(&rules).step(step)?;
    process::reset_signals(&[]).step(|| "reset the signals of the server of files".to_owned())?;
    process::close_others_on_exec().step(|| "close descriptors".to_owned())
}

/// What no server of files needs. What else it can do without it knows itself.
fn set_apart() -> Result<(), Fault> {
    rustix::process::setsid().step(|| "start a session for the server of files".to_owned())?;
    let streams = || -> io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(rustix::stdio::dup2_stderr(&null)?)
    };
    streams().step(|| "take the standard streams from the server of files".to_owned())
}

/// All that is left to a server of files of ours: it has no files that it is not given.
fn take_all() -> Result<EmptyRoot, Fault> {
    process::rename("cofferdam-files").step(|| "name the server of files".to_owned())?;
    let root = mount::empty_root().step(|| "take every path from the server of files".to_owned())?;
    confine::drop_all_capabilities().step(|| "drop capabilities".to_owned())?;
    confine::no_new_privileges().step(|| "renounce new privileges".to_owned())?;
    Ok(root)
}

fn confine(spec: &SandboxSpec, filters: &[Filter], pty: Option<Pty>) -> Result<(), Fault> {
    rustix::process::setsid().step(|| "start the program's session".to_owned())?;
    if let Some(pty) = pty {
        take_terminal(&pty).step(|| "give the program its terminal".to_owned())?;
    }
    rustix::process::chdir(&spec.workdir).map_err(|error| {
        let fault = Fault::new(format!("enter the working directory {}", spec.workdir.display()), &error.into());
        fault.with_remedy("; it is a path inside the sandbox: show it there with --mount, or choose another with -w")
    })?;
    set_limits(spec).step(|| "limit the program".to_owned())?;
    if let View::Host(_) = spec.place.view {
        // No pid namespace ends it with its pid 1.
        process::die_with_parent().step(|| "ask for a signal at the end of what started it".to_owned())?;
    }
    confine::keep_capabilities(&spec.capabilities).step(|| "drop capabilities".to_owned())?;
    confine::no_new_privileges().step(|| "renounce new privileges".to_owned())?;
    if let View::Host(sockets) = spec.place.view {
        bare::restrict_paths(spec, sockets)?;
    } else if !spec.allow_userns {
        // Landlock forbids every mount, also in a namespace of the program's own, which is what those are for.
        restrict_paths(spec).step(|| "restrict paths with Landlock".to_owned())?;
    }
    process::reset_signals(&KEPT_IGNORED).step(|| "reset the program's signals".to_owned())?;
    process::close_others_on_exec().step(|| "close descriptors".to_owned())?;
    for filter in filters {
        confine::install_seccomp(filter).map_err(|error| crate::builder::fault(&error))?;
    }
    Ok(())
}

fn take_terminal(pty: &Pty) -> io::Result<()> {
    tty::control(&pty.terminal)?;
    rustix::stdio::dup2_stdin(&pty.terminal)?;
    rustix::stdio::dup2_stdout(&pty.terminal)?;
    Ok(rustix::stdio::dup2_stderr(&pty.terminal)?)
}

fn set_limits(spec: &SandboxSpec) -> io::Result<()> {
    let limit = |resource, value: u64| {
        rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
    };
    // What a core dump helper of the host would be fed with comes from a hostile program.
    limit(Resource::Core, 0)?;
    process::lower_descriptor_limit()?;
    if let Some(pids) = spec.limits.pids {
        // Counted per user namespace since Linux 5.14, so these are the sandbox's own; its pid 1 is one of them.
        limit(Resource::Nproc, u64::from(pids).saturating_add(1))?;
    }
    Ok(())
}

/// Landlock's rules are made of files, and these are found by path at every start of a program, when others in the sandbox may
/// have moved what lies on the way. What is not found where it was mounted is left out: the program gets less.
fn restrict_paths(spec: &SandboxSpec) -> io::Result<()> {
    let own = plan::writable_paths().map(|path| (path, PathAccess::WriteAndConnect));
    let own = own.filter_map(|(path, access)| Some((mounted(&path)?, access)));
    let project = spec.place.project.iter().filter_map(|path| writable(mounted(path)?));
    let mounts = spec.place.mounts.iter().filter_map(|mount| {
        let place = mounted(&mount.target)?;
        match (is_socket(&place), mount.read_only) {
            // Somebody named this very socket: it is meant to be used.
            (true, _) => Some((place, PathAccess::WriteAndConnect)),
            (false, false) => writable(place),
            (false, true) => None,
        }
    });
    let sockets = spec.sockets.iter().filter_map(|path| mounted(path).filter(is_socket));
    let sockets = sockets.map(|socket| (socket, PathAccess::WriteAndConnect));
    let devices = (open_trusted(Path::new("/dev"))?, PathAccess::WriteAndConnect);
    let all = (open_trusted(Path::new("/"))?, PathAccess::Read);
    let rules: Vec<_> = own.chain(project).chain(mounts).chain(sockets).chain([devices, all]).collect();
    confine::landlock_opened(&rules)?;
    Ok(())
}

/// What is mounted at a path of the sandbox. Nobody inside can mount, so it is something that was shown there.
fn mounted(path: &Path) -> Option<OwnedFd> {
    open_trusted(path).ok().filter(|place| place::is_mount(place.as_fd()).unwrap_or(false))
}

fn writable(place: OwnedFd) -> Option<(OwnedFd, PathAccess)> {
    // A mount of another target may have got here together with the directory around it.
    (!is_read_only(&place)).then_some((place, PathAccess::Write))
}

/// Opens a path one name at a time. A symbolic link is followed where nobody inside could have put it: on a read-only mount.
fn open_trusted(path: &Path) -> rustix::io::Result<OwnedFd> {
    /// As of the kernel, path_resolution(7).
    const MOST_LINKS: usize = 40;
    let open = |directory: BorrowedFd<'_>, name: &OsStr| {
        rustix::fs::openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    };
    let root = || open(CWD, OsStr::new("/"));
    let mut at = root()?;
    let mut links = 0;
    let mut rest: Vec<OsString> = names_reversed(path);
    while let Some(name) = rest.pop() {
        let next = open(at.as_fd(), &name)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode) != FileType::Symlink {
            at = next;
            continue;
        }
        links += 1;
        if links > MOST_LINKS || !is_read_only(&next) {
            return Err(Errno::LOOP);
        }
        let target = rustix::fs::readlinkat(&next, "", Vec::new())?;
        let target = Path::new(OsStr::from_bytes(target.to_bytes()));
        if target.is_absolute() {
            at = root()?;
        }
        rest.extend(names_reversed(target));
    }
    Ok(at)
}

fn names_reversed(path: &Path) -> Vec<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

fn is_read_only(place: &OwnedFd) -> bool {
    rustix::fs::fstatvfs(place).is_ok_and(|status| status.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn is_socket(place: &OwnedFd) -> bool {
    rustix::fs::fstat(place).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Socket)
}

/// Executes the program. Returns only the reason why that failed.
fn execute(spec: &SandboxSpec) -> io::Error {
    let Some(name) = spec.command.first() else { return io::ErrorKind::NotFound.into() };
    let run = |path: &OsStr| process::exec(path, &spec.command, &spec.env);
    if name.as_bytes().contains(&b'/') {
        return run(name);
    }
    // As execvp(3): go on past what is missing, remember what may not be executed.
    let mut denied = None;
    for directory in search_path(&spec.env) {
        let error = run(directory.join(name).as_os_str());
        let kind = error.kind();
        if kind == io::ErrorKind::PermissionDenied {
            denied = Some(error);
        } else if kind != io::ErrorKind::NotFound && kind != io::ErrorKind::NotADirectory {
            return error;
        }
    }
    denied.unwrap_or_else(|| io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error()))
}

/// The directories in which programs are looked for.
pub(crate) fn search_path(environment: &[(OsString, OsString)]) -> Vec<PathBuf> {
    let path = environment.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))).collect()
}
