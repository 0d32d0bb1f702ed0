//! Whether a name is a public suffix, by Mozilla's list.
//!
//! A crate of its own because of how the list comes: as a hundred thousand lines of generated, generic code that is
//! compiled again wherever it is called from. Here it is compiled once, and without optimisation (root `Cargo.toml`): it is
//! asked once per rule, never per packet.

/// Whether `name` (lower case A-labels, no trailing dot) is a public suffix: a name under which anybody may register.
#[must_use]
#[inline(never)]
pub fn is_public_suffix(name: &str) -> bool {
    psl::suffix_str(name).is_some_and(|suffix| suffix == name)
}

#[cfg(test)]
mod tests {
    use super::is_public_suffix;

    #[test]
    fn knows_registries_and_hosting_platforms() {
        for name in ["com", "co.uk", "github.io", "s3.amazonaws.com"] {
            assert!(is_public_suffix(name), "{name}");
        }
        for name in ["github.com", "example.co.uk", "a.github.io", "amazonaws.com"] {
            assert!(!is_public_suffix(name), "{name}");
        }
    }
}
