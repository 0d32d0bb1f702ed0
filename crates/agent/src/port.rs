//! The channel to the host: a port of a virtio console, found by its name.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use cofferdam_guest_protocol::{PORT, ToHost};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::words::{Doing, Trouble};

/// The device tells the driver of its ports in messages, after the driver has come up. A slow machine takes tens of
/// milliseconds; together ten seconds.
const LOOKS: usize = 10_000;
const PAUSE: Duration = Duration::from_millis(1);

/// The most that waits to be sent before nothing more is read from programs.
const FULL: usize = 256 << 10;

/// How long a host that does not read is waited for at the end.
const LAST_WORDS: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The channel, with what waits to be sent.
#[derive(Debug)]
pub(crate) struct Port {
    device: OwnedFd,
    waiting: Vec<u8>,
}

/// Opens the channel as soon as it is there.
pub(crate) fn open() -> Result<Port, Trouble> {
    for _ in 0..LOOKS {
        if let Some(name) = find() {
            let path = format!("/dev/{name}");
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
            match rustix::fs::open(&path, flags, Mode::empty()) {
                // The device file comes after the name.
                Err(Errno::NOENT) => {}
                device => {
                    let device = device.doing(|| format!("open {path}, the channel to the host"))?;
                    return Ok(Port { device, waiting: Vec::new() });
                }
            }
        }
        thread::sleep(PAUSE);
    }
    Err(Trouble::new(
        format!("find the channel to the host, a virtio-serial port named {PORT}"),
        io::ErrorKind::NotFound,
    ))
}

fn find() -> Option<String> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let names = ports.filter_map(|port| port.ok()?.file_name().into_string().ok());
    names.into_iter().find(|port| {
        fs::read_to_string(format!("/sys/class/virtio-ports/{port}/name")).is_ok_and(|name| name.trim_end() == PORT)
    })
}

impl Port {
    /// What to wait for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.waiting.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Whether programs should be read from.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < FULL
    }

    pub(crate) fn send(&mut self, message: &ToHost) {
        self.waiting.extend(message.emit());
    }

    /// Sends what can be sent.
    pub(crate) fn flush(&mut self) -> Result<(), Trouble> {
        while !self.waiting.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.device, &self.waiting)) {
                Ok(sent) => drop(self.waiting.drain(..sent)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(Trouble::new("write to the host", error)),
            }
        }
        Ok(())
    }

    /// What has come; nothing at the end of the host.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Trouble> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.device, &mut *buffer)) {
            Ok(read) => Ok(Some(read)),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(Trouble::new("read from the host", error)),
        }
    }

    /// Sends a message behind which nothing comes, for which a host that is there is waited for a moment.
    pub(crate) fn send_last(&mut self, message: &ToHost) {
        self.send(message);
        while self.flush().is_ok() && !self.waiting.is_empty() {
            let mut room = [PollFd::new(&self.device, PollFlags::OUT)];
            let waited = rustix::event::poll(&mut room, Some(&LAST_WORDS));
            let has_room = room.iter().any(|port| port.revents().contains(PollFlags::OUT));
            if waited.is_err() || !has_room {
                return;
            }
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
