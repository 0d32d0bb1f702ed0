//! From the running program to its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cofferdam_gateway::{CommandAnswer, Commands};
use cofferdam_sys::ns::Child;
use cofferdam_sys::process::{self, SignalFd};
use cofferdam_sys::tty::{self, RawMode};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use super::machine::{Machine, MachineError};
use super::{Running, kill, wait};
use crate::gateway::Gateway;
use crate::init::KEPT_IGNORED;
use crate::wire::{self, Message, Received, Target};
use crate::{DiskFull, GatewayEnd, GatewayFate, Outcome, Status};

/// What is passed on to the program, and how: what a terminal sends to its foreground goes to the program's group.
const PASSED_ON: [(Signal, Target); 7] = [
    (Signal::INT, Target::Group),
    (Signal::QUIT, Target::Group),
    (Signal::HUP, Target::Group),
    (Signal::WINCH, Target::Group),
    (Signal::TERM, Target::Program),
    (Signal::USR1, Target::Program),
    (Signal::USR2, Target::Program),
];

/// Two interrupts within this time end the sandbox. Longer than anybody waits to press again, shorter than the time
/// between two prompts at which somebody clears a line.
const TWICE: Duration = Duration::from_secs(5);

/// What a program that has got TERM because its time is up has to clean up (`docs/cli.md`).
const GRACE: Duration = Duration::from_secs(2);

/// How long the gateway may take to say its last and end. It only has to flush what is in memory.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long those who supervise runs in a sandbox that was ended may take to notice. It takes milliseconds, and who is suspended does
/// not.
const RUNS_END: Duration = Duration::from_secs(1);

/// The longest line an event may be; longer ones are cut off.
const LONGEST_EVENT: usize = 1 << 20;

/// More messages than wait in the gateway's socket: each takes a page there, and `net.core.wmem_default` is 208 KiB.
const MESSAGES: usize = 256;

/// What is read from a terminal or the gateway at once.
const CHUNK: usize = 64 * 1024;

/// Input that a program does not read is kept up to this; then the user's terminal has to wait.
const INPUT_LIMIT: usize = 64 * 1024;

/// Who is told what happens while a program runs, at the time that it happens.
pub trait Observer {
    /// An event of the gateway: one line of JSON, without its line feed.
    fn event(&mut self, line: &[u8]);

    /// The gateway has ended and the program has not: it has no network from here on. `why` is what is known about it
    /// besides how it ended, or empty.
    fn gateway_died(&mut self, end: GatewayEnd, why: &str);

    /// More that is waited for: until these can be read from.
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// When to call [`Observer::handle`] at the latest.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Some of [`Observer::sources`] are ready, or its deadline has passed: what is to be done with the sandbox. `commands` is
    /// where its gateway takes them, if it does.
    fn handle(&mut self, _ready: &[bool], _commands: Option<&mut Commands>) -> Vec<Order> {
        Vec::new()
    }

    /// The gateway has answered a command.
    fn answered(&mut self, _answer: CommandAnswer) -> Vec<Order> {
        Vec::new()
    }

    /// A virtual machine that stays has answered what an [`Order::Share`] was about.
    fn shared(&mut self, _answer: ShareAnswer) -> Vec<Order> {
        Vec::new()
    }

    /// A signal came for a sandbox without a program of its own.
    fn signal(&mut self) -> Vec<Order> {
        vec![Order::End]
    }

    /// The sandbox was ended, and cannot end because somebody does not wait for the processes of a run in it.
    fn held_up(&mut self) {}
}

/// What an observer wants to be done.
#[derive(Debug)]
pub enum Order {
    /// Send the program a signal.
    Signal(Signal),
    /// Hand this to the monitor of a virtual machine that stays: whoever has the other end wants something done in the guest.
    Caller(OwnedFd),
    /// Change what a virtual machine that stays is shown.
    Share(ShareOrder),
    /// End the sandbox at once, and everything in it.
    End,
}

/// What is to be done about one share of a virtual machine. Each is answered, unless whoever is to answer hangs.
#[derive(Debug)]
pub enum ShareOrder {
    /// Have it served: the root of a mount that is attached nowhere.
    Share {
        number: u32,
        read_only: bool,
        tree: OwnedFd,
    },
    Unshare {
        number: u32,
    },
    /// Have the guest mount it.
    Attach {
        number: u32,
        read_only: bool,
        target: PathBuf,
    },
    /// Have the guest unmount it.
    Detach {
        number: u32,
        target: PathBuf,
    },
}

/// What has come of it.
#[derive(Debug)]
pub enum ShareAnswer {
    /// What the server says.
    Served { number: u32, result: Result<(), String> },
    /// What the guest says, and its monitor: words of theirs.
    Mounted { number: u32, result: Result<(), String> },
}

impl Running {
    /// Waits for the end of the program, passing on signals, the terminal and events.
    pub fn run_to_end(mut self, observer: &mut dyn Observer) -> Outcome {
        let mut watch = Watch::new(&mut self);
        let ended = loop {
            match watch.turn(observer) {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(error) => {
                    watch.running.notices.push(format!("the sandbox was ended because of a failure: {error}"));
                    break Status::Lost;
                }
            }
        };
        watch.finish(ended, observer)
    }
}

/// Blocks the signals that are passed on, and receives them.
pub(super) fn receive_signals() -> io::Result<SignalFd> {
    let wanted: Vec<Signal> = PASSED_ON
        .iter()
        .map(|(signal, _)| *signal)
        // Whoever made us ignore these wants the program to go on when they come.
        .filter(|signal| !KEPT_IGNORED.contains(signal) || !process::is_ignored(*signal))
        .collect();
    SignalFd::new(&wanted)
}

/// One of the things the supervisor waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Init,
    Signals,
    Events,
    GatewayEnd,
    Answers,
    Machine,
    MachineRoom,
    Resolvers,
    Output,
    Input,
    InputRoom,
    Observer(usize),
}

struct Watch<'a> {
    running: &'a mut Running,
    lines: Lines,
    /// Room for a message of the gateway.
    message: Vec<u8>,
    events_open: bool,
    gateway: GatewayFate,
    /// Why the gateway was ended, if we did that.
    ended_because: Option<MachineError>,
    terminal: Option<Terminal>,
    interrupted: Option<Instant>,
    deadline: Option<Instant>,
    ending: Ending,
    is_ordered_to_end: bool,
    disk_full: Option<DiskFull>,
}

/// Whether the supervisor is ending the program, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    /// Its time is up; TERM was sent.
    TimeUp,
    /// As before, and it was killed.
    TimeUpKilled,
    /// Two interrupts.
    Interrupted,
}

impl<'a> Watch<'a> {
    fn new(running: &'a mut Running) -> Self {
        let terminal = running.controller.take().map(Terminal::new);
        let deadline = running.limits.timeout.and_then(|timeout| running.started.checked_add(timeout));
        Self {
            running,
            lines: Lines::default(),
            message: vec![0; CHUNK],
            events_open: true,
            gateway: GatewayFate::Fine,
            ended_because: None,
            terminal,
            interrupted: None,
            deadline,
            ending: Ending::No,
            is_ordered_to_end: false,
            disk_full: None,
        }
    }

    /// Waits for something to happen and deals with it. `Some` when the program has ended.
    fn turn(&mut self, observer: &mut dyn Observer) -> io::Result<Option<Status>> {
        let ready = self.wait(observer)?;
        let mut others = vec![false; observer.sources().len()];
        for source in ready {
            match source {
                Source::Init => {
                    if let Some(end) = self.init(observer)? {
                        return Ok(Some(end));
                    }
                }
                Source::Signals => self.signal(observer)?,
                Source::Events => drop(self.read_events(observer)),
                Source::GatewayEnd => self.gateway_ended(observer),
                Source::Answers => self.answers(observer),
                Source::Machine => self.tell_gateway(Machine::handle_news),
                Source::MachineRoom => self.tell_gateway(Machine::handle_room),
                Source::Resolvers => self.tell_gateway(Machine::handle_resolver_news),
                Source::Output => self.terminal.iter_mut().for_each(Terminal::output),
                Source::Input => self.terminal.iter_mut().for_each(Terminal::input),
                Source::InputRoom => self.terminal.iter_mut().for_each(Terminal::pass_input),
                Source::Observer(index) => others.iter_mut().skip(index).take(1).for_each(|ready| *ready = true),
            }
        }
        let is_due = observer.deadline().is_some_and(|deadline| deadline <= Instant::now());
        if is_due || others.contains(&true) {
            let gateway = self.running.processes.gateway.as_mut();
            for order in observer.handle(&others, gateway.and_then(|gateway| gateway.commands.as_mut())) {
                self.obey(order);
            }
        }
        if self.is_ordered_to_end {
            return Ok(Some(Status::Lost));
        }
        self.check_time();
        self.tell_gateway(Machine::handle_time);
        Ok(None)
    }

    fn answers(&mut self, observer: &mut dyn Observer) {
        // What it has reported before comes before what it answers.
        for _ in 0..MESSAGES {
            if !self.read_events(observer) {
                break;
            }
        }
        let Some(gateway) = &mut self.running.processes.gateway else { return };
        let Some(commands) = &gateway.commands else { return };
        let orders = match commands.answer() {
            Ok(Some(answer)) => observer.answered(answer),
            Ok(None) => Vec::new(),
            // Its end is noticed as such.
            Err(_) => {
                gateway.commands = None;
                Vec::new()
            }
        };
        orders.into_iter().for_each(|order| self.obey(order));
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Signal(signal) => {
                let target = PASSED_ON.iter().find(|(known, _)| *known == signal).map(|(_, target)| *target);
                self.send(signal, target.unwrap_or(Target::Program));
            }
            Order::Caller(line) => {
                // An init that is gone is noticed as such; and without a hearer the other end is closed.
                let _gone = wire::send(&self.running.init, &Message::Caller, &[line.as_fd()]);
            }
            Order::Share(order) => self.order_share(order),
            Order::End => self.is_ordered_to_end = true,
        }
    }

    fn order_share(&mut self, order: ShareOrder) {
        let mut trees = Vec::new();
        let bytes = |path: PathBuf| path.into_os_string().into_vec();
        let message = match order {
            ShareOrder::Share { number, read_only, tree } => {
                trees.push(tree);
                Message::Share { number, read_only }
            }
            ShareOrder::Unshare { number } => Message::Unshare { number },
            ShareOrder::Attach { number, read_only, target } => {
                Message::Attach { number, read_only, target: bytes(target) }
            }
            ShareOrder::Detach { number, target } => Message::Detach { number, target: bytes(target) },
        };
        let fds: Vec<BorrowedFd<'_>> = trees.iter().map(AsFd::as_fd).collect();
        // An init that is gone is noticed as such.
        let _gone = wire::send(&self.running.init, &message, &fds);
    }

    fn wait(&self, observer: &dyn Observer) -> io::Result<Vec<Source>> {
        let mut sources: Vec<(Source, BorrowedFd<'_>, PollFlags)> = Vec::new();
        // What the program wrote is shown before its end is dealt with, and events before the end of their maker.
        if let Some(terminal) = &self.terminal {
            sources.extend(terminal.sources());
        }
        let gateway = self.running.processes.gateway.as_ref();
        if let Some(gateway) = gateway {
            if self.events_open {
                sources.push((Source::Events, gateway.events.as_fd(), PollFlags::IN));
            }
            sources.extend(gateway.commands.iter().map(|commands| (Source::Answers, commands.as_fd(), PollFlags::IN)));
            sources.push((Source::GatewayEnd, gateway.child.pidfd.as_fd(), PollFlags::IN));
        }
        let machine = self.running.processes.machine.as_ref();
        if let Some(machine) = machine {
            sources.push((Source::Machine, machine.news(), PollFlags::IN));
            sources.extend(machine.resolver_news().map(|news| (Source::Resolvers, news, PollFlags::IN)));
            sources.extend(machine.room().map(|room| (Source::MachineRoom, room, PollFlags::OUT)));
        }
        let others = observer.sources();
        sources.extend((0..).zip(&others).map(|(index, fd)| (Source::Observer(index), *fd, PollFlags::IN)));
        sources.push((Source::Signals, self.running.signals.as_fd(), PollFlags::IN));
        sources.push((Source::Init, self.running.init.as_fd(), PollFlags::IN));
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        let deadlines = self.deadline.into_iter().chain(machine.and_then(Machine::deadline)).chain(observer.deadline());
        let deadline = deadlines.min();
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        wire::poll(&mut fds, timeout)?;
        let ready = sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }

    fn init(&mut self, observer: &mut dyn Observer) -> io::Result<Option<Status>> {
        let result = |why: String| if why.is_empty() { Ok(()) } else { Err(why) };
        Ok(match wire::receive_ready(&self.running.init)? {
            Received::Message(Message::Shared { number, why }, _) => {
                let orders = observer.shared(ShareAnswer::Served { number, result: result(why) });
                orders.into_iter().for_each(|order| self.obey(order));
                None
            }
            Received::Message(Message::Attached { number, why }, _) => {
                let orders = observer.shared(ShareAnswer::Mounted { number, result: result(why) });
                orders.into_iter().for_each(|order| self.obey(order));
                None
            }
            Received::Message(Message::Exited { status }, _) => Some(self.status(Status::Exited(status))),
            Received::Message(Message::Signaled { number }, _) => Some(self.status(Status::Signaled(number))),
            Received::Message(Message::Failed(fault), _) => {
                let error = fault.error();
                self.running.notices.push(format!("the sandbox's pid 1 could not {}: {error}", fault.step));
                Some(Status::Lost)
            }
            Received::Message(Message::Lost { why }, _) => {
                self.running.notices.push(format!("the virtual machine ended before the program did: {why}"));
                Some(self.status(Status::GuestLost))
            }
            Received::Message(Message::DiskFull(what), _) => {
                self.disk_full = Some(what);
                None
            }
            Received::Message(..) => None,
            Received::Closed | Received::Orphaned | Received::Late => Some(self.status(Status::Lost)),
        })
    }

    /// What an end means that came while the supervisor was ending the program itself.
    fn status(&self, end: Status) -> Status {
        match self.ending {
            Ending::No => end,
            Ending::TimeUp | Ending::TimeUpKilled => Status::TimedOut,
            // What a shell shows for a program that an interrupt ended.
            Ending::Interrupted => Status::Signaled(Signal::INT.as_raw()),
        }
    }

    fn signal(&mut self, observer: &mut dyn Observer) -> io::Result<()> {
        while let Some(signal) = self.running.signals.next()? {
            if self.running.handles.is_some() {
                // Without a program there is nobody to pass it on to, and nothing but its end that it could mean.
                if matches!(signal, Signal::INT | Signal::TERM | Signal::QUIT) {
                    observer.signal().into_iter().for_each(|order| self.obey(order));
                }
                continue;
            }
            if signal == Signal::WINCH
                && let Some(terminal) = &self.terminal
            {
                terminal.resize();
                continue;
            }
            if signal == Signal::INT {
                let now = Instant::now();
                if self.interrupted.is_some_and(|before| now.saturating_duration_since(before) < TWICE) {
                    self.ending = Ending::Interrupted;
                    self.kill();
                    continue;
                }
                self.interrupted = Some(now);
            }
            if let Some((_, target)) = PASSED_ON.iter().find(|(passed_on, _)| *passed_on == signal) {
                self.send(signal, *target);
            }
        }
        Ok(())
    }

    fn check_time(&mut self) {
        let now = Instant::now();
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.ending {
            Ending::No => {
                self.ending = Ending::TimeUp;
                self.deadline = now.checked_add(GRACE);
                self.send(Signal::TERM, Target::Group);
                // A stopped program would not see it.
                self.send(Signal::CONT, Target::Group);
            }
            Ending::TimeUp => {
                self.ending = Ending::TimeUpKilled;
                self.deadline = None;
                self.kill();
            }
            Ending::TimeUpKilled | Ending::Interrupted => self.deadline = None,
        }
    }

    fn send(&self, signal: Signal, target: Target) {
        let message = Message::Signal { number: signal.as_raw(), target };
        // An init that is gone is noticed as such.
        let _gone = wire::send(&self.running.init, &message, &[]);
    }

    fn kill(&self) {
        if let Some(init) = &self.running.processes.init {
            kill(init);
        }
    }

    /// Does something about what the gateway knows of the machine. When it cannot be told, it must not go on.
    fn tell_gateway(&mut self, step: impl FnOnce(&mut Machine, Instant) -> Result<(), MachineError>) {
        let Some(machine) = &mut self.running.processes.machine else { return };
        if let Err(error) = step(machine, Instant::now()) {
            self.running.processes.machine = None;
            if let Some(gateway) = &self.running.processes.gateway {
                self.ended_because = Some(error);
                kill(&gateway.child);
            }
        }
    }

    fn gateway_ended(&mut self, observer: &mut dyn Observer) {
        let Some(gateway) = self.running.processes.gateway.take() else { return };
        self.running.processes.machine = None;
        self.drain(&gateway.events, observer);
        let Some(end) = wait(&gateway.child) else { return };
        self.gateway = GatewayFate::Died(end);
        let why = self.why_it_ended(&gateway);
        observer.gateway_died(end, &why);
        if !why.is_empty() {
            self.running.notices.push(format!("the end of the gateway: {why}"));
        }
    }

    /// Reads once: others wait too. Whether there was something.
    fn read_events(&mut self, observer: &mut dyn Observer) -> bool {
        let Some(gateway) = self.running.processes.gateway.take() else { return false };
        let has_read = self.take_events(&gateway.events, observer);
        self.running.processes.gateway = Some(gateway);
        has_read
    }

    fn take_events(&mut self, events: &OwnedFd, observer: &mut dyn Observer) -> bool {
        match rustix::io::read(events, &mut self.message) {
            // The end of its process is near, and is noticed as such.
            Ok(0) => self.events_open = false,
            Ok(len) => {
                self.lines.take(self.message.get(..len).unwrap_or_default(), &mut |line| observer.event(line));
                return true;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.events_open = false,
        }
        false
    }

    /// Reads the events that are there.
    fn drain(&mut self, events: &OwnedFd, observer: &mut dyn Observer) {
        let mut buffer = vec![0; CHUNK];
        while let Ok(len @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(events, &mut buffer)) {
            self.lines.take(buffer.get(..len).unwrap_or_default(), &mut |line| observer.event(line));
        }
    }

    /// Ends what is left, in order: the sandbox, then the gateway, which may have something to say about its end.
    fn finish(mut self, status: Status, observer: &mut dyn Observer) -> Outcome {
        if let Some(init) = self.running.processes.init.take() {
            kill(&init);
            match self.running.handles {
                None => drop(wait(&init)),
                // It has ended when every run's supervisor has waited for its processes, which is not ours to do.
                Some(_) => {
                    if !wait_a_while(&init, RUNS_END) {
                        observer.held_up();
                        wait_a_while(&init, FAREWELL);
                    }
                }
            }
        }
        // Whatever held the program's terminal is gone, so what comes now is the rest of its output.
        if let Some(mut terminal) = self.terminal.take() {
            terminal.drain();
        }
        drop(self.running.processes.lifeline.take());
        if let Some(gateway) = self.running.processes.gateway.take() {
            self.wait_for_farewell(&gateway, observer);
            if !has_ended(&gateway.child) {
                kill(&gateway.child);
                wait(&gateway.child);
                self.running.notices.push("the gateway did not end by itself and was killed".to_owned());
            } else if let Some(end) = wait(&gateway.child)
                && end != GatewayEnd::Exited(0)
            {
                self.gateway = GatewayFate::Died(end);
                let words = self.why_it_ended(&gateway);
                if !words.is_empty() {
                    self.running.notices.push(format!("the end of the gateway: {words}"));
                }
            }
            self.drain(&gateway.events, observer);
        }
        if let Some(capture) = self.running.processes.capture.take() {
            self.running.notices.extend(capture.finish());
        }
        self.lines.end(&mut |line| observer.event(line));
        let notices = std::mem::take(&mut self.running.notices);
        Outcome { status, gateway: self.gateway, disk_full: self.disk_full, notices }
    }

    /// Reads events until the gateway has ended or its time is up.
    fn wait_for_farewell(&mut self, gateway: &Gateway, observer: &mut dyn Observer) {
        let deadline = Instant::now() + FAREWELL;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = vec![PollFd::new(&gateway.child.pidfd, PollFlags::IN)];
            if self.events_open {
                fds.push(PollFd::new(&gateway.events, PollFlags::IN));
            }
            if left.is_zero() || wire::poll(&mut fds, Some(left)).is_err() {
                return;
            }
            let ended = fds.first().is_some_and(|fd| !fd.revents().is_empty());
            let said = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
            if said {
                self.take_events(&gateway.events, observer);
            } else if ended {
                return;
            }
        }
    }

    /// What is known about the end of a gateway besides its status.
    fn why_it_ended(&mut self, gateway: &Gateway) -> String {
        match self.ended_because.take() {
            Some(error) => error.to_string(),
            None => gateway.last_words(),
        }
    }
}

fn has_ended(child: &Child) -> bool {
    let mut fds = [PollFd::new(&child.pidfd, PollFlags::IN)];
    wire::poll(&mut fds, Some(Duration::ZERO)).is_ok() && fds.iter().any(|fd| !fd.revents().is_empty())
}

/// Waits for the end of a process that was killed, but not for ever. Whether it has come.
fn wait_a_while(child: &Child, patience: Duration) -> bool {
    let mut fds = [PollFd::new(&child.pidfd, PollFlags::IN)];
    let _late = wire::poll(&mut fds, Some(patience));
    let has_ended = has_ended(child);
    if has_ended {
        wait(child);
    }
    has_ended
}

/// Cuts a stream into lines.
#[derive(Debug, Default)]
struct Lines {
    /// The line that is not complete yet.
    partial: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], on_line: &mut dyn FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (piece, complete) = match piece.strip_suffix(b"\n") {
                Some(piece) => (piece, true),
                None => (piece, false),
            };
            let room = LONGEST_EVENT.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(piece.get(..piece.len().min(room)).unwrap_or_default());
            if complete {
                self.end(on_line);
            }
        }
    }

    /// Gives out what is left, be it complete or not.
    fn end(&mut self, on_line: &mut dyn FnMut(&[u8])) {
        if !self.partial.is_empty() {
            on_line(&self.partial);
            self.partial.clear();
        }
    }
}

/// The relay between the user's terminal and the program's own.
struct Terminal {
    controller: OwnedFd,
    /// Typed, and not yet taken by the program.
    pending: Vec<u8>,
    input_open: bool,
    output_open: bool,
    /// Puts the user's terminal back when dropped.
    _raw: Option<RawMode<io::Stdin>>,
}

impl Terminal {
    fn new(controller: OwnedFd) -> Self {
        // A controller that cannot be switched still works; a program that does not read could make us wait.
        let _blocking = rustix::fs::fcntl_setfl(&controller, rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK);
        let raw = RawMode::enter(io::stdin()).ok().flatten();
        let terminal = Self { controller, pending: Vec::new(), input_open: true, output_open: true, _raw: raw };
        terminal.resize();
        terminal
    }

    fn resize(&self) {
        // The program goes on with the size it has.
        let _unsized = tty::copy_size(io::stdin(), &self.controller);
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut sources = Vec::new();
        if self.output_open {
            sources.push((Source::Output, self.controller.as_fd(), PollFlags::IN));
        }
        if !self.pending.is_empty() {
            sources.push((Source::InputRoom, self.controller.as_fd(), PollFlags::OUT));
        }
        if self.input_open && self.pending.len() < INPUT_LIMIT {
            sources.push((Source::Input, rustix::stdio::stdin(), PollFlags::IN));
        }
        sources
    }

    /// Shows what the program wrote.
    fn output(&mut self) {
        let mut buffer = vec![0; CHUNK];
        match rustix::io::read(&self.controller, &mut buffer) {
            Ok(len @ 1..) => {
                let written = write_all(rustix::stdio::stdout(), buffer.get(..len).unwrap_or_default());
                self.output_open = written.is_ok();
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // EIO: nobody holds the program's end, and nobody ever will, or the program is between two who do. The end
            // of the program is noticed elsewhere.
            Ok(_) | Err(_) => self.output_open = false,
        }
    }

    fn drain(&mut self) {
        self.output_open = true;
        let mut buffer = vec![0; CHUNK];
        while let Ok(len @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(&self.controller, &mut buffer)) {
            if write_all(rustix::stdio::stdout(), buffer.get(..len).unwrap_or_default()).is_err() {
                return;
            }
        }
    }

    /// Takes what the user typed.
    fn input(&mut self) {
        let mut buffer = vec![0; 4096];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => {
                self.input_open = false;
                // What a terminal makes of the end of its input: the character EOF, at the beginning of a line.
                self.pending.push(END_OF_TRANSMISSION);
            }
            Ok(len) => self.pending.extend_from_slice(buffer.get(..len).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.input_open = false,
        }
        self.pass_input();
    }

    fn pass_input(&mut self) {
        match rustix::io::write(&self.controller, &self.pending) {
            Ok(len) => drop(self.pending.drain(..len.min(self.pending.len()))),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.pending.clear(),
        }
    }
}

/// ^D, the default of VEOF in termios(3).
const END_OF_TRANSMISSION: u8 = 4;

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // Somebody else has made our standard output non-blocking.
                let mut fds = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                let _interrupted = wire::poll(&mut fds, None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_a_stream_into_lines_wherever_it_was_split() {
        let mut lines = Lines::default();
        let mut seen: Vec<Vec<u8>> = Vec::new();
        let mut note = |line: &[u8]| seen.push(line.to_vec());
        for piece in [&b"{\"a\":1}\n{\"b\""[..], b":2", b"}\n\n", b"{\"c\":3}"] {
            lines.take(piece, &mut note);
        }
        lines.end(&mut note);
        assert_eq!(seen, [&b"{\"a\":1}"[..], b"{\"b\":2}", b"{\"c\":3}"]);
    }

    #[test]
    fn a_line_without_an_end_stays_within_bounds() {
        let mut lines = Lines::default();
        for _ in 0..40 {
            lines.take(&vec![b'x'; CHUNK], &mut |_| panic!("no line has ended"));
        }
        assert_eq!(lines.partial.len(), LONGEST_EVENT);
    }
}
