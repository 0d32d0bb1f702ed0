//! Files that a run leaves behind for its user.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use cofferdam_backend_ns::{ResolveError, open_directory, resolve};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

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
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ReportError::NotAFile("a directory"));
    };
    let parent = match resolve(parent, roots) {
        Ok(parent) => parent,
        Err(ResolveError::Missing { source, .. }) => return Err(ReportError::System(source)),
        Err(link @ ResolveError::Link { .. }) => return Err(ReportError::Path(link)),
    };
    let directory = open_directory(&parent).map_err(ReportError::System)?;
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

fn is_file(kind: FileType) -> Result<(), ReportError> {
    Err(match kind {
        FileType::RegularFile => return Ok(()),
        FileType::Symlink => ReportError::Link,
        FileType::Directory => ReportError::NotAFile("a directory"),
        FileType::Fifo => ReportError::NotAFile("a FIFO"),
        FileType::Socket => ReportError::NotAFile("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => ReportError::NotAFile("a device"),
        FileType::Unknown => ReportError::NotAFile("something unknown"),
    })
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
}
