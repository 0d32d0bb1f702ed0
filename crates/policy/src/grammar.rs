//! The rule grammar: text in, rules out, and back.

use std::fmt;
use std::ops::Range;

use cofferdam_model::{Action, Rule};

/// What is wrong with one token, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleError {
    /// The text that was parsed.
    pub source: String,
    /// The place in `source`, in bytes.
    pub span: Range<usize>,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to write in its place.
    pub help: Option<String>,
}

/// Everything that is wrong with a text. Not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleErrors(pub Vec<RuleError>);

impl fmt::Display for RuleErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for RuleErrors {}

/// Parses rules in the grammar `action[:direction]@target[:protocols[:ports]]`, separated by commas.
///
/// # Errors
///
/// Everything that is wrong with `text`; one bad token refuses the whole.
pub fn parse_rules(text: &str) -> Result<Vec<Rule>, RuleErrors> {
    let _ = text;
    Ok(Vec::new())
}

/// Parses the short form of `--allow` and `--deny`: `target[:ports]`, tcp and udp, egress.
///
/// # Errors
///
/// Everything that is wrong with `text`.
pub fn parse_short(action: Action, text: &str) -> Result<Vec<Rule>, RuleErrors> {
    let _ = (action, text);
    Ok(Vec::new())
}

/// A rule in the grammar, normalised. Parsing it gives the rule back.
#[must_use]
pub fn format_rule(rule: &Rule) -> String {
    let _ = rule;
    String::new()
}

/// The word for an action.
pub(crate) fn action_word(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}
