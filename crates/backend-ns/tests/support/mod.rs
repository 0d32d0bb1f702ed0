//! What the tests of this crate share: a supervisor that launches one sandbox as its arguments say, and users to run it as.
//!
//! A sandbox wants a supervisor with one thread, which a test harness is not. So the test programs have no harness, and
//! start themselves again as supervisors.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_backend_ns::{
    Attachment, CaptureFile, GatewayEnd, Handles, LaunchError, Mount, NetworkSpec, Observer, Order, Outcome, Place,
    ResourceLimits, Running, SandboxSpec, Status, Terminal, launch, launch_empty, launch_inside,
};
use cofferdam_gateway::{Commands, GatewayConfig, LinkAddresses, NetnsSpec, SocketDoor};
use cofferdam_model::{
    Classifier, DenyWith, DnsConfig, HostNetwork, InterfaceConfig, LimitsConfig, NetworkConfig, PolicyConfig,
    RateLimits,
};
use cofferdam_policy::Policy;
use cofferdam_sys::ns::{self, Fork};
use cofferdam_sys::{fdpass, process};
use rustix::process::{WaitId, WaitIdOptions};

/// The user the tests run sandboxes as besides root.
pub(crate) const PLAIN_USER: u32 = 1500;

/// The first argument of a test program that is to be a supervisor.
pub(crate) const SUPERVISE: &str = "--supervise";

/// The first argument of a supervisor that is to run its program in a sandbox that stays.
pub(crate) const INSIDE: &str = "--inside";

/// What precedes a notice of the outcome.
const NOTICE: &str = "notice: ";
pub(crate) const GATEWAY_DIED: &str = "died: ";

/// Who a supervisor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    Plain,
}

impl User {
    /// Those that this process can run a supervisor as.
    pub(crate) fn available() -> &'static [User] {
        if rustix::process::getuid().is_root() { &[User::Root, User::Plain] } else { &[User::Plain] }
    }

    /// The user id on the host.
    pub(crate) fn uid(self) -> u32 {
        match self {
            User::Root => 0,
            User::Plain if rustix::process::getuid().is_root() => PLAIN_USER,
            User::Plain => rustix::process::getuid().as_raw(),
        }
    }
}

/// A directory with a copy of this program, and one for each user.
#[derive(Debug)]
pub(crate) struct Bench {
    root: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let root = tempfile::Builder::new().prefix("cofferdam-test-").tempdir().unwrap();
        open_to_all(root.path());
        let program = root.path().join("program");
        // A copy, since the build directory may be closed to the plain user.
        std::fs::copy("/proc/self/exe", program).unwrap();
        Self { root }
    }

    /// A fresh directory that belongs to `user`.
    pub(crate) fn directory(&self, user: User, name: &str) -> PathBuf {
        let path = self.root.path().join(format!("{user:?}-{}", name.replace(' ', "-")));
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(user.uid()), Some(user.uid())).ok();
        path
    }

    /// A supervisor in `directory`; options and the program of the sandbox are its arguments.
    pub(crate) fn supervisor(&self, user: User, directory: &Path) -> Command {
        let mut command = Command::new(self.root.path().join("program"));
        command.arg(SUPERVISE).current_dir(directory).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin");
        if user.uid() != rustix::process::getuid().as_raw() {
            command.uid(user.uid()).gid(user.uid());
        }
        command
    }
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// Is the supervisor, if that is what this process was started as; otherwise prepares this process for starting some.
pub(crate) fn supervise_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == SUPERVISE) {
        std::process::exit(supervise(arguments.collect()));
    }
    // A shell that starts the tests in the background has its jobs ignore interrupts, and what is ignored stays ignored for
    // every program below: what signals do here is for the tests to say. SIGPIPE is as it is in every Rust program.
    cofferdam_sys::process::reset_signals(&[rustix::process::Signal::PIPE]).unwrap();
}

fn supervise(arguments: Vec<OsString>) -> i32 {
    let mut events = false;
    let inside = arguments.first().is_some_and(|first| first == INSIDE);
    let spec = parse(arguments.into_iter().skip(usize::from(inside)).collect(), &mut events);
    if inside { run_inside(spec, events) } else { conclude(launch(spec), events) }
}

fn conclude(launched: Result<Running, LaunchError>, events: bool) -> i32 {
    match launched {
        Ok(running) => report(&running.run_to_end(&mut Printer { events })),
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            eprintln!("error: {error}: {source}");
            error.exit_status()
        }
    }
}

/// Has a child of this process keep a sandbox, and runs the program inside that. A network is the run's own, and the sandbox
/// has one too.
fn run_inside(spec: SandboxSpec, events: bool) -> i32 {
    let (own, other) = fdpass::pair().unwrap();
    let keeper = match ns::fork().unwrap() {
        Fork::Child => process::run_and_exit(|| {
            process::die_with_parent().unwrap();
            drop(own);
            u8::try_from(keep(spec, other)).unwrap()
        }),
        Fork::Parent(keeper) => keeper,
    };
    drop(other);
    let mut identity = [0; 4];
    let (len, fds) = fdpass::recv_fds(&own, &mut identity).unwrap();
    let status = if len == 0 {
        let wait = || rustix::process::waitid(WaitId::PidFd(keeper.pidfd.as_fd()), WaitIdOptions::EXITED);
        return rustix::io::retry_on_intr(wait).unwrap().unwrap().exit_status().unwrap();
    } else {
        let identity = Some(u32::from_ne_bytes(identity)).filter(|id| *id != 0);
        let handles = Handles::from_parts(fds, identity, None).unwrap();
        let attachment = if spec.network.is_some() { Attachment::Own } else { Attachment::Session };
        conclude(launch_inside(spec, handles, attachment, None), events)
    };
    drop(own);
    let wait = || rustix::process::waitid(WaitId::PidFd(keeper.pidfd.as_fd()), WaitIdOptions::EXITED);
    rustix::io::retry_on_intr(wait).unwrap();
    status
}

/// The keeper: makes the sandbox, hands it over, and holds it until the other end is closed.
fn keep(spec: SandboxSpec, other: OwnedFd) -> i32 {
    let kept = match launch_empty(spec) {
        Ok(kept) => kept,
        Err(error) => return conclude(Err(error), false),
    };
    for notice in kept.notices() {
        eprintln!("{NOTICE}{notice}");
    }
    let handles = kept.handles().unwrap();
    let identity = handles.identity().unwrap_or(0).to_ne_bytes();
    fdpass::send_fds(&other, &identity, &handles.fds()).unwrap();
    kept.run_to_end(&mut Until { end: other });
    0
}

/// Keeps a sandbox until a socket is closed.
struct Until {
    end: OwnedFd,
}

impl Observer for Until {
    fn event(&mut self, _line: &[u8]) {}

    fn gateway_died(&mut self, _end: GatewayEnd, _why: &str) {}

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.end.as_fd()]
    }

    fn handle(&mut self, _ready: &[bool], _commands: Option<&mut Commands>) -> Vec<Order> {
        vec![Order::End]
    }
}

/// Writes down what it is told.
struct Printer {
    events: bool,
}

impl Observer for Printer {
    fn event(&mut self, line: &[u8]) {
        if self.events {
            eprintln!("event: {}", String::from_utf8_lossy(line));
        }
    }

    fn gateway_died(&mut self, end: GatewayEnd, why: &str) {
        eprintln!("{GATEWAY_DIED}{end:?} {why}");
    }
}

fn report(outcome: &Outcome) -> i32 {
    for notice in &outcome.notices {
        eprintln!("{NOTICE}{notice}");
    }
    eprintln!("gateway: {:?}", outcome.gateway);
    match outcome.status {
        Status::Exited(status) => status,
        Status::Signaled(signal) => 128 + signal,
        Status::TimedOut => 124,
        Status::Lost | Status::GuestLost => 123,
    }
}

/// `OPTION…  -- COMMAND…`
fn parse(arguments: Vec<OsString>, events: &mut bool) -> SandboxSpec {
    let here = std::env::current_dir().unwrap();
    let mut spec = SandboxSpec {
        name: "sandbox".to_owned(),
        command: Vec::new(),
        env: vec![("PATH".into(), std::env::var_os("PATH").unwrap()), ("LANG".into(), "C.UTF-8".into())],
        workdir: here.clone(),
        place: Place { project: Some(here), ..Place::default() },
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
    let mut arguments = arguments.into_iter();
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().unwrap().into_string().unwrap();
        match option.to_str().unwrap() {
            "--" => break,
            "--cap" => {
                spec.capabilities.push(value().parse().unwrap());
                spec.inside_uid = 0;
            }
            "--userns" => spec.allow_userns = true,
            "--pty" => spec.terminal = Terminal::Pty,
            "--events" => *events = true,
            "--timeout-ms" => spec.limits.timeout = Some(Duration::from_millis(value().parse().unwrap())),
            "--pids" => spec.limits.pids = Some(value().parse().unwrap()),
            "--memory" => spec.limits.memory = Some(value().parse().unwrap()),
            "--mount" => {
                let text = value();
                let mut parts = text.split(':').map(str::to_owned);
                // As whoever launches looks at it before. What is not there is the launch's to refuse.
                let source: PathBuf = parts.next().unwrap().into();
                let source = source.canonicalize().unwrap_or(source);
                let target = parts.next().unwrap().into();
                spec.place.mounts.push(Mount { source, target, read_only: parts.next().is_some() });
            }
            "--rootfs" => spec.place.rootfs = Some(value().into()),
            "--no-cwd" => {
                spec.place.project = None;
                spec.workdir = "/home/user".into();
            }
            "--workdir" => spec.workdir = value().into(),
            "--env" => {
                let text = value();
                let (name, value) = text.split_once('=').unwrap();
                spec.env.push((name.into(), value.into()));
            }
            "--network" => spec.network = Some(network()),
            // A broker stays where something may be published while it runs.
            "--ports" => spec.network = Some(NetworkSpec { broker: true, ..network() }),
            // Into a file of this name.
            "--pcap" => {
                let path = PathBuf::from(value());
                let file = std::fs::File::create(&path).unwrap();
                spec.network.get_or_insert_with(network).capture = Some(Arc::new(CaptureFile { path, file }));
            }
            // A socket of the host's, which this process listens on, and its place inside.
            "--socket" => {
                let text = value();
                let (host, guest) = text.split_once(':').unwrap();
                let host = std::path::absolute(host).unwrap();
                // For as long as this process lives.
                std::mem::forget(std::os::unix::net::UnixListener::bind(&host).unwrap());
                let door = SocketDoor::open(&host.canonicalize().unwrap()).unwrap();
                spec.sockets.push(guest.into());
                spec.network.get_or_insert_with(network).sockets.push(Arc::new(door));
            }
            other => panic!("unknown option {other}"),
        }
    }
    spec.command = arguments.collect();
    spec
}

/// A network on which everything is denied.
fn network() -> NetworkSpec {
    let link = LinkAddresses {
        guest4: "172.16.99.2".parse().unwrap(),
        gateway4: "172.16.99.1".parse().unwrap(),
        prefix4: 30,
        v6: None,
    };
    let network = NetworkConfig {
        enabled: true,
        ceilings: Vec::new(),
        policy: PolicyConfig::default(),
        deny_with: DenyWith::Reset,
        dns: DnsConfig {
            nameservers: Vec::new(),
            query_timeout: Duration::from_secs(5),
            pin_floor: Duration::from_secs(60),
            rebind_protection: true,
            deny_doh: None,
        },
        interface: InterfaceConfig {
            mtu: 1500,
            ipv4_pool: "172.16.0.0/12".parse().unwrap(),
            ipv6_pool: "fd42:6d73:62::/48".parse().unwrap(),
            ipv6: Some(false),
            ipv4_address: None,
            ipv6_address: None,
        },
        limits: LimitsConfig {
            max_connections: 16,
            max_udp_connections: 16,
            max_inbound_connections: 16,
            connect_timeout: Duration::from_secs(5),
            rates: RateLimits::default(),
            budgets: Vec::new(),
        },
        ports: Vec::new(),
        host_sockets: Vec::new(),
    };
    let policy = Arc::new(Policy::compile(&network.policy, Classifier::new(HostNetwork::default())));
    let spec = NetnsSpec {
        link: link.clone(),
        mtu: 1500,
        guest_mac: [2, 0, 0, 0, 0, 2],
        gateway_mac: [2, 0, 0, 0, 0, 1],
        files: None,
    };
    let gateway = GatewayConfig { network, policy, link, resolvers: Vec::new(), anchors: Vec::new(), seed: [7; 32] };
    NetworkSpec {
        gateway,
        link: spec,
        live: true,
        broker: false,
        ports: Vec::new(),
        sockets: Vec::new(),
        capture: None,
        resolvers: None,
    }
}

/// The processes whose parent is `parent`, as this process's `/proc` shows them.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    processes().into_iter().filter(|pid| status_field(*pid, "PPid:") == Some(parent)).collect()
}

/// The processes below `parent`, those that its descendants started included.
#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) fn descendants(parent: u32) -> Vec<u32> {
    let mut all = children(parent);
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        all.extend(children(pid));
        next += 1;
    }
    all
}

/// All processes in sight.
pub(crate) fn processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn status_field(pid: u32, name: &str) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

/// The short name of a process.
pub(crate) fn name(pid: u32) -> io::Result<String> {
    Ok(std::fs::read_to_string(format!("/proc/{pid}/comm"))?.trim().to_owned())
}
