//! One call that a fork does: its streams, its end.
//!
//! | State | Event | Then |
//! |---|---|---|
//! | begun | the fork reports `Started` or `Opened`, or executes a program | running; the host is told |
//! | begun | the fork reports why not | waits for its end, then `Failed` |
//! | running | output, where the host has room for it | to the host |
//! | running | input | kept until the program takes it, which gives the host room for more |
//! | running | the fork ends | whoever it left is killed, unless they shall stay |
//! | ended | nobody of the call is alive and each output has been sent to its end | `Exited` or `Done` |
//!
//! Bounds: one window of input, and what pipes hold.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cofferdam_guest_protocol::{
    CallId, Decoder, Failure, FailureKind, Grant, Leftover, MAX_DATA, Shortage, Size, Status, Stream, ToHost, Window,
};
use cofferdam_sys::ns::{Child, Fork};
use cofferdam_sys::{process, tty};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitStatus};
use rustix::termios::Winsize;

use crate::cgroup::Group;
use crate::child::{self, Report, Streams, Task};
use crate::words::{Doing, Trouble};

/// Control-D: how a terminal is told that there is no more input (`VEOF`).
const END_OF_INPUT: u8 = 4;

/// A call that is being done.
#[derive(Debug)]
pub(crate) struct Call {
    id: CallId,
    kind: Kind,
    child: Child,
    group: Group,
    report: Option<(OwnedFd, Decoder<ToHost>)>,
    started: bool,
    /// Whether the host has been told that the disk was full.
    full: bool,
    input: Option<Input>,
    outputs: [Option<Output>; 2],
    terminal: Option<OwnedFd>,
    failure: Option<Failure>,
    killed: bool,
    status: Option<Status>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Program(Leftover),
    /// A file that is written here before it is in its place.
    Put(PathBuf),
    Other,
}

#[derive(Debug)]
struct Input {
    /// `None`: nobody reads, and what comes is let go.
    pipe: Option<OwnedFd>,
    waiting: Vec<u8>,
    grant: Grant,
    has_ended: bool,
}

#[derive(Debug)]
struct Output {
    stream: Stream,
    pipe: OwnedFd,
    window: Window,
}

/// The ends of a call's streams: those of the fork, and ours.
struct Ends {
    streams: Streams,
    input: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    terminal: Option<OwnedFd>,
}

impl Call {
    /// Begins a call.
    pub(crate) fn begin(id: CallId, task: Task) -> Result<Call, Trouble> {
        let group = Group::new(id)?;
        let (report, told) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned())?;
        rustix::io::ioctl_fionbio(&report, true).doing(|| "make a pipe".to_owned())?;
        let ends = Ends::of(&task).doing(|| "make the streams of a program".to_owned())?;
        let kind = match &task {
            Task::Exec(exec) => Kind::Program(exec.leftover),
            Task::Put(put) => Kind::Put(child::unfinished(Path::new(OsStr::from_bytes(&put.path)), id)),
            Task::Get(_) | Task::Mount(_) | Task::Unmount(_) => Kind::Other,
        };
        let child = match group.fork().doing(|| "start a process".to_owned())? {
            Fork::Parent(child) => child,
            Fork::Child => process::run_and_exit(move || {
                drop((ends.input, ends.outputs, ends.terminal, report));
                child::run(task, ends.streams, Report { call: id, pipe: File::from(told) })
            }),
        };
        let open = |pipe| Input { pipe: Some(pipe), waiting: Vec::new(), grant: Grant::default(), has_ended: false };
        let [output, error] = ends.outputs;
        let output = output.map(|pipe| Output { stream: Stream::Output, pipe, window: Window::new() });
        let error = error.map(|pipe| Output { stream: Stream::Error, pipe, window: Window::new() });
        Ok(Call {
            id,
            kind,
            child,
            group,
            report: Some((report, Decoder::new())),
            started: false,
            full: false,
            input: ends.input.map(open),
            outputs: [output, error],
            terminal: ends.terminal,
            failure: None,
            killed: false,
            status: None,
        })
    }

    /// Whether this is the process that does it; a number that has been waited for may be somebody else's.
    pub(crate) fn is_done_by(&self, pid: Pid) -> bool {
        self.status.is_none() && self.child.pid == pid
    }

    /// Whether it is a program that runs, or has just ended, and the host has not been told of a full disk.
    pub(crate) fn wants_room(&self) -> bool {
        matches!(self.kind, Kind::Program(_)) && self.started && !self.full
    }

    /// Whether its process has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.status.is_some()
    }

    /// There is no room any more for what its program writes.
    pub(crate) fn full(&mut self, shortage: Shortage) -> ToHost {
        self.full = true;
        ToHost::Full { call: self.id, shortage }
    }

    /// Adds what to wait for; output only while there is room for it.
    pub(crate) fn add_interests<'a>(&'a self, has_room: bool, interests: &mut Vec<PollFd<'a>>) {
        if let Some((report, _)) = &self.report {
            interests.push(PollFd::new(report, PollFlags::IN));
        }
        // Without anything to write, a pipe that nobody reads would have something to say all the time.
        if let Some(Input { pipe: Some(pipe), waiting, .. }) = &self.input
            && !waiting.is_empty()
        {
            interests.push(PollFd::new(pipe, PollFlags::OUT));
        }
        if self.started && has_room {
            let outputs = self.outputs.iter().flatten().filter(|output| output.window.room() > 0);
            interests.extend(outputs.map(|output| PollFd::new(&output.pipe, PollFlags::IN)));
        }
        if self.status.is_some() && self.waits_for_group() {
            interests.push(PollFd::from_borrowed_fd(self.group.events(), PollFlags::PRI));
        }
    }

    /// Does what can be done without waiting, and tells the host what came of it.
    pub(crate) fn proceed(&mut self, has_room: bool, tell: &mut impl FnMut(&ToHost)) {
        self.read_report(tell);
        self.write_input(tell);
        if self.started && has_room {
            for at in 0..self.outputs.len() {
                self.read_output(at, tell);
            }
        }
    }

    /// The end of the call, if it has come.
    pub(crate) fn end(&mut self) -> Option<ToHost> {
        let status = self.status?;
        if self.report.is_some() || (self.waits_for_group() && !self.group.is_empty()) {
            return None;
        }
        let call = self.id;
        if let Some(failure) = self.failure.take() {
            return Some(ToHost::Failed { call, failure });
        }
        if self.outputs.iter().any(Option::is_some) {
            return None;
        }
        Some(match (&self.kind, status) {
            (Kind::Program(_), status) if self.started => ToHost::Exited { call, status },
            (Kind::Put(_) | Kind::Other, Status::Code(0)) => ToHost::Done { call },
            (_, _) if self.killed => {
                let failure = Failure::new(FailureKind::Killed, "it was killed before it was done");
                ToHost::Failed { call, failure }
            }
            (_, status) => {
                let text = format!("the process that was to do it ended with {status:?}");
                ToHost::Failed { call, failure: Failure::new(FailureKind::Refused, &text) }
            }
        })
    }

    /// The host sent input.
    pub(crate) fn handle_data(&mut self, bytes: Vec<u8>) {
        if let Some(input) = &mut self.input {
            input.waiting.extend(bytes);
        }
    }

    pub(crate) fn handle_end(&mut self) {
        let is_terminal = self.terminal.is_some();
        if let Some(input) = &mut self.input
            && !std::mem::replace(&mut input.has_ended, true)
            && is_terminal
        {
            input.waiting.push(END_OF_INPUT);
        }
    }

    pub(crate) fn handle_credit(&mut self, stream: Stream, bytes: u32) {
        let output = self.outputs.iter_mut().flatten().find(|output| output.stream == stream);
        // More than fits is a mistake of the host's, and the window stays as it is.
        let _fits = output.is_none_or(|output| output.window.credit(bytes));
    }

    pub(crate) fn handle_resize(&self, size: Size) {
        if let Some(terminal) = &self.terminal {
            // A terminal whose programs are gone has no size.
            let _gone = tty::set_size(terminal, winsize(size));
        }
    }

    pub(crate) fn handle_signal(&self, number: u8) {
        let Some(signal) = Signal::from_named_raw(number.into()) else { return };
        if self.status.is_some() {
            return;
        }
        let foreground = self.terminal.as_ref().and_then(|terminal| rustix::termios::tcgetpgrp(terminal).ok());
        // The program leads the first process group of its session.
        let _gone = rustix::process::kill_process_group(foreground.unwrap_or(self.child.pid), signal);
    }

    pub(crate) fn handle_kill(&mut self) {
        self.killed = true;
        self.group.kill();
    }

    /// The fork, or the program that it became, has ended.
    pub(crate) fn handle_exit(&mut self, status: WaitStatus) {
        let small = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
        self.status = Some(match status.terminating_signal() {
            Some(signal) => Status::Signal(small(signal)),
            None => Status::Code(status.exit_status().map_or(u8::MAX, small)),
        });
        if self.waits_for_group() {
            self.group.kill();
        }
        if let Kind::Put(unfinished) = &self.kind
            && self.status != Some(Status::Code(0))
        {
            let _absent = std::fs::remove_file(unfinished);
        }
        // Nobody of this call is there to read.
        if self.waits_for_group() {
            self.input = self.input.take().map(|input| Input { pipe: None, ..input });
        }
    }

    /// Whether the program has ended and others who have its streams may go on.
    fn is_left_alone(&self) -> bool {
        self.status.is_some() && !self.waits_for_group()
    }

    /// Whether there is something to do that no event tells: to read until there is nothing.
    pub(crate) fn is_urgent(&self) -> bool {
        self.started && self.is_left_alone() && self.outputs.iter().flatten().any(|output| output.window.room() > 0)
    }

    /// Whether whoever is left goes when the program does.
    fn waits_for_group(&self) -> bool {
        self.killed || self.kind != Kind::Program(Leftover::Keep)
    }

    fn read_report(&mut self, tell: &mut impl FnMut(&ToHost)) {
        let Some((pipe, decoder)) = &mut self.report else { return };
        let mut buffer = [0; 4096];
        let mut read = match rustix::io::read(&*pipe, &mut buffer) {
            Ok(length) => buffer.get(..length).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => &[],
        };
        if read.is_empty() {
            self.report = None;
            // Closed by executing the program.
            if matches!(self.kind, Kind::Program(_)) && self.failure.is_none() {
                self.started = true;
                tell(&ToHost::Started { call: self.id });
            }
            return;
        }
        while let Ok(Some(message)) = decoder.decode(&mut read) {
            match message {
                ToHost::Failed { failure, .. } => self.failure = Some(failure),
                message @ (ToHost::Started { .. } | ToHost::Opened { .. }) => {
                    self.started = true;
                    tell(&message);
                }
                ToHost::Hello { .. }
                | ToHost::Exited { .. }
                | ToHost::Done { .. }
                | ToHost::Data { .. }
                | ToHost::End { .. }
                | ToHost::Credit { .. }
                | ToHost::Full { .. }
                | ToHost::Dying { .. } => {}
            }
        }
    }

    fn write_input(&mut self, tell: &mut impl FnMut(&ToHost)) {
        let Some(input) = &mut self.input else { return };
        let taken = match &input.pipe {
            _ if !self.started => return,
            None => input.waiting.len(),
            Some(_) if input.waiting.is_empty() => 0,
            Some(pipe) => match rustix::io::write(pipe, &input.waiting) {
                Ok(taken) => taken,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(_) => {
                    input.pipe = None;
                    input.waiting.len()
                }
            },
        };
        input.waiting.drain(..taken);
        if let Some(bytes) = input.grant.take(taken) {
            tell(&ToHost::Credit { call: self.id, bytes });
        }
        if input.has_ended && input.waiting.is_empty() {
            self.input = None;
        }
    }

    fn read_output(&mut self, at: usize, tell: &mut impl FnMut(&ToHost)) {
        let call = self.id;
        let is_over = self.is_left_alone();
        let Some(slot) = self.outputs.get_mut(at) else { return };
        let Some(output) = slot else { return };
        let stream = output.stream;
        let mut buffer = [0; MAX_DATA];
        let room = output.window.room().min(MAX_DATA);
        if room == 0 {
            return;
        }
        let (buffer, _) = buffer.split_at_mut(room);
        let has_ended = match rustix::io::read(&output.pipe, &mut *buffer) {
            Ok(0) => true,
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                let _fits = output.window.spend(length);
                tell(&ToHost::Data { call, stream, bytes });
                false
            }
            // Those who stay keep their streams, and nobody listens any more once the program has ended.
            Err(Errno::AGAIN) => is_over,
            Err(Errno::INTR) => false,
            // EIO: the last who had the terminal open is gone.
            Err(_) => true,
        };
        if has_ended {
            *slot = None;
            tell(&ToHost::End { call, stream });
        }
    }
}

impl Ends {
    fn of(task: &Task) -> io::Result<Ends> {
        let none = || Streams::Pipes { input: None, output: None, error: None };
        match task {
            Task::Exec(exec) => match exec.terminal {
                Some(size) => Ends::terminal(size, exec.uid, exec.gid),
                None => {
                    let owner = Some((exec.uid, exec.gid));
                    let ((input, to), (from, output), (from_error, error)) = (pipe(owner)?, pipe(owner)?, pipe(owner)?);
                    let streams = Streams::Pipes { input: Some(input), output: Some(output), error: Some(error) };
                    Ends::ours(streams, Some(to), [Some(from), Some(from_error)], None)
                }
            },
            Task::Put(_) => {
                let (input, to) = pipe(None)?;
                Ends::ours(
                    Streams::Pipes { input: Some(input), output: None, error: None },
                    Some(to),
                    [None, None],
                    None,
                )
            }
            Task::Get(_) => {
                let (from, output) = pipe(None)?;
                Ends::ours(
                    Streams::Pipes { input: None, output: Some(output), error: None },
                    None,
                    [Some(from), None],
                    None,
                )
            }
            Task::Mount(_) | Task::Unmount(_) => Ends::ours(none(), None, [None, None], None),
        }
    }

    fn terminal(size: Size, uid: u32, gid: u32) -> io::Result<Ends> {
        let pty = tty::open_pty()?;
        tty::set_size(&pty.controller, winsize(size))?;
        rustix::fs::fchown(&pty.terminal, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        let (input, output) = (pty.controller.try_clone()?, pty.controller.try_clone()?);
        Ends::ours(Streams::Terminal(pty.terminal), Some(input), [Some(output), None], Some(pty.controller))
    }

    fn ours(
        streams: Streams,
        input: Option<OwnedFd>,
        outputs: [Option<OwnedFd>; 2],
        terminal: Option<OwnedFd>,
    ) -> io::Result<Ends> {
        for fd in input.iter().chain(outputs.iter().flatten()) {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        Ok(Ends { streams, input, outputs, terminal })
    }
}

/// A pipe whose ends belong to somebody, who may then open them by their names in `/proc`.
fn pipe(owner: Option<(u32, u32)>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    if let Some((uid, gid)) = owner {
        rustix::fs::fchown(&write, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok((read, write))
}

fn winsize(size: Size) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}
