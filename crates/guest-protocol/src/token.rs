//! What the two sides of one boot know and nobody else.

use std::fmt;

/// A secret of one boot.
#[derive(Clone)]
pub struct Token([u8; Token::LENGTH]);

impl Token {
    pub const LENGTH: usize = 32;

    /// A token of bytes that the caller drew.
    #[must_use]
    pub fn new(bytes: [u8; Token::LENGTH]) -> Token {
        Token(bytes)
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8; Token::LENGTH] {
        &self.0
    }
}

/// In a time that does not depend on where two tokens differ.
impl PartialEq for Token {
    fn eq(&self, other: &Token) -> bool {
        self.0.iter().zip(&other.0).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from leaving out what nobody reads.
        std::hint::black_box(&self.0);
    }
}
