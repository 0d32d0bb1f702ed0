//! The builder of a run in a sandbox that is there: enters its namespaces, makes those of the run, and the gateway's
//! network if the run has one of its own.
//!
//! | Stage | Holds | Gives up |
//! |---|---|---|
//! | forked | what the supervisor has | descriptors but its own; as root the supplementary groups |
//! | entered | power over the sandbox's namespaces and those around it | – |
//! | mapped | as before, as user 0 there | its user on the host, when that was root |
//! | after the fork | the same | ends when the link is made |
//!
//! A pid namespace is always a child of the one its maker is *in*, and only children enter one: so a *stepper* is forked
//! into the sandbox's, which makes the init of the run there and ends. Both become children of the supervisor. The
//! sandbox's end is the end of its pid 1, and with it the kernel kills every run.

use std::os::fd::{AsFd, OwnedFd};

use cofferdam_gateway::{GuestEnd, build_netns};
use cofferdam_sys::ns::{self, Fork, NamespaceKind, Namespaces, ParentOf};
use cofferdam_sys::process::{self, Groups};
use cofferdam_sys::{fdpass, tun};
use rustix::process::PidfdFlags;

use crate::builder::{fault, packets};
use crate::handles::{Attachment, Handles};
use crate::identity::Identity;
use crate::init::{self, Init, Inside};
use crate::remedy;
use crate::wire::{self, Fault, Message, Received, Step as _};

/// What the builder of a run is given.
#[derive(Debug)]
pub(crate) struct Enter<'a> {
    pub(crate) supervisor: OwnedFd,
    pub(crate) lifeline: OwnedFd,
    pub(crate) handles: &'a Handles,
    pub(crate) attachment: Attachment,
    pub(crate) init: Init<'a>,
}

impl Enter<'_> {
    /// Runs the builder to its end. The exit status says nothing that the supervisor was not told before.
    pub(crate) fn run(self) -> u8 {
        let mut kept = vec![self.supervisor.as_fd(), self.lifeline.as_fd(), self.init.supervisor.as_fd()];
        kept.extend(self.handles.fds());
        kept.extend(self.init.inside.iter().flat_map(Inside::fds));
        if process::close_all_except(&kept).is_err() {
            return 1;
        }
        let (Ok(supervisor), Ok(_init)) = (self.supervisor.try_clone(), self.init.supervisor.try_clone()) else {
            return 1;
        };
        tell(&supervisor, self.build())
    }

    /// `Err(None)`: the supervisor is gone, or knows already.
    fn build(self) -> Result<(), Option<Fault>> {
        let Enter { supervisor, lifeline, handles, attachment, init } = self;
        rustix::process::setsid().step(|| "start a session".to_owned())?;
        process::die_with_parent().step(|| "ask for a signal at the supervisor's end".to_owned())?;
        if matches!(handles.identity, Identity::Unused(_)) {
            rustix::thread::set_thread_groups(&[]).step(|| "clear its supplementary groups".to_owned())?;
        }
        ns::enter(&handles.owner, NamespaceKind::User).step(|| "enter the gateway's user namespace".to_owned())?;
        // As in a fresh sandbox: the device belongs to the namespace it is opened in, and may be closed to the user that
        // this process becomes next.
        let tun = match &init.spec.network {
            Some(_) => {
                ns::unshare(Namespaces::NET).step(|| "make a network namespace".to_owned())?;
                Some(tun::open().map_err(|error| {
                    Fault::new("open /dev/net/tun", &error.source).with_remedy(remedy::tun(&error.source))
                })?)
            }
            None => None,
        };
        wire::send(&supervisor, &Message::Unshared, &[]).step(|| "reach the supervisor".to_owned())?;
        match wire::receive(supervisor.as_fd(), Some(lifeline.as_fd()), None) {
            Ok(Received::Message(Message::Mapped, _)) => {}
            Ok(_) | Err(_) => return Err(None),
        }
        process::become_user(0, 0, Groups::Keep).step(|| "become user 0 of that namespace".to_owned())?;
        process::die_with_parent().step(|| "ask for a signal at the supervisor's end".to_owned())?;
        ns::enter(&handles.pid, NamespaceKind::Pid).step(|| "enter the sandbox's pid namespace".to_owned())?;
        let (own, other) = fdpass::pair().step(|| "make a socket pair".to_owned())?;
        if wire::is_orphaned(lifeline.as_fd()) {
            return Err(None);
        }
        let network = init.spec.network.clone();
        // The sandbox has ended when there is no memory for a process in its pid namespace, pid_namespaces(7).
        match ns::fork_into(Namespaces::NONE, ParentOf::CallersParent)
            .step(|| "start a process in the sandbox".to_owned())?
        {
            Fork::Child => process::run_and_exit(|| {
                let Ok(told) = supervisor.try_clone() else { return 1 };
                tell(&told, step(Stepper { supervisor, lifeline, handles, attachment, builder: other, init }))
            }),
            Fork::Parent(stepper) => drop(stepper),
        }
        drop((other, init));
        let (Some(network), Some(tun)) = (network, tun) else {
            return Ok(wire::send(&supervisor, &Message::Built, &[]).step(|| "reach the supervisor".to_owned())?);
        };
        let netns = match wire::receive(own.as_fd(), Some(lifeline.as_fd()), None) {
            Ok(Received::Message(Message::Netns, mut fds)) => fds.pop().ok_or(None)?,
            Ok(_) | Err(_) => return Err(None),
        };
        let fds = build_netns(&network.link, tun, GuestEnd::Netns(netns.as_fd())).map_err(|error| fault(&error))?;
        let packets = packets(&network)?;
        let all = std::iter::once(fds.tun.as_fd()).chain(fds.listeners.iter().map(AsFd::as_fd));
        let all = all.chain(packets.iter().map(AsFd::as_fd));
        wire::send(&supervisor, &Message::Built, &all.collect::<Vec<_>>())
            .step(|| "hand over the gateway's descriptors".to_owned())?;
        wire::send(&own, &Message::Linked, &[]).map_err(|_| None)
    }
}

fn tell(supervisor: &OwnedFd, done: Result<(), Option<Fault>>) -> u8 {
    match done {
        Ok(()) => 0,
        Err(Some(fault)) => {
            // A supervisor that is gone needs no answer.
            let _gone = wire::send(supervisor, &Message::Failed(fault), &[]);
            1
        }
        Err(None) => 1,
    }
}

struct Stepper<'a> {
    supervisor: OwnedFd,
    lifeline: OwnedFd,
    handles: &'a Handles,
    attachment: Attachment,
    builder: OwnedFd,
    init: Init<'a>,
}

/// The stepper: from the sandbox's pid namespace to the run's init.
fn step(stepper: Stepper<'_>) -> Result<(), Option<Fault>> {
    let Stepper { supervisor, lifeline, handles, attachment, builder, init } = stepper;
    process::die_with_parent().step(|| "ask for a signal at the supervisor's end".to_owned())?;
    ns::enter(&handles.user, NamespaceKind::User).step(|| "enter the sandbox's user namespace".to_owned())?;
    let own = Namespaces::PID | Namespaces::MOUNT | Namespaces::IPC | Namespaces::UTS | Namespaces::CGROUP;
    let namespaces = match attachment {
        Attachment::Session => {
            ns::enter(&handles.net, NamespaceKind::Net).step(|| "enter the sandbox's network".to_owned())?;
            own
        }
        Attachment::Own => own | Namespaces::NET,
    };
    if wire::is_orphaned(lifeline.as_fd()) {
        return Err(None);
    }
    let child = ns::fork_into(namespaces, ParentOf::CallersParent).step(|| "make the run's namespaces".to_owned())?;
    let child = match child {
        Fork::Child => process::run_and_exit(|| init::run(init, builder, lifeline)),
        Fork::Parent(child) => child,
    };
    let me = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
        .step(|| "refer to itself".to_owned())?;
    // Its number is another one for the supervisor, who sees it by the descriptor.
    Ok(wire::send(&supervisor, &Message::Born { pid: 0 }, &[child.pidfd.as_fd(), me.as_fd()])
        .step(|| "reach the supervisor".to_owned())?)
}
