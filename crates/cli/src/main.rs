//! `cofferdam`: runs untrusted programs behind a gateway.
//!
//! Only this crate reads the environment and the command line. Data goes to stdout, everything else to stderr.

mod args;
mod client;
mod demo;
mod doctor;
mod explain;
mod guest_client;
mod learn;
mod log;
mod named;
mod output;
mod policy;
mod refusal;
mod run;
mod slip;
mod slirp;
mod smb;
mod state;
mod top;
mod ui;
mod units;
mod vm;
mod why;
mod world;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::{Cli, CompletionsArgs, PolicyVerb, SchemaArgs, SchemaName, Verb, VersionArgs};

/// Exit status of a command line that cannot be understood; verbs that run something have 125, since 2 may be the program's
/// own.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    // What we hand over between processes must not be stopped by what programs in sandboxes have on its way.
    cofferdam_sys::process::raise_descriptor_limit();
    let command =
        if std::env::args_os().nth(1).is_some_and(|arg| arg == "-h") { short(Cli::command()) } else { Cli::command() };
    let matches = match command.try_get_matches() {
        Ok(matches) => matches,
        Err(mut error) => {
            let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
            slip::suggest_verbs(&mut error, &Cli::command(), words);
            return usage(&error);
        }
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let sub = matches.subcommand().map(|(_, sub)| sub);
    let status = match cli.verb {
        Verb::Run(args) => sub.map_or(EXIT_USAGE, |sub| run::run(*args, sub)),
        Verb::Create(args) => sub.map_or(EXIT_USAGE, |sub| named::create(*args, sub)),
        Verb::Start(args) => named::start(&args),
        Verb::Exec(args) => sub.map_or(EXIT_USAGE, |sub| named::exec(*args, sub)),
        Verb::Stop(args) => named::stop(&args),
        Verb::Rm(args) => named::rm(&args),
        Verb::Ls(args) => named::ls(&args),
        Verb::Inspect(args) => named::inspect(&args),
        Verb::Ports(verb) => named::ports(verb),
        Verb::Mount(verb) => named::mount(verb),
        Verb::Cp(args) => named::cp(&args),
        Verb::Logs(args) => named::logs(&args),
        Verb::Log(args) => log::log(args),
        Verb::Ui(args) => ui::ui(&args),
        Verb::Why(args) => sub.map_or(EXIT_USAGE, |sub| why::why(*args, sub)),
        Verb::Learn(args) => learn::learn(*args),
        Verb::Top(args) => top::top(&args),
        Verb::Demo(args) => demo::demo(&args),
        Verb::Doctor(args) => doctor::doctor(&args),
        Verb::Policy(PolicyVerb::Set(args)) => {
            let sub = sub.and_then(|sub| sub.subcommand_matches("set"));
            sub.map_or(EXIT_USAGE, |sub| named::set_policy(*args, sub))
        }
        Verb::Policy(PolicyVerb::Show(args)) => named::show_policy(&args),
        Verb::Policy(verb) => policy::policy(&verb),
        Verb::Vm(verb) => vm::vm(&verb),
        Verb::Schema(args) => schema(&args),
        Verb::Completions(args) => completions(&args),
        Verb::Version(args) => version(&args),
        Verb::InternalClient(args) => client::client(&args),
        Verb::SmbServe(args) => smb::smb_serve(&args),
    };
    ExitCode::from(status)
}

/// Verbs that the short help leaves out, so that it fits a screen; it names `demo` below them.
const LESS_USED: [&str; 13] = [
    "start",
    "stop",
    "cp",
    "ports",
    "mount",
    "rm",
    "inspect",
    "logs",
    "demo",
    "vm",
    "schema",
    "completions",
    "version",
];

fn short(command: clap::Command) -> clap::Command {
    let command = command.after_help("All verbs: cofferdam --help\nStart with: cofferdam demo");
    LESS_USED.iter().fold(command, |command, verb| command.mut_subcommand(*verb, |verb| verb.hide(true)))
}

/// Prints help, or what is wrong with the command line.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to do when the terminal is gone.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let run = std::env::args_os()
        .nth(1)
        .is_some_and(|verb| ["run", "create", "start", "exec", "learn"].iter().any(|own| verb == *own));
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
