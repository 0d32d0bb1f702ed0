//! The state directory: which sandboxes there are, and which of them are alive.
//!
//! | Entry | Lock | Is |
//! |---|---|---|
//! | `NAME` | held by its keeper | starting, or running when its control socket answers |
//! | `NAME` | free | stopped: never started, ended, or left by a crash or reboot; `start` makes it anew |
//! | `.new-…`, `.gone-…` | held | being made, being removed |
//! | `.new-…`, `.gone-…` | free | left by a crash; removed by the next who makes or removes one |
//!
//! An entry appears and disappears by one rename. Whoever changes one holds its lock, and has looked after taking it whether
//! the entry is still the one by that name. The kernel lets go of a lock when the last process that has it ends, so nothing
//! that is written in a file, no process id above all, has to be believed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use cofferdam_backend_ns::writable_roots;
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::protocol::{self, CONTROL};
use super::spec::{KEPT, NamedSpec, SpecError};
use crate::remove::remove_tree;
use crate::state::{self, StateError, read_file, replace_file, write_new};
use crate::store::RUN_FILE;

/// Longest name. What is inside of a sandbox never sees it, so this is for people and file systems.
const LONGEST_NAME: usize = 63;

/// How long a lock that somebody holds for a moment only (`ls` looks that way) is waited for.
const MOMENT: Duration = Duration::from_millis(500);

/// How long a sandbox may take to listen once somebody holds its lock: the start of it, with the compiling of its policy.
const STARTING: Duration = Duration::from_secs(10);

pub(super) const SPEC: &str = "sandbox.json";

/// Whether this is where a keeper is asked things, or whoever supervises a run.
pub(crate) fn is_control_socket(path: &Path) -> bool {
    let is_beside = |name: &str| path.with_file_name(name).exists();
    path.file_name().is_some_and(|name| name == CONTROL) && (is_beside(SPEC) || is_beside(RUN_FILE))
}

/// The name of a sandbox: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SandboxName(String);

impl SandboxName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for SandboxName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SandboxName {
    type Err = NamedError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let inner = |byte: u8| plain(byte) || b"._-".contains(&byte);
        let is_name = text.bytes().next().is_some_and(plain) && text.bytes().all(inner) && text.len() <= LONGEST_NAME;
        if is_name { Ok(SandboxName(text.to_owned())) } else { Err(NamedError::Name(text.to_owned())) }
    }
}

/// Why something could not be done with a sandbox that stays.
#[derive(Debug, thiserror::Error)]
pub enum NamedError {
    #[error(
        "{0:?} cannot be the name of a sandbox: lower-case letters, digits, dots, dashes and underscores, up to {LONGEST_NAME}, \
         the first a letter or digit"
    )]
    Name(String),
    #[error("there is no sandbox named {0}; `cofferdam ls` shows those there are")]
    Absent(SandboxName),
    #[error("there is a sandbox named {0} already; choose another name, or remove it with `cofferdam rm {0}`")]
    Exists(SandboxName),
    #[error("the sandbox {0} is not running; `cofferdam start {0}` starts it")]
    Stopped(SandboxName),
    #[error("the sandbox {0} is running; stop it first, or use --force")]
    Running(SandboxName),
    #[error("somebody else is starting, stopping, changing or removing the sandbox {0}; try again")]
    Busy(SandboxName),
    #[error("the specification of the sandbox {name} cannot be used, so it was not started")]
    Spec { name: SandboxName, source: SpecError },
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the keeper of {name} {what}")]
    Keeper { name: SandboxName, what: String },
}

/// Whether a sandbox is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its keeper answers.
    Running,
    /// Somebody starts, ends or removes it.
    Changing,
    Stopped,
}

impl State {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Changing => "changing",
            State::Stopped => "stopped",
        }
    }
}

/// The sandboxes of one user.
#[derive(Debug, Clone)]
pub struct Registry {
    root: PathBuf,
}

impl Registry {
    /// The sandboxes in a state directory, which does not have to be there.
    #[must_use]
    pub fn at(state: &Path) -> Registry {
        Registry { root: state.join(state::SANDBOXES) }
    }

    /// Where they are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The names there are, in order.
    ///
    /// # Errors
    /// A directory that cannot be read or trusted.
    pub fn names(&self) -> Result<Vec<SandboxName>, NamedError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error("read", &self.root)(source)),
        };
        let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        let mut names: Vec<SandboxName> = entries.filter_map(name).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What of the host programs in these sandboxes can write to: where they may have left links.
    #[must_use]
    pub fn writable_roots(&self) -> Vec<PathBuf> {
        let specs = self.names().unwrap_or_default().into_iter().filter_map(|name| self.open(&name).ok()?.spec().ok());
        // One that cannot be read is of no sandbox that could be running.
        let options = specs.filter_map(|spec| spec.run_options(Vec::new(), Vec::new()).ok());
        let roots = options.flat_map(|options| writable_roots(options.project.as_deref(), &options.mounts));
        roots.chain(self.root.canonicalize()).collect()
    }

    /// Opens one.
    ///
    /// # Errors
    /// When it is not there, or is not to be trusted.
    pub fn open(&self, name: &SandboxName) -> Result<Entry, NamedError> {
        let path = self.root.join(name.as_str());
        match state::open_entry(&path) {
            Ok(directory) => {
                state::check_owner(&directory, &path)?;
                Ok(Entry { name: name.clone(), path, directory })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NamedError::Absent(name.clone())),
            Err(error) => Err(io_error("open", &path)(error)),
        }
    }

    /// Makes an entry, and holds its lock.
    ///
    /// # Errors
    /// When there is one by that name, or it cannot be made.
    pub fn create(&self, name: &SandboxName, spec: &NamedSpec) -> Result<Locked, NamedError> {
        state::make_root(&self.root)?;
        state::sweep(&self.root);
        if self.root.join(name.as_str()).symlink_metadata().is_ok() {
            return Err(NamedError::Exists(name.clone()));
        }
        let path = self.root.join(format!(".new-{}-{name}", std::process::id()));
        // A leftover of a process that had our number, which the sweep did not get: it is in use after all.
        DirBuilder::new().mode(0o700).create(&path).map_err(io_error("make", &path))?;
        let made = self.fill(&path, name, spec);
        if made.is_err() {
            let _left_for_the_sweep = remove_tree(&path);
        }
        made
    }

    fn fill(&self, path: &Path, name: &SandboxName, spec: &NamedSpec) -> Result<Locked, NamedError> {
        let directory = state::open_entry(path).map_err(io_error("open", path))?;
        let lock = state::make_lock(&directory).map_err(io_error("lock", path))?;
        for (target, kept) in KEPT {
            let kept = path.join(kept);
            fs::create_dir(&kept).map_err(io_error("make", &kept))?;
            let mode = if target == "/home/user" { 0o755 } else { 0o1777 };
            fs::set_permissions(&kept, fs::Permissions::from_mode(mode)).map_err(io_error("open up", &kept))?;
        }
        write_new(&directory, SPEC, spec.to_json().as_bytes()).map_err(io_error("write", &path.join(SPEC)))?;
        let goal = self.root.join(name.as_str());
        match rustix::fs::renameat_with(rustix::fs::CWD, path, rustix::fs::CWD, &goal, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Locked { entry: Entry { name: name.clone(), path: goal, directory }, lock }),
            Err(Errno::EXIST) => Err(NamedError::Exists(name.clone())),
            Err(errno) => Err(io_error("make", &goal)(errno.into())),
        }
    }
}

/// A sandbox that stays, running or not.
#[derive(Debug)]
pub struct Entry {
    name: SandboxName,
    path: PathBuf,
    directory: OwnedFd,
}

/// An entry whose lock is held: nobody else changes it, and it does not run.
#[derive(Debug)]
pub struct Locked {
    entry: Entry,
    pub(super) lock: OwnedFd,
}

impl Entry {
    #[must_use]
    pub fn name(&self) -> &SandboxName {
        &self.name
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// What was asked for.
    ///
    /// # Errors
    /// When it cannot be read, or is of a version that this program does not know.
    pub fn spec(&self) -> Result<NamedSpec, NamedError> {
        let file = read_file(&self.directory, SPEC).map_err(io_error("read", &self.path.join(SPEC)))?;
        NamedSpec::parse(&file).map_err(|source| NamedError::Spec { name: self.name.clone(), source })
    }

    /// How the last main command ended, if one did.
    #[must_use]
    pub fn last_exit(&self) -> Option<u8> {
        let ended: serde_json::Value = serde_json::from_slice(&read_file(&self.directory, "ended.json").ok()?).ok()?;
        ended.get("exit_status")?.as_u64().and_then(|status| u8::try_from(status).ok())
    }

    /// Whether it is alive.
    #[must_use]
    pub fn state(&self) -> State {
        if self.connect().is_ok() {
            return State::Running;
        }
        if state::is_locked(&self.directory) { State::Changing } else { State::Stopped }
    }

    /// A connection to its keeper, also of one that is only now starting.
    ///
    /// # Errors
    /// [`NamedError::Stopped`] when nobody keeps it, [`NamedError::Busy`] when somebody holds it all the time and does not listen.
    pub(super) fn reach(&self) -> Result<OwnedFd, NamedError> {
        let deadline = Instant::now() + STARTING;
        loop {
            // Asked first: a keeper that comes meanwhile is found in the next turn.
            let is_held = state::is_locked(&self.directory);
            match self.connect() {
                Ok(socket) => return Ok(socket),
                Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                    let what = format!("cannot be reached: {error}");
                    return Err(NamedError::Keeper { name: self.name.clone(), what });
                }
                Err(_) if !is_held => return Err(NamedError::Stopped(self.name.clone())),
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Err(_) => return Err(NamedError::Busy(self.name.clone())),
            }
        }
    }

    /// A connection to its keeper.
    pub(super) fn connect(&self) -> io::Result<OwnedFd> {
        protocol::connect(&self.directory)
    }

    /// Takes the lock of one that does not run.
    ///
    /// # Errors
    /// When it runs or somebody else has the lock, or it was removed or replaced meanwhile.
    pub fn lock(self) -> Result<Locked, NamedError> {
        self.lock_within(MOMENT)
    }

    /// As [`Entry::lock`], waiting for the end of its keeper.
    ///
    /// # Errors
    /// As [`Entry::lock`].
    pub fn lock_within(self, patience: Duration) -> Result<Locked, NamedError> {
        let deadline = Instant::now() + patience;
        loop {
            match state::take_lock(&self.directory) {
                Ok(lock) => return self.confirmed(lock),
                // The directory has no name any more.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NamedError::Absent(self.name)),
                Err(error) if error.raw_os_error() != Some(Errno::WOULDBLOCK.raw_os_error()) => {
                    return Err(io_error("lock", &self.path)(error));
                }
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Err(_) if self.connect().is_ok() => return Err(NamedError::Running(self.name)),
                Err(_) => return Err(NamedError::Busy(self.name)),
            }
        }
    }

    /// The entry may have been removed, or removed and made again, before the lock was had.
    fn confirmed(self, lock: OwnedFd) -> Result<Locked, NamedError> {
        let ours = rustix::fs::fstat(&self.directory).map_err(|errno| io_error("read", &self.path)(errno.into()))?;
        match rustix::fs::statat(rustix::fs::CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino) => Ok(Locked { entry: self, lock }),
            Ok(_) | Err(_) => Err(NamedError::Absent(self.name)),
        }
    }
}

impl Locked {
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Writes down what it is to be made from.
    ///
    /// # Errors
    /// When it cannot be written; it is what it was then.
    pub fn replace_spec(&self, spec: &NamedSpec) -> Result<(), NamedError> {
        let Entry { path, directory, .. } = &self.entry;
        replace_file(directory, SPEC, spec.to_json().as_bytes()).map_err(io_error("write", &path.join(SPEC)))
    }

    /// Removes the sandbox with everything that it kept.
    ///
    /// # Errors
    /// When something of it cannot be removed; it has no name any more then, and the next removal tries again.
    pub fn remove(self) -> Result<(), NamedError> {
        let Entry { name, path, .. } = &self.entry;
        let gone = path.with_file_name(format!(".gone-{}-{name}", std::process::id()));
        rustix::fs::renameat_with(rustix::fs::CWD, path, rustix::fs::CWD, &gone, RenameFlags::NOREPLACE)
            .map_err(|errno| io_error("remove", path)(errno.into()))?;
        remove_tree(&gone).map_err(io_error("remove", &gone))
    }
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NamedError {
    let error = state::io_error(step, path);
    move |source| error(source).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SandboxName {
        text.parse().unwrap()
    }

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path());
        (dir, registry)
    }

    #[test]
    fn names_follow_one_grammar() {
        for good in ["a", "0", "a.b-c_d", &"a".repeat(63)] {
            assert_eq!(name(good).as_str(), good);
        }
        for bad in ["", ".", "..", ".a", "-a", "_a", "A", "a/b", "a b", "a\n", "a\0", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<SandboxName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_entry_is_made_once_found_again_and_removed() {
        let (_dir, registry) = registry();
        assert_eq!(registry.names().unwrap(), []);
        let spec = NamedSpec { v: 1, command: vec!["true".to_owned()], ..NamedSpec::default() };
        let locked = registry.create(&name("a"), &spec).unwrap();
        assert!(matches!(registry.create(&name("a"), &spec), Err(NamedError::Exists(_))));
        assert_eq!(registry.open(&name("a")).unwrap().state(), State::Changing);
        assert!(matches!(registry.open(&name("a")).unwrap().lock(), Err(NamedError::Busy(_))));
        drop(locked);
        let entry = registry.open(&name("a")).unwrap();
        assert_eq!((entry.state(), entry.spec().unwrap()), (State::Stopped, spec));
        assert_eq!(registry.names().unwrap(), [name("a")]);
        // Somebody who opened it before it was removed and made again does not get the new one.
        let stale = registry.open(&name("a")).unwrap();
        entry.lock().unwrap().remove().unwrap();
        assert!(matches!(registry.open(&name("a")), Err(NamedError::Absent(_))));
        assert_eq!(fs::read_dir(registry.root()).unwrap().count(), 0);
        registry.create(&name("a"), &NamedSpec::default()).unwrap();
        assert!(matches!(stale.lock(), Err(NamedError::Absent(_))));
    }

    #[test]
    fn what_a_crash_left_half_made_is_swept_and_what_is_being_made_is_not() {
        let (_dir, registry) = registry();
        let held = registry.create(&name("held"), &NamedSpec::default()).unwrap();
        let left = registry.create(&name("left"), &NamedSpec::default()).unwrap();
        let hidden = |locked: &Locked, as_name: &str| {
            fs::rename(locked.entry().path(), registry.root().join(as_name)).unwrap();
        };
        hidden(&held, ".new-1-held");
        hidden(&left, ".gone-1-left");
        drop(left);
        // So young that its maker may be about to lock it.
        fs::create_dir(registry.root().join(".new-2-young")).unwrap();
        registry.create(&name("other"), &NamedSpec::default()).unwrap();
        let mut there: Vec<_> = fs::read_dir(registry.root())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        there.sort_unstable();
        assert_eq!(there, [".new-1-held", ".new-2-young", "other"]);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_trusted() {
        let (_dir, registry) = registry();
        drop(registry.create(&name("a"), &NamedSpec::default()).unwrap());
        let open_up = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let entry = registry.root().join("a");
        open_up(&entry, 0o777);
        assert!(matches!(registry.open(&name("a")), Err(NamedError::State(StateError::Owner { .. }))));
        open_up(&entry, 0o700);
        open_up(registry.root(), 0o770);
        assert!(matches!(
            registry.create(&name("b"), &NamedSpec::default()),
            Err(NamedError::State(StateError::Owner { .. }))
        ));
        // And a link is no entry.
        std::os::unix::fs::symlink(&entry, registry.root().join("link")).unwrap();
        assert!(registry.open(&name("link")).is_err());
    }
}
