//! Any text as rules: the parser returns, errors point into the text, and what it accepts prints and reads back the same.

#![no_main]

use cofferdam_model::{Action, Classifier, PolicyConfig, Rule};
use cofferdam_policy::grammar::{RuleErrors, format_rule, parse_rules, parse_short};
use cofferdam_policy::Policy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for parsed in [parse_rules(text), parse_short(Action::Allow, text)] {
        match parsed {
            Ok(rules) => round_trip(rules),
            Err(RuleErrors(errors)) => {
                assert!(!errors.is_empty());
                for error in errors {
                    assert!(error.source.get(error.span.clone()).is_some(), "{error:?}");
                    assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
                }
            }
        }
    }
});

fn round_trip(rules: Vec<Rule>) {
    let printed: Vec<String> = rules.iter().map(format_rule).collect();
    let read = parse_rules(&printed.join(",")).expect("what was printed is read");
    assert_eq!(read, rules, "{printed:?}");
    let config = PolicyConfig { rules, ..PolicyConfig::default() };
    for warning in Policy::warnings(&config) {
        assert!(!warning.to_string().is_empty());
    }
    let _ = Policy::compile(&config, Classifier::default());
}
