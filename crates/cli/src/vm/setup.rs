//! `cofferdam vm setup`: finds a kernel, modules, busybox and the agent, and writes down what machines start from.
//!
//! What is not given is fetched with the distribution's own client into a folder that goes again, and unpacked there: nothing is
//! installed, and no root is needed. The two files take the place of those before in one step, or not at all. One setup has the
//! folder at a time, and takes away what one that was killed has left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, FileType};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_initramfs::{
    Architecture, Archive, DIRECTORY, Group, MODULE_LIST, ModuleInfo, Modules, check_executable,
};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags};

use crate::args::{ArchitectureWord, VmSetupArgs};
use crate::output;
use crate::state;

/// The files in a folder of the state directory for each kind of processor.
pub(crate) const KERNEL: &str = "kernel";
pub(crate) const INITRAMFS: &str = "initramfs";

/// The kernel that Debian makes for machines of this kind, without drivers of real hardware.
const KERNEL_PACKAGE: &str = "linux-image-cloud-";
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// The names under which busybox is there. What a busybox lacks of them it says when it is called so.
const APPLETS: &str = "[ ash awk base64 basename cat chgrp chmod chown chroot clear cmp cp cpio cut date dd df diff dirname dmesg \
    du echo egrep env expr false fgrep find fold free fuser grep groups gunzip gzip head hexdump hostname id ifconfig insmod ip kill \
    killall less ln logger ls lsmod md5sum mkdir mkfifo mknod mktemp modprobe more mount mv nc nl nohup nproc nslookup od paste \
    patch pgrep pidof ping ping6 pkill printf ps pwd readlink realpath reset rm rmdir route sed seq setsid sh sha1sum sha256sum \
    sleep sort split stat strings stty sync sysctl tac tail tar tee telnet test time timeout top touch tr traceroute true truncate \
    tty udhcpc umount uname uniq unlink unshare unzip uptime usleep vi watch wc wget which whoami xargs xxd yes zcat";

/// The places that the agent and programs count on.
const DIRECTORIES: [(&str, u32); 14] = [
    ("bin", 0o755),
    ("sbin", 0o755),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o755),
    ("sys", 0o755),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("root", 0o700),
    ("mnt", 0o755),
    (DIRECTORY, 0o700),
];

/// Why there is nothing to start from: what was wrong with what, and what to do.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error("there are no virtual machines for processors of type {0}")]
    Architecture(&'static str),
    #[error(transparent)]
    State(#[from] cofferdam_control::StateError),
    #[error("cannot {what} {path}", path = .path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot execute {program}: {remedy}")]
    Absent { program: &'static str, remedy: String, source: io::Error },
    #[error("{command} failed: {said}; {remedy}")]
    Failed { command: String, said: String, remedy: String },
    #[error("{path} has no {what}: {remedy}", path = .path.display())]
    Lacks { path: PathBuf, what: &'static str, remedy: &'static str },
    #[error("{path} is of no use: {why}; {remedy}", path = .path.display())]
    Useless { path: PathBuf, why: String, remedy: &'static str },
    #[error(transparent)]
    Modules(#[from] cofferdam_initramfs::ModuleError),
    #[error(transparent)]
    Archive(#[from] cofferdam_initramfs::ArchiveError),
}

/// Where the parts come from.
struct Parts {
    kernel: PathBuf,
    modules: Option<PathBuf>,
    busybox: PathBuf,
    agent: PathBuf,
}

/// Sets up what machines start from.
pub(crate) fn setup(args: &VmSetupArgs) -> u8 {
    let state = match state::directory() {
        Ok(state) => state,
        Err(refusal) => return refusal.tell(false),
    };
    match write(args, &state) {
        Ok((folder, report)) => output::print(&format!("{}: {report}\n", folder.display())),
        Err(error) => output::fail(&output::chain(&error), 1),
    }
}

fn write(args: &VmSetupArgs, state: &Path) -> Result<(PathBuf, String), SetupError> {
    let architecture = match args.arch {
        Some(ArchitectureWord::X86_64) => Architecture::X86_64,
        Some(ArchitectureWord::Aarch64) => Architecture::Aarch64,
        None => own_architecture().ok_or(SetupError::Architecture(std::env::consts::ARCH))?,
    };
    let folder = cofferdam_control::make_guests(state)?;
    let work = WorkFolder::new(&folder)?;
    let parts = find(args, architecture, &work.path)?;
    let kernel = read(&parts.kernel)?;
    let initramfs = pack(&parts, architecture)?;
    let made = work.path.join("made");
    fs::create_dir(&made).map_err(of("make", &made))?;
    for (name, content) in [(KERNEL, &kernel), (INITRAMFS, &initramfs)] {
        let path = made.join(name);
        fs::write(&path, content).map_err(of("write", &path))?;
    }
    let place = folder.join(architecture.word());
    put_in_place(&made, &place)?;
    let mib = |bytes: &[u8]| format!("{}.{} MiB", bytes.len() >> 20, ((bytes.len() & 0xf_ffff) * 10) >> 20);
    let report = format!("a kernel of {} ({}), an initramfs of {}", mib(&kernel), parts.kernel_name(), mib(&initramfs));
    Ok((place, report))
}

fn own_architecture() -> Option<Architecture> {
    Architecture::ALL.into_iter().find(|architecture| architecture.word() == std::env::consts::ARCH)
}

impl Parts {
    fn kernel_name(&self) -> std::borrow::Cow<'_, str> {
        self.kernel.file_name().unwrap_or_default().to_string_lossy()
    }
}

/// What work folders are called. Those of setups that were killed are left.
const WORK: &str = ".setup-";

/// A folder that goes with everything in it. There is one at a time.
struct WorkFolder {
    path: PathBuf,
    /// The folder that it is in, locked for as long as it is there.
    _lock: OwnedFd,
}

impl WorkFolder {
    fn new(folder: &Path) -> Result<WorkFolder, SetupError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = rustix::fs::open(folder, flags, Mode::empty()).map_err(|error| of("open", folder)(error.into()))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            output::say("waiting for another setup to end");
            let locked = rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive));
            locked.map_err(|error| of("lock", folder)(error.into()))?;
        }
        for entry in fs::read_dir(folder).map_err(of("list", folder))?.flatten() {
            // Nobody has the lock, so it is nobody's.
            if entry.file_name().as_encoded_bytes().starts_with(WORK.as_bytes()) {
                let _stays = fs::remove_dir_all(entry.path());
            }
        }
        let path = folder.join(format!("{WORK}{}", std::process::id()));
        fs::create_dir(&path).map_err(of("make", &path))?;
        Ok(WorkFolder { path, _lock: lock })
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What was there before is in `made` afterwards.
fn put_in_place(made: &Path, place: &Path) -> Result<(), SetupError> {
    let moved = match rustix::fs::renameat_with(CWD, made, CWD, place, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::NOENT) => rustix::fs::rename(made, place),
        moved => moved,
    };
    moved.map_err(|error| of("replace", place)(error.into()))
}

fn find(args: &VmSetupArgs, architecture: Architecture, work: &Path) -> Result<Parts, SetupError> {
    // Before anything is fetched: this one is ours, and a likely miss.
    let agent = find_agent(args, architecture)?;
    let (kernel, modules) = match (&args.kernel, &args.from_deb) {
        (Some(kernel), _) => (kernel.clone(), args.modules.clone()),
        (None, Some(package)) => kernel_of(package, work)?,
        (None, None) => {
            let name = format!("{KERNEL_PACKAGE}{}", architecture.debian());
            let name = newest_of(&name, architecture)?;
            kernel_of(
                &fetch(
                    &name,
                    work,
                    "give a kernel with --kernel FILE and --modules DIR, or its package with --from-deb FILE",
                )?,
                work,
            )?
        }
    };
    let busybox = match &args.busybox {
        Some(busybox) => busybox.clone(),
        None => find_busybox(architecture, work)?,
    };
    Ok(Parts { kernel, modules, busybox, agent })
}

/// The agent beside this program, where `tools/build-agent` puts it.
fn find_agent(args: &VmSetupArgs, architecture: Architecture) -> Result<PathBuf, SetupError> {
    let remedy = "tools/build-agent builds it, and --agent FILE says where it is";
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => {
            let own = std::env::current_exe().map_err(of("find", Path::new("this program")))?;
            let beside = |name: &str| own.with_file_name(name);
            let named = beside(&format!("cofferdam-agent-{}", architecture.word()));
            if named.exists() { named } else { beside("cofferdam-agent") }
        }
    };
    if !agent.exists() {
        return Err(SetupError::Useless { path: agent, why: "there is no such file".to_owned(), remedy });
    }
    check(&agent, architecture, remedy)?;
    Ok(agent)
}

fn find_busybox(architecture: Architecture, work: &Path) -> Result<PathBuf, SetupError> {
    let installed = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let usable = |path: &&Path| fs::read(path).is_ok_and(|file| check_executable(&file, architecture).is_ok());
    if let Some(path) = installed.into_iter().find(usable) {
        return Ok(path.to_owned());
    }
    let name = foreign(BUSYBOX_PACKAGE, architecture);
    let unpacked = unpack(&fetch(&name, work, "give one with --busybox FILE")?, &work.join("busybox"))?;
    let busybox =
        ["bin", "usr/bin"].into_iter().find_map(|place| within(&unpacked, place, "busybox", FileType::is_file));
    busybox.ok_or(SetupError::Lacks { path: unpacked, what: "busybox", remedy: "give one with --busybox FILE" })
}

/// The package that the distribution's newest kernel is in: the one of that name stands on it.
fn newest_of(name: &str, architecture: Architecture) -> Result<String, SetupError> {
    let remedy = || {
        "on a distribution without this package, give a kernel with --kernel FILE and --modules DIR, or a Debian package with \
         --from-deb FILE"
            .to_owned()
    };
    let package = foreign(name, architecture);
    let said = run(Command::new("apt-cache").args(["depends", "--important", &package]), "apt-cache", &remedy)?;
    let newest =
        said.lines().find_map(|line| line.trim().strip_prefix("Depends: ").filter(|on| on.starts_with("linux-image-")));
    let newest = newest.ok_or_else(|| SetupError::Failed {
        command: format!("apt-cache depends {package}"),
        said: "it names no linux-image".to_owned(),
        remedy: remedy(),
    })?;
    Ok(foreign(newest, architecture))
}

/// A package's name as apt has it for another kind of processor.
fn foreign(name: &str, architecture: Architecture) -> String {
    match own_architecture() == Some(architecture) || name.contains(':') {
        true => name.to_owned(),
        false => format!("{name}:{}", architecture.debian()),
    }
}

/// Has apt-get fetch a package into a folder of its own.
fn fetch(name: &str, work: &Path, otherwise: &str) -> Result<PathBuf, SetupError> {
    let folder = work.join(format!("fetched-{}", name.replace(':', "-")));
    fs::create_dir(&folder).map_err(of("make", &folder))?;
    output::say(&format!("fetching {name}"));
    let remedy = || format!("look whether `apt-get update` helps, or {otherwise}");
    // Its own user for downloads may not enter this folder.
    let arguments = ["-q", "-o", "APT::Sandbox::User=root", "download", name];
    run(Command::new("apt-get").args(arguments).current_dir(&folder), "apt-get", &remedy)?;
    let list = fs::read_dir(&folder).map_err(of("list", &folder))?;
    let package =
        list.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "deb"));
    package.ok_or_else(|| SetupError::Failed {
        command: format!("apt-get download {name}"),
        said: "there is no package".to_owned(),
        remedy: remedy(),
    })
}

fn unpack(package: &Path, to: &Path) -> Result<PathBuf, SetupError> {
    let remedy = || "it has to be a Debian package; dpkg-deb comes with dpkg".to_owned();
    run(Command::new("dpkg-deb").arg("-x").args([package, to]), "dpkg-deb", &remedy)?;
    Ok(to.to_owned())
}

/// Kernel and modules of a Debian package.
fn kernel_of(package: &Path, work: &Path) -> Result<(PathBuf, Option<PathBuf>), SetupError> {
    let unpacked = unpack(package, &work.join("kernel"))?;
    let lacks = |what| SetupError::Lacks {
        path: package.to_owned(),
        what,
        remedy: "it has to be a linux-image package with its modules, as Debian has them",
    };
    let kernel = within(&unpacked, "boot", "vmlinu", FileType::is_file).ok_or_else(|| lacks("kernel"))?;
    let modules = ["lib/modules", "usr/lib/modules"].into_iter();
    let modules = modules.filter_map(|place| within(&unpacked, place, "", FileType::is_dir)).next();
    Ok((kernel, Some(modules.ok_or_else(|| lacks("modules"))?)))
}

/// Something of this kind in a folder of what was unpacked, whose name begins so. A package may hold anything: what is a link, or
/// lies behind one, may be anywhere, and what is no file may never end.
fn within(unpacked: &Path, folder: &str, begin: &str, is_kind: fn(&FileType) -> bool) -> Option<PathBuf> {
    let kind = |path: &Path| fs::symlink_metadata(path).map(|found| found.file_type());
    let mut place = unpacked.to_owned();
    for part in Path::new(folder) {
        place.push(part);
        kind(&place).ok().filter(FileType::is_dir)?;
    }
    let list = fs::read_dir(place).ok()?.flatten();
    let named = list.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(begin.as_bytes()));
    named.map(|entry| entry.path()).find(|path| kind(path).is_ok_and(|kind| is_kind(&kind)))
}

/// Runs a program to its end and gives what it printed.
fn run(command: &mut Command, program: &'static str, remedy: &dyn Fn() -> String) -> Result<String, SetupError> {
    let done = command.env("LC_ALL", "C").output();
    let done = done.map_err(|source| SetupError::Absent { program, remedy: remedy(), source })?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned();
        return Err(SetupError::Failed { command: format!("{program} ({})", done.status), said, remedy: remedy() });
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn check(path: &Path, architecture: Architecture, remedy: &'static str) -> Result<(), SetupError> {
    let useless = |why: String| SetupError::Useless { path: path.to_owned(), why, remedy };
    check_executable(&read(path)?, architecture).map_err(|error| useless(error.to_string()))
}

/// The initramfs of these parts.
fn pack(parts: &Parts, architecture: Architecture) -> Result<Vec<u8>, SetupError> {
    check(&parts.busybox, architecture, "Debian's package busybox-static has one that is")?;
    let mut archive = Archive::new();
    for (name, permissions) in DIRECTORIES {
        archive.directory(name, permissions)?;
    }
    // The agent's own output has to go somewhere before it has mounted anything.
    archive.device("dev/console", 0o600, (5, 1))?;
    archive.device("dev/null", 0o666, (1, 3))?;
    archive.file("init", 0o755, &read(&parts.agent)?)?;
    archive.file("bin/busybox", 0o755, &read(&parts.busybox)?)?;
    for applet in APPLETS.split_whitespace() {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")?;
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    if let Some(modules) = &parts.modules {
        pack_modules(modules, &mut archive)?;
    }
    Ok(archive.finish())
}

fn pack_modules(folder: &Path, archive: &mut Archive) -> Result<(), SetupError> {
    let files = module_files(folder)?;
    let built_in = folder.join("modules.builtin");
    let is_file = fs::symlink_metadata(&built_in).is_ok_and(|found| found.is_file());
    let built_in = if is_file { fs::read_to_string(built_in).unwrap_or_default() } else { String::new() };
    let built_in: BTreeSet<String> =
        built_in.lines().filter_map(|line| Modules::name_of(line.rsplit('/').next()?)).collect();
    let mut modules = Modules::default();
    let mut contents = BTreeMap::new();
    // Each round reads what the one before named; a kernel has a few thousand modules at most.
    loop {
        let unknown = modules.unknown(&Group::ALL);
        let mut new = read_modules(files.iter().filter(|(name, _)| unknown.contains(*name)), |_| true)?;
        if new.is_empty() {
            // What is no file's name is another name of modules. Which ones they alone say, so those are read that may be it.
            let wanted = modules.wanted(&built_in);
            let ciphers = files.iter().filter(|(name, path)| !contents.contains_key(*name) && is_cipher(folder, path));
            new = if wanted.is_empty() { new } else { read_modules(ciphers, |info| info.answers_to(&wanted))? };
        }
        if new.is_empty() {
            break;
        }
        for (name, info, content) in new {
            modules.insert(&name, info);
            contents.insert(name, content);
        }
    }
    let mut list = String::new();
    let mut packed = BTreeSet::new();
    for (group, name) in modules.load_order(&Group::ALL, &built_in)? {
        let Some(content) = contents.get(&name) else { continue };
        let file = format!("{name}.ko");
        if packed.insert(file.clone()) {
            archive.file(&format!("{DIRECTORY}/{file}"), 0o400, content)?;
        }
        list.push_str(&format!("{} {file}\n", group.word()));
    }
    if !list.contains("virtio_console") && !built_in.contains("virtio_console") {
        return Err(SetupError::Lacks {
            path: folder.to_owned(),
            what: "virtio_console, the channel to the agent",
            remedy: "give the folder of the modules of this very kernel, which ends in its version",
        });
    }
    Ok(archive.file(&format!("{DIRECTORY}/{MODULE_LIST}"), 0o400, list.as_bytes())?)
}

/// The modules of these files that are of use, with what they say about themselves.
fn read_modules<'a>(
    files: impl Iterator<Item = (&'a String, &'a PathBuf)>,
    is_of_use: impl Fn(&ModuleInfo) -> bool,
) -> Result<Vec<(String, ModuleInfo, Vec<u8>)>, SetupError> {
    let mut read = Vec::new();
    for (name, path) in files {
        let content = read_module(path)?;
        let info = ModuleInfo::parse(name, &content)?;
        if is_of_use(&info) {
            read.push((name.clone(), info, content));
        }
    }
    Ok(read)
}

/// Whether the kernel keeps its ciphers and sums where this module is, `crypto` and `arch/x86/crypto`: they are what modules want by
/// other names. Those among the drivers are for hardware that a machine has not.
fn is_cipher(folder: &Path, module: &Path) -> bool {
    let place = module.strip_prefix(folder).unwrap_or(module);
    let has = |part: &str| place.components().any(|component| component.as_os_str() == part);
    has("crypto") && !has("drivers")
}

/// The files of the modules at and below a folder, by name.
fn module_files(folder: &Path) -> Result<BTreeMap<String, PathBuf>, SetupError> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(of("list", &folder))?.flatten() {
            // Links lead out of the folder: `build`, `source`.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    if let Some(name) = entry.file_name().to_str().and_then(Modules::name_of) {
                        files.insert(name, entry.path());
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
    Ok(files)
}

/// A module as the kernel takes it, whatever the distribution packs it with.
fn read_module(path: &Path) -> Result<Vec<u8>, SetupError> {
    let program = match path.extension().and_then(|ending| ending.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return read(path),
    };
    let unpacked = Command::new(program).arg("-dc").arg(path).output();
    let remedy = format!("install {program}, with which this kernel's modules are packed");
    let unpacked = unpacked.map_err(|source| SetupError::Absent { program, remedy, source })?;
    match unpacked.status.success() {
        true => Ok(unpacked.stdout),
        false => Err(SetupError::Useless {
            path: path.to_owned(),
            why: format!("{program} cannot unpack it"),
            remedy: "fetch the kernel's package anew",
        }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SetupError> {
    fs::read(path).map_err(of("read", path))
}

fn of(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SetupError {
    let path = path.to_owned();
    move |source| SetupError::File { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_a_killed_setup_has_left_goes_and_one_that_works_is_waited_for() {
        let guests = tempfile::tempdir().unwrap();
        let at = |name: &str| guests.path().join(name);
        for left in [".setup-1/kernel/boot", ".setup-99999999", "x86_64"] {
            fs::create_dir_all(at(left)).unwrap();
        }
        let work = WorkFolder::new(guests.path()).unwrap();
        assert!(!at(".setup-1").exists() && !at(".setup-99999999").exists());
        assert!(at("x86_64").exists() && work.path.exists());
        let other = fs::File::open(guests.path()).unwrap();
        assert!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(work);
        assert_eq!(fs::read_dir(guests.path()).unwrap().count(), 1);
        rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    }

    #[test]
    fn of_a_package_files_are_read_and_nothing_else() {
        let package = tempfile::tempdir().unwrap();
        let at = |name: &str| package.path().join(name);
        let kernel = || within(package.path(), "boot", "vmlinu", FileType::is_file);
        fs::create_dir(at("boot")).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(CWD, at("boot/vmlinuz-1"), fifo, Mode::RUSR, 0).unwrap();
        symlink("/etc/passwd", at("boot/vmlinuz-2")).unwrap();
        fs::create_dir(at("boot/vmlinuz-3")).unwrap();
        assert_eq!(kernel(), None);
        fs::write(at("boot/vmlinuz-4"), "kernel").unwrap();
        assert_eq!(kernel(), Some(at("boot/vmlinuz-4")));
        // Behind a link everything is somebody else's.
        fs::rename(at("boot"), at("elsewhere")).unwrap();
        symlink("elsewhere", at("boot")).unwrap();
        assert_eq!(kernel(), None);
        fs::create_dir_all(at("elsewhere/modules/6.1")).unwrap();
        symlink("elsewhere", at("lib")).unwrap();
        assert_eq!(within(package.path(), "lib/modules", "", FileType::is_dir), None);
        assert!(within(package.path(), "elsewhere/modules", "", FileType::is_dir).is_some());
    }
}
