//! Isolation by Linux namespaces: what the program of a sandbox sees, and the processes around it.

mod error;
mod project;
mod run;
mod spec;

pub use cofferdam_sys::confine::Capability;
pub use error::{LaunchError, ProjectError, Role};
pub use project::check_project;
pub use run::{Running, launch};
pub use spec::{
    GatewayEnd, GatewayFate, Mount, NetworkSpec, Outcome, Place, ResourceLimits, SandboxSpec, Status, Terminal,
};
