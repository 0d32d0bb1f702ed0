//! The command line, as clap reads it. Every flag here does something; what is not built has no flag.

mod evidence;
mod named;
mod vm;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use cofferdam_control::Sharing;
use cofferdam_control::named::SharingEntry;

use crate::output;
use crate::refusal::Refusal;
use crate::units;

pub(crate) use evidence::{LearnArgs, LearnGroup, LogArgs, LogRmArgs, LogVerb, TopArgs, UiArgs, WhyArgs};
pub(crate) use named::{
    CpArgs, CreateArgs, ExecArgs, InspectArgs, LogsArgs, LsArgs, ModeWord, MountAddArgs, MountLsArgs, MountRmArgs,
    MountVerb, PolicySetArgs, PortsChangeArgs, PortsLsArgs, PortsVerb, RmArgs, StartArgs, StopArgs,
};

pub(crate) use vm::{AcceleratorWord, ArchitectureWord, EngineWord, ModeOfVm, VmArgsArgs, VmSetupArgs, VmVerb};

/// Runs untrusted programs in a sandbox whose only way to any network is a gateway that you control.
#[derive(Debug, Parser)]
#[command(
    name = "cofferdam",
    version,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Start with: cofferdam demo\nThen:       cofferdam run -- curl -sS https://example.com"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a program behind the gateway.
    #[command(after_help = "All options: cofferdam run --help", after_long_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Make a sandbox that stays.
    #[command(after_help = "All options: cofferdam create --help", after_long_help = named::CREATE_EXAMPLES)]
    Create(Box<CreateArgs>),
    /// Start a sandbox that stays and is stopped.
    #[command(after_long_help = "Examples:\n  cofferdam start work")]
    Start(StartArgs),
    /// Run a program in a sandbox that stays.
    #[command(after_help = "All options: cofferdam exec --help", after_long_help = named::EXEC_EXAMPLES)]
    Exec(Box<ExecArgs>),
    /// Stop sandboxes; their files stay.
    #[command(after_long_help = "Examples:\n  cofferdam stop work\n  cofferdam stop --time 0s work web")]
    Stop(StopArgs),
    /// Remove sandboxes with their files.
    #[command(after_long_help = "Examples:\n  cofferdam rm work\n  cofferdam rm --force $(cofferdam ls --quiet)")]
    Rm(RmArgs),
    /// List the sandboxes that stay.
    #[command(
        after_long_help = "Examples:\n  cofferdam ls\n  cofferdam ls --json | jq '.[] | select(.state == \"running\") | .name'"
    )]
    Ls(LsArgs),
    /// Show a sandbox that stays, and what runs in it.
    #[command(after_long_help = "Examples:\n  cofferdam inspect work\n  cofferdam inspect --json work | jq .runs")]
    Inspect(InspectArgs),
    /// Publish and withdraw ports of a sandbox that runs.
    #[command(subcommand)]
    Ports(PortsVerb),
    /// Show a virtual machine that runs more of the host, and less.
    #[command(subcommand)]
    Mount(MountVerb),
    /// Copy files into a sandbox that stays, or out of it.
    #[command(after_long_help = named::CP_EXAMPLES)]
    Cp(CpArgs),
    /// Show what a main command has written.
    #[command(after_long_help = "Examples:\n  cofferdam logs web\n  cofferdam logs --follow web")]
    Logs(LogsArgs),
    /// Show which runs there were, and what was decided in one.
    #[command(after_help = "All options: cofferdam log --help", after_long_help = evidence::LOG_EXAMPLES)]
    Log(LogArgs),
    /// Show sandboxes and runs as they go on, on a page in your browser.
    #[command(after_long_help = evidence::UI_EXAMPLES)]
    Ui(UiArgs),
    /// Explain a decision, and say what would change it.
    #[command(after_help = "All options: cofferdam why --help", after_long_help = evidence::WHY_EXAMPLES)]
    Why(Box<WhyArgs>),
    /// Run a program, and write the policy that it needs.
    #[command(after_help = "All options: cofferdam learn --help", after_long_help = evidence::LEARN_EXAMPLES)]
    Learn(Box<LearnArgs>),
    /// Watch runs as they go on, and allow or deny where they go.
    #[command(after_long_help = evidence::TOP_EXAMPLES)]
    Top(TopArgs),
    /// Show in a closed world, offline, what a sandbox lets through.
    #[command(
        after_long_help = "Examples:\n  cofferdam demo\n  cofferdam demo --backend vm\n  cofferdam demo --json | jq '.[].rows'"
    )]
    Demo(DemoArgs),
    /// Check what the kernel has to offer, by doing it.
    #[command(
        after_long_help = "Examples:\n  cofferdam doctor\n  cofferdam doctor --prove      # watch every way out being stopped"
    )]
    Doctor(DoctorArgs),
    /// Check and format rules.
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// What virtual machines are made from.
    #[command(subcommand)]
    Vm(VmVerb),
    /// Print the JSON Schema of a file or stream.
    #[command(
        after_long_help = "Examples:\n  cofferdam schema policy > cofferdam.schema.json\n  cofferdam schema event"
    )]
    Schema(SchemaArgs),
    /// Print a completion script for a shell.
    #[command(
        after_long_help = "Examples:\n  cofferdam completions bash > ~/.local/share/bash-completion/completions/cofferdam\n  cofferdam completions fish > ~/.config/fish/completions/cofferdam.fish"
    )]
    Completions(CompletionsArgs),
    /// Print the version.
    #[command(after_long_help = "Examples:\n  cofferdam version\n  cofferdam version --json")]
    Version(VersionArgs),
    /// The small client that `demo` and `doctor --prove` run in their sandboxes.
    #[command(hide = true)]
    InternalClient(crate::client::ClientArgs),
    /// The file server of one connection of a virtual machine.
    #[command(hide = true)]
    SmbServe(crate::smb::SmbServeArgs),
}

const RUN_EXAMPLES: &str = "\
Examples:
  # The public internet; your LAN and this machine are out of reach.
  cofferdam run -- curl -sS https://example.com
  # Only what is named: any --allow without --net does that.
  cofferdam run --allow api.github.com -- gh api user
  cofferdam run --allow @pypi --allow 10.0.0.5:5432 -- ./ci.sh
  # Nothing at all.
  cofferdam run --no-net -- make test
  # This machine's services as well, as host.cofferdam.internal.
  cofferdam run --net public,host -- ./client
  # A server inside, reached at port 8080 of this machine.
  cofferdam run -p 8080:80 -- ./server
  # Your SSH agent, and nothing else.
  cofferdam run --net-default deny --host-socket $SSH_AUTH_SOCK:/run/agent -e SSH_AUTH_SOCK=/run/agent -- ssh-add -l
  # Rules in full.
  cofferdam run --net-rule 'deny@any:tcp:25,allow@10.0.0.0/8:tcp' -- ./agent

Exit status: the command's own; 128+n when signal n ended it; 124 on --timeout,
or with --fail-on-deny and something denied; 125 when the sandbox could not be
set up or lost its network; 126 and 127 as in a shell.";

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD", hide_short_help = true)]
    pub command: Vec<OsString>,
    #[command(flatten)]
    pub network: NetworkArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub network_limits: NetworkLimitArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub evidence: EvidenceArgs,
    /// What the network card of a virtual machine is connected to: gateway, or slirp, QEMU's own network.
    ///
    /// slirp is for hosts without user namespaces. There is no gateway then: no rule is held, and nothing is recorded of what
    /// the guest reaches. It is never chosen by itself.
    #[arg(long, value_name = "ENGINE", default_value = "gateway", hide_default_value = true, hide_short_help = true)]
    pub engine: EngineWord,
    /// With --engine slirp: no network, the ports that lead in (the default), or everything.
    #[arg(long, value_name = "MODE", hide_short_help = true)]
    pub mode: Option<ModeOfVm>,
    /// Make a sandbox that stays, with the program as its main command, and print its name.
    #[arg(short, long, hide_short_help = true, conflicts_with_all = ["events", "otlp", "pcap", "json_summary", "fail_on_deny", "tty", "timeout"])]
    pub detach: bool,
    /// The name of that sandbox.
    #[arg(long, value_name = "NAME", requires = "detach", hide_short_help = true)]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkArgs {
    /// Some of public,private,host; or none; or all.
    ///
    /// The presets public-only (the default), non-local, allow-all and mounts-only (nothing but the directories that a virtual
    /// machine is shown) may stand here as well.
    #[arg(long, value_name = "PROFILE,…", action = ArgAction::Append)]
    pub net: Vec<String>,
    /// No network at all.
    #[arg(long, conflicts_with_all = ["net", "allow", "net_rule"])]
    pub no_net: bool,
    /// The network in a word: nothing, everything, or nothing but what is allowed.
    ///
    /// blocked is --no-net; open is --net all, and --deny takes from it; allowlist denies all but DNS and what --allow and
    /// --net-rule name. In a file: network_mode, with network_allowlist and network_denylist.
    #[arg(long, value_name = "MODE", hide_short_help = true)]
    pub network_mode: Option<PostureWord>,
    /// Allow this: pypi.org, 10.0.0.5:5432, @pypi.
    ///
    /// A name, '*.name', an address, a network, a group (private, host, …) or a list (@pypi, @npm, @crates, @go,
    /// @debian, @github), with ports if wanted.
    /// Without --net, the first --allow turns the default into deny. Rules count in the order of the command line.
    #[arg(long, value_name = "TARGET[:PORTS]", action = ArgAction::Append)]
    pub allow: Vec<String>,
    /// Deny this.
    #[arg(long, value_name = "TARGET[:PORTS]", action = ArgAction::Append)]
    pub deny: Vec<String>,
    // Not a doc comment: rustdoc takes the brackets of the grammar for links.
    #[arg(
        long,
        value_name = "RULES",
        action = ArgAction::Append,
        help = "allow@example.org:tcp:443,deny@any:tcp:25",
        long_help = "allow@example.org:tcp:443,deny@any:tcp:25\n\n\
            Rules in full, action[:direction]@target[:protocols[:ports]], separated by commas. The first match wins."
    )]
    pub net_rule: Vec<String>,
    /// What happens to flows that no rule matches, both ways.
    #[arg(long, value_name = "ACTION", hide_short_help = true)]
    pub net_default: Option<ActionWord>,
    /// What happens to flows out of the sandbox that no rule matches.
    #[arg(long, value_name = "ACTION", hide_short_help = true)]
    pub net_default_egress: Option<ActionWord>,
    /// What happens to flows into the sandbox that no rule matches.
    #[arg(long, value_name = "ACTION", hide_short_help = true)]
    pub net_default_ingress: Option<ActionWord>,
    /// Read the network's configuration from a TOML, JSON or YAML file (- is stdin); flags come on top.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub net_conf: Option<PathBuf>,
    // Not a doc comment: rustdoc takes the brackets for links.
    #[arg(
        short = 'p',
        long,
        value_name = "PORTS",
        action = ArgAction::Append,
        help = "Publish a port: 8080:80, 0.0.0.0:53:53/udp",
        long_help = "Publish a port: 8080:80, 0.0.0.0:53:53/udp\n\n\
            [BIND:]HOST:GUEST[/tcp|/udp]: port HOST of this machine leads to port GUEST in the sandbox. Ranges of equal length are ports in a row; HOST 0 \
            picks one and says which. Without BIND only this machine can reach it; [::1] and [::] are IPv6."
    )]
    pub publish: Vec<String>,
    // Not a doc comment: rustdoc takes the brackets for links.
    #[arg(
        long,
        value_name = "HOST:GUEST",
        action = ArgAction::Append,
        hide_short_help = true,
        help = "Let programs connect to a Unix socket of this machine: $SSH_AUTH_SOCK:/run/agent.sock",
        long_help = "Let programs connect to a Unix socket of this machine: $SSH_AUTH_SOCK:/run/agent.sock\n\n\
            The stream socket HOST is reached at the path GUEST in the sandbox, through the gateway: bytes pass, descriptors do not. No rule is asked; whoever listens \
            is trusted with what the program says. The socket of a container engine is as good as root."
    )]
    pub host_socket: Vec<String>,
    /// How a denial looks: TCP reset (else ICMP prohibited), ICMP prohibited for all, or silence.
    #[arg(long, value_name = "HOW", hide_short_help = true)]
    pub deny_with: Option<DenyWord>,
    /// Ask this resolver and not those of the host (HOST, HOST:PORT, tls://HOST, https://HOST/PATH; repeat for more).
    #[arg(long, value_name = "SERVER", hide_short_help = true)]
    pub dns_nameserver: Vec<String>,
    /// Total time for one DNS query, in milliseconds.
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub dns_query_timeout_ms: Option<u64>,
    /// Deliver DNS answers with addresses that are not public, too.
    ///
    /// Whoever owns a name that a rule allows can then point it into your networks, and be let through. A rule for the
    /// address itself, without ports, is the narrower way: --net-rule allow@10.0.0.5.
    #[arg(long, hide_short_help = true)]
    pub no_dns_rebind_protection: bool,
    /// Whether what only a name allows has to show that name in its first bytes: TLS, HTTP, QUIC.
    ///
    /// With `false` the DNS answer is enough, and any name on a shared address can be reached. Rules that deny names hold
    /// all the same.
    #[arg(
        long, value_name = "BOOL", hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true"
    )]
    pub net_strict: Option<bool>,
    /// The IPv4 pool from which the sandbox's link is taken.
    #[arg(long, value_name = "CIDR", hide_short_help = true)]
    pub ipv4_pool: Option<String>,
    /// The IPv6 pool from which the sandbox's link is taken.
    #[arg(long, value_name = "CIDR", hide_short_help = true)]
    pub ipv6_pool: Option<String>,
    /// MTU of the sandbox's interface.
    #[arg(long, value_name = "BYTES", hide_short_help = true)]
    pub mtu: Option<u32>,
    /// IPv6 even if the host has no IPv6 route.
    #[arg(long, conflicts_with = "no_ipv6", hide_short_help = true)]
    pub ipv6: bool,
    /// No IPv6.
    #[arg(long, hide_short_help = true)]
    pub no_ipv6: bool,
}

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// End the program after this time (30s, 5m, 1h30m).
    #[arg(long, value_name = "TIME", value_parser = units::duration, hide_short_help = true)]
    pub timeout: Option<Duration>,
    /// Memory of everything inside (512M, 2G).
    #[arg(long, value_name = "SIZE", value_parser = units::size, hide_short_help = true)]
    pub memory: Option<u64>,
    /// Processors, such as 2 or 0.5.
    #[arg(long, value_name = "N", value_parser = units::cpus, hide_short_help = true)]
    pub cpus: Option<f32>,
    /// Processes and threads inside.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), hide_short_help = true)]
    pub pids: Option<u32>,
}

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct NetworkLimitArgs {
    /// TCP connections at once; 0 is unlimited. Default 4096.
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub max_connections: Option<u32>,
    /// TCP connections to published ports at once; 0 is unlimited. Default 1024.
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub max_inbound_connections: Option<u32>,
    /// UDP mappings at once; 0 is unlimited. Default 1024.
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub max_udp_connections: Option<u32>,
    /// Bytes out of the sandbox, in SIZE per DUR (a second): 125000 is 1 Mbit/s.
    ///
    /// Of all flows together, payload only, whoever opened them. Bytes and not bits, in units of 1024. SIZE is also what may pass
    /// at once, at the start and after a pause: 12500/100ms is as fast and more even.
    #[arg(long, value_name = "SIZE[/DUR]", value_parser = units::rate_of_bytes, hide_short_help = true)]
    pub net_egress_bandwidth: Option<units::Rate>,
    /// Bytes that may go out beyond that, once.
    #[arg(long, value_name = "SIZE", value_parser = units::size, hide_short_help = true)]
    pub net_egress_bandwidth_burst: Option<u64>,
    /// Datagrams, pings and attempts to connect out of the sandbox, N per DUR (a second).
    #[arg(long, value_name = "N[/DUR]", value_parser = units::rate, hide_short_help = true)]
    pub net_egress_ops: Option<units::Rate>,
    /// Those that may go out beyond that, once.
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub net_egress_ops_burst: Option<u64>,
    /// Bytes into the sandbox, in SIZE per DUR (a second).
    #[arg(long, value_name = "SIZE[/DUR]", value_parser = units::rate_of_bytes, hide_short_help = true)]
    pub net_ingress_bandwidth: Option<units::Rate>,
    /// Bytes that may come in beyond that, once.
    #[arg(long, value_name = "SIZE", value_parser = units::size, hide_short_help = true)]
    pub net_ingress_bandwidth_burst: Option<u64>,
    /// Datagrams, pings and clients of published ports into the sandbox, N per DUR (a second).
    #[arg(long, value_name = "N[/DUR]", value_parser = units::rate, hide_short_help = true)]
    pub net_ingress_ops: Option<units::Rate>,
    /// Those that may come in beyond that, once.
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub net_ingress_ops_burst: Option<u64>,
    /// Bytes in all, of the run or to these targets: 10M, 1G:egress, 500M@example.org,@pypi.
    ///
    /// When they are used up the flows end and new ones are denied. Both ways count, or one with :egress or :ingress. May be
    /// given more than once.
    #[arg(long, value_name = "SIZE[:WAY][@TARGET,…]", value_parser = units::budget, hide_short_help = true)]
    pub net_budget: Vec<units::Budget>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Place")]
pub(crate) struct PlaceArgs {
    /// What keeps the program in: namespace, of the host's kernel, or vm, a virtual machine with a kernel of its own.
    ///
    /// `cofferdam vm setup` has to be run once before the first virtual machine.
    #[arg(
        long,
        value_name = "BACKEND",
        default_value = "namespace",
        hide_default_value = true,
        hide_short_help = true
    )]
    pub backend: BackendWord,
    /// The kind of processor of a virtual machine; without it this machine's.
    ///
    /// Another kind than this machine's is executed by QEMU itself, which is slow. `cofferdam vm setup --arch` is for it.
    #[arg(long, value_name = "ARCH", hide_short_help = true)]
    pub arch: Option<ArchitectureWord>,
    /// Leave the current directory out of the sandbox.
    #[arg(long)]
    pub no_cwd: bool,
    /// Show a file or directory of the host.
    #[arg(long, value_name = "SRC:DST[:ro]", value_parser = units::mount)]
    pub mount: Vec<units::MountSpec>,
    /// How a virtual machine has directories of the host: smb, over its network, 9p or virtiofs. Default: smb, and 9p with --no-net.
    ///
    /// 9p has to be in the guest's kernel, and Debian's cloud kernel has it not. virtiofs takes an installed virtiofsd.
    #[arg(long, value_name = "WAY", hide_short_help = true)]
    pub mount_via: Option<SharingWord>,
    /// Use this directory as the root file system, read-only; with --backend vm also an image (raw or qcow2, with ext4).
    ///
    /// A virtual machine may write to it: what it writes is kept in its memory, and gone at the end.
    #[arg(long, value_name = "DIR|IMAGE", hide_short_help = true)]
    pub rootfs: Option<PathBuf>,
    /// How much a virtual machine may write over its --rootfs. Default: half of its memory.
    #[arg(long, value_name = "SIZE", value_parser = units::size, requires = "rootfs", hide_short_help = true)]
    pub disk: Option<u64>,
    /// Where the program starts. Default: the current directory.
    #[arg(short = 'w', long, value_name = "DIR", hide_short_help = true)]
    pub workdir: Option<PathBuf>,
    /// Set a variable.
    ///
    /// Without it there are only PATH, HOME, TERM, LANG and TZ.
    #[arg(short = 'e', long = "env", value_name = "K=V")]
    pub env: Vec<OsString>,
    /// Hand over a variable of the caller.
    #[arg(long, value_name = "K", hide_short_help = true)]
    pub env_pass: Vec<OsString>,
    /// The user id inside. Default: 1000, and 0 with --cap-add.
    #[arg(short = 'u', long = "user", value_name = "UID", hide_short_help = true)]
    pub user: Option<u32>,
    /// Be root with this capability, inside the sandbox's own namespaces only (NET_RAW, …).
    #[arg(long, value_name = "CAP", value_delimiter = ',', hide_short_help = true)]
    pub cap_add: Vec<String>,
    /// Let the program make user namespaces (for sandboxes of its own, such as a browser's).
    #[arg(long, hide_short_help = true)]
    pub allow_userns: bool,
    /// Give the program a terminal. Automatic when stdin and stdout are one.
    #[arg(short = 't', long, hide_short_help = true)]
    pub tty: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Evidence")]
pub(crate) struct EvidenceArgs {
    /// Write events as JSON lines; - is stdout.
    ///
    /// unix:PATH is a stream socket on which somebody has to listen when the run starts.
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Send events and metrics to the OpenTelemetry collector at this URL, as OTLP over HTTP in JSON.
    ///
    /// http://HOST:PORT or https://, in a program that was built with the feature otlp.
    #[arg(long, value_name = "ENDPOINT", hide_short_help = true)]
    pub otlp: Option<String>,
    /// Write the packets of the sandbox's link to FILE, as pcapng, with the decision about each flow as a comment.
    ///
    /// Wireshark and tshark read it. It holds everything that the program sends and receives, passwords and all.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub pcap: Option<PathBuf>,
    /// Keep nothing of this run for `cofferdam log`.
    #[arg(long, hide_short_help = true)]
    pub no_record: bool,
    /// Write the summary of the run to FILE.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub json_summary: Option<PathBuf>,
    /// Exit with 124 when something was denied.
    #[arg(long, hide_short_help = true)]
    pub fail_on_deny: bool,
    /// No summary and no notices, but for why the exit status is 125.
    #[arg(short, long, conflicts_with = "verbose", hide_short_help = true)]
    pub quiet: bool,
    /// Always print the summary, with counters.
    #[arg(short, long, hide_short_help = true)]
    pub verbose: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// What keeps the programs in: namespace, or vm, five virtual machines, after `cofferdam vm setup`.
    #[arg(long, value_name = "BACKEND", default_value = "namespace", hide_default_value = true)]
    pub backend: BackendWord,
    /// Print what happened as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Try every way out of a sandbox, in a closed world, and show each being stopped.
    #[arg(long)]
    pub prove: bool,
    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Check a configuration file: errors with their place, and rules that can never match.
    #[command(
        after_long_help = "Examples:\n  cofferdam policy check cofferdam.toml\n\nExit status: 0 when the file can be used, 1 when not."
    )]
    Check(PolicyCheckArgs),
    /// Give a sandbox that stays, or a run that goes on, another policy.
    #[command(after_help = "All options: cofferdam policy set --help", after_long_help = named::POLICY_SET_EXAMPLES)]
    Set(Box<PolicySetArgs>),
    /// Print the policy that is in force for a run, also as a file.
    #[command(
        after_long_help = "Examples:\n  cofferdam policy show last\n  cofferdam policy show --json k3f9xa > policy.json\n\nExit status: 0, or 1 when it has ended or cannot be asked."
    )]
    Show(PolicyShowArgs),
    /// Print rules in their normal form.
    #[command(
        after_long_help = "Examples:\n  cofferdam policy fmt 'allow@API.GitHub.com:tcp:443, deny@any:tcp:25'\n  cofferdam policy fmt -f rules.txt"
    )]
    Fmt(PolicyFmtArgs),
    /// Tell whether one policy allows nothing that another denies.
    #[command(
        after_long_help = "Examples:\n  cofferdam policy subset run.toml session.toml\n\nExit status: 0 when it is a subset; 1 when it is not, with a counterexample; 2 when that cannot be told."
    )]
    Subset(PolicyPairArgs),
    /// Tell what changes from one policy to another.
    #[command(
        after_long_help = "Examples:\n  cofferdam policy diff old.toml new.toml\n\nExit status: 0 when nothing changes; 1 when something does; 2 when that cannot be told."
    )]
    Diff(PolicyPairArgs),
    /// Say in words what a policy does, or rule by rule what it says to a target.
    #[command(
        after_long_help = "Examples:\n  cofferdam policy explain cofferdam.toml\n  cofferdam policy explain cofferdam.toml example.org:443 10.0.0.5:53/udp\n\nExit status: 0 when the file can be used, 1 when not."
    )]
    Explain(PolicyExplainArgs),
    /// Hold a policy to a table of targets with the answers expected.
    #[command(
        after_long_help = "Examples:\n  cofferdam policy test cofferdam.toml targets.txt\n  echo 'allow example.org:443' | cofferdam policy test cofferdam.toml\n\nA row is `allow TARGET` or `deny TARGET`; a target without a port is about every\nport. `ingress ADDRESS:PORT` is who connects, to which port of the sandbox. In a\nTOML file: two lists, allow and deny.\n\nExit status: 0 when every row holds; 1 when one does not; 2 when that cannot be told."
    )]
    Test(PolicyTestArgs),
    /// Tell what a policy would have changed in runs that were recorded.
    #[command(
        after_long_help = "Examples:\n  cofferdam policy try new.toml --against last\n  cofferdam policy try new.toml --against k3f9x --against events.jsonl\n\nExit status: 0 when nothing changes; 1 when something does; 2 when that cannot be told."
    )]
    Try(PolicyTryArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PolicyShowArgs {
    /// An id of `cofferdam log`, one end of it, `last`, or the name of a sandbox.
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Print its network as a configuration file in JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PolicyExplainArgs {
    /// A TOML, JSON or YAML file; - reads TOML or JSON from stdin.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Names or addresses, with :PORT (443 without) and /udp or /icmp if wanted; behind `ingress` who connects.
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PolicyTestArgs {
    /// A TOML, JSON or YAML file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The table; without it, or with -, standard input.
    #[arg(value_name = "TABLE")]
    pub table: Option<PathBuf>,
    /// Print every row with its answer as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PolicyTryArgs {
    /// A TOML, JSON or YAML file; - reads TOML or JSON from stdin.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Runs by their id, `last`, the name of a sandbox, or a file of events.
    #[arg(long, value_name = "RUN", required = true, num_args = 1..)]
    pub against: Vec<String>,
    /// Print the changes as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PolicyCheckArgs {
    /// A TOML, JSON or YAML file; - reads TOML or JSON from stdin.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PolicyPairArgs {
    /// A TOML, JSON or YAML file; - reads TOML or JSON from stdin.
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// Another one.
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// Print the answer as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PolicyFmtArgs {
    /// Rules, separated by commas.
    #[arg(value_name = "RULES", required_unless_present = "file")]
    pub rules: Vec<String>,
    /// Read rules from a file, separated by commas or lines; - is stdin.
    #[arg(short, long, value_name = "FILE", conflicts_with = "rules")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    /// Whose schema.
    #[arg(value_name = "WHAT")]
    pub what: SchemaName,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaName {
    /// The configuration file and wire form of a network.
    Policy,
    /// One line of the event stream.
    Event,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendWord {
    Namespace,
    Vm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SharingWord {
    Smb,
    #[value(name = "9p")]
    Plan9,
    Virtiofs,
}

impl From<SharingEntry> for SharingWord {
    fn from(entry: SharingEntry) -> SharingWord {
        match entry {
            SharingEntry::Smb => SharingWord::Smb,
            SharingEntry::Plan9 => SharingWord::Plan9,
            SharingEntry::Virtiofs => SharingWord::Virtiofs,
        }
    }
}

impl SharingWord {
    pub(crate) fn entry(self) -> SharingEntry {
        match self {
            SharingWord::Smb => SharingEntry::Smb,
            SharingWord::Plan9 => SharingEntry::Plan9,
            SharingWord::Virtiofs => SharingEntry::Virtiofs,
        }
    }

    /// # Errors
    /// What it takes is not installed.
    pub(crate) fn sharing(self) -> Result<Sharing, Refusal> {
        Ok(match self {
            SharingWord::Smb => Sharing::Smb,
            SharingWord::Plan9 => Sharing::Plan9,
            SharingWord::Virtiofs => Sharing::Virtiofs(crate::vm::virtiofsd().map_err(|error| {
                Refusal::setup(format!("--mount-via virtiofs cannot be used: {}", output::chain(&error)))
            })?),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PostureWord {
    Blocked,
    Open,
    Allowlist,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ActionWord {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DenyWord {
    Reset,
    Icmp,
    Drop,
}
