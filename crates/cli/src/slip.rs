//! Which verb a mistyped one was meant to be, where clap does not see it: to its measure, in a word of three letters two that have
//! changed places are two wrong ones.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};

/// Has the error name the verbs that are one slip away from what was typed. `words` is the command line behind the program's name.
pub(crate) fn suggest_verbs(error: &mut Error, command: &Command, words: impl Iterator<Item = String>) {
    if error.kind() != ErrorKind::InvalidSubcommand || error.get(ContextKind::SuggestedSubcommand).is_some() {
        return;
    }
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else { return };
    // The verb before it, if it is the second of two.
    let above = words.take_while(|word| word != typed).fold(command, |at, word| at.find_subcommand(word).unwrap_or(at));
    let names = above.get_subcommands().filter(|verb| !verb.is_hide_set()).map(Command::get_name);
    let meant: Vec<String> =
        names.filter(|name| is_slip(typed.as_bytes(), name.as_bytes())).map(str::to_owned).collect();
    if !meant.is_empty() {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(meant));
    }
}

/// Whether one letter is too many, missing or another, or two neighbours have changed places.
fn is_slip(typed: &[u8], meant: &[u8]) -> bool {
    let same = typed.iter().zip(meant).take_while(|(one, other)| one == other).count();
    let (typed, meant) = (typed.get(same..).unwrap_or_default(), meant.get(same..).unwrap_or_default());
    let is_swapped =
        matches!((typed, meant), ([a, b, rest @ ..], [c, d, others @ ..]) if (a, b, rest) == (d, c, others));
    let (typed_rest, meant_rest) = (typed.get(1..), meant.get(1..));
    is_swapped
        || typed_rest == Some(meant)
        || meant_rest == Some(typed)
        || (typed_rest == meant_rest && typed_rest.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slip_is_seen_through_and_two_are_not() {
        for typed in ["rnu", "urn", "rn", "un", "rum", "runn", "rrun", "bun"] {
            assert!(is_slip(typed.as_bytes(), b"run"), "{typed}");
        }
        for typed in ["", "r", "nur", "rnuu", "brum", "ls"] {
            assert!(!is_slip(typed.as_bytes(), b"run"), "{typed}");
        }
    }
}
