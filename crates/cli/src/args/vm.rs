//! The command line of `cofferdam vm`.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};

use super::SharingWord;
use crate::units;

#[derive(Debug, Subcommand)]
pub(crate) enum VmVerb {
    /// Put a kernel, its modules, busybox and the agent where virtual machines start from.
    #[command(after_long_help = SETUP_EXAMPLES)]
    Setup(VmSetupArgs),
    /// Print what QEMU would be started with, and start nothing.
    #[command(
        after_long_help = "Examples:\n  cofferdam vm args --mode full -p 8080:80\n  cofferdam vm args --engine slirp --mode mounts-only --json\n\nThe descriptors 3, 4 and 5 stand for the agent's channel, QMP and the link to the gateway, and those from 6 on for who serves a directory by virtiofs."
    )]
    Args(Box<VmArgsArgs>),
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

#[derive(Debug, Args)]
pub(crate) struct VmArgsArgs {
    /// What the guest's network card is connected to: a gateway, or QEMU's own network.
    #[arg(long, value_name = "ENGINE", default_value = "gateway")]
    pub engine: EngineWord,
    /// No network, what is mounted and the ports that lead in, or everything.
    #[arg(long, value_name = "MODE", default_value = "mounts-only")]
    pub mode: ModeOfVm,
    /// Lead a TCP port of 127.0.0.1 to a port of the guest. More than once if wanted.
    #[arg(short = 'p', long, value_name = "HOST:GUEST", value_parser = units::port_pair)]
    pub publish: Vec<(u16, u16)>,
    /// Share a directory.
    #[arg(long, value_name = "SRC:DST[:ro]", value_parser = units::mount)]
    pub mount: Vec<units::MountSpec>,
    /// How they are shared: smb, over a network, 9p or virtiofs. Default: smb, and 9p without the engine gateway.
    #[arg(long, value_name = "WAY")]
    pub mount_via: Option<SharingWord>,
    /// The guest's root: a directory, or an image of a disk.
    #[arg(long, value_name = "DIR|IMAGE")]
    pub rootfs: Option<PathBuf>,
    /// A rule, which QEMU's own network has no place for.
    #[arg(long, value_name = "TARGET[:PORTS]", action = ArgAction::Append)]
    pub allow: Vec<String>,
    /// As --allow.
    #[arg(long, value_name = "TARGET[:PORTS]", action = ArgAction::Append)]
    pub deny: Vec<String>,
    /// As --allow.
    #[arg(long, value_name = "RULES", action = ArgAction::Append)]
    pub net_rule: Vec<String>,
    /// Memory: 512M, 2G.
    #[arg(short, long, value_name = "SIZE", value_parser = units::size)]
    pub memory: Option<u64>,
    /// Processors.
    #[arg(long, value_name = "N", value_parser = units::cpus)]
    pub cpus: Option<f32>,
    /// Another kernel than `cofferdam vm setup` has put in its place.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Another initramfs.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Which machine. Default: this host's.
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<ArchitectureWord>,
    /// Who executes the guest's instructions.
    #[arg(long, value_name = "ACCEL", default_value = "tcg")]
    pub accel: AcceleratorWord,
    /// Print a list of strings as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineWord {
    Gateway,
    Slirp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeOfVm {
    None,
    MountsOnly,
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcceleratorWord {
    Tcg,
    Kvm,
}
