//! Any text as a table of targets, in both forms: the parser returns, errors point into the text, and a target prints and reads
//! back the same.

#![no_main]

use cofferdam_model::Classifier;
use cofferdam_policy::Policy;
use cofferdam_policy::file::default_network;
use cofferdam_policy::trial::{Table, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let policy = Policy::compile(&default_network().policy, Classifier::default());
    for name in ["targets", "targets.toml"] {
        match Table::parse(name, text) {
            Ok(table) => {
                for row in table.rows.iter().take(16) {
                    let printed = row.target.to_string();
                    assert_eq!(printed.parse::<Target>().as_ref(), Ok(&row.target), "{printed}");
                    let (holds, answer) = policy.judge(row);
                    assert!(holds || answer.action() != row.expected);
                }
            }
            Err(errors) => {
                assert!(!errors.is_empty());
                for error in errors {
                    assert!(text.get(error.span.clone()).is_some(), "{error:?}");
                }
            }
        }
    }
});
