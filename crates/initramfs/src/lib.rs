//! What a virtual machine starts with, as bytes.
//!
//! The kernel unpacks a row of archives into its first root (`Documentation/driver-api/early-userspace/buffer-format.rst`): the one
//! that `cofferdam vm setup` makes once, with the agent, the modules and busybox; and behind it the one of this boot, which has the
//! token that the agent and the host know each other by. Neither is on a command line, which others on the host can read.

mod cpio;
mod elf;
mod modules;

pub use cpio::{Archive, ArchiveError};
pub use elf::{Architecture, ExecutableError, check_executable};
pub use modules::{Group, ModuleError, ModuleInfo, Modules};

/// Where the agent finds what is its own.
pub const DIRECTORY: &str = "cofferdam";
/// The token of this boot, in [`DIRECTORY`].
pub const TOKEN: &str = "token";
/// The list of modules, in [`DIRECTORY`]: a line for each, `GROUP FILE`, in the order of loading.
pub const MODULE_LIST: &str = "modules";

/// The archive of one boot. It goes behind the machine's own, padded with [`padding`].
#[must_use]
pub fn boot_archive(token: &[u8]) -> Vec<u8> {
    let mut archive = Archive::new();
    let made =
        archive.directory(DIRECTORY, 0o700).and_then(|()| archive.file(&format!("{DIRECTORY}/{TOKEN}"), 0o400, token));
    debug_assert!(made.is_ok(), "names and sizes are within bounds");
    archive.finish()
}

/// The zeros that go between an archive of this length and the next, which the kernel looks for at a multiple of four.
#[must_use]
pub fn padding(length: usize) -> &'static [u8] {
    [&[][..], &[0, 0, 0], &[0, 0], &[0]].get(length % 4).copied().unwrap_or_default()
}
