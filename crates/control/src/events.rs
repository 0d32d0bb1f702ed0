//! Who gets the event stream of a run: the reader of `--events`, the run's folder in the [store](crate::store), and with the feature
//! `otlp` a collector.
//!
//! They are given the same bytes and know nothing of each other: one that stands still or fails loses its own lines, has them
//! counted, and holds up nobody.

#[cfg(feature = "otlp")]
pub mod otlp;
mod sink;

use std::io::Write;
use std::os::fd::OwnedFd;

use cofferdam_model::Event;

use crate::store::{Ended, RecordAs, Recording, StoreError, Subject};
use sink::{Full, Sink};

pub(crate) use sink::MAX_LINES;

/// Where the events of a run go.
#[derive(Debug, Default)]
pub struct EventLog {
    reader: Option<Sink>,
    /// How the run is to be recorded, until it is.
    wanted: Option<RecordAs>,
    record: Option<(Recording, Sink)>,
    #[cfg(feature = "otlp")]
    collector: Option<(otlp::Told, Sink)>,
}

impl EventLog {
    /// A log that keeps nothing.
    #[must_use]
    pub fn none() -> EventLog {
        EventLog::default()
    }

    /// A log that goes to `out`, lines that wait together with one write.
    #[must_use]
    pub fn to(out: Box<dyn Write + Send>) -> EventLog {
        EventLog { reader: Some(Sink::to(out)), ..EventLog::none() }
    }

    /// The same, and the run is recorded.
    #[must_use]
    pub fn recorded(self, record: RecordAs) -> EventLog {
        EventLog { wanted: Some(record), ..self }
    }

    /// The same, and a collector gets them.
    #[cfg(feature = "otlp")]
    #[must_use]
    pub fn exported(self, exporter: otlp::Exporter) -> EventLog {
        let told = exporter.told();
        EventLog { collector: Some((told, Sink::at_pace(Box::new(exporter), otlp::PACE))), ..self }
    }

    /// Begins the record, when there is to be one. Called once the program runs: what comes to be here is in no process of a
    /// sandbox.
    pub(crate) fn begin(&mut self, subject: Subject<'_>) -> Result<(), StoreError> {
        let Some(wanted) = self.wanted.take() else { return Ok(()) };
        let (recording, segments) = Recording::begin(wanted, subject)?;
        self.record = Some((recording, Sink::to(Box::new(segments))));
        Ok(())
    }

    /// Whether the run is to be recorded, or is.
    pub(crate) fn keeps_record(&self) -> bool {
        self.wanted.is_some() || self.record.is_some()
    }

    /// The folder of the run's record, once there is one.
    pub(crate) fn folder(&self) -> Option<&OwnedFd> {
        self.record.as_ref().map(|(recording, _)| recording.directory())
    }

    /// Writes one of the few events of a run that have to be told: it waits even in a full queue.
    pub fn write(&mut self, event: &Event) {
        // Text and numbers: nothing of an event can fail to be JSON.
        let Ok(line) = serde_json::to_vec(event) else { return };
        self.sinks().for_each(|sink| sink.put(&line, Full::Wait));
    }

    /// Writes one event that is a line of JSON already, without its line feed; whoever has too many waiting loses it.
    pub fn write_line(&mut self, line: &[u8]) {
        self.sinks().for_each(|sink| sink.put(line, Full::Lose));
    }

    /// Tells those who have lost lines how many, as the event that `lost` makes of the number: once they have room again, or,
    /// at the `end`, in any case.
    pub(crate) fn tell_lost(&mut self, end: bool, lost: impl Fn(u64) -> Event) {
        for sink in self.sinks() {
            if sink.untold() == 0 || !(end || sink.has_room()) {
                continue;
            }
            let Ok(line) = serde_json::to_vec(&lost(sink.take_untold())) else { continue };
            sink.put(&line, Full::Wait);
        }
    }

    /// Waits until everything is written, for as long as who reads it reads, and says what is missing: what a person should be
    /// told.
    pub(crate) fn finish(&mut self, ended: Ended) -> Vec<String> {
        let mut notices = Vec::new();
        if let Some((recording, mut sink)) = self.record.take() {
            sink.finish();
            let (lost, error) = (sink.lost(), sink.take_error());
            notices.extend(incomplete("the record of this run", "the disk", lost, error));
            if let Err(error) = recording.end(ended, lost) {
                notices.push(format!("the record of this run has no end: {}", crate::named::chain(&error)));
            }
        }
        if let Some(sink) = &mut self.reader {
            sink.finish();
            notices.extend(incomplete("the event log", "its reader", sink.lost(), sink.take_error()));
        }
        #[cfg(feature = "otlp")]
        if let Some((told, mut sink)) = self.collector.take() {
            told.end();
            sink.finish();
            let (lost, error) = (sink.lost(), sink.take_error());
            // With it ends the exporter, which sends its last metrics.
            drop(sink);
            notices.extend(incomplete(&told.name(), "the collector", lost, error));
            notices.extend(told.notice());
        }
        notices
    }

    fn sinks(&mut self) -> impl Iterator<Item = &mut Sink> {
        let sinks = self.record.iter_mut().map(|(_, sink)| sink).chain(&mut self.reader);
        #[cfg(feature = "otlp")]
        let sinks = sinks.chain(self.collector.iter_mut().map(|(_, sink)| sink));
        sinks
    }
}

fn incomplete(what: &str, who: &str, lost: u64, error: Option<std::io::Error>) -> Vec<String> {
    let slow = (lost > 0).then(|| format!("{what} is incomplete: {who} was too slow, and {lost} lines were lost"));
    let failed = error.map(|error| format!("{what} is incomplete: {error}"));
    slow.into_iter().chain(failed).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};

    use cofferdam_model::{EventBody, EventSource};

    use super::*;
    use crate::store::{Needles, RunKind, RunStore};
    use crate::summary::{Advice, Totals};

    #[test]
    fn each_reader_loses_its_own_lines_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = RunStore::at(dir.path());
        let (mut reader, writer) = io::pipe().unwrap();
        let record = RecordAs { store: store.clone(), kind: RunKind::Run, sandbox: None, directory: None };
        let mut log = EventLog::to(Box::new(writer)).recorded(record);
        let network = cofferdam_policy::file::default_network();
        log.begin(Subject { command: &[], network: &network, classifier: None, advice: Advice::default() }).unwrap();
        let line = vec![b'x'; 999];
        let mut written: u64 = 0;
        // The pipe's reader stands still; the record takes what the disk takes.
        while log.reader.as_ref().unwrap().untold() < 100 {
            log.write_line(&line);
            written += 1;
        }
        let lost = |count| notice(&format!("lost {count}"));
        log.tell_lost(false, lost);
        assert!(log.reader.as_ref().unwrap().untold() > 0, "nothing is told while there is no room");
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        log.tell_lost(true, lost);
        let notices = log.finish(ended());
        drop(log);
        let text = reading.join().unwrap();
        let told = text.lines().filter(|line| line.contains("lost ")).count();
        assert!(told == 1 && text.contains("\"lost 100\""), "{told}");
        assert!(
            notices.iter().any(|notice| notice.contains("the event log is incomplete") && notice.contains("100 lines")),
            "{notices:?}"
        );
        // Whatever the record lost is in its description.
        let run = store.find("last").unwrap();
        let mut lines = run.lines(&Needles::any_of(&["xxx"])).unwrap();
        let mut kept = 0;
        while lines.next_line().unwrap().is_some() {
            kept += 1;
        }
        assert_eq!(kept + run.about().lines_lost, written);
    }

    fn notice(message: &str) -> Event {
        let body = EventBody::GatewayNotice { message: message.to_owned() };
        Event { v: 1, time: "then".to_owned(), mono_ns: 7, source: EventSource::Supervisor, body }
    }

    fn ended() -> Ended {
        Ended { time: "then".to_owned(), exit_status: 0, duration_ms: 1, totals: Totals::default() }
    }
}
