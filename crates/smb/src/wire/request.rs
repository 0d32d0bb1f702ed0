//! What requests ask for, MS-SMB2 2.2. Offsets count from the beginning of the header, as on the wire.

use super::bytes::{Reader, part};
use super::header::{Command, HEADER};

/// A body that is not what its header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Most dialects, contexts and locks that one request may list. Clients name five dialects, seven contexts, and a handful of locks.
const MOST_LISTED: u16 = 64;

/// An open file, by the number that the server gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(pub u64);

impl FileId {
    /// The file of the request before this one in a compound.
    pub(crate) const PREVIOUS: FileId = FileId(u64::MAX);

    fn parse(fields: &mut Reader<'_>) -> Option<FileId> {
        let persistent = fields.u64()?;
        let volatile = fields.u64()?;
        // Both are one number here, so that a file has one name.
        Some(if persistent == volatile { FileId(volatile) } else { FileId(0) })
    }
}

/// A request, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    Negotiate(Negotiate<'a>),
    SessionSetup { flags: u8, security_mode: u8, token: &'a [u8] },
    Logoff,
    TreeConnect { path: &'a [u8] },
    TreeDisconnect,
    Create(Create<'a>),
    Close { file: FileId, flags: u16 },
    Flush { file: FileId },
    Read { file: FileId, length: u32, offset: u64, minimum: u32 },
    Write { file: FileId, offset: u64, flags: u32, data: &'a [u8] },
    Lock { file: FileId, locks: Vec<LockElement> },
    Ioctl(Ioctl<'a>),
    Cancel,
    Echo,
    QueryDirectory(QueryDirectory<'a>),
    ChangeNotify,
    QueryInfo(QueryInfo),
    SetInfo { kind: u8, class: u8, file: FileId, data: &'a [u8] },
    OplockBreak,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiate<'a> {
    pub security_mode: u16,
    pub capabilities: u32,
    pub client: [u8; 16],
    pub dialects: Vec<u16>,
    pub contexts: Vec<(u16, &'a [u8])>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create<'a> {
    pub access: u32,
    pub attributes: u32,
    pub disposition: u32,
    pub options: u32,
    pub name: &'a [u8],
    pub contexts: Vec<(&'a [u8], &'a [u8])>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockElement {
    pub offset: u64,
    pub length: u64,
    pub flags: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ioctl<'a> {
    pub code: u32,
    pub file: FileId,
    pub is_fsctl: bool,
    pub input: &'a [u8],
    pub max_output: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryDirectory<'a> {
    pub class: u8,
    pub flags: u8,
    pub file: FileId,
    pub pattern: &'a [u8],
    pub max_output: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryInfo {
    pub kind: u8,
    pub class: u8,
    pub max_output: u32,
    pub additional: u32,
    pub file: FileId,
}

impl<'a> Request<'a> {
    /// Reads the body of `message`, which begins with its header.
    ///
    /// # Errors
    /// The body has the wrong size, or speaks of what lies outside of the message.
    pub fn parse(command: u16, message: &'a [u8]) -> Result<Request<'a>, Malformed> {
        let command = super::header::Header { command, ..BLANK }.command().ok_or(Malformed)?;
        body(command, message).ok_or(Malformed)
    }

    /// How many bytes the request sends or asks for, whichever is more; credits are charged for these.
    #[must_use]
    pub fn payload(&self) -> usize {
        let (sent, asked) = match self {
            Request::Read { length, .. } => (0, *length),
            Request::QueryDirectory(query) => (0, query.max_output),
            Request::QueryInfo(query) => (0, query.max_output),
            Request::Ioctl(ioctl) => (ioctl.input.len(), ioctl.max_output),
            Request::Write { data, .. } | Request::SetInfo { data, .. } => (data.len(), 0),
            Request::Negotiate(_)
            | Request::SessionSetup { .. }
            | Request::Logoff
            | Request::TreeConnect { .. }
            | Request::TreeDisconnect
            | Request::Create(_)
            | Request::Close { .. }
            | Request::Flush { .. }
            | Request::Lock { .. }
            | Request::Cancel
            | Request::Echo
            | Request::ChangeNotify
            | Request::OplockBreak => (0, 0),
        };
        usize::try_from(asked).unwrap_or(usize::MAX).max(sent)
    }
}

const BLANK: super::header::Header = super::header::Header {
    credit_charge: 0,
    command: 0,
    credits: 0,
    flags: 0,
    next: 0,
    message_id: 0,
    tree: 0,
    async_id: 0,
    session: 0,
    signature: [0; 16],
};

fn body(command: Command, message: &[u8]) -> Option<Request<'_>> {
    let mut fields = Reader::at(message, HEADER);
    let size = fields.u16()?;
    (size == size_of_body(command)).then_some(())?;
    Some(match command {
        Command::Negotiate => Request::Negotiate(negotiate(fields, message)?),
        Command::SessionSetup => {
            let (flags, security_mode) = (fields.u8()?, fields.u8()?);
            let (_capabilities, _channel) = (fields.u32()?, fields.u32()?);
            let (offset, len) = (fields.u16()?, fields.u16()?);
            Request::SessionSetup { flags, security_mode, token: part(message, offset, len)? }
        }
        Command::Logoff => Request::Logoff,
        Command::TreeConnect => {
            let _flags = fields.u16()?;
            let (offset, len) = (fields.u16()?, fields.u16()?);
            Request::TreeConnect { path: part(message, offset, len)? }
        }
        Command::TreeDisconnect => Request::TreeDisconnect,
        Command::Create => Request::Create(create(fields, message)?),
        Command::Close => {
            let flags = fields.u16()?;
            let _reserved = fields.u32()?;
            Request::Close { file: FileId::parse(&mut fields)?, flags }
        }
        Command::Flush => {
            let _reserved = fields.take(6)?;
            Request::Flush { file: FileId::parse(&mut fields)? }
        }
        Command::Read => {
            let _padding_and_flags = fields.u16()?;
            let (length, offset) = (fields.u32()?, fields.u64()?);
            Request::Read { length, offset, file: FileId::parse(&mut fields)?, minimum: fields.u32()? }
        }
        Command::Write => {
            let at = fields.u16()?;
            let (length, offset) = (fields.u32()?, fields.u64()?);
            let file = FileId::parse(&mut fields)?;
            let _channel = fields.take(12)?;
            Request::Write { file, offset, flags: fields.u32()?, data: part(message, at, length)? }
        }
        Command::Lock => lock(fields)?,
        Command::Ioctl => Request::Ioctl(ioctl(fields, message)?),
        Command::Cancel => Request::Cancel,
        Command::Echo => Request::Echo,
        Command::QueryDirectory => {
            let (class, flags, _index) = (fields.u8()?, fields.u8()?, fields.u32()?);
            let file = FileId::parse(&mut fields)?;
            let (offset, len, max_output) = (fields.u16()?, fields.u16()?, fields.u32()?);
            let pattern = part(message, offset, len)?;
            Request::QueryDirectory(QueryDirectory { class, flags, file, pattern, max_output })
        }
        Command::ChangeNotify => Request::ChangeNotify,
        Command::QueryInfo => {
            let (kind, class, max_output) = (fields.u8()?, fields.u8()?, fields.u32()?);
            let _input = fields.take(8)?;
            let (additional, _flags) = (fields.u32()?, fields.u32()?);
            let file = FileId::parse(&mut fields)?;
            Request::QueryInfo(QueryInfo { kind, class, max_output, additional, file })
        }
        Command::SetInfo => {
            let (kind, class, len) = (fields.u8()?, fields.u8()?, fields.u32()?);
            let (offset, _reserved, _additional) = (fields.u16()?, fields.u16()?, fields.u32()?);
            let file = FileId::parse(&mut fields)?;
            Request::SetInfo { kind, class, file, data: part(message, offset, len)? }
        }
        Command::OplockBreak => Request::OplockBreak,
    })
}

/// `StructureSize`, which counts one byte of what follows where something may.
fn size_of_body(command: Command) -> u16 {
    match command {
        Command::Negotiate => 36,
        Command::SessionSetup => 25,
        Command::Logoff | Command::TreeDisconnect | Command::Cancel | Command::Echo => 4,
        Command::TreeConnect => 9,
        Command::Create | Command::Ioctl => 57,
        Command::Close | Command::Flush | Command::OplockBreak => 24,
        Command::Read | Command::Write => 49,
        Command::Lock => 48,
        Command::QueryDirectory | Command::SetInfo => 33,
        Command::ChangeNotify => 32,
        Command::QueryInfo => 41,
    }
}

fn negotiate<'a>(mut fields: Reader<'a>, message: &'a [u8]) -> Option<Negotiate<'a>> {
    let count = fields.u16()?;
    let (security_mode, _reserved, capabilities) = (fields.u16()?, fields.u16()?, fields.u32()?);
    let client = fields.array()?;
    let (at, contexts) = (fields.u32()?, fields.u16()?);
    let _reserved = fields.u16()?;
    (count <= MOST_LISTED).then_some(())?;
    let dialects: Vec<u16> = (0..count).map(|_| fields.u16()).collect::<Option<_>>()?;
    // Before 3.1.1 these fields are a time that nobody looks at.
    let contexts = if dialects.contains(&0x0311) { negotiate_contexts(message, at, contexts)? } else { Vec::new() };
    Some(Negotiate { security_mode, capabilities, client, dialects, contexts })
}

fn negotiate_contexts(message: &[u8], at: u32, count: u16) -> Option<Vec<(u16, &[u8])>> {
    (count <= MOST_LISTED).then_some(())?;
    let mut at = usize::try_from(at).ok()?;
    let mut contexts = Vec::new();
    for _ in 0..count {
        let mut fields = Reader::at(message, at);
        let (kind, len, _reserved) = (fields.u16()?, usize::from(fields.u16()?), fields.u32()?);
        contexts.push((kind, fields.take(len)?));
        at = at.checked_add(8 + len)?.checked_next_multiple_of(8)?;
    }
    Some(contexts)
}

fn create<'a>(mut fields: Reader<'a>, message: &'a [u8]) -> Option<Create<'a>> {
    let _oplock = fields.u16()?;
    let _impersonation_and_flags = fields.take(20)?;
    let (access, attributes, _sharing) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (disposition, options) = (fields.u32()?, fields.u32()?);
    let (name_at, name_len) = (fields.u16()?, fields.u16()?);
    let (contexts_at, contexts_len) = (fields.u32()?, fields.u32()?);
    let name = part(message, name_at, name_len)?;
    let contexts = create_contexts(part(message, contexts_at, contexts_len)?)?;
    Some(Create { access, attributes, disposition, options, name, contexts })
}

fn create_contexts(mut chain: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut contexts = Vec::new();
    while !chain.is_empty() {
        (contexts.len() < usize::from(MOST_LISTED)).then_some(())?;
        let mut fields = Reader::new(chain);
        let next = fields.u32()?;
        let (name_at, name_len, _reserved) = (fields.u16()?, fields.u16()?, fields.u16()?);
        let (data_at, data_len) = (fields.u16()?, fields.u32()?);
        contexts.push((part(chain, name_at, name_len)?, part(chain, data_at, data_len)?));
        chain = if next == 0 { &[] } else { chain.get(usize::try_from(next).ok()?..)? };
    }
    Some(contexts)
}

fn lock<'a>(mut fields: Reader<'a>) -> Option<Request<'a>> {
    let (count, _sequence) = (fields.u16()?, fields.u32()?);
    let file = FileId::parse(&mut fields)?;
    (1..=MOST_LISTED).contains(&count).then_some(())?;
    let mut locks = Vec::new();
    for _ in 0..count {
        let (offset, length, flags) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let _reserved = fields.u32()?;
        locks.push(LockElement { offset, length, flags });
    }
    Some(Request::Lock { file, locks })
}

fn ioctl<'a>(mut fields: Reader<'a>, message: &'a [u8]) -> Option<Ioctl<'a>> {
    let (_reserved, code) = (fields.u16()?, fields.u32()?);
    let file = FileId::parse(&mut fields)?;
    let (at, len, _max_input) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (_output_at, _output_len, max_output) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let is_fsctl = fields.u32()? & 1 != 0;
    Some(Ioctl { code, file, is_fsctl, input: part(message, at, len)?, max_output })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_stop_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..300), command in 0_u16..20) {
            let mut message = vec![0; HEADER];
            let size = super::super::header::Header { command, ..BLANK }.command().map_or(0, size_of_body);
            message.extend(size.to_le_bytes());
            message.extend(bytes);
            if let Ok(request) = Request::parse(command, &message) {
                // Whatever a request points at lies in its message.
                let inside = |bytes: &[u8]| bytes.len() <= message.len();
                if let Request::Write { data, .. } | Request::SetInfo { data, .. } = &request {
                    prop_assert!(inside(data));
                }
                if let Request::Create(create) = &request {
                    prop_assert!(inside(create.name));
                }
                if let Request::Lock { locks, .. } = &request {
                    prop_assert!(locks.len() <= usize::from(MOST_LISTED));
                }
            }
        }
    }

    #[test]
    fn a_file_with_two_numbers_is_no_file() {
        let mut message = vec![0; HEADER];
        message.extend(24_u16.to_le_bytes());
        message.extend([0; 6]);
        message.extend(7_u64.to_le_bytes());
        message.extend(8_u64.to_le_bytes());
        assert_eq!(Request::parse(6, &message), Ok(Request::Close { file: FileId(0), flags: 0 }));
    }

    #[test]
    fn a_chain_of_contexts_ends() {
        // Each points at itself: refused, since the next one begins at least behind this one's head.
        let mut chain = vec![0_u8; 24];
        chain[0] = 16;
        assert_eq!(create_contexts(&chain), None, "the second has no room for a head");
        let mut long = Vec::new();
        for _ in 0..100 {
            long.extend(16_u32.to_le_bytes());
            long.extend([0; 12]);
        }
        assert_eq!(create_contexts(&long), None, "more than may be listed");
    }
}
