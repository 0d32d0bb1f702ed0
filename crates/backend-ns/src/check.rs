//! What a specification has to fulfil before anything is made of it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::init::Task;
use crate::resolve::{self, ResolveError};
use crate::{Capability, LaunchError, Mount, Place, SandboxSpec, View};

/// HOST_NAME_MAX of Linux.
const LONGEST_NAME: usize = 64;

/// Checks a specification. The paths of the host in it are not looked at.
///
/// # Errors
/// What contradicts itself.
pub(crate) fn checked(spec: SandboxSpec, task: Task) -> Result<SandboxSpec, LaunchError> {
    let wrong = |text: String| Err(LaunchError::Spec(text));
    if let View::Host(_) = spec.place.view
        && (task != Task::Monitor || spec.network.is_some())
    {
        return wrong("without namespaces there are virtual machines alone, and no gateway".to_owned());
    }
    if spec.command.is_empty() && task == Task::Program {
        return wrong("there is no command to run".to_owned());
    }
    let has_nul = spec
        .command
        .iter()
        .chain(spec.env.iter().flat_map(|(name, value)| [name, value]))
        .any(|string| string.as_bytes().contains(&0));
    if has_nul {
        return wrong("an argument or environment variable has a NUL byte in it".to_owned());
    }
    if spec.env.iter().any(|(name, _)| name.is_empty() || name.as_bytes().contains(&b'=')) {
        return wrong("an environment variable has an empty name or one with = in it".to_owned());
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if spec.name.is_empty() || spec.name.len() > LONGEST_NAME || !spec.name.bytes().all(plain) {
        return wrong(format!(
            "{:?} cannot be a host name: letters, digits, dots and dashes, up to {LONGEST_NAME}",
            spec.name
        ));
    }
    if !spec.workdir.is_absolute() {
        return wrong(format!("the working directory {} is not an absolute path", spec.workdir.display()));
    }
    if spec.allow_userns && spec.capabilities.iter().copied().any(excludes_userns) {
        return wrong(
            "--cap-add SYS_ADMIN and --allow-userns together would let the program make read-only mounts writable; \
             choose one"
                .to_owned(),
        );
    }
    if spec.capabilities.iter().any(|capability| capability.to_string() == "SETFCAP") {
        return wrong(
            "--cap-add SETFCAP would let the program leave files with capabilities on the host, which count there; \
             leave it out"
                .to_owned(),
        );
    }
    if spec.inside_uid == u32::MAX {
        return wrong("4294967295 is not a user id".to_owned());
    }
    if spec.limits.cpus.is_some_and(|cpus| !cpus.is_finite() || cpus <= 0.0) {
        return wrong("the number of processors is not a positive number".to_owned());
    }
    if spec.limits.disk.is_some() {
        return wrong("--disk is what a virtual machine may write over its root: use it with --backend vm".to_owned());
    }
    if spec.sockets.iter().any(|path| !path.is_absolute() || path.file_name().is_none()) {
        return wrong("the place of a host socket is an absolute path".to_owned());
    }
    for Mount { target, .. } in &spec.place.mounts {
        if !target.is_absolute() || target.components().any(|part| part == std::path::Component::ParentDir) {
            return wrong(format!("the mount target {} is not an absolute path without ..", target.display()));
        }
        if target == Path::new("/") {
            return wrong("/ cannot be a mount target; --rootfs gives the sandbox another root".to_owned());
        }
    }
    Ok(spec)
}

/// The same place with its paths straight, so that they can be opened in a way that refuses symbolic links.
///
/// # Errors
/// What does not exist, and a symbolic link on the way: whoever names a path has looked where it leads ([`resolve`](resolve::resolve))
/// and names that place, so one that is there by now was put there since.
pub(crate) fn straight(mut place: Place) -> Result<Place, LaunchError> {
    let Place { project, mounts, rootfs, .. } = &mut place;
    let sources = mounts.iter_mut().map(|mount| &mut mount.source);
    for path in project.iter_mut().chain(sources).chain(rootfs.as_mut()) {
        *path = real(path)?;
    }
    match rootfs {
        Some(rootfs) if !rootfs.is_dir() => Err(LaunchError::Spec(format!(
            "the root file system {} is no directory; the image of a disk is a root with --backend vm",
            rootfs.display()
        ))),
        Some(_) | None => Ok(place),
    }
}

fn real(path: &Path) -> Result<PathBuf, LaunchError> {
    let missing = |source| LaunchError::Step {
        role: crate::Role::Supervisor,
        step: format!("find {} on the host", path.display()),
        remedy: String::new(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(missing)?;
    match resolve::resolve(&absolute, &[PathBuf::from("/")]) {
        Ok(real) => Ok(real),
        Err(ResolveError::Missing { source, .. }) => Err(missing(source)),
        Err(link @ ResolveError::Link { .. }) => Err(link.into()),
    }
}

/// Capabilities that undo a part of the isolation together with namespaces of the program's own.
fn excludes_userns(capability: Capability) -> bool {
    capability.to_string() == "SYS_ADMIN"
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_that_was_put_there_after_somebody_has_looked_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        fs::create_dir_all(home.join("project/shown/deep")).unwrap();
        fs::create_dir_all(home.join("secret/deep")).unwrap();
        let looked_at = resolve::resolve(&home.join("project/shown"), &[home.join("project")]).unwrap();
        let mount = |path: &Path| Mount { source: path.to_owned(), target: "/x".into(), read_only: true };
        let deep = looked_at.join("deep");
        let places = [
            Place { project: Some(looked_at.clone()), ..Place::default() },
            Place { rootfs: Some(looked_at.clone()), ..Place::default() },
            Place { mounts: vec![mount(&looked_at)], ..Place::default() },
            Place { mounts: vec![mount(&deep)], ..Place::default() },
        ];
        for place in &places {
            assert_eq!(straight(place.clone()).unwrap().mounts, place.mounts);
        }
        fs::rename(&looked_at, home.join("project/moved")).unwrap();
        symlink(home.join("secret"), &looked_at).unwrap();
        for place in &places {
            let said = straight(place.clone()).unwrap_err().to_string();
            assert!(said.contains("project/shown is a symbolic link"), "{place:?}: {said}");
        }
    }
}
