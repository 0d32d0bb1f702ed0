use std::io;
use std::time::Duration;

use cofferdam_policy::builder::BuildErrors;
use cofferdam_policy::file::{ConfigErrors, PortError};
use serde::Deserialize;

use crate::Output;

/// Why something could not be done. What kept it from starting has started nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program `cofferdam` is not where it was looked for.
    #[error(
        "there is no program `cofferdam` {looked}; install it, name it in the variable COFFERDAM_PROGRAM, or give its path to the \
         builder's `program`"
    )]
    ProgramMissing { looked: String },
    /// A network that was asked for cannot be used.
    #[error(transparent)]
    Policy(#[from] ConfigErrors),
    /// A policy made by code cannot be used.
    #[error(transparent)]
    Build(#[from] BuildErrors),
    /// A text names no port.
    #[error("{0}{help}", help = .0.help().map(|help| format!("; {help}")).unwrap_or_default())]
    Port(#[from] PortError),
    /// A name that no sandbox can have.
    #[error(
        "{name:?} cannot be the name of a sandbox: lower-case letters, digits, dots, dashes and underscores, up to 63, the first \
         a letter or digit"
    )]
    Name { name: String },
    /// There is no sandbox by this name.
    #[error("{message}")]
    Absent { message: String },
    /// There is one by this name already.
    #[error("{message}")]
    Exists { message: String },
    /// It does not run.
    #[error("{message}")]
    Stopped { message: String },
    /// It runs.
    #[error("{message}")]
    Running { message: String },
    /// Somebody else is starting, stopping or removing it.
    #[error("{message}")]
    Busy { message: String },
    /// A run in [`Mode::Check`](crate::Mode::Check) asks for more network than its sandbox has.
    #[error("the run asks for more network than the sandbox has: {flow}")]
    Wider {
        /// One flow, in words: ``tcp 10.0.0.1:443 is allowed by the run but not by the session``.
        flow: String,
    },
    /// The command cannot be executed: it is not there (127) or no program (126).
    #[error("{message}")]
    Execute { message: String, exit_status: u8 },
    /// The sandbox or the run cannot be set up.
    #[error("{message}")]
    Setup { message: String, exit_status: u8 },
    /// The time of a run was up, and it was ended with everything it had started.
    #[error("the run took longer than {after:?} and was ended")]
    TimedOut {
        after: Duration,
        /// What it had written until then, where that was collected, and what it was denied. Its status is `Lost`.
        output: Box<Output>,
    },
    /// More was written than is kept. A run was ended for it.
    #[error("there is more output than the {limit} bytes that are kept; raise the limit, or read it as a stream")]
    OutputTooLarge { limit: usize },
    /// What is at this path in the sandbox is no regular file.
    #[error("{path} in the sandbox is not a regular file")]
    NotAFile { path: String },
    /// A path that is no UTF-8 cannot be handed over, or an empty command.
    #[error("{what} cannot be told to the program")]
    Unsayable { what: String },
    /// The program has said something that this version of the library does not understand.
    #[error("`cofferdam {verb}` has said something unexpected; is it of another version? {message}")]
    Protocol { verb: String, message: String },
    /// The system has refused something.
    #[error("cannot {doing}")]
    Io { doing: &'static str, source: io::Error },
}

/// An error as the program says it.
#[derive(Debug, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) error: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    exit_status: u8,
    #[serde(default)]
    wider: Option<String>,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let Refusal { error: message, kind, exit_status, wider } = refusal;
        match (kind.as_str(), wider) {
            ("absent", _) => Error::Absent { message },
            ("exists", _) => Error::Exists { message },
            ("stopped", _) => Error::Stopped { message },
            ("running", _) => Error::Running { message },
            ("busy", _) => Error::Busy { message },
            ("wider", Some(flow)) => Error::Wider { flow },
            ("not_executable" | "not_found", _) => Error::Execute { message, exit_status },
            // Kinds that are new stay errors.
            _ => Error::Setup { message, exit_status },
        }
    }
}

pub(crate) fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_refuses_has_a_type() {
        let read = |json: &str| Error::from(serde_json::from_str::<Refusal>(json).unwrap());
        let absent = read(r#"{"error": "no", "kind": "absent", "exit_status": 125}"#);
        assert!(matches!(&absent, Error::Absent { message } if message == "no"), "{absent:?}");
        let wider = read(r#"{"error": "no", "kind": "wider", "wider": "udp [fd00::1]:53", "exit_status": 125}"#);
        assert!(matches!(&wider, Error::Wider { flow } if flow == "udp [fd00::1]:53"), "{wider:?}");
        let execute = read(r#"{"error": "no", "kind": "not_found", "exit_status": 127}"#);
        assert!(matches!(execute, Error::Execute { exit_status: 127, .. }));
        for other in [r#"{"error": "no", "kind": "new", "more": 1}"#, r#"{"error": "no"}"#] {
            assert!(matches!(read(other), Error::Setup { .. }), "{other}");
        }
    }
}
