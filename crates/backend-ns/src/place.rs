//! Carries out the steps of a plan in the sandbox's mount namespace. Runs in the sandbox's init, before the program.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cofferdam_sys::mount::{self, Attributes};
use cofferdam_sys::ns::{self, NamespaceKind, Namespaces};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::plan::{self, Need, Source, Step};
use crate::wire::{Fault, Step as _};

/// Where the writable file system is attached while its directories are taken from it.
const SCRATCH: &str = ".scratch";

/// A file larger than this is not copied, whatever the survey said: it may have grown.
const COPY_LIMIT: u64 = 1024 * 1024;

/// Makes the view of `steps`, moves into it, and leaves nothing of the old one in reach.
///
/// `last` is done when all is made and before it is moved into: the last time that `/proc/sys` can be written.
///
/// # Errors
/// The step that failed.
pub(crate) fn place<E: From<Fault>>(
    steps: &[Step],
    trees: &[OwnedFd],
    memory: Option<u64>,
    last: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    let mask = rustix::process::umask(Mode::empty());
    mount::make_all_private().step(|| "cut its mounts off from the host's".to_owned())?;
    let root = mount::new_filesystem("tmpfs", &plan::skeleton_options(), Attributes::default())
        .step(|| "make its root directory".to_owned())?;
    // On top of the old root: absolute paths still lead to the host until the roots are changed.
    mount::attach(root.as_fd(), mount::Place { root: CWD, path: Path::new("/") })
        .step(|| "attach its root directory".to_owned())?;
    let placer = Placer::new(root, trees, memory)?;
    for step in steps {
        placer.carry_out(step)?;
    }
    last()?;
    placer.finish()?;
    rustix::process::umask(mask);
    Ok(())
}

/// Steps into the view of a sandbox that is there, as a copy: what `steps` put on top of it is for this process and its
/// children alone. They are file systems of the kernel and what hides parts of them.
///
/// # Errors
/// The step that failed.
pub(crate) fn step_inside(sandbox: OwnedFd, steps: &[Step]) -> Result<(), Fault> {
    // Made here, where a whole proc is in sight: the kernel gives no new one where it is partly covered.
    let mut made = Vec::new();
    for step in steps {
        if let Step::Filesystem { kind, options, attributes, .. } = step {
            made.push(new_filesystem(kind, options, *attributes));
        }
    }
    let beneath = mount::new_filesystem("tmpfs", &BENEATH_OPTIONS, Attributes::default())
        .step(|| "make an empty directory".to_owned())?;
    let empty = || -> io::Result<OwnedFd> {
        rustix::fs::mkdirat(&beneath, "empty", Mode::from_raw_mode(0o555))?;
        Ok(rustix::fs::openat(&beneath, "empty", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    };
    let empty = empty().step(|| "make an empty directory".to_owned())?;
    ns::enter(&sandbox, NamespaceKind::Mount).step(|| "enter the sandbox's mounts".to_owned())?;
    drop(sandbox);
    ns::unshare(Namespaces::MOUNT).step(|| "copy the sandbox's mounts".to_owned())?;
    rustix::process::chdir("/").step(|| "enter the sandbox's root directory".to_owned())?;
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step(|| "open the sandbox's root directory".to_owned())?;
    // Trees are taken from what is attached alone. It ends up beneath the new proc, and hides the sandbox's.
    mount::attach(beneath.as_fd(), mount::Place { root: root.as_fd(), path: Path::new("proc") })
        .step(|| "attach an empty directory".to_owned())?;
    let placer = Placer { root, scratch: None, trees: &[], empty };
    let mut made = made.into_iter();
    for step in steps {
        match step {
            Step::Filesystem { path, kind, need, .. } => {
                let made = made.next().unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
                placer.filesystem(path, kind, made, *need)?;
            }
            Step::Directory { .. }
            | Step::Symlink { .. }
            | Step::File { .. }
            | Step::Copy { .. }
            | Step::Tree { .. }
            | Step::Scratch { .. }
            | Step::Cover { .. }
            | Step::Freeze { .. } => placer.carry_out(step)?,
        }
    }
    Ok(())
}

/// Options of a file system for one empty directory.
const BENEATH_OPTIONS: [(&str, &str); 3] = [("mode", "555"), ("size", "4k"), ("nr_inodes", "2")];

fn new_filesystem(kind: &str, options: &[(&'static str, String)], attributes: Attributes) -> io::Result<OwnedFd> {
    let options: Vec<(&str, &str)> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
    mount::new_filesystem(kind, &options, attributes)
}

struct Placer<'a> {
    root: OwnedFd,
    /// The file system of the writable directories, while a view is made.
    scratch: Option<OwnedFd>,
    trees: &'a [OwnedFd],
    /// An empty directory and an empty file to cover others with.
    empty: OwnedFd,
}

impl<'a> Placer<'a> {
    fn new(root: OwnedFd, trees: &'a [OwnedFd], memory: Option<u64>) -> Result<Self, Fault> {
        let options = plan::scratch_options(memory);
        let options: Vec<(&str, &str)> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let make = || -> io::Result<(OwnedFd, OwnedFd)> {
            let scratch = mount::new_filesystem("tmpfs", &options, Attributes::default())?;
            rustix::fs::mkdirat(&root, SCRATCH, Mode::RWXU)?;
            mount::attach(scratch.as_fd(), mount::Place { root: root.as_fd(), path: Path::new(SCRATCH) })?;
            rustix::fs::mkdirat(&scratch, "empty", Mode::from_raw_mode(0o555))?;
            let empty = rustix::fs::openat(&scratch, "empty", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            Ok((scratch, empty))
        };
        let (scratch, empty) = make().step(|| "make its writable directories".to_owned())?;
        Ok(Self { root, scratch: Some(scratch), trees, empty })
    }

    fn carry_out(&self, step: &Step) -> Result<(), Fault> {
        match step {
            Step::Directory { path } => {
                self.directory(path).step(|| make(path))?;
            }
            Step::Symlink { path, target } => self.symlink(path, target).step(|| make(path))?,
            Step::File { path, content } => self.file(path, content.as_bytes()).step(|| make(path))?,
            Step::Copy { path, source } => {
                if let Some(content) = read(source) {
                    self.file(path, &content).step(|| make(path))?;
                }
            }
            Step::Tree { path, source, attributes, need } => self.tree(path, source, *attributes, *need)?,
            Step::Filesystem { path, kind, options, attributes, need } => {
                self.filesystem(path, kind, new_filesystem(kind, options, *attributes), *need)?;
            }
            Step::Scratch { path, mode } => self.scratch(path, *mode).step(|| make(path))?,
            Step::Cover { path } => self.cover(path).step(|| format!("cover /{} in the sandbox", path.display()))?,
            Step::Freeze { path } => {
                self.freeze(path).step(|| format!("make /{} read-only in the sandbox", path.display()))?;
            }
        }
        Ok(())
    }

    fn filesystem(&self, path: &Path, kind: &str, made: io::Result<OwnedFd>, need: Need) -> Result<(), Fault> {
        match (made, need) {
            (Ok(tree), _) => self.attach(tree.as_fd(), path, Kind::Directory).step(|| attach(path)),
            // What cannot be mounted is an empty directory.
            (Err(_), Need::Optional) => self.directory(path).step(|| make(path)).map(drop),
            (Err(error), Need::Required) => {
                let fault = Fault::new(format!("mount a new {kind} file system for the sandbox"), &error);
                Err(fault.with_remedy(filesystem_remedy(kind, &error)))
            }
        }
    }

    /// Opens a path of the sandbox. Symbolic links lead where they lead inside, never out.
    fn open(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        loop {
            match rustix::fs::openat2(&self.root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // openat2(2): a rename or mount somewhere on the machine came in between.
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// Makes a directory and its parents, and opens it.
    fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open(path) {
            Err(Errno::NOENT) => {}
            other => return Ok(other?),
        }
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => Ok(self.open(path)?),
            Err(error) => Err(error.into()),
        }
    }

    fn parent(&self, path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.directory(path.parent().unwrap_or(Path::new("")))?, name.into()))
    }

    fn symlink(&self, path: &Path, target: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::symlinkat(target, &parent, &name)?)
    }

    fn file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o644))?;
        fs::File::from(file).write_all(content)
    }

    fn tree(&self, path: &Path, source: &Source, attributes: Attributes, need: Need) -> Result<(), Fault> {
        let taken;
        let (tree, from) = match source {
            Source::Host(host) | Source::Real(host) => {
                let take = if matches!(source, Source::Real(_)) { mount::take_real_tree } else { mount::take_tree };
                match (take(host), need) {
                    (Ok(tree), _) => taken = tree,
                    (Err(_), Need::Optional) => return Ok(()),
                    (Err(error), Need::Required) => {
                        return Err(Fault::new(format!("take {} for the sandbox", host.display()), &error));
                    }
                }
                mount::restrict_tree(taken.as_fd(), attributes)
                    .step(|| format!("restrict the mount of {} for the sandbox", host.display()))?;
                (taken.as_fd(), host.as_path())
            }
            // The supervisor has set the attributes, while it had the privilege to.
            Source::Passed(index) => match self.trees.get(*index) {
                Some(tree) => (tree.as_fd(), path),
                None => return Err(Fault::new(attach(path), &io::ErrorKind::NotFound.into())),
            },
        };
        let kind = kind(tree).step(|| format!("inspect {}", from.display()))?;
        self.attach(tree, path, kind).map_err(|error| {
            let fault = Fault::new(attach(path), &error);
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::ROFS | Errno::ACCESS) => fault.with_remedy(
                    "; there is no such path inside, and what is around it is read-only there: choose another target",
                ),
                _ => fault,
            }
        })
    }

    /// Attaches a tree, making its place if it is not there.
    fn attach(&self, tree: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<()> {
        let place = match self.open(path) {
            Ok(place) => place,
            Err(Errno::NOENT) if kind == Kind::Directory => self.directory(path)?,
            Err(Errno::NOENT) => {
                self.file(path, b"")?;
                self.open(path)?
            }
            Err(error) => return Err(error.into()),
        };
        mount::attach(tree, mount::Place { root: place.as_fd(), path: Path::new("") })
    }

    fn scratch(&self, path: &Path, mode: u32) -> io::Result<()> {
        let name = path.to_string_lossy().replace('/', "-");
        let scratch = self.scratch.as_ref().ok_or(io::ErrorKind::NotFound)?;
        rustix::fs::mkdirat(scratch, &name, Mode::from_raw_mode(mode))?;
        let place = mount::Place { root: scratch.as_fd(), path: Path::new(&name) };
        let tree = mount::take_tree_at(place)?;
        match self.attach(tree.as_fd(), path, Kind::Directory) {
            // A root file system of the user's without this directory.
            Err(error) if error.raw_os_error() == Some(Errno::ROFS.raw_os_error()) => Ok(()),
            other => other,
        }
    }

    fn cover(&self, path: &Path) -> io::Result<()> {
        let place = match self.open(path) {
            Ok(place) => place,
            // A directory on the way that may not be searched hides what is in it well enough.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let place = mount::Place { root: place.as_fd(), path: Path::new("") };
        let read_only = Attributes { read_only: true, no_exec: true, devices: true };
        let cover = match kind(place.root)? {
            Kind::Directory => mount::take_tree_at(mount::Place { root: self.empty.as_fd(), path: Path::new("") })?,
            Kind::File => mount::take_tree(Path::new("/dev/null"))?,
        };
        mount::restrict_tree(cover.as_fd(), read_only)?;
        mount::attach(cover.as_fd(), place)
    }

    fn freeze(&self, path: &Path) -> io::Result<()> {
        let place = match self.open(path) {
            Ok(place) => place,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let place = mount::Place { root: place.as_fd(), path: Path::new("") };
        let tree = mount::take_tree_at(place)?;
        mount::restrict_tree(tree.as_fd(), Attributes { read_only: true, no_exec: true, devices: false })?;
        mount::attach(tree.as_fd(), place)
    }

    /// Moves into the view, and makes the skeleton read-only.
    fn finish(self) -> Result<(), Fault> {
        mount::change_root(self.root.as_fd()).step(|| "make its new root directory the root".to_owned())?;
        let scratch = Path::new("/").join(SCRATCH);
        mount::detach(&scratch).step(|| "detach its store of writable directories".to_owned())?;
        fs::remove_dir(&scratch).step(|| "remove the place of its writable directories".to_owned())?;
        mount::freeze(self.root.as_fd()).step(|| "make its root directory read-only".to_owned())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    let status = rustix::fs::fstat(fd)?;
    Ok(if FileType::from_raw_mode(status.st_mode) == FileType::Directory { Kind::Directory } else { Kind::File })
}

fn read(source: &Path) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = fs::File::from(rustix::fs::open(source, flags, Mode::empty()).ok()?);
    let mut content = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, COPY_LIMIT), &mut content).ok()?;
    Some(content)
}

fn make(path: &Path) -> String {
    format!("make /{} in the sandbox", path.display())
}

fn attach(path: &Path) -> String {
    format!("mount something at /{} in the sandbox", path.display())
}

fn filesystem_remedy(kind: &str, error: &io::Error) -> String {
    if kind == "proc" && error.raw_os_error() == Some(Errno::PERM.raw_os_error()) {
        return "; the container this runs in covers parts of its /proc, and the kernel gives no new one then: start it \
                without that (docker: --security-opt systempaths=unconfined, podman: --security-opt unmask=ALL)"
            .to_owned();
    }
    String::new()
}
