//! What a sandbox that stays is made from, as it is kept.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_backend_ns::{Capability, Mount, ResolveError, ResourceLimits, resolve};
use cofferdam_model::NetworkConfig;
use cofferdam_policy::file::{self, ConfigErrors, FlagItem};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::mounts::{Mounts, check_target, taken};
use super::narrow::{Mode, enforced};
use crate::{RunOptions, Terminal};

/// The version of the format. A newer one is refused: what it says may narrow the sandbox.
const VERSION: u32 = 1;

/// Where what is kept lies inside, and the directory that keeps it.
pub(super) const KEPT: [(&str, &str); 3] = [("/home/user", "home"), ("/tmp", "tmp"), ("/var/tmp", "vartmp")];

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedSpec {
    #[serde(default = "version")]
    pub v: u32,
    /// The main command; without one the sandbox waits for runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Variables of every run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    #[serde(default)]
    pub allow_userns: bool,
    #[serde(default)]
    pub limits: LimitsEntry,
    /// The network's configuration, as a file has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<serde_json::Value>,
    /// The same as flags, which come on top.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_flags: Vec<FlagItem>,
    /// Whether there is IPv6; as on the host when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<bool>,
    /// How often its policy was set: who sets it has to know the one before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub policy_changes: u64,
    /// Whether nothing of its sessions is recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_record: bool,
    /// What keeps its programs in.
    #[serde(default, skip_serializing_if = "BackendEntry::is_namespace")]
    pub backend: BackendEntry,
    /// How a virtual machine has its directories; what fits when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_via: Option<SharingEntry>,
}

/// The word for a [`Backend`](crate::Backend). What a virtual machine is made from is found anew at each start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendEntry {
    #[default]
    Namespace,
    Vm,
}

impl BackendEntry {
    /// As serde asks for it.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_namespace(&self) -> bool {
        *self == BackendEntry::Namespace
    }
}

/// The word for a [`Sharing`](crate::Sharing). What that takes is found anew at each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharingEntry {
    Smb,
    #[serde(rename = "9p")]
    Plan9,
    Virtiofs,
}

/// One file or directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountEntry {
    pub source: PathBuf,
    pub target: PathBuf,
    #[serde(default)]
    pub read_only: bool,
}

/// Bounds over everything inside.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsEntry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
}

fn version() -> u32 {
    VERSION
}

/// As serde asks for it.
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Why a specification cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("it is no specification: {0}")]
    Json(String),
    #[error("its command is empty; name a program")]
    Command,
    #[error("it has version {0}, and this program knows {VERSION}")]
    Version(u32),
    #[error("its network cannot be used")]
    Network(#[source] ConfigErrors),
    #[error("its capability {0:?} is none")]
    Capability(String),
    #[error("its path {path} is not absolute", path = .0.display())]
    Relative(PathBuf),
    #[error("its variable {0:?} cannot stand in an environment")]
    Environment(String),
}

impl NamedSpec {
    /// Reads one, and checks everything about it that does not depend on the machine.
    ///
    /// # Errors
    /// Unknown fields and versions, and whatever could not be made a sandbox of.
    pub fn parse(json: &[u8]) -> Result<NamedSpec, SpecError> {
        let spec: NamedSpec = object(json)?;
        if spec.v != VERSION {
            return Err(SpecError::Version(spec.v));
        }
        spec.run_options(Vec::new(), Vec::new()).map(|_| spec)
    }

    /// As it is written down.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists: nothing of it can fail to be JSON.
        serde_json::to_string_pretty(&NamedSpec { v: VERSION, ..self.clone() }).unwrap_or_default()
    }

    /// The network that it asks for.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn network(&self) -> Result<NetworkConfig, SpecError> {
        let file = self.network.as_ref().map(|network| conf("sandbox.json", network));
        let items: Vec<FlagItem> = file.into_iter().chain(self.network_flags.iter().cloned()).collect();
        let mut network = file::from_flags(&items).map_err(SpecError::Network)?;
        if self.ipv6.is_some() {
            network.interface.ipv6 = self.ipv6;
        }
        Ok(network)
    }

    /// The same with another policy: that of `items`. What they do not name of limits, resolvers and the link stays, and so do
    /// published ports, sockets of the host, and the ceilings where a file brings no others.
    ///
    /// # Errors
    /// Everything that is wrong with either network.
    pub fn with_policy(&self, items: &[FlagItem], ipv6: Option<bool>) -> Result<NamedSpec, SpecError> {
        let before = self.network()?;
        let mut network = file::replacing(&before, items).map_err(SpecError::Network)?;
        network.interface.ipv6 = ipv6.or(network.interface.ipv6);
        network.ports = before.ports;
        // Ports need a network to be published in: they stay, with one on which nothing is allowed.
        if !network.ports.is_empty() {
            network = enforced(network);
        }
        // Flags have no ceilings: what they leave unsaid must not open what these close.
        if network.ceilings.is_empty() {
            network.ceilings = before.ceilings;
        }
        network.host_sockets = before.host_sockets;
        self.with_network(&network)
    }

    /// The same with another network, all of it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn with_network(&self, network: &NetworkConfig) -> Result<NamedSpec, SpecError> {
        let json = serde_json::from_str(&file::to_json(network)).map_err(|error| SpecError::Json(error.to_string()))?;
        let policy_changes = self.policy_changes.saturating_add(1);
        let spec =
            NamedSpec { network: Some(json), network_flags: Vec::new(), ipv6: None, policy_changes, ..self.clone() };
        // One that does not go together with what it keeps would not start again.
        spec.network().map(|_| spec)
    }

    /// The options of a run inside: `command`, with `env` as its whole environment.
    ///
    /// # Errors
    /// What cannot be made a sandbox of.
    pub fn run_options(&self, command: Vec<OsString>, env: Vec<(OsString, OsString)>) -> Result<RunOptions, SpecError> {
        let mounts = self.mounts.iter().flat_map(|mount| [&mount.source, &mount.target]);
        // A keeper has no directory that they could be relative to.
        let paths = self.project.iter().chain(&self.workdir).chain(&self.rootfs).chain(mounts);
        if let Some(relative) = paths.into_iter().find(|path| !path.is_absolute()) {
            return Err(SpecError::Relative(relative.clone()));
        }
        check_variables(&self.env)?;
        let capability = |name: &String| name.parse::<Capability>().map_err(|_| SpecError::Capability(name.clone()));
        let mounts = self.mounts.iter().map(|mount| Mount {
            source: mount.source.clone(),
            target: mount.target.clone(),
            read_only: mount.read_only,
        });
        Ok(RunOptions {
            env,
            project: self.project.clone(),
            workdir: self.workdir.clone(),
            mounts: mounts.collect(),
            rootfs: self.rootfs.clone(),
            uid: self.user,
            capabilities: self.capabilities.iter().map(capability).collect::<Result<_, _>>()?,
            allow_userns: self.allow_userns,
            terminal: Terminal::Inherit,
            limits: ResourceLimits {
                memory: self.limits.memory,
                cpus: self.limits.cpus,
                pids: self.limits.pids,
                ..ResourceLimits::default()
            },
            ..RunOptions::new(command, self.network()?)
        })
    }

    /// The same, with the paths of the host that are shown by paths without links; none beneath `roots` is followed. What is not there
    /// stays as it is.
    ///
    /// # Errors
    /// A link beneath `roots`.
    pub fn without_links(&self, roots: &[PathBuf]) -> Result<NamedSpec, ResolveError> {
        let mut spec = self.clone();
        let sources = spec.mounts.iter_mut().map(|mount| &mut mount.source);
        for path in spec.project.iter_mut().chain(&mut spec.rootfs).chain(sources) {
            match resolve(path, roots) {
                Ok(real) => *path = real,
                Err(link @ ResolveError::Link { .. }) => return Err(link),
                Err(ResolveError::Missing { .. }) => {}
            }
        }
        Ok(spec)
    }

    /// The same with one more mount, from the next start on.
    ///
    /// # Errors
    /// Why there is no room for it, and what to do.
    pub fn with_mount(&self, mount: MountEntry) -> Result<NamedSpec, String> {
        check_target(&mount.target)?;
        let mut targets = self.project.iter().chain(self.mounts.iter().map(|mount| &mount.target));
        match self.backend {
            BackendEntry::Vm => Mounts::new(targets.cloned()).check(&mount.target)?,
            BackendEntry::Namespace if targets.any(|target| *target == mount.target) => {
                return Err(taken(&mount.target));
            }
            BackendEntry::Namespace => {}
        }
        let mut spec = self.clone();
        spec.mounts.push(mount);
        Ok(spec)
    }

    /// The same without the mount at a path, from the next start on.
    ///
    /// # Errors
    /// Why nothing can be taken away there.
    pub fn without_mount(&self, target: &Path) -> Result<NamedSpec, String> {
        self.mount_at(target)?;
        let mut spec = self.clone();
        spec.mounts.retain(|mount| mount.target != target);
        Ok(spec)
    }

    /// The mount at a path, where it can be taken away.
    pub(super) fn mount_at(&self, target: &Path) -> Result<&MountEntry, String> {
        if self.project.as_deref() == Some(target) {
            let why = "it is the directory in which its programs start; create a sandbox with --no-cwd to have none";
            return Err(format!("{} cannot be taken away: {why}", target.display()));
        }
        let there = self.mounts.iter().find(|mount| mount.target == target);
        there.ok_or_else(|| format!("there is no mount at {}; `cofferdam mount ls` lists them", target.display()))
    }

    /// The mounts of what is kept in `directory`; those that the specification has come on top.
    pub(super) fn kept_in(&self, directory: &Path) -> Vec<Mount> {
        let kept = KEPT.iter().map(|(target, name)| Mount {
            source: directory.join(name),
            target: target.into(),
            read_only: false,
        });
        kept.collect()
    }
}

/// What a run in a sandbox that is there is asked for.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    #[serde(default = "version")]
    pub v: u32,
    pub command: Vec<String>,
    /// Variables, over those of the sandbox.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub workdir: Option<PathBuf>,
    #[serde(default)]
    pub timeout_ms: Option<NonZeroU64>,
    /// A network of its own, as a file has it; absent: the session's.
    #[serde(default)]
    pub network: Option<serde_json::Value>,
    #[serde(default)]
    pub mode: Mode,
    #[serde(default)]
    pub fail_on_deny: bool,
}

impl RunSpec {
    /// Reads one, and checks everything about it that does not depend on the sandbox.
    ///
    /// # Errors
    /// Unknown fields and versions, and whatever could not be made a run of.
    pub fn parse(json: &[u8]) -> Result<RunSpec, SpecError> {
        let spec: RunSpec = object(json)?;
        if spec.v != VERSION {
            return Err(SpecError::Version(spec.v));
        }
        if spec.command.is_empty() {
            return Err(SpecError::Command);
        }
        check_variables(&spec.env)?;
        spec.network().map(|_| spec)
    }

    /// The network of its own that it asks for.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn network(&self) -> Result<Option<NetworkConfig>, SpecError> {
        let network = self.network.as_ref().map(|network| file::from_flags(&[conf("run.json", network)]));
        network.transpose().map_err(SpecError::Network)
    }

    /// How long it may take.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout_ms.map(|ms| Duration::from_millis(ms.get()))
    }
}

/// An object and nothing else: a list of nothing would be one as well, with every field left out.
fn object<T: DeserializeOwned>(json: &[u8]) -> Result<T, SpecError> {
    let wrong = |error: serde_json::Error| SpecError::Json(error.to_string());
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json).map_err(wrong)?;
    serde_json::from_value(object.into()).map_err(wrong)
}

fn conf(name: &str, network: &serde_json::Value) -> FlagItem {
    FlagItem::Conf { name: name.to_owned(), text: serde_json::json!({ "network": network }).to_string() }
}

fn check_variables(variables: &BTreeMap<String, String>) -> Result<(), SpecError> {
    let is_bad = |name: &str, value: &str| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
    match variables.iter().find(|(name, value)| is_bad(name, value)) {
        Some((name, _)) => Err(SpecError::Environment(name.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_model::{Action, Layer, PolicyLayer};

    use super::*;

    #[test]
    fn mounts_of_what_is_stopped_come_and_go() {
        let mount = |target: &str| MountEntry { source: "/a".into(), target: target.into(), read_only: true };
        for (backend, refused) in [(BackendEntry::Namespace, 6), (BackendEntry::Vm, 9)] {
            let project = Some("/home/me/project".into());
            let spec = NamedSpec { backend, project, mounts: vec![mount("/b"), mount("/d/e")], ..NamedSpec::default() };
            // Those at the end are for root in a guest to undo.
            let targets = ["/b", "/d/e", "/home/me/project", "/x/../y", "/", "x", "/b/c", "/d", "/home/me/project/sub"];
            for (number, target) in targets.iter().enumerate() {
                assert_eq!(spec.with_mount(mount(target)).is_err(), number < refused, "{backend:?} {target}");
            }
            let more = spec.with_mount(mount("/new")).unwrap();
            assert_eq!(more.mounts, [mount("/b"), mount("/d/e"), mount("/new")]);
            assert_eq!(more.without_mount(Path::new("/new")).unwrap(), spec);
            let why = |target: &str| spec.without_mount(Path::new(target)).unwrap_err();
            assert!(why("/new").contains("no mount at /new") && why("/home/me/project").contains("--no-cwd"));
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let spec = NamedSpec {
            v: VERSION,
            command: vec!["a".to_owned()],
            env: BTreeMap::from([("A".to_owned(), "b=c".to_owned())]),
            mounts: vec![MountEntry { source: "/a".into(), target: "/b".into(), read_only: true }],
            capabilities: vec!["NET_RAW".to_owned()],
            limits: LimitsEntry { memory: Some(1), cpus: Some(0.5), pids: Some(2) },
            network: Some(serde_json::json!({ "preset": "public-only" })),
            network_flags: vec![FlagItem::Strict(false), FlagItem::Allow("a.example".to_owned()), FlagItem::NoIpv6],
            ipv6: Some(false),
            no_record: true,
            ..NamedSpec::default()
        };
        assert_eq!(NamedSpec::parse(spec.to_json().as_bytes()).unwrap(), spec);
        assert_eq!(NamedSpec::parse(b"{}").unwrap(), NamedSpec { v: VERSION, ..NamedSpec::default() });
    }

    #[test]
    fn another_policy_leaves_the_rest() {
        let flags = |texts: &[&str]| texts.iter().map(|text| FlagItem::Allow((*text).to_owned())).collect::<Vec<_>>();
        let others = [FlagItem::MaxConnections(7), FlagItem::Publish("8080:80".to_owned()), FlagItem::Mtu(9000)];
        let network_flags = [flags(&["a.example"]), others.to_vec()].concat();
        let network = Some(serde_json::json!({ "max_udp_connections": 3 }));
        let before = NamedSpec { network, network_flags, ipv6: Some(true), user: Some(7), ..NamedSpec::default() };
        let after = before.with_policy(&flags(&["b.example"]), None).unwrap();
        assert_eq!(after.user, Some(7));
        let (old, new) = (before.network().unwrap(), after.network().unwrap());
        assert_eq!((&new.limits, &new.ports, &new.interface), (&old.limits, &old.ports, &old.interface));
        assert_eq!(new.policy, file::from_flags(&flags(&["b.example"])).unwrap().policy);
        // It is read again as it is written, also without a network and back.
        assert_eq!(NamedSpec::parse(after.to_json().as_bytes()).unwrap(), NamedSpec { v: VERSION, ..after.clone() });
        // It has a port, which is there still and lets nobody in.
        let closed = after.with_policy(&[FlagItem::NoNet], None).unwrap().network().unwrap();
        assert_eq!(closed.ports, old.ports);
        assert!(closed.enabled && closed.policy.rules.is_empty());
        assert_eq!((closed.policy.default_egress, closed.policy.default_ingress), (Action::Deny, Action::Deny));
        let unpublished = NamedSpec { network_flags: vec![FlagItem::MaxConnections(7)], ..NamedSpec::default() };
        let none = unpublished.with_policy(&[FlagItem::NoNet], None).unwrap();
        let off = NamedSpec::parse(none.to_json().as_bytes()).unwrap().network().unwrap();
        assert!(!off.enabled);
        assert_eq!(off.limits.max_connections, 7);
        let on = none.with_policy(&flags(&["b.example"]), None).unwrap().network().unwrap();
        assert!(on.enabled && on.limits.max_connections == 7);
    }

    #[test]
    fn another_policy_stays_within_the_ceilings() {
        let allowed = |name: &str| file::from_flags(&[FlagItem::Allow(name.to_owned())]).unwrap();
        let ceiling = |name: &str| PolicyLayer {
            layer: Layer::Floor,
            policy: allowed(name).policy,
            deny_doh: None,
            rebind_protection: true,
        };
        let network = NetworkConfig { ceilings: vec![ceiling("a.example")], ..allowed("a.example") };
        let before = NamedSpec::default().with_network(&network).unwrap();
        let after = before.with_policy(&[FlagItem::Allow("b.example".to_owned())], None).unwrap();
        let after = after.network().unwrap();
        assert_eq!(after.policy, allowed("b.example").policy);
        assert_eq!(after.ceilings, [ceiling("a.example")]);
    }

    #[test]
    fn what_cannot_become_a_sandbox_is_refused() {
        for json in [
            r#"{"project": "here"}"#,
            r#"{"workdir": "here"}"#,
            r#"{"mounts": [{"source": "a", "target": "/b"}]}"#,
            r#"{"mounts": [{"source": "/a", "target": "b"}]}"#,
            r#"{"capabilities": ["FLY"]}"#,
            r#"{"env": {"A=": "b"}}"#,
            r#"{"env": {"": "b"}}"#,
            r#"{"network": {"rules": ["alow@any"]}}"#,
            r#"{"network": {"more": 1}}"#,
            r#"{"network_flags": [{"fly": "x"}]}"#,
            r#"{"more": 1}"#,
            r#"{"v": 0}"#,
            "[]",
            "",
        ] {
            assert!(NamedSpec::parse(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn a_run_is_read_and_what_cannot_become_one_is_refused() {
        let run =
            RunSpec::parse(br#"{"command": ["a"], "timeout_ms": 5, "mode": "check", "network": {"preset": "none"}}"#);
        let run = run.unwrap();
        assert_eq!((run.timeout(), run.mode), (Some(Duration::from_millis(5)), Mode::Check));
        assert!(run.network().unwrap().is_some_and(|network| !network.enabled));
        let plain = RunSpec::parse(br#"{"command": ["a"]}"#).unwrap();
        assert_eq!((plain.network().unwrap(), plain.mode, plain.timeout()), (None, Mode::Clip, None));
        for json in [
            r#"{}"#,
            r#"{"command": []}"#,
            r#"{"command": ["a"], "timeout_ms": 0}"#,
            r#"{"command": ["a"], "env": {"A=": "b"}}"#,
            r#"{"command": ["a"], "mode": "open"}"#,
            r#"{"command": ["a"], "network": {"rules": ["alow@any"]}}"#,
            r#"{"command": ["a"], "more": 1}"#,
            r#"{"command": ["a"], "v": 2}"#,
            r#"[["a"]]"#,
        ] {
            assert!(RunSpec::parse(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_network_is_behind_the_error() {
        let error = NamedSpec::parse(br#"{"network": {"rules": ["alow@any"]}}"#).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("alow"), "{source}");
    }
}
