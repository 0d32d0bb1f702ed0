//! Changes that the page asks for: one rule in front of a run's own.
//!
//! What a rule would be is shown before it is put in force, each by a question of its own; see [`cofferdam_control::change`].

use std::error::Error;
use std::path::Path;

use cofferdam_control::change::{ChangeError, Changeable, Proposal};
use cofferdam_control::store::{RunId, RunStore, StoreError};
use cofferdam_evidence::summary::escaped;
use serde_json::{Value, json};

/// What the page says.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Allow {
    run: String,
    rule: String,
}

/// What is done about it, in a state directory.
pub(crate) type Ask = fn(&Path, &Allow) -> Result<Value, Failed>;

/// Why it was not done, in words.
#[derive(Debug)]
pub(crate) enum Failed {
    /// There is no such run.
    Absent(String),
    Refused(String),
}

/// What the rule would be, and what would deny all the same.
pub(crate) fn propose(state: &Path, allow: &Allow) -> Result<Value, Failed> {
    let proposal = open(state, allow)?;
    Ok(json!({ "rule": escaped(&proposal.rule()), "remark": proposal.remark().as_deref().map(escaped) }))
}

/// Puts it in force.
pub(crate) fn allow(state: &Path, allow: &Allow) -> Result<Value, Failed> {
    let proposal = open(state, allow)?;
    let rule = escaped(&proposal.rule());
    proposal.apply().map_err(refused)?;
    Ok(json!({ "said": format!("{rule} is in force") }))
}

fn open(state: &Path, Allow { run, rule }: &Allow) -> Result<Proposal, Failed> {
    let absent = || Failed::Absent("there is no record of this run".to_owned());
    let id: RunId = run.parse().map_err(|_| absent())?;
    let run = match RunStore::at(state).open(&id) {
        Ok(run) => run,
        Err(StoreError::Absent(_)) => return Err(absent()),
        Err(error) => return Err(Failed::Refused(in_words(&error))),
    };
    Changeable::open(state, &run).and_then(|changeable| changeable.with_rule(rule)).map_err(refused)
}

#[expect(clippy::needless_pass_by_value, reason = "it is given as it comes from `map_err`")]
fn refused(error: ChangeError) -> Failed {
    Failed::Refused(in_words(&error))
}

/// An error with what is behind it, as far as that is not said already.
fn in_words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    escaped(&text)
}
