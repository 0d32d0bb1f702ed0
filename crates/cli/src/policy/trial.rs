//! `cofferdam policy test` and `cofferdam policy try`: a policy held to a table, and put to runs that were recorded.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use cofferdam_control::store::StoreError;
use cofferdam_control::summary::{Advice, escaped};
use cofferdam_evidence::{Change, HostNetworks, Replay, Trial};
use cofferdam_model::{Action, Classifier, Event, NetworkConfig};
use cofferdam_policy::Policy;
use cofferdam_policy::trial::{Row, Table};
use serde_json::{Value, json};

use super::{EXIT_DIFFERENT, EXIT_TROUBLE, effective, read, read_file};
use crate::args::{PolicyTestArgs, PolicyTryArgs};
use crate::explain::Asked;
use crate::{output, state};

/// The longest line of events that is read.
const LONGEST_LINE: u64 = 4 << 20;

pub(super) fn test(args: &PolicyTestArgs) -> u8 {
    let stdin = Path::new("-");
    let table = args.table.as_deref().unwrap_or(stdin);
    if args.file == stdin && table == stdin {
        return output::fail("the policy and the table cannot both come from stdin", EXIT_TROUBLE);
    }
    let policy =
        match read_file(&args.file, EXIT_TROUBLE).and_then(|(_, network)| compiled(network, Classifier::default())) {
            Ok(policy) => policy,
            Err(status) => return status,
        };
    let (name, text) = match read(table) {
        Ok(read) => read,
        Err(error) => return output::fail(&error, EXIT_TROUBLE),
    };
    let rows = match Table::parse(&name, &text) {
        Ok(table) => table.rows,
        Err(errors) => {
            for error in &errors {
                let origin = format!("{name}: line {}", error.line);
                output::to_stderr(&output::pointed(&origin, &text, &error.span, &error.message, error.help.as_deref()));
            }
            return output::fail(&format!("{name} cannot be used"), EXIT_TROUBLE);
        }
    };
    let mut failed = 0_usize;
    let mut pages = String::new();
    let mut values = Vec::new();
    for row in &rows {
        let (holds, answer) = policy.judge(row);
        failed += usize::from(!holds);
        let Row { line, expected, text, target } = row;
        let asked = Asked { policy: &policy, target, answer: &answer, advice: Advice::default() };
        if args.json {
            let mut value = asked.to_json();
            if let Some(object) = value.as_object_mut() {
                object.insert("line".to_owned(), json!(line));
                object.insert("expected".to_owned(), json!(expected));
                object.insert("holds".to_owned(), holds.into());
            }
            values.push(value);
        } else if !holds {
            let word = if *expected == Action::Allow { "allow" } else { "deny" };
            let port = match (target.port, answer.port) {
                (None, Some(port)) => format!(", at port {port}"),
                (_, _) => String::new(),
            };
            pages.push_str(&format!("{}:{line}: expected {word} {}{port}\n", escaped(&name), escaped(text)));
            pages.push_str(&asked.page());
            pages.push('\n');
        }
    }
    let printed = if args.json {
        output::print_json(&json!({ "holds": failed == 0, "rows": values }))
    } else {
        let total = rows.len();
        let summary = match failed {
            0 => format!("{}: {total} {}\n", escaped(&name), if total == 1 { "row holds" } else { "rows hold" }),
            failed => format!("{}: {failed} of {total} rows do not hold\n", escaped(&name)),
        };
        output::print(&(pages + &summary))
    };
    if printed == 0 && failed > 0 { EXIT_DIFFERENT } else { printed }
}

pub(super) fn try_against(args: &PolicyTryArgs) -> u8 {
    let network = match read_file(&args.file, EXIT_TROUBLE) {
        Ok((_, network)) => network,
        Err(status) => return status,
    };
    let mut trial = Trial::default();
    for run in &args.against {
        if let Err(status) = put(run, &network, &mut trial) {
            return status;
        }
    }
    let changes: Vec<_> = trial.changes().collect();
    let printed = if args.json {
        let change = |(change, asked, rule, waits, count): &(Change, &_, &str, bool, u64)| -> Value {
            let asked: &cofferdam_evidence::Asked = asked;
            json!({ "change": word(*change), "asked": asked.to_string(), "rule": rule, "waits": waits, "count": count })
        };
        let list: Vec<Value> = changes.iter().map(change).collect();
        output::print_json(&json!({ "changes": list, "unchanged": trial.unchanged, "beyond": trial.beyond }))
    } else {
        output::print(&lines(&trial))
    };
    if printed == 0 && !changes.is_empty() { EXIT_DIFFERENT } else { printed }
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Denied => "denied",
        Change::Allowed => "allowed",
    }
}

fn lines(trial: &Trial) -> String {
    let rows: Vec<[String; 4]> = trial
        .changes()
        .map(|(change, asked, rule, waits, count)| {
            let waits = if waits { ", if it shows that name" } else { "" };
            [
                word(change).to_owned(),
                escaped(&asked.to_string()),
                format!("×{count}"),
                format!("{}{waits}", escaped(rule)),
            ]
        })
        .collect();
    let width = |at: usize| {
        rows.iter().filter_map(|row| row.get(at)).map(|text| text.chars().count()).max().unwrap_or(0).min(60)
    };
    let (asked_width, count_width) = (width(1), width(2));
    let mut text: String = rows
        .iter()
        .map(|[word, asked, count, rule]| format!("{word:7}  {asked:asked_width$}  {count:count_width$}  {rule}\n"))
        .collect();
    if trial.beyond > 0 {
        text.push_str(&format!("and {} more on other targets\n", trial.beyond));
    }
    text.push_str(&format!("{} flows and look-ups as before\n", trial.unchanged));
    text
}

fn compiled(network: NetworkConfig, classifier: Classifier) -> Result<Policy, u8> {
    Policy::of_network(&effective(network), classifier).map_err(|error| output::fail(&error.to_string(), EXIT_TROUBLE))
}

/// Puts one recording to the policy.
fn put(run: &str, network: &NetworkConfig, trial: &mut Trial) -> Result<(), u8> {
    let trouble = |text: String| output::fail(&text, EXIT_TROUBLE);
    // What has a slash or an ending, or is there, is a file; no id and no name of a sandbox looks so.
    let path = Path::new(run);
    let is_file = run.contains('/') || path.extension().is_some_and(|ending| ending == "jsonl" || ending == "json");
    if is_file || path.is_file() {
        let mut networks = HostNetworks::default();
        each_event(path, |event| networks.record(event)).map_err(trouble)?;
        let policy = compiled(network.clone(), Classifier::new(networks.finish()))?;
        let mut replay = Replay::new(&policy);
        let left_out = each_event(path, |event| {
            if let Some(replayed) = replay.event(event) {
                trial.add(replayed);
            }
        });
        match left_out.map_err(trouble)? {
            0 => {}
            lines => output::say(&format!("{run}: left out what is no event of this version: {lines} of its lines")),
        }
        return Ok(());
    }
    let stored =
        state::run_store().and_then(|store| store.find(run).map_err(|error| crate::refusal::Refusal::from(&error)));
    let stored = stored.map_err(|refusal| refusal.with_status(EXIT_TROUBLE).tell(false))?;
    let policy = compiled(network.clone(), stored.about().classifier())?;
    let mut replay = Replay::new(&policy);
    let failed = |error: StoreError| trouble(output::chain(&error));
    for event in stored.events().map_err(failed)? {
        if let Some(replayed) = replay.event(&event.map_err(failed)?) {
            trial.add(replayed);
        }
    }
    Ok(())
}

/// Every event of a file; how many lines are none.
fn each_event(path: &Path, mut act: impl FnMut(&Event)) -> Result<u64, String> {
    let cannot = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let mut reader = BufReader::new(File::open(path).map_err(cannot)?);
    let mut line = Vec::new();
    let mut left_out = 0;
    loop {
        line.clear();
        let read = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(cannot)?;
        if read == 0 {
            return Ok(left_out);
        }
        match serde_json::from_slice::<Event>(&line) {
            Ok(event) => act(&event),
            Err(_) if line.trim_ascii().is_empty() => {}
            Err(_) => left_out += 1,
        }
    }
}
