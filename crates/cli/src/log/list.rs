//! `cofferdam log` without a run: which there were.

use std::fmt::Write as _;
use std::time::Duration;

use cofferdam_control::store::{RunState, RunStore, StoredRun};
use cofferdam_control::summary::escaped;
use serde_json::{Value, json};

use super::page;
use crate::output;
use crate::refusal::Refusal;
use crate::units::Since;

pub(super) fn list(store: &RunStore, since: Option<&Since>, as_json: bool) -> Result<u8, Refusal> {
    let all = store.runs().map_err(|error| Refusal::from(&error))?;
    let is_meant =
        |run: &&StoredRun| since.is_none_or(|since| lasted_until(run).is_none_or(|end| end >= since.as_str()));
    let runs: Vec<&StoredRun> = all.runs.iter().filter(is_meant).collect();
    let unread = all.unread.iter().map(|(id, error)| (id.to_string(), output::chain(error)));
    if as_json {
        let unread = unread.map(|(id, problem)| json!({ "id": id, "problem": problem }));
        return Ok(output::print_json(&runs.iter().map(|run| described(run)).chain(unread).collect::<Vec<_>>().into()));
    }
    let status = output::print(&table(&runs));
    for (_, problem) in unread {
        output::say(&problem);
    }
    Ok(status)
}

/// When its last event was at the latest; `None` while it goes on.
fn lasted_until(run: &StoredRun) -> Option<&str> {
    match run.state() {
        RunState::Running => None,
        RunState::Ended | RunState::Died | RunState::Removed => {
            Some(run.about().ended.as_ref().map_or(run.about().started.as_str(), |ended| ended.time.as_str()))
        }
    }
}

fn described(run: &StoredRun) -> Value {
    let about = run.about();
    json!({
        "id": about.id,
        "kind": about.kind,
        "sandbox": about.sandbox,
        "command": about.command,
        "directory": about.directory,
        "started": about.started,
        "state": run.state().as_str(),
        "ended": about.ended,
        "segments_gone": about.segments_gone,
        "lines_lost": about.lines_lost,
        "path": run.path().to_string_lossy(),
    })
}

fn table(runs: &[&StoredRun]) -> String {
    let names = runs.iter().filter_map(|run| run.about().sandbox.as_ref()).map(|name| escaped(name).chars().count());
    let width = names.max().unwrap_or(0).max("SANDBOX".len()).min(20);
    let mut text = format!(
        "{:22}  {:19}  {:>10}  {:width$}  {:>7}  {:>6}  COMMAND\n",
        "RUN", "STARTED (UTC)", "TOOK", "SANDBOX", "EXIT", "DENIED"
    );
    for run in runs {
        let about = run.about();
        let (took, exit, denied) = match &about.ended {
            Some(ended) => (
                Some(Duration::from_millis(ended.duration_ms)),
                ended.exit_status.to_string(),
                ended.totals.flows_denied.saturating_add(ended.totals.dns_denied).to_string(),
            ),
            None => match run.state() {
                RunState::Running => (page::since(&about.started), "running".to_owned(), String::new()),
                state @ (RunState::Ended | RunState::Died | RunState::Removed) => {
                    (None, state.as_str().to_owned(), String::new())
                }
            },
        };
        let took = took.map(page::took).unwrap_or_default();
        let started = page::utc(&about.started);
        let _ = writeln!(
            text,
            "{:22}  {:19}  {took:>10}  {:width$}  {exit:>7}  {denied:>6}  {}",
            about.id.as_str(),
            started.get(..19).unwrap_or(&started),
            escaped(about.sandbox.as_deref().unwrap_or("")),
            page::command(about),
        );
    }
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}
