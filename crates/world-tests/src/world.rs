use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::{Marked, Ran, Sandbox};

/// What `world/up.sh` and its neighbours need beside them; in the binary, so that a test can be run from anywhere.
const FILES: [(&str, &str); 33] = [
    ("up.sh", include_str!("../world/up.sh")),
    ("enter.sh", include_str!("../world/enter.sh")),
    ("as_guest.sh", include_str!("../world/as_guest.sh")),
    ("dnsmasq.conf", include_str!("../world/dnsmasq.conf")),
    ("nginx.conf", include_str!("../world/nginx.conf")),
    ("sshd.conf", include_str!("../world/sshd.conf")),
    ("knot.conf", include_str!("../world/knot.conf")),
    ("unbound.conf", include_str!("../world/unbound.conf")),
    ("named.conf", include_str!("../world/named.conf")),
    ("stub.conf", include_str!("../world/stub.conf")),
    ("postgres.sh", include_str!("../world/postgres.sh")),
    ("names-test.com.zone", include_str!("../world/names-test.com.zone")),
    ("signed-test.com.zone", include_str!("../world/signed-test.com.zone")),
    ("names.py", include_str!("../world/names.py")),
    ("dnsload.c", include_str!("../world/dnsload.c")),
    ("lookup.c", include_str!("../world/lookup.c")),
    ("lookup.go", include_str!("../world/lookup.go")),
    ("otlp.py", include_str!("../world/otlp.py")),
    ("make_npm.py", include_str!("../world/make_npm.py")),
    ("make_wheel.py", include_str!("../world/make_wheel.py")),
    ("manners.py", include_str!("../world/manners.py")),
    ("flood.py", include_str!("../world/flood.py")),
    ("pcap.py", include_str!("../world/pcap.py")),
    ("without.py", include_str!("../world/without.py")),
    ("capture.py", include_str!("../world/capture.py")),
    ("flights.py", include_str!("../world/flights.py")),
    ("sockets.py", include_str!("../world/sockets.py")),
    ("ports.py", include_str!("../world/ports.py")),
    ("events.py", include_str!("../world/events.py")),
    ("top.py", include_str!("../world/top.py")),
    ("browser.py", include_str!("../world/browser.py")),
    ("host_sockets.py", include_str!("../world/host_sockets.py")),
    ("conformance.py", include_str!("../world/conformance.py")),
];

/// What every script on the host begins with.
const PRELUDE: &str = r#"
set -eu
export XDG_STATE_HOME=$(mktemp -d)
servers=
serve() { "$WORLD/files/as_guest.sh" "$@" </dev/null >>log 2>&1 & servers="$servers $!"; }
trap 'kill $servers 2>/dev/null || true; $C ls --quiet | xargs -r $C rm --force >/dev/null 2>&1 || true; rm -rf "$XDG_STATE_HOME"' EXIT
# Waits until a condition holds; there is no event to wait for where another process has to end.
until_() { n=0; until "$@"; do n=$((n + 1)); [ $n -lt 500 ] || { echo "never: $*" >&2; exit 97; }; sleep 0.02; done; }
state() { $C inspect --json "$1" | sed -n 's/^  "state": "\(.*\)".*/\1/p'; }
number() { $C inspect --json "$1" | sed -n 's/^  "'"$2"'": \([0-9]*\).*/\1/p'; }
is() { [ "$(state "$1")" = "$2" ]; }
"#;

/// The two namespaces and the servers in them, for as long as this lives.
#[derive(Debug)]
pub struct World {
    folder: PathBuf,
    cofferdam: PathBuf,
    /// Process 1 of the world, as this process sees it; in the host's network namespace.
    host: u32,
    /// A process in the world's network namespace.
    outside: u32,
    has_root: bool,
    sandboxes: AtomicU32,
    /// Its standard input is a pipe of ours: the world ends when it closes, and so when we do.
    keeper: Child,
}

/// Whether the tests that take long take long.
#[must_use]
pub fn long() -> bool {
    is_set("COFFERDAM_TEST_LONG")
}

impl World {
    /// The world of this test binary, made by whoever asks first.
    ///
    /// # Panics
    ///
    /// As [`World::start`] does.
    #[must_use]
    pub fn shared() -> &'static World {
        static WORLD: OnceLock<World> = OnceLock::new();
        WORLD.get_or_init(World::start)
    }

    /// The world of this test binary with the further resolvers, made by whoever asks first. A binary has one or the other.
    ///
    /// # Panics
    ///
    /// As [`World::start`] does.
    #[must_use]
    pub fn with_resolvers() -> &'static World {
        static WORLD: OnceLock<World> = OnceLock::new();
        WORLD.get_or_init(|| World::start_with(&["WORLD_RESOLVERS"]))
    }

    /// The world of this test binary with every server there is, made by whoever asks first: it takes seconds. A binary
    /// has one of the three.
    ///
    /// # Panics
    ///
    /// As [`World::start`] does.
    #[must_use]
    pub fn with_everything() -> &'static World {
        static WORLD: OnceLock<World> = OnceLock::new();
        WORLD.get_or_init(|| World::start_with(&["WORLD_RESOLVERS", "WORLD_EVERYTHING"]))
    }

    /// The world of this test binary, on whose host virtual machines can be started; made by whoever asks first. What they start
    /// from has the kernel in the Debian package `COFFERDAM_TEST_KERNEL`, or one that `vm setup` fetches.
    ///
    /// # Panics
    ///
    /// As [`World::start`] does, and when `vm setup` fails.
    #[must_use]
    pub fn with_guests() -> &'static World {
        static WORLD: OnceLock<World> = OnceLock::new();
        WORLD.get_or_init(|| {
            let world = World::start();
            world.set_up_guests("home/.local/state", env::var_os("COFFERDAM_TEST_KERNEL"));
            world
        })
    }

    /// What [`World::with_guests`] has made for virtual machines to start from.
    #[must_use]
    pub fn guest_parts(&self) -> PathBuf {
        self.folder.join("home/.local/state/cofferdam/vm")
    }

    /// Makes what virtual machines start from, in a state directory in the world's folder, with the kernel in this Debian package.
    ///
    /// # Panics
    ///
    /// When `vm setup` fails.
    pub fn set_up_guests(&self, state: &str, kernel: Option<OsString>) {
        let mut setup = Command::new(&self.cofferdam);
        setup.args(["vm", "setup"]).env("XDG_STATE_HOME", self.folder.join(state));
        if let Some(package) = kernel.filter(|package| !package.is_empty()) {
            setup.arg("--from-deb").arg(package);
        }
        let done = setup.output().expect("the program under test can be executed");
        assert!(done.status.success(), "vm setup: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// A world whose host has this family alone.
    ///
    /// # Panics
    ///
    /// As [`World::start`] does.
    #[must_use]
    pub fn with_only(family: Family) -> World {
        World::start_with(match family {
            Family::V4 => &["WORLD_NO_IPV6"],
            Family::V6 => &["WORLD_NO_IPV4"],
        })
    }

    /// Makes a world.
    ///
    /// # Panics
    ///
    /// When the program under test has not been built, or the world cannot be made: the message says where it got stuck.
    #[must_use]
    pub fn start() -> World {
        World::start_with(&[])
    }

    /// With these of `up.sh`'s variables set.
    fn start_with(more: &[&str]) -> World {
        let cofferdam = program_under_test();
        assert!(
            cofferdam.is_file() || is_set("COFFERDAM_TEST_DIRECT"),
            "there is no {}: build it with `cargo build --release`, or name it in COFFERDAM_BIN",
            cofferdam.display()
        );
        let folder = private_folder();
        for (name, content) in FILES {
            let path = folder.join("files").join(name);
            fs::write(&path, content).expect("the world's folder is writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
        }
        let has_root = is_root();
        let mut up = Command::new("unshare");
        if !has_root {
            up.args(["--user", "--map-root-user"]);
        }
        up.args(["--net", "--mount", "--pid", "--fork", "--mount-proc"]);
        up.arg(folder.join("files/up.sh")).arg(&folder);
        up.env("WORLD_HAS_ROOT", if has_root { "1" } else { "0" });
        up.envs(more.iter().map(|variable| (variable, "1")));
        up.env("WORLD_BIG_FILE_BYTES", big_file_bytes().to_string());
        up.env("WORLD_KEEP", if is_set("COFFERDAM_TEST_KEEP") { "1" } else { "0" });
        let mut keeper = up.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("`unshare` is installed");
        let mut line = String::new();
        let out = keeper.stdout.take().expect("the keeper has a pipe for its output");
        // The script looks for its servers with a limit of its own, and its end ends the line.
        let _ = BufReader::new(out).read_line(&mut line);
        if line != "up\n" {
            let log = fs::read_to_string(folder.join("log/up")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            panic!(
                "the world did not come up; the last lines of {}/log/up, last first:\n{}",
                folder.display(),
                tail.join("\n")
            );
        }
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", keeper.id())).unwrap_or_default();
        let host = children.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("the keeper has a child");
        let outside = outside_of(host).expect("a process sleeps in the world's network namespace");
        World { folder, cofferdam, host, outside, has_root, sandboxes: AtomicU32::new(0), keeper }
    }

    /// A sandbox on the world's host, with a folder of its own to start in.
    ///
    /// # Panics
    ///
    /// When its folder cannot be made.
    pub fn sandbox(&self) -> Sandbox<'_> {
        let number = self.sandboxes.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.join("work").join(number.to_string());
        fs::create_dir_all(&folder).expect("the world's folder is writable");
        // As root the program inside is somebody else, who has to write here and to read the key.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("the folder is ours");
        for (from, to) in [("ca.pem", "ca.pem"), ("client_key", "key")] {
            fs::copy(self.folder.join("etc").join(from), folder.join(to)).expect("the world has been made");
            fs::set_permissions(folder.join(to), fs::Permissions::from_mode(0o644)).expect("the file is ours");
        }
        Sandbox::new(self, folder)
    }

    /// A word by which the processes of a run can be found, when the program inside has it among its arguments.
    #[must_use]
    pub fn marked(&self) -> Marked {
        let number = self.sandboxes.fetch_add(1, Ordering::Relaxed);
        Marked::new(format!("9{}{number:05}", std::process::id()), &self.cofferdam)
    }

    /// Runs a program on the host itself, as whoever Cofferdam runs as there.
    ///
    /// # Panics
    ///
    /// When the world cannot be entered.
    #[track_caller]
    #[must_use]
    pub fn on_the_host(&self, command: &[&str]) -> Ran {
        self.sandbox().without_a_sandbox(command)
    }

    /// Runs a program in the world, where the servers are: for the host it is 192.168.77.1 and 2606:4700:77::1.
    ///
    /// # Panics
    ///
    /// When the world cannot be entered.
    #[track_caller]
    #[must_use]
    pub fn from_outside(&self, command: &[&str]) -> Ran {
        self.sandbox().outside().without_a_sandbox(command)
    }

    /// Runs a piece of bash on the host, where `$C` is the program under test and sandboxes that stay have a place of their
    /// own; what is made there is removed at the end. `until_ CONDITION` waits, `state NAME` and `number NAME FIELD` look, and
    /// `serve CMD` starts a server that ends with the script.
    ///
    /// One script holds a whole story, since as a plain user without root every command that the world is entered with is
    /// in another user namespace, and sandboxes are for one user in one.
    ///
    /// # Panics
    ///
    /// When the world cannot be entered.
    #[track_caller]
    #[must_use]
    pub fn script(&self, text: &str) -> Ran {
        self.script_in(self.sandbox().patience(Duration::from_secs(120)), text)
    }

    /// As [`World::script`], in the folder of a sandbox and with its patience.
    ///
    /// # Panics
    ///
    /// When the world cannot be entered.
    #[track_caller]
    #[must_use]
    pub fn script_in(&self, sandbox: Sandbox<'_>, text: &str) -> Ran {
        let text = format!("C='{}'\nWORLD='{}'\n{PRELUDE}\n{text}", self.cofferdam.display(), self.folder.display());
        sandbox.without_a_sandbox(&["bash", "-c", &text])
    }

    /// Changes the host, with privilege there.
    ///
    /// # Panics
    ///
    /// When `shell` fails.
    #[track_caller]
    pub fn change_the_host(&self, shell: &'static str) {
        self.sandbox().broken(shell).without_a_sandbox(&["true"]).exits(0);
    }

    /// The SHA-256 of `/files/big` on the world's web server, in hexadecimal.
    ///
    /// # Panics
    ///
    /// When the world has not been made.
    #[must_use]
    pub fn big_file_digest(&self) -> String {
        let digest = fs::read_to_string(self.folder.join("etc/big.sha256")).expect("the world has been made");
        digest.trim().to_owned()
    }

    /// What one of the world's servers has logged by now.
    ///
    /// # Panics
    ///
    /// When there is no such log.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let log = fs::read(self.folder.join("log").join(name)).expect("a log of the world");
        String::from_utf8_lossy(&log).into_owned()
    }

    /// A file of the world's making, such as `etc/lookup`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file that was put on the world's web server, and one that it serves.
    #[must_use]
    pub fn web_root(&self) -> PathBuf {
        self.folder.join("www")
    }

    /// The text of one of the world's programs, for a sandbox to run.
    ///
    /// # Panics
    ///
    /// When there is no such file.
    #[must_use]
    pub fn program(&self, name: &str) -> &'static str {
        FILES.iter().find(|(file, _)| *file == name).map(|(_, content)| *content).expect("a file of the world")
    }

    /// Whether the world has the machine's root.
    #[must_use]
    pub fn has_root(&self) -> bool {
        self.has_root
    }

    /// Whether clients run without a sandbox.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        is_set("COFFERDAM_TEST_DIRECT")
    }

    /// The program under test.
    #[must_use]
    pub fn cofferdam(&self) -> &Path {
        &self.cofferdam
    }

    /// A command that runs its further arguments on the host, and ends them after `patience`.
    pub(crate) fn enter(&self, patience: Duration) -> Command {
        self.enter_beside(self.host, patience)
    }

    /// As [`World::enter`], in the network namespace with the servers.
    pub(crate) fn enter_outside(&self, patience: Duration) -> Command {
        self.enter_beside(self.outside, patience)
    }

    fn enter_beside(&self, process: u32, patience: Duration) -> Command {
        let mut enter = Command::new("timeout");
        enter.args(["--kill-after=5", &patience.as_secs().to_string()]);
        enter.args(["nsenter", "--target", &process.to_string(), "--net"]);
        if !self.has_root {
            enter.args(["--user", "--preserve-credentials"]);
        }
        enter.args(["--", "unshare", "--mount"]).arg(self.folder.join("files/enter.sh")).arg(&self.folder);
        enter.arg(if self.has_root { "root" } else { "guest" });
        enter.env_clear().envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LANG", "C.UTF-8"), ("TERM", "dumb")]);
        enter.env("HOME", self.folder.join("home"));
        enter.env("WORLD_HAS_ROOT", if self.has_root { "1" } else { "0" });
        enter
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // It was told to end; how it ended changes nothing.
        let _ = self.keeper.wait();
    }
}

/// An address family, and the world's addresses in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Both families.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The flag by which curl, wget, ssh, git, ping and dig are told the family.
    #[must_use]
    pub const fn flag(self) -> &'static str {
        match self {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }

    /// The machine with every server.
    #[must_use]
    pub const fn web(self) -> &'static str {
        match self {
            Family::V4 => "93.184.215.14",
            Family::V6 => "2606:2800:21f:cb07::14",
        }
    }

    /// The same servers on another public address.
    #[must_use]
    pub const fn other(self) -> &'static str {
        match self {
            Family::V4 => "151.101.1.69",
            Family::V6 => "2a04:4e42::645",
        }
    }

    /// The same servers on a private address.
    #[must_use]
    pub const fn inside(self) -> &'static str {
        match self {
            Family::V4 => "10.77.0.5",
            Family::V6 => "fd12:3456:789a::5",
        }
    }

    /// The name that has addresses of this family alone, those of [`Family::web`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Family::V4 => "v4.wall-test.com",
            Family::V6 => "v6.wall-test.com",
        }
    }

    /// The host as it reaches itself.
    #[must_use]
    pub const fn loopback(self) -> &'static str {
        match self {
            Family::V4 => "127.0.0.1",
            Family::V6 => "::1",
        }
    }

    /// The host as the world reaches it.
    #[must_use]
    pub const fn host(self) -> &'static str {
        match self {
            Family::V4 => "192.168.77.2",
            Family::V6 => "2606:4700:77::2",
        }
    }

    /// The world as a client of the host.
    #[must_use]
    pub const fn beyond(self) -> &'static str {
        match self {
            Family::V4 => "192.168.77.1",
            Family::V6 => "2606:4700:77::1",
        }
    }

    /// An address that nothing answers for.
    #[must_use]
    pub const fn silent(self) -> &'static str {
        match self {
            Family::V4 => "93.184.215.99",
            Family::V6 => "2606:2800:21f:cb07::99",
        }
    }

    /// An address as it stands in a URL.
    #[must_use]
    pub fn in_url(self, address: &str) -> String {
        match self {
            Family::V4 => address.to_owned(),
            Family::V6 => format!("[{address}]"),
        }
    }
}

/// The process that keeps the world's network namespace: a child of the host's that only sleeps.
fn outside_of(host: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{host}/task/{host}/children")).ok()?;
    let pids = children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok());
    let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.filter(|pid| name(pid).trim() == "sleep").min()
}

fn is_set(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| !value.is_empty() && value != "0")
}

/// A gigabyte when time does not matter.
fn big_file_bytes() -> u64 {
    if long() { 1 << 30 } else { 64 << 20 }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn program_under_test() -> PathBuf {
    if let Some(path) = env::var_os("COFFERDAM_BIN") {
        return path.into();
    }
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    target.join("release/cofferdam")
}

/// A new folder that every user of the machine can enter: the servers and, as root, the sandbox are other users.
fn private_folder() -> PathBuf {
    let folder = env::temp_dir().join(format!("cofferdam-world-{}-{:x}", std::process::id(), fresh_number()));
    fs::create_dir(&folder)
        .and_then(|()| fs::create_dir(folder.join("files")))
        .expect("the temporary folder is writable");
    for path in [folder.clone(), folder.join("files")] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
    }
    folder
}

fn fresh_number() -> u128 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_nanos())
}
