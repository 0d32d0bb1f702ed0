//! `cofferdam doctor`: what this machine has to offer, found out by doing it.
//!
//! Each check runs in a child process of its own, so that one that needs namespaces cannot leave its marks on the next,
//! and one that hangs or dies is a finding like any other.

mod checks;
mod prove;

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::json;

use crate::args::DoctorArgs;
use crate::output::{self, Paint, Style};

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// What was done and what came of it.
    detail: String,
    /// What to do about it, in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Good,
    /// Something works less well or not at all that `run` can do without.
    Limited,
    /// `run` does not work like this.
    Missing,
}

/// Checks the machine, or proves the wall.
pub(crate) fn doctor(args: &DoctorArgs) -> u8 {
    if args.prove {
        return prove::prove(args.json);
    }
    let checks = checks::all();
    let missing = checks.iter().any(|check| check.state == State::Missing);
    let printed = if args.json {
        output::print_json(&json!({ "ready": !missing, "checks": checks }))
    } else {
        output::print(&table(&checks, missing, Paint::stdout()))
    };
    if missing { 1 } else { printed }
}

fn table(checks: &[Check], missing: bool, paint: Paint) -> String {
    let mut text = String::new();
    for check in checks {
        let (word, style) = match check.state {
            State::Good => ("good   ", Style::Good),
            State::Limited => ("limited", Style::Notable),
            State::Missing => ("missing", Style::Bad),
        };
        let _ = writeln!(text, "{}  {:24} {}", paint.paint(style, word), check.name, check.detail);
        if let Some(remedy) = &check.remedy {
            let _ = writeln!(text, "{:9}{:24} → {remedy}", "", "");
        }
    }
    text.push_str(if missing {
        "\nSomething that `cofferdam run` needs is missing.\n"
    } else {
        "\n`cofferdam run` has what it needs here.\n"
    });
    text
}
