//! From the first message to a share: NEGOTIATE, SESSION_SETUP, TREE_CONNECT, and their ends.

use std::sync::Arc;

use super::{
    Ask, Connection, Ended, Failure, MAX_IO, MOST_FAILED_LOGONS, MOST_SESSIONS, MOST_TREES, Session, SessionState,
    Tree, nothing,
};
use crate::auth::{self, Step};
use crate::crypto::{Preauth, SigningKey};
use crate::share::ShareAccess;
use crate::status::Status;
use crate::wire::bytes::{Put, len16, len32, pad, text};
use crate::wire::header::{Command, HEADER, Header, Response};
use crate::wire::request::{Ioctl, Negotiate};

const SMB_311: u16 = 0x0311;
const SMB_302: u16 = 0x0302;

const SIGNING_ENABLED: u16 = 1;
const SIGNING_REQUIRED: u16 = 2;
/// `SMB2_GLOBAL_CAP_LARGE_MTU`: requests of more than 64 KiB.
const LARGE_MTU: u32 = 4;

const PREAUTH_INTEGRITY: u16 = 1;
const SIGNING: u16 = 8;
const POSIX: u16 = 0x100;
const SHA_512: u16 = 1;
const AES_CMAC: u16 = 1;

/// What asks for, and promises, the POSIX extensions; as a context's name, for one file.
pub(super) const POSIX_TAG: [u8; 16] =
    [0x93, 0xad, 0x25, 0x50, 0x9c, 0xb4, 0x11, 0xe7, 0xb4, 0x23, 0x83, 0xde, 0x96, 0x8b, 0xcd, 0x7c];

/// What the connection as a whole has agreed on.
#[derive(Debug)]
pub(super) enum Stage {
    Fresh,
    V302 { asked: Asked },
    V311 { preauth: Preauth },
}

/// What the client offered, which it has confirmed later in 3.0.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    security_mode: u16,
    capabilities: u32,
    client: [u8; 16],
    dialects: Vec<u16>,
}

impl Stage {
    pub(super) fn is_311(&self) -> bool {
        matches!(self, Stage::V311 { .. })
    }

    /// NEGOTIATE comes first, and once.
    pub(super) fn check_first(&self, header: &Header) -> Result<(), Ended> {
        let is_fresh = matches!(self, Stage::Fresh);
        if is_fresh == (header.command() == Some(Command::Negotiate)) { Ok(()) } else { Err(Ended::OutOfOrder) }
    }

    /// The body of the error that a path ends at a link, MS-SMB2 2.2.2.2.1.
    pub(super) fn symlink_body(&self, target: &str, out: &mut Vec<u8>) {
        const SYMLINK_ERROR: u32 = 0x4c4d_5953;
        let reparse = super::control::symlink_reparse_data(target);
        let mut data = Vec::new();
        data.u32(len32(reparse.len() + 4));
        data.u32(SYMLINK_ERROR);
        // Tag and length, and then in place of the reserved field how much of the path was left: nothing.
        data.put(&reparse);
        out.u16(9);
        match self {
            Stage::V311 { .. } => {
                out.u8(1);
                out.u8(0);
                out.u32(len32(data.len() + 8));
                out.u32(len32(data.len()));
                out.u32(0);
            }
            Stage::V302 { .. } | Stage::Fresh => {
                out.u16(0);
                out.u32(len32(data.len()));
            }
        }
        out.put(&data);
    }
}

impl Connection<'_> {
    pub(super) fn negotiate(
        &mut self,
        asked: &Negotiate<'_>,
        ask: &Ask<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Status, Failure> {
        let has = |kind| asked.contexts.iter().find(|(found, _)| *found == kind).map(|(_, data)| *data);
        let dialect = if asked.dialects.contains(&SMB_311) && has(PREAUTH_INTEGRITY).is_some() {
            SMB_311
        } else if asked.dialects.contains(&SMB_302) {
            SMB_302
        } else {
            return Err(Failure::Over(Ended::NoDialect));
        };
        let mut contexts = Vec::new();
        if dialect == SMB_311 {
            let mut preauth = Vec::new();
            preauth.u16(1);
            preauth.u16(32);
            preauth.u16(SHA_512);
            preauth.put(&self.server.random::<32>()?);
            contexts.push((PREAUTH_INTEGRITY, preauth));
            let offers_cmac =
                |data: &[u8]| data.get(2..).is_some_and(|list| list.as_chunks().0.contains(&AES_CMAC.to_le_bytes()));
            if has(SIGNING).is_some_and(offers_cmac) {
                contexts.push((SIGNING, [1_u16.to_le_bytes(), AES_CMAC.to_le_bytes()].concat()));
            }
            if has(POSIX).is_some() {
                contexts.push((POSIX, POSIX_TAG.to_vec()));
            }
        }
        self.negotiated(dialect, &contexts, out);
        self.stage = if dialect == SMB_311 {
            Stage::V311 { preauth: Preauth::START.with(ask.message) }
        } else {
            let (security_mode, capabilities, client) = (asked.security_mode, asked.capabilities, asked.client);
            Stage::V302 { asked: Asked { security_mode, capabilities, client, dialects: asked.dialects.clone() } }
        };
        Ok(Status::SUCCESS)
    }

    /// The body of the answer to NEGOTIATE.
    fn negotiated(&self, dialect: u16, contexts: &[(u16, Vec<u8>)], out: &mut Vec<u8>) {
        const HEAD: usize = HEADER + 64;
        let start = out.len() - HEADER;
        let hint = auth::hint();
        out.u16(65);
        out.u16(SIGNING_ENABLED);
        out.u16(dialect);
        out.u16(len16(contexts.len()));
        out.put(&self.server.guid);
        out.u32(LARGE_MTU);
        // Transactions, reads and writes.
        for _ in 0..3 {
            out.u32(MAX_IO);
        }
        out.u64(self.server.now().0);
        out.u64(0);
        out.u16(len16(HEAD));
        out.u16(len16(hint.len()));
        let contexts_at = (HEAD + hint.len()).next_multiple_of(8);
        out.u32(if contexts.is_empty() { 0 } else { len32(contexts_at) });
        out.put(&hint);
        for (kind, data) in contexts {
            pad(out, start, 8);
            out.u16(*kind);
            out.u16(len16(data.len()));
            out.u32(0);
            out.put(data);
        }
    }

    pub(super) fn session_setup(
        &mut self,
        flags: u8,
        security_mode: u8,
        token: &[u8],
        ask: &Ask<'_>,
        response: &mut Response,
        out: &mut Vec<u8>,
    ) -> Result<Status, Failure> {
        const BINDING: u8 = 1;
        if flags & BINDING != 0 {
            return Err(Status::REQUEST_NOT_ACCEPTED.into());
        }
        let (challenge, before) = match self.sessions.get(&ask.session).map(|session| &session.state) {
            Some(SessionState::LoggingOn { challenge, preauth }) => (Some(*challenge), Some(*preauth)),
            // A session that is logged on stays as it is.
            Some(SessionState::LoggedOn { .. }) => return Err(Status::REQUEST_NOT_ACCEPTED.into()),
            None if ask.session != 0 => return Err(Status::USER_SESSION_DELETED.into()),
            None if self.sessions.len() >= MOST_SESSIONS => return Err(Status::INSUFFICIENT_RESOURCES.into()),
            None => (None, None),
        };
        let preauth = match &self.stage {
            Stage::V311 { preauth } => Some(before.unwrap_or(*preauth).with(ask.message)),
            Stage::V302 { .. } | Stage::Fresh => None,
        };
        let step = match auth::step(&self.server.password, challenge, self.server.random()?, token) {
            Ok(step) => step,
            Err(status) => return Err(self.fail_logon(ask.session, status)),
        };
        let (status, token) = match step {
            Step::Continue(challenge, token) => {
                response.session = u64::from_le_bytes(self.server.random()?).max(1);
                let state = SessionState::LoggingOn { challenge, preauth: preauth.unwrap_or(Preauth::START) };
                self.sessions.insert(response.session, Session { state });
                (Status::MORE_PROCESSING_REQUIRED, token)
            }
            Step::Done(key, token) => {
                let key = SigningKey::derive(&key, preauth.as_ref()).ok_or(Status::INSUFFICIENT_RESOURCES)?;
                let must_sign = u16::from(security_mode) & SIGNING_REQUIRED != 0;
                self.sessions.insert(ask.session, Session { state: SessionState::LoggedOn { key, must_sign } });
                (Status::SUCCESS, token)
            }
        };
        out.u16(9);
        out.u16(0);
        out.u16(len16(HEADER + 8));
        out.u16(len16(token.len()));
        out.put(&token);
        Ok(status)
    }

    fn fail_logon(&mut self, session: u64, status: Status) -> Failure {
        self.sessions.remove(&session);
        self.failed_logons = self.failed_logons.saturating_add(1);
        if self.failed_logons >= MOST_FAILED_LOGONS { Failure::Over(Ended::Logons) } else { status.into() }
    }

    /// The last answer of a logon is signed with the key that it makes.
    pub(super) fn key_of_new_session(&self, ask: &Ask<'_>, response: &Response) -> Option<SigningKey> {
        let is_last = ask.header.command() == Some(Command::SessionSetup) && response.status == Status::SUCCESS;
        match &self.sessions.get(&ask.session).filter(|_| is_last)?.state {
            SessionState::LoggedOn { key, .. } => Some(key.clone()),
            SessionState::LoggingOn { .. } => None,
        }
    }

    /// Our answers count as well in what the key of a session is bound to, but for the last one.
    pub(super) fn remember_preauth(&mut self, ask: &Ask<'_>, response: &Response, answer: &[u8]) {
        let Stage::V311 { preauth } = &mut self.stage else { return };
        match ask.header.command() {
            Some(Command::Negotiate) => *preauth = preauth.with(answer),
            Some(Command::SessionSetup) if response.status == Status::MORE_PROCESSING_REQUIRED => {
                let session = self.sessions.get_mut(&response.session);
                if let Some(Session { state: SessionState::LoggingOn { preauth, .. } }) = session {
                    *preauth = preauth.with(answer);
                }
            }
            _ => {}
        }
    }

    pub(super) fn logoff(&mut self, session: u64, out: &mut Vec<u8>) -> Result<Status, Failure> {
        self.sessions.remove(&session);
        let trees: Vec<u32> =
            self.trees.iter().filter(|(_, tree)| tree.session == session).map(|(id, _)| *id).collect();
        for tree in trees {
            self.end_tree(tree);
        }
        nothing(out)
    }

    pub(super) fn tree_connect(
        &mut self,
        path: &[u8],
        ask: &Ask<'_>,
        response: &mut Response,
        out: &mut Vec<u8>,
    ) -> Result<Status, Failure> {
        const DISK: u8 = 1;
        const PIPE: u8 = 2;
        const NO_CACHING: u32 = 0x30;
        let path = text(path).ok_or(Status::INVALID_PARAMETER)?;
        // `\\server\share`, and nothing after it.
        let name = path.strip_prefix("\\\\").and_then(|path| path.split_once('\\')).map(|(_, name)| name);
        let name = name.filter(|name| !name.contains('\\')).ok_or(Status::BAD_NETWORK_NAME)?;
        if self.trees.len() >= MOST_TREES {
            return Err(Status::INSUFFICIENT_RESOURCES.into());
        }
        let share = match self.server.shares.find(name) {
            Some(share) => Some(share),
            // Clients look here for other things, and log it if it is not there. Nothing can be opened in it.
            None if name.eq_ignore_ascii_case("IPC$") => None,
            None => return Err(Status::BAD_NETWORK_NAME.into()),
        };
        let id = u32::try_from(self.next_number()).map_err(|_| Status::INSUFFICIENT_RESOURCES)?;
        response.tree = id;
        out.u16(16);
        out.u8(if share.is_some() { DISK } else { PIPE });
        out.u8(0);
        out.u32(NO_CACHING);
        out.u32(0);
        out.u32(match share.as_deref().map(crate::share::Share::access) {
            Some(ShareAccess::ReadWrite) => super::create::ALL_ACCESS,
            Some(ShareAccess::ReadOnly) | None => super::create::READ_ACCESS,
        });
        self.trees.insert(id, Tree { session: ask.session, share: share.map(|share| Arc::clone(&share)) });
        Ok(Status::SUCCESS)
    }

    pub(super) fn tree_disconnect(&mut self, tree: u32, out: &mut Vec<u8>) -> Result<Status, Failure> {
        self.end_tree(tree);
        nothing(out)
    }

    fn end_tree(&mut self, tree: u32) {
        self.trees.remove(&tree);
        let opens: Vec<u64> = self.opens.iter().filter(|(_, open)| open.tree == tree).map(|(id, _)| *id).collect();
        for id in opens {
            self.end_open(id);
        }
    }

    /// `FSCTL_VALIDATE_NEGOTIATE_INFO`: the client says again, signed, what it said first. Only before 3.1.1.
    pub(super) fn validate_negotiate(&self, ioctl: &Ioctl<'_>) -> Result<Vec<u8>, Failure> {
        // What is not as it was said was changed on the way: MS-SMB2 3.3.5.15.12 wants the connection to end.
        let Stage::V302 { asked } = &self.stage else { return Err(Failure::Over(Ended::OutOfOrder)) };
        let mut said = Vec::new();
        said.u32(asked.capabilities);
        said.put(&asked.client);
        said.u16(asked.security_mode);
        said.u16(len16(asked.dialects.len()));
        for dialect in &asked.dialects {
            said.u16(*dialect);
        }
        if said != ioctl.input {
            return Err(Failure::Over(Ended::OutOfOrder));
        }
        let mut answer = Vec::new();
        answer.u32(LARGE_MTU);
        answer.put(&self.server.guid);
        answer.u16(SIGNING_ENABLED);
        answer.u16(SMB_302);
        Ok(answer)
    }
}
