//! What a caller says about a sandbox, and what it learns from one.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_gateway::{GatewayConfig, NetnsSpec, PortSocket, SocketDoor};
use cofferdam_sys::confine::Capability;

use crate::capture::CaptureFile;
use crate::etc;

/// Everything one sandbox is made from.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Host name inside.
    pub name: String,
    /// The program and its arguments; the program is looked up on the `PATH` of [`env`](Self::env), inside.
    pub command: Vec<OsString>,
    /// The whole environment of the program: nothing is added to it.
    pub env: Vec<(OsString, OsString)>,
    /// Where the program starts, as a path inside.
    pub workdir: PathBuf,
    pub place: Place,
    /// User and group id inside: 1000 by default, 0 with capabilities.
    pub inside_uid: u32,
    /// What the program may do in its own namespaces; empty by default.
    pub capabilities: Vec<Capability>,
    /// Lets the program make user namespaces of its own (nested sandboxes, browsers).
    pub allow_userns: bool,
    pub terminal: Terminal,
    pub limits: ResourceLimits,
    /// The lines of `/etc/hosts` besides localhost.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// The name servers in `/etc/resolv.conf`.
    pub resolv: Vec<IpAddr>,
    /// Absolute paths inside at which programs find sockets of the host, in the order of [`NetworkSpec::sockets`]. In a run in a
    /// sandbox that is there they are there already, and are hidden from a run with a network of its own.
    pub sockets: Vec<PathBuf>,
    /// `None`: no interface but its own loopback.
    pub network: Option<NetworkSpec>,
}

impl SandboxSpec {
    /// The files in `/etc` that are a sandbox's own, by name: who is there, and how names are looked up.
    #[must_use]
    pub fn etc_files(&self) -> Vec<(&'static str, String)> {
        etc::written(self)
    }
}

/// The network of a sandbox that has one.
#[derive(Debug, Clone)]
pub struct NetworkSpec {
    pub gateway: GatewayConfig,
    pub link: NetnsSpec,
    /// Whether something may be changed while it runs; see [`Running::commands`](crate::Running::commands).
    pub live: bool,
    /// Whether ports may be published while it runs.
    pub broker: bool,
    /// Ports that lead into the sandbox, bound already.
    pub ports: Vec<Arc<PortSocket>>,
    /// Sockets of the host that programs may connect to.
    pub sockets: Vec<Arc<SocketDoor>>,
    /// Where the packets of its link go, if somebody wants them.
    pub capture: Option<Arc<CaptureFile>>,
    /// The file that names the resolvers, where they are the machine's and so to be followed.
    pub resolvers: Option<ResolverFile>,
}

impl NetworkSpec {
    /// Whether a process has to stay in the gateway's namespace, to make sockets towards the guest.
    pub(crate) fn needs_broker(&self) -> bool {
        self.broker || !self.ports.is_empty()
    }
}

/// A file that names resolvers.
#[derive(Debug, Clone)]
pub struct ResolverFile {
    pub path: PathBuf,
    /// What it says; nothing when it cannot be read.
    pub read: fn(&Path) -> Vec<SocketAddr>,
}

/// Which files of the host a sandbox sees. Their paths have no symbolic links in them ([`resolve`](crate::resolve())): one that is there
/// when the sandbox starts was put there since, and is refused.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// A directory that is writable inside, at the same path. See [`check_project`](crate::check_project).
    pub project: Option<PathBuf>,
    /// More files and directories of the host.
    pub mounts: Vec<Mount>,
    /// A directory whose content stands in for the host's `/usr`, `/etc` and so on; for a virtual machine also the image of a disk.
    pub rootfs: Option<PathBuf>,
    pub view: View,
    /// Names in `/dev` of device files that are shown besides those that give nothing of the machine away; where they are.
    pub devices: Vec<&'static str>,
}

/// What of the host's system is in sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    /// Its programs and libraries, and what of `/etc` and `/proc` says nothing about the host.
    #[default]
    System,
    /// Libraries, and the files that come with QEMU: no program, and no `/etc`.
    Qemu,
    /// No namespaces, and no view of its own: what QEMU has is the host's, as far as Landlock leaves it that. For hosts
    /// without user namespaces, by [`launch_monitored`](crate::launch_monitored) alone; of the place the sources of the
    /// mounts count, which it may read.
    Host(Sockets),
}

/// Which sockets QEMU may make where it is in no namespace. None of them is a Unix socket, but for connected pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sockets {
    /// None of a network.
    None,
    /// TCP that listens; it may not connect, and has no datagrams.
    Listening,
    /// Whatever the host has a network for.
    Any,
}

/// One file or directory of the host, shown inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Path on the host.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: PathBuf,
    pub read_only: bool,
}

/// What standard input, output and error are inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Terminal {
    /// Those of the supervisor. The program has a session of its own, so it cannot push input into a terminal there.
    #[default]
    Inherit,
    /// A terminal of its own, relayed to the supervisor's standard input and output.
    Pty,
}

/// Bounds on what the program may use up; `None` is unlimited.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResourceLimits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processors, as a number of whole ones: 0.5 is half of one.
    pub cpus: Option<f32>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Bytes that a virtual machine may write over its root.
    pub disk: Option<u64>,
    /// Wall-clock time of the whole run.
    pub timeout: Option<Duration>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub status: Status,
    pub gateway: GatewayFate,
    /// Whether what a virtual machine may write over its root was full while the program ran.
    pub disk_full: Option<DiskFull>,
    /// What a user should be told: limits that could not be enforced, mounts that could not be made writable.
    pub notices: Vec<String>,
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It exited with this status, 0..=255.
    Exited(i32),
    /// It was killed by this signal.
    Signaled(i32),
    /// Its time was up, and it was ended.
    TimedOut,
    /// The sandbox's own pid 1 was killed from outside, and the program with it.
    Lost,
    /// The virtual machine that it ran in ended before it did. The last of the notices says why.
    GuestLost,
}

/// What a virtual machine's full disk had nothing left of, and how much it has of that in all: the guest's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFull {
    Space { bytes: u64 },
    Files { count: u64 },
}

/// What became of the gateway process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatewayFate {
    /// There was none, or it served until the program had ended.
    Fine,
    /// It ended before the program did; from then on the sandbox had no network.
    Died(GatewayEnd),
}

/// How a gateway process ended that should not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatewayEnd {
    Exited(i32),
    Signaled(i32),
}
