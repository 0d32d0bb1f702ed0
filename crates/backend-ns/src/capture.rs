//! The capture of packets as the supervisor sees it: forked, made powerless, handed its descriptors, heard at its end.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_gateway::{CaptureEnd, CaptureError, CaptureFds, serve_capture};
use cofferdam_sys::fdpass;
use cofferdam_sys::ns::{self, Child, Fork};
use cofferdam_sys::process::{self, Groups};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::net::RecvFlags;
use rustix::process::Signal;

use crate::identity::Identity;
use crate::wire::{self, Fault, Message, Step as _};
use crate::{GatewayEnd, run};

/// Where packets go.
#[derive(Debug)]
pub struct CaptureFile {
    /// What it is called when something is said about it.
    pub path: PathBuf,
    pub file: File,
}

/// A capture process.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) child: Child,
    path: PathBuf,
    report: OwnedFd,
}

/// How long it may take to end, once the gateway has: more than it gives itself.
const FAREWELL: Duration = Duration::from_secs(3);

impl Capture {
    /// Forks the capture process and waits until it is confined and its file has begun. Returns the gateway's end of the channel to
    /// it as well.
    pub(crate) fn start(
        packets: OwnedFd,
        to: &CaptureFile,
        lifeline: &OwnedFd,
        identity: Identity,
        deadline: Instant,
    ) -> Result<(Capture, OwnedFd), Fault> {
        let pair = || fdpass::pair().step(|| "make a socket pair".to_owned());
        let ((report, report_in), (decisions, decisions_in)) = (pair()?, pair()?);
        rustix::io::ioctl_fionbio(&decisions_in, true).step(|| "set up a socket".to_owned())?;
        let child = match ns::fork().step(|| "fork the capture".to_owned())? {
            Fork::Parent(child) => child,
            Fork::Child => process::run_and_exit(|| {
                let (Ok(file), Ok(lifeline), Ok(told)) =
                    (to.file.try_clone(), lifeline.try_clone(), report_in.try_clone())
                else {
                    return 1;
                };
                serve(CaptureFds { packets, file, decisions, report: report_in, lifeline }, &told, identity)
            }),
        };
        drop((packets, decisions, report_in));
        let capture = Capture { child, path: to.path.clone(), report };
        if let Err(fault) = capture.wait_until_ready(deadline) {
            capture.kill();
            return Err(fault);
        }
        Ok((capture, decisions_in))
    }

    fn wait_until_ready(&self, deadline: Instant) -> Result<(), Fault> {
        let mut message = vec![0; wire::LONGEST];
        self.wait(deadline).step(|| "wait for the capture".to_owned())?;
        let received = rustix::net::recv(&self.report, &mut message[..], RecvFlags::DONTWAIT);
        let (_, len) = received.step(|| "start in time".to_owned())?;
        match message.get(..len).unwrap_or_default() {
            [_ready] => Ok(()),
            words => match Message::decode(words) {
                Some(Message::Failed(fault)) => Err(fault),
                Some(_) | None => Err(Fault::new("start", &io::ErrorKind::UnexpectedEof.into())),
            },
        }
    }

    fn wait(&self, deadline: Instant) -> io::Result<()> {
        let mut fds = [PollFd::from_borrowed_fd(self.report.as_fd(), PollFlags::IN)];
        while fds.iter().all(|fd| fd.revents().is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            wire::poll(&mut fds, Some(left))?;
            if left.is_zero() {
                break;
            }
        }
        Ok(())
    }

    fn kill(&self) -> Option<GatewayEnd> {
        run::kill(&self.child);
        run::wait(&self.child)
    }

    /// Waits for its end, after that of the gateway: what a user should be told.
    pub(crate) fn finish(self) -> Vec<String> {
        let _never_fails_twice = self.wait(Instant::now() + FAREWELL);
        let end = CaptureEnd::receive(&self.report);
        let path = self.path.display();
        let Some(end) = end else {
            let how = match self.kill() {
                Some(GatewayEnd::Exited(status)) => format!("it ended with exit status {status}"),
                Some(GatewayEnd::Signaled(signal)) => format!("it was ended by signal {signal}"),
                None => "it has ended".to_owned(),
            };
            return vec![format!("{path} is incomplete: whoever wrote the packets has not come to an end ({how})")];
        };
        run::wait(&self.child);
        notices(&self.path, &end)
    }
}

/// What is missing in the file.
fn notices(path: &Path, end: &CaptureEnd) -> Vec<String> {
    let path = path.display();
    let mut notices = Vec::new();
    let CaptureEnd { seen, missing, lost_decisions, errno } = *end;
    let why = match errno {
        0 => "they came faster than they could be written".to_owned(),
        errno => format!("it could not be written: {}", io::Error::from_raw_os_error(errno)),
    };
    if missing > 0 {
        notices.push(format!("{path} lacks {missing} of {seen} packets: {why}"));
    } else if errno != 0 {
        notices.push(format!("{path} lacks its end: {}", io::Error::from_raw_os_error(errno)));
    }
    if lost_decisions > 0 {
        notices.push(format!(
            "{path} lacks the comments of {lost_decisions} decisions, which came faster than they could be written"
        ));
    }
    notices
}

/// The capture process from the fork to its end.
fn serve(fds: CaptureFds, report: &OwnedFd, identity: Identity) -> u8 {
    let done = enter(&fds, report, identity).and_then(|()| serve_capture(fds).map_err(|error| fault(&error)));
    match done {
        Ok(()) => 0,
        Err(fault) => {
            // A supervisor that is gone needs no answer.
            let _gone = wire::send(report, &Message::Failed(fault), &[]);
            1
        }
    }
}

fn fault(error: &CaptureError) -> Fault {
    let step = match error {
        CaptureError::Seal(error) => format!("confine itself: {error}"),
        CaptureError::Write { .. } => "write its file".to_owned(),
        CaptureError::Read { .. } => "read packets".to_owned(),
        CaptureError::Report { .. } => "reach the supervisor".to_owned(),
    };
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let errno = source.and_then(io::Error::raw_os_error);
    Fault::new(step, &errno.map_or_else(|| io::ErrorKind::Other.into(), io::Error::from_raw_os_error))
}

/// Leaves behind everything of the supervisor's that it has no use for. It is not ended with the supervisor: it sees its end, and
/// comes to one of its own.
fn enter(fds: &CaptureFds, report: &OwnedFd, identity: Identity) -> Result<(), Fault> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .step(|| "open /dev/null".to_owned())?;
    rustix::stdio::dup2_stdin(&null).step(|| "redirect its standard input".to_owned())?;
    rustix::stdio::dup2_stdout(&null).step(|| "redirect its standard output".to_owned())?;
    rustix::stdio::dup2_stderr(&null).step(|| "redirect its standard error".to_owned())?;
    drop(null);
    let kept = [&fds.packets, &fds.decisions, &fds.report, &fds.lifeline, report].map(AsFd::as_fd);
    let kept: Vec<_> = kept.into_iter().chain([fds.file.as_fd()]).collect();
    process::close_all_except(&kept).step(|| "close descriptors".to_owned())?;
    process::rename("cofferdam-pcap").step(|| "take its name".to_owned())?;
    // Away from the terminal, whose interrupts are for the supervisor.
    rustix::process::setsid().step(|| "start a session".to_owned())?;
    // A file that may not grow any more is an error like a full disk.
    process::ignore(Signal::XFSZ).step(|| "ignore a signal".to_owned())?;
    if let Identity::Unused(id) = identity {
        process::become_user(id, id, Groups::Clear).step(|| "become an unprivileged user".to_owned())?;
    }
    if wire::is_orphaned(fds.lifeline.as_fd()) {
        return Err(Fault::new("find its supervisor", &io::ErrorKind::NotFound.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_missing_and_why() {
        let told = |end| notices(Path::new("out.pcapng"), &end).join("; ");
        let end = CaptureEnd { seen: 10, ..CaptureEnd::default() };
        assert_eq!(told(end), "");
        let faster = "out.pcapng lacks 3 of 10 packets: they came faster than they could be written";
        assert_eq!(told(CaptureEnd { missing: 3, ..end }), faster);
        let full = told(CaptureEnd { missing: 3, errno: 28, ..end });
        assert!(full.contains("3 of 10 packets: it could not be written: No space left on device"), "{full}");
        assert!(told(CaptureEnd { errno: 28, ..end }).contains("lacks its end: No space left"));
        assert!(told(CaptureEnd { lost_decisions: 2, ..end }).contains("the comments of 2 decisions"));
    }
}
