//! From options to a running sandbox, and sandboxes that stay; for a process with one thread, since it forks. Programs use
//! `cofferdam-client`, which has any number.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use cofferdam_control::{EventLog, RunOptions, Sandbox, VmOptions, policy_text};
//!
//! let network = cofferdam_policy::file::default_network();
//! let options = RunOptions { env: vec![("PATH".into(), "/usr/bin:/bin".into())], ..RunOptions::new(vec!["id".into()], network) };
//! let finished = Sandbox::prepare(options)?.run(&mut EventLog::none(), &mut |text| eprintln!("{text}"))?;
//! println!("exit status {}", finished.exit_status);
//! # Ok(())
//! # }
//! ```

/// Virtual machines as QEMU is told of them.
pub mod vm {
    pub use cofferdam_backend_vm::arguments::{
        Accelerator, Access, Architecture, Network, PortForward, Reach, Root, Share, SharedDevice, Vm,
    };
    pub use cofferdam_backend_vm::{DEFAULT_MEMORY, cpus, root_source};
}

mod attribution;
pub mod change;
pub mod environment;
mod events;
mod host;
mod host_sockets;
pub mod named;
pub mod ports;
mod remove;
mod report;
mod resolvers;
mod sandbox;
pub mod slot;
mod state;
pub mod store;

pub use cofferdam_backend_ns::{
    Capability, LaunchError, Mount, OwnProgram, ProjectError, ResolveError, ResourceLimits, Status, Terminal,
    check_project, open_directory, resolve, writable_roots,
};
pub use cofferdam_backend_vm::{
    Choice, Engine, Kit, KitError, Progress, Sharing, Slirp, Virtiofsd, VirtiofsdError, Wish,
};
pub use cofferdam_evidence::summary;
pub use events::EventLog;
#[cfg(feature = "otlp")]
pub use events::otlp;
pub use host::Host;
pub use host_sockets::ShareError;
pub use report::{ReportError, connect_report, create_report};
pub use sandbox::{
    Backend, DEFAULT_UID, EXIT_DENIED, EXIT_SETUP, Finished, HOST_ALIASES, RunError, RunOptions, Sandbox, VmOptions,
    policy_text,
};
pub use state::{StateError, check_guests, check_hidden, make_guests};
