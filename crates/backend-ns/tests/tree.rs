//! What a process that has no files can do with a directory that was taken for it: that of a server of files, taken over by its
//! guest, with every call of the kernel at hand. As root and as a plain user.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test without harness, which clippy does not know as one"
)]

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use cofferdam_backend_ns::take_tree;
use cofferdam_sys::mount;
use cofferdam_sys::ns::{self, Child, Fork, IdMap, NamespaceKind, Namespaces, ParentOf, Setgroups};
use cofferdam_sys::process::{self, Groups};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

/// The first argument of this program when it is to try things.
const TRY: &str = "--try";

/// The user that tries them besides root.
const PLAIN_USER: u32 = 1500;

/// An id that nobody has, as the processes of root's sandboxes get.
const UNUSED: u32 = 0x7000_0007;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|first| first == TRY) {
        a_tree_is_all_that_there_is();
        return ExitCode::SUCCESS;
    }
    let is_root = rustix::process::getuid().is_root();
    let users: &[u32] = if is_root { &[0, PLAIN_USER] } else { &[rustix::process::getuid().as_raw()] };
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = root.path().join("program");
    // The build directory may be closed to the plain user.
    fs::copy("/proc/self/exe", &program).unwrap();
    let mut failed = 0;
    for user in users {
        let directory = root.path().join(user.to_string());
        fs::create_dir(&directory).unwrap();
        std::os::unix::fs::chown(&directory, Some(*user), Some(*user)).unwrap();
        let mut command = Command::new(&program);
        command.arg(TRY).current_dir(&directory);
        if is_root {
            command.uid(*user).gid(*user);
        }
        let succeeded = command.status().unwrap().success();
        println!("test a tree is all that there is (user {user}) ... {}", if succeeded { "ok" } else { "FAILED" });
        failed += usize::from(!succeeded);
    }
    if !is_root {
        println!("SKIP: as root: this is not root");
    }
    println!("{} passed, {failed} failed, 0 skipped", users.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn a_tree_is_all_that_there_is() {
    let own = rustix::process::getuid().as_raw();
    let is_mapped = own == 0;
    let (owner, holder, lifeline) = namespace(if is_mapped { UNUSED } else { own });
    let directory = std::env::current_dir().unwrap();
    fs::create_dir_all("shown/sub").unwrap();
    fs::create_dir("outside").unwrap();
    fs::write("shown/file", "shown").unwrap();
    fs::write("outside/secret", "secret").unwrap();
    symlink("../outside/secret", "shown/relative").unwrap();
    symlink(directory.join("outside/secret"), "shown/absolute").unwrap();
    for read_only in [true, false] {
        let taken = take_tree(&directory.join("shown"), read_only, &owner, is_mapped);
        let (tree, notice) = taken.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
        assert_eq!(notice, None);
        // What is renamed out of it is not to be a way out either.
        let moved = rustix::fs::openat(&tree, "sub", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        fs::rename("shown/sub", "outside/sub").unwrap();
        let child = match ns::fork().unwrap() {
            Fork::Child => process::run_and_exit(|| {
                attack(&owner, &tree, &moved, &directory, read_only);
                0
            }),
            Fork::Parent(child) => child,
        };
        assert_eq!(wait(&child), Some(0), "read-only: {read_only}");
        fs::rename("outside/sub", "shown/sub").unwrap();
        assert_eq!(fs::read_to_string("outside/secret").unwrap(), "secret");
    }
    let left = fs::metadata("shown/new").unwrap();
    assert_eq!((left.uid(), fs::read_to_string("shown/file").unwrap()), (own, "more".to_owned()));
    // A link on the way may have been put there by a sandbox.
    symlink("outside", "link").unwrap();
    assert!(take_tree(&directory.join("link"), true, &owner, is_mapped).is_err());
    drop(lifeline);
    wait(&holder);
}

/// In the place of the server.
fn attack(owner: &OwnedFd, tree: &OwnedFd, moved: &OwnedFd, directory: &Path, read_only: bool) {
    ns::enter(owner, NamespaceKind::User).unwrap();
    process::become_user(0, 0, Groups::Keep).unwrap();
    let _root = mount::empty_root().unwrap();
    let open = |from: &OwnedFd, path: &str, flags| rustix::fs::openat(from, path, flags, Mode::RWXU);
    let is_root = |fd: OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino == rustix::fs::fstat(tree).unwrap().st_ino;
    // Nothing is there to be named.
    let root = open(tree, "/", OFlags::RDONLY).unwrap();
    assert_eq!(rustix::fs::Dir::read_from(&root).unwrap().filter(|entry| entry.is_ok()).count(), 2);
    assert_eq!(rustix::fs::mkdirat(CWD, "/d", Mode::RWXU), Err(Errno::ROFS));
    for path in [directory.to_str().unwrap(), "/proc", "/proc/self/fd", "/etc/passwd"] {
        assert_eq!(open(tree, path, OFlags::PATH).map(drop), Err(Errno::NOENT), "{path}");
    }
    // Nothing leads out.
    assert!(is_root(open(tree, "..", OFlags::PATH).unwrap()));
    assert!(is_root(open(tree, "../../..", OFlags::PATH).unwrap()));
    for path in ["../outside/secret", "relative", "absolute"] {
        assert_eq!(open(tree, path, OFlags::RDONLY).map(drop), Err(Errno::NOENT), "{path}");
    }
    for path in ["..", "../secret", "../../outside"] {
        assert_eq!(open(moved, path, OFlags::PATH).map(drop), Err(Errno::NOENT), "{path} of what was moved away");
    }
    // What is there is there.
    let mut content = String::new();
    fs::File::from(open(tree, "file", OFlags::RDONLY).unwrap()).read_to_string(&mut content).unwrap();
    assert_eq!(content, "shown");
    let write = open(tree, "file", OFlags::WRONLY | OFlags::TRUNC);
    let made = open(tree, "new", OFlags::WRONLY | OFlags::CREATE);
    if read_only {
        let refused = Err(Errno::ROFS);
        assert_eq!((write.map(drop), made.map(drop)), (refused, refused));
        assert_eq!(rustix::fs::unlinkat(tree, "file", AtFlags::empty()), refused);
        assert_eq!(rustix::fs::renameat(tree, "file", tree, "other"), refused);
        assert_eq!(rustix::fs::chmodat(tree, "file", Mode::RWXU, AtFlags::empty()), refused);
    } else {
        rustix::io::write(write.unwrap(), b"more").unwrap();
        made.unwrap();
    }
}

/// A user namespace in which user 0 is this one, who holds it, and what ends that.
fn namespace(user: u32) -> (OwnedFd, Child, OwnedFd) {
    let (waits, lifeline) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let holder = match ns::fork_into(Namespaces::USER, ParentOf::Caller).unwrap() {
        Fork::Child => process::run_and_exit(|| {
            process::close_all_except(&[waits.as_fd()]).unwrap();
            let _ended = rustix::io::read(&waits, &mut [0]);
            0
        }),
        Fork::Parent(child) => child,
    };
    let map = IdMap::single(0, user);
    ns::write_id_maps(Some(holder.pid), &[map], &[map], Setgroups::Deny).unwrap();
    let owner = ns::open(Some(holder.pid), NamespaceKind::User).unwrap();
    (owner, holder, lifeline)
}

fn wait(child: &Child) -> Option<i32> {
    let ended = rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
    ended.and_then(|status| status.exit_status())
}
