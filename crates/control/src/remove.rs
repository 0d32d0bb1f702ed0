//! Removes a directory that a hostile program has filled.
//!
//! Links are never followed. Directories inside directories are moved up to the top before they are emptied, so that their
//! depth costs neither descriptors nor stack; and directories that their owner closed to himself are opened first.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Removes a directory with everything in it.
///
/// # Errors
/// The first thing that could not be removed.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = open(CWD, path)?;
    let mut moved: u64 = 0;
    loop {
        let entries = entries(&top)?;
        if entries.is_empty() {
            return Ok(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?);
        }
        for name in entries {
            if !is_directory(&top, &name)? {
                rustix::fs::unlinkat(&top, &name, AtFlags::empty())?;
                continue;
            }
            let directory = open(top.as_fd(), &name)?;
            for inner in self::entries(&directory)? {
                if !is_directory(&directory, &inner)? {
                    rustix::fs::unlinkat(&directory, &inner, AtFlags::empty())?;
                    continue;
                }
                // A directory is moved by writing to it (rename(2), EACCES): it has to be open for that.
                drop(open(directory.as_fd(), &inner)?);
                moved += 1;
                loop {
                    match rustix::fs::renameat(&directory, &inner, &top, format!(".moved-{moved}")) {
                        // A name that a program has chosen as we do.
                        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => moved += 1,
                        other => break other?,
                    }
                }
            }
            rustix::fs::unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
        }
    }
}

/// Opens a directory that is no link, and opens it up to its owner.
fn open(at: std::os::fd::BorrowedFd<'_>, name: impl rustix::path::Arg + Copy) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(at, name, flags | OFlags::RDONLY, Mode::empty()) {
        Ok(directory) => {
            let mode = rustix::fs::fstat(&directory)?.st_mode;
            if mode & 0o700 != 0o700 {
                rustix::fs::fchmod(&directory, Mode::RWXU)?;
            }
            Ok(directory)
        }
        Err(Errno::ACCESS) => {
            // By name, since a closed directory cannot be opened; what is not a link here is nobody's any more to replace.
            rustix::fs::chmodat(at, name, Mode::RWXU, AtFlags::empty())?;
            Ok(rustix::fs::openat(at, name, flags | OFlags::RDONLY, Mode::empty())?)
        }
        Err(errno) => Err(errno.into()),
    }
}

fn entries(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if ![c".", c".."].contains(&name.as_c_str()) {
            names.push(name);
        }
    }
    Ok(names)
}

fn is_directory(at: &OwnedFd, name: &CString) -> io::Result<bool> {
    let status = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(status.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn removes_what_is_closed_and_deep_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        symlink(&kept, tree.join("link")).unwrap();
        fs::create_dir_all(tree.join(".moved-1/closed/inner")).unwrap();
        fs::write(tree.join(".moved-2"), "in the way").unwrap();
        fs::create_dir(tree.join(".moved-1/other")).unwrap();
        fs::set_permissions(tree.join(".moved-1/closed"), fs::Permissions::from_mode(0o0)).unwrap();
        // Deeper than a path may be long, and than descriptors or stack would last.
        let mut at = open(CWD, tree.as_path()).unwrap();
        for _ in 0..1_200 {
            rustix::fs::mkdirat(&at, "directory", Mode::RWXU).unwrap();
            at = open(at.as_fd(), "directory").unwrap();
        }
        drop(at);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && kept.join("file").exists());
    }
}
