//! Isolation by a virtual machine: QEMU in a sandbox of namespaces, behind the same gateway.
//!
//! | Module | Is |
//! |---|---|
//! | [`arguments`] | pure: what QEMU is started with |
//! | [`qmp`] | pure: QEMU's own protocol |
//! | `image` | pure: what the first bytes of a disk's image tell |
//! | `accounts` | pure: who is known in a root of somebody's own |
//! | `accelerator` | whether KVM works on this host |
//! | `files` | the server of the directories that a guest is shown over its network |
//! | `virtiofsd` | the programs that each serve one of them by a device |
//! | `launch` | from a sandbox's specification to the sandbox that QEMU is in |
//! | `slirp` | QEMU's own network in place of a gateway, for hosts without user namespaces |
//! | `monitor` | the process in that sandbox which starts QEMU and speaks with the guest |
//! | `calling` | the process of a run in a machine that stays, which has a line to the monitor |
//! | `switchboard` | pure: between those and the agent in the guest |
//!
//! Where the parts are and what may fail is in `docs/design/0009-vm.md`.

mod accelerator;
mod accounts;
pub mod arguments;
mod calling;
mod console;
mod files;
mod image;
mod kit;
mod launch;
mod monitor;
mod process;
pub mod qmp;
mod relay;
mod slirp;
mod switchboard;
mod virtiofsd;

pub use cofferdam_smb::MOST_SHARES;

pub use accelerator::{Cache, Choice, Wish};
pub use kit::{Kit, KitError};
pub use launch::{
    DEFAULT_MEMORY, Options, Progress, Sharing, check, cpus, launch, launch_calling, launch_staying, probe,
    root_source, shown,
};
pub use slirp::{Engine, Slirp, check_engine};
pub use virtiofsd::{Virtiofsd, VirtiofsdError};
