use std::fmt;

use cofferdam_model::DomainName;

/// A name in wire form: labels with their lengths, the root last, never compressed, at most 255 bytes. Keeps its case.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Name(pub(super) Vec<u8>);

impl Name {
    /// The name with no labels.
    pub(crate) fn root() -> Name {
        Name(vec![0])
    }

    /// The wire form of `domain`.
    pub(crate) fn from_domain(domain: &DomainName) -> Name {
        let mut bytes = Vec::with_capacity(domain.as_str().len() + 2);
        for label in domain.labels() {
            // A `DomainName` has labels of at most 63 bytes.
            bytes.push(u8::try_from(label.len()).unwrap_or(0));
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        Name(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// Whether DNS takes both for the same name. Length bytes are below 64 and so no letters.
    pub(crate) fn same(&self, other: &Name) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }

    /// Whether this name is `ancestor` or below it.
    pub(crate) fn is_within(&self, ancestor: &Name) -> bool {
        self.suffixes().any(|suffix| suffix.eq_ignore_ascii_case(&ancestor.0))
    }

    pub(crate) fn to_lowercase(&self) -> Name {
        Name(self.0.to_ascii_lowercase())
    }

    /// The name as policies write it; `None` for the root and for names with other bytes than letters, digits, `-` and
    /// `_`, which no rule can speak of.
    pub(crate) fn to_domain(&self) -> Option<DomainName> {
        let mut text = String::with_capacity(self.0.len());
        for label in self.labels() {
            if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
                return None;
            }
            if !text.is_empty() {
                text.push('.');
            }
            text.extend(label.iter().map(|byte| char::from(*byte)));
        }
        text.parse().ok()
    }

    pub(crate) fn labels(&self) -> impl Iterator<Item = &[u8]> {
        self.suffixes().filter_map(|suffix| {
            let (length, rest) = suffix.split_first()?;
            rest.get(..usize::from(*length)).filter(|label| !label.is_empty())
        })
    }

    /// The wire forms of the name itself, its parent, and so on up to the root.
    pub(super) fn suffixes(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Some(self.0.as_slice());
        std::iter::from_fn(move || {
            let suffix = rest?;
            let length = suffix.first().copied().unwrap_or(0);
            rest = if length == 0 { None } else { suffix.get(usize::from(length) + 1..) };
            Some(suffix)
        })
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        Ok(())
    }
}
