//! `cofferdam log`: what runs have left behind.

mod filter;
mod list;
mod page;
mod summary;

use std::collections::BTreeMap;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use cofferdam_control::store::{Lines, RunState, RunStore, StoreError, StoredRun};
use cofferdam_model::{Event, EventBody, FlowId, Protocol};

use crate::args::{LogArgs, LogRmArgs, LogVerb};
use crate::output::{self, Paint};
use crate::refusal::{EXIT_FAILED, Refusal, each};
use crate::state;

use filter::Filter;

pub(crate) use page::{described, protocol_word, qtype_word, utc, word};

/// Flows that are remembered: more than a gateway has open at once. Of older ones no more comes.
const MAX_OPENED: usize = 65_536;

/// How often a run that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn log(args: LogArgs) -> u8 {
    if let Some(LogVerb::Rm(args)) = &args.verb {
        return remove(args);
    }
    let json = args.json;
    let is_about_one = args.denied || args.name.is_some() || args.follow || args.summary;
    let shown = state::run_store().and_then(|store| match args.run.as_deref() {
        None if !is_about_one => list::list(&store, args.since.as_ref(), json),
        named => {
            let run = store.find(named.unwrap_or("last")).map_err(|error| Refusal::from(&error))?;
            if args.summary {
                return summary::summary(&run);
            }
            show(&run, &args)
        }
    });
    shown.unwrap_or_else(|refusal| refusal.with_status(EXIT_FAILED).tell(json))
}

/// Prints the decisions of a run, or its lines as they are.
fn show(run: &StoredRun, args: &LogArgs) -> Result<u8, Refusal> {
    let mut lines = run.lines(&Filter::needles(args)).map_err(|error| Refusal::from(&error))?;
    let mut shown = Shown {
        filter: Filter::new(args),
        out: BufWriter::with_capacity(64 * 1024, io::stdout()),
        form: if args.json { Form::Json } else { Form::Text },
        paint: Paint::stdout(),
        opened: BTreeMap::new(),
        left_out: 0,
    };
    let printed = shown.header(run).and_then(|()| shown.all(run, &mut lines, args.follow));
    match printed {
        // The reader has what it wanted.
        Err(ShowError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(ShowError::Print(error)) => Ok(output::fail(&format!("cannot write to stdout: {error}"), EXIT_FAILED)),
        Err(ShowError::Store(error)) => Err(Refusal::from(&error)),
        Ok(state) => {
            shown.remarks(run, state, lines.cut());
            Ok(0)
        }
    }
}

enum ShowError {
    Print(io::Error),
    Store(StoreError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

/// Where lines go, and which.
struct Shown {
    filter: Filter,
    out: BufWriter<io::Stdout>,
    form: Form,
    paint: Paint,
    /// Where flows went that may still show a name somebody looks for.
    opened: BTreeMap<FlowId, (Protocol, SocketAddr)>,
    /// Lines that this program does not understand.
    left_out: u64,
}

impl Shown {
    fn header(&mut self, run: &StoredRun) -> Result<(), ShowError> {
        match self.form {
            Form::Text => writeln!(self.out, "{}", page::header(run)).map_err(ShowError::Print),
            Form::Json => Ok(()),
        }
    }

    /// Everything there is, and with `follow` what comes until the run ends.
    fn all(&mut self, run: &StoredRun, lines: &mut Lines, follow: bool) -> Result<RunState, ShowError> {
        loop {
            // Asked first: what was written before its end is there then.
            let state = run.state();
            while let Some(line) = lines.next_line().map_err(ShowError::Store)? {
                self.line(line).map_err(ShowError::Print)?;
            }
            self.out.flush().map_err(ShowError::Print)?;
            if !follow || state != RunState::Running {
                return Ok(state);
            }
            thread::sleep(LOOK);
        }
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.form == Form::Json && self.filter.is_open() {
            return self.raw(line);
        }
        let Ok(event) = serde_json::from_slice::<Event>(line) else {
            self.left_out = self.left_out.saturating_add(1);
            return Ok(());
        };
        if self.filter.is_about_a_name() {
            self.remember(&event.body);
        }
        if !self.filter.takes(&event) {
            return Ok(());
        }
        let text = match (self.form, &event.body) {
            (Form::Json, _) => return self.raw(line),
            (Form::Text, EventBody::FlowShown { flow, shown }) if self.filter.is_about_a_name() => {
                Some(page::shown_line(&event.time, self.opened.get(flow).copied(), shown, self.paint))
            }
            (Form::Text, _) => page::line(&event, self.paint),
        };
        text.map_or(Ok(()), |text| writeln!(self.out, "{text}"))
    }

    fn remember(&mut self, body: &EventBody) {
        if let EventBody::FlowOpened { flow, protocol, remote, .. } = body {
            if self.opened.len() >= MAX_OPENED {
                self.opened.pop_first();
            }
            self.opened.insert(*flow, (*protocol, *remote));
        } else if let EventBody::FlowClosed { flow, .. } = body {
            self.opened.remove(flow);
        }
    }

    fn raw(&mut self, line: &[u8]) -> io::Result<()> {
        if !io::stdout().is_terminal() {
            self.out.write_all(line)?;
            return self.out.write_all(b"\n");
        }
        // JSON escapes control characters, and not all that reorder or hide text.
        writeln!(self.out, "{}", cofferdam_control::summary::escaped_json(&String::from_utf8_lossy(line)))
    }

    /// What is missing.
    fn remarks(&self, run: &StoredRun, state: RunState, cut: u64) {
        let about = run.about();
        match state {
            RunState::Running | RunState::Ended => {}
            RunState::Died => output::say(
                "the supervisor of this run was killed, or its end found no room: what it did last may be missing",
            ),
            RunState::Removed => output::say("the record of this run was removed while it was shown"),
        }
        if about.segments_gone > 0 {
            output::say("the beginning of this run is missing: it had more events than are kept");
        }
        if about.lines_lost > 0 {
            output::say(&format!(
                "{} events of this run are missing: they came too fast to be written",
                about.lines_lost
            ));
        }
        let left_out = self.left_out.saturating_add(if state == RunState::Running { 0 } else { cut });
        if left_out > 0 {
            output::say(&format!("{left_out} lines were left out: they are cut, or of a later version"));
        }
    }
}

fn remove(args: &LogRmArgs) -> u8 {
    let store = match state::run_store() {
        Ok(store) => store,
        Err(refusal) => return refusal.with_status(EXIT_FAILED).tell(args.json),
    };
    if args.all {
        return remove_all(&store, args.json);
    }
    each("run", &args.runs, args.json, |text| {
        let run = store.find(text).map_err(|error| Refusal::from(&error))?;
        let removed = store.remove(&run.about().id);
        removed.map_err(|error| Refusal::from(&error))
    })
}

/// Removes every run that has ended, also what cannot be read.
fn remove_all(store: &RunStore, json: bool) -> u8 {
    let ids = match store.ids() {
        Ok(ids) => ids,
        Err(error) => return Refusal::from(&error).with_status(EXIT_FAILED).tell(json),
    };
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    each("run", &ids, json, |text| {
        let removed = text.parse().map(|id| store.remove(&id));
        match removed {
            // They are not meant.
            Ok(Ok(()) | Err(StoreError::Running(_) | StoreError::Absent(_))) | Err(_) => Ok(()),
            Ok(Err(error)) => Err(Refusal::from(&error)),
        }
    })
}
