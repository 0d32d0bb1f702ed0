//! What runs leave behind, in `runs/` of the state directory.
//!
//! ```text
//! runs/20261126T074233Z-k3f9xa/    RunId: the second of the start in UTC, and six letters or digits; sorts by time
//!     lock                         held by the supervisor while the run lasts
//!     run.json                     About: written when the program runs, and anew at its end
//!     events.000001.jsonl …        segments of the event stream
//! ```
//!
//! | `run.json` | Lock | Is |
//! |---|---|---|
//! | without an end | held | running |
//! | with one | – | ended |
//! | without an end | free | died: its supervisor was killed, or the disk was full |
//! | not there any more | – | removed, to whoever opened it before |
//!
//! Entries come and go as those of the [registry](crate::named) do. A record that is being read stays readable when it is
//! removed: what is open is shown to its end.
//!
//! Limits: [`MAX_RUN_BYTES`] for a run, of which the oldest segment goes; [`MAX_RUNS`] runs and about [`MAX_BYTES`] in all, for
//! which the oldest runs go that nobody holds. The bytes of all are added up at one of sixteen starts, and when a segment is
//! full: adding up costs ten milliseconds of somebody's processor where a thousand runs are kept.

mod about;
mod recording;
mod stored;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use crate::remove::remove_tree;
use crate::state::{self, StateError, io_error};

pub(crate) use about::Subject;
pub use about::{About, Classes, Ended, LayerConfig, RunId, RunKind};
pub use recording::RecordAs;
pub(crate) use recording::Recording;
pub use stored::{Events, Lines, Needles, RunState, StoredRun};

/// Bytes of one segment. Small enough that the oldest of a run is no great loss.
pub(crate) const SEGMENT_BYTES: u64 = 8 << 20;
/// Bytes of one run: a million events have some 350 bytes each.
pub const MAX_RUN_BYTES: u64 = 384 << 20;
/// Bytes of all runs together.
pub const MAX_BYTES: u64 = 1 << 30;
/// Runs that are kept: a listing of more is of no use to anybody.
pub const MAX_RUNS: usize = 1000;
/// Runs that go at once when there are too many.
const SPARE_RUNS: usize = 16;

/// The least of an id that names a run: a sandbox called `s` that has no record must not be taken for a run that ends in an s.
const SHORTEST_END: usize = 4;

pub(crate) const RUN_FILE: &str = "run.json";

/// Why a run is not recorded, or its record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the system's random source gave nothing: {0}")]
    Random(String),
    #[error("there is no record of a run {0:?}; `cofferdam log` lists those there are")]
    Absent(String),
    #[error("nothing is recorded yet")]
    Empty,
    #[error("{text:?} may be {count} runs; give more of the id")]
    Ambiguous { text: String, count: usize },
    #[error("the run {0} is still running; its record can be removed when it has ended")]
    Running(RunId),
    #[error("the record of the run {id} has version {version}, and this program knows {known}", known = About::VERSION)]
    Version { id: RunId, version: u32 },
    #[error("the record of the run {id} cannot be understood: {why}")]
    Broken { id: RunId, why: String },
}

/// The records of one user's runs.
#[derive(Debug, Clone)]
pub struct RunStore {
    root: PathBuf,
}

/// What there is.
#[derive(Debug, Default)]
pub struct Runs {
    /// Newest first.
    pub runs: Vec<StoredRun>,
    /// Those that cannot be read, and why.
    pub unread: Vec<(RunId, StoreError)>,
}

impl RunStore {
    /// The records in a state directory, which does not have to be there.
    #[must_use]
    pub fn at(state: &Path) -> RunStore {
        RunStore { root: state.join(state::RUNS) }
    }

    /// Where they are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The ids there are, oldest first.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn ids(&self) -> Result<Vec<RunId>, StoreError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error("read", &self.root)(source).into()),
        };
        let id = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        let mut ids: Vec<RunId> = entries.filter_map(id).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Every run.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn runs(&self) -> Result<Runs, StoreError> {
        let mut all = Runs::default();
        for id in self.ids()?.into_iter().rev() {
            match self.open(&id) {
                Ok(run) => all.runs.push(run),
                // One that was removed meanwhile is not there.
                Err(StoreError::Absent(_)) => {}
                Err(error) => all.unread.push((id, error)),
            }
        }
        Ok(all)
    }

    /// One run, by its id.
    ///
    /// # Errors
    /// When it is not there, or cannot be trusted or understood.
    pub fn open(&self, id: &RunId) -> Result<StoredRun, StoreError> {
        let path = self.root.join(id.as_str());
        match state::open_entry(&path) {
            Ok(directory) => {
                state::check_owner(&directory, &path)?;
                StoredRun::open(id.clone(), path, directory)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::Absent(id.to_string())),
            Err(error) => Err(io_error("open", &path)(error).into()),
        }
    }

    /// One run, by what people call it: an id, `last`, the name of a sandbox that stays (its newest session), or one end of an
    /// id that no other has.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(&self, text: &str) -> Result<StoredRun, StoreError> {
        if let Ok(id) = text.parse::<RunId>() {
            return self.open(&id);
        }
        if text == "last" {
            // Whoever asks for the last one does not mean one that cannot be read.
            let newest = self.ids()?.into_iter().rev().find_map(|id| self.open(&id).ok());
            return newest.ok_or(StoreError::Empty);
        }
        let ids = self.ids()?;
        let open = ids.iter().rev().filter_map(|id| self.open(id).ok());
        let is_session =
            |run: &StoredRun| run.about().kind == RunKind::Session && run.about().sandbox.as_deref() == Some(text);
        if let Some(run) = open.into_iter().find(is_session) {
            return Ok(run);
        }
        let is_end =
            |id: &&RunId| text.len() >= SHORTEST_END && (id.as_str().starts_with(text) || id.as_str().ends_with(text));
        let matching: Vec<&RunId> = ids.iter().filter(is_end).collect();
        match matching.as_slice() {
            [id] => self.open(id),
            [] => Err(StoreError::Absent(text.to_owned())),
            several => Err(StoreError::Ambiguous { text: text.to_owned(), count: several.len() }),
        }
    }

    /// Removes the record of a run.
    ///
    /// # Errors
    /// When it is not there, still running, or something of it cannot be removed.
    pub fn remove(&self, id: &RunId) -> Result<(), StoreError> {
        let path = self.root.join(id.as_str());
        let absent = || StoreError::Absent(id.to_string());
        let directory = match state::open_entry(&path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(absent()),
            Err(error) => return Err(io_error("open", &path)(error).into()),
        };
        state::check_owner(&directory, &path)?;
        let _lock = match state::take_lock(&directory) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(StoreError::Running(id.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(absent()),
            Err(error) => return Err(io_error("lock", &path)(error).into()),
        };
        let gone = self.root.join(format!(".gone-{}-{id}", std::process::id()));
        match rustix::fs::renameat_with(rustix::fs::CWD, &path, rustix::fs::CWD, &gone, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(remove_tree(&gone).map_err(io_error("remove", &gone))?),
            Err(Errno::NOENT) => Err(absent()),
            Err(errno) => Err(io_error("remove", &path)(errno.into()).into()),
        }
    }

    /// Removes the oldest runs, for as long as there are too many or they are too large together. Runs that somebody holds stay.
    fn prune(&self, bounds: Bounds) {
        let Ok(ids) = self.ids() else { return };
        let mut surplus = match ids.len() > bounds.runs {
            true => (ids.len() - bounds.runs).saturating_add(SPARE_RUNS.min(bounds.runs / 2)),
            false => 0,
        };
        let sizes: Vec<u64> = match bounds.bytes {
            Some(_) => ids.iter().map(|id| self.size(id)).collect(),
            None => Vec::new(),
        };
        let mut total: u64 = sizes.iter().sum();
        for (place, id) in ids.iter().enumerate() {
            if surplus == 0 && bounds.bytes.is_none_or(|bound| total <= bound) {
                return;
            }
            // One that cannot be removed is passed over.
            if self.remove(id).is_ok() {
                surplus = surplus.saturating_sub(1);
                total = total.saturating_sub(sizes.get(place).copied().unwrap_or(0));
            }
        }
    }

    /// Bytes of a run's segments.
    fn size(&self, id: &RunId) -> u64 {
        let Ok(directory) = state::open_entry(&self.root.join(id.as_str())) else { return 0 };
        segments(&directory).unwrap_or_default().iter().map(|number| segment_size(&directory, *number)).sum()
    }
}

/// What there may be.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    runs: usize,
    /// `None`: nobody adds them up.
    bytes: Option<u64>,
}

/// The name of a segment.
fn segment_name(number: u64) -> String {
    format!("events.{number:06}.jsonl")
}

/// The numbers of the segments that are there, in order.
fn segments(directory: &OwnedFd) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_str().unwrap_or("");
        let number = name.strip_prefix("events.").and_then(|rest| rest.strip_suffix(".jsonl"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn segment_size(directory: &OwnedFd, number: u64) -> u64 {
    let status = rustix::fs::statat(directory, segment_name(number), AtFlags::SYMLINK_NOFOLLOW);
    status.ok().and_then(|status| u64::try_from(status.st_size).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
