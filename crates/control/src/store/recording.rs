//! The record of a run while it is written.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use cofferdam_model::rfc3339;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

use super::about::{About, Classes, Ended, LayerConfig, RunId, RunKind, Subject};
use super::{
    Bounds, MAX_BYTES, MAX_RUN_BYTES, MAX_RUNS, RUN_FILE, RunStore, SEGMENT_BYTES, StoreError, segment_name,
    segment_size, segments,
};
use crate::remove::remove_tree;
use crate::state::{self, io_error};

/// As what a run is recorded, and where.
#[derive(Debug)]
pub struct RecordAs {
    pub store: RunStore,
    pub kind: RunKind,
    /// The sandbox that stays.
    pub sandbox: Option<String>,
    /// Where it was started.
    pub directory: Option<PathBuf>,
}

/// A run that is being recorded. Its lock is held for as long as this lives.
#[derive(Debug)]
pub(crate) struct Recording {
    path: PathBuf,
    directory: OwnedFd,
    about: About,
    _lock: OwnedFd,
}

impl Recording {
    /// Makes the folder of a run: the record, and where its lines go.
    pub(crate) fn begin(record: RecordAs, subject: Subject<'_>) -> Result<(Recording, Segments), StoreError> {
        let RecordAs { store, kind, sandbox, directory } = record;
        state::make_root(&store.root)?;
        // A clock before 1970 is shown as 1970.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|error| StoreError::Random(error.to_string()))?;
        let id = RunId::new(now, random);
        let about = About {
            v: About::VERSION,
            id: id.clone(),
            kind,
            sandbox,
            command: subject.command.to_vec(),
            directory: directory.map(|directory| directory.to_string_lossy().into_owned()),
            started: rfc3339(now),
            network: LayerConfig::all_of(subject.network),
            classes: subject.classifier.map(Classes::from),
            advice: subject.advice,
            ended: None,
            segments_gone: 0,
            lines_lost: 0,
        };
        let fresh = store.root.join(format!(".new-{}-{id}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&fresh).map_err(io_error("make", &fresh))?;
        let made = Recording::fill(&store, &fresh, about, random[0] % 16 == 0);
        if made.is_err() {
            let _left_for_the_sweep = remove_tree(&fresh);
        }
        made
    }

    fn fill(store: &RunStore, fresh: &Path, about: About, add_up: bool) -> Result<(Recording, Segments), StoreError> {
        let directory = state::open_entry(fresh).map_err(io_error("open", fresh))?;
        let lock = state::make_lock(&directory).map_err(io_error("lock", fresh))?;
        let file = fresh.join(RUN_FILE);
        state::write_new(&directory, RUN_FILE, &to_json(&about)).map_err(io_error("write", &file))?;
        let path = store.root.join(about.id.as_str());
        let segments = Segments::first(store, &directory, add_up).map_err(io_error("write", &path))?;
        rustix::fs::renameat_with(rustix::fs::CWD, fresh, rustix::fs::CWD, &path, RenameFlags::NOREPLACE)
            .map_err(|errno| io_error("make", &path)(errno.into()))?;
        Ok((Recording { path, directory, about, _lock: lock }, segments))
    }

    /// Its folder.
    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Under which id.
    #[cfg(test)]
    pub(crate) fn id(&self) -> RunId {
        self.about.id.clone()
    }

    /// Writes down how the run ended.
    pub(crate) fn end(mut self, ended: Ended, lines_lost: u64) -> Result<(), StoreError> {
        self.about.ended = Some(ended);
        self.about.lines_lost = lines_lost;
        // They are numbered from 1, and the oldest go.
        let first = segments(&self.directory).ok().and_then(|numbers| numbers.first().copied());
        self.about.segments_gone = first.map_or(0, |first| first.saturating_sub(1));
        let written = state::replace_file(&self.directory, RUN_FILE, &to_json(&self.about));
        Ok(written.map_err(io_error("write", &self.path.join(RUN_FILE)))?)
    }
}

fn to_json(about: &About) -> Vec<u8> {
    // Text, numbers and lists: nothing of it can fail to be JSON.
    serde_json::to_vec(about).unwrap_or_default()
}

/// The lines of a run, in segments. Written to by one thread.
#[derive(Debug)]
pub(crate) struct Segments {
    store: RunStore,
    directory: OwnedFd,
    number: u64,
    file: File,
    size: u64,
    /// What there may be of all runs, until it has been looked at: by the thread that writes, for it may take its time.
    prune: Option<Bounds>,
    segment_bytes: u64,
    run_bytes: u64,
}

impl Segments {
    fn first(store: &RunStore, directory: &OwnedFd, add_up: bool) -> io::Result<Segments> {
        Ok(Segments {
            store: store.clone(),
            number: 1,
            file: create(directory, 1)?,
            directory: directory.try_clone()?,
            size: 0,
            prune: Some(Bounds { runs: MAX_RUNS, bytes: add_up.then_some(MAX_BYTES) }),
            segment_bytes: SEGMENT_BYTES,
            run_bytes: MAX_RUN_BYTES,
        })
    }

    fn next(&mut self) -> io::Result<()> {
        self.file = create(&self.directory, self.number + 1)?;
        self.number += 1;
        self.size = 0;
        let numbers = segments(&self.directory)?;
        let mut total: u64 = numbers.iter().map(|number| segment_size(&self.directory, *number)).sum();
        for number in numbers {
            // Room for the one that was begun.
            if total.saturating_add(self.segment_bytes) <= self.run_bytes {
                break;
            }
            total = total.saturating_sub(segment_size(&self.directory, number));
            rustix::fs::unlinkat(&self.directory, segment_name(number), AtFlags::empty())?;
        }
        self.prune = Some(Bounds { runs: MAX_RUNS, bytes: Some(MAX_BYTES) });
        Ok(())
    }
}

/// Takes whole lines with every call, and writes all of them or none: what a full disk has cut off is taken back.
impl Write for Segments {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        if self.size >= self.segment_bytes {
            self.next()?;
        }
        if let Err(error) = self.file.write_all(lines) {
            let _the_reader_leaves_it_out = self.file.set_len(self.size);
            return Err(error);
        }
        self.size = self.size.saturating_add(u64::try_from(lines.len()).unwrap_or(u64::MAX));
        if let Some(bounds) = self.prune.take() {
            state::sweep(&self.store.root);
            self.store.prune(bounds);
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn create(directory: &OwnedFd, number: u64) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, segment_name(number), flags, Mode::RUSR | Mode::WUSR)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Needles;
    use crate::summary::Advice;

    #[test]
    fn the_oldest_segments_go_and_who_follows_sees_the_rest_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let store = RunStore::at(dir.path());
        let (recording, mut segments) = begin(&store);
        (segments.segment_bytes, segments.run_bytes) = (1000, 4000);
        let line = |number: usize| format!("{number:0099}\n");
        segments.write_all(line(0).as_bytes()).unwrap();
        let run = store.find("last").unwrap();
        let mut followed = run.lines(&Needles::all()).unwrap();
        let text = |line: &[u8]| String::from_utf8(line.to_vec()).unwrap() + "\n";
        assert_eq!(text(followed.next_line().unwrap().unwrap()), line(0));
        assert_eq!(followed.next_line().unwrap(), None);
        let mut next = 1;
        for number in 1..95 {
            segments.write_all(line(number).as_bytes()).unwrap();
            // Some come together, also the last of a segment with the first of the next.
            if number % 3 == 0 || number == 94 {
                while next <= number {
                    assert_eq!(text(followed.next_line().unwrap().unwrap()), line(next));
                    next += 1;
                }
                assert_eq!(followed.next_line().unwrap(), None);
            }
        }
        assert_eq!(followed.cut(), 0);
        let numbers = super::segments(&recording.directory).unwrap();
        assert_eq!(numbers, [7, 8, 9, 10]);
        let mut rest = run.lines(&Needles::all()).unwrap();
        for number in 60..95 {
            assert_eq!(text(rest.next_line().unwrap().unwrap()), line(number));
        }
        assert_eq!(rest.next_line().unwrap(), None);
        assert_eq!(rest.cut(), 0);
        let ended = Ended { time: String::new(), exit_status: 0, duration_ms: 0, totals: Default::default() };
        recording.end(ended, 0).unwrap();
        assert_eq!(store.find("last").unwrap().about().segments_gone, 6);
    }

    #[test]
    fn a_full_disk_leaves_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let (_recording, mut segments) = begin(&RunStore::at(dir.path()));
        segments.file = File::options().append(true).open("/dev/full").unwrap();
        let error = segments.write_all(b"{}\n").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(28));
    }

    #[test]
    fn a_folder_that_somebody_removed_takes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = RunStore::at(dir.path());
        let (recording, mut segments) = begin(&store);
        segments.segment_bytes = 1;
        segments.write_all(b"{}\n").unwrap();
        std::fs::remove_dir_all(&recording.path).unwrap();
        assert_eq!(segments.write_all(b"{}\n").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    fn begin(store: &RunStore) -> (Recording, Segments) {
        let record = RecordAs { store: store.clone(), kind: RunKind::Run, sandbox: None, directory: None };
        let network = cofferdam_policy::file::default_network();
        let subject = Subject { command: &[], network: &network, classifier: None, advice: Advice::default() };
        Recording::begin(record, subject).unwrap()
    }
}
