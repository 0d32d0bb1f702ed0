//! Who may use the server: whoever knows the password of this boot.
//!
//! NTLMv2 (MS-NLMP), bare or within SPNEGO (RFC 4178), because it is what a mount in Linux uses by itself with a user name and a password. The password is
//! random and lives as long as the machine, so that what is weak about NTLM, guessing a human's password from a recording, does not apply; it keeps plain users
//! of the guest from connecting with the rights of its root. Any user name will do. Nothing is exchanged for a session key of the client's own choice
//! (`KEY_EXCH`), which would take RC4.

mod ntlm;
mod spnego;

use std::fmt;

use crate::status::Status;

pub(crate) use spnego::hint;

/// The password of a server. Shows nothing of itself, and leaves nothing behind.
#[derive(Clone)]
pub struct Password(String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Password {
    /// `None` for a text that is empty, longer than 128 characters, or has other than graphic ASCII, which mount options could not carry.
    #[must_use]
    pub fn new(text: &str) -> Option<Password> {
        let fits = (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Password(text.to_owned()))
    }

    /// Of bits that the caller drew.
    #[must_use]
    pub fn of_bits(bits: [u8; 16]) -> Password {
        Password(format!("{:032x}", u128::from_be_bytes(bits)))
    }

    /// As a client logs on with it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl Drop for Password {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0).into_bytes();
        bytes.fill(0);
        // Keeps the compiler from leaving out what nobody reads.
        std::hint::black_box(&bytes);
    }
}

/// The key of a session, from which those that sign are made.
pub(crate) type SessionKey = [u8; 16];

/// A login under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Challenge([u8; 8]);

/// What a token of a client leads to.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send this token, and wait for the next.
    Continue(Challenge, Vec<u8>),
    /// Send this token, if it is not empty: the client knows the password.
    Done(SessionKey, Vec<u8>),
}

/// Handles the next token of a client. `random` becomes the challenge, if one is made.
pub(crate) fn step(
    password: &Password,
    challenge: Option<Challenge>,
    random: [u8; 8],
    token: &[u8],
) -> Result<Step, Status> {
    let (wrapped, message) = spnego::unwrap(token).ok_or(Status::INVALID_PARAMETER)?;
    match (challenge, ntlm::parse(message).ok_or(Status::INVALID_PARAMETER)?) {
        (None, ntlm::Message::Negotiate { flags }) => {
            let answer = ntlm::challenge(flags, random);
            Ok(Step::Continue(Challenge(random), if wrapped { spnego::wrap_challenge(&answer) } else { answer }))
        }
        (Some(Challenge(sent)), ntlm::Message::Authenticate(answer)) => {
            let key = ntlm::verify(&password.0, sent, &answer).ok_or(Status::LOGON_FAILURE)?;
            Ok(Step::Done(key, if wrapped { spnego::accepted() } else { Vec::new() }))
        }
        _ => Err(Status::INVALID_PARAMETER),
    }
}
