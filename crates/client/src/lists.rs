//! The named lists of destinations, for allowlists and denylists.

/// The Python Package Index.
pub const PYPI_HOSTS: &str = "PYPI_HOSTS";
/// The registries of npm and Yarn.
pub const NPM_HOSTS: &str = "NPM_HOSTS";
/// The registry of Rust's crates.
pub const CRATES_HOSTS: &str = "CRATES_HOSTS";
/// Go's module proxy and checksums.
pub const GO_HOSTS: &str = "GO_HOSTS";
/// Debian's archives.
pub const DEBIAN_HOSTS: &str = "DEBIAN_HOSTS";
/// GitHub, with what it serves files from.
pub const GITHUB_HOSTS: &str = "GITHUB_HOSTS";
/// Where clouds keep their machines' credentials, by address and by name. For denylists.
pub const CLOUD_METADATA_DENY: &str = "CLOUD_METADATA_DENY";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn these_are_the_policy_crates_lists() {
        let ours = [PYPI_HOSTS, NPM_HOSTS, CRATES_HOSTS, GO_HOSTS, DEBIAN_HOSTS, GITHUB_HOSTS, CLOUD_METADATA_DENY];
        let theirs: Vec<&str> = cofferdam_policy::preset::LISTS.iter().map(|list| list.constant).collect();
        assert_eq!(ours.as_slice(), theirs);
    }
}
