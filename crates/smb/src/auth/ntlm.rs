//! The three messages of NTLM, MS-NLMP 2.2.1, and the check of the third, 3.3.2.

use hmac::{Hmac, KeyInit, Mac};
use md4::{Digest, Md4};
use md5::Md5;

use super::SessionKey;
use crate::wire::bytes::{Put, Reader, len16, len32, part, text, utf16};

const SIGNATURE: [u8; 8] = *b"NTLMSSP\0";

/// What the server calls itself. Nobody resolves it.
const NAME: &str = "COFFERDAM";

const UNICODE: u32 = 0x1;
const REQUEST_TARGET: u32 = 0x4;
const SIGN: u32 = 0x10;
const NTLM: u32 = 0x200;
const ALWAYS_SIGN: u32 = 0x8000;
const TARGET_TYPE_SERVER: u32 = 0x2_0000;
const EXTENDED_SESSION_SECURITY: u32 = 0x8_0000;
const TARGET_INFO: u32 = 0x80_0000;
const KEY_128: u32 = 0x2000_0000;
const KEY_56: u32 = 0x8000_0000;

/// What is said whatever the client asks for, and what only if it does.
const ALWAYS: u32 = UNICODE | REQUEST_TARGET | NTLM | TARGET_TYPE_SERVER | EXTENDED_SESSION_SECURITY | TARGET_INFO;
const IF_ASKED: u32 = SIGN | ALWAYS_SIGN | KEY_128 | KEY_56;

pub(super) enum Message<'a> {
    Negotiate { flags: u32 },
    Authenticate(Answer<'a>),
}

/// What a client answers to a challenge.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    proof: [u8; 16],
    /// What the proof covers beside the challenge.
    covered: &'a [u8],
    user: String,
    domain: String,
}

pub(super) fn parse(message: &[u8]) -> Option<Message<'_>> {
    let mut fields = Reader::new(message);
    (fields.array()? == SIGNATURE).then_some(())?;
    match fields.u32()? {
        1 => Some(Message::Negotiate { flags: fields.u32()? }),
        3 => {
            let mut field = || -> Option<&[u8]> {
                let (len, _room, at) = (fields.u16()?, fields.u16()?, fields.u32()?);
                part(message, at, len)
            };
            let (_lm, response, domain, user) = (field()?, field()?, field()?, field()?);
            // Shorter ones are of NTLM before version 2, or say that nobody in particular asks.
            let (proof, covered) = response.split_first_chunk().filter(|(_, covered)| covered.len() >= 28)?;
            Some(Message::Authenticate(Answer { proof: *proof, covered, user: text(user)?, domain: text(domain)? }))
        }
        _ => None,
    }
}

pub(super) fn challenge(asked: u32, random: [u8; 8]) -> Vec<u8> {
    let name = utf16(NAME);
    let mut info = Vec::new();
    // NetBIOS and DNS names of the computer and its domain: all the same.
    for id in 1..=4_u16 {
        info.u16(id);
        info.u16(len16(name.len()));
        info.put(&name);
    }
    info.u32(0);
    const HEAD: usize = 56;
    let mut out = Vec::new();
    out.put(&SIGNATURE);
    out.u32(2);
    out.u16(len16(name.len()));
    out.u16(len16(name.len()));
    out.u32(len32(HEAD));
    out.u32(ALWAYS | asked & IF_ASKED);
    out.put(&random);
    out.u64(0);
    out.u16(len16(info.len()));
    out.u16(len16(info.len()));
    out.u32(len32(HEAD + name.len()));
    out.u64(0);
    out.put(&name);
    out.put(&info);
    out
}

/// The key of the session, if the answer was made with the password.
pub(super) fn verify(password: &str, challenge: [u8; 8], answer: &Answer<'_>) -> Option<SessionKey> {
    let hash = Md4::digest(utf16(password));
    let who = utf16(&(answer.user.to_uppercase() + &answer.domain));
    let key = hmac_md5(&hash)?.chain_update(who).finalize().into_bytes();
    let proof = hmac_md5(&key)?.chain_update(challenge).chain_update(answer.covered);
    // Takes as long for every wrong answer.
    proof.verify_slice(&answer.proof).ok()?;
    Some(hmac_md5(&key)?.chain_update(answer.proof).finalize().into_bytes().into())
}

/// Keys of any length are taken; there is no other error.
fn hmac_md5(key: &[u8]) -> Option<Hmac<Md5>> {
    Hmac::<Md5>::new_from_slice(key).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of MS-NLMP 4.2.4: user `User`, domain `Domain`, password `Password`.
    #[test]
    fn agrees_with_the_example_of_the_specification() {
        let challenge = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
        let mut covered = vec![1, 1, 0, 0, 0, 0, 0, 0];
        covered.extend([0; 8]);
        covered.extend([0xaa; 8]);
        covered.extend([0; 4]);
        for (id, name) in [(2_u16, "Domain"), (1, "Server")] {
            covered.u16(id);
            covered.u16(12);
            covered.put(&utf16(name));
        }
        covered.extend([0; 8]);
        let proof = 0x68cd_0ab8_51e5_1c96_aabc_927b_ebef_6a1c_u128.to_be_bytes();
        let mut answer = Answer { proof, covered: &covered, user: "User".to_owned(), domain: "Domain".to_owned() };
        let key = 0x8de4_0cca_dbc1_4a82_f15c_b0ad_0de9_5ca3_u128.to_be_bytes();
        assert_eq!(verify("Password", challenge, &answer), Some(key));
        assert_eq!(verify("password", challenge, &answer), None);
        assert_eq!(verify("Password", [0; 8], &answer), None);
        answer.proof[15] ^= 1;
        assert_eq!(verify("Password", challenge, &answer), None);
    }

    #[test]
    fn an_anonymous_answer_is_none() {
        let mut message = SIGNATURE.to_vec();
        message.u32(3);
        message.put(&[0; 60]);
        assert!(parse(&message).is_none());
    }
}
