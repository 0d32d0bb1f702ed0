//! What a specification has to fulfil before anything is made of it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::init::Task;
use crate::resolve::{self, ResolveError};
use crate::{Capability, LaunchError, SandboxSpec, View};

/// HOST_NAME_MAX of Linux.
const LONGEST_NAME: usize = 64;

/// Checks a specification, and resolves the paths of the host in it.
///
/// # Errors
/// What contradicts itself or does not exist.
pub(crate) fn checked(mut spec: SandboxSpec, task: Task) -> Result<SandboxSpec, LaunchError> {
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
    if let Some(project) = &mut spec.place.project {
        *project = real(project, &[])?;
    }
    let roots = resolve::writable_roots(spec.place.project.as_deref(), &spec.place.mounts);
    for mount in &mut spec.place.mounts {
        mount.source = real(&mount.source, &roots)?;
        if !mount.target.is_absolute() || mount.target.components().any(|part| part == std::path::Component::ParentDir)
        {
            return wrong(format!("the mount target {} is not an absolute path without ..", mount.target.display()));
        }
        if mount.target == Path::new("/") {
            return wrong("/ cannot be a mount target; --rootfs gives the sandbox another root".to_owned());
        }
    }
    if let Some(rootfs) = &mut spec.place.rootfs {
        *rootfs = real(rootfs, &roots)?;
        if !rootfs.is_dir() {
            return wrong(format!(
                "the root file system {} is no directory; the image of a disk is a root with --backend vm",
                rootfs.display()
            ));
        }
    }
    Ok(spec)
}

/// A path of the host without symbolic links; none beneath `roots` is followed.
fn real(path: &Path, roots: &[PathBuf]) -> Result<PathBuf, LaunchError> {
    let missing = |source| LaunchError::Step {
        role: crate::Role::Supervisor,
        step: format!("find {} on the host", path.display()),
        remedy: String::new(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(missing)?;
    match resolve::resolve(&absolute, roots) {
        Ok(real) => Ok(real),
        Err(ResolveError::Missing { source, .. }) => Err(missing(source)),
        Err(link @ ResolveError::Link { .. }) => Err(link.into()),
    }
}

/// Capabilities that undo a part of the isolation together with namespaces of the program's own.
fn excludes_userns(capability: Capability) -> bool {
    capability.to_string() == "SYS_ADMIN"
}
