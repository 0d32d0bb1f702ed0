//! `cofferdam`: runs untrusted programs behind a gateway.
//!
//! Only this crate reads the environment and the command line. Data goes to stdout, everything else to stderr.

mod args;
mod client;
mod demo;
mod doctor;
mod output;
mod policy;
mod run;
mod units;
mod world;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::{Cli, CompletionsArgs, SchemaArgs, SchemaName, Verb, VersionArgs};

/// Exit status of a command line that cannot be understood; `run` has 125, since 2 may be the program's own.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let sub = matches.subcommand().map(|(_, sub)| sub);
    let status = match cli.verb {
        Verb::Run(args) => sub.map_or(EXIT_USAGE, |sub| run::run(*args, sub)),
        Verb::Demo(args) => demo::demo(&args),
        Verb::Doctor(args) => doctor::doctor(&args),
        Verb::Policy(verb) => policy::policy(&verb),
        Verb::Schema(args) => schema(&args),
        Verb::Completions(args) => completions(&args),
        Verb::Version(args) => version(&args),
        Verb::InternalClient(args) => client::client(&args),
    };
    ExitCode::from(status)
}

/// Prints help, or what is wrong with the command line.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to do when the terminal is gone.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let run = std::env::args_os().nth(1).is_some_and(|verb| verb == "run");
    ExitCode::from(if run { cofferdam_control::EXIT_SETUP } else { EXIT_USAGE })
}

fn schema(args: &SchemaArgs) -> u8 {
    let text = match args.what {
        SchemaName::Policy => cofferdam_policy::file::schema(),
        SchemaName::Event => {
            let schema = schemars::schema_for!(cofferdam_model::Event);
            serde_json::to_string_pretty(&schema).unwrap_or_default()
        }
    };
    output::print(&format!("{}\n", text.trim_end()))
}

fn completions(args: &CompletionsArgs) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cofferdam", &mut script);
    match io::stdout().write_all(&script) {
        Ok(()) => 0,
        Err(error) => output::fail(&format!("cannot write to stdout: {error}"), 1),
    }
}

fn version(args: &VersionArgs) -> u8 {
    let version = env!("CARGO_PKG_VERSION");
    if args.json {
        output::print_json(&serde_json::json!({ "name": "cofferdam", "version": version, "event_schema": 1 }))
    } else {
        output::print(&format!("cofferdam {version}\n"))
    }
}
