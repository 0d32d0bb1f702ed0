//! The system calls a sandboxed program does without, each with the reason.
//!
//! The list denies instead of allowing: programs nobody has looked at run here, and what guards the host are the
//! namespaces, the missing capabilities and the gateway. The filter removes attack surface of the kernel and the few
//! ways around those (sockets of families that have no network namespace, keyrings, terminals).

use cofferdam_sys::confine::{self, Answer, Call, Filter, FilterError, Test};

use crate::Sockets;

/// Denied with EPERM, as for a program without privilege. Numbers that exist on every architecture we build for.
const DENIED: &[(libc::c_long, &str)] = &[
    (libc::SYS_add_key, "keyrings are shared by all processes of a user, in every namespace"),
    (libc::SYS_request_key, "as add_key; starts a helper on the host"),
    (libc::SYS_keyctl, "as add_key"),
    (libc::SYS_bpf, "large attack surface in the kernel"),
    (libc::SYS_perf_event_open, "sees other processes; large attack surface"),
    (libc::SYS_userfaultfd, "makes races in the kernel exploitable"),
    (libc::SYS_kexec_load, "replaces the kernel"),
    (libc::SYS_kexec_file_load, "replaces the kernel"),
    (libc::SYS_init_module, "loads code into the kernel"),
    (libc::SYS_finit_module, "loads code into the kernel"),
    (libc::SYS_delete_module, "removes code from the kernel"),
    (libc::SYS_open_by_handle_at, "opens files past the mounts in sight"),
    (libc::SYS_syslog, "the kernel log speaks of the host"),
    (libc::SYS_clock_settime, "the clock belongs to the host"),
    (libc::SYS_settimeofday, "the clock belongs to the host"),
    (libc::SYS_clock_adjtime, "the clock belongs to the host"),
    (libc::SYS_adjtimex, "the clock belongs to the host"),
    (libc::SYS_swapon, "memory of the host"),
    (libc::SYS_swapoff, "memory of the host"),
    (libc::SYS_reboot, "the machine belongs to the host"),
    (libc::SYS_acct, "accounting of the host"),
    (libc::SYS_quotactl, "quotas of the host"),
    (libc::SYS_quotactl_fd, "quotas of the host"),
    (libc::SYS_nfsservctl, "not in kernels of this century, but numbered"),
    (libc::SYS_vhangup, "ends other people's terminals"),
];

/// Denied with EPERM unless the program may make user namespaces: all of them change what is mounted or which
/// namespaces a process is in, and are of no use without a capability that only such a namespace gives.
const NAMESPACES: &[libc::c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // open_tree_attr(2), Linux 6.15; numbers from 424 on are the same on every architecture.
    467,
    libc::SYS_setns,
];

/// Calls of x86-64 alone: port access of the machine, and what old kernels had.
#[cfg(target_arch = "x86_64")]
const MACHINE: &[libc::c_long] = &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_uselib, libc::SYS_lookup_dcookie];
#[cfg(not(target_arch = "x86_64"))]
const MACHINE: &[libc::c_long] = &[libc::SYS_lookup_dcookie];

/// io_uring issues file and socket operations that no filter sees, and has had more holes than any other part of the
/// kernel of its age. Answered with ENOSYS: programs have a way without it.
const RINGS: &[libc::c_long] = &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// Commands of ioctl(2) on terminals, from `asm-generic/ioctls.h`.
const TERMINAL_COMMANDS: &[(u32, &str)] = &[
    (0x5412, "TIOCSTI types into a terminal, and the user's shell reads it"),
    (0x541c, "TIOCLINUX pastes into a console"),
    (0x5423, "TIOCSETD loads line disciplines, which have a long list of holes"),
];

/// Socket families the program may use, from `linux/socket.h`. Of the others most have no network namespace at all:
/// through AF_VSOCK (40) a program would reach the host of a virtual machine past the gateway.
const FAMILIES: &[u32] = &[
    1,  // AF_UNIX
    2,  // AF_INET
    10, // AF_INET6
    16, // AF_NETLINK
    17, // AF_PACKET, on the sandbox's own interface and with CAP_NET_RAW
];

/// The families of a network that QEMU uses where it is in no namespace, each added to those before it. None of them is
/// AF_UNIX: Landlock leaves out sockets with a path before ABI 9 and abstract ones before Linux 6.12, and a message bus of the
/// user would start whatever it is asked to. The channels of the agent and of QMP are pairs.
const BARE_FAMILIES: &[u32] = &[
    2,  // AF_INET: published ports
    10, // AF_INET6: what its own network reaches
];

/// Types of socket(2), from `linux/net.h`, and the flags beside them: `SOCK_NONBLOCK`, `SOCK_CLOEXEC`.
const STREAM: u32 = 1;
const SEQPACKET: u32 = 5;
const KIND_FLAGS: [u32; 4] = [0, 0o4000, 0o2_000_000, 0o2_004_000];

/// The protocols that a stream of a network may have: its own, and TCP by name. SCTP connects by sending.
const STREAM_PROTOCOLS: [u32; 2] = [0, 6];

/// `MSG_FASTOPEN` connects without connect(2), from `linux/socket.h`.
const FASTOPEN: u32 = 0x2000_0000;

/// System calls that take it, with the argument it is in.
const SENDING: [(libc::c_long, u8); 3] = [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)];

/// What would reach other processes of the same user where no pid namespace hides them. Landlock forbids it as well.
const OTHERS: &[(libc::c_long, &str)] = &[
    (libc::SYS_ptrace, "takes another process over"),
    (libc::SYS_process_vm_readv, "reads another process's memory"),
    (libc::SYS_process_vm_writev, "writes another process's memory"),
    (libc::SYS_pidfd_getfd, "takes another process's descriptors"),
    (libc::SYS_shmget, "System V memory of others, for which Landlock has no word"),
    (libc::SYS_shmat, "as shmget"),
    (libc::SYS_msgget, "as shmget, for messages"),
    (libc::SYS_semget, "as shmget, for semaphores"),
    (libc::SYS_shmctl, "the same by a number that is guessed"),
    (libc::SYS_msgctl, "as shmctl"),
    (libc::SYS_msgrcv, "as shmctl"),
    (libc::SYS_msgsnd, "as shmctl"),
    (libc::SYS_semctl, "as shmctl"),
    (libc::SYS_semop, "as shmctl"),
    (libc::SYS_semtimedop, "as shmctl"),
    (libc::SYS_mq_open, "as shmget, for messages of POSIX"),
    (libc::SYS_setpriority, "slows other processes down"),
    (libc::SYS_ioprio_set, "as setpriority"),
];

/// prctl(2): what sets the signal that comes when the parent ends.
const SET_DEATH_SIGNAL: u32 = 1;

/// The only signal that it may set: no namespace would end what gave it up.
const KILL: u32 = 9;

/// What changes files without opening them for writing, for which Landlock has no word, or has it late: truncate(2) from Linux 6.2
/// on. QEMU has no disk and no share where it is in no namespace, so nothing of the host is its to change.
const CHANGES: &[libc::c_long] = &[
    libc::SYS_truncate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    // fchmodat2(2), Linux 6.6; numbers from 424 on are the same on every architecture.
    452,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    // setxattrat(2), Linux 6.13.
    463,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // removexattrat(2), Linux 6.13.
    466,
    // file_setattr(2), Linux 6.17.
    469,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
];

const CLONE_NEWUSER: u32 = 0x1000_0000;

/// A set-user-ID or set-group-ID program that the guest leaves in the project would run as the project's owner for
/// whoever starts it on the host: `nosuid` holds for the sandbox's own mounts alone. chmod(2), inode(7).
const SET_ID_BITS: [u32; 2] = [0o4000, 0o2000];

/// System calls that take a file mode, with the argument it is in.
const MODES: &[(libc::c_long, u8)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_creat, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, 1),
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
    // fchmodat2(2), Linux 6.6; numbers from 424 on are the same on every architecture.
    (452, 2),
    (libc::SYS_mknodat, 2),
];

/// System calls that take a file mode when their flags say that a file may be made: flags, then the mode.
const CREATIONS: &[(libc::c_long, u8)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 1),
    (libc::SYS_openat, 2),
];

/// `O_CREAT`, and the bit of `O_TMPFILE` that is its own, from `asm-generic/fcntl.h`.
const CREATES: [u32; 2] = [0o100, 0o20_000_000];

/// Every way to make a file with a set-ID bit.
fn set_id_calls() -> Vec<Call> {
    let mut calls = Vec::new();
    for bit in SET_ID_BITS {
        calls.extend(MODES.iter().map(|(number, mode)| Call::new(*number).when(*mode, Test::Bit(bit))));
        for (number, flags) in CREATIONS {
            let with = |flag| Call::new(*number).when(*flags, Test::Bit(flag)).when(flags + 1, Test::Bit(bit));
            calls.extend(CREATES.map(with));
        }
    }
    calls
}

/// The filters of a sandboxed program.
///
/// # Errors
/// An architecture that the compiler of filters does not know.
pub(crate) fn program_filters(allow_userns: bool) -> Result<Vec<Filter>, FilterError> {
    let mut denied: Vec<Call> = DENIED.iter().map(|(number, _why)| Call::new(*number)).collect();
    denied.extend(MACHINE.iter().copied().map(Call::new));
    denied.extend(
        TERMINAL_COMMANDS.iter().map(|(command, _why)| Call::new(libc::SYS_ioctl).when(1, Test::Equal(*command))),
    );
    denied.extend(set_id_calls());
    let mut missing: Vec<Call> = RINGS.iter().copied().map(Call::new).collect();
    // The mode of openat2(2) is behind a pointer, out of a filter's sight; programs fall back to openat(2).
    missing.push(Call::new(libc::SYS_openat2));
    if !allow_userns {
        denied.extend(NAMESPACES.iter().copied().map(Call::new));
        for number in [libc::SYS_clone, libc::SYS_unshare] {
            denied.push(Call::new(number).when(0, Test::Bit(CLONE_NEWUSER)));
        }
        // The flags of clone3(2) are behind a pointer, out of a filter's sight; libc falls back to clone(2).
        missing.push(Call::new(libc::SYS_clone3));
    }
    Ok(vec![
        Filter::deny(denied, Answer::Errno(libc::EPERM))?,
        Filter::deny(missing, Answer::Errno(libc::ENOSYS))?,
        only_families(&[libc::SYS_socket, libc::SYS_socketpair], FAMILIES)?,
    ])
}

/// What a server of files asks for in order to be the user whom it makes a file for, or to be nobody else.
const OTHER_USERS: [libc::c_long; 3] = [libc::SYS_setgroups, libc::SYS_setresuid, libc::SYS_setresgid];

/// The filters of a program that is a device of a virtual machine. In its user namespace there is one user, so it can become no
/// other, and would refuse to serve one. It is told that it is that user; what it makes belongs to its own.
///
/// # Errors
/// As [`program_filters`].
pub(crate) fn device_filters() -> Result<Vec<Filter>, FilterError> {
    let mut filters = program_filters(false)?;
    filters.push(Filter::deny(OTHER_USERS.map(Call::new).into(), Answer::Pretend)?);
    filters.extend(confine::no_processes()?);
    Ok(filters)
}

/// The filters of QEMU where it is in no namespace: those of a program, and what the missing namespaces would forbid.
///
/// # Errors
/// As [`program_filters`].
pub(crate) fn bare_filters(sockets: Sockets) -> Result<Vec<Filter>, FilterError> {
    let mut filters = program_filters(false)?;
    let families = match sockets {
        Sockets::None => BARE_FAMILIES.get(..0),
        Sockets::Listening => BARE_FAMILIES.get(..1),
        Sockets::Any => Some(BARE_FAMILIES),
    };
    filters.push(only_families(&[libc::SYS_socket], families.unwrap_or_default())?);
    let mut denied: Vec<Call> = OTHERS.iter().map(|(number, _why)| Call::new(*number)).collect();
    denied.extend(CHANGES.iter().copied().map(Call::new));
    denied.push(Call::new(libc::SYS_prctl).when(0, Test::Equal(SET_DEATH_SIGNAL)).when(1, Test::NotEqual(KILL)));
    // The limits of another process.
    denied.push(Call::new(libc::SYS_prlimit64).when(0, Test::NotEqual(0)));
    // One end of a pair of datagram sockets reaches any other by its address; those of the others stay connected to each other.
    let paired = [STREAM, SEQPACKET].map(with_flags).concat();
    denied.push(but(Call::new(libc::SYS_socketpair), 1, &paired));
    if sockets != Sockets::Any {
        // Its channels are connected when it gets them.
        denied.push(Call::new(libc::SYS_connect));
        // What sends without being connected would reach every address all the same.
        denied.push(but(Call::new(libc::SYS_socket), 1, &with_flags(STREAM)));
        denied.push(but(Call::new(libc::SYS_socket), 2, &STREAM_PROTOCOLS));
        denied.extend(SENDING.map(|(number, flags)| Call::new(number).when(flags, Test::Bit(FASTOPEN))));
    }
    filters.push(Filter::deny(denied, Answer::Errno(libc::EPERM))?);
    Ok(filters)
}

/// What the second argument of socket(2) is for a type.
fn with_flags(kind: u32) -> [u32; 4] {
    KIND_FLAGS.map(|flags| kind | flags)
}

/// A call whose argument is none of these.
fn but(call: Call, index: u8, values: &[u32]) -> Call {
    values.iter().fold(call, |call, value| call.when(index, Test::NotEqual(*value)))
}

/// Leaves sockets of these families alone.
fn only_families(numbers: &[libc::c_long], families: &[u32]) -> Result<Filter, FilterError> {
    let calls = numbers.iter().map(|number| but(Call::new(*number), 0, families)).collect();
    Filter::deny(calls, Answer::Errno(libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt;

    use cofferdam_sys::confine;
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, Protocol, SendFlags, SocketAddrUnix, SocketFlags, SocketType, ipproto};

    use super::*;

    /// Runs a check on a thread of its own, since what is taken away there never comes back.
    fn under(sockets: Sockets, check: impl FnOnce() + Send + 'static) {
        let filters = bare_filters(sockets).unwrap();
        let checked = std::thread::spawn(move || {
            filters.iter().for_each(|filter| confine::install_seccomp(filter).unwrap());
            check();
        });
        checked.join().unwrap();
    }

    #[test]
    fn a_death_signal_stays_and_others_keep_their_limits() {
        use rustix::process::{Pid, Resource, Rlimit, Signal};
        let parent = rustix::process::getppid();
        under(Sockets::Any, move || {
            assert_eq!(rustix::process::set_parent_process_death_signal(Some(Signal::KILL)), Ok(()));
            for other in [None, Some(Signal::TERM)] {
                assert_eq!(rustix::process::set_parent_process_death_signal(other), Err(Errno::PERM));
            }
            assert!(rustix::process::getrlimit(Resource::Cpu).current.is_none_or(|limit| limit > 0));
            let none = Rlimit { current: None, maximum: None };
            assert_eq!(
                rustix::process::prlimit(parent.or(Pid::from_raw(1)), Resource::Core, none).err(),
                Some(Errno::PERM)
            );
        });
    }

    #[test]
    fn a_device_is_told_that_it_is_another_user_and_is_not() {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let groups = rustix::process::getgroups().unwrap();
        let checked = std::thread::spawn(move || {
            device_filters().unwrap().iter().for_each(|filter| confine::install_seccomp(filter).unwrap());
            let other = rustix::process::Uid::from_raw(54_321);
            rustix::thread::set_thread_res_uid(other, other, other).unwrap();
            let other = rustix::process::Gid::from_raw(54_321);
            rustix::thread::set_thread_res_gid(other, other, other).unwrap();
            rustix::thread::set_thread_groups(&[]).unwrap();
            assert_eq!((rustix::process::geteuid(), rustix::process::getegid()), (user, group));
            assert_eq!(rustix::process::getgroups().unwrap(), groups);
            // Taken over, it starts nothing.
            let started = std::process::Command::new("true").spawn();
            assert_eq!(started.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
            std::thread::spawn(|| ()).join().unwrap();
        });
        checked.join().unwrap();
    }

    fn socket(family: AddressFamily, kind: SocketType, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
        rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, protocol)
    }

    fn pair(kind: SocketType) -> Result<(OwnedFd, OwnedFd), Errno> {
        rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
    }

    #[test]
    fn a_qemu_in_no_namespace_makes_no_unix_socket_but_a_connected_pair() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let _listening = [SocketType::STREAM, SocketType::SEQPACKET].map(|kind| {
            let listening = socket(AddressFamily::UNIX, kind, None).unwrap();
            let path = path.with_extension(kind.as_raw().to_string());
            rustix::net::bind(&listening, &SocketAddrUnix::new(path).unwrap()).unwrap();
            rustix::net::listen(&listening, 8).unwrap();
            listening
        });
        for sockets in [Sockets::None, Sockets::Listening, Sockets::Any] {
            let path = path.clone();
            under(sockets, move || {
                for kind in [SocketType::STREAM, SocketType::DGRAM, SocketType::SEQPACKET] {
                    assert!(socket(AddressFamily::UNIX, kind, None).is_err(), "{sockets:?} {kind:?}");
                }
                for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
                    let address = SocketAddrUnix::new(path.with_extension(kind.as_raw().to_string())).unwrap();
                    let (one, other) = pair(kind).unwrap();
                    assert_eq!(rustix::net::send(&one, b"x", SendFlags::empty()), Ok(1));
                    assert_eq!(rustix::io::read(&other, &mut [0; 8]), Ok(1));
                    // Nor is one of them connected to anything else.
                    let refused = if sockets == Sockets::Any { Errno::ISCONN } else { Errno::PERM };
                    assert_eq!(rustix::net::connect(&one, &address), Err(refused), "{sockets:?} {kind:?}");
                }
                for kind in [SocketType::DGRAM, SocketType::RAW] {
                    assert_eq!(pair(kind).unwrap_err(), Errno::PERM, "{sockets:?}");
                }
            });
        }
    }

    #[test]
    fn a_qemu_in_no_namespace_has_the_networks_that_its_guest_needs() {
        let made = |family, kind| move || socket(family, kind, None).map(drop);
        let (inet, inet6) = (AddressFamily::INET, AddressFamily::INET6);
        let (stream, datagram) = (SocketType::STREAM, SocketType::DGRAM);
        for (sockets, family, kind, answer) in [
            (Sockets::None, inet, stream, Err(Errno::AFNOSUPPORT)),
            (Sockets::None, inet6, stream, Err(Errno::AFNOSUPPORT)),
            (Sockets::Listening, inet, stream, Ok(())),
            (Sockets::Listening, inet6, stream, Err(Errno::AFNOSUPPORT)),
            (Sockets::Listening, inet, datagram, Err(Errno::PERM)),
            (Sockets::Listening, inet, SocketType::RAW, Err(Errno::PERM)),
            (Sockets::Any, inet, stream, Ok(())),
            (Sockets::Any, inet, datagram, Ok(())),
        ] {
            let made = made(family, kind);
            under(sockets, move || assert_eq!(made(), answer, "{sockets:?} {family:?} {kind:?}"));
        }
    }

    #[test]
    fn who_only_listens_connects_in_no_other_way() {
        let there = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address: SocketAddr = there.local_addr().unwrap();
        under(Sockets::Listening, move || {
            let _listening = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let stream = |protocol| socket(AddressFamily::INET, SocketType::STREAM, protocol);
            for protocol in [ipproto::SCTP, ipproto::MPTCP] {
                assert_eq!(stream(Some(protocol)).unwrap_err(), Errno::PERM);
            }
            let own = stream(Some(ipproto::TCP)).unwrap();
            assert_eq!(rustix::net::connect(&own, &address), Err(Errno::PERM));
            let fast = SendFlags::from_bits_retain(FASTOPEN) | SendFlags::NOSIGNAL;
            assert_eq!(rustix::net::sendto(&own, b"x", fast, &address), Err(Errno::PERM));
            let mut nothing = rustix::net::SendAncillaryBuffer::default();
            let text = [std::io::IoSlice::new(b"x")];
            assert_eq!(rustix::net::sendmsg_addr(&own, &address, &text, &mut nothing, fast), Err(Errno::PERM));
        });
        there.set_nonblocking(true).unwrap();
        assert_eq!(there.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        under(Sockets::Any, move || {
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().connect(address).unwrap();
        });
    }

    #[test]
    fn a_qemu_in_no_namespace_changes_no_file_that_it_reads() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let before = file.as_file().metadata().unwrap();
        let path = file.path().to_owned();
        under(Sockets::Any, move || {
            let open = std::fs::File::open(&path).unwrap();
            let mode = std::fs::Permissions::from_mode(0o777);
            let (owner, group) = (Some(rustix::process::getuid()), Some(rustix::process::getgid()));
            let none = rustix::fs::XattrFlags::empty();
            for changed in [
                std::fs::set_permissions(&path, mode.clone()),
                open.set_permissions(mode),
                open.set_modified(std::time::UNIX_EPOCH),
                rustix::fs::chown(&path, owner, group).map_err(Into::into),
                rustix::fs::fchown(&open, owner, group).map_err(Into::into),
                rustix::fs::setxattr(&path, "user.a", b"x", none).map_err(Into::into),
                rustix::fs::lsetxattr(&path, "user.a", b"x", none).map_err(Into::into),
                rustix::fs::fsetxattr(&open, "user.a", b"x", none).map_err(Into::into),
                rustix::fs::removexattr(&path, "user.a").map_err(Into::into),
                rustix::fs::lremovexattr(&path, "user.a").map_err(Into::into),
            ] {
                assert_eq!(changed.unwrap_err().raw_os_error(), Some(libc::EPERM));
            }
        });
        let after = file.as_file().metadata().unwrap();
        assert_eq!(after.permissions(), before.permissions());
        assert_eq!(after.modified().unwrap(), before.modified().unwrap());
    }
}
