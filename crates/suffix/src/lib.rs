//! Whether a name is a public suffix, and what stands right below one, by Mozilla's list.
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

/// The part of `name` (lower case A-labels, no trailing dot) that somebody registered: one label below a public suffix.
#[must_use]
#[inline(never)]
pub fn registrable_domain(name: &str) -> Option<&str> {
    psl::domain_str(name)
}

#[cfg(test)]
mod tests {
    use super::{is_public_suffix, registrable_domain};

    #[test]
    fn finds_what_somebody_registered() {
        for (name, domain) in [
            ("www.example.com", Some("example.com")),
            ("a.b.example.co.uk", Some("example.co.uk")),
            ("x.a.github.io", Some("a.github.io")),
            ("example.com", Some("example.com")),
            ("db.corp", Some("db.corp")),
            ("github.io", None),
            ("com", None),
        ] {
            assert_eq!(registrable_domain(name), domain, "{name}");
        }
    }

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
