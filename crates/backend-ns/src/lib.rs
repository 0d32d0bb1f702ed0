//! Isolation by Linux namespaces: what the program of a sandbox sees, and the processes around it.

mod bare;
mod builder;
mod capture;
mod check;
mod devices;
mod enter;
mod error;
mod etc;
mod filter;
mod gateway;
mod handles;
mod identity;
mod init;
mod inspect;
mod limits;
mod monitor;
mod place;
mod plan;
mod program;
mod project;
mod remedy;
mod resolve;
mod run;
mod spec;
mod tree;
mod wire;

pub use capture::CaptureFile;
pub use cofferdam_sys::confine::Capability;
pub use error::{LaunchError, ProjectError, Role};
pub use handles::{Attachment, HANDLE_COUNT, Handles};
pub use init::OwnProgram;
pub use inspect::{Inspector, Transport};
pub use monitor::{DeviceServer, Monitor, Post, Request, ServerPlace, ShareChange, ShareNews};
pub use project::check_project;
pub use resolve::{ResolveError, open_directory, resolve, writable_roots};
pub use run::{
    Observer, Order, Running, ShareAnswer, ShareOrder, launch, launch_calling, launch_empty, launch_inside,
    launch_monitored, launch_staying,
};
pub use spec::{
    DiskFull, GatewayEnd, GatewayFate, Mount, NetworkSpec, Outcome, Place, ResolverFile, ResourceLimits, SandboxSpec,
    Sockets, Status, Terminal, View,
};
pub use tree::{TakeError, take_tree};
