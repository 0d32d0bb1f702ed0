//! Runs that are followed: their records, read on whenever somebody asks.
//!
//! Nothing is read that nobody asks for, and no question reads for longer than [`TURN`]: a record of a million events is read in
//! several, and each says that there is more. A run that nobody has asked about makes room for another one.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_control::store::{Lines, Needles, RunId, RunState, RunStore, StoreError, StoredRun};
use cofferdam_evidence::live::Live;
use cofferdam_model::Event;

/// Runs that are followed at once. One browser shows one; a second may be in another tab for a moment.
pub(crate) const MAX_WATCHED: usize = 4;

/// How long one question may read: a person does not notice.
const TURN: Duration = Duration::from_millis(60);
/// How many lines are read between two looks at the clock.
const STRIDE: usize = 256;

/// The runs that are followed, the last one asked about at the end.
#[derive(Debug)]
pub(crate) struct Watch {
    store: RunStore,
    watched: Vec<Watched>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) run: StoredRun,
    pub(crate) live: Live,
    pub(crate) state: RunState,
    /// Lines that this program does not understand.
    pub(crate) left_out: u64,
    /// There is more than was read in this turn.
    pub(crate) is_behind: bool,
    lines: Lines,
}

impl Watch {
    pub(crate) fn new(store: RunStore) -> Watch {
        Watch { store, watched: Vec::new() }
    }

    pub(crate) fn store(&self) -> &RunStore {
        &self.store
    }

    /// A run, read on. One whose record is removed stays what it was, for as long as somebody asks about it.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    pub(crate) fn read(&mut self, id: &RunId) -> Result<&Watched, StoreError> {
        let place = self.watched.iter().position(|watched| watched.run.about().id == *id);
        let mut watched = match place {
            Some(place) => self.watched.remove(place),
            None => Watched::open(self.store.open(id)?)?,
        };
        // Asked first: what was written before its end is there then.
        watched.state = match self.store.open(id) {
            Err(StoreError::Absent(_)) => RunState::Removed,
            Ok(_) | Err(_) => watched.run.state(),
        };
        watched.read_on()?;
        if self.watched.len() >= MAX_WATCHED {
            self.watched.remove(0);
        }
        self.watched.push(watched);
        self.watched.last().ok_or_else(|| StoreError::Absent(id.to_string()))
    }
}

impl Watched {
    fn open(run: StoredRun) -> Result<Watched, StoreError> {
        let lines = run.lines(&Needles::all())?;
        let live = Live::new(run.about().advice);
        Ok(Watched { state: run.state(), run, live, left_out: 0, is_behind: false, lines })
    }

    fn read_on(&mut self) -> Result<(), StoreError> {
        let begun = Instant::now();
        loop {
            for _ in 0..STRIDE {
                let Some(line) = self.lines.next_line()? else {
                    self.is_behind = false;
                    return Ok(());
                };
                match serde_json::from_slice::<Event>(line) {
                    Ok(event) => self.live.record(&event),
                    Err(_) => self.left_out = self.left_out.saturating_add(1),
                }
            }
            if begun.elapsed() >= TURN {
                self.is_behind = true;
                return Ok(());
            }
        }
    }

    /// What time of the stream it is: that of its last event, and what has gone by since.
    pub(crate) fn now(&self) -> u64 {
        let (last, time) = self.live.now();
        if self.state != RunState::Running {
            return last;
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let gone_by = cofferdam_model::since_1970(time).and_then(|then| wall.checked_sub(then)).unwrap_or_default();
        last.saturating_add(u64::try_from(gone_by.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    use std::path::Path;

    use super::*;

    const EVENT: &str = r#"{"v":1,"time":"2026-11-26T11:00:00.000000Z","mono_ns":1,"source":"gateway","type":"gateway.notice","message":"x"}"#;

    #[test]
    fn a_run_is_read_on_and_told_when_it_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let ids = ["20260101T000000Z-aaaaaa"];
        let store = store(state.path(), &ids);
        let mut watch = Watch::new(store.clone());
        let id: RunId = ids[0].parse().unwrap();
        assert_eq!(watch.read(&id).unwrap().live.events(), 1);
        append(&store, ids[0], &format!("{EVENT}\nnonsense\n"));
        let watched = watch.read(&id).unwrap();
        assert_eq!((watched.live.events(), watched.left_out, watched.is_behind), (2, 1, false));
        assert_eq!(watched.state, RunState::Died);
        store.remove(&id).unwrap();
        let watched = watch.read(&id).unwrap();
        assert_eq!((watched.live.events(), watched.state), (2, RunState::Removed));
    }

    #[test]
    fn those_that_nobody_asks_about_make_room() {
        let state = tempfile::tempdir().unwrap();
        let ids: Vec<String> = (0..MAX_WATCHED + 3).map(|number| format!("2026010{number}T000000Z-aaaaaa")).collect();
        let store = store(state.path(), &ids);
        let mut watch = Watch::new(store);
        for id in &ids {
            watch.read(&id.parse().unwrap()).unwrap();
        }
        assert_eq!(watch.watched.len(), MAX_WATCHED);
        assert!(matches!(watch.read(&"20250101T000000Z-aaaaaa".parse().unwrap()), Err(StoreError::Absent(_))));
    }

    #[test]
    fn a_long_record_is_read_in_turns() {
        let state = tempfile::tempdir().unwrap();
        let id = "20260101T000000Z-aaaaaa";
        let store = store(state.path(), &[id]);
        let lines = format!("{EVENT}\n").repeat(300_000);
        append(&store, id, &lines);
        let mut watch = Watch::new(store);
        let mut turns = 1;
        while watch.read(&id.parse().unwrap()).unwrap().is_behind {
            turns += 1;
        }
        assert!(turns > 1);
        assert_eq!(watch.read(&id.parse().unwrap()).unwrap().live.events(), 300_001);
    }

    fn append(store: &RunStore, id: &str, text: &str) {
        use std::io::Write;
        let path = store.root().join(id).join("events.000001.jsonl");
        let mut file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Records of runs whose supervisors are gone.
    fn store(state: &Path, ids: &[impl AsRef<str>]) -> RunStore {
        let store = RunStore::at(state);
        let folder = |path: &Path| fs::DirBuilder::new().mode(0o700).recursive(true).create(path).unwrap();
        for id in ids {
            let id = id.as_ref();
            folder(&store.root().join(id));
            let about = serde_json::json!({
                "v": 1, "id": id, "kind": "run", "command": ["true"], "started": "2026-01-01T00:00:00.000000Z",
                "network": [], "advice": { "allow_changes_default": false },
            });
            fs::write(store.root().join(id).join("run.json"), about.to_string()).unwrap();
            fs::write(store.root().join(id).join("lock"), "").unwrap();
            append(&store, id, &format!("{EVENT}\n"));
        }
        store
    }
}
