//! The builder: makes the namespaces, the sandbox's init and the gateway's network, hands over descriptors and ends.
//!
//! | Stage | Holds | Gives up |
//! |---|---|---|
//! | forked | what the supervisor has | descriptors but its own; as root the supplementary groups |
//! | unshared | power over its own user and network namespace alone | – |
//! | mapped | as before, as user 0 of that namespace | its user on the host, when that was root |
//! | after the clone | power over the sandbox's namespaces, which are below its own | ends when the link is made |

use std::os::fd::{AsFd, OwnedFd};

use cofferdam_gateway::{BuildError, GuestEnd, build_netns, listen_for_files, open_packets, serve_broker};
use cofferdam_sys::ns::{self, Fork, IdMap, NamespaceKind, Namespaces, ParentOf, Setgroups};
use cofferdam_sys::process::{self, Groups};
use cofferdam_sys::{fdpass, tun};
use rustix::process::DumpableBehavior;

use crate::NetworkSpec;
use crate::handles;
use crate::identity::Identity;
use crate::init::{self, Init, Task};
use crate::remedy;
use crate::wire::{self, Fault, Message, Received, Step as _};

/// What the builder is given.
#[derive(Debug)]
pub(crate) struct Builder<'a> {
    pub(crate) supervisor: OwnedFd,
    pub(crate) lifeline: OwnedFd,
    pub(crate) identity: Identity,
    pub(crate) init: Init<'a>,
}

impl Builder<'_> {
    /// Runs the builder to its end. The exit status says nothing that the supervisor was not told before.
    pub(crate) fn run(self) -> u8 {
        let kept = [self.supervisor.as_fd(), self.lifeline.as_fd(), self.init.supervisor.as_fd()];
        // Without this a descriptor of the caller's could reach the program.
        if process::close_all_except(&kept).is_err() {
            return 1;
        }
        // Both stay open until the fault is told: to the supervisor the end of the init's socket means that the init has
        // ended, which is not the news here.
        let (Ok(supervisor), Ok(init)) = (self.supervisor.try_clone(), self.init.supervisor.try_clone()) else {
            return 1;
        };
        match self.build() {
            Ok(None) => 0,
            Ok(Some((channel, lifeline))) => {
                // To the supervisor the end of its own socket would be the end of this process.
                drop(init);
                stay(&supervisor, &channel, &lifeline)
            }
            Err(Some(fault)) => {
                // A supervisor that is gone needs no answer.
                let _gone = wire::send(&supervisor, &Message::Failed(fault), &[]);
                1
            }
            Err(None) => 1,
        }
    }

    /// What it needs to stay as the broker, if it has to: the channel to the gateway and the lifeline. `Err(None)`: the
    /// supervisor is gone.
    fn build(self) -> Result<Option<(OwnedFd, OwnedFd)>, Option<Fault>> {
        let Builder { supervisor, lifeline, identity, init } = self;
        // Away from the terminal, whose interrupts are for the supervisor.
        rustix::process::setsid().step(|| "start a session".to_owned())?;
        process::die_with_parent().step(|| "ask for a signal at the supervisor's end".to_owned())?;
        if matches!(identity, Identity::Unused(_)) {
            rustix::thread::set_thread_groups(&[]).step(|| "clear its supplementary groups".to_owned())?;
        }
        ns::unshare(Namespaces::USER | Namespaces::NET)
            .map_err(|error| Fault::new("make a user namespace", &error).with_remedy(remedy::user_namespace(&error)))?;
        // The device belongs to the network namespace it is opened in; and as root's file it may be closed to the
        // user this process becomes next.
        let tun = init.spec.network.as_ref().map(|_| open_tun()).transpose()?;
        let tap = match (&tun, init.task) {
            (Some(_), Task::Monitor | Task::StayMonitor) => Some(open_tun()?),
            (_, Task::Program | Task::Stay) | (None, Task::Monitor | Task::StayMonitor) => None,
        };
        wire::send(&supervisor, &Message::Unshared, &[]).step(|| "reach the supervisor".to_owned())?;
        match wire::receive(supervisor.as_fd(), Some(lifeline.as_fd()), None) {
            Ok(Received::Message(Message::Mapped, _)) => {}
            Ok(_) | Err(_) => return Err(None),
        }
        process::become_user(0, 0, Groups::Keep).step(|| "become user 0 of its namespace".to_owned())?;
        process::die_with_parent().step(|| "ask for a signal at the supervisor's end".to_owned())?;
        // Changing the user has closed /proc/<pid> of this process and its children to all but root; but this process
        // has to write the maps of the next one there.
        rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)
            .step(|| "open its entry in /proc".to_owned())?;
        let (own, other) = fdpass::pair().step(|| "make a socket pair".to_owned())?;
        if wire::is_orphaned(lifeline.as_fd()) {
            return Err(None);
        }
        let namespaces = Namespaces::USER
            | Namespaces::NET
            | Namespaces::PID
            | Namespaces::MOUNT
            | Namespaces::IPC
            | Namespaces::UTS
            | Namespaces::CGROUP;
        let child = ns::fork_into(namespaces, ParentOf::CallersParent).map_err(|error| {
            Fault::new("make the sandbox's namespaces", &error).with_remedy(remedy::user_namespace(&error))
        })?;
        let child = match child {
            Fork::Child => process::run_and_exit(|| init::run(init, other, lifeline)),
            Fork::Parent(child) => child,
        };
        drop(other);
        let pid = child.pid.as_raw_nonzero().get();
        // All of them now: once it is mapped, the init closes its entry in /proc.
        let netns =
            ns::open(Some(child.pid), NamespaceKind::Net).step(|| "open the sandbox's network namespace".to_owned())?;
        let doors = match init.task.stays() {
            true => handles::open_doors(child.pid).step(|| "open the sandbox's namespaces".to_owned())?,
            false => Vec::new(),
        };
        let born = std::iter::once(child.pidfd.as_fd()).chain(doors.iter().map(AsFd::as_fd)).collect::<Vec<_>>();
        wire::send(&supervisor, &Message::Born { pid }, &born).step(|| "reach the supervisor".to_owned())?;
        drop(doors);
        let inside = IdMap::single(init.spec.inside_uid, 0);
        ns::write_id_maps(Some(child.pid), &[inside], &[inside], Setgroups::Deny).map_err(|error| {
            Fault::new(format!("write {}", error.path.display()), &error.source)
                .with_remedy(remedy::user_namespace(&error.source))
        })?;
        // An init that cannot be reached has told the supervisor why, or the supervisor sees its end.
        wire::send(&own, &Message::Mapped, &[]).map_err(|_| None)?;
        if let (Some(network), Some(tun)) = (&init.spec.network, tun) {
            let guest = tap.as_ref().map_or(GuestEnd::Netns(netns.as_fd()), |tap| GuestEnd::Tap(tap.as_fd()));
            let fds = build_netns(&network.link, tun, guest).map_err(|error| fault(&error))?;
            let broker = match network.needs_broker() {
                true => Some(fdpass::pair().step(|| "make a socket pair".to_owned())?),
                false => None,
            };
            if let Some((_, gateways)) = &broker {
                rustix::io::ioctl_fionbio(gateways, true).step(|| "set up a socket".to_owned())?;
            }
            let gateways = broker.as_ref().map(|(_, gateways)| gateways.as_fd());
            let packets = packets(network)?;
            let listeners = fds.listeners.iter().map(AsFd::as_fd);
            let all = std::iter::once(fds.tun.as_fd()).chain(gateways).chain(listeners);
            let all = all.chain(packets.iter().map(AsFd::as_fd));
            wire::send(&supervisor, &Message::Built, &all.collect::<Vec<_>>())
                .step(|| "hand over the gateway's descriptors".to_owned())?;
            let files = network.link.files.map(listen_for_files).transpose().map_err(|error| fault(&error))?;
            let linked: Vec<_> = tap.iter().chain(&files).map(AsFd::as_fd).collect();
            wire::send(&own, &Message::Linked, &linked).map_err(|_| None)?;
            drop((own, netns, fds, packets, files));
            return match broker {
                Some((channel, _)) => Ok(Some((channel, lifeline))),
                None => Ok(None),
            };
        } else {
            wire::send(&supervisor, &Message::Built, &[]).step(|| "reach the supervisor".to_owned())?;
        }
        Ok(None)
    }
}

fn open_tun() -> Result<OwnedFd, Fault> {
    tun::open().map_err(|error| Fault::new("open /dev/net/tun", &error.source).with_remedy(remedy::tun(&error.source)))
}

/// A socket with the packets of the link that was built, for who is to capture them.
pub(crate) fn packets(network: &NetworkSpec) -> Result<Option<OwnedFd>, Fault> {
    network.capture.as_ref().map(|_| open_packets(&network.link).map_err(|error| fault(&error))).transpose()
}

/// The rest of its life as the broker. Its name in a list of processes says so.
fn stay(supervisor: &OwnedFd, channel: &OwnedFd, lifeline: &OwnedFd) -> u8 {
    let renamed = process::rename("cofferdam-ports");
    let kept = [supervisor.as_fd(), channel.as_fd(), lifeline.as_fd()];
    let served = renamed.and_then(|()| process::close_all_except(&kept)).map_err(|_| ());
    match served.and_then(|()| serve_broker(channel, lifeline).map_err(|_| ())) {
        Ok(()) => 0,
        // The gateway sees the end of the channel, and tells.
        Err(()) => 1,
    }
}

/// An error of the gateway crate, with its sources and its remedy, as a fault.
pub(crate) fn fault(error: &(dyn std::error::Error + 'static)) -> Fault {
    let known = error.downcast_ref::<BuildError>().and_then(BuildError::remedy);
    let remedy = known.map(|remedy| format!("; {remedy}")).unwrap_or_default();
    let mut text = error.to_string();
    let mut errno = None;
    let mut source = error.source();
    while let Some(inner) = source {
        errno = errno.or_else(|| inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error));
        if inner.downcast_ref::<std::io::Error>().is_none() {
            text = format!("{text}: {inner}");
        }
        source = inner.source();
    }
    let text = text.strip_prefix("cannot ").map(str::to_owned).unwrap_or(text);
    let error = errno.map_or_else(|| std::io::ErrorKind::Other.into(), std::io::Error::from_raw_os_error);
    Fault::new(text, &error).with_remedy(remedy)
}
