//! CREATE: opening what is there, making what is not.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::data::Locks;
use super::logon::POSIX_TAG;
use super::{Ask, Can, Chain, Connection, Failure, MOST_OPEN, Open, info, security};
use crate::name::SharePath;
use crate::share::{Facts, Kind, Share, ShareAccess, read_link};
use crate::status::Status;
use crate::wire::bytes::{Put, Reader, len16, len32, pad, patch};
use crate::wire::header::HEADER;
use crate::wire::request::Create;

// Rights, MS-SMB2 2.2.13.1.
const READ_DATA: u32 = 0x1;
const WRITE_DATA: u32 = 0x2;
const APPEND_DATA: u32 = 0x4;
const WRITE_EA: u32 = 0x10;
const EXECUTE: u32 = 0x20;
const DELETE_CHILD: u32 = 0x40;
const WRITE_ATTRIBUTES: u32 = 0x100;
const DELETE: u32 = 0x1_0000;
const WRITE_DAC: u32 = 0x4_0000;
const WRITE_OWNER: u32 = 0x8_0000;
const MAXIMUM_ALLOWED: u32 = 0x200_0000;
const GENERIC_ALL: u32 = 0x1000_0000;
const GENERIC_EXECUTE: u32 = 0x2000_0000;
const GENERIC_WRITE: u32 = 0x4000_0000;
const GENERIC_READ: u32 = 0x8000_0000;

/// Everything, and everything that changes nothing.
pub(super) const ALL_ACCESS: u32 = 0x001f_01ff;
pub(super) const READ_ACCESS: u32 = 0x0012_00a9;
const WRITE_ACCESS: u32 =
    WRITE_DATA | APPEND_DATA | WRITE_EA | DELETE_CHILD | WRITE_ATTRIBUTES | DELETE | WRITE_DAC | WRITE_OWNER;

// Options, 2.2.13.
const DIRECTORY: u32 = 0x1;
const WRITE_THROUGH: u32 = 0x2;
const NON_DIRECTORY: u32 = 0x40;
const DELETE_ON_CLOSE: u32 = 0x1000;
const OPEN_BY_FILE_ID: u32 = 0x2000;
const OPEN_REPARSE_POINT: u32 = 0x20_0000;

/// What a client gets that says nothing about a mode; the umask of the process takes from it.
const FILE_MODE: u32 = 0o666;
const DIRECTORY_MODE: u32 = 0o777;

/// Times that a file may be another one between a look at it and its opening, before we give up.
const ATTEMPTS: usize = 8;

/// What is to be done with what is there, and what with what is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disposition {
    Open,
    Create,
    OpenOrCreate,
    Overwrite,
    OverwriteOrCreate,
}

impl Disposition {
    fn parse(number: u32) -> Option<Disposition> {
        Some(match number {
            // SUPERSEDE would make a new file in place of the old; with links and locks on the host nobody wants that.
            0 | 5 => Disposition::OverwriteOrCreate,
            1 => Disposition::Open,
            2 => Disposition::Create,
            3 => Disposition::OpenOrCreate,
            4 => Disposition::Overwrite,
            _ => return None,
        })
    }

    fn creates(self) -> bool {
        matches!(self, Disposition::Create | Disposition::OpenOrCreate | Disposition::OverwriteOrCreate)
    }

    fn overwrites(self) -> bool {
        matches!(self, Disposition::Overwrite | Disposition::OverwriteOrCreate)
    }
}

/// What was asked for, in our words.
struct Wanted {
    path: SharePath,
    disposition: Disposition,
    options: u32,
    access: u32,
    mode: Option<u32>,
}

/// What was opened, and how that came about (`CreateAction`).
struct Opened {
    file: std::os::fd::OwnedFd,
    facts: Facts,
    action: u32,
    can: Can,
}

const OPENED: u32 = 1;
const CREATED: u32 = 2;
const OVERWRITTEN: u32 = 3;

impl Connection<'_> {
    pub(super) fn create(
        &mut self,
        create: &Create<'_>,
        share: Arc<Share>,
        ask: &Ask<'_>,
        chain: &mut Chain,
        out: &mut Vec<u8>,
    ) -> Result<Status, Failure> {
        if self.opens.len() >= MOST_OPEN {
            return Err(Status::TOO_MANY_OPENED_FILES.into());
        }
        let context = |name: &[u8]| create.contexts.iter().find(|(found, _)| *found == name).map(|(_, data)| *data);
        // An earlier version of a file, and attributes of its own: what cannot be given must not be passed over.
        if context(b"TWrp").is_some() {
            return Err(Status::OBJECT_NAME_NOT_FOUND.into());
        }
        if context(b"ExtA").is_some() {
            return Err(Status::EAS_NOT_SUPPORTED.into());
        }
        if create.options & OPEN_BY_FILE_ID != 0 {
            return Err(Status::NOT_SUPPORTED.into());
        }
        let posix = context(&POSIX_TAG);
        let mode = match (posix, context(b"SecD")) {
            (Some(data), _) => Some(Reader::new(data).u32().ok_or(Status::INVALID_PARAMETER)?),
            (None, Some(descriptor)) => security::mode(descriptor),
            (None, None) => None,
        };
        let wanted = Wanted {
            path: SharePath::parse(create.name)?,
            disposition: Disposition::parse(create.disposition).ok_or(Status::INVALID_PARAMETER)?,
            options: create.options,
            access: specific(create.access),
            mode,
        };
        let delete_on_close = wanted.options & DELETE_ON_CLOSE != 0;
        let writes = wanted.access & WRITE_ACCESS != 0 || delete_on_close;
        if writes || wanted.disposition.overwrites() {
            share.writable()?;
        }
        if wanted.options & DIRECTORY != 0 && (wanted.options & NON_DIRECTORY != 0 || wanted.disposition.overwrites()) {
            return Err(Status::INVALID_PARAMETER.into());
        }
        let opened = open(&share, &wanted, create.access & MAXIMUM_ALLOWED != 0)?;
        if delete_on_close && wanted.path.is_root() {
            return Err(Status::CANNOT_DELETE.into());
        }
        let id = self.next_number();
        body(&opened, id, out);
        contexts(self.server.owner, &share, &opened, create, posix.is_some(), out);
        let open = Open {
            session: ask.session,
            tree: ask.tree,
            share,
            path: wanted.path,
            file: opened.file,
            facts: opened.facts,
            can: opened.can,
            delete_on_close,
            write_through: wanted.options & WRITE_THROUGH != 0,
            is_new: opened.action == CREATED,
            listing: None,
            lock_file: None,
            locks: Locks::none(&self.locks),
        };
        self.opens.insert(id, open);
        chain.file = Some(id);
        Ok(Status::SUCCESS)
    }
}

/// Rights without the generic ones.
fn specific(access: u32) -> u32 {
    let generic = [
        (GENERIC_ALL, ALL_ACCESS),
        (GENERIC_READ, READ_ACCESS & !EXECUTE),
        (GENERIC_WRITE, WRITE_DATA | APPEND_DATA | WRITE_EA | WRITE_ATTRIBUTES),
        (GENERIC_EXECUTE, EXECUTE),
    ];
    generic.iter().filter(|(bit, _)| access & bit != 0).fold(access, |sum, (_, rights)| sum | rights)
}

fn open(share: &Share, wanted: &Wanted, maximum: bool) -> Result<Opened, Failure> {
    for _ in 0..ATTEMPTS {
        let result = match share.look(&wanted.path) {
            Ok((file, facts)) => open_existing(share, wanted, maximum, file, facts),
            Err(Errno::NOENT) if wanted.disposition.creates() => create_new(share, wanted),
            Err(error) => Err(error.into()),
        };
        match result {
            // It has come, gone, or become another in between.
            Err(Failure::Status(Status::LOCK_NOT_GRANTED)) => {}
            Err(Failure::Status(Status::OBJECT_NAME_COLLISION)) if wanted.disposition != Disposition::Create => {}
            result => return result,
        }
    }
    Err(Status::UNEXPECTED_IO_ERROR.into())
}

fn open_existing(
    share: &Share,
    wanted: &Wanted,
    maximum: bool,
    path_only: std::os::fd::OwnedFd,
    facts: Facts,
) -> Result<Opened, Failure> {
    if wanted.disposition == Disposition::Create {
        return Err(Status::OBJECT_NAME_COLLISION.into());
    }
    if facts.kind == Kind::Symlink && wanted.options & OPEN_REPARSE_POINT == 0 {
        return Err(Failure::Symlink(read_link(path_only.as_fd())?));
    }
    match facts.kind {
        Kind::Directory if wanted.options & NON_DIRECTORY != 0 => return Err(Status::FILE_IS_A_DIRECTORY.into()),
        Kind::File | Kind::Special | Kind::Symlink if wanted.options & DIRECTORY != 0 => {
            return Err(Status::NOT_A_DIRECTORY.into());
        }
        Kind::Directory if wanted.disposition.overwrites() => return Err(Status::OBJECT_NAME_COLLISION.into()),
        Kind::File | Kind::Directory | Kind::Symlink | Kind::Special => {}
    }
    let writable = share.access() == ShareAccess::ReadWrite;
    let has = |rights: u32| wanted.access & rights != 0;
    let mut can = Can {
        read: has(READ_DATA | EXECUTE) || maximum,
        write: has(WRITE_DATA | APPEND_DATA) || maximum && writable,
        delete: (has(DELETE) || maximum) && writable,
        set_attributes: (has(WRITE_ATTRIBUTES | WRITE_DATA) || maximum) && writable,
        set_security: (has(WRITE_DAC) || maximum) && writable,
    };
    match facts.kind {
        Kind::Directory => {
            can.write = false;
            Ok(Opened { file: path_only, facts, action: OPENED, can })
        }
        Kind::Symlink | Kind::Special => {
            // Only rights that concern the name and what is known of it.
            if facts.kind == Kind::Special && !maximum && has(READ_DATA | WRITE_DATA | APPEND_DATA) {
                return Err(Status::ACCESS_DENIED.into());
            }
            (can.read, can.write) = (false, false);
            Ok(Opened { file: path_only, facts, action: OPENED, can })
        }
        Kind::File => open_file(share, wanted, maximum, path_only, facts, can),
    }
}

fn open_file(
    share: &Share,
    wanted: &Wanted,
    maximum: bool,
    path_only: std::os::fd::OwnedFd,
    facts: Facts,
    mut can: Can,
) -> Result<Opened, Failure> {
    let overwrites = wanted.disposition.overwrites();
    let flags = match (can.read, can.write || overwrites) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        (true, false) => OFlags::RDONLY,
        (false, false) => return Ok(Opened { file: path_only, facts, action: OPENED, can }),
    };
    let file = match share.open(&wanted.path, &facts, flags) {
        // As much as there is, then.
        Err(Errno::ACCESS | Errno::PERM) if maximum && !overwrites => {
            can.write = false;
            share.open(&wanted.path, &facts, OFlags::RDONLY)?
        }
        result => result?,
    };
    if !overwrites {
        return Ok(Opened { file, facts, action: OPENED, can });
    }
    share.writable()?.truncate(file.as_fd(), 0)?;
    let facts = Facts::of(file.as_fd())?;
    Ok(Opened { file, facts, action: OVERWRITTEN, can })
}

fn create_new(share: &Share, wanted: &Wanted) -> Result<Opened, Failure> {
    let writable = share.writable()?;
    let is_directory = wanted.options & DIRECTORY != 0;
    let file = if is_directory {
        writable.create_directory(&wanted.path, wanted.mode.unwrap_or(DIRECTORY_MODE))?
    } else {
        writable.create_file(&wanted.path, wanted.mode.unwrap_or(FILE_MODE))?
    };
    let facts = Facts::of(file.as_fd())?;
    // Whoever made it may do everything with it.
    let can = Can { read: true, write: !is_directory, delete: true, set_attributes: true, set_security: true };
    Ok(Opened { file, facts, action: CREATED, can })
}

fn body(opened: &Opened, id: u64, out: &mut Vec<u8>) {
    const IS_REPARSE_POINT: u8 = 1;
    let facts = &opened.facts;
    out.u16(89);
    // No oplock.
    out.u8(0);
    out.u8(if facts.kind == Kind::Symlink { IS_REPARSE_POINT } else { 0 });
    out.u32(opened.action);
    info::times(facts, out);
    out.u64(facts.allocated);
    out.u64(facts.size);
    out.u32(info::attributes(facts));
    out.u32(0);
    out.u64(id);
    out.u64(id);
    // Where the contexts begin, and how long they are: still to come.
    out.u32(0);
    out.u32(0);
}

/// Answers to what was asked for beside the file.
fn contexts(owner: crate::Owner, share: &Share, opened: &Opened, create: &Create<'_>, posix: bool, out: &mut Vec<u8>) {
    const BODY: usize = 88;
    let start = out.len().saturating_sub(BODY + HEADER);
    let asked = |name: &[u8]| create.contexts.iter().any(|(found, _)| *found == name);
    let mut answers: Vec<(&[u8], Vec<u8>)> = Vec::new();
    if asked(b"MxAc") {
        let access = match share.access() {
            ShareAccess::ReadWrite => ALL_ACCESS,
            ShareAccess::ReadOnly => READ_ACCESS,
        };
        answers.push((b"MxAc", [0_u32.to_le_bytes(), access.to_le_bytes()].concat()));
    }
    if asked(b"QFid") {
        let mut id = Vec::new();
        id.u64(share.number(&opened.facts));
        id.u64(u64::from(share.serial()));
        id.put(&[0; 16]);
        answers.push((b"QFid", id));
    }
    if posix {
        let mut data = Vec::new();
        info::posix_tail(owner, &opened.facts, &mut data);
        answers.push((&POSIX_TAG, data));
    }
    let first = out.len();
    let count = answers.len();
    for (index, (name, data)) in answers.into_iter().enumerate() {
        let at = out.len();
        // Head, name up to a border of eight, data.
        let data_at = (16 + name.len()).next_multiple_of(8);
        out.u32(0);
        out.u16(16);
        out.u16(len16(name.len()));
        out.u16(0);
        out.u16(len16(data_at));
        out.u32(len32(data.len()));
        out.put(name);
        pad(out, at, 8);
        out.put(&data);
        if index + 1 < count {
            pad(out, at, 8);
            let next = len32(out.len().saturating_sub(at));
            patch(out, at, &next.to_le_bytes());
        }
    }
    if count > 0 {
        patch(out, start + HEADER + BODY - 8, &len32(first.saturating_sub(start)).to_le_bytes());
        let len = len32(out.len().saturating_sub(first));
        patch(out, start + HEADER + BODY - 4, &len.to_le_bytes());
    }
}
