//! Sockets of the host as they are written: `HOST:GUEST`, two absolute paths.

use cofferdam_model::{HostSocket, NetworkConfig};

use crate::file::error::ConfigError;
use crate::file::raw::RawHostSocketEntry;

/// Host sockets that one sandbox may have. Each is a process's descriptor, a file and a few mounts.
pub const MAX_HOST_SOCKETS: usize = 64;

/// `sun_path` of unix(7), without the byte that ends it.
const LONGEST_GUEST: usize = 107;
/// `PATH_MAX`, without the byte that ends it.
const LONGEST_HOST: usize = 4095;

/// Why a host socket is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostSocketError {
    #[error("{text:?} is not a host socket; expected `HOST:GUEST`, the path on the host and the path in the sandbox")]
    Form { text: String },
    #[error("{path:?} is an abstract socket, which has no file; only sockets with a path can be shared")]
    Abstract { path: String },
    #[error("the path {path:?} {side} is not absolute")]
    Relative { path: String, side: &'static str },
    #[error("the path {path:?} {side} has an empty part, `.` or `..` in it, or a `/` at its end")]
    Crooked { path: String, side: &'static str },
    #[error("the path {path:?} {side} has a control character in it")]
    Control { path: String, side: &'static str },
    #[error("the path {path:?} in the sandbox has `:/` in it, where it would begin")]
    Colon { path: String },
    #[error("the path {path:?} {side} has {len} bytes; a socket's has {most} at most")]
    TooLong { path: String, side: &'static str, len: usize, most: usize },
}

impl HostSocketError {
    /// What to write instead.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            HostSocketError::Form { text } if text.starts_with('/') => Some(format!("write {text}:{text}")),
            HostSocketError::Relative { path, .. } => Some(format!("write all of it, such as /run/{path}")),
            HostSocketError::Abstract { .. } => {
                Some("have its server listen at a path, or put a relay such as socat in between".to_owned())
            }
            HostSocketError::Form { .. }
            | HostSocketError::Crooked { .. }
            | HostSocketError::Control { .. }
            | HostSocketError::Colon { .. }
            | HostSocketError::TooLong { .. } => None,
        }
    }
}

/// The host socket that one specification names. The path inside begins at the last colon before a slash.
///
/// # Errors
/// What is wrong with it.
pub fn parse_host_socket(text: &str) -> Result<HostSocket, HostSocketError> {
    let form = || HostSocketError::Form { text: text.to_owned() };
    let (host, guest) = match text.rfind(":/") {
        Some(at) => (text.get(..at).ok_or_else(form)?, text.get(at + 1..).ok_or_else(form)?),
        None => text.rsplit_once(':').ok_or_else(form)?,
    };
    if host.is_empty() || guest.is_empty() {
        return Err(form());
    }
    checked(host.to_owned(), guest.to_owned())
}

/// Adds the host sockets of a file.
pub(super) fn from_entries(
    name: &str,
    entries: Vec<RawHostSocketEntry>,
    sockets: &mut Vec<HostSocket>,
    errors: &mut Vec<ConfigError>,
) {
    for (at, entry) in entries.into_iter().enumerate() {
        let parsed = match entry {
            RawHostSocketEntry::Text(text) => parse_host_socket(&text),
            RawHostSocketEntry::Object(raw) => checked(raw.host, raw.guest),
        };
        add(&format!("{name}: host_sockets[{at}]"), parsed, sockets, errors);
    }
}

/// Uses a good socket, notes a bad one.
pub(super) fn add(
    origin: &str,
    parsed: Result<HostSocket, HostSocketError>,
    sockets: &mut Vec<HostSocket>,
    errors: &mut Vec<ConfigError>,
) {
    match parsed {
        Ok(parsed) => sockets.push(parsed),
        Err(error) => errors.push(ConfigError::new(origin, &error).help(error.help())),
    }
}

/// What all host sockets together have to fulfil.
pub(super) fn check(config: &NetworkConfig, errors: &mut Vec<ConfigError>) {
    let sockets = config.host_sockets.as_slice();
    let (Some(first), origin) = (sockets.first(), "host_sockets") else { return };
    if !config.enabled {
        let message = format!("{first} leads through the gateway, which a sandbox without a network has not");
        let help = "say `--net-default deny` in place of `--no-net`: nothing but the host sockets is reached then";
        return errors.push(ConfigError::new(origin, message).help(help.to_owned()));
    }
    if sockets.len() > MAX_HOST_SOCKETS {
        let message = format!(
            "{} host sockets are more than one sandbox can have; the bound is {MAX_HOST_SOCKETS}",
            sockets.len()
        );
        return errors.push(ConfigError::new(origin, message));
    }
    for (at, socket) in sockets.iter().enumerate() {
        let earlier = sockets.get(..at).unwrap_or_default();
        let is_beneath = |path: &str, other: &str| path.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
        let clashes = |other: &&HostSocket| {
            let (a, b) = (socket.guest.as_str(), other.guest.as_str());
            a == b || is_beneath(a, b) || is_beneath(b, a)
        };
        if let Some(other) = earlier.iter().find(clashes) {
            let message = format!("{socket} takes the same place in the sandbox as {other}");
            return errors
                .push(ConfigError::new(origin, message).help("give one of them another path inside".to_owned()));
        }
    }
}

fn checked(host: String, guest: String) -> Result<HostSocket, HostSocketError> {
    if host.starts_with('@') || host.starts_with('\0') {
        return Err(HostSocketError::Abstract { path: host });
    }
    let host = path(host, "on the host", LONGEST_HOST)?;
    let guest = path(guest, "in the sandbox", LONGEST_GUEST)?;
    if guest.contains(":/") {
        return Err(HostSocketError::Colon { path: guest });
    }
    Ok(HostSocket { host, guest })
}

fn path(path: String, side: &'static str, most: usize) -> Result<String, HostSocketError> {
    let Some(parts) = path.strip_prefix('/') else { return Err(HostSocketError::Relative { path, side }) };
    if path.chars().any(char::is_control) {
        return Err(HostSocketError::Control { path, side });
    }
    if parts.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(HostSocketError::Crooked { path, side });
    }
    match path.len() {
        len if len > most => Err(HostSocketError::TooLong { path, side, len, most }),
        _ => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_paths_with_a_colon_between_them() {
        for (text, host, guest) in [
            ("/run/a.sock:/run/b.sock", "/run/a.sock", "/run/b.sock"),
            ("/a:/b:/c", "/a:/b", "/c"),
            ("/a:b:/c", "/a:b", "/c"),
            ("/a:/b:c", "/a", "/b:c"),
            ("/ä ö:/tmp/ü", "/ä ö", "/tmp/ü"),
        ] {
            let expected = HostSocket { host: host.to_owned(), guest: guest.to_owned() };
            assert_eq!(parse_host_socket(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_a_reason() {
        let long = |len: usize| format!("/a:/{}", "b".repeat(len - 1));
        assert!(parse_host_socket(&long(107)).is_ok());
        for (text, reason, help) in [
            ("", "is not a host socket", ""),
            ("/run/a", "is not a host socket", "/run/a:/run/a"),
            ("/run/a:", "is not a host socket", ""),
            (":/run/a", "is not a host socket", ""),
            ("a.sock:/run/a", "\"a.sock\" on the host is not absolute", ""),
            ("/run/a:b", "\"b\" in the sandbox is not absolute", "/run/b"),
            ("@a:/run/a", "abstract", "at a path"),
            ("\0a:/run/a", "abstract", ""),
            ("/run/../a:/run/a", "on the host has an empty part", ""),
            ("/run/a:/run/../a", "in the sandbox has an empty part", ""),
            ("/run/a:/run/a/", "in the sandbox has an empty part", ""),
            ("/run//a:/run/a", "on the host has an empty part", ""),
            ("/run/a:/", "in the sandbox has an empty part", ""),
            ("/run/a\n:/run/a", "on the host has a control character", ""),
            ("/run/a:/run/a\0", "in the sandbox has a control character", ""),
            (&long(108), "has 108 bytes; a socket's has 107", ""),
        ] {
            let error = parse_host_socket(text).expect_err(text);
            assert!(error.to_string().contains(reason), "{text}: {error}");
            assert!(error.help().unwrap_or_default().contains(help), "{text}: {:?}", error.help());
        }
    }
}
