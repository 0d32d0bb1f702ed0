//! Why something did not happen: for people in words, for programs with a kind.

use cofferdam_control::change::ChangeError;
use cofferdam_control::named::{NamedError, NarrowError, SpecError};
use cofferdam_control::store::StoreError;
use cofferdam_control::{EXIT_SETUP, RunError};
use cofferdam_policy::file::ConfigErrors;
use serde_json::{Value, json};

use crate::{output, policy};

/// Exit status of a verb that could not do what it is for.
pub(crate) const EXIT_FAILED: u8 = 1;

/// Does something with each, and says what did not work; with `json` what became of each, which is called `field`.
pub(crate) fn each(field: &str, names: &[String], json: bool, mut act: impl FnMut(&str) -> Result<(), Refusal>) -> u8 {
    let mut status = 0;
    let mut list = Vec::new();
    for name in names {
        let mut became = serde_json::json!({});
        if let Err(refusal) = act(name) {
            let refusal = refusal.with_status(EXIT_FAILED);
            status = if json { refusal.status } else { refusal.tell(false) };
            became = refusal.to_json();
        }
        if let Some(object) = became.as_object_mut() {
            object.insert(field.to_owned(), name.as_str().into());
        }
        list.push(became);
    }
    if json { status.max(output::print_json(&list.into())) } else { status }
}

/// Why something did not happen, as text, as one of a few kinds, and as an exit status.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) text: String,
    pub(crate) kind: Kind,
    pub(crate) status: u8,
    /// What is wrong with a configuration, which people are shown with its places.
    pub(crate) errors: Option<ConfigErrors>,
}

/// What a program may want to act on. The words are listed in `docs/sessions.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// There is no such sandbox.
    Absent,
    /// The name is taken.
    Exists,
    Stopped,
    Running,
    /// Somebody else is changing it.
    Busy,
    /// A run asks for more than its session has: this.
    Wider(String),
    /// The command is there and cannot be executed.
    NotExecutable,
    /// The command is not there.
    NotFound,
    /// Everything else.
    Setup,
}

impl Kind {
    fn word(&self) -> &'static str {
        match self {
            Kind::Absent => "absent",
            Kind::Exists => "exists",
            Kind::Stopped => "stopped",
            Kind::Running => "running",
            Kind::Busy => "busy",
            Kind::Wider(_) => "wider",
            Kind::NotExecutable => "not_executable",
            Kind::NotFound => "not_found",
            Kind::Setup => "setup",
        }
    }
}

impl Refusal {
    pub(crate) fn setup(text: String) -> Refusal {
        Refusal { text, kind: Kind::Setup, status: EXIT_SETUP, errors: None }
    }

    /// What is wrong with the network that was asked for.
    pub(crate) fn network(errors: ConfigErrors) -> Refusal {
        let text = "the network's configuration cannot be used, so nothing was started".to_owned();
        Refusal { errors: Some(errors), ..Refusal::setup(text) }
    }

    /// What kept a program from being executed, by the exit status that a shell has for it.
    pub(crate) fn start(text: String, status: u8) -> Refusal {
        let kind = match status {
            126 => Kind::NotExecutable,
            127 => Kind::NotFound,
            _ => Kind::Setup,
        };
        Refusal { text, kind, status, errors: None }
    }

    /// The same for a verb with another exit status.
    pub(crate) fn with_status(self, status: u8) -> Refusal {
        Refusal { status, ..self }
    }

    /// As programs read it.
    pub(crate) fn to_json(&self) -> Value {
        let text = match &self.errors {
            Some(errors) => format!("{}: {}", self.text, errors.to_string().replace('\n', "; ")),
            None => self.text.clone(),
        };
        let mut value = json!({ "error": text, "kind": self.kind.word(), "exit_status": self.status });
        if let (Kind::Wider(flow), Some(object)) = (&self.kind, value.as_object_mut()) {
            object.insert("wider".to_owned(), flow.as_str().into());
        }
        value
    }

    /// Says what went wrong: one paragraph, or an object with the same. Gives the exit status back.
    pub(crate) fn tell(&self, json: bool) -> u8 {
        if json {
            let _printed = output::print_json(&self.to_json());
            return self.status;
        }
        if let Some(errors) = &self.errors {
            output::to_stderr(&policy::explained(errors));
        }
        output::fail(&self.text, self.status)
    }
}

impl From<&NamedError> for Refusal {
    fn from(error: &NamedError) -> Refusal {
        let kind = match error {
            NamedError::Absent(_) => Kind::Absent,
            NamedError::Exists(_) => Kind::Exists,
            NamedError::Stopped(_) => Kind::Stopped,
            NamedError::Running(_) => Kind::Running,
            NamedError::Busy(_) => Kind::Busy,
            NamedError::Name(_) | NamedError::Spec { .. } | NamedError::State(_) | NamedError::Keeper { .. } => {
                Kind::Setup
            }
        };
        Refusal { kind, ..Refusal::setup(output::chain(error)) }
    }
}

impl From<&StoreError> for Refusal {
    fn from(error: &StoreError) -> Refusal {
        let kind = match error {
            StoreError::Absent(_) | StoreError::Empty => Kind::Absent,
            StoreError::Running(_) => Kind::Running,
            StoreError::State(_)
            | StoreError::Random(_)
            | StoreError::Ambiguous { .. }
            | StoreError::Version { .. }
            | StoreError::Broken { .. } => Kind::Setup,
        };
        Refusal { kind, ..Refusal::setup(output::chain(error)) }
    }
}

impl From<&ChangeError> for Refusal {
    fn from(error: &ChangeError) -> Refusal {
        let kind = match error {
            ChangeError::Sandbox(error) => return Refusal::from(error),
            ChangeError::Spec(SpecError::Network(errors)) => {
                return Refusal { errors: Some(errors.clone()), ..Refusal::setup(error.to_string()) };
            }
            ChangeError::Ended(_) => Kind::Stopped,
            ChangeError::Busy => Kind::Busy,
            ChangeError::Closed(_)
            | ChangeError::OwnNetwork { .. }
            | ChangeError::Rule(_)
            | ChangeError::Refused(_)
            | ChangeError::Silent { .. }
            | ChangeError::Spec(_)
            | ChangeError::Layers(_) => Kind::Setup,
        };
        Refusal { kind, ..Refusal::setup(output::chain(error)) }
    }
}

impl From<&RunError> for Refusal {
    fn from(error: &RunError) -> Refusal {
        let refusal = Refusal::start(output::chain(error), error.exit_status());
        match error {
            RunError::Narrow(NarrowError::Wider(flow)) => Refusal { kind: Kind::Wider(flow.clone()), ..refusal },
            RunError::Host(_)
            | RunError::Random(_)
            | RunError::Layers(_)
            | RunError::Nameserver(_)
            | RunError::Anchors(_)
            | RunError::Publish(_)
            | RunError::Share(_)
            | RunError::Slot(_)
            | RunError::NothingToCapture
            | RunError::CapturesSession
            | RunError::Spec(_)
            | RunError::Launch(_)
            | RunError::Keeper(_) => refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_the_kind_and_the_flow() {
        let name = "box".parse().unwrap();
        let absent = Refusal::from(&NamedError::Absent(name)).to_json();
        assert_eq!((&absent["kind"], &absent["exit_status"]), (&"absent".into(), &125.into()));
        let wider = NarrowError::Wider("tcp [fd00::5]:443 is allowed by the run but not by the session".to_owned());
        let wider = Refusal::from(&RunError::Narrow(wider)).to_json();
        assert_eq!(wider["kind"], "wider");
        assert_eq!(wider["wider"], "tcp [fd00::5]:443 is allowed by the run but not by the session");
        for (status, kind) in [(126, "not_executable"), (127, "not_found"), (125, "setup")] {
            assert_eq!(Refusal::start(String::new(), status).to_json()["kind"], kind);
        }
    }
}
