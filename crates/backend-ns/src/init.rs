//! The sandbox's pid 1: makes the view, starts the program, reaps what is left behind, passes signals on.
//!
//! | State | Waits for | Then |
//! |---|---|---|
//! | born | `Mapped` of the builder; in a run nothing | no longer to be inspected; a keyring and a host name of its own |
//! | mapped | trees of the supervisor, if any | makes the view and moves into it |
//! | placed | `Linked` of the builder, with a network | configures its interface, says `Placed` |
//! | ready | `Go` of the supervisor | forks the program, says `Started` or `NotExecuted`; without a program `Started` |
//! | ready | `Go` of the supervisor, with a monitor | forks that, and passes on what it says until that is `Started` ([`monitor`](crate::monitor)) |
//! | running | `DiskFull` of the monitor | passes it on to the supervisor |
//! | running | `Caller`, `Attach`, `Detach` of the supervisor | passes it on to the monitor |
//! | running | `Share`, `Unshare` of the supervisor | passes it on to the server of files |
//! | running | as many answers as were asked for | passes them on to the supervisor |
//! | running | end of children, signals from the supervisor | says `Exited` or `Signaled`, ends |
//!
//! When it ends, for whatever reason, the kernel kills every process of the sandbox. It ends when the supervisor does:
//! by the death signal, and by the lifeline for a supervisor that ended before that was set. It runs as the same user
//! as the program, so it must not be inspected by it: it is not dumpable, and holds descriptors nobody else may have.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use cofferdam_gateway::configure_guest_link;
use cofferdam_sys::confine::{self, Filter};
use cofferdam_sys::fdpass;
use cofferdam_sys::mount;
use cofferdam_sys::netlink::{self, Request};
use cofferdam_sys::ns::{self, Fork, NamespaceKind};
use cofferdam_sys::process::{self, SignalFd};
use cofferdam_sys::tty::{self, Pty};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus};

use crate::builder::fault;
use crate::devices::Devices;
use crate::handles::Attachment;
use crate::inspect;
use crate::monitor::{Monitor, Post};
use crate::place::{self, place};
use crate::plan::Step;
use crate::program;
use crate::wire::{self, Fault, Message, Received, Step as _, Target};
use crate::{SandboxSpec, Terminal};

/// The index of `lo` in a new network namespace: the first of it.
const LOOPBACK: u32 = 1;

/// What the init is given.
#[derive(Debug)]
pub(crate) struct Init<'a> {
    pub(crate) spec: &'a SandboxSpec,
    pub(crate) supervisor: OwnedFd,
    pub(crate) steps: &'a [Step],
    /// How many trees the supervisor sends.
    pub(crate) trees: usize,
    pub(crate) filters: &'a [Filter],
    pub(crate) task: Task,
    /// What runs in place of a program.
    pub(crate) own: Option<OwnProgram>,
    /// What runs in place of a program that is in a virtual machine.
    pub(crate) monitor: Option<&'a dyn Monitor>,
    /// The sandbox that this is a run in.
    pub(crate) inside: Option<Inside>,
}

/// A function of ours that runs as a program does, with its arguments, and ends with its exit status. It has the standard
/// streams and no other descriptor.
pub type OwnProgram = fn(&[OsString]) -> u8;

/// What an init is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// A program, and it ends with that.
    Program,
    /// To hold the sandbox's namespaces, in which others run programs.
    Stay,
    /// A virtual machine, and it ends with that; or a run in one that stays.
    Monitor,
    /// A virtual machine that stays: it ends with that, and others run programs in it.
    StayMonitor,
}

impl Task {
    pub(crate) fn is_monitored(self) -> bool {
        matches!(self, Task::Monitor | Task::StayMonitor)
    }

    /// Whether others run programs inside.
    pub(crate) fn stays(self) -> bool {
        matches!(self, Task::Stay | Task::StayMonitor)
    }
}

/// What the init of a run has of its sandbox.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) mount: OwnedFd,
    pub(crate) attachment: Attachment,
    /// The way to the monitor of its virtual machine.
    pub(crate) line: Option<OwnedFd>,
}

impl Inside {
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(&self.mount).chain(&self.line).map(AsFd::as_fd)
    }
}

/// Signals that stay ignored inside when they are ignored outside: how `nohup` and a shell's `&` work.
pub(crate) const KEPT_IGNORED: [Signal; 3] = [Signal::HUP, Signal::INT, Signal::QUIT];

/// Runs the init to its end.
pub(crate) fn run(init: Init<'_>, builder: OwnedFd, lifeline: OwnedFd) -> u8 {
    let mut init = init;
    let inside = init.inside.take();
    let mut kept = vec![init.supervisor.as_fd(), builder.as_fd(), lifeline.as_fd()];
    kept.extend(inside.iter().flat_map(Inside::fds));
    if process::close_all_except(&kept).is_err() {
        return 1;
    }
    match prepare(&init, inside, builder, &lifeline)
        .and_then(|(running, children)| serve(&init.supervisor, &lifeline, &running, &children).map_err(Some))
    {
        Ok(()) => 0,
        Err(Some(fault)) => {
            let _gone = wire::send(&init.supervisor, &Message::Failed(fault), &[]);
            1
        }
        Err(None) => 1,
    }
}

/// Everything up to the running program. `Err(None)`: somebody is gone, or knows already.
fn prepare(
    init: &Init<'_>,
    inside: Option<Inside>,
    builder: OwnedFd,
    lifeline: &OwnedFd,
) -> Result<(Started, SignalFd), Option<Fault>> {
    rustix::process::setsid().step(|| "start a session".to_owned())?;
    process::die_with_parent().step(|| "ask for a signal at the supervisor's end".to_owned())?;
    process::reset_signals(&KEPT_IGNORED).step(|| "reset its signals".to_owned())?;
    process::rename("cofferdam-init").step(|| "hide its command line".to_owned())?;
    match &inside {
        None => drop(expect(&builder, lifeline, &Message::Mapped)?),
        Some(_) if init.spec.network.is_some() => {
            let netns = ns::open(None, NamespaceKind::Net).step(|| "open its network namespace".to_owned())?;
            // A builder that cannot be reached has told the supervisor why.
            wire::send(&builder, &Message::Netns, &[netns.as_fd()]).map_err(|_| None)?;
        }
        Some(_) => {}
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .step(|| "close its entry in /proc".to_owned())?;
    own_names(init.spec)?;
    let mut trees = Vec::new();
    while trees.len() < init.trees {
        trees.extend(expect(&init.supervisor, lifeline, &Message::Trees)?);
    }
    // Made before the view is: the kernel gives no new proc where the old one is partly covered. A sandbox without it runs all the same.
    let is_monitored = init.task.is_monitored();
    let eyes = init.spec.network.as_ref().filter(|_| !is_monitored).and_then(|_| inspect::eyes().ok());
    let is_joined = inside.as_ref().is_some_and(|inside| inside.attachment == Attachment::Session);
    let mut linked = Linked::default();
    let mut link = || match &init.spec.network {
        // The other end is the virtual machine's, and so is what it has for addresses.
        Some(_) if is_monitored => {
            let mut fds = expect(&builder, lifeline, &Message::Linked)?.into_iter();
            linked = Linked { tap: fds.next(), files: fds.next() };
            Ok(())
        }
        Some(network) => {
            expect(&builder, lifeline, &Message::Linked)?;
            configure_guest_link(&network.link).map_err(|error| Some(fault(&error)))
        }
        None if is_joined => Ok(()),
        None => loopback_up().map_err(|error| Some(fault(&error))),
    };
    let mut line = None;
    let sockets = match inside {
        None => place(init.steps, &trees, init.spec.limits.memory, link)?,
        Some(Inside { mount, line: given, .. }) => {
            link()?;
            place::step_inside(mount, init.steps)?;
            line = given.as_ref().and_then(|line| line.try_clone().ok());
            linked.tap = given;
            Vec::new()
        }
    };
    for sockets in sockets.chunks(fdpass::MAX_FDS) {
        let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        wire::send(&init.supervisor, &Message::Sockets, &sockets).step(|| "reach the supervisor".to_owned())?;
    }
    if let Some(eyes) = eyes {
        let eyes = eyes.each_ref().map(AsFd::as_fd);
        wire::send(&init.supervisor, &Message::Eyes, &eyes).step(|| "reach the supervisor".to_owned())?;
    }
    // Once the gateway is gone nobody must listen on them any more.
    drop(sockets);
    drop(trees);
    drop(builder);
    wire::send(&init.supervisor, &Message::Placed, &[]).step(|| "reach the supervisor".to_owned())?;
    expect(&init.supervisor, lifeline, &Message::Go)?;
    match init.task {
        Task::Program => start(init),
        Task::Stay => stay(init).map(|children| (Started::default(), children)),
        Task::Monitor | Task::StayMonitor => {
            let (started, children) = start_monitor(init, linked, lifeline)?;
            Ok((Started { _line: line, ..started }, children))
        }
    }
}

/// What a monitor is linked to.
#[derive(Debug, Default)]
pub(crate) struct Linked {
    /// The end of the gateway's link; of a run in a machine that stays its line to the monitor there.
    tap: Option<OwnedFd>,
    /// Where it connects to for its files.
    files: Option<OwnedFd>,
}

/// What runs.
#[derive(Debug, Default)]
pub(crate) struct Started {
    program: Option<Pid>,
    /// To and from a monitor.
    monitor: Option<OwnedFd>,
    /// Who serves the files of a virtual machine.
    files: Option<FileServer>,
    /// Programs that do that, each by a device of it.
    devices: Devices,
    /// Of a run in a machine that stays, its line to the monitor there. As long as it is open the monitor does not end, and with it
    /// this process: what the run says last is passed on.
    _line: Option<OwnedFd>,
}

/// The process that serves the files of a virtual machine, and the way to it.
#[derive(Debug)]
struct FileServer {
    pid: Pid,
    news: OwnedFd,
}

/// Says that the sandbox is there.
fn stay(init: &Init<'_>) -> Result<SignalFd, Option<Fault>> {
    let children = SignalFd::new(&[Signal::CHILD]).step(|| "receive the end of processes".to_owned())?;
    confine::drop_all_capabilities().step(|| "drop its capabilities".to_owned())?;
    confine::no_new_privileges().step(|| "renounce new privileges".to_owned())?;
    wire::send(&init.supervisor, &Message::Started, &[]).step(|| "reach the supervisor".to_owned())?;
    Ok(children)
}

/// Waits for one message, and returns the descriptors that came with it.
pub(crate) fn expect(from: &OwnedFd, lifeline: &OwnedFd, wanted: &Message) -> Result<Vec<OwnedFd>, Option<Fault>> {
    match wire::receive(from.as_fd(), Some(lifeline.as_fd()), None) {
        Ok(Received::Message(message, fds)) if message == *wanted => Ok(fds),
        Ok(_) | Err(_) => Err(None),
    }
}

fn own_names(spec: &SandboxSpec) -> Result<(), Fault> {
    // A kernel without keyrings has none to share.
    let _unsupported = confine::new_session_keyring();
    rustix::system::sethostname(spec.name.as_bytes()).step(|| format!("set the host name {}", spec.name))?;
    rustix::system::setdomainname(b"(none)").step(|| "set the domain name".to_owned())?;
    if !spec.allow_userns {
        // A second lock besides the filter; where /proc is read-only the filter has to do.
        let _read_only = std::fs::write("/proc/sys/user/max_user_namespaces", "0");
    }
    Ok(())
}

fn loopback_up() -> Result<(), netlink::NetlinkError> {
    netlink::Connection::open()?.execute(&[Request::SetUp { index: LOOPBACK }])
}

/// Starts the program, and says whether that went well.
fn start(init: &Init<'_>) -> Result<(Started, SignalFd), Option<Fault>> {
    let children = SignalFd::new(&[Signal::CHILD]).step(|| "receive the end of processes".to_owned())?;
    let pty = open_terminal(init.spec)?;
    let (own, other) = fdpass::pair().step(|| "make a socket pair".to_owned())?;
    let child = match ns::fork().step(|| "fork the program".to_owned())? {
        Fork::Child => process::run_and_exit(|| program::run(init.spec, init.filters, pty, init.own, &other)),
        Fork::Parent(child) => child,
    };
    drop(other);
    renounce()?;
    let message = match wire::receive(own.as_fd(), None, None).step(|| "hear from the program".to_owned())? {
        // The other end was closed by a successful exec.
        Received::Closed => Message::Started,
        Received::Message(message, _) => message,
        Received::Orphaned | Received::Late => return Err(None),
    };
    let controller = pty.as_ref().map(|Pty { controller, .. }| controller.as_fd());
    wire::send(&init.supervisor, &message, controller.as_slice()).step(|| "reach the supervisor".to_owned())?;
    let started = Started { program: Some(child.pid), ..Started::default() };
    if message == Message::Started { Ok((started, children)) } else { Err(None) }
}

fn open_terminal(spec: &SandboxSpec) -> Result<Option<Pty>, Fault> {
    match spec.terminal {
        Terminal::Inherit => Ok(None),
        Terminal::Pty => tty::open_pty().map(Some).step(|| "make a terminal".to_owned()),
    }
}

/// Nothing more needs a privilege: it reaps, and signals processes of its own user.
fn renounce() -> Result<(), Fault> {
    confine::drop_all_capabilities().step(|| "drop its capabilities".to_owned())?;
    confine::no_new_privileges().step(|| "renounce new privileges".to_owned())
}

/// Starts the monitor, and passes on what it and the supervisor have to say to each other until the program runs.
pub(crate) fn start_monitor(
    init: &Init<'_>,
    Linked { tap, files }: Linked,
    lifeline: &OwnedFd,
) -> Result<(Started, SignalFd), Option<Fault>> {
    let Some(monitor) = init.monitor else { return Err(None) };
    let children = SignalFd::new(&[Signal::CHILD]).step(|| "receive the end of processes".to_owned())?;
    let pty = open_terminal(init.spec)?;
    let (own, other) = fdpass::pair().step(|| "make a socket pair".to_owned())?;
    let controller = pty.as_ref().map(|pty| pty.controller.try_clone()).transpose();
    let controller = controller.step(|| "keep the terminal".to_owned())?;
    let files = files.map(|listener| start_files(monitor, listener, &other)).transpose()?;
    let (devices, connected) = Devices::start(monitor.device_servers(), &other)?;
    let child = match ns::fork().step(|| "fork the monitor".to_owned())? {
        Fork::Child => process::run_and_exit(|| {
            program::run_monitor(init.spec, init.filters, pty, monitor, Post::new(other, tap, connected))
        }),
        Fork::Parent(child) => child,
    };
    drop((other, tap, pty, connected));
    renounce()?;
    let reach = || "reach the supervisor".to_owned();
    let started = Started { program: Some(child.pid), monitor: None, files, devices, _line: None };
    loop {
        if let Some(lost) = lost_while_starting(&own, lifeline, &children, &started)? {
            wire::send(&init.supervisor, &lost, &[]).step(reach)?;
            return Err(None);
        }
        match wire::receive(own.as_fd(), Some(lifeline.as_fd()), None).step(|| "hear from the monitor".to_owned())? {
            Received::Message(Message::Booted, _) => {
                wire::send(&init.supervisor, &Message::Booted, &[]).step(reach)?;
                expect(&init.supervisor, lifeline, &Message::Go)?;
                // One that has ended is noticed below.
                let _gone = wire::send(&own, &Message::Go, &[]);
            }
            Received::Message(Message::Started, _) => {
                let controller = controller.as_ref().map(AsFd::as_fd);
                wire::send(&init.supervisor, &Message::Started, controller.as_slice()).step(reach)?;
                return Ok((Started { monitor: Some(own), ..started }, children));
            }
            Received::Message(
                message @ (Message::NotExecuted { .. } | Message::Lost { .. } | Message::Failed(_)),
                _,
            ) => {
                wire::send(&init.supervisor, &message, &[]).step(reach)?;
                return Err(None);
            }
            Received::Message(..) | Received::Closed => {
                let why = "the monitor of the virtual machine ended unexpectedly".to_owned();
                wire::send(&init.supervisor, &Message::Lost { why }, &[]).step(reach)?;
                return Err(None);
            }
            Received::Orphaned | Received::Late => return Err(None),
        }
    }
}

/// Waits until a monitor that is starting says something. The message, when something that it needs has ended meanwhile: without
/// it the machine would wait for its files until its time is up.
fn lost_while_starting(
    monitor: &OwnedFd,
    lifeline: &OwnedFd,
    children: &SignalFd,
    started: &Started,
) -> Result<Option<Message>, Fault> {
    loop {
        let sources = [monitor, lifeline].map(AsFd::as_fd).into_iter().chain([children.as_fd()]);
        let mut fds: Vec<_> = sources.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        wire::poll(&mut fds, None).step(|| "wait for the monitor".to_owned())?;
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let [said, orphaned, ended] = std::array::from_fn(|_| ready.next().unwrap_or(false));
        drop(ready);
        drop(fds);
        if ended {
            children.next().step(|| "receive the end of processes".to_owned())?;
            // The end of the monitor is the end of what it says; that of one whose program has ended already is for later.
            if let Some(lost) = reap_server(started).step(|| "wait for processes".to_owned())? {
                // Who could not be started at all has said why.
                let said = said.then(|| wire::receive_ready(monitor));
                let fault = |message: &Message| matches!(message, Message::Failed(_));
                return Ok(Some(match said {
                    Some(Ok(Received::Message(message, _))) if fault(&message) => message,
                    Some(Ok(Received::Message(why @ Message::Lost { .. }, _))) if started.devices.is_empty() => why,
                    Some(_) | None => lost,
                }));
            }
        }
        if said || orphaned {
            return Ok(None);
        }
    }
}

/// Starts the process that serves a virtual machine's files, and tells it which there are. What it has to say it says as the monitor,
/// until it serves.
fn start_files(monitor: &dyn Monitor, listener: OwnedFd, post: &OwnedFd) -> Result<FileServer, Fault> {
    let post = post.try_clone().step(|| "keep a way to the monitor".to_owned())?;
    let (news, other) = fdpass::pair().step(|| "make a socket pair".to_owned())?;
    let pid = match ns::fork().step(|| "fork the server of the guest's files".to_owned())? {
        Fork::Child => {
            process::run_and_exit(|| program::run_files(monitor, listener, other, Post::new(post, None, Vec::new())))
        }
        Fork::Parent(child) => child.pid,
    };
    drop(other);
    // Its own end says more than that it does not hear: whatever fails here is told by whoever waits for it.
    for (number, (path, read_only)) in (0..).zip(monitor.shares()) {
        let tree = mount::take_real_tree(&path).step(|| format!("take {} for the guest", path.display()))?;
        let _ended = wire::send(&news, &Message::Share { number, read_only }, &[tree.as_fd()]);
    }
    Ok(FileServer { pid, news })
}

/// Reaps and passes signals on until the program has ended or the supervisor is gone.
pub(crate) fn serve(
    supervisor: &OwnedFd,
    lifeline: &OwnedFd,
    started: &Started,
    children: &SignalFd,
) -> Result<(), Fault> {
    let program = started.program;
    let mut monitor = started.monitor.as_ref();
    let mut files = started.files.as_ref().map(|files| &files.news);
    // What each may answer yet: nobody says more to the supervisor than was asked.
    let (mut attachments, mut shares) = (0_u32, 0_u32);
    let mut is_full = false;
    // Who has ended before this was not waited for, and nothing may tell of it any more.
    let mut is_first = true;
    // What is told when the monitor has nothing more to say.
    let mut end = None;
    loop {
        let sources = [supervisor.as_fd(), lifeline.as_fd(), children.as_fd()];
        let mut fds: Vec<_> = sources.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        // One that is closed is waited for at a descriptor that never has anything.
        let others = [monitor, files].map(|other| (other.map_or(lifeline.as_fd(), AsFd::as_fd), other.is_some()));
        let flags = |is_open: bool| if is_open { PollFlags::IN } else { PollFlags::empty() };
        fds.extend(others.iter().map(|(fd, is_open)| PollFd::from_borrowed_fd(*fd, flags(*is_open))));
        wire::poll(&mut fds, (is_first || end.is_some()).then_some(Duration::ZERO))
            .step(|| "wait for events".to_owned())?;
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let [message, orphaned, ended, said, served] = std::array::from_fn(|_| ready.next().unwrap_or(false));
        drop(ready);
        drop(fds);
        if orphaned {
            return Ok(());
        }
        // Before its end: what it says explains that.
        if said && let Some(channel) = monitor {
            match wire::receive_ready(channel) {
                Ok(Received::Message(lost @ Message::Lost { .. }, _)) => {
                    let _gone = wire::send(supervisor, &lost, &[]);
                    return Ok(());
                }
                Ok(Received::Message(full @ Message::DiskFull(_), _)) if !is_full => {
                    is_full = true;
                    let _gone = wire::send(supervisor, &full, &[]);
                    // There may be more, to be said before its end as well.
                    continue;
                }
                Ok(Received::Message(answer @ Message::Attached { .. }, _)) => {
                    pass_answer(supervisor, &answer, &mut attachments);
                }
                Ok(Received::Message(..)) => {}
                // What is closed is ready for ever. Its end is noticed as that of a process.
                Ok(Received::Closed | Received::Orphaned | Received::Late) | Err(_) => monitor = None,
            }
        }
        if served && let Some(channel) = files {
            match wire::receive_ready(channel) {
                Ok(Received::Message(answer @ Message::Shared { .. }, _)) => {
                    pass_answer(supervisor, &answer, &mut shares);
                }
                Ok(Received::Message(..)) => {}
                Ok(Received::Closed | Received::Orphaned | Received::Late) | Err(_) => files = None,
            }
        }
        if !said && let Some(end) = &end {
            let _gone = wire::send(supervisor, end, &[]);
            return Ok(());
        }
        if ended || is_first {
            is_first = false;
            children.next().step(|| "receive the end of processes".to_owned())?;
            end = end.or(reap(started).step(|| "wait for processes".to_owned())?);
        }
        if message {
            match wire::receive_ready(supervisor) {
                Ok(Received::Message(Message::Signal { number, target }, _)) => {
                    if let Some(program) = program {
                        pass_on(program, number, target);
                    }
                }
                // One that has ended is noticed as such. Where one that has stopped leaves no room, a caller's line is closed, and
                // anything else is answered here.
                Ok(Received::Message(
                    asked @ (Message::Caller | Message::Attach { .. } | Message::Detach { .. }),
                    fds,
                )) => {
                    if let Some(monitor) = &started.monitor {
                        attachments = attachments.saturating_add(u32::from(asked != Message::Caller));
                        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                        if wire::send_now(monitor, &asked, &fds).is_err() {
                            unheard(supervisor, &asked, &mut attachments);
                        }
                    }
                }
                Ok(Received::Message(asked @ (Message::Share { .. } | Message::Unshare { .. }), fds)) => {
                    if let Some(FileServer { news, .. }) = &started.files {
                        shares = shares.saturating_add(1);
                        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                        if wire::send_now(news, &asked, &fds).is_err() {
                            unheard(supervisor, &asked, &mut shares);
                        }
                    }
                }
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }
}

/// Passes on an answer, if it is one.
fn pass_answer(supervisor: &OwnedFd, answer: &Message, awaited: &mut u32) {
    if let Some(left) = awaited.checked_sub(1) {
        *awaited = left;
        let _gone = wire::send(supervisor, answer, &[]);
    }
}

/// Answers for somebody who does not hear what was asked.
fn unheard(supervisor: &OwnedFd, asked: &Message, awaited: &mut u32) {
    let why = "it does not hear what it is asked".to_owned();
    let answer = if let Message::Share { number, .. } | Message::Unshare { number } = asked {
        Message::Shared { number: *number, why }
    } else if let Message::Attach { number, .. } | Message::Detach { number, .. } = asked {
        Message::Attached { number: *number, why }
    } else {
        return;
    };
    pass_answer(supervisor, &answer, awaited);
}

/// Takes note of every process that has ended. The program's end, if it was among them; or that of who serves its files, without
/// which it would wait for ever.
fn reap(started: &Started) -> io::Result<Option<Message>> {
    let mut end = None;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if Some(pid) == started.program => {
                end = match (status.exit_status(), status.terminating_signal()) {
                    (Some(status), _) => Some(Message::Exited { status }),
                    (None, Some(number)) => Some(Message::Signaled { number }),
                    (None, None) => end,
                };
            }
            Ok(Some((pid, status))) => end = end.or_else(|| end_of_server(started, pid, status)),
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(end),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes note of the end of who serves the program's files, and of nobody else's.
fn reap_server(started: &Started) -> io::Result<Option<Message>> {
    let files = started.files.as_ref().map(|files| files.pid);
    for server in files.into_iter().chain(started.devices.pids()) {
        match rustix::process::waitpid(Some(server), WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => return Ok(end_of_server(started, pid, status)),
            Ok(None) | Err(rustix::io::Errno::INTR | rustix::io::Errno::CHILD) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// What it means that this process has ended, if it serves the program's files.
fn end_of_server(started: &Started, pid: Pid, status: WaitStatus) -> Option<Message> {
    if started.files.as_ref().is_some_and(|files| files.pid == pid) {
        return Some(Message::Lost { why: "the process that serves the guest's files has ended".to_owned() });
    }
    started.devices.of(pid).map(|device| Message::Lost { why: device.ended(status) })
}

fn pass_on(program: Pid, number: i32, target: Target) {
    let Some(signal) = Signal::from_named_raw(number) else { return };
    // The program leads a process group of its own number. One that has just ended misses nothing.
    let _ended = match target {
        Target::Program => rustix::process::kill_process(program, signal),
        Target::Group => rustix::process::kill_process_group(program, signal),
    };
}
