//! Any text as a configuration file in each format: the reader returns, and what it accepts compiles and is within bounds.

#![no_main]

use cofferdam_model::Classifier;
use cofferdam_policy::file::{ConfigErrors, parse};
use cofferdam_policy::grammar::{format_rule, parse_rules};
use cofferdam_policy::Policy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for name in ["x.toml", "x.json", "x.yaml"] {
        match parse(name, text) {
            Ok(config) => {
                assert!((1280..=65_520).contains(&config.interface.mtu));
                assert!(!config.dns.query_timeout.is_zero());
                for rule in &config.policy.rules {
                    assert_eq!(parse_rules(&format_rule(rule)).as_deref(), Ok(std::slice::from_ref(rule)));
                }
                let _ = Policy::compile(&config.policy, Classifier::default());
            }
            Err(ConfigErrors(errors)) => assert!(!errors.is_empty()),
        }
    }
});
