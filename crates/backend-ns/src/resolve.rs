//! Paths of the host that a program in a sandbox may have had a hand in.
//!
//! A program that could write to a directory may have left symbolic links there, for a later run to follow with the power
//! of the user: `--mount ./data:…` would show whatever `data` leads to. So beneath a directory that is writable for the
//! sandbox no link is followed, wherever in the path it is. Links elsewhere are the user's own.
//!
//! What comes out has no link in it, and is opened in a way that refuses one (`RESOLVE_NO_SYMLINKS`): a sandbox that runs
//! at the same time cannot put one there in between.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::Mount;

/// As many links as the kernel follows in one path (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// Why a path of the host is not used.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error(
        "{link} is a symbolic link beneath {root}, where a program in a sandbox may have left it, and is not followed; \
         look where it leads, and name that place, or remove the link",
        link = link.display(), root = root.display()
    )]
    Link { link: PathBuf, root: PathBuf },
    #[error("{path} cannot be found: {source}", path = path.display())]
    Missing { path: PathBuf, source: io::Error },
}

/// The directories that the sandbox of these mounts and this project can write to, free of symbolic links.
#[must_use]
pub fn writable_roots(project: Option<&Path>, mounts: &[Mount]) -> Vec<PathBuf> {
    let mounts = mounts.iter().filter(|mount| !mount.read_only).map(|mount| mount.source.as_path());
    // One that does not exist holds no links.
    project.into_iter().chain(mounts).filter_map(|root| root.canonicalize().ok()).collect()
}

/// The same place as the absolute `path`, by a path without symbolic links; none beneath `roots` is followed.
///
/// # Errors
/// A link beneath `roots`, or what is not there.
pub fn resolve(path: &Path, roots: &[PathBuf]) -> Result<PathBuf, ResolveError> {
    let missing = |source| ResolveError::Missing { path: path.to_owned(), source };
    let mut real = PathBuf::from("/");
    let mut rest = parts(path);
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        match part {
            Part::Root => real = PathBuf::from("/"),
            // What precedes it has no links, so this is its parent indeed.
            Part::Parent => _ = real.pop(),
            Part::Name(name) => {
                let next = real.join(name);
                if !fs::symlink_metadata(&next).map_err(missing)?.is_symlink() {
                    real = next;
                    continue;
                }
                if let Some(root) = roots.iter().find(|root| real.starts_with(root)) {
                    return Err(ResolveError::Link { link: next, root: root.clone() });
                }
                links += 1;
                if links > MOST_LINKS {
                    return Err(missing(rustix::io::Errno::LOOP.into()));
                }
                let target = fs::read_link(&next).map_err(missing)?;
                parts(&target).into_iter().rev().for_each(|part| rest.push_front(part));
            }
        }
    }
    Ok(real)
}

/// Opens a directory by a path that [`resolve`] has made, for paths below it.
///
/// # Errors
/// Those of openat2(2): `ELOOP` when there is a symbolic link by now.
pub fn open_directory(real: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(CWD, real, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
            // openat2(2): a rename or mount somewhere on the machine came in between.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

enum Part {
    Root,
    Parent,
    Name(OsString),
}

fn parts(path: &Path) -> VecDeque<Part> {
    let part = |component: Component<'_>| match component {
        Component::RootDir => Some(Part::Root),
        Component::ParentDir => Some(Part::Parent),
        Component::Normal(name) => Some(Part::Name(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory of the user's with a project in it, and something that a link may lead to.
    fn world() -> (tempfile::TempDir, PathBuf, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        fs::create_dir_all(home.join("project/sub/deep")).unwrap();
        fs::create_dir_all(home.join("secret")).unwrap();
        let roots = vec![home.join("project")];
        (dir, home, roots)
    }

    #[test]
    fn no_link_beneath_a_writable_directory_is_followed() {
        let (_dir, home, roots) = world();
        symlink("../secret", home.join("project/last")).unwrap();
        symlink(&home, home.join("project/sub/first")).unwrap();
        for (path, link) in [
            ("project/last", "project/last"),
            ("project/sub/../last", "project/last"),
            ("project/sub/first/secret", "project/sub/first"),
            ("project/sub/first/../secret", "project/sub/first"),
            ("secret/../project/last", "project/last"),
        ] {
            match resolve(&home.join(path), &roots) {
                Err(ResolveError::Link { link: found, root }) => {
                    assert_eq!((found, &root), (home.join(link), &roots[0]), "{path}");
                }
                other => panic!("{path}: {other:?}"),
            }
        }
    }

    #[test]
    fn links_of_the_users_own_are_followed() {
        let (_dir, home, roots) = world();
        symlink("project/sub", home.join("relative")).unwrap();
        symlink(home.join("relative"), home.join("absolute")).unwrap();
        symlink("..", home.join("secret/up")).unwrap();
        for (path, real) in [
            ("absolute/deep", "project/sub/deep"),
            ("relative/../sub", "project/sub"),
            ("secret/up/relative/./deep", "project/sub/deep"),
            ("project/../secret", "secret"),
        ] {
            assert_eq!(resolve(&home.join(path), &roots).unwrap(), home.join(real), "{path}");
        }
        // And from there on it is the sandbox's.
        symlink("/etc", home.join("project/sub/etc")).unwrap();
        assert!(matches!(resolve(&home.join("absolute/etc"), &roots), Err(ResolveError::Link { .. })));
    }

    #[test]
    fn a_circle_and_an_absence_end() {
        let (_dir, home, roots) = world();
        symlink("round", home.join("round")).unwrap();
        for path in ["round", "absent", "absent/../project"] {
            assert!(matches!(resolve(&home.join(path), &roots), Err(ResolveError::Missing { .. })), "{path}");
        }
    }

    #[test]
    fn what_can_be_written_to_is_the_project_and_writable_mounts() {
        let (_dir, home, _) = world();
        symlink("secret", home.join("link")).unwrap();
        let mount = |source: &str, read_only| Mount { source: home.join(source), target: "/x".into(), read_only };
        let mounts = [mount("link", false), mount("project/sub", true), mount("absent", false)];
        let roots = writable_roots(Some(&home.join("project")), &mounts);
        assert_eq!(roots, [home.join("project"), home.join("secret")]);
    }

    #[test]
    fn a_link_that_appears_later_is_not_followed_either() {
        let (_dir, home, roots) = world();
        let real = resolve(&home.join("project/sub"), &roots).unwrap();
        open_directory(&real).unwrap();
        fs::rename(home.join("project/sub"), home.join("project/moved")).unwrap();
        symlink(home.join("secret"), home.join("project/sub")).unwrap();
        let error = open_directory(&real).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
    }
}
