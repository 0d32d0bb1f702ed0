use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use crate::ResolveError;

/// Why a directory cannot be the project directory.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    #[error("{path} would be writable in the sandbox, and with it every file of the machine; change to a project directory or use --no-cwd", path = path.display())]
    Root { path: PathBuf },
    #[error("{path} holds the home directory {home}: keys, shell start-up files and everything else there would be writable in the sandbox; change to a project directory or use --no-cwd", path = path.display(), home = home.display())]
    Home { path: PathBuf, home: PathBuf },
    #[error("{path} is part of the system, which the sandbox shows in its own way; change to a project directory or use --no-cwd", path = path.display())]
    System { path: PathBuf },
    #[error("cannot use {path} as the project directory", path = path.display())]
    Unusable { path: PathBuf, source: io::Error },
}

impl From<ResolveError> for LaunchError {
    fn from(error: ResolveError) -> Self {
        Self::Spec(error.to_string())
    }
}

/// Why a sandbox did not start. The program has not run when this is returned.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The specification contradicts itself.
    #[error("{0}")]
    Spec(String),
    #[error(transparent)]
    Project(#[from] ProjectError),
    /// The sandbox was ready and the program could not be executed.
    #[error("cannot execute {command:?}{hint}")]
    Exec { command: OsString, hint: String, source: io::Error },
    /// A step of the start failed.
    #[error("{role} could not {step}{remedy}")]
    Step { role: Role, step: String, remedy: String, source: io::Error },
    /// The virtual machine did not start.
    #[error("the virtual machine did not start: {0}")]
    Guest(String),
    /// A process of ours ended during the start.
    #[error("{role} ended unexpectedly while the sandbox was being started ({how})")]
    Died { role: Role, how: String },
}

impl LaunchError {
    /// The exit status a command line gives for this error: 125 for a sandbox that could not be set up, 127 for a
    /// program that was not found, 126 for one that cannot be executed.
    #[must_use]
    pub fn exit_status(&self) -> i32 {
        match self {
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Exec { .. } => 126,
            Self::Spec(_) | Self::Project(_) | Self::Step { .. } | Self::Guest(_) | Self::Died { .. } => 125,
        }
    }
}

/// The processes of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Supervisor,
    Builder,
    Gateway,
    Capture,
    Init,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Supervisor => "the supervisor",
            Self::Builder => "the builder",
            Self::Gateway => "the gateway",
            Self::Capture => "the capture of packets",
            Self::Init => "the sandbox's pid 1",
        })
    }
}
