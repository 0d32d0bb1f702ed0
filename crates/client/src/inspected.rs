//! What there is to see of a sandbox.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

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

/// A file or directory of this machine that a sandbox is shown.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Mounted {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
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
