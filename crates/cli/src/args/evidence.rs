//! The verbs about what runs have left behind.

use clap::{Args, Subcommand};

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

pub(crate) const WHY_EXAMPLES: &str = "\
Examples:
  cofferdam why d0rgj2fja

The id of a decision is in the event, in the answer that an HTTP client got, and
in the extended error of a DNS answer. Exit status: 0 when it is known, 1 when not.";

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The id of a decision.
    #[arg(value_name = "ID")]
    pub what: String,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}
