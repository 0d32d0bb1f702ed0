//! Paths in a share, as clients write them and as the host has them.
//!
//! Clients send UTF-16 and the host has bytes. One name on the wire is one name on the host, and the other way round: what has no
//! such pair is not shown and cannot be named.
//!
//! | On the wire | On the host |
//! |---|---|
//! | `\` or `/` | between components |
//! | U+F001–U+F01F, U+F020–U+F026 | the control characters, `" * : < > ? |` in the order of the mapping of Services for Macintosh, which Linux's client uses by default |
//! | U+F028, U+F029 at the end of a component | a space, a dot at the end |
//! | anything else that is Unicode | the same in UTF-8; case and normalisation are part of the name |
//!
//! Never shown: names that are not UTF-8, that have a backslash (a separator on the wire), or one of the characters of the mapping itself.

use std::fmt::Write as _;

use crate::status::Status;
use crate::wire::bytes;

/// What Linux takes for a path and for a component (`PATH_MAX`, `NAME_MAX`).
const LONGEST_PATH: usize = 4095;
const LONGEST_NAME: usize = 255;

/// The characters that are not written as they are, beside the control characters (SFM of MS-FSCC and `cifs_unicode.h`).
const MAPPED: [(char, char); 7] = [
    ('"', '\u{f020}'),
    ('*', '\u{f021}'),
    (':', '\u{f022}'),
    ('<', '\u{f023}'),
    ('>', '\u{f024}'),
    ('?', '\u{f025}'),
    ('|', '\u{f027}'),
];
const LAST_SPACE: char = '\u{f028}';
const LAST_DOT: char = '\u{f029}';

/// A path beneath the root of a share: components without `.`, `..` and separators, joined by `/`; the root is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SharePath(String);

impl SharePath {
    /// Reads a path as a client sent it.
    pub(crate) fn parse(wire: &[u8]) -> Result<SharePath, Status> {
        let wire = bytes::text(wire).ok_or(Status::OBJECT_NAME_INVALID)?;
        let mut path = String::new();
        for component in wire.split(['\\', '/']) {
            // A separator too many changes nothing: some clients begin or end with one.
            if component.is_empty() {
                continue;
            }
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(&to_host(component)?);
        }
        if path.len() > LONGEST_PATH {
            return Err(Status::NAME_TOO_LONG);
        }
        Ok(SharePath(path))
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// For `openat`.
    pub(crate) fn as_str(&self) -> &str {
        if self.is_root() { "." } else { &self.0 }
    }

    /// The directory that it is in, for `openat`, and its name there; the root has none.
    pub(crate) fn split(&self) -> Option<(&str, &str)> {
        match self.0.rsplit_once('/') {
            Some(split) => Some(split),
            None => (!self.is_root()).then_some((".", self.0.as_str())),
        }
    }

    /// Where this is once `from`, which it is beneath, is `to`.
    pub(crate) fn moved(&self, from: &SharePath, to: &SharePath) -> Option<SharePath> {
        let below = self.0.strip_prefix(&from.0)?.strip_prefix('/')?;
        Some(SharePath(format!("{}/{below}", to.0)))
    }

    /// As clients write it, from the root of the share.
    pub(crate) fn to_wire(&self) -> String {
        let mut wire = String::new();
        for component in self.0.split('/').filter(|component| !component.is_empty()) {
            let _ = write!(wire, "\\{}", to_wire(component).unwrap_or_default());
        }
        if wire.is_empty() { "\\".to_owned() } else { wire }
    }
}

/// A component as the host has it.
fn to_host(component: &str) -> Result<String, Status> {
    if component == "." || component == ".." {
        return Err(Status::OBJECT_PATH_SYNTAX_BAD);
    }
    let mut name = String::new();
    let mut rest = component.chars().peekable();
    while let Some(char) = rest.next() {
        let is_last = rest.peek().is_none();
        name.push(match char {
            // Streams, patterns, and what cannot be in a name: never as they are.
            '\0'..='\u{1f}' | '"' | '*' | ':' | '<' | '>' | '?' | '|' => return Err(Status::OBJECT_NAME_INVALID),
            LAST_SPACE if is_last => ' ',
            LAST_DOT if is_last => '.',
            '\u{f001}'..='\u{f01f}' => char::from_u32(u32::from(char) - 0xf000).unwrap_or(char),
            '\u{f020}'..='\u{f029}' => match MAPPED.iter().find(|(_, mapped)| *mapped == char) {
                Some((plain, _)) => *plain,
                None => return Err(Status::OBJECT_NAME_INVALID),
            },
            char => char,
        });
    }
    // What was mapped may have become a name with another meaning.
    if name == "." || name == ".." {
        return Err(Status::OBJECT_PATH_SYNTAX_BAD);
    }
    if name.len() > LONGEST_NAME { Err(Status::NAME_TOO_LONG) } else { Ok(name) }
}

/// A name of the host as clients are shown it; `None` for one that they could not name.
pub(crate) fn to_wire(name: &str) -> Option<String> {
    let mut wire = String::new();
    let mut rest = name.chars().peekable();
    while let Some(char) = rest.next() {
        let is_last = rest.peek().is_none();
        wire.push(match char {
            '\\' | '/' | '\0' | '\u{f001}'..='\u{f029}' => return None,
            ' ' if is_last => LAST_SPACE,
            '.' if is_last => LAST_DOT,
            '\u{1}'..='\u{1f}' => char::from_u32(u32::from(char) + 0xf000).unwrap_or(char),
            char => MAPPED.iter().find(|(plain, _)| *plain == char).map_or(char, |(_, mapped)| *mapped),
        });
    }
    Some(wire)
}

/// Whether a name, as clients are shown it, matches a pattern of theirs: `*` and `?`, and their DOS forms `<`, `>` and `"`.
pub(crate) fn matches(pattern: &[char], name: &[char]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // Where the last `*` was, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while seen < name.len() {
        match (pattern.get(at), name.get(seen)) {
            (Some('*' | '<'), _) => {
                star = Some((at, seen));
                at += 1;
            }
            (Some('?' | '>'), _) => (at, seen) = (at + 1, seen + 1),
            (Some('"'), Some('.')) => (at, seen) = (at + 1, seen + 1),
            (Some(wanted), Some(char)) if wanted == char => (at, seen) = (at + 1, seen + 1),
            _ => match star {
                Some((back, taken)) => {
                    star = Some((back, taken + 1));
                    (at, seen) = (back + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|rest| matches!(rest, '*' | '<'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::bytes::utf16;

    fn parsed(wire: &str) -> Result<String, Status> {
        SharePath::parse(&utf16(wire)).map(|path| path.as_str().to_owned())
    }

    #[test]
    fn no_path_leads_up_or_elsewhere() {
        for wire in ["..", "a\\..\\b", "../etc", "a/.", "\u{f029}", ".\u{f029}", "a\\.\u{f029}\\b"] {
            assert_eq!(parsed(wire), Err(Status::OBJECT_PATH_SYNTAX_BAD), "{wire:?}");
        }
        for wire in ["a:stream", "a::$DATA", "a*", "a?", "a|b", "a\0b", "a\nb", "\u{f026}"] {
            assert_eq!(parsed(wire), Err(Status::OBJECT_NAME_INVALID), "{wire:?}");
        }
        assert_eq!(SharePath::parse(&[0, 0xd8]), Err(Status::OBJECT_NAME_INVALID), "half a pair");
        assert_eq!(SharePath::parse(&[65]), Err(Status::OBJECT_NAME_INVALID), "half a unit");
        assert_eq!(parsed(&"x".repeat(256)), Err(Status::NAME_TOO_LONG));
    }

    #[test]
    fn separators_are_both_and_do_not_count() {
        assert_eq!(parsed("\\a/b\\\\c/").as_deref(), Ok("a/b/c"));
        assert_eq!(parsed("").as_deref(), Ok("."));
        // Escapes of other protocols mean nothing here.
        assert_eq!(parsed("%2e%2e").as_deref(), Ok("%2e%2e"));
    }

    #[test]
    fn names_that_cannot_be_named_are_not_shown() {
        for name in ["a\\b", "\u{f022}", "x\u{f029}y"] {
            assert_eq!(to_wire(name), None, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_names_what_it_was_shown_for(name in "[a-z.: \\\\*\u{f020}-\u{f02a}\u{1}-\u{1f}äé🦀]{1,8}") {
            prop_assume!(name != "." && name != "..");
            if let Some(wire) = to_wire(&name) {
                prop_assert_eq!(parsed(&wire), Ok(name));
            }
        }

        #[test]
        fn two_names_on_the_wire_are_two_on_the_host(a in "[a. :\u{f020}-\u{f02a}]{1,4}", b in "[a. :\u{f020}-\u{f02a}]{1,4}") {
            if let (Ok(first), Ok(second)) = (to_host(&a), to_host(&b)) {
                // A space or a dot at the end may be written in two ways; both mean the same file.
                let plain = |wire: &str| wire.replace(LAST_SPACE, " ").replace(LAST_DOT, ".");
                prop_assert_eq!(first == second, plain(&a) == plain(&b));
            }
        }

        #[test]
        fn patterns_end_and_a_star_takes_all(name in "[a.]{0,12}", pattern in "[a.*?<>\"]{0,12}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            let _ = matches(&chars(&pattern), &chars(&name));
            prop_assert!(matches(&['*'], &chars(&name)));
            prop_assert!(matches(&chars(&name), &chars(&name)));
        }
    }
}
