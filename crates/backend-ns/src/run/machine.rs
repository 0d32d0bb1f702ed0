//! Tells the gateway which addresses and networks are the machine's, for as long as the sandbox runs.
//!
//! | State | Event | Then |
//! |---|---|---|
//! | – | the gateway is ready | the kernel's news are subscribed to, then all is read and sent: nothing falls between |
//! | quiet | news of the kernel | all is read, and sent when it is not what was sent before |
//! | resting | news of the kernel | read when the rest is over |
//! | any | reading failed | read again in a moment; for [`PATIENCE`] |
//! | any | the gateway's queue is full | sent when it has room; for [`PATIENCE`] |
//!
//! It is told of the machine's resolvers over the same channel ([`resolvers`](super::resolvers)), where a sandbox uses those.
//!
//! A rest follows each reading, so that a machine whose routes change all the time does not keep us busy. When the gateway
//! cannot be told, it would let through what is the machine's: it is ended then, and the sandbox has no network any more.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cofferdam_gateway::{TooMany, machine_message, resolvers_message};
use cofferdam_sys::netlink::{self, Monitor, NetlinkError};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::resolvers::Resolvers;
use crate::ResolverFile;

/// The rest after a reading: this long, and [`SHARE`] times as long as the reading took.
const REST: Duration = Duration::from_millis(20);
const SHARE: u32 = 20;

/// Between two tries of a reading that failed.
const RETRY: Duration = Duration::from_millis(100);

/// How long the machine may be unreadable, or the gateway's queue full: much longer than either ever is on a machine that
/// works, and short for somebody who waits for an address to come out of reach.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the gateway is not told any more what the machine has.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("the addresses and routes of this machine cannot be followed: {0}: {source}", source = .0.source_error())]
    Read(NetlinkError),
    #[error(transparent)]
    TooMany(TooMany),
    #[error("the gateway does not take what it is told of this machine's addresses")]
    Stuck,
}

/// The machine's network as the gateway was told of it.
#[derive(Debug)]
pub(crate) struct Machine {
    monitor: Monitor,
    /// To the gateway; message borders are kept.
    channel: OwnedFd,
    told: Vec<u8>,
    /// What is to be said and found no room.
    untold: Option<Vec<u8>>,
    /// When all is read again.
    due: Option<Instant>,
    rest_until: Instant,
    /// Since when reading fails, or telling.
    failing_since: Option<Instant>,
    resolvers: Option<Resolvers>,
}

impl Machine {
    /// Subscribes to the kernel's news and tells the gateway what there is.
    pub(crate) fn follow(channel: OwnedFd, resolvers: Option<ResolverFile>) -> Result<Machine, MachineError> {
        let monitor = Monitor::open().map_err(MachineError::Read)?;
        let now = Instant::now();
        let mut machine = Machine {
            monitor,
            channel,
            told: Vec::new(),
            untold: None,
            due: Some(now),
            rest_until: now,
            failing_since: None,
            resolvers: resolvers.and_then(Resolvers::follow),
        };
        while machine.due.is_some() {
            machine.handle_time(Instant::now())?;
            if machine.failing_since.is_some() {
                std::thread::sleep(RETRY);
            }
        }
        Ok(machine)
    }

    /// Readable when there is news.
    pub(crate) fn news(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }

    /// Readable when something happened to the file that names the resolvers.
    pub(crate) fn resolver_news(&self) -> Option<BorrowedFd<'_>> {
        self.resolvers.as_ref().map(Resolvers::news)
    }

    /// Something happened to that file.
    pub(crate) fn handle_resolver_news(&mut self, now: Instant) -> Result<(), MachineError> {
        self.resolvers.iter_mut().for_each(|resolvers| resolvers.handle_news(now));
        self.handle_time(now)
    }

    /// Writable when the gateway can be told what it could not be told before.
    pub(crate) fn room(&self) -> Option<BorrowedFd<'_>> {
        self.untold.is_some().then(|| self.channel.as_fd())
    }

    /// When to call [`Machine::handle_time`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let patience = self.failing_since.map(|since| since + PATIENCE);
        let resolvers = self.resolvers.as_ref().and_then(Resolvers::deadline);
        self.due.into_iter().chain(patience).chain(resolvers).min()
    }

    /// There is news.
    pub(crate) fn handle_news(&mut self, now: Instant) -> Result<(), MachineError> {
        if self.monitor.has_changed().map_err(MachineError::Read)? && self.due.is_none() {
            self.due = Some(now.max(self.rest_until));
        }
        self.handle_time(now)
    }

    /// The gateway can be told more.
    pub(crate) fn handle_room(&mut self, now: Instant) -> Result<(), MachineError> {
        self.tell(now)
    }

    /// Time has passed.
    pub(crate) fn handle_time(&mut self, now: Instant) -> Result<(), MachineError> {
        if self.due.is_some_and(|due| due <= now) {
            self.read(now)?;
        }
        if self.untold.is_some() && self.is_out_of_patience(now) {
            return Err(MachineError::Stuck);
        }
        self.tell_resolvers(now);
        Ok(())
    }

    /// Names do not open anything: a gateway that cannot be told of other resolvers goes on with those that it knows.
    fn tell_resolvers(&mut self, now: Instant) {
        let Some(resolvers) = &mut self.resolvers else { return };
        let Some(servers) = resolvers.handle_time(now) else { return };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = rustix::net::send(&self.channel, &resolvers_message(&servers), flags);
        resolvers.told(match sent {
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Err(now),
            Ok(_) | Err(_) => Ok(servers),
        });
    }

    fn read(&mut self, now: Instant) -> Result<(), MachineError> {
        let snapshot = match netlink::host_snapshot() {
            Ok(snapshot) => snapshot,
            Err(error) if self.is_out_of_patience(now) => return Err(MachineError::Read(error)),
            Err(_) => {
                self.failing_since.get_or_insert(now);
                self.due = Some(now + RETRY);
                return Ok(());
            }
        };
        let end = Instant::now();
        self.rest_until = end + REST.max(end.saturating_duration_since(now) * SHARE);
        self.due = None;
        if self.untold.is_none() {
            self.failing_since = None;
        }
        let message = machine_message(&snapshot).map_err(MachineError::TooMany)?;
        self.untold = Some(message).filter(|message| *message != self.told);
        self.tell(now)
    }

    fn tell(&mut self, now: Instant) -> Result<(), MachineError> {
        let Some(message) = self.untold.take() else { return Ok(()) };
        match rustix::net::send(&self.channel, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => {
                self.told = message;
                self.failing_since = None;
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => {
                self.untold = Some(message);
                self.failing_since.get_or_insert(now);
                if self.is_out_of_patience(now) { Err(MachineError::Stuck) } else { Ok(()) }
            }
            // It has ended, and that is noticed as such.
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Ok(()),
            Err(_) => Err(MachineError::Stuck),
        }
    }

    fn is_out_of_patience(&self, now: Instant) -> bool {
        self.failing_since.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_sys::fdpass;

    use super::*;

    #[test]
    fn the_gateway_is_told_before_anything_else() {
        let (ours, gateways) = fdpass::pair().unwrap();
        let machine = Machine::follow(ours, None).unwrap();
        let mut buffer = vec![0; 128 * 1024];
        let (len, _) = rustix::net::recv(&gateways, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT).unwrap();
        assert_eq!(buffer[..len], machine_message(&netlink::host_snapshot().unwrap()).unwrap());
        assert!(machine.room().is_none());
    }

    #[test]
    fn what_has_not_changed_is_not_told_again() {
        let (ours, gateways) = fdpass::pair().unwrap();
        let mut machine = Machine::follow(ours, None).unwrap();
        let mut buffer = vec![0; 128 * 1024];
        rustix::net::recv(&gateways, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT).unwrap();
        machine.due = Some(Instant::now());
        machine.handle_time(Instant::now()).unwrap();
        let again = rustix::net::recv(&gateways, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT);
        assert_eq!(again.map(drop), Err(Errno::AGAIN));
    }

    #[test]
    fn a_gateway_that_does_not_listen_is_given_up() {
        let (ours, _gateways) = fdpass::pair().unwrap();
        let mut machine = Machine::follow(ours, None).unwrap();
        let now = Instant::now();
        // News upon news, of which nothing is taken.
        while machine.untold.is_none() {
            machine.told.clear();
            machine.due = Some(now);
            machine.handle_time(now).unwrap();
        }
        assert!(machine.room().is_some());
        assert_eq!(machine.deadline(), Some(now + PATIENCE));
        machine.handle_room(now + PATIENCE / 2).unwrap();
        assert!(matches!(machine.handle_time(now + PATIENCE), Err(MachineError::Stuck)));
    }

    #[test]
    fn a_gateway_that_has_ended_is_no_error_of_its_own() {
        let (ours, gateways) = fdpass::pair().unwrap();
        let mut machine = Machine::follow(ours, None).unwrap();
        drop(gateways);
        machine.told.clear();
        machine.due = Some(Instant::now());
        machine.handle_time(Instant::now()).unwrap();
        assert!(machine.room().is_none() && machine.deadline().is_none());
    }
}
