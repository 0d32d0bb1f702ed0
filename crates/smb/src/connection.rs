//! One connection of a client: what it has negotiated, its sessions, trees and open files.
//!
//! | State | Request | Next | Answer |
//! |---|---|---|---|
//! | Fresh | NEGOTIATE with 3.1.1 or 3.0.2 | Negotiated | what the server can do |
//! | Fresh | anything else | – | the connection ends |
//! | Negotiated | SESSION_SETUP, first token | + a session that logs on | a challenge |
//! | … | SESSION_SETUP, second token | + a session | success, signed; or `LOGON_FAILURE`, and the session is gone |
//! | + a session | TREE_CONNECT, signed in 3.1.1 | + a tree | the share, or `BAD_NETWORK_NAME` |
//! | + a tree | CREATE … | + an open file | |
//! | any | LOGOFF, TREE_DISCONNECT, CLOSE | – what it names, with all beneath it | |
//!
//! Requests are handled one after the other, in the order in which they come; the one that may take longer is a LOCK that waits, which is answered with
//! `PENDING` at once, and tried again whenever something has happened and every [`RETRY`]. In a compound no lock waits.
//!
//! A request is answered with a signature if it has one, and refused if its signature is wrong, or if it has none and the client said that it signs. What is
//! nonsense in a request ends the request; what is nonsense in a header ends the connection.
//!
//! Not here: encryption, SMB 1 and 2.x, leases and oplocks (nothing may be cached without asking, so what the host changes is seen), durable handles, share
//! modes (as between programs of the host), several channels, change notification, extended attributes, streams.

mod control;
mod create;
mod data;
mod info;
mod listing;
mod logon;
mod security;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::Server;
use crate::auth::Challenge;
use crate::crypto::{Preauth, SigningKey};
use crate::name::SharePath;
use crate::share::{Facts, Share};
use crate::status::Status;
use crate::wire::bytes::{Put, len32, pad, patch};
use crate::wire::header::{AT_NEXT, Command, FLAG_SIGNED, HEADER, Header, Response};
use crate::wire::request::{FileId, Request};

use data::{Locks, WaitingLock};
use listing::Listing;
use logon::Stage;

/// Most bytes of one read, write or list. Linux's client asks for 4 MiB at most by itself.
pub const MAX_IO: u32 = 4 << 20;

/// Longest message that is taken: the longest write, and room for what stands before it.
pub const MAX_MESSAGE: usize = (MAX_IO as usize) + (64 << 10);

/// How long a lock waits before it is tried again.
pub const RETRY: Duration = Duration::from_millis(50);

/// Most sessions of a connection; each user of a guest has one.
const MOST_SESSIONS: usize = 16;
/// Most trees of a connection.
const MOST_TREES: usize = 256;
/// Most open files of a connection; below what [`cofferdam_sys::process::raise_descriptor_limit`] brings on usual hosts.
pub(crate) const MOST_OPEN: usize = 16_384;
/// Most locks that wait.
const MOST_WAITING: usize = 64;
/// Most requests in one compound; Linux sends up to seven.
const MOST_CHAINED: usize = 16;
/// Most credits that a client has: enough for several requests of [`MAX_IO`], which takes 64, at once.
const MOST_CREDITS: u32 = 512;
/// Wrong passwords after which the connection ends.
const MOST_FAILED_LOGONS: u8 = 8;

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("what came is no request of SMB 3")]
    NoRequest,
    #[error("a request came before those that must come first")]
    OutOfOrder,
    #[error("more requests than the client has credits for")]
    OutOfCredits,
    #[error("no dialect in common: this server has 3.1.1 and 3.0.2")]
    NoDialect,
    #[error("too many wrong passwords")]
    Logons,
}

/// A session of a user of the guest.
#[derive(Debug)]
struct Session {
    state: SessionState,
}

#[derive(Debug)]
enum SessionState {
    LoggingOn { challenge: Challenge, preauth: Preauth },
    LoggedOn { key: SigningKey, must_sign: bool },
}

/// A share as a session uses it.
#[derive(Debug)]
struct Tree {
    session: u64,
    /// None for `IPC$`, where there is nothing.
    share: Option<Arc<Share>>,
}

/// An open file.
#[derive(Debug)]
struct Open {
    session: u64,
    tree: u32,
    share: Arc<Share>,
    path: SharePath,
    /// Open for what `can` says, or as a path alone.
    file: OwnedFd,
    facts: Facts,
    can: Can,
    delete_on_close: bool,
    write_through: bool,
    /// Made by this very request, and so possibly about to become a link.
    is_new: bool,
    listing: Option<Listing>,
    /// Open for writing for locks alone, where the file is not.
    lock_file: Option<OwnedFd>,
    locks: Locks,
}

/// What may be done with an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "rights are independent of each other")]
struct Can {
    read: bool,
    write: bool,
    delete: bool,
    set_attributes: bool,
    set_security: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Connection<'s> {
    server: &'s Server,
    stage: Stage,
    sessions: BTreeMap<u64, Session>,
    trees: BTreeMap<u32, Tree>,
    opens: BTreeMap<u64, Open>,
    waiting: Vec<WaitingLock>,
    /// How many ranges all open files have locked.
    locks: Rc<Cell<usize>>,
    credits: u32,
    last_number: u64,
    failed_logons: u8,
}

/// Why a request has no answer of its own form.
#[derive(Debug)]
enum Failure {
    Status(Status),
    /// The path ends at a symbolic link to here.
    Symlink(String),
    /// It is answered later.
    Waits(u64),
    /// There is no answer at all.
    Silent,
    Over(Ended),
}

impl<T: Into<Status>> From<T> for Failure {
    fn from(status: T) -> Failure {
        Failure::Status(status.into())
    }
}

/// What requests of one compound tell each other.
#[derive(Debug, Default)]
struct Chain {
    session: u64,
    tree: u32,
    file: Option<u64>,
    failed: Option<Status>,
    is_compound: bool,
}

/// A request with what its header says, and what it stands in.
struct Ask<'a> {
    header: &'a Header,
    message: &'a [u8],
    session: u64,
    tree: u32,
}

impl<'s> Connection<'s> {
    #[must_use]
    pub fn new(server: &'s Server) -> Self {
        Self {
            server,
            stage: Stage::Fresh,
            sessions: BTreeMap::new(),
            trees: BTreeMap::new(),
            opens: BTreeMap::new(),
            waiting: Vec::new(),
            locks: Rc::default(),
            // Enough to begin with.
            credits: 1,
            last_number: 0,
            failed_logons: 0,
        }
    }

    /// Whether somebody has logged on.
    #[must_use]
    pub fn is_logged_on(&self) -> bool {
        self.sessions.values().any(|session| matches!(session.state, SessionState::LoggedOn { .. }))
    }

    /// Whether [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Handles one message, and puts what is to be sent to `out`, with the four bytes of length before each message.
    ///
    /// # Errors
    /// The connection is over. What is in `out` can still be sent.
    pub fn handle_message(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), Ended> {
        let start = begin_frame(out);
        let result = self.handle_chain(message, out);
        end_frame(out, start);
        self.retry_locks(out);
        result
    }

    fn handle_chain(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), Ended> {
        let mut chain = Chain::default();
        let mut rest = message;
        for _ in 0..MOST_CHAINED {
            let header = Header::parse(rest).ok_or(Ended::NoRequest)?;
            let next = usize::try_from(header.next).unwrap_or(usize::MAX);
            if next == 0 {
                return self.handle_request(&header, rest, false, &mut chain, out);
            }
            chain.is_compound = true;
            if next < HEADER || next % 8 != 0 {
                return Err(Ended::NoRequest);
            }
            let (this, after) = rest.split_at_checked(next).ok_or(Ended::NoRequest)?;
            self.handle_request(&header, this, true, &mut chain, out)?;
            rest = after;
        }
        Err(Ended::NoRequest)
    }

    /// Tries again what waits.
    pub fn handle_timeout(&mut self, out: &mut Vec<u8>) {
        self.retry_locks(out);
    }

    /// Handles one request, and puts its response at the end of `out`.
    fn handle_request(
        &mut self,
        header: &Header,
        message: &[u8],
        is_followed: bool,
        chain: &mut Chain,
        out: &mut Vec<u8>,
    ) -> Result<(), Ended> {
        self.stage.check_first(header)?;
        let ask = Ask {
            header,
            message,
            session: if header.is_related() { chain.session } else { header.session },
            tree: if header.is_related() { chain.tree } else { header.tree },
        };
        if !header.is_related() {
            chain.file = None;
            chain.failed = None;
        }
        let granted = self.take_credits(header)?;
        let start = out.len();
        let mut response = Response {
            status: Status::SUCCESS,
            credits: granted,
            session: ask.session,
            tree: ask.tree,
            async_id: None,
        };
        out.resize(start + HEADER, 0);
        let key = self.check_signature(&ask);
        let result = match &key {
            Ok(_) => self.answer(&ask, chain, &mut response, out),
            Err(status) => Err(Failure::Status(*status)),
        };
        response.status = match result {
            Ok(status) => status,
            Err(failure) => {
                out.truncate(start + HEADER);
                match failure {
                    Failure::Status(_) => error_body(out),
                    Failure::Symlink(ref target) => self.stage.symlink_body(target, out),
                    Failure::Waits(id) => {
                        response.async_id = Some(id);
                        error_body(out);
                    }
                    Failure::Silent => {
                        out.truncate(start);
                        return Ok(());
                    }
                    Failure::Over(ended) => {
                        out.truncate(start);
                        return Err(ended);
                    }
                }
                failure.status()
            }
        };
        chain.session = response.session;
        chain.tree = response.tree;
        if header.command() == Some(Command::Create) && response.status != Status::SUCCESS {
            chain.failed = Some(response.status);
        }
        if is_followed {
            pad(out, start, 8);
        }
        self.finish(&ask, &response, key.ok().flatten(), is_followed, start, out);
        Ok(())
    }

    /// Writes the header, and what depends on the whole message.
    fn finish(
        &mut self,
        ask: &Ask<'_>,
        response: &Response,
        key: Option<SigningKey>,
        is_followed: bool,
        start: usize,
        out: &mut [u8],
    ) {
        let mut head = Vec::with_capacity(HEADER);
        response.emit(ask.header, &mut head);
        if is_followed {
            let len = len32(out.len().saturating_sub(start));
            patch(&mut head, AT_NEXT, &len.to_le_bytes());
        }
        patch(out, start, &head);
        let key = key.or_else(|| self.key_of_new_session(ask, response));
        if let (Some(key), Some(message)) = (key, out.get_mut(start..)) {
            sign(&key, message);
        }
        self.remember_preauth(ask, response, out.get(start..).unwrap_or_default());
    }

    /// The key to answer with, if the request is signed; an error if it should be, or is signed wrongly.
    fn check_signature(&self, ask: &Ask<'_>) -> Result<Option<SigningKey>, Status> {
        let Some(Session { state: SessionState::LoggedOn { key, must_sign } }) = self.sessions.get(&ask.session) else {
            return Ok(None);
        };
        // MS-SMB2 3.3.5.7: in 3.1.1 the signature of the first request of a tree is what binds the negotiation.
        let is_binding = ask.header.command() == Some(Command::TreeConnect) && self.stage.is_311();
        match ask.header.is_signed() {
            true if key.verify(ask.message) => Ok(Some(key.clone())),
            // Nobody waits for the answer to a cancellation, and Linux signs those that it has signed before, and no others.
            false if !*must_sign && !is_binding || ask.header.command() == Some(Command::Cancel) => Ok(None),
            _ => Err(Status::ACCESS_DENIED),
        }
    }

    /// Counts what a request costs, and says how much its response gives.
    fn take_credits(&mut self, header: &Header) -> Result<u16, Ended> {
        // A cancellation costs nothing, and is not answered.
        if header.command() == Some(Command::Cancel) {
            return Ok(0);
        }
        let charge = u32::from(header.credit_charge.max(1));
        self.credits = self.credits.checked_sub(charge).ok_or(Ended::OutOfCredits)?;
        let wanted = u32::from(header.credits).max(1);
        // At least one, or the client could say nothing more.
        let granted = wanted.min(MOST_CREDITS.saturating_sub(self.credits)).max(1);
        self.credits += granted;
        Ok(u16::try_from(granted).unwrap_or(u16::MAX))
    }

    fn answer(
        &mut self,
        ask: &Ask<'_>,
        chain: &mut Chain,
        response: &mut Response,
        out: &mut Vec<u8>,
    ) -> Result<Status, Failure> {
        let request = Request::parse(ask.header.command, ask.message).map_err(|_| Status::INVALID_PARAMETER)?;
        let charged = usize::from(ask.header.credit_charge.max(1)).saturating_mul(64 << 10);
        // Beside what it sends or asks for, a request may have a head of its own in each credit.
        if request.payload() > charged && ask.header.command() != Some(Command::Negotiate) {
            return Err(Status::INVALID_PARAMETER.into());
        }
        if let Request::Negotiate(negotiate) = &request {
            return self.negotiate(negotiate, ask, out);
        }
        if let Request::SessionSetup { flags, security_mode, token } = &request {
            return self.session_setup(*flags, *security_mode, token, ask, response, out);
        }
        if let Request::Echo = request {
            return nothing(out);
        }
        if let Request::Cancel = request {
            return self.cancel(ask);
        }
        let Some(Session { state: SessionState::LoggedOn { .. } }) = self.sessions.get(&ask.session) else {
            return Err(Status::USER_SESSION_DELETED.into());
        };
        if let Request::Logoff = request {
            return self.logoff(ask.session, out);
        }
        if let Request::TreeConnect { path } = request {
            return self.tree_connect(path, ask, response, out);
        }
        let tree = self.trees.get(&ask.tree).filter(|tree| tree.session == ask.session);
        let tree = tree.ok_or(Status::NETWORK_NAME_DELETED)?;
        if let Request::TreeDisconnect = request {
            return self.tree_disconnect(ask.tree, out);
        }
        if let Request::Ioctl(ioctl) = &request {
            return self.ioctl(ioctl, ask, chain, out);
        }
        let share = Arc::clone(tree.share.as_ref().ok_or(Status::ACCESS_DENIED)?);
        if let Request::Close { file, flags } = request {
            // Of a share that is gone, too.
            let id = self.file_of(file, ask, chain)?;
            return self.close(id, flags, out);
        }
        share.check()?;
        match request {
            Request::Create(create) => self.create(&create, share, ask, chain, out),
            Request::Flush { file } => self.flush(self.file_of(file, ask, chain)?, out),
            Request::Read { file, length, offset, minimum } => {
                self.read(self.file_of(file, ask, chain)?, length, offset, minimum, out)
            }
            Request::Write { file, offset, flags, data } => {
                self.write(self.file_of(file, ask, chain)?, offset, flags, data, out)
            }
            Request::Lock { file, locks } => {
                let id = self.file_of(file, ask, chain)?;
                self.lock(id, &locks, ask, chain.is_compound, out)
            }
            Request::QueryDirectory(query) => {
                let id = self.file_of(query.file, ask, chain)?;
                self.query_directory(id, &query, out)
            }
            Request::QueryInfo(query) => {
                let id = self.file_of(query.file, ask, chain)?;
                self.query_info(id, &query, out)
            }
            Request::SetInfo { kind, class, file, data } => {
                let id = self.file_of(file, ask, chain)?;
                self.set_info(id, kind, class, data, out)
            }
            // Clients then look for themselves.
            Request::ChangeNotify => Err(Status::NOT_SUPPORTED.into()),
            // There are no oplocks to break.
            Request::OplockBreak => Err(Status::INVALID_PARAMETER.into()),
            Request::Negotiate(_)
            | Request::SessionSetup { .. }
            | Request::Logoff
            | Request::TreeConnect { .. }
            | Request::TreeDisconnect
            | Request::Close { .. }
            | Request::Ioctl(_)
            | Request::Cancel
            | Request::Echo => Err(Status::INVALID_PARAMETER.into()),
        }
    }

    /// The open file that a request names, which has to be of its session and tree.
    fn file_of(&self, file: FileId, ask: &Ask<'_>, chain: &Chain) -> Result<u64, Status> {
        let id = match (file, ask.header.is_related()) {
            (FileId::PREVIOUS, true) => match (chain.file, chain.failed) {
                (_, Some(status)) => return Err(status),
                (Some(id), None) => id,
                (None, None) => return Err(Status::FILE_CLOSED),
            },
            (FileId(id), _) => id,
        };
        match self.opens.get(&id) {
            Some(open) if open.session == ask.session && open.tree == ask.tree => Ok(id),
            _ => Err(Status::FILE_CLOSED),
        }
    }

    fn open_mut(&mut self, id: u64) -> Result<&mut Open, Status> {
        self.opens.get_mut(&id).ok_or(Status::FILE_CLOSED)
    }

    /// A number that was not given before.
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

impl Failure {
    fn status(&self) -> Status {
        match self {
            Failure::Status(status) => *status,
            Failure::Symlink(_) => Status::STOPPED_ON_SYMLINK,
            Failure::Waits(_) | Failure::Silent | Failure::Over(_) => Status::PENDING,
        }
    }
}

/// The body of LOGOFF, TREE_DISCONNECT, ECHO, FLUSH and LOCK.
fn nothing(out: &mut Vec<u8>) -> Result<Status, Failure> {
    out.u16(4);
    out.u16(0);
    Ok(Status::SUCCESS)
}

fn error_body(out: &mut Vec<u8>) {
    out.u16(9);
    out.u16(0);
    out.u32(0);
    out.u8(0);
}

fn sign(key: &SigningKey, message: &mut [u8]) {
    const AT_FLAGS: usize = 16;
    if let Some(flags) = message.get_mut(AT_FLAGS) {
        *flags |= u8::try_from(FLAG_SIGNED).unwrap_or_default();
    }
    key.sign(message);
}

fn begin_frame(out: &mut Vec<u8>) -> usize {
    out.put(&[0; 4]);
    out.len()
}

/// Writes the length before what came after `start`, or takes an empty frame back.
fn end_frame(out: &mut Vec<u8>, start: usize) {
    let len = out.len().saturating_sub(start);
    if len == 0 {
        out.truncate(start.saturating_sub(4));
    } else {
        patch(out, start.saturating_sub(4), &len32(len).to_be_bytes());
    }
}
