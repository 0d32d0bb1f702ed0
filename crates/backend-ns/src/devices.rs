//! Programs beside the monitor of a virtual machine, each of which is a device of it.
//!
//! Such a program accepts one connection on a listener that it is given. That listener has no path and a name of the kernel's
//! choosing, in the sandbox's own network namespace; it is connected to here, before the program is there, and the connected end
//! goes to the monitor. So nobody else can be first, and nobody looks for anybody by name.
//!
//! Such a program ends by itself when QEMU does, which is the end of the connection. So that its end always means that the guest's
//! files are gone, the connection is kept here as well: the sandbox's end is the program's.
//!
//! What a program says on its standard error is kept in a pipe that is read when it has ended. A pipe that is full takes no more,
//! and nobody waits for it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use cofferdam_sys::ns::{self, Fork};
use cofferdam_sys::process;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitStatus};

use crate::monitor::DeviceServer;
use crate::program;
use crate::wire::{Fault, Step as _};

/// Most bytes that are looked at of what one has said: as many as a pipe holds.
const MOST_SAID: u64 = 64 * 1024;

/// Most characters of the line that is passed on.
const LONGEST_LINE: usize = 300;

/// Those of one virtual machine.
#[derive(Debug, Default)]
pub(crate) struct Devices(Vec<Device>);

/// One that runs.
#[derive(Debug)]
pub(crate) struct Device {
    pid: Pid,
    name: String,
    said: OwnedFd,
    _connection: OwnedFd,
}

impl Devices {
    /// Starts them. `post` is where one says why it could not be executed. With the connected sockets for the monitor.
    ///
    /// # Errors
    /// There are no sockets or no processes.
    pub(crate) fn start(servers: &[DeviceServer], post: &OwnedFd) -> Result<(Devices, Vec<OwnedFd>), Fault> {
        let mut devices = Vec::new();
        let mut connected = Vec::new();
        for server in servers {
            let (listener, connection) = connection().step(|| "connect a device with its server".to_owned())?;
            let (said, errors) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
                .step(|| "make a pipe for the server of a device".to_owned())?;
            let child = match ns::fork().step(|| "fork the server of a device".to_owned())? {
                Fork::Child => process::run_and_exit(|| program::run_device(server, &listener, &errors, post)),
                Fork::Parent(child) => child,
            };
            let name = server.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            connected.push(connection.try_clone().step(|| "keep the connection of a device".to_owned())?);
            devices.push(Device { pid: child.pid, name, said, _connection: connection });
        }
        Ok((Devices(devices), connected))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.0.iter().map(|device| device.pid)
    }

    pub(crate) fn of(&self, pid: Pid) -> Option<&Device> {
        self.0.iter().find(|device| device.pid == pid)
    }
}

impl Device {
    /// What its end means, and the last that it said.
    pub(crate) fn ended(&self, status: WaitStatus) -> String {
        let how = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "for a reason unknown".to_owned(),
        };
        let mut said = Vec::new();
        if let Ok(pipe) = self.said.try_clone() {
            // What is there when the pipe would have to be waited for is all there is.
            let _would_wait = File::from(pipe).take(MOST_SAID).read_to_end(&mut said);
        }
        let last = last_line(&said).map(|line| format!("; the last that it said: {line}")).unwrap_or_default();
        format!("{}, which serves the guest's files, has ended: {how}{last}", self.name)
    }
}

/// A socket that listens and has one connection waiting, and the other end of that.
fn connection() -> io::Result<(OwnedFd, OwnedFd)> {
    let socket = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (listener, connection) = (socket()?, socket()?);
    // unix(7): without a name the kernel chooses one that is free.
    rustix::net::bind(&listener, &SocketAddrUnix::new_unnamed())?;
    rustix::net::listen(&listener, 1)?;
    rustix::net::connect(&connection, &rustix::net::getsockname(&listener)?)?;
    Ok((listener, connection))
}

/// The last line with something on it, without what a terminal would obey.
fn last_line(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    let line = said.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().filter(|character| !character.is_control()).take(LONGEST_LINE).collect())
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_connection_is_there_before_it_is_accepted_and_there_is_one() {
        let (listener, connection) = connection().unwrap();
        rustix::io::write(&connection, b"early").unwrap();
        let accepted = rustix::net::accept(&listener).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&accepted, &mut buffer), Ok(5));
        rustix::io::ioctl_fionbio(&listener, true).unwrap();
        assert_eq!(rustix::net::accept(&listener).unwrap_err(), Errno::AGAIN);
    }

    #[test]
    fn says_the_last_line_that_says_something() {
        assert_eq!(last_line(b"one\ntwo \x1b[31mred\n\n"), Some("two [31mred".to_owned()));
        assert_eq!(last_line(b"\n\n"), None);
        assert_eq!(last_line(&vec![b'x'; 5000]).unwrap().len(), LONGEST_LINE);
    }
}
