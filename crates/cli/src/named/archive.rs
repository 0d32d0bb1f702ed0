//! Directories as tar archives, made and taken apart beside programs that may change what is there at any moment.
//!
//! Everything is opened from a directory that is open already, one name at a time, and no link is followed: whatever a
//! program puts in the way, what is read lies beneath the source, and what is written beneath the destination. What is
//! neither file, directory nor link is left out and reported.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

/// How deep directories may be; each level holds a descriptor.
const DEEPEST: usize = 200;

/// Permissions that are copied: never the set-id bits.
const MODE: u32 = 0o777;

/// What came of a copy besides what was copied.
pub(super) type Left = Vec<String>;

/// Writes what has `name` in a directory, as an archive whose entries begin with `called`.
///
/// # Errors
/// When the archive cannot be written, or the source cannot be read at all.
pub(super) fn pack(at: BorrowedFd<'_>, name: &OsStr, called: &Path, out: impl Write) -> io::Result<Left> {
    let mut packer = Packer { archive: Builder::new(out), left: Vec::new() };
    let name = CString::new(name.as_bytes())?;
    packer.add(at, &name, called, 0)?;
    packer.archive.finish()?;
    packer.archive.get_mut().flush()?;
    Ok(packer.left)
}

struct Packer<W: Write> {
    archive: Builder<W>,
    left: Left,
}

impl<W: Write> Packer<W> {
    fn add(&mut self, at: BorrowedFd<'_>, name: &CStr, called: &Path, depth: usize) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(at, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::LOOP) => return self.add_link(at, name, called),
            // The very thing that was asked for has to be there.
            Err(errno) if depth == 0 => return Err(errno.into()),
            // A socket cannot be opened; what is gone meanwhile is not missed.
            Err(errno) => {
                if errno != Errno::NOENT {
                    self.left.push(format!("{}: {}", called.display(), io::Error::from(errno)));
                }
                return Ok(());
            }
        };
        let status = rustix::fs::fstat(&file)?;
        let mut header = Header::new_gnu();
        header.set_mode(status.st_mode & MODE);
        header.set_mtime(u64::try_from(status.st_mtime).unwrap_or(0));
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory if depth >= DEEPEST => {
                self.left.push(format!("{}: deeper than {DEEPEST} directories", called.display()));
                Ok(())
            }
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                header.set_size(0);
                self.archive.append_data(&mut header, called, io::empty())?;
                for inner in names(&file)? {
                    let called = called.join(OsStr::from_bytes(inner.as_bytes()));
                    self.add(file.as_fd(), &inner, &called, depth + 1)?;
                }
                Ok(())
            }
            FileType::RegularFile => {
                let size = u64::try_from(status.st_size).unwrap_or(0);
                header.set_entry_type(EntryType::Regular);
                header.set_size(size);
                // As long as it was said to be, should it grow or shrink meanwhile.
                let content = File::from(file).chain(io::repeat(0)).take(size);
                self.archive.append_data(&mut header, called, content)
            }
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {
                self.left.push(format!("{}: neither a file nor a directory nor a link", called.display()));
                Ok(())
            }
        }
    }

    fn add_link(&mut self, at: BorrowedFd<'_>, name: &CStr, called: &Path) -> io::Result<()> {
        let Ok(target) = rustix::fs::readlinkat(at, name, Vec::new()) else { return Ok(()) };
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(MODE);
        header.set_size(0);
        self.archive.append_link(&mut header, called, Path::new(OsStr::from_bytes(target.as_bytes())))
    }
}

fn names(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if ![c".", c".."].contains(&name.as_c_str()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Which links are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    All,
    /// Those that lead to a place beneath the destination, by their own words.
    Contained,
}

/// Takes an archive apart in a directory. With `called`, what it holds gets this name in place of its own.
///
/// # Errors
/// When the archive cannot be read, or something in it cannot be made.
pub(super) fn unpack(
    archive: impl Read,
    directory: &OwnedFd,
    called: Option<&OsStr>,
    links: Links,
) -> io::Result<Left> {
    let mut left = Vec::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let Some(parts) = parts(&path, called) else {
            left.push(format!("{}: a name that leads out", path.display()));
            continue;
        };
        let Some((name, parents)) = parts.split_last() else { continue };
        let parent = make_parents(directory, parents).map_err(|error| named(&path, &error))?;
        let mode = entry.header().mode().unwrap_or(0o644) & MODE;
        let kind = entry.header().entry_type();
        let made = if kind.is_dir() {
            make_directory(&parent, name, mode).map(drop)
        } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            let mtime = entry.header().mtime().unwrap_or(0);
            make_file(&parent, name, mode, mtime, &mut entry)
        } else if kind.is_symlink() {
            match entry.link_name_bytes() {
                Some(target) if links == Links::All || is_contained(&target, parents.len()) => {
                    make_link(&parent, name, &target)
                }
                Some(_) | None => {
                    left.push(format!("{}: a link that leads out", path.display()));
                    Ok(())
                }
            }
        } else {
            left.push(format!("{}: neither a file nor a directory nor a link", path.display()));
            Ok(())
        };
        made.map_err(|error| named(&path, &error))?;
    }
    Ok(left)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The names on the way, or `None` when one of them leads out.
fn parts(path: &Path, called: Option<&OsStr>) -> Option<Vec<CString>> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(CString::new(name.as_bytes()).ok()?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    if let (Some(called), Some(first)) = (called, parts.first_mut()) {
        *first = CString::new(called.as_bytes()).ok()?;
    }
    (parts.len() <= DEEPEST).then_some(parts)
}

/// Whether a link `depth` directories below the top leads beneath the top. Parents may only come first: behind a name that is
/// a link itself, they would be those of somewhere else.
fn is_contained(target: &[u8], depth: usize) -> bool {
    let mut up = 0;
    let mut down = false;
    for component in Path::new(OsStr::from_bytes(target)).components() {
        match component {
            Component::ParentDir if !down => up += 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
            Component::Normal(_) => down = true,
            Component::CurDir => {}
        }
    }
    // The topmost directory is what was copied; what is beside it was there before.
    up < depth
}

fn make_parents(directory: &OwnedFd, parents: &[CString]) -> io::Result<OwnedFd> {
    let mut at = directory.try_clone()?;
    for name in parents {
        at = make_directory(&at, name, 0o755)?;
    }
    Ok(at)
}

fn make_directory(at: &OwnedFd, name: &CStr, mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Its owner has to be able to fill it.
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(mode | 0o700)) {
        Ok(()) | Err(Errno::EXIST) => Ok(rustix::fs::openat(at, name, flags, Mode::empty())?),
        Err(errno) => Err(errno.into()),
    }
}

fn make_file(at: &OwnedFd, name: &CStr, mode: u32, mtime: u64, content: &mut impl Read) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let create = || rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(replacing(at, name, create)?);
    io::copy(content, &mut file)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(mtime.min(1 << 40));
    // The content matters more than when it was written.
    let _untimed = file.set_modified(time);
    Ok(())
}

fn make_link(at: &OwnedFd, name: &CStr, target: &[u8]) -> io::Result<()> {
    let target = CString::new(target)?;
    replacing(at, name, || rustix::fs::symlinkat(&target, at, name))
}

/// Makes something that must not be there, and removes what is, unless it is a directory.
fn replacing<T>(at: &OwnedFd, name: &CStr, make: impl Fn() -> rustix::io::Result<T>) -> io::Result<T> {
    match make() {
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(at, name, AtFlags::empty())?;
            Ok(make()?)
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn what_is_packed_comes_out_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let long = "n".repeat(200);
        fs::create_dir_all(from.join("top").join(&long)).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("top/run"), "content").unwrap();
        fs::set_permissions(from.join("top/run"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::write(from.join("top").join(&long).join("inner"), vec![7; 100_000]).unwrap();
        symlink("run", from.join("top/link")).unwrap();
        symlink("/etc/passwd", from.join("top/out")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, from.join("top/fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let mut archive = Vec::new();
        let left = pack(open(&from).as_fd(), OsStr::new("top"), Path::new("top"), &mut archive).unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
        let left = unpack(archive.as_slice(), &open(&to), Some(OsStr::new("new")), Links::Contained).unwrap();
        assert_eq!(left, ["top/out: a link that leads out"]);
        assert_eq!(fs::read_to_string(to.join("new/link")).unwrap(), "content");
        assert_eq!(fs::metadata(to.join("new/run")).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(fs::read(to.join("new").join(&long).join("inner")).unwrap(), vec![7; 100_000]);
        assert!(!to.join("new/fifo").exists() && to.join("new/out").symlink_metadata().is_err());
    }

    #[test]
    fn nothing_is_written_outside_whatever_an_archive_says() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        let mut archive = Builder::new(Vec::new());
        let mut add = |path: &[u8], kind: EntryType, link: &str| {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_size(if kind == EntryType::Regular { 4 } else { 0 });
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            // Past the checks of those who make archives.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path);
            header.set_cksum();
            archive.append(&header, if kind == EntryType::Regular { &b"evil"[..] } else { &[][..] }).unwrap();
        };
        add(b"../escaped", EntryType::Regular, "");
        add(b"/tmp/cofferdam-escaped", EntryType::Regular, "");
        add(b"a/../../escaped", EntryType::Regular, "");
        add(b"hard", EntryType::Link, "../escaped");
        add(b"device", EntryType::Char, "");
        let left = unpack(archive.into_inner().unwrap().as_slice(), &open(&to), None, Links::All).unwrap();
        assert_eq!(left.len(), 5, "{left:?}");
        // A link first, and then something through it.
        let mut archive = Builder::new(Vec::new());
        let mut link = Header::new_gnu();
        link.set_entry_type(EntryType::Symlink);
        link.set_size(0);
        archive.append_link(&mut link, "out", "..").unwrap();
        let mut file = Header::new_gnu();
        file.set_size(4);
        archive.append_data(&mut file, "out/escaped", &b"evil"[..]).unwrap();
        unpack(archive.into_inner().unwrap().as_slice(), &open(&to), None, Links::All).unwrap_err();
        assert!(!dir.path().join("escaped").exists());
        // And one that lies there already, in place of the file and on the way to it.
        let target = dir.path().join("target");
        fs::write(&target, "kept").unwrap();
        symlink(&target, to.join("file")).unwrap();
        let mut archive = Builder::new(Vec::new());
        let mut file = Header::new_gnu();
        file.set_size(4);
        archive.append_data(&mut file, "file", &b"evil"[..]).unwrap();
        unpack(archive.into_inner().unwrap().as_slice(), &open(&to), None, Links::All).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
        assert!(to.join("file").symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn only_links_that_cannot_lead_out_are_contained() {
        for (target, depth) in [("a", 1), ("a/b", 1), ("./a", 2), ("../a", 2), ("../../a/b", 3), ("..", 2)] {
            assert!(is_contained(target.as_bytes(), depth), "{target} {depth}");
        }
        for (target, depth) in [
            ("a", 0),
            ("a/b", 0),
            ("/a", 3),
            ("..", 0),
            ("..", 1),
            ("../a", 1),
            ("../../a", 2),
            ("a/../..", 3),
            ("a/..", 3),
            ("", 0),
        ] {
            assert!(!is_contained(target.as_bytes(), depth), "{target} {depth}");
        }
    }

    #[test]
    fn no_archive_makes_it_panic() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Vec::new();
        fs::write(dir.path().join("f"), "x").unwrap();
        pack(open(dir.path()).as_fd(), OsStr::new("f"), Path::new("f"), &mut archive).unwrap();
        for at in 0..512 {
            let mut broken = archive.clone();
            broken[at] ^= 0x55;
            let _any = unpack(broken.as_slice(), &open(dir.path()), None, Links::Contained);
            let _short = unpack(&archive[..at], &open(dir.path()), None, Links::Contained);
        }
    }
}
