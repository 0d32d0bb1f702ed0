//! Giving up power before the first byte of a guest is read.
//!
//! | Stage | What is given up | Why not earlier |
//! |---|---|---|
//! | capabilities, `no_new_privs` | any privilege, and any way to get one | the descriptor limit is raised before |
//! | Landlock | every path of the file system, others' abstract sockets, signals to others | – |
//! | seccomp | every system call that the loop does not make, memory that can be executed | the stages above need theirs |
//!
//! What stays: the descriptors that were handed over, TCP, UDP and ICMP sockets in the host's network, memory and time. A
//! kernel without Landlock loses that stage alone: no call that takes a path is let through by seccomp either.

use std::io;
use std::os::fd::BorrowedFd;

use cofferdam_sys::confine::{self, Call, Capability, FilterError, Test};

/// Proof that the process is confined. Only [`seal`] makes one, and the loop takes it.
#[derive(Debug)]
pub(crate) struct Sealed(());

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
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

/// What a gateway needs beyond what every gateway does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// Connections to the guest come from an address that is bound. Nothing is ever listened on.
    Bind,
}

/// Confines the calling thread for good.
pub(crate) fn seal(needs: Needs) -> Result<Sealed, SealError> {
    confine(&[], &[], calls(needs))?;
    Ok(Sealed(()))
}

/// Leaves the calling thread `kept`, `calls`, and connecting to Unix sockets beneath `reach`, for good: no other path, no other
/// privilege, and no memory that can be executed.
pub(crate) fn confine(kept: &[Capability], reach: &[BorrowedFd<'_>], calls: Vec<Call>) -> Result<(), SealError> {
    confine::keep_capabilities(kept).map_err(|source| SealError::Capabilities { source })?;
    confine::no_new_privileges().map_err(|source| SealError::NoNewPrivileges { source })?;
    confine::landlock_connect_beneath(reach).map_err(|source| SealError::Landlock { source })?;
    Ok(confine::allow_calls(calls)?)
}

/// What a process that hands sockets to the gateway needs besides what it takes to make them.
pub(crate) fn helper_calls() -> Vec<Call> {
    let any = [
        // The loop.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_read,
        libc::SYS_sendmsg,
        libc::SYS_close,
        libc::SYS_restart_syscall,
        // Its last words, and the end.
        libc::SYS_write,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_sigaltstack,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_tgkill,
        // The allocator.
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
    ];
    // The standard library looks whether what it closes is open, in builds with debug assertions.
    let commands = [only(libc::SYS_fcntl, 1, libc::F_GETFD)];
    any.into_iter().map(Call::new).chain(commands).collect()
}

/// Only uses of a call whose argument has this value.
pub(crate) fn only(call: libc::c_long, argument: u8, value: libc::c_int) -> Call {
    Call::new(call).when(argument, Test::Equal(u32::try_from(value).unwrap_or(u32::MAX)))
}

/// Every system call of the loop, and who makes it.
fn calls(needs: Needs) -> Vec<Call> {
    let any = [
        // The poller, and how it waits.
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_clock_gettime,
        libc::SYS_restart_syscall,
        // The TUN, the ready byte, and messages on stderr.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_writev,
        // Dials and mappings; the address families are further down.
        libc::SYS_connect,
        libc::SYS_setsockopt,
        libc::SYS_getsockopt,
        libc::SYS_accept4,
        libc::SYS_accept,
        libc::SYS_getsockname,
        libc::SYS_shutdown,
        libc::SYS_close,
        // The relay.
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_splice,
        libc::SYS_pipe2,
        // Rows of datagrams and the error queue.
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        libc::SYS_sendmsg,
        // The allocator.
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_futex,
        // Keys of hash maps.
        libc::SYS_getrandom,
        // Signals and the end, in peace and in panic.
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
    let families = [libc::AF_INET, libc::AF_INET6].map(|family| only(libc::SYS_socket, 0, family));
    let commands = [
        // The size of a new pipe of the relay.
        libc::F_SETPIPE_SZ,
        // The spare descriptor, given up and taken again.
        libc::F_DUPFD_CLOEXEC,
        // The standard library looks whether what it closes is open, in builds with debug assertions.
        libc::F_GETFD,
    ]
    .map(|command| only(libc::SYS_fcntl, 1, command));
    let bind = (needs == Needs::Bind).then_some(Call::new(libc::SYS_bind));
    any.into_iter().map(Call::new).chain(families).chain(commands).chain(bind).collect()
}

#[cfg(test)]
mod tests {
    use rustix::fs::OFlags;
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType};

    use super::*;

    #[test]
    fn a_sealed_thread_can_dial_and_nothing_else() {
        // What is taken away concerns the thread alone and never comes back.
        let run = || {
            let _sealed = seal(Needs::Nothing).unwrap();
            let tcp = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
            let unix = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None);
            let packet = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, None);
            let file = rustix::fs::open("/etc/passwd", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
            let signal = rustix::process::test_kill_process(rustix::process::getpid());
            (tcp.map(drop), unix.map(drop), packet.map(drop), file.map(drop), signal)
        };
        let (tcp, unix, packet, file, signal) = std::thread::spawn(run).join().unwrap();
        assert_eq!(tcp, Ok(()));
        assert_eq!(unix, Err(Errno::PERM));
        assert_eq!(packet, Err(Errno::PERM));
        assert_eq!(file, Err(Errno::PERM));
        assert_eq!(signal, Err(Errno::PERM));
    }

    #[test]
    fn a_sealed_thread_binds_where_ports_may_be_published_and_never_listens() {
        for (needs, bound) in [(Needs::Nothing, Err(Errno::PERM)), (Needs::Bind, Ok(()))] {
            let run = move || {
                let _sealed = seal(needs).unwrap();
                let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
                let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
                (rustix::net::bind(&socket, &any), rustix::net::listen(&socket, 1))
            };
            assert_eq!(std::thread::spawn(run).join().unwrap(), (bound, Err(Errno::PERM)));
        }
    }

    #[test]
    fn a_sealed_thread_keeps_three_commands_of_fcntl() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let run = move || {
            let _sealed = seal(Needs::Nothing).unwrap();
            let kept = [
                rustix::pipe::fcntl_setpipe_size(&write, 8192).map(drop),
                rustix::io::fcntl_dupfd_cloexec(&write, 3).map(drop),
                rustix::io::fcntl_getfd(&write).map(drop),
            ];
            let taken = [
                rustix::pipe::fcntl_getpipe_size(&read).map(drop),
                rustix::fs::fcntl_getfl(&read).map(drop),
                rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK),
                rustix::fs::fcntl_get_seals(&read).map(drop),
                rustix::fs::fcntl_lock(&read, rustix::fs::FlockOperation::NonBlockingLockShared),
            ];
            (kept, taken)
        };
        let (kept, taken) = std::thread::spawn(run).join().unwrap();
        assert_eq!(kept, [Ok(()); 3]);
        assert_eq!(taken, [Err(Errno::PERM); 5]);
    }
}
