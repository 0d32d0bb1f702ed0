//! `cofferdam top`: what runs do, as they go on, and a key to allow or deny where they go.
//!
//! ```text
//! run store ──lines──▶ Live (a fold per run) ──▶ App ──▶ draw ──▶ terminal
//! terminal ──keys──▶ App ──Effect──▶ a thread: control::change ──▶ the run's supervisor
//! ```
//!
//! One thread reads, draws and waits for keys; another one asks a run to change, which may take as long as a policy takes to
//! compile. The terminal is put back on every way out: the end, an error, a panic, a signal.

mod app;
mod draw;
mod keys;
mod screen;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_control::change::{ChangeError, Changeable, Proposal};
use cofferdam_control::store::{Lines, Needles, RunId, RunState, RunStore, StoredRun};
use cofferdam_model::since_1970;
use cofferdam_sys::process::SignalFd;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use crate::args::TopArgs;
use crate::output;
use crate::refusal::{EXIT_FAILED, Refusal};
use crate::state;

use app::{App, Effect};
use draw::{Theme, draw};
use screen::Screen;

/// How often runs are read and the view is drawn.
const TURN: Duration = Duration::from_millis(250);
/// How often it is looked for runs that have begun.
const LOOK: Duration = Duration::from_secs(1);
/// How long lines of one run are read before others, and keys, have their turn.
const READING: Duration = Duration::from_millis(50);
/// Lines between two looks at the clock.
const LINES: usize = 256;

pub(crate) fn top(args: &TopArgs) -> u8 {
    watch(args).unwrap_or_else(|refusal| refusal.with_status(EXIT_FAILED).tell(false))
}

fn watch(args: &TopArgs) -> Result<u8, Refusal> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        let text =
            "top needs a terminal for its view and its keys; `cofferdam log --follow` prints the same to anywhere";
        return Err(Refusal::setup(text.to_owned()));
    }
    if std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
        let text = "top needs a terminal on which it can write anywhere, and TERM says that this one is dumb";
        return Err(Refusal::setup(text.to_owned()));
    }
    let store = state::run_store()?;
    let mut top = Top::new(store);
    let refused = |error: &cofferdam_control::store::StoreError| Refusal::from(error);
    match &args.run {
        Some(run) => {
            let run = top.store.find(run).map_err(|error| refused(&error))?;
            top.app.follows_all = false;
            top.add(run).map_err(|error| refused(&error))?;
        }
        None => top.look().map_err(|error| refused(&error))?,
    }
    let broken = |error: io::Error| Refusal::setup(format!("the terminal cannot be used: {error}"));
    let signals = SignalFd::new(&[Signal::TERM, Signal::INT, Signal::HUP, Signal::WINCH]).map_err(broken)?;
    let ended = {
        let _screen = Screen::enter().map_err(broken)?;
        let mut terminal = Terminal::new(CrosstermBackend::new(io::stdout())).map_err(broken)?;
        top.run(&mut terminal, &signals)
    };
    let made = top.app.made_text();
    let status = match ended {
        Ok(End::Left) => 0,
        Ok(End::Signal(signal)) => u8::try_from(128 + signal.as_raw()).unwrap_or(EXIT_FAILED),
        // A terminal that has gone away has nobody to tell.
        Ok(End::Gone) => return Ok(EXIT_FAILED),
        Err(error) => return Err(broken(error)),
    };
    if !made.is_empty() {
        return Ok(status.max(output::print(&made)));
    }
    Ok(status)
}

/// Why the view ended.
enum End {
    Left,
    Signal(Signal),
    /// The terminal has.
    Gone,
}

/// What a thread has found out.
enum Answer {
    Proposed(RunId, Result<Box<Proposal>, ChangeError>),
    Applied(RunId, String, Result<(), ChangeError>),
}

struct Top {
    store: RunStore,
    app: App,
    /// The runs that are shown and go on.
    followed: BTreeMap<RunId, Followed>,
    /// Runs that were looked at, whether they are shown or not.
    known: BTreeSet<RunId>,
    looked: Option<Instant>,
    proposal: Option<(RunId, Box<Proposal>)>,
    answers: (Sender<Answer>, Receiver<Answer>),
}

/// A run that is read as it is written.
struct Followed {
    run: StoredRun,
    lines: Lines,
    /// Between the clock on the wall and that of the stream.
    began: Option<Duration>,
}

impl Top {
    fn new(store: RunStore) -> Top {
        Top {
            store,
            app: App::new(true),
            followed: BTreeMap::new(),
            known: BTreeSet::new(),
            looked: None,
            proposal: None,
            answers: channel(),
        }
    }

    fn run<W: io::Write>(
        &mut self,
        terminal: &mut Terminal<CrosstermBackend<W>>,
        signals: &SignalFd,
    ) -> io::Result<End> {
        let theme = Theme { colours: output::colour_wanted() };
        let mut more = false;
        let mut drawn: Option<Instant> = None;
        loop {
            if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) && self.app.follows_all {
                // A folder that cannot be read for once is read the next time.
                let _again = self.look();
            }
            // Also while there is more to be read: nobody acts on what is not shown.
            if !more || drawn.is_none_or(|drawn| drawn.elapsed() >= TURN) {
                self.app.settle();
                terminal.draw(|frame| draw(frame, &self.app, theme))?;
                drawn = Some(Instant::now());
            }
            let patience = if more { Duration::ZERO } else { TURN };
            match self.wait(signals, patience)? {
                Woken::End(end) => return Ok(end),
                Woken::Keys(bytes) => {
                    for key in keys::keys(&bytes) {
                        match self.app.press(key) {
                            Some(Effect::Leave) => return Ok(End::Left),
                            Some(Effect::Redraw) => terminal.clear()?,
                            Some(effect) => self.perform(effect),
                            None => {}
                        }
                    }
                }
                Woken::Nothing => {}
            }
            while let Ok(answer) = self.answers.1.try_recv() {
                self.hear(answer);
                drawn = None;
            }
            more = self.read();
        }
    }

    /// Waits for a key, a signal, or the next turn.
    fn wait(&mut self, signals: &SignalFd, patience: Duration) -> io::Result<Woken> {
        let stdin = io::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Woken::Nothing),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [keyboard, _] = fds.map(|fd| !fd.revents().is_empty());
        while let Some(signal) = signals.next()? {
            match signal {
                // The next drawing asks for the size.
                Signal::WINCH => {}
                Signal::HUP => return Ok(Woken::End(End::Gone)),
                other => return Ok(Woken::End(End::Signal(other))),
            }
        }
        if !keyboard {
            return Ok(Woken::Nothing);
        }
        let mut bytes = [0; 256];
        match rustix::io::read(&stdin, &mut bytes) {
            Ok(0) => Ok(Woken::End(End::Gone)),
            Ok(len) => Ok(Woken::Keys(bytes.get(..len).unwrap_or_default().to_vec())),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Ok(Woken::Nothing),
            Err(_) => Ok(Woken::End(End::Gone)),
        }
    }

    /// Looks for runs that go on and are not shown.
    fn look(&mut self) -> Result<(), cofferdam_control::store::StoreError> {
        self.looked = Some(Instant::now());
        let ids = self.store.ids()?;
        self.known.retain(|id| ids.binary_search(id).is_ok());
        for id in ids {
            if !self.known.insert(id.clone()) {
                continue;
            }
            // One that cannot be read is none that could be shown.
            let Ok(run) = self.store.open(&id) else { continue };
            if run.state() == RunState::Running {
                let _unreadable = self.add(run);
            }
        }
        Ok(())
    }

    fn add(&mut self, run: StoredRun) -> Result<(), cofferdam_control::store::StoreError> {
        let id = run.about().id.clone();
        let lines = run.lines(&Needles::all())?;
        if self.app.add(run.about().clone(), run.state()) {
            self.known.insert(id.clone());
            self.followed.insert(id, Followed { run, lines, began: None });
        }
        Ok(())
    }

    /// Reads what has been written. Whether there is more to be read at once.
    fn read(&mut self) -> bool {
        let mut more = false;
        let mut over = Vec::new();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for (id, followed) in &mut self.followed {
            // Asked first: what is written before the end is read.
            let state = followed.run.state();
            let is_at_end = followed.read(&mut self.app, id);
            more |= !is_at_end;
            let now = followed.began.map_or(0, |began| wall.saturating_sub(began).as_nanos());
            self.app.set_now(id, u64::try_from(now).unwrap_or(u64::MAX));
            if is_at_end && state != RunState::Running {
                over.push((id.clone(), state));
            }
        }
        for (id, state) in over {
            self.followed.remove(&id);
            self.app.set_state(&id, state);
        }
        more
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Propose { run: id, rule } => {
                let (store, sender) = (self.store.clone(), self.answers.0.clone());
                thread::spawn(move || {
                    let proposed = propose(&store, &id, &rule).map(Box::new);
                    // Nobody waits for it any more.
                    let _left = sender.send(Answer::Proposed(id, proposed));
                });
            }
            Effect::Apply => {
                let Some((id, proposal)) = self.proposal.take() else { return };
                let sender = self.answers.0.clone();
                thread::spawn(move || {
                    let rule = proposal.rule();
                    let _left = sender.send(Answer::Applied(id, rule, proposal.apply()));
                });
            }
            Effect::Forget => self.proposal = None,
            Effect::Leave | Effect::Redraw => {}
        }
    }

    fn hear(&mut self, answer: Answer) {
        match answer {
            Answer::Proposed(id, Ok(proposal)) => {
                self.app.proposed(&id, Ok((proposal.rule(), proposal.remark())));
                self.proposal = Some((id, proposal));
            }
            Answer::Proposed(id, Err(error)) => self.app.proposed(&id, Err(output::chain(&error))),
            Answer::Applied(id, rule, result) => {
                self.app.applied(&id, rule, result.map_err(|error| output::chain(&error)));
            }
        }
    }
}

fn propose(store: &RunStore, id: &RunId, rule: &str) -> Result<Proposal, ChangeError> {
    let run = store.open(id).map_err(|_| ChangeError::Ended(id.clone()))?;
    let state = store.root().parent().unwrap_or(store.root());
    Changeable::open(state, &run)?.with_rule(rule)
}

enum Woken {
    Nothing,
    Keys(Vec<u8>),
    End(End),
}

impl Followed {
    /// Reads for a while. Whether all of it was read.
    fn read(&mut self, app: &mut App, id: &RunId) -> bool {
        let begun = Instant::now();
        loop {
            for _ in 0..LINES {
                // What cannot be read any more has come to its end.
                let Ok(Some(line)) = self.lines.next_line() else { return true };
                let Ok(event) = serde_json::from_slice(line) else { continue };
                app.record(id, &event);
                if let Some(wall) = since_1970(&event.time) {
                    self.began = Some(wall.saturating_sub(Duration::from_nanos(event.mono_ns)));
                }
            }
            if begun.elapsed() >= READING {
                return false;
            }
        }
    }
}
