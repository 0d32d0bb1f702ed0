//! Sandboxes that stay: a name, a place in the state directory, and a *keeper* that holds them while they run.
//!
//! | Part | Is |
//! |---|---|
//! | [`Registry`] | the state directory: who is there, and who is alive ([`registry`](self) has the rules) |
//! | [`SandboxSpec`](NamedSpec) | what was asked for, as it is kept and as it goes to runs |
//! | keeper | the supervisor of one sandbox without an end: [`start`] makes it, and it listens on the control socket |
//! | [`Session::exec`] | one run in a sandbox: the caller's own process supervises it, and the keeper only hands over what it takes |
//!
//! The state directory, `sandboxes/NAME/` beneath it (0700):
//!
//! | Entry | Is |
//! |---|---|
//! | `sandbox.json` | the specification, written once |
//! | `lock` | held (`flock`) by the keeper for as long as it lives: alive means locked, whatever is written anywhere |
//! | `control` | the keeper's socket |
//! | `log`, `log.1` | what the main command and the keeper wrote; the older part |
//! | `ended.json` | how the last main command ended |
//! | `home`, `tmp`, `vartmp` | what the sandbox keeps |

mod client;
mod exec;
mod keeper;
mod mounts;
mod narrow;
pub(crate) mod protocol;
mod published;
mod registry;
mod spec;
mod told;

pub(crate) use client::{FOR_A_POLICY, LATE, PATIENCE};
pub use client::{
    Inspected, RunInfo, add_mount, enter, inspect, ports, publish, remove_mount, set_policy, stop, withdraw,
};
pub use exec::{ExecOptions, Session};
pub(crate) use keeper::chain;
pub use keeper::{Kept, start};
pub(crate) use narrow::enforced;
pub use narrow::{Mode, NarrowError};
pub(crate) use registry::is_control_socket;
pub use registry::{Entry, Locked, NamedError, Registry, SandboxName, State};
pub use spec::{BackendEntry, LimitsEntry, MountEntry, NamedSpec, RunSpec, SharingEntry, SpecError};
