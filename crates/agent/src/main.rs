//! `cofferdam-agent`: pid 1 of a virtual machine.
//!
//! | Step | Needs |
//! |---|---|
//! | file systems of the kernel, the token of this boot | – |
//! | modules of the channel, the channel | the list of modules in the initramfs |
//! | the root, if the kernel's command line names one | modules of disks or of a share |
//! | greeting, then calls until the machine is off | the host |
//!
//! One thread, one loop ([`serve`]). Whatever may take time or fail on a file system, a mount or a path is done by a fork, so
//! that nothing holds up the loop. The agent never uses the network. It believes the host, and nobody else: what programs in the
//! guest can reach of it is the processes that it starts.
//!
//! When it cannot go on it says why, to the host and to the kernel's log, and switches the machine off: the kernel would
//! panic over a pid 1 that ends.

mod boot;
mod call;
mod cgroup;
mod child;
mod disk;
mod network;
mod parameters;
mod port;
mod root;
mod serve;
mod words;

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;

use cofferdam_guest_protocol::ToHost;
use rustix::system::RebootCommand;

use crate::port::Port;
use crate::words::Trouble;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("cofferdam-agent is the first program of a virtual machine, and does nothing elsewhere");
        return ExitCode::from(2);
    }
    std::panic::set_hook(Box::new(|panic| {
        let why = format!("a mistake of the agent: {panic}");
        // A fork ends alone, and its call with it.
        if std::process::id() == 1 { end(None, &why) } else { log(&why) }
    }));
    let mut port = None;
    let Err(trouble) = run(&mut port);
    end(port.as_mut(), &trouble.to_string());
    // The machine is off, or the kernel is about to panic: nothing is left to be done.
    ExitCode::FAILURE
}

fn run(port: &mut Option<Port>) -> Result<Infallible, Trouble> {
    let own = boot::start()?;
    let port = port.insert(port::open()?);
    let disk = root::enter(&own)?;
    serve::serve(&own, port, disk)
}

/// Says why this is the end, and switches the machine off.
fn end(port: Option<&mut Port>, why: &str) {
    log(why);
    if let Some(port) = port {
        port.send_last(&ToHost::Dying { text: why.to_owned() });
    }
    rustix::fs::sync();
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
}

/// Writes a line into the kernel's log, and so on the console.
fn log(line: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // 3: an error, which a quiet kernel shows as well.
        let _ = log.write_all(format!("<3>cofferdam-agent: {line}\n").as_bytes());
    }
}
