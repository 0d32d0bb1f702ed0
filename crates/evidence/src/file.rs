//! What was learned as a configuration file, and as an addition to one.

use std::fmt::Write as _;
use std::ops::Range;

use cofferdam_model::{NetworkConfig, PolicyConfig, Rule};
use cofferdam_policy::file;
use cofferdam_policy::grammar::format_rule;
use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;

use crate::learn::few;
use crate::{Because, Learned};

/// Why rules cannot be added to a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    #[error("it is no TOML file; rules are added to TOML alone")]
    Format,
    #[error("it has no place for rules: {reason}")]
    NoPlace { reason: String },
}

/// A whole file; `head` is its first comment, line by line, `own` are rules that stand before what was learned, and
/// `nameservers` who resolves names.
#[must_use]
pub fn write(learned: &Learned, head: &[String], own: &[Rule], nameservers: &[String]) -> String {
    let mut text = String::new();
    for line in head {
        let _ = writeln!(text, "# {}", plain(line));
    }
    text.push_str("[network]\ndefault_egress = \"deny\"\nrules = [\n");
    for rule in own {
        let _ = writeln!(text, "    {},", quoted(&format_rule(rule)));
    }
    text.push_str(&lines(learned));
    text.push_str("]\n");
    if !nameservers.is_empty() {
        let quoted: Vec<String> = nameservers.iter().map(|server| quoted(server)).collect();
        let _ = write!(text, "\n[network.dns]\nnameservers = [{}]\n", quoted.join(", "));
    }
    text
}

/// The text of the TOML file `name` with what was learned behind its rules, and everything else as it is. What comes of it is
/// read back and compared: `before` is what the file says.
///
/// # Errors
///
/// The file is no TOML, or its rules are not a list that can be added to.
pub fn merge(name: &str, text: &str, before: &NetworkConfig, learned: &Learned) -> Result<String, MergeError> {
    let is_toml = name.rsplit_once('.').is_some_and(|(_, ending)| ending.eq_ignore_ascii_case("toml"));
    if !is_toml {
        return Err(MergeError::Format);
    }
    if learned.rules.is_empty() {
        return Ok(text.to_owned());
    }
    let mut reason = "there is no `[network]` that rules could stand in".to_owned();
    // A file that says nothing about rules has those of the standard preset, and with rules it has to name it.
    for preset in ["", "preset = \"public-only\"\n"] {
        let Some(merged) = insert(text, &lines(learned), preset) else { break };
        match file::parse(name, &merged) {
            Ok(network) if is_added(before, &network, learned) => return Ok(merged),
            Ok(_) => reason = "its rules stand elsewhere".to_owned(),
            Err(errors) => reason = errors.to_string(),
        }
    }
    Err(MergeError::NoPlace { reason })
}

/// Whether `after` is what was meant: the rules of `before` and those that were learned, and nothing else changed.
fn is_added(before: &NetworkConfig, after: &NetworkConfig, learned: &Learned) -> bool {
    let mut rest = after.policy.rules.clone();
    for rule in before.policy.rules.iter().chain(&learned.rules) {
        match rest.iter().position(|other| other == rule) {
            Some(at) => drop(rest.remove(at)),
            None => return false,
        }
    }
    let policy = PolicyConfig { rules: before.policy.rules.clone(), ..after.policy.clone() };
    rest.is_empty() && NetworkConfig { policy, ..after.clone() } == *before
}

/// Where the rules of a file are.
#[derive(Deserialize)]
struct Document {
    network: Option<Network>,
    rules: Option<Rules>,
    policy: Option<Network>,
}

#[derive(Deserialize)]
struct Network {
    rules: Option<Rules>,
    policy: Option<Box<Network>>,
}

type Rules = Spanned<Vec<Spanned<IgnoredAny>>>;

/// `preset` stands before rules that are new.
fn insert(text: &str, lines: &str, preset: &str) -> Option<String> {
    let document: Document = toml::from_str(text).ok()?;
    let inside = |network: Network| network.rules.or(network.policy.and_then(|policy| policy.rules));
    let is_file = document.network.is_some();
    let rules = document.network.and_then(inside).or(document.rules).or(document.policy.and_then(inside));
    let mut merged = text.to_owned();
    match rules {
        Some(rules) => {
            let Range { start, end } = rules.span();
            let close = end.checked_sub(1).filter(|close| text.get(*close..end) == Some("]"))?;
            let last = rules.get_ref().last().map_or(start + 1, |last| last.span().end);
            let behind = text.get(last..close)?;
            // Behind the last rule may stand a comma, and comments with anything in them.
            let code: String = behind.lines().map(|line| line.split('#').next().unwrap_or_default()).collect();
            let needs_comma = !rules.get_ref().is_empty() && !code.contains(',');
            let ends_line = behind.trim_end_matches([' ', '\t']).ends_with('\n');
            let before_close = if ends_line { behind.trim_end_matches([' ', '\t']).len() + last } else { close };
            merged.insert_str(before_close, &format!("{}{lines}", if ends_line { "" } else { "\n" }));
            if needs_comma {
                merged.insert(last, ',');
            }
        }
        None => {
            let new = format!("{preset}rules = [\n{lines}]\n");
            let at = if is_file { header_end(text)? } else { 0 };
            merged.insert_str(at, &new);
        }
    }
    Some(merged)
}

/// Where the line behind `[network]` begins.
fn header_end(text: &str) -> Option<usize> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        at += line.len();
        let code = line.split('#').next().unwrap_or_default().trim();
        if code == "[network]" && line.ends_with('\n') {
            return Some(at);
        }
    }
    None
}

/// One line a rule, with the reason behind it.
fn lines(learned: &Learned) -> String {
    let rules: Vec<String> = learned.rules.iter().map(|rule| format!("{},", quoted(&format_rule(rule)))).collect();
    let width = rules.iter().map(|rule| rule.chars().count()).max().unwrap_or(0).min(64);
    let mut text = String::new();
    for (rule, because) in rules.iter().zip(&learned.because) {
        let _ = writeln!(text, "    {rule:width$} # {}", reason(because));
    }
    text
}

fn reason(because: &Because) -> String {
    let Because { flows, names, nameless } = because;
    let mut text = format!("×{flows}");
    if !names.is_empty() {
        let (shown, more) = few(names);
        let _ = write!(text, ", {} names: {shown}{more}", names.len());
    }
    if *nameless {
        text.push_str(", by its address");
    }
    text
}

/// A string of TOML. Rules and resolvers are plain ASCII.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// What may stand in a comment: no control characters (TOML 1.0).
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
