//! The gateway process as the supervisor sees it: forked, made powerless, handed its descriptors, watched.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use cofferdam_gateway::{Channels, Commands, GatewayConfig, GatewayFds, PortSocket, SocketDoor, serve_dialer};
use cofferdam_sys::fdpass;
use cofferdam_sys::ns::{self, Child, Fork};
use cofferdam_sys::process::{self, Groups};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;

use crate::NetworkSpec;
use crate::identity::Identity;
use crate::wire::{self, Fault, Step as _};

/// How much of what a gateway says before it dies is kept.
const LAST_WORDS: usize = 4096;

/// A gateway process.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) child: Child,
    /// Where its events arrive, one JSON object per line; non-blocking.
    pub(crate) events: OwnedFd,
    /// Its standard error; non-blocking.
    pub(crate) errors: OwnedFd,
    /// Where it hears of the machine's network, until somebody takes that up.
    pub(crate) machine: Option<OwnedFd>,
    /// Where it takes commands, if it does.
    pub(crate) commands: Option<Commands>,
}

/// Why there is no gateway.
#[derive(Debug)]
pub(crate) enum GatewayError {
    Fault(Fault),
    /// It ended before it was ready, saying this.
    Died(String),
}

impl From<Fault> for GatewayError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Gateway {
    /// Forks the gateway process and waits until it is confined and serves. `sockets`: the listeners for sockets of the host, and the
    /// channel to the dialer. `capture`: the channel to the capture.
    pub(crate) fn start(
        network: &NetworkSpec,
        (mut fds, sockets): (Vec<OwnedFd>, Option<(Vec<OwnedFd>, OwnedFd)>),
        capture: Option<OwnedFd>,
        lifeline: &OwnedFd,
        (identity, deadline): (Identity, Instant),
    ) -> Result<Self, GatewayError> {
        if fds.is_empty() {
            let nothing = Fault::new("take over the gateway's descriptors", &io::ErrorKind::UnexpectedEof.into());
            return Err(nothing.into());
        }
        let tun = fds.remove(0);
        let (host_sockets, dialer) = sockets.unzip();
        let host_sockets = host_sockets.unwrap_or_default();
        // The listeners come last.
        let broker = if network.needs_broker() && !fds.is_empty() { Some(fds.remove(0)) } else { None };
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(|| "make a pipe".to_owned());
        // Messages keep their borders, so that a slow reader loses whole lines and never half of one.
        let (events, events_in) = fdpass::pair().step(|| "make a socket pair".to_owned())?;
        let (machine, machine_in) = fdpass::pair().step(|| "make a socket pair".to_owned())?;
        let (commands, commands_in) = match network.live {
            true => {
                let (ours, theirs) = Commands::pair().step(|| "make a socket pair".to_owned())?;
                (Some(ours), Some(theirs))
            }
            false => (None, None),
        };
        let (ready, ready_in) = pipe()?;
        let (errors, errors_in) = pipe()?;
        let child = match ns::fork().step(|| "fork the gateway".to_owned())? {
            Fork::Parent(child) => child,
            Fork::Child => process::run_and_exit(|| {
                let Ok(lifeline) = lifeline.try_clone() else { return 1 };
                let channels = Channels {
                    events: events_in,
                    machine: machine_in,
                    capture,
                    commands: commands_in,
                    ready: ready_in,
                    lifeline,
                };
                let port = |port: &Arc<PortSocket>| {
                    Some(PortSocket { id: port.id, port: port.port, socket: port.socket.try_clone().ok()? })
                };
                let Some(ports) = network.ports.iter().map(port).collect() else { return 1 };
                let fds = GatewayFds { tun, listeners: fds, broker, ports, host_sockets, dialer };
                run(network.gateway.clone(), fds, channels, &errors_in, identity)
            }),
        };
        drop((tun, broker, fds, host_sockets, dialer));
        drop(capture);
        drop((events_in, machine_in, commands_in, ready_in, errors_in));
        for pipe in [&events, &errors] {
            rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK).step(|| "set up a pipe".to_owned())?;
        }
        let gateway = Self { child, events, errors, machine: Some(machine), commands };
        gateway.wait_until_ready(&ready, deadline)?;
        Ok(gateway)
    }

    fn wait_until_ready(&self, ready: &OwnedFd, deadline: Instant) -> Result<(), GatewayError> {
        loop {
            let mut fds = [PollFd::from_borrowed_fd(ready.as_fd(), PollFlags::IN)];
            let left = deadline.saturating_duration_since(Instant::now());
            wire::poll(&mut fds, Some(left)).step(|| "wait for the gateway".to_owned())?;
            let [answered] = fds.map(|fd| !fd.revents().is_empty());
            if answered {
                let mut byte = [0];
                return match rustix::io::read(ready, &mut byte) {
                    Ok(1) => Ok(()),
                    Ok(_) | Err(_) => Err(GatewayError::Died(self.last_words())),
                };
            }
            if left.is_zero() {
                return Err(GatewayError::Died("it was not ready in time".to_owned()));
            }
        }
    }

    /// What it wrote to standard error, on one line and without control characters.
    pub(crate) fn last_words(&self) -> String {
        let mut buffer = vec![0; LAST_WORDS];
        let len = rustix::io::read(&self.errors, &mut buffer).unwrap_or(0);
        buffer.truncate(len);
        let text = String::from_utf8_lossy(&buffer);
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

/// Forks the process that connects to sockets of the host, and returns the gateway's end of the channel to it.
pub(crate) fn start_dialer(doors: &[Arc<SocketDoor>], lifeline: &OwnedFd) -> Result<(Child, OwnedFd), Fault> {
    let (channel, gateways) = fdpass::pair().step(|| "make a socket pair".to_owned())?;
    rustix::io::ioctl_fionbio(&gateways, true).step(|| "set up a socket".to_owned())?;
    match ns::fork().step(|| "fork the dialer".to_owned())? {
        Fork::Parent(child) => Ok((child, gateways)),
        Fork::Child => process::run_and_exit(|| match dial(doors, &channel, lifeline) {
            Ok(()) => 0,
            // The gateway sees the end of the channel, and tells.
            Err(()) => 1,
        }),
    }
}

/// The dialer from the fork to its end. It stays whoever the supervisor is, for whom the sockets are open.
fn dial(doors: &[Arc<SocketDoor>], channel: &OwnedFd, lifeline: &OwnedFd) -> Result<(), ()> {
    let prepare = || -> io::Result<()> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        drop(null);
        let mut kept = vec![channel.as_fd(), lifeline.as_fd()];
        kept.extend(doors.iter().map(|door| door.as_fd()));
        process::close_all_except(&kept)?;
        process::rename("cofferdam-dial")?;
        rustix::process::setsid()?;
        process::die_with_parent()
    };
    prepare().map_err(|_| ())?;
    let doors: Vec<&SocketDoor> = doors.iter().map(AsRef::as_ref).collect();
    serve_dialer(channel, lifeline, &doors).map_err(|_| ())
}

/// The gateway process from the fork to its end.
fn run(config: GatewayConfig, fds: GatewayFds, channels: Channels, errors: &OwnedFd, identity: Identity) -> u8 {
    match enter(&fds, &channels, errors, identity) {
        Ok(()) => {}
        Err(fault) => {
            eprintln!("the gateway could not {}: {}", fault.step, fault.error());
            return 1;
        }
    }
    match cofferdam_gateway::serve(config, fds, channels) {
        Ok(()) => 0,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(inner) = source {
                text = format!("{text}: {inner}");
                source = inner.source();
            }
            eprintln!("{text}");
            1
        }
    }
}

/// Leaves behind everything of the supervisor's that the gateway has no use for.
fn enter(fds: &GatewayFds, channels: &Channels, errors: &OwnedFd, identity: Identity) -> Result<(), Fault> {
    // A terminal in the hands of a taken-over gateway would be a keyboard of the user's.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .step(|| "open /dev/null".to_owned())?;
    rustix::stdio::dup2_stderr(errors).step(|| "redirect its standard error".to_owned())?;
    rustix::stdio::dup2_stdin(&null).step(|| "redirect its standard input".to_owned())?;
    rustix::stdio::dup2_stdout(&null).step(|| "redirect its standard output".to_owned())?;
    drop(null);
    let mut kept: Vec<_> =
        [&fds.tun, &channels.events, &channels.machine, &channels.ready, &channels.lifeline].map(AsFd::as_fd).into();
    kept.extend(
        fds.listeners.iter().chain(&channels.commands).chain(&channels.capture).chain(&fds.broker).map(AsFd::as_fd),
    );
    kept.extend(fds.ports.iter().map(|port| port.socket.as_fd()));
    kept.extend(fds.host_sockets.iter().chain(&fds.dialer).map(AsFd::as_fd));
    process::close_all_except(&kept).step(|| "close descriptors".to_owned())?;
    // Away from the terminal, whose interrupts are for the supervisor.
    rustix::process::setsid().step(|| "start a session".to_owned())?;
    if let Identity::Unused(id) = identity {
        process::become_user(id, id, Groups::Clear).step(|| "become an unprivileged user".to_owned())?;
    }
    process::die_with_parent().step(|| "ask for a signal at the supervisor's end".to_owned())?;
    if wire::is_orphaned(channels.lifeline.as_fd()) {
        return Err(Fault::new("find its supervisor", &io::ErrorKind::NotFound.into()));
    }
    Ok(())
}
