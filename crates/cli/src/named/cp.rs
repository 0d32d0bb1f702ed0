//! `cofferdam cp`: files into a sandbox and out of it, as a stream.
//!
//! What is in the sandbox is read and written by a run in it, which sees what programs there see: links lead where they lead
//! inside. A process of ours outside makes the archive or takes it apart, confined to the place where that happens.
//!
//! No function of ours runs in a guest: there it is the guest's own `tar`, and whatever that says is taken apart here as any archive.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cofferdam_control::named::{self, BackendEntry, ExecOptions};
use cofferdam_control::summary::escaped_json;
use cofferdam_control::{EventLog, OwnProgram, RunOptions, open_directory, resolve};
use cofferdam_sys::confine::{self, PathAccess};
use cofferdam_sys::ns::{self, Fork};
use cofferdam_sys::process;
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{WaitId, WaitIdOptions};

use super::archive::{self, Left, Links};
use super::{environment_of, open};
use crate::args::CpArgs;
use crate::output;
use crate::refusal::{EXIT_FAILED, Refusal};
use crate::run;

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Stream,
    Here(PathBuf),
    Inside(String, PathBuf),
}

impl End {
    fn parse(word: &OsStr) -> End {
        if word == "-" {
            return End::Stream;
        }
        let is_name = |name: &str| name.parse::<named::SandboxName>().is_ok();
        let bytes = word.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':').and_then(|at| bytes.split_at_checked(at));
        match colon.map(|(name, path)| (std::str::from_utf8(name), path.get(1..).unwrap_or_default())) {
            Some((Ok(name), path)) if is_name(name) => {
                End::Inside(name.to_owned(), Path::new("/home/user").join(OsStr::from_bytes(path)))
            }
            _ => End::Here(PathBuf::from(word)),
        }
    }
}

/// For whom is said what was left out and what went wrong, always on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Person,
    /// Who gets JSON lines.
    Program,
}

/// How a run inside is told that it is [`Reader::Program`].
const FOR_PROGRAMS: &str = "--json";

impl Reader {
    /// Of a run inside, by what comes behind its path.
    fn of(arguments: &[OsString]) -> Reader {
        if arguments.get(1).is_some_and(|word| word == FOR_PROGRAMS) { Reader::Program } else { Reader::Person }
    }

    fn arguments(self, path: &Path) -> Vec<OsString> {
        let more = (self == Reader::Program).then(|| FOR_PROGRAMS.into());
        [path.as_os_str().to_owned()].into_iter().chain(more).collect()
    }

    fn refused(self, refusal: &Refusal) -> u8 {
        match self {
            Reader::Person => refusal.tell(false),
            Reader::Program => {
                json_line(&refusal.to_json());
                refusal.status
            }
        }
    }

    fn left_out(self, what: &str) {
        match self {
            Reader::Person => output::say(&format!("left out: {what}")),
            Reader::Program => json_line(&serde_json::json!({ "left_out": what })),
        }
    }

    fn notice(self, text: &str) {
        match self {
            Reader::Person => output::say(text),
            Reader::Program => json_line(&serde_json::json!({ "notice": text })),
        }
    }
}

/// Nothing in it moves a terminal, whatever a sandbox has put there.
fn json_line(value: &serde_json::Value) {
    output::to_stderr(&format!("{}\n", escaped_json(&value.to_string())));
}

/// What went wrong with a copy.
fn failed(text: String) -> Refusal {
    Refusal::setup(text).with_status(EXIT_FAILED)
}

pub(crate) fn cp(args: &CpArgs) -> u8 {
    let reader = if args.json { Reader::Program } else { Reader::Person };
    let copied = match (End::parse(&args.from), End::parse(&args.to)) {
        (End::Inside(name, path), End::Stream) => copy_out(&name, &path, None, reader),
        (End::Inside(name, path), End::Here(to)) => copy_out(&name, &path, Some(&to), reader),
        (End::Stream, End::Inside(name, path)) => copy_in(None, &name, &path, reader),
        (End::Here(from), End::Inside(name, path)) => copy_in(Some(&from), &name, &path, reader),
        (End::Stream | End::Here(_), End::Stream | End::Here(_)) | (End::Inside(..), End::Inside(..)) => {
            Err(failed("one of the two has to be in a sandbox, as NAME:PATH, and the other not".to_owned()))
        }
    };
    match copied {
        Ok(status) => status,
        Err(refusal) => reader.refused(&refusal.with_status(EXIT_FAILED)),
    }
}

fn copy_out(name: &str, path: &Path, to: Option<&Path>, reader: Reader) -> Result<u8, Refusal> {
    let is_guest = is_guest(name)?;
    let run = |name: &str| match is_guest {
        true => run_in_guest(name, Does::Pack, path, reader),
        false => run_inside(name, path, pack_inside, reader),
    };
    if to.is_none() && rustix::termios::isatty(rustix::stdio::stdout()) {
        // It would act on what a sandbox has put into its files.
        return Err(failed(
            "a terminal is no place for an archive: pipe it to `tar -t`, or write it to a file".to_owned(),
        ));
    }
    let Some(to) = to else { return Ok(ended(run(name)?, 0, is_guest, reader)) };
    let mut place = destination(to).map_err(failed)?;
    if place.called.is_none() {
        // As it was named here: what it is called in the archive, the sandbox says.
        let nameless = "name what is to be copied: neither / nor a path that ends in .. has a name";
        place.called = Some(path.file_name().ok_or_else(|| failed(nameless.to_owned()))?.to_owned());
    }
    let (input, output) = pipe()?;
    let unpacker = beside(&[input.as_fd(), place.directory.as_fd()], reader, || {
        // Whatever the archive makes this process do, it does it there.
        let _absent = confine::landlock_paths(&[(&place.path, PathAccess::Write)]);
        let input = std::fs::File::from(input.try_clone()?);
        archive::unpack(io::BufReader::new(input), &place.directory, place.called.as_deref(), Links::Contained)
    })?;
    drop(input);
    let status = with_stream(output, rustix::stdio::dup2_stdout, || run(name))?;
    Ok(ended(status, unpacker.wait(), is_guest, reader))
}

fn copy_in(from: Option<&Path>, name: &str, path: &Path, reader: Reader) -> Result<u8, Refusal> {
    let is_guest = is_guest(name)?;
    let Some(from) = from else {
        let status = match is_guest {
            true => run_in_guest(name, Does::Unpack, path, reader)?,
            false => run_inside(name, path, unpack_stream_inside, reader)?,
        };
        return Ok(ended(status, 0, is_guest, reader));
    };
    let source = source(from).map_err(failed)?;
    let mut into = path;
    let mut renamed = None;
    if is_guest && run_in_guest(name, Does::IsDirectory, path, reader)? != 0 {
        into = path.parent().unwrap_or(path);
        renamed = path.file_name();
    }
    let run = |name: &str| match is_guest {
        true => run_in_guest(name, Does::Unpack, into, reader),
        false => run_inside(name, path, unpack_inside, reader),
    };
    let (input, output) = pipe()?;
    let packer = beside(&[output.as_fd(), source.directory.as_fd()], reader, || {
        let out = std::fs::File::from(output.try_clone()?);
        let called = source.called.as_deref().unwrap_or(OsStr::new("."));
        let name = renamed.unwrap_or(called);
        archive::pack(source.directory.as_fd(), called, Path::new(name), io::BufWriter::new(out))
    })?;
    drop(output);
    let status = with_stream(input, rustix::stdio::dup2_stdin, || run(name))?;
    Ok(ended(status, packer.wait(), is_guest, reader))
}

/// The exit status of a copy, whatever its part in the sandbox ended with. Ours have told what went wrong, there and here.
fn ended(inside: u8, here: u8, is_guest: bool, reader: Reader) -> u8 {
    match (inside, here) {
        (0, 0) => 0,
        (_, 0) if !is_guest => EXIT_FAILED,
        (status, 0) => reader.refused(&failed(format!("what copies in the sandbox failed, with status {status}"))),
        (_, _) => EXIT_FAILED,
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Refusal> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(format!("no pipe: {error}")))
}

/// A directory of the host, and a name in it.
struct Place {
    directory: OwnedFd,
    path: PathBuf,
    called: Option<OsString>,
}

/// No link that a sandbox may have left is followed on the way to a place of the host.
fn real(path: &Path) -> Result<PathBuf, String> {
    let network = cofferdam_policy::file::default_network();
    let roots = run::suspect_roots(&RunOptions::new(Vec::new(), network));
    let absolute = std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))?;
    resolve(&absolute, &roots).map_err(|error| error.to_string())
}

fn place(directory: &Path, called: Option<&OsStr>) -> Result<Place, String> {
    let readable = |fd: OwnedFd| {
        rustix::fs::openat(&fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, FileMode::empty())
    };
    let opened = open_directory(directory).and_then(|fd| Ok(readable(fd)?));
    let opened = opened.map_err(|error| format!("cannot open {}: {error}", directory.display()))?;
    Ok(Place { directory: opened, path: directory.to_owned(), called: called.map(OsStr::to_owned) })
}

fn destination(to: &Path) -> Result<Place, String> {
    if let Ok(real) = real(to)
        && real.is_dir()
    {
        return place(&real, None);
    }
    let absolute = std::path::absolute(to).map_err(|error| format!("{}: {error}", to.display()))?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => place(&real(parent)?, Some(name)),
        (None, _) | (_, None) => Err(format!("{} is no place for a copy", to.display())),
    }
}

fn source(from: &Path) -> Result<Place, String> {
    let real = real(from)?;
    match (real.parent(), real.file_name()) {
        (Some(parent), Some(name)) => place(parent, Some(name)),
        (None, _) | (_, None) => Err("the root directory cannot be copied".to_owned()),
    }
}

/// A process of ours beside the run, which has one end of its stream.
struct Beside(ns::Child);

fn beside(
    kept: &[std::os::fd::BorrowedFd<'_>],
    reader: Reader,
    act: impl FnOnce() -> io::Result<Left>,
) -> Result<Beside, Refusal> {
    match ns::fork().map_err(|error| failed(format!("cannot start a process: {error}")))? {
        Fork::Parent(child) => Ok(Beside(child)),
        Fork::Child => process::run_and_exit(|| {
            let act = || {
                process::die_with_parent()?;
                process::close_all_except(kept)?;
                act()
            };
            report(act(), Broken::IsTold, reader)
        }),
    }
}

impl Beside {
    fn wait(self) -> u8 {
        let wait = || rustix::process::waitid(WaitId::PidFd(self.0.pidfd.as_fd()), WaitIdOptions::EXITED);
        let status = rustix::io::retry_on_intr(wait).ok().flatten().and_then(|status| status.exit_status());
        status.and_then(|status| u8::try_from(status).ok()).unwrap_or(EXIT_FAILED)
    }
}

/// What a stream means that the other end has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// The other end has said why.
    IsTold,
    IsAnError,
}

/// Says what was left out or went wrong, on standard error.
fn report(done: io::Result<Left>, broken: Broken, reader: Reader) -> u8 {
    match done {
        Ok(left) => {
            let lines = left.lines();
            lines.iter().for_each(|left| reader.left_out(left));
            if lines.is_empty() { 0 } else { EXIT_FAILED }
        }
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe && broken == Broken::IsTold => EXIT_FAILED,
        Err(error) => reader.refused(&failed(format!("cannot copy: {error}"))),
    }
}

/// Has one of this process's standard streams be `stream` while something is done, and nothing from then on.
fn with_stream(
    stream: OwnedFd,
    put: fn(OwnedFd) -> rustix::io::Result<()>,
    act: impl FnOnce() -> Result<u8, Refusal>,
) -> Result<u8, Refusal> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, FileMode::empty());
    let null = null.map_err(not_redirected)?;
    put(stream).map_err(not_redirected)?;
    let done = act();
    put(null).map_err(not_redirected)?;
    done
}

fn not_redirected(errno: Errno) -> Refusal {
    failed(format!("cannot redirect a stream: {errno}"))
}

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Writes an archive of a path.
    Pack,
    /// Reads an archive, and takes it apart in a directory.
    Unpack,
    /// Says by its exit status whether a path is a directory.
    IsDirectory,
}

impl Does {
    /// The same in the guest's own words: `$1` is an absolute path there.
    fn script(self) -> &'static str {
        match self {
            Does::Pack => {
                r#"real=$(realpath "$1") || exit $?
[ "$real" != / ] || { echo 'the root directory cannot be copied' >&2; exit 1; }
exec tar -c -f - -C "${real%/*}/" -- "${real##*/}""#
            }
            Does::Unpack => r#"exec tar -x -o -f - -C "$1""#,
            Does::IsDirectory => r#"[ -d "$1" ]"#,
        }
    }

    /// Takes those of this process's streams away that a guest has no business with: it may read and write what it likes.
    fn take_streams(self) -> rustix::io::Result<()> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, FileMode::empty())?;
        if self != Does::Unpack {
            rustix::stdio::dup2_stdin(&null)?;
        }
        if self != Does::Pack {
            rustix::stdio::dup2_stdout(&null)?;
        }
        Ok(())
    }
}

/// Whether a sandbox is a virtual machine.
fn is_guest(name: &str) -> Result<bool, Refusal> {
    let spec = open(name)?.spec().map_err(|error| Refusal::from(&error))?;
    Ok(spec.backend == BackendEntry::Vm)
}

/// Has a guest do something with a path.
fn run_in_guest(name: &str, does: Does, path: &Path, reader: Reader) -> Result<u8, Refusal> {
    let entry = open(name)?;
    let session = named::enter(&entry).map_err(|error| Refusal::from(&error))?;
    let env = environment_of(session.spec(), &[])?;
    let command = ["sh", "-c", does.script(), "sh"].into_iter().map(OsString::from).chain([path.into()]).collect();
    let options = ExecOptions { env, workdir: Some("/".into()), ..ExecOptions::new(command) };
    let mut notices = Vec::new();
    let finished = with_guest_heard(reader, || {
        does.take_streams().map_err(not_redirected)?;
        let mut tell = |text: &str| notices.push(text.to_owned());
        let finished = session.exec(options, &mut EventLog::none(), &mut tell, &mut || {});
        finished.map_err(|error| Refusal::from(&error))
    });
    notices.iter().for_each(|notice| reader.notice(notice));
    match finished?.exit_status {
        127 => Err(failed("the guest has no `tar` or no `realpath`, and a copy needs both there".to_owned())),
        status => Ok(status),
    }
}

/// Has a process of ours read what is written to standard error while something is done: in a guest that is anybody, and a terminal
/// would act on it.
fn with_guest_heard<T>(reader: Reader, act: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    let (input, output) = pipe()?;
    let hearer = beside(&[input.as_fd()], reader, || {
        let said = std::fs::File::from(input.try_clone()?);
        hear(said, |line| reader.notice(line)).map(|()| Left::default())
    })?;
    drop(input);
    let ours = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3).map_err(not_redirected)?;
    rustix::stdio::dup2_stderr(output).map_err(not_redirected)?;
    let done = act();
    rustix::stdio::dup2_stderr(ours).map_err(not_redirected)?;
    hearer.wait();
    done
}

/// The most that is passed on of what a guest says, in bytes: a complaint about every file of a large tree is longer than anybody reads.
const HEARD: u64 = 64 << 10;
const HEARD_LINES: usize = 1000;

/// Passes on what a guest says, line by line and in bounds, and reads the rest.
fn hear(said: impl Read, mut tell: impl FnMut(&str)) -> io::Result<()> {
    let mut said = io::BufReader::new(said);
    let mut first = said.by_ref().take(HEARD);
    let mut line = Vec::new();
    let mut lines = 0;
    while lines < HEARD_LINES && first.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if !text.is_empty() {
            tell(&format!("the guest says: {text}"));
            lines += 1;
        }
        line.clear();
    }
    if io::copy(&mut said, &mut io::sink())? > 0 {
        tell("the guest says more, which is left out");
    }
    Ok(())
}

/// Runs a function of ours in a sandbox, without a network.
fn run_inside(name: &str, path: &Path, own: OwnProgram, reader: Reader) -> Result<u8, Refusal> {
    let entry = open(name)?;
    let session = named::enter(&entry).map_err(|error| Refusal::from(&error))?;
    let env = environment_of(session.spec(), &[])?;
    let mut network = cofferdam_policy::file::default_network();
    network.enabled = false;
    let options = ExecOptions {
        own: Some(own),
        env,
        workdir: Some("/".into()),
        network: Some(network),
        ..ExecOptions::new(reader.arguments(path))
    };
    let finished = session.exec(options, &mut EventLog::none(), &mut |text| reader.notice(text), &mut || {});
    finished.map(|finished| finished.exit_status).map_err(|error| Refusal::from(&error))
}

/// In the sandbox: writes the archive of a path to standard output.
fn pack_inside(arguments: &[OsString]) -> u8 {
    let act = || -> io::Result<Left> {
        let path = Path::new(arguments.first().ok_or(io::ErrorKind::InvalidInput)?);
        // What was named may be a link; where it leads, it leads inside.
        let real = path
            .canonicalize()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the root directory cannot be copied"));
        };
        let called = path.file_name().unwrap_or(name);
        archive::pack(open_inside(parent)?.as_fd(), name, Path::new(called), io::stdout().lock())
    };
    report(act(), Broken::IsAnError, Reader::of(arguments))
}

/// In the sandbox: takes an archive from standard input apart at a path, or in the directory that is there.
fn unpack_inside(arguments: &[OsString]) -> u8 {
    let act = || -> io::Result<Left> {
        let path = Path::new(arguments.first().ok_or(io::ErrorKind::InvalidInput)?);
        let (directory, called) = match path.is_dir() {
            true => (path, None),
            false => (path.parent().unwrap_or(path), path.file_name()),
        };
        archive::unpack(io::stdin().lock(), &open_inside(directory)?, called, Links::All)
    };
    drain(report(act(), Broken::IsAnError, Reader::of(arguments)))
}

/// In the sandbox: takes an archive of the user's apart in a directory.
fn unpack_stream_inside(arguments: &[OsString]) -> u8 {
    let act = || -> io::Result<Left> {
        let path = Path::new(arguments.first().ok_or(io::ErrorKind::InvalidInput)?);
        archive::unpack(io::stdin().lock(), &open_inside(path)?, None, Links::All)
    };
    drain(report(act(), Broken::IsAnError, Reader::of(arguments)))
}

/// Reads what follows the end of an archive, which whoever writes it fills blocks with.
fn drain(status: u8) -> u8 {
    let _whatever = io::copy(&mut io::stdin().lock(), &mut io::sink());
    let _flushed = io::stdout().flush();
    status
}

fn open_inside(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, FileMode::empty())
        .map_err(|errno| io::Error::new(io::Error::from(errno).kind(), format!("{}: {errno}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_in_a_sandbox() {
        let inside = |name: &str, path: &str| End::Inside(name.to_owned(), path.into());
        for (word, end) in [
            ("-", End::Stream),
            ("box:/a", inside("box", "/a")),
            ("box:a", inside("box", "/home/user/a")),
            ("box:", inside("box", "/home/user/")),
            ("./box:a", End::Here("./box:a".into())),
            ("/a:b", End::Here("/a:b".into())),
            ("Box:a", End::Here("Box:a".into())),
            ("a", End::Here("a".into())),
        ] {
            assert_eq!(End::parse(OsStr::new(word)), end, "{word}");
        }
    }

    #[test]
    fn a_sandbox_does_not_choose_the_exit_status_of_a_copy() {
        for is_guest in [false, true] {
            for (inside, here, status) in
                [(0, 0, 0), (1, 0, 1), (7, 0, 1), (125, 0, 1), (0, 1, 1), (7, 1, 1), (0, 255, 1)]
            {
                assert_eq!(ended(inside, here, is_guest, Reader::Person), status, "{inside} {here} {is_guest}");
            }
        }
    }

    #[test]
    fn of_a_guest_so_much_is_heard() {
        let hear = |said: &[u8]| {
            let mut told = Vec::new();
            hear(said, |line| told.push(line.to_owned())).unwrap();
            told
        };
        assert_eq!(hear(b"tar: x: \xff\n\n  \nlast"), ["the guest says: tar: x: \u{fffd}", "the guest says: last"]);
        let told = hear(&vec![b'x'; 1 << 20]);
        assert_eq!(told.len(), 2);
        assert_eq!(hear(&b"x\n".repeat(5000)).len(), HEARD_LINES + 1);
        assert!(told[0].len() < 66_000 && told[1] == "the guest says more, which is left out");
    }

    #[test]
    fn a_guest_without_a_program_says_so_by_its_status() {
        let dir = tempfile::tempdir().unwrap();
        for does in [Does::Pack, Does::Unpack] {
            let mut shell = std::process::Command::new("/bin/sh");
            shell.args(["-c", does.script(), "sh", "/"]).env("PATH", dir.path());
            assert_eq!(shell.output().unwrap().status.code(), Some(127), "{does:?}");
        }
    }
}
