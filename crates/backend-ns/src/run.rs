//! The supervisor: starts the processes of a sandbox, watches them, and passes signals, the terminal and events on.
//!
//! | State | Event | Then |
//! |---|---|---|
//! | starting | `Unshared` of the builder | its id maps are written, mount trees taken with the privilege at hand |
//! | starting | `Born` | the init is known, and can be ended |
//! | starting | `Built` | the gateway is forked, and has said that it is confined |
//! | starting | `Placed` of the init, and a gateway if one is wanted | the gateway is told the machine's addresses; `Go` |
//! | starting | `Booted` of a virtual machine's monitor | once more `Go` |
//! | starting | `Started` | running |
//! | starting | `Failed`, end of a process, 30 s | everything is ended; the error says which step |
//! | running | INT, TERM, … | passed on; a second INT within 5 s ends the sandbox |
//! | running | time is up | TERM to the program's group, 2 s later the end |
//! | running | addresses or routes of the machine change | the gateway is told; when it cannot be, it is ended |
//! | running | the machine's resolvers change | the gateway is told |
//! | running | end of the gateway | reported; the sandbox has no network from here on |
//! | running | `Exited`, `Signaled`, `Lost`, end of the init | stopping |
//! | stopping | – | the lifeline is closed; the last events are read; everything is waited for, the capture of packets last |
//!
//! Before the program is told to start, a signal ends the supervisor as it ends any process, and everything else follows.
//! From then on signals are blocked in the supervisor's thread and wait to be passed on; they are unblocked at the end.

mod machine;
mod resolvers;
mod start;
mod watch;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use cofferdam_gateway::Commands;
use cofferdam_sys::ns::Child;
use cofferdam_sys::process::SignalFd;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::capture::Capture;
use crate::gateway::Gateway;
use crate::limits::Cgroup;
use crate::{GatewayEnd, Handles, Inspector, ResourceLimits};
use machine::Machine;

pub use start::{launch, launch_calling, launch_empty, launch_inside, launch_monitored, launch_staying};
pub use watch::{Observer, Order, ShareAnswer, ShareOrder};

/// A sandbox whose program is running. Dropping it ends the sandbox.
///
/// While it exists, the signals that it passes on are blocked in the thread that launched it.
#[derive(Debug)]
pub struct Running {
    processes: Processes,
    /// To and from the sandbox's init.
    init: OwnedFd,
    /// The program's terminal, if it has one of its own.
    controller: Option<OwnedFd>,
    limits: ResourceLimits,
    started: Instant,
    /// Where signals arrive since just before the program was started.
    signals: SignalFd,
    notices: Vec<String>,
    /// The namespaces of a sandbox that stays.
    handles: Option<Handles>,
    inspector: Option<Inspector>,
}

impl Running {
    /// What others run programs inside with, if the sandbox was made for that.
    #[must_use]
    pub fn handles(&self) -> Option<&Handles> {
        self.handles.as_ref()
    }

    /// What a user should be told of the start.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The process id, as the caller sees it, of the sandbox's pid 1.
    #[must_use]
    pub fn init_pid(&self) -> u32 {
        self.processes.init.as_ref().map_or(0, |init| init.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Takes what tells the processes of the sandbox by their sockets: once, and only where it has a network of its own.
    pub fn take_inspector(&mut self) -> Option<Inspector> {
        self.inspector.take()
    }

    /// Where the gateway takes commands; `None` when the sandbox was not made to be changed, or its gateway has ended.
    pub fn commands(&mut self) -> Option<&mut Commands> {
        self.processes.gateway.as_mut()?.commands.as_mut()
    }
}

/// The processes of one sandbox; dropping them ends them and waits for their end.
///
/// Fields are in the order in which they have to be dropped: the cgroup is empty when the processes are gone.
#[derive(Debug)]
struct Processes {
    /// The only writer of the pipe that tells the others that the supervisor lives.
    lifeline: Option<OwnedFd>,
    builder: Option<Child>,
    init: Option<Child>,
    gateway: Option<Gateway>,
    /// Who connects to sockets of the host for the gateway, and ends with it.
    dialer: Option<Child>,
    /// Who writes packets to a file, until everybody else has ended.
    capture: Option<Capture>,
    /// What the gateway is told of the machine.
    machine: Option<Machine>,
    cgroup: Option<Cgroup>,
}

impl Processes {
    fn new(lifeline: OwnedFd, cgroup: Option<Cgroup>) -> Self {
        let lifeline = Some(lifeline);
        Self { lifeline, builder: None, init: None, gateway: None, dialer: None, capture: None, machine: None, cgroup }
    }

    /// Ends what is left and waits for it.
    fn end(&mut self) {
        drop(self.lifeline.take());
        let gateway = self.gateway.take().map(|gateway| gateway.child);
        let capture = self.capture.take().map(|capture| capture.child);
        let helpers = [gateway, self.dialer.take(), capture];
        for child in [self.builder.take(), self.init.take()].into_iter().chain(helpers).flatten() {
            kill(&child);
            wait(&child);
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.end();
    }
}

pub(crate) fn kill(child: &Child) {
    // One that has ended needs no killing.
    let _ended = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
}

/// Waits for the end of a process. `None` when somebody else has waited for it.
pub(crate) fn wait(child: &Child) -> Option<GatewayEnd> {
    wait_for(child.pidfd.as_fd())
}

pub(crate) fn wait_for(pidfd: BorrowedFd<'_>) -> Option<GatewayEnd> {
    let wait = || rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED);
    let status = rustix::io::retry_on_intr(wait).ok()??;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => Some(GatewayEnd::Exited(status)),
        (None, Some(signal)) => Some(GatewayEnd::Signaled(signal)),
        (None, None) => None,
    }
}
