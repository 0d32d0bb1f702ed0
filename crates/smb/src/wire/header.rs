//! The header that every message begins with, MS-SMB2 2.2.1.

use super::bytes::{Put, Reader};
use crate::status::Status;

/// How long a header is.
pub const HEADER: usize = 64;

pub(crate) const PROTOCOL: [u8; 4] = [0xfe, b'S', b'M', b'B'];
pub(crate) const FLAG_RESPONSE: u32 = 0x1;
pub(crate) const FLAG_ASYNC: u32 = 0x2;
pub(crate) const FLAG_RELATED: u32 = 0x4;
pub(crate) const FLAG_SIGNED: u32 = 0x8;

/// Where fields are that are written once the rest of a message is known.
pub(crate) const AT_NEXT: usize = 20;
pub(crate) const AT_SIGNATURE: usize = 48;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Negotiate,
    SessionSetup,
    Logoff,
    TreeConnect,
    TreeDisconnect,
    Create,
    Close,
    Flush,
    Read,
    Write,
    Lock,
    Ioctl,
    Cancel,
    Echo,
    QueryDirectory,
    ChangeNotify,
    QueryInfo,
    SetInfo,
    OplockBreak,
}

/// In the order of their numbers, from 0.
const COMMANDS: [Command; 19] = [
    Command::Negotiate,
    Command::SessionSetup,
    Command::Logoff,
    Command::TreeConnect,
    Command::TreeDisconnect,
    Command::Create,
    Command::Close,
    Command::Flush,
    Command::Read,
    Command::Write,
    Command::Lock,
    Command::Ioctl,
    Command::Cancel,
    Command::Echo,
    Command::QueryDirectory,
    Command::ChangeNotify,
    Command::QueryInfo,
    Command::SetInfo,
    Command::OplockBreak,
];

/// A header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub credit_charge: u16,
    pub command: u16,
    pub credits: u16,
    pub flags: u32,
    /// Where the next request of a compound begins, from here; 0 for the last.
    pub next: u32,
    pub message_id: u64,
    pub tree: u32,
    /// Of an asynchronous request, in place of the tree.
    pub async_id: u64,
    pub session: u64,
    pub signature: [u8; 16],
}

impl Header {
    /// `None` for what is no SMB2 header of a request.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Header> {
        let mut fields = Reader::new(message);
        if fields.array()? != PROTOCOL || fields.u16()? != 64 {
            return None;
        }
        let credit_charge = fields.u16()?;
        let _channel_sequence = fields.u32()?;
        let command = fields.u16()?;
        let credits = fields.u16()?;
        let flags = fields.u32()?;
        let next = fields.u32()?;
        let message_id = fields.u64()?;
        let async_id = fields.u64()?;
        let [.., t0, t1, t2, t3] = async_id.to_le_bytes();
        let session = fields.u64()?;
        let signature = fields.array()?;
        let tree = u32::from_le_bytes([t0, t1, t2, t3]);
        (flags & FLAG_RESPONSE == 0).then_some(Header {
            credit_charge,
            command,
            credits,
            flags,
            next,
            message_id,
            tree,
            async_id,
            session,
            signature,
        })
    }

    pub(crate) fn command(&self) -> Option<Command> {
        COMMANDS.get(usize::from(self.command)).copied()
    }

    pub(crate) fn is_signed(&self) -> bool {
        self.flags & FLAG_SIGNED != 0
    }

    pub(crate) fn is_related(&self) -> bool {
        self.flags & FLAG_RELATED != 0
    }
}

/// What the header of a response says beyond what its request had.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Response {
    pub status: Status,
    pub credits: u16,
    pub session: u64,
    pub tree: u32,
    /// Of a request that is answered later.
    pub async_id: Option<u64>,
}

impl Response {
    /// Puts the header of the response to `request`, without signature.
    pub(crate) fn emit(&self, request: &Header, out: &mut Vec<u8>) {
        out.put(&PROTOCOL);
        out.u16(64);
        out.u16(request.credit_charge);
        out.u32(self.status.0);
        out.u16(request.command);
        out.u16(self.credits);
        let related = request.flags & FLAG_RELATED;
        out.u32(FLAG_RESPONSE | related | if self.async_id.is_some() { FLAG_ASYNC } else { 0 });
        out.u32(0);
        out.u64(request.message_id);
        match self.async_id {
            Some(id) => out.u64(id),
            None => {
                out.u32(0);
                out.u32(self.tree);
            }
        }
        out.u64(self.session);
        out.put(&[0; 16]);
    }
}
