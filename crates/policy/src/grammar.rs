//! The rule grammar: text in, rules out, and back.
//!
//! ```ebnf
//! value     = token , { "," , token } ;                 (* pieces trimmed, empty ones skipped; order is rule order *)
//! token     = action , [ ":" , direction ] , "@" , right ;
//! right     = target , [ ":" , protos , [ ":" , ports ] ] , { ":opaque" | ":allow-private" } ;
//! target    = "any" | group | "dns" | "[" ipv6 [ "/" len ] "]" | ipv4 [ "/" len ] | "*." name | "." name
//!           | "suffix=" name | "suffix!=" name | "domain=" name | name-with-a-dot | "@" list ;
//! protos    = proto , { "+" , proto } ;  proto = "any" | "tcp" | "udp" | "icmpv4" | "icmpv6" | "icmp" ;
//! ports     = range , { "+" , range } ;  range = "any" | port | port "-" port ;
//! ```
//!
//! `*.x` and `suffix=x` stand for `x` and every name below it, `.x` for the names below only. `suffix!=` accepts a public
//! suffix, which the others refuse. A list stands for one rule per entry. `:opaque` and `:allow-private`, each once and in either
//! order, go with names that are allowed: on ports 80 and 443 protocols that show no name pass as well; and the names may lead to
//! addresses that are not public. Words are lower case; names are not case sensitive.

mod error;
mod format;
mod name;
mod parse;
mod piece;

use cofferdam_model::{Action, Destination, PortRange, Rule};

pub use error::{RuleError, RuleErrorKind, RuleErrors};
pub(crate) use parse::with_target;

/// The port of DNS (RFC 1035 §4.2).
const DNS_PORT: PortRange = PortRange { start: 53, end: 53 };
/// Behind a rule that is `opaque`.
const OPAQUE: &str = ":opaque";
/// Behind a rule that says `allow_private`.
const ALLOW_PRIVATE: &str = ":allow-private";

/// Parses rules in the grammar, separated by commas.
///
/// # Errors
///
/// Everything that is wrong with `text`, one error per token; one bad token refuses the whole.
pub fn parse_rules(text: &str) -> Result<Vec<Rule>, RuleErrors> {
    parse::rules(text)
}

/// Parses the short form of `--allow` and `--deny`: `target[:ports]`, which stands for tcp and udp, egress. Several may be
/// separated by commas.
///
/// # Errors
///
/// Everything that is wrong with `text`, one error per token.
pub fn parse_short(action: Action, text: &str) -> Result<Vec<Rule>, RuleErrors> {
    parse::short(action, text)
}

/// A rule in the grammar, normalised. Parsing it gives the rule back, with its ports sorted and united.
#[must_use]
pub fn format_rule(rule: &Rule) -> String {
    format::rule(rule)
}

/// A destination as a target of the grammar.
#[must_use]
pub fn format_destination(destination: &Destination) -> String {
    format::destination(destination)
}

/// The word for an action.
pub(crate) fn action_word(action: Action) -> &'static str {
    format::action(action)
}
