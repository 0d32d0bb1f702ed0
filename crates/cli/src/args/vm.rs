//! The command line of `cofferdam vm`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum VmVerb {
    /// Put a kernel, its modules, busybox and the agent where virtual machines start from.
    #[command(after_long_help = SETUP_EXAMPLES)]
    Setup(VmSetupArgs),
}

const SETUP_EXAMPLES: &str = "\
Examples:
  # Debian's cloud kernel, fetched with apt-get; nothing is installed, and no root is needed.
  cofferdam vm setup
  # A package that is here already.
  cofferdam vm setup --from-deb linux-image-6.1.0-28-cloud-amd64_6.1.119-1_amd64.deb
  # A kernel of your own, with its modules.
  cofferdam vm setup --kernel /boot/vmlinuz-6.12.0 --modules /lib/modules/6.12.0

Exit status: 0 when machines can start, 1 when not; then nothing has changed.";

#[derive(Debug, Args)]
pub(crate) struct VmSetupArgs {
    /// Take this kernel.
    #[arg(long, value_name = "FILE", conflicts_with = "from_deb")]
    pub kernel: Option<PathBuf>,
    /// Take the kernel's modules from here; without it everything has to be built into the kernel.
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub modules: Option<PathBuf>,
    /// Take kernel and modules out of this Debian package.
    #[arg(long, value_name = "FILE")]
    pub from_deb: Option<PathBuf>,
    /// Take this busybox, which has to be linked statically.
    #[arg(long, value_name = "FILE")]
    pub busybox: Option<PathBuf>,
    /// Take this agent instead of the one beside this program.
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
    /// For machines with this kind of processor.
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<ArchitectureWord>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArchitectureWord {
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    #[value(alias = "arm64")]
    Aarch64,
}
