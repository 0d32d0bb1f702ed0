//! What a sandbox sees, as a list of steps.
//!
//! [`Host::survey`] looks at the host, [`plan`] is a pure function from that and the specification to the steps, and
//! `place` carries them out without deciding anything. All paths of steps are relative to the sandbox's root, and are
//! resolved there: a symbolic link in a tree of somebody else never leads to a path of the host.
//!
//! The root is a small tmpfs with the skeleton: directories, symbolic links, device files, and the files of `/etc`.
//! It is made read-only at the end. Trees of the host are mounted on it read-only; what is writable (`/tmp`,
//! `/home/user`, …) lies on a second tmpfs, so that one bound holds for all of it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cofferdam_sys::mount::Attributes;

use crate::etc;
use crate::wire::{Fault, Step as _};
use crate::{Mount, SandboxSpec, View};

/// What of the host is shown at the same path, with the reason. Missing ones are left out; symbolic links are made anew.
const SYSTEM: &[(&str, &str)] = &[
    ("usr", "programs and libraries"),
    ("bin", "programs; usually a link into usr"),
    ("sbin", "programs; usually a link into usr"),
    ("lib", "libraries; usually a link into usr"),
    ("lib32", "as lib"),
    ("lib64", "as lib, with the dynamic loader"),
    ("libx32", "as lib"),
    ("opt", "programs that did not come with the distribution"),
    ("nix/store", "where usr and etc of NixOS lead"),
    ("gnu/store", "where usr and etc of Guix lead"),
];

/// As [`SYSTEM`], for QEMU alone: what it is linked with, and what it loads.
const QEMU: &[(&str, &str)] = &[
    ("lib", "libraries; usually a link into usr"),
    ("lib32", "as lib"),
    ("lib64", "as lib, with the dynamic loader"),
    ("libx32", "as lib"),
    ("usr/lib", "libraries, and modules of QEMU"),
    ("usr/lib32", "as usr/lib"),
    ("usr/lib64", "as usr/lib"),
    ("usr/libx32", "as usr/lib"),
    ("usr/local/lib", "libraries of a QEMU that was built here"),
    ("usr/share/qemu", "firmware"),
    ("usr/local/share/qemu", "firmware"),
    ("usr/share/seabios", "firmware"),
    ("nix/store", "where everything of NixOS is"),
    ("gnu/store", "where everything of Guix is"),
];

/// Where the programs in QEMU's view have their libraries.
pub(crate) fn libraries() -> impl Iterator<Item = PathBuf> {
    QEMU.iter().map(|(path, _why)| Path::new("/").join(path))
}

/// Directories at the top of a root file system of the user's that are made fresh, as with the host's.
const FRESH: [&str; 8] = ["dev", "etc", "home", "nix", "proc", "run", "sys", "tmp"];

/// Writable directories of the sandbox with their modes.
const SCRATCH: [(&str, u32); 5] =
    [("tmp", 0o1777), ("var/tmp", 0o1777), ("run", 0o755), ("home/user", 0o755), ("dev/shm", 0o1777)];

/// Device files: those that give nothing of the machine away.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// What is covered in the sandbox's own `/proc`: it speaks of the machine, or acts on it, instead of on the sandbox.
/// Those that a kernel does not have are skipped.
const COVERED: &[&str] = &[
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/key-users",
    "proc/kmsg",
    "proc/kpagecgroup",
    "proc/kpagecount",
    "proc/kpageflags",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/vmallocinfo",
    "sys/firmware",
    "sys/devices/virtual/powercap",
    "sys/kernel/debug",
    "sys/kernel/security",
    "sys/kernel/tracing",
];

/// What becomes read-only in the sandbox's own `/proc`.
const FROZEN: &[&str] = &["proc/sys", "proc/sysrq-trigger", "proc/irq", "proc/bus", "proc/fs"];

/// Bounds of the skeleton and of the writable space. The number of files bounds kernel memory, about 1 KiB each.
const SKELETON_SIZE: &str = "32m";
const SKELETON_FILES: &str = "16384";
const SCRATCH_SIZE: &str = "50%";
const SCRATCH_FILES: &str = "400000";

/// A file of `/etc` larger than this is mounted instead of copied.
const COPY_LIMIT: u64 = 256 * 1024;

/// Where a tree that is mounted comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A path of the host, taken by the sandbox's init.
    Host(PathBuf),
    /// As before, and without a symbolic link in it: one that is there by now was put there.
    Real(PathBuf),
    /// A tree that the supervisor took, by its position among those it sent.
    Passed(usize),
}

/// What happens when a step cannot be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Required,
    /// The sandbox is no less isolated without it.
    Optional,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A directory with all its parents; one that is there already is left as it is.
    Directory {
        path: PathBuf,
    },
    Symlink {
        path: PathBuf,
        target: PathBuf,
    },
    File {
        path: PathBuf,
        content: String,
    },
    /// A copy of a file of the host; left out when it may not be read.
    Copy {
        path: PathBuf,
        source: Source,
    },
    /// A tree; its place is made if it is not there.
    Tree {
        path: PathBuf,
        source: Source,
        attributes: Attributes,
        need: Need,
    },
    /// A new file system; its place is made if it is not there.
    Filesystem {
        path: PathBuf,
        kind: &'static str,
        options: Vec<(&'static str, String)>,
        attributes: Attributes,
        need: Need,
    },
    /// A writable directory on the one file system for that.
    Scratch {
        path: PathBuf,
        mode: u32,
    },
    /// Covers a file or directory with an empty one, if it is there.
    Cover {
        path: PathBuf,
    },
    /// Makes a part of a mounted tree read-only, if it is there.
    Freeze {
        path: PathBuf,
    },
    /// A listening socket of the sandbox's user, where nothing is.
    Socket {
        path: PathBuf,
        number: usize,
    },
    /// Covers such a socket of a sandbox that is there.
    Hide {
        path: PathBuf,
    },
}

/// Options of the file system the skeleton lies on.
pub(crate) fn skeleton_options() -> [(&'static str, &'static str); 3] {
    [("mode", "755"), ("size", SKELETON_SIZE), ("nr_inodes", SKELETON_FILES)]
}

/// Options of the file system the writable directories lie on: half of the machine's memory, or all the sandbox may use.
pub(crate) fn scratch_options(memory: Option<u64>) -> Vec<(&'static str, String)> {
    let size = memory.map_or_else(|| SCRATCH_SIZE.to_owned(), |bytes| bytes.to_string());
    vec![("mode", "755".to_owned()), ("size", size), ("nr_inodes", SCRATCH_FILES.to_owned())]
}

/// What an entry of a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Directory,
    /// With its size in bytes.
    File(u64),
    Symlink(PathBuf),
    Other,
}

/// What the plan has to know of the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    /// Where the system comes from: `/`, or a root file system of the user's.
    root: PathBuf,
    system: Vec<(PathBuf, Entry)>,
    etc: Vec<(String, Entry)>,
    /// Entries of directories in `/etc` that are hidden, relative to `/etc`.
    hidden: Vec<PathBuf>,
}

impl Host {
    /// Looks at the host, or at the root file system in its place.
    ///
    /// # Errors
    /// A root file system that cannot be read.
    pub(crate) fn survey(rootfs: Option<&Path>, view: View) -> Result<Self, Fault> {
        if view == View::Qemu {
            let root = PathBuf::from("/");
            let system = QEMU.iter().map(|(path, _why)| PathBuf::from(path));
            let system = system.filter_map(|path| Some((path.clone(), entry(&root.join(&path))?))).collect();
            return Ok(Self { root, system, ..Self::default() });
        }
        let root = rootfs.unwrap_or(Path::new("/")).to_owned();
        let system: Vec<PathBuf> = match rootfs {
            None => SYSTEM.iter().map(|(path, _why)| PathBuf::from(path)).collect(),
            Some(rootfs) => names(rootfs)
                .step(|| format!("read the root file system {}", rootfs.display()))?
                .into_iter()
                .filter(|name| !FRESH.contains(&name.as_str()))
                .map(PathBuf::from)
                .collect(),
        };
        let system = system.into_iter().filter_map(|path| Some((path.clone(), entry(&root.join(&path))?))).collect();
        let etc = root.join("etc");
        // What leads out of a root file system is no part of it, and would show files that nobody named.
        let is_its_own = rootfs.is_none() || entry(&etc) == Some(Entry::Directory);
        let entries = names(&etc).ok().filter(|_| is_its_own).unwrap_or_default();
        let entries = entries.into_iter().filter(|name| rootfs.is_some() || !etc::is_left_out(name));
        let entries = entries.filter(|name| rootfs.is_some() || is_for_all(&etc.join(name)));
        let entries = entries.filter_map(|name| Some((name.clone(), entry(&etc.join(&name))?))).collect();
        let hidden = if rootfs.is_some() { Vec::new() } else { hidden_entries(&etc) };
        Ok(Self { root, system, etc: entries, hidden })
    }

    /// A file or directory of the system. That of a root file system somebody else may be able to write to.
    fn source(&self, path: &Path) -> Source {
        let source = self.root.join(path);
        if self.root == Path::new("/") { Source::Host(source) } else { Source::Real(source) }
    }

    /// Whether a path of the host, free of symbolic links, is in sight of the program.
    pub(crate) fn shows(&self, spec: &SandboxSpec, path: &Path) -> bool {
        let trees = self.system.iter().filter(|(_, entry)| *entry == Entry::Directory);
        let mut roots = trees.map(|(path, _)| self.root.join(path)).chain(spec.place.project.clone());
        let beneath = roots.any(|root| path.starts_with(root)) || path.starts_with(self.root.join("etc"));
        beneath || spec.place.mounts.iter().any(|mount| path.starts_with(&mount.target))
    }
}

/// The names in a directory that are UTF-8, in order. Others are not system files, and a program misses nothing.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

fn entry(path: &Path) -> Option<Entry> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some(if metadata.is_dir() {
        Entry::Directory
    } else if metadata.is_symlink() {
        Entry::Symlink(std::fs::read_link(path).ok()?)
    } else if metadata.is_file() {
        Entry::File(metadata.len())
    } else {
        Entry::Other
    })
}

/// Whether everybody on the host may read a file or enter a directory. What is not for all has no place in a sandbox,
/// also when its owner runs it. A symbolic link is for all; where it leads is asked there.
pub(crate) fn is_for_all(path: &Path) -> bool {
    let wanted = |metadata: &std::fs::Metadata| if metadata.is_dir() { 0o005 } else { 0o004 };
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.mode() & wanted(&metadata) == wanted(&metadata))
}

fn hidden_entries(etc: &Path) -> Vec<PathBuf> {
    let mut hidden = Vec::new();
    for (directory, pattern) in etc::hidden_deeper() {
        let names = names(&etc.join(directory)).unwrap_or_default();
        hidden.extend(names.into_iter().filter(|name| etc::matches(pattern, name)).map(|name| directory.join(name)));
    }
    hidden
}

/// A mount that the user asked for, and the trees of the supervisor for each, if it took them.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) mount: Mount,
    pub(crate) source: Source,
}

/// The project and the mounts, in the order in which they have to be attached: outer ones first.
pub(crate) fn wanted(spec: &SandboxSpec) -> Vec<Mount> {
    let project = spec.place.project.iter().map(|project| Mount {
        source: project.clone(),
        target: project.clone(),
        read_only: false,
    });
    let mut mounts: Vec<Mount> = project.chain(spec.place.mounts.iter().cloned()).collect();
    // A stable sort: of two mounts on one target the later one is in sight.
    mounts.sort_by_key(|mount| mount.target.components().count());
    mounts
}

/// The steps that make the sandbox's view.
pub(crate) fn plan(spec: &SandboxSpec, host: &Host, wanted: &[Wanted]) -> Vec<Step> {
    let mut steps = Vec::new();
    plan_system(host, &mut steps);
    match spec.place.view {
        View::System => {
            plan_etc(spec, host, &mut steps);
            plan_fresh(host, &mut steps);
            plan_kernel(&mut steps);
        }
        View::Qemu => {
            plan_devices(&mut steps);
            steps.extend(spec.place.devices.iter().map(|name| device(name, Need::Optional)));
            steps.push(terminals());
            plan_processes(&mut steps);
        }
        // There is nothing that a view could be made in.
        View::Host(_) => return Vec::new(),
    }
    for Wanted { mount, source } in wanted {
        steps.push(Step::Tree {
            path: inside(&mount.target),
            source: source.clone(),
            attributes: Attributes { read_only: mount.read_only, ..Attributes::default() },
            need: Need::Required,
        });
    }
    let sockets = spec.sockets.iter().enumerate();
    steps.extend(sockets.map(|(number, path)| Step::Socket { path: inside(path), number }));
    steps
}

/// The steps that a run in a sandbox that is there puts on top of its view: what speaks of processes, of the network, and
/// the terminals. The sockets at `hidden` are the session's, and not this run's.
pub(crate) fn plan_run(hidden: &[PathBuf]) -> Vec<Step> {
    let mut steps = vec![terminals()];
    plan_kernel(&mut steps);
    steps.extend(hidden.iter().map(|path| Step::Hide { path: inside(path) }));
    steps
}

/// The same for a run in a virtual machine: what runs here is its way there, in QEMU's view.
pub(crate) fn plan_call() -> Vec<Step> {
    let mut steps = vec![terminals()];
    plan_processes(&mut steps);
    steps
}

/// Leaves the proc of a sandbox that stays out of its view: it would show the processes of every run, and each run puts its
/// own there.
pub(crate) fn leave_out_processes(steps: &mut [Step]) {
    for step in steps {
        if let Step::Filesystem { path, kind: "proc", .. } = step {
            *step = Step::Directory { path: std::mem::take(path) };
        }
    }
}

/// An absolute path of the sandbox, relative to its root.
fn inside(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

const READ_ONLY: Attributes = Attributes { read_only: true, devices: false, no_exec: false };

fn plan_system(host: &Host, steps: &mut Vec<Step>) {
    for (path, entry) in &host.system {
        match entry {
            Entry::Directory | Entry::File(_) => steps.push(Step::Tree {
                path: path.clone(),
                source: host.source(path),
                attributes: READ_ONLY,
                need: Need::Optional,
            }),
            Entry::Symlink(target) => steps.push(Step::Symlink { path: path.clone(), target: target.clone() }),
            Entry::Other => {}
        }
    }
}

fn plan_etc(spec: &SandboxSpec, host: &Host, steps: &mut Vec<Step>) {
    let etc = Path::new("etc");
    steps.push(Step::Directory { path: etc.to_owned() });
    let written = etc::written(spec);
    for (name, entry) in &host.etc {
        let path = etc.join(name);
        let source = host.source(&path);
        if written.iter().any(|(written, _)| written == name) {
            continue;
        }
        match entry {
            Entry::File(size) if *size <= COPY_LIMIT => steps.push(Step::Copy { path, source }),
            Entry::Directory | Entry::File(_) => {
                steps.push(Step::Tree { path, source, attributes: READ_ONLY, need: Need::Optional })
            }
            Entry::Symlink(target) => steps.push(Step::Symlink { path, target: target.clone() }),
            Entry::Other => {}
        }
    }
    for (name, content) in written {
        steps.push(Step::File { path: etc.join(name), content });
    }
    steps.extend(host.hidden.iter().map(|path| Step::Cover { path: etc.join(path) }));
}

fn plan_devices(steps: &mut Vec<Step>) {
    steps.push(Step::Directory { path: "dev".into() });
    steps.extend(DEVICES.iter().map(|name| device(name, Need::Required)));
    steps.push(Step::Symlink { path: "dev/ptmx".into(), target: "pts/ptmx".into() });
}

fn device(name: &str, need: Need) -> Step {
    Step::Tree {
        path: Path::new("dev").join(name),
        source: Source::Host(Path::new("/dev").join(name)),
        attributes: Attributes { devices: true, no_exec: true, ..Attributes::default() },
        need,
    }
}

fn plan_fresh(host: &Host, steps: &mut Vec<Step>) {
    plan_devices(steps);
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        steps.push(Step::Symlink { path: Path::new("dev").join(name), target: target.into() });
    }
    steps.push(terminals());
    for (path, mode) in SCRATCH {
        steps.push(Step::Scratch { path: path.into(), mode });
    }
    if !host.system.iter().any(|(path, _)| path == Path::new("var")) {
        steps.push(Step::Symlink { path: "var/run".into(), target: "/run".into() });
    }
}

fn terminals() -> Step {
    Step::Filesystem {
        path: "dev/pts".into(),
        kind: "devpts",
        options: vec![("mode", "620".to_owned()), ("ptmxmode", "666".to_owned())],
        attributes: Attributes { devices: true, no_exec: true, ..Attributes::default() },
        need: Need::Required,
    }
}

fn plan_kernel(steps: &mut Vec<Step>) {
    steps.push(Step::Filesystem {
        path: "sys".into(),
        kind: "sysfs",
        options: Vec::new(),
        attributes: Attributes { read_only: true, no_exec: true, ..Attributes::default() },
        need: Need::Optional,
    });
    plan_processes(steps);
}

/// The sandbox's own `/proc`, and what is hidden there and, where it is there, in `/sys`.
fn plan_processes(steps: &mut Vec<Step>) {
    steps.push(Step::Filesystem {
        path: "proc".into(),
        kind: "proc",
        options: Vec::new(),
        attributes: Attributes { no_exec: true, ..Attributes::default() },
        need: Need::Required,
    });
    steps.extend(FROZEN.iter().map(|path| Step::Freeze { path: path.into() }));
    steps.extend(COVERED.iter().map(|path| Step::Cover { path: path.into() }));
}

/// The mounts that a program may change, for Landlock, besides `/dev`; everything else it may only read.
pub(crate) fn writable_paths() -> impl Iterator<Item = PathBuf> {
    let scratch = SCRATCH.iter().map(|(path, _mode)| Path::new("/").join(path));
    scratch.chain([PathBuf::from("/proc")])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Place, ResourceLimits, Terminal};

    fn spec(place: Place) -> SandboxSpec {
        SandboxSpec {
            name: "sandbox".to_owned(),
            command: vec!["true".into()],
            env: Vec::new(),
            workdir: "/".into(),
            place,
            inside_uid: 1000,
            capabilities: Vec::new(),
            allow_userns: false,
            terminal: Terminal::Inherit,
            limits: ResourceLimits { timeout: Some(Duration::from_secs(1)), ..ResourceLimits::default() },
            hosts: Vec::new(),
            resolv: Vec::new(),
            sockets: Vec::new(),
            network: None,
        }
    }

    fn host() -> Host {
        Host {
            root: "/".into(),
            system: vec![("usr".into(), Entry::Directory), ("bin".into(), Entry::Symlink("usr/bin".into()))],
            etc: vec![
                ("hosts".to_owned(), Entry::File(10)),
                ("large".to_owned(), Entry::File(COPY_LIMIT + 1)),
                ("localtime".to_owned(), Entry::Symlink("/usr/share/zoneinfo/UTC".into())),
                ("services".to_owned(), Entry::File(10)),
                ("socket".to_owned(), Entry::Other),
                ("ssl".to_owned(), Entry::Directory),
            ],
            hidden: vec!["ssl/private".into()],
        }
    }

    fn mount(source: &str, target: &str) -> Mount {
        Mount { source: source.into(), target: target.into(), read_only: true }
    }

    #[test]
    fn every_tree_of_the_host_but_devices_is_read_only() {
        for step in plan(&spec(Place::default()), &host(), &[]) {
            if let Step::Tree { path, attributes, .. } = step {
                assert_eq!(attributes.read_only, !path.starts_with("dev"), "{path:?}");
                assert_eq!(attributes.devices, path.starts_with("dev"), "{path:?}");
            }
        }
    }

    #[test]
    fn writes_its_own_files_in_place_of_the_hosts() {
        let steps = plan(&spec(Place::default()), &host(), &[]);
        let made: Vec<&Step> = steps
            .iter()
            .filter(|step| {
                matches!(step, Step::File { path, .. } | Step::Copy { path, .. } | Step::Tree { path, .. }
                    if path.ends_with("hosts"))
            })
            .collect();
        assert!(matches!(made.as_slice(), [Step::File { content, .. }] if content.contains("localhost")), "{made:?}");
    }

    #[test]
    fn copies_small_files_and_mounts_the_rest() {
        let steps = plan(&spec(Place::default()), &host(), &[]);
        let has = |wanted: &dyn Fn(&Step) -> bool| steps.iter().any(wanted);
        assert!(has(&|step| matches!(step, Step::Copy { path, .. } if path == Path::new("etc/services"))));
        assert!(has(&|step| matches!(step, Step::Tree { path, .. } if path == Path::new("etc/large"))));
        assert!(has(&|step| matches!(step, Step::Tree { path, .. } if path == Path::new("etc/ssl"))));
        assert!(has(&|step| matches!(step, Step::Symlink { path, .. } if path == Path::new("etc/localtime"))));
        assert!(has(&|step| matches!(step, Step::Cover { path } if path == Path::new("etc/ssl/private"))));
        assert!(!has(&|step| format!("{step:?}").contains("etc/socket")));
    }

    #[test]
    fn qemu_sees_no_program_no_settings_and_no_process() {
        let place = Place { view: View::Qemu, ..Place::default() };
        let host = Host::survey(None, View::Qemu).unwrap();
        for step in plan(&spec(place), &host, &[]) {
            if let Step::Filesystem { kind, .. } = &step {
                assert!(["proc", "devpts"].contains(kind), "{step:?}");
                continue;
            }
            if matches!(step, Step::Freeze { .. } | Step::Cover { .. }) {
                continue;
            }
            let (Step::Tree { path, .. } | Step::Directory { path } | Step::Symlink { path, .. }) = &step else {
                panic!("{step:?}");
            };
            let shown = ["dev", "lib", "lib32", "lib64", "libx32", "nix/store", "gnu/store"];
            let shown = shown.iter().any(|beneath| path.starts_with(beneath));
            let usr = path.starts_with("usr") && !path.ends_with("bin") && path != Path::new("usr");
            assert!(shown || usr, "{step:?}");
        }
    }

    #[test]
    fn outer_mounts_come_before_inner_ones_and_later_ones_lie_on_top() {
        let place = Place {
            project: Some("/a/b".into()),
            mounts: vec![mount("/1", "/a/b/c"), mount("/2", "/a"), mount("/3", "/a/b")],
            ..Place::default()
        };
        let order: Vec<PathBuf> = wanted(&spec(place)).into_iter().map(|mount| mount.source).collect();
        assert_eq!(order, ["/2", "/a/b", "/3", "/1"].map(PathBuf::from));
    }

    #[test]
    fn the_users_mounts_come_after_everything_they_may_lie_in() {
        let wanted = [Wanted { mount: mount("/data", "/tmp/data"), source: Source::Passed(0) }];
        let steps = plan(&spec(Place::default()), &host(), &wanted);
        assert!(
            matches!(steps.last(), Some(Step::Tree { path, source: Source::Passed(0), .. }) if path == Path::new("tmp/data"))
        );
    }

    #[test]
    fn a_sandbox_that_stays_shows_no_processes_and_each_run_has_its_own() {
        let is_proc = |step: &&Step| matches!(step, Step::Filesystem { kind: "proc", .. });
        let mut steps = plan(&spec(Place::default()), &host(), &[]);
        leave_out_processes(&mut steps);
        assert_eq!(steps.iter().filter(is_proc).count(), 0);
        assert!(steps.contains(&Step::Directory { path: "proc".into() }));
        let run = plan_run(&[]);
        assert_eq!(run.iter().filter(is_proc).count(), 1);
        let hidden = |path: &str| run.contains(&Step::Cover { path: path.into() });
        assert!(COVERED.iter().all(|path| hidden(path)));
    }

    #[test]
    fn sockets_of_the_host_come_last_and_are_hidden_from_runs_that_do_not_get_them() {
        let sockets = vec![PathBuf::from("/tmp/data/a"), PathBuf::from("/run/b")];
        let wanted = [Wanted { mount: mount("/data", "/tmp/data"), source: Source::Passed(0) }];
        let steps = plan(&SandboxSpec { sockets: sockets.clone(), ..spec(Place::default()) }, &host(), &wanted);
        let made = [("tmp/data/a", 0), ("run/b", 1)].map(|(path, number)| Step::Socket { path: path.into(), number });
        assert!(steps.ends_with(&made), "in the order of their doors");
        let hidden = ["tmp/data/a", "run/b"].map(|path| Step::Hide { path: path.into() });
        assert!(plan_run(&sockets).ends_with(&hidden));
    }

    #[test]
    fn knows_what_the_program_sees() {
        let place = Place { project: Some("/work/p".into()), mounts: vec![mount("/x", "/y")], ..Place::default() };
        let (spec, host) = (spec(place), host());
        for path in ["/usr/bin/env", "/work/p/tool", "/y/z", "/etc/passwd"] {
            assert!(host.shows(&spec, Path::new(path)), "{path}");
        }
        for path in ["/root/.cargo/bin/cargo", "/work/q", "/x/z"] {
            assert!(!host.shows(&spec, Path::new(path)), "{path}");
        }
    }
}
