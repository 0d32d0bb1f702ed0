//! Giving up power before the first byte of a guest is read.
//!
//! | Stage | What is given up | Why not earlier |
//! |---|---|---|
//! | capabilities, `no_new_privs` | any privilege, and any way to get one; as root `CAP_DAC_OVERRIDE` and `CAP_FOWNER` stay, without which root has not its own files | the descriptor limit is raised before |
//! | files | every path but those beneath the shares; of those that are read-only, every change | the shares are open before |
//! | seccomp | every system call that serving files does not take, among them any that opens a file other than by `openat2` | the stages above need theirs |
//!
//! What stays: the stream, the shares, memory and time. No socket can be made, no process started, nothing signalled.
//!
//! Files are given up in one of two ways. A process for one stream has the shares that it began with, and Landlock. A kernel without Landlock loses that stage
//! alone: such a server that is taken over could open what its user may. A process for a listener has shares that come later as well, which no rule of
//! Landlock can be made for any more: it is in a mount namespace with an empty directory and nothing else ([`EmptyRoot`]), and each of its shares is a descriptor
//! of a mount that is attached nowhere. No path leads to a file there, and `..` not out of a share, whatever is asked of the kernel; a share that is
//! read-only is a read-only mount.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use cofferdam_sys::confine::{self, Call, Capability, FilterError, PathAccess, Test, has_capability};
use cofferdam_sys::file::SYS_FCHMODAT2;
use cofferdam_sys::mount::EmptyRoot;

use crate::share::{ShareAccess, Shares};

/// Proof that the thread is confined. Only [`confine()`] makes one, and [`serve`](crate::serve()) wants it.
#[derive(Debug)]
pub struct Confined(());

impl Confined {
    /// For tests, which have no guest.
    #[doc(hidden)]
    #[must_use]
    pub fn not_at_all() -> Confined {
        Confined(())
    }
}

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("cannot give up capabilities")]
    Capabilities { source: io::Error },
    #[error("cannot set no_new_privs")]
    NoNewPrivileges { source: io::Error },
    #[error("cannot restrict access to files with Landlock")]
    Landlock { source: io::Error },
    #[error("cannot restrict system calls with seccomp")]
    Seccomp {
        #[from]
        source: FilterError,
    },
}

/// Confines the calling thread, and what it starts, for good: to the shares that there are.
///
/// # Errors
/// The system refused one of the stages.
pub fn confine(shares: &Shares) -> Result<Confined, ConfineError> {
    renounce()?;
    restrict_paths(shares).map_err(|source| ConfineError::Landlock { source })?;
    confine::allow_calls(calls())?;
    Ok(Confined(()))
}

/// Confines a thread of a process without files to the shares that there are and those that come. It may accept connections.
pub(crate) fn confine_listener(_root: &EmptyRoot) -> Result<Confined, ConfineError> {
    renounce()?;
    let mut calls = calls();
    calls.push(Call::new(libc::SYS_accept4));
    confine::allow_calls(calls)?;
    Ok(Confined(()))
}

/// Confines the thread of such a process that takes shares and lets go of them: to messages over this socket.
pub(crate) fn confine_door(_root: &EmptyRoot, door: BorrowedFd<'_>) -> Result<(), ConfineError> {
    renounce()?;
    confine::allow_calls(door_calls(door))?;
    Ok(())
}

fn renounce() -> Result<(), ConfineError> {
    let capabilities = |source| ConfineError::Capabilities { source };
    let mut kept = Vec::new();
    for capability in [Capability::DAC_OVERRIDE, Capability::FOWNER] {
        if has_capability(capability).map_err(capabilities)? {
            kept.push(capability);
        }
    }
    confine::keep_capabilities(&kept).map_err(capabilities)?;
    confine::no_new_privileges().map_err(|source| ConfineError::NoNewPrivileges { source })
}

fn restrict_paths(shares: &Shares) -> io::Result<()> {
    let roots = shares.roots()?.into_iter();
    let roots: Vec<_> = roots
        .map(|(root, access)| match access {
            ShareAccess::ReadOnly => (root, PathAccess::Read),
            ShareAccess::ReadWrite => (root, PathAccess::Write),
        })
        .collect();
    confine::landlock_opened(&roots).map(drop)
}

/// `S_ISUID` and `S_ISGID`.
const SET_ID: u32 = 0o6000;

/// Every system call of a server, and who makes it.
fn calls() -> Vec<Call> {
    let any = [
        // The stream, and files: data.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_ftruncate,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_restart_syscall,
        // Files: names. There is no call here that follows a path by itself.
        libc::SYS_openat2,
        libc::SYS_close,
        libc::SYS_mkdirat,
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        libc::SYS_linkat,
        libc::SYS_symlinkat,
        libc::SYS_readlinkat,
        libc::SYS_getdents64,
        // Files: what is known of them.
        libc::SYS_statx,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_utimensat,
        // Challenges and ids; the time of day.
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
    ];
    let commands = [
        // Locks; the standard library looks whether what it closes is open, in builds with debug assertions.
        libc::F_OFD_SETLK,
        libc::F_GETFD,
        // A directory that is to be listed is asked how it was opened.
        libc::F_GETFL,
    ]
    .map(|command| Call::new(libc::SYS_fcntl).when(1, Test::Equal(u32::try_from(command).unwrap_or(u32::MAX))));
    let modes = [(libc::SYS_fchmod, 1), (SYS_FCHMODAT2, 2)];
    let modes = modes.map(|(call, mode)| Call::new(call).when(mode, Test::NoBit(SET_ID)));
    any.into_iter().chain(EVERY_THREAD).map(Call::new).chain(commands).chain(modes).collect()
}

/// Every system call of the thread that takes shares.
fn door_calls(door: BorrowedFd<'_>) -> Vec<Call> {
    let socket = u32::try_from(door.as_raw_fd()).unwrap_or(u32::MAX);
    let messages = [libc::SYS_recvmsg, libc::SYS_sendmsg];
    let messages = messages.map(|call| Call::new(call).when(0, Test::Equal(socket)));
    // What has come is looked at, and closed when it is not wanted.
    let any = [libc::SYS_statx, libc::SYS_close, libc::SYS_write, libc::SYS_restart_syscall];
    let asked = u32::try_from(libc::F_GETFD).unwrap_or(u32::MAX);
    let open = Call::new(libc::SYS_fcntl).when(1, Test::Equal(asked));
    any.into_iter().chain(EVERY_THREAD).map(Call::new).chain(messages).chain([open]).collect()
}

/// What a thread needs whatever it does.
const EVERY_THREAD: [libc::c_long; 16] = [
    // The allocator.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    // Signals and the end, in peace and in panic.
    libc::SYS_writev,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpStream;
    use std::os::fd::{AsFd, OwnedFd};

    use cofferdam_sys::confine::Landlock;
    use cofferdam_sys::fdpass;
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
    use rustix::io::Errno;

    use super::*;
    use crate::name::SharePath;
    use crate::share::ShareError;
    use crate::wire::bytes::utf16;

    #[test]
    fn a_confined_thread_has_its_shares_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        for name in ["rw", "ro", "outside"] {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("a"), "a").unwrap();
        }
        let outside = root.path().join("outside/a");
        let inside = root.path().join("ro/a");
        let shares = Shares::default();
        shares.add("rw", &root.path().join("rw"), ShareAccess::ReadWrite).unwrap();
        shares.add("ro", &root.path().join("ro"), ShareAccess::ReadOnly).unwrap();
        // What is taken away concerns the thread alone and never comes back.
        let has_landlock =
            std::thread::spawn(|| confine::landlock_deny_all_fs().unwrap() != Landlock::Absent).join().unwrap();
        let run = move || {
            let _confined = confine(&shares).unwrap();
            let path = |name: &str| SharePath::parse(&utf16(name)).unwrap();
            let (rw, ro) = (shares.find("rw").unwrap(), shares.find("ro").unwrap());
            let made = rw.writable().unwrap().create_file(&path("b"), 0o600).unwrap();
            rw.writable().unwrap().write(made.as_fd(), b"new", 0).unwrap();
            let (_, facts) = ro.look(&path("a")).unwrap();
            ro.open(&path("a"), &facts, OFlags::RDONLY).unwrap();
            // The calls that a server has, as one that is taken over would use them.
            let open = |path: &std::path::Path, flags| {
                rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty()).map(drop)
            };
            let read = open(&outside, OFlags::RDONLY);
            let write = open(&inside, OFlags::WRONLY);
            let plain = fs::read(&inside).map(drop).map_err(|error| error.raw_os_error());
            let dial = TcpStream::connect("127.0.0.1:9").map(drop).map_err(|error| error.raw_os_error());
            let signal = rustix::process::test_kill_process(rustix::process::getpid());
            (read, write, plain, dial, signal)
        };
        let (read, write, plain, dial, signal) = std::thread::spawn(run).join().unwrap();
        if has_landlock {
            assert_eq!((read, write), (Err(Errno::ACCESS), Err(Errno::ACCESS)));
        } else {
            // The test command counts it.
            std::io::Write::write_all(&mut io::stderr(), b"\nSKIP: this kernel has no Landlock\n").unwrap();
        }
        let refused = Some(libc::EPERM);
        assert_eq!((plain, dial, signal), (Err(refused), Err(refused), Err(Errno::PERM)));
        assert_eq!(fs::read_to_string(root.path().join("rw/b")).unwrap(), "new");
    }

    #[test]
    fn what_comes_later_is_there_for_a_thread_that_was_confined_before() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), "a").unwrap();
        let opened = || OwnedFd::from(fs::File::open(root.path()).unwrap());
        let (directory, file) = (opened(), OwnedFd::from(fs::File::open(root.path().join("a")).unwrap()));
        let run = move || {
            let shares = Shares::default();
            let _confined = confine_listener(&EmptyRoot::not_at_all()).unwrap();
            shares.add_opened("later", directory, ShareAccess::ReadOnly).unwrap();
            let share = shares.find("later").unwrap();
            let (_, facts) = share.look(&SharePath::parse(&utf16("a")).unwrap()).unwrap();
            share.open(&SharePath::parse(&utf16("a")).unwrap(), &facts, OFlags::RDONLY).unwrap();
            let refused = shares.add_opened("file", file, ShareAccess::ReadOnly);
            (refused, shares.remove("later"), share.check().is_err(), shares.find("later").is_none())
        };
        let (refused, removed, is_gone, is_absent) = std::thread::spawn(run).join().unwrap();
        assert!(matches!(refused, Err(ShareError::NoDirectory { .. })), "{refused:?}");
        assert!(removed && is_gone && is_absent);
    }

    #[test]
    fn the_door_takes_what_comes_over_its_socket_and_opens_nothing() {
        let (door, keeper) = fdpass::pair().unwrap();
        let (other, somebody) = fdpass::pair().unwrap();
        for socket in [&keeper, &somebody] {
            fdpass::send_fds(socket, b"x", &[socket.as_fd()]).unwrap();
        }
        let run = move || {
            confine_door(&EmptyRoot::not_at_all(), door.as_fd()).unwrap();
            let number = |error: io::Error| error.raw_os_error();
            let taken = fdpass::recv_fds(&door, &mut [0; 4]).map(|(length, fds)| (length, fds.len())).map_err(number);
            let answered = fdpass::send_fds(&door, b"y", &[]).map_err(number);
            let others = fdpass::recv_fds(&other, &mut [0; 4]).map(drop).map_err(number);
            let said = fdpass::send_fds(&other, b"y", &[]).map_err(number);
            let opened = rustix::fs::openat2(CWD, ".", OFlags::PATH, Mode::empty(), ResolveFlags::empty()).map(drop);
            let dialed = TcpStream::connect("127.0.0.1:9").map(drop).map_err(|error| error.raw_os_error());
            (taken, answered, [others, said, dialed], opened)
        };
        let (taken, answered, refused, opened) = std::thread::spawn(run).join().unwrap();
        assert_eq!((taken, answered), (Ok((1, 1)), Ok(())));
        assert_eq!(refused, [Err(Some(libc::EPERM)); 3]);
        assert_eq!(opened, Err(Errno::PERM));
        assert_eq!(fdpass::recv_fds(&keeper, &mut [0; 4]).unwrap().0, 1);
    }
}
