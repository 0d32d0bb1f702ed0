//! The verbs of sandboxes that stay.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{EvidenceArgs, LimitArgs, NetworkArgs, NetworkLimitArgs, PlaceArgs};
use crate::units;

pub(crate) const CREATE_EXAMPLES: &str = "\
Examples:
  # A sandbox for a session: its files stay, and exec runs commands in it.
  cofferdam create work --allow @pypi
  cofferdam exec work -- pip install requests
  # With a main command, whose output is in `cofferdam logs`.
  cofferdam create web --net public,host -- ./server
  # From a program: the specification as JSON.
  echo '{\"network\": {\"preset\": \"none\"}}' | cofferdam create --json --spec - job

Exit status: 0 when it runs; 125 when it could not be set up; 126 and 127 as in
a shell when its main command could not be executed.";

pub(crate) const EXEC_EXAMPLES: &str = "\
Examples:
  cofferdam exec work -- make test
  cofferdam exec -t work bash
  # With less network than the session: nothing, or these alone.
  cofferdam exec --no-net work -- ./untrusted
  cofferdam exec --allow pypi.org --mode check work -- pip download requests

Without options of the network a run has the session's. With them it has what
both allow, and a loopback of its own.

Exit status: as of `cofferdam run`.";

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name: lower-case letters, digits, dots, dashes, underscores.
    #[arg(value_name = "NAME", hide_short_help = true)]
    pub name: String,
    /// The main command; the sandbox ends with it.
    #[arg(last = true, value_name = "CMD", hide_short_help = true)]
    pub command: Vec<OsString>,
    /// Read the whole specification from a JSON file; - is stdin.
    #[arg(
        long, value_name = "FILE", hide_short_help = true,
        conflicts_with_all = ["command", "no_record", "NetworkArgs", "LimitArgs", "NetworkLimitArgs", "PlaceArgs"]
    )]
    pub spec: Option<PathBuf>,
    /// Keep nothing of what its network reports for `cofferdam log`.
    #[arg(long, hide_short_help = true)]
    pub no_record: bool,
    /// Do not start it.
    #[arg(long, hide_short_help = true)]
    pub no_start: bool,
    /// Print what was made, or why nothing was, as JSON.
    #[arg(long, hide_short_help = true)]
    pub json: bool,
    #[command(flatten)]
    pub network: NetworkArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub network_limits: NetworkLimitArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The sandbox.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Print what was started, or why nothing was, as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The sandbox.
    #[arg(value_name = "NAME", hide_short_help = true)]
    pub name: String,
    /// The program and its arguments.
    #[arg(required_unless_present = "spec", trailing_var_arg = true, value_name = "CMD", hide_short_help = true)]
    pub command: Vec<OsString>,
    /// Read the run from a JSON file: command, env, workdir, timeout_ms, network, mode, fail_on_deny; - is stdin.
    #[arg(
        long, value_name = "FILE", hide_short_help = true,
        conflicts_with_all = ["command", "mode", "timeout", "workdir", "env", "env_pass", "fail_on_deny", "NetworkArgs"]
    )]
    pub spec: Option<PathBuf>,
    /// Write how the run goes to descriptor N, as JSON lines: started; then ended, or failed.
    ///
    /// Standard output and error are the program's alone then, but for notices, which --quiet keeps away. Whoever asks for
    /// the report has to read it.
    #[arg(long, value_name = "N", hide_short_help = true, conflicts_with = "json", value_parser = clap::value_parser!(u32).range(3..))]
    pub report_fd: Option<u32>,
    /// What happens when the run asks for more network than the session has.
    #[arg(long, value_name = "MODE", default_value = "clip", hide_short_help = true)]
    pub mode: ModeWord,
    /// End the program after this time (30s, 5m, 1h30m).
    #[arg(long, value_name = "TIME", value_parser = units::duration, hide_short_help = true)]
    pub timeout: Option<Duration>,
    /// Where the program starts. Default: where those of the sandbox do.
    #[arg(short = 'w', long, value_name = "DIR", hide_short_help = true)]
    pub workdir: Option<PathBuf>,
    /// Set a variable, over those of the sandbox.
    #[arg(short = 'e', long = "env", value_name = "K=V")]
    pub env: Vec<OsString>,
    /// Hand over a variable of the caller.
    #[arg(long, value_name = "K", hide_short_help = true)]
    pub env_pass: Vec<OsString>,
    /// Give the program a terminal. Automatic when stdin and stdout are one.
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Print an error of the setup as JSON.
    #[arg(long, hide_short_help = true)]
    pub json: bool,
    #[command(flatten)]
    pub network: NetworkArgs,
    #[command(flatten)]
    pub evidence: EvidenceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// The sandboxes.
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// What its runs have between TERM and their end.
    #[arg(long, value_name = "TIME", value_parser = units::duration_or_none, default_value = "10s")]
    pub time: Duration,
    /// Print a list of what became of each, as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The sandboxes.
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// Also one that runs, which is ended at once.
    #[arg(short, long)]
    pub force: bool,
    /// Print a list of what became of each, as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Print them as JSON.
    #[arg(long)]
    pub json: bool,
    /// Names alone, one a line.
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The sandbox.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

pub(crate) const CP_EXAMPLES: &str = "\
Examples:
  cofferdam cp data.csv work:/tmp
  cofferdam cp work:/home/user/result .
  cofferdam cp work:/home/user/result - | tar t
  tar c src | cofferdam cp - work:/home/user

A directory is copied with everything in it. Where a directory is at the
destination, the copy comes into it; where nothing is, it gets that name. Links
are copied as links; out of a sandbox only those that stay within the copy.
Devices, FIFOs and sockets are left out.";

pub(crate) const POLICY_SET_EXAMPLES: &str = "\
Examples:
  cofferdam policy set work --allow @pypi --allow 10.0.0.5:5432
  cofferdam policy set work cofferdam.toml
  cofferdam policy set work --no-net
  cofferdam policy set last --allow example.org

The rules that were there are replaced, with their defaults and modes. Limits and
resolvers stay as they are unless they are named. Connections that the new rules
do not allow are ended, the others do not notice; so it is for runs with rules of
their own, which stay within. It holds over stop and start. Addresses of the link
change with the next start; so do resolvers over TLS, or given by name.

A run that is no sandbox's is named by its id in `cofferdam log`, and keeps the
policy to its end.

Exit status: 0 when it is in force everywhere, 1 when nothing was changed.";

#[derive(Debug, Args)]
pub(crate) struct PolicySetArgs {
    /// The sandbox; or a run that goes on, by its id, one end of it, or `last`.
    #[arg(value_name = "NAME", hide_short_help = true)]
    pub name: String,
    /// A TOML, JSON or YAML file, as of --net-conf; - reads TOML or JSON from stdin.
    #[arg(value_name = "FILE", conflicts_with = "net_conf", hide_short_help = true)]
    pub file: Option<PathBuf>,
    /// Print what became of it as JSON.
    #[arg(long, hide_short_help = true)]
    pub json: bool,
    #[command(flatten)]
    pub network: NetworkArgs,
    #[command(flatten)]
    pub limits: NetworkLimitArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PortsVerb {
    /// Publish ports of a running sandbox.
    #[command(
        after_long_help = "Examples:\n  cofferdam ports add web 8080:80\n  cofferdam ports add web 0.0.0.0:53:53/udp 0:22"
    )]
    Add(PortsChangeArgs),
    /// Withdraw ports of a running sandbox; their connections go on.
    #[command(after_long_help = "Examples:\n  cofferdam ports rm web 8080\n  cofferdam ports rm web 127.0.0.1:53/udp")]
    Rm(PortsChangeArgs),
    /// List the published ports of a running sandbox.
    #[command(
        after_long_help = "Examples:\n  cofferdam ports ls web\n  cofferdam ports ls --json web | jq '.[].host_port'"
    )]
    Ls(PortsLsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PortsChangeArgs {
    /// The sandbox.
    #[arg(value_name = "NAME")]
    pub name: String,
    // Not a doc comment: rustdoc takes the brackets for links.
    #[arg(
        value_name = "PORT",
        required = true,
        help = "To add: [BIND:]HOST:GUEST[/udp]; to remove: [BIND:]HOST[/udp]"
    )]
    pub ports: Vec<String>,
    /// Print the ports that have changed as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PortsLsArgs {
    /// The sandbox.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Print them as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MountVerb {
    /// Mount a directory of the host in a virtual machine, at once when it runs.
    #[command(after_long_help = MOUNT_ADD_EXAMPLES)]
    Add(MountAddArgs),
    /// Take a mount of a virtual machine away, at once when it runs.
    #[command(after_long_help = MOUNT_RM_EXAMPLES)]
    Rm(MountRmArgs),
    /// List the mounts of a sandbox.
    #[command(
        after_long_help = "Examples:\n  cofferdam mount ls work\n  cofferdam mount ls --json work | jq '.[].target'"
    )]
    Ls(MountLsArgs),
}

const MOUNT_ADD_EXAMPLES: &str = "\
Examples:
  cofferdam mount add work ./data:/data
  cofferdam mount add work /srv/models:/models:ro

It is there for programs that run already, and holds over stop and start. Whole
directories alone, in machines with a network, beside the mounts that there are.
A sandbox that is stopped has it from its next start on: there also one of
namespaces, and a machine without a network.

Exit status: 0 when the guest has mounted it, 1 when it is shown nothing new.";

const MOUNT_RM_EXAMPLES: &str = "\
Examples:
  cofferdam mount rm work /data

The guest writes what it has yet to write, and unmounts it. Whether it does or
not, from then on the host shows it nothing there, and programs that use it
still get errors. A sandbox that is stopped, also one of namespaces, starts
without it.

Exit status: 0 when it is gone, 1 when the guest has it mounted still, or
nothing was changed; the message says which.";

#[derive(Debug, Args)]
pub(crate) struct MountAddArgs {
    /// The sandbox.
    #[arg(value_name = "NAME")]
    pub name: String,
    // Not a doc comment: rustdoc takes the brackets for links.
    #[arg(value_name = "MOUNT", value_parser = units::mount, help = "The directory and its place: SRC:DST[:ro]")]
    pub mount: units::MountSpec,
    /// Print a list with what was mounted as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MountRmArgs {
    /// The sandbox.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Where it is mounted inside.
    #[arg(value_name = "DST")]
    pub target: PathBuf,
    /// Print an empty list, or why it is not gone, as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MountLsArgs {
    /// The sandbox.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Print them as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// A path, NAME:PATH in a running sandbox, or - for a tar archive on stdin.
    #[arg(value_name = "SRC")]
    pub from: OsString,
    /// The same; - for a tar archive on stdout. One of both is in a sandbox.
    #[arg(value_name = "DST")]
    pub to: OsString,
    /// Say what was left out and what went wrong as JSON lines, on stderr.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The sandbox.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Go on until the sandbox ends.
    #[arg(short, long)]
    pub follow: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeWord {
    /// Refuse, and name a flow.
    Check,
    /// Give what both allow, and say what was asked for besides.
    Clip,
}
