//! What a sandbox that stays is made from, as it is kept.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cofferdam_backend_ns::{Capability, Mount, ResourceLimits};
use cofferdam_model::NetworkConfig;
use cofferdam_policy::file::{self, ConfigErrors, FlagItem};
use serde::{Deserialize, Serialize};

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

/// Why a specification cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("it is no specification of a sandbox: {0}")]
    Json(String),
    #[error("it has version {0}, and this program knows {VERSION}")]
    Version(u32),
    #[error("its network cannot be used")]
    Network(ConfigErrors),
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
        let wrong = |error: serde_json::Error| SpecError::Json(error.to_string());
        // An object and nothing else: a list of nothing would be one as well, with every field left out.
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json).map_err(wrong)?;
        let spec: NamedSpec = serde_json::from_value(object.into()).map_err(wrong)?;
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
        let file = self.network.as_ref().map(|network| FlagItem::Conf {
            name: "sandbox.json".to_owned(),
            text: serde_json::json!({ "network": network }).to_string(),
        });
        let items: Vec<FlagItem> = file.into_iter().chain(self.network_flags.iter().cloned()).collect();
        let mut network = file::from_flags(&items).map_err(SpecError::Network)?;
        if self.ipv6.is_some() {
            network.interface.ipv6 = self.ipv6;
        }
        Ok(network)
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
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(SpecError::Environment(name.clone()));
            }
        }
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
                timeout: None,
            },
            ..RunOptions::new(command, self.network()?)
        })
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

#[cfg(test)]
mod tests {
    use super::*;

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
            ..NamedSpec::default()
        };
        assert_eq!(NamedSpec::parse(spec.to_json().as_bytes()).unwrap(), spec);
        assert_eq!(NamedSpec::parse(b"{}").unwrap(), NamedSpec { v: VERSION, ..NamedSpec::default() });
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
}
