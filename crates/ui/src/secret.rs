use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// Bytes of a secret: nobody guesses 256 bits.
const LEN: usize = 32;

/// Something that only one browser is told.
pub(crate) struct Secret(String);

/// The system's random source gave nothing.
#[derive(Debug, thiserror::Error)]
#[error("the system's random source gave nothing: {0}")]
pub struct NoRandom(getrandom::Error);

/// Bytes that nobody knows beforehand.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(NoRandom)?;
    Ok(bytes)
}

impl Secret {
    pub(crate) fn new() -> Result<Secret, NoRandom> {
        let mut bytes = random::<LEN>()?;
        let text = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.zeroize();
        Ok(Secret(text))
    }

    /// Whether somebody has said it; takes as long for a word that is almost right as for any other of its length.
    pub(crate) fn is(&self, said: &str) -> bool {
        self.0.as_bytes().ct_eq(said.as_bytes()).into()
    }

    /// For whom it is meant.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_itself_alone() {
        let (one, other) = (Secret::new().unwrap(), Secret::new().unwrap());
        assert_eq!(one.reveal().len(), 2 * LEN);
        assert!(one.is(one.reveal()));
        for said in [other.reveal(), "", &one.reveal()[1..], &format!("{}0", one.reveal())] {
            assert!(!one.is(said), "{said}");
        }
        assert_eq!(format!("{one:?}"), "Secret");
    }
}
