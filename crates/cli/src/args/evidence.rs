//! The verbs about what runs have left behind.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{EvidenceArgs, LimitArgs, NetworkArgs, PlaceArgs};
use crate::units;

pub(crate) const LOG_EXAMPLES: &str = "\
Examples:
  cofferdam log                          # which runs there were
  cofferdam log last                     # every decision of the last one
  cofferdam log --denied                 # what it was denied
  cofferdam log work --follow            # a sandbox that stays, as it goes on
  cofferdam log k3f9xa --name '*.example.org' --since 10m
  cofferdam log --summary >> \"$GITHUB_STEP_SUMMARY\"
  cofferdam log --json last | jq -r 'select(.type == \"flow.denied\") | .remote'

A run is named by its id, one end of it, `last`, or the name of a sandbox that
stays: its newest session. Exit status: 0 when there is one, 1 when not.";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct LogArgs {
    #[command(subcommand)]
    pub verb: Option<LogVerb>,
    /// The run; with options that need one, the last.
    #[arg(value_name = "RUN")]
    pub run: Option<String>,
    /// What was denied, and nothing else.
    #[arg(long)]
    pub denied: bool,
    /// What was about this name: example.org, '*.example.org', or an address.
    #[arg(long, value_name = "PATTERN")]
    pub name: Option<String>,
    /// What was after this: 10m ago, or 2026-11-26T07:00:00Z.
    #[arg(long, value_name = "DUR|TIME", value_parser = units::since)]
    pub since: Option<units::Since>,
    /// Go on until the run ends.
    #[arg(short, long)]
    pub follow: bool,
    /// Print the events as they were stored, or the list of runs as JSON.
    #[arg(long)]
    pub json: bool,
    /// What was denied and what was reached, as tables in Markdown.
    #[arg(long, conflicts_with_all = ["denied", "name", "since", "follow", "json"])]
    pub summary: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LogVerb {
    /// Remove what runs have left behind.
    #[command(after_long_help = "Examples:\n  cofferdam log rm k3f9xa\n  cofferdam log rm --all")]
    Rm(LogRmArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LogRmArgs {
    /// The runs.
    #[arg(value_name = "RUN", required_unless_present = "all")]
    pub runs: Vec<String>,
    /// Every run that has ended.
    #[arg(long, conflicts_with = "runs")]
    pub all: bool,
    /// Print a list of what became of each, as JSON.
    #[arg(long)]
    pub json: bool,
}

pub(crate) const UI_EXAMPLES: &str = "\
Examples:
  cofferdam ui                           # then open the link that it prints
  cofferdam ui --port 8900               # at this port of the link's address

The link opens the page once, in one browser on this machine; nobody else may
ask for anything. It shows sandboxes and runs, the flows of a run as they go on,
who talks to whom, and what was denied and by which rule; and allows that, until
the run ends. Ctrl-C ends it; runs do not notice.";

#[derive(Debug, Args)]
pub(crate) struct UiArgs {
    /// Listen on this port of the page's address, and not on one that is free.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
}

pub(crate) const WHY_EXAMPLES: &str = "\
Examples:
  cofferdam why d0rgj2fja                  # a decision that was made
  cofferdam why example.org:443            # what a run without options would say
  cofferdam why --net-conf cofferdam.toml 10.0.0.5:53/udp
  cofferdam why --run last db.corp@10.0.0.5:5432

The id of a decision is in the event, in the answer that an HTTP client got, and
in the extended error of a DNS answer. A target is a name or an address, with
:PORT (443 without) and /udp or /icmp; name@address is asked about as if the name
had that address; 'ingress ADDRESS:PORT' is who connects to a published port of
the sandbox. Exit status: 0 when there is an answer, 1 when not.";

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The id of a decision, or where a program might go.
    #[arg(value_name = "ID|TARGET")]
    pub what: String,
    /// Ask the policy of this run: an id, last, a sandbox's name.
    #[arg(long, value_name = "RUN", conflicts_with = "NetworkArgs")]
    pub run: Option<String>,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub network: NetworkArgs,
}

pub(crate) const TOP_EXAMPLES: &str = "\
Examples:
  cofferdam top                # everything that runs
  cofferdam top last           # the run that was started last

Tab and the arrows select a flow or something that was blocked; a allows it for
the run, d denies it. The rule is shown first, and applied when you say so; it
lasts to the end of the run. p shows the rules that were made, and they are
printed when you leave, with q. Exit status: 0, or 1 when there is no terminal.";

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Show this run alone: an id, one end of it, last, a sandbox's name.
    #[arg(value_name = "RUN")]
    pub run: Option<String>,
}

pub(crate) const LEARN_EXAMPLES: &str = "\
Examples:
  # Write down what an installation reaches, and hold it to that from now on.
  cofferdam learn -o pip.toml -- pip install requests
  cofferdam run --net-conf pip.toml -- pip install requests
  # Add what another command needs, and see first what that is.
  cofferdam learn --merge pip.toml --diff -- ./build.sh
  cofferdam learn --merge pip.toml -o pip.toml --verify -- ./build.sh

The program runs with the public internet, and with --net with what that names.
Exit status: the command's own, of the last time it ran; 124 when --verify has
shown a denial; 125 when nothing could be run or learned.";

#[derive(Debug, Args)]
pub(crate) struct LearnArgs {
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD", hide_short_help = true)]
    pub command: Vec<OsString>,
    /// Write the policy to FILE and not to stdout.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Add to what this TOML file allows, and keep what it says.
    #[arg(long, value_name = "FILE")]
    pub merge: Option<PathBuf>,
    /// Print what would change, and write nothing.
    #[arg(long, conflicts_with_all = ["output", "verify"])]
    pub diff: bool,
    /// Run the program again under what was learned.
    #[arg(long)]
    pub verify: bool,
    /// Let it reach these as well: private, host.
    #[arg(long, value_name = "GROUP,…", value_delimiter = ',', hide_possible_values = true)]
    pub net: Vec<LearnGroup>,
    /// Keep it from this, now and in the policy.
    #[arg(long, value_name = "TARGET[:PORTS]", conflicts_with = "merge")]
    pub deny: Vec<String>,
    /// Ask this resolver and not those of the host.
    #[arg(long, value_name = "SERVER", hide_short_help = true)]
    pub dns_nameserver: Vec<String>,
    /// No IPv6.
    #[arg(long, hide_short_help = true)]
    pub no_ipv6: bool,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub evidence: EvidenceArgs,
}

/// What a program may reach while it is watched. Never the cloud's metadata: what is there are credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LearnGroup {
    Public,
    Private,
    Host,
}
