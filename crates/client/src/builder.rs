//! A sandbox before it is there.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cofferdam_model::NetworkMode;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::network::{Network, wire};
use crate::program::{Program, words};
use crate::sandbox::Sandbox;

/// Another way to begin: a sandbox without any network until a mode gives it one.
///
/// What is made is a [`Sandbox`]; the postures are a vocabulary for its network and no other kind of thing.
///
/// ```
/// use cofferdam_client::{NetworkMode, Session, lists};
///
/// let session = Session::builder("agent")
///     .network_mode(NetworkMode::Allowlist)
///     .network_allowlist([lists::PYPI_HOSTS, "10.0.0.0/8", "*.example.org"])
///     .network_denylist([lists::CLOUD_METADATA_DENY]);
/// ```
#[derive(Debug, Clone, Copy)]
pub enum Session {}

impl Session {
    /// A sandbox in mode `Blocked`.
    pub fn builder(name: impl Into<String>) -> SandboxBuilder {
        SandboxBuilder::new(name.into(), Some(NetworkMode::Blocked))
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
    no_record: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'static str>,
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
    pub(crate) fn new(name: String, usual: Option<NetworkMode>) -> SandboxBuilder {
        SandboxBuilder { name, program: None, spec: Spec::default(), network: Network::default(), usual }
    }

    #[cfg(test)]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

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

    /// Whether anything was said of its network.
    pub(crate) fn says_network(&self) -> bool {
        !self.network.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn resolved_network(self) -> Result<cofferdam_model::NetworkConfig, Error> {
        self.network.resolve(self.usual)
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

    /// Keeps its programs in a virtual machine, which has a kernel of its own and keeps its files until it is stopped. `cofferdam vm
    /// setup` has to have been there before.
    pub fn virtual_machine(mut self) -> SandboxBuilder {
        self.spec.backend = Some("vm");
        self
    }

    /// Records nothing of it: [`Sandbox::events`](crate::Sandbox::events) has none.
    pub fn without_record(mut self) -> SandboxBuilder {
        self.spec.no_record = true;
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
        Ok(Sandbox::of(program, name, made.notices))
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
        let sandbox = Sandbox::of(Program::find(program.as_deref())?, name, Vec::new());
        sandbox.inspect().await?;
        Ok(sandbox)
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Made {
    #[serde(default)]
    notices: Vec<String>,
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
        let names = [Sandbox::unnamed().name().to_owned(), Sandbox::unnamed().name().to_owned()];
        assert_ne!(names[0], names[1]);
        check_name(&names[0]).unwrap();
    }
}
