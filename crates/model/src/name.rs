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
            // Not the strict form: it refuses the underscore. Which characters may stand is checked below for all names.
            idna::domain_to_ascii(text).map_err(|_| NameError::Idna)?
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_dns_treats_as_equal_are_equal() {
        let pairs = [
            ("Example.ORG.", "example.org"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "bücher.example"),
            ("_dmarc.bücher.example", "_dmarc.xn--bcher-kva.example"),
            ("ｅxample.org", "example.org"),
        ];
        for (one, other) in pairs {
            assert_eq!(one.parse::<DomainName>().unwrap(), other.parse().unwrap(), "{one}");
        }
        let name: DomainName = "a.b.c".parse().unwrap();
        assert_eq!(name.labels().rev().collect::<Vec<_>>(), ["c", "b", "a"]);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let label = "x".repeat(64);
        let long = format!("{}.example", "x.".repeat(124));
        let texts =
            ["", ".", "..", ".a", "a..b", "a b", "a/b", "a@b", "*.a", "a:1", "a\u{0}b", "é\u{200d}!", &label, &long];
        for text in texts {
            assert!(text.parse::<DomainName>().is_err(), "{text:?}");
        }
        assert_eq!("x".repeat(63).parse::<DomainName>().unwrap().as_str().len(), 63);
    }
}
