use std::fmt;

use miette::{Diagnostic, LabeledSpan, SourceCode};

use crate::grammar::RuleError;
use crate::problems;

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it stands: a flag, a file's name, or a file's name and the field in it.
    pub origin: String,
    /// What is wrong, with its place and what was expected.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// The rule that is wrong, when it is one in the short grammar: it carries the text and the place in it.
    pub rule: Option<Box<RuleError>>,
}

impl ConfigError {
    pub(crate) fn new(origin: impl Into<String>, message: impl fmt::Display) -> ConfigError {
        ConfigError { origin: origin.into(), message: message.to_string(), help: None, rule: None }
    }

    pub(crate) fn help(self, help: impl Into<Option<String>>) -> ConfigError {
        ConfigError { help: help.into(), ..self }
    }

    pub(crate) fn rule(origin: &str, error: RuleError) -> ConfigError {
        ConfigError {
            origin: origin.to_owned(),
            message: error.to_string(),
            help: error.help.clone(),
            rule: Some(Box::new(error)),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

impl std::error::Error for ConfigError {}

impl Diagnostic for ConfigError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        problems::boxed_help(self.help.as_ref())
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.rule.as_ref().and_then(|rule| rule.source_code())
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.rule.as_ref().and_then(|rule| rule.labels())
    }
}

/// Everything that is wrong with a configuration. Not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        problems::format_lines(f, &self.0)
    }
}

impl std::error::Error for ConfigErrors {}

impl Diagnostic for ConfigErrors {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        problems::boxed_related(&self.0)
    }
}
