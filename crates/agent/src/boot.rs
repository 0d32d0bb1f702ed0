//! The first steps: what every program expects of a machine, and what is the agent's own.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cofferdam_guest_protocol::Token;
use cofferdam_initramfs::{DIRECTORY, Group, MODULE_LIST, TOKEN};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::network;
use crate::parameters::parameters;
use crate::words::{Doing, Trouble};

/// What the agent has of the initramfs, which is out of sight once a root is entered.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) token: Token,
    /// What the kernel was started with.
    pub(crate) command_line: String,
    directory: OwnedFd,
    /// Groups and files, in the order of loading.
    modules: Vec<(String, String)>,
}

struct KernelMount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: Option<&'static std::ffi::CStr>,
}

const NOTHING: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
const MEMORY: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

const fn at(kind: &'static str, target: &'static str, flags: MountFlags) -> KernelMount {
    KernelMount { kind, target, flags, options: None }
}

/// What is mounted at the start; a root that is entered takes most of it along.
const MOUNTS: [KernelMount; 8] = [
    at("proc", "/proc", NOTHING),
    at("sysfs", "/sys", NOTHING),
    at("devtmpfs", "/dev", DEVICES),
    KernelMount { options: Some(c"ptmxmode=0666,mode=0620,gid=5"), ..at("devpts", "/dev/pts", DEVICES) },
    at("tmpfs", "/dev/shm", MEMORY),
    KernelMount { options: Some(c"mode=0755"), ..at("tmpfs", "/run", MEMORY) },
    at("tmpfs", "/tmp", MEMORY),
    at("cgroup2", "/sys/fs/cgroup", NOTHING),
];

/// Those of the first level that a root has to have; its own `/tmp` may be larger than the memory.
pub(crate) const TAKEN_ALONG: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];

/// Mounts what programs expect, takes the token, loads the modules of the channel.
pub(crate) fn start() -> Result<Own, Trouble> {
    for KernelMount { kind, target, flags, options } in MOUNTS {
        make_directory(Path::new(target))?;
        rustix::mount::mount(kind, target, kind, flags, options).doing(|| format!("mount {kind} at {target}"))?;
    }
    for (link, target) in
        [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "fd/0"), ("/dev/stdout", "fd/1"), ("/dev/stderr", "fd/2")]
    {
        std::os::unix::fs::symlink(target, link).doing(|| format!("make {link}"))?;
    }
    let path = format!("/{DIRECTORY}");
    let directory = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let directory = directory.doing(|| format!("open {path} of the initramfs"))?;
    let command_line = fs::read_to_string("/proc/cmdline").doing(|| "read /proc/cmdline".to_owned())?;
    let own = Own { token: take_token(&path)?, command_line, directory, modules: module_list(&path)? };
    own.load(Group::Boot)?;
    network::loopback()?;
    Ok(own)
}

impl Own {
    /// Loads the modules of a group that are not there, with the parameters that the kernel's command line has for them.
    pub(crate) fn load(&self, group: Group) -> Result<(), Trouble> {
        for (_, file) in self.modules.iter().filter(|(of, _)| of == group.word()) {
            let name = file.strip_suffix(".ko").unwrap_or(file);
            let load = || -> rustix::io::Result<()> {
                let words = CString::new(parameters(&self.command_line, name)).map_err(|_| Errno::INVAL)?;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let module = rustix::fs::openat(self.directory.as_fd(), file.as_str(), flags, Mode::empty())?;
                match rustix::system::finit_module(module, &words, 0) {
                    // It is there; or it is for hardware that is not, as drivers of processors are.
                    Err(Errno::EXIST | Errno::NODEV) => Ok(()),
                    loaded => loaded,
                }
            };
            load().doing(|| format!("load the module {file}"))?;
        }
        Ok(())
    }
}

/// The token is read once, and then nobody can.
fn take_token(directory: &str) -> Result<Token, Trouble> {
    let path = format!("{directory}/{TOKEN}");
    let bytes = fs::read(&path).doing(|| format!("read the token of this boot, {path} of the initramfs"))?;
    fs::remove_file(&path).doing(|| format!("remove {path}"))?;
    let bytes = <[u8; Token::LENGTH]>::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    Ok(Token::new(bytes.doing(|| format!("use {path}, which has the wrong length"))?))
}

fn module_list(directory: &str) -> Result<Vec<(String, String)>, Trouble> {
    let path = format!("{directory}/{MODULE_LIST}");
    let text = match fs::read_to_string(&path) {
        // A kernel may have everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.doing(|| format!("read {path} of the initramfs"))?,
    };
    let pair = |line: &str| line.split_once(' ').map(|(group, file)| (group.to_owned(), file.to_owned()));
    Ok(text.lines().filter_map(pair).collect())
}

/// Makes a directory and those on the way to it, where they are not there.
pub(crate) fn make_directory(path: &Path) -> Result<(), Trouble> {
    fs::create_dir_all(path).doing(|| format!("make the directory {}", path.display()))
}
