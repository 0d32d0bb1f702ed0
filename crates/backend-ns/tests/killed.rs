//! Whatever is killed, and whenever, nothing is left: no process, namespace, mount, interface or file.
//!
//! Each round runs a program in a sandbox with a network, a fresh one or one that stays, kills one of its processes with SIGKILL at a random moment of its start, run
//! or end, and looks at what is left. All of it happens in a pid namespace of the test's own, where every process in sight is one
//! of ours; a namespace without a process and without a descriptor is gone, and takes its links and mounts along.
//!
//! `COFFERDAM_KILLS` gives another number of rounds, `COFFERDAM_SEED` repeats a run.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test without harness, which clippy does not know as one"
)]

mod support;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cofferdam_sys::mount::{self, Attributes};
use cofferdam_sys::ns::{self, Fork, IdMap, Namespaces, ParentOf, Setgroups};
use cofferdam_sys::{fdpass, process};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};
use support::{Bench, User};

const ROUNDS: u32 = 200;

/// Where files are left; fresh ones, in which nobody else leaves any.
const TEMPORARY: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/run"];

/// How long the rest of a sandbox may take to be gone, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    support::supervise_if_asked();
    let seed = std::env::var("COFFERDAM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        u64::from(std::process::id()) ^ u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos())
    });
    let rounds = std::env::var("COFFERDAM_KILLS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    println!("COFFERDAM_SEED={seed}");
    if !User::available().contains(&User::Root) {
        println!("SKIP: as root: this is not root");
    }
    let (own, other) = fdpass::pair().unwrap();
    let namespaces = match rustix::process::getuid().is_root() {
        true => Namespaces::PID | Namespaces::MOUNT | Namespaces::NET,
        false => Namespaces::USER | Namespaces::PID | Namespaces::MOUNT | Namespaces::NET,
    };
    match ns::fork_into(namespaces, ParentOf::Caller).unwrap() {
        Fork::Child => process::run_and_exit(|| {
            fdpass::recv_fds(&other, &mut [0; 1]).unwrap();
            mount::make_all_private().unwrap();
            for (kind, path) in std::iter::once(("proc", "/proc")).chain(TEMPORARY.map(|path| ("tmpfs", path))) {
                let tree = mount::new_filesystem(kind, &[], Attributes::default()).unwrap();
                mount::attach(tree.as_fd(), mount::Place { root: rustix::fs::CWD, path: Path::new(path) }).unwrap();
            }
            drop(other);
            let bench = Bench::new();
            u8::from(!run(&bench, rounds, seed))
        }),
        Fork::Parent(child) => {
            if !rustix::process::getuid().is_root() {
                let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
                let maps = (IdMap::single(uid, uid), IdMap::single(gid, gid));
                ns::write_id_maps(Some(child.pid), &[maps.0], &[maps.1], Setgroups::Deny).unwrap();
            }
            fdpass::send_fds(&own, b"g", &[]).unwrap();
            let end = rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
            if end.unwrap().unwrap().exit_status() == Some(0) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

/// A small generator of numbers, xorshift64*: good enough to choose moments.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

fn run(bench: &Bench, rounds: u32, seed: u64) -> bool {
    let mut random = Random(seed | 1);
    let before = Footprint::take();
    let mut killed: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0..rounds {
        let user = User::available()[usize::try_from(random.below(User::available().len() as u64)).unwrap()];
        let directory = bench.directory(user, &round.to_string());
        let victim = kill_something(bench, user, &directory, &mut random);
        *killed.entry(victim.clone()).or_default() += 1;
        if let Err(left) = wait_until_gone(&before) {
            println!("round {round} ({user:?}, {victim} killed): left behind: {left}");
            return false;
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
    println!("killed: {killed:?}");
    // A run that always hits the same one shows little.
    rounds < ROUNDS || killed.len() >= 5
}

/// Starts a sandbox, kills one of its processes after a while, and makes an end. Says which one it was.
fn kill_something(bench: &Bench, user: User, directory: &Path, random: &mut Random) -> String {
    // Some end by themselves around the time of the kill, some would go on for ever.
    let script = match random.below(3) {
        0 => "exit 0",
        1 => "(setsid sleep 9000 &) ; sleep 0.03",
        _ => "sleep 9000 & sleep 9000",
    };
    let mut supervisor = bench.supervisor(user, directory);
    let network: &[&str] = match random.below(4) {
        0 => &["--network"],
        1 => &["--ports"],
        2 => &["--pcap", "p"],
        _ => &["--ports", "--socket", "s:/run/s", "--pcap", "p"],
    };
    // Half of them in a sandbox that stays, whose keeper is one more to kill.
    supervisor.args((random.below(2) == 0).then_some(support::INSIDE));
    supervisor.args(network).args(["--", "sh", "-c", script]);
    let mut supervisor = supervisor.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_micros(random.below(120_000)));
    let processes = std::iter::once(supervisor.id()).chain(support::descendants(supervisor.id())).collect::<Vec<_>>();
    let victim = processes[usize::try_from(random.below(processes.len() as u64)).unwrap()];
    let role = role(victim, supervisor.id());
    // One that has ended meanwhile and was waited for is no longer there to be killed.
    let _ended = kill(victim);
    if victim == supervisor.id() {
        supervisor.wait().unwrap();
    } else {
        end(&mut supervisor, random);
    }
    role
}

/// The supervisor ends by itself soon, or goes on without a gateway; then it is asked to end, or killed too.
fn end(supervisor: &mut Child, random: &mut Random) {
    let patience = Instant::now() + Duration::from_millis(150);
    while Instant::now() < patience {
        if supervisor.try_wait().unwrap().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    if random.below(2) == 0 {
        let pid = Pid::from_child(supervisor);
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
    } else {
        supervisor.kill().unwrap();
    }
    let status = supervisor.wait().unwrap();
    assert!(status.code().is_some() || matches!(status.signal(), Some(9 | 15)), "{status:?}");
}

fn role(pid: u32, supervisor: u32) -> String {
    if pid == supervisor {
        return "supervisor".to_owned();
    }
    let name = support::name(pid).unwrap_or_default();
    if name.starts_with("cofferdam-init") {
        return "init".to_owned();
    }
    if name == "cofferdam-ports" {
        return "broker".to_owned();
    }
    if name == "cofferdam-dial" {
        return "dialer".to_owned();
    }
    if name == "cofferdam-pcap" {
        return "capture".to_owned();
    }
    // The others have the name of the program: the gateway has a seccomp filter once it is confined, and before it is
    // as good as the builder.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    if status.contains("Seccomp:\t2") { "gateway" } else { "builder or other" }.to_owned()
}

fn kill(pid: u32) -> rustix::io::Result<()> {
    rustix::process::kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL)
}

/// What this namespace holds besides this process.
#[derive(Debug, PartialEq, Eq)]
struct Footprint {
    processes: Vec<String>,
    mounts: String,
    interfaces: String,
    temporary: Vec<String>,
}

impl Footprint {
    fn take() -> Self {
        let me = std::process::id();
        let processes = support::processes().into_iter().filter(|pid| *pid != me);
        let processes = processes.map(|pid| format!("{pid} {}", support::name(pid).unwrap_or_default())).collect();
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let entries = TEMPORARY.iter().flat_map(|path| std::fs::read_dir(path).unwrap());
        let mut temporary: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        temporary.sort_unstable();
        let interfaces =
            read("/proc/self/net/dev").lines().filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect();
        Self { processes, mounts: read("/proc/self/mountinfo"), interfaces, temporary }
    }
}

/// Reaps what became ours and looks until everything is as before.
fn wait_until_gone(before: &Footprint) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        let after = Footprint::take();
        if after == *before {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{after:?}\nbefore: {before:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
