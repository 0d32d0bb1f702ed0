//! Taking powers away from a process: capabilities, `no_new_privs`, seccomp and Landlock.
//!
//! Everything here only ever narrows. The order that works: capabilities, then [`no_new_privileges`], then Landlock,
//! then seccomp last, since the filter may forbid the calls that the others need.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;

use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// One capability, capabilities(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(u8);

/// The names of capabilities(7) without `CAP_`; the index is the number, from `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The text is not the name of a capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a capability; names are those of capabilities(7), such as NET_RAW")]
pub struct UnknownCapability {
    pub name: String,
}

impl FromStr for Capability {
    type Err = UnknownCapability;

    /// Takes the names of capabilities(7) in either case, with or without `CAP_`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        (0u8..)
            .zip(NAMES)
            .find(|(_, known)| *known == name)
            .map(|(number, _)| Self(number))
            .ok_or_else(|| UnknownCapability { name: text.to_owned() })
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.get(usize::from(self.0)).unwrap_or(&"?"))
    }
}

impl Capability {
    /// Over the permissions of files, for root's processes that are to reach what others own.
    pub const DAC_OVERRIDE: Capability = Capability(1);
    /// Over the modes and times of files that belong to others, for root's processes.
    pub const FOWNER: Capability = Capability(3);
    /// Over the bounding set of its own process.
    pub const SETPCAP: Capability = Capability(8);
    /// Of a network namespace: its interfaces, addresses, filters, and sockets with addresses that are not its own.
    pub const NET_ADMIN: Capability = Capability(12);
    /// Another root directory for its own process.
    pub const SYS_CHROOT: Capability = Capability(18);

    fn set(self) -> CapabilitySet {
        CapabilitySet::from_bits_retain(1 << self.0)
    }
}

/// Every capability this kernel may know; numbers past the last one are refused with EINVAL and skipped.
fn all() -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number))
}

/// Gives up every capability of the calling thread, in all five sets.
///
/// # Errors
/// Those of capset(2) and prctl(2). Without `CAP_SETPCAP` the bounding set stays as it is; that is no error, since a
/// thread with `no_new_privs` cannot gain from it.
pub fn drop_all_capabilities() -> io::Result<()> {
    keep_capabilities(&[])
}

/// Gives up every capability but `kept`, which end up in the permitted, effective, inheritable, ambient and bounding
/// set, so that they outlive execve(2).
///
/// # Errors
/// Those of capset(2) and prctl(2): the thread does not have one of `kept`.
pub fn keep_capabilities(kept: &[Capability]) -> io::Result<()> {
    let kept = kept.iter().fold(CapabilitySet::empty(), |sum, capability| sum | capability.set());
    let own = rustix::thread::capabilities(None)?;
    rustix::thread::clear_ambient_capability_set()?;
    if own.effective.contains(CapabilitySet::SETPCAP) {
        for capability in all().filter(|capability| !kept.contains(*capability)) {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    rustix::thread::set_capabilities(None, sets)?;
    for capability in all().filter(|capability| kept.contains(*capability)) {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// Whether the calling thread has a capability.
///
/// # Errors
/// Those of capget(2).
pub fn has_capability(capability: Capability) -> io::Result<bool> {
    Ok(rustix::thread::capabilities(None)?.effective.contains(capability.set()))
}

/// Sets `no_new_privs` for the calling thread: execve(2) never grants anything again.
///
/// # Errors
/// Those of prctl(2); there is none on a kernel this program runs on.
pub fn no_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Puts an empty keyring in place of the session keyring, which holds what the user's login put there.
///
/// # Errors
/// Those of keyctl(2); `Unsupported` on a kernel without keyrings, which has nothing to hide.
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: keyctl(2) with this command reads one pointer, which may be null for an anonymous keyring.
    let rc = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a system call gets that a filter does not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It fails with this error number.
    Errno(i32),
    /// It is told that it was done, with 0 as the result; it was not.
    Pretend,
    /// The process is killed, as by SIGSYS.
    KillProcess,
}

/// A system call a filter speaks of, with conditions on its arguments that must all hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    number: i64,
    conditions: Vec<(u8, Test)>,
}

/// What an argument is compared with. Comparisons see the low 32 bits alone, as the kernel does for file descriptors,
/// flags, commands and address families: with 64 bits, a set high bit would slip past a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    Equal(u32),
    NotEqual(u32),
    /// At least one of these bits is set; the mask has exactly one bit.
    Bit(u32),
    /// None of these bits is set.
    NoBit(u32),
}

impl Call {
    /// Any use of the system call with this number (`libc::SYS_…`).
    #[must_use]
    pub fn new(number: libc::c_long) -> Self {
        Self { number, conditions: Vec::new() }
    }

    /// Only uses whose argument `index` (0..=5) passes `test`.
    #[must_use]
    pub fn when(mut self, index: u8, test: Test) -> Self {
        self.conditions.push((index, test));
        self
    }
}

/// A compiled seccomp filter. Calls of other architectures kill the process; those of the x32 ABI are answered with
/// ENOSYS.
#[derive(Debug, Clone)]
pub struct Filter {
    program: BpfProgram,
}

/// A filter that cannot be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("cannot compile the system call filter for this machine")]
    Compile(#[source] seccompiler::BackendError),
    #[error("cannot install the system call filter")]
    Install(#[source] seccompiler::Error),
}

impl Filter {
    /// Lets `calls` through and answers everything else with `otherwise`. Several entries for one call: any suffices.
    ///
    /// # Errors
    /// An architecture the compiler does not know, an argument index above 5, or a filter that is too long.
    pub fn allow(calls: Vec<Call>, otherwise: Answer) -> Result<Self, FilterError> {
        Self::compile(calls, otherwise.into(), SeccompAction::Allow)
    }

    /// Answers `calls` with `answer` and lets everything else through. Several entries for one call: any suffices.
    ///
    /// # Errors
    /// As of [`allow`](Self::allow).
    pub fn deny(calls: Vec<Call>, answer: Answer) -> Result<Self, FilterError> {
        Self::compile(calls, SeccompAction::Allow, answer.into())
    }

    fn compile(calls: Vec<Call>, otherwise: SeccompAction, listed: SeccompAction) -> Result<Self, FilterError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut always = BTreeSet::new();
        for call in calls {
            let entry = rules.entry(call.number).or_default();
            if call.conditions.is_empty() {
                // To the compiler an empty list of rules is a call without conditions.
                always.insert(call.number);
            } else {
                let conditions: Result<Vec<_>, _> = call.conditions.into_iter().map(condition).collect();
                let rule = SeccompRule::new(conditions.map_err(FilterError::Compile)?).map_err(FilterError::Compile)?;
                entry.push(rule);
            }
        }
        for number in always {
            rules.insert(number, Vec::new());
        }
        let machine = TargetArch::try_from(std::env::consts::ARCH).map_err(FilterError::Compile)?;
        let filter = SeccompFilter::new(rules, otherwise, listed, machine).map_err(FilterError::Compile)?;
        let body = BpfProgram::try_from(filter).map_err(FilterError::Compile)?;
        let mut program = x32_prefix();
        program.extend(body);
        Ok(Self { program })
    }
}

fn condition((index, test): (u8, Test)) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (operator, value) = match test {
        Test::Equal(value) => (SeccompCmpOp::Eq, value),
        Test::NotEqual(value) => (SeccompCmpOp::Ne, value),
        Test::Bit(mask) => (SeccompCmpOp::MaskedEq(u64::from(mask)), mask),
        Test::NoBit(mask) => (SeccompCmpOp::MaskedEq(u64::from(mask)), 0),
    };
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, u64::from(value))
}

/// On x86-64 the x32 ABI shares the architecture value and has numbers of its own from 0x4000_0000 on, so a list of
/// calls does not see them. Jumps in BPF are relative: the rest can follow unchanged.
fn x32_prefix() -> BpfProgram {
    if !cfg!(target_arch = "x86_64") {
        return Vec::new();
    }
    const X32_SYSCALL_BIT: u32 = 0x4000_0000;
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS of seccomp_data.nr at offset 0
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    vec![
        sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32_SYSCALL_BIT },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: u32::from(SeccompAction::from(Answer::Errno(libc::ENOSYS))) },
    ]
}

impl From<Answer> for SeccompAction {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Errno(errno) => Self::Errno(errno.unsigned_abs()),
            // seccomp(2): the number of an error is the result, negated.
            Answer::Pretend => Self::Errno(0),
            Answer::KillProcess => Self::KillProcess,
        }
    }
}

/// What leaves a process its threads, and no process to start: what starts none leaves none behind.
///
/// # Errors
/// An architecture that the compiler of filters does not know.
pub fn no_processes() -> Result<Vec<Filter>, FilterError> {
    const CLONE_THREAD: u32 = 0x0001_0000;
    let denied = vec![
        #[cfg(target_arch = "x86_64")]
        Call::new(libc::SYS_fork),
        #[cfg(target_arch = "x86_64")]
        Call::new(libc::SYS_vfork),
        Call::new(libc::SYS_clone).when(0, Test::NoBit(CLONE_THREAD)),
    ];
    // The flags of clone3(2) are behind a pointer, out of a filter's sight; libc falls back to clone(2).
    let missing = vec![Call::new(libc::SYS_clone3)];
    Ok(vec![Filter::deny(denied, Answer::Errno(libc::EPERM))?, Filter::deny(missing, Answer::Errno(libc::ENOSYS))?])
}

/// Installs a filter for the calling thread and everything it starts. Several filters add up: the strictest answer
/// wins. Sets `no_new_privs`.
///
/// # Errors
/// Those of seccomp(2).
pub fn install_seccomp(filter: &Filter) -> Result<(), FilterError> {
    seccompiler::apply_filter(&filter.program).map_err(FilterError::Install)
}

/// Leaves the calling thread and everything it starts these calls alone, and no memory that can be executed. What is not among
/// them fails with EPERM rather than ending the process: it does not happen either way, and a library that asks for something
/// it can do without must not take the process down. Sets `no_new_privs`.
///
/// # Errors
/// Those of seccomp(2).
pub fn allow_calls(calls: Vec<Call>) -> Result<(), FilterError> {
    let executable = u32::try_from(libc::PROT_EXEC).unwrap_or(4);
    let mapping = [libc::SYS_mmap, libc::SYS_mprotect].map(|call| Call::new(call).when(2, Test::Bit(executable)));
    install_seccomp(&Filter::deny(mapping.into(), Answer::Errno(libc::EPERM))?)?;
    install_seccomp(&Filter::allow(calls, Answer::Errno(libc::EPERM))?)
}

/// How much of a Landlock ruleset the kernel enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landlock {
    /// Everything this version knows of.
    Full,
    /// What an older kernel knows of.
    Partial,
    /// The kernel has no Landlock, or it is turned off.
    Absent,
}

/// What [`landlock_paths`] allows beneath a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathAccess {
    /// Read, list and execute.
    Read,
    /// All but connecting to Unix sockets that somebody outside made.
    Write,
    /// All.
    WriteAndConnect,
}

/// The newest Landlock ABI whose rights this code has been written for.
const LANDLOCK_ABI: ABI = ABI::V9;

/// Takes away from the calling thread every access to files by path, abstract Unix sockets of others, and signals to
/// processes that are not under the same rules. Descriptors that are open already keep working. Sets `no_new_privs`.
///
/// # Errors
/// Those of landlock_restrict_self(2); a kernel without Landlock is not an error.
pub fn landlock_deny_all_fs() -> io::Result<Landlock> {
    landlock_paths(&[])
}

/// Leaves the calling thread connecting to Unix sockets beneath the given directories and nothing else; otherwise as
/// [`landlock_deny_all_fs`].
///
/// # Errors
/// Those of the Landlock calls; a kernel without Landlock is not an error.
pub fn landlock_connect_beneath(directories: &[BorrowedFd<'_>]) -> io::Result<Landlock> {
    let rules = directories.iter().map(|directory| PathBeneath::new(*directory, AccessFs::ResolveUnix));
    enforced(restrict(rules))
}

/// Leaves the calling thread the given accesses beneath the given paths and nothing else; otherwise as
/// [`landlock_deny_all_fs`]. Paths that do not exist are left out.
///
/// # Errors
/// Those of the Landlock calls; a kernel without Landlock is not an error.
pub fn landlock_paths(paths: &[(&Path, PathAccess)]) -> io::Result<Landlock> {
    let rules =
        paths.iter().filter_map(|(path, access)| Some(PathBeneath::new(PathFd::new(path).ok()?, rights(*access))));
    enforced(restrict(rules))
}

/// As [`landlock_paths`], for files and directories that are open, with `O_PATH` at least.
///
/// # Errors
/// Those of the Landlock calls; a kernel without Landlock is not an error.
pub fn landlock_opened(opened: &[(OwnedFd, PathAccess)]) -> io::Result<Landlock> {
    enforced(restrict(opened.iter().map(|(file, access)| PathBeneath::new(file, rights(*access)))))
}

fn rights(access: PathAccess) -> BitFlags<AccessFs> {
    match access {
        PathAccess::Read => AccessFs::from_read(LANDLOCK_ABI),
        PathAccess::Write => AccessFs::from_all(LANDLOCK_ABI) & !AccessFs::ResolveUnix,
        PathAccess::WriteAndConnect => AccessFs::from_all(LANDLOCK_ABI),
    }
}

fn enforced(status: Result<RestrictionStatus, RulesetError>) -> io::Result<Landlock> {
    Ok(match status.map_err(io::Error::other)?.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::Absent,
    })
}

fn restrict<F: AsFd>(rules: impl Iterator<Item = PathBeneath<F>>) -> Result<RestrictionStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .scope(Scope::from_all(LANDLOCK_ABI))?
        .create()?;
    for rule in rules {
        ruleset = ruleset.add_rule(rule)?;
    }
    ruleset.restrict_self()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Runs a check on a thread of its own, since what it takes away never comes back.
    fn on_a_thread(check: impl FnOnce() + Send + 'static) {
        std::thread::spawn(check).join().unwrap();
    }

    /// Says aloud, past the capturing of `print!`, that something was not tried; the test command counts it.
    fn skip(what: &str) {
        let mut stderr = io::stderr();
        writeln!(stderr, "\nSKIP: {what}").unwrap();
    }

    #[test]
    fn takes_capability_names_in_both_spellings() {
        assert_eq!("net_raw".parse::<Capability>().unwrap(), "CAP_NET_RAW".parse().unwrap());
        assert_eq!("CAP_NET_RAW".parse::<Capability>().unwrap().to_string(), "NET_RAW");
        assert_eq!("CHECKPOINT_RESTORE".parse::<Capability>().unwrap(), Capability(40));
        for text in ["", "CAP_", "NET", "CAP_CAP_NET_RAW", "all"] {
            assert!(text.parse::<Capability>().is_err(), "{text}");
        }
    }

    #[test]
    fn drops_every_capability() {
        on_a_thread(|| {
            drop_all_capabilities().unwrap();
            let sets = rustix::thread::capabilities(None).unwrap();
            assert!(sets.permitted.is_empty() && sets.effective.is_empty() && sets.inheritable.is_empty());
        });
    }

    #[test]
    fn a_denied_call_gets_the_answer_and_others_pass() {
        on_a_thread(|| {
            let calls = vec![Call::new(libc::SYS_getpriority), Call::new(libc::SYS_socket).when(0, Test::Equal(40))];
            install_seccomp(&Filter::deny(calls, Answer::Errno(libc::EXDEV)).unwrap()).unwrap();
            assert_eq!(rustix::process::getpriority_process(None), Err(Errno::XDEV));
            let vsock = rustix::net::AddressFamily::from_raw(40);
            let kind = rustix::net::SocketType::STREAM;
            assert_eq!(rustix::net::socket(vsock, kind, None).unwrap_err(), Errno::XDEV);
            assert!(rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).is_ok());
        });
    }

    #[test]
    fn a_condition_ignores_the_high_half_of_an_argument() {
        on_a_thread(|| {
            let calls = vec![Call::new(libc::SYS_ioctl).when(1, Test::Equal(0x5412))];
            install_seccomp(&Filter::deny(calls, Answer::Errno(libc::EXDEV)).unwrap()).unwrap();
            // SAFETY: ioctl(2) on a descriptor that does not exist touches no memory.
            let rc = unsafe { libc::syscall(libc::SYS_ioctl, -1, 0x1_0000_5412_u64, 0) };
            assert_eq!((rc, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EXDEV)));
        });
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn calls_of_the_x32_abi_do_not_exist() {
        on_a_thread(|| {
            let calls = vec![Call::new(libc::SYS_getpriority)];
            install_seccomp(&Filter::deny(calls, Answer::Errno(libc::EXDEV)).unwrap()).unwrap();
            // SAFETY: getpid takes no arguments.
            let rc = unsafe { libc::syscall(libc::SYS_getpid | 0x4000_0000) };
            assert_eq!((rc, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ENOSYS)));
        });
    }

    #[test]
    fn without_processes_there_are_threads() {
        on_a_thread(|| {
            no_processes().unwrap().iter().for_each(|filter| install_seccomp(filter).unwrap());
            let parent = std::process::id();
            // As fork(2) would be called by its number, with the end of the child as the one signal, and with flags behind a pointer.
            let flags = [u64::from(libc::SIGCHLD.unsigned_abs()), 0, 0, 0, 0, 0, 0, 0];
            let clone = (libc::SYS_clone, [u64::from(libc::SIGCHLD.unsigned_abs()), 0], libc::EPERM);
            let clone3 = (libc::SYS_clone3, [flags.as_ptr().expose_provenance() as u64, 64], libc::ENOSYS);
            let fork = [
                #[cfg(target_arch = "x86_64")]
                (libc::SYS_fork, [0, 0], libc::EPERM),
            ];
            for (call, arguments, refused) in fork.into_iter().chain([clone, clone3]) {
                // SAFETY: where it is not refused it makes a process that has a copy of everything, which ends below.
                let rc = unsafe { libc::syscall(call, arguments[0], arguments[1], 0, 0, 0) };
                let error = io::Error::last_os_error();
                if std::process::id() != parent {
                    // SAFETY: _exit(2) has no preconditions.
                    unsafe { libc::_exit(0) };
                }
                assert_eq!((rc, error.raw_os_error()), (-1, Some(refused)), "{call}");
            }
            std::thread::spawn(|| ()).join().unwrap();
        });
    }

    #[test]
    fn an_entry_without_conditions_wins_over_one_with() {
        on_a_thread(|| {
            let calls =
                vec![Call::new(libc::SYS_getpriority).when(0, Test::Equal(77)), Call::new(libc::SYS_getpriority)];
            install_seccomp(&Filter::deny(calls, Answer::Errno(libc::EXDEV)).unwrap()).unwrap();
            assert_eq!(rustix::process::getpriority_process(None), Err(Errno::XDEV));
        });
    }

    #[test]
    fn landlock_leaves_open_descriptors_and_closes_paths() {
        on_a_thread(|| {
            let open = std::fs::File::open("/etc/passwd").unwrap();
            if landlock_deny_all_fs().unwrap() == Landlock::Absent {
                skip("this kernel has no Landlock");
                return;
            }
            assert!(open.metadata().is_ok());
            assert_eq!(std::fs::File::open("/etc/passwd").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        });
    }

    #[test]
    fn landlock_tells_reading_from_writing() {
        let dir = std::env::temp_dir().join(format!("cofferdam-landlock-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let kept = dir.clone();
        on_a_thread(move || {
            let paths = [(Path::new("/"), PathAccess::Read), (kept.as_path(), PathAccess::Write)];
            if landlock_paths(&paths).unwrap() == Landlock::Absent {
                skip("this kernel has no Landlock");
                return;
            }
            std::fs::write(kept.join("a"), "x").unwrap();
            std::fs::remove_file(kept.join("a")).unwrap();
            assert!(std::fs::read("/etc/passwd").is_ok());
            let refused = std::fs::write("/var/tmp/cofferdam-landlock", "x").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        });
        std::fs::remove_dir(&dir).unwrap();
    }
}
