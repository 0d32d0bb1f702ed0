//! The socket under rtnetlink and nfnetlink: sends a batch, collects its acknowledgements, reads dumps.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use super::wire::{self, Message, Received};
use crate::transparent::set_option;

/// `NLM_F_REQUEST`, on everything that goes to the kernel.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: answer also when all went well.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_REPLACE`.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = 0x800;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: the table changed under a dump.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_ACK_TLVS`: attributes follow in an answer.
const ACK_ATTRIBUTES: u16 = 0x200;
/// `NLMSG_ERROR`, which is also the good answer.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`: the kernel's words for what is wrong.
const ERROR_TEXT: u16 = 1;
/// Where attributes start in an answer: after an errno and the header of the refused message (`NETLINK_CAP_ACK`).
const ERROR_ATTRIBUTES: usize = 20;
/// The kernel fills dumps in pieces of at most this size (`netlink_dump`, 32 KiB).
const RECEIVE_BUFFER: usize = 32 * 1024;
/// How often a dump is started anew when the table changed meanwhile.
const DUMP_ATTEMPTS: usize = 8;

/// Which part of the kernel a socket talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Route,
    Netfilter,
}

/// Why the kernel did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket")]
    Open { source: io::Error },
    #[error("cannot send netlink requests to the kernel")]
    Send { source: io::Error },
    #[error("cannot receive the kernel's answer to netlink requests")]
    Receive { source: io::Error },
    /// The kernel's own words, where it has some, are in `reason`.
    #[error("cannot {request}{}", reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default())]
    Refused { request: String, reason: Option<String>, source: io::Error },
}

impl NetlinkError {
    /// The system's error code.
    #[must_use]
    pub fn source_error(&self) -> &io::Error {
        match self {
            NetlinkError::Open { source }
            | NetlinkError::Send { source }
            | NetlinkError::Receive { source }
            | NetlinkError::Refused { source, .. } => source,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    next_sequence: u32,
}

impl Socket {
    pub(crate) fn open(family: Family) -> Result<Socket, NetlinkError> {
        let protocol = match family {
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
        };
        let open = || -> io::Result<OwnedFd> {
            let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            // Error texts, and answers without a copy of the request.
            set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
            set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
            Ok(fd)
        };
        Ok(Socket { fd: open().map_err(|source| NetlinkError::Open { source })?, next_sequence: 1 })
    }

    /// Sends `messages` with one call and collects the answers. `describe` names a message by its index.
    ///
    /// Only the last message asks for an acknowledgement; errors are answered in any case, and before it.
    pub(crate) fn execute(
        &mut self,
        messages: &[Message],
        describe: impl Fn(usize) -> String,
    ) -> Result<(), NetlinkError> {
        let Some(last) = messages.len().checked_sub(1) else { return Ok(()) };
        self.execute_with_ack(messages, last, describe)
    }

    /// As [`Socket::execute`], with the acknowledgement of the message at index `last` as the end.
    pub(crate) fn execute_with_ack(
        &mut self,
        messages: &[Message],
        last: usize,
        describe: impl Fn(usize) -> String,
    ) -> Result<(), NetlinkError> {
        let first_sequence = self.next_sequence;
        let mut buffer = Vec::new();
        let mut last_sequence = first_sequence;
        for (index, message) in messages.iter().enumerate() {
            let sequence = self.take_sequence();
            let flags = if index == last { ACK } else { 0 };
            if index == last {
                last_sequence = sequence;
            }
            message.emit(sequence, flags, &mut buffer);
        }
        self.send(&buffer)?;
        let mut failed = None;
        loop {
            let mut ended = false;
            let data = self.receive()?;
            for answer in wire::messages(&data).filter(|a| a.kind == ERROR) {
                let index = usize::try_from(answer.sequence.wrapping_sub(first_sequence)).unwrap_or(usize::MAX);
                if index >= messages.len() {
                    // Left over from a list of requests that failed.
                    continue;
                }
                if let Err((source, reason)) = outcome(&answer) {
                    failed.get_or_insert_with(|| NetlinkError::Refused { request: describe(index), reason, source });
                }
                ended |= answer.sequence == last_sequence;
            }
            if ended {
                return failed.map_or(Ok(()), Err);
            }
            // After a failure the rest is of no interest, and need not come: a batch may be refused as a whole.
            if let Some(failed) = failed {
                return Err(failed);
            }
        }
    }

    /// Asks for a table (`DUMP`), or for one thing (`ACK`, which marks the end), and hands each entry to `entry`.
    pub(crate) fn dump<T>(
        &mut self,
        what: &str,
        request: &Message,
        mut entry: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.take_sequence();
            let mut buffer = Vec::new();
            request.emit(sequence, 0, &mut buffer);
            self.send(&buffer)?;
            let mut entries = Vec::new();
            let mut interrupted = false;
            let mut ended = false;
            while !ended {
                let data = self.receive()?;
                for message in wire::messages(&data).filter(|m| m.sequence == sequence) {
                    interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                    match message.kind {
                        ERROR | DONE => {
                            outcome(&message).map_err(|(source, reason)| {
                                let request = format!("list {what}");
                                NetlinkError::Refused { request, reason, source }
                            })?;
                            ended = true;
                        }
                        kind => entries.extend(entry(kind, message.payload)),
                    }
                }
            }
            if !interrupted {
                return Ok(entries);
            }
        }
        let source = io::Error::other("the table kept changing");
        Err(NetlinkError::Refused { request: format!("list {what}"), reason: None, source })
    }

    fn take_sequence(&mut self) -> u32 {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        sequence
    }

    fn send(&self, buffer: &[u8]) -> Result<(), NetlinkError> {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, buffer, SendFlags::empty()));
        sent.map(drop).map_err(|e| NetlinkError::Send { source: e.into() })
    }

    /// Takes the next datagram. The kernel answers while it takes a request, so there is always one if there will ever be.
    fn receive(&self) -> Result<Vec<u8>, NetlinkError> {
        let mut data = vec![0; RECEIVE_BUFFER];
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let received = rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut data[..], flags));
        let (_, len) = received.map_err(|e| NetlinkError::Receive { source: e.into() })?;
        if len > data.len() {
            return Err(NetlinkError::Receive { source: io::ErrorKind::InvalidData.into() });
        }
        data.truncate(len);
        Ok(data)
    }
}

/// What an `NLMSG_ERROR` or `NLMSG_DONE` says: a negative errno and perhaps a text.
fn outcome(answer: &Received<'_>) -> Result<(), (io::Error, Option<String>)> {
    let code = wire::u32_at(answer.payload, 0).unwrap_or(0).cast_signed();
    if code == 0 {
        return Ok(());
    }
    let mut reason = None;
    if answer.kind == ERROR && answer.flags & ACK_ATTRIBUTES != 0 {
        let attributes = answer.payload.get(ERROR_ATTRIBUTES..).unwrap_or_default();
        reason = wire::attributes(attributes)
            .find(|(kind, _)| *kind == ERROR_TEXT)
            .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    }
    Err((io::Error::from_raw_os_error(code.saturating_neg()), reason))
}
