//! What is done with an open file: READ, WRITE, FLUSH, LOCK, CANCEL and CLOSE.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use cofferdam_sys::file::{self, RangeLock};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{
    Ask, Connection, Failure, MAX_IO, MOST_WAITING, Open, begin_frame, end_frame, error_body, info, nothing, sign,
};
use crate::crypto::SigningKey;
use crate::share::{Facts, Kind};
use crate::status::Status;
use crate::wire::bytes::{Put, len32, patch};
use crate::wire::header::{FLAG_ASYNC, HEADER, Header, Response};
use crate::wire::request::LockElement;
use crate::xsym;

/// `SMB2_WRITEFLAG_WRITE_THROUGH`.
const WRITE_THROUGH: u32 = 1;

const SHARED: u32 = 0x1;
const EXCLUSIVE: u32 = 0x2;
const UNLOCK: u32 = 0x4;
const FAIL_IMMEDIATELY: u32 = 0x10;

/// Most ranges that one open file has locked; Linux's own client sends each range that a program locks.
const MOST_LOCKS: usize = 1024;
/// Most that all open files of a connection have together: each is some hundred bytes of the kernel's as well.
const MOST_LOCKS_IN_ALL: usize = 16 * MOST_LOCKS;

/// The ranges that one open file has locked.
#[derive(Debug)]
pub(super) struct Locks {
    ranges: Vec<(u64, u64)>,
    /// How many all files of the connection have.
    all: Rc<Cell<usize>>,
}

impl Locks {
    pub(super) fn none(all: &Rc<Cell<usize>>) -> Locks {
        Locks { ranges: Vec::new(), all: Rc::clone(all) }
    }

    fn is_full(&self) -> bool {
        self.ranges.len() >= MOST_LOCKS || self.all.get() >= MOST_LOCKS_IN_ALL
    }

    fn add(&mut self, range: (u64, u64)) {
        self.ranges.push(range);
        self.all.set(self.all.get().saturating_add(1));
    }

    /// Whether there was such a one.
    fn remove(&mut self, range: (u64, u64)) -> bool {
        let held = self.ranges.iter().position(|held| *held == range);
        if let Some(held) = held {
            self.ranges.swap_remove(held);
            self.all.set(self.all.get().saturating_sub(1));
        }
        held.is_some()
    }
}

impl Drop for Locks {
    /// The kernel gives them up with the file.
    fn drop(&mut self) {
        self.all.set(self.all.get().saturating_sub(self.ranges.len()));
    }
}

/// A lock that somebody else stands in the way of.
#[derive(Debug)]
pub(super) struct WaitingLock {
    id: u64,
    file: u64,
    lock: RangeLock,
    range: (u64, u64),
    header: Header,
    session: u64,
    key: Option<SigningKey>,
}

impl Connection<'_> {
    pub(super) fn read(
        &mut self,
        id: u64,
        length: u32,
        offset: u64,
        minimum: u32,
        out: &mut Vec<u8>,
    ) -> Result<Status, Failure> {
        const HEAD: usize = 16;
        let start = out.len();
        // Several reads in one compound share the room that one may take.
        if length > MAX_IO || start > super::MAX_MESSAGE {
            return Err(Status::INVALID_PARAMETER.into());
        }
        let open = self.open_mut(id)?;
        if open.facts.is_directory() {
            return Err(Status::FILE_IS_A_DIRECTORY.into());
        }
        if !open.can.read {
            return Err(Status::ACCESS_DENIED.into());
        }
        out.u16(17);
        out.u8(u8::try_from(HEADER + HEAD).unwrap_or(u8::MAX));
        out.u8(0);
        out.put(&[0; 12]);
        let data = out.len();
        out.resize(data + usize::try_from(length).map_err(|_| Status::INVALID_PARAMETER)?, 0);
        let read = read_fully(open.file.as_fd(), out.get_mut(data..).unwrap_or_default(), offset)?;
        if read == 0 && length > 0 || len32(read) < minimum {
            return Err(Status::END_OF_FILE.into());
        }
        out.truncate(data + read);
        patch(out, start + 4, &len32(read).to_le_bytes());
        Ok(Status::SUCCESS)
    }

    pub(super) fn write(
        &mut self,
        id: u64,
        offset: u64,
        flags: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Status, Failure> {
        let open = self.open_mut(id)?;
        if !open.can.write {
            return Err(Status::ACCESS_DENIED.into());
        }
        // Files end where `off_t` does.
        let end = offset.checked_add(u64::from(len32(data.len()))).filter(|end| i64::try_from(*end).is_ok());
        end.ok_or(Status::FILE_TOO_LARGE)?;
        open.share.writable()?.write(open.file.as_fd(), data, offset)?;
        if open.write_through || flags & WRITE_THROUGH != 0 {
            rustix::fs::fdatasync(&open.file)?;
        }
        out.u16(17);
        out.u16(0);
        out.u32(len32(data.len()));
        out.u64(0);
        Ok(Status::SUCCESS)
    }

    pub(super) fn flush(&mut self, id: u64, out: &mut Vec<u8>) -> Result<Status, Failure> {
        let open = self.open_mut(id)?;
        // What is open as a path alone has nothing to be written out by this client.
        if open.can.write {
            rustix::fs::fsync(&open.file)?;
        }
        nothing(out)
    }

    pub(super) fn close(&mut self, id: u64, flags: u16, out: &mut Vec<u8>) -> Result<Status, Failure> {
        const POSTQUERY_ATTRIBUTES: u16 = 1;
        let facts =
            if flags & POSTQUERY_ATTRIBUTES == 0 { None } else { Facts::of(self.open_mut(id)?.file.as_fd()).ok() };
        self.end_open(id);
        out.u16(60);
        match facts {
            Some(facts) => {
                out.u16(POSTQUERY_ATTRIBUTES);
                out.u32(0);
                info::times(&facts, out);
                out.u64(facts.allocated);
                out.u64(facts.size);
                out.u32(info::attributes(&facts));
            }
            None => out.put(&[0; 58]),
        }
        Ok(Status::SUCCESS)
    }

    /// Closes a file, and does what was to be done then.
    pub(super) fn end_open(&mut self, id: u64) {
        let Some(open) = self.opens.remove(&id) else { return };
        // Locks that waited on it find it gone when they are tried next. Those that it held go with its description.
        if open.share.check().is_err() {
            return;
        }
        let Ok(writable) = open.share.writable() else { return };
        if open.delete_on_close {
            // The name may be another's by now, and a directory may have got something in it; the client has its answer to that already.
            let _ = writable.remove(&open.path, &open.facts);
        } else if open.is_new && open.facts.kind == Kind::File {
            become_link(&open);
        }
    }

    pub(super) fn lock(
        &mut self,
        id: u64,
        locks: &[LockElement],
        ask: &Ask<'_>,
        in_compound: bool,
        out: &mut Vec<u8>,
    ) -> Result<Status, Failure> {
        let open = self.open_mut(id)?;
        if open.facts.kind != Kind::File {
            return Err(Status::INVALID_PARAMETER.into());
        }
        let alone = locks.len() == 1;
        let mut done = Vec::new();
        for element in locks {
            let range = (element.offset, element.length);
            let (lock, waits) = match element.flags {
                flags if flags & UNLOCK != 0 => (RangeLock::Unlock, false),
                flags if flags & SHARED != 0 => (RangeLock::Shared, flags & FAIL_IMMEDIATELY == 0),
                flags if flags & EXCLUSIVE != 0 => (RangeLock::Exclusive, flags & FAIL_IMMEDIATELY == 0),
                _ => return Err(Status::INVALID_PARAMETER.into()),
            };
            match set_lock(open, lock, range) {
                Ok(()) => done.push((lock, range)),
                Err(Status::LOCK_NOT_GRANTED) if waits && alone && !in_compound => {
                    return Err(self.wait_for_lock(id, lock, range, ask));
                }
                Err(status) => {
                    // All or nothing, for what was taken.
                    for (lock, range) in done {
                        if lock != RangeLock::Unlock {
                            let _ = set_lock(open, RangeLock::Unlock, range);
                        }
                    }
                    return Err(status.into());
                }
            }
        }
        nothing(out)
    }

    fn wait_for_lock(&mut self, file: u64, lock: RangeLock, range: (u64, u64), ask: &Ask<'_>) -> Failure {
        if self.waiting.len() >= MOST_WAITING {
            return Status::INSUFFICIENT_RESOURCES.into();
        }
        let id = self.next_number();
        let key = if ask.header.is_signed() { self.check_signature(ask).ok().flatten() } else { None };
        self.waiting.push(WaitingLock { id, file, lock, range, header: *ask.header, session: ask.session, key });
        Failure::Waits(id)
    }

    pub(super) fn cancel(&mut self, ask: &Ask<'_>) -> Result<Status, Failure> {
        let header = ask.header;
        let is_it = |lock: &WaitingLock| {
            let same = if header.flags & FLAG_ASYNC != 0 {
                lock.id == header.async_id
            } else {
                lock.header.message_id == header.message_id
            };
            same && lock.session == ask.session
        };
        // Its answer is sent with those of the other locks that have come to an end.
        for lock in self.waiting.iter_mut().filter(|lock| is_it(lock)) {
            lock.file = CANCELLED;
        }
        Err(Failure::Silent)
    }

    /// Tries the locks that wait again, and answers those that wait no longer.
    pub(super) fn retry_locks(&mut self, out: &mut Vec<u8>) {
        for lock in std::mem::take(&mut self.waiting) {
            let status = match self.opens.get_mut(&lock.file) {
                _ if lock.file == CANCELLED => Status::CANCELLED,
                None => Status::RANGE_NOT_LOCKED,
                Some(open) => match set_lock(open, lock.lock, lock.range) {
                    Err(Status::LOCK_NOT_GRANTED) => {
                        self.waiting.push(lock);
                        continue;
                    }
                    Err(status) => status,
                    Ok(()) => Status::SUCCESS,
                },
            };
            answer_lock(&lock, status, out);
        }
    }
}

/// In place of the file of a lock that nobody waits for any more.
const CANCELLED: u64 = u64::MAX;

fn answer_lock(lock: &WaitingLock, status: Status, out: &mut Vec<u8>) {
    let start = begin_frame(out);
    // Credits came with the answer that it waits.
    let response = Response { status, credits: 0, session: lock.session, tree: 0, async_id: Some(lock.id) };
    response.emit(&lock.header, out);
    if status == Status::SUCCESS {
        let _ = nothing(out);
    } else {
        error_body(out);
    }
    if let (Some(key), Some(message)) = (&lock.key, out.get_mut(start..)) {
        sign(key, message);
    }
    end_frame(out, start);
}

fn read_fully(file: BorrowedFd<'_>, mut room: &mut [u8], mut offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while !room.is_empty() {
        let read = match rustix::io::pread(file, &mut *room, offset) {
            Ok(0) => break,
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            // Beyond what `off_t` holds there is nothing.
            Err(Errno::INVAL) if i64::try_from(offset).is_err() => break,
            Err(error) => return Err(error),
        };
        done += read;
        offset = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        room = room.get_mut(read..).unwrap_or_default();
    }
    Ok(done)
}

/// Locks a range on the host, where other connections, other machines and programs of the host see it.
fn set_lock(open: &mut Open, lock: RangeLock, range: (u64, u64)) -> Result<(), Status> {
    let (offset, length) = range;
    let start = i64::try_from(offset).map_err(|_| Status::INVALID_LOCK_RANGE)?;
    // A range without a byte locks nothing.
    if length == 0 {
        return Ok(());
    }
    // To the end, for the kernel, is 0; that is what ranges mean that reach beyond what `off_t` holds.
    let len = i64::try_from(length).ok().filter(|len| start.checked_add(*len).is_some()).unwrap_or(0);
    match lock {
        RangeLock::Unlock if !open.locks.remove(range) => return Err(Status::RANGE_NOT_LOCKED),
        RangeLock::Shared | RangeLock::Exclusive if open.locks.is_full() => {
            return Err(Status::INSUFFICIENT_RESOURCES);
        }
        RangeLock::Unlock | RangeLock::Shared | RangeLock::Exclusive => {}
    }
    // An exclusive lock takes a file that is open for writing, and a shared one a file that is open for reading; clients ask no such thing.
    if !(open.can.read && open.can.write) && open.lock_file.is_none() {
        let file = match open.share.open(&open.path, &open.facts, OFlags::RDWR) {
            // Shared ones are still to be had.
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if lock != RangeLock::Exclusive => {
                open.share.open(&open.path, &open.facts, OFlags::RDONLY)
            }
            result => result,
        };
        // Named by another path by now, or not at all: nobody else can come to lock it by that name.
        open.lock_file =
            Some(file.map_err(|error| if error == Errno::AGAIN { Status::ACCESS_DENIED } else { error.into() })?);
    }
    let file = open.lock_file.as_ref().unwrap_or(&open.file);
    match file::lock_range(file.as_fd(), lock, start, len) {
        Ok(()) => {
            if lock != RangeLock::Unlock {
                open.locks.add(range);
            }
            Ok(())
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Err(Status::LOCK_NOT_GRANTED)
        }
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Err(Status::ACCESS_DENIED),
        Err(error) => Err(Errno::from_io_error(&error).map_or(Status::UNEXPECTED_IO_ERROR, Status::from)),
    }
}

/// A file that was made, and filled with what Linux's client writes in place of a symbolic link (`mfsymlinks`), becomes that link.
fn become_link(open: &Open) {
    let Ok(writable) = open.share.writable() else { return };
    let Ok(facts) = Facts::of(open.file.as_fd()) else { return };
    if usize::try_from(facts.size) != Ok(xsym::LENGTH) || facts.links != 1 {
        return;
    }
    let mut content = [0; xsym::LENGTH];
    let is_read = read_fully(open.file.as_fd(), &mut content, 0).is_ok_and(|read| read == content.len());
    if let Some(target) = is_read.then(|| xsym::parse(&content)).flatten() {
        // Should it fail, the client finds what it wrote, and takes that for a link as well.
        let _ = writable.replace_by_link(&open.path, &facts, target);
    }
}
