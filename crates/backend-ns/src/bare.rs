//! A virtual machine where the kernel gives no user namespaces.
//!
//! What is left of the wall is what needs no namespace: `no_new_privs`, no capability, Landlock, seccomp, QEMU's own
//! `-sandbox on`, and the machine itself. No mount namespace hides the host's files, so Landlock has to be there, and leaves
//! QEMU its own; no network namespace takes the host's network away, so the filter decides which sockets it may make; no pid
//! namespace hides other processes of the user, so Landlock and the filter keep it from them. Whoever breaks out of QEMU can
//! send signals to those where the kernel is older than Linux 6.12, whose Landlock has that.
//!
//! The first process is the parent of the monitor, with the states of [`init`] from `Placed` on. When it ends the
//! kernel kills the monitor, and with that QEMU: each has asked for a signal at the end of its parent.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cofferdam_sys::confine::{self, Landlock, PathAccess};
use cofferdam_sys::process;
use rustix::process::DumpableBehavior;

use crate::init::{self, Init, KEPT_IGNORED};
use crate::wire::{self, Fault, Message, Step as _};
use crate::{SandboxSpec, Sockets};

/// What QEMU reads of the host: its libraries and firmware, and which libraries there are.
/// And the monitor, of itself.
const READ: [&str; 6] = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/urandom", "/proc/self"];

/// Where its own network learns which resolver to ask.
const RESOLVERS: &str = "/etc/resolv.conf";

/// What it writes to.
const WRITTEN: [&str; 2] = ["/dev/null", "/dev/kvm"];

/// Runs the first process to its end.
pub(crate) fn run(init: &Init<'_>, lifeline: &OwnedFd) -> u8 {
    if process::close_all_except(&[init.supervisor.as_fd(), lifeline.as_fd()]).is_err() {
        return 1;
    }
    let ended = prepare(init, lifeline)
        .and_then(|(running, children)| init::serve(&init.supervisor, lifeline, &running, &children).map_err(Some));
    match ended {
        Ok(()) => 0,
        Err(Some(fault)) => {
            let _gone = wire::send(&init.supervisor, &Message::Failed(fault), &[]);
            1
        }
        Err(None) => 1,
    }
}

fn prepare(init: &Init<'_>, lifeline: &OwnedFd) -> Result<(init::Started, process::SignalFd), Option<Fault>> {
    rustix::process::setsid().step(|| "start a session".to_owned())?;
    process::die_with_parent().step(|| "ask for a signal at the supervisor's end".to_owned())?;
    process::reset_signals(&KEPT_IGNORED).step(|| "reset its signals".to_owned())?;
    process::rename("cofferdam-init").step(|| "hide its command line".to_owned())?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .step(|| "close its entry in /proc".to_owned())?;
    // A kernel without keyrings has none to share.
    let _unsupported = confine::new_session_keyring();
    wire::send(&init.supervisor, &Message::Placed, &[]).step(|| "reach the supervisor".to_owned())?;
    init::expect(&init.supervisor, lifeline, &Message::Go)?;
    init::start_monitor(init, init::Linked::default(), lifeline)
}

/// Leaves the calling process what QEMU needs of the host's files.
///
/// # Errors
/// There is no Landlock: nothing else would keep QEMU from the user's files.
pub(crate) fn restrict_paths(spec: &SandboxSpec, sockets: Sockets) -> Result<(), Fault> {
    let own = READ.map(PathBuf::from).into_iter().chain(spec.place.mounts.iter().map(|mount| mount.source.clone()));
    let resolvers = (sockets == Sockets::Any).then(|| PathBuf::from(RESOLVERS));
    let read: Vec<PathBuf> = own.chain(resolvers).collect();
    let read = read.iter().map(|path| (path.as_path(), PathAccess::Read));
    let written = WRITTEN.iter().map(|path| (Path::new(path), PathAccess::Write));
    let rules: Vec<_> = read.chain(written).collect();
    let step = || "restrict paths with Landlock".to_owned();
    match confine::landlock_paths(&rules).step(step)? {
        Landlock::Full | Landlock::Partial => Ok(()),
        Landlock::Absent => {
            let fault = Fault::new(step(), &rustix::io::Errno::OPNOTSUPP.into());
            Err(fault.with_remedy(
                ", which this kernel has not, and without namespaces nothing else keeps QEMU from your files",
            ))
        }
    }
}
