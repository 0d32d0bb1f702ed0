//! The host's side: what is asked goes in as calls, what the guest sends as bytes; events and bytes come out.
//!
//! | State of a call | The guest may say | Then |
//! |---|---|---|
//! | Asked | `Started`, `Opened`, `Done` of what has no streams, `Failed` | Running, over |
//! | Running | `Data` within the window, `End` once for each stream, `Credit`, `Full` once, `Failed` | – |
//! | Running, every output ended | `Exited`, `Done`, `Failed` | over |
//!
//! Everything else is a [`Violation`], after which nothing comes out any more. A violation is for good, and told once.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::decoder::{Decoder, Violation};
use crate::message::{CallId, Exec, Failure, Mount, Network, Put, Shortage, Size, Status, Stream, ToGuest, ToHost};
use crate::window::{Grant, Window};
use crate::{MAX_CALLS, MAX_DATA, MAX_TO_GUEST, MAX_UNREAD, Token, VERSION};

/// What has come of what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The agent serves: calls may be made.
    Ready,
    /// A program runs, or a file is ready to be written.
    Started {
        call: CallId,
    },
    /// A file is about to be read.
    Opened {
        call: CallId,
        mode: u32,
        size: u64,
    },
    /// Bytes of a stream; [`Host::taken`] says when they are out of the way.
    Data {
        call: CallId,
        stream: Stream,
        bytes: Vec<u8>,
    },
    /// The stream has ended.
    End {
        call: CallId,
        stream: Stream,
    },
    /// There is room for so much more input.
    Room {
        call: CallId,
        bytes: u32,
    },
    /// While the program ran nothing was left of what may be written over the root.
    Full {
        call: CallId,
        shortage: Shortage,
    },
    Exited {
        call: CallId,
        status: Status,
    },
    Done {
        call: CallId,
    },
    Failed {
        call: CallId,
        failure: Failure,
    },
}

/// Why a call was not even made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("the guest's agent has not said that it serves")]
    NotReady,
    #[error("{MAX_CALLS} things are being done in the guest, which is the most")]
    TooMany,
    #[error("the arguments and the environment together are longer than {MAX_TO_GUEST} bytes")]
    TooLong,
}

/// The host's side of a channel.
#[derive(Debug)]
pub struct Host {
    token: Token,
    state: State,
    decoder: Decoder<ToHost>,
    calls: BTreeMap<CallId, Call>,
    next_call: u32,
    output: Vec<u8>,
    events: VecDeque<Event>,
}

#[derive(Debug)]
enum State {
    /// Nothing has been said.
    Greeting,
    Serving,
    Broken(Violation),
}

#[derive(Debug)]
struct Call {
    kind: Kind,
    started: bool,
    /// Whether it has been told that the disk was full.
    full: bool,
    input: Input,
    outputs: [Option<Output>; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exec,
    Put,
    Get,
    /// One without streams.
    Short,
}

#[derive(Debug)]
enum Input {
    None,
    Open(Window),
    /// It has ended; credit for what was sent before may be on its way.
    Ended(Window),
}

/// A stream that has not ended.
#[derive(Debug, Default)]
struct Output {
    window: Window,
    grant: Grant,
}

impl Host {
    /// The side of the host of a boot with this token.
    #[must_use]
    pub fn new(token: Token) -> Host {
        Host {
            token,
            state: State::Greeting,
            decoder: Decoder::new(),
            calls: BTreeMap::new(),
            next_call: 1,
            output: Vec::new(),
            events: VecDeque::new(),
        }
    }

    /// Bytes of the guest have come.
    ///
    /// # Errors
    /// The first time that the guest did not hold to the protocol, and every time after.
    pub fn handle_bytes(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        if let State::Broken(violation) = &self.state {
            return Err(violation.clone());
        }
        let handled = loop {
            if self.output.len() > MAX_UNREAD {
                break Err(Violation::Deaf);
            }
            match self.decoder.decode(&mut bytes) {
                Ok(None) => break Ok(()),
                Ok(Some(message)) => {
                    if let Err(violation) = self.handle_message(message) {
                        break Err(violation);
                    }
                }
                // What cannot be read as a first message is as likely as not a console.
                Err(Violation::Malformed { .. } | Violation::TooLong { .. })
                    if matches!(self.state, State::Greeting) =>
                {
                    break Err(Violation::NoGreeting);
                }
                Err(violation) => break Err(violation),
            }
        };
        if let Err(violation) = &handled {
            self.state = State::Broken(violation.clone());
            self.calls.clear();
            self.output.clear();
        }
        handled
    }

    /// What has come of it; drain to `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What is to be sent to the guest.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// So many bytes of the output have been sent.
    pub fn sent(&mut self, bytes: usize) {
        self.output.drain(..bytes.min(self.output.len()));
    }

    /// Has a program executed.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn exec(&mut self, exec: Exec) -> Result<CallId, CallError> {
        let outputs = [Some(Output::default()), exec.terminal.is_none().then(Output::default)];
        self.call(Kind::Exec, Input::Open(Window::new()), outputs, |call| ToGuest::Exec { call, exec })
    }

    /// Has a file written, whose content are [`Host::write`] and [`Host::end`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn put(&mut self, put: Put) -> Result<CallId, CallError> {
        self.call(Kind::Put, Input::Open(Window::new()), [None, None], |call| ToGuest::Put { call, put })
    }

    /// Has a file read.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn get(&mut self, path: Vec<u8>) -> Result<CallId, CallError> {
        let outputs = [Some(Output::default()), None];
        self.call(Kind::Get, Input::None, outputs, |call| ToGuest::Get { call, path })
    }

    /// # Errors
    /// See [`CallError`].
    pub fn mount(&mut self, mount: Mount) -> Result<CallId, CallError> {
        self.short(|call| ToGuest::Mount { call, mount })
    }

    /// # Errors
    /// See [`CallError`].
    pub fn unmount(&mut self, target: Vec<u8>) -> Result<CallId, CallError> {
        self.short(|call| ToGuest::Unmount { call, target })
    }

    /// # Errors
    /// See [`CallError`].
    pub fn network(&mut self, network: Network) -> Result<CallId, CallError> {
        self.short(|call| ToGuest::Network { call, network })
    }

    /// Sets the guest's clock; `time` is since 1970.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn set_time(&mut self, time: Duration) -> Result<CallId, CallError> {
        self.short(|call| ToGuest::SetTime { call, time })
    }

    /// Has everything in the guest ended and the machine switched off. A guest that does it does not answer.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn shutdown(&mut self) -> Result<CallId, CallError> {
        self.short(|call| ToGuest::Shutdown { call })
    }

    /// How many bytes of input a call takes.
    #[must_use]
    pub fn room(&self, call: CallId) -> usize {
        match self.calls.get(&call) {
            Some(Call { input: Input::Open(window), .. }) => window.room(),
            Some(Call { input: Input::None | Input::Ended(_), .. }) | None => 0,
        }
    }

    /// Sends as much of the input as there is room for, and says how much that was.
    pub fn write(&mut self, call: CallId, bytes: &[u8]) -> usize {
        let Some(Call { input: Input::Open(window), .. }) = self.calls.get_mut(&call) else { return 0 };
        let (now, _) = bytes.split_at(window.room().min(bytes.len()));
        if !window.spend(now.len()) {
            return 0;
        }
        for piece in now.chunks(MAX_DATA) {
            self.output.extend(ToGuest::Data { call, bytes: piece.to_vec() }.emit());
        }
        now.len()
    }

    /// The input has ended. Does nothing for one that has ended already, or for a call that is over.
    pub fn end(&mut self, call: CallId) {
        let Some(state) = self.calls.get_mut(&call) else { return };
        if let Input::Open(window) = state.input {
            state.input = Input::Ended(window);
            self.output.extend(ToGuest::End { call }.emit());
        }
    }

    /// Bytes of a stream that were in events are out of the way, and more may come.
    pub fn taken(&mut self, call: CallId, stream: Stream, bytes: usize) {
        let Some(output) = self.calls.get_mut(&call).and_then(|state| state.output(stream)) else { return };
        if let Some(bytes) = output.grant.take(bytes) {
            // What was taken came within the window, so there is room for it.
            let fits = output.window.credit(bytes);
            debug_assert!(fits, "more was taken than had come");
            self.output.extend(ToGuest::Credit { call, stream, bytes }.emit());
        }
    }

    /// Gives a program's terminal a new size.
    pub fn resize(&mut self, call: CallId, size: Size) {
        self.tell(call, ToGuest::Resize { call, size });
    }

    /// Sends a program a signal.
    pub fn signal(&mut self, call: CallId, signal: u8) {
        self.tell(call, ToGuest::Signal { call, signal });
    }

    /// Ends a call and every process that it started. It ends as it does by itself: with an event.
    pub fn kill(&mut self, call: CallId) {
        self.tell(call, ToGuest::Kill { call });
    }

    fn tell(&mut self, call: CallId, message: ToGuest) {
        if self.calls.contains_key(&call) {
            self.output.extend(message.emit());
        }
    }

    fn short(&mut self, message: impl FnOnce(CallId) -> ToGuest) -> Result<CallId, CallError> {
        self.call(Kind::Short, Input::None, [None, None], message)
    }

    fn call(
        &mut self,
        kind: Kind,
        input: Input,
        outputs: [Option<Output>; 2],
        message: impl FnOnce(CallId) -> ToGuest,
    ) -> Result<CallId, CallError> {
        let State::Serving = self.state else { return Err(CallError::NotReady) };
        if self.calls.len() >= MAX_CALLS {
            return Err(CallError::TooMany);
        }
        let call = CallId(self.next_call);
        let frame = message(call).emit();
        if frame.len() > MAX_TO_GUEST {
            return Err(CallError::TooLong);
        }
        // Four thousand million calls in one boot are out of reach: none takes less than a microsecond and a fork.
        self.next_call = self.next_call.wrapping_add(1);
        self.output.extend(frame);
        self.calls.insert(call, Call { kind, started: false, full: false, input, outputs });
        Ok(call)
    }

    fn handle_message(&mut self, message: ToHost) -> Result<(), Violation> {
        if let State::Greeting = self.state {
            return self.greet(message);
        }
        let call = match &message {
            ToHost::Hello { .. } => return Err(unfitting(CallId(0), "a greeting", "there was one")),
            ToHost::Dying { text } => return Err(Violation::Ended { text: text.clone() }),
            ToHost::Started { call }
            | ToHost::Opened { call, .. }
            | ToHost::Exited { call, .. }
            | ToHost::Done { call }
            | ToHost::Failed { call, .. }
            | ToHost::Data { call, .. }
            | ToHost::End { call, .. }
            | ToHost::Credit { call, .. }
            | ToHost::Full { call, .. } => *call,
        };
        let what = describe(&message);
        let Some(state) = self.calls.get_mut(&call) else {
            return Err(unfitting(call, what, "there is no such call"));
        };
        let event = state.handle(call, message).map_err(|why| unfitting(call, what, why))?;
        if matches!(event, Event::Exited { .. } | Event::Done { .. } | Event::Failed { .. }) {
            self.calls.remove(&call);
        }
        self.events.push_back(event);
        Ok(())
    }

    fn greet(&mut self, message: ToHost) -> Result<(), Violation> {
        match message {
            ToHost::Hello { version, .. } if version != VERSION => Err(Violation::Version { theirs: version }),
            ToHost::Hello { token, .. } if token != self.token => Err(Violation::Token),
            ToHost::Hello { .. } => {
                self.state = State::Serving;
                self.output.extend(ToGuest::Hello { version: VERSION, token: self.token.clone() }.emit());
                self.events.push_back(Event::Ready);
                Ok(())
            }
            ToHost::Dying { text } => Err(Violation::Ended { text }),
            ToHost::Started { .. }
            | ToHost::Opened { .. }
            | ToHost::Exited { .. }
            | ToHost::Done { .. }
            | ToHost::Failed { .. }
            | ToHost::Data { .. }
            | ToHost::End { .. }
            | ToHost::Credit { .. }
            | ToHost::Full { .. } => Err(Violation::NoGreeting),
        }
    }
}

impl Call {
    fn output(&mut self, stream: Stream) -> Option<&mut Output> {
        let [output, error] = &mut self.outputs;
        match stream {
            Stream::Output => output.as_mut(),
            Stream::Error => error.as_mut(),
        }
    }

    /// Holds a message to the call's state; an error is why it does not fit.
    fn handle(&mut self, call: CallId, message: ToHost) -> Result<Event, &'static str> {
        let fits = |fits: bool, why| if fits { Ok(()) } else { Err(why) };
        match message {
            ToHost::Started { .. } => {
                fits(
                    matches!(self.kind, Kind::Exec | Kind::Put) && !self.started,
                    "it does not start, or has started",
                )?;
                self.started = true;
                Ok(Event::Started { call })
            }
            ToHost::Opened { mode, size, .. } => {
                fits(self.kind == Kind::Get && !self.started, "it opens no file, or has opened it")?;
                self.started = true;
                Ok(Event::Opened { call, mode, size })
            }
            ToHost::Data { stream, bytes, .. } => {
                fits(self.started, "it has not started")?;
                let output = self.output(stream).ok_or("there is no such stream, or it has ended")?;
                fits(output.window.spend(bytes.len()), "there is no room for it")?;
                Ok(Event::Data { call, stream, bytes })
            }
            ToHost::End { stream, .. } => {
                fits(self.started, "it has not started")?;
                let [output, error] = &mut self.outputs;
                let output = match stream {
                    Stream::Output => output.take(),
                    Stream::Error => error.take(),
                };
                output.ok_or("there is no such stream, or it has ended")?;
                Ok(Event::End { call, stream })
            }
            ToHost::Credit { bytes, .. } => {
                fits(self.started, "it has not started")?;
                fits(bytes > 0, "it is for nothing")?;
                match &mut self.input {
                    Input::Open(window) | Input::Ended(window) => {
                        fits(window.credit(bytes), "that is more than a window has")?;
                    }
                    Input::None => return Err("it has no input"),
                }
                Ok(Event::Room { call, bytes })
            }
            ToHost::Full { shortage, .. } => {
                fits(self.kind == Kind::Exec && self.started, "it is no program, or has not started")?;
                fits(!std::mem::replace(&mut self.full, true), "that has been said")?;
                Ok(Event::Full { call, shortage })
            }
            ToHost::Exited { status, .. } => {
                fits(self.kind == Kind::Exec && self.started, "it is no program, or has not started")?;
                fits(self.has_ended(), "a stream has not ended")?;
                Ok(Event::Exited { call, status })
            }
            ToHost::Done { .. } => {
                fits(self.kind == Kind::Short || self.started, "it has not started")?;
                fits(self.kind != Kind::Exec, "it is a program")?;
                fits(self.has_ended(), "a stream has not ended")?;
                Ok(Event::Done { call })
            }
            ToHost::Failed { failure, .. } => Ok(Event::Failed { call, failure }),
            ToHost::Hello { .. } | ToHost::Dying { .. } => Err("it is about no call"),
        }
    }

    fn has_ended(&self) -> bool {
        self.outputs.iter().all(Option::is_none)
    }
}

fn unfitting(call: CallId, what: &'static str, why: &'static str) -> Violation {
    Violation::Unfitting { call: call.0, what, why }
}

fn describe(message: &ToHost) -> &'static str {
    match message {
        ToHost::Hello { .. } => "a greeting",
        ToHost::Started { .. } => "a start",
        ToHost::Opened { .. } => "an opened file",
        ToHost::Exited { .. } => "an exit status",
        ToHost::Done { .. } => "an end",
        ToHost::Failed { .. } => "a failure",
        ToHost::Data { .. } => "data",
        ToHost::End { .. } => "the end of a stream",
        ToHost::Credit { .. } => "credit",
        ToHost::Full { .. } => "that the disk is full",
        ToHost::Dying { .. } => "its last words",
    }
}
