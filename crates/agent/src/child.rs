//! What the forks of the agent do: become a program, read or write a file, mount.
//!
//! A fork says on its report what the host is to be told: `Started` or `Opened`, or why it could not be done. A report that
//! ends without words means that the program runs, or that a mount is done.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_guest_protocol::{CallId, Exec, Failure, FailureKind, Mount, MountKind, Put, ToHost};
use cofferdam_sys::process::{self, Groups};
use cofferdam_sys::tty;
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::boot::make_directory;
use crate::words::{Doing, Trouble};

/// Where programs are looked for without a `PATH`, as execvp(3) of most systems has it.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What a fork has at its standard streams.
#[derive(Debug)]
pub(crate) enum Streams {
    Pipes { input: Option<OwnedFd>, output: Option<OwnedFd>, error: Option<OwnedFd> },
    Terminal(OwnedFd),
}

/// What a fork is there for.
#[derive(Debug)]
pub(crate) enum Task {
    Exec(Exec),
    Put(Put),
    Get(Vec<u8>),
    Mount(Mount),
    Unmount(Vec<u8>),
}

/// The way on which a fork reports.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) call: CallId,
    pub(crate) pipe: File,
}

impl Report {
    fn say(&mut self, message: &ToHost) {
        let _gone = self.pipe.write_all(&message.emit());
    }

    fn fail(&mut self, kind: FailureKind, trouble: &Trouble) -> u8 {
        self.say(&ToHost::Failed { call: self.call, failure: Failure::new(kind, &trouble.to_string()) });
        1
    }
}

/// Where a file is written before it is put in its place: beside it, under a name that is no longer than most.
pub(crate) fn unfinished(path: &Path, call: CallId) -> PathBuf {
    path.with_file_name(format!(".cofferdam-{}", call.0))
}

/// Runs in the fork.
pub(crate) fn run(task: Task, streams: Streams, mut report: Report) -> u8 {
    // A session of its own: what is sent to a program's process group reaches nobody else.
    if let Err(trouble) = rustix::process::setsid().doing(|| "start apart from other processes".to_owned()) {
        return report.fail(FailureKind::Refused, &trouble);
    }
    let done = match task {
        Task::Exec(exec) => return execute(&exec, streams, &mut report),
        Task::Put(put) => write_file(&put, streams, &mut report),
        Task::Get(path) => read_file(&path, streams, &mut report),
        Task::Mount(mount) => mount_at(&mount),
        Task::Unmount(target) => {
            let target = Path::new(OsStr::from_bytes(&target));
            match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
                // Nothing is mounted there, or nothing is there at all: somebody in the guest has done it already.
                Err(Errno::INVAL | Errno::NOENT) => Ok(()),
                other => other.doing(|| format!("unmount {}", target.display())),
            }
        }
    };
    match done {
        Ok(()) => 0,
        Err(trouble) => report.fail(kind_of(&trouble.source), &trouble),
    }
}

fn kind_of(error: &io::Error) -> FailureKind {
    if error.kind() == io::ErrorKind::NotFound { FailureKind::NotFound } else { FailureKind::Refused }
}

/// Becomes the program. Comes back only when that failed.
fn execute(exec: &Exec, streams: Streams, report: &mut Report) -> u8 {
    if let Err(trouble) = prepare(exec, streams) {
        return report.fail(FailureKind::Refused, &trouble);
    }
    let (error, kind) = become_program(exec);
    let name = exec.argv.first().map_or(OsStr::new(""), |name| OsStr::from_bytes(name));
    report.fail(kind, &Trouble::new(format!("execute {}", name.display()), error))
}

fn prepare(exec: &Exec, streams: Streams) -> Result<(), Trouble> {
    attach(streams).doing(|| "attach the program's streams".to_owned())?;
    process::become_user(exec.uid, exec.gid, Groups::Clear)
        .doing(|| format!("become user {} and group {}", exec.uid, exec.gid))?;
    let cwd = Path::new(OsStr::from_bytes(&exec.cwd));
    rustix::process::chdir(cwd).doing(|| format!("enter the working directory {}", cwd.display()))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    process::reset_signals(&[]).doing(|| "reset the program's signals".to_owned())?;
    process::close_others_on_exec().doing(|| "close descriptors".to_owned())
}

fn attach(streams: Streams) -> io::Result<()> {
    match streams {
        Streams::Terminal(terminal) => {
            tty::control(&terminal)?;
            stand_in(Some(&terminal), Some(&terminal), Some(&terminal))
        }
        Streams::Pipes { input, output, error } => stand_in(input.as_ref(), output.as_ref(), error.as_ref()),
    }
}

fn stand_in(input: Option<&OwnedFd>, output: Option<&OwnedFd>, error: Option<&OwnedFd>) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let or_null = |stream: Option<&OwnedFd>| stream.map_or(null.as_fd(), AsFd::as_fd).try_clone_to_owned();
    rustix::stdio::dup2_stdin(or_null(input)?)?;
    rustix::stdio::dup2_stdout(or_null(output)?)?;
    Ok(rustix::stdio::dup2_stderr(or_null(error)?)?)
}

/// As execvp(3): goes on past what is missing, remembers what may not be executed.
fn become_program(exec: &Exec) -> (io::Error, FailureKind) {
    let os = |strings: &[Vec<u8>]| -> Vec<OsString> { strings.iter().cloned().map(OsString::from_vec).collect() };
    let argv = os(&exec.argv);
    let environment: Vec<(OsString, OsString)> = exec
        .env
        .iter()
        .filter_map(|entry| {
            let at = entry.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (entry.get(..at)?.to_vec(), entry.get(at + 1..)?.to_vec());
            Some((OsString::from_vec(name), OsString::from_vec(value)))
        })
        .collect();
    let Some(name) = argv.first() else { return (io::ErrorKind::NotFound.into(), FailureKind::NotFound) };
    let run = |path: &OsStr| process::exec(path, &argv, &environment);
    if name.as_bytes().contains(&b'/') {
        let error = run(name);
        let kind = if is_absent(&error) { FailureKind::NotFound } else { FailureKind::NotExecutable };
        return (error, kind);
    }
    let path = environment.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let mut denied = None;
    for directory in std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))) {
        let error = run(directory.join(name).as_os_str());
        if error.kind() == io::ErrorKind::PermissionDenied {
            denied = Some(error);
        } else if !is_absent(&error) {
            return (error, FailureKind::NotExecutable);
        }
    }
    match denied {
        Some(error) => (error, FailureKind::NotExecutable),
        None => (rustix::io::Errno::NOENT.into(), FailureKind::NotFound),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Writes the standard input into a file beside the place, and puts it there at the end.
fn write_file(put: &Put, streams: Streams, report: &mut Report) -> Result<(), Trouble> {
    let Streams::Pipes { input: Some(input), .. } = streams else { return Ok(()) };
    let path = Path::new(OsStr::from_bytes(&put.path));
    let doing = || format!("write {}", path.display());
    let unfinished = unfinished(path, report.call);
    // Nobody else makes a file of this name: the call's number is used once.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished).doing(doing)?;
    report.say(&ToHost::Started { call: report.call });
    let write = || -> io::Result<()> {
        io::copy(&mut File::from(input), &mut file)?;
        let made = file.metadata()?;
        // Some file systems keep no owners.
        if (made.uid(), made.gid()) != (put.uid, put.gid) {
            rustix::fs::fchown(&file, Some(Uid::from_raw(put.uid)), Some(Gid::from_raw(put.gid)))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(put.mode & 0o7777))?;
        fs::rename(&unfinished, path)
    };
    let written = write().doing(doing);
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

fn read_file(path: &[u8], streams: Streams, report: &mut Report) -> Result<(), Trouble> {
    let Streams::Pipes { output: Some(output), .. } = streams else { return Ok(()) };
    let path = Path::new(OsStr::from_bytes(path));
    let doing = || format!("read {}", path.display());
    // A pipe would have the open wait for a writer.
    let flags = rustix::fs::OFlags::RDONLY
        | rustix::fs::OFlags::NONBLOCK
        | rustix::fs::OFlags::CLOEXEC
        | rustix::fs::OFlags::NOCTTY;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty()).doing(doing)?);
    let about = file.metadata().doing(doing)?;
    if !about.is_file() {
        return Err(io::Error::other("it is no regular file")).doing(doing);
    }
    report.say(&ToHost::Opened { call: report.call, mode: about.mode() & 0o7777, size: about.len() });
    io::copy(&mut file, &mut File::from(output)).doing(doing)?;
    Ok(())
}

fn mount_at(mount: &Mount) -> Result<(), Trouble> {
    let (source, target) = (OsStr::from_bytes(&mount.source), Path::new(OsStr::from_bytes(&mount.target)));
    make_directory(target)?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, mount.read_only);
    let mut options = mount.options.clone();
    if let MountKind::Plan9 = mount.kind {
        // The transport that this machine has, in the newest form of the protocol.
        let own: &[u8] =
            if options.is_empty() { b"trans=virtio,version=9p2000.L" } else { b"trans=virtio,version=9p2000.L," };
        options.splice(0..0, own.iter().copied());
    }
    let doing = || format!("mount {} of type {} at {}", source.display(), mount.kind.word(), target.display());
    let options = CString::new(options).doing(doing)?;
    let data = (!options.is_empty()).then_some(options.as_c_str());
    rustix::mount::mount(source, target, mount.kind.word(), flags, data).doing(doing)
}
