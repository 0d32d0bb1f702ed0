//! The program `cofferdam`, which does everything.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::Error;
use crate::error::{Refusal, io_error};
use crate::streams::{Feed, Keep, StreamError, exchange};

/// The variable that names it.
const VARIABLE: &str = "COFFERDAM_PROGRAM";
const NAME: &str = "cofferdam";

/// The longest answer of a verb: lists of sandboxes and of what a copy has left out.
const LONGEST_ANSWER: usize = 64 << 20;

/// Where it is.
#[derive(Debug, Clone)]
pub(crate) struct Program(PathBuf);

/// What a verb has said.
#[derive(Debug)]
pub(crate) struct Said {
    verb: String,
    /// `None` for one that a signal has ended.
    pub(crate) status: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Program {
    /// The one that was chosen, else the one that the environment names, else the one in `PATH`.
    pub(crate) fn find(chosen: Option<&Path>) -> Result<Program, Error> {
        let named = env::var_os(VARIABLE).filter(|path| !path.is_empty());
        find_in(chosen, named.as_deref(), env::var_os("PATH").as_deref())
    }

    #[cfg(test)]
    pub(crate) fn at(path: &str) -> Program {
        Program(path.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Runs a verb to its end. Dropping the future ends it.
    pub(crate) async fn say(
        &self,
        arguments: &[impl AsRef<OsStr>],
        input: Option<Vec<u8>>,
        limit: Option<usize>,
    ) -> Result<Said, Error> {
        let mut command = Command::new(&self.0);
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        command.args(arguments).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| self.not_executed(error))?;
        let limit = limit.unwrap_or(LONGEST_ANSWER);
        let feed = Feed::new(child.stdin.take(), input.unwrap_or_default());
        let mut out = Keep::new(child.stdout.take(), limit);
        let mut err = Keep::new(child.stderr.take(), LONGEST_ANSWER);
        if let Err(error) = exchange(feed, &mut out, &mut err, None).await {
            return Err(match error {
                StreamError::TooLarge => Error::OutputTooLarge { limit },
                StreamError::Io(source) => Error::Io { doing: "read what the program says", source },
            });
        }
        let status = child.wait().await.map_err(io_error("wait for the program"))?;
        let verb = arguments.first().map(|verb| verb.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Said { verb, status: status.code(), stdout: out.into_bytes(), stderr: err.into_bytes() })
    }

    /// Runs a verb that answers with JSON.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        arguments: &[impl AsRef<OsStr>],
        input: Option<Vec<u8>>,
    ) -> Result<T, Error> {
        self.say(arguments, input, None).await?.answer()
    }

    pub(crate) fn not_executed(&self, source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::NotFound {
            return Error::ProgramMissing { looked: format!("at {}", self.0.display()) };
        }
        Error::Io { doing: "execute the program `cofferdam`", source }
    }
}

impl Said {
    fn answer<T: DeserializeOwned>(&self) -> Result<T, Error> {
        if self.status != Some(0) {
            return Err(self.refusal());
        }
        serde_json::from_slice(&self.stdout).map_err(|error| self.unexpected(&error.to_string()))
    }

    /// What it says with an exit status that is not 0.
    pub(crate) fn refusal(&self) -> Error {
        match serde_json::from_slice::<Refusal>(&self.stdout) {
            Ok(refusal) => refusal.into(),
            Err(_) => self.unexpected(""),
        }
    }

    /// Something that no version of ours says.
    pub(crate) fn unexpected(&self, what: &str) -> Error {
        let said = String::from_utf8_lossy(&self.stderr);
        // For a person to read, and never long.
        let said: String = said.trim().chars().take(2000).collect();
        let status =
            self.status.map_or_else(|| "ended by a signal".to_owned(), |status| format!("exit status {status}"));
        let message = [what.to_owned(), status, said].into_iter().filter(|part| !part.is_empty());
        Error::Protocol { verb: self.verb.clone(), message: message.collect::<Vec<_>>().join("; ") }
    }
}

fn find_in(chosen: Option<&Path>, named: Option<&OsStr>, path: Option<&OsStr>) -> Result<Program, Error> {
    let missing = |looked: String| Error::ProgramMissing { looked };
    let at = |path: &Path, whose: &str| {
        // It is executed later, perhaps from another directory.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        if is_executable(&absolute) {
            return Ok(Program(absolute));
        }
        Err(missing(format!("at {}, {whose}", path.display())))
    };
    if let Some(chosen) = chosen {
        return at(chosen, "which was chosen");
    }
    if let Some(named) = named {
        return at(Path::new(named), "which COFFERDAM_PROGRAM names");
    }
    // What lies in the current directory is nobody's choice.
    let directories = path.map(env::split_paths).into_iter().flatten().filter(|directory| directory.is_absolute());
    let found = directories.map(|directory| directory.join(NAME)).find(|path| is_executable(path));
    found.map(Program).ok_or_else(|| missing("in PATH".to_owned()))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Words of a command line.
pub(crate) fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.map(OsString::from).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_looked_for_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (chosen, named) = (make("chosen", 0o755), make("named", 0o755));
        let (plain, in_path) = (make("a/cofferdam", 0o644), make("b/cofferdam", 0o755));
        let path = env::join_paths(["relative".as_ref(), plain.parent().unwrap(), in_path.parent().unwrap()]).unwrap();
        let find = |chosen: Option<&Path>, named: Option<&Path>| {
            find_in(chosen, named.map(Path::as_os_str), Some(&path)).map(|Program(path)| path)
        };
        assert_eq!(find(Some(&chosen), Some(&named)).unwrap(), chosen);
        assert_eq!(find(None, Some(&named)).unwrap(), named);
        assert_eq!(find(None, None).unwrap(), in_path);
        for (missing, looked) in [
            (find(Some(&plain), Some(&named)), "which was chosen"),
            (find(None, Some(&dir.path().join("gone"))), "COFFERDAM_PROGRAM"),
            (find_in(None, None, None).map(|Program(path)| path), "in PATH"),
        ] {
            let Err(error @ Error::ProgramMissing { .. }) = missing else { panic!("{missing:?}") };
            let text = error.to_string();
            assert!(text.contains(looked) && text.contains("install it"), "{text}");
        }
    }

    #[test]
    fn what_is_no_answer_is_said_with_what_stands_on_stderr() {
        let said = |status, stdout: &str| Said {
            verb: "stop".to_owned(),
            status: Some(status),
            stdout: stdout.as_bytes().to_vec(),
            stderr: b"error: unexpected argument\n".to_vec(),
        };
        let error = said(2, "").answer::<Vec<String>>().unwrap_err().to_string();
        assert!(error.contains("`cofferdam stop`") && error.contains("exit status 2; error: unexpected"), "{error}");
        assert!(matches!(said(0, "{}").answer::<Vec<String>>(), Err(Error::Protocol { .. })));
        let refused = said(1, r#"{"error": "no", "kind": "absent"}"#).answer::<Vec<String>>();
        assert!(matches!(refused, Err(Error::Absent { .. })), "{refused:?}");
    }
}
