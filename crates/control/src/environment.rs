//! The program's environment: nothing of the caller's but what was named.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Where programs are looked up inside: the usual folders of a distribution, never the caller's.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program's own home: an empty folder inside the sandbox, the same for everybody.
pub const HOME: &str = "/home/user";

/// Variables that come over from the caller without being asked for: they say how to talk to the person, not who they are.
const PASSED: [&str; 3] = ["TERM", "LANG", "TZ"];

/// Why a variable was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    #[error("{given:?} has no value; write NAME=VALUE, or --env-pass {given:?} to hand the caller's value over")]
    NoValue { given: OsString },
    #[error("{name:?} cannot be the name of an environment variable")]
    BadName { name: OsString },
    #[error("the value of {name:?} contains a NUL byte")]
    BadValue { name: OsString },
}

/// The environment of a program: defaults, then `passed` names from the caller's environment, then `set` ones.
///
/// # Errors
/// When a name or value cannot stand in an environment.
pub fn build(
    caller: impl Fn(&OsStr) -> Option<OsString>,
    passed: &[OsString],
    set: &[(OsString, OsString)],
) -> Result<Vec<(OsString, OsString)>, EnvironmentError> {
    let mut variables = BTreeMap::new();
    variables.insert(OsString::from("PATH"), OsString::from(DEFAULT_PATH));
    variables.insert(OsString::from("HOME"), OsString::from(HOME));
    for name in PASSED.iter().map(OsStr::new).chain(passed.iter().map(OsString::as_os_str)) {
        check_name(name)?;
        // A name that the caller does not have stays unset, as it would in a shell.
        if let Some(value) = caller(name) {
            variables.insert(name.to_owned(), value);
        }
    }
    for (name, value) in set {
        check_name(name)?;
        if value.as_bytes().contains(&0) {
            return Err(EnvironmentError::BadValue { name: name.clone() });
        }
        variables.insert(name.clone(), value.clone());
    }
    Ok(variables.into_iter().collect())
}

/// Splits `NAME=VALUE`.
///
/// # Errors
/// When there is no `=` or no name.
pub fn parse_assignment(given: &OsStr) -> Result<(OsString, OsString), EnvironmentError> {
    let bytes = given.as_bytes();
    let Some(at) = bytes.iter().position(|b| *b == b'=') else {
        return Err(EnvironmentError::NoValue { given: given.to_owned() });
    };
    let (name, value) = bytes.split_at(at);
    let name = OsStr::from_bytes(name);
    check_name(name)?;
    let value = OsStr::from_bytes(value.get(1..).unwrap_or_default());
    Ok((name.to_owned(), value.to_owned()))
}

fn check_name(name: &OsStr) -> Result<(), EnvironmentError> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.iter().any(|b| matches!(b, b'=' | 0)) {
        return Err(EnvironmentError::BadName { name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_over_nothing_that_was_not_named() {
        let caller = |name: &OsStr| Some(OsString::from(format!("caller's {}", name.to_string_lossy())));
        let variables = build(caller, &["API_KEY".into()], &[]).unwrap();
        let names: Vec<_> = variables.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(names, ["API_KEY", "HOME", "LANG", "PATH", "TERM", "TZ"]);
        assert_eq!(value(&variables, "PATH"), DEFAULT_PATH);
        assert_eq!(value(&variables, "HOME"), "/home/user");
        assert_eq!(value(&variables, "API_KEY"), "caller's API_KEY");
    }

    #[test]
    fn what_the_caller_lacks_stays_unset_and_what_is_set_wins() {
        let set =
            [parse_assignment(OsStr::new("PATH=/opt/bin")).unwrap(), parse_assignment(OsStr::new("A=b=c")).unwrap()];
        let variables = build(|_| None, &["MISSING".into()], &set).unwrap();
        let names: Vec<_> = variables.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(names, ["A", "HOME", "PATH"]);
        assert_eq!(value(&variables, "PATH"), "/opt/bin");
        assert_eq!(value(&variables, "A"), "b=c");
    }

    #[test]
    fn refuses_what_no_environment_can_hold() {
        assert!(matches!(parse_assignment(OsStr::new("NAME")), Err(EnvironmentError::NoValue { .. })));
        assert!(matches!(parse_assignment(OsStr::new("=value")), Err(EnvironmentError::BadName { .. })));
        assert!(matches!(build(|_| None, &["A=B".into()], &[]), Err(EnvironmentError::BadName { .. })));
    }

    fn value<'a>(variables: &'a [(OsString, OsString)], name: &str) -> &'a str {
        variables.iter().find(|(known, _)| known == name).unwrap().1.to_str().unwrap()
    }
}
