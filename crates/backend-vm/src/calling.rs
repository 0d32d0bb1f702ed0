//! The process of a run in a machine that stays: between its own streams and the monitor of that machine.
//!
//! It is in the sandbox that QEMU is in, confined as a program, and is the run's program for everybody outside. It speaks the agent's
//! protocol over a line of its own, and is as little trusting as the monitor: what comes may be a guest's that has taken that over.
//! Its end, however it comes, closes the line, and the monitor kills what it had called.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use cofferdam_backend_ns::{Monitor, Post};
use cofferdam_guest_protocol::{Event, Exec, Host, Violation};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::monitor::{EXEC_TIME, End, Side, Source, Trouble, begin, end_as, execute, next_event, out_of_turn};
use crate::relay::CHUNK;
use crate::switchboard::no_token;

/// A program that is to run in the machine.
#[derive(Debug)]
pub(crate) struct Calling {
    pub(crate) exec: Exec,
}

impl Monitor for Calling {
    fn run(&self, mut post: Post) -> u8 {
        if begin("cofferdam-run").is_err() {
            return 1;
        }
        match self.call(&mut post) {
            Ok(End::Exited(status)) => end_as(status),
            Ok(End::Told) => 1,
            Err(trouble) => {
                post.lost(&match trouble {
                    Trouble::Broken(why) | Trouble::Ended(why) => why,
                    Trouble::Late => format!("the guest did not answer within {} seconds", EXEC_TIME.as_secs()),
                });
                1
            }
        }
    }
}

impl Calling {
    fn call(&self, post: &mut Post) -> Result<End, Trouble> {
        let socket = post.take_link().ok_or_else(|| Trouble::Broken("there is no way to its monitor".to_owned()))?;
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(|error| Trouble::Broken(format!("the way to its monitor cannot be used: {error}")))?;
        let mut line = Line { socket, host: Host::new(no_token()) };
        let greeting = next_event(&mut line, Instant::now() + EXEC_TIME)?;
        if greeting != Event::Ready {
            return Err(out_of_turn(&greeting));
        }
        if !post.booted() {
            return Ok(End::Told);
        }
        execute(&mut line, self.exec.clone(), post)
    }
}

/// The way to the monitor.
struct Line {
    socket: OwnedFd,
    host: Host,
}

impl Line {
    fn write(&mut self) -> Result<(), Trouble> {
        while !self.host.output().is_empty() {
            match rustix::net::send(&self.socket, self.host.output(), SendFlags::NOSIGNAL) {
                Ok(len) => self.host.sent(len),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                // It is read first: what was said last explains the end.
                Err(_) => {
                    let rest = self.host.output().len();
                    self.host.sent(rest);
                }
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Trouble> {
        let mut buffer = [0; CHUNK];
        match rustix::io::read(&self.socket, &mut buffer) {
            Ok(len @ 1..) => {
                let bytes = buffer.get(..len).unwrap_or_default();
                self.host.handle_bytes(bytes).map_err(|violation| match violation {
                    Violation::Ended { text } => Trouble::Ended(text),
                    other @ (Violation::TooLong { .. }
                    | Violation::Malformed { .. }
                    | Violation::NoGreeting
                    | Violation::Version { .. }
                    | Violation::Token
                    | Violation::Deaf
                    | Violation::Unfitting { .. }) => Trouble::Broken(other.to_string()),
                })
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Ok(_) | Err(_) => Err(Trouble::Ended("its monitor takes no more calls, or has ended".to_owned())),
        }
    }
}

impl Side for Line {
    fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    fn heard(&self) -> &Host {
        &self.host
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let output = if self.host.output().is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        vec![(Source::Agent, self.socket.as_fd(), PollFlags::IN | output)]
    }

    fn handle(&mut self, source: Source) -> Result<(), Trouble> {
        if source == Source::Agent {
            self.write()?;
            self.read()?;
        }
        Ok(())
    }
}
