//! From the specification of a sandbox, which is the same for every backend, to a sandbox with a virtual machine in it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_backend_ns::Handles;
use cofferdam_backend_ns::{
    GatewayEnd, LaunchError, Mount, Observer, Place, ResourceLimits, Running, SandboxSpec, Status, Terminal, View,
    launch_monitored,
};
use cofferdam_gateway::NetnsSpec;
use cofferdam_guest_protocol::{
    Exec, Leftover, Mount as GuestMount, MountKind, Neighbour, Network, Route, Size, Token,
};
use cofferdam_smb::Password;
use rustix::fs::{Mode, OFlags};

use crate::Kit;
use crate::accelerator::{self, Cache, Choice, Wish};
use crate::arguments::{Accelerator, Access, ImageFormat, Network as Card, Root, RootSource, Share, SharedDevice, Vm};
use crate::calling::Calling;
use crate::files::Files;
use crate::image;
use crate::monitor::{GuestMonitor, Task, terminal_size};
use crate::slirp::{Engine, Slirp, check_engine};
use crate::virtiofsd::{self, Virtiofsd};

/// MiB of memory of a guest when nothing is said: enough for a compiler, and taken from the host as the guest uses it.
pub const DEFAULT_MEMORY: u64 = 1024;

/// Bytes of memory of QEMU and of what stands beside it in its sandbox, besides the guest's: some 100 MiB of QEMU, two copies of an
/// initramfs, and buffers of devices.
const QEMU_MEMORY: u64 = 256 << 20;

/// Bytes of the guest's programs as TCG translates them, at most (`tb-size`, qemu(1)).
const TRANSLATIONS: u64 = 1 << 30;

const MEBIBYTE: u64 = 1024 * 1024;

/// Less than this has no kernel of a distribution start.
const LEAST_MEMORY: u64 = 128;

/// The most processors of a guest when nothing is said.
const MOST_CPUS: u32 = 4;

/// How long a guest may take to start. It takes three seconds without KVM; on a machine that is busy several times that.
const BOOT_TIME: Duration = Duration::from_secs(120);

/// The same with KVM, where nobody knows whether it works. It takes less than a second where it does.
const PROBE_TIME: Duration = Duration::from_secs(10);

/// Where QEMU sees the files that it is started with.
const KERNEL: &str = "/vm/kernel";
const INITRD: &str = "/vm/initrd";
const ROOT: &str = "/vm/root";
const SHARES: &str = "/vm/shares";

/// The user's home, as in a sandbox of namespaces: in memory, and empty.
const HOME: &[u8] = b"/home/user";

/// How a guest mounts by 9p: without a cache, so that both sides see what the other writes.
const PLAN9: &[u8] = b"trans=virtio,version=9p2000.L,msize=512000,cache=none,access=client";

/// What a virtual machine is made from, besides what every sandbox is.
#[derive(Debug, Clone)]
pub struct Options {
    pub kit: Kit,
    pub wish: Wish,
    /// Where it is noted whether KVM works.
    pub cache: Option<Cache>,
    /// What the agent and we know each other by: fresh random bytes.
    pub token: [u8; Token::LENGTH],
    /// What the guest logs on with where its directories are served: as the token.
    pub password: [u8; 16],
    /// How directories are shared; `None` is what fits.
    pub sharing: Option<Sharing>,
    pub progress: Progress,
    pub engine: Engine,
}

/// How a guest has directories of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sharing {
    /// Over its network, from a server of ours.
    Smb,
    /// By a device of its own, which QEMU serves.
    Plan9,
    /// By a device for each, which this program serves.
    Virtiofs(Virtiofsd),
}

/// Whether somebody watches who wants to know why it takes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Progress {
    Tell,
    #[default]
    Silent,
}

/// Starts a sandbox whose program runs in a virtual machine. `tell` hears what cannot wait. Must be called while the process has
/// one thread, since it forks.
///
/// # Errors
/// What cannot be done in a virtual machine, or what could not be set up; nothing is left of it then.
pub fn launch(spec: SandboxSpec, options: &Options, tell: &mut dyn FnMut(&str)) -> Result<Running, LaunchError> {
    launch_as(Stays::No, spec, options, tell)
}

/// Starts a virtual machine that stays, for runs inside: its command is not looked at. Otherwise as [`launch`].
///
/// # Errors
/// As [`launch`].
pub fn launch_staying(
    spec: SandboxSpec,
    options: &Options,
    tell: &mut dyn FnMut(&str),
) -> Result<Running, LaunchError> {
    launch_as(Stays::Yes, spec, options, tell)
}

/// Runs a program in a virtual machine that stays, over a line to its monitor. Of the specification the program counts, its terminal
/// and its time: everything else is the machine's. Must be called while the process has one thread, since it forks.
///
/// # Errors
/// What could not be set up; the program has not run then.
pub fn launch_calling(spec: SandboxSpec, handles: Handles, line: OwnedFd) -> Result<Running, LaunchError> {
    let calling = Calling { exec: exec(&spec) };
    let place = Place { view: View::Qemu, ..Place::default() };
    let limits = ResourceLimits { timeout: spec.limits.timeout, ..ResourceLimits::default() };
    let outer = SandboxSpec {
        env: Vec::new(),
        workdir: "/".into(),
        place,
        capabilities: Vec::new(),
        limits,
        sockets: Vec::new(),
        ..spec
    };
    cofferdam_backend_ns::launch_calling(outer, handles, &calling, line)
}

/// Whether a machine is there for one program or for runs inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stays {
    Yes,
    No,
}

fn launch_as(
    stays: Stays,
    spec: SandboxSpec,
    options: &Options,
    tell: &mut dyn FnMut(&str),
) -> Result<Running, LaunchError> {
    let root = checked(&spec, options.sharing.as_ref())?;
    check_engine(&spec, &options.engine)?;
    if let Engine::Slirp(slirp) = &options.engine {
        tell(&slirp.notice());
    }
    let Choice { accelerator, why } = choose(options, tell);
    if let Some(why) = why {
        tell(&format!("the guest runs without KVM, which is slow: {why}"));
    }
    let mut told = false;
    let mut booting = |_elapsed: Duration| {
        if options.progress == Progress::Tell && !std::mem::replace(&mut told, true) {
            tell("the guest is starting…");
        }
    };
    let (monitor, outer) = monitored(stays, spec, options, root, (accelerator, BOOT_TIME));
    match stays {
        Stays::No => launch_monitored(outer, &monitor, &mut booting),
        Stays::Yes => cofferdam_backend_ns::launch_staying(outer, &monitor, &mut booting),
    }
}

/// Which accelerator a machine would have here. Tries KVM where that is not known.
pub fn probe(options: &Options, tell: &mut dyn FnMut(&str)) -> Choice {
    choose(options, tell)
}

fn choose(options: &Options, tell: &mut dyn FnMut(&str)) -> Choice {
    accelerator::choose(options.wish, &options.kit, options.cache.as_ref(), || {
        tell("trying whether KVM works on this machine, once until it is started anew…");
        start_once(options)
    })
}

/// Starts a machine with KVM, and ends it when it has come up.
fn start_once(options: &Options) -> Result<(), String> {
    let spec = SandboxSpec {
        name: "sandbox".to_owned(),
        command: vec!["true".into()],
        env: Vec::new(),
        workdir: "/".into(),
        place: Place::default(),
        inside_uid: 1000,
        capabilities: Vec::new(),
        allow_userns: false,
        terminal: Terminal::Inherit,
        limits: ResourceLimits::default(),
        hosts: Vec::new(),
        resolv: Vec::new(),
        sockets: Vec::new(),
        network: None,
    };
    let options = Options { engine: options.engine.without_card(), ..options.clone() };
    let (mut monitor, outer) = monitored(Stays::No, spec, &options, None, (Accelerator::Kvm, PROBE_TIME));
    monitor.task = Task::Start;
    let running = launch_monitored(outer, &monitor, &mut |_| {});
    let running = running.map_err(|error| if let LaunchError::Guest(why) = error { why } else { error.to_string() })?;
    let status = running.run_to_end(&mut Nobody).status;
    if status == Status::Exited(0) { Ok(()) } else { Err(format!("it ended: {status:?}")) }
}

/// Hears of nothing.
struct Nobody;

impl Observer for Nobody {
    fn event(&mut self, _line: &[u8]) {}

    fn gateway_died(&mut self, _end: GatewayEnd, _why: &str) {}
}

/// Checks that a guest can be given what a specification asks for.
///
/// # Errors
/// What it cannot be given, by the name of the flag.
pub fn check(spec: &SandboxSpec, sharing: Option<&Sharing>) -> Result<(), LaunchError> {
    checked(spec, sharing).map(drop)
}

/// As [`check`], and finds out what the guest's root is.
fn checked(spec: &SandboxSpec, sharing: Option<&Sharing>) -> Result<Option<Root>, LaunchError> {
    let refused =
        |flag: &str, why: &str| Err(LaunchError::Spec(format!("{flag} cannot be used with --backend vm: {why}")));
    let root = match &spec.place.rootfs {
        None => None,
        Some(path) => match root_source(path, ROOT.into()) {
            Ok(source) => Some(Root { source, overlay: spec.limits.disk }),
            Err(why) => return refused("--rootfs", &format!("{}: {why}", path.display())),
        },
    };
    let memory = spec.limits.memory.unwrap_or(DEFAULT_MEMORY * MEBIBYTE);
    match (&root, spec.limits.disk) {
        (None, Some(_)) => {
            return refused("--disk", "without --rootfs the guest's root is its memory, as --memory says");
        }
        (Some(_), Some(disk)) if disk > memory => {
            let why = format!(
                "what a guest writes over its root is in its memory, of which it has {}M; give it more with --memory",
                mebibytes(memory)
            );
            return refused("--disk", &why);
        }
        (None | Some(_), None | Some(_)) => {}
    }
    if spec.limits.pids.is_some() {
        return refused("--pids", "the processes are the guest's own; --memory bounds them");
    }
    if !spec.capabilities.is_empty() {
        return refused("--cap-add", "a program in a guest is root of it with --user 0");
    }
    if spec.allow_userns {
        return refused("--allow-userns", "nothing keeps a program in a guest from making them");
    }
    if !spec.sockets.is_empty() {
        return refused("--host-socket", "no socket of the host leads into a guest");
    }
    if let Some(Mount { source, .. }) = spec.place.mounts.iter().find(|mount| !mount.source.is_dir()) {
        return refused("--mount", &format!("{} is no directory, and a guest is shown whole ones", source.display()));
    }
    if sharing == Some(&Sharing::Smb) && spec.network.is_none() {
        let why =
            "without a network the guest reaches no server; leave it out, and directories are shared by 9p".to_owned();
        return Err(LaunchError::Spec(format!("--mount-via smb cannot be used with --no-net: {why}")));
    }
    let shown = shown(&spec.place);
    for (number, inner) in shown.iter().enumerate() {
        // A share is whole: what is mounted over a part of it in the guest, root there takes away again.
        if let Some(outer) = shown.iter().take(number).find(|outer| inner.target.starts_with(&outer.target)) {
            let why = format!(
                "{} is in {}, of which root in a guest sees everything; mount it beside that, or use --no-cwd",
                inner.target.display(),
                outer.target.display()
            );
            return refused("--mount", &why);
        }
    }
    if spec.limits.memory.is_some_and(|bytes| mebibytes(bytes) < LEAST_MEMORY) {
        return refused("--memory", &format!("a guest needs {LEAST_MEMORY}M at least"));
    }
    Ok(root)
}

/// What a root on the host is, which QEMU sees at `shown`.
///
/// # Errors
/// Why it is none, in words.
pub fn root_source(path: &Path, shown: PathBuf) -> Result<RootSource, String> {
    // Opened once, and without waiting: what it is may change between two looks, and a FIFO has nobody at its other end.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| io::Error::from(error).to_string())?;
    let file = File::from(file);
    let about = file.metadata().map_err(|error| error.to_string())?;
    if about.is_dir() {
        return Ok(RootSource::Directory(shown));
    }
    if !about.is_file() {
        return Err("it is neither a directory nor an image of a disk".to_owned());
    }
    let mut head = Vec::new();
    file.take(image::HEAD as u64).read_to_end(&mut head).map_err(|error| error.to_string())?;
    let format = ImageFormat::parse(&head).map_err(|error| error.to_string())?;
    Ok(RootSource::Image(shown, format))
}

fn mebibytes(bytes: u64) -> u64 {
    bytes / MEBIBYTE
}

/// Takes a specification apart: what is for the guest goes to its monitor, and what is left is the sandbox that QEMU is in.
fn monitored(
    stays: Stays,
    spec: SandboxSpec,
    options: &Options,
    root: Option<Root>,
    (accelerator, boot_time): (Accelerator, Duration),
) -> (GuestMonitor, SandboxSpec) {
    if let Engine::Slirp(slirp) = &options.engine {
        return bare(spec, options, slirp, accelerator, boot_time);
    }
    let mut spec = spec;
    let shown = shown(&spec.place);
    let shares = shares(&shown);
    let files = files(stays, &mut spec, options, &shares);
    let program = virtiofsd(options).filter(|_| !shares.is_empty());
    let by_device = if files.is_some() || program.is_some() { Vec::new() } else { shares.clone() };
    let devices = shares.iter().filter(|_| program.is_some());
    let devices = devices.map(|share| SharedDevice { tag: share.tag.clone(), fd: 0 }).collect();
    let vm = Vm { root, devices, ..vm(&spec, &options.kit, accelerator, by_device) };
    let way = match (&files, program) {
        (Some(files), _) => Way::Served(files),
        (None, Some(_)) => Way::Virtiofs,
        (None, None) => Way::Plan9,
    };
    let monitor = GuestMonitor {
        qemu: options.kit.qemu.clone(),
        vm,
        token: Token::new(options.token),
        boot_time,
        network: spec.network.as_ref().map(|network| guest_network(&network.link, &spec.name)),
        mounts: guest_mounts(&spec, &shown, &shares, &way),
        served: files,
        devices: shares.iter().filter_map(|share| Some(program?.server(share, spec.inside_uid))).collect(),
        files: spec.etc_files(),
        task: match stays {
            Stays::No => Task::Run(exec(&spec)),
            Stays::Yes => Task::Stay,
        },
    };
    let mut mounts = vec![
        read_only(&options.kit.qemu, &options.kit.qemu),
        read_only(&options.kit.kernel, Path::new(KERNEL)),
        read_only(&options.kit.initrd, Path::new(INITRD)),
    ];
    mounts.extend(spec.place.rootfs.iter().map(|root| read_only(root, Path::new(ROOT))));
    mounts.extend(program.iter().map(|program| read_only(program.path(), program.path())));
    let places = shown.iter().enumerate();
    mounts.extend(places.map(|(number, mount)| Mount { target: share_path(number), ..mount.clone() }));
    let kvm = (accelerator == Accelerator::Kvm).then_some("kvm");
    let vhost = spec.network.is_some().then_some("vhost-net");
    let devices = kvm.into_iter().chain(vhost).collect();
    let place = Place { mounts, view: View::Qemu, devices, ..Place::default() };
    let mut limits = outer_limits(&spec.limits, accelerator);
    if program.is_some() {
        limits.memory = limits.memory.map(|bytes| bytes.saturating_add(virtiofsd::MEMORY));
    }
    let outer = SandboxSpec { env: Vec::new(), workdir: "/".into(), place, limits, ..spec };
    (monitor, outer)
}

/// The bounds of QEMU's sandbox. The guest's memory is bounded by QEMU; where there is a cgroup, QEMU is as well.
fn outer_limits(limits: &ResourceLimits, accelerator: Accelerator) -> ResourceLimits {
    let own = match accelerator {
        Accelerator::Kvm => QEMU_MEMORY,
        Accelerator::Tcg => QEMU_MEMORY + TRANSLATIONS,
    };
    ResourceLimits { memory: limits.memory.map(|bytes| bytes.saturating_add(own)), disk: None, ..limits.clone() }
}

/// The server of these directories, where the guest is to have them from one. Says in the specification where it is. A machine that
/// stays may come to have some.
fn files(stays: Stays, spec: &mut SandboxSpec, options: &Options, shares: &[Share]) -> Option<Files> {
    let grows = stays == Stays::Yes;
    let network = spec.network.as_mut().filter(|_| grows || !shares.is_empty())?;
    match options.sharing.as_ref().unwrap_or(&Sharing::Smb) {
        Sharing::Plan9 | Sharing::Virtiofs(_) => None,
        Sharing::Smb => {
            let address = network.link.link.files();
            network.link.files = Some(address);
            let password = Password::of_bits(options.password);
            Some(Files { address, password, owner: spec.inside_uid, shares: shares.to_vec(), grows })
        }
    }
}

/// The program that serves the guest's directories, where it is to have them by virtiofs.
fn virtiofsd(options: &Options) -> Option<&Virtiofsd> {
    match options.sharing.as_ref()? {
        Sharing::Virtiofs(program) => Some(program),
        Sharing::Smb | Sharing::Plan9 => None,
    }
}

/// The same where there are no namespaces: QEMU sees the host's files by their own paths, as far as it is let.
fn bare(
    mut spec: SandboxSpec,
    options: &Options,
    slirp: &Slirp,
    accelerator: Accelerator,
    boot_time: Duration,
) -> (GuestMonitor, SandboxSpec) {
    spec.resolv = slirp.resolvers();
    let Kit { qemu, kernel, initrd, .. } = &options.kit;
    let vm = Vm {
        kernel: kernel.clone(),
        initrd: initrd.clone(),
        network: slirp.card(),
        ..vm(&spec, &options.kit, accelerator, Vec::new())
    };
    let monitor = GuestMonitor {
        qemu: qemu.clone(),
        vm,
        token: Token::new(options.token),
        boot_time,
        network: slirp.guest_network(&spec.name),
        mounts: guest_mounts(&spec, &[], &[], &Way::Plan9),
        served: None,
        devices: Vec::new(),
        files: spec.etc_files(),
        task: Task::Run(exec(&spec)),
    };
    let mounts = [qemu, kernel, initrd].map(|file| read_only(file, file)).to_vec();
    let place = Place { mounts, view: View::Host(slirp.sockets()), ..Place::default() };
    let limits = outer_limits(&spec.limits, accelerator);
    let outer = SandboxSpec { env: Vec::new(), workdir: "/".into(), place, limits, ..spec };
    (monitor, outer)
}

fn vm(spec: &SandboxSpec, kit: &Kit, accelerator: Accelerator, shares: Vec<Share>) -> Vm {
    let network = spec.network.as_ref().map_or(Card::None, |network| Card::Tap {
        fd: 0,
        vhost: None,
        mac: network.link.guest_mac,
        mtu: network.link.mtu,
    });
    Vm {
        architecture: kit.architecture,
        accelerator,
        memory: spec.limits.memory.map_or(DEFAULT_MEMORY, mebibytes),
        cpus: cpus(spec.limits.cpus),
        kernel: KERNEL.into(),
        initrd: INITRD.into(),
        append: String::new(),
        agent: 0,
        control: 0,
        network,
        root: None,
        shares,
        devices: Vec::new(),
    }
}

/// The processors of a guest with this limit. Whole ones: a part of one is a limit on QEMU besides.
#[must_use]
pub fn cpus(limit: Option<f32>) -> NonZeroU32 {
    let here = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(MOST_CPUS));
    let wanted = match limit {
        // A number of processors that a host has is far below what is not exact any more.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the number is clamped before, and a float cannot be converted otherwise"
        )]
        Some(limit) => limit.ceil().clamp(1.0, 255.0) as u32,
        None => here.min(MOST_CPUS),
    };
    NonZeroU32::new(wanted).unwrap_or(NonZeroU32::MIN)
}

/// What the guest is shown: the project, and the mounts, outer ones first. Their places are the numbers of their shares.
#[must_use]
pub fn shown(place: &Place) -> Vec<Mount> {
    let project = place.project.iter().map(|project| Mount {
        source: project.clone(),
        target: project.clone(),
        read_only: false,
    });
    let mut mounts: Vec<Mount> = project.chain(place.mounts.iter().cloned()).collect();
    mounts.sort_by_key(|mount| mount.target.components().count());
    mounts
}

/// The same as shares, as QEMU's sandbox has them.
fn shares(shown: &[Mount]) -> Vec<Share> {
    let share = |(number, mount): (usize, &Mount)| Share {
        tag: format!("share{number}"),
        path: share_path(number),
        access: if mount.read_only { Access::Read } else { Access::Write },
    };
    shown.iter().enumerate().map(share).collect()
}

/// How a guest mounts its directories.
enum Way<'a> {
    Served(&'a Files),
    Plan9,
    Virtiofs,
}

fn guest_mounts(spec: &SandboxSpec, shown: &[Mount], shares: &[Share], way: &Way<'_>) -> Vec<GuestMount> {
    let home = GuestMount {
        kind: MountKind::Tmpfs,
        source: b"home".to_vec(),
        target: HOME.to_vec(),
        options: format!("mode=0755,uid={0},gid={0}", spec.inside_uid).into_bytes(),
        read_only: false,
    };
    let shares = (0..).zip(shown.iter().zip(shares)).map(|(number, (mount, share))| {
        let target = mount.target.as_os_str().as_bytes();
        match way {
            Way::Served(files) => files.mount(number, mount.read_only, target),
            Way::Plan9 => by_device(share, target, MountKind::Plan9, PLAN9),
            Way::Virtiofs => by_device(share, target, MountKind::Virtiofs, b""),
        }
    });
    std::iter::once(home).chain(shares).collect()
}

fn by_device(share: &Share, target: &[u8], kind: MountKind, options: &[u8]) -> GuestMount {
    GuestMount {
        kind,
        source: share.tag.clone().into_bytes(),
        target: target.to_vec(),
        options: options.to_vec(),
        read_only: share.access == Access::Read,
    }
}

fn share_path(number: usize) -> PathBuf {
    Path::new(SHARES).join(number.to_string())
}

fn read_only(source: &Path, target: &Path) -> Mount {
    Mount { source: source.to_owned(), target: target.to_owned(), read_only: true }
}

/// What the guest's interface is to have: the same as the end of a veth pair.
fn guest_network(link: &NetnsSpec, name: &str) -> Network {
    let mut network = Network {
        mac: link.guest_mac,
        mtu: link.mtu.into(),
        addresses: vec![(link.link.guest4.into(), link.link.prefix4)],
        routes: Vec::new(),
        neighbours: Vec::new(),
        resolv_conf: None,
        hosts: None,
        host_name: Some(name.as_bytes().to_vec()),
    };
    let mut gateways: Vec<IpAddr> = vec![link.link.gateway4.into()];
    if let Some(v6) = &link.link.v6 {
        network.addresses.push((v6.guest.into(), v6.prefix));
        gateways.push(v6.gateway.into());
    }
    network.routes = gateways.iter().map(|gateway| Route { gateway: *gateway }).collect();
    network.neighbours =
        gateways.iter().map(|address| Neighbour { address: *address, mac: link.gateway_mac }).collect();
    network
}

fn exec(spec: &SandboxSpec) -> Exec {
    let bytes = |text: &OsString| text.as_bytes().to_vec();
    let variable = |(name, value): &(OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
    let terminal = match spec.terminal {
        Terminal::Inherit => None,
        Terminal::Pty => Some(terminal_size().unwrap_or(Size { rows: 24, columns: 80 })),
    };
    Exec {
        argv: spec.command.iter().map(bytes).collect(),
        env: spec.env.iter().map(variable).collect(),
        cwd: spec.workdir.clone().into_os_string().into_vec(),
        uid: spec.inside_uid,
        gid: spec.inside_uid,
        terminal,
        leftover: Leftover::Kill,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_has_what_its_guest_has_and_an_allowance() {
        let limits = ResourceLimits { memory: Some(512 << 20), cpus: Some(0.5), ..ResourceLimits::default() };
        let outer = outer_limits(&limits, Accelerator::Kvm);
        assert_eq!((outer.memory, outer.cpus), (Some((512 + 256) << 20), Some(0.5)));
        assert_eq!(outer_limits(&limits, Accelerator::Tcg).memory, Some((512 + 256 + 1024) << 20));
        let most = ResourceLimits { memory: Some(u64::MAX), ..limits };
        assert_eq!(outer_limits(&most, Accelerator::Kvm).memory, Some(u64::MAX));
        assert_eq!(outer_limits(&ResourceLimits::default(), Accelerator::Tcg), ResourceLimits::default());
    }
}
