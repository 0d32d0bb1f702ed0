//! Directories as tar archives, made and taken apart beside programs that may change what is there at any moment.
//!
//! Everything is opened from a directory that is open already, one name at a time, and no link is followed: whatever a
//! program puts in the way, what is read lies beneath the source, and what is written beneath the destination. What is
//! neither file, directory nor link is left out and reported.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use tar::{Archive, Builder, EntryType, Header};

/// How deep directories may be; each level holds a descriptor.
const DEEPEST: usize = 200;

/// What an archive may say about one file, in bytes: a name of PATH_MAX, the 64 KiB of attributes that most file systems have (xattr(7)),
/// and some 8,000 pieces between holes.
const ABOUT_A_FILE: u64 = 256 << 10;

/// Blocks of archives, tar(5).
const BLOCK: u64 = 512;

/// Permissions that are copied: never the set-id bits.
const MODE: u32 = 0o777;

/// What came of a copy besides what was copied. How much that is and what it is called, a sandbox may choose.
#[derive(Debug, Default)]
pub(super) struct Left {
    lines: Vec<String>,
    more: usize,
}

/// Lines of [`Left`]: more than anybody reads.
const LINES: usize = 1000;

/// What is shown of a path, in bytes: PATH_MAX, the most that the kernel takes.
const SHOWN: usize = 4096;

impl Left {
    fn add(&mut self, path: &Path, why: impl fmt::Display) {
        match self.lines.len() < LINES {
            true => self.lines.push(format!("{}: {why}", shown(path))),
            false => self.more += 1,
        }
    }

    /// One for each thing that was left out, as far as they are kept.
    pub(super) fn lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.lines.push(format!("and {} more", self.more));
        }
        self.lines
    }
}

fn shown(path: &Path) -> Cow<'_, str> {
    let bytes = path.as_os_str().as_bytes();
    String::from_utf8_lossy(bytes.get(..SHOWN).unwrap_or(bytes))
}

/// Writes what has `name` in a directory, as an archive whose entries begin with `called`.
///
/// # Errors
/// When the archive cannot be written, or the source cannot be read at all.
pub(super) fn pack(at: BorrowedFd<'_>, name: &OsStr, called: &Path, out: impl Write) -> io::Result<Left> {
    let mut packer = Packer { archive: Builder::new(out), left: Left::default() };
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
                    self.left.add(called, io::Error::from(errno));
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
                self.left.add(called, format_args!("deeper than {DEEPEST} directories"));
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
                self.left.add(called, "neither a file nor a directory nor a link");
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
    let mut left = Left::default();
    let about = About::default();
    for entry in Archive::new(Bounded { archive, about: &about }).entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        let has_holes = kind.is_gnu_sparse();
        // With holes it is longer than what is here of it.
        about.begins_behind(if has_holes { entry.header().entry_size()? } else { entry.size() });
        let path = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let Some(parts) = parts(&path, called) else {
            left.add(&path, "a name that leads out or too deep");
            continue;
        };
        let Some((name, parents)) = parts.split_last() else { continue };
        let parent = make_parents(directory, parents).map_err(|error| named(&path, &error))?;
        let mode = entry.header().mode().unwrap_or(0o644) & MODE;
        let made = if kind.is_dir() {
            make_directory(&parent, name, mode).map(drop)
        } else if kind.is_file() || kind.is_contiguous() || has_holes {
            let mtime = entry.header().mtime().unwrap_or(0);
            make_file(&parent, name, mode, mtime, &mut entry)
        } else if kind.is_symlink() {
            match entry.link_name_bytes() {
                Some(target) if links == Links::All || is_contained(&target, parents.len()) => {
                    make_link(&parent, name, &target)
                }
                Some(_) | None => {
                    left.add(&path, "a link that leads out");
                    Ok(())
                }
            }
        } else {
            left.add(&path, "neither a file nor a directory nor a link");
            Ok(())
        };
        made.map_err(|error| named(&path, &error))?;
    }
    Ok(left)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", shown(path)))
}

/// What an archive says about a file before that begins: `tar` keeps it whole, names, attributes and where holes are.
#[derive(Debug, Default)]
struct About {
    position: Cell<u64>,
    begins: Cell<u64>,
    said: RefCell<Vec<u8>>,
}

impl About {
    /// What is said about the next file begins behind so many bytes.
    fn begins_behind(&self, size: u64) {
        let end = self.position.get().saturating_add(size);
        self.begins.set(end.div_ceil(BLOCK).saturating_mul(BLOCK));
        self.said.borrow_mut().clear();
    }

    fn too_long(&self) -> io::Error {
        let said = self.said.borrow();
        let mut headers = said.chunks_exact(size_of::<Header>()).map(Header::from_byte_slice);
        let most = ABOUT_A_FILE >> 10;
        io::Error::other(match headers.find(|header| header.entry_type().is_gnu_sparse()) {
            Some(header) => format!(
                "{}: what the archive says about its holes does not fit into {most} KiB; have it made without --sparse (-S)",
                shown(Path::new(OsStr::from_bytes(&header.path_bytes())))
            ),
            None => format!("the archive has a name or attributes of a file that do not fit into {most} KiB"),
        })
    }
}

/// An archive that says no more about a file than fits.
struct Bounded<'a, R> {
    archive: R,
    about: &'a About,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let About { position, begins, said } = self.about;
        let (at, begins) = (position.get(), begins.get());
        let left = begins.saturating_add(ABOUT_A_FILE).saturating_sub(at);
        if left == 0 {
            return Err(self.about.too_long());
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        let into = into.get_mut(..most).unwrap_or_default();
        let len = self.archive.read(into)?;
        let other = usize::try_from(begins.saturating_sub(at)).unwrap_or(usize::MAX).min(len);
        said.borrow_mut().extend_from_slice(into.get(other..len).unwrap_or_default());
        position.set(at.saturating_add(u64::try_from(len).unwrap_or(u64::MAX)));
        Ok(len)
    }
}

/// The names on the way, or `None` when one of them leads out.
fn parts(path: &Path, called: Option<&OsStr>) -> Option<Vec<CString>> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(_) if parts.len() >= DEEPEST => return None,
            Component::Normal(name) => parts.push(CString::new(name.as_bytes()).ok()?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    if let (Some(called), Some(first)) = (called, parts.first_mut()) {
        *first = CString::new(called.as_bytes()).ok()?;
    }
    Some(parts)
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
        assert_eq!(left.lines(), ["top/fifo: neither a file nor a directory nor a link"]);
        let left = unpack(archive.as_slice(), &open(&to), Some(OsStr::new("new")), Links::Contained).unwrap();
        assert_eq!(left.lines(), ["top/out: a link that leads out"]);
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
        assert_eq!(left.lines().len(), 5);
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

    fn entry(name: &str, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header
    }

    #[test]
    fn what_is_said_of_an_archive_has_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Vec::new();
        for _ in 0..LINES + 7 {
            archive.extend_from_slice(entry("device", EntryType::Char, 0).as_bytes());
        }
        let lines = unpack(archive.as_slice(), &open(dir.path()), None, Links::All).unwrap().lines();
        assert_eq!((lines.len(), lines[LINES].as_str()), (LINES + 1, "and 7 more"));
        let mut left = Left::default();
        left.add(Path::new(&"n".repeat(1 << 20)), "why");
        assert!(left.lines()[0].len() <= SHOWN + 10);
    }

    #[test]
    fn what_is_said_about_a_file_has_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let refused =
            |archive: &[u8]| unpack(archive, &open(dir.path()), None, Links::Contained).unwrap_err().to_string();
        let long = ABOUT_A_FILE + 1;
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
            let mut archive = entry("././@LongLink", kind, long).as_bytes().to_vec();
            archive.resize(1 << 20, b'n');
            let error = refused(&archive);
            assert_eq!(error, "the archive has a name or attributes of a file that do not fit into 256 KiB");
        }
        let mut holes = entry("holes", EntryType::GNUSparse, 0);
        holes.as_gnu_mut().unwrap().isextended = [1];
        holes.set_cksum();
        let mut more = tar::GnuExtSparseHeader::new();
        more.isextended = [1];
        // Behind a file that is longer than what may be said about one.
        let mut archive = entry("first", EntryType::Regular, long).as_bytes().to_vec();
        archive.resize(archive.len() + usize::try_from(long.next_multiple_of(BLOCK)).unwrap(), b'x');
        archive.extend_from_slice(holes.as_bytes());
        archive.extend(more.as_bytes().repeat(1000));
        assert!(refused(&archive).starts_with("holes: what the archive says about its holes does not fit"));
        assert_eq!(fs::metadata(dir.path().join("first")).unwrap().len(), long);
    }

    #[test]
    fn holes_come_out_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let data = vec![b'd'; 300_000];
        let mut holes = entry("holes", EntryType::GNUSparse, 300_000);
        let gnu = holes.as_gnu_mut().unwrap();
        gnu.set_real_size(400_000);
        for (piece, (offset, length)) in gnu.sparse.iter_mut().zip([(90_000, 300_000), (400_000, 0)]) {
            piece.offset.copy_from_slice(format!("{offset:011o}\0").as_bytes());
            piece.numbytes.copy_from_slice(format!("{length:011o}\0").as_bytes());
        }
        holes.set_cksum();
        let mut archive = holes.as_bytes().to_vec();
        archive.extend(&data);
        archive.resize(archive.len().next_multiple_of(512), 0);
        archive.extend(entry("behind", EntryType::Regular, 0).as_bytes());
        let left = unpack(archive.as_slice(), &open(dir.path()), None, Links::Contained).unwrap();
        assert!(left.lines().is_empty());
        let whole = [vec![0; 90_000], data, vec![0; 10_000]].concat();
        assert!(fs::read(dir.path().join("holes")).unwrap() == whole);
        assert!(dir.path().join("behind").exists());
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
