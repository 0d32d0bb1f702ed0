//! The state directory: what the sandboxes that stay and the records of runs have in common.
//!
//! Both are folders of entries. An entry is a directory that appears and disappears by one rename, with a lock (`flock`) that
//! is held for as long as something lives; the kernel lets go of it with the last process that has it, so nothing that is
//! written in a file, no process id above all, has to be believed.
//!
//! Nobody else may write here, and no sandbox sees it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::RunOptions;
use crate::remove::remove_tree;

/// The folder of the sandboxes that stay.
pub(crate) const SANDBOXES: &str = "sandboxes";
/// The folder of the records of runs.
pub(crate) const RUNS: &str = "runs";
/// The folder of what virtual machines start from.
const GUESTS: &str = "vm";

/// What is where, in words.
const FOLDERS: [(&str, &str); 3] = [
    (SANDBOXES, "the sandboxes that stay are kept"),
    (RUNS, "the records of runs are kept"),
    (GUESTS, "what virtual machines start from is kept"),
];

pub(crate) const LOCK: &str = "lock";

/// What of the host every sandbox sees, besides single links into it.
const SHOWN: [&str; 6] = ["/usr", "/opt", "/etc", "/bin", "/sbin", "/lib"];

/// The longest description of an entry that is read.
const LONGEST: u64 = 16 << 20;

/// Why something of the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "{path} belongs to somebody else or can be written to by others, so nothing can be kept there; \
         choose another state directory with XDG_STATE_HOME"
    )]
    Owner { path: PathBuf },
    #[error(
        "{path} cannot be shown in a sandbox, since {what} in {root}; show a directory below it or beside it",
        path = path.display(), root = root.display()
    )]
    Shown { path: PathBuf, what: &'static str, root: PathBuf },
    #[error("the socket {path} of the host cannot be shared: it lies where {what}, in {root}", path = path.display(), root = root.display())]
    Shared { path: PathBuf, what: &'static str, root: PathBuf },
    #[error("cannot {step} {path}", path = path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
}

/// Checks that no sandbox made from these options would see what is kept in the state directory `state`: neither as what is
/// shown, nor beneath it, nor above it.
///
/// # Errors
/// What would show it.
pub fn check_hidden(state: &Path, options: &RunOptions) -> Result<(), StateError> {
    FOLDERS.iter().try_for_each(|(folder, what)| check_folder_hidden(&state.join(folder), what, options))
}

fn check_folder_hidden(folder: &Path, what: &'static str, options: &RunOptions) -> Result<(), StateError> {
    let Some(root) = existing(folder) else { return Ok(()) };
    let shown = options.project.iter().chain(options.mounts.iter().map(|mount| &mount.source)).chain(&options.rootfs);
    let system = SHOWN.iter().map(Path::new).filter(|_| options.rootfs.is_none());
    for path in shown.map(PathBuf::as_path).chain(system) {
        // One that does not exist shows nothing, and is somebody else's error.
        let Ok(real) = path.canonicalize() else { continue };
        if root.starts_with(&real) || (real.starts_with(&root) && folder.exists()) {
            return Err(StateError::Shown { path: path.to_owned(), what, root: folder.to_owned() });
        }
    }
    for socket in &options.network.host_sockets {
        let path = Path::new(&socket.host);
        if path.canonicalize().is_ok_and(|real| real.starts_with(&root)) {
            return Err(StateError::Shared { path: path.to_owned(), what, root: folder.to_owned() });
        }
    }
    Ok(())
}

/// A path without symbolic links, the part of it that exists already; what is to be made there has none.
fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find_map(|ancestor| {
        let real = ancestor.canonicalize().ok()?;
        Some(real.join(path.strip_prefix(ancestor).ok()?))
    })
}

pub(crate) fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { step, path, source }
}

/// Makes a folder of the state directory, and closes it to others.
pub(crate) fn make_root(root: &Path) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(io_error("make", root))?;
    for path in [Some(root), root.parent()].into_iter().flatten() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| io_error("open", path)(errno.into()))?;
        check_owner(&directory, path)?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(io_error("close to others", root))
}

/// The folder of what virtual machines start from, made and closed to others.
///
/// # Errors
/// When it cannot be made, or others can write to it.
pub fn make_guests(state: &Path) -> Result<PathBuf, StateError> {
    let root = state.join(GUESTS);
    make_root(&root)?;
    Ok(root)
}

/// Checks that nobody else could have written what guests of one kind start from: a folder in that of [`make_guests`]. One that is
/// not there yet holds nothing.
///
/// # Errors
/// When somebody could.
pub fn check_guests(state: &Path, kind: &str) -> Result<PathBuf, StateError> {
    let root = state.join(GUESTS);
    let place = root.join(kind);
    for path in [state, &root, &place] {
        match open_entry(path) {
            Ok(directory) => check_owner(&directory, path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(io_error("open", path)(error)),
        }
    }
    Ok(place)
}

/// A directory that somebody else can write to would let them choose what is mounted into sandboxes of ours, and what is read
/// as ours.
pub(crate) fn check_owner(directory: &OwnedFd, path: &Path) -> Result<(), StateError> {
    let file = File::from(directory.try_clone().map_err(io_error("read", path))?);
    let metadata = file.metadata().map_err(io_error("read", path))?;
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if is_ours { Ok(()) } else { Err(StateError::Owner { path: path.to_owned() }) }
}

/// Opens a directory that is no link.
pub(crate) fn open_entry(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Removes what a crash left half made or half removed: entries that begin with `.new-` and `.gone-`.
pub(crate) fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name.starts_with(".new-") || name.starts_with(".gone-")) {
            continue;
        }
        let lock = File::open(entry.path().join(LOCK));
        // One without a lock is a moment old, or was left in that very moment: its maker may still be at it.
        let is_old = || {
            let age = entry.metadata().ok().and_then(|metadata| metadata.modified().ok()?.elapsed().ok());
            age.is_some_and(|age| age > Duration::from_secs(60))
        };
        let is_free = match lock {
            Ok(lock) => rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            Err(_) => is_old(),
        };
        if is_free {
            let _again_next_time = remove_tree(&entry.path());
        }
    }
}

/// A lock that is held from when it has its name on: whoever sweeps never finds it free.
pub(crate) fn make_lock(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = rustix::fs::openat(directory, "lock.new", flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    rustix::fs::renameat(directory, "lock.new", directory, LOCK)?;
    Ok(lock)
}

fn open_lock(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, LOCK, flags, Mode::RUSR | Mode::WUSR)?)
}

pub(crate) fn take_lock(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let lock = open_lock(directory)?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok(lock)
}

/// Whether somebody holds the lock of an entry.
pub(crate) fn is_locked(directory: &OwnedFd) -> bool {
    let lock = open_lock(directory);
    lock.is_ok_and(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
}

pub(crate) fn write_new(directory: &OwnedFd, name: &str, content: &[u8]) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory.as_fd(), name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(file);
    file.write_all(content)?;
    Ok(file)
}

/// Puts a file in the place of another, whole or not at all.
pub(crate) fn replace_file(directory: &OwnedFd, name: &str, content: &[u8]) -> io::Result<()> {
    Replacement::write(directory, name, content)?.put()
}

/// A file that is on the disk and has yet to take the place of another. It is removed when it does not.
#[derive(Debug)]
pub(crate) struct Replacement {
    directory: OwnedFd,
    name: String,
}

impl Replacement {
    pub(crate) fn write(directory: &OwnedFd, name: &str, content: &[u8]) -> io::Result<Replacement> {
        let replacement = Replacement { directory: directory.try_clone()?, name: name.to_owned() };
        let file = write_new(directory, &replacement.fresh(), content)?;
        // A crash leaves the one or the other, and no empty file.
        file.sync_all()?;
        Ok(replacement)
    }

    pub(crate) fn put(self) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.directory, self.fresh(), &self.directory, &self.name)?)
    }

    fn fresh(&self) -> String {
        format!("{}.new", self.name)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // Where it has taken its place there is none by this name.
        let _gone = rustix::fs::unlinkat(&self.directory, self.fresh(), rustix::fs::AtFlags::empty());
    }
}

pub(crate) fn read_file(directory: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let mut content = Vec::new();
    File::from(file).take(LONGEST).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_holds_the_directory_is_shown() {
        for kept in [SANDBOXES, RUNS, GUESTS] {
            let dir = tempfile::tempdir().unwrap();
            let network = cofferdam_policy::file::default_network;
            let showing = |path: &Path| {
                let mut options = RunOptions::new(Vec::new(), network());
                options.mounts.push(cofferdam_backend_ns::Mount {
                    source: path.to_owned(),
                    target: "/x".into(),
                    read_only: true,
                });
                options
            };
            // Also before it is there.
            assert!(check_hidden(dir.path(), &showing(dir.path())).is_err());
            fs::create_dir_all(dir.path().join(kept).join("a/home")).unwrap();
            std::os::unix::fs::symlink(dir.path(), dir.path().join("round")).unwrap();
            for shown in ["", kept, &format!("{kept}/a"), &format!("{kept}/a/home"), "round"] {
                assert!(check_hidden(dir.path(), &showing(&dir.path().join(shown))).is_err(), "{shown}");
            }
            fs::create_dir(dir.path().join("beside")).unwrap();
            check_hidden(dir.path(), &showing(&dir.path().join("beside"))).unwrap();
            let inner = dir.path().join(kept).join("a/control");
            let beside = dir.path().join("beside/control");
            for (path, is_shown) in [(&inner, true), (&beside, false)] {
                let _listener = std::os::unix::net::UnixListener::bind(path).unwrap();
                let mut options = RunOptions::new(Vec::new(), network());
                options.network.host_sockets = vec![cofferdam_model::HostSocket {
                    host: path.to_str().unwrap().to_owned(),
                    guest: "/run/x".to_owned(),
                }];
                assert_eq!(check_hidden(dir.path(), &options).is_err(), is_shown, "{path:?}");
            }
        }
        assert!(
            check_hidden(
                Path::new("/opt/state"),
                &RunOptions::new(Vec::new(), cofferdam_policy::file::default_network())
            )
            .is_err()
        );
    }
}
