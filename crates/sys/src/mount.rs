//! The mount interface with descriptors (Linux 5.2, attributes and id maps 5.12): trees are taken, changed while
//! nobody can see them, and put in place.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::ns::{self, Namespaces};

/// How a mount may be used. Everything is off unless named: set-user-id programs never work in what is mounted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    pub read_only: bool,
    /// Device files work.
    pub devices: bool,
    /// Programs cannot be executed.
    pub no_exec: bool,
}

/// Where something is put: a path below a directory.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub root: BorrowedFd<'a>,
    /// Relative to `root`; empty for `root` itself.
    pub path: &'a Path,
}

/// Takes a copy of the mounts at and below a path, attached nowhere. A symbolic link at the end is followed.
///
/// # Errors
/// Those of open_tree(2).
pub fn take_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// As [`take_tree`], for a path without symbolic links; one that has one by now is refused.
///
/// # Errors
/// Those of openat2(2) and open_tree(2).
pub fn take_real_tree(path: &Path) -> io::Result<OwnedFd> {
    let place = loop {
        match rustix::fs::openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
            // openat2(2): a rename or mount somewhere on the machine came in between.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => break other?,
        }
    };
    take_tree_at(Place { root: place.as_fd(), path: Path::new("") })
}

/// As [`take_tree`], for a path below a directory. A symbolic link at the end is not followed.
///
/// # Errors
/// Those of open_tree(2).
pub fn take_tree_at(place: Place<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(place.root, place.path, flags)?)
}

/// Makes a new file system, attached nowhere.
///
/// # Errors
/// Those of fsopen(2), fsconfig(2) and fsmount(2): a type the kernel lacks, an option it refuses, or `EPERM` for a
/// `proc` or `sysfs` where the one in sight is partly covered.
pub fn new_filesystem(kind: &str, options: &[(&str, &str)], attributes: Attributes) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID;
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, !attributes.devices);
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, attributes.read_only);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, attributes.no_exec);
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// Puts a tree that is attached nowhere in its place. Neither end of the path may be a symbolic link.
///
/// # Errors
/// Those of move_mount(2).
pub fn attach(tree: BorrowedFd<'_>, place: Place<'_>) -> io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    flags.set(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH, place.path.as_os_str().is_empty());
    Ok(rustix::mount::move_mount(tree, "", place.root, place.path, flags)?)
}

/// Sets the attributes of every mount in a tree, and cuts it off from what happens to the original.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn restrict_tree(tree: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    set_attributes(tree, &restricted(attributes))
}

/// As [`restrict_tree`], and shows file owners through the id map of a user namespace: what it maps `x` to is seen as
/// the owner of files of `x`.
///
/// # Errors
/// Those of mount_setattr(2): among others `EINVAL` for a file system that cannot do it, `EPERM` without privilege
/// over the file system.
pub fn restrict_and_map_tree(tree: BorrowedFd<'_>, attributes: Attributes, owner: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = restricted(attributes);
    attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
    attributes.userns_fd = u64::try_from(owner.as_raw_fd()).map_err(io::Error::other)?;
    set_attributes(tree, &attributes)
}

/// Makes one mount read-only, without those below it.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn freeze(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    change_mount(mount, &attributes, 0)
}

fn restricted(attributes: Attributes) -> libc::mount_attr {
    let mut set = libc::MOUNT_ATTR_NOSUID;
    for (wanted, flag) in [
        (attributes.read_only, libc::MOUNT_ATTR_RDONLY),
        (!attributes.devices, libc::MOUNT_ATTR_NODEV),
        (attributes.no_exec, libc::MOUNT_ATTR_NOEXEC),
    ] {
        if wanted {
            set |= flag;
        }
    }
    libc::mount_attr { attr_set: set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 }
}

fn set_attributes(tree: BorrowedFd<'_>, attributes: &libc::mount_attr) -> io::Result<()> {
    change_mount(tree, attributes, libc::AT_RECURSIVE)
}

fn change_mount(tree: BorrowedFd<'_>, attributes: &libc::mount_attr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: mount_setattr(2) reads a NUL-terminated path and `size_of` bytes of the structure, both of which live
    // through the call. The descriptor is borrowed, so it stays open.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Cuts every mount of this mount namespace off from the namespace it was copied from.
///
/// # Errors
/// Those of mount(2).
pub fn make_all_private() -> io::Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", flags)?)
}

/// Makes an attached tree the root and the working directory of this process's mount namespace, and lets go of the
/// old root with everything below it.
///
/// # Errors
/// Those of pivot_root(2) and umount2(2).
pub fn change_root(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // pivot_root(2), NOTES: both may be the same directory; the old root then lies on top of the new one.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Proof that no path leads this process to a file. Only [`empty_root`] makes one.
#[derive(Debug)]
pub struct EmptyRoot(());

impl EmptyRoot {
    /// For tests, whose process goes on.
    #[doc(hidden)]
    #[must_use]
    pub fn not_at_all() -> EmptyRoot {
        EmptyRoot(())
    }
}

/// Moves the calling process into a mount namespace of its own that has an empty directory in it, which cannot be written, and nothing
/// else: every path ends there. What is open stays open.
///
/// # Errors
/// Those of unshare(2), and of making, attaching and changing to a file system.
pub fn empty_root() -> io::Result<EmptyRoot> {
    ns::unshare(Namespaces::MOUNT)?;
    make_all_private()?;
    let attributes = Attributes { read_only: true, devices: false, no_exec: true };
    let root = new_filesystem("tmpfs", &EMPTY_OPTIONS, attributes)?;
    // On top of the old root, as a root has to be attached somewhere.
    attach(root.as_fd(), Place { root: CWD, path: Path::new("/") })?;
    change_root(root.as_fd())?;
    Ok(EmptyRoot(()))
}

/// Options of a file system that is one empty directory.
const EMPTY_OPTIONS: [(&str, &str); 3] = [("mode", "555"), ("size", "4k"), ("nr_inodes", "1")];

/// Lets go of what is mounted at an absolute path; what is busy there goes when it is no longer.
///
/// # Errors
/// Those of umount2(2).
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}
