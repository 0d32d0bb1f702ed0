//! QUERY_INFO and SET_INFO: what is known of a file and its file system, MS-FSCC 2.4 and 2.5, and what of that can be changed.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::{Connection, Failure, MAX_IO, Open, security};
use crate::Owner;
use crate::name::SharePath;
use crate::share::{Facts, FileTime, Kind, Replace, ShareAccess};
use crate::status::Status;
use crate::wire::bytes::{Put, Reader, len16, len32, patch, utf16};
use crate::wire::header::HEADER;
use crate::wire::request::QueryInfo;

const FILE: u8 = 1;
const FILE_SYSTEM: u8 = 2;
const SECURITY: u8 = 3;

// Attributes, MS-FSCC 2.6.
const READ_ONLY: u32 = 0x1;
const DIRECTORY: u32 = 0x10;
const NORMAL: u32 = 0x80;
const REPARSE_POINT: u32 = 0x400;

pub(super) const SYMLINK_TAG: u32 = 0xa000_000c;

impl Connection<'_> {
    pub(super) fn query_info(&mut self, id: u64, query: &QueryInfo, out: &mut Vec<u8>) -> Result<Status, Failure> {
        if query.max_output > MAX_IO {
            return Err(Status::INVALID_PARAMETER.into());
        }
        let owner = self.server.owner;
        let open = self.open_mut(id)?;
        out.u16(9);
        out.u16(len16(HEADER + 8));
        let at = out.len();
        out.u32(0);
        let data = out.len();
        let room = usize::try_from(query.max_output).unwrap_or(usize::MAX);
        match query.kind {
            FILE => file(open, owner, query.class, out)?,
            FILE_SYSTEM => file_system(open, query.class, out)?,
            SECURITY => {
                security::descriptor(owner, &Facts::of(open.file.as_fd())?, query.additional, out);
                // Linux asks first how long it is.
                if out.len().saturating_sub(data) > room {
                    return Err(Status::BUFFER_TOO_SMALL.into());
                }
            }
            // Quotas.
            _ => return Err(Status::NOT_SUPPORTED.into()),
        }
        let mut status = Status::SUCCESS;
        if out.len().saturating_sub(data) > room {
            // What has a name at its end is cut there; nothing else is.
            if room < 24 {
                return Err(Status::INFO_LENGTH_MISMATCH.into());
            }
            out.truncate(data.saturating_add(room));
            status = Status::BUFFER_OVERFLOW;
        }
        let len = len32(out.len().saturating_sub(data));
        patch(out, at, &len.to_le_bytes());
        Ok(status)
    }

    pub(super) fn set_info(
        &mut self,
        id: u64,
        kind: u8,
        class: u8,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Status, Failure> {
        self.open_mut(id)?.share.writable()?;
        match (kind, class) {
            (FILE, 10) => self.rename(id, data)?,
            (FILE, 11) => self.link(id, data)?,
            (FILE, class) => set_file(self.open_mut(id)?, class, data)?,
            (SECURITY, _) => set_security(self.open_mut(id)?, data)?,
            _ => return Err(Status::NOT_SUPPORTED.into()),
        }
        out.u16(2);
        Ok(Status::SUCCESS)
    }

    /// `FileRenameInformation`.
    fn rename(&mut self, id: u64, data: &[u8]) -> Result<(), Failure> {
        let open = self.open_mut(id)?;
        if !open.can.delete {
            return Err(Status::ACCESS_DENIED.into());
        }
        let (replace, to) = new_name(data)?;
        if open.path == to {
            return Ok(());
        }
        open.share.writable()?.rename(&open.path, &open.facts, &to, replace)?;
        let (from, facts, share) = (open.path.clone(), open.facts, std::sync::Arc::clone(&open.share));
        // Whoever has the file open, or something beneath it, has it by its new name.
        for other in self.opens.values_mut().filter(|other| std::sync::Arc::ptr_eq(&other.share, &share)) {
            if other.facts.is_same_file(&facts) && other.path == from {
                other.path = to.clone();
            } else if let Some(moved) = other.path.moved(&from, &to) {
                other.path = moved;
            }
        }
        Ok(())
    }

    /// `FileLinkInformation`.
    fn link(&mut self, id: u64, data: &[u8]) -> Result<(), Failure> {
        let open = self.open_mut(id)?;
        let (replace, to) = new_name(data)?;
        if replace == Replace::Yes {
            return Err(Status::NOT_SUPPORTED.into());
        }
        open.share.writable()?.link(&open.path, &open.facts, &to)?;
        Ok(())
    }
}

/// What both of these begin with.
fn new_name(data: &[u8]) -> Result<(Replace, SharePath), Status> {
    let mut fields = Reader::new(data);
    let mut parse = || {
        let replace = if fields.u8()? == 0 { Replace::No } else { Replace::Yes };
        let _reserved = fields.take(7)?;
        let _root = fields.u64()?;
        let len = usize::try_from(fields.u32()?).ok()?;
        Some((replace, fields.take(len)?))
    };
    let (replace, name) = parse().ok_or(Status::INFO_LENGTH_MISMATCH)?;
    let path = SharePath::parse(name)?;
    if path.is_root() { Err(Status::OBJECT_NAME_INVALID) } else { Ok((replace, path)) }
}

/// Attributes of a file.
pub(super) fn attributes(facts: &Facts) -> u32 {
    match facts.kind {
        Kind::Directory => DIRECTORY,
        Kind::Symlink => REPARSE_POINT,
        Kind::File | Kind::Special if facts.mode & 0o222 == 0 => READ_ONLY,
        Kind::File | Kind::Special => NORMAL,
    }
}

/// Created, accessed, written, changed.
pub(super) fn times(facts: &Facts, out: &mut Vec<u8>) {
    for time in [facts.created, facts.accessed, facts.modified, facts.changed] {
        out.u64(time.0);
    }
}

/// What the POSIX extensions add: links, tag, mode, and who owns it.
pub(super) fn posix_tail(owner: Owner, facts: &Facts, out: &mut Vec<u8>) {
    out.u32(facts.links);
    out.u32(if facts.kind == Kind::Symlink { SYMLINK_TAG } else { 0 });
    out.u32(facts.mode);
    let (uid, gid) = owner.of(facts);
    security::unix_user(uid, out);
    security::unix_group(gid, out);
}

/// What the POSIX extensions know of a file, but for its name.
pub(super) fn posix(open_number: u64, owner: Owner, facts: &Facts, out: &mut Vec<u8>) {
    times(facts, out);
    out.u64(facts.size);
    out.u64(facts.allocated);
    out.u32(attributes(facts));
    out.u64(open_number);
    out.u32(0);
    out.u32(0);
    posix_tail(owner, facts, out);
}

fn file(open: &Open, owner: Owner, class: u8, out: &mut Vec<u8>) -> Result<(), Failure> {
    let facts = Facts::of(open.file.as_fd())?;
    let basic = |out: &mut Vec<u8>| {
        times(&facts, out);
        out.u32(attributes(&facts));
        out.u32(0);
    };
    let standard = |out: &mut Vec<u8>| {
        out.u64(facts.allocated);
        out.u64(facts.size);
        out.u32(facts.links);
        out.u8(u8::from(open.delete_on_close));
        out.u8(u8::from(facts.is_directory()));
        out.u16(0);
    };
    let number = open.share.number(&facts);
    let access = match open.share.access() {
        ShareAccess::ReadWrite => super::create::ALL_ACCESS,
        ShareAccess::ReadOnly => super::create::READ_ACCESS,
    };
    match class {
        // Basic, standard, internal, EA size, access.
        4 => basic(out),
        5 => standard(out),
        6 => out.u64(number),
        7 => out.u32(0),
        8 => out.u32(access),
        // Position, mode, alignment.
        14 => out.u64(0),
        16 | 17 => out.u32(0),
        // All of these, and the name.
        18 => {
            basic(out);
            standard(out);
            out.u64(number);
            out.u32(0);
            out.u32(access);
            out.u64(0);
            out.u64(0);
            let name = utf16(&open.path.to_wire());
            out.u32(len32(name.len()));
            out.put(&name);
        }
        // Network open.
        34 => {
            times(&facts, out);
            out.u64(facts.allocated);
            out.u64(facts.size);
            out.u32(attributes(&facts));
            out.u32(0);
        }
        // Attributes and tag.
        35 => {
            out.u32(attributes(&facts));
            out.u32(if facts.kind == Kind::Symlink { SYMLINK_TAG } else { 0 });
        }
        100 => posix(number, owner, &facts, out),
        // Extended attributes.
        15 => return Err(Status::EAS_NOT_SUPPORTED.into()),
        // Streams, among others.
        _ => return Err(Status::INVALID_INFO_CLASS.into()),
    }
    Ok(())
}

fn file_system(open: &Open, class: u8, out: &mut Vec<u8>) -> Result<(), Failure> {
    const CASE_SENSITIVE: u32 = 0x1;
    const CASE_PRESERVED: u32 = 0x2;
    const UNICODE: u32 = 0x4;
    const REPARSE_POINTS: u32 = 0x80;
    const HARD_LINKS: u32 = 0x40_0000;
    const READ_ONLY_VOLUME: u32 = 0x8_0000;
    const SECTOR: u32 = 512;
    let found = open.share.file_system()?;
    let block = found.f_frsize.max(u64::from(SECTOR));
    let sectors = u32::try_from(block / u64::from(SECTOR)).unwrap_or(1);
    match class {
        // Volume, with the name of the share for a label.
        1 => {
            let label = utf16(open.share.name());
            out.u64(0);
            out.u32(open.share.serial());
            out.u32(len32(label.len()));
            out.u16(0);
            out.put(&label);
        }
        // Size.
        3 => {
            out.u64(found.f_blocks);
            out.u64(found.f_bavail);
            out.u32(sectors);
            out.u32(SECTOR);
        }
        // Device: a disk, mounted, read-only where it is.
        4 => {
            out.u32(7);
            out.u32(if open.share.access() == ShareAccess::ReadOnly { 0x22 } else { 0x20 });
        }
        // Attribute.
        5 => {
            let read_only = if open.share.access() == ShareAccess::ReadOnly { READ_ONLY_VOLUME } else { 0 };
            // What Linux and Windows look for before they rely on links and on the case of names.
            let name = utf16("NTFS");
            out.u32(CASE_SENSITIVE | CASE_PRESERVED | UNICODE | REPARSE_POINTS | HARD_LINKS | read_only);
            out.u32(255);
            out.u32(len32(name.len()));
            out.put(&name);
        }
        // Full size.
        7 => {
            out.u64(found.f_blocks);
            out.u64(found.f_bavail);
            out.u64(found.f_bfree);
            out.u32(sectors);
            out.u32(SECTOR);
        }
        // Sector size.
        11 => {
            for _ in 0..4 {
                out.u32(SECTOR);
            }
            // Aligned.
            out.u32(3);
            out.u32(0);
            out.u32(0);
        }
        // POSIX.
        100 => {
            let block = u32::try_from(block).unwrap_or(4096);
            out.u32(block);
            out.u32(block);
            out.u64(found.f_blocks);
            out.u64(found.f_bfree);
            out.u64(found.f_bavail);
            out.u64(found.f_files);
            out.u64(found.f_ffree);
            out.u64(u64::from(open.share.serial()));
        }
        _ => return Err(Status::INVALID_INFO_CLASS.into()),
    }
    Ok(())
}

fn set_file(open: &mut Open, class: u8, data: &[u8]) -> Result<(), Failure> {
    let mut fields = Reader::new(data);
    let writable = open.share.writable()?;
    let short = Status::INFO_LENGTH_MISMATCH;
    match class {
        // Basic.
        4 => {
            if !open.can.set_attributes {
                return Err(Status::ACCESS_DENIED.into());
            }
            let _created = fields.u64().ok_or(short)?;
            let accessed = FileTime(fields.u64().ok_or(short)?).to_unix();
            let modified = FileTime(fields.u64().ok_or(short)?).to_unix();
            let _changed = fields.u64().ok_or(short)?;
            let attributes = fields.u32().ok_or(short)?;
            if accessed.is_some() || modified.is_some() {
                writable.set_times(open.file.as_fd(), accessed, modified)?;
            }
            if attributes != 0 && open.facts.kind == Kind::File {
                let mode = Facts::of(open.file.as_fd())?.mode;
                let wanted = match (attributes & READ_ONLY != 0, mode & 0o222 == 0) {
                    (true, false) => mode & !0o222,
                    (false, true) => mode | 0o200,
                    _ => return Ok(()),
                };
                writable.change_mode(&open.path, open.file.as_fd(), wanted)?;
            }
        }
        // Disposition.
        13 => {
            let delete = fields.u8().ok_or(short)? != 0;
            if !open.can.delete {
                return Err(Status::ACCESS_DENIED.into());
            }
            if delete && open.path.is_root() {
                return Err(Status::CANNOT_DELETE.into());
            }
            if delete && open.facts.is_directory() {
                super::listing::check_empty(open.file.as_fd())?;
            }
            open.delete_on_close = delete;
        }
        // Position: each request says its own.
        14 => {}
        // Allocation, which ends a file that has more, and promises nothing to one that has less.
        19 | 20 => {
            let size = fields.u64().ok_or(short)?;
            if !open.can.write {
                return Err(Status::ACCESS_DENIED.into());
            }
            let size = Some(size).filter(|size| i64::try_from(*size).is_ok()).ok_or(Status::FILE_TOO_LARGE)?;
            if class == 20 || size < Facts::of(open.file.as_fd())?.size {
                writable.truncate(open.file.as_fd(), size)?;
            }
        }
        15 => return Err(Status::EAS_NOT_SUPPORTED.into()),
        _ => return Err(Status::INVALID_INFO_CLASS.into()),
    }
    Ok(())
}

/// Of a security descriptor, the mode that Linux puts in it for chmod(2); owners stay who they are.
fn set_security(open: &mut Open, data: &[u8]) -> Result<(), Failure> {
    if !open.can.set_security {
        return Err(Status::ACCESS_DENIED.into());
    }
    let mode = security::mode(data).ok_or(Status::NOT_SUPPORTED)?;
    match open.share.writable()?.change_mode(&open.path, open.file.as_fd(), mode) {
        Err(status) if status == Errno::OPNOTSUPP.into() => Err(Status::NOT_SUPPORTED.into()),
        result => Ok(result?),
    }
}
