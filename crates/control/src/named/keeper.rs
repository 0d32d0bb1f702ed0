//! The keeper: the supervisor of a sandbox without an end.
//!
//! | State | Event | Then |
//! |---|---|---|
//! | forked twice | – | a session of its own, no terminal, standard output in the log, no working directory |
//! | starting | the sandbox is there | the main command's run is forked, if there is one; whoever starts us is told |
//! | running | connection | its peer is looked at, its first message answered |
//! | running | `Enter` | handles and specification are handed over, in a virtual machine a line to its monitor as well; the connection is the run |
//! | running | `Stop`, TERM | stopping: every run is asked to end |
//! | running | end of the main command | its status is written down; stopping |
//! | running | `Policy` | the gateway is told; once it has answered, it is written down and every run is told |
//! | running | `Mount`, `Unmount` | the server of the machine's files, and the guest, are told ([`mounts`]) |
//! | running | a run has not narrowed in time | it is killed |
//! | running | the gateway denies something | every run is told ([`told`]) |
//! | running | a run's program has ended | once the gateway has told everything, so has the keeper |
//! | stopping | no run is left | a virtual machine is asked to end, and has [`FAREWELL`] |
//! | stopping | no run is left, or the time is up | the sandbox is ended, and with it whatever runs in it |
//! | stopping | the sandbox does not end | supervisors of runs that do not notice it are killed |
//!
//! The main command is a run like others, in a process of its own that is forked before this one has a thread; so every
//! program is in a pid namespace of its own, and the sandbox's pid 1 is nobody's but ours.
//!
//! Limits: [`MAX_CONNECTIONS`] at once, more are closed; a peer that does not read is dropped.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_backend_ns::{Handles, Order, Running, ShareAnswer, ShareOrder};
use cofferdam_gateway::{CommandAnswer, Commands};
use cofferdam_model::Event;
use cofferdam_sys::ns::{self, Child, Fork};
use cofferdam_sys::{fdpass, process};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};

use super::client::{FOR_A_POLICY, LATE};
use super::exec::{self, Main};
use super::mounts::{self, Mounts, Outcome};
use super::narrow::enforced;
use super::protocol::{self, Entered, FromRun, Link, MAX_RUNS, Reply, Request, RunStatus, Status, ToRun};
use super::published::Published;
use super::registry::{Entry, Locked, NamedError, SPEC};
use super::spec::{MountEntry, NamedSpec, SharingEntry};
use super::told::{self, Teller};
use crate::resolvers;
use crate::sandbox::{Companion, EXIT_SETUP};
use crate::state::{Replacement, write_new};
use crate::store::{RecordAs, RunKind, RunStore};
use crate::{Backend, EventLog, RunError, Sandbox};

/// Connections at once: runs, and who asks something.
const MAX_CONNECTIONS: usize = 1024;

/// The size at which a log is put aside; there is one older part.
const LOG_SIZE: u64 = 8 << 20;

/// How long a keeper that gets TERM gives its runs.
const GRACE: Duration = Duration::from_secs(10);

/// How long a virtual machine in which nothing runs any more may take to write what it has in memory, and end.
const FAREWELL: Duration = Duration::from_secs(6);

/// How long a run may take to be within the session's changed policy. It takes milliseconds, seconds with very many rules.
const NARROWING: Duration = Duration::from_secs(5);

/// What is read of an output at once.
const CHUNK: usize = 64 * 1024;

/// So many of these are in a pipe at most: `fs.pipe-max-size` is 1 MiB, and a reader may have begun in the middle of one.
const FULL_PIPE: usize = 17;

/// How the start of a sandbox went.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    /// What a person should be told.
    pub notices: Vec<String>,
    /// Why it did not start, and as an exit status.
    failed: Option<(String, u8)>,
}

/// Starts the keeper of a sandbox and waits until it runs. Call it while the process has one thread: it forks.
///
/// `env` is the environment of the main command; it starts as `cofferdam exec` would start it.
///
/// # Errors
/// Why it does not run, in words, with an exit status.
pub fn start(
    locked: Locked,
    spec: &NamedSpec,
    env: Vec<(OsString, OsString)>,
    backend: Backend,
) -> Result<Kept, (String, u8)> {
    let setup = |what: String| (what, EXIT_SETUP);
    let name = locked.entry().name().clone();
    let keeper = |what: &str| setup(NamedError::Keeper { name: name.clone(), what: what.to_owned() }.to_string());
    let (ready, ready_in) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|error| keeper(&format!("could not be started: {error}")))?;
    process::fill_standard_descriptors().map_err(|error| keeper(&format!("could not be started: {error}")))?;
    let child = match ns::fork().map_err(|error| keeper(&format!("could not be started: {error}")))? {
        Fork::Child => process::run_and_exit(|| detach(&locked, &ready_in, spec, (env, backend))),
        Fork::Parent(child) => child,
    };
    drop((ready_in, locked));
    let _it_has_forked = wait(&child);
    let mut answer = Vec::new();
    let read = File::from(ready).take(1 << 20).read_to_end(&mut answer);
    match serde_json::from_slice::<Kept>(&answer) {
        Ok(Kept { failed: Some((why, status)), .. }) => Err((why, status)),
        Ok(kept) => Ok(kept),
        Err(_) => {
            let why = read.err().map(|error| format!(" ({error})")).unwrap_or_default();
            Err(keeper(&format!("has ended before the sandbox was there{why}; its log may say why")))
        }
    }
}

/// The environment of the main command, and what keeps it in.
type With = (Vec<(OsString, OsString)>, Backend);

/// In the first child: the keeper is the second, and no child of whoever called.
fn detach(locked: &Locked, ready: &OwnedFd, spec: &NamedSpec, with: With) -> u8 {
    if rustix::process::setsid().is_err() {
        return 1;
    }
    match ns::fork() {
        Ok(Fork::Child) => process::run_and_exit(|| keep(locked, ready, spec, with)),
        Ok(Fork::Parent(_)) => 0,
        Err(_) => 1,
    }
}

/// The keeper from its fork to its end.
fn keep(locked: &Locked, ready: &OwnedFd, spec: &NamedSpec, with: With) -> u8 {
    let entry = locked.entry();
    // Another number, so that the original is closed with everything else of the caller's.
    let Ok(ready) = ready.try_clone() else { return 1 };
    let mut ready = Some(ready);
    let failed = match settle(locked, &ready) {
        Ok(log) => serve(entry, &mut ready, spec, with, log),
        Err(error) => Err((format!("the keeper could not settle in {}: {error}", entry.path().display()), EXIT_SETUP)),
    };
    let _gone = protocol::stop_listening(entry.directory());
    match failed {
        Ok(()) => 0,
        Err(failed) => {
            if let Some(ready) = ready {
                tell(&ready, &Kept { notices: Vec::new(), failed: Some(failed) });
            } else {
                say(&failed.0);
            }
            1
        }
    }
}

/// Leaves everything of the caller's behind, and opens the log.
fn settle(locked: &Locked, ready: &Option<OwnedFd>) -> io::Result<Log> {
    let entry = locked.entry();
    let mut kept = vec![locked.lock.as_fd(), entry.directory().as_fd()];
    kept.extend(ready.iter().map(AsFd::as_fd));
    process::close_all_except(&kept)?;
    rustix::process::chdir("/")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    let log = Log::open(entry)?;
    rustix::stdio::dup2_stdout(&log.0.file)?;
    rustix::stdio::dup2_stderr(&log.0.file)?;
    process::rename(&format!("cofferdam keeps {}", entry.name()))?;
    Ok(log)
}

fn serve(
    entry: &Entry,
    ready: &mut Option<OwnedFd>,
    spec: &NamedSpec,
    (env, backend): With,
    log: Log,
) -> Result<(), (String, u8)> {
    let refused = |error: &dyn std::error::Error| (chain(error), EXIT_SETUP);
    let listener = protocol::listen(entry.directory())
        .map_err(|error| (format!("cannot listen on the control socket of {}: {error}", entry.name()), EXIT_SETUP))?;
    let mut options = spec.run_options(Vec::new(), Vec::new()).map_err(|error| refused(&error))?;
    // What a guest keeps, it keeps in its memory.
    if let Backend::Namespace = backend {
        // Links on the way to the state directory are the user's own: no sandbox sees it.
        let directory = entry.path().canonicalize();
        let directory =
            directory.map_err(|error| (format!("cannot find what {} keeps: {error}", entry.name()), EXIT_SETUP))?;
        let mut mounts = spec.kept_in(&directory);
        mounts.append(&mut options.mounts);
        options.mounts = mounts;
    }
    options.backend = backend;
    let with_status = |error: RunError| (chain(&error), error.exit_status());
    let mut sandbox = Sandbox::prepare(options).map_err(with_status)?.live().open_to_ports().about(&spec.command);
    let machine = sandbox.take_machine().map_err(with_status)?;
    let told = RefCell::new(Vec::new());
    let link = sandbox.link().map(Link::from);
    let has_gateway = link.is_some();
    let mut keeper = Keeper {
        entry,
        ready,
        spec: spec.clone(),
        env,
        link,
        listener,
        log,
        handles: None,
        init: 0,
        started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        connections: BTreeMap::new(),
        next: 0,
        main: None,
        stopping: None,
        change: None,
        tellings: Vec::new(),
        published: Published::new(sandbox.published()),
        mounts: Mounts::new(sandbox.shown().into_iter().map(|mount| mount.target)),
        has_gateway,
        notices: Vec::new(),
        told: &told,
        is_machine: machine.is_some(),
        farewell: None,
        orders: Vec::new(),
        failed: None,
    };
    let mut events = EventLog::none();
    // An entry lies in a folder of the state directory.
    if let Some(state) = entry.path().parent().and_then(Path::parent).filter(|_| !spec.no_record) {
        let sandbox = Some(entry.name().to_string());
        let record =
            RecordAs { store: RunStore::at(state), kind: RunKind::Session, sandbox, directory: spec.project.clone() };
        events = events.recorded(record);
    }
    let finished = sandbox.run_by(
        |spec, tell| match machine {
            None => cofferdam_backend_ns::launch_empty(spec),
            Some(machine) => cofferdam_backend_vm::launch_staying(spec, &machine, tell),
        },
        &mut events,
        &mut |text| {
            say(text);
            told.borrow_mut().push(text.to_owned());
        },
        &mut keeper,
    );
    if keeper.mounts.is_changing() {
        // What was to be added, and is written down, was not shown.
        keeper
            .write_spec(&keeper.spec)
            .unwrap_or_else(|error| say(&format!("what was not mounted is written down: {error}")));
    }
    match (finished, keeper.failed) {
        (Err(error), _) => Err(with_status(error)),
        (Ok(_), Some(failed)) => Err(failed),
        (Ok(finished), None) => {
            for notice in finished.notices.iter().filter(|notice| !notice.contains("killed from outside")) {
                say(notice);
            }
            Ok(())
        }
    }
}

/// An error with everything behind it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Writes to the log, as far as there is room.
pub(super) fn say(text: &str) {
    let _full = writeln!(io::stderr(), "cofferdam: {text}");
}

fn tell(ready: &OwnedFd, kept: &Kept) {
    // Somebody who does not wait for the answer any more needs none.
    let _gone = rustix::io::write(ready, &serde_json::to_vec(kept).unwrap_or_default());
}

fn wait(child: &Child) -> Option<u8> {
    let wait = || rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    let status = rustix::io::retry_on_intr(wait).ok()??;
    let signaled = status.terminating_signal().map(|signal| 128 + signal);
    u8::try_from(status.exit_status().or(signaled)?).ok()
}

struct Keeper<'a> {
    entry: &'a Entry,
    /// To whoever starts us, until they have been told.
    ready: &'a mut Option<OwnedFd>,
    spec: NamedSpec,
    env: Vec<(OsString, OsString)>,
    link: Option<Link>,
    listener: OwnedFd,
    log: Log,
    handles: Option<Handles>,
    init: u32,
    started: u64,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    main: Option<MainRun>,
    /// When what still runs is killed.
    stopping: Option<Instant>,
    change: Option<Change>,
    /// Runs that wait for the gateway to tell everything, by the number of the command.
    tellings: Vec<(u32, u64)>,
    published: Published,
    mounts: Mounts,
    has_gateway: bool,
    notices: Vec<String>,
    /// What the start has had to say so far.
    told: &'a RefCell<Vec<String>>,
    /// Whether it is a virtual machine, and until when it has been given time to end by itself.
    is_machine: bool,
    farewell: Option<Instant>,
    /// What is to be done next.
    orders: Vec<Order>,
    failed: Option<(String, u8)>,
}

/// A change of the session's network that is under way; there is one at a time.
struct Change {
    /// Who asked for it, if they still wait.
    asked_by: u64,
    spec: NamedSpec,
    /// What is to be read at the next start, once the gateway holds the change.
    written: Option<Replacement>,
    /// Why it will not be.
    lost: Option<io::Error>,
    step: ChangeStep,
    /// When the gateway is not waited for any more.
    due: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum ChangeStep {
    /// The gateway has the command of this number.
    Gateway(u32),
    /// Runs have to be within it by then.
    Runs(Instant),
}

struct Connection {
    socket: OwnedFd,
    peer: u32,
    kind: Kind,
    /// Whether it has not said yet that it is within the session's newest policy.
    owes: bool,
    /// Where a run is told what the gateway denies, for as long as it listens.
    teller: Option<Teller>,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// It has said nothing yet.
    New,
    /// A run, with what it runs once it does.
    Run { command: Option<String>, is_main: bool },
    /// It waits for our end, or for that of a change.
    Waits,
}

/// The process that supervises the main command.
struct MainRun {
    child: Child,
    /// What the command writes; `None` at its end.
    output: Option<OwnedFd>,
}

/// One thing that a keeper waits for.
enum Source {
    Listener,
    Output,
    MainEnd,
    Connection(u64),
}

impl Keeper<'_> {
    fn watched(&self) -> Vec<(Source, BorrowedFd<'_>)> {
        let mut watched = Vec::new();
        if self.connections.len() < MAX_CONNECTIONS {
            watched.push((Source::Listener, self.listener.as_fd()));
        }
        if let Some(main) = &self.main {
            watched.extend(main.output.iter().map(|output| (Source::Output, output.as_fd())));
            watched.push((Source::MainEnd, main.child.pidfd.as_fd()));
        }
        watched.extend(self.connections.iter().map(|(id, one)| (Source::Connection(*id), one.socket.as_fd())));
        watched
    }

    fn accept(&mut self) {
        let Ok(socket) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else {
            return;
        };
        // Whoever may not ask gets no word.
        let Some(peer) = protocol::trusted_peer(&socket) else { return };
        self.add(Connection { socket, peer, kind: Kind::New, owes: false, teller: None });
    }

    fn add(&mut self, connection: Connection) {
        self.connections.insert(self.next, connection);
        self.next += 1;
    }

    fn hear(&mut self, id: u64, commands: Option<&mut Commands>) {
        let Some(connection) = self.connections.get(&id) else { return };
        let keeps = match &connection.kind {
            Kind::New => self.answer(id, commands).unwrap_or(false),
            Kind::Run { .. } => self.hear_run(id, commands).unwrap_or(false),
            Kind::Waits => false,
        };
        if !keeps {
            self.connections.remove(&id);
        }
    }

    /// Answers a first message. Whether the connection goes on.
    fn answer(&mut self, id: u64, commands: Option<&mut Commands>) -> io::Result<bool> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(false) };
        let (request, mut fds) = match protocol::receive::<Request>(&connection.socket) {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(false),
            Err(error) => {
                protocol::send(&connection.socket, &Reply::Refused { why: error.to_string() }, &[])?;
                return Ok(false);
            }
        };
        match request {
            Request::Enter if self.stopping.is_some() => {
                let why = "it is being stopped".to_owned();
                protocol::send(&connection.socket, &Reply::Refused { why }, &[])?;
                Ok(false)
            }
            Request::Enter => {
                let Some(handles) = &self.handles else { return Ok(false) };
                let entered = Reply::Entered(Entered {
                    identity: handles.identity(),
                    cgroup: handles.cgroup().map(PathBuf::from),
                    link: self.link.clone(),
                });
                let spec = protocol::memory_file(self.spec.to_json().as_bytes())?;
                let (teller, listener) = fdpass::pair()?;
                let line = if self.is_machine { Some(call(&mut self.orders)?) } else { None };
                let mut fds: Vec<BorrowedFd<'_>> = handles.fds().into();
                fds.extend([spec.as_fd(), listener.as_fd()]);
                fds.extend(line.iter().map(AsFd::as_fd));
                protocol::send(&connection.socket, &entered, &fds)?;
                connection.teller = Some(Teller::new(teller));
                connection.kind = Kind::Run { command: None, is_main: false };
                Ok(true)
            }
            Request::Inspect => {
                let status = self.status();
                if let Some(connection) = self.connections.get(&id) {
                    protocol::send(&connection.socket, &Reply::Inspected(status), &[])?;
                }
                Ok(false)
            }
            Request::Show => {
                let spec = protocol::memory_file(self.spec.to_json().as_bytes())?;
                protocol::send(&connection.socket, &Reply::Shown, &[spec.as_fd()])?;
                Ok(false)
            }
            Request::Stop { grace_ms } => {
                protocol::send(&connection.socket, &Reply::Done, &[])?;
                connection.kind = Kind::Waits;
                self.stop(Duration::from_millis(grace_ms));
                Ok(true)
            }
            Request::Ports => {
                protocol::send(&connection.socket, &Reply::Ports { ports: self.published.list() }, &[])?;
                Ok(false)
            }
            Request::Publish { ports } => {
                self.change_ports(id, commands, |published, commands| published.add(id, &ports, commands))
            }
            Request::Withdraw { ports } => {
                self.change_ports(id, commands, |published, commands| published.remove(id, &ports, commands))
            }
            Request::Mountable { target } => {
                let checked = self.check_mount(&target);
                let Some(connection) = self.connections.get(&id) else { return Ok(false) };
                let Some(handles) = &self.handles else {
                    protocol::send(&connection.socket, &Reply::Busy, &[])?;
                    return Ok(false);
                };
                let [owner, ..] = handles.fds();
                match checked {
                    Ok(()) => {
                        let reply = Reply::Mountable { is_mapped: handles.identity().is_some() };
                        protocol::send(&connection.socket, &reply, &[owner])?;
                    }
                    Err(reply) => protocol::send(&connection.socket, &reply, &[])?,
                }
                Ok(false)
            }
            Request::Mount { mount } => {
                let begun = match fds.pop() {
                    Some(tree) => self.begin_mount(id, mount, tree),
                    None => Err(Reply::Refused { why: "no directory came with the request".to_owned() }),
                };
                self.await_answer(id, begun)
            }
            Request::Unmount { target } => {
                let begun = self.begin_unmount(id, &target);
                self.await_answer(id, begun)
            }
            Request::Policy => {
                let json = fds.pop().ok_or(io::ErrorKind::InvalidData.into()).and_then(protocol::read_memory_file);
                let json = json.map_err(|error| Reply::Refused { why: error.to_string() });
                match json.and_then(|json| self.begin_change(id, &json, commands)) {
                    Ok(()) => Ok(true),
                    Err(reply) => {
                        if let Some(connection) = self.connections.get(&id) {
                            protocol::send(&connection.socket, &reply, &[])?;
                        }
                        Ok(false)
                    }
                }
            }
        }
    }

    /// Has the gateway publish or withdraw ports. Whoever asked is answered when it has.
    fn change_ports(
        &mut self,
        id: u64,
        commands: Option<&mut Commands>,
        change: impl FnOnce(&mut Published, &mut Commands) -> Result<(), String>,
    ) -> io::Result<bool> {
        let begun = match commands.filter(|_| self.has_gateway) {
            Some(commands) => change(&mut self.published, commands),
            None => Err("it has no network, and so no ports".to_owned()),
        };
        self.await_answer(id, begun.map_err(|why| Reply::Refused { why }))
    }

    fn end_port_change(&mut self, ended: Option<(u64, Reply)>) {
        let Some((asked_by, reply)) = ended else { return };
        if let Some(connection) = self.connections.remove(&asked_by) {
            let _gone = protocol::send(&connection.socket, &reply, &[]);
        }
    }

    /// Checks that the guest can be shown a directory at this place.
    fn check_mount(&self, target: &Path) -> Result<(), Reply> {
        self.check_mountable()?;
        self.mounts.check(target).map_err(|why| Reply::Refused { why })
    }

    /// Checks that what it is shown can change at all.
    fn check_mountable(&self) -> Result<(), Reply> {
        let refused = |why: &str| Err(Reply::Refused { why: why.to_owned() });
        if !self.is_machine {
            return refused(
                "what a sandbox of namespaces is shown is decided when it starts; stop it before, or copy files with \
                 `cofferdam cp`",
            );
        }
        if self.link.is_none() {
            return refused(
                "it has no network, over which a guest reaches what it is shown; stop it before, or create it with --net \
                 mounts-only in the place of --no-net",
            );
        }
        if let Some(SharingEntry::Plan9 | SharingEntry::Virtiofs) = self.spec.mount_via {
            return refused(
                "it has its directories as devices, which are those that it was started with; stop it before, or create it \
                 without --mount-via",
            );
        }
        if self.stopping.is_some() {
            return refused("it is being stopped");
        }
        // Both write the specification.
        if self.mounts.is_changing() || self.change.is_some() { Err(Reply::Busy) } else { Ok(()) }
    }

    /// Begins to show the guest a directory. Whoever asked is answered when the guest has mounted it.
    fn begin_mount(&mut self, id: u64, mount: MountEntry, tree: OwnedFd) -> Result<(), Reply> {
        self.check_mount(&mount.target)?;
        if !mount.source.is_absolute() {
            return Err(Reply::Refused { why: format!("{} is not an absolute path", mount.source.display()) });
        }
        let mut spec = self.spec.clone();
        spec.mounts.push(mount.clone());
        // Before the guest can leave a link there: it is read by who follows none that a sandbox may have left.
        self.write_spec(&spec).map_err(|error| Reply::Refused {
            why: format!("the mount cannot be written down, so nothing was changed: {error}"),
        })?;
        self.orders.push(Order::Share(self.mounts.add(id, mount, tree, Instant::now())));
        Ok(())
    }

    /// Begins to take one away. Whoever asked is answered when nobody serves it any more.
    fn begin_unmount(&mut self, id: u64, target: &Path) -> Result<(), Reply> {
        self.check_mountable()?;
        let refused = |why: String| Reply::Refused { why };
        let mount = self.spec.mount_at(target).map_err(refused)?.clone();
        let absent = || refused(format!("there is no mount at {}; `cofferdam mount ls` lists them", target.display()));
        let order = self.mounts.remove(id, mount, Instant::now()).ok_or_else(absent)?;
        self.orders.push(Order::Share(order));
        Ok(())
    }

    /// Whoever asked waits for what has begun, or is told that it has not. Whether the connection stays.
    fn await_answer(&mut self, id: u64, begun: Result<(), Reply>) -> io::Result<bool> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(false) };
        match begun {
            Ok(()) => {
                connection.kind = Kind::Waits;
                Ok(true)
            }
            Err(reply) => {
                protocol::send(&connection.socket, &reply, &[])?;
                Ok(false)
            }
        }
    }

    fn pursue_mount(&mut self, (order, ended): (Option<ShareOrder>, Option<mounts::Ended>)) {
        self.orders.extend(order.map(Order::Share));
        let Some(mounts::Ended { asked_by, mount, outcome }) = ended else { return };
        let mut spec = self.spec.clone();
        match outcome {
            Outcome::Added => spec.mounts.push(mount),
            Outcome::NotAdded(_) => {}
            Outcome::Removed | Outcome::RemovedBut(_) => spec.mounts.retain(|other| other.target != mount.target),
        }
        let written = match outcome {
            // It is written down already.
            Outcome::Added => Ok(()),
            Outcome::NotAdded(_) | Outcome::Removed | Outcome::RemovedBut(_) => self.write_spec(&spec),
        };
        self.spec = spec;
        let refused = |why: String| Reply::Refused { why };
        let reply = match (outcome, written) {
            (Outcome::NotAdded(why) | Outcome::RemovedBut(why), Ok(())) => refused(why),
            (Outcome::Added | Outcome::Removed, Ok(())) => Reply::Done,
            (Outcome::NotAdded(why) | Outcome::RemovedBut(why), Err(error)) => refused(format!(
                "{why}; and it is there again after a stop, since that cannot be written down: {error}"
            )),
            (Outcome::Added | Outcome::Removed, Err(error)) => {
                refused(format!("it is there again after a stop, since that cannot be written down: {error}"))
            }
        };
        if let Some(connection) = self.connections.remove(&asked_by) {
            let _gone = protocol::send(&connection.socket, &reply, &[]);
        }
    }

    /// Writes down what is read at the next start.
    fn write_spec(&self, spec: &NamedSpec) -> io::Result<()> {
        Replacement::write(self.entry.directory(), SPEC, spec.to_json().as_bytes())?.put()
    }

    /// Gives the gateway another network. Whoever asked is answered when everybody holds it.
    fn begin_change(&mut self, id: u64, json: &[u8], commands: Option<&mut Commands>) -> Result<(), Reply> {
        let refused = |why: String| Reply::Refused { why };
        let asked = NamedSpec::parse(json).map_err(|error| refused(chain(&error)))?;
        // What it leaves as it was is that of the policy before.
        if self.change.is_some()
            || self.mounts.is_changing()
            || asked.policy_changes != self.spec.policy_changes.saturating_add(1)
        {
            return Err(Reply::Busy);
        }
        let NamedSpec { network, network_flags, ipv6, policy_changes, .. } = asked;
        let spec = NamedSpec { network, network_flags, ipv6, policy_changes, ..self.spec.clone() };
        let network = spec.network().map_err(|error| refused(chain(&error)))?;
        let before = self.spec.network().map_err(|error| refused(chain(&error)))?;
        // They are there already, and hidden from runs by what the specification says of them.
        if before.host_sockets != network.host_sockets {
            let why = "a sandbox that runs has the host sockets that it was started with; leave them as they are";
            return Err(refused(why.to_owned()));
        }
        resolvers::check_change(&before.dns.nameservers, &network.dns.nameservers).map_err(refused)?;
        let Some(commands) = commands.filter(|_| self.has_gateway) else {
            return Err(refused("it has no network while it runs; stop it, and start it anew".to_owned()));
        };
        // First of all, since it has to hold after the next start as well.
        let written = Replacement::write(self.entry.directory(), SPEC, spec.to_json().as_bytes());
        let written = written
            .map_err(|error| refused(format!("the policy cannot be written down, so nothing was changed: {error}")))?;
        let told = commands.replace(&enforced(network));
        let number = told.map_err(|error| refused(format!("its gateway does not listen: {error}")))?;
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.kind = Kind::Waits;
        }
        let (step, due) = (ChangeStep::Gateway(number), Instant::now() + FOR_A_POLICY);
        self.change = Some(Change { asked_by: id, spec, written: Some(written), lost: None, step, due });
        Ok(())
    }

    /// The gateway holds the change: what was written down counts, and runs hear of it.
    fn change_runs(&mut self) {
        let Some(change) = &mut self.change else { return };
        self.spec = change.spec.clone();
        change.step = ChangeStep::Runs(Instant::now() + NARROWING);
        let json = self.spec.to_json();
        change.lost = change.written.take().and_then(|written| written.put().err());
        for connection in self.connections.values_mut().filter(|one| matches!(one.kind, Kind::Run { .. })) {
            connection.owes = true;
            // One that cannot be told is killed in time.
            let _deaf = protocol::memory_file(json.as_bytes())
                .and_then(|file| protocol::send(&connection.socket, &ToRun::Policy, &[file.as_fd()]));
        }
        self.pursue_change();
    }

    /// Ends a change when every run is within it; a run that is not in time is killed.
    fn pursue_change(&mut self) {
        let Some(Change { step: ChangeStep::Runs(deadline), .. }) = &self.change else { return };
        if *deadline <= Instant::now() {
            let main = self.main.as_ref();
            for connection in self.connections.values_mut().filter(|one| one.owes) {
                connection.owes = kill_run(connection, main).is_err();
            }
            // Whoever cannot be killed goes with the sandbox.
            if self.connections.values().any(|one| one.owes) {
                self.stop(Duration::ZERO);
            }
        } else if self.connections.values().any(|one| one.owes) {
            return;
        }
        let lost = self.change.as_mut().and_then(|change| change.lost.take());
        self.end_change(&match lost {
            None => Reply::Done,
            Some(error) => Reply::Refused {
                why: format!("the policy is in force, but not after a stop, since it cannot be written down: {error}"),
            },
        });
    }

    /// Waits no longer for a gateway that is late, and for whoever asked no longer than they do.
    fn give_up(&mut self) {
        let now = Instant::now();
        let late = self.published.give_up(now);
        self.end_port_change(late);
        let late = self.mounts.give_up(now);
        self.pursue_mount(late);
        let is_late = |change: &Change| matches!(change.step, ChangeStep::Gateway(_)) && change.due <= now;
        if self.change.as_ref().is_some_and(is_late) {
            self.end_change(&Reply::Refused { why: LATE.to_owned() });
        }
    }

    fn end_change(&mut self, reply: &Reply) {
        let Some(change) = self.change.take() else { return };
        if let Some(connection) = self.connections.remove(&change.asked_by) {
            let _gone = protocol::send(&connection.socket, reply, &[]);
        }
    }

    fn hear_run(&mut self, id: u64, commands: Option<&mut Commands>) -> io::Result<bool> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(false) };
        let Some((said, _)) = protocol::receive::<FromRun>(&connection.socket)? else { return Ok(false) };
        let Kind::Run { command, is_main } = &mut connection.kind else { return Ok(false) };
        match said {
            FromRun::Started { command: started } => {
                *command = Some(started);
                if *is_main {
                    self.report();
                }
                Ok(true)
            }
            FromRun::Narrowed => {
                connection.owes = false;
                Ok(true)
            }
            FromRun::Ended => {
                match commands.filter(|_| self.has_gateway).map(Commands::tell) {
                    Some(Ok(number)) => self.tellings.push((number, id)),
                    Some(Err(_)) | None => self.told_everything(id),
                }
                Ok(true)
            }
            FromRun::Failed { why, status } => {
                if *is_main && self.ready.is_some() {
                    self.failed = Some((why, status));
                } else if *is_main {
                    say(&why);
                }
                Ok(false)
            }
        }
    }

    fn told_everything(&mut self, id: u64) {
        if let Some(teller) = self.connections.get_mut(&id).and_then(|connection| connection.teller.take()) {
            teller.end();
        }
    }

    /// Tells whoever starts us that we have.
    fn report(&mut self) {
        if let Some(ready) = self.ready.take() {
            // It reads until nobody holds this end any more.
            tell(&ready, &Kept { notices: std::mem::take(&mut self.notices), failed: None });
        }
    }

    fn status(&self) -> Status {
        let runs = self.connections.values().filter_map(|connection| match &connection.kind {
            Kind::Run { command: Some(command), is_main } => {
                Some(RunStatus { supervisor: connection.peer, command: command.clone(), is_main: *is_main })
            }
            Kind::Run { command: None, .. } | Kind::New | Kind::Waits => None,
        });
        let mut runs: Vec<RunStatus> = runs.collect();
        let more_runs = runs.len().saturating_sub(MAX_RUNS);
        runs.truncate(MAX_RUNS);
        let (link, keeper) = (self.link.clone(), std::process::id());
        Status { keeper, init: self.init, started: self.started, link, runs, more_runs }
    }

    fn stop(&mut self, grace: Duration) {
        let deadline = Instant::now().checked_add(grace);
        if self.stopping.is_none() {
            for connection in self.connections.values().filter(|one| matches!(one.kind, Kind::Run { .. })) {
                // One that does not read is killed in time.
                let _deaf = protocol::send(&connection.socket, &ToRun::Terminate, &[]);
            }
        }
        self.stopping = [self.stopping, deadline].into_iter().flatten().min();
    }

    /// What ends the sandbox, once it is to end.
    fn last_order(&mut self) -> Option<Order> {
        let now = Instant::now();
        if !self.is_over() {
            return None;
        }
        let is_late = self.stopping.is_some_and(|deadline| deadline <= now);
        match self.farewell {
            None if self.is_machine && !is_late => {
                self.farewell = Some(now + FAREWELL);
                Some(Order::Signal(rustix::process::Signal::TERM))
            }
            Some(until) if now < until && !is_late => None,
            None | Some(_) => Some(Order::End),
        }
    }

    fn is_over(&self) -> bool {
        let is_run = |connection: &Connection| matches!(connection.kind, Kind::Run { .. });
        let is_idle = self.main.is_none() && !self.connections.values().any(is_run);
        self.stopping.is_some_and(|deadline| is_idle || deadline <= Instant::now())
    }

    fn main_ended(&mut self) {
        let Some(main) = self.main.take() else { return };
        if let Some(output) = &main.output {
            self.log.take_rest(output);
        }
        let status = wait(&main.child);
        if let Some(status) = status {
            let ended = serde_json::json!({ "exit_status": status }).to_string();
            if let Err(error) = write_new(self.entry.directory(), "ended.json", ended.as_bytes()) {
                say(&format!("cannot write down how the main command ended: {error}"));
            }
        }
        self.stop(GRACE);
    }
}

impl Companion for Keeper<'_> {
    fn started(&mut self, running: &Running) -> Result<(), RunError> {
        let refused = |error: io::Error| RunError::Keeper(error);
        let Some(handles) = running.handles() else { return Err(refused(io::ErrorKind::NotFound.into())) };
        let handles = handles.try_clone().map_err(refused)?;
        self.init = running.init_pid();
        self.notices = std::mem::take(&mut *self.told.borrow_mut());
        self.notices.extend_from_slice(running.notices());
        if self.spec.command.is_empty() {
            self.handles = Some(handles);
            self.report();
            return Ok(());
        }
        let (socket, other) = fdpass::pair().map_err(refused)?;
        let (output, output_in) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| refused(errno.into()))?;
        let line = if self.is_machine { Some(call(&mut self.orders).map_err(refused)?) } else { None };
        let main = Main {
            line,
            handles: handles.try_clone().map_err(refused)?,
            link: self.link.as_ref().map(Link::addresses),
            spec: &self.spec,
            directory: self.entry.path().to_owned(),
            env: std::mem::take(&mut self.env),
            keeper: other,
            output: output_in,
        };
        let child = match ns::fork().map_err(refused)? {
            Fork::Child => process::run_and_exit(|| exec::main_command(main)),
            Fork::Parent(child) => child,
        };
        drop(main);
        for fd in [&socket, &output] {
            rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK).map_err(|errno| refused(errno.into()))?;
        }
        let peer = child.pid.as_raw_nonzero().get().unsigned_abs();
        let kind = Kind::Run { command: None, is_main: true };
        self.add(Connection { socket, peer, kind, owes: false, teller: None });
        self.main = Some(MainRun { child, output: Some(output) });
        self.handles = Some(handles);
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.watched().into_iter().map(|(_, fd)| fd).collect()
    }

    fn deadline(&self) -> Option<Instant> {
        let change = self.change.as_ref().map(|change| match change.step {
            ChangeStep::Runs(deadline) => deadline,
            ChangeStep::Gateway(_) => change.due,
        });
        let at_once = (!self.orders.is_empty()).then(Instant::now);
        self.stopping
            .into_iter()
            .chain(change)
            .chain(self.published.deadline())
            .chain(self.mounts.deadline())
            .chain(self.farewell)
            .chain(at_once)
            .min()
    }

    fn handle(&mut self, ready: &[bool], mut commands: Option<&mut Commands>) -> Vec<Order> {
        let sources: Vec<Source> =
            self.watched().into_iter().zip(ready).filter_map(|((source, _), ready)| ready.then_some(source)).collect();
        for source in sources {
            match source {
                Source::Listener => self.accept(),
                Source::Connection(id) => self.hear(id, commands.as_deref_mut()),
                Source::MainEnd => self.main_ended(),
                Source::Output => {
                    if let Some(main) = &mut self.main
                        && main.output.as_ref().is_some_and(|output| !self.log.take(output))
                    {
                        main.output = None;
                    }
                }
            }
        }
        self.pursue_change();
        self.give_up();
        if let Some(commands) = commands {
            self.published.tidy(commands);
        }
        let mut orders = std::mem::take(&mut self.orders);
        orders.extend(self.last_order());
        orders
    }

    fn event(&mut self, event: &Event, line: &[u8]) {
        if told::concerns_runs(event) {
            for connection in self.connections.values_mut() {
                let told = connection.teller.as_mut().is_some_and(|teller| teller.tell(line));
                connection.teller.take_if(|_| !told);
            }
        }
    }

    fn answered(&mut self, answer: CommandAnswer) -> Vec<Order> {
        for (_, run) in self.tellings.extract_if(.., |(number, _)| *number == answer.number).collect::<Vec<_>>() {
            self.told_everything(run);
        }
        let ended = self.published.answered(answer.number, &answer.result);
        self.end_port_change(ended);
        let is_ours = self.change.as_ref().is_some_and(|change| change.step == ChangeStep::Gateway(answer.number));
        match answer.result {
            Ok(()) if is_ours => self.change_runs(),
            Err(why) if is_ours => self.end_change(&Reply::Refused { why }),
            Ok(()) | Err(_) => {}
        }
        Vec::new()
    }

    fn shared(&mut self, answer: ShareAnswer) -> Vec<Order> {
        let came = self.mounts.answered(answer, Instant::now());
        self.pursue_mount(came);
        std::mem::take(&mut self.orders)
    }

    fn gateway_died(&mut self) {
        self.has_gateway = false;
        for (_, run) in std::mem::take(&mut self.tellings) {
            self.told_everything(run);
        }
        let ended = self.published.gateway_died();
        self.end_port_change(ended);
        if self.change.as_ref().is_some_and(|change| matches!(change.step, ChangeStep::Gateway(_))) {
            self.end_change(&Reply::Refused { why: "its gateway has ended".to_owned() });
        }
    }

    fn signal(&mut self) -> Vec<Order> {
        self.stop(GRACE);
        self.last_order().into_iter().collect()
    }

    /// Supervisors that are suspended. Those that are not have waited for their runs by then: were all of them killed, their runs
    /// would be for the machine's first process to wait for, which may take its time.
    fn held_up(&mut self) {
        for connection in self.connections.values() {
            let _ended = kill_run(connection, self.main.as_ref());
        }
    }
}

/// A line to the monitor of a virtual machine, whose other end it is to be given.
fn call(orders: &mut Vec<Order>) -> io::Result<OwnedFd> {
    let (line, other) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    orders.push(Order::Caller(other));
    Ok(line)
}

/// Kills the supervisor of a run, and with it the run.
fn kill_run(connection: &Connection, main: Option<&MainRun>) -> io::Result<()> {
    let kill = |pidfd: &OwnedFd| rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
    match &connection.kind {
        // Both ends of its connection were made by this process.
        Kind::Run { is_main: true, .. } => Ok(main.map_or(Ok(()), |main| kill(&main.child.pidfd))?),
        Kind::Run { is_main: false, .. } => Ok(kill(&fdpass::peer_pidfd(&connection.socket)?)?),
        Kind::New | Kind::Waits => Ok(()),
    }
}

/// What the main command and the keeper write, in bounds. It is this process's standard output and error as well.
struct Log(Rotating);

impl Log {
    fn open(entry: &Entry) -> io::Result<Log> {
        Ok(Log(Rotating::open(entry, "log", "log.1")?))
    }

    /// Takes what a command that has ended has left in its output. Another run may hold the other end, and write on.
    fn take_rest(&mut self, output: &OwnedFd) {
        for _ in 0..FULL_PIPE {
            let mut fds = [PollFd::new(output, PollFlags::IN)];
            if !rustix::event::poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
                || !self.take(output)
            {
                return;
            }
        }
    }

    /// Takes what is there of an output; `false` at its end. What finds no room on the disk is lost.
    fn take(&mut self, output: &OwnedFd) -> bool {
        let mut buffer = vec![0; CHUNK];
        match rustix::io::read(output, &mut buffer) {
            Ok(0) => false,
            Ok(len) => {
                let _no_room = self.0.write_all(buffer.get(..len).unwrap_or_default());
                if self.0.is_fresh() {
                    let file = &self.0.file;
                    let _as_before = rustix::stdio::dup2_stdout(file).and_then(|()| rustix::stdio::dup2_stderr(file));
                }
                true
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
            Err(_) => false,
        }
    }
}

/// A file that is put aside when it is large, in place of the one that was put aside before.
struct Rotating {
    directory: OwnedFd,
    name: &'static str,
    older: &'static str,
    file: OwnedFd,
    size: u64,
    is_fresh: bool,
}

impl Rotating {
    fn open(entry: &Entry, name: &'static str, older: &'static str) -> io::Result<Rotating> {
        let directory = entry.directory().try_clone()?;
        let file = Rotating::file(&directory, name)?;
        let size = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        Ok(Rotating { directory, name, older, file, size, is_fresh: false })
    }

    fn file(directory: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?)
    }

    /// Whether the file is another one since this was asked.
    fn is_fresh(&mut self) -> bool {
        std::mem::take(&mut self.is_fresh)
    }
}

impl Write for Rotating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Without another file this one goes on growing; there is no better place to say so.
        if self.size >= LOG_SIZE
            && rustix::fs::renameat(&self.directory, self.name, &self.directory, self.older).is_ok()
            && let Ok(file) = Rotating::file(&self.directory, self.name)
        {
            self.file = file;
            self.size = 0;
            self.is_fresh = true;
        }
        let written = rustix::io::write(&self.file, bytes)?;
        self.size += u64::try_from(written).unwrap_or(0);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::named::Registry;

    #[test]
    fn a_log_stays_within_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let name: super::super::SandboxName = "s".parse().unwrap();
        let locked = Registry::at(dir.path()).create(&name, &NamedSpec::default()).unwrap();
        let mut log = Rotating::open(locked.entry(), "log", "log.1").unwrap();
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            log.write_all(&piece).unwrap();
        }
        assert!(log.is_fresh() && !log.is_fresh());
        let size = |name: &str| std::fs::metadata(locked.entry().path().join(name)).unwrap().len();
        assert_eq!((size("log"), size("log.1")), (4 << 20, 8 << 20));
    }
}
