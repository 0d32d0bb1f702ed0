//! Bounds on memory, processors and processes by cgroups, where there is a delegated one (cgroup v2).
//!
//! A cgroup is the one change to the host that outlives a killed supervisor: an empty directory. Its name holds the
//! process id of its maker, and whoever makes the next one beside it removes those whose makers are gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{ResourceLimits, SandboxSpec, View};

/// The directory names of our cgroups: this, the maker's process id, a dash, a number.
const PREFIX: &str = "cofferdam-";

/// The period `cpu.max` counts in, in microseconds; the kernel's default.
const PERIOD: f32 = 100_000.0;

/// A cgroup with limits; removed when dropped, which needs it to be empty.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup with these limits. `None` when none of them asks for one.
    ///
    /// # Errors
    /// Why there is no cgroup to be had, in words.
    pub(crate) fn make(limits: &ResourceLimits) -> Result<Option<Self>, String> {
        let settings = settings(limits);
        if settings.is_empty() {
            return Ok(None);
        }
        let mount = mount_point(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
            .ok_or("this machine has no cgroup v2")?;
        let own = own_path(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
            .ok_or("this process is in no cgroup v2")?;
        // Made anew from its parts: the root's own path would end in a slash.
        let own: PathBuf = mount.join(own.strip_prefix("/").unwrap_or(&own)).components().collect();
        let mut reason = String::from("no cgroup is delegated to this user");
        // Beside this process's own cgroup first: controllers cannot be handed down by one that holds processes.
        for parent in
            [own.parent().filter(|parent| parent.starts_with(&mount)), Some(own.as_path())].into_iter().flatten()
        {
            match Self::make_in(parent, &own, &settings) {
                Ok(cgroup) => return Ok(Some(cgroup)),
                Err(error) => reason = format!("{}: {error}", parent.display()),
            }
        }
        // Root has no manager of its own to ask, and may ask the machine's.
        let user = if rustix::process::geteuid().is_root() { "" } else { "--user " };
        Err(format!("{reason}; `systemd-run {user}--scope -p Delegate=yes cofferdam run …` gives it one"))
    }

    fn make_in(parent: &Path, own: &Path, settings: &[Setting]) -> io::Result<Self> {
        enable_controllers(parent, own, settings)?;
        remove_leftovers(parent);
        let maker = std::process::id();
        let path = (0..64)
            .map(|number| parent.join(format!("{PREFIX}{maker}-{number}")))
            .find_map(|path| match fs::create_dir(&path) {
                Ok(()) => Some(Ok(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                Err(error) => Some(Err(error)),
            })
            .ok_or(io::ErrorKind::AlreadyExists)??;
        let cgroup = Self { path };
        for Setting { file, value, .. } in settings {
            fs::write(cgroup.path.join(file), value)?;
        }
        // Without swap accounting there is no such file; the limit then holds for memory alone.
        if settings.iter().any(|setting| setting.controller == "memory") {
            let _unaccounted = fs::write(cgroup.path.join("memory.swap.max"), "0");
        }
        Ok(cgroup)
    }

    /// Moves a process into the cgroup; what it forks from then on is in it too.
    ///
    /// # Errors
    /// As [`join`].
    pub(crate) fn add(&self, pid: i32) -> io::Result<()> {
        join(&self.path, pid)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Moves a process into a cgroup; what it forks from then on is in it too.
///
/// # Errors
/// Those of writing `cgroup.procs`: the kernel wants write access to a common ancestor too.
pub(crate) fn join(cgroup: &Path, pid: i32) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever still is in it keeps it; the next run removes it.
        let _busy = fs::remove_dir(&self.path);
    }
}

/// One line in one file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    controller: &'static str,
    file: &'static str,
    value: String,
}

fn settings(limits: &ResourceLimits) -> Vec<Setting> {
    let memory =
        limits.memory.map(|bytes| Setting { controller: "memory", file: "memory.max", value: bytes.to_string() });
    let cpus = limits.cpus.map(|cpus| {
        let quota = (cpus * PERIOD).clamp(1_000.0, 1e9).round();
        Setting { controller: "cpu", file: "cpu.max", value: format!("{quota} {PERIOD}") }
    });
    // The sandbox's pid 1 is one of them, and while it starts so is the builder.
    let pids = limits.pids.map(|pids| Setting {
        controller: "pids",
        file: "pids.max",
        value: u64::from(pids).saturating_add(2).to_string(),
    });
    [memory, cpus, pids].into_iter().flatten().collect()
}

/// What a user is told about limits that no cgroup enforces.
pub(crate) fn notices(SandboxSpec { limits, place, .. }: &SandboxSpec, reason: &str) -> Vec<String> {
    let mut notices = Vec::new();
    // That of a virtual machine is bounded by QEMU all the same.
    if limits.memory.is_some() && place.view == View::System {
        notices.push(format!("the memory limit is not enforced, but for files in memory: {reason}"));
    }
    if limits.cpus.is_some() {
        notices.push(format!("the processor limit is not enforced: {reason}"));
    }
    notices
}

fn enable_controllers(parent: &Path, own: &Path, settings: &[Setting]) -> io::Result<()> {
    let handed_down = parent.join("cgroup.subtree_control");
    let have = fs::read_to_string(&handed_down)?;
    let missing: Vec<String> = settings
        .iter()
        .filter(|setting| !have.split_ascii_whitespace().any(|have| have == setting.controller))
        .map(|setting| format!("+{}", setting.controller))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if parent == own {
        leave_alone(own)?;
    }
    fs::write(handed_down, missing.join(" "))
}

/// Moves this process from its cgroup into one below it, if it is the only one there.
fn leave_alone(own: &Path) -> io::Result<()> {
    let me = std::process::id().to_string();
    if fs::read_to_string(own.join("cgroup.procs"))?.split_ascii_whitespace().any(|pid| pid != me) {
        return Err(io::Error::other("it holds other processes"));
    }
    let leaf = own.join("supervisor");
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::write(leaf.join("cgroup.procs"), me)
}

fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if maker.is_some_and(|maker| !Path::new("/proc").join(maker.to_string()).exists()) {
            // One with processes in it cannot be removed, and should not be.
            let _busy = fs::remove_dir(entry.path());
        }
    }
}

/// Where cgroup v2 is mounted, from `/proc/self/mountinfo` (proc(5)).
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next() == Some("cgroup2")).then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The path of this process's cgroup, from `/proc/self/cgroup` (cgroups(7)).
fn own_path(cgroup: &str) -> Option<PathBuf> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::fs::Access;

    use super::*;

    #[test]
    fn finds_the_unified_hierarchy_beside_the_old_ones() {
        let mountinfo = "40 31 0:37 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,name=systemd\n\
                         41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(mountinfo), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("22 27 0:21 / /proc rw - proc proc rw\n"), None);
        assert_eq!(own_path("4:memory:/a\n0::/user.slice/b\n"), Some("/user.slice/b".into()));
    }

    fn all() -> ResourceLimits {
        ResourceLimits { memory: Some(1 << 30), cpus: Some(1.5), pids: Some(10), ..ResourceLimits::default() }
    }

    /// A folder that looks like a cgroup. It cannot show what the kernel makes of what is written, and its files do not go with it.
    fn cgroup(path: &Path, handed_down: &str, processes: &[u32]) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("cgroup.subtree_control"), handed_down).unwrap();
        let processes: String = processes.iter().map(|pid| format!("{pid}\n")).collect();
        fs::write(path.join("cgroup.procs"), processes).unwrap();
    }

    #[test]
    fn makes_a_cgroup_beside_its_own_and_moves_processes_there() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("own");
        cgroup(root.path(), "cpu io memory pids\n", &[]);
        cgroup(&own, "", &[1, 2]);
        // Of a maker that is gone: process ids end at 2^22.
        let left_over = root.path().join("cofferdam-4194305-0");
        let foreign = root.path().join("cofferdam-x");
        for path in [&left_over, &foreign] {
            fs::create_dir(path).unwrap();
        }
        let made = Cgroup::make_in(root.path(), &own, &settings(&all())).unwrap();
        assert_eq!(made.path, root.path().join(format!("cofferdam-{}-0", std::process::id())));
        let files = ["memory.max", "memory.swap.max", "cpu.max", "pids.max"];
        let written = files.map(|file| fs::read_to_string(made.path.join(file)).unwrap());
        assert_eq!(written, ["1073741824", "0", "150000 100000", "12"]);
        made.add(77).unwrap();
        assert_eq!(fs::read_to_string(made.path.join("cgroup.procs")).unwrap(), "77");
        assert!(!left_over.exists() && foreign.exists());
        let another = Cgroup::make_in(root.path(), &own, &[]).unwrap();
        assert!(another.path.ends_with(format!("cofferdam-{}-1", std::process::id())));
        let path = another.path.clone();
        drop(another);
        assert!(!path.exists());
        // What is handed down already is not asked for again: that takes the right to.
        assert_eq!(fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap(), "cpu io memory pids\n");
    }

    /// By effect, in the kernel's own file system, where the root of it may be written to.
    #[test]
    fn moves_a_process_into_a_real_cgroup_and_removes_it_after_its_end() {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let Some(mount) = mount_point(&mountinfo).filter(|mount| rustix::fs::access(mount, Access::WRITE_OK).is_ok())
        else {
            // Past the capturing of `print!`; the test command counts it.
            let mut stderr = io::stderr();
            writeln!(stderr, "\nSKIP: no cgroup v2 that may be written to: none was made for real").unwrap();
            return;
        };
        let made = Cgroup::make_in(&mount, &mount.join("elsewhere"), &[]).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let moved = made.add(i32::try_from(child.id()).unwrap());
        let inside = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let path = made.path.clone();
        drop(made);
        moved.unwrap();
        assert_eq!(own_path(&inside).unwrap().file_name(), path.file_name());
        assert!(!path.exists());
    }

    #[test]
    fn a_cgroup_that_hands_its_controllers_down_is_left_first() {
        let root = tempfile::tempdir().unwrap();
        let me = std::process::id();
        cgroup(root.path(), "cpu\n", &[me]);
        Cgroup::make_in(root.path(), root.path(), &settings(&all())).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("supervisor/cgroup.procs")).unwrap(), me.to_string());
        assert_eq!(fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap(), "+memory +pids");
        let crowded = tempfile::tempdir().unwrap();
        cgroup(crowded.path(), "cpu\n", &[me, 1]);
        let refused = Cgroup::make_in(crowded.path(), crowded.path(), &settings(&all())).unwrap_err();
        assert_eq!(refused.to_string(), "it holds other processes");
        assert_eq!(fs::read_to_string(crowded.path().join("cgroup.subtree_control")).unwrap(), "cpu\n");
    }

    #[test]
    fn writes_limits_as_the_kernel_reads_them() {
        let values: Vec<_> = settings(&all()).into_iter().map(|setting| (setting.file, setting.value)).collect();
        let wanted = [("memory.max", "1073741824"), ("cpu.max", "150000 100000"), ("pids.max", "12")];
        assert_eq!(values, wanted.map(|(file, value)| (file, value.to_owned())));
        assert_eq!(settings(&ResourceLimits::default()), []);
    }
}
