//! What a process does to itself after a fork and before an exec: descriptors, signals, users, its own end.

use std::ffi::{CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::OnceLock;

use rustix::io::{Errno, FdFlags};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::confine::{Filter, install_seccomp};

/// Exit status of a child whose closure panicked; the value Rust's own runtime uses for a panic.
pub const PANICKED: u8 = 101;

/// Runs `child` and ends the process with its result, or with [`PANICKED`].
pub fn run_and_exit(child: impl FnOnce() -> u8) -> ! {
    let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
    // SAFETY: _exit(2) has no preconditions. No destructor is run on purpose: they belong to the parent.
    unsafe { libc::_exit(i32::from(status)) }
}

/// Executes a program in place of this process. Returns only when that failed.
///
/// Strings with a NUL byte inside are refused with `InvalidInput`.
pub fn exec(
    program: &OsStr,
    arguments: &[impl AsRef<OsStr>],
    environment: &[(impl AsRef<OsStr>, impl AsRef<OsStr>)],
) -> io::Error {
    let arguments: Result<Vec<_>, _> =
        arguments.iter().map(|argument| CString::new(argument.as_ref().as_bytes())).collect();
    let environment: Result<Vec<_>, _> = environment
        .iter()
        .map(|(name, value)| CString::new([name.as_ref().as_bytes(), b"=", value.as_ref().as_bytes()].concat()))
        .collect();
    let (program, arguments, environment) = match (CString::new(program.as_bytes()), arguments, environment) {
        (Ok(program), Ok(arguments), Ok(environment)) => (program, arguments, environment),
        _ => return io::ErrorKind::InvalidInput.into(),
    };
    let argv = null_terminated(&arguments);
    let envp = null_terminated(&environment);
    // SAFETY: `program` and the strings behind both arrays are NUL-terminated and live until this function returns;
    // both arrays end with a null pointer.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

fn null_terminated(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Puts `name` in place of the command line that `/proc/<pid>/cmdline` shows of this process to everybody, and of its
/// short name. Whatever was on the command line (paths of the host, values of variables) is gone for this process.
///
/// # Errors
/// `/proc/self/stat` cannot be read or understood.
pub fn rename(name: &str) -> io::Result<()> {
    rustix::thread::set_name(&CString::new(name)?)?;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // proc_pid_stat(5): the fields after the name in parentheses start with the third; arg_start and arg_end are the
    // 48th and 49th.
    let mut fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ')).ok_or(io::ErrorKind::InvalidData)?;
    let mut field = |skip| fields.nth(skip).and_then(|text| text.parse::<usize>().ok());
    let (Some(start), Some(end)) = (field(45), field(0)) else { return Err(io::ErrorKind::InvalidData.into()) };
    if start == 0 || end <= start {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let area = std::ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the kernel put the strings of argv into [start, end) of this process's own writable stack area. Nobody
    // holds a reference into them: `std::env::args` copies on every call. At least one NUL stays at the end.
    unsafe { std::ptr::write_bytes(area, 0, end - start) };
    let len = name.len().min(end - start - 1);
    // SAFETY: as above, and `len` is less than the size of the area; the two do not overlap, since `name` is no part
    // of the argument strings that a reference could reach.
    unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), area, len) };
    Ok(())
}

/// Closes every descriptor of this process except 0, 1, 2 and `kept`.
///
/// For a freshly forked child that will exit by [`run_and_exit`]: the owners of the closed descriptors live in frames
/// that it never returns to. It must not touch another descriptor that was opened before this call.
///
/// # Errors
/// Those of close_range(2).
pub fn close_all_except(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).filter(|number| *number > 2).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        if number > first {
            close_range(first, number - 1, 0)?;
        }
        first = number + 1;
    }
    close_range(first, RawFd::MAX, 0)
}

/// Marks every descriptor but 0, 1 and 2 close-on-exec.
///
/// # Errors
/// Those of close_range(2): Linux 5.11 is needed.
pub fn close_others_on_exec() -> io::Result<()> {
    close_range(3, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: close_range(2) takes numbers alone. That nobody uses a closed descriptor any more is the contract of the
    // one caller that closes; the other only sets a flag.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the program that `command` executes inherit these descriptors, under the numbers they have in this process; no other
/// program that this process starts meanwhile does. They stay open for as long as `command` is there.
pub fn inherit(command: &mut Command, descriptors: Vec<OwnedFd>) {
    let keep_open = move || {
        for descriptor in &descriptors {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes fcntl(2) calls and nothing else: no allocation, no lock, and only with
    // descriptors that it owns.
    unsafe { command.pre_exec(keep_open) };
}

/// Has the program that `command` executes lead a session of its own, away from this process's terminal and its signals, and be
/// killed when the thread that starts it ends.
pub fn accompany(command: &mut Command) {
    let leave = || {
        rustix::process::setsid()?;
        die_with_parent()
    };
    // SAFETY: between fork and exec the closure makes two system calls and nothing else: no allocation, no lock.
    unsafe { command.pre_exec(leave) };
}

/// Has the program that `command` executes be under these filters, besides those of this thread.
pub fn filter(command: &mut Command, filters: Vec<Filter>) {
    let install =
        move || filters.iter().try_for_each(|filter| install_seccomp(filter).map_err(|_| io::Error::last_os_error()));
    // SAFETY: between fork and exec the closure makes prctl(2) and seccomp(2) calls and nothing else, with filters that were compiled
    // before: no allocation, no lock.
    unsafe { command.pre_exec(install) };
}

/// What the soft limit of descriptors was before [`raise_descriptor_limit`]; a process has one, and its forks know it.
static DESCRIPTORS_BEFORE: OnceLock<Option<u64>> = OnceLock::new();

/// Sets the soft limit of descriptors (`RLIMIT_NOFILE`; getrlimit(2)) to the hard one, and says what it is; `None` is any number.
pub fn raise_descriptor_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    DESCRIPTORS_BEFORE.get_or_init(|| limit.current);
    // Whoever may not has what it had.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current
}

/// Gives a hostile program that is about to be executed a hard limit of descriptors below that of everybody else of its user, and
/// the soft one of before [`raise_descriptor_limit`].
///
/// The kernel counts descriptors that are on their way over Unix sockets for all processes of a user together, and lets nobody send
/// who may have fewer than are on their way (unix(7), `ETOOMANYREFS`): with a lower limit a program cannot keep us from sending.
///
/// # Errors
/// Those of setrlimit(2).
pub fn lower_descriptor_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let before = DESCRIPTORS_BEFORE.get().copied().unwrap_or(limit.current);
    let hard = limit.maximum.map(below_senders);
    let soft = [before, hard].into_iter().flatten().min();
    Ok(setrlimit(Resource::Nofile, Rlimit { current: soft, maximum: hard })?)
}

/// As [`lower_descriptor_limit`], for a program that needs as many as it may have.
///
/// # Errors
/// Those of setrlimit(2).
pub fn lower_raised_descriptor_limit() -> io::Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum.map(below_senders);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?)
}

/// How many descriptors a program may have where this is the hard limit. Without one nothing can be kept apart; no kernel lets a
/// process have more than `fs.nr_open`.
fn below_senders(hard: u64) -> u64 {
    hard - hard / 16
}

/// Opens `/dev/null` in place of those of descriptors 0, 1 and 2 that are closed, so that no later descriptor ends up
/// there by chance.
///
/// # Errors
/// `/dev/null` cannot be opened.
pub fn fill_standard_descriptors() -> io::Result<()> {
    loop {
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        // The lowest free number was one of the three: it stays open for the rest of the process's life.
        std::mem::forget(null);
    }
}

/// A set of signals.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl std::fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalSet")
    }
}

impl SignalSet {
    #[must_use]
    pub fn new(signals: &[Signal]) -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset(3) initialises the whole set it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised by the call above, which cannot fail.
        let mut set = unsafe { set.assume_init() };
        for signal in signals {
            // SAFETY: the set is initialised; a number that is no signal is refused with EINVAL and adds nothing.
            unsafe { libc::sigaddset(&raw mut set, signal.as_raw()) };
        }
        Self(set)
    }
}

/// Makes `set` the signal mask of the calling thread and returns the mask before.
///
/// # Errors
/// Those of pthread_sigmask(3); none for a valid set.
pub fn set_signal_mask(set: &SignalSet) -> io::Result<SignalSet> {
    let mut before = SignalSet::new(&[]);
    // SAFETY: both pointers lead to initialised sets that live through the call.
    let rc = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set.0, &raw mut before.0) };
    if rc == 0 { Ok(before) } else { Err(io::Error::from_raw_os_error(rc)) }
}

/// Whether a signal is ignored by this process, as `nohup` and shells in the background arrange it.
#[must_use]
pub fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; the old one is written to `action`, which is large enough.
    let rc = unsafe { libc::sigaction(signal.as_raw(), std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeros is a valid sigaction, and the call above has filled it in when it succeeded.
    let action = unsafe { action.assume_init() };
    rc == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Gives every signal its default action and unblocks all, as a program expects at its start. The signals in `kept`
/// stay ignored if they are: that is how a background job is told not to mind the terminal.
///
/// # Errors
/// Those of [`set_signal_mask`].
pub fn reset_signals(kept: &[Signal]) -> io::Result<()> {
    // The kernel's own structure and call, since libc keeps two real-time signals from everybody else, also those that
    // come here ignored. All zeros: default action, no flags, an empty mask. 32 bytes on every 64-bit architecture.
    const DEFAULT: [u64; 4] = [0; 4];
    const MASK_SIZE: usize = 8;
    for number in (1..=64).filter(|number| kept.iter().all(|signal| signal.as_raw() != *number)) {
        // SAFETY: rt_sigaction(2) reads the structure, which lives through the call, and writes nothing through the
        // null pointer. The default action runs no code of ours. KILL and STOP are refused with EINVAL.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                DEFAULT.as_ptr(),
                std::ptr::null_mut::<libc::c_void>(),
                MASK_SIZE,
            )
        };
    }
    set_signal_mask(&SignalSet::new(&[]))?;
    Ok(())
}

/// Has this process ignore a signal.
///
/// # Errors
/// Those of rt_sigaction(2): KILL and STOP cannot be ignored.
pub fn ignore(signal: Signal) -> io::Result<()> {
    // As in `reset_signals`; 1 is SIG_IGN.
    const IGNORE: [u64; 4] = [1, 0, 0, 0];
    const MASK_SIZE: usize = 8;
    // SAFETY: rt_sigaction(2) reads the structure, which lives through the call, and writes nothing through the null pointer.
    // Nothing runs when an ignored signal comes.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal.as_raw(),
            IGNORE.as_ptr(),
            std::ptr::null_mut::<libc::c_void>(),
            MASK_SIZE,
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor from which blocked signals are read, signalfd(2). Non-blocking and close-on-exec.
///
/// Dropping it discards what was not read and puts the signal mask of the calling thread back as it was.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
    before: SignalSet,
}

impl SignalFd {
    /// Blocks `signals` and only those in the calling thread, and receives them here.
    ///
    /// # Errors
    /// Those of signalfd(2).
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let set = SignalSet::new(signals);
        let before = set_signal_mask(&set)?;
        // SAFETY: the set is initialised and lives through the call; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            set_signal_mask(&before)?;
            return Err(error);
        }
        // SAFETY: `fd` is a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, before })
    }

    /// The next signal that has arrived, if any.
    ///
    /// # Errors
    /// Those of read(2) but EAGAIN.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        // A signalfd_siginfo has 128 bytes (linux/signalfd.h); the number of the signal comes first.
        let mut info = [0u8; 128];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut info)) {
            Ok(128) => {
                let number = info.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes));
                Ok(number.and_then(Signal::from_named_raw))
            }
            Ok(_) | Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SignalFd {
    fn drop(&mut self) {
        while let Ok(Some(_)) = self.next() {}
        // A mask that was in force before is valid.
        let _valid = set_signal_mask(&self.before);
    }
}

/// Has the kernel kill this process when the thread that made it ends. The kernel forgets this when the process's user
/// changes, so it comes after the last such change; and it may come too late for a parent that has ended already,
/// which a lifeline has to show.
///
/// # Errors
/// Those of prctl(2).
pub fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// The process id, as the caller's `/proc` shows it, of the process that a pidfd refers to.
///
/// # Errors
/// Those of reading `/proc/self/fdinfo`; `NotFound` for a process that has ended or is not in sight.
pub fn pid_of(pidfd: impl AsFd) -> io::Result<rustix::process::Pid> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd()))?;
    // pidfd_open(2), proc_pid_fdinfo(5): -1 for one that was waited for, 0 for one outside of this pid namespace.
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok());
    pid.filter(|pid| *pid > 0).and_then(rustix::process::Pid::from_raw).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Clears the supplementary groups and becomes the given user and group in every sense (real, effective, saved).
///
/// # Errors
/// Those of setgroups(2), setresgid(2) and setresuid(2).
pub fn become_user(uid: u32, gid: u32, groups: Groups) -> io::Result<()> {
    if groups == Groups::Clear {
        rustix::thread::set_thread_groups(&[])?;
    }
    let gid = rustix::process::Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = rustix::process::Uid::from_raw(uid);
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

/// What happens to the supplementary groups of a process that changes its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    Clear,
    Keep,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_blocked_signal_from_the_descriptor() {
        std::thread::spawn(|| {
            let signals = SignalFd::new(&[Signal::USR1]).unwrap();
            assert_eq!(signals.next().unwrap(), None);
            // SAFETY: raise(3) sends to this thread, where the signal is blocked.
            unsafe { libc::raise(libc::SIGUSR1) };
            assert_eq!(signals.next().unwrap(), Some(Signal::USR1));
            assert_eq!(signals.next().unwrap(), None);
            // SAFETY: as above.
            unsafe { libc::raise(libc::SIGUSR1) };
            // One that nobody has read is gone with the descriptor; otherwise it would end this process.
            drop(signals);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_descriptor_is_inherited_by_the_program_it_is_for_and_by_no_other() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let number = write.as_raw_fd();
        let shell = |script: String| {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(script);
            command
        };
        let mut command = shell(format!("echo word > /dev/fd/{number}"));
        inherit(&mut command, vec![write]);
        let mut other = shell(format!("test ! -e /proc/self/fd/{number}"));
        assert!(other.status().unwrap().success());
        assert!(command.status().unwrap().success());
        drop(command);
        assert_eq!(io::read_to_string(std::fs::File::from(read)).unwrap(), "word\n");
    }

    #[test]
    fn exec_refuses_strings_with_a_nul_and_names_a_missing_program() {
        let none: [(&str, &str); 0] = [];
        assert_eq!(exec(OsStr::new("/a\0b"), &["x"], &none).kind(), io::ErrorKind::InvalidInput);
        assert_eq!(exec(OsStr::new("/no/such/program"), &["x"], &none).kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn sees_which_signals_are_ignored() {
        // Rust's runtime ignores SIGPIPE and leaves SIGUSR2 alone.
        assert!(is_ignored(Signal::PIPE));
        assert!(!is_ignored(Signal::USR2));
    }
}
