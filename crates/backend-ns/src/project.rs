//! Which directory may be writable in a sandbox.

use std::io;
use std::path::{Path, PathBuf};

use crate::ProjectError;

/// Directories that the sandbox shows in its own way; the project may neither be one of them nor hold one.
const SYSTEM: [&str; 12] =
    ["/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/tmp"];

/// Says whether a directory may be writable in a sandbox, and which one it is after symbolic links.
///
/// `/`, the home directory and everything above it are refused: a program that can write there can wait for its owner
/// to run what it left (`.bashrc`, `.ssh/authorized_keys`).
///
/// # Errors
/// Which rule the directory breaks.
pub fn check_project(path: &Path, home: Option<&Path>) -> Result<PathBuf, ProjectError> {
    let unusable = |source| ProjectError::Unusable { path: path.to_owned(), source };
    let real = path.canonicalize().map_err(unusable)?;
    if !real.is_dir() {
        return Err(unusable(io::ErrorKind::NotADirectory.into()));
    }
    if real == Path::new("/") {
        return Err(ProjectError::Root { path: real });
    }
    if let Some(home) = home.filter(|home| *home != Path::new("/")) {
        let home = home.canonicalize().unwrap_or_else(|_| home.to_owned());
        if home.starts_with(&real) {
            return Err(ProjectError::Home { path: real, home });
        }
    }
    if SYSTEM.iter().any(|system| real == Path::new(system))
        || ["/dev", "/proc", "/sys"].iter().any(|tree| real.starts_with(tree))
    {
        return Err(ProjectError::System { path: real });
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_directory_below_home() {
        let home = tempfile::tempdir().unwrap();
        let project = home.path().join("project");
        std::fs::create_dir(&project).unwrap();
        assert_eq!(check_project(&project, Some(home.path())).unwrap(), project.canonicalize().unwrap());
    }

    #[test]
    fn refuses_home_and_what_is_above_it() {
        let home = tempfile::tempdir().unwrap();
        let user = home.path().join("user");
        std::fs::create_dir(&user).unwrap();
        for path in [user.as_path(), home.path()] {
            assert!(matches!(check_project(path, Some(&user)), Err(ProjectError::Home { .. })), "{path:?}");
        }
    }

    #[test]
    fn refuses_home_behind_a_symbolic_link() {
        let home = tempfile::tempdir().unwrap();
        let parent = tempfile::tempdir().unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(home.path(), &link).unwrap();
        assert!(matches!(check_project(&link, Some(home.path())), Err(ProjectError::Home { .. })));
        assert!(matches!(check_project(home.path(), Some(&link)), Err(ProjectError::Home { .. })));
    }

    #[test]
    fn refuses_the_root_and_the_system() {
        assert!(matches!(check_project(Path::new("/"), None), Err(ProjectError::Root { .. })));
        assert!(matches!(check_project(Path::new("/etc"), None), Err(ProjectError::System { .. })));
        assert!(matches!(check_project(Path::new("/proc/self"), None), Err(ProjectError::System { .. })));
    }

    #[test]
    fn refuses_what_is_not_a_directory() {
        assert!(matches!(check_project(Path::new("/etc/passwd"), None), Err(ProjectError::Unusable { .. })));
        assert!(matches!(check_project(Path::new("/no/such/place"), None), Err(ProjectError::Unusable { .. })));
    }
}
