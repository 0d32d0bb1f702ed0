//! The record of a run as it is read.
//!
//! There is no index. A million events are some 350 MiB of text: they are read in blocks, and a search for a few bytes picks
//! lines before any is parsed. What a line says is decided by parsing it, never by the search.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cofferdam_model::Event;
use memchr::memmem::Finder;
use memchr::{memchr, memrchr};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::about::{About, RunId};
use super::{RUN_FILE, StoreError, segment_name, segments};
use crate::state::{self, io_error};

/// What is read at once: it stays in a processor's second cache while several searches go over it.
const BLOCK: usize = 256 * 1024;

/// The longest line that is shown: the first one of a run has its whole policy, the gateway's are bounded far below.
const LONGEST_LINE: usize = 16 << 20;

/// Whether a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    Running,
    Ended,
    /// Its supervisor was killed, or its end found no room.
    Died,
    /// Its record was removed since it was found.
    Removed,
}

impl RunState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Ended => "ended",
            RunState::Died => "died",
            RunState::Removed => "removed",
        }
    }
}

/// The record of one run. What is open of it can be read to its end, also when it is removed.
#[derive(Debug)]
pub struct StoredRun {
    path: PathBuf,
    directory: OwnedFd,
    about: About,
}

impl StoredRun {
    pub(super) fn open(id: RunId, path: PathBuf, directory: OwnedFd) -> Result<StoredRun, StoreError> {
        let json = match state::read_file(&directory, RUN_FILE) {
            Ok(json) => json,
            // It is being removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Absent(id.to_string())),
            Err(error) => return Err(io_error("read", &path.join(RUN_FILE))(error).into()),
        };
        let about = parse(id, &json)?;
        Ok(StoredRun { path, directory, about })
    }

    #[must_use]
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Its folder.
    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it goes on. What was read before is not looked at again: a run that has ended since is told as ended.
    #[must_use]
    pub fn state(&self) -> RunState {
        if self.about.ended.is_some() {
            return RunState::Ended;
        }
        if state::is_locked(&self.directory) {
            return RunState::Running;
        }
        match state::read_file(&self.directory, RUN_FILE) {
            Ok(json) if parse(self.about.id.clone(), &json).is_ok_and(|about| about.ended.is_some()) => RunState::Ended,
            Err(error) if error.kind() == io::ErrorKind::NotFound => RunState::Removed,
            Ok(_) | Err(_) => RunState::Died,
        }
    }

    /// The lines that hold one of some byte strings, in order, without their line feeds.
    ///
    /// # Errors
    /// When the segments cannot be opened.
    pub fn lines(&self, wanted: &Needles) -> Result<Lines, StoreError> {
        let failed = |error: io::Error| io_error("read", &self.path)(error);
        let numbers = segments(&self.directory).map_err(failed)?;
        let mut files = Vec::new();
        for number in &numbers {
            // One that was just made room of is not there any more.
            files.extend(open_segment(&self.directory, *number).map_err(failed)?);
        }
        let directory = self.directory.try_clone().map_err(failed)?;
        files.reverse();
        let next = numbers.last().map_or(1, |last| last + 1);
        Ok(Lines::new(self.path.clone(), directory, files, next, wanted))
    }

    /// The events, in order. Lines that this program does not understand are left out, and counted.
    ///
    /// # Errors
    /// When the segments cannot be opened.
    pub fn events(&self) -> Result<Events, StoreError> {
        Ok(Events { lines: self.lines(&Needles::all())?, left_out: 0 })
    }
}

fn parse(id: RunId, json: &[u8]) -> Result<About, StoreError> {
    let broken = |error: serde_json::Error| StoreError::Broken { id: id.clone(), why: error.to_string() };
    // The version first: a later form may be another one.
    let value: serde_json::Value = serde_json::from_slice(json).map_err(broken)?;
    let version = value.get("v").and_then(serde_json::Value::as_u64).and_then(|version| u32::try_from(version).ok());
    match version {
        Some(About::VERSION) => {
            let about: About = serde_json::from_value(value).map_err(broken)?;
            if about.id == id {
                Ok(about)
            } else {
                Err(StoreError::Broken { why: format!("it says that it is {}", about.id), id })
            }
        }
        Some(version) => Err(StoreError::Version { id, version }),
        None => Err(StoreError::Broken { id, why: "it has no version".to_owned() }),
    }
}

/// `None`: it is not there.
fn open_segment(directory: &OwnedFd, number: u64) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, segment_name(number), flags, Mode::empty()) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Byte strings of which a line has to hold one.
#[derive(Debug, Clone)]
pub struct Needles(Vec<Finder<'static>>);

impl Needles {
    /// Every line.
    #[must_use]
    pub fn all() -> Needles {
        Needles(Vec::new())
    }

    /// Lines that hold one of these.
    #[must_use]
    pub fn any_of(strings: &[&str]) -> Needles {
        Needles(strings.iter().map(|string| Finder::new(string.as_bytes()).into_owned()).collect())
    }

    /// Lines that deny something; some of them do not.
    #[must_use]
    pub fn denials() -> Needles {
        // Whatever is quoted in a string has a backslash before its quotes, so these are fields.
        Needles::any_of(&[r#""type":"flow.denied""#, r#""verdict":"deny""#])
    }

    /// Lines that have this decision.
    #[must_use]
    pub fn decision(id: &str) -> Needles {
        Needles::any_of(&[&format!("\"decision\":{}", serde_json::Value::from(id))])
    }
}

/// Lines of a run, read as they are asked for; see [`StoredRun::lines`].
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    directory: OwnedFd,
    /// The number of the segment after those that are open.
    next: u64,
    /// The last one first.
    files: Vec<File>,
    wanted: Needles,
    /// Where blocks are read to, the first `filled` bytes of it: whole lines up to `whole`, then the beginning of one.
    block: Vec<u8>,
    filled: usize,
    whole: usize,
    /// Where the next line begins.
    at: usize,
    /// For each needle, where it is next.
    found: Vec<Found>,
    cut: u64,
}

/// Where a needle is, at or behind where the next line begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Nobody has looked in this block.
    Unknown,
    At(usize),
    /// Not in this block any more.
    Nowhere,
}

impl Lines {
    fn new(path: PathBuf, directory: OwnedFd, files: Vec<File>, next: u64, wanted: &Needles) -> Lines {
        Lines {
            path,
            directory,
            next,
            files,
            wanted: wanted.clone(),
            block: Vec::new(),
            filled: 0,
            whole: 0,
            at: 0,
            found: vec![Found::Unknown; wanted.0.len()],
            cut: 0,
        }
    }

    /// The next line; `None` when there is none at the moment. A run that goes on may have more later.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, StoreError> {
        loop {
            if let Some((start, end)) = self.find() {
                self.at = end + 1;
                return Ok(self.block.get(start..end));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Lines that have no end: they were cut off, or are being written.
    #[must_use]
    pub fn cut(&self) -> u64 {
        self.cut.saturating_add(u64::from(self.filled > self.whole))
    }

    /// The next line that is wanted: where it begins and ends.
    fn find(&mut self) -> Option<(usize, usize)> {
        let text = self.block.get(..self.whole)?;
        let rest = text.get(self.at..).filter(|rest| !rest.is_empty())?;
        if self.wanted.0.is_empty() {
            return Some((self.at, self.at + memchr(b'\n', rest)?));
        }
        let mut nearest: Option<usize> = None;
        for (finder, found) in self.wanted.0.iter().zip(&mut self.found) {
            let is_behind = matches!(found, Found::At(place) if *place < self.at);
            if is_behind || *found == Found::Unknown {
                *found = finder.find(rest).map_or(Found::Nowhere, |place| Found::At(self.at + place));
            }
            if let Found::At(place) = *found {
                nearest = Some(nearest.map_or(place, |other| other.min(place)));
            }
        }
        let place = nearest?;
        let start = memrchr(b'\n', text.get(..place)?).map_or(0, |end| end + 1);
        let end = memchr(b'\n', text.get(place..)?)?;
        Some((start, place + end))
    }

    /// Reads on behind the beginning of a line that is left. `false`: there is nothing more at the moment.
    fn fill(&mut self) -> Result<bool, StoreError> {
        self.block.copy_within(self.whole..self.filled, 0);
        self.filled -= self.whole;
        (self.whole, self.at) = (0, 0);
        self.found.fill(Found::Unknown);
        loop {
            if self.filled > LONGEST_LINE {
                self.drop_rest();
            }
            self.block.resize(self.block.len().max(self.filled + BLOCK), 0);
            let read = match (self.files.last_mut(), self.block.get_mut(self.filled..)) {
                (Some(file), Some(room)) => file.read(room),
                (None, _) | (_, None) => Ok(0),
            };
            match read {
                Ok(0) => {
                    if !self.turn()? {
                        return Ok(false);
                    }
                }
                Ok(len) => {
                    let fresh = self.block.get(self.filled..self.filled + len).unwrap_or_default();
                    self.whole = memrchr(b'\n', fresh).map_or(0, |end| self.filled + end + 1);
                    self.filled += len;
                    if self.whole > 0 {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error("read", &self.path)(error).into()),
            }
        }
    }

    /// Goes on to the next segment, when the one that is read has nothing more. `false`: there is none.
    fn turn(&mut self) -> Result<bool, StoreError> {
        if self.files.len() > 1 {
            self.files.pop();
            self.drop_rest();
            return Ok(true);
        }
        let failed = |error: io::Error| io_error("read", &self.path)(error);
        // A folder that was removed has none.
        let numbers = segments(&self.directory).map_err(failed)?;
        let Some(number) = numbers.into_iter().find(|number| *number >= self.next) else { return Ok(false) };
        let Some(file) = open_segment(&self.directory, number).map_err(failed)? else { return Ok(false) };
        self.next = number + 1;
        // The one before is read once more: it may have grown between its end and the writer's turn.
        self.files.insert(0, file);
        Ok(true)
    }

    /// Leaves out the beginning of a line.
    fn drop_rest(&mut self) {
        if self.filled > 0 {
            self.filled = 0;
            self.cut += 1;
        }
    }
}

/// The events of a run; see [`StoredRun::events`].
#[derive(Debug)]
pub struct Events {
    lines: Lines,
    left_out: u64,
}

impl Events {
    /// Lines that were left out, because they were cut or are of a later version.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out.saturating_add(self.lines.cut())
    }
}

impl Iterator for Events {
    type Item = Result<Event, StoreError>;

    fn next(&mut self) -> Option<Result<Event, StoreError>> {
        loop {
            match self.lines.next_line() {
                Ok(Some(line)) => match serde_json::from_slice(line) {
                    Ok(event) => return Some(Ok(event)),
                    Err(_) => self.left_out = self.left_out.saturating_add(1),
                },
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
