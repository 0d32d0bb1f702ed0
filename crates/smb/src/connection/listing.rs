//! QUERY_DIRECTORY: a directory, page by page.
//!
//! The directory is read as it goes, and what did not fit on a page begins the next one, so that a directory of any size takes the memory of one page.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use super::{Connection, Failure, MAX_IO, info};
use crate::Owner;
use crate::name::{matches, to_wire};
use crate::share::{Facts, Kind, Share, open_beneath};
use crate::status::Status;
use crate::wire::bytes::{Put, len16, len32, pad, patch, text, utf16};
use crate::wire::header::HEADER;
use crate::wire::request::QueryDirectory;

const RESTART: u8 = 0x1;
const SINGLE: u8 = 0x2;
const REOPEN: u8 = 0x10;

/// Longest pattern: that of a name.
const LONGEST_PATTERN: usize = 255;

/// A directory that is being read.
#[derive(Debug)]
pub(super) struct Listing {
    entries: Dir,
    pattern: Vec<char>,
    /// How many of `.` and `..` have been shown.
    dots: u8,
    /// Read, and not on a page yet.
    next: Option<CString>,
    /// Something has been shown.
    is_begun: bool,
}

/// How much is said of each entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Directory,
    FullDirectory,
    IdFullDirectory,
    BothDirectory,
    IdBothDirectory,
    Names,
    Posix,
}

impl Level {
    fn parse(class: u8) -> Option<Level> {
        Some(match class {
            1 => Level::Directory,
            2 => Level::FullDirectory,
            3 => Level::BothDirectory,
            12 => Level::Names,
            37 => Level::IdBothDirectory,
            38 => Level::IdFullDirectory,
            100 => Level::Posix,
            _ => return None,
        })
    }
}

impl Connection<'_> {
    pub(super) fn query_directory(
        &mut self,
        id: u64,
        query: &QueryDirectory<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Status, Failure> {
        let level = Level::parse(query.class).ok_or(Status::INVALID_INFO_CLASS)?;
        let owner = self.server.owner;
        // Several pages in one compound share the room that one may take.
        if query.max_output > MAX_IO || out.len() > super::MAX_MESSAGE {
            return Err(Status::INVALID_PARAMETER.into());
        }
        let open = self.open_mut(id)?;
        if !open.facts.is_directory() {
            return Err(Status::INVALID_PARAMETER.into());
        }
        if !open.can.read {
            return Err(Status::ACCESS_DENIED.into());
        }
        if query.flags & (RESTART | REOPEN) != 0 {
            open.listing = None;
        }
        let listing = match &mut open.listing {
            Some(listing) => listing,
            none => none.insert(Listing::begin(open.file.as_fd(), query.pattern)?),
        };
        out.u16(9);
        out.u16(len16(HEADER + 8));
        let at = out.len();
        out.u32(0);
        let data = out.len();
        let room = usize::try_from(query.max_output).unwrap_or(usize::MAX);
        let directory = Place { share: &open.share, directory: open.file.as_fd(), owner };
        listing.page(directory, level, query.flags & SINGLE != 0, room, out)?;
        if out.len() == data {
            return Err(if listing.is_begun { Status::NO_MORE_FILES } else { Status::NO_SUCH_FILE }.into());
        }
        listing.is_begun = true;
        let len = len32(out.len().saturating_sub(data));
        patch(out, at, &len.to_le_bytes());
        Ok(Status::SUCCESS)
    }
}

/// Where the entries are, and how they are shown.
#[derive(Clone, Copy)]
struct Place<'a> {
    share: &'a Share,
    directory: BorrowedFd<'a>,
    owner: Owner,
}

impl Listing {
    fn begin(directory: BorrowedFd<'_>, pattern: &[u8]) -> Result<Listing, Status> {
        let pattern: Vec<char> = text(pattern).ok_or(Status::OBJECT_NAME_INVALID)?.chars().collect();
        if pattern.len() > LONGEST_PATTERN {
            return Err(Status::OBJECT_NAME_INVALID);
        }
        let pattern = if pattern.is_empty() { vec!['*'] } else { pattern };
        Ok(Listing { entries: entries(directory)?, pattern, dots: 0, next: None, is_begun: false })
    }

    /// Puts as many entries as there is room for.
    fn page(
        &mut self,
        place: Place<'_>,
        level: Level,
        single: bool,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Status> {
        let start = out.len();
        let mut last = None;
        while let Some(name) = self.next_name()? {
            let Some((shown, facts)) = self.look(place, &name) else { continue };
            let before = out.len();
            pad(out, start, 8);
            let at = out.len();
            entry(place, level, &facts, &shown, out);
            if out.len().saturating_sub(start) > room {
                out.truncate(before);
                self.put_back(name);
                // Not even one has room.
                return if last.is_none() { Err(Status::INFO_LENGTH_MISMATCH) } else { Ok(()) };
            }
            if let Some(last) = last {
                patch(out, last, &len32(at.saturating_sub(last)).to_le_bytes());
            }
            last = Some(at);
            if single {
                return Ok(());
            }
        }
        Ok(())
    }

    fn next_name(&mut self) -> Result<Option<CString>, Status> {
        if let Some(name) = self.next.take() {
            return Ok(Some(name));
        }
        // First of all, since that is where clients expect them.
        if self.dots < 2 {
            self.dots += 1;
            return Ok(Some(if self.dots == 1 { c".".to_owned() } else { c"..".to_owned() }));
        }
        loop {
            match self.entries.read() {
                None => return Ok(None),
                Some(Ok(entry)) if entry.file_name() == c"." || entry.file_name() == c".." => {}
                Some(Ok(entry)) => return Ok(Some(entry.file_name().to_owned())),
                Some(Err(error)) => return Err(error.into()),
            }
        }
    }

    fn put_back(&mut self, name: CString) {
        self.next = Some(name);
    }

    /// What clients are shown of a name; `None` for what they are not shown, and for what is gone.
    fn look(&self, place: Place<'_>, name: &CString) -> Option<(String, Facts)> {
        let text = name.to_str().ok()?;
        let (shown, facts) = match text {
            // What is above the root of a share is nobody's business: both are the directory itself.
            "." | ".." => (text.to_owned(), Facts::of(place.directory).ok()?),
            text => (to_wire(text)?, Facts::at(place.directory, name.as_c_str()).ok()?),
        };
        let chars: Vec<char> = shown.chars().collect();
        matches(&self.pattern, &chars).then_some((shown, facts))
    }
}

/// The entries of a directory that is open as a path, from the first on.
fn entries(directory: BorrowedFd<'_>) -> Result<Dir, Errno> {
    let opened = open_beneath(directory, ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    Dir::new(opened)
}

/// Whether a directory could be removed.
pub(super) fn check_empty(directory: BorrowedFd<'_>) -> Result<(), Status> {
    let mut entries = entries(directory)?;
    while let Some(entry) = entries.read() {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Err(Status::DIRECTORY_NOT_EMPTY);
        }
    }
    Ok(())
}

/// One entry, MS-FSCC 2.4; where the next one is, is still to come.
fn entry(place: Place<'_>, level: Level, facts: &Facts, shown: &str, out: &mut Vec<u8>) {
    let name = utf16(shown);
    let number = place.share.number(facts);
    out.u32(0);
    out.u32(0);
    match level {
        Level::Names => {
            out.u32(len32(name.len()));
            out.put(&name);
            return;
        }
        Level::Posix => {
            info::posix(number, place.owner, facts, out);
            out.u32(len32(name.len()));
            out.put(&name);
            return;
        }
        Level::Directory
        | Level::FullDirectory
        | Level::IdFullDirectory
        | Level::BothDirectory
        | Level::IdBothDirectory => {}
    }
    info::times(facts, out);
    out.u64(facts.size);
    out.u64(facts.allocated);
    out.u32(info::attributes(facts));
    out.u32(len32(name.len()));
    if level != Level::Directory {
        // The size of extended attributes; of a link, its tag.
        out.u32(if facts.kind == Kind::Symlink { info::SYMLINK_TAG } else { 0 });
    }
    if matches!(level, Level::BothDirectory | Level::IdBothDirectory) {
        // No short name, of 24 bytes.
        out.put(&[0; 26]);
    }
    match level {
        Level::IdFullDirectory => {
            out.u32(0);
            out.u64(number);
        }
        Level::IdBothDirectory => {
            out.u16(0);
            out.u64(number);
        }
        Level::Directory | Level::FullDirectory | Level::BothDirectory | Level::Names | Level::Posix => {}
    }
    out.put(&name);
}
