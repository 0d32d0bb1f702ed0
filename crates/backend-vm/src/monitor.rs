//! The monitor: starts QEMU, speaks with the agent in the guest, and is what its pid 1 takes for the program.
//!
//! | State | Event | Then |
//! |---|---|---|
//! | booting | the agent's greeting | the clock, the network and the mounts are asked for |
//! | booting | all of them are done | `Booted`; waits to be told to go on |
//! | booting | QEMU ends, the agent breaks the protocol, a call fails, the time is up | `Lost` |
//! | booted | – | `Exec` |
//! | booted | `Started` | `Started`; the streams are relayed |
//! | booted | `Failed` | `NotExecuted`, or `Lost` |
//! | running | data, signals, a new size of the terminal | passed on |
//! | running | `Full` | `DiskFull` |
//! | running | `Exited` | what is left of its output is written, QEMU is ended, its exit status is ours |
//! | running | QEMU ends, the agent breaks the protocol | `Lost` |
//!
//! A machine that stays has no program of its own: from `booted` on it is the [`switchboard`](crate::switchboard) of the runs in it.
//!
//! | State | Event | Then |
//! |---|---|---|
//! | staying | a line of pid 1 | somebody may call over it |
//! | staying | a share that is to be attached or detached | the guest is asked to mount or unmount it, and pid 1 told what has come of it |
//! | staying | bytes of a caller or of the agent | to the other |
//! | staying | TERM | the guest writes what it has in memory, and is switched off |
//! | staying | QEMU ends, the agent breaks the protocol | every caller is told why, then `Lost` |
//!
//! Everything that it reads from the agent, from QMP and from the console is the guest's word. It believes none of it; and it
//! has no right that a guest could gain.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_backend_ns::{DeviceServer, DiskFull, Monitor, Post, Request, ServerPlace};
use cofferdam_guest_protocol::{
    CallError, CallId, Event, Exec, Failure, FailureKind, Host, Mount, MountKind, Network, Put, Shortage, Size, Status,
    Stream, Token,
};
use cofferdam_sys::process::{self, SignalFd};
use cofferdam_sys::tty::RawMode;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::Signal;

use crate::accounts;
use crate::arguments::Vm;
use crate::files::Files;
use crate::process::{Parts, Qemu};
use crate::qmp::{self, Qmp, Reason};
use crate::relay::{CHUNK, Outgoing, Written};
use crate::switchboard::{CallerId, Switchboard};

/// How long the agent may take to start a program.
pub(crate) const EXEC_TIME: Duration = Duration::from_secs(25);

/// How long a guest with shared directories may take to write what it has not written, and switch itself off.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long those who call may take to hear that there is no guest any more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What to do about a directory that cannot be mounted for want of a file system in the guest's kernel: which, and what.
const REMEDIES: [(&str, &str); 3] = [
    (
        "type 9p",
        "; by 9p directories are shared without a network, and Debian's cloud kernel has it not: let the guest have a network \
        (--net mounts-only for nothing else), leave the current directory out with --no-cwd, or have `cofferdam vm setup` take \
        Debian's usual kernel",
    ),
    (
        "type cifs",
        "; by cifs directories are shared over the network: have `cofferdam vm setup` take a kernel with it, as Debian's are, choose \
        --mount-via 9p, or leave the current directory out with --no-cwd",
    ),
    (
        "type virtiofs",
        "; have `cofferdam vm setup` take a kernel with virtiofs, as Debian's are, or leave --mount-via out",
    ),
];

/// What the system says of a file system that it has not.
const NO_DEVICE: &str = "No such device";

/// The same of a root that is a directory.
const NO_9P_ROOT: &str = "; a directory is a root by 9p, which Debian's cloud kernel has not: make an image of it (mke2fs -t ext4 -d DIR IMAGE \
    SIZE), or have `cofferdam vm setup --kernel` take a kernel with it";

/// After QEMU has ended, what it said is still in the sockets: how often each is read at most.
const LAST_READS: usize = 64;

/// Signals that do not end who gets them: they stop it, have it go on, or do nothing.
const STAYS: [Signal; 8] =
    [Signal::STOP, Signal::TSTP, Signal::TTIN, Signal::TTOU, Signal::CONT, Signal::CHILD, Signal::URG, Signal::WINCH];

/// How many bytes may wait for a guest that says it has room and does not fetch them.
const MOST_WAITING: usize = 1 << 20;

/// What becomes signals of the program in the guest.
const PASSED_ON: [Signal; 6] = [Signal::INT, Signal::QUIT, Signal::HUP, Signal::TERM, Signal::USR1, Signal::USR2];

/// Files in `/etc` that say who there is.
const ACCOUNTS: [&str; 2] = ["passwd", "group"];

/// A virtual machine that is to be started, and what is to happen in it.
#[derive(Debug)]
pub(crate) struct GuestMonitor {
    pub(crate) qemu: PathBuf,
    pub(crate) vm: Vm,
    pub(crate) token: Token,
    pub(crate) boot_time: Duration,
    pub(crate) network: Option<Network>,
    pub(crate) mounts: Vec<Mount>,
    /// What a server of ours serves of them.
    pub(crate) served: Option<Files>,
    /// Who serves them by devices: as many as the machine has of those.
    pub(crate) devices: Vec<DeviceServer>,
    /// Files in `/etc`, by name.
    pub(crate) files: Vec<(&'static str, String)>,
    pub(crate) task: Task,
}

/// What a machine is started for.
#[derive(Debug)]
pub(crate) enum Task {
    Run(Exec),
    /// To see that it starts.
    Start,
    /// To be there for others.
    Stay,
}

impl Monitor for GuestMonitor {
    fn run(&self, mut post: Post) -> u8 {
        if begin("cofferdam-vm").is_err() {
            return 1;
        }
        match self.accompany(&mut post) {
            Ok(End::Exited(status)) => end_as(status),
            Ok(End::Told) => 1,
            Err(why) => {
                post.lost(&why);
                1
            }
        }
    }

    fn shares(&self) -> Vec<(PathBuf, bool)> {
        self.served.as_ref().map(Files::at_start).unwrap_or_default()
    }

    fn serve_files(&self, place: ServerPlace, post: Post) -> u8 {
        self.served.as_ref().map_or(1, |files| files.serve(place, post))
    }

    fn device_servers(&self) -> &[DeviceServer] {
        &self.devices
    }
}

/// What a process of ours in a sandbox does first.
pub(crate) fn begin(name: &str) -> io::Result<()> {
    process::rename(name)?;
    // Its end would be that of the run, with nothing said.
    process::ignore(Signal::PIPE)
}

/// The initramfs with the token behind it, in memory: no one but this boot's QEMU sees the token.
fn with_token(initrd: &Path, token: &Token) -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("initrd", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut whole = File::from(memory);
    let length = io::copy(&mut File::open(initrd)?, &mut whole)?;
    let length = usize::try_from(length).map_err(io::Error::other)?;
    whole.write_all(cofferdam_initramfs::padding(length))?;
    whole.write_all(&cofferdam_initramfs::boot_archive(token.bytes()))?;
    Ok(whole.into())
}

/// How it ends when nothing went wrong on the way.
pub(crate) enum End {
    Exited(Status),
    /// Whoever has to know does.
    Told,
}

impl GuestMonitor {
    fn accompany(&self, post: &mut Post) -> Result<End, String> {
        let deadline = Instant::now() + self.boot_time;
        let initrd = with_token(&self.vm.initrd, &self.token)
            .map_err(|error| format!("cannot prepare what the guest's kernel starts with: {error}"))?;
        let parts = Parts { initrd, tap: post.take_link(), devices: post.take_devices() };
        let qemu = Qemu::start(&self.qemu, self.vm.clone(), parts)
            .map_err(|error| format!("cannot execute {}: {error}", self.qemu.display()))?;
        let mut guest =
            Guest { qemu, host: Host::new(self.token.clone()), qmp: Qmp::new(), control: Vec::new(), off: None };
        guest.boot(self, deadline).map_err(|trouble| {
            let why = guest.explain(trouble, self.boot_time);
            if why.contains("mount the root, root of type 9p") { why + NO_9P_ROOT } else { why }
        })?;
        guest.qemu.empty_initrd();
        if !post.booted() {
            return Ok(End::Told);
        }
        let ended = match &self.task {
            Task::Start => {
                post.started();
                return Ok(End::Exited(Status::Code(0)));
            }
            Task::Stay => return stay(&mut guest, post, self.served.as_ref()),
            Task::Run(exec) => execute(&mut guest, exec.clone(), post),
        };
        let ended = ended.map_err(|trouble| guest.explain(trouble, EXEC_TIME))?;
        if matches!(ended, End::Exited(_)) && self.mounts.iter().any(|mount| mount.kind != MountKind::Tmpfs) {
            guest.say_goodbye();
        }
        Ok(ended)
    }
}

/// What to do about a mount that has failed with these words; may be empty.
fn remedy(text: &str) -> &'static str {
    let is_absent = |kind: &str| text.contains(kind) && text.contains(NO_DEVICE);
    REMEDIES.iter().find(|(kind, _)| is_absent(kind)).map_or("", |(_, what)| *what)
}

/// Has a program executed, and relays its streams and signals to its end.
pub(crate) fn execute(side: &mut impl Side, exec: Exec, post: &Post) -> Result<End, Trouble> {
    let has_terminal = exec.terminal.is_some();
    let call = side.host().exec(exec).map_err(|error| Trouble::Broken(error.to_string()))?;
    match started(side, call, Instant::now() + EXEC_TIME)? {
        Ok(()) => {}
        Err(Failure { kind, text }) => {
            let errno = match kind {
                FailureKind::NotFound => Errno::NOENT,
                FailureKind::NotExecutable => Errno::ACCESS,
                FailureKind::Killed | FailureKind::Refused => {
                    return Err(Trouble::Broken(format!("the program did not start: {text}")));
                }
            };
            post.not_executed(errno.raw_os_error());
            return Ok(End::Told);
        }
    }
    let mut signals: Vec<Signal> = PASSED_ON.to_vec();
    signals.push(Signal::WINCH);
    let signals =
        SignalFd::new(&signals).map_err(|error| Trouble::Broken(format!("signals cannot be received: {error}")))?;
    let raw = if has_terminal { RawMode::enter(io::stdin()).ok().flatten() } else { None };
    post.started();
    let ended = Run::new(side, post, call, &signals).relay();
    drop(raw);
    ended.map(End::Exited)
}

/// Is there for callers, until the guest ends or is to be ended.
fn stay(guest: &mut Guest, post: &Post, files: Option<&Files>) -> Result<End, String> {
    let signals = SignalFd::new(&[Signal::TERM]).map_err(|error| format!("signals cannot be received: {error}"))?;
    post.started();
    let (board, lines, shares) = (Switchboard::default(), BTreeMap::new(), BTreeMap::new());
    let mut exchange = Exchange { guest, post, files, signals, board, lines, shares };
    match exchange.serve() {
        Ok(()) => {
            exchange.guest.say_goodbye();
            Ok(End::Exited(Status::Code(0)))
        }
        Err(trouble) => {
            let why = exchange.guest.explain(trouble, Duration::ZERO);
            exchange.tell_all(&why);
            Err(why)
        }
    }
}

/// A guest and those who call.
struct Exchange<'a> {
    guest: &'a mut Guest,
    post: &'a Post,
    files: Option<&'a Files>,
    signals: SignalFd,
    board: Switchboard,
    lines: BTreeMap<CallerId, OwnedFd>,
    /// What the guest is mounting or unmounting for us, by the numbers of the shares.
    shares: BTreeMap<CallId, u32>,
}

impl Exchange<'_> {
    /// Until it is asked to end.
    fn serve(&mut self) -> Result<(), Trouble> {
        loop {
            while let Some(event) = self.guest.host.poll_event() {
                if !self.is_of_a_share(&event) {
                    self.board.handle_event(&mut self.guest.host, event);
                }
            }
            for source in wait(&self.sources(), None)? {
                match source {
                    Source::Signals => {
                        if let Ok(Some(_)) = self.signals.next() {
                            return Ok(());
                        }
                    }
                    Source::Requests => self.handle_request()?,
                    Source::Line(id) => self.handle_line(id),
                    Source::Agent | Source::Control | Source::Console | Source::End => self.guest.handle(source)?,
                    Source::Input | Source::Output(_) => {}
                }
            }
        }
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut sources = self.guest.sources();
        sources.push((Source::Signals, self.signals.as_fd(), PollFlags::IN));
        sources.push((Source::Requests, self.post.requests(), PollFlags::IN));
        // What a guest that says it has room does not fetch waits with its callers.
        let input = if self.guest.host.output().len() < MOST_WAITING { PollFlags::IN } else { PollFlags::empty() };
        sources.extend(self.lines.iter().filter_map(|(id, line)| {
            let output = if self.board.output(*id).is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            // A line that nothing is wanted of is ready all the same when its other end is gone.
            let wanted = input | output;
            (!wanted.is_empty()).then(|| (Source::Line(*id), line.as_fd(), wanted))
        }));
        sources
    }

    fn handle_request(&mut self) -> Result<(), Trouble> {
        let request = self.post.next_request();
        match request.map_err(|error| Trouble::Broken(format!("its pid 1 cannot be heard: {error}")))? {
            Some(Request::Caller(line)) => self.accept(line),
            Some(Request::Attach { number, read_only, target }) => {
                let target = target.as_os_str().as_bytes();
                match self.files {
                    Some(files) => {
                        let asked = self.guest.host.mount(files.mount(number, read_only, target));
                        self.asked(number, asked);
                    }
                    None => self.post.attached(number, Err("nothing serves it any directory".to_owned())),
                }
            }
            Some(Request::Detach { number, target }) => {
                let asked = self.guest.host.unmount(target.into_os_string().into_vec());
                self.asked(number, asked);
            }
            None => {}
        }
        Ok(())
    }

    /// The guest has been asked to do something about a share.
    fn asked(&mut self, number: u32, asked: Result<CallId, CallError>) {
        match asked {
            Ok(call) => drop(self.shares.insert(call, number)),
            Err(error) => self.post.attached(number, Err(error.to_string())),
        }
    }

    /// Whether it was about a share; whoever wants to know is told.
    fn is_of_a_share(&mut self, event: &Event) -> bool {
        let (call, result) = match event {
            Event::Done { call } => (call, Ok(())),
            Event::Failed { call, failure } => (call, Err(format!("{}{}", failure.text, remedy(&failure.text)))),
            Event::Ready
            | Event::Started { .. }
            | Event::Opened { .. }
            | Event::Data { .. }
            | Event::End { .. }
            | Event::Room { .. }
            | Event::Full { .. }
            | Event::Exited { .. } => return false,
        };
        let Some(number) = self.shares.remove(call) else { return false };
        self.post.attached(number, result);
        true
    }

    fn accept(&mut self, line: OwnedFd) {
        // One too many sees its line closed.
        if rustix::io::ioctl_fionbio(&line, true).is_ok()
            && let Some(id) = self.board.add()
        {
            self.lines.insert(id, line);
        }
    }

    fn handle_line(&mut self, id: CallerId) {
        let is_there = self.write_line(id) && self.read_line(id);
        if !is_there {
            self.lines.remove(&id);
            self.board.remove(&mut self.guest.host, id);
        }
    }

    fn write_line(&mut self, id: CallerId) -> bool {
        let Some(line) = self.lines.get(&id) else { return false };
        if self.board.output(id).is_empty() {
            return true;
        }
        match rustix::net::send(line, self.board.output(id), SendFlags::NOSIGNAL) {
            Ok(len) => {
                self.board.sent(id, len);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    fn read_line(&mut self, id: CallerId) -> bool {
        let Some(line) = self.lines.get(&id) else { return false };
        if self.guest.host.output().len() >= MOST_WAITING {
            return true;
        }
        let mut buffer = [0; CHUNK];
        match rustix::io::read(line, &mut buffer) {
            Ok(len @ 1..) => {
                let bytes = buffer.get(..len).unwrap_or_default();
                self.board.handle_bytes(&mut self.guest.host, id, bytes).is_ok()
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Ok(_) | Err(_) => false,
        }
    }

    /// Tells everybody why there is no guest any more, and waits until they have heard it: with the sandbox they end as well.
    fn tell_all(&mut self, why: &str) {
        self.board.end(why);
        let deadline = Instant::now() + LAST_WORDS;
        while !self.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let lines = self.lines.iter().map(|(id, line)| {
                let output = if self.board.output(*id).is_empty() { PollFlags::empty() } else { PollFlags::OUT };
                (Source::Line(*id), line.as_fd(), PollFlags::IN | output)
            });
            let ready = match wait(&lines.collect::<Vec<_>>(), Some(left)) {
                Ok(ready) if !left.is_zero() => ready,
                Ok(_) | Err(_) => return,
            };
            for source in ready {
                if let Source::Line(id) = source {
                    self.handle_line(id);
                }
            }
        }
    }
}

/// Who executes programs for us.
pub(crate) trait Side {
    /// What is said with it.
    fn host(&mut self) -> &mut Host;
    fn heard(&self) -> &Host;
    /// What it is waited for by.
    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)>;
    /// One of those is ready.
    fn handle(&mut self, source: Source) -> Result<(), Trouble>;
}

/// The next event of it.
pub(crate) fn next_event(side: &mut impl Side, deadline: Instant) -> Result<Event, Trouble> {
    loop {
        if let Some(event) = side.host().poll_event() {
            return Ok(event);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Trouble::Late);
        }
        let ready = wait(&side.sources(), Some(left))?;
        for source in ready {
            side.handle(source)?;
        }
    }
}

/// Waits until the program runs, or cannot.
fn started(side: &mut impl Side, call: CallId, deadline: Instant) -> Result<Result<(), Failure>, Trouble> {
    let event = next_event(side, deadline)?;
    if event == (Event::Started { call }) {
        return Ok(Ok(()));
    }
    if let Event::Failed { failure, .. } = event { Ok(Err(failure)) } else { Err(out_of_turn(&event)) }
}

/// Why there is no guest any more.
pub(crate) enum Trouble {
    /// QEMU has ended.
    Ended(String),
    /// It has not answered in time.
    Late,
    /// One of the two said what it may not, or could not be reached.
    Broken(String),
}

/// A running machine, and what is said with it.
struct Guest {
    qemu: Qemu,
    host: Host,
    qmp: Qmp,
    /// What is to be sent by QMP.
    control: Vec<u8>,
    /// Why it has been switched off, if QEMU said so.
    off: Option<Off>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Off {
    Panicked,
    For(Reason),
}

/// An agent of ours does not say this now. The protocol's own part has held it to the rest.
pub(crate) fn out_of_turn(event: &Event) -> Trouble {
    let what = match event {
        Event::Ready => "a greeting",
        Event::Started { .. } => "that something has started",
        Event::Opened { .. } => "that a file is open",
        Event::Data { .. } => "data",
        Event::End { .. } => "the end of a stream",
        Event::Room { .. } => "that there is room",
        Event::Full { .. } => "that the disk is full",
        Event::Exited { .. } => "that a program has ended",
        Event::Done { .. } => "that something is done",
        Event::Failed { .. } => "that something has failed",
    };
    Trouble::Broken(format!("the guest's agent sent {what} out of turn"))
}

/// What the monitor waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    End,
    Console,
    Agent,
    Control,
    Input,
    Output(Stream),
    Signals,
    /// What is wanted of the machine; and somebody who has said that something is to be done in the guest.
    Requests,
    Line(CallerId),
}

impl Guest {
    /// From QEMU's start to a guest in which everything is in place.
    fn boot(&mut self, monitor: &GuestMonitor, deadline: Instant) -> Result<(), Trouble> {
        let greeting = self.event(deadline)?;
        if greeting != Event::Ready {
            return Err(out_of_turn(&greeting));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // These are asked for at once, and answered in any order.
        let mut calls = vec![(self.host.set_time(now), "set the clock".to_owned())];
        if let Some(network) = monitor.network.clone() {
            calls.push((self.host.network(network), "set up the network".to_owned()));
        }
        self.done(std::mem::take(&mut calls), deadline)?;
        let mut files = Vec::new();
        for (name, content) in &monitor.files {
            let path = format!("/etc/{name}");
            let mut content = Cow::Borrowed(content.as_bytes());
            // A root of somebody's own has users of its own.
            if monitor.vm.root.is_some()
                && ACCOUNTS.contains(name)
                && let Some(theirs) = self.fetch(&path, deadline)?
            {
                content = accounts::merged(&theirs, &String::from_utf8_lossy(&content)).into();
            }
            files.push((path, content));
        }
        for (path, content) in files {
            let put = self.host.put(Put { path: path.clone().into_bytes(), mode: 0o644, uid: 0, gid: 0 });
            // Less than a window.
            if let Ok(call) = put {
                self.host.write(call, &content);
                self.host.end(call);
            }
            calls.push((put, format!("write {path}")));
        }
        self.done(calls, deadline)?;
        // One after the other: the place of one may be in another.
        for mount in &monitor.mounts {
            let what = format!("mount {}", String::from_utf8_lossy(&mount.target));
            let call = self.host.mount(mount.clone());
            self.done(vec![(call, what)], deadline)?;
        }
        Ok(())
    }

    /// The content of a small file in the guest, if it is there. Nothing else may have been asked for.
    fn fetch(&mut self, path: &str, deadline: Instant) -> Result<Option<Vec<u8>>, Trouble> {
        let broken = |why: &str| Trouble::Broken(format!("cannot read {path} in the guest: {why}"));
        self.host.get(path.as_bytes().to_vec()).map_err(|error| broken(&error.to_string()))?;
        let mut content = Vec::new();
        loop {
            match self.event(deadline)? {
                // What is in a window at the start is all that comes without asking for more.
                Event::Opened { size, .. } if size > accounts::MOST => return Err(broken("it is too large")),
                Event::Data { bytes, .. } => content.extend(bytes),
                Event::Opened { .. } | Event::End { .. } => {}
                Event::Done { .. } => return Ok(Some(content)),
                Event::Failed { failure: Failure { kind: FailureKind::NotFound, .. }, .. } => return Ok(None),
                Event::Failed { failure, .. } => return Err(broken(&failure.text)),
                other @ (Event::Ready
                | Event::Started { .. }
                | Event::Room { .. }
                | Event::Full { .. }
                | Event::Exited { .. }) => return Err(out_of_turn(&other)),
            }
        }
    }

    /// Waits until all of these are done.
    fn done(&mut self, calls: Vec<(Result<CallId, CallError>, String)>, deadline: Instant) -> Result<(), Trouble> {
        let mut open = BTreeMap::new();
        for (call, what) in calls {
            let call = call.map_err(|error| Trouble::Broken(format!("cannot {what} in the guest: {error}")))?;
            open.insert(call, what);
        }
        while !open.is_empty() {
            match self.event(deadline)? {
                Event::Done { call } => drop(open.remove(&call)),
                Event::Started { .. } | Event::Room { .. } => {}
                Event::Failed { call, failure } => {
                    let what = open.remove(&call).unwrap_or_default();
                    let remedy = remedy(&failure.text);
                    return Err(Trouble::Broken(format!("the guest could not {what}: {}{remedy}", failure.text)));
                }
                other @ (Event::Ready
                | Event::Opened { .. }
                | Event::Data { .. }
                | Event::End { .. }
                | Event::Full { .. }
                | Event::Exited { .. }) => return Err(out_of_turn(&other)),
            }
        }
        Ok(())
    }

    /// The next event of the agent.
    fn event(&mut self, deadline: Instant) -> Result<Event, Trouble> {
        next_event(self, deadline)
    }
}

impl Side for Guest {
    fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    fn heard(&self) -> &Host {
        &self.host
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let agent = if self.host.output().is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let control = if self.control.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        // A QEMU that somebody has taken over closes what it likes, and what is closed is ready for ever.
        let mut sources = Vec::new();
        if self.qemu.agent_open {
            sources.push((Source::Agent, self.qemu.agent.as_fd(), agent));
        }
        if self.qemu.control_open {
            sources.push((Source::Control, self.qemu.control.as_fd(), control));
        }
        sources.push((Source::End, self.qemu.end(), PollFlags::IN));
        sources.extend(self.qemu.output().map(|output| (Source::Console, output, PollFlags::IN)));
        sources
    }

    fn handle(&mut self, source: Source) -> Result<(), Trouble> {
        match source {
            Source::Agent => {
                self.write_agent()?;
                self.read_agent().map(drop)
            }
            Source::Control => {
                self.write_control();
                self.read_control().map(drop)
            }
            Source::Console => {
                self.qemu.handle_output();
                Ok(())
            }
            Source::End => self.ended(),
            Source::Input | Source::Output(_) | Source::Signals | Source::Requests | Source::Line(_) => Ok(()),
        }
    }
}

impl Guest {
    /// QEMU has ended: reads what it has said before, which may be all that was waited for.
    fn ended(&mut self) -> Result<(), Trouble> {
        let Some(how) = self.qemu.has_ended() else { return Ok(()) };
        for _ in 0..LAST_READS {
            if !self.read_agent()? {
                break;
            }
        }
        for _ in 0..LAST_READS {
            if !self.read_control()? {
                break;
            }
        }
        Err(Trouble::Ended(how))
    }

    /// Whether there was something.
    fn read_agent(&mut self) -> Result<bool, Trouble> {
        let mut buffer = [0; CHUNK];
        match rustix::io::read(&self.qemu.agent, &mut buffer) {
            // QEMU's end is noticed as such.
            Ok(0) | Err(Errno::CONNRESET) => {
                self.qemu.agent_open = false;
                Ok(false)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Ok(len) => {
                let bytes = buffer.get(..len).unwrap_or_default();
                self.host.handle_bytes(bytes).map_err(|violation| Trouble::Broken(violation.to_string()))?;
                Ok(true)
            }
            Err(error) => Err(Trouble::Broken(format!("the guest's agent cannot be heard: {error}"))),
        }
    }

    fn write_agent(&mut self) -> Result<(), Trouble> {
        while !self.host.output().is_empty() {
            match rustix::net::send(&self.qemu.agent, self.host.output(), SendFlags::NOSIGNAL) {
                Ok(len) => self.host.sent(len),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                // QEMU's end is noticed as such, and nobody is left to hear the rest.
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    let rest = self.host.output().len();
                    self.host.sent(rest);
                }
                Err(error) => return Err(Trouble::Broken(format!("the guest's agent cannot be reached: {error}"))),
            }
        }
        Ok(())
    }

    fn read_control(&mut self) -> Result<bool, Trouble> {
        let mut buffer = [0; 4096];
        let len = match rustix::io::read(&self.qemu.control, &mut buffer) {
            Ok(0) | Err(Errno::CONNRESET) => {
                self.qemu.control_open = false;
                return Ok(false);
            }
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Ok(len) => len,
            Err(error) => return Err(Trouble::Broken(format!("QEMU cannot be heard: {error}"))),
        };
        let handled = self.qmp.handle_input(buffer.get(..len).unwrap_or_default());
        while let Some(output) = self.qmp.poll_output() {
            match output {
                qmp::Output::Send(bytes) => self.control.extend(bytes),
                qmp::Output::Ready => {}
                qmp::Output::Event(qmp::Event::Panicked) => self.off = Some(Off::Panicked),
                qmp::Output::Event(qmp::Event::Shutdown(reason)) => {
                    self.off.get_or_insert(Off::For(reason));
                }
            }
        }
        handled.map_err(|error| Trouble::Broken(error.to_string()))?;
        self.write_control();
        Ok(true)
    }

    fn write_control(&mut self) {
        match rustix::net::send(&self.qemu.control, &self.control, SendFlags::NOSIGNAL) {
            Ok(len) => drop(self.control.drain(..len.min(self.control.len()))),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Its end is noticed as such.
            Err(_) => self.control.clear(),
        }
    }

    /// Has the guest write what it has in memory to what is shared with it. One that does not is ended all the same.
    fn say_goodbye(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        if self.host.shutdown().is_err() {
            return;
        }
        // Nothing but its end is waited for.
        while self.event(deadline).is_ok() {}
    }

    /// The trouble in words, and QEMU ended.
    fn explain(&mut self, trouble: Trouble, waited: Duration) -> String {
        self.qemu.kill();
        let said = self.qemu.console.excerpt().map(|line| format!("; the last it said: {line:?}")).unwrap_or_default();
        match trouble {
            Trouble::Broken(why) => why,
            Trouble::Late => format!("the guest did not answer within {} seconds{said}", waited.as_secs()),
            Trouble::Ended(how) => {
                let panicked = matches!(self.off, Some(Off::Panicked | Off::For(Reason::GuestPanic)));
                if panicked || self.qemu.console.tells_of_a_panic() {
                    return format!("the guest's kernel has panicked{said}");
                }
                match self.off {
                    Some(Off::For(Reason::GuestShutdown)) => "the guest switched itself off".to_owned(),
                    Some(Off::For(Reason::GuestReset)) => format!("the guest started anew{said}"),
                    Some(Off::Panicked | Off::For(Reason::Host | Reason::Other | Reason::GuestPanic)) | None => {
                        format!("QEMU has ended ({how}){said}")
                    }
                }
            }
        }
    }
}

/// A program that runs in the guest, between its streams and ours.
struct Run<'a, S> {
    side: &'a mut S,
    post: &'a Post,
    call: CallId,
    signals: &'a SignalFd,
    outputs: [Outgoing; 2],
    input_open: bool,
    status: Option<Status>,
}

impl<'a, S: Side> Run<'a, S> {
    fn new(side: &'a mut S, post: &'a Post, call: CallId, signals: &'a SignalFd) -> Run<'a, S> {
        let outputs = [Outgoing::default(), Outgoing::default()];
        Run { side, post, call, signals, outputs, input_open: true, status: None }
    }

    /// Relays until the program has ended and all that it wrote is written.
    fn relay(&mut self) -> Result<Status, Trouble> {
        loop {
            while let Some(event) = self.side.host().poll_event() {
                self.handle_event(event)?;
            }
            if let Some(status) = self.status
                && self.outputs.iter().all(Outgoing::is_empty)
            {
                return Ok(status);
            }
            let ready = wait(&self.sources(), None)?;
            for source in ready {
                match source {
                    Source::Input => self.read_input(),
                    Source::Output(stream) => self.write_output(stream),
                    Source::Signals => self.pass_signals(),
                    Source::End => self.side_ended()?,
                    Source::Agent | Source::Control | Source::Console => self.side.handle(source)?,
                    Source::Requests | Source::Line(_) => {}
                }
            }
        }
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut sources = Vec::new();
        for (stream, fd) in [(Stream::Output, rustix::stdio::stdout()), (Stream::Error, rustix::stdio::stderr())] {
            if !self.output(stream).is_empty() {
                sources.push((Source::Output(stream), fd, PollFlags::OUT));
            }
        }
        sources.push((Source::Signals, self.signals.as_fd(), PollFlags::IN));
        if self.status.is_some() {
            return sources;
        }
        // The room is what the guest says that it has; what it does not fetch waits here.
        if self.input_open && self.side.heard().room(self.call) > 0 && self.side.heard().output().len() < MOST_WAITING {
            sources.push((Source::Input, rustix::stdio::stdin(), PollFlags::IN));
        }
        // The agent before the end of QEMU: what it says explains that.
        sources.extend(self.side.sources());
        sources
    }

    /// QEMU has ended, which is no trouble when the program had before and what it said is just being read.
    fn side_ended(&mut self) -> Result<(), Trouble> {
        let ended = self.side.handle(Source::End);
        while let Some(event) = self.side.host().poll_event() {
            self.handle_event(event)?;
        }
        if self.status.is_some() { Ok(()) } else { ended }
    }

    fn handle_event(&mut self, event: Event) -> Result<(), Trouble> {
        match event {
            Event::Data { call, stream, bytes } if call == self.call => {
                if self.output(stream).is_closed() {
                    self.side.host().taken(call, stream, bytes.len());
                } else {
                    self.output_mut(stream).push(&bytes);
                }
                Ok(())
            }
            Event::Exited { call, status } if call == self.call => {
                self.status = Some(status);
                Ok(())
            }
            Event::Full { call, shortage } if call == self.call => {
                self.post.full(match shortage {
                    Shortage::Space { bytes } => DiskFull::Space { bytes },
                    Shortage::Files { count } => DiskFull::Files { count },
                });
                Ok(())
            }
            Event::Failed { call, failure } if call == self.call => Err(Trouble::Broken(failure.text)),
            // There is room, or there will be no more output.
            Event::Room { .. } | Event::End { .. } => Ok(()),
            other @ (Event::Ready
            | Event::Started { .. }
            | Event::Opened { .. }
            | Event::Data { .. }
            | Event::Full { .. }
            | Event::Exited { .. }
            | Event::Done { .. }
            | Event::Failed { .. }) => Err(out_of_turn(&other)),
        }
    }

    fn read_input(&mut self) {
        let mut buffer = [0; CHUNK];
        let room = self.side.heard().room(self.call).min(CHUNK);
        match rustix::io::read(rustix::stdio::stdin(), buffer.get_mut(..room).unwrap_or_default()) {
            Ok(len @ 1..) => {
                let bytes = buffer.get(..len).unwrap_or_default();
                self.side.host().write(self.call, bytes);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => {
                self.input_open = false;
                self.side.host().end(self.call);
            }
        }
    }

    fn write_output(&mut self, stream: Stream) {
        let to = match stream {
            Stream::Output => rustix::stdio::stdout(),
            Stream::Error => rustix::stdio::stderr(),
        };
        let taken = match self.output_mut(stream).write(to) {
            Written::Bytes(len) => len,
            Written::Closed(len) => {
                // As it would come to a program that writes to a pipe without a reader.
                self.side.host().signal(self.call, number(Signal::PIPE));
                len
            }
        };
        self.side.host().taken(self.call, stream, taken);
    }

    fn pass_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.next() {
            if signal == Signal::WINCH {
                if let Some(size) = terminal_size() {
                    self.side.host().resize(self.call, size);
                }
            } else {
                self.side.host().signal(self.call, number(signal));
            }
        }
    }

    fn output(&self, stream: Stream) -> &Outgoing {
        let [output, error] = &self.outputs;
        match stream {
            Stream::Output => output,
            Stream::Error => error,
        }
    }

    fn output_mut(&mut self, stream: Stream) -> &mut Outgoing {
        let [output, error] = &mut self.outputs;
        match stream {
            Stream::Output => output,
            Stream::Error => error,
        }
    }
}

/// The size of the terminal that is our standard input.
pub(crate) fn terminal_size() -> Option<Size> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdin()).ok()?;
    Some(Size { rows: size.ws_row, columns: size.ws_col })
}

fn number(signal: Signal) -> u8 {
    u8::try_from(signal.as_raw()).unwrap_or_default()
}

/// Waits until some of the sources are ready.
fn wait(sources: &[(Source, BorrowedFd<'_>, PollFlags)], timeout: Option<Duration>) -> Result<Vec<Source>, Trouble> {
    let mut fds: Vec<PollFd<'_>> = sources.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::from(i32::MAX)),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {
            let ready = sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
            Ok(ready.map(|((source, ..), _)| *source).collect())
        }
        Err(Errno::INTR) => Ok(Vec::new()),
        Err(error) => Err(Trouble::Broken(format!("cannot wait for the guest: {error}"))),
    }
}

/// Ends as the program in the guest did: by a signal when that is how it ended, so that whoever asks sees the same.
pub(crate) fn end_as(status: Status) -> u8 {
    match status {
        Status::Code(code) => code,
        Status::Signal(signal) => {
            if let Some(signal) = Signal::from_named_raw(signal.into()).filter(|signal| !STAYS.contains(signal)) {
                let _unknown = process::reset_signals(&[]);
                let _failed = rustix::process::kill_process(rustix::process::getpid(), signal);
            }
            // One that does not end a process, or that there is only in the guest. As a shell counts.
            128_u8.saturating_add(signal.min(127))
        }
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_guest_protocol::Token;

    use super::*;

    #[test]
    fn what_qemu_has_closed_is_not_waited_for_while_it_goes_on() {
        let qemu = Qemu::that_closes_its_channels();
        let host = Host::new(Token::new([7; Token::LENGTH]));
        let mut guest = Guest { qemu, host, qmp: Qmp::new(), control: Vec::new(), off: None };
        for turn in 0.. {
            assert!(turn < 100, "it is ready again and again");
            let Ok(ready) = wait(&guest.sources(), Some(Duration::ZERO)) else { panic!("it can be waited for") };
            if ready.is_empty() {
                break;
            }
            for source in ready {
                assert!(guest.handle(source).is_ok(), "{source:?}");
            }
        }
        let left: Vec<Source> = guest.sources().iter().map(|(source, ..)| *source).collect();
        assert_eq!(left, [Source::End], "its end is waited for all the same");
        guest.qemu.kill();
        let Ok(ready) = wait(&guest.sources(), Some(Duration::from_secs(10))) else { panic!("it can be waited for") };
        assert_eq!(ready, [Source::End]);
    }
}
