//! What files need beyond what rustix wraps: locks of open files, and the mode of a file that is open as a path.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What is asked of a range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeLock {
    Shared,
    Exclusive,
    Unlock,
}

/// Locks `len` bytes from `start` on for the open file description of `file` (`F_OFD_SETLK`, fcntl(2)), or gives the lock up; a
/// length of 0 reaches to the end, however far that moves. Locks of other descriptions stand in the way, also those of this process.
///
/// # Errors
/// `EAGAIN` (or `EACCES`) where another one stands in the way, `EBADF` for an exclusive lock without write access, `EINVAL` for a range
/// beyond what `off_t` holds.
pub fn lock_range(file: BorrowedFd<'_>, lock: RangeLock, start: i64, len: i64) -> io::Result<()> {
    let kind = match lock {
        RangeLock::Shared => libc::F_RDLCK,
        RangeLock::Exclusive => libc::F_WRLCK,
        RangeLock::Unlock => libc::F_UNLCK,
    };
    let whence = libc::SEEK_SET;
    let lock = libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(whence).unwrap_or_default(),
        l_start: start,
        l_len: len,
        // The kernel wants 0 here for locks of open file descriptions.
        l_pid: 0,
    };
    // SAFETY: fcntl(2) with this command reads one `flock`, which lives until the call returns. `file` is borrowed, so it stays open.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The number of fchmodat2(2), one and the same on every architecture that this builds for, and unknown to `libc` on some.
pub const SYS_FCHMODAT2: libc::c_long = 452;

/// Sets the mode of an open file, which may be open as a path alone (`O_PATH`). Never follows a link.
///
/// # Errors
/// Those of fchmodat2(2); `ENOSYS` before Linux 6.6, `EOPNOTSUPP` for a symbolic link.
pub fn change_mode(file: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: fchmodat2(2) reads a string, which is a constant here. `file` is borrowed, so it stays open.
    let rc = unsafe { libc::syscall(SYS_FCHMODAT2, file.as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_lock_belongs_to_an_open_file_and_not_to_the_process() {
        let path = std::env::temp_dir().join(format!("cofferdam-lock-{}", std::process::id()));
        fs::write(&path, "x").unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (one, other) = (open(), open());
        lock_range(one.as_fd(), RangeLock::Exclusive, 10, 5).unwrap();
        let refused = lock_range(other.as_fd(), RangeLock::Shared, 14, 1).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        lock_range(other.as_fd(), RangeLock::Shared, 15, 0).unwrap();
        drop(one);
        lock_range(other.as_fd(), RangeLock::Exclusive, 10, 5).unwrap();
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_mode_of_what_is_open_as_a_path() {
        let path = std::env::temp_dir().join(format!("cofferdam-mode-{}", std::process::id()));
        fs::write(&path, "x").unwrap();
        let file: File =
            OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(&path).unwrap();
        match change_mode(file.as_fd(), 0o640) {
            Ok(()) => assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSYS)),
        }
        fs::remove_file(&path).unwrap();
    }
}
