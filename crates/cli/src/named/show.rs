//! What there is: `ls` and `inspect`.

use cofferdam_control::named::{self, Entry};
use cofferdam_control::summary::escaped;

use super::open;
use crate::args::{InspectArgs, LsArgs};
use crate::output;
use crate::refusal::{EXIT_FAILED, Refusal};
use crate::state::registry;

pub(crate) fn ls(args: &LsArgs) -> u8 {
    let listed = registry().and_then(|registry| {
        let names = registry.names().map_err(|error| Refusal::from(&error))?;
        // One that is removed meanwhile is not there.
        Ok(names.iter().filter_map(|name| registry.open(name).ok()).map(|entry| describe(&entry)).collect::<Vec<_>>())
    });
    match listed {
        Ok(all) if args.json => output::print_json(&serde_json::Value::Array(all)),
        Ok(all) if args.quiet => {
            output::print(&all.iter().map(|one| format!("{}\n", text(one, "name"))).collect::<String>())
        }
        Ok(all) => output::print(&table(&all)),
        Err(refusal) => refusal.with_status(EXIT_FAILED).tell(args.json),
    }
}

fn table(all: &[serde_json::Value]) -> String {
    let width = all.iter().map(|one| text(one, "name").len()).max().unwrap_or(0).max("NAME".len());
    let mut lines = format!("{:width$}  {:8}  {:>4}  COMMAND\n", "NAME", "STATE", "RUNS");
    for one in all {
        let runs = one.get("runs").and_then(serde_json::Value::as_array).map_or(0, Vec::len);
        let command = one.pointer("/spec/command").and_then(serde_json::Value::as_array);
        let command: Vec<&str> = command.into_iter().flatten().filter_map(serde_json::Value::as_str).collect();
        let line = format!(
            "{:width$}  {:8}  {runs:>4}  {}",
            text(one, "name"),
            text(one, "state"),
            escaped(&command.join(" "))
        );
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    lines
}

fn text<'a>(value: &'a serde_json::Value, field: &str) -> &'a str {
    value.get(field).and_then(serde_json::Value::as_str).unwrap_or("")
}

/// Everything that is known of one.
fn describe(entry: &Entry) -> serde_json::Value {
    let mut about = serde_json::json!({ "name": entry.name().as_str(), "state": entry.state().as_str() });
    let Some(object) = about.as_object_mut() else { return about };
    match entry.spec() {
        Ok(spec) => {
            object.insert("spec".to_owned(), serde_json::to_value(&spec).unwrap_or_default());
        }
        Err(error) => {
            object.insert("problem".to_owned(), output::chain(&error).into());
        }
    }
    object.insert("directory".to_owned(), entry.path().to_string_lossy().into());
    object.insert("last_exit_status".to_owned(), entry.last_exit().into());
    if let Ok(live) = named::inspect(entry) {
        let runs = live.runs.iter().map(
            |run| serde_json::json!({ "supervisor": run.supervisor, "command": run.command, "main": run.is_main }),
        );
        let started = cofferdam_model::rfc3339(std::time::Duration::from_secs(live.started));
        for (field, value) in [
            ("started", started.into()),
            ("keeper", live.keeper.into()),
            ("init", live.init.into()),
            ("guest", live.guest.iter().map(ToString::to_string).collect::<Vec<_>>().into()),
            ("runs", runs.collect::<Vec<_>>().into()),
            ("more_runs", live.more_runs.into()),
        ] {
            object.insert(field.to_owned(), value);
        }
    }
    about
}

pub(crate) fn inspect(args: &InspectArgs) -> u8 {
    let about = match open(&args.name) {
        Ok(entry) => describe(&entry),
        Err(refusal) => return refusal.with_status(EXIT_FAILED).tell(args.json),
    };
    if args.json { output::print_json(&about) } else { output::print(&page(&about)) }
}

fn page(about: &serde_json::Value) -> String {
    let mut lines = String::new();
    let mut add = |label: &str, value: &str| {
        if !value.is_empty() {
            lines.push_str(&format!("{label:10}{}\n", escaped(value)));
        }
    };
    let plain = |value: &serde_json::Value| match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_null() => String::new(),
        None => value.to_string(),
    };
    let list = |pointer: &str| {
        let list = about.pointer(pointer).and_then(serde_json::Value::as_array);
        list.into_iter().flatten().map(plain).collect::<Vec<_>>()
    };
    for field in ["name", "state", "problem", "started", "keeper", "init"] {
        add(field, &about.get(field).map(plain).unwrap_or_default());
    }
    add("backend", &about.pointer("/spec/backend").map(plain).unwrap_or_default());
    add("addresses", &list("/guest").join(" "));
    add("command", &list("/spec/command").join(" "));
    add("exit", &about.get("last_exit_status").map(plain).unwrap_or_default());
    add("project", &about.pointer("/spec/project").map(plain).unwrap_or_default());
    for mount in about.pointer("/spec/mounts").and_then(serde_json::Value::as_array).into_iter().flatten() {
        let read_only = mount.get("read_only").and_then(serde_json::Value::as_bool).unwrap_or(false);
        let behind = if read_only { ":ro" } else { "" };
        add("mount", &format!("{}:{}{behind}", text(mount, "source"), text(mount, "target")));
    }
    add("files", &about.get("directory").map(plain).unwrap_or_default());
    for run in about.get("runs").and_then(serde_json::Value::as_array).into_iter().flatten() {
        add("run", &format!("{} {}", run.get("supervisor").map(plain).unwrap_or_default(), text(run, "command")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_that_a_sandbox_is_a_virtual_machine() {
        let about =
            |spec: serde_json::Value| page(&serde_json::json!({ "name": "s", "state": "stopped", "spec": spec }));
        assert_eq!(about(serde_json::json!({})), "name      s\nstate     stopped\n");
        let machine = about(serde_json::json!({ "backend": "vm" }));
        assert_eq!(machine, "name      s\nstate     stopped\nbackend   vm\n");
    }
}
