//! Sandboxes: made, found, looked at and removed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam_model::{Event, NetworkMode, PublishedPort};
use cofferdam_policy::file;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::{Refusal, io_error};
use crate::logs::Logs;
use crate::network::{Network, wire, without_ports};
use crate::program::{Program, words};
use crate::run::Run;

/// A sandbox that stays until it is removed: with its files, and while it runs with its network and its runs.
///
/// This is a name for one and cheap to clone; dropping it changes nothing. It belongs to the user who made it, and is found again
/// with [`Sandbox::open`], from other programs too.
#[derive(Debug, Clone)]
pub struct Sandbox(Arc<Named>);

#[derive(Debug)]
struct Named {
    program: Program,
    name: String,
    notices: Vec<String>,
}

/// Another way to begin: a sandbox without any network until a mode gives it one.
///
/// What is made is a [`Sandbox`]; the postures are a vocabulary for its network and no other kind of thing.
///
/// ```
/// use cofferdam_client::{NetworkMode, Session};
///
/// let session = Session::builder("agent")
///     .network_mode(NetworkMode::Allowlist)
///     .network_allowlist(["@pypi", "10.0.0.0/8", "*.example.org"])
///     .network_denylist(["CLOUD_METADATA_DENY"]);
/// ```
#[derive(Debug, Clone, Copy)]
pub enum Session {}

impl Session {
    /// A sandbox in mode `Blocked`.
    pub fn builder(name: impl Into<String>) -> SandboxBuilder {
        SandboxBuilder { usual: Some(NetworkMode::Blocked), ..Sandbox::builder(name) }
    }
}

/// A sandbox before it is made.
#[derive(Debug)]
#[must_use = "a builder does nothing until `create`"]
pub struct SandboxBuilder {
    name: String,
    program: Option<PathBuf>,
    spec: Spec,
    network: Network,
    /// The mode where nothing is said.
    usual: Option<NetworkMode>,
}

/// As `create --spec` reads it.
#[derive(Debug, Default, Serialize)]
struct Spec {
    command: Vec<String>,
    env: BTreeMap<String, String>,
    project: Option<PathBuf>,
    workdir: Option<String>,
    mounts: Vec<Mount>,
    rootfs: Option<PathBuf>,
    user: Option<u32>,
    capabilities: Vec<String>,
    allow_userns: bool,
    limits: Limits,
    network: serde_json::Value,
}

#[derive(Debug, Serialize)]
struct Mount {
    source: PathBuf,
    target: PathBuf,
    read_only: bool,
}

#[derive(Debug, Default, Serialize)]
struct Limits {
    memory: Option<u64>,
    cpus: Option<f32>,
    pids: Option<u32>,
}

impl SandboxBuilder {
    /// Where the program `cofferdam` is. Without it: what the variable `COFFERDAM_PROGRAM` names, else the one in `PATH`.
    pub fn program(mut self, path: impl Into<PathBuf>) -> SandboxBuilder {
        self.program = Some(path.into());
        self
    }

    /// Its network; without this the public internet, and for a [`Session`] none.
    pub fn network(mut self, fill: impl FnOnce(Network) -> Network) -> SandboxBuilder {
        self.network = fill(self.network);
        self
    }

    /// Its network in a word.
    pub fn network_mode(self, mode: NetworkMode) -> SandboxBuilder {
        self.network(|network| network.mode(mode))
    }

    /// With mode `Allowlist`; see [`Network::allowlist`].
    pub fn network_allowlist(self, entries: impl IntoIterator<Item = impl Into<String>>) -> SandboxBuilder {
        self.network(|network| network.allowlist(entries))
    }

    /// With modes `Open` and `Allowlist`; see [`Network::denylist`].
    pub fn network_denylist(self, entries: impl IntoIterator<Item = impl Into<String>>) -> SandboxBuilder {
        self.network(|network| network.denylist(entries))
    }

    /// Shows a file or directory of this machine, writable. Relative sources are relative to the current directory.
    pub fn mount(self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> SandboxBuilder {
        self.add_mount(source.into(), target.into(), false)
    }

    /// As [`SandboxBuilder::mount`], read-only.
    pub fn mount_read_only(self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> SandboxBuilder {
        self.add_mount(source.into(), target.into(), true)
    }

    fn add_mount(mut self, source: PathBuf, target: PathBuf, read_only: bool) -> SandboxBuilder {
        self.spec.mounts.push(Mount { source: absolute(source), target, read_only });
        self
    }

    /// A directory of this machine that is writable at the same path inside, and where programs start. Without it there is none:
    /// not even the current one.
    pub fn project(mut self, directory: impl Into<PathBuf>) -> SandboxBuilder {
        self.spec.project = Some(absolute(directory.into()));
        self
    }

    /// Where programs start, inside.
    pub fn workdir(mut self, directory: impl Into<String>) -> SandboxBuilder {
        self.spec.workdir = Some(directory.into());
        self
    }

    /// A directory of this machine as the root file system, read-only.
    pub fn rootfs(mut self, directory: impl Into<PathBuf>) -> SandboxBuilder {
        self.spec.rootfs = Some(absolute(directory.into()));
        self
    }

    /// A variable of every run. It is kept in a file that this user alone can read, until the sandbox is removed.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> SandboxBuilder {
        self.spec.env.insert(name.into(), value.into());
        self
    }

    /// The user id inside.
    pub fn user(mut self, uid: u32) -> SandboxBuilder {
        self.spec.user = Some(uid);
        self
    }

    /// Makes programs root with this capability (`NET_RAW`), in the sandbox's own namespaces only.
    pub fn capability(mut self, name: impl Into<String>) -> SandboxBuilder {
        self.spec.capabilities.push(name.into());
        self
    }

    /// Lets programs make user namespaces, for sandboxes of their own such as a browser's.
    pub fn allow_user_namespaces(mut self) -> SandboxBuilder {
        self.spec.allow_userns = true;
        self
    }

    /// The most memory of everything inside, in bytes.
    pub fn memory(mut self, bytes: u64) -> SandboxBuilder {
        self.spec.limits.memory = Some(bytes);
        self
    }

    /// The most processors of everything inside, in whole ones and parts.
    pub fn cpus(mut self, count: f32) -> SandboxBuilder {
        self.spec.limits.cpus = Some(count);
        self
    }

    /// The most processes of everything inside.
    pub fn pids(mut self, count: u32) -> SandboxBuilder {
        self.spec.limits.pids = Some(count);
        self
    }

    /// The main command: the sandbox ends with it. What it writes is in [`Sandbox::logs`].
    pub fn command(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> SandboxBuilder {
        self.spec.command = words.into_iter().map(Into::into).collect();
        self
    }

    /// Makes it and starts it.
    ///
    /// Dropping the future ends the program that makes it. When it was made by then it stays, and [`Sandbox::open`] finds it.
    ///
    /// # Errors
    /// When something that was asked for cannot be had; nothing is left behind then.
    pub async fn create(self) -> Result<Sandbox, Error> {
        let SandboxBuilder { name, program, mut spec, network, usual } = self;
        check_name(&name)?;
        spec.network = wire(&network.resolve(usual)?);
        let json = serde_json::to_vec(&spec).map_err(|error| Error::Unsayable { what: format!("a path ({error})") })?;
        let program = Program::find(program.as_deref())?;
        let made: Made = program.ask(&words(["create", "--json", "--spec", "-", &name]), Some(json)).await?;
        Ok(Sandbox(Arc::new(Named { program, name, notices: made.notices })))
    }

    /// Makes a sandbox, does something with it, and removes it with its files, whatever came of that.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), cofferdam_client::Error> {
    /// use cofferdam_client::Sandbox;
    ///
    /// let output = Sandbox::unnamed().with(async |sandbox| sandbox.run("id").output().await).await??;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It stays when the future is dropped, or `act` panics: no destructor can wait for its removal.
    ///
    /// # Errors
    /// When it cannot be made, or not be removed.
    pub async fn with<T>(self, act: impl AsyncFnOnce(&Sandbox) -> T) -> Result<T, Error> {
        let sandbox = self.create().await?;
        let came = act(&sandbox).await;
        sandbox.remove().await?;
        Ok(came)
    }

    /// The sandbox that has this name, running or not. What else was said here is not looked at.
    ///
    /// # Errors
    /// When there is none.
    pub async fn open(self) -> Result<Sandbox, Error> {
        let SandboxBuilder { name, program, .. } = self;
        check_name(&name)?;
        let sandbox =
            Sandbox(Arc::new(Named { program: Program::find(program.as_deref())?, name, notices: Vec::new() }));
        sandbox.inspect().await?;
        Ok(sandbox)
    }
}

#[derive(Debug, Deserialize)]
struct Made {
    #[serde(default)]
    notices: Vec<String>,
}

impl Sandbox {
    /// A sandbox with this name: lower-case letters, digits, dots, dashes and underscores.
    pub fn builder(name: impl Into<String>) -> SandboxBuilder {
        SandboxBuilder {
            name: name.into(),
            program: None,
            spec: Spec::default(),
            network: Network::default(),
            usual: None,
        }
    }

    /// A sandbox with a name that no other has.
    pub fn unnamed() -> SandboxBuilder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Two processes with one number and one moment would have to be on two machines that share a home.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Sandbox::builder(format!("run-{}-{now:x}-{number}", std::process::id()))
    }

    /// The sandbox that has this name, running or not.
    ///
    /// # Errors
    /// When there is none.
    pub async fn open(name: impl Into<String>) -> Result<Sandbox, Error> {
        Sandbox::builder(name).open().await
    }

    /// Every sandbox of this user.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn list() -> Result<Vec<Inspected>, Error> {
        Program::find(None)?.ask(&words(["ls", "--json"]), None).await
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What a person should be told of how it was made: limits that do not hold, ports that nobody reaches.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.0.notices
    }

    pub(crate) fn program(&self) -> &Program {
        &self.0.program
    }

    /// A program to run in it, found in the sandbox's `PATH`. No shell looks at it.
    pub fn run(&self, program: impl Into<String>) -> Run {
        Run::new(self.clone(), program.into())
    }

    /// Starts it when it is stopped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(&self) -> Result<(), Error> {
        self.program().ask(&self.words(["start", "--json"]), None).await.map(|_: Made| ())
    }

    /// Stops it: asks everything that runs in it to end, and ends it after `grace`. Its files stay.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&self, grace: Duration) -> Result<(), Error> {
        /// As long as the program takes: seven weeks.
        const LONGEST: u128 = u32::MAX as u128;
        let grace = match grace.as_millis() {
            0 => "0s".to_owned(),
            milliseconds => format!("{}ms", milliseconds.min(LONGEST)),
        };
        self.change(self.words(["stop", "--json", "--time", &grace])).await
    }

    /// Removes it with its files; one that runs is ended at once. There is no way back.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove(&self) -> Result<(), Error> {
        self.change(self.words(["rm", "--json", "--force"])).await
    }

    /// Looks at it.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn inspect(&self) -> Result<Inspected, Error> {
        self.program().ask(&self.words(["inspect", "--json"]), None).await
    }

    /// Gives it another policy, also while it runs: what the new one does not allow is ended, in runs with a network of their own
    /// too. Comes back when it holds everywhere. Ports stay what they are.
    ///
    /// # Errors
    /// When it cannot be used; then nothing has changed.
    pub async fn set_policy(&self, fill: impl FnOnce(Network) -> Network) -> Result<(), Error> {
        let network = without_ports(fill(Network::default()).resolve(None)?)?;
        let mut words = self.words(["policy", "set", "--json"]);
        words.push("-".into());
        let json = file::to_json(&network).into_bytes();
        self.program().ask(&words, Some(json)).await.map(|_: serde::de::IgnoredAny| ())
    }

    /// Publishes a port while it runs, written as `[BIND:]HOST:GUEST[/udp]`; ranges are several. Returns them as they are, with
    /// numbers that the system has picked. They last until it stops.
    ///
    /// # Errors
    /// When one of them cannot be had; none is published then.
    pub async fn publish(&self, port: &str) -> Result<Vec<PublishedPort>, Error> {
        file::parse_port(port)?;
        let mut words = self.words(["ports", "add", "--json"]);
        words.push(port.into());
        self.program().ask(&words, None).await
    }

    /// Withdraws a port. Its connections go on.
    ///
    /// # Errors
    /// When it is not published.
    pub async fn withdraw(&self, port: PublishedPort) -> Result<(), Error> {
        let mut words = self.words(["ports", "rm", "--json"]);
        words.push(format!("{}/{}", port.host(), port.protocol.word()).into());
        self.program().ask(&words, None).await.map(|_: Vec<PublishedPort>| ())
    }

    /// Its published ports.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn ports(&self) -> Result<Vec<PublishedPort>, Error> {
        self.program().ask(&self.words(["ports", "ls", "--json"]), None).await
    }

    /// What its main command has written, as far as it is kept: the last 8 to 16 MiB. What the sandbox itself had to say is between
    /// that, in lines that begin with `cofferdam: `; a program can write such lines too.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn logs(&self) -> Result<Vec<u8>, Error> {
        let said = self.program().say(&self.words(["logs"]), None, None).await?;
        if said.status == Some(0) {
            return Ok(said.stdout);
        }
        // Who is not there says so with its kind.
        self.inspect().await?;
        Err(said.unexpected(""))
    }

    /// The same as a stream, which ends with the sandbox.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn follow_logs(&self) -> Result<Logs, Error> {
        self.inspect().await?;
        Logs::of(self.program(), &self.words(["logs", "--follow"]))
    }

    /// What its gateway has reported, oldest first, as far as it is kept: the last 8 to 16 MiB. Runs with a network of their own
    /// have a gateway of their own, whose denials are in their [`Output`](crate::Output).
    ///
    /// # Errors
    /// When it is not there, or they cannot be read.
    pub async fn events(&self) -> Result<Vec<Event>, Error> {
        let directory = self.inspect().await?.directory;
        let read = move || ["events.1", "events"].map(|name| optional(&directory.join(name)));
        let read = tokio::task::spawn_blocking(read).await;
        let read = read.map_err(|error| io_error("read the events")(error.into()))?;
        let mut events = Vec::new();
        for file in read {
            let file = file.map_err(io_error("read the events"))?;
            // A line that is being written is told the next time.
            events.extend(file.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()));
        }
        Ok(events)
    }

    async fn change(&self, words: Vec<OsString>) -> Result<(), Error> {
        let said = self.program().say(&words, None, None).await?;
        match serde_json::from_slice::<Vec<Became>>(&said.stdout).map(|mut list| list.pop()) {
            Ok(Some(Became::Refused(refusal))) => Err(refusal.into()),
            Ok(Some(Became::Done {})) if said.status == Some(0) => Ok(()),
            Ok(_) | Err(_) => Err(said.unexpected("")),
        }
    }

    /// A verb with its options, and this sandbox.
    pub(crate) fn words<const N: usize>(&self, verb: [&str; N]) -> Vec<OsString> {
        let mut all = words(verb);
        all.extend(words(["--", self.name()]));
        all
    }
}

/// What became of a sandbox.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Became {
    Refused(Refusal),
    Done {},
}

/// A sandbox as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Inspected {
    pub name: String,
    pub state: State,
    /// Where its files are, on this machine.
    pub directory: PathBuf,
    /// When it was started, as RFC 3339; absent when it does not run, like all that follows.
    #[serde(default)]
    pub started: Option<String>,
    /// Its addresses.
    #[serde(default)]
    pub guest: Vec<IpAddr>,
    /// What runs in it.
    #[serde(default)]
    pub runs: Vec<RunInfo>,
    /// Runs beyond those.
    #[serde(default)]
    pub more_runs: usize,
    /// How its last main command ended.
    #[serde(default)]
    pub last_exit_status: Option<u8>,
    /// Why it cannot be started.
    #[serde(default)]
    pub problem: Option<String>,
}

/// Whether a sandbox runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum State {
    Running,
    /// Somebody starts, ends or removes it.
    Changing,
    Stopped,
}

/// One run of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct RunInfo {
    /// The process that supervises it.
    pub supervisor: u32,
    pub command: String,
    /// Whether it is the main command.
    #[serde(default)]
    pub main: bool,
}

/// The program has the last word; what begins like an option must not reach its command line.
fn check_name(name: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_name = name.bytes().next().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte))
        && name.len() <= 63;
    if is_name { Ok(()) } else { Err(Error::Name { name: name.to_owned() }) }
}

/// The program is executed here, and a keeper elsewhere.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn optional(path: &Path) -> std::io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_options_or_paths_are_refused() {
        for name in ["", "-rf", "--help", "../x", "a/b", "A", "a:b", "a b", &"a".repeat(64)] {
            assert!(matches!(check_name(name), Err(Error::Name { .. })), "{name}");
        }
        for name in ["a", "a.b-c_d", "0", &"a".repeat(63)] {
            check_name(name).unwrap();
        }
        let names = [Sandbox::unnamed().name, Sandbox::unnamed().name];
        assert_ne!(names[0], names[1]);
        check_name(&names[0]).unwrap();
    }

    #[test]
    fn everything_may_move_between_threads() {
        fn moves<T: Send>(_: T) {}
        let sandbox =
            || Sandbox(Arc::new(Named { program: Program::at("/none"), name: "s".to_owned(), notices: Vec::new() }));
        moves(Sandbox::builder("s").network(|n| n.adjust(|_| {})).create());
        moves(Sandbox::open("s"));
        moves(sandbox().run("true").output());
        moves(sandbox().run("true").status());
        moves(async move { sandbox().run("true").spawn().await?.wait().await });
        moves(async move { sandbox().put("a", "b").await });
        moves(async move { sandbox().set_policy(|n| n).await });
        moves(async move { sandbox().events().await });
    }

    #[test]
    fn what_became_of_a_sandbox_is_read() {
        let read = |json: &str| serde_json::from_str::<Vec<Became>>(json).unwrap().pop();
        assert!(matches!(read(r#"[{"name": "a"}]"#), Some(Became::Done {})));
        assert!(matches!(
            read(r#"[{"name": "a", "error": "no", "kind": "absent", "exit_status": 1}]"#),
            Some(Became::Refused(_))
        ));
    }
}
