//! Carries out the steps of a plan in the sandbox's mount namespace. Runs in the sandbox's init, before the program.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cofferdam_sys::mount::{self, Attributes};
use cofferdam_sys::ns::{self, NamespaceKind, Namespaces};
use cofferdam_sys::socket;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::plan::{self, Need, Source, Step};
use crate::wire::{Fault, Step as _};

/// Where the writable file system is attached while its directories are taken from it.
const SCRATCH: &str = ".scratch";

/// The directory of sockets there.
const SOCKETS: &str = "sockets";

/// Connections that wait to be accepted. The kernel bounds it by `net.core.somaxconn`, 4,096 since Linux 5.4.
const BACKLOG: i32 = 4096;

/// A file larger than this is not copied, whatever the survey said: it may have grown.
const COPY_LIMIT: u64 = 1024 * 1024;

/// Makes the view of `steps`, moves into it, and leaves nothing of the old one in reach. The sockets that it made, in order.
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
) -> Result<Vec<OwnedFd>, E> {
    let mask = rustix::process::umask(Mode::empty());
    mount::make_all_private().step(|| "cut its mounts off from the host's".to_owned())?;
    let root = mount::new_filesystem("tmpfs", &plan::skeleton_options(), Attributes::default())
        .step(|| "make its root directory".to_owned())?;
    // On top of the old root: absolute paths still lead to the host until the roots are changed.
    mount::attach(root.as_fd(), mount::Place { root: CWD, path: Path::new("/") })
        .step(|| "attach its root directory".to_owned())?;
    let placer = Placer::new(root, trees, memory)?;
    let mut sockets = Vec::new();
    for step in steps {
        sockets.extend(placer.carry_out(step)?);
    }
    last()?;
    placer.finish()?;
    rustix::process::umask(mask);
    Ok(sockets)
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
            | Step::Freeze { .. }
            | Step::Socket { .. }
            | Step::Hide { .. } => drop(placer.carry_out(step)?),
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

    /// The socket, when it made one.
    fn carry_out(&self, step: &Step) -> Result<Option<OwnedFd>, Fault> {
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
            Step::Socket { path, number } => return self.socket(path, *number).map(Some),
            Step::Hide { path } => self.hide(path)?,
        }
        Ok(None)
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
        self.open_by(path, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// Opens a path of the sandbox that has no symbolic link in it.
    fn open_straight(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.open_by(path, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
    }

    fn open_by(&self, path: &Path, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
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

    /// Makes a listening socket and mounts it where nothing is. The directories on the way become mounts of themselves where a
    /// program could rename them: the socket has to be found again to be hidden from a run.
    fn socket(&self, path: &Path, number: usize) -> Result<OwnedFd, Fault> {
        let make = || format!("make the place /{} for a socket of the host", path.display());
        let (_, name) = self.parent(path).step(make).map_err(elsewhere)?;
        // A link that a program has left could lead elsewhere when the socket is to be hidden.
        let parent = self.open_straight(path.parent().unwrap_or(Path::new(""))).step(make).map_err(elsewhere)?;
        let mut ways: Vec<&Path> = path.ancestors().skip(1).collect();
        ways.reverse();
        for way in ways {
            self.pin(way).step(make)?;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) => self.file(path, b"").step(make).map_err(elsewhere)?,
            Err(error) => return Err(Fault::new(make(), &error.into())),
            Ok(there) => {
                let status = rustix::fs::fstat(&there).step(make)?;
                let is_left = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile && status.st_size == 0;
                if !is_left {
                    let fault = Fault::new(make(), &Errno::EXIST.into());
                    return Err(fault.with_remedy("; something is there already: choose another path inside"));
                }
            }
        }
        let (socket, tree) = self.listen(&number.to_string()).step(make)?;
        let place = self.open_straight(path).step(make)?;
        mount::attach(tree.as_fd(), mount::Place { root: place.as_fd(), path: Path::new("") }).step(make)?;
        Ok(socket)
    }

    /// A listening socket on the file system of the writable directories, and the mount of its file.
    fn listen(&self, name: &str) -> io::Result<(OwnedFd, OwnedFd)> {
        let scratch = self.scratch.as_ref().ok_or(io::ErrorKind::NotFound)?;
        match rustix::fs::mkdirat(scratch, SOCKETS, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(scratch, SOCKETS, flags, Mode::empty())?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // There is no bind(2) below a directory, and no /proc here that would stand in for one.
        let here = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        rustix::process::fchdir(&directory)?;
        let bound = SocketAddrUnix::new(name).and_then(|name| rustix::net::bind(&socket, &name));
        rustix::process::fchdir(&here)?;
        bound?;
        // Everything inside is one user's.
        rustix::fs::chmodat(&directory, name, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
        // To close what came along may take as long as a program likes (SO_LINGER). An older kernel cannot refuse it.
        let _before_6_16 = socket::refuse_descriptors(&socket);
        rustix::net::listen(&socket, BACKLOG)?;
        let tree = mount::take_tree_at(mount::Place { root: directory.as_fd(), path: Path::new(name) })?;
        mount::restrict_tree(tree.as_fd(), Attributes { read_only: true, no_exec: true, devices: false })?;
        Ok((socket, tree))
    }

    /// Makes a directory a mount of itself, unless it is one, or on the skeleton, which ends up read-only.
    fn pin(&self, path: &Path) -> io::Result<()> {
        let place = self.open(path)?;
        let is_skeleton = rustix::fs::fstat(&place)?.st_dev == rustix::fs::fstat(&self.root)?.st_dev;
        if is_skeleton || is_mount(place.as_fd())? {
            return Ok(());
        }
        let place = mount::Place { root: place.as_fd(), path: Path::new("") };
        mount::attach(mount::take_tree_at(place)?.as_fd(), place)
    }

    /// Covers the socket that was made at `path` when the sandbox was. Nothing else can be there, since nobody inside mounts.
    fn hide(&self, path: &Path) -> Result<(), Fault> {
        let step = || format!("hide the host socket /{} from a run with a network of its own", path.display());
        let place = self.open_straight(path).step(step)?;
        let status = rustix::fs::fstat(&place).step(step)?;
        let is_socket = FileType::from_raw_mode(status.st_mode) == FileType::Socket;
        if !is_socket || !is_mount(place.as_fd()).step(step)? {
            return Err(Fault::new(step(), &Errno::NOTSOCK.into()));
        }
        self.cover(path).step(step)
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

/// Whether this is the root of a mount.
pub(crate) fn is_mount(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let status = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// What to do about a place that cannot be made.
fn elsewhere(fault: Fault) -> Fault {
    match Errno::from_raw_os_error(fault.errno) {
        Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::NOENT => {
            fault.with_remedy("; nothing can be made there inside: choose another path, beneath /run or /tmp say")
        }
        Errno::LOOP => {
            fault.with_remedy("; a directory on the way is a symbolic link inside: name the place that it leads to")
        }
        _ => fault,
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

fn read(source: &Source) -> Option<Vec<u8>> {
    let (path, resolve) = match source {
        Source::Host(path) => (path, ResolveFlags::empty()),
        Source::Real(path) => (path, ResolveFlags::NO_SYMLINKS),
        // A tree is no file that could be copied.
        Source::Passed(_) => return None,
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let open = || rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve);
    let file = loop {
        match open() {
            // openat2(2): a rename or mount somewhere on the machine came in between.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => break fs::File::from(other.ok()?),
        }
    };
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
