//! The folders that are shown, and everything that is done with files.
//!
//! Every path is opened from the root of its share with openat2(2): beneath it, and without following any symbolic link, wherever in the path that is. Clients
//! follow links themselves. What concerns a name, and not a file, is done in the directory that was opened so, with one component and no following. A file
//! that is neither regular nor a directory is never opened, so that no FIFO waits and no device wakes.
//!
//! Whatever changes something on the host is a method of [`Writable`], which only a share that may be written hands out.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use cofferdam_sys::file;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, Statx, StatxFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::name::SharePath;
use crate::status::Status;

/// Most shares of one server; every mount of a machine is one.
pub const MOST_SHARES: usize = 64;

/// Longest name of a share; the host's own name for it is as long as it likes.
const LONGEST_SHARE_NAME: usize = 64;

/// Bits of a mode that pass in either direction: neither set-user-id nor set-group-id nor sticky.
const PERMISSIONS: u32 = 0o777;

/// What guests may do with a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareAccess {
    ReadOnly,
    ReadWrite,
}

/// Why a folder cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error("share name {name:?} is not 1 to 64 letters, digits, dots, dashes and underscores")]
    Name { name: String },
    #[error("there is a share {name:?} already; names differ by more than their case")]
    Taken { name: String },
    #[error("there are {MOST_SHARES} shares already")]
    TooMany,
    #[error("cannot open the folder {path} of share {name:?}", path = path.display())]
    Open { name: String, path: PathBuf, source: io::Error },
    #[error("cannot look at the folder of share {name:?}")]
    Look { name: String, source: io::Error },
    #[error("share {name:?} is no directory")]
    NoDirectory { name: String },
}

/// The shares of a server. They come and go while it runs.
#[derive(Debug, Default)]
pub struct Shares {
    /// By name in lower case.
    list: RwLock<BTreeMap<String, Arc<Share>>>,
}

impl Shares {
    /// Shows a folder. In a process that is confined only what was there before can be opened.
    ///
    /// # Errors
    /// The name is not one, or taken; there are too many; the folder cannot be opened.
    pub fn add(&self, name: &str, path: &Path, access: ShareAccess) -> Result<(), ShareError> {
        self.add_marked(name, path, access, None)
    }

    /// As [`add`](Self::add); the share is gone once nothing is linked to the file `marker` any more.
    ///
    /// # Errors
    /// As of [`add`](Self::add).
    pub fn add_marked(
        &self,
        name: &str,
        path: &Path,
        access: ShareAccess,
        marker: Option<OwnedFd>,
    ) -> Result<(), ShareError> {
        check_name(name)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| ShareError::Open {
            name: name.to_owned(),
            path: path.to_owned(),
            source: errno.into(),
        })?;
        self.insert(name, root, access, marker)
    }

    /// Shows a folder that is open, in a process that is confined as well.
    ///
    /// # Errors
    /// As of [`add`](Self::add).
    pub fn add_opened(&self, name: &str, root: OwnedFd, access: ShareAccess) -> Result<(), ShareError> {
        check_name(name)?;
        self.insert(name, root, access, None)
    }

    fn insert(
        &self,
        name: &str,
        root: OwnedFd,
        access: ShareAccess,
        marker: Option<OwnedFd>,
    ) -> Result<(), ShareError> {
        let facts = Facts::of(root.as_fd())
            .map_err(|errno| ShareError::Look { name: name.to_owned(), source: errno.into() })?;
        if facts.kind != Kind::Directory {
            return Err(ShareError::NoDirectory { name: name.to_owned() });
        }
        let device = facts.device;
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        if list.contains_key(&name.to_ascii_lowercase()) {
            return Err(ShareError::Taken { name: name.to_owned() });
        }
        if list.len() >= MOST_SHARES {
            return Err(ShareError::TooMany);
        }
        let share = Share { name: name.to_owned(), root, device, access, removed: AtomicBool::new(false), marker };
        list.insert(name.to_ascii_lowercase(), Arc::new(share));
        Ok(())
    }

    /// Takes a share away; whoever uses it finds it gone with the next request. Says whether there was one.
    pub fn remove(&self, name: &str) -> bool {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        let Some(share) = list.remove(&name.to_ascii_lowercase()) else { return false };
        share.removed.store(true, Ordering::Release);
        true
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Share>> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.get(&name.to_ascii_lowercase()).filter(|share| share.check().is_ok()).cloned()
    }

    /// The root of each share, and what may be done there.
    pub(crate) fn roots(&self) -> io::Result<Vec<(OwnedFd, ShareAccess)>> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.values().map(|share| Ok((share.root.try_clone()?, share.access))).collect()
    }
}

fn check_name(name: &str) -> Result<(), ShareError> {
    let fits = (1..=LONGEST_SHARE_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits { Ok(()) } else { Err(ShareError::Name { name: name.to_owned() }) }
}

/// A folder that is shown.
#[derive(Debug)]
pub(crate) struct Share {
    name: String,
    root: OwnedFd,
    device: (u32, u32),
    access: ShareAccess,
    removed: AtomicBool,
    marker: Option<OwnedFd>,
}

/// Proof that a share may be written; the only way to change anything on the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writable<'a>(&'a Share);

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    /// FIFO, socket or device: it can be listed, renamed and removed, and never opened.
    Special,
}

/// What the host knows of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub kind: Kind,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub allocated: u64,
    pub inode: u64,
    pub device: (u32, u32),
    pub accessed: FileTime,
    pub modified: FileTime,
    pub changed: FileTime,
    pub created: FileTime,
}

/// Tenths of microseconds since 1601.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileTime(pub u64);

/// From 1601 to 1970, in seconds.
const EPOCH: i64 = 11_644_473_600;

impl FileTime {
    pub(crate) fn from_unix(seconds: i64, nanoseconds: u32) -> FileTime {
        let seconds = u64::try_from(seconds.saturating_add(EPOCH)).unwrap_or(0);
        FileTime(seconds.saturating_mul(10_000_000).saturating_add(u64::from(nanoseconds / 100)))
    }

    /// `None` where the client leaves a time alone: 0, and the negative values of MS-FSCC 2.4.7.
    pub(crate) fn to_unix(self) -> Option<Timespec> {
        let ticks = i64::try_from(self.0).ok().filter(|ticks| *ticks > 0)?;
        let (seconds, rest) = (ticks / 10_000_000, ticks % 10_000_000);
        Some(Timespec { tv_sec: seconds - EPOCH, tv_nsec: rest * 100 })
    }
}

impl Facts {
    /// Of an open file.
    pub(crate) fn of(file: BorrowedFd<'_>) -> Result<Facts, Errno> {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, mask).map(Facts::from)
    }

    /// Of a name in a directory, without following it.
    pub(crate) fn at(directory: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<Facts, Errno> {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, mask).map(Facts::from)
    }

    pub(crate) fn is_same_file(&self, other: &Facts) -> bool {
        (self.inode, self.device) == (other.inode, other.device)
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

impl From<Statx> for Facts {
    fn from(found: Statx) -> Facts {
        let mode = u32::from(found.stx_mode);
        let kind = match rustix::fs::FileType::from_raw_mode(mode) {
            rustix::fs::FileType::RegularFile => Kind::File,
            rustix::fs::FileType::Directory => Kind::Directory,
            rustix::fs::FileType::Symlink => Kind::Symlink,
            rustix::fs::FileType::Fifo
            | rustix::fs::FileType::Socket
            | rustix::fs::FileType::CharacterDevice
            | rustix::fs::FileType::BlockDevice
            | rustix::fs::FileType::Unknown => Kind::Special,
        };
        let time = |time: rustix::fs::StatxTimestamp| FileTime::from_unix(time.tv_sec, time.tv_nsec);
        let has_birth = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
        Facts {
            kind,
            mode: mode & PERMISSIONS,
            links: found.stx_nlink,
            uid: found.stx_uid,
            gid: found.stx_gid,
            // Of a link, how long its target is: `git` compares that.
            size: if matches!(kind, Kind::File | Kind::Symlink) { found.stx_size } else { 0 },
            allocated: if kind == Kind::File { found.stx_blocks.saturating_mul(512) } else { 0 },
            inode: found.stx_ino,
            device: (found.stx_dev_major, found.stx_dev_minor),
            accessed: time(found.stx_atime),
            modified: time(found.stx_mtime),
            changed: time(found.stx_ctime),
            created: time(if has_birth { found.stx_btime } else { found.stx_mtime }),
        }
    }
}

impl Share {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn access(&self) -> ShareAccess {
        self.access
    }

    /// The number of a file, unique in the share where other file systems are mounted in it, too.
    pub(crate) fn number(&self, facts: &Facts) -> u64 {
        if facts.device == self.device {
            return facts.inode;
        }
        let (major, minor) = facts.device;
        // Any odd factor spreads the few device numbers there are over the upper bits, which inode numbers leave free.
        let device = u64::from(major) << 20 | u64::from(minor);
        facts.inode ^ device.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) << 32
    }

    /// A number for the file system, the same for every connection.
    pub(crate) fn serial(&self) -> u32 {
        let (major, minor) = self.device;
        major.rotate_left(16) ^ minor
    }

    /// Whether it is still there.
    pub(crate) fn check(&self) -> Result<(), Status> {
        let unlinked = || {
            let found = self.marker.as_ref().map(rustix::fs::fstat);
            found.is_some_and(|found| found.map_or(true, |found| found.st_nlink == 0))
        };
        let gone = self.removed.load(Ordering::Acquire) || unlinked();
        if gone { Err(Status::NETWORK_NAME_DELETED) } else { Ok(()) }
    }

    pub(crate) fn writable(&self) -> Result<Writable<'_>, Status> {
        match self.access {
            ShareAccess::ReadWrite => Ok(Writable(self)),
            ShareAccess::ReadOnly => Err(Status::MEDIA_WRITE_PROTECTED),
        }
    }

    /// What `path` leads to, opened as a path alone; a link is opened itself.
    pub(crate) fn look(&self, path: &SharePath) -> Result<(OwnedFd, Facts), Errno> {
        let found = open_beneath(self.root.as_fd(), path.as_str(), OFlags::PATH, Mode::empty())?;
        let facts = Facts::of(found.as_fd())?;
        Ok((found, facts))
    }

    /// Opens the regular file that `expected` was said of. `EAGAIN` when the path leads to another one by now.
    pub(crate) fn open(&self, path: &SharePath, expected: &Facts, flags: OFlags) -> Result<OwnedFd, Errno> {
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        if writes && self.access == ShareAccess::ReadOnly {
            return Err(Errno::ROFS);
        }
        let opened = open_beneath(self.root.as_fd(), path.as_str(), flags | CAREFUL, Mode::empty())?;
        let facts = Facts::of(opened.as_fd())?;
        if facts.kind == Kind::File && facts.is_same_file(expected) { Ok(opened) } else { Err(Errno::AGAIN) }
    }

    /// The directory of a name, and the name.
    fn parent<'p>(&self, path: &'p SharePath) -> Result<(OwnedFd, &'p str), Errno> {
        let (directory, name) = path.split().ok_or(Errno::BUSY)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Ok((open_beneath(self.root.as_fd(), directory, flags, Mode::empty())?, name))
    }

    /// As [`parent`](Self::parent), where the name still leads to what `expected` was said of.
    fn parent_of<'p>(&self, path: &'p SharePath, expected: &Facts) -> Result<(OwnedFd, &'p str), Errno> {
        let (directory, name) = self.parent(path)?;
        if Facts::at(directory.as_fd(), name)?.is_same_file(expected) {
            Ok((directory, name))
        } else {
            Err(Errno::NOENT)
        }
    }

    pub(crate) fn file_system(&self) -> Result<rustix::fs::StatVfs, Errno> {
        rustix::fs::fstatvfs(&self.root)
    }
}

/// Never waits, never becomes the terminal of ours.
const CAREFUL: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY);

/// Opens a path that stays beneath `directory` and follows no link.
pub(crate) fn open_beneath(directory: BorrowedFd<'_>, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(directory, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode, resolve)
}

/// Where a symbolic link leads, as its text says; the link is open as a path.
pub(crate) fn read_link(link: BorrowedFd<'_>) -> Result<String, Status> {
    let target = rustix::fs::readlinkat(link, c"", Vec::new()).map_err(Status::from)?;
    target.into_string().map_err(|_| Status::IO_REPARSE_DATA_INVALID)
}

impl Writable<'_> {
    /// Makes an empty file that was not there.
    pub(crate) fn create_file(&self, path: &SharePath, mode: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | CAREFUL;
        open_beneath(self.0.root.as_fd(), path.as_str(), flags, permissions(mode))
    }

    pub(crate) fn create_directory(&self, path: &SharePath, mode: u32) -> Result<OwnedFd, Errno> {
        let (directory, name) = self.0.parent(path)?;
        rustix::fs::mkdirat(&directory, name, permissions(mode))?;
        open_beneath(directory.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    /// Removes what `facts` were said of. What is gone already is no error.
    pub(crate) fn remove(&self, path: &SharePath, facts: &Facts) -> Result<(), Errno> {
        let flags = if facts.is_directory() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match self.0.parent_of(path, facts).and_then(|(parent, name)| rustix::fs::unlinkat(parent, name, flags)) {
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
    }

    pub(crate) fn rename(
        &self,
        from: &SharePath,
        facts: &Facts,
        to: &SharePath,
        replace: Replace,
    ) -> Result<(), Errno> {
        let (old, old_name) = self.0.parent_of(from, facts)?;
        let (new, new_name) = self.0.parent(to)?;
        let flags = match replace {
            Replace::Yes => RenameFlags::empty(),
            Replace::No => RenameFlags::NOREPLACE,
        };
        rustix::fs::renameat_with(old, old_name, new, new_name, flags)
    }

    /// Gives a file another name.
    pub(crate) fn link(&self, from: &SharePath, facts: &Facts, to: &SharePath) -> Result<(), Errno> {
        let (old, old_name) = self.0.parent_of(from, facts)?;
        let (new, new_name) = self.0.parent(to)?;
        rustix::fs::linkat(old, old_name, new, new_name, AtFlags::empty())
    }

    /// Puts a symbolic link in the place of an empty file or directory that `facts` were said of.
    pub(crate) fn replace_by_link(&self, path: &SharePath, facts: &Facts, target: &str) -> Result<OwnedFd, Errno> {
        let (parent, name) = self.0.parent_of(path, facts)?;
        let flags = if facts.is_directory() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&parent, name, flags)?;
        rustix::fs::symlinkat(target, &parent, name)?;
        open_beneath(parent.as_fd(), name, OFlags::PATH, Mode::empty())
    }

    pub(crate) fn change_mode(&self, path: &SharePath, file: BorrowedFd<'_>, mode: u32) -> Result<(), Status> {
        let errno = |error: &io::Error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        match file::change_mode(file, mode & PERMISSIONS).map_err(|error| errno(&error)) {
            // Before Linux 6.6 there is no such call, and only what is open for more than its path has a mode to be set.
            Err(Errno::NOSYS) => {
                let facts = Facts::of(file)?;
                let flags = OFlags::RDONLY | CAREFUL;
                if !matches!(facts.kind, Kind::File | Kind::Directory) {
                    return Err(Status::NOT_SUPPORTED);
                }
                let opened = open_beneath(self.0.root.as_fd(), path.as_str(), flags, Mode::empty())?;
                if !Facts::of(opened.as_fd())?.is_same_file(&facts) {
                    return Err(Status::OBJECT_NAME_NOT_FOUND);
                }
                Ok(rustix::fs::fchmod(opened, permissions(mode))?)
            }
            result => Ok(result?),
        }
    }

    pub(crate) fn set_times(
        &self,
        file: BorrowedFd<'_>,
        accessed: Option<Timespec>,
        modified: Option<Timespec>,
    ) -> Result<(), Errno> {
        let leave = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let times = Timestamps { last_access: accessed.unwrap_or(leave), last_modification: modified.unwrap_or(leave) };
        rustix::fs::utimensat(file, c"", &times, AtFlags::EMPTY_PATH)
    }

    pub(crate) fn truncate(&self, file: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
        rustix::fs::ftruncate(file, size)
    }

    pub(crate) fn write(&self, file: BorrowedFd<'_>, mut data: &[u8], mut offset: u64) -> Result<(), Errno> {
        while !data.is_empty() {
            let written = match rustix::io::pwrite(file, data, offset) {
                Ok(0) => return Err(Errno::IO),
                Ok(written) => written,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            };
            data = data.get(written..).unwrap_or_default();
            offset = offset.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
        }
        Ok(())
    }
}

/// Whether a rename may take the place of what has the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replace {
    Yes,
    No,
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & PERMISSIONS)
}
