//! Files that a run leaves behind for its user.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use cofferdam_backend_ns::{ResolveError, open_directory, resolve};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Why a report has no place.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A part of the path before the last is a symbolic link that a sandbox may have left.
    #[error(transparent)]
    Path(ResolveError),
    #[error("it is a symbolic link, which is not followed; name the file itself")]
    Link,
    #[error("it is {0} and not a regular file; name a file, or - for standard output")]
    NotAFile(&'static str),
    #[error("it is {0} and not a socket; name one that somebody listens on, or a file without `unix:`")]
    NotASocket(&'static str),
    #[error("nobody listens on it; start its reader first, as a stream socket ({0})")]
    Unheard(io::Error),
    #[error("{0}")]
    System(io::Error),
}

/// Creates a file for what a run leaves behind, before the run starts, readable by its owner alone. What was in it is gone.
///
/// A program in an earlier run may have put something else there, to have us write over what it cannot reach itself, or
/// wait for ever: so no symbolic link beneath `roots`, which sandboxes can write to, is followed, nor is one at the end of
/// any path, and whatever is no regular file is refused. `/dev` and `/proc` are the machine's own: `/dev/stderr` is
/// a link, and what it leads to may hold something already.
///
/// # Errors
/// When the file cannot be made, or is none.
pub fn create_report(path: &Path, roots: &[PathBuf]) -> Result<File, ReportError> {
    if path.starts_with("/dev") || path.starts_with("/proc") {
        return OpenOptions::new().write(true).open(path).map_err(ReportError::System);
    }
    let refused = |errno: Errno| ReportError::System(errno.into());
    let path = std::path::absolute(path).map_err(ReportError::System)?;
    let (directory, name) = parent_of(&path, roots)?;
    // Looked at before it is opened, since opening a device may do something to it.
    match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(status) => is_file(FileType::from_raw_mode(status.st_mode))?,
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(refused(errno)),
    }
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&directory, name, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => file,
        Err(Errno::LOOP) => return Err(ReportError::Link),
        Err(errno) => return Err(refused(errno)),
    };
    // And again, should another one lie there by now.
    is_file(FileType::from_raw_mode(rustix::fs::fstat(&file).map_err(refused)?.st_mode))?;
    rustix::fs::ftruncate(&file, 0).map_err(refused)?;
    Ok(File::from(file))
}

/// Connects to a stream socket on which somebody listens for what a run leaves behind, before the run starts.
///
/// As with [`create_report`], no symbolic link is followed where a sandbox may have left one, nor one at the end: what is
/// connected to is the socket that was looked at.
///
/// # Errors
/// When it is no socket, or nobody listens on it.
pub fn connect_report(path: &Path, roots: &[PathBuf]) -> Result<UnixStream, ReportError> {
    let refused = |errno: Errno| ReportError::System(errno.into());
    let path = std::path::absolute(path).map_err(ReportError::System)?;
    let (directory, name) = parent_of(&path, roots)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::openat(&directory, name, flags, Mode::empty()).map_err(refused)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&socket).map_err(refused)?.st_mode);
    if kind != FileType::Socket {
        return Err(if kind == FileType::Symlink { ReportError::Link } else { ReportError::NotASocket(word(kind)) });
    }
    // It must not wait for somebody who takes no connection; afterwards only a thread of its own waits.
    let kind = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, kind, None).map_err(refused)?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", socket.as_raw_fd())).map_err(refused)?;
    rustix::net::connect(&stream, &address).map_err(|errno| ReportError::Unheard(errno.into()))?;
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(false).map_err(ReportError::System)?;
    Ok(stream)
}

/// The directory that something is in, and its name there.
fn parent_of<'a>(path: &'a Path, roots: &[PathBuf]) -> Result<(OwnedFd, &'a OsStr), ReportError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ReportError::NotAFile("a directory"));
    };
    let parent = match resolve(parent, roots) {
        Ok(parent) => parent,
        Err(ResolveError::Missing { source, .. }) => return Err(ReportError::System(source)),
        Err(link @ ResolveError::Link { .. }) => return Err(ReportError::Path(link)),
    };
    Ok((open_directory(&parent).map_err(ReportError::System)?, name))
}

fn is_file(kind: FileType) -> Result<(), ReportError> {
    if kind == FileType::RegularFile {
        return Ok(());
    }
    Err(if kind == FileType::Symlink { ReportError::Link } else { ReportError::NotAFile(word(kind)) })
}

fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Symlink => "a symbolic link",
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_report_is_private_and_never_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        create_report(&path, &[]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "from before").unwrap();
        create_report(&path, &[]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        std::fs::write(&path, "kept").unwrap();
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(create_report(&link, &[]), Err(ReportError::Link)));
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
        assert!(create_report(Path::new("/dev/null"), &[]).is_ok());
        assert!(create_report(Path::new("/dev/stderr"), &[]).is_ok());
    }

    #[test]
    fn directories_on_the_way_are_not_links_where_a_sandbox_can_write() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(home.join("project")).unwrap();
        std::fs::create_dir_all(home.join("secret")).unwrap();
        symlink(home.join("secret"), home.join("project/out")).unwrap();
        let path = home.join("project/out/events.jsonl");
        let roots = [home.join("project")];
        let refused = create_report(&path, &roots);
        assert!(matches!(refused, Err(ReportError::Path(ResolveError::Link { .. }))), "{refused:?}");
        assert!(!home.join("secret/events.jsonl").exists());
        // A link of the user's own is.
        create_report(&path, &[]).unwrap();
        assert!(home.join("secret/events.jsonl").exists());
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        for (name, kind) in [("fifo", "a FIFO"), ("socket", "a socket"), ("directory", "a directory")] {
            match create_report(&at(name), &[]) {
                Err(ReportError::NotAFile(found)) => assert_eq!(found, kind),
                other => panic!("{name}: {other:?}"),
            }
        }
        // As root a device can be made as well.
        if rustix::fs::mknodat(
            rustix::fs::CWD,
            at("null"),
            FileType::CharacterDevice,
            Mode::RWXU,
            rustix::fs::makedev(1, 3),
        )
        .is_ok()
        {
            assert!(matches!(create_report(&at("null"), &[]), Err(ReportError::NotAFile("a device"))));
        }
        assert!(matches!(create_report(Path::new("/"), &[]), Err(ReportError::NotAFile(_))));
    }

    #[test]
    fn a_socket_is_connected_to_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let listener = UnixListener::bind(at("socket")).unwrap();
        let mut stream = connect_report(&at("socket"), &[]).unwrap();
        io::Write::write_all(&mut stream, b"{}\n").unwrap();
        drop(stream);
        let heard = io::read_to_string(listener.accept().unwrap().0).unwrap();
        assert_eq!(heard, "{}\n");
        symlink(at("socket"), at("link")).unwrap();
        assert!(matches!(connect_report(&at("link"), &[]), Err(ReportError::Link)));
        std::fs::write(at("file"), "").unwrap();
        assert!(matches!(connect_report(&at("file"), &[]), Err(ReportError::NotASocket("a file"))));
        assert!(matches!(connect_report(&at("absent"), &[]), Err(ReportError::System(_))));
        let _datagrams = std::os::unix::net::UnixDatagram::bind(at("datagrams")).unwrap();
        assert!(matches!(connect_report(&at("datagrams"), &[]), Err(ReportError::Unheard(_))));
        // Nor somebody who never takes the connection.
        let full: Vec<_> = (0..10_000).map_while(|_| connect_report(&at("socket"), &[]).ok()).collect();
        assert!(!full.is_empty() && full.len() < 10_000, "{}", full.len());
        drop(listener);
        let unheard = connect_report(&at("socket"), &[]).unwrap_err();
        assert!(unheard.to_string().contains("nobody listens"), "{unheard}");
        // A directory on the way that a sandbox may have linked.
        std::fs::create_dir(at("project")).unwrap();
        symlink(dir.path(), at("project/out")).unwrap();
        let home = dir.path().canonicalize().unwrap();
        let refused = connect_report(&home.join("project/out/socket"), &[home.join("project")]);
        assert!(matches!(refused, Err(ReportError::Path(ResolveError::Link { .. }))), "{refused:?}");
    }
}
