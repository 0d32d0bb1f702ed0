//! Isolation by Linux namespaces: what the program of a sandbox sees, and the processes around it.

mod builder;
mod check;
mod error;
mod etc;
mod filter;
mod gateway;
mod identity;
mod init;
mod limits;
mod place;
mod plan;
mod program;
mod project;
mod remedy;
mod resolve;
mod run;
mod spec;
mod wire;

pub use cofferdam_sys::confine::Capability;
pub use error::{LaunchError, ProjectError, Role};
pub use project::check_project;
pub use resolve::{ResolveError, open_directory, resolve, writable_roots};
pub use run::{Observer, Running, launch};
pub use spec::{
    GatewayEnd, GatewayFate, Mount, NetworkSpec, Outcome, Place, ResolverFile, ResourceLimits, SandboxSpec, Status,
    Terminal,
};
