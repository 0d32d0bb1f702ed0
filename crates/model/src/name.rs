use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A domain name in canonical form: lower case A-labels, no trailing dot, at least one label.
///
/// `Display` prints that form; two names are equal exactly when DNS would treat them as equal. A clone shares the text, so
/// that a verdict can carry the name that decided it without allocating.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(Arc<str>);

/// Why a text is not a domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the name is empty")]
    Empty,
    #[error("the name is longer than 253 characters")]
    TooLong,
    #[error("the label {label:?} is empty or longer than 63 characters")]
    Label { label: String },
    #[error("{character:?} may not stand in a name")]
    Character { character: char },
    #[error("not a valid internationalised name")]
    Idna,
}

impl DomainName {
    /// The canonical text, without a trailing dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The labels from left to right.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }
}

impl FromStr for DomainName {
    type Err = NameError;

    /// Case is folded, one trailing dot dropped, Unicode turned into A-labels (IDNA), underscore allowed.
    fn from_str(text: &str) -> Result<DomainName, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let ascii = if text.is_ascii() {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii_strict(text).map_err(|_| NameError::Idna)?
        };
        if ascii.len() > 253 {
            return Err(NameError::TooLong);
        }
        for label in ascii.split('.') {
            if label.is_empty() || label.len() > 63 {
                return Err(NameError::Label { label: label.to_owned() });
            }
            let bad = label.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')));
            if let Some(character) = bad {
                return Err(NameError::Character { character });
            }
        }
        Ok(DomainName(Arc::from(ascii)))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
