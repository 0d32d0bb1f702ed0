//! Compiles rules and answers whether a flow may pass.
//!
//! [`Policy::check`] is the one place where addresses, names and ports are compared with rules. Everything else here leads up
//! to it: the rule grammar, presets, files and the builder fill a [`PolicyConfig`](cofferdam_model::PolicyConfig), and
//! [`Policy::compile`] turns that into lookup tables. No I/O, no clock, no randomness.

pub mod builder;
pub mod compare;
pub mod file;
pub mod grammar;
pub mod posture;
pub mod preset;
pub mod trial;

mod encrypted_dns;
mod explain;
mod facts;
mod nearest;
mod pins;
mod policy;
mod problems;
mod rule_problem;
mod table;
mod targets;
mod unreachable;
mod warnings;
mod weigh;

pub use encrypted_dns::BuiltIn;
pub use explain::{Explanation, Mismatch, Step, StepOutcome};
pub use facts::{
    Denial, Facts, Flight, FlightVerdict, NameVerdict, Pending, Permit, PinnedName, Reason, RuleRef, ShownName, Verdict,
};
pub use pins::{Pins, PinsFull};
pub use policy::{Policy, TooManyLayers, counts_for_rebinding};
pub use rule_problem::RuleProblem;
pub use targets::is_among;
pub use warnings::Warning;
