//! The process of QEMU, as the monitor sees it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use cofferdam_sys::{confine, process};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::PidfdFlags;

use crate::arguments::{Network, Vm};
use crate::console::Console;

/// A running QEMU. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Qemu {
    child: Child,
    pidfd: OwnedFd,
    /// Our end of the agent's channel; non-blocking.
    pub(crate) agent: OwnedFd,
    /// Our end of QMP; non-blocking.
    pub(crate) control: OwnedFd,
    /// Whether QEMU has not closed them.
    pub(crate) agent_open: bool,
    pub(crate) control_open: bool,
    /// What it and the guest's console write.
    output: File,
    output_open: bool,
    pub(crate) console: Console,
    /// What the guest's kernel started with, for as long as it is kept.
    initrd: Option<OwnedFd>,
}

/// What it is given by descriptor.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) initrd: OwnedFd,
    /// That of its network, if it has one.
    pub(crate) tap: Option<OwnedFd>,
    /// Those of its devices that are programs.
    pub(crate) devices: Vec<OwnedFd>,
}

impl Qemu {
    /// Starts it. `vm` is what it is told, but for what it is given by descriptor. Neither QEMU nor the calling thread can start
    /// another process then: where no pid namespace ends what a guest has taken over, such a one would stay.
    ///
    /// # Errors
    /// When it cannot be executed, or there are no descriptors.
    pub(crate) fn start(qemu: &Path, mut vm: Vm, parts: Parts) -> io::Result<Qemu> {
        let Parts { initrd, tap, devices } = parts;
        let (agent, agent_end) = channel()?;
        let (control, control_end) = channel()?;
        vm.agent = number(&agent_end)?;
        vm.control = number(&control_end)?;
        vm.initrd = format!("/proc/self/fd/{}", initrd.as_raw_fd()).into();
        for (device, connected) in vm.devices.iter_mut().zip(&devices) {
            device.fd = number(connected)?;
        }
        let mut vhost_net = None;
        if let (Network::Tap { fd, vhost, .. }, Some(tap)) = (&mut vm.network, &tap) {
            *fd = number(tap)?;
            vhost_net = File::options().read(true).write(true).open("/dev/vhost-net").ok().map(OwnedFd::from);
            *vhost = vhost_net.as_ref().map(number).transpose()?;
        }
        let (output, output_end) = io::pipe()?;
        let mut command = Command::new(qemu);
        command.args(vm.arguments()).env_clear().stdin(Stdio::null());
        command.stdout(output_end.try_clone()?).stderr(output_end);
        process::accompany(&mut command);
        let filters = confine::no_processes().map_err(io::Error::other)?;
        process::filter(&mut command, filters.clone());
        let kept = initrd.try_clone()?;
        let inherited = [agent_end, control_end, initrd].into_iter().chain(tap).chain(vhost_net).chain(devices);
        process::inherit(&mut command, inherited.collect());
        let child = command.spawn()?;
        // With the command go our copies of what is QEMU's: its end is the end of its channels.
        drop(command);
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pidfd = rustix::process::pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
        let output = File::from(OwnedFd::from(output));
        rustix::io::ioctl_fionbio(&output, true)?;
        let qemu = Qemu {
            child,
            pidfd,
            agent,
            control,
            agent_open: true,
            control_open: true,
            output,
            output_open: true,
            console: Console::default(),
            initrd: Some(kept),
        };
        filters.iter().try_for_each(confine::install_seccomp).map_err(io::Error::other)?;
        Ok(qemu)
    }

    /// Gives back the memory of what the guest's kernel has started with, which QEMU maps to its end. A kernel that read it again, as
    /// no machine of ours can, would read zeros.
    pub(crate) fn empty_initrd(&mut self) {
        let Some(initrd) = self.initrd.take() else { return };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let len = rustix::fs::fstat(&initrd).ok().and_then(|status| u64::try_from(status.st_size).ok());
        // Otherwise it is there to the end.
        let _kept = len.map(|len| rustix::fs::fallocate(&initrd, flags, 0, len));
    }

    /// Readable when it has ended.
    pub(crate) fn end(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable when it has written something; `None` when it never will again.
    pub(crate) fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output_open.then(|| self.output.as_fd())
    }

    /// Reads what it has written.
    pub(crate) fn handle_output(&mut self) {
        let mut buffer = [0; 4096];
        match self.output.read(&mut buffer) {
            Ok(0) => self.output_open = false,
            Ok(len) => self.console.take(buffer.get(..len).unwrap_or_default()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.output_open = false,
        }
    }

    /// Ends it, and reads the last that it wrote.
    pub(crate) fn kill(&mut self) {
        // One that has ended needs no killing.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
        while self.output_open {
            let before = self.console.taken();
            self.handle_output();
            if before == self.console.taken() {
                break;
            }
        }
    }

    /// Whether it has ended, and how: in words.
    pub(crate) fn has_ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(how)
    }
}

#[cfg(test)]
impl Qemu {
    /// A process that has none of them any more, and goes on.
    pub(crate) fn that_closes_its_channels() -> Qemu {
        let ((agent, _), (control, _)) = (channel().unwrap(), channel().unwrap());
        let child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let output = File::from(OwnedFd::from(io::pipe().unwrap().0));
        let (agent_open, control_open, output_open) = (true, true, true);
        let console = Console::default();
        Qemu { child, pidfd, agent, control, agent_open, control_open, output, output_open, console, initrd: None }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "for a reason unknown".to_owned(),
    }
}

/// A pair of connected sockets: the first is ours and does not block.
fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

fn number(fd: &OwnedFd) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Architecture;
    use crate::arguments::tests::vm;

    #[test]
    fn who_has_started_qemu_starts_nothing_more() {
        // On a thread of its own, since what is taken away there never comes back.
        let started = std::thread::spawn(|| {
            let initrd = File::open("/dev/null").unwrap().into();
            let vm = vm(Architecture::X86_64, Network::None);
            let _qemu = Qemu::start(Path::new("true"), vm, Parts { initrd, tap: None, devices: Vec::new() }).unwrap();
            assert_eq!(Command::new("true").spawn().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            std::thread::spawn(|| ()).join().unwrap();
        });
        started.join().unwrap();
    }
}
