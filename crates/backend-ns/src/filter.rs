//! The system calls a sandboxed program does without, each with the reason.
//!
//! The list denies instead of allowing: programs nobody has looked at run here, and what guards the host are the
//! namespaces, the missing capabilities and the gateway. The filter removes attack surface of the kernel and the few
//! ways around those (sockets of families that have no network namespace, keyrings, terminals).

use cofferdam_sys::confine::{Answer, Call, Filter, FilterError, Test};

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

/// The families that QEMU uses where it is in no namespace, each added to those before it.
const BARE_FAMILIES: &[u32] = &[
    1,  // AF_UNIX: the channels of the agent and of QMP
    2,  // AF_INET: published ports
    10, // AF_INET6: what its own network reaches
];

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
        only_families(FAMILIES)?,
    ])
}

/// The filters of QEMU where it is in no namespace: those of a program, and what the missing namespaces would forbid.
///
/// # Errors
/// As [`program_filters`].
pub(crate) fn bare_filters(sockets: Sockets) -> Result<Vec<Filter>, FilterError> {
    let mut filters = program_filters(false)?;
    filters.push(only_families(
        match sockets {
            Sockets::None => BARE_FAMILIES.get(..1),
            Sockets::Listening => BARE_FAMILIES.get(..2),
            Sockets::Any => Some(BARE_FAMILIES),
        }
        .unwrap_or_default(),
    )?);
    let mut denied: Vec<Call> = OTHERS.iter().map(|(number, _why)| Call::new(*number)).collect();
    if sockets != Sockets::Any {
        // Its channels are connected when it gets them.
        denied.push(Call::new(libc::SYS_connect));
    }
    filters.push(Filter::deny(denied, Answer::Errno(libc::EPERM))?);
    Ok(filters)
}

/// Leaves sockets of these families alone.
fn only_families(families: &[u32]) -> Result<Filter, FilterError> {
    let mut calls = Vec::new();
    for number in [libc::SYS_socket, libc::SYS_socketpair] {
        calls.push(families.iter().fold(Call::new(number), |call, family| call.when(0, Test::NotEqual(*family))));
    }
    Filter::deny(calls, Answer::Errno(libc::EAFNOSUPPORT))
}
