//! `cofferdam policy`: looking at rules without running anything.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use cofferdam_control::summary::escaped;
use cofferdam_model::{Action, Classifier, NetworkConfig, PolicyConfig, PolicyLayer};
use cofferdam_policy::compare::{self, Difference, Differences, Question};
use cofferdam_policy::file::{self, ConfigError, ConfigErrors};
use cofferdam_policy::grammar::{self, RuleError};
use cofferdam_policy::{Policy, Warning};
use serde_json::json;

use crate::args::{PolicyCheckArgs, PolicyFmtArgs, PolicyPairArgs, PolicyVerb};
use crate::output;

mod explain;
mod trial;

/// Exit status for a policy that cannot be used.
pub(crate) const EXIT_BAD: u8 = 1;

/// Exit status when two policies differ, as of diff(1).
pub(crate) const EXIT_DIFFERENT: u8 = 1;

/// Exit status when two policies cannot be compared, as of diff(1).
pub(crate) const EXIT_TROUBLE: u8 = 2;

/// What text from stdin is called.
const STDIN: &str = "stdin";

pub(crate) fn policy(verb: &PolicyVerb) -> u8 {
    match verb {
        PolicyVerb::Check(args) => check(args),
        PolicyVerb::Fmt(args) => fmt(args),
        PolicyVerb::Subset(args) => compared(args, |a, b| subset(args, a, b)),
        PolicyVerb::Diff(args) => compared(args, |a, b| diff(args, a, b)),
        PolicyVerb::Explain(args) => explain::explain(args),
        PolicyVerb::Test(args) => trial::test(args),
        PolicyVerb::Try(args) => trial::try_against(args),
        // It is about a sandbox, and done there.
        PolicyVerb::Set(_) | PolicyVerb::Show(_) => crate::EXIT_USAGE,
    }
}

/// One mistake in a text of rules, at its place.
fn pointed_rule(origin: &str, error: &RuleError) -> String {
    output::pointed(origin, &error.source, &error.span, &error.kind.to_string(), error.help.as_deref())
}

/// Everything that is wrong with a configuration, as people read it; mistakes in rules at their place.
pub(crate) fn explained(errors: &ConfigErrors) -> String {
    let explain = |error: &ConfigError| match (&error.rule, &error.help) {
        (Some(rule), _) => pointed_rule(&error.origin, rule),
        (None, Some(help)) => format!("{}; {}\n", escaped(&error.to_string()), escaped(help)),
        (None, None) => format!("{}\n", escaped(&error.to_string())),
    };
    errors.0.iter().map(explain).collect()
}

fn check(args: &PolicyCheckArgs) -> u8 {
    let (name, text) = match read(&args.file) {
        Ok(read) => read,
        Err(error) => return output::fail(&error, EXIT_BAD),
    };
    let parsed = file::parse(if name == STDIN { stdin_name(&text) } else { &name }, &text);
    if args.json {
        return check_json(&name, parsed.as_ref());
    }
    let network = match parsed {
        Ok(network) => network,
        Err(errors) => {
            output::to_stderr(&explained(&errors));
            return output::fail(&format!("{name} cannot be used"), EXIT_BAD);
        }
    };
    let warnings = Policy::warnings(&network.policy);
    for warning in &warnings {
        output::say(&format!("{name}: warning: {warning}"));
    }
    let rules = network.policy.rules.len();
    let remarks = match warnings.len() {
        0 => String::new(),
        1 => ", 1 warning".to_owned(),
        n => format!(", {n} warnings"),
    };
    output::print(&format!("{name}: good, {rules} {}{remarks}\n", if rules == 1 { "rule" } else { "rules" }))
}

fn check_json(name: &str, parsed: Result<&NetworkConfig, &ConfigErrors>) -> u8 {
    let (status, value) = match parsed {
        Ok(network) => {
            let warnings: Vec<_> = Policy::warnings(&network.policy).iter().map(warning_json).collect();
            let rules: Vec<_> = network.policy.rules.iter().map(grammar::format_rule).collect();
            (0, json!({ "file": name, "ok": true, "rules": rules, "errors": [], "warnings": warnings }))
        }
        Err(errors) => {
            let errors: Vec<_> = errors
                .0
                .iter()
                .map(|error| json!({ "origin": error.origin, "message": error.message, "help": error.help }))
                .collect();
            (EXIT_BAD, json!({ "file": name, "ok": false, "errors": errors, "warnings": [] }))
        }
    };
    match output::print_json(&value) {
        0 => status,
        failed => failed,
    }
}

/// Reads both policies and compares them on a machine without a network: what its own addresses are is not known here.
fn compared(
    args: &PolicyPairArgs,
    compare: impl Fn(&PolicyLayer, &PolicyLayer) -> Result<u8, compare::TooLarge>,
) -> u8 {
    let [Some(a), Some(b)] = [&args.a, &args.b].map(|path| read_layer(path)) else { return EXIT_TROUBLE };
    match compare(&a, &b) {
        Ok(status) => status,
        Err(error) => output::fail(&error.to_string(), EXIT_TROUBLE),
    }
}

/// A file's network under its name, or everything that is wrong with it, told.
pub(crate) fn read_file(path: &Path, status: u8) -> Result<(String, NetworkConfig), u8> {
    let (name, text) = read(path).map_err(|error| output::fail(&error, status))?;
    match file::parse(if name == STDIN { stdin_name(&text) } else { &name }, &text) {
        Ok(network) => Ok((name, network)),
        Err(errors) => {
            output::to_stderr(&explained(&errors));
            Err(output::fail(&format!("{name} cannot be used"), status))
        }
    }
}

/// The same without an interface: nothing passes, whatever rules say.
pub(crate) fn effective(network: NetworkConfig) -> NetworkConfig {
    match network.enabled {
        true => network,
        false => {
            let policy = PolicyConfig { default_ingress: Action::Deny, ..PolicyConfig::default() };
            NetworkConfig { policy, ..network }
        }
    }
}

fn read_layer(path: &Path) -> Option<PolicyLayer> {
    let (_, network) = read_file(path, EXIT_TROUBLE).ok()?;
    effective(network).layers().pop()
}

fn subset(args: &PolicyPairArgs, a: &PolicyLayer, b: &PolicyLayer) -> Result<u8, compare::TooLarge> {
    let excess = compare::excess(a, b, &Classifier::default())?;
    let [a, b] = [&args.a, &args.b].map(|path| path.display().to_string());
    let printed = match &excess {
        _ if args.json => output::print_json(&json!({
            "subset": excess.is_none(),
            "counterexample": excess.as_ref().map(difference_json),
        })),
        None => output::print(&format!("{} allows nothing that {} denies\n", escaped(&a), escaped(&b))),
        Some(difference) => output::print(&format!("{}\n", escaped(&difference.as_excess(&a, &b)))),
    };
    Ok(if printed == 0 && excess.is_some() { EXIT_DIFFERENT } else { printed })
}

fn diff(args: &PolicyPairArgs, a: &PolicyLayer, b: &PolicyLayer) -> Result<u8, compare::TooLarge> {
    let differences = compare::diff(a, b, &Classifier::default())?;
    let printed = if args.json {
        let told: Vec<_> = differences.told.iter().map(difference_json).collect();
        output::print_json(&json!({ "differences": told, "more": differences.more }))
    } else {
        output::print(&diff_text(&differences))
    };
    Ok(if printed == 0 && !differences.told.is_empty() { EXIT_DIFFERENT } else { printed })
}

/// A line a difference.
pub(crate) fn diff_text(differences: &Differences) -> String {
    let lines = differences.told.iter().map(|difference| format!("{}\n", escaped(&difference.to_string())));
    lines.chain(differences.more.then(|| "and more\n".to_owned())).collect()
}

fn difference_json(difference: &Difference) -> serde_json::Value {
    let Difference { example, first, second } = difference;
    let example = match example {
        Question::Flow { direction, protocol, peer, port, names } => {
            let names: Vec<_> =
                names.iter().map(|pinned| json!({ "name": pinned.name.as_str(), "alias": pinned.alias })).collect();
            json!({ "direction": direction, "protocol": protocol, "peer": peer, "port": port, "names": names })
        }
        Question::Name { name, protocol } => json!({ "lookup": name.as_str(), "protocol": protocol }),
    };
    let answer = |answer: &compare::Answer| {
        let verdict = if answer.allows { Action::Allow } else { Action::Deny };
        json!({ "verdict": verdict, "rule": answer.rule })
    };
    json!({ "example": example, "a": answer(first), "b": answer(second), "message": difference.to_string() })
}

pub(crate) fn warning_json(warning: &Warning) -> serde_json::Value {
    let message = warning.to_string();
    match warning {
        Warning::Shadowed { rule, rule_text, by, by_text } => {
            json!({ "kind": "shadowed", "rule": rule, "rule_text": rule_text, "by": by, "by_text": by_text, "message": message })
        }
        Warning::Contradicted { rule, rule_text, by, by_text } => {
            json!({ "kind": "contradicted", "rule": rule, "rule_text": rule_text, "by": by, "by_text": by_text, "message": message })
        }
        Warning::OpensMetadata { rule, rule_text } => {
            json!({ "kind": "opens-metadata", "rule": rule, "rule_text": rule_text, "message": message })
        }
    }
}

fn fmt(args: &PolicyFmtArgs) -> u8 {
    let texts = match &args.file {
        // A line ends a rule as a comma does; both are one byte, so places in the text stay what they are.
        Some(path) => match read(path) {
            Ok((name, text)) => vec![(name, text.replace('\n', ","))],
            Err(error) => return output::fail(&error, EXIT_BAD),
        },
        None => args.rules.iter().map(|text| ("rules".to_owned(), text.clone())).collect(),
    };
    let mut rules = Vec::new();
    let mut bad = false;
    for (origin, text) in texts {
        match grammar::parse_rules(&text) {
            Ok(parsed) => rules.extend(parsed.iter().map(grammar::format_rule)),
            Err(errors) => {
                bad = true;
                let text: String = errors.0.iter().map(|error| pointed_rule(&origin, error)).collect();
                output::to_stderr(&text);
            }
        }
    }
    if bad {
        return EXIT_BAD;
    }
    // Commas and lines: easy to read, and still one value of --net-rule.
    let text = rules.join(",\n");
    output::print(&if text.is_empty() { text } else { text + "\n" })
}

/// A network's configuration with a name that tells its format; `-` is stdin.
pub(crate) fn read_network(path: &Path) -> io::Result<(String, String)> {
    if path == Path::new("-") {
        let text = io::read_to_string(io::stdin().lock())?;
        return Ok((stdin_name(&text).to_owned(), text));
    }
    Ok((path.display().to_string(), fs::read_to_string(path)?))
}

/// Text from stdin has no name that could tell its format; a TOML document does not begin as a JSON object does.
fn stdin_name(text: &str) -> &'static str {
    if text.trim_start().starts_with('{') { "stdin.json" } else { "stdin.toml" }
}

/// A file's name and text; `-` is stdin.
fn read(path: &Path) -> Result<(String, String), String> {
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(|error| format!("cannot read stdin: {error}"))?;
        return Ok((STDIN.to_owned(), text));
    }
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    Ok((name, text))
}
