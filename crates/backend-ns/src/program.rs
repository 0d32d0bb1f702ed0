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
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cofferdam_sys::confine::{self, Filter, PathAccess};
use cofferdam_sys::process;
use cofferdam_sys::tty::{self, Pty};
use rustix::process::{Resource, Rlimit};

use crate::init::{KEPT_IGNORED, OwnProgram};
use crate::wire::{self, Fault, Message, Step as _};
use crate::{SandboxSpec, plan};

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
    confine::keep_capabilities(&spec.capabilities).step(|| "drop capabilities".to_owned())?;
    confine::no_new_privileges().step(|| "renounce new privileges".to_owned())?;
    if !spec.allow_userns {
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

fn restrict_paths(spec: &SandboxSpec) -> io::Result<()> {
    let own = plan::writable_paths().map(|path| (path, PathAccess::WriteAndConnect));
    let project = spec.place.project.iter().map(|path| (path.clone(), PathAccess::Write));
    let mounts = spec.place.mounts.iter().filter_map(|mount| {
        let is_socket = std::fs::metadata(&mount.target)
            .is_ok_and(|metadata| std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()));
        match (is_socket, mount.read_only) {
            // Somebody named this very socket: it is meant to be used.
            (true, _) => Some((mount.target.clone(), PathAccess::WriteAndConnect)),
            (false, false) => Some((mount.target.clone(), PathAccess::Write)),
            (false, true) => None,
        }
    });
    let sockets = spec.sockets.iter().map(|path| (path.clone(), PathAccess::WriteAndConnect));
    let paths: Vec<(PathBuf, PathAccess)> = own.chain(project).chain(mounts).chain(sockets).collect();
    let mut rules: Vec<(&Path, PathAccess)> = paths.iter().map(|(path, access)| (path.as_path(), *access)).collect();
    rules.push((Path::new("/"), PathAccess::Read));
    confine::landlock_paths(&rules)?;
    Ok(())
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
